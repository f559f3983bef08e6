"""Records of a training loop of one's own, and whether the loop notices.

Oracles: the same loop without a recorder, bit for bit; dense Hessians by `torch.func.hessian` of plain cross-entropy in
float64; losses of copies of the model in plain torch; searches from nothing, for the number of products.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowhanging as lh
from lowhanging.errors import NotConvergedError
from lowhanging.landscape import TrainingRecord

torch.manual_seed(0)
X = torch.randn(120, 6)
Y = (X[:, 0] * X[:, 1] > 0).long() + (X[:, 2] > 0.5).long()
DATA, WIDE = (X, Y), (X.double(), Y)


def mlp(*middle: nn.Module, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 7), *middle, nn.Tanh(), nn.Linear(7, 3))


def normed() -> nn.Sequential:
    return mlp(nn.BatchNorm1d(7), nn.Dropout(0.3))


def no_call(*_: Any, **__: Any) -> None:
    """A step that nobody watches."""


def trained(
    model: nn.Module, num_steps: int, after: Callable[..., None] = no_call, *, data: Any = DATA, lr: float = 0.05
) -> None:
    """A loop as people write it: shuffled batches, noise from three global random states, SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    for _ in range(num_steps):
        batch = torch.randperm(len(X))[:32]
        scale = 1 + 0.01 * (random.random() + np.random.rand())  # noqa: NPY002 - the state that augmentations draw from
        loss = F.cross_entropy(model(scale * data[0][batch]), data[1][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after(loss=loss)


def seed_all() -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002


def random_numbers() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


# The loop does not notice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [normed, mlp], ids=["BatchNorm and dropout", "plain"])
def test_a_training_with_a_recorder_is_the_same_to_the_bit(make: Callable[[], nn.Module]) -> None:
    alone, watched = make(), make()
    seed_all()
    trained(alone, 12)
    expected = random_numbers()
    losses = {"all": lh.Objective(watched, DATA), "some": lh.Objective(watched, (X[:20], Y[:20]))}
    seed_all()
    recorder = lh.Recorder(watched, every=3, losses=losses, eigenpairs="all", k=2)
    trained(watched, 12, recorder.step)
    assert random_numbers() == expected
    assert recorder.record().steps.tolist() == [0, 3, 6, 9, 12]
    for (name, a), b in zip(alone.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(alone.parameters(), watched.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)


def test_modes_and_flags_stay_also_when_a_record_fails() -> None:
    model = normed()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    loss = lh.Objective(model, DATA)
    recorder = lh.Recorder(model, every=1, losses={"all": loss}, eigenpairs="all", k=1)
    before = [(module.training, [w.requires_grad for w in module.parameters()]) for module in model.modules()]
    recorder.step()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match="step 2"):
        recorder.step()
    assert before == [(module.training, [w.requires_grad for w in module.parameters()]) for module in model.modules()]
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("around", [torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_what_surrounds_the_call_does_not_matter(around: Callable[[], Any]) -> None:
    model = mlp()
    recorder = lh.Recorder(model, every=1, losses=lh.Objective(model, DATA), eigenpairs="loss", k=2)
    with around():
        recorder.step()
    record = recorder.record()
    assert torch.equal(record.losses["loss"][0], record.losses["loss"][1])
    torch.testing.assert_close(record.eigenvalues[0], record.eigenvalues[1], rtol=1e-5, atol=0)


# The numbers ----------------------------------------------------------------------------------------------------------


def dense_eigenvalues(model: nn.Module, data: Any) -> Tensor:
    """All eigenvalues of the Hessian of the mean cross-entropy, descending, by torch alone."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [weight.shape for weight in model.parameters()]

    def loss(theta: Tensor) -> Tensor:
        parts = torch.split(theta, [shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, weights, (data[0],)), data[1])

    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    return torch.linalg.eigvalsh(torch.func.hessian(loss)(theta)).flip(0)


def test_eigenvalues_and_losses_at_every_record_are_those_of_plain_torch() -> None:
    model = mlp().double()
    losses = {"all": lh.Objective(model, WIDE), "some": lh.Objective(model, (WIDE[0][:30], Y[:30]))}
    recorder = lh.Recorder(model, every=4, losses=losses, eigenpairs="some", k=3, tol=1e-7)
    copies = [copy.deepcopy(model)]

    def after(**numbers: Any) -> None:
        recorder.step(**numbers)
        if recorder.num_steps % 4 == 0:
            copies.append(copy.deepcopy(model))

    trained(model, 21, after, data=WIDE)
    record = recorder.record()
    assert record.steps.tolist() == [0, 4, 8, 12, 16, 20] and record.thetas.dtype == torch.float64
    assert record.eigenvalues.shape == record.residuals.shape == (6, 3) and bool(record.is_converged.all())
    for i, kept in enumerate(copies):
        assert torch.equal(record.thetas[i], nn.utils.parameters_to_vector(kept.parameters()).detach())
        dense = dense_eigenvalues(kept, (WIDE[0][:30], Y[:30]))
        torch.testing.assert_close(record.eigenvalues[i], dense[:3], rtol=1e-9, atol=1e-12)
        assert float(record.residuals[i].max()) <= 1e-7 * float(dense.abs().max())
        for name, num in (("all", 120), ("some", 30)):
            with torch.no_grad():
                outputs = kept(WIDE[0][:num])
            assert float(record.losses[name][i]) == pytest.approx(float(F.cross_entropy(outputs, Y[:num])), rel=1e-12)
            assert float(record.accuracies[name][i]) == pytest.approx(
                float((outputs.argmax(1) == Y[:num]).double().mean())
            )
    assert len({float(value) for value in record.eigenvalues[:, 0]}) == 6  # they move, so that mixed up rows would show


def test_a_search_costs_clearly_less_from_the_pairs_of_the_record_before() -> None:
    model = mlp().double()
    loss = lh.Objective(model, WIDE)
    recorder = lh.Recorder(model, every=1, losses={"all": loss}, eigenpairs="all", k=5)
    trained(model, 15, recorder.step, data=WIDE, lr=0.01)
    record = recorder.record()
    cold = [lh.top_hessian_eigs(loss.at(record.checkpoint(i)), k=5) for i in range(16)]
    assert int(record.num_products[0]) == cold[0].num_products
    assert all(int(num) < pairs.num_products for num, pairs in zip(record.num_products[1:], cold[1:], strict=True))
    assert int(record.num_products[1:].sum()) < 0.85 * sum(pairs.num_products for pairs in cold[1:])
    for i, pairs in enumerate(cold):
        torch.testing.assert_close(record.eigenvalues[i], pairs.values, rtol=1e-5, atol=0)


def test_a_loop_s_own_numbers() -> None:
    model = mlp()
    recorder = lh.Recorder(model, every=2)
    given = [{"loss": 3}, {"loss": torch.tensor([2.5], requires_grad=True), "lr": 0.1}, {}, {"lr": np.float32(0.5)}]
    for numbers in given:
        recorder.step(**numbers)
    record = recorder.record()
    assert record.numbers["loss"].tolist() == pytest.approx([float("nan"), 2.5, float("nan")], nan_ok=True)
    assert record.numbers["lr"].tolist() == pytest.approx([float("nan"), 0.1, 0.5], nan_ok=True)
    for wrong in ("a word", torch.ones(3), torch.tensor(1j)):
        with pytest.raises(TypeError, match=r"loss is a .*, expected a number, or a tensor of one") as error:
            recorder.step(loss=wrong)
        assert "loss=loss.item()" in str(error.value)
    assert recorder.num_steps == 4


# Which steps, and what is kept ----------------------------------------------------------------------------------------


def test_which_steps_are_recorded() -> None:
    model = mlp()
    recorder = lh.Recorder(model, every=5, initial=False, start=8)
    with pytest.raises(
        ValueError, match=r"recorder has no record after 8 steps, expected at least one.\nCall recorder.add"
    ):
        recorder.record()
    trained(model, 9, recorder.step)
    assert recorder.record().steps.tolist() == [10, 15]
    recorder.add(loss=1.0)
    recorder.add(loss=2.0)  # this step stands already
    record = recorder.record()
    assert record.steps.tolist() == [10, 15, 17] and record.numbers["loss"].tolist()[-1] == 1.0
    assert repr(recorder) == "Recorder(Sequential, every 5 steps; 3 records so far, at step 17)"


def test_a_record_without_weights() -> None:
    model = normed()
    recorder = lh.Recorder(model, every=3, losses=lh.Objective(model, DATA), keep_weights=False)
    trained(model, 6, recorder.step)
    record = recorder.record()
    assert record.thetas.shape == (0, lh.Objective(model, DATA).num_params) and record.buffers == {}
    assert record.losses["loss"].shape == (3,) and record.num_checkpoints == 0
    with pytest.raises(ValueError, match="keep_weights=True"):
        record.checkpoint()
    with pytest.raises(ValueError, match="checkpoints is a run without checkpoints"):
        lh.principal_directions(record)


def own(model: nn.Module) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(copy.deepcopy(model).double().eval()(X.double()), Y))


def recorded() -> tuple[TrainingRecord, list[nn.Module], lh.Objective]:
    """A record of a network with BatchNorm, copies of it at the same steps, and its loss before training."""
    model = normed()
    loss = lh.Objective(model, DATA)
    recorder, copies = lh.Recorder(model, every=2, losses={"all": loss}), [copy.deepcopy(model)]

    def after(**_: Any) -> None:
        recorder.step()
        if recorder.num_steps % 2 == 0:
            copies.append(copy.deepcopy(model))

    trained(model, 8, after)
    return recorder.record(), copies, loss


def test_checkpoints_bring_the_buffers_of_their_step(tmp_path: Path) -> None:
    record, copies, loss = recorded()
    curve = [own(model) for model in copies]
    assert record.losses["all"].tolist() == pytest.approx(curve, rel=1e-5)
    assert set(record.buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for kept in (record, lh.load(record.save(tmp_path / "record"))):
        points = [loss.at(kept.checkpoint(i)) for i in range(5)]
        assert [float(point(point.theta0)) for point in points] == pytest.approx(curve, rel=1e-5)
        for i, model in enumerate(copies):
            other = normed()
            other.load_state_dict(kept.state_dict(i), strict=False)
            assert all(
                torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True)
            )
    first = kept.state_dict(0)
    first["0.weight"].zero_()
    assert bool(kept.thetas[0].any())  # which was a copy


def test_every_tool_of_checkpoints_takes_a_record() -> None:
    record, copies, loss = recorded()
    curve = [own(model) for model in copies]
    principal = lh.principal_directions(record)
    assert torch.equal(principal.directions, lh.principal_directions(record.thetas).directions)
    path = lh.path_slice({"all": loss}, record, num=5)
    assert path.losses["all"].tolist() == pytest.approx(curve, rel=1e-5)
    plane = lh.plane_slice({"all": loss.at(record.checkpoint())}, principal, extent=1.0, num=3)
    seen = lh.plane_trajectory(plane, record, losses={"all": loss})
    assert seen.losses["all"].tolist() == pytest.approx(curve, rel=1e-5)
    assert torch.equal(
        lh.difference_direction(record.checkpoint(0), record.checkpoint(-1)), lh.difference_direction(*copies[::4])
    )


def test_a_constant_buffer_is_kept_once() -> None:
    model = mlp()
    model.register_buffer("mask", torch.ones(1000))
    recorder = lh.Recorder(model, every=1)
    trained(model, 3, recorder.step)
    assert recorder._rows[0].buffers["mask"] is recorder._rows[3].buffers["mask"]
    assert recorder.record().buffers == {}


def test_other_losses_than_those_of_a_model() -> None:
    model = mlp().double()
    loss = lh.Objective(model, WIDE)
    losses = {
        "norm": lh.FunctionObjective(lambda theta: theta.square().sum(), loss.theta0),
        "anchored": lh.objective.AnchoredObjective(loss, loss.theta0, 0.5),
        "all": loss,
    }
    recorder = lh.Recorder(model, every=2, losses=losses, eigenpairs="norm", k=1)
    trained(model, 2, recorder.step, data=WIDE)
    record = recorder.record()
    assert record.losses["norm"].tolist() == pytest.approx(record.thetas.square().sum(1).tolist())
    moved = float((record.thetas[1] - record.thetas[0]).square().sum())
    assert float(record.losses["anchored"][1] - record.losses["all"][1]) == pytest.approx(0.25 * moved)
    assert record.eigenvalues.flatten().tolist() == pytest.approx([2.0, 2.0])
    assert set(record.accuracies) == {"anchored", "all"}


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_a_search_that_misses_its_tolerance_is_a_warning_and_nan() -> None:
    model = mlp()
    loss = lh.Objective(model, DATA)
    with pytest.warns(RuntimeWarning, match=r"Recorder at step 0: \d of 4 eigenvalues converged, the others are NaN"):
        recorder = lh.Recorder(model, every=2, losses={"all": loss}, eigenpairs="all", k=4, max_products=9)
    with pytest.warns(RuntimeWarning, match="Recorder at step") as caught:
        trained(model, 4, recorder.step)
    assert {Path(warning.filename) for warning in caught} == {Path(__file__)}  # of the user's own loop
    record = recorder.record()
    assert record.steps.tolist() == [0, 2, 4]
    assert bool(record.eigenvalues.isnan().any()) and torch.equal(record.eigenvalues.isnan(), ~record.is_converged)
    assert bool(torch.isfinite(record.ritz_values).all()) and bool(torch.isfinite(record.residuals).all())
    with pytest.raises(NotConvergedError) as error:
        lh.top_hessian_eigs(loss, k=4, max_products=9)
    assert torch.equal(record.ritz_values[0], error.value.result.values)  # what was found
    assert "SEARCHES NOT CONVERGED" in repr(record)


def test_a_training_that_diverges_goes_on() -> None:
    model = mlp()
    recorder = lh.Recorder(model, every=1, losses={"all": lh.Objective(model, DATA)}, eigenpairs="all", k=2)
    healthy = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[0].weight.fill_(torch.inf)
    with pytest.warns(RuntimeWarning, match=r"step 1: losses\['all'\] could not be measured: ValueError"):
        recorder.step()
    model.load_state_dict(healthy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder.step()
    record = recorder.record()
    assert record.losses["all"].isnan().tolist() == [False, True, False]
    assert record.eigenvalues.isnan().any(1).tolist() == [False, True, False]
    assert torch.equal(record.eigenvalues[0], record.ritz_values[0]) and bool(record.ritz_values[1].isnan().all())
    assert record.num_products.tolist()[1] == 0 < record.num_products.tolist()[2]
    assert bool(torch.isinf(record.thetas[1]).any())


def test_with_warnings_as_errors_the_row_stands() -> None:
    model = mlp()
    recorder = lh.Recorder(model, every=1, losses={"all": lh.Objective(model, DATA)})
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    with warnings.catch_warnings(), pytest.raises(RuntimeWarning):
        warnings.simplefilter("error")
        recorder.step()
    assert recorder.record().steps.tolist() == [0, 1]


def test_what_is_wrong_from_the_start_is_raised_at_the_first_record() -> None:
    model = mlp()
    other = lh.Objective(nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Sequential(nn.Linear(7, 3))), DATA)
    with pytest.raises(ValueError, match=r"lacks .*'2\.0\.weight'") as error:
        lh.Recorder(model, every=1, losses={"test": other})
    assert "This is about losses['test']." in error.value.__notes__


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"every": 0}, ValueError, "every is 0, expected an integer of at least 1"),
        ({"every": 2.0}, TypeError, "every is 2.0"),
        ({"start": -1}, ValueError, "start is -1"),
        ({"eigenpairs": "test"}, ValueError, "eigenpairs is 'test', expected one of 'all'"),
        ({"eigenpairs": "all", "k": 78}, ValueError, "k is 78, expected an integer from 1 to 73"),
        ({"tol": 0.0}, ValueError, "tol is 0, expected"),
        ({"losses": {"all": DATA}}, TypeError, r"losses\['all'\] is a tuple, expected an objective"),
        ({"losses": [1]}, TypeError, "losses is a list"),
        ({"losses": {"all": lh.Objective(nn.Linear(6, 3), DATA)}}, ValueError, r"losses\['all'\] has 21 parameters"),
        ({"model": "a word"}, TypeError, "model is a str, expected a torch.nn.Module"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = mlp()
    arguments = {"every": 1, "losses": {"all": lh.Objective(model, DATA)}, **options}
    with pytest.raises(kind, match=message) as error:
        lh.Recorder(arguments.pop("model", model), **arguments)
    first, _, remedy = str(error.value).partition("\n")
    assert ", expected " in first and remedy


def test_layers_that_are_unfrozen_meanwhile_are_named() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    recorder = lh.Recorder(model, every=1)
    model[0].weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"model has trainable parameters \['0.weight'\] that were frozen") as error:
        recorder.step()
    assert "Make another recorder" in str(error.value)


def test_one_line_says_what_was_recorded() -> None:
    model = mlp()
    recorder = lh.Recorder(model, every=2, losses={"all": lh.Objective(model, DATA)}, eigenpairs="all", k=1)
    trained(model, 4, recorder.step)
    text = repr(recorder.record())
    for part in (
        "TrainingRecord(3 records of 73 parameters, step 0 to 4; all ",
        "top eigenvalue of 'all' ",
        " products",
    ):
        assert part in text
    assert "\n" not in text
