"""The oracles themselves, and the report on a model.

Oracles: Hessians on paper; `torch.func.hessian` (another implementation, forward over reverse); functions whose third
and fifth derivatives are known; models with one planted fault each.
"""

from __future__ import annotations

import doctest
import math
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowhanging.testing.model_check
from lowhanging.objective.objective import AnchoredObjective, FunctionObjective, Objective
from lowhanging.testing import ModelCheck, check_model, dense_hessian, finite_difference_hvp

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 3, generator=GENERATOR), torch.randint(4, (24,), generator=GENERATOR)


def mlp(*middle: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(3, 6), *middle, nn.Linear(6, 4))


def quartic(theta: Tensor) -> Tensor:
    return (theta**4).sum() + theta[0] * theta[1]


def quartic_hessian(theta: Tensor) -> Tensor:
    hessian = torch.diag(12 * theta**2)
    hessian[0, 1] = hessian[1, 0] = 1
    return hessian


# dense_hessian --------------------------------------------------------------------------------------------------------


def test_dense_hessian_of_a_function_on_paper() -> None:
    theta = torch.tensor([1.0, -2.0, 0.5])
    f = FunctionObjective(quartic, theta)
    result = dense_hessian(f)
    assert result.dtype == torch.float64
    assert torch.equal(result, quartic_hessian(theta.double()))
    assert torch.equal(dense_hessian(f, theta=2 * theta), quartic_hessian(2 * theta.double()))
    anchored = AnchoredObjective(f, theta, 0.25)
    expected = quartic_hessian(theta.double()) + 0.25 * torch.eye(3)
    assert torch.equal(dense_hessian(anchored), expected)


def test_dense_hessian_without_curvature() -> None:
    linear, constant, zeros = torch.arange(3.0), torch.ones(()), torch.zeros(3, 3, dtype=torch.float64)
    for function in (lambda theta: linear.to(theta) @ theta, lambda theta: constant + 0 * theta.sum()):
        assert torch.equal(dense_hessian(FunctionObjective(function, torch.ones(3))), zeros)
    partly = dense_hessian(FunctionObjective(lambda theta: theta[1] ** 2, torch.ones(3)))
    assert torch.equal(partly, torch.diag(torch.tensor([0.0, 2.0, 0.0]).double()))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in torch.func.hessian
@pytest.mark.parametrize(
    "make",
    [
        lambda: mlp(nn.GELU()),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 4)),
    ],
    ids=["mlp", "conv"],
)
def test_dense_hessian_is_that_of_torch_func_in_float64(make: Any) -> None:
    """From float32 weights and data: the oracle is exact to float64, not to the model's precision."""
    model = make()
    objective = Objective(model, (X, Y), micro_batch=15)  # 15 + 9
    twin = make().double()

    def loss(theta: Tensor) -> Tensor:
        outputs = torch.func.functional_call(twin, objective.space.unflatten(theta), (X.double(),))
        return F.cross_entropy(outputs, Y)

    expected = torch.func.hessian(loss)(objective.theta0.double())
    torch.testing.assert_close(dense_hessian(objective), expected, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(dense_hessian(model, (X, Y)), expected, rtol=1e-9, atol=1e-13)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_dense_hessian_through_a_layer_norm() -> None:
    """Where torch.func.hessian is wrong by a tenth (torch 2.13); second differences of values need no derivative."""
    model = mlp(nn.Tanh(), nn.LayerNorm(6)).double()
    objective = Objective(model, (X.double(), Y), engine="kept graph")
    theta, h = objective.theta0, 1e-3
    for direction in torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).double():
        values = [float(objective(theta + k * h * direction)) for k in (-2, -1, 0, 1, 2)]
        curvature = (-values[0] + 16 * values[1] - 30 * values[2] + 16 * values[3] - values[4]) / (12 * h**2)
        assert float(direction @ dense_hessian(objective) @ direction) == pytest.approx(curvature, rel=1e-6)


