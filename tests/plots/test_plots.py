"""Every plot: draws the numbers of its result on the Axes it is given, labels them, and leaves matplotlib as it was."""

import base64
import dataclasses
import io
import itertools
import math
import re
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

import lowhanging as lh
from lowhanging.plots.contours import choose_bands, short

THETA0 = torch.zeros(3, dtype=torch.float64)
GRID = 0.15 * torch.arange(-20, 21, dtype=torch.float64)


@pytest.fixture
def figure():
    made = Figure(layout="constrained")
    FigureCanvasAgg(made)
    return made


@pytest.fixture
def ax(figure):
    return figure.subplots()


@pytest.fixture(autouse=True)
def matplotlib_untouched():
    import matplotlib.pyplot as plt

    before, figures = dict(matplotlib.rcParams), plt.get_fignums()
    yield
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == figures


def quadratic(*diagonal: float) -> lh.FunctionObjective:
    curvatures = torch.tensor(diagonal, dtype=torch.float64)
    return lh.FunctionObjective(lambda theta: 0.5 * (curvatures * theta**2).sum(), THETA0)


def plane_of(
    alphas=GRID, betas=GRID, norms=(1.0, 1.0), angle=90.0, accuracies=None, **losses
) -> lh.landscape.PlaneSlice:
    """A plane whose losses are functions of (alpha, beta)."""
    a, b = torch.meshgrid(alphas, betas, indexing="ij")
    radians = math.radians(angle)
    directions = [[norms[0], 0.0], [norms[1] * math.cos(radians), norms[1] * math.sin(radians)]]
    return lh.landscape.PlaneSlice(
        alphas=alphas,
        betas=betas,
        losses={name: f(a, b) for name, f in losses.items()},
        accuracies={name: f(a, b) for name, f in (accuracies or {}).items()},
        directions=torch.tensor(directions, dtype=torch.float64),
        center=torch.zeros(2, dtype=torch.float64),
        norms=torch.tensor(norms, dtype=torch.float64),
        angle=angle,
        names=("steering direction", "eigenvector 1"),
    )


def canyons(a, b):
    return (a * b) ** 2 + 0.1 * (1 - torch.exp(-(a**2) - b**2))


def fills(ax) -> list[QuadContourSet]:
    return [artist for artist in ax.collections if isinstance(artist, QuadContourSet) and artist.filled]


def words(ax) -> str:
    """What the legend and the title say."""
    texts = ax.get_legend().get_texts() if ax.get_legend() else []
    return "\n".join([*(text.get_text().replace("\n", " ") for text in texts), ax.get_title()])


def curves(ax) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in ax.get_lines() if not line.get_label().startswith("_")}


def test_line_slice(ax):
    losses = {"number": quadratic(1, 2, 3), "other": quadratic(0, 0, 1)}
    scan = lh.line_slice(losses, 2 * torch.eye(3)[2], extent=(-1, 1), num=5)
    assert lh.plots.line_slice(scan, ax) is ax
    assert set(curves(ax)) == {"number", "other"}
    assert np.allclose(curves(ax)["number"], [6, 1.5, 0, 1.5, 6])
    assert ax.get_xlabel() == "step along the direction (‖Δθ‖ = 2)"
    assert "loss" in ax.get_ylabel()
    lh.plots.line_slice(scan, ax, log=True)
    assert ax.get_yscale() == "log"
    with pytest.raises(
        ValueError, match="quantity is 'accuracy' for a LineSlice without class targets, expected 'loss'"
    ):
        lh.plots.line_slice(scan, ax, quantity="accuracy")
    with pytest.raises(ValueError, match="quantity is 'colour', expected one of"):
        lh.plots.line_slice(scan, ax, quantity="colour")


def test_line_slice_draws_accuracies_in_percent_and_gaps_for_what_is_not_finite(ax):
    scan = lh.landscape.LineSlice(
        alphas=torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64),
        losses={"mixed": torch.tensor([1.0, float("inf"), 2.0], dtype=torch.float64)},
        accuracies={"mixed": torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)},
        direction=torch.ones(3),
        center=torch.zeros(3),
        norm=3**0.5,
    )
    lh.plots.line_slice(scan, ax)
    assert np.isnan(curves(ax)["mixed"][1])
    ax.clear()
    lh.plots.line_slice(scan, ax, quantity="accuracy")
    assert np.allclose(curves(ax)["mixed"], [50, 25, 100])


def test_spectra(ax):
    pairs = {"mixed": lh.top_hessian_eigs(quadratic(4, 2, -1), k=3, progress=False)}
    assert lh.plots.spectra(pairs, ax) is ax
    (drawn,) = curves(ax).values()
    assert np.allclose(drawn[:2], [4, 2], rtol=1e-4)
    assert np.isnan(drawn[2])
    assert ax.get_yscale() == "log"


def test_a_bare_result_is_not_taken_apart(ax):
    pairs = lh.top_hessian_eigs(quadratic(4, 2, 1), k=2, progress=False)
    density = lh.spectral_density(torch.eye(5), num_steps=2, num_probes=2)
    dimension = lh.effective_dimension(pairs)
    drawn = {lh.plots.spectra: pairs, lh.plots.spectral_density: density, lh.plots.effective_dimension: dimension}
    for draw, result in drawn.items():
        kind = type(result).__name__
        with pytest.raises(TypeError, match=rf"is an? {kind}, expected a mapping name -> {kind}.\nPass"):
            draw(result, ax)


