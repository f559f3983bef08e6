"""Recorded products, cut into the part that depends on the vector and the part that does not.

H v = jvp(grad L)(theta; v). Traced to a graph of tensor operations, the nodes that v does not reach (activations, the
whole backward pass, the derivatives of the activations) are a function of (theta, batch) alone; so it is in any product
that is linear in v. The graph is cut there: `first` (theta, batch) -> kept tensors, run once per micro-batch and theta;
`second` (v, kept) -> H v, run per product. A recording is only right where the operations do not depend on the values
seen, so `verification.py` compares it with another route on every batch. It is made once per shape of batch, where
`torch.func.linearize` would trace every micro-batch anew.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from lowhanging.objective.kernels import ONE_AT_A_TIME

aten = torch.ops.aten

# f(0, ...) = 0 in the first argument, whatever the others are.
_KEEPS_ZERO = {
    aten.alias.default, aten.expand.default, aten.view.default, aten._unsafe_view.default, aten.t.default,
    aten.transpose.int, aten.permute.default, aten.mul.Tensor, aten.mul.Scalar, aten.mm.default, aten.bmm.default,
    aten.clone.default, aten._to_copy.default, aten.unsqueeze.default, aten.detach.default,
}  # fmt: skip
_ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}


class CannotSplitError(RuntimeError):
    """The loss can't be traced into a graph that is safe to cut; another engine must compute the product."""


class SplitGraph:
    """H v of one shape of batch (a pytree of tensors), cut into what v does not reach and what it does.

    Raises:
        CannotSplitError: tracing failed, or an in-place operation writes v-dependent numbers into a kept tensor.
    """

    def __init__(self, product: Callable[[Tensor, Tensor, Any], Tensor], theta: Tensor, batch: Any):
        leaves, spec = tree_flatten(batch)
        is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        constants = [None if flag else leaf for flag, leaf in zip(is_tensor, leaves, strict=True)]

        def on_tensors(theta: Tensor, v: Tensor, *tensors: Tensor) -> Tensor:
            values = iter(tensors)
            filled = [next(values) if flag else item for flag, item in zip(is_tensor, constants, strict=True)]
            return product(theta, v, tree_unflatten(filled, spec))

        graph = _trace(on_tensors, theta, torch.ones_like(theta), *_tensors(leaves))
        self._first, self._second = _cut(graph)

    def prepare(self, theta: Tensor, batch: Any) -> tuple[Tensor, ...]:
        """The kept tensors of one batch at theta (p,)."""
        with torch.no_grad():
            return tuple(self._first(theta.detach(), *_tensors(tree_flatten(batch)[0])))

    def product(self, kept: tuple[Tensor, ...], v: Tensor) -> Tensor:
        """H v (p,), of the batch's *sum*."""
        with torch.no_grad():
            result: Tensor = self._second(v.detach(), *kept)
        return result


def shape_key(batch: Any) -> tuple[Any, ...]:
    """What two batches must share to be served by one recording."""
    leaves, spec = tree_flatten(batch)
    described = tuple(
        (tuple(leaf.shape), leaf.dtype, str(leaf.device)) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    )
    return (str(spec), *described)


