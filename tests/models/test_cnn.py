"""SigmoidCNN: its size on paper, its output by hand-written convolution, its seed, and its derivatives.

Oracles: parameter counts on paper; a forward pass in NumPy loops; finite differences (`gradgradcheck`, which fails on
a kink).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lowhanging.models import SigmoidCNN

ACTIVATIONS = ["sigmoid", "tanh", "silu", "gelu", "softplus"]


def test_parameters_on_paper() -> None:
    model = SigmoidCNN(seed=0)
    sizes = {name: sum(weight.numel() for weight in layer.parameters()) for name, layer in model.named_children()}
    assert {name: size for name, size in sizes.items() if size} == {"conv1": 60, "conv2": 330, "linear": 2950}
    assert sum(sizes.values()) == 3340
    other = SigmoidCNN(4, num_classes=3, image_size=12, in_channels=2)
    assert sum(weight.numel() for weight in other.parameters()) == (2 * 9 + 1) * 4 + (4 * 9 + 1) * 4 + (4 * 9 + 1) * 3


def test_forward_equals_loops() -> None:
    model = SigmoidCNN(2, seed=3, num_classes=3, image_size=8).double()
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def layer(x: np.ndarray, convolution: nn.Conv2d) -> np.ndarray:
        weight, bias = convolution.weight.detach().numpy(), convolution.bias.detach().numpy()
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        size = x.shape[1]
        out = np.empty((len(bias), size, size))
        for c in range(len(bias)):
            for i in range(size):
                for j in range(size):
                    out[c, i, j] = (weight[c] * padded[:, i : i + 3, j : j + 3]).sum() + bias[c]
        active = 1 / (1 + np.exp(-out))
        return active.reshape(len(bias), size // 2, 2, size // 2, 2).mean((2, 4))

    for image, logits in zip(images, model(images), strict=True):
        hidden = layer(layer(image.numpy(), model.conv1), model.conv2).ravel()
        expected = model.linear.weight.detach().numpy() @ hidden + model.linear.bias.detach().numpy()
        np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_twice_differentiable(activation: str) -> None:
    model = SigmoidCNN(1, activation, seed=0, num_classes=2, image_size=4).double()
    names, weights = zip(*model.named_parameters(), strict=True)
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def outputs(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (images,))

    assert torch.autograd.gradcheck(outputs, weights)
    assert torch.autograd.gradgradcheck(outputs, weights)


def test_seed_is_private() -> None:
    state = torch.get_rng_state()
    first, second, third = SigmoidCNN(seed=1), SigmoidCNN(seed=1), SigmoidCNN(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not any(map(torch.equal, first.parameters(), third.parameters()))


def test_without_seed_the_global_state_decides() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first, second = SigmoidCNN(), SigmoidCNN()
        torch.manual_seed(5)
        third = SigmoidCNN()
    assert all(map(torch.equal, first.parameters(), third.parameters()))
    assert not any(map(torch.equal, first.parameters(), second.parameters()))


def test_initial_weights_are_uniform_within_the_fan_in_bound() -> None:
    for layer, fan_in in ((SigmoidCNN(64, seed=0).conv2, 64 * 9), (SigmoidCNN(seed=0).linear, 6 * 49)):
        bound = fan_in**-0.5
        assert float(layer.weight.detach().abs().max()) <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.03)


def test_default_dtype_changes_the_weights_by_rounding_only() -> None:
    single = SigmoidCNN(seed=4)
    torch.set_default_dtype(torch.float64)
    try:
        double = SigmoidCNN(seed=4)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert b.dtype == torch.float64
        assert torch.equal(a, b.float())


@pytest.mark.parametrize("activation", ["relu", "elu", "leaky_relu", "Sigmoid", None])
def test_other_activations_are_refused(activation: str) -> None:
    with pytest.raises(ValueError, match=r"activation is .*, expected one of 'sigmoid', 'tanh'.*\n.*kinks"):
        SigmoidCNN(activation=activation)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"channels": 0}, ValueError, "channels is 0, expected an integer of at least 1"),
        ({"channels": 2.5}, TypeError, "channels is 2.5"),
        ({"num_classes": 0}, ValueError, "num_classes is 0"),
        ({"image_size": 3}, ValueError, "image_size is 3, expected an integer of at least 4"),
        ({"in_channels": -1}, ValueError, "in_channels is -1"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": "a"}, TypeError, "seed is 'a'"),
    ],
)
def test_bad_sizes_are_refused(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SigmoidCNN(**arguments)


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 3, 28, 28), (5, 1, 27, 28), (28, 28)])
def test_wrong_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"inputs has shape .*, expected \(n, 1, 28, 28\)\.\n.*\[:, None\]"):
        SigmoidCNN(seed=0)(torch.zeros(shape))
