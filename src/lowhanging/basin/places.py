r"""A place on a sphere |y| = rho: is the function stationary there, and what is its Hessian across?

P g and P K P - mu P as in `stationary.py`, which moves from place to place; here each is computed at one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, minres

from lowhanging.basin.eigenpairs import Eigenpairs, top_eigs
from lowhanging.basin.shells import Array, Shell
from lowhanging.errors import NotConvergedError


@dataclass(frozen=True)
class Place:
    """A point of the sphere with value and gradient."""

    y: Array  # (dim,)
    value: float
    gradient: Array  # (dim,)

    @property
    def radius(self) -> float:
        """|y|."""
        return float(np.linalg.norm(self.y))

    @property
    def normal(self) -> Array:
        """N = y / |y|, (dim,)."""
        return self.y / self.radius

    @property
    def slope(self) -> float:
        """n.g, by y: d f / d rho."""
        return float(self.normal @ self.gradient)

    @property
    def multiplier(self) -> float:
        """Mu of g = mu y."""
        return self.slope / self.radius

    @property
    def tangent_gradient(self) -> Array:
        """P g, (dim,)."""
        tangent = self.gradient - self.slope * self.normal
        return np.asarray(tangent - (self.normal @ tangent) * self.normal)

    @property
    def residual(self) -> float:
        """|P g|."""
        return float(np.linalg.norm(self.tangent_gradient))


class TangentHessian:
    """P K P - mu P on the tangent space at a place: `lowest` eigenvalues, `solve`.

    Dense for subspaces (dim products, once); by products in the full space, where Lanczos finds the lowest one.
    """

    def __init__(self, shell: Shell, place: Place):
        self.shell, self.place = shell, place
        self.matrix: Array | None = None
        self.error = 0.0  # of an eigenvalue: antisymmetric part and rounding of the products
        if shell.is_full:
            return
        finite = place.value < np.inf
        full = shell.hessian(place.y) if finite else np.full((shell.dim, shell.dim), np.nan)  # (dim, dim)
        self.matrix = (full + full.T) / 2
        if not np.isfinite(full).all():  # nothing is known here, and nothing is claimed
            self.values, self.vectors = np.full(shell.dim - 1, -np.inf), np.zeros((shell.dim, shell.dim - 1))
            self.error = np.inf
            return
        eps, size = torch.finfo(shell.theta0.dtype).eps, float(np.linalg.norm(full, 2))
        self.error = float(np.linalg.norm(full - full.T, 2)) / 2 + 8 * eps * size
        # Theta is rounded to eps |theta|, which moves the gradient, and with it mu.
        rounding = size * float(shell.scales.max()) * float(shell.theta0.double().norm())
        self.error += eps * (rounding + float(np.linalg.norm(place.gradient))) / place.radius
        frame = complement(place.normal)  # (dim, dim - 1) orthonormal columns
        values, weights = np.linalg.eigh(frame.T @ self.matrix @ frame)
        self.values, self.vectors = values - place.multiplier, frame @ weights  # ascending; columns

    @property
    def lowest(self) -> float:
        """The smallest eigenvalue, to within `error`."""
        self._search()
        return float(self.values[0])

    @property
    def lowest_vector(self) -> Array:
        """Its unit eigenvector, (dim,)."""
        self._search()
        return np.asarray(self.vectors[:, 0])

    def _search(self) -> None:
        """The lowest pair by Lanczos, where there is no matrix."""
        if hasattr(self, "values"):
            return
        is_single = self.shell.theta0.dtype == torch.float32  # the map is as accurate as its products
        normal = self.place.normal.astype(np.float32 if is_single else np.float64)
        scale = max(1.0, float(np.max(self.shell.curvatures, initial=0.0)) / self.shell.floor)
        pairs = lowest_across(lambda v: self.apply(v.astype(np.float64)).astype(v.dtype), normal, scale, tol=1e-4)
        self.values, self.vectors = pairs.values.numpy(), pairs.vectors.numpy().T.astype(np.float64)
        self.error = float(pairs.residuals[0])

    def apply(self, v: Array) -> Array:
        """(P K P - mu P) v, (dim,)."""
        n, mu = self.place.normal, self.place.multiplier
        inside = v - (n @ v) * n
        image = self.matrix @ inside if self.matrix is not None else self.shell.product(self.place.y, inside)
        image = image - mu * inside
        return np.asarray(image - (n @ image) * n)

    def times_normal(self) -> Array:
        """P K n, (dim,)."""
        n = self.place.normal
        image = self.matrix @ n if self.matrix is not None else self.shell.product(self.place.y, n)
        return np.asarray(image - (n @ image) * n)

    def solve(self, rhs: Array) -> Array:
        """(P K P - mu P)^+ rhs for rhs in the tangent space, (dim,); directions known to be flat get nothing."""
        if self.matrix is not None:
            along = self.vectors.T @ rhs
            curved = np.abs(self.values) > self.error
            along[curved] /= self.values[curved]
            along[~curved] = 0.0
            return np.asarray(self.vectors @ along)
        dim = len(rhs)
        found = minres(LinearOperator((dim, dim), matvec=self.apply, dtype=np.float64), rhs, rtol=1e-6, maxiter=400)[0]
        n = self.place.normal
        return np.asarray(found - (n @ found) * n)


class _Lifted:
    """A map that is zero along a unit vector n, with that zero lifted out of the way: v -> A v + lift n n^T v."""

    def __init__(self, apply: Callable[[Any], Any], normal: Any, lift: float):
        self.apply, self.normal, self.lift = apply, normal, lift
        self.shape, self.dtype = (len(normal), len(normal)), normal.dtype
        self.device = getattr(normal, "device", None) if isinstance(normal, torch.Tensor) else torch.device("cpu")

    def __matmul__(self, v: Any) -> Any:
        return self.apply(v) + self.lift * (self.normal @ v) * self.normal


def lowest_across(apply: Callable[[Any], Any], normal: Any, scale: float, *, tol: float) -> Eigenpairs:
    """The smallest eigenpair of a map on the complement of a unit vector along which it is zero, as far as it is found.

    Both are in NumPy or both in torch; `scale` is a guess at the largest eigenvalue. Its residual says how right it is.
    """
    lift = 2.0 * scale
    while True:
        try:
            pairs = top_eigs(_Lifted(apply, normal, lift), k=1, which="SA", tol=tol, progress=False)
        except NotConvergedError as failure:
            pairs = failure.result
        way = torch.as_tensor(normal).cpu().double()
        if abs(float(pairs.vectors[0].double() @ way)) < 0.5 or lift > 2.0 * abs(pairs.other_end):
            return pairs  # else everything lies above the lifted zero, which was found instead
        lift = 4.0 * max(abs(pairs.other_end), lift)


def complement(normal: Array) -> Array:
    """Orthonormal columns (dim, dim - 1) of the tangent space, by a Householder reflection that takes n to an axis."""
    axis = normal.copy()
    axis[0] += np.sign(axis[0]) or 1.0
    axis /= np.linalg.norm(axis)
    reflection = np.eye(len(axis)) - 2.0 * np.outer(axis, axis)
    return reflection[:, 1:]
