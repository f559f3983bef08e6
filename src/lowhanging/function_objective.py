"""What is any torch function of theta, as a loss?

`FunctionObjective` has the interface of `Objective` (see `loss.py`), and so every tool takes it: toys, quadratics whose
answers are known, losses that are no mean over data.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lowhanging.batch_matrices import HessianOfBatch
from lowhanging.batches import draws_so_far, untouched_random_state
from lowhanging.curvature import Curvature, Kind
from lowhanging.errors import a_type, check_choice, check_finite, check_vector, explain
from lowhanging.layers import ONE_AT_A_TIME, GraphWhereNeeded, differentiable_kernels, findings
from lowhanging.loss import batched_evaluation, check_rows, own_vector
from lowhanging.loss_checks import check_derivative
from lowhanging.products import ENGINES, Engine, Products


class FunctionObjective:
    """Any scalar torch function of theta as an objective: every tool of the library takes it.

    Args:
        function: theta (p,) -> scalar tensor, twice differentiable with torch operations.
        theta0: (p,) floating-point, the point around which it is studied.
        engine: as in `Objective`.

    Raises:
        ValueError: theta0 is no finite vector, or the function does not return a finite scalar there.

    Example:
        >>> f = FunctionObjective(lambda theta: (theta**4).sum(), torch.ones(3))
        >>> f.hvp(f.theta0, torch.ones(3))
        tensor([12., 12., 12.])
    """

    def __init__(self, function: Callable[[Tensor], Tensor], theta0: Tensor, *, engine: Engine = "auto"):
        check_choice("engine", engine, ENGINES)
        if not isinstance(theta0, Tensor) or theta0.ndim != 1 or not theta0.numel() or not theta0.is_floating_point():
            received = f"is {tuple(theta0.shape) if isinstance(theta0, Tensor) else type(theta0).__name__}"
            raise ValueError(
                explain(
                    "theta0",
                    received,
                    "a floating-point tensor of shape (p,)",
                    "Use tensor.reshape(-1), torch.from_numpy(array) for an array.",
                )
            )
        check_finite("theta0", theta0, remedy="Start from a finite point.")
        self._theta0 = own_vector(theta0)
        self._function, self._graphs = function, GraphWhereNeeded()
        self._rewrites, self._is_gradient_checked = False, False
        self._engine = engine
        self._products = Products(
            self._terms,
            [()],
            engine=engine,
            context=self._kernels,
            widened=lambda: (HessianOfBatch(self._terms), lambda batch: batch),
            check_gradient=self._check_gradient,
            is_smooth=lambda: self._is_smooth,
        )
        if not callable(function):
            received = f"is {a_type(function)}"
            raise TypeError(explain("function", received, "a function theta (p,) -> scalar", "Pass lambda theta: ..."))
        point = own_vector(theta0)
        with self._kernels(), torch.enable_grad(), untouched_random_state():
            draws = draws_so_far()
            point = point.requires_grad_().clone()  # no leaf: writing into it is found below, in our words
            values: list[Any] = []
            found = findings(nn.Module(), lambda: values.append(function(point)))
            kinds, value = {finding.kind for finding in found}, values[0]
            self._rewrites, self._is_smooth = "rewrite" in kinds, "kinked" not in kinds
            is_random = draws_so_far() != draws or not _is_same(
                value, function(own_vector(theta0).requires_grad_().clone())
            )
        point = point.detach()
        if is_random:
            received = "gives another value at the same theta"
            raise ValueError(
                explain("function", received, "a function of theta alone", "Draw what is random once, outside.")
            )
        if not torch.equal(point, self.theta0):
            remedy = "Start it with theta = theta.clone()."
            raise ValueError(explain("function", "writes into theta", "a pure function of theta", remedy))
        if not isinstance(value, Tensor) or value.ndim:
            received = f"returned {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
            raise ValueError(explain("function", received, "a scalar tensor, shape ()", "Sum or average its terms."))
        if not value.requires_grad:
            received = "returned a value that does not depend on theta"
            remedy = "Use torch operations throughout: no float(...), no .detach(), no torch.tensor(...)."
            raise ValueError(explain("function", received, "a differentiable function of theta", remedy))
        check_finite("function(theta0)", value.detach(), remedy="Check it for overflow or log(0).")

    @contextlib.contextmanager
    def _kernels(self) -> Iterator[None]:
        with ONE_AT_A_TIME, differentiable_kernels(None, rewrite=self._rewrites):
            yield

    def _at(self, theta: Tensor) -> Tensor:
        value: Tensor = self._graphs(lambda: self._function(theta))
        return value

    def _terms(self, theta: Tensor, _: Any) -> tuple[Tensor, int]:
        return self._at(theta), 1

    def _check_gradient(self) -> None:
        """Refuse, once, a function whose gradient in torch is not the derivative of its value."""
        if self._is_gradient_checked:
            return
        theta = self._theta0.double()
        drawn = torch.randn(len(theta), generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(theta)
        beside = theta + drawn * (1e-4 * (float(theta.norm()) or 1.0) / float(drawn.norm()))
        try:
            with torch.no_grad():
                self._at(beside)
        except Exception:  # it does not run in float64
            self._is_gradient_checked = True
            return
        for point in (beside, *([theta] if self._is_smooth else [])):  # at a kink there is no derivative
            check_derivative("function", self._at, point)
        self._is_gradient_checked = True

    def __repr__(self) -> str:
        name = getattr(self._function, "__name__", type(self._function).__name__)
        return f"FunctionObjective({name}, {self.num_params:,} parameters, engine={self.engine!r})"

    @property
    def theta0(self) -> Tensor:
        """The point around which the loss is studied, (p,); a copy of its own each time."""
        return own_vector(self._theta0)

    @property
    def num_params(self) -> int:
        """The length of theta, p."""
        return self.theta0.numel()

    @property
    def engine(self) -> str:
        """How products are computed; chosen at the first product."""
        return self._products.engine

    def __call__(self, theta: Tensor) -> Tensor:
        """f(theta), a float64 scalar."""
        return self._products.value(self._checked(theta))

    def gradient(self, theta: Tensor) -> Tensor:
        """Gradient of f at theta, (p,)."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """f(theta), a float64 scalar, and its gradient (p,)."""
        return self._products.value_and_gradient(self._checked(theta))

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """Hessian of f at theta times v (p,): one product."""
        return self._products.product(self._checked(theta), self._checked(v, "v"))

    def curvature(self, kind: Kind) -> Curvature:
        """The Hessian as products; a function has no outputs, and so no Gauss-Newton matrix."""
        if kind == "gauss_newton":
            received = "is a FunctionObjective, which knows no outputs"
            remedy = "Use hessian(), or an Objective of a model, its data and a loss_fn."
            raise TypeError(explain("loss", received, "the loss of a model's outputs", remedy))
        return Curvature(self._products)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        """f(theta) and None: a function has no accuracy."""
        return self(theta), None

    def evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]:
        """`evaluate` at every row of thetas (b, p) at once, by `torch.vmap`: equal to rounding only."""
        thetas = check_rows("thetas", thetas, like=self.theta0)
        with batched_evaluation(), self._kernels(), torch.no_grad():
            return torch.vmap(self._at)(thetas).double(), None

    def at(self, theta: Tensor) -> FunctionObjective:
        """The same function around another point."""
        other = copy.copy(self)
        other._theta0 = self._checked(theta)
        return other

    def double(self) -> FunctionObjective:
        """The same function of a float64 theta, around the same point."""
        return FunctionObjective(self._function, self._theta0.double(), engine=self._engine)

    def in_double(self) -> Callable[[Tensor], Tensor]:
        """The function itself, for float64 vectors."""
        return self._function

    def _checked(self, theta: Tensor, name: str = "theta") -> Tensor:
        remedy = "Pass vectors as long as theta0."
        return own_vector(check_vector(name, theta, self.num_params, owner="theta0", remedy=remedy, like=self.theta0))


def _is_same(a: Any, b: Any) -> bool:
    is_pair = isinstance(a, Tensor) and isinstance(b, Tensor)
    return not is_pair or torch.equal(a.nan_to_num(), b.nan_to_num())
