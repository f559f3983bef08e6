"""What do the pictures share? One colour per loss name, so that a reader meets the same loss in the same colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The names of the shipped tasks; colours that differ in brightness too (Okabe & Ito 2008).
_COLORS = {"mixed": "#000000", "number": "#0072B2", "pattern": "#D55E00"}
_OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")


def color_of(name: str, position: int) -> str:
    """The colour of a named loss; `position` chooses for names that have none."""
    return _COLORS.get(name, _OTHERS[position % len(_OTHERS)])


def axes(ax: Axes | None) -> Axes:
    """The given Axes, or those of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]
