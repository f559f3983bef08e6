"""How fast do the top eigenvalues of several losses fall?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from lowhanging.basin.eigenpairs import Eigenpairs
from lowhanging.errors import check_names
from lowhanging.plots.style import axes, color_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def spectra(
    pairs: Mapping[str, Eigenpairs], ax: Axes | None = None, *, thresholds: tuple[float, ...] = (0.1, 1.0, 10.0)
) -> Axes:
    """Eigenvalues against their number, one curve per loss; eigenvalues that are not positive are left out.

    Args:
        pairs: name -> top eigenpairs.
        ax: where to draw; None makes a figure.
        thresholds: levels drawn as thin lines, those of the effective dimension.

    Returns:
        The Axes. It is neither shown nor saved.
    """
    check_names("pairs", pairs, remedy='Pass a mapping such as {"mixed": pairs}.')
    ax = axes(ax)
    for position, (name, found) in enumerate(pairs.items()):
        values = found.values.double()
        drawn = torch.where(values > 0, values, torch.nan).numpy()
        label = f"{name} (largest {float(values[0]):.3g})"
        ax.semilogy(range(1, len(values) + 1), drawn, ".-", color=color_of(name, position), label=label, linewidth=1.2)
    low, high = ax.get_ylim()
    for level in thresholds:
        if low < level < high:
            ax.axhline(level, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            ax.annotate(
                f"{level:g}", (1.0, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.4"
            )
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("number of the eigenvalue")
    ax.set_ylabel("eigenvalue of the Hessian (loss per ‖Δθ‖²)")
    ax.grid(alpha=0.3)
    ax.legend(title="loss")
    return ax
