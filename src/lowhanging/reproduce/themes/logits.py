"""Theme "logits": the logits on both cues as a sum of those on each cue alone.

Held against three things. The label: images of one label resemble each other in logits, so the sum is fitted within
labels too, and on cues of other images of the same label. The untrained network: it is nearly linear, and a linear
network's logits add exactly, so that a large share by itself says nothing about circuits. And an average: circuits
could be averaged as probabilities instead, with the freedom that the sum has, and with none for either. One cue alone
may explain nearly as much as both: what each adds to the other is the evidence, not the total. A network that does not
read both cues has nothing to combine, however well its logits add: it speaks against every part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowhanging.circuits.logit_sum import LogitSum, logit_sum
from lowhanging.models import SigmoidCNN
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, over_seeds
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.store import Row
from lowhanging.reproduce.themes.learning import CUES, Learning

ENOUGH = 0.5  # share of the variance
READ = 0.5  # accuracy from which a cue alone counts as read
_NOT_KEPT = ("predicted", "observed", "labels")


def measure(context: Context) -> Row:
    """Shares of the mixed test logits that the single cues explain, at the minimum and before training."""
    network = context.network
    untrained = SigmoidCNN(seed=network.run.seed)
    num_draws = 1000 if context.sizes.is_quick else 10_000
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
    cues = dict(zip(CUES, (number, pattern), strict=True))
    return logit_sum(mixed, cues, labels=views.mixed.test.targets, num_resamples=num_draws, seed=network.run.seed)


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Logits add, over seeds."""
    found = [row["trained"] for row in rows]
    is_read = [all(row["accuracies"][cue] >= READ for cue in CUES) for row in rows]
    parts = {
        "sum": [_is_sum(row) for row in found],
        "fitted": [row["divergence_gain"][1] > 0 for row in found],
        "plain": [row["plain_gain"][1] > 0 for row in found],
    }
    judged_on = {name: [a and b for a, b in zip(flags, is_read, strict=True)] for name, flags in parts.items()}
    free = found[0]["num_free"]
    untrained = mean_interval([row["untrained"]["shares"]["both"] for row in rows], scale="share")
    return [
        Claim(
            number=19,
            name="modules combine at the logit level",
            post="circuits add their logits, so that redundant ones multiply their evidence",
            measured=_measured(found),
            null=f"single cues of other images of the same label: {_share(rows, 'same_label')} (within labels "
            f"{_share(rows, 'same_label_within')}); of any other image: {_share(rows, 'other_label')}. The untrained "
            f"network, nearly linear: {untrained}, so that a large share alone is no sign of circuits. An average of "
            "both cues' probabilities, fitted alike with no less freedom "
            f"({free['probabilities']} free numbers; the sum has {free['logits']}): KL divergence "
            f"{_nats(found, 'divergence', 'probabilities')}; with nothing fitted "
            f"{_nats(found, 'plain_divergence', 'probabilities')}",
            rule="three parts, each in most seeds (one that reads a cue alone with less than "
            f"{100 * READ:.0f} % accuracy counts against all). Sum: both cues explain at least {100 * ENOUGH:.0f} % of "
            f"the variance, more than the label alone (95 % interval over images), and at least {100 * ENOUGH:.0f} % "
            "within labels, and each adds to the other there (intervals above 0), as one cue could reach the total "
            "alone. Fitted: on images not fitted to, the sum of logits is nearer to the mixed answers than the average "
            "of probabilities (interval above 0). Plain: so it is with nothing fitted",
            verdict=judged(*(most(flags) for flags in judged_on.values())),
        )
    ]


def _is_sum(row: Row) -> bool:
    """Whether the sum describes the mixed logits, and both cues are needed for it."""
    overall = row["shares"]["both"] >= ENOUGH and row["intervals"]["both"][0] > row["same_label"]
    return overall and row["within"]["both"] >= ENOUGH and all(low > 0 for low, _ in row["unique_intervals"].values())


def _measured(found: Sequence[Row]) -> str:
    within = {key: [row["within"][key] for row in found] for key in ("both", *CUES)}
    strong, weak = sorted(CUES, key=lambda cue: -sum(within[cue]))
    adds = {cue: mean_interval([100 * row["unique"][cue] for row in found], unit=" points") for cue in CUES}
    slopes = ", ".join(f"{cue} {mean_interval([row['slopes'][cue] for row in found], scale='log')}" for cue in CUES)
    entropy = {
        name: mean_interval([row["cross_entropy"][name] for row in found], scale="log")
        for name in ("mixed", "logits", "probabilities")
    }
    overall = mean_interval([row["shares"]["both"] for row in found], scale="share")
    both, first, second = (mean_interval(within[key], scale="share") for key in ("both", strong, weak))
    return (
        f"variance of the mixed logits on held-out images {over_seeds(len(found))}: a sum of both single-cue logits "
        f"explains {overall}. Within labels both explain {both}, {strong} alone already {first}, {weak} alone "
        f"{second}: the evidence is not this total but what each adds to the other, "
        f"{strong} {adds[strong]}, {weak} {adds[weak]}. Slopes: {slopes} (1 in a plain sum). "
        "KL divergence from the mixed answers, fitted on one half of the images and taken on the other: sum of logits "
        f"{_nats(found, 'divergence', 'logits')}, "
        + ", ".join(f"{cue} alone {_nats(found, 'divergence', cue)}" for cue in CUES)
        + f"; the average of probabilities minus the sum {_gains(found, 'divergence_gain')}. With nothing "
        f"fitted: plain sum {_nats(found, 'plain_divergence', 'logits')}; the plain average minus that "
        f"{_gains(found, 'plain_gain')}; cross-entropy with the labels, in nats: plain sum {entropy['logits']}, plain "
        f"average {entropy['probabilities']}, the network itself {entropy['mixed']}"
    )


def _share(rows: Sequence[Row], name: str) -> str:
    return mean_interval([row["trained"][name] for row in rows], scale="share")


def _nats(found: Sequence[Row], kind: str, key: str) -> str:
    return mean_interval([row[kind][key] for row in found], unit=" nats", scale="log")


def _gains(found: Sequence[Row], kind: str) -> str:
    """Over networks, and of each one over its images."""
    over_images = ", ".join(f"[{row[kind][1]:.2g}, {row[kind][2]:.2g}]" for row in found)
    if len(found) == 1:
        return f"{found[0][kind][0]:.2g} nats {over_images} (over images)"
    gains = mean_interval([row[kind][0] for row in found], unit=" nats")
    return f"{gains}, over the images of each network {over_images}"


def _numbers(found: LogitSum) -> dict[str, Any]:
    """Plain numbers, without the logits themselves."""
    kept = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    plain: dict[str, Any] = _plain({name: value for name, value in kept.items() if name not in _NOT_KEPT})
    return {"num_images": len(found.labels), **plain}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value
