r"""A second cue offered to networks that have learned a first one: refined, or overhauled.

The write-up defines the prior so: once a solution that reduces the loss is found, it is more efficient to refine it
than to overhaul it, even if another one were simpler. A network learns one of two cues, then both are offered, and the
second is timed: against a fresh network that is offered both, and against one that is offered the second alone.

What can be expected without any prior: a loss that the first circuit has lowered has a smaller gradient left for the
second. With logits w_1 + w_2, one weight for each of two perfect cues, and the exponential loss exp(-(w_1 + w_2)),
gradient flow for a time T on the first cue makes the second later by a factor of exactly 1 + T.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lowhanging.circuits.learning_times import LearningTimes, TimesRatio, first_crossing
from lowhanging.datasets.mnist import MNIST, DigitImages, mnist
from lowhanging.datasets.paired_mnist import paired_mnist
from lowhanging.errors import a_type, argument_message, check_choice, check_count, check_names, check_real
from lowhanging.io import Saved
from lowhanging.models.cnn import SigmoidCNN
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.model_loss import LossFn
from lowhanging.objective.objective import Objective
from lowhanging.prior.cue_evidence import cue_evidence
from lowhanging.prior.logged_training import train_in_steps
from lowhanging.prior.parities import parity_network, two_parities
from lowhanging.prior.phase_diagram import description
from lowhanging.prior.resumed_rows import ResumedRows
from lowhanging.tables import Columns, Tabular
from lowhanging.training.options import MakeOptimizer

Absent: TypeAlias = Literal["blanked", "resampled"]
Score: TypeAlias = "Callable[[nn.Module], float]"


@dataclass(frozen=True)
class TwoCueTask:
    """A network and two cues to learn, one after another or together.

    Attributes:
        model: before training; it is copied, not written to.
        alone: cue -> training data in which that cue tells the target and the other one doesn't; two cues.
        both: training data in which both do.
        scores: cue -> a function of the network in eval mode that says how far the cue is learned, more is better;
            or a data set of classes in which that cue alone tells the target, whose score is `cue_evidence`, in nats.
    """

    model: nn.Module
    alone: Mapping[str, Any]
    both: Any
    scores: Mapping[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Refinement(Saved, Tabular):
    """Scores of two cues along trainings in which they are offered one after another, together, or alone.

    Five trainings of every seed, each of `offered_at` steps and then the rest, with a new optimizer in between in all
    of them: "both" is offered both cues throughout, "a then both" only cue a at first, "a alone" only cue a; a and b
    stand for the cues' names.

    Attributes:
        cues: their names.
        steps: of the logs.
        offered_at: step after which "a then both" is offered the other cue; a row of `steps`.
        scores: training -> score of each cue.
        losses: training -> mean loss over the steps since the log before, NaN at step 0.
        threshold: score from which a cue counts as learned.
        seeds: of the rows.
    """

    cues: tuple[str, str]
    steps: Tensor  # (logs,) int64
    offered_at: int
    scores: dict[str, Tensor]  # training -> (2, seeds, logs) float64
    losses: dict[str, Tensor]  # training -> (seeds, logs) float64
    threshold: float
    seeds: Tensor  # (seeds,) int64

    def other(self, cue: str) -> str:
        """The other cue."""
        return self.cues[1 - self._index(cue)]

    def final(self, cue: str, training: str) -> Tensor:
        """(seeds,) score of a cue at the end of a training."""
        return self._rows(cue, training)[:, -1]

    def time(self, cue: str, training: str) -> Tensor:
        """(seeds,) steps from the offer of a cue until it is learned; inf where it never is, or was never offered.

        Each cue has as many steps for it, those of the second part: later ones of the trainings that offer it from the
        start do not count.
        """
        rows = self._rows(cue, training)
        start = self.offered_at if training == f"{self.other(cue)} then both" else 0
        budget = int(self.steps[-1]) - self.offered_at
        is_open = (self.steps >= start) & (self.steps <= start + budget)
        found = first_crossing(self.steps[is_open] - start, rows[:, is_open], threshold=self.threshold, is_rising=True)
        return found if training != f"{self.other(cue)} alone" else torch.full_like(found, math.inf)

    def delay(self, cue: str, *, than: Literal["both", "alone"] = "both") -> TimesRatio:
        """How much later a cue is learned after the other one than by a fresh network.

        Args:
            cue: offered second.
            than: a fresh network that is offered "both", or the cue "alone".

        Returns:
            TimesRatio with `.ratio` (1,) of the medians over seeds, its `.interval` (1, 2), `.num_later`, `.p_value`. A
            cue that is never learned after the other counts as at least as late as the budget of steps.
        """
        check_choice("than", than, ("both", "alone"))
        control = "both" if than == "both" else f"{cue} alone"
        after, fresh = (self.time(cue, name)[None] for name in (f"{self.other(cue)} then both", control))
        step = int(self.steps[1] - self.steps[0])
        after, fresh = after.clamp(min=step), fresh.clamp(min=step)  # not known better than to a log
        budget = torch.tensor([float(self.steps[-1] - self.offered_at)])
        times = LearningTimes(torch.ones(1), {"after": after, "fresh": fresh}, {"after": budget, "fresh": budget})
        return times.ratio("after", "fresh")

    def kept(self, cue: str) -> Tensor:
        """(seeds,) score of the first cue at the end, over that when the other was offered; 1 where nothing changed."""
        rows = self._rows(cue, f"{cue} then both")
        return rows[:, -1] / rows[:, self._handover]

    def num_learned(self, cue: str, training: str) -> int:
        """Seeds in which a cue is learned at the end of a training."""
        return int((self.final(cue, training) >= self.threshold).sum())

    def columns(self) -> Columns:
        """One row for each training, seed and log: the score of each cue by name."""
        shape = next(iter(self.scores.values())).shape[1:]
        num, (seeds, steps) = math.prod(shape), torch.meshgrid(self.seeds, self.steps, indexing="ij")
        found: Columns = {
            "training": [name for name in self.scores for _ in range(num)],
            "seed": seeds.flatten().tolist() * len(self.scores),
            "step": steps.flatten().tolist() * len(self.scores),
        }
        scores = {cue: [rows[i] for rows in self.scores.values()] for i, cue in enumerate(self.cues)}
        return found | {cue: torch.stack(rows).flatten().tolist() for cue, rows in scores.items()}

    def __repr__(self) -> str:
        return f"Refinement({len(self.seeds)} seeds; {'; '.join(map(self._sentence, self.cues))})"

    def _sentence(self, cue: str) -> str:
        first = self.other(cue)
        num, fresh = self.num_learned(cue, f"{first} then both"), self.num_learned(cue, "both")
        kept = float(self.kept(first).median())
        return (
            f"{cue} after {first}: learned in {num} (fresh {fresh}), {self._lateness(cue)}; "
            f"{first}'s score becomes {kept:.2f} times what it was"
        )

    def _lateness(self, cue: str) -> str:
        ratio, half = self.delay(cue), len(self.seeds) / 2
        if self.time(cue, "both").isinf().sum() >= half:
            return "no fresh time to compare with within the budget"
        if self.time(cue, f"{self.other(cue)} then both").isinf().sum() >= half:
            return "not within the budget, in which fresh networks learn it"
        low, high = ratio.interval[0].tolist()
        return f"{float(ratio.ratio[0]):.2g} [{low:.2g}, {high:.2g}] times as late as fresh"

    @property
    def _handover(self) -> int:
        return self.steps.tolist().index(self.offered_at)

    def _index(self, cue: str) -> int:
        return self.cues.index(check_choice("cue", cue, self.cues))

    def _rows(self, cue: str, training: str) -> Tensor:
        return self.scores[check_choice("training", training, tuple(self.scores))][self._index(cue)]


def refinement(
    task: Callable[[int], TwoCueTask],
    *,
    seeds: Iterable[int] = range(5),
    first_steps: int = 600,
    then_steps: int = 600,
    log_every: int = 20,
    batch_size: int = 32,
    lr: float = 0.005,
    optimizer: Literal["adam", "sgd"] | MakeOptimizer = "adam",
    loss_fn: LossFn | None = None,
    threshold: float = 1.0,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> Refinement:
    """Networks that learn one cue and are then offered both, beside networks that are offered both, or one, throughout.

    The learning rate is constant and a new optimizer begins where the second cue is offered, in every training, so that
    a step of one training is worth a step of another.

    Args:
        task: seed -> `TwoCueTask`; `paired_digits_task` and `parities_task` make some.
        seeds: of tasks and of the order of the examples, all different.
        first_steps: on the first cue alone; a multiple of `log_every`.
        then_steps: on both.
        log_every: steps between the logs.
        batch_size: examples per step.
        lr: learning rate; ignored by an optimizer of your own.
        optimizer: "adam", "sgd", or a callable `parameters -> Optimizer`.
        loss_fn: as in `lh.train`; None is cross-entropy of integer classes.
        threshold: score from which a cue counts as learned; 1 nat of evidence by default.
        resume: npz file that holds the finished seeds: the same call continues from it, bit for bit. A task is
            told from others by its name, not by its code.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        Refinement: `.delay(cue)`, `.kept(cue)`, `.num_learned(cue, training)`, `.scores`.

    Raises:
        ValueError, TypeError: a task without two cues, steps that are no multiple of `log_every`, seeds that are not
            different.
        NotConvergedError: a training met NaN.

    Cost:
        of a seed, 5 first_steps less the two that are shared, and 5 then_steps; every log scores both cues once. The
        weights of a training's logs are held in memory.

    Source:
        Vaintrob & Rimsky (2023), "The low-hanging fruit prior and sloped valleys in the loss landscape" (the
        definition); Pezeshki et al. (2021), "Gradient starvation" (that a learned cue slows down others).
    """
    counts = {"first_steps": first_steps, "then_steps": then_steps, "log_every": log_every, "batch_size": batch_size}
    for name, value in counts.items():
        check_count(name, value, remedy="Pass a positive number.")
    for name in ("first_steps", "then_steps"):
        if counts[name] % log_every:
            received, expected = f"is {counts[name]}", f"a multiple of log_every = {log_every}"
            raise ValueError(argument_message(name, received, expected, "Round it up."))
    threshold = check_real("threshold", threshold, remedy="Pass a score, such as 1 nat.")
    remedy = "Pass different whole numbers, such as range(5)."
    given = [check_count("an entry of seeds", seed, minimum=0, remedy=remedy) for seed in seeds]
    if not given or len(set(given)) < len(given):
        raise ValueError(argument_message("seeds", f"are {given}", "at least one, all different", remedy))
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "lr": lr if isinstance(optimizer, str) else None,
        "optimizer": optimizer,
    }
    options |= {"schedule": "constant", "loss_fn": loss_fn}
    identity = {"task": description(task), "seeds": repr(given), "steps": repr(counts), "options": repr(options)}
    cues: tuple[str, ...] = ()
    delay, silent = 2.0 if progress is None else 0.0, is_silent(progress)
    with (
        ResumedRows(resume, identity, kind="a refinement", total=len(given)) as finished,
        tqdm(total=8 * len(given), desc="refinement", unit="part", disable=silent, delay=delay) as bar,
    ):
        bar.update(8 * len(finished.rows))
        for seed in given[len(finished.rows) :] or given[:1]:  # the cues' names are those of a task
            chosen = _checked_task(task(seed), cues)
            cues = tuple(chosen.alone)
            if len(finished.rows) < len(given):
                finished.add(_Parts(chosen, seed, log_every, options, bar).all(first_steps, then_steps))
        logged = finished.rows
    return Refinement(
        cues=(cues[0], cues[1]),
        steps=torch.arange(0, first_steps + then_steps + 1, log_every),
        offered_at=first_steps,
        scores={name: torch.stack([row[name][:2] for row in logged], 1) for name in logged[0]},
        losses={name: torch.stack([row[name][2] for row in logged]) for name in logged[0]},
        threshold=threshold,
        seeds=torch.tensor(given),
    )


class _Parts:
    """The parts of one seed's trainings."""

    def __init__(self, task: TwoCueTask, seed: int, log_every: int, options: dict[str, Any], bar: tqdm[Any]):
        self.task, self.seed, self.log_every, self.options, self.bar = task, seed, log_every, options, bar
        self.scores = [_as_score(cue, task.scores[cue]) for cue in task.alone]

    def all(self, first_steps: int, then_steps: int) -> dict[str, Tensor]:
        """Training -> (3, logs): the scores of both cues, and the losses."""
        found: dict[str, Tensor] = {}
        parts: list[tuple[str | None, Any]] = [*self.task.alone.items(), (None, self.task.both)]
        for name, data in parts:
            model = copy.deepcopy(self.task.model)
            first = self.part(model, data, first_steps, 0)
            ends = {"both": self.task.both} if name is None else {f"{name} then both": self.task.both}
            if name is not None:
                ends[f"{name} alone"] = data
            for training, then in ends.items():
                second = self.part(copy.deepcopy(model), then, then_steps, 1)
                # Step `first_steps` is the end of the first part and the start of the second: once.
                found[training] = torch.cat([first, second[:, 1:]], 1)
        return found

    def part(self, model: nn.Module, data: Any, num_steps: int, number: int) -> Tensor:
        """(3, logs) scores of both cues and losses, of a training of the model, in place."""
        _, run = train_in_steps(
            model, data, num_steps=num_steps, log_every=self.log_every, checkpoints=1, seed=2 * self.seed + number,
            **self.options,
        )  # fmt: skip
        around = copy.deepcopy(model).eval()
        reader = Objective(around, self.task.both, loss_fn=self.options["loss_fn"], distributed=False)
        rows = []
        for i in range(len(run.checkpoints)):
            at = reader.model_at(run.checkpoint(i)).eval()
            with torch.no_grad():
                rows.append([float(score(at)) for score in self.scores])
        self.bar.update()
        return torch.cat([torch.tensor(rows, dtype=torch.float64).T, run.losses["train"][None]])


