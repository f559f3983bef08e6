"""Times with censoring: against order statistics and counts by hand, and against SciPy's sign test."""

import math

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import binom

import lowhanging as lh
from lowhanging.circuits import Competences, LearningTimes, first_crossing

INF = math.inf


@pytest.fixture
def ax():
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.subplots()


def made(slow, fast) -> LearningTimes:
    rows = {"slow": torch.tensor(slow, dtype=torch.float64), "fast": torch.tensor(fast, dtype=torch.float64)}
    sizes = torch.arange(len(slow)).double()
    return LearningTimes(sizes, rows, {name: torch.full((len(slow),), 100.0) for name in rows})


def test_the_first_log_at_the_threshold_and_infinity_where_there_is_none():
    steps = torch.tensor([0, 10, 20, 30])
    losses = torch.tensor([[1.0, 0.4, 0.6, 0.3], [1.0, 0.9, 0.8, 0.7], [math.nan, 0.6, 0.5, 0.1]])
    assert first_crossing(steps, losses, threshold=0.5).tolist() == [10.0, INF, 20.0]
    assert first_crossing(steps, losses, threshold=0.85, is_rising=True).tolist() == [0.0, 0.0, INF]
    with pytest.raises(ValueError, match=r"rows has shape \(3, 4\) for steps of shape \(3,\)"):
        first_crossing(steps[:3], losses, threshold=0.5)


def test_medians_and_counts_keep_who_never_learned():
    found = made([[5, INF, 7, INF, INF]], [[1, 2, 3, 4, INF]])
    assert found.median("slow").tolist() == [INF]
    assert found.median("fast").tolist() == [3.0]
    assert found.num_never("slow").tolist() == [3]
    even = made([[5, INF, 7, INF]], [[4, 1, 3, 2]])
    assert (even.median("slow").tolist(), even.median("fast").tolist()) == ([INF], [3.0])  # half never: the upper one
    assert even.ratio("slow", "fast").ratio.tolist() == [INF]
    assert found.interval("fast").tolist() == [[0.0, INF]]  # five seeds: no interval at 95 %
    with pytest.raises(ValueError, match="name is 'quick', expected one of 'slow', 'fast'"):
        found.median("quick")


@pytest.mark.parametrize("num", [6, 30, 31, 100])
def test_the_interval_of_a_median_has_its_coverage_on_paper(num):
    found = made([list(range(num))], [list(range(num))])
    low, high = found.interval("slow")[0].tolist()
    below = int(low) + 1  # the low end is the order statistic number `below`, the high end its mirror image
    assert high == num - below
    coverage = 1 - 2 * binom.cdf(below - 1, num, 0.5)
    assert coverage >= 0.95
    assert 1 - 2 * binom.cdf(below, num, 0.5) < 0.95  # the next one would not do


def test_a_ratio_of_exact_multiples_is_exact_and_its_interval_a_point():
    fast = np.random.default_rng(0).uniform(10, 20, size=(2, 25))
    found = made(fast * np.array([[3.0], [12.0]]), fast).ratio("slow", "fast")
    assert torch.allclose(found.ratio, torch.tensor([3.0, 12.0], dtype=torch.float64))
    assert torch.allclose(found.interval, torch.tensor([[3.0, 3.0], [12.0, 12.0]], dtype=torch.float64))
    assert found.growth == pytest.approx(4.0)
    assert found.growth_interval.tolist() == pytest.approx([4.0, 4.0])
    assert found.num_later.tolist() == [25, 25]
    assert found.p_value.tolist() == pytest.approx([0.5**25] * 2)
    assert "3 [3, 3]" in repr(found)


def test_the_interval_of_a_ratio_is_that_of_the_drawn_seeds_by_sorting():
    num, num_resamples = 12, 1000
    slow, fast = np.random.default_rng(2).lognormal(3, 0.5, (2, 3, num))  # three sizes
    slow[1, :5] = INF
    found = made(slow, fast).ratio("slow", "fast", num_resamples=num_resamples, seed=4)
    drawn = np.random.default_rng(4).integers(num, size=(num_resamples, num))
    ratios = [
        [sorted(a[rows])[num // 2] / sorted(b[rows])[num // 2] for rows in drawn]
        for a, b in zip(slow, fast, strict=True)
    ]
    for k, values in enumerate(ratios):
        assert found.interval[k].tolist() == pytest.approx([sorted(values)[24], sorted(values)[974]])
    growth = sorted(np.array(ratios[2]) / np.array(ratios[0]))
    assert found.growth_interval.tolist() == pytest.approx([growth[24], growth[974]])
    assert found.growth == pytest.approx(float(found.ratio[2] / found.ratio[0]))


def test_equal_times_give_an_interval_that_holds_one_in_most_trials():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        found = made(rng.lognormal(3, 0.5, (1, 30)), rng.lognormal(3, 0.5, (1, 30)))
        ratio = found.ratio("slow", "fast", num_resamples=400)
        low, high = ratio.interval[0].tolist()
        covered += low <= 1 <= high
    assert covered >= 88  # 95 expected; 88 or fewer by chance in 0.4 % of all cases


def test_what_is_not_known_speaks_against_the_slow_rule():
    never = [INF] * 8
    both = made([never], [never]).ratio("slow", "fast")
    assert both.num_later.tolist() == [0]
    assert both.ratio.tolist() == [0.0]
    assert both.p_value.tolist() == [1.0]
    only_slow = made([never], [[5.0] * 8]).ratio("slow", "fast")
    assert only_slow.ratio.tolist() == [INF]
    assert only_slow.interval.tolist() == [[INF, INF]]
    assert only_slow.num_later.tolist() == [8]
    ties = made([[5.0] * 8], [[5.0] * 8]).ratio("slow", "fast")
    assert (ties.num_later.tolist(), ties.p_value.tolist()) == ([0], [1.0])
    with pytest.raises(ValueError, match="num_resamples is 5"):
        made([never], [never]).ratio("slow", "fast", num_resamples=5)


def test_growth_is_a_lower_bound_whatever_was_not_seen():
    first, fast = [[10.0] * 8, [5.0] * 8], [[5.0] * 8] * 2  # slow rule, fast rule
    never = made([first[0], [INF] * 8], fast).ratio("slow", "fast")  # budget 100: at least 100 / 5 over 10 / 5
    assert (never.growth, never.is_growth_bound) == (10.0, True)
    assert never.growth_interval.tolist() == [10.0, 10.0]
    assert never.ratio.tolist() == [2.0, INF]  # of the ratio itself nothing is taken away
    seen = made([first[0], [60.0] * 8], fast).ratio("slow", "fast")
    assert (seen.growth, seen.is_growth_bound) == (6.0, False)
    few = made([first[0], [60.0] * 5 + [INF] * 3], fast).ratio("slow", "fast")  # the median is known
    assert (few.growth, few.is_growth_bound) == (6.0, False)
    # What is not known of the first size, or of the fast rule, is no growth.
    assert made([[INF] * 8, [INF] * 8], fast).ratio("slow", "fast").growth == 0.0
    assert made([first[0], [60.0] * 8], [[INF] * 8, [5.0] * 8]).ratio("slow", "fast").growth == 0.0
    assert made([first[0], [60.0] * 8], [[5.0] * 8, [INF] * 8]).ratio("slow", "fast").growth == 0.0


def test_the_growth_found_with_a_budget_never_exceeds_the_one_without():
    rng = np.random.default_rng(2)
    for _ in range(20):
        slow, fast = rng.lognormal([[3.0], [4.5]], 0.6, (2, 15)), rng.lognormal(2.5, 0.3, (2, 15))
        whole = made(slow, fast).ratio("slow", "fast", num_resamples=100)
        slow[slow > 100] = INF  # beyond the budget
        cut = made(slow, fast).ratio("slow", "fast", num_resamples=100)
        assert cut.growth <= whole.growth
        assert bool((cut.growth_interval <= whole.growth_interval).all())


def test_times_and_competences_survive_a_file(tmp_path):
    found = made([[5, INF, 7]], [[1, 2, 3]])
    again = LearningTimes.load(found.save(tmp_path / "times.npz"))
    assert torch.equal(again.times["slow"], found.times["slow"])
    assert repr(again) == repr(found)
    rows = Competences(torch.tensor([0.0, 1.0, 2.0]), {"number": torch.tensor([[0.0, 0.6, 1.0]])}, "epoch")
    assert repr(rows) == "Competences(median epoch of half the way: number 1)"
    assert torch.equal(Competences.load(rows.save(tmp_path / "c.npz")).progress["number"], rows.progress["number"])


def test_the_drawing_shows_medians_intervals_and_what_is_out_of_reach(ax):
    import matplotlib.pyplot as plt

    opened, settings = plt.get_fignums(), dict(plt.rcParams)
    slow = [[20.0, 21, 22, 23, 24, 25, 26], [INF, INF, INF, INF, INF, 60, 70]]
    assert lh.plots.learning_times(made(slow, [[5.0] * 7, [6.0] * 7]), ax) is ax
    assert (plt.get_fignums(), dict(plt.rcParams)) == (opened, settings)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["slow", "fast"]
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["slow"].get_ydata().tolist() == [23.0, 100.0]  # the budget, where the median is infinite
    assert lines["fast"].get_ydata().tolist() == [5.0, 6.0]
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [line.get_ydata().tolist() for line in hollow] == [[100.0]]
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "steps to learn it (median over seeds)"
    with pytest.raises(TypeError, match="times is an int"):
        lh.plots.learning_times(3, ax)


def test_the_drawing_of_competences_marks_half_of_the_way(ax):
    rows = {"number": torch.tensor([[0.0, 0.6, 1.0], [0.0, 0.7, 0.9]]), "pattern": torch.tensor([[0.0, 0.1, 0.2]] * 2)}
    lh.plots.competences(Competences(torch.tensor([0.0, 1.0, 2.0]), rows, "epoch"), ax)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["number, half at epoch 1", "pattern, half not reached"]
    middle = next(line for line in ax.lines if line.get_label() == labels[0])
    assert middle.get_ydata().tolist() == pytest.approx([0.0, 65.0, 95.0])
    assert ax.get_xlabel() == "epoch (0 = before training)"
    with pytest.raises(TypeError, match="found is an int"):
        lh.plots.competences(3, ax)
