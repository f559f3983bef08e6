"""Lanczos with full reorthogonalization and thick restarts: the growing basis, and its Ritz pairs.

Everything rests on one relation, kept for orthonormal rows V = [Q; R] (m basis rows, then a residual block of b rows):

    H Q^T = V^T K,    K (m + b, m).

The top (m, m) of K is the projected matrix T = Q H Q^T; the bottom b rows C say how far span(Q) is from invariant: a
Ritz pair (theta, s) of T has the residual |C s|. One step moves a row of the residual block into the basis, takes its
product, and adds what remains of that to the block. Plain Lanczos is b = 1; a breakdown (invariant subspace) is b = 0
and adds a random row; a second chain is a second row; a warm start is one row for every vector that is known already.
None of them needs code of its own. Where memory is full, a thick restart (Wu & Simon 2000, "Thick-restart Lanczos
method for large symmetric eigenvalue problems") keeps r Ritz pairs, the columns of S, and the residual block:

    V <- [S^T Q; R],    K <- [diag(theta); C S].

Reorthogonalization is full, although three terms suffice in exact arithmetic: without it, converged pairs come back as
copies ("ghosts"), and a product of a network's Hessian costs far more than two sweeps over the basis. Two are enough,
because what earlier products say of the new one (T is symmetric) is taken off before: they find rounding only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from lowhanging.errors import argument_message

Array = NDArray[np.float64]

ASYMMETRY = {torch.float32: 1e-3, torch.float64: 1e-7}  # antisymmetric share of a map that is not merely rounded
_DOT_COLUMNS = 2**13  # terms of a sum in float32
_NEGLIGIBLE = 1e-3  # of the largest expected coefficient: smaller ones are found by the sweep


class SymmetricMap(Protocol):
    """What is asked of a map here; `CountedMap` makes one of anything that has `@`."""

    size: int
    dtype: torch.dtype
    device: torch.device
    num_products: int
    num_done: int  # products at one point, from which follows how the next is computed

    def product(self, vector: Tensor) -> Tensor:
        """H v, (p,) -> (p,)."""

    def products_of(self, rows: Tensor) -> Tensor:
        """H times each of rows (b, p), as rows; b products."""

    def errors_of(self, rows: Tensor, images: Tensor, enough: float) -> Tensor | None:
        """|images - H rows|, (b,), H in float64; None where it has no such form."""


# ---- the basis ----------------------------------------------------------------------------------------------------


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
        self.num_residual = 0  # b, rows of the residual block, which follow them
        self.rows = torch.empty((0, operator.size), dtype=operator.dtype, device=operator.device)  # V
        self.products: Tensor | None = self.rows.clone()  # H Q, while memory allows
        self.coefficients = np.zeros((0, 0))  # K, with room to spare
        self.largest_image = 0.0  # largest |H q| so far, the scale of rounding
        self.asymmetry = ASYMMETRY[operator.dtype]  # antisymmetric share of T that is put down to rounding
        self.is_tridiagonal = True  # T, until a step has several residual rows, or a restart
        self.num_steps = 0  # of all time
        self.num_restarts = 0

    @property
    def is_full(self) -> bool:
        """Whether the basis spans the whole space: T then is H in another basis."""
        return self.size == self.operator.size

    def has_room(self) -> bool:
        """Make room for the rows of one more step; False when `memory` forbids it."""
        return self._make_room(min(self.size + self.num_residual + 2, self.operator.size))  # a random row, a remainder

    def start_from(self, rows: Tensor) -> None:
        """Make these rows (j, p) the residual block of an empty space, their sum first; nothing if there is no room."""
        exact = torch.linalg.qr(rows.double().T)[0].T  # of dependent rows, the later ones become random directions
        if self._make_room(min(2 * len(exact) + 2, self.operator.size)):
            self.rows[: len(exact)] = exact.to(self.rows)
            self.num_residual = len(exact)
            self._bring_forward(np.ones(len(exact)))

    def add_random(self) -> None:
        """Add a random row to the residual block, unless the rows already span everything."""
        end = self.size + self.num_residual
        if end < self.operator.size:
            self.rows[end] = random_row(self.rows[:end], self.generator)
            self.coefficients[end, : self.size] = 0.0
            self.num_residual += 1

    def step(self, direction: Array | None = None) -> None:
        """Move one direction of the residual block into the basis and take its product; call `has_room` first.

        `direction` (b,) mixes the block's rows; None is the newest of them. Costs one product and two sweeps.
        """
        if self.num_residual == 0:
            self.add_random()
        self._bring_forward(direction)
        self._absorb(self.operator.product(self.rows[self.size]))

    def step_along(self, num: int) -> None:
        """Move the first `num` residual rows into the basis; their products are taken at once."""
        if not self._make_room(min(self.size + self.num_residual + num, self.operator.size)):
            raise MemoryError("no room for what the products add")  # the search has seen to it that there is
        self.is_tridiagonal = False
        for image in self.operator.products_of(self.rows[self.size : self.size + num]):
            self._absorb(image)

    def follow_first(self) -> None:
        """Keep of the residual block only what the product of the one basis row added: a chain from a known start."""
        self._bring_forward(self.coefficients[1 : 1 + self.num_residual, 0])
        self.num_residual, self.is_tridiagonal = 1, True

    def restart(self, ritz: Ritz, kept: Sequence[int]) -> None:
        """Shrink the basis to the numbered Ritz vectors, with their products; the residual block stays."""
        m, r, b = self.size, len(kept), self.num_residual
        mix = self.on_device(ritz.weights[:, list(kept)])  # (r, m)
        for columns in self.slabs():
            residual = self.rows[m : m + b, columns].clone()
            self.rows[:r, columns] = (mix @ self.rows[:m, columns].double()).to(self.rows.dtype)
            self.rows[r : r + b, columns] = residual
            if self.products is not None:
                mixed = mix @ self.products[:m, columns].double()
                self.products[:r, columns] = mixed.to(self.products.dtype)
        K = np.zeros_like(self.coefficients)
        K[:r, :r] = np.diag(ritz.values[list(kept)])
        K[r : r + b, :r] = ritz.coefficients[:, list(kept)]
        self.coefficients, self.size, self.is_tridiagonal = K, r, False
        self.num_restarts += 1

    def ritz(self, which: str) -> Ritz:
        """Eigenpairs of the symmetrised T, after a look at how symmetric it was."""
        T = self.coefficients[: self.size, : self.size]  # as measured: above the diagonal from products
        self.asymmetry = check_symmetric(T, self.operator, self.rows[: self.size], limit=self.asymmetry)
        S = (T + T.T) / 2
        if self.is_tridiagonal:  # several times quicker
            values, weights = eigh_tridiagonal(S.diagonal(), S.diagonal(1))
        else:  # torch's: between its threads, those of NumPy can wait for each other a hundred times longer
            values, weights = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(S)))
        order = wanted_first(values, which)
        coefficients = self.relation[self.size :]
        return Ritz(values[order], weights[:, order], coefficients @ weights[:, order], float(np.abs(values).max()))

    @property
    def relation(self) -> Array:
        """K (m + b, m)."""
        return self.coefficients[: self.size + self.num_residual, : self.size]

    def on_device(self, weights: Array) -> Tensor:
        """The columns of weights (m, n) as rows (n, m), where the basis is."""
        return torch.as_tensor(weights.T.copy(), device=self.rows.device)

    def slabs(self) -> Iterator[slice]:
        """Column ranges whose float64 copy of all rows stays in a cache, or near 64 MB on other devices."""
        size = 2**17 if self.rows.device.type == "cpu" else 2**23
        width = max(1, size // max(1, self.size + self.num_residual))
        return (slice(start, start + width) for start in range(0, self.operator.size, width))

    def state(self) -> dict[str, NDArray[Any]]:
        """All that the next step depends on."""
        arrays = {
            "rows": self.rows[: self.size + self.num_residual].cpu().numpy(),
            "coefficients": self.relation,
            "generator": self.generator.get_state().numpy(),
            "counts": np.array([self.size, self.num_residual, len(self.rows), self.num_steps, self.num_restarts]),
            "is_tridiagonal": np.array(self.is_tridiagonal),
            "largest_image": np.array(self.largest_image),
        }
        return arrays if self.products is None else arrays | {"products": self.products[: self.size].cpu().numpy()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become what the space was when its `state` was taken."""
        self.size, self.num_residual, capacity, self.num_steps, self.num_restarts = map(int, arrays["counts"])
        self.is_tridiagonal, self.largest_image = bool(arrays["is_tridiagonal"]), float(arrays["largest_image"])
        end = self.size + self.num_residual
        self.rows = self.rows.new_empty((capacity, self.operator.size))
        self.rows[:end] = torch.from_numpy(arrays["rows"]).to(self.rows)
        self.products = torch.empty_like(self.rows) if "products" in arrays else None
        if self.products is not None:
            self.products[: self.size] = torch.from_numpy(arrays["products"]).to(self.rows)
        self.coefficients = np.zeros((capacity, capacity))
        self.coefficients[:end, : self.size] = arrays["coefficients"]
        self.generator.set_state(torch.from_numpy(arrays["generator"]))

    def _make_room(self, needed: int) -> bool:
        capacity = len(self.rows)
        if needed <= capacity:
            return True
        # On a CPU rows that were never written take no memory: with many of them there is nothing to copy later.
        least = 256 if self.rows.device.type == "cpu" else 32
        wanted = min(max(2 * capacity, needed, least), self.operator.size)
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

    def _absorb(self, image: Tensor) -> None:
        """Make the first residual row one of the basis, `image` (p,) being its product, and add what remains of it."""
        new = self.size
        self.num_steps += 1
        if self.products is not None:
            self.products[new] = image
        self.size, self.num_residual = self.size + 1, self.num_residual - 1
        rows = self.rows[: self.size + self.num_residual]  # (m + b, p)
        expected = self.coefficients[new, :new]  # by symmetry
        remainder, column = orthogonalized(rows, image, self.operator.num_products, expected)
        self.coefficients[: len(rows), new] = column[:-1]
        self.largest_image = max(self.largest_image, float(np.linalg.norm(column)))
        if len(rows) < self.operator.size and not is_breakdown(column, rows.dtype, self.largest_image):
            self.rows[len(rows)] = remainder / float(column[-1])
            self.coefficients[len(rows), :new] = 0.0
            self.coefficients[len(rows), new] = column[-1]
            self.num_residual += 1

    def _bring_forward(self, direction: Array | None) -> None:
        """Reflect the residual block so that `direction` comes first; the rows of C turn with it."""
        if self.num_residual == 1:
            return
        self.is_tridiagonal = False
        mix = np.eye(self.num_residual)[-1] if direction is None else direction / np.linalg.norm(direction)
        sign = -1.0 if mix[0] > 0 else 1.0  # against cancellation: the first row becomes sign * mix
        mirror = sign * mix  # w = e_1 - sign mix, of length sqrt(2 (1 - sign mix_1)) >= sqrt(2)
        mirror[0] -= 1.0
        mirror /= np.linalg.norm(mirror)
        residual = slice(self.size, self.size + self.num_residual)
        w = torch.as_tensor(mirror, device=self.rows.device).to(self.rows.dtype)
        self.rows[residual] -= 2 * w[:, None] * (w @ self.rows[residual])
        C = self.coefficients[residual, : self.size]
        C -= 2 * mirror[:, None] * (mirror @ C)


