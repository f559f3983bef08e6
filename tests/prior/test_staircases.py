"""Staircases: gradients against autograd, the fit against planted laws and SciPy's censored fit, a run that is real."""

import math
import random

import numpy as np
import pytest
import torch
from scipy import stats

import lowhanging as lh
from lowhanging.datasets import BooleanTarget, boolean_targets
from lowhanging.prior import censored_power_law, factor_growth, staircase_exponent, staircases, steps_to_learn

SIZES = (16, 24, 32, 48, 64, 96)


# Training


def planted_state(runs=3, hidden=5, dimension=4, batch=3):
    generator = torch.Generator().manual_seed(0)
    shapes = (runs, hidden, dimension + 1), (runs, hidden, 1), (runs, batch, dimension + 1), (runs, batch, 1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def by_autograd(weights, readout, rows, targets):
    """n times the gradient of half the mean squared error, from the definition of the network, run by run."""
    found = []
    for w, a, x, y in zip(weights, readout, rows, targets, strict=True):
        w, a = w.clone().requires_grad_(), a.clone().requires_grad_()
        outputs = torch.tanh(x[:, :-1] @ w[:, :-1].T + x[:, -1:] * w[:, -1]) @ a[:, 0] / len(a)
        loss = len(a) * 0.5 * (outputs - y[:, 0]).square().mean()
        found.append(torch.autograd.grad(loss, (w, a)))
    return [torch.stack(each) for each in zip(*found, strict=True)]


@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_against_autograd(batch):
    weights, readout, rows, targets = planted_state(batch=batch)
    wanted = by_autograd(weights, readout, rows, targets)
    scale = torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64)[:, None, None]
    delta, hidden, error = staircases._gradient_factors(weights, readout, rows, targets, scale=scale)
    for found, each in zip((delta.mT @ rows, hidden.mT @ error), wanted, strict=True):
        assert torch.allclose(found, scale * each, rtol=1e-10, atol=1e-12)


def test_steps_of_sgd_against_autograd():
    weights, readout, rows, targets = planted_state()
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)[:, None, None]
    state = [weights.clone(), readout.clone(), rates]
    staircases._take_steps(state, torch.stack([rows, -rows]), torch.stack([targets, targets]), 0)
    for x in (rows, -rows):
        gradients = by_autograd(weights, readout, x, targets)
        weights, readout = weights - rates * gradients[0], readout - rates * gradients[1]
    assert torch.allclose(state[0], weights, atol=1e-12) and torch.allclose(state[1], readout, atol=1e-12)


def test_steps_of_adam_against_torch():
    weights, readout, rows, targets = planted_state(runs=1)
    rates = torch.full((1, 1, 1), 0.05, dtype=torch.float64)
    moments = [torch.zeros_like(each) for each in (weights, readout, weights, readout)]
    state = [weights.clone(), readout.clone(), rates, *moments]
    for i in range(4):  # in two calls, so that the count of steps is handed over
        staircases._take_steps(state, (rows * (1 + i))[None], targets[None], i)
    parameters = [torch.nn.Parameter(weights.clone()), torch.nn.Parameter(readout.clone())]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for i in range(4):
        gradients = by_autograd(parameters[0].detach(), parameters[1].detach(), rows * (1 + i), targets)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert torch.allclose(state[0], parameters[0], atol=1e-9) and torch.allclose(state[1], parameters[1], atol=1e-9)


