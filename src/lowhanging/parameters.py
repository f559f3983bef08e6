"""How do a model's named tensors and the flat vector theta (p,) map onto each other?

This is the only place that flattens. Theta holds the *trainable* parameters in `named_parameters()` order, a shared
one once; frozen ones are constants of the loss. Everything else in the library knows theta only.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NoReturn

import torch
from torch import Tensor, nn

from lowhanging.errors import check_finite, explain

# Names of parameters as in `named_parameters()`: a glob such as "conv1.*", several, or a test of a name.
Parameters = str | Collection[str] | Callable[[str], bool]


class ParameterSpace:
    """The trainable parameters of a model as one flat vector.

    theta = (vec(W_1), vec(W_2), ...), each tensor in row-major order, in `named_parameters()` order. A shared parameter
    appears once, under its first name; frozen parameters do not appear.

    Attributes:
        names: names of the trainable parameters, in order.
        shapes: their shapes.
        num_params: p, the length of theta.
        dtype: the widest dtype among them, at least float32 (a bfloat16 model is studied in float32).
        device: where they live; all on one device.
        filter_dims: name -> dimension along which its filters (output channels or units) lie, where that is not 0:
            transposed convolutions and the Conv1D of GPT-2 store inputs first.

    Raises:
        ValueError: nothing is trainable, parameters lie on several devices, are complex, or hold NaN or inf.
    """

    def __init__(self, model: nn.Module):
        self.owner = type(model).__name__
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not trainable:
            received = f"({self.owner}) has no trainable parameter"
            remedy = "Unfreeze what you want to study: parameter.requires_grad_(True)."
            raise ValueError(explain("model", received, "at least one parameter with requires_grad=True", remedy))
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
        return (
            f"ParameterSpace({self.owner}, {self.num_params:,} parameters in {len(self.names)} tensors, {self.dtype})"
        )

    def flatten(self, tensors: nn.Module | Mapping[str, Tensor]) -> Tensor:
        """Theta (p,) of a model, or of a mapping name -> tensor with exactly the names and shapes of this space.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs.
        """
        named = dict(tensors.named_parameters()) if isinstance(tensors, nn.Module) else dict(tensors)
        if isinstance(tensors, nn.Module):
            named = {name: weight for name, weight in named.items() if name in self.names}
        missing, unknown = set(self.names) - set(named), set(named) - set(self.names)
        if missing or unknown:
            received = f"lack {sorted(missing)} and add {sorted(unknown)}"
            expected = f"exactly the {len(self.names)} trainable parameters of {self.owner}"
            raise ValueError(explain("tensors", received, expected, "See space.names; fill absent ones with zeros."))
        for name, shape in zip(self.names, self.shapes, strict=True):
            if named[name].shape != shape:
                received = f"has shape {tuple(named[name].shape)}"
                raise ValueError(
                    explain(name, received, f"{tuple(shape)} as in {self.owner}", "Reshape or transpose it.")
                )
        # A fresh tensor, never a view of the user's weights, even for a single parameter.
        parts = [named[name].detach().to(self.device, self.dtype).reshape(-1) for name in self.names]
        return torch.cat(parts).clone() if len(parts) == 1 else torch.cat(parts)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Mapping name -> view into theta (p,), differentiable."""
        parts = torch.split(theta, self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def named(self, parameters: Parameters) -> tuple[str, ...]:
        """The names, in the order of theta, that any glob matches or that a test `name -> bool` accepts.

        Raises:
            ValueError: a glob matches no name, or the test accepts none.
        """
        if callable(parameters):
            found = {name for name in self.names if parameters(name)}
            if not found:
                self._refuse("accepts no name")
            return tuple(name for name in self.names if name in found)
        globs = (
            [parameters]
            if isinstance(parameters, str)
            else list(parameters)
            if isinstance(parameters, Iterable)
            else []
        )
        if not globs or not all(isinstance(glob, str) for glob in globs):
            remedy = 'Pass "conv1.*", ["conv1.*", "fc.bias"] or lambda name: name.endswith("weight").'
            expected = "a glob on names, a list of globs, or a test of a name"
            raise TypeError(explain("parameters", f"is {parameters!r}", expected, remedy))
        for glob in globs:
            if not any(fnmatch.fnmatchcase(name, glob) for name in self.names):
                self._refuse(f"has {glob!r}, which matches no name")
        return tuple(name for name in self.names if any(fnmatch.fnmatchcase(name, glob) for glob in globs))

    def positions(self, names: Collection[str]) -> Tensor:
        """Where the named parameters lie in theta, (q,) integers in rising order."""
        ranges = torch.split(torch.arange(self.num_params, device=self.device), self.sizes)
        return torch.cat([where for name, where in zip(self.names, ranges, strict=True) if name in names])

    def _refuse(self, received: str) -> NoReturn:
        listed = ", ".join(self.names[:40]) + (" ..." if len(self.names) > 40 else "")
        remedy = "Frozen parameters are constants, and a shared one stands under its first name only."
        raise ValueError(explain("parameters", received, f"names among {listed} of {self.owner}", remedy))

    def _check(self, trainable: Mapping[str, Tensor]) -> None:
        devices = {str(weight.device) for weight in trainable.values()}
        if len(devices) > 1:
            received = f"({self.owner}) has parameters on {sorted(devices)}"
            raise ValueError(explain("model", received, "one device", "Move it with model.to(device)."))
        for name, weight in trainable.items():
            if not weight.is_floating_point():
                received = f"has dtype {weight.dtype}"
                remedy = "Store real and imaginary parts as two real parameters."
                raise ValueError(explain(f"parameter {name!r}", received, "a real floating-point dtype", remedy))
            check_finite(
                f"parameter {name!r} of {self.owner}", weight.detach(), remedy="Train with a smaller step, or reload."
            )


def _filter_dims(model: nn.Module) -> dict[str, int]:
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return {
        f"{name}.weight" if name else "weight": 1
        for name, module in model.named_modules()
        if isinstance(module, transposed) or type(module).__name__ == "Conv1D"
    }
