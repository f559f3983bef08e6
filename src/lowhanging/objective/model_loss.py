"""A copied model, a loss and a batch -> (sum, number of terms); where the outputs end; the mean of a batch in training.

A loss is only accepted if it is a function of the weights alone (nothing random, no statistics over the batch, no
buffer that moves) and a sum over examples: one watched evaluation here, judged in `checks.py`.

The Gauss-Newton matrix J' B J needs the outputs z as a function of theta, whose Jacobian is J, and the loss as a
function of z, whose Hessian is B. With a `loss_fn` they are apart already. A `batch_loss` is cut where it calls the
model: a second run, in which that call returns a given z, is the loss as a function of z.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from lowhanging.errors import NotSmoothWarning, argument_message, check_choice, check_finite, warn
from lowhanging.objective import checks
from lowhanging.objective.batches import (
    MAX_BATCHES,
    Batches,
    Tally,
    attempt,
    cloned,
    logits_of,
    num_examples,
    some_of,
    split_batch,
)
from lowhanging.objective.checkpoints import CalibrationData, moving_buffers, recalibrated, same_values, tracked_buffers
from lowhanging.objective.cost import DEFAULT_MICRO_BATCH, Counting, micro_batch
from lowhanging.objective.distributed import Ranks, Sums, over_ranks
from lowhanging.objective.hvp import vjp_of
from lowhanging.objective.kernels import ONE_AT_A_TIME, GraphWhereNeeded, differentiable_kernels, is_recurrent
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.objective.private_copy import (
    attributes_put_back,
    computed_tensors,
    copied,
    own_function,
    private_copy,
    widened,
)
from lowhanging.objective.random_state import draws_so_far, untouched_random_state

LossFn = Callable[[Any, Any], Tensor]
BatchLoss = Callable[[Any, Any], tuple[Tensor, Any]]

MicroBatch = int | Literal["measure"]
_SAMPLE, _SAMPLE_SECONDS = 32, 0.02  # examples of a sample: so many, or what a product takes so long for
_MOST_WEIGHTS = 10_000_000  # of models that are copied in float64 without being asked
_OF_TORCH = {"_flat_weights", "_flat_weight_refs"}  # attributes: recurrent layers list their weights anew
_called = functools.partial(functional_call, tie_weights=False)


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
        micro_batch: MicroBatch | None,
        max_batches: int | None = MAX_BATCHES,
        ranks: Ranks | None = None,
        shard: tuple[int, int] | None = None,
    ):
        _check_one_loss(loss_fn, batch_loss)
        self.model = private_copy(model, mode, device)
        self._rewrites, self._is_gradient_checked = False, False
        self._puts_back, self._graphs = True, GraphWhereNeeded()
        self._is_recurrent = is_recurrent(self.model)  # asked around every product
        self.space = ParameterSpace(self.model)
        self.theta0 = self.space.flatten(self.model)
        self.mode = mode
        self.loss_fn = own_function("loss_fn", loss_fn, self.space.device) or F.cross_entropy
        self._is_default = loss_fn is None and batch_loss is None
        self._batch_loss = own_function("batch_loss", batch_loss, self.space.device)
        self.has_batch_loss = batch_loss is not None
        function = self.loss_fn if batch_loss is None else batch_loss
        self.name = getattr(function, "__name__", type(function).__name__)
        self.ranks = ranks
        is_measured = isinstance(micro_batch, str)
        if is_measured:
            check_choice("micro_batch", micro_batch, ("measure",))
            if batch_loss is not None:
                received = "is 'measure' with a batch_loss, which may know the other examples of its batch"
                remedy = "Pass how many examples, or leave it out."
                raise ValueError(argument_message("micro_batch", received, "a number, or a loss_fn", remedy))
        size = None if isinstance(micro_batch, str) else micro_batch
        self._wanted = size
        batches = Batches(
            data, device=self.space.device, dtype=self.space.dtype, micro_batch=size, cache=cache, shard=shard,
            # A batch_loss may know the other examples of its batch: it gets the batches as they come.
            size_of=(self._quickest if is_measured else self._micro_batch) if batch_loss is None else None,
            max_batches=max_batches,
        )  # fmt: skip
        self.batches: Iterable[Any] = batches
        self._as_yielded = batches.as_yielded
        with ONE_AT_A_TIME, untouched_random_state(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using a (target|input) size")  # an error here, if they broadcast
            if loss_fn is None and batch_loss is None:
                checks.check_classes(batches.first_as_it_came(), batches, self._outputs_at_start)
            kinks = self._check_loss(batches.first_as_it_came(), computed_tensors(model, self.model))
            if loss_fn is not None:
                self._check_mean(batches.as_they_came())
            if ranks is None:
                self.settle_cut()
        self.num_examples = batches.num_examples
        self.is_smooth = not kinks
        if kinks:
            warn(NotSmoothWarning(kinks))

    def __call__(self, theta: Tensor, batch: Any, tally: Tally | None = None) -> tuple[Tensor, Any]:
        """The batch's sum (scalar, differentiable in theta) and count; outputs are counted in `tally` if given."""
        if self._batch_loss is not None:
            named = {f"model.{name}": weight for name, weight in self.space.weights_of(theta).items()}
            applied = _Applied(self.model, self._batch_loss)
            run = functools.partial(_called, applied, named, (self._as_yielded(batch),))
            return cast(tuple[Tensor, Any], self._run(run))
        outputs = self.outputs(theta, batch)
        if tally is not None:
            tally.add(outputs, split_batch(batch)[2])
        return self.loss_at(outputs, batch)

    def _micro_batch(self, examples: Any) -> int:
        """How many of the examples to evaluate at once: see `cost.micro_batch`."""
        works = []
        try:
            for num in (2, 4):
                part = tree_map(lambda leaf, num=num: leaf[:num], examples)
                with self.context(), torch.no_grad(), untouched_random_state(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    with Counting() as counting:
                        self(self.theta0.clone(), part)
                works.append(counting.work)
        except Exception:  # what is wrong with the loss or the data is said where the first batch is evaluated
            return DEFAULT_MICRO_BATCH
        two, four = works
        return micro_batch(two, four, self.space.num_params)

    def _quickest(self, examples: Any) -> int:
        """The quickest for a gradient among sizes around `_micro_batch`'s, by a clock."""
        total, start = num_examples(examples), self._micro_batch(examples)
        seconds: dict[int, float] = {}
        for size in sorted({max(1, min(total, int(start * factor))) for factor in (0.25, 0.5, 1, 2, 4)}):
            part = tree_map(lambda leaf, size=size: leaf[:size], examples)
            runs = []
            for _ in range(3):  # the first loads what later ones find
                begun = time.perf_counter()
                with contextlib.suppress(Exception):  # as above
                    self._slope(self.theta0)(part)
                runs.append(time.perf_counter() - begun)
            seconds[size] = min(runs[1:]) / size
        return min(seconds, key=seconds.__getitem__)

    def outputs(self, theta: Tensor, batch: Any) -> Any:
        """What `loss_fn` is given first: the model's outputs for a batch, as they are; the default loss, its logits."""
        args, kwargs, _ = split_batch(batch)
        outputs = self._run(functools.partial(_called, self.model, self.space.weights_of(theta), args, kwargs))
        return logits_of(outputs) if self._is_default else outputs

    def _run(self, call: Callable[[], Any]) -> Any:
        """What the model or the batch_loss returns; nothing that it leaves on the model stays."""
        with attributes_put_back(self.model) if self._puts_back else contextlib.nullcontext():
            return self._graphs(call)

    def loss_at(self, outputs: Any, batch: Any) -> tuple[Tensor, int]:
        """The batch's sum and count as a function of the outputs; only with a `loss_fn`."""
        targets = split_batch(batch)[2]
        terms = _num_terms(targets, batch)
        return self.loss_fn(outputs, targets) * terms, terms

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Around every evaluation: one thread at a time in the model, and only kernels that can be differentiated."""
        with ONE_AT_A_TIME, differentiable_kernels(self._is_recurrent, rewrite=self._rewrites):
            yield

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]:
        """Mean loss (float64 scalar, summed as in `Products.value`) and accuracy."""

        def sums() -> Sums:
            total, count, tally = torch.zeros((), dtype=torch.float64, device=theta.device), 0.0, Tally()
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
        other = self.widened()
        other.batches = _InDouble(self.batches)
        return other

    def widened(self) -> ModelLoss:
        """`in_double` without the batches: a function of batches in float64."""
        other = copy.copy(self)
        other.model = widened(copied(self.model), torch.float64)
        other.space, other.theta0 = ParameterSpace(other.model), self.theta0.double()
        for name in ("loss_fn", "_batch_loss"):
            function = getattr(self, name)
            if isinstance(function, nn.Module):
                setattr(other, name, widened(copied(function), torch.float64))
        return other

    def check_gradient(self) -> None:
        """Refuse, once, a loss whose gradient in torch is not the derivative of its value.

        On some examples of the first batch, near theta0, in float64; nothing is said of losses that take no float64.
        """
        if self._is_gradient_checked or not self.can_be_widened:
            return
        batch = widened_batch(self.sample(next(iter(self.batches))))
        try:
            wide = self.widened()
            with checks.Precision() as watch, wide.context(), torch.enable_grad():
                wide(wide.theta0.clone().requires_grad_(), batch)
            is_wide = watch.dtype == torch.float64
        except Exception:  # whatever a model says to another precision
            is_wide = False
        if is_wide:
            with wide.context():
                checks.check_derivative("the loss", lambda at: wide(at, batch)[0], wide._near_theta0())
        self._is_gradient_checked = True

    def sample(self, batch: Any) -> Any:
        """A few examples of a batch, fewer where each takes long; all of them where the model takes no fewer."""
        part = None if self.has_batch_loss else some_of(batch, slice(0, self._sample_size))
        if part is None:
            return batch
        try:
            with self.context(), torch.no_grad():
                is_usable = bool(self(self.theta0.clone(), part)[0].isfinite())
        except Exception:  # the model takes whole batches only
            is_usable = False
        return part if is_usable else batch

    def excerpt(self) -> ModelLoss:
        """The same loss of a few examples; itself where there are few."""
        if self.num_examples <= 2 * _SAMPLE:
            return self
        other = copy.copy(self)
        other.batches = [self.sample(next(iter(self.batches)))]
        return other

    @property
    def largest_batch(self) -> int | None:
        """Examples in the largest batch; None where batches are read anew on every pass."""
        return self.batches.largest if isinstance(self.batches, Batches) else None

    @property
    def can_be_widened(self) -> bool:
        """Whether a copy in float64 is cheap enough for checks that a user did not ask for."""
        return self.space.num_params <= _MOST_WEIGHTS

    def model_at(self, theta: Tensor) -> nn.Module:
        """A copy of the private copy, with the weights theta (p,)."""
        with torch.inference_mode(False):
            model = copied(self.model)
            self.space.write(theta, model)
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
            raise ValueError(argument_message("buffers", received, expected, remedy))
        if data is None and self.ranks is not None:
            received = f"is missing, and each process ({self.ranks}) has a part of the data"
            remedy = "Pass the same loader on every rank."
            raise ValueError(argument_message("recalibrate_on", received, "data that every process has", remedy))
        batches = self.batches
        if data is not None:
            batches = CalibrationData.of(data, device=self.space.device, dtype=self.space.dtype).batches
        with self.context():
            return recalibrated(self.model_at(theta), self._forward, batches)

    def _forward(self, model: nn.Module, batch: Any) -> Any:
        """What a batch makes a model do, the loss aside where it can be left out."""
        if self._batch_loss is not None:
            return self._batch_loss(model, self._as_yielded(batch))
        args, kwargs, _ = split_batch(batch)
        return model(*args, **kwargs)

    def restricted(self, names: Collection[str], theta: Tensor) -> ModelLoss:
        """The same loss as a function of the named parameters alone, the others fixed as in theta (p,)."""
        other = copy.copy(self)
        other.model = self.model_at(theta)
        ties = self.space.ties
        for name, parameter in other.model.named_parameters():
            first = ties[name].name if name in ties else name
            parameter.requires_grad_(parameter.requires_grad and first in names)
        other.space = ParameterSpace(other.model)
        other.theta0 = other.space.flatten(other.model)
        return other

    def _outputs_at_start(self, batch: Any) -> Any:
        with self.context(), torch.no_grad():
            return attempt(lambda: self.outputs(self.theta0.clone(), batch), batch)

    def _check_loss(self, batch: Any, stored: Mapping[int, tuple[str, Tensor]]) -> str:
        """One watched evaluation of the first micro-batch: is the loss a finite function of the weights?

        Returns what to say of kinks, or "".
        """
        before, point = cloned(batch), self.theta0.clone().requires_grad_()
        buffers = {name: tensor.clone() for name, tensor in self.model.named_buffers()}
        results: list[Any] = []

        def evaluate() -> None:
            with Counting() as counting:
                results.append(attempt(lambda: self(point, batch), batch))
            seconds = counting.work.gradient.product / num_examples(batch)
            self._sample_size = max(2, min(_SAMPLE, int(_SAMPLE_SECONDS / seconds)))

        with self.context(), torch.enable_grad():
            draws = draws_so_far()
            with self._leaving() as left:
                found = checks.findings(self.model, evaluate, stored=stored, theta=point)
            if draws_so_far() != draws:
                found.append(checks.Finding("random", "", self.space.owner, "numpy.random or random"))
            checks.refuse_impure(found, self.mode)
            if left - _OF_TORCH:
                self._check_state(batch, left)
            self._rewrites = any(finding.kind == "rewrite" for finding in found)
        with self.context(), torch.enable_grad():
            if self._rewrites:
                evaluate()
            total = attempt(lambda: checks.checked_sum(results[-1], point, is_batch_loss=self.has_batch_loss), batch)
        check_finite("the loss at theta0", total, remedy="Check the weights and loss_fn for overflow or log(0).")
        changed = [name for name, buffer in self.model.named_buffers() if not _same(buffer, buffers[name])]
        if changed:
            received = f"changes its buffers {changed} when run"
            remedy = 'Use mode="eval", or make the forward pass leave its buffers alone.'
            raise ValueError(argument_message("model", received, "a function of the weights", remedy))
        if not _same(point, self.theta0) or not all(map(_same, tree_leaves(batch), tree_leaves(before))):
            received = "writes into its weights or its inputs when run"
            remedy = "Make that operation out of place, or start with inputs.clone()."
            raise ValueError(argument_message("model", received, "a function of the weights", remedy))
        return _kinks([finding for finding in found if finding.kind == "kinked"])

    def _check_state(self, batch: Any, left: set[str]) -> None:
        """Refuse a model whose value changes with what an earlier forward pass has left on it."""
        with torch.no_grad(), self._leaving():
            first, second = (attempt(lambda: self(self.theta0.clone(), batch), batch)[0] for _ in range(2))
        if isinstance(first, Tensor) and not torch.allclose(first, second, rtol=1e3 * torch.finfo(first.dtype).eps):
            received = f"depends on what its last forward pass left on it (attributes {sorted(left)})"
            remedy = "Pass that state as an input, or start each forward pass from the same one."
            raise ValueError(argument_message("model", received, "a function of the weights", remedy))

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[set[str]]:
        """What passes leave on the model stays until the end of this block; yields what that was."""
        with attributes_put_back(self.model) as left:
            self._puts_back = False
            try:
                yield left
            finally:
                self._puts_back, self._graphs = True, GraphWhereNeeded()

    def settle_cut(self) -> None:
        """Use micro-batches only where they give the value and the gradient that the batches give as they came.

        At a point near theta0, where no gradient is zero by construction. All ranks call it.
        """
        batches = cast(Batches, self.batches)
        ranks = self.ranks if batches.is_split else None
        if batches.is_recut and not self._is_same_sum(batches, ranks):
            if self._wanted is not None:
                received = f"is {self._wanted}, which changes the loss: it is no sum over examples along dimension 0"
                remedy = "Leave it out: the batches are then used as they come."
                raise ValueError(argument_message("micro_batch", received, "a loss whose batches can be cut", remedy))
            if ranks is None:
                batches.use_as_they_came()
            else:
                ranks.highest("the batches as they came", batches.use_as_they_came, self.theta0)
        batches.forget_what_came()

    def _is_same_sum(self, batches: Batches, ranks: Ranks | None) -> bool:
        theta, sizes = self._near_theta0(), self.space.sizes
        try:
            if checks.is_same_sum(batches, batches.as_they_came(), self._slope(theta), sizes, ranks):
                return True
        except Exception:  # the model takes its own batches only, and says so in words of its own
            if ranks is not None:
                raise
            return False
        if theta.dtype == torch.float64:
            return False
        try:  # rounding may have decided
            mine, theirs = _InDouble(batches), _InDouble(batches.as_they_came())
            return checks.is_same_sum(mine, theirs, self.widened()._slope(theta.double()), sizes, ranks)
        except Exception:  # the loss does not run in float64
            return False

    def _near_theta0(self) -> Tensor:
        """One percent of its length away, in a direction drawn with a seed of its own."""
        theta = self.theta0
        drawn = torch.randn(len(theta), generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(theta)
        return theta + drawn * (0.01 * (float(theta.norm()) or 1.0) / float(drawn.norm()))

    def _slope(self, theta: Tensor) -> checks.Slope:
        def slope(batch: Any) -> tuple[float, float, Tensor]:
            with self.context(), torch.enable_grad():
                point = theta.clone().requires_grad_()
                total, count = attempt(lambda: self(point, batch), batch)
                return float(total.detach()), float(count), vjp_of([total], [point], [torch.ones_like(total)])[0]

        return slope

    def _check_mean(self, batches: Iterable[Any]) -> None:
        """Whether `loss_fn` is a mean over its targets: in every batch, and of every two of them together."""
        theta, first = self._near_theta0(), None
        for batch in batches:
            with self.context(), torch.no_grad():
                outputs = attempt(functools.partial(self.outputs, theta, batch), batch)
            targets = split_batch(batch)[2]
            pair = self._what_is_cut(outputs, targets), targets
            if not checks.check_terms(pair, self._sum_of_outputs) and not checks.is_single(pair):
                continue
            if first is None:
                first = pair
            else:
                checks.check_together(first, pair, self._sum_of_outputs)

    def _what_is_cut(self, outputs: Any, targets: Any) -> Any:
        """The logits alone of an output object that holds more (a cache, which can't be cut), if loss_fn takes that."""
        if isinstance(outputs, Mapping) and len(outputs) > 1 and isinstance(logits_of(outputs), Tensor):
            with contextlib.suppress(Exception):
                kind: Any = type(outputs)
                alone = kind(logits=logits_of(outputs))
                self._sum_of_outputs(alone, targets)
                return alone
        return outputs

    def _sum_of_outputs(self, outputs: Any, targets: Any) -> Tensor:
        with self.context():
            return self.loss_at(outputs, (outputs, targets))[0]


def _kinks(found: list[checks.Finding]) -> str:
    """What a warning says of operations that are not smooth; "" if there are none."""
    if not found:
        return ""
    of_loss = [finding.class_name == checks.LOSS_FUNCTION for finding in found]
    ways_out = ["sigmoid, SiLU or GELU"] * (not all(of_loss)) + ["a smooth loss_fn"] * any(of_loss)
    listed = "; ".join(map(str, found))
    return (
        f"the loss is not smooth: {listed}. That is fine for slices, which only evaluate, and for eigenpairs, steering "
        "and Gauss-Newton, which are of the curvature between the kinks; not for polish and find_canyons, which need a "
        f"smooth minimum: for those use {', and '.join(ways_out)}."
    )


def _num_terms(targets: Any, batch: Any) -> int:
    """Of a `loss_fn`, which is a mean over them."""
    return targets.numel() if isinstance(targets, Tensor) else num_examples(batch)


def _check_one_loss(loss_fn: LossFn | None, batch_loss: BatchLoss | None) -> None:
    if loss_fn is not None and batch_loss is not None:
        received, remedy = "and batch_loss are both given", "Leave one of them out."
        raise ValueError(argument_message("loss_fn", received, "one of the two", remedy))


def widened_batch(batch: Any) -> Any:
    """The batch, its floating-point tensors in float64."""
    return tree_map(lambda leaf: leaf.double() if checks.is_real(leaf) else leaf, batch)


class _InDouble:
    """Batches in float64, each widened when it is read: a copy of one of them at a time."""

    def __init__(self, batches: Iterable[Any]):
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return map(widened_batch, self._batches)


class _Applied(nn.Module):
    """`batch_loss` as a module, so that theta reaches every part of the model, however `batch_loss` calls it."""

    def __init__(self, model: nn.Module, batch_loss: BatchLoss):
        super().__init__()
        self.model, self.batch_loss = model, batch_loss

    def forward(self, batch: Any) -> Any:
        return self.batch_loss(self.model, batch)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    return not isinstance(a, Tensor) or (a.shape == b.shape and torch.equal(a, b))


class BatchMean:
    """(model, batch) -> (mean loss, number of terms) while a network trains, with a `loss_fn` or a `batch_loss`.

    With `check`, targets that do not fit are refused by name, and not in one of torch's kernels.
    """

    def __init__(self, loss_fn: LossFn | None, batch_loss: BatchLoss | None):
        _check_one_loss(loss_fn, batch_loss)
        self.loss_fn, self.batch_loss = loss_fn, batch_loss

    def __call__(self, model: nn.Module, batch: Any, tally: Tally | None, *, check: bool) -> tuple[Tensor, float]:
        if not check:
            return self._evaluate(model, batch, tally, check=False)
        mean, terms = attempt(lambda: self._evaluate(model, batch, tally, check=True), batch)
        if not isinstance(mean, Tensor) or mean.numel() != 1 or not terms > 0:
            kind = f"shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else type(mean).__name__
            received = f"gave {kind} over {terms:g} terms"
            name, remedy = ("batch_loss", "Return (sum, count).") if self.batch_loss else ("loss_fn", "Take the mean.")
            raise ValueError(argument_message(name, received, "one number over at least one term", remedy))
        return mean, terms

    def _evaluate(self, model: nn.Module, batch: Any, tally: Tally | None, *, check: bool) -> tuple[Tensor, float]:
        if self.batch_loss is not None:
            total, count = self.batch_loss(model, batch)
            return total / count, float(count)
        args, kwargs, targets = split_batch(batch)
        outputs = model(*args, **kwargs)
        outputs = logits_of(outputs) if self.loss_fn is None else outputs
        if check and self.loss_fn is None:
            checks.check_class_targets(targets)
            checks.check_class_range(targets, checks.num_classes(outputs))
        if tally is not None:
            tally.add(outputs, targets)
        return (self.loss_fn or F.cross_entropy)(outputs, targets), float(_num_terms(targets, batch))