def test_spectral_density(ax):
    H = torch.diag(torch.cat([torch.tensor([9.0, 5.0]), torch.linspace(-0.1, 0.1, 48)]).double())
    density = lh.spectral_density(H, num_steps=12, num_probes=4, deflate=2)
    assert lh.plots.spectral_density({"mixed": density}, ax) is ax
    (curve, stems), height = ax.get_lines(), 1 / (50 * density.width * math.sqrt(2 * math.pi))
    seen = density.density.numpy() > height
    assert np.allclose(curve.get_ydata()[seen], density.density.numpy()[seen])
    assert np.allclose(curve.get_xdata(), density.grid)
    assert np.allclose(stems.get_xdata(), [9, 5], rtol=1e-4)
    assert np.allclose(stems.get_ydata(), height)
    assert (ax.get_xscale(), ax.get_yscale()) == ("symlog", "log")
    assert ax.get_ylim()[0] < height < ax.get_ylim()[1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        f"mixed (48 eigenvalues, smoothed by {density.width:.2g})",
        "mixed (2 eigenvalues, one by one)",
    ]
    band = ax.collections[0].get_paths()[0].vertices
    i = int(density.density.argmax())
    at_peak = band[np.isclose(band[:, 0], density.grid[i], atol=1e-9), 1]
    off = 2 * float(density.standard_error[i])
    assert np.allclose([at_peak.min(), at_peak.max()], float(density.density[i]) + np.array([-off, off]))
    ax.clear()
    lh.plots.spectral_density({"mixed": lh.spectral_density(H, num_steps=5, num_probes=2)}, ax, log=False)
    assert (ax.get_xscale(), ax.get_yscale(), len(ax.get_lines())) == ("linear", "linear", 1)
    with pytest.raises(TypeError, match="densities\\['mixed'\\] is a Tensor, expected a SpectralDensity"):
        lh.plots.spectral_density({"mixed": H}, ax)
    with pytest.raises(ValueError, match="densities has the names"):
        lh.plots.spectral_density({}, ax)


def test_effective_dimension(ax):
    values = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    levels = torch.tensor([3.0, 0.1, 0.75], dtype=torch.float64)
    whole = lh.effective_dimension(values, thresholds=levels)
    some = lh.effective_dimension(lh.top_eigs(torch.diag(values), k=2), thresholds=levels)
    assert lh.plots.effective_dimension({"mixed": whole, "number": some}, ax) is ax
    counts, degrees, known, bound, _ = ax.get_lines()
    assert np.allclose(counts.get_xdata(), [0.1, 0.75, 3.0])
    assert np.allclose(counts.get_ydata(), [4, 3, 1])
    assert np.allclose(degrees.get_ydata(), [float((values / (values + level)).sum()) for level in (0.1, 0.75, 3.0)])
    assert np.allclose(known.get_ydata(), [np.nan, np.nan, 1], equal_nan=True)
    assert np.allclose(bound.get_ydata(), [2, 2, np.nan], equal_nan=True)
    assert (bound.get_linestyle(), degrees.get_linestyle()) == (":", "--")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0] == f"mixed (participation ratio {7.5**2 / 21.25:.4g})"
    assert labels[1] == "number (participation ratio at least 1.8)"
    assert labels[-1] == "at least so many above it"
    with pytest.raises(TypeError, match="dimensions\\['mixed'\\] is a Tensor, expected a EffectiveDimension"):
        lh.plots.effective_dimension({"mixed": values}, ax)


def test_overlaps(ax):
    report = lh.steering_report(torch.tensor([3.0, 4.0, 0.0]), {"mixed": quadratic(4, 2, 1)}, k=3, tol=1e-10)
    assert lh.plots.overlaps(report, ax) is ax
    (drawn,) = curves(ax).values()
    assert np.allclose(drawn, [0.36, 1.0, 1.0])


@pytest.mark.parametrize("has_answers", [False, True])
def test_ablation_curve(ax, has_answers):
    keep = lh.FunctionObjective(lambda theta: (theta[1] - 2).square(), torch.zeros(2, dtype=torch.float64))
    curve = lh.ablation_curve(lh.toys.sloped_canyons(), keep=keep, levels=[1.0, 0.25], gtol=1e-8, second_order=False)
    if has_answers:
        answers = {"a": torch.tensor([0.5, 0.7, 0.9]), "neither": torch.tensor([0.5, 0.3, 0.1])}
        curve = dataclasses.replace(curve, answers=answers, kkt=torch.tensor([0.0, 1.0]))
    assert lh.plots.ablation_curve(curve, ax) is ax
    drawn = curves(ax)
    prices = [0.0, 0.1 * (1 - np.exp(-1)), 0.1 * (1 - np.exp(-2.25))]
    line = ax.get_lines()[0]
    assert np.allclose(line.get_xdata(), prices, rtol=1e-5)
    if has_answers:
        assert np.allclose(drawn["a"], [50, 70, 90])
        assert np.allclose(drawn["neither"], [50, 30, 10])
        assert np.allclose(ax.collections[0].get_facecolors()[2], 1.0)  # the point that missed gtol is hollow
    else:
        assert np.allclose(drawn["kept loss"], [4.0, 1.0, 0.25])
    with pytest.raises(TypeError, match="curve is a Tensor"):
        lh.plots.ablation_curve(torch.zeros(3), ax)


