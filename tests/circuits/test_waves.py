"""Waves at the logits and in hidden units: against sums written as loops, planted tables, chance on paper, and networks
trained in seconds, with the untrained ones beside them.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lowhanging as lh
from lowhanging import circuits

P = 13
TURN = 2 * math.pi / P
A, B, C = torch.meshgrid(*[torch.arange(P, dtype=torch.float64)] * 3, indexing="ij")


def lookup(table):
    return lambda pairs: table[pairs[:, 0], pairs[:, 1]]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(f, phase=0.0):
    return torch.cos(TURN * f * (A + B - C) + phase)


class Network(nn.Module):
    """Somebody else's: an embedding, a hidden layer with dropout, one output per class."""

    def __init__(self, p=P, units=7):
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(p, 4)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(8, units), nn.Tanh(), nn.Dropout(0.5), nn.Linear(units, p))

    def forward(self, pairs):
        return self.layers(self.embed(pairs))


@pytest.fixture(scope="module")
def run():
    """Two seeds of a small network, six logs each, and their data."""
    data = lh.modular_addition(23, 0.8, seed=0)
    factory = lambda seed: lh.ModularMLP(23, width=16, hidden=64, blocks=False, seed=seed)  # noqa: E731
    arguments = {"num_steps": 600, "lr": 0.02, "penalty": 2e-3, "snapshots": "*", "evaluate": {"test": data.test}}
    return lh.train_stack(factory, data.train, (0, 1), log_every=100, progress=False, **arguments), data


