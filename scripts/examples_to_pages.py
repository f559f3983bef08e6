"""How does a script of examples/ become a page of the site?

    python scripts/examples_to_pages.py examples/slices.py folder/      # writes folder/slices.md and its pictures

A script in percent format is script, notebook, test and page at once. Its markdown cells become text; its code cells
become code blocks, each followed by what the cell printed and drew *in this run*: a page cannot show a number that its
code does not give. `make docs` runs this once per script, each in an interpreter and an empty folder of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PICTURES = (".png", ".gif", ".svg")
DPI = 160  # of the picture; it is shown at the size that the figure has at 96, so that it is sharp on every screen


@dataclass(frozen=True)
class Cell:
    kind: str  # "markdown", "code", or "none" before the first marker
    lines: tuple[str, ...]
    line: int  # of the script, from 1, where the first of `lines` stands

    @property
    def source(self) -> str:
        return "\n".join(self.lines).strip("\n")

    @property
    def text_lines(self) -> list[str]:
        """The lines of a markdown cell without their comment signs."""
        return [line.removeprefix("#").removeprefix(" ") for line in self.lines]

    @property
    def text(self) -> str:
        return "\n".join(self.text_lines).strip("\n")


def cells(script: str) -> list[Cell]:
    """The cells of a percent-format script."""
    found: list[tuple[str, int, list[str]]] = []
    for number, line in enumerate(script.splitlines(), start=1):
        if line.startswith("# %%"):
            found.append(("markdown" if line == "# %% [markdown]" else "code", number + 1, []))
        elif found:
            found[-1][2].append(line)
        elif line.strip():
            found.append(("none", number, [line]))
    return [Cell(kind, tuple(lines), number) for kind, number, lines in found]


def notebook(script: str) -> str:
    """The same cells as a notebook (nbformat 4.5, without output), to be downloaded."""
    found = []
    for number, cell in enumerate(cells(script)):
        if cell.kind == "none":
            continue
        is_code = cell.kind == "code"
        source = cell.source if is_code else cell.text
        found.append(
            {"cell_type": "code" if is_code else "markdown", "id": f"cell-{number}", "metadata": {}, "source": source}
            | ({"execution_count": None, "outputs": []} if is_code else {})
        )
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    document = {"cells": found, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


class CellError(RuntimeError):
    """A cell failed; names the script and its line."""


def make_page(script: Path, folder: Path) -> str:
    """Run a script; its page, as markdown. Pictures are written to `folder` as <script>-1.png and so on."""
    parts: list[str] = []
    pictures = Pictures(script.stem, folder)
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(script)}
    for cell in cells(script.read_text()):
        if cell.kind == "markdown":
            parts.append(site_links(cell.text))
            continue
        printed = run_cell(cell, script, namespace)
        parts.append(f"```python\n{cell.source}\n```")
        if printed.strip():
            parts.append(f"``` {{ .text .output }}\n{printed.rstrip()}\n```")
        parts += pictures.new()
    title, _, rest = parts[0].partition("\n")
    as_notebook = f"{script.stem}.ipynb"
    origin = (
        f"*This page is a script: [{script.name}]({script.name}), or as a notebook [{as_notebook}]({as_notebook}). "
        "It was run to make the page.*"
    )
    parts[0] = f"{title}\n\n{origin}\n{rest}"
    return "\n\n".join(parts) + "\n"


def run_cell(cell: Cell, script: Path, namespace: dict[str, Any]) -> str:
    """What a code cell prints."""
    printed = io.StringIO()
    try:
        # Blank lines in front: a traceback then names the line of the script.
        code = compile("\n" * (cell.line - 1) + "\n".join(cell.lines), str(script), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
    except Exception as error:
        here = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(script)]
        line = error.lineno if isinstance(error, SyntaxError) else here[-1]
        raise CellError(f"{script}:{line}: {type(error).__name__}: {error}") from error
    return printed.getvalue()


class Pictures:
    """Open figures, and picture files in the working folder, as they come up."""

    def __init__(self, stem: str, folder: Path):
        self.stem, self.folder, self.num = stem, folder, 0

    def new(self) -> Iterator[str]:
        """Markdown of every picture that was not there before; figures are closed."""
        import matplotlib.pyplot as plt

        for number in plt.get_fignums():
            figure = plt.figure(number)
            place = self._place(".png")
            figure.savefig(place, dpi=DPI, bbox_inches="tight", pad_inches=0.05)
            width = int.from_bytes(place.read_bytes()[16:20], "big")  # where a PNG says it
            yield f"![{described(figure)}]({place.name}){{ width={round(96 * width / DPI)} }}"
            plt.close(figure)
        for written in sorted(path for path in Path.cwd().iterdir() if path.suffix in PICTURES):
            place = self._place(written.suffix)
            place.write_bytes(written.read_bytes())
            written.unlink()
            yield f"![{written.stem.replace('_', ' ')}]({place.name})"

    def _place(self, suffix: str) -> Path:
        self.num += 1
        return self.folder / f"{self.stem}-{self.num}{suffix}"


def described(figure: Any) -> str:
    """A picture in words, for those who do not see it: what its axes say."""
    labels = []
    for ax in figure.axes:
        title, x, y = ax.get_title(), ax.get_xlabel(), ax.get_ylabel()
        shown = f"{y} against {x}" if x and y else x or y
        labels.append(f"{title}: {shown}" if title and shown else title or shown)
    words = "; ".join(dict.fromkeys(" ".join(part.split()) for part in labels if part))
    return re.sub(r"[\[\]|*_`$\\]", "", words) or "A picture"


def site_links(text: str) -> str:
    """Links as they are in examples/ -> as they are on the site, where the page stands in tutorials/."""
    text = re.sub(r"\]\(\.\./docs/", "](../", text)
    return re.sub(r"\]\(([\w-]+)\.py([#)])", r"](\1.md\2", text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a script in percent format and write it as a page.")
    parser.add_argument("script", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    script, folder = arguments.script.resolve(), arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MPLBACKEND"] = "Agg"
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
        try:
            page = make_page(script, folder)
        except CellError as error:
            print(error, file=sys.stderr)
            return 1
    (folder / f"{script.stem}.md").write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
