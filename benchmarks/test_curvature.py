"""Does `benchmarks/curvature.py` run, judge rightly, and name what is missing? On tiny networks and made-up rows.

Oracles: the dense float64 Hessian for the judge's products and for ours; rows whose verdict is known by construction.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lowhanging.testing import dense_hessian

pytestmark = pytest.mark.slow  # the benchmarks' own tests run last

BENCHMARKS = Path(__file__).parent


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's files by name: they are scripts beside each other, not a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module


def test_judge_and_contenders_agree_with_the_dense_hessian(load: Any) -> None:
    child, peers = load("curvature_child"), load("peers")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    data = (torch.randn(9, 4), torch.arange(9) % 3)
    H = dense_hessian(model, data)
    exact = torch.linalg.eigvalsh((H + H.T) / 2).flip(0)
    problem = peers.Problem(model, [data], 9, k=3, tol=1e-5, device="cpu", steps_known=10)
    for solve in (peers.lowhanging, peers.double_backward_eigsh):
        problem.products = 0
        pairs = solve(problem)
        assert float((pairs.values - exact[:3]).abs().max()) < 2e-5 * float(exact[0])
        assert problem.products > 3
        verdict = child.verdict(model.double(), data, pairs.values, 3 * pairs.vectors, "cpu")  # any length will do
        model.float()
        assert 0 < max(verdict["residuals"]) < 1e-5 * float(exact[0])
        assert verdict["overlap"] < 1e-5
    v = torch.randn(2, len(H), dtype=torch.float64)
    assert float((child.products(model, data, v) - v @ H).abs().max()) < 1e-12
    shifted = child.verdict(model, data, pairs.values + 0.5, pairs.vectors, "cpu")
    assert all(abs(residual - 0.5) < 1e-4 for residual in shifted["residuals"])


def test_who_got_there_is_decided_by_residuals_orthogonality_and_the_best_set(load: Any) -> None:
    curvature = load("curvature")

    def row(values: list[float]) -> dict[str, Any]:
        return {"batches": "loader", "seconds": 2.0, "cpu_seconds": 3.0, "products": 9, "values": values} | {
            "peak_mb": 100.0,
            "peak_mb_before": 90.0,
        }

    def verdict(values: list[float], residual: float = 1e-7, overlap: float = 1e-9) -> dict[str, Any]:
        return {"rayleigh": values, "residuals": [residual] * len(values), "overlap": overlap}

    costs = {"seconds_per_product": 0.2, "seconds_per_gradient": 0.1, "engine": "split graph", "seconds": 1.0}
    rows = {
        "ours": row([4.0, 3.0, 2.0]) | costs,
        "double-backward": row([4.0, 3.0, 2.0]) | {"seconds": 3.0},
        "curvlinops": row([4.0, 3.0, 1.0]),  # skipped one
        "eigenthings": row([4.0, 4.0, 3.0]),  # a ghost
        "eigenthings-default": row([4.0, 3.0, 2.0]),  # not converged
        "eigenthings-hindsight": {"batches": "micro", "stopped": "after 9 s"},
        "pyhessian": {"batches": "loader", "missing": "No module named 'pyhessian'"},
    }
    verdicts = {
        "ours": verdict([4.0, 3.0, 2.0]),
        "double-backward": verdict([4.0, 3.0, 2.0]),
        "curvlinops": verdict([4.0, 3.0, 1.0]),
        "eigenthings": verdict([4.0, 4.0, 3.0], overlap=1.0),
        "eigenthings-default": verdict([4.0, 3.0, 2.0], residual=1e-2),
    }
    curvature.judged(rows, verdicts, tol=1e-5)
    assert [name for name, one in rows.items() if one["is_reached"]] == ["ours", "double-backward"]
    assert rows["curvlinops"]["off"] == rows["eigenthings"]["off"] == 0.25
    assert rows["eigenthings-default"]["residual"] == 0.25e-2
    table = curvature.table_of({"task": "a10", "prepared": {"micro_batch": 320}, "tol": 1e-5, "rows": rows})
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1  # no ragged table
    assert "missing No module named 'pyhessian'" in table
    assert "stopped after 9 s" in table
    assert "3.00 times as fast as double backward + eigsh" in table
    assert "200 ms each (split graph), 100 ms a gradient: 2.00 gradients" in table


def options(**changes: Any) -> argparse.Namespace:
    given = {"tol": 1e-5, "batches": "better", "device": "cpu", "threads": 0, "timeout": 60.0, "patience": 5.0}
    given |= {"grace": 150.0, "quick": True, "tasks": ["c10"], "contenders": ["ours", "double-backward", "nobody"]}
    return argparse.Namespace(**given | changes)


def test_a_task_from_training_to_table(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step as its child process would do it, but in this one; and one tool that is not installed."""
    curvature, child, peers = load("curvature"), load("curvature_child"), load("peers")

    def absent(problem: Any) -> Any:
        return importlib.import_module("a_tool_that_nobody_installed")

    monkeypatch.setitem(peers.PEERS, "nobody", peers.Peer("nobody", absent, absent))

    def child_in_process(self: Any, task: str, verb: str, *, timeout: float, **order: Any) -> dict[str, Any]:
        given = {"task": task, "quick": True, "device": "cpu", "tol": 1e-5, "scratch": str(tmp_path)} | order
        return json.loads(json.dumps(child.report_of(verb, given)))

    monkeypatch.setattr(curvature._Runner, "child", child_in_process)
    table = curvature._Runner(options(), tmp_path).task("c10")
    rows = table["rows"]
    assert rows["nobody"]["missing"] == "No module named 'a_tool_that_nobody_installed'"
    for name in ("ours", "double-backward"):
        assert rows[name]["is_reached"]
        assert 0 < rows[name]["residual"] < 1e-5
        assert rows[name]["products"] > 10
    assert set(rows["double-backward"]["seconds_per_product"]) == {"loader", "micro"}
    printed = curvature.table_of(table)
    assert "| nobody | | | | | | | | no | | loader | missing No module" in printed
    assert "times as fast as double backward + eigsh" in printed


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import sys, json; print('noise'); print(json.dumps({'verb': json.loads(sys.argv[1])['verb']}))", "verb"),
        ("import time; time.sleep(30)", "stopped"),
        ("import sys; sys.exit('no memory')", "failure"),
        ("pass", "failure"),
    ],
)
def test_a_child_reports_or_is_reported(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    curvature = load("curvature")
    (tmp_path / "curvature_child.py").write_text(script)
    monkeypatch.setattr(curvature, "HERE", tmp_path)
    report = curvature._Runner(options(), tmp_path).child("c10", "solve", timeout=5.0 if expected != "stopped" else 0.5)
    assert list(report) == [expected]
    assert report[expected] in ("solve", "after 0 s", "exit status 1: no memory", "exit status 0: ")
