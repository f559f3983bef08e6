"""Branches of canyons: their floors, the losses along them, how they spread in weight space, and minima by level.

A branch is drawn solid between two neighbours that are both certified, and dotted everywhere else. Its events are white
symbols in its colour, one shape for each kind, explained in the legend: names beside them would lie on one another as
soon as two branches fold together.
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
from lowhanging.plots.style import axes, check_kind, check_log, color_of, label_log_axis, label_of, value_axis
from lowhanging.steering.cues import NEITHER

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Array = np.ndarray
Curve = tuple[Array, Array]  # horizontal and vertical, (m,) each
Cues = tuple[str, str]
Paths = CanyonPath | Sequence[CanyonPath] | Mapping[str, CanyonPath]

# Colours that no named loss has (Tol's "muted"): a blue branch would look like the number circuit.
_COLORS = ("#332288", "#CC6677", "#117733", "#AA4499", "#999933", "#882255", "#44AA99", "#88CCEE", "#DDCC77")
_CANYON = "#117733"
_SHAPES = {"birth": "o", "fold": "s", "merge": "v", "crossing": "X", "plane": "d", "undefined": "P"}
_DOTTED = (0, (1.0, 1.3))
_INTERVAL: dict[str, Any] = {"color": "0.4", "linewidth": 3.5, "alpha": 0.5, "solid_capstyle": "butt"}
_START: dict[str, Any] = {"marker": "o", "linestyle": "", "color": "0.4", "markersize": 6}
_START |= {"clip_on": False, "zorder": 3, "label": "at the minimum"}
_BOWL: dict[str, Any] = {"color": "0.3", "linewidth": 1.0, "linestyle": "--", "zorder": 1, "label": "quadratic bowl"}
_DISTANCE = "distance from the minimum, ‖δ‖"
_REMEDY = "Pass what lh.trace_canyon returned: one path, a list of them, or a mapping name -> path."

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
# What is evaluated along a path: label of the axis, field, and what to do where there is none.
_EVALUATED = {
    "loss": ("mean loss", "losses", "Pass evaluate={name: loss} to trace_canyon."),
    "accuracy": ("accuracy (%)", "accuracies", "Pass evaluate= with losses that have class targets to trace_canyon."),
    "cue_shares": (
        "answers on conflict inputs (%)", "cue_shares", "Pass conflict=lh.ConflictControl(...) to trace_canyon."
    ),
}  # fmt: skip


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
        bowl: with "rise", the energy of the quadratic bowl along each branch as a thin dashed line, up to twice the
            highest floor. Where it runs above the floor, the floor is a canyon's: that ratio is the relative rise.
        cues: the two losses of "asymmetry"; by default those of the conflict control, or the only two.

    Raises:
        ValueError, TypeError: a quantity that the paths do not have, a name that is none of theirs, or another kind
            of result.
    """
    branches = _branches(paths, names)
    label, values = _values(branches, quantity, cues)
    if bowl and quantity != "rise":
        received, remedy = f"is True for the {quantity}", "Leave it out; a relative rise of 1 is the bowl's."
        raise ValueError(argument_message("bowl", received, 'quantity="rise" with it', remedy))
    ax = axes(ax)
    colors, error = _colors(branches), QUANTITIES[quantity][1]
    curves = {name: (_radii(path), values[name]) for name, path in branches.items()}
    highest = float(np.nanmax(np.concatenate(list(values.values()))))
    entries: list[Artist] = []
    for (name, path), width in zip(branches.items(), _widths(list(curves.values())), strict=True):
        (x, y), color = curves[name], colors[name]
        _line(ax, path, x, y, color=color, width=width)
        if error is not None:
            half = np.array([getattr(point, error) for point in path])
            ax.fill_between(x, y - half, y + half, color=color, alpha=0.2, linewidth=0)
        for event in path.events:
            height = _position(event, path, curves[name])[1]
            ax.plot([event.radius_low, event.radius_high], [height, height], **_INTERVAL, zorder=1.5)
        if bowl:
            energies = np.array([point.energy for point in path])
            ax.plot(x, np.where(energies <= 2.0 * highest, energies, np.nan), "--", color=color, linewidth=0.9)
        if not isinstance(paths, CanyonPath):
            entries.append(_key(label_of(name), color=color, linewidth=2.2))
    _mark(ax, branches, curves, colors)
    if quantity == "asymmetry":
        starts = {_log_ratio(path.losses, *_cues(path, cues)) for path in branches.values()}
        dots = [ax.plot([0.0], [start], **_START)[0] for start in starts]
        entries += dots[:1]
    entries += [*_certificate_keys(branches), *_event_keys(branches)]
    if quantity == "relative_rise":
        entries.append(ax.axhline(1.0, **_BOWL))
    elif quantity != "rise":
        ax.axhline(0.0, color="0.3", linewidth=1.0, zorder=1)
    if bowl:
        entries.append(_key("quadratic bowl", linewidth=0.9, linestyle="--"))
    _distance_axis(ax)
    value_axis(ax, label, entries=entries)
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
        quantity: "loss"; "accuracy" in percent; or "cue_shares", the shares of the answers on conflict inputs that
            follow each cue and neither.
        log: logarithmic axis for the losses.

    Raises:
        ValueError, TypeError: a path along which nothing of the kind was evaluated, or another kind of result.
    """
    check_kind("path", path, CanyonPath, "Pass what lh.trace_canyon returned; plots.canyon_floor draws several.")
    check_choice("quantity", quantity, list(_EVALUATED))
    label, field, remedy = _EVALUATED[quantity]
    columns: list[dict[str, float]] = [getattr(point, field) for point in path]
    if not columns[0]:
        held = [name for name, part in (("loss", path[0].losses), ("cue_shares", path[0].cue_shares)) if part]
        received, expected = f"is {quantity!r} for a path that holds none", f"one of {held or 'those evaluated'}"
        raise ValueError(argument_message("quantity", received, expected, remedy))
    log, unit = log and quantity == "loss", 1.0 if quantity == "loss" else 100.0
    rows = {name: unit * np.array([column[name] for column in columns]) for name in columns[0]}
    starts = {name: unit * value for name, value in getattr(path, field).items()}
    starts = {name: value for name, value in starts.items() if np.isfinite(value) and not (log and value <= 0)}
    check_log(log, rows.values())
    ax = axes(ax)
    radii, order = _radii(path), list(dict.fromkeys([*path.losses, *rows]))  # so that a cue has one colour in all three
    entries: list[Artist] = []
    for name, row in rows.items():
        color = "0.5" if name == NEITHER and quantity == "cue_shares" else color_of(name, order.index(name))
        _line(ax, path, radii, np.where(np.isfinite(row), row, np.nan), color=color)
        entries.append(_key(label_of(name), color=color))
        if name in starts:
            ax.plot([0.0], [starts[name]], **{**_START, "color": color})
    if starts:
        entries.append(_key(**_START))
    entries += [*_certificate_keys({"": path}), *_event_keys({"": path})]
    for event in path.events:
        ax.axvspan(event.radius_low, event.radius_high, color="0.7", alpha=0.6, linewidth=1.0, zorder=0)
    _distance_axis(ax)
    value_axis(ax, label, log=log, is_percent=quantity != "loss", entries=entries)
    _mark(ax, {"": path}, {"": (radii, np.full(len(radii), ax.get_ylim()[0]))}, {"": "0.4"})
    return ax


def canyon_fan(
    paths: Paths,
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
            colour bar. Where a branch is certified its points have a black rim; its name is at its outer end.
        names: which branches; by default all.
        cues: as in `canyon_floor`.

    Raises:
        ValueError, TypeError: as in `canyon_floor`, or paths of different numbers of weights.

    Cost:
        one singular value decomposition of (number of points, p).
    """
    branches = _branches(paths, names)
    label, values = ("", {}) if quantity is None else _values(branches, quantity, cues)
    coordinates, shares = project(branches)
    ax = axes(ax)
    _circles(ax, np.concatenate(list(coordinates.values())))
    entries: list[Artist] = [_key("minimum, θ0", linestyle="", marker="X", color="black")]
    if quantity is None:
        colors = _colors(branches)
        entries += [_key(label_of(name), color=colors[name], linewidth=2.2) for name in branches]
        entries += _certificate_keys(branches)
        for name, path in branches.items():
            _line(ax, path, *coordinates[name].T, color=colors[name], width=2.2)
    else:
        colors = dict.fromkeys(branches, "black")
        entries += _colored(ax, branches, coordinates, values, label)
    _mark(ax, branches, {name: (rows[:, 0], rows[:, 1]) for name, rows in coordinates.items()}, colors)
    ax.plot([0.0], [0.0], "X", color="black", markeredgecolor="white", markersize=9, zorder=5)
    entries += _event_keys(branches)
    # Outside the box: within it, branches may run anywhere.
    ax.legend(
        handles=entries, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, edgecolor="none", fontsize="small"
    )
    first, second, both = (f"{round(100 * share, 1):g} %" for share in (*shares, shares.sum()))
    ax.set_xlabel(f"principal direction 1 of δ: {first} of Σ‖δ‖²")
    ax.set_ylabel(f"principal direction 2: {second}, both {both}")
    return ax


