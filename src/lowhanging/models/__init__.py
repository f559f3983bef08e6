"""Networks to train: plain `nn.Module`s, smooth throughout."""

from lowhanging.models.cnn import SigmoidCNN

__all__ = ["SigmoidCNN"]
