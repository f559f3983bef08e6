"""Draws one result on one Axes; nothing here computes, shows, saves or changes the global style.

Lines and paths (`line_slice`, `path_slice`), planes (`plane_slice`, `plane_slices`, `surface`, `interactive`), what
runs over them (`trajectory`, `descents`), `animation` of slices over training, curvature (`spectra`,
`spectral_density`, `effective_dimension`), `overlaps`, canyons (`canyon_floor`, `canyon_losses`, `canyon_fan`,
`canyon_depths`), circuits (`circles`, `circles_animation`, `modes`) and when they formed (`births`, `birth_intensity`,
`survival`), how long rules take (`learning_times`, `competences`), `logit_sum`, `training_run`, `paired_images`;
`panels` sets several drawings side by side.
"""

from lowhanging.plots.animation import animation
from lowhanging.plots.canyon_depths import canyon_depths
from lowhanging.plots.canyon_fan import canyon_fan
from lowhanging.plots.canyons import canyon_floor, canyon_losses
from lowhanging.plots.circles import circles, circles_animation, modes
from lowhanging.plots.curvature import effective_dimension, spectra, spectral_density
from lowhanging.plots.descents import descents
from lowhanging.plots.formation import birth_intensity, births, circuit_ablation, survival
from lowhanging.plots.interactive import interactive
from lowhanging.plots.learning_times import competences, learning_times
from lowhanging.plots.logit_sum import logit_sum
from lowhanging.plots.paired_images import paired_images
from lowhanging.plots.panels import panels
from lowhanging.plots.planes import plane_slice, plane_slices
from lowhanging.plots.slices import line_slice, path_slice
from lowhanging.plots.steering import overlaps
from lowhanging.plots.surface import surface
from lowhanging.plots.training import training_run
from lowhanging.plots.trajectory import trajectory

__all__ = [
    "animation",
    "birth_intensity",
    "births",
    "canyon_depths",
    "canyon_fan",
    "canyon_floor",
    "canyon_losses",
    "circles",
    "circles_animation",
    "circuit_ablation",
    "competences",
    "descents",
    "effective_dimension",
    "interactive",
    "learning_times",
    "line_slice",
    "logit_sum",
    "modes",
    "overlaps",
    "paired_images",
    "panels",
    "path_slice",
    "plane_slice",
    "plane_slices",
    "spectra",
    "spectral_density",
    "surface",
    "survival",
    "training_run",
    "trajectory",
]
