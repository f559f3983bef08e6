r"""Where does a canyon lead, how far inwards does it reach, and what happens on the way?

A branch of stationary points is a curve theta(r). Differentiating P g = 0 along it gives, with n = delta / r and t
orthogonal to n,

    d theta / d r = n + t,    (P H P - (n.g / r) P) t = -P H n,

in the coordinates of the shell (euclidean: theta itself; hessian: y = M^(1/2) delta). One step predicts along it and
corrects by Newton steps on the next sphere (`canyon_steps.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.basin.canyon_arguments import check_around, check_rtol
from lowhanging.basin.canyon_points import NUMBERS, CanyonPoint, restored, stored
from lowhanging.basin.canyon_steps import CanyonEvent, Tracer, TraceState
from lowhanging.basin.conflict import ConflictControl
from lowhanging.basin.shells import Shell
from lowhanging.basin.stationary import SphereSearch
from lowhanging.basin.subspace import Subspace
from lowhanging.basin.symmetric_operator import plain_arithmetic
from lowhanging.errors import NotConvergedError, a_type, check_choice, check_count, check_real, explain
from lowhanging.loss import Loss, check_loss
from lowhanging.ranks import is_silent
from lowhanging.results import digest, load_result, resume_path, save_result

_STEPS = 20  # between the ends, by default


@dataclass(frozen=True, eq=False, repr=False)
class CanyonPath(Sequence[CanyonPoint]):
    """A branch followed over levels, ascending."""

    points: tuple[CanyonPoint, ...]
    events: tuple[CanyonEvent, ...]  # ascending
    metric: str
    losses: dict[str, float]  # of every evaluated objective, at theta0
    accuracies: dict[str, float]
    followed: dict[str, float]
    start: float  # level of the point that was followed
    to: tuple[float, ...]
    step: float  # largest step of rho: r, or sqrt(2 E)
    rtol: float
    is_complete: bool  # whether the budget sufficed
    num_gradients: int
    num_products: int
    seconds: float

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Any:
        return self.points[index]

    def __iter__(self) -> Iterator[CanyonPoint]:
        return iter(self.points)

    def values(self, name: str, *, of: Literal["point", "loss"] | None = None) -> Tensor:
        """A number of every point, (m,) float64; NaN where it is not known.

        Args:
            name: a numeric field of `CanyonPoint`, "depth", or the name of an evaluated objective.
            of: "point" for the field, "loss" for the objective; needed only where an objective is called like a field.

        Raises:
            ValueError: no such field or objective; a name that is both, without `of`.
        """
        if of is not None:
            check_choice("of", of, ("point", "loss"))
        is_loss = of != "point" and all(name in point.losses for point in self.points)
        is_field = of != "loss" and name in NUMBERS and any(getattr(point, name) is not None for point in self.points)
        if is_loss and is_field:
            received = f"is {name!r}, a field of CanyonPoint and an evaluated objective"
            remedy = f'Pass values({name!r}, of="loss") for the objective, of="point" for the field.'
            raise ValueError(explain("name", received, "one of the two", remedy))
        if not is_loss and not is_field:
            expected = "a numeric field of CanyonPoint or an evaluated objective"
            raise ValueError(explain("name", f"is {name!r}", expected, 'Name one, such as "loss" or "slope".'))
        found = [point.losses[name] if is_loss else getattr(point, name) for point in self.points]
        return torch.tensor([math.nan if value is None else float(value) for value in found], dtype=torch.float64)

    @property
    def merge_radius(self) -> tuple[float, float]:
        """Interval of |delta| in which the branch, followed inwards, stops being a canyon of its own.

        By birth, merge or crossing (on spheres also where its plane eigenvalue changes sign), the first one met inwards
        from the start; (0, innermost radius) where it was one down to the end of the path; NaN where the start is not
        certified.
        """
        begun = min(self.points, key=lambda point: abs(point.level - self.start))
        if not begun.is_certified:
            return math.nan, math.nan
        kinds = ("birth", "merge", "crossing", *(("plane",) if self.metric == "euclidean" else ()))
        inwards = [event for event in self.events if event.kind in kinds and event.low < self.start]
        if inwards:
            first = max(inwards, key=lambda event: event.high)
            return first.radius_low, first.radius_high
        return 0.0, self.points[0].radius

    def __repr__(self) -> str:
        first, last = self.points[0], self.points[-1]
        name = "r" if self.metric == "euclidean" else "E"
        texts = [f"{event.kind} at {event.low:.4g} to {event.high:.4g}" for event in self.events]
        num = sum(point.is_certified for point in self.points)
        state = "" if self.is_complete else "; BUDGET SPENT, INCOMPLETE"
        return (
            f"CanyonPath({len(self)} points, {num} certified, {name} = {first.level:.3g} to {last.level:.3g}; "
            f"rise {first.rise:.3g} to {last.rise:.3g}; {', '.join(texts) or 'no events'}{state}; "
            f"{self.num_gradients} gradients, {self.num_products} products)"
        )

    def save(self, path: str | Path) -> Path:
        """Write to npz, without the objectives."""
        space = self.points[0].space
        basis = torch.zeros((0, 0)) if space is None else space.basis
        plain = {name: getattr(self, name) for name in _PLAIN}
        events = [vars(event) for event in self.events]
        return save_result(_Stored(basis=basis, plain=plain, events=events, **stored(self.points)), path)

    @classmethod
    def load(cls, path: str | Path) -> CanyonPath:
        """Read what `save` wrote."""
        found = load_result(_Stored, path)
        space = Subspace(found.basis) if found.basis.numel() else None
        return cls(
            points=restored(found.deltas, found.thetas, found.records, space),
            events=tuple(CanyonEvent(**event) for event in found.events),
            **{**found.plain, "to": tuple(found.plain["to"])},
        )


_PLAIN = (
    "metric", "losses", "accuracies", "followed", "start", "to", "step", "rtol", "is_complete", "num_gradients",
    "num_products", "seconds",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Stored:
    """A CanyonPath as tensors and plain values."""

    deltas: Tensor
    thetas: Tensor
    records: list[dict[str, Any]]
    basis: Tensor
    events: list[dict[str, Any]]
    plain: dict[str, Any]


@torch.inference_mode(False)
@plain_arithmetic()
def trace_canyon(
    loss: Loss,
    point: CanyonPoint,
    *,
    to: float | tuple[float, float],
    step: float | None = None,
    evaluate: Mapping[str, Loss] | None = None,
    conflict: ConflictControl | None = None,
    rtol: float | None = None,
    max_gradients: int | None = None,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> CanyonPath:
    r"""Follow a canyon outwards, inwards, or both ways, and bracket what happens to it.

    Args:
        loss: the objective in which the point was found, around the same theta0.
        point: where to start: of a `CanyonSet`. Its space, metric and floor are used.
        to: level (r, or E) to follow to; (inner, outer) for both ways.
        step: largest step of rho, which is r, or sqrt(2 E); by default a twentieth of the way. It is halved, down to a
            64th, where the branch bends; events are bracketed to that.
        evaluate: name -> objective to evaluate at every point.
        conflict: as in `find_canyons`.
        rtol: as in `find_canyons`.
        max_gradients: number of gradients after which no new step begins; no limit by default.
        resume: npz file written after every step: the same call continues from it, to the same bits.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        CanyonPath: the points, ascending in level, `.events` as intervals, `.merge_radius`.

    Raises:
        NotConvergedError: the budget ran out; `.result` has the path so far.
        ValueError, TypeError: a point that is not stationary for this loss, levels that are not positive, a resume file
            of another call.

    Cost:
        per step 2 to 4 gradients and dim products; a sign change takes about four such steps to bracket.

    Source:
        Allgower & Georg (2003), "Introduction to Numerical Continuation Methods", for predictor and corrector; the
        equation for t is derived above.
    """
    begun = time.perf_counter()
    check_loss("loss", loss)
    if not isinstance(point, CanyonPoint):
        raise TypeError(explain("point", f"is {a_type(point)}", "a CanyonPoint", "Pass canyons[0]."))
    tol = check_rtol(rtol, loss)
    budget = 10**18 if max_gradients is None else check_count("max_gradients", max_gradients, remedy="Leave it out.")
    around = check_around(loss, evaluate, conflict)
    shell = Shell(loss, "full" if point.space is None else point.space, point.metric, point.floor or None)  # type: ignore[arg-type]
    goals = _goals(to, point.level)
    remedy = "It is the largest change of rho in one step; leave it out for a twentieth of the way."
    longest = max(abs(shell.radius_of(goal) - shell.radius_of(point.level)) for goal in goals) / _STEPS
    longest = longest if step is None else check_real("step", step, minimum=0.0, exclusive=True, remedy=remedy)
    tracer = Tracer(SphereSearch(shell, rtol=tol), around, point, goals, longest)
    identity = {
        "point or theta0": digest(point.delta, loss.theta0.cpu()),
        "arguments": repr((goals, longest, tol, point.metric, point.floor)),
        "evaluated objectives or conflict control": repr(
            [around.values_at(theta) for theta in (loss.theta0, point.theta.to(loss.theta0))]
        ),
        "loss": repr((shell.center_value, float(loss(point.theta.to(loss.theta0))))),
        "space": "full" if point.space is None else digest(point.space.basis),
    }
    file = None if resume is None else resume_path(resume)
    tracer.start(None if file is None else _read(file, identity))
    delay = 2.0 if progress is None else 0.0
    with tqdm(desc="canyon", unit="point", disable=is_silent(progress), delay=delay, initial=len(tracer.points)) as bar:
        while not tracer.is_done and shell.num_gradients < budget:
            tracer.advance()
            bar.update(len(tracer.points) - bar.n)
            bar.set_postfix_str(f"level {shell.level_of(tracer.radius):.3g}", refresh=False)
            if file is not None:
                save_result(tracer.state(identity), file)
    result = CanyonPath(
        points=tuple(sorted(tracer.points, key=lambda found: found.level)),
        events=tuple(sorted(tracer.events, key=lambda event: event.low)),
        metric=point.metric,
        losses=around.losses,
        accuracies=around.accuracies,
        followed=around.followed,
        start=point.level,
        to=goals,
        step=longest,
        rtol=tol,
        is_complete=tracer.is_done,
        num_gradients=shell.num_gradients,
        num_products=shell.num_products,
        seconds=time.perf_counter() - begun,
    )
    if not tracer.is_done:
        message = f"trace_canyon spent its {budget} gradients at level {shell.level_of(tracer.radius):.3g}."
        raise NotConvergedError(f"{message}\nRaise max_gradients=, or lengthen step=.", result)
    return result


def _goals(to: Any, level: float) -> tuple[float, ...]:
    """The levels to follow to, one or two."""
    to = to.tolist() if isinstance(to, Tensor | np.ndarray) else to
    remedy = f"The point is at level {level:g}: pass another level, or (inner, outer) around it."
    given = tuple(to) if isinstance(to, Sequence) and not isinstance(to, str) else (to,)
    goals = tuple(check_real("to", goal, minimum=0.0, exclusive=True, remedy=remedy) for goal in given)
    is_one = len(goals) == 1 and goals[0] != level
    if not (is_one or (len(goals) == 2 and goals[0] < level < goals[1])):
        raise ValueError(explain("to", f"is {to!r}", "a level, or one below and one above that of the point", remedy))
    return goals


def _read(path: Path, identity: Mapping[str, str]) -> TraceState | None:
    """What an interrupted run left, None where there is no file, an error where it belongs to another run."""
    if not path.exists():
        return None
    expected = "a new file or that of this call"
    try:
        state = load_result(TraceState, path)
    except (ValueError, TypeError, OSError) as error:
        received = f"is {str(path)!r}, no resume file of a canyon"
        raise ValueError(explain("resume", received, expected, "Name another file.")) from error
    different = [key for key in identity if identity[key] != state.identity.get(key)]
    if different:
        received = f"is {str(path)!r}, the file of a run with another {', '.join(different)}"
        raise ValueError(explain("resume", received, expected, "Name another file, or repeat the call that made it."))
    return state
