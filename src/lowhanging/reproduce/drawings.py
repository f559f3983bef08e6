"""What does the report draw that is no result of the library? Numbers of its rows, each drawing on one Axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowhanging.plots.style import color_of, label_log_axis
from lowhanging.reproduce.curvature import TASKS, THRESHOLDS
from lowhanging.reproduce.learning import CUES
from lowhanging.reproduce.rates import LENGTHS
from lowhanging.reproduce.shelf import Row
from lowhanging.reproduce.steering import STEP


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
    """On a line slice: what random directions of equal mixed curvature do to the three losses, beside the step."""
    places = {name: STEP + 0.12 * (i - 1) for i, name in enumerate(TASKS)}
    for name, place in places.items():
        values = [entry["losses"][name] for entry in direction["null"]]
        ax.scatter([place] * len(values), values, color=color_of(name, 0), s=9, marker="x", linewidth=0.7, zorder=4)
    ax.axvline(STEP, color="0.75", linewidth=0.8, zorder=0)
    ax.set_xlabel(ax.get_xlabel() + f"\n× at {STEP:g}: random directions, where the mixed quadratic is as high")


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
    """Fit error of the second-order expansion against the radius."""
    for name in TASKS:
        errors = [100 * error for error in row["circles"][name]["fit_error"]]
        ax.loglog(row["radii"], errors, "o-", color=color_of(name, 0), label=name)
    ax.axhline(10, color="0.6", linewidth=0.8, linestyle="--")
    ax.set_xlabel("radius ‖Δθ‖ in the plane of the steering directions")
    ax.set_ylabel("fit error (% of the loss's range)")
    ax.grid(alpha=0.3)
    ax.legend()
    label_log_axis(ax.xaxis)


def asymmetries(row: Row, ax: Any) -> None:
    """Largest change of log(L_number / L_pattern) on a circle, against its radius."""
    ax.semilogx(row["radii"], row["asymmetry_change"], "o-", color="black")
    ax.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
    ax.set_ylim(0, None)
    ax.set_xlabel("radius ‖Δθ‖ in the plane of the steering directions")
    ax.set_ylabel("largest change of log(L_number / L_pattern), nats")
    ax.grid(alpha=0.3)
    label_log_axis(ax.xaxis)

