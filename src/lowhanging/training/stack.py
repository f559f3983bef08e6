"""Many seeds trained at once, each as if it were alone.

The weights of all seeds are one matrix, a row theta (p,) per seed. The forward pass is vmapped over its rows, one
backward pass gives every seed's gradient (no seed's loss depends on another's weights), and one optimizer steps the
matrix. Each seed draws its weights and its batches from generators of its own, so it takes the same steps in whatever
stack it is trained; nothing that mixes rows (dropout's one random state, a norm over all weights) is let in.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowhanging.errors import (
    NotConvergedError,
    NotSmoothWarning,
    a_type,
    argument_message,
    check_choice,
    check_count,
    check_real,
    door,
    warn,
)
from lowhanging.io import ResumeFile, Saved, digest
from lowhanging.objective.batches import stored_tensors
from lowhanging.objective.model_loss import BatchLoss, LossFn, ModelLoss
from lowhanging.objective.objective import Objective
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.tables import Columns, Tabular, with_losses
from lowhanging.training.options import (
    MakeOptimizer,
    Schedule,
    as_optimizer,
    as_schedule,
    evaluation_sets,
    final_values,
    optimizer_identity,
    progress_bar,
    set_rates,
)
from lowhanging.training.presets import PRESETS

ModelFactory = Callable[[int], nn.Module]

_TOGETHER = 16  # seeds in one pass of a CPU: few enough for its cache, enough to pay for vmap
_SHUFFLE = 2**31  # added to a seed: its batches come from another stream than its weights (generators use 32 bits)


@dataclass(frozen=True, eq=False, repr=False)
class StackRun(Saved, Tabular):
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

    def columns(self) -> Columns:
        """One row for each seed and log: "seed", "step", the losses and the accuracies by name."""
        seeds, steps = (each.flatten().tolist() for each in torch.meshgrid(self.seeds, self.steps, indexing="ij"))
        return with_losses({"seed": seeds, "step": steps}, self.losses, self.accuracies)

    def __repr__(self) -> str:
        final = final_values(self.accuracies, self.losses, lambda curves: curves[:, -1].median())
        num = len(self.seeds)
        size = f"{num} seed{'s' * (num != 1)}, {int(self.steps[-1]):,} steps in {self.seconds:.1f} s"
        return f"StackRun({size}; median {final})"

    def index(self, seed: int) -> int:
        """The row of a seed."""
        seeds = self.seeds.tolist()
        if int(seed) not in seeds:
            expected = f"one of the {len(seeds)} trained, {min(seeds)} to {max(seeds)}"
            raise ValueError(argument_message("seed", f"is {int(seed)}", expected, "See run.seeds."))
        return seeds.index(int(seed))

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
            received, remedy = "is missing, and a run read from a file has none", "Pass the one given to train_stack."
            raise ValueError(argument_message("factory", received, "seed -> model", remedy))
        model = make(int(seed))
        ParameterSpace(model).write(self.thetas[self.index(seed)], model)
        return model

    def history(self, seed: int, factory: ModelFactory | None = None) -> list[nn.Module]:
        """The models of one seed at every row of the history, in the order of `steps`.

        Args:
            seed: one of `seeds`.
            factory: as in `model`.

        Raises:
            ValueError: `snapshots` lacks a parameter, as it does unless the run was made with `snapshots="*"`.
        """
        row, models = self.index(seed), []
        for log in range(len(self.steps)):
            model = self.model(seed, factory)
            space = ParameterSpace(model)
            if missing := [name for name in space.names if name not in self.snapshots]:
                remedy = 'Train with train_stack(..., snapshots="*").'
                raise ValueError(argument_message("snapshots", f"lack {missing}", "every parameter", remedy))
            space.write(space.flatten({name: self.snapshots[name][row, log] for name in space.names}), model)
            models.append(model)
        return models


@door
def train_stack(
    model_factory: ModelFactory | str,
    data: Any = None,
    seeds: Iterable[int] = range(64),
    *,
    num_steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    optimizer: Literal["adam", "sgd"] | MakeOptimizer | None = None,
    schedule: Literal["cosine", "constant"] | Schedule | None = None,
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
            refused. Or the name of a preset, a key of `lh.training.PRESETS`: its models, and its data, number of steps,
            batch size, optimizer, rate, schedule and penalty where the arguments below are left out.
        data: tuple `(inputs, targets)` of tensors, or a data set that stores such tensors. May be left out for a
            preset: the training pairs of its `data()`.
        seeds: of weights and batches, all different, not negative.
        num_steps: optimizer steps, >= 1; None is 1000.
        batch_size: examples per step, None is 256; a data set that is not larger is taken whole, in order.
        lr: learning rate at the start; None is 0.02. A callable optimizer brings its own: leave this out (with that of
            a preset it takes the place of the preset's).
        optimizer: "adam", "sgd", or a callable `parameters -> Optimizer`. It gets one parameter, the (s, p) matrix of
            all weights, and must act on each number by itself, as Adam, AdamW and SGD do. None is "adam".
        schedule: factor on the learning rate at each step: "constant", "cosine" or a callable of the share done. None
            is "constant".
        penalty: c of c |theta|^2, over all trainable weights; >= 0, None is 0.
        loss_fn: `(outputs, targets) -> mean loss`; None is cross-entropy of integer classes.
        batch_loss: `(model, batch) -> (sum, count)` instead.
        evaluate: name -> data set, in any form that `Objective` takes; measured at every row of the history.
        snapshots: names of parameters (or patterns such as "embed*") to keep at every row of the history.
        log_every: steps between rows; rows stand at 0, log_every, ..., and at the last step.
        device: where to train; by default where the models are.
        resume: npz file written at every row: the same call continues from it, bit for bit.
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
    wanted = _checked_seeds(seeds)
    preset = model_factory if isinstance(model_factory, str) else None
    given = {
        "num_steps": num_steps, "batch_size": batch_size, "lr": lr, "penalty": penalty, "optimizer": optimizer,
        "schedule": schedule,
    }  # fmt: skip
    make, data, filled = _filled(model_factory, data, given)
    num_steps, batch_size, penalty = filled["num_steps"], filled["batch_size"], filled["penalty"]
    lr, optimizer, schedule = filled["lr"], filled["optimizer"], filled["schedule"]
    for name, value in {"num_steps": num_steps, "batch_size": batch_size, "log_every": log_every}.items():
        check_count(name, value, remedy=f"Pass a positive number of {'examples' if name == 'batch_size' else 'steps'}.")
    penalty = check_real("penalty", penalty, minimum=0.0, remedy="Such as 1e-3.")
    tensors = _tensors_of(data)
    functions: dict[str, Any] = {"loss_fn": loss_fn, "batch_loss": batch_loss, "device": device}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotSmoothWarning)  # kinks are no matter for training
        loss, thetas = _stacked(make, wanted, tensors, functions)
        sets = {
            name: Objective(make(wanted[0]), held_out, distributed=False, **functions)
            for name, held_out in evaluation_sets(evaluate).items()
        }
    snapshots = [snapshots] if isinstance(snapshots, str) else list(snapshots)
    kept = loss.space.named(snapshots, argument="snapshots") if snapshots else ()
    stack = _Stack(loss, thetas, tensors, wanted, optimizer, lr, as_schedule(schedule), penalty, batch_size, num_steps)
    steps = torch.tensor(sorted({*range(0, num_steps + 1, log_every), num_steps}))
    history = _StackHistory(len(wanted), steps, loss.space, kept, sets)
    begun = time.perf_counter()
    file, num_rows = None, 0
    if resume is not None:
        counts = repr((wanted, num_steps, batch_size, log_every, penalty))
        identity = {
            "model or loss": digest(thetas, stack.first_losses()),
            "data": digest(*tensors),
            "seeds, num_steps, batch_size, log_every or penalty": counts,
            "optimizer, lr or schedule": optimizer_identity(stack.optimizer, stack.factor),
            "snapshots": repr(kept),
            "evaluate": repr(sorted(sets)),
        }
        file = ResumeFile(resume, identity, kind="a training of a stack")
        num_rows = _restore(file, stack, history, thetas)
    if num_rows == 0:
        history.add(0, stack.thetas, torch.full((len(wanted),), math.nan, dtype=torch.float64))
        num_rows = 1
    with progress_bar("train stack", "step", total=num_steps, done=stack.num_done, progress=progress) as bar:
        for number in range(num_rows, len(steps)):
            mean = stack.advance(int(steps[number]) - stack.num_done, bar)
            history.add(number, stack.thetas, mean)
            if file is not None:
                state = {"num_rows": number + 1, "stack": stack.state(), "history": history.state()}
                file.keep(state, now=number == len(steps) - 1)
    run = StackRun(
        seeds=torch.tensor(wanted),
        steps=steps,
        **history.state(),
        thetas=stack.thetas.cpu(),
        seconds=time.perf_counter() - begun,
        factory=make,
        preset=preset,
    )
    is_fine = torch.isfinite(run.thetas).all(1) & torch.isfinite(run.losses["train"][:, 1:]).all(1)
    bad = [seed for seed, fine in zip(wanted, is_fine.tolist(), strict=True) if not fine]
    if bad:
        received = f"made the loss or the weights of {len(bad)} of {len(wanted)} seeds NaN or infinite: {bad[:8]}"
        expected = "a learning rate at which they stay finite"
        remedy = "Pass a smaller lr, or an optimizer with one; see .result."
        raise NotConvergedError(argument_message("lr", received, expected, remedy), run)
    return run


# What a stack is made of ----------------------------------------------------------------------------------------------


def _checked_seeds(seeds: Any) -> list[int]:
    remedy = "Pass different non-negative integers, such as range(64)."
    if isinstance(seeds, int) or not isinstance(seeds, Iterable):
        raise TypeError(argument_message("seeds", f"is {seeds!r}", "several seeds", remedy))
    items = seeds.tolist() if isinstance(seeds, Tensor) else seeds
    found = [check_count("an entry of seeds", seed, minimum=0, remedy=remedy) for seed in items]
    if not found or len(set(found)) != len(found):
        raise ValueError(argument_message("seeds", f"are {found[:8]}", "at least one, all different", remedy))
    return found


def _filled(model_factory: Any, data: Any, given: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Factory, data and training arguments, with what was left out filled in from a preset or the general defaults."""
    defaults: dict[str, Any] = {
        "num_steps": 1000, "batch_size": 256, "lr": None, "penalty": 0.0, "optimizer": "adam", "schedule": "constant",
    }  # fmt: skip
    if isinstance(model_factory, str):
        remedy = "Or pass seed -> module: lambda seed: lh.ModularMLP(seed=seed)."
        preset = PRESETS[check_choice("model_factory", model_factory, tuple(PRESETS), remedy=remedy)]
        data = preset.data().train if data is None else data
        p, highest = preset.model_arguments["p"], int(_tensors_of(data)[0][:, :2].max())
        if highest + 1 != p:
            received, expected = f"has tokens up to {highest}", f"sums modulo {p}, as preset {preset.name!r}"
            remedy = f"Pass lh.modular_addition(p={p}, ...).train, or leave it out."
            raise ValueError(argument_message("data", received, expected, remedy))
        model_factory, defaults = preset.factory, {**defaults, **preset.training_arguments}
        if callable(given["optimizer"]):  # one of the caller's brings its own rate
            defaults["lr"] = None
        elif given["optimizer"] is None and callable(defaults["optimizer"]) and given["lr"] is not None:
            defaults["optimizer"] = functools.partial(defaults["optimizer"], lr=given["lr"])
            given = {**given, "lr": None}
    elif data is None:
        expected = "a tuple (inputs, targets) of tensors, or a data set"
        remedy = "Only a preset brings its own, such as lh.train_stack('births')."
        raise ValueError(argument_message("data", "is missing", expected, remedy))
    return model_factory, data, {name: defaults[name] if given[name] is None else given[name] for name in defaults}


