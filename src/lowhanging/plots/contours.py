"""Contours of a loss on a plane: levels, bands, and the points, trajectories and notes over them.

Losses on a plane often span many decades: evenly spaced levels would paint a canyon and its floor in one colour. A
wide range of positive values gets logarithmic levels; a wide range that reaches 0 or below, levels whose *rise* above
the lowest value is logarithmic; any other range, evenly spaced ones. A value that is not finite stays hatched. Names
stand beside their points, since a legend would hide a good part of a small panel.
"""

from __future__ import annotations

import itertools
import math
import numbers
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from lowhanging.errors import argument_message, check_count, check_real
from lowhanging.landscape.planes import PlaneSlice, PlaneTrajectory
from lowhanging.plots.style import Quantity, box_size, rows_of, step_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

Levels: TypeAlias = "int | Sequence[float] | None"
Extend = Literal["neither", "both", "min", "max"]

_NUM = 12  # bands by default: each can still be told from its neighbours
_WIDE = 30.0  # largest over smallest value, or over the rise that a tenth of the points don't exceed
_LARGEST = float(np.finfo(np.float64).max)
_ROUGHEST, _FINEST = 1e-4, 1e-13  # range over magnitude below which labels need an offset; below which it is rounding
_JUMP = 1e6  # between neighbours in size: no loss on a grid jumps so far, unless the lower one is a rounded 0
# Mantissas of round numbers, the densest first; after these come whole decades, every second, every third ...
_LADDERS: tuple[tuple[float, ...], ...] = (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
)


@dataclass(frozen=True, eq=False)
class Bands:
    """Boundaries of the bands of a contour picture, and what is written at them."""

    boundaries: np.ndarray  # (n,) float64, ascending, n >= 2
    labels: tuple[str, ...]  # (n,) for a colour bar
    kind: Literal["linear", "log", "rise", "constant", "empty"]
    base: float = 0.0  # what the labels are measured from
    extend: Extend = "neither"  # where values lie beyond the boundaries

    @property
    def is_flat(self) -> bool:
        """Whether there is nothing to tell apart: one value, or none."""
        return self.kind in ("constant", "empty")

    def title(self, what: str) -> str:
        """What the labels mean, e.g. "mean loss"."""
        return f"{what} above {short(self.base, 8)}, its lowest here" if self.base else what


def choose_bands(values: Iterable[np.ndarray], levels: Levels = None) -> Bands:
    """Bands that cover every finite value of all the arrays.

    Args:
        values: arrays of any shape that share one scale; NaN and infinities are passed over.
        levels: about how many bands, or their boundaries; 12 bands by default.

    Returns:
        Bands. Given boundaries are kept, and `extend` says where values lie beyond them.
    """
    every = np.concatenate([np.ravel(array) for array in values])
    finite = np.sort(every[np.isfinite(every)].astype(np.float64))
    given = None if levels is None or isinstance(levels, numbers.Integral) else _given(levels)
    remedy = "Leave it out for 12, or pass the boundaries themselves."
    num = _NUM if levels is None or given is not None else check_count("levels", levels, maximum=100, remedy=remedy)
    if not len(finite):
        return Bands(np.array([0.0, 1.0]), ("", ""), "empty")
    low, high = float(finite[0]), float(finite[-1])
    kind, first, base = _kind(finite)
    if given is not None:
        beyond = (low < given[0], high > given[-1])
        extend: Extend = "both" if all(beyond) else "min" if beyond[0] else "max" if beyond[1] else "neither"
        is_log = kind == "log" and given[0] > 0
        return Bands(given, tuple(map(short, given.tolist())), "log" if is_log else "linear", extend=extend)
    if kind == "constant":
        room = 1e-3 * abs(low) or 1.0
        return Bands(np.array([low - room, high + room]), ("", short(low, 6)), "constant")
    if kind == "linear":
        steps = _even(low - base, high - base, num)
        labels = _even_labels(steps)
    else:
        steps = _ladder(first, high - base, num)
        if kind == "rise":
            steps = np.concatenate([[0.0], steps])
        elif low < steps[0]:  # a few points far below the rest: one band for them, whatever its width
            steps = np.concatenate([[_round_down(low)], steps])
        labels = tuple(map(short, steps.tolist()))
    if base:
        labels = ("0", *(f"+{label}" for label in labels[1:]))
    boundaries = base + steps
    # base + (low - base) may round past low.
    boundaries[0], boundaries[-1] = min(boundaries[0], low), max(boundaries[-1], high)
    return Bands(boundaries, labels, kind, base)


