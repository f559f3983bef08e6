"""`spectral_density`, `effective_dimension` and `trace`.

Oracles, strongest first: closed forms (the Marchenko-Pastur law and the places of its outliers; moments, counts and
participation ratios of diagonal maps by hand); sums over the eigenvalues of NumPy's dense decomposition, which probes
that span the whole space must reach without an error of chance; Golub's Gauss-Radau matrix for the bounds; and the
errors over seeds, which the reported standard errors have to match. Products are counted inside the map.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from scipy.integrate import quad
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

import lowhanging as lh
from eigen_scene import Counted, diagonal, symmetric
from lowhanging.curvature.spectrum import mass_above, with_node_at
from lowhanging.curvature.trace import orthonormal_probes, standard_error

NETWORK = np.r_[5 * np.arange(1, 81) ** -1.3, -0.01 * np.random.default_rng(0).random(40)]  # outliers, tail, small bulk
POSITIVE = 5 * np.arange(1, 41) ** -1.3
SIGNED = np.r_[POSITIVE[:30], -0.01 * np.arange(1, 11)]


def smoothed(values: np.ndarray, grid: Tensor, width: float, p: int) -> np.ndarray:
    """What the density ought to be: one Gaussian of area 1/p per eigenvalue."""
    return scipy.stats.norm.pdf(grid.numpy()[:, None], values[None, :], width).sum(1) / p


# ---- closed forms -------------------------------------------------------------------------------------------------


def test_wishart_with_spikes_is_marchenko_pastur_with_outliers() -> None:
    p, n, spikes = 400, 800, (25.0, 16.0, 9.0)
    samples = torch.randn(n, p, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    samples[:, :3] *= torch.tensor(spikes, dtype=torch.float64).sqrt()
    found = lh.spectral_density(samples.T @ samples / n, num_steps=40, num_probes=10, deflate=3)
    # A population eigenvalue l > 1 + sqrt(q) shows at l (1 + q / (l - 1)), with a spread of l sqrt(2 / n) or less.
    q = p / n
    expected = np.array([size * (1 + q / (size - 1)) for size in spikes])
    assert (np.abs(found.spikes.numpy() - expected) < 3 * expected * math.sqrt(2 / n)).all()
    low, high = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2

    def law(x: float) -> float:
        return math.sqrt(max(0.0, (high - x) * (x - low))) / (2 * math.pi * q * x)

    # The bulk of one matrix differs from the law by about 1 eigenvalue in p, far less than the probes do.
    for place in np.linspace(0.0, 3.5, 8):
        closed_form = quad(lambda x, at=place: law(x) * scipy.stats.norm.pdf(x, at, found.width), low, high, limit=200)[
            0
        ]
        i = int((found.grid - place).abs().argmin())
        if abs(float(found.grid[i]) - place) > found.width / 4:
            continue
        density = np.interp(place, found.grid, found.density)
        assert abs(density - closed_form) < 3 * float(found.standard_error[i]) + 0.02
    for threshold in (0.3, 1.0, 2.0):
        count = found.count_above(threshold)
        closed_form = 3 + (p - 3) * quad(law, threshold, high)[0]
        assert abs(count.value - closed_form) < 3 * count.standard_error + count.numerical_error + 3
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(397 / 400, abs=1e-4)


def test_participation_ratio_and_the_others_by_hand() -> None:
    # (4 + 1 + 1)^2 / (16 + 1 + 1) = 2; 4/5 + 1/2 + 1/2; two above 0.5 and one above 2; the order does not matter.
    by_hand = lh.effective_dimension(torch.tensor([1.0, 4.0, 1.0]), thresholds=(0.5, 2.0, 4.0), gammas=1.0)
    assert by_hand.counts.tolist() == [3, 1, 0]
    assert by_hand.participation_ratio == 2.0
    assert by_hand.degrees_of_freedom.tolist() == pytest.approx([1.8])
    assert (by_hand.is_partial, by_hand.ratio_is_bound) == (False, False)
    assert (by_hand.num_known, by_hand.num_params, by_hand.smallest) == (3, 3, 1.0)
    # Negative ones count in the ratio, (4 - 1)^2 / 17, and not in the degrees of freedom.
    signed = lh.effective_dimension(np.array([4.0, -1.0]), thresholds=0.0, gammas=4.0)
    assert (signed.participation_ratio, signed.counts.tolist(), signed.smallest) == (9 / 17, [1.0], -1.0)
    assert signed.degrees_of_freedom.tolist() == [0.5]
    assert math.isnan(lh.effective_dimension(torch.zeros(5)).participation_ratio)
    identity = torch.eye(30)
    spectra = lh.spectral_density(identity, num_steps=5, num_probes=3), lh.spectral_density(identity, deflate=30)
    for density in spectra:
        found = lh.effective_dimension(density, thresholds=(0.5, 1.5))
        assert found.participation_ratio == pytest.approx(30)
        assert found.degrees_of_freedom.tolist() == pytest.approx([30 / 1.5, 30 / 2.5])
        assert found.counts.tolist() == pytest.approx([30.0, 0.0], abs=1e-6)


# ---- nothing left to chance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("deflate", [None, 7])
def test_probes_and_steps_that_span_everything_are_exact(deflate: int | None) -> None:
    H, p = symmetric(SIGNED), len(SIGNED)
    found = lh.spectral_density(H, num_steps=p, num_probes=p, deflate=deflate)
    known = deflate or 0
    assert found.nodes.shape == (p - known, p - known)
    for order in (0, 1, 2, 5):
        moment = found.moment(order)
        assert moment.value == pytest.approx(np.mean(SIGNED**order), rel=1e-6)
        assert moment.standard_error == 0.0
    for threshold in (-0.015, 0.11, 1.0, 6.0):
        count = found.count_above(threshold)
        assert count.value == pytest.approx(np.count_nonzero(threshold < SIGNED), abs=1e-6)
        assert count.standard_error == 0.0
        assert count.numerical_error < 1e-6
    rest = np.sort(SIGNED)[: p - known]
    assert np.abs(found.density.numpy() - smoothed(rest, found.grid, found.width, p)).max() < 1e-6 / found.width
    assert float(found.standard_error.abs().max()) == 0.0
    for share in (0.25, 0.5, 0.9, 1.0):
        assert found.quantile(share) == pytest.approx(np.sort(SIGNED)[math.ceil(share * p) - 1], abs=1e-5)


def test_bounds_hold_for_any_number_of_steps() -> None:
    """Spanning probes: what is left is what the steps leave open, and it must be within what is said of it."""
    H, p = symmetric(POSITIVE), len(POSITIVE)
    softness = 0.1
    truth = float((POSITIVE / (POSITIVE + softness)).sum())
    slack = []
    for steps in (2, 4, 8, 40):
        found = lh.spectral_density(H, num_steps=steps, num_probes=p)
        counts = [found.count_above(threshold) for threshold in (0.05, 0.08, 0.2, 1.0, 3.0)]
        for threshold, count in zip((0.05, 0.08, 0.2, 1.0, 3.0), counts, strict=True):
            assert abs(count.value - np.count_nonzero(threshold < POSITIVE)) <= count.numerical_error + 1e-6
        degrees = found.sum(lambda values: values / (values + softness))
        assert abs(degrees.value - truth) <= degrees.numerical_error + 1e-9
        slack.append((max(count.numerical_error for count in counts), degrees.numerical_error))
    assert slack[0][0] > 1.0  # it can say that little is known ...
    assert slack[0][1] > 0.1
    assert slack[2][1] < 0.01  # ... and when much is: a smooth sum is known long before a count
    assert slack[-1][0] < 1e-6


def test_a_node_at_a_chosen_place_is_golubs() -> None:
    """The arrowhead in the Ritz basis against the modified tridiagonal matrix of Golub (1973)."""
    H, m = symmetric(NETWORK).numpy(), 6
    start = np.random.default_rng(1).standard_normal(len(H))
    start /= np.linalg.norm(start)
    Q, alphas, betas = [start], [], []
    for _ in range(m):
        image = H @ Q[-1]
        alphas.append(Q[-1] @ image)
        image -= np.array(Q).T @ (np.array(Q) @ image)
        image -= np.array(Q).T @ (np.array(Q) @ image)
        betas.append(np.linalg.norm(image))
        Q.append(image / betas[-1])
    nodes, vectors = scipy.linalg.eigh_tridiagonal(alphas, betas[:-1])
    coefficients = betas[-1] * vectors[-1] * np.sign(vectors[0])
    rule = [torch.from_numpy(np.ascontiguousarray(row))[None] for row in (nodes, vectors[0] ** 2, coefficients)]
    for place in (-0.1, 0.0, 0.7, 9.0):
        T = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
        last = place + betas[-1] ** 2 * np.linalg.solve(T - place * np.eye(m), np.eye(m)[-1])[-1]
        golub, basis = scipy.linalg.eigh_tridiagonal([*alphas, last], betas)
        found, weights = with_node_at(place, *rule)
        assert np.abs(found[0].numpy() - golub).max() < 1e-9
        assert np.abs(weights[0].numpy() - basis[0] ** 2).max() < 1e-9
        assert np.abs(golub - place).min() < 1e-9
    exact = start @ np.linalg.matrix_power(H, 2 * m) @ start  # one degree more than Gauss
    found, weights = with_node_at(-0.1, *rule)
    assert float((weights * found ** (2 * m)).sum()) == pytest.approx(exact, rel=1e-9)


def test_at_a_node_that_is_there_nothing_is_moved() -> None:
    found = lh.spectral_density(diagonal(np.r_[np.ones(10), np.zeros(30)]), num_steps=5, num_probes=3)
    assert found.nodes.shape == (3, 2)
    nodes, weights = with_node_at(0.0, found.nodes, found.weights, found.coefficients)
    assert nodes.shape == (3, 3)
    assert float(weights.sum(1).sub(1).abs().max()) < 1e-12
    at_threshold, error = found.count_above(0.0), 3 * found.count_above(0.5).standard_error
    assert at_threshold.value - at_threshold.numerical_error < 10 + error  # 30 eigenvalues lie at 0, to rounding:
    assert at_threshold.value + at_threshold.numerical_error > 40 - 1e-9  # they may be on either side
    assert found.count_above(0.5).numerical_error < 1e-6


def test_a_count_is_open_towards_either_side() -> None:
    found, p = lh.spectral_density(symmetric(POSITIVE), num_steps=4, num_probes=len(POSITIVE)), len(POSITIVE)
    larger = set()
    for threshold in np.linspace(0.05, 4.0, 25):
        above, least, greatest = mass_above(float(threshold), found.nodes, found.weights, found.coefficients)
        fewer, more = p * float((above - least).mean()), p * float((greatest - above).mean())
        assert found.count_above(float(threshold)).numerical_error == pytest.approx(max(fewer, more), rel=1e-12)
        larger.add(fewer > more)
    assert larger == {True, False}


@pytest.mark.parametrize("rate", [1.0, 2.0, 4.0])
def test_bounds_hold_below_zero_too(rate: float) -> None:
    """Exp(-rate x) has derivatives of alternating sign everywhere, and so a bound with a node below them all."""
    values = np.linspace(-1, 1, 40)
    for steps in (2, 3, 4, 6):
        found = lh.spectral_density(symmetric(values), num_steps=steps, num_probes=len(values))
        total = found.sum(lambda x: torch.exp(-rate * x))
        off = abs(total.value - np.exp(-rate * values).sum())
        assert off <= total.numerical_error * (1 + 1e-6) + 1e-11
        assert total.numerical_error <= 3 * off + 1e-11


# ---- chance -------------------------------------------------------------------------------------------------------


def test_the_error_of_a_ratio_is_that_of_leaving_out_one_probe() -> None:
    """Sum and sum of squares rise together, and their ratio varies less than either."""
    p, num = 40, 20
    found = lh.spectral_density(diagonal(np.linspace(0.2, 2.0, p)), num_steps=10, num_probes=num)
    assert not len(found.spikes)
    first, second = ((found.weights * found.nodes**power).sum(1).numpy() for power in (1, 2))
    left_out = [p * np.delete(first, i).mean() ** 2 / np.delete(second, i).mean() for i in range(num)]
    jackknife = math.sqrt((num - 1) * np.var(left_out) * (1 - num / p))
    assert found.participation_ratio().standard_error == pytest.approx(jackknife, rel=0.02)


def test_standard_errors_cover_the_truth() -> None:
    """Over 100 seeds: Student's 95 % interval holds the truth in about 95, and errors are as large as they are said."""
    H, p, num = diagonal(NETWORK), len(NETWORK), 8
    pairs = lh.top_eigs(H, k=5)
    t = scipy.stats.t.ppf(0.975, num - 1)
    grid, width = torch.tensor([-0.05, 0.0, 0.1, 0.2], dtype=torch.float64), 0.1
    truth = [NETWORK.mean(), (NETWORK**2).mean(), NETWORK.sum() ** 2 / (NETWORK**2).sum()]
    truth = np.r_[truth, smoothed(np.sort(NETWORK)[:-5], grid, width, p)]
    values, errors = [], []
    for seed in range(100):
        found = lh.spectral_density(
            H, num_steps=10, num_probes=num, seed=seed, deflate=pairs, grid=grid, width=width, progress=False
        )
        estimates = [found.moment(1), found.moment(2), found.participation_ratio()]
        values.append([*(each.value for each in estimates), *found.density.tolist()])
        errors.append([*(each.standard_error for each in estimates), *found.standard_error.tolist()])
    off, errors = np.array(values) - truth, np.array(errors)
    covered = (np.abs(off) <= t * errors).mean(0)
    assert (covered >= 0.88).all(), covered
    calibration = np.sqrt((errors**2).mean(0)) / off.std(0)
    assert (np.abs(calibration - 1) < 0.2).all(), calibration
    bias = off.mean(0) / off.std(0) * 10  # in standard errors of the mean of 100
    assert (np.abs(bias) < 3.5).all(), bias


