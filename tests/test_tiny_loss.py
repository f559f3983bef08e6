"""Networks that are trained until float32 hardly resolves their loss: what is accepted, and what is said of it.

At a cross-entropy of 1e-7 the derivatives by the logits, p - 1, are lost in the rounding of p, and products of the
Hessian are off by percents.

Oracles: the dense Hessian in float64 by torch.func of the same weights; the same tools on `loss.double()`.
"""

from __future__ import annotations

import functools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowhanging as lh
from lowhanging.plots.style import blank_figure

K = 8
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(60, 6, generator=GENERATOR)
Y = X[:, :3].argmax(1)
HALVES = {"first": (X[:30], Y[:30]), "second": (X[30:], Y[30:])}


@functools.cache
def trained(goal: float) -> nn.Module:
    """By normalized gradient descent: the tail of a plain one takes ten thousand steps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    parameters = list(model.parameters())
    for _ in range(500):
        loss = F.cross_entropy(model(X), Y)
        slopes = torch.autograd.grad(loss, parameters)
        norm = torch.cat([slope.flatten() for slope in slopes]).norm()
        with torch.no_grad():
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter -= 0.1 * slope / norm
        if loss.item() < goal:
            return model
    raise AssertionError("not trained")


def losses(goal: float) -> dict[str, lh.Objective]:
    return {name: lh.Objective(trained(goal), data) for name, data in HALVES.items()}


def exact_hessian(loss: lh.Objective) -> Tensor:
    """(p, p), in float64."""
    return torch.func.hessian(loss.in_double())(loss.theta0.double())


@pytest.mark.parametrize("goal", [1e-5, 1e-6, 1e-7])
@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_a_search_without_a_tol_ends_at_the_float32_floor_and_says_so(goal: float, which: Any) -> None:
    loss = lh.Objective(trained(goal), (X, Y))
    pairs = lh.top_hessian_eigs(loss, k=K, which=which)
    assert pairs.is_converged.all()
    assert pairs.is_at_floor == (pairs.tol > 1e-4)
    assert ("AT THE FLOAT32 FLOOR: tol" in repr(pairs)) == pairs.is_at_floor
    values = torch.linalg.eigvalsh(exact_hessian(loss))
    expected = {"LA": values.flip(0)[:K], "SA": values[:K], "LM": values.flip(0)[:K]}[which]
    # A bound is on the distance to some eigenvalue; the sorted ones move by no more than the error of the matrix.
    assert ((pairs.values - expected).abs() <= pairs.bounds.max()).all()
    if goal == 1e-7:
        assert pairs.is_at_floor


def test_a_tol_that_is_given_is_met_or_an_error() -> None:
    loss = lh.Objective(trained(1e-7), (X, Y))
    with pytest.raises(lh.NotConvergedError, match=r"tol is 0\.0001, below the float32 floor of") as error:
        lh.top_hessian_eigs(loss, k=K, tol=1e-4)
    assert not error.value.result.is_at_floor
    suggested = float(str(error.value).split("expected at least ")[1].split(".\n")[0])
    found = lh.top_hessian_eigs(loss, k=K, tol=suggested)
    assert found.is_converged.all()
    assert not found.is_at_floor
    exact = lh.top_hessian_eigs(loss.double(), k=K)
    assert exact.tol == 1e-4
    assert not exact.is_at_floor


@pytest.mark.parametrize("noise", [3e-3, 1e-1])
def test_noise_that_is_no_rounding_is_not_followed(noise: float) -> None:
    """A map that is drawn anew at each product, as with dropout, in float32."""
    A = torch.diag(torch.linspace(1, 100, 60))
    generator = torch.Generator().manual_seed(0)

    class Noisy:
        shape, dtype, device = (60, 60), torch.float32, torch.device("cpu")

        def __matmul__(self, v: Tensor) -> Tensor:
            return A @ v + noise * v.norm() * torch.randn(60, generator=generator)

    with pytest.raises((lh.NotConvergedError, ValueError), match=r"below the float32 floor|antisymmetric"):
        lh.top_eigs(Noisy(), k=3)


def test_a_resumed_search_ends_at_the_same_floor(tmp_path: Path) -> None:
    loss = lh.Objective(trained(1e-7), (X, Y))
    found = [lh.top_hessian_eigs(loss, k=K, resume=tmp_path / "search.npz") for _ in range(2)]
    assert found[0].is_at_floor
    assert found[1].is_at_floor
    assert torch.equal(found[0].values, found[1].values)


def test_a_map_that_is_really_not_symmetric_is_refused_at_a_tiny_loss_too() -> None:
    """Rounding is put down to rounding only where float64 says so: here both precisions are as crooked."""
    loss = lh.Objective(trained(1e-6), (X, Y))
    H, p = lh.hessian(loss), loss.num_params
    skew = torch.triu(torch.ones(p, p), 1)
    skew = 0.5 * (skew - skew.T) / p * float(torch.linalg.eigvalsh(exact_hessian(loss))[-1])

    class Crooked:
        shape, dtype, device = H.shape, H.dtype, H.device

        def __matmul__(self, v: Tensor) -> Tensor:
            return H @ v + skew @ v

        def exact_products(self, rows: Tensor, *, by_differences: bool) -> Tensor:
            return H.double().exact_products(rows, by_differences=by_differences) + rows @ skew.double().T

    with pytest.raises(ValueError, match="H has an antisymmetric part"):
        lh.top_eigs(Crooked(), k=K)


def test_the_report_names_the_loss_that_failed_and_holds_the_others() -> None:
    tiny = losses(1e-7)
    mixed = {"first": tiny["first"].double(), "second": tiny["second"]}
    u = lh.random_direction(mixed["first"])
    with pytest.raises(lh.NotConvergedError, match=r"^losses\['second'\]: tol is 0.0001, below the float32") as error:
        lh.steering_report(u, mixed, k=K, tol=1e-4)
    report = error.value.result
    alone = lh.steering_report(u, {"first": mixed["first"]}, k=K)
    assert torch.equal(report.eigenvalues["first"], alone.eigenvalues["first"])
    assert report.quotients["first"] == alone.quotients["first"]
    assert list(report.failures) == ["second"]
    assert report.eigenvalues["second"].isnan().all()
    assert report.overlaps["second"].isnan().all()
    assert report.position_text("second") == "?"
    assert math.isfinite(report.quotients["second"])  # it takes no eigenpairs
    assert "second: tol is 0.0001" in str(report)
    lh.plots.overlaps(report, blank_figure(4, 3, dpi=60).subplots())
    with pytest.warns(RuntimeWarning, match=r"losses\['second'\]: tol") as caught:
        warned = lh.steering_report(u, mixed, k=K, tol=1e-4, on_failure="warn")
    assert [each.filename for each in caught] == [__file__]
    assert warned.failures == report.failures


def test_steering_tools_follow_the_floor_and_agree_with_float64() -> None:
    tiny = losses(1e-7)
    exact = {name: loss.double() for name, loss in tiny.items()}
    u = lh.random_direction(tiny["first"])
    report, other = lh.steering_report(u, tiny, k=K), lh.steering_report(u, exact, k=K)
    assert report.failures == {}
    assert all(tol > 1e-4 for tol in report.tols.values())
    assert other.tols == {"first": 1e-4, "second": 1e-4}
    assert "eigenpairs to a tol coarser than 1e-04: first" in str(report)
    for name in tiny:
        assert report.eigenvalues[name][0] == pytest.approx(float(other.eigenvalues[name][0]), rel=0.1)
    found, wanted = (
        lh.steering_direction(preserve=these["first"], ablate=these["second"], k=2) for these in (tiny, exact)
    )
    assert abs(float(found.double() @ wanted)) > 0.95
    space = lh.steering_subspace(preserve=tiny["first"], ablate=tiny["second"], k=2, num_directions=2)
    assert space.dim == 2


@pytest.mark.parametrize("metric", ["hessian", "gauss_newton"])
def test_a_ratio_follows_the_floor(metric: Any) -> None:
    tiny = losses(1e-5)
    exact = {name: loss.double() for name, loss in tiny.items()}
    options: dict[str, Any] = {"method": "ratio", "k": K, "metric": metric}
    found, wanted = (
        lh.steering_direction(preserve=these["first"], ablate=these["second"], **options) for these in (tiny, exact)
    )
    assert float(found.double() @ wanted) > 0.99
    with pytest.raises(lh.NotConvergedError, match=r"^(preserve|ablate over preserve): "):
        lh.steering_direction(preserve=tiny["first"], ablate=tiny["second"], tol=1e-5, **options)


def test_generalized_pairs_say_that_they_are_at_the_floor() -> None:
    tiny = losses(1e-5)
    shift = 0.01 * lh.top_hessian_eigs(tiny["first"].double(), k=1).scale
    maps = [lh.gauss_newton(loss) for loss in tiny.values()]
    found = lh.curvature.generalized_eigs(maps[1], maps[0], shift=shift)
    assert found.is_at_floor == (found.tol > 1e-4)
    assert ("AT THE FLOAT32 FLOOR" in repr(found)) == found.is_at_floor
    assert float(found.residuals.max()) <= 2 * found.tol
    exact = lh.curvature.generalized_eigs(maps[1].double(), maps[0].double(), shift=shift)
    assert float(found.values[0]) == pytest.approx(float(exact.values[0]), rel=1e-2)


def test_directions_name_the_loss_that_missed_a_tol() -> None:
    tiny = losses(1e-7)
    mixed = {"fine": tiny["first"].double(), "coarse": tiny["second"]}
    for preserve, ablate, name in (("fine", "coarse", "ablate"), ("coarse", "fine", "preserve")):
        with pytest.raises(lh.NotConvergedError, match=f"^{name}: tol is 0.0001, below the float32 floor") as error:
            lh.steering_direction(preserve=mixed[preserve], ablate=mixed[ablate], k=2, tol=1e-4)
        assert isinstance(error.value.result, lh.curvature.Eigenpairs)


def test_polish_spectra_and_curves_at_a_tiny_loss() -> None:
    loss = lh.Objective(trained(1e-7), (X, Y))
    minimum = lh.polish(loss)
    assert minimum.is_minimum
    assert minimum.largest == pytest.approx(0.01, rel=0.01)  # the anchor's
    trace = float(exact_hessian(loss).trace())
    density = lh.spectral_density(lh.hessian(loss), num_steps=40, num_probes=20)
    assert density.num_params * float((density.nodes * density.weights).sum(1).mean()) == pytest.approx(trace, rel=0.3)
    assert float(lh.trace(lh.hessian(loss), num_probes=loss.num_params)) == pytest.approx(trace, rel=0.1)
    tiny = losses(1e-7)
    with pytest.warns(UserWarning, match="ablation_curve missed gtol"):
        curve = lh.ablation_curve(
            tiny["first"], keep=tiny["second"], levels=[5e-8], num_starts=1, on_failure="warn", max_gradients=200
        )
    assert curve.curvatures.isnan().all()  # of a matrix that float32 rounds out of symmetry


@pytest.mark.parametrize("metric", ["hessian", "euclidean"])
def test_canyons_around_a_tiny_loss_begin_with_a_space(metric: Any) -> None:
    tiny = losses(1e-6)
    levels = {"hessian": 1e-2, "euclidean": 1.0}[metric]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # theta0 is no minimum
        found = lh.find_canyons(
            tiny["first"], levels=levels, metric=metric, num_starts=4, evaluate={"b": tiny["second"]}
        )
    assert found.space is not None
    assert found.space.dim >= 10


def test_what_float32_does_not_resolve_at_all_is_told_to_use_float64() -> None:
    loss = lh.Objective(trained(1e-8), (X, Y))
    with pytest.raises(
        lh.NotConvergedError, match=r"below the float32 floor(.|\n)*use float64 \(objective\.double\(\)"
    ):
        lh.top_hessian_eigs(loss, k=K)
    assert lh.top_hessian_eigs(loss.double(), k=K).is_converged.all()


def confident(gap: float) -> lh.FunctionObjective:
    """Cross-entropy of logits of which the right one leads by about `gap`."""
    targets = torch.arange(4) % 3

    def function(theta: Tensor) -> Tensor:
        leads = torch.full((4,), gap, dtype=theta.dtype)
        logits = torch.zeros(4, 3, dtype=theta.dtype).index_put((torch.arange(4), targets), leads)
        return F.cross_entropy(logits + torch.tanh(theta).reshape(4, 3) * theta.sum().cos(), targets)

    return lh.FunctionObjective(function, torch.linspace(-0.5, 0.5, 12))


def test_products_that_are_mostly_rounding_are_refused_for_what_they_are() -> None:
    rounded, fine = confident(17.0), confident(3.0)
    expected = r"^the loss has products that float32 rounds by \d+% of their size at this theta, expected at most 30%\."
    with pytest.raises(ValueError, match=expected) as error:
        lh.top_hessian_eigs(rounded, k=3)
    assert "objective.double()" in str(error.value)
    assert lh.top_hessian_eigs(rounded.double(), k=3).is_converged.all()
    u = torch.linspace(-1, 1, 12)
    with pytest.raises(
        lh.NotConvergedError, match=r"^losses\['rounded'\]: the loss has products that float32"
    ) as missed:
        lh.steering_report(u, {"fine": fine, "rounded": rounded}, k=3)
    assert math.isnan(missed.value.result.quotients["rounded"])
    assert missed.value.result.eigenvalues["fine"].isfinite().all()
    with pytest.raises(ValueError, match=r"^ablate: the loss has products that float32"):
        lh.steering_direction(preserve=fine, ablate=rounded, k=3)


def test_known_pairs_need_no_k() -> None:
    fine = confident(3.0)
    pairs = lh.top_hessian_eigs(fine, k=3)
    report = lh.steering_report(torch.ones(12), fine, pairs={"loss": pairs})  # k is 50, of 12
    assert len(report.eigenvalues["loss"]) == 3
    with pytest.raises(ValueError, match="k is 50, expected an integer from 1 to 12"):
        lh.steering_report(torch.ones(12), fine)
