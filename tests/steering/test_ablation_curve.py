"""The price of a circuit against cartoons whose price is known on paper, and against itself on a network.

On the sloped cartoon the circuit y is kept by keep = (y - 2)^2: keep <= c asks for y >= 2 - sqrt(c), the least loss has
x = 0, and the price is 0.1 (1 - exp(-(2 - sqrt(c))^2)); on the flat one it is 0. The multiplier is minus the slope of
the price, which on a network is told from differences of prices.
"""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

import lowhanging as lh
from lowhanging.steering import AblationCurve, ablation_curve, relax_on_spheres

LEVELS = [3.9, 2.0, 1.0, 0.5, 0.1, 0.01]


def keep_y(dim=2, at=2.0):
    return lh.FunctionObjective(lambda theta: (theta[1] - at).square(), torch.zeros(dim, dtype=torch.float64))


def price(c):
    return 0.1 * (1 - math.exp(-((2 - math.sqrt(c)) ** 2)))


def slope(c):
    d = 2 - math.sqrt(c)
    return 0.1 * math.exp(-d * d) * d / math.sqrt(c)


def test_the_price_on_the_sloped_cartoon_and_its_slope():
    curve = ablation_curve(lh.toys.sloped_canyons(), keep=keep_y(), levels=LEVELS, gtol=1e-8)
    assert curve.losses.tolist() == pytest.approx([price(c) for c in LEVELS], rel=1e-5)
    assert curve.multipliers.tolist() == pytest.approx([slope(c) for c in LEVELS], rel=1e-5)
    assert curve.distances.tolist() == pytest.approx([2 - math.sqrt(c) for c in LEVELS], rel=1e-5)
    assert torch.allclose(curve.thetas[:, 0], torch.zeros(6, dtype=torch.float64), atol=1e-7)
    assert curve.kept.tolist() == pytest.approx(LEVELS, rel=1e-6)
    assert float(curve.multiplier_errors.max()) < 1e-8
    # Across, along the constraint: the loss curves by 2 y^2 + 0.2 exp(-y^2), keep not at all.
    across = [2 * d**2 + 0.2 * math.exp(-(d**2)) for d in curve.distances.tolist()]
    assert curve.curvatures.tolist() == pytest.approx(across, rel=1e-4)
    assert bool(curve.is_stationary.all())
    assert "6 of 6 stationary" in repr(curve)
    assert "0.0973" in repr(curve)
    assert len(str(curve).splitlines()) == 7


def test_on_the_flat_cartoon_it_costs_nothing():
    curve = ablation_curve(lh.toys.flat_canyons(), keep=keep_y(), levels=LEVELS, gtol=1e-8)
    assert float(curve.losses.max()) < 1e-12
    assert float(curve.multipliers.abs().max()) < 1e-6
    assert bool((curve.kept <= curve.limits * 1.001).all())


def test_many_dimensions():
    """The cartoon in a random plane of 40 dimensions, with curvature beside it: the same prices, in the plane."""
    loss, plane = lh.toys.embedded(lh.toys.sloped_canyons(), 40, seed=1, curvature=0.5)
    keep, _ = lh.toys.embedded(keep_y(), 40, seed=1)
    curve = ablation_curve(loss, keep=keep, levels=LEVELS[1:4], gtol=1e-8)
    assert curve.losses.tolist() == pytest.approx([price(c) for c in LEVELS[1:4]], rel=1e-6)
    assert curve.multipliers.tolist() == pytest.approx([slope(c) for c in LEVELS[1:4]], rel=1e-6)
    assert all(plane.overlap(theta) == pytest.approx(1.0, abs=1e-8) for theta in curve.thetas)


def test_within_distances_the_kept_loss_falls_as_far_as_it_can():
    curve = ablation_curve(lh.toys.sloped_canyons(), keep=keep_y(), distances=[0.5, 1.0, 1.5], bound=0.2, gtol=1e-8)
    assert curve.kept.tolist() == pytest.approx([1.5**2, 1.0, 0.5**2], rel=1e-6)
    assert curve.multipliers.tolist() == pytest.approx([3.0, 2.0, 1.0], rel=1e-6)  # - d (2 - r)^2 / d r
    assert curve.loss_multipliers.tolist() == pytest.approx([0.0] * 3, abs=1e-8)
    bounded = ablation_curve(lh.toys.sloped_canyons(), keep=keep_y(), distances=[3.0], bound=price(1.0), gtol=1e-8)
    assert float(bounded.kept) == pytest.approx(1.0, rel=1e-6)
    assert float(bounded.loss_multipliers) == pytest.approx(1 / slope(1.0), rel=1e-5)
    assert float(bounded.multipliers) == pytest.approx(0.0, abs=1e-8)


