"""A loss on a plane as a surface in three dimensions.

Each cell of the grid is one face, painted in the band of its mean height; a cell with a corner that is not finite is
left out, so what is unknown is a hole. Where all losses are positive and span a wide range, heights are logarithms,
or else everything but the highest walls would be a plain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowhanging.errors import argument_message
from lowhanging.landscape.planes import PlaneSlice
from lowhanging.plots.contours import Bands, Levels, bar, choose_bands, colors_of, first_grid, missing, notes
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
    cmap: str | None = None,
) -> Axes3D:
    """One loss on a plane as a surface in three dimensions, in the colours of `plane_slice`.

    Args:
        plane: what `lh.plane_slice` returned.
        ax: where to draw, an Axes with projection="3d"; None makes a figure. Turn it with `ax.view_init(elev, azim)`.
        name: which loss; by default the first. The title says which.
        quantity: "loss", or "accuracy" in percent.
        levels: as in `plane_slice`. Heights are logarithmic where the levels chosen are.
        colorbar: whether to add one.
        cmap: as in `plane_slice`.

    Raises:
        ValueError, TypeError: an Axes of two dimensions, and as `plane_slice`.
    """
    check_kind("plane", plane, PlaneSlice, "Pass what lh.plane_slice returned.")
    name, grid = first_grid(plane, quantity, name)
    bands = choose_bands([grid], levels, cmap=cmap)
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.figure(layout="constrained").add_subplot(projection="3d")
    elif ax.name != "3d":
        remedy = 'Make one with figure.add_subplot(projection="3d"), or leave ax out.'
        raise TypeError(argument_message("ax", "is an Axes of two dimensions", "one of three", remedy))
    known, is_log = np.isfinite(grid), bands.kind == "log"
    heights = np.where(known, grid, np.nan)
    _faces(ax, plane, np.log10(heights) if is_log else heights, bands)
    for which, way, norm in zip("xy", plane.names, plane.norms.tolist(), strict=True):
        getattr(ax, f"set_{which}label")(step_label(way, norm, _ROOM), labelpad=10)
    ax.set_zlabel(unit_of(quantity) + (" (log scale)" if is_log else ""), labelpad=4)
    if is_log:  # values, not their logarithms
        logarithms = np.log10(bands.boundaries)
        decades = np.nonzero(np.isclose(logarithms, np.round(logarithms)))[0]
        shown = decades if len(decades) > 2 else np.arange(0, len(logarithms), 2)
        limits = ax.get_zlim()
        ax.set_zticks(logarithms[shown], [bands.labels[i] for i in shown])
        ax.set_zlim(*limits)
    holes = [] if known.all() else [f"holes: NaN or inf, {missing(grid)}"]
    ax.set_title("\n".join([f"{quantity}: {name}", *notes(plane, grid), *holes]))
    ax.view_init(elev=38, azim=-58)
    ax.set_box_aspect(None, zoom=0.84)  # labels of axes in three dimensions stand beyond the Axes
    if colorbar:
        bar(ax, bands, bands.title(unit_of(quantity)) if bands.base else "")  # else the third axis says it
    return ax


def _faces(ax: Any, plane: PlaneSlice, heights: np.ndarray, bands: Bands) -> None:
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
