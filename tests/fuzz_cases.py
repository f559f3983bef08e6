"""Losses, loaders and layouts as people have them, and the cases that are made of them by name and seed."""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lowhanging as lh
from fuzz_layers import FUNCTIONS, LAYERS, Applied, Function, Net, Tokens
from fuzz_oracle import Mean, Scene

D = torch.float64
ENGINES = ("auto", "split graph", "kept graph", "double backward")


# Losses ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A loss of outputs (n, num_outputs) and targets; a `loss_fn`, a `batch_loss` where is_sum, or cross-entropy."""

    num_outputs: int
    targets: Callable[[int], Tensor]
    loss: Callable[..., Any] | None = None  # a mean over the examples; with is_sum, (sum, count) of (outputs, targets)
    is_sum: bool = False
    may_refuse: str = ""
    classes: tuple[str, ...] = ()  # of torch.nn that it stands for


def _classes(num: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(0, num, (n,))


def _real(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def _uniform(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.rand(n, *shape)


def _signs(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: 2.0 * torch.randint(0, 2, (n, *shape)) - 1


def _ignoring(outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    return F.cross_entropy(outputs, targets, ignore_index=0, reduction="sum"), max(1, int((targets != 0).sum()))


def _weighted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    weight = torch.tensor([1.0, 2.0, 5.0]).to(outputs)
    return F.cross_entropy(outputs, targets, weight=weight, reduction="sum"), weight[targets].sum()


def _masked_sum(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    mask = targets != -1
    return (torch.where(mask, outputs - targets, 0.0) ** 2).sum(), mask.sum().clamp(min=1)


def _some_missing(n: int) -> Tensor:
    targets = torch.rand(n, 2)
    targets[torch.rand(n, 2) < 0.3] = -1.0
    return targets


def _multilabel(n: int) -> Tensor:
    return torch.tensor([[0, -1, 0], [2, 1, -1], [1, -1, -1]])[torch.arange(n) % 3]


def _of_class(name: str, num_outputs: int, targets: Callable[[int], Tensor], **options: Any) -> Task:
    refuse = options.pop("may_refuse", "")
    return Task(num_outputs, targets, getattr(nn, name)(**options), may_refuse=refuse, classes=(name,))


_NOT_TWICE = "torch has no second derivative of it"

TASKS: dict[str, Task] = {
    "cross-entropy by default": Task(3, _classes(3)),
    "CrossEntropyLoss": _of_class("CrossEntropyLoss", 3, _classes(3), label_smoothing=0.1),
    "cross-entropy of probabilities": Task(3, lambda n: torch.rand(n, 3).softmax(1), F.cross_entropy),
    "cross-entropy with ignored targets": Task(3, _classes(3), _ignoring, is_sum=True),
    "cross-entropy with class weights": Task(3, _classes(3), _weighted, is_sum=True),
    "NLLLoss": Task(3, _classes(3), lambda o, t: F.nll_loss(o.log_softmax(1), t), classes=("NLLLoss",)),
    "NLLLoss2d": Task(
        6, lambda n: torch.randint(0, 3, (n, 2, 1)),
        lambda o, t: nn.NLLLoss2d()(o.view(-1, 3, 2, 1).log_softmax(1), t), classes=("NLLLoss2d",)),
    "MSELoss": _of_class("MSELoss", 2, _real(2)),
    "mean square by hand": Task(2, _real(2), lambda o, t: ((o - t) ** 2).mean()),
    "mean square of one output": Task(1, _real(), lambda o, t: F.mse_loss(o.squeeze(1), t)),
    "masked mean square": Task(2, _some_missing, _masked_sum, is_sum=True),
    "masked, over all targets": Task(2, _some_missing, lambda o, t: (torch.where(t != -1, o - t, 0) ** 2).mean()),
    "L1Loss": _of_class("L1Loss", 2, _real(2)),
    "SmoothL1Loss": _of_class("SmoothL1Loss", 2, _real(2), beta=0.5),
    "HuberLoss": _of_class("HuberLoss", 2, _real(2), delta=0.7),
    "log cosh": Task(2, _real(2), lambda o, t: torch.log(torch.cosh(o - t)).mean()),
    "BCEWithLogitsLoss": _of_class("BCEWithLogitsLoss", 2, _uniform(2)),
    "BCELoss": Task(2, _uniform(2), lambda o, t: F.binary_cross_entropy(o.sigmoid(), t), classes=("BCELoss",)),
    "focal loss": Task(
        3, _classes(3), lambda o, t: ((1 - o.softmax(1).gather(1, t[:, None])) ** 2 * F.cross_entropy(
            o, t, reduction="none")[:, None]).mean()),
    "PoissonNLLLoss": _of_class("PoissonNLLLoss", 2, _uniform(2)),
    "GaussianNLLLoss": Task(
        4, _real(2), lambda o, t: F.gaussian_nll_loss(o[:, :2], t, F.softplus(o[:, 2:]) + 0.1),
        classes=("GaussianNLLLoss",), may_refuse="it clamps the variance in place, under no_grad"),
    "KLDivLoss": Task(
        3, lambda n: torch.rand(n, 3).softmax(1), lambda o, t: nn.KLDivLoss(reduction="batchmean")(o.log_softmax(1), t),
        classes=("KLDivLoss",)),
    "SoftMarginLoss": _of_class("SoftMarginLoss", 2, _signs(2)),
    "HingeEmbeddingLoss": _of_class("HingeEmbeddingLoss", 2, _signs(2)),
    "MultiLabelSoftMarginLoss": _of_class("MultiLabelSoftMarginLoss", 3, lambda n: torch.randint(0, 2, (n, 3)).float()),
    "MultiLabelMarginLoss": _of_class("MultiLabelMarginLoss", 3, _multilabel, may_refuse=_NOT_TWICE),
    "MultiMarginLoss": _of_class("MultiMarginLoss", 3, _classes(3), may_refuse=_NOT_TWICE),
    "CosineEmbeddingLoss": Task(
        6, _signs(), lambda o, t: F.cosine_embedding_loss(o[:, :3], o[:, 3:], t), classes=("CosineEmbeddingLoss",)),
    "MarginRankingLoss": Task(
        2, _signs(), lambda o, t: F.margin_ranking_loss(o[:, 0], o[:, 1], t, margin=0.2),
        classes=("MarginRankingLoss",)),
    "TripletMarginLoss": Task(
        4, _real(2), lambda o, t: F.triplet_margin_loss(o[:, :2], o[:, 2:], t), classes=("TripletMarginLoss",)),
    "TripletMarginWithDistanceLoss": Task(
        4, _real(2), lambda o, t: nn.TripletMarginWithDistanceLoss(
            distance_function=lambda a, b: (a - b).square().sum(1))(o[:, :2], o[:, 2:], t),
        classes=("TripletMarginWithDistanceLoss",)),
    "CTCLoss": Task(
        9, lambda n: torch.randint(1, 3, (n, 2)), lambda o, t: (F.ctc_loss(
            o.view(-1, 3, 3).log_softmax(2).transpose(0, 1), t, torch.full((len(o),), 3), torch.full((len(o),), 2),
            reduction="sum"), len(o)),
        is_sum=True, may_refuse=_NOT_TWICE, classes=("CTCLoss",)),
    "a loss that is not finite elsewhere": Task(2, _uniform(2), lambda o, t: (o.exp() - t * o).mean()),
}  # fmt: skip

# Losses with weights of their own, as the last layer of a model; by special cases below.
LOSSES_WITH_WEIGHTS = ("AdaptiveLogSoftmaxWithLoss", "LinearCrossEntropyLoss")


def parts(batch: Any) -> tuple[Any, ...]:
    """The inputs and the targets of a batch of any of the loaders below."""
    return (batch["x"], batch["labels"]) if isinstance(batch, Mapping) else tuple(batch)


def mean_of(loss_fn: Callable[..., Tensor]) -> Mean:
    """The mean of a `loss_fn` over batches: each weighs as many as it has targets."""

    def mean(model: nn.Module, batches: list[Any]) -> Tensor:
        total, count = 0.0, 0
        for batch in batches:
            *inputs, targets = parts(batch)
            terms = targets.numel()
            total, count = total + terms * loss_fn(model(*inputs), targets), count + terms
        return total / count

    return mean


def mean_of_sums(batch_loss: Callable[..., Any]) -> Mean:
    """The mean of a `batch_loss` over batches: sums by counts."""

    def mean(model: nn.Module, batches: list[Any]) -> Tensor:
        pairs = [batch_loss(model, batch) for batch in batches]
        return sum(pair[0] for pair in pairs) / sum(float(pair[1]) for pair in pairs)

    return mean


def _options_and_mean(task: Task) -> tuple[dict[str, Any], Mean]:
    if not task.is_sum:
        return {} if task.loss is None else {"loss_fn": task.loss}, mean_of(task.loss or F.cross_entropy)

    def batch_loss(model: nn.Module, batch: Any) -> Any:
        x, targets = parts(batch)
        return task.loss(model(x), targets)

    return {"batch_loss": batch_loss}, mean_of_sums(batch_loss)


# Loaders --------------------------------------------------------------------------------------------------------------

Pair = collections.namedtuple("Pair", "x labels")


class Items(Dataset):
    """A map-style data set, read item by item."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i]


class ChangedInTheMiddle(Dataset):
    """A data set with `.inputs` and `.targets`, which changes some items when it is read."""

    def __init__(self, x: Tensor, y: Tensor):
        self.inputs, self.targets = x, y

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> Any:
        is_changed = len(self) // 4 < i < len(self) // 2
        return self.inputs[i], self.targets[(i + 3) % len(self)] if is_changed else self.targets[i]


class Stream(IterableDataset):
    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(self.x, self.y, strict=True))


def _as_dicts(x: Tensor, y: Tensor) -> list[dict[str, Tensor]]:
    return [{"x": x[:9], "labels": y[:9]}, {"x": x[9:], "labels": y[9:]}]


def _cut(x: Tensor, y: Tensor, *sizes: int) -> list[Any]:
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


Loader = Callable[[Tensor, Tensor], tuple[Any, dict[str, Any]]]  # (x, y) -> data, options of Objective

LOADERS: dict[str, Loader] = {
    "tuple": lambda x, y: ((x, y), {}),
    "tuple, micro_batch=5": lambda x, y: ((x, y), {"micro_batch": 5}),
    "NumPy arrays": lambda x, y: ((x.numpy(), y.numpy()), {}),
    "TensorDataset": lambda x, y: (TensorDataset(x, y), {"micro_batch": 7}),
    "Dataset": lambda x, y: (Items(x, y), {}),
    "Dataset that changes items in the middle": lambda x, y: (ChangedInTheMiddle(x, y), {}),
    "ragged DataLoader": lambda x, y: (DataLoader(Items(x, y), batch_size=5), {}),
    "ragged DataLoader, micro_batch=4": lambda x, y: (DataLoader(Items(x, y), batch_size=9), {"micro_batch": 4}),
    "shuffled DataLoader": lambda x, y: (DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True), {}),
    "batch_size=1": lambda x, y: (DataLoader(TensorDataset(x, y), batch_size=1), {}),
    "IterableDataset": lambda x, y: (DataLoader(Stream(x, y), batch_size=7), {}),
    "dicts": lambda x, y: (_as_dicts(x, y), {}),
    "UserDicts": lambda x, y: ([collections.UserDict(batch) for batch in _as_dicts(x, y)], {}),
    "named tuples": lambda x, y: ([Pair(*batch) for batch in _cut(x, y, 8, len(x) - 8)], {}),
    "lists": lambda x, y: ([list(batch) for batch in _cut(x, y, 1, len(x) - 1)], {}),
    "batches of several lengths": lambda x, y: (_cut(x, y, 2, 9, len(x) - 11), {}),
    "read on each pass": lambda x, y: (DataLoader(TensorDataset(x, y), batch_size=7), {"cache": False}),
}


# Cases of layers, functions and losses --------------------------------------------------------------------------------


def _network(r: Random, middle: Callable[[], nn.Module], shape: tuple[int, ...], *, narrow: bool, refuse: str) -> Scene:
    """`middle` in a network, with a loss, a loader, an engine and a dtype that the seed chooses."""
    return _scene(r, middle, shape, r.choice(PLAIN_TASKS), r.choice(list(LOADERS)), narrow=narrow, refuse=refuse)


PLAIN_TASKS = [name for name, task in TASKS.items() if not task.may_refuse]


def _scene(
    r: Random,
    middle: Callable[[], nn.Module],
    shape: tuple[int, ...],
    loss: str,
    loader: str,
    *,
    narrow: bool = True,
    refuse: str = "",
) -> Scene:
    task = TASKS[loss]
    dtype = r.choice([D, D, D, torch.float32, torch.float32, torch.bfloat16]) if narrow and loss != "CTCLoss" else D
    # Most without a recording, which takes longest.
    engine = r.choice(["auto", "auto", "auto", "split graph", *["kept graph", "double backward"] * 4])
    if loader == "NumPy arrays" and dtype == torch.bfloat16:
        loader = "tuple"
    if loader == "shuffled DataLoader" and task.is_sum:
        loader = "ragged DataLoader"  # counts are of a batch: max(1, those that are not ignored)
    n = r.choice([12, 13, 17])
    y = task.targets(n)
    y = y.to(dtype) if y.is_floating_point() else y
    x = torch.randn(n, 3).to(dtype) if shape else torch.randint(0, 6, (n, 3))

    def build() -> nn.Module:
        made = middle()
        net = Net(made, shape, task.num_outputs) if shape else Tokens(made, task.num_outputs)
        return net.to(dtype)

    data, how = LOADERS[loader](x, y)
    options, mean = _options_and_mean(task)
    how = {"engine": engine, **options, **how}
    refuse = refuse or task.may_refuse
    if engine == "split graph" and not refuse:
        refuse = "the engine was asked for, and may not follow"
    of = f"{loss}, {loader}, {dtype}, engine={engine!r}"
    apart = None if task.is_sum or r.random() < 0.7 else _apart(task.loss or F.cross_entropy)
    is_widened = dtype != D and r.random() < 0.3
    return Scene(
        build, data, mean, how, dtype, may_refuse=refuse, of=of, apart=apart, is_widened=is_widened,
        is_partial=r.random() < 0.2,
    )  # fmt: skip


def _apart(loss_fn: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, int]]]:
    """The outputs of a batch, and the sum and count of a batch as a function of them."""

    def sum_of(outputs: Tensor, batch: Any) -> tuple[Tensor, int]:
        targets = parts(batch)[-1]
        return loss_fn(outputs, targets) * targets.numel(), targets.numel()

    return lambda model, batch: model(*parts(batch)[:-1]), sum_of


def of_layer(name: str, r: Random) -> Scene:
    layer = LAYERS[name]
    seed = r.randrange(10**6)
    middle = lambda: layer.make(Random(seed))  # noqa: E731
    return _network(r, middle, layer.shape, narrow=layer.narrow, refuse=layer.may_refuse)


def of_function(name: str, r: Random) -> Scene:
    function, refuse = FUNCTIONS[name]
    scene = _network(r, lambda: Function(function), (6,), narrow=False, refuse=refuse)
    return _narrowed(scene) if r.random() < 0.4 and name not in _FLOAT64_ONLY else scene


# Functions whose value in float32 is mostly rounding, or that lack a kernel.
_FLOAT64_ONLY = {"prod of tiny factors", "frac, fmod, remainder", "floor division"}


def _narrowed(scene: Scene, dtype: torch.dtype = torch.float32) -> Scene:
    """The same scene in another dtype, where its data are tensors or batches of tensors."""
    if not isinstance(scene.data, tuple | list) or not all(
        isinstance(leaf, Tensor) for leaf in tree_leaves(scene.data)
    ):
        return scene
    build = scene.build
    scene.build = lambda: build().to(dtype)
    scene.data = tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, scene.data)
    scene.dtype = dtype
    return scene


def of_task(name: str, r: Random) -> Scene:
    middle = lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh())  # noqa: E731
    return _scene(r, middle, (4,), name, r.choice(list(LOADERS)))


def of_loader(name: str, r: Random) -> Scene:
    middle = lambda: nn.Sequential(nn.Linear(4, 4), nn.Softplus())  # noqa: E731
    return _scene(r, middle, (4,), r.choice(PLAIN_TASKS), name)


def of_engine(name: str, r: Random) -> Scene:
    """Each engine on a plain network, where each must do."""
    scene = of_loader(r.choice(list(LOADERS)), r)
    scene.options["engine"], scene.may_refuse = name, ""
    return scene


# Layouts --------------------------------------------------------------------------------------------------------------


class Steps(nn.Module):
    """Tokens in, logits for each out: (t, n) or (n, t) to (t, n, 5) or (n, t, 5)."""

    def __init__(self, kind: str, batch_first: bool, gain: float = 1.0):
        super().__init__()
        self.embed, self.leave = nn.Embedding(5, 4), nn.Linear(4, 5)
        if kind == "transformer":
            self.inner: nn.Module = nn.TransformerEncoderLayer(4, 2, 4, activation="gelu", batch_first=batch_first)
        else:
            self.inner = getattr(nn, kind)(4, 4, batch_first=batch_first)
        for weight in self.parameters():
            nn.init.uniform_(weight, -gain, gain)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(self.embed(x))
        return self.leave(h[0] if isinstance(h, tuple) else h)


def _by_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _token_sum(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x, y = parts(batch)
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum"), y.numel()


def _sequences(
    r: Random, *, batch_first: bool, is_sum: bool, lengths: tuple[int, ...], gain: float = 1.0, last: int = 3
) -> Scene:
    kind = r.choice(["RNN", "LSTM", "GRU", "transformer"])
    sizes = [3] * (len(lengths) - 1) + [last]
    shapes = [(n, t) if batch_first else (t, n) for t, n in zip(lengths, sizes, strict=True)]
    batches = [(torch.randint(0, 5, shape), torch.randint(0, 5, shape)) for shape in shapes]
    how = {"batch_loss": _token_sum} if is_sum else {"loss_fn": _by_token}
    mean = mean_of_sums(_token_sum) if is_sum else mean_of(_by_token)
    return Scene(lambda: Steps(kind, batch_first, gain).double(), batches, mean, how)


class RealSteps(nn.Module):
    """(t, n, 3) to (t, n, 2)."""

    def __init__(self, gain: float):
        super().__init__()
        self.inner, self.leave = nn.RNN(3, 4), nn.Linear(4, 2)
        for weight in self.parameters():
            nn.init.uniform_(weight, -gain, gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.inner(x)[0])


def _real_steps(gain: float) -> Scene:
    batches = [(torch.randn(6, 4, 3, dtype=D), torch.randn(6, 4, 2, dtype=D)) for _ in range(3)]
    return Scene(lambda: RealSteps(gain).double(), batches, mean_of(F.mse_loss), {"loss_fn": F.mse_loss})


class Padded(nn.Module):
    """A transformer layer that is told which tokens are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.leave = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.inner = nn.TransformerEncoderLayer(4, 2, 4, activation="gelu", batch_first=True)

    def forward(self, x: Tensor, is_padding: Tensor) -> Tensor:
        return self.leave(self.inner(self.embed(x), src_key_padding_mask=is_padding))


def _padded(r: Random) -> Scene:
    def batch(n: int, length: int) -> tuple[Tensor, ...]:
        lengths = torch.randint(1, length + 1, (n, 1))
        is_padding = torch.arange(length) >= lengths
        targets = torch.randint(0, 5, (n, length)).masked_fill(is_padding, -100)
        return torch.randint(1, 5, (n, length)), is_padding, targets

    def batch_loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        x, is_padding, y = batch
        logits = model(x, is_padding).flatten(0, 1)
        return F.cross_entropy(logits, y.flatten(), reduction="sum"), (y != -100).sum()

    data = [batch(4, 5), batch(4, 5), batch(3, 5)]
    return Scene(lambda: Padded().double(), data, mean_of_sums(batch_loss), {"batch_loss": batch_loss})


class LastOfSequence(nn.Module):
    """(t, n, 3) to classes (n, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.leave = nn.GRU(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.inner(x)[0][-1])


def _classified(t: int, n: int) -> Scene:
    batches = [(torch.randn(t, n, 3, dtype=D), torch.randint(0, 3, (n,))) for _ in range(3)]
    return Scene(lambda: LastOfSequence().double(), batches, mean_of(F.cross_entropy))


def _plain_net(num_inputs: int = 4, num_outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(num_inputs, 5), nn.Tanh(), nn.Linear(5, num_outputs)).double()


def _infonce(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    a, b = (F.normalize(model(part), dim=1) for part in batch)
    return F.cross_entropy(a @ b.T / 0.3, torch.arange(len(a)), reduction="sum"), len(a)


def _contrastive(r: Random, batch_size: int, num: int = 24, **options: Any) -> Scene:
    a = torch.randn(num, 4, dtype=D)
    loader = DataLoader(TensorDataset(a, a + 0.3 * torch.randn_like(a)), batch_size=batch_size)
    how = {"batch_loss": _infonce, "engine": r.choice(ENGINES), **options}
    return Scene(_plain_net, loader, mean_of_sums(_infonce), how, may_refuse="micro_batch=" if options else "")


def _batch_mean(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x, y = batch
    return F.cross_entropy(model(x), y), 1


def _with_decay(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x, y = batch
    decay = sum(weight.square().sum() for weight in model.parameters())
    return F.cross_entropy(model(x), y, reduction="sum") + decay, len(y)


def _own_sum(batch_loss: Callable[..., Any]) -> Callable[[Random], Scene]:
    def make(r: Random) -> Scene:
        x, y = _pairs(23)
        how = {"batch_loss": batch_loss, "engine": r.choice(["auto", "kept graph", "double backward"])}
        return Scene(_plain_net, _cut(x, y, 5, 5, 5, 5, 3), mean_of_sums(batch_loss), how)

    return make


def _none_counts(r: Random) -> Scene:
    x, y = _pairs(15)
    y[5:10] = 0

    def batch_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return _ignoring(model(batch[0]), batch[1])

    how = {"batch_loss": batch_loss, "engine": r.choice(ENGINES)}
    return Scene(_plain_net, _cut(x, y, 5, 5, 5), mean_of_sums(batch_loss), how)


def _prototypes(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    support, labels, query, answers = batch
    z, q = model(support), model(query)
    centres = torch.stack([z[labels == c].mean(0) for c in range(3)])
    return F.cross_entropy(-(q[:, None] - centres).square().sum(2), answers, reduction="sum"), len(q)


def _episodes(r: Random) -> Scene:
    labels = torch.arange(6) % 3

    def episode() -> tuple[Tensor, ...]:
        return torch.randn(6, 4, dtype=D), labels, torch.randn(6, 4, dtype=D), torch.randint(0, 3, (6,))

    return Scene(_plain_net, [episode() for _ in range(4)], mean_of_sums(_prototypes), {"batch_loss": _prototypes})


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return adjacency @ self.b(torch.tanh(adjacency @ self.a(x)))


def _graph_sum(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x, adjacency, y = batch
    return F.cross_entropy(model(x, adjacency), y, reduction="sum"), len(y)


def _graphs(num_graphs: int, num_nodes: int, *, is_sum: bool) -> Scene:
    def graph() -> tuple[Tensor, ...]:
        A = ((torch.rand(num_nodes, num_nodes) < 3 / num_nodes) | torch.eye(num_nodes, dtype=torch.bool)).double()
        return torch.randn(num_nodes, 3, dtype=D), A / A.sum(1, keepdim=True), torch.randint(0, 3, (num_nodes,))

    how = {"batch_loss": _graph_sum} if is_sum else {}
    mean = mean_of_sums(_graph_sum) if is_sum else mean_of(F.cross_entropy)
    refuse = "" if is_sum else "the nodes of a graph are no examples"
    return Scene(lambda: Graph().double(), [graph() for _ in range(num_graphs)], mean, how, may_refuse=refuse)


# Losses that are no plain mean ----------------------------------------------------------------------------------------


def _missing_later(r: Random, loss_fn: Callable[..., Tensor], *, num: int, loader: bool) -> Scene:
    """Real targets that are missing in later batches only."""
    x, y = torch.randn(num, 4, dtype=D), torch.rand(num, 2, dtype=D)
    y[num * 2 // 3 :][torch.rand(num - num * 2 // 3, 2) < 0.8] = -1.0
    data: Any = DataLoader(TensorDataset(x, y), batch_size=num // 3) if loader else (x, y)
    how = {"loss_fn": loss_fn} | ({"micro_batch": num // 3} if not loader else {})
    mean = lambda model, batches: loss_fn(model(torch.cat([b[0] for b in batches])), torch.cat([b[1] for b in batches]))  # noqa: E731
    return Scene(lambda: _plain_net(4, 2), data, mean, how, may_refuse="it is no mean over the targets")


def _masked_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    mask = targets != -1
    return ((outputs - targets) ** 2)[mask].mean()


def _weighted_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    weight = torch.where(targets < 0, 0.1, 1.0)
    return (weight * (outputs - targets) ** 2).sum() / weight.sum()


def _correlation(outputs: Tensor, targets: Tensor) -> Tensor:
    a, b = outputs - outputs.mean(0), targets - targets.mean(0)
    return 1 - (a * b).sum() / (a.norm() * b.norm())


def _root_mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets).sqrt()


def _zero_dim(r: Random, *, real: bool) -> Scene:
    """Sequences of several lengths, one at a time, each with one target."""

    class Ragged(Dataset):
        def __init__(self) -> None:
            self.x = [torch.randn(length, 4, dtype=D) for length in (1, 2, 5, 13, 1, 2)]
            self.y = torch.randn(6, dtype=D) if real else torch.arange(6) % 3

        def __len__(self) -> int:
            return 6

        def __getitem__(self, i: int) -> Any:
            return self.x[i], self.y[i]

    last = (lambda: Applied(_plain_net(4, 1), lambda net, x: net(x).mean())) if real else (
        lambda: Applied(_plain_net(), lambda net, x: net(x).mean(0)))  # fmt: skip
    loss_fn = F.mse_loss if real else F.cross_entropy
    return Scene(last, DataLoader(Ragged(), batch_size=None), mean_of(loss_fn), {"loss_fn": loss_fn})


# Models that mix examples ---------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A network whose hidden units of one example depend on the other examples."""

    def __init__(self, mix: Callable[[Tensor], Tensor]):
        super().__init__()
        self.enter, self.leave, self.mix = nn.Linear(4, 5), nn.Linear(5, 3), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.mix(self.enter(x))))


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "centred": lambda h: h - h.mean(0),
    "standardised": lambda h: (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt(),
    "softmax over examples": lambda h: h * h.softmax(0) * len(h),
    "cumulative": lambda h: h.cumsum(0) / torch.arange(1, len(h) + 1).to(h)[:, None],
    "rolled": lambda h: h + 0.5 * h.roll(1, 0),
    "divided by the largest": lambda h: h / h.abs().amax(0),
    "the first example": lambda h: h - 0.5 * h[:1],
    "attention over examples": lambda h: h + (h @ h.T / 5).softmax(1) @ h,
    "batch norm of the batch": lambda h: F.batch_norm(h, None, None, training=True),
    "instance norm of all": lambda h: F.instance_norm(h.T[None])[0].T,
}


def _mixing(r: Random, name: str, num: int) -> Scene:
    x = torch.randn(num, 4, dtype=D) * torch.linspace(0.5, 2, num, dtype=D)[:, None]
    x = x + torch.linspace(-1, 1, num, dtype=D)[:, None]
    how: dict[str, Any] = {"engine": r.choice(ENGINES)} | ({"micro_batch": 5} if num < 100 and r.random() < 0.5 else {})
    data = (x, torch.randint(0, 3, (num,)))
    return Scene(
        lambda: Mixed(MIXES[name]).double(), data, mean_of(F.cross_entropy), how, may_refuse="it mixes examples"
    )


# Weights in another form ----------------------------------------------------------------------------------------------


def _pairs(num: int = 20, num_inputs: int = 4, num_classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(num, num_inputs, dtype=D), torch.randint(0, num_classes, (num,))


def _reparametrised(change: Callable[[nn.Module], nn.Module], refuse: str = "") -> Callable[[Random], Scene]:
    def make(r: Random) -> Scene:
        def build() -> nn.Module:
            net = nn.Sequential(nn.Linear(4, 4).double(), nn.Tanh(), nn.Linear(4, 3).double())
            net[0] = change(net[0])
            with torch.no_grad():
                net(torch.zeros(1, 4, dtype=D))
            return net

        how = {"engine": r.choice(ENGINES)}
        return Scene(build, _pairs(), mean_of(F.cross_entropy), how, may_refuse=refuse or _asked(how["engine"]))

    return make


def _asked(engine: str) -> str:
    return "the engine was asked for, and may not follow" if engine == "split graph" else ""


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT


class TiedByData(nn.Module):
    """Two Parameters in one memory, as in many autoencoders."""

    def __init__(self, transposed: bool):
        super().__init__()
        self.enter = nn.Linear(4, 2 if transposed else 4, bias=False, dtype=D)
        self.leave = nn.Linear(2 if transposed else 4, 4, bias=False, dtype=D)
        weight = self.enter.weight.data
        self.leave.weight.data = weight.t() if transposed else weight

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.enter(x)))


class TiedByView(nn.Module):
    """A view of a weight, kept as an attribute."""

    def __init__(self, how: str):
        super().__init__()
        self.enter = nn.Linear(4, 2, bias=False, dtype=D)
        weight = self.enter.weight
        self.back = {"view": lambda: weight.t(), "scaled": lambda: 2 * weight.t(), "list": lambda: [weight.t()]}[how]()

    def forward(self, x: Tensor) -> Tensor:
        back = self.back[0] if isinstance(self.back, list) else self.back
        return torch.tanh(self.enter(x)) @ back.t()


class Tied(nn.Module):
    """The same, by one Parameter used twice."""

    def __init__(self, shape: tuple[int, int], back: Callable[[Tensor], Tensor]):
        super().__init__()
        self.enter = nn.Linear(*shape, bias=False, dtype=D)
        self.back = back

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.enter(x)) @ self.back(self.enter.weight)


def _autoencoder(build: Callable[[], nn.Module], reference: Callable[[], nn.Module], refuse: str) -> Scene:
    x = torch.randn(20, 4, dtype=D)
    return Scene(
        build, (x, x.clone()), mean_of(F.mse_loss), {"loss_fn": F.mse_loss}, reference=reference, may_refuse=refuse
    )


def _tied(how: str) -> Callable[[Random], Scene]:
    # Each reference draws the same weights: a linear layer is the first thing that any of them makes.
    if how.startswith("data"):
        transposed = how == "data, transposed"
        shape, back = ((4, 2), lambda w: w) if transposed else ((4, 4), lambda w: w.t())
        return lambda r: _autoencoder(lambda: TiedByData(transposed), lambda: Tied(shape, back), "two in one memory")
    scale = 2 if how == "scaled" else 1
    return lambda r: _autoencoder(lambda: TiedByView(how), lambda: Tied((4, 2), lambda w: scale * w), "a stored view")


def _told(build: Callable[[], nn.Module], num_inputs: int = 4) -> Callable[[Random], Scene]:
    """A model on plain data, which has to be taken."""

    def make(r: Random) -> Scene:
        how = {"engine": r.choice(["auto", "kept graph", "double backward"])}
        return Scene(lambda: build().double(), _pairs(num_inputs=num_inputs), mean_of(F.cross_entropy), how)

    return make


def _weak(
    build: Callable[[], nn.Module], refuse: str, reference: Callable[[], nn.Module] | None = None
) -> Callable[[Random], Scene]:
    """A model that may be refused, and must not give wrong numbers."""

    def make(r: Random) -> Scene:
        scene = _told(build)(r)
        scene.may_refuse = refuse
        scene.reference = None if reference is None else lambda: reference().double()
        return scene

    return make


def _frozen() -> nn.Module:
    net = _plain_net()
    net[0].requires_grad_(False)
    return net


def _unused() -> nn.Module:
    net = _plain_net()
    net.register_parameter("unused", nn.Parameter(torch.randn(3, dtype=D)))
    return net


class Hooked(nn.Module):
    """Low-rank weights that a hook adds to a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _plain_net().requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(1, 4, dtype=D)), nn.Parameter(torch.randn(5, 1, dtype=D))
        self.net[0].register_forward_hook(self.add)

    def add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + inputs[0] @ self.a.T @ self.b.T

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Remembering(nn.Module):
    """It keeps its last hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.hidden = nn.Linear(4, 5), nn.Linear(5, 3), None

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = torch.tanh(self.enter(x))
        return self.leave(self.hidden)


class Bound(nn.Module):
    """It calls a layer by a function that it keeps: a bound method, a partial, or a closure."""

    def __init__(self, how: str):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 5, dtype=D), nn.Linear(5, 3, dtype=D)
        enter = self.enter
        self.call = {
            "method": enter.forward,
            "partial": functools.partial(F.linear, weight=enter.weight, bias=enter.bias),
            "closure": lambda x: F.linear(x, enter.weight, enter.bias),
        }[how]

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.call(x)))