def _tensors_of(data: Any) -> tuple[Tensor, ...]:
    tensors = stored_tensors(data)
    if tensors is None or not len(tensors[0]):
        received = f"is {a_type(data)}" + ("" if tensors is None else " without examples")
        expected = "a tuple (inputs, targets) of tensors, or a data set that stores them"
        remedy = "From a list of batches: tuple(map(torch.cat, zip(*batches)))."
        raise ValueError(argument_message("data", received, expected, remedy))
    return tuple(map(torch.as_tensor, tensors))


def _stacked(
    model_factory: Any, seeds: list[int], tensors: tuple[Tensor, ...], functions: Mapping[str, Any]
) -> tuple[ModelLoss, Tensor]:
    """The loss of one seed as a function of its theta, and the thetas (s, p) of all."""
    if not callable(model_factory) or isinstance(model_factory, nn.Module):
        expected, remedy = "seed -> module, or the name of a preset", "Pass lambda seed: lh.ModularMLP(seed=seed)."
        raise TypeError(argument_message("model_factory", f"is {a_type(model_factory)}", expected, remedy))
    first = model_factory(seeds[0])
    loss = ModelLoss(first, tensors, mode="as_is", cache=True, micro_batch=None, **functions)
    constants = _constants(first, loss.space)
    rows = []
    for seed in seeds:
        model = model_factory(seed)
        other = _constants(model, loss.space)
        is_same = other.keys() == constants.keys() and all(torch.equal(other[key], constants[key]) for key in other)
        if not is_same:
            received = f"gives seed {seed} other buffers or frozen parameters than seed {seeds[0]}"
            expected = "modules that differ in their weights only"
            remedy = "Register what should differ as trainable parameters."
            raise ValueError(argument_message("model_factory", received, expected, remedy))
        rows.append(loss.space.flatten(model))
    again = loss.space.flatten(model_factory(seeds[0]))
    if any(torch.equal(row, rows[0]) for row in rows[1:]) or not torch.equal(again, rows[0]):
        message = (
            "model_factory does not make its weights from the seed alone: two seeds begin alike, or one seed "
            "differently each time. Begin it with torch.manual_seed(seed), or pass the seed on."
        )
        warn(message)
    return loss, torch.stack(rows)