def test_a_higher_leap_of_one_degree_takes_longer(tmp_path):
    """Leap 1 is learned within a budget in which leap 3 of the same degree is not."""
    low, high = (
        steps_to_learn(boolean_targets(40, leap=leap, degree=3), seeds=range(4), max_steps=2000) for leap in (1, 3)
    )
    assert low.num_censored == 0 and low.median < 2000
    assert high.num_censored == 4 and high.median == math.inf
    assert float(high.losses[:, -1].min()) > 0.5 and bool((low.losses[:, 0] > 0.8).all())
    reached = torch.stack([row[~row.isnan()][-1] for row in low.losses])  # the loss that ended each run
    assert bool((reached <= low.threshold).all())
    assert "0 of 4 seeds beyond 2,000" in repr(low) and "x1 x2 x3;" in repr(high)
    loaded = lh.load(low.save(tmp_path / "times.npz"))
    assert torch.equal(loaded.times, low.times) and loaded.target == low.target


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 1.0), ("adam", 0.4)])
def test_the_same_seed_gives_the_same_bits(optimizer, lr):
    target = boolean_targets(12, leap=1, degree=2)
    options = {"max_steps": 400, "log_every": 60, "optimizer": optimizer, "lr": lr, "batch_size": 2, "hidden": 16}
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    runs = [steps_to_learn(target, seeds=(3, 1), **options) for _ in range(2)]
    assert torch.equal(runs[0].losses.nan_to_num(), runs[1].losses.nan_to_num())
    assert torch.equal(runs[0].times, runs[1].times)
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert np.random.get_state()[1].tolist() == state[2]  # noqa: NPY002
    alone = steps_to_learn(target, seeds=[1], **options)
    both = runs[0].losses[1, : len(alone.steps)]
    assert torch.allclose(alone.losses[0], both, rtol=1e-3, equal_nan=True)
    assert not torch.allclose(runs[0].losses[0, :3], runs[0].losses[1, :3], rtol=1e-3)


def test_logs_and_what_ends_a_run():
    target = boolean_targets(8, leap=1, degree=2)
    run = steps_to_learn(target, seeds=range(3), max_steps=3001, log_every=30, lr=0.01)
    gaps = run.steps.diff().tolist()
    assert run.steps[0] == 30 and run.steps[-1] == 3001 and min(gaps[:-1]) >= 30 and 50 < max(gaps) <= 61
    assert not bool(run.losses.isnan().any()) and run.num_censored == 3
    wild = steps_to_learn(target, seeds=range(3), max_steps=2000, lr=1e30)  # not a number at the first log
    assert wild.num_censored == 3 and len(wild.steps) == 1


def test_the_exponent_of_a_real_run(tmp_path):
    found = staircase_exponent(
        1, degree=2, dimensions=(8, 16, 32), seeds=range(4), scan_seeds=(10, 11, 12), lrs=(0.5, 1.0), max_steps=5000,
        progress=False,
    )  # fmt: skip
    assert found.times.shape == (3, 4) and found.scan_times.shape == (3, 2, 3) and found.conjecture == 1
    assert 0.4 < found.exponent < 1.5
    assert found.law_with_log.exponent < found.exponent
    for row, lr in zip(found.scan_times, found.lrs.tolist(), strict=True):  # the chosen one is the quickest
        medians = row.sort(1).values[:, 1]
        assert medians[[0.5, 1.0].index(lr)] == medians.min()
    assert bool(found.is_at_end.all()) and "end of the scan in 3 dimensions" in repr(found)
    assert "conjecture d^1; 0 of 12 censored" in repr(found) and " log d" in repr(found)
    loaded = lh.load(found.save(tmp_path / "exponent.npz"))
    assert repr(loaded) == repr(found)
    again = steps_to_learn(
        boolean_targets(16, leap=1, degree=2), seeds=range(4), max_steps=5000, lr=float(found.lrs[1])
    )
    assert torch.equal(again.times, found.times[1])


def test_a_target_that_nobody_learns_has_no_exponent():
    found = staircase_exponent(
        3, dimensions=(8, 12), seeds=range(2), scan_seeds=(5,), lrs=(0.5,), max_steps=40, progress=False
    )
    assert found.law.num_censored == 4 and math.isnan(found.exponent)
    assert found.interval.tolist() == [-math.inf, math.inf] and found.conjecture == 2


