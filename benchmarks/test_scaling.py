"""Does `benchmarks/scaling.py` run and fit rightly? On tiny networks and exact power laws."""

from __future__ import annotations

import argparse
import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # the benchmarks' own tests run last


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's files by name: they are scripts beside each other, not a package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module


def test_exponents_are_those_of_the_upper_half(load: Any) -> None:
    exponent = load("scaling").exponent
    xs = [1.0, 10.0, 100.0, 1000.0, 10000.0]
    assert abs(exponent(xs, [7 * x**1.5 for x in xs]) - 1.5) < 1e-12
    assert abs(exponent(xs, [50.0, 50.0, *xs[2:]]) - 1.0) < 1e-12  # a flat beginning is not seen
    assert math.isnan(exponent([], []))
    assert math.isnan(exponent([3.0], [2.0]))


def test_points_from_training_to_figure(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step as its child process would do it, but in this one; each point once, though the sweeps cross."""
    curvature, child, scaling = load("curvature"), load("curvature_child"), load("scaling")
    solved: list[str] = []

    def child_in_process(self: Any, task: str, verb: str, *, timeout: float, **order: Any) -> dict[str, Any]:
        solved.extend([f"{task} {order['contender']}"] if verb == "solve" else [])
        given = {"task": task, "quick": True, "device": "cpu", "weights": str(tmp_path)} | order
        return json.loads(json.dumps(child.report_of(verb, given)))

    monkeypatch.setattr(curvature.Runner, "child", child_in_process)
    given = {"results": tmp_path, "again": [], "device": "cpu", "threads": 1, "timeout": 60.0, "patience": 5.0}
    given |= {"grace": 150.0, "quick": True, "contenders": list(scaling.TOOLS)}
    runner = curvature.Runner(argparse.Namespace(**given))
    lines = scaling.measured(runner, scaling.sweeps(1e7, is_quick=True))
    assert {key: [row["x"] for row in line] for key, line in lines.items() if key[0] != "p"} == {
        (axis, tool): [50, 100, 200] if axis == "n" else [1, 2, 4] for axis in ("n", "k") for tool in scaling.TOOLS
    }
    assert all(abs(row["x"] / p - 1) < 0.3 for row, p in zip(lines["p", "ours"], (300, 600, 1200), strict=True))
    assert len(solved) == len(set(solved)) == 14  # seven points, two tools
    scaling.draw(lines, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert len(scaling.table_of(lines)) == 2 + 6
