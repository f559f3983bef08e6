"""Claims 4, 5, 7 and 8: the nulls where paper has the answer, and the rules on rows.

Oracles: lengths, radii and quantiles worked out by hand.
"""

import math
import re

import pytest
import torch

import lowhanging as lh
from lowhanging.reproduce.themes import steering

TASKS = ("mixed", "number", "pattern")
NO_NUMBER = re.compile(r"\b(nan|inf|None)\b")


def function(value, size=2):
    return lh.FunctionObjective(value, torch.zeros(size, dtype=torch.float64))


@pytest.mark.parametrize(
    ("along", "wanted", "length"),
    [
        (lambda s: 0.5 * 3.0 * s**2, 6.0, 2.0),  # s = (2 · 6 / 3)^½
        (lambda s: s**4, 16.0, 2.0),
        (lambda s: s**4 - s**2, 0.75, math.sqrt(1.5)),  # down at first
        (lambda s: 5 - math.cos(s), 4.5, math.pi / 3),  # the first of many
        (lambda s: s, 3.0, 3.0),  # on the grid
        (lambda s: s, 3.1, None),
        (lambda s: 1 - math.exp(-s), 1.0, None),
        (lambda s: s, 0.0, 0.0),
        (lambda s: s, -1.0, 0.0),
    ],
)
def test_the_first_length_at_which_a_loss_has_risen(along, wanted, length):
    found = steering.first_length(along, wanted, longest=3.0)
    if length is None:
        assert found is None
    else:
        assert found == pytest.approx(length, rel=steering.LENGTH_TOL)


def test_random_directions_stop_where_the_mixed_loss_has_risen_as_much():
    """Mixed ½ (x² + 4 y²) + x⁴: its quadratic is as high at other lengths than the loss itself."""
    calls = []

    def mixed(t):
        calls.append(1)
        return 0.5 * (t[0] ** 2 + 4 * t[1] ** 2) + t[0] ** 4

    losses = {
        "mixed": function(mixed, 3), "number": function(lambda t: 1 + t[0] - t[1] ** 2, 3),
        "pattern": function(lambda t: 2 + t[1] + 0 * t[0], 3),
    }  # fmt: skip
    rows = torch.eye(3, dtype=torch.float64)
    calls.clear()
    found = steering.equal_rises(losses, rows, wanted=1.5, longest=4.0)
    assert found["num_passes"] == len(calls) + 2 * 2  # and both other losses at each of two points
    assert found["num_left_out"] == 1  # z changes nothing
    x, y = found["points"]
    assert [x["step"], y["step"]] == pytest.approx([1.0, math.sqrt(0.75)], rel=1e-3)  # ½ + 1; 2 y² = 1.5
    for point in (x, y):
        assert point["losses"]["mixed"] == pytest.approx(1.5, rel=5e-3)
    assert x["losses"]["number"] == pytest.approx(2.0, rel=1e-3)
    assert y["losses"]["pattern"] == pytest.approx(2 + math.sqrt(0.75), rel=1e-3)
    quotients = steering.curvatures(losses["mixed"], rows)
    assert quotients == pytest.approx([1.0, 4.0, 0.0])
    bent = steering.equal_quadratics(losses, rows, quotients, curvature=0.75, step=2.0)  # also a rise of 1.5
    assert [point["step"] for point in bent] == pytest.approx([math.sqrt(3.0), math.sqrt(0.75)])
    assert bent[0]["losses"]["mixed"] == pytest.approx(1.5 + 9.0)
    assert steering.equal_quadratics(losses, rows, quotients, curvature=-1.0, step=2.0) == []


def test_random_directions_are_turned_like_a_steering_one():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    ablated = function(lambda t: t[0] ** 2 + t[0] - 2 * t[1])
    assert torch.equal(steering.turned(ablated, rows), rows * torch.tensor([[1.0], [-1.0], [-1.0]]))
    units = steering.random_units(4, 7, seed=3)
    assert torch.equal(units, steering.random_units(4, 7, seed=3))
    assert units.norm(dim=1).tolist() == pytest.approx([1.0] * 4)