def test_scanned_step_sizes_go_on_with_the_batch():
    assert staircases._usual_lrs("sgd", 1) == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert staircases._usual_lrs("sgd", 8)[-1] == 32.0
    assert staircases._usual_lrs("adam", 1) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    assert staircases._usual_lrs("adam", 4)[-1] == pytest.approx(3.2)


# The fit


def planted_times(exponent, seed, *, spread=0.25, num=6, budget=math.inf, log_power=0.0):
    """Times of a power law with normal noise of the logarithm, censored at a budget."""
    d = np.array(SIZES, dtype=float)[:, None]
    noise = np.random.default_rng(seed).normal(size=(len(SIZES), num)) * spread
    times = torch.from_numpy(np.exp(3.0 + exponent * np.log(d) + log_power * np.log(np.log(d)) + noise))
    return torch.where(times <= budget, times, torch.inf)


def test_a_law_without_noise_is_found():
    times = planted_times(1.5, 0, spread=1e-9)
    found = censored_power_law(SIZES, times, budgets=1e9)
    assert found.exponent == pytest.approx(1.5, abs=1e-4) and found.intercept == pytest.approx(3.0, abs=1e-3)
    logarithmic = planted_times(1.0, 0, spread=1e-9, log_power=1.0)
    corrected = censored_power_law(SIZES, logarithmic, budgets=1e9, log_power=1.0)
    assert corrected.exponent == pytest.approx(1.0, abs=1e-4)
    plain = censored_power_law(SIZES, logarithmic, budgets=1e9)
    assert plain.exponent > 1.2 and plain.log_likelihood < corrected.log_likelihood


def test_without_censoring_the_fit_is_a_regression_line():
    times = planted_times(1.0, 3)
    found = censored_power_law(SIZES, times, budgets=1e9)
    x, y = np.repeat(np.log(SIZES), 6), times.log().flatten().numpy()
    line = stats.linregress(x, y)
    half = stats.t.ppf(0.975, len(x) - 2) * line.stderr
    assert found.exponent == pytest.approx(line.slope, abs=1e-5)
    assert found.intercept == pytest.approx(line.intercept, abs=1e-4)
    assert found.interval.tolist() == pytest.approx([line.slope - half, line.slope + half], abs=1e-4)
    groups = times.log().numpy()
    within = ((groups - groups.mean(1, keepdims=True)) ** 2).sum()
    around = ((groups.flatten() - line.intercept - line.slope * x) ** 2).sum()
    ratio = (around - within) / 4 / (within / 30)
    assert found.line_p_value == pytest.approx(stats.f.sf(ratio, 4, 30), abs=1e-4)


def test_sizes_that_depart_from_the_law_are_named():
    """False alarms at their rate, also with censoring; a planted bend is found."""
    alarms = [censored_power_law(SIZES, planted_times(1.0, i, budget=1800.0), budgets=1800.0) for i in range(40)]
    assert sum(fit.line_p_value < 0.05 for fit in alarms) <= 6
    bent = planted_times(1.0, 0)
    bent[2:4] *= 1.8
    found = censored_power_law(SIZES, bent, budgets=1e9)
    assert found.line_p_value < 1e-3 and "departs from the law, p =" in repr(found)


def test_the_censored_fit_against_scipy():
    """With the exponent taken out of the data, location and spread are SciPy's of the same censored data."""
    budget = 2500.0
    times = planted_times(1.2, 5, budget=budget, spread=0.4)
    found = censored_power_law(SIZES, times, budgets=budget)
    assert found.num_censored > 5
    is_known = times.isfinite().flatten().numpy()
    rest = (torch.where(times.isfinite(), times, budget).log()).flatten().numpy()
    rest = rest - found.exponent * np.repeat(np.log(SIZES), 6)
    location, spread = stats.norm.fit(stats.CensoredData.right_censored(rest, ~is_known))
    assert found.intercept == pytest.approx(location, abs=1e-3) and found.spread == pytest.approx(spread, abs=1e-3)
    likelihood = stats.norm.logpdf(rest[is_known], location, spread).sum()
    likelihood += stats.norm.logsf(rest[~is_known], location, spread).sum()
    assert found.log_likelihood == pytest.approx(likelihood, abs=1e-5)