class KeepsProduct(nn.Module):
    """It makes a product of its weights at the first call and keeps it; the reference makes it anew."""

    def __init__(self, keeps: bool):
        super().__init__()
        self.enter, self.leave, self.keeps, self.kept = nn.Linear(4, 4), nn.Linear(4, 3), keeps, None

    def forward(self, x: Tensor) -> Tensor:
        made = self.enter.weight @ self.enter.weight.T if self.kept is None else self.kept
        if self.keeps:
            self.kept = made
        return self.leave(torch.tanh(self.enter(x) @ made))


class Counting(nn.Module):
    """It is another function at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.num_calls = _plain_net(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return self.net(x) * (1 + 0.3 * (self.num_calls % 3))


def _in_one_storage(*, overlapping: bool) -> nn.Module:
    """The weights of a network as pieces of one flat tensor, as some optimizers keep them."""
    net = _plain_net()
    weights = list(net.parameters())
    flat = torch.cat([weight.detach().reshape(-1) for weight in weights])
    start = 0
    for weight in weights:
        weight.data = flat[start : start + weight.numel()].view_as(weight)
        start += weight.numel() - int(overlapping)
    return net


def _with_hook(kind: str) -> nn.Module:
    net = _plain_net()
    if kind == "weight":
        net[0].weight.register_hook(lambda g: 2 * g)
    else:
        factor = 2 if kind == "changing" else 1
        net[1].register_full_backward_hook(
            lambda module, inputs, outputs: tuple(factor * g for g in inputs) if factor != 1 else None
        )
    return net


class OneBuffer:
    """Batches in one piece of memory that is filled anew, as prefetching loaders have it."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        x, y = torch.empty_like(self.x[:4]), torch.empty_like(self.y[:4])
        for start in range(0, len(self.x), 4):
            x.copy_(self.x[start : start + 4])
            y.copy_(self.y[start : start + 4])
            yield x, y


