"""Pictures of canyons: the numbers of the paths, solid where they are certified, and events where they happened.

Oracles: the cartoon's rise, slope and certificates on paper; a brute-force list of certified neighbours; eigenvalues of
the displacements' second moments, and distances in the plane, for the fan.
"""

import dataclasses
import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import lowhanging as lh
from lowhanging.canyons.continuation import CanyonEvent
from lowhanging.canyons.null import DepthNull
from lowhanging.plots.canyons import project, stretches

PLANE = lh.Subspace(torch.eye(2, dtype=torch.float64))


@pytest.fixture
def ax():
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


@pytest.fixture(autouse=True)
def matplotlib_untouched():
    import matplotlib.pyplot as plt

    before, figures = dict(matplotlib.rcParams), plt.get_fignums()
    yield
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == figures


@pytest.fixture(scope="module")
def cartoon():
    """The four axes of the sloped canyons, and a diagonal, from r = 0.1 to 1."""
    loss = lh.toys.sloped_canyons()
    options = {"space": PLANE, "metric": "euclidean", "progress": False}
    found = lh.find_canyons(loss, levels=1.0, num_starts=24, stationary="all", **options)
    watched = {
        "first": loss,
        "second": lh.FunctionObjective(lambda t: 3.0 + (t * t).sum(), torch.zeros(2, dtype=torch.float64)),
    }
    return {
        name: lh.trace_canyon(loss, found[i], to=0.1, step=0.1, evaluate=watched, progress=False)
        for name, i in (("axis 0", 0), ("axis 1", 1), ("axis 2", 2), ("axis 3", 3), ("diagonal", 4))
    }


@pytest.fixture(scope="module")
def canyons():
    return lh.find_canyons(
        lh.toys.sloped_canyons(), space=PLANE, levels=(0.1, 0.02), num_starts=32, stationary="all", progress=False
    )


def made(cartoon, certified, events=(), turn=0.0, size=2, **fields):
    """A path with planted certificates: points at r = 1, 2, ..., rise r^2, in the direction of an angle."""
    base = cartoon["axis 0"][0]
    way = torch.zeros(size, dtype=torch.float64)
    way[0], way[1] = math.cos(turn), math.sin(turn)
    points = tuple(
        dataclasses.replace(
            base, delta=r * way, level=float(r), radius=float(r), rise=float(r) ** 2, energy=2.0 * r**2,
            shell_eigenvalue=1.0 if good else -1.0, plane_eigenvalue=1.0, residual=0.0,
            **{name: {key: f(r) for key, f in row.items()} for name, row in fields.items()},
        )
        for r, good in enumerate(certified, start=1)
    )  # fmt: skip
    starts = {name: {key: f(0) for key, f in row.items()} for name, row in fields.items() if name != "accuracies"}
    return dataclasses.replace(cartoon["axis 0"], points=points, events=tuple(events), **starts)


def event(kind, low, high):
    return CanyonEvent(kind, low, high, low, high)


def lines_of(ax, color):
    return [line for line in ax.get_lines() if to_hex(line.get_color()) == to_hex(color)]


def colors_in_legend(ax):
    return {handle.get_label(): handle.get_color() for handle in ax.get_legend().legend_handles}


def symbols(ax, shape):
    return [line for line in ax.get_lines() if line.get_marker() == shape and len(line.get_xdata()) == 1]


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        ("rise", lambda r: -0.1 * np.expm1(-(r**2))),
        ("relative_rise", lambda r: -np.expm1(-(r**2)) / r**2),
        ("slope", lambda r: 0.2 * r * np.exp(-(r**2))),
        ("slope_without_anchor", lambda r: 0.2 * r * np.exp(-(r**2))),
        ("plane_eigenvalue", lambda r: 2 * r**2 + 0.2 * np.exp(-(r**2))),
        ("sphere_eigenvalue", lambda r: 2 * r**2),
        ("shell_eigenvalue", lambda r: 2 * r**2),
    ],
)
def test_the_floor_is_the_cartoons(cartoon, ax, quantity, expected):
    assert lh.plots.canyon_floor({"one": cartoon["axis 0"]}, ax, quantity=quantity) is ax
    (line,) = lines_of(ax, colors_in_legend(ax)["one"])
    assert np.allclose(line.get_xdata(), np.arange(1, 11) / 10)
    assert np.allclose(line.get_ydata(), expected(line.get_xdata()), rtol=1e-7)
    assert line.get_linestyle() == "-"
    assert ax.get_xlim()[0] == 0
    assert quantity.split("_")[0] in ax.get_ylabel()
    has_zero = any(np.allclose(line.get_ydata(), 0) for line in ax.get_lines())
    assert has_zero == (quantity not in ("rise", "relative_rise"))


