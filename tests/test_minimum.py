"""`polish` against its oracles: the minimum of a quadratic on paper, a saddle on paper, and data without a minimum."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import lowhanging as lh
from lowhanging.anchored import AnchoredObjective

GENERATOR = torch.Generator().manual_seed(0)
SPECTRUM = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.01], dtype=torch.float64)
ROTATION = torch.linalg.qr(torch.randn(5, 5, generator=GENERATOR, dtype=torch.float64))[0]
A = ROTATION @ SPECTRUM.diag() @ ROTATION.T
CENTER = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0], dtype=torch.float64)
START = CENTER + 0.1 * torch.ones(5, dtype=torch.float64)


def unrecorded(function: Any, start: torch.Tensor) -> lh.FunctionObjective:
    """To record the products of a small function would take longer than to multiply; those of the networks are."""
    return lh.FunctionObjective(function, start, engine="double backward")


def quadratic() -> lh.FunctionObjective:
    return unrecorded(lambda theta: 0.5 * (theta - CENTER) @ A @ (theta - CENTER) + 7.0, START)


@pytest.mark.parametrize("anchor", [0.0, 0.05])
def test_the_minimum_of_a_quadratic_is_the_one_on_paper(anchor):
    found = lh.polish(quadratic(), anchor=anchor, gtol=1e-11)
    shifted = A + anchor * torch.eye(5, dtype=torch.float64)
    expected = torch.linalg.solve(shifted, A @ CENTER + anchor * START)
    assert torch.allclose(found.theta, expected, atol=1e-8)
    assert found.is_minimum
    assert found.gradient_norm <= 1e-11 < found.gradient_norm_before
    assert found.distance == pytest.approx(float((expected - START).norm()), rel=1e-6)
    assert found.smallest == pytest.approx(0.01 + anchor, abs=1e-6)
    assert found.largest == pytest.approx(4.0 + anchor, abs=1e-6)
    assert found.loss == pytest.approx(float(quadratic()(expected)), abs=1e-12)
    assert torch.equal(found.objective.theta0, found.theta)
    assert torch.equal(found.unanchored.theta0, found.theta)


def test_the_objective_of_the_result_has_the_anchor_and_the_unanchored_one_has_not():
    found = lh.polish(quadratic(), anchor=0.05, gtol=1e-11)
    assert isinstance(found.objective, AnchoredObjective)
    point = found.theta + 0.3
    penalty = 0.5 * 0.05 * float((point - START).square().sum())
    assert float(found.objective(point)) == pytest.approx(float(found.unanchored(point)) + penalty, rel=1e-12)
    assert float(found.objective.gradient(found.theta).norm()) <= 1e-11
    assert float(found.unanchored.gradient(found.theta).norm()) > 1e-6


def test_a_saddle_is_left():
    # x^2/2 - y^2/2 + y^4/4: the gradient at (0.5, 0) points along x only; minima at (0, -1) and (0, 1).
    saddle = unrecorded(
        lambda t: 0.5 * t[0] ** 2 - 0.5 * t[1] ** 2 + 0.25 * t[1] ** 4, torch.tensor([0.5, 0.0], dtype=torch.float64)
    )
    found = lh.polish(saddle, anchor=0.0, gtol=1e-10, max_drift=3.0, progress=False)
    assert torch.allclose(found.theta.abs(), torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-8)
    assert found.smallest == pytest.approx(1.0, abs=1e-6)
    assert found.largest == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize(("largest", "smallest"), [(1000.0, -0.3), (50.0, -0.02)])
def test_a_saddle_that_is_small_against_the_largest_eigenvalue_is_no_minimum(largest, smallest):
    # 3,000 curvatures: one large, one slightly negative, the rest in between; a coarse search calls the negative one 0.
    curvatures = torch.linspace(0.0, 1.0, 3000, dtype=torch.float64)
    curvatures[0], curvatures[-1] = smallest, largest
    saddle = unrecorded(lambda theta: 0.5 * (curvatures * theta**2).sum(), torch.zeros_like(curvatures))
    with pytest.raises(
        lh.NotConvergedError, match=r"curvature along the Newton step is negative.\nRaise anchor="
    ) as caught:
        lh.polish(saddle, anchor=0.0, progress=False)
    assert not caught.value.result.is_minimum


@pytest.mark.parametrize("distance", [3.0, 9.0, 20.0])
def test_drift_is_refused_however_the_minimum_was_reached(distance):
    start = torch.zeros(4, dtype=torch.float64)
    start[0] = 10.0
    center = start.clone()
    center[1] = distance
    loss = unrecorded(lambda theta: 0.5 * (theta - center).square().sum(), start)
    with pytest.raises(lh.NotConvergedError, match="drifted: it moved by"):
        lh.polish(loss, anchor=0.0)
    assert lh.polish(loss, anchor=0.0, max_drift=3.0).distance == pytest.approx(distance)


def separable() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    inputs = torch.randn(40, 3, dtype=torch.float64)
    return nn.Linear(3, 2).double(), (inputs, (inputs[:, 0] > 0).long())


def test_separable_data_without_anchor_have_no_minimum_and_an_anchor_makes_one():
    model, data = separable()
    loss = lh.Objective(model, data)
    with pytest.raises(lh.NotConvergedError, match=r"drifted: it moved by .*\n.*raise anchor=") as caught:
        lh.polish(loss, anchor=0.0)
    assert caught.value.result.distance > 0.2 * float(loss.theta0.norm())
    found = lh.polish(loss, anchor=0.5, max_drift=2.0)
    assert found.is_minimum
    assert found.smallest >= 0.5 - 1e-6


def test_the_floor_of_float32_is_named():
    torch.manual_seed(0)
    inputs = torch.randn(30, 4)
    loss = lh.Objective(nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3)), (inputs, torch.arange(30) % 3))
    with pytest.raises(lh.NotConvergedError, match=r"floor of float32 here; use gtol=.*float64") as caught:
        lh.polish(loss, anchor=0.1, gtol=1e-13, max_drift=1.0)
    assert caught.value.result.gradient_norm < 1e-5


def test_limits_are_limits():
    model, data = separable()
    with pytest.raises(lh.NotConvergedError, match="Raise max_gradients= or max_products=") as caught:
        lh.polish(lh.Objective(model, data), anchor=0.1, max_gradients=3, gtol=1e-10, max_drift=10.0)
    assert caught.value.result.num_gradients <= 4


def test_nothing_of_the_users_is_changed_and_it_can_be_saved(tmp_path):
    model, data = separable()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    loss = lh.Objective(model, data)
    found = lh.polish(loss, anchor=0.5, max_drift=2.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    found.save(tmp_path / "minimum")
    loaded = lh.Minimum.load(tmp_path / "minimum", loss)
    assert torch.equal(loaded.theta, found.theta)
    assert repr(loaded) == repr(found)
    assert float(loaded.objective(found.theta)) == float(found.objective(found.theta))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anchor": -1.0}, r"anchor is -1, expected a finite number in \[0, inf\]"),
        ({"gtol": 0.0}, r"gtol is 0, expected a finite number in \(0, inf\)"),
        ({"max_gradients": 0}, "max_gradients is 0, expected an integer of at least 1"),
        ({"max_drift": float("nan")}, "max_drift is nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        lh.polish(quadratic(), **arguments)
