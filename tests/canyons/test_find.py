"""`find_canyons`: all minima on the shell are found, and their certificates are right.

Oracles: the cartoons and quadratics on paper; scans of circles and spheres, which list every minimum; the dense float64
Hessian by another route of differentiation (`testing.dense_hessian`).
"""

import dataclasses
import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

import lowhanging as lh
from canyon_scene import angle_in, minima_on_circle, two_cue_minimum, two_cues
from lowhanging.canyons.find import BranchSearch, _End
from lowhanging.canyons.shell import SphereShell
from lowhanging.canyons.sphere_search import SpherePoint, SphereSearch
from lowhanging.reproduce.themes.canyons import bowl_slope

PLANE = lh.Subspace(torch.eye(2, dtype=torch.float64))
UNRECORDED = "double backward"  # to record the products of a small function takes longer than to multiply


sloped_canyons = functools.cache(lh.toys.sloped_canyons)  # recorded once


@functools.cache
def cartoon(radius):
    return lh.find_canyons(
        sloped_canyons(), space=PLANE, metric="euclidean", levels=radius, num_starts=16, rtol=1e-12, progress=False
    )


@functools.cache
def bowl():
    """A quadratic of four known curvatures, and all of its space."""
    return lh.toys.quadratic([4.0, 3.0, 2.0, 1.0], seed=3), lh.Subspace(torch.eye(4, dtype=torch.float64))


@functools.cache
def sharpest(k):
    """Eigenvectors of the network's Hessian."""
    return lh.top_eigs(lh.hessian(two_cue_minimum().objective), k=k, progress=False)


