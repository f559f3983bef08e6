r"""Products of a loss's Hessian, or of its Gauss-Newton matrix, with vectors.

    Hessian         H v = sum_b (d/de grad L_b(theta + e v)) / n     L_b the sum of batch b, n the number of terms
    Gauss-Newton    G v = sum_b (J_b' B_b J_b v) / n                 J_b = dz/dtheta, B_b = d2L_b/dz2, z the outputs

The term of one batch is `HessianOfBatch.product` (or `GaussNewtonOfBatch.product`), the sum over batches `Products`. It
is accumulated in float64 and divided once, so any partition of the examples gives the same mean.

Four engines compute the term of a batch, because none is right and fast for every loss, and none is used before its
product agreed with one of another kind on every batch (`verification.py`):

* "kept graph": the autograd graph of the gradient is kept, one backward pass per product;
* "double backward": the same, where the budget keeps none: gradient and backward pass anew for every product;
* "split graph": the part that does not depend on the vector is recorded and computed once (`split_graph.py`);
* "forward over reverse": anew for every product, where second derivatives in reverse are wrong.

The kept graph serves from the first product. Products are recorded once that pays (`cost.py`), counted at one point: so
the same call gives the same bits, whatever was computed before. Several vectors at once: `blocks.py`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp
from torch.utils._pytree import tree_leaves, tree_map

from lowhanging.errors import argument_message, first_line
from lowhanging.objective.blocks import LOOP, Batching, choose_batching
from lowhanging.objective.cost import NEVER, Counting, products_until_recorded
from lowhanging.objective.distributed import Ranks, Sums, over_ranks
from lowhanging.objective.protocol import Block
from lowhanging.objective.split_graph import CannotSplitError, SplitGraph, contained, shape_key
from lowhanging.objective.verification import (
    BatchMatrix,
    Fault,
    Kept,
    ProductEngine,
    Verification,
    Verified,
    Widened,
)

LossSum = Callable[[Tensor, Any], tuple[Tensor, Any]]


# The matrix of one batch: `BatchMatrix`, by three routes that share nothing


@dataclass(frozen=True)
class HessianOfBatch:
    """H v, the derivative along v of the gradient of a batch's sum."""

    loss_sum: LossSum  # (theta, batch) -> (sum, count); the count may depend on the data and is never recorded

    def product(self, theta: Tensor, v: Tensor, batch: Any) -> Tensor:
        def loss_sum(point: Tensor) -> Tensor:
            return self.loss_sum(point, batch)[0]

        tangent: Tensor = jvp(grad(loss_sum), (theta,), (v,))[1]
        return tangent

    def product_with_tangents(self, theta: Tensor, v: Tensor, batch: Any) -> Tensor:
        """`product`, the data's zero tangents written out: some of torch's formulas do not take absent ones."""
        leaves = [leaf for leaf in tensors_in(batch) if leaf.is_floating_point()]

        def loss_sum(point: Tensor, *values: Tensor) -> Tensor:
            given = iter(values)
            at = tree_map(lambda x: next(given) if isinstance(x, Tensor) and x.is_floating_point() else x, batch)
            return self.loss_sum(point, at)[0]

        tangents = (v, *(torch.zeros_like(leaf) for leaf in leaves))
        tangent: Tensor = jvp(lambda *at: grad(loss_sum)(*at), (theta, *leaves), tangents)[1]
        return tangent

    def run(self, theta: Tensor, batch: Any) -> None:
        self.loss_sum(theta, batch)

    def graph(self, theta: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        point = theta.detach().requires_grad_()
        part, _ = self.loss_sum(point, batch)
        return point, vjp_of([part], [point], [torch.ones_like(part)], create_graph=True)[0]

    def from_graph(self, graph: tuple[Tensor, Tensor], v: Tensor, *, again: bool) -> Tensor:
        point, gradient = graph
        return vjp_of([gradient], [point], [v], retain_graph=again)[0]

    def magnitude(self, graph: tuple[Tensor, Tensor], v: Tensor) -> Tensor:
        size: Tensor = graph[1].detach().norm() * v.norm()
        return size

    def differences(self, theta: Tensor, v: Tensor, batch: Any, step: float) -> tuple[Tensor, float]:
        def gradient(at: Tensor) -> Tensor:
            point = at.detach().requires_grad_()
            part, _ = self.loss_sum(point, batch)
            return vjp_of([part], [point], [torch.ones_like(part)])[0]

        high, low = gradient(theta + step * v), gradient(theta - step * v)
        return (high - low) / (2 * step), float(high.norm() + low.norm()) / (2 * step)


class LossOfOutputs(Protocol):
    """A loss that is a function of outputs: see `OutputLoss`."""

    def outputs(self, theta: Tensor, batch: Any) -> Any: ...
    def loss_at(self, outputs: Any, batch: Any) -> Tensor: ...
    def closed_form(self, outputs: Any, batch: Any, u: Tensor) -> Tensor | None: ...


@dataclass(frozen=True, eq=False)
class _OutputGraph:
    """Autograd graphs from theta to the outputs z, and from z to the loss."""

    point: Tensor  # (p,)
    z: list[Tensor]  # the model's outputs, functions of point
    u: list[Tensor]  # zeros, as z; J' u is linear in them
    back: Tensor  # (p,) J' u, a function of u: its derivative along v gives J v
    start: list[Tensor]  # z again, as leaves
    slope: list[Tensor]  # dL/dz, a function of start


@dataclass(frozen=True)
class GaussNewtonOfBatch:
    """G v = J' (B (J v)): forward with a tangent, the curvature of the loss in the outputs, and back."""

    loss: LossOfOutputs

    def product(self, theta: Tensor, v: Tensor, batch: Any) -> Tensor:
        seen: list[Any] = []

        def outputs(point: Tensor) -> list[Tensor]:
            seen[:] = [self.loss.outputs(point, batch)]
            return tensors_in(seen[0])

        def loss_at(z: list[Tensor]) -> Tensor:
            return self.loss.loss_at(with_tensors(seen[0], z), batch)

        # J v is an auxiliary result of the function whose vjp is taken: one forward pass serves both.
        with_tangent: Any = vjp(lambda point: jvp(outputs, (point,), (v,)), theta, has_aux=True)
        z, transposed, jv = with_tangent
        closed_form = self.loss.closed_form(with_tensors(seen[0], z), batch, jv[0])
        # B is symmetric, and more losses can be differentiated twice in reverse than forward over reverse.
        bjv = vjp(grad(loss_at), z)[1](jv)[0] if closed_form is None else [closed_form]
        result: Tensor = transposed(bjv)[0]
        return result

    def run(self, theta: Tensor, batch: Any) -> None:
        self.loss.loss_at(self.loss.outputs(theta, batch), batch)

    def graph(self, theta: Tensor, batch: Any) -> _OutputGraph:
        point = theta.detach().requires_grad_()
        outputs = self.loss.outputs(point, batch)
        z = tensors_in(outputs)
        u = [torch.zeros_like(part).requires_grad_() for part in z]
        back = vjp_of(z, [point], u, create_graph=True)[0]
        start = [part.detach().requires_grad_() for part in z]
        part = self.loss.loss_at(with_tensors(outputs, start), batch)
        slope = vjp_of([part], start, [torch.ones_like(part)], create_graph=True)
        return _OutputGraph(point, z, u, back, start, slope)

    def from_graph(self, graph: _OutputGraph, v: Tensor, *, again: bool) -> Tensor:
        # B by differentiation whatever the loss: a closed form is then tested with the recording.
        jv = vjp_of([graph.back], graph.u, [v], retain_graph=True)
        bjv = vjp_of(graph.slope, graph.start, jv, retain_graph=again)
        return vjp_of(graph.z, [graph.point], bjv, retain_graph=again)[0]

    def magnitude(self, graph: _OutputGraph, v: Tensor) -> Tensor:
        jv = vjp_of([graph.back], graph.u, [v], retain_graph=True)
        size: Tensor = vjp_of(graph.z, [graph.point], jv, retain_graph=True)[0].norm()
        return size

    def differences(self, theta: Tensor, v: Tensor, batch: Any, step: float) -> tuple[Tensor, float]:
        point = theta.detach().requires_grad_()
        outputs = self.loss.outputs(point, batch)
        z = tensors_in(outputs)
        ends = [tensors_in(self.loss.outputs(at, batch)) for at in (theta + step * v, theta - step * v)]
        jv = [(high - low).detach() / (2 * step) for high, low in zip(*ends, strict=True)]

        def slope(sign: int) -> list[Tensor]:
            start = [(part.detach() + sign * step * u).requires_grad_() for part, u in zip(z, jv, strict=True)]
            part = self.loss.loss_at(with_tensors(outputs, start), batch)
            return vjp_of([part], start, [torch.ones_like(part)])

        bjv = [(a - b) / (2 * step) for a, b in zip(slope(1), slope(-1), strict=True)]
        size = vjp_of(z, [point], [part.detach() for part in z], retain_graph=True)[0].norm()
        return vjp_of(z, [point], bjv)[0], float(size) / step


def vjp_of(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor], **options: bool
) -> list[Tensor]:
    """The gradient of <outputs, weights> by each input; zeros where nothing leads back to it.

    Raises:
        RuntimeError: autograd records nothing in this thread, so that nothing is said by nothing leading back.
    """
    pairs = [(value, weight) for value, weight in zip(outputs, weights, strict=True) if value.requires_grad]
    if not pairs:
        if not all((item * 1).requires_grad for item in inputs):
            raise RuntimeError("autograd is switched off in this thread: nothing that is computed has a gradient")
        return [torch.zeros_like(item) for item in inputs]
    values, weights = zip(*pairs, strict=True)
    found = torch.autograd.grad(values, inputs, weights, allow_unused=True, **options)
    return [torch.zeros_like(item) if part is None else part for item, part in zip(inputs, found, strict=True)]


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors of a model's outputs."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def with_tensors(outputs: Any, tensors: Sequence[Tensor]) -> Any:
    """The same outputs with other tensors."""
    values = iter(tensors)
    return tree_map(lambda leaf: next(values) if isinstance(leaf, Tensor) else leaf, outputs)


# The engines: `ProductEngine`


Engine = Literal["auto", "split graph", "kept graph", "double backward", "forward over reverse"]
ENGINES = ("auto", "split graph", "kept graph", "double backward", "forward over reverse")

_UNKNOWN = 2**62  # bytes of a graph that can't be measured: it is never kept
_MAX_RECORDINGS = 16  # shapes of batches: each recording costs as much as many products


class SplitEngine:
    """One recording per shape of batch."""

    name, keeps, route = "split graph", True, "recorded"

    def __init__(self, matrix: BatchMatrix):
        self._matrix = matrix
        self._graphs: dict[Any, SplitGraph] = {}

    def prepare(self, theta: Tensor, batch: Any) -> tuple[Any, int]:
        if any(not isinstance(leaf, Tensor | int | float | str | None) for leaf in tree_leaves(batch)):
            raise CannotSplitError("the batches hold more than tensors and numbers, which a recording would keep")
        key = shape_key(batch)
        if key not in self._graphs:
            with torch.no_grad():
                self._matrix.run(theta, batch)  # so that what the model caches by the shape of a batch is real
            self._graphs[key] = SplitGraph(self._matrix.product, theta, batch)
        graph = self._graphs[key]
        kept = graph.prepare(theta, batch)
        return (graph, kept), sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def product(self, prepared: Any, v: Tensor, *, again: bool = True) -> Tensor:
        graph, kept = prepared
        result: Tensor = graph.product(kept, v)
        return result


