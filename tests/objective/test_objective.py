"""Objectives: the mean loss over all examples as a pure function of theta, for any model, loss and data.

Oracles, strongest first: the Hessians of linear, logistic and softmax regression on paper; `testing.dense_hessian`
(float64, reverse over reverse); finite differences with their predicted error; torch's own loss on the whole batch at
once. What is the user's (model, gradients, flags, random states) is compared bit for bit before and after.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
import warnings
from collections import UserDict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowhanging.errors import NotSmoothWarning
from lowhanging.models import SigmoidCNN
from lowhanging.objective.hvp import ENGINES
from lowhanging.objective.objective import AnchoredObjective, FunctionObjective, Objective
from lowhanging.objective.protocol import common_center
from lowhanging.testing import dense_hessian, finite_difference_hvp

pytestmark = pytest.mark.usefixtures("recorded")

Pair = namedtuple("Pair", ["inputs", "targets"])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, CLASSES = draw(8, 3), torch.tensor([0, 3, 1, 2, 1, 0, 3, 1])
REAL = draw(8, 2, seed=1)


def seeded(make: Any) -> Any:
    """What `make()` builds, always the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return make()


def mlp(*middle: nn.Module, inputs: int = 3, classes: int = 4) -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(inputs, 5), *middle, nn.Tanh(), nn.Linear(5, classes)).double())


def kept(model: nn.Module, data: Any, **settings: Any) -> Objective:
    """Without a recording, which costs a third of a second."""
    return Objective(model, data, engine="kept graph", **settings)


def user_state(model: nn.Module) -> dict[str, Any]:
    """Everything of the user's that could be touched."""
    cuda = torch.backends.cuda
    state: dict[str, Any] = {f"{name} train": module.training for name, module in model.named_modules()}
    state |= {f"{name} hooks": len(module._forward_hooks) for name, module in model.named_modules()}
    for name, weight in model.named_parameters():
        state[name] = weight.detach().clone().contiguous().view(torch.uint8)
        state[f"{name} grad"] = None if weight.grad is None else weight.grad.clone()
        state[f"{name} trainable"] = weight.requires_grad
    state |= {f"{name} buffer": buffer.clone() for name, buffer in model.named_buffers()}
    state["random"] = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002
    state["flags"] = (
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    )
    return state


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor | np.ndarray):
        return torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Nothing of the user's changes inside, also not if an error leaves."""
    before = user_state(model)
    try:
        yield
    finally:
        after = user_state(model)
        assert [name for name in before if not equal(before[name], after[name])] == []


# On paper -------------------------------------------------------------------------------------------------------------


def regression() -> tuple[Objective, Tensor]:
    """Mean squared error of a linear map to 2 outputs: H = (2 / (n d)) I_d x X'X."""
    objective = Objective(nn.Linear(3, 2, bias=False).double(), (X, REAL), loss_fn=F.mse_loss, micro_batch=5)
    return objective, torch.kron(torch.eye(2, dtype=torch.float64), X.T @ X) * 2 / 16


def logistic() -> tuple[Objective, Tensor]:
    """H = X'diag(s (1 - s)) X / n, X with a column of ones."""
    model, targets = nn.Linear(3, 1).double(), (CLASSES > 1)[:, None].double()
    objective = Objective(model, (X, targets), loss_fn=F.binary_cross_entropy_with_logits, micro_batch=5)
    ones = torch.cat([X, torch.ones(8, 1, dtype=torch.float64)], 1)
    s = (ones @ objective.theta0).sigmoid()
    return objective, ones.T @ ((s * (1 - s))[:, None] * ones) / 8


def softmax() -> tuple[Objective, Tensor]:
    """H = mean over examples of (diag(p) - pp') x xx', weights in row-major order (class, feature)."""
    objective = Objective(nn.Linear(3, 4, bias=False).double(), (X, CLASSES), micro_batch=5)
    p = (X @ objective.theta0.view(4, 3).T).softmax(1)
    hessians = [torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(x, x)) for x, q in zip(X, p, strict=True)]
    return objective, torch.stack(hessians).mean(0)


@pytest.mark.parametrize("case", [regression, logistic, softmax], ids=lambda case: case.__name__)
def test_hessians_on_paper(case: Any) -> None:
    """8 examples as 5 + 3: the mean of two batch means would be wrong by a fifth."""
    objective, expected = case()
    assert [len(batch[0]) for batch in objective.batches] == [5, 3]
    columns = torch.stack([objective.hvp(objective.theta0, e) for e in torch.eye(len(expected)).double()])
    torch.testing.assert_close(columns, expected, rtol=1e-11, atol=1e-13)
    assert objective.engine == "split graph"
    torch.testing.assert_close(dense_hessian(objective), expected, rtol=1e-11, atol=1e-13)


def test_all_engines_agree_with_the_dense_hessian_and_finite_differences() -> None:
    model, v = mlp(), draw(44, seed=3)
    objectives = [Objective(model, (X, CLASSES), engine=engine, micro_batch=5) for engine in ENGINES]
    theta = objectives[0].theta0 + 0.1 * draw(44, seed=4)
    expected = dense_hessian(objectives[0], theta=theta) @ v
    differences = finite_difference_hvp(objectives[0], theta, v)
    assert differences.error < 1e-8 * float(expected.norm())
    assert float((differences.product - expected).norm()) <= differences.error
    for objective in objectives:
        torch.testing.assert_close(objective.hvp(theta, v), expected, rtol=1e-10, atol=1e-12)
    assert [objective.engine for objective in objectives] == ["split graph", *ENGINES[1:]]


def test_float32_to_its_stated_tolerance() -> None:
    model, v = mlp().float(), draw(44, seed=3)
    expected = dense_hessian(model, (X.float(), CLASSES)) @ v
    for engine in ("auto", "kept graph"):
        objective = Objective(model, (X.float(), CLASSES), micro_batch=5, engine=engine)
        for _ in range(2):
            result = objective.hvp(objective.theta0, v)
            assert result.dtype == torch.float32
            assert float((result - expected).norm()) < 1e-5 * float(expected.norm())


def test_value_gradient_and_accuracy_are_torchs() -> None:
    model = mlp()
    objective = kept(model, (X, CLASSES), micro_batch=5)
    loss = F.cross_entropy(model(X), CLASSES)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
    value, gradient = objective.value_and_gradient(objective.theta0)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(objective.gradient(objective.theta0), gradient)
    total, accuracy = objective.evaluate(objective.theta0)
    assert torch.equal(total, objective(objective.theta0))
    assert accuracy == float((model(X).argmax(1) == CLASSES).double().mean())
    assert kept(model, (X, draw(8, 4)), loss_fn=F.mse_loss).evaluate(objective.theta0)[1] is None


def test_evaluate_is_bit_equal_in_float32() -> None:
    model = SigmoidCNN(2, seed=0, image_size=8)
    images, labels = torch.rand(37, 1, 8, 8), torch.arange(37) % 10
    objective = kept(model, (images, labels), micro_batch=7)
    assert torch.equal(objective.evaluate(objective.theta0)[0], objective(objective.theta0))
    assert objective(objective.theta0).dtype == torch.float64


