"""What does the post say, what was measured, and does it hold?

A verdict is computed from the measurement by a rule that is printed beside it; nothing here is written by hand.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import binomtest
from scipy.stats import t as student

Verdict = Literal["holds", "holds in part", "does not hold"]


@dataclass(frozen=True)
class Claim:
    """One claim of the post and its measurement."""

    name: str
    post: str  # what the post says
    measured: str  # what this run found
    rule: str  # how the verdict follows from the measurement
    verdict: Verdict


def judged(*parts: bool) -> Verdict:
    """The verdict over parts: "holds" if all do, "holds in part" if some do."""
    return "holds" if all(parts) else "holds in part" if any(parts) else "does not hold"


def percent(share: float) -> str:
    """0.8312 -> "83.1 %"."""
    return f"{100 * share:.1f} %"


def interval(count: int, num: int) -> str:
    """A share with its Wilson 95 % interval: "84.0 % [78.3 %, 88.4 %]"."""
    found = binomtest(count, num).proportion_ci(confidence_level=0.95, method="wilson")
    return f"{percent(count / num)} [{percent(found.low)}, {percent(found.high)}]"


def mean_interval(values: list[float], digits: int = 3) -> str:
    """A mean with its 95 % interval (Student's t over seeds): "2.81 ± 0.35"."""
    half = math.inf
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.{digits}g} ± {half:.2g}"


def markdown(claims: Sequence[Claim], heading: Sequence[str]) -> str:
    """The claims as a page: `heading` lines, a table, then each claim with its rule."""
    lines = [
        "# The post's claims, measured",
        "",
        *heading,
        "",
        "| claim | the post | measured | verdict |",
        "|---|---|---|---|",
    ]
    lines += [f"| {claim.name} | {claim.post} | {claim.measured} | **{claim.verdict}** |" for claim in claims]
    lines += ["", "How each verdict was reached:", ""]
    lines += [f"* *{claim.name}*: {claim.rule}." for claim in claims]
    return "\n".join(lines) + "\n"
