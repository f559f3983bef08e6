"""What do the floors of canyons look like on the way out, and which circuit runs on them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowhanging.basin.canyon_paths import CanyonPath
from lowhanging.basin.conflict import NEITHER
from lowhanging.errors import check_choice, explain
from lowhanging.plots.branches import (
    QUANTITIES,
    Array,
    Cues,
    Curve,
    branches_of,
    certificate_keys,
    colors_of,
    event_keys,
    label_of_quantity,
    line,
    mark,
    place_of,
    radii_of,
    start_of,
    values_of,
    widths,
)
from lowhanging.plots.style import (
    axes,
    check_kind,
    check_log,
    color_of,
    label_log_axis,
    label_of,
    legend_above,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_DISTANCE = "distance from the minimum, ‖δ‖"
_INTERVAL: dict[str, Any] = {"color": "0.4", "linewidth": 3.5, "alpha": 0.5, "solid_capstyle": "butt"}
_UNITS = {"loss": "mean loss", "accuracy": "accuracy (%)", "followed": "answers on conflict inputs (%)"}
_MISSING = {
    "loss": "Pass evaluate={name: objective} to trace_canyon.",
    "accuracy": "Pass evaluate= with objectives that have class targets to trace_canyon.",
    "followed": "Pass conflict=lh.ConflictControl(...) to trace_canyon.",
}

Paths = CanyonPath | Sequence[CanyonPath] | Mapping[str, CanyonPath]


def canyon_floor(
    paths: Paths,
    ax: Axes | None = None,
    *,
    quantity: str = "rise",
    names: Sequence[str] | None = None,
    bowl: bool = False,
    cues: Cues | None = None,
) -> Axes:
    """One quantity along the floor of every branch, against the distance from the minimum.

    Solid where two neighbouring points are both certified, dotted elsewhere. Symbols are events, at the middle of the
    levels that bracket them, on a bar as wide as the interval. Branches that coincide, as symmetric copies do, are
    drawn as bands of colours.

    Args:
        paths: what `lh.trace_canyon` returned: one path, several, which are then numbered, or name -> path.
        ax: where to draw; None makes a figure.
        quantity: "rise", "depth", "slope", "slope_without_anchor", "plane_eigenvalue", "sphere_eigenvalue",
            "shell_eigenvalue" (a pale band is its error, where that can be seen), or "asymmetry" of two evaluated
            losses, with its value at the minimum.
        names: which branches; by default all.
        bowl: with "rise", the energy of the quadratic bowl along each branch as a thin dashed line. Where it runs
            above the floor, the floor is a canyon's: depth is the ratio of the two.
        cues: the two losses of "asymmetry"; by default those of the conflict control, or the only two.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError, TypeError: a quantity that the paths do not have, a name that is none of theirs, or another kind
            of result.
    """
    branches = branches_of(paths, names)
    label = label_of_quantity(branches, quantity, cues)
    if bowl and quantity != "rise":
        received, remedy = f"is True for the {quantity}", "Leave it out; a depth of 1 is the bowl's."
        raise ValueError(explain("bowl", received, 'quantity="rise" with it', remedy))
    from matplotlib.lines import Line2D

    values = values_of(branches, quantity, cues)
    ax = axes(ax)
    colors = colors_of(branches)
    curves = {name: (radii_of(path), values[name]) for name, path in branches.items()}
    entries: list[Artist] = []
    for (name, path), width in zip(branches.items(), widths(list(curves.values())), strict=True):
        line(ax, path, *curves[name], color=colors[name], width=width)
        _band(ax, path, curves[name], QUANTITIES[quantity][1], colors[name])
        for event in path.events:
            height = place_of(event, path, curves[name])[1]
            ax.plot([event.radius_low, event.radius_high], [height, height], **_INTERVAL, zorder=1.5)
        if not isinstance(paths, CanyonPath):
            entries.append(Line2D([], [], color=colors[name], linewidth=2.2, label=label_of(name)))
    mark(ax, branches, curves, colors)
    entries += [*_starts(ax, branches, quantity, cues), *certificate_keys(branches), *event_keys(branches)]
    entries += _lines_to_compare(ax, quantity)
    ax.margins(x=0.02)
    if quantity == "rise":
        _from_zero(ax)
    if bowl:
        entries.append(_bowl(ax, branches, colors))
    ax.set_xlim(left=0.0)
    ax.set_xlabel(_DISTANCE)
    ax.set_ylabel(label)
    ax.grid(alpha=0.3)
    legend_above(ax, entries)
    return ax


def canyon_losses(
    path: CanyonPath,
    ax: Axes | None = None,
    *,
    quantity: Literal["loss", "accuracy", "followed"] = "loss",
    log: bool = False,
) -> Axes:
    """Each evaluated loss along one branch, against the distance from the minimum; what it is there is a dot.

    Solid where the branch is certified, dotted elsewhere; grey stripes are its events, with their symbols below.

    Args:
        path: what `lh.trace_canyon(..., evaluate=...)` returned.
        ax: where to draw; None makes a figure.
        quantity: "loss"; "accuracy" in percent; or "followed", the shares of the answers on conflict inputs that
            follow each cue and neither.
        log: logarithmic axis for the losses.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError, TypeError: a path along which nothing of the kind was evaluated, or another kind of result.
    """
    check_kind("path", path, CanyonPath, "Pass what lh.trace_canyon returned; plots.canyon_floor draws several.")
    rows, starts = _evaluated(path, quantity)
    log = log and quantity == "loss"
    starts = {name: value for name, value in starts.items() if np.isfinite(value) and not (log and value <= 0)}
    order = list(dict.fromkeys([*path.losses, *rows]))  # so that a cue has one colour in all three
    check_log(log, rows.values())
    from matplotlib.lines import Line2D

    ax = axes(ax)
    radii = radii_of(path)
    entries: list[Artist] = []
    for name, row in rows.items():
        color = "0.5" if name == NEITHER and quantity == "followed" else color_of(name, order.index(name))
        line(ax, path, radii, np.where(np.isfinite(row), row, np.nan), color=color)
        entries.append(Line2D([], [], color=color, linewidth=1.8, label=label_of(name)))
        if name in starts:
            ax.plot([0.0], [starts[name]], "o", color=color, markersize=6, clip_on=False, zorder=3)
    if starts:
        entries.append(Line2D([], [], linestyle="", marker="o", color="0.4", label="at the minimum"))
    entries += [*certificate_keys({"": path}), *event_keys({"": path})]
    for event in path.events:
        ax.axvspan(event.radius_low, event.radius_high, color="0.7", alpha=0.6, linewidth=1.0, zorder=0)
    ax.margins(x=0.02)
    if quantity != "loss":
        ax.set_ylim(-2, 100)  # a share of 0 can be seen
        ax.set_yticks(range(0, 101, 20))
    elif log:
        ax.set_yscale("log")
    else:
        _from_zero(ax)
    ax.set_xlim(left=0.0)
    ax.set_xlabel(_DISTANCE)
    ax.set_ylabel(_UNITS[quantity])
    ax.grid(alpha=0.3)
    legend_above(ax, entries, ceiling=102 if quantity != "loss" else None)
    if log:
        label_log_axis(ax.yaxis)
    mark(ax, {"": path}, {"": (radii, np.full(len(radii), ax.get_ylim()[0]))}, {"": "0.4"})
    return ax


def _evaluated(path: CanyonPath, quantity: str) -> tuple[dict[str, Array], dict[str, float]]:
    """By name: values along the path, (m,), and those at theta0, in percent but for losses."""
    check_choice("quantity", quantity, list(_UNITS))
    field, factor = {"loss": ("losses", 1), "accuracy": ("accuracies", 100), "followed": ("followed", 100)}[quantity]
    columns: list[dict[str, float]] = [getattr(point, field) for point in path]
    if not columns[0]:
        received = f"is {quantity!r} for a path that holds none"
        held = [name for name, part in (("loss", path[0].losses), ("followed", path[0].followed)) if part]
        raise ValueError(explain("quantity", received, f"one of {held or 'those evaluated'}", _MISSING[quantity]))
    starts: dict[str, float] = getattr(path, field)
    rows = {name: factor * np.array([column[name] for column in columns]) for name in columns[0]}
    return rows, {name: factor * value for name, value in starts.items()}


def _band(ax: Axes, path: CanyonPath, curve: Curve, error: str | None, color: Any) -> None:
    """The error of a certificate."""
    if error is not None:
        half = np.array([getattr(point, error) for point in path])
        ax.fill_between(curve[0], curve[1] - half, curve[1] + half, color=color, alpha=0.2, linewidth=0)


def _starts(ax: Axes, branches: Mapping[str, CanyonPath], quantity: str, cues: Cues | None) -> list[Artist]:
    """Values at theta0, as dots; their entry in the legend, if there are any."""
    found = [start_of(path, quantity, cues) for path in branches.values()]
    dots: list[Artist] = []
    for start in {start for start in found if start is not None}:
        dots += ax.plot([0.0], [start], "o", color="0.4", clip_on=False, zorder=3, label="at the minimum")
    return dots[:1]


def _lines_to_compare(ax: Axes, quantity: str) -> list[Artist]:
    """Zero, or what a quadratic bowl has."""
    if quantity == "depth":
        return [ax.axhline(1.0, color="0.3", linewidth=1.0, linestyle="--", zorder=1, label="quadratic bowl")]
    if quantity != "rise":
        ax.axhline(0.0, color="0.3", linewidth=1.0, zorder=1)
    return []


def _bowl(ax: Axes, branches: Mapping[str, CanyonPath], colors: Mapping[str, Any]) -> Artist:
    """The energy along each branch; what is more than twice the highest floor is cut off."""
    from matplotlib.lines import Line2D

    low, high = ax.get_ylim()
    most = low
    for name, path in branches.items():
        energies = np.array([point.energy for point in path])
        most = max(most, float(energies.max()))
        ax.plot(radii_of(path), energies, "--", color=colors[name], linewidth=0.9)
    ax.set_ylim(low, min(max(high, 1.05 * most), 2.0 * high))
    return Line2D([], [], color="0.4", linewidth=0.9, linestyle="--", label="quadratic bowl")


def _from_zero(ax: Axes) -> None:
    """The axis begins at zero, unless that would crowd the curves at the top."""
    if 0.0 <= ax.dataLim.y0 < 0.5 * ax.dataLim.y1:
        ax.set_ylim(bottom=0.0)
