"""How does whatever the user calls "the data" become a fixed list of micro-batches?

A Hessian is only defined for a fixed data set, so the loader is read once and its batches are kept: random shuffling
and augmentation are then harmless. Batches whose tensors share a first dimension are joined and re-cut to micro-batches
that fit a processor's cache, which matters as much for speed as the algorithm (200 to 500 small images); the loss is
a sum over examples, so the cut changes nothing but rounding.

What is in a batch: which parts are inputs, which are targets, and how many answers were right?

How is a data set read in a new order on every epoch, and the user's random state left alone?

Tensors are indexed directly: a DataLoader would fetch the examples one by one and collate them, which for small images
costs more than the training step.
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
_MICRO_BATCH_BYTES = 2**20  # of inputs: 334 images of 28 x 28 in float32
_MANY_WEIGHTS = 2**17  # beyond a cache: reading them for few examples costs more than reading many examples
_KINDS = "a DataLoader, an iterable of batches, a map-style Dataset or a tuple (inputs, targets) of tensors"


class Batches:
    """The micro-batches of a data set: the same ones, in the same order, on every pass.

    Args:
        data: a DataLoader, an iterable of batches, a map-style Dataset, or one data set as a tuple of tensors.
        device: where the batches are kept.
        dtype: half-precision floating-point tensors are widened to this (the weights' dtype).
        micro_batch: examples per micro-batch; None chooses by the size of an example. With a loader whose batches
            can't be joined (no common first dimension, or shapes that differ), its own batches are used.
        cache: False re-reads `data` on every pass and checks that the passes agree.
        shard: (i, n) keeps example i, i + n, i + 2 n ... of all that is read, or those batches where they can't be
            joined or are not kept; and a digest of all is taken. None keeps everything and takes none.
        num_params: weights of the model, as far as known: many are worth larger micro-batches.
        recut: whether batches are joined and cut to micro-batches; else they are used as they come, whatever they are.
        max_batches: of data that do not tell how many they are: more are taken for a loader that never ends.

    Attributes:
        num_batches, num_examples: of what is kept.
        is_recut: whether what is kept are other batches than came.
        num_read: examples in all that was read; 0 without a shard.
        digest: of all that was read, in order; "" without a shard.

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
        num_params: int = 0,
        recut: bool = True,
        max_batches: int | None = MAX_BATCHES,
    ):
        if max_batches is not None:
            check_count("max_batches", max_batches, remedy="Pass how many batches the data may have, or None.")
        self._max_batches = max_batches
        if micro_batch is not None:
            check_count("micro_batch", micro_batch, remedy="Leave it out: the engine chooses one that fits the cache.")
        self._source = _as_batches(data, micro_batch or 256)
        self._device, self._dtype, self._wanted = device, dtype, micro_batch
        self._fingerprint: tuple[float, ...] | None = None
        self._kept: list[Any] | None = None
        self._mapping: Callable[[dict[str, Any]], Any] = dict
        self._num_passes = 0
        self._shard, self._num_params = shard, num_params
        self.num_read, self.digest = 0, ""
        self.is_recut = False
        # A tuple of tensors is one data set, which has no batches of its own.
        self._is_one = isinstance(self._source, list) and len(self._source) == 1 and isinstance(data, tuple | Dataset)
        self._came: list[Any] = []
        if cache:
            self._came = list(self._read())
            self._kept = self._recut() if recut else None
            self.is_recut = self._kept is not None
            if self._kept is None:
                self.use_as_they_came()
        elif isinstance(self._source, Iterator):
            remedy = "Pass a DataLoader, or leave cache=True."
            raise ValueError(
                argument_message(
                    "data", "is an iterator, readable once", "data to read on each pass (cache=False)", remedy
                )
            )
        for batch in self._came or self:
            self._check(batch)
        self._count()
        if cache is False:
            for _ in self:  # the second pass, compared with the first
                pass
        self._check_number()

    def _check_number(self) -> None:
        shard = self._shard
        if self.num_batches == 0 and self.num_read and shard is not None:
            received = f"is too little for {shard[1]} processes: nothing is left for number {shard[0]}"
            remedy = "Start fewer processes, cut the data into more batches, or pass distributed=False."
            raise ValueError(argument_message("data", received, "an example or a batch for each", remedy))
        if self.num_batches == 0:
            raise ValueError(
                argument_message(
                    "data", "holds no batch", "at least one example", "Check the loader's data set and drop_last."
                )
            )

    def __iter__(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept
            return
        seen: list[float] = []
        first, step = self._shard or (0, 1)
        for index, batch in enumerate(self._read()):
            seen.append(_fingerprint(batch))
            if index % step == first:
                yield batch
        if self._fingerprint is None:
            self._fingerprint = tuple(seen)
        elif self._fingerprint != tuple(seen):
            message = argument_message(
                "data", "gave other batches on a second pass", "the same batches on every pass (cache=False)",
                "Switch shuffling and random augmentation off, or use cache=True, which reads once.",
            )  # fmt: skip
            raise RuntimeError(message)

    def as_yielded(self, batch: Any) -> Any:
        """A kept dict as a mapping of its own, for a caller who may `pop` from it or read `batch.input_ids`."""
        return self._mapping(batch) if isinstance(batch, dict) else batch

    def _read(self) -> Iterator[Any]:
        """One pass over the source; between any two batches the global random states are the user's."""
        self._num_passes += 1
        with untouched_random_state():
            if self._kept is None and self._num_passes > 1:
                seed_random_states(
                    self._num_passes
                )  # so that shuffling or augmentation can't agree by chance (cache=False)
            iterator = iter(self._source)
            inner = random_states()
        is_bounded = self._max_batches is not None and not has_length(self._source)
        for number in itertools.count():
            with untouched_random_state():
                restore_random_states(inner)
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                inner = random_states()
            if is_bounded and number == self._max_batches:
                received = f"has more than {number:,} batches and does not tell how many: it may never end"
                remedy = "Pass list(itertools.islice(loader, num)), or max_batches= (None for no bound)."
                raise ValueError(argument_message("data", received, "data that end", remedy))
            batch = self._move(batch)
            if num_examples(batch):
                if self._shard is not None and self._num_passes == 1:
                    self._note(batch)
                yield batch

    def _note(self, batch: Any) -> None:
        """Take a batch of the first pass into the digest."""
        self.num_read += num_examples(batch)
        tensors = [leaf for leaf in tree_leaves_of(batch) if isinstance(leaf, Tensor)]
        self.digest = hashlib.sha256(f"{self.digest} {digest(*tensors)}".encode()).hexdigest()[:16]

    def _move(self, batch: Any) -> Any:
        if isinstance(batch, Mapping) and self._mapping is dict:
            self._mapping = _maker(type(batch), dict(batch))
        leaves, spec = tree_flatten(tree_map(_plain, batch))
        if len(leaves) == 1 and leaves[0] is batch and not isinstance(batch, Tensor | np.ndarray):
            return self._moved_object(batch)
        moved = []
        for leaf in leaves:
            if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
                leaf = torch.from_numpy(leaf.copy())  # torch takes no read-only array
            if isinstance(leaf, Tensor):
                if leaf.is_nested or leaf.device.type == "meta":
                    received = f"has a {'nested tensor' if leaf.is_nested else 'tensor on the meta device'}"
                    remedy = "Pad it and mask the padding in batch_loss." if leaf.is_nested else "Load its numbers."
                    raise ValueError(argument_message("data", received, "plain tensors with numbers", remedy))
                # A loader may fill the same memory for each batch, and a tensor of inference mode enters no gradient.
                is_kept = self._is_one and not leaf.is_inference()
                leaf = leaf.detach().to(self._device, copy=not is_kept)
                if leaf.dtype in (torch.float16, torch.bfloat16):
                    leaf = leaf.to(self._dtype)
            moved.append(leaf)
        return tree_unflatten(moved, spec)

    def _moved_object(self, batch: Any) -> Any:
        """A batch of a class of the user's, as it is: on the device, if it knows how to get there, and a copy."""
        with contextlib.suppress(Exception):  # what can't be copied is used as it is
            batch = copy.deepcopy(batch)
        to = getattr(batch, "to", None)
        return to(self._device) if callable(to) else batch

    def _check(self, batch: Any) -> None:
        leaves = tree_leaves_of(batch)
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            kind = type(batch).__name__
            raise TypeError(
                argument_message(
                    "data", f"has a batch of type {kind} without a tensor", _KINDS, "Yield (inputs, targets)."
                )
            )
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                check_finite("data", leaf, remedy="Drop or repair those examples before building the loader.")

    def _count(self) -> None:
        self.num_batches = self.num_examples = 0
        for batch in self:
            self.num_batches += 1
            self.num_examples += num_examples(batch)

    @property
    def is_split(self) -> bool:
        """Whether other shards have other examples of the same batches."""
        return self._shard is not None and self._shard[1] > 1

    def use_as_they_came(self) -> int:
        """Keep the batches that were read, or this shard's of them, instead of micro-batches cut from them.

        Returns how many those are.
        """
        first, step = self._shard or (0, 1)
        kept = self._came[first::step]
        if self._is_one:  # else they were copied when they were read
            kept = [tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, part) for part in kept]
        self.is_recut, self._kept = False, kept
        self._count()
        self._check_number()
        return self.num_batches

    def as_they_came(self) -> Iterable[Any]:
        """The batches that were read, or this shard's of them, to compare what is kept with.

        One data set has no batches of its own; then pairs of micro-batches, so that it need not fit in memory whole.
        """
        first, step = self._shard or (0, 1)
        return list(self._pairs())[first::step] if self._came else self

    def first_as_it_came(self) -> Any:
        """The first of them, of whichever shard."""
        return next(iter(self._pairs() if self._came else self))

    def _pairs(self) -> Iterable[Any]:
        if not (self._is_one and self._kept and len(self._kept) > 2):
            return self._came
        leaves, spec = tree_flatten(self._came[0])
        size = 2 * (self._shard or (0, 1))[1] * num_examples(self._kept[0])
        cuts = [leaf.split(size) for leaf in leaves]
        return [tree_unflatten(list(parts), spec) for parts in zip(*cuts, strict=True)]

    def forget_what_came(self) -> None:
        """Free the batches that are not kept."""
        self._came = []

    def _recut(self) -> list[Any] | None:
        """Micro-batches of this shard's examples; None where they can't be joined, or are what came."""
        whole = joined(self._came)
        first, step = self._shard or (0, 1)
        if whole is None:
            return None
        leaves, spec = tree_flatten(whole)
        leaves = [leaf[first::step] for leaf in leaves] if step > 1 else leaves
        total = leaves[0].shape[0]
        if total == 0:
            return []
        size = self._wanted or _micro_batch_size(leaves, total, self._num_params)
        if step == 1 and [num_examples(batch) for batch in self._came] == _sizes(total, size):
            return None
        # clone: a micro-batch must not be a view into the user's own tensors, which may change later.
        cuts = [leaf.split(size) for leaf in leaves]
        return [tree_unflatten([part.clone() for part in parts], spec) for parts in zip(*cuts, strict=True)]


