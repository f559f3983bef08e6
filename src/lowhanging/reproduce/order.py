"""Theme "order": does training pass one circuit and then both, and is it trapped in between?

Where canyon floors are flat, a network that has one circuit stays: the joint loss no longer falls. Where they slope, it
goes on until it has both. Two records answer. The history of `learn` has a row per epoch: how far is the second cue
when the first has gone most of its way, and what does the mixed loss do from there until the second has too? The
loss of the first cue alone over the same epochs tells whether it was only the first circuit that went on getting
better. Which competence comes first is decided within one epoch, so the same recipe (start, data, rate, batch size) is
run once more over its first epochs, with a row every few steps; its batches come in another order.

A cue's progress is the share of the way from chance to the accuracy that the whole training ended with; where that is
below one half, it was not learned, and has none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import linregress
from scipy.stats import t as student
from torch import Tensor

from lowhanging.circuits.learning_times import Competences, first_crossing
from lowhanging.datasets import PairedImages
from lowhanging.models import SigmoidCNN
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, most_of, over_seeds
from lowhanging.reproduce.learning import CUES, Learning
from lowhanging.stacks import StackRun, train_stack

CHANCE, LEARNED = 0.1, 0.5
HALF, MOST = 0.5, 0.9  # of the way
LR, BATCH_SIZE = 0.02, 64  # those of `learn`
QUICK, FULL = {"epochs": 12, "log_every": 12, "images": 400}, {"epochs": 20, "log_every": 6, "images": 2000}
SHORTEST = 6  # epochs in which three thirds can be told apart
VIEWS = ("mixed", *CUES)


def measure(
    network: Learning, *, quick: bool = False, epochs: int | None = None, log_every: int | None = None
) -> dict[str, Any]:
    """When each competence came, and how the mixed loss fell in between; None where it did not come in time."""
    sizes = QUICK if quick else FULL
    epochs = min(epochs or sizes["epochs"], int(network.run.epochs[-1]))
    run = early(network, epochs=epochs, log_every=log_every or sizes["log_every"], images=sizes["images"])
    whole = network.run
    finals = {name: float(whole.accuracies[name][-1]) for name in VIEWS}
    progress = {name: _progress(whole.accuracies[name], finals[name]) for name in VIEWS}  # (epochs + 1,) each
    half = {name: _crossing(run.steps, _progress(run.accuracies[name][0], finals[name]), HALF) for name in VIEWS}
    most_of_it = {name: _crossing(whole.epochs, progress[name], MOST) for name in VIEWS}
    first = min(CUES, key=lambda cue: (half[cue], most_of_it[cue]))
    second = CUES[1 - CUES.index(first)]
    is_there = math.isfinite(most_of_it[first])
    return {
        "steps": run.steps.tolist(),
        "steps_per_epoch": _steps_per_epoch(network),
        "accuracies": {name: run.accuracies[name][0].tolist() for name in VIEWS},
        "losses": {name: run.losses[name][0].tolist() for name in VIEWS},
        "losses_per_epoch": {name: whole.losses[name].tolist() for name in VIEWS},
        "final_accuracies": finals,
        "half": {name: _plain(time) for name, time in half.items()},  # in steps
        "most": {name: _plain(time) for name, time in most_of_it.items()},  # in epochs
        "first": first if math.isfinite(half[first]) else None,
        "other_progress_at_most": _plain(float(progress[second][int(most_of_it[first])])) if is_there else None,
        "between": between(whole.losses["mixed"], whole.losses[first], most_of_it[first], most_of_it[second]),
    }


def between(mixed: Tensor, own: Tensor, begin: float, end: float) -> dict[str, Any] | None:
    """How the mixed loss falls from one epoch to another, the last one if `end` is infinite; None if that is too soon.

    Rates are falls per epoch of least-squares lines; the interval of the first is Student's, from the residuals.
    """
    last = int(min(end, len(mixed) - 1))
    if not math.isfinite(begin) or last - begin < SHORTEST:
        return None
    epochs = np.arange(int(begin), last + 1)
    losses = mixed[epochs[0] : last + 1].numpy()
    line = linregress(epochs, losses)
    half = float(student.ppf(0.975, len(epochs) - 2)) * float(line.stderr)
    cuts = [0, len(epochs) // 3, 2 * len(epochs) // 3, len(epochs) - 1]
    thirds = [slice(low, high + 1) for low, high in itertools.pairwise(cuts)]
    return {
        "begin": int(epochs[0]),
        "end": last,
        "fall": float(losses[0] - losses[-1]),
        "own_fall": float(own[epochs[0]] - own[last]),  # of the first cue's loss
        "rate": [-float(line.slope), -float(line.slope) - half, -float(line.slope) + half],
        "slowest_third": min(-float(linregress(epochs[third], losses[third]).slope) for third in thirds),
    }


def competences(rows: Sequence[Mapping[str, Any]]) -> Competences:
    """Progress of all seeds over the epochs that were watched, for `plots.competences`."""
    logs = min(len(row["steps"]) for row in rows)
    progress = {
        name: torch.stack(
            [
                _progress(torch.tensor(row["accuracies"][name][:logs]), row["final_accuracies"][name]).double()
                for row in rows
            ]
        )
        for name in VIEWS
    }
    return Competences(torch.tensor(rows[0]["steps"][:logs]) / rows[0]["steps_per_epoch"], progress, "epoch")


def early(network: Learning, *, epochs: int, log_every: int, images: int) -> StackRun:
    """The first epochs of the network's training once more, with a row every few steps."""
    share = epochs / int(network.run.epochs[-1])
    return train_stack(
        lambda seed: SigmoidCNN(seed=seed),
        network.views.mixed.train,
        [network.run.seed],
        steps=epochs * _steps_per_epoch(network),
        batch_size=BATCH_SIZE,
        lr=LR,
        schedule=lambda done: 0.5 * (1 + math.cos(math.pi * done * share)),
        evaluate={name: _first_images(network, name, images) for name in VIEWS},
        log_every=log_every,
        progress=False,
    )


def claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """One circuit, then both, and no trap between them, over seeds."""
    sequential = [_is_below(row["other_progress_at_most"], HALF) for row in rows]
    before = [
        row["first"] is not None and _late(row["half"], row["first"]) <= _late(row["half"], "mixed") for row in rows
    ]
    found = [row["between"] for row in rows if row["between"] is not None]
    is_free = [
        row["between"] is not None and row["between"]["rate"][1] > 0 and row["between"]["slowest_third"] > 0
        for row in rows
    ]
    firsts = ", ".join(f"{cue} in {sum(row['first'] == cue for row in rows)}" for cue in CUES)
    half = ", ".join(f"{name} {_epochs(rows, name)}" for name in VIEWS)
    if found:
        told = (
            "From there until the other cue has gone as far too "
            f"({mean_interval([b['end'] - b['begin'] for b in found])} epochs) the mixed loss falls by "
            f"{mean_interval([b['fall'] for b in found])} nats, that of the first cue alone by "
            f"{mean_interval([b['own_fall'] for b in found])}; per epoch by "
            f"{mean_interval([b['rate'][0] for b in found])}, {mean_interval([b['slowest_third'] for b in found])} in "
            "the slowest third of that time"
        )
    else:
        told = "The time between the two cues was too short to be measured, or no cue came so far"
    other = [row["other_progress_at_most"] for row in rows if row["other_progress_at_most"] is not None]
    lag = f"has gone {mean_interval([100 * p for p in other], unit=' %')}" if other else "has not gone the whole"
    return [
        Claim(
            number=20,
            part="b",
            name="training learns one circuit, then both, and is not trapped between them",
            post="flat canyons would stop descent after one circuit; sloped ones lead it on from one to both",
            measured=f"half of the way from chance to the final accuracy {over_seeds(len(rows))}, in epochs: {half}. "
            f"First cue: {firsts} of {len(rows)}; when it has gone 90 % of its way the other one {lag} of its own "
            f"(less than half in {most_of(sequential)}). {told}".strip(),
            null="on a flat floor the loss stays where the first circuit has brought it: a fall of 0",
            rule="three parts, each in most seeds: when the first cue has gone 90 % of its way, the other has gone "
            "less than half of its own; the first cue comes no later than the mixed images (half of the way, to the "
            "row); from there until the other cue has gone 90 % of its way too the mixed loss falls (95 % interval of "
            "the line through its epochs, above 0) and does so in each third of that time",
            verdict=judged(most(sequential), most(before), most(is_free)),
        )
    ]


def _first_images(network: Learning, name: str, images: int) -> tuple[Tensor, Tensor]:
    test: PairedImages = getattr(network.views, name).test
    return test.inputs[:images], test.targets[:images]


def _steps_per_epoch(network: Learning) -> int:
    return math.ceil(len(network.views.mixed.train) / BATCH_SIZE)


def _progress(accuracies: Tensor, final: float) -> Tensor:
    return (accuracies - CHANCE) / (final - CHANCE if final >= LEARNED else math.nan)


def _crossing(steps: Tensor, progress: Tensor, share: float) -> float:
    return float(first_crossing(steps, progress[None], share, is_rising=True)[0])


def _plain(time: float) -> float | None:
    return time if math.isfinite(time) else None


def _late(times: Mapping[str, float | None], name: str) -> float:
    time = times[name]
    return math.inf if time is None else time


def _is_below(value: float | None, ceiling: float) -> bool:
    return value is not None and value < ceiling


def _epochs(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    times = [row["half"][name] / row["steps_per_epoch"] for row in rows if row["half"][name] is not None]
    late = len(rows) - len(times)
    return (mean_interval(times) if times else "none") + (f" ({late} not in time)" if late else "")