def test_paired_images(ax):
    views = lh.paired_mnist(patterns_per_class=2)
    assert lh.plots.paired_images(views, ax, num_images=4) is ax
    (image,) = ax.get_images()
    assert image.get_array().shape == (4 * 32, 4 * 32)
    first = np.asarray(image.get_array())[2:30, 2:30]
    assert np.allclose(first, views.mixed.test.inputs[0, 0].numpy())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["mixed", "number", "pattern", "conflict"]


def test_panels_is_a_figure_with_every_drawing_in_it(tmp_path):
    drawn = []
    picture = lh.plots.panels([[drawn.append, lambda ax: drawn.append(ax.plot([0, 1], [0, 1]))]], width=6, height=3)
    assert len(drawn) == 2
    picture.savefig(tmp_path / "panels.png")
    assert picture.number is None if hasattr(picture, "number") else picture not in map(plt.figure, plt.get_fignums())
    pixels = imread(tmp_path / "panels.png")
    assert pixels.shape[:2] == (390, 780)
    assert pixels[..., :3].std() > 0.01


def test_without_axes_a_figure_is_made():
    import matplotlib.pyplot as plt

    scan = lh.line_slice({"number": quadratic(1, 2, 3)}, torch.eye(3)[2], extent=1.0, num=5)
    made = lh.plots.line_slice(scan)
    assert made.figure.number in plt.get_fignums()
    plt.close(made.figure)


def test_line_slice_starts_at_zero_unless_that_would_flatten_the_curves(ax):
    def scan(low, high):
        alphas = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        row = torch.tensor([low, high], dtype=torch.float64)
        return lh.landscape.LineSlice(
            alphas, {"mixed": row}, {}, torch.ones(1), torch.zeros(1), 1.0, name="steering direction"
        )

    lh.plots.line_slice(scan(0.5, 2.0), ax)
    assert ax.get_ylim()[0] == 0
    assert ax.get_xlabel() == "step along steering direction (‖Δθ‖ = 1)"
    ax.clear()
    lh.plots.line_slice(scan(2.2, 2.3), ax)
    assert ax.get_ylim()[0] > 2
    ax.clear()
    lh.plots.line_slice(scan(0.02, 0.3), ax, log=True)
    ax.figure.draw_without_rendering()
    assert {"0.02", "0.05", "0.1", "0.2"} <= {label.get_text() for label in ax.get_yticklabels()}


@pytest.mark.parametrize("num", [3, 61])
def test_path_slice(ax, num):
    knots = torch.cumsum(2 * torch.exp(-torch.arange(num) / 15.0), 0).double()
    knots = knots - knots[0]
    positions = torch.unique(torch.cat([knots, torch.linspace(0, float(knots[-1]), 90, dtype=torch.float64)]))
    scan = lh.landscape.PathSlice(
        positions, {"mixed": positions**2}, {"mixed": positions / 100}, knots, torch.zeros(num, 4)
    )
    assert lh.plots.path_slice(scan, ax) is ax
    assert np.allclose(curves(ax)["mixed"], positions**2)
    assert "arc length" in ax.get_xlabel()
    (top,) = ax.child_axes
    ax.figure.draw_without_rendering()
    labels = [label for label in top.get_xticklabels() if label.get_text()]
    numbers = [int(label.get_text()) for label in labels]
    assert numbers[0] == 0
    assert numbers[-1] == num - 1
    assert np.allclose([label.get_position()[0] for label in labels], knots[numbers])
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    verticals = [line for line in ax.get_lines() if len(set(line.get_xdata())) == 1]
    assert np.allclose([line.get_xdata()[0] for line in verticals], knots)
    ax.clear()
    lh.plots.path_slice(scan, ax, quantity="accuracy")
    assert np.allclose(curves(ax)["mixed"], positions)
    with pytest.raises(TypeError, match="scan is a PathSlice, expected a LineSlice"):
        lh.plots.line_slice(scan, ax)


X, Y = np.meshgrid(GRID.numpy(), GRID.numpy())
RANGES = {
    "linear": X**2 + Y**2,
    "negative": -(X**2) - 5,
    "log": X**4 + 100 * Y**2 + 1e-3,
    "log of many decades": np.exp(20 * X),
    "rise from 0": X**2 * Y**2,
    "rise from rounding": np.maximum(X**2 * Y**2, 1e-33),
    "rise from rounding below 0": X**2 * Y**2 - 1e-17,
    "rise from below 0": X**2 * Y**2 - 0.2345,
    "nearly constant": 2.3 + 1e-6 * X,
    "half a percent": 2.3 + 1e-3 * X,
    "thousands": 1e7 + 1e6 * X,
    "tiny": 1e-300 * (1 + X**2),
    "huge": 1e300 * (1 + X**2),
    "with holes": np.where(X > 1, np.nan, np.where(Y > 1, np.inf, X)),
}


@pytest.mark.parametrize("kind", RANGES)
def test_levels_cover_every_finite_value_in_a_dozen_bands(kind):
    values = RANGES[kind]
    finite = values[np.isfinite(values)]
    bands = choose_bands([values])
    assert (np.diff(bands.boundaries) > 0).all()
    assert bands.boundaries[0] <= finite.min()
    assert bands.boundaries[-1] >= finite.max()
    assert 8 <= len(bands.boundaries) - 1 <= 17
    assert len(set(bands.labels)) == len(bands.labels) == len(bands.boundaries)
    assert max(map(len, bands.labels)) <= 8
    assert bands.extend == "neither"
    assert bands.kind == (kind.split()[0] if kind.split()[0] in ("log", "rise") else "linear")