def test_deflated_equals_undeflated_and_removes_chance() -> None:
    H = symmetric(NETWORK)
    plain, deflated = (lh.spectral_density(H, num_steps=30, num_probes=10, deflate=num, seed=3) for num in (None, 8))
    assert np.abs(deflated.spikes.numpy() - NETWORK[:8]).max() < 1e-3
    assert float(deflated.nodes.max()) < NETWORK[7]
    for ask in (lambda d: d.moment(1), lambda d: d.moment(2), lambda d: d.count_above(1.0)):
        one, two = ask(plain), ask(deflated)
        assert abs(one.value - two.value) < 3 * math.hypot(one.standard_error, two.standard_error)
        assert two.standard_error < one.standard_error / 3
    assert deflated.count_above(1.0).value == pytest.approx((NETWORK > 1).sum(), abs=1e-9)
    both_ends = lh.spectral_density(symmetric(np.r_[-7.0, NETWORK]), num_steps=30, deflate=8)
    assert (float(both_ends.spikes[0]), float(both_ends.spikes[-1])) == pytest.approx((5.0, -7.0), abs=1e-3)
    assert float(both_ends.nodes.min()) > -0.011


def test_probes_are_orthonormal_uniform_and_away_from_what_is_known() -> None:
    fixed = torch.eye(12, dtype=torch.float64)[:3]
    squares = torch.zeros(12, dtype=torch.float64)
    for seed in range(300):
        rows = orthonormal_probes(4, fixed, torch.Generator().manual_seed(seed))
        assert float((rows @ rows.T - torch.eye(4)).abs().max()) < 1e-12
        squares += rows[-1] ** 2 / 300
    assert float(squares[:3].max()) < 1e-20
    # A coordinate of a uniform unit vector in 9 dimensions: mean square 1/9, variance of the square 2 * 8 / (81 * 11).
    assert float((squares[3:] - 1 / 9).abs().max()) < 4 * math.sqrt(16 / 891 / 300)


