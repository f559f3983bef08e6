"""Shells and the geometry of their spheres, and `TangentHessian`, against what weight space says.

Oracles: the dense Hessian of a polynomial on paper; finite differences along the sphere; orthogonality. `find_canyons`
reaches the same answers from coordinates that are merely stretched, so its own tests cannot tell: these can.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import lowhanging as lh
from lowhanging.canyons.shell import METRICS, Shell, make_shell
from lowhanging.canyons.sphere_search import SpherePoint, SphereSearch, TangentHessian, complement

P, DIM = 6, 3
CURVATURES = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.7, 0.2], dtype=torch.float64)


def turned() -> Tensor:
    """(p, p) orthonormal rows, the eigenvectors."""
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(P, P, generator=generator, dtype=torch.float64))[0]


AXES = turned()
H0 = AXES.T @ (CURVATURES[:, None] * AXES)
THETA0 = torch.linspace(-0.4, 0.6, P, dtype=torch.float64)
CUBIC = torch.linspace(0.3, -0.2, P, dtype=torch.float64)


def curved() -> lh.FunctionObjective:
    """A bowl of known curvatures around THETA0 that bends away from its quadratic, its gradient there not quite 0."""

    def function(theta: Tensor) -> Tensor:
        x = theta - THETA0
        return 0.5 * x @ H0 @ x + (CUBIC * x**3).sum() + 0.05 * (x**4).sum() + 0.01 * x.sum()

    return lh.FunctionObjective(function, THETA0, engine="double backward")


def hessian_at(theta: Tensor) -> Tensor:
    x = theta - THETA0
    return H0 + torch.diag(6 * CUBIC * x + 0.6 * x**2)


def shell_of(where: str, metric: str, min_curvature: float | None = None) -> Shell:
    """Of all of weight space, or of a subspace that is no span of eigenvectors."""
    rows = torch.randn(DIM, P, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return make_shell(curved(), "full" if where == "full" else lh.Subspace.span(rows), metric, min_curvature)


def coordinates(shell: Shell, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shell.dim)


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
    for metric in METRICS:
        shell = make_shell(curved(), space, metric)
        delta = 1.0 * AXES[0] + 2.0 * AXES[2] + 3.0 * AXES[4]
        assert shell.softest_overlap(shell.coordinates(delta)) == pytest.approx(9 / 14)
    even = make_shell(lh.toys.quadratic([2.0, 2.0]), lh.Subspace(torch.eye(2, dtype=torch.float64)), "euclidean")
    assert even.softest_overlap(np.array([1.0, 2.0])) == 0.0  # no axis is softer than the other


def test_the_tilt_is_what_the_anchor_adds_to_the_slope():
    loss, epsilon = curved(), 0.3
    anchored = lh.objective.AnchoredObjective(loss, THETA0 + torch.linspace(1, 2, P, dtype=torch.float64), epsilon)
    shell = make_shell(anchored, lh.Subspace(AXES[:DIM].clone()), "hessian")
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
    assert make_shell(_Lopsided(1e-5), plane, "hessian").asymmetry == pytest.approx(1e-5)
    with pytest.raises(ValueError, match=r"space has curvatures from 1 down to 0\.0001 at theta0"):
        make_shell(_Lopsided(1e-3), plane, "hessian")


@pytest.mark.parametrize("normal", [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.6, -0.8], [-0.48, 0.6, 0.64]])
def test_the_complement_is_an_orthonormal_frame_of_the_tangent_space(normal):
    n = np.array(normal)
    frame = complement(n)
    assert frame.shape == (3, 2)
    assert np.abs(frame.T @ frame - np.eye(2)).max() < 1e-15
    assert np.abs(n @ frame).max() < 1e-15


@pytest.mark.parametrize("metric", METRICS)
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
    shell = make_shell(curved(), lh.Subspace(AXES[:DIM].clone()), "euclidean")
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
    shell = make_shell(loss, lh.Subspace(torch.eye(2, dtype=torch.float64)), "euclidean")
    search = SphereSearch(shell, rtol=1e-10)
    along_x = shell.coordinates(torch.tensor([1.0, 0.0], dtype=torch.float64))
    point, tangent = search.minimum(SpherePoint.towards(shell, along_x, 1.0))
    assert search.is_stationary(point)
    assert tangent.lowest > tangent.error
    assert side * float(shell.delta(point.y)[1]) > 0.9
