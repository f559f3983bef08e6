"""When did circuits form, are births of one run closer together than chance, and what is each circuit worth?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lowhanging.circuits.ablation import CircuitAblation
from lowhanging.circuits.formation import Births
from lowhanging.circuits.intensity import BirthIntensity
from lowhanging.circuits.lifetimes import Survival
from lowhanging.plots.style import axes, check_kind, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BORN, _DEAD = "#0072B2", "#D55E00"


def births(births: Births, ax: Axes | None = None) -> Axes:
    """A row per seed, a dot per circuit formed, a cross where one was lost; seeds in the order of their first birth.

    Births of one seed at the same step stand one above the other within its row.

    Args:
        births: what `lh.circuits.births` returned.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes. It is neither shown nor saved.
    """
    check_kind("births", births, Births, "Pass what lh.circuits.births returned.")
    from matplotlib.ticker import MaxNLocator

    ax = axes(ax)
    order = births.step.min(1).values.argsort(stable=True)
    for marker, color, label, times in (
        ("o", _BORN, "formed", births.step[order]),
        ("x", _DEAD, "lost", births.death[order]),
    ):
        rows, blocks = np.nonzero(np.isfinite(times.numpy()))
        where = times.numpy()[rows, blocks]
        places = list(zip(rows.tolist(), where.tolist(), strict=True))
        nth = np.array([places[:i].count(place) for i, place in enumerate(places)])
        many = np.array([places.count(place) for place in places])
        heights = rows + 1 + (nth - (many - 1) / 2) * 0.45  # ties side by side: a pair is what one looks for
        ax.scatter(
            where, heights, marker=marker, s=16, color=color, linewidths=1.0, label=f"circuit {label} ({len(rows)})"
        )
    ax.set_xlim(float(births.steps[0]), float(births.steps[-1]))
    ax.set_ylim(0, len(order) + 1)
    ax.set_xlabel("step")
    ax.set_ylabel("rank of the seed, by its first birth")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="x", alpha=0.3)
    legend_above(ax)
    return ax


def birth_intensity(intensity: BirthIntensity, ax: Axes | None = None) -> Axes:
    """Gaps between births of one seed against those after shuffling: following births per birth and step, by lag.

    Args:
        intensity: what `lh.circuits.birth_intensity` returned.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes. It is neither shown nor saved.
    """
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
    ax.set_xlabel("steps since another birth in the same seed")
    ax.set_ylabel("births per birth and step")
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

    Returns:
        The Axes. It is neither shown nor saved.
    """
    curves = dict(survival) if isinstance(survival, Mapping) else {"": survival}
    for each in curves.values():
        check_kind("survival", each, Survival, "Pass what lh.circuits.survival returned.")
    ax = axes(ax)
    floor = 1.0
    for (name, each), color in zip(curves.items(), itertools.cycle((_BORN, _DEAD, "#009E73", "#CC79A7"))):
        age, low, high = each.age.numpy(), *(100 * each.interval.T.numpy())
        label = f"{name}, {int(each.deaths.sum())} of {each.num_circuits} lost" if name else None
        ax.fill_between(age, low, high, step="post", color=color, alpha=0.2, linewidth=0)
        ax.step(age, 100 * each.share.numpy(), where="post", color=color, linewidth=1.8, label=label)
        is_known = 2 * each.at_risk.numpy() >= each.num_circuits
        floor = min(floor, float(low[is_known].min()) / 100, float(each.share.min()))
    ax.set_ylim(max(0.0, 10 * np.floor(10 * floor) - 2), 101)
    ax.set_xlabel("steps since birth")
    ax.set_ylabel("circuits still there (%)")
    ax.grid(alpha=0.3)
    if any(curves):
        legend_above(ax)
    low, high = ax.get_ylim()
    ax.set_yticks([tick for tick in ax.get_yticks() if low <= tick <= 100])
    ax.set_ylim(low, high)
    return ax


def circuit_ablation(ablation: CircuitAblation, ax: Axes | None = None) -> Axes:
    """Loss against the number of circuits kept: a dot for every subset, a line through the means.

    Args:
        ablation: what `lh.circuits.ablate_circuits` returned.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes. It is neither shown nor saved.
    """
    check_kind("ablation", ablation, CircuitAblation, "Pass what lh.circuits.ablate_circuits returned.")
    ax = axes(ax)
    from matplotlib.ticker import MaxNLocator

    means = ablation.mean_losses.numpy()
    ax.plot(ablation.kept.sum(1).numpy(), ablation.losses.numpy(), "o", color=_BORN, alpha=0.45, label="each subset")
    ax.plot(range(len(means)), means, "-", color="0.2", linewidth=1.6, label="mean over subsets")
    ax.set_ylim(bottom=0.0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(f"circuits kept, of {len(ablation.circuits)}")
    ax.set_ylabel("mean loss (nats)")
    ax.grid(alpha=0.3)
    ax.legend(loc="best")
    return ax