def test_levels_are_round_and_said_as_they_are():
    assert choose_bands([RANGES["linear"]]).labels[:3] == ("0", "2", "4")
    log = choose_bands([RANGES["log"]])
    assert log.labels[-4:] == ("100", "200", "500", "1000")
    assert np.allclose(log.boundaries[-4:], [100, 200, 500, 1000])
    rise = choose_bands([RANGES["rise from below 0"]])
    assert rise.base == RANGES["rise from below 0"].min()
    assert rise.labels[0] == "0"
    assert rise.labels[-1] == "+100"
    assert np.isclose(rise.boundaries[-1], 100 + rise.base)
    assert choose_bands([RANGES["rise from rounding below 0"]]).labels[:2] == ("0", "0.002")
    assert rise.title("mean loss") == "mean loss above −0.2345, its lowest here"
    assert choose_bands([RANGES["nearly constant"]]).labels[:2] == ("0", "+5e−7")
    assert [short(x) for x in (0.002, 15.0, 2e-5, -3e6, 0.0, 12345.0)] == ["0.002", "15", "2e−5", "−3e6", "0", "12345"]


def test_levels_that_are_given():
    bands = choose_bands([np.array([0.0, 5.0])], [1, 2, 4])
    assert bands.boundaries.tolist() == [1, 2, 4]
    assert bands.extend == "both"
    assert choose_bands([np.array([1.0, 5.0])], np.array([1.0, 2.0])).extend == "max"
    assert len(choose_bands([X], np.int64(5)).boundaries) - 1 in (3, 4, 5, 6, 7)
    with pytest.raises(ValueError, match=r"levels is \[2\.0, 1\.0\], expected at least two ascending numbers"):
        choose_bands([X], [2, 1])
    with pytest.raises(ValueError, match="levels is 0, expected an integer from 1 to 100"):
        choose_bands([X], 0)
    with pytest.raises(TypeError, match=r"levels is 1\.5, expected a number of bands"):
        choose_bands([X], 1.5)
    with pytest.raises(ValueError, match=r"levels is \[0\.0, nan\], expected at least two ascending"):
        choose_bands([X], [0, math.nan])


def test_plane_slice_has_the_first_direction_to_the_right(ax):
    plane = plane_of(
        torch.linspace(-1, 3, 5).double(), torch.linspace(-2, 2, 7).double(), other=lambda a, b: a + 10 * b + 100
    )
    assert lh.plots.plane_slice(plane, ax) is ax
    lines = next(c for c in ax.collections if isinstance(c, QuadContourSet) and not c.filled)
    num = 0
    for level, segments in zip(lines.levels, lines.allsegs, strict=True):
        for a, b in np.concatenate(segments or [np.zeros((0, 2))]):
            assert np.isclose(a + 10 * b + 100, level)  # linear: interpolation is exact
            num += 1
    assert num > 20
    (fill,) = fills(ax)
    assert (fill.zmin, fill.zmax) == (79, 123)
    assert ax.get_xlim() == (-1, 3)
    assert ax.get_ylim() == (-2, 2)
    assert ax.get_xlabel() == "step along steering direction (‖Δθ‖ = 1)"
    assert "eigenvector 1" in ax.get_ylabel()
    assert ax.get_title() == "loss: other"
    dots = [line.get_xydata()[0].tolist() for line in ax.get_lines()]
    assert dots == [[0, 0], [-1, -2]]
    assert "center" in words(ax)
    assert "lowest loss 79" in words(ax)
    assert len(ax.child_axes) == 1


def test_plane_slice_bands_have_equal_contrast_and_a_labelled_bar(ax):
    plane = plane_of(log=lambda a, b: a**4 + 100 * b**2 + 1e-3)
    lh.plots.plane_slice(plane, ax)
    (fill,) = fills(ax)
    expected = choose_bands([plane.losses["log"].numpy()])
    assert np.array_equal(fill.levels, expected.boundaries)
    places = fill.norm(0.5 * (expected.boundaries[:-1] + expected.boundaries[1:]))
    assert places.tolist() == list(range(len(places)))
    (bar,) = ax.child_axes
    ax.figure.draw_without_rendering()
    labels = [label.get_text() for label in bar.get_yticklabels()]
    assert [label for label in labels if label] == list(expected.labels)
    assert bar.get_ylabel() == "mean loss"
    bar_box, box = bar.get_window_extent(), ax.get_window_extent()
    assert np.allclose([bar_box.y0, bar_box.y1], [box.y0, box.y1], atol=1)


