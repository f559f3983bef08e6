"""Data sets whose items are (inputs, targets)."""

from lowhanging.datasets.mnist import MNIST, DigitImages, mnist
from lowhanging.datasets.modular_addition import ModularAddition, ModularPairs, modular_addition
from lowhanging.datasets.paired_mnist import ConflictImages, PairedImages, PairedMNIST, PairedView, paired_mnist
from lowhanging.datasets.parity_rules import ParityBits, ParityRules, ParityView, parity_rules

__all__ = [
    "MNIST",
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
    "mnist",
    "modular_addition",
    "paired_mnist",
    "parity_rules",
]
