"""Batches of a data set, of whatever kind: a fixed list of micro-batches for a loss, shuffled epochs for training.

A Hessian is only defined for a fixed data set, so a loss reads its loader once and keeps the batches: shuffling and
random augmentation are then harmless. Batches whose tensors share a first dimension are joined and re-cut to
micro-batches that fit a processor's cache, which matters as much for speed as the algorithm; the loss is a sum over
examples, so the cut changes nothing but rounding.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from lowhanging.errors import a_type, argument_message, check_count, check_finite
from lowhanging.io import digest
from lowhanging.objective.random_state import (
    own_randomness,
    random_states,
    restore_random_states,
    seed_random_states,
    untouched_random_state,
)

MAX_BATCHES = 10_000  # of data without a length
TARGET_KEYS = ("labels", "label", "targets", "target", "y")  # of batches that are mappings
_MAX_BATCHES_IN_EPOCH = 100_000  # of training data without a length
_ITEMS = 64  # of a data set that are read to tell it from another
_KINDS = "a DataLoader, an iterable of batches, a map-style Dataset or a tuple (inputs, targets) of tensors"


class Batches:
    """The micro-batches of a data set: the same ones, in the same order, on every pass.

    `data` is of any kind that `Objective` takes. With a `shard` (i, n) examples i, i + n, i + 2 n ... of all that is
    read are kept, or those batches where they can't be joined, and a digest of all is taken. `num_params` are the
    model's: many are worth larger micro-batches. With `recut=False` batches are used as they come.

    Attributes:
        num_batches, num_examples: of what is used.
        is_recut: whether those are other batches than came.
        num_read, digest: of all that was read, in order; 0 and "" without a shard.

    Raises:
        ValueError, TypeError: no batch in it, not a data set, NaN or inf, an iterator with cache=False.
        RuntimeError: with cache=False, two passes differed.
    """

    def __init__(
        self,
        data: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        micro_batch: int | None,
        cache: bool,
        shard: tuple[int, int] | None = None,
        size_of: Callable[[Any], int] | None = None,  # all examples -> how many of them make a micro-batch
        max_batches: int | None = MAX_BATCHES,
    ):
        if max_batches is not None:
            check_count("max_batches", max_batches, remedy="Pass how many batches the data may have, or None.")
        if micro_batch is not None:
            check_count("micro_batch", micro_batch, remedy="Leave it out: the engine chooses one that fits the cache.")
        self._source = _Source(data, micro_batch or 256, device, dtype, max_batches, takes_digest=shard is not None)
        self._first, self._step = shard or (0, 1)
        self._fingerprint: tuple[float, ...] | None = None  # of the first pass, where nothing is kept
        self._came: list[Any] = []  # what was read, until `forget_what_came`
        self._kept: list[Any] | None = None  # what a pass yields; None re-reads
        self.is_recut = False
        if not cache:
            self._read_twice()
            return
        self._came = list(self._source)
        for batch in self._came:
            _check(batch)
        cut = self._recut(micro_batch, size_of) if micro_batch is not None or size_of is not None else None
        if cut is None:
            self.use_as_they_came()
        else:
            self.is_recut = True
            self._keep(cut)

    @property
    def num_read(self) -> int:
        return self._source.num_read

    @property
    def digest(self) -> str:
        return self._source.digest

    @property
    def is_split(self) -> bool:
        """Whether other shards have other examples of the same batches."""
        return self._step > 1

    def __iter__(self) -> Iterator[Any]:
        return iter(self._kept) if self._kept is not None else self._read_again()

    @property
    def largest(self) -> int | None:
        """Examples in the largest batch; None where none is kept."""
        return max(map(num_examples, self._kept)) if self._kept else None

    def as_yielded(self, batch: Any) -> Any:
        """A kept dict as a mapping of its own, for a caller who may `pop` from it or read `batch.input_ids`."""
        return self._source.mapping(batch) if isinstance(batch, dict) else batch

    def use_as_they_came(self) -> int:
        """Keep the batches that were read, or this shard's of them, instead of micro-batches; how many those are."""
        kept = self._came[self._first :: self._step]
        if self._source.is_one:  # else they were copied when they were read
            kept = [cloned(batch) for batch in kept]
        self.is_recut = False
        return self._keep(kept)

    def as_they_came(self) -> Iterable[Any]:
        """The batches that were read, or this shard's of them, to compare what is kept with."""
        return list(self._pairs())[self._first :: self._step] if self._came else self

    def first_as_it_came(self) -> Any:
        """The first of them, of whichever shard."""
        return next(iter(self._pairs() if self._came else self))

    def forget_what_came(self) -> None:
        """Free the batches that are not kept."""
        self._came = []

    def _keep(self, batches: list[Any]) -> int:
        self._kept, self.num_batches, self.num_examples = batches, len(batches), sum(map(num_examples, batches))
        self._check_number()
        return self.num_batches

    def _check_number(self) -> None:
        if self.num_batches:
            return
        if self.num_read:
            received = f"is too little for {self._step} processes: nothing is left for number {self._first}"
            remedy = "Start fewer processes, cut the data into more batches, or pass distributed=False."
            raise ValueError(argument_message("data", received, "an example or a batch for each", remedy))
        remedy = "Check the loader's data set and drop_last."
        raise ValueError(argument_message("data", "holds no batch", "at least one example", remedy))

    def _read_twice(self) -> None:
        """Check and count what is not kept, and that a second pass gives the same."""
        if self._source.is_used_up_by_reading:
            expected = "data to read on each pass (cache=False)"
            remedy = "Pass a DataLoader, or leave cache=True."
            raise ValueError(argument_message("data", "is an iterator, readable once", expected, remedy))
        self.num_batches = self.num_examples = 0
        for batch in self:
            _check(batch)
            self.num_batches += 1
            self.num_examples += num_examples(batch)
        self._check_number()
        for _ in self:
            pass

    def _read_again(self) -> Iterator[Any]:
        seen: list[float] = []
        for index, batch in enumerate(self._source):
            seen.append(_fingerprint(batch))
            if index % self._step == self._first:
                yield batch
        if self._fingerprint is None:
            self._fingerprint = tuple(seen)
        elif self._fingerprint != tuple(seen):
            received, expected = "gave other batches on a second pass", "the same batches on every pass (cache=False)"
            remedy = "Switch shuffling and random augmentation off, or use cache=True, which reads once."
            raise RuntimeError(argument_message("data", received, expected, remedy))

    def _pairs(self) -> Iterable[Any]:
        """What came. One data set came whole: then pairs of micro-batches, so that it need not fit in memory twice."""
        if not (self._source.is_one and self._kept and len(self._kept) > 2):
            return self._came
        return _cut(self._came[0], 2 * self._step * num_examples(self._kept[0]))

    def _recut(self, wanted: int | None, size_of: Callable[[Any], int] | None) -> list[Any] | None:
        """Micro-batches of this shard's examples; None where they can't be joined, or are what came."""
        whole = joined(self._came)
        if whole is None:
            return None
        if self._step > 1:
            whole = tree_map(lambda leaf: leaf[self._first :: self._step], whole)
        total = num_examples(whole)
        if total == 0:
            return []
        size = wanted or (_near(size_of(whole), total) if size_of is not None else total)
        sizes = [min(size, total - start) for start in range(0, total, size)]
        if self._step == 1 and [num_examples(batch) for batch in self._came] == sizes:
            return None
        # A micro-batch must not be a view into the user's own tensors, which may change later.
        return [cloned(batch) for batch in _cut(whole, size)]