def _one_buffer(r: Random, *, cache: bool, is_sum: bool) -> Scene:
    x, y = _pairs(12)

    def batch_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    how: dict[str, Any] = {"cache": cache} | ({"batch_loss": batch_loss} if is_sum else {})
    return Scene(_plain_net, OneBuffer(x, y), mean_of(F.cross_entropy), how, batches=_cut(x, y, 4, 4, 4))


def _changed_afterwards(what: str) -> Callable[[Random], Scene]:
    """A user who goes on with what was passed: trains the model, fills the tensors anew."""

    def make(r: Random) -> Scene:
        x, y = _pairs(13)
        forms: dict[str, Any] = {
            "tuple": (x, y), "TensorDataset": TensorDataset(x, y), "list": _cut(x, y, 4, 9),
            "list, batch_loss": _cut(x, y, 4, 9), "sequences": _cut(x, y, 13), "model": (x, y),
        }  # fmt: skip
        loss_fn = nn.CrossEntropyLoss(weight=torch.ones(3, dtype=D))

        def batch_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

        how = {"batch_loss": batch_loss} if "batch_loss" in what else {"loss_fn": loss_fn}

        def objective(model: nn.Module) -> Any:
            own, data, own_how = copy.deepcopy((model, forms[what], how))
            loss = lh.Objective(own, data, **own_how)
            changed = data.tensors if isinstance(data, TensorDataset) else tree_leaves(data)
            for tensor in own.parameters() if what == "model" else changed:
                tensor.data.zero_()
            if "loss_fn" in own_how:
                own_how["loss_fn"].weight.zero_()
            return loss

        return Scene(_plain_net, forms[what], mean_of(F.cross_entropy), how, objective=objective)

    return make


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.enter(x))
        return self.a(h), self.b(h)


