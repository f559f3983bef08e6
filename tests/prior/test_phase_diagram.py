"""Grids of an experiment: means and intervals against paper, a planted border, no border where there is none.

Oracles: binomial and Student intervals on paper, a border that was put into the experiment, an experiment that does not
look at its setting, and a call that was interrupted against one that was not.
"""

import functools
import math
import random
import sys
import types

import numpy as np
import pytest
import torch

import lowhanging as lh
from lowhanging.prior import Border, PhaseDiagram

GRID = tuple(round(0.1 * i, 1) for i in range(11))


def noise(seed, *place):
    """A uniform number of a cell and a seed."""
    return np.random.default_rng([seed, *place]).random()


def planted(setting, seed, *, at=0.37, steepness=25.0, repetition=0):
    """Found with a probability that passes one half at x = `at`; and a number with normal noise that does so too."""
    x = setting["x"]
    chance = 1 / (1 + math.exp(-steepness * (x - at)))
    rng = np.random.default_rng([repetition, seed, round(1000 * x)])
    return {"found": rng.random() < chance, "number": chance + 0.2 * rng.standard_normal()}


def equal(setting, seed, *, repetition=0):
    """Two cues that are followed with equal chances, whatever the setting."""
    rng = np.random.default_rng([repetition, seed, round(1000 * setting["x"])])
    return {"found": rng.random() < 0.5, "number": 0.5 + 0.2 * rng.standard_normal()}


def diagram_of(values, **axes) -> PhaseDiagram:
    return PhaseDiagram(axes, torch.arange(len(values[0])), {"y": torch.tensor(values, dtype=torch.float64)})


# Numbers, means and intervals -----------------------------------------------------------------------------------------


def test_every_number_stands_in_its_cell():
    def experiment(setting, seed):
        assert isinstance(setting, dict)
        assert isinstance(seed, int)
        rank = {"sgd": 0, "adam": 1}[setting["optimizer"]]
        size = setting["size"]
        setting.clear()  # its own copy
        return {
            "sum": 100 * rank + 10 * size + seed,
            "is_even": np.bool_(seed % 2 == 0),
            "late": torch.tensor(math.nan),
        }

    diagram = lh.phase_diagram(
        experiment, {"optimizer": ["sgd", "adam"], "size": np.array([1, 2, 3])}, seeds=[4, 1], progress=False
    )
    assert diagram.shape == (2, 3)
    assert diagram.axes == {"optimizer": ("sgd", "adam"), "size": (1, 2, 3)}
    assert diagram.seeds.tolist() == [4, 1]
    expected = [[[100 * o + 10 * n + seed for seed in (4, 1)] for n in (1, 2, 3)] for o in (0, 1)]
    assert diagram.values["sum"].tolist() == expected
    assert diagram.mean("is_even").tolist() == [[0.5] * 3] * 2
    assert diagram.num_seeds("late").tolist() == [[0] * 3] * 2
    assert bool(diagram.mean("late").isnan().all())
    assert repr(diagram) == (
        "PhaseDiagram(optimizer (2) × size (3), 2 seeds; "
        "means: sum 12.5 to 132, is_even 0.5 to 0.5, late none (12 runs missing))"
    )
    part = diagram.at({"size": 2})
    assert part.axes == {"optimizer": ("sgd", "adam")}
    assert part.values["sum"].tolist() == [expected[0][1], expected[1][1]]


def test_seeds_at_once_are_the_same_as_one_by_one():
    def one(setting, seed):
        return {"a": seed * setting["x"], "b": math.nan if seed == 2 else 1.0}

    def several(setting, seeds):
        assert seeds == [0, 1, 2]
        found = [one(setting, seed) for seed in seeds]
        return {"a": torch.tensor([each["a"] for each in found]), "b": [each["b"] for each in found]}

    options = {"axes": {"x": [1.0, 3.0]}, "seeds": range(3), "progress": False}
    apart, together = lh.phase_diagram(one, **options), lh.phase_diagram(several, together=True, **options)
    for name in ("a", "b"):
        assert torch.equal(apart.values[name].nan_to_num(-1), together.values[name].nan_to_num(-1))


