"""Phase diagrams: the mean of a number over a grid of settings, with contours and the seeds that are missing.

A cell of a heat map is one setting that was run, as wide as half the way to its neighbours; nothing is smoothed. A
contour lies where a border would: means stand at the centres of cells, and between them the axis is followed linearly,
or in its logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowhanging.errors import argument_message, check_choice, check_real
from lowhanging.plots.contours import short
from lowhanging.plots.style import axes, check_kind, color_of, legend_above
from lowhanging.prior.phase_diagram import PhaseDiagram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_TICKS = 10
_FINER = 16  # points of a contour between two cells


def phase_diagram(
    diagram: PhaseDiagram,
    name: str,
    ax: Axes | None = None,
    *,
    levels: Sequence[float] | None = None,
    at: Mapping[str, Any] | None = None,
) -> Axes:
    """The mean of a number in every cell: a heat map over two axes, a line with 95 % intervals over one.

    The levels of the contours are marked on the colour bar. A small number in a cell is that of its seeds that have a
    value, where some have none; a cell without any is hatched. The first axis of the diagram runs to the right.

    Args:
        diagram: what `lh.phase_diagram` returned.
        name: one of its `values`.
        ax: where to draw; None makes a figure.
        levels: where contours are drawn (over one axis: horizontal lines). None is 0.5 for outcomes, whose numbers are
            0 and 1, and a few round numbers otherwise. There are none across categories.
        at: axis -> value for all axes but two, or but one; needed for a diagram of three axes.

    Raises:
        ValueError, TypeError: an unknown name, axis or value, three axes and none of them fixed, another kind of
            result.
    """
    check_kind("diagram", diagram, PhaseDiagram, "Pass what lh.phase_diagram returned.")
    check_choice("name", name, tuple(diagram.values))
    free = diagram.at(at) if at else diagram
    if len(free.axes) > 2:
        remedy = f"Fix one: at={{{next(iter(free.axes))!r}: {next(iter(free.axes.values()))[0]!r}}}."
        received = f"has the axes {list(free.axes)}"
        raise ValueError(argument_message("diagram", received, "at most two free ones", remedy))
    remedy = "Pass numbers such as [0.25, 0.5], or [] for none."
    wanted = _levels(free, name) if levels is None else [check_real("a level", each, remedy=remedy) for each in levels]
    ax = axes(ax)
    (_line if len(free.axes) == 1 else _heat_map)(ax, free, name, wanted)
    fixed = [f"{axis} = {_label(value)}" for axis, value in (at or {}).items()]
    num, missing = len(diagram.seeds), int((free.num_seeds(name) < len(diagram.seeds)).any())
    seeds = f"{num} seed{'s' * (num != 1)}" + (" (fewer where a cell says so)" if missing else "")
    ax.set_title("\n".join([f"{name}, mean over {seeds}", *([", ".join(fixed)] if fixed else [])]), fontsize="medium")
    return ax


def _heat_map(ax: Axes, diagram: PhaseDiagram, name: str, levels: list[float]) -> None:
    from matplotlib.patheffects import withStroke

    mean, num = diagram.mean(name).numpy(), diagram.num_seeds(name).numpy()
    across, up = diagram.axes
    (x, x_edges), (y, y_edges) = _cells(ax, "x", diagram, across), _cells(ax, "y", diagram, up)
    known = np.isfinite(mean)
    limits: Any = {"vmin": 0.0, "vmax": 1.0} if diagram.is_outcome(name) else {}
    ax.set_facecolor("0.88")
    if not known.all():
        ax.axvspan(x_edges[0], x_edges[-1], facecolor="none", edgecolor="0.55", hatch="///", linewidth=0, zorder=0.5)
    mesh: Any = ax.pcolormesh(x_edges, y_edges, np.ma.masked_invalid(mean).T, cmap="viridis", **limits)
    bar = ax.figure.colorbar(mesh, ax=ax, label=f"mean {name}")
    inside = [level for level in sorted(levels) if known.any() and mean[known].min() < level < mean[known].max()]
    is_ordered = "categories" not in map(diagram.scale, diagram.axes)
    if inside and is_ordered and min(mean.shape) > 1:
        lines = ax.contour(*_refined(diagram, mean), levels=inside, colors="white", linewidths=1.6)
        lines.set_path_effects([withStroke(linewidth=3.0, foreground="black")])  # white alone is lost on yellow
        for level in inside:
            bar.ax.axhline(level, color="white", linewidth=1.6, path_effects=lines.get_path_effects())
    for i, j in np.argwhere(num < len(diagram.seeds)):
        color = "white" if known[i, j] and mesh.norm(mean[i, j]) < 0.6 else "black"
        ax.annotate(f"{num[i, j]}", (x[i], y[j]), ha="center", va="center", fontsize="x-small", color=color)


def _refined(diagram: PhaseDiagram, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and heights (y, x), interpolated between cells as borders are: in the logarithm where an axis is "log"."""
    from scipy.interpolate import RegularGridInterpolator

    scales = [diagram.scale(axis) for axis in diagram.axes]
    pairs = zip(scales, diagram.axes.values(), strict=True)
    coarse = [np.log(values) if scale == "log" else np.array(values, dtype=float) for scale, values in pairs]
    fine = [np.linspace(each[0], each[-1], _FINER * (len(each) - 1) + 1) for each in coarse]
    heights = RegularGridInterpolator(coarse, mean)(tuple(np.meshgrid(*fine, indexing="ij")))
    x, y = (np.exp(each) if scale == "log" else each for scale, each in zip(scales, fine, strict=True))
    return x, y, np.ma.masked_invalid(heights).T


