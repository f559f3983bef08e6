"""How does a network get its weights, and how good was it on every named data set along the way?

One plain loop: shuffled batches, an optimizer, a schedule, and after each epoch every evaluation set, measured by the
`Objective` that the rest of the library would measure it with. It is the only function that writes to the user's model,
so it keeps a copy of the weights after every epoch: whatever ends a run early (NaN, an error in a loss, an interrupt),
the model holds the last epoch that was completed, never a half-updated state that no row of the history describes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from lowhanging.batch_parts import Tally, attempt, logits_of, parted
from lowhanging.batches import num_examples
from lowhanging.errors import (
    NotConvergedError,
    NotSmoothWarning,
    check_count,
    check_device,
    check_real,
    explain,
)
from lowhanging.loss import Loss
from lowhanging.model_loss import BatchLoss, LossFn
from lowhanging.objective import Objective
from lowhanging.parameters import ParameterSpace
from lowhanging.results import load_result, save_result
from lowhanging.shuffled import ShuffledBatches, own_randomness
from lowhanging.training_options import MakeOptimizer, Schedule, as_optimizer, as_schedule, evaluation_sets


@dataclass(frozen=True, eq=False, repr=False)
class TrainingRun:
    """History of one call of `train`: a row per epoch, epoch 0 being the network before training.

    "train" is the mean over the epoch's batches while the weights moved: it lags the other curves by half an epoch, and
    epoch 0 has none (NaN). Every other set is measured in eval mode at the end of the epoch.
    """

    epochs: Tensor  # (e,) int64: 0, 1, ...
    losses: dict[str, Tensor]  # name -> (e,) float64, mean loss; "train" and every evaluation set
    accuracies: dict[str, Tensor]  # name -> (e,) float64 in [0, 1]; only sets with class targets
    checkpoints: Tensor  # (t, p) rows are theta, in ParameterSpace order
    checkpoint_epochs: Tensor  # (t,) int64
    lr: Tensor  # (e,) float64, learning rate with which the epoch began
    seed: int
    seconds: float

    def __repr__(self) -> str:
        rows, scale, unit = (self.accuracies, 100, " %") if self.accuracies else (self.losses, 1, "")
        final = ", ".join(f"{name} {scale * float(row[-1]):.3g}{unit}" for name, row in rows.items())
        kept = f"; {len(self.checkpoints)} checkpoints" if len(self.checkpoints) else ""
        quantity = "accuracy" if self.accuracies else "loss"
        return f"TrainingRun({int(self.epochs[-1])} epochs in {self.seconds:.1f} s; {quantity}: {final}{kept})"

    def save(self, path: str | Path) -> Path:
        """Write to `path` as npz; returns the path written."""
        return save_result(self, path)

    @classmethod
    def load(cls, path: str | Path) -> TrainingRun:
        """Read what `save` wrote."""
        return load_result(cls, path)


def train(
    model: nn.Module,
    data: Any,
    *,
    epochs: int = 60,
    lr: float | None = None,
    batch_size: int = 64,
    optimizer: Literal["adam", "sgd"] | torch.optim.Optimizer | MakeOptimizer = "adam",
    schedule: Literal["cosine", "constant"] | Schedule = "cosine",
    loss_fn: LossFn | None = None,
    batch_loss: BatchLoss | None = None,
    evaluate: Mapping[str, Any] | None = None,
    checkpoints: int | Sequence[int] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> TrainingRun:
    """Train `model` in place, and record the loss and accuracy of every named data set after each epoch.

    The global random states of torch, numpy and `random` are put back afterwards: shuffling, dropout and the reading of
    a loader run on states of their own, set from `seed`. Evaluation sets have no influence on the weights. Train/eval
    flags and the device are left as they were found; gradients are None.

    Args:
        model: Any module.
        data: Tuple `(inputs, targets)` of tensors, a map-style `Dataset`, a `DataLoader`, or an iterable of batches
            that can be read once per epoch; the last two keep their own batches and their own order.
        epochs: Passes over the data, >= 0.
        lr: Learning rate at the start; None is 0.02. An optimizer of your own brings its own: leave this out.
        batch_size: Examples per step, unless `data` brings its own batches; the last batch may be smaller.
        optimizer: "adam", "sgd" (no momentum), an `Optimizer` of this model's parameters, or a callable
            `parameters -> Optimizer`, such as `functools.partial(torch.optim.AdamW, lr=1e-3)`.
        schedule: Factor on the learning rate at each step: "cosine" (from 1 to 0), "constant", or a callable of the
            share of the training that is done, in [0, 1).
        loss_fn: `(outputs, targets) -> mean loss`; None is cross-entropy of integer classes.
        batch_loss: `(model, batch) -> (sum, count)` instead, for other losses and other forms of batches.
        evaluate: Name -> data set, in any form that `Objective` takes, or name -> objective. "train" is taken.
        checkpoints: Keep the weights every so many epochs (0 and the last one included), or after these epochs.
        seed: Of the shuffling and of whatever else is random while training; not of the initial weights.
        device: Where to train; the model goes back afterwards. None: where the model is.
        progress: A bar on stderr; None shows it once the call has taken two seconds.

    Returns:
        The history. `model` holds the trained weights.

    Raises:
        NotConvergedError: the loss or a weight became NaN or infinite. `.result` is the run up to the last finite
            epoch, whose weights the model holds.
        ValueError, TypeError: an argument is out of range, or a data set is empty, not finite, or does not fit the
            model or the loss.

    Whatever else stops it (an error in a loss of yours, an interrupt) is raised as it is, with a note that says which
    epoch's weights the model holds: the last one that was completed.
    """
    loss = _BatchMean(loss_fn, batch_loss)
    batch_size = check_count("batch_size", batch_size, remedy="Pass the examples per step, such as 64.")
    batches = ShuffledBatches(data, batch_size)
    epochs = check_count("epochs", epochs, minimum=0, remedy="Pass the number of passes over the data, such as 60.")
    seed = check_count("seed", seed, minimum=0, remedy="Pass an integer; the same one gives the same run.")
    wanted = _checkpoint_epochs(checkpoints, epochs)
    factor = as_schedule(schedule)
    sets = evaluation_sets(evaluate)
    if not isinstance(model, nn.Module):
        remedy = "Pass the module itself; train writes to its parameters."
        raise TypeError(explain("model", f"is a {type(model).__name__}", "a torch.nn.Module", remedy))
    home = ParameterSpace(model).device
    target = home if device is None else check_device(device)
    flags = {module: module.training for module in model.modules()}
    try:
        model.to(target)
        stepper = as_optimizer(optimizer, [weight for weight in model.parameters() if weight.requires_grad], lr)
        with own_randomness(seed, target):
            loop = _Loop(model, loss, stepper, factor, sets, wanted, seed)
            return loop.run(batches, epochs, progress)
    finally:
        for module, flag in flags.items():
            module.training = flag
        model.zero_grad(set_to_none=True)
        model.to(home)


# The loop -------------------------------------------------------------------------------------------------------------


class _Loop:
    """One run: steps through the epochs and writes the history."""

    def __init__(
        self,
        model: nn.Module,
        loss: _BatchMean,
        optimizer: torch.optim.Optimizer,
        factor: Schedule,
        sets: dict[str, Any],
        checkpoint_epochs: list[int],
        seed: int,
    ):
        self.model, self.loss, self.optimizer, self.factor, self.sets = model, loss, optimizer, factor, sets
        self.checkpoint_epochs, self.seed = checkpoint_epochs, seed
        self.space = ParameterSpace(model)
        self.objectives: dict[str, Loss] = {}
        self.has_buffers = any(True for _ in model.buffers())
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.losses: dict[str, list[float]] = {name: [] for name in ("train", *sets)}
        self.accuracies: dict[str, list[float | None]] = {name: [] for name in ("train", *sets)}
        self.lr: list[float] = []
        self.checkpoints: list[Tensor] = []
        self.began = time.perf_counter()

    def run(self, batches: ShuffledBatches, epochs: int, progress: bool | None) -> TrainingRun:
        shuffle = torch.Generator().manual_seed(self.seed)
        kept, completed = self._copy(), 0
        try:
            self._record(math.nan, None, rate=float(self.rates[0]))
            for epoch in _bar(epochs, progress):
                kept, completed = self._epoch(epoch, epochs, batches, shuffle), epoch
        except BaseException as error:
            self._restore(kept)
            if not isinstance(error, NotConvergedError):
                error.add_note(f"lowhanging.train: the model holds the weights of the end of epoch {completed}.")
            raise
        finally:
            self._set_rates(1.0)
        return self._result()

    def _epoch(self, epoch: int, epochs: int, batches: ShuffledBatches, shuffle: torch.Generator) -> list[Tensor]:
        """Train for one epoch, add its row to the history, and return a copy of the weights."""
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.space.device)
        count, tally, rate = 0.0, Tally(), 0.0
        for step, batch in enumerate(batches.epoch(shuffle, self.space.device, check=epoch == 1)):
            share = min(step / batches.num_batches, 1.0) if batches.num_batches else 0.0
            self._set_rates(self.factor((epoch - 1 + share) / epochs))
            rate = float(self.optimizer.param_groups[0]["lr"]) if step == 0 else rate
            mean, terms = self._step(batch, tally, check=epoch == 1)
            total += mean * terms  # no wait for the device
            count += terms
        if not count:
            remedy = "Pass what can be read once per epoch: tensors, a Dataset, a DataLoader, a list of batches."
            raise ValueError(explain("data", f"has no batch in epoch {epoch}", "at least one example", remedy))
        loss = float(total) / count
        if not (math.isfinite(loss) and bool(torch.isfinite(self.space.flatten(self.model)).all())):
            received = f"made the loss or a weight NaN or infinite in epoch {epoch} (rate {rate:.3g}, loss {loss:.3g})"
            remedy = f"Pass a smaller lr. The model holds the weights of epoch {epoch - 1}, .result the run up to it."
            message = explain("lr", received, "a learning rate at which both stay finite", remedy)
            raise NotConvergedError(message, self._result())
        self._record(loss, tally.accuracy, rate=rate)
        return self._copy()

    def _step(self, batch: Any, tally: Tally, *, check: bool) -> tuple[Tensor, float]:
        """One optimizer step; the batch's mean loss before it, and the number of terms."""
        first: list[tuple[Tensor, float]] = []

        def closure() -> Tensor:  # some optimizers evaluate the loss more than once
            self.optimizer.zero_grad(set_to_none=True)
            mean, terms = self.loss(self.model, batch, None if first else tally, check=check)
            mean.backward()  # type: ignore[no-untyped-call]
            first.append((mean.detach(), terms))
            return mean

        self.optimizer.step(closure)  # type: ignore[arg-type]
        return first[0]

    def _set_rates(self, factor: Any) -> None:
        remedy = "A schedule maps the share of the training done, in [0, 1), to a factor on the learning rate."
        scale = check_real("the schedule's value", factor, minimum=0.0, remedy=remedy)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale

    def _record(self, loss: float, accuracy: float | None, *, rate: float) -> None:
        """Add one row to the history: what the training set gave, and every evaluation set as it is now."""
        theta = self.space.flatten(self.model)
        epoch = len(self.lr)
        rows = {"train": (loss, accuracy)}
        for name in self.sets:
            value, share = self._objective(name).evaluate(theta)
            rows[name] = float(value), share
        for name, row in rows.items():
            self.losses[name].append(row[0])
            self.accuracies[name].append(row[1])
        self.lr.append(rate)
        if epoch in self.checkpoint_epochs:
            self.checkpoints.append(theta.cpu())

    def _objective(self, name: str) -> Loss:
        """The loss of an evaluation set; made once, but anew each epoch where training moves buffers (BatchNorm)."""
        data = self.sets[name]
        if hasattr(data, "evaluate") and hasattr(data, "theta0"):
            return data  # type: ignore[no-any-return]
        if name not in self.objectives or self.has_buffers:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", NotSmoothWarning)  # kinks are no matter for training
                    loss_fn, batch_loss = self.loss.loss_fn, self.loss.batch_loss
                    self.objectives[name] = Objective(
                        self.model, data, loss_fn=loss_fn, batch_loss=batch_loss, distributed=False
                    )
            except (ValueError, TypeError) as error:
                error.add_note(f"This is about evaluate[{name!r}].")
                raise
        return self.objectives[name]

    def _result(self) -> TrainingRun:
        num = len(self.lr)
        rows = torch.stack(self.checkpoints) if self.checkpoints else torch.empty(0, self.space.num_params)
        accuracies = {name: row for name, row in self.accuracies.items() if row[-1] is not None}
        kept = [epoch for epoch in self.checkpoint_epochs if epoch < num]
        return TrainingRun(
            epochs=torch.arange(num),
            losses={name: _column(row) for name, row in self.losses.items()},
            accuracies={name: _column(row) for name, row in accuracies.items()},
            checkpoints=rows.to(self.space.dtype),
            checkpoint_epochs=torch.tensor(kept, dtype=torch.int64),
            lr=_column(self.lr),
            seed=self.seed,
            seconds=time.perf_counter() - self.began,
        )

    def _copy(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in (*self.model.parameters(), *self.model.buffers())]

    @torch.no_grad()
    def _restore(self, kept: list[Tensor]) -> None:
        for tensor, value in zip((*self.model.parameters(), *self.model.buffers()), kept, strict=True):
            tensor.copy_(value)


