"""`trace_canyon`: the branch stays the same all along, and its events are where they should be.

Oracles: functions of two weights whose branches, folds and crossings are known on paper or by a scan of the circle;
central differences of the branch itself for the predictor; the finder at the far end.
"""

import dataclasses
import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch

import lowhanging as lh
from canyon_scene import two_cue_minimum
from lowhanging.canyons.continuation import CanyonEvent, Continuation, branch_derivative
from lowhanging.canyons.point import NUMBERS
from lowhanging.canyons.shell import SHELLS
from lowhanging.canyons.sphere_search import SpherePoint, SphereSearch

HERE = Path(__file__).parent
PLANE = lh.Subspace(torch.eye(2, dtype=torch.float64))


@functools.cache
def polar(function):
    """A loss of two weights; to record its products would take longer than to multiply. The cartoon's are recorded."""
    return lh.FunctionObjective(function, torch.zeros(2, dtype=torch.float64), engine="double backward")


def crossing(t):
    """R^2 (1 + 0.2 cos 2 phi) - 0.1 r^4 cos 4 phi: the axis phi = 0 is a minimum of the circle where r^2 > 1/2."""
    x, y = t
    c2 = x * x - y * y
    return x * x + y * y + 0.2 * c2 - 0.1 * (c2 * c2 - 4 * x * x * y * y)


def folding(t):
    """R^2 + 0.2 r^2 cos 2 phi + 0.1 r^3 cos(phi - 0.7): of two minima one folds away."""
    x, y = t
    r2 = x * x + y * y
    return r2 + 0.2 * (x * x - y * y) + 0.1 * r2 * (x * math.cos(0.7) + y * math.sin(0.7))


def forking(t):
    """Of the circle's minima at +-phi, phi^2 ~ r^2 - 1, both run into phi = 0 at r = 1."""
    x, y = t
    return x * x + y * y + 0.2 * y * y * (1 - x * x - y * y) + 0.1 * y**4


cartoon = functools.cache(lh.toys.sloped_canyons)


@functools.cache
def points_on(loss, radius, **options):
    return lh.find_canyons(
        loss, space=PLANE, metric="euclidean", levels=radius, num_starts=16, progress=False, **options
    )


def test_the_floor_of_the_cartoon_is_followed_both_ways():
    loss = cartoon()
    start = points_on(loss, 1.0)[0]
    path = lh.trace_canyon(loss, start, to=(0.05, 3.0), progress=False)
    levels = path.values("level")
    assert (path[0].level, path[-1].level) == (0.05, 3.0)
    assert bool((levels.diff() > 0).all())
    assert torch.allclose(path.values("sphere_eigenvalue"), 2 * levels**2, rtol=1e-9)
    assert torch.allclose(path.values("rise"), -0.1 * torch.expm1(-(levels**2)), rtol=1e-9)
    assert torch.allclose(path.values("slope"), 0.2 * levels * torch.exp(-(levels**2)), rtol=1e-7)
    assert path.events == ()
    assert path.merge_radius == (0.0, 0.05)
    assert path.is_complete
    for point in path:
        assert abs(float(point.delta.norm()) - point.level) <= 1e-12 * point.level
        assert float(point.delta @ start.delta) == pytest.approx(point.level, rel=1e-9)


def test_the_diagonals_plane_certificate_changes_sign_where_lambert_says():
    loss = cartoon()
    found = points_on(loss, 1.0, stationary="all")
    path = lh.trace_canyon(loss, found[-1], to=(0.1, 1.2), progress=False)
    expected = math.sqrt(scipy.special.lambertw(0.2).real)
    assert expected == pytest.approx(0.410993885, abs=1e-9)
    (event,) = path.events
    assert event.kind == "plane"
    assert event.low < expected < event.high
    assert event.high - event.low <= path.step / 64 * 1.01
    assert not any(point.is_certified for point in path)


def test_a_crossing_is_bracketed_and_followed_through():
    loss = polar(crossing)
    start = next(point for point in points_on(loss, 1.0) if abs(float(point.delta[0])) > 0.9)
    path = lh.trace_canyon(loss, start, to=(0.2, 1.5), progress=False)
    (event,) = path.events
    assert event.kind == "crossing"
    assert event.low < math.sqrt(0.5) < event.high
    assert path.merge_radius == (event.radius_low, event.radius_high) == (event.low, event.high)
    assert [point.is_certified for point in path] == [point.level > math.sqrt(0.5) for point in path]
    # On paper: d^2 L / d phi^2 / r^2 = -0.8 + 1.6 r^2.
    expected = -0.8 + 1.6 * path.values("level") ** 2
    assert torch.allclose(path.values("shell_eigenvalue"), expected, atol=1e-8)


