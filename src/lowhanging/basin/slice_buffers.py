"""Which buffers does a loss have at a point of a slice, where training moves some (BatchNorm's statistics)?

Around one network they are fixed, which is what the loss is there. A given point that brings its own is evaluated with
them exactly. Between networks, and at vectors that bring none, the caller says: "fixed" (those of the loss),
"interpolate" (between those of the points) or "recalibrate" (recomputed at each point). Nothing is asked where a model
has no such buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lowhanging.buffers import CalibrationData, interpolated, same_values
from lowhanging.checkpoints import Checkpoint, refuse_plain, with_buffers
from lowhanging.errors import check_choice, check_vector, explain
from lowhanging.loss import Loss, around, check_same_buffers, common_center, moving_values, own_vector
from lowhanging.results import digest

LossAt = Callable[[Loss, int, Tensor], Loss]  # (loss, number of the point, theta) -> the loss with that point's buffers

_CHOICES = "say buffers='fixed' for those of the loss, buffers='recalibrate' to recompute them on data"


@dataclass(frozen=True)
class SliceBuffers:
    """What a slice does about buffers, and the word for its result."""

    word: str  # "none" | "fixed" | "own" | "interpolate" | "recalibrate"
    loss_at: LossAt | None = None  # None: each loss as it is
    identity: dict[str, str] = field(default_factory=dict)  # for a resume file
    kept: dict[str, Tensor] = field(default_factory=dict)  # those of all points and losses, where there are such


def read_points(
    argument: str, given: Sequence[Any], losses: Mapping[str, Loss], *, like: Tensor, remedy: str
) -> list[Checkpoint]:
    """Theta of each point, as `like` (p,), with all buffers that the model has there; none for a plain vector."""
    reader, owner, found = _reader(losses), str(next(iter(losses.values()))), []
    for i, value in enumerate(given):
        place = f"{argument}[{i}]" if len(argument) else argument
        found.append(_read(place, value, reader, owner, like, remedy))
    return found


def path_buffers(
    losses: Mapping[str, Loss],
    knots: Sequence[Checkpoint],
    where: Sequence[tuple[int, float]],
    word: str | None,
    recalibrate_on: Any,
) -> SliceBuffers:
    """At (1 - t) knots[i] + t knots[i + 1] for every (i, t) in `where`."""
    calibration = _calibration(word, recalibrate_on, losses, ("fixed", "recalibrate", "interpolate"))
    names = _names(losses, knots)
    if not names:
        return SliceBuffers("none")
    plain = [i for i, knot in enumerate(knots) if not knot.buffers]
    between = any(t for _, t in where)
    if word is None and plain:
        refuse_plain(f"points[{plain[0]}]", names, choices=_CHOICES)
    if word is None and between:
        received = f"is missing, and networks with other buffers ({names[0]!r}) lie at the ends of a segment"
        expected = "'interpolate', 'recalibrate' or 'fixed', for the points between them"
        remedy = "buffers='recalibrate' is the practice of the mode-connectivity papers; pass recalibrate_on=loader."
        raise ValueError(explain("buffers", received, expected, remedy))
    if word == "interpolate" and plain:
        received = f"is 'interpolate', and points[{plain[0]}] is weights alone"
        remedy = "Pass modules, state_dicts or checkpoints (run, not run.checkpoints), or buffers='recalibrate'."
        raise ValueError(explain("buffers", received, "points that bring their buffers", remedy))
    if word == "recalibrate":
        _check_recalibrated(losses, knots)
    identity = _identity(word or "own", losses, knots, calibration)
    if word == "fixed" and len(plain) == len(knots):
        return SliceBuffers("fixed", identity=identity)

    def loss_at(loss: Loss, number: int, theta: Tensor) -> Loss:
        i, t = where[number]
        if not hasattr(loss, "moving_names"):
            return loss  # a function of theta alone
        if not t and knots[i].buffers:
            return around(loss, knots[i], buffers=None)
        if word == "interpolate":
            mixed = interpolated(knots[i].buffers, knots[i + 1].buffers, t)
            return around(loss, Checkpoint(theta, mixed), buffers=None)
        if word == "recalibrate":
            return around(loss, theta, buffers="recalibrate", recalibrate_on=calibration)
        return loss

    return SliceBuffers(word if word and (between or plain) else "own", loss_at, identity)


def centered(
    losses: Mapping[str, Loss],
    center: Any,
    word: str | None,
    recalibrate_on: Any,
    *,
    is_through: bool = False,
) -> tuple[dict[str, Loss], Tensor, SliceBuffers]:
    """The losses of a slice around a point, with its buffers where it brings some; that point (p,); what is done.

    With `is_through`, the slice runs through several networks: its buffers must be named.
    """
    calibration = _calibration(word, recalibrate_on, losses, ("fixed", "recalibrate"))
    if center is None or isinstance(center, Tensor | np.ndarray):
        point = common_center(losses, cast(Any, center))
        place = Checkpoint(point)
    else:
        common_center(losses, "anywhere")
        reader, owner = _reader(losses), str(next(iter(losses.values())))
        like = next(iter(losses.values())).theta0
        place = _read("center", center, reader, owner, like, "Pass a theta of the model.")
        point = common_center(losses, place.theta)
    names = _names(losses, [place])
    if not names:
        return dict(losses), point, SliceBuffers("none")
    if word is None and place.buffers:
        word = "own"
        losses = {
            name: around(loss, place, buffers=None) if hasattr(loss, "moving_names") else loss
            for name, loss in losses.items()
        }
    is_elsewhere = center is not None and any(
        getattr(loss, "moving_names", ()) and not torch.equal(loss.theta0.double(), point.double())
        for loss in losses.values()
    )
    if word is None and (is_through or is_elsewhere):
        refuse_plain("directions" if is_through else "center", names, choices=_CHOICES)
    word = word or "fixed"
    if word != "recalibrate":
        check_same_buffers(losses)
        held = _held(losses, names)
        alike = all(same_values(value, held[0][name]) for values in held for name, value in values.items())
        identity = _identity(word, losses, [place], None)
        return dict(losses), point, SliceBuffers(word, identity=identity, kept=held[0] if held and alike else {})
    _check_recalibrated(losses, [place])

    def loss_at(loss: Loss, number: int, theta: Tensor) -> Loss:
        if not hasattr(loss, "moving_names"):
            return loss
        return around(loss, theta, buffers="recalibrate", recalibrate_on=calibration)

    return dict(losses), point, SliceBuffers(word, loss_at, _identity(word, losses, [], calibration))


def trajectory_buffers(
    losses: Mapping[str, Loss],
    checkpoints: Sequence[Checkpoint],
    word: str | None,
    recalibrate_on: Any,
    *,
    plane_word: str,
    plane_buffers: Mapping[str, Tensor],
) -> SliceBuffers:
    """At t checkpoints, then at t points of a plane that was drawn with `plane_word` and these buffers."""
    calibration = _calibration(word, recalibrate_on, losses, ("fixed", "recalibrate"), also=plane_word)
    names = _names(losses, checkpoints)
    if not names:
        return SliceBuffers("none")
    plain = [i for i, checkpoint in enumerate(checkpoints) if not checkpoint.buffers]
    if word is None and plain:
        refuse_plain(f"checkpoints[{plain[0]}]", names, choices=_CHOICES)

    def loss_at(loss: Loss, number: int, theta: Tensor) -> Loss:
        if not hasattr(loss, "moving_names"):
            return loss
        is_above = number < len(checkpoints)
        if is_above and checkpoints[number].buffers:
            return around(loss, checkpoints[number], buffers=None)
        if (word if is_above else plane_word) == "recalibrate":
            return around(loss, theta, buffers="recalibrate", recalibrate_on=calibration)
        if not is_above and plane_buffers:
            return around(loss, Checkpoint(theta, dict(plane_buffers)), buffers=None)
        return loss

    return SliceBuffers(word if word and plain else "own", loss_at)


def said(buffers: str) -> str:
    """What a result's repr says of its buffers: nothing where there are none."""
    return "" if buffers == "none" else f"; buffers: {buffers}"


