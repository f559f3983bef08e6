"""Do the examples run, and do they open as notebooks? Each is a percent-format script, run in an empty folder."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def cells(text: str) -> list[tuple[str, list[str]]]:
    """(kind, lines) of every cell of a percent-format script; kind is "markdown" or "code"."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("# %%"):
            found.append(("markdown" if line == "# %% [markdown]" else "code", []))
        elif found:
            found[-1][1].append(line)
        else:
            found.append(("none", [line]))
    return found


def format_problems(text: str) -> list[str]:
    """What keeps a script from opening as a notebook that explains itself."""
    found = cells(text)
    if not found or found[0][0] != "markdown":
        return ['does not start with "# %% [markdown]"']
    problems = []
    for kind, lines in found:
        content = [line for line in lines if line.strip()]
        if not content:
            problems.append(f"has an empty {kind} cell")
        if kind == "markdown":
            problems += [f"has code in a markdown cell: {line}" for line in content if not line.startswith("#")]
    if not any(kind == "code" for kind, _ in found):
        problems.append("has no code cell")
    return problems


@pytest.fixture
def headless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    plt.switch_backend("Agg")
    yield tmp_path
    plt.close("all")


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_is_a_notebook(script: Path) -> None:
    assert format_problems(script.read_text()) == []


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(script: Path, headless: Path) -> None:
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\n# %%\n1\n", "does not start"),
        ("# %% [markdown]\nnot a comment\n# %%\n1\n", "code in a markdown cell"),
        ("# %% [markdown]\n# # Title\n", "no code cell"),
        ("# %% [markdown]\n# # Title\n# %%\n\n# %%\n1\n", "empty code cell"),
        ("", "does not start"),
    ],
)
def test_format_check_finds_planted_problems(text: str, message: str) -> None:
    assert any(message in problem for problem in format_problems(text))


def test_format_check_accepts_a_notebook() -> None:
    assert format_problems("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nimport torch\n") == []
