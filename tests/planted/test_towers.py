"""Are the circuits where the construction says, are they learned, and is an ablation exact?

Oracles: the counts of weights on paper; losses of inputs whose cue was replaced by noise, which an exact ablation can't
tell from the original; the views that the images are made of, cue by cue.
"""

import random
import sys

import numpy as np
import pytest
import torch

import lowhanging as lh
from lowhanging.datasets import MNIST, DigitImages
from lowhanging.planted import nested, shared_trunk, three, towers

MADE = {
    "towers": towers,
    "overlap": lambda views, **how: towers(views, overlap=0.5, **how),
    "three": three,
    "nested": nested,
    "trunk": shared_trunk,
}
MODULE = sys.modules["lowhanging.planted.towers"]  # in the package, the function has its name
CHANNEL = {"number": 0, "pattern": 1, "mark": 2}


@pytest.fixture(scope="module")
def views():
    digits = lh.mnist()
    few = MNIST(DigitImages(*digits.train[:600]), DigitImages(*digits.test[:300]))
    return lh.paired_mnist(few, opacity=0.4, patterns_per_class=3, number_only=0.25, pattern_only=0.2, seed=1)


@pytest.fixture(scope="module")
def planted(views):
    before = states()
    made = {name: make(views, progress=False) for name, make in MADE.items()}
    assert states() == before  # no global random state was touched
    return made


def states():
    legacy = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), legacy[1].tolist(), legacy[2], random.getstate()


def images(network, name, data="losses"):
    """The held-out inputs and targets of a loss."""
    batches = [*getattr(network, data)[name].batches]
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([targets for _, targets in batches])


@pytest.mark.parametrize(
    ("name", "size", "circuits"),
    [
        ("towers", 4988, ("number", "pattern")),
        ("overlap", 9692, ("number", "pattern")),
        ("three", 7482, ("number", "pattern", "mark")),
        ("nested", 3224, ("whole", "part")),
        ("trunk", 9682, ("number", "pattern")),
    ],
)
def test_what_is_made(planted, name, size, circuits):
    network = planted[name]
    assert network.num_params == size == len(network.theta)
    assert network.circuits == circuits
    assert list(network.losses) == list(network.train_losses)
    assert {"mixed", *circuits} <= set(network.losses)
    assert f"{' / '.join(circuits)} in a TowerSum, {size:,} parameters" in repr(network)
    assert "\n" not in repr(network)
    for loss in (*network.losses.values(), *network.train_losses.values()):
        assert torch.equal(loss.theta0, network.theta)
    assert torch.equal(network.losses["mixed"].space.flatten(network.model), network.theta)


@pytest.mark.parametrize("name", MADE)
def test_theta_is_a_minimum(planted, name):
    minimum = planted[name].minimum
    assert minimum.is_minimum
    assert minimum.gradient_norm <= 1e-6
    assert torch.equal(minimum.theta, planted[name].theta)
    gradient = planted[name].train_losses["mixed"].gradient(minimum.theta)
    assert float((gradient + minimum.anchor * (minimum.theta - minimum.start)).norm()) < 2e-6


@pytest.mark.parametrize("name", MADE)
def test_circuits_are_learned(planted, name):
    network = planted[name]
    accuracy = {loss: network.losses[loss].evaluate(network.theta)[1] for loss in network.losses}
    assert accuracy["mixed"] > (0.8 if name == "nested" else 0.93)
    for circuit in network.circuits:
        assert accuracy[circuit] > 0.7, accuracy
        ablated = network.losses[circuit].evaluate(network.ablated(circuit))[1]
        assert ablated < 0.2


@pytest.mark.parametrize("name", ["towers", "overlap", "three", "trunk"])
def test_without_a_circuit_its_channel_is_not_read(planted, name):
    network = planted[name]
    inputs, targets = images(network, "mixed")
    for circuit in network.circuits:
        noisy = inputs.clone()
        noisy[:, CHANNEL[circuit]] = torch.rand(len(inputs), 28, 28)
        original, replaced = (lh.Objective(network.model, (x, targets)) for x in (inputs, noisy))
        assert float(original(network.ablated(circuit))) == float(replaced(network.ablated(circuit)))
        assert abs(float(original(network.theta)) - float(replaced(network.theta))) > 0.02
        # Nothing but that channel's weights is touched.
        for kept in set(network.circuits) - {circuit}:
            alone = network.losses[kept]
            assert float(alone(network.ablated(circuit))) == pytest.approx(float(alone(network.theta)), rel=1e-6)


