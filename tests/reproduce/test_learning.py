"""The claims "both cues are learned" and "redundancy pays", on rows written by hand.

Each row gives the two cues different numbers, so that a text or a rule that takes one for the other is seen; verdicts
are asked for at their thresholds and just below them.
"""

from __future__ import annotations

import math
import statistics

import pytest

from lowhanging.reproduce.themes import learning
from lowhanging.reproduce.themes import toy_sum as redundancy


def row(number: float, pattern: float, *, mixed: float = 0.97, before: tuple[float, float] = (0.11, 0.07)) -> dict:
    """What `learning.measure` returns, as far as the claim reads it."""
    final = {"mixed": mixed, "number": number, "pattern": pattern}
    start = {"mixed": 0.1, "number": before[0], "pattern": before[1]}
    return {"accuracy_after_training": final, "accuracies": {name: [start[name], 0.5, final[name]] for name in final}}


def verdict(*rows: dict) -> str:
    (claim,) = learning.claims(rows)
    return claim.verdict


def test_a_cue_is_learned_from_the_threshold_on():
    assert learning.READ == 0.8
    assert verdict(row(0.8, 0.8)) == "holds"
    assert verdict(row(0.7999, 0.8)) == "holds in part"
    assert verdict(row(0.8, 0.7999)) == "holds in part"
    assert verdict(row(0.7999, 0.7999)) == "does not hold"


def test_each_cue_needs_more_than_half_of_the_seeds():
    good, bad, numbers, patterns = row(0.9, 0.9), row(0.5, 0.5), row(0.9, 0.5), row(0.5, 0.9)
    assert verdict(good, good, bad) == "holds"
    assert verdict(good, bad) == "does not hold"  # half is not more than half
    assert verdict(good, numbers, bad) == "holds in part"
    assert verdict(good, numbers, patterns) == "holds"  # each cue in two of three, if not the same two
    assert verdict(numbers, patterns) == "does not hold"


def test_the_text_tells_the_cues_apart():
    (claim,) = learning.claims([row(0.91, 0.75)])
    assert claim.number == 1
    assert "mixed 97.0 %, number-only 91.0 %, pattern-only 75.0 %." in claim.measured
    assert "At least 80 % on numbers alone in the one seed, on patterns alone in not the one seed" in claim.measured
    assert "number-only 11.0 %, pattern-only 7.0 %" in claim.null
    three = [row(0.91, 0.75), row(0.93, 0.85), row(0.95, 0.7)]
    (claim,) = learning.claims(three)
    odds = [math.log(share / (1 - share)) for share in (0.91, 0.93, 0.95)]
    half = 4.302652729911275 * statistics.stdev(odds) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    center = statistics.fmean(odds)
    mean, low, high = (100 / (1 + math.exp(-end)) for end in (center, center - half, center + half))
    assert f"number-only {mean:.1f} % [{low:.1f}, {high:.1f}] (91.0 to 95.0)" in claim.measured
    assert "on numbers alone in 3 of 3 seeds [43.9 %, 100.0 %]" in claim.measured
    assert "on patterns alone in 1 of 3 seeds [6.1 %, 79.2 %]" in claim.measured


@pytest.mark.parametrize(
    ("single", "joint", "expected"),
    [
        (1.0, 1.0, "holds"),
        (1.0 + 0.9e-9, 1.0 - 0.9e-9, "holds"),
        (1.0 + 2e-9, 1.0, "holds in part"),
        (1.0, 1.0 + 2e-9, "holds in part"),
        (1.0 - 2e-9, 1.0 + 2e-9, "does not hold"),
    ],
)
def test_the_toy_sum_holds_to_nine_digits(single, joint, expected):
    toy = redundancy.measure()
    toy |= {"single_measured": single * toy["single"], "joint_measured": joint * toy["joint"]}
    (claim,) = redundancy.claims([toy])
    assert claim.verdict == expected


def test_the_toy_sum_is_that_of_the_post():
    toy = redundancy.measure()
    assert toy["single"] == pytest.approx(0.1 * math.log(10), rel=1e-12)
    assert toy["joint"] == pytest.approx(0.01 * math.log(10), rel=1e-12)
    (claim,) = redundancy.claims([toy])
    assert claim.number == 6
    assert "0.230259 each, 0.023026 together, a factor of 10 (exact" in claim.measured
    assert claim.null.startswith("the formula: 0.230259 each, 0.023026 together;")
