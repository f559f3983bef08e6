"""A small smooth convolutional network for the paired digits.

The smallest one that learns both cues: convolution 3 x 3, activation, average pool, twice, then linear. It is smooth
throughout: a max-pool or a ReLU has kinks, and the Hessian of a loss with kinks misses the curvature in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lowhanging.errors import (
    argument_message,
    check_choice,
    check_count,
    door,
)
from lowhanging.models.initial import generator_of

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


@door
class SigmoidCNN(nn.Module):
    """Two convolutions with smooth activations and average pools, and a linear read-out.

    With the defaults 3,340 parameters: conv1 60, conv2 330, linear 2,950.

    Args:
        channels: Feature maps of both convolutions.
        activation: "sigmoid", "tanh", "silu", "gelu" or "softplus"; all have derivatives of every order.
        seed: Initial weights from a private generator, the same on every call; the global random state is not
            touched. None draws them from the global state, as other modules do.
        num_classes: Length of the output.
        image_size: Height and width of the images.
        in_channels: Channels of the images.

    Raises:
        ValueError: the activation is unknown or not smooth, or a size is out of range.
    """

    def __init__(
        self,
        channels: int = 6,
        activation: str = "sigmoid",
        *,
        seed: int | None = None,
        num_classes: int = 10,
        image_size: int = 28,
        in_channels: int = 1,
    ):
        super().__init__()
        channels = check_count("channels", channels, remedy="Pass a number of feature maps, such as 6.")
        num_classes = check_count("num_classes", num_classes, remedy="Pass the number of classes, such as 10.")
        in_channels = check_count("in_channels", in_channels, remedy="Pass 1 for grey images, 3 for colour.")
        size = check_count("image_size", image_size, minimum=4, remedy="Two average pools need 4 pixels at least.")
        remedy = "ReLU, LeakyReLU and ELU have kinks; write your own module for them."
        check_choice("activation", activation, tuple(_ACTIVATIONS), remedy=remedy)
        self.image_shape = (in_channels, size, size)
        self.conv1 = _empty(nn.Conv2d, in_channels, channels, 3, padding=1)
        self.activation1 = _ACTIVATIONS[activation]()
        self.pool1 = nn.AvgPool2d(2)
        self.conv2 = _empty(nn.Conv2d, channels, channels, 3, padding=1)
        self.activation2 = _ACTIVATIONS[activation]()
        self.pool2 = nn.AvgPool2d(2)
        self.linear = _empty(nn.Linear, channels * (size // 4) ** 2, num_classes)
        self._initialise(seed)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, num_classes) of images (n, in_channels, image_size, image_size)."""
        if inputs.ndim != 4 or tuple(inputs.shape[1:]) != self.image_shape:
            expected = f"(n, {', '.join(map(str, self.image_shape))})"
            remedy = "Add the channel axis with images[:, None], or build SigmoidCNN(image_size=..., in_channels=...)."
            raise ValueError(argument_message("inputs", f"has shape {tuple(inputs.shape)}", expected, remedy))
        hidden = self.pool1(self.activation1(self.conv1(inputs)))  # (n, channels, size / 2, size / 2)
        hidden = self.pool2(self.activation2(self.conv2(hidden)))  # (n, channels, size / 4, size / 4)
        logits: Tensor = self.linear(hidden.flatten(1))  # (n, num_classes)
        return logits

    def _initialise(self, seed: int | None) -> None:
        generator = generator_of(seed)
        for layer in (self.conv1, self.conv2, self.linear):
            bound = 1 / math.sqrt(layer.weight[0].numel())  # torch's own default: uniform within 1 / sqrt(fan in)
            for parameter in layer.parameters():
                # On the CPU in float64 first: the same weights in every dtype and on every device.
                draw = torch.empty(parameter.shape, dtype=torch.float64, device="cpu")
                with torch.no_grad():
                    parameter.copy_(draw.uniform_(-bound, bound, generator=generator))


def _empty(layer: type[_Layer], *sizes: int, **options: Any) -> _Layer:
    """A layer whose own initialisation, which would draw from the global random state, is left out."""
    made = nn.utils.skip_init(layer, *sizes, device=torch.get_default_device(), **options)  # type: ignore[no-untyped-call]
    return cast(_Layer, made)
