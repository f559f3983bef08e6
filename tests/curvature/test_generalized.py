"""Generalized eigenpairs against SciPy's dense eigh, on matrices and on Hessians of a small network."""

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch
from torch import nn

import lowhanging as lh
from lowhanging.curvature import GeneralizedEigenpairs, generalized_eigs

EYE = torch.eye(60, dtype=torch.float64)


def rotated(values, seed):
    """A symmetric matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    matrix = Q @ torch.diag(values) @ Q.T
    return (matrix + matrix.T) / 2


def dense(A, B, k, excluded=None):
    """The k largest values, and the vectors as unit rows, within the complement of `excluded`."""
    P = torch.eye(len(A), dtype=torch.float64)
    if excluded is not None:
        P = torch.linalg.svd(excluded.reshape(-1, len(A)))[2][len(excluded.reshape(-1, len(A))) :]
    values, vectors = scipy.linalg.eigh((P @ A @ P.T).numpy(), (P @ B @ P.T).numpy())
    rows = torch.from_numpy(vectors[:, ::-1][:, :k].T.copy()) @ P
    return values[::-1][:k], rows / rows.norm(dim=1, keepdim=True)


SPECTRUM = torch.cat([torch.logspace(1, -1, 15), torch.linspace(-0.05, 0.05, 45)]).double()
A, B, SHIFT = rotated(SPECTRUM, 0), rotated(SPECTRUM.flip(0), 1), 0.15


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_values_and_vectors_are_those_of_a_dense_solver(is_known, k, rank):
    excluded = rotated(SPECTRUM, 2)[:rank] if rank else None
    known = lh.top_eigs(B, k=12, tol=1e-8) if is_known else None
    found = generalized_eigs(A, B, k=k, shift=SHIFT, known=known, orthogonal_to=excluded, tol=1e-7)
    values, rows = dense(A, B + SHIFT * EYE, k, excluded)
    assert found.values.numpy() == pytest.approx(values, rel=1e-9)
    assert torch.allclose((found.vectors * rows).sum(1).abs(), torch.ones(k, dtype=torch.float64), atol=1e-9)
    assert float(found.residuals.max()) <= 1e-7
    if excluded is not None:
        assert float((found.vectors @ excluded.T).abs().max()) < 1e-10


def test_known_pairs_shorten_the_search():
    spent = [
        generalized_eigs(A, B, shift=SHIFT, known=known).num_products
        for known in (None, lh.top_eigs(B, k=12, tol=1e-8))
    ]
    assert spent[1] <= 0.7 * spent[0]
    assert spent[0] < 80


def test_a_basis_that_must_be_shrunk_still_converges(monkeypatch):
    monkeypatch.setattr(lh.curvature.generalized, "_MAX_ROWS", 45)
    values = torch.linspace(1, 2, 400, dtype=torch.float64)
    spread = rotated(values, 3)
    found = generalized_eigs(spread, torch.eye(400, dtype=torch.float64), k=1, tol=1e-3)
    assert float(found.values[0]) == pytest.approx(2.0, abs=1e-4)
    assert found.num_products > 2 * 45


@pytest.mark.parametrize("k", [54, 170])
def test_many_pairs(k):
    values = torch.linspace(1, 3, 400, dtype=torch.float64)
    found = generalized_eigs(torch.diag(values), torch.eye(400, dtype=torch.float64), k=k, tol=1e-4)
    assert found.values.numpy() == pytest.approx(values.flip(0)[:k].numpy(), rel=1e-5)


def test_products_with_nan_are_named():
    broken = scipy.sparse.linalg.LinearOperator((60, 60), lambda v: v * np.nan, dtype=np.float64)
    with pytest.raises(FloatingPointError, match="NaN"):
        generalized_eigs(broken, B, shift=SHIFT)
    with pytest.raises(TypeError, match="known is a Tensor"):
        generalized_eigs(A, B, shift=SHIFT, known=EYE)


def test_any_symmetric_map_will_do():
    linear = scipy.sparse.linalg.aslinearoperator(A.numpy())
    other = scipy.sparse.linalg.aslinearoperator(B.numpy())
    found = generalized_eigs(linear, other, k=2, shift=SHIFT, tol=1e-6)
    assert found.values.numpy() == pytest.approx(dense(A, B + SHIFT * EYE, 2)[0], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hessians_of_a_network(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    x, y = torch.randn(80, 5, dtype=dtype), torch.randint(0, 3, (80,))
    first, second = lh.Objective(net, (x[:50], y[:50])), lh.Objective(net, (x[50:], y[50:]))
    matrices = [lh.testing.dense_hessian(loss).double() for loss in (first, second)]
    shift = float(0.02 - torch.linalg.eigvalsh(matrices[1])[0])
    found = generalized_eigs(lh.hessian(first), lh.hessian(second), k=2, shift=shift, tol=1e-3)
    values, _ = dense(matrices[0], matrices[1] + shift * torch.eye(len(matrices[0]), dtype=torch.float64), 2)
    assert found.values.numpy() == pytest.approx(values, rel=1e-3)
    assert found.vectors.dtype == dtype
    again = generalized_eigs(lh.hessian(first), lh.hessian(second), k=2, shift=shift, tol=1e-3)
    assert torch.equal(again.vectors, found.vectors)


def test_what_did_not_converge_is_raised_with_what_was_found():
    with pytest.raises(lh.NotConvergedError, match="residual") as found:
        generalized_eigs(A, B, k=3, shift=SHIFT, tol=1e-12, max_products=20)
    assert isinstance(found.value.result, GeneralizedEigenpairs)
    assert found.value.result.num_products <= 26


def test_an_indefinite_metric_is_refused_with_the_shift_that_is_missing():
    with pytest.raises(ValueError, match=r"B has curvature .* shift included.*\n?.*Raise shift="):
        generalized_eigs(A, rotated(-SPECTRUM, 1), k=1, shift=0.0)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k": 61}, "k is 61"),
        ({"k": 0}, "k is 0"),
        ({"orthogonal_to": torch.ones(59)}, "orthogonal_to has shape"),
        ({"orthogonal_to": [1.0]}, "orthogonal_to is a list"),
        ({"orthogonal_to": torch.tensor(1.0)}, "orthogonal_to has shape"),
        ({"orthogonal_to": torch.ones(2, 2, 60)}, "orthogonal_to has shape"),
        ({"tol": 0.0}, "tol is 0"),
        ({"shift": float("nan")}, "shift is nan"),
        ({"max_products": 3}, "max_products is 3"),
        ({"known": lh.top_eigs(A[:50, :50], k=3)}, "known holds 3 pairs"),
        ({"known": lh.top_eigs(A, k=3, which="SA")}, "known holds 3 pairs"),
    ],
)
def test_bad_input(keywords, message):
    with pytest.raises(ValueError, match=message):
        generalized_eigs(A, B, **({"shift": SHIFT} | keywords))


def test_maps_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="B has p = 50"):
        generalized_eigs(A, B[:50, :50], shift=SHIFT)


def test_it_can_be_saved(tmp_path):
    found = generalized_eigs(A, B, k=2, shift=SHIFT)
    loaded = lh.load(found.save(tmp_path / "pairs"))
    assert repr(loaded) == repr(found)
    assert np.array_equal(loaded.vectors, found.vectors)