def test_outcomes_have_exact_binomial_intervals():
    """All of n: the lower end is (alpha / 2)^(1 / n); none: the upper one is its complement; and SciPy's in between."""
    from scipy.stats import binomtest

    diagram = diagram_of([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, math.nan, 0], [math.nan] * 4], x=(1, 2, 3, 4))
    assert diagram.is_outcome("y")
    low = 0.025**0.25
    found = diagram.interval("y")
    assert found[0].tolist() == pytest.approx([low, 1.0])
    assert found[1].tolist() == pytest.approx([0.0, 1 - low])
    exact = binomtest(1, 3).proportion_ci(0.95)
    assert found[2].tolist() == pytest.approx([exact.low, exact.high])
    assert found[3].tolist() == [0.0, 1.0]
    narrow = diagram.interval("y", confidence=0.5)
    assert narrow[0].tolist() == pytest.approx([0.25**0.25, 1.0])


def test_other_numbers_have_students_interval():
    from scipy.stats import t

    diagram = diagram_of([[1.0, 2.0, 4.0, math.nan], [5.0, math.nan, math.nan, math.nan], [2.0] * 4], x=(1, 2, 3))
    assert not diagram.is_outcome("y")
    found, row = diagram.interval("y"), np.array([1.0, 2.0, 4.0])
    half = t.ppf(0.975, 2) * row.std(ddof=1) / math.sqrt(3)
    assert found[0].tolist() == pytest.approx([row.mean() - half, row.mean() + half])
    assert found[1].tolist() == [-math.inf, math.inf]  # one seed says nothing of the others
    assert found[2].tolist() == [2.0, 2.0]
    assert diagram.num_seeds("y").tolist() == [3, 1, 4]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ((1, 2, 4, 8), "log"),
        ((1, 10, 100), "log"),
        ((1, 2, 3, 4), "linear"),
        ((0, 1, 10, 100), "linear"),
        ((2, 8), "linear"),
        (("a", "b"), "categories"),
    ],
)
def test_scales(values, scale):
    assert diagram_of([[0.0]] * len(values), x=values).scale("x") == scale


# Borders --------------------------------------------------------------------------------------------------------------


def test_a_border_is_interpolated_between_neighbours_on_paper():
    steps = diagram_of([[0.0] * 6, [0.2] * 6, [0.8] * 6, [1.0] * 6], x=(0.0, 1.0, 2.0, 3.0))
    found = steps.border("y", "x", level=0.35)
    assert float(found.position) == pytest.approx(1.25)
    assert found.interval.tolist() == [1.0, 2.0]  # all seeds agree: still not narrower than a cell
    assert bool(found.is_rising)
    assert int(found.num_crossings) == 1
    assert float(found.crossing_share) == 1.0
    ratios = diagram_of([[0.0] * 6, [0.2] * 6, [0.8] * 6, [1.0] * 6], x=(1, 4, 16, 64))
    assert float(ratios.border("y", "x", level=0.5).position) == pytest.approx(8.0)  # the geometric mean
    falling = diagram_of([[1.0] * 6, [0.8] * 6, [0.2] * 6, [0.0] * 6], x=(0.0, 1.0, 2.0, 3.0))
    assert not bool(falling.border("y", "x", level=0.5).is_rising)
    gap = diagram_of([[0.0] * 6, [math.nan] * 6, [1.0] * 6, [1.0] * 6], x=(0.0, 1.0, 2.0, 3.0))
    assert float(gap.border("y", "x", level=0.25).position) == pytest.approx(0.5)
    assert gap.border("y", "x", level=0.25).interval.tolist() == [0.0, 2.0]


def test_a_phase_between_two_others_has_two_borders():
    hump = diagram_of([[0.0] * 5, [1.0] * 5, [1.0] * 5, [0.0] * 5], x=(1.0, 2.0, 3.0, 4.0))
    first, last = (hump.border("y", "x", level=0.5, which=which) for which in ("first", "last"))
    assert (float(first.position), float(last.position)) == (1.5, 3.5)
    assert bool(first.is_rising) and not bool(last.is_rising)
    assert int(first.num_crossings) == int(last.num_crossings) == 2


