"""Losses and accuracies at numbered points of weight space, and the buffers that a model has at each point.

A line, a path and a plane are numbered lists of points. Two engines evaluate them: "point by point" lets each loss run
its own micro-batches, which fit a processor's cache; "vmap" evaluates several points at once, which keeps a GPU busy.
Which is quicker depends on model, data and device, so it is measured once, before the first point; a resumed run reuses
what was found, because the two differ in the last digits.

Where training moves buffers (BatchNorm's statistics), a given point that brings its own is evaluated with them exactly.
Between networks, and at vectors, which bring none, the caller says: "fixed" (those of the loss), "interpolate" (between
those of the points) or "recalibrate" (recomputed at each point). A silent default would draw a network that nobody has.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    opened,
    refuse_plain,
    same_values,
    with_buffers,
)
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.kernels import ONE_AT_A_TIME
from lowhanging.objective.protocol import (
    ANYWHERE,
    Loss,
    around,
    check_same_buffers,
    common_center,
    moving_values,
    own_vector,
)

SliceEngine = Literal["auto", "point by point", "vmap"]
Losses = Mapping[str, Loss]
BuffersAt = Callable[[int], Mapping[str, Tensor] | Literal["recalibrate"] | None]  # number of a point -> its buffers

_CHOICES = "say buffers='fixed' for those of the loss, buffers='recalibrate' to recompute them on data"
_SAME_CALL = (
    "Name another file, or repeat the call that made this one, on the same device and with as many threads "
    "(they decide the last digits of a loss)."
)
_WORTH_MEASURING = 1.0  # seconds: a run shorter than this is over before the other engine is warm
_MARGIN = 1.2  # so much quicker must vmap be: a tie is decided the same way every time
_TIES = 0.02  # of accuracies: rounding decides between two equal outputs


@dataclass(frozen=True)
class PointBuffers:
    """Which buffers the losses have at each numbered point."""

    word: str = "none"  # in the result: "none" | "fixed" | "own" | "interpolate" | "recalibrate"
    at: BuffersAt | None = None  # None, also for a point: each loss's own
    calibration: CalibrationData | None = None  # the data for "recalibrate"; None: each loss's own
    identity: dict[str, str] = field(default_factory=dict)  # for a resume file
    common: dict[str, Tensor] = field(default_factory=dict)  # those of all points and losses, where there are such

    def loss_at(self, loss: Loss, number: int, theta: Tensor) -> Loss:
        """The loss with the buffers of a point."""
        is_function = loss.space is None  # of theta alone
        buffers = None if self.at is None or is_function else self.at(number)
        if buffers is None:
            return loss
        if isinstance(buffers, str):
            return around(loss, theta, buffers=buffers, recalibrate_on=self.calibration)
        return around(loss, Checkpoint(theta, dict(buffers)), buffers=None)


def path_buffers(
    losses: Losses,
    knots: Sequence[Checkpoint],
    where: Sequence[tuple[int, float]],
    word: str | None,
    recalibrate_on: Any,
) -> PointBuffers:
    """At (1 - t) knots[i] + t knots[i + 1] for every (i, t) in `where`."""
    calibration = _calibration(word, recalibrate_on, losses, ("fixed", "recalibrate", "interpolate"))
    names = _names(losses, knots)
    if not names:
        return PointBuffers()
    plain = [i for i, knot in enumerate(knots) if not knot.buffers]
    is_between = any(t for _, t in where)
    if word is None and plain:
        refuse_plain(f"points[{plain[0]}]", names, choices=_CHOICES)
    if word is None and is_between:
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
        return PointBuffers("fixed", identity=identity)

    def at(number: int) -> Mapping[str, Tensor] | Literal["recalibrate"] | None:
        i, t = where[number]
        if not t and knots[i].buffers:
            return knots[i].buffers
        if word == "interpolate":
            return interpolated(knots[i].buffers, knots[i + 1].buffers, t)
        return "recalibrate" if word == "recalibrate" else None

    return PointBuffers(word if word and (is_between or plain) else "own", at, calibration, identity)


def center_buffers(
    losses: Losses, center: Any, word: str | None, recalibrate_on: Any, *, is_through: bool = False
) -> tuple[dict[str, Loss], Tensor, PointBuffers]:
    """The losses around the center of a slice, with its buffers where it brings some; the center (p,); the buffers.

    With `is_through`, the slice runs through several networks: its buffers must be named.
    """
    calibration = _calibration(word, recalibrate_on, losses, ("fixed", "recalibrate"))
    if center is None or isinstance(center, Tensor | np.ndarray):
        point = common_center(losses, cast(Any, center))
        place = Checkpoint(point)
    else:
        common_center(losses, ANYWHERE)
        like = next(iter(losses.values())).theta0
        place = _read("center", center, losses, like, "Pass a theta of the model.")
        point = common_center(losses, place.theta)
    names = _names(losses, [place])
    if not names:
        return dict(losses), point, PointBuffers()
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
    if word == "recalibrate":
        _check_recalibrated(losses, [place])
        identity = _identity(word, losses, [], calibration)
        return dict(losses), point, PointBuffers(word, lambda number: "recalibrate", calibration, identity)
    word = word or "fixed"
    check_same_buffers(losses)
    held = _held(losses, names)
    is_common = all(same_values(value, held[0][name]) for values in held for name, value in values.items())
    common = held[0] if held and is_common else {}
    identity = _identity(word, losses, [place], None)
    return dict(losses), point, PointBuffers(word, identity=identity, common=common)


def trajectory_buffers(
    losses: Losses,
    checkpoints: Sequence[Checkpoint],
    word: str | None,
    recalibrate_on: Any,
    *,
    plane_word: str,
    plane_buffers: Mapping[str, Tensor],
) -> PointBuffers:
    """At t checkpoints, then at t points of a plane that was drawn with `plane_word` and these buffers."""
    calibration = _calibration(word, recalibrate_on, losses, ("fixed", "recalibrate"), also=plane_word)
    names = _names(losses, checkpoints)
    if not names:
        return PointBuffers()
    plain = [i for i, checkpoint in enumerate(checkpoints) if not checkpoint.buffers]
    if word is None and plain:
        refuse_plain(f"checkpoints[{plain[0]}]", names, choices=_CHOICES)

    def at(number: int) -> Mapping[str, Tensor] | Literal["recalibrate"] | None:
        is_checkpoint = number < len(checkpoints)
        own = checkpoints[number].buffers if is_checkpoint else {}
        if not own and (word if is_checkpoint else plane_word) == "recalibrate":
            return "recalibrate"
        return own or (None if is_checkpoint else plane_buffers) or None

    return PointBuffers(word if word and plain else "own", at, calibration)


def read_points(argument: str, given: Sequence[Any], losses: Losses, *, like: Tensor, remedy: str) -> list[Checkpoint]:
    """Theta of each point, as `like` (p,), with all buffers that the model has there; none for a plain vector."""
    return [_read(f"{argument}[{i}]", value, losses, like, remedy) for i, value in enumerate(given)]


def buffers_text(word: str) -> str:
    """What a result's repr says of its buffers: nothing where there are none."""
    return "" if word == "none" else f"; buffers: {word}"


