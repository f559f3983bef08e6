"""Optimizers, schedules, evaluation sets and progress bars, as both ways of training take them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from lowhanging.errors import a_type, argument_message, check_choice, check_names, check_real

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[float], float]

_DEFAULT_LR = 0.02


def evaluation_sets(evaluate: Mapping[str, Any] | None) -> dict[str, Any]:
    if evaluate is None:
        return {}
    remedy = 'Pass evaluate={"test": (inputs, targets), ...}; "train" is the name of the training set itself.'
    if not isinstance(evaluate, Mapping):
        raise TypeError(argument_message("evaluate", f"is {a_type(evaluate)}", "a mapping name -> data set", remedy))
    names = check_names("evaluate", evaluate, remedy=remedy)
    if "train" in names:
        raise ValueError(argument_message("evaluate", f"has the names {names!r}", 'names other than "train"', remedy))
    # A loader that can be read once only is kept: where training moves buffers it is needed again.
    return {name: list(data) if isinstance(data, Iterator) else data for name, data in evaluate.items()}


def as_schedule(schedule: Any) -> Schedule:
    """The schedule as a function of the share done, its values checked."""
    if not callable(schedule):
        remedy = "Or pass a callable: share of the training done, in [0, 1) -> factor on the learning rate."
        check_choice("schedule", schedule, ("cosine", "constant"), remedy=remedy)
        return (lambda done: 0.5 * (1 + math.cos(math.pi * done))) if schedule == "cosine" else (lambda done: 1.0)
    remedy = "A schedule maps the share of the training done, in [0, 1), to a factor on the learning rate."
    return lambda done: check_real("the schedule's value", schedule(done), minimum=0.0, remedy=remedy)


def as_optimizer(optimizer: Any, weights: list[nn.Parameter], lr: float | None) -> torch.optim.Optimizer:
    remedy = 'Pass "adam", "sgd", an Optimizer of this model, or a callable parameters -> Optimizer.'
    if isinstance(optimizer, str):
        check_choice("optimizer", optimizer, ("adam", "sgd"), remedy=remedy)
        rate = _DEFAULT_LR if lr is None else check_real("lr", lr, minimum=0.0, remedy="Pass a rate such as 0.02.")
        return torch.optim.Adam(weights, lr=rate) if optimizer == "adam" else torch.optim.SGD(weights, lr=rate)
    if lr is not None:
        give = "Give it to the optimizer: functools.partial(torch.optim.AdamW, lr=0.01)."
        raise ValueError(argument_message("lr", f"is {lr} beside an optimizer of your own", "None", give))
    made = optimizer if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer) else optimizer(weights)
    if not isinstance(made, torch.optim.Optimizer):
        received = f"is, or returned, a {type(made).__name__}"
        raise TypeError(argument_message("optimizer", received, "a torch Optimizer", remedy))
    own = set(map(id, weights))
    if not any(id(weight) in own for group in made.param_groups for weight in group["params"]):
        received = "holds no parameter of this model"
        raise ValueError(argument_message("optimizer", received, "an optimizer of this model", remedy))
    return made


def set_rates(optimizer: torch.optim.Optimizer, rates: list[Any], factor: float) -> None:
    """The learning rate of every group: its own, times a factor."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor


def optimizer_identity(optimizer: torch.optim.Optimizer, factor: Schedule) -> str:
    """Kind, options and rates, in words that are the same in another process."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return repr((type(optimizer).__name__, groups, [factor(i / 16) for i in range(16)]))


def final_values(accuracies: Mapping[str, Any], losses: Mapping[str, Any], last: Callable[[Any], Any]) -> str:
    """For a repr: "accuracy: train 98 %", or losses where nothing has classes; `last` is a curve's final value."""
    curves, scale, unit = (accuracies, 100, " %") if accuracies else (losses, 1, "")
    values = ", ".join(f"{name} {scale * float(last(curve)):.3g}{unit}" for name, curve in curves.items())
    return f"{'accuracy' if accuracies else 'loss'}: {values}"


def progress_bar(name: str, unit: str, *, total: int, done: int, progress: bool | None) -> tqdm[Any]:
    hidden, delay = progress is False, 2.0 if progress is None else 0.0
    return tqdm(desc=name, unit=unit, total=total, initial=done, disable=hidden, delay=delay)
