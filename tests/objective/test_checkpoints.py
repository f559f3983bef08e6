"""Buffers that training moves (BatchNorm's statistics) go with the point that they belong to.

Oracles: the networks themselves in plain torch, evaluated where they were trained; a recalibration loop of plain torch
(`torch.optim.swa_utils.update_bn`); means of buffers; and, where nothing moves, the numbers without any of this.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowhanging as lh
from lowhanging.objective.protocol import around
from own_loss import OwnLoss

torch.manual_seed(0)
X = 3 * torch.randn(203, 4) + 2
Y = (X[:, 0] * X[:, 1] > 4).long()
DATA = (X, Y)
LOADER = DataLoader(TensorDataset(X, Y), batch_size=64)  # 64 + 64 + 64 + 11
IMAGES = torch.randn(53, 2, 6, 6) + torch.linspace(-1, 1, 6)
CLASSES = (IMAGES.mean((1, 2, 3)) > 0).long() + (IMAGES[:, 0, 0, 0] > 1).long()


class Centred(nn.Module):
    """A layer with a buffer of its own that training moves: the running mean of its inputs, and a constant one."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean(0), 0.2)
        return (x - self.mean) * self.scale


class Residual(nn.Module):
    """A small ResNet with BatchNorm and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.inner, self.inner_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.drop, self.out = nn.Dropout(0.2), nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.drop(F.silu(self.norm(self.stem(image))))  # before a norm, whose statistics it would change
        x = x + F.silu(self.inner_norm(self.inner(x)))
        return self.out(x.mean((2, 3)))


def normed(*middle: nn.Module, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), *(middle or [nn.BatchNorm1d(8)]), nn.Tanh(), nn.Linear(8, 2))


def residual(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return Residual()


def trained(model: nn.Module, data: Any = DATA, *, epochs: int = 8, **options: Any) -> nn.Module:
    lh.train(model, data, num_epochs=epochs, lr=0.01, progress=False, **options)
    return model.eval()


def own(model: nn.Module, data: Any = DATA) -> float:
    """The network's loss, by plain torch."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return float(F.cross_entropy(model(data[0]).double(), data[1]))


