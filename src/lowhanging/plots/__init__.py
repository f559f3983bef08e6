"""Drawings of results; nothing here computes, shows, saves or changes the global style.

Each plot draws one result on one Axes, `ax`, and returns it; None makes a figure. `animation` and `circles_animation`
return an `Animation`, `interactive` a plotly figure, `panels` and `inside_network` a matplotlib figure. `plane_slices`
draws on several Axes.
"""

from lowhanging.plots.animation import Animation, animation
from lowhanging.plots.canyons import canyon_fan, canyon_floor, canyon_losses, canyon_rises
from lowhanging.plots.circles import circles, circles_animation, logit_sum, modes
from lowhanging.plots.formation import birth_intensity, births, circuit_ablation, competences, learning_times, survival
from lowhanging.plots.interactive import interactive
from lowhanging.plots.mechanism import inside_network, progress_measures
from lowhanging.plots.planes import descents, plane_slice, plane_slices, trajectory
from lowhanging.plots.prior import phase_diagram
from lowhanging.plots.slices import line_slice, path_slice
from lowhanging.plots.spectra import effective_dimension, spectra, spectral_density
from lowhanging.plots.staircases import staircases
from lowhanging.plots.steering import ablation_curve, overlaps
from lowhanging.plots.style import panels
from lowhanging.plots.surface import surface
from lowhanging.plots.training import paired_images, training_run
from lowhanging.plots.two_cues import independent_bits, newly_solved, refinement

__all__ = [
    "Animation",
    "ablation_curve",
    "animation",
    "birth_intensity",
    "births",
    "canyon_fan",
    "canyon_floor",
    "canyon_losses",
    "canyon_rises",
    "circles",
    "circles_animation",
    "circuit_ablation",
    "competences",
    "descents",
    "effective_dimension",
    "independent_bits",
    "inside_network",
    "interactive",
    "learning_times",
    "line_slice",
    "logit_sum",
    "modes",
    "newly_solved",
    "overlaps",
    "paired_images",
    "panels",
    "path_slice",
    "phase_diagram",
    "plane_slice",
    "plane_slices",
    "progress_measures",
    "refinement",
    "spectra",
    "spectral_density",
    "staircases",
    "surface",
    "survival",
    "training_run",
    "trajectory",
]
