"""`train`: what it computes, what it leaves alone, what it refuses.

Oracles: gradient descent of a linear regression on paper; the same loop written out by hand with torch; `Objective`,
which must give the very numbers of the history.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lowhanging as lh
from lowhanging.errors import NotConvergedError
from lowhanging.models import SigmoidCNN
from lowhanging.objective.objective import Objective
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.training.train import TrainingRun, train

quiet = functools.partial(train, progress=False)


@pytest.fixture
def points() -> tuple[Tensor, Tensor]:
    """40 points in the plane, three classes in sectors: 5 batches of 7 and one of 5."""
    inputs = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    return inputs, (torch.atan2(inputs[:, 1], inputs[:, 0]) * 3 / math.tau + 1.5).long().clamp(0, 2)


def network(*middle: nn.Module) -> nn.Sequential:
    """A small MLP, the same on each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), *middle, nn.Tanh(), nn.Linear(8, 3))


def weights(model: nn.Module) -> Tensor:
    return ParameterSpace(model).flatten(model)


# What it computes -----------------------------------------------------------------------------------------------------


def test_gradient_descent_of_a_linear_regression_on_paper() -> None:
    """Full batches of plain descent: w_t - w* = (I - 2 lr X'X / n)^t (w_0 - w*)."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(9, 3, dtype=torch.float64, generator=generator)
    solution = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    error = (model.weight - solution).detach().T
    shrink = torch.eye(3, dtype=torch.float64) - 2 * 0.1 * inputs.T @ inputs / 9
    settings = {"optimizer": "sgd", "schedule": "constant", "lr": 0.1, "batch_size": 9, "loss_fn": F.mse_loss}
    run = quiet(model, (inputs, inputs @ solution.T), num_epochs=6, **settings)
    expected = solution.T + torch.linalg.matrix_power(shrink, 6) @ error
    torch.testing.assert_close(model.weight.detach().T, expected, rtol=1e-12, atol=1e-14)
    # The epoch's loss is the one before its only step.
    before = torch.stack([(inputs @ torch.linalg.matrix_power(shrink, t) @ error).square().mean() for t in range(6)])
    torch.testing.assert_close(run.losses["train"][1:], before, rtol=1e-12, atol=1e-14)
    assert run.accuracies == {}


def test_equals_the_loop_written_out(points: tuple[Tensor, Tensor]) -> None:
    inputs, targets = points
    by_hand, model = network(), network()
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.05)
    shuffle = torch.Generator().manual_seed(3)
    losses, right, rates = [], [], []
    for epoch in range(4):
        total, hits = 0.0, 0
        for step, index in enumerate(torch.randperm(40, generator=shuffle).split(7)):
            optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * (epoch + step / 6) / 4))
            rates += [optimizer.param_groups[0]["lr"]] if step == 0 else []
            optimizer.zero_grad()
            outputs = by_hand(inputs[index])
            loss = F.cross_entropy(outputs, targets[index])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(index)
            hits += int((outputs.argmax(1) == targets[index]).sum())
        losses.append(total / 40)
        right.append(hits / 40)
    run = quiet(model, points, num_epochs=4, lr=0.05, batch_size=7, seed=3)
    assert torch.equal(weights(model), weights(by_hand))
    assert run.losses["train"][1:].tolist() == pytest.approx(losses, rel=1e-6)
    assert run.accuracies["train"][1:].tolist() == right
    assert run.lr.tolist() == pytest.approx([0.05, *rates])
    assert run.epochs.tolist() == [0, 1, 2, 3, 4]
    assert run.losses["train"][0].isnan()


def test_history_is_what_an_objective_says(points: tuple[Tensor, Tensor]) -> None:
    model, other = network(), (points[0][:11], points[1][:11])
    run = quiet(model, points, num_epochs=3, evaluate={"all": points, "few": other}, checkpoints=1)
    assert run.checkpoint_epochs.tolist() == [0, 1, 2, 3]
    assert torch.equal(run.checkpoints[-1], weights(model))
    assert torch.equal(run.checkpoints[0], weights(network()))
    for name, data in {"all": points, "few": other}.items():
        loss = Objective(model, data)
        for theta, value, accuracy in zip(run.checkpoints, run.losses[name], run.accuracies[name], strict=True):
            assert loss.evaluate(theta) == (value, accuracy)


def test_learns(points: tuple[Tensor, Tensor]) -> None:
    run = quiet(network(), points, num_epochs=40, lr=0.05, batch_size=7, evaluate={"seen": points})
    assert run.accuracies["seen"][-1] > 0.95
    assert run.losses["seen"][-1] < 0.3 * run.losses["seen"][0]


def test_the_cnn_learns() -> None:
    """Two classes of images: bright above or bright below."""
    targets = torch.arange(40) % 2
    images = 0.3 * torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[targets == 0, :, :4] += 0.7
    images[targets == 1, :, 4:] += 0.7
    model = SigmoidCNN(3, seed=0, num_classes=2, image_size=8)
    run = quiet(model, (images, targets), num_epochs=40, batch_size=8, evaluate={"seen": (images, targets)})
    assert run.accuracies["seen"][-1] == 1.0


# Kinds of data --------------------------------------------------------------------------------------------------------


class Stored(Dataset[tuple[Tensor, Tensor]]):
    """Has .inputs and .targets; `scale` other than one transforms what is stored."""

    def __init__(self, inputs: Tensor, targets: Tensor, scale: float = 1.0):
        self.inputs, self.targets, self.scale, self.num_reads = inputs, targets, scale, 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.num_reads += 1
        return self.inputs[i] * self.scale, self.targets[i]


class Plain(Dataset[tuple[Tensor, int]]):
    def __init__(self, inputs: Tensor, targets: Tensor):
        self.items = list(zip(inputs, targets.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.items[i]


def test_every_map_style_form_trains_alike(points: tuple[Tensor, Tensor]) -> None:
    arrays = (points[0].numpy(), points[1].numpy())
    forms = [
        points,
        TensorDataset(*points),
        Stored(*points),
        Plain(*points),
        arrays,
        Stored(points[0] / 2, points[1], 2.0),
    ]
    reached = []
    for data in forms:
        model = network()
        quiet(model, data, num_epochs=2, batch_size=7)
        reached.append(weights(model))
    assert all(torch.equal(theta, reached[0]) for theta in reached)
    stored = Stored(*points)
    quiet(network(), stored, num_epochs=3)
    assert stored.num_reads >= 3 * len(stored)  # a class of the user's is read as it hands out its items


def test_an_optimizer_that_takes_no_sparse_gradient_is_named() -> None:
    tokens, targets = torch.randint(5, (8, 3)), torch.arange(8) % 2
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"optimizer \(Adam\) got a sparse gradient .*\nPass optimizer=\"sgd\""):
        quiet(model, (tokens, targets), num_epochs=1)
    quiet(model, (tokens, targets), num_epochs=1, optimizer="sgd")


def test_batches_of_the_users_own(points: tuple[Tensor, Tensor]) -> None:
    inputs, targets = points
    pairs = list(zip(inputs.split(16), targets.split(16), strict=True))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    reached = []
    for data in (pairs, DataLoader(TensorDataset(*points), batch_size=16), [{"x": x, "labels": y} for x, y in pairs]):
        model = Named()
        run = quiet(model, data, num_epochs=2)
        reached.append(weights(model))
        assert len(run.epochs) == 3
    assert all(torch.equal(theta, reached[0]) for theta in reached)


def test_several_inputs(points: tuple[Tensor, Tensor]) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return self.inner(first + second)

    inputs, targets = points
    model, plain = Sum(), network()
    quiet(model, (inputs / 2, inputs / 2, targets), num_epochs=2, batch_size=7)
    quiet(plain, points, num_epochs=2, batch_size=7)
    assert torch.equal(weights(model), weights(plain))


def test_batch_loss_equals_loss_fn(points: tuple[Tensor, Tensor]) -> None:
    def summed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    one, other = network(), network()
    first = quiet(one, points, num_epochs=2, batch_size=7, evaluate={"all": points})
    second = quiet(other, points, num_epochs=2, batch_size=7, evaluate={"all": points}, batch_loss=summed)
    torch.testing.assert_close(weights(one), weights(other))
    torch.testing.assert_close(first.losses["all"], second.losses["all"])


def test_an_objective_is_an_evaluation_set(points: tuple[Tensor, Tensor]) -> None:
    model = network()
    loss = Objective(model, points)
    run = quiet(model, points, num_epochs=2, evaluate={"mine": loss, "theirs": points})
    assert torch.equal(run.losses["mine"], run.losses["theirs"])


def test_batch_norm_is_evaluated_with_its_statistics_of_the_time(points: tuple[Tensor, Tensor]) -> None:
    model = network(nn.BatchNorm1d(8))
    run = quiet(model, points, num_epochs=3, batch_size=7, evaluate={"all": points})
    model.eval()
    with torch.no_grad():
        assert float(run.losses["all"][-1]) == pytest.approx(
            float(F.cross_entropy(model(points[0]), points[1])), rel=1e-6
        )


# Optimizers and schedules ---------------------------------------------------------------------------------------------


def test_own_optimizers(points: tuple[Tensor, Tensor]) -> None:
    named, made, instance = network(), network(), network()
    quiet(named, points, num_epochs=2, lr=0.03)
    quiet(made, points, num_epochs=2, optimizer=functools.partial(torch.optim.Adam, lr=0.03))
    optimizer = torch.optim.Adam(instance.parameters(), lr=0.03)
    quiet(instance, points, num_epochs=2, optimizer=optimizer)
    assert torch.equal(weights(named), weights(made))
    assert torch.equal(weights(named), weights(instance))
    assert optimizer.param_groups[0]["lr"] == 0.03  # not what the schedule left
    assert optimizer.state  # an instance keeps its state, as in any loop


def test_an_optimizer_that_evaluates_several_times(points: tuple[Tensor, Tensor]) -> None:
    model = network()
    settings = {"optimizer": functools.partial(torch.optim.LBFGS, max_iter=5, line_search_fn="strong_wolfe")}
    run = quiet(model, points, num_epochs=3, batch_size=40, schedule="constant", evaluate={"all": points}, **settings)
    torch.testing.assert_close(run.losses["train"][2:], run.losses["all"][1:-1])
    assert run.losses["all"][-1] < 0.5 * run.losses["all"][0]


def test_a_schedule_of_ones_own(points: tuple[Tensor, Tensor]) -> None:
    seen: list[float] = []

    def halve(done: float) -> float:
        seen.append(done)
        return 0.5 ** math.floor(4 * done)

    run = quiet(network(), points, num_epochs=4, batch_size=20, lr=0.08, schedule=halve)
    assert run.lr.tolist() == pytest.approx([0.08, 0.08, 0.04, 0.02, 0.01])
    assert seen == pytest.approx([i / 8 for i in range(8)])


# What it leaves alone -------------------------------------------------------------------------------------------------


class Noisy(Plain):
    """Draws from all three global random states when read."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        x, y = self.items[i]
        return x + 0.01 * (float(torch.rand(())) + random.random() + float(np.random.rand())), y  # noqa: NPY002


