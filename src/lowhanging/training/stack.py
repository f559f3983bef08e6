"""What may a stack be made of: seeds, tensors, modules that differ in their weights only?

The arguments of `train_stack`, checked and filled in: a preset brings its own data and settings, a factory must make
its weights from the seed alone.

How does a stack of seeds take a step, keep its history, and continue after an interruption?

The rows of one matrix of weights never meet: each has its own stream of batches, and an optimizer that would move one
row by what the gradients of the others are is refused before the first step.

How are many seeds trained at once, each as if it were alone?

The weights of all seeds are one matrix, a row theta (p,) per seed. The forward pass is vmapped over its rows, one
backward pass gives every seed's gradient (no seed's loss depends on another's weights), and one optimizer steps the
matrix. Each seed draws its weights and its batches from generators of its own, so it takes the same steps in whatever
stack it is trained; nothing that mixes rows (dropout's one random state, a norm over all weights) is let in.
"""

from __future__ import annotations

import fnmatch
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lowhanging.errors import (
    NotConvergedError,
    NotSmoothWarning,
    a_type,
    argument_message,
    check_choice,
    check_count,
    check_real,
)
from lowhanging.io import ResumeFile, Saved, digest
from lowhanging.objective.batches import ShuffledBatches
from lowhanging.objective.model_loss import BatchLoss, LossFn, ModelLoss
from lowhanging.objective.objective import Objective
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.training.options import (
    MakeOptimizer,
    Schedule,
    as_optimizer,
    as_schedule,
    evaluation_sets,
    optimizer_identity,
)
from lowhanging.training.presets import PRESETS


