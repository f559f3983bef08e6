"""The modular networks against loops written by hand, their symmetry, their seeds, and derivatives of every order."""

import math

import pytest
import torch
import torch.nn.functional as F

import lowhanging as lh


def by_hand(model: lh.ModularMLP, a: int, b: int) -> torch.Tensor:
    """Logits of one pair, unit by unit."""
    x = model.embedding[a] + model.embedding[b]
    activation = {"silu": F.silu, "sigmoid": torch.sigmoid, "gelu": F.gelu, "tanh": torch.tanh}[model.activation]
    if not model.is_blocked:
        bias = 0 if model.bias is None else model.bias
        return activation(x @ model.first + bias) @ model.unembedding
    logits = torch.zeros(model.p, dtype=x.dtype)
    for j in range(model.width // 2):
        bias = 0 if model.bias is None else model.bias[j]
        hidden = activation(model.first[j].T @ x[2 * j : 2 * j + 2] + bias)
        y = model.second[j].T @ hidden
        logits = logits + y[0] * model.unembedding[2 * j] + y[1] * model.unembedding[2 * j + 1]
    return logits


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["silu", "sigmoid", "gelu", "tanh"])
def test_the_mlp_is_what_its_docstring_says(blocks, bias, activation):
    model = lh.ModularMLP(7, width=6, hidden=5, blocks=blocks, bias=bias, activation=activation, seed=0).double()
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    logits = model(pairs)
    assert logits.shape == (49, 7)
    for (a, b), row in zip(pairs.tolist(), logits, strict=True):
        assert torch.allclose(row, by_hand(model, a, b), atol=1e-12)
    assert torch.allclose(logits, model(pairs.flip(1)), atol=1e-12)
    assert torch.equal(model(torch.cat([pairs, torch.full((49, 1), 7)], dim=1)), logits)
    count = 7 * 6 + (3 * (2 * 5 + 5 * 2 + 5 * bias) + 6 * 7 if blocks else 6 * 5 + 5 * bias + 5 * 7)
    assert sum(weight.numel() for weight in model.parameters()) == count


def test_an_odd_activation_without_a_bias_has_no_even_harmonics():
    """The docstring's reason for a bias: logits(-x) = -logits(x) up to a constant."""
    for activation in ("tanh", "sigmoid"):
        model = lh.ModularMLP(11, activation=activation, seed=0).double()
        x = torch.randn(5, 20, dtype=torch.float64)
        assert torch.allclose(model.logits(x) + model.logits(-x), 2 * model.logits(0 * x), atol=1e-10)
    silu = lh.ModularMLP(11, seed=0).double()
    assert not torch.allclose(silu.logits(x) + silu.logits(-x), 2 * silu.logits(0 * x), atol=0.1)


def attention_by_hand(model: lh.ModularTransformer, tokens: list[int]) -> torch.Tensor:
    x = [model.embedding[token] + model.position[i] for i, token in enumerate(tokens)]
    size = model.width // model.num_heads
    mixed = []
    for head in range(model.num_heads):
        columns = slice(head * size, (head + 1) * size)
        query = x[2] @ model.query[:, columns]
        scores = torch.stack([query @ (row @ model.key[:, columns]) / math.sqrt(size) for row in x])
        weights = scores.exp() / scores.exp().sum()
        mixed.append(sum(w * (row @ model.value[:, columns]) for w, row in zip(weights, x, strict=True)))
    stream = x[2] + torch.cat(mixed) @ model.output
    hidden = F.gelu(stream @ model.first + model.first_bias)
    return (stream + hidden @ model.second + model.second_bias) @ model.unembedding


def test_the_transformer_is_what_its_docstring_says():
    model = lh.ModularTransformer(5, width=8, num_heads=2, hidden=12, seed=0).double()
    with torch.no_grad():
        model.first_bias += torch.linspace(-1, 1, 12)
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    logits = model(pairs)
    for (a, b), row in zip(pairs.tolist(), logits, strict=True):
        assert torch.allclose(row, attention_by_hand(model, [a, b, 5]), atol=1e-12)
    assert torch.equal(model(torch.cat([pairs, torch.full((25, 1), 5)], dim=1)), logits)
    assert not torch.allclose(logits, model(pairs.flip(1)), atol=1e-6)  # positions tell a from b
    attention = model.attention(pairs)
    assert attention.shape == (25, 2, 3)
    assert torch.allclose(attention.sum(-1), torch.ones(25, 2, dtype=torch.float64))
    a, head, size = 3, 1, 4
    query = (model.embedding[5] + model.position[2]) @ model.query[:, 4:]
    keys = [(model.embedding[token] + model.position[i]) @ model.key[:, 4:] for i, token in enumerate((a, 1, 5))]
    by_hand = torch.stack([query @ key / math.sqrt(size) for key in keys]).softmax(0)
    assert torch.allclose(attention[5 * a + 1, head], by_hand)
    full = lh.ModularTransformer(113, width=128, hidden=512, seed=0)
    assert sum(weight.numel() for weight in full.parameters()) == (
        114 * 128 + 3 * 128 + 4 * 128**2 + 2 * 128 * 512 + 512 + 128 + 128 * 113
    )


@pytest.mark.parametrize("make", [lh.ModularMLP, lh.ModularTransformer])
def test_seeds_are_private_and_every_tool_takes_the_models(make):
    state = torch.get_rng_state()
    one, same, other = (make(11, width=8, hidden=6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.embedding, same.embedding)
    assert not torch.equal(one.embedding, other.embedding)
    data = lh.modular_addition(11, 0.8)
    report = lh.testing.check_model(one, data.train)
    assert report.ok, report
    assert lh.Objective(one, data.train)(lh.Objective(one, data.train).theta0) < 20


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lh.ModularMLP, {"width": 7}, "width is 7, expected an even number, two per block"),
        (lh.ModularMLP, {"p": 1}, "p is 1, expected an integer of at least 2"),
        (lh.ModularMLP, {"activation": "relu"}, "activation is 'relu', expected one of 'silu'"),
        (lh.ModularMLP, {"scale": -1.0}, "scale is -1"),
        (lh.ModularTransformer, {"num_heads": 3}, "num_heads is 3, which does not divide the width 64"),
        (lh.ModularTransformer, {"activation": "sine"}, "activation is 'sine', expected one of 'relu', 'gelu', 'silu'"),
    ],
)
def test_bad_arguments(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
