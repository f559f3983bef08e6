"""Claims of the post, the verdicts on them, and the intervals of their numbers.

A verdict is computed from the measurement by a rule that is printed beside it; nothing here is written by hand.

An interval is symmetric only where its quantity is: a ratio is as likely twice as half of its middle, and a share ends
at 1, so that theirs are Student's intervals of the logarithm and of the log odds, taken back.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit, logit
from scipy.stats import binomtest, sem
from scipy.stats import t as student

from lowhanging.errors import argument_message, check_choice

Verdict = Literal["holds", "holds in part", "does not hold"]

Scale = Literal["linear", "log", "share"]

FEW = 5  # values, below which an interval has their range beside it: Student's t knows little of so few
ONE_SEED = "one seed: no interval"


@dataclass(frozen=True)
class Claim:
    """One claim of the post and its measurement."""

    number: int  # its place in the report
    name: str
    post: str  # what the post says
    measured: str  # what this run found, with intervals over seeds
    null: str  # what that was held against, in words and numbers
    rule: str  # how the verdict follows from the measurement
    verdict: Verdict
    command: str = ""  # what repeats the number; the report fills it in
    part: str = ""  # "a", "b" where one claim of the post is measured in several places

    @property
    def label(self) -> str:
        """The number as it is shown: "19", "20a"."""
        return f"{self.number}{self.part}"


def judged(*parts: bool) -> Verdict:
    """The verdict over parts: "holds" if all do, "holds in part" if some do."""
    return "holds" if all(parts) else "holds in part" if any(parts) else "does not hold"


def most(flags: Iterable[bool]) -> bool:
    """Whether more than half of the seeds agree; how a part is judged over seeds."""
    found = list(flags)
    return sum(found) > len(found) / 2


def percent(share: float) -> str:
    """0.8312 -> "83.1 %"."""
    return f"{100 * share:.1f} %"


def interval(count: int, num: int) -> str:
    """A share with its Wilson 95 % interval: "84.0 % [78.3 %, 88.4 %]"; in words where there is nothing to count."""
    if num == 0:
        return "none of none"
    found = binomtest(count, num).proportion_ci(confidence_level=0.95, method="wilson")
    return f"{percent(count / num)} [{percent(found.low)}, {percent(found.high)}]"


def mean_interval(
    values: Sequence[float], digits: int = 3, unit: str = "", *, scale: Scale = "linear", with_range: bool = True
) -> str:
    """A mean over seeds with its 95 % interval (Student's t) and, of fewer than five values, their range.

    Args:
        values: one per seed.
        digits: significant ones; of a share two fewer, behind the point of a percentage.
        unit: written behind the numbers; of a share it is " %" by itself.
        scale: "linear": "2.81 ± 0.35 (2.7 to 2.9)". "log", for ratios and other positive numbers: the geometric mean,
            "1.73 [0.98, 3.06] (1.4 to 2.2)". "share", for shares between 0 and 1: the mean of the log odds, taken back
            and written in percent, "98.1 % [96.3, 99.0] (97.6 to 98.9)".
        with_range: False leaves the range out beside an interval, in a table that says it elsewhere.

    Returns:
        The text; of a single value, that value; of equal ones "10 each". Where a value has no place on its scale (a
        number of 0 or less on "log", a share of 0 or less, or of exactly 1, on "share") there is no interval: the
        ordinary mean with the range, whatever the number of values.

    Raises:
        ValueError: no values, a share above 1, or an unknown scale.
    """
    check_choice("scale", scale, ("linear", "log", "share"), remedy='"log" is for ratios, "share" for accuracies.')
    if not values or (scale == "share" and max(values) > 1):
        expected = "at least one value" if not values else "shares of at most 1"
        raise ValueError(argument_message("values", f"is {list(values)}", expected, "Pass shares as 0.98, not as 98."))
    write = _writer(scale, digits)
    unit = " %" if scale == "share" else unit
    low, high, num = min(values), max(values), len(values)
    if num < 2:
        return f"{write(values[0])}{unit}"
    if math.isclose(low, high, rel_tol=1e-9):
        return f"{write(low)}{unit} each"
    spread = f" ({write(low)} to {write(high)})" if write(low) != write(high) else ""
    beside = spread if num < FEW and with_range else ""
    if scale == "linear":
        mean, half = _student(values)
        return f"{write(mean)} ± {_rounded(half, 2)}{unit}{beside}"
    if low <= 0 or (scale == "share" and high == 1):
        return f"{write(statistics.fmean(values))}{unit}{spread}"
    there, back = (np.log, _exp) if scale == "log" else (logit, expit)
    middle, half = _student([float(there(value)) for value in values])
    ends = ", ".join(write(float(back(end))) for end in (middle - half, middle + half))
    return f"{write(float(back(middle)))}{unit} [{ends}]{beside}"


def _student(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of the width of its 95 % interval."""
    return statistics.fmean(values), float(student.ppf(0.975, len(values) - 1) * sem(values))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # e^710 is no float any more


def _writer(scale: Scale, digits: int) -> Callable[[float], str]:
    if scale == "share":
        return lambda share: f"{round(100 * share, max(digits - 2, 0)) + 0.0:.{max(digits - 2, 0)}f}"  # no "-0.0"
    return lambda value: _rounded(value, digits)


def _rounded(value: float, digits: int) -> str:
    """To so many digits, but "1.1e+02" only of a billion and more."""
    if abs(value) >= 1e9:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def over_seeds(num: int, *, with_range: bool = True) -> str:
    """What the intervals of a text are over, said once in it, and of few seeds what stands in parentheses."""
    if num == 1:
        return f"({ONE_SEED})"
    beside = ", the range in parentheses" if num < FEW and with_range else ""
    return f"(means over {num} seeds, with 95 % intervals{beside})"


def most_of(flags: Iterable[bool]) -> str:
    """How many seeds, with the Wilson 95 % interval: "3 of 3 seeds [43.9 %, 100.0 %]"; of one, "(not) the one seed"."""
    found = list(flags)
    if len(found) == 1:
        return "the one seed" if found[0] else "not the one seed"
    return f"{sum(found)} of {len(found)} seeds " + interval(sum(found), len(found)).split(" % ", 1)[1]