@pytest.mark.parametrize("name", ["found", "number"])
def test_a_planted_border_is_recovered_within_a_cell_at_its_confidence(name):
    """Over 60 repetitions with five seeds each: the interval holds it as often as it says, and nearly all see it."""
    held, errors = [], []
    for repetition in range(60):
        at = 0.25 + 0.5 * noise(repetition, 1)
        experiment = functools.partial(planted, at=at, repetition=repetition)
        diagram = lh.phase_diagram(experiment, {"x": GRID}, progress=False)
        border = diagram.border(name, "x", level=0.5, num_resamples=300)
        low, high = border.interval.tolist()
        held.append(low <= at <= high)
        errors.append(abs(float(border.position) - at))
    assert np.mean(held) >= 0.9
    assert np.median(errors) < 0.1
    assert np.mean(np.array(errors) < 0.1) >= 0.85


@pytest.mark.parametrize("name", ["found", "number"])
def test_equal_cues_have_no_border(name):
    """No more often than the test allows: 5 % of 100 repetitions, four standard errors on top."""
    found = []
    for repetition in range(100):
        experiment = functools.partial(equal, repetition=repetition)
        diagram = lh.phase_diagram(experiment, {"x": GRID[::2]}, progress=False)
        found.append(bool(diagram.border(name, "x", level=0.5, num_resamples=200).exists))
    assert sum(found) <= 13
    always = diagram_of([[0.5] * 5] * 4, x=GRID[:4]).border("y", "x", level=0.5)
    assert bool(always.position.isnan()) and int(always.num_crossings) == 0
    assert float(always.p_value) == 1.0


def test_a_mean_that_changes_without_reaching_the_level_has_no_border():
    low = diagram_of([[0.0] * 5, [0.2] * 5, [0.4] * 5], x=(0.0, 1.0, 2.0)).border("y", "x", level=0.5)
    assert not bool(low.exists)
    assert float(low.p_value) < 0.05
    assert float(low.crossing_share) == 0.0
    assert repr(low) == "Border(y = 0.5 along x: no border)"
    # One seed in five: the level is crossed by whom it was drawn.
    one = diagram_of([[0.0] * 6, [0.3, 0.3, 0.3, 0.3, 0.3, 1.6], [0.4] * 6], x=(0.0, 1.0, 2.0))
    assert int(one.border("y", "x", level=0.5).num_crossings) == 2
    assert not bool(one.border("y", "x", level=0.5).exists)


def test_a_border_for_each_cell_of_the_other_axes(tmp_path):
    def experiment(setting, seed):
        return {"found": setting["x"] > setting["y"] + 0.01 * seed}

    diagram = lh.phase_diagram(experiment, {"x": GRID, "y": [0.22, 0.52, 2.0]}, progress=False)
    border = diagram.border("found", "x", level=0.5)
    assert border.axes == {"y": (0.22, 0.52, 2.0)}
    assert border.exists.tolist() == [True, True, False]
    assert border.position[:2].tolist() == pytest.approx([0.25, 0.55])
    assert repr(border) == ("Border(found = 0.5 along x, by y: 0.25 [0.2, 0.3]; 0.55 [0.5, 0.6]; no border)")
    assert torch.equal(border.interval[0], diagram.at({"y": 0.22}).border("found", "x", level=0.5).interval)
    other_way = diagram.border("found", "y", level=0.5)
    assert other_way.position.shape == (len(GRID),)
    loaded = lh.load(border.save(tmp_path / "border"))
    assert isinstance(loaded, Border) and repr(loaded) == repr(border)


# Resuming, files, random states ---------------------------------------------------------------------------------------


