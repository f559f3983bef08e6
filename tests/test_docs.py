"""Does the documentation run? Every python block, in order, one namespace per page; every `make` target, every
`lowhanging` command line, every local link and path, also in the text of the examples (which tests/test_examples.py
runs). The examples in docstrings, and whether what is written as `lowhanging.x.y` or `lh.x` exists, anywhere. Does the
site hold every page and every public name? The reader of the pages is tested on small planted ones.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
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


def script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def text_of(page: Path) -> str:
    """A page; of an example, its markdown cells, each line where it stands in the script."""
    text = page.read_text()
    if page.suffix != ".py":
        return text
    lines = [""] * (len(text.splitlines()) + 1)
    for cell in script("examples_to_pages").cells(text):
        if cell.kind == "markdown":
            lines[cell.line - 1 : cell.line - 1 + len(cell.lines)] = cell.text_lines
    return "\n".join(lines)


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    lines = text_of(page).splitlines()
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
    text = text_of(page)
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
            elif anchor and place.suffix in (".md", ".py") and anchor not in anchors(place):
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
    for number, line in enumerate(text_of(page).splitlines(), start=1):
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append((number, line))
    return kept


def anchors(page: Path) -> set[str]:
    headings = [line.lstrip("#").strip() for _, line in outside_blocks(page) if line.startswith("#")]
    named = re.findall(r"^::: ([\w.]+)$", text_of(page), flags=re.MULTILINE)  # what the reference says of a name
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(named)


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


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_blocks_run(page: Path, headless: Path) -> None:
    run_python(page)
    shown = set(re.findall(r"\(gallery/([^)]+)\)", page.read_text()))
    assert shown <= {path.name for path in headless.iterdir()}  # the pictures of a page are those that its code draws


def test_every_plot_is_in_the_gallery() -> None:
    from lowhanging import plots

    page = (ROOT / "docs" / "gallery.md").read_text()
    drawn = [name for name in plots.__all__ if not inspect.isclass(getattr(plots, name))]
    assert [name for name in drawn if f"lh.plots.{name}(" not in page] == []


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=page_name)
def test_commands_exist(page: Path) -> None:
    assert wrong_commands(page) == []


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=page_name)
def test_links_and_paths_exist(page: Path) -> None:
    assert broken_paths(page) == []


DOTTED = re.compile(r"(?<![\w./@-])(?:lowhanging|lh)(?:\.[A-Za-z_]\w*)+")
SOURCES = sorted((ROOT / "src" / "lowhanging").rglob("*.py"))


def exists(dotted: str) -> bool:
    """Whether a name such as `lh.curvature.Eigenpairs.values` leads somewhere; beyond a class, by its fields too."""
    found: Any = importlib.import_module("lowhanging")
    for name in dotted.split(".")[1:]:
        if not hasattr(found, name) and isinstance(found, ModuleType):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(f"{found.__name__}.{name}")
        if not hasattr(found, name):
            return isinstance(found, type) and name in getattr(found, "__annotations__", {})
        found = getattr(found, name)
        if not isinstance(found, ModuleType | type):
            return True  # an attribute of a function or of an instance can't be looked up
    return True


def wrong_names(path: Path) -> list[str]:
    """Names of the library that are written in a file and do not exist."""
    lines = enumerate(path.read_text().splitlines(), start=1)
    return [f"{path}:{n}: no {name}" for n, line in lines for name in DOTTED.findall(line) if not exists(name)]


@pytest.mark.parametrize("folder", ["src", "docs", "examples", "benchmarks", "scripts"])
def test_names_of_the_library_exist(folder: Path) -> None:
    paths = [path for path in sorted((ROOT / folder).rglob("*.*")) if path.suffix in (".md", ".py")]
    assert [line for path in (*paths, *PAGES[:2]) for line in wrong_names(path)] == []


def test_planted_names_are_found(tmp_path: Path) -> None:
    text = "lh.top_eigs, lh.nothing\nlowhanging.io.load lowhanging.io.Nothing `lh.curvature.Eigenpairs.values`"
    found = wrong_names(write(tmp_path, text + " lh.curvature.Eigenpairs.nothing"))
    assert [line.split(": ")[1] for line in found] == [
        "no lh.nothing",
        "no lowhanging.io.Nothing",
        "no lh.curvature.Eigenpairs.nothing",
    ]


def test_files_named_in_the_sources_exist() -> None:
    known = [f"/{path.relative_to(ROOT).as_posix()}" for path in (*SOURCES, *(ROOT / "benchmarks").glob("*.py"))]
    named = [(path, name) for path in SOURCES for name in re.findall(r"`([\w/]+\.py)`", path.read_text())]
    assert [f"{path}: no {name}" for path, name in named if not any(k.endswith(f"/{name}") for k in known)] == []


def test_examples_in_docstrings_run(headless: Path) -> None:
    import scipy
    import torch

    import lowhanging as lh

    nn, inputs = torch.nn, torch.linspace(-1, 1, 20).reshape(10, 2)
    loss = lh.Objective(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), (inputs, torch.arange(10) % 2))
    scene = {name: getattr(lh, name) for name in lh.__all__} | {"torch": torch, "nn": nn, "scipy": scipy}
    with_examples = [path for path in SOURCES if re.search(r"^ *>>> ", path.read_text(), flags=re.MULTILINE)]
    assert len(with_examples) > 3
    for path in with_examples:
        name = path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".")
        module = importlib.import_module(name)
        tried = doctest.testmod(module, extraglobs=scene | {"lh": lh, "objective": loss, "loss": loss} | vars(module))
        assert tried.attempted and not tried.failed, name


def test_readme_has_the_two_commands_and_an_example() -> None:
    readme = ROOT / "README.md"
    named = {word for _, words in commands(readme) if words[0] == "make" for word in words[1:]}
    assert {"demo", "test"} <= named
    assert sum(block.language == "python" for block in blocks(readme)) >= 1


def test_readme_is_short_and_prints_what_it_says(headless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At most 900 words, code included; the numbers of the output within 1 %, seconds aside."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    assert len(text.split()) <= 900
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) >= 6 and all((ROOT / path).is_file() for path in pictures)
    run_python(readme)
    [shown] = [block.code for block in blocks(readme) if block.language == "text"]
    number = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
    printed, promised = (re.sub(r"[\d.]+ s,", "s,", code.strip()) for code in (capsys.readouterr().out, shown))
    assert number.sub("#", printed) == number.sub("#", promised)
    found, expected = (list(map(float, number.findall(code))) for code in (printed, promised))
    for value, wanted in zip(found, expected, strict=True):
        assert value == pytest.approx(wanted, rel=0.01 if abs(wanted) > 1e-3 else 2.0)  # small ones are residuals


def test_citation_has_the_version_and_the_licence() -> None:
    from lowhanging import __version__

    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= set(found)
    assert f'license = "{found["license"]}"' in (ROOT / "pyproject.toml").read_text()
    assert found["references"][0]["year"] == 2023


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()


# The site -------------------------------------------------------------------------------------------------------------


class SiteLoader(yaml.SafeLoader):
    """mkdocs.yml has one tag of its own: !ENV [NAME, default]."""


SiteLoader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])


def site() -> dict[str, Any]:
    return yaml.load((ROOT / "mkdocs.yml").read_text(), SiteLoader)


def nav_pages(entries: Any) -> Iterator[str]:
    """The pages of a nav, at every depth."""
    if isinstance(entries, str):
        yield entries
    else:
        for entry in entries.values() if isinstance(entries, dict) else entries:
            yield from nav_pages(entry)


def test_nav_holds_every_page_once() -> None:
    found = list(nav_pages(site()["nav"]))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert set(found) == pages | {f"tutorials/{example.stem}.md" for example in EXAMPLES}
    assert len(found) == len(set(found))


def test_site_is_strict_and_fetches_nothing() -> None:
    config = site()
    assert config["strict"] is True
    assert config["theme"]["font"] is False
    named = [*config["extra_css"], *config.get("extra_javascript", []), *config["hooks"]]
    assert [name for name in named if "//" in name] == []
    for name in (*(f"docs/{css}" for css in config["extra_css"]), *config["hooks"]):
        text = (ROOT / name).read_text()
        assert re.search(r"https?://|@import|url\(", text) is None, name


def public_names() -> set[str]:
    """Everything that users type, by the shortest of its full names."""
    import lowhanging as lh

    at_top = {name: getattr(lh, name) for name in lh.__all__ if name != "__version__"}
    modules = {name: found for name, found in at_top.items() if isinstance(found, ModuleType)}
    names = {f"lowhanging.{name}" for name in at_top if name not in modules}
    return names | {
        f"lowhanging.{name}.{inner}"
        for name, module in modules.items()
        for inner in module.__all__
        if at_top.get(inner) is not getattr(module, inner)
    }


def test_reference_holds_every_public_name_once() -> None:
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    found = [name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), flags=re.MULTILINE)]
    assert set(found) == public_names()
    assert len(found) == len(set(found))


@pytest.mark.slow
def test_site_builds(tmp_path: Path) -> None:
    """Strict, with empty tutorials: tests/test_examples.py runs those. Needs the extra `docs`."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    environment = {"RUN_EXAMPLES": "false", "NO_MKDOCS_2_WARNING": "true", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "curvature.html").read_text()
    for part in ("Parameters:", "Returns:", "Raises:", "Cost:", "Examples:", "Attributes:"):
        assert f"{part}</" in page
    assert "of actual products" in page  # the comment of a field
    index = (tmp_path / "search" / "search_index.js").read_text()  # a script, which a page can load from disk
    assert index.startswith("var __index = {") and "steering_direction" in index
    assert page.index('src="../iframe-worker.js"') < page.index("/bundle.")
    assert (tmp_path / "iframe-worker.js").is_file()
    notebook = json.loads((tmp_path / "tutorials" / "slices.ipynb").read_text())
    assert notebook["nbformat"] == 4 and {"code", "markdown"} == {cell["cell_type"] for cell in notebook["cells"]}
    for html in tmp_path.rglob("*.html"):
        assert re.search(r'(?:src|href)="(?:https?:)?//(?!www\.lesswrong\.com)', html.read_text()) is None, html