class _Source:
    """What the user calls data, read pass after pass; between any two batches the global random states are the user's.

    It `is_one` if it is one data set of tensors, without batches of its own; `mapping` makes of a dict a batch as the
    loader yields them.
    """

    def __init__(
        self,
        data: Any,
        size: int,
        device: torch.device,
        dtype: torch.dtype,
        max_batches: int | None,
        *,
        takes_digest: bool,
    ):
        self._batches = _as_batches(data, size)
        self._device, self._dtype, self._takes_digest = device, dtype, takes_digest
        self._max_batches = None if has_length(self._batches) else max_batches
        self._num_passes = 0
        self.is_one = stored_tensors(data) is not None
        self.is_used_up_by_reading = isinstance(self._batches, Iterator)
        self.mapping: Callable[[dict[str, Any]], Any] = dict
        self.num_read, self.digest = 0, ""

    def __iter__(self) -> Iterator[Any]:
        self._num_passes += 1
        with untouched_random_state():
            if self._num_passes > 1:
                seed_random_states(self._num_passes)  # else shuffling or augmentation could agree by chance
            iterator = iter(self._batches)
            inner = random_states()
        for number in itertools.count():
            with untouched_random_state():
                restore_random_states(inner)
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                inner = random_states()
            if number == self._max_batches:
                remedy = "Pass list(itertools.islice(loader, num)), or max_batches= (None for no bound)."
                raise ValueError(_endless(number, remedy))
            batch = self._moved(batch)
            if num_examples(batch):
                if self._takes_digest and self._num_passes == 1:
                    self._note(batch)
                yield batch

    def _note(self, batch: Any) -> None:
        self.num_read += num_examples(batch)
        tensors = [leaf for leaf in _leaves(batch) if isinstance(leaf, Tensor)]
        self.digest = hashlib.sha256(f"{self.digest} {digest(*tensors)}".encode()).hexdigest()[:16]

    def _moved(self, batch: Any) -> Any:
        """A copy on the device; of a batch of a class of the user's, if it knows how to get there."""
        if isinstance(batch, Mapping) and self.mapping is dict:
            self.mapping = _maker(type(batch), dict(batch))
        leaves, spec = tree_flatten(tree_map(as_pytree, batch))
        is_object = len(leaves) == 1 and leaves[0] is batch and not isinstance(batch, Tensor | np.ndarray)
        if not is_object:
            return tree_unflatten([self._moved_leaf(leaf) for leaf in leaves], spec)
        with contextlib.suppress(Exception):  # what can't be copied is used as it is
            batch = copy.deepcopy(batch)
        to = getattr(batch, "to", None)
        return to(self._device) if callable(to) else batch

    def _moved_leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
            leaf = torch.from_numpy(leaf.copy())  # torch takes no read-only array
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_nested or leaf.device.type == "meta":
            received = f"has a {'nested tensor' if leaf.is_nested else 'tensor on the meta device'}"
            remedy = "Pad it and mask the padding in batch_loss." if leaf.is_nested else "Load its numbers."
            raise ValueError(argument_message("data", received, "plain tensors with numbers", remedy))
        # A loader may fill the same memory for each batch, and a tensor of inference mode enters no gradient.
        is_safe = self.is_one and not leaf.is_inference()
        leaf = leaf.detach().to(self._device, copy=not is_safe)
        return leaf.to(self._dtype) if leaf.dtype in (torch.float16, torch.bfloat16) else leaf


