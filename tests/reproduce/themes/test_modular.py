"""Claims 16 and 17: gaps against rises by hand and by brute force, shares of survivors against simulation and scipy."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import fisher_exact

from lowhanging import circuits
from lowhanging.circuits import Births
from lowhanging.circuits import survival as survivors
from lowhanging.circuits.birth_gaps import birth_gaps
from lowhanging.circuits.survival import clustered_survival_test, detectable
from lowhanging.reproduce.settings import SIZES, Sizes
from lowhanging.reproduce.store import NO_STORE
from lowhanging.reproduce.themes import modular

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


# One after another ----------------------------------------------------------------------------------------------------


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
    found = birth_gaps(born(step, rise), seen(born(step, rise)), num_draws=20_000)["apart"]
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
        birth_gaps(born(each, rise), seen(born(each, rise)), num_draws=200)["apart"]["p_more"]
        for each in rng.permuted(np.tile(apart.ravel(), (100, 1)), axis=1).reshape(100, 60, 2)
    ]
    assert np.mean(np.array(p_values) <= 0.1) <= 0.2  # 0.1 expected; beyond 0.2 by chance in 0.1 % of all cases


def test_one_circle_per_seed_is_no_succession():
    found = birth_gaps(born([[100.0], [200.0]], [[50.0], [60.0]]), np.ones((2, 1), dtype=bool))
    assert (found["seeds_with_two"], found["apart"]["num"], found["gap"]) == (0, 0, None)


# Who survives ---------------------------------------------------------------------------------------------------------


def networks(rng, num, mean, share, clustered=False):
    formed = rng.poisson(mean, num)
    lost = 1 - share
    each = np.where(rng.random(num) < 0.5, 2 * lost, 0.0) if clustered else np.full(num, lost)
    return formed, rng.binomial(formed, 1 - each)


@pytest.mark.parametrize("clustered", [False, True])
def test_the_test_rejects_as_often_as_it_says(clustered):
    """The two kinds form different numbers of circuits, and circuits share the fate of their network."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(300):
        kinds = networks(rng, 64, 3.0, 0.9, clustered), networks(rng, 100, 0.8, 0.9, clustered)
        formed, survived = (np.concatenate(each) for each in zip(*kinds, strict=True))
        found = clustered_survival_test(formed, survived, np.arange(164) >= 64, num_draws=199)
        hits += found["p_value"] <= 0.05
    assert hits / 300 <= 0.09  # 0.05 expected; more than 0.09 by chance in 0.1 % of all cases


def test_one_circuit_per_network_is_fishers_table():
    is_second = np.arange(120) >= 60
    survived = np.array([1] * 57 + [0] * 3 + [1] * 48 + [0] * 12)
    found = clustered_survival_test(np.ones(120, dtype=int), survived, is_second, num_draws=20_000)
    exact = fisher_exact([[48, 12], [57, 3]], alternative="less").pvalue
    assert found["difference"] == pytest.approx(57 / 60 - 48 / 60)
    assert found["p_value"] == pytest.approx(exact, abs=0.004)
    error = math.sqrt(0.95 * 0.05 / 60 + 0.8 * 0.2 / 60)
    assert found["interval"] == pytest.approx([0.15 - 1.96 * error, 0.15 + 1.96 * error], abs=0.02)


def test_the_standard_error_is_that_of_a_ratio_of_sums():
    rng = np.random.default_rng(2)
    formed, survived = networks(rng, 50, 3.0, 0.8)
    other = np.array([4, 4, 4]), np.array([4, 3, 4])
    counts = np.stack([np.append(formed, other[0]), np.append(survived, other[1])], 1).astype(float)[:, :, None]
    labels = (np.arange(53) >= 50).astype(float)[None]
    t = float(survivors._studentized(labels, counts)[0, 0])
    share, residuals = survived.sum() / formed.sum(), survived - survived.sum() / formed.sum() * formed
    first = np.var(residuals, ddof=1) * 50 / formed.sum() ** 2  # the residuals' mean is 0
    second = np.var(other[1] - 11 / 12 * other[0], ddof=1) * 3 / 12**2
    assert t == pytest.approx((share - 11 / 12) / math.sqrt(first + second))