def _tensors(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _trace(function: Callable[..., Tensor], *inputs: Tensor) -> fx.GraphModule:
    try:
        # Not a public module, so its absence must only cost speed.
        from torch.fx.experimental.proxy_tensor import make_fx

        # On fake tensors: no kernel runs, so none can be handed the storage-less zero that stands for an absent tangent
        # (torch 2.13 then crashes the process, in mse_loss for one), and a branch on a value raises instead of being
        # recorded.
        with contained():
            traced = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    except Exception as error:  # whatever a model does that a tracer can't follow
        words = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if any(name in words for name in ("FakeTensor", "fake", "Proxy", "functorch", "INTERNAL ASSERT", "_C._")):
            words = "torch's tracer does not follow it"  # in words about its own insides
        raise CannotSplitError(words) from error
    for node in traced.graph.nodes:
        if node.target is aten._efficientzerotensor.default:
            node.target = aten.zeros.default  # one that may be read and written
    _drop_noops(traced.graph)
    traced.graph.eliminate_dead_code()
    return traced


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """A trace leaves this thread as it was, and says nothing, also where it fails.

    Torch 2.13 leaves the thread's dispatch keys changed when an operation fails on fake tensors under forward
    differentiation (`lerp_` with a tensor weight, and so `quantile`): autograd then records nothing any more.
    """
    keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    is_off = logger.disabled
    outer = sys.exception()
    with ONE_AT_A_TIME, warnings.catch_warnings(), torch._C._ForceDispatchKeyGuard(*keys):
        warnings.simplefilter("ignore")  # torch's, about its own internals; the user's were seen without tracing
        logger.disabled = True
        try:
            yield
        except BaseException as error:
            _release(error, outer)
            raise
        finally:
            logger.disabled = is_off


def _release(error: BaseException | None, outer: BaseException | None) -> None:
    """Free what the frames of an error hold: guards among it put back, when they go, what they found.

    Not those of an error that the caller is handling.
    """
    seen = {id(outer)}
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _drop_noops(graph: fx.Graph) -> None:
    """Remove aliases, and additions of tensors that are zero by construction (tangents of the data)."""
    zero: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        first = node.args[0] if node.args else None
        if node.target is aten.alias.default:
            node.replace_all_uses_with(first)
            continue
        if (
            node.target in _ZEROS
            or (node.target in _KEEPS_ZERO and first in zero)
            or (node.target is aten.convolution.default and first in zero and node.args[2] is None)
        ):
            zero.add(node)
        elif node.target is aten.add.Tensor and not node.kwargs:
            is_overwritten = any(node in _written_arguments(user) for user in node.users)
            for term, other in (node.args, node.args[::-1]):
                if is_overwritten or not (isinstance(term, fx.Node) and isinstance(other, fx.Node)):
                    continue
                if term in zero and _same_kind(other, node):
                    node.replace_all_uses_with(other)
                    break
        elif (
            node.target is operator.getitem
            and isinstance(first, fx.Node)
            and first.target is aten.convolution_backward.default
        ):
            is_weight_gradient = node.args[1] == 1
            if is_weight_gradient and first.args[1] in zero:
                zero.add(node)
        if zero.intersection(_written_arguments(node)):
            zero.clear()  # views of what was written to are zero no more


def _same_kind(a: fx.Node, b: fx.Node) -> bool:
    x, y = a.meta.get("val"), b.meta.get("val")
    return isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and x.dtype == y.dtype


def _written_arguments(node: fx.Node) -> list[fx.Node]:
    """Arguments that the operation of `node` writes to in place."""
    schema = getattr(node.target, "_schema", None)
    found: list[Any] = []
    for position, argument in enumerate(schema.arguments if schema is not None and schema.is_mutable else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            found += value if isinstance(value, list | tuple) else [value]
    return [item for item in found if isinstance(item, fx.Node)]


def _cut(traced: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """(theta, *batch) -> kept and (v, *kept) -> H v, of a graph with the inputs (theta, v, *batch)."""
    graph = traced.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    vector = inputs[1]
    reached = {vector}
    for node in graph.nodes:
        if any(argument in reached for argument in node.all_input_nodes):
            reached.add(node)
            for written in _written_arguments(node):
                if written not in reached:
                    raise CannotSplitError(f"{node.target} writes into a tensor that does not depend on the vector")
    _merge_constant_factors(graph, reached)
    graph.eliminate_dead_code()
    output = next(node for node in graph.nodes if node.op == "output")
    if output.args[0] not in reached:  # a linear loss: H = 0, and v never entered
        raise CannotSplitError("the product does not depend on the vector")

    kept: dict[fx.Node, None] = {}  # an ordered set
    for node in graph.nodes:
        if node in reached and node is not vector:
            kept |= {a: None for a in node.all_input_nodes if a not in reached and a.op != "get_attr"}

    copies: dict[fx.Node, fx.Node] = {}
    first = fx.Graph()
    for node in graph.nodes:
        if node not in reached and node.op != "output":
            copies[node] = first.node_copy(node, lambda n: copies[n])
    first.output(tuple(copies[node] for node in kept))
    second, copies = fx.Graph(), {}
    copies[vector] = second.placeholder("v")
    for number, node in enumerate(kept):
        copies[node] = second.placeholder(f"kept_{number}")
    for node in graph.nodes:
        if node.op == "get_attr" or (node in reached and node is not vector):
            copies[node] = second.node_copy(node, lambda n: copies[n])
            if node.target is aten.view.default:  # a block of vectors may lie in memory as one vector does not
                copies[node].target = aten.reshape.default
    first.eliminate_dead_code()
    second.eliminate_dead_code()
    return fx.GraphModule(traced, first), fx.GraphModule(traced, second)


def _merge_constant_factors(graph: fx.Graph, reached: set[fx.Node]) -> None:
    """(x * a) * b -> x * (a * b) where a and b don't depend on v: one pass over the largest tensors instead of two."""
    for node in list(graph.nodes):
        if node not in reached or node.target is not aten.mul.Tensor:
            continue
        inner, b = node.args
        if not (isinstance(b, fx.Node) and b not in reached and isinstance(inner, fx.Node) and inner in reached):
            continue
        if inner.target is not aten.mul.Tensor or len(inner.users) > 1 or not _same_kind(inner, node):
            continue
        x, a = inner.args
        if not (isinstance(a, fx.Node) and a not in reached and _same_kind(a, node) and _same_kind(b, node)):
            continue
        with graph.inserting_before(node):
            product = graph.call_function(aten.mul.Tensor, (a, b))
            product.meta["val"] = node.meta["val"]
        node.args = (x, product)