def test_a_single_loss_that_is_evaluated_is_called_loss():
    loss = sloped_canyons()
    options = {"space": PLANE, "metric": "euclidean", "levels": 1.0, "num_starts": 4, "progress": False}
    found = lh.find_canyons(loss, evaluate=loss, **options)
    assert [*found.losses] == [*found[0].losses] == ["loss"]
    path = lh.trace_canyon(loss, found[0], to=1.1, evaluate=loss, progress=False)
    assert all([*point.losses] == ["loss"] for point in path.points)
    with pytest.raises(TypeError, match="evaluate is a list, expected a loss, or a mapping name -> loss"):
        lh.find_canyons(loss, evaluate=[loss], **options)


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 3.0])
def test_the_cartoon_has_four_canyons_with_the_certificates_of_paper(radius):
    found = cartoon(radius)
    assert len(found) == 4
    places = sorted(tuple(np.round(point.delta.numpy() / radius, 9) + 0.0) for point in found)
    assert places == [(-1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (1.0, 0.0)]
    for point in found:
        assert point.is_certified
        assert abs(float(point.delta.norm()) - radius) <= 1e-12 * radius
        assert point.plane_eigenvalue == pytest.approx(2 * radius**2 + 0.2 * math.exp(-(radius**2)), rel=1e-10)
        assert point.sphere_eigenvalue == pytest.approx(2 * radius**2, rel=1e-10)
        assert point.slope == pytest.approx(0.2 * radius * math.exp(-(radius**2)), rel=1e-9)
        assert point.rise == pytest.approx(0.1 * -math.expm1(-(radius**2)), rel=1e-12)
    assert [point.duplicate_of for point in found] == [None, 0, 0, 0]
    assert sum(point.num_starts for point in found) == 16
    assert found.num_lost == {f"{radius:g}": 0}


@pytest.mark.parametrize("radius", [0.3, 0.5, 1.0])
def test_diagonals_are_stationary_and_no_canyons(radius):
    found = lh.find_canyons(
        sloped_canyons(), space=PLANE, metric="euclidean", levels=radius, num_starts=48, stationary="all",
        progress=False,
    )  # fmt: skip
    assert [point.num_negative for point in found] == [0, 0, 0, 0, 1, 1, 1, 1]
    for point in found[4:]:
        assert abs(abs(float(point.delta[0])) - abs(float(point.delta[1]))) < 1e-7
        assert point.plane_eigenvalue == pytest.approx(0.2 * math.exp(-(radius**2)) - radius**2, rel=1e-7)
        assert point.sphere_eigenvalue == pytest.approx(-2 * radius**2, rel=1e-7)
        assert not point.is_certified
    # On the plane alone the diagonals would pass inside r* = sqrt(W(0.2)) = 0.41.
    assert (found[4].plane_eigenvalue > 0) == (radius < 0.410993885)


def test_the_cartoon_embedded_and_rotated_is_the_same():
    loss, space = lh.toys.embedded(sloped_canyons(), 30, seed=2, curvature=0.7)
    found = lh.find_canyons(loss, space=space, metric="euclidean", levels=0.5, num_starts=16, progress=False)
    assert len(found) == 4
    for point, flat in zip(found, cartoon(0.5), strict=True):
        for name in ("loss", "slope", "plane_eigenvalue", "sphere_eigenvalue", "relative_rise"):
            assert getattr(point, name) == pytest.approx(getattr(flat, name), abs=1e-10)
        assert abs(float(point.delta.norm()) - 0.5) < 1e-12
        assert float(space.reject(point.delta).norm()) < 1e-12


def test_flat_canyons_have_no_slope():
    found = lh.find_canyons(
        lh.toys.flat_canyons(), space=PLANE, metric="euclidean", levels=(0.1, 1.0), num_starts=16, progress=False
    )
    assert [len(found.at_level(level)) for level in (0.1, 1.0)] == [4, 4]
    for point in found:
        assert point.slope == pytest.approx(0.0, abs=1e-8 * point.level)
        assert point.sphere_eigenvalue == pytest.approx(2 * point.level**2, rel=1e-9)
        assert math.isnan(point.relative_rise)


def test_a_quadratic_on_spheres_has_only_its_softest_axis():
    loss, space = bowl()
    found = lh.find_canyons(loss, space=space, metric="euclidean", levels=1.0, num_starts=16, progress=False)
    assert len(found) == 2
    assert float(found[0].delta @ found[1].delta) == pytest.approx(-1.0)
    for point in found:
        assert point.is_certified
        assert point.is_trivial
        assert point.softest_overlap == pytest.approx(1.0)
        assert point.sphere_eigenvalue == pytest.approx(1.0)
    assert found.canyons == ()
    everything = lh.find_canyons(
        loss, space=space, metric="euclidean", levels=1.0, num_starts=96, stationary="all", progress=False
    )
    assert len(everything) == 8
    assert all(point.plane_eigenvalue > 0.9 for point in everything)  # all pass the plane test
    assert [point.sphere_eigenvalue > 0 for point in everything] == [True] * 2 + [False] * 6
    assert [point.num_negative for point in everything] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_quadratic_on_energy_shells_has_nothing_isolated():
    loss, space = bowl()
    found = lh.find_canyons(loss, space=space, levels=(0.1, 2.0), num_starts=8, progress=False)
    for point in found:
        assert point.relative_rise == pytest.approx(1.0, abs=1e-8)
        assert abs(point.shell_eigenvalue) <= point.shell_error
        assert not point.is_certified
    assert "no isolated canyon" in repr(found)


@pytest.mark.parametrize(
    ("numbers", "radius", "num"),
    [((0, 1), 3.0, 2), ((4, 5), 2.0, 2), ((4, 5), 3.0, 3), ((2, 3), 2.0, 2), ((2, 3), 3.0, 1), ((2, 3), 8.0, 2)],
)
def test_every_minimum_of_a_scan_of_the_circle_is_found(numbers, radius, num):
    """Before and after births: the number of minima differs between radii of one plane."""
    loss = two_cue_minimum().objective
    plane = lh.Subspace(sharpest(6).vectors[list(numbers)])
    expected = minima_on_circle(loss, plane, radius)
    found = lh.find_canyons(loss, space=plane, metric="euclidean", levels=radius, num_starts=40, progress=False)
    assert len(expected) == num
    assert sorted(angle_in(plane, point.delta) for point in found) == pytest.approx(expected, abs=2 * math.pi / 720)
    assert all(point.is_certified for point in found)


@pytest.mark.parametrize("metric", ["euclidean", "hessian"])
def test_every_minimum_of_a_scan_of_the_sphere_is_found(metric):
    """2-sphere of a 3-D subspace: 3,000 scattered points, those below their neighbours refined by Nelder-Mead."""
    loss = two_cue_minimum().objective
    basis = sharpest(6).vectors[3:]
    found = lh.find_canyons(
        loss, space=lh.Subspace(basis), metric=metric, levels=3.0 if metric == "euclidean" else 0.08, num_starts=32,
        progress=False,
    )  # fmt: skip
    heights = torch.linspace(-1, 1, 3001, dtype=torch.float64)[:-1] + 1 / 3000
    turns = torch.arange(3000) * math.pi * (3 - math.sqrt(5))  # Fibonacci's lattice
    rows = torch.stack([(1 - heights**2).sqrt() * turns.cos(), (1 - heights**2).sqrt() * turns.sin(), heights], 1)
    curvatures = torch.stack([torch.stack([a @ loss.hvp(loss.theta0, b) for b in basis]) for a in basis])

    def on_shell(ways):
        ways = ways / ways.norm(dim=1, keepdim=True)
        if metric == "euclidean":
            return 3.0 * ways @ basis
        return (0.16 / ((ways @ curvatures) * ways).sum(1, keepdim=True)).sqrt() * ways @ basis

    values = loss.evaluate_many(loss.theta0 + on_shell(rows))[0]
    near = (rows @ rows.T).topk(9).indices[:, 1:]
    scanned = []
    for i in torch.nonzero((values[:, None] < values[near]).all(1))[:, 0]:
        refined = scipy.optimize.minimize(
            lambda w: float(loss(loss.theta0 + on_shell(torch.from_numpy(w)[None])[0])), rows[i].numpy(),
            method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-12},
        )  # fmt: skip
        delta = on_shell(torch.from_numpy(refined.x)[None])[0]
        if not any(float(delta @ other) > 0.999 * float(delta.norm() * other.norm()) for other in scanned):
            scanned.append(delta)
    assert len(scanned) == len(found) >= 2
    for point in found:
        assert max(float(point.delta @ d / (point.delta.norm() * d.norm())) for d in scanned) > 1 - 1e-5


