"""How does a stack of seeds take a step, keep its history, and continue after an interruption?

The rows of one matrix of weights never meet: each has its own stream of batches, and an optimizer that would move one
row by what the gradients of the others are is refused before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowhanging.errors import explain
from lowhanging.model_loss import ModelLoss
from lowhanging.objective import Objective
from lowhanging.parameters import ParameterSpace
from lowhanging.results import load_result
from lowhanging.training_options import Schedule, as_optimizer, optimizer_identity

_TOGETHER = 16  # seeds in one pass of a CPU: few enough for its cache, enough to pay for vmap
_SHUFFLE = 2**31  # added to a seed: its batches come from another stream than its weights (generators use 32 bits)


@dataclass(frozen=True, eq=False, repr=False)
class Interrupted:
    """What a resume file holds: a run after `num_done` of its steps."""

    identity: dict[str, str]
    num_rows: int
    num_steps: int
    thetas: Tensor
    state: dict[str, Tensor]  # of the optimizer
    losses: dict[str, Tensor]
    accuracies: dict[str, Tensor]
    snapshots: dict[str, Tensor]


class Stack:
    """The weights of all seeds, their optimizer and their streams of batches."""

    def __init__(
        self,
        loss: ModelLoss,
        thetas: Tensor,
        tensors: tuple[Tensor, ...],
        seeds: list[int],
        optimizer: Any,
        lr: float | None,
        factor: Schedule,
        penalty: float,
        batch_size: int,
        steps: int,
    ):
        self._loss, self._factor, self._penalty, self._total = loss, factor, penalty, steps
        self._weights = nn.Parameter(thetas.clone())
        if isinstance(optimizer, torch.optim.Optimizer):
            received = "is an Optimizer of other parameters"
            remedy = "Pass functools.partial(torch.optim.AdamW, lr=1e-3)."
            raise TypeError(explain("optimizer", received, "a name, or a callable parameters -> Optimizer", remedy))
        self._optimizer = as_optimizer(optimizer, [self._weights], lr)
        _check_rows_apart(optimizer, lr)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._tensors = tuple(tensor.to(thetas.device) for tensor in tensors)
        self._size = min(batch_size, len(tensors[0]))
        self._is_whole = batch_size >= len(tensors[0])
        self._streams = [torch.Generator().manual_seed(_SHUFFLE + seed) for seed in seeds]
        self._pending = [torch.empty(0, dtype=torch.int64)] * len(seeds)
        self.num_done = 0

    @property
    def thetas(self) -> Tensor:
        """(s, p)."""
        return self._weights.detach().clone()

    def first_losses(self) -> Tensor:
        """(s,) mean losses of the first examples: with the weights they tell model and loss from others."""
        batch = tuple(tensor[: self._size] for tensor in self._tensors)
        with self._loss.context(), torch.no_grad():
            return torch.vmap(self._mean, in_dims=(0, None))(self._weights.detach(), batch)

    def optimizer_identity(self) -> str:
        """Kind, options and rates, in words that are the same in another process."""
        return optimizer_identity(self._optimizer, self._factor)

    def advance(self, num: int, bar: Any) -> Tensor:
        """Take `num` steps; each seed's mean loss (s,) over them, the penalty not included."""
        total = torch.zeros(len(self._weights), dtype=torch.float64, device=self._weights.device)
        one = torch.vmap(self._mean, in_dims=(0, None if self._is_whole else 0))
        together = _TOGETHER if total.device.type == "cpu" else len(total)
        parts = [slice(begin, begin + together) for begin in range(0, len(total), together)]
        with self._loss.context(), torch.enable_grad():
            for index in self._drawn(num):
                for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                    group["lr"] = rate * self._factor(self.num_done / self._total)
                gradient = torch.empty_like(self._weights)
                for part in parts:
                    batch = self._tensors if self._is_whole else tuple(tensor[index[part]] for tensor in self._tensors)
                    thetas = self._weights.detach()[part].requires_grad_()
                    means = one(thetas, batch)  # (seeds of this part,)
                    (gradient[part],) = torch.autograd.grad(means.sum(), thetas)
                    total[part] += means.detach()
                if self._penalty:
                    gradient += (2 * self._penalty) * self._weights.detach()
                self._weights.grad = gradient
                self._optimizer.step()
                self.num_done += 1
                bar.update()
        return (total / max(num, 1)).cpu()

    def skip(self, num: int) -> None:
        """Draw the batches of `num` steps without taking them."""
        for _ in self._drawn(num):
            self.num_done += 1

    def state(self) -> dict[str, Tensor]:
        """What the optimizer remembers."""
        return {name: torch.as_tensor(value) for name, value in self._optimizer.state[self._weights].items()}

    def restore(self, thetas: Tensor, state: Mapping[str, Tensor]) -> None:
        """Weights and memory of an interrupted run."""
        with torch.no_grad():
            self._weights.copy_(thetas)
        self._optimizer.state[self._weights] = {
            name: value.to(self._weights.device) if value.ndim else value for name, value in state.items()
        }

    def _mean(self, theta: Tensor, batch: Any) -> Tensor:
        part, terms = self._loss(theta, batch)
        mean: Tensor = part / terms
        return mean

    def _drawn(self, num: int) -> Iterator[Tensor]:
        """Indices (s, batch) of the next `num` steps."""
        if self._is_whole:
            yield from [torch.empty(0)] * num
            return
        length = len(self._tensors[0])
        for _ in range(num):
            rows = []
            for i, stream in enumerate(self._streams):
                while len(self._pending[i]) < self._size:
                    order = torch.randperm(length, generator=stream)
                    self._pending[i] = torch.cat([self._pending[i], order])
                rows.append(self._pending[i][: self._size])
                self._pending[i] = self._pending[i][self._size :]
            yield torch.stack(rows).to(self._weights.device)


