"""Bits of two cues along training: exact gates, the odds ratio on paper, towers with one cue delayed.

Oracles: a network whose log probabilities are a sum of two tables with gates, so that what each cue tells is Bayes'
rule; counts of a published table; examples made so that the cues solve the same ones, different ones, independent ones;
towers, trained, of which one is shown its cue late.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import lowhanging as lh
from lowhanging.planted.channels import two_channels
from lowhanging.planted.towers import Tower, TowerSum
from lowhanging.prior import CueViews, IndependentBits, cue_views, independent_bits, paired_digits_views
from lowhanging.prior.independent_bits import SOLVED_BY, mantel_haenszel
from lowhanging.prior.logged_training import train_in_steps

CLASSES = 4


class Gated(nn.Module):
    """Logits gate_a * log-likelihood of the first cue + gate_b * that of the second."""

    def __init__(self, gate_a, gate_b, reliability=0.8):
        super().__init__()
        self.gates = nn.Parameter(torch.tensor([gate_a, gate_b], dtype=torch.float64))
        self.gain = math.log(reliability / ((1 - reliability) / (CLASSES - 1)))

    def forward(self, x):
        one_hot = nn.functional.one_hot(x.round().long(), CLASSES).to(self.gates)  # (n, 2, classes)
        return self.gain * (self.gates[:, None] * one_hot).sum(1)


def noisy_cues(num=4000, reliability=0.8, *, seed=0):
    """Classes, and two independent witnesses that are right with a probability."""
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=num)
    columns = []
    for _ in range(2):
        wrong = (y + rng.integers(1, CLASSES, size=num)) % CLASSES
        columns.append(np.where(rng.random(num) < reliability, y, wrong))
    return torch.from_numpy(np.stack(columns, 1)).double(), torch.from_numpy(y)


def alone_bits(reliability=0.8):
    """What a witness tells with the other one's averaged over a uniform draw: exactly, by the table."""
    q = (1 - reliability) / (CLASSES - 1)
    likelihood = np.full((CLASSES, CLASSES), q)
    np.fill_diagonal(likelihood, reliability)
    posterior = np.einsum("ya,yb->yab", likelihood, likelihood)
    averaged = (posterior / posterior.sum(0)).mean(2)  # (y, a)
    return 2 + float((likelihood / CLASSES * np.log2(averaged)).sum())


def gated_run(gates, data, num_resamples=200):
    models = [Gated(*gate) for gate in gates]
    loss = lh.Objective(models[0], data)
    return independent_bits(loss, models, views=cue_views(data, {"a": [0], "b": [1]}, num_resamples=num_resamples))


def channel_bits(reliability=0.8):
    """Mutual information of a class with one witness, and with two independent ones."""
    q = (1 - reliability) / (CLASSES - 1)
    one = 2 + reliability * math.log2(reliability) + (1 - reliability) * math.log2(q)
    likelihood = np.full((CLASSES, CLASSES), q)
    np.fill_diagonal(likelihood, reliability)
    joint = np.einsum("ya,yb->yab", likelihood, likelihood) / CLASSES
    two = -(joint * np.log2(joint.sum(0) / joint)).sum() + 2
    return one, two


def test_bits_of_gates_are_those_of_the_channel():
    """With a gate open the network is Bayes' rule: the second cue tells nothing before its gate opens."""
    data = noisy_cues()
    found = gated_run([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)], data)
    one, two = channel_bits()
    assert found.entropy == pytest.approx(2, abs=0.01)
    assert found.bits("a").tolist()[:2] == pytest.approx([0, one], abs=0.06)
    assert found.bits("b").tolist()[:2] == pytest.approx([0, 0], abs=0.01)
    assert found.adds("b").tolist() == pytest.approx([0, 0, two - alone_bits()], abs=0.06)
    assert found.adds("a")[1] == pytest.approx(one, abs=0.06)
    assert float(found.bits()[2]) == pytest.approx(two, abs=0.06)
    low, high = found.adds_interval("b")[2].tolist()
    assert low < two - alone_bits() < high
    # Averaged over what the other cue may say, a cue alone tells less than its channel does.
    assert float(found.bits("a")[2]) == pytest.approx(alone_bits(), abs=0.06)
    assert alone_bits() < one
    assert found.redundancy()[1] == pytest.approx(0, abs=0.01)


def test_newly_solved_examples_are_put_down_to_the_cue_that_solves_them():
    data = noisy_cues(reliability=0.7)
    found = gated_run([(0.0, 0.0), (1.0, 0.0), (1.0, 3.0)], data, num_resamples=60)
    shares = found.newly_solved()
    assert shares.shape == (2, len(SOLVED_BY))
    assert float(shares[0, 0]) > 0.3 > 0.2 > float(shares[0, 1:].sum())  # ties of closed gates go to one class
    assert float(shares[1, 1]) > 0.1
    assert float(shares[1, 0]) == 0.0
    right = found.is_right["both"]
    assert shares.sum(1).tolist() == pytest.approx(
        [float((b & ~a).double().mean()) for a, b in itertools.pairwise(right)]
    )
    at = found.solved_at()
    assert set(at.tolist()) <= {0.0, 1.0, 2.0, math.inf}
    assert bool((right[-1] == at.isfinite()).all())


