"""How does a run become a report, and what if writing it fails?

Everything is made in memory, then written in full to a folder beside the earlier report, and only then moved into its
place, file by file and the page last. A write that fails leaves the earlier report as it was. What is cut off between
two moves leaves the earlier page, which needs no file beside it: a new page never stands beside older numbers.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lowhanging.reproduce.claims import ONE_SEED, Claim
from lowhanging.reproduce.figures import CAPTIONS
from lowhanging.reproduce.items import items
from lowhanging.reproduce.page import MINIMUM, page
from lowhanging.reproduce.run import Measured
from lowhanging.reproduce.settings import versions
from lowhanging.reproduce.shelf import Row, as_json
from lowhanging.results import write_atomically


def write(out: Path, measured: Measured, pictures: Mapping[str, bytes]) -> list[Claim]:
    """index.html, claims.md, results.json and the figures; returns the claims."""
    claims, heading = measured.claims(), heading_of(measured)
    results = {
        "settings": {
            "seeds": list(measured.settings.seeds),
            "data": measured.settings.data,
            "sizes": dataclasses.asdict(measured.settings.sizes),
            "command": measured.settings.command(),
        },
        "versions": versions(),
        "rows": measured.rows,
        "claims": [dataclasses.asdict(claim) | {"label": claim.label} for claim in claims],
    }
    files = {
        **pictures,
        "claims.md": markdown(claims, heading, list(pictures)).encode(),
        "results.json": as_json(results).encode(),
        "index.html": page(claims, heading, measured, pictures).encode(),
    }
    # Pictures of an earlier run would stand beside numbers that are not theirs.
    replace_together(out, files, stale=set(CAPTIONS) - set(pictures))
    return claims


def replace_together(out: Path, files: Mapping[str, bytes], stale: Iterable[str] = ()) -> None:
    """Write all `files` into a folder within `out`, then move each into its place in their order, the last one last.

    Those in `stale` are removed before that last move. If anything can't be written, nothing has been moved or removed.
    """
    staging = out / ".report.part"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed here
    staging.mkdir()
    try:
        for name, content in files.items():
            write_atomically(staging / name, lambda stream, content=content: stream.write(content))
        *others, last = files
        for name in others:
            os.replace(staging / name, out / name)
        for name in stale:
            (out / name).unlink(missing_ok=True)
        os.replace(staging / last, out / last)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def heading_of(measured: Measured) -> list[str]:
    """What a reader must know before the numbers: settings, and where they were measured."""
    settings = measured.settings
    num, sizes = settings.num_seeds, settings.sizes
    networks = (
        f"One digit network (seed {settings.seed}; {ONE_SEED})"
        if num == 1
        else f"{num} digit networks (seeds {settings.seed} to {settings.seed + num - 1}), intervals of 95 % over them"
    )
    lines = [
        f"{networks}, {sizes.epochs} epochs, {settings.data} digits, {sizes.name} size. Repeat it with "
        f"`{settings.command()}`. The same seed gives the same numbers on the same processor and number of threads "
        f"({versions()['threads']} here); another one rounds differently and so trains another network.",
        "Losses, accuracies and Hessians are those of held-out images, without the anchor, at the minimum of the "
        "anchored training loss (where the held-out losses themselves are not stationary).",
    ]
    if num > 1:
        lines.append(
            "An interval over networks is Student's: of ratios and positive quantities on the logarithm (around the "
            "geometric mean), of accuracies and other shares on the log odds, else symmetric (±). Of fewer than five "
            "networks the smallest and the largest value stand beside it in parentheses; where one of the values has "
            "no logarithm or log odds (a share of exactly 0 or 1), the ordinary mean and this range stand alone."
        )
    if num < 6:
        lines.append(
            "A verdict says what was seen in these networks. With fewer than six, even if all agree, it stays open "
            "whether more than half of all networks would."
        )
    return lines + [_minimum(settings.seed + i, row) for i, row in enumerate(measured.rows.get("learning", []))]


def _minimum(seed: int, row: Row) -> str:
    found = row["minimum"]
    text = (
        f"{MINIMUM}{seed}: gradient norm {found['gradient_norm_before']:.2g} → "
        f"{found['gradient_norm']:.2g} in {found['num_gradients']} gradients and {found['num_products']} products, "
        f"anchor {found['anchor']:g}, moved by {found['distance']:.3g} (the weights' norm is "
        f"{found['norm_before']:.3g}), eigenvalues of the anchored training loss from "
        f"{found['smallest_eigenvalue']:.3g} (± {found['smallest_residual']:.1g}) to {found['largest_eigenvalue']:.3g}."
    )
    return text if found["is_minimum"] else f"{text} **Not a minimum:** {found['note']}"


def markdown(claims: Sequence[Claim], heading: Sequence[str], pictures: Sequence[str] = ()) -> str:
    """The claims as a page: `heading`, a table of verdicts, then each claim, its null, its rule and its command."""
    lines = ["# The post's claims, measured", ""]
    for line in heading:
        lines += [line, ""]
    lines += ["| | claim | verdict |", "|---|---|---|"]
    lines += [f"| {c.label} | {_cell(c.name)} | **{c.verdict}** |" for c in claims]
    for c in claims:
        lines += ["", f"## {c.label}. {c.name}: {c.verdict}", "", f"The write-up: {c.post}", ""]
        for word, text in (("Measured", c.measured), ("Held against", c.null), ("Rule", c.rule)):
            lines += [f"{word}:", "", *bullets(text), ""]
        lines.append(f"Repeat it: `{c.command}`")
    lines += ["", *(f"![{CAPTIONS[name][1]}]({name})" for name in pictures)]
    return "\n".join(lines).rstrip() + "\n"


def bullets(text: str) -> list[str]:
    """A text as a list in Markdown, one line of it per sentence; long sentences in lines."""
    return [f"* {'<br>'.join(lines)}" for lines in items(text)]


def _cell(text: str) -> str:
    """Text that stays in one cell of a table."""
    return text.replace("|", "\\|")


def show(claims: Sequence[Claim], measured: Measured, out: Path) -> None:
    """The claims on a terminal, as wide as one usually is."""
    for seed, row in enumerate(measured.rows.get("learning", []), measured.settings.seed):
        if not row["minimum"]["is_minimum"]:
            print(f"\nNOT A MINIMUM (network {seed}): {row['minimum']['note']}")
    for claim in claims:
        print(f"\n{claim.verdict.upper():<14} {claim.label}. {claim.name}")
        for label, text in (("post", claim.post), ("measured", claim.measured), ("null", claim.null)):
            print(textwrap.fill(text, 110, initial_indent=f"{'':<15}{label}: ", subsequent_indent=" " * 17))
    print(
        f"\n{out / 'index.html'} shows all of it, {out / 'claims.md'} says how each verdict was reached, "
        f"{out / 'results.json'} has every number."
    )