def test_certificates_are_those_of_the_dense_hessian():
    minimum = two_cue_minimum()
    loss = minimum.objective
    space = sharpest(5).subspace()
    for metric, level in (("euclidean", 2.0), ("hessian", 0.05)):
        found = lh.find_canyons(
            loss, space=space, metric=metric, levels=level, num_starts=8, full_certificates=True, progress=False
        )
        B = space.basis
        H0 = lh.testing.dense_hessian(minimum.unanchored).double() + 1e-2 * torch.eye(44, dtype=torch.float64)
        M = B @ H0 @ B.T
        assert len(found) >= 1
        for point in found:
            H = lh.testing.dense_hessian(minimum.unanchored.at(point.theta)).double() + 1e-2 * torch.eye(44).double()
            n, g = point.delta / point.delta.norm(), loss.gradient(point.theta)
            w = B @ point.delta
            # Within the space: on the complement of n, and relative to M on the tangent space of M delta.
            across = torch.linalg.svd((w / w.norm())[None])[2][1:]
            plane = float(torch.linalg.eigvalsh(across @ B @ H @ B.T @ across.T)[0])
            assert point.plane_eigenvalue == pytest.approx(plane, abs=1e-9)
            assert point.sphere_eigenvalue == pytest.approx(plane - float(n @ g) / point.radius, abs=1e-9)
            if metric == "hessian":
                tangent = torch.linalg.svd((M @ w)[None])[2][1:]
                inner = torch.linalg.cholesky(tangent @ M @ tangent.T).inverse()
                shell = inner @ tangent @ (B @ H @ B.T - point.multiplier * M) @ tangent.T @ inner.T
                assert point.shell_eigenvalue == pytest.approx(float(torch.linalg.eigvalsh(shell)[0]), abs=1e-8)
                assert float((B @ g - point.multiplier * M @ w).norm()) < 1e-7
                assert point.energy == pytest.approx(level, rel=1e-12)
                assert float(w @ M @ w) / 2 == pytest.approx(level, rel=1e-9)
            # In all of weight space.
            across = torch.linalg.svd(n[None])[2][1:]
            full = float(torch.linalg.eigvalsh(across @ H @ across.T)[0])
            assert point.full_plane_eigenvalue == pytest.approx(full, abs=2e-4)
            assert point.full_error < 2e-4
            assert point.full_sphere_eigenvalue == pytest.approx(full - float(n @ g) / point.radius, abs=2e-4)
            assert point.full_residual == pytest.approx(float((g - (n @ g) * n).norm()), rel=1e-6)
            # The anchor is a tilt: n.g with it is n.g without it plus epsilon n.(theta - anchor).
            alone = float(n @ minimum.unanchored.gradient(point.theta))
            assert point.slope_without_anchor == pytest.approx(alone, abs=1e-9)
            assert point.slope == pytest.approx(float(n @ g), abs=1e-9)


