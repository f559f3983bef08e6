"""Which eigenproblems does `benchmarks/curvature.py` set? A trained network, its data, and how many pairs.

The weights are trained once, on the CPU, and kept in a file that every contender reads: all see the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
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
    tol: float  # residual to reach, relative to lambda_1
    batch_size: int  # of the user's loader; it divides the number of examples, so that means of means are right, too
    steps_known: int
    make: Callable[[bool], tuple[nn.Module, Data]]  # is_quick -> the untrained model and its data
    train: Callable[[nn.Module, Data, bool], None]

    def prepared(self, scratch: Path, *, is_quick: bool) -> tuple[nn.Module, Data]:
        """The trained model and its data, on the CPU; trains at the first call, reads a file afterwards."""
        model, data = self.make(is_quick)
        path = scratch / f"{self.train.__name__}-{self.k}-{is_quick}.pt"
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
    """Batches of `size` examples, in memory and on the device: kinder to the peers than a loader."""
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


class ResNet(nn.Module):
    """ResNet-20 for 32 x 32 images (He et al. 2016), GELU for ReLU so that it can be differentiated twice."""

    def __init__(self, width: int = 16, depth: int = 3):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.GELU())
        widths = [width, *(width * factor for factor in (1, 2, 4) for _ in range(depth))]
        self.blocks = nn.Sequential(*(Residual(a, b) for a, b in pairwise(widths)))
        self.last = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, 32, 32) to logits (n, 10)."""
        out: Tensor = self.last(self.blocks(self.first(x)).mean(dim=(2, 3)))
        return out


class Residual(nn.Module):
    """Two convolutions beside a shortcut, which is padded with zeros where the width grows."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.stride, self.extra = after // before, after - before
        self.conv1 = nn.Conv2d(before, after, 3, stride=self.stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) to (n, after, h / stride, w / stride)."""
        inner = self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return F.gelu(inner + shortcut)