def _constants(model: nn.Module, space: ParameterSpace) -> dict[str, Tensor]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items() if name not in space.names}


# Steps and rows, and how they continue after an interruption ---------------------------------------------------------


class _Stack:
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
        num_steps: int,
    ):
        self._loss, self.factor, self._penalty, self._total = loss, factor, penalty, num_steps
        self._weights = nn.Parameter(thetas.clone())
        if isinstance(optimizer, torch.optim.Optimizer):
            received, expected = "is an Optimizer of other parameters", "a name, or a callable parameters -> Optimizer"
            remedy = "Pass functools.partial(torch.optim.AdamW, lr=1e-3)."
            raise TypeError(argument_message("optimizer", received, expected, remedy))
        self.optimizer = as_optimizer(optimizer, [self._weights], lr)
        _check_rows_apart(optimizer, lr)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
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

    def advance(self, num: int, bar: Any) -> Tensor:
        """Take `num` steps; each seed's mean loss (s,) over them, the penalty not included."""
        total = torch.zeros(len(self._weights), dtype=torch.float64, device=self._weights.device)
        means_of = torch.vmap(self._mean, in_dims=(0, None if self._is_whole else 0))
        together = _TOGETHER if total.device.type == "cpu" else len(total)
        parts = [slice(begin, begin + together) for begin in range(0, len(total), together)]
        with self._loss.context(), torch.enable_grad():
            for index in self._drawn(num):
                set_rates(self.optimizer, self._rates, self.factor(self.num_done / self._total))
                gradient = torch.empty_like(self._weights)
                for part in parts:
                    batch = self._tensors if self._is_whole else tuple(tensor[index[part]] for tensor in self._tensors)
                    thetas = self._weights.detach()[part].requires_grad_()
                    means = means_of(thetas, batch)  # (seeds of this part,)
                    (gradient[part],) = torch.autograd.grad(means.sum(), thetas)
                    total[part] += means.detach()
                if self._penalty:
                    gradient += (2 * self._penalty) * self._weights.detach()
                self._weights.grad = gradient
                self.optimizer.step()
                self.num_done += 1
                bar.update()
        return (total / max(num, 1)).cpu()

    def state(self) -> dict[str, Any]:
        """Copies of what the next step depends on; the batches follow from the number of steps."""
        memory = {name: torch.as_tensor(value).clone() for name, value in self.optimizer.state[self._weights].items()}
        return {"num_done": self.num_done, "thetas": self.thetas, "optimizer": memory}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where a stack was when its `state` was taken."""
        for _ in self._drawn(state["num_done"]):
            self.num_done += 1
        with torch.no_grad():
            self._weights.copy_(state["thetas"])
        self.optimizer.state[self._weights] = {
            name: value.to(self._weights.device) if value.ndim else value for name, value in state["optimizer"].items()
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


class _StackHistory:
    """Columns of losses, accuracies and snapshots, one for every step at which they are measured."""

    def __init__(
        self, num: int, steps: Tensor, space: ParameterSpace, kept: Sequence[str], sets: Mapping[str, Objective]
    ):
        self._space, self._sets = space, sets
        empty = torch.full((num, len(steps)), math.nan, dtype=torch.float64)
        self.losses = {name: empty.clone() for name in ("train", *sets)}
        self.accuracies: dict[str, Tensor] = {}
        self.snapshots = {
            name: torch.empty(num, len(steps), *shape, dtype=space.dtype)
            for name, shape in zip(space.names, space.shapes, strict=True)
            if name in kept
        }

    def add(self, column: int, thetas: Tensor, train: Tensor) -> None:
        """The next column, with the weights as they are."""
        self.losses["train"][:, column] = train
        for name, objective in self._sets.items():
            values, shares = objective.evaluate_many(thetas)
            self.losses[name][:, column] = values.cpu()
            if shares is not None:
                empty = torch.full_like(self.losses[name], math.nan)
                self.accuracies.setdefault(name, empty)[:, column] = shares.cpu()
        for i, theta in enumerate(thetas.cpu() if self.snapshots else ()):
            weights = self._space.unflatten(theta)
            for name, columns in self.snapshots.items():
                columns[i, column] = weights[name]

    def state(self) -> dict[str, dict[str, Tensor]]:
        return {"losses": self.losses, "accuracies": self.accuracies, "snapshots": self.snapshots}

    def restore(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        """Columns of an interrupted run."""
        self.losses, self.accuracies, self.snapshots = state["losses"], state["accuracies"], state["snapshots"]

    def starts_as(self, state: Mapping[str, dict[str, Tensor]], thetas: Tensor) -> bool:
        """Whether a `state` begins with the evaluations of the initial weights, bit for bit."""
        for name, objective in self._sets.items():
            for kind, found in zip(("losses", "accuracies"), objective.evaluate_many(thetas), strict=True):
                stored = state[kind].get(name)
                if found is None or stored is None:
                    if found is not stored:
                        return False
                elif not torch.equal(found.cpu().nan_to_num(), stored[:, 0].nan_to_num()):
                    return False
        return True


def _restore(file: ResumeFile, stack: _Stack, history: _StackHistory, thetas: Tensor) -> int:
    """Continue from a file, if its evaluations of the initial weights are those of now; how many rows it holds."""
    state = file.read()
    if state is None:
        return 0
    with file.decoding():
        if not history.starts_as(state["history"], thetas):
            file.refuse(["evaluate"])
        stack.restore(state["stack"])
        history.restore(state["history"])
        return int(state["num_rows"])


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