def test_orthogonal_probes_are_a_sample_without_replacement() -> None:
    """16 of 24: their mean varies as s^2 / n (1 - n / N), a third of what independent ones would be said to vary."""
    values = torch.from_numpy(POSITIVE[:24])
    means, variances = [], []
    for seed in range(300):
        rows = orthonormal_probes(16, values.new_zeros((0, 24)), torch.Generator().manual_seed(seed))
        samples = rows.square() @ values
        means.append(float(samples.mean()))
        variances.append(float(standard_error(samples, 24)) ** 2)
    assert math.sqrt(np.mean(variances)) / np.std(means) == pytest.approx(1.0, abs=0.15)
    assert abs(np.mean(means) - POSITIVE[:24].mean()) < 3.5 * np.std(means) / math.sqrt(300)
    assert float(standard_error(samples[:1], 1)) == 0.0


@pytest.mark.parametrize("values", [NETWORK, np.linspace(-1.0, 1.0, 90)], ids=["network", "both signs"])
def test_trace_is_unbiased_and_its_error_honest(values: np.ndarray) -> None:
    H = symmetric(values)
    found = [lh.trace(H, num_probes=30, seed=seed) for seed in range(100)]
    off = np.array([each.value for each in found]) - values.sum()
    errors = np.array([each.standard_error for each in found])
    t = scipy.stats.t.ppf(0.975, found[0].num_probes - 1)
    assert (np.abs(off) <= t * errors).mean() >= 0.88
    assert abs(np.sqrt((errors**2).mean()) / off.std() - 1) < 0.25
    assert abs(off.mean()) < 3.5 * off.std() / 10