def _colored(
    ax: Axes,
    branches: Mapping[str, CanyonPath],
    coordinates: Mapping[str, Array],
    values: Mapping[str, Array],
    label: str,
) -> list[Artist]:
    """Points in the colours of their values, with a black rim where they are certified, names, and a colour bar."""
    from matplotlib.colors import CenteredNorm, Normalize
    from matplotlib.patheffects import withStroke

    every = np.concatenate(list(values.values()))
    every = every[np.isfinite(every)]
    is_signed = float(every.min()) < 0.0
    norm = CenteredNorm(0.0, float(np.abs(every).max())) if is_signed else Normalize(every.min(), every.max())
    for name, path in branches.items():
        (x, y), end = coordinates[name].T, coordinates[name][-1]
        ax.plot(x, y, color="0.6", linewidth=0.8)
        rims = ["black" if point.is_certified else "none" for point in path]
        look: dict[str, Any] = {"norm": norm, "cmap": "coolwarm" if is_signed else "viridis"}
        dots = ax.scatter(x, y, c=values[name], s=30, edgecolors=rims, linewidths=0.8, zorder=2.5, **look)
        side, halo = 1 if end[1] >= 0 else -1, [withStroke(linewidth=2.5, foreground="white")]
        look = {"ha": "center", "va": "bottom" if side > 0 else "top", "fontsize": "small", "zorder": 6}
        ax.annotate(name, end, (0, 8 * side), textcoords="offset points", path_effects=halo, **look)
    ax.figure.colorbar(dots, ax=ax, shrink=0.9, label=label)
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "color": "0.75"}
    return _occurring(branches, _key("certified", markeredgecolor="black", **dot), _key("not certified", **dot))


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


