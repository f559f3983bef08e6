"""How good is the network on every named data set, epoch after epoch?

Each set is measured by the `Objective` that the rest of the library would measure it with, at the weights and buffers
(BatchNorm's statistics) as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lowhanging.batch_mean import BatchMean
from lowhanging.buffers import same_values, tracked_buffers
from lowhanging.errors import NotSmoothWarning
from lowhanging.layers import ONE_AT_A_TIME
from lowhanging.loss import Loss
from lowhanging.objective import Objective
from lowhanging.parameters import ParameterSpace


class History:
    """A row per epoch: what training gave, what every evaluation set gives, and the weights where they are kept."""

    def __init__(self, model: nn.Module, loss: BatchMean, sets: Mapping[str, Any], checkpoint_epochs: list[int]):
        self.model, self.loss, self.sets, self.checkpoint_epochs = model, loss, sets, checkpoint_epochs
        self.space = ParameterSpace(model)
        self.losses: dict[str, list[float]] = {name: [] for name in ("train", *sets)}
        self.accuracies: dict[str, list[float | None]] = {name: [] for name in ("train", *sets)}
        self.lr: list[float] = []
        self.checkpoints: list[Tensor] = []
        self.checkpoint_buffers: list[dict[str, Tensor]] = []  # all of them, beside each checkpoint
        self.moved: list[str] = []  # names of the buffers that training has changed
        self._before: dict[str, Tensor] = {}  # the buffers at the last row
        self._objectives: dict[str, Loss] = {}

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
        """All rows, as plain values and tensors."""
        names = ("losses", "accuracies", "lr", "checkpoints", "checkpoint_buffers", "moved")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Rows of an interrupted run, whose last buffers the model holds."""
        for name, rows in state.items():
            setattr(self, name, rows)
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
        has_buffers = any(True for _ in self.model.buffers())
        for name in self.sets:
            here: Any = self._objective(name)
            goes_along = has_buffers if name in self._objectives else bool(getattr(here, "moving_names", ()))
            try:
                here = here.at(self.model) if goes_along else here
            except (ValueError, TypeError) as error:
                error.add_note(f"This is about evaluate[{name!r}].")
                raise
            value, share = here.evaluate(theta)
            found[name] = float(value), share
        return found

    def _objective(self, name: str) -> Loss:
        """The loss of an evaluation set, made once."""
        data = self.sets[name]
        if hasattr(data, "evaluate") and hasattr(data, "theta0"):
            return data  # type: ignore[no-any-return]
        if name not in self._objectives:
            try:
                with ONE_AT_A_TIME, warnings.catch_warnings():
                    warnings.simplefilter("ignore", NotSmoothWarning)  # kinks are no matter for training
                    loss_fn, batch_loss = self.loss.loss_fn, self.loss.batch_loss
                    self._objectives[name] = Objective(
                        self.model, data, loss_fn=loss_fn, batch_loss=batch_loss, distributed=False
                    )
            except (ValueError, TypeError) as error:
                error.add_note(f"This is about evaluate[{name!r}].")
                raise
        return self._objectives[name]
