"""A loss on a plane as a surface in three dimensions.

Each cell of the grid is one face, painted in the band of its mean height; a cell with a corner that is not finite is
left out, so what is unknown is a hole. Where all losses are positive and span a wide range, heights are logarithms,
or else everything but the highest walls would be a plain.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lowhanging.errors import argument_message
from lowhanging.landscape.planes import PlaneSlice
from lowhanging.plots.contours import (
    Levels,
    bar,
    choose_bands,
    colors_of,
    flat_note,
    grids_of,
    is_orthogonal,
    missing,
    short,
    skewed,
)
from lowhanging.plots.style import Quantity, check_kind, step_label, unit_of

if TYPE_CHECKING:
    from mpl_toolkits.mplot3d.axes3d import Axes3D

_ROOM = 170.0  # points for the label of a horizontal axis


def surface(
    plane: PlaneSlice,
    ax: Axes3D | None = None,
    *,
    name: str | None = None,
    quantity: Quantity = "loss",
    levels: Levels = None,
    colorbar: bool = True,
) -> Axes3D:
    """One loss on a plane as a surface in three dimensions, in the colours of `plane_slice`.

    Args:
        plane: what `lh.plane_slice` returned.
        ax: where to draw, an Axes with projection="3d"; None makes a figure. Turn it with `ax.view_init(elev, azim)`.
        name: which loss; by default the first. The title says which.
        quantity: "loss", or "accuracy" in percent.
        levels: as in `plane_slice`. Heights are logarithmic where the levels chosen are.
        colorbar: whether to add one.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError, TypeError: an Axes of two dimensions, and as `plane_slice`.
    """
    check_kind("plane", plane, PlaneSlice, "Pass what lh.plane_slice returned.")
    name, grid = next(iter(grids_of(plane, quantity, None if name is None else [name]).items()))
    bands = choose_bands([grid], levels)
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.figure(layout="constrained").add_subplot(projection="3d")
    elif getattr(ax, "name", "") != "3d":
        remedy = 'Make one with figure.add_subplot(projection="3d"), or leave ax out.'
        raise TypeError(argument_message("ax", "is an Axes of two dimensions", "one of three", remedy))
    is_log = bands.kind == "log"
    known = np.isfinite(grid)
    heights = np.where(known, grid, np.nan)
    if is_log:
        heights = np.log10(heights)
    _faces(ax, plane, heights, grid, bands)
    norms = plane.norms.tolist()
    ax.set_xlabel(step_label(plane.names[0], norms[0], _ROOM), labelpad=10)
    ax.set_ylabel(step_label(plane.names[1], norms[1], _ROOM), labelpad=10)
    ax.set_zlabel(unit_of(quantity) + (" (log scale)" if is_log else ""), labelpad=4)
    if is_log:
        _label_decades(ax, heights)
    notes = [note for note in (flat_note(grid), "" if known.all() else f"holes: NaN or inf, {missing(grid)}") if note]
    if not is_orthogonal(plane):
        notes.append(skewed(plane))
    ax.set_title("\n".join([f"{quantity}: {name}", *notes]))
    ax.view_init(elev=38, azim=-58)
    ax.set_box_aspect(None, zoom=0.84)  # labels of axes in three dimensions stand beyond the Axes
    if colorbar:
        bar([ax], bands, bands.title(unit_of(quantity)) if bands.base else "")  # else the third axis says it
    return ax


def _faces(ax: Any, plane: PlaneSlice, heights: np.ndarray, grid: np.ndarray, bands: Any) -> None:
    """One face per cell whose four corners are finite, and the limits of the axes."""
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    alphas, betas = plane.alphas.numpy(), plane.betas.numpy()
    a, b = np.meshgrid(alphas, betas, indexing="ij")
    corners = np.stack([a, b, heights], axis=-1)  # (num_alphas, num_betas, 3)
    faces = np.stack([corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]], axis=2).reshape(-1, 4, 3)
    faces = faces[np.isfinite(faces).all(axis=(1, 2))]
    if len(faces):
        middle = faces[:, :, 2].mean(axis=1)
        colors = colors_of(bands).to_rgba(10.0**middle if bands.kind == "log" else middle)
        ax.add_collection3d(Poly3DCollection(faces, facecolors=colors, edgecolors=(0, 0, 0, 0.25), linewidths=0.3))
    ax.set_xlim(alphas[0], alphas[-1])
    ax.set_ylim(betas[0], betas[-1])
    finite = heights[np.isfinite(heights)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    room = 0.5 * max(abs(low), 1.0) if bands.is_flat else 0.02 * (high - low)
    ax.set_zlim(low - room, high + room)


def _label_decades(ax: Any, heights: np.ndarray) -> None:
    """Values, not their logarithms, at whole decades, or at 1, 2, 5 of each where there are few."""
    low, high = float(np.nanmin(heights)), float(np.nanmax(heights))
    every = max(1, math.ceil((high - low) / 7))
    powers = range(math.floor(low), math.ceil(high) + 1)
    values = [m * 10.0**p for p in powers for m in ((1, 2, 5) if high - low < 2.5 else (1,)) if p % every == 0]
    values = [value for value in values if low <= math.log10(value) <= high]
    ax.set_zticks([math.log10(value) for value in values], [short(value) for value in values])
