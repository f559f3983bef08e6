"""Pictures of phase diagrams: they draw the means, the contours, the intervals and the numbers of seeds."""

import math

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure

import lowhanging as lh


@pytest.fixture
def ax():
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.subplots()
    figure.canvas.draw()


def found(setting, seed):
    """A border at n = 3.5 for all seeds; times that seed 1 never has, and nobody at n = 1."""
    is_found = setting["n"] > 3.5
    return {"found": is_found, "time": math.nan if seed == 1 or setting["n"] == 1 else setting["n"] * (1 + seed)}


def diagram_of(**axes):
    return lh.phase_diagram(found, axes, seeds=range(3), progress=False)


def mesh_of(ax):
    (mesh,) = (artist for artist in ax.collections if isinstance(artist, QuadMesh))
    return mesh


def contours_of(ax):
    return [artist for artist in ax.collections if isinstance(artist, ContourSet)]


def test_cells_hold_the_means_and_meet_half_way(ax):
    diagram = diagram_of(n=[1, 2, 4, 8], width=[10, 20, 30])
    assert lh.plots.phase_diagram(diagram, "found", ax) is ax
    mesh = mesh_of(ax)
    assert np.allclose(np.asarray(mesh.get_array()).reshape(3, 4), diagram.mean("found").T)
    corners = mesh.get_coordinates()  # (4, 5, 2)
    assert np.allclose(corners[0, :, 0], 2.0 ** np.arange(-0.5, 4))  # half way in the logarithm
    assert np.allclose(corners[:, 0, 1], [5, 15, 25, 35])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4", "8"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("n", "width")
    assert mesh.get_clim() == (0.0, 1.0)
    assert ax.get_title() == "found, mean over 3 seeds"
    (lines,) = contours_of(ax)
    assert list(lines.levels) == [0.5]
    border = diagram.border("found", "n", level=0.5).position
    assert np.allclose(lines.get_paths()[0].vertices[:, 0], 8**0.5, rtol=2e-3)  # half way in the logarithm
    assert np.allclose(border, 8**0.5)


def test_contours_stand_at_the_levels_that_are_asked_for(ax):
    diagram = diagram_of(n=[2, 4, 8], width=[1, 2, 3])
    lh.plots.phase_diagram(diagram, "time", ax, levels=[6.0, 5.0, 1000.0])
    (lines,) = contours_of(ax)
    assert list(lines.levels) == [5.0, 6.0]


def test_no_contours_where_none_are_wanted_or_nothing_is_between(ax):
    lh.plots.phase_diagram(diagram_of(n=[1, 2, 4], width=[1, 2]), "found", ax, levels=[])
    assert contours_of(ax) == []


def test_the_number_of_seeds_stands_where_some_are_missing(ax):
    diagram = diagram_of(n=[1, 2, 4], optimizer=["sgd", "adam"])
    lh.plots.phase_diagram(diagram, "time", ax)
    texts = {(text.xy[0], text.xy[1]): text.get_text() for text in ax.texts}
    assert texts == {(n, row): "0" if n == 1 else "2" for n in (1, 2, 4) for row in (0, 1)}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["sgd", "adam"]
    assert ax.get_title() == "time, mean over 3 seeds (fewer where a cell says so)"
    assert contours_of(ax) == []  # nothing lies between categories
    assert np.ma.getmaskarray(mesh_of(ax).get_array()).reshape(2, 3)[:, 0].all()


def test_one_axis_is_a_line_with_intervals(ax):
    diagram = diagram_of(n=[1, 2, 4, 8])
    lh.plots.phase_diagram(diagram, "found", ax)
    line, level = ax.get_lines()
    assert np.allclose(line.get_ydata(), diagram.mean("found"))
    assert set(level.get_ydata()) == {0.5}
    (ends,) = (artist for artist in ax.collections if isinstance(artist, LineCollection))
    drawn = np.array([segment[:, 1] for segment in ends.get_segments()])
    assert np.allclose(drawn, diagram.interval("found"))


def test_one_axis_of_categories_is_not_joined(ax):
    diagram = lh.phase_diagram(
        lambda setting, seed: {"y": float(seed)}, {"kind": ["a", "b"]}, seeds=range(3), progress=False
    )
    lh.plots.phase_diagram(diagram, "y", ax)
    (line,) = ax.get_lines()
    assert line.get_linestyle() == "None"


def test_three_axes_need_one_that_is_fixed(ax):
    diagram = diagram_of(n=[1, 2, 4], width=[1, 2], depth=[3, 5])
    with pytest.raises(ValueError, match=r"diagram has the axes .*\nFix one: at=\{'n': 1\}"):
        lh.plots.phase_diagram(diagram, "found", ax)
    lh.plots.phase_diagram(diagram, "found", ax, at={"depth": 5})
    assert ax.get_title() == "found, mean over 3 seeds\ndepth = 5"
    assert np.asarray(mesh_of(ax).get_array()).size == 6


def test_a_diagram_without_any_value_is_drawn(ax):
    empty = lh.prior.PhaseDiagram(
        {"a": (1, 2), "b": (1,)}, torch.arange(2), {"y": torch.full((2, 1, 2), math.nan, dtype=torch.float64)}
    )
    lh.plots.phase_diagram(empty, "y", ax)
    assert [text.get_text() for text in ax.texts] == ["0", "0"]


def test_bad_input(ax):
    diagram = diagram_of(n=[1, 2])
    with pytest.raises(TypeError, match="diagram is a dict, expected a PhaseDiagram"):
        lh.plots.phase_diagram({}, "found", ax)
    with pytest.raises(ValueError, match="name is 'lost'"):
        lh.plots.phase_diagram(diagram, "lost", ax)
    with pytest.raises(ValueError, match="a level is nan"):
        lh.plots.phase_diagram(diagram, "found", ax, levels=[math.nan])
