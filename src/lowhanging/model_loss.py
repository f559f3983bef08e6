"""How does a model, a loss and a batch become (sum, count), and what is refused at the door?

`ModelLoss` holds a private copy of the user's model and the batches; it is the function (theta, batch) -> (sum, count)
that `products.py` sums. A loss is only accepted if it is a function of the weights alone (nothing random, no statistics
over the batch, no buffer that moves) and a sum over examples; each refusal names the layer and the way out.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from lowhanging.batches import Batches, num_examples, untouched_random_state
from lowhanging.errors import NotSmoothWarning, check_device, check_finite, explain
from lowhanging.layers import Finding, differentiable_kernels, findings
from lowhanging.parameters import ParameterSpace

LossFn = Callable[[Any, Any], Tensor]
BatchLoss = Callable[[Any, Any], tuple[Tensor, Any]]
_TARGET_KEYS = ("labels", "label", "targets", "target", "y")


class ModelLoss:
    """(theta, batch) -> (sum of the loss over the batch, number of its terms), for a private copy of a model.

    Arguments, errors and warnings: see `Objective`, which documents them for the user.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        loss_fn: LossFn | None,
        batch_loss: BatchLoss | None,
        mode: str,
        device: torch.device | str | None,
        cache: bool,
        micro_batch: int | None,
    ):
        if loss_fn is not None and batch_loss is not None:
            raise ValueError(
                explain("loss_fn", "and batch_loss are both given", "one of the two", "Leave one of them out.")
            )
        self._model = _private_copy(model, mode, device)
        self.space = ParameterSpace(self._model)
        self.theta0 = self.space.flatten(self._model)
        self.mode, self._loss_fn, self._batch_loss = mode, loss_fn or F.cross_entropy, batch_loss
        self.name = getattr(batch_loss or self._loss_fn, "__name__", "loss")
        self.batches = Batches(
            data, device=self.space.device, dtype=self.space.dtype, micro_batch=micro_batch, cache=cache
        )  # fmt: skip
        if loss_fn is None and batch_loss is None:
            self._check_classes()
        self._check_loss()

    def __call__(self, theta: Tensor, batch: Any, tally: _Tally | None = None) -> tuple[Tensor, Any]:
        """The batch's sum (scalar, differentiable in theta) and count; outputs are counted in `tally` if given."""
        weights = self.space.unflatten(theta)
        if self._batch_loss is not None:
            return self._batch_loss(_Bound(self._model, weights), batch)
        args, kwargs, targets = _parted(batch)
        outputs = _logits(functional_call(self._model, weights, args, kwargs))
        if tally is not None:
            tally.add(outputs, targets)
        if isinstance(targets, Tensor) and targets.is_floating_point():
            # Adds nothing, but gives the targets a tangent. Without one, torch (2.13) fails to differentiate mse_loss
            # forward over reverse (a symbolic zero is written to in place), and crashes the process while tracing it.
            targets = targets + 0 * theta[0]
        terms = targets.numel() if isinstance(targets, Tensor) and targets.ndim else num_examples(batch)
        return self._loss_fn(outputs, targets) * terms, terms

    def context(self) -> AbstractContextManager[None]:
        """Around every evaluation: only kernels that can be differentiated twice."""
        return differentiable_kernels(self._model)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        """Mean loss (float64 scalar, summed as in `Products.value`) and accuracy."""
        tally = _Tally()
        total, count = torch.zeros((), dtype=torch.float64, device=theta.device), 0.0
        with self.context(), torch.no_grad():
            for batch in self.batches:
                part, terms = self(theta, batch, tally)
                total += part
                count += float(terms)
        return total / count, tally.accuracy

    def model_at(self, theta: Tensor) -> nn.Module:
        """A copy of the private copy, with the weights theta (p,)."""
        model = copy.deepcopy(self._model)
        weights = self.space.unflatten(theta)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        return model

    def _check_classes(self) -> None:
        """Targets of the default cross-entropy: integers in the range of the outputs ."""
        batches = iter(self.batches)
        batch = next(batches)
        args, kwargs, targets = _parted(batch)
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
            received = f"have dtype {getattr(targets, 'dtype', type(targets).__name__)}"
            remedy = "Pass loss_fn=F.mse_loss (or another); class targets must be integers: targets.long()."
            raise ValueError(explain("targets", received, "integer classes, the loss_fn being cross-entropy", remedy))
        with self.context(), torch.no_grad():
            weights = self.space.unflatten(self.theta0)
            outputs = _attempt(lambda: _logits(functional_call(self._model, weights, args, kwargs)), batch)
        if not isinstance(outputs, Tensor) or outputs.ndim < 2:
            received = f"gives outputs of shape {tuple(getattr(outputs, 'shape', ()))}"
            raise ValueError(
                explain("model", received, "(n, classes) for cross-entropy", "Pass loss_fn= or batch_loss=.")
            )
        for batch in self.batches:
            targets = _parted(batch)[2]
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= outputs.shape[1]:
                remedy = "Check the labels; ignored ones (-100) need batch_loss=, which returns (sum, count)."
                expected = f"0 to {outputs.shape[1] - 1}, the model's {outputs.shape[1]} outputs"
                raise ValueError(explain("targets", f"range from {low} to {high}", expected, remedy))

    def _check_loss(self) -> None:
        """One watched evaluation of the first micro-batch: is the loss a finite function of the weights, and a mean?"""
        batch = next(iter(self.batches))
        buffers = {name: tensor.clone() for name, tensor in self._model.named_buffers()}
        results: list[tuple[Tensor, Any]] = []
        with self.context(), untouched_random_state(), torch.enable_grad():
            point = self.theta0.clone().requires_grad_()
            found = findings(self._model, lambda: results.append(_attempt(lambda: self(point, batch), batch)))
            _refuse_impure(found)
        total, terms = results[0] if isinstance(results[0], tuple) and len(results[0]) == 2 else (None, None)
        if not isinstance(total, Tensor) or total.ndim or isinstance(terms, bool) or not float(terms) > 0:
            received = "returned " + (
                "no pair (sum, count)" if total is None else f"shape {tuple(total.shape)}, count {terms}"
            )
            name = "batch_loss" if self._batch_loss is not None else "loss_fn"
            expected = "a scalar tensor" + (" and a positive count" if self._batch_loss is not None else ", the mean")
            raise ValueError(explain(name, received, expected, "Sum over the batch, and count the terms of that sum."))
        check_finite(
            "the loss at theta0", total.detach(), remedy="Check the weights and loss_fn for overflow or log(0)."
        )
        changed = [
            n for n, b in self._model.named_buffers() if b.shape != buffers[n].shape or not torch.equal(b, buffers[n])
        ]
        if changed:
            remedy = 'Use mode="eval", or make the forward pass leave its buffers alone.'
            raise ValueError(
                explain("model", f"changes its buffers {changed} when run", "a function of the weights", remedy)
            )
        if self._batch_loss is None:
            self._check_mean(batch, total.detach())
        kinks = [str(finding) for finding in found if finding.kind == "kinked"]
        if kinks:
            message = (
                f"the loss is not smooth: {'; '.join(kinks)}. Its Hessian ignores the kinks; use sigmoid, SiLU or GELU."
            )
            warnings.warn(NotSmoothWarning(message), stacklevel=3)

    def _check_mean(self, batch: Any, total: Tensor) -> None:
        """loss_fn must be the mean over the targets: 1 + (n - 1) examples must add up to n."""
        n = num_examples(batch)
        if n < 2:
            return
        parts = [_slice(batch, slice(0, 1)), _slice(batch, slice(1, n))]
        with self.context(), torch.no_grad():
            pieces = [self(self.theta0, part)[0] for part in parts if part is not None]
        if len(pieces) == 2:
            error = float((sum(pieces) - total).abs())
            if error > 1e-3 * float(sum(piece.abs() for piece in pieces)) + 1e-6 * n:
                received = (
                    f"is not the mean over the targets (1 + {n - 1} examples differ from {n} together by {error:.3g})"
                )
                remedy = (
                    "Use reduction='mean'; with ignore_index or class weights pass batch_loss=, "
                    "a function (model, batch) -> (sum, count)."
                )
                raise ValueError(explain("loss_fn", received, "the mean loss over the targets", remedy))


