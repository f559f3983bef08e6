"""Settings of modular addition that show circuits: seven that were tried, each under a name.

A preset is what two calls would be given, the data set's and the model's, and how long and how steeply to train. It
makes both and knows no trainer: `train_stack` takes its name.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from lowhanging.datasets import ModularAddition, modular_addition
from lowhanging.models import ModularMLP, ModularTransformer


def warm_up(share: float) -> float:
    """A learning rate that rises in equal steps over the first 2 % of the training, and then stays.

    At step k of 500 it is (k + 1) / 10 of itself.

    Args:
        share: of the training done, in [0, 1).

    Returns:
        The factor on the rate.
    """
    return min(1.0, 0.1 + share / 0.02)


@dataclass(frozen=True, eq=False, repr=False)
class Preset:
    """Settings of one experiment with modular addition.

    Attributes:
        name: the name under which `train_stack` takes it.
        model: `ModularMLP` or `ModularTransformer`.
        model_arguments: of the model, all but the seed.
        data_arguments: of `modular_addition`, all but the seed.
        training_arguments: of `train_stack`: num_steps, batch_size, and lr and penalty, or optimizer and schedule.
    """

    name: str
    model: type[nn.Module]
    model_arguments: Mapping[str, Any]
    data_arguments: Mapping[str, Any]
    training_arguments: Mapping[str, Any]

    def __repr__(self) -> str:
        data = f"modular_addition({_as_call(self.data_arguments)})"
        model = f"{self.model.__name__}({_as_call(self.model_arguments)})"
        return f"Preset({self.name!r}: {data}; {model}; {_as_call(self.training_arguments)})"

    def factory(self, seed: int) -> nn.Module:
        """The untrained network of one seed."""
        return self.model(seed=seed, **self.model_arguments)

    def data(self, seed: int = 0) -> ModularAddition:
        """The sums, split at random into those to train on and those held out; `seed` is the split's."""
        return modular_addition(seed=seed, **self.data_arguments)


def _as_call(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_as_source(value)}" for name, value in arguments.items())


def _as_source(value: Any) -> str:
    if isinstance(value, functools.partial):
        return f"{value.func.__name__}({_as_call(value.keywords)})"
    return getattr(value, "__name__", None) or repr(value)


def _mlp(name: str, fraction: float, num_steps: int, penalty: float, **model: Any) -> Preset:
    training = {"num_steps": num_steps, "lr": 0.01, "batch_size": 256, "penalty": penalty}
    return _preset(name, ModularMLP, {"train_fraction": fraction}, training, model)


def _transformer(name: str, num_steps: int, p: int, data: Mapping[str, Any], **model: Any) -> Preset:
    """The literature's training, full batch, with ten times its learning rate."""
    optimizer = functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=1.0, betas=(0.9, 0.98))
    training = {"num_steps": num_steps, "batch_size": p * p, "optimizer": optimizer, "schedule": warm_up}
    return _preset(name, ModularTransformer, data, training, {"p": p, **model})


def _preset(
    name: str, model: type[nn.Module], data: Mapping[str, Any], training: Mapping[str, Any], sizes: Mapping[str, Any]
) -> Preset:
    views = [MappingProxyType(dict(each)) for each in (sizes, {"p": sizes["p"], **data}, training)]
    return Preset(name, model, *views)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            # No planes: every seed generalises, by three frequencies or more that share all units.
            _mlp("redundant", 0.8, 1500, 7e-4, p=53, width=24, hidden=96, blocks=False),
            # More planes than are needed: which of them become circles, and of which frequency, is up to the seed.
            _mlp("circles", 0.9, 1000, 1e-3, p=53, width=20, hidden=32),
            # Small enough for hundreds of seeds: when each circle forms, and after which other.
            _mlp("births", 0.8, 1000, 1e-3, p=37, width=14, hidden=24),
            # The write-up's activation, which generalises better with a bias than without, and by no clean circles.
            _mlp("sigmoid", 0.8, 1500, 3e-4, p=53, width=20, hidden=32, activation="sigmoid", bias=True),
            # The transformer, small enough to generalise within seconds.
            _transformer("transformer", 500, 53, {"train_fraction": 0.8}, width=64, hidden=256),
            # Fewer sums to train on: memorised within 100 steps, generalised several hundred steps later.
            _transformer("grokking", 1500, 53, {"train_fraction": 0.6}, width=64, hidden=256),
            # The sizes and the split of Nanda et al.: ordered pairs, so that training sees 51 % of the unordered ones.
            _transformer("nanda", 1000, 113, {"train_fraction": 0.3, "split": "ordered"}, width=128, hidden=512),
        )
    }
)