def _sizes(total: int, size: int) -> list[int]:
    """How many examples each micro-batch has."""
    return [min(size, total - start) for start in range(0, total, size)]


def num_examples(batch: Any) -> int:
    """Length of the first dimension of the first tensor of a batch; 1 where its targets have none."""
    last = batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if isinstance(last, Tensor) and last.ndim == 0:
        return 1
    for leaf in tree_leaves_of(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return int(leaf.shape[0])
    return 1


def tree_leaves_of(batch: Any) -> list[Any]:
    """The leaves of a batch; those of its attributes, where it is an object of a class of the user's."""
    leaves = tree_flatten(batch)[0]
    if len(leaves) == 1 and leaves[0] is batch and not isinstance(batch, Tensor) and hasattr(batch, "__dict__"):
        return list(tree_flatten(vars(batch))[0])
    return list(leaves)


def has_length(source: Any) -> bool:
    """Whether it tells how many batches it has: an IterableDataset in a DataLoader and a generator do not."""
    try:
        len(source)
    except TypeError:
        return False
    return True


def _is_example(item: Any) -> bool:
    """Whether it is one example of a list of them: its target is a number."""
    if isinstance(item, Mapping):
        targets = [item[key] for key in TARGET_KEYS if key in item]
        target = targets[0] if targets else None
    else:
        target = item[-1] if isinstance(item, tuple | list) and len(item) > 1 else None
    is_scalar = isinstance(target, Tensor | np.ndarray | np.generic) and target.ndim == 0
    return is_scalar or (isinstance(target, int | float) and not isinstance(target, bool))


def _shape(leaf: Any) -> tuple[int, ...]:
    return () if isinstance(leaf, Tensor) and leaf.is_nested else tuple(getattr(leaf, "shape", ()))


def holds_examples(data: Any) -> bool:
    """Whether it is a list of examples of one shape, or a data set that is no torch Dataset, where batches could be."""
    is_indexed = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not is_indexed or isinstance(data, DataLoader | Tensor | np.ndarray | str | Mapping) or not len(data):
        return False
    some = data if isinstance(data, list) else [data[i] for i in sorted({0, len(data) // 2, len(data) - 1})]
    shapes = {tuple(_shape(leaf) for leaf in tree_leaves_of(item)) for item in some}
    return len(shapes) == 1 and all(map(_is_example, some))


def _as_batches(data: Any, size: int) -> Iterable[Any]:
    """Any of the accepted kinds as an iterable of batches."""
    data = stored_tensors(data) or data
    if isinstance(data, tuple) and data and all(isinstance(item, Tensor | np.ndarray) for item in data):
        lengths = {len(item) for item in data if item.ndim}
        if len(lengths) != 1 or any(item.ndim == 0 for item in data):
            shapes = [tuple(item.shape) for item in data]
            raise ValueError(
                argument_message(
                    "data", f"is a tuple of shapes {shapes}", "one common first dimension", "Align the tensors."
                )
            )
        return [] if lengths == {0} else [data]
    is_map_style = isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__")
    if is_map_style and not isinstance(data, DataLoader):
        return DataLoader(data, batch_size=size) if len(data) else []
    is_indexed = hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, DataLoader)
    if is_indexed and not isinstance(data, Tensor | np.ndarray | str | Mapping) and len(data):
        if holds_examples(data):
            return DataLoader(data, batch_size=size)
        if not isinstance(data, Iterable):
            return [data[i] for i in range(len(data))]
    if isinstance(data, Tensor | np.ndarray | str | Mapping) or not isinstance(data, Iterable):
        remedy = "Wrap one batch in a list, a data set of tensors in a tuple: (inputs, targets)."
        raise TypeError(argument_message("data", f"is {a_type(data)}", _KINDS, remedy))
    return data


def stored_tensors(data: Any) -> tuple[Tensor, ...] | None:
    """The tensors behind a data set that is known to hand them out as they are; None where it must be read.

    Known are `TensorDataset` and the data sets of this library, by their exact types: a class of somebody else's may
    store tensors and hand out others.
    """
    if type(data) is TensorDataset:
        return tuple(data.tensors)
    inputs, targets = getattr(data, "inputs", None), getattr(data, "targets", None)
    is_ours = isinstance(data, Dataset) and type(data).__module__.startswith("lowhanging.")
    return (inputs, targets) if is_ours and isinstance(inputs, Tensor) and isinstance(targets, Tensor) else None


def _plain(leaf: Any) -> Any:
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


def joined(batches: list[Any]) -> Any | None:
    """All batches as one, or None where they have no common first dimension."""
    flattened = [tree_flatten(batch) for batch in batches]
    if not flattened or any(spec != flattened[0][1] for _, spec in flattened):
        return None
    for leaves, _ in flattened:
        if not leaves or not all(
            isinstance(leaf, Tensor) and leaf.ndim and leaf.layout == torch.strided for leaf in leaves
        ):
            return None
        if len({leaf.shape[0] for leaf in leaves}) != 1:
            return None
    columns = list(zip(*(leaves for leaves, _ in flattened), strict=True))
    if any(len({(leaf.shape[1:], leaf.dtype) for leaf in column}) != 1 for column in columns):
        return None
    whole = [column[0] if len(column) == 1 else torch.cat(column) for column in columns]
    return tree_unflatten(whole, flattened[0][1])


def _micro_batch_size(leaves: list[Tensor], total: int, num_params: int) -> int:
    """Examples that fit `_MICRO_BATCH_BYTES`; a divisor of `total` near it where there is one (one shape to record)."""
    per_example = max(leaf[0].numel() * leaf.element_size() for leaf in leaves)
    wanted = _MICRO_BATCH_BYTES * (4 if num_params >= _MANY_WEIGHTS else 1)
    size = max(8, min(1024, wanted // max(1, per_example)))
    if leaves[0].device.type != "cpu":
        size *= 16
    if total <= size:
        return total
    divisors = [n for n in range(size, size // 2, -1) if total % n == 0]
    return divisors[0] if divisors else size


def _fingerprint(batch: Any) -> float:
    """A number that differs between batches that differ, order of examples included."""
    value = 0.0
    for position, leaf in enumerate(tree_leaves_of(batch)):
        if isinstance(leaf, Tensor) and leaf.numel():
            flat = leaf.detach().to_dense().to(torch.float64).reshape(-1)
            weights = torch.arange(1, flat.numel() + 1, device=flat.device, dtype=torch.float64).sin()
            value += (position + 1) * float(flat @ weights) + flat.numel()
    return value


_PAIRS = (
    "Yield pairs, or pass batch_loss=(model, batch) -> (sum, count). One data set is a tuple: (inputs, targets), not a "
    "list."
)


def split_batch(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """A batch as (positional inputs, keyword inputs, targets)."""
    if isinstance(batch, Mapping):
        key = next((name for name in TARGET_KEYS if name in batch), None)
        if key is not None:
            return (), {name: value for name, value in batch.items() if name != key}, batch[key]
        received = f"has the keys {list(batch)}"
        raise ValueError(
            argument_message(
                "batch", received, f"one of {TARGET_KEYS} for the targets", "Rename it, or pass batch_loss=."
            )
        )
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return tuple(batch[:-1]), {}, batch[-1]
    received = f"is {a_type(batch)}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
    raise ValueError(argument_message("batch", received, "(inputs, targets)", _PAIRS))


def logits_of(outputs: Any) -> Any:
    """A model's outputs as one tensor, for the default loss and to count answers: `.logits`, where they have that."""
    return outputs.logits if hasattr(outputs, "logits") and not isinstance(outputs, Tensor) else outputs


def some_of(batch: Any, where: slice) -> Any | None:
    """Some of a batch's examples; None where its parts have no common first dimension."""
    leaves, spec = tree_flatten(batch)
    lengths = {leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves}
    return None if len(lengths) != 1 or None in lengths else tree_unflatten([leaf[where] for leaf in leaves], spec)


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
        shapes = [tuple(leaf.shape) for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
        remedy = "Check one batch by hand: loss_fn(model(*inputs), targets)."
        if isinstance(batch, Mapping):
            names = list(split_batch(batch)[1])
            remedy = f"Its entries {names} go to forward by name: rename or drop some, or pass batch_loss=."
        first_line = (str(error).splitlines() or [""])[0]
        if any(narrow in first_line for narrow in ("BFloat16", "Half")):
            remedy += " Half-precision weights are studied in float32: let forward cast to a weight's dtype."
        elif "dtype" in first_line and any(narrow in first_line for narrow in ("float", "double", "Float", "Double")):
            remedy += " Data and weights of one precision: inputs.double() for a model in float64."
        failure = f"{type(error).__name__}: {first_line}"
        received = f"has batches of shapes {shapes}, on which the model or its loss failed ({failure})"
        raise ValueError(
            argument_message("data", received, "batches that the model and its loss accept", remedy)
        ) from error


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
            raise TypeError(argument_message("data", f"is {a_type(data)}", expected, remedy))
        if isinstance(data, Iterator):
            remedy = "It is used up after one epoch: pass list(...) of it, or a DataLoader."
            raise TypeError(argument_message("data", f"is {a_type(data)}, readable once", expected, remedy))

    def epoch(self, generator: torch.Generator, device: torch.device, *, check: bool) -> Iterator[Any]:
        """One pass, on the device; `check` refuses NaN."""
        is_bounded = self.length is None and not self.num_batches
        for number, batch in enumerate(self.data if self.length is None else self._cut(generator)):
            if is_bounded and number == _MAX_BATCHES:
                received = f"has more than {number:,} batches and does not tell how many: it may never end"
                remedy = "Pass data that end after an epoch: list(itertools.islice(loader, num))."
                raise ValueError(argument_message("data", received, "data that end", remedy))
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
        fingerprint = f"{number}{self.length} of a {type(store).__name__}"
        if not (hasattr(store, "__len__") and hasattr(store, "__getitem__")) or not len(store):
            return fingerprint
        first, second = _seen(store), _seen(store)
        return (
            f"{fingerprint} {first}" if first == second else fingerprint
        )  # augmented from a state that is nobody's to know

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
            raise ValueError(argument_message("data", received, "one common first dimension", "Align the tensors."))
        return tuple(torch.as_tensor(item) for item in data)
    return stored_tensors(data)
