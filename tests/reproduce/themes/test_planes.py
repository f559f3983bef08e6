"""Claim 9: expansions and radii where paper has the answer, and the rule on rows."""

import math
import re

import pytest
import torch

import lowhanging as lh
from lowhanging.reproduce.themes import planes

TASKS = ("mixed", "number", "pattern")
NO_NUMBER = re.compile(r"\b(nan|inf|None)\b")


def function(value, size=2):
    return lh.FunctionObjective(value, torch.zeros(size, dtype=torch.float64))


def test_a_second_order_expansion_is_exact_on_a_quadratic_and_off_by_the_cube_on_a_cubic():
    f = lh.FunctionObjective(lambda t: (t[0] - 2 * t[1]) ** 2 + 3 * t[0] + t[2], torch.ones(3, dtype=torch.float64))
    found = planes.circles(f, torch.eye(3, dtype=torch.float64)[[1, 0]])
    assert max(found["fit_error"]) < 1e-12
    assert found["center"] == 5.0
    for losses, expansion in zip(found["losses"], found["expansion"], strict=True):
        assert losses == pytest.approx(expansion)
    cubic = function(lambda t: t[0] ** 3 + t[1] ** 2)
    found = planes.circles(cubic, torch.eye(2, dtype=torch.float64))
    for radius, error, losses in zip(planes.RADII, found["fit_error"], found["losses"], strict=True):
        assert losses[0] == pytest.approx(radius**3)
        assert error == pytest.approx(radius**3 / (max(losses) - min(*losses, 0.0)))


def test_where_values_cross_a_level():
    radii = (0.1, 1.0, 10.0)
    assert planes.crossing(radii, (1e-4, 1e-2, 1.0), 0.1) == pytest.approx(10**0.5)  # r² / 100, on paper
    assert planes.crossing(radii, (1e-4, 1e-2, 1.0), 1e-3) == pytest.approx(10**-0.5)
    assert planes.crossing(radii, (0.2, 0.3, 0.4), 0.1) == 0.0
    assert planes.crossing(radii, (0.0, 0.05, 0.1), 0.1) == math.inf
    assert planes.crossing(radii, (0.0, 0.2, 0.3), 0.1) == 1.0  # nothing to interpolate
    assert planes.crossing(radii, (0.01, None, None), 0.1) == 1.0
    assert planes.crossing(radii, (0.01, 0.5, 0.01), 0.1) < 1.0  # the first time


def test_asymmetries_of_losses_and_of_their_expansions():
    number = {"center": 1.0, "losses": [[1.0, math.e]], "expansion": [[1.0, -0.5]]}
    pattern = {"center": 2.0, "losses": [[2.0, 2.0]], "expansion": [[2.0, 2.0]]}
    assert planes.asymmetry_changes(number, pattern, "losses") == pytest.approx([1.0])
    assert planes.asymmetry_changes(number, pattern, "expansion") == [math.inf]  # no loss is negative


def planes_row(distinct=1.0, **ends):
    """Fit errors 0.1 (r / end)² and asymmetry (r / distinct)²: straight in log-log, so that the crossings are exact."""
    reach = {"mixed": 0.15, "number": 0.5, "pattern": 0.15} | ends
    radii = planes.RADII
    circles = {
        name: {"fit_error": [0.1 * (r / end) ** 2 for r in radii], "rounding": [1e-5] * len(radii)}
        for name, end in reach.items()
    }
    moved = [(r / distinct) ** 2 for r in radii]
    return {
        "radii": list(radii), "angle": 90.0, "norm": 60.0, "circles": circles, "asymmetry_change": moved,
        "asymmetry_change_of_quadratics": [None if r >= 2 else value for r, value in zip(radii, moved, strict=True)],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "holds"),
        ({"number": 1.01}, "holds in part"),  # told apart where the number loss is quadratic still
        ({"number": 2.0, "mixed": 2.0, "pattern": 2.0}, "holds in part"),
        ({"distinct": 2.01, "number": 1.9}, "holds in part"),  # only beyond the step
        ({"distinct": 9.0, "number": 20.0, "mixed": 20.0, "pattern": 20.0}, "does not hold"),
        ({"mixed": 0.02}, "holds"),  # quadratic nowhere: nothing is told apart within it
    ],
)
def test_verdicts_of_the_planes(changes, verdict):
    (claim,) = planes.claims([planes_row(**changes)])
    assert claim.verdict == verdict
    assert not NO_NUMBER.search(claim.measured + claim.null)


def test_radii_are_reported_at_three_levels_and_over_seeds():
    (claim,) = planes.claims([planes_row()])
    assert "passes 5 / 10 / 20 % at radius mixed 0.11 / 0.15 / 0.21 (0.25 % of ‖θ‖)" in claim.measured
    assert "has moved by 1 nat at radius 1. " in claim.measured
    assert "at 5 %: mixed 1 of 1, number 1 of 1, pattern 1 of 1; at 10 %" in claim.measured
    rows = [planes_row(), planes_row(number=1.2), planes_row(number=1.2)]
    (claim,) = planes.claims(rows)
    assert claim.verdict == "holds in part"
    assert "at 10 %: mixed 3 of 3, number 1 of 3, pattern 3 of 3" in claim.measured
    (claim,) = planes.claims([planes_row(distinct=9.0), planes_row(mixed=0.02)])
    assert "1, beyond 4 in 1 of 2" in claim.measured
    assert "0.15, below 0.05 in 1 of 2" in claim.measured