class GraphEngine:
    """An autograd graph, kept between products or rebuilt for each."""

    route = "reverse"

    def __init__(self, matrix: BatchMatrix, *, keeps: bool):
        self.matrix, self.keeps = matrix, keeps
        self.ready: tuple[Tensor, Any, tuple[Any, int]] | None = None  # theta, a batch and what `prepare` made of it
        self.name = "kept graph" if keeps else "double backward"

    def prepare(self, theta: Tensor, batch: Any) -> tuple[Any, int]:
        ready, self.ready = self.ready, None
        if ready is not None and ready[0] is theta and ready[1] is batch:
            return ready[2]
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> tuple[Tensor, int]:
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
            else:  # sparse: at most as large as all of it
                sizes[id(tensor)] = tensor.numel() * tensor.element_size()
            return tensor, tensor._version

        hooks = torch.autograd.graph.saved_tensors_hooks(note, _unchanged)
        with torch.enable_grad(), _second_derivative():
            try:
                with hooks:
                    graph = self.matrix.graph(theta, batch)
            except RuntimeError as error:
                if not any(words in str(error) for words in ("saved tensor hooks", "invalid python storage")):
                    raise
                return self.matrix.graph(theta, batch), _UNKNOWN  # torch.func inside the loss takes no hooks
        return graph, sum(sizes.values())

    def product(self, prepared: Any, v: Tensor, *, again: bool = True) -> Tensor:
        with torch.enable_grad(), _second_derivative():
            return self.matrix.from_graph(prepared, v, again=again)