def test_permuting_and_recutting_change_nothing() -> None:
    model, v = mlp(), draw(44, seed=3)
    expected = kept(model, (X, CLASSES))
    theta = expected.theta0
    order = torch.tensor([5, 1, 7, 3, 0, 2, 6, 4])
    others = [kept(model, (X, CLASSES), micro_batch=size) for size in (1, 3, 5)]
    others += [kept(model, (X[order], CLASSES[order]), micro_batch=3)]
    others += [kept(model, DataLoader(TensorDataset(X, CLASSES), batch_size=5, shuffle=True))]
    others += [kept(model, DataLoader(TensorDataset(X, CLASSES), batch_size=3), cache=False)]
    for other in others:
        assert other.num_examples == 8
        torch.testing.assert_close(other(theta), expected(theta), rtol=1e-14, atol=0)
        torch.testing.assert_close(other.gradient(theta), expected.gradient(theta), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(other.hvp(theta, v), expected.hvp(theta, v), rtol=1e-12, atol=1e-15)


# Points ---------------------------------------------------------------------------------------------------------------


def test_at_is_the_same_loss_around_another_point() -> None:
    objective = kept(mlp(), (X, CLASSES))
    theta = objective.theta0 + 1
    other = objective.at(theta)
    expected = theta.clone()
    theta.zero_()  # the caller's vector is the caller's
    assert torch.equal(other.theta0, expected)
    assert not torch.equal(objective.theta0, expected)
    assert torch.equal(other(expected), objective(expected))
    assert torch.equal(other.at(objective.theta0).theta0, objective.theta0)


def test_model_at_is_a_copy_with_those_weights() -> None:
    model = mlp(nn.Dropout(0.5), nn.BatchNorm1d(5).double()).train()
    model(X).sum().backward()
    objective = kept(model, (X, CLASSES))
    theta = objective.theta0 + draw(objective.num_params, seed=5)
    moved = objective.model_at(theta, buffers="fixed")
    assert torch.equal(objective.space.flatten(moved), theta)
    assert torch.equal(objective.space.flatten(model), objective.theta0)
    assert not moved.training  # as it is evaluated here
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(F.cross_entropy(moved(X), CLASSES).detach(), objective(theta), rtol=1e-14, atol=0)
    assert all(weight.requires_grad and weight.grad is None for weight in moved.parameters())
    with torch.no_grad():
        moved[0].weight.zero_()
    assert torch.equal(objective.space.flatten(objective.model_at(theta, buffers="fixed")), theta)


def test_what_the_user_changes_later_changes_nothing() -> None:
    model, inputs, targets = mlp(nn.BatchNorm1d(5)), X.clone(), CLASSES.clone()
    weights = nn.CrossEntropyLoss(label_smoothing=0.1)
    objectives = [kept(model, (inputs, targets)), kept(model, [(inputs, targets)], loss_fn=weights)]
    theta, v = objectives[0].theta0.clone(), draw(objectives[0].num_params)
    before = [(objective(theta), objective.hvp(theta, v)) for objective in objectives]
    inputs.zero_()
    targets.zero_()
    weights.label_smoothing = 0.9
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
        model[1].running_mean.add_(3)
    model.requires_grad_(False)
    for objective, (value, product) in zip(objectives, before, strict=True):
        assert torch.equal(objective(theta), value)
        assert torch.equal(objective.hvp(theta, v), product)
        assert torch.equal(objective.theta0, theta)


# What is the user's ---------------------------------------------------------------------------------------------------


def prepared(*middle: nn.Module) -> nn.Sequential:
    """A model in the middle of its training: mixed flags, gradients, statistics."""
    model = mlp(nn.BatchNorm1d(5).double(), nn.Dropout(0.5), *middle)
    model(X).sum().backward()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    return model


def test_a_model_is_never_written_to() -> None:
    model = prepared()
    with untouched(model):
        objective = Objective(model, DataLoader(TensorDataset(X, CLASSES), batch_size=3, shuffle=True), micro_batch=8)
        theta = objective.theta0 + 1
        objective(theta)
        objective.gradient(theta)
        for _ in range(2):
            objective.hvp(theta, theta)
        objective.evaluate(theta)
        objective.model_at(theta, buffers="fixed")
        repr(objective)
    assert objective.engine == "split graph"


class Fragile(nn.Module):
    """Fails on its n-th call."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = [calls]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] -= 1  # not of the model: the private copy has its own
        if self.calls[0] < 0:
            raise ZeroDivisionError("on purpose")
        return x


def test_a_model_is_as_before_also_after_an_error() -> None:
    model = prepared(Fragile(1))  # one call is that of `prepared`
    with untouched(model), pytest.raises(ZeroDivisionError):
        Objective(model, (X, CLASSES))
    whole = prepared(Fragile(11))
    with untouched(whole):
        objective = kept(whole, (X, CLASSES))
        for call in (objective, objective.gradient, lambda theta: objective.hvp(theta, theta)) * 8:
            with contextlib.suppress(ZeroDivisionError):
                call(objective.theta0)
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            objective(objective.theta0)


def test_stored_activations_are_no_obstacle() -> None:
    """A forward pass that leaves tensors of its graph on the module; copy.deepcopy refuses those."""

    class Stores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = mlp(), {}

        def forward(self, x: Tensor) -> Tensor:
            self.seen["hidden"] = self.last = self.net[0](x)
            return self.net[1:](self.last)

    model = Stores()
    model(X)
    objective = kept(model, (X, CLASSES))
    assert model.last.grad_fn is not None
    objective.hvp(objective.theta0, objective.theta0)
    assert torch.equal(objective.model_at(objective.theta0)(X), model(X))


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = mlp()
    model.log = open(__file__)  # noqa: SIM115
    with pytest.raises(ValueError, match=r"model \(Sequential\) can't be copied \(TypeError: cannot pickle") as error:
        Objective(model, (X, CLASSES))
    model.log.close()
    assert str(error.value).endswith("Take off it what can't: open files, locks, stored activations.")


# Where it is called ---------------------------------------------------------------------------------------------------


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def everything(objective: Objective) -> list[Tensor]:
    """What the methods return away from theta0."""
    theta = objective.theta0 * 1.5
    products = [objective.hvp(theta, theta.cos()) for _ in range(2)]
    weights = objective.space.flatten(objective.model_at(theta, buffers="fixed"))
    return [*objective.value_and_gradient(theta), objective(theta), *products, weights, objective.evaluate(theta)[0]]


@pytest.fixture
def plain(recorded: None) -> tuple[nn.Module, Any, Objective, list[Tensor]]:
    """A float32 model, its data, an objective made outside of all modes, and what it gives there."""
    model = mlp(nn.BatchNorm1d(5).double()).float()
    data = [(X[:5].float(), CLASSES[:5]), (X[5:].float(), CLASSES[5:])]
    objective = Objective(model, data)
    return model, data, objective, everything(objective)


@pytest.mark.parametrize("name", MODES)
def test_callers_modes_change_no_bit(name: str, plain: tuple[nn.Module, Any, Objective, list[Tensor]]) -> None:
    model, data, outside, expected = plain
    with MODES[name]():
        inside = Objective(model, data)
        for objective in (outside, inside):
            assert all(map(torch.equal, everything(objective), expected))
            assert objective.engine == "split graph"
        frozen = copy.deepcopy(model)
        frozen[0].requires_grad_(False)  # a constant of the loss, made here
        objective = kept(frozen, [(2 * data[0][0], data[0][1])])
        made_here = objective.theta0 * 1.0
        assert objective.hvp(made_here, made_here).isfinite().all()
        v = made_here[:5] * 1.0
        cubic = FunctionObjective(lambda theta: (theta**3).sum(), v)
        torch.testing.assert_close(cubic.hvp(v, v), 6 * v * v)
        torch.testing.assert_close(cubic.gradient(v * 1.0), 3 * v * v)
        anchored = AnchoredObjective(cubic, v * 0.0, 2.0)
        torch.testing.assert_close(anchored.hvp(v * 1.0, v), 6 * v * v + 2 * v)
    for call in (objective, objective.gradient, lambda theta: objective.hvp(theta, theta)):
        assert not call(made_here).requires_grad  # what was made in there is good out here


def test_vectors_may_come_from_anywhere() -> None:
    objective = kept(mlp().float(), (X.float(), CLASSES))
    theta = objective.theta0.clone().requires_grad_()
    expected = objective.hvp(objective.theta0, objective.theta0)
    for other in (theta, theta.double(), theta.detach().numpy(), theta.detach().double().numpy()):
        result = objective.hvp(other, other)
        assert not result.requires_grad
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-7)
        assert AnchoredObjective(objective, other, 0.5).hvp(other, other).dtype == torch.float32
    assert torch.equal(theta, objective.theta0)


# Models ---------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two layers with one weight, a parameter that is never used, a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 4)
        self.b.weight = self.a.weight
        self.unused = nn.Parameter(torch.ones(2))
        self.c.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).tanh()).tanh())


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.out = kind(3, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x[:, None] * torch.arange(1, 4)[:, None])[0][:, -1])


class Attention(nn.Module):
    def __init__(self, *, layer: bool) -> None:
        super().__init__()
        self.embed, self.out, self.layer = nn.Linear(3, 4), nn.Linear(4, 4), layer
        self.block = (
            nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, activation="gelu", batch_first=True)
            if layer
            else nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x[:, None] * torch.arange(1, 4)[:, None])
        mixed = self.block(tokens) if self.layer else self.block(tokens, tokens, tokens, need_weights=False)[0]
        return self.out(mixed.mean(1))


class Rotates(nn.Module):
    """A complex buffer, and one that is wider than the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(3, 4)
        self.register_buffer("phase", torch.polar(torch.ones(3), torch.tensor([0.1, 1.0, 2.0])))
        self.register_buffer("scale", torch.tensor([math.pi, 1.0, 2.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(self.a(x).view(-1, 3, 2)).to(self.phase.dtype) * self.phase
        return self.b((turned.real * self.scale).to(x.dtype).tanh())


class Padded(nn.Module):
    """Tokens through an embedding whose first row is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(4, 3, padding_idx=0), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed((x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()).tanh())


MODELS = {
    "tied": Tied,
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv1d(1, 2, 2, padding=1),
        nn.Tanh(),
        nn.Conv1d(2, 2, 2),
        nn.SiLU(),
        nn.AvgPool1d(2),
        nn.Flatten(),
        nn.Linear(2, 4),
    ),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "multihead attention": lambda: Attention(layer=False),
    "encoder layer": lambda: Attention(layer=True),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 1), nn.InstanceNorm1d(2), nn.SiLU(), nn.Flatten(), nn.Linear(6, 4)
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 5)), nn.GELU(), nn.Linear(5, 4)
    ),
    "padding": Padded,
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    """Products against the dense Hessian, symmetric to rounding, and the user's model and flags as before."""
    model = seeded(MODELS[name]).double().train()
    with untouched(model):
        objective = Objective(model, (X, CLASSES))
        theta = objective.theta0 + 0.3 * draw(objective.num_params)
        expected = dense_hessian(objective, theta=theta)
        v = draw(objective.num_params, seed=1)
        for _ in range(2):
            torch.testing.assert_close(objective.hvp(theta, v), expected @ v, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(expected, expected.T, rtol=0, atol=1e-12 * float(expected.abs().max()))
        differences = finite_difference_hvp(objective, theta, v)
        assert float((differences.product - expected @ v).norm()) <= differences.error < 1e-5 * float(v.norm())
        evaluated = copy.deepcopy(model).eval()
        own = F.cross_entropy(evaluated(X), CLASSES).detach()
        torch.testing.assert_close(objective(objective.theta0), own, rtol=1e-12, atol=0)
    assert objective.engine == "split graph"


def test_flags_are_put_back_after_an_error_in_a_recurrent_model() -> None:
    model = seeded(lambda: Recurrent(nn.LSTM)).double()
    objective = kept(model, (X, CLASSES), batch_loss=fails_at_a_high_norm)
    theta = objective.theta0
    with untouched(model):
        for call in (objective, objective.gradient, lambda point: objective.hvp(point, theta)):
            with pytest.raises(OverflowError):
                call(100 + theta)


def fails_at_a_high_norm(model: Any, batch: Any) -> tuple[Tensor, int]:
    outputs = model(batch[0])
    if float(outputs.detach().norm()) > 50:
        raise OverflowError
    return F.cross_entropy(outputs, batch[1], reduction="sum"), len(batch[1])


def test_unused_shared_and_frozen_parameters() -> None:
    model = seeded(Tied).double()
    objective = kept(model, (X, CLASSES))
    assert objective.space.names == ("unused", "a.weight", "a.bias", "b.bias", "c.weight")
    assert objective.num_params == 2 + 9 + 3 + 3 + 12
    hessian = dense_hessian(objective)
    assert not hessian[:2].any()
    assert not hessian[:, :2].any()
    assert hessian[2:, 2:].any(1).all()
    moved = objective.model_at(objective.theta0 + 1)
    assert moved.a.weight is moved.b.weight
    assert torch.equal(moved.c.bias, model.c.bias)


def test_buffers_keep_their_kind() -> None:
    """float32 weights beside a complex and a float64 buffer: the loss is the model's own, bit for bit."""
    model = seeded(Rotates)
    objective = kept(model, (X.float(), CLASSES))
    assert torch.equal(objective(objective.theta0).float(), F.cross_entropy(model(X.float()), CLASSES))
    copied = objective.model_at(objective.theta0)
    assert (copied.phase.dtype, copied.scale.dtype) == (torch.complex64, torch.float64)
    assert objective.hvp(objective.theta0, objective.theta0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_studied_in_float32(dtype: torch.dtype) -> None:
    model = mlp(nn.BatchNorm1d(5)).to(dtype)
    objective = kept(model, (X.to(dtype), CLASSES))
    assert objective.theta0.dtype == torch.float32
    expected = kept(copy.deepcopy(model).float(), (X.to(dtype).float(), CLASSES))
    assert torch.equal(objective(objective.theta0), expected(expected.theta0))
    assert torch.equal(
        objective.hvp(objective.theta0, objective.theta0), expected.hvp(expected.theta0, expected.theta0)
    )
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_float32_data_for_weights_of_two_precisions() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.to(self.a.weight.dtype)).tanh().double())

    model = seeded(Mixed)
    objective = kept(model, (X.float(), CLASSES))
    assert objective.theta0.dtype == torch.float64
    torch.testing.assert_close(
        objective(objective.theta0), F.cross_entropy(model(X.float()), CLASSES).detach(), rtol=1e-6, atol=0
    )


# Data -----------------------------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor, shift: Tensor) -> Any:
        logits = self.net(x + shift)
        return namedtuple("Output", ["logits", "hidden"])(logits, x)  # as HuggingFace's models return


KINDS_OF_BATCHES = {
    "several inputs": lambda x, s, y: (x, s, y),
    "list": lambda x, s, y: [x, s, y],
    "named tuple": lambda x, s, y: namedtuple("Batch", ["a", "b", "c"])(x, s, y),
    "dict": lambda x, s, y: {"labels": y, "x": x, "shift": s},
    "user dict": lambda x, s, y: UserDict(x=x, shift=s, labels=y),
    "other key": lambda x, s, y: {"x": x, "shift": s, "target": y},
}


@pytest.mark.parametrize("kind", KINDS_OF_BATCHES)
def test_structures_of_batches(kind: str) -> None:
    model, shift, make = TwoInputs(), draw(8, 1, seed=2), KINDS_OF_BATCHES[kind]
    expected = kept(model.net, (X + shift, CLASSES))
    batches = [make(X[:5], shift[:5], CLASSES[:5]), make(X[5:], shift[5:], CLASSES[5:])]
    for micro_batch in (None, 6):
        objective = kept(model, batches, micro_batch=micro_batch)
        theta = objective.theta0
        torch.testing.assert_close(objective(theta), expected(theta), rtol=1e-14, atol=0)
        torch.testing.assert_close(objective.hvp(theta, theta), expected.hvp(theta, theta), rtol=1e-12, atol=1e-15)
        assert objective.evaluate(theta)[1] == expected.evaluate(theta)[1]


def test_data_sets_of_every_kind_give_the_same_loss() -> None:
    model = mlp()
    expected = kept(model, (X, CLASSES))
    kinds = [Pair(X, CLASSES), TensorDataset(X, CLASSES), DataLoader(TensorDataset(X, CLASSES), batch_size=3)]
    kinds += [iter([(X[:5], CLASSES[:5]), (X[5:], CLASSES[5:])]), (X.numpy(), CLASSES.numpy())]
    for data in kinds:
        assert torch.equal(kept(model, data)(expected.theta0), expected(expected.theta0))


def test_batches_of_unequal_shapes_are_used_as_they_come() -> None:
    """Sequences of three lengths: the engine records each shape; the mean is over all targets."""
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))).double()
    shapes = [(2, 3), (1, 5), (3, 2)]
    batches = [(draw(n, length, 3, seed=n), torch.arange(n * length).view(n, length) % 4) for n, length in shapes]
    inputs = torch.cat([x.reshape(-1, 3) for x, _ in batches])
    targets = torch.cat([y.reshape(-1) for _, y in batches])

    def per_token(outputs: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), classes)

    objective, expected = Objective(model, batches, loss_fn=per_token), kept(model, (inputs, targets))
    theta = objective.theta0
    assert [tuple(x.shape[:2]) for x, _ in objective.batches] == shapes
    torch.testing.assert_close(objective(theta), expected(theta), rtol=1e-14, atol=0)
    torch.testing.assert_close(objective.hvp(theta, theta), expected.hvp(theta, theta), rtol=1e-11, atol=1e-14)
    assert objective.engine == "split graph"


