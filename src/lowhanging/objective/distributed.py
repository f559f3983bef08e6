"""Processes that share one loss: each holds a part of the data, sums are added up, all else is done on every rank.

That is right as long as all ranks ask for the same things, at the same theta, in the same order. A rank that does not
would leave the others waiting, or spoil their sums silently; here it is an error on every rank:

* Ranks that make a loss first *meet*, through the store by which `torch.distributed` found them. A wait there can end,
  and leaves no half of an all_reduce behind for the next collective call to stumble over.
* Every question begins with a few numbers from each rank: which question, a hash of theta and v, whether the rank's own
  part failed. Only then are vectors summed, in float64, in one all_reduce. Numbers are summed in the order of the
  ranks, so that a loss has the same bits whatever was asked for with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lowhanging.errors import (
    a_type,
    argument_message,
    warn,
)

Sums = tuple[list[Any], list[Tensor]]  # numbers (floats, scalar tensors) and float64 tensors, each a sum over examples

Shards = Literal["split", "given"]
SHARDS = ("split", "given")

PATIENCE = 600.0  # seconds until a rank stops waiting for the others to make the same loss; a note after a twentieth
_READING = 24 * 3600.0  # seconds for all ranks to read their data, once all are known to be at it
_NUMBERS = 4  # in a question, at most
_OWN = "Make it of the same model and with the same arguments on every rank, or pass distributed=False."
_SAME = {
    "model": _OWN,
    "theta0": "Give all ranks the same whole weights first (torch.distributed.broadcast), or pass distributed=False.",
    "constants": "Give all ranks the same frozen parameters and buffers first: in training each rank gathers BatchNorm "
    "statistics of its own.",
    "loss": _OWN,
    "mode": _OWN,
    "shards": _OWN,
}
_WHOLE = {
    "data": "Read the same examples in the same order on every rank (shuffle with a generator of the same seed); or "
    'pass Objective(..., shards="given") loaders that yield each rank its own part.'
}
_ALONE = "Make it on every rank, or pass distributed=False for a loss of this process alone."


class Ranks:
    """The processes that share the examples of one loss: this one is number `rank` of `size`."""

    def __init__(self, group: dist.ProcessGroup):
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._group = group
        self._store = dist.distributed_c10d._get_default_store()
        # The how-many-th loss of this group: that of every rank, or they do not meet.
        self._number = self._store.add(f"lowhanging/{group.group_name}/{self.rank}", 1)
        self._num_failures = 0  # of this rank
        self._weights = torch.empty(0, dtype=torch.int64)

    def __repr__(self) -> str:
        return f"rank {self.rank} of {self.size}"

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Around the making of a loss: begins when all ranks are there; what is raised inside, the others are told."""
        try:
            self._write("here", "")
            self._read("here", PATIENCE)
            yield
        except Exception as error:
            self._write("made", json.dumps({"failure": _line(error)}))
            raise

    def agree(self, facts: Mapping[str, Any], same: Mapping[str, str]) -> list[dict[str, Any]]:
        """The facts of every rank, in order; those named in `same`, with a remedy, must be the same on all.

        Raises:
            RuntimeError: another rank failed to make its loss.
            ValueError: one of them is not the same; on every rank.
        """
        self._write("made", json.dumps(facts))
        found = [json.loads(text) for text in self._read("made", _READING)]
        for rank, theirs in enumerate(found):
            if "failure" in theirs:
                raise _elsewhere(rank, theirs["failure"])
        for name, remedy in same.items():
            for rank, theirs in enumerate(found):
                if theirs[name] != found[0][name]:
                    received = f"is {found[0][name]} on rank 0 and {theirs[name]} on rank {rank}"
                    raise ValueError(argument_message(name, received, "the same on every rank", remedy))
        return found

    def agree_on_loss(self, facts: Mapping[str, Any], shards: Shards) -> int:
        """How many examples the ranks have together, if all have made the same loss; else an error on every rank."""
        found = self.agree({**facts, "shards": shards}, _SAME | (_WHOLE if shards == "split" else {}))
        if shards == "given" and len({theirs["data"] for theirs in found}) < self.size:
            received = "is the same on several ranks"
            remedy = 'Pass shards="split" where every rank has all of the data.'
            raise ValueError(argument_message("data", received, "a part of its own on each rank", remedy))
        return sum(theirs["num_examples"] for theirs in found)

    def total(self, question: str, sums: Callable[[], Sums], *inputs: Tensor) -> Sums:
        """The sums of all ranks, the same bits on each of them.

        The question, in words, and the vectors or rows that the sums depend on are the same on every rank; what `sums`
        raises is raised here, and something is on every other rank too.

        Raises:
            RuntimeError: another rank failed (torch.OutOfMemoryError where it ran out of memory), or was asked for
                something else.
            ValueError: the inputs differ.
        """
        rows, (numbers, tensors) = self._exchange(question, sums, inputs)
        totals = [sum(column) for column in zip(*rows, strict=True)]  # in the order of the ranks
        device = inputs[0].device
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]) if tensors else torch.empty(0)
        if tensors:
            flat = flat.to(self._transport(device))
            dist.all_reduce(flat, group=self._group)
        parts = torch.split(flat.to(device), [tensor.numel() for tensor in tensors])
        return (
            [mine.new_tensor(x) if isinstance(mine, Tensor) else x for mine, x in zip(numbers, totals, strict=True)],
            [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)],
        )

    def highest(self, question: str, choose: Callable[[], int], *inputs: Tensor) -> int:
        """The highest number that any rank chose: what is measured or tested on each is decided by all."""
        rows, _ = self._exchange(question, lambda: ([choose()], []), inputs)
        return int(max(row[0] for row in rows))

    def _exchange(self, question: str, sums: Callable[[], Sums], inputs: tuple[Tensor, ...]) -> tuple[Any, Sums]:
        """The numbers of every rank (size, n), and this rank's own part; an error on every rank where they disagree."""
        status, failure = 0, None
        numbers: list[Any] = []
        tensors: list[Tensor] = []
        try:
            numbers, tensors = sums()
        except Exception as error:
            failure = error
            self._num_failures += 1  # each under a name of its own: this rank goes on before others have read it
            self._write(f"failure {self._num_failures}", _line(error))
            status = -self._num_failures if isinstance(error, torch.OutOfMemoryError) else self._num_failures
        shapes = [tuple(tensor.shape) for tensor in inputs]
        asked = hashlib.sha256(f"{self._number} {question} {shapes}".encode()).digest()
        row = [status, int.from_bytes(asked[:6], "little"), self._hash(inputs), *map(float, numbers)]
        device = self._transport(inputs[0].device)
        mine = torch.zeros(3 + _NUMBERS, dtype=torch.float64, device=device)
        mine[: len(row)] = torch.tensor(row, dtype=torch.float64)
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(theirs, mine, group=self._group)
        rows = [tensor.tolist() for tensor in theirs]
        if failure is not None:
            raise failure
        if len({row[1] for row in rows}) > 1:
            received = f"were asked for different things (this one for {question})"
            remedy = "Let every rank make the same calls in the same order, also where only one prints the result."
            raise RuntimeError(argument_message("the ranks", received, "one question at a time", remedy))
        for rank, row in enumerate(rows):
            if row[0]:
                what = self._store.get(self._key(f"failure {abs(int(row[0]))}", rank)).decode()
                raise _elsewhere(rank, what, RuntimeError if row[0] > 0 else torch.OutOfMemoryError)
        if len({row[2] for row in rows}) > 1:
            received = f"differs between the ranks ({question})"
            remedy = "Draw random vectors from a generator with the same seed on every rank, or broadcast them; where "
            remedy += "they come from equal computations, the processors or the numbers of threads differ."
            raise ValueError(argument_message("theta or v", received, "the same bits on every rank", remedy))
        return [row[3 : 3 + len(numbers)] for row in rows], (numbers, tensors)

    def _hash(self, inputs: tuple[Tensor, ...]) -> int:
        """52 bits that differ where the inputs do: exact in a float64."""
        found = 0
        for tensor in inputs:
            rows = tensor.detach().reshape(-1, tensor.shape[-1]).contiguous()
            bits = rows.view(torch.int32 if rows.dtype == torch.float32 else torch.int64).long()
            if len(self._weights) != bits.shape[1] or self._weights.device != bits.device:
                generator = torch.Generator().manual_seed(0)
                weights = torch.randint(-(2**63), 2**63 - 1, (bits.shape[1],), generator=generator)
                self._weights = weights.to(bits.device)
            for part in (bits * self._weights).sum(1).tolist():  # wraps around: all of this is modulo 2^64
                found = (found * 0x9E3779B97F4A7C15 + part + 1) % 2**64
        return found >> 12

    def _transport(self, device: torch.device) -> torch.device:
        """Where tensors are sent from: gloo knows CPU tensors best."""
        backends = dict(pair.split(":") for pair in dist.get_backend_config(self._group).split(","))
        if device.type not in backends:
            received = f"have a group for {', '.join(backends)} tensors only, and the weights are on {device}"
            remedy = 'Pass device=, or start the group with init_process_group("cpu:gloo,cuda:nccl").'
            raise ValueError(argument_message("the ranks", received, f"a backend for {device.type} tensors", remedy))
        return torch.device("cpu") if backends[device.type] == "gloo" else device

    def _key(self, name: str, rank: int) -> str:
        return f"lowhanging/{self._group.group_name}/{self._number}/{name}/{rank}"

    def _write(self, name: str, text: str) -> None:
        self._store.set(self._key(name, self.rank), text)

    def _read(self, name: str, patience: float) -> list[str]:
        """What every rank has written under a name, as soon as all have."""
        keys = [self._key(name, rank) for rank in range(self.size)]
        try:
            self._store.wait(keys, timedelta(seconds=patience / 20))
        except RuntimeError:
            late = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            warn(f"{self} waits for rank {late} to make the same loss. {_ALONE}", RuntimeWarning)
            try:
                self._store.wait(keys, timedelta(seconds=patience))
            except RuntimeError as error:
                received = f"is made on {self}, and not on rank {late} within {patience:g} s"
                expected = f"one on all {self.size} ranks"
                raise RuntimeError(argument_message("the loss", received, expected, _ALONE)) from error
        return [self._store.get(key).decode() for key in keys]