@pytest.fixture(scope="module", params=["BatchNorm", "own layer", "ResNet"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Any]:
    """Two networks of one kind, trained from different weights, and their data."""
    if request.param == "ResNet":
        data = (IMAGES, CLASSES)
        return trained(residual(1), data), trained(residual(2), data), data
    make = (lambda: nn.BatchNorm1d(8)) if request.param == "BatchNorm" else (lambda: Centred(8))
    return trained(normed(make(), seed=1)), trained(normed(make(), seed=2)), DATA


@pytest.fixture(scope="module")
def norms() -> tuple[nn.Module, nn.Module]:
    return trained(normed(seed=1)), trained(normed(seed=2))


# A point brings its buffers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["module", "state_dict", "checkpoint", "objective"])
def test_a_loss_at_another_network_is_that_networks(form: str, pair: tuple[nn.Module, nn.Module, Any]) -> None:
    a, b, data = pair
    loss = lh.Objective(a, data)
    forms = {
        "module": lambda: b,
        "state_dict": b.state_dict,
        "checkpoint": lambda: loss.as_checkpoint(b),
        "objective": lambda: lh.Objective(b, data),
    }
    there, reference = loss.at(forms[form]()), lh.Objective(b, data)
    assert float(there(there.theta0)) == pytest.approx(own(b, data), rel=1e-6)
    assert torch.equal(there(there.theta0), reference(reference.theta0))
    v = torch.randn(loss.num_params, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(there.hvp(there.theta0, v), reference.hvp(reference.theta0, v))
    torch.testing.assert_close(there.gradient(there.theta0), reference.gradient(reference.theta0))
    values, _ = there.evaluate_many(torch.stack([there.theta0, reference.theta0]))
    torch.testing.assert_close(values, reference(reference.theta0).expand(2), rtol=1e-5, atol=0)
    model = there.model_at(there.theta0)
    assert own(model, data) == pytest.approx(own(b, data), rel=1e-6)
    double = there.double()
    assert float(double(double.theta0)) == pytest.approx(own(copy.deepcopy(b).double(), (data[0].double(), data[1])))
    names = [loss.space.names[0]]
    part, other = there.restricted(names), reference.restricted(names)
    assert torch.equal(part(part.theta0), other(other.theta0))
    wide = there.theta0.double()
    assert float(there.in_double()(wide)) == pytest.approx(float(double(double.theta0)))
    assert float(loss(loss.theta0)) == pytest.approx(own(a, data), rel=1e-6)  # which itself has not moved
    assert there.buffers == "own"


def test_the_recipe_after_training() -> None:
    model = normed()
    loss = lh.Objective(model, DATA)
    untrained = own(model)
    trained(model)
    moved = loss.at(model)
    assert float(moved(moved.theta0)) == pytest.approx(own(model), rel=1e-6)
    assert float(loss(loss.theta0)) == pytest.approx(untrained, rel=1e-6)
    with pytest.raises(ValueError, match="theta is weights alone") as error:
        loss.at(loss.space.flatten(model))
    for part in ("'1.running_mean'", "expected a point with its buffers", "run.checkpoint(i)", "buffers='fixed'"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="theta is weights alone"):
        loss.model_at(loss.space.flatten(model))
    with pytest.raises(ValueError, match="theta is weights alone"):
        lh.hessian(loss, loss.space.flatten(model))
    fixed = loss.at(loss.space.flatten(model), buffers="fixed")
    assert "buffers='fixed'" in repr(fixed) and "buffers" not in repr(loss)
    assert torch.equal(fixed(fixed.theta0), loss(fixed.theta0))
    old = loss.model_at(fixed.theta0, buffers="fixed")
    assert own(old) == pytest.approx(float(fixed(fixed.theta0)), rel=1e-6)
    assert torch.equal(loss.at(loss.theta0).theta0, loss.theta0)  # where it is, nothing is asked


def test_the_hessian_at_a_network_has_its_buffers(norms: tuple[nn.Module, nn.Module]) -> None:
    a, b = norms
    H, reference = lh.hessian(lh.Objective(a, DATA), b), lh.hessian(lh.Objective(b, DATA))
    v = torch.ones(H.shape[0])
    torch.testing.assert_close(H @ v, reference @ v)
    G, other = lh.gauss_newton(lh.Objective(a, DATA), b.state_dict()), lh.gauss_newton(lh.Objective(b, DATA))
    torch.testing.assert_close(G @ v, other @ v)
    part = lh.hessian(lh.Objective(a, DATA), b, parameters="0.*")
    w = torch.ones(part.shape[0])
    torch.testing.assert_close(part @ w, lh.hessian(lh.Objective(b, DATA), parameters="0.*") @ w)


def test_anchored_losses_go_along(norms: tuple[nn.Module, nn.Module]) -> None:
    a, b = norms
    loss = lh.Objective(a, DATA)
    anchored = lh.objective.AnchoredObjective(loss, loss.theta0, 0.1)
    there = anchored.at(b)
    penalty = 0.05 * float((there.theta0 - loss.theta0).double().square().sum())
    assert float(there(there.theta0)) == pytest.approx(own(b) + penalty, rel=1e-6)
    assert there.buffers == "own" and anchored.restricted(["0.bias"]).buffers == "own"
    with pytest.raises(ValueError, match="theta is weights alone"):
        anchored.at(loss.theta0 + 1)
    assert anchored.at(loss.theta0 + 1, buffers="fixed").buffers == "fixed"


def test_points_of_other_models_are_refused_by_name(norms: tuple[nn.Module, nn.Module]) -> None:
    a, _ = norms
    loss = lh.Objective(a, DATA)
    state = a.state_dict()
    cases: list[tuple[Any, str]] = [
        ({f"module.{name}": tensor for name, tensor in state.items()}, "adds \\['module.0.weight'"),
        ({name: tensor for name, tensor in state.items() if name != "1.running_var"}, "lacks the buffers"),
        ({name: tensor for name, tensor in state.items() if name != "0.bias"}, "lacks \\['0.bias'\\]"),
        ({**state, "1.running_var": torch.ones(3)}, "'1.running_var' of shape \\(3,\\)"),
        ({**state, "0.bias": "a word"}, "holds a str under '0.bias'"),
        (normed(Centred(8)), "adds \\['1.mean'"),
        (lh.objective.Checkpoint(loss.theta0, {"2.mean": torch.ones(2)}), "has a buffer '2.mean'"),
    ]
    for point, message in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            loss.at(point)
    alone = {name: tensor for name, tensor in state.items() if name in loss.space.names}
    assert torch.equal(loss.at(alone).theta0, loss.theta0)  # weights alone, but those that it has
    with pytest.raises(ValueError, match="theta is weights alone"):
        loss.at({name: tensor + 1 for name, tensor in alone.items()})
    counted = {name: tensor for name, tensor in state.items() if "num_batches" not in name}  # of an older torch
    assert loss.at(counted).buffers == "own"


def test_frozen_and_tied_parameters() -> None:
    def tied(seed: int) -> nn.Module:
        model = nn.Sequential(
            normed(seed=seed)[0], nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        )
        model[3].weight = model[2].weight
        model[4].bias.requires_grad_(False).zero_()
        return model

    a, b = trained(tied(1)), trained(tied(2))
    loss = lh.Objective(a, DATA)
    for point in (b, b.state_dict()):
        there = loss.at(point)
        assert float(there(there.theta0)) == pytest.approx(own(b), rel=1e-6)
    torn = b.state_dict()
    torn["3.weight"] = torn["3.weight"] + 1
    with pytest.raises(ValueError, match=r"different '2\.weight' and '3\.weight'"):
        loss.at(torn)
    shifted = copy.deepcopy(b)
    shifted[4].bias.add_(1)
    with pytest.raises(ValueError, match=r"another frozen parameter '4\.bias'"):
        loss.at(shifted)


def test_constant_buffers_come_along_too() -> None:
    class Random(nn.Module):
        def __init__(self, seed: int):
            super().__init__()
            self.register_buffer("features", torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)))
            self.out = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(x @ self.features))

    torch.manual_seed(0)
    a, b = Random(1), Random(2)
    loss = lh.Objective(a, DATA)
    there = loss.at(b)
    assert float(there(there.theta0)) == pytest.approx(own(b), rel=1e-6)
    assert loss.buffers == "none" and float(loss(loss.at(there.theta0).theta0)) > 0  # nothing moves, nothing is asked
    with pytest.raises(ValueError, match="buffers is missing"):
        lh.path_slice({"loss": loss}, (a, b), num=3)
    with pytest.raises(ValueError, match="which training does not move"):
        lh.path_slice({"loss": loss}, (a, b), num=3, buffers="recalibrate")
    path = lh.path_slice({"loss": loss}, (a, b), num=3, buffers="interpolate")
    mean = copy.deepcopy(b)
    with torch.no_grad():
        for name, tensor in mean.state_dict().items():
            tensor.lerp_(a.state_dict()[name], 0.5)
    assert path.losses["loss"].tolist() == pytest.approx([own(a), own(mean), own(b)], rel=1e-5)


