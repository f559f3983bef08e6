"""Subspaces of weight space: projections, coordinates, angles between two of them, unions.

A `Subspace` is k orthonormal rows of length p. Everything goes through those rows, O(k p): the (p, p) projection
matrix is never formed. Geometry only: no loss is evaluated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from lowhanging.errors import (
    a_type,
    argument_message,
    check_finite,
    check_real,
    door,
)
from lowhanging.io import Saved

_SPAN = "Make a subspace of any rows with Subspace.span(rows)."


@door
@dataclass(frozen=True, eq=False, repr=False)
class Subspace(Saved):
    """The span of k orthonormal directions in weight space.

    Attributes:
        basis: (k, p) orthonormal rows.
        num_dropped: rows given to `span` that added no dimension.

    Raises:
        ValueError: the rows are not orthonormal (to 1e-5 in float64, 1e-3 in float32).
    """

    basis: Tensor  # (k, p)
    num_dropped: int = 0

    def __post_init__(self) -> None:
        basis = self.basis
        if not isinstance(basis, Tensor) or basis.ndim != 2 or not 1 <= basis.shape[0] <= basis.shape[1]:
            expected = "a tensor of shape (k, p), 1 <= k <= p"
            raise ValueError(argument_message("basis", f"is {_describe(basis)}", expected, _SPAN))
        if basis.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                argument_message("basis", f"has dtype {basis.dtype}", "float32 or float64", "Convert it first.")
            )
        check_finite("basis", basis, remedy=_SPAN)
        gap = float((basis @ basis.T - torch.eye(len(basis)).to(basis)).abs().max())
        if gap > (1e-5 if basis.dtype == torch.float64 else 1e-3):
            raise ValueError(
                argument_message("basis", f"has products of rows {gap:.1e} off", "orthonormal rows", _SPAN)
            )

    @classmethod
    def span(cls, rows: Tensor | Sequence[Tensor], *, tol: float | None = None) -> Subspace:
        """The subspace spanned by any rows, orthonormalised in their order, in float64.

        Row by row (so that the first j rows span what the first j basis rows span, and orthonormal rows stay what they
        are): a row at an angle of at most `tol` to the span of those before it adds no dimension and is dropped.

        Args:
            rows: (n, p), (p,) or a sequence of (p,); lengths don't matter.
            tol: sine of that angle; by default 1,000 roundings of the rows' dtype (2e-13, in float32 1e-4).

        Returns:
            The subspace, in the rows' dtype and on their device; `num_dropped` counts the rows dropped.

        Raises:
            ValueError: a row is zero, NaN or infinite, or the shapes differ.

        Cost:
            O(n k p).
        """
        given = _as_rows(rows)
        if tol is None:
            tol = 1000 * torch.finfo(given.dtype).eps
        check_real("tol", tol, minimum=0.0, maximum=1.0, remedy="It is the sine of an angle; leave it out.")
        remedy = "Leave such rows out: they have no direction."
        check_finite("rows", given, remedy=remedy)
        exact = given.double()
        exact = exact / exact.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        lengths = exact.norm(dim=1)  # after a division that keeps their squares from under- or overflowing
        if bool((lengths == 0).any()):
            where = [int(i) for i in (lengths == 0).nonzero()[:, 0]]
            raise ValueError(argument_message("rows", f"{where} are zero", "rows with a direction", remedy))
        basis = torch.empty((min(exact.shape), exact.shape[1]), dtype=torch.float64, device=exact.device)
        dim = 0
        for row in exact / lengths[:, None]:
            found = basis[:dim]
            remainder = row - found.T @ (found @ row)
            remainder -= found.T @ (found @ remainder)  # twice: once leaves eps / sine of what was removed
            sine = remainder.norm()
            if dim < len(basis) and float(sine) > tol:
                basis[dim] = remainder / sine
                dim += 1
        return cls(basis[:dim].to(given.dtype).clone(), num_dropped=len(given) - dim)

    @property
    def dim(self) -> int:
        """The number of directions, k."""
        return self.basis.shape[0]

    @property
    def num_params(self) -> int:
        """The length of a direction, p."""
        return self.basis.shape[1]

    def __len__(self) -> int:
        return self.dim

    def __repr__(self) -> str:
        dropped = f", {self.num_dropped} rows dropped" if self.num_dropped else ""
        return f"Subspace({self.dim} of {self.num_params:,} dimensions{dropped})"

    def coordinates(self, v: Tensor) -> Tensor:
        """Components of v (p,) along the basis, (k,); row by row for v (b, p), (b, k)."""
        v = self._checked(v)
        return v @ self.basis.to(v).T

    def vector(self, coordinates: Tensor) -> Tensor:
        """The vector (p,) with these coordinates (k,); row by row for (b, k), (b, p)."""
        remedy = "There is one coordinate for each basis row."
        coordinates = _as_real("coordinates", coordinates, self.dim, remedy)
        return coordinates @ self.basis.to(coordinates)

    def project(self, v: Tensor) -> Tensor:
        """The part of v inside, B^T B v; v (p,) or (b, p), in its dtype and on its device. O(k p)."""
        return self.vector(self.coordinates(v))

    def reject(self, v: Tensor) -> Tensor:
        """The part of v outside, v - B^T B v; v (p,) or (b, p), in its dtype and on its device. O(k p)."""
        outside = v - self.project(v)
        return outside - self.project(outside)  # twice: where little is left, once leaves eps of what was removed

    def overlap(self, other: Tensor | Subspace) -> float:
        r"""How much of `other` lies in this subspace, from 0 (orthogonal) to 1 (contained).

        For a vector v (p,): |B v|^2 / |v|^2, the squared cosine of its angle to the subspace. A random one has k / p.
        For a subspace: the mean squared cosine of the principal angles, |A B^T|_F^2 / min(dim A, dim B): symmetric, and
        1 when the smaller lies in the larger.
        """
        if isinstance(other, Subspace):
            self._check_same_space(other)
            squares = (self.basis.double() @ other.basis.to(self.basis.device).double().T).square().sum()
            return min(1.0, float(squares) / min(self.dim, other.dim))
        v = self._checked(other)
        length = float(v.double().norm())
        if v.ndim != 1 or length == 0.0:
            received = "is the zero vector" if length == 0.0 else f"is {_describe(v)}"
            raise ValueError(
                argument_message("v", received, f"a direction of shape ({self.num_params},)", "Pass one vector.")
            )
        inside = float((self.basis.double() @ (v.to(self.basis.device).double() / length)).square().sum())
        return min(1.0, inside)

    def principal_angles(self, other: Subspace) -> Tensor:
        """The min(dim) principal angles to `other` in radians, ascending, float64; small ones by their sines.

        Source:
            Knyazev & Argentati (2002), "Principal angles between subspaces in an A-based scalar product".
        """
        self._check_same_space(other)
        mine, theirs = (np.asarray(space.basis.cpu().double().numpy()).T for space in (self, other))
        return torch.from_numpy(np.sort(scipy.linalg.subspace_angles(mine, theirs)))

    def union(self, other: Subspace) -> Subspace:
        """The span of both, this basis first; dimensions they share count once."""
        self._check_same_space(other)
        dtype = torch.promote_types(self.basis.dtype, other.basis.dtype)
        coarser = max(torch.finfo(space.basis.dtype).eps for space in (self, other))
        rows = torch.cat([self.basis.to(dtype), other.basis.to(device=self.basis.device, dtype=dtype)])
        return Subspace(Subspace.span(rows, tol=1000 * coarser).basis)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Subspace:
        """The same subspace on another device or in another dtype."""
        return Subspace(self.basis.to(device=device, dtype=dtype), self.num_dropped)

    def _checked(self, v: Tensor) -> Tensor:
        return _as_real("v", v, self.num_params, "Vectors are rows of the weight space of this subspace.")

    def _check_same_space(self, other: Subspace) -> None:
        if not isinstance(other, Subspace) or other.num_params != self.num_params:
            received = f"is {other!r}" if isinstance(other, Subspace) else f"is {_describe(other)}"
            expected = f"a Subspace of {self.num_params} dimensions"
            raise ValueError(argument_message("other", received, expected, "Both must belong to the same model."))


def _as_real(name: str, value: Tensor, size: int, remedy: str) -> Tensor:
    """A floating-point (size,) or (b, size), or an error."""
    has_shape = isinstance(value, Tensor) and value.ndim in (1, 2) and value.shape[-1] == size
    if not has_shape or not value.is_floating_point():
        expected = f"a floating-point tensor of shape ({size},) or (b, {size})"
        raise ValueError(argument_message(name, f"is {_describe(value)}", expected, remedy))
    return value


def _as_rows(rows: Tensor | Sequence[Tensor]) -> Tensor:
    """(n, p) floating-point, n >= 1."""
    remedy = "Pass a tensor (n, p) or a list of tensors (p,)."
    try:
        stacked = rows if isinstance(rows, Tensor) else torch.stack([torch.as_tensor(row) for row in rows])
    except (TypeError, RuntimeError) as error:
        raise ValueError(argument_message("rows", f"are {_describe(rows)}", "vectors of one length", remedy)) from error
    stacked = stacked.detach()[None] if stacked.ndim == 1 else stacked.detach()
    if stacked.ndim != 2 or not stacked.numel() or stacked.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            argument_message("rows", f"are {_describe(stacked)}", "float32 or float64 of shape (n, p)", remedy)
        )
    return stacked


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return a_type(value)
