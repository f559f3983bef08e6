"""Verification: no product is used that nothing confirmed, and what can't be confirmed is refused with a remedy.

Oracles: Hessians on paper; central differences of float64 gradients of plain torch code; for weight normalization the
same formula in plain operations.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from lowhanging.curvature.operators import gauss_newton, hessian
from lowhanging.curvature.trace import trace
from lowhanging.errors import NotSmoothWarning
from lowhanging.objective.hvp import ENGINES
from lowhanging.objective.objective import FunctionObjective, Objective

D = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


X, CLASSES = draw(20, 4), torch.arange(20) % 3


def by_differences(model: nn.Module, loss: Callable[[nn.Module], Tensor], v: Tensor, step: float = 1e-5) -> Tensor:
    """H v by central differences of gradients, nothing of the library's."""
    named = [(name, weight.shape, weight.numel()) for name, weight in model.named_parameters()]
    theta = torch.cat([weight.detach().double().reshape(-1) for weight in model.parameters()])

    class Moved(nn.Module):
        def __init__(self, at: Tensor) -> None:
            super().__init__()
            parts = at.split([size for *_, size in named])
            self.weights = {name: part.view(shape) for (name, shape, _), part in zip(named, parts, strict=True)}

        def forward(self, *inputs: Any) -> Any:
            return functional_call(model, self.weights, inputs)

    def gradient(at: Tensor) -> Tensor:
        point = at.clone().requires_grad_()
        return torch.autograd.grad(loss(Moved(point)), point)[0]

    return (gradient(theta + step * v) - gradient(theta - step * v)) / (2 * step)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


# Where torch's own second derivative is wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norm_has_the_derivatives_of_its_formula(norm: Any, engine: Any, dtype: torch.dtype) -> None:
    model = seeded(lambda: nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)))
    names = [(name, weight.shape, weight.numel()) for name, weight in model.named_parameters()]

    def closed_form(theta: Tensor) -> Tensor:
        parts = theta.split([size for *_, size in names])
        w = {name: part.view(shape) for (name, shape, _), part in zip(names, parts, strict=True)}
        g = next(part for name, part in w.items() if name.endswith(("weight_g", "original0")))
        u = next(part for name, part in w.items() if name.endswith(("weight_v", "original1")))
        hidden = X @ (g * u / u.square().sum(1, keepdim=True).sqrt()).T + w["0.bias"]
        return F.cross_entropy(hidden.tanh() @ w["2.weight"].T + w["2.bias"], CLASSES)

    theta = torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])
    exact = torch.autograd.functional.hessian(closed_form, theta)
    loss, v = Objective(model.to(dtype), (X.to(dtype), CLASSES), engine=engine, micro_batch=8), draw(len(theta))
    rtol = 1e-11 if dtype == D else 1e-4
    for _ in range(2):
        assert (loss.hvp(loss.theta0, v).double() - exact @ v).norm() < rtol * (exact @ v).norm()
    assert abs(float(trace(hessian(loss), num_probes=len(theta), progress=False)) - float(exact.trace())) < 1e-4


class WrongTwice(torch.autograd.Function):
    """x ** 3 with a right first derivative and a second one that is half of it; without forward derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * 3 * (x.detach() * x)


class RightTwice(WrongTwice):
    """The same, right."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * 3 * x**2


def test_the_only_product_that_exists_is_held_against_differences() -> None:
    theta = torch.tensor([0.5, -1.0, 2.0], dtype=D)
    right = FunctionObjective(lambda t: RightTwice.apply(t).sum(), theta)
    torch.testing.assert_close(right.hvp(theta, torch.ones(3, dtype=D)), 6 * theta, rtol=1e-12, atol=0)
    wrong = FunctionObjective(lambda t: WrongTwice.apply(t).sum(), theta)
    with pytest.raises(ValueError, match="central differences") as error:
        wrong.hvp(theta, torch.ones(3, dtype=D))
    received, remedy = str(error.value).split("\n")
    assert (
        received.startswith("the loss has ")
        and ", expected one that autograd differentiates twice correctly." in received
    )
    assert remedy


