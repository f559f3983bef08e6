"""What does every tool of the library ask of a loss, and what do losses that are studied together share?

`Loss` is the interface. `Objective`, `FunctionObjective` and `AnchoredObjective` have it, and so may anything else;
what a tool checks at its door, it checks here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from lowhanging.errors import a_type, argument_message, check_names, check_vector
from lowhanging.objective.checkpoints import with_buffers


class Loss(Protocol):
    """What every tool of the library asks of a loss: pure functions of theta (p,) around the point `theta0`."""

    @property
    def theta0(self) -> Tensor: ...
    @property
    def num_params(self) -> int: ...
    @property
    def engine(self) -> str: ...
    def __call__(self, theta: Tensor) -> Tensor: ...
    def gradient(self, theta: Tensor) -> Tensor: ...
    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]: ...
    def hvp(self, theta: Tensor, v: Tensor) -> Tensor: ...
    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]: ...
    def evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]: ...
    def at(self, theta: Tensor) -> Loss: ...
    def in_double(self) -> Callable[[Tensor], Tensor]: ...


def check_rows(argument: str, rows: Any, *, like: Tensor) -> Tensor:
    """A private copy of rows (b, p), on the device and in the dtype of the vector `like` (p,), or an error."""
    if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != len(like) or not rows.is_floating_point():
        received = (
            f"is a {rows.dtype} tensor of shape {tuple(rows.shape)}"
            if isinstance(rows, Tensor)
            else (f"is {a_type(rows)}")
        )
        remedy = "Stack vectors as rows: torch.stack([theta, ...])."
        raise ValueError(argument_message(argument, received, f"floating-point rows of shape (b, {len(like)})", remedy))
    return own_vector(rows).to(like)


@contextlib.contextmanager
def batched_evaluation() -> Iterator[None]:
    """Torch's complaint about what `torch.vmap` can't follow, turned into ours."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, NotImplementedError, IndexError, AttributeError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        received = f"can't be evaluated at several points at once ({first_line})"
        remedy = "Call evaluate(theta) for each of them; slices do so by themselves."
        raise ValueError(
            argument_message("the loss", received, "operations that torch.vmap follows", remedy)
        ) from error


def own_vector(vector: Tensor) -> Tensor:
    """A private copy: nothing that a loss does can reach the caller's vector, not even under inference_mode."""
    with torch.inference_mode(False):
        return vector.detach().clone()


def around(loss: Loss, point: Any, *, buffers: str | None = "fixed", recalibrate_on: Any = None) -> Loss:
    """The loss around another point, by default one that was reached by moving theta with the loss's buffers fixed."""
    if not hasattr(loss, "moving_names"):
        checkpoint = with_buffers(point)
        return loss.at(point if checkpoint is None else checkpoint.theta)
    return cast(Any, loss).at(point, buffers=buffers, recalibrate_on=recalibrate_on)  # type: ignore[no-any-return]


def check_loss(argument: str, value: Any) -> Loss:
    """`value` if it is an objective, or an error that says how to make one."""
    if not all(hasattr(value, name) for name in ("theta0", "num_params", "hvp", "evaluate", "at")):
        is_model = isinstance(value, nn.Module)
        remedy = (
            "Wrap it: lh.Objective(model, data)." if is_model else "Wrap it: lh.FunctionObjective(function, theta0)."
        )
        if hasattr(value, "objective"):
            remedy = "Pass its .objective."
        raise TypeError(argument_message(argument, f"is {a_type(value)}", "an objective", remedy))
    return cast(Loss, value)


def moving_values(loss: Loss) -> dict[str, Tensor]:
    """Name -> values of the buffers that training moves, on the CPU; nothing where the loss has none."""
    names = getattr(loss, "moving_names", ())
    if not names:
        return {}
    return {name: value.cpu() for name, value in cast(Any, loss).checkpoint.buffers.items() if name in names}


def check_same_buffers(losses: Mapping[str, Any]) -> None:
    """An error if losses hold different values of buffers that training moves, except where one was recalibrated."""
    first: tuple[str, Mapping[str, Tensor]] | None = None
    for name, loss in losses.items():
        if not getattr(loss, "moving_names", ()) or loss.buffers == "recalibrate":
            continue
        held = moving_values(loss)
        if first is None:
            first = name, held
            continue
        for buffer, value in held.items():
            if buffer in first[1] and not torch.equal(value.double(), first[1][buffer].double()):
                received = f"{first[0]!r} and {name!r} hold other values of the buffer {buffer!r}, which training moves"
                remedy = "Make them of the model as it is now, or put them at one point: objective.at(model)."
                raise ValueError(argument_message("losses", received, "one network's losses", remedy))


ANYWHERE: Literal["anywhere"] = "anywhere"


def common_center(losses: Mapping[str, Loss], center: Tensor | Literal["anywhere"] | None = None) -> Tensor:
    """The theta0 that all losses share, or `center` (p,) checked against their length, in the widest of their dtypes.

    With `center=ANYWHERE` they may be around different points; the first one's is returned.
    """
    remedy = 'Pass a mapping such as {"mixed": objective}.'
    if not isinstance(losses, Mapping):
        raise TypeError(argument_message("losses", f"is {a_type(losses)}", "a mapping name -> objective", remedy))
    names = check_names("losses", losses, remedy=remedy)
    for name in names:
        check_loss(f"losses[{name!r}]", losses[name])
    first = losses[names[0]]
    start = widest(losses)
    for name in names[1:]:
        if losses[name].num_params != first.num_params:
            received = f"have {first.num_params} ({names[0]}) and {losses[name].num_params} ({name}) parameters"
            raise ValueError(
                argument_message("losses", received, "one model's losses", "Build them from the same model.")
            )
        other = losses[name].theta0
        if other.device != start.device:
            received = f"are on {start.device} ({names[0]}) and {other.device} ({name})"
            raise ValueError(argument_message("losses", received, "one device", "Pass device= when you make them."))
        if center is None and not torch.equal(other.double(), start.double()):
            received = f"{names[0]!r} and {name!r} are around different points"
            remedy = "Put them around one point, objective.at(theta), or pass center=."
            raise ValueError(argument_message("losses", received, "one common theta0", remedy))
    if center is None:
        check_same_buffers(losses)
    if center is None or isinstance(center, str):
        return start
    remedy = "Pass a theta of the model."
    return check_vector("center", center, first.num_params, owner=str(first), remedy=remedy, like=start)


def widest(losses: Mapping[str, Loss]) -> Tensor:
    """The first loss's theta0 in the widest dtype of all: points must not depend on the losses' order."""
    points = [loss.theta0 for loss in losses.values()]
    dtype = points[0].dtype
    for point in points[1:]:
        dtype = torch.promote_types(dtype, point.dtype)
    return points[0].to(dtype)


def as_losses(losses: Loss | Mapping[str, Loss], *, argument: str = "losses") -> dict[str, Loss]:
    """Name -> loss of what a tool was given: a mapping, or one loss, which is called "loss"."""
    if isinstance(losses, Mapping):
        return dict(losses)
    if isinstance(losses, list | tuple):
        remedy = 'Name them: {"train": loss, "test": other}.'
        raise TypeError(argument_message(argument, f"is {a_type(losses)}", "a loss, or a mapping name -> loss", remedy))
    return {"loss": check_loss(argument, losses)}
