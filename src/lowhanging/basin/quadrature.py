r"""What does the spectrum of a symmetric map look like through one vector z? Lanczos as a Gauss quadrature.

A map A and a unit vector z define a measure on the real line: a step of height (v_i^T z)^2 at each eigenvalue. m steps
of Lanczos from z give a tridiagonal T, and T gives the m nodes and weights of the measure's Gauss quadrature:

    z^T f(A) z = sum_j w_j f(theta_j),

exact for every polynomial f of degree up to 2 m - 1. Full reorthogonalization, since without it the nodes at the ends
of the spectrum come back as copies, and steps are lost on them.

A quadrature with one more node, at a chosen place x (Gauss-Radau), says what m steps leave open. By the inequalities of
Chebyshev, Markov and Stieltjes *every* measure that agrees with the m steps has, above x, at least the weight of the
nodes above x and at most that plus the weight at x: bounds that nothing can improve without another product.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from lowhanging.basin.lanczos import ASYMMETRY, Array, SymmetricMap, dots, not_symmetric
from lowhanging.errors import explain

SAME_NODE = 1e-8  # of the largest |node|: closer than this, a node and a chosen place are one


def lanczos_quadrature(
    operator: SymmetricMap, rows: Tensor, num_fixed: int, scale: float, after_step: Callable[[], object]
) -> tuple[Array, Array, Array]:
    """Nodes, weights (sum 1) and couplings, each (m,), of P H P as seen from one vector.

    Args:
        operator: H; m products.
        rows: (num_fixed + steps, p), orthonormal as far as they are filled: first `num_fixed` rows that P projects out,
            then the unit vector; the others are overwritten.
        num_fixed: rows to project out.
        scale: |H| as far as it is known: rounding is relative to it.
        after_step: called after each product.

    Returns:
        m is the number of steps, fewer if an invariant subspace ends them: all couplings are 0 then. A coupling is the
        residual of its Ritz pair, with the sign that makes the Ritz vector's component along z positive.
    """
    steps = len(rows) - num_fixed
    T, remaining, size = np.zeros((steps, steps)), 0.0, 0
    while size < steps:
        known = rows[: num_fixed + size + 1]
        image = operator.product(known[-1])
        first = dots(known, image)
        remainder = image - known.T @ first.to(image)
        second = dots(known, remainder)  # twice, see KrylovSpace
        remainder -= known.T @ second.to(image)
        column = torch.cat([first + second, remainder.double().norm()[None]]).cpu().numpy()
        if not np.isfinite(column).all():
            received = f"has NaN or infinite entries at product {operator.num_products}"
            remedy = "Look for overflow in the loss and its derivatives here; float64 reaches further than float32."
            raise FloatingPointError(explain("H @ v", received, "finite numbers", remedy))
        scale = max(scale, float(np.linalg.norm(column)))
        T[: size + 1, size], remaining = column[num_fixed:-1], float(column[-1])
        size += 1
        after_step()
        if len(known) == operator.size or remaining <= 32 * torch.finfo(rows.dtype).eps * scale:
            remaining = 0.0  # nothing but rounding: the subspace is invariant
            break
        if size < steps:
            T[size, size - 1] = remaining
            rows[num_fixed + size] = remainder / remaining
    T = T[:size, :size]
    share = float(np.linalg.norm(T - T.T)) / (max(float(np.linalg.norm(T)), scale) or 1.0)
    if share > ASYMMETRY[operator.dtype]:
        raise not_symmetric(f"has an antisymmetric part, {share:.1e} of the whole on the {size} vectors tried")
    nodes, vectors = eigh_tridiagonal(T.diagonal(), (T.diagonal(1) + T.diagonal(-1)) / 2)
    weights = vectors[0] ** 2
    return nodes, weights / weights.sum(), remaining * vectors[-1] * np.where(vectors[0] < 0, -1.0, 1.0)


def padded(rules: list[tuple[Array, Array, Array]]) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, weights, couplings of n probes, (n, m) each; short ones end in copies of their last node, of weight 0."""
    longest = max((len(nodes) for nodes, _, _ in rules), default=0)
    columns = tuple(
        torch.tensor(np.array([np.pad(rule[i], (0, longest - len(rule[i])), mode="edge" if i == 0 else "constant")
                               for rule in rules]).reshape(len(rules), longest))
        for i in range(3)
    )  # fmt: skip
    return columns[0], columns[1], columns[2]


def with_node_at(place: float, nodes: Tensor, weights: Tensor, couplings: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights (n, m + 1), nodes ascending, of the quadratures that also have a node at `place`.

    A probe that has a node there already (to `SAME_NODE`) keeps its own, and gets a node of weight 0 beside it.

    Source:
        Golub & Meurant (2010), "Matrices, Moments and Quadrature with Applications", chapter 6, here in the basis of
        the Ritz vectors, where the (m + 1, m + 1) matrix is an arrowhead.
    """
    scale = max(float(nodes.abs().max()), abs(place))
    gaps = nodes - place
    taken = (gaps.abs() <= SAME_NODE * scale) & (weights > 0)
    is_taken = taken.any(1)
    # Where a node is taken, couplings are left out: the eigenvalues of what is left are the nodes as they are.
    couplings = torch.where(is_taken[:, None], 0.0, couplings)
    pull = torch.where(couplings == 0, 0.0, couplings**2 / torch.where(gaps == 0, 1.0, gaps))
    arrow = torch.diag_embed(torch.cat([nodes, place + pull.sum(1, keepdim=True)], dim=1))
    arrow[:, -1, :-1] = arrow[:, :-1, -1] = couplings
    found, vectors = np.linalg.eigh(arrow.numpy())
    start = torch.nn.functional.pad(weights.sqrt(), (0, 1)).numpy()
    squares = (start[:, None, :] @ vectors)[:, 0, :] ** 2
    extended, order = torch.cat([nodes, torch.full((len(nodes), 1), place)], dim=1).sort(dim=1)
    as_they_are = torch.nn.functional.pad(weights, (0, 1)).gather(1, order)
    kept = is_taken[:, None]
    return (
        torch.where(kept, extended, torch.from_numpy(found)),
        torch.where(kept, as_they_are, torch.from_numpy(squares)),
    )


def mass_above(place: float, nodes: Tensor, weights: Tensor, couplings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n,) weight above `place`, and the least and the greatest that any measure with these m steps has there."""
    more_nodes, more_weights = with_node_at(place, nodes, weights, couplings)
    scale = max(float(nodes.abs().max()), abs(place))
    at_place = (more_nodes - place).abs() <= SAME_NODE * scale
    nearest = (more_nodes - place).abs().argmin(1, keepdim=True)
    at_place.scatter_(1, nearest, True)
    is_above = (more_nodes > place) & ~at_place
    least = torch.where(is_above, more_weights, 0.0).sum(1)
    greatest = torch.where(is_above | at_place, more_weights, 0.0).sum(1)
    value = torch.where(nodes > place, weights, 0.0).sum(1)
    return value, torch.minimum(least, value), torch.maximum(greatest, value)


def smooth_density(grid: Tensor, width: float, nodes: Tensor, weights: Tensor) -> Tensor:
    """(n, g) each probe's measure on a grid; a node is a Gaussian of standard deviation `width` and area its weight."""
    rows = [
        torch.exp(-0.5 * ((grid[None, :] - places[:, None]) / width) ** 2).T @ masses
        for places, masses in zip(nodes, weights, strict=True)
    ]
    found = torch.stack(rows) if rows else grid.new_zeros((0, len(grid)))
    return found / (width * math.sqrt(2 * math.pi))