class Failing:
    """An experiment that fails at one run until it is mended, and counts its calls."""

    def __init__(self, at=None, kind=RuntimeError):
        self.at, self.kind, self.calls = at, kind, []

    def __call__(self, setting, seed):
        self.calls.append((setting["x"], seed))
        if self.calls[-1] == self.at:
            raise self.kind("the disk is full")
        return {"y": noise(seed, setting["x"]), "late": math.nan if seed == 1 else 3.0}


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_grid_goes_on_to_the_same_bits(tmp_path, kind):
    axes, path = {"x": [1, 2, 3]}, tmp_path / "grid.npz"
    whole = lh.phase_diagram(Failing(), axes, seeds=range(4), progress=False)
    failing = Failing((2, 2), kind)
    with pytest.raises(kind, match="the disk is full") as caught:
        lh.phase_diagram(failing, axes, seeds=range(4), resume=path, progress=False)
    (note,) = caught.value.__notes__
    assert note.startswith("lowhanging.phase_diagram: at {'x': 2}, seed 2; 6 of 12 runs were finished, they are in ")
    mended = Failing()
    resumed = lh.phase_diagram(mended, axes, seeds=range(4), resume=path, progress=False)
    assert mended.calls[0] == (2, 2) and len(mended.calls) == 6
    again = Failing()
    read = lh.phase_diagram(again, axes, seeds=range(4), resume=path, progress=False)
    assert again.calls == []
    for diagram in (resumed, read):
        assert list(diagram.values) == list(whole.values)
        assert all(torch.equal(diagram.values[n].nan_to_num(-1), whole.values[n].nan_to_num(-1)) for n in whole.values)


def test_a_first_run_that_fails_leaves_no_file_and_says_so(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        lh.phase_diagram(Failing((1, 0)), {"x": [1]}, resume=tmp_path / "grid", progress=False)
    assert not (tmp_path / "grid.npz").exists()
    with pytest.raises(RuntimeError) as caught:
        lh.phase_diagram(Failing((1, 1)), {"x": [1]}, progress=False)
    assert caught.value.__notes__[0].endswith("1 of 5 runs were finished, resume= would have kept them.")


def test_files_of_other_calls_and_damaged_ones_are_refused(tmp_path):
    axes, path = {"x": [0.0, 1.0]}, tmp_path / "grid.npz"
    first = functools.partial(planted, at=0.5)
    lh.phase_diagram(first, axes, resume=path, progress=False)
    for experiment, changed, options, what in (
        (functools.partial(planted, at=0.6), axes, {}, "experiment"),
        (equal, axes, {}, "experiment"),
        (first, axes, {"together": True}, "experiment"),
        (first, {"x": [0.0, 2.0]}, {}, "axes"),
        (first, axes, {"seeds": range(3)}, "seeds"),
    ):
        with pytest.raises(ValueError, match=rf"the file of a phase diagram with another {what}"):
            lh.phase_diagram(experiment, changed, resume=path, progress=False, **options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(lh.DamagedFileError, match="no resume file of a phase diagram"):
        lh.phase_diagram(first, axes, resume=path, progress=False)
    other = tmp_path / "slice.npz"
    loss = lh.FunctionObjective(lambda theta: theta.square().sum(), torch.zeros(2))
    lh.line_slice(loss, torch.ones(2), num=3, extent=1.0, resume=other, progress=False)
    with pytest.raises(lh.DamagedFileError, match="no resume file of a phase diagram"):
        lh.phase_diagram(first, axes, resume=other, progress=False)


def test_a_file_whose_numbers_do_not_fit_is_damaged(tmp_path):
    from lowhanging.io import ResumeFile

    axes, path = {"x": [0.0, 1.0]}, tmp_path / "grid.npz"
    lh.phase_diagram(equal, axes, seeds=[0], resume=path, progress=False)
    identity = {"experiment": "equal", "axes": repr({"x": (0.0, 1.0)}), "seeds": "[0]"}
    for state in (
        {"num_done": 3, "values": {}},
        {"num_done": 1, "values": {"found": torch.zeros(5)}},
        {"values": {}},
    ):
        ResumeFile(path, identity, kind="a phase diagram").write(state)
        with pytest.raises(lh.DamagedFileError):
            lh.phase_diagram(equal, axes, seeds=[0], resume=path, progress=False)


def test_saved_and_loaded(tmp_path):
    def experiment(setting, seed):
        return {"y": setting["x"] * seed if setting["kind"] == "a" else math.nan}

    diagram = lh.phase_diagram(experiment, {"kind": ["a", "b"], "x": [1, 2.5]}, progress=False)
    loaded = lh.load(diagram.save(tmp_path / "diagram"))
    assert repr(loaded) == repr(diagram)
    assert loaded.axes == diagram.axes and loaded.scale("kind") == "categories"
    assert torch.equal(loaded.values["y"].nan_to_num(-1), diagram.values["y"].nan_to_num(-1))


def test_the_random_states_are_the_experiments_own():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    diagram = lh.phase_diagram(planted, {"x": GRID}, progress=False)
    border = diagram.border("found", "x", level=0.5)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    again = diagram.border("found", "x", level=0.5)
    assert torch.equal(border.interval, again.interval)
    assert float(border.p_value) == float(again.p_value)


# Tables ---------------------------------------------------------------------------------------------------------------


def table_of(diagram, monkeypatch):
    """What pandas would be given."""
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda columns: columns))
    return diagram.to_dataframe()