class ShuffledBatches:
    """The batches of a data set in a new order on each epoch; a loader, or a list of batches, keeps its own.

    Tensors are indexed directly: a DataLoader would fetch the examples one by one and collate them, which for small
    images costs more than the training step.
    """

    def __init__(self, data: Any, size: int):
        self.data, self.size = data, size
        stored = stored_tensors(data)
        self.tensors = None if stored is None else tuple(torch.as_tensor(item) for item in stored)
        self.length = None if self.tensors is None else len(self.tensors[0])  # examples; None for a loader
        if self.tensors is None and _is_read_by_item(data):
            self.length = len(data)
        if self.length is not None:
            self.num_batches = math.ceil(self.length / size)
            return
        self.num_batches = len(data) if has_length(data) else 0  # 0: only reading tells
        if isinstance(data, IterableDataset | Tensor | Mapping | str) or not isinstance(data, Iterable):
            remedy = "Wrap one batch in a list, a data set of tensors in a tuple, an IterableDataset in a DataLoader."
            raise TypeError(argument_message("data", f"is {a_type(data)}", _KINDS, remedy))
        if isinstance(data, Iterator):
            remedy = "It is used up after one epoch: pass list(...) of it, or a DataLoader."
            raise TypeError(argument_message("data", f"is {a_type(data)}, readable once", _KINDS, remedy))

    def epoch(self, generator: torch.Generator, device: torch.device, *, check: bool) -> Iterator[Any]:
        """One pass, on the device; `check` refuses NaN."""
        is_bounded = self.length is None and not self.num_batches
        for number, batch in enumerate(self.data if self.length is None else self._shuffled(generator)):
            if is_bounded and number == _MAX_BATCHES_IN_EPOCH:
                remedy = "Pass data that end after an epoch: list(itertools.islice(loader, num))."
                raise ValueError(_endless(number, remedy))
            plain = as_pytree(batch)
            for leaf in tree_leaves(plain) if check else ():
                if isinstance(leaf, Tensor):
                    check_finite("data", leaf, remedy="Drop or repair those examples.")
            yield tree_map_only(Tensor, lambda leaf: leaf.to(device), plain)

    def _shuffled(self, generator: torch.Generator) -> Iterator[Any]:
        order = torch.randperm(self.length or 0, generator=generator)
        for index in torch.split(order, self.size) if self.length else ():
            if self.tensors is not None:
                yield tuple(tensor[index] for tensor in self.tensors)
            else:
                yield default_collate([self.data[i] for i in index.tolist()])

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
        stored = stored_tensors(self._store)
        if stored is not None:
            return number + digest(*map(torch.as_tensor, stored))
        words = f"{number}{self.length} of a {type(self._store).__name__}"
        if not self._num_items:
            return words
        last, num = self._num_items - 1, min(self._num_items, _ITEMS)
        _, seen = _read_twice(lambda: [self._store[i] for i in sorted({round(i) for i in np.linspace(0, last, num)})])
        return f"{words} {seen}" if seen else words

    @functools.cached_property
    def first(self) -> Any:
        """The first examples as a batch, None where they can't be had without a pass, or are not the same each time."""
        if self.tensors is not None:
            return tuple(tensor[: self.size] for tensor in self.tensors)
        if not self._num_items:
            return None
        collate, num = None, 1  # a sequence of batches
        if isinstance(self.data, DataLoader):
            collate, num = self.data.collate_fn, self.data.batch_size or 1
        elif self.length is not None:
            collate, num = default_collate, self.size

        def read() -> list[Any]:
            items = [self._store[i] for i in range(min(num, self._num_items))]
            return items if collate is None else [collate(items)]

        batches, seen = _read_twice(read)
        return batches[0] if seen else None

    @property
    def _store(self) -> Any:
        """What holds the items."""
        return getattr(self.data, "dataset", self.data) if isinstance(self.data, DataLoader) else self.data

    @property
    def _num_items(self) -> int:
        """Of the store; 0 where they have no numbers."""
        is_numbered = hasattr(self._store, "__len__") and hasattr(self._store, "__getitem__")
        return len(self._store) if is_numbered else 0