def test_asymmetry_of_a_branch_and_of_the_minimum(cartoon, ax):
    path = cartoon["axis 0"]
    lh.plots.canyon_floor({"one": path}, ax, quantity="asymmetry", cues=("second", "first"))
    (line,) = lines_of(ax, colors_in_legend(ax)["one"])
    assert np.allclose(line.get_ydata(), [point.asymmetry("second", "first") for point in path])
    assert "log(L_second / L_first)" in ax.get_ylabel()
    assert "first is better kept" in ax.get_ylabel()
    assert not symbols(ax, "o") or np.isnan(symbols(ax, "o")[0].get_ydata()[0])  # log(3 / 0)
    ax.clear()
    planted = made(cartoon, [True] * 3, losses={"a": lambda r: math.exp(1.0 + r), "b": lambda r: 1.0})
    lh.plots.canyon_floor(planted, ax, quantity="asymmetry")
    (start,) = symbols(ax, "o")
    assert (start.get_xdata()[0], start.get_ydata()[0]) == (0.0, 1.0)


def test_asymmetry_has_gaps_where_a_loss_has_no_logarithm(cartoon, ax):
    values = {1: (2.0, 1.0), 2: (-2.0, -1.0), 3: (0.0, 1.0), 4: (1.0, math.inf), 5: (3.0, 6.0)}
    path = made(cartoon, [True] * 5)
    points = tuple(
        dataclasses.replace(point, losses=dict(zip("ab", values[i], strict=True))) for i, point in enumerate(path, 1)
    )
    planted = dataclasses.replace(path, points=points, losses={"a": 1.0, "b": -1.0})
    lh.plots.canyon_floor({"one": planted}, ax, quantity="asymmetry")
    (line,) = lines_of(ax, colors_in_legend(ax)["one"])
    expected = [math.log(2), math.nan, math.nan, math.nan, math.log(0.5)]
    assert np.allclose(line.get_ydata(), expected, equal_nan=True)
    assert np.isnan(symbols(ax, "o")[0].get_ydata()).all()


MASKS = ["11111", "00000", "11011", "10101", "00111", "11001", "01", "1", "0"]


@pytest.mark.parametrize("mask", MASKS)
def test_stretches_join_certified_neighbours(mask):
    certified = [letter == "1" for letter in mask]
    drawn = {}
    for part, is_solid in stretches(certified):
        for i in range(len(mask))[part][:-1]:
            assert i not in drawn
            drawn[i] = is_solid
    assert drawn == {i: certified[i] and certified[i + 1] for i in range(len(mask) - 1)}


@pytest.mark.parametrize("mask", MASKS)
def test_solid_and_dotted(cartoon, ax, mask):
    path = made(cartoon, [letter == "1" for letter in mask])
    lh.plots.canyon_floor({"one": path}, ax)
    lines, solid, dotted = lines_of(ax, colors_in_legend(ax)["one"]), set(), set()
    for line in lines:
        assert np.allclose(line.get_ydata(), line.get_xdata() ** 2)
        pieces = {(int(a), int(b)) for a, b in zip(line.get_xdata()[:-1], line.get_xdata()[1:], strict=True)}
        (solid if line.get_linestyle() == "-" else dotted).update(pieces)
    expected = {(i + 1, i + 2) for i in range(len(mask) - 1) if mask[i : i + 2] == "11"}
    assert solid == expected
    assert dotted == {(i + 1, i + 2) for i in range(len(mask) - 1)} - expected
    if len(mask) == 1:
        (dot,) = symbols(ax, "o")
        assert (dot.get_markerfacecolor() == "white") == (mask == "0")
    labels = colors_in_legend(ax)
    assert ("solid: certified" in labels, "dotted: not certified" in labels) == ("1" in mask, "0" in mask)


