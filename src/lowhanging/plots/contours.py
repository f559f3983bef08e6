"""Filled contours of a loss on a plane: boundaries of the bands, their colours, the colour bar, and named points.

Losses on a plane often span many decades, where evenly spaced levels would paint a canyon and its floor in one colour.
So a wide range of positive values gets logarithmic levels, a wide range that reaches 0 or below gets levels whose
*rise* above the lowest value is logarithmic, and any other range evenly spaced ones; every band differs from the next
by the same contrast. A value that is NaN or infinite is never replaced by one that is not: it stays hatched.
"""

from __future__ import annotations

import math
import numbers
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from lowhanging.errors import argument_message, check_choice, check_count
from lowhanging.landscape.planes import PlaneSlice
from lowhanging.plots.style import Quantity, box_size, label_of, rows_of, step_label

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

Levels: TypeAlias = "int | Sequence[float] | None"
Kind = Literal["linear", "log", "rise", "flat"]
Extend = Literal["neither", "both", "min", "max"]

LOWEST = "#D55E00"  # the colour of the lowest point
COLORMAP = "viridis"  # ordered in brightness, also for the colour-blind; dark is low
_NUM = 12  # bands by default: each can still be told from its neighbours
_WIDE = 30.0  # largest over smallest value, or over the rise that a tenth of the points don't exceed
_ROUGHEST, _FINEST = 1e-4, 1e-13  # range over magnitude below which labels need an offset; below which it is rounding
_JUMP = 1e6  # between neighbours in size: no loss on a grid jumps so far, unless the lower one is a rounded 0
_LADDERS = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))  # round numbers within a decade
_RIGHT_ANGLE = 1.0  # degrees from 90 that pass for it
_EXTREME = 3.0  # sides of a box in true proportions: beyond, the shorter one can't be read
_SHAPES = "D^vPphd<>8"  # of marks


@dataclass(frozen=True, eq=False)
class Bands:
    """Boundaries of the bands of a contour picture, and what is written at them."""

    boundaries: np.ndarray  # (n,) float64, ascending, n >= 2
    labels: tuple[str, ...]  # (n,) for a colour bar
    kind: Kind
    base: float = 0.0  # what the labels are measured from
    extend: Extend = "neither"  # where values lie beyond the boundaries
    cmap: str = COLORMAP

    @property
    def is_flat(self) -> bool:
        """Whether there is nothing to tell apart: one value, or none."""
        return self.kind == "flat"

    def title(self, what: str) -> str:
        """What the labels mean, e.g. "mean loss"."""
        return f"{what} above {short(self.base, 8)}, its lowest here" if self.base else what


def choose_bands(values: Iterable[np.ndarray], levels: Levels = None, *, cmap: str | None = None) -> Bands:
    """Bands that cover every finite value of all the arrays, which share one scale and one colour map.

    `levels` is about how many (12 by default), or their boundaries, which are kept: `extend` says where values lie
    beyond them.
    """
    found = _bands(np.concatenate([np.ravel(array) for array in values]), levels)
    if cmap is None:
        return found
    from matplotlib import colormaps

    if not isinstance(cmap, str) or cmap not in colormaps:
        expected, remedy = "the name of a matplotlib colour map", 'Such as "viridis", "magma" or "cividis".'
        raise ValueError(argument_message("cmap", f"is {cmap!r}", expected, remedy))
    return replace(found, cmap=cmap)


def _bands(every: np.ndarray, levels: Levels) -> Bands:
    finite = np.sort(every[np.isfinite(every)].astype(np.float64))
    given = None if levels is None or isinstance(levels, numbers.Integral) else _given(levels)
    remedy = "Leave it out for 12, or pass the boundaries themselves."
    num = check_count("levels", levels, maximum=100, remedy=remedy) if isinstance(levels, numbers.Integral) else _NUM
    if not len(finite):
        return Bands(np.array([0.0, 1.0]), ("", ""), "flat")
    low, high = float(finite[0]), float(finite[-1])
    kind, first, base = _kind(finite)
    if given is not None:
        beyond = (low < given[0], high > given[-1])
        extend: Extend = "both" if all(beyond) else "min" if beyond[0] else "max" if beyond[1] else "neither"
        is_log = kind == "log" and given[0] > 0
        return Bands(given, tuple(map(short, given.tolist())), "log" if is_log else "linear", extend=extend)
    if kind == "flat":
        room = 1e-3 * abs(low) or 1.0
        return Bands(np.array([low - room, high + room]), ("", short(low)), "flat")
    if kind == "linear":
        steps = _even_steps(low - base, high - base, num)
    else:
        steps = _log_steps(first, high - base, num)
        if kind == "rise":
            steps = np.concatenate([[0.0], steps])
        elif low < steps[0]:  # a few points far below the rest: one band for them, whatever its width
            steps = np.concatenate([_log_steps(low, steps[0], 1)[:1], steps])
    labels = tuple(map(short, steps.tolist()))
    if base:
        labels = ("0", *(f"+{label}" for label in labels[1:]))
    boundaries = base + steps
    # base + (low - base) may round past low.
    boundaries[0], boundaries[-1] = min(boundaries[0], low), max(boundaries[-1], high)
    return Bands(boundaries, labels, kind, base)