def _read_twice(read: Callable[[], list[Any]]) -> tuple[list[Any], str]:
    """What `read()` gives, and a digest of it; "" where a second time, with the same random state, gives another."""
    found, digests = [], []
    for _ in range(2):
        with own_randomness(0, torch.device("cpu")):
            found.append(read())
        leaves = tree_leaves([as_pytree(item) for item in found[-1]])
        tensors = [torch.as_tensor(leaf) for leaf in leaves if isinstance(leaf, Tensor | np.ndarray | int | float)]
        digests.append(digest(*tensors))
    return found[0], digests[0] if digests[0] == digests[1] else ""


def _endless(number: int, remedy: str) -> str:
    received = f"has more than {number:,} batches and does not tell how many: it may never end"
    return argument_message("data", received, "data that end", remedy)


# Kinds of data --------------------------------------------------------------------------------------------------------


def stored_tensors(data: Any) -> tuple[Any, ...] | None:
    """The tensors or arrays of a data set that hands them out as they are; None where it must be read.

    That are a tuple, and by their exact types `TensorDataset` and the data sets of this library: a class of somebody
    else's may store tensors and hand out others.
    """
    if isinstance(data, tuple) and data and all(isinstance(item, Tensor | np.ndarray) for item in data):
        shapes = [tuple(item.shape) for item in data]
        if () in shapes or len({shape[0] for shape in shapes}) != 1:
            received = f"is a tuple of shapes {shapes}"
            raise ValueError(argument_message("data", received, "one common first dimension", "Align the tensors."))
        return data
    if type(data) is TensorDataset:
        return tuple(data.tensors) or None
    inputs, targets = getattr(data, "inputs", None), getattr(data, "targets", None)
    is_ours = isinstance(data, Dataset) and type(data).__module__.startswith("lowhanging.")
    return (inputs, targets) if is_ours and isinstance(inputs, Tensor) and isinstance(targets, Tensor) else None


def _as_batches(data: Any, size: int) -> Iterable[Any]:
    """Any of the accepted kinds as an iterable of batches."""
    stored = stored_tensors(data)
    if stored is not None:
        return [stored] if len(stored[0]) else []
    if _is_read_by_item(data):
        return DataLoader(data, batch_size=size) if len(data) else []
    if _is_indexed(data) and len(data) and not isinstance(data, Iterable):
        return [data[i] for i in range(len(data))]
    if isinstance(data, Tensor | np.ndarray | str | Mapping) or not isinstance(data, Iterable):
        remedy = "Wrap one batch in a list, a data set of tensors in a tuple: (inputs, targets)."
        raise TypeError(argument_message("data", f"is {a_type(data)}", _KINDS, remedy))
    return data