def test_hutch_plus_plus_beats_hutchinson_where_there_are_outliers() -> None:
    """Hutchinson's variance on paper, for probes uniform on the sphere: 2 p / (p + 2) (|H|^2 - tr(H)^2 / p) / n."""
    p, num = len(NETWORK), 30
    spread = (NETWORK**2).sum() - NETWORK.sum() ** 2 / p
    hutchinson = math.sqrt(2 * p / (p + 2) * spread / num)
    off = [lh.trace(symmetric(NETWORK), num_probes=num, seed=seed).value - NETWORK.sum() for seed in range(30)]
    assert np.std(off) < hutchinson / 3


def test_trace_of_low_rank_and_of_a_budget_of_p_is_exact() -> None:
    H = symmetric(np.r_[5.0, 2.0, -1.0, np.zeros(60)])
    low_rank = lh.trace(H, num_probes=15)
    assert low_rank.value == pytest.approx(6.0, abs=1e-12)
    assert low_rank.standard_error < 1e-12
    for probes in (63, 1000):
        counted = Counted(lambda v: H @ v, 63)
        every = lh.trace(counted, num_probes=probes)
        assert every.value == pytest.approx(float(H.trace()), abs=1e-12)
        assert (every.standard_error, every.is_exact, every.num_products, counted.count) == (0.0, True, 63, 63)
    assert float(lh.trace(torch.zeros(20, 20))) == 0.0
    assert float(lh.trace(torch.tensor([[2.5]]), num_probes=1)) == 2.5


