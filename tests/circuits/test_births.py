"""Births against planted ramps and a loop, nulls against all permutations, survival against SciPy, power by simulation.

The simulated data sets have 7 blocks, each born with probability 1/2 in one burst that all seeds share: normal around
step 300 with a standard deviation of 70 steps (or lognormal), logged every 5 steps. What a planted coupling does to the
ratio depends on that design; with it, 20 % coupled births in 128 seeds give about 1.7 within 20 steps.
"""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from scipy import stats

import lowhanging as lh
from lowhanging import circuits
from lowhanging.circuits.permutation import shuffles, slots_of

STEPS = np.arange(0.0, 1001.0, 5.0)


def made(step, *, steps=STEPS, rise_time=5.0, frequency=None) -> circuits.Births:
    """Births at the given (seeds, blocks) steps, as if seen by a detector with `sustain=1`."""
    step = torch.as_tensor(step if isinstance(step, torch.Tensor) else np.array(step), dtype=torch.float64)
    is_formed = torch.isfinite(step)
    return circuits.Births(
        step=step,
        death=torch.full_like(step, math.inf),
        rise_time=torch.where(is_formed, rise_time, math.nan).double(),
        survived=is_formed,
        is_left_censored=step == steps[0],
        frequency=None if frequency is None else torch.as_tensor(frequency),
        steps=torch.from_numpy(np.asarray(steps)),
        threshold=0.75,
        sustain=1,
    )


def bursty(rng, num_seeds=64, *, coupling=0.0, kind="normal", shift=0.0) -> circuits.Births:
    """Independent births in one shared burst, a share of them then moved to within 20 steps of another."""
    shape = (num_seeds, 7)
    times = rng.normal(300, 70, shape) if kind == "normal" else 120 + 150 * rng.lognormal(0.0, 0.5, shape)
    times = times + rng.normal(0.0, shift, (num_seeds, 1))
    is_formed = rng.random(shape) < 0.5
    stays, movable = {}, []
    where = rng.permutation(np.argwhere(is_formed))
    for seed, block in where:
        if seed in stays:
            movable.append((seed, block))
        stays.setdefault(seed, [block])
    num_moved = round(coupling * len(where))
    for seed, block in movable[num_moved:]:
        stays[seed].append(block)
    for seed, block in movable[:num_moved]:
        times[seed, block] = times[seed, rng.choice(stays[seed])] + rng.uniform(-20, 20)
    seen = np.clip(5 * np.ceil(times / 5), 5, 1000)
    return made(np.where(is_formed, seen, math.inf))


def rejections(null, *, num=200, **design) -> float:
    rng = np.random.default_rng(11)
    tests = (
        circuits.pairing_test(bursty(rng, **design), (20,), null=null, num_resamples=199, seed=i) for i in range(num)
    )
    return sum(float(test.p_more[0]) <= 0.05 for test in tests) / num


# births


def test_planted_ramps_give_their_births():
    steps = np.arange(0, 400, 10)  # 40 logs
    scores = np.full((2, 40, 4), 0.2)
    ramp = np.linspace(0.0, 1.0, 11)  # 0, .1, ..., 1: half the threshold (.375) last at .3, crossed at .8
    scores[0, 5:16, 0], scores[0, 16:, 0] = ramp, 1.0  # crosses at log 13
    scores[0, 10:14, 1] = 0.9  # a blip of 4 logs
    scores[0, :, 2] = 0.8  # there before the first log
    scores[0, 36:, 3] = 0.9  # too late: 4 logs seen
    scores[1, 10:14, 0], scores[1, 20:25, 0] = 0.9, 0.75  # a blip, then exactly the threshold for 5 logs
    scores[1, 35:, 1] = 0.9  # the last that can be seen
    scores[1, 10:20, 2], scores[1, 30:, 2] = 0.9, 0.9  # dies and comes back
    scores[1, 10:20, 3], scores[1, 24:36, 3] = 0.9, 0.9  # a dip of 4 logs, then a fall of 4 at the end
    frequency = np.arange(40)[None, :, None] + np.zeros((2, 1, 4), dtype=int)
    found = circuits.births(torch.tensor(scores), steps, frequency=frequency)
    inf, nan = math.inf, math.nan
    assert found.step.tolist() == [[130, inf, 0, inf], [200, 350, 100, 100]]
    assert found.death.tolist() == [[inf, inf, inf, inf], [250, inf, 200, inf]]
    assert found.survived.tolist() == [[True, False, True, False], [False, True, True, False]]
    assert found.is_left_censored.tolist() == [[False, False, True, False], [False] * 4]
    assert found.frequency.tolist() == [[13, -1, 0, -1], [20, 35, 10, 10]]
    rises = torch.tensor([[50, nan, nan, nan], [10, 10, 10, 10]], dtype=torch.float64)
    assert torch.equal(found.rise_time.nan_to_num(-1), rises.nan_to_num(-1))
    assert found.counts.tolist() == [2, 4]
    assert repr(found) == (
        "Births(2 seeds × 4 blocks; 3.0 births per seed, first at step 50 (median); 67 % survive;"
        " 1 formed before the first log)"
    )