def test_ignored_and_weighted_targets_by_batch_loss() -> None:
    """A token loss: the sum over what counts, divided once; equal to one big batch with torch's own mean."""
    model, targets = mlp(), CLASSES.clone()
    targets[[0, 5, 6]] = -100
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)

    def ignoring(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="sum", ignore_index=-100), (y != -100).sum()

    def weighing(model: Any, batch: Any) -> tuple[Tensor, float]:
        x, y = batch
        return F.cross_entropy(model(x), y, weight=weight, reduction="sum"), float(weight[y].sum())

    for batch_loss, y, loss_fn in (
        (ignoring, targets, F.cross_entropy),
        (weighing, CLASSES, nn.CrossEntropyLoss(weight=weight)),
    ):
        objective = kept(model, (X, y), batch_loss=batch_loss, micro_batch=5)
        point = objective.theta0.clone().requires_grad_()

        def whole(theta: Tensor, y: Tensor = y, loss_fn: Any = loss_fn, objective: Objective = objective) -> Tensor:
            return loss_fn(torch.func.functional_call(model, objective.space.unflatten(theta), (X,)), y)

        expected = torch.autograd.functional.hessian(whole, point)
        torch.testing.assert_close(objective(point), whole(point).detach(), rtol=1e-13, atol=0)
        torch.testing.assert_close(dense_hessian(objective), expected, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(objective.hvp(point, point), (expected @ point).detach(), rtol=1e-10, atol=1e-13)
        assert objective.evaluate(point)[1] is None


def test_batch_loss_sees_the_models_attributes_and_other_batches() -> None:
    model = mlp()

    def penalised(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        assert isinstance(model[0], nn.Linear)
        return F.cross_entropy(model(batch["a"]), batch["b"], reduction="sum"), len(batch["b"])

    objective = kept(model, [{"a": X, "b": CLASSES}], batch_loss=penalised)
    assert torch.equal(objective(objective.theta0), kept(model, (X, CLASSES))(objective.theta0))
    assert "penalised" in repr(objective)


def test_theta_reaches_whatever_part_of_the_model_a_batch_loss_uses() -> None:
    """Parts called one by one, weights read, and a penalty over parameters(): all are those of theta."""

    def by_parts(model: Any, batch: Any) -> tuple[Tensor, int]:
        x, y = batch
        hidden = model[1](model[0](x))
        logits = F.linear(hidden, model[2].weight, model[2].bias)
        penalty = sum(weight.square().sum() for weight in model.parameters())
        return F.cross_entropy(logits, y, reduction="sum") + 0.05 * len(y) * penalty, len(y)

    model = mlp()
    objective, plain = kept(model, (X, CLASSES), batch_loss=by_parts, micro_batch=5), kept(model, (X, CLASSES))
    theta = objective.theta0 + 1
    torch.testing.assert_close(objective(theta), plain(theta) + 0.05 * theta.square().sum(), rtol=1e-13, atol=0)
    expected = plain.hvp(theta, theta.cos()) + 0.1 * theta.cos()
    torch.testing.assert_close(objective.hvp(theta, theta.cos()), expected, rtol=1e-11, atol=1e-13)


def test_a_loss_that_is_a_module_follows_into_double() -> None:
    model = mlp().float()
    loss_fn = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    objective = kept(model, (X.float(), draw(8, 4).sigmoid().float()), loss_fn=loss_fn)
    hessian = dense_hessian(objective)
    result = objective.hvp(objective.theta0, objective.theta0)
    torch.testing.assert_close(result.double(), hessian @ objective.theta0.double(), rtol=1e-4, atol=1e-6)
    assert "BCEWithLogitsLoss" in repr(objective)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("log_scale", torch.tensor(0.3))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.mse_loss(outputs, targets) * self.log_scale.exp()  # in the precision of the buffer

    scaled, plain = (kept(model, (X.float(), draw(8, 4).float()), loss_fn=fn).double() for fn in (Scaled(), F.mse_loss))
    expected = float(plain(plain.theta0)) * math.exp(float(torch.tensor(0.3)))
    assert float(scaled(scaled.theta0)) == pytest.approx(expected, rel=1e-14)


def test_double_is_around_the_same_point() -> None:
    loss = kept(mlp().float(), (X.float(), CLASSES))
    theta = loss.theta0 + 0.125
    wide = loss.at(theta).double()
    assert wide.theta0.dtype == torch.float64
    assert torch.equal(wide.theta0, theta.double())
    assert torch.equal(wide(wide.theta0), loss.double()(theta.double()))
    third = FunctionObjective(lambda t: (t / 3).square().sum(), torch.ones(2)).at(torch.full((2,), 0.5)).double()
    assert (third.theta0.dtype, third.theta0.tolist()) == (torch.float64, [0.5, 0.5])
    assert float(third(third.theta0)) == pytest.approx(0.5 / 9, rel=1e-15)


def test_repr_is_one_line() -> None:
    objective = kept(mlp(), (X, CLASSES))
    expected = "Objective(Sequential, 44 parameters, 8 examples in batches of 8, cross_entropy, "
    expected += "mode='eval', engine='not chosen yet')"
    assert repr(objective) == expected
    assert objective.fallback_reason is None
    assert repr(AnchoredObjective(objective, objective.theta0, 0.01)) == f"AnchoredObjective({expected}, epsilon=0.01)"


# Modes ----------------------------------------------------------------------------------------------------------------


def test_eval_mode_is_the_model_evaluated() -> None:
    model = prepared()
    objective = kept(model, (X, CLASSES))
    own = F.cross_entropy(copy.deepcopy(model).eval()(X), CLASSES).detach()
    torch.testing.assert_close(objective(objective.theta0), own, rtol=1e-14, atol=0)


def test_as_is_respects_the_flags() -> None:
    model = mlp(nn.Dropout(0.5), nn.BatchNorm1d(5).double())
    model[1].eval()
    model[2].eval()
    assert model.training
    objective = kept(model, (X, CLASSES), mode="as_is")
    assert torch.equal(objective(objective.theta0), kept(model, (X, CLASSES))(objective.theta0))
    assert objective.model_at(objective.theta0).training


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            nn.Dropout(0.5),
            "model is random: layer '1' (Dropout) calls bernoulli, expected a loss that is a function of the weights.\n"
            'Use mode="eval", or put that layer into eval mode.',
        ),
        (
            nn.BatchNorm1d(5),
            "model depends on the batch: layer '1' (BatchNorm1d) calls native_batch_norm, expected a loss that is a "
            'sum over examples.\nUse mode="eval", or put that layer into eval mode: its statistics mix the examples '
            "of a batch.",
        ),
    ],
    ids=["dropout", "batch norm"],
)
def test_as_is_refuses_what_is_random_or_mixes_examples_by_name(layer: nn.Module, text: str) -> None:
    model = mlp(layer)
    with untouched(model), pytest.raises(ValueError) as error:
        Objective(model, (X, CLASSES), mode="as_is")
    assert str(error.value) == text