def test_dense_hessian_takes_the_settings_of_a_model() -> None:
    model = mlp(nn.Tanh())
    by_mean = dense_hessian(model, (X, X[:, [0, 1, 2, 0]]), loss_fn=F.mse_loss)
    by_sum = dense_hessian(
        model,
        (X, X[:, [0, 1, 2, 0]]),
        batch_loss=lambda model, batch: (F.mse_loss(model(batch[0]), batch[1], reduction="sum"), batch[1].numel()),
    )
    torch.testing.assert_close(by_mean, by_sum, rtol=1e-11, atol=1e-14)
    with pytest.raises(ValueError, match="model is random: layer '1'"):
        dense_hessian(mlp(nn.Dropout(0.5)), (X, Y), mode="as_is")


def test_dense_hessian_of_what_vmap_cannot_batch() -> None:
    """An autograd function without a batching rule: row by row, the same numbers."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return Square.apply(x) * 3 * gradient

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 2 * x * gradient * float(gradient.sum() != math.inf)  # a number: vmap can't

    theta = torch.tensor([1.0, -2.0], dtype=torch.float64)
    result = dense_hessian(FunctionObjective(lambda theta: Cube.apply(theta).sum(), theta))
    torch.testing.assert_close(result, torch.diag(6 * theta))


def test_dense_hessian_refuses() -> None:
    f = FunctionObjective(quartic, torch.ones(3))
    with pytest.raises(ValueError) as error:
        dense_hessian(f, (X, Y))
    expected = f"data are given beside {f!r}, expected an objective's own data."
    assert str(error.value) == f"{expected}\nPass a model with its data, or an objective alone."
    with pytest.raises(ValueError, match=r"theta has shape \(2,\), expected \(3,\) = \(num_params,\) of FunctionObj"):
        dense_hessian(f, theta=torch.ones(2))


# finite_difference_hvp ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_finite_differences_are_as_good_as_they_say(dtype: torch.dtype, scale: float) -> None:
    """Functions with known Hessians, vectors of any length: the error is below the prediction, which is small."""
    generator = torch.Generator().manual_seed(1)
    functions = [
        (quartic, quartic_hessian),
        (lambda t: t.sin().sum(), lambda t: torch.diag(-t.sin())),
        (lambda t: t.exp().sum(), lambda t: torch.diag(t.exp())),
    ]
    for function, hessian in functions:
        for _ in range(5):
            theta, v = torch.randn(2, 6, generator=generator, dtype=torch.float64).to(dtype)
            found = finite_difference_hvp(FunctionObjective(function, theta), theta, scale * v)
            expected = scale * hessian(theta.double()) @ v.double()
            off = float((found.product.double() - expected).norm())
            assert off <= found.error
            assert found.error < {torch.float64: 1e-6, torch.float32: 3e-2}[dtype] * float(expected.norm())
            assert found.product.dtype == dtype


def test_finite_differences_of_a_model_in_float32() -> None:
    objective = Objective(mlp(nn.Tanh()), (X, Y), engine="kept graph")
    theta, v = objective.theta0, torch.randn(objective.num_params, generator=torch.Generator().manual_seed(3))
    expected = dense_hessian(objective) @ v.double()
    found = finite_difference_hvp(objective, theta, v)
    assert float((found.product - expected).norm()) <= found.error < 1e-2 * float(expected.norm())


def test_the_step_may_be_chosen() -> None:
    theta = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    f = FunctionObjective(lambda theta: theta.sin().sum(), theta)
    coarse, fine = (finite_difference_hvp(f, theta, theta, step=step) for step in (0.3, 1e-9))
    assert (coarse.step, fine.step) == (0.3, 1e-9)
    exact = -theta.sin() * theta
    for found in (coarse, fine):  # too coarse: truncation; too fine: rounding; either is predicted
        assert 1e-8 < float((found.product - exact).norm()) <= found.error < 1
    assert repr(coarse).startswith("FiniteDifference(|Hv| 2.018 +- 0.008")
    assert repr(coarse).endswith(", step 0.3)")


def test_a_kink_is_not_certified() -> None:
    """Gradients on the two sides of |x| differ by 2, however small the step."""
    f = FunctionObjective(lambda theta: theta.abs().sum() + theta.square().sum(), torch.zeros(2, dtype=torch.float64))
    found = finite_difference_hvp(f, f.theta0, torch.tensor([1.0, 1.0]))
    assert found.error > 100


def test_finite_differences_refuse() -> None:
    f = FunctionObjective(quartic, torch.ones(3))
    with pytest.raises(ValueError) as error:
        finite_difference_hvp(f, f.theta0, torch.zeros(3))
    assert str(error.value) == (
        "v is the zero vector, expected a vector with a direction.\nPass vectors as long as theta0."
    )
    with pytest.raises(ValueError, match=r"theta has shape \(2,\), expected \(3,\)"):
        finite_difference_hvp(f, torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError) as error:
        finite_difference_hvp(f, f.theta0, torch.ones(3), step=0.0)
    assert str(error.value) == (
        "step is 0, expected a finite number in (0, inf).\nLeave it out: it is chosen for the precision."
    )


# check_model ----------------------------------------------------------------------------------------------------------

NAMES = [
    "accepted",
    "deterministic",
    "independent of batching",
    "smooth",
    "products right by finite differences",
    "products symmetric",
    "left alone",
]


def checked(model: nn.Module, data: Any = (X, Y), **settings: Any) -> ModelCheck:
    """check_model, which must leave the random states as they are."""
    before = pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))  # noqa: NPY002
    result = check_model(model, data, **settings)
    after = pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))  # noqa: NPY002
    assert before == after
    return result


def failed(check: ModelCheck) -> list[str]:
    return [one.name for one in check.checks if not one.is_passed]


def test_a_good_model_passes_every_question() -> None:
    check = checked(mlp(nn.Tanh()), DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True))
    assert check.ok
    assert check.problems == []
    assert [one.name for one in check.checks] == NAMES
    assert check.notes == ("products by kept graph",)
    assert repr(check) == "ModelCheck(Sequential: ok, 7 checks; print it for the report)"
    lines = str(check).splitlines()
    assert lines[0] == "Sequential: ok"
    assert lines[1] == "  ok       accepted: 24 examples, 52 weights; derivatives on 24 of the examples"
    assert lines[-1] == "  note     products by kept graph"
    assert len(lines) == 9


def test_kinks_are_named() -> None:
    convolved = nn.Sequential(
        nn.Unflatten(1, (1, 1, 3)), nn.Conv2d(1, 2, (1, 2)), nn.MaxPool2d((1, 2)), nn.Flatten(), nn.Linear(2, 4)
    )
    for model, name in (
        (mlp(nn.ReLU()), "layer '1' (ReLU) calls relu"),
        (convolved, "layer '2' (MaxPool2d) calls max"),
    ):
        check = checked(model)
        assert failed(check) == ["smooth"]
        assert f"smooth: the loss is not smooth: {name}" in check.problems[0]
        assert "differences of gradients shrink by no power of the step" in check.problems[0]
        assert repr(check) == "ModelCheck(Sequential: ok but for kinks, 7 checks; print it for the report)"
        assert "  KINKS    smooth: " in str(check)
        assert str(check).startswith("Sequential: has kinks: fine for slices, ")
    pooled = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(1, 4))
    assert checked(pooled).ok  # a max of the data is no kink in the weights


def test_a_kink_without_a_name_is_measured() -> None:
    """A ReLU without an operation that is known to be kinked."""

    class Masks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (x > 0)

    check = checked(mlp(Masks()))
    assert failed(check) == ["smooth"]
    assert "is not smooth" not in check.problems[0]


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Softplus(), nn.Mish()])
def test_smooth_activations_pass(activation: nn.Module) -> None:
    model = mlp(activation)
    with torch.no_grad():
        model[0].weight *= 4  # as after training
    check = lowhanging.testing.model_check._smooth(Objective(model, (X, Y), engine="kept graph"), None, seed=0)
    assert check.is_passed
    assert "shrink as step^2.0" in check.detail or "shrink as step^1.9" in check.detail


def test_training_layers_are_notes_in_eval_mode() -> None:
    model = mlp(nn.Dropout(0.3), nn.BatchNorm1d(6), nn.Tanh()).train()
    check = checked(model)
    assert check.ok
    assert check.notes == (
        "layer '1' (Dropout) is random in training mode, and is evaluated in eval mode",
        "layer '2' (BatchNorm1d) mixes the examples of a batch in training mode, and is evaluated in eval mode",
        "products by kept graph",
    )
    assert model.training
    assert not model[2].num_batches_tracked


def test_training_layers_are_problems_as_they_are() -> None:
    check = checked(mlp(nn.Dropout(0.3), nn.BatchNorm1d(6), nn.Tanh()).train(), mode="as_is")
    assert failed(check) == ["a function of the weights", "a function of the weights", "accepted"]
    assert check.problems[:2] == [
        "a function of the weights: layer '1' (Dropout) is random in training mode; use mode=\"eval\", the default",
        "a function of the weights: layer '2' (BatchNorm1d) mixes the examples of a batch in training mode; "
        'use mode="eval", the default',
    ]
    assert "model is random: layer '1' (Dropout) calls bernoulli" in check.problems[2]
    assert check.notes == ('mode="eval", the default, accepts this model',)
    assert repr(check) == "ModelCheck(Sequential: 3 problems, 4 checks; print it for the report)"
    again = checked(mlp(nn.Dropout(0.3), nn.Tanh()).train(), iter([(X, Y + 7)]), mode="as_is")
    assert again.notes[-1].startswith('mode="eval" is refused too: targets range from 7')


def test_recurrent_and_attention_dropout_is_named() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, num_layers=2, dropout=0.2, batch_first=True)
            self.attend = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
            self.plain = nn.GRU(4, 4, batch_first=True)

    notes = lowhanging.testing.model_check._layers(Both(), "eval")[1]
    assert [note.split(" is random")[0] for note in notes] == [
        "layer 'rnn' (LSTM)",
        "layer 'attend' (MultiheadAttention)",
    ]


REPORTED = {
    "bad data": (lambda: checked(mlp(nn.Tanh()), (X[:, :2], Y)), "accepted: data has batches of shapes"),
    "empty data": (lambda: checked(mlp(nn.Tanh()), []), "accepted: data holds no batch"),
    "bad targets": (lambda: checked(mlp(nn.Tanh()), (X, Y + 1)), "accepted: targets range from"),
    "frozen": (lambda: checked(mlp(nn.Tanh()).requires_grad_(False)), "accepted: model (Sequential) has no trainable"),
    "a sum": (
        lambda: checked(mlp(nn.Tanh()), loss_fn=nn.CrossEntropyLoss(reduction="sum")),
        "accepted: loss_fn is not the mean over the targets",
    ),
    "device": (lambda: checked(mlp(nn.Tanh()), device="cuda:77"), "accepted: device is 'cuda:77'"),
    "numpy's random numbers": (
        lambda: checked(mlp(Noisy())),
        "accepted: model is random: Sequential itself calls numpy.random or random",
    ),
    "no second derivative": (
        lambda: checked(mlp(nn.Tanh()), loss_fn=lambda o, t: F.multi_margin_loss(o, t, p=2)),
        "twice differentiable: the loss can't be differentiated twice",
    ),
}


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.rand())  # noqa: NPY002


@pytest.mark.parametrize("name", REPORTED)
def test_refusals_are_reported_in_one_line(name: str) -> None:
    make, text = REPORTED[name]
    check = make()
    assert not check.ok
    assert any(problem.startswith(text) for problem in check.problems), check.problems
    assert "\n" not in "".join(check.problems)
    assert check.checks[-1].name == "left alone"


class Clock(nn.Module):
    """Another loss on every call, without drawing a number."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Clock.calls += 1
        return x * (1 + 1e-3 * Clock.calls)


