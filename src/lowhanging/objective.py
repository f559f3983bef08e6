"""What is the loss as a function of the weights?

Three kinds of objective, one interface (`Loss`): `Objective` (a model on a data set), `FunctionObjective` (any torch
function of theta) and `AnchoredObjective` (either plus a quadratic). All are pure functions of a flat vector theta
(p,): the user's model is copied once and never written to, and what a value depends on besides theta is fixed when the
objective is made. Every tool of the library takes any of the three.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lowhanging.errors import check_choice, check_finite, check_real, check_vector, explain
from lowhanging.model_loss import BatchLoss, LossFn, ModelLoss
from lowhanging.products import DEFAULT_KEEP_BYTES, ENGINES, Engine, Products


class Loss(Protocol):
    """What every tool of the library asks of a loss: pure functions of theta (p,) around the point `theta0`."""

    theta0: Tensor

    @property
    def num_params(self) -> int: ...
    @property
    def engine(self) -> str: ...
    def __call__(self, theta: Tensor) -> Tensor: ...
    def gradient(self, theta: Tensor) -> Tensor: ...
    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]: ...
    def hvp(self, theta: Tensor, v: Tensor) -> Tensor: ...
    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]: ...
    def at(self, theta: Tensor) -> Loss: ...


class Objective:
    r"""Mean loss of a model over one data set, as a function of its flat trainable parameters.

    L(theta) = (sum over batches of the batch's loss sum) / (number of loss terms), so that ragged, permuted or re-cut
    batches give the same loss, gradient and Hessian.

    Args:
        model: any nn.Module; copied, never written to. Frozen parameters and buffers are constants.
        data: DataLoader, iterable of batches, map-style Dataset, or one data set as a tuple (inputs, targets). It is
            read once, here (a `generator=` of the loader's own advances by that one pass, as it must). Batches are
            (x, y), (x1, x2, y), named tuples, or mappings with a key such as "labels", the rest passed by keyword.
        loss_fn: (outputs, targets) -> *mean* loss, as torch's losses are by default. Floating-point targets need an
            explicit one: cross-entropy would read them as class probabilities.
        batch_loss: (model, batch) -> (sum, count) instead of `loss_fn`, where the count isn't the number of targets
            (`ignore_index`, class weights) or the batch has another form.
        mode: "eval" evaluates as after `model.eval()`, whatever the flags; "as_is" respects the flags and refuses, by
            name, the layers that are then random or mix examples. The model's own flags are not changed.
        device: where to compute; by default where the model is.
        cache: False re-reads `data` on each pass (data too large to keep) and checks that the passes agree.
        micro_batch: examples evaluated at once; by default what fits a processor's cache.
        engine: how Hessian products are computed, see `products.py`; `objective.engine` says what runs.
        keep_bytes: budget in bytes for what is kept between products at one theta.

    Attributes:
        theta0: (p,) the weights when the objective was made.
        space: the ParameterSpace, theta <-> named tensors.
        num_examples: examples in the data set.

    Raises:
        ValueError, TypeError: empty or unusable data, NaN or inf in data or weights, targets out of range, nothing
            trainable, a random or batch-dependent layer in use, a device that isn't there, a loss that is not a mean.

    Warns:
        NotSmoothWarning: once per objective, naming the layers with kinks (ReLU, max-pool).

    Cost:
        two forward passes over the first micro-batch, one read of the data. Products: see `hvp`.

    Source:
        Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        loss_fn: LossFn | None = None,
        batch_loss: BatchLoss | None = None,
        mode: Literal["eval", "as_is"] = "eval",
        device: torch.device | str | None = None,
        cache: bool = True,
        micro_batch: int | None = None,
        engine: Engine = "auto",
        keep_bytes: int = DEFAULT_KEEP_BYTES,
    ):
        check_choice("mode", mode, ("eval", "as_is"))
        check_choice("engine", engine, ENGINES)
        self._terms = ModelLoss(
            model,
            data,
            loss_fn=loss_fn,
            batch_loss=batch_loss,
            mode=mode,
            device=device,
            cache=cache,
            micro_batch=micro_batch,
        )
        self.space, self.theta0, self.num_examples = (
            self._terms.space,
            self._terms.theta0,
            self._terms.batches.num_examples,
        )
        self._products = Products(
            self._terms, self._terms.batches, engine=engine, keep_bytes=keep_bytes, context=self._terms.context
        )  # fmt: skip

    def __repr__(self) -> str:
        size = f"{self.num_params:,} parameters, {self.num_examples:,} examples"
        how = f"{self._terms.name}, mode={self._terms.mode!r}, engine={self.engine!r}"
        return f"Objective({self.space.owner}, {size}, {how})"

    @property
    def num_params(self) -> int:
        """P."""
        return self.space.num_params

    @property
    def engine(self) -> str:
        """How products are computed; chosen, and tested on every micro-batch, at the first product."""
        return self._products.engine

    def __call__(self, theta: Tensor) -> Tensor:
        """L(theta), a float64 scalar; theta (p,)."""
        return self._products.value(self._checked(theta))

    def gradient(self, theta: Tensor) -> Tensor:
        """Grad L(theta), (p,)."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L(theta), a float64 scalar, and its gradient (p,)."""
        return self._products.value_and_gradient(self._checked(theta))

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """Hessian of L at theta times v (p,): one product.

        From the second product at one theta on, what does not depend on v is kept (`keep_bytes`); then a product costs
        about 1.3 to 1.8 gradients, against 3 to 4 of a double backward (`benchmarks/products.py`).
        """
        return self._products.hvp(self._checked(theta), self._checked(v, "v"))

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        """L(theta), bit for bit the objective's value, and the accuracy (None unless targets are classes).

        The accuracy is the share of targets equal to the argmax of the outputs over dimension 1.
        """
        return self._terms.evaluate(self._checked(theta))

    def at(self, theta: Tensor) -> Objective:
        """The same loss around another point: a cheap copy whose `theta0` is theta (p,)."""
        other = copy.copy(self)
        other.theta0 = self._checked(theta).clone()
        return other

    def model_at(self, theta: Tensor) -> nn.Module:
        """A copy of the model, on its device and with the train/eval flags used here, with the weights theta (p,)."""
        return self._terms.model_at(self._checked(theta))

    def _checked(self, theta: Tensor, name: str = "theta") -> Tensor:
        remedy = "Build vectors from named tensors with objective.space.flatten({...})."
        vector = check_vector(name, theta, self.num_params, owner=self.space.owner, remedy=remedy, like=self.theta0)
        return vector.detach()


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
                explain("theta0", received, "a floating-point tensor of shape (p,)", "Use tensor.reshape(-1).")
            )
        check_finite("theta0", theta0, remedy="Start from a finite point.")
        self.theta0 = theta0.detach().clone()
        self._function = function
        self._products = Products(lambda theta, _: (function(theta), 1), [()], engine=engine)
        with torch.no_grad():
            value = function(self.theta0)
        if not isinstance(value, Tensor) or value.ndim:
            received = f"returned {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
            raise ValueError(explain("function", received, "a scalar tensor, shape ()", "Sum or average its terms."))
        check_finite("function(theta0)", value, remedy="Check it for overflow or log(0).")

    def __repr__(self) -> str:
        name = getattr(self._function, "__name__", type(self._function).__name__)
        return f"FunctionObjective({name}, {self.num_params:,} parameters, engine={self.engine!r})"

    @property
    def num_params(self) -> int:
        """P."""
        return self.theta0.numel()

    @property
    def engine(self) -> str:
        """How products are computed; chosen at the first product."""
        return self._products.engine

    def __call__(self, theta: Tensor) -> Tensor:
        """f(theta), a float64 scalar."""
        return self._products.value(self._checked(theta))

    def gradient(self, theta: Tensor) -> Tensor:
        """Grad f(theta), (p,)."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """f(theta), a float64 scalar, and its gradient (p,)."""
        return self._products.value_and_gradient(self._checked(theta))

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """Hessian of f at theta times v (p,): one product."""
        return self._products.hvp(self._checked(theta), self._checked(v, "v"))

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        """f(theta) and None: a function has no accuracy."""
        return self(theta), None

    def at(self, theta: Tensor) -> FunctionObjective:
        """The same function around another point."""
        other = copy.copy(self)
        other.theta0 = self._checked(theta).clone()
        return other

    def _checked(self, theta: Tensor, name: str = "theta") -> Tensor:
        remedy = "Pass vectors as long as theta0."
        return check_vector(name, theta, self.num_params, owner="theta0", remedy=remedy, like=self.theta0).detach()


class AnchoredObjective:
    r"""A loss plus a quadratic that keeps it near a point: L(theta) + epsilon/2 |theta - anchor|^2.

    Gradient and Hessian gain epsilon (theta - anchor) and epsilon I. On spheres around theta0 the added term is a tilt
    plus a constant, epsilon <theta - theta0, theta0 - anchor>: it makes no canyon.

    Args:
        loss: any objective.
        anchor: (p,) the point.
        epsilon: >= 0, in units of loss per squared unit of theta.
    """

    def __init__(self, loss: Loss, anchor: Tensor, epsilon: float):
        remedy = "Choose about a hundredth of the largest eigenvalue."
        self.epsilon = check_real("epsilon", epsilon, minimum=0.0, remedy=remedy)
        self.unanchored = loss
        self.theta0 = loss.theta0
        self.anchor = check_vector(
            "anchor",
            anchor,
            loss.num_params,
            owner=str(loss),
            remedy="Pass loss.theta0 or another theta.",
            like=loss.theta0,
        ).clone()

    def __repr__(self) -> str:
        return f"AnchoredObjective({self.unanchored!r}, epsilon={self.epsilon:g})"

    @property
    def num_params(self) -> int:
        """P."""
        return self.unanchored.num_params

    @property
    def engine(self) -> str:
        """How products are computed."""
        return self.unanchored.engine

    def __call__(self, theta: Tensor) -> Tensor:
        """L(theta) + epsilon/2 |theta - anchor|^2, a float64 scalar."""
        return self.unanchored(theta) + self._penalty(theta)

    def gradient(self, theta: Tensor) -> Tensor:
        """Gradient (p,), the anchor's included."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Value (float64 scalar) and gradient (p,), the anchor's included."""
        value, gradient = self.unanchored.value_and_gradient(theta)
        return value + self._penalty(theta), gradient + self.epsilon * (theta - self.anchor)

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """(H + epsilon I) v, (p,): one product."""
        return self.unanchored.hvp(theta, v) + self.epsilon * v

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        """Value, the anchor's included, and accuracy."""
        value, accuracy = self.unanchored.evaluate(theta)
        return value + self._penalty(theta), accuracy

    def at(self, theta: Tensor) -> AnchoredObjective:
        """The same loss, with the same anchor, around another point."""
        return AnchoredObjective(self.unanchored.at(theta), self.anchor, self.epsilon)

    def _penalty(self, theta: Tensor) -> Tensor:
        return 0.5 * self.epsilon * (theta - self.anchor).double().square().sum()