def test_global_random_states_are_put_back_and_not_used(points: tuple[Tensor, Tensor]) -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    data = DataLoader(Noisy(*points), batch_size=7, shuffle=True)
    model, again, other = (network(nn.Dropout(0.5)) for _ in range(3))
    quiet(model, data, num_epochs=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        quiet(again, data, num_epochs=2, evaluate={"noisy": data, "clean": points})  # evaluating changes nothing
    quiet(other, data, num_epochs=2, seed=1)
    assert torch.equal(weights(model), weights(again))
    assert not torch.equal(weights(model), weights(other))


def test_flags_gradients_and_parameters_are_as_found(points: tuple[Tensor, Tensor]) -> None:
    model = network(nn.Dropout(0.1))
    model.eval()
    model[0].train()
    flags = [module.training for module in model.modules()]
    identities = [id(weight) for weight in model.parameters()]
    quiet(model, points, num_epochs=1, evaluate={"all": points})
    assert [module.training for module in model.modules()] == flags
    assert [id(weight) for weight in model.parameters()] == identities
    assert all(weight.grad is None for weight in model.parameters())


def test_frozen_and_unused_parameters_stay(points: tuple[Tensor, Tensor]) -> None:
    model = network()
    model[0].requires_grad_(False)
    model.unused = nn.Parameter(torch.ones(3))
    frozen = model[0].weight.clone()
    run = quiet(model, points, num_epochs=2, checkpoints=2)
    assert torch.equal(model[0].weight, frozen)
    assert torch.equal(model.unused, torch.ones(3))
    assert run.checkpoints.shape == (2, ParameterSpace(model).num_params)


def test_data_are_not_written_to(points: tuple[Tensor, Tensor]) -> None:
    before = [tensor.clone() for tensor in points]
    quiet(network(), points, num_epochs=2)
    assert all(map(torch.equal, points, before))


def test_kinks_are_no_matter_for_training(points: tuple[Tensor, Tensor]) -> None:
    quiet(network(nn.ReLU()), points, num_epochs=1, evaluate={"all": points})  # warnings are errors here


# Ends -----------------------------------------------------------------------------------------------------------------


class Fails:
    """Cross-entropy that raises, or returns NaN, at one call."""

    def __init__(self, at: int, error: BaseException | None):
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        loss = F.cross_entropy(outputs, targets)
        if self.calls != self.at:
            return loss
        if self.error is not None:
            raise self.error
        return loss * math.nan


def test_nan_raises_and_leaves_the_last_finite_epoch(points: tuple[Tensor, Tensor]) -> None:
    model, reference = network(nn.BatchNorm1d(8)), network(nn.BatchNorm1d(8))
    before = quiet(reference, points, num_epochs=2, batch_size=20, schedule="constant")
    with pytest.raises(NotConvergedError, match="lr made the loss or a weight NaN or infinite in epoch 3") as caught:
        quiet(model, points, num_epochs=5, batch_size=20, schedule="constant", loss_fn=Fails(6, None), checkpoints=1)
    run = caught.value.result
    assert "weights of epoch 2" in str(caught.value)
    assert run.epochs.tolist() == [0, 1, 2]
    assert torch.equal(run.losses["train"][1:], before.losses["train"][1:])
    assert torch.equal(run.checkpoints[-1], weights(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name])  # BatchNorm's statistics too
    assert all(module.training for module in model.modules())


def test_a_learning_rate_that_explodes(points: tuple[Tensor, Tensor]) -> None:
    model = nn.Linear(2, 1)
    theta = weights(model)
    with pytest.raises(NotConvergedError, match=r"in epoch 1 \(rate 1e\+30, loss nan\).*\n.*smaller lr") as caught:
        quiet(
            model,
            (points[0], points[0][:, :1]),
            num_epochs=5,
            lr=1e30,
            optimizer="sgd",
            loss_fn=F.mse_loss,
            batch_size=7,
        )
    assert caught.value.result.epochs.tolist() == [0]
    assert torch.equal(weights(model), theta)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk")])
def test_what_stops_it_half_way_is_raised_with_the_last_epoch_kept(
    points: tuple[Tensor, Tensor], error: BaseException
) -> None:
    model, reference = network(), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    quiet(reference, points, num_epochs=2, batch_size=20, schedule="constant")
    states = torch.get_rng_state()
    with pytest.raises(type(error)) as caught:
        quiet(
            model, points, num_epochs=5, batch_size=20, schedule="constant", optimizer=optimizer,
            loss_fn=Fails(6, error),
        )  # fmt: skip
    assert caught.value.__notes__ == ["lowhanging.train: the model holds the weights of the end of epoch 2."]
    assert torch.equal(weights(model), weights(reference))
    assert all(weight.grad is None for weight in model.parameters())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), states)
    assert optimizer.param_groups[0]["lr"] == 0.02


