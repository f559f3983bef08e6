"""Animations: one frame per slice of a training run, all on one scale.

Were the scale chosen anew for each frame, a loss that falls would look like one that doesn't.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lowhanging.errors import argument_message, check_count, check_names, check_real
from lowhanging.landscape.planes import PlaneSlice
from lowhanging.landscape.slices import LineSlice
from lowhanging.plots.contours import Levels, bar, choose_bands, grids_of, has_true_proportions
from lowhanging.plots.planes import annotate, lay_down
from lowhanging.plots.slices import line_slice
from lowhanging.plots.style import Quantity, blank_figure, label_log_axis, legend_above, rows_of, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Painter: TypeAlias = "Callable[[int, Axes], None]"

_DPI = 100


def animation(
    slices: Sequence[LineSlice] | Sequence[PlaneSlice],
    *,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    quantity: Quantity = "loss",
    log: bool = False,
    levels: Levels = None,
    milliseconds: int = 500,
    width: float = 6.4,
    height: float = 4.8,
) -> bytes:
    """Slices one after the other, on one scale, as a GIF that repeats; no display and no video program is needed.

    Args:
        slices: all from `lh.line_slice` or all from `lh.plane_slice`, such as one around each checkpoint of a run.
        labels: one per frame, its title, e.g. "epoch 3"; by default "1 of 20" and so on.
        name: which loss; by default the first of planes, and all of lines.
        quantity: "loss", or "accuracy" in percent.
        log: of lines: a logarithmic axis for the losses.
        levels: of planes: as in `plots.plane_slice`, chosen over all frames.
        milliseconds: how long a frame stays; the last one stays three times as long.
        width: of the picture, in inches of 100 pixels.
        height: of the picture, in inches of 100 pixels.

    Returns:
        The GIF file as bytes: `Path("training.gif").write_bytes(animation(...))`.

    Raises:
        ValueError, TypeError: no slices, or of both kinds; another number of labels; a name that a slice does not have.
    """
    frames: list[Any] = list(slices)
    kinds = {type(frame) for frame in frames}
    if len(kinds) != 1 or not kinds <= {LineSlice, PlaneSlice}:
        received = f"hold {', '.join(sorted(kind.__name__ for kind in kinds)) or 'nothing'}"
        remedy = "Pass a list of what lh.line_slice, or lh.plane_slice, returned."
        raise TypeError(argument_message("slices", received, "LineSlices, or PlaneSlices", remedy))
    check_count("milliseconds", milliseconds, minimum=20, remedy="500 is half a second per frame.")
    for side, inches in (("width", width), ("height", height)):
        check_real(side, inches, minimum=2.0, maximum=40.0, remedy="It is in inches; 6.4 x 4.8 fits a notebook.")
    titles = [f"{i + 1} of {len(frames)}" for i in range(len(frames))]
    if labels is not None:
        titles = check_names("labels", labels, remedy="Leave it out for numbers.")
        if len(titles) != len(frames):
            received, expected = f"are {len(titles)}", f"{len(frames)}, one per slice"
            raise ValueError(argument_message("labels", received, expected, "Leave it out for numbers."))
    is_line = kinds == {LineSlice}
    paint = _lines(frames, name, quantity, log) if is_line else _planes(frames, name, quantity, levels)

    def titled(number: int, ax: Axes) -> None:
        paint(number, ax)
        ax.set_title(titles[number] if not ax.get_title() else f"{titles[number]}, {ax.get_title()}")

    return film(titled, len(titles), milliseconds=milliseconds, width=width, height=height)


def film(paint: Painter, num: int, *, milliseconds: int, width: float, height: float) -> bytes:
    """A GIF of `num` frames, frame i drawn by paint(i, ax); the last one stays three times as long."""
    pictures = []
    for number in range(num):
        figure = blank_figure(width, height, _DPI)
        paint(number, figure.subplots())
        pictures.append(_pixels(figure))
    return _gif(pictures, [milliseconds] * (num - 1) + [3 * milliseconds])


def _lines(frames: list[LineSlice], name: str | None, quantity: Quantity, log: bool) -> Painter:
    """Draws frame number i, with the limits of all frames."""
    every = [_only(frame, name, quantity) for frame in frames]
    values = np.concatenate([row.double().numpy() for frame in every for row in rows_of(frame, quantity).values()])
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.5, 1.0)
    first, last = min(float(frame.alphas[0]) for frame in every), max(float(frame.alphas[-1]) for frame in every)

    def paint(number: int, ax: Axes) -> None:
        line_slice(every[number], ax, quantity=quantity, log=log)
        ax.set_xlim(first, last)
        if quantity == "loss":
            room = max(high / low, 1.1) ** 0.04 if log else 0.04 * (high - low) or 1.0
            ax.set_ylim(*_widened(low, high, room, log))
            legend_above(ax)
        if log and quantity == "loss":
            label_log_axis(ax.yaxis)

    return paint


def _widened(low: float, high: float, room: float, log: bool) -> tuple[float, float]:
    """Limits a little beyond the values; from 0 where that doesn't flatten the curves."""
    if log:
        return low / room, high * room
    return 0.0 if 0.0 <= low < 0.5 * high else low - room, high + room


