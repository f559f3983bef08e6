"""Kept work of `lowhanging reproduce`: damage of any kind is made again, a missing permission is not.

Oracle: the result that was kept. Every byte of its file is changed in turn, and it is cut at every length.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lowhanging as lh
from lowhanging.errors import DamagedFileError
from lowhanging.io import read_arrays
from lowhanging.reproduce import pipeline as run_room
from lowhanging.reproduce.store import ResultStore

ROWS = torch.arange(12, dtype=torch.float64).reshape(2, 6)
KEPT = lh.Subspace(torch.linalg.qr(ROWS.T)[0].T.contiguous())


def is_kept(found: lh.Subspace) -> bool:
    return torch.equal(found.basis, KEPT.basis)


def test_a_changed_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = KEPT.save(tmp_path / "kept")
    whole, noticed = path.read_bytes(), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x11
        path.write_bytes(damaged)
        try:
            assert is_kept(lh.Subspace.load(path)), place  # in a date, or a comment
        except DamagedFileError:
            noticed += 1
    assert noticed > 0.7 * len(whole)


def test_a_shape_that_has_shrunk_is_noticed(tmp_path: Path) -> None:
    """NumPy's own reader stops before the checksum of what it does not read."""
    path = tmp_path / "kept.npz"
    np.savez(path, basis=np.arange(9000.0))
    path.write_bytes(path.read_bytes().replace(b"'shape': (9000,)", b"'shape': (1000,)"))
    with np.load(path) as stored:
        assert stored["basis"].tolist() == list(range(1000))
    with pytest.raises(DamagedFileError, match=r"cut short, changed or never an npz file \(Bad CRC-32"):
        read_arrays(path)


def test_work_that_was_cut_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf, made = ResultStore(tmp_path), []

    def make() -> lh.Subspace:
        made.append(1)
        return KEPT

    def kept() -> lh.Subspace:
        return shelf.result("kept", lh.Subspace.load, make)

    kept()
    path = tmp_path / "kept.npz"
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        made.clear()
        assert is_kept(kept())
        assert len(made) == 1
        assert "kept.npz can't be read (path is " in capsys.readouterr().err
        assert is_kept(kept())
        assert len(made) == 1
    torch.save({}, path)  # a zip file, and none of ours
    made.clear()
    assert is_kept(kept())
    assert len(made) == 1


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_what_cant_be_opened_is_not_made_again(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = ResultStore(tmp_path)
    shelf.result("kept", lh.Subspace.load, lambda: KEPT)

    def refused(*_: Any, **__: Any) -> None:
        raise error

    def make() -> lh.Subspace:
        raise AssertionError("made again")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(type(error)):
        shelf.result("kept", lh.Subspace.load, make)
    monkeypatch.undo()
    monkeypatch.setattr("zipfile.ZipFile.read", refused)  # the disk fails while it is read
    with pytest.raises(type(error)):
        shelf.result("kept", lh.Subspace.load, make)


def test_a_damaged_resume_file_is_begun_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf, H = ResultStore(tmp_path), torch.diag(torch.arange(1.0, 40.0, dtype=torch.float64))
    path = shelf.resume("pairs")
    assert path == tmp_path / "pairs-resume.npz"
    first = lh.top_eigs(H, k=2, resume=path)
    content = path.read_bytes()
    assert shelf.resume("pairs") == path
    assert path.read_bytes() == content
    path.write_bytes(content[: len(content) // 3])
    again = lh.top_eigs(H, k=2, resume=shelf.resume("pairs"))
    assert "pairs-resume.npz can't be read (path is " in capsys.readouterr().err
    assert torch.equal(again.values, first.values)


def test_only_what_a_dead_run_left_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".pairs.npz.a.part", tmp_path / ".pairs.npz.b.part"
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    run_room._prepare(ResultStore(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [new.name]
