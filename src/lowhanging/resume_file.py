"""How does a long call keep its state in a file, and whose file is it?

One format for whatever can be interrupted: an npz of arrays, and beside them what kind of call wrote it, what
determines that call's result (its identity, in words), and some numbers. The file appears whole or not at all. The file
of another call is refused by the name of what differs, and left as it is; so is one that can't be read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lowhanging.errors import DamagedFileError, explain
from lowhanging.results import FORMAT, check_format, read_arrays, resume_path, write_atomically

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
