"""Theme "order": does training pass one circuit and then both, and is it trapped in between?

Where canyon floors are flat, a network that has one circuit stays: the joint loss no longer falls. Where they slope, it
goes on until it has both. The history of `learn` has a row per epoch, too coarse for the order of competences that
come within one; so the same recipe (start, data, rate, batch size) is run once more over its first epochs, with a row
every few steps. Batches come in another order there, which is part of what the seeds differ in.

A cue's progress is the share of the way from chance to the accuracy that the whole training ended with; where that is
below one half, it was not learned, and has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
QUICK, FULL = {"epochs": 12, "log_every": 12, "images": 400}, {"epochs": 25, "log_every": 6, "images": 2000}
VIEWS = ("mixed", *CUES)


def measure(
    network: Learning, *, quick: bool = False, epochs: int | None = None, log_every: int | None = None
) -> dict[str, Any]:
    """When each competence came, and how the mixed loss fell in between; None where it did not come in time."""
    sizes = QUICK if quick else FULL
    epochs = min(epochs or sizes["epochs"], int(network.run.epochs[-1]))
    every = log_every or sizes["log_every"]
    run = early(network, epochs=epochs, log_every=every, images=sizes["images"])
    finals = {name: float(network.run.accuracies[name][-1]) for name in VIEWS}
    progress = {name: _progress(run.accuracies[name][0], finals[name]) for name in VIEWS}  # (logs,) each
    half, most_of_it = (
        {name: _crossing(run.steps, progress[name], share) for name in VIEWS} for share in (HALF, MOST)
    )
    first = min(CUES, key=lambda cue: half[cue])
    second = CUES[1 - CUES.index(first)]
    until = half[second] if math.isfinite(half[second]) else float(run.steps[-1])
    there = _row(run.steps, most_of_it[first])
    epoch_of = {name: _progress(network.run.accuracies[name], finals[name]) for name in VIEWS}
    return {
        "steps": run.steps.tolist(),
        "steps_per_epoch": _steps_per_epoch(network),
        "accuracies": {name: run.accuracies[name][0].tolist() for name in VIEWS},
        "losses": {name: run.losses[name][0].tolist() for name in VIEWS},
        "final_accuracies": finals,
        "half": {name: _plain(time) for name, time in half.items()},
        "most": {name: _plain(time) for name, time in most_of_it.items()},
        "most_in_epochs": {name: _plain(_crossing(network.run.epochs, epoch_of[name], MOST)) for name in VIEWS},
        "first": first if math.isfinite(half[first]) else None,
        "other_progress_at_most": None if there is None else float(progress[second][there]),
        "between": _between(network, run, (most_of_it[first], until), first, sizes["images"]),
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
    """The first epochs of the network's training once more, with a row every few steps and the weights at each."""
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
        snapshots="*",
        log_every=log_every,
        progress=False,
    )


def claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """One circuit, then both, and no trap between them, over seeds."""
    sequential = [_is_below(row["other_progress_at_most"], HALF) for row in rows]
    before = [
        row["first"] is not None and _late(row["half"], row["first"]) <= _late(row["half"], "mixed") for row in rows
    ]
    between = [row["between"] for row in rows if row["between"] is not None]
    is_free = [
        row["between"] is not None and row["between"]["fall"][1] > 0 and row["between"]["slowest_third"] > 0
        for row in rows
    ]
    firsts = ", ".join(f"{cue} in {sum(row['first'] == cue for row in rows)}" for cue in CUES)
    half = ", ".join(f"{name} {_epochs(rows, name)}" for name in VIEWS)
    if between:
        told = (
            f"From there until the other cue has gone half of its way the mixed loss falls by "
            f"{mean_interval([b['fall'][0] for b in between])} nats (that of the first cue alone by "
            f"{mean_interval([b['own_fall'] for b in between])}), {mean_interval([b['rate'] for b in between])} per "
            f"epoch, {mean_interval([b['slowest_third'] for b in between])} in the slowest third of that time"
        )
    else:
        told = "The time between the two cues was too short to be measured, or no cue came so far"
    other = [row["other_progress_at_most"] for row in rows if row["other_progress_at_most"] is not None]
    lag = f"has gone {mean_interval([100 * p for p in other], unit=' %')}" if other else "has not gone the whole"
    return [
        Claim(
            number=20,
            name="training learns one circuit, then both, and is not trapped between them",
            post="flat canyons would stop descent after one circuit; sloped ones lead it on from one to both",
            measured=f"half of the way from chance to the final accuracy {over_seeds(len(rows))}, in epochs: {half}. "
            f"First cue: {firsts} of {len(rows)}; when it has gone 90 % of its way the other one {lag} of its own "
            f"(less than half in {most_of(sequential)}). {told}".strip(),
            null="on a flat floor the loss stays where the first circuit has brought it: a fall of 0",
            rule="three parts, each in most seeds: when the first cue has gone 90 % of its way, the other has gone "
            "less than half of its own; the first cue comes no later than the mixed images (half of the way, to the "
            "row); from there until the other cue has gone half of its way the mixed loss falls (95 % interval over "
            "images, above 0) and does so in each third of that time",
            verdict=judged(most(sequential), most(before), most(is_free)),
        )
    ]


