"""Which buffers does a loss have at a point of a slice, where training moves some (BatchNorm's statistics)?

Around one network they are fixed, which is what the loss is there. A given point that brings its own is evaluated with
them exactly. Between networks, and at vectors that bring none, the caller says: "fixed" (those of the loss),
"interpolate" (between those of the points) or "recalibrate" (recomputed at each point). Nothing is asked where a model
has no such buffers.

How are several losses evaluated at many points, with every number the same whether or not the run was interrupted?

A line, a path and a plane are numbered lists of points; this file evaluates them. Two engines: "point by point" lets
each objective run its own micro-batches, which fit a processor's cache; "vmap" evaluates several points at once, which
keeps a GPU busy. Which one is quicker depends on model, data and device, so it is measured, once, before the first
point; a resumed run reuses what was found, because the two differ in the last digits.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lowhanging.errors import argument_message, check_choice, check_vector
from lowhanging.io import ResumeFile, digest
from lowhanging.objective.checkpoints import (
    CalibrationData,
    Checkpoint,
    interpolated,
    refuse_plain,
    same_values,
    with_buffers,
)
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.kernels import ONE_AT_A_TIME
from lowhanging.objective.protocol import Loss, around, check_same_buffers, common_center, moving_values, own_vector

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
        raise ValueError(argument_message("buffers", received, expected, remedy))
    if word == "interpolate" and plain:
        received = f"is 'interpolate', and points[{plain[0]}] is weights alone"
        remedy = "Pass modules, state_dicts or checkpoints (run, not run.checkpoints), or buffers='recalibrate'."
        raise ValueError(argument_message("buffers", received, "points that bring their buffers", remedy))
    if word == "recalibrate":
        _check_recalibrated(losses, knots)
    identity = _identity(word or "own", losses, knots, calibration)
    if word == "fixed" and len(plain) == len(knots):
        return SliceBuffers("fixed", identity=identity)

    def loss_at(loss: Loss, number: int, theta: Tensor) -> Loss:
        i, t = where[number]
        if loss.space is None:
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
            name: around(loss, place, buffers=None) if loss.space is not None else loss for name, loss in losses.items()
        }
    is_elsewhere = center is not None and any(
        loss.moving_names and not torch.equal(loss.theta0.double(), point.double()) for loss in losses.values()
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
        if loss.space is None:
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
        if loss.space is None:
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


def _read(place: str, value: Any, reader: Loss | None, owner: str, like: Tensor, remedy: str) -> Checkpoint:
    """One point."""
    if reader is not None and (isinstance(value, nn.Module | Mapping) or with_buffers(value) is not None):
        found = reader.as_checkpoint(value, argument=place)
        own = reader.checkpoint.buffers if found.buffers else {}
        return Checkpoint(found.theta.to(like), {**own, **found.buffers})
    checkpoint = with_buffers(value)
    value = value if checkpoint is None else checkpoint.theta
    return Checkpoint(own_vector(check_vector(place, value, len(like), owner=owner, remedy=remedy, like=like)))


def _reader(losses: Mapping[str, Loss]) -> Loss | None:
    """A loss of a model, which knows the names of a point; None where all are functions of theta."""
    return next((loss for loss in losses.values() if loss.space is not None), None)


def _names(losses: Mapping[str, Loss], points: Sequence[Checkpoint]) -> list[str]:
    """The buffers that must be thought of: those that training moves, and others in which given points differ."""
    names = [name for loss in losses.values() for name in loss.moving_names]
    reader = _reader(losses)
    own = reader.checkpoint.buffers if reader is not None and any(point.buffers for point in points) else {}
    for point in points:
        names += [name for name, value in point.buffers.items() if not same_values(own[name], value)]
    return list(dict.fromkeys(names))


def _held(losses: Mapping[str, Loss], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """The named buffers of every loss that has them all, on the CPU."""
    found = []
    for loss in losses.values():
        every = loss.checkpoint.buffers if loss.space is not None else {}
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
        raise ValueError(
            argument_message("recalibrate_on", received, "buffers='recalibrate'", "Leave one of them out.")
        )
    like = next(iter(losses.values())).theta0
    return CalibrationData.of(data, device=like.device, dtype=like.dtype)


def _check_recalibrated(losses: Mapping[str, Loss], points: Sequence[Checkpoint]) -> None:
    """An error if points differ in buffers that no recalibration sets."""
    moving = {name for loss in losses.values() for name in loss.moving_names}
    fixed = [name for name in _names(losses, points) if name not in moving]
    if fixed:
        received = f"is 'recalibrate', and the points differ from the loss in {fixed[:3]}, which training does not move"
        remedy = "Pass buffers='interpolate' or 'fixed', or make the loss of a model with these buffers."
        raise ValueError(argument_message("buffers", received, "points that differ in statistics alone", remedy))


def _identity(
    word: str, losses: Mapping[str, Loss], points: Sequence[Checkpoint], calibration: CalibrationData | None
) -> dict[str, str]:
    """For a resume file: the word, and the numbers behind it."""
    tensors = [value for loss in losses.values() for value in moving_values(loss).values()]
    tensors += [value for point in points for value in point.buffers.values()]
    data = "" if calibration is None else calibration.digest()
    return {"buffers": f"{word} {digest(*tensors)} {data}".strip()}


SliceEngine = Literal["auto", "point by point", "vmap"]
SLICE_ENGINES = ("auto", "point by point", "vmap")

_WORTH_MEASURING = 1.0  # seconds: a run shorter than this is over before the other engine is warm
_MARGIN = 1.2  # so much quicker must vmap be: a tie is decided the same way every time
_REMEDY = (
    "Name another file, or repeat the call that made this one, on the same device and with as many threads "
    "(they decide the last digits of a loss)."
)
_TIES = 0.02  # of accuracies: rounding decides between two equal outputs
_RTOL = {torch.float64: 1e-9, torch.float32: 1e-3}
_FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, IndexError)


@dataclass(frozen=True, eq=False, repr=False)
class PointValues:
    """Losses and accuracies at n numbered points, of which the first `num_done` are known."""

    losses: dict[str, Tensor]  # name -> (n,) float64
    accuracies: dict[str, Tensor]  # name -> (n,) float64, only of objectives that have one
    engine: str
    at_once: int  # points per evaluation
    num_done: int


def evaluate_points(
    losses: Mapping[str, Loss],
    point: Callable[[int], Tensor],
    num: int,
    *,
    center: Tensor,
    engine: str = "auto",
    resume: str | Path | None = None,
    identity: Mapping[str, str] | None = None,
    title: str,
    progress: bool | None = None,
    loss_at: LossAt | None = None,
) -> PointValues:
    """Every loss, and its accuracy, at point(0), ..., point(num - 1), each a vector (p,).

    Args:
        losses: name -> objective.
        point: number -> theta (p,), the same whenever it is asked.
        num: how many points.
        center: (p,) where each loss is evaluated by itself, so that the value there is the objective's bit for bit.
        engine: "auto" measures; "point by point" or "vmap" names one.
        resume: npz file that is written now and then, and continued from if it exists.
        identity: names and digests of what determines the points; the file of a run with another one is refused.
        title: of the bar.
        progress: a bar; None shows one after two seconds.
        loss_at: (loss, number, theta) -> the loss with the buffers of that point, where they move with it; then point
            by point.

    Raises:
        ValueError: the resume file belongs to something else, or `engine="vmap"` fails on a loss.
    """
    check_choice("engine", engine, SLICE_ENGINES)
    if loss_at is not None and engine == "vmap":
        received = "is 'vmap', and the buffers differ from point to point"
        raise ValueError(argument_message("engine", received, "'point by point' or 'auto'", "Leave it out."))
    engine = "point by point" if loss_at is not None else engine
    identity = {**(identity or {}), "names of the losses": repr(list(losses))}
    file = None if resume is None else ResumeFile(resume, identity, kind="a slice")
    with torch.inference_mode(False):
        stored = None if file is None else file.read()
        if file is None or stored is None:
            chosen, at_once = _choose(losses, point, num, engine)
            empty = torch.full((num,), torch.nan, dtype=torch.float64)
            values = PointValues({name: empty.clone() for name in losses}, {}, chosen, at_once, 0)
        else:
            with file.decoding():
                values = PointValues(**stored)
            if engine not in ("auto", values.engine):
                file.refuse([f"engine ({values.engine!r})"], _REMEDY)
            _check_values(file, values, losses, point, center, loss_at)
        return _continue(values, losses, point, center, file, title, progress, loss_at)


def _continue(
    values: PointValues,
    losses: Mapping[str, Loss],
    point: Callable[[int], Tensor],
    center: Tensor,
    file: ResumeFile | None,
    title: str,
    progress: bool | None,
    loss_at: LossAt | None,
) -> PointValues:
    """The rest of the points; whatever stops it, what is finished is in the file."""
    num, known = len(next(iter(values.losses.values()))), values.num_done
    delay = 2.0 if progress is None else 0.0
    bar = tqdm(total=num, initial=known, desc=title, unit="point", disable=is_silent(progress), delay=delay)
    try:
        for start in range(known, num, values.at_once):
            stop = min(num, start + values.at_once)
            thetas = [point(i) for i in range(start, stop)]
            for name, loss in losses.items():
                found, right = _evaluate(loss, thetas, center, values.engine, loss_at, start)
                values.losses[name][start:stop] = found
                if right is not None:
                    empty = torch.full((num,), torch.nan, dtype=torch.float64)
                    values.accuracies.setdefault(name, empty)[start:stop] = right
            values = replace(values, num_done=stop)
            bar.update(stop - start)
            if file is not None:
                file.keep(vars(values), now=stop == num)
    finally:
        bar.close()
        if file is not None:
            file.flush()
    in_order = {name: values.accuracies[name] for name in losses if name in values.accuracies}
    return replace(values, accuracies=in_order)


def _check_values(
    file: ResumeFile,
    values: PointValues,
    losses: Mapping[str, Loss],
    point: Callable[[int], Tensor],
    center: Tensor,
    loss_at: LossAt | None,
) -> None:
    """Refuse a file of which these losses do not give three finished points again, bit for bit.

    The first, one in between and the last, of those where something is finite: NaN and infinity tell no loss from
    another. The one in between is none at the center, where an anchor, and whatever else is quadratic around it, is 0.
    """
    rows = torch.stack(list(values.losses.values()))  # (losses, num)
    chunks = [
        start
        for start in range(0, values.num_done, values.at_once)
        if bool(rows[:, start : min(start + values.at_once, values.num_done)].isfinite().any(1).all())
    ] or list(range(0, values.num_done, values.at_once))
    if len(chunks) > 3:
        inner = [start for start in chunks[1:-1] if not torch.equal(point(start), center.to(point(start)))]
        chunks = [chunks[0], inner[len(inner) // 2], chunks[-1]]
    for start in chunks:
        where = slice(start, min(len(values.losses[next(iter(losses))]), start + values.at_once))
        thetas = [point(i) for i in range(where.start, where.stop)]
        for name, loss in losses.items():
            found, right = _evaluate(loss, thetas, center, values.engine, loss_at, start)
            stored = values.accuracies.get(name)
            is_same = _same_bits(found, values.losses[name][where]) and (right is None) == (stored is None)
            if not is_same or (right is not None and stored is not None and not _same_bits(right, stored[where])):
                file.refuse([f"loss {name!r}"], _REMEDY)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def _evaluate(
    loss: Loss,
    thetas: list[Tensor],
    center: Tensor | None,
    engine: str,
    loss_at: LossAt | None = None,
    start: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Values (b,) and accuracies (b,) or None at b points, the first of them number `start`, on the CPU."""
    if engine == "point by point":
        found = [
            (loss if loss_at is None else loss_at(loss, start + i, theta)).evaluate(theta)
            for i, theta in enumerate(thetas)
        ]
        right = [accuracy for _, accuracy in found if accuracy is not None]
        shares = torch.tensor(right, dtype=torch.float64) if right else None
        return torch.tensor([float(value) for value, _ in found], dtype=torch.float64), shares
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # the measurement has seen it
        values, accuracies = loss.evaluate_many(torch.stack(thetas))
    values, accuracies = values.cpu().double(), None if accuracies is None else accuracies.cpu().double()
    for i, theta in enumerate(thetas):
        if center is not None and torch.equal(theta, center):
            value, accuracy = loss.evaluate(theta)
            values[i] = float(value)
            if accuracies is not None and accuracy is not None:
                accuracies[i] = accuracy
    return values, accuracies


