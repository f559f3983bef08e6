"""How do losses look along a line?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from lowhanging.basin.slices import LineSlice
from lowhanging.errors import check_choice, explain
from lowhanging.plots.style import axes, color_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def line_slice(
    scan: LineSlice,
    ax: Axes | None = None,
    *,
    quantity: Literal["loss", "accuracy"] = "loss",
    log: bool = False,
) -> Axes:
    """One curve per named loss against the step; a thin line marks the center, a gap a value that is not finite.

    Args:
        scan: what `line_slice` returned.
        ax: where to draw; None makes a figure.
        quantity: "loss", or "accuracy" in percent.
        log: logarithmic axis for the losses.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError: accuracies are asked of a slice that has none.
    """
    check_choice("quantity", quantity, ("loss", "accuracy"))
    rows = scan.losses if quantity == "loss" else {name: 100 * row for name, row in scan.accuracies.items()}
    if not rows:
        received = "is 'accuracy' for a slice without class targets"
        raise ValueError(explain("quantity", received, "'loss'", 'Pass quantity="loss".'))
    ax = axes(ax)
    for position, (name, row) in enumerate(rows.items()):
        drawn = torch.where(row.isfinite(), row, torch.nan)
        ax.plot(scan.alphas.numpy(), drawn.numpy(), label=name, color=color_of(name, position), linewidth=1.8)
    ax.axvline(0.0, color="0.6", linewidth=0.8, zorder=0)
    ax.set_xlabel(f"step along the direction (a step of 1: |Δθ| = {scan.norm:.3g})")
    if quantity == "accuracy":
        ax.set_ylabel("accuracy (%)")
        ax.set_ylim(0, 102)
    else:
        ax.set_ylabel("mean loss")
        if log:
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=0.0 if min(float(row.nan_to_num(0.0).min()) for row in rows.values()) >= 0 else None)
    ax.margins(x=0.01)
    ax.grid(alpha=0.3)
    ax.legend(title=quantity, loc="best")
    return ax