def test_the_layer_whose_derivative_is_wrong_is_named() -> None:
    class Cubed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return WrongTwice.apply(x)

    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), Cubed()))
    loss = Objective(model, (X, CLASSES))
    with pytest.raises(ValueError, match=r"most in 2\.weight"):
        loss.hvp(loss.theta0, draw(loss.num_params))


class Backwards(torch.autograd.Function):
    """A gradient that is not that of the value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


@pytest.mark.parametrize(
    "function",
    [
        lambda t: Backwards.apply(t).square().sum() + t.sum(),
        lambda t: (t.detach() * t).sum(),
        lambda t: (t + (t.round() - t).detach()).square().sum(),  # straight-through
    ],
    ids=["backward of one's own", "detach", "straight-through"],
)
def test_a_gradient_that_is_none_of_the_value_is_refused(function: Any) -> None:
    loss = FunctionObjective(function, torch.tensor([0.6, -1.2, 2.1], dtype=D))
    assert math.isfinite(float(loss(loss.theta0)))  # values are right, and slices need no more
    for ask in (loss.gradient, lambda theta: loss.hvp(theta, theta)):
        with pytest.raises(ValueError, match="expected a gradient that is its derivative"):
            ask(loss.theta0)


# Where a derivative is not finite -------------------------------------------------------------------------------------


def test_what_is_nan_in_reverse_is_not_replaced_by_something_untested() -> None:
    """1 - exp(-|t - c|^2) at c: the Hessian is 2 I; a recording gave 0, torch's double backward NaN."""
    c = draw(4)
    loss = FunctionObjective(lambda t: 1 - torch.exp(-(torch.linalg.norm(t - c) ** 2)), c.clone())
    with pytest.raises(ValueError, match=r"linalg_vector_norm.*where it has no derivative") as error:
        loss.hvp(c, torch.ones(4, dtype=D))
    assert "use squares" in str(error.value)
    smooth = FunctionObjective(lambda t: 1 - torch.exp(-(t - c).square().sum()), c.clone())
    torch.testing.assert_close(smooth.hvp(c, torch.ones(4, dtype=D)), torch.full((4,), 2.0, dtype=D))


def test_radial_basis_functions_at_training_points_are_right_or_refused() -> None:
    """exp(-|x - c|^2) with centres among the data, by cdist."""

    class Radial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centres, self.out = nn.Parameter(X[:5].clone()), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.exp(-(torch.linalg.norm(x[:, None] - self.centres, dim=2) ** 2)))

    loss = Objective(seeded(Radial), (X, CLASSES))
    with pytest.raises(ValueError, match="where it has no derivative"):
        loss.hvp(loss.theta0, draw(loss.num_params))


@pytest.mark.parametrize(
    ("function", "theta", "words"),
    [
        (lambda t: torch.linalg.det(t.view(2, 2)).exp(), [1.0, 2.0, 0.5, 1.0], "derivative"),
        (lambda t: t.std() ** 2 + t.sum().sin(), [0.3] * 4, "std"),
        (lambda t: torch.view_as_complex(t.view(2, 2)).abs().square().sum().sin(), [0.0, 0.0, 0.2, 0.3], "abs"),
    ],
    ids=["determinant", "standard deviation", "size of a complex number"],
)
def test_two_kinds_that_agree_on_a_subgradient_are_not_believed(function: Any, theta: Any, words: str) -> None:
    """Torch's derivative at a point where it has none is a constant, on which both ways of differentiation agree."""
    loss = FunctionObjective(function, torch.tensor(theta, dtype=D))
    with pytest.raises(ValueError, match=words):
        loss.hvp(loss.theta0, draw(4))