def _as_score(cue: str, given: Any) -> Score:
    if callable(given) and not hasattr(given, "inputs"):
        score: Score = given
        return score
    return lambda model: cue_evidence(model, given)


def _checked_task(task: Any, cues: tuple[str, ...]) -> TwoCueTask:
    remedy = "Return lh.prior.TwoCueTask(model, alone={...}, both=..., scores={...})."
    if not isinstance(task, TwoCueTask):
        raise TypeError(argument_message("task", f"returned {a_type(task)}", "a TwoCueTask", remedy))
    names = check_names("alone of the task", task.alone, remedy=remedy)
    if len(names) != 2 or set(task.scores) != set(names) or cues not in ((), tuple(names)):
        received = f"has the cues {names} and scores of {list(task.scores)}"
        expected = f"two cues with a score each{f', those of the first seed, {list(cues)}' if cues else ''}"
        raise ValueError(argument_message("task", received, expected, remedy))
    return task


# Tasks that ship ------------------------------------------------------------------------------------------------------


def paired_digits_task(
    source: Any = "bundled",
    *,
    patterns_per_class: int = 10,
    opacity: float = 0.5,
    absent: Absent = "blanked",
    num_train: int = 1000,
    num_test: int = 500,
    channels: int = 6,
    activation: str = "silu",
) -> Callable[[int], TwoCueTask]:
    """Numbers and patterns of the same label, for `refinement`.

    Args:
        source: of the digits, as in `lh.mnist`.
        patterns_per_class: patterns to memorise: the fewer, the simpler that cue.
        opacity: weight of the pattern in the blend.
        absent: what stands in for the cue that is not offered: nothing ("blanked") or that of another image
            ("resampled"). Scores are always taken on resampled test images.
        num_train: training images, the first ones of the source.
        num_test: test images.
        channels: of the `SigmoidCNN`.
        activation: of the same.

    Returns:
        seed -> TwoCueTask with the cues "number" and "pattern"; the seed is that of patterns, blends and weights.

    Raises:
        ValueError, TypeError: an option out of range.
    """
    check_choice("absent", absent, ("blanked", "resampled"))
    for name, value in {"num_train": num_train, "num_test": num_test}.items():
        check_count(name, value, minimum=2, remedy="Pass the number of images.")
    digits = mnist(source)
    few = MNIST(DigitImages(*digits.train[:num_train]), DigitImages(*digits.test[:num_test]), source=digits.source)

    def task(seed: int) -> TwoCueTask:
        views = paired_mnist(
            few, opacity=opacity, patterns_per_class=patterns_per_class, number_only=0, pattern_only=0, seed=seed
        )
        resampled = {"number": views.number_resampled, "pattern": views.pattern_resampled}
        shown: Mapping[str, Any] = {"number": views.number, "pattern": views.pattern}
        shown = shown if absent == "blanked" else resampled
        return TwoCueTask(
            model=SigmoidCNN(channels, activation, seed=seed),
            alone={cue: view.train for cue, view in shown.items()},
            both=views.mixed.train,
            scores={cue: view.test for cue, view in resampled.items()},
        )

    return task


