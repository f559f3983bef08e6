"""Losses along lines and paths: values of several losses, and their accuracies, at the same points.

A direction is used as it is given, and what a step means (its norm) is in the result: rescaled in silence, two slices
would look alike that are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lowhanging.errors import (
    argument_message,
    check_count,
    check_names,
    check_real,
    door,
)
from lowhanging.io import Saved, digest
from lowhanging.landscape.directions import Normalization, as_direction
from lowhanging.landscape.evaluate import (
    SliceEngine,
    buffers_text,
    center_buffers,
    evaluate_points,
    path_buffers,
    read_points,
)
from lowhanging.objective.checkpoints import BufferChoice, Point, listed_points
from lowhanging.objective.protocol import ANYWHERE, Loss, as_losses, common_center, widest
from lowhanging.tables import Columns, Tabular, with_losses


@dataclass(frozen=True, eq=False, repr=False)
class LineSlice(Saved, Tabular):
    """Losses and accuracies on a line, at center + alphas[i] * direction."""

    alphas: Tensor  # (num,) float64, ascending, in units of `direction`
    losses: dict[str, Tensor]  # name -> (num,) float64; NaN and inf are kept
    accuracies: dict[str, Tensor]  # name -> (num,) float64, only of losses that have one
    direction: Tensor  # (p,) as given
    center: Tensor  # (p,)
    norm: float  # |direction|: the distance of a step of 1
    name: str = "direction"  # what the direction is called, for axes
    seed: int | None = None  # of a direction that was drawn here
    engine: str = "point by point"
    buffers: str = "none"  # those that training moves: "none" | "fixed" | "own" (of the center) | "recalibrate"

    def columns(self) -> Columns:
        """One row for each step: "alpha", the losses and the accuracies by name."""
        return with_losses({"alpha": self.alphas.tolist()}, self.losses, self.accuracies)

    def __repr__(self) -> str:
        first, last = float(self.alphas[0]), float(self.alphas[-1])
        steps = f"{len(self.alphas)} steps from {first:g} to {last:g} along {self.name}"
        return (
            f"LineSlice({', '.join(self.losses)}; {steps}, |direction| = {self.norm:.4g}{buffers_text(self.buffers)})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class PathSlice(Saved, Tabular):
    """Losses and accuracies on straight segments through given points, by arc length."""

    positions: Tensor  # (num,) float64, arc length from the first point
    losses: dict[str, Tensor]  # name -> (num,) float64; NaN and inf are kept
    accuracies: dict[str, Tensor]  # name -> (num,) float64, only of losses that have one
    knots: Tensor  # (m,) float64, arc lengths of the given points, each one of the positions
    points: Tensor  # (m, p) as given
    engine: str = "point by point"
    buffers: str = "none"  # those that training moves, where no point brings its own: as given, or "own": all do

    def columns(self) -> Columns:
        """One row for each point: "position", the losses and the accuracies by name."""
        return with_losses({"position": self.positions.tolist()}, self.losses, self.accuracies)

    def __repr__(self) -> str:
        size = f"{len(self.positions)} points through {len(self.points)}, length {float(self.positions[-1]):.4g}"
        return f"PathSlice({', '.join(self.losses)}; {size}{buffers_text(self.buffers)})"


@door
@torch.inference_mode(False)
def line_slice(
    losses: Loss | Mapping[str, Loss],
    direction: Tensor | Mapping[str, Tensor] | Normalization,
    *,
    extent: float | tuple[float, float] = (-1.0, 1.0),
    num: int = 33,
    center: Point | None = None,
    buffers: Literal["fixed", "recalibrate"] | None = None,
    recalibrate_on: Any = None,
    name: str | None = None,
    seed: int = 0,
    engine: SliceEngine = "auto",
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> LineSlice:
    r"""Evaluate named losses along a line: L_name(center + alpha * direction).

    Args:
        losses: name -> loss, all of the same length p, and all around the same theta0 unless `center` is given; or one
            loss, which is then called "loss".
        direction: (p,), or a mapping parameter name -> tensor, used as it is: alpha is measured in units of it. Or a
            random one, drawn with `seed`: "gaussian", "layer" or "filter" (see `random_direction`).
        extent: (first, last) alpha, or a number a for (-a, a).
        num: steps, evenly spaced, both ends included. Where 0 falls on a step, the value there is the loss's at the
            center, bit for bit.
        center: another center than theta0: (p,), or a module, a state_dict, a file, a checkpoint, a minimum, whose
            buffers (BatchNorm's statistics) come along.
        buffers: those that training moves, along the line. By default they stay what they are at the center; a center
            (p,) from elsewhere brings none, and then the word is asked for: "fixed", those of the losses, or
            "recalibrate", recomputed at each point (values only; it takes a pass over the data at each).
        recalibrate_on: the data for that, as in `Objective.at`; by default each loss's own.
        name: what the direction is called, for axes and `repr`.
        seed: of a random direction; without effect on a given one.
        engine: "point by point" lets each loss run its micro-batches; "vmap" takes several points at once; "auto"
            measures which is quicker. They agree to rounding.
        resume: npz file written as points are finished: the same call continues from it, bit for bit.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        LineSlice: `alphas` (num,), `losses[name]` (num,), `accuracies[name]` (num,).

    Raises:
        ValueError, TypeError: a direction of the wrong length, zero or not finite, an extent that is not finite or not
            ascending, losses around different points, a resume file of another call.

    Cost:
        num evaluations (forward passes) per loss; the measurement takes about a dozen (on a GPU about a hundred, 32 at
        once), and resuming three to check that the file belongs to these losses.
    """
    losses, middle, held = center_buffers(as_losses(losses), center, buffers, recalibrate_on)
    alphas = steps("extent", extent, num)
    is_random = isinstance(direction, str)
    vector = as_direction("direction", direction, losses, middle, seed=seed)
    line = AffineGrid(middle, vector[None])
    line.check_reach("extent", alphas[[0, -1], None])
    if name is not None:
        (name,) = check_names("name", [name], remedy="It is what the axis is called; leave it out.")
    name = name or (f"random direction ({direction})" if is_random else "direction")
    values = evaluate_points(
        losses,
        lambda i: line.at(alphas[i : i + 1]),
        num,
        center=middle,
        buffers=held,
        engine=engine,
        resume=resume,
        identity={"center": digest(middle), "direction": digest(vector), "extent or num": digest(alphas)},
        title="line slice",
        progress=progress,
    )
    return LineSlice(
        alphas=alphas,
        losses=values.losses,
        accuracies=values.accuracies,
        direction=vector.cpu().clone(),
        center=middle.cpu().clone(),
        norm=float(vector.double().norm()),
        name=name,
        seed=seed if is_random else None,
        engine=values.engine,
        buffers=held.word,
    )


@door
@torch.inference_mode(False)
def path_slice(
    losses: Loss | Mapping[str, Loss],
    points: Any,
    *,
    num: int = 65,
    buffers: BufferChoice | None = None,
    recalibrate_on: Any = None,
    engine: SliceEngine = "auto",
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> PathSlice:
    r"""Evaluate named losses on the straight segments that join given points, in their order.

    The position of theta = (1 - t) points[i] + t points[i + 1] is its arc length, knots[i] + t |points[i + 1] -
    points[i]|. Every given point is among those evaluated, exactly as given; the others are evenly spaced within each
    segment, as many as its share of the length asks for. Two points make the usual interpolation between checkpoints.

    Args:
        losses: name -> loss, all of the same length p, or one loss; their theta0 is not used.
        points: m >= 2 points: a training run or record, or modules, state_dicts, files, checkpoints, minima, which
            bring their buffers (BatchNorm's statistics) and are evaluated with them exactly; or vectors (p,), or a
            matrix (m, p) such as `run.checkpoints`, which bring none.
        num: points evaluated, at least m.
        buffers: where training moves buffers, those of all other points; there is no default. "recalibrate": recomputed
            at each point, the practice of the mode-connectivity papers (it takes a pass over the data at each);
            "interpolate": linear in t between those of the two given points; "fixed": those of the losses.
        recalibrate_on: the data for "recalibrate", as in `Objective.at`, such as the training loader; by default each
            loss's own.
        engine: as in `line_slice`.
        resume: as in `line_slice`.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        PathSlice: `positions` (num,), `losses[name]` (num,), `accuracies[name]` (num,), `knots` (m,).

    Raises:
        ValueError, TypeError: points of the wrong length, not finite, equal to the next one, or fewer than two; no word
            on `buffers` where training moves some.

    Cost:
        num evaluations (forward passes) per loss, and as many in training mode with "recalibrate".

    Source:
        Garipov et al. (2018), "Loss surfaces, mode connectivity, and fast ensembling of DNNs"; Izmailov et al. (2018),
        "Averaging weights leads to wider optima and better generalization", for recomputed statistics.
    """
    remedy = "Pass at least two vectors theta, e.g. (theta_a, theta_b) or run.checkpoints."
    losses = as_losses(losses)
    common_center(losses, ANYWHERE)
    given = listed_points("points", points, remedy=remedy, expected="at least one vector (p,)")
    if len(given) < 2:
        raise ValueError(argument_message("points", f"are {len(given)}", "at least two vectors", remedy))
    places = read_points("points", given, losses, like=widest(losses), remedy=remedy)
    thetas = [place.theta for place in places]
    lengths = np.array([float((b.double() - a.double()).norm()) for a, b in itertools.pairwise(thetas)])
    if not lengths.all():
        i = int(np.argmin(lengths))
        raise ValueError(
            argument_message("points", f"{i} and {i + 1} are equal", "segments with a length", "Leave one out.")
        )
    check_count("num", num, minimum=len(thetas), remedy="Each given point is one of those evaluated.")
    counts = _shares(lengths, num - 1)
    where = [(i, step / count) for i, count in enumerate(counts) for step in range(count)] + [(len(counts), 0.0)]
    knots = np.concatenate([[0.0], np.cumsum(lengths)])
    positions = np.array([knots[i] + (t * lengths[i] if t else 0.0) for i, t in where])

    held = path_buffers(losses, places, where, buffers, recalibrate_on)

    def point(number: int) -> Tensor:
        i, t = where[number]
        if t == 0.0:
            return thetas[i].clone()
        return ((1.0 - t) * thetas[i].double() + t * thetas[i + 1].double()).to(thetas[i].dtype)

    stacked = torch.stack(thetas)
    values = evaluate_points(
        losses,
        point,
        num,
        center=thetas[0],
        buffers=held,
        engine=engine,
        resume=resume,
        identity={"points": digest(stacked), "num": str(num)},
        title="path slice",
        progress=progress,
    )
    return PathSlice(
        positions=torch.from_numpy(positions),
        losses=values.losses,
        accuracies=values.accuracies,
        knots=torch.from_numpy(knots),
        points=stacked.cpu(),
        engine=values.engine,
        buffers=held.word,
    )


class AffineGrid:
    """Points center + coordinates @ directions, computed in float64 and rounded once to the center's dtype.

    The offset is summed before it is added to the center: addition commutes but does not associate, so only then do two
    directions in either order give the same bits.
    """

    def __init__(self, center: Tensor, directions: Tensor):
        self._center, self._dtype = center.double(), center.dtype
        self._directions = directions.to(center.device).double()  # (d, p)

    def at(self, coordinates: Tensor) -> Tensor:
        """(p,) at coordinates (d,)."""
        offset = torch.zeros_like(self._center)
        for coordinate, direction in zip(coordinates.tolist(), self._directions, strict=True):
            offset = offset + coordinate * direction
        return (self._center + offset).to(self._dtype)

    def check_reach(self, argument: str, ends: Tensor) -> None:
        """An error if the weights overflow at one of the ends (n, d)."""
        for end in ends:
            if not bool(torch.isfinite(self.at(end)).all()):
                reach = ", ".join(f"{float(step):g}" for step in end)
                received = f"reaches {reach}, where the weights overflow {self._dtype}"
                raise ValueError(
                    argument_message(argument, received, "finite weights at the ends", "Pass a smaller extent.")
                )


def steps(argument: str, extent: Any, num: int) -> Tensor:
    """(num,) evenly spaced in float64; exactly symmetric where the ends are, and 0 where rounding misses it."""
    remedy = "Pass (first, last) with first < last, or one positive number."
    check_count("num", num, minimum=2, remedy="33 steps make a readable curve.")
    if isinstance(extent, np.ndarray | Tensor):
        extent = extent.tolist()
    if isinstance(extent, Sequence):
        if len(extent) != 2:
            raise ValueError(argument_message(argument, f"is {extent!r}", "(first, last)", remedy))
        first, last = (check_real(argument, end, remedy=remedy) for end in extent)
    else:
        last = check_real(argument, extent, remedy=remedy)
        first = -last
    if not first < last:
        raise ValueError(argument_message(argument, f"is ({first:g}, {last:g})", "first < last", remedy))
    found = np.linspace(first, last, num)
    if first == -last:
        found = 0.5 * (found - found[::-1])
    found[np.abs(found) < 1e-12 * max(abs(first), abs(last))] = 0.0
    return torch.from_numpy(found)


def _shares(lengths: np.ndarray, total: int) -> list[int]:
    """`total` steps shared among segments by length, at least one each, by largest remainder."""
    ideal = lengths / lengths.sum() * (total - len(lengths))
    counts = np.floor(ideal).astype(int)
    missing = total - len(lengths) - counts.sum()
    counts[np.argsort(counts - ideal, kind="stable")[:missing]] += 1
    return [int(count) + 1 for count in counts]
