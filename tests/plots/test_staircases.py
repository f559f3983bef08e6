"""Pictures of staircases: they draw each seed's time, the budget of those that never learned, and the fitted laws."""

import math

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import lowhanging as lh
from lowhanging.prior import StaircaseExponent, censored_power_law


@pytest.fixture
def ax():
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.subplots()
    figure.canvas.draw()


def exponent_of(times, dimensions=(16, 32, 64), budget=5000):
    laws = [censored_power_law(dimensions, times, budgets=budget, log_power=power) for power in (0.0, 1.0)]
    one = torch.ones(len(dimensions), dtype=torch.float64)
    return StaircaseExponent(
        leap=2, degree=3, dimensions=torch.tensor(dimensions), times=times, lrs=one, scanned_lrs=one[:1],
        scan_times=times[:, None], law=laws[0], law_with_log=laws[1], seeds=torch.arange(2),
        scan_seeds=torch.arange(2, 4), max_steps=budget, optimizer="sgd", batch_size=1, hidden=64,
    )  # fmt: skip


def test_dots_arrows_and_laws(ax):
    times = torch.tensor([[900.0, 1100.0], [2000.0, 2100.0], [4400.0, math.inf]], dtype=torch.float64)
    found = exponent_of(times)
    assert lh.plots.staircases({"leap 2": found}, ax) is ax
    dots, arrows, law, law_with_log = ax.lines
    assert dots.get_ydata().tolist() == [900, 1100, 2000, 2100, 4400]
    assert (arrows.get_xdata().tolist(), arrows.get_ydata().tolist()) == ([64], [5000])
    slope = np.diff(np.log(law.get_ydata())) / np.diff(np.log(law.get_xdata()))
    assert np.allclose(slope, found.exponent)
    x = law_with_log.get_xdata()
    corrected = np.log(law_with_log.get_ydata() / np.log(x))
    assert np.allclose(np.diff(corrected) / np.diff(np.log(x)), found.law_with_log.exponent)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    (text,) = ax.get_legend().get_texts()
    assert text.get_text() == f"leap 2: {found.law.in_words()}"


def test_nothing_learned_is_drawn_all_the_same(ax):
    lh.plots.staircases({"leap 3": exponent_of(torch.full((3, 2), math.inf, dtype=torch.float64))}, ax)


def test_messages(ax):
    with pytest.raises(ValueError, match=r"exponents is \{\}, expected names"):
        lh.plots.staircases({}, ax)
    with pytest.raises(TypeError, match="exponents is an int, expected a StaircaseExponent"):
        lh.plots.staircases({"leap 1": 3}, ax)
