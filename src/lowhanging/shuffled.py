"""How is a data set read in a new order on every epoch, and the user's random state left alone?

Tensors are indexed directly: a DataLoader would fetch the examples one by one and collate them, which for small images
costs more than the training step.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from lowhanging.batches import has_length, holds_examples, stored_tensors, untouched_random_state
from lowhanging.errors import a_type, check_finite, explain
from lowhanging.results import digest

_ITEMS = 64  # of a data set that are read to tell it from another


_MAX_BATCHES = 100_000  # in an epoch, of data without a length


class ShuffledBatches:
    """The batches of a data set in a new order on each epoch; tensors are indexed, not collated one by one."""

    def __init__(self, data: Any, size: int):
        self.data, self.size = data, size
        self.tensors = _tensors_of(data)
        is_map_style = isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__")
        is_map_style = is_map_style or (self.tensors is None and holds_examples(data))
        self.length = len(self.tensors[0]) if self.tensors is not None else len(data) if is_map_style else None
        if self.length is not None:
            self.num_batches = math.ceil(self.length / size)
            return
        self.num_batches = len(data) if has_length(data) else 0  # 0: only reading tells
        expected = "a DataLoader, an iterable of batches, a map-style Dataset or a tuple (inputs, targets) of tensors"
        if isinstance(data, IterableDataset | Tensor | Mapping | str) or not isinstance(data, Iterable):
            remedy = "Wrap one batch in a list, a data set of tensors in a tuple, an IterableDataset in a DataLoader."
            raise TypeError(explain("data", f"is {a_type(data)}", expected, remedy))
        if isinstance(data, Iterator):
            remedy = "It is used up after one epoch: pass list(...) of it, or a DataLoader."
            raise TypeError(explain("data", f"is {a_type(data)}, readable once", expected, remedy))

    def epoch(self, generator: torch.Generator, device: torch.device, *, check: bool) -> Iterator[Any]:
        """One pass, on the device; `check` refuses NaN."""
        is_bounded = self.length is None and not self.num_batches
        for number, batch in enumerate(self.data if self.length is None else self._cut(generator)):
            if is_bounded and number == _MAX_BATCHES:
                received = f"has more than {number:,} batches and does not tell how many: it may never end"
                remedy = "Pass data that end after an epoch: list(itertools.islice(loader, num))."
                raise ValueError(explain("data", received, "data that end", remedy))
            plain = dict(batch) if isinstance(batch, Mapping) else batch  # a HuggingFace BatchEncoding is no pytree
            for leaf in tree_leaves(plain) if check else ():
                if isinstance(leaf, Tensor):
                    check_finite("data", leaf, remedy="Drop or repair those examples.")
            yield tree_map_only(Tensor, lambda leaf: leaf.to(device), plain)

    @property
    def generators(self) -> list[torch.Generator]:
        """Those of the user's own that a loader draws its order from."""
        owners = (self.data, getattr(self.data, "sampler", None), getattr(self.data, "batch_sampler", None))
        found = [getattr(owner, "generator", None) for owner in owners] if isinstance(self.data, DataLoader) else []
        own = {id(each): each for each in found if isinstance(each, torch.Generator)}
        return list(own.values())

    def identity(self) -> str:
        """Kind, number and contents: all that is stored as tensors, up to 64 items of what else has numbered items."""
        number = f"{self.num_batches} batches of " if self.length is None else ""
        store = getattr(self.data, "dataset", self.data) if isinstance(self.data, DataLoader) else self.data
        tensors = _tensors_of(store)
        if tensors is not None:
            return number + digest(*tensors)
        told = f"{number}{self.length} of a {type(store).__name__}"
        if not (hasattr(store, "__len__") and hasattr(store, "__getitem__")) or not len(store):
            return told
        first, second = _seen(store), _seen(store)
        return f"{told} {first}" if first == second else told  # augmented from a state that is nobody's to know

    @functools.cached_property
    def first(self) -> Any:
        """The first examples as a batch, None where they can't be had without a pass, or are not the same each time."""
        if self.tensors is not None:
            return tuple(tensor[: self.size] for tensor in self.tensors)
        store = getattr(self.data, "dataset", self.data) if isinstance(self.data, DataLoader) else self.data
        if not (hasattr(store, "__len__") and hasattr(store, "__getitem__")) or not len(store):
            return None
        collate, num = None, 1  # a sequence of batches
        if isinstance(self.data, DataLoader):
            collate, num = self.data.collate_fn, self.data.batch_size or 1
        elif self.length is not None:
            collate, num = default_collate, self.size
        read = []
        for _ in range(2):
            with own_randomness(0, torch.device("cpu")):
                items = [store[i] for i in range(min(num, len(store)))]
                read.append(items[0] if collate is None else collate(items))
        return read[0] if _digest_of(read[:1]) == _digest_of(read[1:]) else None

    def _cut(self, generator: torch.Generator) -> Iterator[Any]:
        order = torch.randperm(self.length or 0, generator=generator)
        for index in torch.split(order, self.size) if self.length else ():
            if self.tensors is not None:
                yield tuple(tensor[index] for tensor in self.tensors)
            else:
                yield default_collate([self.data[i] for i in index.tolist()])


@contextlib.contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Random states of torch, numpy and `random` set from `seed` inside; the states as they were afterwards."""
    with untouched_random_state():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - data sets that augment draw from this global state
        yield


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of `own_randomness`, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.array(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """What `random_states` returned, made the states again."""
    kind, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)


def _seen(store: Any) -> str:
    """A digest of up to 64 items, the first and the last among them, read with one and the same random state."""
    with own_randomness(0, torch.device("cpu")):
        items = [store[i] for i in sorted({round(i) for i in np.linspace(0, len(store) - 1, min(len(store), _ITEMS))})]
    return _digest_of(items)


def _digest_of(items: list[Any]) -> str:
    leaves = tree_leaves([dict(item) if isinstance(item, Mapping) else item for item in items])
    tensors = [torch.as_tensor(leaf) for leaf in leaves if isinstance(leaf, Tensor | np.ndarray | int | float)]
    return digest(*tensors)


def _tensors_of(data: Any) -> tuple[Tensor, ...] | None:
    """The tensors behind a data set, where indexing them is the same as reading it."""
    if isinstance(data, tuple) and data and all(isinstance(item, Tensor | np.ndarray) for item in data):
        if len({len(item) if item.ndim else -1 for item in data}) != 1:
            received = f"is a tuple of shapes {[tuple(item.shape) for item in data]}"
            raise ValueError(explain("data", received, "one common first dimension", "Align the tensors."))
        return tuple(torch.as_tensor(item) for item in data)
    return stored_tensors(data)
