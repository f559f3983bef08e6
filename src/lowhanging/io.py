"""Saving, loading and resuming: results of any class as npz files, and the one file format of every long call.

A result is a frozen dataclass of tensors, numbers, strings, and mappings and sequences of them. Every tensor is an
array of the npz, named by where it stands, everything else one JSON entry: NumPy alone can read it, and nothing is
pickled. The file names the result's class, which is imported by that name from inside lowhanging only. A tensor of a dtype that
NumPy has not (bfloat16, the 8-bit floats) is stored as integers of its bits beside the name of its dtype.

`ResumeFile` keeps the state of a long call in the same form, beside what kind of call wrote it and what determines that
call's result (its identity). The file of another call is refused by the name of what differs, and left as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import hashlib
import importlib
import io
import json
import os
import platform
import re
import tempfile
import time
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from torch import Tensor

from lowhanging.errors import DamagedFileError, argument_message

FORMAT = 2  # of saved files; a newer one is refused by name, an older one is read or refused by its fields
SHARE = 0.1  # of a long call's time that may go into writing its file
_META = "__lowhanging__"
_MOST_PACKED = 2**28  # bytes: a small file that unpacks to more than this and a hundred times itself was not saved here


class Saved:
    """A result that can be written to a file and read back; `lh.load(path)` reads any of them."""

    unsaved: ClassVar[tuple[str, ...]] = ()  # fields that are None in a result that was loaded

    def save(self, path: str | Path) -> Path:
        """Write to `path` as npz; the file appears whole or not at all. Returns the path written."""
        target = _with_suffix(path)
        _write(target, {"class": _name_of(type(self)), "fields": _fields(self)})
        return target

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DamagedFileError: the file is cut short or changed, or was never a result.
            ValueError: it is a result of another class, or of a version with other fields.
            OSError: it can't be opened, or does not exist.
        """
        result: Self = _load(path, cls)
        return result


def load(path: str | Path) -> Any:
    """Any saved result, whatever its class.

    Args:
        path: where `result.save(path)` wrote it.

    Returns:
        an object of the class that was saved.

    Raises:
        DamagedFileError: the file is cut short or changed, or was never a result.
        ValueError: it is of a version with other fields.
        OSError: it can't be opened, or does not exist.
    """
    return _load(path, None)


def _load(path: str | Path, wanted: type | None) -> Any:
    source = _with_suffix(path)
    expected = "a result saved by lowhanging" if wanted is None else f"a file saved by {wanted.__name__}.save"
    try:
        arrays, meta = _read(source)
        name, fields = meta["class"], meta["fields"]
        check_format("path", source, meta, expected)
        cls: Any = wanted if wanted is not None and name == _name_of(wanted) else _class_of(name)
    except FileNotFoundError as error:
        received = f"is {str(source)!r}, which does not exist"
        remedy = "Check the name and the folder."
        raise FileNotFoundError(argument_message("path", received, expected, remedy)) from error
    except (_NewerFormatError, PermissionError, MemoryError):
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise _no_result(source, expected) from error
    if wanted is not None and cls is not wanted:
        remedy = f"Load it with {cls.__name__}.load(path), or with lh.load(path)."
        raise ValueError(argument_message("path", f"is {str(source)!r}, a saved {cls.__name__}", expected, remedy))
    try:
        return _decoded({"class": name, "fields": fields}, arrays, {}, {name: cls})
    except TypeError as error:
        received = f"is {str(source)!r}, a saved {cls.__name__} with other fields"
        remedy = "Load it with the version of lowhanging that saved it."
        raise ValueError(argument_message("path", received, expected, remedy)) from error
    except (KeyError, AttributeError, ValueError, RuntimeError) as error:
        raise _no_result(source, expected) from error


def _no_result(source: Path, expected: str) -> DamagedFileError:
    received = f"is {str(source)!r}, not a result of lowhanging"
    remedy = "Load a file that a result's .save(path) wrote."
    return DamagedFileError(argument_message("path", received, expected, remedy))


