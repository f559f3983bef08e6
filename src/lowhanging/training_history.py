"""How good is the network on every named data set, epoch after epoch?

Each set is measured by the `Objective` that the rest of the library would measure it with, at the weights as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lowhanging.batch_mean import BatchMean
from lowhanging.errors import NotSmoothWarning
from lowhanging.loss import Loss
from lowhanging.objective import Objective
from lowhanging.parameters import ParameterSpace


class History:
    """A row per epoch: what training gave, what every evaluation set gives, and the weights where they are kept."""

    def __init__(self, model: nn.Module, loss: BatchMean, sets: Mapping[str, Any], checkpoint_epochs: list[int]):
        self.model, self.loss, self.sets, self.checkpoint_epochs = model, loss, sets, checkpoint_epochs
        self.space = ParameterSpace(model)
        self.has_buffers = any(True for _ in model.buffers())
        self.losses: dict[str, list[float]] = {name: [] for name in ("train", *sets)}
        self.accuracies: dict[str, list[float | None]] = {name: [] for name in ("train", *sets)}
        self.lr: list[float] = []
        self.checkpoints: list[Tensor] = []
        self._objectives: dict[str, Loss] = {}

    def add(self, loss: float, accuracy: float | None, *, rate: float) -> None:
        """One row more, with the weights as they are now."""
        rows = {"train": (loss, accuracy), **self._measured()}
        epoch = len(self.lr)
        for name, row in rows.items():
            self.losses[name].append(row[0])
            self.accuracies[name].append(row[1])
        self.lr.append(rate)
        if epoch in self.checkpoint_epochs:
            self.checkpoints.append(self.space.flatten(self.model).cpu())

    def ends_here(self) -> bool:
        """Whether the evaluation sets give the last row once more, bit for bit."""
        last = {name: (self.losses[name][-1], self.accuracies[name][-1]) for name in self.sets}
        return repr(last) == repr(self._measured())  # NaN is NaN

    def state(self) -> dict[str, Any]:
        """All rows, as plain values and tensors."""
        return {name: getattr(self, name) for name in ("losses", "accuracies", "lr", "checkpoints")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Rows of an interrupted run."""
        for name, rows in state.items():
            setattr(self, name, rows)

    def _measured(self) -> dict[str, tuple[float, float | None]]:
        theta = self.space.flatten(self.model)
        found = {}
        for name in self.sets:
            value, share = self._objective(name).evaluate(theta)
            found[name] = float(value), share
        return found

    def _objective(self, name: str) -> Loss:
        """The loss of an evaluation set; made once, but anew each epoch where training moves buffers (BatchNorm)."""
        data = self.sets[name]
        if hasattr(data, "evaluate") and hasattr(data, "theta0"):
            return data  # type: ignore[no-any-return]
        if name not in self._objectives or self.has_buffers:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", NotSmoothWarning)  # kinks are no matter for training
                    loss_fn, batch_loss = self.loss.loss_fn, self.loss.batch_loss
                    self._objectives[name] = Objective(
                        self.model, data, loss_fn=loss_fn, batch_loss=batch_loss, distributed=False
                    )
            except (ValueError, TypeError) as error:
                error.add_note(f"This is about evaluate[{name!r}].")
                raise
        return self._objectives[name]
