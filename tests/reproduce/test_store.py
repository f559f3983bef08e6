"""Kept work of `lowhanging reproduce`: damage of any kind is made again, a missing permission is not.

Oracle: the result that was kept. Every byte of its file is changed in turn, and it is cut at every length.
"""

from __future__ import annotations

import math
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
from lowhanging.reproduce import pipeline
from lowhanging.reproduce.store import NO_STORE, ResultStore, as_json

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
    store, made = ResultStore(tmp_path), []

    def make() -> lh.Subspace:
        made.append(1)
        return KEPT

    def kept() -> lh.Subspace:
        return store.result("kept", make)

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
    store = ResultStore(tmp_path)
    store.result("kept", lambda: KEPT)

    def refused(*_: Any, **__: Any) -> None:
        raise error

    def make() -> lh.Subspace:
        raise AssertionError("made again")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(type(error)):
        store.result("kept", make)
    monkeypatch.undo()
    monkeypatch.setattr("zipfile.ZipFile.read", refused)  # the disk fails while it is read
    with pytest.raises(type(error)):
        store.result("kept", make)


def test_a_damaged_resume_file_is_begun_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, H = ResultStore(tmp_path), torch.diag(torch.arange(1.0, 40.0, dtype=torch.float64))
    path = store.resume("pairs")
    assert path == tmp_path / "pairs-resume.npz"
    first = lh.top_eigs(H, k=2, resume=path)
    content = path.read_bytes()
    assert store.resume("pairs") == path
    assert path.read_bytes() == content
    path.write_bytes(content[: len(content) // 3])
    again = lh.top_eigs(H, k=2, resume=store.resume("pairs"))
    assert "pairs-resume.npz can't be read (path is " in capsys.readouterr().err
    assert torch.equal(again.values, first.values)


def test_only_what_a_dead_run_left_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".pairs.npz.a.part", tmp_path / ".pairs.npz.b.part"
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    pipeline._prepare(ResultStore(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [new.name]


def test_damaged_plain_work_is_made_again(tmp_path, capsys):
    (tmp_path / "radii.json").write_text('{"half": ')
    assert ResultStore(tmp_path).plain("radii", lambda: {"whole": 1}) == {"whole": 1}
    assert "radii.json is no JSON: it is made again" in capsys.readouterr().err
    assert ResultStore(tmp_path).plain("radii", lambda: {"other": 2}) == {"whole": 1}


def test_a_store_makes_a_result_once_and_reads_it_back(tmp_path, capsys):
    made = []

    def make():
        made.append(1)
        return lh.Subspace(torch.eye(3)[:2])

    store = ResultStore(tmp_path)
    store.resume("axes").write_bytes(b"unfinished")
    for _ in range(2):
        assert torch.equal(store.result("axes", make).basis, torch.eye(3)[:2])
    assert len(made) == 1
    assert not store.resume("axes").exists()
    (tmp_path / "axes.npz").write_bytes(b"half")
    assert torch.equal(store.result("axes", make).basis, torch.eye(3)[:2])
    assert "axes.npz can't be read" in capsys.readouterr().err
    assert NO_STORE.result("axes", make).dim == 2
    assert NO_STORE.resume("axes") is None
    assert store.plain("numbers", lambda: {"a": (1.5, math.nan)}) == {"a": [1.5, None]}
    assert store.plain("numbers", lambda: pytest.fail("made twice")) == {"a": [1.5, None]}


def test_a_unit_is_measured_once_and_a_failed_one_leaves_nothing(tmp_path):
    store = ResultStore(tmp_path)

    def failing():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        store.unit("theme", failing)
    assert list(tmp_path.iterdir()) == []
    assert store.unit("theme", lambda: ({"a": math.inf}, 1.5)) == ({"a": None}, 1.5, False)
    assert store.unit("theme", failing) == ({"a": None}, 1.5, True)


def test_json_is_strict():
    assert as_json({1: [math.nan, -math.inf, 0.1]}) == '{\n "1": [\n  null,\n  null,\n  0.1\n ]\n}\n'