def test_a_saturated_loss_is_not_taken_for_a_wrong_one() -> None:
    theta = torch.tensor([0.9, 0.1, 0.2, 0.3], dtype=D)
    loss = FunctionObjective(lambda t: -(t * 200).log_softmax(0)[0], theta)
    assert float(loss.gradient(theta).norm()) < 1e-40
    assert float(loss.hvp(theta, draw(4)).norm()) < 1e-40


# What a recording leaves behind ---------------------------------------------------------------------------------------


class Robust(nn.Module):
    """A hidden layer centred by an operation that torch can't record under forward differentiation."""

    def __init__(self, center: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.center = nn.Linear(4, 6), nn.Linear(6, 3), center

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.enter(x)
        return self.leave(torch.tanh(self.center(hidden)))


@pytest.mark.parametrize(
    "center",
    [
        lambda h: h - h.quantile(0.5, dim=1, keepdim=True),
        lambda h: h - h.nanquantile(0.3, dim=1, keepdim=True),
        lambda h: h.clone().lerp_(h.sin(), torch.full_like(h, 0.3)),
    ],
    ids=["quantile", "nanquantile", "lerp_"],
)
def test_a_recording_that_fails_leaves_autograd_as_it_was(center: Any) -> None:
    model, v = seeded(lambda: Robust(center)), draw(51)
    loss = Objective(model, (X, CLASSES))
    expected = by_differences(model, lambda m: F.cross_entropy(m(X), CLASSES), v, 1e-6)
    for _ in range(2):
        torch.testing.assert_close(loss.hvp(loss.theta0, v), expected, rtol=1e-6, atol=1e-7)
    G = gauss_newton(loss)
    torch.testing.assert_close(G @ v, G @ v, rtol=1e-12, atol=1e-14)
    assert float((G @ v).norm()) > 0.1
    F.cross_entropy(model(X), CLASSES).backward()  # the caller's own
    assert model.enter.weight.grad is not None


def test_a_recording_leaves_no_fake_tensor_in_the_users_caches() -> None:
    @functools.cache
    def table(n: int) -> Tensor:
        return torch.sin(torch.arange(n)[:, None] * torch.tensor([1.0, 0.5, 0.2, 0.1]))

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave, self.own = nn.Embedding(5, 4), nn.Linear(4, 5), None

        def forward(self, tokens: Tensor) -> Tensor:
            n = tokens.shape[1]
            if self.own is None or len(self.own) != n:
                self.own = table(n).double()
            return self.leave(torch.tanh(self.enter(tokens) + self.own)).transpose(1, 2)

    model = seeded(Positions)
    batches = [(torch.randint(5, (3, n)), torch.randint(5, (3, n))) for n in (4, 6, 4)]
    loss, v = Objective(model, batches), draw(45)
    num = sum(y.numel() for _, y in batches)
    expected = by_differences(
        model, lambda m: sum(F.cross_entropy(m(x), y, reduction="sum") for x, y in batches) / num, v
    )
    torch.testing.assert_close(loss.hvp(loss.theta0, v), expected, rtol=1e-6, atol=1e-8)
    assert not any(isinstance(table(n), FakeTensor) for n in (4, 6))
    assert all(torch.isfinite(model(x)).all() for x, _ in batches)


def test_a_batch_without_a_gradient_is_refused_unless_it_needs_none() -> None:
    model, batches = seeded(lambda: nn.Linear(4, 3)), [(X[:12], CLASSES[:12]), (X[12:], CLASSES[12:])]

    def forgets(m: nn.Module, batch: Any) -> tuple[Tensor, int]:
        total = F.cross_entropy(m(batch[0]), batch[1], reduction="sum")
        return (total if len(batch[1]) == 12 else total.detach()), len(batch[1])

    def constant(m: nn.Module, batch: Any) -> tuple[Tensor, int]:
        total = F.cross_entropy(m(batch[0]), batch[1], reduction="sum")
        return (total if len(batch[1]) == 12 else torch.tensor(3.0, dtype=D)), len(batch[1])

    loss = Objective(model, batches, batch_loss=forgets)
    with pytest.raises(ValueError, match="gives a batch a value that moves with the weights and has no gradient"):
        loss.gradient(loss.theta0)
    expected = F.cross_entropy(model(X[:12]), CLASSES[:12], reduction="sum") / 20
    weights = torch.autograd.grad(expected, list(model.parameters()))
    got = Objective(model, batches, batch_loss=constant)
    torch.testing.assert_close(got.gradient(got.theta0), torch.cat([part.reshape(-1) for part in weights]))


# Threads --------------------------------------------------------------------------------------------------------------


def test_threads_on_one_objective_get_their_own_numbers() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)))
    loss = Objective(model, (X, CLASSES), micro_batch=3)
    points = [loss.theta0, loss.theta0 + 0.5 * draw(loss.num_params)]
    v, wrong = draw(loss.num_params), []
    alone = Objective(model, (X, CLASSES), micro_batch=3)
    expected = [(alone(at), alone.gradient(at), alone.hvp(at, v)) for at in points]

    def work(number: int) -> None:
        around = loss.at(points[number])
        value, gradient, product = expected[number]
        for _ in range(25):
            found = around(points[number]), around.gradient(points[number]), around.hvp(points[number], v)
            pairs = zip(found, (value, gradient, product), strict=True)
            wrong.extend(1 for mine, own in pairs if not torch.allclose(mine, own, rtol=1e-12, atol=1e-14))

    threads = [threading.Thread(target=work, args=(number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_settings_of_the_process_are_put_back_when_calls_overlap() -> None:
    def settings() -> tuple[Any, ...]:
        cuda = torch.backends.cuda
        kernels = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()
        return *kernels, torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled

    before, gate = settings(), threading.Barrier(2)

    def slow(theta: Tensor) -> Tensor:
        return theta.square().sum()

    losses = [FunctionObjective(slow, torch.ones(2, dtype=D)) for _ in range(2)]

    def work(loss: FunctionObjective) -> None:
        gate.wait()
        for _ in range(200):
            loss(loss.theta0)

    threads = [threading.Thread(target=work, args=(loss,)) for loss in losses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert settings() == before


# What must not be refused ---------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """Computes in float32 whatever comes in, as those of language models do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def test_a_float64_model_that_computes_a_part_in_float32() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 16), RMSNorm(16), nn.Tanh(), nn.Linear(16, 3)))
    exact = nn.Sequential(model[0], nn.RMSNorm(16, eps=1e-6).double(), *model[2:])
    v = draw(147)
    expected = by_differences(exact, lambda m: F.cross_entropy(m(X), CLASSES), v)
    for loss in (Objective(model, (X, CLASSES)), Objective(model.float(), (X.float(), CLASSES)).double()):
        assert float((loss.hvp(loss.theta0, v) - expected).norm()) < 1e-4 * float(expected.norm())
        assert float((gauss_newton(loss) @ v).norm()) > 0


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_nets_in_float32_whatever_the_data(layer: Any) -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.run, self.leave = layer(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.run(x)[0]).log_softmax(-1)

    def first(model: Any, batch: Any) -> tuple[Tensor, int]:
        return -model(batch[0])[..., 0].sum(), batch[0].shape[0] * batch[0].shape[1]

    for seed in range(6):
        torch.manual_seed(seed)
        loss = Objective(Sequence(), [(torch.randn(5, 6, 4), torch.zeros(6))], batch_loss=first, engine="kept graph")
        assert bool(loss.hvp(loss.theta0, torch.ones(loss.num_params)).isfinite().all())


def test_kinks_at_theta_are_no_reason_to_refuse() -> None:
    """Zero biases and blank inputs put ReLUs on their kinks; huber_loss has no forward derivative."""

    def blank(model: nn.Module) -> nn.Module:
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
        return model

    images = draw(12, 1, 8, 8)
    images[:, :, :3] = 0.0
    convolutions = blank(
        seeded(
            lambda: nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
            )
        )
    )
    with pytest.warns(NotSmoothWarning):
        loss = Objective(convolutions, (images, draw(12, 3)), loss_fn=F.huber_loss)
    assert float(loss.hvp(loss.theta0, draw(loss.num_params)).norm()) > 0

    class Where(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, 0.0)

    own = blank(seeded(lambda: nn.Sequential(nn.Linear(4, 8), Where(), nn.Linear(8, 3))))
    x = X.clone()
    x[:4] = 0.0
    loss = Objective(own, (x, CLASSES))
    assert bool(loss.gradient(loss.theta0).isfinite().all())
    assert float(loss.hvp(loss.theta0, draw(loss.num_params)).norm()) > 0


@pytest.mark.parametrize(
    ("function", "center"),
    [
        (lambda t: torch.exp(-((t - 1e6 - 0.3) ** 2).sum()), 1e6),
        (lambda t: torch.exp(-(((t - 1e4) / 1e-2 - 0.3) ** 2).sum()), 1e4),
        (lambda t: torch.sin(1e4 * t).sum(), 0.3),
    ],
    ids=["far away", "far away and narrow", "fast"],
)
def test_functions_whose_scale_is_far_from_that_of_theta(function: Any, center: float) -> None:
    theta = torch.full((4,), center, dtype=D)
    loss, v = FunctionObjective(function, theta), torch.ones(4, dtype=D)
    exact = torch.autograd.functional.hessian(function, theta) @ v
    torch.testing.assert_close(loss.hvp(theta, v), exact, rtol=1e-9, atol=1e-12)


def test_a_model_that_asserts_its_own_batch_size() -> None:
    class Eight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 8 and x.dtype == torch.float32
            return self.net(x)

    torch.manual_seed(0)
    batches = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(2)]
    loss = Objective(Eight(), batches)
    assert [len(batch[0]) for batch in loss.batches] == [8, 8]
    assert float(loss.hvp(loss.theta0, torch.ones(15)).norm()) > 0


def test_distances_at_zero_are_named_though_no_other_route_follows() -> None:
    class Radial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centres, self.out = nn.Parameter(X[:5].clone()), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.exp(-(torch.cdist(x, self.centres) ** 2)))

    loss = Objective(seeded(Radial), (X, CLASSES))
    with pytest.raises(ValueError, match=r"_cdist_backward|where it has no derivative"):
        loss.hvp(loss.theta0, draw(loss.num_params))


def test_weights_in_recomputed_activations_are_refused() -> None:
    """They would be recomputed, in the backward pass, at other weights."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(checkpoint(lambda z: torch.tanh(self.a(z)), x, use_reentrant=False))

    with pytest.raises(ValueError, match="recomputes activations in the backward pass, with weights"):
        Objective(seeded(Checkpointed), (X, CLASSES))


def test_threads_on_objectives_of_their_own() -> None:
    filters, logger = list(warnings.filters), logging.getLogger("torch._subclasses.fake_tensor")
    was_off, wrong = logger.disabled, []
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    v = draw(67)
    reference = Objective(model, (X, CLASSES))
    expected = reference.hvp(reference.theta0, v)

    def work(engine: Any) -> None:
        try:
            for _ in range(2):
                loss = Objective(model, (X, CLASSES), engine=engine)
                found = [loss.hvp(loss.theta0, v) for _ in range(15)]
                wrong.extend(1 for each in found if not torch.allclose(each, expected, rtol=1e-9, atol=1e-12))
        except Exception as error:
            wrong.append(error)

    engines = ("forward over reverse", "forward over reverse", "auto", "kept graph")
    threads = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert (list(warnings.filters), logger.disabled) == (filters, was_off)
