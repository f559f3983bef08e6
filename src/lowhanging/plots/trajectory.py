"""Did the loss change along a trajectory as its picture on the plane suggests?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowhanging.basin.trajectories import PlaneTrajectory
from lowhanging.plots.style import axes, check_kind, check_log, color_of, label_log_axis, label_of, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
