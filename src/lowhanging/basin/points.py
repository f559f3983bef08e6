"""How are several losses evaluated at many points, with every number the same whether or not the run was interrupted?

A line, a path and a plane are numbered lists of points; this file evaluates them. Two engines: "point by point" lets
each objective run its own micro-batches, which fit a processor's cache; "vmap" evaluates several points at once, which
keeps a GPU busy. Which one is quicker depends on model, data and device, so it is measured, once, before the first
point; a resumed run reuses what was found, because the two differ in the last digits.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.basin.slice_buffers import LossAt
from lowhanging.errors import check_choice, explain
from lowhanging.layers import ONE_AT_A_TIME
from lowhanging.loss import Loss
from lowhanging.ranks import is_silent
from lowhanging.results import load_result, resume_path, save_result

SliceEngine = Literal["auto", "point by point", "vmap"]
SLICE_ENGINES = ("auto", "point by point", "vmap")

_WORTH_MEASURING = 1.0  # seconds: a run shorter than this is over before the other engine is warm
_MARGIN = 1.2  # so much quicker must vmap be: a tie is decided the same way every time
_PAUSE = 0.2  # seconds between two writes where a row is one point
_TIES = 0.02  # of accuracies: rounding decides between two equal outputs
_RTOL = {torch.float64: 1e-9, torch.float32: 1e-3}
_FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, IndexError)


@dataclass(frozen=True, eq=False, repr=False)
class PointValues:
    """Losses and accuracies at n numbered points; in a resume file, at the first `num_done` of them."""

    losses: dict[str, Tensor]  # name -> (n,) float64
    accuracies: dict[str, Tensor]  # name -> (n,) float64, only of objectives that have one
    engine: str
    at_once: int  # points per evaluation
    num_done: int
    identity: dict[str, str]  # what the values belong to


def evaluate_points(
    losses: Mapping[str, Loss],
    point: Callable[[int], Tensor],
    num: int,
    *,
    center: Tensor,
    engine: str = "auto",
    resume: str | Path | None = None,
    identity: Mapping[str, str] | None = None,
    row: int = 1,
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
        resume: npz file that is written after every row, and continued from if it exists.
        identity: names and digests of what determines the points; the file of a run with another one is refused.
        row: points between two writes of that file; with 1, it is written a few times per second.
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
        raise ValueError(explain("engine", received, "'point by point' or 'auto'", "Leave it out."))
    engine = "point by point" if loss_at is not None else engine
    path = None if resume is None else resume_path(resume)
    identity = {**(identity or {}), "names of the losses": repr(list(losses))}
    with torch.inference_mode(False):
        values = None if path is None else _read_values(path, identity, engine)
        if values is None:
            chosen, at_once = _choose(losses, point, num, engine)
            empty = torch.full((num,), torch.nan, dtype=torch.float64)
            values = PointValues({name: empty.clone() for name in losses}, {}, chosen, at_once, 0, identity)
        elif path is not None:
            _check_values(path, values, losses, point, center, loss_at)
        return _continue(values, losses, point, center, path, row, title, progress, loss_at)


def _continue(
    values: PointValues,
    losses: Mapping[str, Loss],
    point: Callable[[int], Tensor],
    center: Tensor,
    path: Path | None,
    row: int,
    title: str,
    progress: bool | None,
    loss_at: LossAt | None,
) -> PointValues:
    """The rest of the points; whatever stops it, what is finished is in the file."""
    num, written, wrote_at = len(next(iter(values.losses.values()))), values.num_done, time.monotonic()
    delay = 2.0 if progress is None else 0.0
    bar = tqdm(total=num, initial=written, desc=title, unit="point", disable=is_silent(progress), delay=delay)
    try:
        for start in range(written, num, values.at_once):
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
            is_row = stop == num or (stop // row > start // row if row > 1 else time.monotonic() > wrote_at + _PAUSE)
            if path is not None and is_row:
                save_result(values, path)
                written, wrote_at = stop, time.monotonic()
    finally:
        bar.close()
        if path is not None and values.num_done > written:
            save_result(values, path)
    in_order = {name: values.accuracies[name] for name in losses if name in values.accuracies}
    return replace(values, accuracies=in_order)


def _check_values(
    path: Path,
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
                _refuse(path, [f"loss {name!r}"])


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
    if wanted == "auto" and any(getattr(loss, "ranks", None) is not None for loss in losses.values()):
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
            raise ValueError(explain("engine", received, "an engine that can follow them", 'Use engine="auto".'))
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


def _read_values(path: Path, identity: Mapping[str, str], engine: str) -> PointValues | None:
    """What an interrupted run left, None where there is no file, an error where it belongs to another run."""
    if not path.exists():
        return None
    try:
        values = load_result(PointValues, path)
    except (ValueError, TypeError, OSError) as error:
        received = f"is {str(path)!r}, no resume file of a slice"
        raise ValueError(explain("resume", received, "a new file or that of this run", "Name another file.")) from error
    different = [key for key in {**identity, **values.identity} if identity.get(key) != values.identity.get(key)]
    if engine not in ("auto", values.engine):
        different.append(f"engine ({values.engine!r})")
    if different:
        _refuse(path, different)
    return values


def _refuse(path: Path, different: list[str]) -> NoReturn:
    received = f"is {str(path)!r}, the file of a run with another {', '.join(sorted(different))}"
    remedy = (
        "Name another file, or repeat the call that made this one, on the same device and with as many threads "
        "(they decide the last digits of a loss)."
    )
    raise ValueError(explain("resume", received, "a new file or that of this run", remedy))
