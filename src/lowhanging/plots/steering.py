"""Overlap of a steering direction with the eigenvectors of each loss.

Cumulated over the eigenvectors, so that a direction that is one eigenvector is a single step of height 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowhanging.plots.style import axes, check_kind, color_of
from lowhanging.steering.steering import SteeringReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def overlaps(report: SteeringReport, ax: Axes | None = None) -> Axes:
    """Share of the direction within each loss's top j eigenvectors, against j.

    A step of height 1 would be an eigenvector; the height at the right is the share within all known ones.
    """
    check_kind("report", report, SteeringReport, "Pass what lh.steering_report returned.")
    ax = axes(ax)
    for position, (name, squares) in enumerate(report.overlaps.items()):
        total = squares.cumsum(0).numpy()
        label, color = f"{name} (largest single one {float(squares.max()):.2f})", color_of(name, position)
        ax.step(range(1, len(total) + 1), total, where="mid", color=color, label=label, linewidth=1.8)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("j, eigenvectors of each loss (largest eigenvalue first)")
    ax.set_ylabel("overlap with the top j eigenvectors")
    ax.grid(alpha=0.3)
    ax.legend(title="loss", loc="best")
    return ax