# At the logits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [5, 6])
def test_shares_by_loops(p):
    """Projections of a random table on each wave, a triple at a time."""
    table = noise(p, p, p)
    centred = [[[table[a, b, c] - table[a, b].mean() for c in range(p)] for b in range(p)] for a in range(p)]
    triples = list(itertools.product(range(p), repeat=3))
    total = sum(float(centred[a][b][c]) ** 2 for a, b, c in triples)
    found = circuits.logit_waves(lookup(table), p)
    assert found.shares.shape == (p // 2,)
    for f in range(1, p // 2 + 1):
        waves = {(a, b, c): math.cos(2 * math.pi * f * (a + b - c) / p) for a, b, c in triples}
        inner = sum(float(centred[a][b][c]) * waves[a, b, c] for a, b, c in triples)
        norm = sum(value**2 for value in waves.values())
        assert float(found.shares[f - 1]) == pytest.approx(inner**2 / norm / total, rel=1e-10)
        assert float(found.amplitudes[f - 1]) == pytest.approx(inner / norm, rel=1e-10)
    by_sum = 0.0
    for s, c in itertools.product(range(p), repeat=2):
        by_sum += p * (sum(float(centred[a][(s - a) % p][c]) for a in range(p)) / p) ** 2
    assert found.sums == pytest.approx(by_sum / total, rel=1e-10)
    assert found.variance == pytest.approx(total / p**3, rel=1e-10)
    assert found.total == pytest.approx(float(found.shares.sum()), rel=1e-12)


def test_planted_networks_are_all_waves_in_the_ratio_of_squared_amplitudes():
    planted = lh.planted.modular(29, (3, 5, 7), amplitude=(4.0, 2.0, 1.0))
    found = circuits.logit_waves(planted.model, 29)
    assert found.total == pytest.approx(1, abs=1e-10)
    assert found.sums == pytest.approx(1, abs=1e-10)
    assert found.shares[[2, 4, 6]].tolist() == pytest.approx([16 / 21, 4 / 21, 1 / 21], abs=1e-6)
    assert found.amplitudes[[2, 4, 6]].tolist() == pytest.approx([4, 2, 1], abs=1e-5)
    assert found.key().tolist() == [3, 5]
    assert found.key(0.04).tolist() == [3, 5, 7]
    assert found.key(0.8).tolist() == []
    assert repr(found) == (
        "LogitWaves(p = 29: 100.0% in waves of a + b - c (3: 76.2%, 5: 19.0%, 7: 4.8%), 100.0% without a - b)"
    )
    double = circuits.logit_waves(lh.planted.modular(29, (3, 5, 7), amplitude=(4.0, 2.0, 1.0)).model.double(), 29)
    assert torch.allclose(double.shares, found.shares, atol=1e-6)


def test_what_is_a_wave_and_what_is_none():
    # The wrong phase is a function of a + b, a pizza's wave of half of a - b is none; offsets per pair are unseen.
    pizza = torch.cos(TURN * 4 * (A - B)) * torch.cos(TURN * 5 * C)  # mean square 1/4, nothing of a + b
    table = 2 * wave(3) - wave(2) + wave(1, phase=math.pi / 2) + 2 * pizza
    found = circuits.logit_waves(lookup(table + noise(P, P, 1)), P)
    variance = 2 + 0.5 + 0.5 + 1
    assert found.variance == pytest.approx(variance, rel=1e-12)
    assert found.shares.tolist() == pytest.approx([0, 0.5 / variance, 2 / variance, 0, 0, 0], abs=1e-12)
    assert found.amplitudes[:3].tolist() == pytest.approx([0, -1, 2], abs=1e-12)
    assert found.sums == pytest.approx(3 / variance, rel=1e-12)
    wider = torch.cat([table, noise(P, P, 2)], -1)  # classes of other tokens are not looked at
    assert torch.allclose(circuits.logit_waves(lookup(wider), P).shares, found.shares, atol=1e-12)


def test_noise_has_the_share_of_its_dimensions():
    tables = [circuits.logit_waves(lookup(noise(P, P, P, seed=seed)), P) for seed in range(40)]
    shares = torch.stack([found.shares for found in tables])  # (40, 6) squares of a normal number over all others
    chance = 1 / (P * P * (P - 1))
    assert float(shares.mean()) == pytest.approx(chance, abs=4 * chance * math.sqrt(2 / 240))
    sums = torch.tensor([found.sums for found in tables])
    assert float(sums.mean()) == pytest.approx(1 / P, rel=0.05)
    silent = circuits.logit_waves(lookup(torch.full((P, P, P), 0.1, dtype=torch.float64)), P)
    assert (silent.total, silent.sums, silent.variance) == (0, 0, 0)
    assert silent.key().tolist() == []


# In hidden units ------------------------------------------------------------------------------------------------------


def test_units_with_known_waves():
    a, b = A[..., 0], B[..., 0]
    cos = lambda f, x: torch.cos(TURN * f * x + 0.3)  # noqa: E731
    units = torch.stack(
        [
            cos(3, a) * cos(3, b) + 5, cos(2, a) + cos(2, b), cos(2, a) + cos(4, b), cos(3, a) * cos(4, b),
            cos(3, a) ** 2, cos(2, a) + 2 * cos(5, a - b), torch.full_like(a, 0.1), torch.zeros_like(a),
        ], -1,
    )  # fmt: skip
    found = circuits.hidden_waves(lookup(units), P)
    assert found.separability.tolist() == pytest.approx([1, 1, 0.5, 0, 1, 0.8, 0, 0], abs=1e-12)
    assert found.frequency[[0, 1, 4, 5, 6, 7]].tolist() == [3, 2, 6, 5, 0, 0]
    assert found.shares[2].tolist() == pytest.approx([0, 0.5, 0, 0.5, 0, 0], abs=1e-12)
    assert found.variance[[1, 6, 7]].tolist() == pytest.approx([1, 0, 0], abs=1e-12)
    # With the second harmonic the third unit is all 2; what is pure keeps its own name.
    second = circuits.hidden_waves(lookup(units), P, harmonics=2)
    assert second.separability[[0, 1, 2, 4]].tolist() == pytest.approx([1] * 4, abs=1e-12)
    assert second.frequency[[0, 1, 2, 4, 6]].tolist() == [3, 2, 2, 6, 0]
    assert second.shares[4, 2] == pytest.approx(1)  # cos^2 of 3 is the second harmonic of 3, too
    assert circuits.hidden_waves(lookup(units[..., 3:4]), P, harmonics=P // 2).separability.tolist() == [
        pytest.approx(1)
    ]
    assert found.median == pytest.approx(0.9)
    assert repr(found).endswith("2 constant)")
    dead = circuits.hidden_waves(lookup(units[..., 6:].float()), P)
    assert math.isnan(dead.median)
    assert repr(dead) == "HiddenWaves(2 units, p = 13: all silent; 2 constant)"


@pytest.mark.parametrize(("p", "harmonics"), [(7, 1), (8, 1), (9, 2)])
def test_shares_by_least_squares(p, harmonics):
    """Fits of a random unit by the products of waves of one frequency and its multiples."""
    units = noise(p, p, 3)
    found = circuits.hidden_waves(lookup(units), p, harmonics=harmonics)
    flat = (units - units.mean((0, 1))).flatten(0, 1)
    a = torch.arange(p, dtype=torch.float64)
    for f in range(1, p // 2 + 1):
        angles = [2 * math.pi * m * f * a / p for m in range(1, harmonics + 1)]
        one = torch.stack([torch.ones(p), *(part for x in angles for part in (x.cos(), x.sin()))], 1)
        products = torch.einsum("ai,bj->abij", one.double(), one.double()).reshape(p * p, -1)
        fitted = products @ (torch.linalg.pinv(products, rtol=1e-8) @ flat)
        expected = fitted.square().sum(0) / flat.square().sum(0)
        assert torch.allclose(found.shares[:, f - 1], expected, atol=1e-10)
    assert torch.equal(found.frequency, found.shares.argmax(1) + 1)
    assert torch.equal(found.separability, found.shares.amax(1))


@pytest.mark.parametrize("harmonics", [1, 2])
def test_separability_of_noise_is_chance(harmonics):
    num, dimensions = 2000, (2 * harmonics + 1) ** 2 - 1
    found = circuits.hidden_waves(lookup(noise(P, P, num)), P, harmonics=harmonics)
    chance = dimensions / (P * P - 1)
    assert float(found.shares.mean()) == pytest.approx(chance, rel=0.01)
    if harmonics == 1:  # the best of p / 2 independent chi-square numbers, over those of all dimensions
        drawn = noise(num, P // 2, dimensions, seed=1).square().sum(-1).amax(1) / (P * P - 1)
        assert float(found.separability.mean()) == pytest.approx(float(drawn.mean()), rel=0.03)
        assert float(found.separability.mean()) == pytest.approx(2 * chance, rel=0.25)  # "about twice as much"


@pytest.mark.parametrize("blocks", [True, False])
def test_hidden_units_of_the_mlp_make_its_logits(blocks):
    model = lh.ModularMLP(P, width=6, hidden=5, blocks=blocks, bias=True, seed=0).double()
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    units = circuits.hidden_units(model)(pairs)
    assert units.shape == (P * P, 15 if blocks else 5)
    a, b = 4, 9
    x = (model.embedding[a] + model.embedding[b]).reshape(-1, 2)
    if blocks:
        by_hand = torch.cat([F.silu(x[j] @ model.first[j] + model.bias[j]) for j in range(3)])
        outputs = torch.cat([units.reshape(-1, 3, 5)[:, j] @ model.second[j] for j in range(3)], 1)
    else:
        by_hand, outputs = F.silu(x.flatten() @ model.first + model.bias), units
    assert torch.allclose(units[a * P + b], by_hand, atol=1e-12)
    assert torch.allclose(outputs @ model.unembedding, model(pairs), atol=1e-12)


def test_hidden_units_of_the_transformer_make_its_logits():
    model = lh.ModularTransformer(P, width=8, num_heads=2, hidden=6, seed=0).double()
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    units = circuits.hidden_units(model)(pairs)
    assert units.shape == (P * P, 6)
    assert float(units.min()) > -0.171  # after the GELU
    without = lh.ModularTransformer(P, width=8, num_heads=2, hidden=6, seed=0).double()
    with torch.no_grad():
        without.second.zero_()
    assert torch.allclose(model(pairs) - without(pairs), units @ model.second @ model.unembedding, atol=1e-12)


def test_units_of_any_module_and_nothing_of_the_users_changes():
    model, untrained = Network().train(), Network()
    state, before = torch.get_rng_state(), {name: w.clone() for name, w in model.state_dict().items()}
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    units = circuits.hidden_units(model, "layers.2")
    expected = torch.tanh(F.linear(model.embed(pairs).flatten(1), model.layers[1].weight, model.layers[1].bias))
    assert torch.allclose(units(pairs), expected)
    found = circuits.hidden_waves(units, P)
    assert torch.equal(circuits.hidden_waves(nn.Sequential(model.embed, *model.layers[:3]), P).shares, found.shares)
    assert circuits.logit_waves(model, P).total < 0.05
    report = circuits.mechanism_report(model, P, untrained=untrained, embedding="embed.weight", layer="layers.2")
    assert report.separability == (found.median, found.median)
    circuits.progress_measures([model], P, frequencies=[1])
    assert model.training
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        model.layers[1].weight.zero_()
    assert torch.allclose(units(pairs), expected)  # the weights of then


def test_a_layer_that_is_no_layer():
    with pytest.raises(ValueError, match=r"layer is 'mlp', expected a submodule of the Network"):
        circuits.hidden_units(Network(), "mlp")
    with pytest.raises(ValueError, match=r"layer is missing, and a Network has no method hidden_units.*\n.*layers\.1"):
        circuits.hidden_units(Network())
    with pytest.raises(TypeError, match=r"model is a function, expected a torch.nn.Module"):
        circuits.hidden_units(lookup(A))
    pairs = torch.zeros(2, 2, dtype=torch.int64)
    model = Network()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"layer \('spare'\) gives nothing in one pass, expected one tensor"):
        circuits.hidden_units(model, "spare")(pairs)
    model.layers.append(model.layers[2])
    with pytest.raises(ValueError, match=r"layer \('layers.2'\) gives a Tensor, a Tensor in one pass"):
        circuits.hidden_units(model, "layers.2")(pairs)


# Over training --------------------------------------------------------------------------------------------------------


def test_progress_is_the_single_measures_of_every_model(run):
    stack, data = run
    models = stack.history(1)
    found = circuits.progress_measures(models, 23, data=data.train, held_out=data.test, steps=stack.steps)
    waves = [circuits.logit_waves(model, 23) for model in models]
    keys = waves[-1].key(0.05)
    assert torch.equal(found.frequencies, keys)
    assert len(keys) >= 2
    assert found.steps.tolist() == [0, 100, 200, 300, 400, 500, 600]
    for i, model in enumerate(models):
        restricted = circuits.restricted_loss(model, 23, frequencies=keys, data=data.test)
        excluded = circuits.excluded_loss(model, 23, frequencies=keys, data=data.train)
        with torch.no_grad():
            train = F.cross_entropy(model(data.train.inputs), data.train.targets)
        assert float(found.restricted_loss[i]) == pytest.approx(restricted, abs=1e-12)
        assert float(found.excluded_loss[i]) == pytest.approx(excluded, abs=1e-12)
        assert float(found.loss[i]) == pytest.approx(float(train), abs=1e-5)
        assert torch.equal(found.shares[i], waves[i].shares[keys - 1])
        assert float(found.totals[i]) == pytest.approx(waves[i].total, abs=1e-12)
    assert torch.allclose(found.held_out_loss, stack.losses["test"][1], atol=1e-5)
    assert "7 models, frequencies" in repr(found)
    everywhere = circuits.progress_measures(iter(models[-2:]), 23, frequencies=(f for f in (2, 1)))
    assert everywhere.held_out_loss is None
    assert everywhere.frequencies.tolist() == [2, 1]
    assert everywhere.steps.tolist() == [0, 1]
    restricted = circuits.restricted_loss(models[-1], 23, frequencies=[1, 2])
    assert float(everywhere.restricted_loss[-1]) == pytest.approx(restricted, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_trained_network_has_waves_where_the_untrained_one_has_none(run, seed):
    stack, data = run
    models = stack.history(seed)
    first, last = (circuits.logit_waves(models[i], 23).total for i in (0, -1))
    assert first < 0.01
    assert 0.6 < last < 1
    report = circuits.mechanism_report(models[-1], 23, untrained=models[0])
    assert report.logit_waves == (last, first)
    assert report.separability[0] > 0.7
    assert report.separability[1] < 0.4
    assert report.gradient_symmetricity == pytest.approx((1, 1))
    distances = [circuits.distance_irrelevance(models[i], 23) for i in (-1, 0)]
    assert report.distance_irrelevance == pytest.approx(distances)
    # The circuit is there before the held-out loss shows it.
    found = circuits.progress_measures(models, 23, data=data.train, held_out=data.test)
    chance = math.log(23)
    assert int((found.restricted_loss < chance / 2).nonzero()[0]) < int((found.held_out_loss < chance / 2).nonzero()[0])


def test_progress_counts_one_pass_per_model():
    calls = []

    def model(pairs):
        calls.append(len(pairs))
        return lookup(wave(2))(pairs)

    circuits.progress_measures([model] * 3, P)
    assert calls == [P * P] * 3


def test_report_of_an_ideal_clock():
    planted = lh.planted.modular(29, (3, 5, 7)).model
    zeroed = lh.planted.modular(29, (3, 5, 7)).model
    with torch.no_grad():
        zeroed.unembedding.normal_(generator=torch.Generator().manual_seed(0))
    report = circuits.mechanism_report(planted, 29, untrained=zeroed)
    assert math.isnan(report.distance_irrelevance[0])  # 0 / 0, also in float32
    assert report.distance_irrelevance[1] == pytest.approx(1, abs=1e-4)  # a function of a + b that varies
    assert report.separability is None
    assert report.logit_waves[0] == pytest.approx(1)
    assert report.gradient_symmetricity[0] < 0.5
    lines = repr(report).splitlines()
    assert lines[0] == "MechanismReport(p = 29)"
    assert lines[1].split() == ["trained", "untrained"]
    assert [line.split()[-2] for line in lines[2:]] == [f"{report.gradient_symmetricity[0]:.4f}", "nan", "1.0000"]
    with pytest.raises(ValueError, match="model gives the correct answer the same logit"):
        circuits.distance_irrelevance(planted, 29)


# Arguments and files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: circuits.logit_waves(lookup(A), 2), ValueError, "p is 2, expected an integer of at least 3"),
        (lambda: circuits.logit_waves(A, P), TypeError, "model is a Tensor, expected token pairs"),
        (lambda: circuits.logit_waves(lookup(A[..., :5]), P), ValueError, r"has shape \(169, 5\) for 169 targets"),
        (lambda: circuits.logit_waves(lambda x: (x,), P), ValueError, "has shape tuple for 169 targets"),
        (lambda: circuits.logit_waves(lookup(A / 0), P), ValueError, "holds 2197 NaN or infinite entries"),
        (lambda: circuits.logit_waves(lookup(wave(1)), P).key(2), ValueError, "threshold is 2, expected a finite"),
        (lambda: circuits.hidden_waves(A, P), TypeError, r"hidden is a Tensor, expected token pairs \(n, 2\) -> act"),
        (lambda: circuits.hidden_waves(lambda x: (x,), P), ValueError, "hidden gives a tuple for 169 pairs"),
        (lambda: circuits.hidden_waves(lookup(A[..., 0]), P), ValueError, r"hidden gives torch.float64 \(169,\) for"),
        (lambda: circuits.hidden_waves(lookup(A[..., :0]), P), ValueError, r"hidden gives torch.float64 \(169, 0\)"),
        (lambda: circuits.hidden_waves(lookup(A.long()), P), ValueError, r"hidden gives torch.int64 \(169, 13\)"),
        (lambda: circuits.hidden_waves(lookup(A.log()), P), ValueError, "hidden gives holds 169 NaN or infinite"),
        (lambda: circuits.hidden_waves(lookup(A), P, harmonics=7), ValueError, "harmonics is 7, expected an integer"),
        (lambda: circuits.hidden_waves(lookup(A), P, harmonics=0), ValueError, "harmonics is 0, expected an integer"),
        (lambda: circuits.progress_measures([], P), ValueError, "models is empty, expected at least one model"),
        (lambda: circuits.progress_measures(Network(), P), TypeError, "models is a Network, expected several models"),
        (lambda: circuits.progress_measures(nn.Sequential(), P), TypeError, "models is a Sequential, expected several"),
        (
            lambda: circuits.progress_measures([lookup(noise(P, P, P))], P),
            ValueError,
            "frequencies are missing, and the last model has none: its largest share is 0",
        ),
        (
            lambda: circuits.progress_measures([lookup(A)], P, frequencies=[7]),
            ValueError,
            "a frequency is 7, expected an integer from 1 to 6",
        ),
        (
            lambda: circuits.progress_measures([lookup(A)], P, frequencies=2),
            TypeError,
            "frequencies is 2, expected several integers",
        ),
        (
            lambda: circuits.progress_measures([lookup(wave(1))] * 2, P, steps=[1]),
            ValueError,
            r"steps has shape \(1,\), expected \(2,\), one per model",
        ),
        (
            lambda: circuits.progress_measures([lookup(wave(1))], P, steps=[math.nan]),
            ValueError,
            "steps holds 1 NaN or infinite entries",
        ),
        (
            lambda: circuits.progress_measures(
                [lookup(wave(1))], P, held_out=(torch.tensor([[13, 0]]), torch.zeros(1).long())
            ),
            ValueError,
            "data has tokens from 0 to 13",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_results_are_read_back(tmp_path):
    model = lookup(wave(2) + wave(3))
    results = [
        circuits.logit_waves(model, P),
        circuits.hidden_waves(model, P, harmonics=2),
        circuits.progress_measures([model], P),
        circuits.mechanism_report(lh.ModularMLP(P, seed=0), P, untrained=lh.ModularMLP(P, seed=1)),
    ]
    for result in results:
        again = lh.load(result.save(tmp_path / type(result).__name__))
        assert repr(again) == repr(result)
        assert type(again) is type(result)
