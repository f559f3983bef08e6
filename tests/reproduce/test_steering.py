"""Claims 3, 4, 5, 7, 8 and 9: do their rules follow from rows, and are the nulls right where paper has the answer?

Oracles: lengths, radii and quantiles worked out by hand; a search for eigenpairs from another start; a run that was
never killed.
"""

import math
import re

import pytest
import torch

import lowhanging as lh
from lowhanging import io as resume_file
from lowhanging.curvature import eigensolver as search_file
from lowhanging.reproduce.settings import Sizes
from lowhanging.reproduce.store import NO_SHELF, ResultStore, as_json
from lowhanging.reproduce.themes import curvature, planes, steering
from lowhanging.reproduce.themes import steering as steering_claims
from lowhanging.reproduce.themes import steering as steering_nulls
from lowhanging.reproduce.themes.learning import learn

TASKS = ("mixed", "number", "pattern")
NO_NUMBER = re.compile(r"\b(nan|inf|None)\b")
LITTLE = Sizes("tiny", images=20, epochs=2, anchor=0.5, pairs=4, early_epochs=(0,), early_images=12, early_pairs=2)


def function(value, size=2):
    return lh.FunctionObjective(value, torch.zeros(size, dtype=torch.float64))


# Claim 3: effective dimension -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return learn(source="bundled", seed=0, sizes=LITTLE)


@pytest.fixture(scope="module")
def measured(network):
    return curvature.measure(network, LITTLE, NO_SHELF)


def test_before_training_and_at_the_minimum_are_counted_on_the_same_images(network, measured):
    assert [entry["epoch"] for entry in measured["along_training"]] == [0, 2]
    for name in TASKS:
        view = getattr(network.views, name).test
        few = lh.Objective(network.model, (view.inputs[:12], view.targets[:12]))
        for theta, found in (
            (network.run.checkpoints[0], measured["along_training"][0][name]),
            (network.minimum.theta, measured["at_minimum_on_few"][name]),
        ):
            values = lh.top_eigs(lh.hessian(few.at(theta)), k=2, tol=1e-5, seed=1).values
            assert found["num_known"] == 2
            assert found["eigenvalues"] == pytest.approx(values.tolist(), abs=2e-4 * float(values[0]))


class KilledError(Exception):
    """Stands for a kill in the middle of an eigenproblem."""


def test_curvature_goes_on_within_an_eigenproblem(network, measured, tmp_path, monkeypatch):
    """Killed every 16 products, of the 20 and more that a problem takes: none would ever end if it began again."""
    monkeypatch.setattr(search_file, "STRIDE", 1)
    monkeypatch.setattr(resume_file, "SHARE", 1e9)  # written after every step
    real, left = curvature.hessian, [0]

    def dying(loss):
        """A Hessian whose process is killed when its budget of products is used up."""
        H = real(loss)
        product = type(H).__matmul__

        class Mortal(type(H)):
            def __matmul__(self, v):
                if left[0] == 0:
                    raise KilledError
                left[0] -= 1
                return product(self, v)

        H.__class__ = Mortal
        return H

    monkeypatch.setattr(curvature, "hessian", dying)
    shelf = ResultStore(tmp_path)
    for _ in range(5):
        left[0] = 16
        with pytest.raises(KilledError):
            curvature.measure(network, LITTLE, shelf)
    done = {path.name for path in tmp_path.iterdir()}
    assert {"pairs-mixed.npz", "pairs-number.npz"} < done
    (tmp_path / "pairs-mixed-resume.npz").write_bytes(b"left")  # killed between the result and the end of its search
    left[0] = 10**9
    assert as_json(curvature.measure(network, LITTLE, shelf)) == as_json(measured)
    assert not list(tmp_path.glob("*-resume.npz"))


def record(above=(3, 1, 0), **changes):
    return {
        "above": dict(zip(("0.1", "1", "10"), above, strict=True)), "is_bound": [False] * 3,
        "eigenvalues": [2.0, 0.5, 0.2], "participation_ratio": 1.7, "num_known": 3,
    } | changes  # fmt: skip


def curvature_row(size=300, **changes):
    found = dict.fromkeys(TASKS, record()) | changes
    before = {"epoch": 0} | dict.fromkeys(TASKS, record((14, 9, 1)))
    return {
        "num_params": size, "at_minimum": found, "along_training": [before, {"epoch": 4} | found],
        "at_minimum_on_few": dict.fromkeys(TASKS, record((5, 2, 0), num_known=20)), "along_images": 9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (curvature_row(), "holds"),
        (curvature_row(200), "does not hold"),  # 3 of 200 are more than 1 %
        (curvature_row(mixed=record((4, 1, 0))), "holds in part"),
        (curvature_row(mixed=record(is_bound=[True, False, False])), "holds in part"),  # there may be more than these 3
    ],
)
def test_verdicts_of_effective_dimension(row, verdict):
    (claim,) = curvature.claims([row])
    assert claim.verdict == verdict
    assert "after 0, 4 epochs, on 9 images" in claim.measured
    assert "number 3 / 1 / 0" in claim.measured
    assert "on the same 9 images with the 20 largest eigenvalues: mixed 14 / 9 / 1 → 5 / 2 / 0" in claim.null


