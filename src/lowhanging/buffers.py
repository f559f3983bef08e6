"""Buffers that training moves: which ones they are, and what they are at another point of weight space.

BatchNorm's running statistics belong to a network as much as its weights, but theta does not hold them. The rule is
general: a buffer moves if a forward pass in training mode writes it. At a point that no network was trained to they can
be recomputed from data (layers that know how to start anew, as torch's normalisation layers do) or interpolated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import Dataset, IterableDataset

from lowhanging.batches import Batches, num_examples, untouched_random_state
from lowhanging.errors import explain
from lowhanging.private_copy import copied
from lowhanging.results import digest

BufferChoice = Literal["fixed", "recalibrate", "interpolate"]
Run = Callable[[nn.Module, Any], Any]  # (model, batch): one forward pass

_COUNTER = "num_batches_tracked"  # of torch's normalisation layers: decides nothing in eval mode


def tracking_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer with statistics that can be recomputed: it has `reset_running_stats` and `momentum`."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if callable(getattr(layer, "reset_running_stats", None))
        and hasattr(layer, "momentum")
        and any(True for _ in layer.named_buffers(recurse=False))
    }


def tracked_buffers(model: nn.Module) -> set[str]:
    """Names of the buffers of tracking layers."""
    return {
        f"{name}.{own}" if name else own
        for name, layer in tracking_layers(model).items()
        for own, _ in layer.named_buffers(recurse=False)
    }


def moving_buffers(model: nn.Module, run: Run, first_batch: Callable[[], Any]) -> tuple[str, ...]:
    """Names of the buffers that a forward pass in training mode writes; the model itself stays as it is.

    Tracking layers that can be in training mode at all need no pass. Where one is needed and fails (a single example in
    the batch), what was written before it failed is what is known.
    """
    names = [name for name, _ in model.named_buffers()]
    if not names:
        return ()
    probe = copied(model).train()
    known = tracked_buffers(probe)
    frozen = {name for name, layer in tracking_layers(probe).items() if not layer.training}  # by a train() of its own
    moving = {name for name in known if name.rpartition(".")[0] not in frozen}
    if set(names) - known:
        before = {name: buffer.clone() for name, buffer in probe.named_buffers()}
        with torch.no_grad(), untouched_random_state(), contextlib.suppress(Exception):
            run(probe, _own(first_batch()))
        after = dict(probe.named_buffers())
        moving |= {name for name in names if name in after and not same_values(before[name], after[name])}
    return tuple(name for name in names if name in moving)


def recalibrated(model: nn.Module, run: Run, batches: Iterable[Any]) -> dict[str, Tensor]:
    """The buffers of a private model (used up) after its statistics were recomputed, the mean over the batches of each.

    One pass with the tracking layers alone in training mode and torch's cumulative average (`momentum=None`), as
    `torch.optim.swa_utils.update_bn`, but dropout stays off. A layer that train() leaves in eval mode keeps its own.
    """
    model.train()
    layers = [layer for layer in tracking_layers(model).values() if layer.training]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()  # type: ignore[operator]
        layer.momentum = None  # type: ignore[assignment]
        layer.training = True
    with torch.no_grad(), untouched_random_state():
        for batch in batches:
            try:
                run(model, _own(batch))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                first_line = (str(error).splitlines() or [""])[0]
                received = f"has a batch of {num_examples(batch)} on which the model fails in training mode"
                remedy = "Pass recalibrate_on= a loader as in training (drop_last=True drops a single example)."
                expected = "batches from which statistics can be computed"
                raise ValueError(explain("recalibrate_on", f"{received} ({first_line})", expected, remedy)) from error
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


class CalibrationData:
    """The batches on which statistics are recomputed, read once: the same ones at every point.

    A loader's, or any iterable's, as it yields them; tensors and map-style data sets in batches of the library's own
    size; an objective's as it evaluates them (which may have been joined and cut). How they are cut matters little: a
    variance is the mean of those within batches.
    """

    def __init__(self, batches: list[Any]):
        self.batches = batches

    def digest(self) -> str:
        """Of all tensors, in order."""
        return digest(*(leaf for leaf in tree_leaves(self.batches) if isinstance(leaf, Tensor)))

    @classmethod
    def of(cls, data: Any, *, device: torch.device, dtype: torch.dtype) -> CalibrationData:
        """Of whatever the user calls data."""
        if isinstance(data, CalibrationData):
            return data
        inner = data
        while hasattr(inner, "unanchored"):
            inner = inner.unanchored
        if hasattr(inner, "theta0") and hasattr(inner, "batches"):
            return cls(list(inner.batches))

        def read(part: Any, size: int | None) -> list[Any]:
            try:
                return list(Batches(part, device=device, dtype=dtype, micro_batch=size, cache=True))
            except (ValueError, TypeError) as error:
                error.add_note("This is about recalibrate_on.")
                raise

        is_set = isinstance(data, tuple) or (isinstance(data, Dataset) and not isinstance(data, IterableDataset))
        if is_set or isinstance(data, Tensor | np.ndarray | str | Mapping) or not isinstance(data, Iterable):
            return cls(read(data, None))
        with untouched_random_state():
            given = list(data)
        if not given:
            return cls(read(given, None))  # says that it is empty
        return cls([batch for part in given for batch in read([part], max(1, num_examples(part)))])


def interpolated(start: Mapping[str, Tensor], end: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """The buffers (1 - t) start + t end, name by name; what is equal at both ends is taken as it is.

    Raises:
        ValueError: an integer buffer differs (BatchNorm's counter of batches is rounded: it decides nothing).
    """
    found = {}
    for name in start:
        a, b = start[name], end[name]
        if same_values(a, b):
            found[name] = a
            continue
        is_number = a.is_floating_point() or a.is_complex()
        if not is_number and name.rpartition(".")[2] != _COUNTER:
            received = f"is 'interpolate', and the buffer {name!r} ({a.dtype}) differs between two points"
            remedy = "Pass buffers='fixed', or points that share it."
            raise ValueError(explain("buffers", received, "buffers of real numbers", remedy))
        wide = a.dtype if a.is_complex() else torch.float64
        mixed = (1.0 - t) * a.to(wide) + t * b.to(a.device, wide)
        found[name] = (mixed if is_number else mixed.round()).to(a.dtype)
    return found


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN being NaN, on whatever device."""
    b = b.to(a.device, a.dtype)
    if a.shape != b.shape:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def _own(batch: Any) -> Any:
    """A copy: a forward pass in training mode may write into its inputs."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)
