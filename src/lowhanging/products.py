"""How are a loss, its gradient and its second-order products summed over batches?

This file knows a function (theta, batch) -> (sum, count), a list of batches, and what one batch's matrix times a vector
is (`batch_matrices.py`: its Hessian, or its Gauss-Newton matrix); no model and no loader. Every total is accumulated in
float64 and divided by the count once, so any partition of the examples gives the same mean.

Three engines compute the same product; the fastest that is right on *these* batches runs:

* "split graph": the part that does not depend on the vector is computed once (`split_graph.py`);
* "kept graph": the graph of the gradient is kept, one backward pass per product;
* "double backward": gradient and backward pass anew for every product, or for every block of them; keeps nothing.

A recording can be silently wrong where a model branches on its data, so before the split graph is used, its product
with a random vector is compared with a double backward on every batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor

from lowhanging.batch_matrices import BatchMatrix, HessianOfBatch, LossSum, pulled
from lowhanging.blocks import LOOP, Way, quicker_way
from lowhanging.engines import GraphEngine, ProductEngine, SplitEngine
from lowhanging.errors import explain
from lowhanging.ranks import Ranks, Sums, over_ranks
from lowhanging.split_graph import CannotSplitError

Engine = Literal["auto", "split graph", "kept graph", "double backward"]
ENGINES = ("auto", "split graph", "kept graph", "double backward")
DEFAULT_KEEP_BYTES = 2 * 2**30

# Two right routes differ by rounding only; a recording of the wrong branch differs by percents.
_SELF_TEST_RTOL = {torch.float64: 1e-9, torch.float32: 1e-3}
_MAX_RECORDINGS = 16  # shapes of batches: each recording costs as much as many products


class Products:
    """Mean loss over batches, its gradient and the products of a matrix of it, as functions of theta (p,).

    Args:
        loss_sum: (theta, batch) -> (scalar sum of the loss over the batch, number of loss terms in it).
        batches: re-iterable; every pass yields the same batches in the same order.
        engine: "auto" takes the first of the three that is right here.
        keep_bytes: budget for what is kept between products at one theta; batches beyond it are recomputed.
        context: a context manager factory around every evaluation (switches off kernels that can't be differentiated).
        matrix: which one; by default the Hessian.
        ranks: the processes that hold the other batches; every method is then called by all of them alike.
    """

    def __init__(
        self,
        loss_sum: LossSum,
        batches: Iterable[Any],
        *,
        engine: Engine = "auto",
        keep_bytes: int = DEFAULT_KEEP_BYTES,
        context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        matrix: BatchMatrix | None = None,
        ranks: Ranks | None = None,
    ):
        self._loss_sum = loss_sum
        self._batches = batches
        self._wanted = engine
        self._keep_bytes = keep_bytes
        self._context = context
        self._matrix = HessianOfBatch(loss_sum) if matrix is None else matrix
        self._ranks = ranks
        self._engine: ProductEngine | None = None
        self._ways: dict[str, Way] = {}  # how blocks of vectors are multiplied, by what was asked for
        self._theta: Tensor | None = None  # where the last product was taken, and so what `_kept` belongs to
        self._kept: dict[int, tuple[Any, int]] = {}
        self._count: float | None = None  # of the data alone, so one pass finds it once
        self.fallback_reason: str | None = None

    @property
    def engine(self) -> str:
        """The engine that runs; "not chosen yet" before the first product."""
        return "not chosen yet" if self._engine is None else self._engine.name

    def value(self, theta: Tensor) -> Tensor:
        """Mean loss, a float64 scalar."""

        def sums() -> Sums:
            total, count = _zero(theta), 0.0
            for batch in self._batches:
                part, terms = self._loss_sum(theta, batch)
                total += part
                count += float(terms)
            return [total, count], []

        with self._context(), torch.no_grad():
            (total, self._count), _ = over_ranks(self._ranks, "a value", sums, theta)
            return cast(Tensor, total / self._count)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss (float64 scalar) and its gradient (p,), in theta's dtype."""

        def sums() -> Sums:
            total, gradient, count = _zero(theta), _zero(theta, theta.numel()), 0.0
            for batch in self._batches:
                point = theta.detach().requires_grad_()
                part, terms = self._loss_sum(point, batch)
                total += part.detach()
                gradient += pulled([part], [point], [torch.ones_like(part)])[0]
                count += float(terms)
            return [total, count], [gradient]

        with self._context(), torch.enable_grad():
            (total, count), (gradient,) = over_ranks(self._ranks, "a gradient", sums, theta)
            return total / count, (gradient / count).to(theta.dtype)

    def product(self, theta: Tensor, v: Tensor, block: str = "auto") -> Tensor:
        """The matrix of the mean loss at theta times v (p,), one product, or times the rows of v (b, p), b products.

        Args:
            theta: where.
            v: one vector, or rows.
            block: how rows are multiplied, "loop" one after the other, "vmap" at once, "auto" what is quicker.
        """
        with self._context():
            if self._engine is None:
                self._engine = self._agreed_engine(theta)  # which leaves what it has prepared here, for this theta
            is_second = self._theta is not None and torch.equal(theta, self._theta)
            if not is_second:
                self.release()
                self._theta = theta.detach().clone()
            rows = v.reshape(-1, theta.numel())
            if len(rows) < 2:
                return self._mean(self._engine, theta, rows, LOOP, keep=is_second).reshape(v.shape)
            if block not in self._ways:
                self._ways[block] = self._agreed_way(self._engine, theta, rows, block)
            return self._mean(self._engine, theta, rows, self._ways[block], keep=True)

    def block(self, wanted: str = "auto") -> str:
        """How blocks of vectors are multiplied, "loop" or "vmap"; "not chosen yet" before the first."""
        return self._ways[wanted].name if wanted in self._ways else "not chosen yet"

    def release(self) -> None:
        """Forget what is kept between products."""
        self._kept, self._theta = {}, None

    def _mean(self, engine: ProductEngine, theta: Tensor, rows: Tensor, way: Way, *, keep: bool) -> Tensor:
        """The products of rows (b, p), summed over the batches and divided by the count once."""
        if self._count is None:
            self.value(theta)

        def sums() -> Sums:
            return [], [self._sum(engine, theta, rows, way, keep=keep)]

        question = f"a product of the {type(self._matrix).__name__.removesuffix('OfBatch')}"
        _, (total,) = over_ranks(self._ranks, question, sums, theta, rows)
        return (total / cast(float, self._count)).to(theta.dtype)

    def _sum(self, engine: ProductEngine, theta: Tensor, rows: Tensor, way: Way, *, keep: bool) -> Tensor:
        """The products of rows (b, p), summed over the batches that are here."""
        total = _zero(theta, *rows.shape)
        used = sum(size for _, size in self._kept.values())
        is_full = not (keep and engine.keeps)
        for index, batch in enumerate(self._batches):
            if index in self._kept:
                prepared = self._kept[index][0]
            else:
                prepared, size = engine.prepare(theta, batch)
                is_full = is_full or used + size > self._keep_bytes
                if not is_full:
                    self._kept[index] = (prepared, size)
                    used += size
            total += way.products(engine, prepared, rows, again=engine.keeps)
        return total

    def _agreed_engine(self, theta: Tensor) -> ProductEngine:
        """The engine that is right on the batches of every rank."""
        if self._ranks is None:
            return self._choose(theta)
        chosen: list[ProductEngine] = []

        def choose() -> int:
            chosen.append(self._choose(theta))
            return ENGINES.index(chosen[0].name)

        name = ENGINES[self._ranks.highest("an engine", choose, theta)]
        if name == chosen[0].name:
            return chosen[0]
        self.release()
        self.fallback_reason = f"{chosen[0].name} is right here, but not on another rank"
        return GraphEngine(self._matrix, keeps=name == "kept graph")

    def _agreed_way(self, engine: ProductEngine, theta: Tensor, rows: Tensor, block: str) -> Way:
        """How all ranks multiply blocks: at once only where that is quicker, and right, on every one."""
        if self._ranks is None:
            return quicker_way(engine, theta, self._batches, rows, block)
        chosen: list[Way] = []

        def choose() -> int:
            chosen.append(quicker_way(engine, theta, self._batches, rows, block))
            return int(chosen[0].name == "loop")

        return LOOP if self._ranks.highest("a way to multiply blocks", choose, theta, rows) else chosen[0]

    def _choose(self, theta: Tensor) -> ProductEngine:
        if self._wanted in ("auto", "split graph"):
            try:
                return self._tested_split(theta)
            except CannotSplitError as error:
                if self._wanted == "split graph":
                    received = f"is 'split graph', which fails on this loss ({error})"
                    message = explain("engine", received, "an engine that can follow it", 'Use engine="auto".')
                    raise ValueError(message) from error
                self.fallback_reason = str(error)
        if self._wanted == "double backward":
            return GraphEngine(self._matrix, keeps=False)
        # Keeping graphs pays only if what they hold fits; otherwise each product is a double backward in fact and name.
        kept = GraphEngine(self._matrix, keeps=True)
        first = next(iter(self._batches))
        fits = kept.prepare(theta, first)[1] <= self._keep_bytes
        return kept if fits or self._wanted == "kept graph" else GraphEngine(self._matrix, keeps=False)

    def _tested_split(self, theta: Tensor) -> SplitEngine:
        """The split engine, after its product agreed with a double backward on every batch."""
        limit = _MAX_RECORDINGS if self._wanted == "auto" else None
        split, reference = SplitEngine(self._matrix, limit), GraphEngine(self._matrix, keeps=False)
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(theta.numel(), generator=generator, dtype=torch.float64).to(theta)
        rtol, used = _SELF_TEST_RTOL.get(theta.dtype, 1e-3), 0
        kept: dict[int, tuple[Any, int]] = {}
        for index, batch in enumerate(self._batches):
            try:
                prepared, size = split.prepare(theta, batch)
                ours = split.product(prepared, v)
            except CannotSplitError:
                raise
            except (RuntimeError, IndexError) as failure:  # sizes of another batch, written into the recording
                raise CannotSplitError(f"the recording fails on batch {index}: {failure}") from failure
            graph, _ = reference.prepare(theta, batch)
            theirs = reference.product(graph, v)
            # Where H v nearly vanishes, both are rounding of the gradient's size.
            floor = 1e3 * torch.finfo(theta.dtype).eps * self._matrix.magnitude(graph, v)
            error = (ours - theirs).norm()
            if not bool(error <= rtol * theirs.norm() + floor) and bool(torch.isfinite(theirs).all()):
                message = f"the recorded product is off by {float(error / theirs.norm()):.1e} on batch {index}"
                raise CannotSplitError(message + ": the loss branches on its data")
            if used + size <= self._keep_bytes and len(kept) == index:
                kept[index], used = (prepared, size), used + size
        self._kept, self._theta = kept, theta.detach().clone()
        return split


def _zero(theta: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=theta.device)
