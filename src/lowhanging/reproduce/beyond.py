"""Of a mixed loss that falls after the first circuit has formed, what does that circuit's own progress explain?

Let z(t) be the logits on mixed images at epoch t, and z1(t) those on the same images' first cue alone. If nothing but
the first circuit changes between two epochs, and circuits add their logits, then

    z(t1) = z(t0) + a (z1(t1) - z1(t0))

with a the weight of that circuit in mixed images, which nobody knows. So a is chosen to the null's advantage: whichever
of 0, 0.05, ..., 3 makes the mixed loss lowest. What the loss has fallen beyond that is not the first circuit's, at any
weight. It may still be the first circuit's where both cues are there, of which images of one cue know nothing; that the
same rule makes the *second* cue's change explain it speaks against that.

The interval is a bootstrap over held-out images, a chosen anew in each sample; it knows nothing of other trainings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowhanging.parameters import ParameterSpace
from lowhanging.reproduce.learning import CUES, Learning

WEIGHTS = torch.linspace(0.0, 3.0, 61, dtype=torch.float64)
HALF_WAY = 0.5  # of the first cue's way that must be done at the first checkpoint
NUM_IMAGES, NUM_DRAWS = 2000, 2000


def beyond(network: Learning, first: str, progress: Tensor, begin: int, end: int) -> dict[str, Any] | None:
    """The fall of the mixed loss between the two checkpoints nearest to `begin` and `end`, and what explains it.

    Args:
        network: with its checkpoints.
        first: the cue that was learned first.
        progress: (epochs + 1,) of that cue, 0 to 1.
        begin: epoch from which the fall is asked for.
        end: epoch to which it is.

    Returns:
        Falls in nats, or None where the nearest checkpoints are one, or the first cue is not there at the first one.
    """
    kept = network.run.checkpoint_epochs.tolist()
    rows = [min(range(len(kept)), key=lambda i: abs(kept[i] - epoch)) for epoch in (begin, end)]
    before, after = (int(kept[row]) for row in rows)
    if before >= after or not float(progress[before]) >= HALF_WAY:
        return None
    second = CUES[1 - CUES.index(first)]
    thetas = [network.run.checkpoints[row] for row in rows]
    logits = {name: [_logits(network, name, theta) for theta in thetas] for name in ("mixed", first, second)}
    targets = network.views.mixed.test.targets[:NUM_IMAGES]
    return {"epochs": [before, after]} | explained(logits["mixed"], logits[first], logits[second], targets)


def explained(
    mixed: list[Tensor], first: list[Tensor], second: list[Tensor], targets: Tensor, *, seed: int = 0
) -> dict[str, Any]:
    """Fall of the mixed loss, what either cue's change explains at its best weight, and what is beyond the first's.

    Each is a pair of logits (images, classes), before and after; targets (images,).
    """
    loss = [F.cross_entropy(z.double(), targets, reduction="none") for z in mixed]  # (images,) each
    with_first, with_second = (_shifted(mixed[0], change, targets) for change in (first, second))  # (weights, images)
    num = len(targets)
    drawn = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=NUM_DRAWS) / num  # (draws, images)
    again = (drawn @ with_first.numpy().T).min(1) - drawn @ loss[1].numpy()
    low, high = np.quantile(again, [0.025, 0.975])
    start = float(loss[0].mean())
    best = float(with_first.mean(1).min())
    return {
        "fall": start - float(loss[1].mean()),
        "first": start - best,
        "second": start - float(with_second.mean(1).min()),
        "weight": float(WEIGHTS[with_first.mean(1).argmin()]),
        "beyond": best - float(loss[1].mean()),
        "interval": [float(low), float(high)],
    }


def _shifted(start: Tensor, change: list[Tensor], targets: Tensor) -> Tensor:
    """(weights, images) losses of logits that change by a multiple of what another pair changes by."""
    by = (change[1] - change[0]).double()
    return torch.stack([F.cross_entropy(start.double() + a * by, targets, reduction="none") for a in WEIGHTS])


@torch.no_grad()
def _logits(network: Learning, name: str, theta: Tensor) -> Tensor:
    """(images, classes) on a held-out view."""
    weights = ParameterSpace(network.model).unflatten(theta)
    inputs = getattr(network.views, name).test.inputs[:NUM_IMAGES]
    found: Tensor = torch.func.functional_call(network.model, weights, (inputs,))
    return found