# ---- what it knows from eigenpairs --------------------------------------------------------------------------------


def test_eigenpairs_give_exact_counts_above_their_last_and_lower_bounds_below() -> None:
    H, whole = symmetric(NETWORK), lh.effective_dimension(NETWORK, thresholds=(0.001, 0.3, 1.0))
    for which, exact in (("LA", [False, True, True]), ("LM", [False, True, True]), ("SA", [False, False, False])):
        found = lh.effective_dimension(lh.top_eigs(H, k=10, which=which, tol=1e-9), thresholds=(0.001, 0.3, 1.0))
        assert (~found.count_is_bound).tolist() == exact
        assert found.is_partial
        assert not found.ratio_is_bound  # some of those that are left are negative
        assert found.smallest == pytest.approx(NETWORK.min(), abs=1e-3)  # which the other end of the search has seen
        assert (found.num_known, found.num_params) == (10, 120)
        for count, truth, is_exact in zip(found.counts, whole.counts, exact, strict=True):
            assert (count == truth) if is_exact else (count <= truth)
        assert bool((found.degrees_of_freedom <= whole.degrees_of_freedom).all())
    exact = lh.top_eigs(torch.diag(torch.tensor([5.0, -4.0, 3.0, 1.0, -0.5]).double()), k=3, which="LM", method="dense")
    # 3 is the last: as much or less lies on either side of 0, and nothing that is not known above 3 itself.
    at_the_last = lh.effective_dimension(exact, thresholds=(2.0, 3.0, 3.5))
    assert (at_the_last.counts.tolist(), at_the_last.count_is_bound.tolist()) == ([2, 1, 1], [True, False, False])
    positive = lh.top_eigs(symmetric(POSITIVE), k=10, tol=1e-9)
    assert lh.effective_dimension(positive).ratio_is_bound
    assert lh.effective_dimension(positive).participation_ratio < POSITIVE.sum() ** 2 / (POSITIVE**2).sum()
    everything = lh.effective_dimension(lh.top_eigs(H, k=120, tol=1e-9), thresholds=(0.001, 0.3, 1.0))
    assert not everything.is_partial
    assert torch.equal(everything.counts, whole.counts)
    assert everything.participation_ratio == pytest.approx(whole.participation_ratio)


def test_residuals_that_reach_a_threshold_leave_its_count_open() -> None:
    pairs = dataclasses.replace(lh.top_eigs(symmetric([3.0, 2.0, 1.0]), k=3), residuals=torch.tensor([0.0, 0.2, 0.0]))
    found = lh.effective_dimension(pairs, thresholds=(1.9, 2.5), gammas=2.0)
    assert found.counts.tolist() == [2, 1]
    assert found.count_numerical_errors.tolist() == [1, 0]
    assert found.degrees_numerical_errors[0] == pytest.approx(0.5 - 1.8 / 3.8)
    # d/dx (4 + x)^2 / (10 + x^2) at 2: 12/14 - 36 * 4 / 196
    assert found.participation_numerical_error == pytest.approx(0.2 * (12 / 14 - 144 / 196))


def test_density_and_pairs_agree_on_a_network() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(7, 10), nn.Sigmoid(), nn.Linear(10, 3)).double()
    loss = lh.Objective(model, (torch.randn(12, 7, dtype=torch.float64), torch.arange(12) % 3))
    H = lh.hessian(loss)
    dense = np.linalg.eigvalsh(lh.testing.dense_hessian(loss).numpy())
    whole, pairs = lh.effective_dimension(dense, thresholds=(0.01, 0.1)), lh.top_eigs(H, k=6)
    density = lh.spectral_density(H, num_steps=15, num_probes=6, deflate=pairs)
    assert density.engine == loss.engine
    assert density.operator.startswith("Hessian(113 x 113")
    found = lh.effective_dimension(density, thresholds=(0.01, 0.1))
    assert (found.num_known, found.num_params) == (6, 113)
    assert found.smallest >= dense.min() - 1e-6
    slack = 3 * found.count_standard_errors + found.count_numerical_errors
    assert bool(((found.counts - whole.counts).abs() <= slack).all())
    slack = 3 * found.degrees_standard_errors + found.degrees_numerical_errors
    assert bool(((found.degrees_of_freedom - whole.degrees_of_freedom).abs() <= slack).all())
    assert abs(found.participation_ratio - whole.participation_ratio) <= 3 * found.participation_standard_error + 1e-3
    estimate = lh.trace(H, num_probes=30)
    assert abs(estimate.value - dense.sum()) <= 3 * estimate.standard_error


# ---- maps, costs, what stays untouched ----------------------------------------------------------------------------