def test_events_stand_on_their_branch_with_their_interval(cartoon, ax):
    events = [event("birth", 0.8, 0.9), event("crossing", 2.4, 2.6), event("plane", 3.0, 3.2), event("fold", 4.0, 4.3)]
    path = made(cartoon, [False, False, True, True], events)
    lh.plots.canyon_floor({"one": path}, ax)
    for kind, shape, place in (
        ("birth", "o", (1.0, 1.0)),  # a branch begins at its first point
        ("crossing", "X", (2.5, 6.5)),  # on the drawn line, halfway from 4 to 9
        ("plane", "d", (3.1, 9.7)),
        ("fold", "s", (4.0, 16.0)),
    ):
        (symbol,) = symbols(ax, shape)
        assert (symbol.get_xdata()[0], symbol.get_ydata()[0]) == pytest.approx(place)
        assert kind in colors_in_legend(ax)
    bars = {tuple(line.get_xdata()) for line in ax.get_lines() if line.get_alpha() == 0.5}
    assert bars == {(e.radius_low, e.radius_high) for e in events}


def test_what_coincides_can_be_told_apart(cartoon, ax):
    axes = {name: path for name, path in cartoon.items() if name != "diagonal"}
    lh.plots.canyon_floor(axes, ax)
    colors = colors_in_legend(ax)
    assert len({to_hex(colors[name]) for name in axes}) == 4
    widths = [lines_of(ax, colors[name])[0].get_linewidth() for name in axes]
    assert np.diff(widths).max() < -1  # the last one, on top, is the narrowest
    ax.clear()
    births = [made(cartoon, [True] * 3, [event("birth", 0.8, 1.0)]) for _ in range(2)]
    lh.plots.canyon_floor(births, ax)
    outer, inner = symbols(ax, "o")
    assert outer.get_markersize() > inner.get_markersize() + 2 * inner.get_markeredgewidth()


def test_many_branches_have_many_colours_and_known_names_their_own(cartoon, ax):
    lh.plots.canyon_floor([cartoon["axis 0"]] * 14, ax)
    colors = colors_in_legend(ax)
    assert len({to_hex(colors[f"branch {i}"]) for i in range(14)}) == 14
    lh.plots.canyon_floor({"number": cartoon["axis 0"], "other": cartoon["diagonal"]}, ax)
    assert colors_in_legend(ax)["number"] == "#0072B2"
    assert colors_in_legend(ax)["other"] != "#0072B2"


def test_the_bowl_is_dashed_and_does_not_flatten_the_floor(cartoon, ax):
    lh.plots.canyon_floor({"one": made(cartoon, [True] * 4)}, ax, bowl=True)
    (bowl,) = [line for line in lines_of(ax, colors_in_legend(ax)["one"]) if line.get_linestyle() == "--"]
    assert np.allclose(bowl.get_ydata(), 2.0 * np.arange(1, 5) ** 2)
    assert 32 < ax.get_ylim()[1] < 60
    ax.clear()
    steep = dataclasses.replace(cartoon["axis 0"], points=tuple(
        dataclasses.replace(point, energy=50.0) for point in cartoon["axis 0"]
    ))  # fmt: skip
    lh.plots.canyon_floor(steep, ax, bowl=True)
    assert ax.get_ylim()[1] < 0.3
    with pytest.raises(ValueError, match='bowl is True for the relative_rise, expected quantity="rise" with it'):
        lh.plots.canyon_floor(steep, ax, quantity="relative_rise", bowl=True)


def test_an_error_of_a_certificate_is_a_band(cartoon, ax):
    points = tuple(dataclasses.replace(point, shell_error=0.25) for point in cartoon["axis 0"])
    lh.plots.canyon_floor(dataclasses.replace(cartoon["axis 0"], points=points), ax, quantity="shell_eigenvalue")
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    for point in points:
        heights = corners[np.isclose(corners[:, 0], point.radius), 1]
        assert (heights.min(), heights.max()) == pytest.approx(
            (point.shell_eigenvalue - 0.25, point.shell_eigenvalue + 0.25)
        )


