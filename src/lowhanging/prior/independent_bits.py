r"""Bits that each of two cues adds to the other along training, and which examples each of them solves first.

A cue alone is shown beside another example's other cue, several of them, and the network's probabilities are averaged,

    q_a(y | x) = mean_k p(y | cue a of x, cue b of x_k),

which is what the network tells of y to someone who sees cue a only. With L the mean of -log2 of the probability of the
right class and H the entropy of the classes, a cue tells H - L_a bits, both tell H - L_both, and cue a *adds*
L_b - L_both bits to cue b. These are bits of this network: with both cues learned, the average is less certain than the
best reader of one cue would be, so that L_b - L_both is at least what such a reader could gain. Within a class there
are examples whose cue a is easy and others; whether the two cues solve the same examples, different ones, or
independent ones, is asked class by class and joined, so that easy classes do not look like dependence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn
from tqdm.auto import tqdm

from lowhanging.datasets.paired_mnist import PairedMNIST
from lowhanging.datasets.resampling import Replace, derangement, resample
from lowhanging.errors import a_type, argument_message, check_choice, check_count, check_names, check_real
from lowhanging.io import Saved
from lowhanging.objective.checkpoints import listed_points
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.protocol import Loss, check_loss
from lowhanging.prior.cue_evidence import class_scores
from lowhanging.tables import Columns, Tabular

BOTH = "both"
SOLVED_BY = ("first alone", "second alone", "either", "together")


@dataclass(frozen=True)
class CueViews:
    """The same examples with both cues, and with one of them beside others' cues.

    Attributes:
        inputs: (n, ...) both cues.
        targets: (n,) integer classes.
        alone: cue -> several tensors (n, ...): that cue of example i with the other cue of other examples; two cues.
    """

    inputs: Tensor
    targets: Tensor
    alone: Mapping[str, Sequence[Tensor]]


def cue_views(data: Any, cues: Mapping[str, Replace], *, num_resamples: int = 64, seed: int = 0) -> CueViews:
    """Views of examples whose two cues lie in different parts of the inputs.

    Args:
        data: (inputs, targets), or a data set with both.
        cues: name -> where the cue is, as in `lh.datasets.resample`: columns, a mask, or a function.
        num_resamples: other examples whose cue is shown instead; few make a cue tell too little, and add too much.
        seed: of the permutations.

    Raises:
        ValueError, TypeError: not two cues, a place that does not fit.
    """
    remedy = 'Pass {"number": [0], "pattern": [1]}, the places of two cues.'
    names = check_names("cues", cues, remedy=remedy)
    if len(names) != 2:
        raise ValueError(argument_message("cues", f"are {names}", "two cues", remedy))
    num_resamples = check_count("num_resamples", num_resamples, remedy="Pass a positive number, such as 64.")
    pair = (data.inputs, data.targets) if hasattr(data, "inputs") and hasattr(data, "targets") else data
    alone = {
        name: [resample(data, cues[other], seed=seed + k).inputs for k in range(num_resamples)]
        for name, other in zip(names, reversed(names), strict=True)
    }
    return CueViews(pair[0], pair[1], alone)


def paired_digits_views(views: PairedMNIST, *, num_resamples: int = 64, seed: int = 0) -> CueViews:
    """Views of the test images of paired digits, with the cues "number" and "pattern".

    Args:
        views: what `lh.paired_mnist` makes.
        num_resamples: other images whose cue is shown instead.
        seed: of the permutations.
    """
    number, pattern = views.number.test, views.pattern.test
    rng = np.random.default_rng(check_count("seed", seed, minimum=0, remedy="Pass 0."))
    count = check_count("num_resamples", num_resamples, remedy="Pass a positive number, such as 64.")
    orders = [derangement(len(number), rng) for _ in range(count)]
    alone = {
        "number": [number.inputs + pattern.inputs[order] for order in orders],
        "pattern": [pattern.inputs + number.inputs[order] for order in orders],
    }
    return CueViews(views.mixed.test.inputs, views.mixed.test.targets, alone)


@dataclass(frozen=True, eq=False, repr=False)
class OddsRatio(Saved):
    """Whether two things happen to the same examples, classes kept apart: the odds ratio of Mantel & Haenszel.

    Attributes:
        value: (t,) above 1 where they go together, below 1 where they avoid each other; NaN where nothing tells.
        interval: (t, 2) of `confidence`.
        confidence: of the intervals.
    """

    value: Tensor  # (t,) float64
    interval: Tensor  # (t, 2) float64
    confidence: float

    def __repr__(self) -> str:
        low, high = self.interval[-1].tolist()
        return f"OddsRatio({len(self.value)} checkpoints; the last {float(self.value[-1]):.3g} [{low:.3g}, {high:.3g}])"


@dataclass(frozen=True, eq=False, repr=False)
class IndependentBits(Saved, Tabular):
    """What the two cues of the same examples tell a network along its training.

    Attributes:
        cues: their names.
        steps: of the checkpoints.
        surprise: "both" and each cue -> -log2 of the probability of the right class, for each example.
        is_right: "both" and each cue -> whether the most probable class is the right one.
        targets: the examples' classes.
        num_resamples: probabilities that were averaged for a cue alone.
    """

    cues: tuple[str, str]
    steps: Tensor  # (t,) int64
    surprise: dict[str, Tensor]  # name -> (t, n) float64, bits
    is_right: dict[str, Tensor]  # name -> (t, n) bool
    targets: Tensor  # (n,) int64
    num_resamples: int

    @property
    def entropy(self) -> float:
        """Of the classes, bits."""
        counts = torch.bincount(self.targets).double()
        shares = counts[counts > 0] / len(self.targets)
        return float(-(shares * shares.log2()).sum())

    def bits(self, name: str = BOTH) -> Tensor:
        """(t,) bits that "both", or a cue alone, tell of the class; negative where the network is misleading."""
        return self.entropy - self.surprise[check_choice("name", name, tuple(self.surprise))].mean(1)

    def adds(self, cue: str) -> Tensor:
        """(t,) bits that a cue adds to the other one."""
        return self._added(cue).mean(1)

    def adds_interval(self, cue: str, *, confidence: float = 0.95) -> Tensor:
        """(t, 2) normal interval of `adds` over examples, of which each is compared with itself."""
        added = self._added(cue)
        half = float(ndtri(0.5 + 0.5 * _checked(confidence))) * added.std(1) / math.sqrt(added.shape[1])
        return torch.stack([added.mean(1) - half, added.mean(1) + half], 1)

    def redundancy(self) -> Tensor:
        """(t,) bits told twice: the sum of what the cues tell alone, less what both tell; negative for a synergy."""
        return self.bits(self.cues[0]) + self.bits(self.cues[1]) - self.bits()

    def newly_solved(self) -> Tensor:
        """(t - 1, 4) share of the examples right at a checkpoint, not at the one before, by what solves them there.

        Columns, as in `SOLVED_BY`: the first cue alone does and the second doesn't; the second and not the first;
        either of them; only both together.
        """
        both, (first, second) = self.is_right[BOTH], (self.is_right[cue] for cue in self.cues)
        is_new = both[1:] & ~both[:-1]
        first, second = first[1:], second[1:]
        kinds = [first & ~second, ~first & second, first & second, ~first & ~second]
        return torch.stack([(is_new & kind).double().mean(1) for kind in kinds], 1)

    def same_examples(self, *, confidence: float = 0.95) -> OddsRatio:
        """(t,) whether the cues solve the same examples of a class: 1 where independent, below 1 where others."""
        first, second = (self.is_right[cue] for cue in self.cues)
        return self._odds(first, second, confidence)

    def fills_gaps(self, cue: str, *, confidence: float = 0.95) -> OddsRatio:
        """(t - 1,) whether a cue is newly read on the examples that the other one solved at the checkpoint before.

        Below 1, training adds what was missing; above 1, it doubles what was there. Examples that the cue solved before
        are left out.
        """
        other = self.cues[1 - self.cues.index(check_choice("cue", cue, self.cues))]
        mine, others = self.is_right[cue], self.is_right[other]
        return self._odds(mine[1:], others[:-1], confidence, among=~mine[:-1])

    def solved_at(self, name: str = BOTH) -> Tensor:
        """(n,) step from which an example stays right, with "both" or with a cue alone; inf where it never does."""
        right = self.is_right[check_choice("name", name, tuple(self.is_right))]
        stays = right.flip(0).long().cumprod(0).flip(0).bool()  # (t, n): right here and at all later checkpoints
        steps = torch.where(stays, self.steps.double()[:, None], torch.inf)
        return steps.min(0).values

    def order_agreement(self, name: str, ease: Tensor) -> float:
        """Rank correlation within classes between the order in which examples are solved and how hard they are.

        Args:
            name: "both" or a cue.
            ease: (n,) the smaller the easier, such as `solved_at` of a network trained on that cue alone; inf counts
                as the largest.

        Returns:
            Spearman's correlation of ranks within classes, in [-1, 1]: 1 where the easiest are solved first. NaN where
            either does not vary.
        """
        from scipy.stats import rankdata  # half a second, not at every import

        times = self.solved_at(name)
        if tuple(ease.shape) != tuple(times.shape):
            received, expected = f"has shape {tuple(ease.shape)}", f"({len(times)},), a number for each example"
            raise ValueError(argument_message("ease", received, expected, "Use the same examples in the same order."))
        pairs = []
        for value in torch.unique(self.targets):
            rows = self.targets == value
            ranks = (rankdata(column[rows].numpy()) for column in (times, ease.double()))
            pairs.append(np.stack([each - each.mean() for each in ranks]))
        x, y = np.concatenate(pairs, 1)
        scale = math.sqrt((x @ x) * (y @ y))
        return float(x @ y) / scale if scale > 0 else math.nan

    def columns(self) -> Columns:
        """One row for each checkpoint: "step", bits of both cues, of each alone, and what each adds."""
        alone = {f"{cue} alone": self.bits(cue).tolist() for cue in self.cues}
        adds = {f"{cue} adds": self.adds(cue).tolist() for cue in self.cues}
        return {"step": self.steps.tolist(), BOTH: self.bits().tolist()} | alone | adds

    def __repr__(self) -> str:
        told = ", ".join(
            f"{cue} {float(self.bits(cue)[-1]):.2f} (adds {float(self.adds(cue)[-1]):.2f})" for cue in self.cues
        )
        return (
            f"IndependentBits({len(self.steps)} checkpoints, {len(self.targets)} examples; at the end both tell "
            f"{float(self.bits()[-1]):.2f} of {self.entropy:.2f} bits: {told})"
        )

    def _added(self, cue: str) -> Tensor:
        other = self.cues[1 - self.cues.index(check_choice("cue", cue, self.cues))]
        return self.surprise[other] - self.surprise[BOTH]

    def _odds(self, x: Tensor, y: Tensor, confidence: float, among: Tensor | None = None) -> OddsRatio:
        among = torch.ones_like(x) if among is None else among
        rows = [
            mantel_haenszel(
                *(each.numpy() for each in (a, b, self.targets)), among=c.numpy(), confidence=_checked(confidence)
            )
            for a, b, c in zip(x, y, among, strict=True)
        ]
        values, intervals = zip(*rows, strict=True)
        return OddsRatio(torch.tensor(values).double(), torch.tensor(intervals).double(), confidence)


def mantel_haenszel(
    x: np.ndarray, y: np.ndarray, strata: np.ndarray, *, among: np.ndarray, confidence: float
) -> tuple[float, tuple[float, float]]:
    r"""Common odds ratio of two outcomes over strata, and its interval.

    R = sum a d / n over sum b c / n, of each stratum's counts a (both), b (x only), c (y only), d (neither); the
    variance of its logarithm is that of Robins, Breslow & Greenland (1986). NaN and (0, inf) where either sum is 0.
    """
    r = s = pr = ps_qr = qs = 0.0
    for value in np.unique(strata):
        rows = (strata == value) & among
        n = int(rows.sum())
        if n < 2:
            continue
        a, b, c, d = (float((rows & p & q).sum()) for p, q in ((x, y), (x, ~y), (~x, y), (~x, ~y)))
        big_p, big_q, here, there = (a + d) / n, (b + c) / n, a * d / n, b * c / n
        r, s = r + here, s + there
        pr, ps_qr, qs = pr + big_p * here, ps_qr + big_p * there + big_q * here, qs + big_q * there
    if not r or not s:
        return (math.nan if not r and not s else math.inf if r else 0.0), (0.0, math.inf)
    variance = pr / (2 * r**2) + ps_qr / (2 * r * s) + qs / (2 * s**2)
    middle, half = math.log(r / s), float(ndtri(0.5 + 0.5 * confidence)) * math.sqrt(variance)
    return math.exp(middle), (math.exp(middle - half), math.exp(middle + half))


def independent_bits(
    loss: Loss,
    checkpoints: Any,
    *,
    views: CueViews,
    steps: Sequence[int] | Tensor | None = None,
    progress: bool | None = None,
) -> IndependentBits:
    r"""What each of two cues tells a network, and adds to the other, at checkpoints of its training.

    Args:
        loss: of the model, such as the one it was trained on; it says how the model is evaluated.
        checkpoints: a training run or record, rows of theta, or modules, state_dicts, files, checkpoints.
        views: the examples, by `cue_views`, `paired_digits_views` or by hand; held-out ones.
        steps: of the checkpoints, for axes; by default the run's epochs, the record's steps, or 0, 1, ...
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        IndependentBits: `.bits(name)`, `.adds(cue)`, `.redundancy()`, `.newly_solved()`, `.same_examples()`,
        `.fills_gaps(cue)`, `.solved_at(name)`, `.order_agreement(name, ease)`.

    Raises:
        ValueError, TypeError: a loss without a model, views that do not fit it, steps of another number.

    Cost:
        of a checkpoint, 1 + 2 num_resamples passes over the examples.

    Source:
        Xu et al. (2020), "A theory of usable information under computational constraints" (bits that a model of a given
        kind can use; here of one given network, its missing cue averaged over); Mantel & Haenszel (1959).
    """
    found = check_loss("loss", loss)
    if found.space is None:
        remedy = "Make one: lh.Objective(model, data)."
        raise TypeError(argument_message("loss", f"is {a_type(loss)}", "a loss of a model", remedy))
    _check_views(views)
    remedy = "Pass a run of lh.train(..., checkpoints=1), or a list of modules, state_dicts, files or checkpoints."
    points = listed_points("checkpoints", checkpoints, remedy=remedy)
    counted = getattr(checkpoints, "steps", getattr(checkpoints, "checkpoint_epochs", range(len(points))))
    given = counted if steps is None else steps
    numbers = torch.as_tensor(list(given), dtype=torch.int64)
    if tuple(numbers.shape) != (len(points),):
        received, expected = f"has shape {tuple(numbers.shape)}", f"({len(points)},), one for each checkpoint"
        raise ValueError(argument_message("steps", received, expected, "Leave it out to count them."))
    names = tuple(views.alone)
    surprise: dict[str, list[Tensor]] = {name: [] for name in (BOTH, *names)}
    is_right: dict[str, list[Tensor]] = {name: [] for name in surprise}
    delay, silent = 2.0 if progress is None else 0.0, is_silent(progress)
    own = views.targets.cpu()[:, None]
    for point in tqdm(points, desc="independent bits", unit="checkpoint", disable=silent, delay=delay):
        is_plain = isinstance(point, Tensor | np.ndarray)
        model: nn.Module = found.model_at(point, buffers="fixed" if is_plain else None)
        for name, shown in {BOTH: [views.inputs], **views.alone}.items():
            logs = torch.stack([class_scores(model, each, views.targets).log_softmax(1) for each in shown])
            averaged = logs.logsumexp(0) - math.log(len(shown))  # (n, classes)
            surprise[name].append(-averaged.gather(1, own).squeeze(1) / math.log(2))
            is_right[name].append(averaged.argmax(1) == own.squeeze(1))
    return IndependentBits(
        cues=(names[0], names[1]),
        steps=numbers,
        surprise={name: torch.stack(rows) for name, rows in surprise.items()},
        is_right={name: torch.stack(rows) for name, rows in is_right.items()},
        targets=views.targets.detach().cpu().long(),
        num_resamples=min(len(views.alone[name]) for name in names),
    )


def _check_views(views: Any) -> None:
    remedy = "Make them with lh.prior.cue_views(data, {...})."
    if not isinstance(views, CueViews):
        raise TypeError(argument_message("views", f"is {a_type(views)}", "CueViews", remedy))
    names = check_names("alone of the views", views.alone, remedy=remedy)
    if len(names) != 2 or BOTH in names:
        raise ValueError(argument_message("views", f"has the cues {names}", f"two, neither called {BOTH!r}", remedy))
    shape = tuple(views.inputs.shape)
    for name in names:
        shown = list(views.alone[name])
        if not shown or any(tuple(each.shape) != shape for each in shown):
            received = f"shows {name!r} in shapes {[tuple(each.shape) for each in shown]}"
            raise ValueError(argument_message("views", received, f"one or more tensors {shape}", remedy))
    if views.targets.is_floating_point() or tuple(views.targets.shape) != shape[:1]:
        received = f"has targets {views.targets.dtype} of shape {tuple(views.targets.shape)}"
        raise ValueError(argument_message("views", received, f"{shape[0]} integer classes", remedy))


def _checked(confidence: Any) -> float:
    return check_real("confidence", confidence, minimum=0, maximum=1, exclusive=True, remedy="0.95 is usual.")
