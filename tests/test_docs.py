"""Does the documentation run? Every python block, in order, one namespace per page; every `make` target, every
`lowhanging` command line, every local link and path. The reader of the pages is tested on small planted ones.
"""

from __future__ import annotations

import re
import shlex
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {
    "python",
    "bash",
    "text",
    "toml",
    "json",
    "yaml",
    "markdown",
    "diff",
}  # no alias under which python would hide

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+)(?P<language>[\w+-]*)")
NOT_RUN = re.compile(r"^ *<!-- not run: .+ -->\s*$")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)(?: \"[^\"]*\")?\)")
CODE_PATH = re.compile(r"`(?P<path>[\w.-]+(?:/[\w.-]+)*/?)`")
SUFFIXES = (".py", ".md", ".toml", ".txt", ".npz", ".ipynb", ".png", ".svg")
WRITTEN_BY_COMMANDS = ("report/",)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int  # of the first line of code, from 1
    is_run: bool


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    lines = page.read_text().splitlines()
    i = 0
    while i < len(lines):
        fence = FENCE.match(lines[i])
        if fence is None:
            i += 1
            continue
        start, indent = i + 1, len(fence["indent"])
        i = start
        while i < len(lines) and lines[i].strip() != fence["ticks"]:
            i += 1
        assert i < len(lines), f"{page}:{start}: the block is never closed"
        before = next((line for line in reversed(lines[: start - 1]) if line.strip()), "")
        code = "\n".join(line[indent:] for line in lines[start:i]) + "\n"
        block = Block(fence["language"], code, start + 1, is_run=not NOT_RUN.match(before))
        assert block.language in LANGUAGES, (
            f"{page}:{start}: a block in {block.language!r}, expected one of {LANGUAGES}"
        )
        assert block.is_run or block.language != "python", f"{page}:{start}: a python block that is not run"
        yield block
        i += 1


