"""What does the post say, what was measured, and does it hold?

A verdict is computed from the measurement by a rule that is printed beside it; nothing here is written by hand.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import binomtest
from scipy.stats import t as student

Verdict = Literal["holds", "holds in part", "does not hold"]

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


def mean_interval(values: Sequence[float], digits: int = 3, unit: str = "") -> str:
    """A mean with its 95 % interval (Student's t over seeds): "2.81 ± 0.35"; of a single value, that value."""
    mean = _rounded(statistics.fmean(values), digits)
    if len(values) < 2:
        return f"{mean}{unit}"
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {_rounded(half, 2)}{unit}"


def _rounded(value: float, digits: int) -> str:
    """To so many digits, but never "1.1e+02"."""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def over_seeds(num: int) -> str:
    """What the intervals of a text are over, said once in it: "(means over 3 seeds, with 95 % intervals)"."""
    return f"({ONE_SEED})" if num == 1 else f"(means over {num} seeds, with 95 % intervals)"


def most_of(flags: Iterable[bool]) -> str:
    """How many seeds, with the Wilson 95 % interval: "3 of 3 seeds [43.9 %, 100.0 %]"; of one, "(not) the one seed"."""
    found = list(flags)
    if len(found) == 1:
        return "the one seed" if found[0] else "not the one seed"
    return f"{sum(found)} of {len(found)} seeds " + interval(sum(found), len(found)).split(" % ", 1)[1]