def test_a_rise_from_the_first_log_is_a_lower_bound():
    scores = np.full((1, 30, 1), 0.5)
    scores[:, 12:] = 0.9
    assert float(circuits.births(scores, np.arange(100, 130)).rise_time) == 12
    scores[:, 9] = 0.375  # half the threshold, exactly, is low enough
    assert float(circuits.births(scores, np.arange(100, 130)).rise_time) == 3


@pytest.mark.parametrize("sustain", [1, 3, 8])
def test_births_match_a_loop(sustain):
    rng = np.random.default_rng(sustain)
    scores = np.clip(np.cumsum(rng.normal(0.02, 0.2, (20, 20, 5)), axis=1), 0, 1).astype(np.float32)
    steps = np.cumsum(rng.integers(1, 30, 20))
    found = circuits.births(scores, steps, threshold=0.6, sustain=sustain)
    num_formed = 0
    for seed, block in itertools.product(range(20), range(5)):
        above = [float(value) >= 0.6 for value in scores[seed, :, block]]
        starts = range(20 - sustain + 1)
        birth = next((i for i in starts if all(above[i : i + sustain])), None)
        death = birth is not None and next((i for i in starts if i > birth and not any(above[i : i + sustain])), None)
        assert float(found.step[seed, block]) == (math.inf if birth is None else steps[birth])
        assert float(found.death[seed, block]) == (steps[death] if death else math.inf)
        num_formed += birth is not None
        if birth:
            low = [i for i in range(birth) if scores[seed, i, block] <= 0.3]
            assert float(found.rise_time[seed, block]) == steps[birth] - steps[low[-1] if low else 0]
    assert int(found.is_formed.sum()) == num_formed > 0


def test_planted_bursts_come_back_from_their_scores():
    planted = bursty(np.random.default_rng(0), 16)
    index = np.arange(len(STEPS))[:, None]
    born = planted.step.numpy()[:, None] / 5  # (seeds, 1, blocks), index of the log
    scores = 1 / (1 + np.exp(-2.0 * (index - born) - math.log(3) - 1e-9))  # .75 at the log of birth
    assert torch.equal(circuits.births(scores, STEPS).step, planted.step)


def test_births_are_saved(tmp_path):
    rng = np.random.default_rng(0)
    scores = np.clip(np.cumsum(rng.normal(0.01, 0.05, (6, 50, 3)), axis=1), 0, 1)
    for frequency in (None, rng.integers(1, 19, scores.shape)):
        found = circuits.births(scores, range(50), frequency=frequency)
        loaded = circuits.Births.load(found.save(tmp_path / "births"))
        assert repr(loaded) == repr(found)
        assert torch.equal(loaded.step, found.step)
        assert (loaded.frequency is None) == (frequency is None)
    assert repr(circuits.births(np.zeros((1, 9, 2)), range(9))) == "Births(1 seed × 2 blocks; no circuit formed)"


SCORES = np.full((2, 10, 3), 0.9)
HOLED = SCORES.copy()
HOLED[1, 4, 2] = math.nan


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        ({"scores": HOLED}, ValueError, "scores holds 1 NaN or infinite entries, expected finite numbers"),
        ({"scores": SCORES[0]}, ValueError, r"scores has shape \(10, 3\), expected \(seeds, logs, blocks\)"),
        ({"scores": SCORES[:0]}, ValueError, r"scores has shape \(0, 10, 3\)"),
        ({"scores": "high"}, TypeError, "scores is a str that is no array"),
        ({"scores": SCORES + 1j}, TypeError, "scores has dtype torch.complex128, expected real numbers"),
        ({"steps": range(9)}, ValueError, r"steps has shape \(9,\), expected \(10,\), the logs of scores \(2, 10, 3\)"),
        ({"steps": [0, 1, 2, 4, 3, 5, 6, 7, 8, 9]}, ValueError, "steps has 3 after 4 at index 4, expected strictly"),
        ({"steps": [0, 1, 2, 2, 3, 4, 5, 6, 7, 8]}, ValueError, "steps has 2 after 2 at index 3"),
        ({"threshold": 0.0}, ValueError, "threshold is 0, expected a finite number in"),
        ({"sustain": 11}, ValueError, "sustain is 11, expected an integer from 1 to 10"),
        ({"sustain": 0}, ValueError, "sustain is 0, expected an integer from 1 to 10"),
        ({"frequency": np.ones((2, 9, 3))}, ValueError, r"frequency has shape \(2, 9, 3\), expected that of scores"),
        ({"frequency": SCORES}, ValueError, "frequency holds fractions, expected integers"),
    ],
)
def test_bad_scores(call, kind, message):
    with pytest.raises(kind, match=message):
        circuits.births(**({"scores": SCORES, "steps": range(10)} | call))


# pairing


def by_hand(found, close) -> int:
    """Pairs of births of one seed for which `close(gap)` holds."""
    rows = [[t for t in row if math.isfinite(t) and t > STEPS[0]] for row in found.step.tolist()]
    return sum(close(abs(a - b)) for row in rows for a, b in itertools.combinations(row, 2))


