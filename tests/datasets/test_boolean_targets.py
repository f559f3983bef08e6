"""Staircases of monomials: the leap against all orders, values and moments against sums over all inputs."""

import itertools
import random

import numpy as np
import pytest
import torch

from lowhanging import datasets


def leap_by_all_orders(monomials) -> int:
    """The definition: least over orders of the largest number of new coordinates."""
    least = 10**9
    for order in itertools.permutations(map(set, monomials)):
        known, largest = set(), 0
        for monomial in order:
            largest = max(largest, len(monomial - known))
            known |= monomial
        least = min(least, largest)
    return least


def test_the_greedy_leap_is_the_least_over_all_orders():
    generator = random.Random(0)
    seen = set()
    for _ in range(300):
        num = generator.randint(1, 5)
        drawn = {tuple(sorted(generator.sample(range(7), generator.randint(1, 6)))) for _ in range(num)}
        found = datasets.leap_of(drawn)
        assert found == leap_by_all_orders(drawn), drawn
        seen.add(found)
    assert seen >= {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("monomials", "leap"),
    [
        ([(0,), (0, 1), (0, 1, 2)], 1),  # the examples of Abbe, Boix-Adserà & Misiakiewicz: order does not matter
        ([(0, 1, 2), (0, 1), (0,)], 1),
        ([(0,), (0, 1, 2)], 2),
        ([(0,), (1, 2, 3, 4)], 4),
        ([(0,), (1,), (2,), (0, 1, 2)], 1),  # merged staircases
        ([(0, 1, 2)], 3),
    ],
)
def test_leaps_on_paper(monomials, leap):
    assert datasets.leap_of(monomials) == leap
    assert datasets.BooleanTarget(monomials, 6).leap == leap


@pytest.mark.parametrize(("leap", "degree"), list(itertools.product((1, 2, 3, 4), (4, 5, 6))))
def test_the_leap_of_a_staircase_is_the_one_asked_for(leap, degree):
    target = datasets.boolean_targets(8, leap=leap, degree=degree)
    assert (target.leap, target.degree, target.dimension) == (leap, degree, 8)
    assert all(set(small) < set(large) for small, large in itertools.pairwise(target.monomials))


def test_values_and_moments_over_all_inputs():
    target = datasets.boolean_targets(5, leap=2, degree=3)
    inputs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5)))
    values = target(inputs)
    x = inputs.T
    assert torch.equal(values, x[0] * x[1] + x[0] * x[1] * x[2])
    assert float(values.mean()) == 0 and float(values.square().mean()) == target.variance
    assert torch.equal(target(inputs.view(2, 16, 5)), values.view(2, 16))


def test_samples_are_uniform_signs_of_their_generator():
    target = datasets.boolean_targets(6, leap=1, degree=3)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    inputs, targets = target.sample(4000, torch.Generator().manual_seed(1))
    again, _ = target.sample(4000, torch.Generator().manual_seed(1))
    other, _ = target.sample(4000, torch.Generator().manual_seed(2))
    assert torch.equal(inputs, again) and not torch.equal(inputs, other)
    assert torch.equal(targets, target(inputs)) and inputs.dtype == targets.dtype == torch.float32
    assert set(inputs.unique().tolist()) == {-1.0, 1.0}
    assert float((inputs.T @ inputs / 4000 - torch.eye(6)).abs().max()) < 5 / 4000**0.5
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert np.random.get_state()[1].tolist() == state[2]  # noqa: NPY002


def test_the_repr_is_the_formula():
    target = datasets.boolean_targets(30, leap=2, degree=5)
    assert repr(target) == "BooleanTarget(x1 x2 + x1 x2 x3 x4 + x1 x2 x3 x4 x5; dimension=30, leap=2, degree=5)"
    assert target == datasets.BooleanTarget([[1, 0], [0, 1, 2, 3], range(5)], 30)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: datasets.boolean_targets(5, leap=4, degree=3), ValueError, "leap is 4, expected an integer from 1"),
        (lambda: datasets.boolean_targets(2, leap=1, degree=3), ValueError, "dimension is 2"),
        (lambda: datasets.boolean_targets(5, leap=1, degree=0), ValueError, "degree is 0"),
        (lambda: datasets.boolean_targets(5, leap=1.0, degree=3), TypeError, "leap is 1.0"),
        (lambda: datasets.leap_of([]), ValueError, "monomials is ()"),
        (lambda: datasets.leap_of([(0, 1), (1, 0)]), ValueError, "different monomials"),
        (lambda: datasets.leap_of([(0, 0)]), ValueError, "different columns"),
        (lambda: datasets.leap_of([(0, "a")]), TypeError, "a column of monomials is 'a'"),
        (lambda: datasets.leap_of(3), TypeError, "monomials is an int"),
        (lambda: datasets.BooleanTarget(((0,), (3,)), 3), ValueError, "dimension is 3"),
        (
            lambda: datasets.boolean_targets(5, leap=1, degree=3)(torch.ones(2, 4)),
            ValueError,
            "inputs has shape (2, 4)",
        ),
        (lambda: datasets.boolean_targets(5, leap=1, degree=3).sample(5, 0), TypeError, "generator is an int"),
    ],
)
def test_messages(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value) and "\n" in str(caught.value)
