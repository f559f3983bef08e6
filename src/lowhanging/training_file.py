"""How does a training go on after an interruption, to the same bits?

What the next step depends on is kept at the end of an epoch: weights and buffers, the optimizer's state, the state of
every random generator, and the history. Tensors of any dtype and an optimizer's nested state are what torch can write
and read back without running code from the file, so that is what lies in it, as one array of bytes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from lowhanging.errors import explain
from lowhanging.parameters import ParameterSpace
from lowhanging.results import digest
from lowhanging.resume_file import ResumeFile
from lowhanging.shuffled import ShuffledBatches
from lowhanging.training_options import Schedule, optimizer_identity

State = dict[str, Any]  # plain values, tensors, and lists and mappings of them


class TrainingFile:
    """The file of one training."""

    def __init__(self, resume: str | Path, identity: Mapping[str, str]):
        self._file = ResumeFile(resume, identity, kind="a training", run="training")
        self._pending: np.ndarray | None = None  # the newest state, where the file has an older one
        self._is_readable = False  # whether a state of this run is known to come back

    def read(self) -> State | None:
        """The state that was written last; None without a file."""
        stored = self._file.read()
        if stored is None:
            return None
        try:
            return _read_back(stored[0]["state"])
        except Exception as error:  # torch has no one error for bytes that are none of its own
            raise self._file.damaged() from error

    def keep(self, state: State, *, now: bool = False) -> None:
        """Write the state, unless the writing would take more than a tenth of the time; then it waits for `flush`."""
        self._pending = self._as_bytes(state)
        if now or self._file.is_due:
            self._write()

    def flush(self) -> None:
        """Write what waits, on the way out of a run that has failed: a full disk is not the error to report."""
        with contextlib.suppress(OSError):
            self._write()

    def refuse(self, what: str) -> NoReturn:
        """Raise the error for a file whose training had another model, loss or data set, or began elsewhere."""
        remedy = "Name another file, or repeat the call that made this one, with as many threads."
        if what == "model (its weights)":
            remedy = "Pass the model as it was before that training, or as that training left it; or name another file."
        self._file.refuse([what], remedy)

    def _write(self) -> None:
        if self._pending is not None:
            self._file.write({"state": self._pending}, {})
            self._pending = None

    def _as_bytes(self, state: State) -> np.ndarray:
        buffer = io.BytesIO()
        try:
            torch.save(state, buffer)
            found = np.frombuffer(buffer.getbuffer(), dtype=np.uint8)
            if not self._is_readable:
                _read_back(found)
                self._is_readable = True
        except Exception as error:  # pickle has no one error for what it can't write
            received = f"has a state that can't be written and read back safely ({str(error).splitlines()[0]})"
            remedy = "Leave resume= out, or use an optimizer of torch's."
            expected = "state_dict() of tensors and plain values"
            raise TypeError(explain("optimizer", received, expected, remedy)) from error
        return found


def training_identity(
    model: nn.Module,
    batches: ShuffledBatches,
    optimizer: torch.optim.Optimizer,
    factor: Schedule,
    losses: tuple[Callable[..., Any] | None, ...],
    names: list[str],
    device: torch.device,
    counts: Mapping[str, Any],
) -> dict[str, str]:
    """What determines a training, in words that are the same in another process; the weights are told by the state."""
    space = ParameterSpace(model)
    buffers = [(name, tuple(buffer.shape), str(buffer.dtype)) for name, buffer in model.named_buffers()]
    return {
        "data": batches.identity(),
        "model": repr((space.names, space.shapes, str(space.dtype), buffers)),
        "optimizer, lr or schedule": optimizer_identity(optimizer, factor),
        "loss_fn or batch_loss": repr([_name(function) for function in losses]),
        "evaluate": repr(names),
        "device": device.type,
        **{name: repr(value) for name, value in counts.items()},
    }


def digest_of(model: nn.Module) -> str:
    """Of weights and buffers, frozen ones too."""
    return digest(*model.parameters(), *model.buffers())


def _name(function: Callable[..., Any] | None) -> str | None:
    if function is None:
        return None
    return str(getattr(function, "__qualname__", type(function).__name__))


def _read_back(stored: np.ndarray) -> State:
    state: State = torch.load(io.BytesIO(stored.tobytes()), map_location="cpu", weights_only=True)
    return state
