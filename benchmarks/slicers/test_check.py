"""Does `check_slicer` tell a right picture from a wrong one, and say what is wrong?

Oracles: the loss that autograd and torch's own linear layer give at every point; slicers with one planted fault each.
"""

from __future__ import annotations

import copy
import doctest
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicers.check as module
import torch
from slicers import faults as slicer_faults
from slicers import scene as slicer_scene
from slicers.check import SlicerReport, check_slicer
from torch import Tensor

import lowhanging as lh

pytestmark = pytest.mark.slow  # the benchmarks' own tests run last

Parts = dict[str, Tensor]


def value(model: Any, loader: Any, loss_fn: Any, mean: str = "") -> float:
    """The loss as it is defined, or with a wrong mean."""
    with torch.no_grad():
        means = torch.stack([loss_fn(model(x), y) for x, y in loader]).double()
    sizes = torch.tensor([len(x) for x, _ in loader]).double()
    return float(
        {
            "": (means * sizes).sum() / sizes.sum(),
            "sum": (means * sizes).sum(),
            "mean of means": means.mean(),
            "sum of means": means.sum(),
            "first": means[0],
            "last": means[-1],
        }[mean]
    )


def slicer(
    *,
    point: Callable[[int, int, np.ndarray, np.ndarray], tuple[float, float]] | None = None,
    directions: Callable[[Parts, Parts, Any], tuple[Parts, Parts]] = lambda u, v, model: (u, v),
    mean: str = "",
    finish: Callable[[np.ndarray], Any] = lambda grid: grid,
    after: Callable[[Any, Parts, Parts], Any] = lambda model, u, v: None,
) -> Callable[..., Any]:
    """A loop over copies of the model, right where no fault is planted."""

    def planted(model: Any, loader: Any, loss_fn: Any, u: Parts, v: Parts, alphas: Any, betas: Any) -> Any:
        grid = np.empty((len(alphas), len(betas)))
        one, other = directions(u, v, model)
        for i, j in np.ndindex(*grid.shape):
            alpha, beta = (alphas[i], betas[j]) if point is None else point(i, j, alphas, betas)
            moved = copy.deepcopy(model).eval()
            with torch.no_grad():
                for name, parameter in moved.named_parameters():
                    parameter += alpha * one[name] + beta * other[name]
            grid[i, j] = value(moved, loader, loss_fn, mean)
        after(model, u, v)
        return finish(grid)

    return planted


def ours(model: Any, loader: Any, loss_fn: Any, u: Parts, v: Parts, alphas: Any, betas: Any) -> Tensor:
    loss = lh.Objective(model, loader, loss_fn=loss_fn)
    extent, num = ((alphas[0], alphas[-1]), (betas[0], betas[-1])), (len(alphas), len(betas))
    return lh.plane_slice({"loss": loss}, (u, v), extent=extent, num=num).losses["loss"]


def scaled(parts: Parts, factor: Any) -> Parts:
    return {name: part * (factor[name] if isinstance(factor, dict) else factor) for name, part in parts.items()}


def norm(parts: Parts) -> Tensor:
    return torch.nn.utils.parameters_to_vector(parts.values()).norm()


def orthogonal(u: Parts, v: Parts) -> Parts:
    share = sum((u[name] * v[name]).sum() for name in u) / norm(u) ** 2
    return {name: v[name] - share * u[name] for name in u}


def by_layer(u: Parts, v: Parts, model: Any) -> tuple[Parts, Parts]:
    weights = dict(model.named_parameters())
    first, second = (
        scaled(parts, {name: (weights[name].norm() / part.norm()).detach() for name, part in parts.items()})
        for parts in (u, v)
    )
    return first, second


# What is right passes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [(7, 5), 5, (5, 9)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_our_own_slicer_is_exact(num: Any, dtype: torch.dtype) -> None:
    report = check_slicer(ours, num=num, dtype=dtype)
    assert report.ok
    assert report.faults == report.changed == ()
    assert report.worst_error <= (1e-12 if dtype == torch.float64 else 1e-5)
    assert report.found is not None
    assert report.found.shape == report.expected.shape == (num if isinstance(num, tuple) else (num, num))


def test_the_paper_agrees_with_torch() -> None:
    """The closed form against the linear layer and the loss of torch themselves, which share nothing with it."""
    report = check_slicer(slicer(), extent=0.7)
    assert report.ok
    assert report.worst_error <= 1e-13
    assert repr(report).startswith("SlicerReport(planted: exact, worst error ")
    assert repr(report).endswith("; model left as it was)")
    assert str(report).splitlines()[0] == "planted: exact"
    assert str(report).splitlines()[-1] == "  the model, u and v are as they were"
    assert report.is_exact