def _read(argument: str, value: Any, losses: Losses, like: Tensor, remedy: str) -> Checkpoint:
    argument, value = opened(argument, value)
    reader, checkpoint = _reader(losses), with_buffers(value)
    if reader is not None and (isinstance(value, nn.Module | Mapping | str | Path) or checkpoint is not None):
        found = reader.as_checkpoint(value, argument=argument)
        own = reader.checkpoint.buffers if found.buffers else {}
        return Checkpoint(found.theta.to(like), {**own, **found.buffers})
    theta, owner = value if checkpoint is None else checkpoint.theta, str(next(iter(losses.values())))
    return Checkpoint(own_vector(check_vector(argument, theta, len(like), owner=owner, remedy=remedy, like=like)))


def _reader(losses: Losses) -> Loss | None:
    """A loss of a model, which knows the names of a point; None where all are functions of theta."""
    return next((loss for loss in losses.values() if loss.space is not None), None)


def _names(losses: Losses, points: Sequence[Checkpoint]) -> list[str]:
    """The buffers that must be thought of: those that training moves, and others in which given points differ."""
    names = [name for loss in losses.values() for name in loss.moving_names]
    reader = _reader(losses)
    own = reader.checkpoint.buffers if reader is not None and any(point.buffers for point in points) else {}
    for point in points:
        names += [name for name, value in point.buffers.items() if not same_values(own[name], value)]
    return list(dict.fromkeys(names))


