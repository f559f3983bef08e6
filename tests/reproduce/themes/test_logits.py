"""Claim 19 on a network that is a sum on purpose, and its verdict against its rule."""

import json
from types import SimpleNamespace

import pytest
import torch

import lowhanging as lh
from lowhanging.datasets import MNIST, DigitImages
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.settings import SIZES, Settings
from lowhanging.reproduce.store import NO_STORE
from lowhanging.reproduce.themes import logits


@pytest.fixture(scope="module")
def network():
    """A linear network on few images: its logits on mixed images are sums, whatever its weights."""
    digits = lh.mnist()
    train, test = DigitImages(*digits.train[:60]), DigitImages(*digits.test[:200])
    views = lh.paired_mnist(MNIST(train, test, source="bundled"), seed=0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    loss = lh.Objective(model, views.mixed.test)
    return SimpleNamespace(
        views=views, model=model,
        losses={name: lh.Objective(model, getattr(views, name).test) for name in ("mixed", "number", "pattern")},
        minimum=SimpleNamespace(theta=loss.theta0),
        run=SimpleNamespace(seed=0),
    )  # fmt: skip


def test_a_linear_network_is_a_sum_in_every_way(network):
    row = logits.measure(Context(Settings(SIZES["tiny"], "bundled", 0, 1), NO_STORE, lambda: network))
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert 100 <= row["trained"]["num_images"] <= 105  # half of each class, rounded up
    assert row["trained"]["shares"]["both"] == pytest.approx(1.0, abs=1e-8)
    assert row["trained"]["within"]["both"] == pytest.approx(1.0, abs=1e-8)
    assert row["trained"]["slopes"] == pytest.approx({"number": 1.0, "pattern": 1.0}, abs=1e-4)
    assert row["untrained"]["shares"]["both"] > 0.99  # sigmoids near 0 are nearly linear
    (claim,) = logits.claims([row])
    assert (claim.number, claim.verdict) == (19, "does not hold")  # it reads nothing: there is nothing to combine
    assert row["accuracies"]["number"] < 0.5
    row["accuracies"] = {"number": 0.9, "pattern": 0.9}
    assert logits.claims([row])[0].verdict == "holds"
    assert "a sum of both single-cue logits explains 100.0 %" in claim.measured
    assert "number 1, pattern 1 (1 in a plain sum)" in claim.measured
    assert row["trained"]["num_free"] == {"logits": 11, "probabilities": 12, "number": 10, "pattern": 10}
    assert "(12 free numbers; the sum has 11)" in claim.null
    assert not any(word in claim.measured + claim.null for word in ("nan", "inf", "None"))


def test_the_weights_are_those_of_the_minimum(network):
    elsewhere = SimpleNamespace(**{**vars(network), "minimum": SimpleNamespace(theta=2 * network.minimum.theta)})
    here, there = logits.sums(network, num_draws=100), logits.sums(elsewhere, num_draws=100)
    assert torch.allclose(there.observed, 2 * here.observed, atol=1e-5)


def planted(pattern=0.9, **changes):
    trained = {
        "shares": {"both": 0.8}, "intervals": {"both": [0.75, 0.85]}, "same_label": 0.3, "same_label_within": 0.0,
        "other_label": 0.0, "within": {"both": 0.6, "number": 0.1, "pattern": 0.5},
        "unique": {"number": 0.1, "pattern": 0.5}, "unique_intervals": {"number": [0.05, 0.15], "pattern": [0.4, 0.6]},
        "slopes": {"number": 0.4, "pattern": 0.8},
        "divergence": {"logits": 0.1, "probabilities": 0.2, "number": 0.3, "pattern": 0.4},
        "num_free": {"logits": 11, "probabilities": 12, "number": 10, "pattern": 10},
        "divergence_gain": [0.1, 0.05, 0.15], "plain_divergence": {"logits": 0.3, "probabilities": 0.4},
        "plain_gain": [0.1, 0.05, 0.15], "cross_entropy": {"mixed": 0.1, "logits": 0.1, "probabilities": 0.2},
    }  # fmt: skip
    accuracies = {"number": 0.9, "pattern": pattern}
    return {
        "accuracies": accuracies, "trained": {**trained, **changes}, "untrained": {"shares": {"both": 1.0}},
    }  # fmt: skip


NO_GAIN = [0.0, -0.1, 0.1]
WEAK = {"both": 0.4, "number": 0.1, "pattern": 0.3}
ONE_CUE = {"number": [-0.01, 0.01], "pattern": [0.4, 0.6]}


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([planted()], "holds"),
        ([planted(), planted(), planted(same_label=0.77)], "holds"),  # most seeds
        ([planted(), planted(plain_gain=NO_GAIN)], "holds in part"),  # half of them is not most
        ([planted(same_label=0.77)], "holds in part"),
        ([planted(within=WEAK)], "holds in part"),
        ([planted(divergence_gain=NO_GAIN)], "holds in part"),
        ([planted(plain_gain=NO_GAIN)], "holds in part"),
        ([planted(unique_intervals=ONE_CUE)], "holds in part"),
        # A large total is no evidence if one cue makes it all.
        ([planted(unique_intervals=ONE_CUE, divergence_gain=NO_GAIN, plain_gain=NO_GAIN)], "does not hold"),
        ([planted(within=WEAK, divergence_gain=NO_GAIN, plain_gain=NO_GAIN)], "does not hold"),
        ([planted(pattern=0.3)], "does not hold"),
    ],
)
def test_the_verdict_follows_from_the_shares(rows, verdict):
    assert logits.claims(rows)[0].verdict == verdict


def test_the_text_says_what_is_evidence_and_gives_both_kinds_of_intervals():
    misled = {"both": -0.1, "number": 0.1, "pattern": 0.5}
    rows = [planted(), planted(divergence_gain=[0.2, 0.15, 0.25]), planted(within=misled)]
    (claim,) = logits.claims(rows)
    assert "pattern alone already 50.0 % each, number alone 10.0 % each: the evidence is not this" in claim.measured
    assert "Within labels both explain 36.7 % (-10.0 to 60.0)" in claim.measured  # no log odds: no interval
    assert "minus the sum 0.133 ± 0.14 nats (0.1 to 0.2), over the images of each network [0.05," in claim.measured
    (one,) = logits.claims(rows[:1])
    assert "minus the sum 0.1 nats [0.05, 0.15] (over images)" in one.measured