def short(value: float, digits: int = 4) -> str:
    """A number in few characters: 0.002, 15, 2e-5, −3e6."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    return f"{value + 0.0:.{max(digits, 5) if abs(value) >= 1e4 else digits}g}".replace("-", "−")


def _kind(finite: np.ndarray) -> tuple[Literal["linear", "log", "rise", "constant"], float, float]:
    """(kind, first value or rise that logarithmic levels should resolve, base) of sorted finite values."""
    low, high = float(finite[0]), float(finite[-1])
    size = max(abs(low), abs(high))
    if high - low <= _FINEST * size:
        return "constant", low, 0.0
    if high - low < _ROUGHEST * size:
        return "linear", low, low
    rises = _above_rounding(finite if low > 0 else finite[finite > low] - low)
    # The lowest 1/200 of the points is not worth decades of levels: a minimum is often as low as a point can be.
    first = max(float(np.quantile(rises, 0.005)), 1e-12 * float(rises[-1]))
    if low > 0 and rises[0] == low:
        return ("log", float(np.quantile(finite, 0.005)), 0.0) if high >= _WIDE * low else ("linear", low, 0.0)
    if rises[-1] < _WIDE * np.quantile(rises, 0.1):
        return "linear", low, 0.0
    return "rise", first, 0.0 if abs(low) * _JUMP <= rises[0] else low


def _above_rounding(positive: np.ndarray) -> np.ndarray:
    """Ascending positive numbers without the first of them, where a jump shows that these are 0 up to rounding."""
    jumps = np.nonzero(positive[1:] / _JUMP > positive[:-1])[0]
    return positive[jumps[-1] + 1 :] if len(jumps) else positive


def _even(low: float, high: float, num: int) -> np.ndarray:
    """Evenly spaced round numbers from at most `low` to at least `high`, about `num` steps."""
    decade = 10.0 ** math.floor(math.log10((high - low) / num))
    found = []
    for mantissa in (1, 2, 2.5, 5, 10, 20):
        step = mantissa * decade
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        found.append(step * np.arange(first, last + 1))
    return min(found, key=lambda steps: abs(len(steps) - 1 - num))


def _even_labels(steps: np.ndarray) -> tuple[str, ...]:
    """As many decimals as tell neighbours apart."""
    width = float(steps[1] - steps[0])
    if width < 1e-4 or float(np.abs(steps).max()) >= 1e5:
        digits = 2 + max(0, math.ceil(math.log10(float(np.abs(steps).max()) / width)))
        return tuple(short(step, digits) for step in steps.tolist())
    decimals = next(d for d in range(7) if abs(round(width, d) - width) < 1e-3 * width)
    return tuple(f"{step:.{decimals}f}".replace("-", "−") for step in (steps + 0.0).tolist())


def _ladder(low: float, high: float, num: int) -> np.ndarray:
    """Round numbers in geometric steps from at most `low` to at least `high`, about `num` steps."""
    bottom, top = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    ladders = [
        [min(float(f"{m}e{power}"), _LARGEST) for power in range(bottom, top + 1) for m in mantissas]
        for mantissas in _LADDERS
    ]
    ladders += [[float(f"1e{power}") for power in range(top, bottom - 2 * by, -by)][::-1] for by in range(1, 100)]
    found = [_covering(rungs, low, high) for rungs in ladders]
    return min(found, key=lambda rungs: abs(len(rungs) - 1 - num))


def _covering(rungs: list[float], low: float, high: float) -> np.ndarray:
    """The shortest part of ascending `rungs` that covers [low, high]."""
    first = max((i for i, rung in enumerate(rungs) if rung <= low), default=0)
    last = next(i for i, rung in enumerate(rungs) if rung >= high)
    return np.array(rungs[first : max(last, first + 1) + 1])


def _round_down(value: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is at most `value` > 0."""
    power = math.floor(math.log10(value))
    rungs = [float(f"{mantissa}e{power + shift}") for shift in (-1, 0, 1) for mantissa in (1, 2, 5)]
    return max(rung for rung in rungs if rung <= value)


