"""Minima of a loss, directions in weight space, slices of the loss along them, and records of a training.

Inside, downwards: directions, minimum, recorder, evaluate, slices, planes.
"""

from lowhanging.landscape.directions import (
    OrthogonalDirections,
    PrincipalDirections,
    difference_direction,
    gram_schmidt,
    principal_directions,
    random_direction,
)
from lowhanging.landscape.minimum import Minimum, polish
from lowhanging.landscape.planes import Plane, PlaneSlice, PlaneTrajectory, plane_slice, plane_through, plane_trajectory
from lowhanging.landscape.recorder import Recorder, TrainingRecord
from lowhanging.landscape.slices import LineSlice, PathSlice, line_slice, path_slice

__all__ = [
    "LineSlice",
    "Minimum",
    "OrthogonalDirections",
    "PathSlice",
    "Plane",
    "PlaneSlice",
    "PlaneTrajectory",
    "PrincipalDirections",
    "Recorder",
    "TrainingRecord",
    "difference_direction",
    "gram_schmidt",
    "line_slice",
    "path_slice",
    "plane_slice",
    "plane_through",
    "plane_trajectory",
    "polish",
    "principal_directions",
    "random_direction",
]
