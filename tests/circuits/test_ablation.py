"""Ablation of circuits against closed forms, sums over pairs written out, permutations, and a trained network."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import lowhanging as lh
from lowhanging import circuits

P = 11
DATA = lh.modular_addition(P, 0.7)
ALL = lh.modular_addition(P, 1.0).train


def network(seed=0, blocks=True, **arguments):
    arguments = {"width": 8, "hidden": 5, "blocks": blocks, "seed": seed} | arguments
    return lh.ModularMLP(P, **arguments).double()


class Additive(nn.Module):
    """Circuit j adds `worth[j]` to the logit of the right answer, so every loss is known on paper."""

    def __init__(self, worth):
        super().__init__()
        self.worth = nn.Parameter(torch.tensor(worth, dtype=torch.float64))

    def forward(self, inputs):
        return without(self, inputs, ())


def without(model, inputs, ablated):
    kept = torch.tensor([0.0 if j in ablated else 1.0 for j in range(len(model.worth))], dtype=torch.float64)
    return (model.worth * kept).sum() * F.one_hot(inputs[:, :2].sum(1) % P, P)


def by_hand(model, data, kept):
    """Loss, accuracy and logits with some blocks kept, from explicit sums over blocks and over all p^2 pairs."""
    pairs = torch.tensor(list(itertools.product(range(P), repeat=2)))
    rows = []
    for a, b in data.inputs[:, :2].tolist():
        logits = torch.zeros(P, dtype=torch.float64)
        for j in range(model.width // 2):
            if j in kept:
                y = model.block_outputs((model.embedding[a] + model.embedding[b])[None])[0, j]
            else:
                y = model.block_outputs(model.embedding[pairs[:, 0]] + model.embedding[pairs[:, 1]])[:, j].mean(0)
            logits = logits + y @ model.unembedding[2 * j : 2 * j + 2]
        rows.append(logits.detach())
    z = torch.stack(rows)
    return float(F.cross_entropy(z, data.targets)), float((z.argmax(1) == data.targets).double().mean()), z


def test_losses_on_paper_of_circuits_that_add_up():
    worth = [2.0, 0.5, 0.0, -1.0]
    found = circuits.ablate_circuits(Additive(worth), DATA.test, circuits=range(4), ablation=without)
    assert found.kept.shape == (16, 4)
    assert found.kept[5].tolist() == [True, False, True, False]
    loss = lambda total: math.log(1 + (P - 1) * math.exp(-total))  # noqa: E731
    totals = [sum(w for w, kept in zip(worth, row, strict=True) if kept) for row in found.kept.tolist()]
    assert found.losses.tolist() == pytest.approx([loss(total) for total in totals], abs=1e-12)
    assert found.accuracies[1] == 1.0
    assert found.accuracies[8] == 0.0  # the right answer is pushed down
    assert found.nats.tolist() == pytest.approx([loss(1.5 - w) - loss(1.5) for w in worth], abs=1e-12)
    assert found.logit_shares.tolist() == pytest.approx([total / 1.5 for total in totals], abs=1e-12)
    assert found.ablation == "without"
    assert found.num_examples == len(DATA.test)


def test_the_shapley_value_is_the_mean_over_all_orders():
    found = circuits.ablate_circuits(network(), DATA.test, circuits=range(4))
    means = torch.zeros(4, dtype=torch.float64)
    for order in itertools.permutations(range(4)):
        row = 0
        for j in order:
            means[j] += (found.losses[row] - found.losses[row + 2**j]) / math.factorial(4)
            row += 2**j
    assert torch.allclose(found.shapley, means, atol=1e-12)
    assert float(found.shapley.sum()) == pytest.approx(float(found.losses[0] - found.losses[-1]), abs=1e-12)


def test_inclusion_and_exclusion_give_the_losses_back():
    """Nats of a set alone are the sum of its subsets' interactions; Shapley shares each among its members."""
    found = circuits.ablate_circuits(network(3), DATA.train, circuits=[0, 2, 3])
    sets = [frozenset(j for j in range(3) if row >> j & 1) for row in range(8)]
    loss = dict(zip(sets, found.losses.tolist(), strict=True))
    parts = {K: sum((-1) ** (len(K) - len(S)) * loss[S] for S in sets if S <= K) for K in sets}
    for K in sets:
        assert sum(parts[S] for S in sets if S <= K) == pytest.approx(loss[K], abs=1e-12)
    for j in range(3):
        shared = -sum(parts[K] / len(K) for K in sets if j in K)
        assert float(found.shapley[j]) == pytest.approx(shared, abs=1e-12)


