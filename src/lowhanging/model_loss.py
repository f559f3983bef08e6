"""How does a model, a loss and a batch become (sum, count)?

`ModelLoss` holds a private copy of the user's model and the batches; it is the function (theta, batch) -> (sum, count)
that `products.py` sums. A loss is only accepted if it is a function of the weights alone (nothing random, no statistics
over the batch, no buffer that moves) and a sum over examples: one watched evaluation here, judged in `loss_checks.py`.
"""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from lowhanging.batch_parts import Tally, attempt, logits_of, parted
from lowhanging.batches import Batches, draws_so_far, num_examples, untouched_random_state
from lowhanging.buffers import CalibrationData, moving_buffers, recalibrated, same_values, tracked_buffers
from lowhanging.errors import NotSmoothWarning, check_finite, explain
from lowhanging.layers import LOSS_FUNCTION, Finding, differentiable_kernels, findings
from lowhanging.loss_checks import check_classes, check_mean, check_terms, checked_sum, firsts, is_real, refuse_impure
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
        with untouched_random_state(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using a (target|input) size")  # an error here, if they broadcast
            if loss_fn is None and batch_loss is None:
                check_classes(self.batches, self._outputs_at_start)
            kinks = self._check_loss(may_weigh=loss_fn is not None)
        if kinks:
            warnings.warn(NotSmoothWarning(kinks), stacklevel=3)  # at the line that makes the Objective

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
        other.batches = [tree_map(lambda leaf: leaf.double() if is_real(leaf) else leaf, b) for b in self.batches]
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

    @functools.cached_property
    def moving_buffers(self) -> tuple[str, ...]:
        """Names of the buffers that a forward pass in training mode writes, such as BatchNorm's statistics."""
        with self.context():
            return moving_buffers(self.model, self._forward, lambda: next(iter(self.batches)))

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> ModelLoss:
        """The same loss of a model with these buffers; itself where they are its own."""
        own = dict(self.model.named_buffers())
        if all(same_values(own[name], value) for name, value in buffers.items()):
            return self
        other = copy.copy(self)
        other.model = copied(self.model)
        with torch.no_grad():
            for name, buffer in other.model.named_buffers():
                if name in buffers and not same_values(own[name], buffers[name]):
                    buffer.copy_(buffers[name])
        return other

    def recalibrated(self, theta: Tensor, data: Any = None) -> dict[str, Tensor]:
        """The buffers at theta (p,), their statistics recomputed on `data`, by default on the loss's own batches."""
        fixed = [name for name in self.moving_buffers if name not in tracked_buffers(self.model)]
        if fixed:
            received = f"is 'recalibrate', and {fixed[:3]} of {self.space.owner} have no way to start anew"
            expected = "statistics of layers with reset_running_stats() and momentum, as torch's norms have"
            remedy = "Pass buffers='fixed', or points with their buffers."
            raise ValueError(explain("buffers", received, expected, remedy))
        if data is None and self.ranks is not None:
            received = f"is missing, and each process ({self.ranks}) has a part of the data"
            remedy = "Pass the same loader on every rank."
            raise ValueError(explain("recalibrate_on", received, "data that every process has", remedy))
        if data is None:
            batches = self.batches
        else:
            batches = CalibrationData.of(data, device=self.space.device, dtype=self.space.dtype).batches
        with self.context():
            return recalibrated(self.model_at(theta), self._forward, batches)

    def _forward(self, model: nn.Module, batch: Any) -> Any:
        """What a batch makes a model do, the loss aside where it can be left out."""
        if self._batch_loss is not None:
            return self._batch_loss(model, self._as_yielded(batch))
        args, kwargs, _ = parted(batch)
        return model(*args, **kwargs)

    def restricted(self, names: Collection[str], theta: Tensor) -> ModelLoss:
        """The same loss as a function of the named parameters alone, the others fixed as in theta (p,)."""
        other = copy.copy(self)
        other.model = self.model_at(theta)
        for name, parameter in other.model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in names)
        other.space = ParameterSpace(other.model)
        other.theta0 = other.space.flatten(other.model)
        return other

    def _outputs_at_start(self, batch: Any) -> Any:
        """The outputs at theta0."""
        with self.context(), torch.no_grad():
            return attempt(lambda: self.outputs(self.theta0.clone(), batch), batch)

    def _sum_at_start(self, batch: Any) -> Tensor:
        """The sum at theta0."""
        with self.context(), torch.no_grad():
            total, _ = attempt(functools.partial(self, self.theta0, batch), batch)
        return cast(Tensor, total)

    def _check_loss(self, *, may_weigh: bool) -> str:
        """One watched evaluation of the first micro-batch: is the loss a finite function of the weights, and a mean?

        Returns what to say of kinks, or "".
        """
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
            refuse_impure(found, self.mode)
            total = attempt(lambda: checked_sum(results[0], point, is_batch_loss=self.has_batch_loss), batch)
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
            self._check_mean(batch, may_weigh)
        return _kinks([finding for finding in found if finding.kind == "kinked"])

    def _check_mean(self, batch: Any, may_weigh: bool) -> None:
        """Whether the loss is a mean over examples, on the first batch; on all of them if it may weigh classes."""
        check_mean(batch, self._sum_at_start)
        # A loss that weighs or ignores some classes shows only on batches that hold them.
        may_weigh = may_weigh and not any(map(is_real, tree_leaves(parted(batch)[2])))
        everything = itertools.chain(self.batches, firsts(self.batches)) if may_weigh else [batch]
        for part in everything:
            if not check_terms(self._outputs_at_start(part), parted(part)[2], self._sum_of_outputs):
                check_mean(part, self._sum_at_start)

    def _sum_of_outputs(self, outputs: Any, targets: Any) -> Tensor:
        with self.context():
            return self.loss_at(outputs, (outputs, targets))[0]


def _kinks(found: list[Finding]) -> str:
    """What a warning says of operations that are not smooth; "" if there are none."""
    if not found:
        return ""
    of_loss = [finding.class_name == LOSS_FUNCTION for finding in found]
    ways_out = ["sigmoid, SiLU or GELU"] * (not all(of_loss)) + ["a smooth loss_fn"] * any(of_loss)
    listed = "; ".join(map(str, found))
    return f"the loss is not smooth: {listed}. Its Hessian ignores the kinks; use {', and '.join(ways_out)}."


class _Applied(nn.Module):
    """`batch_loss` as a module, so that theta reaches every part of the model, however `batch_loss` calls it."""

    def __init__(self, model: nn.Module, batch_loss: BatchLoss):
        super().__init__()
        self.model, self.batch_loss = model, batch_loss

    def forward(self, batch: Any) -> Any:
        return self.batch_loss(self.model, batch)


def _same(a: Any, b: Any) -> bool:
    return not isinstance(a, Tensor) or (a.shape == b.shape and torch.equal(a, b))