def test_every_kind_of_map_gives_the_same() -> None:
    H = symmetric(NETWORK)
    array = H.numpy()
    maps = {
        "tensor": H,
        "array": array,
        "linear operator": LinearOperator((120, 120), matvec=lambda v: array @ v, dtype=np.float64),
        "needs gradients": H.clone().requires_grad_(),
        "our own": Counted(lambda v: H @ v, 120),
    }
    densities = {name: lh.spectral_density(map_, num_steps=12, num_probes=3, deflate=2) for name, map_ in maps.items()}
    for name, map_ in maps.items():
        assert float((densities[name].density - densities["tensor"].density).abs().max()) < 1e-9
        assert lh.trace(map_, num_probes=20).value == pytest.approx(lh.trace(H, num_probes=20).value, abs=1e-10)


@pytest.mark.parametrize("scale", [1e-12, 1e8])
def test_answers_scale_with_the_map(scale: float) -> None:
    maps = diagonal(NETWORK), diagonal(scale * NETWORK)
    one, other = (lh.spectral_density(H, num_steps=15, num_probes=3, deflate=3) for H in maps)
    assert np.abs(other.grid.numpy() / scale - one.grid.numpy()).max() < 1e-9
    assert np.abs(other.density.numpy() * scale - one.density.numpy()).max() < 1e-6
    assert other.count_above(0.1 * scale).value == pytest.approx(one.count_above(0.1).value)
    assert other.participation_ratio().value == pytest.approx(one.participation_ratio().value)


def test_float32_maps_are_right_to_their_rounding() -> None:
    H = symmetric(NETWORK)
    single, double = (lh.spectral_density(matrix, num_steps=20, num_probes=4, deflate=3) for matrix in (H.float(), H))
    assert single.moment(1).value == pytest.approx(double.moment(1).value, abs=1e-6)
    assert float((single.density - double.density).abs().max()) < 1e-3 * float(double.density.max())
    assert lh.trace(H.float()).value == pytest.approx(lh.trace(H).value, abs=1e-4)
    # Known pairs are all there is: what is left is rounding, which is not symmetric, and must not be called so.
    low_rank = symmetric(np.r_[3.0, 2.0, 1.0, np.zeros(57)]).float()
    noise = 1e-5 * torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
    rounded = Counted(lambda v: low_rank @ v + noise @ v, 60, torch.float32)
    left = lh.spectral_density(rounded, num_steps=10, num_probes=3, deflate=lh.top_eigs(rounded, k=3, tol=1e-4))
    assert left.nodes.shape == (3, 10)
    assert float(left.nodes.abs().max()) < 2e-4


def test_products_are_counted() -> None:
    H = symmetric(NETWORK)
    counted = Counted(lambda v: H @ v, 120)
    found = lh.spectral_density(counted, num_steps=7, num_probes=3)
    assert found.num_products == counted.count == 21
    pairs = lh.top_eigs(H, k=4)
    counted.count = 0
    assert lh.spectral_density(counted, num_steps=7, num_probes=3, deflate=pairs).num_products == counted.count == 22
    counted.count = 0
    computed = lh.spectral_density(counted, num_steps=7, num_probes=3, deflate=4)
    assert 21 + 4 < computed.num_products == counted.count
    counted.count = 0
    assert lh.trace(counted, num_probes=31).num_products == counted.count == 31
    for _ in (found.smoothed(num=50), found.count_above(0.1), lh.effective_dimension(found)):
        assert counted.count == 31  # what is asked afterwards is free
    identity = diagonal(np.ones(50))
    found = lh.spectral_density(identity, num_steps=20, num_probes=4)
    assert found.num_products == identity.count == 4  # one step is enough
    ones = lh.spectral_density(identity, num_steps=20, num_probes=4)
    assert ones.nodes.flatten().tolist() == pytest.approx([1.0] * 4)
    assert float(torch.trapezoid(ones.density, ones.grid)) == pytest.approx(1.0, abs=1e-4)