def test_what_moves_is_what_training_writes() -> None:
    assert lh.Objective(normed(), DATA).moving_names == ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert lh.Objective(normed(Centred(8)), DATA).moving_names == ("1.mean",)
    assert lh.Objective(normed(nn.Dropout()), DATA).moving_names == ()
    parametrized = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    names = lh.Objective(normed(parametrized), DATA).moving_names
    assert {name.rpartition(".")[2] for name in names} == {"_u", "_v"}
    loss = lh.Objective(normed(parametrized), DATA)
    with pytest.raises(ValueError, match="no way to start anew"):
        loss.at(loss.theta0 + 1, buffers="recalibrate")

    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(False)

    loss = lh.Objective(normed(Frozen(8)), DATA)
    assert loss.moving_names == () and loss.at(loss.theta0 + 1).buffers == "none"
    instance = nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True), nn.Flatten(), nn.Linear(72, 3))
    assert "0.running_mean" in lh.Objective(instance, (IMAGES, CLASSES)).moving_names


def test_looking_for_what_moves_leaves_no_trace() -> None:
    model = normed(Centred(8), nn.Dropout())
    loss, state = lh.Objective(model, DATA), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.get_rng_state()
    first = loss(loss.theta0)
    assert loss.moving_names == ("1.mean",)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(loss(loss.theta0), first)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


# Recalibration --------------------------------------------------------------------------------------------------------


