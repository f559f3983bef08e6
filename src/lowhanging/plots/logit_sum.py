"""How well does a sum of single-cue logits predict the logits on both cues?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowhanging.circuits.logit_sum import LogitSum
from lowhanging.plots.style import axes, check_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RIGHT, _WRONG = "#D55E00", "#0072B2"


def logit_sum(found: LogitSum, ax: Axes | None = None) -> Axes:
    """A dot per held-out image and class: its logit with both cues against the fitted sum; the label's in red.

    Args:
        found: what `lh.circuits.logit_sum` returned.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes. It is neither shown nor saved.
    """
    check_kind("found", found, LogitSum, "Pass what lh.circuits.logit_sum returned.")
    ax = axes(ax)
    is_label = torch.zeros_like(found.observed, dtype=torch.bool).scatter_(1, found.labels[:, None], True)
    for label, color, which in (("other classes", _WRONG, ~is_label), ("the label's class", _RIGHT, is_label)):
        ax.plot(
            found.predicted[which].numpy(), found.observed[which].numpy(), ".", color=color, markersize=2.5, alpha=0.5,
            label=label, rasterized=True,
        )  # fmt: skip
    together = torch.cat([found.observed, found.predicted])
    ends = [float(together.min()), float(together.max())]
    ax.plot(ends, ends, color="0.3", linewidth=1.0, linestyle="--", label="equal")
    both, within = 100 * found.shares["both"], 100 * found.within["both"]
    names = " + ".join(found.slopes)
    ax.set_xlabel(f"fitted sum of the logits on {names}, each alone")
    ax.set_ylabel("logit on both cues")
    ax.set_title(f"{both:.1f} % of the variance, {within:.1f} % within labels", fontsize="medium")
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", fontsize="small", markerscale=4)
    return ax
