"""What can be done with a symmetric matrix that is only known by its products?

Multiplied with a vector or a block of columns, scaled, added to others, handed to SciPy. An operator says what one
product is; the rest is here, once. Two of them make a third, which forms nothing either: `2.0 * H1 - H2 + matrix`.
"""

from __future__ import annotations

import contextlib
import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from lowhanging.errors import a_type, check_finite, check_real, explain

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
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    __array_ufunc__ = None  # NumPy's scalars and arrays leave arithmetic to the methods below

    @property
    @abstractmethod
    def engine(self) -> str:
        """How products are computed."""

    def double(self) -> SymmetricOperator:
        """The same matrix in float64; itself where there is no telling how."""
        return self

    def exact_products(self, rows: Tensor, *, by_differences: bool) -> Tensor | None:
        """Times each of rows (b, p) float64, computed in float64; None where there is no telling how.

        `by_differences` asks for central differences of float64 gradients: far more exact than a product in float32,
        and far less work than choosing how products are best computed, but wrong where the loss has a kink nearby.
        """
        return None

    @abstractmethod
    def _product(self, v: Tensor) -> Tensor:
        """Times v (p,)."""

    @abstractmethod
    def _products(self, rows: Tensor) -> Tensor:
        """Times each of rows (b, p): rows again."""

    @plain_arithmetic()
    def __matmul__(self, v: Tensor) -> Tensor:
        """Times v (p,), one product; or times the columns of v (p, b), b products."""
        if not isinstance(v, Tensor) or v.ndim not in (1, 2) or v.shape[0] != self.shape[1]:
            received = f"has shape {tuple(v.shape)}" if isinstance(v, Tensor) else f"is {a_type(v)}"
            expected = f"({self.shape[1]},) or ({self.shape[1]}, b)"
            raise ValueError(explain("v", received, expected, "Vectors are columns here: H @ subspace.basis.T"))
        if not v.is_floating_point():
            raise TypeError(explain("v", f"has dtype {v.dtype}", "a floating-point dtype", "Convert it: v.double()."))
        check_finite("v", v, remedy="Pass finite vectors.")
        with torch.inference_mode(False):
            own = v.detach().clone().to(device=self.device, dtype=self.dtype)
        return self._product(own) if v.ndim == 1 else self._products(own.T.contiguous()).T

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
            raise ZeroDivisionError(explain("divisor", "is 0", "another number", "Divide by what is not zero."))
        return OperatorSum([(1 / number, self)])

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` of the same shape and dtype, for `eigsh`, `cg`, `minres` and the like.

        Vectors go to this operator's device and come back as NumPy arrays.

        Example:
            >>> scipy.sparse.linalg.eigsh(hessian(objective).to_scipy(), k=3)[0]
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
                raise ValueError(explain("operators", received, "one shape", "Add matrices of the same weights."))
            if torch.device(part.device) != self.device:
                received = f"are on {self.device} and {part.device}"
                raise ValueError(explain("operators", received, "one device", "Pass device= when you make them."))
            self.dtype = torch.promote_types(self.dtype, part.dtype)

    def __repr__(self) -> str:
        words = [f"{factor:+g} {type(part).__name__}" for factor, part in self.terms]
        return f"OperatorSum({self.shape[0]:,} x {self.shape[1]:,}: {' '.join(words)})"

    @property
    def engine(self) -> str:
        """How the products of the terms are computed, each way once."""
        engines = [str(getattr(part, "engine", "")) for _, part in self.terms]
        return " + ".join(dict.fromkeys(engine for engine in engines if engine)) or "dense"

    def double(self) -> OperatorSum:
        """The sum of the same terms in float64."""
        return OperatorSum([(c, part.double() if hasattr(part, "double") else part) for c, part in self.terms])

    def exact_products(self, rows: Tensor, *, by_differences: bool) -> Tensor | None:
        """Of every term; None where one of them has no such form."""
        total = torch.zeros_like(rows)
        for factor, part in self.terms:
            image = exact_products(part, rows, by_differences=by_differences)
            if image is None:
                return None
            total += factor * image
        return total

    def _product(self, v: Tensor) -> Tensor:
        return sum((factor * (part @ v.to(part.dtype)).to(self.dtype) for factor, part in self.terms), start=0 * v)

    def _products(self, rows: Tensor) -> Tensor:
        return self._product(rows.T).T


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
        raise TypeError(explain("factor", received, "a finite number", remedy))
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
        raise TypeError(explain("operator", f"is {kind}", expected, remedy))
    if isinstance(item, Tensor) and item.layout == torch.strided:
        check_finite("operator", item.detach(), remedy="Find where they come from.")
        gap, largest = float((item - item.mT).detach().abs().max()), float(item.detach().abs().max())
        if gap > _ASYMMETRY * torch.finfo(dtype).eps * largest:
            received = f"differs from its transpose by {gap / largest:.1e} of its largest entry"
            raise ValueError(explain("operator", received, "a symmetric matrix", "Symmetrise it: (A + A.T) / 2."))
    return item