class GPT(nn.Module):
    """A pre-norm transformer that predicts the next word, its read-out tied to its embedding, as GPT-2's."""

    def __init__(self, num_words: int, length: int, width: int, depth: int, num_heads: int):
        super().__init__()
        self.words, self.places = nn.Embedding(num_words, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Words (n, length) to logits (n, num_words, length), the classes in dimension 1."""
        hidden = self.words(x) + self.places.weight[: x.shape[1]]
        logits: Tensor = self.norm(self.blocks(hidden)) @ self.words.weight.T
        return logits.transpose(1, 2)


class Block(nn.Module):
    """Causal attention and a GELU MLP, each behind a layer norm."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, length, width) to the same."""
        n, length, width = x.shape
        parts = self.attend(self.norm1(x)).view(n, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(n, length, width))
        hidden: Tensor = x + self.mlp(self.norm2(x))
        return hidden


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def _tanh(*sizes: int) -> nn.Module:
    """A tanh MLP."""
    pairs = list(pairwise(sizes))
    layers = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def _taught(num: int, *sizes: int) -> tuple[nn.Module, Data]:
    """A tanh MLP and normal inputs, labelled by another network of its kind."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num, sizes[0], generator=generator)
    model, teacher = _seeded(lambda: _tanh(*sizes)), _seeded(lambda: _tanh(sizes[0], 7, sizes[-1]))
    with torch.no_grad():
        outputs = teacher(inputs)
        targets = (outputs - outputs.mean(dim=0)).argmax(dim=1)
    return model, (inputs, targets)


def _small(is_quick: bool) -> tuple[nn.Module, Data]:
    return _taught(200 if is_quick else 1000, 20, 64, 5)


def _middle(is_quick: bool) -> tuple[nn.Module, Data]:
    return _taught(300, 20, 16, 16, 10) if is_quick else _taught(5000, 100, 256, 256, 10)


def _resnet(is_quick: bool) -> tuple[nn.Module, Data]:
    """ResNet-20 with GELU, and digits in 32 x 32 pixels of three colours."""
    inputs, targets = _images(64 if is_quick else 256)
    padded = F.pad(inputs, (2, 2, 2, 2)).expand(-1, 3, -1, -1).clone()
    return _seeded(lambda: ResNet(width=4 if is_quick else 16, depth=1 if is_quick else 3)), (padded, targets)


def _train_resnet(model: nn.Module, data: Data, is_quick: bool) -> None:
    """Three epochs of Adam, which move the statistics of the batch normalization."""
    model.train()
    lh.train(model, data, num_epochs=3, lr=1e-3, progress=False)


def _tokens(num: int, length: int, num_words: int) -> Data:
    """Sequences of a random Markov chain with four likely successors of each word; targets are the next words."""
    generator = torch.Generator().manual_seed(2)
    after = torch.randint(num_words, (num_words, 4), generator=generator)
    rows = [torch.randint(num_words, (num,), generator=generator)]
    for _ in range(length):
        rows.append(after[rows[-1], torch.randint(4, (num,), generator=generator)])
    words = torch.stack(rows, dim=1)
    return words[:, :-1].contiguous(), words[:, 1:].contiguous()


def _gpt(is_quick: bool) -> tuple[nn.Module, Data]:
    if is_quick:
        return _seeded(lambda: GPT(num_words=20, length=8, width=8, depth=1, num_heads=2)), _tokens(8, 8, 20)
    return _seeded(lambda: GPT(num_words=512, length=64, width=128, depth=4, num_heads=4)), _tokens(256, 64, 512)


def _gpt2(is_quick: bool) -> tuple[nn.Module, Data]:
    """The sizes of GPT-2's smallest model."""
    if is_quick:
        return _seeded(lambda: GPT(num_words=30, length=8, width=8, depth=1, num_heads=2)), _tokens(4, 8, 30)
    big = {"num_words": 50257, "length": 1024, "width": 768, "depth": 12, "num_heads": 12}
    return _seeded(lambda: GPT(**big)), _tokens(4, 128, 50257)


def _train_gpt(model: nn.Module, data: Data, is_quick: bool) -> None:
    """Twenty full-batch steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss: Any = F.cross_entropy(model(data[0]), data[1])
        loss.backward()
        optimizer.step()


def _train_few(model: nn.Module, data: Data, is_quick: bool) -> None:
    """Five epochs of Adam."""
    lh.train(model, data, num_epochs=5, lr=1e-3, progress=False)


_CNN = "paired-digit CNN, 3,340 weights, 3,200 images, 60 epochs"
TASKS = {
    "cnn": Task(_CNN, 50, 1e-5, 128, 110, _cnn, _train_cnn),
    "transformer": Task(
        "modular-addition transformer, 226,688 weights, 3,830 sums, 200 full-batch steps",
        10, 1e-5, 3830, 45, _transformer, _train_transformer,
    ),
    "mlp": Task("tanh MLP, 1,209,630 weights, 2,048 images, 3 epochs", 10, 1e-5, 128, 35, _mlp, _train_mlp),
    "small": Task("tanh MLP 20-64-5, 1,669 weights, 1,000 rows, 5 epochs", 10, 1e-4, 100, 40, _small, _train_few),
    "middle": Task(
        "tanh MLP 100-256-256-10, 94,218 weights, 5,000 rows, 5 epochs",
        20, 1e-4, 250, 110, _middle, _train_few,
    ),
    "resnet": Task(
        "ResNet-20, batch normalization in eval mode, GELU, 269,722 weights, 256 images of 32 x 32, 3 epochs",
        5, 1e-4, 64, 20, _resnet, _train_resnet,
    ),
    "gpt": Task(
        "pre-norm GPT, 4 layers of 128, 867,072 weights, 256 sequences of 64 words, 20 full-batch steps",
        5, 1e-4, 32, 40, _gpt, _train_gpt,
    ),
    "gpt2": Task(
        "GPT-2's smallest sizes, 124,439,808 weights, 4 sequences of 128 words, 20 full-batch steps",
        1, 1e-2, 4, 20, _gpt2, _train_gpt,
    ),
}  # fmt: skip


def named(name: str) -> Task:
    """A task of the table above, or a point of `scaling.py`: "tanh-P-N-K", about P weights, N examples, K pairs."""
    if name in TASKS:
        return TASKS[name]
    num_params, num, k = (int(part) for part in name.split("-")[1:])
    width = max(1, round((56**2 + num_params - 10) ** 0.5 - 56))  # width^2 + 112 width + 10 weights

    def train(model: nn.Module, data: Data, is_quick: bool) -> None:
        _train_few(model, data, is_quick)

    train.__name__ = f"tanh-{num_params}-{num}"  # names the file of weights
    title = f"tanh MLP 100-{width}-{width}-10, {num:,} rows, 5 epochs"
    return Task(title, k, 1e-4, 250, 3 * k, lambda _: _taught(num, 100, width, width, 10), train)
