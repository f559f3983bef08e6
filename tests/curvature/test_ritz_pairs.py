"""Which of the Ritz pairs come first, and which of the others could be among them: on numbers written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lowhanging.curvature.krylov import Ritz, by_end, other_end, outward, reaching, wanted_first

VALUES = np.array([4.0, -5.0, 0.5, 5.0, -3.5, 3.5, -4.0])
ORDERS = {
    "LA": [5.0, 4.0, 3.5, 0.5, -3.5, -4.0, -5.0],
    "SA": [-5.0, -4.0, -3.5, 0.5, 3.5, 4.0, 5.0],
    "LM": [-5.0, 5.0, 4.0, -4.0, -3.5, 3.5, 0.5],  # of equal size, the one that came first
    "BE": [5.0, -5.0, 4.0, -4.0, 3.5, -3.5, 0.5],
}


def ritz(which: str, **estimates: float) -> Ritz:
    """The pairs in the order that is wanted; residual estimates by value, 0 where none is given."""
    values = VALUES[wanted_first(VALUES, which)]
    sizes = np.array([estimates.get(f"{value:g}", 0.0) for value in values])
    return Ritz(values, np.eye(len(values)), sizes[None], 5.0)


@pytest.mark.parametrize("which", list(ORDERS))
def test_the_wanted_end_comes_first(which: str) -> None:
    assert ritz(which).values.tolist() == ORDERS[which]
    places = outward(ritz(which).values, which)
    ends = [places] if which != "BE" else [places[0::2], places[1::2]]  # each end inwards
    assert all((np.diff(end) <= 0).all() for end in ends)


def test_both_ends_are_reported_one_after_the_other() -> None:
    values = ritz("BE").values
    assert values[by_end(5, "BE")].tolist() == [5.0, 4.0, 3.5, -5.0, -4.0]
    assert values[by_end(4, "BE")].tolist() == [5.0, 4.0, -5.0, -4.0]
    assert by_end(3, "LA") == [0, 1, 2]


def test_the_other_end_is_the_farthest_from_the_first() -> None:
    assert other_end(np.array([3.0, 2.0, -1.0, -4.0])) == 3
    assert other_end(np.array([-6.0, 5.0, -5.5])) == 1  # not the largest in magnitude
    assert other_end(np.array([2.0])) == 0


@pytest.mark.parametrize(
    ("which", "k", "near", "reached"),
    [
        ("LA", 2, "3.5", 4.0),
        ("SA", 2, "-3.5", -4.0),
        ("LM", 4, "-3.5", -4.0),
        ("LM", 4, "3.5", 4.0),
        ("BE", 4, "3.5", 4.0),
        ("BE", 4, "-3.5", -4.0),
        ("BE", 3, "-4", -5.0),
        ("BE", 1, "4", 5.0),
    ],
)
def test_a_pair_outside_reaches_in_with_twice_its_residual(which: str, k: int, near: str, reached: float) -> None:
    goal, gap = 0.1, abs(reached - float(near))
    just = (gap + goal) / 2
    outside = [f"{value:g}" for value in ORDERS[which][k:]]
    for estimate, expected in ((0.99 * just, []), (1.01 * just, [near])):
        flags = reaching(ritz(which, **{near: estimate}), k, which, goal)
        assert [value for value, is_near in zip(outside, flags, strict=True) if is_near] == expected