class ResumeFile:
    """The file in which one long call keeps its state.

    Args:
        resume: its path; made at the first write.
        identity: what determines the result, in words; the file of a call with another one is refused.
        kind: what writes it, with its article, such as "a training".
    """

    def __init__(self, resume: str | Path, identity: Mapping[str, str], *, kind: str):
        if not isinstance(resume, str | Path) or not str(resume):
            remedy = 'Name a file: resume="plane.npz".'
            raise TypeError(argument_message("resume", f"is {resume!r}", "the path of a file, or None", remedy))
        self.path = _with_suffix(resume)
        if not self.path.parent.is_dir():
            expected = "a file in an existing folder"
            raise ValueError(argument_message("resume", f"is {str(self.path)!r}", expected, "Make the folder."))
        self.identity, self.kind = dict(identity), kind
        self._next = 0.0  # when the next write may begin
        self._waiting: Mapping[str, Any] | None = None  # the newest state, where the file has an older one

    def read(self) -> dict[str, Any] | None:
        """The state as it was written last; None without a file.

        Raises:
            DamagedFileError: it is no such file, or no longer a whole one.
            ValueError: it belongs to another call.
        """
        try:
            arrays, meta = _read(self.path)
            kind, identity, state = meta["kind"], dict(meta["identity"]), meta["state"]
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise self.damaged() from error
        check_format("resume", self.path, meta, self._expected)
        if kind != self.kind:
            raise self.damaged()
        different = [key for key in {**self.identity, **identity} if self.identity.get(key) != identity.get(key)]
        if different:
            self.refuse(different)
        with self.decoding():
            return dict(_decoded(state, arrays, {}, {}))

    @property
    def is_due(self) -> bool:
        """Whether another write leaves nine tenths of the time to the work."""
        return time.monotonic() >= self._next

    def keep(self, state: Mapping[str, Any], *, now: bool = False) -> None:
        """Write the state, unless that would take more than a tenth of the time; then it waits for `flush`.

        Args:
            state: a mapping of tensors, arrays, plain values, and mappings and sequences of them, none of which is
                changed afterwards.
            now: write it in any case.
        """
        self._waiting = state
        if now or self.is_due:
            self.write(state)

    def flush(self) -> None:
        """Write what waits, on the way out of a call that has failed: a full disk is not the error to report."""
        if self._waiting is not None:
            with contextlib.suppress(OSError):
                self.write(self._waiting)

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace what is in the file."""
        begun, self._waiting = time.monotonic(), None
        _write(self.path, {"kind": self.kind, "identity": self.identity, "state": dict(state)}, packs=False)
        now = time.monotonic()
        self._next = now + (now - begun) / SHARE

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """What goes wrong with a state that was read, turned into the error for a damaged file."""
        try:
            yield
        except (_OtherCallError, DamagedFileError):
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            raise self.damaged() from error

    def damaged(self) -> DamagedFileError:
        """The error for a file that does not hold what such a call writes."""
        received = f"is {str(self.path)!r}, no resume file of {self.kind}"
        return DamagedFileError(argument_message("resume", received, self._expected, "Name another file."))

    def refuse(self, different: Collection[str], remedy: str | None = None) -> NoReturn:
        """Raise the error for the file of a call that was given something else."""
        received = f"is {str(self.path)!r}, the file of {self.kind} with another {', '.join(sorted(different))}"
        remedy = "Name another file, or repeat the call that made this one." if remedy is None else remedy
        raise _OtherCallError(argument_message("resume", received, self._expected, remedy))

    @property
    def _expected(self) -> str:
        return f"a new file or that of this {self.kind.split(' ', 1)[-1]}"


class _OtherCallError(ValueError):
    """Never damage: the file is whole."""


class _NewerFormatError(ValueError):
    """Never damage: the file is whole."""


def check_format(argument: str, path: Path, meta: Mapping[str, Any], expected: str) -> None:
    """Refuse a file that a newer version of the library wrote."""
    found = meta.get("format", FORMAT)
    if not isinstance(found, int) or found > FORMAT:
        received = f"is {str(path)!r}, of format {found}; this version reads {FORMAT}"
        remedy = "Read it with the version of lowhanging that wrote it."
        raise _NewerFormatError(argument_message(argument, received, expected, remedy))


def _fields(result: Any) -> dict[str, Any]:
    unsaved = getattr(result, "unsaved", ())
    return {
        field.name: None if field.name in unsaved else getattr(result, field.name)
        for field in dataclasses.fields(result)
        if field.init
    }


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _class_of(name: str) -> type:
    """A dataclass of lowhanging by its name."""
    if not re.fullmatch(r"lowhanging(\.\w+)+", name):
        raise ValueError(f"{name!r} is no class of lowhanging")
    module, _, short = name.rpartition(".")
    found = getattr(importlib.import_module(module), short)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{name!r} is no result class")
    return found


def _encoded(value: Any, place: str, arrays: dict[str, np.ndarray], names: dict[int, str]) -> Any:
    """The value as JSON, its tensors and arrays put into `arrays` under the name of their place, each object once."""
    if isinstance(value, Tensor | np.ndarray):
        if id(value) not in names:
            names[id(value)] = place if place not in arrays else f"{place} ({len(arrays)})"
            arrays[names[id(value)]] = value if isinstance(value, np.ndarray) else as_array(value)
        kind = "tensor" if isinstance(value, Tensor) else "array"
        is_stored_by_bits = isinstance(value, Tensor) and _bits_of(value.dtype) is not None
        dtype = {"dtype": str(value.dtype).removeprefix("torch.")} if is_stored_by_bits else {}
        return {kind: names[id(value)], **dtype}

    def each(key: Any, item: Any) -> Any:
        return _encoded(item, f"{place}/{key}" if place else str(key), arrays, names)

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [[key, each(key, item)] for key, item in _fields(value).items()]
        return {"class": _name_of(type(value)), "fields": fields}
    if isinstance(value, Mapping):
        return {"mapping": [[key, each(key, item)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        items = [each(i, item) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    plain = value.item() if isinstance(value, np.generic) else value
    if plain is None or isinstance(plain, bool | int | float | str):
        return plain
    raise TypeError(f"{place} is a {type(value).__name__}, which can't be saved")


def _decoded(code: Any, arrays: Mapping[str, np.ndarray], made: dict[str, Tensor], classes: dict[str, type]) -> Any:
    """What `_encoded` was given; `made` are the tensors that were made already, `classes` those known by name."""

    def each(item: Any) -> Any:
        return _decoded(item, arrays, made, classes)

    if isinstance(code, list):
        return [each(item) for item in code]
    if not isinstance(code, dict):
        return code
    if "tensor" in code:
        name = code["tensor"]
        if name not in made:
            made[name] = as_tensor(arrays[name], getattr(torch, code["dtype"]) if "dtype" in code else None)
        return made[name]
    if "array" in code:
        return arrays[code["array"]]
    if "tuple" in code:
        return tuple(each(item) for item in code["tuple"])
    if "mapping" in code:
        return {key: each(item) for key, item in code["mapping"]}
    cls = classes[code["class"]] if code["class"] in classes else _class_of(code["class"])
    return cls(**{key: each(item) for key, item in code["fields"]})


def _write(path: Path, content: Mapping[str, Any], *, packs: bool = True) -> None:
    arrays: dict[str, np.ndarray] = {}
    names: dict[int, str] = {}
    # Of what a file is about, only the fields or the state hold tensors; their names then begin with the field's.
    plain = {key: value for key, value in content.items() if key not in ("fields", "state")}
    nested = {key: _encoded(content[key], "", arrays, names) for key in ("fields", "state") if key in content}
    if "fields" in nested:
        nested["fields"] = nested["fields"]["mapping"]
    entries: dict[str, Any] = {**arrays, _META: np.array(json.dumps({"format": FORMAT, **plain, **nested}))}
    is_large = sum(array.nbytes for array in arrays.values()) > _MOST_PACKED  # then packing costs more than it saves
    pack = np.savez if is_large or not packs else np.savez_compressed
    write_atomically(path, lambda stream: pack(stream, **entries))


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = read_arrays(path)
    meta = json.loads(str(arrays.pop(_META)))
    if not isinstance(meta, dict):
        raise ValueError("no mapping")
    return arrays, meta


def _with_suffix(path: str | Path) -> Path:
    return Path(path) if str(path).endswith(".npz") else Path(f"{path}.npz")


def as_array(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor; of a dtype that NumPy has not, integers of its bits."""
    plain, bits = tensor.detach().cpu().contiguous(), _bits_of(tensor.dtype)
    array: np.ndarray = (plain if bits is None else plain.view(bits)).numpy()
    return array


