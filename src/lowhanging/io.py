"""How does a result get to disk and back?

A result is a frozen dataclass of tensors, numbers, strings and mappings of them. It is stored as one npz: every tensor
an array of that file, everything else in one JSON entry, so that NumPy alone can read it. Nothing is pickled. A tensor
of a dtype that NumPy has not (bfloat16, the 8-bit floats) is stored as integers of its bits, and its dtype is told.

How does a long call keep its state in a file, and whose file is it?

One format for whatever can be interrupted: an npz of arrays, and beside them what kind of call wrote it, what
determines that call's result (its identity, in words), and some numbers. The file appears whole or not at all. The file
of another call is refused by the name of what differs, and left as it is; so is one that can't be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import hashlib
import io
import json
import os
import platform
import tempfile
import time
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowhanging.errors import DamagedFileError, explain

_T = TypeVar("_T")
_META = "__lowhanging__"
FORMAT = 1  # of saved files; a newer one is refused by name, an older one is read or refused by its fields
_MOST_PACKED = 2**28  # bytes: a small file that unpacks to more than this and a hundred times itself was not saved here
_REMEDY = "Load the file with the class that saved it: Class.load(path)."


def save_result(result: Any, path: str | Path) -> Path:
    """Write a result dataclass to `path` as npz; the file appears whole or not at all. Returns the path written."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
        elif isinstance(value, dict) and value and all(isinstance(item, Tensor) for item in value.values()):
            plain[field.name] = {"tensors": list(value)}
            tensors |= {f"{field.name}/{name}": item for name, item in value.items()}
        else:
            plain[field.name] = {"value": value}
    arrays = {name: as_array(tensor) for name, tensor in tensors.items()}
    dtypes = {name: _dtype_name(tensor.dtype) for name, tensor in tensors.items() if _bits_of(tensor.dtype) is not None}
    meta = json.dumps({"format": FORMAT, "class": type(result).__name__, "fields": plain, "dtypes": dtypes})
    target = Path(path) if str(path).endswith(".npz") else Path(f"{path}.npz")
    entries: dict[str, Any] = {**arrays, _META: np.array(meta)}
    is_large = sum(array.nbytes for array in arrays.values()) > _MOST_PACKED  # then packing costs more than it saves
    pack = np.savez if is_large else np.savez_compressed
    write_atomically(target, lambda stream: pack(stream, **entries))
    return target


def load_result(cls: type[_T], path: str | Path) -> _T:
    """Read what `save_result` wrote for the same class.

    Raises:
        DamagedFileError: the file is cut short or changed, or was never a result.
        ValueError: it is a result of another class, or of a version with other fields.
        OSError: it can't be opened, or does not exist.
    """
    source = Path(path) if str(path).endswith(".npz") else Path(f"{path}.npz")
    expected = f"a file saved by {cls.__name__}.save"
    try:
        arrays = read_arrays(source)
        meta = json.loads(str(arrays.pop(_META)))
        name_of_class, fields = meta["class"], dict(meta["fields"])
        dtypes = {name: getattr(torch, dtype) for name, dtype in meta.get("dtypes", {}).items()}
        tensors = {name: as_tensor(array, dtypes.get(name)) for name, array in arrays.items()}
    except FileNotFoundError as error:
        received = f"is {str(source)!r}, which does not exist"
        raise FileNotFoundError(explain("path", received, expected, "Check the name and the folder.")) from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        received = f"is {str(source)!r}, not a result of lowhanging"
        raise DamagedFileError(explain("path", received, expected, _REMEDY)) from error
    check_format("path", source, meta, expected)
    if name_of_class != cls.__name__:
        raise ValueError(explain("path", f"is {str(source)!r}, a saved {name_of_class}", expected, _REMEDY))
    try:
        values: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if "/" not in name}
        for name, entry in fields.items():
            if "tensors" in entry:
                values[name] = {key: tensors[f"{name}/{key}"] for key in entry["tensors"]}
            else:
                values[name] = entry["value"]
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if str(field.type).startswith("tuple[") and isinstance(values.get(field.name), list):
                values[field.name] = tuple(values[field.name])  # JSON knows lists only
        return cls(**values)
    except (TypeError, KeyError) as error:
        received = f"is {str(source)!r}, a saved {name_of_class} with other fields"
        remedy = "Load it with the version of lowhanging that saved it."
        raise ValueError(explain("path", received, expected, remedy)) from error