def test_the_scene_has_no_symmetry() -> None:
    """No fault gives the picture of another one, or the right one: each diagnosis is the only one."""
    scene = slicer_scene.Scene.make((7, 7), 1.0, torch.float64)
    pictures = list(slicer_faults._known_pictures(scene))
    stack = np.stack([picture.ravel() for _, picture in pictures])
    assert pictures[0][0] == ()
    assert len(pictures) == 2 * 8 * 11 * 6
    for i in range(0, len(stack), 7):
        off = np.abs(stack - stack[i]).max(1) / np.abs(stack[i]).max()
        off[i] = 1.0
        assert off.min() > 1e-4, (pictures[i][0], pictures[int(off.argmin())][0])


# Planted faults are named ---------------------------------------------------------------------------------------------

STEPS = {
    "mirrored in alpha": (lambda i, j, a, b: (-a[i], b[j]), ["mirrored along u: the first step is the last"]),
    "mirrored in beta": (lambda i, j, a, b: (a[i], -b[j]), ["mirrored along v: the first step is the last"]),
    "mirrored in both": (lambda i, j, a, b: (-a[i], -b[j]), ["mirrored along u", "mirrored along v"]),
    "shifted": (lambda i, j, a, b: (a[i], b[j] + b[1] - b[0]), ["shifted along v: by +1 steps"]),
    "half a step": (lambda i, j, a, b: (a[i] - (a[1] - a[0]) / 2, b[j]), ["shifted along u: by -0.5 steps"]),
    "mirrored and shifted": (lambda i, j, a, b: (-a[i] + a[1] - a[0], b[j]), ["mirrored along u", "shifted along u"]),
    "never at the end": (
        lambda i, j, a, b: (a[0] + (a[-1] - a[0]) * i / len(a), b[j]),
        ["rescaled along u: steps run from -1 to 0.7143, not from -1 to 1"],
    ),
    "every second row": (
        lambda i, j, a, b: (a[i], b[j] + (i % 2 == 0) * (b[1] - b[0])),
        ["every second row shifted: even-numbered rows are one step ahead"],
    ),
    "every second column": (
        lambda i, j, a, b: (a[i] - (j % 2) * (a[1] - a[0]), b[j]),
        ["every second column shifted: odd-numbered columns are one step back"],
    ),
    "drifting": (
        lambda i, j, a, b: (sum(a[:i]) * len(b) + a[i] * (j + 1), sum(b) * i + sum(b[: j + 1])),
        ["drifting center: each point starts from the one before, row by row"],
    ),
    "drifting, by columns": (
        lambda i, j, a, b: (sum(a) * j + sum(a[: i + 1]), sum(b[:j]) * len(a) + b[j] * (i + 1)),
        ["drifting center: each point starts from the one before, column by column"],
    ),
    "drifting a little": (
        lambda i, j, a, b: (a[i] + 1e-3 * (i * len(b) + j) ** 2, b[j]),
        ["drifting center: errors grow along the evaluation, row by row"],
    ),
    "constant": (lambda i, j, a, b: (0.0, 0.0), ["constant: every value is "]),
    "warped": (lambda i, j, a, b: (a[i] ** 3, np.sin(3 * b[j])), ["unknown: none of the known faults"]),
}  # fmt: skip


def starts(report: SlicerReport, faults: list[str]) -> None:
    assert not report.ok
    assert not report.is_exact
    assert len(report.faults) == len(faults), report.faults
    for found, expected in zip(report.faults, faults, strict=True):
        assert found.startswith(expected)
    assert all(f"PROBLEM  {fault}" in str(report) for fault in report.faults)
    assert f"WRONG ({', '.join(fault.split(':')[0] for fault in report.faults)})" in repr(report)


@pytest.mark.parametrize("num", [(7, 5), 7])
@pytest.mark.parametrize("name", STEPS)
def test_wrong_steps_are_named(name: str, num: Any) -> None:
    point, faults = STEPS[name]
    starts(check_slicer(slicer(point=point), num=num), faults)