def solved(x, y, targets):
    """A result in which the first cue solves x and the second y, at a single checkpoint after an empty one."""
    empty = torch.zeros(1, len(x), dtype=torch.bool)
    right = {"a": torch.cat([empty, x[None]]), "b": torch.cat([empty, y[None]])}
    right["both"] = right["a"] | right["b"]
    surprise = {name: torch.zeros(2, len(x), dtype=torch.float64) for name in right}
    return IndependentBits(("a", "b"), torch.arange(2), surprise, right, targets, 1)


@pytest.mark.parametrize(
    ("kind", "expected"), [("same", (1.5, 1e9)), ("different", (0.0, 0.7)), ("independent", (1, 1))]
)
def test_same_different_and_independent_examples_are_told_apart(kind, expected):
    """Easy classes, in which both cues solve more, are no dependence."""
    covered, total = 0, 40
    for seed in range(total):
        rng = np.random.default_rng(seed)
        targets = rng.integers(4, size=600)
        chance = np.array([0.15, 0.4, 0.6, 0.9])[targets]
        x = rng.random(600) < chance
        y = rng.random(600) < chance
        share = rng.random(600) < 0.5
        y = np.where(share, {"same": x, "different": ~x, "independent": y}[kind], y)
        odds = solved(*map(torch.from_numpy, (x, y, targets))).same_examples()
        low, high = odds.interval[1].tolist()
        if kind == "independent":
            covered += low < 1 < high
        else:
            covered += (expected[0] < low and high < expected[1]) or expected[0] < odds.value[1] < expected[1]
    assert covered >= (34 if kind == "independent" else 40)


def test_the_odds_ratio_is_that_of_the_formula():
    """Two strata by hand: (a, b, c, d) = (10, 5, 4, 21), (8, 12, 3, 17)."""
    x, y, strata = [], [], []
    for stratum, (a, b, c, d) in enumerate([(10, 5, 4, 21), (8, 12, 3, 17)]):
        x += [1] * (a + b) + [0] * (c + d)
        y += [1] * a + [0] * b + [1] * c + [0] * d
        strata += [stratum] * (a + b + c + d)
    x, y, strata = np.array(x, bool), np.array(y, bool), np.array(strata)
    value, (low, high) = mantel_haenszel(x, y, strata, among=np.ones_like(x), confidence=0.95)
    assert value == pytest.approx((10 * 21 / 40 + 8 * 17 / 40) / (5 * 4 / 40 + 12 * 3 / 40))
    assert low < value < high
    assert math.log(high / value) == pytest.approx(math.log(value / low))
    # One stratum: the variance is Woolf's, 1/a + 1/b + 1/c + 1/d.
    one = strata == 0
    value, (low, high) = mantel_haenszel(x, y, strata, among=one, confidence=0.95)
    assert math.log(high / low) == pytest.approx(2 * 1.959964 * math.sqrt(1 / 10 + 1 / 5 + 1 / 4 + 1 / 21), rel=1e-5)
    assert mantel_haenszel(x, y, strata, among=np.zeros_like(x), confidence=0.95)[1] == (0.0, math.inf)


def test_gaps_are_filled_or_doubled():
    """A cue that is newly read where the other fails, and one that is newly read where the other is right."""
    rng = np.random.default_rng(0)
    targets, had = torch.from_numpy(rng.integers(3, size=900)), torch.from_numpy(rng.random(900) < 0.5)
    often, seldom = torch.from_numpy(rng.random(900) < 0.6), torch.from_numpy(rng.random(900) < 0.1)

    def run(x):
        before, both = torch.zeros_like(had), had | x
        right = {"a": torch.stack([before, x]), "b": torch.stack([had, had]), "both": torch.stack([had, both])}
        surprise = {name: torch.zeros(2, 900, dtype=torch.float64) for name in right}
        return IndependentBits(("a", "b"), torch.arange(2), surprise, right, targets, 1).fills_gaps("a")

    filling, doubling = run(torch.where(had, seldom, often)), run(torch.where(had, often, seldom))
    assert filling.interval[0, 1] < 0.2
    assert doubling.interval[0, 0] > 5


def test_order_agreement_is_within_classes():
    """Solved in the order of ease within each class, with the classes the other way round."""
    targets = torch.arange(3).repeat_interleave(20)
    ease = torch.arange(60.0)
    step = torch.arange(20).repeat(3) // 5 + 10 * (2 - targets)  # class 2 first
    steps = torch.arange(31)
    right = steps[:, None] >= step[None, :]
    surprise = torch.zeros(31, 60, dtype=torch.float64)
    names = ("both", "a", "b")
    found = IndependentBits(("a", "b"), steps, dict.fromkeys(names, surprise), dict.fromkeys(names, right), targets, 1)
    assert found.order_agreement("both", ease) > 0.95
    assert found.order_agreement("a", -ease) < -0.95
    assert math.isnan(found.order_agreement("a", torch.zeros(60)))
    with pytest.raises(ValueError, match="ease has shape"):
        found.order_agreement("a", ease[1:])