def short(value: float, digits: int = 6) -> str:
    """A number in few characters: 0.002, 15, 2e−5, −3e6."""
    mantissa, _, exponent = f"{value + 0.0:.{digits}g}".partition("e")
    return (f"{mantissa}e{int(exponent)}" if exponent else mantissa).replace("-", "−")


def _kind(finite: np.ndarray) -> tuple[Kind, float, float]:
    """(kind, first value or rise that logarithmic levels should resolve, base) of sorted finite values."""
    low, high = float(finite[0]), float(finite[-1])
    size = max(abs(low), abs(high))
    if high - low <= _FINEST * size:
        return "flat", low, 0.0
    if high - low < _ROUGHEST * size:
        return "linear", low, low
    rises = finite if low > 0 else finite[finite > low] - low
    jumps = np.nonzero(rises[1:] / _JUMP > rises[:-1])[0]
    rises = rises[jumps[-1] + 1 :] if len(jumps) else rises  # without what is 0 up to rounding
    # The lowest 1/200 of the points is not worth decades of levels: a minimum is often as low as a point can be.
    first = max(float(np.quantile(rises, 0.005)), 1e-12 * float(rises[-1]))
    if low > 0 and rises[0] == low:
        return ("log", float(np.quantile(finite, 0.005)), 0.0) if high >= _WIDE * low else ("linear", low, 0.0)
    if rises[-1] < _WIDE * np.quantile(rises, 0.1):
        return "linear", low, 0.0
    return "rise", first, 0.0 if abs(low) * _JUMP <= rises[0] else low


