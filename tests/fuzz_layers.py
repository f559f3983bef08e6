"""Every layer of torch.nn in a small network, and about a hundred torch functions in a hidden layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Classes of torch.nn that stand in no network, and why.
EXCLUDED = {
    "Module": "the base class of all",
    "Container": "an abstract class that torch keeps for old files",
    "RNNBase": "the abstract class of RNN, LSTM and GRU",
    "RNNCellBase": "the abstract class of their cells",
}

_NOT_TWICE = "torch has no second derivative of it"


class Net(nn.Module):
    """Linear and tanh, `middle` on hidden units of a given shape, and a linear read-out."""

    def __init__(self, middle: nn.Module, shape: tuple[int, ...], num_outputs: int, num_inputs: int = 3):
        super().__init__()
        self.shape = shape
        self.enter = nn.Linear(num_inputs, math.prod(shape))
        self.middle = middle
        was_training = middle.training
        with torch.no_grad():
            seen = middle.eval()(torch.tanh(torch.randn(4, *shape)))
        middle.train(was_training)
        self.leave = nn.Linear(seen.reshape(4, -1).shape[1], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x)).view(len(x), *self.shape)  # (n, *shape)
        return self.leave(self.middle(h).flatten(1))


class Applied(nn.Module):
    """A layer called in another way than `layer(h)`."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, h: Tensor) -> Tensor:
        return self.call(self.layer, h)


class Tokens(nn.Module):
    """A layer of tokens (n, 3), tanh, and a linear read-out."""

    def __init__(self, layer: nn.Module, num_outputs: int):
        super().__init__()
        self.layer = layer
        size = layer(torch.zeros(2, 3, dtype=torch.long)).reshape(2, -1).shape[1]
        self.leave = nn.Linear(size, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.layer(x)).flatten(1))


@dataclass(frozen=True)
class Layer:
    """How a class of torch.nn is put into a network."""

    shape: tuple[int, ...]  # of what it gets, without the examples; () where that is tokens
    make: Callable[[Random], nn.Module]
    may_refuse: str = ""
    narrow: bool = True  # whether float32 and bfloat16 are tried too


def _pair(make: Callable[[Random], nn.Module]) -> Callable[[Random], nn.Module]:
    return lambda r: Applied(make(r), lambda layer, h: layer(h[:, 0], h[:, 1]))


def _first(make: Callable[[Random], nn.Module]) -> Callable[[Random], nn.Module]:
    """What a recurrent layer gives at each step, whichever dimension it takes for time."""

    def call(layer: Any, h: Tensor) -> Tensor:
        return layer(h)[0] if layer.batch_first else layer(h.transpose(0, 1))[0].transpose(0, 1)

    return lambda r: Applied(make(r), call)


def _attention(layer: Any, h: Tensor) -> Tensor:
    return layer(h, h, h)[0] if layer.batch_first else _turned(layer(*[h.transpose(0, 1)] * 3)[0])


def _turned(h: Tensor) -> Tensor:
    return h.transpose(0, 1)


def _decoder(layer: Any, h: Tensor) -> Tensor:
    return layer(h[:, 0], h[:, 1])


def _with_statistics(norm: Any) -> nn.Module:
    """A norm whose running statistics are those of no batch here, as after training on other data."""
    if norm.running_mean is not None and not isinstance(norm.running_mean, nn.parameter.UninitializedBuffer):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def _norm(make: Callable[[Random], nn.Module]) -> Callable[[Random], nn.Module]:
    return lambda r: _with_statistics(make(r))


def _pad(name: str, dims: int) -> Layer:
    value = (0.5,) if name.startswith("Constant") else ()
    shape = (2, 4) if dims == 1 else (1, 3, 3) if dims == 2 else (1, 2, 2, 2)
    return Layer(shape, lambda r: getattr(nn, f"{name}{dims}d")(1, *value))


def _plain(name: str, *args: Any, shape: tuple[int, ...] = (6,), may_refuse: str = "") -> Layer:
    return Layer(shape, lambda r: getattr(nn, name)(*args), may_refuse)


_SHAPES = {1: (2, 6), 2: (2, 4, 3), 3: (1, 3, 2, 3)}


def _conv(name: str, dims: int) -> Layer:
    channels = _SHAPES[dims][0]
    lazy = name.startswith("Lazy")

    def make(r: Random) -> nn.Module:
        sizes = (2,) if lazy else (channels, 2)
        options: dict[str, Any] = {"padding": r.choice([0, 1]), "bias": r.random() < 0.7}
        if "Transpose" not in name:
            options["padding_mode"] = r.choice(["zeros", "circular", "replicate"])
        return getattr(nn, f"{name}{dims}d")(*sizes, kernel_size=2, stride=r.choice([1, 2]), **options)

    return Layer(_SHAPES[dims], make)


