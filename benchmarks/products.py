"""What does a Hessian product cost, in gradients and in double backwards? One table, one run, the paired-digit CNN.

    python benchmarks/products.py [--images 3200] [--rounds 7] [--json FILE]

The median of the rounds; every round runs each contender once, so that a noisy machine hurts all of them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.func import functional_call

import lowhanging as lh


def double_backward(
    loss: lh.Objective, model: torch.nn.Module, data: tuple, v: torch.Tensor, size: int
) -> torch.Tensor:
    """The product that a user would write by hand, in batches of `size`."""
    inputs, targets = data
    total = torch.zeros_like(v)
    for x, y in zip(inputs.split(size), targets.split(size), strict=True):
        theta = loss.theta0.clone().requires_grad_()
        outputs = functional_call(model, loss.space.unflatten(theta), (x,))
        (gradient,) = torch.autograd.grad(F.cross_entropy(outputs, y, reduction="sum"), theta, create_graph=True)
        total += torch.autograd.grad(gradient, theta, v)[0]
    return total / len(targets)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    train = lh.paired_mnist().mixed.train
    data = (train.inputs[: options.images], train.targets[: options.images])
    model = lh.SigmoidCNN(seed=0)
    loss = lh.Objective(model, data)
    v = torch.randn(loss.num_params, generator=torch.Generator().manual_seed(0))
    begun = time.perf_counter()
    ours = loss.hvp(loss.theta0, v)
    first = time.perf_counter() - begun
    kept = loss.hvp(loss.theta0, v)
    reference = double_backward(loss, model, data, v, options.images)
    contenders = {
        "gradient": lambda: loss.gradient(loss.theta0),
        f"product, {loss.engine}": lambda: loss.hvp(loss.theta0, v),
        "double backward, micro-batches of 200": lambda: double_backward(loss, model, data, v, 200),
        "double backward, one batch": lambda: double_backward(loss, model, data, v, options.images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, run in contenders.items():
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    median = {name: statistics.median(row) for name, row in seconds.items()}
    gradient, whole = median["gradient"], median["double backward, one batch"]

    print(f"{options.images} paired images, {loss.num_params:,} parameters, {torch.get_num_threads()} threads")
    print(f"\n| {'':<38} | {'ms':>7} | {'gradients':>9} | {'double backwards':>16} |")
    print(f"|{'-' * 40}|--------:|----------:|-----------------:|")
    for name, value in median.items():
        print(f"| {name:<38} | {1e3 * value:>7.0f} | {value / gradient:>9.2f} | {value / whole:>16.2f} |")
    error = max(float((result - reference).norm() / reference.norm()) for result in (ours, kept))
    print(f"\nfirst product (recording and self-test): {first:.1f} s; difference from double backward: {error:.1e}")
    if options.json:
        options.json.write_text(json.dumps({"median_seconds": median, "rounds": seconds, "error": error}, indent=1))


if __name__ == "__main__":
    main()