def test_plane_slice_chooses_what_to_draw(ax):
    plane = plane_of(
        mixed=lambda a, b: a**2 + b**2, number=lambda a, b: a + b, accuracies={"number": lambda a, b: (a + 3) / 8}
    )
    lh.plots.plane_slice(plane, ax, quantity="accuracy", colorbar=False)
    assert ax.get_title() == "accuracy: number"
    assert fills(ax)[0].zmax == pytest.approx(75)
    assert not ax.child_axes
    ax.clear()
    lh.plots.plane_slice(plane, ax, name="number", levels=[-1, 0, 1])
    assert ax.get_title() == "loss: number"
    assert fills(ax)[0].extend == "both"
    with pytest.raises(ValueError, match=r"name is 'pattern', expected one of 'mixed', 'number'"):
        lh.plots.plane_slice(plane, ax, name="pattern")
    with pytest.raises(ValueError, match=r"name is 'mixed', expected one of 'number'\.\nName one that the plane has a"):
        lh.plots.plane_slice(plane, ax, name="mixed", quantity="accuracy")
    with pytest.raises(ValueError, match="quantity is 'accuracy' for a PlaneSlice without class targets"):
        lh.plots.plane_slice(plane_of(mixed=canyons), ax, quantity="accuracy")
    with pytest.raises(TypeError, match=r"plane is a dict, expected a PlaneSlice\.\nPass what lh.plane_slice returned"):
        lh.plots.plane_slice({}, ax)
    with pytest.raises(TypeError, match="trajectory is a Tensor, expected a PlaneTrajectory"):
        lh.plots.plane_slice(plane, ax, trajectory=torch.zeros(3, 2))


def test_plane_slice_never_paints_what_is_not_finite(ax, figure):
    def corner(a, b):
        return torch.where((a > 1) & (b > 1), torch.where(a > 2, math.inf, math.nan), a**2 + b**2)

    plane = plane_of(mixed=corner)
    lh.plots.plane_slice(plane, ax)
    num = int((~plane.losses["mixed"].isfinite()).sum())
    assert f"NaN or inf, {num} of 1,681 points" in words(ax)
    (hatched,) = [patch for patch in ax.patches if patch.get_hatch()]
    assert hatched.get_zorder() < fills(ax)[0].get_zorder()
    grey = matplotlib.colors.to_rgba(hatched.get_facecolor())[:3]
    ax.get_legend().remove()
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255.0

    def is_grey(alpha, beta):  # of a neighbourhood: the hatching has dark lines
        x, y = ax.transData.transform((alpha, beta)).astype(int)
        around = pixels[len(pixels) - y - 6 : len(pixels) - y + 6, x - 6 : x + 6]
        return bool((np.abs(around - grey) < 0.02).all(-1).any())

    assert is_grey(2.5, 1.6)  # infinite
    assert is_grey(1.6, 2.5)  # NaN
    assert not is_grey(-1.6, 2.5)
    # A finite value among others that are not is painted too, as a square of its colour.
    lone = plane_of(mixed=lambda a, b: torch.where((a == b) & (a > 0), a, math.nan))
    ax.clear()
    lh.plots.plane_slice(lone, ax, colorbar=False)
    assert not fills(ax)
    squares = [c for c in ax.collections if not isinstance(c, QuadContourSet)]
    assert np.allclose(squares[0].get_offsets(), np.stack([GRID[GRID > 0]] * 2, axis=1))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda a, b: 0 * a, "constant: 0"),
        (lambda a, b: 0 * a + 2.5, "constant: 2.5"),
        (lambda a, b: 0 * a + 2.5 + 1e-15 * b, "constant: 2.5"),
        (lambda a, b: a * math.nan, "no finite value"),
        (lambda a, b: torch.where((a == 0) & (b == 0), 1.25, math.inf), "one finite value: 1.25"),
    ],
)
def test_planes_without_contours_say_so(figure, function, said):
    plane = plane_of(mixed=function)
    flat, deep = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2, projection="3d")
    lh.plots.plane_slice(plane, flat)
    lh.plots.surface(plane, deep)
    assert said in words(flat)
    assert said in deep.get_title()
    figure.draw_without_rendering()
    assert said in lh.plots.interactive(plane).to_html()
    assert lh.plots.animation([plane], width=4, height=3)


def test_plane_slice_keeps_proportions_where_they_can_be_read(figure):
    axes = figure.subplots(1, 4)
    planes = [
        plane_of(norms=(2.0, 3.0), mixed=canyons),
        plane_of(norms=(1.0, 10.0), mixed=canyons),
        plane_of(angle=60.0, mixed=canyons),
        plane_of(angle=89.5, mixed=canyons),
    ]
    for ax, plane in zip(axes, planes, strict=True):
        lh.plots.plane_slice(plane, ax, colorbar=False)
    assert [ax.get_aspect() for ax in axes] == [1.5, "auto", "auto", 1.0]
    assert "directions 60° apart, drawn at 90°" in words(axes[2])
    assert "apart" not in words(axes[3])
    assert "(‖Δθ‖ = 10)" in axes[1].get_ylabel()


def test_plane_slice_shows_marks_and_a_trajectory(ax):
    marks = {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([2.0, 0.0]), "out": torch.tensor([9.0, 0.0])}
    plane = dataclasses.replace(plane_of(mixed=lambda a, b: (a - 1.5) ** 2 + b**2), marks=marks)
    lh.plots.plane_slice(plane, ax, colorbar=False)
    assert words(ax).splitlines()[:-1] == ["a", "b", "lowest loss 0"]  # "a" is the center
    looks = {handle.get_marker() for handle in ax.get_legend().legend_handles}
    assert len(looks) == 3  # each can be told from the others
    ax.clear()
    coordinates = torch.tensor([[2.0, 2.0], [1.0, -1.0], [-1.0, -1.0], [-4.0, -1.0]], dtype=torch.float64)
    row = torch.arange(4.0, dtype=torch.float64)
    trajectory = lh.landscape.PlaneTrajectory(
        coordinates, torch.tensor([2.3, 1.0, 0.0, 0.0]), {"mixed": row}, {"mixed": row}, plane.identity
    )
    lh.plots.plane_slice(plane, ax, trajectory=trajectory, colorbar=False)
    lines = [line.get_xydata() for line in ax.get_lines() if len(line.get_xydata()) == 4]
    assert all(np.array_equal(line, coordinates) for line in lines)
    said = words(ax)
    assert "trajectory from square to star, up to 2.3 off the plane, 1 of 4 points outside the box" in said
    within = dataclasses.replace(trajectory, coordinates=coordinates / 2, distances=0 * row)
    ax.clear()
    lh.plots.plane_slice(plane, ax, trajectory=within, colorbar=False)
    assert "trajectory from square to star, in the plane" in words(ax)


