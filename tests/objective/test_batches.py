"""Batches: whatever the data came as, the same examples once, in micro-batches, and no random state is touched.

Oracles: the tensors the data were made of; the random states before and after, bit for bit; a generator run by hand.
"""

from __future__ import annotations

import contextlib
import pickle
import random
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lowhanging.objective.batches import Batches, num_examples

Pair = namedtuple("Pair", ["inputs", "targets"])
X, Y = torch.arange(16.0).reshape(8, 2), torch.arange(8)


def make(
    data: Any, micro_batch: int | None = None, *, cache: bool = True, dtype: torch.dtype = torch.float32
) -> Batches:
    size_of = lambda examples: 334  # noqa: E731
    where = {"device": torch.device("cpu"), "dtype": dtype}
    return Batches(data, **where, micro_batch=micro_batch, cache=cache, size_of=size_of)


def random_states() -> bytes:
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))  # noqa: NPY002


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    before = random_states()
    yield
    assert random_states() == before


class Stored(Dataset[tuple[Tensor, Tensor]]):
    """Like the data sets that ship: tensors, and a map-style interface to them."""

    def __init__(self, factor: float = 1.0) -> None:
        self.inputs, self.targets, self.factor = X, Y, factor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index] * self.factor, self.targets[index]


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Draws from all three global random states when it is read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(2) + float(np.random.rand()) + random.random()  # noqa: NPY002
        if index == 7 and self.fails:
            raise OSError("disk")
        return X[index] + noise, Y[index]

    fails = False