@pytest.mark.parametrize(("exponent", "budget"), [(1.0, 1200.0), (2.0, 60_000.0)])
def test_the_interval_covers_the_planted_exponent(exponent, budget):
    covered, dropped, shares = [], [], []
    for seed in range(100):
        times = planted_times(exponent, seed, budget=budget, spread=0.5)
        found = censored_power_law(SIZES, times, budgets=budget)
        low, high = found.interval.tolist()
        covered.append(low <= exponent <= high)
        shares.append(found.num_censored / times.numel())
        is_known = times.isfinite().flatten().numpy()
        line = stats.linregress(np.repeat(np.log(SIZES), 6)[is_known], times.log().flatten().numpy()[is_known])
        dropped.append(line.slope)
    assert 0.1 < np.mean(shares) < 0.4
    assert np.mean(covered) >= 0.85
    assert np.mean(dropped) < exponent - 0.1  # what censoring is for: without those that never learned it looks quicker


def test_what_nothing_bounds_is_infinite():
    times = torch.tensor([[100.0, 120.0, 90.0], [math.inf, math.inf, math.inf]], dtype=torch.float64)
    found = censored_power_law((16, 32), times, budgets=1000.0)  # learned at one size only
    assert math.isnan(found.exponent) and found.interval.tolist() == [-math.inf, math.inf]
    some = torch.tensor([[100.0, 120.0, 90.0], [500.0, math.inf, math.inf]], dtype=torch.float64)
    low, high = censored_power_law((16, 32), some, budgets=1000.0).interval.tolist()
    assert low > 0.5 and high > 3


def test_messages():
    target = boolean_targets(8, leap=1, degree=2)
    times = torch.ones(2, 3)
    cases = [
        (lambda: steps_to_learn("x1", seeds=[0]), TypeError, "target is a str, expected a BooleanTarget"),
        (lambda: steps_to_learn(target, seeds=[]), ValueError, "seeds is []"),
        (lambda: steps_to_learn(target, seeds=[1, 1]), ValueError, "all different"),
        (lambda: steps_to_learn(target, seeds=3), TypeError, "seeds is 3"),
        (lambda: steps_to_learn(target, seeds=[0], optimizer="lion"), ValueError, "optimizer is 'lion'"),
        (lambda: steps_to_learn(target, seeds=[0], threshold=1.0), ValueError, "threshold is 1"),
        (lambda: steps_to_learn(target, seeds=[0], lr=0.0), ValueError, "lr is 0"),
        (lambda: steps_to_learn(target, seeds=[0], max_steps=0), ValueError, "max_steps is 0"),
        (lambda: staircase_exponent(1, seeds=[1, 2], scan_seeds=[2, 3]), ValueError, "scan_seeds has [2] in common"),
        (lambda: staircase_exponent(1, dimensions=(16, 8)), ValueError, "dimensions is [16, 8]"),
        (lambda: staircase_exponent(1, lrs=(2.0, 1.0)), ValueError, "lrs is [2.0, 1.0]"),
        (lambda: staircase_exponent(4), ValueError, "leap is 4, expected an integer from 1 to 3"),
        (lambda: censored_power_law((8, 16, 32), times, budgets=9.0), ValueError, "times has shape (2, 3) for sizes"),
        (lambda: censored_power_law((1, 16), times, budgets=9.0), ValueError, "sizes is [1.0, 16.0]"),
        (lambda: censored_power_law((8, 16), times, budgets=0.5), ValueError, "times has one outside (0, budget]"),
        (lambda: censored_power_law((8, 16), times, budgets=0.0), ValueError, "budgets is 0.0"),
        (lambda: censored_power_law((8, 16), times * math.nan, budgets=9.0), ValueError, "times has one outside"),
        (lambda: censored_power_law((8, 16), times, budgets=9.0, confidence=1.0), ValueError, "confidence is 1"),
    ]
    for call, error, words in cases:
        with pytest.raises(error) as caught:
            call()
        assert words in str(caught.value) and "\n" in str(caught.value)


