"""Theme "order": one circuit, then both, and the fall of the mixed loss in between.

Where canyon floors are flat, a network that has one circuit stays: the joint loss no longer falls. Where they slope, it
goes on until it has both. Two records answer. The history of `learn` has a row per epoch: how far is the second cue
when the first has gone most of its way, and what does the mixed loss do from there until the second has too? Which
competence comes first is decided within one epoch, so the same recipe (start, data, rate, batch size) is run once more
over its first epochs, with a row every few steps; its batches come in another order.

A cue's progress is the share of the way from chance to the accuracy that the whole training ended with; where that is
below one half, it was not learned, and has none.

A falling mixed loss could be the first circuit alone that gets better. Let z(t) be the logits on mixed images at epoch
t, and z1(t) those on the same images' first cue alone. If nothing but the first circuit changes between two epochs, and
circuits add their logits, then

    z(t1) = z(t0) + a (z1(t1) - z1(t0))

with a the weight of that circuit in mixed images, which nobody knows. So a is chosen to the null's advantage: whichever
of 0, 0.05, ..., 3 makes the mixed loss lowest. What the loss has fallen beyond that, its excess drop, is not the first
circuit's, at any weight. It may still be the first circuit's where both cues are there, of which images of one cue know
nothing; that the same rule makes the *second* cue's change explain it speaks against that. The interval is a bootstrap
over held-out images, a chosen anew in each sample; it knows nothing of other trainings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import linregress
from scipy.stats import t as student
from torch import Tensor

from lowhanging.circuits.learning_times import Competences, first_crossing
from lowhanging.models import SigmoidCNN
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, most_of, over_seeds
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.store import Row
from lowhanging.reproduce.themes.learning import CUES, TASKS, Learning, first_images, views_of
from lowhanging.training.stack import StackRun, train_stack

CHANCE, LEARNED = 0.1, 0.5
HALF, MOST = 0.5, 0.9  # of the way; half of the first cue's is done where the excess drop begins
LR, BATCH_SIZE = 0.02, 64  # those of `learn`
QUICK, FULL = {"epochs": 12, "log_every": 12, "images": 400}, {"epochs": 20, "log_every": 6, "images": 2000}
SHORTEST = 6  # epochs in which three thirds can be told apart
WEIGHTS = torch.linspace(0.0, 3.0, 61, dtype=torch.float64)  # of the first circuit in mixed images
NUM_IMAGES, NUM_DRAWS = 2000, 2000  # of the bootstrap


def measure(context: Context, *, num_epochs: int | None = None, log_every: int | None = None) -> Row:
    """When each competence came, and how the mixed loss fell in between; None where it did not come in time."""
    network, store, sizes = context.network, context.store, QUICK if context.sizes.is_quick else FULL
    num_epochs = min(num_epochs or sizes["epochs"], int(network.run.epochs[-1]))
    rows = log_every or sizes["log_every"]

    def trained() -> StackRun:
        return early(
            network, num_epochs=num_epochs, log_every=rows, images=sizes["images"], resume=store.resume("early")
        )

    run = store.result("early", trained)
    whole = network.run
    finals = {name: float(whole.accuracies[name][-1]) for name in TASKS}
    progress = {name: _progress(whole.accuracies[name], finals[name]) for name in TASKS}  # (epochs + 1,) each
    half = {name: _crossing(run.steps, _progress(run.accuracies[name][0], finals[name]), HALF) for name in TASKS}
    most_of_it = {name: _crossing(whole.epochs, progress[name], MOST) for name in TASKS}
    first = min(CUES, key=lambda cue: (half[cue], most_of_it[cue]))
    second = CUES[1 - CUES.index(first)]
    is_there = math.isfinite(most_of_it[first])
    found = between(whole.losses["mixed"], whole.losses[first], most_of_it[first], most_of_it[second])
    return {
        "steps": run.steps.tolist(),
        "steps_per_epoch": _steps_per_epoch(network),
        "accuracies": {name: run.accuracies[name][0].tolist() for name in TASKS},
        "losses": {name: run.losses[name][0].tolist() for name in TASKS},
        "losses_per_epoch": {name: whole.losses[name].tolist() for name in TASKS},
        "final_accuracies": finals,
        "half": {name: _plain(time) for name, time in half.items()},  # in steps
        "most": {name: _plain(time) for name, time in most_of_it.items()},  # in epochs
        "first": first if math.isfinite(half[first]) else None,
        "other_progress_at_most": _plain(float(progress[second][int(most_of_it[first])])) if is_there else None,
        "between": found,
        "excess_drop": excess_drop(network, first, progress[first], found["begin"], found["end"]) if found else None,
    }


def between(mixed: Tensor, own: Tensor, begin: float, end: float) -> Row | None:
    """How the mixed loss falls from one epoch to another, the last one if `end` is infinite; None if that is too soon.

    Rates are falls per epoch of least-squares lines; the interval of the first is Student's, from the residuals, epochs
    taken as independent.
    """
    last = int(min(end, len(mixed) - 1))
    if not math.isfinite(begin) or last - begin < SHORTEST:
        return None
    epochs = np.arange(int(begin), last + 1)
    losses = mixed[epochs[0] : last + 1].numpy()
    cuts = [0, len(epochs) // 3, 2 * len(epochs) // 3, len(epochs) - 1]
    thirds = [slice(low, high + 1) for low, high in itertools.pairwise(cuts)]
    return {
        "begin": int(epochs[0]),
        "end": last,
        "fall": float(losses[0] - losses[-1]),
        "own_fall": float(own[epochs[0]] - own[last]),  # of the first cue's loss
        "rate": _falling(epochs, losses),
        "slowest_third": min(-float(linregress(epochs[third], losses[third]).slope) for third in thirds),
    }


def _falling(epochs: np.ndarray, values: np.ndarray) -> list[float]:
    """Fall per epoch of a least-squares line, with its 95 % interval."""
    line = linregress(epochs, values)
    half = float(student.ppf(0.975, len(epochs) - 2)) * float(line.stderr)
    return [-float(line.slope), -float(line.slope) - half, -float(line.slope) + half]


def competences(rows: Sequence[Row]) -> Competences:
    """Progress of all seeds over the epochs that were watched, for `plots.competences`."""
    logs = min(len(row["steps"]) for row in rows)
    progress = {
        name: torch.stack(
            [
                _progress(torch.tensor(row["accuracies"][name][:logs]), row["final_accuracies"][name]).double()
                for row in rows
            ]
        )
        for name in TASKS
    }
    return Competences(torch.tensor(rows[0]["steps"][:logs]) / rows[0]["steps_per_epoch"], progress, "epoch")


def early(network: Learning, *, num_epochs: int, log_every: int, images: int, resume: Path | None = None) -> StackRun:
    """The first epochs of the network's training once more, with a row every few steps."""
    share = num_epochs / int(network.run.epochs[-1])
    return train_stack(
        lambda seed: SigmoidCNN(seed=seed),
        network.views.mixed.train,
        [network.run.seed],
        num_steps=num_epochs * _steps_per_epoch(network),
        batch_size=BATCH_SIZE,
        lr=LR,
        schedule=lambda done: 0.5 * (1 + math.cos(math.pi * done * share)),
        evaluate={name: first_images(view.test, images) for name, view in views_of(network.views).items()},
        log_every=log_every,
        resume=resume,
        progress=False,
    )


