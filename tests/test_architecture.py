"""Does the code keep the order of docs/architecture.md?

Read from the sources with `ast`; the checker itself is tested on small trees with one planted violation each.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "lowhanging"

# A file imports only from files above it. The order inside basin/ is listed; in the other folders any order that is
# one: no cycle.
ORDER = (
    "_version",
    "errors",
    "results",
    "resume_file",
    "ranks",
    "datasets",
    "models",
    "parameters",
    "private_copy",
    "layers",
    "batches",
    "batch_parts",
    "buffers",
    "checkpoints",
    "shuffled",
    "training_options",
    "loss",
    "loss_checks",
    "batch_matrices",
    "model_loss",
    "shards",
    "output_loss",
    "split_graph",
    "engines",
    "verification",
    "blocks",
    "products",
    "curvature",
    "objective",
    "function_objective",
    "anchored",
    "batch_mean",
    "training_history",
    "training_file",
    "training_loop",
    "training",
    "presets",
    "stack_loop",
    "stack_arguments",
    "stacks",
    "basin.symmetric_operator",
    "basin.operators",
    "basin.lanczos",
    "basin.ritz_pairs",
    "basin.counted_map",
    "basin.eigenbounds",
    "basin.search_file",
    "basin.eigensearch",
    "basin.eigendense",
    "basin.eigen_arguments",
    "basin.subspace",
    "basin.directions",
    "basin.eigenpairs",
    "basin.probes",
    "basin.quadrature",
    "basin.density",
    "basin.spectrum",
    "basin.dimension",
    "basin.trace",
    "basin.answers",
    "basin.descent",
    "basin.minimum",
    "basin.conflict",
    "basin.naming",
    "basin.steering",
    "basin.slice_buffers",
    "basin.points",
    "basin.slices",
    "basin.planes",
    "basin.trajectories",
    "basin.shells",
    "basin.places",
    "basin.stationary",
    "basin.canyon_points",
    "basin.canyon_arguments",
    "basin.canyon_search",
    "basin.canyon_set",
    "basin.canyons",
    "basin.canyon_steps",
    "basin.canyon_paths",
    "basin.canyon_null",
    "circuits",
    "toys",
    "plots",
    "reproduce",
    "__main__",
    "testing",
)
STRANGERS = (("datasets", "models"),)
ONLY_ERRORS = ("basin.lanczos",)

Sources = Mapping[str, str]  # path below src/lowhanging -> text


def read_sources() -> dict[str, str]:
    folder = ROOT / "src" / PACKAGE
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.py"))}


def violations(sources: Sources) -> list[str]:
    """Everything that breaks the order, one line each."""
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for path, text in sources.items():
        module, tree = module_name(path), ast.parse(text, filename=path)
        if path.endswith("__init__.py"):
            found += [f"{path}:{node.lineno} holds code" for node in tree.body if not belongs_in_init(node)]
        elif place(module) is None:
            found.append(f"{path} has no place in the order")
        for line, target, names in imports(tree, module, sources):
            where = f"{path}:{line}"
            top = target.split(".")[0]
            if top in ("matplotlib", "mpl_toolkits") and not module.startswith(f"{PACKAGE}.plots"):
                found.append(f"{where} imports matplotlib outside plots/")
            if top == "functorch" or target.startswith("torch._functorch"):
                found.append(f"{where} imports functorch")
            if top == PACKAGE:
                found += [f"{where} {problem}" for problem in problems(module, target, names)]
                graph.setdefault(module, set()).add(target)
        for line in module_level_matplotlib(tree):
            found.append(f"{path}:{line} imports matplotlib when the module is imported")
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        found.append("a cycle of imports: " + " -> ".join(error.args[1]))
    return found


def problems(module: str, target: str, names: list[str]) -> Iterator[str]:
    """What is wrong with `module` importing `names` from `target`, both of this package."""
    is_root_init = module == PACKAGE
    if target == f"{PACKAGE}.testing" and not is_root_init:
        yield "imports testing"
    if is_root_init:
        return
    if target == PACKAGE:
        yield "imports the package itself"
        return
    here, there = place(module), place(target)
    if module in folders_of(target) or target in folders_of(module):
        if target in folders_of(module):
            yield f"imports its own folder {target}"
        return  # an __init__ that re-exports its own files
    if short(module) in ONLY_ERRORS and short(target) != "errors":
        yield f"imports {target}; it may import errors only"
    if here is not None and there is not None:
        same_folder = ORDER[here] == ORDER[there]
        if there > here or (there == here and not same_folder):
            yield f"imports {target}, which stands below it"
    for pair in STRANGERS:
        if {short(module).split(".")[0], short(target).split(".")[0]} == set(pair):
            yield f"imports {target}; {pair[0]} and {pair[1]} are strangers"
    if short(module).startswith("plots.") and short(target).split(".")[0] not in ("plots", "errors"):
        functions = [name for name in names if not name[:1].isupper()]
        if functions or not names:
            yield f"imports {', '.join(functions) or target} from {target}; plots/ imports result classes only"


def imports(tree: ast.AST, module: str, sources: Sources) -> Iterator[tuple[int, str, list[str]]]:
    """(line, module imported, names taken from it), also inside functions and under TYPE_CHECKING."""
    modules = {module_name(path) for path in sources}
    is_package = f"{'/'.join([*module.split('.')[1:], '__init__.py'])}" in sources
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if is_package else module.split(".")[:-1]
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            target = ".".join(part for part in (base, node.module or "") if part)
            submodules = [alias.name for alias in node.names if f"{target}.{alias.name}" in modules]
            names = [alias.name for alias in node.names if alias.name not in submodules]
            for name in submodules:
                yield node.lineno, f"{target}.{name}", []
            if names:
                yield node.lineno, target, names


def module_level_matplotlib(tree: ast.Module) -> Iterator[int]:
    """Lines of imports of matplotlib that run when the module is imported."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "matplotlib" for alias in node.names):
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "matplotlib":
            yield node.lineno
        pending += ast.iter_child_nodes(node)