def _is_indexed(data: Any) -> bool:
    has_items = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return has_items and not isinstance(data, DataLoader | Tensor | np.ndarray | str | Mapping)


def _is_read_by_item(data: Any) -> bool:
    """Whether its items are examples: a map-style Dataset, what is like one, or a list of examples of one shape."""
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        return True
    if not _is_indexed(data) or not len(data):
        return False
    some = data if isinstance(data, list) else [data[i] for i in sorted({0, len(data) // 2, len(data) - 1})]
    leaves = [[leaf for leaf in _leaves(item) if not getattr(leaf, "is_nested", False)] for item in some]
    shapes = {tuple(tuple(getattr(leaf, "shape", ())) for leaf in item) for item in leaves}
    return len(shapes) == 1 and all(map(_is_example, some))


def _is_example(item: Any) -> bool:
    """Whether it is one example and no batch: its target is a number."""
    if isinstance(item, Mapping):
        target = next((item[key] for key in TARGET_KEYS if key in item), None)
    else:
        target = item[-1] if isinstance(item, tuple | list) and len(item) > 1 else None
    is_scalar = isinstance(target, Tensor | np.ndarray | np.generic) and target.ndim == 0
    return is_scalar or (isinstance(target, int | float) and not isinstance(target, bool))


def has_length(source: Any) -> bool:
    """Whether it tells how many batches it has: an IterableDataset in a DataLoader and a generator do not."""
    try:
        len(source)
    except TypeError:
        return False
    return True


def as_pytree(leaf: Any) -> Any:
    """Mappings that pytrees don't know (HuggingFace's BatchEncoding) as dicts; everything else as it is."""
    return dict(leaf) if isinstance(leaf, Mapping) else leaf


def _maker(mapping: Any, example: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """The mapping type, if it makes of a dict a mapping of the same items; `dict` if it doesn't."""
    try:
        made = mapping(example)
        is_same = list(made) == list(example) and all(made[name] is example[name] for name in example)
    except Exception:  # whatever another's constructor raises
        is_same = False
    return mapping if is_same and made is not example else dict


# What is in a batch ---------------------------------------------------------------------------------------------------


def split_batch(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """A batch as (positional inputs, keyword inputs, targets)."""
    if isinstance(batch, Mapping):
        key = next((name for name in TARGET_KEYS if name in batch), None)
        if key is not None:
            return (), {name: value for name, value in batch.items() if name != key}, batch[key]
        received, expected = f"has the keys {list(batch)}", f"one of {TARGET_KEYS} for the targets"
        raise ValueError(argument_message("batch", received, expected, "Rename it, or pass batch_loss=."))
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return tuple(batch[:-1]), {}, batch[-1]
    received = f"is {a_type(batch)}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
    remedy = "Yield pairs, or pass batch_loss=(model, batch) -> (sum, count). One data set is a tuple: "
    remedy += "(inputs, targets), not a list."
    raise ValueError(argument_message("batch", received, "(inputs, targets)", remedy))


def logits_of(outputs: Any) -> Any:
    """A model's outputs as one tensor, for the default loss and to count answers: `.logits`, where they have that."""
    return outputs.logits if hasattr(outputs, "logits") and not isinstance(outputs, Tensor) else outputs


def num_examples(batch: Any) -> int:
    """Length of the first dimension of the first tensor of a batch; 1 where its targets have none."""
    last = batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if isinstance(last, Tensor) and last.ndim == 0:
        return 1
    return next((int(leaf.shape[0]) for leaf in _leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), 1)


def some_of(batch: Any, where: slice) -> Any | None:
    """Some of a batch's examples; None where its parts have no common first dimension."""
    lengths = {leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in tree_leaves(batch)}
    return None if len(lengths) != 1 or None in lengths else tree_map(lambda leaf: leaf[where], batch)


def joined(batches: list[Any]) -> Any | None:
    """All batches as one, or None where they have no common first dimension."""
    flattened = [tree_flatten(batch) for batch in batches]
    if not flattened or any(spec != flattened[0][1] for _, spec in flattened):
        return None
    for leaves, _ in flattened:
        are_rows = [isinstance(leaf, Tensor) and leaf.ndim and leaf.layout == torch.strided for leaf in leaves]
        if not leaves or not all(are_rows) or len({len(leaf) for leaf in leaves}) != 1:
            return None
    columns = list(zip(*(leaves for leaves, _ in flattened), strict=True))
    if any(len({(leaf.shape[1:], leaf.dtype) for leaf in column}) != 1 for column in columns):
        return None
    whole = [column[0] if len(column) == 1 else torch.cat(column) for column in columns]
    return tree_unflatten(whole, flattened[0][1])


def cloned(batch: Any) -> Any:
    """The batch, its tensors in memory of their own."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)


class Tally:
    """Counts right answers where outputs (n, classes, ...) and integer targets (n, ...) allow it."""

    def __init__(self) -> None:
        self.num_right: Tensor | int = 0
        self.num_targets = 0

    def add(self, outputs: Any, targets: Any) -> None:
        outputs = logits_of(outputs)
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or targets.is_floating_point():
            return
        if outputs.ndim == targets.ndim + 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape:
            self.num_right = self.num_right + (outputs.argmax(1) == targets).sum()  # a tensor: no sync, and it can vmap
            self.num_targets += targets.numel()

    @property
    def accuracy(self) -> float | None:
        return float(self.num_right) / self.num_targets if self.num_targets else None


def attempt(call: Callable[[], Any], batch: Any) -> Any:
    """call(), torch's complaint about shapes or dtypes turned into ours."""
    try:
        return call()
    except (RuntimeError, TypeError, IndexError, AttributeError, ValueError) as error:
        if type(error) is ValueError and ", expected " in str(error) and "\n" in str(error):
            raise  # one of ours
        if "use_reentrant" in str(error):
            received = "uses reentrant checkpointing, which takes no torch.autograd.grad"
            remedy = "Pass use_reentrant=False to torch.utils.checkpoint.checkpoint: the numbers are the same."
            expected = "checkpointing that can be differentiated twice"
            raise ValueError(argument_message("model", received, expected, remedy)) from error
        remedy = "Check one batch by hand: loss_fn(model(*inputs), targets)."
        if isinstance(batch, Mapping):
            names = list(split_batch(batch)[1])
            remedy = f"Its entries {names} go to forward by name: rename or drop some, or pass batch_loss=."
        first_line = (str(error).splitlines() or [""])[0]
        if any(narrow in first_line for narrow in ("BFloat16", "Half")):
            remedy += " Half-precision weights are studied in float32: let forward cast to a weight's dtype."
        elif "dtype" in first_line and any(narrow in first_line for narrow in ("float", "double", "Float", "Double")):
            remedy += " Data and weights of one precision: inputs.double() for a model in float64."
        shapes = [tuple(leaf.shape) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        received = f"has batches of shapes {shapes}, on which the model or its loss failed "
        received += f"({type(error).__name__}: {first_line})"
        expected = "batches that the model and its loss accept"
        raise ValueError(argument_message("data", received, expected, remedy)) from error


def _leaves(batch: Any) -> list[Any]:
    """The leaves of a batch; those of its attributes, where it is an object of a class of the user's."""
    leaves: list[Any] = tree_leaves(batch)
    is_object = len(leaves) == 1 and leaves[0] is batch and not isinstance(batch, Tensor) and hasattr(batch, "__dict__")
    return tree_leaves(vars(batch)) if is_object else leaves


def _check(batch: Any) -> None:
    tensors = [leaf for leaf in _leaves(batch) if isinstance(leaf, Tensor)]
    if not tensors:
        received = f"has a batch of type {type(batch).__name__} without a tensor"
        raise TypeError(argument_message("data", received, _KINDS, "Yield (inputs, targets)."))
    for tensor in tensors:
        check_finite("data", tensor, remedy="Drop or repair those examples before building the loader.")


def _cut(batch: Any, size: int) -> list[Any]:
    """Views of `size` examples each, in order."""
    leaves, spec = tree_flatten(batch)
    return [tree_unflatten(list(parts), spec) for parts in zip(*(leaf.split(size) for leaf in leaves), strict=True)]


def _near(size: int, total: int) -> int:
    """A divisor of `total` near a size, where there is one: then one shape has to be recorded."""
    if total <= size:
        return total
    return next((n for n in range(size, size // 2, -1) if total % n == 0), size)


def _fingerprint(batch: Any) -> float:
    """A number that differs between batches that differ, order of examples included."""
    value = 0.0
    for position, leaf in enumerate(_leaves(batch)):
        if isinstance(leaf, Tensor) and leaf.numel():
            flat = leaf.detach().to_dense().to(torch.float64).reshape(-1)
            weights = torch.arange(1, flat.numel() + 1, device=flat.device, dtype=torch.float64).sin()
            value += (position + 1) * float(flat @ weights) + flat.numel()
    return value
