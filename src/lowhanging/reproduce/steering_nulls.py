"""What would directions do that nobody steered? The nulls that a steering direction is held against.

Random directions of all of weight space, turned the way a steering direction is, and taken out to two lengths: where
the quadratic of the mixed loss has risen as much as along the steering direction, and where the mixed loss itself has.
The first is as the write-up's argument has it; but random directions are hardly curved, so that it takes them far out,
where the quadratic says little. Only at the second do both have done the mixed loss the same harm.

And random vectors of the span that a steering direction is made from: how near does one of them come to an eigenvector?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from scipy.optimize import brentq
from torch import Tensor

from lowhanging.basin.operators import hessian
from lowhanging.basin.subspace import Subspace
from lowhanging.loss import Loss
from lowhanging.reproduce.shelf import Row

DOUBLINGS = 5  # a ray is first looked at at 1/32 of its greatest length, then at twice that, ...
LENGTH_TOL = 1e-3  # relative
NUM_VECTORS = 1000  # random ones of the span
LEVELS = (0.05, 0.5, 0.95)  # quantiles of what is found among them


def random_units(num: int, size: int, seed: int) -> Tensor:
    """(num, p) random unit vectors."""
    rows = torch.randn(num, size, generator=torch.Generator().manual_seed(seed))
    units: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return units


def curvatures(loss: Loss, rows: Tensor) -> list[float]:
    """Rayleigh quotients of the loss's Hessian, of unit rows (num, p)."""
    H = hessian(loss)
    return [float(row @ (H @ row)) for row in rows]


def turned(loss: Loss, rows: Tensor) -> Tensor:
    """The rows (num, p), each with the sign that a steering direction gets: +1 raises the ablated loss more than -1."""
    center = loss.theta0
    signs = [1.0 if float(loss(center + row)) >= float(loss(center - row)) else -1.0 for row in rows.to(center)]
    return rows * torch.tensor(signs).unsqueeze(1)


def equal_quadratics(
    losses: Mapping[str, Loss], rows: Tensor, quotients: Sequence[float], curvature: float, step: float
) -> list[Row]:
    """Losses where random rows raise the quadratic of the mixed loss as much as `step` along a steering direction does.

    A row of negative curvature has no such place and is left out.
    """
    found: list[Row] = []
    for row, own in zip(rows, quotients, strict=True):
        if own > 0 and curvature > 0:
            length = step * math.sqrt(curvature / own)
            point = losses["mixed"].theta0 + length * row
            found.append({"step": length, "losses": {name: float(loss(point)) for name, loss in losses.items()}})
    return found


def equal_rises(losses: Mapping[str, Loss], rows: Tensor, wanted: float, longest: float) -> Row:
    """Losses where the mixed loss along random rows first reaches `wanted`, its value on a steering direction.

    A row along which it stays below that up to the length `longest` is left out, and counted.
    """
    center, mixed = losses["mixed"].theta0, losses["mixed"]
    start, num_passes = float(mixed(center)), 1
    points: list[Row] = []
    for row in rows.to(center):
        known = {0.0: start}

        def along(length: float, row: Tensor = row, known: dict[float, float] = known) -> float:
            if length not in known:
                known[length] = float(mixed(center + length * row))
            return known[length]

        length = first_length(along, wanted, longest)
        if length is not None:
            point = center + length * row
            others = {name: float(loss(point)) for name, loss in losses.items() if name != "mixed"}
            points.append({"step": length, "losses": {"mixed": along(length), **others}})
            num_passes += len(others)
        num_passes += len(known) - 1
    return {"points": points, "num_left_out": len(rows) - len(points), "longest": longest, "num_passes": num_passes}


def first_length(along: Callable[[float], float], wanted: float, longest: float) -> float | None:
    """The length at which a loss along a ray reaches `wanted`; 0 if it starts there, None if it ends lower.

    The first one on a grid of doublings, then narrowed down by Brent's method, which keeps it between a length below
    and one above: deterministic, within `LENGTH_TOL` of the length.
    """

    def missing(length: float) -> float:
        return along(length) - wanted

    low = 0.0
    if missing(low) >= 0:
        return low
    for high in (longest / 2**i for i in range(DOUBLINGS, -1, -1)):
        if missing(high) >= 0:
            return float(brentq(missing, low, high, xtol=LENGTH_TOL * high / 2, rtol=LENGTH_TOL / 2))
        low = high
    return None


def of_span(rows: Sequence[Tensor], eigenvectors: Tensor, direction: Tensor, seed: int) -> Row:
    """How near random vectors of the span of the rows (each (n, p)) come to one of the eigenvectors (k, p).

    Quantiles at `LEVELS` of the largest squared overlap, of the participation ratio and of the share within all k; and
    how many of the vectors have a largest overlap, and a participation ratio, at least as extreme as the direction's.
    """
    space, q = Subspace.span(torch.cat(list(rows))), eigenvectors.double()
    generator = torch.Generator().manual_seed(seed)
    coordinates = torch.randn(NUM_VECTORS, space.dim, generator=generator, dtype=torch.float64)
    vectors = coordinates / coordinates.norm(dim=1, keepdim=True) @ space.basis.double()  # (n, p)
    squares, own = (vectors @ q.T).square(), (q @ direction.double()).square()  # (n, k), (k,)
    ratios = participation(squares)
    return {
        "dim": space.dim,
        "num": NUM_VECTORS,
        "largest": _quantiles(squares.amax(1)),
        "participation": _quantiles(ratios),
        "within": _quantiles(squares.sum(1)),
        "own_within": float(own.sum()),
        "num_as_large": int((squares.amax(1) >= own.max()).sum()),
        "num_as_concentrated": int((ratios <= participation(own)).sum()),
    }


def participation(squares: Tensor) -> Tensor:
    """Over how many of k eigenvectors squared overlaps (..., k) are spread."""
    ratios: Tensor = squares.sum(-1).square() / squares.square().sum(-1)
    return ratios


def _quantiles(values: Tensor) -> list[float]:
    found: list[float] = values.quantile(torch.tensor(LEVELS, dtype=values.dtype)).tolist()
    return found
