"""errors: every message has four parts (argument, received, expected, remedy), tested by its text.

Oracle: the texts themselves, written out here.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lowhanging.errors import (
    NotConvergedError,
    NotSmoothWarning,
    argument_message,
    check_choice,
    check_count,
    check_device,
    check_finite,
    check_names,
    check_real,
    check_vector,
    check_writable_folder,
)


def says(error: pytest.ExceptionInfo[BaseException], text: str) -> None:
    assert str(error.value) == text


def test_explain_has_four_parts_on_two_lines() -> None:
    text = argument_message("k", "is 0", "an integer from 1 to 7", "Ask for one pair.")
    assert text == "k is 0, expected an integer from 1 to 7.\nAsk for one pair."


def test_not_converged_error_carries_what_was_found() -> None:
    error = NotConvergedError("two of three pairs", result=(1, 2))
    assert error.result == (1, 2)
    assert str(error) == "two of three pairs"
    assert isinstance(error, RuntimeError)
    assert NotConvergedError("nothing").result is None
    assert issubclass(NotSmoothWarning, UserWarning)


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 7, np.int64(3), torch.tensor(5).item()])
def test_check_count_returns_an_int(value: int) -> None:
    count = check_count("k", value, maximum=7, remedy="r")
    assert type(count) is int
    assert count == value


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0, ValueError, "k is 0, expected an integer from 1 to 7.\nAsk for fewer."),
        (8, ValueError, "k is 8, expected an integer from 1 to 7.\nAsk for fewer."),
        (2.0, TypeError, "k is 2.0, expected an integer from 1 to 7.\nAsk for fewer."),
        (True, TypeError, "k is True, expected an integer from 1 to 7.\nAsk for fewer."),
        (None, TypeError, "k is None, expected an integer from 1 to 7.\nAsk for fewer."),
        ("3", TypeError, "k is '3', expected an integer from 1 to 7.\nAsk for fewer."),
    ],
)
def test_check_count_refuses(value: object, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        check_count("k", value, maximum=7, remedy="Ask for fewer.")
    says(error, text)


def test_check_count_without_maximum() -> None:
    assert check_count("n", 10**12, minimum=0, remedy="r") == 10**12
    with pytest.raises(ValueError) as error:
        check_count("n", -1, minimum=0, remedy="Count up.")
    says(error, "n is -1, expected an integer of at least 0.\nCount up.")


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.25)])
def test_check_real_returns_a_float(value: float) -> None:
    number = check_real("opacity", value, minimum=0, maximum=1, remedy="r")
    assert type(number) is float
    assert number == value


@pytest.mark.parametrize(
    ("value", "settings", "kind", "text"),
    [
        (1.5, {"minimum": 0, "maximum": 1}, ValueError, "t is 1.5, expected a finite number in [0, 1].\nr"),
        (0, {"minimum": 0, "exclusive": True}, ValueError, "t is 0, expected a finite number in (0, inf).\nr"),
        (-2, {"maximum": -3}, ValueError, "t is -2, expected a finite number in [-inf, -3].\nr"),
        (math.inf, {"minimum": 0}, ValueError, "t is inf, expected a finite number in [0, inf].\nr"),
        (math.nan, {}, ValueError, "t is nan, expected a finite number.\nr"),
        (False, {}, TypeError, "t is False, expected a finite number.\nr"),
        ("1", {}, TypeError, "t is '1', expected a finite number.\nr"),
        (1j, {}, TypeError, "t is 1j, expected a finite number.\nr"),
    ],
)
def test_check_real_refuses(value: object, settings: dict[str, float], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        check_real("t", value, remedy="r", **settings)
    says(error, text)


def test_check_choice() -> None:
    assert check_choice("which", "LA", ("LA", "SA")) == "LA"
    with pytest.raises(ValueError) as error:
        check_choice("which", "LR", ("LA", "SA"))
    says(error, "which is 'LR', expected one of 'LA', 'SA'.\nName one of them.")
    with pytest.raises(ValueError, match=r"which is None, expected one of 'LA'.\nSay LA."):
        check_choice("which", None, ("LA",), remedy="Say LA.")


# Tensors --------------------------------------------------------------------------------------------------------------


def test_check_finite() -> None:
    check_finite("data", torch.tensor([1.0, -2.0]), remedy="r")
    check_finite("data", torch.tensor([1, 2]), remedy="r")  # integers are finite
    with pytest.raises(ValueError) as error:
        check_finite("data", torch.tensor([math.nan, 1.0, -math.inf]), remedy="Drop them.")
    says(error, "data holds 2 NaN or infinite entries, expected finite numbers.\nDrop them.")
    with pytest.raises(ValueError, match="holds 1 NaN"):
        check_finite("data", torch.tensor([complex(0, math.nan)]), remedy="r")


def test_check_vector_converts_to_the_likes() -> None:
    like = torch.zeros(3, dtype=torch.float32)
    numbers = np.array([1.0, 2.0, 3.0])
    numbers.setflags(write=False)  # torch warns when it is given a read-only array
    vector = check_vector("v", numbers, 3, owner="Net", remedy="r", like=like)
    assert vector.dtype == torch.float32
    assert vector.tolist() == [1.0, 2.0, 3.0]
    weights = torch.ones(3, requires_grad=True)
    assert not check_vector("v", weights, 3, owner="Net", remedy="r").requires_grad


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        ([1.0, 2.0], TypeError, "v is a list, expected a tensor of shape (2,) = (num_params,) of Net.\nr"),
        (torch.ones(3), ValueError, "v has shape (3,), expected (2,) = (num_params,) of Net.\nr"),
        (torch.ones(2, 1), ValueError, "v has shape (2, 1), expected (2,) = (num_params,) of Net.\nr"),
        (torch.ones(2, dtype=torch.int64), TypeError, "v has dtype torch.int64, expected a floating-point dtype.\nr"),
        (torch.tensor([1, math.nan]), ValueError, "v holds 1 NaN or infinite entries, expected finite numbers.\nr"),
        (torch.zeros(2), ValueError, "v is the zero vector, expected a vector with a direction.\nr"),
    ],
)
def test_check_vector_refuses(value: object, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        check_vector("v", value, 2, owner="Net", remedy="r", allow_zero=False)
    says(error, text)


def test_check_vector_allows_zero_unless_told() -> None:
    assert not check_vector("theta", torch.zeros(2), 2, owner="Net", remedy="r").any()


# Devices, names, folders ----------------------------------------------------------------------------------------------


def test_check_device() -> None:
    assert check_device("cpu") == torch.device("cpu")
    remedy = 'Pass device="cpu", or leave it out to compute where the model is.'
    with pytest.raises(ValueError) as error:
        check_device("gpu7")
    says(error, f"device is 'gpu7', expected a torch device such as 'cpu' or 'cuda:0'.\n{remedy}")
    with pytest.raises(ValueError, match=r"device is 3.5, expected a torch device such as"):
        check_device(3.5)
    count = torch.cuda.device_count()
    found = f"{count} CUDA device{'' if count == 1 else 's'} found"
    with pytest.raises(ValueError) as error:
        check_device(f"cuda:{count}")
    says(error, f"device is 'cuda:{count}', expected a device of this machine ({found}).\n{remedy}")


def test_check_names() -> None:
    assert check_names("losses", {"mixed": 1, "number": 2}, remedy="r") == ["mixed", "number"]
    for names in ([], [""], [3], ["a", None]):
        with pytest.raises(ValueError) as error:
            check_names("losses", names, remedy="Name them.")
        says(error, f"losses has the names {names!r}, expected at least one name, each a non-empty string.\nName them.")


def test_check_writable_folder_makes_it(tmp_path: Path) -> None:
    folder = check_writable_folder("out", tmp_path / "a" / "b", remedy="r")
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []
    assert check_writable_folder("out", str(folder), remedy="r") == folder
    with pytest.raises(ValueError) as error:
        check_writable_folder("out", "", remedy="Name one.")
    says(error, "out is empty, expected the name of a folder.\nName one.")


def test_check_writable_folder_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError) as error:
        check_writable_folder("out", tmp_path / "file" / "a", remedy="Pass another.")
    path = str(tmp_path / "file" / "a")
    says(error, f"out is {path!r} (Not a directory), expected a folder that can be written to.\nPass another.")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # a read-only disk, also for root
    with pytest.raises(OSError, match=r"out is .*c' \(Permission denied\), expected a folder that can be written to"):
        check_writable_folder("out", tmp_path / "b" / "c", remedy="r")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"
