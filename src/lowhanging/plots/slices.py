"""Losses along a line or a path, one curve per name.

A value that is not finite is a gap, and of a path's given points only as many are numbered as can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowhanging.landscape.slices import LineSlice, PathSlice
from lowhanging.plots.style import (
    Color,
    Quantity,
    axes,
    box_size,
    check_kind,
    check_log,
    color_of,
    label_of,
    rows_of,
    step_label,
    unit_of,
    value_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP = 0.035  # share of the width that the number of a given point needs


def line_slice(
    scan: LineSlice,
    ax: Axes | None = None,
    *,
    quantity: Quantity = "loss",
    log: bool = False,
    color: Color = None,
    marks: bool = True,
) -> Axes:
    """One curve per named loss against the step; a thin line marks the center, a gap a value that is not finite.

    Args:
        scan: what `lh.line_slice` returned.
        ax: where to draw; None makes a figure.
        quantity: "loss", or "accuracy" in percent.
        log: logarithmic axis for the losses.
        color: one for all curves, or name -> colour.
        marks: False leaves out the line at the center.

    Raises:
        ValueError, TypeError: accuracies are asked of a slice that has none, or another kind of result.
    """
    check_kind("scan", scan, LineSlice, "Pass what lh.line_slice returned; plots.path_slice draws a PathSlice.")
    ax = _curves(ax, scan.alphas, rows_of(scan, quantity), quantity, log, color)
    if marks:
        ax.axvline(0.0, color="0.6", linewidth=0.8, zorder=0)
    ax.set_xlabel(step_label(scan.name, scan.norm, box_size(ax)[0]))
    return ax


def path_slice(
    scan: PathSlice,
    ax: Axes | None = None,
    *,
    quantity: Quantity = "loss",
    log: bool = False,
    color: Color = None,
    marks: bool = True,
) -> Axes:
    """One curve per named loss against the arc length; thin lines, numbered at the top, mark the given points.

    Of many points only some are numbered, as many as can be read. A gap is a value that is not finite.

    Args:
        scan: what `lh.path_slice` returned.
        ax: where to draw; None makes a figure.
        quantity: "loss", or "accuracy" in percent.
        log: logarithmic axis for the losses.
        color: one for all curves, or name -> colour.
        marks: False leaves out the given points.

    Raises:
        ValueError, TypeError: accuracies are asked of a slice that has none, or another kind of result.
    """
    check_kind("scan", scan, PathSlice, "Pass what lh.path_slice returned; plots.line_slice draws a LineSlice.")
    ax = _curves(ax, scan.positions, rows_of(scan, quantity), quantity, log, color)
    ax.set_xlabel("arc length along the path (‖Δθ‖ from the first point)")
    if not marks:
        return ax
    knots = scan.knots.tolist()
    for knot in knots:
        ax.axvline(knot, color="0.6", linewidth=0.8 if len(knots) <= 20 else 0.4, zorder=0)
    numbered = _numbered(knots)
    top = ax.secondary_xaxis("top")
    top.set_xticks([knots[i] for i in numbered], [str(i) for i in numbered])
    top.tick_params(length=2, pad=1, labelsize="small", colors="0.4")
    top.set_xlabel("number of the given point", fontsize="small", color="0.4")
    return ax


def _curves(
    ax: Axes | None, steps: Tensor, rows: Mapping[str, Tensor], quantity: Quantity, log: bool, color: Color
) -> Axes:
    log = log and quantity == "loss"
    check_log(log, rows.values())
    ax = axes(ax)
    for position, (name, row) in enumerate(rows.items()):
        drawn = torch.where(row.isfinite(), row, torch.nan)
        tint = color_of(name, position, color)
        ax.plot(steps.numpy(), drawn.numpy(), label=label_of(name), color=tint, linewidth=1.8)
    ax.margins(x=0.01)
    value_axis(ax, unit_of(quantity), log=log, is_percent=quantity == "accuracy")
    return ax


def _numbered(knots: list[float]) -> list[int]:
    """Which knots have room for their number: the first, the last, and some of those between."""
    last = len(knots) - 1
    room = _GAP * (knots[-1] - knots[0])
    chosen = [0]
    for i in range(1, last):
        if knots[i] - knots[chosen[-1]] >= room and knots[last] - knots[i] >= room:
            chosen.append(i)
    return [*chosen, last]
