"""Eigenvalues of the Hessian: the largest, the density of all, and how many matter.

Axes are logarithmic: most eigenvalues of a network are close to 0, and those that matter are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowhanging.curvature.dimension import EffectiveDimension
from lowhanging.curvature.eigenpairs import Eigenpairs
from lowhanging.curvature.spectrum import SpectralDensity
from lowhanging.errors import a_type, argument_message, check_names
from lowhanging.plots.style import Color, axes, check_kind, color_of, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def spectra(
    pairs: Mapping[str, Eigenpairs],
    ax: Axes | None = None,
    *,
    thresholds: Sequence[float] = (),
    color: Color = None,
) -> Axes:
    """Eigenvalues against their number, one curve per loss; eigenvalues that are not positive are left out.

    Args:
        pairs: name -> top eigenpairs.
        ax: where to draw; None makes a figure.
        thresholds: levels drawn as thin lines, such as those of an effective dimension.
        color: one for all, or name -> colour.
    """
    _check_named("pairs", pairs, Eigenpairs, remedy='Pass a mapping such as {"train": pairs}.')
    from matplotlib.ticker import MaxNLocator

    ax = axes(ax)
    for position, (name, found) in enumerate(pairs.items()):
        values = found.values.double()
        drawn = torch.where(values > 0, values, torch.nan).numpy()
        label = f"{name} (largest {float(values[0]):.3g})"
        ax.semilogy(
            range(1, len(values) + 1), drawn, ".-", color=color_of(name, position, color), label=label, linewidth=1.2
        )
    low, high = ax.get_ylim()
    for level in thresholds:
        if low < level < high:
            ax.axhline(level, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            place: Any = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
            ax.annotate(f"{level:g}", (1.0, level), color="0.4", **place)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="number of the eigenvalue", ylabel="eigenvalue of the Hessian (loss per ‖Δθ‖²)")
    ax.grid(alpha=0.3)
    ax.legend(title="loss")
    return ax


def spectral_density(densities: Mapping[str, SpectralDensity], ax: Axes | None = None, *, log: bool = True) -> Axes:
    """Density of all eigenvalues, one curve per loss with a band of two standard errors; known eigenvalues as stems.

    A stem is as high as one eigenvalue is when smoothed as the curve is, so that both can be read on one scale. With
    `log` both axes are logarithmic, the horizontal one linear around 0 (between the two ticks next to 0): most
    eigenvalues of a network are close to 0, and those that matter are not.

    Args:
        densities: name -> what `lh.spectral_density` returned.
        ax: where to draw; None makes a figure.
        log: False for linear axes.
    """
    _check_named("densities", densities, SpectralDensity, remedy='Pass a mapping such as {"train": density}.')
    ax = axes(ax)
    if log:
        ax.set_yscale("log")
        widest = max(found.width for found in densities.values())
        ax.set_xscale("symlog", linthresh=10.0 ** math.ceil(math.log10(5 * widest)), linscale=0.7)
    lowest, highest = math.inf, 0.0
    for position, (name, found) in enumerate(densities.items()):
        color, single = color_of(name, position), 1 / (found.num_params * found.width * math.sqrt(2 * math.pi))
        lowest, highest = min(lowest, single / 3), max(highest, single, float(found.density.max()))
        grid, density, error = found.grid.numpy(), found.density.numpy(), found.standard_error.numpy()
        low, high = density - 2 * error, density + 2 * error
        bottom = single / 1e3 if log else 0.0
        ax.fill_between(grid, low.clip(bottom), high.clip(bottom), color=color, alpha=0.25, linewidth=0)
        label = f"{name} ({found.num_bulk:,} eigenvalues, smoothed by {found.width:.2g})"
        ax.plot(grid, density.clip(bottom), color=color, linewidth=1.6, label=label)
        if len(found.spikes):
            spikes, count = found.spikes.numpy(), len(found.spikes)
            ax.vlines(spikes, bottom, single, color=color, linewidth=1.0)
            stems = f"{name} ({count} eigenvalue{'' if count == 1 else 's'}, one by one)"
            ax.plot(spikes, [single] * count, "o", color=color, markersize=3.5, label=stems)
    ax.set_ylim(*((lowest, 2 * highest) if log else (0.0, 1.05 * highest)))
    ax.set(xlabel="eigenvalue of the Hessian (loss per ‖Δθ‖²)", ylabel="share of all eigenvalues per unit")
    ax.grid(alpha=0.3)
    legend_above(ax)
    return ax


def effective_dimension(dimensions: Mapping[str, EffectiveDimension], ax: Axes | None = None) -> Axes:
    """Number of eigenvalues above a threshold, against the threshold; dashed, degrees of freedom against gamma.

    The band is two standard errors and the numerical error around the count. Where a count is a lower bound (fewer
    eigenvalues are known than there are) the curve is dotted.

    Args:
        dimensions: name -> what `lh.effective_dimension` returned; with thresholds such as torch.logspace(-3, 1, 40).
        ax: where to draw; None makes a figure.
    """
    _check_named("dimensions", dimensions, EffectiveDimension, remedy='Pass a mapping such as {"train": dimension}.')
    from matplotlib.lines import Line2D

    ax = axes(ax)
    for position, (name, found) in enumerate(dimensions.items()):
        color = color_of(name, position)
        order = found.thresholds.argsort()
        levels, counts = found.thresholds[order].numpy(), found.counts[order].numpy()
        slack = (2 * found.count_standard_errors + found.count_numerical_errors)[order].numpy()
        known = ~found.count_is_bound[order].numpy()
        ax.fill_between(levels, counts - slack, counts + slack, color=color, alpha=0.2, linewidth=0)
        label = f"{name} (participation ratio {found.ratio_in_words})"
        ax.plot(levels, np.where(known, counts, np.nan), color=color, linewidth=1.8, label=label)
        if not known.all():
            ax.plot(levels, np.where(known, np.nan, counts), ":", color=color, linewidth=1.8)
        order = found.gammas.argsort()
        ax.plot(found.gammas[order], found.degrees_of_freedom[order], "--", color=color, linewidth=1.2)
    entries = [*ax.get_legend_handles_labels()[0], Line2D([], [], color="0.3", label="number above the threshold")]
    entries.append(Line2D([], [], color="0.3", linestyle="--", linewidth=1.2, label="degrees of freedom at gamma"))
    if any(bool(found.count_is_bound.any()) for found in dimensions.values()):
        entries.append(Line2D([], [], color="0.3", linestyle=":", label="at least so many above it"))
    ax.set_xscale("log")
    ax.set_yscale("log")
    highest = max(max(float(each.counts.max()), float(each.degrees_of_freedom.max())) for each in dimensions.values())
    ax.set_ylim(0.7, 1.5 * max(highest, 1.0))
    ax.set(xlabel="threshold or gamma, an eigenvalue of the Hessian (loss per ‖Δθ‖²)", ylabel="effective dimension")
    ax.grid(alpha=0.3)
    legend_above(ax, entries)
    return ax


def _check_named(argument: str, results: Any, kind: type, *, remedy: str) -> None:
    """An error where `results` is no mapping name -> result; a bare result is iterable, and would be taken apart."""
    if not isinstance(results, Mapping):
        expected = f"a mapping name -> {kind.__name__}"
        raise TypeError(argument_message(argument, f"is {a_type(results)}", expected, remedy))
    for name in check_names(argument, results, remedy=remedy):
        check_kind(f"{argument}[{name!r}]", results[name], kind, remedy)