def _pool(name: str, dims: int, *args: Any, may_refuse: str = "") -> Layer:
    return Layer(_SHAPES[dims], lambda r: getattr(nn, f"{name}{dims}d")(*args), may_refuse)


def _unpool(dims: int) -> Layer:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = getattr(nn, f"MaxPool{dims}d")(2, return_indices=True)
            self.unpool = getattr(nn, f"MaxUnpool{dims}d")(2)

        def forward(self, h: Tensor) -> Tensor:
            return self.unpool(*self.pool(h.sin()))

    return Layer((1, *(2,) * dims) if dims == 3 else (1, *(4,) * dims), lambda r: Pooled())


def _fractional(dims: int) -> Layer:
    def make(r: Random) -> nn.Module:
        return getattr(nn, f"FractionalMaxPool{dims}d")(2, output_size=2)

    return Layer((1, *(4,) * dims), make, "it draws random numbers in eval mode too")


def _mapped(kind: str) -> Callable[[Random], nn.Module]:
    """A network whose weights stand in a ParameterDict or a ParameterList."""

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weights = {"w": nn.Parameter(torch.randn(6, 4)), "b": nn.Parameter(torch.randn(4))}
            self.held = nn.ParameterDict(weights) if kind == "dict" else nn.ParameterList(weights.values())

        def forward(self, h: Tensor) -> Tensor:
            w, b = (self.held["w"], self.held["b"]) if kind == "dict" else self.held
            return torch.sin(h @ w + b)

    return lambda r: Mapped()


def _held(kind: str) -> Callable[[Random], nn.Module]:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = {"a": nn.Linear(6, 3), "b": nn.Linear(6, 3)}
            self.held = nn.ModuleDict(layers) if kind == "dict" else nn.ModuleList(layers.values())

        def forward(self, h: Tensor) -> Tensor:
            a, b = self.held.values() if kind == "dict" else self.held
            return a(h).sigmoid() * b(h)

    return lambda r: Held()


