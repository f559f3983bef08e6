"""Losses on a plane, trajectories over it, and descents on a toy's loss.

The first direction is drawn to the right, the second upwards. True proportions are kept where the two are orthogonal
and the box stays readable; where they are oblique, a note says by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lowhanging.errors import argument_message, check_names
from lowhanging.landscape.planes import PlaneSlice, PlaneTrajectory
from lowhanging.plots.contours import (
    Bands,
    Levels,
    bar,
    choose_bands,
    descent,
    distance_from,
    flat_note,
    frame,
    grids_of,
    has_true_proportions,
    is_orthogonal,
    paint,
    points,
    proportion,
    skewed,
    trace,
    write,
)
from lowhanging.plots.style import (
    Quantity,
    axes,
    check_kind,
    check_log,
    color_of,
    label_log_axis,
    label_of,
    legend_above,
    unit_of,
)
from lowhanging.toys.paths import GradientPath

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
        raise ValueError(argument_message("axes", received, expected, "Name as many losses with names=."))
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
            raise ValueError(argument_message("trajectory", received, "one of this plane", _TRAJECTORY))


def trajectory(trajectory: PlaneTrajectory, ax: Axes | None = None, *, log: bool = False) -> Axes:
    """Each loss at the checkpoints (solid) and on the plane under them (dashed), with their distance from the plane.

    Where the two curves of a loss part, the contours under the trajectory are not those it ran through. A gap is a
    value that is not finite.

    Args:
        trajectory: what `lh.plane_trajectory` returned.
        ax: where to draw; None makes a figure. The distance gets an axis of its own, on the right.
        log: logarithmic axis for the losses.

    Returns:
        The Axes of the losses. It is neither shown nor saved.

    Raises:
        TypeError: another kind of result.
    """
    check_kind("trajectory", trajectory, PlaneTrajectory, "Pass what lh.plane_trajectory returned.")
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    check_log(log, [*trajectory.losses.values(), *trajectory.plane_losses.values()])
    ax = axes(ax)
    numbers = range(len(trajectory.distances))
    size = 4.0 if len(numbers) <= 30 else 0.0
    entries = []
    for position, (name, row) in enumerate(trajectory.losses.items()):
        color, under = color_of(name, position), trajectory.plane_losses[name]
        drawn, below = (torch.where(values.isfinite(), values, torch.nan).numpy() for values in (row, under))
        entries += ax.plot(numbers, drawn, "o-", color=color, linewidth=1.8, markersize=size, label=label_of(name))
        ax.plot(numbers, below, "o--", color=color, linewidth=1.2, markersize=size, markerfacecolor="white")
    if log:
        ax.set_yscale("log")
    elif 0.0 <= ax.dataLim.y0 < 0.5 * ax.dataLim.y1:
        ax.set_ylim(bottom=0.0)
    ax.set_xlabel("number of the checkpoint")
    ax.set_ylabel("mean loss")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    right = ax.twinx()
    right.fill_between(numbers, trajectory.distances.numpy(), color="0.5", alpha=0.18, linewidth=0)
    right.set_ylim(0.0, 2.0 * max(float(trajectory.distances.max()), 1e-12))  # in the lower half: it is an aside
    right.set_ylabel("distance from the plane, ‖Δθ‖ (grey)", color="0.4")
    right.tick_params(colors="0.4")
    ax.set_zorder(right.get_zorder() + 1)
    ax.patch.set_visible(False)
    entries += [
        Line2D([], [], color="0.3", linewidth=1.8, label="at the checkpoint"),
        Line2D([], [], color="0.3", linewidth=1.2, linestyle="--", label="on the plane under it"),
    ]
    legend_above(ax, entries)
    if log:
        label_log_axis(ax.yaxis)
    return ax


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
        raise ValueError(argument_message("paths", "hold nothing", "at least one GradientPath", remedy))
    projected = []
    for i, path in enumerate(every):
        check_kind(f"paths[{i}]", path, GradientPath, remedy)
        if path.thetas.shape[1] != len(plane.center):
            received, expected = f"has {path.thetas.shape[1]} weights", f"{len(plane.center)}, as the plane"
            raise ValueError(argument_message(f"paths[{i}]", received, expected, "Make both of the same loss."))
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