def every_dealing(rows, strata, num_close) -> list[int]:
    """The statistic for every permutation of the values within each stratum."""
    members = [[seed for seed, label in enumerate(strata) if label == wanted] for wanted in sorted(set(strata))]
    counts = []
    for orders in itertools.product(
        *(itertools.permutations([t for seed in seeds for t in rows[seed]]) for seeds in members)
    ):
        dealt = {seed: [] for seed in range(len(rows))}
        for seeds, order in zip(members, orders, strict=True):
            values = iter(order)
            for seed in seeds:
                dealt[seed] = [next(values) for _ in rows[seed]]
        counts.append(sum(num_close(a, b) for row in dealt.values() for a, b in itertools.combinations(row, 2)))
    return counts


def padded(rows, num=4):
    return [row + [math.inf] * (num - len(row)) for row in rows]


def test_pairs_and_null_match_every_permutation():
    rows = [[100.0, 110.0, 125.0], [105.0, 300.0], [120.0], [310.0]]
    for strata in (None, ["a", "a", "b", "a"]):
        found = circuits.pairing_test(made(padded(rows)), (10, 20, 200), strata=strata, num_resamples=4000)
        assert found.pairs.tolist() == [1, 2, 4]
        for k, window in enumerate((10, 20, 200)):
            dealt = np.array(every_dealing(rows, strata or "aaaa", lambda a, b, w=window: abs(a - b) <= w))
            assert float(found.null_mean[k]) == pytest.approx(dealt.mean(), abs=1e-12)
            assert float(found.null_pairs[k].double().mean()) == pytest.approx(dealt.mean(), abs=0.06)
            assert float(found.p_more[k]) == pytest.approx((dealt >= found.pairs[k].item()).mean(), abs=0.03)
            assert float(found.p_fewer[k]) == pytest.approx((dealt <= found.pairs[k].item()).mean(), abs=0.03)
    assert (found.num_births, found.num_seeds, found.rise_time) == (7, 4, 5.0)


def test_triples_and_their_null_match_every_permutation():
    rows = [[100.0, 125.0, 110.0], [105.0, 300.0, 112.0], [120.0], [310.0]]
    for strata in (None, ["a", "a", "b", "a"]):
        arguments = {"strata": strata, "num_resamples": 4000, "size": 3}
        found = circuits.pairing_test(made(padded(rows)), (10, 25, 200), **arguments)
        assert found.pairs.tolist() == [0, 1, 2]
        groups = [[0, 1, 2, 3]] if strata is None else [[0, 1, 3], [2]]
        for k, window in enumerate((10, 25, 200)):
            counts = []
            for order in itertools.permutations([t for seed in groups[0] for t in rows[seed]]):
                values, total = iter(order), 0
                for seed in groups[0]:
                    dealt = [next(values) for _ in rows[seed]]
                    triples = itertools.combinations(dealt, 3)
                    total += sum(max(three) - min(three) <= window for three in triples)
                counts.append(total)
            counts = np.array(counts)
            assert float(found.null_mean[k]) == pytest.approx(counts.mean(), abs=1e-12)
            assert float(found.null_pairs[k].double().mean()) == pytest.approx(counts.mean(), abs=0.06)
            assert float(found.p_more[k]) == pytest.approx((counts >= found.pairs[k].item()).mean(), abs=0.03)
    assert "triples of births, against births shuffled" in repr(found)


def test_a_planted_coupling_makes_triples_too_and_independent_births_do_not():
    rng = np.random.default_rng(4)
    shares = []
    for coupling in (0.0, 0.4):
        found = [
            circuits.pairing_test(bursty(rng, 128, coupling=coupling), (20,), size=3, num_resamples=199, seed=i)
            for i in range(60)
        ]
        shares.append(np.mean([float(test.p_more[0]) <= 0.05 for test in found]))
        inside = [float(test.interval[0, 0]) <= 1.0 <= float(test.interval[0, 1]) for test in found]
        assert (np.mean(inside) >= 0.8) == (coupling == 0)
    assert shares[0] <= 0.15
    assert shares[1] >= 0.8
    later = circuits.pairing_test(bursty(rng, 128, coupling=0.4), (20,), size=3, null="clock", num_resamples=199)
    assert later.size == 3
    with pytest.raises(ValueError, match="size is 3 with null='poisson'"):
        circuits.pairing_test(bursty(rng), (20,), size=3, null="poisson")
    with pytest.raises(ValueError, match="size is 4, expected an integer from 2 to 3"):
        circuits.pairing_test(bursty(rng), (20,), size=4)
    pairs = made([[100.0, 110.0], [120.0, 300.0]])
    with pytest.raises(ValueError, match="births has no seed with three births, expected at least one with three"):
        circuits.pairing_test(pairs, (20,), size=3)


def test_births_before_the_first_log_are_left_out():
    rows = [[0.0, 100.0, 110.0], [0.0, 5.0], [200.0, 400.0]]
    found = circuits.pairing_test(made(padded(rows)), (10,), num_resamples=50)
    assert (found.pairs.tolist(), found.num_births, found.num_seeds) == ([1], 5, 3)


