"""What can each instrument see? Run on networks whose circuits are known, over overlaps and seeds; prints tables.

    python benchmarks/instruments.py [--only steering price canyons cartoons circles births] [--seeds 5] [--images 1000]
                                     [--overlaps 0 0.25 0.5 0.75 1] [--json FILE]

"steering": both methods, with the other cue blanked or resampled. Found: more than half of the direction lies in the
weights of the circuit to be ablated, and the answers on conflict images move away from it, at step 8.
"price": `ablation_curve` on resampled losses. Found: at a fifth of the kept cue's loss the answers have moved to it.
"canyons": certified canyons in the space of the mixed loss's top eigenvectors, named by `attribute_circuit` against the
single-cue losses, blanked or resampled. Found: both circuits are named.
"cartoons": do canyons merge, and are they sloped? On the write-up's own cartoons, with a slope and without.
"births": are the births of pasted circuits dated, and none where only noise is?
"circles": `circle_score` and `key_frequencies` on pasted circuits, their planes turned or not, with noise on top.

Towers at overlap 0 hold two separate circuits; at 1 every hidden unit serves both, and only the input weights are one
circuit's own.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

import lowhanging as lh
from lowhanging.canyons import find_canyons
from lowhanging.planted import Planted
from lowhanging.steering import attribute_circuit
from lowhanging.testing import Calibration, calibrate

STEP = 8.0  # along a direction, as the write-up's slices
SHIFT = 0.1  # of the answers
CUES = ("number", "pattern")


def views_of(num_images: int) -> lh.datasets.PairedMNIST:
    """Paired digits of the first images."""
    digits = lh.mnist()
    few = lh.datasets.DigitImages(digits.train.inputs[:num_images], digits.train.targets[:num_images])
    return lh.paired_mnist(lh.datasets.MNIST(few, digits.test), pattern_only=0.2)


def towers(views: lh.datasets.PairedMNIST, overlap: float, seed: int) -> Planted:
    """The planted network at one setting."""
    return lh.planted.towers(views, overlap=overlap, seed=seed, progress=False)


def moved(planted: Planted, theta: Tensor, towards: str, away: str) -> bool:
    """Whether the answers moved by more than a tenth, beyond their interval."""
    assert planted.conflict is not None
    shift = planted.conflict.shift(theta, planted.theta, towards=towards, away=away)
    return shift.low > 0 and shift.shift >= SHIFT


def steering(planted: Planted) -> dict[str, bool]:
    """Where do the directions lie, and do the answers follow?"""
    found = {}
    for kind, suffix in (("blanked", ""), ("resampled", "_resampled")):
        losses = {cue: planted.train_losses[cue + suffix] for cue in CUES}
        for method in ("project", "ratio"):
            for keep, ablate in (CUES, CUES[::-1]):
                u = lh.steering_direction(
                    preserve=losses[keep], ablate=losses[ablate], method=method, k=20, tol=1e-3, progress=False
                )
                is_there = planted.share(u)[ablate] > 0.5
                name = f"{method}, {kind}, keep {keep}"
                found[f"{name}: the weights"] = is_there
                found[f"{name}: the answers"] = moved(planted, planted.theta + STEP * u, keep, ablate)
    return found


def price(planted: Planted) -> dict[str, bool | None]:
    """Do the answers follow the circuit whose loss is kept?"""
    assert planted.minimum is not None
    found = {}
    for keep, ablate in (CUES, CUES[::-1]):
        loss = planted.train_losses[f"{keep}_resampled"]
        start = float(loss(planted.theta))
        curve = lh.ablation_curve(
            planted.minimum.objective, keep=loss, levels=[0.5 * start, 0.2 * start], num_starts=2,
            second_order=False, on_failure="warn", progress=False,
        )  # fmt: skip
        way, is_met = curve.thetas[-1] - planted.theta, math.isfinite(float(curve.kkt[-1]))
        verdict = moved(planted, curve.thetas[-1], keep, ablate) if is_met else None
        found[f"price, keep {keep}: the answers"] = verdict
        found[f"price, keep {keep}: the weights"] = planted.share(way)[ablate] > 0.5 if is_met else None
    return found


def canyons(planted: Planted) -> dict[str, bool]:
    """Are both circuits among the names of certified canyons?"""
    assert planted.minimum is not None
    assert planted.conflict is not None
    loss = planted.minimum.objective
    space = lh.top_eigs(lh.hessian(loss), k=10, tol=1e-3, progress=False).subspace()
    found = find_canyons(loss, space=space, levels=(0.5, 2.0), progress=False)
    named: dict[str, set[str]] = {"blanked": set(), "resampled": set()}
    for canyon in found:
        for kind, suffix in (("blanked", ""), ("resampled", "_resampled")):
            held = {cue: planted.losses[cue + suffix] for cue in CUES}
            attributed = attribute_circuit(
                planted.conflict, canyon.theta, theta0=planted.theta, losses=_values(held, canyon.theta),
                basin_losses=_values(held, planted.theta),
            )  # fmt: skip
            named[kind] |= {attributed.name} - {None}
    return {f"canyons named, {kind}": len(names) == 2 for kind, names in named.items()}


def _values(losses: Mapping[str, lh.Objective], theta: Tensor) -> dict[str, float]:
    return {name: float(loss(theta)) for name, loss in losses.items()}


def cartoon(setting: float, seed: int) -> tuple[float, lh.FunctionObjective]:
    """The cartoon with this slope (0: the flat one) in a random plane of 20 dimensions."""
    loss = lh.toys.sloped_canyons(setting) if setting else lh.toys.flat_canyons()
    return setting, lh.toys.embedded(loss, 20, seed=seed, curvature=1.0)[0]


def slopes(given: tuple[float, lh.FunctionObjective]) -> dict[str, bool]:
    """Is the price of keeping one circuit sloped, and do the two canyons merge?

    Sloped: the multiplier lies far beyond its error. Merged: at some radius the loss curves upwards across the way
    between the two canyons, so that no ridge parts them; on the sloped cartoon that is within r^2 exp(r^2) = 2 slope.
    """
    _, loss = given
    first, second = (_canyon(loss, seed) for seed in (0, 1))
    other = second if float(first @ second) ** 2 < 0.5 else _other(loss, first)
    keep = lh.FunctionObjective(lambda point: (point @ first - 2).square(), loss.theta0)
    curve = lh.ablation_curve(loss, keep=keep, levels=[2.0, 1.0], gtol=1e-7, progress=False)
    mu, error = float(curve.multipliers[-1]), float(curve.multiplier_errors[-1])
    along = (first + other) / (first + other).norm()
    across = (first - other) / (first - other).norm()
    ridges = [float(across @ loss.hvp(radius * along, across)) for radius in (0.02, 0.05, 0.1, 0.2, 0.4)]
    return {"the way out is sloped": mu > max(3 * error, 1e-5), "canyons merge": max(ridges) > 0}


def _canyon(loss: lh.FunctionObjective, seed: int) -> Tensor:
    """A canyon's direction: where the loss on a sphere is least."""
    start = torch.randn((1, loss.num_params), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = lh.steering.relax_on_spheres(loss, 1.5 * start / start.norm(), gtol=1e-8).thetas[0]
    return found / found.norm()


def _other(loss: lh.FunctionObjective, canyon: Tensor) -> Tensor:
    """Another one, off the first: the first of some starts that ends there."""
    return next(found for seed in range(2, 50) if float((found := _canyon(loss, seed)) @ canyon) ** 2 < 0.5)


def pasted(noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings with three circles and noise, in their planes and turned."""
    planes = lh.planted.modular(29, (3, 5, 7), seed=seed)
    turned = lh.planted.modular(29, (3, 5, 7), seed=seed, rotated=True)
    generator = torch.Generator().manual_seed(seed)
    noisy = []
    for one in (planes, turned):
        E = one.model.embedding.detach().double()
        noisy.append(E + noise * E.std() * torch.randn(E.shape, generator=generator, dtype=torch.float64))
    return noisy[0], noisy[1]


def circles(given: tuple[Tensor, Tensor]) -> dict[str, bool]:
    """All three circles, and no other?"""
    found = {}
    for name, E in zip(("in their planes", "turned"), given, strict=True):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*circles of the frequencies")
            found[f"circle_score, {name}"] = bool(lh.circuits.circle_score(E).is_circle.all())
        planes = lh.circuits.circle_score(E, planes="frequencies")
        found[f"circle_score by frequencies, {name}"] = planes.frequency[planes.is_circle].tolist() == [3, 5, 7]
        found[f"key_frequencies, {name}"] = sorted(lh.circuits.key_frequencies(E).tolist()) == [3, 5, 7]
    return found


def growing(noise: float, seed: int) -> Tensor:
    """Embeddings (logs, p, 6) in which three circles appear at logs 10, 20 and 30 of 40, with noise throughout."""
    planted = lh.planted.modular(29, (3, 5, 7), seed=seed)
    E = planted.model.embedding.detach().double()
    generator = torch.Generator().manual_seed(seed)
    strength = (torch.arange(40)[:, None] >= torch.tensor([10, 20, 30])).double().repeat_interleave(2, 1)  # (logs, 6)
    dust = torch.randn((40, *E.shape), generator=generator, dtype=torch.float64)
    return strength[:, None] * E + (noise + 0.05) * E.std() * dust


def born(embeddings: Tensor) -> dict[str, bool]:
    """Are all three births dated to within a log, and is none seen in the same noise without circles?"""
    noise = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for rows in (embeddings, noise):
        turned = rows @ lh.planted.modular(29, (3, 5, 7), rotated=True).model.rotation.double()
        planes = lh.circuits.circle_score(turned, planes="frequencies")[None]
        for scores in (lh.circuits.circle_score(rows)[None], planes):
            found.append(lh.circuits.births(scores, torch.arange(40)).step[0])
    born, turned_born = found[0], found[1][[2, 4, 6]]
    dates = torch.tensor([10, 20, 30])
    return {
        "births, all dated": bool(((born - dates).abs() <= 1).all()),
        "births by frequencies, turned, all dated and no other": bool(((turned_born - dates).abs() <= 1).all())
        and int(found[1].isfinite().sum()) == 3,
        "births, in noise alone": bool(found[2].isfinite().any()),
        "births by frequencies, in noise alone": bool(found[3].isfinite().any()),
    }


def tables(options: argparse.Namespace) -> dict[str, Calibration]:
    """A table for every instrument that was asked for."""
    views = views_of(options.images)
    on_towers: dict[str, Callable[[Planted], Mapping[str, bool | None]]] = {
        "steering": steering, "price": price, "canyons": canyons,
    }  # fmt: skip
    made, seeds = {}, range(options.seeds)
    for name in options.only:
        if name in on_towers:
            plant = functools.partial(towers, views)
            found = calibrate(on_towers[name], plant, settings=options.overlaps, seeds=seeds)
        elif name == "cartoons":
            found = calibrate(slopes, cartoon, settings=[0.0, 0.001, 0.01, 0.1], seeds=seeds)
        elif name == "births":
            found = calibrate(born, growing, settings=[0.0, 0.3, 1.0, 3.0], seeds=seeds)
        else:
            found = calibrate(circles, pasted, settings=[0.0, 0.3, 1.0, 3.0], seeds=seeds)
        columns = {"cartoons": "slope", "circles": "noise, by the spread", "births": "noise, by the spread"}.get(
            name, "overlap"
        )
        print(f"\n{name} (columns: {columns})\n{found}", flush=True)
        made[name] = found
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = ["steering", "price", "canyons", "cartoons", "circles", "births"]
    parser.add_argument("--only", nargs="+", choices=everything, default=everything)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--overlaps", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    made = tables(options)
    if options.json:
        rates = {
            name: {f"{row}, {column:g}": [None if math.isnan(rate) else rate for rate in found.rate(row, column)]
                   for row in found.instruments for column in found.settings}
            for name, found in made.items()
        }  # fmt: skip
        options.json.write_text(json.dumps(rates, indent=1))


if __name__ == "__main__":
    main()
