"""Circuits that are found at all, and those that are found first, as a function of what there is to find.

`phase_diagram` runs an experiment over a grid of settings and seeds; `experiments` holds two that ship.
Inside, downwards: experiments, phase_diagram.
"""

from lowhanging.prior.experiments import paired_digits_experiment, parities_experiment
from lowhanging.prior.phase_diagram import Border, PhaseDiagram, phase_diagram

__all__ = ["Border", "PhaseDiagram", "paired_digits_experiment", "parities_experiment", "phase_diagram"]
