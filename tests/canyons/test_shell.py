"""Shells and the coordinates in which they are spheres, against what weight space says.

Oracles: the dense Hessian of a polynomial on paper; finite differences. `find_canyons` reaches the same results from
coordinates that are merely stretched, so its own tests cannot tell: these can.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import lowhanging as lh
from canyon_scene import AXES, DIM, H0, THETA0, coordinates, curved, shell_of
from lowhanging.canyons.shell import SHELLS, EnergyShell, SphereShell

everywhere = pytest.mark.parametrize(
    ("where", "metric", "min_curvature"),
    [
        ("subspace", "euclidean", None),
        ("subspace", "hessian", None),
        ("subspace", "hessian", 1.5),  # in the midst of the curvatures: M is not H0
        ("full", "euclidean", None),
        ("full", "hessian", 1.5),
    ],
)


@everywhere
def test_coordinates_measure_what_the_metric_does(where, metric, min_curvature):
    shell = shell_of(where, metric, min_curvature)
    y, z = coordinates(shell), coordinates(shell, 1)
    delta, other = shell.delta(y), shell.delta(z)
    assert np.allclose(shell.coordinates(delta), y, atol=1e-12)
    assert torch.allclose(shell.inside(delta), delta, atol=1e-12)
    assert shell.flat(y) @ shell.flat(z) == pytest.approx(float(delta @ other), abs=1e-12)
    assert shell.energy(y) == pytest.approx(0.5 * float(delta @ H0 @ delta), rel=1e-10)
    # Clamped from below: in its own eigenvectors, of H0 or of what the subspace sees of it.
    basis = AXES if where == "full" else shell.rows
    values, vectors = torch.linalg.eigh(basis @ H0 @ basis.T)
    metric_matrix = basis.T @ vectors @ torch.diag(values.clamp(min=min_curvature or 0.0)) @ vectors.T @ basis
    level = float(delta.norm()) if metric == "euclidean" else 0.5 * float(delta @ metric_matrix @ delta)
    assert shell.level_of(float(np.linalg.norm(y))) == pytest.approx(level, rel=1e-8)
    assert shell.radius_of(level) == pytest.approx(float(np.linalg.norm(y)), rel=1e-8)


@everywhere
def test_derivatives_by_coordinates_are_differences_of_the_loss(where, metric, min_curvature):
    shell, h = shell_of(where, metric, min_curvature), 1e-5
    y, v = coordinates(shell), coordinates(shell, 1)
    gradient = shell.value_and_gradient(y)[1]
    up, down = shell.value_and_gradient(y + h * v), shell.value_and_gradient(y - h * v)
    assert gradient @ v == pytest.approx((up[0] - down[0]) / (2 * h), rel=1e-7)
    product = shell.product(y, v)
    assert np.allclose(product, (up[1] - down[1]) / (2 * h), rtol=1e-6, atol=1e-7)
    if where == "subspace":
        assert np.allclose(shell.hessian(y) @ v, product, atol=1e-12)


def test_the_softest_overlap_is_a_squared_cosine_in_weight_space():
    space = lh.Subspace(AXES[[0, 2, 4]].clone())
    for metric in SHELLS:
        shell = SHELLS[metric](curved(), space)
        delta = 1.0 * AXES[0] + 2.0 * AXES[2] + 3.0 * AXES[4]
        assert shell.softest_overlap(shell.coordinates(delta)) == pytest.approx(9 / 14)
    even = SphereShell(lh.toys.quadratic([2.0, 2.0]), lh.Subspace(torch.eye(2, dtype=torch.float64)))
    assert even.softest_overlap(np.array([1.0, 2.0])) == 0.0  # no axis is softer than the other


def test_the_tilt_is_what_the_anchor_adds_to_the_slope():
    loss, epsilon = curved(), 0.3
    anchored = lh.objective.AnchoredObjective(
        loss, THETA0 + torch.linspace(1, 2, len(THETA0), dtype=torch.float64), epsilon
    )
    shell = EnergyShell(anchored, lh.Subspace(AXES[:DIM].clone()))
    y = coordinates(shell)
    delta = shell.delta(y)
    theta = THETA0 + delta
    slopes = [float(delta @ each.gradient(theta)) / float(delta.norm()) for each in (anchored, loss)]
    assert shell.tilt(y) == pytest.approx(slopes[0] - slopes[1], rel=1e-10)
    assert shell_of("subspace", "hessian").tilt(coordinates(shell)) == 0.0


class _Lopsided:
    """A loss whose products are off by an antisymmetric part, as those of a map that is no Hessian."""

    def __init__(self, gap: float):
        self.inner = lh.toys.quadratic([1.0, 1e-4])
        self.gap = torch.tensor([[0.0, gap], [-gap, 0.0]], dtype=torch.float64)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        return self.inner.hvp(theta, v) + self.gap @ v


def test_a_curvature_below_the_asymmetry_of_the_products_is_no_metric():
    plane = lh.Subspace(torch.eye(2, dtype=torch.float64))
    assert EnergyShell(_Lopsided(1e-5), plane).asymmetry == pytest.approx(1e-5)
    with pytest.raises(ValueError, match=r"space has curvatures from 1 down to 0\.0001 at theta0"):
        EnergyShell(_Lopsided(1e-3), plane)
