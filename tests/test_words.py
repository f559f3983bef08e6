"""One word, one meaning: names of classes, functions and arguments, and the first lines of modules.

What is looked for is in the tables below; the check is tested itself on small planted sources.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lowhanging as lh

SOURCES = Path(__file__).parents[1] / "src" / "lowhanging"

# Words that the field has a better one for, or that name something else here (docs/notation.md): within any name.
WORDS = {
    "aimed": "initial_directions",
    "couplings": "coefficients",
    "normalisation": "normalization",
    "parted": "split_batch",
    "pulled": "vjp",
    "shelf": "store",
    "succession": "birth_gaps",
    "told": "fingerprint, or what it is",
}
# Whole names of classes, functions and modules.
NAMES = {
    "Answers": "RecordedLoss",
    "Around": "Evaluations",
    "Finder": "BranchSearch",
    "Place": "Context, SpherePoint",
    "Rays": "AffineGrid",
    "Tracer": "Continuation",
    "Way": "Batching",
    "beyond": "excess_drop",
    "copy_of": "duplicate_of",
    "depth": "relative_rise",
    "explain": "argument_message",
    "items": "sentences",
    "name_circuit": "attribute_circuit",
    "on_paper": "closed_form",
    "quicker_way": "choose_batching",
}
# Whole names of arguments of public functions: counts are num_*, limits max_*.
ARGUMENTS = {
    "depth": "relative_rise",
    "epochs": "num_epochs",
    "normalisation": "normalization",
    "probes": "num_probes",
    "samples": "num_samples",
    "starts": "num_starts",
    "steps": "num_steps",
    "subspaces": "num_subspaces",
}
# Where the argument is no count: the steps at which something was logged, the points from which descents start.
NO_COUNTS = {
    ("circuits/births.py", "steps"),
    ("circuits/learning_times.py", "steps"),
    ("circuits/waves.py", "steps"),
    ("plots/circles.py", "steps"),
    ("prior/independent_bits.py", "steps"),
    ("reproduce/themes/cartoons.py", "starts"),
}
RIDDLE = re.compile(r"(How|What|Which|When|Where|Who|Why|Whether|Is|Are|Do|Does|Can)\b")


def definitions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node


def public_arguments(tree: ast.Module) -> Iterator[str]:
    """Of public functions, and of public methods and constructors of public classes."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for node in [*tree.body, *(inner for found in classes for inner in found.body)]:
        if isinstance(node, ast.FunctionDef) and (node.name == "__init__" or not node.name.startswith("_")):
            yield from (arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))


def wrong_words(path: str, text: str) -> list[str]:
    """What is wrong with the words of a source file, a line each."""
    tree, found = ast.parse(text), []
    names = [node.name for node in definitions(tree)] + [Path(path).stem]
    for name in names:
        parts = set(re.findall(r"[A-Z]?[a-z]+", name))
        found += [f"{path}: {name}, say {WORDS[part.lower()]}" for part in parts if part.lower() in WORDS]
        found += [f"{path}: {name}, say {NAMES[name.lstrip('_')]}"] if name.lstrip("_") in NAMES else []
    for name in public_arguments(tree):
        if (name in ARGUMENTS or name in WORDS) and (path, name) not in NO_COUNTS:
            found.append(f"{path}: argument {name}, say {ARGUMENTS.get(name) or WORDS[name]}")
    first = (ast.get_docstring(tree) or "").partition("\n")[0]
    if RIDDLE.match(first) or "?" in first:
        found.append(f"{path}: begins with a question: {first}")
    return found


def test_words() -> None:
    paths = sorted(SOURCES.rglob("*.py"))
    assert len(paths) > 50
    found = [line for path in paths for line in wrong_words(path.relative_to(SOURCES).as_posix(), path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("io.py", '"""How is a file read?"""', "begins with a question"),
        ("io.py", '"""Files: is each whole?"""', "begins with a question"),
        ("io.py", '"""Isolated points."""', ""),
        ("io.py", "class Shelf: ...", "Shelf, say store"),
        ("io.py", "class A:\n    def told_apart(self): ...", "told_apart, say fingerprint"),
        ("shelf.py", "", "shelf, say store"),
        ("io.py", "def f():\n    class _Place: ...", "_Place, say Context"),
        ("io.py", "class Placement: ...", ""),
        ("io.py", "def f(loss, *, starts=3): ...", "argument starts, say num_starts"),
        ("io.py", "class A:\n    def __init__(self, probes): ...", "argument probes, say num_probes"),
        ("io.py", "def _f(loss, *, starts=3): ...", ""),
        ("circuits/births.py", "def births(scores, steps): ...", ""),
    ],
)
def test_planted_words_are_found(path: str, text: str, message: str) -> None:
    found = wrong_words(path, text)
    assert any(message in line for line in found) if message else found == []


# Three arguments that belong together, an order that a callback prescribes, or an Axes after two results.
MANY = {
    "plane_through", "ConflictControl", "AnchoredObjective", "train_stack", "ablate_blocks", "ablate_frequencies",
    "redundant_circuits", "redundant_sum", "finite_difference_hvp",
}  # fmt: skip
ROOMS = (
    "objective", "training", "curvature", "landscape", "steering", "canyons", "circuits", "prior", "datasets", "toys",
)  # fmt: skip


def too_many(function: Callable[..., Any]) -> bool:
    """Whether more than two arguments may be passed without their names."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    return (
        sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds) > 2
    )


def test_arguments_after_the_second_are_passed_by_name() -> None:
    found = []
    for room in (*ROOMS, "models", "testing"):
        module = importlib.import_module(f"lowhanging.{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing):
                continue
            is_result = dataclasses.is_dataclass(thing) or getattr(thing, "_is_protocol", False)
            found += [name] if not is_result and name not in MANY and too_many(thing) else []
    assert found == []
    assert too_many(lh.plane_through)
    assert not too_many(lh.line_slice)