def test_shuffles_keep_counts_and_strata():
    rng = np.random.default_rng(0)
    owners = rng.integers(0, 9, 40)
    strata = np.arange(9) % 3
    places, order = slots_of(owners, strata)
    drawn = np.concatenate(list(shuffles(places, np.arange(40), 300, rng)))
    assert drawn.shape == (300, 40)
    before = strata[owners[order]]
    for row in drawn:
        assert sorted(row) == list(range(40))
        assert np.array_equal(before[row], before)
    first = [i for i in range(40) if before[i] == 0]
    assert set(drawn[:, 0]) == set(first)  # and every value of the stratum gets everywhere
    assert not np.array_equal(drawn[0], drawn[1])


def test_clock_compares_the_times_since_the_first_birth():
    rows = [[100.0, 110.0, 125.0], [305.0, 400.0, 310.0], [120.0], [500.0, 520.0]]
    found = circuits.pairing_test(made(padded(rows)), (10, 20, 90), null="clock", num_resamples=200)
    assert (found.num_births, found.num_seeds) == (5, 3)  # later births
    assert found.pairs.tolist() == [0, 1, 2]
    delays = [[10.0, 25.0], [5.0, 95.0], [20.0]]
    for k, window in enumerate((10, 20, 90)):
        dealt = every_dealing(delays, "aaa", lambda a, b, w=window: abs(a - b) <= w)
        assert float(found.null_mean[k]) == pytest.approx(np.mean(dealt), abs=1e-12)


def test_clock_compares_within_strata_only():
    rows = [[100.0, 110.0, 125.0], [200.0, 220.0, 240.0], [110.0, 400.0, 480.0], [210.0, 500.0, 520.0, 560.0]]
    parts = [
        circuits.pairing_test(made(padded(part)), (20, 40), null="clock", num_resamples=10)
        for part in (rows[:2], rows[2:])
    ]
    mixed = made(padded([rows[i] for i in (0, 2, 1, 3)]))
    found = circuits.pairing_test(mixed, (20, 40), null="clock", strata=list("abab"), num_resamples=10)
    assert torch.allclose(found.null_mean, parts[0].null_mean + parts[1].null_mean, atol=1e-12)
    assert not torch.allclose(
        found.null_mean, circuits.pairing_test(mixed, (20, 40), null="clock", num_resamples=10).null_mean, atol=0.1
    )


def test_poisson_is_a_contrast_and_not_called_pairing():
    data = bursty(np.random.default_rng(2))
    found = circuits.pairing_test(data, null="poisson")
    assert found.pairs.tolist() == [by_hand(data, lambda gap, w=w: gap <= w) for w in (10, 20, 50)]
    spread = found.null_pairs.double().std(1) / 2000**0.5
    assert bool(((found.null_mean - found.null_pairs.double().mean(1)).abs() < 4 * spread).all())
    # Where all births of a seed fall together, however few or many it has, no choice of seeds changes the ratio.
    even = circuits.pairing_test(made(padded([[300.0] * n for n in (6, 3, 2, 4)], 6)), null="poisson", num_resamples=50)
    assert int(even.pairs[0]) == 15 + 3 + 1 + 6
    assert torch.allclose(even.interval, even.ratio[:, None].expand(3, 2), rtol=1e-12)
    assert "pair" not in found.label.lower()
    assert "pairing" not in repr(found).lower()
    assert repr(found).startswith("Contrast(burst shared by all seeds, against a constant rate (for contrast); ")
    # A process at a constant rate is not rejected, also where the logs are not evenly spaced.
    steps = np.cumsum(np.r_[0.0, np.tile([2.0, 20.0], 40)])
    rng = np.random.default_rng(3)
    num = 0
    for i in range(100):
        seen = steps[np.searchsorted(steps, rng.uniform(0, steps[-1], (40, 5)))]
        num += float(circuits.pairing_test(made(seen, steps=steps), (22,), null="poisson", num_resamples=99, seed=i)
                     .p_more[0]) <= 0.05  # fmt: skip
    assert num <= 11


def test_a_shared_burst_is_rejected_by_poisson_and_not_by_shuffling():
    for kind in ("normal", "lognormal"):
        assert rejections("poisson", kind=kind, num=100) > 0.95
        assert 0.02 <= rejections("shuffle", kind=kind) <= 0.09


def test_clock_is_not_misled_by_seeds_that_are_late():
    assert rejections("shuffle", kind="lognormal", shift=60.0, num=100) > 0.5  # births of a late seed lie together
    assert rejections("clock", kind="lognormal", shift=60.0) <= 0.09
    assert rejections("clock", kind="normal") <= 0.09


def test_a_planted_coupling_is_found():
    rng = np.random.default_rng(4)
    tests = [circuits.pairing_test(bursty(rng, 128, coupling=0.2), (20,), num_resamples=199, seed=i) for i in range(60)]
    assert np.mean([float(test.p_more[0]) <= 0.05 for test in tests]) >= 0.9
    ratios = [float(test.ratio[0]) for test in tests]
    assert np.mean(ratios) == pytest.approx(1.72, abs=0.2)
    inside = [float(test.interval[0, 0]) <= np.mean(ratios) <= float(test.interval[0, 1]) for test in tests]
    assert np.mean(inside) >= 0.85
    again = circuits.pairing_test(bursty(rng, 128, coupling=0.2), (20,), null="clock", num_resamples=199)
    assert float(again.p_more[0]) <= 0.05


