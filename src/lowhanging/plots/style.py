"""Colours, axes, labels and legends that all plots share, and several drawings in one picture file.

A named loss has one colour in every picture, and what a step on an axis means is written on it: without the norm of
the direction a step says nothing.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lowhanging.errors import a_type, argument_message, check_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Quantity = Literal["loss", "accuracy"]
Color: TypeAlias = "str | Mapping[str, str] | None"
Drawing: TypeAlias = "Callable[[Axes], object]"

# The names of the shipped tasks; colours that differ in brightness too (Okabe & Ito 2008).
_COLORS = {"mixed": "#000000", "number": "#0072B2", "pattern": "#D55E00"}
_OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
_LETTER = 5.6  # points of width of a character of an axis label


def panels(drawings: Sequence[Sequence[Drawing]], *, width: float = 11.0, height: float = 4.0) -> Figure:
    """Several drawings in rows and columns as one figure; needs no display, and touches no global figure or style.

    Args:
        drawings: rows of functions that draw on an Axes, such as `lambda ax: plots.line_slice(scan, ax)`.
        width: of the picture, in inches.
        height: of the picture, in inches.

    Returns:
        The matplotlib Figure, which a notebook shows: `panels(...).savefig("scan.png")`.
    """
    figure = blank_figure(width, height, dpi=130)
    axes = figure.subplots(len(drawings), len(drawings[0]), squeeze=False)
    for row, functions in zip(axes, drawings, strict=True):
        for ax, draw in zip(row, functions, strict=True):
            draw(ax)
    return figure


def color_of(name: str, position: int, color: Color = None) -> str:
    """The colour of a named loss: as given, of its name, or chosen by `position`."""
    given = color.get(name) if isinstance(color, Mapping) else color
    if given is not None:
        from matplotlib.colors import is_color_like

        if not is_color_like(given):
            remedy = 'Such as "black", "#0072B2" or "C1"; or name -> colour.'
            raise ValueError(argument_message("color", f"is {given!r}", "a matplotlib colour", remedy))
        return given
    return _COLORS.get(name, _OTHERS[position % len(_OTHERS)])


def label_of(name: str) -> str:
    """A name as a label: matplotlib leaves those that begin with "_" out of legends."""
    return f" {name}" if name.startswith("_") else name


def check_kind(argument: str, value: Any, kind: type, remedy: str) -> None:
    """An error if `value` is not the kind of result that a plot draws."""
    if not isinstance(value, kind):
        raise TypeError(argument_message(argument, f"is {a_type(value)}", f"a {kind.__name__}", remedy))


def check_log(log: bool, rows: Iterable[Any]) -> None:
    """An error where a logarithmic axis would have nothing to show."""
    if log and not any(bool((row > 0).any()) for row in rows):
        received = "is True, and no loss is positive"
        raise ValueError(argument_message("log", received, "losses that have a logarithm", "Pass log=False."))


def rows_of(result: Any, quantity: Quantity) -> dict[str, Any]:
    """By name: losses, or accuracies in percent, or an error if there are none."""
    check_choice("quantity", quantity, ("loss", "accuracy"))
    rows = result.losses if quantity == "loss" else {name: 100 * row for name, row in result.accuracies.items()}
    if not rows:
        received = f"is 'accuracy' for {a_type(result)} without class targets"
        raise ValueError(argument_message("quantity", received, "'loss'", 'Pass quantity="loss".'))
    return dict(rows)


def axes(ax: Axes | None) -> Axes:
    """The given Axes, or those of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def blank_figure(width: float, height: float, dpi: float) -> Figure:
    """A figure, in inches, that can be drawn without a display and that no global list knows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def unit_of(quantity: Quantity) -> str:
    """What an axis of losses or accuracies is called."""
    return "mean loss" if quantity == "loss" else "accuracy (%)"


def step_label(name: str, norm: float, room: float = 1e9) -> str:
    """What a step on an axis is: "step along steering direction (‖Δθ‖ = 1)", in lines of at most `room` points."""
    along = "the direction" if name == "direction" else name
    size = f"(‖Δθ‖ = {norm:.3g})".replace(" ", "\u00a0")  # not torn apart
    return "\n".join(textwrap.wrap(f"step along {along} {size}", max(20, int(room / _LETTER)))).replace("\u00a0", " ")


def box_size(ax: Axes) -> tuple[float, float]:
    """Width and height of an Axes in points, before a layout that is computed when the figure is drawn."""
    scale = 72.0 / ax.figure.dpi
    return scale * ax.bbox.width, scale * ax.bbox.height


def value_axis(
    ax: Axes, label: str, *, log: bool = False, is_percent: bool = False, entries: Sequence[Any] | None = None
) -> None:
    """The vertical axis of curves (from 0 unless that would crowd them at the top), the grid, and a legend above."""
    ax.set_ylabel(label)
    ax.autoscale(axis="y")
    if is_percent:
        ax.set_ylim(-2, 100)  # a curve at 0 can be seen
        ax.set_yticks(range(0, 101, 20))
    elif log:
        ax.set_yscale("log")
    elif 0.0 <= ax.dataLim.y0 < 0.5 * ax.dataLim.y1:
        ax.set_ylim(bottom=0.0)
    ax.grid(alpha=0.3)
    legend_above(ax, entries, ceiling=102 if is_percent else None)
    if log:
        label_log_axis(ax.yaxis)


def legend_above(ax: Axes, entries: Sequence[Any] | None = None, ceiling: float | None = None) -> None:
    """A legend in rows at the top of the box, with its own room above the curves, so that it never covers one.

    `entries` default to what has a label; `ceiling` is the value above which there is nothing to see.
    """
    found = list(ax.get_legend_handles_labels()[0] if entries is None else entries)
    width, height = box_size(ax)
    columns = min(len(found), max(1, int(width / (4.8 * max(len(entry.get_label()) for entry in found) + 36))))
    share = min(0.5, (15.0 * math.ceil(len(found) / columns) + 6.0) / height)
    low, high = ax.get_ylim()
    high = high if ceiling is None else ceiling
    is_log = ax.get_yscale() == "log"
    ax.set_ylim(low, low * (high / low) ** (1 / (1 - share)) if is_log else low + (high - low) / (1 - share))
    ax.legend(handles=found, loc="upper center", ncols=columns, edgecolor="none", fontsize="small", borderaxespad=0.2)


def label_log_axis(axis: Axis) -> None:
    """Readable numbers on a logarithmic axis, after its limits are final: 0.02, 0.05, 0.1 rather than 2 x 10^-2."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    axis.set_minor_formatter(NullFormatter())
    if not 0.0 < low < high < 1e4 * low:
        return  # powers of ten suffice
    axis.set_major_formatter("{x:g}")
    if high < 8 * low:
        axis.set_major_locator(AutoLocator())
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 2e3 * low else (1,)))
