r"""What is one batch's Hessian, or its Gauss-Newton matrix, times a vector?

    Hessian         H v = d/de grad L(theta + e v)               L the batch's sum
    Gauss-Newton    G v = J' B J v,  J = dz/dtheta, B = d2L/dz2  z the model's outputs

Each is written down by three routes that share nothing: `product`, forward over reverse by torch.func, which
`split_graph.py` can record and cut; `graph` with `from_graph`, in reverse only, whose first part can be kept between
products; and `differences`, central differences of first derivatives. `verification.py` compares them before any is
trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp
from torch.utils._pytree import tree_leaves, tree_map

LossSum = Callable[[Tensor, Any], tuple[Tensor, Any]]


class BatchMatrix(Protocol):
    """A symmetric (p, p) matrix of one batch's sum, by three routes."""

    def run(self, theta: Tensor, batch: Any) -> None:
        """Evaluate what is differentiated, once and for nothing."""

    def product(self, theta: Tensor, v: Tensor, batch: Any) -> Tensor:
        """Times v (p,), forward over reverse."""

    def graph(self, theta: Tensor, batch: Any) -> Any:
        """What does not depend on the vector, as an autograd graph."""

    def from_graph(self, graph: Any, v: Tensor, *, again: bool) -> Tensor:
        """Times v (p,), in reverse; afterwards the graph serves another vector only if `again`."""

    def magnitude(self, graph: Any, v: Tensor) -> Tensor:
        """The size of what cancels where the product nearly vanishes: its rounding is relative to this."""

    def differences(self, theta: Tensor, v: Tensor, batch: Any, step: float) -> tuple[Tensor, float]:
        """Times v (p,), by central differences along `step` v; and the size of what was subtracted, over the step."""


class LossOfOutputs(Protocol):
    """A loss that is a function of outputs: see `OutputLoss`."""

    def outputs(self, theta: Tensor, batch: Any) -> Any: ...
    def loss_at(self, outputs: Any, batch: Any) -> Tensor: ...
    def on_paper(self, outputs: Any, batch: Any, u: Tensor) -> Tensor | None: ...


@dataclass(frozen=True)
class HessianOfBatch:
    """H v, the derivative along v of the gradient of a batch's sum."""

    loss_sum: LossSum  # (theta, batch) -> (sum, count); the count may depend on the data and is never recorded

    def run(self, theta: Tensor, batch: Any) -> None:
        self.loss_sum(theta, batch)

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


@dataclass(frozen=True, eq=False)
class _OutputGraph:
    """The ways from theta to the outputs z and from z to the loss, each as an autograd graph."""

    point: Tensor  # (p,)
    z: list[Tensor]  # the model's outputs, functions of point
    u: list[Tensor]  # zeros, as z; J' u is linear in them
    back: Tensor  # (p,) J' u, a function of u: its derivative along v gives J v
    start: list[Tensor]  # z again, where the way to the loss starts
    slope: list[Tensor]  # dL/dz, a function of start


@dataclass(frozen=True)
class GaussNewtonOfBatch:
    """G v = J' (B (J v)): forward with a tangent, the curvature of the loss in the outputs, and back."""

    loss: LossOfOutputs

    def run(self, theta: Tensor, batch: Any) -> None:
        self.loss.loss_at(self.loss.outputs(theta, batch), batch)

    def product(self, theta: Tensor, v: Tensor, batch: Any) -> Tensor:
        seen: list[Any] = []

        def outputs(point: Tensor) -> list[Tensor]:
            seen[:] = [self.loss.outputs(point, batch)]
            return tensors_in(seen[0])

        def loss_at(z: list[Tensor]) -> Tensor:
            return self.loss.loss_at(with_tensors(seen[0], z), batch)

        # J v is an auxiliary result of the function that is pulled back: one forward pass serves both.
        with_tangent: Any = vjp(lambda point: jvp(outputs, (point,), (v,)), theta, has_aux=True)
        z, pull_back, jv = with_tangent
        on_paper = self.loss.on_paper(with_tensors(seen[0], z), batch, jv[0])
        # B is symmetric, and more losses can be differentiated twice in reverse than forward over reverse.
        bjv = vjp(grad(loss_at), z)[1](jv)[0] if on_paper is None else [on_paper]
        result: Tensor = pull_back(bjv)[0]
        return result

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
        # B by differentiation whatever the loss: what is known on paper is then tested with the recording.
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
