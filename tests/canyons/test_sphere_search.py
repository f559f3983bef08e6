"""The bookkeeping on the way to canyons: which ends are one branch, who speaks for it, which points are copies.

On ends made by hand, because a search that works hardly ever brings the rarer cases about.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lowhanging as lh
from lowhanging.canyons.continuation import CanyonEvent, Continuation
from lowhanging.canyons.find import BranchSearch, _End
from lowhanging.canyons.shell import make_shell
from lowhanging.canyons.sphere_search import SpherePoint, SphereSearch


@pytest.fixture
def search() -> BranchSearch:
    loss = lh.toys.quadratic([3.0, 2.0, 1.0])
    shell = make_shell(loss, lh.Subspace(torch.eye(3, dtype=torch.float64)), "euclidean")
    return BranchSearch(shell, 1.0, SphereSearch(shell, rtol=1e-6), loss_tolerance=0.0)


def end(direction, value: float, tangent_gradient, num_starts: int = 1, source: str = "", **tangent) -> _End:
    """On the unit sphere; the gradient has a slope of 1 along the direction."""
    y = np.array(direction) / np.linalg.norm(direction)
    point = SpherePoint(y, value, y + np.array(tangent_gradient))
    return _End(point, num_starts, source, 0, tangent=SimpleNamespace(**tangent) if tangent else None)


def test_the_end_closest_to_stationary_speaks_for_its_branch_and_all_starts_count(search):
    one = [
        end([1, 0, 0], 1.0, [0, 1e-3, 0], 3, "far"),
        end([1, 1e-6, 0], 1.0, [0, 1e-9, 0], 2, "near"),
        end([1, 0, 1e-6], 1.0, [0, 1e-5, 0], 4, "between"),
    ]
    mirrored = end([-1, 0, 0], 1.0, [0, 0, 0], 5, "mirrored")  # another canyon, though on the same line
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        found = search.joined([*(one[i] for i in order), mirrored], 1)
        assert sorted((group.source, group.num_starts) for group in found) == [("mirrored", 5), ("near", 9)]
        one[1].num_starts = 2


def test_ends_of_another_loss_are_another_branch(search):
    ends = [end([1, 0, 0], 1.0, [0, 0, 0]), end([1, 1e-6, 0], 1.001, [0, 1e-9, 0])]
    assert len(search.joined(ends, 1)) == 2
    ends[1].point = SpherePoint(ends[1].point.y, 1.00001, ends[1].point.gradient)  # within 1e-4 of the rise
    assert len(search.joined(ends, 1)) == 1


def test_a_copy_has_the_same_rise_the_same_slope_and_the_same_certificates(search):
    same = {"matrix": np.eye(3), "values": np.array([0.5, 1.0]), "error": 0.0}
    first = end([1, 0, 0], 1.0, [0, 0, 0], **same)
    copy = end([0, 1, 0], 1.0, [0, 0, 0], **same)
    higher = end([0, 1, 0], 1.01, [0, 0, 0], **same)
    softer = end([0, 1, 0], 1.0, [0, 0, 0], **{**same, "values": np.array([0.4, 1.0])})
    steeper = end([0, 1, 0], 1.0, [0, 0.01, 0], **same)
    assert search.duplicate_of([first, copy], 1) == 0
    for other in (higher, softer, steeper):
        assert search.duplicate_of([first, other], 1) is None


def test_an_event_that_touches_one_of_its_kind_is_part_of_it():
    branch = SimpleNamespace(shell=SimpleNamespace(level_of=lambda radius: 2 * radius), events=[])
    Continuation._event(branch, "crossing", (2.0, 20.0), (1.0, 10.0))
    Continuation._event(branch, "plane", (2.0, 20.0), (3.0, 30.0))
    Continuation._event(branch, "crossing", (3.5, 35.0), (4.0, 40.0))
    assert [event.kind for event in branch.events] == ["crossing", "plane", "crossing"]
    Continuation._event(branch, "crossing", (2.0, 20.0), (3.0, 30.0))  # shares an end with the first
    assert branch.events[0] == CanyonEvent("crossing", 2.0, 6.0, 10.0, 30.0)
    assert branch.events[2] == CanyonEvent("crossing", 7.0, 8.0, 35.0, 40.0)
    assert len(branch.events) == 3