class _BatchMean:
    """(model, batch) -> (mean loss, number of terms), from one of the two ways to say what the loss is."""

    def __init__(self, loss_fn: LossFn | None, batch_loss: BatchLoss | None):
        if loss_fn is not None and batch_loss is not None:
            remedy = "Leave one of them out."
            raise ValueError(explain("loss_fn", "and batch_loss are both given", "one of the two", remedy))
        self.loss_fn, self.batch_loss = loss_fn, batch_loss

    def __call__(self, model: nn.Module, batch: Any, tally: Tally | None, *, check: bool) -> tuple[Tensor, float]:
        if not check:
            return self._evaluate(model, batch, tally, check=False)
        mean, terms = attempt(lambda: self._evaluate(model, batch, tally, check=True), batch)
        if not isinstance(mean, Tensor) or mean.numel() != 1 or not terms > 0:
            kind = f"shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else type(mean).__name__
            received = f"gave {kind} over {terms:g} terms"
            name, remedy = ("batch_loss", "Return (sum, count).") if self.batch_loss else ("loss_fn", "Take the mean.")
            raise ValueError(explain(name, received, "one number over at least one term", remedy))
        return mean, terms

    def _evaluate(self, model: nn.Module, batch: Any, tally: Tally | None, *, check: bool) -> tuple[Tensor, float]:
        if self.batch_loss is not None:
            total, count = self.batch_loss(model, batch)
            return total / count, float(count)
        args, kwargs, targets = parted(batch)
        outputs = logits_of(model(*args, **kwargs))
        if check and self.loss_fn is None:
            _check_classes(outputs, targets)
        if tally is not None:
            tally.add(outputs, targets)
        terms = targets.numel() if isinstance(targets, Tensor) and targets.ndim else num_examples(batch)
        return (self.loss_fn or F.cross_entropy)(outputs, targets), float(terms)