def _read(place: str, value: Any, reader: Any, owner: str, like: Tensor, remedy: str) -> Checkpoint:
    """One point."""
    if reader is not None and (isinstance(value, nn.Module | Mapping) or with_buffers(value) is not None):
        found = reader.as_checkpoint(value, argument=place)
        own = reader.checkpoint.buffers if found.buffers else {}
        return Checkpoint(found.theta.to(like), {**own, **found.buffers})
    checkpoint = with_buffers(value)
    value = value if checkpoint is None else checkpoint.theta
    return Checkpoint(own_vector(check_vector(place, value, len(like), owner=owner, remedy=remedy, like=like)))


def _reader(losses: Mapping[str, Loss]) -> Any:
    """A loss of a model, which knows the names of a point; None where all are functions of theta."""
    for loss in losses.values():
        inner: Any = loss
        while hasattr(inner, "unanchored"):
            inner = inner.unanchored
        if hasattr(inner, "as_checkpoint"):
            return inner
    return None


def _names(losses: Mapping[str, Loss], points: Sequence[Checkpoint]) -> list[str]:
    """The buffers that must be thought of: those that training moves, and others in which given points differ."""
    names = [name for loss in losses.values() for name in getattr(loss, "moving_names", ())]
    reader = _reader(losses)
    own = reader.checkpoint.buffers if reader is not None and any(point.buffers for point in points) else {}
    for point in points:
        names += [name for name, value in point.buffers.items() if not same_values(own[name], value)]
    return list(dict.fromkeys(names))