def centred(model: Any, batch: Any) -> tuple[Tensor, int]:
    """A batch_loss that mixes the examples of a batch; its (sum, count) looks innocent."""
    x, y = batch
    outputs = model(x)
    return F.cross_entropy(outputs - outputs.mean(0), y, reduction="sum"), len(y)


class WrongGradient(torch.autograd.Function):
    """x^2, with a gradient that is off by x (1 + i / 10) for the i-th entry: its Jacobian is not symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (2 * x + x.detach() * torch.arange(x.shape[1]) / 10)


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return WrongGradient.apply(x)


def test_planted_faults_are_found() -> None:
    clock = checked(
        mlp(Clock(), nn.Tanh()), batch_loss=lambda m, b: (F.cross_entropy(m(b[0]), b[1], reduction="sum"), 24)
    )
    assert "deterministic" in failed(clock)
    mixing = checked(mlp(nn.Tanh()), batch_loss=centred)
    assert mixing.ok
    assert any("depends on the others of its batch" in note for note in mixing.notes)
    wrong = checked(mlp(Wrong(), nn.Tanh()))
    assert "twice differentiable" in failed(wrong)  # the loss itself refuses products that differences contradict
    functional = checked(mlp(nn.Tanh()), loss_fn=lambda o, t: F.cross_entropy(o, t) + F.dropout(o).sum())
    assert failed(functional) == ["accepted"]


def test_a_model_that_changes_itself_is_reported() -> None:
    """The user's own module, reached past the private copy: by a closure."""
    model = mlp(nn.Tanh())

    def writes(private: Any, batch: Any) -> tuple[Tensor, int]:
        with torch.no_grad():
            model[0].weight.add_(1)
        return F.cross_entropy(private(batch[0]), batch[1], reduction="sum"), len(batch[1])

    check = check_model(model, (X, Y), batch_loss=writes)
    assert failed(check) == ["left alone"]
    assert check.problems == ["left alone: changed: 0.weight"]