def _circles(ax: Axes, positions: Array) -> None:
    """A square box around the origin, true to scale, with circles at round distances, named where no branch runs."""
    from matplotlib.patches import Circle
    from matplotlib.ticker import MaxNLocator

    farthest = float(np.linalg.norm(positions, axis=1).max())
    half = 1.2 * farthest
    ax.set(aspect="equal", xlim=(-half, half), ylim=(-half, half))
    angles = np.sort(np.arctan2(positions[:, 1], positions[:, 0]))
    gaps = np.diff(angles, append=angles[0] + 2 * np.pi)
    widest = int(np.argmax(gaps))
    angle = angles[widest] + 0.5 * gaps[widest]
    for radius in MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(0.0, farthest):
        if 0.0 < radius <= 1.1 * farthest:
            ax.add_patch(Circle((0.0, 0.0), radius, fill=False, edgecolor="0.8", linewidth=0.8, zorder=0))
            look: dict[str, Any] = {"color": "0.45", "fontsize": "small", "ha": "center", "va": "center"}
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            ax.text(radius * np.cos(angle), radius * np.sin(angle), f"r = {radius:g}", bbox=box, zorder=0.5, **look)


def canyon_rises(canyons: CanyonSet, ax: Axes | None = None, *, null: DepthNull | None = None) -> Axes:
    """Relative rise of every point that was found, level by level: canyons filled, what a bowl has as well hollow.

    It is rise / energy, 1 in a quadratic bowl. The legend counts, since symmetric copies lie on one another.

    Args:
        canyons: what `lh.find_canyons` returned.
        ax: where to draw; None makes a figure.
        null: what `lh.canyons.depth_null` returned for them: at each level a grey bar from the lowest to the highest
            of the relative rises in random subspaces, a line across it at their median.

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
        rows = null.null.numpy()  # (num, levels)
        low, middle, high = np.nanmin(rows, axis=0), np.nanmedian(rows, axis=0), np.nanmax(rows, axis=0)
        ax.vlines(null.levels, low, high, color="0.75", linewidth=9, zorder=1, label="random subspaces, lowest rise")
        ax.plot(null.levels, middle, linestyle="", marker="_", markersize=15, color="0.35", zorder=1.5, label="_")
    ax.axhline(1.0, **_BOWL)
    looks: dict[str, dict[str, Any]] = {
        "canyon": {"marker": "o", "color": _CANYON},
        "certified, trivial": {"marker": "o", "color": _CANYON, "markerfacecolor": "white"},
        "not certified": {"marker": "x", "color": "0.4"},
    }
    for kind, look in looks.items():
        found = np.array([(point.level, point.relative_rise) for point in shown if _kind(point) == kind])
        if len(found):
            ax.plot(*found.T, linestyle="", markersize=7, label=f"{kind} ({len(found)})", **look)
    ax.margins(x=0.1, y=0.08)
    if min(canyons.levels) < 0.2 * max(canyons.levels):
        ax.set_xscale("log")
        label_log_axis(ax.xaxis)
    ax.set_xlabel("level: distance r" if canyons.metric == "euclidean" else "level: energy E of the quadratic bowl")
    value_axis(ax, QUANTITIES["relative_rise"][0])
    return ax


def _kind(point: CanyonPoint) -> str:
    if point.is_canyon:
        return "canyon"
    return "certified, trivial" if point.is_certified else "not certified"


def _branches(paths: Any, names: Sequence[str] | None) -> dict[str, CanyonPath]:
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


def _values(branches: Mapping[str, CanyonPath], quantity: str, cues: Cues | None) -> tuple[str, dict[str, Array]]:
    """What the axis of a quantity is called, and by name its values (m,); NaN where a logarithm does not exist."""
    check_choice("quantity", quantity, list(QUANTITIES))
    label = QUANTITIES[quantity][0]
    if quantity == "asymmetry":
        pairs = {_cues(path, cues) for path in branches.values()}
        if len(pairs) > 1:
            received, remedy = f"differ in their cues, {sorted(pairs)}", "Pass cues=, two evaluated losses of all."
            raise ValueError(argument_message("paths", received, "the same cues in every path", remedy))
        ((a, b),) = pairs
        label = label.format(a=a, b=b)
        found = {n: np.array([_log_ratio(point.losses, a, b) for point in path]) for n, path in branches.items()}
    else:
        found = {n: np.array([float(getattr(point, quantity)) for point in path]) for n, path in branches.items()}
    if not any(bool(np.isfinite(row).any()) for row in found.values()):
        received = f"is {quantity!r}, which is not finite at any point"
        raise ValueError(argument_message("quantity", received, "one with a finite value", 'Pass quantity="rise".'))
    return label, found


def _cues(path: CanyonPath, cues: Cues | None) -> Cues:
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


def _radii(path: CanyonPath) -> Array:
    return np.array([point.radius for point in path])


def _colors(branches: Mapping[str, Any]) -> dict[str, Any]:
    """One colour per branch: that of the loss of its name, if that has one; of many branches, all different."""
    own: Sequence[Any] = _COLORS
    if len(branches) > len(_COLORS):
        from matplotlib import colormaps

        own = [colormaps["turbo"](share) for share in np.linspace(0.03, 0.97, len(branches))]
    others = color_of("", 0)  # what a name without a colour of its own would get
    known = {name: color_of(name, 0) for name in branches}
    return {name: own[i] if known[name] == others else known[name] for i, name in enumerate(branches)}


def _line(ax: Axes, path: CanyonPath, x: Array, y: Array, *, color: Any, width: float = 1.8) -> None:
    """A branch through (x, y), solid where it is certified; a stretch of one point is a dot, hollow if not."""
    for part, is_solid in stretches([point.is_certified for point in path]):
        style: Any = "-" if is_solid else _DOTTED
        ax.plot(x[part], y[part], linestyle=style, color=color, linewidth=width)
    if len(x) == 1:
        face = color if path[0].is_certified else "white"
        ax.plot(x, y, "o", color=color, markerfacecolor=face, markersize=2.5 * width)


def stretches(certified: Sequence[bool]) -> Iterator[tuple[slice, bool]]:
    """Runs of neighbours, overlapping in their end points, and whether all points of a run are certified."""
    begun = 0
    for is_solid, run in itertools.groupby(a and b for a, b in itertools.pairwise(certified)):
        length = len(list(run))
        yield slice(begun, begun + length + 1), is_solid
        begun += length


def _widths(curves: Sequence[Curve]) -> list[float]:
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


def _mark(ax: Axes, branches: Mapping[str, CanyonPath], curves: Mapping[str, Curve], colors: Mapping[str, Any]) -> None:
    """Symbols of the events on the branches' curves: at the middle of their levels, or at the end nearest to it.

    Where several would hide each other, as at a birth of two branches, they become rings around each other.
    """
    found = [
        (event.kind, name, _position(event, path, curves[name]))
        for name, path in branches.items()
        for event in path.events
    ]
    spans = _spans(list(curves.values()))
    for i, (kind, name, (x, y)) in enumerate(found):
        later = [other for _, _, other in found[i + 1 :]]
        hidden = sum(bool((np.abs(np.subtract((x, y), other)) <= 0.015 * spans).all()) for other in later)
        ax.plot([x], [y], **_symbol(kind, colors[name], 7.0 + 4.0 * hidden), zorder=4, clip_on=False)


def _position(event: CanyonEvent, path: CanyonPath, curve: Curve) -> tuple[float, float]:
    """Where on a branch's curve the middle of an event's levels lies."""
    levels, middle = [point.level for point in path], 0.5 * (event.low + event.high)
    return float(np.interp(middle, levels, curve[0])), float(np.interp(middle, levels, curve[1]))


def _symbol(kind: str, color: Any = "0.4", size: float = 7.0) -> dict[str, Any]:
    look = {"marker": _SHAPES[kind], "markersize": size, "color": color}
    return {**look, "linestyle": "", "markerfacecolor": "white", "markeredgewidth": 1.4}


def _key(label: str, **look: Any) -> Artist:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **{"color": "0.4", "linewidth": 1.8, **look})


def _certificate_keys(branches: Mapping[str, CanyonPath]) -> list[Artist]:
    """Legend entries of what solid and dotted mean, as far as they occur."""
    return _occurring(branches, _key("solid: certified"), _key("dotted: not certified", linestyle=_DOTTED))


def _occurring(branches: Mapping[str, CanyonPath], certified: Artist, other: Artist) -> list[Artist]:
    found = {point.is_certified for path in branches.values() for point in path}
    return [key for key, is_certified in ((certified, True), (other, False)) if is_certified in found]


def _event_keys(branches: Mapping[str, CanyonPath]) -> list[Artist]:
    """Legend entries of the events that occur."""
    kinds = {event.kind for path in branches.values() for event in path.events}
    return [_key(kind, **_symbol(kind)) for kind in _SHAPES if kind in kinds]


def _distance_axis(ax: Axes) -> None:
    ax.margins(x=0.02)
    ax.set_xlim(left=0.0)
    ax.set_xlabel(_DISTANCE)
