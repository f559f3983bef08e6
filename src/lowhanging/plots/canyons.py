"""Pictures of canyons: their floors on the way out, their spread in weight space, their rises beside the null.

A branch is drawn solid between two neighbours that are both certified, and dotted everywhere else. Its events are
white symbols in its colour, one shape for each kind, explained in the legend: names beside them would lie on one
another as soon as two branches fold together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from lowhanging.canyons.continuation import CanyonEvent, CanyonPath
from lowhanging.canyons.find import CanyonSet
from lowhanging.canyons.null import DepthNull
from lowhanging.canyons.point import CanyonPoint
from lowhanging.errors import a_type, argument_message, check_choice, check_names
from lowhanging.plots.contours import write
from lowhanging.plots.style import axes, check_kind, check_log, color_of, label_log_axis, label_of, legend_above
from lowhanging.steering.cues import NEITHER

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

# Colours that no named loss has (Tol's "muted"): a blue branch would look like the number circuit.
_COLORS = ("#332288", "#CC6677", "#117733", "#AA4499", "#999933", "#882255", "#44AA99", "#88CCEE", "#DDCC77")
_SHAPES = {"birth": "o", "fold": "s", "merge": "v", "crossing": "X", "plane": "d"}
_DOTTED = (0, (1.0, 1.3))
_REMEDY = "Pass what lh.trace_canyon returned: one path, a list of them, or a mapping name -> path."

Array = np.ndarray
Curve = tuple[Array, Array]  # horizontal and vertical, (m,) each
Cues = tuple[str, str]

# What can be said of a branch: label of the axis, and the field with its error.
QUANTITIES: dict[str, tuple[str, str | None]] = {
    "rise": ("rise of the floor, L(θ) − L(θ0)", None),
    "relative_rise": ("relative rise: rise / energy of the quadratic bowl", None),
    "slope": ("slope of the floor, n·g", None),
    "slope_without_anchor": ("slope of the floor without the anchor", None),
    "plane_eigenvalue": ("plane eigenvalue: smallest of PHP", "euclidean_error"),
    "sphere_eigenvalue": ("sphere eigenvalue: smallest of PHP − (n·g/r) P", "euclidean_error"),
    "shell_eigenvalue": ("shell eigenvalue: smallest of H − μM, relative to M", "shell_error"),
    "asymmetry": ("asymmetry, log(L_{a} / L_{b})\n(above 0: {b} is better kept)", None),
}
SIGNED = tuple(name for name in QUANTITIES if name not in ("rise", "relative_rise"))


def branches_of(paths: Any, names: Sequence[str] | None = None) -> dict[str, CanyonPath]:
    """By name: the given paths, numbered where they have no names, or those of them that are asked for."""
    if isinstance(paths, CanyonPath):
        found: dict[str, Any] = {"branch": paths}
    elif isinstance(paths, Mapping):
        found = {name: paths[name] for name in check_names("paths", paths, remedy=_REMEDY)}
    elif isinstance(paths, Sequence) and not isinstance(paths, str):
        found = {f"branch {i}": path for i, path in enumerate(paths)}
    else:
        raise TypeError(argument_message("paths", f"is {a_type(paths)}", "one CanyonPath or several", _REMEDY))
    if not found:
        raise ValueError(argument_message("paths", "hold nothing", "at least one CanyonPath", _REMEDY))
    for name, path in found.items():
        check_kind(f"paths[{name!r}]" if isinstance(paths, Mapping) else name, path, CanyonPath, _REMEDY)
    if names is None:
        return found
    chosen = check_names("names", [names] if isinstance(names, str) else names, remedy="Leave it out for all.")
    for name in chosen:
        check_choice("names", name, list(found), remedy="Leave it out for all.")
    return {name: found[name] for name in chosen}


def colors_of(branches: Mapping[str, Any]) -> dict[str, Any]:
    """One colour per branch: that of the loss of its name, if that has one; of many branches, all different."""
    if len(branches) <= len(_COLORS):
        own: Sequence[Any] = _COLORS
    else:
        from matplotlib import colormaps

        own = [colormaps["turbo"](share) for share in np.linspace(0.03, 0.97, len(branches))]
    known = {name: color_of(name, 0) for name in branches}
    others = color_of("", 0)  # what a name without a colour of its own would get
    return {name: own[i] if known[name] == others else known[name] for i, name in enumerate(branches)}


def values_of(branches: Mapping[str, CanyonPath], quantity: str, cues: Cues | None) -> dict[str, Array]:
    """A quantity at every point, by name (m,); NaN where a ratio or its logarithm does not exist."""
    found = {}
    for name, path in branches.items():
        if quantity == "asymmetry":
            a, b = cues_of(path, cues)
            found[name] = np.array([_log_ratio(point.losses, a, b) for point in path])
        else:
            found[name] = np.array([float(getattr(point, quantity)) for point in path])
    if not any(bool(np.isfinite(row).any()) for row in found.values()):
        received = f"is {quantity!r}, which is not finite at any point"
        raise ValueError(argument_message("quantity", received, "one with a finite value", 'Pass quantity="rise".'))
    return found


def start_of(path: CanyonPath, quantity: str, cues: Cues | None) -> float | None:
    """The same at theta0, where it is known and says something."""
    return _log_ratio(path.losses, *cues_of(path, cues)) if quantity == "asymmetry" else None


def label_of_quantity(branches: Mapping[str, CanyonPath], quantity: str, cues: Cues | None) -> str:
    """What its axis is called."""
    check_choice("quantity", quantity, list(QUANTITIES))
    pairs = [cues_of(path, cues) for path in branches.values()] if quantity == "asymmetry" else []
    if any(pair != pairs[0] for pair in pairs):
        expected, remedy = "the same cues in every path", "Pass cues=, two evaluated losses of all of them."
        raise ValueError(argument_message("paths", f"differ in their cues, {sorted(set(pairs))}", expected, remedy))
    label = QUANTITIES[quantity][0]
    return label.format(a=pairs[0][0], b=pairs[0][1]) if pairs else label


def cues_of(path: CanyonPath, cues: Cues | None) -> Cues:
    """The two losses whose ratio is the asymmetry: given, those of the conflict control, or the only two."""
    losses = list(path.losses)
    controlled = [name for name in path.cue_shares if name != NEITHER]
    chosen = tuple(cues) if cues is not None else tuple(controlled or losses)
    if len(chosen) != 2 or any(name not in losses for name in chosen):
        received = f"are {chosen}" if cues is not None else "are not given"
        remedy = "Pass cues=(a, b), and evaluate={a: ..., b: ...} to trace_canyon."
        raise ValueError(argument_message("cues", received, f"two of the evaluated losses, {losses}", remedy))
    return chosen[0], chosen[1]


def _log_ratio(losses: Mapping[str, float], a: str, b: str) -> float:
    """NaN where a loss is not positive and finite: a curve has a gap there."""
    above, below = losses[a], losses[b]
    is_defined = all(math.isfinite(loss) and loss > 0 for loss in (above, below))
    return math.log(above) - math.log(below) if is_defined else math.nan


def radii_of(path: CanyonPath) -> Array:
    """|delta| of every point, (m,)."""
    return np.array([point.radius for point in path])


def line(ax: Axes, path: CanyonPath, x: Array, y: Array, *, color: Any, width: float = 1.8, **look: Any) -> None:
    """A branch through (x, y), solid where it is certified; a stretch of one point is a dot, hollow if not."""
    for part, is_solid in stretches([point.is_certified for point in path]):
        style: Any = "-" if is_solid else _DOTTED
        ax.plot(x[part], y[part], linestyle=style, color=color, linewidth=width, **look)
    if len(x) == 1:
        face = color if path[0].is_certified else "white"
        ax.plot(x, y, "o", color=color, markerfacecolor=face, markersize=2.5 * width, **look)


def stretches(certified: Sequence[bool]) -> Iterator[tuple[slice, bool]]:
    """Runs of neighbours, overlapping in their end points, and whether all points of a run are certified."""
    joined = [a and b for a, b in itertools.pairwise(certified)]
    begun = 0
    for i, is_solid in enumerate(joined):
        if i + 1 == len(joined) or joined[i + 1] != is_solid:
            yield slice(begun, i + 2), is_solid
            begun = i + 1


def mark(ax: Axes, branches: Mapping[str, CanyonPath], curves: Mapping[str, Curve], colors: Mapping[str, Any]) -> None:
    """Symbols of the events on the branches' curves: at the middle of their levels, or at the end nearest to it.

    Where several would hide each other, as at a birth of two branches, they become rings around each other.
    """
    found = []
    for name, path in branches.items():
        for event in path.events:
            found.append((event.kind, name, place_of(event, path, curves[name])))
    spans = _spans(list(curves.values()))
    for i, (kind, name, place) in enumerate(found):
        later = [other for _, _, other in found[i + 1 :]]
        hidden = sum(bool((np.abs(np.subtract(place, other)) <= 0.015 * spans).all()) for other in later)
        ax.plot(*([step] for step in place), **_symbol(kind, colors[name], 7.0 + 4.0 * hidden), zorder=4, clip_on=False)


def place_of(event: CanyonEvent, path: CanyonPath, curve: Curve) -> tuple[float, float]:
    """Where on a branch's curve the middle of an event's levels lies."""
    levels, middle = [point.level for point in path], 0.5 * (event.low + event.high)
    return float(np.interp(middle, levels, curve[0])), float(np.interp(middle, levels, curve[1]))


def certificate_keys(branches: Mapping[str, CanyonPath]) -> list[Artist]:
    """Legend entries of what solid and dotted mean, as far as they occur."""
    from matplotlib.lines import Line2D

    certified = {point.is_certified for path in branches.values() for point in path}
    styles: tuple[tuple[bool, str, Any], ...] = (
        (True, "solid: certified", "-"),
        (False, "dotted: not certified", _DOTTED),
    )
    return [
        Line2D([], [], color="0.4", linewidth=1.8, linestyle=style, label=label)
        for kind, label, style in styles
        if kind in certified
    ]


def event_keys(branches: Mapping[str, CanyonPath]) -> list[Artist]:
    """Legend entries of the events that occur."""
    from matplotlib.lines import Line2D

    kinds = {event.kind for path in branches.values() for event in path.events}
    return [Line2D([], [], **_symbol(kind, "0.4", 7.0), label=kind) for kind in _SHAPES if kind in kinds]


def _symbol(kind: str, color: Any, size: float) -> dict[str, Any]:
    return {
        "linestyle": "", "marker": _SHAPES[kind], "markersize": size, "color": color, "markerfacecolor": "white",
        "markeredgewidth": 1.4,
    }  # fmt: skip


def widths(curves: Sequence[Curve]) -> list[float]:
    """Of each curve: the wider, the more later ones lie upon it, so that symmetric copies show as bands of colours."""
    spans = _spans(curves)

    def coincide(one: Curve, other: Curve) -> bool:
        return len(one[0]) == len(other[0]) and all(
            bool((np.abs(a - b) <= 0.003 * span).all()) for a, b, span in zip(one, other, spans, strict=True)
        )

    return [1.8 + 2.2 * sum(coincide(curve, later) for later in curves[i + 1 :]) for i, curve in enumerate(curves)]


def _spans(curves: Sequence[Curve]) -> Array:
    """Of all curves, (2,): how far they reach along either axis."""
    return np.array([np.ptp(a[np.isfinite(a)]) for a in map(np.concatenate, zip(*curves, strict=True))])


_DISTANCE = "distance from the minimum, ‖δ‖"
_INTERVAL: dict[str, Any] = {"color": "0.4", "linewidth": 3.5, "alpha": 0.5, "solid_capstyle": "butt"}
_UNITS = {"loss": "mean loss", "accuracy": "accuracy (%)", "cue_shares": "answers on conflict inputs (%)"}
_MISSING = {
    "loss": "Pass evaluate={name: objective} to trace_canyon.",
    "accuracy": "Pass evaluate= with objectives that have class targets to trace_canyon.",
    "cue_shares": "Pass conflict=lh.ConflictControl(...) to trace_canyon.",
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
        quantity: "rise", "relative_rise", "slope", "slope_without_anchor", "plane_eigenvalue", "sphere_eigenvalue",
            "shell_eigenvalue" (a pale band is its error, where that can be seen), or "asymmetry" of two evaluated
            losses, with its value at the minimum.
        names: which branches; by default all.
        bowl: with "rise", the energy of the quadratic bowl along each branch as a thin dashed line. Where it runs
            above the floor, the floor is a canyon's: the relative rise is the ratio of the two.
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
        received, remedy = f"is True for the {quantity}", "Leave it out; a relative rise of 1 is the bowl's."
        raise ValueError(argument_message("bowl", received, 'quantity="rise" with it', remedy))
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
    quantity: Literal["loss", "accuracy", "cue_shares"] = "loss",
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
        color = "0.5" if name == NEITHER and quantity == "cue_shares" else color_of(name, order.index(name))
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
    field, factor = {"loss": ("losses", 1), "accuracy": ("accuracies", 100), "cue_shares": ("cue_shares", 100)}[
        quantity
    ]
    columns: list[dict[str, float]] = [getattr(point, field) for point in path]
    if not columns[0]:
        received = f"is {quantity!r} for a path that holds none"
        held = [name for name, part in (("loss", path[0].losses), ("cue_shares", path[0].cue_shares)) if part]
        raise ValueError(
            argument_message("quantity", received, f"one of {held or 'those evaluated'}", _MISSING[quantity])
        )
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
    if quantity == "relative_rise":
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


_WIDE, _NARROW = 4.4, 2.0  # of a ribbon that is certified, or not


def canyon_fan(
    paths: CanyonPath | Sequence[CanyonPath] | Mapping[str, CanyonPath],
    ax: Axes | None = None,
    *,
    quantity: str | None = None,
    names: Sequence[str] | None = None,
    cues: Cues | None = None,
) -> Axes:
    r"""The branches in the plane that holds most of them, with theta0 at the origin and circles at round distances.

    The axes are the first two right singular vectors of all displacements delta = theta - theta0 as rows, no mean
    removed, each with the share of sum |delta|^2 along it. A point at distance |delta| from theta0 lies on the circle
    of that radius if it is in the plane, else within it. Solid and dotted as in `canyon_floor`; symbols are events.

    Args:
        paths: as in `canyon_floor`, all around the same theta0.
        ax: where to draw; None makes a figure.
        quantity: None gives each branch a colour; one of `canyon_floor`'s quantities colours the points by it, on a
            colour bar. Where a branch is certified it is then wide, with a black rim; its name is at its outer end.
        names: which branches; by default all.
        cues: as in `canyon_floor`.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError, TypeError: as in `canyon_floor`, or paths of different numbers of weights.

    Cost:
        one singular value decomposition of (number of points, p).
    """
    branches = branches_of(paths, names)
    label = None if quantity is None else label_of_quantity(branches, quantity, cues)
    values = None if quantity is None else values_of(branches, quantity, cues)
    coordinates, shares = project(branches)
    from matplotlib.lines import Line2D

    ax = axes(ax)
    _frame(ax, np.concatenate(list(coordinates.values())))
    entries: list[Artist] = [Line2D([], [], linestyle="", marker="X", color="black", label="minimum, θ0")]
    if values is None:
        colors = colors_of(branches)
        entries += [Line2D([], [], color=colors[name], linewidth=2.2, label=label_of(name)) for name in branches]
        entries += certificate_keys(branches)
        for name, path in branches.items():
            line(ax, path, *coordinates[name].T, color=colors[name], width=2.2)
    else:
        colors = dict.fromkeys(branches, "black")
        entries += _ribbon_keys(branches)
        ax.figure.colorbar(
            _ribbons(ax, branches, coordinates, values, quantity in SIGNED), ax=ax, shrink=0.9, label=label
        )
    mark(ax, branches, {name: (places[:, 0], places[:, 1]) for name, places in coordinates.items()}, colors)
    ax.plot([0.0], [0.0], "X", color="black", markeredgecolor="white", markersize=9, zorder=5)
    # Outside the box: within it, branches may run anywhere.
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3}
    if quantity is None:
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    ax.legend(handles=[*entries, *event_keys(branches)], edgecolor="none", fontsize="small", **place)
    if quantity is not None:
        write(ax, [(*places[-1].tolist(), name) for name, places in coordinates.items()], [], [*coordinates.values()])
    ax.set_xlabel(f"principal direction 1 of δ: {_percent(shares[0])} of Σ‖δ‖²")
    ax.set_ylabel(f"principal direction 2: {_percent(shares[1])}, both {_percent(shares[0] + shares[1])}")
    return ax


def project(branches: Mapping[str, CanyonPath]) -> tuple[dict[str, Array], Array]:
    """Coordinates (m, 2) of each branch along the two principal directions, and the shares (2,) of sum |delta|^2."""
    sizes = {len(point.delta) for path in branches.values() for point in path}
    if len(sizes) > 1:
        received, remedy = f"have {sorted(sizes)} weights", "Trace them in losses of one model, around one minimum."
        raise ValueError(argument_message("paths", received, "paths of one loss", remedy))
    rows = torch.stack([point.delta.double().cpu() for path in branches.values() for point in path])
    u, s, _ = torch.linalg.svd(rows, full_matrices=False)
    found = torch.zeros(len(rows), 2, dtype=torch.float64)
    found[:, : len(s)] = (u * s)[:, :2]
    largest = found.abs() >= 0.99 * found.abs().amax(0)  # as eigenvectors: the first of nearly equals is positive
    first = largest.double().argmax(0)
    found = found * torch.where(found[first, [0, 1]] < 0, -1.0, 1.0)
    squares = (found**2).sum(0) / (rows**2).sum()
    parts = np.split(found.numpy(), np.cumsum([len(path) for path in branches.values()])[:-1])
    return dict(zip(branches, parts, strict=True)), squares.numpy()


def _frame(ax: Axes, places: Array) -> None:
    """A square box around the places (n, 2) and the origin, true to scale, with circles at round distances."""
    from matplotlib.patches import Circle
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    low, high = np.minimum(places.min(0), 0.0), np.maximum(places.max(0), 0.0)
    half = 0.5 * 1.2 * float((high - low).max())
    left, right = 0.5 * (low + high) - half, 0.5 * (low + high) + half
    ax.set_aspect("equal")
    ax.set_xlim(left[0], right[0])
    ax.set_ylim(left[1], right[1])
    farthest = float(np.linalg.norm(places, axis=1).max())
    radii = [
        float(r)
        for r in MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(0.0, farthest)
        if 0.0 < r <= 1.1 * farthest
    ]
    angles = np.linspace(-np.pi, np.pi, 73)[:-1]
    ways = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    spots = np.array(radii)[:, None, None] * ways  # (circles, angles, 2)
    edge = 0.08 * half
    is_inside = ((spots > left + edge) & (spots < right - edge)).all(-1)
    gaps = np.linalg.norm(spots[:, :, None] - places, axis=-1).min(-1)  # to the nearest point of a branch
    best = int(np.argmax((is_inside * np.minimum(gaps, 0.2 * half)).sum(0)))
    for radius, spot, shown in zip(radii, spots[:, best], is_inside[:, best], strict=True):
        ax.add_patch(Circle((0.0, 0.0), radius, fill=False, edgecolor="0.8", linewidth=0.8, zorder=0))
        if shown:
            halo = [withStroke(linewidth=2.5, foreground="white")]
            look: dict[str, Any] = {"color": "0.45", "fontsize": "small", "ha": "center", "va": "center"}
            ax.text(spot[0], spot[1], f"r = {radius:g}", path_effects=halo, clip_on=True, **look)


def _ribbons(
    ax: Axes,
    branches: Mapping[str, CanyonPath],
    places: Mapping[str, Array],
    values: Mapping[str, Array],
    is_signed: bool,
) -> ScalarMappable:
    """Each branch in the colours of its values, wide and with a rim where it is certified; what a colour bar needs."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    every = np.concatenate(list(values.values()))
    low, high = (float(f(every[np.isfinite(every)])) for f in (np.min, np.max))
    is_signed = is_signed and low < 0.0
    norm = Normalize(-max(-low, high), max(-low, high)) if is_signed else Normalize(low, high)
    colors = ScalarMappable(norm, "coolwarm" if is_signed else "viridis")
    for name, path in branches.items():
        certified = [point.is_certified for point in path]
        if len(path) == 1:
            rim = "black" if certified[0] else "none"
            ax.scatter(places[name][:, 0], places[name][:, 1], c=colors.to_rgba(values[name]), edgecolors=rim)
        for part, is_solid in stretches(certified):
            spots, row = places[name][part], values[name][part]
            if is_solid:
                ax.plot(*spots.T, color="black", linewidth=_WIDE + 1.4, solid_capstyle="round")
            pieces = np.stack([spots[:-1], spots[1:]], axis=1)  # (m - 1, 2 ends, 2)
            ribbon = LineCollection(
                list(pieces), array=0.5 * (row[:-1] + row[1:]), norm=norm, cmap=colors.get_cmap(),
                linewidths=_WIDE if is_solid else _NARROW, capstyle="round", zorder=2.5,
            )  # fmt: skip
            ax.add_collection(ribbon, autolim=False)
    return colors


