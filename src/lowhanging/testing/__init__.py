"""Oracles for the library's numbers, `check_model` for your own models, `check_slicer` for any picture of a loss."""

from lowhanging.testing.model_check import Check, ModelCheck, check_model
from lowhanging.testing.oracles import FiniteDifference, dense_hessian, finite_difference_hvp
from lowhanging.testing.slicer_check import Slicer, SlicerReport, check_slicer

__all__ = [
    "Check",
    "FiniteDifference",
    "ModelCheck",
    "Slicer",
    "SlicerReport",
    "check_model",
    "check_slicer",
    "dense_hessian",
    "finite_difference_hvp",
]
