"""`Subspace`: spans, projections, overlaps and angles.

Oracles: closed forms in coordinates (axes, planes at a known angle); the dense projection matrix B^T B at small p;
`scipy.linalg.subspace_angles`; a tilt of 1e-9, whose cosine is 1 to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import scipy.linalg
import torch
from torch import Tensor

from lowhanging.curvature.subspace import Subspace


def rows(n: int, p: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def axes(*indices: int, p: int = 6) -> Subspace:
    return Subspace(torch.eye(p, dtype=torch.float64)[list(indices)])


def test_span_is_orthonormal_in_order_and_holds_every_row() -> None:
    given = rows(5, 30) * torch.tensor([1e-200, 1e200, 1.0, 1e-8, 3.0], dtype=torch.float64)[:, None]
    space = Subspace.span(given)
    assert (space.dim, len(space), space.num_params, space.num_dropped) == (5, 5, 30, 0)
    assert float((space.basis @ space.basis.T - torch.eye(5)).abs().max()) < 1e-14
    for j in range(5):  # the first j + 1 rows span what the first j + 1 basis rows span
        unit = given[j] / given[j].abs().max()
        unit = unit / unit.norm()
        assert float(Subspace(space.basis[: j + 1]).reject(unit).norm()) < 1e-14
        assert float(space.basis[j] @ unit) > 0


def test_span_keeps_orthonormal_rows_as_they_are() -> None:
    basis = Subspace.span(rows(4, 20)).basis
    assert float((Subspace.span(basis).basis - basis).abs().max()) < 1e-15
    assert torch.equal(Subspace.span(basis[0]).basis, Subspace.span([basis[0]]).basis)


def test_span_of_nearly_parallel_rows_is_orthonormal_to_rounding() -> None:
    first, *others = rows(4, 30)
    space = Subspace.span([first, *(first + 1e-9 * other for other in others)])  # once would leave 1e-7
    assert space.dim == 4
    assert float((space.basis @ space.basis.T - torch.eye(4)).abs().max()) < 1e-14


def test_span_drops_dependent_rows_and_says_so() -> None:
    independent = rows(3, 10)
    dependent = torch.cat([independent[:2], 2 * independent[:1] - 1e-3 * independent[1:2], independent[2:]])
    space = Subspace.span(dependent)
    assert (space.dim, space.num_dropped) == (3, 1)
    assert repr(space) == "Subspace(3 of 10 dimensions, 1 rows dropped)"
    assert float((space.basis - Subspace.span(independent).basis).abs().max()) < 1e-12
    assert Subspace.span(rows(9, 4)).dim == 4  # more rows than dimensions


@pytest.mark.parametrize(("tol", "dim"), [(None, 2), (1e-7, 2), (1e-5, 1)])
def test_span_tolerance_is_the_sine_of_an_angle(tol: float | None, dim: int) -> None:
    x, y = torch.eye(8, dtype=torch.float64)[:2]
    assert Subspace.span([3 * x, 5 * (x + 1e-6 * y)], tol=tol).dim == dim
    assert Subspace.span([3 * x.float(), 5 * (x + 1e-6 * y).float()]).dim == 1  # below what float32 rows can say


def test_projection_equals_the_dense_matrix() -> None:
    space, batch = Subspace.span(rows(4, 12)), rows(3, 12, seed=1)
    P = space.basis.T @ space.basis
    for v in (batch, batch[0]):
        assert float((space.project(v) - v @ P).abs().max()) < 1e-14
        assert float((space.reject(v) - (v - v @ P)).abs().max()) < 1e-14
        assert float((space.vector(space.coordinates(v)) - v @ P).abs().max()) < 1e-14
    c = rows(2, 4, seed=2)
    assert float((space.coordinates(space.vector(c)) - c).abs().max()) < 1e-14
    assert space.coordinates(batch).shape == (3, 4)
    assert space.vector(c[0]).shape == (12,)


def test_rejection_of_a_vector_almost_inside_is_still_orthogonal() -> None:
    space = Subspace.span(rows(20, 500))
    outside = space.reject(rows(1, 500, seed=1)[0])
    left = space.reject(1e8 * space.basis.sum(dim=0) + 1e-5 * outside)
    assert float(space.coordinates(left / left.norm()).abs().max()) < 1e-15


def test_results_keep_dtype_of_the_vector() -> None:
    single, double = Subspace.span(rows(3, 10, dtype=torch.float32)), Subspace.span(rows(3, 10))
    assert single.basis.dtype == torch.float32
    assert single.project(rows(1, 10)[0]).dtype == torch.float64
    assert double.reject(rows(1, 10, dtype=torch.float32)[0]).dtype == torch.float32
    assert single.to(dtype=torch.float64).basis.dtype == torch.float64


def test_overlap_with_vectors() -> None:
    plane = axes(0, 1)
    x, y, z = torch.eye(6, dtype=torch.float64)[:3]
    assert plane.overlap(x - 2 * y) == pytest.approx(1, abs=1e-15)
    assert plane.overlap(-7 * z) == 0
    assert plane.overlap(3 * x + 4 * z) == pytest.approx(9 / 25, abs=1e-15)
    random = torch.stack([torch.tensor(plane.overlap(v)) for v in rows(4000, 6)])
    assert float(random.mean()) == pytest.approx(2 / 6, abs=0.02)


def test_overlap_with_subspaces_is_the_mean_squared_cosine() -> None:
    assert axes(0, 1).overlap(axes(1, 2)) == pytest.approx(0.5)
    assert axes(0).overlap(axes(0, 1, 2)) == axes(0, 1, 2).overlap(axes(0)) == pytest.approx(1)
    assert axes(0, 1).overlap(axes(2, 3)) == 0
    a, b = Subspace.span(rows(3, 9)), Subspace.span(rows(5, 9, seed=1))
    cosines = torch.linalg.svdvals(a.basis @ b.basis.T)
    assert a.overlap(b) == pytest.approx(float(cosines.square().mean()), abs=1e-14)
    assert b.overlap(a) == pytest.approx(a.overlap(b), abs=1e-15)


def test_principal_angles() -> None:
    x, y, z, w = torch.eye(6, dtype=torch.float64)[:4]
    tilted = Subspace.span([math.cos(0.3) * x + math.sin(0.3) * z, math.cos(1.2) * y + math.sin(1.2) * w])
    assert torch.allclose(axes(0, 1).principal_angles(tilted), torch.tensor([0.3, 1.2]).double(), atol=1e-14)
    a, b = Subspace.span(rows(3, 9)), Subspace.span(rows(5, 9, seed=1))
    angles = a.principal_angles(b)
    theirs = torch.from_numpy(scipy.linalg.subspace_angles(a.basis.numpy().T, b.basis.numpy().T).copy())
    assert torch.allclose(angles, theirs.sort().values, atol=1e-14)
    assert bool((angles.diff() >= 0).all())
    assert angles.shape == b.principal_angles(a).shape == (3,)
    assert float(angles.cos().square().mean()) == pytest.approx(a.overlap(b), abs=1e-13)


def test_small_angles_are_not_lost_to_their_cosine() -> None:
    x, y, z = torch.eye(6, dtype=torch.float64)[:3]
    tilted = Subspace.span([x, y + 1e-9 * z])
    angles = axes(0, 1).principal_angles(tilted)
    assert torch.allclose(angles, torch.tensor([0.0, 1e-9]).double(), rtol=1e-6, atol=1e-15)


def test_union_counts_shared_dimensions_once() -> None:
    both = axes(0, 1).union(axes(1, 2))
    assert both.dim == 3
    assert torch.equal(both.basis[:2], axes(0, 1).basis)
    assert both.overlap(axes(0, 1, 2)) == pytest.approx(1)
    wide = Subspace.span(rows(3, 10)).union(Subspace.span(rows(3, 10, dtype=torch.float32)))
    assert wide.dim == 3  # the same rows, rounded


def test_save_and_load(tmp_path: object) -> None:
    space = Subspace.span(torch.cat([rows(3, 10), rows(3, 10)[:1]]))
    loaded = Subspace.load(space.save(f"{tmp_path}/space"))
    assert torch.equal(loaded.basis, space.basis)
    assert repr(loaded) == repr(space) == "Subspace(3 of 10 dimensions, 1 rows dropped)"


SPACE = axes(0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Subspace.span(torch.zeros(2, 5)), r"rows \[0, 1\] are zero, expected rows with a direction"),
        (lambda: Subspace.span(torch.tensor([[1.0, math.nan]])), r"rows holds 1 NaN or infinite entries"),
        (lambda: Subspace.span(torch.ones(2, 5, dtype=torch.long)), r"rows are a torch.int64 tensor of shape \(2, 5\)"),
        (lambda: Subspace.span([torch.ones(3), torch.ones(4)]), r"rows are a list, expected vectors of one length"),
        (lambda: Subspace.span([]), r"rows are a list, expected vectors of one length"),
        (lambda: Subspace.span(torch.ones(1, 2, 3)), r"rows are a torch.float32 tensor of shape \(1, 2, 3\)"),
        (lambda: Subspace.span(torch.ones(1, 3), tol=-1), r"tol is -1, expected a finite number in \[0, 1\]"),
        (lambda: Subspace(torch.ones(2, 5)), r"basis has products of rows 5.0e\+00 off, expected .*\n.*Subspace.span"),
        (lambda: Subspace(torch.ones(5)), r"basis is a torch.float32 tensor of shape \(5,\), expected a tensor of"),
        (lambda: Subspace([1.0]), r"basis is a list, expected a tensor"),
        (lambda: Subspace(torch.eye(2).half()), r"basis has dtype torch.float16, expected float32 or float64"),
        (lambda: SPACE.project(torch.ones(5)), r"v is a torch.float32 tensor of shape \(5,\), expected .* \(6,\)"),
        (lambda: SPACE.reject([1.0]), r"v is a list, expected a floating-point tensor of shape"),
        (lambda: SPACE.vector(torch.ones(3)), r"coordinates is a .* of shape \(3,\), expected a float.*\(2,\)"),
        (lambda: SPACE.vector(torch.ones(2).long()), r"coordinates is a torch.int64 tensor of shape \(2,\)"),
        (lambda: SPACE.overlap(torch.zeros(6)), r"v is the zero vector, expected a direction of shape \(6,\)"),
        (lambda: SPACE.overlap(torch.ones(2, 6)), r"v is a .* of shape \(2, 6\), expected a direction"),
        (lambda: SPACE.overlap(axes(0, p=7)), r"other is Subspace\(1 of 7 dimensions\), expected a Subspace of 6"),
        (lambda: SPACE.principal_angles(torch.eye(6)), r"other is a torch.float32 tensor of shape \(6, 6\), exp"),
        (lambda: SPACE.union(axes(0, p=7)), r"other is Subspace\(1 of 7 dimensions\), expected"),
    ],
)
def test_messages(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