def test_a_row_of_the_table_is_a_run(monkeypatch):
    def experiment(setting, seed):
        return {"y": 100 * (setting["kind"] == "b") + 10 * setting["x"] + seed}

    diagram = lh.phase_diagram(experiment, {"kind": ["a", "b"], "x": [1, 2]}, seeds=[0, 5], progress=False)
    columns = table_of(diagram, monkeypatch)
    assert list(columns) == ["kind", "x", "seed", "y"]
    rows = list(zip(*columns.values(), strict=True))
    assert len(rows) == 8
    assert all(y == 100 * (kind == "b") + 10 * x + seed for kind, x, seed, y in rows)


def test_the_table_of_pandas():
    pytest.importorskip("pandas")
    table = lh.phase_diagram(planted, {"x": GRID}, progress=False).to_dataframe()
    assert list(table.columns) == ["x", "seed", "found", "number"]
    assert len(table) == 5 * len(GRID)


def test_without_pandas_the_table_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    diagram = lh.phase_diagram(planted, {"x": GRID}, progress=False)
    with pytest.raises(ImportError, match=r'pandas is not installed, expected .*\n.*pip install "\.\[tables\]"'):
        diagram.to_dataframe()


# Messages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "kind", "message"),
    [
        ([1, 2], TypeError, "axes is a list, expected a mapping name -> values"),
        ({}, ValueError, "axes has the names"),
        ({"seed": [1]}, ValueError, "axes has the names .* none called 'seed'"),
        (dict.fromkeys("abcd", (1,)), ValueError, "expected one to 3 axes"),
        ({"x": []}, ValueError, r"axes\['x'\] is \[\]"),
        ({"x": [1, 1]}, ValueError, r"axes\['x'\] is \[1, 1\], expected ascending finite numbers"),
        ({"x": [2, 1]}, ValueError, "ascending"),
        ({"x": [1, math.nan]}, ValueError, "ascending finite"),
        ({"x": [1, "a"]}, TypeError, r"axes\['x'\] holds 'a'"),
        ({"x": [True, False]}, TypeError, r"axes\['x'\] holds True"),
        ({"x": "ab"}, TypeError, r"axes\['x'\] is 'ab'"),
        ({"x": 3}, TypeError, r"axes\['x'\] is 3"),
        ({"x": ["a", "a"]}, ValueError, "different strings"),
    ],
)
def test_bad_axes(axes, kind, message):
    with pytest.raises(kind, match=message):
        lh.phase_diagram(equal, axes)


@pytest.mark.parametrize(
    ("experiment", "options", "kind", "message"),
    [
        (3, {}, TypeError, "experiment is an int, expected a callable"),
        (lambda setting, seed: 0.5, {}, TypeError, "experiment returned a float, expected a mapping name -> number"),
        (lambda setting, seed: {}, {}, ValueError, "the experiment's result has the names"),
        (lambda setting, seed: {"x": 1}, {}, ValueError, r"experiment returned the names \['x'\]"),
        (lambda setting, seed: {"seed": 1}, {}, ValueError, r"experiment returned the names \['seed'\]"),
        (lambda setting, seed: {"y": "a"}, {}, TypeError, "experiment returned a str for 'y', expected a number"),
        (lambda setting, seed: {"y": None}, {}, TypeError, "experiment returned a NoneType for 'y'"),
        (lambda setting, seed: {"y": torch.zeros(2)}, {}, TypeError, "experiment returned a Tensor for 'y'"),
        (lambda setting, seed: {"y": math.inf}, {}, ValueError, "returned inf for 'y'.*\nReturn NaN where"),
        (lambda setting, seed: {str(seed): 1}, {}, ValueError, r"gave the names \['1'\], before \['0'\]"),
        (lambda setting, seeds: {"y": 1.0}, {"together": True}, ValueError, "returned a float for 'y', expected 5"),
        (lambda setting, seeds: {"y": [1.0]}, {"together": True}, ValueError, "returned 1 numbers for 'y'"),
        (equal, {"seeds": 3}, TypeError, "seeds is 3"),
        (equal, {"seeds": []}, ValueError, r"seeds are \[\]"),
        (equal, {"seeds": [1, 1]}, ValueError, r"seeds are \[1, 1\]"),
        (equal, {"seeds": [-1]}, ValueError, "an entry of seeds is -1"),
    ],
)
def test_bad_experiments_and_seeds(experiment, options, kind, message):
    with pytest.raises(kind, match=message):
        lh.phase_diagram(experiment, {"x": [0, 1]}, progress=False, **options)


