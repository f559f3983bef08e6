"""Inputs and targets as one map-style Dataset, which every data set of the library extends."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True, repr=False, eq=False)
class Examples(Dataset[tuple[Tensor, Tensor]]):
    """A Dataset whose item i is (inputs[i], targets[i]); a slice or a tensor of indices gives a batch."""

    inputs: Tensor  # (n, ...)
    targets: Tensor  # (n,)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]
