"""A loss that uses nothing of the library's: (theta - center)' A (theta - center) / 2, with what `Loss` asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NoReturn

import torch
from torch import Tensor

from lowhanging.objective import Checkpoint

A = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.2]], dtype=torch.float64)


class OwnCurvature:
    """Products with A, which are counted."""

    engine, num_products, num_done = "on paper", 0, 0

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    def product(self, v: Tensor, block: str = "auto") -> Tensor:
        self.num_products += v.numel() // len(self.matrix)
        return v @ self.matrix

    def block(self, wanted: str = "auto") -> str:
        return "loop"


class OwnLoss:
    """The least that a loss must have."""

    engine, num_params, space, batches, ranks, buffers, moving_names = "on paper", 3, None, (), None, "none", ()

    def __init__(self, theta0: Tensor | None = None, center: Tensor | None = None, matrix: Tensor = A):
        self.theta0 = torch.zeros(3, dtype=torch.float64) if theta0 is None else theta0
        self.center = self.theta0.clone() if center is None else center
        self.matrix = matrix.to(self.theta0)

    def __call__(self, theta: Tensor) -> Tensor:
        away = (theta - self.center).double()
        return 0.5 * away @ self.matrix.double() @ away

    def gradient(self, theta: Tensor) -> Tensor:
        return self.matrix @ (theta - self.center)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self(theta), self.gradient(theta)

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        return self.matrix @ v

    def curvature(self, kind: str, theta: Tensor) -> OwnCurvature:
        if kind == "gauss_newton":
            raise TypeError("loss is an OwnLoss, which has no outputs")
        return OwnCurvature(self.matrix)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, None]:
        return self(theta), None

    def evaluate_many(self, thetas: Tensor) -> tuple[Tensor, None]:
        return torch.stack([self(theta) for theta in thetas]), None

    def at(self, theta: Any, *, buffers: str | None = None, recalibrate_on: Any = None) -> OwnLoss:
        return OwnLoss(self.as_checkpoint(theta).theta, self.center, self.matrix)

    def excerpt(self) -> OwnLoss:
        return self

    def double(self) -> OwnLoss:
        return OwnLoss(self.theta0.double(), self.center.double(), self.matrix.double())

    def in_double(self) -> Callable[[Tensor], Tensor]:
        return self

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.theta0)

    def as_checkpoint(self, point: Any, *, argument: str = "point") -> Checkpoint:
        return point if isinstance(point, Checkpoint) else Checkpoint(point)

    def restricted(self, names: Collection[str]) -> NoReturn:
        raise TypeError("an OwnLoss has no names")

    def model_at(self, theta: Any, *, buffers: str | None = None, recalibrate_on: Any = None) -> NoReturn:
        raise TypeError("an OwnLoss has no model")
