"""ParameterSpace: theta and the named tensors are the same numbers in a fixed order.

Oracles: `torch.nn.utils.parameters_to_vector` (an independent flattening); sizes and orders written out.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lowhanging.objective.parameters import ParameterSpace


class Net(nn.Module):
    """Every kind of parameter at once: shared, frozen, unused, a scalar, one that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.frozen = nn.Linear(3, 3)
        self.second = nn.Linear(2, 3, bias=False)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.strided = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
        self.unused = nn.Parameter(torch.randn(1, 4))
        self.frozen.requires_grad_(False)


def test_order_and_shared_and_frozen() -> None:
    model = Net()
    space = ParameterSpace(model)
    assert space.names == ("scale", "strided", "unused", "first.weight", "first.bias")
    assert space.shapes == ((), (3, 2), (1, 4), (3, 2), (3,))
    assert space.num_params == 1 + 6 + 4 + 6 + 3
    assert space.dtype == torch.float32
    assert space.device == torch.device("cpu")
    assert repr(space) == "ParameterSpace(Net, 20 parameters in 5 tensors, torch.float32)"
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    expected = torch.cat([weight.detach().reshape(-1) for weight in trainable])
    assert torch.equal(space.flatten(model), expected)


def test_equals_torchs_own_flattening() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LSTM(4, 3))
    expected = nn.utils.parameters_to_vector(model.parameters())
    assert torch.equal(ParameterSpace(model).flatten(model), expected)


def test_round_trip_and_no_view_of_the_users_weights() -> None:
    for model in (Net(), nn.Linear(3, 1, bias=False)):  # one parameter only: cat of one is a view of it
        space = ParameterSpace(model)
        theta = space.flatten(model)
        named = space.unflatten(theta)
        assert torch.equal(space.flatten(named), theta)
        assert all(torch.equal(named[name], dict(model.named_parameters())[name]) for name in space.names)
        before = [weight.clone() for weight in model.parameters()]
        theta.zero_()
        assert all(map(torch.equal, model.parameters(), before))
        assert not named[space.names[0]].any()  # but what was unflattened is a view of theta


def test_unflatten_is_differentiable() -> None:
    space = ParameterSpace(Net())
    theta = torch.randn(20, requires_grad=True)
    (gradient,) = torch.autograd.grad(space.unflatten(theta)["first.bias"].square().sum(), theta)
    expected = torch.zeros(20)
    expected[-3:] = 2 * theta.detach()[-3:]
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.bfloat16, torch.bfloat16), torch.float32),
        ((torch.float16, torch.float32), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
    ],
)
def test_dtype_is_the_widest(dtypes: tuple[torch.dtype, torch.dtype], expected: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2).to(dtypes[0]), nn.Linear(2, 2).to(dtypes[1]))
    space = ParameterSpace(model)
    assert space.dtype == space.flatten(model).dtype == expected


def refuses(model: nn.Module, text: str) -> None:
    with pytest.raises(ValueError) as error:
        ParameterSpace(model)
    assert str(error.value) == text


def test_what_has_no_theta_is_refused() -> None:
    remedy = "Unfreeze what you want to study: parameter.requires_grad_(True)."
    expected = "expected at least one parameter with requires_grad=True"
    refuses(nn.Linear(2, 2).requires_grad_(False), f"model (Linear) has no trainable parameter, {expected}.\n{remedy}")
    refuses(nn.Tanh(), f"model (Tanh) has no trainable parameter, {expected}.\n{remedy}")


def test_bad_weights_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[1].weight[0, 1] = math.nan
    received = "parameter '1.weight' of Sequential holds 1 NaN or infinite entries, expected finite numbers."
    refuses(model, f"{received}\nTrain with a smaller step, or reload.")
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, device="meta"))
    received = "model (Sequential) has parameters on ['cpu', 'meta'], expected one device."
    refuses(model, f"{received}\nMove it with model.to(device).")
    model = nn.Module()
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    received = "parameter 'phase' has dtype torch.complex64, expected a real floating-point dtype."
    refuses(model, f"{received}\nStore real and imaginary parts as two real parameters.")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"0.bias": None, "other": torch.ones(1)},
            "tensors lack ['0.bias'] and add ['other'], expected exactly the 2 trainable parameters of Sequential.\n"
            "See space.names; fill absent ones with zeros.",
        ),
        (
            {"0.weight": torch.ones(2, 3)},
            "0.weight has shape (2, 3), expected (3, 2) as in Sequential.\nReshape or transpose it.",
        ),
    ],
)
def test_flatten_refuses_other_names_and_shapes(change: dict[str, Tensor | None], text: str) -> None:
    space = ParameterSpace(nn.Sequential(nn.Linear(2, 3), nn.Tanh()))
    tensors = space.unflatten(torch.ones(9)) | change
    with pytest.raises(ValueError) as error:
        space.flatten({name: tensor for name, tensor in tensors.items() if tensor is not None})
    assert str(error.value) == text
