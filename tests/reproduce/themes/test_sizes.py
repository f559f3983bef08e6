"""Claim 18: networks against their rules on paper, times against runs of one seed, the verdict against its rule."""

import json
import math

import pytest
import torch

import lowhanging as lh
from lowhanging.reproduce.store import ResultStore
from lowhanging.reproduce.themes import sizes
from lowhanging.reproduce.themes.sizes import TINY, CosineNetwork, TanhNetwork, exact_network


@pytest.fixture(scope="module")
def row():
    return sizes.run_design(TINY, 3)


@pytest.mark.parametrize("size", [6, 8, 12, 20])
def test_both_rules_have_n_parameters_and_one_loss(size):
    """Counted on networks that are the ideal reader bit for bit."""
    half = size // 2 - 1
    rules = lh.parity_rules(size - 1, half, num_train=1, num_test=400)
    for rule in ("atomic", "decomposable"):
        network = sizes.smallest_network(rules, rule)
        assert network.num_nonzero == size
        data = sizes.view_of(rules, rule).test
        logits = network(data.inputs).detach()
        ideal = rules.logits(data.inputs, rule)
        assert torch.allclose(logits[:, 1] - logits[:, 0], ideal, atol=1e-4)
    assert rules.losses["atomic"] == pytest.approx(rules.losses["decomposable"], rel=1e-9)


def test_no_single_unit_holds_two_halves_of_two_bits():
    """The proof in `cosine_network`, by brute force over what its first step leaves: odd multiples of 1/2."""
    signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0])] * 4)
    wanted = signs[:, :2].prod(1) + signs[:, 2:].prod(1)
    found = []
    for weight in torch.cartesian_prod(*[torch.tensor([0.5, 1.5])] * 4):  # up to full turns, 2
        z = 2 * torch.cos((math.pi / 2) * ((1 - signs) @ weight))
        found.append(float((z - wanted).abs().max()))
    assert min(found) > 0.5


def test_the_networks_are_smooth_seeded_and_of_the_size_they_say():
    network = CosineNetwork(9, 32, seed=1)
    assert sum(p.numel() for p in network.parameters()) == 32 * 9 + 32
    assert torch.equal(network.weight, CosineNetwork(9, 32, seed=1).weight)
    inputs = torch.tensor([[1.0, -1.0, -1.0]])
    by_hand = exact_network(3, [(torch.tensor([0, 1]), 2.0), (torch.tensor([1, 2]), 3.0)])(inputs)
    assert by_hand[0].tolist() == pytest.approx([-(-2.0 + 3.0) / 2, (-2.0 + 3.0) / 2], abs=1e-6)
    for model in (network, TanhNetwork(9, 4, seed=0)):
        model = model.double()
        x = torch.ones(2, 9, dtype=torch.float64)
        assert torch.autograd.gradgradcheck(
            lambda w, model=model, x=x: torch.func.functional_call(model, {"weight": w}, (x,)),
            model.weight.detach().clone().requires_grad_(),
        )


def test_every_rule_of_a_size_has_the_bits_it_should(row):
    made = sizes.at_size(TINY, 8)
    assert [len(rules.whole_bits) for rules, _ in made.values()] == [7, 7, 6, 3]
    assert made["decomposable"][0].half_bits.shape == (2, 3)
    assert {rules.both.train.inputs.shape[1] for rules, _ in made.values()} == {13}
    parameters = {name: row["sizes"][1][name]["parameters"] for name in sizes.NAMES}
    assert parameters == {"atomic": 8, "decomposable": 8, "same bits": 7, "one half": 4}


def test_a_time_is_the_first_log_beyond_the_share_of_one_seed_alone(row):
    rules, _ = sizes.at_size(TINY, 6)["decomposable"]
    data = rules.decomposable
    run = lh.train_stack(
        lambda seed: CosineNetwork(13, sizes.HIDDEN, seed), data.train, [2], num_steps=30,
        batch_size=sizes.BATCH_SIZE, lr=sizes.LR, evaluate={"test": data.test}, log_every=2,
    )  # fmt: skip
    floor = row["sizes"][0]["decomposable"]["held_out_loss_of_smallest"]
    logits = rules.logits(data.test.inputs, "decomposable")
    ideal = torch.nn.functional.binary_cross_entropy_with_logits(logits, data.test.targets.float())
    assert floor == pytest.approx(float(ideal), rel=1e-5)
    threshold = 0.1 * math.log(2) + 0.9 * floor
    hits = [int(step) for step, loss in zip(run.steps, run.losses["test"][0], strict=True) if loss <= threshold]
    assert row["sizes"][0]["decomposable"]["steps"][2] == (hits[0] if hits else None)


def test_shares_begin_at_nothing_and_are_one_in_the_ideal_reader():
    rules, _ = sizes.at_size(TINY, 6)["atomic"]
    steps, shares = sizes.shares_over_training(rules, 10, 2)
    assert steps.tolist() == [0, 5, 10]
    assert shares.shape == (2, 3, 3)
    assert float(shares[:, 0].abs().max()) < 0.3
    a, b = rules.coefficients["whole"], rules.coefficients["half"]
    cues = [(rules.whole_bits, a), *((bits, b) for bits in rules.half_bits)]
    ideal = exact_network(13, cues)
    probes = 2.0 * torch.randint(2, (20_000, 13), generator=torch.Generator().manual_seed(0)) - 1
    z = ideal(probes).detach() @ torch.tensor([-1.0, 1.0])
    for signs, coefficient in zip(rules.signs(probes), (a, b, b), strict=True):
        assert float((signs * z).mean()) == pytest.approx(coefficient, abs=0.15)