def _choose(losses: Mapping[str, Loss], point: Callable[[int], Tensor], num: int, wanted: str) -> tuple[str, int]:
    """(engine, points at once): vmap where it is quicker for the slowest loss and right for all, or asked for."""
    alone = ("point by point", 1)
    if wanted == "point by point" or (wanted == "auto" and num < 2):
        return alone
    if wanted == "auto" and any(loss.ranks is not None for loss in losses.values()):
        return alone  # ranks that measure would not all decide the same
    is_cpu = point(0).device.type == "cpu"
    repeats = 1 if is_cpu else 2  # the first call on a GPU loads its kernels
    at_once = min(num, 4 if is_cpu else 32)
    each = {name: _seconds(loss, [point(0)], "point by point", repeats) for name, loss in losses.items()}
    if wanted == "auto" and sum(each.values()) * num < _WORTH_MEASURING:
        return alone
    slowest = max(each, key=lambda name: each[name])
    while True:
        thetas = [point(i) for i in torch.linspace(0, num - 1, at_once).long().tolist()]
        try:
            together = _seconds(losses[slowest], thetas, "vmap", repeats)
            if wanted == "auto" and _MARGIN * together / at_once > each[slowest]:
                return alone
            problem = _difference(losses, thetas)
        except torch.OutOfMemoryError:
            problem = "out of memory"
            if at_once > 2:
                at_once //= 2
                continue
        except _FAILURES as error:
            problem = (str(error).splitlines() or [type(error).__name__])[0]
        if problem and wanted == "vmap":
            received = f"is 'vmap', which fails on these losses ({problem})"
            raise ValueError(
                argument_message("engine", received, "an engine that can follow them", 'Use engine="auto".')
            )
        return alone if problem else ("vmap", at_once)


