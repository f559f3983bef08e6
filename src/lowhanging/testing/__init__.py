"""Oracles for the library's numbers, and `check_model` for your own models."""

from lowhanging.testing.model_check import Check, ModelCheck, check_model
from lowhanging.testing.oracles import FiniteDifference, dense_hessian, finite_difference_hvp

__all__ = ["Check", "FiniteDifference", "ModelCheck", "check_model", "dense_hessian", "finite_difference_hvp"]
