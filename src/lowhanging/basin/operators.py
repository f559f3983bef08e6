r"""Which matrix is being studied? Curvature of a loss as a symmetric (p, p) map that is never formed.

The Hessian is the curvature itself. The Gauss-Newton matrix is the part of it that the loss's own curvature makes,

    H = J' B J + sum_c (dL/dz_c) d2z_c/dtheta2,    G = J' B J,

z the model's outputs, J = dz/dtheta, B = d2L/dz2. For softmax cross-entropy and squared errors it has no negative
eigenvalue (for the first it is the Fisher information), and it equals the Hessian where the outputs are linear in the
weights or the loss is flat in the outputs. What the Hessian has below zero, it lacks.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lowhanging.basin.symmetric_operator import SymmetricOperator
from lowhanging.blocks import BLOCKS, Block
from lowhanging.checkpoints import Point
from lowhanging.curvature import Kind
from lowhanging.errors import a_type, check_choice, explain
from lowhanging.loss import Loss, around, check_loss
from lowhanging.objective import Objective
from lowhanging.parameters import Parameters

_STEP = 1e-6  # of central differences in float64: off by 2e-13 of the fourth derivatives, and about 1e-10 by rounding
_MAX_COPY = 2**30  # bytes of a float64 copy of the data that is made only to measure rounding


class LossMatrix(SymmetricOperator):
    """A matrix of second derivatives of a loss at one point, by some or all of its parameters; see its subclasses."""

    kind: Kind

    def __init__(self, loss: Loss, theta: Tensor, *, parameters: tuple[str, ...] | None = None, block: Block = "auto"):
        self.loss, self.theta, self.parameters = loss, theta, parameters
        self._wanted_block = block
        self._inner, self._positions = loss, None
        if parameters is not None:
            self._positions = cast(Objective, loss).space.positions(parameters)
            self._inner = cast(Objective, around(loss, theta)).restricted(parameters)
        self._point = theta if parameters is None else self._inner.theta0
        knows = hasattr(self._inner, "curvature")
        self._curvature = cast(Objective, self._inner).curvature(self.kind) if knows else None
        self.shape = (self._point.numel(), self._point.numel())
        self.dtype, self.device = theta.dtype, theta.device

    def __repr__(self) -> str:
        part = "" if self.parameters is None else f"{', '.join(self.parameters)} of "
        return f"{type(self).__name__}({self.shape[0]:,} x {self.shape[1]:,} of {part}{self.loss!r})"

    @property
    def engine(self) -> str:
        """How products are computed; chosen at the first."""
        return self._inner.engine if self._curvature is None else self._curvature.engine

    @property
    def block(self) -> str:
        """How blocks of columns are multiplied, "loop" or "vmap"; chosen at the first."""
        return "loop" if self._curvature is None else self._curvature.block(self._wanted_block)

    def double(self) -> LossMatrix:
        """The same matrix of the same loss in float64, at the same point: a copy of model and data."""
        loss: Any = self.loss
        if self.dtype == torch.float64 or not hasattr(loss, "double"):
            return self
        return type(self)(loss.double(), self.theta.double(), parameters=self.parameters, block=self._wanted_block)

    def exact_products(self, rows: Tensor, *, by_differences: bool) -> Tensor | None:
        """In a float64 copy of the loss; None where it has none, or where its data would take too much memory."""
        if self.dtype == torch.float64:
            return self._products(rows)
        if (by_differences and self.kind != "hessian") or not _fits(self.loss):
            return None
        double = self.double()
        if double.dtype != torch.float64:
            return None
        if not by_differences:
            return double._products(rows)
        found = []
        for row in self.embed(rows):
            ends = (double.loss.gradient(double.theta + step * row) for step in (_STEP, -_STEP))
            found.append(next(ends).sub(next(ends)) / (2 * _STEP))
        images = torch.stack(found)
        return images if self._positions is None else images[:, self._positions.to(images.device)]

    def embed(self, v: Tensor) -> Tensor:
        """A vector (q,), or rows (k, q), of these parameters in the space of theta: (p,) or (k, p), zero elsewhere."""
        size = self.shape[0]
        if not isinstance(v, Tensor) or v.ndim not in (1, 2) or v.shape[-1] != size:
            received = f"has shape {tuple(v.shape)}" if isinstance(v, Tensor) else f"is {a_type(v)}"
            remedy = "Vectors are rows here: H.embed(pairs.vectors)"
            raise ValueError(explain("v", received, f"({size},) or (k, {size})", remedy))
        if self._positions is None:
            return v.clone()
        embedded = v.new_zeros(*v.shape[:-1], self.theta.numel())
        embedded[..., self._positions.to(v.device)] = v
        return embedded

    def _product(self, v: Tensor) -> Tensor:
        return self._products(v[None])[0]

    def _products(self, rows: Tensor) -> Tensor:
        if self._curvature is None:  # an objective that is not ours
            return torch.stack([self._inner.hvp(self._point, row) for row in rows]) if len(rows) else rows
        return self._curvature.product(self._point, rows, self._wanted_block)


class Hessian(LossMatrix):
    r"""The Hessian of a loss at one point, H = d^2 L / d theta^2, as a map: H @ v.

    Attributes:
        loss: the objective.
        theta: (p,) the point.
        parameters: names of the parameters it is restricted to, None for all of theta.
        shape: (p, p), or (q, q) of the parameters' q numbers.
        dtype, device: of theta.
    """

    kind = "hessian"

    def _product(self, v: Tensor) -> Tensor:
        return self._inner.hvp(self._point, v)


class GaussNewton(LossMatrix):
    r"""The generalized Gauss-Newton matrix of a loss at one point, G = (1/N) sum_i J_i' B_i J_i, as a map: G @ v.

    Attributes: as of `Hessian`.
    """

    kind = "gauss_newton"


def hessian(
    loss: Loss, theta: Point | None = None, *, parameters: Parameters | None = None, block: Block = "auto"
) -> Hessian:
    """The Hessian of any objective at `theta` (p,), by default at its `theta0`; one product per H @ v.

    Args:
        loss: any objective.
        theta: (p,) where; or a module, a state_dict, a checkpoint, whose buffers come along, as in `Objective.at`.
        parameters: only the block of these: a glob on their names such as "conv1.*", a list of globs, or a test
            `name -> bool`. The map is then (q, q), and `.embed` takes its vectors to (p,).
        block: how H @ V multiplies columns V (p, b): "loop" one by one, "vmap" at once, "auto" what is quicker; that is
            measured at the first V, and vmap must agree with the loop.

    Raises:
        ValueError: theta is no point of the loss, or a vector from elsewhere where training moves buffers (BatchNorm:
            pass the model, or `loss.at(theta, buffers="fixed")` as the loss); a glob matches no parameter,
            block="vmap" fails on the loss.
        TypeError: `parameters` of a loss without named ones.

    Cost:
        nothing until the first product. With `parameters`, a product gets cheaper, but chooses its engine anew.

    Example:
        >>> H = hessian(objective, parameters="0.*")
        >>> H.embed(top_eigs(H, k=1).vectors).shape == (1, objective.num_params)
        True
    """
    return cast(Hessian, _matrix(Hessian, loss, theta, parameters, block))


def gauss_newton(
    loss: Loss, theta: Point | None = None, *, parameters: Parameters | None = None, block: Block = "auto"
) -> GaussNewton:
    r"""The generalized Gauss-Newton matrix of an objective at `theta` (p,), by default at its `theta0`.

    G = (1/N) sum_i J_i' B_i J_i with the outputs z_i of the model, J_i = dz_i/dtheta and the Hessian B_i of the loss by
    the outputs: diag(q) - q q' for softmax cross-entropy, 2/d I for squared errors; any other by differentiation. G has
    no negative eigenvalue if the loss is convex in the outputs.

    Args:
        loss: an `Objective`, or an `AnchoredObjective` of one, which adds epsilon I. A `batch_loss` is cut where it
            calls the model: the outputs are what that call returns (its logits, where it has them).
        theta: (p,) where; or a module, a state_dict, a checkpoint, whose buffers come along, as in `Objective.at`.
        parameters: only the block of these, as in `hessian`.
        block: how G @ V multiplies columns, as in `hessian`.

    Raises:
        TypeError: the loss knows no outputs: `FunctionObjective`.
        ValueError: outputs that are not real, a `batch_loss` that uses the weights elsewhere too; and as `hessian`.

    Cost:
        a product costs no more than one of the Hessian.

    Source:
        Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent".
    """
    return cast(GaussNewton, _matrix(GaussNewton, loss, theta, parameters, block))


def _fits(loss: Any) -> bool:
    """Whether a float64 copy of a loss's data is small; one pass over them, which cache=False reads once more."""
    while hasattr(loss, "unanchored"):
        loss = loss.unanchored
    total = 0
    for batch in getattr(loss, "batches", ()):
        leaves = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
        total += sum(leaf.numel() * (8 if leaf.is_floating_point() else leaf.element_size()) for leaf in leaves)
        if total > _MAX_COPY:
            return False
    return True


def _matrix(
    kind: type[LossMatrix], loss: Any, theta: Point | None, parameters: Parameters | None, block: Block
) -> LossMatrix:
    check_loss("loss", loss)
    check_choice("block", block, BLOCKS)
    if kind is GaussNewton and not hasattr(loss, "curvature"):
        remedy = "Use hessian(), or an Objective of a model, its data and a loss_fn."
        raise TypeError(explain("loss", f"is {a_type(loss)}", "the loss of a model's outputs", remedy))
    located = loss if theta is None else loss.at(theta)
    point = located.theta0
    loss = loss if isinstance(theta, Tensor | np.ndarray) else located  # any other point brings its buffers
    if parameters is None:
        return kind(loss, point, block=block)
    if not hasattr(loss, "space") or not hasattr(loss, "restricted"):
        received = f"are given with a {type(loss).__name__}, which has no named parameters"
        raise TypeError(explain("parameters", received, "an objective of a model", "Leave them out."))
    return kind(loss, point, parameters=loss.space.named(parameters), block=block)