def test_random_vectors_of_a_plane_overlap_as_paper_says():
    """A uniform angle: the larger of cos² and sin² is cos² of an angle uniform below 45°."""
    axes, middle = torch.eye(4), torch.tensor([1.0, 1.0, 0.0, 0.0]) / math.sqrt(2)
    found = steering.of_span([axes[:1], axes[1:2]], axes[:3], middle, seed=0)
    assert found["dim"] == 2
    expected = [math.cos((1 - level) * math.pi / 4) ** 2 for level in steering.LEVELS]
    assert found["largest"] == pytest.approx(expected, abs=0.03)
    spread = [1 / (s**2 + (1 - s) ** 2) for s in expected[::-1]]
    assert found["participation"] == pytest.approx(spread, abs=0.06)
    assert found["within"] == pytest.approx([1.0] * 3)
    assert found["own_within"] == pytest.approx(1.0)
    assert found["num_as_large"] >= 999  # nothing is further from an axis than the middle, up to rounding
    assert found["num_as_concentrated"] >= 999
    alone = steering.of_span([axes[:2]], axes[:3], axes[0], seed=0)
    assert (alone["num_as_large"], alone["num_as_concentrated"]) == (0, 0)
    # Half of a vector outside of the eigenvectors that are known.
    outside = steering.of_span([axes[2:]], axes[:3], axes[3], seed=0)
    assert outside["own_within"] == 0.0
    assert outside["within"][1] == pytest.approx(0.5, abs=0.06)


def direction(preserve, ablate, up, **changes):
    """One that raises the ablated loss from 0.4 to 0.4 + `up` at step 2; a random one as far out as `out` says."""
    given = {
        "kept": 0.0, "null": 0.0, "risen": 0.0, "share": 0.1, "factor": 8.0, "start": 2.0, "overlap": 0.1,
        "quantile": 0.2, "left_out": 0, "null_mixed": 0.2,
    } | changes  # fmt: skip
    alphas = [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    steps = [max(0.0, alpha / 2) for alpha in alphas]
    losses = {ablate: [0.4 + up * s for s in steps], preserve: [0.4 + given["kept"] * s for s in steps]}
    losses["mixed"] = [
        loss / (given["factor"] if s else given["start"]) for loss, s in zip(losses[ablate], steps, strict=True)
    ]
    points = {
        name: [{"step": 10.0, "losses": {ablate: 0.4 * math.exp(moved), preserve: 0.4, "mixed": given["null_mixed"]}}]
        for name, moved in (("null", given["null"]), ("risen", given["risen"]))
    }
    return {
        "preserve": preserve, "ablate": ablate, "alphas": alphas, "losses": losses,
        "accuracies": {name: [0.9] * 6 for name in losses}, "null": points["null"],
        "null_rise": {
            "points": [] if given["left_out"] else points["risen"], "num_left_out": given["left_out"], "longest": 60.0,
        },
        "conflict": {ablate: given["share"], preserve: 0.5, "neither": 0.5 - given["share"]},
        "conflict_shift": {"shift": 0.2, "interval": [0.1, 0.3]}, "curvature_ratio": 14.0, "ranks": {"mixed": "> 50"},
        "rayleigh_quotients": {"mixed": 0.04}, "tenth_eigenvalue_of_mixed": 0.05, "participation_ratio": 5.0,
        "largest_squared_overlap": {"mixed": given["overlap"], "number": 0.2, "pattern": 0.3},
        "null_overlap": {
            "dim": 51, "num": 1000, "largest": [0.05, 0.1, given["quantile"]], "participation": [6.0, 9.0, 12.0],
            "within": [0.2, 0.3, 0.4], "own_within": 0.25, "num_as_large": 28, "num_as_concentrated": 3,
        },
    }  # fmt: skip


def steering_row(**changes):
    pair = [direction("number", "pattern", 1.0, **changes), direction("pattern", "number", 1.0)]
    return {
        "conflict_at_minimum": {"number": 0.3, "pattern": 0.3, "neither": 0.4}, "random_curvatures": [0.001, 0.002],
        "directions": pair,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, ["holds", "holds", "holds"]),
        ({"kept": 0.21}, ["holds in part", "holds", "holds"]),
        ({"share": 0.16}, ["holds in part", "holds", "holds"]),
        # log(1.4 / 0.4) = 1.25 is what a random direction must not reach, at either length.
        ({"null": 1.2, "risen": 1.2, "null_mixed": 0.4}, ["holds", "holds", "holds"]),
        ({"null": 1.3, "null_mixed": 0.4}, ["holds in part", "holds", "holds"]),
        ({"risen": 1.3, "null_mixed": 0.4}, ["holds in part", "holds", "holds"]),
        ({"left_out": 1}, ["holds in part", "holds in part", "holds"]),  # without a null, nothing is shown
        ({"start": 8.1}, ["holds", "holds in part", "holds"]),
        ({"factor": 4.9}, ["holds", "holds in part", "holds"]),
        ({"factor": 0.9}, ["holds", "holds in part", "holds"]),
        # A ratio of 0.4 / 0.05 along a random direction, as large as the steering direction's.
        ({"null_mixed": 0.05}, ["holds", "holds in part", "holds"]),
        ({"null_mixed": 0.0501}, ["holds", "holds", "holds"]),
        ({"overlap": 0.2}, ["holds", "holds", "holds"]),
        ({"overlap": 0.21}, ["holds", "holds", "holds in part"]),
        ({"overlap": 0.5, "quantile": 0.6}, ["holds", "holds", "holds in part"]),
    ],
)
def test_verdicts_of_steering(changes, verdicts):
    found = steering.claims([steering_row(**changes)])
    assert [claim.number for claim in found] == [4, 5, 7, 8]
    assert [claim.verdict for claim in found] == [*verdicts[:2], "does not hold", verdicts[2]]
    assert not any(NO_NUMBER.search(claim.measured + claim.null) for claim in found)