def test_no_epochs(points: tuple[Tensor, Tensor]) -> None:
    model = network()
    run = quiet(model, points, num_epochs=0, evaluate={"all": points}, checkpoints=3)
    assert torch.equal(weights(model), weights(network()))
    assert run.epochs.tolist() == [0]
    assert list(run.accuracies) == ["all"]
    assert run.checkpoint_epochs.tolist() == [0]


# The result -----------------------------------------------------------------------------------------------------------


def test_checkpoints(points: tuple[Tensor, Tensor]) -> None:
    for asked, expected in ((None, []), (2, [0, 2, 4, 5]), ([5, 1, 1], [1, 5]), (range(2), [0, 1])):
        run = quiet(network(), points, num_epochs=5, checkpoints=asked)
        assert run.checkpoint_epochs.tolist() == expected
        assert run.checkpoints.shape == (len(expected), 51)


def test_save_and_load(points: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    run = quiet(network(), points, num_epochs=2, evaluate={"all": points}, checkpoints=1)
    again = TrainingRun.load(run.save(tmp_path / "run"))
    assert repr(again) == repr(run)
    assert torch.equal(again.checkpoints, run.checkpoints)
    assert torch.equal(again.losses["all"], run.losses["all"])
    assert (again.seed, again.seconds) == (run.seed, run.seconds)


def test_repr_is_one_line(points: tuple[Tensor, Tensor]) -> None:
    run = quiet(network(), points, num_epochs=2, evaluate={"all": points}, checkpoints=1)
    assert repr(run).startswith("TrainingRun(2 epochs in ")
    assert f"all {100 * float(run.accuracies['all'][-1]):.3g} %; 3 checkpoints)" in repr(run)
    assert "\n" not in repr(run)
    regression = quiet(nn.Linear(2, 1), (points[0], points[0][:, :1]), num_epochs=1, loss_fn=F.mse_loss)
    assert "loss: train" in repr(regression)


def test_progress(points: tuple[Tensor, Tensor], capfd: pytest.CaptureFixture[str]) -> None:
    train(network(), points, num_epochs=2, progress=False)
    train(network(), points, num_epochs=2)  # quicker than two seconds: silent
    assert capfd.readouterr().err == ""
    train(network(), points, num_epochs=2, progress=True)
    assert "train: 100%" in capfd.readouterr().err


# What it refuses ------------------------------------------------------------------------------------------------------


def once() -> Iterator[tuple[Tensor, Tensor]]:
    yield torch.zeros(2, 2), torch.zeros(2).long()


X, Y = torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((X, Y[:3]), ValueError, "data is a tuple of shapes .*one common first dimension"),
        ((X[:0], Y[:0]), ValueError, "data has no batch in epoch 1"),
        ([], ValueError, "data has no batch in epoch 1"),
        ((X.log() * 0, Y), ValueError, "data holds 8 NaN or infinite entries"),
        ((X, Y + 1), ValueError, "targets range from 1 to 3, expected 0 to 2"),
        ((X, Y - 100), ValueError, "targets range from -100 .*\n.*batch_loss"),
        ((X, torch.zeros(4, 3)), ValueError, "targets have dtype torch.float32.*\n.*loss_fn=F.mse_loss"),
        ((torch.zeros(4, 5), Y), ValueError, "data has batches of shapes .* on which the model or its loss failed"),
        (once(), TypeError, r"data is a generator, readable once.*\n.*list\(\.\.\.\)"),
        (X, TypeError, "data is a Tensor, expected a DataLoader"),
        ("mnist", TypeError, "data is a str"),
        (None, TypeError, "data is a NoneType"),
        ([X, X], ValueError, r"expected \(inputs, targets\)"),
    ],
)
def test_bad_data(data: object, error: type[Exception], message: str) -> None:
    model = network()
    with pytest.raises(error, match=message):
        quiet(model, data, num_epochs=2)
    assert torch.equal(weights(model), weights(network()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_epochs": -1}, ValueError, "num_epochs is -1"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"lr": -0.1}, ValueError, "lr is -0.1"),
        ({"lr": math.nan}, ValueError, "lr is nan"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"optimizer": "adamw"}, ValueError, "optimizer is 'adamw', expected one of 'adam', 'sgd'"),
        ({"optimizer": 3}, TypeError, "optimizer is, or returned, a int"),
        ({"optimizer": lambda weights: None}, TypeError, "optimizer is, or returned, a NoneType"),
        (
            {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)},
            ValueError,
            "holds no parameter of this",
        ),
        ({"optimizer": torch.optim.SGD, "lr": 0.1}, ValueError, "lr is 0.1 beside an optimizer of your own"),
        ({"schedule": "linear"}, ValueError, "schedule is 'linear', expected one of 'cosine', 'constant'"),
        ({"schedule": lambda done: -1.0}, ValueError, "the schedule's value is -1"),
        ({"checkpoints": 0}, ValueError, "checkpoints is 0"),
        ({"checkpoints": [3]}, ValueError, "an entry of checkpoints is 3, expected an integer from 0 to 2"),
        ({"checkpoints": "all"}, TypeError, "checkpoints is 'all'"),
        ({"evaluate": (X, Y)}, TypeError, "evaluate is a tuple, expected a mapping"),
        ({"evaluate": {"train": (X, Y)}}, ValueError, "evaluate has the names .*other than"),
        ({"evaluate": {"": (X, Y)}}, ValueError, "evaluate has the names"),
        ({"evaluate": {"test": (X, Y + 1)}}, ValueError, "targets range from 1 to 3"),
        ({"device": "cuda:99"}, ValueError, "device is 'cuda:99'"),
        ({"loss_fn": F.mse_loss, "batch_loss": F.mse_loss}, ValueError, "loss_fn and batch_loss are both given"),
        ({"loss_fn": functools.partial(F.cross_entropy, reduction="none")}, ValueError, r"loss_fn gave shape \(4,\)"),
        ({"loss_fn": lambda outputs, targets: 1.0}, ValueError, "loss_fn gave float"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    model = network()
    with pytest.raises(error, match=message):
        quiet(model, (X, Y), **{"num_epochs": 2, **arguments})
    assert torch.equal(weights(model), weights(network()))
    assert all(module.training for module in model.modules())


def test_errors_about_an_evaluation_set_name_it() -> None:
    with pytest.raises(ValueError, match="targets range") as caught:
        quiet(network(), (X, Y), evaluate={"held out": (X, Y + 1)})
    assert "This is about evaluate['held out']." in caught.value.__notes__


def test_bad_models() -> None:
    with pytest.raises(TypeError, match=r"model is a function, expected a torch\.nn\.Module"):
        quiet(F.relu, (X, Y))
    with pytest.raises(ValueError, match="no trainable parameter"):
        quiet(network().requires_grad_(False), (X, Y))
    broken = network()
    with torch.no_grad():
        broken[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="holds 1 NaN"):
        quiet(broken, (X, Y))


# The picture ----------------------------------------------------------------------------------------------------------


def test_plot(points: tuple[Tensor, Tensor]) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from lowhanging.plots import training_run

    run = quiet(network(), points, num_epochs=3, evaluate={"all": points})
    style, (figure, ax) = dict(mpl.rcParams), plt.subplots()
    assert training_run(run, ax) is ax
    assert plt.get_fignums() == [figure.number]
    assert {line.get_label().split(" (")[0] for line in ax.lines} == {"train", "all"}
    curve = next(line for line in ax.lines if line.get_label().startswith("all"))
    np.testing.assert_array_equal(curve.get_xdata(), [0, 1, 2, 3])
    np.testing.assert_allclose(curve.get_ydata(), 100 * run.accuracies["all"].numpy())
    assert ax.get_xlabel().startswith("epoch")
    assert ax.get_ylabel() == "accuracy (%)"
    loss = training_run(run, quantity="loss")
    assert loss.figure is not figure
    assert loss.get_ylabel() == "mean loss"
    loss.figure.canvas.draw()
    assert dict(mpl.rcParams) == style
    plt.close("all")


def test_plot_gives_a_data_set_the_colour_that_it_has_on_slices(points: tuple[Tensor, Tensor]) -> None:
    import matplotlib.pyplot as plt

    from lowhanging.plots import line_slice, training_run

    model = network()
    run = quiet(model, points, num_epochs=1, evaluate={"one": points, "two": points})
    losses = {name: lh.Objective(model, points) for name in ("one", "two")}
    scan = lh.line_slice(losses, lh.random_direction(losses["one"], seed=0), num=3)
    found = []
    for ax in (training_run(run), line_slice(scan)):
        lines = {line.get_label().split(" (")[0]: line.get_color() for line in ax.lines}
        found.append([lines["one"], lines["two"]])
        plt.close(ax.figure)
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_plot_of_a_run_without_accuracies(points: tuple[Tensor, Tensor]) -> None:
    import matplotlib.pyplot as plt

    from lowhanging.plots import training_run

    run = quiet(nn.Linear(2, 1), (points[0], points[0][:, :1]), num_epochs=1, loss_fn=F.mse_loss)
    with pytest.raises(ValueError, match=r"quantity is 'accuracy' for a TrainingRun without class targets.*\n.*loss"):
        training_run(run, quantity="accuracy")
    ax = training_run(run)  # unasked, what there is
    assert ax.get_ylabel() == "mean loss"
    np.testing.assert_allclose(ax.lines[0].get_ydata(), run.losses["train"].numpy())
    plt.close(ax.figure)
    with pytest.raises(ValueError, match="quantity is 'error'"):
        training_run(run, quantity="error")  # type: ignore[arg-type]


def test_a_tensor_data_set_that_transforms_is_read_item_by_item() -> None:
    """As `Objective` reads it: both see what `__getitem__` returns."""

    class Fives(torch.utils.data.TensorDataset):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            inputs, targets = super().__getitem__(index)
            return torch.full_like(inputs, 5.0), targets

    seen = []
    model = torch.nn.Linear(3, 2)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    lh.train(model, Fives(torch.zeros(10, 3), torch.arange(10) % 2), num_epochs=1, batch_size=5, progress=False)
    assert all(bool((inputs == 5.0).all()) for inputs in seen)
