"""One step of `benchmarks/curvature.py` in a fresh process: train, time a product, tune, solve, or judge.

Reads a JSON object from the command line, writes one as the last line of its output. A process of its own gives each
contender its own peak of memory, and no warm caches of another's.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from curvature_tasks import Data, micro_batches, named
from peers import PEERS, Pairs, Problem, double_backward, double_backward_eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lowhanging as lh

JUDGE_BATCH, JUDGE_SEQUENCES = 80, 8  # in float64, small ones fit the cache
FLOAT64_LIMIT = 50_000_000  # weights: larger networks are judged in float32
EIGSH_FACTORS = (100, 30, 10, 3)  # if none of these times the wanted residual will do as a tol, that itself is taken


def prepare(order: dict[str, Any]) -> dict[str, Any]:
    """Train the network if that was not done, and say how it stands and what micro-batches we choose."""
    began = time.perf_counter()
    task, (model, data) = named(order["task"]), _prepared(order)
    loss = lh.Objective(model.to(order["device"]), data)
    return {
        "title": task.title,
        "k": task.k,
        "tol": task.tol,
        "seconds": time.perf_counter() - began,
        "loss": float(loss(loss.theta0)),
        "num_params": loss.num_params,
        "num_examples": len(data[1]),
        "micro_batch": len(next(iter(loss.batches))[1]),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if order["device"].startswith("cuda") else "cpu",
    }


def pilot(order: dict[str, Any]) -> dict[str, Any]:
    """Seconds per product of one contender with batches of each size: the better of two.

    A size that takes ten times as long as the best one so far is not tried twice; one that does not fit is left out.
    """
    seconds: dict[str, float] = {}
    for batches in order["sizes"]:
        problem = _problem(order | {"batches": batches})
        make = PEERS[order["contender"]].product
        assert make is not None
        v = torch.randn(problem.num_params, device=order["device"])
        with _attention(order["contender"]), contextlib.suppress(RuntimeError if seconds else ()):
            product = make(problem)
            for _ in range(2):
                spent = _timed(lambda product=product, v=v: product(v), order["device"])
                seconds[str(batches)] = min(spent, seconds.get(str(batches), spent))
                if spent > 10 * min(seconds.values()):
                    break
        print(json.dumps({"seconds_per_product": seconds}), flush=True)  # the next size may be too large
    return {"seconds_per_product": seconds}


def tune(order: dict[str, Any]) -> dict[str, Any]:
    """The loosest tol with which eigsh finds pairs of the wanted residual and, if ours are known, none smaller."""
    problem = _problem(order)
    with _attention("script"):
        return tuned(problem, order["values"])


def tuned(problem: Problem, values: list[float] | None) -> dict[str, Any]:
    """What `tune` reports."""
    product, tol, tried = double_backward(problem), problem.tol, []
    for factor in EIGSH_FACTORS:
        problem.eigsh_tol, problem.products = factor * tol, 0
        pairs = double_backward_eigsh(problem)
        rows = pairs.vectors.to(problem.device)
        images = torch.stack([product(row) for row in rows]).cpu()
        scale = float(pairs.values.abs().max())
        residual = float((images - pairs.values[:, None] * pairs.vectors).norm(dim=1).max()) / scale
        missing = max(0.0, float((torch.tensor(values) - pairs.values).max()) / scale) if values else 0.0
        tried.append({"tol": factor * tol, "products": problem.products, "residual": residual, "missing": missing})
        if residual <= tol and missing <= 2 * tol:
            return {"eigsh_tol": factor * tol, "tried": tried}
    return {"eigsh_tol": tol, "tried": tried}


def solve(order: dict[str, Any]) -> dict[str, Any]:
    """Run one contender and keep its pairs for the judge."""
    problem, device = _problem(order), order["device"]
    # A second of imports that torch puts off until then, and that every process pays in which a network is trained.
    torch.optim.SGD(problem.model.parameters(), lr=0.1)
    before, began, found = _peak(device), time.process_time(), []
    with _attention(order["contender"]):
        seconds = _timed(lambda: found.append(PEERS[order["contender"]].solve(problem)), device)
    peak, cpu_seconds = _peak(device), time.process_time() - began
    pairs: Pairs = found[0]
    torch.save((pairs.values, pairs.vectors), order["pairs"])
    report = {"seconds": seconds, "products": problem.products, "note": pairs.note, "num_pairs": len(pairs.values)}
    report |= {"cpu_seconds": cpu_seconds, "peak_mb": peak, "peak_mb_before": before, "values": pairs.values.tolist()}
    if order["contender"] == "ours":
        report |= _unit_costs(problem)
    return report | problem.facts


def _unit_costs(problem: Problem) -> dict[str, Any]:
    """Median seconds of one product and of one gradient of ours, measured in turns: five, fewer where they are slow."""
    loss = lh.Objective(problem.model, problem.batches)
    theta = loss.theta0
    v = torch.randn_like(theta)
    for _ in range(2):  # the first records, the second fills what is kept
        loss.hvp(theta, v)
    turns: list[tuple[float, float]] = []
    while not turns or (len(turns) < 5 and sum(map(sum, turns)) < 20):
        product = _timed(lambda: loss.hvp(theta, v), problem.device)
        turns.append((product, _timed(lambda: loss.gradient(theta), problem.device)))
    product, gradient = (statistics.median(column) for column in zip(*turns, strict=True))
    return {"seconds_per_product": product, "seconds_per_gradient": gradient}


def judge(order: dict[str, Any]) -> dict[str, Any]:
    """True residuals of a contender's pairs, by a double backward in float64, which is the same for all of them."""
    model, data = _prepared(order)
    return verdict(model, data, *torch.load(order["pairs"], weights_only=True), order["device"])


