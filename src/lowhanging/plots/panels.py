"""How do several drawings become one picture file?"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from lowhanging.plots.style import blank_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Drawing: TypeAlias = "Callable[[Axes], object]"


def panels(drawings: Sequence[Sequence[Drawing]], *, width: float = 11.0, height: float = 4.0) -> bytes:
    """Several drawings in rows and columns as one PNG; works without a display, and touches no global figure or style.

    Args:
        drawings: rows of functions that draw on an Axes, such as `lambda ax: plots.line_slice(scan, ax)`.
        width: of the picture, in inches.
        height: of the picture, in inches.

    Returns:
        The PNG file as bytes: `Path("scan.png").write_bytes(panels(...))`.
    """
    figure = blank_figure(width, height, dpi=130)
    axes = figure.subplots(len(drawings), len(drawings[0]), squeeze=False)
    for row, functions in zip(axes, drawings, strict=True):
        for ax, draw in zip(row, functions, strict=True):
            draw(ax)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
