"""Two rules of equal loss: against the sum over all inputs on paper, and against what the bits themselves say."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lowhanging as lh

VIEWS = ("atomic", "decomposable", "both")


def rules(**arguments) -> lh.datasets.ParityRules:
    return lh.parity_rules(**{"num_train": 4000, "num_test": 500, **arguments})


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize("r", [0.51, 0.75, 0.9, 0.999])
def test_both_rules_end_at_one_loss_on_paper(r):
    """s h(r^2 / s) + (1 - s) ln 2 for two halves, h(q) for the whole."""
    found = rules(reliability=r)
    s = r**2 + (1 - r) ** 2
    two = s * entropy(r**2 / s) + (1 - s) * math.log(2)
    assert found.losses["decomposable"] == pytest.approx(two, rel=1e-10)
    assert entropy(found.whole_reliability) == pytest.approx(two, rel=1e-9)
    assert found.losses["atomic"] == pytest.approx(found.losses["decomposable"], rel=1e-9)
    assert found.losses["half"] == pytest.approx(entropy(r), rel=1e-12)
    assert found.losses["both"] < found.losses["atomic"] < found.losses["half"] < math.log(2)


def population(found: lh.datasets.ParityRules, view: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All 2^d inputs, and P(x, label) of each, from the definition of the cues: (2^d, d), (2^d, 2)."""
    num_bits = found.both.train.inputs.shape[1]
    inputs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=num_bits)))
    cues = [(found.whole_bits, found.whole_reliability), *((bits, found.reliability) for bits in found.half_bits)]
    shown = {"atomic": cues[:1], "decomposable": cues[1:], "both": cues}[view]
    joint = torch.full((len(inputs), 2), 0.5 ** (num_bits + 1), dtype=torch.float64)
    for bits, right in shown:
        says_one = inputs[:, bits].prod(1) > 0
        for label in (0, 1):
            joint[:, label] *= 2 * torch.where(says_one == bool(label), right, 1 - right)
    return inputs, joint


@pytest.mark.parametrize("view", VIEWS)
def test_the_ideal_logit_reaches_the_loss_over_all_inputs(view):
    found = rules(whole=3, half=2, num_train=1, num_test=1)
    inputs, joint = population(found, view)
    assert float(joint.sum()) == pytest.approx(1.0)
    logits = found.logits(inputs, view).double()
    assert torch.allclose(logits, (joint[:, 1] / joint[:, 0]).log(), rtol=1e-5)
    loss = joint[:, 1] * F.softplus(-logits) + joint[:, 0] * F.softplus(logits)
    assert float(loss.sum()) == pytest.approx(found.losses[view], rel=1e-7)


def test_no_part_of_a_cue_tells_anything():
    found = rules(whole=3, half=2, num_train=1, num_test=1)
    inputs, joint = population(found, "both")
    tilt = joint[:, 1] - joint[:, 0]  # its Fourier coefficients: correlations of the label with products of bits
    cues = [set(found.whole_bits.tolist()), *(set(bits.tolist()) for bits in found.half_bits)]
    for size in (1, 2, 3):
        for bits in itertools.combinations(range(7), size):
            coefficient = float((tilt * inputs[:, list(bits)].prod(1)).sum())
            assert (abs(coefficient) > 0.1) == (set(bits) in cues), bits


@pytest.mark.parametrize("view", VIEWS)
def test_the_drawn_rows_are_those_of_the_definition(view):
    found = rules(num_train=20_000, num_bits=12)
    data = getattr(found, view).train
    assert set(data.inputs.unique().tolist()) == {-1.0, 1.0}
    label = 2.0 * data.targets - 1
    expected = {"atomic": (1, 0, 0), "decomposable": (0, 1, 1), "both": (1, 1, 1)}[view]
    reliabilities = (found.whole_reliability, found.reliability, found.reliability)
    for sign, is_told, right in zip(found.signs(data.inputs), expected, reliabilities, strict=True):
        share = float((sign == label).float().mean())
        assert share == pytest.approx(right if is_told else 0.5, abs=4 * 0.5 / 20_000**0.5)
    sampled = F.binary_cross_entropy_with_logits(found.logits(data.inputs, view), data.targets.float())
    assert float(sampled) == pytest.approx(found.losses[view], abs=0.02)
    assert float(data.inputs.mean(0).abs().max()) < 5 / 20_000**0.5  # each bit alone is fair


def test_views_share_labels_and_all_bits_but_one_of_each_cue():
    found = rules(num_bits=15)
    for part in ("train", "test"):
        atomic, decomposable, both = (getattr(getattr(found, view), part) for view in VIEWS)
        assert torch.equal(atomic.targets, both.targets)
        assert torch.equal(decomposable.targets, both.targets)
        columns = {int(bits[0]) for bits in found.half_bits}
        assert set((atomic.inputs != both.inputs).any(0).nonzero()[:, 0].tolist()) == columns
        differs = (decomposable.inputs != both.inputs).any(0).nonzero()[:, 0].tolist()
        assert differs == [int(found.whole_bits[0])]
    bits = torch.cat([found.whole_bits, found.half_bits.flatten()])
    assert len(bits.unique()) == 9


def test_the_same_seed_gives_the_same_rows_and_leaves_the_random_states_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first, again, other = rules(seed=3), rules(seed=3), rules(seed=4)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert torch.equal(first.both.train.inputs, again.both.train.inputs)
    assert torch.equal(first.both.train[5][0], first.both.train[5][0])
    assert not torch.equal(first.both.train.inputs, other.both.train.inputs)
    longer = rules(seed=3, num_train=5000)
    assert torch.equal(longer.both.test.inputs, first.both.test.inputs)


def test_what_is_printed():
    found = rules()
    assert repr(found) == ("ParityRules(whole=5, half=2, num_bits=9, reliability=0.9, train=4,000, test=500, seed=0)")
    assert repr(found.atomic.test) == "ParityBits(500 rows of 9 bits)"
    assert len(found.atomic.test) == 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"whole": 0}, "whole is 0, expected an integer of at least 1.\nPass the bits of the atomic rule"),
        ({"half": 0}, "half is 0, expected an integer of at least 1.\nPass the bits of each half"),
        ({"num_bits": 8}, r"num_bits is 8, expected an integer of at least 9.\nThe cues share no bit: 5 \+ 2 \* 2"),
        ({"reliability": 0.5}, r"reliability is 0.5, expected a finite number in \(0.5, 1\).\nAt 0.5 a cue says"),
        ({"reliability": 1.0}, "reliability is 1"),
        ({"reliability": 0.50000001}, "reliability is 0.50000001, too near the end"),
        ({"num_train": 0}, "num_train is 0"),
        ({"num_test": 0}, "num_test is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        lh.parity_rules(**arguments)


def test_an_unknown_view():
    found = rules()
    with pytest.raises(ValueError, match="view is 'mixed', expected one of 'atomic', 'decomposable', 'both'"):
        found.logits(found.both.test.inputs, "mixed")
