"""The command line: `lowhanging reproduce`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lowhanging._version import __version__
from lowhanging.errors import NotConvergedError, check_count, check_writable_folder
from lowhanging.reproduce import (
    canyons,
    cartoons,
    curvature,
    figures,
    learning,
    modular,
    planes,
    redundancy,
    report,
    steering,
)
from lowhanging.reproduce.claims import Claim

DEFAULT_EPOCHS = 60


def build_parser() -> argparse.ArgumentParser:
    """The parser of the `lowhanging` command."""
    parser = argparse.ArgumentParser(prog="lowhanging", description="The microscope for the low-hanging fruit prior.")
    parser.add_argument("--version", action="version", version=f"lowhanging {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    reproduce = commands.add_parser("reproduce", help="measure the post's claims and write a report")
    reproduce.add_argument("--out", default="report", metavar="FOLDER", help="where the report goes (default: report)")
    reproduce.add_argument("--seed", type=int, default=0, help="of data, weights and training (default: 0)")
    reproduce.add_argument("--epochs", type=int, default=DEFAULT_EPOCHS, metavar="N", help=f"default: {DEFAULT_EPOCHS}")
    reproduce.add_argument(
        "--data", default="bundled", metavar="SOURCE", help='"bundled", "full", or a folder of IDX files'
    )
    reproduce.add_argument("--no-figures", action="store_true", help="write no pictures")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (2: bad input, named on standard error)."""
    options = build_parser().parse_args(arguments)
    out = Path(options.out)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        return reproduce(options)
    except BaseException as error:
        for folder in made:  # deepest first: what this run made and left empty
            with contextlib.suppress(OSError):
                folder.rmdir()
        if not isinstance(error, ValueError | TypeError | OSError | ArithmeticError | NotConvergedError):
            raise
        print(f"lowhanging reproduce: {error}", file=sys.stderr)
        return 2


def reproduce(options: argparse.Namespace) -> int:
    """All themes, then the report."""
    check_count("--epochs", options.epochs, remedy="Leave it out for the default.")
    check_count("--seed", options.seed, minimum=0, remedy="Any non-negative integer.")
    out = check_writable_folder("--out", options.out, remedy="Name another folder with --out.")
    seconds: dict[str, float] = {}

    trained = _timed(
        "train and polish",
        seconds,
        lambda: learning.learn(source=options.data, seed=options.seed, epochs=options.epochs),
    )
    pairs = _timed("eigenpairs of the three losses", seconds, lambda: curvature.measure(trained.losses))
    before, steered = _timed("steering", seconds, lambda: steering.measure(trained, pairs))
    toy = _timed("toy sum", seconds, redundancy.measure)
    descents = _timed("cartoons", seconds, cartoons.measure)
    near_and_far = _timed("planes of the two steering directions", seconds, lambda: planes.measure(trained, steered))
    channels = _timed("canyons", seconds, lambda: canyons.measure(trained, steered))
    formed = _timed("modular addition, many seeds", seconds, modular.measure)
    claims = [
        *learning.claims(trained),
        *curvature.claims(pairs),
        *steering.claims(before, steered),
        *redundancy.claims(toy),
        *cartoons.claims(descents),
        *planes.claims(near_and_far),
        *canyons.claims(channels),
        *modular.claims(formed),
    ]
    results = {
        "settings": {"seed": options.seed, "epochs": options.epochs, "data": options.data},
        "versions": {"lowhanging": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "learning": learning.numbers(trained),
        "curvature": curvature.numbers(pairs),
        "steering": steering.numbers(before, steered),
        "toy_sum": redundancy.numbers(toy),
        "cartoons": cartoons.numbers(descents),
        "planes": planes.numbers(near_and_far),
        "canyons": canyons.numbers(channels),
        "modular": modular.numbers(formed),
        "claims": [dataclasses.asdict(claim) for claim in claims],
    }
    pictures = (
        {}
        if options.no_figures
        else _timed(
            "figures",
            seconds,
            lambda: figures.figures(trained, pairs, steered, descents, near_and_far, channels, formed),
        )
    )
    results["seconds"] = seconds
    report.write(out, claims, _heading(options, trained), results, pictures)
    if trained.note:
        print(f"\nNOT A MINIMUM: {trained.note}")
    _print(claims, out)
    return 0


def _heading(options: argparse.Namespace, trained: learning.Learning) -> list[str]:
    minimum = trained.minimum
    lines = [
        f"Seed {options.seed}, {options.epochs} epochs, {options.data} digits; one network, so no intervals. Another",
        "processor or number of threads rounds differently and so trains another network.",
        f"Repeat it with `lowhanging reproduce --seed {options.seed} --epochs {options.epochs} --data {options.data}`.",
        "",
        "Losses, accuracies and Hessians are those of held-out images, without the anchor, at the minimum of the",
        "anchored training loss (where the held-out losses themselves are not stationary).",
        "",
        f"That minimum: gradient norm {minimum.gradient_norm_before:.2g} → {minimum.gradient_norm:.2g}",
        f"in {minimum.num_gradients} gradients and {minimum.num_products} products, anchor {minimum.anchor:g},",
        f"moved by {minimum.distance:.3g} (the weights' norm is {float(minimum.start.norm()):.3g}), eigenvalues of",
        f"the anchored training loss from {minimum.smallest:.3g} (± {minimum.smallest_residual:.1g})",
        f"to {minimum.largest:.3g}.",
    ]
    return lines if trained.is_minimum else [*lines, "", f"**Not a minimum:** {trained.note}"]


def _timed(name: str, seconds: dict[str, float], work: Callable[[], Any]) -> Any:
    print(f"{name} ...", file=sys.stderr, flush=True)
    begun = time.perf_counter()
    result = work()
    seconds[name] = round(time.perf_counter() - begun, 1)
    print(f"{name}: {seconds[name]:.1f} s", file=sys.stderr, flush=True)
    return result


def _print(claims: Sequence[Claim], out: Path) -> None:
    """The table of claims, as wide as a terminal usually is."""
    for claim in claims:
        print(f"\n{claim.verdict.upper():<14} {claim.name}")
        for label, text in (("post", claim.post), ("measured", claim.measured)):
            print(textwrap.fill(text, 110, initial_indent=f"{'':<15}{label}: ", subsequent_indent=" " * 17))
    print(f"\n{out / 'claims.md'} says how each verdict was reached, {out / 'results.json'} has every number.")