def plain_recalibration(model: nn.Module, loader: Any) -> nn.Module:
    """By torch's own loop; dropout off."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    torch.optim.swa_utils.update_bn(loader, model)
    return model.eval()


@pytest.mark.parametrize("kind", ["flat", "images"])
def test_recalibrated_statistics_are_those_of_a_plain_loop(kind: str) -> None:
    data = DATA if kind == "flat" else (IMAGES, CLASSES)
    a, b = (normed(seed=s) if kind == "flat" else residual(s) for s in (1, 2))
    trained(a, data)
    ragged = DataLoader(TensorDataset(*data), batch_size=20)
    loss = lh.Objective(a, data)
    expected = plain_recalibration(b, ragged)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    state = {name: tensor.clone() for name, tensor in a.state_dict().items()}
    there = loss.at(b, buffers="recalibrate", recalibrate_on=ragged)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a.state_dict()[name], tensor) for name, tensor in state.items())
    found = dict(there.model_at(there.theta0).named_buffers())
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(found[name], buffer)
    assert float(there(there.theta0)) == pytest.approx(own(expected, data), rel=1e-6)
    assert there.buffers == "recalibrate" and "buffers='recalibrate'" in repr(there)
    whole = loss.at(loss.space.flatten(b), buffers="recalibrate")  # the loss's own: one batch
    expected = plain_recalibration(b, [(data[0],)])
    assert float(whole(whole.theta0)) == pytest.approx(own(expected, data), rel=1e-5)
    same = loss.at(b, buffers="recalibrate", recalibrate_on=lh.Objective(b, data))
    assert torch.equal(same(same.theta0), whole(whole.theta0))


def test_recalibration_with_a_batch_loss(norms: tuple[nn.Module, nn.Module]) -> None:
    def summed(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), len(batch["y"])

    a, b = norms
    records = [{"x": x, "y": y} for x, y in LOADER]
    loss = lh.Objective(a, records, batch_loss=summed)
    there = loss.at(b, buffers="recalibrate", recalibrate_on=records)
    assert float(there(there.theta0)) == pytest.approx(own(plain_recalibration(b, LOADER)), rel=1e-6)


def test_recalibration_is_refused_where_it_can_not_be(norms: tuple[nn.Module, nn.Module]) -> None:
    a, b = norms
    loss = lh.Objective(a, DATA)
    ones = DataLoader(TensorDataset(X[:3], Y[:3]), batch_size=1)
    with pytest.raises(ValueError, match="recalibrate_on has a batch of 1 on which the model fails in training mode"):
        loss.at(b, buffers="recalibrate", recalibrate_on=ones)
    with pytest.raises(ValueError, match="recalibrate_on is given, and buffers is 'fixed'"):
        loss.at(b, buffers="fixed", recalibrate_on=LOADER)
    with pytest.raises(ValueError, match="buffers is 'interpolate', expected one of 'fixed', 'recalibrate'"):
        loss.at(b, buffers="interpolate")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="data is an int") as error:
        loss.at(b, buffers="recalibrate", recalibrate_on=3)
    assert error.value.__notes__ == ["This is about recalibrate_on."]


# Paths ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["interpolate", "fixed"])
def test_a_path_ends_at_the_networks_own_losses(word: Any, pair: tuple[nn.Module, nn.Module, Any]) -> None:
    a, b, data = pair
    losses = {"loss": lh.Objective(a, data), "half": lh.Objective(a, (data[0][:31], data[1][:31]))}
    path = lh.path_slice(losses, (a, b.state_dict()), num=5, buffers=word)
    for name, part in (("loss", data), ("half", (data[0][:31], data[1][:31]))):
        found = path.losses[name].tolist()
        assert [found[0], found[-1]] == pytest.approx([own(a, part), own(b, part)], rel=1e-6)
    for i, t in ((1, 0.25), (2, 0.5)):
        between = copy.deepcopy(a)
        with torch.no_grad():
            for name, weight in between.named_parameters():
                weight.lerp_(dict(b.named_parameters())[name], t)
            for name, buffer in between.named_buffers():
                if word == "interpolate" and buffer.is_floating_point():
                    buffer.lerp_(dict(b.named_buffers())[name], t)
        assert float(path.losses["loss"][i]) == pytest.approx(own(between, data), rel=1e-5)
    assert path.buffers == word and repr(path).endswith(f"buffers: {word})")


def test_a_recalibrated_path(norms: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    a, b = norms
    losses = {"loss": lh.Objective(a, DATA)}
    path = lh.path_slice(losses, (a, b), num=5, buffers="recalibrate", recalibrate_on=LOADER)
    middle = copy.deepcopy(a)
    with torch.no_grad():
        for name, weight in middle.named_parameters():
            weight.lerp_(dict(b.named_parameters())[name], 0.25)
    expected = plain_recalibration(middle, LOADER)
    assert float(path.losses["loss"][1]) == pytest.approx(own(expected), rel=1e-5)
    assert float(path.losses["loss"][-1]) == pytest.approx(own(b), rel=1e-6)  # exactly as it came
    thetas = torch.stack([losses["loss"].space.flatten(model) for model in (a, b)])
    plain = lh.path_slice(losses, thetas, num=5, buffers="recalibrate", recalibrate_on=LOADER)
    assert float(plain.losses["loss"][-1]) == pytest.approx(own(plain_recalibration(b, LOADER)), rel=1e-5)
    assert torch.equal(plain.losses["loss"][1:4], path.losses["loss"][1:4])
    assert plain.buffers == "recalibrate"
    path.save(tmp_path / "path.npz")
    assert lh.landscape.PathSlice.load(tmp_path / "path.npz").buffers == "recalibrate"


def test_a_path_asks(norms: tuple[nn.Module, nn.Module]) -> None:
    a, b = norms
    loss = lh.Objective(a, DATA)
    thetas = [loss.space.flatten(model) for model in (a, b)]
    with pytest.raises(ValueError, match="points\\[0\\] is weights alone, and training moves the model's buffers"):
        lh.path_slice({"loss": loss}, thetas, num=5)
    with pytest.raises(ValueError, match="buffers is missing, and networks with other buffers") as error:
        lh.path_slice({"loss": loss}, (a, b), num=5)
    assert "expected 'interpolate', 'recalibrate' or 'fixed'" in str(error.value)
    assert "recalibrate_on=loader" in str(error.value)
    with pytest.raises(ValueError, match="buffers is 'interpolate', and points\\[1\\] is weights alone"):
        lh.path_slice({"loss": loss}, (a, thetas[1]), num=5, buffers="interpolate")
    with pytest.raises(ValueError, match="engine is 'vmap', and the buffers differ"):
        lh.path_slice({"loss": loss}, (a, b), num=5, buffers="interpolate", engine="vmap")
    with pytest.raises(ValueError, match="recalibrate_on is given, and buffers is None"):
        lh.path_slice({"loss": loss}, (a, b), num=2, recalibrate_on=DATA)
    knots = lh.path_slice({"loss": loss}, (a, b, a), num=3)  # nothing between them, nothing asked
    assert knots.losses["loss"].tolist() == pytest.approx([own(a), own(b), own(a)], rel=1e-6)
    assert knots.buffers == "own"
    fixed = lh.path_slice({"loss": loss}, thetas, num=5, buffers="fixed")
    assert float(fixed.losses["loss"][-1]) == float(loss(thetas[1]))
    for points in (a, a.state_dict(), [a, 3], "ab"):
        with pytest.raises(TypeError, match="points is"):
            lh.path_slice({"loss": loss}, points, num=5)


def test_a_path_through_minima_and_functions(norms: tuple[nn.Module, nn.Module]) -> None:
    a, b = (copy.deepcopy(model).double() for model in norms)
    data = (X.double(), Y)
    first, second = (lh.polish(lh.Objective(m, data), anchor=0.1, max_drift=9.0, progress=False) for m in (a, b))
    loss, norm = lh.Objective(a, data), lh.FunctionObjective(lambda t: t.square().sum(), first.theta)
    anchored = lh.objective.AnchoredObjective(norm, norm.theta0, 2.0)
    losses = {"loss": loss, "norm": norm, "anchored": anchored}
    path = lh.path_slice(losses, (first, second), num=3, buffers="interpolate")
    assert float(path.losses["anchored"][2]) == pytest.approx(float(anchored(second.theta)))
    assert path.losses["loss"][[0, 2]].tolist() == pytest.approx([first.loss, second.loss], rel=1e-10)
    assert float(path.losses["norm"][2]) == pytest.approx(float(second.theta.square().sum()))
    there = loss.at(second)
    assert float(there(there.theta0)) == pytest.approx(second.loss, rel=1e-10)


def test_a_resume_file_belongs_to_its_buffers(norms: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    a, b = norms
    losses, file = {"loss": lh.Objective(a, DATA)}, tmp_path / "path.npz"
    path = lh.path_slice(losses, (a, b), num=5, buffers="interpolate", resume=file)
    again = lh.path_slice(losses, (a, b), num=5, buffers="interpolate", resume=file)
    assert torch.equal(again.losses["loss"], path.losses["loss"])
    other = copy.deepcopy(b)
    other[1].running_mean.add_(1)
    for points, word in (((a, b), "fixed"), ((a, other), "interpolate"), ((a, b), "recalibrate")):
        with pytest.raises(ValueError, match="another buffers"):
            lh.path_slice(losses, points, num=5, buffers=word, resume=file)


# Lines and planes -----------------------------------------------------------------------------------------------------


def test_lines_around_a_network(norms: tuple[nn.Module, nn.Module]) -> None:
    a, b = norms
    loss = lh.Objective(a, DATA)
    losses, direction = {"loss": loss}, torch.ones(loss.num_params)
    line = lh.line_slice(losses, direction, extent=0.1, num=3)
    assert float(line.losses["loss"][1]) == float(loss(loss.theta0)) and line.buffers == "fixed"
    for center in (b, b.state_dict(), loss.as_checkpoint(b)):
        there = lh.line_slice(losses, direction, extent=0.1, num=3, center=center)
        assert float(there.losses["loss"][1]) == pytest.approx(own(b), rel=1e-6)
        assert there.buffers == "own" and repr(there).endswith("; buffers: own)")
        reference = lh.Objective(b, DATA)
        expected = reference(reference.theta0 + 0.1 * direction)
        assert float(there.losses["loss"][2]) == pytest.approx(float(expected), rel=1e-6)
    theta = loss.space.flatten(b)
    with pytest.raises(ValueError, match="center is weights alone"):
        lh.line_slice(losses, direction, extent=0.1, num=3, center=theta)
    assert lh.line_slice(losses, direction, extent=0.1, num=3, center=loss.theta0).buffers == "fixed"
    fixed = lh.line_slice(losses, "filter", extent=0.1, num=3, center=theta, buffers="fixed")
    assert float(fixed.losses["loss"][1]) == float(loss(theta))
    moved = lh.line_slice(losses, direction, extent=0.1, num=3, center=b, buffers="recalibrate", recalibrate_on=LOADER)
    assert float(moved.losses["loss"][1]) == pytest.approx(own(plain_recalibration(b, LOADER)), rel=1e-5)
    assert moved.buffers == "recalibrate"
    with pytest.raises(ValueError, match="could be negative"):
        lh.line_slice(losses, direction, center=b, buffers="interpolate")  # type: ignore[arg-type]


def test_planes_through_networks(norms: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    a, b = norms
    c = trained(normed(seed=3))
    loss = lh.Objective(a, DATA)
    losses = {"loss": loss}
    plane = lh.plane_through(a, b.state_dict(), loss.as_checkpoint(c))
    thetas = [loss.space.flatten(model) for model in (a, b, c)]
    same = lh.plane_through(*thetas)
    assert torch.equal(plane.directions, same.directions) and torch.equal(plane.center, same.center)
    states = [model.state_dict() for model in (a, b, c)]
    with pytest.raises(ValueError, match="theta_a is a state_dict, in which weights and buffers look alike"):
        lh.plane_through(*states)
    for model in (a, loss):
        assert torch.equal(lh.plane_through(*states, model=model).directions, same.directions)
    with pytest.raises(ValueError, match="directions is weights alone"):
        lh.plane_slice(losses, plane, num=3)
    low, high = plane.extent(0.0)
    drawn = lh.plane_slice(losses, plane, extent=(low, high), num=3, buffers="recalibrate", recalibrate_on=LOADER)
    corner = (
        next(i for i in range(3) if float(drawn.alphas[i]) == 0),
        next(j for j in range(3) if float(drawn.betas[j]) == 0),
    )
    assert float(drawn.losses["loss"][corner]) == pytest.approx(own(plain_recalibration(a, LOADER)), rel=1e-5)
    assert drawn.buffers == "recalibrate" and drawn.center_buffers == {}
    above = lh.plane_trajectory(drawn, (a, b, c), losses=losses, recalibrate_on=LOADER)
    assert above.losses["loss"].tolist() == pytest.approx([own(a), own(b), own(c)], rel=1e-6)
    expected = [own(plain_recalibration(model, LOADER)) for model in (a, b, c)]  # all three lie on the plane
    assert above.plane_losses["loss"].tolist() == pytest.approx(expected, rel=1e-4)
    assert above.buffers == "own"
    drawn.save(tmp_path / "plane.npz")
    assert lh.landscape.PlaneSlice.load(tmp_path / "plane.npz").buffers == "recalibrate"


def test_a_trajectory_over_a_plane() -> None:
    model = normed()
    run = lh.train(model, DATA, num_epochs=4, lr=0.02, checkpoints=1, evaluate={"all": DATA}, progress=False)
    loss = lh.Objective(model, DATA)
    principal = lh.principal_directions(run)
    assert torch.equal(principal.directions, lh.principal_directions(run.checkpoints).directions)
    points = [run.checkpoint(i) for i in range(5)]
    assert torch.equal(principal.directions, lh.principal_directions(points).directions)
    models = [loss.at(point).model_at(point) for point in points]
    assert torch.equal(principal.directions, lh.principal_directions(models).directions)
    states = [other.state_dict() for other in models]
    assert torch.equal(principal.directions, lh.principal_directions(states, model=loss).directions)
    assert torch.equal(lh.difference_direction(points[0], models[4]), lh.difference_direction(*run.checkpoints[[0, 4]]))
    plane = lh.plane_slice({"all": loss}, principal, extent=1.0, num=3)
    assert plane.buffers == "fixed" and set(plane.center_buffers) == set(loss.moving_names)
    before = lh.Objective(normed(), DATA)  # with the buffers of another network: the plane's are used on the plane
    for losses in ({"all": loss}, {"all": before}):
        seen = lh.plane_trajectory(plane, run, losses=losses)
        torch.testing.assert_close(seen.losses["all"], run.losses["all"], rtol=1e-6, atol=0)
        assert float(seen.plane_losses["all"][-1]) == float(loss(loss.theta0))
        assert seen.buffers == "own" and "buffers: own" in repr(seen)
    with pytest.raises(ValueError, match="checkpoints\\[0\\] is weights alone"):
        lh.plane_trajectory(plane, run.checkpoints, losses={"all": loss})
    fixed = lh.plane_trajectory(plane, run.checkpoints, losses={"all": loss}, buffers="fixed")
    assert float(fixed.losses["all"][1]) == float(loss(run.checkpoints[1])) and fixed.buffers == "fixed"


# Training -------------------------------------------------------------------------------------------------------------


def along_training(
    model: nn.Module, data: Any, epochs: int, **options: Any
) -> tuple[lh.training.TrainingRun, list[float]]:
    """A run, and the loss of the network at each epoch by plain torch: trained anew up to there."""
    start, curve = copy.deepcopy(model), []
    for epoch in range(epochs + 1):
        other = copy.deepcopy(start)
        # With a constant rate, a shorter run is the beginning of a longer one.
        lh.train(other, data, num_epochs=epoch, lr=0.02, schedule="constant", progress=False)
        curve.append(own(other, data))
    run = lh.train(model, data, num_epochs=epochs, lr=0.02, schedule="constant", progress=False, **options)
    return run, curve


@pytest.mark.parametrize("kind", ["BatchNorm", "own layer", "ResNet"])
def test_checkpoints_are_the_networks_of_their_epochs(kind: str, tmp_path: Path) -> None:
    data = (IMAGES, CLASSES) if kind == "ResNet" else DATA
    model = residual() if kind == "ResNet" else normed(Centred(8) if kind == "own layer" else nn.BatchNorm1d(8))
    stale = lh.Objective(model, data)  # made before training: it goes along all the same
    run, curve = along_training(model, data, 3, checkpoints=1, evaluate={"set": data, "objective": stale})
    assert run.losses["set"].tolist() == pytest.approx(curve, rel=1e-6)
    assert run.losses["objective"].tolist() == pytest.approx(curve, rel=1e-6)
    run.save(tmp_path / "run.npz")
    for kept in (run, lh.training.TrainingRun.load(tmp_path / "run.npz")):
        losses = [loss(loss.theta0) for loss in (stale.at(kept.checkpoint(i)) for i in range(4))]
        assert [float(value) for value in losses] == pytest.approx(curve, rel=1e-6)
        path = lh.path_slice({"loss": stale}, kept, num=4)
        assert path.losses["loss"].tolist() == pytest.approx(curve, rel=1e-6)
    moving = {"own layer": {"1.mean"}}.get(kind, {name for name, _ in model.named_buffers()})
    assert set(run.checkpoint_buffers) == moving
    assert repr(run.checkpoint(-1)).startswith("Checkpoint(")
    run.checkpoint(0).save(tmp_path / "first.npz")
    first = stale.at(lh.objective.Checkpoint.load(tmp_path / "first.npz"))
    assert float(first(first.theta0)) == pytest.approx(curve[0], rel=1e-6)
    with pytest.raises(ValueError, match="i is 4, expected an integer from -4 to 3"):
        run.checkpoint(4)


def test_few_or_no_checkpoints() -> None:
    model = normed()
    loss = lh.Objective(model, DATA)
    run = lh.train(model, DATA, num_epochs=2, checkpoints=[2], progress=False)
    assert float(loss.at(run.checkpoint())(loss.space.flatten(model))) == pytest.approx(own(model), rel=1e-6)
    none = lh.train(model, DATA, num_epochs=1, progress=False)
    assert none.checkpoint_buffers == {}
    with pytest.raises(ValueError, match="i is -1"):
        none.checkpoint()
    with pytest.raises(ValueError, match="points is a run without checkpoints"):
        lh.path_slice({"loss": loss}, none)
    still = lh.train(normed(Centred(8)), DATA, num_epochs=0, checkpoints=1, progress=False)
    assert set(still.checkpoint_buffers) == {"1.mean", "1.scale"}
    bare = lh.train(normed(nn.Sigmoid()), DATA, num_epochs=1, checkpoints=1, progress=False)
    assert bare.checkpoint_buffers == {} and bare.checkpoint(0).buffers == {}


def test_a_resumed_training_keeps_the_buffers_of_its_checkpoints(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stopping(share: float) -> float:
        if share > 0.5 and is_interrupted:
            raise StopError
        return 1.0

    options: dict[str, Any] = {
        "num_epochs": 4,
        "lr": 0.02,
        "checkpoints": 1,
        "evaluate": {"all": DATA},
        "progress": False,
    }
    options |= {"schedule": stopping, "resume": tmp_path / "run.npz"}
    model, is_interrupted = normed(), True
    with pytest.raises(StopError):
        lh.train(model, DATA, **options)
    is_interrupted = False
    resumed = lh.train(model, DATA, **options)
    whole = lh.train(normed(), DATA, **{**options, "resume": None})
    assert torch.equal(resumed.checkpoints, whole.checkpoints)
    assert set(resumed.checkpoint_buffers) == set(whole.checkpoint_buffers) == {
        "1.running_mean", "1.running_var", "1.num_batches_tracked"
    }  # fmt: skip
    for name, rows in whole.checkpoint_buffers.items():
        assert torch.equal(resumed.checkpoint_buffers[name], rows)
    assert torch.equal(resumed.losses["all"], whole.losses["all"])


def test_a_stack_evaluates_with_the_buffers_that_it_trains_with() -> None:
    def make(seed: int) -> nn.Module:
        model = normed(seed=seed).eval()  # statistics that stay: in training mode it is refused
        model[1].running_mean.fill_(0.3)
        return model

    run = lh.train_stack(make, DATA, range(2), num_steps=3, evaluate={"all": DATA}, progress=False)
    assert float(run.losses["all"][1, -1]) == pytest.approx(own(run.model(1)), rel=1e-5)
    with pytest.raises(ValueError, match="BatchNorm1d"):
        lh.train_stack(lambda seed: normed(seed=seed).train(), DATA, range(2), num_steps=3, progress=False)


# Tools around one network ---------------------------------------------------------------------------------------------


def test_minima_canyons_and_steering_hold_buffers_fixed(norms: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    model = copy.deepcopy(norms[0]).double()
    data = (X.double(), Y)
    loss = lh.Objective(model, data)
    minimum = lh.polish(loss, anchor=0.1, max_drift=9.0, progress=False, resume=tmp_path / "polish.npz")
    frozen = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, weight in frozen.named_parameters():
            weight.copy_(loss.space.unflatten(minimum.theta)[name])
    assert minimum.loss == pytest.approx(own(frozen, data), rel=1e-10)
    minimum.save(tmp_path / "minimum.npz")
    other = lh.Objective(
        copy.deepcopy(norms[1]).double(), data
    )  # it brings its own buffers, also where the loss has others
    loaded = lh.landscape.Minimum.load(tmp_path / "minimum.npz", other)
    assert float(loaded.unanchored(minimum.theta)) == pytest.approx(minimum.loss, rel=1e-12)
    canyons = lh.find_canyons(
        minimum.objective, levels=0.05, metric="euclidean", evaluate={"all": loss}, progress=False
    )
    point = canyons[0]
    assert point.losses["all"] == pytest.approx(float(loss(point.theta)), rel=1e-12)
    with pytest.raises(ValueError, match=r"hold other values of the buffer '1\.running_mean'"):
        lh.find_canyons(minimum.objective, levels=0.05, evaluate={"other": other}, progress=False)
    kept, lost = (lh.Objective(model, (data[0][i::2], data[1][i::2])).at(minimum) for i in (0, 1))
    direction = lh.steering_direction(preserve=kept, ablate=lost, k=3)
    assert float(direction.norm()) == pytest.approx(1.0)
    stale = lh.Objective(copy.deepcopy(norms[1]).double(), data).at(minimum.theta, buffers="fixed")
    with pytest.raises(ValueError, match="losses 'preserve' and 'ablate' hold other values"):
        lh.steering_direction(preserve=kept, ablate=stale, k=3)


def test_a_network_without_such_buffers_is_asked_nothing(tmp_path: Path) -> None:
    a, b = trained(normed(nn.Dropout(0.1), seed=1)), trained(normed(nn.Dropout(0.1), seed=2))
    loss = lh.Objective(a, DATA)
    theta = loss.space.flatten(b)
    assert torch.equal(loss.at(theta)(theta), loss(theta)) and loss.buffers == "none"
    path = lh.path_slice({"loss": loss}, (loss.theta0, theta), num=5, resume=tmp_path / "path.npz")
    middle = (0.5 * loss.theta0.double() + 0.5 * theta.double()).float()
    assert path.losses["loss"].tolist()[::2] == [float(loss(point)) for point in (loss.theta0, middle, theta)]
    assert path.buffers == "none" and "buffers" not in repr(path)
    for points, word in (((a, b), None), ((a, b), "recalibrate"), ((loss.theta0, theta), "fixed")):
        same = lh.path_slice({"loss": loss}, points, num=5, buffers=word, resume=tmp_path / "path.npz")
        assert torch.equal(same.losses["loss"], path.losses["loss"]) and same.buffers == "none"
    line = lh.line_slice({"loss": loss}, torch.ones(loss.num_params), extent=0.1, num=3, center=theta)
    assert line.buffers == "none" and float(line.losses["loss"][1]) == float(loss(theta))
    vmapped = lh.path_slice({"loss": loss}, (a, b), num=5, engine="vmap")
    torch.testing.assert_close(vmapped.losses["loss"], path.losses["loss"], rtol=1e-5, atol=0)


def test_a_loss_of_the_users_own_needs_no_buffers() -> None:
    point = torch.ones(3, dtype=torch.float64)
    assert torch.equal(around(OwnLoss(), point).theta0, point)


def test_the_conflict_control_answers_with_a_points_own_buffers(norms: tuple[nn.Module, nn.Module]) -> None:
    a, b = norms
    loss = lh.Objective(a, DATA)
    control = lh.ConflictControl(loss, X, {"first": Y, "second": 1 - Y})
    for point, model in ((b, b), (loss.theta0, a), (loss.as_checkpoint(b), b)):
        with torch.no_grad():
            share = float((model(X).argmax(1) == Y).double().mean())
        assert control(point)["first"] == pytest.approx(share)


def test_controls_and_losses_agree_in_their_buffers(norms: tuple[nn.Module, nn.Module]) -> None:
    a, b = norms
    loss = lh.Objective(a, DATA)
    labels = {"first": Y, "second": 1 - Y}
    stale = lh.ConflictControl(lh.Objective(b, DATA), X, labels)
    with pytest.raises(ValueError, match="'loss' and 'the conflict control' hold other values of the buffer"):
        lh.steering_report(torch.ones(loss.num_params), {"loss": loss}, k=2, conflict=stale)
    with pytest.raises(ValueError, match="'the loss' and 'the conflict control' hold other values of the buffer"):
        lh.find_canyons(loss, levels=0.1, conflict=stale, progress=False)
    fresh = lh.ConflictControl(loss, X, labels)
    assert lh.steering_report(torch.ones(loss.num_params), {"loss": loss}, k=2, conflict=fresh).step is not None


def test_ranks_that_share_the_data_name_what_to_recalibrate_on(norms: tuple[nn.Module, nn.Module]) -> None:
    a, b = norms
    loss = lh.Objective(a, DATA)
    loss._terms.ranks = "rank 0 of 2"  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"each process \(rank 0 of 2\) has a part of the data"):
        loss.at(b, buffers="recalibrate")
    there = loss.at(b, buffers="recalibrate", recalibrate_on=LOADER)
    found = dict(there.model_at(there.theta0).named_buffers())["1.running_mean"]
    torch.testing.assert_close(found, plain_recalibration(b, LOADER)[1].running_mean)


# Files ----------------------------------------------------------------------------------------------------------------


def written(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


FORMS: dict[str, Any] = {
    "state_dict": lambda state: state,
    "model_state_dict": lambda state: {
        "epoch": 3,
        "model_state_dict": state,
        "optimizer": {"param_groups": [], "state": {}},
    },
    "state_dict of Lightning": lambda state: {"state_dict": state, "epoch": 3, "callbacks": {}},
    "model beside another one": lambda state: {
        "model": state,
        "ema": {name: 0 * value for name, value in state.items()},
    },
    "the only one": lambda state: {"net": state, "step": 7},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_the_network_in_it(form: str, norms: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    a, b = norms
    content = FORMS[form](b.state_dict())
    path, loss = written(tmp_path / "b.pt", content), lh.Objective(a, DATA)
    for point in (path, str(path), content):
        there = loss.at(point)
        assert float(there(there.theta0)) == pytest.approx(own(b), rel=1e-6) and there.buffers == "own"
    v = torch.ones(loss.num_params)
    torch.testing.assert_close(lh.hessian(loss, path) @ v, lh.hessian(lh.Objective(b, DATA)) @ v)


def test_every_tool_takes_files(norms: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    a, b = norms
    middle, loss = trained(copy.deepcopy(a), epochs=1), lh.Objective(normed(), DATA)
    models = [a, middle, b]
    files: list[Any] = [written(tmp_path / f"{i}.pt", {"model": model.state_dict()}) for i, model in enumerate(models)]
    files[1] = str(files[1])
    curve = [own(model) for model in models]
    path = lh.path_slice({"all": loss}, files, num=5, buffers="interpolate")
    knots = [int((path.positions - knot).abs().argmin()) for knot in path.knots]
    assert path.losses["all"][knots].tolist() == pytest.approx(curve, rel=1e-6)
    principal = lh.principal_directions(files, model=a)
    assert torch.equal(principal.directions, lh.principal_directions(models).directions)
    assert torch.equal(principal.directions, lh.principal_directions([a, *files[1:]]).directions)
    assert torch.equal(lh.difference_direction(*files[:2], model=loss), lh.difference_direction(*models[:2]))
    assert torch.equal(lh.plane_through(*files, model=a).directions, lh.plane_through(*models).directions)
    plane = lh.plane_slice({"all": loss.at(b)}, principal, extent=1.0, num=3)
    assert lh.plane_trajectory(plane, files, losses={"all": loss}).losses["all"].tolist() == pytest.approx(
        curve, rel=1e-6
    )
    line = lh.line_slice({"all": loss}, torch.ones(loss.num_params), extent=0.1, num=3, center=files[2])
    assert float(line.losses["all"][1]) == pytest.approx(curve[2], rel=1e-6)
    with pytest.raises(
        ValueError, match=r"checkpoints\[0\] \('.*0\.pt'\) is a state_dict, in which weights and buffers"
    ):
        lh.principal_directions(files)


def test_files_of_vectors_and_saved_checkpoints(norms: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    a, b = norms
    loss, theta = lh.Objective(a, DATA), lh.Objective(b, DATA).theta0
    with pytest.raises(ValueError, match=r"theta .*is weights alone"):
        loss.at(written(tmp_path / "theta.pt", theta))
    assert torch.equal(loss.at(tmp_path / "theta.pt", buffers="fixed").theta0, theta)
    there = loss.at(lh.Objective(b, DATA).checkpoint.save(tmp_path / "b.npz"))
    assert float(there(there.theta0)) == pytest.approx(own(b), rel=1e-6)
    bowl = lh.FunctionObjective(lambda x: x.square().sum(), theta)
    assert torch.equal(bowl.at(written(tmp_path / "other.pt", 2 * theta)).theta0, 2 * theta)
    assert torch.equal(lh.principal_directions([tmp_path / "theta.pt", tmp_path / "other.pt"], k=1).center, 2 * theta)


def test_files_of_another_kind_are_refused_by_their_name(norms: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    a, b = norms
    loss = lh.Objective(a, DATA)
    good = written(tmp_path / "good.pt", b.state_dict())
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello\n")
    written(tmp_path / "module.pt", b)
    for name in ("cut", "empty", "text", "module"):
        path = str(tmp_path / f"{name}.pt")
        with pytest.raises(lh.DamagedFileError, match=r"points\[1\] is ") as error:
            lh.path_slice({"loss": loss}, [good, path])
        for part in (
            repr(path),
            "expected a file that torch.save wrote of a state_dict",
            "\nSave weights with torch.save",
        ):
            assert part in str(error.value)
    for content, message in [
        (nn.Linear(3, 4).state_dict(), r"theta \('.*x\.pt'\) lacks \['0.weight'"),
        ({"epoch": 3}, r"theta \('.*x\.pt'\) holds an int under 'epoch', expected a state_dict"),
        ({"one": b.state_dict(), "two": b.state_dict()}, r"theta \('.*x\.pt'\) holds an? \w+ under 'one'"),
        ([1, 2], r"theta \('.*x\.pt'\) is a list, expected a tensor of shape"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            loss.at(written(tmp_path / "x.pt", content))
    lh.top_hessian_eigs(loss, k=1).save(tmp_path / "pairs.npz")
    with pytest.raises(TypeError, match=r"theta \('.*pairs\.npz'\) is an Eigenpairs"):
        loss.at(tmp_path / "pairs.npz")
    with pytest.raises(
        FileNotFoundError, match=r"theta is '.*none\.pt' \(No such file.*\), expected .*\nCheck the name"
    ):
        loss.at(tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError, match="theta is"):
        loss.at(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        loss.at(tmp_path / "none.npz")


def test_one_file_is_no_list_and_files_are_no_directions(norms: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    loss = lh.Objective(norms[0], DATA)
    path = written(tmp_path / "a.pt", norms[0].state_dict())
    for one in (path, str(path)):
        with pytest.raises(TypeError, match=r"points is a (\w*Path|str), expected"):
            lh.path_slice({"loss": loss}, one)
    with pytest.raises(TypeError, match="points is a list with a NoneType in it"):
        lh.path_slice({"loss": loss}, [path, None])
    with pytest.raises(TypeError, match="directions is a list with a str in it"):
        lh.plane_slice({"loss": loss}, [str(path), "filter"])
    with pytest.raises(TypeError, match="directions is a list with a"):
        lh.gram_schmidt([path, path])