DIRECTIONS = {
    "exchanged": (lambda u, v, model: (v, u), "axes swapped"),
    "of unit length": (
        lambda u, v, m: (scaled(u, 1 / norm(u)), scaled(v, 1 / norm(v))),
        "directions rescaled: to unit length",
    ),
    "v orthogonal": (lambda u, v, m: (u, orthogonal(u, v)), "directions orthogonalised: v replaced by its part"),
    "u orthogonal": (lambda u, v, m: (orthogonal(v, u), v), "directions orthogonalised: u replaced by"),
    "v orthogonal, as long": (
        lambda u, v, m: (u, scaled(orthogonal(u, v), norm(v) / norm(orthogonal(u, v)))),
        "directions orthogonalised: v replaced by its part orthogonal to the other, its length kept",
    ),
    "orthonormal": (
        lambda u, v, m: (scaled(u, 1 / norm(u)), scaled(orthogonal(u, v), 1 / norm(orthogonal(u, v)))),
        "directions orthogonalised: v replaced by its part orthogonal to the other, both of unit length",
    ),
    "one rescaled": (lambda u, v, m: (scaled(u, 0.96), v), "rescaled along u: steps run from -0.96 to 0.96"),
    "layer by layer": (by_layer, "directions rescaled: tensor by tensor (linear.weight and linear.bias: u by "),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_wrong_directions_are_named(name: str, dtype: torch.dtype) -> None:
    directions, fault = DIRECTIONS[name]
    starts(check_slicer(slicer(directions=directions), dtype=dtype), [fault])


def test_numbers_in_a_diagnosis_are_right() -> None:
    def directions(u: Parts, v: Parts, model: Any) -> tuple[Parts, Parts]:
        factors = {"linear.weight": 2.0, "linear.bias": 0.5}, {"linear.weight": -0.75, "linear.bias": 1.25}
        return scaled(u, factors[0]), scaled(v, factors[1])

    fault = "directions rescaled: tensor by tensor (linear.weight and linear.bias: u by 2, 0.5; v by -0.75, 1.25)"
    starts(check_slicer(slicer(directions=directions)), [fault])


MEANS = {
    "sum": "sum instead of mean: over the examples",
    "mean of means": "mean of batch means: the ragged last batch weighs too much",
    "sum of means": "sum of batch means: not divided by anything",
    "first": "one batch only: the first",
    "last": "one batch only: the last",
}


@pytest.mark.parametrize("mean", MEANS)
def test_wrong_means_are_named(mean: str) -> None:
    starts(check_slicer(slicer(mean=mean)), [MEANS[mean]])


def altered(grid: np.ndarray) -> np.ndarray:
    grid[grid == grid.max()] += 0.01
    return grid


FINISHES = {
    "transposed": (lambda grid: grid.T, ["axes swapped: rows should follow u and columns v"]),
    "a factor": (lambda grid: 0.5 * torch.tensor(grid), ["constant factor: every value is 0.5 times as large"]),
    "an offset": (lambda grid: grid + 0.25, ["constant offset: every value is off by 0.25"]),
    "altered": (altered, ["one value altered: entry ["]),
    "not finite": (lambda grid: np.where(grid > 9, np.inf, grid), ["not finite: "]),
    "random": (lambda grid: grid + np.random.default_rng().normal(size=grid.shape), ["random: two calls"]),
    "single precision": (lambda grid: grid.astype(np.float32), ["inexact: off by up to "]),
    "no array": (lambda grid: {"losses": grid}, ["no picture: returned a dict, expected an array (7, 5)"]),
    "a list": (lambda grid: grid.ravel().tolist(), ["no picture: returned a list of shape (35,), expected (7, 5)"]),
}


@pytest.mark.parametrize("name", FINISHES)
def test_wrong_pictures_are_named(name: str) -> None:
    finish, faults = FINISHES[name]
    starts(check_slicer(slicer(finish=finish)), faults)


def test_several_faults_at_once_are_named() -> None:
    point, _ = STEPS["every second row"]
    report = check_slicer(slicer(point=point, mean="mean of means", finish=lambda grid: grid.T), num=(9, 5))
    starts(report, ["axes swapped", "every second row shifted: even", "mean of batch means"])
    report = check_slicer(slicer(directions=by_layer, mean="sum", finish=altered))
    starts(report, ["directions rescaled: tensor by tensor", "sum instead of mean", "one value altered"])
    exchanged = slicer(point=lambda i, j, a, b: (1.5 * b[j], -a[i]), finish=altered)  # square: values alone tell
    starts(
        check_slicer(exchanged, num=7),
        ["axes swapped", "rescaled along u: steps run from -1.5 to 1.5", "mirrored along v", "one value altered"],
    )


# A slicer that fails, and one that leaves traces ----------------------------------------------------------------------


def test_a_crash_is_reported() -> None:
    def crashes(model: Any, *_: Any) -> Any:
        model.eval()
        raise KeyError("conv1")

    report = check_slicer(crashes)
    assert report.faults == ("crashed: KeyError: 'conv1'",)
    assert report.changed == ("mode",)
    assert report.found is None
    assert repr(report) == "SlicerReport(crashes: WRONG (crashed), worst error inf; left changed: mode)"
    assert "PROBLEM  crashed: KeyError: 'conv1'\n  PROBLEM  left changed: mode" in str(report)


def test_a_crash_of_the_second_call_is_reported() -> None:
    calls: list[int] = []

    def finish(grid: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("only once")
        return grid**2

    starts(check_slicer(slicer(finish=finish)), ["random: two calls"])


CHANGES = {
    "weights": lambda model, u, v: model.linear.weight.data.add_(1e-15),
    "buffers": lambda model, u, v: model.train()(torch.ones(1, 3, dtype=torch.float64)),
    "gradients": lambda model, u, v: model.zero_grad(),
    "requires_grad": lambda model, u, v: model.requires_grad_(False),
    "mode": lambda model, u, v: model.eval(),
    "u": lambda model, u, v: u["linear.weight"].mul_(2),
    "v": lambda model, u, v: v["linear.bias"].mul_(2),
}
PAGE = Path(__file__).parents[2] / "docs" / "is-this-picture-right.md"


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_left_changed_is_named(name: str) -> None:
    report = check_slicer(slicer(after=CHANGES[name]))
    assert report.changed == (name,)
    assert report.is_exact
    assert not report.ok
    assert repr(report).endswith(f"; left changed: {name})")
    assert f"PROBLEM  left changed: {name}" in str(report)


def test_global_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    check_slicer(slicer())
    assert torch.equal(before, torch.get_rng_state())


def test_another_precision_is_a_change() -> None:
    report = check_slicer(slicer(after=lambda model, u, v: model.float()))
    assert report.changed == ("weights", "gradients")
    assert report.is_exact


def test_the_documented_reports_are_real(capsys: pytest.CaptureFixture[str]) -> None:
    """The page's text blocks are what its python blocks print, up to rounding errors."""
    found = re.findall(r"```(python|text)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec("\n".join(code for kind, code in found if kind == "python"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    shown = "".join(text for kind, text in found if kind == "text")
    rounding = re.compile(r"(error|center) (?:0|[\d.]+e-\d+)(?=[,;])")  # some processors make none
    assert rounding.sub(r"\1 tiny", printed) == rounding.sub(r"\1 tiny", shown)


REFUSED = {
    "no function": (lambda: check_slicer(3), "slicer is an int, expected a function."),  # type: ignore[arg-type]
    "even": (lambda: check_slicer(ours, num=(7, 6)), "num is (7, 6), expected one or two odd numbers."),
    "three": (lambda: check_slicer(ours, num=(7, 7, 7)), "num is (7, 7, 7), expected one or two odd"),  # type: ignore[arg-type]
    "few": (lambda: check_slicer(ours, num=3), "num is 3, expected an integer of at least 5."),
    "dtype": (lambda: check_slicer(ours, dtype=torch.float16), "dtype is torch.float16, expected torch.float64 or"),
    "extent": (lambda: check_slicer(ours, extent=0), "extent is 0, expected a finite number in (0, inf)."),
    "tol": (lambda: check_slicer(ours, tol=-1), "tol is -1, expected a finite number in [0, inf]."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name: str) -> None:
    call, text = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value).startswith(text)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("used", "fault"),
    [
        (lambda u, v: (u, zero(v)), "v has no effect"),
        (lambda u, v: (zero(u), v), "u has no effect"),
        (lambda u, v: (u, u), "v is not used: both axes move along u"),
        (lambda u, v: (v, v), "u is not used: both axes move along v"),
    ],
)
def test_a_direction_that_is_not_seen_is_named(used: Any, fault: str) -> None:
    def slicer(model: Any, loader: Any, loss_fn: Any, u: Parts, v: Parts, alphas: Any, betas: Any) -> Any:
        loss = {"loss": lh.Objective(model, loader, loss_fn=loss_fn)}
        extent = ((alphas[0], alphas[-1]), (betas[0], betas[-1]))
        one, other = used(u, v)
        grid = np.zeros((len(alphas), len(betas)))
        space, center = loss["loss"].space, loss["loss"].theta0
        for i, alpha in enumerate(np.linspace(*extent[0], len(alphas))):
            for j, beta in enumerate(np.linspace(*extent[1], len(betas))):
                grid[i, j] = loss["loss"](center + alpha * space.flatten(one) + beta * space.flatten(other))
        return grid

    (found,) = check_slicer(slicer).faults
    assert found.startswith(fault)


def zero(parts: Parts) -> Parts:
    return {name: torch.zeros_like(part) for name, part in parts.items()}


def test_data_that_the_slicer_changes_are_named() -> None:
    def slicer(model: Any, loader: Any, loss_fn: Any, *rest: Any) -> Any:
        picture = slicer_scene.Scene.make((7, 5), 1.0, torch.float64).grid()
        loader.dataset.tensors[0].zero_()
        return picture

    assert check_slicer(slicer).changed == ("data",)
