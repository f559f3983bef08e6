"""Every plot: draws the numbers of its result on the Axes it is given, labels them, and leaves matplotlib as it was."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

import lowhanging as lh

THETA0 = torch.zeros(3, dtype=torch.float64)


@pytest.fixture
def ax():
    figure = Figure()
    FigureCanvasAgg(figure)
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


def curves(ax) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in ax.get_lines() if not line.get_label().startswith("_")}


def test_line_slice(ax):
    scan = lh.line_slice({"number": quadratic(1, 2, 3), "other": quadratic(0, 0, 1)}, 2 * torch.eye(3)[2], (-1, 1), 5)
    assert lh.plots.line_slice(scan, ax) is ax
    assert set(curves(ax)) == {"number", "other"}
    assert np.allclose(curves(ax)["number"], [6, 1.5, 0, 1.5, 6])
    assert "|Δθ| = 2" in ax.get_xlabel()
    assert "loss" in ax.get_ylabel()
    lh.plots.line_slice(scan, ax, log=True)
    assert ax.get_yscale() == "log"
    with pytest.raises(ValueError, match="quantity is 'accuracy' for a slice without class targets, expected 'loss'"):
        lh.plots.line_slice(scan, ax, quantity="accuracy")
    with pytest.raises(ValueError, match="quantity is 'colour', expected one of"):
        lh.plots.line_slice(scan, ax, quantity="colour")


def test_line_slice_draws_accuracies_in_percent_and_gaps_for_what_is_not_finite(ax):
    scan = lh.LineSlice(
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


def test_overlaps(ax):
    report = lh.steering_report(torch.tensor([3.0, 4.0, 0.0]), {"mixed": quadratic(4, 2, 1)}, k=3, tol=1e-10)
    assert lh.plots.overlaps(report, ax) is ax
    (drawn,) = curves(ax).values()
    assert np.allclose(drawn, [0.36, 1.0, 1.0])


def test_paired_images(ax):
    views = lh.paired_mnist(patterns_per_class=2)
    assert lh.plots.paired_images(views, ax, num=4) is ax
    (image,) = ax.get_images()
    assert image.get_array().shape == (4 * 32, 4 * 32)
    first = np.asarray(image.get_array())[2:30, 2:30]
    assert np.allclose(first, views.mixed.test.inputs[0, 0].numpy())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["mixed", "number", "pattern", "conflict"]


def test_panels_is_a_png_with_every_drawing_in_it(tmp_path):
    drawn = []
    picture = lh.plots.panels([[drawn.append, lambda ax: drawn.append(ax.plot([0, 1], [0, 1]))]], width=6, height=3)
    assert len(drawn) == 2
    (tmp_path / "panels.png").write_bytes(picture)
    pixels = imread(tmp_path / "panels.png")
    assert pixels.shape[:2] == (390, 780)
    assert pixels[..., :3].std() > 0.01


def test_without_axes_a_figure_is_made():
    import matplotlib.pyplot as plt

    scan = lh.line_slice({"number": quadratic(1, 2, 3)}, torch.eye(3)[2], 1.0, 5)
    made = lh.plots.line_slice(scan)
    assert made.figure.number in plt.get_fignums()
    plt.close(made.figure)
