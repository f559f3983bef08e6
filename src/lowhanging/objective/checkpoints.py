"""Points of weight space with the buffers that training moves, and what those buffers are at another point.

BatchNorm's running statistics belong to a network as much as its weights, but theta does not hold them. A buffer moves
if a forward pass in training mode writes it. A module, a `state_dict`, a file of one or a `Checkpoint` brings its
buffers; a plain vector brings none, and then the caller says which are meant: fixed, recomputed from data, or
interpolated.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, IterableDataset

from lowhanging.errors import DamagedFileError, a_type, argument_message, check_count, check_vector, first_line
from lowhanging.io import Saved, digest, load
from lowhanging.objective.batches import Batches, cloned, num_examples
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.objective.private_copy import copied
from lowhanging.objective.random_state import untouched_random_state

BufferChoice = Literal["fixed", "recalibrate", "interpolate"]
Run = Callable[[nn.Module, Any], Any]  # (model, batch): one forward pass

_COUNTER = "num_batches_tracked"  # of torch's normalization layers: decides nothing in eval mode
_STATES = ("model_state_dict", "state_dict", "model")  # where a dict of a training's state keeps the weights


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
    private = copied(model).train()
    known = tracked_buffers(private)
    frozen = {name for name, layer in tracking_layers(private).items() if not layer.training}  # by a train() of its own
    moving = {name for name in known if name.rpartition(".")[0] not in frozen}
    if set(names) - known:
        before = {name: buffer.clone() for name, buffer in private.named_buffers()}
        with torch.no_grad(), untouched_random_state(), contextlib.suppress(Exception):
            run(private, cloned(first_batch()))
        after = dict(private.named_buffers())
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
                run(model, cloned(batch))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                received = f"has a batch of {num_examples(batch)} on which the model fails in training mode "
                received += f"({(str(error).splitlines() or [''])[0]})"
                expected = "batches from which statistics can be computed"
                remedy = "Pass recalibrate_on= a loader as in training (drop_last=True drops a single example)."
                raise ValueError(argument_message("recalibrate_on", received, expected, remedy)) from error
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


class CalibrationData:
    """The batches on which statistics are recomputed, read once: the same ones at every point.

    A loader's, or any iterable's, as it yields them; tensors and map-style data sets in batches of the library's own
    size; an objective's as it evaluates them. How they are cut matters little: a variance is the mean of those within
    batches.
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
        if hasattr(data, "theta0") and getattr(data, "space", None) is not None:  # the loss of a model
            return cls(list(data.batches))

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
            raise ValueError(argument_message("buffers", received, "buffers of real numbers", remedy))
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


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Saved):
    """A point of weight space with the buffers (BatchNorm's statistics) that a network has there."""

    theta: Tensor  # (p,)
    buffers: dict[str, Tensor] = field(default_factory=dict)  # name -> as in `named_buffers()`; those training moves

    def __repr__(self) -> str:
        kept = f", {len(self.buffers)} buffers" if self.buffers else ""
        return f"Checkpoint({self.theta.numel():,} parameters{kept})"


def checkpoint_of_row(i: int, rows: Tensor, buffers: Mapping[str, Tensor], *, remedy: str) -> Checkpoint:
    """Row i of thetas (t, p), and of buffers name -> (t, ...): copies; negative ones from the end."""
    row = check_count("i", i, minimum=-len(rows), maximum=len(rows) - 1, remedy=remedy)
    return Checkpoint(rows[row].clone(), {name: values[row].clone() for name, values in buffers.items()})


Point = Tensor | nn.Module | Mapping[str, Any] | Checkpoint | str | Path  # theta alone, or with its buffers

_REMEDY = (
    "Pass a theta of the model, the module itself, its state_dict(), a file that torch.save wrote of one, "
    "or a Checkpoint such as run.checkpoint(-1)."
)


def opened(argument: str, value: Any) -> tuple[str, Any]:
    """What a file holds, and the argument with the file's name; the state_dict in a dict of a training's state.

    Files are those of `torch.save` (read with `weights_only=True`, to the CPU) and results that save themselves (.npz).
    In a dict, the weights are under "model_state_dict", "state_dict" or "model", or the only state_dict there is.
    Anything else is returned as it is.

    Raises:
        OSError: the file does not exist, or can't be opened.
        DamagedFileError: it is cut short, or holds more than tensors and plain values.
    """
    if isinstance(value, str | Path):
        argument, value = f"{argument} ({str(value)!r})", _read_file(argument, Path(value))
    if isinstance(value, Mapping) and not _is_state(value):
        named = [value[key] for key in _STATES if _is_state(value.get(key))]
        states = named[:1] or [each for each in value.values() if _is_state(each)]
        value = states[0] if len(states) == 1 else value
    return argument, value


