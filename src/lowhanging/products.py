"""How are a loss, its gradient and its second-order products summed over batches?

This file knows a function (theta, batch) -> (sum, count), a list of batches, and what one batch's matrix times a vector
is (`batch_matrices.py`: its Hessian, or its Gauss-Newton matrix); no model and no loader. Every total is accumulated in
float64 and divided by the count once, so any partition of the examples gives the same mean.

Four engines compute the same product; the fastest that is right on *these* batches runs:

* "split graph": the part that does not depend on the vector is computed once (`split_graph.py`);
* "kept graph": the graph of the gradient is kept, one backward pass per product;
* "double backward": gradient and backward pass anew for every product, or for every block of them; keeps nothing;
* "forward over reverse": anew for every product, where second derivatives in reverse are wrong.

Before one is used, its product with a random vector is compared with one of another kind on every batch
(`verification.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor

from lowhanging.batch_matrices import BatchMatrix, HessianOfBatch, LossSum, vjp_of
from lowhanging.blocks import LOOP, Way, quicker_way
from lowhanging.engines import ForwardEngine, GraphEngine, ProductEngine, SplitEngine
from lowhanging.errors import explain
from lowhanging.ranks import Ranks, Sums, over_ranks
from lowhanging.split_graph import CannotSplitError, shape_key
from lowhanging.verification import Fault, Verification, Widened

Engine = Literal["auto", "split graph", "kept graph", "double backward", "forward over reverse"]
ENGINES = ("auto", "split graph", "kept graph", "double backward", "forward over reverse")
DEFAULT_KEEP_BYTES = 2 * 2**30

_MAX_RECORDINGS = 16  # shapes of batches: each recording costs as much as many products


class Products:
    """Mean loss over batches, its gradient and the products of a matrix of it, as functions of theta (p,).

    Args:
        loss_sum: (theta, batch) -> (scalar sum of the loss over the batch, number of loss terms in it).
        batches: re-iterable; every pass yields the same batches in the same order.
        engine: "auto" takes the first of the four that is right here.
        keep_bytes: budget for what is kept between products at one theta; batches beyond it are recomputed.
        context: a context manager factory around every evaluation (switches off kernels that can't be differentiated).
        matrix: which one; by default the Hessian.
        ranks: the processes that hold the other batches; every method is then called by all of them alike.
        widened: () -> the same matrix in float64, and what makes a batch of it, for central differences.
        check_gradient: raises where the gradient is not the derivative of the value; called before the first is used.
        sample: some examples of a batch, on which products are compared with central differences whatever they agree
            with; None for no such comparison.
        is_smooth: whether no kink was seen in the loss.
        name_of: (p,) -> the name of the parameter in which a vector is largest, for messages.
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
        widened: Widened | None = None,
        check_gradient: Callable[[], None] = lambda: None,
        sample: Callable[[Any], Any] = lambda batch: batch,
        is_smooth: Callable[[], bool] = lambda: True,
        name_of: Callable[[Tensor], str] = lambda vector: "",
    ):
        self._widened, self._check_gradient, self._name_of = widened, check_gradient, name_of
        self._sample, self._is_smooth = sample, is_smooth
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
            self._check_gradient()  # in here: what one rank refuses, all do
            total, gradient, count = _zero(theta), _zero(theta, theta.numel()), 0.0
            for batch in self._batches:
                point = theta.detach().requires_grad_()
                part, terms = self._loss_sum(point, batch)
                if not part.requires_grad and not torch.equal(part, self._loss_sum(point * 1.01 + 1e-3, batch)[0]):
                    received = "gives a batch a value that moves with the weights and has no gradient"
                    remedy = "No torch.no_grad(), no detach(), no .item() in the loss of any batch."
                    raise ValueError(explain("the loss", received, "a differentiable function of them", remedy))
                total += part.detach()
                gradient += vjp_of([part], [point], [torch.ones_like(part)])[0]
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
            return self._choose(theta, self._wanted)
        chosen: list[ProductEngine] = []

        def choose(wanted: str) -> int:
            if not chosen or chosen[-1].name != wanted:
                if chosen:
                    self.release()
                    self.fallback_reason = f"{chosen[-1].name} is right here, but not on another rank"
                chosen.append(self._choose(theta, wanted))
            return ENGINES.index(chosen[-1].name)

        name = ENGINES[self._ranks.highest("an engine", lambda: choose(self._wanted), theta)]
        self._ranks.highest("the same engine", lambda: choose(name), theta)
        return chosen[-1]

    def _agreed_way(self, engine: ProductEngine, theta: Tensor, rows: Tensor, block: str) -> Way:
        """How all ranks multiply blocks: at once only where that is quicker, and right, on every one."""
        if self._ranks is None:
            return quicker_way(engine, theta, self._batches, rows, block)
        chosen: list[Way] = []

        def choose() -> int:
            chosen.append(quicker_way(engine, theta, self._batches, rows, block))
            return int(chosen[0].name == "loop")

        return LOOP if self._ranks.highest("a way to multiply blocks", choose, theta, rows) else chosen[0]

    def _choose(self, theta: Tensor, wanted: str) -> ProductEngine:
        """The wanted engine, or the first of all, whose products are right on every batch here."""
        self._check_gradient()
        is_smooth = self._is_smooth()
        verification = Verification(
            self._matrix, self._batches, theta, widened=self._widened, is_smooth=is_smooth, name_of=self._name_of
        )
        sample = self._sample(next(iter(self._batches))) if is_smooth else None
        fault = None if sample is None else verification.fault_of_both(sample)
        if fault is not None:
            raise verification.refusal([fault])
        faults: list[Fault] = []
        failure, num_failed = None, 0
        for engine in self._candidates(theta, wanted):
            try:
                fault, kept = verification.fault(engine, self._keep_bytes)
            except CannotSplitError as error:
                if wanted == "split graph":
                    received = f"is 'split graph', which fails on this loss ({error})"
                    message = explain("engine", received, "an engine that can follow it", 'Use engine="auto".')
                    raise ValueError(message) from error
                self.fallback_reason = str(error)
                continue
            except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
                if wanted != "auto" or isinstance(error, torch.OutOfMemoryError):
                    raise
                failure, num_failed = failure or error, num_failed + 1
                fault, kept = Fault((str(error).splitlines() or [type(error).__name__])[0]), {}
            if fault is None:
                self._kept, self._theta = kept, theta.detach().clone()
                return engine
            faults.append(fault)
            self.fallback_reason = fault.reason
        if failure is not None and len(faults) == num_failed:  # no product was there to be compared
            raise failure
        raise verification.refusal(faults)

    def _has_few_shapes(self) -> bool:
        """Whether recordings for all shapes of batches are worth making."""
        shapes: set[Any] = set()
        for batch in self._batches:
            shapes.add(shape_key(batch))
            if len(shapes) > _MAX_RECORDINGS:
                self.fallback_reason = f"the batches have more than {_MAX_RECORDINGS} shapes, each to be recorded"
                return False
        return True

    def _candidates(self, theta: Tensor, wanted: str) -> Iterator[ProductEngine]:
        """What may be tried, the fastest first."""
        if wanted == "split graph" or (wanted == "auto" and self._has_few_shapes()):
            yield SplitEngine(self._matrix, _MAX_RECORDINGS if wanted == "auto" else None)
        if wanted == "kept graph":
            yield GraphEngine(self._matrix, keeps=True)
        if wanted == "double backward":
            yield GraphEngine(self._matrix, keeps=False)
        if wanted == "auto":
            # Keeping graphs pays only if what they hold fits; else each product is a double backward in fact and name.
            try:
                size = GraphEngine(self._matrix, keeps=True).prepare(theta, next(iter(self._batches)))[1]
            except (RuntimeError, ValueError, TypeError):  # said by the engine itself, below
                size = 0
            yield GraphEngine(self._matrix, keeps=size <= self._keep_bytes)
        if wanted in ("auto", "forward over reverse"):
            yield ForwardEngine(self._matrix)


def _zero(theta: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=theta.device)
