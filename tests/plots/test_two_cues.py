"""Pictures of two cues: the curves they draw are the result's, from where the cue was offered, and each has a name."""

import matplotlib
import pytest
import torch

import lowhanging as lh
from lowhanging.plots.style import blank_figure
from lowhanging.prior import IndependentBits, Refinement

matplotlib.use("Agg")
NAMES = ("both", "a then both", "a alone", "b then both", "b alone")


@pytest.fixture
def ax():
    return blank_figure(6, 4, dpi=80).subplots()


def offered():
    steps = torch.arange(0, 81, 20)
    scores = {name: torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(NAMES)}
    losses = {name: torch.ones(3, 5) for name in NAMES}
    return Refinement(("a", "b"), steps, 40, {k: v.double() for k, v in scores.items()}, losses, 0.5, torch.arange(3))


def told():
    right = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    is_right = {"both": right, "a": right.clone(), "b": torch.zeros_like(right)}
    surprise = {name: 1.0 - 0.5 * rows.double() for name, rows in is_right.items()}
    return IndependentBits(("a", "b"), torch.tensor([0, 10, 20]), surprise, is_right, torch.tensor([0, 1, 0, 1]), 1)


def curve(ax, label):
    [line] = [line for line in ax.lines if line.get_label() == label]
    return line


def test_a_refinement_begins_where_the_cue_is_offered(ax):
    result = offered()
    assert lh.plots.refinement(result, "b", ax) is ax
    after = curve(ax, "b, after a")
    assert after.get_xdata().tolist() == [0, 20, 40]
    assert after.get_ydata() == pytest.approx(result.scores["a then both"][1, :, 2:].mean(0).numpy())
    fresh = curve(ax, "b, both offered at once")
    assert fresh.get_ydata() == pytest.approx(result.scores["both"][1, :, :3].mean(0).numpy())
    assert curve(ax, "a, when b joins").get_ydata()[0] == pytest.approx(
        float(result.scores["a then both"][0, :, 2].mean())
    )
    assert len(ax.lines) == 4 + 4 * 3 + 1
    assert "since b was offered" in ax.get_xlabel()


def test_bits_are_those_of_the_result(ax):
    result = told()
    assert lh.plots.independent_bits(result, ax) is ax
    assert curve(ax, "both cues").get_ydata() == pytest.approx(result.bits().numpy())
    assert curve(ax, "a adds").get_ydata() == pytest.approx(result.adds("a").numpy())
    assert curve(ax, "b alone").get_ydata() == pytest.approx(result.bits("b").numpy())
    assert len(ax.collections) == 2


@pytest.mark.parametrize(("style", "tops"), [("cumulative", [50, 75]), ("each", [50, 25])])
def test_newly_solved_examples_are_stacked(ax, style, tops):
    assert lh.plots.newly_solved(told(), ax, style=style) is ax
    first = ax.collections[0].get_paths()[0].vertices
    assert sorted({float(y) for x, y in first if x == 10.0}) == pytest.approx([0, tops[0]])
    assert sorted({float(y) for x, y in first if x == 20.0}) == pytest.approx([0, tops[1]])


def test_bad_input(ax):
    with pytest.raises(ValueError, match="cue is 'c'"):
        lh.plots.refinement(offered(), "c", ax)
    with pytest.raises(ValueError, match="style is 'sum'"):
        lh.plots.newly_solved(told(), ax, style="sum")
    for plot, args in ((lh.plots.refinement, ("a",)), (lh.plots.independent_bits, ()), (lh.plots.newly_solved, ())):
        with pytest.raises(TypeError, match="result is a dict"):
            plot({}, *args, ax)
