"""Symmetric (p, p) matrices of a loss that are never formed: Hessian, Gauss-Newton matrix, and sums of them.

The Hessian is the curvature itself. The Gauss-Newton matrix is the part of it that the loss's own curvature makes,

    H = J' B J + sum_c (dL/dz_c) d2z_c/dtheta2,    G = J' B J,

z the model's outputs, J = dz/dtheta, B = d2L/dz2. For softmax cross-entropy and squared errors it has no negative
eigenvalue (for the first it is the Fisher information), and it equals the Hessian where the outputs are linear in the
weights or the loss is flat in the outputs.
"""

from __future__ import annotations

import contextlib
import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lowhanging.errors import (
    a_type,
    argument_message,
    check_choice,
    check_finite,
    check_real,
    door,
)
from lowhanging.objective.checkpoints import Point
from lowhanging.objective.parameters import Parameters
from lowhanging.objective.protocol import BLOCKS, Block, Kind, Loss, around, check_loss, own_vector

_SLAB = 2**24  # entries of a matrix that are widened at once
_ASYMMETRY = 1e3  # machine epsilons of its largest entry by which a dense matrix may differ from its transpose


@contextlib.contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Also a decorator: inside it, autocast around the caller (a training loop's) does not round what is computed."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


class SymmetricOperator(ABC):
    """A symmetric (p, p) map that is never formed: `H @ v`, `2.0 * H1 + H2`, `-H`, `H.to_scipy()`.

    Attributes:
        shape: (p, p).
        dtype, device: of the vectors.
        num_done: products so far, from which follows when they are recorded; 0 for the bits of a new map.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    num_done: int
    __array_ufunc__ = None  # NumPy's scalars and arrays leave arithmetic to the methods below

    @property
    @abstractmethod
    def engine(self) -> str:
        """How products are computed."""

    def double(self) -> SymmetricOperator:
        """The same matrix in float64; itself where there is no telling how."""
        return self

    def excerpt(self) -> SymmetricOperator:
        """A map whose products are rounded alike and cost less; itself where there is none."""
        return self

    def exact_products(self, rows: Tensor, *, by_differences: bool) -> Tensor | None:
        """Times each of rows (b, p) float64, computed in float64; None where there is no telling how.

        `by_differences` asks for central differences of float64 gradients: far more exact than a product in float32,
        and far less work than choosing how products are best computed, but wrong where the loss has a kink nearby.
        """
        return None

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """Times v (p,), which must be finite, in the map's dtype, on its device, and stay as it is."""

    @abstractmethod
    def _products(self, rows: Tensor) -> Tensor:
        """Times each of rows (b, p): rows again."""

    @plain_arithmetic()
    def __matmul__(self, v: Tensor) -> Tensor:
        """Times v (p,), one product; or times the columns of v (p, b), b products."""
        if not isinstance(v, Tensor) or v.ndim not in (1, 2) or v.shape[0] != self.shape[1]:
            received = f"has shape {tuple(v.shape)}" if isinstance(v, Tensor) else f"is {a_type(v)}"
            expected = f"({self.shape[1]},) or ({self.shape[1]}, b)"
            raise ValueError(
                argument_message("v", received, expected, "Vectors are columns here: H @ subspace.basis.T")
            )
        if not v.is_floating_point():
            raise TypeError(
                argument_message("v", f"has dtype {v.dtype}", "a floating-point dtype", "Convert it: v.double().")
            )
        check_finite("v", v, remedy="Pass finite vectors.")
        with torch.inference_mode(False):
            own = (
                v.detach()
                .movedim(0, -1)
                .to(  # (p,), or the columns as rows
                    device=self.device, dtype=self.dtype, copy=True, memory_format=torch.contiguous_format
                )
            )
        return self.product(own) if v.ndim == 1 else self._products(own).T

    def __add__(self, other: Any) -> OperatorSum:
        return OperatorSum([(1.0, self), (1.0, other)])

    def __radd__(self, other: Any) -> SymmetricOperator:
        is_start = isinstance(other, int) and other == 0  # of sum([H1, H2])
        return self if is_start else OperatorSum([(1.0, other), (1.0, self)])

    def __sub__(self, other: Any) -> OperatorSum:
        return OperatorSum([(1.0, self), (-1.0, other)])

    def __rsub__(self, other: Any) -> OperatorSum:
        return OperatorSum([(1.0, other), (-1.0, self)])

    def __neg__(self) -> OperatorSum:
        return OperatorSum([(-1.0, self)])

    def __mul__(self, factor: float) -> OperatorSum:
        return OperatorSum([(_number(factor), self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> OperatorSum:
        number = _number(divisor)
        if number == 0:
            raise ZeroDivisionError(
                argument_message("divisor", "is 0", "another number", "Divide by what is not zero.")
            )
        return OperatorSum([(1 / number, self)])

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` of the same shape and dtype, for `eigsh`, `cg`, `minres` and the like.

        Vectors go to this operator's device and come back as NumPy arrays.

        Example:
            >>> scipy.sparse.linalg.eigsh(hessian(objective).to_scipy(), k=3)[0].shape
            (3,)
        """
        from scipy.sparse.linalg import LinearOperator

        kind = np.float32 if self.dtype == torch.float32 else np.float64

        def times(array: Any) -> Any:
            columns = torch.from_numpy(np.array(array, dtype=kind))
            return (self @ columns).cpu().numpy()

        return LinearOperator(self.shape, matvec=times, rmatvec=times, matmat=times, rmatmat=times, dtype=kind)


class OperatorSum(SymmetricOperator):
    """c1 H1 + c2 H2 + ... of symmetric maps of one size on one device; a dense tensor is one of them.

    Attributes:
        terms: the pairs (coefficient, map); a map that occurs twice is one term.
        shape, dtype, device: (p, p), the widest dtype among the maps, and where they are.
    """

    def __init__(self, terms: list[tuple[float, Any]]):
        merged: dict[int, tuple[float, Any]] = {}
        for factor, item in terms:
            for inner, part in item.terms if isinstance(item, OperatorSum) else ((1.0, _map(item)),):
                before = merged[id(part)][0] if id(part) in merged else 0.0
                merged[id(part)] = (before + factor * inner, part)
        self.terms: tuple[tuple[float, Any], ...] = tuple(merged.values())
        first = self.terms[0][1]
        self.shape = (int(first.shape[0]), int(first.shape[1]))
        self.dtype, self.device = first.dtype, torch.device(first.device)
        for _, part in self.terms:
            if tuple(part.shape) != self.shape:
                received = f"have shapes {self.shape} and {tuple(part.shape)}"
                raise ValueError(
                    argument_message("operators", received, "one shape", "Add matrices of the same weights.")
                )
            if torch.device(part.device) != self.device:
                received = f"are on {self.device} and {part.device}"
                raise ValueError(
                    argument_message("operators", received, "one device", "Pass device= when you make them.")
                )
            self.dtype = torch.promote_types(self.dtype, part.dtype)

    def __repr__(self) -> str:
        words = [f"{factor:+g} {type(part).__name__}" for factor, part in self.terms]
        return f"OperatorSum({self.shape[0]:,} x {self.shape[1]:,}: {' '.join(words)})"

    @property
    def engine(self) -> str:
        """How the products of the terms are computed, each way once."""
        engines = [str(getattr(part, "engine", "")) for _, part in self.terms]
        return " + ".join(dict.fromkeys(engine for engine in engines if engine)) or "dense"

    @property
    def num_done(self) -> int:
        """Of the terms."""
        return max(part.num_done if isinstance(part, SymmetricOperator) else 0 for _, part in self.terms)

    @num_done.setter
    def num_done(self, num: int) -> None:
        for _, part in self.terms:
            if isinstance(part, SymmetricOperator):
                part.num_done = num

    def double(self) -> OperatorSum:
        """The sum of the same terms in float64."""
        return OperatorSum([(c, part.double() if hasattr(part, "double") else part) for c, part in self.terms])

    def excerpt(self) -> OperatorSum:
        """The sum of the terms' excerpts."""
        parts = [(c, part.excerpt() if isinstance(part, SymmetricOperator) else part) for c, part in self.terms]
        is_same = all(part is other for (_, part), (_, other) in zip(parts, self.terms, strict=True))
        return self if is_same else OperatorSum(parts)

    def exact_products(self, rows: Tensor, *, by_differences: bool) -> Tensor | None:
        """Of every term; None where one of them has no such form."""
        total = torch.zeros_like(rows)
        for factor, part in self.terms:
            image = exact_products(part, rows, by_differences=by_differences)
            if image is None:
                return None
            total += factor * image
        return total

    def product(self, v: Tensor) -> Tensor:
        return sum((factor * (part @ v.to(part.dtype)).to(self.dtype) for factor, part in self.terms), start=0 * v)

    def _products(self, rows: Tensor) -> Tensor:
        return self.product(rows.T).T


def exact_products(H: Any, rows: Tensor, *, by_differences: bool) -> Tensor | None:
    """Any map times each of rows (b, p) float64, computed in float64, (b, p); None where there is no telling how."""
    if hasattr(H, "exact_products"):  # a map of ours
        image: Tensor | None = H.exact_products(rows, by_differences=by_differences)
        return image
    if isinstance(H, Tensor) and H.layout == torch.strided:
        slabs = torch.split(H.detach(), max(1, _SLAB // H.shape[1]))  # widened one after the other
        return torch.cat([slab.double() @ rows.T for slab in slabs]).T
    if isinstance(H, Tensor):
        return (H.detach().double() @ rows.T).T
    if isinstance(H, np.ndarray) or scipy.sparse.issparse(H):
        return torch.from_numpy(np.array(H.astype(np.float64) @ rows.cpu().numpy().T)).T
    return None


def _number(factor: Any) -> float:
    if isinstance(factor, Tensor) and factor.ndim == 0 and factor.dtype != torch.bool and not factor.is_complex():
        factor = factor.item()
    remedy = "Operators are multiplied by numbers, and with vectors by @."
    if not isinstance(factor, numbers.Real):
        received = f"is {a_type(factor)}"
        raise TypeError(argument_message("factor", received, "a finite number", remedy))
    return check_real("factor", float(factor), remedy=remedy)


def _map(item: Any) -> Any:
    """A symmetric torch map, or an error."""
    if isinstance(item, SymmetricOperator):
        return item
    shape: tuple[int, ...] = tuple(getattr(item, "shape", ()))
    dtype: Any = getattr(item, "dtype", None)
    is_map = hasattr(item, "__matmul__") and hasattr(item, "device") and isinstance(dtype, torch.dtype)
    if not is_map or len(shape) != 2 or shape[0] != shape[1] or not dtype.is_floating_point:
        kind = f"a {type(item).__name__}" + (f" of shape {shape}, {dtype}" if shape else "")
        expected = "an operator of ours, or a symmetric floating-point tensor or map of shape (p, p)"
        remedy = "torch.from_numpy(matrix) for an array; c I is c * torch.eye(p)."
        raise TypeError(argument_message("operator", f"is {kind}", expected, remedy))
    if isinstance(item, Tensor) and item.layout == torch.strided:
        check_finite("operator", item.detach(), remedy="Find where they come from.")
        gap, largest = float((item - item.mT).detach().abs().max()), float(item.detach().abs().max())
        if gap > _ASYMMETRY * torch.finfo(dtype).eps * largest:
            received = f"differs from its transpose by {gap / largest:.1e} of its largest entry"
            raise ValueError(
                argument_message("operator", received, "a symmetric matrix", "Symmetrise it: (A + A.T) / 2.")
            )
    return item


_STEP = 1e-6  # of central differences in float64: off by 2e-13 of the fourth derivatives, and about 1e-10 by rounding
_MOST_WEIGHTS = 10_000_000  # of a model that is copied in float64 to measure rounding
_MAX_COPY = 2**30  # bytes of a float64 copy of the data that is made only to measure rounding


class LossMatrix(SymmetricOperator):
    """A matrix of second derivatives of a loss at one point, by some or all of its parameters; see its subclasses."""

    kind: Kind

    def __init__(self, loss: Loss, theta: Tensor, *, parameters: tuple[str, ...] | None = None, block: Block = "auto"):
        self.loss, self.theta, self.parameters = loss, theta, parameters
        self._wanted_block = block
        self._inner, self._positions = loss, None
        if parameters is not None:
            self._positions = None if loss.space is None else loss.space.positions(parameters)
            self._inner = around(loss, theta).restricted(parameters)
        point = theta if parameters is None else self._inner.theta0
        self._curvature = self._inner.curvature(self.kind, own_vector(point))
        self.shape = (point.numel(), point.numel())
        self.dtype, self.device = theta.dtype, theta.device

    def __repr__(self) -> str:
        part = "" if self.parameters is None else f"{', '.join(self.parameters)} of "
        return f"{type(self).__name__}({self.shape[0]:,} x {self.shape[1]:,} of {part}{self.loss!r})"

    @property
    def engine(self) -> str:
        """How products are computed; chosen at the first."""
        return self._curvature.engine

    @property
    def block(self) -> str:
        """How blocks of columns are multiplied, "loop" or "vmap"; chosen at the first."""
        return self._curvature.block(self._wanted_block)

    @property
    def num_done(self) -> int:
        """Products so far."""
        return self._curvature.num_done

    @num_done.setter
    def num_done(self, num: int) -> None:
        self._curvature.num_done = num

    def double(self) -> LossMatrix:
        """The same matrix of the same loss in float64, at the same point: a copy of model and data."""
        if self.dtype == torch.float64:
            return self
        return type(self)(self.loss.double(), self.theta.double(), parameters=self.parameters, block=self._wanted_block)

    def exact_products(self, rows: Tensor, *, by_differences: bool) -> Tensor | None:
        """In a float64 copy of the loss; None where it has none, or where its data would take too much memory."""
        if self.dtype == torch.float64:
            return self._products(rows)
        is_large = self.loss.num_params > _MOST_WEIGHTS
        if (by_differences and self.kind != "hessian") or is_large or not _fits(self.loss):
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

    def excerpt(self) -> LossMatrix:
        """The matrix of a few examples, to measure on; itself where there are few."""
        part = self.loss.excerpt()
        return self if part is self.loss else type(self)(part, self.theta, parameters=self.parameters)

    def embed(self, v: Tensor) -> Tensor:
        """A vector (q,), or rows (k, q), of these parameters in the space of theta: (p,) or (k, p), zero elsewhere."""
        size = self.shape[0]
        if not isinstance(v, Tensor) or v.ndim not in (1, 2) or v.shape[-1] != size:
            received = f"has shape {tuple(v.shape)}" if isinstance(v, Tensor) else f"is {a_type(v)}"
            remedy = "Vectors are rows here: H.embed(pairs.vectors)"
            raise ValueError(argument_message("v", received, f"({size},) or (k, {size})", remedy))
        if self._positions is None:
            return v.clone()
        embedded = v.new_zeros(*v.shape[:-1], self.theta.numel())
        embedded[..., self._positions.to(v.device)] = v
        return embedded

    def product(self, v: Tensor) -> Tensor:
        return self._curvature.product(v)

    def _products(self, rows: Tensor) -> Tensor:
        return self._curvature.product(rows, self._wanted_block)


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


class GaussNewton(LossMatrix):
    r"""The generalized Gauss-Newton matrix of a loss at one point, G = (1/N) sum_i J_i' B_i J_i, as a map: G @ v.

    Attributes: as of `Hessian`.
    """

    kind = "gauss_newton"


@door
def hessian(
    loss: Loss, theta: Point | None = None, *, parameters: Parameters | None = None, block: Block = "auto"
) -> Hessian:
    """The Hessian of any objective at `theta` (p,), by default at its `theta0`; one product per H @ v.

    Args:
        loss: any objective.
        theta: (p,) where; or a module, a state_dict, a file, a checkpoint, whose buffers come along (`Objective.at`).
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


@door
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
        theta: (p,) where; or a module, a state_dict, a file, a checkpoint, whose buffers come along (`Objective.at`).
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


def _fits(loss: Loss) -> bool:
    """Whether a float64 copy of a loss's data is small; one pass over them, which cache=False reads once more."""
    total = 0
    for batch in loss.batches:
        leaves = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
        total += sum(leaf.numel() * (8 if leaf.is_floating_point() else leaf.element_size()) for leaf in leaves)
        if total > _MAX_COPY:
            return False
    return True


def _matrix(
    kind: type[LossMatrix], loss: Loss, theta: Point | None, parameters: Parameters | None, block: Block
) -> LossMatrix:
    check_loss("loss", loss)
    check_choice("block", block, BLOCKS)
    located = loss if theta is None else loss.at(theta)
    point = located.theta0
    loss = loss if isinstance(theta, Tensor | np.ndarray) else located  # any other point brings its buffers
    if parameters is None:
        return kind(loss, point, block=block)
    if loss.space is None:
        received = f"are given with a {type(loss).__name__}, which has no named parameters"
        raise TypeError(argument_message("parameters", received, "an objective of a model", "Leave them out."))
    return kind(loss, point, parameters=loss.space.named(parameters), block=block)