def _two_tasks(r: Random) -> Scene:
    def loss_fn(outputs: Any, targets: Any) -> Tensor:
        return F.cross_entropy(outputs[0], targets[0]) + F.mse_loss(outputs[1], targets[1])

    def mean(model: nn.Module, batches: list[Any]) -> Tensor:
        return sum(len(x) * loss_fn(model(x), targets) for x, targets in batches) / sum(len(x) for x, _ in batches)

    data = [(torch.randn(n, 4, dtype=D), (torch.randint(0, 3, (n,)), torch.randn(n, 2, dtype=D))) for n in (5, 5, 3)]
    return Scene(lambda: TwoHeads().double(), data, mean, {"loss_fn": loss_fn})


def _second_output(r: Random) -> Scene:
    loss_fn = lambda outputs, targets: F.cross_entropy(outputs[0], targets) + outputs[1].square().mean()  # noqa: E731
    return Scene(lambda: TwoHeads().double(), _pairs(13), mean_of(loss_fn), {"loss_fn": loss_fn, "micro_batch": 5})


def _with_names(r: Random) -> Scene:
    def batch_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        assert len(batch["names"]) == len(batch["x"])
        return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="sum"), len(batch["x"])

    data = [batch | {"names": ["a"] * len(batch["x"])} for batch in _as_dicts(*_pairs(13))]
    return Scene(_plain_net, data, mean_of_sums(batch_loss), {"batch_loss": batch_loss})


