"""Many points: an interrupted run continues to the same bits, and the engine is measured, named and told the truth."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lowhanging as lh
from lowhanging.landscape import evaluate
from own_loss import OwnLoss

E1, E2 = torch.eye(3, dtype=torch.float64)[:2]


@pytest.fixture(autouse=True)
def every_run_is_short(monkeypatch):
    """However busy the machine is: evaluations are counted here. Tests of the measurement set 0 themselves."""
    monkeypatch.setattr(evaluate, "_WORTH_MEASURING", 1e9)


class Stops:
    """Another objective, until it is asked too often."""

    def __init__(self, loss, left: int):
        self.loss, self.left = loss, left

    def __getattr__(self, name):
        return getattr(self.loss, name)

    def __call__(self, theta):
        return self.loss(theta)

    def evaluate(self, theta):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.loss.evaluate(theta)

    def evaluate_many(self, thetas):
        self.left -= len(thetas)
        if self.left < 0:
            raise KeyboardInterrupt
        return self.loss.evaluate_many(thetas)


class Interrupted:
    """A loss that counts its evaluations and fails after `left` of them."""

    def __init__(self, left: float = float("inf"), scale: float = 1.0):
        self.left, self.count, self.scale = left, 0, scale

    def __call__(self, theta):
        if self.count >= self.left:
            raise KeyboardInterrupt
        self.count += 1
        return self.scale * (theta.sin().sum() + theta[0] * theta[1] ** 2)


def made(function, theta0=None) -> lh.FunctionObjective:
    objective = lh.FunctionObjective(function, torch.ones(3, dtype=torch.float64) if theta0 is None else theta0)
    if isinstance(function, Interrupted):
        function.count = 0
    return objective


def plane(function, resume=None, **arguments) -> lh.landscape.PlaneSlice:
    arguments = {"extent": (-1, 2), "num": (6, 5), "engine": "point by point", "progress": False} | arguments
    return lh.plane_slice({"f": made(function)}, (E1, E2), resume=resume, **arguments)


@pytest.mark.parametrize("left", [1, 3, 5, 17, 29])
def test_an_interrupted_plane_continues_to_the_same_bits(left, tmp_path):
    expected = plane(Interrupted())
    path = tmp_path / "plane.npz"
    with pytest.raises(KeyboardInterrupt):
        plane(Interrupted(left), resume=path)
    rest = Interrupted()
    found = plane(rest, resume=path)
    assert rest.count == 30 - left + min(left, 3)  # three points tell whether the file belongs to this loss
    assert torch.equal(found.losses["f"], expected.losses["f"])
    again = Interrupted()
    assert torch.equal(plane(again, resume=path).losses["f"], expected.losses["f"])
    assert again.count == 3
    assert list(tmp_path.iterdir()) == [path]


def test_lines_and_paths_are_resumed_too(tmp_path):
    def line(function, resume):
        return lh.line_slice({"f": made(function)}, E1, extent=1, num=9, resume=resume, progress=False).losses["f"]

    def path(function, resume):
        thetas = [0 * E1, E1, E2]
        return lh.path_slice({"f": made(function)}, thetas, num=9, resume=resume, progress=False).losses["f"]

    for number, run in enumerate((line, path)):
        expected = run(Interrupted(), None)
        with pytest.raises(KeyboardInterrupt):
            run(Interrupted(1 + 5), tmp_path / str(number))  # one more times the engine
        rest = Interrupted()
        assert torch.equal(run(rest, tmp_path / str(number)), expected)
        assert rest.count == 3 + 4


def test_losses_that_agree_where_nothing_is_finite_or_at_the_center_are_told_apart(tmp_path):
    """The ends overflow for both, and in the middle an anchor is 0: only what lies between tells them apart."""
    loss = made(lambda t: torch.exp(t[0] ** 2) + t[1])
    losses = {epsilon: lh.objective.AnchoredObjective(loss, loss.theta0, epsilon) for epsilon in (0.1, 0.2)}
    center = loss.theta0
    for theta in (center, center - 40 * E1, center + 40 * E1):
        assert float(losses[0.1](theta)) == float(losses[0.2](theta))
    for number, run in enumerate(
        (
            lambda loss, resume: lh.line_slice({"f": loss}, E1, extent=(-40, 40), num=33, resume=resume),
            lambda loss, resume: lh.plane_slice(
                {"f": loss}, (E1, E2), extent=((-40, 40), (-1, 1)), num=(33, 3), resume=resume
            ),
        )
    ):
        run(losses[0.1], tmp_path / f"{number}.npz")
        run(losses[0.1], tmp_path / f"{number}.npz")
        with pytest.raises(ValueError, match="the file of a slice with another loss 'f', expected"):
            run(losses[0.2], tmp_path / f"{number}.npz")


def test_names_of_losses_with_commas_are_not_other_names(tmp_path):
    def run(*names):
        return lh.line_slice(
            dict.fromkeys(names, made(branching)), E1, extent=(-1, 1), num=5, resume=tmp_path / "a.npz"
        )

    run("a, b", "c")
    with pytest.raises(ValueError, match="the file of a slice with another names of the losses, expected"):
        run("a", "b, c")


def test_accuracies_and_values_that_are_not_finite_survive_the_file(tmp_path):
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3), (torch.randn(11, 4), torch.randint(0, 3, (11,)))
    losses: dict = {"classes": lh.Objective(model, data)}
    losses["log"] = lh.FunctionObjective(lambda t: (3 + t[0]).log(), losses["classes"].theta0)
    direction = torch.zeros(15)
    direction[0] = 1.0
    arguments = {"extent": (-5, 1), "num": 7, "engine": "point by point"}
    with pytest.raises(KeyboardInterrupt):
        stopped = {"classes": losses["classes"], "log": Stops(losses["log"], 4)}
        lh.line_slice(stopped, direction, resume=tmp_path / "line", **arguments)
    expected = lh.line_slice(losses, direction, **arguments)
    path = tmp_path / "line.npz"
    lh.line_slice(losses, direction, resume=path, **arguments)
    found = lh.line_slice(losses, direction, resume=path, **arguments)
    assert set(found.accuracies) == {"classes"}
    assert torch.equal(found.accuracies["classes"], expected.accuracies["classes"])
    assert bool(torch.isnan(found.losses["log"][0]))
    assert torch.equal(found.losses["log"].nan_to_num(), expected.losses["log"].nan_to_num())


OTHERS = {
    "extent or num": {"extent": (-1, 2.5)},
    "center": {"center": torch.zeros(3, dtype=torch.float64)},
    r"engine \('point by point'\)": {"engine": "vmap"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_of_another_call_is_refused_and_kept(what, tmp_path):
    path = tmp_path / "plane.npz"
    plane(Interrupted(), resume=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"resume is '.*plane.npz', the file of a slice with another .*{what}"):
        plane(Interrupted(), resume=path, **OTHERS[what])
    assert path.read_bytes() == before


def test_a_file_of_other_losses_or_directions_is_refused(tmp_path):
    path = tmp_path / "plane.npz"
    plane(Interrupted(), resume=path)
    with pytest.raises(ValueError, match="a slice with another loss 'f', expected a new file or that of this slice"):
        plane(Interrupted(scale=1 + 1e-15), resume=path)
    with pytest.raises(ValueError, match="with another names of the losses"):
        lh.plane_slice({"g": made(Interrupted())}, (E1, E2), extent=(-1, 2), num=(6, 5), resume=path)
    with pytest.raises(ValueError, match="with another directions"):
        lh.plane_slice({"f": made(Interrupted())}, (E2, E1), extent=(-1, 2), num=(6, 5), resume=path)
    with pytest.raises(ValueError, match=r"with another .*directions"):
        lh.line_slice({"f": made(Interrupted())}, E1, resume=path)


def test_what_is_no_resume_file_is_refused_and_kept(tmp_path):
    path = tmp_path / "notes.npz"
    path.write_text("not yours")
    with pytest.raises(ValueError, match=r"resume is '.*notes.npz', no resume file of a slice"):
        plane(Interrupted(), resume=path)
    assert path.read_text() == "not yours"
    result = plane(Interrupted()).save(tmp_path / "result")
    with pytest.raises(ValueError, match=r"resume is '.*result.npz', no resume file of a slice"):
        plane(Interrupted(), resume=result)
    with pytest.raises(ValueError, match=r"resume is .* expected a file in an existing folder"):
        plane(Interrupted(), resume="no/such/folder/plane")
    with pytest.raises(TypeError, match="resume is True, expected the path of a file, or None"):
        plane(Interrupted(), resume=True)


KILLED = """
import sys, time, torch, lowhanging as lh
def f(theta):
    time.sleep(0.02)
    return theta.sin().sum() + theta[0] * theta[1] ** 2