class AlwaysRandom(nn.Module):
    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * self.draw()


@pytest.mark.parametrize(
    ("source", "operation"),
    [
        (lambda: torch.rand(()), "layer '1' (AlwaysRandom) calls rand"),
        (lambda: float(np.random.rand()), "Sequential itself calls numpy.random or random"),  # noqa: NPY002
        (random.random, "Sequential itself calls numpy.random or random"),
    ],
    ids=["torch", "numpy", "random"],
)
def test_what_is_random_in_eval_mode_too_is_refused(source: Any, operation: str) -> None:
    model = mlp(AlwaysRandom(source))
    with untouched(model), pytest.raises(ValueError) as error:
        Objective(model, (X, CLASSES))
    expected = "expected a loss that is a function of the weights.\nDraw its numbers once, outside the loss."
    assert str(error.value) == f"model is random: {operation}, {expected}"


def test_batch_statistics_in_eval_mode_are_refused() -> None:
    with pytest.raises(ValueError) as error:
        Objective(mlp(nn.BatchNorm1d(5, track_running_stats=False)), (X, CLASSES))
    assert str(error.value).endswith("Give it running statistics: its statistics mix the examples of a batch.")


def test_a_model_with_a_memory_is_refused() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            return self.net(x) / self.seen

    with pytest.raises(ValueError) as error:
        Objective(Remembers(), (X, CLASSES))
    expected = "model changes its buffers ['seen'] when run, expected a function of the weights."
    assert str(error.value) == f'{expected}\nUse mode="eval", or make the forward pass leave its buffers alone.'