def test_random_state_and_vectors_of_the_caller_are_untouched() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    H = symmetric(NETWORK)
    options = {"num_steps": 8, "num_probes": 3, "deflate": 2}
    first, again, other = (lh.spectral_density(H, **options, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.nodes, again.nodes)
    assert not torch.equal(first.nodes, other.nodes)
    assert lh.trace(H, seed=1).value == lh.trace(H, seed=1).value != lh.trace(H, seed=2).value
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


def test_small_and_empty_maps() -> None:
    one = lh.spectral_density(torch.tensor([[2.0]]))
    assert (one.moment(1).value, one.moment(1).standard_error, one.nodes.shape) == (2.0, 0.0, (1, 1))
    zero = lh.spectral_density(torch.zeros(20, 20))
    assert (zero.moment(2).value, zero.width) == (0.0, 0.01)
    assert math.isnan(zero.participation_ratio().value)
    known = lh.spectral_density(symmetric([3.0, 2.0, 1.0]), deflate=3)
    assert (known.num_bulk, known.nodes.shape, float(known.density.abs().max())) == (0, (0, 0), 0.0)
    assert known.count_above(1.5) == lh.curvature.Estimate(2.0, 0.0, 0.0)
    assert known.moment(1).value == pytest.approx(2.0)
    assert known.quantile(0.5) == pytest.approx(2.0)
    assert lh.spectral_density(symmetric([3.0, 2.0, 1.0]), deflate=0).spikes.shape == (0,)


def test_only_pairs_that_converged_are_taken_out() -> None:
    H = symmetric(NETWORK)
    with pytest.warns(RuntimeWarning, match="max_products is 14"):
        pairs = lh.top_eigs(H, k=10, tol=1e-8, max_products=14, on_failure="warn")
    num = int(pairs.is_converged.sum())
    assert 0 < num < 10
    assert lh.effective_dimension(pairs, thresholds=3.0).count_is_bound.tolist() == [True]  # it may have missed some
    assert torch.equal(lh.spectral_density(H, num_steps=5, num_probes=2, deflate=pairs).spikes, pairs.values[:num])


def test_grid_and_width_can_be_chosen_before_and_after() -> None:
    H, grid = symmetric(NETWORK), torch.linspace(-1.0, 6.0, 701)
    found = lh.spectral_density(H, num_steps=10, num_probes=3, grid=grid, width=0.2)
    assert found.grid.dtype == torch.float64
    again = lh.spectral_density(H, num_steps=10, num_probes=3).smoothed(grid=grid, width=0.2)
    assert torch.equal(found.density, again.density)
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1.0, abs=1e-5)
    assert again.smoothed(num=33).grid.shape == (33,)
    assert lh.spectral_density(H, num_steps=10, num_probes=3, num=33).grid.shape == (33,)


def test_default_width_shows_eigenvalues_and_not_nodes() -> None:
    """Spanning probes: without chance, the density is that of the eigenvalues to 1e-4 of a Gaussian's height."""
    values = np.linspace(-1.0, 1.0, 60) ** 3
    found = lh.spectral_density(symmetric(values), num_steps=12, num_probes=60)
    height = 1 / (found.width * math.sqrt(2 * math.pi))
    assert np.abs(found.density.numpy() - smoothed(values, found.grid, found.width, 60)).max() < 1e-4 * height
    narrow = found.smoothed(width=found.width / 4)
    off = np.abs(narrow.density.numpy() - smoothed(values, narrow.grid, narrow.width, 60)).max()
    assert off > 1e-3 * height


def test_results_save_load_and_print_one_line(tmp_path: object) -> None:
    H = symmetric(NETWORK)
    density = lh.spectral_density(H, num_steps=8, num_probes=3, deflate=2)
    dimension = lh.effective_dimension(density)
    for result in (density, dimension, lh.trace(H)):
        loaded = type(result).load(result.save(f"{tmp_path}/result"))
        for field in dataclasses.fields(result):
            one, two = getattr(result, field.name), getattr(loaded, field.name)
            assert torch.equal(one, two) if isinstance(one, Tensor) else one == two
        assert repr(loaded) == repr(result)
        assert "\n" not in repr(result)
    assert repr(density).startswith("SpectralDensity(p = 120: 2 spikes 5 ... 2.031, bulk -0.0")
    assert "3 probes x 8 steps" in repr(density)
    assert repr(dimension).startswith("EffectiveDimension(")
    bound = repr(lh.effective_dimension(lh.top_eigs(H, k=10), thresholds=0.1))
    assert bound.startswith("EffectiveDimension(at least 10 above 0.1; participation ratio 4.047 of those known; ")
    assert bound.endswith("10 of 120 known)")
    whole = repr(lh.trace(H, num_probes=200))
    assert whole.startswith(f"Trace({NETWORK.sum():.6g} +- 0: every diagonal entry; p = 120; ")
    assert repr(lh.curvature.Estimate(1.25, 0.5, 0.0)) == "Estimate(1.25 +- 0.5)"
    assert repr(lh.curvature.Estimate(1.25, 0.5, 0.2)) == "Estimate(1.25 +- 0.5, numerics within 0.2)"


# ---- messages -----------------------------------------------------------------------------------------------------

