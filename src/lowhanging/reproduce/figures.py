"""Which pictures does the report hold? Each is drawn from results by `lowhanging.plots`; nothing is computed here."""

from __future__ import annotations

from typing import Any

from lowhanging import plots
from lowhanging.basin.eigenpairs import Eigenpairs
from lowhanging.plots.panels import Drawing
from lowhanging.reproduce.learning import Learning
from lowhanging.reproduce.steering import Steered

FIGURE_NAMES = {"images.png", "training.png", "spectra.png", "steering.png", "overlaps.png"}


def figures(learning: Learning, pairs: dict[str, Eigenpairs], steered: list[Steered]) -> dict[str, bytes]:
    """File name -> PNG."""
    run = learning.run

    def losses(s: Steered) -> Drawing:
        return lambda ax: _titled(s, plots.line_slice(s.scan, ax))

    def accuracies(s: Steered) -> Drawing:
        return lambda ax: plots.line_slice(s.scan, ax, quantity="accuracy")

    def overlaps(s: Steered) -> Drawing:
        return lambda ax: _titled(s, plots.overlaps(s.report, ax))

    return {
        "images.png": plots.panels([[lambda ax: plots.paired_images(learning.views, ax)]], width=9, height=3.6),
        "training.png": plots.panels(
            [[lambda ax: plots.training_run(run, ax), lambda ax: plots.training_run(run, ax, quantity="loss")]]
        ),
        "spectra.png": plots.panels([[lambda ax: plots.spectra(pairs, ax)]], width=7, height=4.5),
        "steering.png": plots.panels([list(map(losses, steered)), list(map(accuracies, steered))], height=7.5),
        "overlaps.png": plots.panels([list(map(overlaps, steered))]),
    }


def _titled(steered: Steered, ax: Any) -> None:
    ax.set_title(f"preserve {steered.preserved}, ablate {steered.ablated}")