class ForwardEngine:
    """Forward over reverse anew for every vector: for losses whose second derivatives in reverse are wrong."""

    name, keeps, route = "forward over reverse", False, "forward"

    def __init__(self, matrix: BatchMatrix):
        self._matrix = matrix

    def prepare(self, theta: Tensor, batch: Any) -> tuple[Any, int]:
        return (theta, batch), 0

    def product(self, prepared: Any, v: Tensor, *, again: bool = True) -> Tensor:
        theta, batch = prepared
        with _second_derivative(), contained():
            try:
                return self._matrix.product(theta, v, batch)
            except RuntimeError as error:
                if "ZeroTensor" not in str(error) or not isinstance(self._matrix, HessianOfBatch):
                    raise
                return self._matrix.product_with_tangents(theta, v, batch)


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
        received = f"can't be differentiated twice ({first_line(error)})"
        remedy = "Write that operation with others, such as exp, log and sums, and none in place."
        raise ValueError(argument_message("the loss", received, "one with a second derivative", remedy)) from error


# The sum over batches


DEFAULT_KEEP_BYTES = 2 * 2**30


class Products:
    """Mean loss over batches, its gradient and the products of a matrix of it, as functions of theta (p,).

    Theta and vectors were checked by the caller: they are finite, in one dtype, on one device, and nobody writes to
    them afterwards. Every pass over the batches must yield the same ones. Calls from several threads take turns, in
    `ModelLoss.context`; what is kept is one value that is replaced as a whole, so that a call without it is right, too.
    """

    def __init__(
        self,
        loss_sum: LossSum,  # (theta, batch) -> (scalar sum over the batch, number of loss terms in it)
        batches: Iterable[Any],
        *,
        engine: Engine = "auto",  # the cheapest of the four that is right here
        keep_bytes: int = DEFAULT_KEEP_BYTES,  # for what is kept between products at one theta
        context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,  # of every evaluation
        matrix: BatchMatrix | None = None,  # None: the Hessian
        ranks: Ranks | None = None,  # that hold other batches; every method is then called by all of them alike
        widened: Widened | None = None,  # of the matrix, for central differences
        check_gradient: Callable[[], None] = lambda: None,  # raises where it is not the derivative of the value
        sample: Callable[[Any], Any] = lambda batch: batch,  # examples for central differences, or None
        is_smooth: bool = True,  # whether no kink was seen in the loss
        name_of: Callable[[Tensor], str] = lambda vector: "",  # the parameter in which a vector is largest
    ):
        self._loss_sum, self._batches, self._wanted, self._keep_bytes = loss_sum, batches, engine, keep_bytes
        self._matrix: BatchMatrix = HessianOfBatch(loss_sum) if matrix is None else matrix
        self._context, self._ranks = context, ranks
        self._widened, self._check_gradient, self._name_of = widened, check_gradient, name_of
        self._sample, self._is_smooth = sample, is_smooth
        self._engines: dict[bool, ProductEngine] = {}  # the one before a recording pays, and the one after
        self._recorded_after: int | None = None  # products at one point
        self._engine_name, self._is_cheap = "not chosen yet", False
        self._plain: GraphEngine | None = None  # with the graph in which the work was counted, until it is used
        self._batchings: dict[tuple[str, str], Batching] = {}  # by engine and what was asked for
        self._kept: Kept | None = None  # at the theta of the last product; only ever replaced as a whole
        self._count: float | None = None  # of the data alone, so one pass finds it once
        self._num_batches = 0  # alike
        self.fallback_reason: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept: a copy of a graph, here or in another process, leads back to nothing."""
        return vars(self) | {"_kept": None, "_plain": None}

    @property
    def engine(self) -> str:
        """The engine of the last product; "not chosen yet" before the first."""
        return self._engine_name

    def value(self, theta: Tensor) -> Tensor:
        """Mean loss, a float64 scalar."""

        def sums() -> Sums:
            total, count = _zeros(theta), 0.0
            for index, batch in enumerate(self._batches):
                part, terms = self._loss_sum(theta, batch)
                total += part
                count += float(terms)
                self._num_batches = index + 1
            return [total, count], []

        with self._context(), torch.no_grad():
            (total, self._count), _ = over_ranks(self._ranks, "a value", sums, theta)
            return cast(Tensor, total / self._count)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss (float64 scalar) and its gradient (p,), in theta's dtype."""

        def sums() -> Sums:
            self._check_gradient()  # in here: what one rank refuses, all do
            total, gradient, count = _zeros(theta), _zeros(theta, theta.numel()), 0.0
            for batch in self._batches:
                point = theta.detach().requires_grad_()
                part, terms = self._loss_sum(point, batch)
                if not part.requires_grad and not torch.equal(part, self._loss_sum(point * 1.01 + 1e-3, batch)[0]):
                    received = "gives a batch a value that moves with the weights and has no gradient"
                    remedy = "No torch.no_grad(), no detach(), no .item() in the loss of any batch."
                    raise ValueError(
                        argument_message("the loss", received, "a differentiable function of them", remedy)
                    )
                total += part.detach()
                gradient += vjp_of([part], [point], [torch.ones_like(part)])[0]
                count += float(terms)
            return [total, count], [gradient]

        with self._context(), torch.enable_grad():
            (total, count), (gradient,) = over_ranks(self._ranks, "a gradient", sums, theta)
            return total / count, (gradient / count).to(theta.dtype)

    def product(self, theta: Tensor, v: Tensor, block: str = "auto", num_done: int = 0) -> Tensor:
        """The matrix of the mean loss at theta times v (p,), one product, or times the rows of v (b, p), b products.

        `block` is how rows are multiplied; `num_done` products at this theta came before. None but the first of an
        engine waits for the device or copies a vector, as long as theta is the object that it was at the last one;
        another one has its numbers compared.
        """
        with self._context():
            rows = v.reshape(-1, theta.numel())
            engine, checked = self._engine_for(theta, rows, num_done)
            self._engine_name = engine.name
            kept = self._kept
            is_second = kept is not None and kept.is_of(engine, theta)
            if kept is None or not is_second:
                kept = self._kept = Kept(theta, engine.name)
            batching = self._batching(engine, theta, rows, block) if len(rows) > 1 else LOOP
            keep_bytes = self._keep_bytes if engine.keeps and (is_second or len(rows) > 1) else -1  # -1: nothing
            if self._count is None:
                self.value(theta)

            def sums() -> Sums:
                if checked is not None and len(rows) == 1:  # the product was computed when it was compared
                    return [], [checked[None] if self._ranks is None else checked[None].double()]
                total, self._kept = self._sum(engine, theta, rows, batching, kept, keep_bytes)
                return [], [total]

            question = f"a product of the {type(self._matrix).__name__.removesuffix('OfBatch')}"
            _, (total,) = over_ranks(self._ranks, question, sums, theta, rows)
            return total.div_(cast(float, self._count)).to(theta.dtype).reshape(v.shape)

    def block(self, wanted: str = "auto") -> str:
        """How blocks of vectors are multiplied, "loop" or "vmap"; "not chosen yet" before the first."""
        chosen = [batching.name for (_, name), batching in self._batchings.items() if name == wanted]
        return chosen[-1] if chosen else "not chosen yet"

    def release(self) -> None:
        """Forget what is kept between products."""
        self._kept = None

    def of(self, batches: Iterable[Any]) -> Products:
        """Those of the same loss on other batches, by the engines that were found right."""
        other = copy.copy(self)
        other._batches, other._kept, other._count, other._num_batches = batches, None, None, 0
        other._engines, other._batchings = dict(self._engines), dict(self._batchings)
        other._recorded_after = None if self._recorded_after is None else NEVER
        return other

    def _sum(
        self, engine: ProductEngine, theta: Tensor, rows: Tensor, batching: Batching, kept: Kept, keep_bytes: int
    ) -> tuple[Tensor, Kept]:
        """The products of rows (b, p), summed over the batches that are here; and what is kept now."""
        is_one = self._num_batches == 1 and self._ranks is None
        total = torch.zeros_like(rows) if is_one else _zeros(theta, *rows.shape)
        prepared, num_bytes, is_full = list(kept.prepared), kept.num_bytes, False
        for index, batch in enumerate(self._batches):
            if index < len(kept.prepared):
                this = kept.prepared[index]
            else:
                this, size = engine.prepare(theta, batch)
                is_full = is_full or num_bytes + size > keep_bytes
                if not is_full:
                    prepared.append(this)
                    num_bytes += size
            batching.add(total, engine, this, rows, again=engine.keeps)
        return total, Kept(theta, engine.name, tuple(prepared), num_bytes)

    def _engine_for(self, theta: Tensor, rows: Tensor, num_done: int) -> tuple[ProductEngine, Tensor | None]:
        """The engine of a product after `num_done` others; and its sum over the batches here, where that is known."""
        is_recorded = False
        if self._wanted == "auto":
            if self._recorded_after is None:
                self._recorded_after = self._agreed_wait(theta)
            is_recorded = num_done >= self._recorded_after
        if is_recorded in self._engines:
            return self._engines[is_recorded], None
        v = rows[0] if len(rows) == 1 and _is_dense(rows[0]) else None
        engine, checked = self._agreed_engine(theta, is_recorded, v)
        self._engines[is_recorded] = engine
        if engine.route != "recorded":
            self._engines[False] = engine
        return engine, checked if v is not None else None

    def _agreed_wait(self, theta: Tensor) -> int:
        """The products after which a recording is made, on all ranks."""
        if self._ranks is None:
            return self._wait(theta)
        return self._ranks.highest("when to record", lambda: self._wait(theta), theta)

    def _wait(self, theta: Tensor) -> int:
        shapes, num_batches = set(), 0
        for batch in self._batches:
            shapes.add(shape_key(batch))
            num_batches += 1
            if len(shapes) > _MAX_RECORDINGS:
                self.fallback_reason = f"the batches have more than {_MAX_RECORDINGS} shapes, each to be recorded"
                return NEVER
        try:
            with Counting() as counting:
                plain, batch = GraphEngine(self._matrix, keeps=True), next(iter(self._batches))
                prepared = plain.prepare(theta, batch)
        except _UNUSABLE:  # said by the engine itself, later
            return 0
        plain.ready, size = (theta, batch, prepared), prepared[1]
        self._plain = plain
        self._is_cheap = counting.work.product * num_batches < _CHEAP
        return products_until_recorded(counting.work, num_batches, len(shapes), size, self._keep_bytes)

    def _agreed_engine(self, theta: Tensor, is_recorded: bool, v: Tensor | None) -> tuple[ProductEngine, Tensor | None]:
        """The engine that is right on the batches of every rank, and its sum of products with v, if that is known."""
        is_plain = self._wanted == "auto" and not is_recorded
        wanted = "unrecorded" if is_plain else str(self._wanted)
        if self._ranks is None:
            return self._choose(theta, wanted, v)
        chosen: list[tuple[ProductEngine, Tensor | None]] = []

        def choose(wanted: str) -> int:
            if not chosen or chosen[-1][0].name != wanted:
                if chosen:
                    self.release()
                    self.fallback_reason = f"{chosen[-1][0].name} is right here, but not on another rank"
                chosen.append(self._choose(theta, wanted, v))
            return ENGINES.index(chosen[-1][0].name)

        name = ENGINES[self._ranks.highest("an engine", lambda: choose(wanted), theta)]
        self._ranks.highest("the same engine", lambda: choose(name), theta)
        return chosen[-1]

    def _batching(self, engine: ProductEngine, theta: Tensor, rows: Tensor, block: str) -> Batching:
        """How all ranks multiply blocks: at once only where that is quicker, and right, on every one."""
        key = engine.name, block
        if key not in self._batchings:
            chosen: list[Batching] = []

            def choose() -> int:
                chosen.append(choose_batching(engine, theta, self._batches, rows, block))
                return int(chosen[0].name == "loop")

            is_loop = self._ranks and self._ranks.highest("a way to multiply blocks", choose, theta, rows)
            if self._ranks is None:
                choose()
            self._batchings[key] = LOOP if is_loop else chosen[0]
        return self._batchings[key]

    def _choose(self, theta: Tensor, wanted: str, v: Tensor | None = None) -> tuple[ProductEngine, Tensor | None]:
        """The wanted engine, or the first of all, whose products are right on every batch here; their sum, if new."""
        self._check_gradient()
        verification = Verification(
            self._matrix,
            self._batches,
            theta,
            v=v,
            reverse=lambda matrix: GraphEngine(matrix, keeps=False),
            forward=ForwardEngine(self._matrix),
            widened=self._widened,
            is_smooth=self._is_smooth,
            prefers_differences=self._is_cheap,
            name_of=self._name_of,
        )
        sample = self._sample(next(iter(self._batches))) if self._is_smooth and not self._engines else None
        fault = None if sample is None else verification.fault_of_both(sample)
        if fault is not None:
            raise verification.refusal([fault])
        faults: list[Fault] = []
        failures: list[Exception] = []
        plain = self._engines.get(False)
        for engine in self._candidates(wanted):
            graphs = {}
            if engine is plain:  # found right before, and what came first is not
                return engine, None
            if engine.route == "recorded" and self._kept is not None and self._kept.is_of(plain, theta):
                graphs, self._kept = dict(enumerate(self._kept.prepared)), None  # so that each is freed when used
            try:
                found = verification.verified(engine, self._keep_bytes, graphs)
            except CannotSplitError as error:
                if wanted == "split graph":
                    received = f"is 'split graph', which fails on this loss ({error})"
                    message = argument_message("engine", received, "an engine that can follow it", 'Use engine="auto".')
                    raise ValueError(message) from error
                self.fallback_reason = str(error)
                continue
            except _UNUSABLE as error:
                if wanted not in ("auto", "unrecorded") or isinstance(error, torch.OutOfMemoryError):
                    raise
                failures.append(error)
                found = Fault(first_line(error))
            if isinstance(found, Verified):
                # Keeping graphs pays only if what they hold fits; else each product is a double backward, also in name.
                if wanted in ("auto", "unrecorded") and engine.route == "reverse" and not found.kept.prepared:
                    engine = GraphEngine(self._matrix, keeps=False)
                self._kept = Kept(theta, engine.name, found.kept.prepared, found.kept.num_bytes)
                return engine, found.total
            faults.append(found)
            self.fallback_reason = found.reason
        if failures and len(faults) == len(failures):  # no product was there to be compared
            raise failures[0]
        raise verification.refusal(faults)

    def _candidates(self, wanted: str) -> Iterator[ProductEngine]:
        """What may be tried, in turn; one that was found right before needs no other trial."""
        if wanted in ("auto", "split graph"):
            yield SplitEngine(self._matrix)
        if wanted in ("kept graph", "double backward"):
            yield GraphEngine(self._matrix, keeps=wanted == "kept graph")
        if wanted in ("auto", "unrecorded"):
            plain, self._plain = self._plain or GraphEngine(self._matrix, keeps=True), None
            yield self._engines.get(False) or plain
        if wanted in ("auto", "unrecorded", "forward over reverse"):
            yield ForwardEngine(self._matrix)


