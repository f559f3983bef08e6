"""Saved results and resume files: one npz format, written whole or not at all, loaded without pickle.

A result is a frozen dataclass of tensors, numbers, strings, and mappings and sequences of them. Every tensor is an
array of the npz, named by its path in the result (its bits, if NumPy lacks its dtype), everything else one JSON entry:
NumPy alone can read it. The file names the result's class; of such names only dataclasses that are defined inside
lowhanging are imported. `ResumeFile` keeps the state of a long call in the same form.
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

from lowhanging.errors import (
    DamagedFileError,
    argument_message,
    door,
)

FORMAT = 2  # of saved files; a newer one is refused by name, an older one is read or refused by its fields
SHARE = 0.1  # of a long call's time that may go into writing its file
_META = "__lowhanging__"
_MOST_PACKED = 2**28  # bytes: a small file that unpacks to more than this and a hundred times itself was not saved here
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]  # files on a shared disk may be another machine's


class Saved:
    """A result that can be written to a file and read back; `lh.load(path)` reads any of them."""

    unsaved: ClassVar[tuple[str, ...]] = ()  # fields that are None in a result that was loaded

    def save(self, path: str | Path) -> Path:
        """Write to `path` as npz, in a folder that is made if missing; the file appears whole or not at all.

        Returns:
            The path written, its suffix `.npz` added where it was left out.
        """
        target = _npz_path("path", path, "the name of a file", 'Name a file: result.save("result.npz").')
        content = {"class": _name_of(type(self)), "fields": _fields(self)}
        _write(target, content, makes_folder=True)
        return target

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DamagedFileError: the file is cut short or changed, or was never a result.
            ValueError: it is a result of another class, or of another version of this one.
            OSError: it can't be opened, or does not exist.
        """
        result: Self = _load(path, cls)
        return result


@door
def load(path: str | Path) -> Any:
    """Any saved result, whatever its class.

    Args:
        path: where `result.save(path)` wrote it.

    Returns:
        an object of the class that was saved.

    Raises:
        DamagedFileError: the file is cut short or changed, or was never a result.
        ValueError: it is of another version.
        OSError: it can't be opened, or does not exist.
    """
    return _load(path, None)


def _load(path: str | Path, wanted: type | None) -> Any:
    expected = "a result saved by lowhanging" if wanted is None else f"a file saved by {wanted.__name__}.save"
    source = _npz_path("path", path, expected, "Load a file that a result's .save(path) wrote.")
    try:
        arrays, meta = _read(source, "path", expected)
        name = meta["class"]
        cls = wanted if wanted is not None and name == _name_of(wanted) else _class_of(name)
        if wanted is None or cls is wanted:
            return _decoded({"class": name, "fields": meta["fields"]}, arrays, {}, {name: cls})
    except FileNotFoundError as error:
        received, remedy = f"is {str(source)!r}, which does not exist", "Check the name and the folder."
        raise FileNotFoundError(argument_message("path", received, expected, remedy)) from error
    except _OtherFieldsError as error:
        received = f"is {str(source)!r}, saved by another version: {error}"
        remedy = "Load it with the version of lowhanging that saved it."
        raise ValueError(argument_message("path", received, expected, remedy)) from error
    except _WholeFileError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        received = f"is {str(source)!r}, not a result of lowhanging"
        remedy = "Load a file that a result's .save(path) wrote."
        raise DamagedFileError(argument_message("path", received, expected, remedy)) from error
    received = f"is {str(source)!r}, a saved {cls.__name__}"
    remedy = f"Load it with {cls.__name__}.load(path), or with lh.load(path)."
    raise ValueError(argument_message("path", received, expected, remedy))


