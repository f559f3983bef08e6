"""Losses and accuracies along a line or a path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowhanging.landscape.slices import LineSlice, PathSlice
from lowhanging.plots.style import (
    Quantity,
    axes,
    box_size,
    check_kind,
    check_log,
    color_of,
    label_log_axis,
    label_of,
    legend_above,
    rows_of,
    step_label,
    unit_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_APART = 0.035  # share of the width that the number of a knot needs


def line_slice(scan: LineSlice, ax: Axes | None = None, *, quantity: Quantity = "loss", log: bool = False) -> Axes:
    """One curve per named loss against the step; a thin line marks the center, a gap a value that is not finite.

    Args:
        scan: what `lh.line_slice` returned.
        ax: where to draw; None makes a figure.
        quantity: "loss", or "accuracy" in percent.
        log: logarithmic axis for the losses.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError, TypeError: accuracies are asked of a slice that has none, or another kind of result.
    """
    check_kind("scan", scan, LineSlice, "Pass what lh.line_slice returned; plots.path_slice draws a PathSlice.")
    rows = rows_of(scan, quantity)
    ax = axes(ax)
    _curves(ax, scan.alphas, rows, quantity, log)
    ax.axvline(0.0, color="0.6", linewidth=0.8, zorder=0)
    ax.set_xlabel(step_label(scan.name, scan.norm, box_size(ax)[0]))
    return ax


def path_slice(scan: PathSlice, ax: Axes | None = None, *, quantity: Quantity = "loss", log: bool = False) -> Axes:
    """One curve per named loss against the arc length; thin lines, numbered at the top, mark the given points.

    Of many points only some are numbered, as many as can be read. A gap is a value that is not finite.

    Args:
        scan: what `lh.path_slice` returned.
        ax: where to draw; None makes a figure.
        quantity: "loss", or "accuracy" in percent.
        log: logarithmic axis for the losses.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError, TypeError: accuracies are asked of a slice that has none, or another kind of result.
    """
    check_kind("scan", scan, PathSlice, "Pass what lh.path_slice returned; plots.line_slice draws a LineSlice.")
    rows = rows_of(scan, quantity)
    ax = axes(ax)
    _curves(ax, scan.positions, rows, quantity, log)
    knots = scan.knots.tolist()
    for knot in knots:
        ax.axvline(knot, color="0.6", linewidth=0.8 if len(knots) <= 20 else 0.4, zorder=0)
    numbered = _numbered(knots)
    top = ax.secondary_xaxis("top")
    top.set_xticks([knots[i] for i in numbered], [str(i) for i in numbered])
    top.tick_params(length=2, pad=1, labelsize="small", colors="0.4")
    top.set_xlabel("number of the given point", fontsize="small", color="0.4")
    ax.set_xlabel("arc length along the path (‖Δθ‖ from the first point)")
    return ax


def _curves(ax: Axes, steps: Tensor, rows: Mapping[str, Tensor], quantity: Quantity, log: bool) -> None:
    """Curves, the vertical axis, grid and legend."""
    check_log(log and quantity == "loss", rows.values())
    for position, (name, row) in enumerate(rows.items()):
        drawn = torch.where(row.isfinite(), row, torch.nan)
        ax.plot(steps.numpy(), drawn.numpy(), label=label_of(name), color=color_of(name, position), linewidth=1.8)
    ax.set_ylabel(unit_of(quantity))
    ax.autoscale(axis="y")
    if quantity == "accuracy":
        ax.set_ylim(0, 100)
        ax.set_yticks(range(0, 101, 20))
    elif log:
        ax.set_yscale("log")
    elif 0.0 <= ax.dataLim.y0 < 0.5 * ax.dataLim.y1:  # else the curves would crowd at the top
        ax.set_ylim(bottom=0.0)
    ax.margins(x=0.01)
    ax.grid(alpha=0.3)
    legend_above(ax, ceiling=102 if quantity == "accuracy" else None)
    if log and quantity == "loss":
        label_log_axis(ax.yaxis)


def _numbered(knots: list[float]) -> list[int]:
    """Which knots have room for their number: the first, the last, and of those between every second, fifth ..."""
    room = _APART * (knots[-1] - knots[0])
    last = len(knots) - 1
    stride = next(n for power in range(9) for n in (10**power, 2 * 10**power, 5 * 10**power) if last <= 20 * n)
    chosen = [0]
    for i in range(stride, last, stride):
        if knots[i] - knots[chosen[-1]] >= room and knots[last] - knots[i] >= room:
            chosen.append(i)
    return [*chosen, last]
