"""Directions that keep one circuit and ablate another, and which cue a network's answers follow.

Inside, downwards: cues, steering.
"""

from lowhanging.steering.cues import AnswerShift, CircuitAttribution, ConflictControl, attribute_circuit
from lowhanging.steering.steering import SteeringReport, steering_direction, steering_report, steering_subspace

__all__ = [
    "AnswerShift",
    "CircuitAttribution",
    "ConflictControl",
    "SteeringReport",
    "attribute_circuit",
    "steering_direction",
    "steering_report",
    "steering_subspace",
]