def test_a_part_and_its_whole(planted):
    network = planted["nested"]
    inputs, targets = images(network, "mixed")
    crop = torch.zeros(28, 28, dtype=torch.bool)
    crop[7:21, 7:21] = True
    noise = torch.rand_like(inputs)
    inside, outside = torch.where(crop, noise, inputs), torch.where(crop, inputs, noise)
    losses = [lh.Objective(network.model, (x, targets)) for x in (inputs, inside, outside)]
    same, changed, also = (float(loss(network.ablated("part"))) for loss in losses)
    assert same == changed != also
    assert len({float(loss(network.ablated("whole"))) for loss in losses}) == 1
    assert len({float(loss(network.theta)) for loss in losses}) == 3
    assert (network.ablated("whole")[network.ablated("part") == 0] == 0).all()
    assert network.conflict is None
    number = network.losses["whole"]
    assert float(number(network.theta)) == float(network.losses["mixed"](network.theta))
    assert torch.equal(images(network, "part")[0] + images(network, "rest")[0], inputs)
    assert (images(network, "part_resampled")[0] == inputs)[:, :, 7:21, 7:21].all()
    assert not (images(network, "part_resampled")[0] == inputs).all()
    mixed = images(network, "mixed", "train_losses")[0]
    assert bool(((mixed * ~crop).flatten(1).sum(1) == 0).any())
    assert bool(((mixed * crop).flatten(1).sum(1) == 0).any())


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.0])
def test_shares_by_overlap(planted, views, overlap, monkeypatch):
    monkeypatch.setattr(MODULE, "_MIN_EPOCHS", 10)  # only the shares are looked at
    monkeypatch.setattr(MODULE, "_MIN_STEPS", 100)
    network = {0.0: planted["towers"], 0.5: planted["overlap"]}.get(overlap)
    network = network or towers(views, overlap=1.0, progress=False)
    space = network.losses["mixed"].space

    def direction(names):
        vector = torch.zeros(network.num_params)
        where = space.positions([name for name in space.names if names(name)])
        vector[where] = torch.randn(len(where))
        return vector

    anywhere = network.share(direction(lambda name: True))
    assert sum(anywhere.values()) == pytest.approx(1, abs=1e-12)
    tower = network.share(direction(lambda name: name.startswith("towers.number.")))
    assert sum(tower.values()) == pytest.approx(1, abs=1e-12)
    assert (tower["number"] == 1) == (overlap == 0)
    behind = network.share(direction(lambda name: name.startswith("towers.number.") and ".reads." not in name))
    assert behind["number"] == pytest.approx(1 - overlap / 2, abs=1e-12)
    assert behind["pattern"] == pytest.approx(overlap / 2, abs=1e-12)
    inputs = network.share(1e-30 * direction(lambda name: name.endswith("reads.pattern")))
    assert inputs == {"number": 0, "pattern": 1}
    assert network.share(7 * network.theta) == pytest.approx(network.share(network.theta))


def test_shares_in_a_trunk_and_in_nested_towers(planted):
    network = planted["trunk"]
    vector = torch.zeros(network.num_params)
    vector[network.losses["mixed"].space.positions(["towers.trunk.readout"])] = 1.0
    assert network.share(vector) == pytest.approx({"number": 0.5, "pattern": 0.5})
    network = planted["nested"]
    vector = network.theta - network.ablated("part")
    inside = network.share(vector)  # the whole's weights on the part are the whole's
    assert 0.1 < inside["part"] < 0.9
    assert sum(inside.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["towers", "overlap", "three", "trunk"])
def test_answers_move_when_a_circuit_is_ablated(planted, name):
    network = planted[name]
    assert network.conflict.cues == network.circuits
    before = network.conflict(network.theta)
    for circuit in network.circuits:
        after = network.conflict(network.ablated(circuit))
        assert after[circuit] < 0.15
        assert after[circuit] < before[circuit]
        others = [other for other in network.circuits if other != circuit]
        assert sum(after[other] for other in others) > sum(before[other] for other in others)
    if len(network.circuits) == 2:
        shift = network.conflict.shift(network.ablated("pattern"), network.theta, towards="number", away="pattern")
        assert shift.low > 0.1