def test_the_row_is_plain_and_the_claim_says_what_is_in_it(row):
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    (claim,) = sizes.claims([row])
    assert claim.number == 18
    assert claim.verdict in ("holds", "holds in part", "does not hold")
    assert claim.measured.startswith("3 seeds, 13 bits")
    assert "tanh network, sgd, n = 6" in claim.measured
    assert "a factor of 1, equal times" in claim.null
    times = sizes.learning_times(row)
    assert list(times.times) == list(sizes.NAMES.values())
    with pytest.raises(ValueError, match="rows has 2 rows, expected one"):
        sizes.claims([row, row])
    with pytest.raises(ValueError, match="num_seeds is 1, expected an integer of at least 2"):
        sizes.run_design(TINY, 1)


def planted(slow: tuple[int | None, int | None], before: int) -> dict:
    """A row of 10 seeds: the decomposable rule takes 10 and 20 steps, the atomic one what is given."""

    def rule(steps, parameters):
        return {"parameters": parameters, "budget": 100, "steps": [steps] * 10}

    found = [
        {"size": size, "atomic": rule(atomic, size), "decomposable": rule(fast, size),
         "same bits": rule(atomic, size - 1), "one half": rule(fast, size // 2)}
        for size, atomic, fast in zip((6, 8), slow, (10, 20), strict=True)
    ]  # fmt: skip
    times = sizes._times(found)
    return {
        "seeds": 10, "num_bits": 13, "sizes": found, "others": [],
        "ratios": {"atomic": sizes._ratio(times, "atomic", "decomposable"),
                   "same bits": sizes._ratio(times, "same bits", "decomposable"),
                   "two for one": sizes._ratio(times, "decomposable", "one half")},
        "joint": [{"size": 6, "num_halves_before": before, "num_atomic_before": 10 - before}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("slow", "before", "verdict"),
    [
        ((20, 60), 9, "holds"),
        ((20, None), 9, "holds"),  # never learned: at least the budget, 100
        ((50, None), 9, "holds in part"),  # the budget is too short to tell: 100 / 20 is no more than 50 / 10
        ((None, None), 9, "holds in part"),  # at no size learned: slower, but no growth was seen
        ((20, 40), 9, "holds in part"),  # no growth
        ((20, 60), 2, "holds in part"),
        ((10, 20), 2, "does not hold"),  # equal times
        ((5, 8), 5, "does not hold"),
    ],
)
def test_the_verdict_follows_from_the_times(slow, before, verdict):
    assert sizes.claims([planted(slow, before)])[0].verdict == verdict


def test_what_was_trained_is_kept_and_nothing_is_left_of_the_way(row, tmp_path, monkeypatch):
    store = ResultStore(tmp_path)
    assert sizes.run_design(TINY, 3, store=store) == row
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "sizes-6-atomic.json",
        "sizes-8-same-bits.json",
        "sizes-6-joint.json",
        "sizes-tanh-sgd-atomic.json",
    }
    assert not [name for name in names if name.endswith(".npz")]
    (tmp_path / "sizes-8-atomic.json").unlink()
    trained = []
    learn = sizes.times_to_learn

    def counted(rules, rule, budget, seeds, **options):
        trained.append((rule, options["resume"].name))
        return learn(rules, rule, budget, seeds, **options)

    monkeypatch.setattr(sizes, "times_to_learn", counted)
    monkeypatch.setattr(sizes, "shares_over_training", lambda *_: pytest.fail("trained twice"))
    assert sizes.run_design(TINY, 3, store=store) == row
    assert trained == [("atomic", "sizes-8-atomic-resume.npz")]


def test_a_stack_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    rules, _ = sizes.at_size(TINY, 6)["atomic"]
    path, whole = tmp_path / "stack.npz", sizes.times_to_learn(rules, "atomic", 40, 2, log_every=10)
    begun, train = [], sizes.train_stack

    def stopped(factory, data, seeds, *, evaluate, **options):
        """As the original, but for a process that is killed between two rows."""
        begun.append(options["resume"])
        steps = iter(range(100))

        class KilledError(Exception):
            pass

        def schedule(done):
            if next(steps) == 16 + 25:  # 16 rates are asked for before the first step
                raise KilledError
            return 1.0

        with pytest.raises(KilledError):
            train(factory, data, seeds, evaluate=evaluate, schedule=schedule, **options)
        assert path.exists()
        return train(factory, data, seeds, evaluate=evaluate, schedule=lambda done: 1.0, **options)

    monkeypatch.setattr(sizes, "train_stack", stopped)
    again = sizes.times_to_learn(rules, "atomic", 40, 2, log_every=10, resume=path)
    assert begun == [path]
    assert torch.equal(again, whole)
