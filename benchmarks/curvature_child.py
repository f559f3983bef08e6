"""One step of `benchmarks/curvature.py` in a fresh process: train, time a product, solve, or judge.

Reads a JSON object from the command line, writes one as the last line of its output. A process of its own gives each
contender its own peak of memory, and no warm caches of another's.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from curvature_tasks import TASKS, Data, Task, micro_batches
from peers import PEERS, Pairs, Problem
from torch import Tensor, nn

import lowhanging as lh

JUDGE_BATCH = 80  # in float64, small ones fit the cache


def prepare(order: dict[str, Any]) -> dict[str, Any]:
    """Train the network if that was not done, and say how it stands and what micro-batches we choose."""
    began = time.perf_counter()
    model, data = _task(order).prepared(Path(order["scratch"]), is_quick=order["quick"])
    loss = lh.Objective(model.to(order["device"]), data)
    return {
        "seconds": time.perf_counter() - began,
        "loss": float(loss(loss.theta0)),
        "num_params": loss.num_params,
        "num_examples": loss.num_examples,
        "micro_batch": len(next(iter(loss.batches))[1]),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if order["device"].startswith("cuda") else "cpu",
    }


def pilot(order: dict[str, Any]) -> dict[str, Any]:
    """Seconds per product of one contender with each kind of batches: the best of three after one to warm up."""
    seconds = {}
    for batches in ("loader", "micro"):
        problem = _problem(order | {"batches": batches})
        make = PEERS[order["contender"]].product
        assert make is not None
        product = make(problem)
        v = torch.randn(sum(weight.numel() for weight in problem.parameters), device=order["device"])
        runs = [_timed(lambda product=product, v=v: product(v), order["device"]) for _ in range(4)]
        seconds[batches] = min(runs[1:])
    return {"seconds_per_product": seconds}


def solve(order: dict[str, Any]) -> dict[str, Any]:
    """Run one contender and keep its pairs for the judge."""
    problem, device = _problem(order), order["device"]
    # A second of imports that torch puts off until then, and that every process pays in which a network is trained.
    torch.optim.SGD(problem.model.parameters(), lr=0.1)
    before, began, found = _peak(device), time.process_time(), []
    seconds = _timed(lambda: found.append(PEERS[order["contender"]].solve(problem)), device)
    peak, cpu_seconds = _peak(device), time.process_time() - began
    pairs: Pairs = found[0]
    torch.save((pairs.values, pairs.vectors), order["pairs"])
    report = {"seconds": seconds, "products": problem.products, "note": pairs.note, "num_pairs": len(pairs.values)}
    report |= {"cpu_seconds": cpu_seconds, "peak_mb": peak, "peak_mb_before": before, "values": pairs.values.tolist()}
    if order["contender"] == "ours":
        report |= _unit_costs(problem)
    return report


def _unit_costs(problem: Problem) -> dict[str, Any]:
    """Median seconds of one product and of one gradient of ours, measured in turns."""
    loss = lh.Objective(problem.model, problem.batches)
    theta = loss.theta0
    v = torch.randn_like(theta)
    for _ in range(2):  # the first records, the second fills what is kept
        loss.hvp(theta, v)
    turns = [
        (_timed(lambda: loss.hvp(theta, v), problem.device), _timed(lambda: loss.gradient(theta), problem.device))
        for _ in range(5)
    ]
    product, gradient = (statistics.median(column) for column in zip(*turns, strict=True))
    return {"seconds_per_product": product, "seconds_per_gradient": gradient, "engine": loss.engine}


def judge(order: dict[str, Any]) -> dict[str, Any]:
    """True residuals of every contender's pairs, by one float64 double backward for all of them."""
    model, data = _task(order).prepared(Path(order["scratch"]), is_quick=order["quick"])
    files = {name: torch.load(path, weights_only=True) for name, path in order["pairs"].items()}
    return {name: verdict(model, data, *pairs, order["device"]) for name, pairs in files.items()}


def verdict(model: nn.Module, data: Data, values: Tensor, vectors: Tensor, device: str) -> dict[str, Any]:
    """Residuals |H v - value v| of the vectors, made unit, and how far these are from orthogonal."""
    rows = vectors.double().to(device)
    rows = rows / rows.norm(dim=1, keepdim=True)
    images = products(model, data, rows)
    residuals = (images - values.to(rows)[:, None] * rows).norm(dim=1)
    rayleigh = (images * rows).sum(dim=1)
    overlaps = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return {
        "residuals": residuals.tolist(),
        "rayleigh": rayleigh.tolist(),
        "overlap": float(overlaps.abs().max()),
    }


def products(model: nn.Module, data: Data, rows: Tensor) -> Tensor:
    """H v of every row v (k, p): a double backward in float64, its first half once for each batch."""
    model = model.double().to(rows.device)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    sizes = [weight.numel() for weight in weights]
    total = torch.zeros_like(rows)
    for x, y in zip(data[0].split(JUDGE_BATCH), data[1].split(JUDGE_BATCH), strict=True):
        x = x.double() if x.is_floating_point() else x
        loss = F.cross_entropy(model(x.to(rows.device)), y.to(rows.device), reduction="sum")
        gradient = torch.autograd.grad(loss, weights, create_graph=True)
        for row, image in zip(rows, total, strict=True):
            parts = [part.view_as(weight) for part, weight in zip(row.split(sizes), weights, strict=True)]
            seconds = torch.autograd.grad(gradient, weights, parts, retain_graph=True)
            image += torch.cat([part.flatten() for part in seconds])
    return total / len(data[1])


def _task(order: dict[str, Any]) -> Task:
    return TASKS[order["task"]]


def _problem(order: dict[str, Any]) -> Problem:
    task, device = _task(order), order["device"]
    model, data = task.prepared(Path(order["scratch"]), is_quick=order["quick"])
    is_micro = order["batches"] == "micro"
    return Problem(
        model=model.to(device),
        batches=micro_batches(data, order["micro_batch"], device) if is_micro else task.loader(data),
        num_examples=len(data[1]),
        k=task.k,
        tol=order["tol"],
        device=device,
        steps_known=task.steps_known,
    )


def _timed(run: Any, device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _peak(device: str) -> float:
    """Peak memory in MB: of the GPU, if that is where the work is, else resident memory of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
    except (OSError, StopIteration):  # no Linux
        import resource

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size / 1e6 if sys.platform == "darwin" else size * 1024 / 1e6


def report_of(verb: str, order: dict[str, Any]) -> dict[str, Any]:
    """What one step found, or why it did not."""
    verbs = {"prepare": prepare, "pilot": pilot, "solve": solve, "judge": judge}
    try:
        return verbs[verb](order)
    except ModuleNotFoundError as error:
        return {"missing": str(error)}
    except Exception as error:  # one contender's failure is a row of the table
        return {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}


def main() -> None:
    """Do what the order says."""
    order = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    if order["threads"]:
        torch.set_num_threads(order["threads"])
    print(json.dumps(report_of(order["verb"], order)), flush=True)


if __name__ == "__main__":
    main()