def excess_drop(network: Learning, first: str, progress: Tensor, begin: int, end: int) -> Row | None:
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
    if before >= after or not float(progress[before]) >= HALF:
        return None
    second = CUES[1 - CUES.index(first)]
    thetas = [network.run.checkpoints[row] for row in rows]
    logits = {name: [_logits(network, name, theta) for theta in thetas] for name in ("mixed", first, second)}
    targets = network.views.mixed.test.targets[:NUM_IMAGES]
    return {"epochs": [before, after], **explained(logits["mixed"], logits[first], logits[second], targets)}


def explained(mixed: list[Tensor], first: list[Tensor], second: list[Tensor], targets: Tensor, *, seed: int = 0) -> Row:
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
        "excess_drop": best - float(loss[1].mean()),
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
    inputs, _ = first_images(views_of(network.views)[name].test, NUM_IMAGES)
    found: Tensor = torch.func.functional_call(network.model, weights, (inputs,))
    return found


def claims(rows: Sequence[Row]) -> list[Claim]:
    """One circuit, then both, and no trap between them, over seeds."""
    progress = [row["other_progress_at_most"] for row in rows]  # None where the first cue has not come so far
    sequential = [share is not None and share < HALF for share in progress]
    before = [
        row["first"] is not None and _late(row["half"], row["first"]) <= _late(row["half"], "mixed") for row in rows
    ]
    found = [row["between"] for row in rows if row["between"] is not None]
    is_free = [_is_free(row["between"], row["excess_drop"]) for row in rows]
    firsts = ", ".join(f"{cue} in {sum(row['first'] == cue for row in rows)}" for cue in CUES)
    half = ", ".join(f"{name} {_epochs(rows, name)}" for name in TASKS)
    if found:
        fall = (
            "From there until the other cue has gone as far too "
            f"({mean_interval([b['end'] - b['begin'] for b in found])} epochs) the mixed loss falls by "
            f"{mean_interval([b['fall'] for b in found])} nats, per epoch by "
            f"{mean_interval([b['rate'][0] for b in found])}, {mean_interval([b['slowest_third'] for b in found])} in "
            f"the slowest third of that time. {_explained([row['excess_drop'] for row in rows if row['excess_drop']])}"
        )
    else:
        fall = "The time between the two cues was too short to be measured, or no cue came so far"
    other = [share for share in progress if share is not None]
    lag = f"has gone {mean_interval([100 * p for p in other], unit=' %')}" if other else "has not gone the whole"
    return [
        Claim(
            number=20,
            part="b",
            name="training learns one circuit, then both, and is not trapped between them",
            post="flat canyons would stop descent after one circuit; sloped ones lead it on from one to both",
            measured=f"half of the way from chance to the final accuracy {over_seeds(len(rows))}, in epochs: {half}. "
            f"First cue: {firsts} of {len(rows)}; when it has gone 90 % of its way the other one {lag} of its own "
            f"(less than half in {most_of(sequential)}). {fall}".strip(),
            null="on a flat floor the loss stays where the first circuit has brought it: a fall of 0. If the first "
            "circuit alone got better, the mixed logits would change by some multiple of the change of the logits on "
            "that cue alone: nothing of the fall would lie beyond the best multiple. Not told apart: a slope that "
            "leads out, and the noise of small batches, which leads out of flat canyons too; a second circuit that "
            "gets better, and a first one that gets better only where both cues are there",
            rule="three parts, each in most seeds: when the first cue has gone 90 % of its way, the other has gone "
            "less than half of its own; the first cue comes no later than the mixed images (half of the way, to the "
            "row); from there until the other cue has gone 90 % of its way too the mixed loss falls in each third of "
            "that time (its line through the epochs with its 95 % interval above 0), and falls beyond what the change "
            "of the first cue's own logits explains (95 % interval over held-out images above 0)",
            verdict=judged(most(sequential), most(before), most(is_free)),
        )
    ]