def run_python(page: Path) -> int:
    """Run the python blocks of a page in one namespace; their number."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    found = [block for block in blocks(page) if block.language == "python"]
    for block in found:
        # Blank lines in front: a traceback then names the line of the page.
        try:
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
        except Exception as error:
            frames = [
                frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(page)
            ]
            line = error.lineno if isinstance(error, SyntaxError) else frames[-1]
            raise AssertionError(f"{page}:{line}: {type(error).__name__}: {error}") from error
    return len(found)


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of every command in the bash blocks of a page."""
    for block in blocks(page):
        if block.language != "bash" or not block.is_run:
            continue
        joined = block.code.replace("\\\n", "  ")
        for offset, line in enumerate(joined.splitlines()):
            for command in re.split(r"&&|\|\||;|\|", line):
                words = shlex.split(command.removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words = words[1:]
                if words:
                    yield block.line + offset, words


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def wrong_commands(page: Path) -> list[str]:
    """Commands that name a target or an option that does not exist."""
    found = []
    for line, words in commands(page):
        program, arguments = Path(words[0]).name, words[1:]
        if program == "make":
            targets = [word for word in arguments if not word.startswith("-") and "=" not in word]
            found += [f"{page}:{line}: make has no target {word}" for word in targets if word not in make_targets()]
        elif program == "lowhanging":
            from lowhanging.reproduce.cli import build_parser

            try:
                build_parser().parse_args(arguments)
            except SystemExit as stop:
                if stop.code:
                    found.append(f"{page}:{line}: not understood: {' '.join(words)}")
    text = page.read_text()
    named = set(re.findall(r"`make ([\w-]+)`", text)) - make_targets()
    return found + [f"{page}: make has no target {target}" for target in sorted(named)]


def broken_paths(page: Path) -> list[str]:
    """Local links, anchors and paths in code font that lead nowhere."""
    found = []
    lines = outside_blocks(page)
    for number, line in lines:
        for link in LINK.finditer(line):
            target, _, anchor = link["target"].partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            place = page if not target else page.parent / target
            if not place.exists():
                found.append(f"{page}:{number}: no file {target}")
            elif anchor and place.suffix == ".md" and anchor not in anchors(place):
                found.append(f"{page}:{number}: no heading #{anchor} in {place.name}")
        for match in CODE_PATH.finditer(line):
            path = match["path"]
            is_path = path.endswith(SUFFIXES) or (path.endswith("/") and path.count("/") > 1)
            if not is_path or path.startswith(WRITTEN_BY_COMMANDS):
                continue
            roots = (ROOT, page.parent, ROOT / "src" / "lowhanging")
            if not any((root / path).exists() for root in roots):
                found.append(f"{page}:{number}: no file {path}")
    return found


def outside_blocks(page: Path) -> list[tuple[int, str]]:
    inside, kept = False, []
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append((number, line))
    return kept


def anchors(page: Path) -> set[str]:
    headings = [line.lstrip("#").strip() for _, line in outside_blocks(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture
def headless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, and figures that need no screen and are closed afterwards."""
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    plt.switch_backend("Agg")
    yield tmp_path
    plt.close("all")


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_blocks_run(page: Path, headless: Path) -> None:
    run_python(page)
    shown = set(re.findall(r"\(gallery/([^)]+)\)", page.read_text()))
    assert shown <= {path.name for path in headless.iterdir()}  # the pictures of a page are those that its code draws


def test_every_plot_is_in_the_gallery() -> None:
    from lowhanging import plots

    page = (ROOT / "docs" / "gallery.md").read_text()
    assert [name for name in plots.__all__ if f"lh.plots.{name}(" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_exist(page: Path) -> None:
    assert wrong_commands(page) == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_and_paths_exist(page: Path) -> None:
    assert broken_paths(page) == []


def test_readme_has_the_two_commands_and_an_example() -> None:
    readme = ROOT / "README.md"
    named = {word for _, words in commands(readme) if words[0] == "make" for word in words[1:]}
    assert {"demo", "test"} <= named
    assert sum(block.language == "python" for block in blocks(readme)) >= 1


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()


# The reader of the pages ----------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


def test_blocks_share_a_namespace_and_run_in_order(headless: Path) -> None:
    page = write(headless, "```python\nx = 1\n```\n\n1. item\n   ```python\n   assert x == 1\n   ```\n")
    assert run_python(page) == 2


@pytest.mark.parametrize(
    ("code", "line", "message"),
    [
        ("x = 1\nx / 0", 5, "ZeroDivisionError"),
        ("def f():\n    return y\nf()", 5, "NameError"),
        ("x = (", 4, "SyntaxError"),
    ],
)
def test_failure_names_file_and_line(headless: Path, code: str, line: int, message: str) -> None:
    page = write(headless, f"# Title\n\n```python\n{code}\n```\n")
    with pytest.raises(AssertionError, match=rf"page.md:{line}: {message}"):
        run_python(page)


def test_python_blocks_cannot_be_left_out(headless: Path) -> None:
    page = write(headless, "<!-- not run: slow -->\n\n```python\n1 / 0\n```\n")
    with pytest.raises(AssertionError, match="not run"):
        run_python(page)
    with pytest.raises(AssertionError, match="'py'"):
        run_python(write(headless, "```py\n1 / 0\n```\n"))
    with pytest.raises(AssertionError, match="never closed"):
        run_python(write(headless, "```python\n1 / 0\n"))


def test_planted_commands_are_found(headless: Path) -> None:
    text = "```bash\n$ make demo && make nothing  # comment\nlowhanging reproduce \\\n  --no-such-option\nls -l\n```\n"
    found = wrong_commands(write(headless, text + "\nRun `make elsewhere`.\n"))
    assert [line.split(": ", 1)[1] for line in found] == [
        "make has no target nothing",
        "not understood: lowhanging reproduce --no-such-option",
        "make has no target elsewhere",
    ]
    assert wrong_commands(write(headless, "<!-- not run: a synopsis -->\n```bash\nmake nothing\n```\n")) == []


def test_planted_links_are_found(headless: Path) -> None:
    text = (
        "# A heading\n[a](#a-heading) [b](nowhere.md) [c](#no) [d](https://x.y/z) `tests/none.py` `errors.py` `a.b`\n"
    )
    found = broken_paths(write(headless, text + "```python\nx['y'](z)\n```\n"))
    assert [line.split(":2: ")[1] for line in found] == [
        "no file nowhere.md",
        "no heading #no in page.md",
        "no file tests/none.py",
    ]