class Cell(nn.Module):
    """A recurrent cell over the steps of (n, steps, features)."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell = cell

    def forward(self, h: Tensor) -> Tensor:
        state = None
        for step in h.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


# What is applied to each number by itself, with no argument that has to be given.
_OF_NUMBERS = (
    "CELU", "ELU", "GELU", "Hardshrink", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish",
    "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh",
    "Tanhshrink", "Dropout", "AlphaDropout",
)  # fmt: skip

LAYERS: dict[str, Layer] = {
    **{name: _plain(name) for name in _OF_NUMBERS},
    "Hardsigmoid": _plain("Hardsigmoid", may_refuse=_NOT_TWICE),
    **{name: Layer((6,), lambda r, name=name: getattr(nn, name)(dim=1))
       for name in ("Softmax", "Softmin", "LogSoftmax")},
    "Softmax2d": _plain("Softmax2d", shape=(2, 2, 2)),
    "GLU": Layer((6,), lambda r: nn.GLU(dim=1)),
    "Threshold": _plain("Threshold", 0.1, -0.2),
    "FeatureAlphaDropout": _plain("FeatureAlphaDropout", shape=(2, 3)),
    "Dropout1d": _plain("Dropout1d", shape=(2, 3)),
    "Dropout2d": _plain("Dropout2d", shape=(2, 2, 2)),
    "Dropout3d": _plain("Dropout3d", shape=(1, 2, 2, 2)),
    "Linear": Layer((6,), lambda r: nn.Linear(6, 3, bias=r.random() < 0.5)),
    "LazyLinear": Layer((6,), lambda r: nn.LazyLinear(3)),
    "Bilinear": Layer((2, 3), _pair(lambda r: nn.Bilinear(3, 3, 2))),
    "CosineSimilarity": Layer((2, 3, 2), _pair(lambda r: nn.CosineSimilarity(dim=r.choice([1, 2])))),
    "PairwiseDistance": Layer((2, 3, 2), _pair(lambda r: nn.PairwiseDistance(p=r.choice([2, 3])))),
    "Flatten": _plain("Flatten", shape=(2, 3)),
    "Unflatten": _plain("Unflatten", 1, (2, 3)),
    "Fold": Layer((4, 4), lambda r: nn.Fold((3, 3), 2)),
    "Unfold": Layer((1, 3, 3), lambda r: nn.Unfold(2)),
    "ChannelShuffle": _plain("ChannelShuffle", 2, shape=(4, 2, 1)),
    "PixelShuffle": _plain("PixelShuffle", 2, shape=(4, 2, 1)),
    "PixelUnshuffle": _plain("PixelUnshuffle", 2, shape=(1, 2, 4)),
    "Upsample": Layer(
        (1, 2, 3), lambda r: nn.Upsample(scale_factor=2, mode=r.choice(["nearest", "bilinear", "bicubic"]))
    ),
    "UpsamplingBilinear2d": _plain("UpsamplingBilinear2d", 4, shape=(1, 2, 3)),
    "UpsamplingNearest2d": _plain("UpsamplingNearest2d", 4, shape=(1, 2, 3)),
    **{f"{name}{dims}d": _conv(name, dims) for name in ("Conv", "ConvTranspose", "LazyConv", "LazyConvTranspose")
       for dims in (1, 2, 3)},
    **{f"{name}{dims}d": _pad(name, dims) for name in ("CircularPad", "ConstantPad", "ReflectionPad", "ReplicationPad",
       "ZeroPad") for dims in (1, 2, 3)},
    **{f"{name}{dims}d": _pool(name, dims, 2) for name in ("AvgPool", "MaxPool", "AdaptiveAvgPool", "AdaptiveMaxPool")
       for dims in (1, 2, 3)},
    **{f"LPPool{dims}d": _pool("LPPool", dims, 2, 2) for dims in (1, 2, 3)},
    **{f"MaxUnpool{dims}d": _unpool(dims) for dims in (1, 2, 3)},
    **{f"FractionalMaxPool{dims}d": _fractional(dims) for dims in (2, 3)},
    **{
        f"{name}{dims}d": Layer(_SHAPES[dims], _norm(lambda r, name=name, dims=dims: getattr(nn, f"{name}{dims}d")(
            *([] if name.startswith("Lazy") else [_SHAPES[dims][0]]), affine=True)))
        for name in ("BatchNorm", "InstanceNorm", "LazyBatchNorm", "LazyInstanceNorm") for dims in (1, 2, 3)
    },
    "SyncBatchNorm": Layer((2, 3), _norm(lambda r: nn.SyncBatchNorm(2))),
    "GroupNorm": Layer((4, 3), lambda r: nn.GroupNorm(2, 4)),
    "LayerNorm": Layer((2, 3), lambda r: nn.LayerNorm(r.choice([3, (2, 3)]))),
    "RMSNorm": Layer((2, 3), lambda r: nn.RMSNorm(3)),
    "LocalResponseNorm": Layer((4, 3), lambda r: nn.LocalResponseNorm(2, alpha=0.5)),
    "CrossMapLRN2d": Layer((4, 2, 2), lambda r: nn.CrossMapLRN2d(2, alpha=0.5), _NOT_TWICE, narrow=False),
    "RNN": Layer((3, 2), _first(lambda r: nn.RNN(2, 3, batch_first=r.random() < 0.5, bidirectional=r.random() < 0.3))),
    "LSTM": Layer((3, 2), _first(lambda r: nn.LSTM(2, 3, batch_first=r.random() < 0.5, proj_size=r.choice([0, 2])))),
    "GRU": Layer((3, 2), _first(lambda r: nn.GRU(2, 3, batch_first=r.random() < 0.5, num_layers=r.choice([1, 2])))),
    "RNNCell": Layer((3, 2), lambda r: Cell(nn.RNNCell(2, 3))),
    "LSTMCell": Layer((3, 2), lambda r: Cell(nn.LSTMCell(2, 3))),
    "GRUCell": Layer((3, 2), lambda r: Cell(nn.GRUCell(2, 3))),
    "MultiheadAttention": Layer(
        (3, 4), lambda r: Applied(nn.MultiheadAttention(4, 2, batch_first=r.random() < 0.5), _attention)
    ),
    "TransformerEncoderLayer": Layer((3, 4), lambda r: nn.TransformerEncoderLayer(
        4, 2, 4, batch_first=True, norm_first=r.random() < 0.5, activation=r.choice(["relu", "gelu"]))),
    "TransformerEncoder": Layer(
        (3, 4), lambda r: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), 2)
    ),
    "TransformerDecoderLayer": Layer(
        (2, 3, 4), lambda r: Applied(nn.TransformerDecoderLayer(4, 2, 4, batch_first=True), _decoder)
    ),
    "TransformerDecoder": Layer((2, 3, 4), lambda r: Applied(
        nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 4, batch_first=True), 1), _decoder)),
    "Transformer": Layer((2, 2, 4), lambda r: Applied(nn.Transformer(
        4, 2, 1, 1, 4, batch_first=True, activation=r.choice(["relu", "gelu"])), _decoder)),
    "Sequential": Layer((6,), lambda r: nn.Sequential(nn.Linear(6, 3), nn.Softplus(), nn.Linear(3, 3))),
    "ModuleDict": Layer((6,), _held("dict")),
    "ModuleList": Layer((6,), _held("list")),
    "ParameterDict": Layer((6,), _mapped("dict")),
    "ParameterList": Layer((6,), _mapped("list")),
    "DataParallel": Layer((6,), lambda r: nn.DataParallel(nn.Linear(6, 3)), "its weights are those of its module"),
    "Embedding": Layer((), lambda r: nn.Embedding(6, 3, padding_idx=r.choice([None, 0]))),
    "EmbeddingBag": Layer((), lambda r: nn.EmbeddingBag(6, 4, mode=r.choice(["mean", "sum", "max"])), _NOT_TWICE),
}  # fmt: skip


# Functions ------------------------------------------------------------------------------------------------------------


class Function(nn.Module):
    """A torch function of the hidden units (n, 6) and of a weight (6,)."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.w = nn.Parameter(0.5 + 0.5 * torch.rand(6))
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        out = self.function(h, self.w)
        return out.reshape(len(h), -1)


