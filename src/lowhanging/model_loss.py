"""How does a model, a loss and a batch become (sum, count), and what is refused at the door?

`ModelLoss` holds a private copy of the user's model and the batches; it is the function (theta, batch) -> (sum, count)
that `products.py` sums. A loss is only accepted if it is a function of the weights alone (nothing random, no statistics
over the batch, no buffer that moves) and a sum over examples; each refusal names the layer and the way out.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import numbers
import warnings
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from lowhanging.batch_parts import Tally, attempt, logits_of, parted, some_of
from lowhanging.batches import Batches, draws_so_far, joined, num_examples, untouched_random_state
from lowhanging.errors import NotSmoothWarning, check_finite, explain
from lowhanging.layers import Finding, differentiable_kernels, findings
from lowhanging.parameters import ParameterSpace
from lowhanging.private_copy import copied, own_function, private_copy, widened
from lowhanging.ranks import Ranks, Sums, over_ranks

LossFn = Callable[[Any, Any], Tensor]
BatchLoss = Callable[[Any, Any], tuple[Tensor, Any]]


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
        ranks: Ranks | None = None,
        shard: tuple[int, int] | None = None,
    ):
        if loss_fn is not None and batch_loss is not None:
            raise ValueError(
                explain("loss_fn", "and batch_loss are both given", "one of the two", "Leave one of them out.")
            )
        self.model = private_copy(model, mode, device)
        self.space = ParameterSpace(self.model)
        self.theta0 = self.space.flatten(self.model)
        self.mode = mode
        self.loss_fn = own_function("loss_fn", loss_fn, self.space.device) or F.cross_entropy
        self._batch_loss = own_function("batch_loss", batch_loss, self.space.device)
        function = self.loss_fn if batch_loss is None else batch_loss
        self.name = getattr(function, "__name__", type(function).__name__)
        self.ranks = ranks
        batches = Batches(
            data, device=self.space.device, dtype=self.space.dtype, micro_batch=micro_batch, cache=cache, shard=shard,
            num_params=self.space.num_params,
        )  # fmt: skip
        self.batches: Iterable[Any] = batches
        self._as_yielded = batches.as_yielded
        self.num_examples = batches.num_examples
        with untouched_random_state():
            if loss_fn is None and batch_loss is None:
                self._check_classes()
            self._check_loss(may_weigh=loss_fn is not None)

    def __call__(self, theta: Tensor, batch: Any, tally: Tally | None = None) -> tuple[Tensor, Any]:
        """The batch's sum (scalar, differentiable in theta) and count; outputs are counted in `tally` if given."""
        if self._batch_loss is not None:
            named = {f"model.{name}": weight for name, weight in self.space.unflatten(theta).items()}
            applied = _Applied(self.model, self._batch_loss)
            return cast(tuple[Tensor, Any], functional_call(applied, named, (self._as_yielded(batch),)))
        outputs = self.outputs(theta, batch)
        if tally is not None:
            tally.add(outputs, parted(batch)[2])
        return self.loss_at(outputs, batch)

    def outputs(self, theta: Tensor, batch: Any) -> Any:
        """What `loss_fn` is given first: the model's outputs for a batch."""
        args, kwargs, _ = parted(batch)
        return logits_of(functional_call(self.model, self.space.unflatten(theta), args, kwargs))

    def loss_at(self, outputs: Any, batch: Any) -> tuple[Tensor, int]:
        """The batch's sum and count as a function of the outputs; only with a `loss_fn`."""
        targets = parted(batch)[2]
        terms = targets.numel() if isinstance(targets, Tensor) and targets.ndim else num_examples(batch)
        return self.loss_fn(outputs, targets) * terms, terms

    @property
    def has_batch_loss(self) -> bool:
        """Whether the loss is a `batch_loss`, which calls the model itself."""
        return self._batch_loss is not None

    def context(self) -> AbstractContextManager[None]:
        """Around every evaluation: only kernels that can be differentiated twice."""
        return differentiable_kernels(self.model)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        """Mean loss (float64 scalar, summed as in `Products.value`) and accuracy."""
        tally = Tally()

        def sums() -> Sums:
            total, count = torch.zeros((), dtype=torch.float64, device=theta.device), 0.0
            for batch in self.batches:
                part, terms = self(theta, batch, tally)
                total += part
                count += float(terms)
            return [total, count, float(tally.num_right), tally.num_targets], []

        with self.context(), torch.no_grad():
            (total, count, num_right, num_targets), _ = over_ranks(self.ranks, "a value and an accuracy", sums, theta)
            return total / count, num_right / num_targets if num_targets else None

    def evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean losses (b,) float64 and accuracies (b,) or None at the rows of thetas (b, p), by `torch.vmap`."""

        def sums() -> Sums:
            zeros = torch.zeros(len(thetas), dtype=torch.float64, device=thetas.device)
            total, count, right, num_targets = zeros.clone(), zeros.clone(), zeros.clone(), 0
            for batch in self.batches:
                tally = Tally()

                def one(theta: Tensor, batch: Any = batch, tally: Tally = tally) -> tuple[Tensor, Tensor, Tensor]:
                    part, terms = self(theta, batch, tally)
                    return part, torch.as_tensor(terms, device=theta.device), torch.as_tensor(tally.num_right)

                parts, terms, num_right = torch.vmap(one)(thetas)
                total += parts
                count += terms
                right += num_right.to(right)
                num_targets += tally.num_targets
            return [num_targets], [total, count, right]

        with self.context(), torch.no_grad():
            (num_targets,), (total, count, right) = over_ranks(self.ranks, "values and accuracies", sums, thetas)
            return total / count, right / num_targets if num_targets else None

    def mean(self, theta: Tensor) -> Tensor:
        """Mean loss (scalar), differentiable in theta: all batches in one graph."""
        with self.context():
            parts, counts = zip(*(self(theta, batch) for batch in self.batches), strict=True)
            return torch.stack(parts).sum() / sum(float(count) for count in counts)

    def in_double(self) -> ModelLoss:
        """The same loss in float64: weights, buffers, floating-point data, and a loss function that is a module."""
        other = copy.copy(self)
        other.model = widened(copied(self.model), torch.float64)
        other.space, other.theta0 = ParameterSpace(other.model), self.theta0.double()
        if isinstance(self.loss_fn, nn.Module):
            other.loss_fn = widened(copy.deepcopy(self.loss_fn), torch.float64)
        other.batches = [tree_map(lambda leaf: leaf.double() if _is_real(leaf) else leaf, b) for b in self.batches]
        return other

    def model_at(self, theta: Tensor) -> nn.Module:
        """A copy of the private copy, with the weights theta (p,)."""
        with torch.inference_mode(False), torch.no_grad():
            model = copied(self.model)
            weights = self.space.unflatten(theta)
            for name, parameter in model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        return model

    def restricted(self, names: Collection[str], theta: Tensor) -> ModelLoss:
        """The same loss as a function of the named parameters alone, the others fixed as in theta (p,)."""
        other = copy.copy(self)
        other.model = self.model_at(theta)
        for name, parameter in other.model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in names)
        other.space = ParameterSpace(other.model)
        other.theta0 = other.space.flatten(other.model)
        return other

    def _check_classes(self) -> None:
        """Targets of the default cross-entropy: one integer per output, in the range of the outputs."""
        batches = iter(self.batches)
        batch = next(batches)
        targets = parted(batch)[2]
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
            received = f"have dtype {getattr(targets, 'dtype', type(targets).__name__)}"
            remedy = "Pass loss_fn=F.mse_loss (or another); class targets must be integers: targets.long()."
            raise ValueError(explain("targets", received, "integer classes, the loss_fn being cross-entropy", remedy))
        with self.context(), torch.no_grad():
            outputs = attempt(lambda: self.outputs(self.theta0.clone(), batch), batch)
        if not isinstance(outputs, Tensor) or outputs.ndim < 2:
            received = f"gives outputs of shape {tuple(getattr(outputs, 'shape', ()))}"
            raise ValueError(
                explain("model", received, "(n, classes) for cross-entropy", "Pass loss_fn= or batch_loss=.")
            )
        if outputs.shape[:1] + outputs.shape[2:] != targets.shape:
            received = f"have shape {tuple(targets.shape)}, the outputs {tuple(outputs.shape)}"
            expected = "targets (n, ...) for outputs (n, classes, ...)"
            remedy = "Reshape the targets; outputs (n, length, classes) need loss_fn= or batch_loss=."
            raise ValueError(explain("targets", received, expected, remedy))
        for batch in self.batches:
            targets = parted(batch)[2]
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= outputs.shape[1]:
                remedy = "Check the labels; ignored ones (-100) need batch_loss=, which returns (sum, count)."
                expected = f"0 to {outputs.shape[1] - 1}, the model's {outputs.shape[1]} outputs"
                raise ValueError(explain("targets", f"range from {low} to {high}", expected, remedy))

    def _check_loss(self, *, may_weigh: bool) -> None:
        """One watched evaluation of the first micro-batch: is the loss a finite function of the weights, and a mean?"""
        batch = next(iter(self.batches))
        before = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)
        buffers = {name: tensor.clone() for name, tensor in self.model.named_buffers()}
        results: list[Any] = []
        with self.context(), torch.enable_grad():
            point = self.theta0.clone().requires_grad_()
            draws = draws_so_far()
            found = findings(self.model, lambda: results.append(attempt(lambda: self(point, batch), batch)))
            if draws_so_far() != draws:
                found.append(Finding("random", "", self.space.owner, "numpy.random or random"))
            _refuse_impure(found, self.mode)
            total = attempt(lambda: self._checked_sum(results[0], point), batch)
        check_finite("the loss at theta0", total, remedy="Check the weights and loss_fn for overflow or log(0).")
        changed = [name for name, buffer in self.model.named_buffers() if not _same(buffer, buffers[name])]
        if changed:
            remedy = 'Use mode="eval", or make the forward pass leave its buffers alone.'
            raise ValueError(
                explain("model", f"changes its buffers {changed} when run", "a function of the weights", remedy)
            )
        if not _same(point, self.theta0) or not all(map(_same, tree_leaves(batch), tree_leaves(before))):
            received = "writes into its weights or its inputs when run"
            remedy = "Make that operation out of place, or start with inputs.clone()."
            raise ValueError(explain("model", received, "a function of the weights", remedy))
        if self._batch_loss is None:
            # A loss that weighs or ignores some classes shows only on batches that hold them.
            may_weigh = may_weigh and not any(map(_is_real, tree_leaves(parted(batch)[2])))
            for part in self.batches if may_weigh else [batch]:
                self._check_mean(part)
            probe = _one_of_each(self.batches) if may_weigh else None  # sorted data: each batch holds one class
            if probe is not None:
                self._check_mean(probe)
        kinks = [str(finding) for finding in found if finding.kind == "kinked"]
        if kinks:
            message = (
                f"the loss is not smooth: {'; '.join(kinks)}. Its Hessian ignores the kinks; use sigmoid, SiLU or GELU."
            )
            warnings.warn(NotSmoothWarning(message), stacklevel=4)  # at the line that makes the Objective

    def _checked_sum(self, result: Any, point: Tensor) -> Tensor:
        """The sum that the loss returned for one batch, if it returned (sum, count) and used the weights, `point`."""
        is_batch_loss = self._batch_loss is not None
        name = "batch_loss" if is_batch_loss else "loss_fn"
        is_pair = isinstance(result, tuple) and len(result) == 2
        total: Any
        count: Any
        total, count = result if is_pair else (None, None)
        if isinstance(count, Tensor) and count.numel() == 1:
            count = count.item()
        is_count = isinstance(count, numbers.Real) and not isinstance(count, bool) and 0 < float(count) < math.inf
        if not (is_count and _is_real(total) and total.ndim == 0):
            kind = f"shape {tuple(total.shape)}" if isinstance(total, Tensor) else f"a {type(total).__name__}"
            received = f"returned {kind if is_pair else 'no pair (sum, count)'}" + f", count {count!r}" * is_pair
            expected = "a scalar tensor" + (" and a positive count" if is_batch_loss else ", the mean")
            remedy = (
                "Sum over the batch, and count the terms of that sum." if is_batch_loss else "Use reduction='mean'."
            )
            raise ValueError(explain(name, received, expected, remedy))
        gradient = torch.autograd.grad(total, point, allow_unused=True)[0] if total.requires_grad else None
        if gradient is None:
            received = "returned a value that does not depend on the weights"
            remedy = "Use the model that batch_loss is given, not one from outside; no torch.no_grad(), no detach()."
            raise ValueError(explain(name, received, "a differentiable function of the weights", remedy))
        if _reaches_others(total, point):
            received = "uses trainable tensors that are not the given model's (their gradient would be lost)"
            remedy = "Use the model that batch_loss is given; freeze other parameters: requires_grad_(False)."
            raise ValueError(explain(name, received, "a function of this model's weights alone", remedy))
        return cast(Tensor, total.detach())

    def _check_mean(self, batch: Any) -> None:
        """loss_fn must be the mean over the targets: 1 + (n - 1) examples must add up to n."""
        n = num_examples(batch)
        parts = [some_of(batch, slice(0, 1)), some_of(batch, slice(1, n)), batch]
        if n >= 2 and parts[0] is not None:
            with self.context(), torch.no_grad():
                evaluate = functools.partial(self, self.theta0)
                first, rest, total = (attempt(functools.partial(evaluate, part), part)[0] for part in parts)
                error = float((first + rest - total).abs())
            if not error <= 1e-3 * float(first.abs() + rest.abs()) + 1e-6 * n:  # NaN: all of one part is ignored
                received = (
                    f"is not the mean over the targets (1 + {n - 1} examples differ from {n} together by {error:.3g})"
                )
                remedy = (
                    "Use reduction='mean'; with ignore_index or class weights pass batch_loss=, "
                    "a function (model, batch) -> (sum, count)."
                )
                raise ValueError(explain("loss_fn", received, "the mean loss over the targets", remedy))


def _reaches_others(total: Tensor, point: Tensor) -> bool:
    """Whether the autograd graph of `total` ends in trainable tensors other than `point`."""
    seen, stack = set(), [total.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and variable is not point:
            return True
        stack += [following for following, _ in node.next_functions]
    return False


def _one_of_each(batches: Iterable[Any]) -> Any | None:
    """A batch of the first example of each of the first 64 batches; None where they can't be joined."""
    firsts = [some_of(batch, slice(0, 1)) for batch in itertools.islice(batches, 64)]
    return None if len(firsts) < 2 or any(first is None for first in firsts) else joined(firsts)


