"""Directions that keep one circuit and ablate another, the price of that, and which cue the answers follow.

Inside, downwards: cues and constrained, steering and ablation_curve.
"""

from lowhanging.steering.ablation_curve import AblationCurve, SphereRelaxation, ablation_curve, relax_on_spheres
from lowhanging.steering.cues import AnswerShift, CircuitAttribution, ConflictControl, attribute_circuit
from lowhanging.steering.steering import SteeringReport, steering_direction, steering_report, steering_subspace

__all__ = [
    "AblationCurve",
    "AnswerShift",
    "CircuitAttribution",
    "ConflictControl",
    "SphereRelaxation",
    "SteeringReport",
    "ablation_curve",
    "attribute_circuit",
    "relax_on_spheres",
    "steering_direction",
    "steering_report",
    "steering_subspace",
]
