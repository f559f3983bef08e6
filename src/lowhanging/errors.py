"""Exceptions, and the checks of arguments that write every message of the library.

A message has four parts: argument, what was received, what is expected, what to do. They are written here and nowhere
else, so that `ValueError: k is 0, expected ...` reads the same from every door of the library.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import math
import numbers
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor


class NotConvergedError(RuntimeError):
    """A computation missed its tolerance; `result` holds everything that was found so far.

    Attributes:
        result: the result object that would have been returned, its `is_converged` entries telling which parts hold.
    """

    def __init__(self, message: str, result: Any = None):
        super().__init__(message)
        self.result = result


class DamagedFileError(ValueError):
    """A file that can be opened is not what was written: cut short, changed, or never a file of this library's.

    A file that can't be opened (missing, no permission) raises its `OSError`, never this.
    """


class NotSmoothWarning(UserWarning):
    """The loss has kinks (ReLU, max-pool ...): its Hessian exists almost everywhere but misses the kinks.

    Slices only evaluate, and are exact. Eigenpairs, steering directions and Gauss-Newton products are those of the
    curvature between the kinks. `polish` and `find_canyons` need a smooth minimum, and do not work.
    """


def argument_message(argument: str, received: str, expected: str, remedy: str) -> str:
    """The four parts of a message: `argument` `received`, expected `expected`. `remedy`."""
    return f"{argument} {received}, expected {expected}.\n{remedy}"


_WITHIN = tuple(str(Path(module.__file__ or "?").parent) + os.sep for module in (torch, sys.modules[__package__]))


def warn(message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called the library: beneath it are this package, decorators of torch, and contextlib."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_WITHIN) or frame.f_code.co_filename == contextlib.__file__
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@contextlib.contextmanager
def naming(argument: str) -> Iterator[None]:
    """Around what is computed of one of several losses: its errors begin with the name of that loss."""
    try:
        yield
    except NotConvergedError as error:
        raise NotConvergedError(f"{argument}: {error}", error.result) from error
    except (ValueError, FloatingPointError) as error:
        if type(error) not in (ValueError, FloatingPointError):  # a subclass may want other arguments
            raise
        raise type(error)(f"{argument}: {error}") from error


def first_line(error: Exception) -> str:
    """The first line of its message; the kind of error where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


# What other libraries call an argument -> what it may be called here, the first that the function has.
_OTHER_NAMES = {
    "criterion": ("loss_fn",),
    "loss": ("losses", "loss_fn"),
    "loss_function": ("loss_fn",),
    "losses": ("loss",),
    "objective": ("loss", "losses"),
    "dataloader": ("data",),
    "loader": ("data",),
    "dataset": ("data",),
    "net": ("model",),
    "network": ("model",),
    "num_eigenvalues": ("k",),
    "epochs": ("num_epochs",),
    "learning_rate": ("lr",),
    "steps": ("num", "num_steps"),
    "num_points": ("num",),
    "radius": ("levels", "to"),
    "preserve": ("keep",),
    "keep": ("preserve",),
    "random_state": ("seed",),
    "verbose": ("progress",),
}
_OF_A_MODEL = ("model", "data", "loss_fn", "criterion", "dataloader", "loader", "dataset")
_OF_LOSSES = ("loss", "losses", "preserve", "keep", "ablate")
_MAKE_A_LOSS = "Make the loss first, loss = lh.Objective(model, data, loss_fn=...), and pass that."
_Callable = TypeVar("_Callable", bound=Callable[..., Any])


def door(function: _Callable) -> _Callable:
    """Decorator of a public function or class: arguments that do not fit its signature are refused in four parts.

    Python says that an argument is unexpected, and not what to write instead. Errors from inside are left as they are.
    """
    if isinstance(function, type):
        function.__init__ = door(function.__init__)  # type: ignore[misc]
        return function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            message = _explain_call(function, args, kwargs)
            if message is None:
                raise
        raise TypeError(message)

    return cast(_Callable, call)