def _is_state(value: Any) -> bool:
    """Whether it is a state_dict: names and tensors, and whatever modules keep as their extra state."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(
            isinstance(name, str) and (isinstance(entry, Tensor | np.ndarray) or name.endswith("_extra_state"))
            for name, entry in value.items()
        )
    )


def _read_file(argument: str, path: Path) -> Any:
    if path.suffix == ".npz":
        return load(path)
    expected = "a file that torch.save wrote of a state_dict"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about archives of other kinds: what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        received = f"is {str(path)!r} ({error.strerror or first_line(error)})"
        failure = type(error)(argument_message(argument, received, expected, "Check the name and the folder."))
        failure.errno = error.errno
        raise failure from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # such a file fails in a dozen ways, as zipfile, pickle and torch please
        received = f"is {str(path)!r}, which is cut short or changed, or holds more than tensors and plain values"
        remedy = "Save weights with torch.save(model.state_dict(), path). Of a whole module, or a file of another kind "
        remedy += "(safetensors), pass the state_dict that you read from it."
        raise DamagedFileError(argument_message(argument, received, expected, remedy)) from error


def with_buffers(value: Any) -> Checkpoint | None:
    """The checkpoint that a value is or has (a minimum, an objective); None for anything else."""
    found = value if isinstance(value, Checkpoint) else getattr(value, "checkpoint", None)
    return found if isinstance(found, Checkpoint) else None


def read_point(argument: str, value: Any, model: nn.Module, space: ParameterSpace) -> Checkpoint:
    """Theta (p,) and whatever buffers a point brings (none with a vector), by the names of `model`; or an error.

    A frozen parameter must be the model's: it is a constant of the loss.
    """
    argument, value = opened(argument, value)
    checkpoint = with_buffers(value)
    if checkpoint is not None:
        theta, entries = checkpoint.theta, dict(checkpoint.buffers)
    elif isinstance(value, nn.Module | Mapping):
        entries = _entries(argument, value)
        theta = _theta(argument, entries, model, space)
    else:
        theta, entries = value, {}
    remedy = "Build vectors from named tensors with objective.space.flatten({...})."
    vector = check_vector(
        argument, theta, space.num_params, owner=space.owner, remedy=remedy,
        like=torch.empty(0, device=space.device, dtype=space.dtype),
    )  # fmt: skip
    return Checkpoint(vector.detach().clone(), _buffers(argument, entries, model))


def thetas_of(argument: str, values: Iterable[Any], model: Any = None) -> list[Any]:
    """The vector of each point, where no loss is asked: a state_dict or a file is read by a module's names (a point's).

    What is no point at all is returned as it is, for `check_vector`; `model` is a module or an objective.
    """
    listed = list(values)
    names = argument.split("|") if "|" in argument else [f"{argument}[{i}]" for i in range(len(listed))]
    if hasattr(model, "as_checkpoint") and getattr(model, "space", None) is not None:
        return [model.as_checkpoint(value, argument=name).theta for name, value in zip(names, listed, strict=False)]
    if model is not None and not isinstance(model, nn.Module):
        expected = "a module or an objective of one"
        raise TypeError(argument_message("model", f"is {a_type(model)}", expected, "Leave it out."))
    module = next((value for value in listed if isinstance(value, nn.Module)), None) if model is None else model
    space = None if module is None else ParameterSpace(module)
    found = []
    for given, each in zip(names, listed, strict=False):
        name, value = opened(given, each)
        checkpoint = with_buffers(value)
        if checkpoint is not None:
            found.append(checkpoint.theta)
        elif isinstance(value, nn.Module | Mapping):
            if module is None or space is None:
                received = "is a state_dict, in which weights and buffers look alike"
                expected = "a vector, a module or a checkpoint, or the model of the names"
                remedy = "Pass model=, the module it was saved from."
                raise ValueError(argument_message(name, received, expected, remedy))
            found.append(_theta(name, _entries(name, value), module, space, constants=False))
        else:
            found.append(value)
    return found


def listed_points(
    argument: str, points: Any, *, remedy: str, expected: str = "at least one point", with_files: bool = True
) -> list[Any]:
    """The points of a training, the rows of a matrix (n, p), or those of any iterable; each still to be read."""
    num = getattr(points, "num_checkpoints", None)  # of a TrainingRun or a TrainingRecord
    if num is not None:
        if num:
            return [points.checkpoint(i) for i in range(num)]
        remedy = "Train with checkpoints=1, or name other points."
        raise ValueError(argument_message(argument, "is a run without checkpoints", expected, remedy))
    is_matrix = isinstance(points, Tensor | np.ndarray) and points.ndim == 2
    one: Any = str | Path | Mapping | Tensor | np.ndarray | nn.Module
    is_list = isinstance(points, Iterable) and not isinstance(points, one)
    found = list(points) if is_matrix or is_list else []
    strangers = [point for point in found if not _is_point(point, with_files)]
    if not found or strangers:
        has_shape = isinstance(points, Tensor | np.ndarray)
        kind = f"a tensor of shape {tuple(points.shape)}" if has_shape else a_type(points)
        received = f"is {kind}" + " of length 0" * (is_list and not found)
        received += f" with {a_type(strangers[0])} in it" if strangers else ""
        raise TypeError(argument_message(argument, received, expected, remedy))
    return found


def _is_point(value: Any, with_files: bool) -> bool:
    is_file = with_files and isinstance(value, str | Path)
    return is_file or isinstance(value, Tensor | np.ndarray | nn.Module | Mapping) or with_buffers(value) is not None


def _entries(argument: str, value: nn.Module | Mapping[str, Any]) -> dict[str, Tensor]:
    """Name -> tensor of a module (all names of what is shared) or a state_dict."""
    if isinstance(value, nn.Module):
        named = dict(value.named_parameters(remove_duplicate=False))
        return named | dict(value.named_buffers(remove_duplicate=False))
    entries = {}
    for name, tensor in value.items():
        if isinstance(name, str) and name.endswith("_extra_state"):
            continue  # whatever a module of the user's keeps there is no tensor of the model
        if not isinstance(name, str) or not isinstance(tensor, Tensor | np.ndarray):
            received = f"holds {a_type(tensor)} under {name!r}"
            raise TypeError(argument_message(argument, received, "a state_dict: name -> tensor", _REMEDY))
        entries[name] = torch.as_tensor(tensor)
    return entries


def _theta(
    argument: str, entries: Mapping[str, Tensor], model: nn.Module, space: ParameterSpace, *, constants: bool = True
) -> Tensor:
    """Theta (p,) of named tensors, which must be this model's: the same names, tied weights alike, its constants."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    known = {*weights, *(name for name, _ in model.named_buffers(remove_duplicate=False))}
    missing = [name for name in space.names if name not in entries]
    unknown = [name for name in entries if name not in known]
    if missing or unknown:
        received = f"lacks {missing[:8]} and adds {unknown[:8]}"
        remedy = "Pass a module of the same class and sizes; drop a prefix such as 'module.' from the names."
        raise ValueError(argument_message(argument, received, f"the parameters and buffers of {space.owner}", remedy))
    for name, entry in entries.items():
        if name in space.names or name not in weights:
            continue
        same = next((other for other in space.names if weights[other] is weights[name]), None)
        if same is not None and not same_values(entry.detach(), entries[same].detach()):
            received = f"has different {same!r} and {name!r}"
            expected = f"one tensor under both names, as in {space.owner}"
            remedy = "Tie them, or make a loss of a model without the tie."
            raise ValueError(argument_message(argument, received, expected, remedy))
        is_constant = constants and same is None and not weights[name].requires_grad
        if is_constant and not same_values(weights[name].detach(), entry.detach()):
            received = f"has another frozen parameter {name!r} than the loss"
            remedy = "Make an objective of that model, or unfreeze it in both: parameter.requires_grad_(True)."
            raise ValueError(argument_message(argument, received, "the constants of the loss", remedy))
    try:
        return space.flatten({name: entries[name] for name in space.names})
    except ValueError as error:
        error.add_note(f"This is about {argument}.")
        raise