def _check_classes(outputs: Any, targets: Any) -> None:
    """Targets of the default cross-entropy: torch would complain late, from a kernel, or not at all."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        received = f"have dtype {getattr(targets, 'dtype', type(targets).__name__)}"
        remedy = "Pass loss_fn=F.mse_loss (or another); class targets must be integers: targets.long()."
        raise ValueError(explain("targets", received, "integer classes, the loss_fn being cross-entropy", remedy))
    classes = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim > 1 else 0
    if not classes:
        received = f"gives outputs of shape {tuple(getattr(outputs, 'shape', ()))}"
        raise ValueError(explain("model", received, "(n, classes) for cross-entropy", "Pass loss_fn= or batch_loss=."))
    low, high = (int(targets.min()), int(targets.max())) if targets.numel() else (0, 0)
    if low < 0 or high >= classes:
        remedy = "Check the labels; ignored ones (-100) need batch_loss=, which returns (sum, count)."
        expected = f"0 to {classes - 1}, the model's {classes} outputs"
        raise ValueError(explain("targets", f"range from {low} to {high}", expected, remedy))


def _checkpoint_epochs(checkpoints: int | Sequence[int] | None, epochs: int) -> list[int]:
    remedy = "Pass None, an interval in epochs, or a list of epochs; 0 is the network before training."
    if checkpoints is None:
        return []
    if isinstance(checkpoints, Iterable) and not isinstance(checkpoints, str):
        name = "an entry of checkpoints"
        return sorted({check_count(name, value, minimum=0, maximum=epochs, remedy=remedy) for value in checkpoints})
    every = check_count("checkpoints", checkpoints, remedy=remedy)
    return sorted({*range(0, epochs + 1, every), epochs})


def _bar(epochs: int, progress: bool | None) -> tqdm[int]:
    hidden, delay = progress is False, 2.0 if progress is None else 0.0
    return tqdm(range(1, epochs + 1), desc="train", unit="epoch", disable=hidden, delay=delay)


def _column(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
