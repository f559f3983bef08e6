"""Overlaps of a steering direction with eigenvectors, and the price of a circuit.

Overlaps are cumulated over the eigenvectors, so that a direction that is one eigenvector is a single step of height 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowhanging.plots.style import axes, check_kind, color_of
from lowhanging.steering.ablation_curve import AblationCurve
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


def ablation_curve(curve: AblationCurve, ax: Axes | None = None) -> Axes:
    """Whose answers each point of the curve gives, against its price; without answers, the kept loss.

    The price is the loss there less that at theta0, the leftmost point; of a curve over distances, the distance takes
    its place. Hollow points missed `gtol`.
    """
    check_kind("curve", curve, AblationCurve, "Pass what lh.ablation_curve returned.")
    ax = axes(ax)
    is_price = curve.question == "levels"
    prices = [0.0, *((curve.losses - curve.start[0]) if is_price else curve.distances).tolist()]
    rows = {name: [100 * share for share in shares.tolist()] for name, shares in curve.answers.items()}
    rows = rows or {"kept loss": [curve.start[1], *curve.kept.tolist()]}
    is_solved = [True, *curve.is_stationary.tolist()]
    for position, (name, values) in enumerate(rows.items()):
        color = "0.6" if name == "neither" else color_of(name, position)
        ax.plot(prices, values, color=color, label=name, linewidth=1.8)
        faces = [color if solved else "white" for solved in is_solved]
        ax.scatter(prices, values, c=faces, edgecolors=color, s=28, zorder=3)
    ax.set_xlabel("price: rise of the loss" if is_price else "distance from theta0")
    ax.set_ylabel("answers that follow each cue, %" if curve.answers else "loss of the circuit that is kept")
    ax.grid(alpha=0.3)
    ax.legend(title="cue" if curve.answers else None, loc="best")
    return ax