def _ribbon_keys(branches: Mapping[str, CanyonPath]) -> list[Artist]:
    """Legend entries of what the width of a ribbon means."""
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import Normal, Stroke

    certified = {point.is_certified for path in branches.values() for point in path}
    rim = [Stroke(linewidth=_WIDE + 1.4, foreground="black"), Normal()]
    wide = Line2D([], [], color="0.75", linewidth=_WIDE, path_effects=rim, label="certified")
    thin = Line2D([], [], color="0.6", linewidth=_NARROW, label="not certified")
    return [key for key, is_certified in ((wide, True), (thin, False)) if is_certified in certified]


def _percent(share: float) -> str:
    """Of a share that rounding may have left next to 0 or 1."""
    return "0 %" if share < 5e-5 else "100 %" if share > 0.9995 else f"{100 * share:.3g} %"


_COLOR = "#117733"


def canyon_rises(canyons: CanyonSet, ax: Axes | None = None, *, null: DepthNull | None = None) -> Axes:
    """Relative rise of every point that was found, level by level: canyons filled, what a bowl has as well hollow.

    It is rise / energy, 1 in a quadratic bowl. The legend counts, since symmetric copies lie on one another.

    Args:
        canyons: what `lh.find_canyons` returned.
        ax: where to draw; None makes a figure.
        null: what `lh.canyons.depth_null` returned for them: at each level a grey bar from the lowest to the
            highest of the relative rises in random subspaces, a line across it at their median.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError, TypeError: no point with a relative rise, a null of other levels, or another kind of result.
    """
    check_kind("canyons", canyons, CanyonSet, "Pass what lh.find_canyons returned.")
    if null is not None:
        check_kind("null", null, DepthNull, "Pass what lh.canyons.depth_null returned.")
        if null.levels != canyons.levels:
            received, expected = f"is one of the levels {null.levels}", f"one of {canyons.levels}"
            raise ValueError(argument_message("null", received, expected, "Pass lh.canyons.depth_null(loss, canyons)."))
    shown = [point for point in canyons if np.isfinite(point.relative_rise)]
    if not shown:
        received = f"hold {len(canyons)} points, none of them with a relative rise"
        remedy = "It needs energy: curvature of the loss at theta0 within the space."
        raise ValueError(argument_message("canyons", received, "a point with a relative rise", remedy))
    ax = axes(ax)
    if null is not None:
        _null(ax, null)
    ax.axhline(1.0, color="0.3", linewidth=1.0, linestyle="--", zorder=1, label="quadratic bowl")
    looks: dict[str, dict[str, Any]] = {
        "canyon": {"marker": "o", "color": _COLOR},
        "certified, trivial": {"marker": "o", "color": _COLOR, "markerfacecolor": "white"},
        "not certified": {"marker": "x", "color": "0.4"},
    }
    for kind, look in looks.items():
        places = np.array([(point.level, point.relative_rise) for point in shown if _kind(point) == kind])
        if len(places):
            ax.plot(*places.T, linestyle="", markersize=7, label=f"{kind} ({len(places)})", **look)
    if min(canyons.levels) < 0.2 * max(canyons.levels):
        ax.set_xscale("log")
        label_log_axis(ax.xaxis)
    ax.margins(x=0.1, y=0.08)
    ax.set_xlabel("level: distance r" if canyons.metric == "euclidean" else "level: energy E of the quadratic bowl")
    ax.set_ylabel(QUANTITIES["relative_rise"][0])
    ax.grid(alpha=0.3)
    legend_above(ax)
    return ax


def _kind(point: CanyonPoint) -> str:
    if point.is_canyon:
        return "canyon"
    return "certified, trivial" if point.is_certified else "not certified"


def _null(ax: Axes, null: DepthNull) -> None:
    """A bar per level."""
    rows = null.null.numpy()  # (num, levels)
    low, middle, high = np.nanmin(rows, axis=0), np.nanmedian(rows, axis=0), np.nanmax(rows, axis=0)
    ax.vlines(null.levels, low, high, color="0.75", linewidth=9, zorder=1, label="random subspaces, lowest")
    ax.plot(null.levels, middle, linestyle="", marker="_", markersize=15, color="0.35", zorder=1.5, label="_")
