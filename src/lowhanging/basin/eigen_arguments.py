"""What may be asked of an eigensolver, and what is it asked in the end?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowhanging.basin.counted_map import CountedMap
from lowhanging.basin.eigensearch import least_rows
from lowhanging.basin.symmetric_operator import SymmetricOperator
from lowhanging.errors import a_type, check_count, check_finite, check_real, explain


def product_limit(operator: CountedMap, k: int, given: int | None, memory: float) -> int:
    """`max_products`: what was given if it can yield k checked pairs, else what the problem can need."""
    if given is not None:
        remedy = "k pairs need k steps and two fresh products at least; leave it out for a safe limit."
        return check_count("max_products", given, minimum=k + min(k, 2), remedy=remedy)
    # After p steps the space is full. Outliers take about 2 k steps; an eigenvalue whose relative gap to the rest of
    # the spectrum is g takes log(1 / tol) / (2 sqrt(g)): 1,000 steps reach down to gaps of 1e-5. Restarts take more.
    wanted = 20 * k + 1000
    is_restarted = memory < min(operator.size, wanted) * operator.size * operator.dtype.itemsize
    return (5 * wanted if is_restarted else min(operator.size, wanted)) + k + 2


def check_memory(operator: CountedMap, k: int, memory: float, num_known: int) -> None:
    """Refuse a budget in which a restarted search of k pairs can't move."""
    remedy = "Memory is in bytes: 4 * 2**30 is 4 GiB. Ask for fewer pairs, or for more memory."
    check_real("memory", memory, minimum=0.0, exclusive=True, remedy=remedy)
    needed = min(least_rows(k, num_known), operator.size) * operator.size * operator.dtype.itemsize
    if memory < needed:
        expected = f"at least {needed:,} bytes for {k} pairs of {operator.size:,} entries"
        raise ValueError(explain("memory", f"is {memory:,.0f} bytes", expected, remedy))


def known_rows(warm_start: Any, operator: CountedMap) -> Tensor:
    """The vectors to start from, (j, p) with 1 <= j <= p, on the map's device and in its dtype, or an error."""
    rows = getattr(warm_start, "vectors", getattr(warm_start, "basis", warm_start))
    expected = f"Eigenpairs, a Subspace or rows of shape (j, {operator.size})"
    remedy = "Pass the pairs of the last checkpoint of the same parameters."
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        raise TypeError(explain("warm_start", f"is {a_type(warm_start)}", expected, remedy))
    if rows.ndim != 2 or rows.shape[1] != operator.size or not 1 <= len(rows) <= operator.size:
        raise ValueError(explain("warm_start", f"has vectors of shape {tuple(rows.shape)}", expected, remedy))
    check_finite("warm_start", rows.detach(), remedy=remedy)
    return rows.detach().to(device=operator.device, dtype=operator.dtype)


def in_double(H: Any) -> Any:
    """The same map in float64, where it is known how; else the map as it is."""
    if isinstance(H, SymmetricOperator) or (isinstance(H, Tensor) and H.dtype == torch.float32):
        return H.double()
    return H
