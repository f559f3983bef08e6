"""The task against its definition: every pair once, sums that are right, mirror images that stay together."""

import pytest
import torch

import lowhanging as lh


@pytest.mark.parametrize(("p", "fraction"), [(2, 1.0), (7, 0.5), (53, 0.8), (113, 0.3)])
def test_every_pair_is_there_once_with_the_right_sum(p, fraction):
    data = lh.modular_addition(p, fraction)
    inputs = torch.cat([data.train.inputs, data.test.inputs])
    targets = torch.cat([data.train.targets, data.test.targets])
    assert inputs.shape == (p * p, 2)
    assert len(torch.unique(inputs[:, 0] * p + inputs[:, 1])) == p * p
    assert torch.equal(targets, inputs.sum(1) % p)
    assert len(data.train) / p**2 == pytest.approx(fraction, abs=1.5 / p)
    assert data.train[0][0].tolist() == data.train.inputs[0].tolist()


def mirrored_share(data) -> float:
    """Share of the test pairs whose mirror image is trained on."""
    trained = {tuple(pair) for pair in data.train.inputs.tolist()}
    off_diagonal = [(a, b) for a, b in data.test.inputs.tolist() if a != b]
    return sum((b, a) in trained for a, b in off_diagonal) / len(off_diagonal)


def test_mirror_images_stay_together_unless_asked_otherwise():
    assert mirrored_share(lh.modular_addition(31, 0.7)) == 0.0
    with pytest.warns(UserWarning, match="split='ordered' puts"):
        data = lh.modular_addition(31, 0.7, split="ordered")
    assert mirrored_share(data) == pytest.approx(0.7, abs=0.1)
    assert len(data.train) == round(0.7 * 31 * 31)


def test_a_memoriser_scores_the_train_fraction_on_ordered_and_nothing_on_unordered_pairs():
    def memoriser(data) -> float:
        """Answers with what it saw for a + b's embedding sum, the unordered pair; 0 where it saw nothing."""
        seen = {
            frozenset(pair): target
            for pair, target in zip(data.train.inputs.tolist(), data.train.targets.tolist(), strict=True)
        }
        pairs = zip(data.test.inputs.tolist(), data.test.targets.tolist(), strict=True)
        right = [seen.get(frozenset(pair), 0) == target for pair, target in pairs]
        return sum(right) / len(right)

    assert memoriser(lh.modular_addition(53, 0.8)) == pytest.approx(1 / 53, abs=0.02)
    with pytest.warns(UserWarning, match="ordered"):
        ordered = lh.modular_addition(53, 0.8, split="ordered")
    assert memoriser(ordered) == pytest.approx(0.8, abs=0.05)


def test_a_random_table_is_symmetric_and_uniform():
    data = lh.modular_addition(53, 0.8, operation="random", seed=3)
    assert torch.equal(data.table, data.table.T)
    inputs, targets = (
        torch.cat([data.train.inputs, data.test.inputs]),
        torch.cat([data.train.targets, data.test.targets]),
    )
    assert torch.equal(data.table[inputs[:, 0], inputs[:, 1]], targets)
    upper = data.table[torch.triu_indices(53, 53)[0], torch.triu_indices(53, 53)[1]]
    counts = torch.bincount(upper, minlength=53).double()
    assert float(((counts - len(upper) / 53) ** 2 / (len(upper) / 53)).sum()) < 52 + 5 * (2 * 52) ** 0.5  # chi square
    assert float((data.table == lh.modular_addition(53).table).double().mean()) < 0.05


def test_the_third_token_and_the_seed():
    data = lh.modular_addition(11, 0.5, equals_token=True, seed=1)
    assert bool((data.train.inputs[:, 2] == 11).all())
    state = torch.get_rng_state()
    same, other = (lh.modular_addition(11, 0.5, seed=seed) for seed in (1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(same.train.inputs, data.train.inputs[:, :2])
    assert not torch.equal(other.train.inputs, same.train.inputs)
    assert repr(data.train).startswith("ModularPairs(")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1}, "p is 1, expected an integer from 2 to 4096"),
        ({"p": 100_000}, "p is 100000, expected an integer from 2 to 4096.\nAll p\\^2 pairs are held in memory"),
        ({"train_fraction": 1.1}, "train_fraction is 1.1"),
        ({"p": 3, "train_fraction": 0.01}, "train_fraction is 0.01, which leaves none of the 6 pairs"),
        ({"split": "random"}, "split is 'random', expected one of 'unordered', 'ordered'"),
        ({"operation": "times"}, "operation is 'times', expected one of 'add', 'random'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        lh.modular_addition(**arguments)