SMALL = symmetric([3.0, 2.0, 1.0])
OTHER = lh.top_eigs(symmetric([3.0, 2.0, 1.0], seed=5), k=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, r"num_steps is 0, expected an integer of at least 1"),
        (
            {"num_probes": 1},
            ValueError,
            r"num_probes is 1, expected an integer of at least 2\.\nA single one says nothing",
        ),
        ({"seed": -1}, ValueError, r"seed is -1, expected an integer from 0"),
        ({"deflate": 4}, ValueError, r"deflate is 4, expected an integer from 0 to 3"),
        ({"deflate": "all"}, TypeError, r"deflate is 'all', expected an integer from 0 to 3\.\nPass what top_eigs"),
        (
            {"deflate": OTHER},
            ValueError,
            r"deflate holds pairs that H does not have: H v differs from .*, expected",
        ),
        (
            {"deflate": lh.top_eigs(torch.eye(4), k=1)},
            ValueError,
            r"deflate has vectors of 4 entries, expected \(3,\) = \(p,\) of H",
        ),
        ({"width": 0.0}, ValueError, r"width is 0, expected a finite number in \(0, inf\)"),
        ({"grid": torch.zeros(2, 2)}, ValueError, r"grid has shape \(2, 2\), expected \(g,\) eigenvalues"),
        ({"grid": torch.tensor([1.0, 0.0])}, ValueError, r"grid does not ascend, expected ascending eigenvalues"),
        ({"grid": torch.tensor([1.0, math.nan])}, ValueError, r"grid holds 1 NaN or infinite entries, expected finite"),
        ({"grid": torch.arange(3.0), "num": 3}, ValueError, r"num is 3 with a grid, expected nothing"),
        ({"num": 1}, ValueError, r"num is 1, expected an integer of at least 2"),
        ({"memory": 10}, ValueError, r"memory is 10 bytes, expected at least 144 bytes for 3 steps, 3 probes and 0"),
        ({"H": torch.ones(3, 4)}, ValueError, r"H is a Tensor of shape \(3, 4\), expected a symmetric map"),
        (
            {"H": Counted(lambda v: v * math.nan, 3)},
            FloatingPointError,
            r"H @ v has NaN or infinite entries at product 1",
        ),
        ({"H": Counted(lambda v: v.roll(1), 30)}, ValueError, r"H has an antisymmetric part, .*, expected a symmetric"),
    ],
)
def test_messages_of_spectral_density(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lh.spectral_density(**({"H": SMALL} | arguments))


def test_bad_arguments_cost_no_products() -> None:
    counted = diagonal(NETWORK)
    for arguments in ({"num": 1}, {"width": -1.0}, {"grid": torch.zeros(3)}, {"memory": 8}, {"seed": -1}):
        with pytest.raises(ValueError, match="expected"):
            lh.spectral_density(counted, **arguments)
    assert counted.count == 0


@pytest.mark.parametrize(
    ("source", "arguments", "error", "message"),
    [
        (
            [1.0, 2.0],
            {},
            TypeError,
            r"source is a list, expected Eigenpairs, a SpectralDensity or a tensor of eigenvalues",
        ),
        (torch.eye(3), {}, ValueError, r"source has shape \(3, 3\), expected \(p,\) eigenvalues"),
        (torch.tensor([math.inf]), {}, ValueError, r"source holds 1 NaN or infinite entries, expected finite numbers"),
        (torch.ones(3), {"thresholds": ()}, ValueError, r"thresholds is \(\), expected finite numbers"),
        (torch.ones(3), {"thresholds": math.nan}, ValueError, r"thresholds is nan, expected finite numbers"),
        (torch.ones(3), {"gammas": 0.0}, ValueError, r"gammas is 0\.0, expected finite positive numbers"),
        (
            torch.ones(3),
            {"thresholds": 0.0},
            ValueError,
            r"gammas is \[0\.0\], .*\nPass gammas= in units of the eigenv",
        ),
    ],
)
def test_messages_of_effective_dimension(source: object, arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lh.effective_dimension(source, **arguments)


def test_messages_of_trace_and_of_questions() -> None:
    with pytest.raises(ValueError, match=r"num_probes is 4, expected an integer of at least 5\.\n60 is a good start"):
        lh.trace(torch.eye(9), num_probes=4)
    with pytest.raises(TypeError, match=r"seed is 0\.5, expected an integer"):
        lh.trace(SMALL, seed=0.5)
    with pytest.raises(FloatingPointError, match="H @ v has NaN or infinite entries at product 1, expected finite"):
        lh.trace(Counted(lambda v: v * math.inf, 30))
    density = lh.spectral_density(SMALL)
    with pytest.raises(ValueError, match="threshold is nan, expected a finite number"):
        density.count_above(math.nan)
    with pytest.raises(ValueError, match=r"share is 1\.5, expected a finite number in \[0, 1\]"):
        density.quantile(1.5)
    with pytest.raises(ValueError, match="order is -1, expected an integer of at least 0"):
        density.moment(-1)


def test_a_participation_ratio_of_eigenvalues_that_cancel_is_called_no_dimension() -> None:
    H = torch.tensor([3.0, 2.0, -4.0, -0.9], dtype=torch.float64)  # all eigenvalues
    found = lh.effective_dimension(H)
    assert found.participation_ratio == pytest.approx(0.1**2 / (9 + 4 + 16 + 0.81))
    assert "no dimension: eigenvalues of both signs cancel" in repr(found)
    assert "no dimension" not in repr(lh.effective_dimension(H.abs()))
