"""The command `lowhanging reproduce`: its options, its exit status, and the folder that it leaves."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lowhanging._version import __version__
from lowhanging.errors import NotConvergedError, argument_message, check_choice, check_count, check_writable_folder
from lowhanging.reproduce import figures, page, pipeline
from lowhanging.reproduce.settings import SIZES, Settings, default_data
from lowhanging.reproduce.themes.registry import NAMES

_EPILOG = """
Time on two cores: the default takes about 6 minutes. With --seeds N every further network takes about 5 minutes more.
--full has never been run to its end, and takes many hours. The network sees 15 times as many images, every Hessian
product is on 10,000 instead of 1,000, canyons are searched in 57 random subspaces of each network instead of 6, modular
addition has nine times as many pairs, four times as many seeds, and the transformer of the literature. The settings of
its networks in blocks have not been tuned for p = 113.

A run that is stopped, however, goes on with the same command: finished work lies in FOLDER/work.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the `lowhanging` command."""
    parser = argparse.ArgumentParser(prog="lowhanging", description="The microscope for the low-hanging fruit prior.")
    parser.add_argument("--version", action="version", version=f"lowhanging {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    reproduce = commands.add_parser(
        "reproduce",
        help="measure the post's claims and write a report",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reproduce.add_argument("--out", default="report", metavar="FOLDER", help="where the report goes (default: report)")
    size = reproduce.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", dest="size", action="store_const", const="quick", help="bundled digits, p = 37 and 53 (default)"
    )
    size.add_argument(
        "--full", dest="size", action="store_const", const="full",
        help="all of MNIST (a download, or --data) and p = 113; hours, see below",
    )  # fmt: skip
    size.add_argument("--tiny", dest="size", action="store_const", const="tiny", help=argparse.SUPPRESS)  # for tests
    reproduce.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="digit networks, for intervals over them (default: 1)"
    )
    reproduce.add_argument(
        "--seed", type=int, default=0, help="of the first network's data, weights and training (default: 0)"
    )
    reproduce.add_argument(
        "--only", default=",".join(NAMES), metavar="THEME,...", help=f"measure these only: {', '.join(NAMES)}"
    )
    default = SIZES["quick"].epochs
    reproduce.add_argument("--epochs", type=int, metavar="N", help=f"of the digit networks (default: {default})")
    reproduce.add_argument(
        "--data", metavar="SOURCE", help='"bundled" (default), "full" (that of --full), or a folder of IDX files'
    )
    reproduce.add_argument("--fresh", action="store_true", help="forget the finished work of these settings first")
    reproduce.add_argument("--no-figures", action="store_true", help="write no pictures")
    reproduce.set_defaults(size="quick")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (2: bad input, named on standard error; 130: interrupted)."""
    options = build_parser().parse_args(arguments)
    out = Path(options.out)
    before = {*_folders(out), *(folder for folder in out.parents if folder.exists())}
    try:
        return reproduce(options)
    except BaseException as error:
        for folder in sorted({*_folders(out), *out.parents} - before, key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):  # what this run made and left empty, deepest first
                folder.rmdir()
        if isinstance(error, KeyboardInterrupt):
            print("\nlowhanging reproduce: interrupted; the same command goes on from here", file=sys.stderr)
            return 130
        if not isinstance(error, ValueError | TypeError | OSError | ArithmeticError | NotConvergedError):
            raise
        print(f"lowhanging reproduce: {error}", file=sys.stderr)
        return 2


def settings_of(options: argparse.Namespace) -> Settings:
    """What the options ask for, or an error."""
    check_count("--seeds", options.seeds, remedy="3 give a first interval; leave it out for one network.")
    check_count("--seed", options.seed, minimum=0, remedy="Any non-negative integer.")
    sizes = SIZES[options.size]
    if options.epochs is not None:
        check_count("--epochs", options.epochs, remedy="Leave it out for the default.")
        sizes = dataclasses.replace(sizes, epochs=options.epochs)
    return Settings(sizes, options.data or default_data(options.size), options.seed, options.seeds)


def themes_of(text: str) -> list[str]:
    """The themes named in --only, or an error."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        listed = ", ".join(map(repr, NAMES))
        raise ValueError(
            argument_message("--only", "names nothing", f"some of {listed}", "Leave it out for all of them.")
        )
    return [check_choice("--only", name, NAMES, remedy="Name themes with commas between them.") for name in names]


def reproduce(options: argparse.Namespace) -> int:
    """All themes, then the report."""
    settings, only = settings_of(options), themes_of(options.only)
    out = check_writable_folder("--out", options.out, remedy="Name another folder with --out.")
    if options.fresh:
        shutil.rmtree(out / "work" / settings.digest, ignore_errors=True)
    measured = pipeline.measure(settings, out / "work", only)
    pictures: dict[str, bytes] = {}
    if not options.no_figures:
        print("figures ...", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        pictures = figures.draw({name: (measured.contexts[name], rows) for name, rows in measured.rows.items()})
        print(f"figures: {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
    claims = page.write(out, measured, pictures)
    page.show(claims, measured, out)
    return 0


def _folders(out: Path) -> set[Path]:
    """The report's folder and those of its work."""
    return {path for path in (out, out / "work", *(out / "work").rglob("*")) if path.is_dir()}
