"""How are many seeds trained at once, each as if it were alone?

The weights of all seeds are one matrix, a row theta (p,) per seed. The forward pass is vmapped over its rows, one
backward pass gives every seed's gradient (no seed's loss depends on another's weights), and one optimizer steps the
matrix. Each seed draws its weights and its batches from generators of its own, so it takes the same steps in whatever
stack it is trained; nothing that mixes rows (dropout's one random state, a norm over all weights) is let in.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lowhanging.errors import (
    NotConvergedError,
    NotSmoothWarning,
    check_count,
    check_real,
    explain,
)
from lowhanging.model_loss import BatchLoss, LossFn
from lowhanging.objective import Objective
from lowhanging.parameters import ParameterSpace
from lowhanging.presets import PRESETS
from lowhanging.results import digest, load_result, resume_path, save_result
from lowhanging.stack_arguments import checked_seeds, filled, logged_steps, matching, stacked, stored_tensors
from lowhanging.stack_loop import History, Interrupted, Stack, restore
from lowhanging.training_options import MakeOptimizer, Schedule, as_schedule, evaluation_sets

ModelFactory = Callable[[int], nn.Module]


@dataclass(frozen=True, eq=False, repr=False)
class StackRun:
    """Many seeds of one training run; row i of everything belongs to seeds[i]."""

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
            raise ValueError(explain("seed", f"is {seed!r}", expected, "See run.seeds."))
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
            raise ValueError(explain("factory", received, "seed -> model", "Pass the one given to train_stack."))
        seed = int(seed)
        model = make(seed)
        weights = ParameterSpace(model).unflatten(self.thetas[self.index(seed)])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        return model

    def save(self, path: str | Path) -> Path:
        """Write to `path` as npz, all but the factory; returns the path written."""
        return save_result(replace(self, factory=None), path)

    @classmethod
    def load(cls, path: str | Path) -> StackRun:
        """Read what `save` wrote."""
        return load_result(cls, path)


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
            refused. Or the name of a preset, a key of `lh.PRESETS`: its models, and its data, steps, batch size, rate
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
    path = None if resume is None else resume_path(resume)
    begun = time.perf_counter()
    identity = {
        "model or loss": digest(thetas, stack.first_losses()),
        "data": digest(*tensors),
        "seeds, steps, batch_size, log_every or penalty": repr((wanted, steps, batch_size, log_every, penalty)),
        "optimizer, lr or schedule": stack.optimizer_identity(),
        "snapshots": repr(kept),
        "evaluate": repr(sorted(sets)),
    }
    row = 0
    if path is not None and path.exists():
        row = restore(path, identity, stack, history, thetas)
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
            if path is not None:
                save_result(
                    Interrupted(identity, number + 1, stack.num_done, stack.thetas, stack.state(), *history.tensors()),
                    path,
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
        message = explain(
            "lr",
            received,
            "a learning rate at which they stay finite",
            "Pass a smaller lr, or an optimizer with one; see .result.",
        )
        raise NotConvergedError(message, run)
    return run
