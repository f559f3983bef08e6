"""A model's loss cut at its outputs: what a Gauss-Newton matrix is made of.

With a `loss_fn` the cut is where it is called; a `batch_loss` is cut where it calls the model, and must reach the
weights through what that call returns alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowhanging.errors import argument_message
from lowhanging.objective.batches import attempt, logits_of, split_batch
from lowhanging.objective.hvp import tensors_in
from lowhanging.objective.model_loss import ModelLoss
from lowhanging.objective.random_state import untouched_random_state


class OutputLoss:
    """The outputs of a model, and its loss as a function of them; each a function of one batch too."""

    def __init__(self, terms: ModelLoss):
        self._terms = terms
        self._is_checked = False

    def outputs(self, theta: Tensor, batch: Any) -> Any:
        """What the model returns at theta: a tensor, or tensors in tuples, lists and dicts."""
        if not self._terms.has_batch_loss:
            return self._terms.outputs(theta, batch)
        seen: list[Any] = []
        self._sum(theta, batch, lambda result: seen.append(logits_of(result)))
        if len(seen) != 1:
            received = f"calls the model {len(seen)} times"
            expected = "one call, whose outputs the loss is a function of"
            remedy = "Let it call model(...) once, on all its inputs, and compute the loss from what that returns."
            raise ValueError(argument_message("batch_loss", received, expected, remedy))
        return seen[0]

    def loss_at(self, outputs: Any, batch: Any) -> Tensor:
        """The batch's sum, as a function of what the model returned."""
        if not self._terms.has_batch_loss:
            return self._terms.loss_at(outputs, batch)[0]
        return self._sum(self._terms.theta0, batch, lambda result: _returning(result, outputs))

    def closed_form(self, outputs: Any, batch: Any, u: Tensor) -> Tensor | None:
        """B u for the B of the batch's sum, in the shape of the outputs; None where it is left to differentiation.

        Softmax cross-entropy: (diag(q) - q q') u for each target, q = softmax(z). Mean squared error: 2 u.
        """
        if self._terms.has_batch_loss or not isinstance(outputs, Tensor):
            return None
        targets = split_batch(batch)[2]
        if _is_cross_entropy(self._terms.loss_fn) and _are_classes(targets, outputs):
            q = outputs.softmax(1)
            return q * u - q * (q * u).sum(1, keepdim=True)
        if _is_mean_square(self._terms.loss_fn) and isinstance(targets, Tensor) and targets.shape == outputs.shape:
            return 2 * u  # 2 / d, in a sum of d terms
        return None

    def check(self) -> None:
        """Refuse, once, outputs without a Jacobian, and a `batch_loss` that is no function of the model's outputs."""
        if self._is_checked:
            return
        terms = self._terms
        batch = next(iter(terms.batches))
        with terms.context(), untouched_random_state():
            with torch.no_grad():
                outputs = attempt(lambda: self.outputs(terms.theta0, batch), batch)
            tensors = tensors_in(outputs)
            bad = [str(tensor.dtype) for tensor in tensors if not tensor.is_floating_point()]
            if bad or not tensors:
                received = f"returns {', '.join(bad) or type(outputs).__name__}"
                expected = "real floating-point outputs: the Gauss-Newton matrix is made of their Jacobian"
                remedy = "Wrap it in a module that returns those alone (torch.view_as_real for complex ones)."
                raise ValueError(argument_message("model", received, expected, remedy))
            if terms.has_batch_loss:
                self._check_cut(outputs, batch)
        self._is_checked = True

    def _check_cut(self, outputs: Any, batch: Any) -> None:
        """With the outputs given, `batch_loss` must not depend on the weights any more."""
        with torch.enable_grad():
            weights = self._terms.theta0.clone().requires_grad_()
            total = self._sum(weights, batch, lambda result: _returning(result, outputs))
        reached = torch.autograd.grad(total, weights, allow_unused=True)[0] if total.requires_grad else None
        if reached is not None and bool(reached.any()):
            received = "reaches the weights past the model's outputs (its logits, where it has them)"
            remedy = (
                "Let it call model(...) once and compute the loss from its outputs (not the model's own .loss), "
                "or use hessian()."
            )
            raise ValueError(argument_message("batch_loss", received, "a function of the model's outputs", remedy))

    def _sum(self, theta: Tensor, batch: Any, seen: Callable[[Any], Any]) -> Tensor:
        """The sum of `batch_loss`; `seen` gets what the model returns, and what it returns, if anything, goes on."""
        handle = self._terms.model.register_forward_hook(lambda _module, _inputs, result: seen(result))
        try:
            return self._terms(theta, batch)[0]
        finally:
            handle.remove()


def _returning(result: Any, outputs: Any) -> Any:
    """What the model returned, with other outputs in it."""
    if not hasattr(result, "logits"):
        return outputs
    result = copy.copy(result)
    result.logits = outputs
    return result


def _is_cross_entropy(loss_fn: Any) -> bool:
    if type(loss_fn) is nn.CrossEntropyLoss:
        return loss_fn.weight is None and loss_fn.label_smoothing == 0 and loss_fn.reduction == "mean"
    return loss_fn is F.cross_entropy


def _is_mean_square(loss_fn: Any) -> bool:
    return loss_fn is F.mse_loss or (type(loss_fn) is nn.MSELoss and loss_fn.reduction == "mean")


def _are_classes(targets: Any, outputs: Tensor) -> bool:
    is_integer = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim > 0
    return is_integer and targets.shape == outputs.shape[:1] + outputs.shape[2:]