def _is_free(found: Row | None, more: Row | None) -> bool:
    """Whether the mixed loss falls all the time, and beyond what the first circuit alone explains."""
    return (
        found is not None
        and found["rate"][1] > 0
        and found["slowest_third"] > 0
        and more is not None
        and more["interval"][0] > 0
    )


def _explained(found: Sequence[Row]) -> str:
    """What each cue's own change explains of the fall between two checkpoints, and what is beyond the first one's."""
    if not found:
        return "No two checkpoints lie near its ends, so that what the first cue explains was not measured"
    epochs = ", ".join(sorted({f"{each['epochs'][0]} to {each['epochs'][1]}" for each in found}))
    first, second, whole = (mean_interval([each[name] for each in found]) for name in ("first", "second", "fall"))
    low, high = found[0]["interval"]
    over = f" [{low:.3g}, {high:.3g}] over held-out images" if len(found) == 1 else ""
    above = "" if len(found) == 1 else f" (above 0 in {most_of(each['interval'][0] > 0 for each in found)})"
    return (
        f"Between the checkpoints nearest to that time (epochs {epochs}) it falls by {whole}: the change of the first "
        f"cue's own logits explains at most {first}, that of the second cue's {second}; beyond the first cue's "
        f"{mean_interval([each['excess_drop'] for each in found])}{over}{above}"
    )


def _steps_per_epoch(network: Learning) -> int:
    return math.ceil(len(network.views.mixed.train) / BATCH_SIZE)


def _progress(accuracies: Tensor, final: float) -> Tensor:
    return (accuracies - CHANCE) / (final - CHANCE if final >= LEARNED else math.nan)


def _crossing(steps: Tensor, progress: Tensor, share: float) -> float:
    return float(first_crossing(steps, progress[None], threshold=share, is_rising=True)[0])


def _plain(time: float) -> float | None:
    return time if math.isfinite(time) else None


def _late(times: Mapping[str, float | None], name: str) -> float:
    time = times[name]
    return math.inf if time is None else time


def _epochs(rows: Sequence[Row], name: str) -> str:
    times = [row["half"][name] / row["steps_per_epoch"] for row in rows if row["half"][name] is not None]
    late = len(rows) - len(times)
    return (mean_interval(times) if times else "none") + (f" ({late} not in time)" if late else "")