def verdict(model: nn.Module, data: Data, values: Tensor, vectors: Tensor, device: str) -> dict[str, Any]:
    """Residuals |H v - value v| of the vectors, made unit, and how far these are from orthogonal."""
    dtype = torch.float64 if vectors.shape[1] <= FLOAT64_LIMIT else torch.float32
    rows = vectors.to(device, dtype)
    exact = torch.float64  # of 10^8 numbers a norm in float32 is wrong by a percent
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=exact).to(dtype)
    images = products(model, data, rows)
    residuals = torch.linalg.vector_norm(images - values.to(rows)[:, None] * rows, dim=1, dtype=exact)
    rayleigh = (images * rows).sum(dim=1, dtype=exact)
    parts = (part.to(exact) for part in rows.split(2**20, dim=1))
    overlaps = torch.stack([part @ part.T for part in parts]).sum(0) - torch.eye(len(rows), dtype=exact, device=device)
    return {
        "residuals": residuals.tolist(),
        "rayleigh": rayleigh.tolist(),
        "overlap": float(overlaps.abs().max()),
        "judged_in": str(dtype).removeprefix("torch."),
    }


def products(model: nn.Module, data: Data, rows: Tensor) -> Tensor:
    """H v of every row v (k, p): a double backward in the rows' precision, its first half once for each batch."""
    model = model.to(rows.device, rows.dtype)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    sizes = [weight.numel() for weight in weights]
    total, size = torch.zeros_like(rows), JUDGE_BATCH if data[1].ndim == 1 else JUDGE_SEQUENCES
    for x, y in micro_batches(data, size, str(rows.device)):
        with sdpa_kernel(SDPBackend.MATH):  # the quicker kernels can't be differentiated twice
            outputs = model(x.to(rows.dtype) if x.is_floating_point() else x)
            loss = F.cross_entropy(outputs, y, reduction="sum")
            gradient = torch.autograd.grad(loss, weights, create_graph=True)
        for row, image in zip(rows, total, strict=True):
            parts = [part.view_as(weight) for part, weight in zip(row.split(sizes), weights, strict=True)]
            seconds = torch.autograd.grad(gradient, weights, parts, retain_graph=True)
            image += torch.cat([part.flatten() for part in seconds])
    return total / data[1].numel()


def _attention(contender: str) -> contextlib.AbstractContextManager[Any]:
    """The others need attention that can be differentiated twice; ours sees to that itself."""
    return contextlib.nullcontext() if contender == "ours" else sdpa_kernel(SDPBackend.MATH)


def _prepared(order: dict[str, Any]) -> tuple[nn.Module, Data]:
    return named(order["task"]).prepared(Path(order["weights"]), is_quick=order["quick"])


def _problem(order: dict[str, Any]) -> Problem:
    task, device, batches = named(order["task"]), order["device"], order["batches"]
    model, data = _prepared(order)
    return Problem(
        model=model.to(device),
        batches=task.loader(data) if batches == "loader" else micro_batches(data, int(batches), device),
        num_examples=len(data[1]),
        num_terms=data[1].numel(),
        k=task.k,
        tol=task.tol,
        eigsh_tol=order.get("eigsh_tol", task.tol),
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
    verbs = {"prepare": prepare, "pilot": pilot, "tune": tune, "solve": solve, "judge": judge}
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