def test_a_start_that_is_better_is_found_and_prices_are_upper_bounds():
    """Two ways to lower keep, of which the one that begins downhill is the dearer."""

    def both(theta):
        x, y = theta
        return 0.5 * x.square() + 0.05 * y.square()

    def either(theta):
        x, y = theta
        return (
            1 - torch.exp(-((x - 2).square())) - torch.exp(-((y - 3).square())) * (1 - torch.exp(-((x - 2).square())))
        )

    zero = torch.zeros(2, dtype=torch.float64)
    loss, keep = lh.FunctionObjective(both, zero), lh.FunctionObjective(either, zero)
    alone = ablation_curve(loss, keep=keep, levels=[0.9, 0.5], num_starts=1, gtol=1e-7)
    helped = ablation_curve(
        loss, keep=keep, levels=[0.9, 0.5], initial_thetas=torch.tensor([[0.0, 2.5]]).double(), gtol=1e-7
    )
    assert float(helped.losses[-1]) < 0.5 * float(alone.losses[-1])
    assert float(helped.spreads[-1]) > 0.3
    assert helped.found.shape == (2, 4)
    assert bool(torch.isnan(alone.spreads).all())


@pytest.fixture(scope="module")
def network():
    """A net with two cues at an anchored minimum, and the loss of one cue alone."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (300,), generator=generator)
    sign = (2.0 * y - 1)[:, None].double()
    x = sign * torch.tensor([1.0, 0.5, -0.5, 1.0]).double() + torch.randn(300, 4, generator=generator).double()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    lh.train(net, (x, y), num_epochs=20, lr=0.02, progress=False)
    minimum = lh.polish(lh.Objective(net, (x, y)), anchor=0.05, gtol=1e-9)
    keep = lh.Objective(net, lh.datasets.resample((x, y), [2, 3])).at(minimum.theta)
    conflict = lh.ConflictControl(keep, x[:50], {"first": y[:50], "second": 1 - y[:50]})
    return minimum.objective, keep, conflict


def test_on_a_network_multipliers_are_difference_quotients_of_the_price(network):
    loss, keep, conflict = network
    start = float(keep(keep.theta0))
    levels = [start * (0.9 - 0.002 * i) for i in range(3)]
    curve = ablation_curve(loss, keep=keep, levels=levels, gtol=1e-7, conflict=conflict, report={"again": keep})
    quotient = float(curve.losses[2] - curve.losses[0]) / (levels[0] - levels[2])
    assert float(curve.multipliers[1]) == pytest.approx(quotient, rel=1e-3)
    assert float(curve.multiplier_errors.max()) < 1e-4 * float(curve.multipliers[1])
    assert float(curve.curvatures.min()) > 0
    # The gradients balance, in the losses' own words.
    theta, mu = curve.thetas[1], float(curve.multipliers[1])
    balance = loss.gradient(theta) + mu * keep.gradient(theta)
    assert float(balance.norm()) <= 1e-7
    assert curve.report["again"].tolist() == pytest.approx([start, *curve.kept.tolist()])
    assert sum(float(share[0]) for share in curve.answers.values()) == pytest.approx(1.0)
    assert {*curve.answers} == {"first", "second", "neither"}


def test_nothing_of_the_losses_is_changed_and_the_same_call_gives_the_same(network, tmp_path):
    loss, keep, _ = network
    before, state = loss.theta0.clone(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    level = 0.95 * float(keep(keep.theta0))
    first = ablation_curve(loss, keep=keep, levels=[level])
    again = ablation_curve(loss, keep=keep, levels=[level])
    assert torch.equal(first.thetas, again.thetas)
    assert torch.equal(loss.theta0, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    loaded = lh.load(first.save(tmp_path / "curve"))
    assert isinstance(loaded, AblationCurve)
    assert repr(loaded) == repr(first)


def test_a_curve_that_was_stopped_goes_on_from_its_file(network, tmp_path, monkeypatch):
    loss, keep, _ = network
    start, file = float(keep(keep.theta0)), tmp_path / "curve.npz"
    levels = [0.95 * start, 0.9 * start, 0.85 * start]
    whole = ablation_curve(loss, keep=keep, levels=levels)
    module = sys.modules["lowhanging.steering.ablation_curve"]  # the function of that name hides it
    advance, calls = module._Ladder.advance, []

    def stopped(ladder, generator):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        advance(ladder, generator)

    monkeypatch.setattr(module._Ladder, "advance", stopped)
    with pytest.raises(KeyboardInterrupt):
        ablation_curve(loss, keep=keep, levels=levels, resume=file)
    monkeypatch.setattr(module._Ladder, "advance", advance)
    again = ablation_curve(loss, keep=keep, levels=levels, resume=file)
    assert torch.equal(again.thetas, whole.thetas)
    assert again.num_gradients == pytest.approx(whole.num_gradients, abs=4)  # what is remembered is not kept
    with pytest.raises(ValueError, match="another limits"):
        ablation_curve(loss, keep=keep, levels=levels[:2], resume=file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(lh.DamagedFileError):
        ablation_curve(loss, keep=keep, levels=levels, resume=file)


def test_what_is_not_stationary_is_raised_or_said(network):
    loss, keep, _ = network
    levels = [0.5 * float(keep(keep.theta0))]
    options = {"keep": keep, "levels": levels, "max_gradients": 12, "max_products": 0, "gtol": 1e-9}
    with pytest.raises(lh.NotConvergedError, match=r"missed gtol 1e-09") as found:
        ablation_curve(loss, **options)
    assert not bool(found.value.result.is_stationary.any())
    with pytest.warns(UserWarning, match="missed gtol"):
        ablation_curve(loss, on_failure="warn", second_order=False, **options)
    with pytest.raises(lh.NotConvergedError, match="or the constraints") as found:
        impossible = lh.FunctionObjective(lambda theta: 1 + theta.square().sum(), torch.ones(2).double())
        ablation_curve(lh.toys.sloped_canyons(theta0=[1, 1]), keep=impossible, levels=[0.5], max_gradients=200)
    assert float(found.value.result.kkt) == math.inf


def test_a_price_of_a_feasible_point_is_never_traded_for_an_infeasible_one():
    """Losses with many saddles, stopped early: whatever Newton's steps would do, what a start met stays met."""
    for seed in (1, 3):
        generator = torch.Generator().manual_seed(seed)
        W, b, c = (torch.randn(*shape, generator=generator).double() for shape in ((8, 5), (8,), (5,)))

        def bumpy(theta, W=W, b=b):
            return torch.sin(2 * W @ theta + b).sum() + 8 + 0.05 * theta.square().sum()

        zero = torch.zeros(5, dtype=torch.float64)
        loss = lh.FunctionObjective(bumpy, zero)
        keep = lh.FunctionObjective(lambda theta, c=c: (theta - c).square().sum(), zero)
        level = 0.3 * float(keep(zero))
        try:
            curve = ablation_curve(loss, keep=keep, levels=[level], max_gradients=15, second_order=False)
        except lh.NotConvergedError as error:
            curve = error.result
        is_met = bool(curve.kkt.isfinite().all())
        if bool(curve.found.isfinite().any()):
            assert is_met
        if is_met:
            assert float(curve.kept) <= 1.0011 * level
        else:
            assert float(curve.multiplier_errors) == math.inf