def test_batches_that_cannot_be_cut() -> None:
    def per_graph(model: Any, batch: Any) -> tuple[Tensor, int]:
        nodes, owner, y = batch
        pooled = torch.zeros(len(y), 4, dtype=nodes.dtype).index_add(0, owner, model(nodes))
        return F.cross_entropy(pooled, y, reduction="sum"), len(y)

    graphs = [(X[:7], torch.tensor([0, 0, 1, 1, 1, 2, 2]), Y[:3]), (X[7:12], torch.tensor([0, 0, 0, 1, 1]), Y[3:5])]
    check = checked(mlp(nn.Tanh()), graphs, batch_loss=per_graph)
    assert check.ok
    assert "independent of batching: not asked: the batches can't be cut" in str(check)


def test_a_loss_that_insists_on_float32() -> None:
    """The derivatives are then checked in float32, to its rounding."""
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])  # a float32 tensor in a closure: float64 weights can't meet it

    def weighing(model: Any, batch: Any) -> tuple[Tensor, float]:
        x, y = batch
        return F.cross_entropy(model(x), y, weight, reduction="sum"), float(weight[y].sum())

    check = checked(mlp(nn.Tanh()), batch_loss=weighing)
    assert check.ok, str(check)


def test_a_model_is_needed() -> None:
    with pytest.raises(TypeError) as error:
        check_model(quartic, (X, Y))  # type: ignore[arg-type]
    assert str(error.value) == (
        "model is a function, expected a torch.nn.Module.\n"
        "Wrap a function of theta in FunctionObjective(function, theta0)."
    )


