"""What do several losses look like along a line through the basin?

One pass evaluates every named loss, and its accuracy, at the same points theta0 + alpha * direction. The direction is
used as it is given; what a step means (its norm) is in the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.errors import check_count, check_real, check_vector, explain
from lowhanging.objective import Loss, common_center
from lowhanging.results import load_result, save_result


@dataclass(frozen=True, eq=False, repr=False)
class LineSlice:
    """Losses and accuracies on a line, at center + alphas[i] * direction."""

    alphas: Tensor  # (num,) float64, ascending, in units of `direction`
    losses: dict[str, Tensor]  # name -> (num,) float64; NaN and inf are kept
    accuracies: dict[str, Tensor]  # name -> (num,) float64, only of objectives that have one
    direction: Tensor  # (p,) as given
    center: Tensor  # (p,)
    norm: float  # |direction|: the distance of a step of 1

    def __repr__(self) -> str:
        names = ", ".join(self.losses)
        first, last = float(self.alphas[0]), float(self.alphas[-1])
        return f"LineSlice({names}; {len(self.alphas)} steps from {first:g} to {last:g}, |direction| = {self.norm:.4g})"

    def save(self, path: str | Path) -> Path:
        """Write to npz."""
        return save_result(self, path)

    @classmethod
    def load(cls, path: str | Path) -> LineSlice:
        """Read what `save` wrote."""
        return load_result(cls, path)


def line_slice(
    losses: Mapping[str, Loss],
    direction: Tensor,
    extent: float | tuple[float, float] = (-1.0, 1.0),
    num: int = 33,
    *,
    center: Tensor | None = None,
    progress: bool | None = None,
) -> LineSlice:
    r"""Evaluate named losses along a line: L_name(center + alpha * direction).

    Args:
        losses: name -> objective, all of the same length p, and all around the same theta0 unless `center` is given.
        direction: (p,), used as it is: alpha is measured in units of it.
        extent: (first, last) alpha, or a number a for (-a, a).
        num: steps, evenly spaced, both ends included. Where 0 falls on a step, the value there is the objective's at
            the center, bit for bit.
        center: (p,) another center than theta0.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        LineSlice: `alphas` (num,), `losses[name]` (num,), `accuracies[name]` (num,).

    Raises:
        ValueError, TypeError: a direction of the wrong length, zero or not finite, an extent that is not finite or not
            ascending, objectives around different points.

    Cost:
        num evaluations (forward passes) per loss.
    """
    center = common_center(losses, center)
    names = list(losses)
    remedy = "Take one from lh.steering_direction(...) or pairs.vectors[i]."
    owner = str(losses[names[0]])
    direction = check_vector("direction", direction, center.numel(), owner=owner, remedy=remedy, allow_zero=False)
    alphas = _steps("extent", extent, num)
    values = {name: torch.empty(num, dtype=torch.float64) for name in names}
    accuracies: dict[str, list[float]] = {name: [] for name in names}
    base, ray = center.double(), direction.to(center.device).double()
    for end in (alphas[0], alphas[-1]):
        if not bool(torch.isfinite((base + float(end) * ray).to(center.dtype)).all()):
            received = f"reaches {float(end):g}, where the weights overflow {center.dtype}"
            raise ValueError(explain("extent", received, "finite weights at both ends", "Pass a smaller extent."))
    delay = 2.0 if progress is None else 0.0
    for i in tqdm(range(num), desc="line slice", unit="step", disable=progress is False, delay=delay):
        theta = (base + alphas[i].to(base.device) * ray).to(center.dtype)
        for name, loss in losses.items():
            value, accuracy = loss.evaluate(theta)
            values[name][i] = float(value)
            accuracies[name] += [] if accuracy is None else [accuracy]
    return LineSlice(
        alphas=alphas,
        losses=values,
        accuracies={name: torch.tensor(found, dtype=torch.float64) for name, found in accuracies.items() if found},
        direction=direction.detach().cpu().clone(),
        center=center.detach().cpu().clone(),
        norm=float(direction.double().norm()),
    )


def _steps(argument: str, extent: float | tuple[float, float], num: int) -> Tensor:
    """(num,) evenly spaced in float64; a step that misses 0 by rounding is 0."""
    remedy = "Pass (first, last) with first < last, or one positive number."
    check_count("num", num, minimum=2, remedy="33 steps make a readable curve.")
    if isinstance(extent, np.ndarray | Tensor) and extent.ndim:
        extent = tuple(extent.tolist())
    if isinstance(extent, Sequence):
        if len(extent) != 2:
            raise ValueError(explain(argument, f"is {extent!r}", "(first, last)", remedy))
        first, last = (check_real(argument, end, remedy=remedy) for end in extent)
    else:
        last = check_real(argument, extent, remedy=remedy)
        first = -last
    if not first < last:
        raise ValueError(explain(argument, f"is ({first:g}, {last:g})", "first < last", remedy))
    steps = np.linspace(first, last, num)
    steps[np.abs(steps) < 1e-12 * max(abs(first), abs(last))] = 0.0
    return torch.from_numpy(steps)
