"""Searches on one sphere, and the Hessian on its tangent space.

Oracles: finite differences along the sphere; orthogonality; two valleys of known depths.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import lowhanging as lh
from canyon_scene import AXES, DIM, coordinates, curved, shell_of
from lowhanging.canyons.shell import SHELLS, SphereShell
from lowhanging.canyons.sphere_search import SpherePoint, SphereSearch, TangentHessian, complement


@pytest.mark.parametrize("normal", [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.6, -0.8], [-0.48, 0.6, 0.64]])
def test_the_complement_is_an_orthonormal_frame_of_the_tangent_space(normal):
    n = np.array(normal)
    frame = complement(n)
    assert frame.shape == (3, 2)
    assert np.abs(frame.T @ frame - np.eye(2)).max() < 1e-15
    assert np.abs(n @ frame).max() < 1e-15


@pytest.mark.parametrize("metric", list(SHELLS))
def test_the_tangent_hessian_is_the_second_derivative_along_great_circles(metric):
    shell = shell_of("subspace", metric)
    point = SpherePoint.towards(shell, coordinates(shell), 1.3)
    tangent = TangentHessian(shell, point)
    n, radius, h = point.normal, point.radius, 1e-3
    frame = complement(n)
    for direction in (*frame.T, (frame[:, 0] + frame[:, 1]) / 2**0.5):

        def value(angle: float, direction: np.ndarray = direction) -> float:
            return SpherePoint.towards(shell, np.cos(angle) * n + np.sin(angle) * direction, radius).value

        second = (value(h) - 2 * value(0.0) + value(-h)) / (radius * h) ** 2
        assert direction @ tangent.apply(direction) == pytest.approx(second, rel=1e-5)
    assert np.abs(tangent.apply(n)).max() < 1e-12
    dense = frame.T @ np.stack([tangent.apply(column) for column in frame.T], axis=1)
    assert np.allclose(tangent.values, np.linalg.eigvalsh(dense), atol=1e-12)
    assert tangent.lowest == tangent.values[0]
    K = shell.hessian(point.y)
    assert np.allclose(tangent.times_normal(), K @ n - (n @ K @ n) * n, atol=1e-12)


def test_solving_at_a_saddle_divides_by_negative_eigenvalues_too():
    shell = SphereShell(curved(), lh.Subspace(AXES[:DIM].clone()))
    tangent = TangentHessian(shell, SpherePoint.towards(shell, np.array([0.1, 1.0, 0.2]), 0.5))
    assert tangent.values[0] < -tangent.error  # between the softest and the stiffest axis: one down, one up
    assert tangent.values[1] > tangent.error
    rhs = complement(tangent.point.normal) @ np.array([0.3, -0.8])
    assert np.allclose(tangent.apply(tangent.solve(rhs)), rhs, atol=1e-12)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_saddle_is_left_on_its_lower_side(side):
    def two_valleys(theta: Tensor) -> Tensor:
        """R^2 (1 + 0.3 cos 2 phi) + 0.02 side r^3 sin 3 phi: a maximum near phi = 0, falling faster on one side."""
        x, y = theta
        return x * x + y * y + 0.3 * (x * x - y * y) + 0.02 * side * (3 * x * x * y - y**3)

    loss = lh.FunctionObjective(two_valleys, torch.zeros(2, dtype=torch.float64), engine="double backward")
    shell = SphereShell(loss, lh.Subspace(torch.eye(2, dtype=torch.float64)))
    search = SphereSearch(shell, rtol=1e-10)
    along_x = shell.coordinates(torch.tensor([1.0, 0.0], dtype=torch.float64))
    point, tangent = search.minimum(SpherePoint.towards(shell, along_x, 1.0))
    assert search.is_stationary(point)
    assert tangent.lowest > tangent.error
    assert side * float(shell.delta(point.y)[1]) > 0.9


def test_a_bent_ravine_is_followed_to_its_lowest_point() -> None:
    """Stiff across, soft along: L-BFGS stops short, Newton finds no shorter residual, and damped steps go down.

    The lowest value is that of SciPy's trust-constr, from four of six starts.
    """

    def ravine(x: torch.Tensor) -> torch.Tensor:
        across = 50 * (x[0] - torch.sin(3 * x[1])) ** 2
        return across + 0.1 * x[1:].square().sum() + 0.01 * (x[2:] ** 4).sum() - 0.02 * x[3] ** 3

    loss = lh.FunctionObjective(ravine, torch.zeros(15, dtype=torch.float64))
    found = lh.find_canyons(
        loss, space=lh.Subspace(torch.eye(15, dtype=torch.float64)), metric="euclidean", levels=3.0, num_starts=6,
        progress=False,
    )  # fmt: skip
    assert sum(point.num_starts for point in found) == 6
    assert all(point.is_certified for point in found)
    assert min(point.rise for point in found) == pytest.approx(0.80444, abs=1e-5)
