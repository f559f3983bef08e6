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
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.errors import check_choice, explain
from lowhanging.objective import Loss
from lowhanging.results import load_result, resume_path, save_result

SliceEngine = Literal["auto", "point by point", "vmap"]
SLICE_ENGINES = ("auto", "point by point", "vmap")

_WORTH_MEASURING = 1.0  # seconds: a run shorter than this is over before the other engine is warm
_MARGIN = 1.2  # so much quicker must vmap be: a tie is decided the same way every time
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
        row: points between two writes of that file.
        title: of the bar.
        progress: a bar; None shows one after two seconds.

    Raises:
        ValueError: the resume file belongs to something else, or `engine="vmap"` fails on a loss.
    """
    check_choice("engine", engine, SLICE_ENGINES)
    path = None if resume is None else resume_path(resume)
    values = None
    if path is not None:
        identity = {**(identity or {}), **_fingerprints(losses, center)}
        values = _read(path, identity, engine)
    if values is None:
        chosen, at_once = _choose(losses, point, num, engine)
        values = PointValues({}, {}, chosen, at_once, 0, dict(identity or {}))
    kept = {name: torch.full((num,), torch.nan, dtype=torch.float64) for name in losses}
    shares = {name: kept[name].clone() for name in losses}
    for name, found in values.losses.items():
        kept[name][: values.num_done] = found[: values.num_done]
    for name, found in values.accuracies.items():
        shares[name][: values.num_done] = found[: values.num_done]
    has_accuracy = set(values.accuracies)
    delay = 2.0 if progress is None else 0.0
    with tqdm(
        total=num, initial=values.num_done, desc=title, unit="point", disable=progress is False, delay=delay
    ) as b:
        for start in range(values.num_done, num, values.at_once):
            stop = min(num, start + values.at_once)
            thetas = [point(i) for i in range(start, stop)]
            for name, loss in losses.items():
                found, right = _evaluate(loss, thetas, center, values.engine)
                kept[name][start:stop] = found
                if right is not None:
                    shares[name][start:stop] = right
                    has_accuracy.add(name)
            b.update(stop - start)
            if stop == num or stop // row > start // row:
                accuracies = {name: shares[name] for name in losses if name in has_accuracy}
                values = replace(values, losses=kept, accuracies=accuracies, num_done=stop)
                if path is not None:
                    save_result(values, path)
    return values


def _evaluate(loss: Loss, thetas: list[Tensor], center: Tensor, engine: str) -> tuple[Tensor, Tensor | None]:
    """Values (b,) and accuracies (b,) or None at b points, on the CPU."""
    if engine == "point by point":
        found = [loss.evaluate(theta) for theta in thetas]
        right = [accuracy for _, accuracy in found if accuracy is not None]
        shares = torch.tensor(right, dtype=torch.float64) if right else None
        return torch.tensor([float(value) for value, _ in found], dtype=torch.float64), shares
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # the measurement has seen it
        values, accuracies = loss.evaluate_many(torch.stack(thetas))
    values, accuracies = values.cpu().double(), None if accuracies is None else accuracies.cpu().double()
    for i, theta in enumerate(thetas):
        if torch.equal(theta, center):
            values[i] = float(loss.evaluate(theta)[0])
    return values, accuracies


def _choose(losses: Mapping[str, Loss], point: Callable[[int], Tensor], num: int, wanted: str) -> tuple[str, int]:
    """(engine, points at once): vmap where it is quicker for the first loss and right for all, or asked for."""
    alone = ("point by point", 1)
    if wanted == "point by point" or (wanted == "auto" and num < 2):
        return alone
    is_cpu = point(0).device.type == "cpu"
    repeats = 1 if is_cpu else 2  # the first call on a GPU loads its kernels
    at_once = min(num, 4 if is_cpu else 32)
    first = next(iter(losses.values()))
    while True:
        thetas = [point(i) for i in torch.linspace(0, num - 1, at_once).long().tolist()]
        seconds = _seconds(first, thetas[:1], "point by point", 1 + repeats)
        if wanted == "auto" and seconds * num * len(losses) < _WORTH_MEASURING:
            return alone
        try:
            together = _seconds(first, thetas, "vmap", repeats)
            if wanted == "auto" and _MARGIN * together / at_once > seconds:
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
    nowhere = torch.empty(0)
    elapsed = 0.0
    for _ in range(repeats):
        begun = time.perf_counter()
        _evaluate(loss, thetas, nowhere, engine)
        elapsed = time.perf_counter() - begun
    return elapsed


def _difference(losses: Mapping[str, Loss], thetas: list[Tensor]) -> str:
    """How vmap differs from the losses themselves at the first and the last point; "" where it does not."""
    rtol = _RTOL.get(thetas[0].dtype, 1e-2)
    nowhere = torch.empty(0)
    for name, loss in losses.items():
        first, right = _evaluate(loss, thetas[:1], nowhere, "point by point")
        last, right_last = _evaluate(loss, thetas[-1:], nowhere, "point by point")
        values, accuracies = _evaluate(loss, thetas, nowhere, "vmap")
        expected, found = torch.cat([first, last]), values[[0, -1]]
        if not torch.allclose(found, expected, rtol=rtol, atol=rtol, equal_nan=True):
            return f"loss {name!r} is off by {float((found - expected).abs().max()):.1e}"
        if (accuracies is None) != (right is None and right_last is None):
            return f"the accuracy of {name!r} is lost"
    return ""


def _fingerprints(losses: Mapping[str, Loss], center: Tensor) -> dict[str, str]:
    """Two values of each loss, to the last bit: at the center and beside it."""
    generator = torch.Generator().manual_seed(0)
    beside = torch.randn(len(center), generator=generator, dtype=torch.float64)
    beside *= 0.1 * max(1.0, float(center.double().norm())) / float(beside.norm())
    points = (center, center + beside.to(center))
    found = {
        f"loss {name!r}": " ".join(float(loss.evaluate(theta)[0]).hex() for theta in points)
        for name, loss in losses.items()
    }
    return {"names of the losses": ", ".join(losses), **found}


def _read(path: Path, identity: Mapping[str, str], engine: str) -> PointValues | None:
    """What an interrupted run left, None where there is no file, an error where it belongs to another run."""
    if not path.exists():
        return None
    try:
        values = load_result(PointValues, path)
    except ValueError as error:
        received = f"is {str(path)!r}, no resume file of a slice"
        raise ValueError(explain("resume", received, "a new file or that of this run", "Name another file.")) from error
    different = [key for key in {**identity, **values.identity} if identity.get(key) != values.identity.get(key)]
    if engine not in ("auto", values.engine):
        different.append(f"engine ({values.engine!r})")
    if different:
        received = f"is {str(path)!r}, the file of a run with another {', '.join(sorted(different))}"
        remedy = (
            "Name another file, or repeat the call that made this one, on the same device and with as many threads "
            "(they decide the last digits of a loss)."
        )
        raise ValueError(explain("resume", received, "a new file or that of this run", remedy))
    return values