def test_examples_in_docstrings() -> None:
    import lowhanging.objective.objective

    for module in (lowhanging.testing.model_check, lowhanging.objective.objective):
        names = vars(module) | {"nn": nn, "torch": torch}
        tried = [doctest.testmod(module, extraglobs=names)]
        assert all(result.attempted and not result.failed for result in tried)


class Straight(nn.Module):
    """Rounds, with the gradient of the identity."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.round() - x).detach()


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.last = 0.5 * self.last + float(x.detach().mean())
        return x + self.last


class Stale(nn.Module):
    """Uses a view of a weight that it stored."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.back = self.weight.t()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight) @ self.back


def masked_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2)[targets != -1].mean()


def test_the_kinds_of_silently_wrong_numbers_are_reported() -> None:
    words = {
        Straight(): "not the derivative of its values",
        Remembers(): "what its last forward pass left on it",
        Stale(): "'back', which was computed from its weights",
        Wrong(): "not the derivative of its values",
    }
    for middle, why in words.items():
        report = checked(mlp(middle, nn.Tanh()))
        assert any(why in problem for problem in report.problems), str(report)
    targets = torch.rand(24, 4)
    targets[20:, 1] = -1.0  # in the last batch only
    batches = [(X[:10], targets[:10]), (X[10:20], targets[10:20]), (X[20:24], targets[20:])]
    report = checked(mlp(nn.Tanh()), batches, loss_fn=masked_mean)
    assert failed(report) == ["accepted"]
    assert "not the mean over the targets" in report.problems[0]
