"""The order of the rooms, by the contracts of pyproject.toml (import-linter), and what a contract can't say.

The checks are tested themselves: on a copy of the sources with one planted violation each.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "lowhanging"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
LAYERS = CONTRACTS[0]["layers"]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """`lint-imports` with our contracts, on the sources below `folder`/src."""
    command = [Path(sys.executable).with_name("lint-imports"), "--config", ROOT / "pyproject.toml", "--no-cache"]
    path = os.pathsep.join([str(folder / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


def test_contracts_are_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert f"{len(CONTRACTS)} kept, 0 broken" in done.stdout


PLANTED = {
    "objective/parameters.py": ("from lowhanging.curvature.krylov import *", "the rooms stand in one row"),
    "models/cnn.py": ("from lowhanging.datasets.mnist import mnist", "the rooms stand in one row"),
    "helpers.py": ("", "the rooms stand in one row"),
    "canyons/shell.py": ("import lowhanging.canyons.find", "in canyons/"),
    "circuits/fourier.py": ("import matplotlib", "only plots/ draws"),
    "toys/losses.py": ("import functorch", "torch.func, never functorch"),
    "curvature/krylov.py": ("import lowhanging.io", "the basis of a Krylov space stands alone"),
}


def test_contracts_find_planted_violations(tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "src" / "lowhanging", ignore=shutil.ignore_patterns("__pycache__", "bundled"))
    for path, (line, _) in PLANTED.items():
        with (tmp_path / "src" / "lowhanging" / path).open("a") as stream:
            stream.write(f"\n{line}\n")
    found = lint(tmp_path)
    assert found.returncode == 1, found.stdout
    for path, (_, contract) in PLANTED.items():
        assert re.search(rf"^{re.escape(contract)}.* BROKEN$", found.stdout, re.MULTILINE), contract
        module = path.removesuffix(".py").replace("/", ".")
        assert f"lowhanging.{module}" in found.stdout or path == "helpers.py"


def test_every_room_stands_on_the_page_of_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [room.strip() for layer in LAYERS for room in layer.split("|")]
    assert len(rooms) > 10
    missing = [room for room in rooms if not re.search(rf"^\| `{room}(/|\.py)`", page, re.MULTILINE)]
    assert missing == []
    order = re.search(r"^Import order.*?`(.*)`", page, re.MULTILINE)
    assert order is not None
    assert re.findall(r"\w+", order[1]) == re.findall(r"\w+", " ".join(reversed(LAYERS)))


def violations(path: str, text: str) -> list[str]:
    """What import-linter can't see: code in an `__init__`, matplotlib at import, computing in plots/, shared streams.

    What tools draw in weight space is `private_generator`'s: the plain stream of a seed is that of somebody's weights.
    """
    tree, found = ast.parse(text), []
    if path.endswith("__init__.py"):
        found += ["holds code" for node in tree.body if not belongs_in_init(node)]
    found += ["imports matplotlib when the module is imported" for _ in module_level_matplotlib(tree)]
    if path.startswith(("landscape/", "steering/", "canyons/", "curvature/")) and "manual_seed(seed)" in text:
        found += ["draws from the plain stream of a seed"] * (path != "curvature/krylov.py")  # which stands alone
    for node in ast.walk(tree) if path.startswith("plots/") else ():
        if isinstance(node, ast.ImportFrom) and re.match(r"lowhanging\.(?!plots|errors)", node.module or ""):
            functions = [alias.name for alias in node.names if not alias.name[:1].isupper()]
            found += [f"imports {name}; plots/ imports result classes only" for name in functions]
    return found


def module_level_matplotlib(tree: ast.Module) -> list[ast.stmt]:
    """Imports of matplotlib that run when the module is imported."""
    found: list[ast.stmt] = []
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            pending += [*node.body, *node.orelse]
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [node for name in names if name.split(".")[0] == "matplotlib"]
    return found


def belongs_in_init(node: ast.stmt) -> bool:
    """Docstring, import, or `__all__ = [...]`."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    is_all = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    return is_all and isinstance(node.value, ast.List | ast.Tuple)


def test_what_contracts_can_not_say() -> None:
    paths = sorted(SOURCES.rglob("*.py"))
    assert len(paths) > 50
    found = {path.name: violations(path.relative_to(SOURCES).as_posix(), path.read_text()) for path in paths}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("models/__init__.py", "x = 1", "holds code"),
        ("plots/line.py", "import matplotlib.pyplot", "imports matplotlib when"),
        ("plots/line.py", "from lowhanging.landscape.slices import line_slice", "result classes only"),
        ("__init__.py", '"""Doc."""\nfrom lowhanging import testing, plots\n__all__ = ["testing"]', ""),
        ("plots/line.py", "from lowhanging.landscape.slices import LineSlice\ndef f():\n    import matplotlib", ""),
    ],
)
def test_the_checks_above_find_what_is_planted(path: str, text: str, message: str) -> None:
    found = violations(path, text)
    assert any(message in line for line in found) if message else found == []


def test_import_is_headless_and_quick() -> None:
    """A fresh interpreter: this one has imported matplotlib for other tests. SciPy's statistics take half a second."""
    code = "import sys, lowhanging; sys.exit(', '.join({'matplotlib', 'scipy.stats'} & {*sys.modules}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported: {done.stderr}"


def test_a_first_search_does_not_load_torch_compile() -> None:
    """torch loads it, for seconds, where a class of it is named or a dispatch mode of ours is one of its usual ones."""
    code = """
import sys, torch, lowhanging as lh
data = torch.randn(9, 3), torch.zeros(9, dtype=torch.long)
lh.top_hessian_eigs(torch.nn.Linear(3, 2), data, k=1)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