def check_format(argument: str, path: Path, meta: Mapping[str, Any], expected: str) -> None:
    """Refuse a file that a newer version of the library wrote."""
    found = meta.get("format", FORMAT)
    if not isinstance(found, int) or found > FORMAT:
        received = f"is {str(path)!r}, of format {found}; this version reads {FORMAT}"
        raise ValueError(explain(argument, received, expected, "Read it with the version of lowhanging that wrote it."))


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


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
    return explain("path", received, "a whole npz file", "Delete it, and make it again.")


def digest(*tensors: Tensor) -> str:
    """A digest of the numbers, dtypes and shapes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        array = as_array(tensor)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:32]


def resume_path(resume: str | Path) -> Path:
    """Where an unfinished run is kept: an npz file in an existing folder, or an error."""
    if not isinstance(resume, str | Path) or not str(resume):
        remedy = 'Name a file: resume="plane.npz".'
        raise TypeError(explain("resume", f"is {resume!r}", "the path of a file, or None", remedy))
    path = Path(resume) if str(resume).endswith(".npz") else Path(f"{resume}.npz")
    if not path.parent.is_dir():
        raise ValueError(explain("resume", f"is {str(path)!r}", "a file in an existing folder", "Make the folder."))
    return path


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
        message = explain("path", received, "a place that can be written to", remedy)
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

SHARE = 0.1  # of the time that may go into writing
_RESUME_META = "__lowhanging_resume__"

Arrays = dict[str, NDArray[Any]]


class ResumeFile:
    """The file of one call.

    Args:
        resume: its path; made at the first write.
        identity: what determines the result, in words; the file of a call with another one is refused.
        kind: what writes it, with its article, such as "a training".
        run: what one such call is named in messages.
    """

    def __init__(self, resume: str | Path, identity: Mapping[str, str], *, kind: str, run: str = "run"):
        self.path = resume_path(resume)
        self.identity, self.kind, self.run = dict(identity), kind, run
        self._next = 0.0  # when the next write may begin

    def read(self) -> tuple[Arrays, dict[str, Any]] | None:
        """Arrays and numbers as they were written last; None without a file.

        Raises:
            DamagedFileError: it is no such file, or no longer a whole one.
            ValueError: it belongs to another call.
        """
        try:
            arrays = read_arrays(self.path)
            meta = json.loads(str(arrays.pop(_RESUME_META)))
            kind, identity, numbers = meta["kind"], dict(meta["identity"]), dict(meta["numbers"])
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
        return arrays, numbers

    @property
    def is_due(self) -> bool:
        """Whether another write leaves nine tenths of the time to the work."""
        return time.monotonic() >= self._next

    def write(self, arrays: Mapping[str, NDArray[Any]], numbers: Mapping[str, Any]) -> None:
        """Replace what is in the file."""
        begun = time.monotonic()
        meta = json.dumps({"format": FORMAT, "kind": self.kind, "identity": self.identity, "numbers": dict(numbers)})
        entries: dict[str, Any] = {**arrays, _RESUME_META: np.array(meta)}
        write_atomically(self.path, lambda stream: np.savez(stream, **entries))
        now = time.monotonic()
        self._next = now + (now - begun) / SHARE

    def damaged(self) -> DamagedFileError:
        """The error for a file that does not hold what such a call writes."""
        received = f"is {str(self.path)!r}, no resume file of {self.kind}"
        return DamagedFileError(explain("resume", received, self._expected, "Name another file."))

    def refuse(self, different: Collection[str], remedy: str | None = None) -> NoReturn:
        """Raise the error for the file of a call that was given something else."""
        received = f"is {str(self.path)!r}, the file of a {self.run} with another {', '.join(sorted(different))}"
        remedy = "Name another file, or repeat the call that made this one." if remedy is None else remedy
        raise ValueError(explain("resume", received, self._expected, remedy))

    @property
    def _expected(self) -> str:
        return f"a new file or that of this {self.run}"
def load(path: str | Path) -> Any:
    """X."""
    return path