def _held(losses: Losses, names: Sequence[str]) -> list[dict[str, Tensor]]:
    """The named buffers of every loss that has them all, on the CPU."""
    every = [loss.checkpoint.buffers for loss in losses.values() if loss.space is not None]
    return [{name: buffers[name].cpu() for name in names} for buffers in every if set(names) <= set(buffers)]


def _calibration(
    word: str | None, data: Any, losses: Losses, choices: tuple[str, ...], *, also: str = ""
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
        remedy = "Leave one of them out."
        raise ValueError(argument_message("recalibrate_on", received, "buffers='recalibrate'", remedy))
    like = next(iter(losses.values())).theta0
    return CalibrationData.of(data, device=like.device, dtype=like.dtype)


def _check_recalibrated(losses: Losses, points: Sequence[Checkpoint]) -> None:
    """An error if points differ in buffers that no recalibration sets."""
    moving = {name for loss in losses.values() for name in loss.moving_names}
    fixed = [name for name in _names(losses, points) if name not in moving]
    if fixed:
        received = f"is 'recalibrate', and the points differ from the loss in {fixed[:3]}, which training does not move"
        remedy = "Pass buffers='interpolate' or 'fixed', or make the loss of a model with these buffers."
        raise ValueError(argument_message("buffers", received, "points that differ in statistics alone", remedy))


def _identity(
    word: str, losses: Losses, points: Sequence[Checkpoint], calibration: CalibrationData | None
) -> dict[str, str]:
    """For a resume file: the word, and the numbers behind it."""
    tensors = [value for loss in losses.values() for value in moving_values(loss).values()]
    tensors += [value for point in points for value in point.buffers.values()]
    data = "" if calibration is None else calibration.digest()
    return {"buffers": f"{word} {digest(*tensors)} {data}".strip()}


@dataclass(frozen=True, eq=False, repr=False)
class PointValues:
    """Losses and accuracies at n numbered points, of which the first `num_done` are known."""

    losses: dict[str, Tensor]  # name -> (n,) float64
    accuracies: dict[str, Tensor]  # name -> (n,) float64, only of losses that have one
    engine: str
    at_once: int  # points per evaluation
    num_done: int


def evaluate_points(
    losses: Losses,
    point: Callable[[int], Tensor],
    num: int,
    *,
    center: Tensor,
    buffers: PointBuffers,
    title: str,
    identity: Mapping[str, str] | None = None,
    engine: str = "auto",
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> PointValues:
    """Every loss, and its accuracy, at point(0), ..., point(num - 1), each a vector (p,).

    At the center each loss is evaluated by itself, so that the value there is the loss's bit for bit. `identity` has
    the names and digests of what determines the points; a resume file of a run with another one is refused.
    """
    check_choice("engine", engine, ("auto", "point by point", "vmap"))
    if buffers.at is not None:
        if engine == "vmap":
            received = "is 'vmap', and the buffers differ from point to point"
            raise ValueError(argument_message("engine", received, "'point by point' or 'auto'", "Leave it out."))
        engine = "point by point"
    identity = {**(identity or {}), **buffers.identity, "names of the losses": repr(list(losses))}
    file = None if resume is None else ResumeFile(resume, identity, kind="a slice")
    delay = 2.0 if progress is None else 0.0
    with torch.inference_mode(False):
        points = _Points(losses, point, num, center, buffers)
        stored = None if file is None else file.read()
        if file is None or stored is None:
            chosen, at_once = _choose(points, engine)
            values = PointValues({name: _unknown(num) for name in losses}, {}, chosen, at_once, 0)
        else:
            with file.decoding():
                values = PointValues(**stored)
            if engine not in ("auto", values.engine):
                file.refuse([f"engine ({values.engine!r})"], _SAME_CALL)
            _check_values(file, values, points)
        known = values.num_done
        try:
            with tqdm(
                total=num, initial=known, desc=title, unit="point", disable=is_silent(progress), delay=delay
            ) as bar:
                for start in range(known, num, values.at_once):
                    stop = min(num, start + values.at_once)
                    for name, found, right in points.evaluate(start, stop, values.engine):
                        values.losses[name][start:stop] = found
                        if right is not None:
                            values.accuracies.setdefault(name, _unknown(num))[start:stop] = right
                    values = replace(values, num_done=stop)
                    bar.update(stop - start)
                    if file is not None:
                        file.keep(vars(values), now=stop == num)
        finally:  # whatever stops it, what is finished is in the file
            if file is not None:
                file.flush()
    in_order = {name: values.accuracies[name] for name in losses if name in values.accuracies}
    return replace(values, accuracies=in_order)


@dataclass(frozen=True)
class _Points:
    """Numbered points, and the losses to evaluate there."""

    losses: Losses
    at: Callable[[int], Tensor]
    num: int
    center: Tensor
    buffers: PointBuffers

    def evaluate(self, start: int, stop: int, engine: str) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """(name, values, accuracies or None) of every loss at points start, ..., stop - 1."""
        thetas = [self.at(i) for i in range(start, stop)]
        for name, loss in self.losses.items():
            each = [self.buffers.loss_at(loss, start + i, theta) for i, theta in enumerate(thetas)]
            yield name, *_evaluate(each, thetas, engine, self.center)


def _unknown(num: int) -> Tensor:
    return torch.full((num,), torch.nan, dtype=torch.float64)


def _evaluate(
    losses: Sequence[Loss], thetas: list[Tensor], engine: str, center: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Values (b,) and accuracies (b,) or None on the CPU, of losses[i] at thetas[i]; for "vmap" they are one loss."""
    if engine == "point by point":
        found = [loss.evaluate(theta) for loss, theta in zip(losses, thetas, strict=True)]
        right = [accuracy for _, accuracy in found if accuracy is not None]
        shares = torch.tensor(right, dtype=torch.float64) if right else None
        return torch.tensor([float(value) for value, _ in found], dtype=torch.float64), shares
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # the measurement has seen it
        values, accuracies = losses[0].evaluate_many(torch.stack(thetas))
    values, accuracies = values.cpu().double(), None if accuracies is None else accuracies.cpu().double()
    for i, theta in enumerate(thetas):
        if center is not None and torch.equal(theta, center):
            value, accuracy = losses[0].evaluate(theta)
            values[i] = float(value)
            if accuracies is not None and accuracy is not None:
                accuracies[i] = accuracy
    return values, accuracies


def _check_values(file: ResumeFile, values: PointValues, points: _Points) -> None:
    """Refuse a file of which these losses do not give three finished points again, bit for bit.

    The first, one in between and the last, of those where something is finite: NaN and infinity are the same for many
    losses. The one in between is none at the center, where an anchor, and whatever else is quadratic around it, is 0.
    """
    rows = torch.stack(list(values.losses.values()))  # (losses, num)
    every = range(0, values.num_done, values.at_once)
    is_finite = rows[:, : values.num_done].isfinite()
    starts = [start for start in every if bool(is_finite[:, start : start + values.at_once].any(1).all())] or [*every]
    if len(starts) > 3:
        inner = [start for start in starts[1:-1] if not torch.equal(points.at(start), points.center)]
        starts = [starts[0], inner[len(inner) // 2], starts[-1]]
    for start in starts:
        where = slice(start, min(points.num, start + values.at_once))
        for name, found, right in points.evaluate(where.start, where.stop, values.engine):
            stored = values.accuracies.get(name)
            is_same = same_values(found, values.losses[name][where]) and (right is None) == (stored is None)
            if not is_same or (right is not None and stored is not None and not same_values(right, stored[where])):
                file.refuse([f"loss {name!r}"], _SAME_CALL)


def _choose(points: _Points, wanted: str) -> tuple[str, int]:
    """(engine, points at once): vmap where it is quicker for the slowest loss and right for all, or asked for."""
    alone = ("point by point", 1)
    if wanted == "point by point" or (wanted == "auto" and points.num < 2):
        return alone
    if wanted == "auto" and any(loss.ranks is not None for loss in points.losses.values()):
        return alone  # processes that measure would not all decide the same
    first = points.at(0)
    is_cpu = first.device.type == "cpu"
    repeats = 1 if is_cpu else 2  # the first call on a GPU loads its kernels
    at_once = min(points.num, 4 if is_cpu else 32)
    seconds = {name: _seconds(loss, [first], "point by point", repeats) for name, loss in points.losses.items()}
    if wanted == "auto" and sum(seconds.values()) * points.num < _WORTH_MEASURING:
        return alone
    slowest = max(seconds, key=lambda name: seconds[name])
    while True:
        thetas = [points.at(i) for i in torch.linspace(0, points.num - 1, at_once).long().tolist()]
        try:
            together = _seconds(points.losses[slowest], thetas, "vmap", repeats)
            if wanted == "auto" and _MARGIN * together / at_once > seconds[slowest]:
                return alone
            problem = _difference(points.losses, thetas)
        except torch.OutOfMemoryError:
            problem = "out of memory"
            if at_once > 2:
                at_once //= 2
                continue
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, IndexError) as error:
            problem = (str(error).splitlines() or [type(error).__name__])[0]
        if problem and wanted == "vmap":
            received, expected = f"is 'vmap', which fails on these losses ({problem})", "an engine that they allow"
            raise ValueError(argument_message("engine", received, expected, 'Use engine="auto".'))
        return alone if problem else ("vmap", at_once)


def _seconds(loss: Loss, thetas: list[Tensor], engine: str, repeats: int) -> float:
    """Of one evaluation, the last of `repeats`."""
    elapsed = 0.0
    for _ in range(repeats):
        begun = time.perf_counter()
        _evaluate([loss] * len(thetas), thetas, engine)
        elapsed = time.perf_counter() - begun
    return elapsed


def _difference(losses: Losses, thetas: list[Tensor]) -> str:
    """How vmap differs from the losses themselves at these points; "" where it does not."""
    dtype = thetas[0].dtype
    rtol = {torch.float64: 1e-9, torch.float32: 1e-3}.get(dtype, 1e-2)
    for name, loss in losses.items():
        each = [loss] * len(thetas)
        expected, right = _evaluate(each, thetas, "point by point")
        values, accuracies = _evaluate(each, thetas, "vmap")
        finite = expected[expected.isfinite()].abs()
        atol = 10 * torch.finfo(dtype).eps * float(finite.max()) if len(finite) else 0.0
        if not torch.allclose(values, expected, rtol=rtol, atol=atol, equal_nan=True):
            return f"loss {name!r} is off by {float((values - expected).abs().max()):.1e}"
        if (accuracies is None) != (right is None):
            return f"the accuracy of {name!r} is lost"
        if accuracies is not None and right is not None and not torch.allclose(accuracies, right, atol=_TIES):
            return f"the accuracy of {name!r} is off by {float((accuracies - right).abs().max()):.2g}"
    return ""