def _line(ax: Axes, diagram: PhaseDiagram, name: str, levels: list[float]) -> None:
    ((axis, _),) = diagram.axes.items()
    mean, num = diagram.mean(name).numpy(), diagram.num_seeds(name).numpy()
    x, _ = _cells(ax, "x", diagram, axis)
    low, high = diagram.interval(name).numpy().T
    has_ends = np.isfinite(mean) & np.isfinite(low) & np.isfinite(high)
    color = color_of(name, 0)
    ax.vlines(x[has_ends], low[has_ends], high[has_ends], color=color, linewidth=1.3, label="95 % interval")
    joined = "none" if diagram.scale(axis) == "categories" else "-"
    ax.plot(x, mean, marker="o", markersize=5, linestyle=joined, color=color, linewidth=1.6, label="mean")
    for level in levels:
        ax.axhline(level, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
    for i in np.flatnonzero((num < len(diagram.seeds)) & np.isfinite(mean)):
        ax.annotate(f"{num[i]}", (x[i], mean[i]), xytext=(4, 4), textcoords="offset points", fontsize="x-small")
    ax.set_ylabel(f"mean {name}")
    ax.grid(alpha=0.3)
    legend_above(ax)


def _cells(ax: Axes, which: Literal["x", "y"], diagram: PhaseDiagram, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Centres and edges of the cells along an axis; its scale, limits, ticks and label are set."""
    from matplotlib.ticker import NullLocator

    scale, values = diagram.scale(name), diagram.axes[name]
    centres = np.arange(float(len(values))) if scale == "categories" else np.array(values, dtype=float)
    even = np.log(centres) if scale == "log" else centres
    if len(even) > 1:
        middles = 0.5 * (even[1:] + even[:-1])
        edges = np.concatenate([[2 * even[0] - middles[0]], middles, [2 * even[-1] - middles[-1]]])
    else:
        edges = even[0] + np.array([-0.5, 0.5])
    if scale == "log":
        edges = np.exp(edges)
        ax.set(**{f"{which}scale": "log"})
    every = -(-len(values) // _MOST_TICKS)
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_ticks(centres[::every].tolist(), labels=[_label(value) for value in values[::every]])
    axis.set_minor_locator(NullLocator())
    ax.set(**{f"{which}label": name, f"{which}lim": (edges[0], edges[-1])})
    return centres, edges


def _levels(diagram: PhaseDiagram, name: str) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    if diagram.is_outcome(name):
        return [0.5]
    if len(diagram.axes) == 1:
        return []
    mean = diagram.mean(name)
    known = mean[~mean.isnan()]
    if not len(known) or float(known.max()) == float(known.min()):
        return []
    return list(MaxNLocator(4).tick_values(float(known.min()), float(known.max())))


def _label(value: Any) -> str:
    return value if isinstance(value, str) else short(float(value), 4)