class ResumeFile:
    """The file in which one long call keeps its state.

    Args:
        resume: its path, in an existing folder; made at the first write.
        identity: what determines the result, in words; the file of a call with another one is refused.
        kind: what writes it, with its article, such as "a training".
    """

    def __init__(self, resume: str | Path, identity: Mapping[str, str], *, kind: str):
        self.path = _npz_path("resume", resume, "the path of a file, or None", 'Name a file: resume="plane.npz".')
        if not self.path.parent.is_dir():
            expected = "a file in an existing folder"
            raise ValueError(argument_message("resume", f"is {str(self.path)!r}", expected, "Make the folder."))
        self.identity, self.kind = dict(identity), kind
        self._expected = f"a new file or that of this {kind.split(' ', 1)[-1]}"
        self._next = 0.0  # when the next write may begin
        self._waiting: Mapping[str, Any] | None = None  # the newest state, where the file has an older one

    def read(self) -> dict[str, Any] | None:
        """The state as it was written last; None without a file.

        Raises:
            DamagedFileError: it is no such file, or no longer a whole one.
            ValueError: it belongs to another call, or to another version.
        """
        try:
            with self.decoding():
                arrays, meta = _read(self.path, "resume", self._expected)
                kind, identity = meta["kind"], dict(meta["identity"])
                if kind != self.kind:
                    raise self.damaged()
                keys = {**self.identity, **identity}
                different = [key for key in keys if self.identity.get(key) != identity.get(key)]
                if different:
                    self.refuse(different)
                return dict(_decoded(meta["state"], arrays, {}, {}))
        except FileNotFoundError:
            return None

    @property
    def is_due(self) -> bool:
        """Whether another write leaves nine tenths of the time to the work."""
        return time.monotonic() >= self._next

    def keep(self, state: Mapping[str, Any], *, now: bool = False) -> None:
        """Write the state if a write is due, or `now`; else hold it. It must not change meanwhile."""
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
        except _OtherFieldsError as error:
            self.refuse([f"version of lowhanging ({error})"])
        except _WholeFileError:
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
        raise _WholeFileError(argument_message("resume", received, self._expected, remedy))


class _WholeFileError(ValueError):
    """The file is refused, and never called damaged: another call's, or a newer version's."""


class _OtherFieldsError(_WholeFileError):
    """A result class has other fields in this version, or is not in it."""


# Results as JSON and arrays -------------------------------------------------------------------------------------------


def _fields(result: Any) -> dict[str, Any]:
    unsaved = getattr(result, "unsaved", ())
    names = [field.name for field in dataclasses.fields(result) if field.init]
    return {name: None if name in unsaved else getattr(result, name) for name in names}


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _class_of(name: str) -> type:
    """A dataclass that is defined in lowhanging, by its name; `__main__`, the command, is never imported."""
    if not re.fullmatch(r"lowhanging(\.[a-zA-Z]\w*)+", name):
        raise ValueError(f"{name!r} is no class of lowhanging")
    module, _, short = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), short)
    except (ImportError, AttributeError) as error:
        raise _OtherFieldsError(f"{name} is not in this one") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found) and _name_of(found) == name):
        raise ValueError(f"{name!r} is no result class")
    return found


