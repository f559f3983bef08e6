"""The pictures of the report, drawn from the work of the first network; nothing is computed here.

Each theme has a function `Context` -> file name -> PNG; what a picture shows lies in the store, or in the theme's rows.
What is no result of the library, numbers of the rows, is drawn by the functions below those, each on one Axes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from lowhanging import plots
from lowhanging.circuits.fourier import circle_score, fourier_modes
from lowhanging.landscape.planes import PlaneSlice
from lowhanging.plots.style import Drawing, color_of, legend_above
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.store import Row
from lowhanging.reproduce.themes import canyons, cartoons, logits, modular, order, planes, sizes, steering
from lowhanging.reproduce.themes.curvature import THRESHOLDS, pairs_of
from lowhanging.reproduce.themes.learning import CUES, TASKS
from lowhanging.reproduce.themes.planes import QUADRATIC, distinct_from, quadratic_up_to
from lowhanging.reproduce.themes.rates import LENGTHS
from lowhanging.reproduce.themes.steering import STEP, null_points
from lowhanging.steering.cues import MIN_ASYMMETRY_CHANGE

Rows = Sequence[Row]
Pictures = dict[str, bytes]

# Picture -> the claims that it belongs to, and what it shows.
CAPTIONS: Mapping[str, tuple[tuple[int, ...], str]] = {
    "images.png": ((1,), "What the network sees: blends, single cues, and cues that conflict."),
    "training.png": ((1,), "Accuracy and loss on held-out images along training."),
    "rates.png": (
        (2,), "Left: steps to half of the final accuracy, a point per network. Right: accuracy that the same random "
        "displacements of the minimum cost either cue.",
    ),
    "spectra.png": (
        (3,), "Left: top eigenvalues of each task's Hessian at the minimum. Right: how many exceed 0.1 along training.",
    ),
    "steering.png": (
        (4, 5), "The three losses (top) and accuracies (bottom) along both steering directions; beside step 2, the "
        "losses where random directions have raised the mixed loss's quadratic (×) or itself (+) as much.",
    ),
    "ranks.png": ((7,), "The mixed spectrum, and the mixed loss's curvature along the steering directions."),
    "overlaps.png": ((8,), "How much of each steering direction lies in the top eigenvectors of each loss."),
    "planes.png": ((9,), "The three losses on the plane of the two steering directions, on one colour scale."),
    "radii.png": (
        (9,), "Left: how far the losses on circles are from quadratic; dotted, where the error passes 10 %. Right: "
        "whether the cues can be told apart there, and would be by the expansions alone; dotted, from where on.",
    ),
    "canyons.png": (
        (10, 11, 12, 13), "Floors and slopes of the branches that were followed, how they lie to each other, the "
        "losses along them, and the relative rises found on the energy shell beside those in random subspaces.",
    ),
    "cartoons.png": ((14, 20), "Gradient flow on the flat and on the sloped cartoon, from the same starts."),
    "circuits.png": (
        (15, 16, 17), "Circles of one seed, its Fourier modes along training, what its circles are worth; births over "
        "all seeds, their rate after another birth, and survival, also where parameters are scarce.",
    ),
    "sizes.png": ((18,), "Steps until each rule is learned, against its size; medians over seeds."),
    "logits.png": ((19,), "Every held-out logit on both cues against the fitted sum of those on each cue alone."),
    "order.png": ((20,), "Share of the way from chance to the final accuracy that each view has gone, over seeds."),
}  # fmt: skip


def _png(*args: Any, **options: Any) -> bytes:
    """`plots.panels` as the file that the report holds."""
    stream = io.BytesIO()
    plots.panels(*args, **options).savefig(stream, format="png")
    return stream.getvalue()


def draw(measured: Mapping[str, tuple[Context, Rows]]) -> Pictures:
    """All pictures of the themes that were measured."""
    found: Pictures = {}
    for theme, (context, rows) in measured.items():
        if theme in FIGURES:
            found |= FIGURES[theme](context, rows)
    return found


def learning_figures(context: Context, rows: Rows) -> Pictures:
    """What the network sees, and how it learned."""
    run, views = context.network.run, context.network.views
    return {
        "images.png": _png([[lambda ax: plots.paired_images(views, ax)]], width=9, height=3.6),
        "training.png": _png(
            [[lambda ax: plots.training_run(run, ax), lambda ax: plots.training_run(run, ax, quantity="loss")]]
        ),
    }


def rates_figures(context: Context, rows: Rows) -> Pictures:
    """How fast, and how stable."""
    return {"rates.png": _png([[lambda ax: halves(rows, ax), lambda ax: stability(rows[0], ax)]], height=4.5)}


def curvature_figures(context: Context, rows: Rows) -> Pictures:
    """Spectra at the minimum, counts along training."""
    pairs = pairs_of(context)
    return {
        "spectra.png": _png(
            [[lambda ax: plots.spectra(pairs, ax), lambda ax: dimensions_along(rows[0], ax)]], height=4.5
        )
    }


def steering_figures(context: Context, rows: Rows) -> Pictures:
    """Losses and accuracies along both directions; their overlaps and ranks."""
    steered = steering.directions_of(context)
    directions = rows[0]["directions"]

    def losses(i: int) -> Drawing:
        def draw(ax: Any) -> None:
            plots.line_slice(steered[i].scan, ax)
            random_directions(directions[i], ax)
            ax.set_title(f"preserve {steered[i].preserved}, ablate {steered[i].ablated}")

        return draw

    def accuracies(i: int) -> Drawing:
        return lambda ax: plots.line_slice(steered[i].scan, ax, quantity="accuracy")

    def overlap(i: int) -> Drawing:
        return lambda ax: plots.overlaps(steered[i].report, ax).set_title(f"preserve {steered[i].preserved}")

    mixed = [float(value) for value in steered[0].report.eigenvalues["mixed"]]
    return {
        "steering.png": _png([[losses(0), losses(1)], [accuracies(0), accuracies(1)]], height=8),
        "ranks.png": _png([[lambda ax: ranks(mixed, directions, ax)]], width=7, height=4.2),
        "overlaps.png": _png([[overlap(0), overlap(1)]]),
    }


def planes_figures(context: Context, rows: Rows) -> Pictures:
    """The plane of the two steering directions, and how far out the loss is quadratic."""
    plane = planes.plane_of(context)
    return {
        "planes.png": _png([_on_one_scale(plane)], width=15, height=4.6),
        "radii.png": _png([[lambda ax: fit_errors(rows[0], ax), lambda ax: asymmetries(rows[0], ax)]]),
    }


def canyons_figures(context: Context, rows: Rows) -> Pictures:
    """Floors, slopes and fan of the branches that were followed, the losses along each, the plane through two."""
    found = canyons.canyons_of(context)
    paths, plane = found.paths, found.plane

    def relative_rises(ax: Any) -> Any:
        return plots.canyon_rises(found.shell, ax, null=found.null)

    if not paths:
        return {"canyons.png": _png([[relative_rises]], width=7, height=4.5)}

    def along(name: str, quantity: Literal["loss", "cue_shares"] = "loss") -> Drawing:
        return lambda ax: plots.canyon_losses(paths[name], ax, quantity=quantity).set_title(name)

    drawn: list[Drawing] = [
        lambda ax: plots.canyon_floor(paths, ax, bowl=True),
        lambda ax: plots.canyon_floor(paths, ax, quantity="slope_without_anchor"),
        lambda ax: plots.canyon_fan(paths, ax, quantity="asymmetry", cues=("number", "pattern")),
    ]
    drawn += [along(name) for name in paths] + [relative_rises]
    drawn += [along(name, "cue_shares") for name in paths]
    if plane is not None:
        drawn.append(lambda ax: plots.plane_slice(plane, ax, name="mixed"))
    drawn += [lambda ax: ax.set_axis_off()] * (-len(drawn) % 3)
    grid = [drawn[i : i + 3] for i in range(0, len(drawn), 3)]
    return {"canyons.png": _png(grid, width=17, height=4.5 * len(grid))}


def cartoons_figures(context: Context, rows: Rows) -> Pictures:
    """Descent on both cartoons."""
    starts = torch.tensor(rows[0]["starts"], dtype=torch.float64)[: cartoons.NUM_PATHS]

    def descents(name: str) -> Drawing:
        plane = cartoons.plane_of(name, context.store)
        paths = [cartoons.path_of(name, start, i, context.store) for i, start in enumerate(starts)]
        return lambda ax: plots.descents(plane, paths, ax)

    return {"cartoons.png": _png([[descents("flat"), descents("sloped")]], width=11, height=5)}


def modular_figures(context: Context, rows: Rows) -> Pictures:
    """Circles, when they formed, and what they are worth."""
    it = modular.formed(context)
    embeddings = it.run.snapshots["embedding"][it.best]  # (logs, p, width)
    last = embeddings[-1]
    curves = modular.survivals(it.survival, modular.scarce(context)[0])
    return {
        "circuits.png": _png(
            [
                [
                    lambda ax: plots.circles(last, circle_score(last), ax, columns=4),
                    lambda ax: plots.modes(fourier_modes(embeddings), it.run.steps, ax),
                    lambda ax: plots.circuit_ablation(it.ablation, ax),
                ],
                [
                    lambda ax: plots.births(it.births, ax),
                    lambda ax: plots.birth_intensity(it.intensity, ax),
                    lambda ax: plots.survival(curves, ax),
                ],
            ],
            width=17,
            height=9,
        )
    }


def logits_figures(context: Context, rows: Rows) -> Pictures:
    """The logits on both cues against the fitted sum of those on each."""
    found = logits.sums(context.network)
    return {"logits.png": _png([[lambda ax: plots.logit_sum(found, ax)]], width=7, height=5)}


def order_figures(context: Context, rows: Rows) -> Pictures:
    """How far each competence has come, step by step."""
    found = order.competences(rows)
    return {"order.png": _png([[lambda ax: plots.competences(found, ax)]], width=7, height=4.2)}


def sizes_figures(context: Context, rows: Rows) -> Pictures:
    """Steps to learn each rule at each size."""
    times = sizes.learning_times(rows[0])
    return {"sizes.png": _png([[lambda ax: plots.learning_times(times, ax)]], width=7, height=4.6)}


def _on_one_scale(plane: PlaneSlice) -> list[Drawing]:
    """One drawing per loss; the last one draws them all, on one colour scale."""
    collected: list[Any] = []

    def collect(ax: Any) -> None:
        collected.append(ax)
        if len(collected) == len(plane.losses):
            plots.plane_slices(plane, collected)

    return [collect] * len(plane.losses)


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
        xs = [3 * i, 3 * i + 1]
        for pair in zip(*lost, strict=True):
            ax.plot(xs, [100 * value for value in pair], color="0.75", linewidth=0.8, zorder=1)
        for x, cue, values in zip(xs, CUES, lost, strict=True):
            ax.scatter([x] * len(values), [100 * value for value in values], color=color_of(cue, 0), s=18, zorder=2)
    ax.set_xticks([3 * i + j for i in range(len(LENGTHS)) for j in (0, 1)], list(CUES) * len(LENGTHS))
    for i, length in enumerate(map("{:g}".format, LENGTHS)):
        ax.annotate(f"‖Δθ‖ = {length} ‖θ‖", (3 * i + 0.5, 1.03), xycoords=("data", "axes fraction"), ha="center")
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set_ylabel("held-out accuracy lost (points)")


def dimensions_along(row: Row, ax: Any) -> None:
    """Number of eigenvalues above the lowest threshold, and the largest eigenvalue, along training."""
    level = f"{THRESHOLDS[0]:g}"
    entries = row["along_training"]
    xs = range(len(entries))
    for name in TASKS:
        counts = [entry[name]["above"][level] for entry in entries]
        ax.plot(xs, counts, "o-", color=color_of(name, 0), label=name)
        for x, entry, count in zip(xs, entries, counts, strict=True):
            if entry[name]["is_bound"][0]:
                ax.annotate("≥", (x, count), textcoords="offset points", xytext=(0, 5), ha="center")
    ax.set_xticks(list(xs), [str(entry["epoch"]) for entry in entries])
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
            values, x = [entry["losses"][name] for entry in points], STEP + first + 0.1 * i
            ax.scatter([x] * len(values), values, color=color_of(name, 0), s=12, marker=marker, lw=0.7, zorder=4)
            seen += values
    ax.axvline(STEP, color="0.75", linewidth=0.8, zorder=0)
    marks = "random directions where the mixed quadratic (×),\nor the mixed loss (+), is as high"
    ax.set_xlabel(ax.get_xlabel() + f"\nbeside {STEP:g}: {marks}")
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
    radius = distinct_from(row)
    label = f"losses, 1 nat at {radius:.2g}" if 0 < radius < math.inf else "losses"
    ax.loglog(row["radii"], row["asymmetry_change"], "o-", color="black", label=label)
    known = [math.nan if value is None else value for value in row["asymmetry_change_of_quadratics"]]
    ax.loglog(row["radii"], known, "s--", color="0.55", markersize=4, label="their second-order expansions")
    if 0 < radius < math.inf:
        ax.axvline(radius, color="black", linewidth=0.8, linestyle=":")
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


FIGURES: Mapping[str, Callable[[Context, Rows], Pictures]] = {
    "learning": learning_figures,
    "rates": rates_figures,
    "curvature": curvature_figures,
    "steering": steering_figures,
    "planes": planes_figures,
    "canyons": canyons_figures,
    "cartoons": cartoons_figures,
    "modular": modular_figures,
    "logits": logits_figures,
    "order": order_figures,
    "sizes": sizes_figures,
}
