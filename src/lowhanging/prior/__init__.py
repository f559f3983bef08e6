"""Circuits that are found at all, and those that are found first, as a function of what there is to find.

`phase_diagram` runs an experiment over a grid of settings and seeds; `experiments` holds two that ship.
`staircases` times small networks on sums of products, and fits how the times grow.
Inside, downwards: experiments, phase_diagram; staircases stands beside them.
"""

from lowhanging.prior.experiments import paired_digits_experiment, parities_experiment
from lowhanging.prior.phase_diagram import Border, PhaseDiagram, phase_diagram
from lowhanging.prior.staircases import (
    PowerLaw,
    StaircaseExponent,
    StaircaseTimes,
    censored_power_law,
    staircase_exponent,
    steps_to_learn,
)

__all__ = [
    "Border",
    "PhaseDiagram",
    "PowerLaw",
    "StaircaseExponent",
    "StaircaseTimes",
    "censored_power_law",
    "paired_digits_experiment",
    "parities_experiment",
    "phase_diagram",
    "staircase_exponent",
    "steps_to_learn",
]
