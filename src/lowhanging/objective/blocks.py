"""Several vectors at once: one by one, or by `torch.vmap`, whichever is quicker and right.

Which is quicker depends on model, data and device, and is measured; vmap must agree with the loop on every batch (in
torch 2.13 `torch.func.hessian` of a layer norm is off by tenths).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lowhanging.errors import argument_message, first_line
from lowhanging.objective.verification import RTOL, ProductEngine

_MARGIN = 1.5  # so much quicker must vmap be: a tie is decided the same way every time
_AT_ONCE = 16  # vectors on a CPU; elsewhere twice as many


@dataclass(frozen=True)
class Batching:
    """How rows are multiplied: one after the other, or `at_once` of them by vmap."""

    name: Literal["loop", "vmap"]
    at_once: int = 1

    def add(self, total: Tensor, engine: ProductEngine, prepared: Any, rows: Tensor, *, again: bool = True) -> Tensor:
        """Add one batch's products with rows (b, p) to total (b, p); `again` if what was prepared is to serve more."""
        if self.name == "loop":
            last = len(rows) - 1
            for i, (sum_, row) in enumerate(zip(total, rows, strict=True)):
                sum_ += engine.product(prepared, row, again=again or i < last)
            return total
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")  # the measurement has seen it
            try:
                times: Callable[[Tensor], Tensor] = torch.vmap(
                    lambda row: engine.product(prepared, row, again=True), chunk_size=self.at_once
                )
                total += times(rows)
                return total
            except torch.OutOfMemoryError:
                if self.at_once == 1:
                    raise
            return replace(self, at_once=self.at_once // 2).add(total, engine, prepared, rows)


LOOP = Batching("loop")


def choose_batching(
    engine: ProductEngine, theta: Tensor, batches: Iterable[Any], rows: Tensor, wanted: str
) -> Batching:
    """The quicker one for blocks such as rows (b, p), or the one that is wanted; vmap only where it is right.

    Raises:
        ValueError: vmap is wanted, and fails on this loss.
    """
    if wanted == "loop":
        return LOOP
    vmap = Batching("vmap", _AT_ONCE if theta.device.type == "cpu" else 2 * _AT_ONCE)
    rows = rows[: vmap.at_once]
    try:
        if wanted == "auto":
            prepared = engine.prepare(theta, next(iter(batches)))[0]
            alone, together = (_seconds(batching, engine, prepared, rows) for batching in (LOOP, vmap))
            if not _MARGIN * together < alone:
                return LOOP
        problem = _difference(vmap, engine, theta, batches, rows)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        problem = first_line(error)
    if problem and wanted == "vmap":
        received = f"is 'vmap', which fails on this loss ({problem})"
        raise ValueError(argument_message("block", received, "a way that can follow it", 'Use block="auto".'))
    return LOOP if problem else vmap


def _seconds(batching: Batching, engine: ProductEngine, prepared: Any, rows: Tensor) -> float:
    """Of one block, the quicker of two: the first call loads what later ones find."""
    elapsed = []
    for _ in range(2):
        begun = time.perf_counter()
        batching.add(torch.zeros_like(rows), engine, prepared, rows).sum().item()  # waits for the device
        elapsed.append(time.perf_counter() - begun)
    return min(elapsed)


def _difference(vmap: Batching, engine: ProductEngine, theta: Tensor, batches: Iterable[Any], rows: Tensor) -> str:
    """How vmap differs from the loop on some batch; "" where it does not."""
    rtol = RTOL.get(theta.dtype, 1e-3)
    for index, batch in enumerate(batches):
        prepared, _ = engine.prepare(theta, batch)
        expected, found = (each.add(torch.zeros_like(rows), engine, prepared, rows) for each in (LOOP, vmap))
        norms = expected.norm(dim=1)
        error = (found - expected).norm(dim=1)
        # A product that nearly vanishes is the rounding of the others' size.
        limit = rtol * norms + 1e3 * torch.finfo(theta.dtype).eps * norms.max()
        if not bool((error <= limit).all()) and bool(expected.isfinite().all()):
            return f"it is off by {float((error / norms).max()):.1e} on batch {index}"
    return ""