E1, E2 = torch.eye(3, dtype=torch.float64)[:2]
loss = lh.FunctionObjective(f, torch.ones(3, dtype=torch.float64))
lh.plane_slice({"f": loss}, (E1, E2), extent=(-1, 2), num=(200, 5), engine="point by point", resume=sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_a_killed_process_leaves_a_file_from_which_the_run_continues(tmp_path):
    path = tmp_path / "plane.npz"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], env=environment)
    try:
        for _ in range(1200):
            if path.exists() and np.load(path)["losses/f"].ndim and process.poll() is None:
                break
            time.sleep(0.05)
        time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    rest = Interrupted()
    found = plane(rest, resume=path, num=(200, 5))
    assert 3 <= rest.count < 3 + 1000
    assert torch.equal(found.losses["f"], plane(Interrupted(), num=(200, 5)).losses["f"])


def test_vmap_equals_point_by_point_to_rounding_and_the_center_to_the_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4))
    data = (torch.randn(23, 1, 6, 6), torch.randint(0, 4, (23,)))
    loss = lh.Objective(model, data, micro_batch=10)
    anchored = lh.objective.AnchoredObjective(loss, loss.theta0 + 1, 0.5)
    losses = {"loss": loss, "anchored": anchored}
    scans = {
        engine: lh.line_slice(losses, "filter", extent=(-1, 1), num=7, engine=engine)
        for engine in ("point by point", "vmap")
    }
    for name in losses:
        one, many = (scan.losses[name] for scan in scans.values())
        assert torch.allclose(one, many, rtol=1e-5)
        assert float(one[3]) == float(many[3]) == float(losses[name](loss.theta0))
        assert torch.equal(scans["vmap"].accuracies[name], scans["point by point"].accuracies[name])