def test_a_model_that_writes_into_its_inputs_or_weights_is_refused() -> None:
    class Writes(nn.Module):
        def __init__(self, inputs: bool) -> None:
            super().__init__()
            self.net, self.inputs = mlp(), inputs

        def forward(self, x: Tensor) -> Tensor:
            if self.inputs:
                x -= 1  # the cached batch would move on every pass
            else:
                self.net[0].weight.data.clamp_(-0.1, 0.1)
            return self.net(x)

    for inputs in (True, False):
        with pytest.raises(ValueError) as error:
            Objective(Writes(inputs), (X.clone(), CLASSES))
        expected = "model writes into its weights or its inputs when run, expected a function of the weights."
        assert str(error.value) == f"{expected}\nMake that operation out of place, or start with inputs.clone()."


# Kinks ----------------------------------------------------------------------------------------------------------------


def test_kinks_warn_once_and_name_the_layer() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)))
    data = (torch.randn(8, 1, 4, 4), torch.arange(8) % 3)
    with pytest.warns(NotSmoothWarning) as caught:
        objective = kept(model, data, micro_batch=3)
        objective.hvp(objective.theta0, objective.theta0)
        objective.gradient(objective.theta0)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the line that made the objective
    assert str(caught[0].message) == (
        "the loss is not smooth: layer '1' (ReLU) calls relu; layer '2' (MaxPool2d) calls max_pool2d_with_indices. "
        "That is fine for slices, which only evaluate, and for eigenpairs, steering and Gauss-Newton, which are of the "
        "curvature between the kinks; not for polish and find_canyons, which need a smooth minimum: for those use "
        "sigmoid, SiLU or GELU."
    )
    with pytest.warns(NotSmoothWarning, match=r"loss function itself calls huber_loss\..* use a smooth loss_fn\.$"):
        kept(mlp(classes=2), (X, REAL), loss_fn=F.huber_loss)
    with warnings.catch_warnings(record=True) as caught:
        kept(mlp(), (X, CLASSES))
    assert caught == []


# Bad input ------------------------------------------------------------------------------------------------------------

_SHAPES = "data has batches of shapes [(8, 3), (8,)], on which the model or its loss failed ("
_BY_HAND = (
    "expected batches that the model and its loss accept.\nCheck one batch by hand: loss_fn(model(*inputs), targets)."
)
_COUNT_THEM = "Sum over the batch, and count the terms of that sum."
_PAIRS = (
    "Yield pairs, or pass batch_loss=(model, batch) -> (sum, count). One data set is a tuple: (inputs, targets), not a "
    "list."
)
_MEAN = (
    "Use reduction='mean'; with ignore_index or class weights pass batch_loss=, a function (model, batch) -> "
    "(sum, count)."
)


def nan_in(values: Tensor) -> Tensor:
    changed = values.clone()
    changed[2, 1] = math.nan
    return changed


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def with_nan_weight(model: nn.Sequential) -> nn.Module:
    with torch.no_grad():
        model[2].weight[0, 0] = math.inf
    return model


class Narrow(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.bfloat16)).float()