@functools.cache
def quartic():
    mix = torch.randn(6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return lh.FunctionObjective(
        lambda t: 0.5 * (mix @ t).square().sum() - 0.2 * (mix @ t).pow(3).sum() + 0.1 * (mix @ t).pow(4).sum(),
        torch.zeros(6, dtype=torch.float64), engine=UNRECORDED,
    )  # fmt: skip


@pytest.mark.parametrize("metric", ["euclidean", "hessian"])
def test_the_full_space_is_the_subspace_of_everything(metric):
    """By products and Lanczos, against the explicit Hessian of a basis of all dimensions."""
    loss, min_curvature = quartic(), 1e-6 if metric == "hessian" else None
    everything = lh.Subspace(torch.eye(6, dtype=torch.float64))
    options = {"metric": metric, "levels": 0.4, "num_starts": 24, "rtol": 1e-7, "progress": False}
    dense = lh.find_canyons(loss, space=everything, **options)
    full = lh.find_canyons(loss, space="full", min_curvature=min_curvature, **options)
    assert full.space is None
    assert len(full) >= 2
    for a in full:
        b = min(dense, key=lambda other, a=a: float((other.delta - a.delta).norm()))
        assert a.loss == pytest.approx(b.loss, rel=1e-9)
        assert float((a.delta - b.delta).norm()) < 1e-4
        assert a.shell_eigenvalue == pytest.approx(
            b.shell_eigenvalue, abs=2e-3 * abs(b.shell_eigenvalue) + a.shell_error
        )
        assert a.plane_eigenvalue == pytest.approx(b.plane_eigenvalue, rel=1e-2)
        assert a.num_negative is None


def test_full_certificates_where_the_bowl_is_flat():
    """X^2 y^2 has no curvature at theta0 to guess a scale from, and on an axis no direction but n below 2 r^2."""
    found = lh.find_canyons(
        lh.toys.flat_canyons(), space=PLANE, metric="euclidean", levels=2.0, num_starts=8, full_certificates=True,
        progress=False,
    )  # fmt: skip
    assert len(found) >= 2
    for point in found:
        assert point.full_plane_eigenvalue == pytest.approx(8.0)
        assert point.full_sphere_eigenvalue == pytest.approx(8.0)


@pytest.mark.parametrize("spectrum", [[4.0, 1.0, 0.5, 1e-2, 5e-3, 1e-3], [2.0, 1.0, 0.5, -1.0]])
def test_a_quadratic_has_no_canyon_in_the_full_space_either(spectrum):
    """Its directions below the smallest curvature of the metric rise by less than their level: that is no canyon."""
    found = lh.find_canyons(lh.toys.quadratic(spectrum, seed=1), space="full", levels=0.3, num_starts=6, progress=False)
    assert len(found) >= 2
    assert found.canyons == ()
    for point in found:
        assert point.rise == pytest.approx(point.energy, rel=1e-6)


def rounded_loss(center, dtype):
    """A quadratic about weights that are not zero: what is isolated on its energy shells is rounding."""
    scales = torch.tensor([4.0, 3.0, 2.0, 1.5, 1.2, 1.0], dtype=dtype)
    return lh.FunctionObjective(lambda t: 0.5 * (scales * (t - center).square()).sum(), center, engine=UNRECORDED)


@pytest.mark.parametrize(("dtype", "energy"), [(torch.float64, 0.1), (torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_rounding_is_not_certified(dtype, energy):
    center = 10 * torch.randn(6, generator=torch.Generator().manual_seed(2), dtype=dtype)
    found = lh.find_canyons(
        rounded_loss(center, dtype), space=lh.Subspace(torch.eye(6, dtype=dtype)), levels=energy, num_starts=6,
        rtol=1e-3, progress=False,
    )  # fmt: skip
    assert len(found)
    assert not any(point.is_certified for point in found)


def test_levels_below_the_rounding_of_the_weights_are_refused():
    center = 10 * torch.randn(6, generator=torch.Generator().manual_seed(2))
    loss = rounded_loss(center, torch.float32)
    with pytest.raises(ValueError, match="levels has 1e-12, displacements of at most"):
        lh.find_canyons(loss, space=lh.Subspace(torch.eye(6)), levels=1e-12, num_starts=2, progress=False)


def polar(function):
    """A loss of two weights from r^2 and the unit vector (c, s)."""

    def loss(t):
        r2 = t.square().sum()
        c, s = t / r2.clamp_min(1e-30).sqrt()
        return r2 * (1 + function(r2, c, s))

    return lh.FunctionObjective(loss, torch.tensor([1e-9, 0.0], dtype=torch.float64), engine=UNRECORDED)


@pytest.mark.filterwarnings("ignore:theta0 is no minimum")
def test_narrow_and_neighbouring_minima_are_found():
    """Two minima 16 degrees apart, their losses 7e-4 of the rise from each other, in 1 / 8 of the circle."""
    loss = polar(lambda r2, c, s: 2 * (20 * (s.square() - 0.0196).square() + 0.06 * 0.0196 * s) + 1 - c)
    found = lh.find_canyons(loss, space=PLANE, metric="euclidean", levels=1.0, num_starts=40, rtol=1e-7, progress=False)
    expected = minima_on_circle(loss, PLANE, 1.0, num=7200)
    assert len(expected) >= 2
    assert sorted(angle_in(PLANE, point.delta) for point in found) == pytest.approx(expected, abs=2e-3)


def test_a_loss_that_overflows_is_said_to():
    loss = lh.FunctionObjective(
        lambda t: torch.exp(t.square().sum()) + t[0] ** 4 - 1, torch.zeros(2, dtype=torch.float64), engine=UNRECORDED
    )
    with pytest.raises(lh.NotConvergedError, match="the loss is not finite at 4 ends"):
        lh.find_canyons(loss, space=PLANE, metric="euclidean", levels=40.0, num_starts=4, progress=False)


def test_a_saddle_is_no_minimum_to_start_from():
    with pytest.warns(RuntimeWarning, match="its smallest curvature is -1"):
        lh.find_canyons(
            lh.toys.quadratic([2.0, -1.0]), space=PLANE, metric="euclidean", levels=1.0, num_starts=2, progress=False
        )


def test_the_smallest_curvature_clips_the_metric_of_the_full_space():
    loss = lh.toys.quadratic([4.0, 1.0, 1e-3, 1e-4], seed=1)
    found = lh.find_canyons(loss, space="full", min_curvature=0.5, levels=0.3, num_starts=6, progress=False)
    Q = lh.testing.dense_hessian(loss)
    values, vectors = torch.linalg.eigh(Q)
    M = vectors @ torch.diag(values.clamp_min(0.5)) @ vectors.T
    assert len(found) == 2  # both ways along the softest axis
    for point in found:
        assert float(point.delta @ M @ point.delta) / 2 == pytest.approx(0.3, rel=1e-6)
    assert found.min_curvature == 0.5
    assert found.canyons == ()  # a quadratic has none, whatever the metric
    assert [point.energy for point in found] == pytest.approx([0.3 * 1e-4 / 0.5] * 2, rel=1e-4)  # H0's, not M's
    assert [point.relative_rise for point in found] == pytest.approx([1.0, 1.0], rel=1e-6)


def test_start_counts_budgets_and_determinism():
    loss = two_cue_minimum().objective
    space = sharpest(10).subspace()
    counts = {"gradients": 0, "products": 0}

    class Counted:
        """The loss, counting what is asked of it."""

        def __getattr__(self, name):
            return getattr(loss, name)

        theta0 = property(lambda self: loss.theta0)

        def __call__(self, theta):
            return loss(theta)

        def value_and_gradient(self, theta):
            counts["gradients"] += 1
            return loss.value_and_gradient(theta)

        def gradient(self, theta):
            counts["gradients"] += 1
            return loss.gradient(theta)

        def hvp(self, theta, v):
            counts["products"] += 1
            return loss.hvp(theta, v)

    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = lh.find_canyons(Counted(), space=space, levels=0.1, num_starts=12, rtol=1e-4, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (first.num_gradients, first.num_products) == (counts["gradients"], counts["products"])
    assert sum(point.num_gradients for point in first) <= 30 * len(first)  # as docs/choosing.md says
    assert max(point.num_products for point in first) <= 25
    again = lh.find_canyons(loss, space=space, levels=0.1, num_starts=12, rtol=1e-4, progress=False)
    assert len(again) == len(first)
    assert all(torch.equal(a.delta, b.delta) and a.loss == b.loss for a, b in zip(first, again, strict=True))
    with pytest.raises(
        lh.NotConvergedError, match=r"spent its 60 gradients after . of 12 starts at level 0.1"
    ) as caught:
        lh.find_canyons(
            loss, space=space, levels=(0.1, 0.2), num_starts=12, rtol=1e-4, max_gradients=60, progress=False
        )
    partial = caught.value.result
    assert not partial.is_complete
    assert "INCOMPLETE" in repr(partial)
    assert 0 < sum(point.num_starts for point in partial) < 12


def test_aimed_starts_evaluated_losses_and_the_default_space():
    minimum = two_cue_minimum()
    inputs, targets = two_cues()
    first, last = inputs.clone(), inputs.clone()
    first[:, 2:], last[:, :2] = 0.0, 0.0
    model = minimum.objective.model_at(minimum.theta)
    cues = {"first": lh.Objective(model, (first, targets)), "last": lh.Objective(model, (last, targets))}
    aim = lh.top_hessian_eigs(cues["first"], k=1, progress=False).vectors[0]
    found = lh.find_canyons(
        minimum.objective,
        levels=0.1,
        num_starts=4,
        initial_directions={"first": aim},
        evaluate=cues,
        rtol=1e-6,
        progress=False,
    )
    assert found.space.dim == 30
    assert found.num_starts == 6
    assert len(found) >= 2
    own = sharpest(10).subspace()
    assert own.overlap(found.space) == pytest.approx(1.0, abs=1e-6)
    for point in found:
        for name, cue in cues.items():
            assert point.losses[name] == float(cue(point.theta))
            assert point.accuracies[name] == cue.evaluate(point.theta)[1]
        expected = math.log(point.losses["first"] / point.losses["last"])
        assert point.asymmetry("first", "last") == pytest.approx(expected)
        assert point.circuit is None
    assert found.losses["first"] == float(cues["first"](minimum.theta))
    with pytest.raises(ValueError, match="name is 'other', expected one of"):
        found[0].asymmetry("first", "other")


@pytest.mark.parametrize("losses", [(-1, -2), (1, -2), (0, 1), (1, 0), (math.nan, 1), (math.inf, 1)])
def test_losses_that_have_no_logarithm_have_no_asymmetry(losses):
    """Two negative ones have a positive ratio, whose logarithm means nothing."""
    point = dataclasses.replace(cartoon((0.5,))[0], losses=dict(zip("ab", losses, strict=True)))
    for pair in ("ab", "ba"):
        with pytest.raises(ValueError, match=r"losses\['.'\] is .*, expected a positive, finite loss.\n.*point.losses"):
            point.asymmetry(*pair)
    tiny = dataclasses.replace(point, losses={"a": 1e-320, "b": 1e300})
    assert tiny.asymmetry("a", "b") == pytest.approx(math.log(1e-320) - math.log(1e300))  # the ratio is 0 in float64


def test_a_set_survives_being_saved(tmp_path):
    found = cartoon((0.5, 1.0))
    loaded = lh.canyons.CanyonSet.load(found.save(tmp_path / "canyons"))
    assert repr(loaded) == repr(found)
    assert torch.equal(loaded.space.basis, found.space.basis)
    for a, b in zip(loaded, found, strict=True):
        for field in dataclasses.fields(a):
            if field.name not in ("delta", "theta", "space"):
                assert getattr(a, field.name) == getattr(b, field.name)
        assert torch.equal(a.delta, b.delta)
        assert torch.equal(a.theta, b.theta)


def test_nothing_of_the_users_is_changed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Sigmoid(), nn.Linear(6, 2)).double()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    loss = lh.Objective(model, two_cues())
    space = lh.Subspace.span(torch.randn(3, loss.num_params, dtype=torch.float64))
    state = torch.random.get_rng_state()
    with pytest.warns(RuntimeWarning, match="theta0 is no minimum of the loss within the space"):
        lh.find_canyons(loss, space=space, metric="euclidean", levels=0.5, num_starts=4, progress=False)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])
    assert all(weight.grad is None for weight in model.parameters())


def test_float32_reaches_its_tolerance():
    loss = two_cue_minimum().unanchored
    model = loss.model_at(loss.theta0).float()
    inputs, targets = two_cues()
    coarse = lh.polish(lh.Objective(model, (inputs.float(), targets)), anchor=1e-2, gtol=1e-5, progress=False).objective
    space = lh.top_eigs(lh.hessian(coarse), k=4, progress=False).subspace()
    found = lh.find_canyons(coarse, space=space, metric="euclidean", levels=2.0, num_starts=8, progress=False)
    assert found.rtol == 1e-4
    assert len(found) >= 2
    for point in found:
        assert point.is_certified
        assert point.theta.dtype == torch.float32
        assert abs(float(point.delta.norm()) - 2.0) < 1e-12


def test_slope_of_the_bowl_is_that_of_the_losses_quadratic():
    minimum = two_cue_minimum()
    loss, free = minimum.objective, minimum.unanchored
    space = lh.top_eigs(lh.hessian(loss), k=4, progress=False).subspace()
    found = lh.find_canyons(loss, space=space, metric="euclidean", levels=2.0, num_starts=6, progress=False)
    for point in found:
        n = point.delta / point.radius
        quadratic = free.gradient(minimum.theta) + free.hvp(minimum.theta, point.delta)
        assert bowl_slope(point) == pytest.approx(float(n @ quadratic), rel=1e-6)


# Which ends are one branch, and which branches are copies: on ends made by hand, as a search hardly ever has the rarer
# cases.


@pytest.fixture
def search() -> BranchSearch:
    loss = lh.toys.quadratic([3.0, 2.0, 1.0])
    shell = SphereShell(loss, lh.Subspace(torch.eye(3, dtype=torch.float64)))
    return BranchSearch(shell, 1.0, SphereSearch(shell, rtol=1e-6), loss_tolerance=0.0)


def end(direction, value: float, tangent_gradient, num_starts: int = 1, source: str = "", **tangent) -> _End:
    """On the unit sphere; the gradient has a slope of 1 along the direction."""
    y = np.array(direction) / np.linalg.norm(direction)
    point = SpherePoint(y, value, y + np.array(tangent_gradient))
    return _End(point, num_starts, source, 0, tangent=SimpleNamespace(**tangent) if tangent else None)


def test_the_end_closest_to_stationary_speaks_for_its_branch_and_all_starts_count(search):
    one = [
        end([1, 0, 0], 1.0, [0, 1e-3, 0], 3, "far"),
        end([1, 1e-6, 0], 1.0, [0, 1e-9, 0], 2, "near"),
        end([1, 0, 1e-6], 1.0, [0, 1e-5, 0], 4, "between"),
    ]
    mirrored = end([-1, 0, 0], 1.0, [0, 0, 0], 5, "mirrored")  # another canyon, though on the same line
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        found = search.joined([*(one[i] for i in order), mirrored], 1)
        assert sorted((group.source, group.num_starts) for group in found) == [("mirrored", 5), ("near", 9)]
        one[1].num_starts = 2


def test_ends_of_another_loss_are_another_branch(search):
    ends = [end([1, 0, 0], 1.0, [0, 0, 0]), end([1, 1e-6, 0], 1.001, [0, 1e-9, 0])]
    assert len(search.joined(ends, 1)) == 2
    ends[1].point = SpherePoint(ends[1].point.y, 1.00001, ends[1].point.gradient)  # within 1e-4 of the rise
    assert len(search.joined(ends, 1)) == 1


def test_a_copy_has_the_same_rise_the_same_slope_and_the_same_certificates(search):
    same = {"matrix": np.eye(3), "values": np.array([0.5, 1.0]), "error": 0.0}
    first = end([1, 0, 0], 1.0, [0, 0, 0], **same)
    copy = end([0, 1, 0], 1.0, [0, 0, 0], **same)
    higher = end([0, 1, 0], 1.01, [0, 0, 0], **same)
    softer = end([0, 1, 0], 1.0, [0, 0, 0], **{**same, "values": np.array([0.4, 1.0])})
    steeper = end([0, 1, 0], 1.0, [0, 0.01, 0], **same)
    assert search.duplicate_of([first, copy], 1) == 0
    for other in (higher, softer, steeper):
        assert search.duplicate_of([first, other], 1) is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"levels": 0.0}, ValueError, r"levels is 0, expected a finite number in \(0"),
        ({"levels": ()}, ValueError, "levels are (), expected one or several"),
        ({"levels": (0.5, 0.5)}, ValueError, "expected one or several different numbers"),
        ({"metric": "sphere"}, ValueError, "metric is 'sphere', expected one of 'hessian', 'euclidean'"),
        ({"space": "all"}, TypeError, "space is 'all', expected a Subspace or \"full\""),
        ({"space": lh.Subspace(torch.eye(1, 2).double())}, ValueError, "expected a Subspace of at least 2 of 2"),
        ({"num_starts": 0}, ValueError, "num_starts is 0, expected at least one, or initial_directions= vectors"),
        (
            {"initial_directions": [torch.ones(2)]},
            TypeError,
            "initial_directions is a list, expected a mapping name -> vector",
        ),
        ({"initial_directions": {"a": torch.ones(3)}}, ValueError, r"initial_directions\['a'\] has shape \(3,\)"),
        ({"evaluate": {"a": 3}}, TypeError, r"evaluate\['a'\] is an int, expected an objective"),
        ({"conflict": 3}, TypeError, "conflict is an int, expected a ConflictControl"),
        ({"space": "full", "stationary": "all"}, ValueError, "stationary is 'all' in the full space"),
        ({"rtol": 0.0}, ValueError, r"rtol is 0, expected a finite number in \(0, 0.1\)"),
        (
            {"min_curvature": -1.0, "metric": "hessian"},
            ValueError,
            r"min_curvature is -1, expected a finite number in \(0",
        ),
        ({"min_curvature": 1.0}, ValueError, "min_curvature is 1.0 with metric='euclidean'"),
        (
            {"initial_directions": {"a": torch.ones(2), "-a": torch.ones(2)}},
            ValueError,
            "initial_directions has the names 'a' and '-a'",
        ),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    given = {"space": PLANE, "metric": "euclidean", "levels": 0.5, "progress": False, **options}
    with pytest.raises(error, match=message.replace("()", r"\(\)")):
        lh.find_canyons(sloped_canyons(), **given)


def test_energy_shells_need_a_bowl():
    with pytest.raises(ValueError, match="space has curvatures from 0 down to 0 at theta0, expected positive ones"):
        lh.find_canyons(lh.toys.flat_canyons(), space=PLANE, levels=0.1, progress=False)
    with pytest.raises(ValueError, match=r"Pass min_curvature=0\.04"):
        lh.find_canyons(lh.toys.quadratic([4.0, -1.0]), space=PLANE, levels=0.1, progress=False)


def test_a_minimum_is_taken_for_its_objective():
    with pytest.raises(TypeError, match="loss is a Minimum, expected an objective"):
        lh.find_canyons(two_cue_minimum(), levels=0.1)
