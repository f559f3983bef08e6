"""`lowhanging reproduce`, killed in training, in the polish and in another unit: the same command goes on.

Oracle: two runs of the same command at once in one folder, neither of them killed; byte for byte. That work is not
repeated is counted in epochs of the digit network and in gradients of its loss. A stack that is killed is in
`test_pipeline.py`.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowhanging.io import read_arrays
from lowhanging.reproduce import cli
from lowhanging.reproduce.settings import SIZES
from lowhanging.reproduce.themes.rates import CUES, LENGTHS

EPOCHS = 12
COMMAND = ["reproduce", "--tiny", f"--epochs={EPOCHS}", "--only", "learning,rates", "--no-figures", "--out"]

# A process that imports everything once, and then forks one for each command that it reads. It has computed nothing, so
# that nothing of it can be in a command's results. Each epoch, gradient and displaced network is printed as it begins;
# at the n-th of one kind the command kills itself, as a power cut would.
FORKING = """
import json, os, signal, sys
import dataclasses
from lowhanging.objective.objective import Objective
from lowhanging.objective.hvp import Products
from lowhanging.reproduce import cli, pipeline
from lowhanging.training.train import Loop

def run(doomed, left, arguments, output):
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(2, 1)

    def watch(owner, name, kind):
        method = getattr(owner, name)
        def call(*arguments, **options):
            nonlocal left
            print("begins:", kind, file=sys.stderr, flush=True)
            left -= kind == doomed
            if kind == doomed and left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*arguments, **options)
        setattr(owner, name, call)

    def watched(theme):
        def measure(context):
            watch(Objective, "evaluate", "displaced")
            return theme.measure(context)
        return dataclasses.replace(theme, measure=measure)

    watch(Loop, "_epoch", "epoch")
    watch(Products, "value_and_gradient", "gradient")
    pipeline.THEMES = [watched(theme) if theme.name == "rates" else theme for theme in pipeline.THEMES]
    return cli.main(arguments)

for line in sys.stdin:
    process = os.fork()
    if process == 0:
        status = 1
        try:
            status = run(*json.loads(line))
        finally:
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Commands:
    """Runs of the command, one after the other, each in a process of its own."""

    def __init__(self, folder: Path):
        self.output = folder / "output"
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", FORKING], **options)

    def start(self, out: Path, kind: str = "nothing", place: int = 1) -> None:
        self.output.unlink(missing_ok=True)
        print(json.dumps([kind, place, [*COMMAND, str(out)], str(self.output)]), file=self.process.stdin, flush=True)

    def end(self) -> tuple[int, str]:
        """Exit status (minus the signal), and what was printed."""
        status = int(self.process.stdout.readline())
        return status, self.output.read_text()


def held_by(path: Path) -> int:
    """Epochs of a training, evaluations of a polish."""
    meta = json.loads(str(read_arrays(path)["__lowhanging__"]))
    state = dict(meta["state"]["mapping"])
    return len(state["calls"]) if "calls" in state else len(dict(state["history"]["mapping"])["lr"]) - 1


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    found = Commands(tmp_path_factory.mktemp("output"))
    yield found
    found.process.stdin.close()
    found.process.stdout.close()
    assert found.process.wait(60) == 0


def begun(output: str) -> Counter[str]:
    return Counter(re.findall(r"begins: (\w+)", output))  # also where a bar stands before it


@pytest.fixture(scope="module")
def whole(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two runs left that worked in one folder at the same time."""
    out = tmp_path_factory.mktemp("run") / "whole"
    commands.start(out)
    while not list(out.glob("work/*/seed-0")):
        assert commands.process.poll() is None
        time.sleep(0.02)
    assert cli.main([*COMMAND, str(out)]) == 0
    status, output = commands.end()
    assert status == 0, output
    return out


def test_two_runs_at_once_leave_whole_files_only(whole: Path) -> None:
    names = {path.name for path in whole.glob("work/*/seed-0/*")}
    assert names == {"training.npz", "minimum.npz", "unit-learning.json", "unit-rates.json"}
    assert {path.name for path in whole.iterdir()} == {"results.json", "claims.md", "index.html", "work"}


def test_a_run_killed_three_times_repeats_nothing_and_ends_with_the_same_bytes(
    commands: Commands, whole: Path, tmp_path: Path
) -> None:
    out, counts, held = tmp_path / "killed", [], []
    for kind, place, kept in (
        ("epoch", 8, {"training-resume.npz"}),  # seven are done
        ("gradient", 6, {"training.npz", "minimum-resume.npz"}),  # five are done
        ("displaced", 4, {"training.npz", "minimum.npz", "unit-learning.json"}),
    ):
        commands.start(out, kind, place)
        status, output = commands.end()
        assert status == -signal.SIGKILL, output
        counts.append(begun(output))
        assert {path.name for path in out.glob("work/*/seed-0/[!.]*")} == kept
        assert not (out / "results.json").exists()
        held += [held_by(path) for path in out.glob("work/*/seed-0/*-resume.npz")]
    commands.start(out)
    status, output = commands.end()
    assert status == 0, output
    assert "train and polish: finished earlier" in output
    counts.append(begun(output))
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert (out / "claims.md").read_bytes() == (whole / "claims.md").read_bytes()
    (row,) = json.loads((out / "results.json").read_text())["rows"]["learning"]
    num_gradients = row["minimum"]["num_gradients"]
    assert num_gradients > 6
    # Writing takes a tenth of the time at most: on a slow disk the file may lack what was done last.
    assert 1 <= held[0] <= 7
    assert [each["epoch"] for each in counts] == [8, EPOCHS - held[0], 0, 0]
    # The first gradient and the last are taken again, to know that the file is of this loss; two in float64 tell how
    # far the smallest eigenvalue is rounded.
    assert 1 <= held[1] <= 5
    assert [each["gradient"] for each in counts] == [0, 6, num_gradients - held[1] + min(2, held[1]) + 2, 0]
    per_cue = 1 + len(LENGTHS) * SIZES["tiny"].displacements
    assert [each["displaced"] for each in counts] == [0, 0, 4, len(CUES) * per_cue]
