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
from lowhanging.basin import points

E1, E2 = torch.eye(3, dtype=torch.float64)[:2]


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


def plane(function, resume=None, **arguments) -> lh.PlaneSlice:
    arguments = {"extent": (-1, 2), "num": (6, 5), "engine": "point by point", "progress": False} | arguments
    return lh.plane_slice({"f": made(function)}, (E1, E2), resume=resume, **arguments)


@pytest.mark.parametrize("left", [2 + 3, 2 + 5, 2 + 17, 2 + 29])  # two evaluations identify the loss
def test_an_interrupted_plane_continues_to_the_same_bits(left, tmp_path):
    expected = plane(Interrupted())
    path = tmp_path / "plane.npz"
    with pytest.raises(KeyboardInterrupt):
        plane(Interrupted(left), resume=path)
    rows = (left - 2) // 5
    assert path.exists() == (rows > 0)
    rest = Interrupted()
    found = plane(rest, resume=path)
    assert rest.count == 2 + 30 - 5 * rows  # whole rows are not evaluated again
    assert torch.equal(found.losses["f"], expected.losses["f"])
    again = Interrupted()
    assert torch.equal(plane(again, resume=path).losses["f"], expected.losses["f"])
    assert again.count == 2
    assert list(tmp_path.iterdir()) == [path]


def test_lines_and_paths_are_resumed_too(tmp_path):
    def line(function, resume):
        return lh.line_slice({"f": made(function)}, E1, (-1, 1), 9, resume=resume, progress=False).losses["f"]

    def path(function, resume):
        thetas = [0 * E1, E1, E2]
        return lh.path_slice({"f": made(function)}, thetas, 9, resume=resume, progress=False).losses["f"]

    for number, run in enumerate((line, path)):
        expected = run(Interrupted(), None)
        with pytest.raises(KeyboardInterrupt):
            run(Interrupted(2 + 2 + 5), tmp_path / str(number))  # two more time the engine
        rest = Interrupted()
        assert torch.equal(run(rest, tmp_path / str(number)), expected)
        assert rest.count == 2 + 4


def test_accuracies_and_values_that_are_not_finite_survive_the_file(tmp_path):
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3), (torch.randn(11, 4), torch.randint(0, 3, (11,)))
    losses: dict = {"classes": lh.Objective(model, data)}
    losses["log"] = lh.FunctionObjective(lambda t: (3 + t[0]).log(), losses["classes"].theta0)
    direction = torch.zeros(15)
    direction[0] = 1.0
    arguments = {"extent": (-5, 1), "num": 7, "engine": "point by point"}
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
    with pytest.raises(ValueError, match=f"resume is '.*plane.npz', the file of a run with another .*{what}"):
        plane(Interrupted(), resume=path, **OTHERS[what])
    assert path.read_bytes() == before


def test_a_file_of_other_losses_or_directions_is_refused(tmp_path):
    path = tmp_path / "plane.npz"
    plane(Interrupted(), resume=path)
    with pytest.raises(ValueError, match="a run with another loss 'f', expected a new file or that of this run"):
        plane(Interrupted(scale=1 + 1e-15), resume=path)
    with pytest.raises(ValueError, match="another loss 'f', loss 'g', names of the losses"):
        lh.plane_slice({"g": made(Interrupted())}, (E1, E2), (-1, 2), (6, 5), resume=path)
    with pytest.raises(ValueError, match="with another directions"):
        lh.plane_slice({"f": made(Interrupted())}, (E2, E1), (-1, 2), (6, 5), resume=path)
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
lh.plane_slice({"f": loss}, (E1, E2), (-1, 2), (200, 5), engine="point by point", resume=sys.argv[1], progress=False)
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
    assert 2 <= rest.count < 2 + 1000
    assert torch.equal(found.losses["f"], plane(Interrupted(), num=(200, 5)).losses["f"])


def test_vmap_equals_point_by_point_to_rounding_and_the_center_to_the_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4))
    data = (torch.randn(23, 1, 6, 6), torch.randint(0, 4, (23,)))
    loss = lh.Objective(model, data, micro_batch=10)
    anchored = lh.AnchoredObjective(loss, loss.theta0 + 1, 0.5)
    losses = {"loss": loss, "anchored": anchored}
    scans = {
        engine: lh.line_slice(losses, "filter", (-1, 1), 7, engine=engine) for engine in ("point by point", "vmap")
    }
    for name in losses:
        one, many = (scan.losses[name] for scan in scans.values())
        assert torch.allclose(one, many, rtol=1e-5)
        assert float(one[3]) == float(many[3]) == float(losses[name](loss.theta0))
        assert torch.equal(scans["vmap"].accuracies[name], scans["point by point"].accuracies[name])


def test_auto_measures_and_takes_the_quicker_engine(monkeypatch):
    """A sleep in Python is slept once for many points under vmap: there vmap must win; and where it sleeps, lose."""
    monkeypatch.setattr(points, "_WORTH_MEASURING", 0.0)

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
    assert counted.count == 20 + 2


def branching(theta):
    return theta.sum() if theta[0].item() > 0 else -theta.sum()


def test_a_loss_that_vmap_cannot_follow_runs_point_by_point(monkeypatch):
    monkeypatch.setattr(points, "_WORTH_MEASURING", 0.0)
    scan = lh.line_slice({"f": made(branching)}, E1, (-3, 3), 7)
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
    monkeypatch.setattr(points, "_WORTH_MEASURING", 0.0)
    torch.manual_seed(0)
    loss = lh.Objective(Wrong(), (torch.randn(8, 3), torch.randn(8, 2)), loss_fn=F.mse_loss)
    assert lh.line_slice({"f": loss}, "gaussian", engine="auto").engine == "point by point"
    with pytest.raises(ValueError, match="fails on these losses \\(loss 'f' is off by"):
        lh.line_slice({"f": loss}, "gaussian", engine="vmap")


def test_losses_of_ones_own_need_no_evaluate_many():
    inner = made(Interrupted())

    class Own:
        theta0, num_params, engine = inner.theta0, 3, "own"
        hvp, at = inner.hvp, inner.at

        def evaluate(self, theta):
            return inner.evaluate(theta)

    scan = lh.line_slice({"own": Own()}, E1, num=5)
    assert torch.equal(scan.losses["own"], lh.line_slice({"own": inner}, E1, num=5).losses["own"])
    with pytest.raises(ValueError, match="engine is 'vmap'"):
        lh.line_slice({"own": Own()}, E1, engine="vmap")


def test_a_bar_is_shown_on_request(capsys):
    lh.line_slice({"f": made(Interrupted())}, E1, num=5, progress=True)
    assert "line slice" in capsys.readouterr().err
    plane(Interrupted(), progress=False)
    assert capsys.readouterr().err == ""
