"""Rows of a long call, one for each seed or dimension, kept in its resume file as they are finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor

from lowhanging.io import ResumeFile

Row = dict[str, Tensor]


class ResumedRows:
    """The rows that are finished, those of an earlier call first; a context in which the file is flushed on errors.

    Args:
        resume: npz file, or None to keep nothing.
        identity: what determines the rows, in words.
        kind: what writes the file, such as "a refinement".
        total: rows of a finished call.
    """

    def __init__(self, resume: str | Path | None, identity: Mapping[str, str], *, kind: str, total: int):
        self.rows = list[Row]()
        self._total = total
        self._file = None if resume is None else ResumeFile(resume, identity, kind=kind)
        state = None if self._file is None else self._file.read()
        if self._file is not None and state is not None:
            with self._file.decoding():
                self.rows = [dict(state[f"row {i}"]) for i in range(len(state))]
                if not 0 < len(self.rows) <= total:
                    raise self._file.damaged()

    def add(self, row: Row) -> None:
        """One more; written when a write is due, and at the end."""
        self.rows.append(row)
        if self._file is not None:
            state = {f"row {i}": each for i, each in enumerate(self.rows)}
            self._file.keep(state, now=len(self.rows) == self._total)

    def __enter__(self) -> ResumedRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._file is not None:
            self._file.flush()