def test_a_claim_without_any_part_does_not_hold():
    row = steering_row(overlap=0.6)
    row["directions"][1] = direction("pattern", "number", 1.0, overlap=0.6)
    assert steering.claims([row])[3].verdict == "does not hold"


def test_verdicts_over_seeds_are_those_of_most():
    good, bad = steering_row(), steering_row(share=0.16)
    verdicts = [steering.claims(rows)[0].verdict for rows in ([good, good, bad], [good, bad, bad], [good, bad])]
    assert verdicts == ["holds", "holds in part", "holds in part"]
    claim = steering.claims([good, good, bad])[0]
    assert "means over 3 seeds, with 95 % intervals" in claim.measured
    assert "pattern still followed on 11.7 % [5.8, 22.4] of them" in claim.measured
    assert steering.selectivity(good["directions"][0]) == pytest.approx(math.log(1.4 / 0.4))
    free, near = steering_row(), steering_row(overlap=0.3)
    verdicts = [steering.claims(rows)[3].verdict for rows in ([free, free, near], [free, near, near])]
    assert verdicts == ["holds", "holds in part"]


def test_random_directions_that_never_get_there_are_counted():
    null = steering.claims([steering_row(left_out=4)])[0].null
    assert "along no random one at the second (4 left out, lower still at 60)" in null


def test_factors_are_averaged_as_logarithms():
    """Of 1 and 100 the mean is 10; Student's half-width is t(0.975, 1) = 12.706 times log(100) / 2."""
    assert steering._mean([10.0], scale="log") == "10"
    assert (
        steering._mean([9.0, 10.0, 100 / 9], scale="log") == "10 [7.7, 13]"
    )  # t(0.975, 2) = 4.303, times 0.10536 / 3^½
    assert steering._mean([-1.0, 3.0], scale="log") == "1 (-1 to 3)"  # no interval on a scale that -1 has no place on
    found = direction("number", "pattern", 1.0)
    for i, value in enumerate((1.0, 1.0, 10.0, 10.0)):  # at steps 1, 2, 3, 4
        found["losses"]["mixed"][2 + i] = found["losses"]["pattern"][2 + i] / value
    assert steering.geometric(found) == pytest.approx(10**0.5)