def fold_radius() -> float:
    """Where a minimum and a maximum of L(r, phi) meet: h' = h'' = 0 in phi."""

    def equations(unknown):
        phi, r = unknown
        return (
            -0.4 * math.sin(2 * phi) - 0.1 * r * math.sin(phi - 0.7),
            -0.8 * math.cos(2 * phi) - 0.1 * r * math.cos(phi - 0.7),
        )

    for start in np.linspace(0, 2 * math.pi, 25):
        (_, r), _, status, _ = scipy.optimize.fsolve(equations, (start, 4.0), full_output=True)
        if status == 1 and r > 0:
            return float(r)
    raise AssertionError("no fold")


def test_a_fold_is_bracketed_and_ends_the_branch():
    loss = polar(folding)
    paths = [lh.trace_canyon(loss, point, to=8.0, progress=False) for point in points_on(loss, 1.0)]
    kinds = [[event.kind for event in path.events] for path in paths]
    assert sorted(kinds) == [[], ["fold"]]
    folded, whole = sorted(paths, key=len)
    event = folded.events[0]
    assert event.low < fold_radius() < event.high < event.low * 1.02
    assert folded[-1].level == event.low
    assert whole[-1].level == 8.0
    assert folded.is_complete
    # Nothing was followed onto the other branch: neighbours stay within a cosine of 0.95 of each other.
    for path in paths:
        directions = torch.stack([point.delta / point.radius for point in path])
        assert float((directions[1:] * directions[:-1]).sum(1).min()) > 0.95


def test_followed_inwards_a_fold_is_a_birth():
    """The same function inside out: L = (r^-1) scaled so that the second branch exists far out only."""

    def inside_out(t):
        x, y = t
        r2 = x * x + y * y
        return r2 + 0.2 * r2 * (x * x - y * y) + 0.1 * r2 * (x * math.cos(0.7) + y * math.sin(0.7))

    # h(phi) = 0.2 r cos 2 phi + 0.1 cos(phi - 0.7): the fold of `folding` at 1 / r.
    loss, expected = polar(inside_out), 1.0 / fold_radius()
    paths = [lh.trace_canyon(loss, point, to=0.05, step=0.02, progress=False) for point in points_on(loss, 1.0)]
    born = next(path for path in paths if path.events)
    (event,) = born.events
    assert event.kind == "birth"
    assert event.low < expected < event.high
    assert born.merge_radius == (event.low, event.high)


def test_two_canyons_merge_where_they_fork():
    loss = polar(forking)
    for start in points_on(loss, 1.2):
        path = lh.trace_canyon(loss, start, to=(0.5, 2.0), progress=False)
        (event,) = path.events
        assert event.kind == "merge"
        assert event.low < 1.0 < event.high < 1.01
        assert event.low > 0.99
        assert path.merge_radius == (event.low, event.high)
        assert abs(float(path[0].delta[1])) < 1e-6  # followed on, along the axis
        assert path.values("level")[0] == 0.5


def test_the_merge_radius_is_that_of_the_stretch_that_was_followed():
    """The prongs of r^2 (1 + V), V'' at phi = 0 of the sign of (r^2 - 1)(r^2 - 4), live between r = 1 and 2."""

    def loop(t):
        x, y = t
        r2 = x * x + y * y
        return r2 + 0.05 * y * y * (r2 - 1) * (r2 - 4) + 0.1 * y**4

    loss = polar(loop)
    start = next(point for point in points_on(loss, 1.5) if abs(float(point.delta[1])) > 0.05)
    path = lh.trace_canyon(loss, start, to=(0.5, 2.5), progress=False)
    assert [event.kind for event in path.events] == ["merge", "merge"]
    assert path.events[1].low < 2.0 < path.events[1].high
    assert path.merge_radius == (path.events[0].radius_low, path.events[0].radius_high)
    assert path.merge_radius[0] < 1.0 < path.merge_radius[1]


