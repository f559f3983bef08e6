"""Measures of progress on logit tables written by hand, where each has its value on paper; and on real networks."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lowhanging as lh
from lowhanging import circuits

P = 13
A, B, C = torch.meshgrid(*[torch.arange(P, dtype=torch.float64)] * 3, indexing="ij")
TURN = 2 * math.pi / P


def logits_of(table):
    return lambda inputs: table[inputs[:, 0], inputs[:, 1]]


def wave(f):
    """A clock: cos(2 pi f (a + b - c) / p)."""
    return torch.cos(TURN * f * (A + B - C))


def loss_of(table):
    a, b = torch.meshgrid(torch.arange(P), torch.arange(P), indexing="ij")
    return float(F.cross_entropy(table.flatten(0, 1), ((a + b) % P).flatten()))


class Pair(nn.Module):
    """Q_c = first_c . E_a + second_c . E_b: its gradients are first_c and second_c."""

    def __init__(self, first, second):
        super().__init__()
        self.embed = nn.Embedding(P, first.shape[1])
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)

    def forward(self, inputs):
        return self.embed(inputs[:, 0]) @ self.first.T + self.embed(inputs[:, 1]) @ self.second.T


def test_one_wave_is_all_of_its_own_restricted_loss_and_nothing_is_left_without_it():
    table = 3 * wave(4) + 0.7
    model = logits_of(table)
    assert circuits.restricted_loss(model, P, frequencies=[4]) == pytest.approx(loss_of(table), abs=1e-12)
    assert circuits.excluded_loss(model, P, frequencies=[4]) == pytest.approx(math.log(P), abs=1e-12)
    assert circuits.restricted_loss(model, P, frequencies=[3]) == pytest.approx(math.log(P), abs=1e-12)
    assert circuits.excluded_loss(model, P, frequencies=[3]) == pytest.approx(loss_of(table), abs=1e-12)


def test_waves_are_told_apart_and_the_constant_stays():
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(P, generator=generator, dtype=torch.float64)
    pizza = torch.cos(TURN * 2 * (A - B)) * torch.cos(TURN * 5 * C)  # depends on a - b: in no projection
    model = logits_of(2 * wave(1) + 3 * wave(6) + pizza + bias)
    assert circuits.restricted_loss(model, P, frequencies=[1]) == pytest.approx(loss_of(2 * wave(1) + bias), abs=1e-12)
    assert circuits.restricted_loss(model, P, frequencies=torch.tensor([6, 1])) == pytest.approx(
        loss_of(2 * wave(1) + 3 * wave(6) + bias), abs=1e-12
    )
    assert circuits.excluded_loss(model, P, frequencies=[1, 6]) == pytest.approx(loss_of(pizza + bias), abs=1e-12)


@pytest.mark.parametrize("p", [7, 8])
def test_projection_against_least_squares(p):
    """The projection on cosines and sines of a + b, fitted to a random table column by column."""
    table = torch.randn(p, p, p, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    data = lh.modular_addition(p, 0.5).train
    s = torch.arange(p, dtype=torch.float64)[:, None] + torch.arange(p)
    for wanted in ([2], [1, p // 2]):
        angles = [2 * math.pi * f * s.flatten() / p for f in wanted]
        waves = torch.stack([part for angle in angles for part in (angle.cos(), angle.sin())], 1)  # (p^2, 2k)
        flat = table.flatten(0, 1)
        fitted = waves @ (torch.linalg.pinv(waves, rtol=1e-8) @ flat)
        rows = data.inputs[:, 0] * p + data.inputs[:, 1]
        restricted = float(F.cross_entropy((fitted + flat.mean(0))[rows], data.targets))
        excluded = float(F.cross_entropy((flat - fitted)[rows], data.targets))
        assert circuits.restricted_loss(logits_of(table), p, frequencies=wanted, data=data) == pytest.approx(
            restricted, abs=1e-12
        )
        assert circuits.excluded_loss(logits_of(table), p, frequencies=wanted, data=data) == pytest.approx(
            excluded, abs=1e-12
        )


def test_all_frequencies_of_a_model_that_knows_the_sum_only_are_the_model():
    """A function of a + b mod p has no other component."""
    table = torch.randn(P, P, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    by_sum = table[(A[..., 0] + B[..., 0]).long() % P]
    every = range(1, P // 2 + 1)
    assert circuits.restricted_loss(logits_of(by_sum), P, frequencies=every) == pytest.approx(
        loss_of(by_sum), abs=1e-12
    )
    mean = table.mean(0).expand(P, P, P)
    assert circuits.excluded_loss(logits_of(by_sum), P, frequencies=every) == pytest.approx(loss_of(mean), abs=1e-12)


def test_distance_irrelevance_of_clocks_and_pizzas():
    angles = torch.cos(TURN * 3 * (A + B))  # the correct logit depends on a + b alone
    assert circuits.distance_irrelevance(logits_of(wave(3) + angles), P) == pytest.approx(1.0, abs=1e-12)
    pizza = torch.cos(TURN * 3 * (A - B) / 2).abs() * wave(3)  # correct logit |cos(pi f (a - b) / p)|
    assert circuits.distance_irrelevance(logits_of(pizza), P) == pytest.approx(0.0, abs=1e-7)
    # Of a sum of the two: std over a of the clock's part, over the square root of the sum of both variances.
    both = circuits.distance_irrelevance(logits_of(pizza + angles), P)
    distance = torch.cos(TURN * 3 * torch.arange(P, dtype=torch.float64) / 2).abs()
    variances = torch.tensor([0.5, float(distance.var(correction=0))])
    assert both == pytest.approx(float((variances[0] / variances.sum()).sqrt()), abs=1e-6)
    noise = torch.randn(P, P, P, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert circuits.distance_irrelevance(logits_of(noise), P) > 0.9  # nothing learnt is not "no pizza"


@pytest.mark.parametrize("blocks", [True, False])
def test_a_sum_of_embeddings_is_symmetric_trained_or_not(blocks):
    model = lh.ModularMLP(P, width=8, hidden=6, blocks=blocks, seed=0)
    assert circuits.gradient_symmetricity(model, P) == pytest.approx(1.0, abs=1e-12)


def test_gradient_symmetricity_on_paper():
    generator = torch.Generator().manual_seed(4)
    first, second = torch.randn(2, P, 5, generator=generator)
    expected = float(F.cosine_similarity(first.double(), second.double()).mean())
    found = circuits.gradient_symmetricity(Pair(first, second), P, embedding="embed.weight", num_samples=None)
    assert found == pytest.approx(expected, abs=1e-6)
    drawn = circuits.gradient_symmetricity(Pair(first, second), P, embedding="embed.weight", num_samples=4000)
    assert drawn == pytest.approx(expected, abs=4 / math.sqrt(4000))
    opposite = circuits.gradient_symmetricity(Pair(first, -2 * first), P, embedding="embed.weight")
    assert opposite == pytest.approx(-1.0, abs=1e-6)
    second[::2] = 0  # those classes have no cosine
    known = float(F.cosine_similarity(first.double(), second.double())[1::2].mean())
    found = circuits.gradient_symmetricity(Pair(first, second), P, embedding="embed.weight", num_samples=None)
    assert found == pytest.approx(known, abs=1e-6)


def test_gradients_of_the_transformer_one_pair_at_a_time():
    p = 5
    model = lh.ModularTransformer(p, width=8, num_heads=2, hidden=6, seed=0).double()
    total = 0.0
    for a, b, c in itertools.product(range(p), repeat=3):
        table = torch.cat([model.embedding, model.embedding[b : b + 1]]).detach().requires_grad_()  # b's own, if a = b
        logits = torch.func.functional_call(model, {"embedding": table}, (torch.tensor([[a, p + 1]]),))
        (gradient,) = torch.autograd.grad(logits[0, c], table)
        total += float(F.cosine_similarity(gradient[a], gradient[p + 1], dim=0))
    assert circuits.gradient_symmetricity(model, p, num_samples=None) == pytest.approx(total / p**3, abs=1e-12)


def test_modules_and_functions_agree_and_nothing_of_the_users_changes():
    model = lh.ModularTransformer(P, width=8, num_heads=2, hidden=6, seed=1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    data = lh.modular_addition(P, 0.5, equals_token=True).test
    ours = [
        circuits.restricted_loss(model, P, frequencies=[2, 3], data=data),
        circuits.excluded_loss(model, P, frequencies=[2, 3], data=data),
        circuits.distance_irrelevance(model, P),
    ]
    plain = lambda inputs: model(inputs)  # noqa: E731
    theirs = [
        circuits.restricted_loss(plain, P, frequencies=[2, 3], data=(data.inputs, data.targets)),
        circuits.excluded_loss(plain, P, frequencies=[2, 3], data=[data[:3], data[3:]]),
        circuits.distance_irrelevance(plain, P),
    ]
    assert ours == pytest.approx(theirs, abs=1e-12)
    first = circuits.gradient_symmetricity(model, P, num_samples=50, seed=1)
    assert first == circuits.gradient_symmetricity(model, P, num_samples=50, seed=1)
    assert first != circuits.gradient_symmetricity(model, P, num_samples=50, seed=2)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"frequencies": [7]}, ValueError, "a frequency is 7, expected an integer from 1 to 6"),
        ({"frequencies": [0]}, ValueError, "a frequency is 0, expected an integer from 1 to 6"),
        ({"frequencies": [1.5]}, TypeError, "a frequency is 1.5, expected an integer from 1 to 6"),
        ({"frequencies": []}, ValueError, r"frequencies are \[\], expected at least one, all different"),
        ({"frequencies": [2, 2]}, ValueError, r"frequencies are \[2, 2\], expected at least one, all different"),
        ({"frequencies": 3}, TypeError, "frequencies is 3, expected several integers"),
        ({"p": 2}, ValueError, "p is 2, expected an integer of at least 3"),
        ({"model": wave(1)}, TypeError, r"model is a Tensor, expected token pairs \(n, 2\) -> logits"),
        (
            {"model": logits_of(wave(1)[..., :5])},
            ValueError,
            r"the model's output has shape \(169, 5\) for 169 targets",
        ),
        ({"model": logits_of(wave(1) / 0)}, ValueError, "the model's output holds 2197 NaN or infinite entries"),
        ({"data": (torch.full((2, 2), P), torch.zeros(2).long())}, ValueError, "data has tokens from 13 to 13, expec"),
    ],
)
def test_bad_input(arguments, error, message):
    arguments = {"model": logits_of(wave(1)), "p": P, "frequencies": [1]} | arguments
    for measure in (circuits.restricted_loss, circuits.excluded_loss):
        with pytest.raises(error, match=message):
            measure(**arguments)


def test_measures_that_have_no_value():
    with pytest.raises(ValueError, match="model gives the correct answer the same logit, 1, for all pairs"):
        circuits.distance_irrelevance(logits_of(wave(2)), P)
    model = lh.ModularMLP(P, width=8, hidden=6, seed=0)
    with pytest.raises(ValueError, match=r"embedding is 'embed', .* expected the name of .*, among \['embedding'\]"):
        circuits.gradient_symmetricity(model, P, embedding="embed")
    with pytest.raises(ValueError, match="num_samples is 0, expected an integer of at least 1"):
        circuits.gradient_symmetricity(model, P, num_samples=0)
    with torch.no_grad():
        model.unembedding.zero_()
    with pytest.raises(ValueError, match="model has only zero gradients, expected logits that depend on both"):
        circuits.gradient_symmetricity(model, P)