def _seconds(loss: Loss, thetas: list[Tensor], engine: str, repeats: int) -> float:
    """Of one evaluation, the last of `repeats`."""
    elapsed = 0.0
    for _ in range(repeats):
        begun = time.perf_counter()
        _evaluate(loss, thetas, None, engine)
        elapsed = time.perf_counter() - begun
    return elapsed


def _difference(losses: Mapping[str, Loss], thetas: list[Tensor]) -> str:
    """How vmap differs from the losses themselves at these points; "" where it does not."""
    rtol = _RTOL.get(thetas[0].dtype, 1e-2)
    for name, loss in losses.items():
        expected, right = _evaluate(loss, thetas, None, "point by point")
        values, accuracies = _evaluate(loss, thetas, None, "vmap")
        finite = expected[expected.isfinite()].abs()
        floor = 10 * torch.finfo(thetas[0].dtype).eps * float(finite.max()) if len(finite) else 0.0
        if not torch.allclose(values, expected, rtol=rtol, atol=floor, equal_nan=True):
            return f"loss {name!r} is off by {float((values - expected).abs().max()):.1e}"
        if (accuracies is None) != (right is None):
            return f"the accuracy of {name!r} is lost"
        if accuracies is not None and right is not None and not torch.allclose(accuracies, right, atol=_TIES):
            return f"the accuracy of {name!r} is off by {float((accuracies - right).abs().max()):.2g}"
    return ""
