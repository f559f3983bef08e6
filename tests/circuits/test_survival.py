"""Shares of survivors in two kinds of networks: against simulation, Fisher's table and a formula in NumPy."""

import math

import numpy as np
import pytest
from scipy.stats import fisher_exact

from lowhanging.circuits import clustered_survival_test
from lowhanging.circuits.survival import _studentized, detectable


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
        found = clustered_survival_test(formed, survived, is_second=np.arange(164) >= 64, num_resamples=199)
        hits += found["p_value"] <= 0.05
    assert hits / 300 <= 0.09  # 0.05 expected; more than 0.09 by chance in 0.1 % of all cases


def test_one_circuit_per_network_is_fishers_table():
    is_second = np.arange(120) >= 60
    survived = np.array([1] * 57 + [0] * 3 + [1] * 48 + [0] * 12)
    found = clustered_survival_test(np.ones(120, dtype=int), survived, is_second=is_second, num_resamples=20_000)
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
    t = float(_studentized(labels, counts)[0, 0])
    share, residuals = survived.sum() / formed.sum(), survived - survived.sum() / formed.sum() * formed
    first = np.var(residuals, ddof=1) * 50 / formed.sum() ** 2  # the residuals' mean is 0
    second = np.var(other[1] - 11 / 12 * other[0], ddof=1) * 3 / 12**2
    assert t == pytest.approx((share - 11 / 12) / math.sqrt(first + second))


def test_the_detectable_difference_is_found_in_four_of_five_and_shrinks_with_networks():
    rng = np.random.default_rng(3)
    formed = np.concatenate([rng.poisson(3.0, 64), np.ones(100, dtype=int)])
    is_second = np.arange(164) >= 64
    least = detectable(formed, is_second, share=0.97)
    assert least == pytest.approx(0.09, abs=0.03)
    hits = 0
    for _ in range(200):
        survived = rng.binomial(formed, np.where(is_second, 0.97 - least, 0.97))
        hits += clustered_survival_test(formed, survived, is_second=is_second, num_resamples=199)["p_value"] <= 0.05
    assert 0.7 <= hits / 200 <= 0.9
    few = np.append(is_second[:64], is_second[64:84])
    assert detectable(formed[:84], few, share=0.97) > least
    assert detectable(formed[:66], is_second[:66], share=0.1) is None  # even losing all would not be seen


def test_too_few_networks_are_no_comparison():
    formed = np.array([3, 2, 0, 1])
    found = clustered_survival_test(formed, formed, is_second=np.array([False, False, True, True]))
    assert found == {"difference": None, "interval": [None, None], "p_value": None}
    assert detectable(formed, np.array([False, False, True, True]), share=0.9) is None


def test_survivors_that_never_formed_are_refused():
    with pytest.raises(ValueError, match=r"survived has shape \(2,\).*expected three arrays \(networks,\)"):
        clustered_survival_test([1, 2], [1, 3], is_second=[True, False])
