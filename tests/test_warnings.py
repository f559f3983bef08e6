"""Warnings point at the line of the user that called the library, one per call, through tools of several depths.

Oracle: the file and the line of the call, as Python knows them.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowhanging as lh
from lowhanging.circuits import circuit_losses

X, Y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
DATA = (X, Y)
TOOLS = ("slices", "eigenpairs", "Gauss-Newton", "polish", "find_canyons")


def kinked(outputs: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, outputs))


def caught_in(call: Callable[[], Any]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return caught


def without(model: nn.Module, inputs: Tensor, ablated: tuple[int, ...]) -> Tensor:
    """An "ablation" that scales: the warnings are the point."""
    return model(inputs.float()[:, [0, 1, 0, 1]]) * (1 + sum(ablated))


PAIRS = lh.modular_addition(3, 0.7).train

# One line each, so that the line is that of the function.
KINKED: dict[str, Callable[[], Any]] = {
    "Objective": lambda: lh.Objective(kinked(), DATA),
    "top_hessian_eigs": lambda: lh.top_hessian_eigs(kinked(), DATA, k=2, progress=False),
    "dense_hessian": lambda: lh.testing.dense_hessian(kinked(), DATA),
    "circuit_losses": lambda: circuit_losses(
        kinked(), (PAIRS.inputs, PAIRS.targets), circuits=[0, 1, 2], ablation=without
    ),
    "partial": functools.partial(lambda model: lh.Objective(model, DATA), kinked()),
    "no_grad": torch.no_grad()(lambda: lh.top_hessian_eigs(kinked(), DATA, k=2, progress=False)),
    "inference_mode": torch.inference_mode()(lambda: lh.Objective(kinked(), DATA)),
}


@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_warned_of_once_at_the_users_line(name: str) -> None:
    caught = caught_in(KINKED[name])
    assert [each.category for each in caught] == [lh.NotSmoothWarning]
    assert caught[0].filename == __file__
    source = inspect.getsource(sys.modules[__name__]).splitlines()[caught[0].lineno - 1]
    assert f'"{name}": ' in source
    assert all(tool in str(caught[0].message) for tool in TOOLS)


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_the_line_is_that_of_the_innermost_call_of_the_users(depth: int) -> None:
    def call(left: int) -> int:
        if left:
            return call(left - 1)
        lh.Objective(kinked(), DATA)
        return inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]

    found: list[int] = []
    (caught,) = caught_in(lambda: found.append(call(depth)))
    assert (caught.filename, [caught.lineno]) == (__file__, found)


def test_a_thread_has_a_line_too() -> None:
    def run() -> None:
        thread = threading.Thread(target=lambda: lh.Objective(kinked(), DATA))
        thread.start()
        thread.join()

    (caught,) = caught_in(run)
    assert caught.filename == __file__


def silent() -> dict[str, Callable[[], Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lh.NotSmoothWarning)
        loss = lh.Objective(kinked(), DATA)
    u = lh.random_direction(loss)
    return {
        "line_slice": lambda: lh.line_slice(loss, u, num=3, progress=False),
        "plane_slice": lambda: lh.plane_slice(loss, "gaussian", num=3, progress=False),
        "top_eigs": lambda: lh.top_eigs(lh.hessian(loss), k=2, progress=False),
        "gauss_newton": lambda: lh.top_eigs(lh.gauss_newton(loss), k=2, progress=False),
        "steering_report": lambda: lh.steering_report(u, loss, k=2, progress=False),
        "at": lambda: loss.at(loss.theta0 + 0.1 * u, buffers="fixed").hvp(loss.theta0, u),
        "double": lambda: loss.double().gradient(loss.theta0.double()),
        "train": lambda: lh.train(kinked(), DATA, num_epochs=1, evaluate={"test": DATA}, progress=False),
        "check_model": lambda: lh.testing.check_model(kinked(), DATA),
    }


@pytest.mark.parametrize("name", silent())
def test_tools_that_are_given_the_loss_do_not_repeat_it(name: str) -> None:
    assert caught_in(silent()[name]) == []


OTHERS: dict[str, Callable[[], Any]] = {
    "modular_addition": lambda: lh.modular_addition(7, split="ordered"),
    "top_eigs": lambda: lh.top_eigs(torch.eye(9).double() + 0.1, k=2, tol=1e-30, on_failure="warn", progress=False),
    "top_hessian_eigs": lambda: lh.top_hessian_eigs(nn.Linear(4, 3), DATA, k=2, tol=1e-9, on_failure="warn"),
    "find_canyons": lambda: lh.find_canyons(
        lh.Objective(nn.Linear(4, 3).double(), (X.double(), Y)), levels=0.1, num_starts=2
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_warnings_point_at_the_users_line_too(name: str) -> None:
    caught = caught_in(OTHERS[name])
    assert len(caught) == 1 or name == "find_canyons"  # of the slope, and of negative curvature
    assert {each.filename for each in caught} == {__file__}
    source = inspect.getsource(sys.modules[__name__]).splitlines()
    assert all(f'"{name}": ' in source[each.lineno - 1] for each in caught)


def test_a_report_on_a_kinked_model_says_for_what_it_is_fine() -> None:
    check = lh.testing.check_model(kinked(), DATA)
    assert check.is_kinked
    assert not check.ok
    assert repr(check) == "ModelCheck(Sequential: ok but for kinks, 7 checks; print it for the report)"
    first = str(check).splitlines()[0]
    assert first == ("Sequential: has kinks: fine for slices, eigenpairs and Gauss-Newton, not for polish and canyons")
    assert "  KINKS    smooth: the loss is not smooth: layer '1' (ReLU) calls relu" in str(check)
    broken = lh.testing.check_model(kinked(), (X, Y + 7))
    assert not broken.is_kinked
    assert "not ready to be studied" in str(broken)
