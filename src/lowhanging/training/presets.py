"""Settings of modular addition that show circuits: four that were tried, each under a name.

A preset is what two calls would be given, the data set's and the model's, and how long and how steeply to train. It
makes both and knows no trainer: `train_stack` takes its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lowhanging.datasets import ModularAddition, modular_addition
from lowhanging.models import ModularMLP


@dataclass(frozen=True, eq=False, repr=False)
class Preset:
    """Settings of one experiment with modular addition.

    Attributes:
        name: the name under which `train_stack` takes it.
        model_arguments: of `ModularMLP`, all but the seed.
        data_arguments: of `modular_addition`, all but the seed.
        training_arguments: of `train_stack`: num_steps, lr, batch_size, penalty.
    """

    name: str
    model_arguments: Mapping[str, Any]
    data_arguments: Mapping[str, Any]
    training_arguments: Mapping[str, Any]

    def __repr__(self) -> str:
        data = f"modular_addition({_as_call(self.data_arguments)})"
        model = f"ModularMLP({_as_call(self.model_arguments)})"
        return f"Preset({self.name!r}: {data}; {model}; {_as_call(self.training_arguments)})"

    def factory(self, seed: int) -> ModularMLP:
        """The untrained network of one seed."""
        return ModularMLP(seed=seed, **self.model_arguments)

    def data(self, seed: int = 0) -> ModularAddition:
        """The sums, split at random into those to train on and those held out; `seed` is the split's."""
        return modular_addition(seed=seed, **self.data_arguments)


def _as_call(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _preset(name: str, fraction: float, num_steps: int, penalty: float, **model: Any) -> Preset:
    return Preset(
        name,
        MappingProxyType(model),
        MappingProxyType({"p": model["p"], "train_fraction": fraction}),
        MappingProxyType({"num_steps": num_steps, "lr": 0.01, "batch_size": 256, "penalty": penalty}),
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            # No planes: every seed generalises, by three frequencies or more that share all units.
            _preset("redundant", 0.8, 1500, 7e-4, p=53, width=24, hidden=96, blocks=False),
            # More planes than are needed: which of them become circles, and of which frequency, is up to the seed.
            _preset("circles", 0.9, 1000, 1e-3, p=53, width=20, hidden=32),
            # Small enough for hundreds of seeds: when each circle forms, and after which other.
            _preset("births", 0.8, 1000, 1e-3, p=37, width=14, hidden=24),
            # The write-up's activation, which generalises better with a bias than without, and by no clean circles.
            _preset("sigmoid", 0.8, 1500, 3e-4, p=53, width=20, hidden=32, activation="sigmoid", bias=True),
        )
    }
)