def belongs_in_init(node: ast.stmt) -> bool:
    """Docstring, import, or `__all__ = [...]`."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    is_all = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    return is_all and isinstance(node.value, ast.List | ast.Tuple)


def module_name(path: str) -> str:
    parts = [PACKAGE, *path.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def short(module: str) -> str:
    return module.removeprefix(PACKAGE).removeprefix(".")


def folders_of(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:i]) for i in range(2, len(parts))}


def place(module: str) -> int | None:
    """Index in ORDER; a folder whose files are listed one by one stands where its last file stands."""
    name = short(module)
    for i, entry in enumerate(ORDER):
        if name == entry or name.startswith(entry + "."):
            return i
    listed = [i for i, entry in enumerate(ORDER) if entry.startswith(name + ".")]
    return max(listed, default=None) if name else len(ORDER)


def test_sources_keep_the_order() -> None:
    sources = read_sources()
    assert len(sources) > 10
    assert violations(sources) == []


def test_every_listed_place_is_documented() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    present = {ORDER[i] for i in map(place, map(module_name, read_sources())) if i is not None and i < len(ORDER)}
    missing = [entry for entry in present if entry != "_version" and entry.split(".")[-1] not in page]
    assert missing == []


BASE = {"__init__.py": "", "errors.py": "", "objective.py": "class Loss: ...", "models/__init__.py": ""}
PLANTED = {
    "stands below": {"parameters.py": "from lowhanging.objective import Loss"},
    "which stands below it": {"basin/operators.py": "import lowhanging.basin.slices", "basin/slices.py": ""},
    "no place in the order": {"helpers.py": ""},
    "matplotlib outside plots": {"objective.py": "def f():\n    import matplotlib.pyplot"},
    "matplotlib when the module is imported": {"plots/line.py": "import matplotlib"},
    "holds code": {"models/__init__.py": "x = 1"},
    "imports functorch": {"objective.py": "import functorch"},
    "imports testing": {"reproduce/cli.py": "from lowhanging import testing", "testing.py": ""},
    "may import errors only": {"basin/lanczos.py": "from lowhanging.objective import Loss"},
    "are strangers": {"models/cnn.py": "from lowhanging.datasets.mnist import mnist", "datasets/mnist.py": ""},
    "imports the package itself": {"objective.py": "from lowhanging import Objective"},
    "its own folder": {"models/cnn.py": "from . import SigmoidCNN"},
    "result classes only": {"plots/line.py": "from lowhanging.basin.slices import line_slice", "basin/slices.py": ""},
    "a cycle": {"models/cnn.py": "import lowhanging.models.b", "models/b.py": "from .cnn import X"},
}


@pytest.mark.parametrize("message", PLANTED)
def test_checker_finds_a_planted_violation(message: str) -> None:
    assert violations(BASE) == []
    found = violations(BASE | PLANTED[message])
    assert any(message in line for line in found), found


def test_checker_accepts_what_is_allowed() -> None:
    allowed = {
        "__init__.py": '"""Doc."""\nfrom lowhanging import testing, plots\n__all__ = ["testing"]',
        "testing.py": "from lowhanging.objective import Loss",
        "plots/__init__.py": "from lowhanging.plots.line import line_slice",
        "plots/line.py": "from lowhanging.basin.slices import LineSlice\ndef f():\n    import matplotlib",
        "basin/slices.py": "from lowhanging.objective import Loss\nfrom .directions import Subspace",
        "basin/directions.py": "from ..errors import explain",
        "basin/lanczos.py": "import torch\nfrom lowhanging.errors import explain",
    }
    assert violations(BASE | allowed) == []


def test_import_is_headless_and_quick() -> None:
    """A fresh interpreter: this one has imported matplotlib for other tests. SciPy's statistics take half a second."""
    code = "import sys, lowhanging; sys.exit(', '.join({'matplotlib', 'scipy.stats'} & {*sys.modules}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported: {done.stderr}"
