"""How long do rules of growing size take to be learned, and which ability comes first?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowhanging.circuits.learning_times import Competences, LearningTimes
from lowhanging.plots.style import axes, check_kind, color_of, label_log_axis, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^v"


def learning_times(times: LearningTimes, ax: Axes | None = None, *, size: str = "parameters n of the rule") -> Axes:
    """A line per rule through the median steps at each size, with 95 % intervals, on a logarithmic axis.

    An interval that ends in an arrow has no upper end: too many seeds had not learned the rule within the budget. A
    rule whose median is infinite stands hollow at the budget, a lower bound.

    Args:
        times: such as `lowhanging.reproduce.sizes.learning_times` returns.
        ax: where to draw; None makes a figure.
        size: what the sizes are, for the axis.

    Returns:
        The Axes. It is neither shown nor saved.
    """
    check_kind("times", times, LearningTimes, "Pass a lh.circuits.LearningTimes.")
    ax = axes(ax)
    sizes = times.sizes.numpy()
    step = float(np.diff(sizes).min()) if len(sizes) > 1 else 1.0
    shift = 0.06 * step  # side by side, so that intervals do not cover each other
    for i, name in enumerate(times.times):
        median, budget = times.median(name).numpy(), times.budgets[name].numpy()
        low, high = times.interval(name).T.numpy()
        where = sizes + shift * (i - (len(times.times) - 1) / 2)
        is_known = np.isfinite(median)
        middle = np.where(is_known, median, budget)
        color = color_of(name, i)
        ends = np.where(np.isfinite(high), high, budget)
        ax.vlines(where, np.minimum(np.maximum(low, 1.0), middle), ends, color=color, linewidth=1.3)
        is_open = ~np.isfinite(high)
        ax.plot(where[is_open], ends[is_open], marker="^", color=color, linestyle="none", markersize=5)
        ax.plot(where, middle, color=color, linewidth=1.6, marker=_MARKERS[i % len(_MARKERS)], markersize=5, label=name)
        ax.plot(where[~is_known], middle[~is_known], "o", color=color, markersize=8, mfc="white")
    ax.set_yscale("log")
    ax.set_xticks(sizes)
    ax.set_xlabel(size)
    ax.set_ylabel("steps to learn it (median over seeds)")
    legend_above(ax)
    label_log_axis(ax.yaxis)
    ax.grid(alpha=0.3)
    return ax


def competences(found: Competences, ax: Axes | None = None) -> Axes:
    """Progress of each ability over training: the median over seeds, a thin line per seed, a dot at half of the way.

    Args:
        found: such as `lowhanging.reproduce.order.competences` returns.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes. It is neither shown nor saved.
    """
    check_kind("found", found, Competences, "Pass a lh.circuits.Competences.")
    ax = axes(ax)
    times = found.times.numpy()
    for i, (name, rows) in enumerate(found.progress.items()):
        color, shares = color_of(name, i), 100 * rows.numpy()
        middle = np.median(shares, axis=0)
        if len(shares) > 1:
            ax.plot(times, shares.T, color=color, linewidth=0.6, alpha=0.4)
        half = float(found.crossing(name, 0.5).median())
        told = f"{name}, half at {found.unit} {half:.3g}" if np.isfinite(half) else f"{name}, half not reached"
        ax.plot(times, middle, color=color, linewidth=1.8, label=told)
        if np.isfinite(half):
            ax.plot([half], [50.0], marker="o", color=color, markersize=6, mec="white")
    ax.axhline(50, color="0.6", linewidth=0.8, linestyle=":")
    ax.set_xlabel(f"{found.unit} (0 = before training)")
    ax.set_ylabel("way from chance to the final accuracy (%)")
    ax.grid(alpha=0.3)
    ax.legend(loc="best", fontsize="small")
    return ax
