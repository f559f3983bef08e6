"""Losses with answers on paper, descent on them.

Oracles: closed forms written out by hand (values, gradients, Hessians, the end of gradient flow on x^2 y^2, matrix
exponentials, the stationary variance of an autoregression); the dense float64 Hessian.
"""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import nn

import lowhanging as lh

toys = lh.toys
POINTS = 2 * torch.rand(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1


def test_two_circuits_of_ninety_percent():
    toy = lh.toys.redundant_sum()
    assert toy.single == pytest.approx(0.1 * math.log(10), rel=1e-12)
    assert toy.joint == pytest.approx(0.01 * math.log(10), rel=1e-12)
    assert toy.single_measured == pytest.approx(0.23025850929940457, rel=1e-9)
    assert toy.joint_measured == pytest.approx(0.023025850929940457, rel=1e-9)
    assert repr(toy) == "RedundantSum(single 0.2303, joint 0.02303, factor 10)"


def test_other_sizes():
    toy = lh.toys.redundant_sum(known=0.75, num_classes=4, num_circuits=3)
    assert toy.single_measured == pytest.approx(0.25 * math.log(4), rel=1e-9)
    assert toy.joint_measured == pytest.approx(0.25**3 * math.log(4), rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known": 1.0}, r"known is 1, expected a finite number in \(0, 1\)"),
        ({"known": 0.905}, "known is 0.905, expected a multiple of 0.01"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"num_circuits": 4}, "num_circuits is 4, expected an integer from 1 to 3"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        lh.toys.redundant_sum(**arguments)


# The cartoons, by hand: value, gradient, (xx, xy, yy) of the Hessian.
def flat_by_hand(x, y):
    return x**2 * y**2, (2 * x * y**2, 2 * x**2 * y), (2 * y**2, 4 * x * y, 2 * x**2)


def sloped_by_hand(x, y, slope=0.1):
    value, (gx, gy), (xx, xy, yy) = flat_by_hand(x, y)
    e = slope * math.exp(-(x**2) - y**2)
    gradient = (gx + 2 * x * e, gy + 2 * y * e)
    return value + slope - e, gradient, (xx + (2 - 4 * x**2) * e, xy - 4 * x * y * e, yy + (2 - 4 * y**2) * e)


def figure_by_hand(x, y):
    e, g = math.exp(0.5 * (2 - x**2 * y**2)), 0.5 * math.exp(-(x**2) - y**2)
    hessian = (
        e * (y**2 - x**2 * y**4) + g * (2 - 4 * x**2),
        e * (2 * x * y - x**3 * y**3) - 4 * x * y * g,
        e * (x**2 - x**4 * y**2) + g * (2 - 4 * y**2),
    )
    return -e - g, (e * x * y**2 + 2 * x * g, e * x**2 * y + 2 * y * g), hessian


@pytest.mark.parametrize(
    ("loss", "by_hand", "name"),
    [
        (toys.flat_canyons(), flat_by_hand, "flat_canyons"),
        (toys.sloped_canyons(), sloped_by_hand, "sloped_canyons(slope=0.1)"),
        (toys.sloped_canyons(0.7), lambda x, y: sloped_by_hand(x, y, 0.7), "sloped_canyons(slope=0.7)"),
        (toys.canyon_figure(), figure_by_hand, "canyon_figure"),
    ],
)
def test_cartoons_by_hand(loss, by_hand, name):
    assert f"FunctionObjective({name}, 2 parameters" in repr(loss)
    assert torch.equal(loss.theta0, torch.zeros(2, dtype=torch.float64))
    for point in (*POINTS, torch.tensor([1.7, 0.0], dtype=torch.float64)):
        value, gradient, (xx, xy, yy) = by_hand(*point.tolist())
        hessian = torch.tensor([[xx, xy], [xy, yy]], dtype=torch.float64)
        found, slopes = loss.value_and_gradient(point)
        assert float(found) == pytest.approx(value, rel=1e-13, abs=1e-15)
        torch.testing.assert_close(slopes, torch.tensor(gradient, dtype=torch.float64), rtol=1e-12, atol=1e-14)
        products = torch.stack([loss.hvp(point, v) for v in torch.eye(2, dtype=torch.float64)])
        torch.testing.assert_close(products, hessian, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(lh.testing.dense_hessian(loss, theta=point), hessian, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("radius", [0.2, 0.4, 1.0, 2.5])
def test_canyons_and_ridges_of_the_sloped_cartoon(radius):
    loss, e = toys.sloped_canyons(), math.exp(-(radius**2))
    on_the_axis = lh.testing.dense_hessian(loss.at(torch.tensor([radius, 0.0])))
    assert float(on_the_axis[1, 1]) == pytest.approx(2 * radius**2 + 0.2 * e, rel=1e-7)
    assert float(loss.gradient(torch.tensor([radius, 0.0]))[0]) == pytest.approx(0.2 * radius * e, rel=1e-6)
    corner = torch.full((2,), radius / math.sqrt(2), dtype=torch.float64)
    across = torch.tensor([1.0, -1.0], dtype=torch.float64) / math.sqrt(2)
    assert float(across @ loss.hvp(corner, across)) == pytest.approx(0.2 * e - radius**2, rel=1e-12)


@pytest.mark.parametrize("seed", [None, 3])
def test_quadratic_has_the_spectrum_asked_for(seed):
    values = [4.0, -1.0, 0.0, 1e-3, 2.5]
    loss = toys.quadratic(values, seed=seed)
    hessian = lh.testing.dense_hessian(loss)
    torch.testing.assert_close(
        torch.linalg.eigvalsh(hessian), torch.tensor(sorted(values), dtype=torch.float64), rtol=0, atol=1e-13
    )
    point = torch.linspace(-1, 2, 5, dtype=torch.float64)
    assert float(loss(point)) == pytest.approx(float(point @ hessian @ point) / 2, rel=1e-12)
    torch.testing.assert_close(loss.gradient(point), hessian @ point, rtol=1e-12, atol=1e-13)
    is_diagonal = torch.equal(hessian, hessian.diagonal().diag())
    assert is_diagonal == (seed is None)
    torch.testing.assert_close(toys.quadratic(values, theta0=point).theta0, point)


def test_random_rotations_are_uniform():
    """Haar: each entry of Q has mean 0 and variance 1/p, and E (tr Q)^2 = 1, which a biased choice of signs breaks."""
    eye = torch.eye(3, dtype=torch.float64)
    rows = torch.stack([toys.embedded(toys.quadratic([1.0] * 3), 3, seed=seed)[1].basis for seed in range(400)])
    torch.testing.assert_close(rows @ rows.mT, eye.expand(400, 3, 3), rtol=0, atol=1e-13)
    # 400 draws: standard errors 0.029 of a mean, 0.017 of a variance, sqrt(2 / 400) = 0.07 of E (tr Q)^2; five of them.
    assert float(rows.mean(0).abs().max()) < 0.15
    assert float((rows.square().mean(0) - 1 / 3).abs().max()) < 0.085
    trace = rows.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(float(trace.square().mean()) - 1) < 0.35


@pytest.mark.parametrize("curvature", [0.0, 3.0])
def test_embedded(curvature):
    small = toys.sloped_canyons(theta0=[0.7, -0.3])
    loss, space = toys.embedded(small, 7, seed=5, curvature=curvature)
    assert loss.num_params == 7
    assert space.basis.shape == (2, 7)
    torch.testing.assert_close(space.coordinates(loss.theta0), small.theta0, rtol=1e-12, atol=0)
    torch.testing.assert_close(space.reject(loss.theta0), torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-14)
    inside = lh.testing.dense_hessian(small)
    expected = space.basis.T @ inside @ space.basis
    expected += curvature * (torch.eye(7, dtype=torch.float64) - space.basis.T @ space.basis)
    torch.testing.assert_close(lh.testing.dense_hessian(loss), expected, rtol=1e-11, atol=1e-13)
    for point in POINTS:
        assert float(loss(space.vector(point))) == pytest.approx(float(small(point)), rel=1e-12)
        outside = space.reject(torch.ones(7, dtype=torch.float64))
        rise = 0.5 * curvature * float(outside.square().sum())
        assert float(loss(space.vector(point) + outside)) == pytest.approx(float(small(point)) + rise, rel=1e-12)
    again, _ = toys.embedded(small, 7, seed=5, curvature=curvature)
    other, _ = toys.embedded(small, 7, seed=6, curvature=curvature)
    assert torch.equal(again.theta0, loss.theta0)
    assert not torch.equal(other.theta0, loss.theta0)
    assert "sloped_canyons(slope=0.1) in 7 dimensions" in repr(loss)


def test_copies_are_independent():
    small = toys.sloped_canyons(theta0=[0.4, 0.6])
    loss = toys.copies(small, 3)
    points = POINTS[:3]
    assert float(loss(points.flatten())) == pytest.approx(sum(float(small(point)) for point in points), rel=1e-13)
    blocks = [lh.testing.dense_hessian(small, theta=point) for point in points]
    expected = torch.block_diag(*blocks)
    torch.testing.assert_close(lh.testing.dense_hessian(loss, theta=points.flatten()), expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(loss.theta0, small.theta0.repeat(3))
    v = torch.linspace(-1, 1, 6, dtype=torch.float64)
    torch.testing.assert_close(loss.hvp(points.flatten(), v), expected @ v, rtol=1e-12, atol=1e-14)


def test_redundant_circuits_are_the_sum():
    """At strengths 1 and 0 the loss is the sum on paper, and that of actual logits."""
    toy = toys.redundant_sum()
    for confidence, rel in ((60.0, 1e-9), (20.0, 1e-6)):
        loss = toys.redundant_circuits(confidence=confidence)
        together, alone = torch.ones(2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
        assert torch.equal(loss.theta0, together)
        assert float(loss(together)) == pytest.approx(toy.joint_measured, rel=rel)
        assert float(loss(alone)) == pytest.approx(toy.single_measured, rel=rel)
        assert float(loss(alone.flip(0))) == pytest.approx(toy.single_measured, rel=rel)
        assert float(loss(torch.zeros(2))) == pytest.approx(math.log(10), rel=1e-12)
    three = toys.redundant_circuits(0.75, 4, 3, confidence=60.0)
    assert float(three(three.theta0)) == pytest.approx(toys.redundant_sum(0.75, 4, 3).joint_measured, rel=1e-9)


def test_redundant_circuits_by_hand():
    """Gradient and Hessian from sigmoids, also where the exponential over- or underflows."""
    known, others, confidence = 0.8, 4, 20.0
    loss = toys.redundant_circuits(known, others + 1)
    for w in ([0.3, 0.1], [1.0, 1.0], [-0.2, 0.5], [60.0, -50.0], [0.0, 0.0]):
        w1, w2 = w
        gradient, hessian, value = np.zeros(2), np.zeros((2, 2)), (1 - known) ** 2 * math.log(others + 1)
        for share, member in ((known * (1 - known), (1, 0)), (known * (1 - known), (0, 1)), (known**2, (1, 1))):
            z = math.log(others) - confidence * (member[0] * w1 + member[1] * w2)
            odds = math.exp(-abs(z))
            wrong = 1 / (1 + odds) if z > 0 else odds / (1 + odds)  # the probability left to the other classes
            slope = odds / (1 + odds) ** 2
            value += share * (max(z, 0.0) + math.log1p(odds))
            gradient -= share * confidence * wrong * np.array(member)
            hessian += share * confidence**2 * slope * np.outer(member, member)
        point = torch.tensor(w, dtype=torch.float64)
        assert float(loss(point)) == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(loss.gradient(point).numpy(), gradient, rtol=1e-11, atol=1e-300)
        products = torch.stack([loss.hvp(point, v) for v in torch.eye(2, dtype=torch.float64)])
        for found in (lh.testing.dense_hessian(loss, theta=point), products):
            np.testing.assert_allclose(found.numpy(), hessian, rtol=1e-9, atol=1e-300)
    # Beyond 20, where torch's softplus would have no curvature left: z = ln 4 + 24 for each circuit, more for both.
    z, point = math.log(others) + 24.0, torch.full((2,), -1.2, dtype=torch.float64)
    curvature = lh.testing.dense_hessian(loss, theta=point)[0, 0]
    assert float(curvature) == pytest.approx(known * (1 - known) * confidence**2 * math.exp(-z), rel=1e-3)
    assert 1e-8 < float(toys.redundant_circuits().gradient(torch.ones(2)).norm()) < 1e-6


@pytest.mark.parametrize("start", [(1.5, 0.4), (-0.3, 1.9), (-1.2, -1.1), (0.8, -0.75)])
def test_flat_canyons_trap_the_flow_where_paper_says(start):
    path = toys.gradient_path(toys.flat_canyons(), start)
    level = start[0] ** 2 - start[1] ** 2
    end = math.sqrt(abs(level))
    expected = (math.copysign(end, start[0]), 0.0) if level > 0 else (0.0, math.copysign(end, start[1]))
    assert path.is_at_rest
    assert path.ends_at(expected, tol=1e-6)
    assert not path.ends_at((0.0, 0.0))
    squares = path.thetas.square()
    assert float((squares[:, 0] - squares[:, 1] - level).abs().max()) < 1e-8
    assert path.visits_axis(near=1e-3, far=0.9 * end)
    assert not path.visits_axis(near=1e-3, far=1.1 * end)
    assert bool((path.losses.diff() < 0).all())
    assert bool((path.times.diff() > 0).all())


def test_sloped_canyons_lead_to_the_joint_minimum_by_way_of_an_axis():
    path = toys.gradient_path(toys.sloped_canyons(), [1.5, 0.6])
    assert path.visits_axis()
    assert path.is_at_rest
    assert path.ends_at([0.0, 0.0], tol=1e-7)
    directly = toys.gradient_path(toys.sloped_canyons(), [1.0, 1.0])
    assert not directly.visits_axis()
    assert directly.ends_at([0.0, 0.0], tol=1e-7)


@pytest.mark.parametrize("values", [[3.0, 1.0, 0.2, -0.1], [1e4, 1.0, 1e-3, 0.0]])
def test_flow_on_a_quadratic_is_the_matrix_exponential(values):
    """The second one is stiff: an explicit method of any order would need 1e6 steps."""
    loss = toys.quadratic(values, seed=2)
    start = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)
    end = 20.0 if min(values) < 0 else 500.0
    path = toys.gradient_path(loss, start, time=end)
    hessian = lh.testing.dense_hessian(loss)
    assert float(path.times[-1]) == end
    for time, theta in zip(path.times, path.thetas, strict=True):
        expected = torch.from_numpy(scipy.linalg.expm(-float(time) * hessian.numpy())) @ start
        assert float((theta - expected).norm()) < 1e-7
    torch.testing.assert_close(path.gradient_norms, (path.thetas @ hessian).norm(dim=1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(path.losses, torch.stack([loss(theta) for theta in path.thetas]), rtol=1e-12, atol=0)
    assert len(path.times) < 5000


def test_flow_of_copies_is_the_flow_of_each():
    loss, starts = toys.sloped_canyons(), torch.tensor([[1.5, 0.4], [0.2, -1.0]], dtype=torch.float64)
    together = toys.gradient_path(toys.copies(loss, 2), starts.flatten(), time=7.0)
    for start, end in zip(starts, together.thetas[-1].reshape(2, 2), strict=True):
        alone = toys.gradient_path(loss, start, time=7.0)
        assert float((alone.thetas[-1] - end).norm()) < 1e-7


def test_steps_without_noise_are_gradient_descent():
    loss = toys.quadratic([2.0, 0.5])
    path = toys.gradient_path(loss, [1.0, -1.0], time=3.0, step=0.1)
    factors = 1 - 0.1 * torch.tensor([2.0, 0.5], dtype=torch.float64)
    expected = torch.tensor([1.0, -1.0]).double() * factors ** torch.arange(31)[:, None]
    torch.testing.assert_close(path.thetas, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(path.times, 0.1 * torch.arange(31).double())
    to_rest = toys.gradient_path(loss, [1.0, -1.0], step=0.5, gtol=1e-6)
    assert to_rest.is_at_rest
    assert float(to_rest.gradient_norms[-2]) > 1e-6


def test_noise_has_the_variance_of_an_autoregression():
    """theta <- a theta - step noise xi, a = 1 - step h: variance (step noise)^2 / (1 - a^2), correlation a per step."""
    curvature, step, noise, num, chains = 2.0, 0.3, 0.7, 20_000, 20
    many = toys.copies(toys.quadratic([curvature]), chains)
    path = toys.gradient_path(
        many, [0.0] * chains, time=(100 + num // chains) * step, step=step, noise=noise, seed=4, progress=False
    )
    theta = path.thetas[101:]
    assert theta.numel() == num
    assert len(path.times) == 101 + num // chains
    factor = 1 - step * curvature
    variance = step * noise**2 / (curvature * (2 - step * curvature))
    assert variance == pytest.approx((step * noise) ** 2 / (1 - factor**2))
    # The variance of n correlated samples has relative standard error sqrt(2/n (1 + a^2) / (1 - a^2)) = 1.2 %; four.
    error = math.sqrt(2 / num * (1 + factor**2) / (1 - factor**2))
    assert float(theta.var()) == pytest.approx(variance, rel=4 * error)
    assert float((theta[1:] * theta[:-1]).mean()) / float(theta.var()) == pytest.approx(factor, abs=0.02)
    # Each chain has a noise of its own: correlations of 1,000 samples each, of standard error 0.04; five of them.
    assert float((torch.corrcoef(theta.T) - torch.eye(chains)).abs().max()) < 0.2


def test_noise_is_reproducible_and_its_own():
    loss, state = toys.sloped_canyons(), torch.random.get_rng_state()
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    options = {"time": 5.0, "step": 0.05, "noise": 0.5}
    path = toys.gradient_path(loss, [1.0, 0.5], seed=1, **options)
    again = toys.gradient_path(loss, [1.0, 0.5], seed=1, **options)
    other = toys.gradient_path(loss, [1.0, 0.5], seed=2, **options)
    toys.quadratic([1.0, 2.0], seed=0)
    assert torch.equal(path.thetas, again.thetas)
    assert not torch.equal(path.thetas, other.thetas)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    # At the minimum the gradient is 0: noise goes on, descent and flow stay.
    assert len(toys.gradient_path(loss, [0.0, 0.0], **options).times) == 101
    assert len(toys.gradient_path(loss, [0.0, 0.0], time=5.0, step=0.05).times) == 1
    assert len(toys.gradient_path(loss, [0.0, 0.0]).times) == 1


def test_any_objective_descends_and_is_left_alone():
    """Linear regression in float32: the flow ends at the least-squares solution, computed in float64."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(20, 3, generator=generator), torch.randn(20, 1, generator=generator)
    model = nn.Linear(3, 1, bias=False)
    loss = lh.Objective(model, (inputs, targets), loss_fn=F.mse_loss)
    weights = model.weight.detach().clone()
    path = toys.gradient_path(loss, loss.theta0)
    best = torch.linalg.lstsq(inputs.double(), targets.double()).solution[:, 0]
    assert path.thetas.dtype == torch.float64
    assert path.ends_at(best, tol=1e-8)
    assert torch.equal(model.weight, weights)
    assert model.weight.grad is None
    with torch.inference_mode():
        inner = toys.quadratic([1.0, 2.0], seed=0)
        assert toys.gradient_path(toys.embedded(inner, 3)[0], torch.ones(3), time=1.0).losses[-1] > 0
        assert toys.gradient_path(toys.redundant_circuits(), [0.1, 0.0], time=1.0).losses[-1] < 1.5


def test_path_is_saved_and_described(tmp_path):
    loss = toys.sloped_canyons()
    for options in ({}, {"step": 0.1, "noise": 0.25, "time": 2.0, "seed": 7}):
        path = toys.gradient_path(loss, [1.2, 0.3], **options)
        stored = toys.GradientPath.load(path.save(tmp_path / "path"))
        for name in ("times", "thetas", "losses", "gradient_norms"):
            assert torch.equal(getattr(stored, name), getattr(path, name))
        assert (stored.step, stored.noise, stored.seed, stored.gtol) == (path.step, path.noise, path.seed, path.gtol)
        assert repr(stored) == repr(path)
    assert repr(path).startswith("GradientPath(steps of 0.1 and noise 0.25, 21 points to time 2, loss 0.2079 -> ")
    assert "|gradient|" in repr(path)
    flow = toys.gradient_path(loss, [1.2, 0.3])
    assert repr(flow).startswith("GradientPath(gradient flow, ")
    assert repr(flow).endswith(", at rest)")


def test_on_axis():
    thetas = torch.tensor([[0.05, 0.9], [-0.9, -0.1], [0.05, 0.4], [0.2, 0.9], [0.5, -0.1]], dtype=torch.float64)
    assert toys.on_axis(thetas).tolist() == [True, True, False, False, True]
    assert toys.on_axis(thetas.reshape(5, 1, 2), near=0.3, far=0.85).flatten().tolist() == [
        True,
        True,
        False,
        True,
        False,
    ]


def test_failures_keep_what_was_found():
    falling = lh.FunctionObjective(lambda theta: -(theta**4).sum(), torch.ones(1, dtype=torch.float64))
    with pytest.raises(lh.NotConvergedError, match=r"gradient_path failed at time 0\.12") as caught:
        toys.gradient_path(falling, [1.0])  # theta = (1 - 8 t)^(-1/2): infinite at t = 1/8
    path = caught.value.result
    assert float(path.times[-1]) == pytest.approx(1 / 8, rel=1e-6)
    assert bool(torch.isfinite(path.thetas).all())
    early = path.times < 0.1249
    torch.testing.assert_close(path.thetas[early, 0], (1 - 8 * path.times[early]) ** -0.5, rtol=1e-5, atol=0)
    with pytest.raises(lh.NotConvergedError, match=r"where the loss is .* inf\.\nTake a smaller step") as caught:
        toys.gradient_path(toys.quadratic([100.0]), [1.0], step=0.1, time=100.0)  # theta grows ninefold a step
    assert bool(torch.isfinite(caught.value.result.losses).all())
    steep = toys.quadratic([-1.0])
    with pytest.raises(lh.NotConvergedError, match=r"stopped after time 3\d\d.*\n.*bounded below; elsewhere take"):
        toys.gradient_path(steep, [1.0])


def path_of(*arguments, **options):
    return toys.gradient_path(toys.flat_canyons(), *arguments, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: toys.flat_canyons([1.0]), ValueError, r"theta0 has shape \(1,\), expected \(2,\)"),
        (lambda: toys.canyon_figure("x"), TypeError, "theta0 is 'x', expected a vector of real numbers"),
        (lambda: toys.sloped_canyons(0.0), ValueError, "slope is 0, expected a finite number in"),
        (lambda: toys.quadratic([]), ValueError, r"eigenvalues has shape \(0,\), expected a vector"),
        (lambda: toys.quadratic([1.0, math.inf]), ValueError, "eigenvalues holds 1 NaN or infinite"),
        (lambda: toys.quadratic([1.0], seed=-1), ValueError, "seed is -1, expected an integer of at least 0"),
        (
            lambda: toys.embedded(toys.flat_canyons(), 1),
            ValueError,
            "num_params is 1, expected an integer of at least 2",
        ),
        (lambda: toys.embedded(lambda x: x, 3), TypeError, "loss is a function, expected a FunctionObjective"),
        (lambda: toys.copies(3, 3), TypeError, "loss is an int, expected a FunctionObjective"),
        (lambda: toys.copies(toys.flat_canyons(), 0), ValueError, "num_copies is 0, expected an integer of at least 1"),
        (
            lambda: toys.redundant_circuits(num_circuits=13),
            ValueError,
            "num_circuits is 13, expected an integer from 1",
        ),
        (lambda: toys.redundant_circuits(confidence=-1.0), ValueError, "confidence is -1"),
        (lambda: path_of([1.0]), ValueError, r"start has shape \(1,\), expected \(2,\) = \(num_params,\) of Function"),
        (lambda: path_of([1.0, math.nan]), ValueError, "start holds 1 NaN"),
        (lambda: path_of([1.0, 1.0], noise=0.1), ValueError, "step is None with noise 0.1, expected a step size"),
        (lambda: path_of([1.0, 1.0], step=0.0), ValueError, "step is 0, expected"),
        (lambda: path_of([1.0, 1.0], time=-1.0), ValueError, "time is -1, expected"),
        (
            lambda: path_of([1e100, 1e100]),
            ValueError,
            "start is where the loss is inf .* expected a point with a finite",
        ),
        (lambda: toys.gradient_path(nn.Linear(1, 1), [1.0]), TypeError, "loss is a Linear, expected an objective"),
        (lambda: path_of([1.0, 0.5]).ends_at([0.0]), ValueError, r"point has shape \(1,\), expected \(2,\)"),
        (lambda: toys.on_axis(torch.zeros(3, 2), near=0.5), ValueError, "far is 0.5, expected more than near = 0.5"),
        (lambda: toys.on_axis(torch.zeros(3, 1)), ValueError, r"thetas has shape \(3, 1\), expected points of shape"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_function_of_float32_constants_is_refused():
    matrix = torch.eye(2)
    loss = lh.FunctionObjective(lambda theta: theta @ matrix @ theta, torch.ones(2))
    with pytest.raises(
        ValueError, match=r"loss can't be evaluated in float64 \(.*\), expected a function that follows"
    ):
        toys.gradient_path(loss, [1.0, 1.0])