OUTSIDE = mlp()
BAD = {
    "no module": (
        lambda: Objective(lambda x: x, (X, CLASSES)),  # type: ignore[arg-type]
        TypeError,
        "model is a function, expected a torch.nn.Module.\n"
        "Wrap a function of theta in FunctionObjective(function, theta0).",
    ),
    "frozen": (
        lambda: Objective(frozen(mlp()), (X, CLASSES)),
        ValueError,
        "model (Sequential) has no trainable parameter, expected at least one parameter with requires_grad=True.\n"
        "Unfreeze what you want to study: parameter.requires_grad_(True).",
    ),
    "infinite weight": (
        lambda: Objective(with_nan_weight(mlp()), (X, CLASSES)),
        ValueError,
        "parameter '2.weight' of Sequential holds 1 NaN or infinite entries, expected finite numbers.\n"
        "Train with a smaller step, or reload.",
    ),
    "nan in data": (
        lambda: Objective(mlp(), (nan_in(X), CLASSES)),
        ValueError,
        "data holds 1 NaN or infinite entries, expected finite numbers.\n"
        "Drop or repair those examples before building the loader.",
    ),
    "empty": (
        lambda: Objective(mlp(), DataLoader(TensorDataset(X[:0], CLASSES[:0]))),
        ValueError,
        "data holds no batch, expected at least one example.\nCheck the loader's data set and drop_last.",
    ),
    "wrong shape": (
        lambda: Objective(mlp(), (X[:, :2], CLASSES)),
        ValueError,
        "data has batches of shapes [(8, 2), (8,)], on which the model or its loss failed (RuntimeError: mat1 and mat2 "
        f"shapes cannot be multiplied (8x2 and 3x5)), {_BY_HAND}",
    ),
    "wrong dtype": (
        lambda: Objective(mlp(), (X.float(), CLASSES)),
        ValueError,
        f"{_SHAPES}RuntimeError: mat1 and mat2 must have the same dtype, but got Float and Double), {_BY_HAND} "
        "Data and weights of one precision: inputs.double() for a model in float64.",
    ),
    "half precision by name": (
        lambda: Objective(Narrow().bfloat16(), (X.float(), CLASSES)),
        ValueError,
        f"{_SHAPES}RuntimeError: mat1 and mat2 must have the same dtype, but got BFloat16 and Float), {_BY_HAND} "
        "Half-precision weights are studied in float32: let forward cast to a weight's dtype.",
    ),
    "no targets": (
        lambda: Objective(mlp(), [X]),
        ValueError,
        f"batch is a Tensor, expected (inputs, targets).\n{_PAIRS}",
    ),
    "one of a pair": (
        lambda: Objective(mlp(), [(X,)]),
        ValueError,
        f"batch is a tuple of 1, expected (inputs, targets).\n{_PAIRS}",
    ),
    "no target key": (
        lambda: Objective(mlp(), [{"x": X}]),
        ValueError,
        "batch has the keys ['x'], expected one of ('labels', 'label', 'targets', 'target', 'y') for the targets.\n"
        "Rename it, or pass batch_loss=.",
    ),
    "classes too high": (
        lambda: Objective(mlp(classes=3), (X, CLASSES)),
        ValueError,
        "targets range from 0 to 3, expected 0 to 2, the model's 3 outputs.\n"
        "Check the labels; ignored ones (-100) need batch_loss=, which returns (sum, count).",
    ),
    "classes too low": (
        lambda: Objective(mlp(), (X, CLASSES - 1), micro_batch=3),
        ValueError,
        "targets range from -1 to 2, expected 0 to 3, the model's 4 outputs.\n"
        "Check the labels; ignored ones (-100) need batch_loss=, which returns (sum, count).",
    ),
    "float targets": (
        lambda: Objective(mlp(), (X, REAL)),
        ValueError,
        "targets have dtype torch.float64, expected integer classes, the loss_fn being cross-entropy.\n"
        "Pass loss_fn=F.mse_loss (or another); class targets must be integers: targets.long().",
    ),
    "column of targets": (
        lambda: Objective(mlp(), (X, CLASSES[:, None])),
        ValueError,
        "targets have shape (8, 1), the outputs (8, 4), expected targets (n, ...) for outputs (n, classes, ...).\n"
        "Reshape the targets; outputs (n, length, classes) need loss_fn= or batch_loss=.",
    ),
    "flat outputs": (
        lambda: Objective(nn.Sequential(mlp(classes=1), nn.Flatten(0)), (X, CLASSES)),
        ValueError,
        "model gives outputs of shape (8,), expected (n, classes) for cross-entropy.\nPass loss_fn= or batch_loss=.",
    ),
    "sum": (
        lambda: Objective(mlp(), (X, CLASSES), loss_fn=nn.CrossEntropyLoss(reduction="sum")),
        ValueError,
        f"expected the mean loss over the targets.\n{_MEAN}",
    ),
    "ignore_index": (
        lambda: Objective(mlp(), (X, CLASSES), loss_fn=nn.CrossEntropyLoss(ignore_index=1)),
        ValueError,
        f"expected the mean loss over the targets.\n{_MEAN}",
    ),
    "ignored from the second batch on": (
        lambda: Objective(mlp(), (X, CLASSES), loss_fn=nn.CrossEntropyLoss(ignore_index=2), micro_batch=3),
        ValueError,
        f"expected the mean loss over the targets.\n{_MEAN}",
    ),
    "first example ignored": (
        lambda: Objective(
            mlp(), (X, CLASSES - 100 * (torch.arange(8) == 0)), loss_fn=nn.CrossEntropyLoss(ignore_index=-100)
        ),
        ValueError,
        f"(1 + 7 examples differ from 8 together by nan), expected the mean loss over the targets.\n{_MEAN}",
    ),
    "weighted": (
        lambda: Objective(mlp(), (X, CLASSES), loss_fn=nn.CrossEntropyLoss(weight=torch.arange(1.0, 5).double())),
        ValueError,
        f"expected the mean loss over the targets.\n{_MEAN}",
    ),
    "no reduction": (
        lambda: Objective(mlp(), (X, CLASSES), loss_fn=nn.CrossEntropyLoss(reduction="none")),
        ValueError,
        "loss_fn returned shape (8,), count 8, expected a scalar tensor, the mean.\nUse reduction='mean'.",
    ),
    "loss as a number": (
        lambda: Objective(mlp(), (X, CLASSES), loss_fn=lambda o, t: F.cross_entropy(o, t).item()),
        ValueError,
        "loss_fn returned a float, count 8, expected a scalar tensor, the mean.\nUse reduction='mean'.",
    ),
    "loss that fails": (
        lambda: Objective(mlp(), (X, CLASSES), loss_fn=lambda o: o),  # type: ignore[arg-type]
        ValueError,
        f"), {_BY_HAND}",
    ),
    "no loss": (
        lambda: Objective(mlp(), (X, CLASSES), loss_fn="mse"),  # type: ignore[arg-type]
        TypeError,
        "loss_fn is 'mse', expected a function or an instance.\nPass F.mse_loss or nn.MSELoss().",
    ),
    "class of a loss": (
        lambda: Objective(mlp(), (X, CLASSES), loss_fn=nn.CrossEntropyLoss),  # type: ignore[arg-type]
        TypeError,
        "loss_fn is the class CrossEntropyLoss, expected a function or an instance.\nPass F.mse_loss or nn.MSELoss().",
    ),
    "infinite loss": (
        lambda: Objective(
            mlp(), (X, CLASSES), loss_fn=lambda o, t: F.cross_entropy(o, t) + (0 * o.sum()).exp().log().log()
        ),
        ValueError,
        "the loss at theta0 holds 1 NaN or infinite entries, expected finite numbers.\n"
        "Check the weights and loss_fn for overflow or log(0).",
    ),
    "both losses": (
        lambda: Objective(mlp(), (X, CLASSES), loss_fn=F.cross_entropy, batch_loss=lambda m, b: (m(b[0]).sum(), 1)),
        ValueError,
        "loss_fn and batch_loss are both given, expected one of the two.\nLeave one of them out.",
    ),
    "batch_loss without count": (
        lambda: Objective(mlp(), (X, CLASSES), batch_loss=lambda m, b: m(b[0]).sum()),  # type: ignore[arg-type]
        ValueError,
        f"batch_loss returned no pair (sum, count), expected a scalar tensor and a positive count.\n{_COUNT_THEM}",
    ),
    "batch_loss of None": (
        lambda: Objective(mlp(), (X, CLASSES), batch_loss=lambda m, b: None),  # type: ignore[arg-type, return-value]
        ValueError,
        f"batch_loss returned no pair (sum, count), expected a scalar tensor and a positive count.\n{_COUNT_THEM}",
    ),
    "count of None": (
        lambda: Objective(mlp(), (X, CLASSES), batch_loss=lambda m, b: (m(b[0]).sum(), None)),
        ValueError,
        f"batch_loss returned shape (), count None, expected a scalar tensor and a positive count.\n{_COUNT_THEM}",
    ),
    "count of zero": (
        lambda: Objective(mlp(), (X, CLASSES), batch_loss=lambda m, b: (m(b[0]).sum(), torch.tensor(0))),
        ValueError,
        f"batch_loss returned shape (), count 0, expected a scalar tensor and a positive count.\n{_COUNT_THEM}",
    ),
    "count as text": (
        lambda: Objective(mlp(), (X, CLASSES), batch_loss=lambda m, b: (m(b[0]).sum(), "8")),
        ValueError,
        f"batch_loss returned shape (), count '8', expected a scalar tensor and a positive count.\n{_COUNT_THEM}",
    ),
    "sum per example": (
        lambda: Objective(mlp(), (X, CLASSES), batch_loss=lambda m, b: (m(b[0]).sum(1), 8)),
        ValueError,
        f"batch_loss returned shape (8,), count 8, expected a scalar tensor and a positive count.\n{_COUNT_THEM}",
    ),
    "model from outside": (
        lambda: Objective(mlp(), (X, CLASSES), batch_loss=lambda m, b: (OUTSIDE(b[0]).sum(), 8)),
        ValueError,
        "batch_loss returned a value that does not depend on the weights, expected a differentiable function of the "
        "weights.\nUse the model that batch_loss is given, not one from outside; no torch.no_grad(), no detach().",
    ),
    "detached": (
        lambda: Objective(mlp(), (X, CLASSES), loss_fn=lambda o, t: F.cross_entropy(o.detach(), t)),
        ValueError,
        "model and loss_fn return a value that does not depend on the weights, expected a differentiable function of "
        "the weights.\nNo torch.no_grad(), no detach(). A hook or a forward that was replaced by a closure (LoRA by "
        "hooks) reads the parameters of the module that it was made with, not of the copy that is studied: make it a "
        "method, or let it read those of the module it is given.",
    ),
    "device": (
        lambda: Objective(mlp(), (X, CLASSES), device="cuda:99"),
        ValueError,
        f"device is 'cuda:99', expected a device of this machine ({torch.cuda.device_count()} CUDA devices found).\n"
        'Pass device="cpu", or leave it out to compute where the model is.',
    ),
    "mode": (
        lambda: Objective(mlp(), (X, CLASSES), mode="train"),  # type: ignore[arg-type]
        ValueError,
        "mode is 'train', expected one of 'eval', 'as_is'.\nName one of them.",
    ),
    "engine": (
        lambda: Objective(mlp(), (X, CLASSES), engine="fast"),  # type: ignore[arg-type]
        ValueError,
        "engine is 'fast', expected one of 'auto', 'split graph', 'kept graph', 'double backward', "
        "'forward over reverse'.\nName one of them.",
    ),
    "keep_bytes": (
        lambda: Objective(mlp(), (X, CLASSES), keep_bytes=-1),
        ValueError,
        "keep_bytes is -1, expected a finite number in [0, inf].\nPass bytes: 2 * 2**30 are 2 GiB.",
    ),
    "iterator without cache": (
        lambda: Objective(mlp(), iter([(X, CLASSES)]), cache=False),
        ValueError,
        "data is an iterator, readable once, expected data to read on each pass (cache=False).\n"
        "Pass a DataLoader, or leave cache=True.",
    ),
    "shuffled without cache": (
        lambda: Objective(mlp(), DataLoader(TensorDataset(X, CLASSES), shuffle=True), cache=False),
        RuntimeError,
        "data gave other batches on a second pass, expected the same batches on every pass (cache=False).\n"
        "Switch shuffling and random augmentation off, or use cache=True, which reads once.",
    ),
    "function of the wrong shape": (
        lambda: FunctionObjective(lambda theta: theta**2, torch.ones(3)),
        ValueError,
        "function returned (3,), expected a scalar tensor, shape ().\nSum or average its terms.",
    ),
    "function of another type": (
        lambda: FunctionObjective(lambda theta: 3.0, torch.ones(3)),  # type: ignore[arg-type, return-value]
        ValueError,
        "function returned float, expected a scalar tensor, shape ().\nSum or average its terms.",
    ),
    "no function": (
        lambda: FunctionObjective(3.0, torch.ones(3)),  # type: ignore[arg-type]
        TypeError,
        "function is a float, expected a function theta (p,) -> scalar.\nPass lambda theta: ...",
    ),
    "function that is infinite": (
        lambda: FunctionObjective(lambda theta: theta.log().sum(), torch.zeros(3)),
        ValueError,
        "function(theta0) holds 1 NaN or infinite entries, expected finite numbers.\nCheck it for overflow or log(0).",
    ),
    "function that writes": (
        lambda: FunctionObjective(lambda theta: theta.mul_(2).sum(), torch.ones(3)),
        ValueError,
        "function writes into theta, expected a pure function of theta.\nStart it with theta = theta.clone().",
    ),
    "theta0 of the wrong shape": (
        lambda: FunctionObjective(lambda theta: theta.sum(), torch.ones(3, 1)),
        ValueError,
        "theta0 is (3, 1), expected a floating-point tensor of shape (p,).\n"
        "Use tensor.reshape(-1), torch.from_numpy(array) for an array.",
    ),
    "theta0 of another type": (
        lambda: FunctionObjective(lambda theta: theta.sum(), [1.0]),  # type: ignore[arg-type]
        ValueError,
        "theta0 is list, expected a floating-point tensor of shape (p,).\n"
        "Use tensor.reshape(-1), torch.from_numpy(array) for an array.",
    ),
    "theta0 with nan": (
        lambda: FunctionObjective(lambda theta: theta.sum(), torch.tensor([math.nan])),
        ValueError,
        "theta0 holds 1 NaN or infinite entries, expected finite numbers.\nStart from a finite point.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, kind, text = BAD[name]
    with pytest.raises(kind) as error:
        call()
    # Texts that begin in the middle leave out a measured number or torch's own words.
    is_whole = text.split()[0] not in ("expected", "),", "(1")
    assert str(error.value) == text if is_whole else str(error.value).endswith(text)


@pytest.mark.parametrize(
    ("vector", "kind", "text"),
    [
        (torch.ones(43), ValueError, "has shape (43,), expected (44,) = (num_params,) of Sequential."),
        (torch.ones(44, 1), ValueError, "has shape (44, 1), expected (44,) = (num_params,) of Sequential."),
        (torch.full((44,), math.nan), ValueError, "holds 44 NaN or infinite entries, expected finite numbers."),
        (torch.ones(44).long(), TypeError, "has dtype torch.int64, expected a floating-point dtype."),
        ([1.0] * 44, TypeError, "is a list, expected a tensor of shape (44,) = (num_params,) of Sequential."),
    ],
)
def test_bad_vectors(vector: Any, kind: type[Exception], text: str) -> None:
    objective = kept(mlp(), (X, CLASSES))
    remedy = "Build vectors from named tensors with objective.space.flatten({...})."
    methods = {
        "theta": [objective, objective.gradient, objective.at, objective.model_at, objective.evaluate],
        "v": [lambda v: objective.hvp(objective.theta0, v)],
    }
    for name, calls in methods.items():
        for call in calls:
            with pytest.raises(kind) as error:
                call(vector)
            assert str(error.value) == f"{name} {text}\n{remedy}"


# Functions and anchors ------------------------------------------------------------------------------------------------


def quartic(theta: Tensor) -> Tensor:
    return (theta**4).sum() + theta[0] * theta[1]


def test_a_function_is_an_objective() -> None:
    theta, v = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    hessian = torch.diag(12 * theta**2)
    hessian[0, 1] = hessian[1, 0] = 1
    for engine in ENGINES:
        f = FunctionObjective(quartic, torch.zeros(3, dtype=torch.float64), engine=engine)
        assert f(theta) == 1 + 16 + 0.0625 - 2
        torch.testing.assert_close(f.gradient(theta), 4 * theta**3 + torch.tensor([-2.0, 1.0, 0.0]))
        for _ in range(2):
            torch.testing.assert_close(f.hvp(theta, v), hessian @ v, rtol=1e-14, atol=0)
        assert f.engine == ("split graph" if engine == "auto" else engine)
        assert f.evaluate(theta) == (f(theta), None)
        assert torch.equal(f.at(theta).theta0, theta)
        assert not f.theta0.any()
    torch.testing.assert_close(dense_hessian(f, theta=theta), hessian, rtol=1e-14, atol=0)
    assert repr(f) == "FunctionObjective(quartic, 3 parameters, engine='forward over reverse')"
    with pytest.raises(ValueError, match=r"v has shape \(2,\), expected \(3,\) = \(num_params,\) of theta0"):
        f.hvp(theta, v[:2])


def test_a_functions_start_is_the_callers() -> None:
    start = torch.ones(3)
    f = FunctionObjective(quartic, start)
    start.zero_()
    assert torch.equal(f.theta0, torch.ones(3))


def test_a_recurrent_layer_in_a_function_is_differentiable() -> None:
    """The same kernels as for a model: MKL-DNN's LSTM has no second derivative in either direction."""
    layer = seeded(lambda: nn.LSTM(3, 2))
    names = [name for name, _ in layer.named_parameters()]
    shapes = [weight.shape for weight in layer.parameters()]
    sizes = [shape.numel() for shape in shapes]

    def function(theta: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)]
        return torch.func.functional_call(layer, dict(zip(names, parts, strict=True)), (X.float(),))[0].square().sum()

    f = FunctionObjective(function, nn.utils.parameters_to_vector(layer.parameters()).detach())
    expected = dense_hessian(
        kept(layer, [X], batch_loss=lambda m, x: (m(x.to(m.weight_ih_l0.dtype))[0].square().sum(), 1))
    )
    result = f.hvp(f.theta0, f.theta0)
    torch.testing.assert_close(result.double(), expected @ f.theta0.double(), rtol=1e-4, atol=1e-5)


def test_an_anchor_adds_its_quadratic() -> None:
    loss, epsilon = kept(mlp(), (X, CLASSES)), 0.3
    anchor, theta, v = loss.theta0 + 1, loss.theta0 - draw(44), draw(44, seed=2)
    anchored = AnchoredObjective(loss, anchor, epsilon)
    expected = loss(theta) + epsilon / 2 * (theta - anchor).square().sum()
    torch.testing.assert_close(anchored(theta), expected, rtol=1e-14, atol=0)
    value, gradient = anchored.value_and_gradient(theta)
    assert torch.equal(value, anchored(theta))
    torch.testing.assert_close(gradient, loss.gradient(theta) + epsilon * (theta - anchor), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(anchored.hvp(theta, v), loss.hvp(theta, v) + epsilon * v, rtol=1e-14, atol=1e-15)
    identity = torch.eye(44, dtype=torch.float64)
    expected = dense_hessian(loss, theta=theta) + epsilon * identity
    torch.testing.assert_close(dense_hessian(anchored, theta=theta), expected, rtol=1e-12, atol=1e-14)
    assert anchored.evaluate(theta) == (anchored(theta), loss.evaluate(theta)[1])
    elsewhere = anchored.at(theta)
    assert torch.equal(elsewhere.theta0, theta)
    assert torch.equal(elsewhere.anchor, anchor)
    assert torch.equal(elsewhere(theta), anchored(theta))
    assert (anchored.num_params, anchored.engine) == (44, "kept graph")
    anchor.zero_()
    assert torch.equal(anchored(theta), value)


def test_bad_anchors() -> None:
    f = FunctionObjective(quartic, torch.ones(3))
    with pytest.raises(ValueError) as error:
        AnchoredObjective(f, f.theta0, -1.0)
    expected = (
        "epsilon is -1, expected a finite number in [0, inf].\nChoose about a hundredth of the largest eigenvalue."
    )
    assert str(error.value) == expected
    with pytest.raises(ValueError, match=r"anchor has shape \(2,\), expected \(3,\) = \(num_params,\) of Function"):
        AnchoredObjective(f, torch.ones(2), 1.0)
    anchored = AnchoredObjective(f, f.theta0, 0.0)
    with pytest.raises(ValueError, match=r"theta has shape \(4,\)"):
        anchored(torch.ones(4))
    with pytest.raises(ValueError, match="v holds 3 NaN"):
        anchored.hvp(f.theta0, torch.full((3,), math.nan))


def test_a_common_center() -> None:
    f, g = (FunctionObjective(quartic, torch.ones(3)) for _ in range(2))
    assert torch.equal(common_center({"f": f, "g": g}), torch.ones(3))
    assert torch.equal(common_center({"f": f, "g": g.at(torch.zeros(3))}, torch.full((3,), 2.0)), torch.full((3,), 2.0))
    with pytest.raises(ValueError) as error:
        common_center({"f": f, "g": g.at(torch.zeros(3))})
    expected = "losses 'f' and 'g' are around different points, expected one common theta0."
    assert str(error.value) == f"{expected}\nPut them around one point, objective.at(theta), or pass center=."
    with pytest.raises(ValueError) as error:
        common_center({"f": f, "h": FunctionObjective(quartic, torch.ones(4))})
    expected = "losses have 3 (f) and 4 (h) parameters, expected one model's losses."
    assert str(error.value) == f"{expected}\nBuild them from the same model."
    with pytest.raises(TypeError, match=r"losses is a list, expected a mapping name -> objective.\nPass a mapping"):
        common_center([f])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"center has shape \(2,\)"):
        common_center({"f": f}, torch.ones(2))


# What a review found -------------------------------------------------------------------------------------------------


def test_a_penalty_on_the_users_own_model_is_refused() -> None:
    """Its gradient would be lost: value and gradient would be two different functions."""
    net = torch.nn.Linear(3, 4)

    def penalised(model: Any, batch: Any) -> Any:
        total = F.cross_entropy(model(batch[0]), batch[1], reduction="sum")
        return total + len(batch[0]) * 0.1 * sum(weight.square().sum() for weight in net.parameters()), len(batch[0])

    with pytest.raises(ValueError, match=r"batch_loss uses trainable parameters that are not the given model's"):
        Objective(net, (X.float(), CLASSES), batch_loss=penalised)


def test_a_weighted_loss_is_refused_even_if_each_batch_holds_one_class() -> None:
    targets = torch.arange(40) // 20
    weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0]))
    with pytest.raises(ValueError, match="loss_fn is not the mean over the targets"):
        Objective(torch.nn.Linear(3, 2), (torch.randn(40, 3), targets), loss_fn=weighted, micro_batch=20)