class _Bound:
    """The model with given weights, as `batch_loss` sees it: called like the model, its attributes the model's."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]):
        self._model, self._weights = model, weights

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self._model, dict(self._weights), args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Tally:
    """Counts right answers where outputs (n, classes, ...) and integer targets (n, ...) allow it."""

    def __init__(self) -> None:
        self.num_right = self.num_targets = 0

    def add(self, outputs: Any, targets: Any) -> None:
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or targets.is_floating_point():
            return
        if outputs.ndim == targets.ndim + 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape:
            self.num_right += int((outputs.argmax(1) == targets).sum())
            self.num_targets += targets.numel()

    @property
    def accuracy(self) -> float | None:
        return self.num_right / self.num_targets if self.num_targets else None


def _private_copy(model: nn.Module, mode: str, device: torch.device | str | None) -> nn.Module:
    if not isinstance(model, nn.Module):
        remedy = "Wrap a function of theta in FunctionObjective(function, theta0)."
        raise TypeError(explain("model", f"is a {type(model).__name__}", "a torch.nn.Module", remedy))
    wanted = None if device is None else check_device(device)
    ParameterSpace(model)  # nothing trainable, NaN weights ...: said before anything is copied
    private = copy.deepcopy(model)
    private.zero_grad(set_to_none=True)
    if mode == "eval":
        private.eval()
    # bfloat16 and float16 weights are studied in float32; float64 stays.
    dtype = ParameterSpace(private).dtype
    return private.to(wanted, dtype) if wanted is not None else private.to(dtype)


def _parted(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """A batch as (positional inputs, keyword inputs, targets)."""
    if isinstance(batch, Mapping):
        key = next((name for name in _TARGET_KEYS if name in batch), None)
        if key is not None:
            return (), {name: value for name, value in batch.items() if name != key}, batch[key]
        received = f"has the keys {list(batch)}"
        raise ValueError(
            explain("batch", received, f"one of {_TARGET_KEYS} for the targets", "Rename it, or pass batch_loss=.")
        )
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return tuple(batch[:-1]), {}, batch[-1]
    received = f"is a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
    raise ValueError(
        explain(
            "batch", received, "(inputs, targets)", "Yield pairs, or pass batch_loss=(model, batch) -> (sum, count)."
        )
    )


def _logits(outputs: Any) -> Any:
    return outputs.logits if hasattr(outputs, "logits") else outputs


def _slice(batch: Any, where: slice) -> Any | None:
    """Some of a batch's examples; None where its parts have no common first dimension."""
    leaves, spec = tree_flatten(batch)
    lengths = {leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves}
    return None if len(lengths) != 1 or None in lengths else tree_unflatten([leaf[where] for leaf in leaves], spec)


def _attempt(call: Callable[[], Any], batch: Any) -> Any:
    """call(), torch's complaint about shapes or dtypes turned into ours."""
    try:
        return call()
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        shapes = [tuple(leaf.shape) for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
        remedy = "Check one batch by hand: loss_fn(model(*inputs), targets)."
        first_line = (str(error).splitlines() or [""])[0]
        failure = f"{type(error).__name__}: {first_line}"
        received = f"has batches of shapes {shapes}, on which the model or its loss failed ({failure})"
        raise ValueError(explain("data", received, "batches that the model and its loss accept", remedy)) from error


def _refuse_impure(found: list[Finding]) -> None:
    for finding in found:
        if finding.kind == "random":
            remedy = 'Use mode="eval", or put that layer into eval mode.'
            raise ValueError(
                explain("model", f"is random: {finding}", "a loss that is a function of the weights", remedy)
            )
        if finding.kind == "batch":
            remedy = 'Use mode="eval", or put that layer into eval mode: its statistics mix the examples of a batch.'
            expected = "a loss that is a sum over examples"
            raise ValueError(explain("model", f"depends on the batch: {finding}", expected, remedy))
