"""Rows of a training, an epoch each, and what tells one training from another.

Each evaluation set is measured by the `Objective` that the rest of the library would measure it with, at the weights
and the buffers (BatchNorm's statistics) as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lowhanging.errors import NotSmoothWarning
from lowhanging.io import ResumeFile, digest
from lowhanging.objective.batches import ShuffledBatches
from lowhanging.objective.checkpoints import same_values, tracked_buffers
from lowhanging.objective.kernels import ONE_AT_A_TIME
from lowhanging.objective.model_loss import BatchMean
from lowhanging.objective.objective import Objective
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.objective.protocol import Loss
from lowhanging.training.options import Schedule, optimizer_identity

_ROWS = ("losses", "accuracies", "lr", "checkpoints", "checkpoint_buffers", "moved")  # what a file holds of a history


class EpochHistory:
    """A row per epoch: what training gave, what every evaluation set gives, and the weights where they are kept."""

    def __init__(self, model: nn.Module, loss: BatchMean, sets: Mapping[str, Any], checkpoint_epochs: list[int]):
        self.model, self.loss, self.sets, self.checkpoint_epochs = model, loss, sets, checkpoint_epochs
        self.space = ParameterSpace(model)
        self.losses: dict[str, list[float]] = {name: [] for name in ("train", *sets)}
        self.accuracies: dict[str, list[float | None]] = {name: [] for name in ("train", *sets)}
        self.lr: list[float] = []
        self.checkpoints: list[Tensor] = []
        self.checkpoint_buffers: list[dict[str, Tensor]] = []  # all of them, for each checkpoint
        self.moved: list[str] = []  # names of the buffers that training has changed
        self._before: dict[str, Tensor] = {}  # the buffers at the last row
        self._objectives: dict[str, Objective] = {}  # those made here

    def add(self, loss: float, accuracy: float | None, *, rate: float) -> None:
        """One row more, with the weights as they are now."""
        rows = {"train": (loss, accuracy), **self._measured()}
        epoch, buffers = len(self.lr), self._buffers()
        changed = [name for name, old in self._before.items() if not same_values(old, buffers[name])]
        self.moved += [name for name in changed if name not in self.moved]
        self._before = buffers
        for name, row in rows.items():
            self.losses[name].append(row[0])
            self.accuracies[name].append(row[1])
        self.lr.append(rate)
        if epoch in self.checkpoint_epochs:
            self.checkpoints.append(self.space.flatten(self.model).cpu())
            self.checkpoint_buffers.append(buffers)

    def ends_here(self) -> bool:
        """Whether the evaluation sets give the last row once more, bit for bit."""
        last = {name: (self.losses[name][-1], self.accuracies[name][-1]) for name in self.sets}
        return repr(last) == repr(self._measured())  # NaN is NaN

    def state(self) -> dict[str, Any]:
        """All rows, as plain values and tensors; the lists are copied, and what is in them never changes."""
        rows: dict[str, Any] = tree_map(lambda leaf: leaf, {name: getattr(self, name) for name in _ROWS})
        return rows

    def restore(self, state: Mapping[str, Any]) -> None:
        """Rows of an interrupted run, whose last buffers the model holds."""
        for name in _ROWS:
            setattr(self, name, state[name])
        self._before = self._buffers()

    def kept_buffers(self) -> list[str]:
        """Names of the buffers that belong to a checkpoint: those that training moves, all before the first epoch."""
        names = [name for name, _ in self.model.named_buffers()]
        moved = {*self.moved, *tracked_buffers(self.model)}
        return names if len(self.lr) < 2 else [name for name in names if name in moved]

    def _buffers(self) -> dict[str, Tensor]:
        """A copy of all; what has not changed since the last row is shared with it."""
        found = {}
        for name, buffer in self.model.named_buffers():
            old, new = self._before.get(name), buffer.detach().cpu()
            found[name] = old if old is not None and same_values(old, new) else new.clone()
        return found

    def _measured(self) -> dict[str, tuple[float, float | None]]:
        theta, found = self.space.flatten(self.model), {}
        for name, data in self.sets.items():
            try:
                loss = self._loss_here(name, data)
            except (ValueError, TypeError) as error:
                error.add_note(f"This is about evaluate[{name!r}].")
                raise
            value, share = loss.evaluate(theta)
            found[name] = float(value), share
        return found

    def _loss_here(self, name: str, data: Any) -> Loss:
        """The loss of an evaluation set, with the buffers that the model has now."""
        if hasattr(data, "evaluate") and hasattr(data, "theta0"):
            given: Loss = data.at(self.model) if getattr(data, "moving_names", ()) else data
            return given
        if name not in self._objectives:
            with ONE_AT_A_TIME, warnings.catch_warnings():
                warnings.simplefilter("ignore", NotSmoothWarning)  # kinks are no matter for training
                functions: dict[str, Any] = {"loss_fn": self.loss.loss_fn, "batch_loss": self.loss.batch_loss}
                self._objectives[name] = Objective(self.model, data, **functions, distributed=False)
        own = self._objectives[name]
        return own.at(self.model) if any(True for _ in self.model.buffers()) else own


def training_identity(
    model: nn.Module,
    batches: ShuffledBatches,
    optimizer: torch.optim.Optimizer,
    factor: Schedule,
    loss: BatchMean,
    names: list[str],
    device: torch.device,
    counts: Mapping[str, Any],
) -> dict[str, str]:
    """What determines a training, in words that are the same in another process; its weights are in the state."""
    space = ParameterSpace(model)
    buffers = [(name, tuple(buffer.shape), str(buffer.dtype)) for name, buffer in model.named_buffers()]
    return {
        "data": batches.identity(),
        "model": repr((space.names, space.shapes, str(space.dtype), buffers)),
        "optimizer, lr or schedule": optimizer_identity(optimizer, factor),
        "loss_fn or batch_loss": repr([_name(loss.loss_fn), _name(loss.batch_loss)]),
        "evaluate": repr(names),
        "device": device.type,
        **{name: repr(value) for name, value in counts.items()},
    }


def refuse_training(file: ResumeFile, what: str) -> NoReturn:
    """Raise the error for a file whose training had another model, loss or data set, or began elsewhere."""
    remedy = "Name another file, or repeat the call that made this one, with as many threads."
    if what == "model (its weights)":
        remedy = "Pass the model as it was before that training, or as that training left it; or name another file."
    file.refuse([what], remedy)


def digest_of(model: nn.Module) -> str:
    """Of weights and buffers, frozen ones too."""
    return digest(*model.parameters(), *model.buffers())


def _name(function: Callable[..., Any] | None) -> str | None:
    return None if function is None else str(getattr(function, "__qualname__", type(function).__name__))
