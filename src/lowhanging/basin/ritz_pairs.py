r"""What are the Ritz pairs of a Krylov space worth: their vectors, their residuals, and their place at the wanted end?

`lanczos.py` grows the space by the relation H Q^T = V^T K; here the pairs are held against products of the map. Where
the products of the basis were kept, a residual is that of an actual product, at no cost; a fresh product of a pair says
besides whether the map is a function, and how noisy it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowhanging.basin.lanczos import Array, KrylovSpace, Ritz, column_norms, outward


def ritz_vectors(space: KrylovSpace, weights: Array) -> Tensor:
    """Q^T weights as (k, p) unit rows in the map's dtype, accumulated in float64; weights (m, k)."""
    mixed = space.rows.new_empty((weights.shape[1], space.operator.size))
    mix = torch.as_tensor(weights.T.copy(), device=space.rows.device)
    for columns in space.slabs():
        mixed[:, columns] = (mix @ space.rows[: space.size, columns].double()).to(mixed.dtype)
    mixed /= torch.linalg.vector_norm(mixed, dim=1, keepdim=True, dtype=torch.float64).to(mixed.dtype)
    return mixed


def residuals_of(space: KrylovSpace, ritz: Ritz, pairs: Sequence[int]) -> Array:
    """|(HQ)^T s - theta Q^T s| of the numbered pairs, in float64; by the relation where products were not kept."""
    weights, values = ritz.weights[:, list(pairs)], ritz.values[list(pairs)]
    if space.products is None:
        images = space.coefficients[: space.size + space.num_open, : space.size] @ weights
        images[: space.size] -= weights * values
        return column_norms(images)
    mix = torch.as_tensor(weights.T.copy(), device=space.rows.device)  # (k, m)
    shift = torch.as_tensor((weights * values).T.copy(), device=space.rows.device)  # (k, m)
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
    expected = space.coefficients[: space.size + space.num_open, : space.size] @ weights  # (m + b, n)
    expected /= _lengths(space, weights)  # `vectors` are unit, and rows are orthonormal to rounding only
    mix = torch.as_tensor(expected.T.copy(), device=space.rows.device)
    values = torch.as_tensor(ritz.values[list(pairs)].copy(), device=space.rows.device)
    squares = torch.zeros((2, len(pairs)), dtype=torch.float64, device=space.rows.device)
    for columns in space.slabs():
        image = images[:, columns].double()
        squares[0] += (image - values[:, None] * vectors[:, columns].double()).square().sum(dim=1)
        squares[1] += (image - mix @ space.rows[: mix.shape[1], columns].double()).square().sum(dim=1)
    residuals, noise = squares.sqrt().cpu().numpy()
    return residuals, noise


def mixtures(ritz: Ritz, k: int) -> Array:
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
    mix = torch.as_tensor(weights.T.copy(), device=space.rows.device)
    end = space.size + space.num_open
    known = mix
    if space.products is None:
        known = torch.as_tensor((space.coefficients[:end, : space.size] @ weights).T.copy(), device=space.rows.device)
    rows = torch.empty((len(mix), space.operator.size), dtype=torch.float64, device=space.rows.device)
    images = torch.empty_like(rows)
    for columns in space.slabs():
        rows[:, columns] = mix @ space.rows[: space.size, columns].double()
        source = space.rows[:end, columns] if space.products is None else space.products[: space.size, columns]
        images[:, columns] = known @ source.double()
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


def _lengths(space: KrylovSpace, weights: Array) -> Array:
    """(k,) norms of Q^T weights, which are 1 to the rounding of the rows."""
    mix = torch.as_tensor(weights.T.copy(), device=space.rows.device)
    squares = torch.zeros(len(mix), dtype=torch.float64, device=space.rows.device)
    for columns in space.slabs():
        squares += (mix @ space.rows[: space.size, columns].double()).square().sum(dim=1)
    return np.asarray(squares.sqrt().cpu().numpy())
