"""What does a Hessian product cost, by each engine, and what was predicted? One table, one run.

    python benchmarks/products.py [--tasks cnn transformer mlp small middle resnet gpt] [--scratch FOLDER] [--json FILE]

On one micro-batch of each network of `curvature_tasks.py`, one thread: milliseconds of a gradient, of a double backward
by hand, of a product by the kept graph and by a recording, and seconds to record; beside the last three what
`lowhanging.objective.cost` predicts, whose constants were fitted to such a table. The best of several, in turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from curvature_tasks import TASKS
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import lowhanging as lh
from lowhanging.objective.cost import Counting
from lowhanging.objective.hvp import GraphEngine, HessianOfBatch, SplitEngine


def by_hand(loss: lh.Objective, model: torch.nn.Module, batch: Any, v: Tensor) -> Tensor:
    """A double backward as a user would write it."""
    x, y = batch
    theta = loss.theta0.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        total = F.cross_entropy(functional_call(model, loss.space.unflatten(theta), (x,)), y, reduction="sum")
        (gradient,) = torch.autograd.grad(total, theta, create_graph=True)
        return torch.autograd.grad(gradient, theta, v)[0]


def measured(name: str, scratch: Path, rounds: int) -> dict[str, float]:
    """One row: seconds of each, and what was predicted."""
    model, data = TASKS[name].prepared(scratch, is_quick=False)
    loss = lh.Objective(model, data)
    batch, theta = next(iter(loss.batches)), loss.theta0
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(0))
    matrix = HessianOfBatch(loss._terms)
    kept, split = GraphEngine(matrix, keeps=True), SplitEngine(matrix)
    with loss._terms.context():
        with Counting() as counting:
            graph, graph_bytes = kept.prepare(theta, batch)
        SplitEngine(matrix).prepare(theta, batch)  # a first trace loads what later ones find
        begun = time.perf_counter()
        recorded, recorded_bytes = split.prepare(theta, batch)
        recording = time.perf_counter() - begun
        contenders: dict[str, Callable[[], Any]] = {
            "gradient": lambda: matrix.differences(theta, v, batch, 1e-3),  # two of them
            "by hand": lambda: by_hand(loss, model, batch, v),
            "kept": lambda: kept.product(graph, v),
            "split": lambda: split.product(recorded, v),
        }
        best = dict.fromkeys(contenders, float("inf"))
        for _ in range(rounds):
            for key, run in contenders.items():
                begun = time.perf_counter()
                run()
                best[key] = min(best[key], time.perf_counter() - begun)
    work = counting.work
    predicted = {"kept predicted": work.product, "split predicted": work.product - work.saved}
    sizes = {"graph bytes": graph_bytes, "recorded bytes": recorded_bytes, "micro-batch": len(batch[1])}
    rest = {"recording": recording, "recording predicted": work.recording, "gradient": best["gradient"] / 2}
    return best | predicted | sizes | rest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[name for name in TASKS if name != "gpt2"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where trained weights are kept"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | examples | gradient | by hand | kept (predicted) | split (predicted) | recording (predicted) |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    rows = {}
    for name in options.tasks:
        row = rows[name] = measured(name, options.scratch, options.rounds)
        ms = {key: f"{1e3 * value:.2f}" for key, value in row.items()}
        cells = [name, f"{row['micro-batch']:.0f}", ms["gradient"], ms["by hand"]]
        cells += [f"{ms[key]} ({ms[f'{key} predicted']}) ms" for key in ("kept", "split")]
        cells += [f"{row['recording']:.2f} ({row['recording predicted']:.2f}) s"]
        print("| " + " | ".join(cells) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
