"""How is a branch of stationary points followed without changing to another one unnoticed?

A step predicts along the branch's tangent and corrects on the next sphere. It counts only if prediction and correction
agree, forwards and, from the new point, backwards, to a share of the angle travelled. Where a branch merely bends that
holds for short enough steps; at a fold or a pitchfork it never does, however short the step. So what remains when
the step has become smallest is an event, bracketed by it.

Where does a canyon lead, how far inwards does it reach, and what happens on the way?

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

from lowhanging.canyons.find import check_around, check_rtol
from lowhanging.canyons.point import (
    NUMBERS,
    CanyonPoint,
    Evaluations,
    canyon_point,
    plane_certificate,
)
from lowhanging.canyons.shell import Array, Shell
from lowhanging.canyons.sphere_search import SpherePoint, SphereSearch, TangentHessian
from lowhanging.curvature.operators import plain_arithmetic
from lowhanging.errors import NotConvergedError, a_type, argument_message, check_choice, check_count, check_real
from lowhanging.io import ResumeFile, Saved, digest
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.protocol import Loss, check_loss
from lowhanging.steering.cues import ConflictControl

_AGREE = 0.3  # share of the angle travelled by which prediction and correction may differ, forwards and backwards ...
_AGREE_FLOOR = 2e-3  # ... plus this, in radians
_FARTHEST = 0.32  # radians between neighbours, a cosine of 0.95: beyond it is another branch
_SMALLEST = 64  # the step is halved down to this part of it
_FLOOR = 1e-2  # of |K| rho: see SphereSearch.floor
_MOST_CUTS = 12  # evaluations to bracket a change of sign

Spot = tuple[SpherePoint, TangentHessian]


@dataclass(frozen=True)
class CanyonEvent:
    """Something that happens to a branch between two levels.

    kind: "birth" (inwards the branch ends here: going out it is born), "fold" (outwards it ends), "merge" (it runs into
    another branch, which is followed on), "crossing" (its shell eigenvalue changes sign: another branch crosses or
    splits off, and this one gains or loses its certificate), "plane" (its plane eigenvalue changes sign), "undefined"
    (beyond it the loss is not finite, and the path ends).
    """

    kind: str
    low: float  # the levels that bracket it
    high: float
    radius_low: float  # the same as |delta|
    radius_high: float

    def __repr__(self) -> str:
        return f"CanyonEvent({self.kind} between {self.low:.4g} and {self.high:.4g})"


class Continuation:
    """Follows one branch to one goal after the other, step by step.

    Attributes:
        points, events: what was found so far, in the order of finding.
        is_done: whether every goal was reached, or its branch ended before.
    """

    def __init__(
        self, search: SphereSearch, around: Evaluations, point: CanyonPoint, goals: tuple[float, ...], longest: float
    ):
        self.search, self.shell, self.around, self.point = search, search.shell, around, point
        self.goals = [self.shell.radius_of(goal) for goal in goals]
        self.levels = goals
        self.longest = longest
        self.points: list[CanyonPoint] = []
        self.events: list[CanyonEvent] = []
        self.leg, self.length, self.newest = 0, longest, 0

    @property
    def is_done(self) -> bool:
        """Whether there is no goal left."""
        return self.leg == len(self.goals)

    @property
    def radius(self) -> float:
        """Of the newest point, rho."""
        return self.place.radius

    def start(self, state: Mapping[str, Any] | None) -> None:
        """From the given point, or from where an interrupted run was."""
        if state is not None:
            self._restore(state)
            return
        given = self.shell.coordinates(self.point.delta)
        place = self.search.place(given, self.shell.radius_of(self.point.level))
        self._scale(TangentHessian(self.shell, place), place.radius)
        self.place, self.tangent = self.search.newton(place)
        if not self.search.is_stationary(self.place) or _angle(self.place.y, given) > _AGREE_FLOOR:
            sizes = f"|P g| {place.residual:.2g}, allowed {self.search.tolerance(place):.2g}"
            received = f"is not stationary for this loss ({sizes})"
            remedy = "Pass a point that find_canyons found for this loss, around the same theta0, with the same rtol."
            raise ValueError(argument_message("point", received, "a point on a branch of stationary ones", remedy))
        self.first = self.place.y
        self._add(self.point.level)

    def advance(self) -> None:
        """One step towards the present goal, or a shorter attempt."""
        goal = self.goals[self.leg]
        left = goal - self.place.radius
        is_last = abs(left) <= self.length * (1 + 1e-9)
        radius = goal if is_last else self.place.radius + np.sign(left) * self.length
        can_halve = self.length / 2 >= self.longest / _SMALLEST
        spot, how = self._step((self.place, self.tangent), radius, is_last_try=not can_halve)
        if how != "smooth" and can_halve:
            self.length = min(self.length, abs(left)) / 2
            return
        if spot is None:
            # A branch that reached this far beyond would have let half the step pass.
            beyond = self.place.radius + 2.0 * (radius - self.place.radius)
            kind = how if how == "undefined" else "birth" if left < 0 else "fold"
            self._event(kind, self._where(self.place), self._where(self.place, max(beyond, 0.0)))
            self._next_leg()
            return
        if how == "merge":
            self._event("merge", self._where(self.place), self._where(spot[0]))
        before, old = (self.place, self.tangent), self.points[self.newest]
        self.place, self.tangent = spot
        new = self._add(self.levels[self.leg] if is_last else None)
        if how == "smooth":
            for kind, a, b in (
                ("crossing", old.shell_eigenvalue, new.shell_eigenvalue),
                ("plane", old.plane_eigenvalue, new.plane_eigenvalue),
            ):
                if a * b < 0:
                    self._narrow(kind, before, a, spot, b)
        self.length = min(self.longest, 1.5 * self.length if how == "smooth" else self.length)
        if is_last:
            self._next_leg()

    def state(self) -> dict[str, Any]:
        """Everything that the path needs to be continued."""
        return {
            "points": list(self.points),
            "events": list(self.events),
            "start": self.first.copy(),
            "here": self.place.y.copy(),
            "newest": self.newest,
            "leg": self.leg,
            "length": self.length,
            "num_gradients": self.shell.num_gradients,
            "num_products": self.shell.num_products,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.points, self.events = list(state["points"]), list(state["events"])
        self.first, self.leg, self.length = state["start"], state["leg"], state["length"]
        self.newest = state["newest"]
        self._stand(state["here"])
        self.shell.num_gradients, self.shell.num_products = state["num_gradients"], state["num_products"]

    def _stand(self, y: Array) -> None:
        """Take one's place at y, a point that was found before."""
        value, gradient = self.shell.value_and_gradient(y)  # not search.place: rescaling would change the last bit
        self.place = SpherePoint(y, value, gradient)
        self.tangent = TangentHessian(self.shell, self.place)

    def _next_leg(self) -> None:
        self.leg += 1
        if not self.is_done:
            self.length, self.newest = self.longest, 0
            self._stand(self.first)

    def _step(self, spot: Spot, radius: float, *, is_last_try: bool) -> tuple[Spot | None, str]:
        """The stationary point of the next sphere near the prediction, and how it continues the branch.

        "smooth"; "bend": the branch turns ever faster, as before a fold; "merge": onto one that turns less, as beyond a
        fork; "lost", and None, where nothing of the same kind is near. The last two are told apart only in a last try.
        """
        place, tangent = spot
        self._scale(tangent, radius)
        predicted = place.y + (radius - place.radius) * along(tangent)
        found, used = self.search.approach(self.search.place(predicted, radius), tangent)
        travelled = _angle(found.y, place.y)
        if found.value == np.inf:
            return None, "undefined"
        if not self.search.is_stationary(found) or travelled > _FARTHEST:
            return None, "lost"
        allowed = _AGREE * travelled + _AGREE_FLOOR
        if _angle(found.y, predicted) > allowed and not is_last_try:
            return None, "lost"  # for a shorter step: its certificate is not worth a Hessian
        its_tangent = used if used.place is found else TangentHessian(self.shell, found)
        back = found.y + (place.radius - radius) * along(its_tangent)
        if max(_angle(found.y, predicted), _angle(back, place.y)) <= allowed:
            return (found, its_tangent), "smooth"
        near = 4.0 * _turning(tangent) * abs(radius - place.radius) / radius + _AGREE_FLOOR
        if 2.0 * _turning(its_tangent) < _turning(tangent) and travelled <= near:
            return (found, its_tangent), "merge"
        if its_tangent.lowest * tangent.lowest < 0:  # round the fold, on the way back
            return None, "lost"
        return (found, its_tangent), "bend"

    def _narrow(self, kind: str, spot: Spot, value: float, other: Spot, other_value: float) -> None:
        """Bracket a change of sign between two neighbours to the smallest step, by secants."""
        low, high = (spot, value), (other, other_value)
        width = self.longest / _SMALLEST
        for _ in range(_MOST_CUTS):
            a, b = low[0][0].radius, high[0][0].radius
            if abs(b - a) <= width:
                break
            root = a + (b - a) * low[1] / (low[1] - high[1])
            # A little to the side of the longer part: then the root is soon between two close points.
            root += 0.4 * width * np.sign(b - a) * (1.0 if abs(root - a) < abs(b - root) else -1.0)
            root = min(max(root, min(a, b) + 0.05 * abs(b - a)), max(a, b) - 0.05 * abs(b - a))
            near = low if abs(root - a) < abs(b - root) else high
            found, how = self._step(near[0], root, is_last_try=False)
            if found is None or how != "smooth":
                break
            at = found[1].lowest if kind == "crossing" else plane_certificate(self.shell, *found)[0]
            if at * low[1] > 0:
                low = (found, at)
            else:
                high = (found, at)
        self._event(kind, self._where(low[0][0]), self._where(high[0][0]))

    def _add(self, level: float | None) -> CanyonPoint:
        point = canyon_point(
            self.search,
            self.place,
            self.tangent,
            self.around,
            level=self.shell.level_of(self.place.radius) if level is None else level,
            num_starts=0,
            source="cue_shares",
            duplicate_of=None,
            num_gradients=self.shell.num_gradients,
            num_products=self.shell.num_products,
        )
        self.newest = len(self.points)
        self.points.append(point)
        return point

    def _where(self, place: SpherePoint, radius: float | None = None) -> tuple[float, float]:
        """Rho and |delta| of a place; of a sphere near it, where the branch is not known, by proportion."""
        length = float(np.linalg.norm(self.shell.flat(place.y)))
        return (place.radius, length) if radius is None else (radius, length * radius / place.radius)

    def _event(self, kind: str, a: tuple[float, float], b: tuple[float, float]) -> None:
        """Between two (rho, |delta|); one that touches an event of its kind is part of it."""
        (low, near), (high, far) = sorted([a, b])
        event = CanyonEvent(kind, self.shell.level_of(float(low)), self.shell.level_of(float(high)), near, far)
        for i, other in enumerate(self.events):
            if other.kind == kind and event.low <= other.high and other.low <= event.high:
                ends = (
                    sorted([event, other], key=lambda part: part.low),
                    sorted([event, other], key=lambda part: part.high),
                )
                first, last = ends[0][0], ends[1][-1]
                self.events[i] = CanyonEvent(kind, first.low, last.high, first.radius_low, last.radius_high)
                return
        self.events.append(event)

    def _scale(self, tangent: TangentHessian, radius: float) -> None:
        size = 0.0 if tangent.matrix is None else float(np.linalg.norm(tangent.matrix, 2))
        self.search.floor = _FLOOR * size * radius