def test_auto_measures_and_takes_the_quicker_engine(monkeypatch):
    """A sleep in Python is slept once for many points under vmap: there vmap must win; and where it sleeps, lose."""
    monkeypatch.setattr(evaluate, "_WORTH_MEASURING", 0.0)

    def slow(theta):
        time.sleep(0.01)
        return theta.sin().sum()

    def slow_together(theta):
        if isinstance(theta, torch.Tensor) and torch._C._functorch.is_batchedtensor(theta):
            time.sleep(0.2)
        time.sleep(0.01)
        return theta.sin().sum()

    assert lh.line_slice({"f": made(slow)}, E1, num=20).engine == "vmap"
    assert lh.line_slice({"f": made(slow_together)}, E1, num=20).engine == "point by point"


def test_a_short_run_is_not_measured():
    counted = Interrupted()
    scan = lh.line_slice({"f": made(counted)}, E1, num=20)
    assert scan.engine == "point by point"
    assert counted.count == 20 + 1


def branching(theta):
    return theta.sum() if theta[0].item() > 0 else -theta.sum()


def test_a_loss_that_vmap_cannot_follow_runs_point_by_point(monkeypatch):
    monkeypatch.setattr(evaluate, "_WORTH_MEASURING", 0.0)
    scan = lh.line_slice({"f": made(branching)}, E1, extent=(-3, 3), num=7)
    assert scan.engine == "point by point"
    assert scan.losses["f"].tolist() == [0, -1, -2, 3, 4, 5, 6]  # 3 + a, its sign turned where 1 + a <= 0
    with pytest.raises(ValueError, match="engine is 'vmap', which fails on these losses"):
        lh.line_slice({"f": made(branching)}, E1, engine="vmap")


