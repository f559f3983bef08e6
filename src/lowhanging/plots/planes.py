"""How do losses look on a plane, and where does a trajectory run over it?

The first direction is drawn to the right, the second upwards. True proportions are kept where the two are orthogonal
and the box stays readable; where they are oblique, a note says by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowhanging.basin.planes import PlaneSlice
from lowhanging.basin.trajectories import PlaneTrajectory
from lowhanging.errors import check_names, explain
from lowhanging.plots.contours import (
    bar,
    flat_note,
    frame,
    grids_of,
    has_true_proportions,
    is_orthogonal,
    paint,
    proportion,
    skewed,
)
from lowhanging.plots.levels import Bands, Levels, choose_bands
from lowhanging.plots.overlays import descent, points, trace, write
from lowhanging.plots.style import Quantity, axes, check_kind, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PLANE = "Pass what lh.plane_slice returned."
_TRAJECTORY = "Pass what lh.plane_trajectory returned."


def plane_slice(
    plane: PlaneSlice,
    ax: Axes | None = None,
    *,
    name: str | None = None,
    quantity: Quantity = "loss",
    levels: Levels = None,
    trajectory: PlaneTrajectory | None = None,
    colorbar: bool = True,
) -> Axes:
    """One loss on a plane as filled contours, dark = low, with the center, the grid's lowest point and the marks.

    Args:
        plane: what `lh.plane_slice` returned.
        ax: where to draw; None makes a figure.
        name: which loss; by default the first. The title says which.
        quantity: "loss", or "accuracy" in percent.
        levels: about how many bands (by default 12), or their boundaries, in the units of the picture. Boundaries that
            are chosen here are round, cover every finite value, and are logarithmic where the range is wide.
        trajectory: what `lh.plane_trajectory` returned, drawn as a line from "start" to "end"; a note says how far off
            the plane it runs.
        colorbar: whether to add one.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError, TypeError: a name that the plane does not have, accuracies of a plane without class targets, levels
            that do not ascend, or another kind of result.
    """
    _check(plane, trajectory)
    chosen = grids_of(plane, quantity, None if name is None else [name])
    name, grid = next(iter(chosen.items()))
    bands = choose_bands([grid], levels)
    ax = axes(ax)
    note = lay_down(ax, plane, f"{quantity}: {name}", grid, bands)
    if colorbar:
        bar([ax], bands, bands.title(unit_of(quantity)))
    annotate(ax, plane, name, [note], trajectory=trajectory)
    return ax


def plane_slices(
    plane: PlaneSlice,
    axes: Sequence[Axes] | np.ndarray | None = None,
    *,
    names: Sequence[str] | None = None,
    quantity: Quantity = "loss",
    levels: Levels = None,
    trajectory: PlaneTrajectory | None = None,
) -> list[Axes]:
    """Several losses on a plane side by side, on one colour scale: the same colour is the same value everywhere.

    Args:
        plane: what `lh.plane_slice` returned.
        axes: where to draw, one Axes of one figure for each loss; None makes a figure.
        names: which losses; by default all.
        quantity: "loss", or "accuracy" in percent.
        levels: as in `plane_slice`; chosen for all the losses together.
        trajectory: as in `plane_slice`.

    Returns:
        One Axes per loss. They are neither shown nor saved.

    Raises:
        ValueError, TypeError: as in `plane_slice`, or another number of Axes than of losses.
    """
    _check(plane, trajectory)
    if names is not None:
        names = check_names("names", [names] if isinstance(names, str) else names, remedy="Leave it out for all.")
    grids = grids_of(plane, quantity, names)
    if axes is None:
        import matplotlib.pyplot as plt

        shape = proportion(plane) if has_true_proportions(plane) else 1.0
        size = (3.3 * len(grids) + 1.0, min(2.7 * max(shape, 0.5) + 1.2, 6.0))
        axes = plt.subplots(1, len(grids), layout="constrained", figsize=size, squeeze=False)[1]
    places: list[Axes] = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(places) != len(grids):
        received, expected = f"hold {len(places)}", f"{len(grids)}, one for each of {list(grids)}"
        raise ValueError(explain("axes", received, expected, "Name as many losses with names=."))
    bands = choose_bands(grids.values(), levels)
    notes = [
        lay_down(ax, plane, f"{quantity}: {name}", grid, bands)
        for ax, (name, grid) in zip(places, grids.items(), strict=True)
    ]
    for ax in places[1:]:
        ax.set_ylabel("")  # that of the first
    bar(places, bands, bands.title(unit_of(quantity)))
    for ax, name, note in zip(places, grids, notes, strict=True):
        annotate(ax, plane, name, [note], trajectory=trajectory, says_distance=ax is places[0])
    return places


def lay_down(ax: Axes, plane: PlaneSlice, title: str, grid: np.ndarray, bands: Bands) -> str:
    """Bands, labels of the axes, title; returns what is to be said of the values. Names of points come later.

    They are placed where there is room, which is known only when the colour bar has taken its own.
    """
    hatched = paint(ax, plane, grid, bands)
    frame(ax, plane)
    ax.set_title(title)
    notes = (flat_note(grid), hatched, "" if is_orthogonal(plane) else skewed(plane))
    return "\n".join(note for note in notes if note)


def annotate(
    ax: Axes,
    plane: PlaneSlice,
    name: str,
    notes: Sequence[str],
    *,
    trajectory: PlaneTrajectory | None = None,
    says_distance: bool = True,
    paths: Sequence[np.ndarray] = (),
) -> None:
    """Points with their names, lines (t, 2), and notes."""
    labels = points(ax, plane, name)
    for path in paths:
        descent(ax, path, 1.0 if len(paths) <= 6 else 0.7)
    if trajectory is not None:
        ends, note = trace(ax, plane, trajectory)
        labels, paths = [*ends, *labels], [*paths, trajectory.coordinates.double().numpy()]
        notes = [*notes, note] if says_distance else notes
    write(ax, labels, [line for note in notes for line in note.splitlines()], paths)


def _check(plane: PlaneSlice, trajectory: PlaneTrajectory | None) -> None:
    check_kind("plane", plane, PlaneSlice, _PLANE)
    if trajectory is not None:
        check_kind("trajectory", trajectory, PlaneTrajectory, _TRAJECTORY)
        if trajectory.plane != plane.identity:
            received = "was projected onto another plane"
            raise ValueError(explain("trajectory", received, "one of this plane", _TRAJECTORY))
