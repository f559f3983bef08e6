"""How is one batch's product computed, and what of it is kept between products?

Two ways, one interface: a recording that is cut where the vector enters (`split_graph.py`), and an autograd graph, kept
or built anew for every vector. Both serve any `BatchMatrix`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lowhanging.batch_matrices import BatchMatrix, HessianOfBatch
from lowhanging.errors import explain
from lowhanging.split_graph import CannotSplitError, SplitGraph, contained, shape_key

_UNKNOWN = 2**62  # bytes of a graph that can't be measured: it is never kept


class SplitEngine:
    """One recording per shape of batch, at most `limit` of them."""

    name, keeps = "split graph", True

    def __init__(self, matrix: BatchMatrix, limit: int | None):
        self._matrix, self._limit = matrix, limit
        self._graphs: dict[Any, SplitGraph] = {}

    def prepare(self, theta: Tensor, batch: Any) -> tuple[Any, int]:
        """What does not depend on the vector, and its size in bytes."""
        if any(not isinstance(leaf, Tensor | int | float | str | None) for leaf in tree_leaves(batch)):
            raise CannotSplitError("the batches hold more than tensors and numbers, which a recording would keep")
        key = shape_key(batch)
        if key not in self._graphs:
            if len(self._graphs) == self._limit:
                raise CannotSplitError(f"the batches have more than {self._limit} shapes, each to be recorded")
            with torch.no_grad():
                self._matrix.run(theta, batch)  # so that what the model caches by the shape of a batch is real
            self._graphs[key] = SplitGraph(self._matrix.product, theta, batch)
        graph = self._graphs[key]
        kept = graph.prepare(theta, batch)
        return (graph, kept), sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def product(self, prepared: Any, v: Tensor, *, again: bool = True) -> Tensor:
        """The batch's product with v (p,)."""
        graph, kept = prepared
        result: Tensor = graph.product(kept, v)
        return result


class GraphEngine:
    """An autograd graph, kept between products or rebuilt for each."""

    def __init__(self, matrix: BatchMatrix, *, keeps: bool):
        self.matrix, self.keeps = matrix, keeps
        self.name = "kept graph" if keeps else "double backward"

    def prepare(self, theta: Tensor, batch: Any) -> tuple[Any, int]:
        """The graph, and the size in bytes of what it holds."""
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
        """The batch's product with v (p,); `again` if what was prepared is to serve another vector."""
        with torch.enable_grad(), _second_derivative():
            return self.matrix.from_graph(prepared, v, again=again)


class ForwardEngine:
    """Forward over reverse anew for every vector: for losses whose second derivatives in reverse are wrong."""

    name, keeps = "forward over reverse", False

    def __init__(self, matrix: BatchMatrix):
        self._matrix = matrix

    def prepare(self, theta: Tensor, batch: Any) -> tuple[Any, int]:
        """Nothing is kept."""
        return (theta, batch), 0

    def product(self, prepared: Any, v: Tensor, *, again: bool = True) -> Tensor:
        """The batch's product with v (p,)."""
        theta, batch = prepared
        with _second_derivative(), contained():
            return forward_product(self._matrix, theta, v, batch)


def forward_product(matrix: BatchMatrix, theta: Tensor, v: Tensor, batch: Any) -> Tensor:
    """One product, forward over reverse, nothing recorded."""
    try:
        return matrix.product(theta, v, batch)
    except RuntimeError as error:
        if "ZeroTensor" not in str(error) or not isinstance(matrix, HessianOfBatch):
            raise
        return matrix.product_with_tangents(theta, v, batch)


ProductEngine = SplitEngine | GraphEngine | ForwardEngine


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
