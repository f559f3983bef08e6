"""How is a grid of numbers painted in bands, and what is painted where there is no number?

A value that is NaN or infinite is never replaced by one that is not: its place stays hatched. A finite value whose
neighbours are not spans no area; it is painted as a small square, so that nothing known is left out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lowhanging.basin.planes import PlaneSlice
from lowhanging.errors import explain
from lowhanging.plots.levels import Bands, short
from lowhanging.plots.style import Quantity, box_size, rows_of, step_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.transforms import Bbox

COLORMAP = "viridis"  # ordered in brightness, also for the colour-blind; dark is low
_RIGHT_ANGLE = 1.0  # degrees from 90 that pass for it
_LINE = 13.0  # points of height of a number on a colour bar
_EXTREME = 3.0  # sides of a box in true proportions: beyond, the shorter one can't be read


def grids_of(plane: PlaneSlice, quantity: Quantity, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """By name: (num_alphas, num_betas) of the wanted losses, or accuracies in percent; an error for unknown names."""
    rows = rows_of(plane, quantity)
    wanted = list(rows) if names is None else list(names)
    for name in wanted:
        if name not in rows:
            expected = f"one of {list(rows)}"
            raise ValueError(explain("name", f"is {name!r}", expected, f"Name one that the plane has a {quantity} of."))
    if not wanted:
        raise ValueError(explain("names", "is empty", f"some of {list(rows)}", "Leave it out for all."))
    return {name: rows[name].double().numpy() for name in wanted}


def colors_of(bands: Bands) -> ScalarMappable:
    """Value -> colour: one colour per band, evenly spaced however uneven the boundaries."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    num = len(bands.boundaries) - 1 + {"neither": 0, "both": 2}.get(bands.extend, 1)
    colors = colormaps[COLORMAP].resampled(num)
    return ScalarMappable(norm=BoundaryNorm(bands.boundaries, num, extend=bands.extend), cmap=colors)


def paint(ax: Axes, plane: PlaneSlice, grid: np.ndarray, bands: Bands) -> str:
    """Bands, thin lines between them, and hatching where a value is not finite; returns what that is."""
    from matplotlib.patches import Rectangle

    alphas, betas = plane.alphas.numpy(), plane.betas.numpy()
    known = np.isfinite(grid)
    colors = colors_of(bands)
    spans = _spans_area(known)
    if spans.any():
        # matplotlib wants rows to follow the vertical axis: (num_betas, num_alphas).
        heights = np.ma.masked_where(~known, np.where(known, grid, 0.0)).T
        ax.contourf(
            alphas, betas, heights, levels=bands.boundaries, cmap=colors.cmap, norm=colors.norm, extend=bands.extend
        )
        inner = [level for level in bands.boundaries if heights.min() < level < heights.max()]
        if inner:
            ax.contour(alphas, betas, heights, levels=inner, colors="white", linewidths=0.5, alpha=0.35, linestyles="-")
    alone = known & ~spans
    if alone.any():
        i, j = np.nonzero(alone)
        ax.scatter(alphas[i], betas[j], c=colors.to_rgba(grid[alone]), marker="s", s=14, zorder=2)
    ax.set_xlim(alphas[0], alphas[-1])
    ax.set_ylim(betas[0], betas[-1])
    if known.all():
        return ""
    corner, sides = (alphas[0], betas[0]), (alphas[-1] - alphas[0], betas[-1] - betas[0])
    ax.add_patch(Rectangle(corner, *sides, facecolor="0.88", edgecolor="0.55", hatch="///", linewidth=0, zorder=0.5))
    return f"hatched: NaN or inf, {missing(grid)}"


def missing(grid: np.ndarray) -> str:
    """How many values are not finite: "28 of 1,681 points"."""
    return f"{(~np.isfinite(grid)).sum():,} of {grid.size:,} points"


def flat_note(grid: np.ndarray) -> str:
    """What to say of a grid without contours, or "" of one that has some."""
    finite = grid[np.isfinite(grid)]
    if not len(finite):
        return "no finite value"
    if len(finite) == 1:
        return f"one finite value: {short(float(finite[0]), 6)}"
    return f"constant: {short(float(finite[0]), 6)}" if np.ptp(finite) <= 1e-13 * np.abs(finite).max() else ""


def frame(ax: Axes, plane: PlaneSlice) -> None:
    """Axis labels, and true proportions where they can be read."""
    norms = plane.norms.tolist()
    if has_true_proportions(plane):
        ax.set_aspect(norms[1] / norms[0])
    width, height = box_size(ax)
    ax.set_xlabel(step_label(plane.names[0], norms[0], width))
    ax.set_ylabel(step_label(plane.names[1], norms[1], height))


def proportion(plane: PlaneSlice) -> float:
    """Height of the box over its width, in distances of weight space."""
    sides = [
        float(norm * (steps[-1] - steps[0]))
        for norm, steps in zip(plane.norms, (plane.alphas, plane.betas), strict=True)
    ]
    return sides[1] / sides[0]


def has_true_proportions(plane: PlaneSlice) -> bool:
    """Whether a distance is drawn equally long in every direction."""
    return is_orthogonal(plane) and 1 / _EXTREME <= proportion(plane) <= _EXTREME


def is_orthogonal(plane: PlaneSlice) -> bool:
    """Whether the picture's right angle is one."""
    return abs(plane.angle - 90.0) <= _RIGHT_ANGLE


def skewed(plane: PlaneSlice) -> str:
    """What the picture of two directions does to their angle."""
    return f"directions {plane.angle:.3g}° apart, drawn at 90°"


def bar(axes: Sequence[Axes], bands: Bands, title: str) -> None:
    """One colour bar beside one or several Axes of a figure, as high as they are; none where nothing differs."""
    if bands.is_flat:
        return
    made = axes[0].figure.colorbar(colors_of(bands), ax=list(axes), ticks=bands.boundaries, spacing="uniform")
    every = max(1, math.ceil(len(bands.labels) * _LINE / max(box_size(ax)[1] for ax in axes)))
    made.ax.set_yticks(bands.boundaries, [text if i % every == 0 else "" for i, text in enumerate(bands.labels)])
    made.ax.minorticks_off()
    made.set_label(title)
    usual = made.ax.get_axes_locator()  # leaves room for the arrows of `extend`

    def beside(ax: Any, renderer: Any) -> Bbox:
        # In true proportions the boxes are lower than the room they were given.
        given, place = ax.get_position(original=True), usual(ax, renderer)
        boxes = [other.get_position() for other in axes]
        low, high = min(box.y0 for box in boxes), max(box.y1 for box in boxes)
        shares = [(y - given.y0) / given.height for y in (place.y0, place.y1)]
        y0, y1 = (low + share * (high - low) for share in shares)
        return Bbox.from_extents(place.x0, y0, place.x1, y1)

    from matplotlib.transforms import Bbox

    made.ax.set_axes_locator(beside)


def _spans_area(known: np.ndarray) -> np.ndarray:
    """Points (n, m) that are a corner of a painted triangle: three finite corners of one cell."""
    padded = np.pad(known, 1).astype(int)
    corners = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]  # of each cell, (n + 1, m + 1)
    painted = corners >= 3
    touched: np.ndarray = known & (painted[:-1, :-1] | painted[1:, :-1] | painted[:-1, 1:] | painted[1:, 1:])
    return touched
