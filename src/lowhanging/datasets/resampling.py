"""Data sets in which one cue is another example's: resample-ablation of a cue in the data.

To *blank* a cue asks what a network makes of inputs that it never saw; to *resample* it keeps the inputs like those of
training, and only takes away what the cue says about the target. Every example's cue is moved once, and none stays with
its own example; the two may still have the same class, by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.datasets.examples import Examples
from lowhanging.errors import a_type, argument_message, check_count, first_line

Replace = Callable[[Tensor, Tensor], Tensor] | Sequence[int] | int | Tensor


@dataclass(frozen=True, repr=False, eq=False)
class ResampledExamples(Examples):
    """Examples that show their own cue beside another example's.

    Attributes:
        inputs: (n, ...) as the original ones, one cue replaced.
        targets: (n,) of the cue that is the example's own.
        source: (n,) int64, the example whose cue replaced that of example i; a permutation, source[i] != i.
    """

    source: Tensor

    def __repr__(self) -> str:
        return f"ResampledExamples({len(self)} examples, inputs {tuple(self.inputs.shape)})"


def resample(data: Any, replace: Replace, *, seed: int = 0) -> ResampledExamples:
    """The same examples, one cue of each replaced by another example's.

    With a random permutation s that leaves nothing in place (one cycle through all examples), example i becomes
    (x_i with the cue of x_s(i), y_i). What the cue says of y is gone; how it looks is not.

    Args:
        data: (inputs, targets), tensors of n examples along dimension 0, or a data set that has both.
        replace: where the cue is. Indices along dimension 1 (columns of a table, channels of images); or a boolean
            mask of one example's shape; or a function (inputs, others) -> inputs, such as
            `lambda x, other: torch.cat([x[:, :3], other[:, 3:]], 1)`.
        seed: of the permutation. The global random states are not touched.

    Returns:
        ResampledExamples, a Dataset with `.inputs`, `.targets` and `.source`.

    Raises:
        ValueError, TypeError: fewer than two examples, indices or a mask that don't fit, a function whose result has
            another shape.

    Cost:
        a copy of the inputs.

    Source:
        "resample-ablation" of activations: Chan et al. (2022), "Causal scrubbing"; here of a cue in the inputs.

    Example:
        >>> x, y = torch.arange(8.0).reshape(4, 2), torch.tensor([0, 1, 0, 1])
        >>> moved = resample((x, y), replace=[1])
        >>> bool((moved.inputs[:, 0] == x[:, 0]).all()), bool((moved.inputs[:, 1] == x[:, 1]).any())
        (True, False)
    """
    inputs, targets = _tensors(data)
    source = derangement(len(inputs), np.random.default_rng(check_count("seed", seed, minimum=0, remedy="Pass 0.")))
    others = inputs[source]
    if callable(replace):
        mixed = _called(replace, inputs, others)
    else:
        mixed = torch.where(_mask(replace, inputs), others, inputs)
    return ResampledExamples(mixed, targets, source)


def derangement(num: int, generator: np.random.Generator) -> Tensor:
    """A permutation (num,) int64 that leaves nothing in place: one cycle through all, in random order."""
    if num < 2:
        remedy = "Another example's cue needs another example."
        raise ValueError(argument_message("data", f"holds {num} example", "two at least", remedy))
    order = generator.permutation(num)
    source = np.empty(num, dtype=np.int64)
    source[order] = np.roll(order, 1)
    return torch.from_numpy(source)


def _tensors(data: Any) -> tuple[Tensor, Tensor]:
    remedy = "Pass (inputs, targets), such as (view.train.inputs, view.train.targets)."
    pair = (data.inputs, data.targets) if hasattr(data, "inputs") and hasattr(data, "targets") else data
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise TypeError(
            argument_message("data", f"is {a_type(data)}", "a pair of tensors, or a data set of two", remedy)
        )
    inputs, targets = (part.detach() for part in pair)
    if not inputs.ndim or len(inputs) < 2 or not targets.ndim or len(targets) != len(inputs):
        received = f"has inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)}"
        raise ValueError(argument_message("data", received, "two examples at least, with a target each", remedy))
    return inputs, targets


def _called(replace: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, others: Tensor) -> Tensor:
    remedy = "Return a new tensor: lambda x, other: torch.where(mask, other, x)."
    given = inputs.clone()
    mixed = replace(given, others)
    if not isinstance(mixed, Tensor) or mixed.shape != inputs.shape:
        received = f"returned {a_type(mixed) if not isinstance(mixed, Tensor) else f'shape {tuple(mixed.shape)}'}"
        raise ValueError(argument_message("replace", received, f"the inputs' shape {tuple(inputs.shape)}", remedy))
    return mixed.clone() if mixed is others else mixed


def _mask(replace: Any, inputs: Tensor) -> Tensor:
    """Boolean, of one example's shape or one that broadcasts to it: True where the cue is."""
    shape = tuple(inputs.shape[1:])
    remedy = "Pass columns (or channels), a boolean mask, or a function (inputs, others) -> inputs."
    try:
        where = torch.as_tensor(replace, device=inputs.device)
    except (TypeError, ValueError, RuntimeError) as error:
        received = f"is {a_type(replace)} ({first_line(error)})"
        raise TypeError(argument_message("replace", received, "indices, a mask or a function", remedy)) from error
    if where.dtype == torch.bool:
        if tuple(where.shape) != shape:
            received = f"is a mask of shape {tuple(where.shape)}"
            raise ValueError(argument_message("replace", received, f"{shape}, that of an example", remedy))
        mask = where
    else:
        num = shape[0] if shape else 0
        is_index = not (where.is_floating_point() or where.is_complex()) and where.numel() > 0
        is_index = (
            is_index and len(set(where.reshape(-1).tolist())) == where.numel()
        )  # zeros and ones are a mask that is no bool
        if not is_index or not num or int(where.min()) < 0 or int(where.max()) >= num:
            raise ValueError(
                argument_message("replace", f"is {replace!r}", f"different indices from 0 to {num - 1}", remedy)
            )
        chosen = torch.zeros(num, dtype=torch.bool, device=inputs.device)
        chosen[where.reshape(-1).long()] = True
        mask = chosen.reshape(num, *(1,) * (len(shape) - 1))
    if bool(mask.all()):
        received, expected = "covers all of an example", "one cue of several"
        raise ValueError(argument_message("replace", received, expected, remedy))
    return mask