class SharedLayers(nn.Module):
    """One layer under two names, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a
        self.c = nn.Linear(4, 4)
        self.c.weight = self.a.weight
        self.leave = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.c(torch.tanh(self.b(torch.sin(self.a(x))))))


# Embeddings -----------------------------------------------------------------------------------------------------------


class Embedded(nn.Module):
    def __init__(self, call: Callable[[Tensor, nn.Module], Tensor], layer: Callable[[], nn.Module]):
        super().__init__()
        self.table, self.leave, self.call = layer(), nn.Linear(3, 3), call
        with torch.no_grad():
            self.table.weight.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.call(x, self.table)))


def _embedding(
    call: Callable[[Tensor, Any], Tensor] | None = None, *, refuse: str = "torch's gradient is not the derivative",
    **options: Any,
) -> Callable[[Random], Scene]:  # fmt: skip
    take = call or (lambda x, table: table(x).mean(1))

    def make(r: Random) -> Scene:
        how = {"engine": r.choice(ENGINES)}
        build = lambda: Embedded(take, lambda: nn.Embedding(6, 3, **options)).double()  # noqa: E731
        return Scene(build, _tokens(), mean_of(F.cross_entropy), how, may_refuse=refuse or _asked(how["engine"]))

    return make


def _bag(**options: Any) -> Callable[[Random], Scene]:
    build = lambda: Embedded(lambda x, table: table(x), lambda: nn.EmbeddingBag(6, 3, **options)).double()  # noqa: E731
    return lambda r: Scene(build, _tokens(), mean_of(F.cross_entropy), may_refuse=_NOT_TWICE)


def _tokens(num: int = 20) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 6, (num, 4)), torch.randint(0, 3, (num,))


# Points where torch's derivatives are not finite ----------------------------------------------------------------------


class AtZero(nn.Module):
    """exp(-h^2) of the size h of hidden units that are zero for some inputs: smooth, but not for torch."""

    def __init__(self, size: Callable[[Tensor], Tensor]):
        super().__init__()
        self.enter, self.leave, self.size = nn.Linear(3, 3, bias=False), nn.Linear(1, 2), size

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.exp(-(self.size(self.enter(x)) ** 2)))


SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "linalg.norm": lambda h: torch.linalg.norm(h, dim=1, keepdim=True),
    "Tensor.norm": lambda h: h.norm(dim=1, keepdim=True),
    "sqrt": lambda h: h.square().sum(1, keepdim=True).sqrt(),
    "pow": lambda h: (h.square().sum(1, keepdim=True)) ** 0.5,
    "hypot": lambda h: torch.hypot(h[:, :1], h[:, 1:2]),
    "cdist": lambda h: torch.cdist(h, torch.zeros(1, 3).to(h)),
    "pairwise_distance": lambda h: F.pairwise_distance(h, torch.zeros_like(h), eps=0.0, keepdim=True),
}


def _at_zero(name: str) -> Callable[[Random], Scene]:
    def make(r: Random) -> Scene:
        x, y = torch.randn(8, 3, dtype=D), torch.arange(8) % 2
        x[[2, 5]] = 0
        build = lambda: AtZero(SIZES[name]).double()  # noqa: E731
        how = {"engine": r.choice(ENGINES)}
        return Scene(build, (x, y), mean_of(F.cross_entropy), how, may_refuse="torch's derivative is NaN at zero")

    return make


class RadialBasis(nn.Module):
    """Centres that are training points, as they are at the start."""

    def __init__(self, centres: Tensor, distance: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.centres, self.leave, self.distance = nn.Parameter(centres.clone()), nn.Linear(len(centres), 2), distance

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.exp(-(self.distance(x, self.centres) ** 2)))


def _radial(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Random], Scene]:
    def make(r: Random) -> Scene:
        x, y = torch.randn(8, 3, dtype=D), torch.arange(8) % 2
        build = lambda: RadialBasis(x[:3], distance).double()  # noqa: E731
        how = {"engine": r.choice(ENGINES)}
        return Scene(build, (x, y), mean_of(F.cross_entropy), how, may_refuse="torch's derivative is NaN at zero")

    return make


class Theta(nn.Module):
    def __init__(self, start: Tensor):
        super().__init__()
        self.theta = nn.Parameter(start.clone())


def _function(function: Callable[[Tensor], Tensor], start: Tensor, refuse: str) -> Scene:
    """A function of theta alone, as a FunctionObjective."""
    return Scene(
        lambda: Theta(start), [torch.zeros(1)], lambda model, _: function(model.theta), may_refuse=refuse,
        objective=lambda model: lh.FunctionObjective(function, start.clone()),
    )  # fmt: skip


def _bump(norm: Callable[[Tensor], Tensor]) -> Callable[[Random], Scene]:
    def make(r: Random) -> Scene:
        centre = torch.randn(4, dtype=D)
        return _function(lambda t: 1 - torch.exp(-(norm(t - centre) ** 2)), centre, "torch's derivative is NaN at zero")

    return make


_NAN = "torch's derivatives are NaN there, or not those of the function"

# Functions of theta alone at a point of their own, and why the library may refuse them there.
POINTS: dict[str, tuple[Callable[[Tensor], Tensor], list[float], str]] = {
    "prod, one zero": (lambda t: t.prod() + t.sin().sum(), [0.0, 1.2, 0.7, -0.4], ""),
    "prod, two zeros": (lambda t: t.prod() + t.sin().sum(), [0.0, 1.2, 0.0, -0.4], ""),
    "prod, tiny factors": (lambda t: t.prod() + t.sin().sum(), [1e-170, 1e-170, 0.7, 1.3], _NAN),
    "prod of rows, a zero": (lambda t: t.view(2, 2).prod(1).exp().sum(), [0.0, 1.2, 0.7, -0.4], ""),
    "cumprod, a zero": (lambda t: t.cumprod(0).sin().sum(), [0.9, 0.0, 0.7, -0.4], ""),
    "sinc at zero": (lambda t: torch.sinc(t).prod(), [0.0, 0.5, 0.2, -0.4], _NAN),
    "tanh(x) / x by where": (
        lambda t: torch.where(t == 0, 1.0, t.tanh() / t).prod(), [0.0, 0.5, 0.2, -0.4], _NAN),
    "cosine by sqrt of squares": (lambda t: t.square().sqrt().cos().sum(), [0.0, 0.5, 0.2, -0.4], _NAN),
    "even power by abs": (lambda t: t.abs().pow(4.0).sum() + t.sum().sin(), [0.0, 0.5, 0.2, -0.4], _NAN),
    "power of a tensor": (lambda t: (t**2.0).sum() + (t**3.0).sum(), [0.0, 0.5, 0.2, -0.4], ""),
    "determinant, singular": (lambda t: torch.linalg.det(t.view(2, 2)).exp(), [1.0, 2.0, 0.5, 1.0], _NAN),
    "equal eigenvalues": (
        lambda t: torch.linalg.eigvalsh(torch.stack([t[0], t[1], t[1], t[2]]).view(2, 2)).exp().sum() + t[3] ** 2,
        [1.0, 0.0, 1.0, 0.5], _NAN),
    "equal singular values": (
        lambda t: torch.linalg.svdvals(t.view(2, 2)).square().sum(), [1.0, 0.0, 0.0, 1.0], _NAN),
    "standard deviation of equals": (lambda t: t.std() ** 2 + t.sum().sin(), [0.3, 0.3, 0.3, 0.3], _NAN),
    "variance of equals": (lambda t: t.var() + t.sum().sin(), [0.3, 0.3, 0.3, 0.3], ""),
    "logsumexp of equals": (lambda t: t.logsumexp(0), [0.3, 0.3, 0.3, 0.3], ""),
    "log of a softmax, saturated": (lambda t: -(t * 200).log_softmax(0)[0], [0.9, 0.1, 0.2, 0.3], ""),
    "log of exp, saturated": (lambda t: torch.log1p(torch.exp(60 * t)).sum(), [0.9, 0.1, 0.2, 0.3], ""),
    "angle at zero": (lambda t: torch.atan2(t[0], t[1]).sin() * (t[0] ** 2 + t[1] ** 2) + t[2] * t[3],
                      [0.0, 0.0, 0.2, 0.3], _NAN),
    "size of a complex number": (
        lambda t: torch.view_as_complex(t.view(2, 2)).abs().square().sum().sin(), [0.0, 0.0, 0.2, 0.3], _NAN),
    "xlogy at zero": (lambda t: torch.xlogy(t**2, t**2 + 1).sum() + t.sum().sin(), [0.0, 0.5, 0.2, -0.4], ""),
    "a fourth root of fourth powers": (lambda t: (t**4).sum() ** 0.25 + t.sum().sin(), [0.4, 0.5, 0.2, -0.4], ""),
    "a linear function": (lambda t: 2 * t.sum(), [0.4, 0.5, 0.2, -0.4], ""),
    "parts that are not used": (lambda t: t[:2].sin().sum(), [0.4, 0.5, 0.2, -0.4], ""),
    "scale 1e-12": (lambda t: 1e-12 * t.sin().prod(), [0.4, 0.5, 0.2, -0.4], ""),
    "scale 1e12": (lambda t: 1e12 * t.sin().prod(), [0.4, 0.5, 0.2, -0.4], ""),
}  # fmt: skip


# Losses with weights of their own -------------------------------------------------------------------------------------


class WithOwnLoss(nn.Module):
    def __init__(self, loss: nn.Module):
        super().__init__()
        self.enter, self.loss = nn.Linear(4, 4), loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found = self.loss(torch.tanh(self.enter(x)), y)
        return found.loss if isinstance(found, tuple) else found


def _own_loss(make: Callable[[], nn.Module], num_classes: int) -> Callable[[Random], Scene]:
    def batch_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        x, y = batch
        return model(x, y) * len(y), len(y)

    data = lambda: _pairs(num_classes=num_classes)  # noqa: E731
    build = lambda: WithOwnLoss(make()).double()  # noqa: E731
    return lambda r: Scene(build, data(), mean_of_sums(batch_loss), {"batch_loss": batch_loss})


def _threads(r: Random) -> Scene:
    net = lambda: nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)).double()  # noqa: E731
    how = {"micro_batch": 8, "engine": r.choice(ENGINES)}
    return Scene(net, _pairs(120), mean_of(F.cross_entropy), how, num_threads=2)


class Cached(nn.Module):
    """A table of positions, kept until the length changes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.leave, self.table = nn.Embedding(5, 4), nn.Linear(4, 5), None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or len(self.table) != x.shape[1]:
            self.table = torch.sin(torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.5, 0.2, 0.1]))
        return self.leave(torch.tanh(self.embed(x) + self.table.to(self.embed.weight.dtype)))


