"""Dense Hessians and finite-difference products: oracles that share nothing with the products they judge.

The dense Hessian differentiates twice in reverse, in float64, where products go forward over reverse from a recorded
graph. Finite differences use gradients only and predict their own error, so that a test can demand that agreement.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowhanging.errors import argument_message, check_real, check_vector
from lowhanging.objective.kernels import differentiable_kernels
from lowhanging.objective.model_loss import BatchLoss, LossFn
from lowhanging.objective.objective import Objective
from lowhanging.objective.protocol import Loss

_ROWS_AT_ONCE = 16


def dense_hessian(
    loss: Loss | nn.Module,
    data: Any = None,
    *,
    theta: Tensor | None = None,
    loss_fn: LossFn | None = None,
    batch_loss: BatchLoss | None = None,
    mode: Literal["eval", "as_is"] = "eval",
) -> Tensor:
    """The whole Hessian in float64, by differentiating the gradient in reverse, row by row; an oracle for small p.

    Nothing is shared with `objective.hvp`: neither the direction of differentiation, nor the precision, nor the sum
    over batches. It is not symmetrised: its asymmetry shows rounding, or a gradient that is not one.

    Args:
        loss: any loss, with its own data and settings, or a model.
        data: with a model only: its data, as in `Objective`.
        theta: (p,) where; by default at `theta0`.
        loss_fn: with a model only, as in `Objective`.
        batch_loss: with a model only, as in `Objective`.
        mode: with a model only, as in `Objective`.

    Returns:
        (p, p), float64.

    Raises:
        ValueError, TypeError: theta has the wrong length, data are given beside an objective; see also `Objective`.

    Cost:
        p backward passes through the gradient of all data at once; memory 8 p^2 bytes and all activations.
    """
    if isinstance(loss, nn.Module):
        loss = Objective(loss, data, loss_fn=loss_fn, batch_loss=batch_loss, mode=mode, distributed=False)
    elif data is not None or loss_fn is not None or batch_loss is not None:
        remedy = "Pass a model with its data, or an objective alone."
        raise ValueError(argument_message("data", f"are given beside {loss!r}", "an objective's own data", remedy))
    function, start = loss.in_double(), loss.theta0 if theta is None else theta
    size, owner, remedy = loss.num_params, str(loss), "Pass loss.theta0 or another theta."
    with torch.enable_grad(), differentiable_kernels(None), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap's note where an operation is batched by a loop
        point = check_vector("theta", start, size, owner=owner, remedy=remedy, like=loss.theta0).double().clone()
        point.requires_grad_()
        (gradient,) = torch.autograd.grad(function(point), point, create_graph=True, allow_unused=True)
        rows = torch.zeros(size, size, dtype=torch.float64, device=point.device)
        if gradient is None or not gradient.requires_grad:  # a loss that is constant or linear
            return rows
        for start_row in range(0, size, _ROWS_AT_ONCE):
            wanted = torch.eye(size, dtype=torch.float64, device=point.device)[start_row : start_row + _ROWS_AT_ONCE]
            rows[start_row : start_row + len(wanted)] = _rows(gradient, point, wanted)
    return rows


def _rows(gradient: Tensor, point: Tensor, wanted: Tensor) -> Tensor:
    """(b, p) rows of the Hessian, those that `wanted` (b, p) picks."""
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    try:
        (rows,) = torch.autograd.grad(gradient, point, wanted, is_grads_batched=True, **options)
    except RuntimeError:  # an operation that can't be batched
        parts = [torch.autograd.grad(gradient, point, row, **options)[0] for row in wanted]
        rows = None if parts[0] is None else torch.stack(parts)
    return torch.zeros_like(wanted) if rows is None else rows


@dataclass(frozen=True)
class FiniteDifference:
    """A product by finite differences and how far it may be off."""

    product: Tensor  # (p,), H v
    error: float  # predicted |product - H v|: what is left of the truncation, and the rounding of the gradients
    step: float  # distance in weight space between the gradients nearest to each other, halved

    def __repr__(self) -> str:
        return f"FiniteDifference(|Hv| {float(self.product.norm()):.4g} +- {self.error:.1g}, step {self.step:.1g})"


def finite_difference_hvp(loss: Loss, theta: Tensor, v: Tensor, step: float | None = None) -> FiniteDifference:
    r"""H v from gradients alone, with a prediction of its error.

    Central differences D(h) = (g(theta + h u) - g(theta - h u)) |v| / 2h, u = v / |v|, at h, 2h and 4h are
    extrapolated in pairs, R(h) = (4 D(h) - D(2h)) / 3, which leaves a truncation of order h^4. R(h) - R(2h) shows both
    the truncation (15 times that of R(h)) and the rounding of the gradients (about as large as that of R(h)).

    Args:
        loss: any loss; its precision is used.
        theta: (p,) where.
        v: (p,), not zero.
        step: h in units of weight space; by default eps^(1/5) max(1, |theta|), where the two errors balance.

    Returns:
        FiniteDifference with `.product` (p,) and `.error`, predicted |product - H v|. A loss with kinks closer than 4h
        has a large error.

    Raises:
        ValueError, TypeError: v is zero or of the wrong length, step is not positive.

    Cost:
        six gradients.
    """
    remedy = "Pass vectors as long as theta0."
    size, owner, like = loss.num_params, str(loss), loss.theta0
    theta = check_vector("theta", theta, size, owner=owner, remedy=remedy, like=like)
    v = check_vector("v", v, size, owner=owner, remedy=remedy, like=like, allow_zero=False)
    eps = torch.finfo(theta.dtype).eps
    step = eps**0.2 * max(1.0, float(theta.norm())) if step is None else step
    step = check_real("step", step, minimum=0.0, exclusive=True, remedy="Leave it out: it is chosen for the precision.")
    length = v.double().norm()
    unit = v.double() / length
    differences, largest = [], 0.0
    for multiple in (1, 2, 4):
        ends = [(theta.double() + sign * multiple * step * unit).to(theta.dtype) for sign in (1, -1)]
        ahead, behind = (loss.gradient(end).double() for end in ends)
        # The distance that was really walked: rounding theta + h u in float32 moves the ends.
        distance = (ends[0].double() - ends[1].double()) @ unit
        differences.append((ahead - behind) / distance * length)
        largest = max(largest, float(ahead.norm()), float(behind.norm()))
    near, far = ((4 * a - b) / 3 for a, b in itertools.pairwise(differences))
    error = 2 * float((near - far).norm()) + 4 * eps * largest / step * float(length)
    return FiniteDifference(near.to(theta.dtype), error, step)