def _enlarged(rows: Tensor, capacity: int) -> Tensor:
    larger = rows.new_empty((capacity, rows.shape[1]))
    larger[: len(rows)] = rows
    return larger


def dots(rows: Tensor, x: Tensor) -> Tensor:
    """The products of rows (n, p) with x (p,), float64: sums of a million terms in float32 would lose four digits."""
    width = _DOT_COLUMNS if x.device.type == "cpu" else 64 * _DOT_COLUMNS
    if x.dtype == torch.float64 or x.numel() <= width:
        return (rows @ x).double()
    total = torch.zeros(len(rows), dtype=torch.float64, device=x.device)
    for start in range(0, x.numel(), width):
        total += (rows[:, start : start + width] @ x[start : start + width]).double()
    return total


def random_row(others: Tensor, generator: torch.Generator) -> Tensor:
    """A unit vector (p,), uniform in the complement of orthonormal rows (n, p); the same on any device."""
    noise = torch.randn(others.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    row: Tensor = (noise / noise.norm()).to(others)
    for _ in range(3):  # close to a full space almost all of it is projected away
        row -= others.T @ dots(others, row).to(row)
        row /= row.double().norm()
    return row


def orthogonalized(
    rows: Tensor, image: Tensor, num_products: int, expected: Array | None = None
) -> tuple[Tensor, Array]:
    """What orthonormal rows (n, p) leave of a product (p,); and (n + 1,) the coefficients removed, |what is left|.

    `expected` (m,) are the coefficients of the first m rows, as far as is known, where the image is that of the next
    row: they and its own are taken off before all rows are swept.
    """
    if expected is None:
        removed = dots(rows, image)
        remainder = image - rows.T @ removed.to(image)
    else:
        removed = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        m = len(expected)
        known = np.flatnonzero(np.abs(expected) > _NEGLIGIBLE * np.abs(expected).max(initial=0.0))
        where = torch.from_numpy(known).to(rows.device)
        removed[where] = torch.from_numpy(expected[known]).to(removed)
        removed[m] = dots(rows[m : m + 1], image)[0]
        remainder = image - removed[m].to(image) * rows[m]
        for i in known:
            remainder -= removed[i].to(image) * rows[i]
    # Again: one pass leaves an error of order eps * |image| / |remainder|, and the remainder becomes small. Once more
    # where this pass has found more than rounding.
    for _ in range(2):
        found = dots(rows, remainder)
        remainder -= rows.T @ found.to(image)
        removed += found
        column = torch.cat([removed, torch.stack([remainder.double().norm(), found.norm()])]).cpu().numpy()
        if not np.isfinite(column).all():  # the step's one wait for the device was the line above
            raise not_finite(num_products)
        if expected is None or column[-1] <= 0.1 * column[-2]:
            break
    return remainder, column[:-1]


def is_breakdown(column: Array, dtype: torch.dtype, scale: float) -> bool:
    """Whether what `orthogonalized` left is rounding: a random row in its place knows as much."""
    return bool(column[-1] <= 32 * torch.finfo(dtype).eps * scale)


def not_finite(num_products: int) -> FloatingPointError:
    """The error for a product with NaN or infinite entries."""
    received = f"has NaN or infinite entries at product {num_products}"
    remedy = "Look for overflow in the loss and its derivatives here; float64 reaches further than float32."
    return FloatingPointError(argument_message("H @ v", received, "finite numbers", remedy))


def not_symmetric(received: str, argument: str = "H") -> ValueError:
    """The error for a map that is no Hessian."""
    remedy = "Is it the derivative of one gradient (no dropout, no data drawn anew)? Elsewhere pass (H + H.T) / 2."
    return ValueError(argument_message(argument, received, "a symmetric map", remedy))


def check_symmetric(T: Array, operator: SymmetricMap, rows: Tensor, *, scale: float = 0.0, limit: float = 0.0) -> float:
    """Refuse a map whose products with m rows (m, p) have an antisymmetric part, T (m, m) = Q H Q^T.

    A float32 product of a nearly flat loss may be rounded by percents. So where the part is too large, two products are
    held against float64 ones, and what their errors explain passes.

    Returns:
        the share that is put down to rounding from now on, `limit` at least.
    """
    size = max(float(np.linalg.norm(T)), scale) or 1.0
    share, limit = float(np.linalg.norm(T - T.T)) / size, max(limit, ASYMMETRY[operator.dtype])
    if share > limit and operator.dtype == torch.float32:
        tried = rows[[0, -1]]
        errors = operator.errors_of(tried.double(), operator.products_of(tried).double(), 0.0)
        if errors is not None:  # |T - T'| is at most twice the error of a product, times sqrt(m); and two are few
            limit = max(limit, 4 * float(errors.max()) * len(T) ** 0.5 / size)
    if share > limit:
        raise not_symmetric(f"has an antisymmetric part, {share:.1e} of the whole on the {len(T)} vectors tried")
    return limit


# ---- Ritz pairs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ritz:
    """All m Ritz pairs of a space, the wanted end first."""

    values: Array  # (m,)
    weights: Array  # (m, m), column j gives Ritz vector j = Q^T weights[:, j]
    coefficients: Array  # (b, m) = C weights; column norms are the residuals in exact arithmetic
    scale: float  # largest |Ritz value|

    @property
    def estimates(self) -> Array:
        """(m,) residual norms by the relation: what costs nothing, but knows no rounding."""
        return column_norms(self.coefficients)


def ritz_vectors(space: KrylovSpace, weights: Array) -> Tensor:
    """Q^T weights as (k, p) unit rows in the map's dtype, accumulated in float64; weights (m, k)."""
    mixed = space.rows.new_empty((weights.shape[1], space.operator.size))
    mix = space.on_device(weights)
    for columns in space.slabs():
        mixed[:, columns] = (mix @ space.rows[: space.size, columns].double()).to(mixed.dtype)
    mixed /= torch.linalg.vector_norm(mixed, dim=1, keepdim=True, dtype=torch.float64).to(mixed.dtype)
    return mixed


def residuals_of(space: KrylovSpace, ritz: Ritz, pairs: Sequence[int]) -> Array:
    """|(HQ)^T s - theta Q^T s| of the numbered pairs, in float64; by the relation where products were not kept."""
    weights, values = ritz.weights[:, list(pairs)], ritz.values[list(pairs)]
    if space.products is None:
        images = space.relation @ weights
        images[: space.size] -= weights * values
        return column_norms(images)
    mix, shift = space.on_device(weights), space.on_device(weights * values)  # (k, m)
    total = torch.zeros(len(values), dtype=torch.float64, device=space.rows.device)
    for columns in space.slabs():
        products, rows = space.products[: space.size, columns], space.rows[: space.size, columns]
        total += (mix @ products.double() - shift @ rows.double()).square().sum(dim=1)
    return np.asarray(total.sqrt().cpu().numpy())


def fresh_checks(space: KrylovSpace, ritz: Ritz, pairs: Sequence[int]) -> tuple[Array, Array]:
    """Residuals of pairs by new products, and how far these lie from V^T K s: the map's noise; (len(pairs),)."""
    weights = ritz.weights[:, list(pairs)]
    vectors = ritz_vectors(space, weights)
    images = space.operator.products_of(vectors)
    mix, m = space.on_device(weights), space.size
    lengths = torch.zeros(len(mix), dtype=torch.float64, device=mix.device)
    for columns in space.slabs():
        lengths += (mix @ space.rows[:m, columns].double()).square().sum(dim=1)
    # `vectors` are unit, and rows are orthonormal to rounding only.
    expected = space.on_device(space.relation @ weights / lengths.sqrt().cpu().numpy())  # (n, m + b)
    values = torch.as_tensor(ritz.values[list(pairs)].copy(), device=space.rows.device)
    squares = torch.zeros((2, len(pairs)), dtype=torch.float64, device=space.rows.device)
    for columns in space.slabs():
        image = images[:, columns].double()
        squares[0] += (image - values[:, None] * vectors[:, columns].double()).square().sum(dim=1)
        squares[1] += (image - expected @ space.rows[: expected.shape[1], columns].double()).square().sum(dim=1)
    residuals, noise = squares.sqrt().cpu().numpy()
    return residuals, noise


def random_mixtures(ritz: Ritz, k: int) -> Array:
    """Weights (m, 2) of two unit vectors: one that mixes all Ritz vectors, and one that mixes the k wanted ones.

    Every vector gets a weight of the same size, to a factor of three, so that no direction of the basis is nearly
    absent: a Lanczos vector holds hardly anything of a pair that has converged. Signs and sizes are random (and always
    the same), so that differences do not cancel by their symmetry.
    """
    generator = np.random.default_rng(len(ritz.values))
    mixed = np.zeros((len(ritz.values), 2))
    for column, num in enumerate((len(ritz.values), min(k, len(ritz.values)))):
        parts = generator.choice([-1.0, 1.0], num) * generator.uniform(0.5, 1.5, num)
        mixed[:, column] = ritz.weights[:, :num] @ (parts / np.linalg.norm(parts))
    return mixed


def kept_images(space: KrylovSpace, weights: Array) -> tuple[Tensor, Tensor]:
    """Unit vectors x = Q^T weights and H x as the kept products (or the relation) have it, (n, p) float64 each."""
    mix = space.on_device(weights)
    known = mix if space.products is not None else space.on_device(space.relation @ weights)
    rows = torch.empty((len(mix), space.operator.size), dtype=torch.float64, device=space.rows.device)
    images = torch.empty_like(rows)
    for columns in space.slabs():
        rows[:, columns] = mix @ space.rows[: space.size, columns].double()
        source = space.rows if space.products is None else space.products
        images[:, columns] = known @ source[: known.shape[1], columns].double()
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / lengths, images / lengths


def disagreement(space: KrylovSpace, rows: Tensor, images: Tensor, noise: float) -> float | None:
    """How far new products of unit rows (n, p) lie from these images of them; None where that is another map's doing.

    What is allowed is rounding and the map's noise. Where it is exceeded, both are measured first: the noise by a
    second product, the rounding by one in float64, where the map has such a form.
    """
    operator = space.operator
    vectors = rows.to(space.rows)
    fresh = operator.products_of(vectors).double()
    errors = torch.linalg.vector_norm(fresh - images, dim=1)
    worst = int(errors.argmax())
    largest = float(errors[worst])
    rounding = 100 * torch.finfo(vectors.dtype).eps * space.largest_image
    allowed = rounding + 3 * noise
    if not largest <= allowed:
        again = operator.product(vectors[worst]).double()
        allowed += 3 * float((again - fresh[worst]).norm())
    if not largest <= allowed:
        exact = operator.errors_of(vectors[worst][None].double(), fresh[worst][None], rounding)
        allowed += 0.0 if exact is None else 3 * float(exact[0])
    return largest if largest <= allowed else None


def column_norms(matrix: Array) -> Array:
    """Of (b, m): (m,)."""
    return np.asarray(np.linalg.norm(matrix, axis=0), dtype=np.float64)


# ---- which of them are wanted ------------------------------------------------------------------------------------


def outward(values: Array, which: str) -> Array:
    """How far out each value lies towards the wanted end; for BE, of values that are ordered by `wanted_first`."""
    if which == "BE":
        return values * np.where(np.arange(len(values)) % 2 == 0, 1.0, -1.0)
    return {"LA": values, "SA": -values, "LM": np.abs(values)}[which]


def wanted_first(values: Array, which: str) -> NDArray[np.int64]:
    """The order from the wanted end inwards; for BE, from both in turns: largest, smallest, second largest, ..."""
    if which != "BE":
        return np.argsort(-outward(values, which), kind="stable")
    falling = np.argsort(-values, kind="stable")
    order = np.empty_like(falling)
    num_large = len(order) - len(order) // 2
    order[0::2], order[1::2] = falling[:num_large], falling[num_large:][::-1]
    return order


def by_end(k: int, which: str) -> list[int]:
    """The first k of `wanted_first` as they are reported: BE from the largest inwards, then from the smallest."""
    return [*range(0, k, 2), *range(1, k, 2)] if which == "BE" else list(range(k))


def other_end(values: Array) -> int:
    """Which of the values, the first being wanted first, is the other end of the spectrum: the farthest from it."""
    return int(np.argmax(np.abs(values - values[0])))


def reaching(ritz: Ritz, k: int, which: str, goal: float) -> NDArray[np.bool_]:
    """Which of the pairs after the k have an error bar, twice the residual, that reaches into the k."""
    values, bars = ritz.values[k:], 2 * ritz.estimates[k:]
    if which != "BE":
        return np.asarray(outward(values, which) + bars > outward(ritz.values[[k - 1]], which) + goal)
    above = values + bars > ritz.values[0:k:2][-1] + goal
    return np.asarray(above if k < 2 else above | (values - bars < ritz.values[1:k:2][-1] - goal))