def _buffers(argument: str, entries: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The entries that are buffers of the model, on its device, with their shapes checked."""
    found, own = {}, dict(model.named_buffers())
    shared = {name for name, _ in model.named_buffers(remove_duplicate=False)} - own.keys()
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    remedy = "Pass a point of a model of the same class and sizes."
    for name, entry in entries.items():
        if name in weights or name in shared:
            continue
        if name not in own:
            expected = f"buffers among {sorted(own)[:8]}"
            raise ValueError(argument_message(argument, f"has a buffer {name!r}", expected, remedy))
        if entry.shape != own[name].shape:
            received = f"has a buffer {name!r} of shape {tuple(entry.shape)}"
            raise ValueError(argument_message(argument, received, f"{tuple(own[name].shape)} as in the loss", remedy))
        found[name] = entry.detach().to(own[name].device, own[name].dtype).clone()
    return found


def refuse_plain(argument: str, names: Iterable[str], *, choices: str) -> NoReturn:
    """Raise the error for a point without buffers, where the model has some that training moves."""
    listed = list(names)
    shown = ", ".join(map(repr, listed[:3])) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
    received = f"is weights alone, and training moves the model's buffers {shown}"
    expected = "a point with its buffers, or a word on which are meant"
    remedy = f"Pass the module, its state_dict() or a checkpoint (run.checkpoint(i), minimum.checkpoint); or {choices}."
    raise ValueError(argument_message(argument, received, expected, remedy))