def test_a_saddle_is_no_price():
    """At theta0 keep has no slope and a direction down; without noise nothing would leave it."""

    def keep_function(theta):
        return 1 - theta[0].square() + theta.pow(4).sum() + theta[1:].square().sum()

    zero = torch.zeros(3, dtype=torch.float64)
    loss = lh.FunctionObjective(lambda theta: 0.5 * theta.square().sum(), zero)
    keep = lh.FunctionObjective(keep_function, zero)
    with pytest.raises(lh.NotConvergedError, match="saddle") as found:
        ablation_curve(loss, keep=keep, distances=[0.5], bound=3.0, num_starts=1)
    assert float(found.value.result.curvatures) == pytest.approx(-2.0, rel=1e-3)
    curve = ablation_curve(loss, keep=keep, distances=[0.5], bound=3.0)
    assert float(curve.kept) == pytest.approx(1 - 0.25 + 0.0625, rel=1e-4)


def test_a_loss_that_is_not_finite_everywhere():
    """A wall at 1.05, where the logarithm ends: the search turns back and goes on."""
    zero = torch.zeros(3, dtype=torch.float64)
    loss = lh.FunctionObjective(lambda x: 0.5 * x.square().sum() - (1.05 - x).log().sum(), zero)
    keep = lh.FunctionObjective(lambda x: 0.5 * (x - 1).square().sum(), zero)
    curve = ablation_curve(loss, keep=keep, levels=[0.5, 0.01], gtol=1e-6)
    # By symmetry x = t (1, 1, 1) with 3 (1 - t)^2 / 2 = level.
    for level, found in zip((0.5, 0.01), curve.losses.tolist(), strict=True):
        t = 1 - math.sqrt(2 * level / 3)
        assert found == pytest.approx(1.5 * t * t - 3 * math.log(1.05 - t), rel=1e-5)


def test_what_is_reported_is_checked_before_the_search(network):
    loss, keep, conflict = network
    level = [0.9 * float(keep(keep.theta0))]
    with pytest.raises(ValueError, match="conflict is of a model with 37 parameters, expected 2"):
        ablation_curve(lh.toys.sloped_canyons(), keep=keep_y(), levels=[1.0], conflict=conflict)
    with pytest.raises(ValueError, match=r"report\['far'\].*different points"):
        ablation_curve(loss, keep=keep, levels=level, report={"far": keep.at(keep.theta0 + 1)})
    with pytest.raises(ValueError, match=r"report has the names \['first'\]"):
        ablation_curve(loss, keep=keep, levels=level, report={"first": keep}, conflict=conflict)
    with pytest.raises(TypeError, match="loss is a Linear"):
        relax_on_spheres(nn.Linear(1, 1), torch.ones(1, 2))
    with pytest.raises(ValueError, match="thetas has no rows"):
        relax_on_spheres(loss, torch.zeros(0, 37, dtype=torch.float64))