def along(tangent: TangentHessian) -> Array:
    """Dy / d rho = n + t of the branch through a stationary point, (dim,)."""
    return np.asarray(tangent.place.normal - tangent.solve(tangent.times_normal()))


def _turning(tangent: TangentHessian) -> float:
    """|t|: how much a branch moves sideways per unit of rho."""
    return float(np.linalg.norm(tangent.solve(tangent.times_normal())))


def _angle(a: Array, b: Array) -> float:
    """Between two vectors, in radians; small ones to full accuracy."""
    unit_a, unit_b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return 2.0 * float(np.arctan2(np.linalg.norm(unit_a - unit_b), np.linalg.norm(unit_a + unit_b)))


_STEPS = 20  # between the ends, by default


@dataclass(frozen=True, eq=False, repr=False)
class CanyonPath(Saved, Sequence[CanyonPoint]):
    """A branch followed over levels, ascending."""

    points: tuple[CanyonPoint, ...]
    events: tuple[CanyonEvent, ...]  # ascending
    metric: str
    losses: dict[str, float]  # of every evaluated objective, at theta0
    accuracies: dict[str, float]
    cue_shares: dict[str, float]
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
            raise ValueError(argument_message("name", received, "one of the two", remedy))
        if not is_loss and not is_field:
            expected = "a numeric field of CanyonPoint or an evaluated objective"
            raise ValueError(argument_message("name", f"is {name!r}", expected, 'Name one, such as "loss" or "slope".'))
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


