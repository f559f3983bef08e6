"""The finished work of a run: results as npz files, numbers as JSON.

A folder per network, named after its seed, within a folder per settings. In it every result lies as the npz that its
class saves, every unit (one theme of one network) as a JSON with its numbers; each file appears whole or not at all.
What was made is read back before it is used, so that a run that was killed and went on computes from the same bits as
one that was not. What no longer is as it was written is made again; what can't be opened ends the run.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lowhanging.errors import DamagedFileError
from lowhanging.io import Saved, load, read_arrays, write_atomically

_T = TypeVar("_T", bound=Saved)
Row = Mapping[str, Any]  # the numbers of one unit, as JSON holds them


@dataclass(frozen=True)
class ResultStore:
    """A folder of finished results; without one (None) nothing is kept."""

    folder: Path | None

    def result(self, name: str, make: Callable[[], _T], load: Callable[[Path], _T] = load) -> _T:
        """The result of that name: loaded, or made, saved and read back."""
        if self.folder is None:
            return make()
        path, unfinished = self.folder / f"{name}.npz", self.folder / f"{name}-resume.npz"
        if path.exists():
            try:
                found = load(path)
                unfinished.unlink(missing_ok=True)  # of a run that was killed between the two
                return found
            except (ValueError, TypeError, KeyError) as error:
                print(f"{path} can't be read ({_first_line(error)}): it is made again", file=sys.stderr)
        make().save(path)
        unfinished.unlink(missing_ok=True)
        return load(path)

    def plain(self, name: str, make: Callable[[], Any]) -> Any:
        """A plain value of that name: read, or made and written."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.json"
        if path.exists():
            try:
                return json.loads(path.read_text())
            except ValueError:
                print(f"{path} is no JSON: it is made again", file=sys.stderr)
        return _written(path, make())

    def resume(self, name: str) -> Path | None:
        """The file for a library call's own `resume=`; a damaged one, which the call would refuse, is removed."""
        if self.folder is None:
            return None
        path = self.folder / f"{name}-resume.npz"
        try:
            read_arrays(path)
        except DamagedFileError as error:
            print(f"{path} can't be read ({_first_line(error)}): it is begun anew", file=sys.stderr)
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        return path

    def unit(self, theme: str, measure: Callable[[], tuple[Row, float]]) -> tuple[Row, float, bool]:
        """Numbers and seconds of a theme, and whether they were here already."""
        if self.folder is None:
            return *measure(), False
        path = self.folder / f"unit-{theme}.json"
        if path.exists():
            try:
                found = json.loads(path.read_text())
                if (
                    isinstance(found, dict)
                    and isinstance(found["numbers"], dict)
                    and isinstance(found["seconds"], float)
                ):
                    return found["numbers"], found["seconds"], True
            except (ValueError, KeyError):
                pass
            print(f"{path} is no finished unit of work: it is measured again", file=sys.stderr)
        row, seconds = measure()
        return _written(path, {"numbers": row, "seconds": seconds})["numbers"], seconds, False


NO_STORE = ResultStore(None)


def as_json(value: Any) -> str:
    """The value as strict JSON; NaN and infinite numbers become null, which every reader understands."""
    return json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"


def _written(path: Path, value: Any) -> Any:
    """The value as it is read back from the file that it was written to."""
    text = as_json(value)
    write_atomically(path, lambda stream: stream.write(text.encode()))
    return json.loads(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