def _between(
    network: Learning, run: StackRun, times: tuple[float, float], first: str, images: int
) -> dict[str, Any] | None:
    """Fall of the mixed loss from one time to another: mean and interval over images; rates per epoch."""
    rows = [_row(run.steps, time) for time in times]
    if rows[0] is None or rows[1] is None or rows[1] - rows[0] < 3:
        return None
    view = _first_images(network, "mixed", images)
    before, after = (_image_losses(run, row, view) for row in rows if row is not None)
    own = run.losses[first][0]
    fall = (before - after).numpy()
    half = float(student.ppf(0.975, len(fall) - 1)) * fall.std(ddof=1) / math.sqrt(len(fall))
    chosen = slice(rows[0], rows[1] + 1)
    epochs = run.steps[chosen].numpy() / _steps_per_epoch(network)
    losses = run.losses["mixed"][0, chosen].numpy()
    thirds = np.array_split(np.arange(len(losses)), 3)
    # Each third begins where the one before it ends, so that a third of two rows has a slope too.
    stretches = [slice(max(int(part[0]) - 1, 0), int(part[-1]) + 1) for part in thirds]
    rates = [_rate(epochs[stretch], losses[stretch]) for stretch in stretches]
    return {
        "begin": float(run.steps[chosen][0]),
        "end": float(run.steps[chosen][-1]),
        "fall": [float(fall.mean()), float(fall.mean() - half), float(fall.mean() + half)],
        "own_fall": float(own[rows[0]] - own[rows[1]]),  # of the first cue's loss, for comparison
        "rate": float((losses[0] - losses[-1]) / (epochs[-1] - epochs[0])),
        "slowest_third": min(rates),
    }


def _rate(epochs: np.ndarray[Any, Any], losses: np.ndarray[Any, Any]) -> float:
    """Fall per epoch, of a least-squares line."""
    return -float(np.polyfit(epochs, losses, 1)[0])


@torch.no_grad()
def _image_losses(run: StackRun, row: int, view: tuple[Tensor, Tensor]) -> Tensor:
    weights = {name: rows[0, row] for name, rows in run.snapshots.items()}
    logits = torch.func.functional_call(SigmoidCNN(seed=0), weights, (view[0],))
    return F.cross_entropy(logits, view[1], reduction="none").double()


def _first_images(network: Learning, name: str, images: int) -> tuple[Tensor, Tensor]:
    test: PairedImages = getattr(network.views, name).test
    return test.inputs[:images], test.targets[:images]


def _steps_per_epoch(network: Learning) -> int:
    return math.ceil(len(network.views.mixed.train) / BATCH_SIZE)


def _progress(accuracies: Tensor, final: float) -> Tensor:
    return (accuracies - CHANCE) / (final - CHANCE if final >= LEARNED else math.nan)


def _crossing(steps: Tensor, progress: Tensor, share: float) -> float:
    return float(first_crossing(steps, progress[None], share, is_rising=True)[0])


def _row(steps: Tensor, time: float) -> int | None:
    return int((steps >= time).nonzero()[0, 0]) if math.isfinite(time) else None


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