def test_intervals_hold_the_ratio_of_independent_births():
    rng = np.random.default_rng(5)
    tests = [circuits.pairing_test(bursty(rng), (20,), num_resamples=199, seed=i) for i in range(150)]
    inside = [float(test.interval[0, 0]) <= 1.0 <= float(test.interval[0, 1]) for test in tests]
    assert 0.88 <= np.mean(inside) <= 0.99


def test_p_values_are_never_zero():
    together = made([[100.0, 100.0], [300.0, 300.0], [500.0, 500.0], [700.0, 700.0], [900.0, 900.0]])
    found = circuits.pairing_test(together, (10,), num_resamples=9)
    more = (1 + (found.null_pairs >= found.pairs[:, None]).sum(1)) / 10
    assert found.p_more.tolist() == pytest.approx(more.tolist())
    assert float(found.p_more) == pytest.approx(0.1)
    assert float(found.p_fewer) == 1.0
    apart = made([[100.0, 300.0], [500.0, 700.0]])
    found = circuits.pairing_test(apart, (10,), num_resamples=9)  # no two births of any seeds are close
    assert math.isnan(float(found.ratio))
    assert (float(found.p_more), float(found.p_fewer)) == (1.0, 1.0)


def test_same_seed_same_result_and_nothing_global_is_touched():
    data = bursty(np.random.default_rng(6), 32)
    data = circuits.Births(**{**vars(data), "frequency": torch.randint(1, 19, data.step.shape)})
    np.random.seed(3)  # noqa: NPY002
    state = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    step = data.step.clone()
    calls = [
        lambda seed, null=null: circuits.pairing_test(data, null=null, num_resamples=50, seed=seed).null_pairs
        for null in ("shuffle", "clock", "poisson")
    ]
    calls.append(lambda seed: circuits.birth_intensity(data, num_resamples=50, seed=seed).interval)
    calls.append(lambda seed: circuits.frequency_relations(data, 37, num_resamples=50, seed=seed).interval)
    calls.append(lambda seed: torch.tensor([circuits.pairing_power(data, num_repeats=5, seed=seed).ratio]))
    for call in calls:
        assert torch.equal(call(1), call(1))
        assert not torch.equal(call(1), call(2))
    assert state == (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    assert torch.equal(step, data.step)


def test_windows_that_nothing_can_resolve_are_warned_of():
    data = made(bursty(np.random.default_rng(7)).step, rise_time=30.0)
    with pytest.warns(UserWarning, match="windows holds 10, 20, shorter than the median rise time of circuits"):
        circuits.pairing_test(data, num_resamples=10)
    with pytest.warns(UserWarning, match="lags holds 10, shorter than the median rise time"):
        circuits.birth_intensity(data, num_resamples=10)
    with pytest.warns(UserWarning, match=r"windows holds 4, shorter than the spacing of the logs \(5 steps\)"):
        circuits.pairing_test(made(data.step, rise_time=1.0), (4,), num_resamples=10)
    uneven = made(data.step, rise_time=1.0, steps=np.append(STEPS, 1100.0))  # the closest logs are what can be told
    circuits.pairing_test(uneven, (6,), num_resamples=10)


TWO = made([[100.0, 110.0], [200.0, 300.0]], frequency=[[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        ({"births": SCORES}, TypeError, "births is a ndarray, expected a Births"),
        ({"null": "gaussian"}, ValueError, "null is 'gaussian', expected one of 'shuffle', 'clock', 'poisson'"),
        ({"windows": ()}, ValueError, r"windows is \(\), expected a sequence of at least one number"),
        ({"windows": 20}, ValueError, "windows is 20, expected a sequence"),
        ({"windows": torch.ones(2, 2)}, ValueError, "expected a sequence of at least one number"),
        ({"windows": (10, 0)}, ValueError, r"windows\[1\] is 0, expected a finite number in \(0, inf\)"),
        ({"windows": (-5,)}, ValueError, r"windows\[0\] is -5"),
        ({"windows": ("10",)}, TypeError, r"windows\[0\] is '10'"),
        ({"strata": [1, 2, 3]}, ValueError, r"strata has shape \(3,\), expected \(2,\), one label per seed"),
        ({"strata": [1, 2], "null": "poisson"}, ValueError, "strata is given with null='poisson'"),
        ({"num_resamples": 0}, ValueError, "num_resamples is 0, expected an integer of at least 1"),
        ({"births": made([[100.0, math.inf]])}, ValueError, "births holds 1 birth with a time, expected at least 2"),
        (
            {"births": made([[0.0, 100.0]])},
            ValueError,
            r"births holds 1 birth with a time \(1 formed before the first log\)",
        ),
        (
            {"births": made([[100.0], [200.0]])},
            ValueError,
            "births has 0 pairs of births in 2 seeds, expected at least 2 with births",
        ),
        (
            {"null": "clock"},
            ValueError,
            "births has 0 pairs of births after the first in 2 seeds, .* one of them with three",
        ),
        (
            {"births": made([[100.0, 200.0]])},
            ValueError,
            "births has 1 pairs of births in 1 seed, expected at least 2 with births",
        ),
    ],
)
def test_bad_pairing(call, kind, message):
    with pytest.raises(kind, match=message):
        circuits.pairing_test(**({"births": TWO} | call))


# what else is asked of births


def test_intensity_counts_the_pairs_at_each_lag():
    data = bursty(np.random.default_rng(8))
    found = circuits.birth_intensity(data, (0, 10, 50, 200), num_resamples=300)
    bins = [(-1, 10), (10, 50), (50, 200)]
    assert found.pairs.tolist() == [by_hand(data, lambda gap, a=a, b=b: a < gap <= b) for a, b in bins]
    close = circuits.pairing_test(data, (10, 50), num_resamples=10)
    assert float(found.null_mean[0]) == pytest.approx(float(close.null_mean[0]))
    assert float(found.null_mean[:2].sum()) == pytest.approx(float(close.null_mean[1]))
    assert torch.allclose(found.rate, found.pairs.double() / found.num_births / torch.tensor([10, 40, 150]))
    assert torch.allclose(found.ratio, found.rate / found.null_rate)
    assert bool(((found.interval[:, 0] < 1) & (found.interval[:, 1] > 1)).all())
    assert repr(found).startswith(
        f"BirthIntensity({found.num_births} births in {found.num_seeds} seeds, rate after another birth"
    )
    # Births that follow another by 15 to 45 steps raise the rate in that bin, and there the most.
    step = data.step.clone()
    rng = np.random.default_rng(9)
    for row in step:
        at = torch.isfinite(row).nonzero()[:, 0].tolist()
        if len(at) > 1:
            row[at[1]] = row[at[0]] + 5.0 * int(rng.integers(3, 10))
    raised = circuits.birth_intensity(made(step), (0, 10, 50, 200), num_resamples=300)
    assert float(raised.p_more[1]) == pytest.approx(1 / 301)
    assert int(raised.ratio.argmax()) == 1
    part = circuits.birth_intensity(data, torch.tensor([10.0, 50.0]), num_resamples=10)
    assert part.pairs.tolist() == found.pairs[1:2].tolist()


def test_related_frequencies_are_counted():
    # At p = 37: 3 and 34 are one frequency; 2 * 16 = 32 = -5; 3 * 16 = 48 = 11; 13 and 7 are unrelated.
    frequency = [[3, 34, 6], [16, 5, 11], [13, 7, -1]]
    data = made([[10.0, 20.0, 30.0], [10.0, 20.0, 0.0], [10.0, 20.0, math.inf]], frequency=frequency)
    found = circuits.frequency_relations(data, 37, num_resamples=4000)
    assert found.pairs.tolist() == [1, 3, 1]
    rows = [[3, 3, 6], [16, 5, 11], [13, 7]]

    def times(n, a, b):
        return (a - n * b) % 37 == 0 or (a + n * b) % 37 == 0 or (b - n * a) % 37 == 0 or (b + n * a) % 37 == 0

    for k, n in enumerate((1, 2, 3)):
        pooled = [value for row in rows for value in row]
        share = np.mean([times(n, a, b) for a, b in itertools.combinations(pooled, 2)])  # of all pairs, dealt evenly
        assert float(found.null_mean[k]) == pytest.approx(7 * share)
        uniform = np.mean([times(n, a, b) for a in range(1, 19) for b in range(1, 19)])
        assert float(found.uniform_mean[k]) == pytest.approx(7 * uniform)
    assert found.num_pairs == 7
    assert repr(found).startswith("FrequencyRelations(7 pairs in 3 seeds, p = 37; duplicates 1 against ")


def test_avoided_duplicates_are_seen():
    rng = np.random.default_rng(10)
    frequency = np.stack([rng.permutation(np.arange(1, 19))[:4] for _ in range(80)])
    step = np.tile([100.0, 200.0, 300.0, 400.0], (80, 1))
    found = circuits.frequency_relations(made(step, frequency=frequency), 37, num_resamples=400)
    assert int(found.pairs[0]) == 0
    assert float(found.p_fewer[0]) == pytest.approx(1 / 401)
    assert float(found.null_mean[0]) == pytest.approx(float(found.uniform_mean[0]), rel=0.1)
    assert float(found.p_fewer[1]) > 0.01
    assert float(found.p_more[1]) > 0.01


def fates(births_at, deaths_at, *, steps=STEPS):
    data = made(np.array([births_at]), steps=steps)
    return circuits.Births(**{**vars(data), "death": torch.from_numpy(np.array([deaths_at]))})


def test_survival_is_kaplan_meier():
    rng = np.random.default_rng(12)
    born = 5.0 * rng.integers(1, 150, 60)
    death = born + 5.0 * np.ceil(rng.exponential(120, 60))
    death[death > 1000] = math.inf
    found = circuits.survival(fates(born, death))
    data = stats.CensoredData(uncensored=(death - born)[np.isfinite(death)], right=(1000 - born)[np.isinf(death)])
    curve = stats.ecdf(data).sf
    assert torch.allclose(found.share, torch.from_numpy(curve.evaluate(found.age.numpy())), atol=1e-12)
    limits = curve.confidence_interval(0.95, method="log-log")
    inside = (found.share > 0) & (found.share < 1)
    for k, limit in enumerate((limits.low, limits.high)):
        theirs = torch.from_numpy(limit.evaluate(found.age.numpy()))
        assert torch.allclose(found.interval[inside, k], theirs[inside], atol=1e-12)
    assert (found.age[0], found.share[0], found.at_risk[0]) == (0, 1, 60)
    assert bool(((found.interval[:, 0] <= found.share) & (found.share <= found.interval[:, 1])).all())


def test_survival_by_hand():
    steps = np.arange(0.0, 101.0, 10.0)
    inf = math.inf
    data = fates([0.0, 10.0, 10.0, 20.0, 50.0, 100.0, inf], [inf, 40.0, inf, 50.0, 100.0, inf, inf], steps=steps)
    found = circuits.survival(data)  # 0 is from before the first log, 100 too late
    assert (found.num_circuits, found.num_left_out) == (4, 2)
    assert found.age.tolist() == [0, 30, 50, 90]
    assert found.at_risk.tolist() == [4, 4, 2, 1]
    assert found.deaths.tolist() == [0, 2, 1, 0]
    assert torch.allclose(found.share, torch.tensor([1, 0.5, 0.25, 0.25], dtype=torch.float64))
    assert float(found.interval[0, 0]) == pytest.approx(0.025**0.25)
    assert repr(found).startswith("Survival(4 circuits, 3 deaths; 25.0 % (0.9–66.5) alive 50 steps after birth)")
    gone = circuits.survival(fates([10.0, 20.0], [50.0, 90.0], steps=steps))
    assert gone.share.tolist() == [1.0, 0.5, 0.0]
    assert gone.interval[-1].tolist() == [0.0, float(gone.interval[1, 1])]
    kept = circuits.survival(fates([10.0] * 50, [inf] * 50, steps=steps))
    assert kept.share.tolist() == [1.0, 1.0]
    assert float(kept.interval[-1, 0]) == pytest.approx(stats.binomtest(50, 50).proportion_ci().low)


def test_survival_ends_its_watch_where_deaths_can_no_longer_be_told():
    scores = np.full((1, 30, 2), 0.1)
    scores[0, 10:, 0] = 0.9
    scores[0, 10:28, 1] = 0.9  # falls in the last 4 logs
    found = circuits.survival(circuits.births(scores, range(30)))
    assert (found.age.tolist(), found.share.tolist(), int(found.deaths.sum())) == ([0, 15], [1, 1], 0)


def test_power_follows_the_coupling():
    data = bursty(np.random.default_rng(13), 128)
    none = circuits.pairing_power(data, 0.0, num_repeats=200, num_resamples=99)
    assert 0.01 <= none.power <= 0.10
    assert none.ratio == pytest.approx(1.0, abs=0.04)
    strong = circuits.pairing_power(data, 0.2, num_repeats=50, num_resamples=99)
    assert strong.power >= 0.9
    assert strong.low < strong.power <= strong.high
    assert strong.ratio == pytest.approx(1.7, abs=0.2)
    few = circuits.pairing_power(made(data.step[:12]), 0.2, num_repeats=50, num_resamples=99)
    assert few.power < strong.power
    assert repr(strong).startswith(f"PairingPower({100 * strong.power:.0f} % (")


def test_results_are_saved(tmp_path):
    data = bursty(np.random.default_rng(14), 16)
    data = circuits.Births(**{**vars(data), "frequency": torch.randint(1, 19, data.step.shape)})
    for found in (
        circuits.pairing_test(data, num_resamples=20),
        circuits.pairing_power(data, 0.1, num_repeats=2),
        circuits.birth_intensity(data, num_resamples=20),
        circuits.frequency_relations(data, 37, num_resamples=20),
        circuits.survival(data),
    ):
        loaded = type(found).load(found.save(tmp_path / "found"))
        assert repr(loaded) == repr(found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: circuits.birth_intensity(TWO, (0, 50, 20)), r"lags is \(0, 50, 20\), expected at least two ascending"),
        (lambda: circuits.birth_intensity(TWO, (10,)), r"lags is \(10,\), expected at least two ascending"),
        (lambda: circuits.birth_intensity(TWO, (0,)), r"lags is \(0,\), expected at least two ascending"),
        (lambda: circuits.birth_intensity(TWO, (-5, 10)), r"lags\[0\] is -5"),
        (lambda: circuits.birth_intensity(made([[100.0], [200.0]])), "births has 0 pairs of births in 2 seeds"),
        (lambda: circuits.frequency_relations(made([[100.0, 110.0]]), 37), "births has no frequencies"),
        (lambda: circuits.frequency_relations(TWO, 4), "births has a circuit of frequency 4, expected .* p - 1 = 3"),
        (lambda: circuits.frequency_relations(TWO, 2), "p is 2, expected an integer of at least 3"),
        (
            lambda: circuits.frequency_relations(made([[100.0, 110.0]], frequency=[[1, 2]]), 37),
            "births has 1 pairs of circuits in 1 seed, expected at least 2",
        ),
        (lambda: circuits.survival(made([[0.0, math.inf]])), "births holds no circuit whose fate was seen"),
        (lambda: circuits.pairing_power(TWO, 0.9), "coupling is 0.9 of 4 births in 2 seeds, expected .* at most 2"),
        (lambda: circuits.pairing_power(TWO, 1.5), r"coupling is 1.5, expected a finite number in \[0, 1\]"),
        (lambda: circuits.pairing_power(TWO, window=0), r"window\[0\] is 0"),
        (lambda: circuits.pairing_power(TWO, num_resamples=18), "num_resamples is 18, expected .* at least 19"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shapes_of_other_things_are_met_with_their_own_remedy():
    with pytest.raises(ValueError, match=r"scores has shape \(9, 2\).*\n?.*Of one run, pass scores\[None\]"):
        circuits.births(torch.ones(9, 2), torch.arange(9))
    with pytest.raises(ValueError, match=r"Of embeddings, pass lh.circuits.circle_score"):
        circuits.births(torch.ones(3, 9, 7, 4), torch.arange(9))
    found = circuits.circle_score(torch.randn(2, 9, 7, 4, generator=torch.Generator().manual_seed(0)))
    expected = circuits.births(found.score, torch.arange(9))
    assert torch.equal(circuits.births(found, torch.arange(9)).step, expected.step)


# births from checkpoints


def winding(num_logs=12, p=31, *, rotation=None):
    """Networks whose embedding is noise, and from log 4 on two circles in its first and third plane, f = 3 and 5."""
    generator = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * torch.arange(p)[:, None] / p * torch.tensor([3.0, 5.0])
    found = []
    for i in range(num_logs):
        embedding = 0.05 * torch.randn(p, 6, generator=generator)
        if i >= 4:
            embedding[:, 0:2] += torch.stack([angles[:, 0].cos(), angles[:, 0].sin()], 1)
        if i >= 6:
            embedding[:, 4:6] += torch.stack([angles[:, 1].cos(), angles[:, 1].sin()], 1)
        model = torch.nn.Sequential(torch.nn.Embedding(p, 6), torch.nn.Linear(6, p))
        with torch.no_grad():
            model[0].weight.copy_(embedding if rotation is None else embedding @ rotation)
        found.append(model)
    return found


def test_births_of_checkpoints_in_any_form_are_those_of_their_scores(tmp_path):
    models, steps = winding(), 10 * torch.arange(12)
    states = [model.state_dict() for model in models]
    files = []
    for i, state in enumerate(states):
        files.append(tmp_path / f"{i}.pt")
        torch.save({"step": i, "model_state_dict": state}, files[-1])
    embeddings = torch.stack([model[0].weight.detach() for model in models])
    expected = circuits.births(circuits.circle_score(embeddings)[None], steps)
    assert expected.step.tolist() == [[40.0, math.inf, 60.0]] and expected.frequency.tolist() == [[3, -1, 5]]
    for run in (models, states, files, iter(files), list(embeddings)):
        found = circuits.births(run, steps, embedding="0.weight")
        assert torch.equal(found.step, expected.step) and torch.equal(found.frequency, expected.frequency)
    both = circuits.births([models, files], steps, embedding="0.weight", sustain=3)
    assert torch.equal(both.step, expected.step.expand(2, 3)) and both.sustain == 3
    with pytest.raises(ValueError, match="steps is missing, expected the step of each checkpoint"):
        circuits.births(models, embedding="0.weight")
    with pytest.raises(ValueError, match="planes is 'frequencies' beside scores"):
        circuits.births(circuits.circle_score(embeddings)[None], steps, planes="frequencies")
    with pytest.raises(ValueError, match="runs hold embeddings of shapes"):
        circuits.births([models, models[:-1]], steps, embedding="0.weight")
    with pytest.raises(ValueError, match=r"holds no tensor 'embedding', expected one of \['0.weight', '1.weight'\]"):
        circuits.births(models, steps, embedding="embedding")


def test_births_in_planes_of_frequencies_and_from_a_record():
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    models = winding(rotation=rotation)
    recorder, own = lh.Recorder(models[0], every=10), models[0]
    for other in models[1:]:
        own.load_state_dict(other.state_dict())
        for _ in range(10):
            recorder.step()
    record = recorder.record()
    found = circuits.births(record, embedding="0.weight", planes="frequencies")
    assert found.step[0, 2] == 40 and found.step[0, 4] == 60 and int(found.is_formed.sum()) == 2
    assert torch.equal(found.steps, record.steps.double())
    both = circuits.births([record, record], embedding="0.weight", planes="frequencies")
    assert torch.equal(both.step, found.step.expand(2, -1))
    assert torch.equal(circuits.logged_embeddings(record, "0.weight")[-1], models[-1][0].weight.detach())