def _encoded(value: Any, path: str, arrays: dict[str, np.ndarray], names: dict[int, str]) -> Any:
    """The value as JSON, its tensors and arrays put into `arrays` under the name of their path, each object once."""
    if isinstance(value, Tensor | np.ndarray):
        if id(value) not in names:
            array = value if isinstance(value, np.ndarray) else _as_array(value)
            if array.dtype.hasobject:
                raise TypeError(f"{path} is an array of objects, which can't be saved")
            names[id(value)] = path if path not in arrays else f"{path} ({len(arrays)})"
            arrays[names[id(value)]] = array
        if isinstance(value, np.ndarray):
            return {"array": names[id(value)]}
        dtype = {} if _bits_of(value.dtype) is None else {"dtype": str(value.dtype).removeprefix("torch.")}
        return {"tensor": names[id(value)], **dtype}

    def each(key: Any, item: Any) -> Any:
        return _encoded(item, f"{path}/{key}" if path else str(key), arrays, names)

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [[key, each(key, item)] for key, item in _fields(value).items()]
        return {"class": _name_of(type(value)), "fields": fields}
    if isinstance(value, Mapping):
        return {"mapping": [[each(key, key), each(key, item)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        items = [each(i, item) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    plain = value.item() if isinstance(value, np.generic) else value
    if plain is None or isinstance(plain, bool | int | float | str):
        return plain
    raise TypeError(f"{path} is a {type(value).__name__}, which can't be saved")


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
            stored = torch.from_numpy(arrays[name])
            made[name] = stored.view(_dtype_of(code["dtype"])) if "dtype" in code else stored
        return made[name]
    if "array" in code:
        return arrays[code["array"]]
    if "tuple" in code:
        return tuple(each(item) for item in code["tuple"])
    if "mapping" in code:
        return {each(key): each(item) for key, item in code["mapping"]}
    cls: Any = classes[code["class"]] if code["class"] in classes else _class_of(code["class"])
    values = {key: each(item) for key, item in code["fields"]}
    own = [field for field in dataclasses.fields(cls) if field.init]
    needed = {field.name for field in own if field.default is field.default_factory is dataclasses.MISSING}
    other = sorted((values.keys() - {field.name for field in own}) | (needed - values.keys()))
    if other:
        raise _OtherFieldsError(f"{cls.__name__} with other fields ({', '.join(other)})")
    return cls(**values)


def _as_array(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor; of a dtype that NumPy has not, integers of its bits."""
    plain, bits = tensor.detach().cpu().contiguous(), _bits_of(tensor.dtype)
    array: np.ndarray = (plain if bits is None else plain.view(bits)).numpy()
    return array


def _bits_of(dtype: torch.dtype) -> torch.dtype | None:
    """The integers that a dtype is stored as; None where NumPy has the dtype."""
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return {1: torch.uint8, 2: torch.int16}[dtype.itemsize]
    return None


def _dtype_of(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found


def digest(*tensors: Tensor) -> str:
    """A digest of the numbers, dtypes and shapes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        array = _as_array(tensor)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:32]


# Files ----------------------------------------------------------------------------------------------------------------


def _npz_path(argument: str, path: Any, expected: str, remedy: str) -> Path:
    if not isinstance(path, str | Path):
        raise TypeError(argument_message(argument, f"is {path!r}", expected, remedy))
    if not Path(path).name or str(path).endswith(("/", os.sep)):
        raise ValueError(argument_message(argument, f"is {str(path)!r}", expected, remedy))
    return Path(path) if str(path).endswith(".npz") else Path(f"{path}.npz")


def _write(path: Path, content: Mapping[str, Any], *, packs: bool = True, makes_folder: bool = False) -> None:
    arrays: dict[str, np.ndarray] = {}
    names: dict[int, str] = {}
    # Of what a file is about, only the fields or the state hold tensors; their names then begin with the field's.
    meta = {"format": FORMAT} | {
        key: _encoded(value, "", arrays, names) if key in ("fields", "state") else value
        for key, value in content.items()
    }
    if "fields" in meta:
        meta["fields"] = meta["fields"]["mapping"]
    entries: dict[str, Any] = {**arrays, _META: np.array(json.dumps(meta))}
    is_large = sum(array.nbytes for array in arrays.values()) > _MOST_PACKED  # then packing costs more than it saves
    pack = np.savez if is_large or not packs else np.savez_compressed
    write_atomically(path, lambda stream: pack(stream, **entries), makes_folder=makes_folder)


def _read(path: Path, argument: str, expected: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = read_arrays(path)
    meta = json.loads(str(arrays.pop(_META)))
    if not isinstance(meta, dict):
        raise ValueError("no mapping")
    found = meta.get("format", FORMAT)
    if not isinstance(found, int) or found > FORMAT:
        received = f"is {str(path)!r}, of format {found}; this version reads {FORMAT}"
        remedy = "Read it with the version of lowhanging that wrote it."
        raise _WholeFileError(argument_message(argument, received, expected, remedy))
    return arrays, meta


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, if every byte of them is as it was written.

    Raises:
        DamagedFileError: it is no npz file, or no longer a whole one.
        OSError: it can't be opened, or the disk fails.
    """
    if path.is_dir():
        raise _damaged(path, "a folder")
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
        except Exception as error:  # a byte that has changed fails in a dozen ways, as zipfile, zlib and struct please
            # EINVAL: an offset that leads out of the file
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise _damaged(path, str(error)) from error
    return arrays


def _damaged(path: Path, how: str) -> DamagedFileError:
    received = f"is {str(path)!r}, cut short, changed or never an npz file ({how})"
    return DamagedFileError(argument_message("path", received, "a whole npz file", "Delete it, and make it again."))


def write_atomically(path: str | Path, write: Any, *, makes_folder: bool = False) -> None:
    """Call write(stream) on a temporary file in the folder of `path` and move it there; on failure nothing is left.

    Nor is what a process that was killed has left of the same file.
    """
    target = Path(path)
    try:
        if makes_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        prefix = f".{target.name}.{_HOST}-{os.getpid()}."
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())  # else a power cut can leave the new name with nothing in it
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
    except OSError as error:
        received, remedy = f"is {str(path)!r}, {error.strerror}", "Free space on the disk, or name another file."
        if isinstance(error, FileNotFoundError) and not target.parent.is_dir():
            received, remedy = f"is {str(path)!r}, in a folder that does not exist", "Make the folder first."
        failure = type(error)(argument_message("path", received, "a place that can be written to", remedy))
        failure.errno = error.errno
        raise failure from error


def _remove_stale(target: Path) -> None:
    """Remove temporary files of `target` whose process, on this machine, is no more."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.{_HOST}-*.part"):
        owner = path.name.removeprefix(f".{target.name}.{_HOST}-").split(".")[0]
        with contextlib.suppress(OSError, ValueError):
            if not _is_alive(int(owner)):
                path.unlink()


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # there os.kill ends it, whatever the signal
        return True
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
