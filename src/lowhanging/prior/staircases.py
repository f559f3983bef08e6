r"""Steps until small networks have learned a staircase by online SGD, and the exponent with which they grow.

A sum of monomials of signs is thought to be learned along a chain, and to take the longer the more coordinates the
widest step of the chain adds, its leap (`lh.datasets.boolean_targets`). The conjecture of Abbe, Boix-Adserà &
Misiakiewicz (2023) is a time of d^max(leap, 2), up to logarithms, d the number of coordinates. A step with one example
is d operations, so the *steps* go as

    d^(max(leap, 2) - 1): d for leaps 1 and 2, d^2 for leap 3.

Each dimension has its own step size, the quickest of a scan with other seeds than those whose times are reported; with
one step size for all, the exponent would be that of a step size. A seed that has not learned within the budget is
censored: the fit knows that its time is longer than the budget, and nothing else. To drop it would make a slow target
look quick.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.circuits.learning_times import first_crossing
from lowhanging.datasets.boolean_targets import BooleanTarget, boolean_targets, signs
from lowhanging.errors import a_type, argument_message, check_choice, check_count, check_real
from lowhanging.io import Saved
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.random_state import private_generator
from lowhanging.prior.censored_laws import PowerLaw, censored_power_law, checked_confidence
from lowhanging.prior.resumed_rows import ResumedRows

Optimizer: TypeAlias = Literal["sgd", "adam"]

_OPTIMIZERS = ("sgd", "adam")
_NUM_TEST = 1024  # rows that the loss is measured on
_GROWTH = 0.02  # a log comes after this share of the steps done, where that is more than log_every
_MOST_NUMBERS = 2**22  # of the inputs that are drawn at once
_DECAYS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's


@dataclass(frozen=True, eq=False, repr=False)
class StaircaseTimes(Saved):
    """Steps until each seed's network had learned a target.

    Attributes:
        target: the function.
        times: step of the first log at which the loss is at most `threshold`; inf where it never was (censored).
        steps: of the logs.
        losses: mean squared error on fixed rows over the target's variance, 1 for a constant; NaN after a run has
            learned or diverged, which ends it.
        seeds: of the rows of `times` and `losses`.
        max_steps: budget, at which times are censored.
        threshold: share of the variance.
        lr: step size times dimension.
        optimizer: "sgd" or "adam".
        batch_size: examples per step.
        hidden: units.
    """

    target: BooleanTarget
    times: Tensor  # (seeds,) float64
    steps: Tensor  # (logs,) int64
    losses: Tensor  # (seeds, logs) float32
    seeds: Tensor  # (seeds,) int64
    max_steps: int
    threshold: float
    lr: float
    optimizer: str
    batch_size: int
    hidden: int

    @property
    def median(self) -> float:
        """Steps, the upper one of an even number; inf where half of the seeds or more never learned."""
        return float(_upper_median(self.times))

    @property
    def num_censored(self) -> int:
        """Seeds that had not learned within the budget."""
        return int(self.times.isinf().sum())

    def __repr__(self) -> str:
        return (
            f"StaircaseTimes({self.target!r}: median {self.median:,g} steps of {self.optimizer}, "
            f"{self.num_censored} of {len(self.times)} seeds beyond {self.max_steps:,})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class StaircaseExponent(Saved):
    """How the steps to learn targets of one leap grow with the dimension.

    Attributes:
        leap: of the targets.
        degree: of the targets.
        dimensions: d, ascending.
        times: steps to learn of the reported seeds; inf where censored.
        lrs: step size times dimension that was used at each dimension, the quickest of the scan.
        scanned_lrs: those that it was chosen from.
        scan_times: steps to learn in the scan. It ends when most of the seeds of one step size have learned: others
            are inf from there on.
        law: fit without a logarithm.
        law_with_log: fit of d^a log d.
        seeds: of the reported times.
        scan_seeds: of the scan; none of `seeds`.
        max_steps: budget, at which times are censored.
        optimizer: "sgd" or "adam".
        batch_size: examples per step.
        hidden: units.
    """

    leap: int
    degree: int
    dimensions: Tensor  # (k,) int64
    times: Tensor  # (k, seeds) float64
    lrs: Tensor  # (k,) float64
    scanned_lrs: Tensor  # (lrs,) float64, ascending
    scan_times: Tensor  # (k, lrs, scan seeds) float64
    law: PowerLaw
    law_with_log: PowerLaw
    seeds: Tensor  # (seeds,) int64
    scan_seeds: Tensor  # (scan seeds,) int64
    max_steps: int
    optimizer: str
    batch_size: int
    hidden: int

    @property
    def exponent(self) -> float:
        """That of the fit without a logarithm."""
        return self.law.exponent

    @property
    def interval(self) -> Tensor:
        """(2,) of the exponent, without a logarithm."""
        return self.law.interval

    @property
    def conjecture(self) -> int:
        """Exponent of the steps, max(leap, 2) - 1, up to logarithms; stated for SGD with one example per step."""
        return max(self.leap, 2) - 1

    @property
    def medians(self) -> Tensor:
        """(k,) upper median over seeds, inf where half or more of them never learned."""
        return _upper_median(self.times)

    @property
    def is_at_end(self) -> Tensor:
        """(k,) bool, whether the step size is the smallest or the largest of the scan: a better one may lie outside."""
        return (self.lrs == self.scanned_lrs[0]) | (self.lrs == self.scanned_lrs[-1])

    def __repr__(self) -> str:
        at_end = int(self.is_at_end.sum())
        worst = max(self.law.line_p_value, self.law_with_log.line_p_value)
        return (
            f"StaircaseExponent(leap {self.leap}, degree {self.degree}, {self.optimizer}, batch {self.batch_size}, "
            f"d = {self.dimensions[0]} to {self.dimensions[-1]}, {len(self.seeds)} seeds: steps ~ "
            f"{self.law.in_words()}, or {self.law_with_log.in_words()}; conjecture d^{self.conjecture}; "
            f"{self.law.num_censored} of {self.times.numel()} censored"
            + (f"; step size at the end of the scan in {at_end} dimensions" if at_end else "")
            + (f"; sizes depart from both laws, p = {worst:.2g})" if worst < 0.05 else ")")
        )


def steps_to_learn(
    target: BooleanTarget,
    *,
    seeds: Iterable[int],
    hidden: int = 64,
    lr: float = 1.0,
    batch_size: int = 1,
    optimizer: Optimizer = "sgd",
    max_steps: int = 100_000,
    threshold: float = 0.1,
    log_every: int = 20,
) -> StaircaseTimes:
    r"""Online training of a small network on a target, several seeds at once, until each has learned it.

    The network is f(x) = 1/n \sum_j a_j tanh(w_j x + b_j) with n = `hidden` units, its loss half the mean squared
    error over `batch_size` new examples at every step. All weights are trained. They begin with w from N(0, 1/d), b
    from N(0, 1) and a uniform in [-1, 1]. A step of SGD is lr n / d times the gradient (n makes up for the 1/n of the
    mean), one of Adam has the rate lr / d; with the 1/d a step moves what a unit sees as far in any dimension.

    Args:
        target: the function to learn.
        seeds: of weights and examples, all different; a seed's run does not depend on the others (to rounding).
        hidden: units.
        lr: step size times dimension; with one example per step about 1 is quickest for SGD, 0.4 for Adam.
        batch_size: examples per step.
        optimizer: "sgd" without momentum, or "adam".
        max_steps: budget of each seed.
        threshold: learned where the mean squared error on 1,024 fixed rows is at most this share of the target's
            variance, in (0, 1).
        log_every: steps between the first logs. Later ones come after 2 % of the steps done, so that times have an
            error of 2 %, or of `log_every` where that is more.

    Returns:
        StaircaseTimes: `.times` (seeds,), inf where censored; `.losses`.

    Raises:
        ValueError, TypeError: an option out of range, seeds that are not different.

    Cost:
        with 64 units, one example and 48 coordinates, on one core: 10^5 steps of 8 seeds in about five seconds.
    """
    if not isinstance(target, BooleanTarget):
        remedy = "Make one with lh.datasets.boolean_targets(30, leap=1, degree=3)."
        raise TypeError(argument_message("target", f"is {a_type(target)}", "a BooleanTarget", remedy))
    numbers = _checked_seeds("seeds", seeds)
    lr = check_real("lr", lr, minimum=0, exclusive=True, remedy="Pass a step size times the dimension, such as 1.")
    options = _checked_options(hidden, batch_size, optimizer, max_steps, threshold, log_every)
    steps, losses = _train(target, numbers, [lr], **options)
    return StaircaseTimes(
        target=target, times=first_crossing(steps, losses[0], threshold=options["threshold"]), steps=steps,
        losses=losses[0], seeds=torch.tensor(numbers), max_steps=options["max_steps"], threshold=options["threshold"],
        lr=lr, optimizer=optimizer, batch_size=options["batch_size"], hidden=options["hidden"],
    )  # fmt: skip


def staircase_exponent(
    leap: int,
    *,
    degree: int = 3,
    dimensions: Sequence[int] = (16, 24, 32, 48, 64, 96),
    seeds: Iterable[int] = range(8),
    scan_seeds: Iterable[int] = range(100, 105),
    lrs: Sequence[float] | None = None,
    hidden: int = 64,
    batch_size: int = 1,
    optimizer: Optimizer = "sgd",
    max_steps: int = 100_000,
    threshold: float = 0.1,
    log_every: int = 20,
    confidence: float = 0.95,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> StaircaseExponent:
    """Exponent of the steps to learn in the dimension, for staircases of one leap.

    At each dimension the step sizes are tried with `scan_seeds`; the one with the shortest median time (the smallest of
    equals; the one of least loss, where none learns) is used for `seeds`, whose times are fitted by
    `censored_power_law`, with and without a factor log d. The two are seldom told apart by a factor of six in d, so the
    exponent is known up to the difference of both.

    Args:
        leap: of the targets, `boolean_targets(d, leap=leap, degree=degree)`.
        degree: of the targets; the same for several leaps makes them comparable.
        dimensions: d, at least two, ascending.
        seeds: whose times are reported.
        scan_seeds: which choose the step size, none of `seeds`.
        lrs: step sizes times dimension, ascending. By default 1/4, 1/2 ... 4 for SGD and 0.1, 0.2 ... 1.6 for Adam;
            with b examples per step they go on to 4 b and 1.6 sqrt(b).
        hidden: units; this and the following as in `steps_to_learn`.
        batch_size: examples per step.
        optimizer: "sgd" or "adam".
        max_steps: budget of each seed.
        threshold: share of the target's variance.
        log_every: steps between the first logs.
        confidence: of the intervals.
        resume: npz file that holds the finished dimensions: the same call continues from it, bit for bit.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        StaircaseExponent: `.exponent`, `.interval`, `.law_with_log`, `.conjecture`, `.times`.

    Raises:
        ValueError, TypeError: an option out of range, a seed both scanned and reported.

    Cost:
        of the defaults, on one core: three to ten seconds. A budget that no step size meets costs all of it, lrs x scan
        seeds at once: minutes at 10^5 steps.

    Source:
        Abbe, Boix-Adserà & Misiakiewicz (2023), "SGD learning on neural networks: leap complexity and saddle-to-saddle
        dynamics".
    """
    options = _checked_options(hidden, batch_size, optimizer, max_steps, threshold, log_every)
    reported, scanned = _checked_seeds("seeds", seeds), _checked_seeds("scan_seeds", scan_seeds)
    if both := sorted(set(reported) & set(scanned)):
        expected, remedy = "none of seeds", "The seeds that choose a step size flatter it: pass others."
        raise ValueError(argument_message("scan_seeds", f"has {both} in common with seeds", expected, remedy))
    remedy = "Pass ascending dimensions, such as (16, 24, 32, 48)."
    sizes = [check_count("an entry of dimensions", each, remedy=remedy) for each in dimensions]
    if len(sizes) < 2 or sizes != sorted(set(sizes)):
        raise ValueError(argument_message("dimensions", f"is {sizes}", "at least two, ascending", remedy))
    remedy = "Pass ascending step sizes times the dimension, such as (0.5, 1, 2)."
    given = _usual_lrs(optimizer, options["batch_size"]) if lrs is None else lrs
    rates = [check_real("an entry of lrs", each, minimum=0, exclusive=True, remedy=remedy) for each in given]
    if not rates or rates != sorted(set(rates)):
        raise ValueError(argument_message("lrs", f"is {rates}", "at least one, ascending", remedy))
    confidence = checked_confidence(confidence)
    targets = [boolean_targets(size, leap=leap, degree=degree) for size in sizes]

    identity = {
        "leap, degree, dimensions": repr((leap, degree, sizes)),
        "seeds": repr((reported, scanned)),
        "options": repr((rates, options)),
    }
    delay = 2.0 if progress is None else 0.0
    with (
        ResumedRows(resume, identity, kind="staircases", total=len(targets)) as finished,
        tqdm(total=len(targets), desc="staircases", unit="dimension", disable=is_silent(progress), delay=delay) as bar,
    ):
        bar.update(len(finished.rows))
        for target in targets[len(finished.rows) :]:
            steps, losses = _train(target, scanned, rates, **options, stops_at_median=True)
            found = first_crossing(steps, losses.flatten(0, 1), threshold=options["threshold"])
            scan = found.view(len(rates), len(scanned))
            medians = _upper_median(scan)
            last = torch.where(scan.isinf(), losses[..., -1].nan_to_num(nan=math.inf), 0.0)
            best = int((_upper_median(last) if bool(medians.isinf().all()) else medians).argmin())
            steps, losses = _train(target, reported, [rates[best]], **options)
            times = first_crossing(steps, losses[0], threshold=options["threshold"])
            finished.add({"times": times, "scan": scan, "lr": torch.tensor(rates[best], dtype=torch.float64)})
            bar.update()
        all_times, scans, chosen = (
            torch.stack([row[name] for row in finished.rows]) for name in ("times", "scan", "lr")
        )

    fits = [
        censored_power_law(sizes, all_times, budgets=max_steps, log_power=power, confidence=confidence)
        for power in (0.0, 1.0)
    ]
    return StaircaseExponent(
        leap=targets[0].leap, degree=degree, dimensions=torch.tensor(sizes), times=all_times,
        lrs=chosen, scanned_lrs=torch.tensor(rates, dtype=torch.float64),
        scan_times=scans, law=fits[0], law_with_log=fits[1], seeds=torch.tensor(reported),
        scan_seeds=torch.tensor(scanned), max_steps=options["max_steps"], optimizer=optimizer,
        batch_size=options["batch_size"], hidden=options["hidden"],
    )  # fmt: skip


def _usual_lrs(optimizer: str, batch_size: int) -> list[float]:
    """Step sizes times dimension, each twice the one before: the noise of a step allows larger ones in batches."""
    first, last = (0.25, 4.0 * batch_size) if optimizer == "sgd" else (0.1, 1.6 * math.sqrt(batch_size))
    return [first * 2**i for i in range(1 + math.ceil(math.log2(last / first) - 1e-9))]


# Training -------------------------------------------------------------------------------------------------------------


def _train(
    target: BooleanTarget,
    seeds: Sequence[int],
    lrs: Sequence[float],
    *,
    hidden: int,
    batch_size: int,
    optimizer: str,
    max_steps: int,
    threshold: float,
    log_every: int,
    stops_at_median: bool = False,
) -> tuple[Tensor, Tensor]:
    """Steps of the logs (logs,) and relative test losses (lrs, seeds, logs); a run ends once it has learned.

    Runs of one seed have the same weights and examples at every lr. With `stops_at_median` all end once more than half
    of the seeds of one lr have learned.
    """
    num, dimension = len(seeds), target.dimension
    test = torch.ones(_NUM_TEST, dimension + 1, device="cpu")  # a last column of ones carries the biases
    test[:, :-1], test_targets = target.sample(_NUM_TEST, private_generator(0, "test rows of boolean targets"))
    streams = [private_generator(seed, "examples of boolean targets") for seed in seeds]
    initial = [_initial_weights(hidden, dimension, seed) for seed in seeds]
    weights, readout = (torch.stack(each).repeat(len(lrs), 1, 1) for each in zip(*initial, strict=True))
    rates = torch.tensor(lrs).repeat_interleave(num)[:, None, None] / dimension  # (runs, 1, 1)
    adapted = [weights, readout, weights, readout] if optimizer == "adam" else []
    state = [weights, readout, rates, *map(torch.zeros_like, adapted)]  # the last four are Adam's moments

    running = torch.arange(len(lrs) * num)  # number of each run; its seed is that modulo num
    has_learned = torch.zeros(len(lrs) * num, dtype=torch.bool)
    steps, history, step = list[int](), list[Tensor](), 0
    with torch.no_grad():
        while step < max_steps and len(running):
            log_at = min(step + max(log_every, int(_GROWTH * step)), max_steps)
            while step < log_at:
                most = max(1, _MOST_NUMBERS // (len(running) * batch_size * (dimension + 1)))
                length = min(log_at - step, most)
                drawn, of_run = torch.unique(running % num, return_inverse=True)
                inputs = torch.ones(length, len(drawn), batch_size, dimension + 1, device="cpu")
                for i, seed in enumerate(drawn.tolist()):
                    inputs[:, i, :, :-1] = signs(length, batch_size, dimension, generator=streams[seed])
                targets = target(inputs[..., :-1])[..., None]  # (length, drawn, b, 1)
                _take_steps(state, inputs[:, of_run], targets[:, of_run], step)
                step += length
            losses = _losses(state[0], state[1], test, test_targets) / target.variance  # (running,)
            row = torch.full((len(has_learned),), math.nan)
            row[running] = losses
            steps.append(step)
            history.append(row)
            has_learned[running] = losses <= threshold
            if stops_at_median and bool((has_learned.view(len(lrs), num).sum(1) > num // 2).any()):
                break
            goes_on = losses.isfinite() & (losses > threshold)
            if not bool(goes_on.all()):
                running, state = running[goes_on], [each[goes_on] for each in state]
    return torch.tensor(steps), torch.stack(history, 1).view(len(lrs), num, -1)


def _initial_weights(hidden: int, dimension: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights with the biases as last column (hidden, dimension + 1), and the readout (hidden, 1)."""
    generator = private_generator(seed, "weights for boolean targets")
    weights = torch.randn(hidden, dimension + 1, generator=generator, dtype=torch.float64, device="cpu")
    weights[:, :-1] /= math.sqrt(dimension)
    readout = 2 * torch.rand(hidden, 1, generator=generator, dtype=torch.float64, device="cpu") - 1
    return weights.float(), readout.float()