_CHEAP = 0.02  # seconds of a product: then central differences take less than loading forward differentiation
_UNUSABLE = (RuntimeError, ValueError, TypeError, AttributeError)  # what an engine may raise where it does not apply


def _is_dense(v: Tensor) -> bool:
    """Whether a wrong product would show in that with v (p,): no part of theta is nearly left out."""
    typical = v.square().mean().sqrt()
    return bool(((v.abs() > 0.05 * typical).float().mean() > 0.8) & (v.abs().max() < 10 * typical))


def _zeros(theta: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=theta.device)


@dataclass
class ProductsAt:
    """The matrix at one theta: a `Curvature`."""

    products: Products
    theta: Tensor  # (p,), nobody else's
    num_done: int = 0  # products so far

    @property
    def engine(self) -> str:
        """How products are computed; "not chosen yet" before the first."""
        return self.products.engine

    def product(self, v: Tensor, block: Block = "auto") -> Tensor:
        """Times v (p,), or times the rows of v (b, p)."""
        image = self.products.product(self.theta, v, block, self.num_done)
        self.num_done += v.numel() // self.theta.numel()
        return image

    def block(self, wanted: Block = "auto") -> str:
        """How blocks of vectors are multiplied, "loop" or "vmap"; "not chosen yet" before the first."""
        return self.products.block(wanted)