@pytest.mark.parametrize("data", [DATA.test, ALL])
def test_blocks_against_sums_written_out(data):
    model = network(1)
    found = circuits.ablate_circuits(model, data, circuits=[0, 1, 3])
    full = by_hand(model, data, range(4))[2]
    deviation = full - full.mean(1, keepdim=True)
    deviation = deviation - deviation.mean(0)
    none = by_hand(model, data, [2])[2]
    for row in range(8):
        kept = [2] + [j for i, j in enumerate([0, 1, 3]) if row >> i & 1]
        loss, accuracy, z = by_hand(model, data, kept)
        assert float(found.losses[row]) == pytest.approx(loss, abs=1e-12)
        assert float(found.accuracies[row]) == pytest.approx(accuracy, abs=1e-12)
        share = float(((z - none) * deviation).sum() / deviation.square().sum())
        assert float(found.logit_shares[row]) == pytest.approx(share, abs=1e-12)
    with torch.no_grad():
        loss = float(F.cross_entropy(model(data.inputs), data.targets))
    assert float(found.losses[-1]) == pytest.approx(loss, abs=1e-12)


def test_without_any_block_the_logits_are_their_mean_and_shares_add_up():
    model = network(2, bias=True)
    found = circuits.ablate_circuits(model, ALL, circuits=range(4))
    mean = model(ALL.inputs).mean(0).detach()
    assert float(found.losses[0]) == pytest.approx(float(mean.logsumexp(0) - mean.mean()), abs=1e-12)
    assert float(found.accuracies[0]) == pytest.approx(1 / P)
    assert float(found.logit_shares[-1]) == pytest.approx(1.0, abs=1e-12)
    alone = found.logit_shares[[1, 2, 4, 8]]
    assert torch.allclose(found.logit_shares, found.kept.double() @ alone, atol=1e-12)
    on_some = circuits.ablate_circuits(model, DATA.test, circuits=range(4))  # means over other pairs than the data's
    assert float(on_some.logit_shares[-1]) == pytest.approx(1.0, abs=1e-12)


def test_a_silent_block_is_worth_nothing_and_twins_are_worth_the_same():
    model = network(4)
    with torch.no_grad():
        model.second[0] = 0.0
        model.embedding[:, 6:8] = model.embedding[:, 4:6]
        model.first[3], model.second[3] = model.first[2], model.second[2]
        model.unembedding[6:8] = model.unembedding[4:6]
    found = circuits.ablate_circuits(model, DATA.train, circuits=range(4))
    for values in (found.nats, found.shapley, found.logit_shares[[1, 2, 4, 8]]):
        assert float(values[0]) == pytest.approx(0.0, abs=1e-12)
        assert float(values[2]) == pytest.approx(float(values[3]), abs=1e-12)


