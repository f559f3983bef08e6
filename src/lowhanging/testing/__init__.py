"""Oracles for the library's numbers, `check_model` for your own models, and `calibrate` for your own instruments."""

from lowhanging.testing.calibration import Calibration, calibrate
from lowhanging.testing.model_check import Check, ModelCheck, check_model
from lowhanging.testing.oracles import FiniteDifference, dense_hessian, finite_difference_hvp

__all__ = [
    "Calibration",
    "Check",
    "FiniteDifference",
    "ModelCheck",
    "calibrate",
    "check_model",
    "dense_hessian",
    "finite_difference_hvp",
]