def as_tensor(array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
    """What `as_array` was given, `dtype` being that of a tensor that was stored by its bits."""
    found = torch.from_numpy(array)
    return found if dtype is None or _bits_of(dtype) is None else found.view(dtype)


def _bits_of(dtype: torch.dtype) -> torch.dtype | None:
    """The integers that a dtype is stored as; None where NumPy has the dtype."""
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return {1: torch.uint8, 2: torch.int16}[dtype.itemsize]
    return None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, if every byte of them is as it was written.

    Raises:
        DamagedFileError: it is no npz file, or no longer a whole one.
        OSError: it can't be opened, or the disk fails.
    """
    if path.is_dir():
        raise DamagedFileError(_damaged(path, "a folder"))
    arrays = {}
    with open(path, "rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
                if unpacked > max(_MOST_PACKED, 100 * path.stat().st_size):
                    raise ValueError(f"it would unpack to {unpacked:,} bytes, more than such a file is saved with")
                for name in archive.namelist():
                    # To its end, where its checksum is compared: NumPy alone stops before it if a shape has shrunk.
                    entry = io.BytesIO(archive.read(name))
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(entry, allow_pickle=False)
        except MemoryError:
            raise
        except OSError as error:
            if error.errno not in (None, errno.EINVAL):  # EINVAL: an offset that leads out of the file
                raise
            raise DamagedFileError(_damaged(path, str(error))) from error
        except Exception as error:  # a byte that has changed fails in a dozen ways, as zipfile, zlib and struct please
            raise DamagedFileError(_damaged(path, str(error))) from error
    return arrays


def _damaged(path: Path, how: str) -> str:
    received = f"is {str(path)!r}, cut short, changed or never an npz file ({how})"
    return argument_message("path", received, "a whole npz file", "Delete it, and make it again.")


def digest(*tensors: Tensor) -> str:
    """A digest of the numbers, dtypes and shapes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        array = as_array(tensor)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:32]


