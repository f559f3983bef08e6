"""Steps to learn staircases against their dimension, with the fitted laws, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lowhanging.errors import argument_message
from lowhanging.plots.style import axes, check_kind, color_of, label_log_axis, label_of, legend_above
from lowhanging.prior.staircases import StaircaseExponent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def staircases(exponents: Mapping[str, StaircaseExponent], ax: Axes | None = None) -> Axes:
    """A dot per seed and a line per law: solid d^a, dotted d^a log d. Censored seeds are arrows at their budget.

    Args:
        exponents: name -> what `lh.prior.staircase_exponent` returned, such as one of each leap.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError, TypeError: no exponent, or another kind of result.
    """
    remedy = 'Pass a mapping such as {"leap 1": exponent}.'
    if not isinstance(exponents, Mapping) or not exponents:
        raise ValueError(argument_message("exponents", f"is {exponents!r}", "names with their exponents", remedy))
    for found in exponents.values():
        check_kind("exponents", found, StaircaseExponent, remedy)
    ax = axes(ax)
    sizes = sorted({size for found in exponents.values() for size in found.dimensions.tolist()})
    for i, (name, found) in enumerate(exponents.items()):
        color, times = color_of(name, i), found.times.numpy()
        where = np.broadcast_to(found.dimensions.numpy()[:, None], times.shape)
        is_known = np.isfinite(times)
        ax.plot(where[is_known], times[is_known], "o", color=color, markersize=4, alpha=0.5)
        ax.plot(where[~is_known], np.full((~is_known).sum(), found.max_steps), "^", color=color, markersize=6, mfc="w")
        fine = np.geomspace(float(found.dimensions[0]), float(found.dimensions[-1]), 100)
        label = f"{label_of(name)}: {found.law.in_words()}"
        for law, style in ((found.law, "-"), (found.law_with_log, ":")):
            curve = np.exp(law.intercept + law.exponent * np.log(fine) + law.log_power * np.log(np.log(fine)))
            ax.plot(fine, curve, style, color=color, linewidth=1.6, label=label if style == "-" else None)
    ax.set(xscale="log", yscale="log", xlabel="dimension d", ylabel="steps to learn it (one dot per seed)")
    ax.set_xticks(sizes, labels=[str(size) for size in sizes])
    ax.set_xticks([], minor=True)
    legend_above(ax)
    label_log_axis(ax.yaxis)
    ax.grid(alpha=0.3)
    return ax
