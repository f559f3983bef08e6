"""Theme "logits": do the two circuits of one network combine as a sum of logits?

Held against three things. The label: images of one label resemble each other in logits, so the sum is fitted within
labels too, and on cues of other images of the same label. The untrained network: it is nearly linear, and a linear
network's logits add exactly, so that a large share by itself says nothing about circuits. And a mixture: circuits could
be averaged as probabilities instead. A network that does not read both cues has nothing to combine, however well its
logits add: it speaks against every part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowhanging.circuits.logit_sum import LogitSum, logit_sum
from lowhanging.models import SigmoidCNN
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, most_of, over_seeds, percent
from lowhanging.reproduce.learning import CUES, Learning

ENOUGH = 0.5  # share of the variance
READ = 0.5  # accuracy from which a cue alone counts as read
_NOT_KEPT = ("predicted", "observed", "labels")


def measure(network: Learning, *, quick: bool = False) -> dict[str, Any]:
    """Shares of the mixed test logits that the single cues explain, at the minimum and before training."""
    untrained = SigmoidCNN(seed=network.run.seed)
    num_draws = 1000 if quick else 10_000
    losses, theta = network.losses, network.minimum.theta
    return {
        "accuracies": {cue: losses[cue].evaluate(theta)[1] for cue in CUES},
        "trained": _numbers(sums(network, num_draws=num_draws)),
        "untrained": _numbers(sums(network, untrained, num_draws=num_draws)),
    }


def sums(network: Learning, model: nn.Module | None = None, *, num_draws: int = 2000) -> LogitSum:
    """`logit_sum` of the three test views, by default at the minimum."""
    network_at = network.losses["mixed"].model_at(network.minimum.theta) if model is None else model
    views = network.views
    with torch.no_grad():
        number, pattern, mixed = (network_at(view.test.inputs) for view in (views.number, views.pattern, views.mixed))
    return logit_sum(mixed, dict(zip(CUES, (number, pattern), strict=True)), views.mixed.test.targets,
                     num_draws=num_draws, seed=network.run.seed)  # fmt: skip


def claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Logits add, over seeds."""
    found = [row["trained"] for row in rows]

    def mean(*path: str, state: str = "trained") -> str:
        return mean_interval([100 * _at(row[state], path) for row in rows], unit=" %")

    alone = ", ".join(f"{mean('within', cue)} by {cue} alone" for cue in CUES)
    unique = ", ".join(f"{mean('unique', cue)} by {cue} only" for cue in CUES)
    slopes = ", ".join(f"{cue} {mean_interval([row['slopes'][cue] for row in found])}" for cue in CUES)
    kl = {way: mean_interval([row["divergence"][way] for row in found]) for way in ("logits", "probabilities")}
    is_read = [all(row["accuracies"][cue] >= READ for cue in CUES) for row in rows]
    parts = {
        "overall": [
            row["shares"]["both"] >= ENOUGH and row["intervals"]["both"][0] > row["same_label"] for row in found
        ],
        "within": [row["within"]["both"] >= ENOUGH for row in found],
        "unique": [all(low > 0 for low, _ in row["unique_intervals"].values()) for row in found],
        "mixture": [row["divergence_gain"][1] > 0 for row in found],
    }
    judged_on = {name: [a and b for a, b in zip(flags, is_read, strict=True)] for name, flags in parts.items()}
    return [
        Claim(
            number=19,
            name="modules combine at the logit level",
            post="circuits add their logits, so that redundant ones multiply their evidence",
            measured=f"share of the mixed logits' variance on held-out images {over_seeds(len(rows))}: "
            f"{mean('shares', 'both')} by a sum of both single-cue logits. Within labels "
            f"{mean('within', 'both')} by both, {alone}; {unique}; slopes {slopes} (1 in a plain sum). "
            f"KL divergence to the fitted sum {kl['logits']} nats, to the best average of probabilities "
            f"{kl['probabilities']}. In {most_of(judged_on['within'])} at least {percent(ENOUGH)} within labels",
            null=f"single cues of other images of the same label: {mean('same_label')} (within labels "
            f"{mean('same_label_within')}); of any other image: {mean('other_label')}. The untrained network, nearly "
            f"linear: {mean('shares', 'both', state='untrained')}, so that a large share alone is no sign of circuits",
            rule=f"four parts, each in most seeds (one that reads a cue alone with less than {percent(READ)} accuracy "
            f"counts against all): both explain at least {percent(ENOUGH)}, with the 95 % interval over "
            f"images above what the label alone gives; within labels at least {percent(ENOUGH)}; each cue adds to "
            "the other (intervals above 0); the sum of logits is nearer to the mixed answers than the best average of "
            "probabilities (interval above 0)",
            verdict=judged(*(most(flags) for flags in judged_on.values())),
        )
    ]


def _numbers(found: LogitSum) -> dict[str, Any]:
    """Plain numbers, without the logits themselves."""
    kept = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    plain: dict[str, Any] = _plain({name: value for name, value in kept.items() if name not in _NOT_KEPT})
    return {"num_images": len(found.labels), **plain}


def _at(row: Mapping[str, Any], path: Sequence[str]) -> float:
    """The number at row[path[0]][path[1]] ..."""
    found: Any = row
    for key in path:
        found = found[key]
    return float(found)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value
