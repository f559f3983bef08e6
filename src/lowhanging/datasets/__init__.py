"""Examples in: every item is (inputs, targets)."""

from lowhanging.datasets.mnist import MNIST, DigitImages, mnist
from lowhanging.datasets.paired_mnist import ConflictImages, PairedImages, PairedMNIST, PairedView, paired_mnist

__all__ = [
    "MNIST",
    "ConflictImages",
    "DigitImages",
    "PairedImages",
    "PairedMNIST",
    "PairedView",
    "mnist",
    "paired_mnist",
]
