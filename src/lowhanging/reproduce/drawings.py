"""What does the report draw that is no result of the library? Numbers of its rows, each drawing on one Axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lowhanging.basin.naming import MIN_ASYMMETRY_CHANGE
from lowhanging.plots.style import color_of, legend_above
from lowhanging.reproduce.curvature import TASKS, THRESHOLDS
from lowhanging.reproduce.learning import CUES
from lowhanging.reproduce.planes import QUADRATIC, quadratic_up_to, told_apart_from
from lowhanging.reproduce.rates import LENGTHS
from lowhanging.reproduce.shelf import Row
from lowhanging.reproduce.steering import STEP, null_points


def halves(rows: Sequence[Row], ax: Any) -> None:
    """Steps to half of the final accuracy, number against pattern, one point per seed."""
    number, pattern = ([row["steps_to_half"][cue] for row in rows] for cue in CUES)
    top = 1.15 * max(*(value or 0.0 for value in (*number, *pattern)), 1.0)
    ax.fill_between([0, top], [0, top / 2], [0, 2 * top], color="0.9", label="within a factor of 2")
    ax.plot([0, top], [0, top], color="0.6", linewidth=0.8)
    ax.scatter(number, pattern, color="black", zorder=3, label="a network")
    ax.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    ax.set_xlabel("steps to half of the final accuracy, number-only")
    ax.set_ylabel("the same, pattern-only")
    ax.legend(loc="upper left", fontsize="small")


def stability(row: Row, ax: Any) -> None:
    """Accuracy lost to random displacements, both cues of each displacement joined by a line."""
    for i, length in enumerate(map("{:g}".format, LENGTHS)):
        lost = [row["accuracy_lost"][cue][length] for cue in CUES]
        places = [3 * i, 3 * i + 1]
        for pair in zip(*lost, strict=True):
            ax.plot(places, [100 * value for value in pair], color="0.75", linewidth=0.8, zorder=1)
        for place, cue, values in zip(places, CUES, lost, strict=True):
            ax.scatter([place] * len(values), [100 * value for value in values], color=color_of(cue, 0), s=18, zorder=2)
    ax.set_xticks([3 * i + j for i in range(len(LENGTHS)) for j in (0, 1)], list(CUES) * len(LENGTHS))
    for i, length in enumerate(map("{:g}".format, LENGTHS)):
        ax.annotate(f"‖Δθ‖ = {length} ‖θ‖", (3 * i + 0.5, 1.03), xycoords=("data", "axes fraction"), ha="center")
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set_ylabel("held-out accuracy lost (points)")


def dimensions_along(row: Row, ax: Any) -> None:
    """Number of eigenvalues above the lowest threshold, and the largest eigenvalue, along training."""
    level = f"{THRESHOLDS[0]:g}"
    entries = row["along_training"]
    places = range(len(entries))
    for name in TASKS:
        counts = [entry[name]["above"][level] for entry in entries]
        ax.plot(places, counts, "o-", color=color_of(name, 0), label=name)
        for place, entry, count in zip(places, entries, counts, strict=True):
            if entry[name]["is_bound"][0]:
                ax.annotate("≥", (place, count), textcoords="offset points", xytext=(0, 5), ha="center")
    ax.set_xticks(list(places), [str(entry["epoch"]) for entry in entries])
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
    ax.locator_params(axis="y", integer=True)
    ax.set_xlabel(f"epoch (on {row['along_images']} held-out images of each task)")
    ax.set_ylabel(f"eigenvalues above {level}")
    ax.grid(alpha=0.3)
    ax.legend()


def random_directions(direction: Row, ax: Any) -> None:
    """On a line slice: what random directions do to the three losses at both of their lengths, beside the step."""
    seen = [value for losses in direction["losses"].values() for value in losses]
    for marker, first, points in zip("x+", (-0.42, 0.22), null_points(direction).values(), strict=True):
        for i, name in enumerate(TASKS):
            values, place = [entry["losses"][name] for entry in points], STEP + first + 0.1 * i
            ax.scatter([place] * len(values), values, color=color_of(name, 0), s=12, marker=marker, lw=0.7, zorder=4)
            seen += values
    ax.axvline(STEP, color="0.75", linewidth=0.8, zorder=0)
    told = "random directions where the mixed quadratic (×),\nor the mixed loss (+), is as high"
    ax.set_xlabel(ax.get_xlabel() + f"\nbeside {STEP:g}: {told}")
    legend_above(ax, ceiling=1.03 * max(seen))


def ranks(eigenvalues: Sequence[float], directions: Sequence[Row], ax: Any) -> None:
    """The mixed spectrum, and the mixed curvature along each steering direction as a line."""
    ax.semilogy(range(1, len(eigenvalues) + 1), eigenvalues, ".-", color=color_of("mixed", 0), label="mixed spectrum")
    for direction in directions:
        value, kept = direction["rayleigh_quotients"]["mixed"], direction["preserve"]
        label = f"along keep-{kept} (rank {direction['ranks']['mixed']})"
        ax.axhline(value, color=color_of(kept, 0), linestyle="--", label=label)
    ax.axvline(10, color="0.8", linewidth=0.8, zorder=0)
    ax.set_xlabel("number of the eigenvalue (thin line: the tenth)")
    ax.set_ylabel("curvature of the mixed loss")
    ax.grid(alpha=0.3)
    ax.legend()


def fit_errors(row: Row, ax: Any) -> None:
    """Fit error of the second-order expansion against the radius, and where it passes the level of a quadratic."""
    for name in TASKS:
        errors, end = [100 * error for error in row["circles"][name]["fit_error"]], quadratic_up_to(row, name)
        label = f"{name}, quadratic up to {end:.2g}" if 0 < end < math.inf else name
        ax.loglog(row["radii"], errors, "o-", color=color_of(name, 0), label=label)
        if 0 < end < math.inf:
            ax.axvline(end, color=color_of(name, 0), linewidth=0.8, linestyle=":")
    ax.axhline(100 * QUADRATIC, color="0.6", linewidth=0.8, linestyle="--")
    ax.set_ylabel("fit error (% of the loss's range)")
    _radius_axis(row, ax)
    ax.legend(fontsize="small")


def asymmetries(row: Row, ax: Any) -> None:
    """Largest change of log(L_number / L_pattern) on a circle against its radius, and that of the expansions."""
    told = told_apart_from(row)
    label = f"losses, 1 nat at {told:.2g}" if 0 < told < math.inf else "losses"
    ax.loglog(row["radii"], row["asymmetry_change"], "o-", color="black", label=label)
    known = [math.nan if value is None else value for value in row["asymmetry_change_of_quadratics"]]
    ax.loglog(row["radii"], known, "s--", color="0.55", markersize=4, label="their second-order expansions")
    if 0 < told < math.inf:
        ax.axvline(told, color="black", linewidth=0.8, linestyle=":")
    ax.axhline(MIN_ASYMMETRY_CHANGE, color="0.6", linewidth=0.8, linestyle="--")
    ax.set_ylabel("largest change of log(L_number / L_pattern), nats")
    _radius_axis(row, ax)
    ax.legend(fontsize="small")


def _radius_axis(row: Row, ax: Any) -> None:
    """A tick at every radius that was measured."""
    ax.set_xticks(row["radii"], [f"{radius:g}" for radius in row["radii"]])
    ax.minorticks_off()
    ax.set_xlabel("radius ‖Δθ‖ in the plane of the steering directions")
    ax.grid(alpha=0.3)

