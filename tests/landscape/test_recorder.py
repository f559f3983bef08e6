"""A recorder in a loop of one's own: it changes nothing, and what it keeps is what the tools say at those weights.

Oracles: the same training without a recorder, bit for bit; dense float64 Hessians at each look; cold searches.
"""

import random

import pytest
import torch
from torch import nn

import lowhanging as lh
from lowhanging.landscape import TrainingRecord
from lowhanging.testing import dense_hessian


def data(num=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num, 4, generator=generator), torch.randint(0, 3, (num,), generator=generator)


def network(*, norm=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3)] if norm else [nn.Tanh()]
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, 3))


def trained(model, make=None, num_steps=12, lr=0.1):
    """A loop of one's own; the recorder is made before it, if any."""
    inputs, targets = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    recorder = make(model) if make else None
    for _ in range(num_steps):
        rows = torch.randint(0, len(inputs), (16,))
        value = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if recorder is not None:
            recorder.step(train=value.item())
    return recorder


@pytest.mark.parametrize("norm", [False, True])
def test_nothing_of_the_training_changes(norm):
    def make(model):
        return lh.Recorder(model, every=3, losses=lh.Objective(model, data()), eigenpairs="loss", k=2)

    models, states = [], []
    for maker in (None, make):
        model = network(norm=norm)
        random.seed(0)
        torch.manual_seed(1)
        recorder = trained(model, maker)
        models.append(model)
        states.append((torch.get_rng_state(), random.getstate(), model.training))
    assert recorder is not None
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    grads = [[weight.grad for weight in model.parameters()] for model in models]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert torch.equal(states[0][0], states[1][0]) and states[0][1:] == states[1][1:]


def test_every_row_is_what_the_tools_say_at_those_weights():
    model = network().double()
    inputs, targets = data()
    loss = lh.Objective(model, (inputs.double(), targets))
    recorder = lh.Recorder(model, every=2, losses={"all": loss}, eigenpairs="all", k=2, tol=1e-6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(6):
        value = nn.functional.cross_entropy(model(inputs.double()), targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        assert recorder.step(train=float(step)) is (step % 2 == 1)
    record = recorder.record()
    assert record.steps.tolist() == [0, 2, 4, 6]
    assert torch.equal(record.checkpoints[-1], loss.space.flatten(model))
    for theta, value, accuracy, values in zip(
        record.checkpoints, record.losses["all"], record.accuracies["all"], record.eigenvalues, strict=True
    ):
        assert float(value) == pytest.approx(float(loss(theta)))
        assert float(accuracy) == pytest.approx(loss.evaluate(theta)[1])
        expected = torch.linalg.eigvalsh(dense_hessian(loss.at(theta))).flip(0)[:2]
        assert values.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert record.numbers["train"].tolist()[1:] == [0.5, 2.5, 4.5]
    assert record.numbers["train"].isnan()[0]


def test_searches_begin_from_the_look_before():
    """Weights that hardly move: the vectors of the look before cost fewer products than a search from nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
    loss = lh.Objective(model, (torch.randn(200, 20), torch.randint(0, 5, (200,))))
    recorder = lh.Recorder(model, losses=loss, eigenpairs="loss", k=3, tol=1e-3)
    with torch.no_grad():
        for _ in range(3):
            for weight in model.parameters():
                weight.add_(1e-4)
            recorder.step()
    spent = recorder.record().num_products.tolist()
    assert max(spent[1:]) < 0.8 * spent[0]


def test_a_record_is_a_run_with_checkpoints(tmp_path):
    model = network(norm=True)
    recorder = trained(model, lambda model: lh.Recorder(model, every=4))
    record = recorder.record()
    assert set(record.checkpoint_buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    loss = lh.Objective(model, data())
    end = loss.at(record.checkpoint(-1))
    assert float(end(end.theta0)) == float(loss.at(model)(loss.at(model).theta0))
    path = lh.path_slice(loss, record, num=5, buffers="interpolate", progress=False)
    assert float(path.losses["loss"][-1]) == pytest.approx(float(end(end.theta0)))
    assert lh.principal_directions(record, k=2).directions.shape == (2, loss.num_params)
    record.save(tmp_path / "record.npz")
    again = TrainingRecord.load(tmp_path / "record.npz")
    assert repr(again) == repr(record)
    assert torch.equal(again.checkpoint(1).theta, record.checkpoint(1).theta)
    assert list(record.columns()) == ["step", "train"]


def test_files_of_state_dicts_are_checkpoints(tmp_path):
    model = network(norm=True)
    loss, paths, thetas = lh.Objective(model, data()), [], []
    for i in range(3):
        trained(model, num_steps=2)
        thetas.append(loss.space.flatten(model).clone())
        state = model.state_dict()
        paths.append(tmp_path / f"{i}.pt")
        torch.save(state if i else {"epoch": 3, "model": state, "optimizer": {"lr": 0.1}}, paths[-1])
    slice_ = lh.path_slice(loss, paths, num=5, buffers="interpolate", progress=False)
    assert torch.equal(slice_.points, torch.stack(thetas).to(slice_.points))
    at = loss.at(model)
    assert float(slice_.losses["loss"][-1]) == pytest.approx(float(at(at.theta0)))
    found = lh.principal_directions([str(path) for path in paths], k=2, model=model)
    assert torch.equal(found.directions, lh.principal_directions(thetas, k=2).directions)
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    torch.save({"other": model.state_dict(), "one": model.state_dict()}, tmp_path / "two.pt")
    for name, message in (
        ("missing.pt", "does not exist"),
        ("broken.pt", "can't be read"),
        ("two.pt", "holds 2 state"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=rf"(?s){name}.*{message}"):
            lh.path_slice(loss, [paths[0], tmp_path / name], buffers="interpolate")


def test_a_search_that_does_not_converge_does_not_stop_the_training():
    model = network()
    loss = lh.Objective(model, data())
    with pytest.warns(UserWarning, match="0 of 2 eigenvalues converged at step 0") as caught:
        recorder = lh.Recorder(model, losses=loss, eigenpairs="loss", k=2, tol=1e-30)
    with pytest.warns(UserWarning, match="0 of 2 eigenvalues converged at step 1"):
        recorder.step()
    assert caught[0].filename == __file__
    assert recorder.record().eigenvalues.isnan().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: lh.Recorder(m.state_dict()), "model is an OrderedDict"),
        (lambda m: lh.Recorder(m, every=0), "every is 0"),
        (lambda m: lh.Recorder(m, eigenpairs="loss"), "eigenpairs is 'loss'"),
        (lambda m: lh.Recorder(m, losses=lh.FunctionObjective(lambda t: t.sum(), torch.ones(2))), "has 2 parameters"),
        (lambda m: lh.Recorder(m).step(train=float("nan")), "train is nan"),
        (lambda m: lh.Recorder(m).record().checkpoint(1), "i is 1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(network())
