"""Which matrix is being studied? Curvature of a loss as a symmetric (p, p) map that is never formed."""

from __future__ import annotations

import torch
from torch import Tensor

from lowhanging.errors import explain
from lowhanging.objective import Loss, check_loss


class Hessian:
    r"""The Hessian of a loss at one point, H = d^2 L / d theta^2, as a map: H @ v.

    Attributes:
        loss: the objective.
        theta: (p,) the point.
        shape: (p, p).
        dtype, device: of theta.
    """

    def __init__(self, loss: Loss, theta: Tensor):
        self.loss, self.theta = loss, theta
        self.shape = (loss.num_params, loss.num_params)
        self.dtype, self.device = theta.dtype, theta.device

    def __repr__(self) -> str:
        return f"Hessian({self.shape[0]:,} x {self.shape[1]:,} of {self.loss!r})"

    def __matmul__(self, v: Tensor) -> Tensor:
        """H v for v (p,), or column by column for v (p, b): b products."""
        if not isinstance(v, Tensor) or v.ndim not in (1, 2) or v.shape[0] != self.shape[1]:
            received = f"has shape {tuple(v.shape)}" if isinstance(v, Tensor) else f"is a {type(v).__name__}"
            expected = f"({self.shape[1]},) or ({self.shape[1]}, b)"
            raise ValueError(explain("v", received, expected, "Vectors are columns here: H @ subspace.basis.T"))
        if v.ndim == 1:
            return self.loss.hvp(self.theta, v)
        columns = [self.loss.hvp(self.theta, column) for column in v.T]
        return torch.stack(columns, dim=1) if columns else torch.zeros_like(v)

    @property
    def engine(self) -> str:
        """How products are computed."""
        return self.loss.engine


def hessian(loss: Loss, theta: Tensor | None = None) -> Hessian:
    """The Hessian of any objective at `theta` (p,), by default at its `theta0`; one product per H @ v."""
    check_loss("loss", loss)
    return Hessian(loss, loss.theta0 if theta is None else loss.at(theta).theta0)