def test_marks_are_told_apart_in_the_legend(ax, figure):
    marks = {f"checkpoint {i}": torch.tensor([0.5 * i, 0.1 * i]) for i in range(1, 5)}
    plane = dataclasses.replace(plane_of(mixed=lambda a, b: (a - 0.15) ** 2 + b**2), marks=marks)
    lh.plots.plane_slice(plane, ax)
    figure.draw_without_rendering()
    handles = ax.get_legend().legend_handles
    assert [handle.get_label() for handle in handles[:4]] == list(marks)
    assert len({handle.get_marker() for handle in handles}) == len(handles) == 6
    box, legend = ax.get_window_extent(), ax.get_legend().get_window_extent()
    assert legend.width < 0.6 * box.width
    assert legend.height < 0.6 * box.height


def test_plane_slices_share_one_scale(figure):
    plane = plane_of(
        mixed=canyons, number=lambda a, b: 100 * (a - b) ** 2 + 1, pattern=lambda a, b: a**2,
        accuracies={"mixed": lambda a, b: 0 * a + 0.5, "number": lambda a, b: (a + 3) / 6},
    )  # fmt: skip
    axes = figure.subplots(1, 3)
    made = lh.plots.plane_slices(plane, axes)
    assert made == list(axes)
    levels = [fills(ax)[0].levels for ax in axes]
    assert all(np.array_equal(row, levels[0]) for row in levels)
    assert levels[0][0] <= 0
    assert levels[0][-1] >= 3601
    assert [ax.get_title() for ax in axes] == ["loss: mixed", "loss: number", "loss: pattern"]
    assert [len(ax.child_axes) for ax in axes] == [0, 0, 1]  # one colour bar
    assert "center" in words(axes[0])
    assert all("lowest loss" in words(ax) for ax in axes)
    colors = [fills(ax)[0].norm(50.0) for ax in axes]
    assert len(set(map(float, colors))) == 1
    figure.clear()
    axes = figure.subplots(2, 1)
    assert len(lh.plots.plane_slices(plane, axes, quantity="accuracy")) == 2
    with pytest.raises(ValueError, match="axes hold 2, expected 1, one for each of"):
        lh.plots.plane_slices(plane, axes, names="pattern")
    with pytest.raises(ValueError, match="names has the names"):
        lh.plots.plane_slices(plane, axes, names=[])


def test_surface(figure):
    ax = figure.add_subplot(projection="3d")
    plane = plane_of(
        torch.linspace(0, 1, 3).double(), torch.linspace(0, 2, 4).double(), mixed=lambda a, b: 10 ** (3 * a + b)
    )
    plane.losses["mixed"][0, 0] = math.nan
    assert lh.plots.surface(plane, ax) is ax
    (faces,) = ax.collections
    corners = faces._faces
    assert corners.shape == (2 * 3 - 1, 4, 3)
    assert np.allclose(corners[..., 2], 3 * corners[..., 0] + corners[..., 1])  # logarithms
    assert "log scale" in ax.get_zlabel()
    assert {"10", "100", "1000"} <= {label.get_text() for label in ax.get_zticklabels()}
    assert "holes: NaN or inf, 1 of 12 points" in ax.get_title()
    assert "steering direction" in ax.get_xlabel()
    figure.draw_without_rendering()
    figure.clear()
    ax = figure.add_subplot(projection="3d")
    lh.plots.surface(plane_of(mixed=canyons), ax, colorbar=False)
    heights = ax.collections[0]._faces[..., 2]
    assert heights.max() == pytest.approx(81.1, abs=0.01)
    assert "log" not in ax.get_zlabel()
    with pytest.raises(
        TypeError, match=r"ax is an Axes of two dimensions, expected one of three\.\nMake one with figure"
    ):
        lh.plots.surface(plane, figure.add_subplot(2, 2, 1))


def frames_of(gif: bytes) -> list[np.ndarray]:
    with Image.open(io.BytesIO(gif.data)) as image:
        assert image.info["loop"] == 0
        frames = []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")).astype(int))
    return frames


