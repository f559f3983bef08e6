"""What does the network see?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowhanging.datasets import PairedMNIST
from lowhanging.plots.style import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def paired_images(views: PairedMNIST, ax: Axes | None = None, *, num: int = 10) -> Axes:
    """The first test images in four rows: mixed, number-only, pattern-only, and conflicting cues.

    Args:
        views: what `paired_mnist` returned.
        ax: where to draw; None makes a figure.
        num: images per row.

    Returns:
        The Axes. It is neither shown nor saved.
    """
    ax = axes(ax)
    sources: dict[str, Any] = {
        "mixed": views.mixed.test,
        "number": views.number.test,
        "pattern": views.pattern.test,
        "conflict": views.conflict,
    }
    # White gaps, for black, grey and white all occur in the images: (rows, num, 32, 32) -> (rows * 32, num * 32).
    tiles = torch.stack(
        [torch.nn.functional.pad(source.inputs[:num, 0], (2, 2, 2, 2), value=1.0) for source in sources.values()]
    )
    canvas = tiles.permute(0, 2, 1, 3).reshape(len(sources) * 32, -1)
    ax.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_yticks([16 + 32 * row for row in range(len(sources))], list(sources))
    ax.set_xticks(
        [16 + 32 * column for column in range(tiles.shape[1])], [str(int(t)) for t in views.mixed.test.targets[:num]]
    )
    ax.set_xlabel("label of number and pattern (conflict: of the number only);\na single cue is as dim as in the blend")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax
