"""The interface that every tool of the library asks of a loss, and what losses that are studied together must share.

A tool uses nothing of a loss that is not in `Loss`, so that an object of anyone's that has it can be studied. What only
the loss of a model has (named parameters, buffers, batches) is in it too, empty elsewhere: a tool asks `loss.space is
None`, never of what class a loss is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from lowhanging.errors import a_type, argument_message, check_names, check_vector, first_line
from lowhanging.objective.checkpoints import Checkpoint, Point
from lowhanging.objective.distributed import Ranks
from lowhanging.objective.parameters import ParameterSpace

Kind = Literal["hessian", "gauss_newton"]
Block = Literal["auto", "loop", "vmap"]
BLOCKS = ("auto", "loop", "vmap")
BufferRule = Literal["fixed", "recalibrate"]  # of a point that comes without its buffers


class Curvature(Protocol):
    """A matrix of second derivatives of a loss at one point, for vectors that were checked and are nobody else's."""

    num_done: int  # products so far, from which follows how the next is computed; 0 begins anew

    @property
    def engine(self) -> str:
        """How products are computed."""

    def product(self, v: Tensor, block: Block = "auto") -> Tensor:
        """Times v (p,), or times the rows of v (b, p); `block` is how rows are multiplied."""

    def block(self, wanted: Block = "auto") -> str:
        """How rows are multiplied where that was asked for: "loop", "vmap", "not chosen yet"."""


class Loss(Protocol):
    """What every tool of the library asks of a loss: pure functions of theta (p,) around the point `theta0`.

    `Objective`, which documents each of them, `FunctionObjective` and `AnchoredObjective` have it.
    """

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
    def curvature(self, kind: Kind, theta: Tensor) -> Curvature: ...
    def evaluate(self, theta: Tensor) -> tuple[Tensor, float | None]: ...
    def evaluate_many(self, thetas: Tensor) -> tuple[Tensor, Tensor | None]: ...
    def at(self, theta: Point, *, buffers: BufferRule | None = None, recalibrate_on: Any = None) -> Loss: ...
    def double(self) -> Loss: ...
    def excerpt(self) -> Loss: ...
    def in_double(self) -> Callable[[Tensor], Tensor]: ...

    # Of the loss of a model; of any other None, empty, "none" or theta alone; the last two raise.
    @property
    def space(self) -> ParameterSpace | None: ...
    @property
    def batches(self) -> Iterable[Any]: ...
    @property
    def ranks(self) -> Ranks | None: ...
    @property
    def buffers(self) -> str: ...
    @property
    def moving_names(self) -> tuple[str, ...]: ...
    @property
    def checkpoint(self) -> Checkpoint: ...
    def as_checkpoint(self, point: Point, *, argument: str = "point") -> Checkpoint: ...
    def restricted(self, names: Collection[str]) -> Loss: ...
    def model_at(self, theta: Point, *, buffers: BufferRule | None = None, recalibrate_on: Any = None) -> nn.Module: ...


_INTERFACE = tuple(name for name in vars(Loss) if not name.startswith("_"))


def check_rows(argument: str, rows: Any, *, like: Tensor) -> Tensor:
    """A private copy of rows (b, p), on the device and in the dtype of the vector `like` (p,), or an error."""
    if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != len(like) or not rows.is_floating_point():
        is_tensor = isinstance(rows, Tensor)
        received = f"is a {rows.dtype} tensor of shape {tuple(rows.shape)}" if is_tensor else f"is {a_type(rows)}"
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
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        received = f"can't be evaluated at several points at once ({first_line(error)})"
        remedy = "Call evaluate(theta) for each of them; slices do so by themselves."
        raise ValueError(
            argument_message("the loss", received, "operations that torch.vmap follows", remedy)
        ) from error


def own_vector(vector: Tensor) -> Tensor:
    """A private copy: nothing that a loss does can reach the caller's vector, not even under inference_mode."""
    with torch.inference_mode(False):
        return vector.detach().clone()


def around(loss: Loss, point: Point, *, buffers: BufferRule | None = "fixed", recalibrate_on: Any = None) -> Loss:
    """The loss around another point, by default one that was reached by moving theta with the loss's buffers fixed."""
    return loss.at(point, buffers=buffers, recalibrate_on=recalibrate_on)


def check_loss(argument: str, value: Any) -> Loss:
    """`value` if it is an objective, or an error that names what it lacks, or says how to make one."""
    # The class is asked first: some properties of objectives cost something.
    missing = [name for name in _INTERFACE if not hasattr(type(value), name) and not hasattr(value, name)]
    missing += [] if callable(value) else ["__call__"]
    if not missing:
        return cast(Loss, value)
    received = f"is {a_type(value)}"
    remedy = "Wrap it: lh.Objective(model, data)."
    if hasattr(value, "objective"):
        remedy = "Pass its .objective."
    elif "hvp" not in missing:
        received += f" without {', '.join(missing)}"
        remedy = "Give it what lowhanging.objective.Loss lists, or wrap it: lh.FunctionObjective(function, theta0)."
    elif isinstance(value, list | tuple | Mapping):
        remedy = "Pass one loss."
    elif callable(value) and not isinstance(value, nn.Module):
        remedy = "Wrap it: lh.FunctionObjective(function, theta0)."
    elif not isinstance(value, nn.Module):
        remedy = "Make one: lh.Objective(model, data), or lh.FunctionObjective(function, theta0)."
    raise TypeError(argument_message(argument, received, "an objective", remedy))


def moving_values(loss: Loss) -> dict[str, Tensor]:
    """Name -> values of the buffers that training moves, on the CPU; nothing where the loss has none."""
    names = loss.moving_names
    return {name: value.cpu() for name, value in loss.checkpoint.buffers.items() if name in names} if names else {}


def check_same_buffers(losses: Mapping[str, Loss]) -> None:
    """An error if losses hold different values of buffers that training moves, except where one was recalibrated."""
    first: tuple[str, Mapping[str, Tensor]] | None = None
    for name, loss in losses.items():
        held = {} if loss.buffers == "recalibrate" else moving_values(loss)
        if not held:
            continue
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