def _explain_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """What is wrong with how a function is called; None where the arguments fit its signature."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        pass
    else:
        return None
    name, kinds = function.__qualname__, {each: one.kind for each, one in signature.parameters.items()}
    if name.endswith(".__init__"):
        name, args = name.removesuffix(".__init__"), args[1:]
        del kinds[next(iter(kinds))]
    kinds = {each: kind for each, kind in kinds.items() if kind is not inspect.Parameter.VAR_KEYWORD}
    package, room = function.__module__.split(".")[:2]
    name = f"lh.{name}" if hasattr(sys.modules[package], name) else f"lh.{room}.{name}"
    if unknown := [each for each in kwargs if each not in kinds]:
        return unknown_keyword(name, unknown[0], kinds)
    by_place = [each for each, kind in kinds.items() if kind is not inspect.Parameter.KEYWORD_ONLY]
    given = {*by_place[: len(args)], *kwargs}
    required = [each for each in kinds if signature.parameters[each].default is inspect.Parameter.empty]
    missing = [each for each in required if each not in given]
    shown = [each for each in kinds if each in required or each in given]
    excess = args[len(by_place) :]
    if excess and "loss_fn" in kinds and any(callable(value) for value in excess):
        shown.append("loss_fn")
    elif len(shown) < len(args):  # name what may have been meant: the arguments that follow
        shown += [each for each in kinds if each not in shown][: len(args) - len(shown)]
    remedy = f"Write {name}({', '.join(each if each in by_place else f'{each}=...' for each in shown)})."
    takes_a_loss = not {"model", "data"} & {*kinds} and {*_OF_LOSSES} & {*kinds}
    if takes_a_loss and any(isinstance(value, torch.nn.Module) for value in args):
        remedy = _MAKE_A_LOSS
    if excess:
        expected = f"at most {len(by_place)} ({', '.join(by_place)})" if by_place else "none: all are passed by name"
        return argument_message(name, f"gets {len(args)} arguments by position", expected, remedy)
    if missing:
        return argument_message(missing[0], "is missing", f"in every call of {name}", remedy)
    twice = next(each for each in by_place[: len(args)] if each in kwargs)
    return argument_message(twice, "is given by position and by name", "once", "Leave one of them out.")


def unknown_keyword(name: str, keyword: str, known: Iterable[str]) -> str:
    """The message for a keyword that a function does not have; `known` are those that it has."""
    known = list(known)
    found = [other for other in _OTHER_NAMES.get(keyword, ()) if other in known]
    found = found or difflib.get_close_matches(keyword, known, n=1)
    remedy = f"Write {found[0]}=." if found else "Leave it out."
    if keyword in _OF_A_MODEL and not found and set(_OF_LOSSES) & set(known):
        remedy = _MAKE_A_LOSS
    return argument_message(keyword, f"is no argument of {name}", f"one of {', '.join(known)}", remedy)


def check_count(argument: str, value: Any, *, minimum: int = 1, maximum: int | None = None, remedy: str) -> int:
    """`value` as an int between `minimum` and `maximum`, or an error."""
    expected = f"an integer of at least {minimum}" if maximum is None else f"an integer from {minimum} to {maximum}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(argument_message(argument, f"is {value!r}", expected, remedy))
    count = int(value)
    if count < minimum or (maximum is not None and count > maximum):
        raise ValueError(argument_message(argument, f"is {count}", expected, remedy))
    return count


def check_real(
    argument: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    exclusive: bool = False,
    remedy: str,
) -> float:
    """`value` as a finite float in [minimum, maximum] (open interval if `exclusive`), or an error."""
    brackets = "()" if exclusive else "[]"
    expected = "a finite number"
    if minimum > -math.inf or maximum < math.inf:
        expected += f" in {brackets[0]}{minimum:g}, {maximum:g}{brackets[1]}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(argument_message(argument, f"is {value!r}", expected, remedy))
    number = float(value)
    inside = minimum < number < maximum if exclusive else minimum <= number <= maximum
    if not (math.isfinite(number) and inside):
        raise ValueError(argument_message(argument, f"is {number:g}", expected, remedy))
    return number


def a_type(value: Any) -> str:
    """The class of a value with its article: "an Objective", "a Tensor"."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def check_choice(argument: str, value: Any, choices: Sequence[str], *, remedy: str = "Name one of them.") -> str:
    """`value` as one of `choices`, or an error."""
    if value not in choices:
        expected = "one of " + ", ".join(map(repr, choices))
        raise ValueError(argument_message(argument, f"is {value!r}", expected, remedy))
    return str(value)


