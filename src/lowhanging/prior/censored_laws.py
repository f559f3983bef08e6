"""Laws of growth fitted to times of which some are only known to be longer than a budget.

A seed that has not learned within its budget is censored: the fit knows that its time is longer, and nothing else. To
drop it would make a slow task look quick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from scipy.special import fdtrc, log_ndtr, stdtrit
from torch import Tensor

from lowhanging.errors import argument_message, check_real
from lowhanging.io import Saved

_LEAST_SPREAD = 0.01  # of log times in a fit: they are not known better


@dataclass(frozen=True, eq=False, repr=False)
class PowerLaw(Saved):
    """A fit of log time = c + a log d + k log log d + normal noise, to times of which some are censored.

    Attributes:
        exponent: a; NaN where fewer than three times, or times of fewer than two sizes, are known.
        interval: of the exponent; an end is infinite where nothing bounds it.
        intercept: c.
        spread: standard deviation of log time about the law, at least 0.01.
        log_power: k, as given.
        log_likelihood: of the best fit; comparable between fits to the same times.
        line_p_value: how often sizes that obey the law depart from it as much (F test against a mean for each size);
            where it is small, the interval is too narrow. NaN for two sizes, or without two times at one.
        num_observed: times that are known.
        num_censored: those beyond their budget.
        confidence: of the interval.
    """

    exponent: float
    interval: Tensor  # (2,) float64
    intercept: float
    spread: float
    log_power: float
    log_likelihood: float
    line_p_value: float
    num_observed: int
    num_censored: int
    confidence: float

    def __repr__(self) -> str:
        total = self.num_observed + self.num_censored
        bent = f"; departs from the law, p = {self.line_p_value:.2g}" if self.line_p_value < 0.05 else ""
        return f"PowerLaw(time ~ {self.in_words()}; {self.num_censored} of {total} censored{bent})"

    def in_words(self) -> str:
        """The law with its interval, as d^1.02 [0.95, 1.1] log d."""
        low, high = self.interval.tolist()
        logarithm = {0.0: "", 1.0: " log d"}.get(self.log_power, f" (log d)^{self.log_power:g}")
        return f"d^{self.exponent:.3g} [{low:.3g}, {high:.3g}]{logarithm}"


@dataclass(frozen=True, eq=False, repr=False)
class FactorGrowth(Saved):
    r"""How the factor between a slow and a fast time grows with a size n: as exp(rate n), or as a power of n.

    Attributes:
        rate: of the exponential; NaN where too few times are known.
        interval: of the rate; growth is shown where it lies above 0.
        power: exponent of the power law n^power, fitted to the same factors.
        power_interval: of that.
        support: log-likelihood of the exponential less that of the power law; both have three free numbers. Above about
            2 it speaks for the exponential, below -2 for the power law, in between for neither.
        curve_p_values: how often sizes depart as much from each law, exponential first; small where a law is wrong.
        sizes: n.
        factors: slow over fast time of each seed; inf where the slow one was not learned.
        num_censored: seeds whose factor is only known to be larger.
        confidence: of the intervals.
    """

    rate: float
    interval: Tensor  # (2,) float64
    power: float
    power_interval: Tensor  # (2,) float64
    support: float
    curve_p_values: Tensor  # (2,) float64
    sizes: Tensor  # (k,) float64
    factors: Tensor  # (k, seeds) float64
    num_censored: int
    confidence: float

    @property
    def medians(self) -> Tensor:
        """(k,) upper median factor over seeds; inf where half of them or more are censored."""
        return self.factors.sort(dim=1).values[:, self.factors.shape[1] // 2]

    def __repr__(self) -> str:
        low, high = self.interval.tolist()
        ends = self.power_interval.tolist()
        return (
            f"FactorGrowth(factor ~ exp({self.rate:.3g} [{low:.3g}, {high:.3g}] n), or n^{self.power:.3g} "
            f"[{ends[0]:.3g}, {ends[1]:.3g}]; log-likelihood of the first less the second {self.support:+.2g}; "
            f"{self.num_censored} of {self.factors.numel()} censored)"
        )


def factor_growth(
    sizes: Any, *, slow: Tensor, fast: Tensor, budgets: float | Tensor, confidence: float = 0.95
) -> FactorGrowth:
    r"""Whether the factor between two learning times grows exponentially with a size.

    Of each seed log(T_slow / T_fast) = c + rate n + s \epsilon, and beside it c + power log n + s \epsilon; a slow time
    that was not reached makes the factor larger than budget / T_fast. Fits and intervals are those of
    `censored_power_law`, of which an exponential in n is the case d = e^n.

    Args:
        sizes: n, (k,), 2 at least, above 1.
        slow: (k, seeds), positive; inf where not learned within the budget.
        fast: (k, seeds), of the same seeds, all learned.
        budgets: steps that the slow one was trained, a number or (k,).
        confidence: in (0, 1).

    Returns:
        FactorGrowth: `.rate`, `.interval`, `.support`.

    Raises:
        ValueError, TypeError: shapes that do not fit, a fast time that was not reached.

    Cost:
        two fits, a tenth of a second.
    """
    rows, base = (torch.as_tensor(each, dtype=torch.float64, device="cpu") for each in (slow, fast))
    n = torch.as_tensor(sizes, dtype=torch.float64, device="cpu")
    if rows.ndim != 2 or rows.shape != base.shape or n.shape != rows.shape[:1]:
        received = f"has shape {tuple(rows.shape)} beside fast {tuple(base.shape)} and sizes {tuple(n.shape)}"
        raise ValueError(argument_message("slow", received, "(k, seeds) twice and (k,)", "Pass the same seeds."))
    if not bool((base.isfinite() & (base > 0)).all()):
        remedy = "Train the quicker task longer: a factor needs its time."
        raise ValueError(argument_message("fast", "has a time that was not reached", "positive finite times", remedy))
    limits = torch.as_tensor(budgets, dtype=torch.float64).reshape(-1, 1).expand_as(rows) / base
    factors = rows / base
    options: dict[str, Any] = {"budgets": limits, "confidence": confidence}
    exponential = censored_power_law(n.exp(), factors, **options)
    power = censored_power_law(n, factors, **options)
    return FactorGrowth(
        rate=exponential.exponent, interval=exponential.interval, power=power.exponent, power_interval=power.interval,
        support=exponential.log_likelihood - power.log_likelihood,
        curve_p_values=torch.tensor([exponential.line_p_value, power.line_p_value], dtype=torch.float64),
        sizes=n, factors=factors, num_censored=exponential.num_censored, confidence=confidence,
    )  # fmt: skip


def censored_power_law(
    sizes: Sequence[int] | Tensor,
    times: Tensor,
    *,
    budgets: float | Tensor,
    log_power: float = 0.0,
    confidence: float = 0.95,
) -> PowerLaw:
    r"""Exponent of times in a size, where some times are only known to be longer than a budget.

    The model is log T = c + a log d + k log log d + s \epsilon with a standard normal \epsilon, k = `log_power` given.
    A known time contributes its density to the likelihood, a censored one the probability of a time beyond the budget
    (a Tobit model). It is concave in (1/s, c/s, a/s), so that its maximum is the only one.

    The interval holds the exponents whose profile log-likelihood is below the maximum by at most

        n/2 log(1 + t^2 / (n - 2)),

    n the number of known times and t the quantile of Student's t with n - 2 degrees of freedom. Without censoring this
    is the exact interval of a regression line. Times of one size are taken to differ by their seeds alone: what all of
    a size have in common beyond the law (its step size, its test rows) is not in the interval. `line_p_value` is small
    where there is such a thing.

    Args:
        sizes: d, (k,), above 1.
        times: (k, seeds), positive; inf where censored.
        budgets: steps that were trained, a number, (k,) or (k, seeds).
        log_power: k; 1 for a law d^a log d.
        confidence: in (0, 1).

    Returns:
        PowerLaw: `.exponent`, `.interval`.

    Raises:
        ValueError, TypeError: shapes that do not fit, a known time beyond its budget, a size of 1 or less.

    Cost:
        some tens of fits, a twentieth of a second.
    """
    remedy = "Pass sizes (k,) above 1, times (k, seeds) and a budget, or one for each size."
    d = torch.as_tensor(sizes, dtype=torch.float64, device="cpu")
    t = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    limits = torch.as_tensor(budgets, dtype=torch.float64, device="cpu")
    fits = limits.numel() in (1, len(d)) or limits.shape == t.shape
    if d.ndim != 1 or t.ndim != 2 or len(d) != len(t) or t.numel() == 0 or not fits:
        received = f"has shape {tuple(t.shape)} for sizes {tuple(d.shape)} and budgets {tuple(limits.shape)}"
        raise ValueError(argument_message("times", received, "(k, seeds) for (k,) and a number or (k,)", remedy))
    if not bool(((d > 1) & d.isfinite()).all()):
        raise ValueError(argument_message("sizes", f"is {d.tolist()}", "finite numbers above 1", remedy))
    limits = limits if limits.shape == t.shape else limits.expand(len(d))[:, None].expand_as(t)
    is_known = t.isfinite()
    if not bool((limits.isfinite() & (limits > 0)).all()):
        raise ValueError(argument_message("budgets", f"is {budgets}", "positive numbers", remedy))
    if not bool(((t > 0) & (~is_known | (t <= limits))).all()):
        remedy = "A time that was not reached is inf."
        raise ValueError(
            argument_message("times", "has one outside (0, budget]", "times up to the budget, inf", remedy)
        )
    log_power = check_real("log_power", log_power, remedy="Pass 0, or 1 for a law d^a log d.")
    confidence = checked_confidence(confidence)

    x = d.log()[:, None].expand_as(t).flatten().numpy()
    y = torch.where(is_known, t, limits).log().flatten().numpy() - log_power * np.log(x)
    known = is_known.flatten().numpy()
    num = int(known.sum())
    counts: dict[str, Any] = {"num_observed": num, "num_censored": len(y) - num, "confidence": confidence}
    if num < 3 or len(np.unique(x[known])) < 2:
        unknown = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
        return PowerLaw(math.nan, unknown, math.nan, math.nan, log_power, math.nan, math.nan, **counts)
    middle = x.mean()
    best, (exponent, intercept, spread) = _maximum(y, known, np.stack([x - middle, np.ones_like(x)], 1))
    quantile = float(stdtrit(num - 2, 0.5 * (1 + confidence)))
    allowed = 0.5 * num * math.log1p(quantile**2 / (num - 2))

    levels, of_size = np.unique(x, return_inverse=True)
    above, below = len(levels) - 2, num - len(levels)  # degrees of freedom
    line_p_value = math.nan
    if above > 0 and below > 0:
        free = _maximum(y, known, np.eye(len(levels))[of_size])[0]  # a mean for each size
        line_p_value = float(fdtrc(above, below, math.expm1(2 * max(free - best, 0.0) / num) * below / above))

    def excess(a: float) -> float:
        """Drop of the profile log-likelihood at an exponent beyond what the interval allows."""
        return best - _maximum(y - a * (x - middle), known, np.ones((len(x), 1)))[0] - allowed

    width = quantile * spread / (math.sqrt(num) * float(x[known].std()))
    ends = [_end(excess, exponent, sign * width) for sign in (-1, 1)]
    return PowerLaw(
        exponent, torch.tensor(ends, dtype=torch.float64), intercept - exponent * middle, spread, log_power, best,
        line_p_value, **counts,
    )  # fmt: skip


def _end(excess: Any, begin: float, width: float) -> float:
    """Root of a function that is negative at `begin`, looked for in steps that double; infinite if there is none."""
    for _ in range(12):
        if excess(begin + width) > 0:
            return float(brentq(excess, begin, begin + width, xtol=1e-6))
        width *= 2
    return math.copysign(math.inf, width)


def _maximum(y: np.ndarray, known: np.ndarray, columns: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """Largest log-likelihood of y = columns @ b + s noise, known or censored from below; (*b, s)."""
    guess, *_ = np.linalg.lstsq(columns, y, rcond=None)
    inverse = min(1 / max(float((y - columns @ guess).std()), _LEAST_SPREAD), 1 / _LEAST_SPREAD)
    num = int(known.sum())

    def negative(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        inverse, scaled = parameters[0], parameters[1:]
        z = inverse * y - columns @ scaled
        log_tail = log_ndtr(-z)  # of a time beyond the budget
        value = num * math.log(inverse) - 0.5 * (z[known] ** 2 + math.log(2 * math.pi)).sum() + log_tail[~known].sum()
        slope = np.where(known, -z, -np.exp(-0.5 * z**2 - log_tail) / math.sqrt(2 * math.pi))
        return -value, -np.concatenate([[num / inverse + slope @ y], -(slope @ columns)])

    bounds = [(1e-3, 1 / _LEAST_SPREAD)] + [(None, None)] * columns.shape[1]
    options = {"maxiter": 500, "ftol": 1e-13, "gtol": 1e-7}
    start = np.concatenate([[inverse], inverse * guess])
    found = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    inverse = float(found.x[0])
    return -float(found.fun), (*(found.x[1:] / inverse).tolist(), 1 / inverse)


def checked_confidence(confidence: Any) -> float:
    """A number in (0, 1)."""
    return check_real("confidence", confidence, minimum=0, maximum=1, exclusive=True, remedy="0.95 is usual.")