def _planes(frames: list[PlaneSlice], name: str | None, quantity: Quantity, levels: Levels) -> Painter:
    """Draws frame number i, in the bands and limits of all frames."""
    first = next(iter(grids_of(frames[0], quantity))) if name is None else name
    grids = [grids_of(frame, quantity, [first])[first] for frame in frames]
    bands = choose_bands(grids, levels)
    spans = [
        (min(float(steps[0]) for steps in every), max(float(steps[-1]) for steps in every))
        for every in ([frame.alphas for frame in frames], [frame.betas for frame in frames])
    ]

    def paint(number: int, ax: Axes) -> None:
        note = lay_down(ax, frames[number], f"{quantity}: {first}", grids[number], bands)
        bar([ax], bands, bands.title(unit_of(quantity)))
        ax.set_xlim(*spans[0])
        ax.set_ylim(*spans[1])
        if not all(map(has_true_proportions, frames)):
            ax.set_aspect("auto")  # in none, then
        annotate(ax, frames[number], first, [note])

    return paint


def _only(scan: LineSlice, name: str | None, quantity: Quantity) -> LineSlice:
    """A line slice with one of its losses, or with all."""
    rows = rows_of(scan, quantity)
    if name is None:
        return scan
    if name not in rows:
        raise ValueError(argument_message("name", f"is {name!r}", f"one of {list(rows)}", "Leave it out for all."))
    losses, accuracies = ({name: every[name]} if name in every else {} for every in (scan.losses, scan.accuracies))
    return replace(scan, losses=losses, accuracies=accuracies)


def _pixels(figure: Figure) -> np.ndarray:
    """(height, width) colours of a figure as numbers, 65536 red + 256 green + blue."""
    figure.canvas.draw()
    # The canvas of `blank_figure`: Agg.
    rgba = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    codes: np.ndarray = rgba[..., :3].astype(np.int64) @ (65536, 256, 1)
    return codes


def _gif(pictures: list[np.ndarray], milliseconds: list[int]) -> bytes:
    """GIF has 256 colours: here the same in every frame, or one colour would not be one value."""
    from PIL import Image
    from scipy.spatial import cKDTree

    palette = _palette(pictures)
    tree, frames = cKDTree(palette), []
    for picture in pictures:
        codes, places = np.unique(picture, return_inverse=True)
        nearest = tree.query(_rgb(codes))[1].astype(np.uint8)
        frames.append(Image.fromarray(nearest[places.reshape(picture.shape)], mode="P"))
        frames[-1].putpalette(palette.tobytes())
    stream = io.BytesIO()
    frames[0].save(
        stream, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, optimize=False
    )
    return stream.getvalue()


def _palette(pictures: list[np.ndarray]) -> np.ndarray:
    """(256, 3) uint8: the 128 most frequent colours as they are, and 128 by Pillow, which would turn white into 252."""
    from PIL import Image

    codes, counts = np.unique(np.stack(pictures), return_counts=True)
    colors = _rgb(codes[np.argsort(-counts, kind="stable")])
    rest = colors[128:]
    if len(rest) > 128:
        few = Image.fromarray(rest[None]).quantize(128, dither=Image.Dither.NONE).convert("RGB")
        rest = np.unique(np.asarray(few)[0], axis=0)
    every = np.concatenate([colors[:128], rest])
    return np.concatenate([every, np.repeat(every[:1], 256 - len(every), axis=0)])


def _rgb(codes: np.ndarray) -> np.ndarray:
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)
