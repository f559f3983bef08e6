"""Networks to train: plain `nn.Module`s, smooth throughout."""

from lowhanging.models.cnn import SigmoidCNN
from lowhanging.models.modular import ModularMLP
from lowhanging.models.transformer import ModularTransformer

__all__ = ["ModularMLP", "ModularTransformer", "SigmoidCNN"]