_TABLES: dict[int, Tensor] = {}


class CachedForAll(Cached):
    """The table is a global one, shared by every copy of the model."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] not in _TABLES:
            _TABLES[x.shape[1]] = torch.sin(torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.5, 0.2, 0.1]))
        table = _TABLES[x.shape[1]].to(self.embed.weight.dtype)
        return self.leave(torch.tanh(self.embed(x) + table))


def _cached(kind: type[nn.Module]) -> Callable[[Random], Scene]:
    def make(r: Random) -> Scene:
        _TABLES.clear()
        batches = [(torch.randint(0, 5, (3, n)), torch.randint(0, 5, (3, n))) for n in (4, 6)]
        return Scene(lambda: kind().double(), batches, mean_of_sums(_token_sum), {"batch_loss": _token_sum})

    return make


SPECIALS: dict[str, Callable[[Random], Scene]] = {
    "time first": lambda r: _sequences(r, batch_first=False, is_sum=False, lengths=(4, 4, 4)),
    "time first, small weights": lambda r: _sequences(r, batch_first=False, is_sum=False, lengths=(4, 4, 4), gain=0.1),
    "time first, one batch": lambda r: _sequences(r, batch_first=False, is_sum=False, lengths=(8,)),
    "time first, batch_loss": lambda r: _sequences(r, batch_first=False, is_sum=True, lengths=(4, 4, 4)),
    "time first, ragged": lambda r: _sequences(r, batch_first=False, is_sum=False, lengths=(4, 4, 4), last=2),
    "time first, real targets": lambda r: _real_steps(1.0),
    "time first, real targets, small weights": lambda r: _real_steps(0.1),
    "padded": _padded,
    "time first, several lengths": lambda r: _sequences(r, batch_first=False, is_sum=False, lengths=(4, 5)),
    "batch first": lambda r: _sequences(r, batch_first=True, is_sum=False, lengths=(4, 4, 4)),
    "batch first, several lengths": lambda r: _sequences(r, batch_first=True, is_sum=False, lengths=(4, 5)),
    "batch first, batch_loss": lambda r: _sequences(r, batch_first=True, is_sum=True, lengths=(4, 5)),
    "a class for each sequence": lambda r: _classified(5, 4),
    "a class for each sequence, as many as steps": lambda r: _classified(5, 5),
    "InfoNCE": lambda r: _contrastive(r, 4),
    "InfoNCE, ragged": lambda r: _contrastive(r, 7),
    "InfoNCE, many": lambda r: _contrastive(r, 200, 1200),
    "InfoNCE, micro_batch=3": lambda r: _contrastive(r, 6, micro_batch=3),
    "means of batches by batch_loss": _own_sum(_batch_mean),
    "weight decay in batch_loss": _own_sum(_with_decay),
    "a batch with no target that counts": _none_counts,
    "episodes": _episodes,
    "a graph": lambda r: _graphs(1, 10, is_sum=False),
    "a graph, batch_loss": lambda r: _graphs(1, 10, is_sum=True),
    "two graphs": lambda r: _graphs(2, 10, is_sum=True),
    "a large graph": lambda r: _graphs(1, 300, is_sum=True),
    "masked real targets": lambda r: _missing_later(r, _masked_mean, num=24, loader=False),
    "masked real targets, loader": lambda r: _missing_later(r, _masked_mean, num=24, loader=True),
    "masked real targets, many": lambda r: _missing_later(r, _masked_mean, num=1800, loader=False),
    "weights by real targets": lambda r: _missing_later(r, _weighted_mean, num=24, loader=True),
    "correlation": lambda r: _missing_later(r, _correlation, num=24, loader=True),
    "root mean square": lambda r: _missing_later(r, _root_mean_square, num=24, loader=True),
    "a sum by loss_fn": lambda r: Scene(
        _plain_net, _pairs(), mean_of(_class_sum), {"loss_fn": _class_sum}, may_refuse="it is no mean"),
    "targets that broadcast": lambda r: Scene(
        lambda: _plain_net(4, 1), (torch.randn(9, 4, dtype=D), torch.randn(9, dtype=D)), mean_of(F.mse_loss),
        {"loss_fn": F.mse_loss}, may_refuse="outputs (n, 1) and targets (n,)"),
    "class weights by loss_fn": lambda r: Scene(
        _plain_net, _sorted_classes(), lambda m, bs: _whole(_class_weighted, m, bs), {"loss_fn": _class_weighted},
        may_refuse="it is no mean over the targets"),
    "ignore_index by loss_fn": lambda r: Scene(
        _plain_net, _sorted_classes(), lambda m, bs: _whole(_class_ignoring, m, bs), {"loss_fn": _class_ignoring},
        may_refuse="it is no mean over the targets"),
    "0-dim targets, batch_size=None": lambda r: _zero_dim(r, real=False),
    "0-dim real targets, batch_size=None": lambda r: _zero_dim(r, real=True),
    **{f"mixes examples: {name}": lambda r, name=name: _mixing(r, name, 24) for name in MIXES},
    **{f"mixes many examples: {name}": lambda r, name=name: _mixing(r, name, 2048) for name in MIXES
       if name in ("centred", "softmax over examples", "rolled")},
    "weight_norm": _reparametrised(lambda layer: nn.utils.parametrizations.weight_norm(layer)),
    "weight_norm of old": _reparametrised(lambda layer: nn.utils.weight_norm(layer)),
    "weight_norm of all": _reparametrised(lambda layer: nn.utils.parametrizations.weight_norm(layer, dim=None)),
    "spectral_norm": _reparametrised(lambda layer: nn.utils.parametrizations.spectral_norm(layer)),
    "spectral_norm of old": _reparametrised(lambda layer: nn.utils.spectral_norm(layer)),
    "orthogonal": _reparametrised(lambda layer: nn.utils.parametrizations.orthogonal(layer)),
    "orthogonal by Cayley": _reparametrised(
        lambda layer: nn.utils.parametrizations.orthogonal(layer, orthogonal_map="cayley")),
    "a parametrization of one's own": _reparametrised(lambda layer: _registered(layer)),
    "pruned": _reparametrised(lambda layer: prune.l1_unstructured(layer, "weight", 0.3)),
    "tied by data": _tied("data"),
    "tied by data, transposed": _tied("data, transposed"),
    "tied by a stored view": _tied("view"),
    "tied by a stored view, scaled": _tied("scaled"),
    "tied by a stored list of views": _tied("list"),
    "tied by Parameter": lambda r: Scene(lambda: SharedLayers().double(), _pairs(), mean_of(F.cross_entropy)),
    "a frozen layer": _told(_frozen),
    "a weight that is not used": _told(_unused),
    "weights added by a hook": _told(Hooked),
    "hidden units that are kept": _told(Remembering),
    "a bound method that is kept": _told(lambda: Bound("method")),
    "a partial that holds a weight": _weak(lambda: Bound("partial"), "it holds a weight out of reach"),
    "a closure that holds a weight": _weak(lambda: Bound("closure"), "it holds a weight out of reach"),
    "a product of weights that is kept": _weak(
        lambda: KeepsProduct(True), "it keeps a tensor made of weights", lambda: KeepsProduct(False)),
    "another function at each call": _weak(Counting, "it is no function of the weights"),
    "weights in one storage": _told(lambda: _in_one_storage(overlapping=False)),
    "weights that overlap": _weak(lambda: _in_one_storage(overlapping=True), "two weights share a number"),
    "a hook on a weight": _weak(lambda: _with_hook("weight"), "torch's gradient is not the derivative"),
    "a backward hook that changes": _weak(lambda: _with_hook("changing"), "torch's gradient is not the derivative"),
    "a backward hook that looks on": _told(lambda: _with_hook("looking")),
    "one buffer for all batches": lambda r: _one_buffer(r, cache=True, is_sum=False),
    "one buffer for all batches, batch_loss": lambda r: _one_buffer(r, cache=True, is_sum=True),
    "one buffer for all batches, read on each pass": lambda r: _one_buffer(r, cache=False, is_sum=False),
    **{f"changed afterwards: {what}": _changed_afterwards(what)
       for what in ("tuple", "TensorDataset", "list", "list, batch_loss", "sequences", "model")},
    "two tasks": _two_tasks,
    "two outputs, one target": _second_output,
    "names in the batches": _with_names,
    "torch.jit.script": _weak(lambda: torch.jit.script(_plain_net()), "it can't be followed"),
    "torch.jit.trace": _weak(
        lambda: torch.jit.trace(_plain_net(), torch.zeros(2, 4, dtype=D)), "it can't be followed"),
    "Embedding": _embedding(refuse=""),
    "Embedding padding_idx": _embedding(padding_idx=0, refuse=""),
    "Embedding scale_grad_by_freq": _embedding(scale_grad_by_freq=True),
    "Embedding max_norm": _embedding(max_norm=1.0),
    "Embedding sparse": _embedding(sparse=True),
    "F.embedding padding_idx": _embedding(lambda x, t: F.embedding(x, t.weight, padding_idx=0).mean(1)),
    "F.embedding scale_grad_by_freq": _embedding(
        lambda x, t: F.embedding(x, t.weight, scale_grad_by_freq=True).mean(1)),
    "F.embedding max_norm": _embedding(lambda x, t: F.embedding(x, t.weight.clone(), max_norm=1.0).mean(1)),
    "F.embedding sparse": _embedding(lambda x, t: F.embedding(x, t.weight, sparse=True).mean(1)),
    "EmbeddingBag": _bag(mode="mean"),
    "EmbeddingBag padding_idx": _bag(mode="sum", padding_idx=0),
    "EmbeddingBag scale_grad_by_freq": _bag(mode="sum", scale_grad_by_freq=True),
    "F.embedding_bag padding_idx": _embedding(lambda x, t: F.embedding_bag(x, t.weight, padding_idx=0, mode="mean")),
    **{f"zero rows: {name}": _at_zero(name) for name in SIZES},
    "radial basis by cdist": _radial(torch.cdist),
    "radial basis by norm": _radial(lambda x, c: (x[:, None] - c).norm(dim=2)),
    "a bump by linalg.norm": _bump(torch.linalg.norm),
    "a bump by sqrt": _bump(lambda d: d.square().sum().sqrt()),
    "a bump by norm": _bump(torch.norm),
    **{f"at a point: {name}": lambda r, name=name: _function(
        POINTS[name][0], torch.tensor(POINTS[name][1], dtype=D), POINTS[name][2]) for name in POINTS},
    "AdaptiveLogSoftmaxWithLoss": _own_loss(lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4], div_value=1.0), 6),
    "LinearCrossEntropyLoss": _own_loss(lambda: nn.LinearCrossEntropyLoss(4, 3), 3),
    "two threads": _threads,
    "a cached table": _cached(Cached),
    "a cached table for all": _cached(CachedForAll),
}  # fmt: skip


def _class_weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 2.0, 5.0]).to(outputs))


def _class_sum(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="sum")


def _class_ignoring(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, ignore_index=2)


def _sorted_classes() -> list[Any]:
    x, y = torch.randn(24, 4, dtype=D), torch.tensor([0] * 10 + [1] * 8 + [2, 1, 2, 0, 1, 2])
    return _cut(x, y, 8, 8, 8)


def _whole(loss_fn: Callable[..., Tensor], model: nn.Module, batches: list[Any]) -> Tensor:
    return loss_fn(model(torch.cat([b[0] for b in batches])), torch.cat([b[1] for b in batches]))


def _registered(layer: nn.Module) -> nn.Module:
    nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


_IN_FLOAT32_TOO = ("time first", "batch first", "padded", "a class for", "episodes", "a graph", "two graphs", "mixes")


def of_special(name: str, r: Random) -> Scene:
    scene = SPECIALS[name](r)
    return _narrowed(scene) if name.startswith(_IN_FLOAT32_TOO) and r.random() < 0.3 else scene


FAMILIES: dict[str, tuple[Callable[[str, Random], Scene], list[str]]] = {
    "layer": (of_layer, list(LAYERS)),
    "function": (of_function, list(FUNCTIONS)),
    "loss": (of_task, list(TASKS)),
    "loader": (of_loader, list(LOADERS)),
    "engine": (of_engine, list(ENGINES)),
    "special": (of_special, list(SPECIALS)),
}


def scene_of(case: str) -> tuple[Callable[[], Scene], int]:
    """The scene of a case "family/name/seed", and the seed of its numbers."""
    family, _, rest = case.partition("/")
    name, _, seed = rest.rpartition("/")
    make, names = FAMILIES[family]
    if name not in names:
        raise ValueError(f"case {case!r} names {name!r}, expected one of the family {family!r}: {names}")
    return lambda: make(name, Random(case)), int(seed)


def cases(family: str, seeds: range) -> list[str]:
    return [f"{family}/{name}/{seed}" for seed in seeds for name in FAMILIES[family][1]]
