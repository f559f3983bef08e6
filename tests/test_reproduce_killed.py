"""`lowhanging reproduce`, killed in training, in the polish and in another unit: the same command goes on.

Oracle: two runs of the same command at once in one folder, neither of them killed; byte for byte. That work is not
repeated is counted in epochs of the digit network and in gradients of its loss. A stack that is killed is in
`test_reproduce_report.py`.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lowhanging.reproduce import cli
from lowhanging.reproduce.rates import CUES, LENGTHS
from lowhanging.reproduce.settings import SIZES

EPOCHS = 12
COMMAND = ["reproduce", "--tiny", f"--epochs={EPOCHS}", "--only", "learning,rates", "--no-figures", "--out"]

# The command, telling each epoch, gradient and displaced network when it begins; at the n-th of one kind it kills
# itself, as a power cut would.
COUNTED = """
import os, signal, sys
from lowhanging.objective import Objective
from lowhanging.products import Products
from lowhanging.reproduce import cli, rates
from lowhanging.training_loop import Loop

doomed, left = sys.argv[1], int(sys.argv[2])

def tell(owner, name, kind):
    method = getattr(owner, name)
    def call(*arguments, **options):
        global left
        print("begins:", kind, file=sys.stderr, flush=True)
        left -= kind == doomed
        if kind == doomed and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments, **options)
    setattr(owner, name, call)

def measure(*arguments):
    tell(Objective, "evaluate", "displaced")
    return inner(*arguments)

tell(Loop, "_epoch", "epoch")
tell(Products, "value_and_gradient", "gradient")
inner, rates.measure = rates.measure, measure
sys.exit(cli.main(sys.argv[3:]))
"""


def started(out: Path, kind: str = "nothing", place: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COUNTED, kind, str(place), *COMMAND, str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def begun(told: str) -> Counter[str]:
    return Counter(re.findall(r"begins: (\w+)", told))  # also where a bar stands before it


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two runs left that worked in one folder at the same time."""
    out = tmp_path_factory.mktemp("run") / "whole"
    other = started(out)
    while not list(out.glob("work/*/seed-0")):
        assert other.poll() is None
        time.sleep(0.02)
    assert cli.main([*COMMAND, str(out)]) == 0
    told = other.communicate()[1]
    assert other.returncode == 0, told
    return out


def test_two_runs_at_once_leave_whole_files_only(whole: Path) -> None:
    names = {path.name for path in whole.glob("work/*/seed-0/*")}
    assert names == {"training.npz", "minimum.npz", "unit-learning.json", "unit-rates.json"}
    assert {path.name for path in whole.iterdir()} == {"results.json", "claims.md", "index.html", "work"}


def test_a_run_killed_three_times_repeats_nothing_and_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    out, counts = tmp_path / "killed", []
    for kind, place, kept in (
        ("epoch", 8, {"training-resume.npz"}),  # seven are done
        ("gradient", 6, {"training.npz", "minimum-resume.npz"}),  # five are done
        ("displaced", 4, {"training.npz", "minimum.npz", "unit-learning.json"}),
    ):
        process = started(out, kind, place)
        told = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, told
        counts.append(begun(told))
        assert {path.name for path in out.glob("work/*/seed-0/[!.]*")} == kept
        assert not (out / "results.json").exists()
    process = started(out)
    told = process.communicate()[1]
    assert process.returncode == 0, told
    assert "train and polish: finished earlier" in told
    counts.append(begun(told))
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert (out / "claims.md").read_bytes() == (whole / "claims.md").read_bytes()
    (row,) = json.loads((out / "results.json").read_text())["rows"]["learning"]
    num_gradients = row["minimum"]["num_gradients"]
    assert num_gradients > 6
    assert [each["epoch"] for each in counts] == [8, EPOCHS - 7, 0, 0]
    # The first gradient is taken again, to know that the file is of this loss.
    assert [each["gradient"] for each in counts] == [0, 6, num_gradients - 5 + 1, 0]
    per_cue = 1 + len(LENGTHS) * SIZES["tiny"].displacements
    assert [each["displaced"] for each in counts] == [0, 0, 4, len(CUES) * per_cue]
