"""The nulls of canyons: random subspaces of equal curvature, or of equal mean energy.

Oracles: functions whose canyons are known on paper in every plane; scans of circles.
"""

import math

import pytest
import torch

import lowhanging as lh
from canyon_scene import minima_on_circle
from lowhanging.objective.random_state import private_generator

UNRECORDED = "double backward"  # to record the products of a small function takes longer than to multiply


def test_relative_rise_is_held_against_random_subspaces_of_equal_curvature():
    """The first two of six equally curved directions hold a canyon that the other four do not."""

    def function(t):
        return 0.5 * t.square().sum() - 0.3 * t[0].pow(4) + 0.1 * t[0].pow(6)

    loss = lh.FunctionObjective(function, torch.zeros(6, dtype=torch.float64), engine=UNRECORDED)
    axes = torch.eye(6, dtype=torch.float64)
    found = lh.find_canyons(loss, space=lh.Subspace(axes[:2]), levels=0.3, num_starts=6, progress=False)
    null = lh.canyons.depth_null(loss, found, within=lh.Subspace(axes), num_subspaces=9, progress=False)
    assert float(null.observed[0]) == pytest.approx(found[0].relative_rise)
    # On paper: the softest direction of a random plane has t_0 = c rho, c the length of the plane's part along axis 0.
    rho2 = 0.6
    rise = lambda c: (0.5 * rho2 - 0.3 * (c * c * rho2) ** 2 + 0.1 * (c * c * rho2) ** 3) / 0.3  # noqa: E731
    assert found[0].relative_rise == pytest.approx(rise(1.0), rel=1e-9)
    assert bool((null.null > found[0].relative_rise).all())
    assert bool((null.null < 1.0 + 1e-9).all())
    assert float(null.p_values[0]) == pytest.approx(0.1)
    again = lh.canyons.depth_null(loss, found, within=lh.Subspace(axes), num_subspaces=9, progress=False)
    assert torch.equal(null.null, again.null)
    assert "9 random 2-dimensional subspaces of 6" in repr(null)
    with pytest.raises(ValueError, match="within has 2 dimensions, expected more than the canyons' 2"):
        lh.canyons.depth_null(loss, found, within=lh.Subspace(axes[:2]), progress=False)
    sphere = lh.find_canyons(
        loss, space=lh.Subspace(axes[:2]), metric="euclidean", levels=0.3, num_starts=6, progress=False
    )
    with pytest.raises(ValueError, match="expected a CanyonSet on energy shells"):
        lh.canyons.depth_null(loss, sphere, progress=False)


def two_canyons(num: int = 30) -> lh.FunctionObjective:
    """Canyons along the first two axes, of curvature 1; a quadratic bowl of curvature 1/4 along the others."""

    def function(t):
        bowl = 0.5 * t[:2].square().sum() + 0.125 * t[2:].square().sum()
        return bowl - 0.3 * t[0].pow(4) + 0.1 * t[0].pow(6) - 0.25 * t[1].pow(4) + 0.08 * t[1].pow(6)

    return lh.FunctionObjective(function, torch.zeros(num, dtype=torch.float64), engine=UNRECORDED)


def test_number_of_canyons_is_held_against_random_subspaces_of_equal_energy():
    loss = two_canyons()
    axes = torch.eye(30, dtype=torch.float64)
    found = lh.find_canyons(
        loss, space=lh.Subspace(axes[:2]), metric="euclidean", levels=1.0, num_starts=12, progress=False
    )
    bowl = lh.canyons.count_null(loss, found, within=lh.Subspace(axes[2:]), num_subspaces=3, progress=False)
    assert bowl.observed.tolist() == [2.0]  # mirror images count once
    assert bowl.null.tolist() == [[0.0]] * 3
    assert bowl.radii.flatten().tolist() == pytest.approx([2.0] * 3)  # a quarter of the curvature: twice the radius
    assert bowl.p_values.tolist() == [0.25]
    assert (bowl.dim, bowl.within, bowl.num_starts) == (2, 28, 12)
    state = torch.get_rng_state()
    null = lh.canyons.count_null(loss, found, num_subspaces=3, progress=False)  # of all weights
    assert torch.equal(torch.get_rng_state(), state)
    assert null.within == 30
    assert bool(((null.radii > 1.0) & (null.radii < 2.0)).all())
    assert torch.equal(null.null, lh.canyons.count_null(loss, found, num_subspaces=3, progress=False).null)
    assert "canyons at r = 1: 2 against 0 (0, 0, 0), p 0.25; 3 random 2-dimensional subspaces of 28" in repr(bowl)


def test_canyons_of_random_planes_are_those_of_a_scan():
    loss, num = two_canyons(3), 6
    axes = torch.eye(3, dtype=torch.float64)
    found = lh.find_canyons(
        loss, space=lh.Subspace(axes[:2]), metric="euclidean", levels=1.0, num_starts=12, progress=False
    )
    null = lh.canyons.count_null(loss, found, within=lh.Subspace(axes), num_subspaces=num, progress=False)
    generator = private_generator(0, "null subspaces")
    curvature = torch.tensor([1.0, 1.0, 0.25], dtype=torch.float64)
    for i in range(num):
        plane = lh.Subspace.span(torch.randn(2, 3, generator=generator, dtype=torch.float64))
        restricted = plane.basis @ (curvature[:, None] * plane.basis.T)
        radius = math.sqrt(2.0 / float(restricted.trace()))
        assert float(null.radii[i, 0]) == pytest.approx(radius)
        count, softest = 0, torch.linalg.eigh(restricted).eigenvectors[:, 0]
        for angle in minima_on_circle(loss, plane, radius):
            way = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
            delta = radius * way @ plane.basis
            rise = float(loss(delta)) / float(0.5 * (curvature * delta.square()).sum())
            across = torch.stack([-way[1], way[0]]) @ plane.basis
            is_minimum_across = float(across @ loss.hvp(delta, across)) > 0
            count += rise <= 0.95 and float(softest @ way) ** 2 <= 0.95 and is_minimum_across
        assert 2 * float(null.null[i, 0]) == count  # a scan meets each and its mirror image
    assert 0.0 < float(null.null.mean()) <= 2.0


def test_count_null_round_trip_and_refusals(tmp_path):
    loss = two_canyons(4)
    plane = lh.Subspace(torch.eye(4, dtype=torch.float64)[:2])
    sphere = lh.find_canyons(loss, space=plane, metric="euclidean", levels=1.0, num_starts=4, progress=False)
    null = lh.canyons.count_null(loss, sphere, num_subspaces=2, progress=False)
    again = lh.canyons.CountNull.load(null.save(tmp_path / "null.npz"))
    for name, value in vars(null).items():
        other = getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    with pytest.raises(ValueError, match="within has 2 dimensions, expected more than the canyons' 2"):
        lh.canyons.count_null(loss, sphere, within=plane, progress=False)
    shell = lh.find_canyons(loss, space=plane, levels=0.3, num_starts=4, progress=False)
    with pytest.raises(ValueError, match="expected a CanyonSet on spheres of a subspace"):
        lh.canyons.count_null(loss, shell, progress=False)
    with pytest.raises(ValueError, match="num_subspaces is 0"):
        lh.canyons.count_null(loss, sphere, num_subspaces=0, progress=False)