def test_channels_show_the_views(planted, views):
    network = planted["towers"]
    mixed, targets = images(network, "mixed", "train_losses")
    shown, number, pattern = views.mixed.train, views.number.train.inputs, views.pattern.train.inputs
    assert torch.equal(targets, shown.targets)
    assert torch.equal(mixed.sum(1, keepdim=True), shown.inputs)  # the blend, cue by cue
    assert torch.equal(mixed[:, :1].flatten(1).any(1), shown.has_number)
    assert torch.equal(images(network, "number", "train_losses")[0], torch.cat([number, 0 * pattern], 1))
    moved = images(network, "number_resampled", "train_losses")[0]
    assert torch.equal(moved, torch.cat([number, pattern[views.number_resampled.train.source]], 1))
    moved = images(network, "pattern_resampled")[0]
    resampled = views.pattern_resampled.test
    assert torch.equal(moved.sum(1, keepdim=True), resampled.inputs)
    conflict = torch.cat([inputs for inputs, _ in network.conflict._batches])
    assert torch.equal(conflict[:, :1], views.number.test.inputs)
    assert torch.equal(conflict.sum(1, keepdim=True), views.conflict.inputs)
    assert conflict[:, 1].unique().tolist() == pytest.approx([0, 0.4])


def test_three_cues(planted, views):
    network = planted["three"]
    mixed, targets = images(network, "mixed", "train_losses")
    shown = mixed.flatten(2).any(2)  # (n, 3)
    single, train = shown.sum(1) == 1, views.mixed.train
    assert set(shown.sum(1).tolist()) == {1, 3}
    for channel, share in ((0, 0.25), (1, 0.2), (2, 0.11)):
        assert float((single & shown[:, channel]).double().mean()) == pytest.approx(share, abs=0.04)
    assert torch.equal(shown[:, 0] & single, ~train.has_pattern)
    # The mark says the class, by patterns that are not those of the other channel.
    mark, pattern = (images(network, name, "train_losses")[0][:, c] for name, c in (("mark", 2), ("pattern", 1)))
    for label in range(10):
        kinds = mark[targets == label].flatten(1).unique(dim=0)
        assert 1 < len(kinds) <= 3
        others = pattern[targets == label].flatten(1).unique(dim=0)
        assert not any(torch.equal(kind, other) for kind in kinds for other in others)
    moved = images(network, "number_resampled")[0]
    sources = [(moved[:, c, None] == images(network, "mixed")[0][None, :, c]).flatten(2).all(2) for c in (1, 2)]
    assert all(bool(source.any(1).all()) for source in sources)
    assert not (sources[0] & sources[1]).any(1).all()  # not the same example's pattern and mark
    labels = torch.cat([labels for _, labels in network.conflict._batches])
    assert (labels.sort(1).values.diff(dim=1) > 0).all()


def test_a_seed_makes_the_same_network_again(views, monkeypatch):
    monkeypatch.setattr(MODULE, "_MIN_EPOCHS", 10)
    monkeypatch.setattr(MODULE, "_MIN_STEPS", 100)
    first, again, other = (towers(views, seed=seed, progress=False).theta for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert float((first - other).norm()) > 1


def test_a_steering_direction_has_shares(planted):
    """The direction that ablates the pattern has more of the pattern's weights than the one that ablates the number."""
    network = planted["towers"]
    number, pattern = (network.train_losses[name] for name in ("number_resampled", "pattern_resampled"))
    kept = network.share(lh.steering_direction(preserve=number, ablate=pattern, k=5))
    lost = network.share(lh.steering_direction(preserve=pattern, ablate=number, k=5))
    assert sum(kept.values()) == pytest.approx(1)
    assert kept["pattern"] > lost["pattern"]


def test_errors(planted, views):
    network = planted["towers"]
    with pytest.raises(ValueError, match=r"name is 'mark', expected one of 'number', 'pattern'.\nName a circuit"):
        network.ablated("mark")
    with pytest.raises(ValueError, match=r"direction has shape \(3,\), expected \(4988,\).*TowerSum.\nPass"):
        network.share(torch.ones(3))
    with pytest.raises(ValueError, match="the zero vector"):
        network.share(torch.zeros(4988))
    with pytest.raises(TypeError, match=r"views is an? MNIST, expected a PairedMNIST.\nMake them"):
        towers(lh.mnist())
    with pytest.raises(ValueError, match=r"overlap is 1.5, expected a finite number in \[0, 1\].\n0 for separate"):
        towers(views, overlap=1.5)
    with pytest.raises(ValueError, match="hidden is 0"):
        three(views, hidden=0)
    with pytest.raises(ValueError, match="seed is -1"):
        nested(views, seed=-1)
    black = lh.paired_mnist(MNIST(DigitImages(*lh.mnist().train[:20]), DigitImages(*lh.mnist().test[:20])), opacity=1)
    with pytest.raises(ValueError, match="views has opacity 1, at which one cue is black"):
        shared_trunk(black)
    with pytest.raises(ValueError, match=r"inputs has shape \(2, 1, 28, 28\), expected \(n, 2, 28, 28\).\nJoin"):
        network.model(torch.zeros(2, 1, 28, 28))