def test_a_target_of_ones_own_is_learned():
    run = steps_to_learn(BooleanTarget([(0,), (1,)], 6), seeds=[0, 1], max_steps=2000, log_every=20)
    assert run.num_censored == 0 and run.target.leap == 1


# How a factor grows ---------------------------------------------------------------------------------------------------


def planted_factors(law, seed, *, budget=math.inf):
    """Times of two tasks whose factor follows a law of n, with normal noise; sizes 4 to 12, ten seeds."""
    rng = np.random.default_rng(seed)
    n = torch.arange(4.0, 13.0, 2.0, dtype=torch.float64)
    fast = torch.from_numpy(np.exp(3 + 0.2 * rng.standard_normal((5, 10))))
    slow = fast * law(n)[:, None] * torch.from_numpy(np.exp(0.3 * rng.standard_normal((5, 10))))
    return n, torch.where(slow <= budget, slow, torch.inf), fast


def test_an_exponential_factor_is_told_from_a_power_and_its_rate_is_in_the_interval():
    covered = right = false = 0
    for seed in range(40):
        n, slow, fast = planted_factors(lambda n: (0.5 * n).exp(), seed)
        found = factor_growth(n, slow=slow, fast=fast, budgets=1e9)
        covered += found.interval[0] < 0.5 < found.interval[1]
        right += found.support > 0
        n, slow, fast = planted_factors(lambda n: n**3, seed)
        false += factor_growth(n, slow=slow, fast=fast, budgets=1e9).support > 2
    assert covered >= 34
    assert right >= 38
    assert false == 0


def test_a_censored_factor_is_a_lower_bound_and_a_constant_one_has_no_rate():
    n, slow, fast = planted_factors(lambda n: (0.5 * n).exp(), 0, budget=4000.0)
    found = factor_growth(n, slow=slow, fast=fast, budgets=4000.0)
    assert found.num_censored == int(slow.isinf().sum()) > 5
    assert found.rate == pytest.approx(0.5, abs=0.1)
    assert bool(found.medians.isinf()[-1])
    flat = [
        factor_growth(n, slow=slow, fast=fast, budgets=1e9)
        for n, slow, fast in (planted_factors(torch.ones_like, seed) for seed in range(40))
    ]
    assert sum(float(each.interval[0]) > 0 or float(each.interval[1]) < 0 for each in flat) <= 6
    assert "of 50 censored" in repr(found)


def test_a_factor_needs_the_quick_time():
    n, slow, fast = planted_factors(torch.ones_like, 0)
    fast[0, 0] = math.inf
    with pytest.raises(ValueError, match="fast has a time that was not reached"):
        factor_growth(n, slow=slow, fast=fast, budgets=1e9)
    with pytest.raises(ValueError, match="slow has shape"):
        factor_growth(n[1:], slow=slow, fast=fast, budgets=1e9)


def test_interrupted_dimensions_are_not_trained_again(tmp_path, monkeypatch):
    options = {"dimensions": (8, 12), "seeds": range(2), "scan_seeds": [7], "lrs": [1.0], "max_steps": 2000}
    whole, file, train = staircase_exponent(1, **options, progress=False), tmp_path / "stairs.npz", staircases._train
    trained = []

    def interrupted(target, *args, **kwargs):
        trained.append(target.dimension)
        if trained.count(12) == 1:
            raise KeyboardInterrupt
        return train(target, *args, **kwargs)

    monkeypatch.setattr(staircases, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        staircase_exponent(1, **options, resume=file, progress=False)
    again = staircase_exponent(1, **options, resume=file, progress=False)
    assert trained == [8, 8, 12, 12, 12]
    assert torch.equal(again.times, whole.times)
    assert torch.equal(again.lrs, whole.lrs)
