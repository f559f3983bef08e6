"""What do the pictures of canyons share? Which branches, where they are certified, and what happens to them.

A branch is drawn solid between two neighbours that are both certified, and dotted everywhere else. Its events are white
symbols in its colour, one shape for each kind, explained in the legend: names beside them would lie on one another as
soon as two branches fold together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowhanging.basin.canyon_paths import CanyonPath
from lowhanging.basin.canyon_steps import CanyonEvent
from lowhanging.basin.conflict import NEITHER
from lowhanging.errors import a_type, check_choice, check_names, explain
from lowhanging.plots.style import check_kind, color_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

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
    "depth": ("depth: rise / energy of the quadratic bowl", None),
    "slope": ("slope of the floor, n·g", None),
    "slope_without_anchor": ("slope of the floor without the anchor", None),
    "plane_eigenvalue": ("plane eigenvalue: smallest of PHP", "euclidean_error"),
    "sphere_eigenvalue": ("sphere eigenvalue: smallest of PHP − (n·g/r) P", "euclidean_error"),
    "shell_eigenvalue": ("shell eigenvalue: smallest of H − μM, relative to M", "shell_error"),
    "asymmetry": ("asymmetry, log(L_{a} / L_{b})\n(above 0: {b} is better kept)", None),
}
SIGNED = tuple(name for name in QUANTITIES if name not in ("rise", "depth"))


def branches_of(paths: Any, names: Sequence[str] | None = None) -> dict[str, CanyonPath]:
    """By name: the given paths, numbered where they have no names, or those of them that are asked for."""
    if isinstance(paths, CanyonPath):
        found: dict[str, Any] = {"branch": paths}
    elif isinstance(paths, Mapping):
        found = {name: paths[name] for name in check_names("paths", paths, remedy=_REMEDY)}
    elif isinstance(paths, Sequence) and not isinstance(paths, str):
        found = {f"branch {i}": path for i, path in enumerate(paths)}
    else:
        raise TypeError(explain("paths", f"is {a_type(paths)}", "one CanyonPath or several", _REMEDY))
    if not found:
        raise ValueError(explain("paths", "hold nothing", "at least one CanyonPath", _REMEDY))
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
        raise ValueError(explain("quantity", received, "one with a finite value", 'Pass quantity="rise".'))
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
        raise ValueError(explain("paths", f"differ in their cues, {sorted(set(pairs))}", expected, remedy))
    label = QUANTITIES[quantity][0]
    return label.format(a=pairs[0][0], b=pairs[0][1]) if pairs else label


def cues_of(path: CanyonPath, cues: Cues | None) -> Cues:
    """The two losses whose ratio is the asymmetry: given, those of the conflict control, or the only two."""
    losses = list(path.losses)
    controlled = [name for name in path.followed if name != NEITHER]
    chosen = tuple(cues) if cues is not None else tuple(controlled or losses)
    if len(chosen) != 2 or any(name not in losses for name in chosen):
        received = f"are {chosen}" if cues is not None else "are not given"
        remedy = "Pass cues=(a, b), and evaluate={a: ..., b: ...} to trace_canyon."
        raise ValueError(explain("cues", received, f"two of the evaluated losses, {losses}", remedy))
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