class History:
    """Rows of losses, accuracies and snapshots."""

    def __init__(self, num: int, steps: Tensor, space: ParameterSpace, kept: list[str], sets: Mapping[str, Objective]):
        self.steps, self._space, self._sets = steps, space, sets
        empty = torch.full((num, len(steps)), math.nan, dtype=torch.float64)
        self._losses = {name: empty.clone() for name in ("train", *sets)}
        self._accuracies: dict[str, Tensor] = {}
        self._snapshots = {
            name: torch.empty(num, len(steps), *shape, dtype=space.dtype)
            for name, shape in zip(space.names, space.shapes, strict=True)
            if name in kept
        }

    def add(self, row: int, thetas: Tensor, train: Tensor) -> None:
        """Row number `row`, with the weights as they are."""
        self._losses["train"][:, row] = train
        for name, objective in self._sets.items():
            values, shares = objective.evaluate_many(thetas)
            self._losses[name][:, row] = values.cpu()
            if shares is not None:
                column = self._accuracies.setdefault(name, torch.full_like(self._losses[name], math.nan))
                column[:, row] = shares.cpu()
        for i, theta in enumerate(thetas.cpu() if self._snapshots else ()):
            weights = self._space.unflatten(theta)
            for name, rows in self._snapshots.items():
                rows[i, row] = weights[name]

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Losses, accuracies, snapshots."""
        return self._losses, self._accuracies, self._snapshots

    def starts_as(self, stored: Interrupted, thetas: Tensor) -> bool:
        """Whether the evaluations of the initial weights are those that the file begins with, bit for bit."""
        for name, objective in self._sets.items():
            values, shares = objective.evaluate_many(thetas)
            before = stored.accuracies.get(name)
            if not torch.equal(values.cpu().nan_to_num(), stored.losses[name][:, 0].nan_to_num()):
                return False
            if (shares is None) != (before is None):
                return False
            if shares is not None and before is not None and not torch.equal(shares.cpu(), before[:, 0]):
                return False
        return True

    def restore(self, stored: Interrupted) -> None:
        """Rows of an interrupted run."""
        self._losses, self._accuracies, self._snapshots = stored.losses, stored.accuracies, stored.snapshots


def restore(path: Path, identity: Mapping[str, str], stack: Stack, history: History, thetas: Tensor) -> int:
    """Continue from a file, if its evaluations of the initial weights are those of now; the number of rows it holds."""
    try:
        stored = load_result(Interrupted, path)
    except (ValueError, TypeError, OSError) as error:
        received = f"is {str(path)!r}, no resume file of a stack"
        raise ValueError(explain("resume", received, "a new file or that of this run", "Name another file.")) from error
    different = [key for key in identity if identity[key] != stored.identity.get(key)]
    if not different and not history.starts_as(stored, thetas):
        different = ["evaluate"]
    if different:
        received = f"is {str(path)!r}, the file of a run with another {', '.join(different)}"
        remedy = "Name another file, or repeat the call that made this one."
        raise ValueError(explain("resume", received, "a new file or that of this run", remedy))
    stack.skip(stored.num_steps)
    stack.restore(stored.thetas, stored.state)
    history.restore(stored)
    return stored.num_rows


def _check_rows_apart(optimizer: Any, lr: float | None) -> None:
    """An error unless a row of the matrix moves as it would alone, whatever the gradients of the other rows."""
    generator = torch.Generator().manual_seed(0)
    start, gradients = (torch.randn(3, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    moved = []
    for rows, others in ((1, 1.0), (3, 1.0), (3, 1e3)):
        weights = nn.Parameter(start[:rows].clone())
        stepper = as_optimizer(optimizer, [weights], lr)
        scale = torch.tensor([[1.0], [others], [others]], dtype=torch.float64)[:rows]
        for step in range(3):
            weights.grad = (1 + 0.5 * step) * scale * gradients[:rows]
            try:
                stepper.step()
            except TypeError as error:
                received = f"is {type(stepper).__name__}, whose step asks for the loss ({error})"
                remedy = "Use Adam, AdamW or SGD, or train the seeds one by one with train."
                expected = "an optimizer that steps on gradients"
                raise ValueError(explain("optimizer", received, expected, remedy)) from error
        moved.append(weights.detach()[0])
    if not all(torch.allclose(row, moved[0], rtol=1e-9, atol=1e-12) for row in moved):
        received = f"is {type(stepper).__name__}, which moves a seed by what the other seeds' gradients are"
        remedy = "Use Adam, AdamW or SGD, or train the seeds one by one with train."
        raise ValueError(explain("optimizer", received, "one that acts on each number by itself", remedy))