class Doubled(TensorDataset):
    """A TensorDataset that is not what its tensors are."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(2 * tensor for tensor in super().__getitem__(index))


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(X, Y, strict=True)


# What the data may be -------------------------------------------------------------------------------------------------

KINDS = {
    "tuple of tensors": lambda: (X, Y),
    "tuple of arrays": lambda: (X.numpy(), Y.numpy()),
    "named tuple of tensors": lambda: Pair(X, Y),
    "TensorDataset": lambda: TensorDataset(X, Y),
    "data set with tensors": Stored,
    "map-style data set": lambda: Subset(TensorDataset(X, Y), range(8)),
    "list of batches": lambda: [(X[:5], Y[:5]), (X[5:], Y[5:])],
    "list of lists": lambda: [[X[:5], Y[:5]], [X[5:], Y[5:]]],
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), batch_size=3),
    "DataLoader of a stream": lambda: DataLoader(Stream(), batch_size=3),
    "iterator": lambda: iter([(X[:5], Y[:5]), (X[5:], Y[5:])]),
    "generator": lambda: ((X[i : i + 3], Y[i : i + 3]) for i in range(0, 8, 3)),
    "arrays in batches": lambda: [(X[:5].numpy(), Y[:5].numpy()), (X[5:].numpy(), Y[5:].numpy())],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro_batch", [None, 5, 1])
def test_every_kind_gives_the_same_examples(kind: str, micro_batch: int | None) -> None:
    with untouched():
        batches = make(KINDS[kind](), micro_batch)
        first, second = list(batches), list(batches)
    inputs, targets = (torch.cat(column) for column in zip(*first, strict=True))
    assert torch.equal(inputs, X)
    assert torch.equal(targets, Y)
    assert all(map(torch.equal, tree_leaves(first), tree_leaves(second)))
    assert [len(batch[1]) for batch in first] == {None: [8], 5: [5, 3], 1: [1] * 8}[micro_batch]
    assert (batches.num_batches, batches.num_examples) == (len(first), 8)


def test_structures_survive() -> None:
    kinds = {
        "named tuple": lambda part: Pair(X[part], Y[part]),
        "dict": lambda part: {"x": X[part], "labels": Y[part]},
        "ordered dict": lambda part: OrderedDict(x=X[part], labels=Y[part]),
        "user dict": lambda part: UserDict(x=X[part], labels=Y[part]),  # as HuggingFace's BatchEncoding
        "user dict inside": lambda part: (UserDict(x=X[part]), Y[part]),
    }
    batches = {name: list(make([kind(slice(0, 5)), kind(slice(5, 8))], 6)) for name, kind in kinds.items()}
    assert all([num_examples(batch) for batch in found] == [6, 2] for found in batches.values())
    assert type(batches["named tuple"][0]) is Pair
    for name in ("dict", "ordered dict", "user dict"):
        assert dict(batches[name][1]).keys() == {"x", "labels"}
        assert torch.equal(batches[name][1]["x"], X[6:])
    assert type(batches["user dict"][0]) is dict
    assert torch.equal(batches["user dict inside"][1][0]["x"], X[6:])


class Squared(UserDict[str, Tensor]):
    """No mapping of the items that it is made of."""

    def __setitem__(self, name: str, value: Tensor) -> None:
        super().__setitem__(name, value**2)


class Fixed(UserDict[str, Tensor]):
    def __init__(self) -> None:
        super().__init__(x=X, labels=Y)


def test_a_batch_is_handed_out_as_it_was_yielded_and_can_be_emptied() -> None:
    items = {"x": X, "labels": Y}
    kinds = [(items, dict), (OrderedDict(items), OrderedDict), (UserDict(items), UserDict)]
    kinds += [(Squared(items), dict), (Fixed(), dict), (defaultdict(list, items), dict)]
    for batch, kind in kinds:
        batches = make([batch, batch], 16)
        kept = next(iter(batches))
        handed = batches.as_yielded(kept)
        assert type(handed) is kind
        assert torch.equal(handed.pop("x"), kept["x"])
        assert list(kept) == ["x", "labels"]
    pair = next(iter(make([(X, Y)])))
    assert batches.as_yielded(pair) is pair


def test_a_data_set_that_transforms_its_tensors_is_read() -> None:
    assert torch.equal(next(iter(make(Stored(factor=3.0))))[0], 3 * X)
    assert torch.equal(next(iter(make(Doubled(X, Y))))[0], 2 * X)


def test_batches_that_cannot_be_joined_are_used_as_they_come() -> None:
    ragged = [(X[:5], Y[:5]), (torch.ones(3, 4), Y[5:])]  # sequences of two lengths, say
    assert [tuple(batch[0].shape) for batch in make(ragged, 2)] == [(5, 2), (3, 4)]
    graph = [(X[:5], torch.ones(9, 1), Y[:5])]  # no common first dimension
    assert [tuple(leaf.shape) for leaf in next(iter(make(graph, 2)))] == [(5, 2), (9, 1), (5,)]
    named = [{"x": X[:5], "id": "a", "labels": Y[:5]}, {"x": X[5:], "id": "b", "labels": Y[5:]}]
    assert [batch["id"] for batch in make(named)] == ["a", "b"]


def test_empty_batches_are_dropped() -> None:
    data = [(X[:0], Y[:0]), (X[:5], Y[:5]), (X[:0].reshape(0, 2), Y[:0])]
    assert [len(batch[0]) for batch in make(data)] == [5]
    assert [len(batch[0]) for batch in make(data, cache=False)] == [5]


def test_micro_batches_divide_the_examples_where_they_can() -> None:
    images = torch.zeros(3200, 1, 28, 28)
    sizes = {len(batch[0]) for batch in make((images, torch.zeros(3200, dtype=torch.int64)))}
    assert sizes == {320}  # at most 334 are wanted; a divisor, so that there is one shape to record
    prime = {len(batch[0]) for batch in make((images[:1009], torch.zeros(1009)))}
    assert prime == {334, 7}


def test_half_precision_is_widened_and_integers_stay() -> None:
    batch = next(iter(make((X.bfloat16(), X.half(), X.double(), Y.int()), dtype=torch.float64)))
    assert [leaf.dtype for leaf in batch] == [torch.float64, torch.float64, torch.float64, torch.int32]


def test_what_is_kept_is_not_the_users() -> None:
    x, array = X.clone(), X.numpy().copy()
    kept = [make((x, Y)), make([(x, Y)]), make([(x, torch.ones(3))]), make([(array, Y)]), make([(x[:5],), (x[5:],)])]
    before = [[leaf.clone() for leaf in tree_leaves(list(batches))] for batches in kept]
    x.zero_()
    array[:] = 0
    for batches, leaves in zip(kept, before, strict=True):
        assert all(map(torch.equal, tree_leaves(list(batches)), leaves))


def test_read_only_arrays_and_inference_tensors() -> None:
    array = X.numpy().copy()
    array.setflags(write=False)
    with torch.inference_mode():
        made_there = X * 1
    for cache in (True, False):
        for inputs in (array, array[::-1], made_there):
            leaf = next(iter(make([(inputs, Y)], cache=cache)))[0]
            assert not leaf.is_inference()
            assert leaf.tolist() == inputs.tolist()


# Random states --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False])
def test_reading_touches_no_random_state(cache: bool) -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=cache)  # a shuffled one can't be read twice
    with untouched():
        batches = make(loader, cache=cache)
        assert len(list(batches)) == batches.num_batches
    state = torch.get_rng_state()
    expected = torch.rand(batches.num_batches)
    torch.set_rng_state(state)
    # Between two batches the state is the user's, so what is drawn there goes on as if nothing were read.
    assert torch.equal(torch.cat([torch.rand(1) for _ in batches]), expected)
    if cache:
        assert torch.equal(torch.cat([batch[1] for batch in batches]).sort().values, Y)


def test_random_data_are_drawn_once_and_the_states_put_back() -> None:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = torch.cat([x for x, _ in DataLoader(Augmented(), batch_size=3, shuffle=True)])
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    with untouched():
        batches = make(DataLoader(Augmented(), batch_size=3, shuffle=True))
    assert torch.equal(torch.cat([batch[0] for batch in batches]), expected)  # as a plain loop would have drawn them
    first, second = ([leaf for batch in batches for leaf in batch] for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_states_are_put_back_after_an_error_while_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Augmented, "fails", True)
    with untouched(), pytest.raises(OSError, match="disk"):
        make(DataLoader(Augmented(), batch_size=3))
    with untouched(), pytest.raises(OSError, match="disk"):
        make(DataLoader(Augmented(), batch_size=3), cache=False)


def test_a_generator_of_the_users_advances_by_one_pass() -> None:
    by_hand, ours = (torch.Generator().manual_seed(3) for _ in range(2))
    expected = torch.cat([y for _, y in DataLoader(TensorDataset(X, Y), shuffle=True, generator=by_hand)])
    with untouched():
        batches = make(DataLoader(TensorDataset(X, Y), shuffle=True, generator=ours))
    assert torch.equal(torch.cat([batch[1] for batch in batches]), expected)
    assert torch.equal(ours.get_state(), by_hand.get_state())


# cache=False ----------------------------------------------------------------------------------------------------------


def test_without_cache_the_source_is_read_on_each_pass() -> None:
    class Counted(list[Any]):
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            return super().__iter__()

    data = Counted([(X[:5], Y[:5]), (X[5:], Y[5:])])
    batches = make(data, cache=False)
    before = data.passes
    assert [len(batch[0]) for batch in batches] == [5, 3]  # the loader's own, not re-cut
    assert data.passes == before + 1
    kept = make(data)
    before = data.passes
    assert len(list(kept)) == 1
    assert data.passes == before


CHANGED = (
    "data gave other batches on a second pass, expected the same batches on every pass (cache=False).\n"
    "Switch shuffling and random augmentation off, or use cache=True, which reads once."
)


class OnlyNumPy(Augmented):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index] + float(np.random.rand()), Y[index]  # noqa: NPY002


class OnlyRandom(Augmented):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index] + random.random(), Y[index]


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True),
        DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(0)),
        DataLoader(Augmented(), batch_size=3),
        DataLoader(OnlyNumPy(), batch_size=3),
        DataLoader(OnlyRandom(), batch_size=3),
    ],
    ids=["shuffle", "generator", "torch", "numpy", "random"],
)
def test_without_cache_what_changes_is_refused(data: Any) -> None:
    with untouched(), pytest.raises(RuntimeError) as error:
        make(data, cache=False)
    assert str(error.value) == CHANGED


def test_without_cache_a_later_change_is_noticed() -> None:
    x = X.clone()
    batches = make([(x, Y)], cache=False)
    assert len(list(batches)) == 1
    x[3, 1] += 1e-3
    with pytest.raises(RuntimeError, match="gave other batches on a second pass"):
        list(batches)


# What is refused ------------------------------------------------------------------------------------------------------

_KINDS = "a DataLoader, an iterable of batches, a map-style Dataset or a tuple (inputs, targets) of tensors"
_EMPTY = "data holds no batch, expected at least one example.\nCheck the loader's data set and drop_last."
_WRAP = "Wrap one batch in a list, a data set of tensors in a tuple: (inputs, targets)."
REFUSED = {
    "empty list": ([], ValueError, _EMPTY),
    "empty tensors": ((X[:0], Y[:0]), ValueError, _EMPTY),
    "empty batches": ([(X[:0], Y[:0])], ValueError, _EMPTY),
    "empty data set": (TensorDataset(X[:0], Y[:0]), ValueError, _EMPTY),
    "drop_last": (DataLoader(TensorDataset(X, Y), batch_size=9, drop_last=True), ValueError, _EMPTY),
    "one tensor": (X, TypeError, f"data is a Tensor, expected {_KINDS}.\n{_WRAP}"),
    "one dict": ({"x": X, "y": Y}, TypeError, f"data is a dict, expected {_KINDS}.\n{_WRAP}"),
    "text": ("mnist", TypeError, f"data is a str, expected {_KINDS}.\n{_WRAP}"),
    "number": (3, TypeError, f"data is an int, expected {_KINDS}.\n{_WRAP}"),
    "lengths": (
        (X, Y[:5]),
        ValueError,
        "data is a tuple of shapes [(8, 2), (5,)], expected one common first dimension.\nAlign the tensors.",
    ),
    "no tensor": (
        [("a", "b")],
        TypeError,
        f"data has a batch of type tuple without a tensor, expected {_KINDS}.\nYield (inputs, targets).",
    ),
    "nan": (
        (torch.tensor([[1.0], [float("nan")]]), Y[:2]),
        ValueError,
        "data holds 1 NaN or infinite entries, expected finite numbers.\n"
        "Drop or repair those examples before building the loader.",
    ),
    "inf in the second batch": (
        [(X[:5], Y[:5]), (X[5:] / 0, Y[5:])],
        ValueError,
        "data holds 6 NaN or infinite entries, expected finite numbers.\n"
        "Drop or repair those examples before building the loader.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("cache", [True, False])
def test_bad_data_are_refused(name: str, cache: bool) -> None:
    data, kind, text = REFUSED[name]
    with untouched(), pytest.raises(kind) as error:
        make(data, cache=cache)
    assert str(error.value) == text


def test_an_iterator_without_cache_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        make(iter([(X, Y)]), cache=False)
    expected = "data is an iterator, readable once, expected data to read on each pass (cache=False)."
    assert str(error.value) == f"{expected}\nPass a DataLoader, or leave cache=True."


def test_bad_micro_batch_is_refused() -> None:
    remedy = "Leave it out: the engine chooses one that fits the cache."
    with pytest.raises(ValueError) as error:
        make((X, Y), 0)
    assert str(error.value) == f"micro_batch is 0, expected an integer of at least 1.\n{remedy}"