def test_animation_of_lines(tmp_path):
    alphas = torch.linspace(-1, 1, 5, dtype=torch.float64)
    scans = [
        lh.landscape.LineSlice(
            alphas, {"mixed": c * alphas**2 + 1e-3, "number": c + alphas}, {}, torch.ones(1), torch.zeros(1), 1.0
        )
        for c in (5.0, 2.0, 1.0)
    ]
    gif = lh.plots.animation(scans, labels=["epoch 0", "epoch 1", "epoch 2"], milliseconds=250, width=4, height=3)
    frames = frames_of(gif)
    assert [frame.shape for frame in frames] == [(300, 400, 3)] * 3
    assert (frames[1][0, 0] == 255).all()
    # One scale: the numbers beside the vertical axis are the same pixels in every frame.
    assert all((frame[40:, :40] == frames[0][40:, :40]).all() for frame in frames)
    assert (frames[0][40:, 60:] != frames[2][40:, 60:]).any()
    with Image.open(io.BytesIO(gif.data)) as image:
        durations = [(image.seek(i), image.info["duration"])[1] for i in range(3)]
    assert durations == [250, 250, 750]
    path = gif.save(tmp_path / "new" / "lines.gif")
    assert path.read_bytes() == gif.data
    shown = gif._repr_html_()
    assert shown.startswith('<img alt="animation" src="data:image/gif;base64,')
    assert base64.b64decode(shown.split("base64,")[1].split('"')[0]) == gif.data
    assert repr(gif).startswith("Animation(3 frames")
    assert len(frames_of(lh.plots.animation(scans, name="mixed", log=True, width=3, height=2))) == 3
    with pytest.raises(ValueError, match=r"name is 'x', expected one of 'mixed', 'number'"):
        lh.plots.animation(scans, name="x")
    with pytest.raises(ValueError, match="labels are 1, expected 3, one per slice"):
        lh.plots.animation(scans, labels=["epoch 0"])
    with pytest.raises(TypeError, match="slices hold nothing, expected LineSlices, or PlaneSlices"):
        lh.plots.animation([])
    with pytest.raises(TypeError, match="slices hold LineSlice, PlaneSlice, expected"):
        lh.plots.animation([scans[0], plane_of(mixed=canyons)])
    with pytest.raises(ValueError, match="milliseconds is 1, expected an integer of at least 20"):
        lh.plots.animation(scans, milliseconds=1)
    with pytest.raises(ValueError, match="height is 0, expected a finite number"):
        lh.plots.animation(scans, height=0)


def test_animation_of_planes_keeps_one_scale():
    planes = [plane_of(mixed=lambda a, b, c=c: c * canyons(a, b)) for c in (1.0, 0.3)]
    frames = frames_of(lh.plots.animation(planes, width=4, height=3))
    assert len(frames) == 2
    bar = slice(310, 400)  # the colour bar and its numbers
    assert (frames[0][30:, bar] == frames[1][30:, bar]).all()
    assert len(np.unique(frames[0][30:, bar].reshape(-1, 3), axis=0)) > 10
    assert (frames[0][30:, :300] != frames[1][30:, :300]).any()


@pytest.mark.parametrize("log", [False, True])
def test_trajectory(ax, log):
    true, under = torch.tensor([2.0, 1.0, 0.5]).double(), torch.tensor([3.0, math.inf, 0.5]).double()
    result = lh.landscape.PlaneTrajectory(
        torch.zeros(3, 2).double(), torch.tensor([4.0, 2.0, 0.0]), {"mixed": true}, {"mixed": under}, "a plane"
    )
    assert lh.plots.trajectory(result, ax, log=log) is ax
    solid, dashed = ax.get_lines()[:2]
    assert np.array_equal(solid.get_ydata(), true)
    assert np.array_equal(dashed.get_ydata(), [3, np.nan, 0.5], equal_nan=True)
    assert dashed.get_linestyle() == "--"
    assert solid.get_color() == dashed.get_color()
    assert ax.get_yscale() == ("log" if log else "linear")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["mixed", "at the checkpoint", "on the plane under it"]
    right = ax.figure.axes[1]
    assert "distance from the plane" in right.get_ylabel()
    (area,) = right.collections
    assert area.get_paths()[0].vertices[:, 1].max() == 4
    with pytest.raises(TypeError, match="trajectory is a list, expected a PlaneTrajectory"):
        lh.plots.trajectory([], ax)


def test_descents(ax):
    loss = lh.toys.sloped_canyons()
    plane = lh.plane_slice({"canyons": loss}, 2 * torch.eye(2, dtype=torch.float64), extent=2.0, num=11, progress=False)
    paths = [lh.toys.gradient_path(loss, start, time=3.0, progress=False) for start in ([2.0, 1.0], [-1.0, 2.0])]
    assert lh.plots.descents(plane, paths, ax) is ax
    drawn = [line.get_xydata() for line in ax.get_lines()]
    for path in paths:
        assert any(line.shape == path.thetas.shape and np.allclose(line, path.thetas / 2) for line in drawn)
    assert "2 descents, from square to star" in words(ax)
    ax.clear()
    embedded, space = lh.toys.embedded(loss, 5)
    path = lh.toys.gradient_path(embedded, space.basis.T @ torch.tensor([2.0, 1.0]).double() + 0.1, time=3.0)
    plane = lh.plane_slice({"canyons": embedded}, space.basis, extent=3.0, num=11, progress=False)
    lh.plots.descents(plane, path, ax)
    assert re.search(r"1 descent, from square to star: up to 0.\d+ off the plane", words(ax))
    with pytest.raises(ValueError, match=r"paths\[0\] has 2 weights, expected 5, as the plane"):
        lh.plots.descents(plane, paths, ax)
    with pytest.raises(ValueError, match="paths hold nothing, expected at least one GradientPath"):
        lh.plots.descents(plane, [], ax)
    with pytest.raises(TypeError, match=r"paths\[0\] is a Tensor, expected a GradientPath"):
        lh.plots.descents(plane, [torch.zeros(3, 5)], ax)