def _given(levels: Any) -> np.ndarray:
    """Boundaries that the caller chose, or an error."""
    remedy = "Pass ascending numbers such as [0.1, 0.2, 0.5, 1.0], or about how many bands."
    try:
        entries = list(levels)
    except TypeError as error:
        expected = "a number of bands, or their boundaries"
        raise TypeError(argument_message("levels", f"is {levels!r}", expected, remedy)) from error
    found = [check_real(f"levels[{i}]", _plain(entry), remedy=remedy) for i, entry in enumerate(entries)]
    if len(found) < 2 or any(a >= b for a, b in itertools.pairwise(found)):
        raise ValueError(argument_message("levels", f"is {found}", "at least two ascending numbers", remedy))
    return np.array(found)


def _plain(entry: Any) -> Any:
    """A Python number for one of NumPy's or torch's."""
    return entry.item() if hasattr(entry, "item") else entry


LOWEST = "#D55E00"  # the colour of the lowest point
_FONT = 9.0  # points
_CHAR_WIDTH, _CHAR_HEIGHT = 0.56 * _FONT, 1.25 * _FONT  # of a character
_SAME = 7.0  # points of distance below which two symbols are one
_TANGLED = 3.0  # length of a line, in sides of the box, beyond which it fills an area
_GAPS = (6.0, 22.0)  # points between a symbol and its name; the wider with a thin line between them
_SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))

Label = tuple[float, float, str]  # alpha, beta, name
Box = tuple[float, float, float, float]  # left, bottom, right, top


def notable(plane: PlaneSlice, name: str) -> dict[Literal["mark", "lowest", "center"], list[Label]]:
    """The plane's marks, the lowest point of a loss and the center, where they lie in the box."""
    marks = [(float(place[0]), float(place[1]), label) for label, place in plane.marks.items()]
    is_marked = any(alpha == beta == 0.0 for alpha, beta, _ in marks)
    lowest = _lowest(plane, name)
    return {
        "mark": [mark for mark in marks if inside(plane, mark[0], mark[1])],
        "center": [(0.0, 0.0, "center")] if inside(plane, 0.0, 0.0) and not is_marked else [],
        "lowest": [] if lowest is None else [lowest],
    }


def points(ax: Axes, plane: PlaneSlice, name: str) -> list[Label]:
    """Draws what is notable, and returns it."""
    found = notable(plane, name)
    looks: dict[str, dict[str, Any]] = {
        "mark": {"marker": "D", "color": "white", "markeredgecolor": "black", "markersize": 6, "zorder": 4},
        "lowest": {"marker": "o", "color": LOWEST, "markeredgecolor": "white", "markersize": 6.5, "zorder": 5},
        "center": {"marker": "X", "color": "white", "markeredgecolor": "black", "markersize": 10, "zorder": 4},
    }
    for kind, labels in found.items():
        for alpha, beta, _ in labels:
            ax.plot(alpha, beta, linestyle="", clip_on=False, **looks[kind])
    return [label for labels in found.values() for label in labels]


def trace(ax: Axes, plane: PlaneSlice, trajectory: PlaneTrajectory) -> tuple[list[Label], str]:
    """A line with a dot at each checkpoint; returns its two ends, and what it does not show."""
    coordinates = trajectory.coordinates.double().numpy()  # (t, 2)
    size = 4.0 if len(coordinates) <= 30 else 2.0
    descent(ax, coordinates)
    ax.plot(*coordinates.T, "o", color="white", markeredgecolor="black", markersize=size, markeredgewidth=0.6, zorder=3)
    ends = [(*coordinates[i].tolist(), label) for i, label in ((0, "start"), (-1, "end"))]
    note = f"trajectory: {distance_from(plane, float(trajectory.distances.max()))}"
    outside = sum(not inside(plane, alpha, beta) for alpha, beta in coordinates)
    return (
        [(alpha, beta, label) for alpha, beta, label in ends if inside(plane, alpha, beta)],
        f"{note}, {outside} of {len(coordinates)} points outside the box" if outside else note,
    )


def descent(ax: Axes, coordinates: np.ndarray, size: float = 1.0) -> None:
    """A line through (t, 2) coordinates with a square at its start and a star at its end; a tangle is drawn thin."""
    spans = np.abs(np.diff([ax.get_xlim(), ax.get_ylim()], axis=1)).ravel()
    is_tangled = np.linalg.norm(np.diff(coordinates, axis=0) / spans, axis=1).sum() > _TANGLED
    thick = 0.35 if is_tangled else 1.2 * size
    stroke = [_stroke("black", thick + (0.5 if is_tangled else 1.4))]
    ax.plot(*coordinates.T, "-", color="white", linewidth=thick, path_effects=stroke, zorder=3)
    ends: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "zorder": 5.5}
    ax.plot(*coordinates[0], "s", **ends, markersize=7 * size)
    ax.plot(*coordinates[-1], "*", **ends, markersize=13 * size)


