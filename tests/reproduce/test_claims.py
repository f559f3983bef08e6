"""The words, intervals and verdicts of claims.

Oracles: Wilson's and Student's intervals by their formulas and by SciPy.
"""

import math
import re

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import sem
from scipy.stats import t as student

from lowhanging.reproduce import claims


def test_judged_and_most():
    assert claims.judged(True, True) == "holds"
    assert claims.judged(True, False) == "holds in part"
    assert claims.judged(False, False) == "does not hold"
    flags = ([True], [True, False], [True, True, False], [])
    assert [claims.most(each) for each in flags] == [True, False, True, False]


def test_wilson_interval_by_its_formula():
    count, num, z = 17, 20, 1.959963984540054
    share = count / num
    center = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * math.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
    expected = f"[{100 * (center - half):.1f} %, {100 * (center + half):.1f} %]"
    assert claims.interval(count, num) == f"85.0 % {expected}"
    assert claims.most_of([True] * 17 + [False] * 3) == f"17 of 20 seeds {expected}"
    assert claims.interval(0, 0) == "none of none"


def test_means_with_student_s_interval():
    assert claims.mean_interval([2.0, 4.0, 6.0]) == "4 ± 5 (2 to 6)"  # t(0.975, 2) = 4.303, times 2 / sqrt(3)
    assert claims.mean_interval([2.5], unit=" %") == "2.5 %"
    assert claims.mean_interval([1200.0, 1400.0]) == "1300 ± 1271 (1200 to 1400)"  # t(0.975, 1) = 12.706, times 100
    assert claims.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == "3 ± 2"  # five: no range; 2.776 * sqrt(2.5 / 5)
    assert claims.mean_interval([2.0, 4.0, 6.0], with_range=False) == "4 ± 5"
    assert claims.mean_interval([7.0, 7.0, 7.0], unit=" steps") == "7 steps each"  # "± 0" would say too much
    assert claims.over_seeds(1) == "(one seed: no interval)"
    assert claims.over_seeds(3) == "(means over 3 seeds, with 95 % intervals, the range in parentheses)"
    assert claims.over_seeds(5) == "(means over 5 seeds, with 95 % intervals)"
    assert claims.most_of([False]) == "not the one seed"


NUMBER = r"[\d.e+-]+"


@pytest.mark.parametrize("values", [[0.9, 1.6, 3.1], [0.2, 0.25, 0.31, 0.28, 0.22, 0.9], [0.5, 2.5]])
def test_intervals_of_ratios_are_scipy_s_of_their_logarithms(values):
    logs = np.log(values)
    low, high = np.exp(student.interval(0.95, len(values) - 1, loc=logs.mean(), scale=sem(logs)))
    text = claims.mean_interval(values, 6, " nats", scale="log")
    found = re.fullmatch(rf"({NUMBER}) nats \[({NUMBER}), ({NUMBER})\](?: \(({NUMBER}) to ({NUMBER})\))?", text)
    numbers = [float(each) for each in found.groups() if each is not None]
    expected = [np.exp(logs.mean()), low, high] + ([min(values), max(values)] if len(values) < 5 else [])
    assert numbers == pytest.approx(expected, rel=1e-4)
    inverse = claims.mean_interval([1 / value for value in values], 6, scale="log")
    ends = [float(each) for each in re.search(rf"\[({NUMBER}), ({NUMBER})\]", inverse).groups()]
    assert ends == pytest.approx([1 / high, 1 / low], rel=1e-4)


@pytest.mark.parametrize("values", [[0.97, 0.98, 0.99], [0.5, 0.9], [0.8, 0.85, 0.9, 0.95, 0.999], [0.01, 0.02, 0.1]])
def test_intervals_of_shares_are_scipy_s_of_their_log_odds(values):
    odds = logit(np.array(values))
    low, high = expit(student.interval(0.95, len(values) - 1, loc=odds.mean(), scale=sem(odds)))
    text = claims.mean_interval(values, 6, scale="share")
    found = re.fullmatch(rf"({NUMBER}) % \[({NUMBER}), ({NUMBER})\](?: \(({NUMBER}) to ({NUMBER})\))?", text)
    numbers = [float(each) for each in found.groups() if each is not None]
    expected = [expit(odds.mean()), low, high] + ([min(values), max(values)] if len(values) < 5 else [])
    assert numbers == pytest.approx([100 * each for each in expected], abs=1e-4)
    assert 0 < numbers[1] < numbers[0] < numbers[2] <= 100


@pytest.mark.parametrize(
    ("values", "scale", "text"),
    [
        ([0.9, 0.95, 1.0], "share", "95.0 % (90.0 to 100.0)"),  # 1 has no log odds: no interval
        ([0.0, 0.1, 0.5, 0.6, 0.7, 0.1], "share", "33.3 % (0.0 to 70.0)"),
        ([-0.1, 0.3], "share", "10.0 % (-10.0 to 30.0)"),  # a share of variance where the fit misleads
        ([-0.0001, 0.0002], "share", "0.0 %"),
        ([1.0, 1.0], "share", "100.0 % each"),
        ([0.98], "share", "98.0 %"),
        ([0.0, 2.0, 4.0], "log", "2 (0 to 4)"),
        ([0.0, 0.0], "log", "0 each"),
        ([1e-300, 1.0, 1e300], "log", "1 [0, 1.0e+304] (1e-300 to 1.0e+300)"),  # as far as a float goes, no error
    ],
)
def test_values_without_a_place_on_their_scale_have_a_range_and_no_interval(values, scale, text):
    assert claims.mean_interval(values, scale=scale) == text


def test_values_that_are_no_shares_and_scales_that_are_none():
    with pytest.raises(ValueError, match=r"values is \[98.0\], expected shares of at most 1.\nPass shares as 0.98"):
        claims.mean_interval([98.0], scale="share")
    with pytest.raises(ValueError, match="values is \\[\\], expected at least one value"):
        claims.mean_interval([])
    with pytest.raises(ValueError, match="scale is 'ratio', expected one of 'linear', 'log', 'share'"):
        claims.mean_interval([1.0], scale="ratio")
