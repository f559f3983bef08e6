"""Births of circuits, their pairing and survival, ablations, and the times that rules take to be learned."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lowhanging.circuits.ablation import CircuitAblation
from lowhanging.circuits.births import Births
from lowhanging.circuits.intensity import BirthIntensity
from lowhanging.circuits.learning_times import Competences, LearningTimes
from lowhanging.circuits.survival import Survival
from lowhanging.plots.style import axes, check_kind, color_of, label_log_axis, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BORN, _DEAD = "#0072B2", "#D55E00"
_MARKERS = "osD^v"


def births(births: Births, ax: Axes | None = None) -> Axes:
    """A row per seed, a dot per circuit formed, a cross where one was lost; seeds in the order of their first birth.

    Births of one seed at the same step stand one above the other within its row.
    """
    check_kind("births", births, Births, "Pass what lh.circuits.births returned.")
    from matplotlib.ticker import MaxNLocator

    ax = axes(ax)
    order = births.step.min(1).values.argsort(stable=True)
    for marker, color, label, times in (("o", _BORN, "formed", births.step), ("x", _DEAD, "lost", births.death)):
        steps = times[order].numpy()
        seeds, circuits = np.nonzero(np.isfinite(steps))
        found = list(zip(seeds.tolist(), steps[seeds, circuits].tolist(), strict=True))
        # Ties stand one above the other: a pair is what one looks for.
        heights = [
            seed + 1 + 0.45 * (found[:i].count((seed, step)) - (found.count((seed, step)) - 1) / 2)
            for i, (seed, step) in enumerate(found)
        ]
        look: dict[str, Any] = {"marker": marker, "s": 16, "color": color, "linewidths": 1.0}
        ax.scatter(steps[seeds, circuits], heights, label=f"circuit {label} ({len(found)})", **look)
    ax.set_xlim(float(births.steps[0]), float(births.steps[-1]))
    ax.set_ylim(0, len(order) + 1)
    ax.set(xlabel="step", ylabel="number of the seed, by its first birth")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="x", alpha=0.3)
    legend_above(ax)
    return ax


def birth_intensity(intensity: BirthIntensity, ax: Axes | None = None) -> Axes:
    """Gaps between births of one seed against those after shuffling: following births per birth and step, by lag."""
    check_kind("intensity", intensity, BirthIntensity, "Pass what lh.circuits.birth_intensity returned.")
    ax = axes(ax)
    edges = np.concatenate([intensity.lags[:, 0].numpy(), intensity.lags[-1:, 1].numpy()])
    null = intensity.null_rate.numpy()
    ax.stairs(intensity.rate.numpy(), edges, color=_BORN, linewidth=2.0, label="observed, 95 % interval")
    ax.stairs(null, edges, color="0.3", linewidth=1.5, linestyle="--", label="births shuffled across seeds")
    middle = intensity.lags.mean(1).numpy()
    low, high = (intensity.interval * intensity.null_rate[:, None]).T.numpy()
    ax.vlines(middle, low, high, color=_BORN, linewidth=1.2)
    ax.set_ylim(bottom=0.0)
    ax.set(xlabel="steps since another birth in the same seed", ylabel="births per birth and step")
    ax.grid(alpha=0.3)
    ax.legend(loc="best")
    return ax


def survival(survival: Survival | Mapping[str, Survival], ax: Axes | None = None) -> Axes:
    """Share of formed circuits that still stand, against steps since their birth, with pointwise 95 % intervals.

    The axis begins below the lowest interval that half of the circuits are still watched for, not at 0: most circuits
    stay, and a curve along the upper edge would show nothing.

    Args:
        survival: what `lh.circuits.survival` returned, or several of them by name.
        ax: where to draw; None makes a figure.
    """
    curves = dict(survival) if isinstance(survival, Mapping) else {"": survival}
    for each in curves.values():
        check_kind("survival", each, Survival, "Pass what lh.circuits.survival returned.")
    ax = axes(ax)
    bottom = 1.0
    for (name, each), color in zip(curves.items(), itertools.cycle((_BORN, _DEAD, "#009E73", "#CC79A7"))):
        age, low, high = each.age.numpy(), *(100 * each.interval.T.numpy())
        label = f"{name}, {int(each.deaths.sum())} of {each.num_circuits} lost" if name else None
        ax.fill_between(age, low, high, step="post", color=color, alpha=0.2, linewidth=0)
        ax.step(age, 100 * each.share.numpy(), where="post", color=color, linewidth=1.8, label=label)
        is_known = 2 * each.at_risk.numpy() >= each.num_circuits
        bottom = min(bottom, float(low[is_known].min()) / 100, float(each.share.min()))
    ax.set_ylim(max(0.0, 10 * np.floor(10 * bottom) - 2), 101)
    ax.set(xlabel="steps since birth", ylabel="circuits still there (%)")
    ax.grid(alpha=0.3)
    if any(curves):
        legend_above(ax)
    low, high = ax.get_ylim()
    ax.set_yticks([tick for tick in ax.get_yticks() if low <= tick <= 100])
    return ax


def circuit_ablation(ablation: CircuitAblation, ax: Axes | None = None) -> Axes:
    """Loss against the number of circuits kept: a dot for every subset, a line through the means."""
    check_kind("ablation", ablation, CircuitAblation, "Pass what lh.circuits.ablate_circuits returned.")
    ax = axes(ax)
    from matplotlib.ticker import MaxNLocator

    means = ablation.mean_losses.numpy()
    ax.plot(ablation.kept.sum(1).numpy(), ablation.losses.numpy(), "o", color=_BORN, alpha=0.45, label="each subset")
    ax.plot(range(len(means)), means, "-", color="0.2", linewidth=1.6, label="mean over subsets")
    ax.set_ylim(bottom=0.0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel=f"circuits kept, of {len(ablation.circuits)}", ylabel="mean loss (nats)")
    ax.grid(alpha=0.3)
    ax.legend(loc="best")
    return ax


def learning_times(times: LearningTimes, ax: Axes | None = None, *, size: str = "parameters n of the rule") -> Axes:
    """A line per rule through the median steps at each size, with 95 % intervals, on a logarithmic axis.

    An interval that ends in an arrow has no upper end: too many seeds had not learned the rule within the budget. A
    rule whose median is infinite stands hollow at the budget, a lower bound.

    Args:
        times: an `lh.circuits.LearningTimes`, steps by rule, size and seed.
        ax: where to draw; None makes a figure.
        size: what the sizes are, for the axis.
    """
    check_kind("times", times, LearningTimes, "Pass an lh.circuits.LearningTimes.")
    ax = axes(ax)
    sizes = times.sizes.numpy()
    step = float(np.diff(sizes).min()) if len(sizes) > 1 else 1.0
    shift = 0.06 * step  # side by side, so that intervals do not cover each other
    for i, name in enumerate(times.times):
        median, budget = times.median(name).numpy(), times.budgets[name].numpy()
        low, high = times.interval(name).T.numpy()
        where = sizes + shift * (i - (len(times.times) - 1) / 2)
        is_known = np.isfinite(median)
        middle = np.where(is_known, median, budget)
        color = color_of(name, i)
        ends = np.where(np.isfinite(high), high, budget)
        ax.vlines(where, np.minimum(np.maximum(low, 1.0), middle), ends, color=color, linewidth=1.3)
        is_open = ~np.isfinite(high)
        ax.plot(where[is_open], ends[is_open], marker="^", color=color, linestyle="none", markersize=5)
        ax.plot(where, middle, color=color, linewidth=1.6, marker=_MARKERS[i % len(_MARKERS)], markersize=5, label=name)
        ax.plot(where[~is_known], middle[~is_known], "o", color=color, markersize=8, mfc="white")
    ax.set_yscale("log")
    ax.set_xticks(sizes)
    ax.set(xlabel=size, ylabel="steps to learn it (median over seeds)")
    legend_above(ax)
    label_log_axis(ax.yaxis)
    ax.grid(alpha=0.3)
    return ax


def competences(found: Competences, ax: Axes | None = None) -> Axes:
    """Progress of each ability over training: the median over seeds, a thin line per seed, a dot at half of the way."""
    check_kind("found", found, Competences, "Pass an lh.circuits.Competences.")
    ax = axes(ax)
    times = found.times.numpy()
    for i, (name, rows) in enumerate(found.progress.items()):
        color, shares = color_of(name, i), 100 * rows.numpy()
        middle = np.median(shares, axis=0)
        if len(shares) > 1:
            ax.plot(times, shares.T, color=color, linewidth=0.6, alpha=0.4)
        half = float(found.crossing(name, 0.5).median())
        label = f"{name}, half at {found.unit} {half:.3g}" if np.isfinite(half) else f"{name}, half not reached"
        ax.plot(times, middle, color=color, linewidth=1.8, label=label)
        if np.isfinite(half):
            ax.plot([half], [50.0], marker="o", color=color, markersize=6, mec="white")
    ax.axhline(50, color="0.6", linewidth=0.8, linestyle=":")
    ax.set(xlabel=f"{found.unit} (0 = before training)", ylabel="way from chance to the final accuracy (%)")
    ax.grid(alpha=0.3)
    ax.legend(loc="best", fontsize="small")
    return ax
