"""Matrices with known spectra, and what is checked of every eigenpair and of every basis."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lowhanging.curvature.eigenpairs import Eigenpairs, _with_canonical_signs
from lowhanging.curvature.krylov import KrylovSpace
from lowhanging.curvature.linear_map import CountedMap


class Counted:
    """A map that counts its products (a block of b vectors counts b) and is no matrix."""

    def __init__(self, apply: Callable[[Tensor], Tensor], p: int, dtype: torch.dtype = torch.float64):
        self.apply, self.shape, self.dtype, self.device = apply, (p, p), dtype, torch.device("cpu")
        self.count = 0

    def __matmul__(self, v: Tensor) -> Tensor:
        self.count += v.numel() // self.shape[0]
        return self.apply(v)


def diagonal(values: object, dtype: torch.dtype = torch.float64) -> Counted:
    entries = torch.as_tensor(values, dtype=dtype)
    return Counted(lambda v: entries * v, len(entries), dtype)


def symmetric(values: object, seed: int = 0) -> Tensor:
    """A dense (p, p) float64 matrix with these eigenvalues and random eigenvectors."""
    spectrum = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64))[0]
    matrix = (basis * spectrum) @ basis.T
    return (matrix + matrix.T) / 2


def wanted(values: np.ndarray, which: str, k: int | None = None) -> np.ndarray:
    if which == "BE":
        k = len(values) if k is None else k
        return np.r_[np.sort(values)[::-1][: k - k // 2], np.sort(values)[: k // 2]]
    return values[np.argsort(-{"LA": values, "SA": -values, "LM": np.abs(values)}[which], kind="stable")]


def network_spectrum() -> np.ndarray:
    """A few outliers, a power-law tail and a small negative bulk, p = 3,340: a small CNN's Hessian."""
    return np.r_[5 * np.arange(1, 2141) ** -1.3, -0.01 * np.random.default_rng(0).random(1200)]


def nearest(values: np.ndarray, spectrum: np.ndarray) -> np.ndarray:
    """(k,) distance of each value from the nearest eigenvalue."""
    return np.abs(values[:, None] - spectrum[None, :]).min(axis=1)


def check_pairs(pairs: Eigenpairs, H: Tensor) -> None:
    """Orthonormal rows; residuals as reported, by dense float64 products; canonical signs; all converged."""
    vectors, size = pairs.vectors.double(), float(torch.linalg.matrix_norm(H.double(), 2))
    assert float((vectors @ vectors.T - torch.eye(len(pairs))).abs().max()) < 1e-12
    true = (vectors @ H - pairs.values[:, None] * vectors).norm(dim=1)
    assert float((true - pairs.residuals).abs().max()) <= 1e-14 * size
    assert bool((true <= pairs.tol * pairs.scale).all())
    assert bool(pairs.is_converged.all())
    assert pairs.scale <= size * (1 + 1e-12)
    assert bool((_with_canonical_signs(pairs.vectors) == pairs.vectors).all())


def space_of(H: object, memory: float = 2**30, seed: int = 0) -> KrylovSpace:
    return KrylovSpace(CountedMap(H), seed=seed, memory=memory)


def step(space: KrylovSpace, direction: np.ndarray | None = None) -> None:
    assert space.has_room()
    space.step(direction)


def check_relation(space: KrylovSpace, H: Tensor, tol: float = 1e-13) -> None:
    """V V^T = I, H Q^T = V^T K and, above its diagonal, T = Q H Q^T."""
    end, scale = space.size + space.num_residual, float(torch.linalg.matrix_norm(H, 2)) or 1.0
    V, Q = space.rows[:end].double(), space.rows[: space.size].double()
    K = torch.from_numpy(space.coefficients[:end, : space.size])
    assert float((V @ V.T - torch.eye(end)).abs().max()) < tol
    assert float((H @ Q.T - V.T @ K).abs().max()) < tol * scale
    assert float((K[: space.size] - Q @ H @ Q.T).abs().max()) < tol * scale
    if space.products is not None:
        assert float((space.products[: space.size].double() - Q @ H).abs().max()) < tol * scale


MISSED = np.r_[5.0, 5.0, 3.0, np.linspace(0, 0.1, 300)]  # one chain has 5 and 3 before rounding shows it the other 5