def _square(h: Tensor) -> Tensor:
    return h.unflatten(1, (2, 3)).mT @ h.unflatten(1, (2, 3)) + torch.eye(3).to(h)  # (n, 3, 3), positive definite


def _image(h: Tensor) -> Tensor:
    return h.view(-1, 1, 2, 3)


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g


class _CubeOfNow(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor) -> Tensor:
        return h**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g


def _in_place(h: Tensor, w: Tensor) -> Tensor:
    out = h.clone()
    out[:, 0] = h[:, 1] * w[0]
    out[:, 2:] *= 2
    return out.add_(h.sin())


def _by_input(h: Tensor, w: Tensor) -> Tensor:
    with torch.enable_grad():
        inner = h if h.requires_grad else h.detach().requires_grad_()
        return torch.autograd.grad(torch.sin(inner * w).sum(), inner, create_graph=True)[0]


def _checkpointed(h: Tensor, w: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(lambda a: torch.sin(a * w), h, use_reentrant=False)


def _branching(h: Tensor, w: Tensor) -> Tensor:
    return torch.stack([torch.sin(row * w) if float(row.detach().sum()) > 0 else row**2 * w for row in h])


# What they do to (n, 6) is done to each example alone. A reason: the library may refuse it.
FUNCTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "norm": (lambda h, w: h / h.norm(dim=1, keepdim=True), ""),
    "norm p=3": (lambda h, w: h * torch.norm(h, p=3, dim=1, keepdim=True), ""),
    "linalg.norm": (lambda h, w: h * torch.linalg.norm(h - w, dim=1, keepdim=True), ""),
    "linalg.vector_norm": (lambda h, w: h * torch.linalg.vector_norm(h, 4, dim=1, keepdim=True), ""),
    "linalg.matrix_norm": (lambda h, w: h * torch.linalg.matrix_norm(_square(h))[:, None], ""),
    "normalize": (lambda h, w: F.normalize(h, dim=1), ""),
    "quantile": (lambda h, w: h - h.quantile(0.4, dim=1, keepdim=True), ""),
    "nanquantile": (lambda h, w: h - h.nanquantile(0.3, dim=1, keepdim=True), ""),
    "lerp with a tensor": (lambda h, w: torch.lerp(h, h.sin(), w), ""),
    "lerp_ with a tensor": (lambda h, w: h.clone().lerp_(h.sin(), w), ""),
    "lerp": (lambda h, w: torch.lerp(h, h * w, 0.3), ""),
    "median": (lambda h, w: h - h.median(dim=1, keepdim=True).values, ""),
    "kthvalue": (lambda h, w: h - h.kthvalue(2, dim=1, keepdim=True).values, ""),
    "mode": (lambda h, w: h * h.mode(dim=1, keepdim=True).values, ""),
    "prod": (lambda h, w: h * (h + w).prod(dim=1, keepdim=True), ""),
    "prod of tiny factors": (lambda h, w: h + 1e40 * (1e-8 * (h[:, :5] + w[:5])).prod(dim=1, keepdim=True), ""),
    "prod of all": (lambda h, w: h * w.prod(), ""),
    "cumprod": (lambda h, w: (h + w).cumprod(dim=1), ""),
    "cumsum": (lambda h, w: (h * w).cumsum(dim=1).sin(), ""),
    "logcumsumexp": (lambda h, w: (h * w).logcumsumexp(dim=1), ""),
    "cummax": (lambda h, w: (h * w).cummax(dim=1).values.sin(), ""),
    "cummin": (lambda h, w: (h * w).cummin(dim=1).values.sin(), ""),
    "logsumexp": (lambda h, w: h * (h * w).logsumexp(dim=1, keepdim=True), ""),
    "logaddexp": (lambda h, w: torch.logaddexp(h, h * w) + torch.logaddexp2(h, w), ""),
    "softmax": (lambda h, w: (h * w).softmax(dim=1), ""),
    "log_softmax": (lambda h, w: (h * w).log_softmax(dim=-1), ""),
    "sort": (lambda h, w: (h.sort(dim=1).values * w).sin(), ""),
    "argsort and gather": (lambda h, w: h.gather(1, h.argsort(dim=1)) * w, ""),
    "topk": (lambda h, w: h.topk(3, dim=1).values * w[:3], ""),
    "max": (lambda h, w: h * (h * w).max(dim=1, keepdim=True).values, ""),
    "amax": (lambda h, w: h * (h * w).amax(dim=1, keepdim=True), ""),
    "amin": (lambda h, w: h * (h * w).amin(dim=1, keepdim=True), ""),
    "aminmax": (lambda h, w: h * torch.aminmax(h * w, dim=1, keepdim=True).max, ""),
    "var": (lambda h, w: h * (h * w).var(dim=1, keepdim=True), ""),
    "std": (lambda h, w: h * (h * w).std(dim=1, keepdim=True), ""),
    "var_mean": (lambda h, w: h * sum(torch.var_mean(h * w, dim=1, keepdim=True)), ""),
    "renorm": (lambda h, w: torch.renorm(h * w, 2, 0, 0.7), ""),
    "einsum": (lambda h, w: torch.einsum("ni,nj,j->ni", h, h.sin(), w), ""),
    "bmm": (lambda h, w: torch.bmm(_square(h), _square(h * w)), ""),
    "baddbmm": (lambda h, w: torch.baddbmm(_square(h), _square(h * w), _square(h), alpha=0.5), ""),
    "addmm": (lambda h, w: torch.addmm(h, h.sin(), torch.outer(w, w)), ""),
    "addcmul": (lambda h, w: torch.addcmul(h, h.sin(), w, value=0.7), ""),
    "addcdiv": (lambda h, w: torch.addcdiv(h, h.sin(), w + h**2, value=0.7), ""),
    "kron": (lambda h, w: h @ torch.kron(w[:2].outer(w[:2]), w[2:5].outer(w[3:6])), ""),
    "tensordot": (lambda h, w: torch.tensordot(h.sin(), torch.outer(w, w), dims=([1], [0])), ""),
    "multi_dot": (lambda h, w: torch.linalg.multi_dot([h, torch.outer(w, w), w.diag()]), ""),
    "chain of cross": (lambda h, w: torch.linalg.cross(h[:, :3] * w[:3], h[:, 3:], dim=1), ""),
    "matrix_exp": (lambda h, w: torch.matrix_exp(0.3 * _square(h * w)), ""),
    "matrix_power": (lambda h, w: torch.linalg.matrix_power(_square(h * w), 3), ""),
    "inv": (lambda h, w: torch.linalg.inv(_square(h * w)), ""),
    "inverse power": (lambda h, w: torch.linalg.matrix_power(_square(h * w), -1), ""),
    "solve": (lambda h, w: torch.linalg.solve(_square(h * w), h[:, :3, None]), ""),
    "solve_triangular": (lambda h, w: torch.linalg.solve_triangular(_square(h * w), h[:, :3, None], upper=True), ""),
    "cholesky": (lambda h, w: torch.linalg.cholesky(_square(h * w)), ""),
    "cholesky_solve": (lambda h, w: torch.cholesky_solve(h[:, :3, None], torch.linalg.cholesky(_square(h * w))), ""),
    "det": (lambda h, w: h * torch.linalg.det(_square(h * w))[:, None] * 0.1, ""),
    "slogdet": (lambda h, w: h * torch.linalg.slogdet(_square(h * w)).logabsdet[:, None], ""),
    "logdet": (lambda h, w: h * _square(h * w).logdet()[:, None], ""),
    "eigvalsh": (lambda h, w: torch.linalg.eigvalsh(_square(h) * torch.outer(w, w)[:3, :3]), ""),
    "eigh": (lambda h, w: torch.linalg.eigh(_square(h) + torch.arange(3).to(h).diag()).eigenvectors.square(), ""),
    "svdvals": (lambda h, w: torch.linalg.svdvals(_square(h) + torch.arange(3).to(h).diag()), ""),
    "qr": (lambda h, w: torch.linalg.qr(_square(h * w)).R, ""),
    "pinv": (lambda h, w: torch.linalg.pinv((h * w).view(-1, 2, 3)).flatten(1) * 0.1, ""),
    "lstsq": (lambda h, w: torch.linalg.lstsq(_square(h * w), h[:, :3, None]).solution, ""),
    "lu": (lambda h, w: torch.linalg.lu(_square(h * w)).U, ""),
    "householder_product": (
        lambda h, w: torch.linalg.householder_product(_square(h).tril(-1) * 0.3, w[:3].expand(len(h), 3)), ""
    ),
    "cdist": (lambda h, w: torch.cdist(h[:, None], w.expand(1, 6) * 2), _NOT_TWICE),
    "pdist": (lambda h, w: torch.stack([F.pdist(row.view(3, 2) * w[:2]) for row in h]), _NOT_TWICE),
    "cosine_similarity": (lambda h, w: h * F.cosine_similarity(h, w.expand_as(h), dim=1)[:, None], ""),
    "pairwise_distance": (lambda h, w: h * F.pairwise_distance(h, w.expand_as(h))[:, None], ""),
    "rfft": (lambda h, w: torch.view_as_real(torch.fft.rfft(h * w)).tanh(), ""),
    "fft and back": (lambda h, w: torch.fft.ifft(torch.fft.fft(h) * torch.fft.fft(w)).real, ""),
    "abs of a fft": (lambda h, w: torch.fft.fft(h * w + torch.arange(6).to(h)).abs(), ""),
    "irfft": (lambda h, w: torch.fft.irfft(torch.fft.rfft(h * w) * 1j, n=6), ""),
    "stft": (
        lambda h, w: torch.stft((h * w), 4, 2, window=torch.ones(4).to(h), return_complex=True).abs().square(), ""
    ),
    "polar": (lambda h, w: torch.view_as_real(torch.polar(h**2 + w, h) * 1j).sin(), ""),
    "complex": (lambda h, w: torch.complex(h, h * w).exp().imag, ""),
    "angle": (lambda h, w: torch.complex(h + 2, h * w).angle(), ""),
    "conv1d": (lambda h, w: F.conv1d(h[:, None], w.view(2, 1, 3), padding=1).sin(), ""),
    "conv_transpose1d": (lambda h, w: F.conv_transpose1d(h[:, None], w.view(1, 2, 3)).sin(), ""),
    "unfold": (lambda h, w: (h * w).unfold(1, 3, 2).sin(), ""),
    "interpolate": (lambda h, w: F.interpolate(_image(h * w), size=(3, 4), mode="bicubic").sin(), ""),
    "interpolate linear": (lambda h, w: F.interpolate((h * w)[:, None], scale_factor=1.5, mode="linear").sin(), ""),
    "grid_sample": (lambda h, w: F.grid_sample(_image(h), (h * w).view(-1, 1, 3, 2), align_corners=True), _NOT_TWICE),
    "affine_grid": (
        lambda h, w: F.affine_grid((h * w).view(-1, 2, 3), (len(h), 1, 2, 2), align_corners=True).sin(), ""
    ),
    "index_add": (lambda h, w: h.index_add(1, torch.tensor([0, 2, 0]), (h[:, 3:] * w[:3]).sin()), ""),
    "index_select": (lambda h, w: (h * w).index_select(1, torch.tensor([0, 2, 0])).sin(), ""),
    "index_put": (
        lambda h, w: h.index_put(
            (torch.arange(len(h))[:, None], torch.tensor([[0, 2, 5]])), h[:, :3].sin() * w[:3]), ""
    ),
    "index_copy": (lambda h, w: h.index_copy(1, torch.tensor([0, 2]), (h[:, 3:5] * w[:2]).sin()), ""),
    "index_fill": (lambda h, w: (h * w).index_fill(1, torch.tensor([1]), 0.5).sin(), ""),
    "index_reduce": (lambda h, w: h.index_reduce(1, torch.tensor([0, 2, 0]), h[:, 3:] * w[:3], "mean"), ""),
    "scatter": (lambda h, w: h.scatter(1, torch.tensor([[0, 2]]).expand(len(h), 2), (h * w)[:, :2].sin()), ""),
    "scatter_add": (
        lambda h, w: h.scatter_add(1, torch.tensor([[0, 2, 0]]).expand(len(h), 3), (h * w)[:, :3].sin()), ""
    ),
    "scatter_reduce mean": (
        lambda h, w: h.scatter_reduce(1, torch.tensor([[0, 2, 0]]).expand(len(h), 3), (h * w)[:, :3].sin(), "mean"), ""
    ),
    "scatter_reduce prod": (
        lambda h, w: h.scatter_reduce(1, torch.tensor([[0, 2, 0]]).expand(len(h), 3), (h * w)[:, :3].sin(), "prod"), ""
    ),
    "scatter_reduce amax": (
        lambda h, w: h.scatter_reduce(1, torch.tensor([[0, 2, 0]]).expand(len(h), 3), (h * w)[:, :3].sin(), "amax"), ""
    ),
    "masked_scatter": (
        lambda h, w: h.masked_scatter(torch.tensor([True, False] * 3), (h * w).sin()), "it mixes examples"
    ),
    "segment_reduce": (
        lambda h, w: torch.stack([torch.segment_reduce((r * w).sin(), "sum", lengths=torch.tensor([2, 4])) for r in h]),
        _NOT_TWICE,
    ),
    "take_along_dim": (lambda h, w: torch.take_along_dim(h * w, h.argsort(dim=1), dim=1).sin(), ""),
    "where": (lambda h, w: torch.where(h > 0.1, (h * w).sin(), h**2 * w), ""),
    "masked_fill": (lambda h, w: (h * w).masked_fill(h > 0.3, -1.0).exp(), ""),
    "masked_select": (
        lambda h, w: torch.stack([r.masked_select(torch.tensor([True, False] * 3)) for r in h * w]).sin(), ""
    ),
    "nan_to_num": (lambda h, w: torch.nan_to_num(h * w).sin(), ""),
    "clamp": (lambda h, w: (h * w).clamp(-0.4, 0.3).sin(), ""),
    "clamp by tensors": (lambda h, w: torch.clamp(h, min=-w, max=0.5 * w).sin(), ""),
    "erf": (lambda h, w: torch.erf(h * w) + torch.erfc(h), ""),
    "erfinv": (lambda h, w: torch.erfinv(0.8 * h) * w, ""),
    "lgamma": (lambda h, w: torch.lgamma(h + 2 + w), ""),
    "digamma": (lambda h, w: torch.digamma(h + 2 + w), ""),
    "polygamma": (lambda h, w: torch.polygamma(2, h + 2 + w), ""),
    "mvlgamma": (lambda h, w: torch.mvlgamma(h + 3 + w, 2), ""),
    "special.i0": (lambda h, w: torch.special.i0(h * w) + torch.special.i1(h), ""),
    "special.i0e": (lambda h, w: torch.special.i0e(h * w) + torch.special.i1e(h), ""),
    "special.ndtri": (lambda h, w: torch.special.ndtri(0.5 + 0.4 * h * w) + torch.special.log_ndtr(h), ""),
    "special.entr": (lambda h, w: torch.special.entr(h**2 + w), ""),
    "special.erfcx": (lambda h, w: torch.special.erfcx(h * w), ""),
    "special.zeta": (lambda h, w: torch.special.zeta(torch.full_like(h, 3.0), h + 2 + w), ""),
    "special.xlog1py": (lambda h, w: torch.special.xlog1py(h + 2, h**2 * w), ""),
    "sinc": (lambda h, w: torch.sinc(h * w), ""),
    "logit": (lambda h, w: torch.logit(0.5 + 0.3 * h * w), ""),
    "expm1 and log1p": (lambda h, w: torch.expm1(h * w) + torch.log1p(h**2 * w), ""),
    "atan2": (lambda h, w: torch.atan2(h, 1 + w), ""),
    "hypot": (lambda h, w: torch.hypot(h, w), ""),
    "pow of tensors": (lambda h, w: torch.pow(h + 2, w) + 2 ** (h * w), ""),
    "xlogy": (lambda h, w: torch.xlogy(h + 2, h**2 + w), ""),
    "sqrt and rsqrt": (lambda h, w: torch.sqrt(h**2 + w) + torch.rsqrt(h**2 + w), ""),
    "cbrt": (lambda h, w: torch.sign(h + 3) * (h + 3).abs() ** (1 / 3) * w, ""),
    "trigonometry": (
        lambda h, w: torch.tan(0.5 * h) + torch.asin(0.5 * h) + torch.acosh(h + 3) * w + torch.atanh(h / 2), ""
    ),
    "frac, fmod, remainder": (lambda h, w: torch.frac(3 * h) + torch.fmod(h * w, 0.3) + torch.remainder(h, 0.7), ""),
    "fmod by tensors": (lambda h, w: torch.fmod(3 * h, w).sin(), ""),
    "floor division": (lambda h, w: h - torch.div(h, 0.5 * w, rounding_mode="floor").detach() * 0.5 * w, ""),
    "copysign": (lambda h, w: torch.copysign(w * h.cosh(), h), ""),
    "maximum and minimum": (lambda h, w: torch.maximum(h, 0.3 * w) * torch.minimum(h.sin(), w), ""),
    "fmax": (lambda h, w: torch.fmax(h, 0.3 * w).sin(), ""),
    "abs and sign": (lambda h, w: h.abs() ** 1.5 * h.sign() * w, ""),
    "dist": (lambda h, w: torch.stack([torch.dist(row, 2 * w) for row in h])[:, None] * h, ""),
    "trapezoid": (lambda h, w: torch.trapezoid(h.sin() * w, dim=1)[:, None] * h, ""),
    "cumulative_trapezoid": (lambda h, w: torch.cumulative_trapezoid(h.sin() * w, dim=1), ""),
    "diff": (lambda h, w: torch.diff(h.sin() * w, dim=1), ""),
    "gradient": (lambda h, w: torch.gradient(h.sin() * w, dim=1)[0], ""),
    "roll, flip, rot90": (lambda h, w: torch.rot90((h.roll(1, 1) * w).view(-1, 2, 3), 1, (1, 2)).flip(1).sin(), ""),
    "repeat_interleave": (lambda h, w: (h * w).repeat_interleave(2, dim=1).sin(), ""),
    "as_strided": (lambda h, w: (h * w).contiguous().as_strided((len(h), 3, 3), (6, 1, 1)).sin(), ""),
    "diag_embed": (lambda h, w: torch.diag_embed(h.sin() * w) @ _square(h).repeat(1, 2, 2), ""),
    "tril and triu": (lambda h, w: _square(h * w).tril() @ _square(h).triu(), ""),
    "block_diag": (lambda h, w: h.sin() @ torch.block_diag(torch.outer(w[:3], w[3:]), torch.outer(w[3:], w[:3])), ""),
    "scaled_dot_product_attention": (
        lambda h, w: F.scaled_dot_product_attention(
            *[(h * c).view(-1, 3, 2) for c in (w, w.sin(), 1)], is_causal=True), ""
    ),
    "F.layer_norm": (lambda h, w: F.layer_norm(h, (6,), w, w.sin()), ""),
    "F.rms_norm": (lambda h, w: F.rms_norm(h, (6,), w), ""),
    "F.group_norm": (lambda h, w: F.group_norm(h.view(-1, 2, 3), 1, w[:2], w[2:4]), ""),
    "F.instance_norm": (lambda h, w: F.instance_norm((h * w).view(-1, 2, 3)), ""),
    "F.local_response_norm": (lambda h, w: F.local_response_norm((h * w)[:, :, None], 3, alpha=1.0), ""),
    "F.bilinear": (lambda h, w: F.bilinear(h, h.sin(), torch.outer(w, w)[None]), ""),
    "F.gelu tanh": (lambda h, w: F.gelu(h * w, approximate="tanh"), ""),
    "F.gumbel_softmax": (lambda h, w: F.gumbel_softmax(h * w, dim=1), "it draws random numbers"),
    "F.threshold": (lambda h, w: F.threshold(h * w, 0.1, 0.0), ""),
    "F.dropout": (lambda h, w: F.dropout(h * w, 0.5), "it draws random numbers"),
    "F.embedding_bag per_sample_weights": (
        lambda h, w: F.embedding_bag(
            torch.arange(3).repeat(len(h), 1), w.view(3, 2), per_sample_weights=h[:, :3].contiguous(), mode="sum"
        ).repeat(1, 2) * h[:, :4],
        _NOT_TWICE,
    ),
    "F.multi_head_attention_forward": (
        lambda h, w: F.multi_head_attention_forward(
            *[h.view(-1, 3, 2).transpose(0, 1)] * 3, 2, 1, torch.outer(w, w)[:, :2], None, None, None, False, 0.0,
            w[:4].view(2, 2), None, training=False, need_weights=False,
        )[0].transpose(0, 1),
        "",
    ),
    "one_hot": (lambda h, w: F.one_hot((h[:, 0] > 0).long(), 6).to(h) * w * h, ""),
    "in place": (_in_place, ""),
    "autograd.Function": (lambda h, w: _Cube.apply(h * w), ""),
    "autograd.Function with setup_context": (lambda h, w: _CubeOfNow.apply(h * w), ""),
    "gradient by the input": (_by_input, "a graph inside forward"),
    "vmap of grad": (lambda h, w: torch.vmap(torch.func.grad(lambda a: torch.sin(a * w).sum()))(h), ""),
    "jvp": (lambda h, w: torch.func.jvp(lambda a: torch.sin(a * w), (h,), (torch.ones_like(h),))[1], ""),
    "checkpoint": (_checkpointed, ""),
    "branches on its data": (_branching, ""),
    "detach": (lambda h, w: h * (h * w).detach(), "torch's gradient is not the derivative"),
    "straight through": (lambda h, w: h + (h.round() - h).detach() * w, "torch's gradient is not the derivative"),
    "a weight's data": (lambda h, w: (h * w).sin() * w.data, "torch's gradient is not the derivative"),
    "no_grad": (lambda h, w: h * torch.no_grad()(lambda: (h * w).exp())(), "torch's gradient is not the derivative"),
    "a hook on the gradient": (lambda h, w: _hooked(h * w), "torch's gradient is not the derivative"),
}  # fmt: skip


def _hooked(h: Tensor) -> Tensor:
    h = h.sin()
    if h.requires_grad:
        h.register_hook(lambda g: 2 * g)  # gradient reversal, clipping ...
    return h
