"""results: what was saved comes back bit for bit, a file is whole or not there, and NumPy alone can read it.

Oracles: equality with what was saved; `numpy.load`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import json
import math
import os
import pkgutil
import stat
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lowhanging as lh
from lowhanging.errors import DamagedFileError
from lowhanging.io import ResumeFile, Saved, write_atomically


@dataclass(frozen=True)
class Pairs(Saved):
    values: Tensor  # (k,)
    counts: Tensor  # (k,), integers
    losses: dict[str, Tensor]
    scalar: Tensor  # ()
    num_products: int
    tol: float
    which: str
    names: list[str]
    settings: dict[str, Any]
    accuracy: float | None = None


@dataclass(frozen=True)
class Other(Saved):
    values: Tensor


def pairs() -> Pairs:
    values = torch.tensor([math.pi, -0.0, math.inf, 1e-300], dtype=torch.float64)
    losses = {"mixed": torch.ones(2, 3), "a/b": torch.tensor([True, False])}
    return Pairs(
        values, torch.tensor([3, 1]), losses, torch.tensor(2.5), 17, 1e-4, "LA", ["x", "y"], {"lr": [1, 2], "empty": {}}
    )


def test_round_trip(tmp_path: Path) -> None:
    before = pairs()
    path = before.save(tmp_path / "pairs")
    assert path == tmp_path / "pairs.npz"
    assert before.save(path) == path  # the suffix is not doubled, the file is replaced
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.npz"]
    after = Pairs.load(tmp_path / "pairs")
    for name, value in vars(before).items():
        other = getattr(after, name)
        if isinstance(value, Tensor):
            assert other.dtype == value.dtype
            assert torch.equal(other, value)
        elif name == "losses":
            assert list(other) == list(value)
            assert all(torch.equal(other[key], value[key]) for key in value)
        else:
            assert other == value
    assert math.copysign(1, after.values[1]) == -1.0


def test_weights_on_a_graph_are_saved_without_it(tmp_path: Path) -> None:
    values = torch.ones(2, requires_grad=True) * 2
    assert not Other.load(Other(values).save(tmp_path / "o")).values.requires_grad


def test_numpy_alone_can_read_it(tmp_path: Path) -> None:
    with np.load(pairs().save(tmp_path / "p"), allow_pickle=False) as stored:
        assert stored["values"].tolist() == pairs().values.tolist()
        assert stored["losses/mixed"].shape == (2, 3)
        assert json.loads(str(stored["__lowhanging__"]))["class"].endswith(".Pairs")


def test_another_class_is_refused(tmp_path: Path) -> None:
    path = lh.Subspace.span(torch.eye(3)[:2]).save(tmp_path / "s")
    with pytest.raises(ValueError) as error:
        lh.landscape.Plane.load(path)
    assert str(error.value) == (
        f"path is {str(path)!r}, a saved Subspace, expected a file saved by Plane.save.\n"
        "Load it with Subspace.load(path), or with lh.load(path)."
    )


def test_load_reads_any_result(tmp_path: Path) -> None:
    space = lh.Subspace.span(torch.eye(3)[:2])
    found = lh.load(space.save(tmp_path / "s"))
    assert type(found) is lh.Subspace
    assert torch.equal(found.basis, space.basis)


@dataclass(frozen=True)
class Nested(Saved):
    parts: tuple[lh.Subspace, ...]
    by_level: dict[float, Any]
    call: Any = None

    unsaved = ("call",)


def test_results_within_results_come_back_and_what_they_share_is_stored_once(tmp_path: Path) -> None:
    space = lh.Subspace.span(torch.eye(3)[:2])
    path = Nested((space, space), {0.5: [1, (2, None)]}, print).save(tmp_path / "n")
    with np.load(path) as stored:
        assert sorted(stored.files) == ["__lowhanging__", "parts/0/basis"]
    found = Nested.load(path)
    assert found.by_level == {0.5: [1, (2, None)]}
    assert found.call is None
    assert [torch.equal(part.basis, space.basis) for part in found.parts] == [True, True]
    assert found.parts[0].basis is found.parts[1].basis


@pytest.mark.parametrize(
    "name",
    ["lowhanging.__main__.main", "os.system", "lowhanging.io.Path", "lowhanging.errors.argument_message", "shutil.Foo"],
)
def test_a_file_makes_no_class_but_our_results(tmp_path: Path, name: str) -> None:
    path = lh.Subspace.span(torch.eye(3)[:2]).save(tmp_path / "s")
    with_meta(path, **{"class": name})
    with pytest.raises(DamagedFileError, match="not a result of lowhanging"):
        lh.load(path)


def test_what_can_not_be_saved_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"settings/f is a function, which can't be saved"):
        dataclasses.replace(pairs(), settings={"f": lambda: 0}).save(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def with_meta(path: Path, **changed: Any) -> None:
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    meta = json.loads(str(arrays["__lowhanging__"])) | changed
    np.savez(path, **(arrays | {"__lowhanging__": np.array(json.dumps(meta))}))


def test_results_of_another_version_are_told_from_damage(tmp_path: Path) -> None:
    path = lh.Subspace.span(torch.eye(3)[:2]).save(tmp_path / "s")
    with_meta(path, fields=[["rows", 1]])
    for read in (lh.load, lh.Subspace.load):
        with pytest.raises(
            ValueError, match=r"by another version: Subspace with other fields \(basis, rows\)"
        ) as error:
            read(path)
        assert not isinstance(error.value, DamagedFileError)
    with_meta(path, **{"class": "lowhanging.curvature.subspace.Hyperspace"})
    with pytest.raises(
        ValueError, match=r"another version: lowhanging.curvature.subspace.Hyperspace is not in this one"
    ):
        lh.load(path)


def test_keys_of_any_kind_come_back_and_objects_are_never_pickled(tmp_path: Path) -> None:
    settings = {(1, "a"): torch.ones(1), 2: None}
    found = Pairs.load(dataclasses.replace(pairs(), settings=settings).save(tmp_path / "p"))
    assert list(found.settings) == [(1, "a"), 2]
    with pytest.raises(TypeError, match="settings/x is an array of objects"):
        dataclasses.replace(pairs(), settings={"x": np.array([{}])}).save(tmp_path / "p")


@pytest.mark.parametrize("path", ["", "results/"])
def test_a_file_has_a_name(path: str) -> None:
    with pytest.raises(ValueError, match=r"path is '.*', expected the name of a file"):
        pairs().save(path)


def resume_file(path: Path, kind: str = "a training", **identity: str) -> ResumeFile:
    return ResumeFile(path, {"data": "x"} | identity, kind=kind)


def test_a_resume_file_returns_its_state_and_is_another_calls_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "run"
    file = resume_file(path)
    assert file.read() is None
    state = {
        "rows": torch.arange(3),
        "spot": np.ones(2),
        "space": lh.Subspace.span(torch.eye(2)),
        "n": {1: (2.5, None)},
    }
    file.write(state)
    found = resume_file(path).read()
    assert found is not None
    assert found["n"] == state["n"]
    assert torch.equal(found["rows"], torch.arange(3))
    assert isinstance(found["spot"], np.ndarray)
    assert torch.equal(found["space"].basis, torch.eye(2))
    before = file.path.read_bytes()
    with pytest.raises(ValueError, match=r"the file of a training with another data, expected a new file or that of"):
        resume_file(path, data="y").read()
    with pytest.raises(DamagedFileError, match="no resume file of a polish"):
        resume_file(path, "a polish").read()
    assert file.path.read_bytes() == before
    file.path.write_bytes(before[: len(before) // 2])
    with pytest.raises(DamagedFileError, match="no resume file of a training"):
        resume_file(path).read()


def test_writing_takes_a_tenth_of_the_time_at_most_and_the_rest_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, clock, written = resume_file(tmp_path / "run"), [0.0], []
    monkeypatch.setattr("lowhanging.io.time.monotonic", lambda: clock[0])

    def write(path: Path, content: dict[str, Any], **options: Any) -> None:
        clock[0] += 1.0  # as long as a write takes
        written.append(content["state"]["n"])

    monkeypatch.setattr("lowhanging.io._write", write)
    for n in range(40):
        file.keep({"n": n})
        clock[0] += 0.5
    assert written == [0, 20]
    file.flush()
    file.flush()
    assert written == [0, 20, 39]
    file.keep({"n": 40}, now=True)
    assert written[-1] == 40


def broken_files(folder: Path) -> dict[str, Path]:
    whole = pairs().save(folder / "whole").read_bytes()
    torn = bytearray(whole)
    torn[60:120] = bytes(60)
    contents = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello", "torn": bytes(torn)}
    for name, content in contents.items():
        (folder / f"{name}.npz").write_bytes(content)
    np.savez(folder / "foreign.npz", values=np.ones(3))
    np.save(folder / "array.npy", np.ones(3))
    (folder / "array.npy").rename(folder / "array.npz")
    return {path.stem: path for path in folder.glob("*.npz") if path.stem != "whole"}


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    files = broken_files(tmp_path)
    assert len(files) == 6
    for path in files.values():
        with pytest.raises(ValueError, match=r"not a result of lowhanging, expected a file saved by Pairs.save"):
            Pairs.load(path)
    with pytest.raises(FileNotFoundError, match=r"does not exist, expected a file saved by Pairs.save.\nCheck"):
        Pairs.load(tmp_path / "absent")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "result.npz"
    target.write_bytes(b"old")

    def fail(stream: Any) -> None:
        stream.write(b"half of the new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, fail)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.npz"]


def test_files_have_the_usual_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o027)
    try:
        write_atomically("plain", lambda stream: stream.write(b"x"))  # no folder in the name: beside the others
        assert stat.S_IMODE(Path("plain").stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


@dataclass(frozen=True)
class Named(Saved):
    names: tuple[str, str]
    rows: list[int]


def test_a_tuple_comes_back_as_one(tmp_path: Path) -> None:
    found = Named.load(Named(("u", "v"), [1, 2]).save(tmp_path / "named"))
    assert found == Named(("u", "v"), [1, 2])
    assert (type(found.names), type(found.rows)) == (tuple, list)


REDUCED = [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", REDUCED)
def test_numbers_of_every_dtype_come_back_with_it(tmp_path: Path, dtype: torch.dtype) -> None:
    """Also of those that NumPy has not, NaN, infinity and a negative zero included, and in views and scalars."""
    values = torch.tensor([[1.5, -0.0, torch.inf], [-3.0, torch.nan, 0.125]]).to(dtype)
    before = dataclasses.replace(
        pairs(), values=values.T, scalar=values[0, 0], losses={"a": values, "b": torch.ones(2), "c": values[:0]}
    )
    after = Pairs.load(before.save(tmp_path / "a"))
    for mine, other in ((after.values, values.T), (after.scalar, values[0, 0]), (after.losses["a"], values)):
        assert mine.dtype == dtype
        assert mine.shape == other.shape
        assert torch.equal(mine.float().nan_to_num(7.0), other.float().nan_to_num(7.0))
        assert torch.equal(mine.float().signbit(), other.float().signbit())
    assert after.losses["b"].dtype == torch.float32
    assert after.losses["c"].shape == (0, 3)
    assert after.losses["c"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_in_half_precision_are_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b, c = (torch.randn(6, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3))
    plane = lh.plane_through(a, b, c)
    again = lh.landscape.Plane.load(plane.save(tmp_path / "plane"))
    assert again.directions.dtype == again.center.dtype == dtype
    assert torch.equal(again.directions, plane.directions)
    assert torch.equal(again.center, plane.center)
    loss = lh.FunctionObjective(lambda theta: (theta**2).sum(), a)
    for found in (
        lh.line_slice({"f": loss}, torch.ones(6, dtype=dtype), num=3),
        lh.path_slice({"f": loss}, [a, b, c], num=5),
        lh.plane_slice({"f": loss}, plane, num=3),
        lh.principal_directions(torch.stack([a, b, c])),
    ):
        loaded = type(found).load(found.save(tmp_path / type(found).__name__))
        for field in dataclasses.fields(found):
            mine, other = getattr(loaded, field.name), getattr(found, field.name)
            if isinstance(other, Tensor):
                assert mine.dtype == other.dtype
                assert torch.equal(mine, other)


def test_a_dtype_that_is_none_is_damage(tmp_path: Path) -> None:
    path = dataclasses.replace(pairs(), values=torch.ones(2, dtype=torch.bfloat16)).save(tmp_path / "a")
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    meta = str(arrays["__lowhanging__"])
    assert meta.count("bfloat16") == 1
    np.savez(path, **(arrays | {"__lowhanging__": np.array(meta.replace("bfloat16", "nonsense"))}))
    with pytest.raises(DamagedFileError, match="not a result of lowhanging"):
        Pairs.load(path)


# Every result of the library ------------------------------------------------------------------------------------------


def result_classes() -> list[type[Saved]]:
    """All that are defined inside lowhanging, wherever, but for what two of them share."""
    for module in pkgutil.walk_packages(lh.__path__, "lowhanging."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, waiting = set(), [Saved]
    while waiting:
        below = [each for each in waiting.pop().__subclasses__() if each.__module__.startswith("lowhanging.")]
        found |= set(below)
        waiting += below
    results = [cls for cls in found if dataclasses.is_dataclass(cls) and not cls.__name__.startswith("_")]
    return sorted(results, key=lambda cls: cls.__qualname__)


def sample(kind: Any, number: int = 3) -> Any:
    """A value of a type, as annotated; `number` tells one from the next."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Tensor:
        return torch.arange(12, dtype=torch.float64).reshape(3, 4) + number
    if kind is lh.Subspace:
        return lh.Subspace.span(torch.eye(4, dtype=torch.float64)[: 1 + number % 3])
    if kind is lh.datasets.BooleanTarget:
        return lh.datasets.boolean_targets(6 + number, leap=1, degree=3)
    if kind in (int, float, str, bool, Any):
        return {int: number, float: number + 0.5, str: f"word {number}", bool: True, Any: None}[kind]
    if origin in (typing.Union, types.UnionType):
        return sample(next(each for each in arguments if each is not types.NoneType), number)
    if origin is typing.Literal:
        return arguments[-1]
    if origin is tuple:
        items = arguments[:1] * 2 if arguments[-1] is ... else arguments
        return tuple(sample(each, number + i) for i, each in enumerate(items))
    if origin is list:
        return [sample(arguments[0], number), sample(arguments[0], number + 1)]
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        return {sample(arguments[0], number + i): sample(arguments[1], number + i) for i in range(2)}
    if origin is collections.abc.Callable or not dataclasses.is_dataclass(kind):
        raise TypeError(f"no sample of {kind}")
    types_ = typing.get_type_hints(kind)
    lost = getattr(kind, "unsaved", ())
    fields = [field for field in dataclasses.fields(kind) if field.init]
    return kind(**{f.name: None if f.name in lost else sample(types_[f.name], i) for i, f in enumerate(fields)})


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("cls", result_classes(), ids=lambda cls: cls.__qualname__)
def test_every_result_class_comes_back(tmp_path: Path, cls: type[Saved]) -> None:
    before = sample(cls)
    assert same(lh.load(before.save(tmp_path / "result")), before)
