"""How do the branches of a basin spread out in weight space?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowhanging.basin.canyon_paths import CanyonPath
from lowhanging.errors import explain
from lowhanging.plots.branches import (
    SIGNED,
    Array,
    Cues,
    branches_of,
    certificate_keys,
    colors_of,
    event_keys,
    label_of_quantity,
    line,
    mark,
    stretches,
    values_of,
)
from lowhanging.plots.overlays import write
from lowhanging.plots.style import axes, label_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

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
        raise ValueError(explain("paths", received, "paths of one loss", remedy))
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