class Wrong(nn.Module):
    """Gives another value when many weights are evaluated at once."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        is_many = torch._C._functorch.is_batchedtensor(self.linear.weight)
        return self.linear(x) * (1.05 if is_many else 1.0)


def test_vmap_is_compared_with_the_losses_themselves(monkeypatch):
    monkeypatch.setattr(evaluate, "_WORTH_MEASURING", 0.0)
    torch.manual_seed(0)
    loss = lh.Objective(Wrong(), (torch.randn(8, 3), torch.randn(8, 2)), loss_fn=F.mse_loss)
    assert lh.line_slice({"f": loss}, "gaussian", engine="auto").engine == "point by point"
    with pytest.raises(ValueError, match="fails on these losses \\(loss 'f' is off by"):
        lh.line_slice({"f": loss}, "gaussian", engine="vmap")


def test_losses_of_ones_own_need_not_be_evaluated_at_many_points():
    class Own(OwnLoss):
        def evaluate_many(self, thetas):
            raise NotImplementedError

    scan = lh.line_slice({"own": Own()}, E1, num=5)
    assert torch.equal(scan.losses["own"], lh.line_slice({"own": OwnLoss()}, E1, num=5).losses["own"])
    with pytest.raises(ValueError, match="engine is 'vmap'"):
        lh.line_slice({"own": Own()}, E1, engine="vmap")


def test_a_bar_is_shown_on_request(capsys):
    lh.line_slice({"f": made(Interrupted())}, E1, num=5, progress=True)
    assert "line slice" in capsys.readouterr().err
    plane(Interrupted(), progress=False)
    assert capsys.readouterr().err == ""


def small_network(wrapped=lambda loss: loss) -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return {"loss": wrapped(lh.Objective(model, (torch.randn(31, 4), torch.randint(0, 3, (31,))), micro_batch=10))}


@pytest.mark.parametrize("left", [20, 30, 41])
def test_an_interrupted_vmap_run_continues_to_the_same_bits(left, tmp_path):
    """Points in fours, rows of five: the file is cut in the middle of rows."""
    arguments = {"extent": 1.0, "num": (6, 5), "engine": "vmap", "progress": False}
    expected = lh.plane_slice(small_network(), "filter", **arguments)
    with pytest.raises(KeyboardInterrupt):
        lh.plane_slice(small_network(lambda loss: Stops(loss, left)), "filter", resume=tmp_path / "p", **arguments)
    assert (tmp_path / "p.npz").exists()
    found = lh.plane_slice(small_network(), "filter", resume=tmp_path / "p", **arguments)
    assert torch.equal(found.losses["loss"], expected.losses["loss"])
    assert torch.equal(found.accuracies["loss"], expected.accuracies["loss"])


def test_vmap_never_compares_points_with_what_lies_elsewhere(monkeypatch):
    """On a GPU torch.equal refuses tensors of two devices, and a run would silently fall back."""
    equal = torch.equal

    def strict(a, b):
        assert a.shape == b.shape
        return equal(a, b)

    monkeypatch.setattr(torch, "equal", strict)
    assert lh.line_slice(small_network(), "filter", num=5, engine="vmap").engine == "vmap"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda t: (t.sum() - 9).log(), lambda t: 2 * (t.sum() - 9).log()),  # both NaN at the center
        (lambda t: t.square().sum(), lambda t: (t.square() * torch.where(t.abs() > 1.5, 3.0, 1.0)).sum()),
    ],
)
def test_losses_that_agree_at_the_center_are_told_apart(one, other, tmp_path):
    theta0 = torch.tensor([4.0, 4.0, 4.0], dtype=torch.float64)
    center = torch.ones(3, dtype=torch.float64)
    arguments = {"extent": (-2, 8), "num": 11, "center": center, "resume": tmp_path / "line"}
    lh.line_slice({"f": made(one, theta0)}, E1, **arguments)
    with pytest.raises(ValueError, match="with another loss 'f'"):
        lh.line_slice({"f": made(other, theta0)}, E1, **arguments)


def test_a_file_made_without_accuracies_is_not_continued_with_them(tmp_path):
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3), (torch.randn(11, 4), torch.randint(0, 3, (11,)))
    summed = lh.Objective(
        model, data, batch_loss=lambda model, batch: (F.cross_entropy(model(batch[0]), batch[1]) * 11, 11)
    )
    arguments = {"num": 5, "engine": "point by point", "resume": tmp_path / "line"}
    lh.line_slice({"f": summed}, "gaussian", **arguments)
    with pytest.raises(ValueError, match="with another loss 'f'"):
        lh.line_slice({"f": lh.Objective(model, data)}, "gaussian", **arguments)


def test_resuming_asks_for_no_point_outside_the_slice(tmp_path):
    asked = []

    def function(theta):
        asked.append(theta.detach().clone())
        return theta.square().sum()

    loss = {"f": made(function)}
    asked.clear()
    for _ in range(2):
        lh.line_slice(loss, E1, extent=(0, 1e-3), num=5, resume=tmp_path / "line")
    assert all(float((theta - 1).abs().max()) <= 1.001e-3 for theta in asked)


def test_a_small_loss_that_vmap_gets_wrong_is_refused():
    class Small(Wrong):
        def forward(self, x):
            return 1e-4 * super().forward(x)

    torch.manual_seed(0)
    loss = lh.Objective(Small(), (torch.randn(8, 3), torch.zeros(8, 2)), loss_fn=F.mse_loss)
    with pytest.raises(ValueError, match=r"fails on these losses \(loss 'f' is off by"):
        lh.line_slice({"f": loss}, "gaussian", engine="vmap")


def test_evaluate_many_is_evaluate_row_by_row():
    loss = small_network()["loss"]
    anchored = lh.objective.AnchoredObjective(loss, loss.theta0 + 1, 0.5)
    function = lh.FunctionObjective(lambda t: t.sin().sum(), loss.theta0)
    thetas = loss.theta0 + torch.linspace(-1, 1, 5)[:, None]
    for each in (loss, anchored, function):
        values, accuracies = each.evaluate_many(thetas)
        assert values.dtype == torch.float64
        for i, theta in enumerate(thetas):
            value, accuracy = each.evaluate(theta)
            assert float(values[i]) == pytest.approx(float(value), rel=1e-5)
            assert (accuracies is None) == (accuracy is None)
            assert accuracy is None or float(accuracies[i]) == pytest.approx(accuracy)
    with pytest.raises(ValueError, match=r"thetas is a torch.float32 tensor of shape \(43,\)"):
        loss.evaluate_many(loss.theta0)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "plane.npz").mkdir()
    with pytest.raises(ValueError, match=r"plane.npz', no resume file of a slice"):
        plane(Interrupted(), resume=tmp_path / "plane")