def test_the_detectable_difference_is_found_in_four_of_five_and_shrinks_with_networks():
    rng = np.random.default_rng(3)
    formed = np.concatenate([rng.poisson(3.0, 64), np.ones(100, dtype=int)])
    is_second = np.arange(164) >= 64
    least = detectable(formed, is_second, 0.97)
    assert least == pytest.approx(0.09, abs=0.03)
    hits = 0
    for _ in range(200):
        survived = rng.binomial(formed, np.where(is_second, 0.97 - least, 0.97))
        hits += clustered_survival_test(formed, survived, is_second, num_draws=199)["p_value"] <= 0.05
    assert 0.7 <= hits / 200 <= 0.9
    few = np.append(is_second[:64], is_second[64:84])
    assert detectable(formed[:84], few, 0.97) > least
    assert detectable(formed[:66], is_second[:66], 0.1) is None  # even losing all would not be seen


def test_too_few_networks_are_no_comparison():
    formed = np.array([3, 2, 0, 1])
    found = clustered_survival_test(formed, formed, np.array([False, False, True, True]))
    assert found == {"difference": None, "interval": [None, None], "p_value": None}
    assert detectable(formed, np.array([False, False, True, True]), 0.9) is None


def test_fates_are_counted_seed_by_seed():
    """Two seeds of two planes, four logs: one circle stays, one is lost, one is overwritten, one never was."""
    scores = torch.full((2, 40, 2), 0.9)
    scores[0, :10] = scores[1, :10] = 0.1
    scores[0, 30:, 1] = 0.6  # lost
    scores[1, :, 1] = 0.2  # never formed
    frequency = torch.full((2, 40, 2), 3)
    frequency[1, 20:, 0] = 5  # another circle in the same plane, without a gap
    found = circuits.births(scores, range(40), frequency=frequency)
    fingerprint = modular._fates(
        found, circuits.CircleScores(*[scores.double()] * 3, frequency, frequency.sign(), scores)
    )
    assert fingerprint["formed"] == [2, 1]
    assert fingerprint["survived"] == [1, 1]
    assert fingerprint["overwritten"] == 1
    assert fingerprint["lost_scores"] == pytest.approx([0.6])
    curves = modular.survivals(circuits.survival(found), found)
    assert list(curves) == ["many parameters", "2 planes of 4 units"]
    late = circuits.births(torch.full((1, 9, 1), 0.2), range(9))
    assert list(modular.survivals(curves["many parameters"], late)) == ["many parameters"]
    assert modular._comparison(found, late)["p_value"] is None


# Verdicts -------------------------------------------------------------------------------------------------------------

PAIRS = {"ratio": [1.2] * 3, "interval": [[1.0, 1.4]] * 3, "p_more": [0.04] * 3, "rise_time": 80.0}
SHARE = {"null_mean": 0.4, "null_range": [0.3, 0.5], "p_more": 0.2, "p_fewer": 0.8}
ROW = {
    "p": 37, "num_blocks": 7, "births_per_seed": [2, 2], "key_frequencies_unblocked": [2, 3], "unblocked_p": 53,
    "accuracy_held_out": [0.9, 0.9], "transformer": None, "dominant_before_training": [1, 2],
    "frequency_relations": {"duplicates": {"interval": [None, None], "ratio": 1.0, "pairs": 0, "null_mean": 1.0}},
    "birth_steps": [[100.0, 200.0], [100.0, 110.0]], "share_alive_at_last_age": 1.0,
    "pairing": {null: copy.deepcopy(PAIRS) for null in ("shuffle", "clock", "poisson")},
    "birth_gaps": {
        "seeds_with_two": 10, "gap": 90.0, "rise": 60.0, "apart": {"count": 6, "num": 10} | SHARE,
        "strictly": {"count": 1, "num": 9} | SHARE,
    },
    "fates": {"formed": [10] * 10, "survived": [10] * 9 + [5], "overwritten": 0, "lost_scores": [0.5] * 5},
    "scarce": {
        "planes": 2, "fates": {"formed": [1] * 9, "survived": [1] * 9, "overwritten": 1, "lost_scores": []},
    },
    "comparison": {"difference": 0.1, "interval": [0.01, 0.2], "p_value": 0.04, "detectable": 0.09},
    "ablation": {"seed": 1, "mean_loss_by_circuits_kept": [4.0, 2.0, 0.1]},
}  # fmt: skip