def distance_from(plane: PlaneSlice, furthest: float) -> str:
    """How far off a plane something runs, in words."""
    ways = zip((plane.alphas, plane.betas), plane.norms, strict=True)
    reach = max(float(steps.abs().max() * norm) for steps, norm in ways)
    return f"up to {furthest:.2g} off the plane" if furthest > 1e-6 * reach else "in the plane"


def write(ax: Axes, labels: Sequence[Label], notes: Sequence[str], lines: Sequence[np.ndarray] = ()) -> None:
    """Each name beside its point, and the notes in a corner, where they cover least of points and lines (t, 2)."""
    width, height = box_size(ax)
    corner, far = np.array([ax.get_xlim(), ax.get_ylim()]).T
    scale = (far - corner) / (width, height)  # data per point
    symbols = [(*((place - corner) / scale).tolist(), label) for *place, label in labels]
    beads = np.concatenate([np.zeros((0, 2)), *(_beads((line - corner) / scale) for line in lines)])
    ends = [((line[i] - corner) / scale).tolist() for line in lines for i in (0, -1)]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in [*((x, y) for x, y, _ in symbols), *ends]]

    def cost(box: Box) -> float:
        outside = max(0.0, -box[0]) + max(0.0, -box[1]) + max(0.0, box[2] - width) + max(0.0, box[3] - height)
        covered = (beads > box[:2]).all(1) & (beads < box[2:]).all(1)
        overlaps = sum(a[0] < box[2] and box[0] < a[2] and a[1] < box[3] and box[1] < a[3] for a in taken)
        return float(10 * outside + 100 * overlaps + covered.sum())

    halo = [_stroke("white", 2.5)]
    leader = {"arrowstyle": "-", "linewidth": 0.7, "shrinkB": 4.0, "path_effects": halo}
    for x, y, text in _merged(symbols):
        places = [(_GAPS[0] * right, gap * up) for gap in _GAPS for right, up in _SIDES]
        right, up = min(places, key=lambda place: cost(_beside(x, y, text, *place)) + 0.2 * abs(place[1]))
        ax.annotate(
            text, (corner + scale * (x, y)).tolist(), textcoords="offset points", xytext=(right, up),
            ha="left" if right > 0 else "right" if right < 0 else "center", va="bottom" if up > 0 else "top",
            arrowprops={**leader, "relpos": (0.5 - right / 12, float(up < 0))} if abs(up) > _GAPS[0] else None,
            fontsize=_FONT, path_effects=halo, zorder=6,
            in_layout=False,
        )  # fmt: skip
        taken.append(_beside(x, y, text, right, up))
    if notes:
        rows = [row for note in notes for row in textwrap.wrap(note, max(12, int(0.65 * width / _CHAR_WIDTH)))]
        wide, high = max(map(len, rows)) * _CHAR_WIDTH + 8, len(rows) * _CHAR_HEIGHT + 8
        boxes = {(a, b): (a * (width - wide), b * (height - high)) for b in (1, 0) for a in (0, 1)}
        a, b = min(boxes, key=lambda key: cost((*boxes[key], boxes[key][0] + wide, boxes[key][1] + high)))
        ax.annotate(
            "\n".join(rows), (a, b), xycoords="axes fraction", textcoords="offset points", fontsize=_FONT,
            xytext=(5 - 10 * a, 5 - 10 * b), ha=("left", "right")[a], va=("bottom", "top")[b], zorder=6,
            in_layout=False,
            bbox={"facecolor": "white", "edgecolor": "0.7", "alpha": 0.85, "pad": 2.5},
        )  # fmt: skip


def _beads(corners: np.ndarray) -> np.ndarray:
    """Points of a polygon (t, 2), about 5 apart, so that a line counts by its length."""
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    at = np.concatenate([[0.0], np.cumsum(lengths)])
    wanted = np.linspace(0.0, at[-1], min(2000, int(at[-1] / 5) + 2))
    return np.stack([np.interp(wanted, at, column) for column in corners.T], axis=1)


