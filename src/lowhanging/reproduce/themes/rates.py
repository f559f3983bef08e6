"""Theme "rates": the speeds at which the two cues are learned, and their stability under random displacements.

A cue's time is when its accuracy reaches half of its final value: half of the value itself, not half of the way up from
chance.

Stable against what: one random displacement of the weights, the same for both cues, as long as a tenth or a fifth of
the weights themselves. Random in all of weight space, so it favours neither cue by its making. Displacements of one
network say how sure that network's answer is; only networks count as independent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from lowhanging.objective.random_state import private_generator
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, most_of, over_seeds
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.store import Row
from lowhanging.reproduce.themes.learning import CUES
from lowhanging.reproduce.themes.order import BATCH_SIZE

FACTOR = 2.0  # up to which two rates count as comparable
LENGTHS = (0.1, 0.2)  # of a displacement, as a share of the norm of the weights


def steps_to_half(accuracies: Tensor, steps_per_epoch: int = 1) -> float:
    """Steps until accuracy passes half of its final value, interpolated between the epochs recorded."""
    half = float(accuracies[-1]) / 2
    for epoch in range(1, len(accuracies)):
        before, after = float(accuracies[epoch - 1]), float(accuracies[epoch])
        if after >= half:
            share = 0.0 if before >= half else (half - before) / (after - before)
            return steps_per_epoch * (epoch - 1 + share)
    return float("nan")


def measure(context: Context) -> Row:
    """Steps to half of the final accuracy, and what displacements of equal length cost either cue."""
    network = context.network
    per_epoch = math.ceil(len(network.views.mixed.train) / BATCH_SIZE)
    half = {name: steps_to_half(network.run.accuracies[name], per_epoch) for name in CUES}
    theta, generator = network.minimum.theta, private_generator(network.seed, "displacements")
    rows = torch.randn(context.sizes.displacements, theta.numel(), generator=generator)
    rows *= float(theta.norm()) / rows.norm(dim=1, keepdim=True)
    lost: dict[str, dict[str, list[float]]] = {}
    for cue in CUES:
        loss = network.losses[cue]
        before = loss.evaluate(theta)[1] or 0.0
        lost[cue] = {
            f"{length:g}": [before - (loss.evaluate(theta + length * row)[1] or 0.0) for row in rows]
            for length in LENGTHS
        }
    return {"steps_per_epoch": per_epoch, "steps_to_half": half, "accuracy_lost": lost}


def ratio(row: Row) -> float:
    """Steps of the slower cue over those of the faster one; infinite where one never gets there."""
    share = _number_over_pattern(row)
    return max(share, 1 / share if share else math.inf)


def _number_over_pattern(row: Row) -> float:
    number, pattern = (row["steps_to_half"][name] for name in CUES)
    if number is None or pattern is None:
        return math.inf
    return number / pattern if pattern else 1.0 if number == pattern else math.inf


def _known(values: Sequence[float | None], otherwise: str) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return mean_interval(known, scale="log") if len(known) == len(values) else otherwise


def _stability(rows: Sequence[Row], length: str) -> str:
    """What displacements of one length cost either cue, and which cue they cost less in most of them, by network."""
    lost = {cue: [row["accuracy_lost"][cue][length] for row in rows] for cue in CUES}
    texts = {cue: mean_interval([100 * statistics.fmean(row) for row in lost[cue]], unit=" points") for cue in CUES}
    pairs = [list(zip(*of_one, strict=True)) for of_one in zip(*lost.values(), strict=True)]  # network by network
    number, pattern = [sum(a < b for a, b in row) for row in pairs], [sum(a > b for a, b in row) for row in pairs]
    return (
        f"At ‖Δθ‖ = {length} ‖θ‖ number-only accuracy falls by {texts['number']}, pattern-only by {texts['pattern']}; "
        f"of each network's {len(pairs[0])} displacements {_listed(number)} cost numbers less, {_listed(pattern)} "
        f"patterns: {_stable(number, pattern)}"
    )


def _stable(number: Sequence[int], pattern: Sequence[int]) -> str:
    """Which cue is the more stable, counted over networks: displacements of one network are not independent."""
    signs = [(a > b) - (a < b) for a, b in zip(number, pattern, strict=True)]
    if len(signs) == 1:
        return ("neither cue is", "numbers are", "patterns are")[signs[0]] + " the more stable in the one network"
    counts = f"numbers are the more stable in {most_of(sign > 0 for sign in signs)}"
    return counts + f", patterns in {sum(sign < 0 for sign in signs)}"


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def claims(rows: Sequence[Row]) -> list[Claim]:
    """At comparable rates; which cue is the more stable."""
    ratios = [ratio(row) for row in rows]
    steps = {name: [row["steps_to_half"][name] for row in rows] for name in CUES}
    shares = [1 / share if share else math.inf for share in map(_number_over_pattern, rows)]
    shares = [share or math.inf for share in shares]  # 0: numbers never
    first = [value < 1 for value in map(_number_over_pattern, rows)]
    texts = [_stability(rows, f"{length:g}") for length in LENGTHS]
    return [
        Claim(
            2,
            "at comparable rates",
            "the two circuits form at similar speed",
            f"steps until single-cue accuracy reaches half of its final value {over_seeds(len(rows))}: number "
            f"{_known(steps['number'], 'never')}, pattern {_known(steps['pattern'], 'never')}; pattern "
            f"over number {_known(shares, 'without a limit')}, numbers first in {most_of(first)}, within a factor of "
            f"{FACTOR:g} in {most_of(value <= FACTOR for value in ratios)}. The same random displacements of the "
            f"minimum for both cues. {'. '.join(texts)}",
            "equal rates: a ratio of 1; equal stability: either cue loses less in half of the displacements, and is "
            "the more stable one in half of the networks",
            f"the slower cue takes at most {FACTOR:g} times as long as the faster one to reach half of its final "
            "accuracy, in more than half of the seeds; which cue is the more stable is reported and not judged",
            judged(most(value <= FACTOR for value in ratios)),
        )
    ]