def test_a_loss_that_broadcasts_its_targets_is_refused() -> None:
    """torch only warns of outputs (n, 1) against targets (n,), and takes the mean over n x n differences."""
    inputs, targets = torch.randn(500, 3), torch.randn(500)
    model = torch.nn.Linear(3, 1)
    for loss_fn in (F.mse_loss, lambda out, y: (out - y).square().mean()):
        with pytest.raises(ValueError, match=r"loss_fn is not the mean.*which may broadcast.*\nGive both one shape"):
            Objective(model, (inputs, targets), loss_fn=loss_fn)
    right = Objective(model, (inputs, targets[:, None]), loss_fn=F.mse_loss)
    own = Objective(model, (inputs, targets), loss_fn=lambda out, y: F.mse_loss(out[:, 0], y))  # shapes may differ
    expected = F.mse_loss(model(inputs), targets[:, None]).detach()
    for objective in (right, own):
        torch.testing.assert_close(objective(objective.theta0), expected, rtol=1e-6, atol=0.0, check_dtype=False)


def _ignoring(logits: Any, targets: Any) -> Any:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


@pytest.mark.parametrize("order", ["sorted", "one length in a batch"])
@pytest.mark.parametrize("scale", [1.0, 1e-2], ids=["", "tokens of nearly equal loss"])
def test_ignored_tokens_are_refused_however_the_batches_are_cut(order: str, scale: float) -> None:
    """The mean over unequal numbers of tokens, however alike their losses are and however the lengths are sorted."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(192, 6, 4, generator=generator)
    targets = torch.randint(5, (192, 6), generator=generator)
    lengths = 1 + torch.arange(192) // 32 if order == "sorted" else 3 + (torch.arange(192) // 32 % 3)
    targets[torch.arange(6) >= lengths[:, None]] = -100
    model = torch.nn.Linear(4, 5)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= scale
    for micro_batch in (32, 48, 192):
        with pytest.raises(ValueError, match="loss_fn is not the mean over the targets"):
            Objective(model, (inputs, targets), loss_fn=_ignoring, micro_batch=micro_batch)
    whole = Objective(model, (inputs, targets.clamp(min=0)), loss_fn=_ignoring, micro_batch=32)  # nothing to ignore
    expected = _ignoring(model(inputs), targets.clamp(min=0)).detach()
    assert float(whole(whole.theta0)) == pytest.approx(float(expected), rel=1e-6)


def test_ignored_tokens_are_refused_where_outputs_are_flat_too() -> None:
    """Outputs (n * length, classes) are cut where the targets (n, length) are."""
    inputs, targets = torch.randn(64, 6, 4), torch.randint(5, (64, 6))
    targets[40:, 2:] = -100
    targets[41, :1] = -100  # ignored tokens are in the second and third batch only
    model = nn.Sequential(nn.Linear(4, 5), nn.Flatten(0, 1))
    with pytest.raises(ValueError, match="loss_fn is not the mean over the targets"):
        Objective(model, (inputs, targets), micro_batch=20, loss_fn=lambda out, y: F.cross_entropy(out, y.flatten()))


def test_entries_of_a_batch_that_forward_does_not_know_are_named() -> None:
    batches = [{"x": X.float(), "index": torch.arange(8), "label": CLASSES}]
    with pytest.raises(ValueError, match=r"Its entries \['x', 'index'\] go to forward by name: rename or drop some"):
        Objective(torch.nn.Linear(3, 4), batches)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda t: (t * torch.randn(3)).square().sum(), "function gives another value at the same theta"),
        (
            lambda t: torch.tensor(float(t.detach().square().sum())),
            "function returned a value that does not depend on theta",
        ),
    ],
    ids=["random", "constant"],
)
def test_a_function_must_be_one_of_theta(function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FunctionObjective(function, torch.ones(3))
    with pytest.raises(TypeError, match="function is a Tensor, expected a function theta"):
        FunctionObjective(torch.ones(3), torch.ones(3))  # type: ignore[arg-type]


def test_theta0_can_be_written_to_without_moving_the_loss() -> None:
    for loss in (
        Objective(torch.nn.Linear(3, 4), (X.float(), CLASSES)),
        FunctionObjective(lambda t: t.square().sum(), torch.ones(3)),
    ):
        before, theta = loss.theta0.clone(), loss.theta0
        theta += 1
        assert torch.equal(loss.theta0, before)


def test_a_frozen_weight_that_is_not_finite_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
    model[0].weight.requires_grad_(False).fill_(float("inf"))
    with pytest.raises(ValueError, match=r"parameter '0.weight' holds 12 NaN or infinite entries"):
        Objective(model, (X.float(), CLASSES))
