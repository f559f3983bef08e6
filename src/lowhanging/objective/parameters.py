"""Flat vectors theta (p,) and named tensors: how a model's parameters map onto each other.

Theta holds the *trainable* parameters in `named_parameters()` order, a shared one once; frozen ones are constants of
the loss. Nothing else in the library flattens, writes a theta into a module, or matches names of parameters.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from lowhanging.errors import argument_message, check_finite

# Names of parameters as in `named_parameters()`: a glob such as "conv1.*", several, or a test of a name.
Parameters = str | Collection[str] | Callable[[str], bool]


@dataclass(frozen=True)
class Tie:
    """How a parameter lies in another one's memory: permuted, then viewed in its own shape."""

    name: str  # of the other one
    order: tuple[int, ...]
    shape: torch.Size

    def of(self, weight: Tensor) -> Tensor:
        """The tied parameter, made of the other one."""
        return weight.permute(self.order).view(self.shape)


class ParameterSpace:
    """The trainable parameters of a model as one flat vector.

    theta = (vec(W_1), vec(W_2), ...), each tensor in row-major order, in `named_parameters()` order. A shared parameter
    appears once, under its first name, and so does one memory that two parameters share; frozen parameters do not
    appear.

    Attributes:
        names: names of the trainable parameters, in order.
        shapes: their shapes.
        num_params: p, the length of theta.
        dtype: the widest dtype among them, at least float32 (a bfloat16 model is studied in float32).
        device: where they live; all on one device.
        ties: name -> `Tie` of each parameter that lies in another one's memory (`decoder.weight.data =
            encoder.weight.data.T`); theta holds it once, under the other name.
        filter_dims: name -> dimension along which its filters (output channels or units) lie, where that is not 0:
            transposed convolutions and the Conv1D of GPT-2 store inputs first.

    Raises:
        ValueError: nothing is trainable, parameters lie on several devices, are complex, hold NaN or inf, or overlap in
            memory in another way than as one tensor, transposed or reshaped.
    """

    def __init__(self, model: nn.Module):
        self.owner = type(model).__name__
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.ties = ties_of(model)
        first = {id(weight): name for name, weight in model.named_parameters()}
        self._slots = {  # where modules hold parameters: a shared one in several places, under one name
            f"{owner}.{name}".lstrip("."): first[id(weight)]
            for owner, module in model.named_modules()
            for name, weight in module._parameters.items()
            if weight is not None and weight.requires_grad
        }
        for name in self.ties:
            del trainable[name]
        if not trainable:
            received = f"({self.owner}) has no trainable parameter"
            expected = "at least one parameter with requires_grad=True"
            remedy = "Unfreeze what you want to study: parameter.requires_grad_(True)."
            raise ValueError(argument_message("model", received, expected, remedy))
        self.names = tuple(trainable)
        self.shapes = tuple(weight.shape for weight in trainable.values())
        self.sizes = [weight.numel() for weight in trainable.values()]
        self.num_params = sum(self.sizes)
        self._check(trainable)
        self.filter_dims = _filter_dims(model)
        self.dtype = torch.float32
        for weight in trainable.values():
            self.dtype = torch.promote_types(self.dtype, weight.dtype)
        self.device = next(iter(trainable.values())).device

    def __repr__(self) -> str:
        size = f"{self.num_params:,} parameters in {len(self.names)} tensors"
        return f"ParameterSpace({self.owner}, {size}, {self.dtype})"

    def flatten(self, tensors: nn.Module | Mapping[str, Tensor]) -> Tensor:
        """Theta (p,) of a model, or of a mapping name -> tensor with exactly the names and shapes of this space.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs.
        """
        named = dict(tensors.named_parameters()) if isinstance(tensors, nn.Module) else dict(tensors)
        for name in list(named):
            if name in self.ties or (isinstance(tensors, nn.Module) and name not in self.names):
                del named[name]
        missing, unknown = set(self.names) - set(named), set(named) - set(self.names)
        if missing or unknown:
            received = f"lack {sorted(missing)} and add {sorted(unknown)}"
            expected = f"exactly the {len(self.names)} trainable parameters of {self.owner}"
            remedy = "See space.names; fill absent ones with zeros."
            raise ValueError(argument_message("tensors", received, expected, remedy))
        for name, shape in zip(self.names, self.shapes, strict=True):
            if named[name].shape != shape:
                received, expected = f"has shape {tuple(named[name].shape)}", f"{tuple(shape)} as in {self.owner}"
                raise ValueError(argument_message(name, received, expected, "Reshape or transpose it."))
        # A fresh tensor, never a view of the user's weights, even for a single parameter.
        parts = [named[name].detach().to(self.device, self.dtype).reshape(-1) for name in self.names]
        return torch.cat(parts).clone() if len(parts) == 1 else torch.cat(parts)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Mapping name -> view into theta (p,), differentiable."""
        parts = torch.split(theta, self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def weights_of(self, theta: Tensor) -> dict[str, Tensor]:
        """`unflatten`, and shared and tied parameters under all of their names: all that a model must be given.

        For `functional_call(..., tie_weights=False)`: torch's own tying loses a layer that is shared together with a
        weight of it.
        """
        named = self.unflatten(theta)
        named |= {name: tied.of(named[tied.name]) for name, tied in self.ties.items()}
        return {slot: named[name] for slot, name in self._slots.items()}

    @torch.no_grad()
    def write(self, theta: Tensor, model: nn.Module) -> None:
        """Give a model of this space the weights theta (p,)."""
        weights = self.weights_of(theta)
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])

    def named(self, parameters: Parameters, *, argument: str = "parameters") -> tuple[str, ...]:
        """The names, in the order of theta, that any glob matches or that a test `name -> bool` accepts.

        Raises:
            ValueError: a glob matches no name, or the test accepts none.
        """
        if callable(parameters):
            found = [name for name in self.names if parameters(name)]
            return tuple(found) if found else self._refuse(argument, "accepts no name")
        globs = [parameters] if isinstance(parameters, str) else parameters
        globs = list(globs) if isinstance(globs, Iterable) else []
        if not globs or not all(isinstance(glob, str) for glob in globs):
            remedy = 'Pass "conv1.*", ["conv1.*", "fc.bias"] or lambda name: name.endswith("weight").'
            expected = "a glob on names, a list of globs, or a test of a name"
            raise TypeError(argument_message(argument, f"is {parameters!r}", expected, remedy))
        matches = {glob: {name for name in self.names if fnmatch.fnmatchcase(name, glob)} for glob in globs}
        for glob, names in matches.items():
            if not names:
                self._refuse(argument, f"has {glob!r}, which matches no name")
        return tuple(name for name in self.names if any(name in names for names in matches.values()))

    def positions(self, names: Collection[str]) -> Tensor:
        """Where the named parameters lie in theta, (q,) integers in rising order."""
        ranges = torch.split(torch.arange(self.num_params, device=self.device), self.sizes)
        return torch.cat([where for name, where in zip(self.names, ranges, strict=True) if name in names])

    def name_of_largest(self, vector: Tensor) -> str:
        """The name of the tensor in which a vector (p,) is longest."""
        lengths = torch.stack([part.norm() for part in torch.split(vector, self.sizes)])
        return self.names[int(lengths.nan_to_num().argmax())]

    def _refuse(self, argument: str, received: str) -> NoReturn:
        listed = ", ".join(self.names[:40]) + (" ..." if len(self.names) > 40 else "")
        remedy = "Frozen parameters are constants, and a shared one stands under its first name only."
        raise ValueError(argument_message(argument, received, f"names among {listed} of {self.owner}", remedy))

    def _check(self, trainable: Mapping[str, Tensor]) -> None:
        devices = {str(weight.device) for weight in trainable.values()}
        if len(devices) > 1:
            received = f"({self.owner}) has parameters on {sorted(devices)}"
            raise ValueError(argument_message("model", received, "one device", "Move it with model.to(device)."))
        for name, weight in trainable.items():
            if not weight.is_floating_point():
                received, expected = f"has dtype {weight.dtype}", "a real floating-point dtype"
                remedy = "Store real and imaginary parts as two real parameters."
                raise ValueError(argument_message(f"parameter {name!r}", received, expected, remedy))
            remedy = "Train with a smaller step, or reload."
            check_finite(f"parameter {name!r} of {self.owner}", weight.detach(), remedy=remedy)


def tie(model: nn.Module, ties: Mapping[str, Tie]) -> None:
    """Let parameters of a copy share memory as `ties` of the original say: a deep copy does not."""
    named = dict(model.named_parameters())
    for name, tied in ties.items():
        named[name].data = tied.of(named[tied.name].data)


def ties_of(model: nn.Module) -> dict[str, Tie]:
    """The trainable parameters that lie in the memory of an earlier one; overlaps of another kind are refused."""
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    owners: dict[int, list[str]] = {}  # memory -> names
    every = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in every.items():
        if tensor.layout == torch.strided and tensor.device.type != "meta" and tensor.numel():
            owners.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    ties: dict[str, Tie] = {}
    for names in owners.values():
        for i, name in enumerate(names):
            for first in names[:i]:
                is_trained = first in trainable, name in trainable
                if first in ties or not any(is_trained) or not _overlap(every[first], every[name]):
                    continue
                tied = _tie_to(first, every[first], every[name]) if all(is_trained) else None
                if tied is None:
                    received = f"has {name!r} in the memory of {first!r}"
                    remedy = "Compute one from the other in forward, or give it memory of its own: .data.clone()."
                    expected = "weights that are trained with their own or with the same whole memory"
                    raise ValueError(argument_message("model", received, expected, remedy))
                ties[name] = tied
                break
    return ties


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have an element in common."""
    (a_low, a_high), (b_low, b_high) = (_extent(tensor) for tensor in (a, b))
    if a_high < b_low or b_high < a_low:
        return False
    places = torch.arange(max(a_high, b_high) + 1)
    used = torch.zeros(len(places), dtype=torch.bool)
    used[places.as_strided(a.shape, a.stride(), a.storage_offset()).reshape(-1)] = True
    return bool(used[places.as_strided(b.shape, b.stride(), b.storage_offset()).reshape(-1)].any())


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The first and the last element of the storage that a tensor has."""
    low = int(tensor.storage_offset())
    return low, low + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _tie_to(name: str, first: Tensor, other: Tensor) -> Tie | None:
    """How `other` is the whole of `first`, permuted or reshaped; None where it is not."""
    if first.storage_offset() != other.storage_offset() or first.numel() != other.numel():
        return None
    if first.is_contiguous() and other.is_contiguous():
        return Tie(name, tuple(range(first.ndim)), other.shape)
    for order in itertools.permutations(range(first.ndim)) if first.ndim <= 5 else ():
        turned = first.permute(order)
        if turned.shape == other.shape and turned.stride() == other.stride():
            return Tie(name, order, other.shape)
    return None


def _filter_dims(model: nn.Module) -> dict[str, int]:
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return {
        f"{name}.weight" if name else "weight": 1
        for name, module in model.named_modules()
        if isinstance(module, transposed) or type(module).__name__ == "Conv1D"
    }