def _even_steps(low: float, high: float, num: int) -> np.ndarray:
    """Evenly spaced round numbers that cover [low, high], about `num` of them."""
    from matplotlib.ticker import MaxNLocator

    unit = 10.0 ** math.floor(math.log10(high - low))  # matplotlib widens ranges that are tiny in themselves
    ticks = MaxNLocator(4 * num // 3, steps=[1, 2, 2.5, 5, 10]).tick_values(low / unit, high / unit)
    return _covering(unit * np.asarray(ticks), low, high)


def _log_steps(low: float, high: float, num: int) -> np.ndarray:
    """Round numbers in geometric steps that cover [low, high], about `num` of them."""
    from matplotlib.ticker import LogLocator

    with np.errstate(over="ignore"):
        found = [LogLocator(subs=subs, numticks=num + 2).tick_values(low / 10, 10 * high) for subs in _LADDERS]
    ladders = [_covering(np.asarray(ticks), low, high) for ticks in found if len(ticks)]
    return min(ladders, key=lambda steps: abs(len(steps) - 1 - num))


def _covering(ticks: np.ndarray, low: float, high: float) -> np.ndarray:
    """The shortest part of ascending ticks that covers [low, high], up to rounding."""
    slack = 1e-9 * np.minimum(high - low, np.abs([low, high]))
    first = max(int(np.searchsorted(ticks, low + slack[0], "right")) - 1, 0)
    return ticks[first : max(int(np.searchsorted(ticks, high - slack[1])), first + 1) + 1]


def _given(levels: Any) -> np.ndarray:
    """Boundaries that the caller chose, or an error."""
    remedy = "Pass ascending numbers such as [0.1, 0.2, 0.5, 1.0], or about how many bands."
    try:
        found = np.array([float(level) for level in levels])
    except (TypeError, ValueError) as error:
        expected = "a number of bands, or their boundaries"
        raise TypeError(argument_message("levels", f"is {levels!r}", expected, remedy)) from error
    if len(found) < 2 or not np.isfinite(found).all() or (np.diff(found) <= 0).any():
        expected = "at least two ascending numbers"
        raise ValueError(argument_message("levels", f"is {found.tolist()}", expected, remedy))
    return found


def grids_of(plane: PlaneSlice, quantity: Quantity, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """By name: (num_alphas, num_betas) of the wanted losses, or accuracies in percent; an error for unknown names."""
    rows = rows_of(plane, quantity)
    wanted = list(rows) if names is None else list(names)
    for name in wanted:
        check_choice("name", name, list(rows), remedy=f"Name one that the plane has a {quantity} of.")
    return {name: rows[name].double().numpy() for name in wanted}


def first_grid(plane: PlaneSlice, quantity: Quantity, name: str | None) -> tuple[str, np.ndarray]:
    """The named loss, or the first one, with its grid."""
    return next(iter(grids_of(plane, quantity, None if name is None else [name]).items()))


def colors_of(bands: Bands) -> ScalarMappable:
    """Value -> colour: one colour per band, evenly spaced however uneven the boundaries."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    num = len(bands.boundaries) - 1 + {"neither": 0, "both": 2}.get(bands.extend, 1)
    norm = BoundaryNorm(bands.boundaries, num, extend=bands.extend)
    return ScalarMappable(norm, colormaps[bands.cmap].resampled(num))


def paint(ax: Axes, plane: PlaneSlice, title: str, grid: np.ndarray, bands: Bands) -> list[Artist]:
    """Bands, lines between them, hatching where a value is not finite, axes and title; what the legend should say."""
    from matplotlib.patches import Rectangle
    from scipy.ndimage import binary_opening

    alphas, betas = plane.alphas.numpy(), plane.betas.numpy()
    known, colors = np.isfinite(grid), colors_of(bands)
    spans = binary_opening(known, np.ones((2, 2)))  # corners of a cell whose four corners are finite
    if spans.any():
        # matplotlib wants rows to follow the vertical axis: (num_betas, num_alphas).
        heights = np.ma.masked_where(~known, np.where(known, grid, 0.0)).T
        fill: Any = {"levels": bands.boundaries, "cmap": colors.cmap, "norm": colors.norm, "extend": bands.extend}
        ax.contourf(alphas, betas, heights, corner_mask=False, **fill)
        inner = [level for level in bands.boundaries if heights.min() < level < heights.max()]
        if inner:
            thin: Any = {"colors": "white", "linewidths": 0.5, "alpha": 0.35, "linestyles": "-"}
            ax.contour(alphas, betas, heights, levels=inner, corner_mask=False, **thin)
    i, j = np.nonzero(known & ~spans)  # a finite value whose neighbours are not: a small square
    if len(i):
        ax.scatter(alphas[i], betas[j], c=colors.to_rgba(grid[i, j]), marker="s", s=14, zorder=2)
    ax.set_xlim(alphas[0], alphas[-1])
    ax.set_ylim(betas[0], betas[-1])
    norms = plane.norms.tolist()
    if has_true_proportions(plane):
        ax.set_aspect(norms[1] / norms[0])
    for which, name, norm, room in zip("xy", plane.names, norms, box_size(ax), strict=True):
        ax.set(**{f"{which}label": step_label(name, norm, room)})
    ax.set_title("\n".join([title, *notes(plane, grid)]))
    if known.all():
        return []
    hatched = Rectangle(
        (alphas[0], betas[0]), alphas[-1] - alphas[0], betas[-1] - betas[0], facecolor="0.88", edgecolor="0.55",
        hatch="///", linewidth=0, zorder=0.5, label=f"NaN or inf, {missing(grid)}",
    )  # fmt: skip
    ax.add_patch(hatched)
    return [hatched]


def bar(ax: Axes, bands: Bands, title: str) -> None:
    """A colour bar beside an Axes, as high as its box; none where nothing differs."""
    if bands.is_flat:
        return
    beside = ax.inset_axes((1.04, 0.0, 0.05, 1.0)) if ax.name != "3d" else None
    made = ax.figure.colorbar(colors_of(bands), beside, None if beside else ax, spacing="uniform", label=title)
    every = math.ceil(len(bands.labels) / 14)
    made.set_ticks(bands.boundaries[::every].tolist(), labels=bands.labels[::every])
    made.minorticks_off()


def points(ax: Axes, plane: PlaneSlice, name: str) -> list[Artist]:
    """Draws the marks, the lowest point and the center, and returns them for the legend."""
    looks: dict[str, dict[str, Any]] = {
        "mark": {"color": "white", "markeredgecolor": "black", "markersize": 6.5, "zorder": 4},
        "lowest": {"marker": "o", "color": LOWEST, "markeredgecolor": "white", "markersize": 6.5, "zorder": 5},
        "center": {"marker": "X", "color": "white", "markeredgecolor": "black", "markersize": 10, "zorder": 4},
    }
    drawn: list[Artist] = []
    for kind, labels in notable(plane, name).items():
        for i, (alpha, beta, label) in enumerate(labels):
            look = looks[kind] if kind != "mark" else {**looks[kind], "marker": _SHAPES[i % len(_SHAPES)]}
            drawn += ax.plot(alpha, beta, linestyle="", clip_on=False, label=label_of(label), **look)
    return drawn


def notable(plane: PlaneSlice, name: str) -> dict[Literal["mark", "lowest", "center"], list[tuple[float, float, str]]]:
    """(alpha, beta, label) of the marks, the lowest point of a loss and the center, where they lie in the box."""
    marks = [(float(place[0]), float(place[1]), label) for label, place in plane.marks.items()]
    is_marked = any(alpha == beta == 0.0 for alpha, beta, _ in marks)
    return {
        "mark": [mark for mark in marks if inside(plane, mark[0], mark[1])],
        "center": [(0.0, 0.0, "center")] if inside(plane, 0.0, 0.0) and not is_marked else [],
        "lowest": _lowest(plane, name),
    }


def _lowest(plane: PlaneSlice, name: str) -> list[tuple[float, float, str]]:
    """The lowest loss, of equals the one nearest to the center; none where all are equal, or none is finite."""
    losses = plane.losses.get(name)
    if losses is None or not bool(losses.isfinite().any()):
        return []
    value = plane.lowest(name)[2]
    i, j = np.nonzero((losses == value).numpy())
    if 1 < len(i) == int(losses.isfinite().sum()):
        return []
    alphas, betas = plane.alphas.numpy()[i], plane.betas.numpy()[j]
    nearest = int(np.argmin((alphas * float(plane.norms[0])) ** 2 + (betas * float(plane.norms[1])) ** 2))
    ties = f" (at {len(i)} points)" if len(i) > 1 else ""
    return [(float(alphas[nearest]), float(betas[nearest]), f"lowest loss {short(value, 3)}{ties}")]


def legend(ax: Axes, entries: Sequence[Artist]) -> None:
    """A legend where it covers least of the points and lines, in rows of at most half the box's width."""
    room = max(16, int(box_size(ax)[0] / 9.0))
    for entry in entries:
        entry.set_label(textwrap.fill(str(entry.get_label()), room))
    if entries:
        ax.legend(handles=list(entries), loc="best", fontsize="small", framealpha=0.8, borderaxespad=0.3)


def inside(plane: PlaneSlice, alpha: float, beta: float) -> bool:
    """Whether a point lies in the box."""
    spans = zip((alpha, beta), (plane.alphas, plane.betas), strict=True)
    return all(float(steps[0]) <= step <= float(steps[-1]) for step, steps in spans)


def missing(grid: np.ndarray) -> str:
    """How many values are not finite: "28 of 1,681 points"."""
    return f"{(~np.isfinite(grid)).sum():,} of {grid.size:,} points"


def notes(plane: PlaneSlice, grid: np.ndarray) -> list[str]:
    """What a title should add: a grid without contours, and directions that are not drawn at their angle."""
    finite = grid[np.isfinite(grid)]
    said = []
    if not len(finite):
        said = ["no finite value"]
    elif np.ptp(finite) <= _FINEST * np.abs(finite).max():
        said = [f"{'one finite value' if len(finite) == 1 else 'constant'}: {short(float(finite[0]))}"]
    return said if _is_orthogonal(plane) else [*said, f"directions {plane.angle:.3g}° apart, drawn at 90°"]


def proportion(plane: PlaneSlice) -> float:
    """Height of the box over its width, in distances of weight space."""
    width, height = (
        float(norm * (steps[-1] - steps[0]))
        for norm, steps in zip(plane.norms, (plane.alphas, plane.betas), strict=True)
    )
    return height / width


def has_true_proportions(plane: PlaneSlice) -> bool:
    """Whether a distance is drawn equally long in every direction."""
    return _is_orthogonal(plane) and 1 / _EXTREME <= proportion(plane) <= _EXTREME


def _is_orthogonal(plane: PlaneSlice) -> bool:
    return abs(plane.angle - 90.0) <= _RIGHT_ANGLE
