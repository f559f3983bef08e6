"""How does a network get its weights, and how good was it on every named data set along the way?

One plain loop: shuffled batches, an optimizer, a schedule, and after each epoch every evaluation set. It is the only
function that writes to the user's model. This file says what may be asked and what comes back; a step, and what is left
where a run ends early, stand in `training_loop.py`, the rows in `training_history.py`, and how a run that was killed
goes on in `training_file.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowhanging.batch_mean import BatchMean
from lowhanging.checkpoints import Checkpoint
from lowhanging.errors import NotConvergedError, a_type, check_count, check_device, explain
from lowhanging.model_loss import BatchLoss, LossFn
from lowhanging.parameters import ParameterSpace
from lowhanging.results import load_result, save_result
from lowhanging.shuffled import ShuffledBatches, own_randomness
from lowhanging.training_file import TrainingFile, training_identity
from lowhanging.training_history import History
from lowhanging.training_loop import Loop
from lowhanging.training_options import MakeOptimizer, Schedule, as_optimizer, as_schedule, evaluation_sets


@dataclass(frozen=True, eq=False, repr=False)
class TrainingRun:
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

    def __repr__(self) -> str:
        rows, scale, unit = (self.accuracies, 100, " %") if self.accuracies else (self.losses, 1, "")
        final = ", ".join(f"{name} {scale * float(row[-1]):.3g}{unit}" for name, row in rows.items())
        kept = f"; {len(self.checkpoints)} checkpoints" if len(self.checkpoints) else ""
        quantity = "accuracy" if self.accuracies else "loss"
        return f"TrainingRun({int(self.epochs[-1])} epochs in {self.seconds:.1f} s; {quantity}: {final}{kept})"

    def checkpoint(self, i: int = -1) -> Checkpoint:
        """Row i of the checkpoints with its buffers: a point for `loss.at`, `path_slice`, `principal_directions` ...

        Args:
            i: row of `checkpoints`, of the network after `checkpoint_epochs[i]` epochs; negative ones from the end.
        """
        num = len(self.checkpoints)
        remedy = "See run.checkpoint_epochs." if num else "Train with checkpoints=1 to keep them."
        row = check_count("i", i, minimum=-num, maximum=num - 1, remedy=remedy)
        return Checkpoint(
            self.checkpoints[row].clone(), {name: rows[row].clone() for name, rows in self.checkpoint_buffers.items()}
        )

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
        epochs: Passes over the data, >= 0.
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
        resume: npz file that is written after an epoch: the same call continues from it, to the same bits (on the same
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
    epochs = check_count("epochs", epochs, minimum=0, remedy="Pass the number of passes over the data, such as 60.")
    seed = check_count("seed", seed, minimum=0, remedy="Pass an integer; the same one gives the same run.")
    wanted = _checkpoint_epochs(checkpoints, epochs)
    factor = as_schedule(schedule)
    sets = evaluation_sets(evaluate)
    if not isinstance(model, nn.Module):
        remedy = "Pass the module itself; train writes to its parameters."
        raise TypeError(explain("model", f"is {a_type(model)}", "a torch.nn.Module", remedy))
    home = ParameterSpace(model).device
    target = home if device is None else check_device(device)
    flags = {module: module.training for module in model.modules()}
    try:
        model.to(target)
        stepper = as_optimizer(optimizer, [weight for weight in model.parameters() if weight.requires_grad], lr)
        file = None
        if resume is not None:
            counts = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "checkpoints": wanted}
            functions = (loss_fn, batch_loss)
            identity = training_identity(model, batches, stepper, factor, functions, [*sets], target, counts)
            file = TrainingFile(resume, identity)
        with own_randomness(seed, target):
            loop = Loop(model, batches, loss, stepper, factor, History(model, loss, sets, wanted), seed)
            try:
                loop.begin(file)
                loop.run(epochs, progress, file)
            except NotConvergedError as error:
                error.result = _run(loop, seed)
                raise
            return _run(loop, seed)
    finally:
        for module, flag in flags.items():
            module.training = flag
        model.zero_grad(set_to_none=True)
        model.to(home)


def _run(loop: Loop, seed: int) -> TrainingRun:
    """What the loop has done, as it is handed out."""
    history, num = loop.history, len(loop.history.lr)
    rows = torch.stack(history.checkpoints) if history.checkpoints else torch.empty(0, history.space.num_params)
    accuracies = {name: row for name, row in history.accuracies.items() if row[-1] is not None}
    kept = history.kept_buffers() if history.checkpoints else []
    buffers = {name: torch.stack([row[name] for row in history.checkpoint_buffers]) for name in kept}
    narrow = (torch.float16, torch.bfloat16)  # widened as the weights are
    return TrainingRun(
        epochs=torch.arange(num),
        losses={name: _column(row) for name, row in history.losses.items()},
        accuracies={name: _column(row) for name, row in accuracies.items()},
        checkpoints=rows.to(history.space.dtype),
        checkpoint_epochs=torch.tensor([e for e in history.checkpoint_epochs if e < num], dtype=torch.int64),
        lr=_column(history.lr),
        seed=seed,
        seconds=loop.seconds,
        checkpoint_buffers={
            name: rows.to(history.space.dtype) if rows.dtype in narrow else rows for name, rows in buffers.items()
        },
    )


def _checkpoint_epochs(checkpoints: int | Sequence[int] | None, epochs: int) -> list[int]:
    remedy = "Pass None, an interval in epochs, or a list of epochs; 0 is the network before training."
    if checkpoints is None:
        return []
    if isinstance(checkpoints, Iterable) and not isinstance(checkpoints, str):
        name = "an entry of checkpoints"
        return sorted({check_count(name, value, minimum=0, maximum=epochs, remedy=remedy) for value in checkpoints})
    every = check_count("checkpoints", checkpoints, remedy=remedy)
    return sorted({*range(0, epochs + 1, every), epochs})


def _column(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
