"""Gaps between births against rises by hand, and against all permutations."""

import itertools
import math

import numpy as np
import pytest
import torch

from lowhanging.circuits import Births, birth_gaps

INF = math.inf


def born(step, rise, *, steps=None):
    """Births at the steps of rows of seeds, with the rise times."""
    times = torch.tensor(step, dtype=torch.float64)
    is_formed = torch.isfinite(times)
    return Births(
        step=times, death=torch.full_like(times, INF), rise_time=torch.tensor(rise, dtype=torch.float64),
        survived=is_formed, is_left_censored=torch.zeros_like(is_formed), frequency=None,
        steps=torch.arange(0.0, 1001.0, 10.0) if steps is None else steps, threshold=0.75, sustain=5,
    )  # fmt: skip


def seen(found):
    return np.ones(tuple(found.step.shape), dtype=bool)


def test_gaps_are_held_against_the_first_circles_own_rise():
    step = [[300, 100, INF], [100, 150, 400], [100, 200, INF], [500, INF, INF], [200, 280, INF]]
    rise = [[20, 90, math.nan], [60, 20, 9], [100, 40, math.nan], [9, math.nan, math.nan], [70, 90, math.nan]]
    found = birth_gaps(born(step, rise), seen(born(step, rise)))
    # Gaps 200, 50, 100, 80 against the first one's rise 90, 60, 100, 70; against the second one's 20, 20, 40, 90.
    assert found["seeds_with_two"] == 4
    assert (found["apart"]["count"], found["apart"]["num"]) == (2, 4)
    assert (found["strictly"]["count"], found["strictly"]["num"]) == (3, 4)
    assert (found["gap"], found["rise"]) == (90.0, 80.0)


def test_a_rise_that_began_before_the_first_log_is_not_known():
    step, rise = [[100, 150], [100, 300]], [[100, 20], [60, 150]]
    low = np.array([[False, True], [True, True]])
    found = birth_gaps(born(step, rise), low)
    assert (found["apart"]["count"], found["apart"]["num"]) == (1, 1)
    assert (found["strictly"]["count"], found["strictly"]["num"]) == (2, 2)


def test_the_null_is_that_of_all_permutations():
    step, rise = [[100, 200], [130, 400], [180, INF]], [[30, 40], [50, 220], [90, math.nan]]
    times, rises = [100, 200, 130, 400, 180], [30, 40, 50, 220, 90]
    shares = []
    for order in itertools.permutations(range(5)):
        count = 0
        for pair in (order[:2], order[2:4]):
            first, second = sorted(pair, key=lambda i: times[i])
            count += times[second] - times[first] > rises[first]
        shares.append(count / 2)
    found = birth_gaps(born(step, rise), seen(born(step, rise)), num_resamples=20_000)["apart"]
    observed = found["count"] / 2
    assert found["null_mean"] == pytest.approx(np.mean(shares), abs=0.01)
    assert found["p_more"] == pytest.approx(np.mean(np.array(shares) >= observed), abs=0.01)
    assert found["p_fewer"] == pytest.approx(np.mean(np.array(shares) <= observed), abs=0.01)


def test_births_that_wait_are_found_and_independent_ones_are_not():
    rng = np.random.default_rng(0)
    first = rng.uniform(100, 500, (60, 1))
    waiting = np.concatenate([first, first + 150], axis=1)
    rise = np.full((60, 2), 80.0)
    found = birth_gaps(born(waiting, rise), seen(born(waiting, rise)))["apart"]
    assert found["count"] == 60
    assert found["p_more"] < 0.001
    apart = rng.uniform(100, 500, (60, 2))
    p_values = [
        birth_gaps(born(each, rise), seen(born(each, rise)), num_resamples=200)["apart"]["p_more"]
        for each in rng.permuted(np.tile(apart.ravel(), (100, 1)), axis=1).reshape(100, 60, 2)
    ]
    assert np.mean(np.array(p_values) <= 0.1) <= 0.2  # 0.1 expected; beyond 0.2 by chance in 0.1 % of all cases


def test_one_circle_per_seed_has_no_gap():
    found = birth_gaps(born([[100.0], [200.0]], [[50.0], [60.0]]), np.ones((2, 1), dtype=bool))
    assert (found["seeds_with_two"], found["apart"]["num"], found["gap"]) == (0, 0, None)


def test_what_is_refused():
    found = born([[100.0, 200.0]], [[50.0, 60.0]])
    with pytest.raises(ValueError, match=r"started_low has shape \(2, 2\), expected that of births, \(1, 2\)"):
        birth_gaps(found, np.ones((2, 2), dtype=bool))
    with pytest.raises(ValueError, match="births holds 0 births with a time, expected at least 2"):
        birth_gaps(born([[INF, INF]], [[math.nan] * 2]), np.ones((1, 2), dtype=bool))