LOSSES = {"mixed": lambda r: 0.5 + r, "first": lambda r: 2.0, "second": lambda r: float(r)}
SHARES = {"first": lambda r: 0.5 + r / 10, "second": lambda r: 0.5 - r / 10, "neither": lambda r: 0.0}


def test_losses_along_a_branch_start_at_the_minimum(cartoon, ax):
    path = made(cartoon, [False, True, True], [event("birth", 0.8, 1.0)], losses=LOSSES, cue_shares=SHARES)
    assert lh.plots.canyon_losses(path, ax) is ax
    colors = colors_in_legend(ax)
    assert to_hex(colors["mixed"]) == "#000000"
    starts = {to_hex(line.get_color()): line.get_ydata()[0] for line in symbols(ax, "o") if line.get_xdata()[0] == 0}
    for name, f in LOSSES.items():
        dotted, solid = (line for line in lines_of(ax, colors[name]) if len(line.get_xdata()) > 1)
        assert dotted.get_linestyle() != solid.get_linestyle() == "-"
        assert np.allclose(dotted.get_ydata(), [f(1), f(2)])
        assert np.allclose(solid.get_ydata(), [f(2), f(3)])
        assert starts[to_hex(colors[name])] == f(0)
    (birth,) = [line for line in symbols(ax, "o") if line.get_xdata()[0] > 0]
    assert birth.get_ydata()[0] == ax.get_ylim()[0]
    (stripe,) = ax.patches
    assert (stripe.get_x(), stripe.get_x() + stripe.get_width()) == pytest.approx((0.8, 1.0))
    ax.clear()
    lh.plots.canyon_losses(path, ax, quantity="cue_shares")
    shares = colors_in_legend(ax)
    assert (shares["first"], shares["second"]) == (colors["first"], colors["second"])
    (line,) = [line for line in lines_of(ax, shares["second"]) if line.get_linestyle() == "-"]
    assert np.allclose(line.get_ydata(), [30, 20])
    assert "conflict" in ax.get_ylabel()


def test_logarithmic_losses_and_accuracies(cartoon, ax):
    path = made(cartoon, [True] * 3, losses=LOSSES, accuracies={"mixed": lambda r: r / 4})
    lh.plots.canyon_losses(path, ax, log=True)
    assert ax.get_yscale() == "log"
    assert 0.0 not in [line.get_ydata()[0] for line in symbols(ax, "o")]  # "second" is 0 at the minimum
    ax.figure.draw_without_rendering()
    ax.clear()
    lh.plots.canyon_losses(path, ax, quantity="accuracy")
    (line,) = lines_of(ax, colors_in_legend(ax)["mixed"])
    assert np.allclose(line.get_ydata(), [25, 50, 75])


def test_the_fan_keeps_distances_and_says_what_it_leaves_out(cartoon, ax):
    assert lh.plots.canyon_fan(cartoon, ax) is ax
    colors = colors_in_legend(ax)
    ends = {}
    for name, path in cartoon.items():
        (line,) = (line for line in lines_of(ax, colors[name]) if len(line.get_xdata()) > 1)
        assert np.allclose(np.hypot(*line.get_data()), path.values("radius"))
        ends[name] = np.array(line.get_data())[:, -1]
        assert (line.get_linestyle() == "-") == (name != "diagonal")
    for a in cartoon:
        for b in cartoon:
            expected = float(cartoon[a][-1].delta @ cartoon[b][-1].delta)
            assert ends[a] @ ends[b] == pytest.approx(expected, abs=1e-9)
    assert ax.get_aspect() == 1.0
    assert "both 100 %" in ax.get_ylabel()
    assert {patch.radius for patch in ax.patches if isinstance(patch, Circle)} == {0.5, 1.0}
    assert {text.get_text() for text in ax.texts} == {"r = 0.5", "r = 1"}
    (plane,) = symbols(ax, "d")  # the diagonal's plane eigenvalue changes sign at r* = sqrt(W(0.2))
    assert math.hypot(plane.get_xdata()[0], plane.get_ydata()[0]) == pytest.approx(0.411, abs=0.002)