def test_counts_say_where_they_are_bounds():
    (claim,) = curvature.claims([curvature_row(mixed=record(is_bound=[True, False, False]))])
    assert "mixed at least 3 / 1 / 0" in claim.measured


# Claims 4 and 5: the nulls on paper -----------------------------------------------------------------------------------


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
    found = steering_nulls.first_length(along, wanted, longest=3.0)
    if length is None:
        assert found is None
    else:
        assert found == pytest.approx(length, rel=steering_nulls.LENGTH_TOL)


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
    found = steering_nulls.equal_rises(losses, rows, wanted=1.5, longest=4.0)
    assert found["num_passes"] == len(calls) + 2 * 2  # and both other losses at each of two points
    assert found["num_left_out"] == 1  # z changes nothing
    x, y = found["points"]
    assert [x["step"], y["step"]] == pytest.approx([1.0, math.sqrt(0.75)], rel=1e-3)  # ½ + 1; 2 y² = 1.5
    for point in (x, y):
        assert point["losses"]["mixed"] == pytest.approx(1.5, rel=5e-3)
    assert x["losses"]["number"] == pytest.approx(2.0, rel=1e-3)
    assert y["losses"]["pattern"] == pytest.approx(2 + math.sqrt(0.75), rel=1e-3)
    quotients = steering_nulls.curvatures(losses["mixed"], rows)
    assert quotients == pytest.approx([1.0, 4.0, 0.0])
    bent = steering_nulls.equal_quadratics(losses, rows, quotients, curvature=0.75, step=2.0)  # also a rise of 1.5
    assert [point["step"] for point in bent] == pytest.approx([math.sqrt(3.0), math.sqrt(0.75)])
    assert bent[0]["losses"]["mixed"] == pytest.approx(1.5 + 9.0)
    assert steering_nulls.equal_quadratics(losses, rows, quotients, curvature=-1.0, step=2.0) == []


def test_random_directions_are_turned_like_a_steering_one():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    ablated = function(lambda t: t[0] ** 2 + t[0] - 2 * t[1])
    assert torch.equal(steering_nulls.turned(ablated, rows), rows * torch.tensor([[1.0], [-1.0], [-1.0]]))
    units = steering_nulls.random_units(4, 7, seed=3)
    assert torch.equal(units, steering_nulls.random_units(4, 7, seed=3))
    assert units.norm(dim=1).tolist() == pytest.approx([1.0] * 4)


def test_random_vectors_of_a_plane_overlap_as_paper_says():
    """A uniform angle: the larger of cos² and sin² is cos² of an angle uniform below 45°."""
    axes, middle = torch.eye(4), torch.tensor([1.0, 1.0, 0.0, 0.0]) / math.sqrt(2)
    found = steering_nulls.of_span([axes[:1], axes[1:2]], axes[:3], middle, seed=0)
    assert found["dim"] == 2
    expected = [math.cos((1 - level) * math.pi / 4) ** 2 for level in steering_nulls.LEVELS]
    assert found["largest"] == pytest.approx(expected, abs=0.03)
    spread = [1 / (s**2 + (1 - s) ** 2) for s in expected[::-1]]
    assert found["participation"] == pytest.approx(spread, abs=0.06)
    assert found["within"] == pytest.approx([1.0] * 3)
    assert found["own_within"] == pytest.approx(1.0)
    assert found["num_as_large"] >= 999  # nothing is further from an axis than the middle, up to rounding
    assert found["num_as_concentrated"] >= 999
    alone = steering_nulls.of_span([axes[:2]], axes[:3], axes[0], seed=0)
    assert (alone["num_as_large"], alone["num_as_concentrated"]) == (0, 0)
    # Half of a vector outside of the eigenvectors that are known.
    outside = steering_nulls.of_span([axes[2:]], axes[:3], axes[3], seed=0)
    assert outside["own_within"] == 0.0
    assert outside["within"][1] == pytest.approx(0.5, abs=0.06)


# Claims 4, 5, 7 and 8: the rules --------------------------------------------------------------------------------------