def _held(losses: Mapping[str, Loss], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """The named buffers of every loss that has them all, on the CPU."""
    found = []
    for loss in losses.values():
        every = cast(Any, loss).checkpoint.buffers if hasattr(loss, "moving_names") else {}
        if all(name in every for name in names):
            found.append({name: every[name].cpu() for name in names})
    return found


def _calibration(
    word: str | None, data: Any, losses: Mapping[str, Loss], choices: tuple[str, ...], *, also: str = ""
) -> CalibrationData | None:
    """The data for recalibration, read once; None where each loss takes its own."""
    if word is not None:
        remedy = "Name one of them."
        if word == "interpolate":
            remedy = "On a plane, outside of its points, an interpolated variance could be negative: recalibrate."
        check_choice("buffers", word, choices, remedy=remedy)
    if data is None:
        return None
    if "recalibrate" not in (word, also):
        received = f"is given, and buffers is {word!r}"
        raise ValueError(explain("recalibrate_on", received, "buffers='recalibrate'", "Leave one of them out."))
    like = next(iter(losses.values())).theta0
    return CalibrationData.of(data, device=like.device, dtype=like.dtype)


def _check_recalibrated(losses: Mapping[str, Loss], points: Sequence[Checkpoint]) -> None:
    """An error if points differ in buffers that no recalibration sets."""
    moving = {name for loss in losses.values() for name in getattr(loss, "moving_names", ())}
    fixed = [name for name in _names(losses, points) if name not in moving]
    if fixed:
        received = f"is 'recalibrate', and the points differ from the loss in {fixed[:3]}, which training does not move"
        remedy = "Pass buffers='interpolate' or 'fixed', or make the loss of a model with these buffers."
        raise ValueError(explain("buffers", received, "points that differ in statistics alone", remedy))


def _identity(
    word: str, losses: Mapping[str, Loss], points: Sequence[Checkpoint], calibration: CalibrationData | None
) -> dict[str, str]:
    """For a resume file: the word, and the numbers behind it."""
    tensors = [value for loss in losses.values() for value in moving_values(loss).values()]
    tensors += [value for point in points for value in point.buffers.values()]
    data = "" if calibration is None else calibration.digest()
    return {"buffers": f"{word} {digest(*tensors)} {data}".strip()}
