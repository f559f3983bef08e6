"""Are the planted frequencies in the weights, in the logits, and nowhere once ablated?

Oracles: the sum of cosines, written again; the Fourier instruments of `circuits`.
"""

import math

import pytest
import torch

import lowhanging as lh
from lowhanging.circuits import circle_score, key_frequencies
from lowhanging.planted import modular

PAIRS = lh.modular_addition(29, 1.0).train


def cosines(strengths, p=29):
    """Logits (p^2, p) as a sum of cosines, float64."""
    difference = PAIRS.targets[:, None] - torch.arange(p)
    return sum(s * torch.cos(2 * math.pi * k / p * difference.double()) for k, s in strengths.items())


def logits(network, theta):
    return network.losses["mixed"].model_at(theta)(PAIRS.inputs).detach().double()


@pytest.mark.parametrize("rotated", [False, True])
def test_logits_are_the_formula(rotated):
    network = modular(amplitude=(3.0, 5.0, 8.0), rotated=rotated)
    found = logits(network, network.theta)
    assert float((found - cosines({3: 3.0, 5: 5.0, 7: 8.0})).abs().max()) < 1e-5
    loss, accuracy = network.losses["mixed"].evaluate(network.theta)
    assert accuracy == 1
    assert float(loss) == pytest.approx(
        float(torch.nn.functional.cross_entropy(cosines({3: 3.0, 5: 5.0, 7: 8.0}), PAIRS.targets)), rel=1e-4
    )
    assert network.num_params == 348
    assert network.circuits == ("k=3", "k=5", "k=7")
    assert network.minimum is network.conflict is None
    assert "k=3 / k=5 / k=7 in a FourierAddition, 348 parameters" in repr(network)


@pytest.mark.parametrize("rotated", [False, True])
def test_an_ablated_frequency_leaves_the_logits(rotated):
    network = modular(rotated=rotated)
    for gone in (3, 5, 7):
        theta = network.ablated(f"k={gone}")
        kept = {k: 5.0 for k in (3, 5, 7) if k != gone}
        assert float((logits(network, theta) - cosines(kept)).abs().max()) < 1e-5
        embedding = theta[: 29 * 6].reshape(29, 6)
        assert sorted(key_frequencies(embedding).tolist()) == sorted(kept)
        # Nothing brings it back but both of its tensors.
        weights = theta.clone()
        weights[: 29 * 6] = network.theta[: 29 * 6]
        assert float((logits(network, weights) - cosines(kept)).abs().max()) < 1e-5


def test_instruments_see_the_circles():
    network = modular()
    scores = circle_score(network.model.embedding)
    assert scores.frequency.tolist() == [3, 5, 7]
    assert float(scores.score.min()) > 1 - 1e-9
    assert scores.rms.tolist() == pytest.approx([5 ** (1 / 3)] * 3)
    assert circle_score(network.model.unembedding).frequency.tolist() == [3, 5, 7]


def test_a_rotation_hides_the_circles_and_nothing_else():
    plain, turned = modular(), modular(rotated=True)
    with pytest.warns(UserWarning, match=r"circles of the frequencies \[3, 5, 7\] in others"):
        assert float(circle_score(turned.model.embedding).score.max()) < 0.75
    found = circle_score(turned.model.embedding, planes="frequencies")
    assert found.frequency[found.is_circle].tolist() == [3, 5, 7]
    assert found.score[[2, 4, 6]].tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert sorted(key_frequencies(turned.model.embedding).tolist()) == [3, 5, 7]
    R = turned.model.rotation.double()
    assert torch.allclose(R @ R.T, torch.eye(6, dtype=torch.float64), atol=1e-6)
    assert float(torch.linalg.det(R)) == pytest.approx(1, abs=1e-6)
    losses = [float(network.losses["mixed"](network.theta)) for network in (plain, turned)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert torch.equal(turned.theta, modular(rotated=True).theta)
    assert not torch.equal(turned.theta, modular(rotated=True, seed=1).theta)


@pytest.mark.parametrize("rotated", [False, True])
def test_shares(rotated):
    network = modular(amplitude=(1.0, 8.0, 27.0), rotated=rotated)
    # Radii 1, 2, 3: squares 1, 4, 9.
    assert network.share(network.theta) == pytest.approx({"k=3": 1 / 14, "k=5": 4 / 14, "k=7": 9 / 14}, abs=1e-6)
    for name in network.circuits:
        shares = network.share(network.theta - network.ablated(name))
        assert shares[name] == pytest.approx(1, abs=1e-6)
        assert sum(shares.values()) == pytest.approx(1)


def test_states_are_untouched():
    before = torch.get_rng_state()
    modular(rotated=True)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"p": 2}, ValueError, "p is 2, expected an integer of at least 3"),
        ({"frequencies": (3, 15)}, ValueError, "from 1 to 14.\nPass different integers"),
        ({"frequencies": (3, 3)}, ValueError, r"frequencies is \[3, 3\], expected different ones"),
        ({"frequencies": ()}, ValueError, "at least one"),
        ({"frequencies": 3}, TypeError, "frequencies is an int"),
        ({"p": 15, "frequencies": (3, 6)}, ValueError, "all multiples of 3, which divides p = 15"),
        ({"amplitude": 0}, ValueError, "amplitude is 0"),
        ({"amplitude": (1, 2)}, ValueError, "amplitude has 2 entries, expected one for each of 3 frequencies"),
    ],
)
def test_errors(how, error, message):
    with pytest.raises(error, match=message):
        modular(**how)


def test_unknown_circuit():
    with pytest.raises(ValueError, match="name is 'k=4', expected one of 'k=3', 'k=5', 'k=7'"):
        modular().ablated("k=4")