def changed(path, value):
    row = copy.deepcopy(ROW)
    *parents, last = path.split("/")
    place = row
    for name in parents:
        place = place[name]
    place[last] = value
    return row


@pytest.mark.parametrize(
    ("path", "value", "sixteen", "seventeen"),
    [
        ("p", 37, "holds", "holds"),
        ("birth_gaps/apart/count", 5, "holds in part", "holds"),  # half is not most
        ("pairing/shuffle/p_more", [0.01, 0.06, 0.01], "holds in part", "holds"),  # that of 20 steps counts
        ("pairing/clock/p_more", [0.01, 0.06, 0.01], "holds in part", "holds"),
        ("pairing/poisson/p_more", [0.9] * 3, "holds", "holds"),
        ("fates/survived", [10] * 9 + [4], "holds", "holds in part"),
        ("comparison/p_value", 0.051, "holds", "holds in part"),
        ("comparison/p_value", None, "holds", "holds in part"),
    ],
)
def test_verdicts_follow_from_the_row(path, value, sixteen, seventeen):
    _, second, third = modular.claims([changed(path, value)])
    assert (second.number, second.verdict) == (16, sixteen)
    assert (third.number, third.verdict) == (17, seventeen)


def test_the_texts_say_what_the_numbers_mean():
    _, second, third = modular.claims([ROW])
    assert "by more than the first one's own rise: 60.0 % [31.3 %, 83.2 %] of 10 seeds." in second.measured
    assert "of 9 (1 left out, whose rise began before the first log)" in second.measured
    assert "make 40.0 % (95 % of the draws in [30.0 %, 50.0 %]; p of as many 0.2, of as few 0.8)" in second.null
    assert "(5 lost in 1 seeds, which end with scores of 0.50 to 0.50; a circle has 0.75 or more)" in third.measured
    assert "a difference of 9 points would have been found with 80 % power" in third.null
    assert "that is no evidence against the second part" in third.rule
    unknown = modular.claims([changed("comparison/detectable", None)])[2]
    assert "no difference would have been found with 80 % power" in unknown.null
    none = {"difference": None, "interval": [None, None], "p_value": None, "detectable": None}
    assert "Too few networks" in modular.claims([changed("comparison", none)])[2].null


# The full size --------------------------------------------------------------------------------------------------------


def test_the_full_size_trains_larger_networks():
    full = SIZES["full"]
    kind = modular.kind_of("births", full)
    model = kind.factory(0)
    assert model.embedding.shape == (113, 20)
    assert kind.arguments["steps"] == 3000
    assert kind.data.p == 113
    assert modular.kind_of("redundant", full).factory(0).embedding.shape[0] == 113
    assert modular.kind_of("births", full, **modular.SCARCE).factory(0).embedding.shape == (113, 4)


def test_every_line_of_the_full_size_runs_on_little():
    """The transformer and a modulus of one's own, which the quick size has not."""
    small = Sizes(
        "full", modulus=11, stack_steps=300, stack_seeds=6, unblocked_seeds=2, scarce_seeds=2, transformer_steps=2
    )
    found = modular._transformer(small, NO_STORE)
    assert found["p"] == 11
    assert len(found["key_frequencies"]) == modular.TRANSFORMER_SEEDS
    run = modular.kind_of("births", small).train("births", 2, NO_STORE, log_every=100)
    assert run.snapshots["embedding"].shape == (2, 4, 11, 20)