@pytest.fixture(scope="module")
def delayed():
    """Towers whose pattern is shown from step 200 on."""
    few = lh.mnist()
    few = lh.datasets.MNIST(
        lh.datasets.DigitImages(*few.train[:600]), lh.datasets.DigitImages(*few.test[:400]), source=few.source
    )
    views = lh.paired_mnist(few, opacity=0.5, patterns_per_class=5, number_only=0, pattern_only=0, seed=0)
    images = two_channels(views)
    generator = torch.Generator().manual_seed(0)
    made = {
        cue: Tower({cue: 1.0}, {cue: i}, hidden=12, generator=generator) for i, cue in enumerate(("number", "pattern"))
    }
    model = TowerSum(made)
    options = {"log_every": 50, "batch_size": 32, "lr": 0.01, "checkpoints": 1, "schedule": "constant", "seed": 0}
    loss = lh.Objective(model, images.train["mixed"])
    _, first = train_in_steps(model, images.train["number"], num_steps=200, **options)
    _, then = train_in_steps(model, images.train["mixed"], num_steps=200, **options)
    rows = torch.cat([first.checkpoints, then.checkpoints[1:]])
    held_out = cue_views(images.test["mixed"], {"number": [0], "pattern": [1]}, num_resamples=4)
    return independent_bits(loss, rows, views=held_out, steps=range(0, 401, 50), progress=False)


def test_a_delayed_cue_adds_nothing_before_it_is_shown_and_something_afterwards(delayed):
    added = delayed.adds("pattern")
    assert bool((added[:5] < 0.05).all())
    assert float(added[-1]) > 0.4
    assert bool((delayed.adds("number")[2:] > 0.5).all())
    assert delayed.adds_interval("pattern")[-1, 0] > 0.2
    assert bool((delayed.bits("pattern")[:5] < 0.1).all())
    before, after = delayed.newly_solved()[:4].sum(0), delayed.newly_solved()[4:].sum(0)
    assert before[0] > 0.5 > 0.05 > before[1] + before[3]  # by the number alone, chance agreements apart
    assert after[1] + after[3] > 1.5 * (after[0] + after[2])  # the number alone does not solve them, the pattern helps


def test_results_are_saved(delayed, tmp_path):
    delayed.save(tmp_path / "bits.npz")
    again = IndependentBits.load(tmp_path / "bits.npz")
    assert repr(again) == repr(delayed)
    assert torch.equal(again.adds("number"), delayed.adds("number"))


def test_blended_digits_have_views_of_their_own():
    digits = lh.mnist()
    few = lh.datasets.MNIST(
        lh.datasets.DigitImages(*digits.train[:50]), lh.datasets.DigitImages(*digits.test[:40]), source=digits.source
    )
    paired = lh.paired_mnist(few, seed=0)
    views = paired_digits_views(paired, num_resamples=3, seed=1)
    assert [len(shown) for shown in views.alone.values()] == [3, 3]
    for shown in views.alone["number"]:
        rest = shown - paired.number.test.inputs
        found = (rest[:, None] - paired.pattern.test.inputs[None]).abs().amax((2, 3, 4)) < 1e-6
        assert bool(found.any(1).all())
    model = lh.SigmoidCNN(2, seed=0)
    found = independent_bits(lh.Objective(model, paired.mixed.train), [model], views=views)
    assert found.cues == ("number", "pattern")
    assert "1 checkpoints, 40 examples" in repr(found)


def gated_loss():
    return lh.Objective(Gated(0.0, 0.0), noisy_cues(20))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda v: independent_bits(lh.FunctionObjective(lambda x: (x * x).sum(), torch.ones(2)), [], views=v),
            "loss is a",
        ),
        (lambda v: independent_bits(gated_loss(), [], views=v), "checkpoints is a list of length 0"),
        (lambda v: independent_bits(gated_loss(), [Gated(0.0, 0.0)], views=v, steps=[1, 2]), r"steps has shape \(2,\)"),
        (lambda v: independent_bits(gated_loss(), [Gated(0.0, 0.0)], views=3), "views is an int"),
        (
            lambda v: independent_bits(
                gated_loss(), [Gated(0.0, 0.0)], views=CueViews(v.inputs, v.targets, {"a": [v.inputs]})
            ),
            r"views has the cues \['a'\]",
        ),
        (
            lambda v: independent_bits(
                gated_loss(), [Gated(0.0, 0.0)], views=CueViews(v.inputs, v.targets, {**v.alone, "a": [v.inputs[1:]]})
            ),
            "views shows 'a' in shapes",
        ),
        (lambda v: cue_views(noisy_cues(20), {"a": [0]}), r"cues are \['a'\]"),
        (lambda v: cue_views(noisy_cues(20), {"a": [0], "b": [1]}, num_resamples=0), "num_resamples is 0"),
    ],
)
def test_bad_input(make, message):
    views = cue_views(noisy_cues(20), {"a": [0], "b": [1]}, num_resamples=2)
    with pytest.raises((ValueError, TypeError), match=message):
        make(views)