def test_the_fans_plane_is_the_principal_one(cartoon):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(12, 6, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.5])
    base = made(cartoon, [True] * 6)
    paths = {
        name: dataclasses.replace(
            base, points=tuple(dataclasses.replace(base[0], delta=row, radius=float(row.norm())) for row in part)
        )
        for name, part in (("a", rows[:5]), ("b", rows[5:]))
    }
    places, shares = project(paths)
    moments = np.linalg.eigvalsh((rows.T @ rows).numpy())[::-1]
    assert np.allclose(shares, moments[:2] / moments.sum())
    found = np.concatenate([places["a"], places["b"]])
    assert np.allclose(found.T @ found, np.diag(moments[:2]), atol=1e-9)
    assert [len(places[name]) for name in "ab"] == [5, 7]
    for column in found.T:
        largest = np.abs(column) >= 0.99 * np.abs(column).max()
        assert column[largest][0] > 0


def test_a_fan_of_one_direction(cartoon, ax):
    lh.plots.canyon_fan(made(cartoon, [True] * 3, size=4), ax)
    assert "1 of δ: 100 %" in ax.get_xlabel()
    assert "principal direction 2: 0 %, both 100 %" in ax.get_ylabel()
    ax.figure.draw_without_rendering()


def test_a_fan_coloured_by_a_quantity(cartoon, ax):
    planted = {
        "one": made(cartoon, [True, True, False, False]),
        "dot": made(cartoon, [True], turn=1.0),
        "other": made(cartoon, [True] * 3, turn=2.0),
    }
    lh.plots.canyon_fan(planted, ax, quantity="rise")
    drawn = [collection for collection in ax.collections if collection.get_array() is not None]
    assert [collection.get_array().tolist() for collection in drawn] == [[1, 4, 9, 16], [1], [1, 4, 9]]
    rims = [len(collection.get_edgecolors()) for collection in drawn]
    assert rims[:2] == [4, 1]
    assert [bool(color[3]) for color in drawn[0].get_edgecolors()] == [True, True, False, False]
    assert {"one", "dot", "other"} <= {text.get_text() for text in ax.texts}
    bar = ax.figure.axes[-1]
    assert "rise" in bar.get_ylabel()
    assert bar.get_ylim() == (1.0, 16.0)
    ax.figure.draw_without_rendering()


def test_a_signed_quantity_has_its_middle_at_zero(cartoon, ax):
    lh.plots.canyon_fan(made(cartoon, [True, True, False]), ax, quantity="shell_eigenvalue")
    assert ax.figure.axes[-1].get_ylim() == (-1.0, 1.0)


def test_depths_are_counted_by_what_they_are(canyons, ax):
    points = list(canyons)
    assert lh.plots.canyon_rises(canyons, ax) is ax
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    kinds = {
        "canyon": [p for p in points if p.is_canyon],
        "certified, trivial": [p for p in points if p.is_certified and p.is_trivial],
        "not certified": [p for p in points if not p.is_certified],
    }
    assert kinds["canyon"]
    assert kinds["not certified"]
    for kind, members in kinds.items():
        assert (f"{kind} ({len(members)})" in labels) == bool(members)
        if members:
            (drawn,) = (line for line in ax.get_lines() if line.get_label() == f"{kind} ({len(members)})")
            assert sorted(drawn.get_ydata()) == pytest.approx(sorted(point.relative_rise for point in members))
    assert "energy" in ax.get_xlabel()
    null = DepthNull(
        levels=canyons.levels,
        observed=torch.zeros(2),
        null=torch.tensor([[0.9, 0.7], [0.8, 0.6], [0.95, float("nan")]]),
        p_values=torch.zeros(2),
        dim=2,
        within=3,
        num_starts=4,
        seed=0,
        num_gradients=0,
        num_products=0,
    )
    ax.clear()
    lh.plots.canyon_rises(canyons, ax, null=null)
    (bars,) = ax.collections
    assert np.allclose([segment[:, 1] for segment in bars.get_segments()], [[0.8, 0.95], [0.6, 0.7]])
    with pytest.raises(ValueError, match=r"null is one of the levels \(1\.0,\), expected one of \(0\.1, 0\.02\)"):
        lh.plots.canyon_rises(canyons, ax, null=dataclasses.replace(null, levels=(1.0,)))