def test_where_the_loss_ends_is_no_fold():
    loss = polar(lambda t: (t[0] * t[1]) ** 2 - 0.1 * torch.expm1(-(t @ t)) + 0 * torch.log(1.7 - t @ t))
    path = lh.trace_canyon(loss, points_on(loss, 1.0)[0], to=2.0, progress=False)
    (event,) = path.events
    assert event.kind == "undefined"
    assert event.low < math.sqrt(1.7) < event.high


@pytest.mark.parametrize("metric", ["euclidean", "hessian"])
def test_the_predictor_is_the_derivative_of_the_branch(metric):
    loss = two_cue_minimum().objective
    space = lh.top_eigs(lh.hessian(loss), k=5, progress=False).subspace()
    level = 2.0 if metric == "euclidean" else 0.06
    point = lh.find_canyons(loss, space=space, metric=metric, levels=level, num_starts=4, progress=False)[0]
    shell = SHELLS[metric](loss, space)
    search, radius, h = SphereSearch(shell, rtol=1e-11), shell.radius_of(level), 1e-3

    def newton(y, radius):
        return search.newton(SpherePoint.towards(shell, y, radius))

    here = newton(shell.coordinates(point.delta), radius)
    after, before = (newton(here.point.y, radius + step) for step in (h, -h))
    difference = (after.point.y - before.point.y) / (2 * h)
    assert np.linalg.norm(branch_derivative(here) - difference) < 1e-5 * np.linalg.norm(difference)


def test_a_followed_canyon_is_the_one_that_is_found_there():
    loss = two_cue_minimum().objective
    space = lh.top_eigs(lh.hessian(loss), k=4, progress=False).subspace()
    near, far = (
        lh.find_canyons(loss, space=space, levels=level, num_starts=24, progress=False) for level in (0.03, 0.12)
    )
    path = lh.trace_canyon(loss, near[0], to=0.12, progress=False)
    end = path[-1]
    assert end.level == 0.12
    assert end.is_certified
    gap = min(float((end.delta - point.delta).norm()) for point in far)
    assert gap < 1e-4
    assert torch.allclose(path.values("relative_rise"), path.values("rise") / path.values("level"), rtol=1e-12)


def test_a_budget_leaves_a_flagged_part():
    loss = two_cue_minimum().objective
    space = lh.top_eigs(lh.hessian(loss), k=4, progress=False).subspace()
    point = lh.find_canyons(loss, space=space, levels=0.03, num_starts=4, progress=False)[0]
    with pytest.raises(lh.NotConvergedError, match=r"trace_canyon spent its 12 gradients at level 0\.0") as caught:
        lh.trace_canyon(loss, point, to=0.12, max_gradients=12, progress=False)
    path = caught.value.result
    assert not path.is_complete
    assert 1 < len(path) < 8
    assert "BUDGET SPENT" in repr(path)


def test_a_path_survives_being_saved(tmp_path):
    loss = polar(crossing)
    path = lh.trace_canyon(loss, points_on(loss, 1.0)[-1], to=(0.2, 1.5), evaluate={"same": loss}, progress=False)
    loaded = lh.canyons.CanyonPath.load(path.save(tmp_path / "path"))
    assert repr(loaded) == repr(path)
    assert loaded.events == path.events
    assert torch.equal(loaded.values("same"), path.values("loss"))
    assert torch.equal(loaded[0].space.basis, PLANE.basis)


SCRIPT = """
import sys, time
import torch
import lowhanging as lh
from test_continuation import crossing
def slow(t):
    time.sleep(0.01)
    return crossing(t)
loss = lh.FunctionObjective(slow, torch.zeros(2, dtype=torch.float64), engine="double backward")
point = lh.canyons.CanyonSet.load(sys.argv[3])[-1]
path = lh.trace_canyon(loss, point, to=(0.2, 1.5), step=0.03, resume=sys.argv[1], progress=False)
path.save(sys.argv[2])
"""


def assert_same_path(path, other):
    assert path.events == other.events
    assert len(path) == len(other)
    for a, b in zip(path, other, strict=True):
        assert torch.equal(a.delta, b.delta)
        assert torch.equal(a.theta, b.theta)
        for name in NUMBERS:
            assert getattr(a, name) == getattr(b, name) or math.isnan(getattr(a, name))


