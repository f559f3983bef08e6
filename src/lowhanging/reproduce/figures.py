"""Which pictures does the report hold? Drawn from the work of the first network; nothing is computed here.

Each theme has a function `Place` -> file name -> PNG; what a picture shows lies on the shelf, or in the theme's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from lowhanging import plots
from lowhanging.basin.planes import PlaneSlice
from lowhanging.circuits.fourier import circle_score, fourier_modes
from lowhanging.plots.panels import Drawing
from lowhanging.reproduce import (
    canyons,
    cartoons,
    curvature,
    drawings,
    logits,
    modular,
    order,
    planes,
    sizes,
    steering,
)
from lowhanging.reproduce.place import Place
from lowhanging.reproduce.shelf import Row

Rows = Sequence[Row]
Pictures = dict[str, bytes]


def learning_figures(place: Place, rows: Rows) -> Pictures:
    """What the network sees, and how it learned."""
    run, views = place.network.run, place.network.views
    return {
        "images.png": plots.panels([[lambda ax: plots.paired_images(views, ax)]], width=9, height=3.6),
        "training.png": plots.panels(
            [[lambda ax: plots.training_run(run, ax), lambda ax: plots.training_run(run, ax, quantity="loss")]]
        ),
    }


def rates_figures(place: Place, rows: Rows) -> Pictures:
    """How fast, and how stable."""
    return {
        "rates.png": plots.panels(
            [[lambda ax: drawings.halves(rows, ax), lambda ax: drawings.stability(rows[0], ax)]], height=4.5
        )
    }


def curvature_figures(place: Place, rows: Rows) -> Pictures:
    """Spectra at the minimum, counts along training."""
    pairs = curvature.pairs_of(place.network, place.sizes, place.shelf)
    return {
        "spectra.png": plots.panels(
            [[lambda ax: plots.spectra(pairs, ax), lambda ax: drawings.dimensions_along(rows[0], ax)]], height=4.5
        )
    }


def steering_figures(place: Place, rows: Rows) -> Pictures:
    """Losses and accuracies along both directions; their overlaps and ranks."""
    steered = steering.directions_of(place.network, place.sizes, place.shelf)
    directions = rows[0]["directions"]

    def losses(i: int) -> Drawing:
        def draw(ax: Any) -> None:
            plots.line_slice(steered[i].scan, ax)
            drawings.random_directions(directions[i], ax)
            ax.set_title(f"preserve {steered[i].preserved}, ablate {steered[i].ablated}")

        return draw

    def accuracies(i: int) -> Drawing:
        return lambda ax: plots.line_slice(steered[i].scan, ax, quantity="accuracy")

    def overlap(i: int) -> Drawing:
        return lambda ax: plots.overlaps(steered[i].report, ax).set_title(f"preserve {steered[i].preserved}")

    mixed = [float(value) for value in steered[0].report.eigenvalues["mixed"]]
    return {
        "steering.png": plots.panels([[losses(0), losses(1)], [accuracies(0), accuracies(1)]], height=8),
        "ranks.png": plots.panels([[lambda ax: drawings.ranks(mixed, directions, ax)]], width=7, height=4.2),
        "overlaps.png": plots.panels([[overlap(0), overlap(1)]]),
    }


def planes_figures(place: Place, rows: Rows) -> Pictures:
    """The plane of the two steering directions, and how far out the loss is quadratic."""
    plane = planes.plane_of(place.network, place.sizes, place.shelf)
    return {
        "planes.png": plots.panels([_on_one_scale(plane)], width=15, height=4.6),
        "radii.png": plots.panels(
            [[lambda ax: drawings.fit_errors(rows[0], ax), lambda ax: drawings.asymmetries(rows[0], ax)]]
        ),
    }


def canyons_figures(place: Place, rows: Rows) -> Pictures:
    """Floors, slopes and fan of the branches that were followed, the losses along each, the plane through two."""
    found = canyons.canyons_of(place.network, place.sizes, place.shelf)
    paths, plane = found.paths, found.plane

    def depths(ax: Any) -> Any:
        return plots.canyon_depths(found.shell, ax, null=found.null)

    if not paths:
        return {"canyons.png": plots.panels([[depths]], width=7, height=4.5)}

    def along(name: str, quantity: Literal["loss", "followed"] = "loss") -> Drawing:
        return lambda ax: plots.canyon_losses(paths[name], ax, quantity=quantity).set_title(name)

    drawn: list[Drawing] = [
        lambda ax: plots.canyon_floor(paths, ax, bowl=True),
        lambda ax: plots.canyon_floor(paths, ax, quantity="slope_without_anchor"),
        lambda ax: plots.canyon_fan(paths, ax, quantity="asymmetry", cues=("number", "pattern")),
    ]
    drawn += [along(name) for name in paths] + [depths]
    drawn += [along(name, "followed") for name in paths]
    if plane is not None:
        drawn.append(lambda ax: plots.plane_slice(plane, ax, name="mixed"))
    drawn += [lambda ax: ax.set_axis_off()] * (-len(drawn) % 3)
    grid = [drawn[i : i + 3] for i in range(0, len(drawn), 3)]
    return {"canyons.png": plots.panels(grid, width=17, height=4.5 * len(grid))}


def cartoons_figures(place: Place, rows: Rows) -> Pictures:
    """Descent on both cartoons."""
    starts = torch.tensor(rows[0]["starts"], dtype=torch.float64)[: cartoons.NUM_PATHS]

    def descents(name: str) -> Drawing:
        plane = cartoons.plane_of(name, place.shelf)
        paths = [cartoons.path_of(name, start, i, place.shelf) for i, start in enumerate(starts)]
        return lambda ax: plots.descents(plane, paths, ax)

    return {"cartoons.png": plots.panels([[descents("flat"), descents("sloped")]], width=11, height=5)}


def modular_figures(place: Place, rows: Rows) -> Pictures:
    """Circles, when they formed, and what they are worth."""
    it = modular.formed(place.sizes, place.shelf)
    embeddings = it.run.snapshots["embedding"][it.best]  # (logs, p, width)
    last = embeddings[-1]
    curves = modular.survivals(it.survival, modular.scarce(place.sizes, place.shelf)[0])
    return {
        "circuits.png": plots.panels(
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


def logits_figures(place: Place, rows: Rows) -> Pictures:
    """The logits on both cues against the fitted sum of those on each."""
    found = logits.sums(place.network)
    return {"logits.png": plots.panels([[lambda ax: plots.logit_sum(found, ax)]], width=7, height=5)}


def order_figures(place: Place, rows: Rows) -> Pictures:
    """How far each competence has come, step by step."""
    found = order.competences(rows)
    return {"order.png": plots.panels([[lambda ax: plots.competences(found, ax)]], width=7, height=4.2)}


def sizes_figures(place: Place, rows: Rows) -> Pictures:
    """Steps to learn each rule at each size."""
    times = sizes.learning_times(rows[0])
    return {"sizes.png": plots.panels([[lambda ax: plots.learning_times(times, ax)]], width=7, height=4.6)}


FIGURES: Mapping[str, Callable[[Place, Rows], Pictures]] = {
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
        "losses along them, and the depths found on the energy shell beside those in random subspaces.",
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


def draw(places: Mapping[str, tuple[Place, Rows]]) -> Pictures:
    """All pictures of the themes that were measured."""
    found: Pictures = {}
    for theme, (place, rows) in places.items():
        if theme in FIGURES:
            found |= FIGURES[theme](place, rows)
    return found


def _on_one_scale(plane: PlaneSlice) -> list[Drawing]:
    """One drawing per loss; the last one draws them all, on one colour scale."""
    collected: list[Any] = []

    def collect(ax: Any) -> None:
        collected.append(ax)
        if len(collected) == len(plane.losses):
            plots.plane_slices(plane, collected)

    return [collect] * len(plane.losses)


