"""A loss on a plane as contours, and what runs over it: trajectories and descents.

The first direction is drawn to the right, the second upwards. True proportions are kept where the two are orthogonal
and the box stays readable; where they are oblique, the title says by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.errors import argument_message, check_names
from lowhanging.landscape.planes import PlaneSlice, PlaneTrajectory
from lowhanging.plots import contours
from lowhanging.plots.contours import Levels, choose_bands, has_true_proportions, legend, points
from lowhanging.plots.style import Quantity, axes, check_kind, check_log, color_of, label_of, unit_of, value_axis
from lowhanging.toys.paths import GradientPath

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_PLANE = "Pass what lh.plane_slice returned."
_TRAJECTORY = "Pass what lh.plane_trajectory returned."
_TANGLED = 3.0  # length of a line, in sides of the box, beyond which it fills an area


def plane_slice(
    plane: PlaneSlice,
    ax: Axes | None = None,
    *,
    name: str | None = None,
    quantity: Quantity = "loss",
    levels: Levels = None,
    trajectory: PlaneTrajectory | None = None,
    colorbar: bool = True,
    cmap: str | None = None,
    marks: bool = True,
) -> Axes:
    """One loss on a plane as filled contours, dark = low, with the center, the grid's lowest point and the marks.

    Args:
        plane: what `lh.plane_slice` returned.
        ax: where to draw; None makes a figure.
        name: which loss; by default the first. The title says which.
        quantity: "loss", or "accuracy" in percent.
        levels: about how many bands (by default 12), or their boundaries, in the units of the picture. Boundaries that
            are chosen here are round, cover every finite value, and are logarithmic where the range is wide.
        trajectory: what `lh.plane_trajectory` returned, drawn as a line from a square to a star; the legend says how
            far off the plane it runs.
        colorbar: whether to add one.
        cmap: name of a matplotlib colour map; viridis by default.
        marks: False leaves out center, lowest point and marks, and with them the legend's entries.

    Raises:
        ValueError, TypeError: a name that the plane does not have, accuracies of a plane without class targets, levels
            that do not ascend, or another kind of result.
    """
    _check(plane, trajectory)
    name, grid = contours.first_grid(plane, quantity, name)
    bands = choose_bands([grid], levels, cmap=cmap)
    ax = axes(ax)
    entries = contours.paint(ax, plane, f"{quantity}: {name}", grid, bands)
    if colorbar:
        contours.bar(ax, bands, bands.title(unit_of(quantity)))
    shown = points(ax, plane, name) if marks else []
    legend(ax, [*shown, *_runs(ax, plane, trajectory), *entries])
    return ax


def plane_slices(
    plane: PlaneSlice,
    axes: Sequence[Axes] | np.ndarray | None = None,
    *,
    names: Sequence[str] | None = None,
    quantity: Quantity = "loss",
    levels: Levels = None,
    trajectory: PlaneTrajectory | None = None,
    cmap: str | None = None,
    marks: bool = True,
) -> list[Axes]:
    """Several losses on a plane side by side, on one colour scale: the same colour is the same value everywhere.

    Args:
        plane: what `lh.plane_slice` returned.
        axes: where to draw, one Axes of one figure for each loss; None makes a figure.
        names: which losses; by default all.
        quantity: "loss", or "accuracy" in percent.
        levels: as in `plane_slice`; chosen for all the losses together.
        trajectory: as in `plane_slice`.
        cmap: as in `plane_slice`.
        marks: as in `plane_slice`.

    Returns:
        One Axes per loss. They are neither shown nor saved.

    Raises:
        ValueError, TypeError: as in `plane_slice`, or another number of Axes than of losses.
    """
    _check(plane, trajectory)
    if names is not None:
        names = check_names("names", [names] if isinstance(names, str) else names, remedy="Leave it out for all.")
    grids = contours.grids_of(plane, quantity, names)
    if axes is None:
        import matplotlib.pyplot as plt

        shape = contours.proportion(plane) if has_true_proportions(plane) else 1.0
        size = (3.3 * len(grids) + 1.0, min(2.7 * max(shape, 0.5) + 1.2, 6.0))
        axes = plt.subplots(1, len(grids), layout="constrained", figsize=size, squeeze=False)[1]
    boxes: list[Axes] = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(boxes) != len(grids):
        received, expected = f"hold {len(boxes)}", f"{len(grids)}, one for each of {list(grids)}"
        raise ValueError(argument_message("axes", received, expected, "Name as many losses with names=."))
    bands = choose_bands(grids.values(), levels, cmap=cmap)
    for i, (ax, (name, grid)) in enumerate(zip(boxes, grids.items(), strict=True)):
        hatched = contours.paint(ax, plane, f"{quantity}: {name}", grid, bands)
        shared = [*(points(ax, plane, name) if marks else []), *_runs(ax, plane, trajectory)]
        lowest = [entry for entry in shared if str(entry.get_label()).startswith("lowest")]
        legend(ax, [*(lowest if i else shared), *hatched])  # the other symbols mean the same everywhere
        if i:
            ax.set_ylabel("")
    contours.bar(boxes[-1], bands, bands.title(unit_of(quantity)))
    return boxes


def _check(plane: PlaneSlice, trajectory: PlaneTrajectory | None) -> None:
    check_kind("plane", plane, PlaneSlice, _PLANE)
    if trajectory is not None:
        check_kind("trajectory", trajectory, PlaneTrajectory, _TRAJECTORY)
        if trajectory.plane != plane.identity:
            received = "was projected onto another plane"
            raise ValueError(argument_message("trajectory", received, "one of this plane", _TRAJECTORY))


def _runs(ax: Axes, plane: PlaneSlice, trajectory: PlaneTrajectory | None) -> list[Artist]:
    """The trajectory with a dot at each checkpoint, for the legend."""
    if trajectory is None:
        return []
    coordinates = trajectory.coordinates.double().numpy()  # (t, 2)
    line = _run(ax, coordinates)
    size = 4.0 if len(coordinates) <= 30 else 2.0
    ax.plot(*coordinates.T, "o", color="white", markeredgecolor="black", markersize=size, markeredgewidth=0.6, zorder=3)
    outside = sum(not contours.inside(plane, alpha, beta) for alpha, beta in coordinates)
    note = f", {outside} of {len(coordinates)} points outside the box" if outside else ""
    line.set_label(f"trajectory from square to star, {_distance(plane, float(trajectory.distances.max()))}{note}")
    return [line]


def _run(ax: Axes, coordinates: np.ndarray, size: float = 1.0) -> Artist:
    """A line through (t, 2) coordinates with a square at its start and a star at its end; a tangle is drawn thin."""
    from matplotlib.patheffects import withStroke

    spans = np.abs(np.diff([ax.get_xlim(), ax.get_ylim()], axis=1)).ravel()
    is_tangled = np.linalg.norm(np.diff(coordinates, axis=0) / spans, axis=1).sum() > _TANGLED
    width = 0.35 if is_tangled else 1.2 * size
    stroke = [withStroke(linewidth=width + (0.5 if is_tangled else 1.4), foreground="black")]
    (line,) = ax.plot(*coordinates.T, "-", color="white", linewidth=width, path_effects=stroke, zorder=3)
    for end, marker, size_of_end in ((0, "s", 7.0), (-1, "*", 13.0)):
        look: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markersize": size_of_end * size}
        ax.plot(*coordinates[end], marker, **look, zorder=5.5)
    return line


def _distance(plane: PlaneSlice, furthest: float) -> str:
    """How far off a plane something runs, in words."""
    sides = zip((plane.alphas, plane.betas), plane.norms, strict=True)
    reach = max(float(steps.abs().max() * norm) for steps, norm in sides)
    return f"up to {furthest:.2g} off the plane" if furthest > 1e-6 * reach else "in the plane"


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

    """
    check_kind("trajectory", trajectory, PlaneTrajectory, _TRAJECTORY)
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
    ax.set_xlabel("number of the checkpoint")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    value_axis(ax, "mean loss", log=log, entries=entries)
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
            that leaves the plane is drawn at its orthogonal projection, and the legend says how far off it runs.
        ax: where to draw; None makes a figure.
        name: which loss; by default the first.
        levels: as in `plane_slice`.

    Raises:
        ValueError, TypeError: no path, paths of another number of weights, and as `plane_slice`.
    """
    check_kind("plane", plane, PlaneSlice, _PLANE)
    every = [paths] if isinstance(paths, GradientPath) else list(paths)
    remedy = "Pass what lh.toys.gradient_path returned, one or a list."
    if not every:
        raise ValueError(argument_message("paths", "hold nothing", "at least one GradientPath", remedy))
    for i, path in enumerate(every):
        check_kind(f"paths[{i}]", path, GradientPath, remedy)
        if path.thetas.shape[1] != len(plane.center):
            received, expected = f"has {path.thetas.shape[1]} weights", f"{len(plane.center)}, as the plane"
            raise ValueError(argument_message(f"paths[{i}]", received, expected, "Make both of the same loss."))
    projected = [_project(plane, path.thetas) for path in every]
    name, grid = contours.first_grid(plane, "loss", name)
    bands = choose_bands([grid], levels)
    ax = axes(ax)
    entries = contours.paint(ax, plane, f"loss: {name}", grid, bands)
    contours.bar(ax, bands, bands.title(unit_of("loss")))
    lines = [_run(ax, places.numpy(), 1.0 if len(every) <= 6 else 0.7) for places, _ in projected]
    distance = _distance(plane, max(furthest for _, furthest in projected))
    said = "" if distance == "in the plane" else f": {distance}"
    lines[0].set_label(f"{len(every)} descent{'s' if len(every) > 1 else ''}, from square to star{said}")
    legend(ax, [*points(ax, plane, name), lines[0], *entries])
    return ax


def _project(plane: PlaneSlice, thetas: Tensor) -> tuple[Tensor, float]:
    """Coordinates (t, 2) of the nearest points of the plane, and the largest distance from it."""
    offsets = thetas.double().cpu() - plane.center.double()
    norms = plane.norms.double()
    units = plane.directions.double() / norms[:, None]
    solved = torch.linalg.solve(units @ units.T, units @ offsets.T).T
    return solved / norms, float((offsets - solved @ units).norm(dim=1).max())