def test_depths_need_energy(ax):
    flat = lh.find_canyons(
        lh.toys.flat_canyons(), space=PLANE, metric="euclidean", levels=1.0, num_starts=8, progress=False
    )
    with pytest.raises(
        ValueError, match="canyons hold 4 points, none of them with a relative rise, expected a point with"
    ):
        lh.plots.canyon_rises(flat, ax)
    path = lh.trace_canyon(lh.toys.flat_canyons(), flat[0], to=1.2, step=0.1, progress=False)
    with pytest.raises(
        ValueError, match="quantity is 'relative_rise', which is not finite at any point, expected one with"
    ):
        lh.plots.canyon_floor(path, ax, quantity="relative_rise")


def test_the_plane_through_two_branches_names_them(cartoon, ax):
    a, b = cartoon["axis 0"][-1], cartoon["diagonal"][-1]
    through = lh.plane_through(torch.zeros(2, dtype=torch.float64), a.theta, b.theta, names=("minimum", "a", "b"))
    lh.plots.plane_slice(lh.plane_slice({"cartoon": lh.toys.sloped_canyons()}, through, num=5), ax)
    assert {"a", "b", "minimum"} <= {text.get_text() for text in ax.get_legend().get_texts()}


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda paths: lh.plots.canyon_floor(3), TypeError, "paths is an int, expected one CanyonPath or several"),
        (lambda paths: lh.plots.canyon_floor([]), ValueError, "paths hold nothing, expected at least one CanyonPath"),
        (
            lambda paths: lh.plots.canyon_floor({"a": paths["axis 0"][0]}),
            TypeError,
            r"paths\['a'\] is a CanyonPoint, expected a CanyonPath",
        ),
        (lambda paths: lh.plots.canyon_fan([paths]), TypeError, "branch 0 is a dict, expected a CanyonPath"),
        (
            lambda paths: lh.plots.canyon_floor(paths, names=["axis 0", "no"]),
            ValueError,
            "names is 'no', expected one of 'axis 0', 'axis 1'",
        ),
        (
            lambda paths: lh.plots.canyon_floor(paths, quantity="loss"),
            ValueError,
            "quantity is 'loss', expected one of 'rise', 'relative_rise'",
        ),
        (
            lambda paths: lh.plots.canyon_fan(paths, quantity="asymmetry", cues=("first", "no")),
            ValueError,
            r"cues are \('first', 'no'\), expected two of the evaluated losses, \['first', 'second'\]",
        ),
        (
            lambda paths: lh.plots.canyon_fan({"a": paths["axis 0"], "b": made(paths, [True], size=3)}),
            ValueError,
            r"paths have \[2, 3\] weights, expected paths of one loss",
        ),
        (
            lambda paths: lh.plots.canyon_floor(
                {"a": paths["axis 0"], "b": made(paths, [True], losses={"c": lambda r: 1.0, "d": lambda r: 1.0})},
                quantity="asymmetry",
            ),
            ValueError,
            r"paths differ in their cues, \[\('c', 'd'\), \('first', 'second'\)\], expected the same cues",
        ),
        (lambda paths: lh.plots.canyon_losses(paths), TypeError, "path is a dict, expected a CanyonPath"),
        (
            lambda paths: lh.plots.canyon_losses(paths["axis 0"], quantity="cue_shares"),
            ValueError,
            r"quantity is 'cue_shares' for a path that holds none, expected one of \['loss'\].\nPass conflict=",
        ),
        (
            lambda paths: lh.plots.canyon_losses(paths["axis 0"], quantity="rise"),
            ValueError,
            "quantity is 'rise', expected one of 'loss', 'accuracy', 'cue_shares'",
        ),
        (lambda paths: lh.plots.canyon_rises(paths), TypeError, "canyons is a dict, expected a CanyonSet"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_drawn(cartoon, draw, error, message):
    with pytest.raises(error, match=message):
        draw(cartoon)


def test_without_axes_a_figure_is_made(cartoon):
    import matplotlib.pyplot as plt

    drawn = lh.plots.canyon_floor(cartoon, names="diagonal")
    assert drawn.figure.number in plt.get_fignums()
    assert "diagonal" in colors_in_legend(drawn)
    assert "axis 0" not in colors_in_legend(drawn)
    plt.close(drawn.figure)
