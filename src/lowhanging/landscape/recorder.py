"""Weights, losses and top Hessian eigenvalues along a training loop of the user's own.

The loop stays the user's: after each optimizer step it calls `Recorder.step()`, and every so many steps the weights are
copied and measured. Consecutive Hessians are alike, so each eigenvalue search starts from the eigenvectors of the one
before. A recorder reads the model and nothing else of the training; a measurement that fails is a warning and NaN,
because hours of training are worth more than one number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowhanging.curvature.eigenpairs import Eigenpairs, top_eigs
from lowhanging.curvature.operators import hessian, plain_arithmetic
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
from lowhanging.objective.checkpoints import Checkpoint, checkpoint_of_row, same_values, tracked_buffers
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.objective.protocol import Loss, as_losses, check_loss
from lowhanging.objective.random_state import untouched_random_state
from lowhanging.tables import Columns, Tabular, with_losses


@dataclass(frozen=True, eq=False, repr=False)
class TrainingRecord(Saved, Tabular):
    """What a `Recorder` saw at t steps of a training; tensors are on the CPU.

    Every tool that takes a training run or a list of checkpoints takes a record too: `principal_directions(record)`,
    `path_slice(loss, record)`, `plane_trajectory(plane, record)`, `loss.at(record.checkpoint(i))`. `losses`,
    `accuracies` and `numbers` are NaN where they were not measured or given.
    """

    steps: Tensor  # (t,) int64, optimizer steps done
    thetas: Tensor  # (t, p) rows are theta, in ParameterSpace order; (0, p) without `keep_weights`
    buffers: dict[str, Tensor]  # name -> (t, ...) buffers that training moves
    losses: dict[str, Tensor]  # name -> (t,) float64, mean loss
    accuracies: dict[str, Tensor]  # name -> (t,) float64 in [0, 1]; only losses with class targets
    numbers: dict[str, Tensor]  # name -> (t,) float64, what `step(name=...)` was given at these steps
    ritz_values: Tensor  # (t, k) float64, descending: all that the searches found, converged or not; NaN: nothing
    residuals: Tensor  # (t, k) float64, |H v - value v|
    is_converged: Tensor  # (t, k) bool
    num_products: Tensor  # (t,) int64, Hessian products of each search
    eigenpairs: str  # the loss whose Hessian it is; "" for none
    parameters: dict[str, tuple[int, ...]]  # name -> shape, in the order of theta
    seconds: float  # spent in the recorder

    @property
    def eigenvalues(self) -> Tensor:
        """(t, k) float64, top eigenvalues of the Hessian, descending; NaN where the search missed its tolerance."""
        return torch.where(self.is_converged, self.ritz_values, math.nan)

    def columns(self) -> Columns:
        """One row for each recorded step: "step", losses, accuracies and numbers by name, "eigenvalue 1" and so on."""
        found = with_losses({"step": self.steps.tolist()}, self.losses, self.accuracies)
        found |= {name: row.tolist() for name, row in self.numbers.items()}
        return found | {f"eigenvalue {i + 1}": row.tolist() for i, row in enumerate(self.eigenvalues.T)}

    @property
    def num_checkpoints(self) -> int:
        """Rows of `thetas`."""
        return len(self.thetas)

    def __repr__(self) -> str:
        shape = [math.prod(size) for size in self.parameters.values()]
        t = len(self.steps)
        parts = [f"{t} record{'s' * (t != 1)} of {sum(shape):,} parameters, step {self.steps[0]} to {self.steps[-1]}"]
        for name, row in {**self.losses, **self.numbers}.items():
            known = row[~row.isnan()]
            parts += [f"{name} {known[0]:.3g} to {known[-1]:.3g}"] if len(known) else []
        if self.eigenpairs:
            top = self.eigenvalues[:, 0]
            missed = int((~self.is_converged).any(1).sum())
            text = f"top eigenvalue of {self.eigenpairs!r} {top[0]:.4g} to {top[-1]:.4g}"
            text += f", {missed} of {t} SEARCHES NOT CONVERGED" if missed else ""
            parts.append(f"{text}, {int(self.num_products.sum()):,} products")
        parts.append(f"{self.seconds:.1f} s")
        return f"TrainingRecord({'; '.join(parts)})"

    def checkpoint(self, i: int = -1) -> Checkpoint:
        """The network at `steps[i]` with its buffers: a point for `loss.at`, `path_slice`, `principal_directions` ...

        Args:
            i: row of `thetas`; negative ones from the end.
        """
        remedy = "See record.steps." if self.num_checkpoints else "Record with keep_weights=True to have them."
        return checkpoint_of_row(i, self.thetas, self.buffers, remedy=remedy)

    def state_dict(self, i: int = -1) -> dict[str, Tensor]:
        """The weights at `steps[i]` by name, for `model.load_state_dict(..., strict=False)`.

        The trainable parameters, a shared one under its first name, and the buffers that training moves; not what stays
        as it is.

        Args:
            i: row of `thetas`; negative ones from the end.
        """
        point = self.checkpoint(i)
        parts = torch.split(point.theta, [math.prod(shape) for shape in self.parameters.values()])
        named = zip(self.parameters.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named} | point.buffers


class _Row(NamedTuple):
    step: int
    theta: Tensor | None
    buffers: dict[str, Tensor]
    losses: dict[str, float]
    accuracies: dict[str, float]
    numbers: dict[str, float]
    pairs: Eigenpairs | None


@door
class Recorder:
    r"""Record the weights, losses and top Hessian eigenvalues of a model along a training loop of your own.

    Call `step()` after each optimizer step, and `record()` when you want the result. The model's weights, gradients,
    modes and buffers and the global random states are never changed: the training goes on to the same bits as without.

    Args:
        model: the module that is trained; of a wrapped one (DistributedDataParallel, torch.compile) the module inside.
        every: record after every so many steps: 0, every, 2 every, ...
        losses: name -> objective, or one, to be evaluated at each record with the weights and buffers of the moment.
        eigenpairs: name of the loss whose top Hessian eigenvalues are recorded; None for none.
        k: how many eigenvalues.
        tol: residual allowed, relative to the largest eigenvalue, as in `top_eigs`.
        max_products: limit on the products of each search, as in `top_eigs`.
        keep_weights: False keeps no theta, for networks of which t copies are too many: losses and eigenvalues alone.
        initial: whether to record the model as it is now, before the first step.
        start: number of steps done already, of a training that goes on.

    Attributes:
        num_steps: steps so far.

    Raises:
        ValueError, TypeError: an argument is out of range, a loss is of another model, a name is none of the losses';
            at a record, a parameter that was frozen when the recorder was made no longer is.

    Warns:
        RuntimeWarning: a search missed its tolerance, or a later record could not be measured (the loss is infinite,
            the memory full): the record has NaN there, with what was found in `ritz_values`, and training goes on. The
            first record raises what is wrong with a loss, so that it shows before hours were spent.

    Cost:
        of a step that is not recorded: nothing. Of a record: a copy of p numbers to the CPU, kept (4 p bytes in
        float32, as much again per k eigenvectors while a search runs, and twice all of it for a moment in `record()`:
        100 records of 1,000,000 weights are 0.4 GB); one pass over the data of each loss; and a search of k eigenpairs,
        about 2 k + 20 products at first, fewer from the eigenvectors of the record before where the Hessian changed
        little. Each loss holds a copy of the model on its device.

    Example:
        >>> model, (inputs, targets) = nn.Linear(4, 3), (torch.randn(20, 4), torch.arange(20) % 3)
        >>> loss_of_all = Objective(model, (inputs, targets))
        >>> recorder = Recorder(model, every=2, losses={"all": loss_of_all}, eigenpairs="all", k=1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for _ in range(4):
        ...     loss = nn.functional.cross_entropy(model(inputs), targets)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     recorder.step(loss=loss)
        >>> recorder.record().eigenvalues.shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int,
        losses: Loss | Mapping[str, Loss] | None = None,
        eigenpairs: str | None = None,
        k: int = 5,
        tol: float = 1e-4,
        max_products: int | None = None,
        keep_weights: bool = True,
        initial: bool = True,
        start: int = 0,
    ):
        if not isinstance(model, nn.Module):
            remedy = "Pass the module that your loop trains."
            raise TypeError(argument_message("model", f"is {a_type(model)}", "a torch.nn.Module", remedy))
        self.model, self._space = model, ParameterSpace(model)
        self.every = check_count("every", every, remedy="Pass the steps between two records, such as 50.")
        self._losses = {} if losses is None else _checked_losses(losses, self._space)
        if eigenpairs is not None:
            remedy = "Name the loss whose Hessian is meant, and pass it in losses={name: objective}."
            check_choice("eigenpairs", eigenpairs, list(self._losses), remedy=remedy)
        self.eigenpairs = eigenpairs
        remedy = f"The Hessian has {self._space.num_params} eigenvalues."
        self.k = check_count("k", k, maximum=self._space.num_params, remedy=remedy) if eigenpairs is not None else 0
        tol = check_real("tol", tol, minimum=0.0, maximum=1.0, exclusive=True, remedy="1e-4 is a good start.")
        self._search: dict[str, Any] = {"tol": tol, "max_products": max_products, "progress": False}
        self._keeps_weights = keep_weights
        self.num_steps = check_count("start", start, minimum=0, remedy="Pass the steps that were done already.")
        self._rows: list[_Row] = []
        self._known: Tensor | None = None  # eigenvectors of the last search
        self._seconds = 0.0
        if initial:
            self._add({})

    def __repr__(self) -> str:
        done = f"{len(self._rows)} records so far, at step {self.num_steps:,}"
        return f"Recorder({self._space.owner}, every {self.every:,} steps; {done})"

    def step(self, **numbers: float | Tensor) -> None:
        """Count one optimizer step, and record where it is due.

        Args:
            **numbers: of your own, such as `loss=loss`, kept where a record is made; a tensor of one number is read
                only there, so that a GPU is not waited for in between.
        """
        for name, value in numbers.items():
            _check_number(name, value)
        self.num_steps += 1
        if self.num_steps % self.every == 0:
            self._add(numbers)

    def add(self, **numbers: float | Tensor) -> None:
        """Record now, whatever `every` says, such as after the last step; nothing where this step is recorded.

        Args:
            **numbers: as of `step`, which this is none of.
        """
        for name, value in numbers.items():
            _check_number(name, value)
        if not self._rows or self._rows[-1].step != self.num_steps:
            self._add(numbers)

    def record(self) -> TrainingRecord:
        """All that was recorded so far.

        Raises:
            ValueError: nothing was.
        """
        rows = self._rows
        if not rows:
            received, remedy = f"has no record after {self.num_steps} steps", "Call recorder.add() to make one now."
            raise ValueError(argument_message("recorder", received, "at least one", remedy))
        thetas = [row.theta for row in rows if row.theta is not None]
        searches = [_search_row(row.pairs, self.k) for row in rows]
        return TrainingRecord(
            steps=torch.tensor([row.step for row in rows]),
            thetas=torch.stack(thetas) if thetas else torch.empty(0, self._space.num_params, dtype=self._space.dtype),
            buffers={name: torch.stack([row.buffers[name] for row in rows]) for name in self._moved_buffers()},
            losses=_columns([row.losses for row in rows]),
            accuracies=_columns([row.accuracies for row in rows]),
            numbers=_columns([row.numbers for row in rows]),
            ritz_values=torch.stack([values for values, _, _ in searches]),
            residuals=torch.stack([residuals for _, residuals, _ in searches]),
            is_converged=torch.stack([is_converged for _, _, is_converged in searches]),
            num_products=torch.tensor([0 if row.pairs is None else row.pairs.num_products for row in rows]),
            eigenpairs=self.eigenpairs or "",
            parameters={n: tuple(shape) for n, shape in zip(self._space.names, self._space.shapes, strict=True)},
            seconds=self._seconds,
        )

    def _add(self, numbers: Mapping[str, Any]) -> None:
        """One row more; what could not be measured is warned of when the row stands."""
        started, failures = time.perf_counter(), list[str]()
        losses, accuracies, pairs = dict.fromkeys(self._losses, math.nan), dict[str, float](), None
        with torch.inference_mode(False), plain_arithmetic(), untouched_random_state():
            self._check_parameters()
            theta = self._space.flatten(self.model).cpu()
            for name, loss in self._losses.items():
                try:
                    here = loss.at(theta if loss.space is None else self.model)
                    value, accuracy = here.evaluate(here.theta0)
                    losses[name], accuracies = float(value), accuracies | _named(name, accuracy)
                    if name == self.eigenpairs:
                        pairs = self._eigenpairs(here, failures)
                except Exception as error:
                    if not self._rows:
                        error.add_note(f"This is about losses[{name!r}].")
                        raise
                    failures.append(f"losses[{name!r}] could not be measured: {type(error).__name__}: {error}")
            self._rows.append(
                _Row(
                    self.num_steps, theta if self._keeps_weights else None, self._buffers(), losses, accuracies,
                    {name: float(torch.as_tensor(value).detach()) for name, value in numbers.items()}, pairs,
                )
            )  # fmt: skip
        self._seconds += time.perf_counter() - started
        for failure in failures:
            warn(f"Recorder at step {self.num_steps}: {failure}", RuntimeWarning)

    def _eigenpairs(self, loss: Loss, failures: list[str]) -> Eigenpairs:
        """The top pairs, as many of them converged as there are; those of the last search to start from."""
        try:
            pairs = top_eigs(hessian(loss), self.k, warm_start=self._known, **self._search)
        except NotConvergedError as error:
            pairs = error.result
            num = int(pairs.is_converged.sum())
            failures.append(f"{num} of {self.k} eigenvalues converged, the others are NaN: {error}")
        if bool(torch.isfinite(pairs.vectors).all()):
            self._known = pairs.vectors
        return pairs

    def _buffers(self) -> dict[str, Tensor]:
        """A copy of all; what has not changed since the last row is shared with it."""
        last, found = self._rows[-1].buffers if self._rows else {}, {}
        for name, buffer in self.model.named_buffers() if self._keeps_weights else ():
            new = buffer.detach().cpu()
            found[name] = last[name] if name in last and same_values(last[name], new) else new.clone()
        return found

    def _moved_buffers(self) -> list[str]:
        """Names of those that belong to a checkpoint: a norm's statistics, and what has changed; all of one row."""
        first, last = self._rows[0].buffers, self._rows[-1].buffers
        tracked = tracked_buffers(self.model)
        is_moved = {name: any(row.buffers[name] is not first[name] for row in self._rows) for name in last}
        return [name for name in last if len(self._rows) == 1 or is_moved[name] or name in tracked]

    def _check_parameters(self) -> None:
        now = {name for name, weight in self.model.named_parameters() if weight.requires_grad} - self._space.ties.keys()
        added = sorted(now - set(self._space.names))
        if added:
            received = f"has trainable parameters {added[:4]} that were frozen when the recorder was made"
            remedy = "Make another recorder, and other losses, for this part of the training: start=recorder.num_steps."
            raise ValueError(argument_message("model", received, "the same parameters throughout", remedy))