def check_finite(argument: str, tensor: Tensor, *, remedy: str) -> None:
    """An error if a floating-point or complex tensor holds NaN or inf; of a sparse one, its stored values."""
    if tensor.layout != torch.strided:
        tensor = tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
    if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
        bad = (~torch.isfinite(tensor)).sum().item()
        raise ValueError(argument_message(argument, f"holds {bad} NaN or infinite entries", "finite numbers", remedy))


def check_vector(
    argument: str,
    value: Any,
    size: int,
    *,
    owner: str,
    remedy: str,
    allow_zero: bool = True,
    like: Tensor | None = None,
) -> Tensor:
    """`value` as a finite (size,) floating-point tensor, on the device and in the dtype of `like`, or an error."""
    expected = f"({size},) = (num_params,) of {owner}"
    if not isinstance(value, Tensor | np.ndarray):
        raise TypeError(argument_message(argument, f"is {a_type(value)}", f"a tensor of shape {expected}", remedy))
    # NumPy's are copied: torch takes no read-only array.
    vector = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    if tuple(vector.shape) != (size,):
        raise ValueError(argument_message(argument, f"has shape {tuple(vector.shape)}", expected, remedy))
    if not vector.is_floating_point():
        raise TypeError(argument_message(argument, f"has dtype {vector.dtype}", "a floating-point dtype", remedy))
    check_finite(argument, vector, remedy=remedy)
    if not allow_zero and not bool(vector.any()):
        raise ValueError(argument_message(argument, "is the zero vector", "a vector with a direction", remedy))
    return vector if like is None else vector.to(device=like.device, dtype=like.dtype)


def check_device(device: Any) -> torch.device:
    """`device` as a torch.device that exists on this machine, or an error."""
    remedy = 'Pass device="cpu", or leave it out to compute where the model is.'
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        expected = "a torch device such as 'cpu' or 'cuda:0'"
        raise ValueError(argument_message("device", f"is {device!r}", expected, remedy)) from error
    try:
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = torch.cuda.device_count()
        expected = f"a device of this machine ({found} CUDA device{'' if found == 1 else 's'} found)"
        raise ValueError(argument_message("device", f"is {str(wanted)!r}", expected, remedy)) from error
    return wanted


def check_names(argument: str, names: Iterable[Any], *, remedy: str) -> list[str]:
    """Non-empty list of strings, or an error."""
    found = list(names)
    if not found or not all(isinstance(name, str) and name for name in found):
        expected = "at least one name, each a non-empty string"
        raise ValueError(argument_message(argument, f"has the names {found!r}", expected, remedy))
    return found


def check_writable_folder(argument: str, folder: str | Path, *, remedy: str) -> Path:
    """`folder` as a Path that can hold new files (made if missing), or an error; no file is left behind."""
    if not str(folder):
        raise ValueError(argument_message(argument, "is empty", "the name of a folder", remedy))
    path = Path(folder)
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        empty = path / ".lowhanging-empty"
        empty.touch()
        empty.unlink()
    except OSError as error:
        for parent in missing:  # what this call made, deepest first, and only if empty
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        received = f"is {str(path)!r} ({error.strerror})"
        raise OSError(argument_message(argument, received, "a folder that can be written to", remedy)) from error
    return path
