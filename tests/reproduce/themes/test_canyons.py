"""The claims on canyons, on rows written by hand."""

import pytest

from lowhanging.reproduce.themes import canyons


def canyon_point(**changes):
    return {
        "rise": 0.2, "energy": 0.5, "relative_rise": 0.4, "slope": 0.1, "slope_without_anchor": 0.08,
        "plane_eigenvalue": 0.2, "sphere_eigenvalue": 0.1, "euclidean_error": 1e-6,
        "is_certified": True, "is_canyon": True, "duplicate_of": None, "radius": 3.0, "circuit": None,
        "losses": {"number": 0.6, "pattern": 0.5}, "answer_shift": [0.01, -0.1, 0.1],
        "full_residual": None, "full_plane_eigenvalue": None, "full_error": None, "bowl_slope_without_anchor": 0.32,
    } | changes  # fmt: skip


def canyons_row(
    num=2, circuits=("number", "pattern"), radii=((1.0, 1.2), (1.0, 1.1)), slopes=(0.08, 0.08), whole=True, bowl=0.32,
    random=((0.0, 1.0), (0.0, 0.0)),
):  # fmt: skip
    full = canyon_point(full_residual=0.005 if whole else 0.05, full_plane_eigenvalue=0.01, full_error=1e-3)
    paths = {
        f"branch {i}": {
            "points": [canyon_point(slope_without_anchor=slope, bowl_slope_without_anchor=bowl)],
            "merge_radius": list(pair),
            "events": [{"kind": "birth", "radius_low": pair[0], "radius_high": pair[1]}],
        }
        for i, (pair, slope) in enumerate(zip(radii, slopes, strict=True))
    }
    nulls = {
        name: {
            "canyons": list(counts),
            "branches": [2.0] * len(counts),
            "radii": [9.0] * len(counts),
            "dim": 10,
            "anchor_shares": [0.5] * len(counts),
        }
        for name, counts in zip(("all 3,340 weights", "the span of the top 50 eigenvectors"), random, strict=True)
    }
    return {
        "dim": 10, "num_params": 3340, "sphere": [canyon_point(circuit=c) for c in circuits[:num]] or [],
        "shell": [canyon_point()], "full": full, "null_relative_rises": [0.9, 1.1], "null_dim": 10, "paths": paths,
        "basin": {"losses": {"number": 0.5, "pattern": 0.5}}, "flat_slopes": [0.0, 1e-40], "num_branches": 3,
        "count_nulls": nulls,
    }  # fmt: skip


NO, PART, YES = "does not hold", "holds in part", "holds"


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, [YES, YES, YES, YES]),
        ({"num": 1}, [PART, PART, YES, YES]),
        # Without a canyon, what was followed is none: nothing merges, nothing slopes.
        ({"num": 0, "whole": False}, [NO, NO, NO, NO]),
        # As many canyons in most random subspaces of one kind, or unknown counts there: no canyons beyond chance.
        ({"random": ((0.0, 0.0), (2.0, 2.0))}, [PART, YES, YES, YES]),
        ({"random": ((0.0, 2.0), (0.0, 0.0))}, [PART, YES, YES, YES]),
        ({"random": ((0.0, 2.0, 0.0), (0.0, 0.0, 1.0))}, [YES, YES, YES, YES]),
        ({"random": ((None, None), (0.0, 0.0)), "whole": False}, [NO, YES, YES, YES]),
        ({"radii": ((0.0, 0.5), (0.0, 0.5))}, [YES, YES, NO, YES]),
        ({"radii": ((0.0, 0.5), (1.0, 1.5))}, [YES, YES, YES, YES]),
        # All branches of a network must slope, and be no bowl's wall; flat is never "in part".
        ({"slopes": (0.08, 0.009)}, [YES, YES, YES, NO]),
        ({"slopes": (0.08, 0.17)}, [YES, YES, YES, PART]),
        ({"bowl": 0.08}, [YES, YES, YES, PART]),
        ({"bowl": -0.1}, [YES, YES, YES, PART]),
        ({"radii": (), "slopes": ()}, [YES, YES, NO, NO]),
        # One branch has nothing to merge with, whether it goes all the way in or not.
        ({"radii": ((1.0, 1.2),), "slopes": (0.08,)}, [YES, YES, NO, YES]),
        ({"radii": ((0.0, 0.5),), "slopes": (0.08,)}, [YES, YES, NO, YES]),
    ],
)
def test_verdicts_of_canyons(changes, verdicts):
    found = canyons.claims([canyons_row(**changes)])
    assert [claim.number for claim in found] == [10, 11, 12, 13]
    assert [claim.verdict for claim in found] == verdicts


def test_canyons_are_judged_per_network():
    good, flat = canyons_row(), canyons_row(slopes=(0.08, 0.001))
    assert canyons.claims([good, good, flat])[3].verdict == "holds"
    assert "All branches above 0.01 all along: 2 of 3 seeds" in canyons.claims([good, good, flat])[3].measured
    assert canyons.claims([good, flat, canyons_row(num=0)])[3].verdict == "does not hold"
    assert "0.25 to 0.25 of the bowl's" in canyons.claims([good])[3].measured  # 0.08 / 0.32
    chance = canyons_row(random=((2.0, 2.0), (0.0, 0.0)), whole=False)
    found = canyons.claims([good, chance, chance])[0]
    assert found.verdict == "does not hold"
    assert "of each kind: 1 of 3 seeds" in found.null
    assert "radius 9 to 9 (the anchor makes 50.0 % of the energy): " in found.null
    assert ": 0, 1; 2, 2; 2, 2 certified canyons, among 2, 2; 2, 2; 2, 2 branches" in found.null


def test_merge_radius_is_a_mean_over_networks_that_merge():
    good, alone = canyons_row(), canyons_row(radii=((0.0, 0.5),), slopes=(0.08,))
    texts = [canyons.claims(rows)[2].measured for rows in ([good, good], [good, alone, alone], [alone])]
    assert "over the 2 networks in which branches merge: 1.08 each" in texts[0]  # (1.1 + 1.05) / 2
    assert "Merge radius: 1 to 1.2, the bracket in one network" in texts[1]
    assert "2 of 3 networks had fewer than two canyons to follow" in texts[1]
    assert "The one network had fewer than two canyons to follow" in texts[2]
    assert "No merge radius was found" in texts[2]
    assert "(below it there is no such stationary point)" in texts[0]
    unknown = canyons_row(radii=((None, None), (1.0, 1.2)))  # NaN, as JSON holds it
    assert canyons.claims([unknown])[2].verdict == "holds"


def test_far_ends_that_are_no_canyons_name_nothing():
    row = canyons_row(circuits=(None, None))
    for certified, verdict in ((True, "holds in part"), (False, "does not hold")):
        row["paths"]["branch 0"]["points"] = [
            canyon_point(circuit="number", is_certified=certified, is_canyon=certified)
        ]
        assert canyons.claims([row])[1].verdict == verdict
