"""Which pictures does the report hold? Each is drawn from results by `lowhanging.plots`; nothing is computed here."""

from __future__ import annotations

import functools
from typing import Any, Literal

from lowhanging import plots
from lowhanging.basin.eigenpairs import Eigenpairs
from lowhanging.basin.planes import PlaneSlice
from lowhanging.circuits.fourier import circle_score, fourier_modes
from lowhanging.plots.panels import Drawing
from lowhanging.reproduce.canyons import Canyons
from lowhanging.reproduce.cartoons import Cartoons, Descents
from lowhanging.reproduce.learning import Learning
from lowhanging.reproduce.modular import Modular
from lowhanging.reproduce.planes import Planes
from lowhanging.reproduce.steering import Steered

FIGURE_NAMES = {
    "images.png",
    "training.png",
    "spectra.png",
    "steering.png",
    "overlaps.png",
    "planes.png",
    "cartoons.png",
    "canyons.png",
    "circuits.png",
}


def figures(
    learning: Learning,
    pairs: dict[str, Eigenpairs],
    steered: list[Steered],
    cartoons: Cartoons,
    planes: Planes,
    canyons: Canyons,
    modular: Modular,
) -> dict[str, bytes]:
    """File name -> PNG."""
    run = learning.run

    def losses(s: Steered) -> Drawing:
        return lambda ax: _titled(s, plots.line_slice(s.scan, ax))

    def accuracies(s: Steered) -> Drawing:
        return lambda ax: plots.line_slice(s.scan, ax, quantity="accuracy")

    def overlaps(s: Steered) -> Drawing:
        return lambda ax: _titled(s, plots.overlaps(s.report, ax))

    def descents(d: Descents) -> Drawing:
        return lambda ax: plots.descents(d.plane, d.paths, ax)

    def each(plane: PlaneSlice) -> list[Drawing]:
        return [functools.partial(plots.plane_slice, plane, name=name) for name in plane.losses]

    embeddings = modular.run.snapshots["embedding"][modular.best]  # (logs, p, width)
    last = embeddings[-1]

    return {
        "canyons.png": _canyons(canyons),
        "circuits.png": plots.panels(
            [
                [
                    lambda ax: plots.circles(last, circle_score(last), ax, columns=4),
                    lambda ax: plots.modes(fourier_modes(embeddings), modular.run.steps, ax),
                    lambda ax: plots.circuit_ablation(modular.ablation, ax),
                ],
                [
                    lambda ax: plots.births(modular.births, ax),
                    lambda ax: plots.birth_intensity(modular.intensity, ax),
                    lambda ax: plots.survival(modular.survival, ax),
                ],
            ],
            width=17,
            height=9,
        ),
        "images.png": plots.panels([[lambda ax: plots.paired_images(learning.views, ax)]], width=9, height=3.6),
        "training.png": plots.panels(
            [[lambda ax: plots.training_run(run, ax), lambda ax: plots.training_run(run, ax, quantity="loss")]]
        ),
        "spectra.png": plots.panels([[lambda ax: plots.spectra(pairs, ax)]], width=7, height=4.5),
        "steering.png": plots.panels([list(map(losses, steered)), list(map(accuracies, steered))], height=7.5),
        "overlaps.png": plots.panels([list(map(overlaps, steered))]),
        "planes.png": plots.panels(
            [
                [
                    *each(planes.near),
                    lambda ax: plots.plane_slice(cartoons.flat.plane, ax),
                ],  # one scale would show no shape
                [*_on_one_scale(planes.far), lambda ax: plots.plane_slice(cartoons.sloped.plane, ax)],
            ],
            width=17,
            height=8,
        ),
        "cartoons.png": plots.panels(
            [list(map(descents, (cartoons.flat, cartoons.sloped)))],
            width=11,
            height=5,
        ),
    }


def _canyons(canyons: Canyons) -> bytes:
    """Floors, slopes and fan of the branches that were followed, the losses along each, the plane through two."""
    paths, plane = canyons.paths, canyons.plane

    if not paths:
        return plots.panels([[lambda ax: plots.canyon_depths(canyons.shell, ax)]], width=7, height=4.5)

    def along(name: str, quantity: Literal["loss", "followed"] = "loss") -> Drawing:
        return lambda ax: plots.canyon_losses(paths[name], ax, quantity=quantity).set_title(name)

    second = [along(name) for name in paths]
    if plane is not None:
        second.insert(0, lambda ax: plots.plane_slice(plane, ax, name="mixed"))
    second += [along(name, "followed") for name in paths] + [lambda ax: plots.canyon_depths(canyons.shell, ax)]
    first: list[Drawing] = [
        lambda ax: plots.canyon_floor(paths, ax, bowl=True),
        lambda ax: plots.canyon_floor(paths, ax, quantity="slope_without_anchor"),
        lambda ax: plots.canyon_fan(paths, ax, quantity="asymmetry", cues=("number", "pattern")),
    ]
    return plots.panels([first, second[:3]], width=17, height=9)


def _on_one_scale(plane: PlaneSlice) -> list[Drawing]:
    """One drawing per loss; the last one draws them all, on one colour scale."""
    collected: list[Any] = []

    def collect(ax: Any) -> None:
        collected.append(ax)
        if len(collected) == len(plane.losses):
            plots.plane_slices(plane, collected)

    return [collect] * len(plane.losses)


def _titled(steered: Steered, ax: Any) -> None:
    ax.set_title(f"preserve {steered.preserved}, ablate {steered.ablated}")
