r"""How does a space grow in which a symmetric map, seen only through products H v, is known exactly? Lanczos.

Everything rests on one relation, kept for orthonormal rows V = [Q; R] (m basis rows, then b open ones):

    H Q^T = V^T K,    K (m + b, m).

The top (m, m) block of K is the projected matrix T = Q H Q^T; the bottom b rows C say how far span(Q) is from
invariant: a Ritz pair (theta, s) of T has the residual |C s|. One step moves an open row into the basis, takes its
product, and opens what remains of it. Plain Lanczos is b = 1; a breakdown (invariant subspace) is b = 0 and opens a
random row; a second chain is a second open row. None of them needs code of its own, and a thick restart will be
V <- [S^T Q; R], K <- [diag(theta); C S].

Why full reorthogonalization, when three terms suffice on paper: without it, converged pairs come back as copies
("ghosts"). A product of a network's Hessian costs far more than four sweeps over the basis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from lowhanging.errors import explain

Array = NDArray[np.float64]

ASYMMETRY = {torch.float32: 1e-3, torch.float64: 1e-7}  # antisymmetric share of a map that is not merely rounded


class SymmetricMap(Protocol):
    """What is asked of a map here; `CountedMap` makes one of anything that has `@`."""

    size: int
    dtype: torch.dtype
    device: torch.device
    num_products: int

    def product(self, vector: Tensor) -> Tensor:
        """H v, (p,) -> (p,)."""


def not_symmetric(received: str) -> ValueError:
    """The error for a map that is no Hessian."""
    remedy = "Is it the derivative of one gradient (no dropout, no data drawn anew)? Elsewhere pass (H + H.T) / 2."
    return ValueError(explain("H", received, "a symmetric map", remedy))


def rank_by(values: Array, which: str) -> Array:
    """What `which` orders by, the wanted end being the largest: LA: value, SA: -value, LM: |value|."""
    return {"LA": values, "SA": -values, "LM": np.abs(values)}[which]


@dataclass(frozen=True)
class Ritz:
    """All m Ritz pairs of a space, the wanted end first."""

    values: Array  # (m,)
    weights: Array  # (m, m), column j gives Ritz vector j = Q^T weights[:, j]
    couplings: Array  # (b, m) = C weights; column norms are the residuals in exact arithmetic
    scale: float  # largest |Ritz value|

    @property
    def estimates(self) -> Array:
        """(m,) residual norms by the relation: what costs nothing, but knows no rounding."""
        return _column_norms(self.couplings)


class KrylovSpace:
    """The relation H Q^T = V^T K and the step that grows it.

    Rows live in one preallocated array on the map's device and in its dtype; K is float64 in NumPy. `memory` (bytes)
    bounds rows and products together; doubling the room holds one old array beside its copy for a moment.
    """

    def __init__(self, operator: SymmetricMap, *, seed: int, memory: float):
        self.operator = operator
        self.memory = memory
        self.max_rows = int(memory // (operator.size * operator.dtype.itemsize))
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same start on every device
        self.size = 0  # m, rows of the basis
        self.num_open = 0  # b, rows after them
        self.rows = torch.empty((0, operator.size), dtype=operator.dtype, device=operator.device)  # V
        self.products: Tensor | None = self.rows.clone()  # H Q, while memory allows
        self.coefficients = np.zeros((0, 0))  # K, with room to spare
        self.largest_image = 0.0  # largest |H q| so far, the scale of rounding
        self.has_chains = False  # whether a step has had several open rows

    @property
    def is_full(self) -> bool:
        """Whether the basis spans the whole space: T then is H in another basis."""
        return self.size == self.operator.size

    @property
    def projected(self) -> Array:
        """T (m, m) as measured, not symmetrised: above the diagonal from products, below it from the construction."""
        return self.coefficients[: self.size, : self.size]

    def has_room(self) -> bool:
        """Make room for the rows of one more step; False when `memory` forbids it."""
        needed = min(self.size + self.num_open + 2, self.operator.size)  # a random row, a remainder
        capacity = len(self.rows)
        if needed <= capacity:
            return True
        wanted = min(max(2 * capacity, 32), self.operator.size)
        if self.products is not None and 2 * needed > self.max_rows:
            self.products = None
        capacity = min(wanted, self.max_rows if self.products is None else self.max_rows // 2)
        if capacity < needed:
            return False
        self.rows = _enlarged(self.rows, capacity)
        if self.products is not None:
            self.products = _enlarged(self.products, capacity)
        spare = capacity - len(self.coefficients)
        self.coefficients = np.pad(self.coefficients, ((0, spare), (0, spare)))
        return True

    def open_random(self) -> None:
        """Open a random unit row orthogonal to all others; nothing happens where they already span everything."""
        end = self.size + self.num_open
        if end == self.operator.size:
            return
        noise = torch.randn(self.operator.size, generator=self.generator, dtype=torch.float64)
        row = (noise / noise.norm()).to(self.rows)
        for _ in range(3):  # close to a full space almost all of it is projected away
            row -= self.rows[:end].T @ (self.rows[:end] @ row)
            row /= row.norm()
        self.rows[end] = row
        self.coefficients[end, : self.size] = 0.0
        self.num_open += 1

    def step(self, direction: Array | None = None) -> None:
        """Move one open direction into the basis and take its product; call `has_room` first.

        `direction` (b,) mixes the open rows; None is the newest of them. Costs one product and four sweeps of the rows.
        """
        if self.num_open == 0:
            self.open_random()
        self._bring_forward(direction)
        new = self.size
        image = self.operator.product(self.rows[new])
        if self.products is not None:
            self.products[new] = image
        self.size, self.num_open = self.size + 1, self.num_open - 1
        rows = self.rows[: self.size + self.num_open]  # (m + b, p)
        first = rows @ image
        remainder = image - rows.T @ first
        # Twice: one pass leaves an error of order eps * |image| / |remainder|, and the remainder becomes small.
        second = rows @ remainder
        remainder -= rows.T @ second
        column = torch.cat([first.double() + second.double(), remainder.double().norm()[None]]).cpu().numpy()
        if not np.isfinite(column).all():  # the step's one wait for the device was the line above
            received = f"has NaN or infinite entries at product {self.operator.num_products}"
            remedy = "Look for overflow in the loss and its derivatives here; float64 reaches further than float32."
            raise FloatingPointError(explain("H @ v", received, "finite numbers", remedy))
        self.coefficients[: len(rows), new] = column[:-1]
        self.largest_image = max(self.largest_image, float(np.linalg.norm(column)))
        # Below this the remainder is rounding, and a random row in its place (at the next step) knows as much.
        is_breakdown = column[-1] <= 32 * torch.finfo(rows.dtype).eps * self.largest_image
        if len(rows) < self.operator.size and not is_breakdown:
            self.rows[len(rows)] = remainder / float(column[-1])
            self.coefficients[len(rows), :new] = 0.0
            self.coefficients[len(rows), new] = column[-1]
            self.num_open += 1

    def _bring_forward(self, direction: Array | None) -> None:
        """Rotate the open rows so that `direction` comes first; K's open rows turn with them."""
        if self.num_open == 1:
            return
        self.has_chains = True
        mix = np.eye(self.num_open)[-1] if direction is None else direction
        rotation = np.linalg.qr(mix[:, None], mode="complete")[0].T  # (b, b) orthogonal, first row +-mix
        opened = slice(self.size, self.size + self.num_open)
        self.rows[opened] = torch.as_tensor(rotation).to(self.rows) @ self.rows[opened]
        self.coefficients[opened, : self.size] = rotation @ self.coefficients[opened, : self.size]

    def ritz(self, which: str) -> Ritz:
        """Eigenpairs of the symmetrised T, after a look at how symmetric it was."""
        T = self.projected
        share = float(np.linalg.norm(T - T.T)) / (float(np.linalg.norm(T)) or 1.0)
        if share > ASYMMETRY[self.operator.dtype]:
            raise not_symmetric(f"has an antisymmetric part, {share:.1e} of the whole on the {self.size} vectors tried")
        S = (T + T.T) / 2
        # Tridiagonal while there is one chain. LAPACK's solver for that is several times quicker, and runs on one
        # thread: in between torch's threads, those of the dense solver can wait for each other a hundred times longer.
        if self.has_chains:
            values, weights = np.linalg.eigh(S)
        else:
            values, weights = eigh_tridiagonal(S.diagonal(), S.diagonal(1))
        order = np.argsort(-rank_by(values, which), kind="stable")
        couplings = self.coefficients[self.size : self.size + self.num_open, : self.size]
        return Ritz(values[order], weights[:, order], couplings @ weights[:, order], float(np.abs(values).max()))

    def vectors(self, weights: Array) -> Tensor:
        """Q^T weights as (k, p) unit rows in the map's dtype, accumulated in float64; weights (m, k)."""
        mixed = self.rows.new_empty((weights.shape[1], self.operator.size))
        mix = torch.as_tensor(weights.T.copy(), device=self.rows.device)
        for columns in self._slabs():
            mixed[:, columns] = (mix @ self.rows[: self.size, columns].double()).to(mixed.dtype)
        mixed /= torch.linalg.vector_norm(mixed, dim=1, keepdim=True, dtype=torch.float64).to(mixed.dtype)
        return mixed

    def residuals(self, ritz: Ritz, pairs: Sequence[int]) -> Array:
        """|(HQ)^T s - theta Q^T s| of the numbered pairs, in float64; by the relation where products were not kept."""
        weights, values = ritz.weights[:, list(pairs)], ritz.values[list(pairs)]
        if self.products is None:
            images = self.coefficients[: self.size + self.num_open, : self.size] @ weights
            images[: self.size] -= weights * values
            return _column_norms(images)
        mix = torch.as_tensor(weights.T.copy(), device=self.rows.device)  # (k, m)
        shift = torch.as_tensor((weights * values).T.copy(), device=self.rows.device)  # (k, m)
        total = torch.zeros(len(values), dtype=torch.float64, device=self.rows.device)
        for columns in self._slabs():
            products, rows = self.products[: self.size, columns], self.rows[: self.size, columns]
            total += (mix @ products.double() - shift @ rows.double()).square().sum(dim=1)
        return np.asarray(total.sqrt().cpu().numpy())

    def fresh_check(self, ritz: Ritz, pair: int) -> tuple[float, float]:
        """Residual of one pair by a new product, and how far that product lies from V^T K s: the map's noise."""
        vector = self.vectors(ritz.weights[:, [pair]])[0]
        image = self.operator.product(vector).double()
        expected = self.coefficients[: self.size + self.num_open, : self.size] @ ritz.weights[:, pair]
        noise = torch.zeros((), dtype=torch.float64, device=self.rows.device)
        mix = torch.as_tensor(expected, device=self.rows.device)
        for columns in self._slabs():
            noise += (image[columns] - mix @ self.rows[: len(expected), columns].double()).square().sum()
        return float((image - ritz.values[pair] * vector.double()).norm()), float(noise.sqrt())

    def _slabs(self) -> Iterator[slice]:
        """Column ranges whose float64 copy of all rows stays near 64 MB."""
        width = max(1, 2**23 // max(1, self.size + self.num_open))
        return (slice(start, start + width) for start in range(0, self.operator.size, width))


def _enlarged(rows: Tensor, capacity: int) -> Tensor:
    larger = torch.empty((capacity, rows.shape[1]), dtype=rows.dtype, device=rows.device)
    larger[: len(rows)] = rows
    return larger


def _column_norms(matrix: Array) -> Array:
    return np.asarray(np.linalg.norm(matrix, axis=0), dtype=np.float64)
