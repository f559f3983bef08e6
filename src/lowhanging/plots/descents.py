"""Where does descent run on a toy's loss?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowhanging.basin.planes import PlaneSlice
from lowhanging.errors import explain
from lowhanging.plots.contours import bar, grids_of
from lowhanging.plots.levels import Levels, choose_bands
from lowhanging.plots.overlays import distance_from
from lowhanging.plots.planes import annotate, lay_down
from lowhanging.plots.style import axes, check_kind, unit_of
from lowhanging.toys.paths import GradientPath

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def descents(
    plane: PlaneSlice,
    paths: GradientPath | Sequence[GradientPath],
    ax: Axes | None = None,
    *,
    name: str | None = None,
    levels: Levels = None,
) -> Axes:
    """Descent paths over the contours of a plane, each from a square to a star.

    Args:
        plane: what `lh.plane_slice` returned, such as the plane of a toy's two weights.
        paths: what `lh.toys.gradient_path` returned, once or several times, of as many weights as the plane's. A path
            that leaves the plane is drawn at its orthogonal projection, and a note says how far off it runs.
        ax: where to draw; None makes a figure.
        name: which loss; by default the first.
        levels: as in `plane_slice`.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError, TypeError: no path, paths of another number of weights, and as `plane_slice`.
    """
    check_kind("plane", plane, PlaneSlice, "Pass what lh.plane_slice returned.")
    every = [paths] if isinstance(paths, GradientPath) else list(paths)
    remedy = "Pass what lh.toys.gradient_path returned, one or a list."
    if not every:
        raise ValueError(explain("paths", "hold nothing", "at least one GradientPath", remedy))
    projected = []
    for i, path in enumerate(every):
        check_kind(f"paths[{i}]", path, GradientPath, remedy)
        if path.thetas.shape[1] != len(plane.center):
            received, expected = f"has {path.thetas.shape[1]} weights", f"{len(plane.center)}, as the plane"
            raise ValueError(explain(f"paths[{i}]", received, expected, "Make both of the same loss."))
        projected.append(_project(plane, path.thetas))
    name, grid = next(iter(grids_of(plane, "loss", None if name is None else [name]).items()))
    bands = choose_bands([grid], levels)
    ax = axes(ax)
    furthest = max(distance for _, distance in projected)
    off = distance_from(plane, furthest)
    note = f"{len(every)} descent{'s' if len(every) > 1 else ''}, from square to star"
    note = note if off == "in the plane" else f"{note}: {off}"
    said = lay_down(ax, plane, f"loss: {name}", grid, bands)
    bar([ax], bands, bands.title(unit_of("loss")))
    annotate(ax, plane, name, [said, note], paths=[place.numpy() for place, _ in projected])
    return ax


def _project(plane: PlaneSlice, thetas: Tensor) -> tuple[Tensor, float]:
    """Coordinates (t, 2) of the nearest points of the plane, and the largest distance from it."""
    offsets = thetas.double().cpu() - plane.center.double()
    norms = plane.norms.double()
    units = plane.directions.double() / norms[:, None]
    solved = torch.linalg.solve(units @ units.T, units @ offsets.T).T
    return solved / norms, float((offsets - solved @ units).norm(dim=1).max())
