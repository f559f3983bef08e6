"""`polish` against its oracles: the minimum of a quadratic on paper, a saddle on paper, and data without a minimum.

One that was interrupted is held against one that was not, bit for bit; what it repeats is counted where the loss sums.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lowhanging as lh
from lowhanging.objective.hvp import Products
from lowhanging.objective.objective import AnchoredObjective

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


def test_the_limit_of_float32_is_named():
    torch.manual_seed(0)
    inputs = torch.randn(30, 4)
    loss = lh.Objective(nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3)), (inputs, torch.arange(30) % 3))
    with pytest.raises(lh.NotConvergedError, match=r"limit of float32 here; use gtol=.*float64") as caught:
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
    loaded = lh.landscape.Minimum.load(tmp_path / "minimum", loss)
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


# Interrupted, and gone on ---------------------------------------------------------------------------------------------


class Calls:
    """Gradients and products of every loss from now on: counted, and interrupted at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.num, self.at = 0, 10**9
        for name in ("value_and_gradient", "product"):
            monkeypatch.setattr(Products, name, self.counted(getattr(Products, name)))

    def counted(self, method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.num += 1
            if self.num == self.at:
                raise KeyboardInterrupt
            return method(*arguments, **options)

        return call

    def start(self, at: int = 10**9) -> None:
        self.num, self.at = 0, at


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def bent(shift: float = 0.0) -> lh.Objective:
    """Two classes that a small network can't separate: all three stages of a descent have something to do."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(60, 3, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    return lh.Objective(model, (inputs + shift, torch.randint(2, (60,), generator=generator)))


POLISH = {"anchor": 0.05, "gtol": 1e-5, "max_drift": 5.0, "progress": False}


def bits(found: lh.landscape.Minimum) -> list[Any]:
    plain = [getattr(found, name) for name in ("loss", "gradient_norm", "largest", "smallest", "smallest_residual")]
    return [*plain, found.num_gradients, found.num_products, found.theta.tolist()]


def test_a_polish_that_was_stopped_anywhere_equals_one_that_was_not(tmp_path: Path, calls: Calls) -> None:
    whole = lh.polish(bent(), **POLISH)
    total = calls.num
    assert total == whole.num_gradients + whole.num_products
    for at in (4, whole.num_gradients, (whole.num_gradients + total) // 2, total):
        path = tmp_path / f"{at}.npz"
        calls.start(at)
        with pytest.raises(KeyboardInterrupt):
            lh.polish(bent(), **POLISH, resume=path)
        calls.start()
        found = lh.polish(bent(), **POLISH, resume=path)
        assert bits(found) == bits(whole)
        # Two gradients tell the loss from others; of the two that measure the rounding, the first is taken again.
        assert calls.num == total - (at - 1) + 2 + (at == total)
    calls.start()
    assert bits(lh.polish(bent(), **POLISH, resume=path)) == bits(whole)
    assert calls.num == 2
    assert {file.suffix for file in tmp_path.iterdir()} == {".npz"}


def test_a_loss_that_agrees_in_the_first_gradient_is_found_out(tmp_path: Path) -> None:
    """An anchor at the start is 0 there, with its gradient: the file of a loss without it would be gone on with."""
    loss = bent()
    anchored = lh.objective.AnchoredObjective(loss, loss.theta0, 0.3)
    assert float(loss(loss.theta0)) == float(anchored(loss.theta0))
    assert torch.equal(loss.gradient(loss.theta0), anchored.gradient(loss.theta0))
    lh.polish(loss, **POLISH, resume=tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a.npz', the file of a polish with another loss, expected"):
        lh.polish(anchored, **POLISH, resume=tmp_path / "a.npz")
    lh.polish(loss, **POLISH, resume=tmp_path / "a.npz")


def test_a_saddle_that_is_left_is_left_again(tmp_path: Path) -> None:
    def saddle() -> lh.FunctionObjective:
        start = torch.tensor([0.5, 0.0], dtype=torch.float64)
        return unrecorded(lambda t: 0.5 * t[0] ** 2 - 0.5 * t[1] ** 2 + 0.25 * t[1] ** 4, start)

    options = {"anchor": 0.0, "gtol": 1e-10, "max_drift": 3.0, "progress": False}
    whole = lh.polish(saddle(), **options)
    for _ in range(2):
        assert bits(lh.polish(saddle(), **options, resume=tmp_path / "a.npz")) == bits(whole)


def test_raised_limits_go_on_from_what_was_reached(tmp_path: Path, calls: Calls) -> None:
    whole = lh.polish(bent(), **POLISH)
    path = tmp_path / "run.npz"
    with pytest.raises(lh.NotConvergedError, match="Raise max_gradients="):
        lh.polish(bent(), **POLISH, max_gradients=5, resume=path)
    calls.start()
    assert bits(lh.polish(bent(), **POLISH, resume=path)) == bits(whole)
    assert calls.num <= whole.num_gradients + whole.num_products - 3  # five are known, two are asked again


def test_the_file_of_another_polish_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    lh.polish(bent(), **POLISH, resume=path)
    content = path.read_bytes()
    other = bent()
    moved, shifted = other.at(other.theta0 * 1.01), bent(0.01)
    for loss, change, what in (
        (moved, {}, "theta0"),
        (other, {"anchor": 0.1}, "anchor"),
        (shifted, {}, "loss"),
    ):
        with pytest.raises(
            ValueError, match=rf"resume is .*, the file of a polish with another {what}, expected a new"
        ):
            lh.polish(loss, **(POLISH | change), resume=path)
        assert path.read_bytes() == content
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(lh.DamagedFileError, match="no resume file of a polish"):
        lh.polish(other, **POLISH, resume=path)


def test_the_bar_of_a_polish_starts_where_it_goes_on(tmp_path: Path, calls: Calls, capsys: Any) -> None:
    calls.start(9)
    with pytest.raises(KeyboardInterrupt):
        lh.polish(bent(), **POLISH, resume=tmp_path / "run.npz")
    lh.polish(bent(), **(POLISH | {"progress": True}), resume=tmp_path / "run.npz")
    assert capsys.readouterr().err.split("\r")[1].startswith("polish: 8 gradients")
