"""Sums of the logits on single cues, and averages of their probabilities, as explanations of the answers to both.

The share of variance comes from least squares on one half of the examples, judged on the other: mixed_ic = alpha_c +
beta_1 first_ic + beta_2 second_ic, one slope per cue for all classes and an intercept per class, each example's mean
over classes taken off (softmax does not see it). Two cues with one label resemble each other for no better reason than
the label, so that any two examples of it would explain much of the variance. So the fit is repeated *within labels*,
with an intercept per class and label, and held against cues of other examples of the same label. That both cues are
combined is shown by what each adds to the other (`unique`), not by the share of both.

Whether logits are added or probabilities averaged is compared in nats, with equal freedom, z_i the logits on cue i:

    added:     q = softmax(alpha + beta_1 z_1 + beta_2 z_2), or
    averaged:  q ~ exp(alpha) (w softmax(beta_1 z_1) + (1 - w) softmax(beta_2 z_2)).

Both have a slope per cue and a bias per class, and the average has its weight besides: what the sum wins by, it does
not win by its parameters. Both are fitted to the least mean KL(mixed || q) over one half of the examples and judged on
the other; then the halves change roles. The plain ones have nothing fitted: slopes 1, no biases, w = 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from lowhanging.errors import NotConvergedError, a_type, argument_message, check_count, check_finite
from lowhanging.io import Saved

RESERVED = {"both", "logits", "probabilities"}  # keys of results, which no cue may have as its name
_TOLERANCE = 1e-5  # largest derivative of the mean KL divergence, in nats per unit of a parameter
_LEASH = 1e-6  # times half the squared distance from the plain one: a fit that is best at infinity has an end, too
_LOG_ODDS = (0.0, -3.0, 3.0)  # log(w / (1 - w)) that a fit of the average starts from


@dataclass(frozen=True, eq=False, repr=False)
class LogitSum(Saved):
    """Shares of the mixed logits' variance that the logits on single cues explain, on examples that were held out.

    A share is 1 - (squared error of the fit) / (squared error of its intercepts alone): 0 if the cues say nothing
    more, negative if they mislead. Keys: "both", and the name of each cue for a fit with that one alone.

    Attributes:
        shares: key -> share with an intercept per class.
        within: key -> share with an intercept per class and label: of what the label leaves open.
        intervals, within_intervals: 95 %, percentile bootstrap over the held-out examples.
        unique: cue -> both minus the fit without it, within labels; with `unique_intervals`.
        slopes: cue -> beta of the fit with both, within labels.
        same_label, other_label: share of "both" with the cues of other examples of the same label, or of any;
            `same_label_within` within labels.
        divergence: mean KL divergence (nats) from the softmax of the mixed logits to that of a fitted sum ("logits"),
            to a fitted average of the two cues' probabilities ("probabilities"), and to each cue alone. All are fitted
            by this divergence with a slope per cue and a bias per class, the average with a weight too, on one half of
            the examples and judged on the other, both ways.
        num_free: free parameters of each of these, in the same keys.
        divergence_gain: "probabilities" minus "logits", and its 95 % interval, bootstrap over all examples; as the
            other intervals, it holds for these fits and leaves out how they would differ on other examples.
        plain_divergence, plain_gain: the same with nothing fitted: slopes 1, no biases, equal weights.
        cross_entropy: with the labels, in nats: "mixed", and of the plain "logits" and "probabilities".
        predicted: the fitted sum of the held-out examples, beside
        observed: their mixed logits, both without the mean over classes.
        labels: of the held-out examples.
    """

    shares: dict[str, float]
    intervals: dict[str, Tensor]  # (2,)
    within: dict[str, float]
    within_intervals: dict[str, Tensor]  # (2,)
    unique: dict[str, float]
    unique_intervals: dict[str, Tensor]  # (2,)
    slopes: dict[str, float]
    same_label: float
    same_label_within: float
    other_label: float
    divergence: dict[str, float]
    num_free: dict[str, int]
    divergence_gain: Tensor  # (3,) mean, low, high
    plain_divergence: dict[str, float]
    plain_gain: Tensor  # (3,) mean, low, high
    cross_entropy: dict[str, float]
    predicted: Tensor  # (n, c) float64
    observed: Tensor  # (n, c) float64
    labels: Tensor  # (n,) int64

    def __repr__(self) -> str:
        alone = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.shares.items())
        return f"LogitSum({alone}; within labels {100 * self.within['both']:.1f} %; {len(self.labels)} held out)"


def logit_sum(
    mixed: Tensor, cues: Mapping[str, Tensor], *, labels: Tensor, num_resamples: int = 2000, seed: int = 0
) -> LogitSum:
    """Share of the logits on both cues that is the sum of the logits on each.

    Args:
        mixed: (n, c) logits on inputs with both cues.
        cues: two names -> (n, c) logits on the inputs with that cue alone; row i is example i in all three.
        labels: (n,) class of each example, 0 to c - 1.
        num_resamples: of each bootstrap (percentile).
        seed: of the halves, the cues of other examples and the bootstraps; the global random state is not used.

    Returns:
        LogitSum.

    Raises:
        ValueError, TypeError: shapes that differ, other than two cues, NaN, or a label with fewer than four examples.
        NotConvergedError: a fit that did not reach a stationary point.
    """
    names, tensors = _checked(mixed, cues, labels)
    check_count("num_resamples", num_resamples, minimum=100, remedy="Pass a number of samples, such as 2000.")
    generator = torch.Generator().manual_seed(check_count("seed", seed, minimum=0, remedy="Any non-negative integer."))
    fitted_on, judged_on = _halves(labels, mixed.shape[1], generator)
    target, parts = tensors[0], tensors[1:]
    sets = {"both": [0, 1], names[0]: [0], names[1]: [1]}

    def fits(within: bool, dealt: list[Tensor]) -> dict[str, _Fit]:
        groups = labels if within else torch.zeros_like(labels)
        return {
            name: _fit(target, [dealt[i] for i in which], groups, fitted_on, judged_on) for name, which in sets.items()
        }

    def interval(statistic: Callable[..., Any], *rows: Tensor) -> Tensor:
        """(2,) 95 %, percentile bootstrap over examples; the same seed draws the same examples for every statistic."""
        from scipy.stats import bootstrap  # half a second, not at every import

        rng, arrays = np.random.default_rng(seed), [row.numpy() for row in rows]
        found = bootstrap(
            arrays, statistic, paired=True, vectorized=True, n_resamples=num_resamples, batch=100,
            method="percentile", rng=rng,
        )  # fmt: skip
        return torch.tensor([*found.confidence_interval], dtype=torch.float64)

    def gain(nats: Mapping[str, Tensor]) -> Tensor:
        """(3,) how much farther the average of probabilities is than the sum of logits, with its interval."""
        more = nats["probabilities"] - nats["logits"]  # (n,)
        return torch.cat([more.mean()[None], interval(np.mean, more)])

    overall, within = fits(False, parts), fits(True, parts)
    both, alone = within["both"], {name: within[other] for name, other in (names, names[::-1])}  # without that cue
    same = [part[_other_example(labels, generator)] for part in parts]
    anyone = [part[torch.randperm(len(labels), generator=generator)] for part in parts]
    nats = divergences(target, parts, names, (fitted_on, judged_on))
    return LogitSum(
        shares={name: fit.share for name, fit in overall.items()},
        intervals={name: interval(_share, fit.error, fit.baseline) for name, fit in overall.items()},
        within={name: fit.share for name, fit in within.items()},
        within_intervals={name: interval(_share, fit.error, fit.baseline) for name, fit in within.items()},
        unique={name: both.share - fit.share for name, fit in alone.items()},
        unique_intervals={
            name: interval(_share_gained, both.error, both.baseline, fit.error, fit.baseline)
            for name, fit in alone.items()
        },
        slopes=dict(zip(names, both.slopes.tolist(), strict=True)),
        same_label=fits(False, same)["both"].share,
        same_label_within=fits(True, same)["both"].share,
        other_label=fits(False, anyone)["both"].share,
        divergence={name: float(values.mean()) for name, values in nats.fitted.items()},
        num_free=nats.num_free,
        divergence_gain=gain(nats.fitted),
        plain_divergence={name: float(values.mean()) for name, values in nats.plain.items()},
        plain_gain=gain(nats.plain),
        cross_entropy=_cross_entropies(target, parts, labels),
        predicted=overall["both"].predicted,
        observed=target[judged_on],
        labels=labels[judged_on].clone(),
    )


Combination = Callable[[Tensor, list[Tensor]], Tensor]  # (parameters, logits of each cue) -> (n, c) log probabilities


class Divergences(NamedTuple):
    """KL divergence of every example from the softmax of the mixed logits to each prediction of it, in nats."""

    fitted: dict[str, Tensor]  # (n,) each; "logits", "probabilities", and the name of each cue for that one alone
    num_free: dict[str, int]  # free parameters of each
    plain: dict[str, Tensor]  # (n,) each; "logits", "probabilities"


def added(values: Tensor, rows: list[Tensor]) -> Tensor:
    """Log probabilities (n, c) of a sum of logits: a slope for each cue, then a bias per class."""
    slopes, biases = values[: len(rows)], values[len(rows) :]
    weighted = torch.stack([slope * row for slope, row in zip(slopes, rows, strict=True)])  # (cues, n, c)
    return (biases + weighted.sum(0)).log_softmax(1)


def averaged(values: Tensor, rows: list[Tensor]) -> Tensor:
    """Log probabilities (n, c) of an average: a slope for each cue, a bias per class, the log odds of the weight."""
    slopes, biases, log_odds = values[:2], values[2:-1], values[-1]
    first, second = ((slope * row).log_softmax(1) for slope, row in zip(slopes, rows, strict=True))
    log_weights = torch.nn.functional.logsigmoid(torch.stack([log_odds, -log_odds]))
    return (biases + torch.logaddexp(log_weights[0] + first, log_weights[1] + second)).log_softmax(1)


def divergences(
    mixed: Tensor, cues: Sequence[Tensor], names: Sequence[str], halves: tuple[Tensor, Tensor]
) -> Divergences:
    """Of mixed (n, c) from two cues (n, c); each example is judged by the fit to the half that it is not in."""
    truth, num_classes = mixed.log_softmax(1), mixed.shape[1]
    no_biases = np.zeros(num_classes)
    models: dict[str, tuple[Combination, list[int], np.ndarray]] = {  # what it is, of which cues, its plain parameters
        "logits": (added, [0, 1], np.concatenate([[1.0, 1.0], no_biases])),
        "probabilities": (averaged, [0, 1], np.concatenate([[1.0, 1.0], no_biases, [0.0]])),
        names[0]: (added, [0], np.concatenate([[1.0], no_biases])),
        names[1]: (added, [1], np.concatenate([[1.0], no_biases])),
    }
    fitted, plain = {}, {}
    for key, (model, which, start) in models.items():
        rows = [cues[i] for i in which]
        plain[key] = divergence(truth, model(torch.from_numpy(start), rows))
        fitted[key] = torch.empty_like(plain[key])
        for fitted_on, judged_on in (halves, halves[::-1]):
            best = _best(model, truth[fitted_on], [row[fitted_on] for row in rows], start, key)
            log_q = model(torch.from_numpy(best), [row[judged_on] for row in rows])
            fitted[key][judged_on] = divergence(truth[judged_on], log_q)
    # One more for all biases changes nothing: c - 1 of them are free.
    num_free = {key: len(start) - 1 for key, (_, _, start) in models.items()}
    return Divergences(fitted, num_free, {key: plain[key] for key in ("logits", "probabilities")})


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL divergence (n,): the sum over classes of p (log p - log q)."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _best(model: Combination, truth: Tensor, rows: list[Tensor], plain: np.ndarray, name: str) -> np.ndarray:
    """The parameters of least mean divergence: a sum has one minimum, an average may have several, hence the starts."""

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(values).requires_grad_()
        with torch.enable_grad():
            value = divergence(truth, model(x, rows)).mean()
            value = value + _LEASH / 2 * (x - torch.from_numpy(plain)).square().sum()
        (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient.numpy()

    starts = [plain] if model is added else [np.append(plain[:-1], log_odds) for log_odds in _LOG_ODDS]
    fits = [
        scipy.optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 1000})
        for start in starts
    ]
    best = min(fits, key=lambda fit: float(fit.fun) if np.isfinite(fit.fun) else np.inf)
    steepest = float(np.abs(best.jac).max())
    if not steepest <= _TOLERANCE:
        raise NotConvergedError(
            f"the fit of {name!r} stopped with a derivative of {steepest:.1e} nats, more than {_TOLERANCE:.0e}.\n"
            "Divide the logits by a number that brings them to the order of 1: a slope is fitted anyway.",
            best.x,
        )
    return np.asarray(best.x)


class _Fit(NamedTuple):
    """One regression, judged on the examples that were held out."""

    slopes: Tensor  # (cues,)
    predicted: Tensor  # (n, c)
    error: Tensor  # (n,) squared error of each example
    baseline: Tensor  # (n,) squared error of the intercepts alone

    @property
    def share(self) -> float:
        return float(_share(self.error, self.baseline))


def _fit(target: Tensor, parts: list[Tensor], groups: Tensor, fitted_on: Tensor, judged_on: Tensor) -> _Fit:
    """An intercept per class and group, a slope per part."""
    means = []  # (groups, c) of the target and of each part
    for rows in (target, *parts):
        sums = torch.zeros(int(groups.max()) + 1, rows.shape[1], dtype=rows.dtype)
        sums.index_add_(0, groups[fitted_on], rows[fitted_on])
        means.append(sums / groups[fitted_on].bincount(minlength=len(sums)).clamp_min(1)[:, None])
    centered = [rows - mean[groups] for rows, mean in zip((target, *parts), means, strict=True)]
    design = torch.stack([rows[fitted_on].flatten() for rows in centered[1:]], dim=1)  # (n c, parts)
    slopes = torch.linalg.lstsq(design, centered[0][fitted_on].flatten()[:, None], driver="gelsd").solution[:, 0]
    explained = sum(slope * rows[judged_on] for slope, rows in zip(slopes, centered[1:], strict=True))
    rest = centered[0][judged_on]
    predicted = means[0][groups[judged_on]] + explained
    return _Fit(slopes, predicted, (rest - explained).square().sum(1), rest.square().sum(1))


def _cross_entropies(target: Tensor, parts: list[Tensor], labels: Tensor) -> dict[str, float]:
    """Of the mixed logits, of the plain sum, and of the plain average."""
    first, second = (part.log_softmax(1) for part in parts)
    log_probabilities = {"mixed": target.log_softmax(1), "logits": (first + second).log_softmax(1)}
    log_probabilities["probabilities"] = torch.logaddexp(first, second) - math.log(2)
    return {name: float(-log_q.gather(1, labels[:, None]).mean()) for name, log_q in log_probabilities.items()}


def _share(error: Any, baseline: Any, axis: int = -1) -> Any:
    """Of the variance, explained; arrays or tensors."""
    return 1 - error.sum(axis) / baseline.sum(axis)


def _share_gained(error: Any, baseline: Any, other_error: Any, other_baseline: Any, axis: int = -1) -> Any:
    return _share(error, baseline, axis) - _share(other_error, other_baseline, axis)


def _halves(labels: Tensor, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to fit on and rows to judge on, each label split in two."""
    fitted_on, judged_on = [], []
    for label in sorted(set(labels.tolist())):
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) < 4 or not 0 <= label < num_classes:
            received = f"has {len(rows)} examples of class {label}"
            expected = f"at least four of each class that occurs, all from 0 to {num_classes - 1}"
            remedy = "Pass more examples, or leave the class out."
            raise ValueError(argument_message("labels", received, expected, remedy))
        rows = rows[torch.randperm(len(rows), generator=generator)]
        fitted_on.append(rows[: len(rows) // 2])
        judged_on.append(rows[len(rows) // 2 :])
    return torch.cat(fitted_on), torch.cat(judged_on)


def _other_example(labels: Tensor, generator: torch.Generator) -> Tensor:
    """For each example another one of its label, each once."""
    order = torch.empty_like(labels)
    for label in sorted(set(labels.tolist())):
        rows = (labels == label).nonzero()[:, 0]
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        order[shuffled] = shuffled.roll(1)  # a cycle: no example keeps its own
    return order


def _checked(mixed: Tensor, cues: Mapping[str, Tensor], labels: Tensor) -> tuple[tuple[str, str], list[Tensor]]:
    """Names of the cues, and all logits in float64 without their mean over classes."""
    remedy = 'Pass cues={"one": model(images of one cue), "other": model(images of the other)}.'
    if not isinstance(cues, Mapping) or len(cues) != 2 or RESERVED & set(cues):
        received = f"has the names {list(cues)}" if isinstance(cues, Mapping) else f"is {a_type(cues)}"
        expected = "two names of cues, none of them 'both', 'logits' or 'probabilities'"
        raise ValueError(argument_message("cues", received, expected, remedy))
    first, second = map(str, cues)
    found = []
    for name, logits in (("mixed", mixed), *cues.items()):
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape != mixed.shape:
            received = f"has shape {tuple(getattr(logits, 'shape', ()))}"
            expected = f"(n, classes) as the mixed logits, {tuple(getattr(mixed, 'shape', ()))}"
            raise ValueError(argument_message(name, received, expected, remedy))
        check_finite(name, logits, remedy="Logits of the same trained network on each view.")
        rows = logits.detach().cpu().double()
        found.append(rows - rows.mean(1, keepdim=True))
    if not isinstance(labels, Tensor) or tuple(labels.shape) != (len(mixed),) or labels.is_floating_point():
        received = f"has shape {tuple(getattr(labels, 'shape', ()))}"
        expected = f"({len(mixed)},) integer classes"
        raise ValueError(argument_message("labels", received, expected, "Pass view.test.targets."))
    return (first, second), found
