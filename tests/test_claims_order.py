"""Claim 20: the run against the trainer's own history, the measures on planted curves, the verdict against its rule."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lowhanging as lh
from lowhanging.datasets import MNIST, DigitImages
from lowhanging.reproduce import order

EPOCHS = 4


@pytest.fixture(scope="module")
def network():
    digits = lh.mnist()
    train, test = DigitImages(*digits.train[:192]), DigitImages(*digits.test[:60])
    views = lh.paired_mnist(MNIST(train, test, source="bundled"), seed=0)
    model = lh.SigmoidCNN(seed=0)
    held_out = {name: getattr(views, name).test for name in order.VIEWS}
    run = lh.train(model, views.mixed.train, epochs=EPOCHS, evaluate=held_out, progress=False)
    return SimpleNamespace(views=views, model=model, run=run)


def test_the_run_is_the_networks_own_recipe(network):
    run = order.early(network, epochs=2, log_every=2, images=60)
    assert run.steps.tolist() == [0, 2, 4, 6]  # 192 images in batches of 64
    for name in order.VIEWS:  # the same start, evaluated on the same images
        assert float(run.losses[name][0, 0]) == pytest.approx(float(network.run.losses[name][0]), rel=1e-6)
    state = network.model.state_dict()
    row = order.measure(network, quick=True, epochs=50, log_every=3)  # more epochs than it was trained for
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


def planted(first="number", half=(10.0, 12.0, 30.0), other=0.3, low=0.1, slowest=0.05):
    times = dict(zip(("number", "mixed", "pattern"), half, strict=True))
    between = {
        "begin": 8, "end": 20, "fall": 0.2, "own_fall": 0.0, "rate": [0.02, low, 0.03], "slowest_third": slowest,
    }  # fmt: skip
    return {
        "half": times, "steps_per_epoch": 10, "first": first, "other_progress_at_most": other,
        "between": between if low is not None else None,
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
        ([planted(first=None, half=(None, None, None), other=None, low=None)], "does not hold"),
    ],
)
def test_the_verdict_follows_from_the_times(rows, verdict):
    (claim,) = order.claims(rows)
    assert claim.verdict == verdict
    assert "in epochs: mixed" in claim.measured