@torch.inference_mode(False)
@plain_arithmetic()
def trace_canyon(
    loss: Loss,
    point: CanyonPoint,
    *,
    to: float | tuple[float, float],
    step: float | None = None,
    evaluate: Loss | Mapping[str, Loss] | None = None,
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
        evaluate: name -> loss to evaluate at every point; or one loss.
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
        raise TypeError(argument_message("point", f"is {a_type(point)}", "a CanyonPoint", "Pass canyons[0]."))
    tol = check_rtol(rtol, loss)
    budget = 10**18 if max_gradients is None else check_count("max_gradients", max_gradients, remedy="Leave it out.")
    around = check_around(loss, evaluate, conflict)
    shell = Shell(loss, "full" if point.space is None else point.space, point.metric, point.floor or None)  # type: ignore[arg-type]
    goals = _goals(to, point.level)
    remedy = "It is the largest change of rho in one step; leave it out for a twentieth of the way."
    longest = max(abs(shell.radius_of(goal) - shell.radius_of(point.level)) for goal in goals) / _STEPS
    longest = longest if step is None else check_real("step", step, minimum=0.0, exclusive=True, remedy=remedy)
    tracer = Continuation(SphereSearch(shell, rtol=tol), around, point, goals, longest)
    identity = {
        "point or theta0": digest(point.delta, loss.theta0.cpu()),
        "arguments": repr((goals, longest, tol, point.metric, point.floor)),
        "evaluated objectives or conflict control": repr(
            [around.values_at(theta) for theta in (loss.theta0, point.theta.to(loss.theta0))]
        ),
        "loss": repr((shell.center_value, float(loss(point.theta.to(loss.theta0))))),
        "space": "full" if point.space is None else digest(point.space.basis),
    }
    file = None if resume is None else ResumeFile(resume, identity, kind="a canyon's path")
    tracer.start(None if file is None else file.read())
    delay = 2.0 if progress is None else 0.0
    with tqdm(desc="canyon", unit="point", disable=is_silent(progress), delay=delay, initial=len(tracer.points)) as bar:
        while not tracer.is_done and shell.num_gradients < budget:
            tracer.advance()
            bar.update(len(tracer.points) - bar.n)
            bar.set_postfix_str(f"level {shell.level_of(tracer.radius):.3g}", refresh=False)
            if file is not None:
                file.keep(tracer.state(), now=tracer.is_done)
    result = CanyonPath(
        points=tuple(sorted(tracer.points, key=lambda found: found.level)),
        events=tuple(sorted(tracer.events, key=lambda event: event.low)),
        metric=point.metric,
        losses=around.losses,
        accuracies=around.accuracies,
        cue_shares=around.cue_shares,
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
        raise ValueError(
            argument_message("to", f"is {to!r}", "a level, or one below and one above that of the point", remedy)
        )
    return goals