def find_ranks(distributed: bool | dist.ProcessGroup | None) -> Ranks | None:
    """The processes that a loss is shared with; None where it is this one's alone. See `Objective`."""
    is_running = dist.is_available() and dist.is_initialized()
    if distributed is False or (distributed is None and not is_running):
        return None
    if not is_running:
        expected = "torch.distributed to be initialised"
        remedy = "Start the script with torchrun and call torch.distributed.init_process_group(), or leave it out."
        raise ValueError(argument_message("distributed", f"is {distributed}", expected, remedy))
    group = dist.group.WORLD if distributed is None or distributed is True else distributed
    if isinstance(group, int) or not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0:
        received = f"is {a_type(group)}"
        if isinstance(group, int | dist.ProcessGroup):  # new_group gives processes that are not in it a number
            received = "is no group that this process is in"
        remedy = "Make the objective on the members of the group only."
        raise ValueError(argument_message("distributed", received, "True, False, None or a process group", remedy))
    return Ranks(group) if dist.get_world_size(group) > 1 else None


def check_shards(model: Any, data: Any, shards: Shards) -> None:
    """Refuse a model that would synchronise behind our back, and a sampler that repeats examples."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        received = "is wrapped in DistributedDataParallel"
        raise ValueError(argument_message("model", received, "the model itself", "Pass model.module."))
    sampler = data.sampler if shards == "given" and isinstance(data, DataLoader) else None
    if isinstance(sampler, DistributedSampler) and not sampler.drop_last:
        extra = sampler.total_size - len(sampler.dataset)  # type: ignore[arg-type]
        if extra:
            received = f"repeats {extra} example{'s' * (extra > 1)} (DistributedSampler makes all shards equally long)"
            remedy = (
                'Pass the whole with shards="split", or Subset(data, range(rank, len(data), num_ranks)) on each rank.'
            )
            raise ValueError(argument_message("data", received, "every example once", remedy))


def over_ranks(ranks: Ranks | None, question: str, sums: Callable[[], Sums], *inputs: Tensor) -> Sums:
    """`sums()`, added up over the ranks where there are several."""
    return sums() if ranks is None else ranks.total(question, sums, *inputs)


def is_silent(progress: bool | None) -> bool:
    """Whether a tool shows no bar: it was told so, or this is not the first process of `torch.distributed`."""
    return progress is False or (dist.is_available() and dist.is_initialized() and dist.get_rank() > 0)


def _elsewhere(rank: int, failure: str, kind: type[RuntimeError] = RuntimeError) -> RuntimeError:
    received = f"failed on rank {rank} ({failure})"
    return kind(argument_message("the loss", received, "every rank's part of it", "See the traceback of that rank."))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