def direction(preserve, ablate, up, **changes):
    """One that raises the ablated loss from 0.4 to 0.4 + `up` at step 2; a random one as far out as `out` says."""
    fingerprint = {
        "kept": 0.0, "null": 0.0, "risen": 0.0, "cue_shares": 0.1, "factor": 8.0, "start": 2.0, "overlap": 0.1,
        "quantile": 0.2, "left_out": 0, "null_mixed": 0.2,
    } | changes  # fmt: skip
    alphas = [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    steps = [max(0.0, alpha / 2) for alpha in alphas]
    losses = {ablate: [0.4 + up * s for s in steps], preserve: [0.4 + fingerprint["kept"] * s for s in steps]}
    losses["mixed"] = [
        loss / (fingerprint["factor"] if s else fingerprint["start"])
        for loss, s in zip(losses[ablate], steps, strict=True)
    ]
    points = {
        name: [
            {"step": 10.0, "losses": {ablate: 0.4 * math.exp(moved), preserve: 0.4, "mixed": fingerprint["null_mixed"]}}
        ]
        for name, moved in (("null", fingerprint["null"]), ("risen", fingerprint["risen"]))
    }
    return {
        "preserve": preserve, "ablate": ablate, "alphas": alphas, "losses": losses,
        "accuracies": {name: [0.9] * 6 for name in losses}, "null": points["null"],
        "null_rise": {
            "points": [] if fingerprint["left_out"] else points["risen"], "num_left_out": fingerprint["left_out"], "longest": 60.0,
        },
        "conflict": {ablate: fingerprint["cue_shares"], preserve: 0.5, "neither": 0.5 - fingerprint["cue_shares"]},
        "conflict_shift": {"shift": 0.2, "interval": [0.1, 0.3]}, "curvature_ratio": 14.0, "ranks": {"mixed": "> 50"},
        "rayleigh_quotients": {"mixed": 0.04}, "tenth_eigenvalue_of_mixed": 0.05, "participation_ratio": 5.0,
        "largest_squared_overlap": {"mixed": fingerprint["overlap"], "number": 0.2, "pattern": 0.3},
        "null_overlap": {
            "dim": 51, "num": 1000, "largest": [0.05, 0.1, fingerprint["quantile"]], "participation": [6.0, 9.0, 12.0],
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
        ({"cue_shares": 0.16}, ["holds in part", "holds", "holds"]),
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
    found = steering_claims.claims([steering_row(**changes)])
    assert [claim.number for claim in found] == [4, 5, 7, 8]
    assert [claim.verdict for claim in found] == [*verdicts[:2], "does not hold", verdicts[2]]
    assert not any(NO_NUMBER.search(claim.measured + claim.null) for claim in found)


def test_a_claim_without_any_part_does_not_hold():
    row = steering_row(overlap=0.6)
    row["directions"][1] = direction("pattern", "number", 1.0, overlap=0.6)
    assert steering_claims.claims([row])[3].verdict == "does not hold"


def test_verdicts_over_seeds_are_those_of_most():
    good, bad = steering_row(), steering_row(cue_shares=0.16)
    verdicts = [steering_claims.claims(rows)[0].verdict for rows in ([good, good, bad], [good, bad, bad], [good, bad])]
    assert verdicts == ["holds", "holds in part", "holds in part"]
    claim = steering_claims.claims([good, good, bad])[0]
    assert "means over 3 seeds, with 95 % intervals" in claim.measured
    assert "pattern still followed on 11.7 % [5.8, 22.4] of them" in claim.measured
    assert steering.selectivity(good["directions"][0]) == pytest.approx(math.log(1.4 / 0.4))
    free, near = steering_row(), steering_row(overlap=0.3)
    verdicts = [steering_claims.claims(rows)[3].verdict for rows in ([free, free, near], [free, near, near])]
    assert verdicts == ["holds", "holds in part"]


def test_random_directions_that_never_get_there_are_counted():
    null = steering_claims.claims([steering_row(left_out=4)])[0].null
    assert "along no random one at the second (4 left out, lower still at 60)" in null


def test_factors_are_averaged_as_logarithms():
    """Of 1 and 100 the mean is 10; Student's half-width is t(0.975, 1) = 12.706 times log(100) / 2."""
    assert steering_claims.factor([10.0]) == "10"
    assert steering_claims.factor([9.0, 10.0, 100 / 9]) == "10 [7.7, 13]"  # t(0.975, 2) = 4.303, times 0.10536 / 3^½
    assert steering_claims.factor([-1.0, 3.0]) == "1 (-1 to 3)"  # no interval on a scale that -1 has no place on
    found = direction("number", "pattern", 1.0)
    for i, value in enumerate((1.0, 1.0, 10.0, 10.0)):  # at steps 1, 2, 3, 4
        found["losses"]["mixed"][2 + i] = found["losses"]["pattern"][2 + i] / value
    assert steering_claims.geometric(found) == pytest.approx(10**0.5)


# Claim 9: how far the quadratic reaches -------------------------------------------------------------------------------


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


def planes_row(fingerprint=1.0, **ends):
    """Fit errors 0.1 (r / end)² and asymmetry (r / told)²: straight in log-log, so that the crossings are exact."""
    reach = {"mixed": 0.15, "number": 0.5, "pattern": 0.15} | ends
    radii = planes.RADII
    circles = {
        name: {"fit_error": [0.1 * (r / end) ** 2 for r in radii], "rounding": [1e-5] * len(radii)}
        for name, end in reach.items()
    }
    moved = [(r / fingerprint) ** 2 for r in radii]
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
        ({"fingerprint": 2.01, "number": 1.9}, "holds in part"),  # only beyond the step
        ({"fingerprint": 9.0, "number": 20.0, "mixed": 20.0, "pattern": 20.0}, "does not hold"),
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
    (claim,) = planes.claims([planes_row(fingerprint=9.0), planes_row(mixed=0.02)])
    assert "1, beyond 4 in 1 of 2" in claim.measured
    assert "0.15, below 0.05 in 1 of 2" in claim.measured