def filled(model_factory: Any, data: Any, **given: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Factory, data and training arguments, with what was left out filled in from a preset or the general defaults."""
    defaults: Mapping[str, Any] = {"steps": 1000, "batch_size": 256, "lr": None, "penalty": 0.0}
    if isinstance(model_factory, str):
        remedy = "Or pass seed -> module: lambda seed: lh.ModularMLP(seed=seed)."
        preset = PRESETS[check_choice("model_factory", model_factory, tuple(PRESETS), remedy=remedy)]
        data = preset.data().train if data is None else data
        p = preset.model_arguments["p"]
        tokens = stored_tensors(data)[0]
        if int(tokens[:, :2].max()) + 1 != p:
            received = f"has tokens up to {int(tokens[:, :2].max())}"
            remedy = f"Pass lh.modular_addition(p={p}, ...).train, or leave it out."
            raise ValueError(argument_message("data", received, f"sums modulo {p}, as preset {preset.name!r}", remedy))
        model_factory, defaults = preset.factory, {**defaults, **preset.training_arguments}
    elif data is None:
        remedy = "Only a preset brings its own, such as lh.train_stack('births')."
        raise ValueError(
            argument_message("data", "is missing", "a tuple (inputs, targets) of tensors, or a data set", remedy)
        )
    return model_factory, data, {name: defaults[name] if given[name] is None else given[name] for name in defaults}


def checked_seeds(seeds: Any) -> list[int]:
    remedy = "Pass different non-negative integers, such as range(64)."
    if isinstance(seeds, int) or not isinstance(seeds, Iterable):
        raise TypeError(argument_message("seeds", f"is {seeds!r}", "several seeds", remedy))
    items = seeds.tolist() if isinstance(seeds, Tensor) else seeds
    found = [check_count("an entry of seeds", seed, minimum=0, remedy=remedy) for seed in items]
    if not found or len(set(found)) != len(found):
        raise ValueError(argument_message("seeds", f"are {found[:8]}", "at least one, all different", remedy))
    return found


def stored_tensors(data: Any) -> tuple[Tensor, ...]:
    tensors = ShuffledBatches(data, 1).tensors
    if tensors is None or not len(tensors[0]):
        received = f"is {a_type(data)}" + ("" if tensors is None else " without examples")
        expected = "a tuple (inputs, targets) of tensors, or a data set that stores them"
        remedy = "From a list of batches: tuple(map(torch.cat, zip(*batches)))."
        raise ValueError(argument_message("data", received, expected, remedy))
    return tensors


def logged_steps(steps: int, log_every: int) -> Tensor:
    return torch.tensor(sorted({*range(0, steps + 1, log_every), steps}))


def matching(space: ParameterSpace, patterns: list[str]) -> list[str]:
    found = []
    for pattern in patterns:
        names = [name for name in space.names if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            received = f"asks for {pattern!r}"
            raise ValueError(
                argument_message("snapshots", received, f"names among {list(space.names)}", "See space.names.")
            )
        found += [name for name in names if name not in found]
    return found


def stacked(
    model_factory: Any,
    seeds: list[int],
    tensors: tuple[Tensor, ...],
    loss_fn: LossFn | None,
    batch_loss: BatchLoss | None,
    device: Any,
) -> tuple[ModelLoss, Tensor]:
    """The loss of one seed as a function of its theta, and the thetas (s, p) of all."""
    if not callable(model_factory) or isinstance(model_factory, nn.Module):
        remedy = "Pass lambda seed: lh.ModularMLP(seed=seed), or 'births'."
        raise TypeError(
            argument_message(
                "model_factory",
                f"is {a_type(model_factory)}",
                "seed -> module, or the name of a preset",
                remedy,
            )
        )
    first = model_factory(seeds[0])
    loss = ModelLoss(
        first, tensors, loss_fn=loss_fn, batch_loss=batch_loss, mode="as_is", device=device, cache=True,
        micro_batch=None,
    )  # fmt: skip
    trained = set(loss.space.names)
    constants = _constants(first, trained)
    rows = []
    for seed in seeds:
        model = model_factory(seed)
        other = _constants(model, trained)
        is_same = other.keys() == constants.keys() and all(torch.equal(other[key], constants[key]) for key in other)
        if not is_same:
            received = f"gives seed {seed} other buffers or frozen parameters than seed {seeds[0]}"
            raise ValueError(argument_message("model_factory", received, "modules that differ in their weights only",
                                     "Register what should differ as trainable parameters."))  # fmt: skip
        rows.append(loss.space.flatten(model))
    if any(torch.equal(row, rows[0]) for row in rows[1:]) or not torch.equal(
        loss.space.flatten(model_factory(seeds[0])), rows[0]
    ):
        message = (
            "model_factory does not make its weights from the seed alone: two seeds begin alike, or one seed "
            "differently each time. Begin it with torch.manual_seed(seed), or pass the seed on."
        )
        warnings.warn(message, UserWarning, stacklevel=3)
    return loss, torch.stack(rows)


def _constants(model: nn.Module, trained: set[str]) -> dict[str, Tensor]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items() if name not in trained}


_TOGETHER = 16  # seeds in one pass of a CPU: few enough for its cache, enough to pay for vmap
_SHUFFLE = 2**31  # added to a seed: its batches come from another stream than its weights (generators use 32 bits)


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
            raise TypeError(
                argument_message("optimizer", received, "a name, or a callable parameters -> Optimizer", remedy)
            )
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

    def starts_as(self, stored: Mapping[str, Any], thetas: Tensor) -> bool:
        """Whether the evaluations of the initial weights are those that the file begins with, bit for bit."""
        for name, objective in self._sets.items():
            values, shares = objective.evaluate_many(thetas)
            before = stored["accuracies"].get(name)
            if not torch.equal(values.cpu().nan_to_num(), stored["losses"][name][:, 0].nan_to_num()):
                return False
            if (shares is None) != (before is None):
                return False
            if shares is not None and before is not None and not torch.equal(shares.cpu(), before[:, 0]):
                return False
        return True

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Rows of an interrupted run."""
        self._losses, self._accuracies, self._snapshots = (
            dict(stored[name]) for name in ("losses", "accuracies", "snapshots")
        )


def restore(file: ResumeFile, stack: Stack, history: History, thetas: Tensor) -> int:
    """Continue from a file, if its evaluations of the initial weights are those of now; the number of rows it holds."""
    stored = file.read()
    if stored is None:
        return 0
    with file.decoding():
        is_same = history.starts_as(stored, thetas)
    if not is_same:
        file.refuse(["evaluate"])
    with file.decoding():
        stack.skip(stored["num_steps"])
        stack.restore(stored["thetas"], stored["optimizer"])
        history.restore(stored)
        return int(stored["num_rows"])


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
                raise ValueError(argument_message("optimizer", received, expected, remedy)) from error
        moved.append(weights.detach()[0])
    if not all(torch.allclose(row, moved[0], rtol=1e-9, atol=1e-12) for row in moved):
        received = f"is {type(stepper).__name__}, which moves a seed by what the other seeds' gradients are"
        remedy = "Use Adam, AdamW or SGD, or train the seeds one by one with train."
        raise ValueError(argument_message("optimizer", received, "one that acts on each number by itself", remedy))


ModelFactory = Callable[[int], nn.Module]


@dataclass(frozen=True, eq=False, repr=False)
class StackRun(Saved):
    """Many seeds of one training run; row i of everything belongs to seeds[i]."""

    unsaved = ("factory",)

    seeds: Tensor  # (s,) int64
    steps: Tensor  # (logs,) int64, optimizer steps taken before each row of the history; the first is 0
    losses: dict[str, Tensor]  # name -> (s, logs) float64; "train" is the mean over the steps since the last row
    accuracies: dict[str, Tensor]  # name -> (s, logs) float64 in [0, 1]; only sets with class targets
    snapshots: dict[str, Tensor]  # parameter name -> (s, logs, *shape)
    thetas: Tensor  # (s, p) the weights at the end
    seconds: float
    factory: ModelFactory | None = None  # seed -> model; not saved
    preset: str | None = None  # the name that was given instead of a factory

    def __repr__(self) -> str:
        rows, scale, unit = (self.accuracies, 100, " %") if self.accuracies else (self.losses, 1, "")
        quantity = "accuracy" if self.accuracies else "loss"
        final = ", ".join(f"{name} {scale * float(row[:, -1].median()):.3g}{unit}" for name, row in rows.items())
        size = f"{len(self.seeds)} seeds, {int(self.steps[-1]):,} steps in {self.seconds:.1f} s"
        return f"StackRun({size}; median {quantity}: {final})"

    def index(self, seed: int) -> int:
        """The row of a seed."""
        seed = int(seed)
        found = (self.seeds == seed).nonzero()[:, 0].tolist()
        if not found:
            listed = f"{int(self.seeds.min())} to {int(self.seeds.max())}"
            expected = f"one of the {len(self.seeds)} trained, {listed}"
            raise ValueError(argument_message("seed", f"is {seed!r}", expected, "See run.seeds."))
        return int(found[0])

    def model(self, seed: int, factory: ModelFactory | None = None) -> nn.Module:
        """A module of its own with the weights of one seed, for every other tool of the library.

        Args:
            seed: one of `seeds`.
            factory: seed -> model, as given to `train_stack`; needed for a run that was loaded from a file, unless it
                is that of a preset.
        """
        preset = PRESETS.get(self.preset or "")
        make = factory or self.factory or (preset.factory if preset else None)
        if make is None:
            received = "is missing, and a run read from a file has none"
            raise ValueError(
                argument_message("factory", received, "seed -> model", "Pass the one given to train_stack.")
            )
        seed = int(seed)
        model = make(seed)
        weights = ParameterSpace(model).unflatten(self.thetas[self.index(seed)])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        return model


def train_stack(
    model_factory: ModelFactory | str,
    data: Any = None,
    seeds: Iterable[int] = range(64),
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    optimizer: Literal["adam", "sgd"] | MakeOptimizer = "adam",
    schedule: Literal["cosine", "constant"] | Schedule = "constant",
    penalty: float | None = None,
    loss_fn: LossFn | None = None,
    batch_loss: BatchLoss | None = None,
    evaluate: Mapping[str, Any] | None = None,
    snapshots: str | Sequence[str] = (),
    log_every: int = 50,
    device: torch.device | str | None = None,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> StackRun:
    r"""Train one model per seed, all at once: the same runs as one by one, in a fraction of the time.

    Seed s minimises L(theta) + penalty |theta|^2 from the weights of `model_factory(s)`, on batches of a stream of
    random orders of the data that a generator of its own draws (each example once before any comes again, no ragged
    batch). The run of a seed depends on nothing else in the stack: to the bit on one thread of a CPU with a batch that
    is a multiple of 32, else to rounding, which a long run amplifies (torch rounds the activations of the last few
    numbers of a tensor differently).

    Args:
        model_factory: seed -> module, such as `lambda seed: lh.ModularMLP(seed=seed)`. All modules have the same
            shapes, buffers and frozen parameters. Dropout, BatchNorm and what else is random or mixes examples is
            refused. Or the name of a preset, a key of `lh.training.PRESETS`: its models, and its data, steps, batch size, rate
            and penalty where the arguments below are left out.
        data: tuple `(inputs, targets)` of tensors, or a data set that stores such tensors. May be left out for a
            preset: the training pairs of its `data()`.
        seeds: of weights and batches, all different, not negative.
        steps: optimizer steps, >= 1; None is 1000.
        batch_size: examples per step, None is 256; a data set that is not larger is taken whole, in order.
        lr: learning rate at the start; None is 0.02. A callable optimizer brings its own: leave this out.
        optimizer: "adam", "sgd", or a callable `parameters -> Optimizer`. It gets one parameter, the (s, p) matrix of
            all weights, and must act on each number by itself, as Adam, AdamW and SGD do.
        schedule: factor on the learning rate at each step: "constant", "cosine" or a callable of the share done.
        penalty: c of c |theta|^2, over all trainable weights; >= 0, None is 0.
        loss_fn: `(outputs, targets) -> mean loss`; None is cross-entropy of integer classes.
        batch_loss: `(model, batch) -> (sum, count)` instead.
        evaluate: name -> data set, in any form that `Objective` takes; measured at every row of the history.
        snapshots: names of parameters (or patterns such as "embed*") to keep at every row of the history.
        log_every: steps between rows; rows stand at 0, log_every, ..., and at the last step.
        device: where to train; by default where the models are.
        resume: npz file written at every row: the same call continues from it, to the same bits.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        StackRun: histories (s, logs), snapshots, the weights at the end, `.model(seed)`.

    Raises:
        NotConvergedError: a seed's loss or weights became NaN or infinite; `.result` is the whole run.
        ValueError, TypeError: an argument out of range, an unknown preset, data that are no tensors, modules that
            differ in more than their weights, a resume file of another call.

    Cost:
        memory: s p numbers, four times over with Adam, and the activations of s batches.
    """
    wanted = checked_seeds(seeds)
    preset = model_factory if isinstance(model_factory, str) else None
    make, data, given = filled(model_factory, data, steps=steps, batch_size=batch_size, lr=lr, penalty=penalty)
    steps, batch_size, penalty = given["steps"], given["batch_size"], given["penalty"]
    lr = given["lr"] if isinstance(optimizer, str) else lr  # an optimizer of the caller's brings its own
    counts = {"steps": steps, "batch_size": batch_size, "log_every": log_every}
    for name, value in counts.items():
        check_count(name, value, remedy=f"Pass a positive number of {'examples' if name == 'batch_size' else 'steps'}.")
    penalty = check_real("penalty", penalty, minimum=0.0, remedy="Such as 1e-3.")
    tensors = stored_tensors(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotSmoothWarning)  # kinks are no matter for training
        loss, thetas = stacked(make, wanted, tensors, loss_fn, batch_loss, device)
        sets = {
            name: Objective(
                make(wanted[0]), given, loss_fn=loss_fn, batch_loss=batch_loss, device=device, distributed=False
            )
            for name, given in evaluation_sets(evaluate).items()
        }
    kept = matching(loss.space, [snapshots] if isinstance(snapshots, str) else list(snapshots))
    stack = Stack(loss, thetas, tensors, wanted, optimizer, lr, as_schedule(schedule), penalty, batch_size, steps)
    history = History(len(wanted), logged_steps(steps, log_every), loss.space, kept, sets)
    begun = time.perf_counter()
    identity = {
        "model or loss": digest(thetas, stack.first_losses()),
        "data": digest(*tensors),
        "seeds, steps, batch_size, log_every or penalty": repr((wanted, steps, batch_size, log_every, penalty)),
        "optimizer, lr or schedule": stack.optimizer_identity(),
        "snapshots": repr(kept),
        "evaluate": repr(sorted(sets)),
    }
    file = None if resume is None else ResumeFile(resume, identity, kind="a training of a stack")
    row = 0 if file is None else restore(file, stack, history, thetas)
    if row == 0:
        history.add(0, stack.thetas, torch.full((len(wanted),), math.nan, dtype=torch.float64))
        row = 1
    delay = 2.0 if progress is None else 0.0
    bar = tqdm(
        total=steps, initial=stack.num_done, desc="train stack", unit="step", disable=progress is False, delay=delay
    )
    with bar:
        for number in range(row, len(history.steps)):
            mean = stack.advance(int(history.steps[number]) - stack.num_done, bar)
            history.add(number, stack.thetas, mean)
            losses, accuracies, shots = history.tensors()
            if file is not None:
                file.keep(
                    {
                        "num_rows": number + 1,
                        "num_steps": stack.num_done,
                        "thetas": stack.thetas.clone(),
                        "optimizer": {name: value.clone() for name, value in stack.state().items()},
                        "losses": losses,
                        "accuracies": accuracies,
                        "snapshots": shots,
                    },
                    now=number == len(history.steps) - 1,
                )
    losses, accuracies, shots = history.tensors()
    run = StackRun(
        seeds=torch.tensor(wanted),
        steps=history.steps,
        losses=losses,
        accuracies=accuracies,
        snapshots=shots,
        thetas=stack.thetas.cpu(),
        seconds=time.perf_counter() - begun,
        factory=make,
        preset=preset,
    )
    is_fine = torch.isfinite(run.thetas).all(1) & torch.isfinite(run.losses["train"][:, 1:]).all(1)
    bad = [seed for seed, fine in zip(wanted, is_fine.tolist(), strict=True) if not fine]
    if bad:
        received = f"made the loss or the weights of {len(bad)} of {len(wanted)} seeds NaN or infinite: {bad[:8]}"
        message = argument_message(
            "lr",
            received,
            "a learning rate at which they stay finite",
            "Pass a smaller lr, or an optimizer with one; see .result.",
        )
        raise NotConvergedError(message, run)
    return run