def parities_task(
    n: int = 3, m: int = 3, *, hidden: int = 64, absent: Absent = "resampled"
) -> Callable[[int], TwoCueTask]:
    """The product of n signs and the product of m others, for `refinement`; both are the label where both are offered.

    Args:
        n: bits of the cue "first".
        m: bits of the cue "second"; n + m at most 14.
        hidden: tanh units.
        absent: what the bits of the cue that is not offered are: random ("resampled"), or 0 ("blanked").

    Returns:
        seed -> TwoCueTask with the cues "first" and "second"; the seed is that of the weights.

    Raises:
        ValueError, TypeError: an option out of range.
    """
    check_choice("absent", absent, ("blanked", "resampled"))
    rows = two_parities(n, m)
    check_count("hidden", hidden, remedy="Pass a positive number.")
    labels = (rows.parities > 0).long()  # (2, rows)
    resampled = {cue: (rows.signs, labels[i]) for i, cue in enumerate(("first", "second"))}
    bits = {"first": slice(0, n), "second": slice(n, n + m)}

    def blanked(cue: str) -> tuple[Tensor, Tensor]:
        inputs = torch.zeros_like(rows.signs)
        inputs[:, bits[cue]] = rows.signs[:, bits[cue]]
        return inputs, resampled[cue][1]

    def task(seed: int) -> TwoCueTask:
        return TwoCueTask(
            model=parity_network(seed, num_bits=n + m, hidden=hidden),
            alone=resampled if absent == "resampled" else {cue: blanked(cue) for cue in resampled},
            both=(rows.signs[rows.agree], labels[0][rows.agree]),
            scores=resampled,
        )

    return task