class _Applied(nn.Module):
    """`batch_loss` as a module, so that theta reaches every part of the model, however `batch_loss` calls it."""

    def __init__(self, model: nn.Module, batch_loss: BatchLoss):
        super().__init__()
        self.model, self.batch_loss = model, batch_loss

    def forward(self, batch: Any) -> Any:
        return self.batch_loss(self.model, batch)


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _same(a: Any, b: Any) -> bool:
    return not isinstance(a, Tensor) or (a.shape == b.shape and torch.equal(a, b))


def _refuse_impure(found: list[Finding], mode: str) -> None:
    """An error for what is random or mixes examples, with the way out of this mode."""
    eval_instead = 'Use mode="eval", or put that layer into eval mode'
    for finding in found:
        if finding.kind == "random":
            remedy = f"{eval_instead}." if mode == "as_is" else "Draw its numbers once, outside the loss."
            raise ValueError(
                explain("model", f"is random: {finding}", "a loss that is a function of the weights", remedy)
            )
        if finding.kind == "batch":
            way_out = eval_instead if mode == "as_is" else "Give it running statistics"
            remedy = f"{way_out}: its statistics mix the examples of a batch."
            expected = "a loss that is a sum over examples"
            raise ValueError(explain("model", f"depends on the batch: {finding}", expected, remedy))
