"""Which eigenproblems does `benchmarks/curvature.py` set? A trained network, its data, and how many pairs.

The weights are trained once, on the CPU, and kept in a file that every contender reads: all see the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowhanging as lh

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """One eigenproblem; `steps_known` is what a tool without a stopping rule needs, found by trying."""

    title: str
    k: int
    batch_size: int  # of the user's loader; it divides the number of examples, so that means of means are right, too
    steps_known: int
    make: Callable[[bool], tuple[nn.Module, Data]]  # is_quick -> the untrained model and its data
    train: Callable[[nn.Module, Data, bool], None]
    weights: str  # tasks that share a network share its file

    def prepared(self, scratch: Path, *, is_quick: bool) -> tuple[nn.Module, Data]:
        """The trained model and its data, on the CPU; trains at the first call, reads a file afterwards."""
        model, data = self.make(is_quick)
        path = scratch / f"{self.weights}{'-quick' if is_quick else ''}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            self.train(model, data, is_quick)
            torch.save(model.state_dict(), path)
        model.zero_grad(set_to_none=True)
        return model.eval(), data

    def loader(self, data: Data) -> DataLoader[Any]:
        """The loader as a user would pass it."""
        return DataLoader(TensorDataset(*data), batch_size=self.batch_size)


def micro_batches(data: Data, size: int, device: str) -> list[Data]:
    """Equal batches of about `size` examples, in memory and on the device: kinder to the peers than a loader."""
    num = len(data[1])
    size = next(s for s in range(min(size, num), 0, -1) if num % s == 0)
    pairs = zip(data[0].split(size), data[1].split(size), strict=True)
    return [(x.to(device), y.to(device)) for x, y in pairs]


def _images(num: int) -> Data:
    train = lh.paired_mnist().mixed.train
    return train.inputs[:num], train.targets[:num]


def _cnn(is_quick: bool) -> tuple[nn.Module, Data]:
    return lh.SigmoidCNN(seed=0), _images(256 if is_quick else 3200)


def _train_cnn(model: nn.Module, data: Data, is_quick: bool) -> None:
    """As `lowhanging reproduce` trains it: 60 epochs, by default settings."""
    lh.train(model, data, num_epochs=10 if is_quick else 60, progress=False)


def _transformer(is_quick: bool) -> tuple[nn.Module, Data]:
    pairs = lh.modular_addition(13 if is_quick else 113, 0.3, equals_token=True).train
    num = len(pairs) // 10 * 10  # 3,830 of 3,833, which can be cut evenly
    sizes = {"width": 16, "hidden": 32} if is_quick else {}
    return lh.ModularTransformer(13 if is_quick else 113, seed=0, **sizes), (pairs.inputs[:num], pairs.targets[:num])


def _train_transformer(model: nn.Module, data: Data, is_quick: bool) -> None:
    """200 full-batch steps in the settings of the literature: the sums are memorised, long before they are grokked."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98))
    for _ in range(200):
        optimizer.zero_grad()
        loss: Any = F.cross_entropy(model(data[0]), data[1])
        loss.backward()
        optimizer.step()


def _mlp(is_quick: bool) -> tuple[nn.Module, Data]:
    inputs, targets = _images(256 if is_quick else 2048)
    hidden = (20, 20) if is_quick else (1000, 420)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(784, hidden[0]), nn.Tanh(), nn.Linear(*hidden), nn.Tanh(), nn.Linear(hidden[1], 10)]
    return nn.Sequential(*layers), (inputs.flatten(1), targets)


def _train_mlp(model: nn.Module, data: Data, is_quick: bool) -> None:
    """Three epochs of Adam."""
    lh.train(model, data, num_epochs=3, lr=1e-3, progress=False)


_CNN = "paired-digit CNN, 3,340 weights, 3,200 images, 60 epochs"
TASKS = {
    "a10": Task(_CNN, 10, 128, 40, _cnn, _train_cnn, "cnn"),
    "a50": Task(_CNN, 50, 128, 110, _cnn, _train_cnn, "cnn"),
    "b10": Task(
        "modular-addition transformer, 226,688 weights, 3,830 sums, 200 full-batch steps",
        10,
        3830,
        45,
        _transformer,
        _train_transformer,
        "transformer",
    ),
    "c10": Task(
        "tanh MLP, 1,209,630 weights, 2,048 images, 3 epochs",
        10,
        128,
        35,
        _mlp,
        _train_mlp,
        "mlp",
    ),
}
