"""What is drawn over the contours of a plane: points with their names beside them, trajectories, and notes.

A legend would hide a good part of a small panel, and one that lists "start" and "end" sends the reader back and forth.
So each name stands beside its point, on the side where it covers least, and points that coincide share one line.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowhanging.basin.planes import PlaneSlice
from lowhanging.basin.trajectories import PlaneTrajectory
from lowhanging.plots.levels import short
from lowhanging.plots.style import box_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patheffects import withStroke

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