def num_points_in(resume) -> int:
    """How far the path had come when its file was written."""
    state = json.loads(str(np.load(resume)["__lowhanging__"]))["state"]
    return len(dict(state["mapping"])["points"])


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    resume, out = tmp_path / "state.npz", tmp_path / "path.npz"
    loss = polar(crossing)
    canyons = points_on(loss, 1.0)
    command = [sys.executable, "-c", SCRIPT, str(resume), str(out), str(canyons.save(tmp_path / "canyons"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as run:
        while run.poll() is None and not (resume.exists() and num_points_in(resume) > 3):
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        errors = run.stderr.read()
    assert run.returncode == -signal.SIGKILL, errors
    assert not out.exists()
    point = canyons[-1]
    straight = lh.trace_canyon(loss, point, to=(0.2, 1.5), step=0.03, progress=False)
    assert 3 < num_points_in(resume) < len(straight)
    resumed = lh.trace_canyon(loss, point, to=(0.2, 1.5), step=0.03, resume=resume, progress=False)
    assert_same_path(resumed, straight)
    again = lh.trace_canyon(loss, point, to=(0.2, 1.5), step=0.03, resume=resume, progress=False)
    assert again.num_gradients == straight.num_gradients  # finished: nothing is computed but where it stands
    with pytest.raises(ValueError, match="the file of a canyon's path with another arguments"):
        lh.trace_canyon(loss, point, to=(0.2, 1.4), step=0.03, resume=resume, progress=False)
    (tmp_path / "other.npz").write_text("no npz")
    with pytest.raises(ValueError, match="no resume file of a canyon"):
        lh.trace_canyon(loss, point, to=1.5, resume=tmp_path / "other.npz", progress=False)


@pytest.mark.parametrize("num_calls", [35, 42, 51, 60])
def test_an_interrupted_step_leaves_the_state_before_it(tmp_path, monkeypatch, num_calls):
    """Also where the file's turn to be written had not come."""
    monkeypatch.setattr("lowhanging.io.SHARE", 1e-9)
    calls = []

    def interrupted(t):
        calls.append(t)
        if len(calls) == num_calls:
            raise KeyboardInterrupt
        return crossing(t)

    resume = tmp_path / "state.npz"
    loss = polar(crossing)
    given = {"to": (0.2, 1.5), "step": 0.1, "progress": False}
    stopped = lh.FunctionObjective(interrupted, torch.zeros(2, dtype=torch.float64), engine="double backward")
    point = points_on(loss, 1.0)[-1]
    with pytest.raises(KeyboardInterrupt):
        lh.trace_canyon(stopped, point, resume=resume, **given)
    straight = lh.trace_canyon(loss, point, **given)
    assert 1 < num_points_in(resume) < len(straight)
    assert_same_path(lh.trace_canyon(loss, point, resume=resume, **given), straight)


def test_a_spent_budget_leaves_all_that_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr("lowhanging.io.SHARE", 1e-9)
    loss, resume = polar(crossing), tmp_path / "state.npz"
    point = points_on(loss, 1.0)[-1]
    given = {"to": 1.5, "step": 0.03, "progress": False}
    with pytest.raises(lh.NotConvergedError) as caught:
        lh.trace_canyon(loss, point, resume=resume, max_gradients=10, **given)
    assert num_points_in(resume) == len(caught.value.result)
    assert_same_path(lh.trace_canyon(loss, point, resume=resume, **given), lh.trace_canyon(loss, point, **given))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": 1.0}, ValueError, "to is 1.0, expected a level, or one below and one above"),
        ({"to": (1.2, 1.5)}, ValueError, "expected a level, or one below and one above"),
        ({"to": -1.0}, ValueError, "to is -1, expected a finite number in"),
        ({"to": 2.0, "step": 0.0}, ValueError, "step is 0, expected a finite number in"),
        ({"to": 2.0, "point": 3}, TypeError, "point is an int, expected a CanyonPoint"),
        ({"to": 2.0, "max_gradients": 0}, ValueError, "max_gradients is 0"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    loss = cartoon()
    given = {"point": points_on(loss, 1.0)[0], "progress": False, **options}
    with pytest.raises(error, match=message):
        lh.trace_canyon(loss, given.pop("point"), **given)


def test_a_point_of_another_loss_is_refused():
    point = points_on(polar(forking), 1.2)[0]
    with pytest.raises(ValueError, match="point is not stationary for this loss"):
        lh.trace_canyon(cartoon(), point, to=2.0, progress=False)


def test_unknown_values_are_refused():
    loss = cartoon()
    path = lh.trace_canyon(loss, points_on(loss, 1.0)[0], to=1.1, step=0.1, progress=False)
    with pytest.raises(ValueError, match="name is 'source', expected a numeric field"):
        path.values("source")


def with_losses(path, values):
    """A path whose points also have losses of these names, `values` (m,) each."""
    points = [
        dataclasses.replace(point, losses=point.losses | {name: row[i] for name, row in values.items()})
        for i, point in enumerate(path)
    ]
    return dataclasses.replace(path, points=tuple(points))


def test_a_loss_may_be_called_like_a_field_and_is_never_taken_for_it():
    loss = cartoon()
    start = points_on(loss, 1.0)[0]
    watched = {"rise": lh.FunctionObjective(lambda t: 3.0 + (t * t).sum(), torch.zeros(2, dtype=torch.float64))}
    path = lh.trace_canyon(loss, start, to=2.0, evaluate=watched, progress=False)
    levels = path.values("level")
    assert torch.allclose(path.values("rise", of="loss"), 3.0 + levels**2, rtol=1e-9)
    assert torch.allclose(path.values("rise", of="point"), -0.1 * torch.expm1(-(levels**2)), rtol=1e-9)
    message = r"name is 'rise', a field of CanyonPoint and an evaluated loss, expected one of .*\n.*of=.loss."
    with pytest.raises(ValueError, match=message):
        path.values("rise")
    fields = [field.name for field in dataclasses.fields(lh.canyons.CanyonPoint)] + [
        "relative_rise",
        "is_certified",
        "asymmetry",
    ]
    planted = with_losses(path, {name: [1000.0 + i for i in range(len(path))] for name in fields})
    for name in fields:
        assert planted.values(name, of="loss").tolist() == [1000.0 + i for i in range(len(path))]
        number = getattr(path[0], name)
        if isinstance(number, float | int) and not isinstance(number, bool):
            with pytest.raises(ValueError, match=f"name is '{name}', a field"):
                planted.values(name)
            expected = torch.tensor([float(getattr(point, name)) for point in path], dtype=torch.float64)
            assert torch.equal(planted.values(name, of="point"), expected)
            assert torch.equal(path.values(name, of="point"), expected)
        else:  # no number of a point: the name can only mean the loss
            assert planted.values(name)[0] == 1000.0
            with pytest.raises(ValueError, match=f"name is '{name}', expected a numeric field of CanyonPoint or an"):
                planted.values(name, of="point")
    with pytest.raises(ValueError, match="of is 'field', expected one of 'point', 'loss'"):
        path.values("rise", of="field")
    some = dataclasses.replace(path, points=(path[0], *(dataclasses.replace(p, full_error=0.5) for p in path[1:])))
    assert some.values("full_error").isnan().tolist() == [True] + [False] * (len(path) - 1)


def test_the_resume_file_of_other_evaluated_losses_is_refused(tmp_path):
    """An anchor at theta0 is 0 there: the values at theta0 alone would not tell them apart."""
    loss = cartoon()
    start = points_on(loss, 1.0)[0]

    def run(epsilon):
        watched = {"anchored": lh.objective.AnchoredObjective(loss, loss.theta0, epsilon)}
        options = {"to": 1.5, "evaluate": watched, "resume": tmp_path / "a.npz", "progress": False}
        return lh.trace_canyon(loss, start, **options)

    first = run(0.1)
    assert torch.equal(run(0.1).values("anchored"), first.values("anchored"))
    with pytest.raises(
        ValueError, match="the file of a canyon's path with another evaluated losses or conflict control"
    ):
        run(0.2)


def test_an_event_that_touches_one_of_its_kind_is_part_of_it():
    branch = SimpleNamespace(shell=SimpleNamespace(level_of=lambda radius: 2 * radius), events=[])
    Continuation._event(branch, "crossing", (2.0, 20.0), (1.0, 10.0))
    Continuation._event(branch, "plane", (2.0, 20.0), (3.0, 30.0))
    Continuation._event(branch, "crossing", (3.5, 35.0), (4.0, 40.0))
    assert [event.kind for event in branch.events] == ["crossing", "plane", "crossing"]
    Continuation._event(branch, "crossing", (2.0, 20.0), (3.0, 30.0))  # shares an end with the first
    assert branch.events[0] == CanyonEvent("crossing", 2.0, 6.0, 10.0, 30.0)
    assert branch.events[2] == CanyonEvent("crossing", 7.0, 8.0, 35.0, 40.0)
    assert len(branch.events) == 3