def _checked_losses(losses: Any, space: ParameterSpace) -> dict[str, Loss]:
    """Name -> loss, each of as many parameters as the model has."""
    found = as_losses(losses)
    for name, loss in found.items():
        check_loss(f"losses[{name!r}]", loss)
        if loss.num_params != space.num_params:
            received = f"has {loss.num_params} parameters"
            expected = f"a loss of the model, which has {space.num_params}"
            remedy = "Make it of the same module: lh.Objective(model, data)."
            raise ValueError(argument_message(f"losses[{name!r}]", received, expected, remedy))
    return found


def _check_number(name: str, value: Any) -> None:
    is_one = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    if not is_one and not isinstance(value, Real):
        shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else a_type(value)
        remedy = "Pass a mean or another summary of it, such as loss=loss.item()."
        raise TypeError(argument_message(name, f"is {shape}", "a number, or a tensor of one", remedy))


def _named(name: str, value: float | None) -> dict[str, float]:
    return {} if value is None else {name: value}


def _columns(rows: list[dict[str, float]]) -> dict[str, Tensor]:
    """Name -> (t,) float64, NaN where a row lacks the name."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: torch.tensor([row.get(name, math.nan) for row in rows], dtype=torch.float64) for name in names}


def _search_row(pairs: Eigenpairs | None, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values, residuals and whether they converged, (k,) each; NaN where nothing was found."""
    if pairs is not None:
        return pairs.values, pairs.residuals, pairs.is_converged
    nothing = torch.full((k,), math.nan, dtype=torch.float64)
    return nothing, nothing, torch.zeros(k, dtype=torch.bool)