def write_atomically(path: str | Path, write: Any) -> None:
    """Call write(stream) on a temporary file beside `path` and move it into place; on failure nothing is left.

    Nor is what a process that was killed has left of the same file.
    """
    target = Path(path)
    _remove_stale(target)
    try:
        descriptor, name = tempfile.mkstemp(
            dir=target.parent or Path("."), prefix=f".{target.name}.{_HOST}-{os.getpid()}.", suffix=".part"
        )
        try:
            with os.fdopen(descriptor, "wb") as stream:
                write(stream)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
    except OSError as error:
        is_missing = not target.parent.is_dir()
        received = f"is {str(path)!r}, " + ("in a folder that does not exist" if is_missing else f"{error.strerror}")
        remedy = "Make the folder first." if is_missing else "Free space on the disk, or name another file."
        message = argument_message("path", received, "a place that can be written to", remedy)
        failure = type(error)(message)
        failure.errno = error.errno
        raise failure from error


_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]  # files on a shared disk may be another machine's


def _remove_stale(target: Path) -> None:
    """Remove temporary files of `target` whose process, on this machine, is no more."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.{_HOST}-*.part"):
        owner = path.name.removeprefix(f".{target.name}.{_HOST}-").split(".")[0]
        with contextlib.suppress(OSError, ValueError):
            if not _is_alive(int(owner)):
                path.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