def _take_steps(state: list[Tensor], inputs: Tensor, targets: Tensor, num_done: int) -> None:
    """One step for each of inputs (length, runs, b, d + 1) and targets (length, runs, b, 1), in place."""
    weights, readout, rates, *moments = state
    for i, (rows, wanted) in enumerate(zip(inputs, targets, strict=True)):
        if not moments:
            delta, hidden, error = _gradient_factors(weights, readout, rows, wanted, scale=rates)
            readout.baddbmm_(hidden.mT, error, alpha=-1)
            weights.baddbmm_(delta.mT, rows, alpha=-1)
            continue
        delta, hidden, error = _gradient_factors(weights, readout, rows, wanted, scale=1.0)
        gradients = delta.mT @ rows, hidden.mT @ error
        first, second = (1 - decay ** (num_done + i + 1) for decay in _DECAYS)  # the moments began at 0
        for values, gradient, mean, square in zip(state[:2], gradients, moments[:2], moments[2:], strict=True):
            mean.lerp_(gradient, 1 - _DECAYS[0])
            square.mul_(_DECAYS[1]).addcmul_(gradient, gradient, value=1 - _DECAYS[1])
            values.sub_(rates / first * mean / (square / second).sqrt_().add_(_EPSILON))


def _gradient_factors(
    weights: Tensor, readout: Tensor, rows: Tensor, targets: Tensor, *, scale: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Factors of `scale` n times the gradient of 1/2 mean (f - target)^2, for every run.

    With h = tanh(W x) and e = scale (f - target) / b, the gradient in W is delta^T x, delta = e a (1 - h^2), and the
    gradient in the readout a is h^T e. Products of the two that are added in place need no array of the gradient.

    Args:
        weights: (runs, n, d + 1).
        readout: a, (runs, n, 1).
        rows: x, (runs, b, d + 1).
        targets: (runs, b, 1).
        scale: number, or (runs, 1, 1).

    Returns:
        delta (runs, b, n), hidden (runs, b, n), error (runs, b, 1).
    """
    hidden = torch.bmm(rows, weights.mT).tanh_()
    error = torch.baddbmm(targets, hidden, readout, beta=-1, alpha=1 / readout.shape[1])
    error = error.mul_(scale / rows.shape[1])
    delta = torch.addcmul(error, hidden, hidden * error, value=-1)  # e (1 - h^2)
    return delta.mul_(readout.mT), hidden, error


def _losses(weights: Tensor, readout: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """(runs,) mean squared error on rows (m, d + 1) with targets (m,)."""
    found = [((rows @ w.T).tanh_() @ a).squeeze(1) / len(a) for w, a in zip(weights, readout, strict=True)]
    return (torch.stack(found) - targets).square().mean(1)


# What is given --------------------------------------------------------------------------------------------------------


def _upper_median(times: Tensor) -> Tensor:
    """Over the last axis, seeds."""
    return times.sort(dim=-1).values[..., times.shape[-1] // 2]


def _checked_seeds(argument: str, seeds: Any) -> list[int]:
    remedy = "Pass different whole numbers, such as range(8)."
    if isinstance(seeds, int | str) or not isinstance(seeds, Iterable):
        raise TypeError(argument_message(argument, f"is {seeds!r}", "several seeds", remedy))
    numbers = seeds.tolist() if isinstance(seeds, Tensor | np.ndarray) else seeds
    found = [check_count(f"an entry of {argument}", seed, minimum=0, remedy=remedy) for seed in numbers]
    if not found or len(set(found)) < len(found):
        raise ValueError(argument_message(argument, f"is {found}", "at least one, all different", remedy))
    return found


def _checked_options(
    hidden: Any, batch_size: Any, optimizer: Any, max_steps: Any, threshold: Any, log_every: Any
) -> dict[str, Any]:
    remedy = "Pass a share of the target's variance, such as 0.1."
    return {
        "hidden": check_count("hidden", hidden, remedy="Pass a number of units, such as 64."),
        "batch_size": check_count("batch_size", batch_size, remedy="Pass the examples per step, such as 1."),
        "optimizer": check_choice("optimizer", optimizer, _OPTIMIZERS),
        "max_steps": check_count("max_steps", max_steps, remedy="Pass a budget, such as 100_000."),
        "threshold": check_real("threshold", threshold, minimum=0, maximum=1, exclusive=True, remedy=remedy),
        "log_every": check_count("log_every", log_every, remedy="Pass a number of steps, such as 20."),
    }