def test_more_gradients_are_not_taken_from_the_file_of_fewer(network, tmp_path):
    loss, keep, _ = network
    levels, file = [0.5 * float(keep(keep.theta0))], tmp_path / "curve.npz"
    with pytest.raises(lh.NotConvergedError):
        ablation_curve(loss, keep=keep, levels=levels, max_gradients=12, max_products=0, gtol=1e-9, resume=file)
    with pytest.raises(ValueError, match="another max_gradients"):
        ablation_curve(loss, keep=keep, levels=levels, max_products=0, gtol=1e-9, resume=file)


def test_one_weight_has_no_tangent():
    loss = lh.FunctionObjective(lambda theta: 0.5 * theta.square().sum(), torch.zeros(1, dtype=torch.float64))
    keep = lh.FunctionObjective(lambda theta: (theta - 1).square().sum(), torch.zeros(1, dtype=torch.float64))
    curve = ablation_curve(loss, keep=keep, levels=0.25, gtol=1e-8)
    assert float(curve.losses) == pytest.approx(0.125, rel=1e-6)
    assert math.isnan(float(curve.curvatures))
    assert float(ablation_curve(loss, keep=keep, levels=torch.tensor(0.1), gtol=1e-8).limits) == pytest.approx(0.1)


def test_relaxed_points_slide_back_or_stay():
    """On the flat cartoon's circle of radius 2 the axes are minima: a point at 10 degrees slides to the nearest one."""
    loss = lh.toys.flat_canyons()
    angles = torch.tensor([0.0, math.radians(10), math.radians(80)], dtype=torch.float64)
    points = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    found = relax_on_spheres(loss, points, gtol=1e-8, report={"again": loss})
    assert bool(found.is_converged.all())
    wanted = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert torch.allclose(found.thetas, wanted, atol=1e-6)
    chord = 2 * math.sin(math.radians(5))
    assert found.slides.tolist() == pytest.approx([0.0, chord, chord], abs=1e-6)
    assert float(found.losses.max()) < 1e-12
    assert found.others["again"][:, 0].tolist() == pytest.approx(found.losses_before.tolist())
    assert "slid by 0.00, 0.17, 0.17" in repr(found)
    with pytest.raises(ValueError, match="a row at theta0"):
        relax_on_spheres(loss, torch.zeros(1, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({}, ValueError, "levels and distances are both left out"),
        ({"levels": [1.0], "distances": [1.0]}, ValueError, "levels and distances are both given"),
        ({"levels": [1.0, 2.0]}, ValueError, "numbers that fall"),
        ({"levels": []}, ValueError, "numbers that fall"),
        ({"levels": [5.0]}, ValueError, "levels begins with 5, expected levels below the kept loss at theta0, 4"),
        ({"levels": [-1.0]}, ValueError, r"levels\[0\] is -1"),
        ({"levels": [0.0]}, ValueError, r"levels\[0\] is 0"),
        ({"levels": ["a"]}, TypeError, "levels is a list, expected a list of numbers"),
        ({"distances": [2.0, 1.0]}, ValueError, "numbers that grow"),
        ({"distances": [0.0]}, ValueError, r"distances\[0\] is 0"),
        ({"levels": [1.0], "bound": 1.0}, ValueError, "bound is 1.0"),
        ({"distances": [1.0], "bound": -1.0}, ValueError, "bound is -1"),
        ({"levels": [1.0], "num_starts": 0}, ValueError, "num_starts is 0"),
        ({"levels": [1.0], "initial_thetas": torch.zeros(1, 3)}, ValueError, "initial_thetas"),
        ({"levels": [1.0], "conflict": "images"}, TypeError, "conflict is"),
        ({"levels": [1.0], "on_failure": "ignore"}, ValueError, "on_failure is 'ignore'"),
        ({"levels": [1.0], "gtol": 0.0}, ValueError, "gtol is 0"),
    ],
)
def test_bad_input(keywords, kind, message):
    with pytest.raises(kind, match=message):
        ablation_curve(lh.toys.sloped_canyons(), keep=keep_y(), **keywords)


def test_losses_around_two_points_are_refused():
    with pytest.raises(ValueError, match="around different points"):
        ablation_curve(lh.toys.sloped_canyons(theta0=[1.0, 0.0]), keep=keep_y(), levels=[1.0])