# What was found -------------------------------------------------------------------------------------------------------

CLAIM = {
    "name": "both cues",
    "post": "It *learns* both.",
    "measured": "98.0 % [97, 99], |Pg| < 1",
    "null": "chance_level",
    "rule": "above it",
    "verdict": "holds in part",
}
HELD = CLAIM | {"verdict": "holds"}


def test_what_was_found_has_a_place_for_the_report() -> None:
    page = script("what_was_found").PAGE.read_text()
    assert page.count("<!-- report:begin -->") == page.count("<!-- report:end -->") == 1
    assert re.findall(r"^\| (\d+) \| ", page.split("<!-- report:begin -->")[0], flags=re.MULTILINE) == [
        str(number) for number in range(1, 21)
    ]


def test_what_was_found_is_read_in_a_quarter_of_an_hour() -> None:
    text = (ROOT / "docs" / "what-was-found.md").read_text()
    assert text.count("<details") == text.count("</details>") > 20
    assert len(re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL).split()) <= 2500


def test_what_was_found_is_filled_in_from_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    results.write_text(
        json.dumps({"settings": {"command": "lowhanging x"}, "claims": [{"number": 2, **HELD}, {"number": 1, **CLAIM}]})
    )
    page.write_text("Before.\n<!-- report:begin -->\nEarlier.\n<!-- report:end -->\nAfter.\n")
    run = script("what_was_found").main
    assert run([str(results), "--page", str(page), "--check"]) == 1
    assert run([str(results), "--page", str(page)]) == 0
    assert run([str(results), "--page", str(page), "--check"]) == 0
    text = page.read_text()
    head = "From `lowhanging x`:\n\n| | claim | verdict |\n|---|---|---|\n"
    rows = "| 1 | both cues | **holds in part** |\n| 2 | both cues | **holds** |\n"
    assert text.startswith(f"Before.\n<!-- report:begin -->\n{head}{rows}")
    assert text.endswith("<!-- report:end -->\nAfter.\n") and "Earlier" not in text
    fold = '<details markdown="1">\n<summary>What was measured, what it was held against, and the rule</summary>\n\n'
    assert f"### 2. both cues: holds\n\n{fold}*The write-up:* It \\*learns\\* both.\n" in text
    assert "*Measured:*\n\n* 98.0 % \\[97, 99\\], |Pg| &lt; 1\n\n*Held against:*\n\n* chance\\_level\n" in text
    assert "*The rule behind “holds”:*\n\n* above it\n\n</details>" in text
    assert "other numbers" in capsys.readouterr().out