def test_mean_losses_by_number_of_circuits_kept():
    found = circuits.ablate_circuits(network(), DATA.train, circuits=[1, 2, 3])
    losses = found.losses.tolist()
    expected = [losses[0], sum(losses[i] for i in (1, 2, 4)) / 3, sum(losses[i] for i in (3, 5, 6)) / 3, losses[7]]
    assert found.mean_losses.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("p", [11, 12])
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_frequencies_against_a_transform(p, kind):
    """The embedding without a frequency, by zeroing coefficients of its discrete Fourier transform."""
    make = {"mlp": lambda: lh.ModularMLP(p, width=6, hidden=5, blocks=False, seed=0),
            "transformer": lambda: lh.ModularTransformer(p, width=8, num_heads=2, hidden=6, seed=0)}[kind]  # fmt: skip
    model, other = make().double(), make().double()
    data = lh.modular_addition(p, 0.6, equals_token=kind == "transformer").test
    found = circuits.ablate_circuits(model, data, circuits=[2, p // 2])
    assert found.ablation == "ablate_frequencies"
    for row, ablated in enumerate([(2, p // 2), (p // 2,), (2,), ()]):
        coefficients = torch.fft.fft(model.embedding.detach()[:p], dim=0)
        for f in ablated:
            coefficients[[f, p - f]] = 0
        with torch.no_grad():
            other.embedding[:p] = torch.fft.ifft(coefficients, dim=0).real
        expected = float(F.cross_entropy(other(data.inputs), data.targets).detach())
        assert float(found.losses[row]) == pytest.approx(expected, abs=1e-10)


def test_the_circuits_that_are_found():
    turn = 2 * math.pi * torch.arange(P) / P
    model = network(5)
    with torch.no_grad():
        model.embedding[:, 2:4] = 3 * torch.stack([(2 * turn).cos(), (2 * turn).sin()], 1)
        model.embedding[:, 6:8] = 3 * torch.stack([(4 * turn).sin(), (4 * turn).cos()], 1)
    assert circuits.ablate_circuits(model, DATA.test).circuits.tolist() == [1, 3]
    found = circuits.ablate_circuits(model, DATA.test, ablation=circuits.ablate_frequencies)
    assert sorted(found.circuits.tolist())[:2] == [2, 4]
    assert found.ablation == "ablate_frequencies"
    none = circuits.ablate_circuits(network(0), DATA.test)  # noise: no block is a circle
    assert none.circuits.shape == none.nats.shape == none.shapley.shape == (0,)
    assert none.losses.tolist() == none.mean_losses.tolist()
    assert "0 circuits" in repr(none)


def test_data_of_any_form_and_nothing_of_the_users_changes():
    model = network(6).train()
    model.embedding.grad = torch.ones_like(model.embedding)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    found = circuits.ablate_circuits(model, DATA.test, circuits=[0, 1], progress=False)
    loader = DataLoader(DATA.test, batch_size=7, shuffle=True)  # ragged
    for data in (loader, (DATA.test.inputs, DATA.test.targets), [DATA.test[:5], DATA.test[5:]]):
        assert torch.allclose(circuits.ablate_circuits(model, data, circuits=[0, 1]).losses, found.losses, atol=1e-12)
    losses = circuits.circuit_losses(model, DATA.test, circuits=[0, 1])
    losses["1"].gradient(losses["1"].theta0)
    assert model.training
    assert torch.equal(model.embedding.grad, torch.ones_like(model.embedding))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_results_are_saved(tmp_path):
    found = circuits.ablate_circuits(network(), DATA.test, circuits=[0, 3])
    loaded = circuits.CircuitAblation.load(found.save(tmp_path / "ablation"))
    assert torch.equal(loaded.losses, found.losses)
    assert torch.equal(loaded.kept, found.kept)
    assert torch.equal(loaded.shapley, found.shapley)
    assert repr(loaded) == repr(found)
    assert repr(found).startswith("CircuitAblation(2 circuits by ablate_blocks; loss ")


@pytest.mark.parametrize("kind", ["blocks", "frequencies", "transformer", "own"])
def test_losses_of_single_circuits_as_functions_of_the_weights(kind):
    if kind == "transformer":
        model = lh.ModularTransformer(P, width=8, num_heads=2, hidden=6, seed=0).double()
    else:
        model = Additive([1.0, 0.5]) if kind == "own" else network(7, blocks=kind == "blocks")
    labels = {"own": [0, 1], "frequencies": [1, 2, 3]}.get(kind, [1, 3])  # each is recorded, which takes a second
    ablation = without if kind == "own" else None
    losses = circuits.circuit_losses(model, DATA.train, circuits=labels, ablation=ablation)
    assert list(losses) == [str(label) for label in labels]
    theta0 = lh.Objective(model, DATA.train).theta0
    generator = torch.Generator().manual_seed(0)
    step, v = 0.1 * torch.randn(2, len(theta0), generator=generator, dtype=torch.float64)
    for j, loss in enumerate(losses.values()):
        assert torch.equal(loss.theta0, theta0)
        for theta in (theta0, theta0 + step):  # the means move with the weights
            there = lh.Objective(model, DATA.train).model_at(theta)
            found = circuits.ablate_circuits(there, DATA.train, circuits=labels, ablation=ablation)
            assert float(loss(theta)) == pytest.approx(float(found.losses[2**j]), abs=1e-10)
        h = 1e-5
        difference = (loss.gradient(theta0 + h * v) - loss.gradient(theta0 - h * v)) / (2 * h)
        for _ in range(2):  # the second product at one theta is computed from what was kept
            assert torch.allclose(loss.hvp(theta0, v), difference, atol=1e-8)


def test_steering_ablates_one_circuit_of_a_trained_network_and_keeps_another():
    data = lh.modular_addition(37, 0.8)
    run = lh.train_stack(
        lambda seed: lh.ModularMLP(37, width=14, hidden=16, seed=seed), data.train, [0], num_steps=1000, lr=0.01,
        batch_size=256, penalty=1e-3, progress=False,
    )  # fmt: skip
    model = run.model(0)
    found = circuits.ablate_circuits(model, data.train)
    assert len(found.circuits) >= 2
    assert bool((found.nats > 0.2).all())
    assert bool((found.mean_losses.diff() < 0).all())
    losses = circuits.circuit_losses(model, data.train)
    kept, lost = list(losses.values())[:2]
    direction = lh.steering_direction(preserve=kept, ablate=lost, k=60, progress=False)
    steps = (kept.theta0 + 0.25 * i * direction for i in range(1, 20))
    theta = next(theta for theta in steps if float(lost(theta) - lost(lost.theta0)) > 1)
    # Over eight seeds and both orders of the roles, the preserved circuit lost .00 to .23 nats where the other lost 1.
    assert float(kept(theta) - kept(kept.theta0)) < 0.5
    # The direction is one of the model's own weights; no circle tells what happened.
    steered = lh.Objective(model, data.train).model_at(theta)
    before, after = (circuits.circle_score(net.embedding).score[found.circuits] for net in (model, steered))
    assert float((after - before).abs().max()) < 0.05
    nats = circuits.ablate_circuits(steered, data.train, circuits=found.circuits).nats
    assert float(nats[1]) < float(found.nats[1])


ONES = torch.ones(3, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"circuits": [0, 0]}, ValueError, r"circuits are \[0, 0\], expected different integers"),
        ({"circuits": [4]}, ValueError, "a block is 4, expected an integer from 0 to 3"),
        ({"circuits": [-1]}, ValueError, "an entry of circuits is -1, expected an integer of at least 0"),
        ({"circuits": ["a"]}, TypeError, "an entry of circuits is 'a', expected an integer of at least 0"),
        ({"circuits": 3}, TypeError, "circuits is 3, expected several integers"),
        ({"circuits": [6], "ablation": circuits.ablate_frequencies}, ValueError, "a frequency is 6, expected an inte"),
        ({"ablation": "blocks"}, TypeError, "ablation is 'blocks', expected a function"),
        ({"ablation": without}, ValueError, "circuits are not given, for a ModularMLP with ablation=without"),
        (
            {"circuits": [0], "ablation": lambda *_: ONES},
            ValueError,
            r"the model's output has shape \(3, 2\) for 1 targets",
        ),
        ({"data": (torch.zeros(3, 4), ONES[:, 0])}, ValueError, r"data has a batch of shapes \[\(3, 4\), \(3,\)\]"),
        ({"data": (torch.zeros(3, 2), ONES[:, 0])}, TypeError, "data is of torch.float32 and torch.int64"),
        ({"data": (P * ONES, ONES[:, 0])}, ValueError, "data has tokens from 11 to 11, expected numbers from 0 to"),
        ({"data": (ONES, P * ONES[:, 0])}, ValueError, r"the model's output has shape \(1, 11\) for 1 targets from 11"),
        ({"data": DATA}, TypeError, "data is a ModularAddition"),
    ],
)
def test_bad_input(arguments, error, message):
    arguments = {"model": network(), "data": DATA.train} | arguments
    with pytest.raises(error, match=message):
        circuits.ablate_circuits(**arguments)


def test_bad_models_and_numbers_of_circuits():
    with pytest.raises(TypeError, match="model is a ModularMLP without blocks, expected a ModularMLP in blocks"):
        circuits.ablate_circuits(network(blocks=False), DATA.train, circuits=[0], ablation=circuits.ablate_blocks)
    with pytest.raises(
        TypeError, match=r"p is not given, and an Additive has no \.p, expected the modulus\.\nWrite p=, and "
    ):
        circuits.ablate_circuits(Additive([1.0]), DATA.train, circuits=[1])
    with pytest.raises(TypeError, match=r"model is a function, expected a torch\.nn\.Module"):
        circuits.ablate_circuits(without, DATA.train, circuits=[1])
    with pytest.raises(ValueError, match="circuits are 13, with 8,192 subsets, expected at most 12"):
        circuits.ablate_circuits(network(width=26), DATA.train, circuits=range(13))
    with pytest.raises(ValueError, match="circuits are none, expected at least one circuit"):
        circuits.circuit_losses(network(), DATA.train)


class Looks(nn.Module):
    """A network of one's own: its embedding is not called "embedding", and it has no modulus."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.read, self.out = nn.Embedding(P + 1, 6), nn.Linear(6, 6), nn.Linear(6, P)

    def forward(self, inputs):
        return self.out(torch.tanh(self.read(self.embed(inputs[:, 0]) + self.embed(inputs[:, 1]))))


def test_the_embedding_of_ones_own_model_is_named():
    model, own = Looks(), ("embed.weight", "out.weight")
    tools = (circuits.ablate_circuits, circuits.circuit_losses)
    for tool in tools:
        with pytest.raises(
            TypeError, match=r"p is not given, and a Looks has no \.p(.|\n)*embedding=, which of"
        ) as error:
            tool(model, DATA.train, circuits=[1])
        assert all(repr(name) in str(error.value) for name in own)
        with pytest.raises(ValueError, match=r"embedding is 'embedding', with p = 11 and the model a Looks") as error:
            tool(model, DATA.train, circuits=[1], p=P)
        assert str(list(own)) in str(error.value)  # `read` has too few rows
        assert str(error.value).endswith("such as embedding='embed.weight'.")
        with pytest.raises(ValueError, match="embedding is given with ablation=without"):
            tool(model, DATA.train, circuits=[1], ablation=without, embedding="embed.weight")
    found = circuits.ablate_circuits(model, DATA.train, circuits=[1, 2], p=P, embedding="embed.weight")
    other = copy.deepcopy(model)
    coefficients = torch.fft.fft(model.embed.weight.detach()[:P], dim=0)
    coefficients[[1, P - 1]] = 0
    other.embed.weight.data[:P] = torch.fft.ifft(coefficients, dim=0).real
    expected = F.cross_entropy(other(DATA.train.inputs), DATA.train.targets)
    assert float(found.losses[2]) == pytest.approx(expected.item(), rel=1e-5)  # row 2 keeps the second alone
    assert found.ablation == "ablate_frequencies"


def test_circuits_are_measured_as_losses_are_also_under_autocast():
    model, data = network(), lh.modular_addition(11, 0.5).test
    measures = (
        lambda: circuits.ablate_circuits(model, data, circuits=[0, 1], progress=False).losses.tolist(),
        lambda: circuits.distance_irrelevance(model, 11),
        lambda: circuits.restricted_loss(model, 11, frequencies=[2, 3], data=data),
        lambda: circuits.gradient_symmetricity(model, 11, num_samples=50),
    )
    for measure in measures:
        outside = measure()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert measure() == outside
