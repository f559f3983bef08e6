"""Claim 20: the run against the trainer's own history, the measures on planted curves, the verdict against its rule."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

import lowhanging as lh
from lowhanging.datasets import MNIST, DigitImages
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.settings import SIZES, Settings
from lowhanging.reproduce.store import NO_STORE, ResultStore
from lowhanging.reproduce.themes import order

EPOCHS = 4


@pytest.fixture(scope="module")
def network():
    digits = lh.mnist()
    train, test = DigitImages(*digits.train[:192]), DigitImages(*digits.test[:60])
    views = lh.paired_mnist(MNIST(train, test, source="bundled"), seed=0)
    model = lh.SigmoidCNN(seed=0)
    held_out = {name: getattr(views, name).test for name in order.TASKS}
    run = lh.train(model, views.mixed.train, num_epochs=EPOCHS, evaluate=held_out, progress=False)
    return SimpleNamespace(views=views, model=model, run=run)


def context(network, store=NO_STORE):
    return Context(Settings(SIZES["tiny"], "bundled", 0, 1), store, lambda: network)


def test_the_run_is_the_networks_own_recipe(network):
    run = order.early(network, num_epochs=2, log_every=2, images=60)
    assert run.steps.tolist() == [0, 2, 4, 6]  # 192 images in batches of 64
    for name in order.TASKS:  # the same start, evaluated on the same images
        assert float(run.losses[name][0, 0]) == pytest.approx(float(network.run.losses[name][0]), rel=1e-6)
    state = network.model.state_dict()
    row = order.measure(context(network), num_epochs=50, log_every=3)  # more epochs than it was trained for
    assert row["steps"][-1] == EPOCHS * 3
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert all(torch.equal(state[name], tensor) for name, tensor in network.model.state_dict().items())
    assert order.claims([row])[0].number == 20
    found = order.competences([row, row])
    assert found.progress["mixed"].shape == (2, len(row["steps"]))
    assert found.times.tolist() == pytest.approx([step / 3 for step in row["steps"]])


def test_nothing_learned_is_no_progress():
    assert bool(order._progress(torch.tensor([0.1, 0.5]), 0.49).isnan().all())
    assert order._crossing(torch.tensor([0, 1]), torch.tensor([math.nan, math.nan]), 0.5) == math.inf
    assert order._progress(torch.tensor([0.1, 0.5, 0.9]), 0.9).tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_the_rates_of_planted_losses_are_those_on_paper():
    epochs = torch.arange(20).double()
    found = order.between(5 - 0.2 * epochs, 2 - 0.1 * epochs, 3.0, 15.0)
    assert (found["begin"], found["end"]) == (3, 15)
    assert found["fall"] == pytest.approx(12 * 0.2)
    assert found["own_fall"] == pytest.approx(12 * 0.1)
    assert found["rate"] == pytest.approx([0.2, 0.2, 0.2])
    assert found["slowest_third"] == pytest.approx(0.2)
    assert order.between(5 - 0.2 * epochs, epochs, 3.0, math.inf)["end"] == 19  # never: to the last epoch
    assert order.between(5 - 0.2 * epochs, epochs, 3.0, 8.0) is None  # too short for three thirds
    assert order.between(5 - 0.2 * epochs, epochs, math.inf, math.inf) is None


def test_a_plateau_is_found_and_noise_widens_the_interval():
    losses = torch.tensor([9.0, 8, 7, 6, 5, 5, 5, 5, 5, 4, 3, 2, 1], dtype=torch.float64)
    assert order.between(losses, losses, 0.0, 12.0)["slowest_third"] == pytest.approx(0.0)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=60))
    _, low, high = order.between(noise, noise, 0.0, math.inf)["rate"]
    assert low < 0 < high  # a flat floor


def planted(first="number", half=(10.0, 12.0, 30.0), other=0.3, low=0.1, slowest=0.05, least=0.01):
    times = dict(zip(("number", "mixed", "pattern"), half, strict=True))
    between = {
        "begin": 8, "end": 20, "fall": 0.2, "own_fall": 0.0, "rate": [0.02, low, 0.03], "slowest_third": slowest,
    }  # fmt: skip
    return {
        "half": times, "steps_per_epoch": 10, "first": first, "other_progress_at_most": other,
        "between": between if low is not None else None,
        "excess_drop": None if least is None or low is None else {
            "epochs": [10, 25], "fall": 0.2, "first": 0.1, "second": 0.15, "excess_drop": 0.1, "interval": [least, 0.2],
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([planted()], "holds"),
        ([planted(half=(10.0, 10.0, None))], "holds"),  # no later, to the row
        ([planted(half=(13.0, 12.0, 30.0))], "holds in part"),
        ([planted(), planted(other=0.7)], "holds in part"),
        ([planted(), planted(), planted(other=0.7)], "holds"),
        ([planted(low=-0.1)], "holds in part"),
        ([planted(slowest=-0.01)], "holds in part"),
        ([planted(least=-0.01)], "holds in part"),  # the first circuit alone explains the fall
        ([planted(least=None)], "holds in part"),
        ([planted(), planted(), planted(least=-0.01)], "holds"),
        ([planted(first=None, half=(None, None, None), other=None, low=None)], "does not hold"),
    ],
)
def test_the_verdict_follows_from_the_times(rows, verdict):
    (claim,) = order.claims(rows)
    assert claim.verdict == verdict
    assert "in epochs: mixed" in claim.measured
    assert not any(word in claim.measured for word in ("nan", "inf", "None"))


# What the first circuit alone explains --------------------------------------------------------------------------------


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def circuits():
    """Targets, and two logits that know them, (400, 10) each, before and after."""
    targets = torch.randint(10, (400,), generator=torch.Generator().manual_seed(5))
    right = torch.nn.functional.one_hot(targets, 10).double()
    first = [1.5 * right + drawn(400, 10, seed=1), 2.0 * right + drawn(400, 10, seed=3)]  # it errs elsewhere, too
    second = [drawn(400, 10, seed=2), 2.5 * right + drawn(400, 10, seed=2)]
    return targets, first, second


def test_what_the_first_circuit_does_alone_is_explained_whole(circuits):
    targets, first, second = circuits
    mixed = [0.6 * z + second[0] for z in first]  # the second one stays
    found = order.explained(mixed, first, [second[0], second[0]], targets)
    assert found["fall"] > 0.05
    assert found["first"] >= found["fall"] - 1e-12  # 0.6 is among the weights; another one may do better still
    assert found["excess_drop"] <= 1e-12
    assert found["interval"][0] <= 1e-12
    assert found["second"] == 0.0


def test_what_a_second_circuit_adds_is_beyond_the_first(circuits):
    targets, first, second = circuits
    mixed = [0.6 * a + 0.8 * b for a, b in zip(first, second, strict=True)]
    found = order.explained(mixed, first, second, targets)
    assert found["interval"][0] > 0
    assert found["fall"] == pytest.approx(found["first"] + found["excess_drop"])
    # By another route: the best weight by SciPy, between the nodes.
    losses = torch.nn.functional.cross_entropy

    def at(weight):
        return float(losses(mixed[0] + weight * (first[1] - first[0]), targets))

    best = minimize_scalar(at, bounds=(0, 3), method="bounded")
    assert found["weight"] == pytest.approx(best.x, abs=0.05)
    assert at(0.0) - found["first"] == pytest.approx(best.fun, abs=1e-3)
    same = order.explained(mixed, first, second, targets)
    assert same == found
    spread = (found["interval"][1] - found["interval"][0]) / (2 * 1.96)
    shifted = losses(mixed[0] + found["weight"] * (first[1] - first[0]), targets, reduction="none")
    error = float((shifted - losses(mixed[1], targets, reduction="none")).std()) / 20  # of a mean of 400
    assert spread == pytest.approx(error, rel=0.15)


def test_the_checkpoints_are_the_nearest_and_need_the_first_cue(network):
    run = lh.train(
        lh.SigmoidCNN(seed=0), network.views.mixed.train, num_epochs=3, checkpoints=[0, 1, 3], progress=False
    )
    held = SimpleNamespace(views=network.views, model=network.model, run=run)
    there = torch.ones(4)
    found = order.excess_drop(held, "number", there, 1, 4)
    assert found["epochs"] == [1, 3]
    model = lh.SigmoidCNN(seed=0)
    losses = [lh.Objective(model, network.views.mixed.test)(run.checkpoints[row]) for row in (1, 2)]
    assert found["fall"] == pytest.approx(float(losses[0] - losses[1]), abs=1e-6)
    assert order.excess_drop(held, "number", there, 1, 2) is None  # one checkpoint is nearest to both
    assert order.excess_drop(held, "number", torch.tensor([0.0, 0.4, 1.0, 1.0]), 1, 4) is None  # not yet there
    assert order.excess_drop(held, "number", torch.full((4,), math.nan), 1, 4) is None


def test_the_first_epochs_are_kept(network, tmp_path, monkeypatch):
    store = ResultStore(tmp_path)
    once = order.measure(context(network, store), log_every=3)
    assert [path.name for path in tmp_path.iterdir()] == ["early.npz"]
    monkeypatch.setattr(order, "train_stack", lambda *_, **__: pytest.fail("trained twice"))
    assert order.measure(context(network, store), log_every=3) == once
