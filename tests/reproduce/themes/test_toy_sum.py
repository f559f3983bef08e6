"""The claim "redundancy pays" on rows written by hand, and the post's own sum."""

import math

import pytest

from lowhanging.reproduce.context import Context
from lowhanging.reproduce.settings import SIZES, Settings
from lowhanging.reproduce.store import NO_STORE
from lowhanging.reproduce.themes import toy_sum

CONTEXT = Context(Settings(SIZES["tiny"], "bundled", 0, 1), NO_STORE, lambda: pytest.fail("no network"))


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
    toy = toy_sum.measure(CONTEXT)
    toy |= {"single_measured": single * toy["single"], "joint_measured": joint * toy["joint"]}
    (claim,) = toy_sum.claims([toy])
    assert claim.verdict == expected


def test_the_toy_sum_is_that_of_the_post():
    toy = toy_sum.measure(CONTEXT)
    assert toy["single"] == pytest.approx(0.1 * math.log(10), rel=1e-12)
    assert toy["joint"] == pytest.approx(0.01 * math.log(10), rel=1e-12)
    (claim,) = toy_sum.claims([toy])
    assert claim.number == 6
    assert "0.230259 each, 0.023026 together, a factor of 10 (exact" in claim.measured
    assert claim.null.startswith("the formula: 0.230259 each, 0.023026 together;")


def test_the_toy_sum():
    row = toy_sum.measure(CONTEXT)
    assert toy_sum.claims([row])[0].verdict == "holds"
    assert toy_sum.claims([row | {"joint_measured": 0.03}])[0].verdict == "holds in part"
