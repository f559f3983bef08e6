"""What keeps a minimum near the trained weights? A loss plus a weak quadratic around a point."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Literal, cast

from torch import Tensor, nn

from lowhanging.checkpoints import Checkpoint, Point
from lowhanging.curvature import Curvature, Kind
from lowhanging.errors import check_real, check_vector
from lowhanging.function_objective import FunctionObjective
from lowhanging.loss import Loss, around, check_loss, check_rows, own_vector
from lowhanging.objective import Objective
from lowhanging.parameters import ParameterSpace
from lowhanging.ranks import Ranks


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
        self.unanchored = check_loss("loss", loss)
        self.anchor = self._checked(anchor, "anchor")

    def __repr__(self) -> str:
        return f"AnchoredObjective({self.unanchored!r}, epsilon={self.epsilon:g})"

    @property
    def theta0(self) -> Tensor:
        """The point around which the loss is studied, (p,); a copy of its own each time."""
        return self.unanchored.theta0

    @property
    def num_params(self) -> int:
        """The length of theta, p."""
        return self.unanchored.num_params

    @property
    def space(self) -> ParameterSpace:
        """Theta <-> named tensors, where the loss has them."""
        return cast(Objective, self.unanchored).space

    @property
    def ranks(self) -> Ranks | None:
        """The processes that share its examples; None where this one has all."""
        return getattr(self.unanchored, "ranks", None)

    @property
    def engine(self) -> str:
        """How products are computed."""
        return self.unanchored.engine

    def __call__(self, theta: Tensor) -> Tensor:
        """L(theta) + epsilon/2 |theta - anchor|^2, a float64 scalar."""
        theta = self._checked(theta)
        return self.unanchored(theta) + self._penalty(theta)

    def gradient(self, theta: Tensor) -> Tensor:
        """Gradient (p,), the anchor's included."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Value (float64 scalar) and gradient (p,), the anchor's included."""
        theta = self._checked(theta)
        value, gradient = self.unanchored.value_and_gradient(theta)
        return value + self._penalty(theta), gradient + self.epsilon * (theta - self.anchor)

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """(H + epsilon I) v, (p,): one product."""
        v = self._checked(v, "v")
        return self.unanchored.hvp(theta, v) + self.epsilon * v

    def curvature(self, kind: Kind) -> Curvature:
        """The Hessian or the Gauss-Newton matrix, plus epsilon I."""
        inner = cast(Objective, self.unanchored).curvature(kind)
        return replace(inner, shift=inner.shift + self.epsilon)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        """Value, the anchor's included, and accuracy."""
        theta = self._checked(theta)
        value, accuracy = self.unanchored.evaluate(theta)
        return value + self._penalty(theta), accuracy

    def evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]:
        """`evaluate` at every row of thetas (b, p) at once: equal to rounding only."""
        thetas = check_rows("thetas", thetas, like=self.theta0)
        values, accuracies = self.unanchored.evaluate_many(thetas)
        return values + 0.5 * self.epsilon * (thetas - self.anchor).double().square().sum(1), accuracies

    @property
    def buffers(self) -> str:
        """Where the buffers come from that training moves, as `Objective.buffers`."""
        return getattr(self.unanchored, "buffers", "none")

    @property
    def moving_names(self) -> tuple[str, ...]:
        """Names of the buffers that training moves, as `Objective.moving_names`."""
        return getattr(self.unanchored, "moving_names", ())

    @property
    def checkpoint(self) -> Checkpoint:
        """Theta0 with its buffers, as `Objective.checkpoint`."""
        return getattr(self.unanchored, "checkpoint", None) or Checkpoint(self.theta0)

    def as_checkpoint(self, point: Point, *, argument: str = "point") -> Checkpoint:
        """Theta (p,) of a point and the buffers that it brings, as `Objective.as_checkpoint`."""
        return cast(Objective, self.unanchored).as_checkpoint(point, argument=argument)

    def at(
        self, theta: Point, *, buffers: Literal["fixed", "recalibrate"] | None = None, recalibrate_on: Any = None
    ) -> AnchoredObjective:
        """The same loss, with the same anchor, around another point; theta and the keywords as in `Objective.at`."""
        inner = around(self.unanchored, theta, buffers=buffers, recalibrate_on=recalibrate_on)
        return AnchoredObjective(inner, self.anchor, self.epsilon)

    def restricted(self, names: Collection[str]) -> AnchoredObjective:
        """The anchored loss of the named parameters alone, up to the constant that the others' anchor adds."""
        where = self.space.positions(names)
        return AnchoredObjective(cast(Objective, self.unanchored).restricted(names), self.anchor[where], self.epsilon)

    def model_at(
        self, theta: Point, *, buffers: Literal["fixed", "recalibrate"] | None = None, recalibrate_on: Any = None
    ) -> nn.Module:
        """A copy of the model at a point, as `Objective.model_at`."""
        return cast(Objective, self.unanchored).model_at(theta, buffers=buffers, recalibrate_on=recalibrate_on)

    def double(self) -> AnchoredObjective:
        """The same anchored loss in float64, around the same point."""
        inner: Any = self.unanchored
        if not hasattr(inner, "double"):
            inner = FunctionObjective(inner.in_double(), inner.theta0)
        return AnchoredObjective(inner.double(), self.anchor.double(), self.epsilon)

    def in_double(self) -> Callable[[Tensor], Tensor]:
        """The loss, the anchor's included, as a float64 torch function of theta (p,)."""
        function = self.unanchored.in_double()
        return lambda theta: function(theta) + self._penalty(theta)

    def _penalty(self, theta: Tensor) -> Tensor:
        return 0.5 * self.epsilon * (theta - self.anchor).double().square().sum()

    def _checked(self, theta: Tensor, name: str = "theta") -> Tensor:
        loss, remedy = self.unanchored, "Pass loss.theta0 or another theta."
        return own_vector(check_vector(name, theta, loss.num_params, owner=str(loss), remedy=remedy, like=loss.theta0))
