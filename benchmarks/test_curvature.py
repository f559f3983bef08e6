"""Does `benchmarks/curvature.py` run, judge rightly, and name what is missing? On tiny networks and made-up rows.

Oracles: the dense float64 Hessian for the judge's products and for ours; rows whose verdict is known by construction.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
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


def problem_of(peers: Any, model: torch.nn.Module, data: Any, *, k: int) -> Any:
    sizes = {"num_examples": len(data[1]), "num_terms": data[1].numel()}
    return peers.Problem(model, [data], **sizes, k=k, tol=1e-5, eigsh_tol=1e-5, device="cpu", steps_known=10)


def test_judge_and_contenders_agree_with_the_dense_hessian(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    child, peers = load("curvature_child"), load("peers")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    data = (torch.randn(9, 4), torch.arange(9) % 3)
    H = dense_hessian(model, data)
    exact = torch.linalg.eigvalsh((H + H.T) / 2).flip(0)
    problem = problem_of(peers, model, data, k=3)
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
    monkeypatch.setattr(child, "FLOAT64_LIMIT", 10)
    coarse = child.verdict(model, data, pairs.values + 0.5, pairs.vectors, "cpu")
    assert (shifted["judged_in"], coarse["judged_in"]) == ("float64", "float32")
    assert all(abs(residual - 0.5) < 1e-4 for residual in coarse["residuals"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # at the import of curvlinops
@pytest.mark.parametrize("has_norms", [True, False])
def test_targets_are_tokens(load: Any, has_norms: bool) -> None:
    """The mean is over all of them: script and judge beside the dense Hessian, and curvlinops, if it is there.

    Without layer norms for curvlinops: in torch 2.13 `jvp(jacrev(...))`, its product, is wrong for their weights.
    """
    child, peers, tasks = load("curvature_child"), load("peers"), load("curvature_tasks")
    model, data = tasks.TASKS["gpt"].make(True)
    if not has_norms:
        model.norm = model.blocks[0].norm1 = model.blocks[0].norm2 = torch.nn.Identity()
    problem = problem_of(peers, model, data, k=1)
    problem.batches = tasks.micro_batches(data, 3, "cpu")  # ragged
    tools = [peers.double_backward]
    if not has_norms and importlib.util.find_spec("curvlinops"):
        tools.append(peers.curvlinops_product)
    with child._attention("script"):
        H = dense_hessian(model, data)
        v = torch.randn(len(H))
        wanted = H @ v.double()
        for tool in tools:
            assert float((tool(problem)(v) - wanted).norm() / wanted.norm()) < 1e-5
    judged = child.products(model, data, v[None].double())[0]
    assert float((judged - wanted).norm() / wanted.norm()) < 1e-12


def test_eigsh_gets_the_loosest_tolerance_that_will_do(load: Any) -> None:
    child, peers, tasks = load("curvature_child"), load("peers"), load("curvature_tasks")
    model, data = tasks.TASKS["small"].make(True)
    problem = problem_of(peers, model, data, k=5)
    problem.tol = 1e-4
    found = child.tuned(problem, None)
    reached = [one["residual"] <= 1e-4 for one in found["tried"]]
    assert reached == [False] * (len(reached) - 1) + [True]
    assert found["eigsh_tol"] == found["tried"][-1]["tol"]
    too_large = [float(value) + 1 for value in peers.double_backward_eigsh(problem).values]
    found = child.tuned(problem, too_large)  # pairs are missing, whatever the tolerance
    assert (len(found["tried"]), found["eigsh_tol"]) == (len(child.EIGSH_FACTORS), 1e-4)


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
    costs |= {"num_probe_steps": 3}
    rows = {
        "ours": row([4.0, 3.0, 2.0]) | costs,
        "script": row([4.0, 3.0, 2.0]) | {"seconds": 3.0},
        "curvlinops": row([4.0, 3.0, 1.0]),  # skipped one
        "eigenthings": row([4.0, 4.0, 3.0]),  # a ghost
        "eigenthings-default": row([4.0, 3.0, 2.0]),  # not converged
        "eigenthings-hindsight": {"batches": "micro", "stopped": "after 9 s"},
        "pyhessian": {"batches": "loader", "missing": "No module named 'pyhessian'"},
    }
    verdicts = {
        "ours": verdict([4.0, 3.0, 2.0]),
        "script": verdict([4.0, 3.0, 2.0]),
        "curvlinops": verdict([4.0, 3.0, 1.0]),
        "eigenthings": verdict([4.0, 4.0, 3.0], overlap=1.0),
        "eigenthings-default": verdict([4.0, 3.0, 2.0], residual=1e-2),
    }
    for name, found in verdicts.items():
        rows[name] |= found
    curvature.judged(rows, tol=1e-5)
    assert [name for name, one in rows.items() if one["is_reached"]] == ["ours", "script"]
    assert rows["curvlinops"]["off"] == rows["eigenthings"]["off"] == 0.25
    assert rows["eigenthings-default"]["residual"] == 0.25e-2
    prepared = {"title": "a network", "k": 3, "tol": 1e-5, "num_params": 5000, "micro_batch": 320}
    found = {"task": "small", "prepared": prepared, "rows": rows}
    table = curvature.table_of(found)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1  # no ragged table
    assert "missing No module named 'pyhessian'" in table
    assert "stopped after 9 s" in table
    assert "3.00 times as fast as double backward + eigsh" in table
    assert "9 products, 3 of them in search of missed pairs, " in table
    assert "200 ms each (split graph, 320 examples at once), 100 ms a gradient: 2.00 gradients" in table
    rows["script"]["seconds"] = 4.0
    whole = "\n".join(curvature.summary({"small": found, "middle": found, "mlp": {"failure": "no memory"}}))
    assert "| small | 5,000 | 1 | double backward + eigsh | 4 | 4.00 | 9 / 9 | 100 / 100 |" in whole
    assert "| mlp | | does not get there | | | | | |" in whole
    assert "Geometric mean of 2 ratios, 3 tasks: 4.00" in whole


def options(results: Path, **changes: Any) -> argparse.Namespace:
    given = {"results": results, "again": [], "device": "cpu", "threads": 1, "timeout": 60.0, "patience": 5.0}
    given |= {"grace": 150.0, "quick": True, "tasks": ["small"], "contenders": ["ours", "script", "nobody"]}
    return argparse.Namespace(**given | changes)


def test_a_task_from_training_to_table(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step as its child process would do it, but in this one; one tool that is not installed; and once more."""
    curvature, child, peers = load("curvature"), load("curvature_child"), load("peers")
    steps: list[str] = []

    def absent(problem: Any) -> Any:
        return importlib.import_module("a_tool_that_nobody_installed")

    monkeypatch.setitem(peers.PEERS, "nobody", peers.Peer("nobody", absent, absent))

    def child_in_process(self: Any, task: str, verb: str, *, timeout: float, **order: Any) -> dict[str, Any]:
        steps.append(f"{verb} {order.get('contender', '')}".strip())
        given = {"task": task, "quick": True, "device": "cpu", "weights": str(tmp_path)} | order
        return json.loads(json.dumps(child.report_of(verb, given)))

    monkeypatch.setattr(curvature.Runner, "child", child_in_process)
    table = curvature.Runner(options(tmp_path)).task("small")
    rows = table["rows"]
    assert rows["nobody"]["missing"] == "No module named 'a_tool_that_nobody_installed'"
    for name in ("ours", "script"):
        assert rows[name]["is_reached"]
        assert 0 < rows[name]["residual"] < 1e-4
        assert rows[name]["products"] > 10
    speeds = rows["script"]["seconds_per_product"]
    assert set(speeds) == {"loader", "200", "100", "50", "25", "13", "7"}
    assert speeds[rows["script"]["batches"]] == min(speeds.values())
    assert rows["script"]["eigsh_tol"] in [1e-4 * factor for factor in (1, *child.EIGSH_FACTORS)]
    printed = curvature.table_of(table)
    assert "| nobody | | | | | | | | no | | loader | missing No module" in printed
    assert "times as fast as double backward + eigsh" in printed
    steps.clear()
    assert curvature.table_of(curvature.Runner(options(tmp_path)).task("small")) == printed
    assert steps == ["pilot nobody"]  # what was missing may have been installed by now
    steps.clear()
    curvature.Runner(options(tmp_path, contenders=["ours", "script"], again=["script"])).task("small")
    assert steps == ["pilot script", "solve script", "judge script"]


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
    report = curvature.Runner(options(tmp_path)).child("small", "solve", timeout=5.0 if expected != "stopped" else 0.5)
    assert list(report) == [expected]
    assert report[expected] in ("solve", "after 0 s", "exit status 1: no memory", "exit status 0: ")
