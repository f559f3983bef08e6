"""Weights, losses and top eigenvalues along a training loop of the user's own.

The recorder looks at the model every so many steps and changes nothing of it. What it keeps is a run with checkpoints,
as `lh.train` makes one: every tool that takes checkpoints takes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowhanging.curvature.eigenpairs import Eigenpairs, top_eigs
from lowhanging.curvature.operators import hessian
from lowhanging.errors import (
    NotConvergedError,
    a_type,
    argument_message,
    check_choice,
    check_count,
    check_real,
    door,
    warn,
)
from lowhanging.io import Saved
from lowhanging.objective.checkpoints import Checkpoint, same_values, tracked_buffers
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.objective.protocol import Loss, as_losses
from lowhanging.tables import Columns, Tabular, with_losses


@dataclass(frozen=True, eq=False, repr=False)
class TrainingRecord(Saved, Tabular):
    """What a `Recorder` kept of a training; a row is one look at the model.

    Pass it, or `.checkpoint(i)`, to tools that take checkpoints: `principal_directions`, `plane_trajectory`,
    `path_slice`, `prior.independent_bits`.
    """

    steps: Tensor  # (t,) int64, calls of `step` before each row; the first is 0
    checkpoints: Tensor  # (t, p) rows are theta, in ParameterSpace order
    losses: dict[str, Tensor]  # name -> (t,) float64, of each loss at theta
    accuracies: dict[str, Tensor]  # name -> (t,) float64, only of losses that have one
    numbers: dict[str, Tensor]  # name -> (t,) float64, what `step` was given since the row before, averaged; NaN: none
    eigenvalues: Tensor  # (t, k) float64, descending; NaN where not converged; k is 0 where none were asked for
    residuals: Tensor  # (t, k) float64, |H v - value v|
    num_products: Tensor  # (t,) int64, spent on the eigenvalues of each row
    checkpoint_buffers: dict[str, Tensor] = field(default_factory=dict)  # name -> (t, ...) buffers that training moves

    @property
    def checkpoint_epochs(self) -> Tensor:
        """(t,) steps, under the name that runs have for what their checkpoints are counted in."""
        return self.steps

    def checkpoint(self, i: int = -1) -> Checkpoint:
        """Row i with its buffers: a point for `loss.at`, `path_slice`, `principal_directions` ...

        Args:
            i: row; negative ones from the end.
        """
        num = len(self.checkpoints)
        row = check_count("i", i, minimum=-num, maximum=num - 1, remedy="See record.steps.")
        buffers = {name: rows[row].clone() for name, rows in self.checkpoint_buffers.items()}
        return Checkpoint(self.checkpoints[row].clone(), buffers)

    def columns(self) -> Columns:
        """One row for each look: "step", losses, accuracies and numbers by name, "eigenvalue 1" and so on."""
        found = with_losses({"step": self.steps.tolist()}, self.losses, self.accuracies)
        found |= {name: row.tolist() for name, row in self.numbers.items()}
        return found | {f"eigenvalue {i + 1}": row.tolist() for i, row in enumerate(self.eigenvalues.T)}

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {float(row[-1]):.4g}" for name, row in (self.losses | self.numbers).items())
        largest = f"; largest eigenvalue {float(self.eigenvalues[-1, 0]):.4g}" if self.eigenvalues.numel() else ""
        return (
            f"TrainingRecord({len(self.steps)} checkpoints, steps {int(self.steps[0])} to {int(self.steps[-1])}"
            f"{'; at the last ' + last if last else ''}{largest})"
        )


@door
class Recorder:
    """Keeps weights, losses and, where wanted, top Hessian eigenvalues along a loop of one's own.

    Args:
        model: that is trained; it is read, never written to.
        every: calls of `step` between two looks; the first look is at once, before training.
        losses: name -> loss of this model (`lh.Objective(model, data)`), or one loss; each is evaluated at every look,
            with the buffers (BatchNorm's statistics) that the model has then.
        eigenpairs: name of the loss whose top eigenvalues are kept, None for none.
        k: eigenvalues.
        tol: of their residuals, relative to the largest one.

    Raises:
        ValueError, TypeError: losses of another model, an unknown name.

    Cost:
        of a look: a copy of the weights on the CPU, one evaluation of each loss, and the products of a search that
        begins from the eigenvectors of the look before (kept in memory: k vectors). Where the search does not reach
        `tol` there is a warning and NaN, and training goes on.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> recorder = Recorder(model, every=2)
        >>> [recorder.step(train=0.5) for _ in range(4)]  # once after each step of your loop
        [False, True, False, True]
        >>> recorder.record().steps.tolist()
        [0, 2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 1,
        losses: Loss | Mapping[str, Loss] | None = None,
        eigenpairs: str | None = None,
        k: int = 5,
        tol: float = 1e-3,
    ):
        if not isinstance(model, nn.Module):
            remedy = "Pass the module that your loop trains."
            raise TypeError(argument_message("model", f"is {a_type(model)}", "a torch.nn.Module", remedy))
        self._model, self._space = model, ParameterSpace(model)
        self._every = check_count("every", every, remedy="Pass the steps between two looks, such as 50.")
        self._losses = {} if losses is None else as_losses(losses)
        for name, loss in self._losses.items():
            if loss.num_params != self._space.num_params:
                received, expected = f"has {loss.num_params} parameters", f"{self._space.num_params}, as the model"
                remedy = "Make it of this model: lh.Objective(model, data)."
                raise ValueError(argument_message(f"losses[{name!r}]", received, expected, remedy))
        if eigenpairs is not None:
            check_choice("eigenpairs", eigenpairs, tuple(self._losses), remedy="Name one of losses=.")
        self._of, self._k = eigenpairs, check_count("k", k, maximum=self._space.num_params, remedy="Pass 1 or 5.")
        self._tol = check_real("tol", tol, minimum=0, exclusive=True, remedy="Pass a share of the largest, as 1e-3.")
        self._pairs: Eigenpairs | None = None
        self._num_steps = 0
        self._rows: list[dict[str, Any]] = []
        self._given: list[dict[str, float]] = []
        self._look()

    def step(self, **numbers: float) -> bool:
        """Say that a step was taken; every so many of them the model is looked at.

        Args:
            numbers: of your own, such as `train=loss.item()`; averaged between looks.

        Returns:
            whether this was a look.
        """
        remedy = "Pass plain numbers, such as train=loss.item()."
        values = {name: check_real(name, float(value), remedy=remedy) for name, value in numbers.items()}
        self._given.append(values)
        self._num_steps += 1
        if self._num_steps % self._every:
            return False
        self._look()
        return True

    def record(self) -> TrainingRecord:
        """What was kept so far; the loop may go on, and ask again."""
        rows, buffers = self._rows, [row["buffers"] for row in self._rows]
        tracked = tracked_buffers(self._model)
        names = [
            name
            for name, first in buffers[0].items()
            if name in tracked or any(not same_values(first, each[name]) for each in buffers)
        ]
        numbers = dict.fromkeys(name for row in rows for name in row["numbers"])
        accuracies = [name for name in self._losses if rows[0]["accuracies"][name] is not None]

        def column(key: str, name: str) -> Tensor:
            return torch.tensor([row[key].get(name, math.nan) for row in rows], dtype=torch.float64)

        return TrainingRecord(
            steps=torch.tensor([row["step"] for row in rows]),
            checkpoints=torch.stack([row["theta"] for row in rows]),
            losses={name: column("losses", name) for name in self._losses},
            accuracies={name: column("accuracies", name) for name in accuracies},
            numbers={name: column("numbers", name) for name in numbers},
            eigenvalues=torch.stack([row["eigenvalues"] for row in rows]),
            residuals=torch.stack([row["residuals"] for row in rows]),
            num_products=torch.tensor([row["num_products"] for row in rows]),
            checkpoint_buffers={name: torch.stack([each[name] for each in buffers]) for name in names},
        )

    def __repr__(self) -> str:
        return f"Recorder({self._space.owner}, every {self._every} steps: {len(self._rows)} looks so far)"

    def _look(self) -> None:
        """One row more."""
        theta = self._space.flatten(self._model)
        here = {name: loss.at(self._model) if loss.moving_names else loss for name, loss in self._losses.items()}
        evaluated = {name: loss.evaluate(theta.to(loss.theta0)) for name, loss in here.items()}
        names = dict.fromkeys(name for row in self._given for name in row)
        given = {name: [row[name] for row in self._given if name in row] for name in names}
        self._given = []
        row = {
            "step": self._num_steps,
            "theta": theta.detach().cpu().clone(),
            "buffers": {name: buffer.detach().cpu().clone() for name, buffer in self._model.named_buffers()},
            "losses": {name: float(value) for name, (value, _) in evaluated.items()},
            "accuracies": {name: accuracy for name, (_, accuracy) in evaluated.items()},
            "numbers": {name: sum(values) / len(values) for name, values in given.items()},
        }
        self._rows.append(row | self._curvature(here, theta))

    def _curvature(self, here: Mapping[str, Loss], theta: Tensor) -> dict[str, Any]:
        """Eigenvalues at this look, from the vectors of the one before."""
        empty = torch.empty(0, dtype=torch.float64)
        if self._of is None:
            return {"eigenvalues": empty, "residuals": empty, "num_products": 0}
        loss = here[self._of]
        H = hessian(loss, theta.to(loss.theta0)) if not loss.moving_names else hessian(loss)
        try:
            pairs = top_eigs(H, k=self._k, tol=self._tol, warm_start=self._pairs, progress=False)
        except NotConvergedError as error:
            found = error.result
            if not isinstance(found, Eigenpairs):
                raise
            pairs = found
            num = int(pairs.is_converged.sum())
            text = f"Recorder: {num} of {self._k} eigenvalues converged at step {self._num_steps}; the others are NaN."
            warn(text)
        self._pairs = pairs
        values = torch.where(pairs.is_converged, pairs.values, math.nan)
        return {"eigenvalues": values, "residuals": pairs.residuals, "num_products": pairs.num_products}
