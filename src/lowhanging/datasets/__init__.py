"""Data sets whose items are (inputs, targets)."""

from lowhanging.datasets.boolean_targets import BooleanTarget, boolean_targets, leap_of
from lowhanging.datasets.mnist import MNIST, DigitImages, mnist
from lowhanging.datasets.modular_addition import ModularAddition, ModularPairs, modular_addition
from lowhanging.datasets.paired_mnist import (
    ConflictImages,
    PairedImages,
    PairedMNIST,
    PairedView,
    ResampledView,
    paired_mnist,
)
from lowhanging.datasets.parity_rules import ParityBits, ParityRules, ParityView, parity_rules
from lowhanging.datasets.resampling import ResampledExamples, resample

__all__ = [
    "MNIST",
    "BooleanTarget",
    "ConflictImages",
    "DigitImages",
    "ModularAddition",
    "ModularPairs",
    "PairedImages",
    "PairedMNIST",
    "PairedView",
    "ParityBits",
    "ParityRules",
    "ParityView",
    "ResampledExamples",
    "ResampledView",
    "boolean_targets",
    "leap_of",
    "mnist",
    "modular_addition",
    "paired_mnist",
    "parity_rules",
    "resample",
]
