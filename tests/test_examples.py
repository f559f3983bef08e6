"""Do the examples run, do they open as notebooks, and do they become pages of the site? Each is a percent-format
script, run in an empty folder, within a budget of processor time: so many times a fixed piece of work.
"""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import lowhanging as lh

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


BUDGET = 60.0  # pieces of work, or CPU seconds if those are more: examples take 5 to 30


def converter() -> ModuleType:
    """scripts/examples_to_pages.py, which reads the cells for the site."""
    name = "examples_to_pages"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES[0].parents[1] / "scripts" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def piece_of_work() -> float:
    """CPU seconds of 30 gradients of the paired-digit CNN on 200 images: below 1 on an idle machine."""
    model, images, targets = lh.SigmoidCNN(seed=0), torch.rand(200, 1, 28, 28), torch.zeros(200, dtype=torch.long)
    begun = time.process_time()
    for _ in range(30):
        torch.nn.functional.cross_entropy(model(images), targets).backward()
    return time.process_time() - begun


def format_problems(text: str) -> list[str]:
    """What keeps a script from opening as a notebook that explains itself."""
    found = converter().cells(text)
    if not found or found[0].kind != "markdown":
        return ['does not start with "# %% [markdown]"']
    problems = []
    for cell in found:
        content = [line for line in cell.lines if line.strip()]
        if not content:
            problems.append(f"has an empty {cell.kind} cell")
        if cell.kind == "markdown":
            problems += [f"has code in a markdown cell: {line}" for line in content if not line.startswith("#")]
    if not any(cell.kind == "code" for cell in found):
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


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(script: Path, headless: Path) -> None:
    before = piece_of_work()
    begun = time.process_time()
    runpy.run_path(str(script), run_name="__main__")
    spent = time.process_time() - begun
    assert spent < BUDGET * max(before, piece_of_work(), 1.0)


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


# The pages ------------------------------------------------------------------------------------------------------------

SMALL = """# %% [markdown]
# # A title
#
# With [another](slices.py#a-line), [a page](../docs/notation.md#canyons) and
#
#     a command

# %%
from pathlib import Path

import matplotlib.pyplot as plt

x = 2
print("x is", x)
plt.plot([1, 2])
plt.title("A line")

# %%
y = x + 1

# %% [markdown]
# Last words.

# %%
assert y == 3
Path("small_film.gif").write_bytes(b"GIF89a")
"""

PAGE = """# A title

*This page is a script: [small.py](small.py), or as a notebook [small.ipynb](small.ipynb). It was run to make the page.*

With [another](slices.md#a-line), [a page](../notation.md#canyons) and

    a command

```python
from pathlib import Path

import matplotlib.pyplot as plt

x = 2
print("x is", x)
plt.plot([1, 2])
plt.title("A line")
```

``` { .text .output }
x is 2
```

![A line](small-1.png){ width=WIDTH }

```python
y = x + 1
```

Last words.

```python
assert y == 3
Path("small_film.gif").write_bytes(b"GIF89a")
```

![small film](small-2.gif)
"""


def planted(folder: Path, text: str) -> tuple[Path, Path]:
    """A script, and an empty folder for its pictures."""
    (folder / "scripts").mkdir()
    (folder / "pages").mkdir()
    script = folder / "scripts" / "small.py"
    script.write_text(text)
    return script, folder / "pages"


def test_script_becomes_a_page_with_what_it_prints_and_draws(headless: Path) -> None:
    import matplotlib.pyplot as plt

    script, folder = planted(headless, SMALL)
    page = converter().make_page(script, folder)
    picture = (folder / "small-1.png").read_bytes()
    pixels = int.from_bytes(picture[16:20], "big")  # the width, in a PNG's header
    assert picture[:4] == b"\x89PNG" and 800 < pixels < 1100
    assert page == PAGE.replace("WIDTH", str(round(0.6 * pixels)))  # 160 dots per inch, shown at 96
    assert (folder / "small-2.gif").read_bytes() == b"GIF89a" and not Path("small_film.gif").exists()
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("code", "line", "message"),
    [("x = 1\nx / 0", 5, "ZeroDivisionError"), ("x = (", 4, "SyntaxError"), ("def f():\n    return y\nf()", 5, "Name")],
)
def test_script_that_fails_names_its_line(headless: Path, code: str, line: int, message: str) -> None:
    script, folder = planted(headless, f"# %% [markdown]\n# # Title\n# %%\n{code}\n")
    with pytest.raises(converter().CellError, match=rf"small.py:{line}: {message}"):
        converter().make_page(script, folder)


def test_pictures_are_told_in_words() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.set(title="loss: [a]", xlabel="step", ylabel="mean\nloss")
    right.set(xlabel="step")
    assert converter().described(figure) == "loss: a: mean loss against step; step"
    assert converter().described(Figure()) == "A picture"


# The notebooks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_a_notebook_has_the_cells_of_its_script(script: Path) -> None:
    """The same code in the same order, so that what runs as a script runs as a notebook; valid by nbformat's rules."""
    document = json.loads(converter().notebook(script.read_text()))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)
    code = [cell["source"] for cell in document["cells"] if cell["cell_type"] == "code"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in document["cells"] if "outputs" in cell
    )
    lines = [line for line in script.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert [line for cell in code for line in cell.splitlines() if line.strip() and not line.startswith("#")] == lines


def run_notebook(text: str) -> None:
    """Run a notebook in the working folder: by nbclient in a kernel of its own, or cell by cell in one namespace."""
    if importlib.util.find_spec("nbclient") is None:
        namespace: dict[str, object] = {"__name__": "__main__"}
        for cell in json.loads(text)["cells"]:
            if cell["cell_type"] == "code":
                exec(cell["source"], namespace)
        return
    import nbclient
    import nbformat

    document = nbformat.reads(text, as_version=4)
    nbformat.validate(document)
    nbclient.NotebookClient(document, kernel_name="python3", timeout=600).execute()


@pytest.fixture
def without_settings(headless: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with figures drawn as in a notebook; a kernel finds no settings of the user's."""
    monkeypatch.delenv("MPLBACKEND")
    settings = headless.parent / f"{headless.name}-settings"
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(settings))
    return headless


def test_the_cells_of_a_notebook_run_in_order(without_settings: Path) -> None:
    run_notebook(converter().notebook(SMALL))  # its last cell asserts what the others made
    assert (without_settings / "small_film.gif").is_file()
    with pytest.raises(Exception, match="division by zero"):
        run_notebook(converter().notebook(SMALL + "\n# %%\n1 / 0\n"))


# One of them: what runs as a script runs as a notebook, whose code is the same.
@pytest.mark.slow
@pytest.mark.parametrize("script", [path for path in EXAMPLES if path.stem == "curvature"], ids=lambda path: path.name)
def test_notebook_of_an_example_runs(script: Path, without_settings: Path) -> None:
    run_notebook(converter().notebook(script.read_text()))