def test_interactive_is_one_page_with_every_number(tmp_path):
    plane = plane_of(
        torch.linspace(-1, 1, 3).double(), torch.linspace(-2, 2, 4).double(), norms=(1.0, 2.0),
        number=lambda a, b: torch.exp(3 * a + b), accuracies={"number": lambda a, b: 0.5 + a / 8},
        **{"</script>": lambda a, b: 1 + a**2},
    )  # fmt: skip
    plane.losses["number"][2, 3] = math.inf
    figure = lh.plots.interactive(plane, name="number")
    page = figure.to_html(div_id="plane")
    assert page.lstrip().lower().startswith(("<html", "<!doctype html"))
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=", page)
    data = page[page.rindex("Plotly.newPlot(") :]
    assert len(page) > 1e6 > len(data)
    assert "</script>" not in data[: data.index("updatemenus")]
    for i, alpha in enumerate(plane.alphas.tolist()):
        for j, beta in enumerate(plane.betas.tolist()):
            text = f"steering direction: {alpha:.4g}\\u003cbr\\u003eeigenvector 1: {beta:.4g}\\u003cbr\\u003e"
            loss = f"{float(plane.losses['number'][i, j]):.6g}"
            assert f"{text}number: {loss}\\u003cbr\\u003eaccuracy: {50 + 12.5 * alpha:.1f} %" in data
    assert all(f"number: {kind}" in data for kind in ("surface", "contours"))
    assert "(|Δθ| = 2)" in data or "(|\\u0394\\u03b8| = 2)" in data
    assert "NaN or inf, 1 of 12 points" in data
    assert "Infinity" not in data
    assert page == lh.plots.interactive(plane, name="number").to_html(div_id="plane")
    assert len(figure.to_json()) < 1e5  # what a notebook keeps: no program, and no style but its own
    with pytest.raises(ValueError, match="name is 'x', expected one of"):
        lh.plots.interactive(plane, name="x")


def test_interactive_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r"plotly is not installed, expected .*\n.*pip install \"\.\[interactive\]\""):
        lh.plots.interactive(plane_of(mixed=canyons))


@pytest.mark.parametrize(
    "draw",
    [
        lambda plane: [lh.plots.plane_slice(plane)],
        lambda plane: lh.plots.plane_slices(plane, names=["mixed", "number"]),
        lambda plane: [lh.plots.surface(plane)],
    ],
)
def test_planes_make_a_figure_where_none_is_given(draw):
    import matplotlib.pyplot as plt

    made = draw(plane_of(mixed=canyons, number=lambda a, b: a))
    assert {ax.figure.number for ax in made} <= set(plt.get_fignums())
    made[0].figure.draw_without_rendering()
    plt.close(made[0].figure)


def test_names_that_matplotlib_would_hide_are_in_the_legend_and_a_log_axis_needs_something_to_show(ax):
    scan = lh.line_slice({"_hidden": lh.FunctionObjective(lambda t: -t.square().sum() - 1, THETA0)}, torch.ones(3))
    lh.plots.line_slice(scan, ax)
    assert [text.get_text().strip() for text in ax.get_legend().get_texts()] == ["_hidden"]
    with pytest.raises(ValueError, match="log is True, and no loss is positive"):
        lh.plots.line_slice(scan, ax, log=True)


def test_a_trajectory_of_another_plane_is_refused(ax):
    f = {"f": quadratic(1, 2, 3)}
    plane, other = (lh.plane_slice(f, torch.eye(3)[rows], extent=1.0, num=3) for rows in ([0, 1], [0, 2]))
    trajectory = lh.plane_trajectory(other, torch.eye(3), losses=f)
    lh.plots.plane_slice(other, ax, trajectory=trajectory, colorbar=False)
    with pytest.raises(ValueError, match="trajectory was projected onto another plane"):
        lh.plots.plane_slice(plane, ax, trajectory=trajectory)


def test_colours_and_marks_are_ones_own(ax):
    plane = plane_of(one=canyons)
    lh.plots.plane_slice(plane, ax, cmap="magma", marks=False)
    assert ax.get_legend() is None
    first = ax.collections[0].get_facecolor()[0]
    expected = matplotlib.colormaps["magma"].resampled(len(choose_bands([plane.losses["one"].numpy()]).boundaries) - 1)
    assert np.allclose(first, expected(0))
    with pytest.raises(ValueError, match="cmap is 'rainbows'"):
        lh.plots.plane_slice(plane, ax, cmap="rainbows")
    assert lh.plots.surface(plane, cmap="cividis") is not None
    plt.close("all")


def test_curves_have_the_colours_that_were_asked_for(ax):
    alphas = torch.linspace(-1, 1, 5, dtype=torch.float64)
    losses = {"a": alphas**2, "b": alphas + 2}
    scan = lh.landscape.LineSlice(alphas, losses, {}, torch.ones(1), torch.zeros(1), 1.0)
    lh.plots.line_slice(scan, ax, color={"a": "red"}, marks=False)
    assert next(line.get_color() for line in ax.lines) == "red"
    assert len(ax.lines) == 2
    with pytest.raises(ValueError, match="color is 'reddish'"):
        lh.plots.line_slice(scan, ax, color="reddish")
