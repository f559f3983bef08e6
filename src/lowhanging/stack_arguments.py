"""What may a stack be made of: seeds, tensors, modules that differ in their weights only?

The arguments of `train_stack`, checked and filled in: a preset brings its own data and settings, a factory must make
its weights from the seed alone.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowhanging.errors import a_type, check_choice, check_count, explain
from lowhanging.model_loss import BatchLoss, LossFn, ModelLoss
from lowhanging.parameters import ParameterSpace
from lowhanging.presets import PRESETS
from lowhanging.shuffled import ShuffledBatches


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
            raise ValueError(explain("data", received, f"sums modulo {p}, as preset {preset.name!r}", remedy))
        model_factory, defaults = preset.factory, {**defaults, **preset.training_arguments}
    elif data is None:
        remedy = "Only a preset brings its own, such as lh.train_stack('births')."
        raise ValueError(explain("data", "is missing", "a tuple (inputs, targets) of tensors, or a data set", remedy))
    return model_factory, data, {name: defaults[name] if given[name] is None else given[name] for name in defaults}


def checked_seeds(seeds: Any) -> list[int]:
    remedy = "Pass different non-negative integers, such as range(64)."
    if isinstance(seeds, int) or not isinstance(seeds, Iterable):
        raise TypeError(explain("seeds", f"is {seeds!r}", "several seeds", remedy))
    items = seeds.tolist() if isinstance(seeds, Tensor) else seeds
    found = [check_count("an entry of seeds", seed, minimum=0, remedy=remedy) for seed in items]
    if not found or len(set(found)) != len(found):
        raise ValueError(explain("seeds", f"are {found[:8]}", "at least one, all different", remedy))
    return found


def stored_tensors(data: Any) -> tuple[Tensor, ...]:
    tensors = ShuffledBatches(data, 1).tensors
    if tensors is None or not len(tensors[0]):
        received = f"is {a_type(data)}" + ("" if tensors is None else " without examples")
        expected = "a tuple (inputs, targets) of tensors, or a data set that stores them"
        remedy = "From a list of batches: tuple(map(torch.cat, zip(*batches)))."
        raise ValueError(explain("data", received, expected, remedy))
    return tensors


def logged_steps(steps: int, log_every: int) -> Tensor:
    return torch.tensor(sorted({*range(0, steps + 1, log_every), steps}))


def matching(space: ParameterSpace, patterns: list[str]) -> list[str]:
    found = []
    for pattern in patterns:
        names = [name for name in space.names if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            received = f"asks for {pattern!r}"
            raise ValueError(explain("snapshots", received, f"names among {list(space.names)}", "See space.names."))
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
            explain(
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
            raise ValueError(explain("model_factory", received, "modules that differ in their weights only",
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