def _lowest(plane: PlaneSlice, name: str) -> Label | None:
    """The lowest loss, of equals the one nearest to the center; None where all are equal, or none is finite."""
    losses = plane.losses.get(name)
    if losses is None or not bool(losses.isfinite().any()):
        return None
    value = plane.lowest(name)[2]
    i, j = np.nonzero((losses == value).numpy())
    if 1 < len(i) == int(losses.isfinite().sum()):
        return None
    alphas, betas = plane.alphas.numpy()[i], plane.betas.numpy()[j]
    nearest = int(np.argmin((alphas * float(plane.norms[0])) ** 2 + (betas * float(plane.norms[1])) ** 2))
    ties = f" (at {len(i)} points)" if len(i) > 1 else ""
    return float(alphas[nearest]), float(betas[nearest]), f"lowest loss {short(value, 3)}{ties}"


def _merged(symbols: Sequence[Label]) -> Iterator[Label]:
    """Names of points that coincide in the picture, joined."""
    left = list(symbols)
    while left:
        x, y, _ = left[0]
        together = [s for s in left if abs(s[0] - x) < _SAME and abs(s[1] - y) < _SAME]
        left = [s for s in left if s not in together]
        yield x, y, ", ".join(label for _, _, label in together)


def _beside(x: float, y: float, text: str, right: float, up: float) -> Box:
    """Where a name takes room, in points from the lower left corner of the Axes."""
    wide = len(text) * _CHAR_WIDTH
    start = x + right - (0.0 if right > 0 else wide if right < 0 else 0.5 * wide)
    bottom = y + up - (0.0 if up > 0 else _CHAR_HEIGHT)
    return start, bottom, start + wide, bottom + _CHAR_HEIGHT


def inside(plane: PlaneSlice, alpha: float, beta: float) -> bool:
    """Whether a point lies in the box."""
    spans = zip((alpha, beta), (plane.alphas, plane.betas), strict=True)
    return all(float(steps[0]) <= step <= float(steps[-1]) for step, steps in spans)


def _stroke(color: str, linewidth: float) -> withStroke:
    from matplotlib.patheffects import withStroke

    return withStroke(linewidth=linewidth, foreground=color)


COLORMAP = "viridis"  # ordered in brightness, also for the colour-blind; dark is low
_RIGHT_ANGLE = 1.0  # degrees from 90 that pass for it
_LINE = 13.0  # points of height of a number on a colour bar
_EXTREME = 3.0  # sides of a box in true proportions: beyond, the shorter one can't be read


