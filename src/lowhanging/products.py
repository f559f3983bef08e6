"""How are a loss, its gradient and its Hessian products summed over batches?

This file knows a function (theta, batch) -> (sum, count) and a list of batches; no model and no loader. Every total is
accumulated in float64 and divided by the count once, so any partition of the examples gives the same mean.

Three engines compute the same product; the fastest that is right on *these* batches runs:

* "split graph": the part that does not depend on the vector is computed once (`split_graph.py`);
* "kept graph": the graph of the gradient is kept, one backward pass per product;
* "double backward": gradient and backward pass anew for every product; keeps nothing.

A recording can be silently wrong where a model branches on its data, so before the split graph is used, its product
with a random vector is compared with a double backward on every batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor

from lowhanging.errors import explain
from lowhanging.split_graph import CannotSplitError, SplitGraph, shape_key

LossSum = Callable[[Tensor, Any], tuple[Tensor, Any]]
Engine = Literal["auto", "split graph", "kept graph", "double backward"]
ENGINES = ("auto", "split graph", "kept graph", "double backward")
DEFAULT_KEEP_BYTES = 2 * 2**30

# Two right routes differ by rounding only; a recording of the wrong branch differs by percents.
_SELF_TEST_RTOL = {torch.float64: 1e-9, torch.float32: 1e-3}
_MAX_RECORDINGS = 16  # shapes of batches: each recording costs as much as many products


class Products:
    """Mean loss over batches, its gradient and its Hessian products, as functions of theta (p,).

    Args:
        loss_sum: (theta, batch) -> (scalar sum of the loss over the batch, number of loss terms in it).
        batches: re-iterable; every pass yields the same batches in the same order.
        engine: "auto" takes the first of the three that is right here.
        keep_bytes: budget for what is kept between products at one theta; batches beyond it are recomputed.
        context: a context manager factory around every evaluation (switches off kernels that can't be differentiated).
    """

    def __init__(
        self,
        loss_sum: LossSum,
        batches: Iterable[Any],
        *,
        engine: Engine = "auto",
        keep_bytes: int = DEFAULT_KEEP_BYTES,
        context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ):
        self._loss_sum = loss_sum
        self._batches = batches
        self._wanted = engine
        self._keep_bytes = keep_bytes
        self._context = context
        self._engine: _SplitEngine | _GraphEngine | None = None
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
        with self._context(), torch.no_grad():
            total, count = _zero(theta), 0.0
            for batch in self._batches:
                part, terms = self._loss_sum(theta, batch)
                total += part
                count += float(terms)
            self._count = count
            return total / count

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss (float64 scalar) and its gradient (p,), in theta's dtype."""
        with self._context(), torch.enable_grad():
            total, gradient, count = _zero(theta), _zero(theta, theta.numel()), 0.0
            for batch in self._batches:
                point = theta.detach().requires_grad_()
                part, terms = self._loss_sum(point, batch)
                total += part.detach()
                gradient += _gradient(part, point)
                count += float(terms)
            return total / count, (gradient / count).to(theta.dtype)

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """Hessian of the mean loss at theta times v, (p,); one product."""
        with self._context():
            if self._engine is None:
                self._engine = self._choose(theta)
            is_second = self._theta is not None and torch.equal(theta, self._theta)
            if not is_second:
                self.release()
                self._theta = theta.detach().clone()
            return self._product(self._engine, theta, v, keep=is_second)

    def release(self) -> None:
        """Forget what is kept between products."""
        self._kept, self._theta = {}, None

    def _product(self, engine: _SplitEngine | _GraphEngine, theta: Tensor, v: Tensor, *, keep: bool) -> Tensor:
        if self._count is None:
            self.value(theta)
        count = cast(float, self._count)
        total = _zero(theta, theta.numel())
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
            total += engine.product(prepared, v)
        return (total / count).to(theta.dtype)

    def _choose(self, theta: Tensor) -> _SplitEngine | _GraphEngine:
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
            return _GraphEngine(self._loss_sum, keeps=False)
        # Keeping graphs pays only if what they hold fits; otherwise each product is a double backward in fact and name.
        kept = _GraphEngine(self._loss_sum, keeps=True)
        first = next(iter(self._batches))
        fits = kept.prepare(theta, first)[1] <= self._keep_bytes
        return kept if fits or self._wanted == "kept graph" else _GraphEngine(self._loss_sum, keeps=False)

    def _tested_split(self, theta: Tensor) -> _SplitEngine:
        """The split engine, after its product agreed with a double backward on every batch."""
        limit = _MAX_RECORDINGS if self._wanted == "auto" else None
        split, reference = _SplitEngine(self._loss_sum, limit), _GraphEngine(self._loss_sum, keeps=False)
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(theta.numel(), generator=generator, dtype=torch.float64).to(theta)
        rtol = _SELF_TEST_RTOL.get(theta.dtype, 1e-3)
        for index, batch in enumerate(self._batches):
            try:
                ours = split.product(split.prepare(theta, batch)[0], v)
            except CannotSplitError:
                raise
            except (RuntimeError, IndexError) as failure:  # sizes of another batch, written into the recording
                raise CannotSplitError(f"the recording fails on batch {index}: {failure}") from failure
            prepared, _ = reference.prepare(theta, batch)
            theirs = reference.product(prepared, v)
            # Where H v nearly vanishes, both are rounding of the gradient's size.
            floor = 1e3 * torch.finfo(theta.dtype).eps * prepared[1].detach().norm() * v.norm()
            error = (ours - theirs).norm()
            if not bool(error <= rtol * theirs.norm() + floor) and bool(torch.isfinite(theirs).all()):
                message = f"the recorded product is off by {float(error / theirs.norm()):.1e} on batch {index}"
                raise CannotSplitError(message + ": the loss branches on its data")
        return split


class _SplitEngine:
    """One recording per shape of batch, at most `limit` of them."""

    name, keeps = "split graph", True

    def __init__(self, loss_sum: LossSum, limit: int | None):
        self._loss_sum, self._limit = loss_sum, limit
        self._graphs: dict[Any, SplitGraph] = {}

    def prepare(self, theta: Tensor, batch: Any) -> tuple[Any, int]:
        key = shape_key(batch)
        if key not in self._graphs:
            if len(self._graphs) == self._limit:
                raise CannotSplitError(f"the batches have more than {self._limit} shapes, each to be recorded")
            # The sum is recorded, never the count: that may depend on the data (padding).
            self._graphs[key] = SplitGraph(lambda point, data: self._loss_sum(point, data)[0], theta, batch)
        graph = self._graphs[key]
        kept = graph.prepare(theta, batch)
        return (graph, kept), sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def product(self, prepared: Any, v: Tensor) -> Tensor:
        graph, kept = prepared
        result: Tensor = graph.product(kept, v)
        return result


class _GraphEngine:
    """The gradient's autograd graph, kept between products or rebuilt for each."""

    def __init__(self, loss_sum: LossSum, *, keeps: bool):
        self._loss_sum = loss_sum
        self.keeps = keeps
        self.name = "kept graph" if keeps else "double backward"

    def prepare(self, theta: Tensor, batch: Any) -> tuple[Any, int]:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> tuple[Tensor, int]:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor, tensor._version

        hooks = torch.autograd.graph.saved_tensors_hooks(note, _unchanged)
        with torch.enable_grad(), _second_derivative(), hooks:
            point = theta.detach().requires_grad_()
            part, _ = self._loss_sum(point, batch)
            gradient = _gradient(part, point, create_graph=True)
        return (point, gradient), sum(sizes.values())

    def product(self, prepared: Any, v: Tensor) -> Tensor:
        point, gradient = prepared
        if not gradient.requires_grad:  # a loss linear in theta
            return torch.zeros_like(point)
        with torch.enable_grad(), _second_derivative():
            (result,) = torch.autograd.grad(gradient, point, v, retain_graph=self.keeps, allow_unused=True)
        return torch.zeros_like(point) if result is None else result


def _unchanged(noted: tuple[Tensor, int]) -> Tensor:
    """A saved tensor, if no in-place operation has changed it since; torch does not check that under its hooks."""
    tensor, version = noted
    if tensor._version != version:
        raise RuntimeError("a tensor needed for the derivative was modified by an inplace operation")
    return tensor


@contextlib.contextmanager
def _second_derivative() -> Iterator[None]:
    """Torch's complaint about an operation that it can't differentiate twice, turned into ours."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("derivative", "differentiate twice", "inplace operation")):
            raise
        received = f"can't be differentiated twice ({(str(error).splitlines() or [''])[0]})"
        remedy = "Write that operation with others, such as exp, log and sums, and none in place."
        raise ValueError(explain("the loss", received, "one with a second derivative", remedy)) from error


def _gradient(part: Tensor, point: Tensor, *, create_graph: bool = False) -> Tensor:
    if not part.requires_grad:  # nothing of theta was used
        return torch.zeros_like(point)
    (gradient,) = torch.autograd.grad(part, point, create_graph=create_graph, allow_unused=True)
    return torch.zeros_like(point) if gradient is None else gradient


def _zero(theta: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=theta.device)