def test_parts_of_a_claim_and_long_sentences_on_the_page_of_what_was_found() -> None:
    room = script("what_was_found")
    long = "a sentence that goes on (means over 3 seeds): " + "one and another; " * 8 + "the end"
    claims = [CLAIM | {"number": 20, "part": part, "measured": long} for part in "ab"]
    text = room.section(claims)
    assert "| 20a | both cues |" in text and "| 20b | both cues |" in text
    assert "### 20b. both cues: holds in part" in text
    assert "* a sentence that goes on (means over 3 seeds):<br>one and another;<br>one and" in text


def test_what_was_found_refuses_half_a_report(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    results.write_text(json.dumps({"claims": [{"number": 3, "name": "x"}]}))
    page.write_text("<!-- report:begin -->\n<!-- report:end -->\n")
    with pytest.raises(ValueError, match=r"claim 3 of .* has no \['post', 'measured', 'null', 'rule', 'verdict'\]"):
        script("what_was_found").main([str(results), "--page", str(page)])
    results.write_text(json.dumps({"claims": [{"number": 3, **CLAIM}]}))
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="must have"):
        script("what_was_found").main([str(results), "--page", str(page)])


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


def test_planted_links_of_an_example_are_found(headless: Path) -> None:
    example = headless / "example.py"
    example.write_text("# %% [markdown]\n# # A title\n# [a](#a-title) [b](nowhere.py)\n\n# %%\nx = '[c](no.md)'\n")
    assert [line.split("example.py:")[1] for line in broken_paths(example)] == ["3: no file nowhere.py"]
