"""What do the presets of modular addition reach, and how much faster is a stack of seeds than a loop over them?

    OMP_NUM_THREADS=1 python benchmarks/stack.py [--seeds 16] [--speed-seeds 64] [--steps 100] [--rounds 5]

The loop is what a user would write: one model, one Adam, autograd, on the same batches, on one thread as the stack; it
has to end at the stack's weights. Every round runs both, so that a noisy machine hurts them alike; the median counts.
`--seeds 0` leaves the table out, `--speed-seeds 0` the race.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import lowhanging as lh

RACED = ("redundant", "births")
TARGET = 2.2  # times the loop
THRESHOLD = 0.75  # of a circle's score
AT_LEAST = 3  # key frequencies of a seed without planes; 2 circles of one with planes


def reached(name: str, num_seeds: int) -> dict[str, Any]:
    """Per seed: accuracy on held-out pairs, number of key frequencies or of circles at the end, first birth."""
    preset = lh.training.PRESETS[name]
    is_blocked = preset.factory(0).is_blocked
    begun = time.perf_counter()
    log_every = 10 if is_blocked else 500
    run = lh.train_stack(name, seeds=range(num_seeds), snapshots="embedding", log_every=log_every, progress=False)
    seconds = (time.perf_counter() - begun) / num_seeds
    test = lh.Objective(run.model(0), preset.data().test)
    embeddings = run.snapshots["embedding"]  # (seeds, logs, p, width)
    first = []
    if is_blocked:
        scores = lh.circuits.circle_score(embeddings).score  # (seeds, logs, blocks)
        circuits = (scores[:, -1] >= THRESHOLD).sum(-1).tolist()
        first = lh.circuits.births(scores, run.steps, threshold=THRESHOLD).step.min(1).values.tolist()
    else:
        circuits = [len(keys) for keys in lh.circuits.key_frequencies(embeddings[:, -1])]
    return {
        "accuracies": [test.evaluate(theta)[1] for theta in run.thetas],
        "circuits": circuits,
        "kind": "circles" if is_blocked else "frequencies",
        "enough": sum(count >= (AT_LEAST - is_blocked) for count in circuits),
        "first births": [step for step in first if math.isfinite(step)],
        "seconds per seed": seconds,
    }


def table(num_seeds: int) -> dict[str, dict[str, Any]]:
    """Train every preset, and the one with sigmoids once more without its bias; print a row of each."""
    print(f"\n{num_seeds} seeds each; accuracy on held-out unordered pairs; circuits at the end\n")
    print("| preset           | accuracy: median (range) | circuits per seed | enough | first birth | s per seed |")
    print("|------------------|-------------------------:|------------------:|-------:|------------:|-----------:|")
    rows = {}
    for name in lh.training.PRESETS:
        row = rows[name] = reached(name, num_seeds)
        shown = f"{statistics.mean(row['circuits']):.1f} {row['kind']}"
        accuracies = row["accuracies"]
        span = f"{statistics.median(accuracies):.3f} ({min(accuracies):.2f} to {max(accuracies):.2f})"
        enough = f"{row['enough']}/{num_seeds}"
        first = f"{statistics.median(row['first births']):.0f}" if 2 * len(row["first births"]) >= num_seeds else ""
        print(
            f"| {name:<16} | {span:>24} | {shown:>17} | {enough:>6} | {first:>11} | {row['seconds per seed']:>10.2f} |"
        )
    accuracies = without_bias(num_seeds)
    span = f"{statistics.median(accuracies):.3f} ({min(accuracies):.2f} to {max(accuracies):.2f})"
    print(f"| {'sigmoid, no bias':<16} | {span:>24} | {'':>17} | {'':>6} | {'':>11} | {'':>10} |")
    print(f"\nenough: seeds with at least {AT_LEAST} key frequencies, or {AT_LEAST - 1} circles of score {THRESHOLD}")
    return {**rows, "sigmoid, no bias": {"accuracies": accuracies}}


def without_bias(num_seeds: int) -> list[float | None]:
    """Held-out accuracies of the "sigmoid" preset with no bias in the hidden layer."""
    preset = lh.training.PRESETS["sigmoid"]
    data = preset.data()

    def factory(seed: int) -> nn.Module:
        return lh.ModularMLP(seed=seed, **{**preset.model_arguments, "bias": False})

    run = lh.train_stack(factory, data.train, range(num_seeds), progress=False, **preset.training_arguments)
    test = lh.Objective(run.model(0), data.test)
    return [test.evaluate(theta)[1] for theta in run.thetas]


def by_loop(preset: lh.training.Preset, data: lh.datasets.ModularPairs, seeds: range, steps: int) -> list[nn.Module]:
    """One seed after the other, as a user would write it; batches as `train_stack` draws them."""
    size, rate, penalty = (preset.training_arguments[name] for name in ("batch_size", "lr", "penalty"))
    models: list[nn.Module] = []
    for seed in seeds:
        model = preset.factory(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        generator = torch.Generator().manual_seed(2**31 + seed)
        pending = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            while len(pending) < size:
                pending = torch.cat([pending, torch.randperm(len(data), generator=generator)])
            batch, pending = pending[:size], pending[size:]
            loss = F.cross_entropy(model(data.inputs[batch]), data.targets[batch])
            loss = loss + penalty * sum(weight.square().sum() for weight in model.parameters())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        models.append(model)
    return models


def race(num_seeds: int, steps: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Stack and loop, one after the other, `rounds` times; print the median seconds and their ratio."""
    print(f"\n{num_seeds} seeds, {steps} steps, {torch.get_num_threads()} thread(s), median of {rounds} rounds\n")
    print("| preset     | loop, ms per seed and step | stack | times as fast | weights differ by |")
    print("|------------|---------------------------:|------:|--------------:|------------------:|")
    rows = {}
    for name in RACED:
        preset, seeds = lh.training.PRESETS[name], range(num_seeds)
        data = preset.data().train
        seconds: dict[str, list[float]] = {"loop": [], "stack": []}
        (
            by_loop(preset, data, range(1), 1),
            lh.train_stack(name, seeds=(0,), num_steps=1, progress=False),
        )  # torch's own start
        for _ in range(rounds):
            begun = time.perf_counter()
            models = by_loop(preset, data, seeds, steps)
            middle = time.perf_counter()
            run = lh.train_stack(name, seeds=seeds, num_steps=steps, log_every=steps, progress=False)
            seconds["loop"].append(middle - begun)
            seconds["stack"].append(time.perf_counter() - middle)
        space = lh.objective.ParameterSpace(models[0])
        thetas = torch.stack([space.flatten(model) for model in models])
        error = float(((run.thetas - thetas).norm(dim=1) / thetas.norm(dim=1)).median())
        loop, stack = (statistics.median(row) for row in seconds.values())
        ratio = statistics.median(a / b for a, b in zip(seconds["loop"], seconds["stack"], strict=True))
        per = 1e3 / (num_seeds * steps)
        print(f"| {name:<10} | {loop * per:>26.3f} | {stack * per:>5.3f} | {ratio:>13.2f} | {error:>17.1e} |")
        rows[name] = {"seconds": seconds, "ratio": ratio, "error": error}
    worst = min(row["ratio"] for row in rows.values())
    print(f"\nat least {TARGET} times as fast: {'yes' if worst >= TARGET else 'NO'} ({worst:.2f})")
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--speed-seeds", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {
        "speed": race(options.speed_seeds, options.steps, options.rounds) if options.speed_seeds else {},
        "presets": table(options.seeds) if options.seeds else {},
    }
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