def grids_of(plane: PlaneSlice, quantity: Quantity, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """By name: (num_alphas, num_betas) of the wanted losses, or accuracies in percent; an error for unknown names."""
    rows = rows_of(plane, quantity)
    wanted = list(rows) if names is None else list(names)
    for name in wanted:
        if name not in rows:
            expected = f"one of {list(rows)}"
            raise ValueError(
                argument_message("name", f"is {name!r}", expected, f"Name one that the plane has a {quantity} of.")
            )
    if not wanted:
        raise ValueError(argument_message("names", "is empty", f"some of {list(rows)}", "Leave it out for all."))
    return {name: rows[name].double().numpy() for name in wanted}


def colors_of(bands: Bands) -> ScalarMappable:
    """Value -> colour: one colour per band, evenly spaced however uneven the boundaries."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    num = len(bands.boundaries) - 1 + {"neither": 0, "both": 2}.get(bands.extend, 1)
    colors = colormaps[COLORMAP].resampled(num)
    return ScalarMappable(norm=BoundaryNorm(bands.boundaries, num, extend=bands.extend), cmap=colors)


def paint(ax: Axes, plane: PlaneSlice, grid: np.ndarray, bands: Bands) -> str:
    """Bands, thin lines between them, and hatching where a value is not finite; returns what that is."""
    from matplotlib.patches import Rectangle

    alphas, betas = plane.alphas.numpy(), plane.betas.numpy()
    known = np.isfinite(grid)
    colors = colors_of(bands)
    spans = _spans_area(known)
    if spans.any():
        # matplotlib wants rows to follow the vertical axis: (num_betas, num_alphas).
        heights = np.ma.masked_where(~known, np.where(known, grid, 0.0)).T
        ax.contourf(
            alphas, betas, heights, levels=bands.boundaries, cmap=colors.cmap, norm=colors.norm, extend=bands.extend
        )
        inner = [level for level in bands.boundaries if heights.min() < level < heights.max()]
        if inner:
            ax.contour(alphas, betas, heights, levels=inner, colors="white", linewidths=0.5, alpha=0.35, linestyles="-")
    alone = known & ~spans
    if alone.any():
        i, j = np.nonzero(alone)
        ax.scatter(alphas[i], betas[j], c=colors.to_rgba(grid[alone]), marker="s", s=14, zorder=2)
    ax.set_xlim(alphas[0], alphas[-1])
    ax.set_ylim(betas[0], betas[-1])
    if known.all():
        return ""
    corner, sides = (alphas[0], betas[0]), (alphas[-1] - alphas[0], betas[-1] - betas[0])
    ax.add_patch(Rectangle(corner, *sides, facecolor="0.88", edgecolor="0.55", hatch="///", linewidth=0, zorder=0.5))
    return f"hatched: NaN or inf, {missing(grid)}"


def missing(grid: np.ndarray) -> str:
    """How many values are not finite: "28 of 1,681 points"."""
    return f"{(~np.isfinite(grid)).sum():,} of {grid.size:,} points"


def flat_note(grid: np.ndarray) -> str:
    """What to say of a grid without contours, or "" of one that has some."""
    finite = grid[np.isfinite(grid)]
    if not len(finite):
        return "no finite value"
    if len(finite) == 1:
        return f"one finite value: {short(float(finite[0]), 6)}"
    return f"constant: {short(float(finite[0]), 6)}" if np.ptp(finite) <= 1e-13 * np.abs(finite).max() else ""


def frame(ax: Axes, plane: PlaneSlice) -> None:
    """Axis labels, and true proportions where they can be read."""
    norms = plane.norms.tolist()
    if has_true_proportions(plane):
        ax.set_aspect(norms[1] / norms[0])
    width, height = box_size(ax)
    ax.set_xlabel(step_label(plane.names[0], norms[0], width))
    ax.set_ylabel(step_label(plane.names[1], norms[1], height))


def proportion(plane: PlaneSlice) -> float:
    """Height of the box over its width, in distances of weight space."""
    sides = [
        float(norm * (steps[-1] - steps[0]))
        for norm, steps in zip(plane.norms, (plane.alphas, plane.betas), strict=True)
    ]
    return sides[1] / sides[0]


def has_true_proportions(plane: PlaneSlice) -> bool:
    """Whether a distance is drawn equally long in every direction."""
    return is_orthogonal(plane) and 1 / _EXTREME <= proportion(plane) <= _EXTREME


def is_orthogonal(plane: PlaneSlice) -> bool:
    """Whether the picture's right angle is one."""
    return abs(plane.angle - 90.0) <= _RIGHT_ANGLE


def skewed(plane: PlaneSlice) -> str:
    """What the picture of two directions does to their angle."""
    return f"directions {plane.angle:.3g}° apart, drawn at 90°"


def bar(axes: Sequence[Axes], bands: Bands, title: str) -> None:
    """One colour bar beside one or several Axes of a figure, as high as they are; none where nothing differs."""
    if bands.is_flat:
        return
    made = axes[0].figure.colorbar(colors_of(bands), ax=list(axes), ticks=bands.boundaries, spacing="uniform")
    every = max(1, math.ceil(len(bands.labels) * _LINE / max(box_size(ax)[1] for ax in axes)))
    made.ax.set_yticks(bands.boundaries, [text if i % every == 0 else "" for i, text in enumerate(bands.labels)])
    made.ax.minorticks_off()
    made.set_label(title)
    usual = made.ax.get_axes_locator()  # leaves room for the arrows of `extend`

    def beside(ax: Any, renderer: Any) -> Bbox:
        # In true proportions the boxes are lower than the room they were given.
        given, place = ax.get_position(original=True), usual(ax, renderer)
        boxes = [other.get_position() for other in axes]
        low, high = min(box.y0 for box in boxes), max(box.y1 for box in boxes)
        shares = [(y - given.y0) / given.height for y in (place.y0, place.y1)]
        y0, y1 = (low + share * (high - low) for share in shares)
        return Bbox.from_extents(place.x0, y0, place.x1, y1)

    from matplotlib.transforms import Bbox

    made.ax.set_axes_locator(beside)


def _spans_area(known: np.ndarray) -> np.ndarray:
    """Points (n, m) that are a corner of a painted triangle: three finite corners of one cell."""
    padded = np.pad(known, 1).astype(int)
    corners = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]  # of each cell, (n + 1, m + 1)
    painted = corners >= 3
    touched: np.ndarray = known & (painted[:-1, :-1] | painted[1:, :-1] | painted[:-1, 1:] | painted[1:, 1:])
    return touched
