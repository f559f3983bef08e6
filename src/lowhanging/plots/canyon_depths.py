"""How deep are the canyons that were found, and how deep would others be?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowhanging.basin.canyon_null import DepthNull
from lowhanging.basin.canyon_points import CanyonPoint
from lowhanging.basin.canyon_set import CanyonSet
from lowhanging.errors import explain
from lowhanging.plots.branches import QUANTITIES
from lowhanging.plots.style import axes, check_kind, label_log_axis, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOR = "#117733"


def canyon_depths(canyons: CanyonSet, ax: Axes | None = None, *, null: DepthNull | None = None) -> Axes:
    """Depth of every point that was found, level by level: canyons filled, what a bowl has as well hollow.

    Depth is rise / energy, 1 in a quadratic bowl. The legend counts, since symmetric copies lie on one another.

    Args:
        canyons: what `lh.find_canyons` returned.
        ax: where to draw; None makes a figure.
        null: what `lh.depth_null` returned for them: at each level a grey bar from the lowest to the highest of the
            depths of random subspaces, a line across it at their median.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError, TypeError: no point with a depth, a null of other levels, or another kind of result.
    """
    check_kind("canyons", canyons, CanyonSet, "Pass what lh.find_canyons returned.")
    if null is not None:
        check_kind("null", null, DepthNull, "Pass what lh.depth_null returned.")
        if null.levels != canyons.levels:
            received, expected = f"is one of the levels {null.levels}", f"one of {canyons.levels}"
            raise ValueError(explain("null", received, expected, "Pass lh.depth_null(loss, canyons)."))
    shown = [point for point in canyons if np.isfinite(point.depth)]
    if not shown:
        received = f"hold {len(canyons)} points, none of them with a depth"
        remedy = "Depth needs energy: curvature of the loss at theta0 within the space."
        raise ValueError(explain("canyons", received, "a point with a depth", remedy))
    ax = axes(ax)
    if null is not None:
        _null(ax, null)
    ax.axhline(1.0, color="0.3", linewidth=1.0, linestyle="--", zorder=1, label="quadratic bowl")
    looks: dict[str, dict[str, Any]] = {
        "canyon": {"marker": "o", "color": _COLOR},
        "certified, trivial": {"marker": "o", "color": _COLOR, "markerfacecolor": "white"},
        "not certified": {"marker": "x", "color": "0.4"},
    }
    for kind, look in looks.items():
        places = np.array([(point.level, point.depth) for point in shown if _kind(point) == kind])
        if len(places):
            ax.plot(*places.T, linestyle="", markersize=7, label=f"{kind} ({len(places)})", **look)
    if min(canyons.levels) < 0.2 * max(canyons.levels):
        ax.set_xscale("log")
        label_log_axis(ax.xaxis)
    ax.margins(x=0.1, y=0.08)
    ax.set_xlabel("level: distance r" if canyons.metric == "euclidean" else "level: energy E of the quadratic bowl")
    ax.set_ylabel(QUANTITIES["depth"][0])
    ax.grid(alpha=0.3)
    legend_above(ax)
    return ax


def _kind(point: CanyonPoint) -> str:
    if not point.is_certified:
        return "not certified"
    return "certified, trivial" if point.is_trivial else "canyon"


def _null(ax: Axes, null: DepthNull) -> None:
    """A bar per level."""
    rows = null.null.numpy()  # (num, levels)
    low, middle, high = np.nanmin(rows, axis=0), np.nanmedian(rows, axis=0), np.nanmax(rows, axis=0)
    ax.vlines(null.levels, low, high, color="0.75", linewidth=9, zorder=1, label="random subspaces, lowest depth")
    ax.plot(null.levels, middle, linestyle="", marker="_", markersize=15, color="0.35", zorder=1.5, label="_")
