"""One network trained by shuffled batches, an optimizer and a schedule, every evaluation set measured after each epoch.

`train` is the only function that writes to the user's model. A run with `resume=` keeps what the next step depends on
at the end of an epoch (weights, buffers, the optimizer's state, every random generator, the history), so that the same
call after an interruption goes on bit for bit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lowhanging.errors import (
    NotConvergedError,
    a_type,
    argument_message,
    check_count,
    check_device,
    door,
)
from lowhanging.io import ResumeFile, Saved
from lowhanging.objective.batches import ShuffledBatches, Tally, as_pytree
from lowhanging.objective.checkpoints import Checkpoint, checkpoint_of_row
from lowhanging.objective.model_loss import BatchLoss, BatchMean, LossFn
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.objective.random_state import (
    own_randomness,
    random_states,
    restore_random_states,
    untouched_random_state,
)
from lowhanging.tables import Columns, Tabular, with_losses
from lowhanging.training.options import (
    MakeOptimizer,
    Schedule,
    as_optimizer,
    as_schedule,
    evaluation_sets,
    final_values,
    progress_bar,
    set_rates,
)
from lowhanging.training.state import EpochHistory, digest_of, refuse_training, training_identity


@dataclass(frozen=True, eq=False, repr=False)
class TrainingRun(Saved, Tabular):
    """History of one call of `train`: a row per epoch, epoch 0 being the network before training.

    "train" is the mean over the epoch's batches while the weights moved: it lags the other curves by half an epoch, and
    epoch 0 has none (NaN). Every other set is measured in eval mode at the end of the epoch.

    Where training moves buffers (BatchNorm's statistics), a checkpoint is its row of `checkpoints` and of each of
    `checkpoint_buffers`. Pass `run.checkpoint(i)`, or the run itself, to tools that evaluate a loss at checkpoints.
    """

    epochs: Tensor  # (e,) int64: 0, 1, ...
    losses: dict[str, Tensor]  # name -> (e,) float64, mean loss; "train" and every evaluation set
    accuracies: dict[str, Tensor]  # name -> (e,) float64 in [0, 1]; only sets with class targets
    checkpoints: Tensor  # (t, p) rows are theta, in ParameterSpace order
    checkpoint_epochs: Tensor  # (t,) int64
    lr: Tensor  # (e,) float64, learning rate with which the epoch began
    seed: int
    seconds: float  # that of interrupted calls included
    checkpoint_buffers: dict[str, Tensor] = field(default_factory=dict)  # name -> (t, ...) buffers that training moves

    def columns(self) -> Columns:
        """One row for each epoch: "epoch", "lr", the losses and the accuracies by name."""
        return with_losses({"epoch": self.epochs.tolist(), "lr": self.lr.tolist()}, self.losses, self.accuracies)

    def __repr__(self) -> str:
        final = final_values(self.accuracies, self.losses, lambda curve: curve[-1])
        kept = f"; {len(self.checkpoints)} checkpoints" if len(self.checkpoints) else ""
        return f"TrainingRun({int(self.epochs[-1])} epochs in {self.seconds:.1f} s; {final}{kept})"

    @property
    def num_checkpoints(self) -> int:
        """Rows of `checkpoints`."""
        return len(self.checkpoints)

    def checkpoint(self, i: int = -1) -> Checkpoint:
        """Row i of the checkpoints with its buffers: a point for `loss.at`, `path_slice`, `principal_directions` ...

        Args:
            i: row of `checkpoints`, of the network after `checkpoint_epochs[i]` epochs; negative ones from the end.
        """
        remedy = "See run.checkpoint_epochs." if self.num_checkpoints else "Train with checkpoints=1 to keep them."
        return checkpoint_of_row(i, self.checkpoints, self.checkpoint_buffers, remedy=remedy)


@door
def train(
    model: nn.Module,
    data: Any,
    *,
    num_epochs: int = 60,
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
    resume: str | Path | None = None,
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
        num_epochs: Passes over the data, >= 0.
        lr: Learning rate at the start; None is 0.02. An optimizer of your own brings its own: leave this out.
        batch_size: Examples per step, unless `data` brings its own batches; the last batch may be smaller.
        optimizer: "adam", "sgd" (no momentum), an `Optimizer` of this model's parameters, or a callable
            `parameters -> Optimizer`, such as `functools.partial(torch.optim.AdamW, lr=1e-3)`.
        schedule: Factor on the learning rate at each step: "cosine" (from 1 to 0), "constant", or a callable of the
            share of the training that is done, in [0, 1).
        loss_fn: `(outputs, targets) -> mean loss`; None is cross-entropy of integer classes.
        batch_loss: `(model, batch) -> (sum, count)` instead, for other losses and other forms of batches.
        evaluate: Name -> data set, in any form that `Objective` takes, or name -> objective, which is evaluated with
            the weights and the buffers (BatchNorm's statistics) of each epoch. "train" is taken.
        checkpoints: Keep the weights, and the buffers that training moves, every so many epochs (0 and the last one
            included), or after these epochs.
        seed: Of the shuffling and of whatever else is random while training; not of the initial weights.
        device: Where to train; the model goes back afterwards. None: where the model is.
        resume: npz file that is written after an epoch: the same call continues from it, bit for bit (on the same
            device, with as many threads). The model may be as it was before that training, or as that training left
            it; other weights are refused, and so is the file of a call with other arguments. The finished run's file
            stays, and the same call reads the run from it. An optimizer of your own gets its state back, and so does a
            loader's `generator`; workers that persist and a sampler's private state begin anew. Data are told from
            others by the tensors that are stored, or else by three items; a loss by its name, by its value on the first
            examples, and by `evaluate`.
        progress: A bar on stderr; None shows it once the call has taken two seconds.

    Returns:
        The history. `model` holds the trained weights.

    Raises:
        NotConvergedError: the loss or a weight became NaN or infinite. `.result` is the run up to the last finite
            epoch, whose weights the model holds.
        ValueError, TypeError: an argument is out of range, or a data set is empty, not finite, or does not fit the
            model or the loss, or the resume file belongs to another call.
        DamagedFileError: the resume file is not whole.

    Cost:
        of `resume`: a file of weights, buffers, the optimizer's state (Adam: twice the weights) and the checkpoints so
        far, held in memory once more; written after every epoch, but for no more than a tenth of the time. 3,340
        weights: 73 kB and 3 ms.

    Whatever else stops it (an error in a loss of yours, an interrupt) is raised as it is, with a note that says which
    epoch's weights the model holds: the last one that was completed.
    """
    loss = BatchMean(loss_fn, batch_loss)
    batch_size = check_count("batch_size", batch_size, remedy="Pass the examples per step, such as 64.")
    batches = ShuffledBatches(data, batch_size)
    remedy = "Pass the number of passes over the data, such as 60."
    num_epochs = check_count("num_epochs", num_epochs, minimum=0, remedy=remedy)
    seed = check_count("seed", seed, minimum=0, remedy="Pass an integer; the same one gives the same run.")
    wanted = _checkpoint_epochs(checkpoints, num_epochs)
    factor = as_schedule(schedule)
    sets = evaluation_sets(evaluate)
    if not isinstance(model, nn.Module):
        remedy = "Pass the module itself; train writes to its parameters."
        raise TypeError(argument_message("model", f"is {a_type(model)}", "a torch.nn.Module", remedy))
    home = ParameterSpace(model).device
    target = home if device is None else check_device(device)
    flags = {module: module.training for module in model.modules()}
    try:
        model.to(target)
        stepper = as_optimizer(optimizer, [weight for weight in model.parameters() if weight.requires_grad], lr)
        file = None
        if resume is not None:
            counts = {"num_epochs": num_epochs, "batch_size": batch_size, "seed": seed, "checkpoints": wanted}
            identity = training_identity(model, batches, stepper, factor, loss, [*sets], target, counts)
            file = ResumeFile(resume, identity, kind="a training")
        with own_randomness(seed, target):
            loop = Loop(model, batches, loss, stepper, factor, EpochHistory(model, loss, sets, wanted), seed)
            try:
                loop.begin(file)
                loop.run(num_epochs, progress, file)
            except NotConvergedError as error:
                error.result = loop.result()
                raise
            return loop.result()
    finally:
        for module, flag in flags.items():
            module.training = flag
        model.zero_grad(set_to_none=True)
        model.to(home)


def _checkpoint_epochs(checkpoints: int | Sequence[int] | None, num_epochs: int) -> list[int]:
    remedy = "Pass None, an interval in epochs, or a list of epochs; 0 is the network before training."
    if checkpoints is None:
        return []
    if isinstance(checkpoints, Iterable) and not isinstance(checkpoints, str):
        name = "an entry of checkpoints"
        return sorted({check_count(name, value, minimum=0, maximum=num_epochs, remedy=remedy) for value in checkpoints})
    every = check_count("checkpoints", checkpoints, remedy=remedy)
    return sorted({*range(0, num_epochs + 1, every), num_epochs})


class Loop:
    """One run: steps through the epochs and writes the history.

    Whatever ends it early (NaN, an error in a loss, an interrupt), the model holds the last epoch that was completed,
    never a half-updated state that no row of the history describes.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: ShuffledBatches,
        loss: BatchMean,
        optimizer: torch.optim.Optimizer,
        factor: Schedule,
        history: EpochHistory,
        seed: int,
    ):
        self.model, self.batches, self.loss, self.optimizer = model, batches, loss, optimizer
        self.factor, self.history, self.device, self.seed = factor, history, history.space.device, seed
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.shuffle = torch.Generator().manual_seed(seed)
        self.first_weights = ""  # digest of those that the training began with
        self.began = time.perf_counter()

    @property
    def num_done(self) -> int:
        """Epochs that are completed."""
        return len(self.history.lr) - 1

    @property
    def seconds(self) -> float:
        """Spent so far, those of interrupted calls included."""
        return time.perf_counter() - self.began

    def begin(self, file: ResumeFile | None) -> None:
        """From what the file holds, or from the model as it is."""
        state = None if file is None else file.read()
        if file is None or state is None:
            self.first_weights = "" if file is None else digest_of(self.model)
            self.history.add(math.nan, None, rate=float(self.rates[0]))
            return
        kept, given = self._copy(), digest_of(self.model)
        try:
            with file.decoding():
                self._put_back(state["weights"])
                self.history.restore(state["history"])
            if given not in (state["first weights"], digest_of(self.model)):
                refuse_training(file, "model (its weights)")
            if not self.history.ends_here():  # reads the evaluation sets, with the random state of the first time
                refuse_training(file, "evaluate, model or loss")
            if self._first_loss() != state["first loss"]:
                refuse_training(file, "model or loss")
            with file.decoding():
                restore_random_states(state["random"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.shuffle.set_state(state["shuffle"])
                for generator, earlier in zip(self.batches.generators, state["loader"], strict=True):
                    generator.set_state(earlier)
                self.first_weights = state["first weights"]
                self.began -= state["seconds"]
        except BaseException:
            self._put_back(kept)
            raise

    def run(self, num_epochs: int, progress: bool | None, file: ResumeFile | None) -> None:
        """All epochs that are left."""
        kept, completed = self._copy(), self.num_done
        try:
            with progress_bar("train", "epoch", total=num_epochs, done=completed, progress=progress) as bar:
                for epoch in range(completed + 1, num_epochs + 1):
                    kept, completed = self._epoch(epoch, num_epochs), epoch
                    if file is not None:
                        self._keep(file, kept, now=epoch == num_epochs)
                    bar.update()
        except BaseException as error:
            self._put_back(kept)
            if file is not None:
                file.flush()
            if not isinstance(error, NotConvergedError):
                error.add_note(f"lowhanging.train: the model holds the weights of the end of epoch {completed}.")
            raise
        finally:
            set_rates(self.optimizer, self.rates, 1.0)

    def result(self) -> TrainingRun:
        """What was done so far."""
        history, num, dtype = self.history, len(self.history.lr), self.history.space.dtype
        kept = history.checkpoints
        rows = torch.stack(kept) if kept else torch.empty(0, history.space.num_params)
        buffers = {
            name: torch.stack([row[name] for row in history.checkpoint_buffers])
            for name in (history.kept_buffers() if kept else [])
        }
        for name, values in buffers.items():
            if values.dtype in (torch.float16, torch.bfloat16):
                buffers[name] = values.to(dtype)  # widened as the weights are
        return TrainingRun(
            epochs=torch.arange(num),
            losses={name: _column(row) for name, row in history.losses.items()},
            accuracies={name: _column(row) for name, row in history.accuracies.items() if row[-1] is not None},
            checkpoints=rows.to(dtype),
            checkpoint_epochs=torch.tensor([e for e in history.checkpoint_epochs if e < num], dtype=torch.int64),
            lr=_column(history.lr),
            seed=self.seed,
            seconds=self.seconds,
            checkpoint_buffers=buffers,
        )

    def _epoch(self, epoch: int, num_epochs: int) -> list[Tensor]:
        """Train for one epoch, add its row to the history, and return a copy of the weights."""
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        count, tally, rate = 0.0, Tally(), 0.0
        num_batches = self.batches.num_batches
        for step, batch in enumerate(self.batches.epoch(self.shuffle, self.device, check=epoch == 1)):
            share = min(step / num_batches, 1.0) if num_batches else 0.0
            set_rates(self.optimizer, self.rates, self.factor((epoch - 1 + share) / num_epochs))
            rate = float(self.optimizer.param_groups[0]["lr"]) if step == 0 else rate
            mean, terms = self._step(batch, tally, check=epoch == 1)
            total += mean * terms  # no wait for the device
            count += terms
        if not count:
            remedy = "Pass what can be read once per epoch: tensors, a Dataset, a DataLoader, a list of batches."
            raise ValueError(argument_message("data", f"has no batch in epoch {epoch}", "at least one example", remedy))
        loss = float(total) / count
        if not (math.isfinite(loss) and bool(torch.isfinite(self.history.space.flatten(self.model)).all())):
            received = f"made the loss or a weight NaN or infinite in epoch {epoch} (rate {rate:.3g}, loss {loss:.3g})"
            expected = "a learning rate at which both stay finite"
            remedy = f"Pass a smaller lr. The model holds the weights of epoch {epoch - 1}, .result the run up to it."
            raise NotConvergedError(argument_message("lr", received, expected, remedy))
        self.history.add(loss, tally.accuracy, rate=rate)
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

        try:
            self.optimizer.step(closure)  # type: ignore[arg-type]
        except RuntimeError as error:
            if "does not support sparse gradients" not in str(error):
                raise
            received = f"({type(self.optimizer).__name__}) got a sparse gradient of an embedding with sparse=True"
            remedy = 'Pass optimizer="sgd" or functools.partial(torch.optim.SparseAdam, lr=...), or sparse=False.'
            raise ValueError(argument_message("optimizer", received, "gradients that it supports", remedy)) from error
        return first[0]

    def _keep(self, file: ResumeFile, weights: list[Tensor], *, now: bool) -> None:
        """All that the next epoch depends on, and what tells this training from another."""
        state = {
            "weights": weights,
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "random": random_states(),
            "shuffle": self.shuffle.get_state(),
            "loader": [generator.get_state() for generator in self.batches.generators],
            "history": self.history.state(),
            "seconds": self.seconds,
            "first weights": self.first_weights,
            "first loss": self._first_loss(),
        }
        try:
            file.keep(state, now=now)
        except TypeError as error:
            received = f"has a state that can't be written ({error})"
            remedy = "Leave resume= out, or use an optimizer of torch's."
            expected = "state_dict() of tensors and plain values"
            raise TypeError(argument_message("optimizer", received, expected, remedy)) from error

    def _first_loss(self) -> str:
        """The loss of the first examples in eval mode, to the last bit; "" where they can't be had without a pass."""
        if self.batches.first is None:
            return ""
        batch = tree_map_only(Tensor, lambda leaf: leaf.to(self.device), as_pytree(self.batches.first))
        self.model.eval()
        with torch.no_grad(), untouched_random_state():
            return float(self.loss(self.model, batch, None, check=False)[0]).hex()

    def _copy(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in (*self.model.parameters(), *self.model.buffers())]

    @torch.no_grad()
    def _put_back(self, kept: list[Tensor]) -> None:
        for tensor, value in zip((*self.model.parameters(), *self.model.buffers()), kept, strict=True):
            tensor.copy_(value)


def _column(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
