"""Are products with several vectors quicker one by one, or at once?

At once (`torch.vmap`) keeps a GPU busy and saves the overhead of small operations; one by one fits a processor's cache.
Which is quicker depends on model, data and device, so it is measured at the first block of vectors; and because torch's
batched derivatives are not always those of a single vector (torch 2.13: `torch.func.hessian` of a net with a layer norm
is off by tenths), the two are compared on every micro-batch before the quicker one is trusted.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lowhanging.engines import ProductEngine
from lowhanging.errors import explain

Block = Literal["auto", "loop", "vmap"]
BLOCKS = ("auto", "loop", "vmap")

_MARGIN = 1.5  # so much quicker must vmap be: a tie is decided the same way every time
_AT_ONCE = 16  # vectors on a CPU; elsewhere twice as many
_RTOL = {torch.float64: 1e-9, torch.float32: 1e-3}
_FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, IndexError)


@dataclass(frozen=True)
class Way:
    """How rows are multiplied: one after the other, or `at_once` of them by vmap."""

    name: Literal["loop", "vmap"]
    at_once: int = 1

    def products(self, engine: ProductEngine, prepared: Any, rows: Tensor, *, again: bool = True) -> Tensor:
        """One batch's products with rows (b, p), as rows (b, p); `again` if what was prepared is to serve more."""
        if self.name == "loop":
            last = len(rows) - 1
            parts = [engine.product(prepared, row, again=again or i < last) for i, row in enumerate(rows)]
            return torch.stack(parts) if parts else torch.zeros_like(rows)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")  # the measurement has seen it
            try:
                times: Callable[[Tensor], Tensor] = torch.vmap(
                    lambda row: engine.product(prepared, row, again=True), chunk_size=self.at_once
                )
                return times(rows)
            except torch.OutOfMemoryError:
                if self.at_once == 1:
                    raise
            return replace(self, at_once=self.at_once // 2).products(engine, prepared, rows)


LOOP = Way("loop")


def quicker_way(engine: ProductEngine, theta: Tensor, batches: Iterable[Any], rows: Tensor, wanted: str) -> Way:
    """The quicker way for blocks such as rows (b, p), or the one that is wanted; vmap only where it is right.

    Raises:
        ValueError: vmap is wanted, and fails on this loss.
    """
    if wanted == "loop":
        return LOOP
    vmap = Way("vmap", _AT_ONCE if theta.device.type == "cpu" else 2 * _AT_ONCE)
    rows = rows[: vmap.at_once]
    try:
        if wanted == "auto" and not _is_quicker(vmap, engine, engine.prepare(theta, next(iter(batches)))[0], rows):
            return LOOP
        problem = _difference(vmap, engine, theta, batches, rows)
    except _FAILURES as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
    if problem and wanted == "vmap":
        received = f"is 'vmap', which fails on this loss ({problem})"
        raise ValueError(explain("block", received, "a way that can follow it", 'Use block="auto".'))
    return LOOP if problem else vmap


def _is_quicker(vmap: Way, engine: ProductEngine, prepared: Any, rows: Tensor) -> bool:
    alone, together = (_seconds(way, engine, prepared, rows) for way in (LOOP, vmap))
    return _MARGIN * together < alone


def _seconds(way: Way, engine: ProductEngine, prepared: Any, rows: Tensor) -> float:
    """Of one block, the quicker of two: the first call loads what later ones find."""
    elapsed = []
    for _ in range(2):
        begun = time.perf_counter()
        way.products(engine, prepared, rows).sum().item()  # waits for the device
        elapsed.append(time.perf_counter() - begun)
    return min(elapsed)


def _difference(vmap: Way, engine: ProductEngine, theta: Tensor, batches: Iterable[Any], rows: Tensor) -> str:
    """How vmap differs from the loop on some batch; "" where it does not."""
    rtol = _RTOL.get(theta.dtype, 1e-3)
    for index, batch in enumerate(batches):
        prepared, _ = engine.prepare(theta, batch)
        expected, found = (way.products(engine, prepared, rows) for way in (LOOP, vmap))
        norms = expected.norm(dim=1)
        error = (found - expected).norm(dim=1)
        # A product that nearly vanishes is the rounding of the others' size.
        limit = rtol * norms + 1e3 * torch.finfo(theta.dtype).eps * norms.max()
        if not bool((error <= limit).all()) and bool(expected.isfinite().all()):
            return f"it is off by {float((error / norms).max()):.1e} on batch {index}"
    return ""
