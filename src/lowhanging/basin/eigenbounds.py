r"""How far is a Ritz value from an eigenvalue, and which vectors can be told from their neighbours?

For a symmetric map and a unit vector v with theta = v' H v and r = |H v - theta v|, an eigenvalue lies within r of
theta; and if no other eigenvalue is nearer to theta than `gap`, within r^2 / gap, which is far less once r is small.
The gap is taken to the other Ritz values, less their own residuals, and so holds as far as the search has missed
nothing: it is what the second chain and the pairs that are followed are for. Products that are off by `noise` move
theta by as much.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from lowhanging.basin.lanczos import Array
from lowhanging.errors import explain


def error_bounds(
    values: Array, residuals: Array, noise: float, others: Array, bars: Array, rounding: float = 0.0
) -> Array:
    """Bounds (k,) on |eigenvalue - value| for the first k of all Ritz values.

    Args:
        values: (k,).
        residuals: (k,) |H v - value v|.
        noise: error of a product.
        others: (m,) all Ritz values, the first k being `values`.
        bars: (m,) their residuals.
        rounding: of one number in the map's dtype, relative.
    """
    scale = float(np.abs(others).max())
    known = np.r_[residuals, bars[len(values) :]]  # (m,)
    distances = np.abs(others[None, :] - values[:, None]) - known[None, :]  # (k, m)
    np.fill_diagonal(distances, np.inf)
    gaps, true = distances.min(axis=1), residuals + noise
    is_alone = gaps > true
    squared = np.where(is_alone, true**2 / np.where(is_alone, gaps, 1.0) + noise, np.inf)
    # Of the basis, whose rows are orthonormal to rounding only, and of the small eigenproblem.
    least = (rounding + len(others) * float(np.finfo(np.float64).eps)) * scale
    return np.asarray(np.minimum(true, squared) + least)


def in_clusters(
    values: Array, residuals: Array, noise: float, others: Array, bars: Array, rounding: float = 0.0
) -> NDArray[np.bool_]:
    """(k,) whether another Ritz value is nearer than the two residuals: the vectors are then one of many bases."""
    known = np.r_[residuals, bars[len(values) :]]
    distances = np.abs(others[None, :] - values[:, None])
    np.fill_diagonal(distances, np.inf)
    least = (rounding + 8 * float(np.finfo(np.float64).eps)) * float(np.abs(others).max())
    return np.asarray((distances <= residuals[:, None] + known[None, :] + 2 * noise + least).any(axis=1))


def explain_floor(tol: float, floor: float, dtype: torch.dtype) -> str:
    """The message for a `tol` that rounding puts out of reach; `floor` = residual + noise over scale."""
    precision = str(dtype).removeprefix("torch.")
    received = f"is {tol:g}, below the {precision} floor of {floor:.1e} measured for this map"
    remedy = "More steps do not help: pass such a tol"
    if dtype == torch.float32:
        remedy += ", or use float64 (objective.double(), or model.double() before the objective is made)"
    return explain("tol", received, f"at least {_rounded_up(1.5 * floor):.0e}", remedy + ".")


def _rounded_up(value: float) -> float:
    """To one digit."""
    unit = 10.0 ** math.floor(math.log10(max(value, 1e-300)))
    return math.ceil(value / unit) * unit
