"""What a call says that does not fit: every public function of `lh`, as one kind.

Oracle: the signatures, by `inspect`; Python's own refusal of the same call.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowhanging as lh
from lowhanging.errors import door, unknown_keyword

X, Y = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
MODEL = nn.Linear(4, 3)
LOADER = DataLoader(TensorDataset(X, Y), batch_size=8)
LOSS = lh.Objective(MODEL, (X, Y))
U = lh.random_direction(LOSS)

# Arguments that hold losses, and whether a mapping name -> loss is taken.
LOSSES = {
    "loss": False,
    "losses": True,
    "preserve": False,
    "ablate": False,
    "keep": False,
    "evaluate": True,
    "report": True,
}


def public() -> dict[str, Callable[..., Any]]:
    """Functions and classes at the top of `lh`, without exceptions and warnings."""
    found = {name: getattr(lh, name) for name in lh.__all__ if not name.startswith("_")}
    return {
        name: one
        for name, one in found.items()
        if inspect.isfunction(one) or (inspect.isclass(one) and not issubclass(one, BaseException))
    }


DOORS = public()
FUNCTIONS = {name: one for name, one in DOORS.items() if inspect.isfunction(one)}


def four_parts(error: pytest.ExceptionInfo[TypeError]) -> re.Match[str]:
    found = re.fullmatch(r"(\S+) (.+), expected (.+)\.\n(.+)", str(error.value))
    assert found is not None, str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return found


@pytest.mark.parametrize("name", DOORS)
def test_an_unknown_keyword_is_named_with_what_there_is(name: str) -> None:
    with pytest.raises(TypeError) as error:
        DOORS[name](surely_unknown=1)
    argument, received, expected, remedy = four_parts(error).groups()
    assert (argument, received, remedy) == ("surely_unknown", f"is no argument of lh.{name}", "Leave it out.")
    for parameter, one in inspect.signature(DOORS[name]).parameters.items():
        assert parameter in expected.removeprefix("one of ").split(", ") or one.kind is one.VAR_KEYWORD


@pytest.mark.parametrize("name", DOORS)
def test_too_many_positional_arguments_say_what_to_write(name: str) -> None:
    parameters = inspect.signature(DOORS[name]).parameters
    by_place = [one.name for one in parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    with pytest.raises(TypeError) as error:
        DOORS[name](*[object()] * 40)
    argument, received, expected, remedy = four_parts(error).groups()
    assert argument == f"lh.{name}"
    assert received == "gets 40 arguments by position"
    assert expected.startswith("at most" if by_place else "none")
    written = re.fullmatch(rf"Write lh\.{name}\((.*)\)\.", remedy)
    assert written is not None
    for each in written[1].split(", "):  # a call that fits the signature
        assert each.removesuffix("=...") in parameters
        assert each.endswith("=...") == (each.removesuffix("=...") not in by_place)


@pytest.mark.parametrize("name", DOORS)
def test_a_missing_argument_is_named_and_the_whole_call_is_written(name: str) -> None:
    parameters = inspect.signature(DOORS[name]).parameters.values()
    required = [one for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    if not required:
        pytest.skip("needs no argument")
    with pytest.raises(TypeError) as error:
        DOORS[name]()
    argument, received, _, remedy = four_parts(error).groups()
    assert (argument, received) == (required[0].name, "is missing")
    wanted = [one.name if one.kind is one.POSITIONAL_OR_KEYWORD else f"{one.name}=..." for one in required]
    assert remedy == f"Write lh.{name}({', '.join(wanted)})."


@pytest.mark.parametrize("name", DOORS)
def test_signatures_copies_and_names_are_as_without_the_door(name: str) -> None:
    one = DOORS[name]
    assert (one.__name__, one.__qualname__) == (name, name)
    assert one.__module__.startswith("lowhanging.")
    assert one.__doc__
    assert "kwargs" not in inspect.signature(one).parameters
    assert "args" not in inspect.signature(one).parameters
    assert pickle.loads(pickle.dumps(one)) is one
    assert copy.deepcopy(one) is one
    if name in FUNCTIONS:
        assert repr(one).startswith(f"<function {name} at ")


KEYWORDS = {
    "criterion": ("loss_fn", F.cross_entropy),
    "loss": ("loss_fn", F.cross_entropy),
    "dataloader": ("data", LOADER),
    "loader": ("data", LOADER),
    "dataset": ("data", LOADER),
}


@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize("name", DOORS)
def test_the_names_of_other_libraries_lead_to_ours(name: str, keyword: str) -> None:
    parameters = inspect.signature(DOORS[name]).parameters
    if keyword in parameters:
        pytest.skip("an argument of that name")
    ours, value = KEYWORDS[keyword]
    with pytest.raises(TypeError) as error:
        DOORS[name](**{keyword: value})
    remedy = four_parts(error)[4]
    if ours in parameters:
        assert remedy in (f"Write {ours}=.", "Write losses=.")
    elif keyword != "loss" and {"loss", "losses", "preserve"} & set(parameters):
        assert "lh.Objective(model, data, loss_fn=...)" in remedy


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lh.Objective(MODEL, (X, Y), F.cross_entropy),
            "lh.Objective gets 3 arguments by position, expected at most 2 (model, data).\n"
            "Write lh.Objective(model, data, loss_fn=...).",
        ),
        (
            lambda: lh.top_hessian_eigs(MODEL, (X, Y), 5),
            "lh.top_hessian_eigs gets 3 arguments by position, expected at most 2 (model, data).\n"
            "Write lh.top_hessian_eigs(model, data, k=...).",
        ),
        (
            lambda: lh.steering_direction(LOSS, LOSS),
            "lh.steering_direction gets 2 arguments by position, expected none: all are passed by name.\n"
            "Write lh.steering_direction(preserve=..., ablate=...).",
        ),
        (
            lambda: lh.find_canyons(MODEL, (X, Y)),
            "lh.find_canyons gets 2 arguments by position, expected at most 1 (loss).\n"
            "Make the loss first, loss = lh.Objective(model, data, loss_fn=...), and pass that.",
        ),
        (
            lambda: lh.find_canyons(MODEL),
            "levels is missing, expected in every call of lh.find_canyons.\n"
            "Make the loss first, loss = lh.Objective(model, data, loss_fn=...), and pass that.",
        ),
        (
            lambda: lh.find_canyons(LOSS, 0.1),
            "lh.find_canyons gets 2 arguments by position, expected at most 1 (loss).\n"
            "Write lh.find_canyons(loss, levels=...).",
        ),
        (lambda: lh.polish(MODEL), "loss is a Linear, expected an objective.\nWrap it: lh.Objective(model, data)."),
        (
            lambda: lh.line_slice(MODEL, U),
            "losses is a Linear, expected an objective.\nWrap it: lh.Objective(model, data).",
        ),
        (
            lambda: lh.polish(LOSS, loss=LOSS),
            "loss is given by position and by name, expected once.\nLeave one of them out.",
        ),
        (
            lambda: lh.top_eigs(LOSS),
            "H is an Objective, expected a symmetric map with H @ v and the shape (p, p).\n"
            "Pass its Hessian: lh.hessian(objective).",
        ),
        (
            lambda: lh.Objective(LOSS, (X, Y)),
            "model is an Objective, expected a torch.nn.Module.\n"
            "It is an objective already: pass it to the tools as it is.",
        ),
        (
            lambda: lh.steering.relax_on_spheres(LOSS, U, 3),
            "lh.steering.relax_on_spheres gets 3 arguments by position, expected at most 2 (loss, thetas).\n"
            "Write lh.steering.relax_on_spheres(loss, thetas, report=...).",
        ),
    ],
)
def test_what_new_users_write_is_answered_with_what_to_write(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError) as error:
        call()
    assert str(error.value) == message


def loss_arguments() -> list[Any]:
    """(function, argument) for every argument that holds losses."""
    return [
        pytest.param(name, argument, id=f"{name}-{argument}")
        for name, one in FUNCTIONS.items()
        for argument in LOSSES
        # The evaluation sets of a training are data; trace_canyon looks at its point first.
        if argument in inspect.signature(one).parameters and not (argument == "evaluate" and name.startswith("tra"))
    ]


@pytest.mark.parametrize(
    "value", [MODEL, LOADER, [LOSS], (LOSS, LOSS), F.mse_loss, U, None], ids=lambda v: type(v).__name__
)
@pytest.mark.parametrize(("name", "argument"), loss_arguments())
def test_what_is_no_loss_is_refused_where_one_is_expected(name: str, argument: str, value: Any) -> None:
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    given = {one.name: LOSS if one.name in LOSSES else U for one in parameters if one.default is one.empty}
    given |= {key: one for key, one in {"levels": 0.5, "to": 1.0}.items() if key in given}
    if value is None and argument not in given:
        pytest.skip("None is the default")
    with pytest.raises(TypeError) as error:
        FUNCTIONS[name](**(given | {argument: value}))
    where, _, expected, remedy = four_parts(error).groups()
    assert where == argument
    assert expected in ("an objective", "a loss, or a mapping name -> loss")
    if isinstance(value, nn.Module | DataLoader):
        assert "lh.Objective(model, data)" in remedy
    if isinstance(value, list | tuple):
        assert remedy == ('Name them: {"train": loss, "test": other}.' if LOSSES[argument] else "Pass one loss.")


# The decorator --------------------------------------------------------------------------------------------------------


@door
def example(a: int, b: int = 2, *, c: int = 3) -> int:
    """Adds."""
    if c == 0:
        raise TypeError("example() got an unexpected keyword argument 'deep'")
    if c < 0:
        return example(a, d=c)  # type: ignore[call-arg]
    return a + b + c


def test_errors_from_inside_are_left_as_they_are() -> None:
    assert example(1, c=1) == 4
    with pytest.raises(TypeError, match=r"^example\(\) got an unexpected keyword argument 'deep'$"):
        example(1, c=0)

    def inner() -> None:
        example()  # type: ignore[call-arg]

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, nonsense=1)  # type: ignore[call-arg]

    with pytest.raises((TypeError, ValueError)) as error:
        lh.Objective(MODEL, (X, Y), loss_fn=loss_fn)
    assert "nonsense" in str(error.value)
    with pytest.raises(TypeError, match="a is missing"):
        inner()


def test_methods_and_classes_have_doors_too() -> None:
    @door
    class Box:
        def __init__(self, size: int, *, loss_fn: Any = None):
            self.size = size

    class Larger(Box):
        pass

    assert (Box(3).size, Larger(size=4).size) == (3, 4)
    for kind in (Box, Larger):
        with pytest.raises(TypeError, match=r"^criterion is no argument of lh\.\S*Box, expected one of size, loss_fn"):
            kind(3, criterion=F.mse_loss)  # type: ignore[call-arg]
    assert list(inspect.signature(Box).parameters) == ["size", "loss_fn"]


def test_the_nearest_name_is_suggested() -> None:
    assert unknown_keyword("lh.f", "num_start", ["loss", "num_starts"]).endswith("\nWrite num_starts=.")
    assert unknown_keyword("lh.f", "zzz", ["loss"]).endswith("\nLeave it out.")