def test_bad_questions():
    diagram = lh.phase_diagram(
        lambda setting, seed: {"y": seed}, {"x": [0, 1], "kind": ["a"], "one": [1]}, progress=False
    )
    for ask, message in (
        (lambda: diagram.mean("z"), "name is 'z', expected one of 'y'"),
        (lambda: diagram.scale("z"), "axis is 'z'"),
        (lambda: diagram.interval("y", confidence=1.0), "confidence is 1"),
        (lambda: diagram.at({"z": 1}), "an axis of at is 'z'"),
        (lambda: diagram.at({"x": 3}), r"at has x = 3, expected one of \[0, 1\]"),
        (lambda: diagram.at({"x": 0, "kind": "a", "one": 1}), "at fixes .* which are all"),
        (lambda: diagram.border("y", "z", level=1.0), "along is 'z'"),
        (lambda: diagram.border("y", "kind", level=1.0), "along is 'kind', an axis of strings"),
        (lambda: diagram.border("y", "one", level=1.0), "along is 'one', an axis of one value"),
        (lambda: diagram.border("y", "x", level=math.nan), "level is nan"),
        (lambda: diagram.border("y", "x", level=1.0, which="both"), "which is 'both'"),
        (lambda: diagram.border("y", "x", level=1.0, num_resamples=5), "num_resamples is 5"),
        (lambda: diagram.border("y", "x", level=1.0, seed=-1), "seed is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


# What a border is one in ----------------------------------------------------------------------------------------------


def test_a_border_in_one_number_is_separated_by_it_and_not_by_another():
    """Found where x + y < 1: the sum separates without error, x alone in part, noise not at all."""

    def experiment(setting, seed):
        rng = np.random.default_rng([seed, round(10 * setting["x"]), round(10 * setting["y"])])
        total = setting["x"] + setting["y"]
        late = math.nan if seed == 2 else total
        return {"found": total < 0.95, "total": total, "first": setting["x"], "noise": rng.random(), "late": late}

    grid = [round(0.2 * i, 1) for i in range(6)]
    diagram = lh.phase_diagram(experiment, {"x": grid, "y": grid}, seeds=range(3), progress=False)
    assert diagram.separation("found", "total").value == 0.0
    alone = diagram.separation("found", "first")
    assert alone.low < alone.value < alone.high < 0.5
    # Of x, on paper: pairs of cells, found at x with 5 - 5x of 6 cells below 0.95.
    below = [sum(x + y < 0.95 for y in grid) for x in grid]
    wins = sum(
        below[i] * (6 - below[j]) * (1.0 if grid[i] > grid[j] else 0.5 if i == j else 0.0)
        for i in range(6)
        for j in range(6)
    )
    assert alone.value == pytest.approx(wins / (sum(below) * (36 - sum(below))))
    noise = diagram.separation("found", "noise")
    assert noise.low < 0.5 < noise.high
    missing = diagram.separation("found", "late")
    assert (missing.num_runs, missing.num_missing) == (72, 36)
    assert "36 runs missing" in repr(missing)


def test_a_separation_needs_two_outcomes():
    with pytest.raises(ValueError, match="whose numbers are not all 0 or 1"):
        diagram_of([[0.5, 1.0]], x=(0,)).separation("y", "y")
    with pytest.raises(ValueError, match="is the same in all runs"):
        diagram_of([[1.0, 1.0]], x=(0,)).separation("y", "y")
