"""Slices one after the other as an animated GIF.

All frames have one scale: were it chosen anew for each frame, a loss that falls would look like one that doesn't.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lowhanging.errors import argument_message, check_choice, check_count, check_names, check_real
from lowhanging.landscape.planes import PlaneSlice
from lowhanging.landscape.slices import LineSlice
from lowhanging.plots import contours
from lowhanging.plots.contours import Levels, choose_bands, has_true_proportions, legend, points
from lowhanging.plots.slices import line_slice
from lowhanging.plots.style import Quantity, blank_figure, label_log_axis, rows_of, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Painter: TypeAlias = "Callable[[int, Axes], None]"

_DPI = 100


@dataclass(frozen=True)
class Animation:
    """A GIF that a notebook shows.

    Attributes:
        data: the file's bytes.
        num_frames: pictures in it.
    """

    data: bytes
    num_frames: int

    def save(self, path: str | Path) -> Path:
        """Write the file, in a folder that is made if missing; the path written."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.data)
        return target

    def __repr__(self) -> str:
        return f"Animation({self.num_frames} frames, {len(self.data) / 1e3:.0f} kB; .save('name.gif') writes it)"

    def _repr_html_(self) -> str:
        return f'<img alt="animation" src="data:image/gif;base64,{base64.b64encode(self.data).decode()}">'


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
) -> Animation:
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
        Animation, which a notebook shows; `.save("training.gif")` writes it.

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
    paint = _lines(frames, name, quantity, log) if kinds == {LineSlice} else _planes(frames, name, quantity, levels)

    def titled(number: int, ax: Axes) -> None:
        paint(number, ax)
        ax.set_title(", ".join(filter(None, [titles[number], ax.get_title()])))

    return film(titled, len(titles), milliseconds=milliseconds, width=width, height=height)


def film(paint: Painter, num: int, *, milliseconds: int, width: float, height: float) -> Animation:
    """A GIF of `num` frames with the same limits, number i drawn by paint(i, ax); the last stays three times longer."""
    from PIL import Image

    boxes: list[Axes] = [blank_figure(width, height, _DPI).subplots() for _ in range(num)]
    for number, ax in enumerate(boxes):
        paint(number, ax)
    x = [limit for ax in boxes for limit in ax.get_xlim()]
    y = [limit for ax in boxes for limit in ax.get_ylim()]
    pictures = []
    for ax in boxes:
        ax.set(xlim=(min(x), max(x)), ylim=(min(y), max(y)))
        if ax.get_yscale() == "log":
            label_log_axis(ax.yaxis)
        canvas: Any = ax.figure.canvas  # Agg, of `blank_figure`
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3])
    # GIF has 256 colours: chosen for all frames together, or one colour would not be one value.
    every = Image.fromarray(np.concatenate(pictures)).quantize(256, dither=Image.Dither.NONE)
    rows = every.height // num
    first, *others = [every.crop((0, i * rows, every.width, (i + 1) * rows)) for i in range(num)]
    durations, stream = [milliseconds] * (num - 1) + [3 * milliseconds], io.BytesIO()
    first.save(stream, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=False)
    return Animation(stream.getvalue(), num)


def _lines(frames: list[LineSlice], name: str | None, quantity: Quantity, log: bool) -> Painter:
    """Draws one loss, or all, of frame number i."""
    if name is not None:
        for frame in frames:
            check_choice("name", name, list(rows_of(frame, quantity)), remedy="Leave it out for all.")
        kept = [{n: row for n, row in frame.accuracies.items() if n == name} for frame in frames]
        frames = [replace(f, losses={name: f.losses[name]}, accuracies=a) for f, a in zip(frames, kept, strict=True)]

    def paint(number: int, ax: Axes) -> None:
        line_slice(frames[number], ax, quantity=quantity, log=log)

    return paint


def _planes(frames: list[PlaneSlice], name: str | None, quantity: Quantity, levels: Levels) -> Painter:
    """Draws frame number i, in the bands of all frames."""
    name = contours.first_grid(frames[0], quantity, name)[0]
    grids = [contours.grids_of(frame, quantity, [name])[name] for frame in frames]
    bands = choose_bands(grids, levels)
    is_true = all(map(has_true_proportions, frames))

    def paint(number: int, ax: Axes) -> None:
        hatched = contours.paint(ax, frames[number], f"{quantity}: {name}", grids[number], bands)
        contours.bar(ax, bands, bands.title(unit_of(quantity)))
        if not is_true:
            ax.set_aspect("auto")
        legend(ax, [*points(ax, frames[number], name), *hatched])

    return paint
