"""Circuits that are found at all, and those that are found first, as a function of what there is to find.

`phase_diagram` runs an experiment over a grid of settings and seeds; `experiments` holds two that ship.
`refinement` offers a second cue to networks that have learned a first one.
`independent_bits` follows what each of two cues adds to the other along training.
`staircases` times small networks on sums of products; `censored_laws` fits how times grow.
Inside, downwards: experiments, refinement, independent_bits; phase_diagram, parities, cue_evidence, logged_training,
resumed_rows;
staircases, censored_laws stand beside them.
"""

from lowhanging.prior.censored_laws import FactorGrowth, PowerLaw, censored_power_law, factor_growth
from lowhanging.prior.cue_evidence import cue_evidence
from lowhanging.prior.experiments import paired_digits_experiment, parities_experiment
from lowhanging.prior.independent_bits import (
    CueViews,
    IndependentBits,
    OddsRatio,
    cue_views,
    independent_bits,
    paired_digits_views,
)
from lowhanging.prior.phase_diagram import Border, PhaseDiagram, Separation, phase_diagram
from lowhanging.prior.refinement import (
    Refinement,
    TwoCueTask,
    paired_digits_task,
    parities_task,
    refinement,
)
from lowhanging.prior.staircases import (
    StaircaseExponent,
    StaircaseTimes,
    staircase_exponent,
    steps_to_learn,
)

__all__ = [
    "Border",
    "CueViews",
    "FactorGrowth",
    "IndependentBits",
    "OddsRatio",
    "PhaseDiagram",
    "PowerLaw",
    "Refinement",
    "Separation",
    "StaircaseExponent",
    "StaircaseTimes",
    "TwoCueTask",
    "censored_power_law",
    "cue_evidence",
    "cue_views",
    "factor_growth",
    "independent_bits",
    "paired_digits_experiment",
    "paired_digits_task",
    "paired_digits_views",
    "parities_experiment",
    "parities_task",
    "phase_diagram",
    "refinement",
    "staircase_exponent",
    "steps_to_learn",
]
