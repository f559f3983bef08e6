"""What does the post say, what was measured, and does it hold?

A verdict is computed from the measurement by a rule that is printed beside it; nothing here is written by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
