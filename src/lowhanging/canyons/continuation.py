"""Numerical continuation of a canyon: a branch of stationary points, followed from shell to shell.

A branch of stationary points is a curve theta(r). Differentiating P g = 0 along it gives, with n = delta / r and t
orthogonal to n,

    d theta / d r = n + t,    (P H P - (n.g / r) P) t = -P H n,

in the coordinates of the shell (euclidean: theta itself; hessian: y = M^(1/2) delta). One step predicts along it and
corrects by Newton steps on the next sphere. It counts only if prediction and correction agree, forwards and, from the
new point, backwards, to a share of the angle travelled. Where a branch merely bends that holds for short enough steps;
at a fold or a pitchfork it never does, however short the step. So what remains when the step has become smallest is an
event, bracketed by it, and no other branch is followed unnoticed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.canyons.find import check_rtol
from lowhanging.canyons.point import (
    CERTIFICATES,
    NUMBERS,
    CanyonPoint,
    CanyonPoints,
    Evaluations,
    canyon_point,
    plane_certificate,
)
from lowhanging.canyons.shell import SHELLS, Array, Shell, Space
from lowhanging.canyons.sphere_search import SpherePoint, SphereSearch, TangentHessian
from lowhanging.curvature.operators import plain_arithmetic
from lowhanging.errors import (
    NotConvergedError,
    a_type,
    argument_message,
    check_choice,
    check_count,
    check_real,
    door,
)
from lowhanging.io import ResumeFile, digest
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.protocol import Loss, check_loss
from lowhanging.steering.cues import ConflictControl

_STEPS = 20  # between the ends, by default
_AGREE = 0.3  # share of the angle travelled by which prediction and correction may differ, forwards and backwards ...
_AGREE_ANYWAY = 2e-3  # ... plus this, in radians
_FARTHEST = 0.32  # radians between neighbours, a cosine of 0.95: beyond it is another branch
_SMALLEST = 64  # the step is halved down to this part of it
_MIN_SCALE = 1e-2  # of |K| rho, see SphereSearch
_MOST_CUTS = 12  # evaluations to bracket a change of sign
_CROSSINGS = {"crossing": "shell_eigenvalue", "plane": "plane_eigenvalue"}  # kind of event -> what changes its sign


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


@dataclass(frozen=True, eq=False, repr=False)
class CanyonPath(CanyonPoints):
    """A branch followed over levels, ascending."""

    points: tuple[CanyonPoint, ...]
    events: tuple[CanyonEvent, ...]  # ascending
    metric: str
    losses: dict[str, float]  # of every evaluated loss, at theta0
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

    def values(self, name: str, *, of: Literal["point", "loss"] | None = None) -> Tensor:
        """A number of every point, (m,) float64; NaN where it is not known.

        Args:
            name: a numeric field of `CanyonPoint`, "relative_rise", or the name of an evaluated loss.
            of: "point" for the field, "loss" for the loss; needed only where a loss is called like a field.

        Raises:
            ValueError: no such field or loss; a name that is both, without `of`.
        """
        if of is not None:
            check_choice("of", of, ("point", "loss"))
        is_loss = of != "point" and all(name in point.losses for point in self.points)
        is_field = of != "loss" and name in NUMBERS and any(getattr(point, name) is not None for point in self.points)
        if is_loss and is_field:
            received = f"is {name!r}, a field of CanyonPoint and an evaluated loss"
            remedy = f'Pass values({name!r}, of="loss") for the loss, of="point" for the field.'
            raise ValueError(argument_message("name", received, "one of the two", remedy))
        if not is_loss and not is_field:
            expected = "a numeric field of CanyonPoint or an evaluated loss"
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
        crossings = [kind for kind, eigenvalue in _CROSSINGS.items() if eigenvalue in CERTIFICATES[self.metric]]
        kinds = ("birth", "merge", *crossings)
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


@door
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
        loss: the loss in which the point was found, around the same theta0.
        point: where to start: of a `CanyonSet`. Its space and metric are used.
        to: level (r, or E) to follow to; (inner, outer) for both ways.
        step: largest step of rho, which is r, or sqrt(2 E); by default a twentieth of the way. It is halved, down to a
            64th, where the branch bends; events are bracketed to that.
        evaluate: name -> loss to evaluate at every point; or one loss.
        conflict: as in `find_canyons`.
        rtol: as in `find_canyons`.
        max_gradients: number of gradients after which no new step begins; no limit by default.
        resume: npz file that keeps the path so far, written for no more than a tenth of the time: the same call
            continues from it, bit for bit.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        CanyonPath: the points, ascending in level, `.events` as intervals, `.merge_radius`.

    Raises:
        NotConvergedError: the budget ran out; `.result` has the path so far.
        ValueError, TypeError: a point that is not stationary for this loss, levels that are not positive, a resume file
            of another call.
        DamagedFileError: the resume file is not whole.

    Cost:
        per step 2 to 4 gradients and dim products; a sign change takes about four such steps to bracket.

    Source:
        Allgower & Georg (2003), "Introduction to Numerical Continuation Methods", for predictor and corrector.
    """
    begun = time.perf_counter()
    check_loss("loss", loss)
    if not isinstance(point, CanyonPoint):
        raise TypeError(argument_message("point", f"is {a_type(point)}", "a CanyonPoint", "Pass canyons[0]."))
    rtol = check_rtol(rtol, loss)
    budget = 10**18 if max_gradients is None else check_count("max_gradients", max_gradients, remedy="Leave it out.")
    evaluations = Evaluations(loss, evaluate, conflict)
    space: Space = "full" if point.space is None else point.space
    shell = SHELLS[point.metric](loss, space, point.min_curvature or None)
    goals = _check_goals(to, point.level)
    remedy = "It is the largest change of rho in one step; leave it out for a twentieth of the way."
    longest = max(abs(shell.radius_of(goal) - shell.radius_of(point.level)) for goal in goals) / _STEPS
    longest = longest if step is None else check_real("step", step, minimum=0.0, exclusive=True, remedy=remedy)
    branch = Continuation(shell, rtol, evaluations, goals, longest)
    file, state = None, None
    if resume is not None:
        theta = point.theta.to(loss.theta0)
        identity = {
            "point or theta0": digest(point.delta, loss.theta0.cpu()),
            "arguments": repr((goals, longest, rtol, point.metric, point.min_curvature)),
            "evaluated losses or conflict control": repr([evaluations.at(each) for each in (loss.theta0, theta)]),
            "loss": repr((shell.center_value, float(loss(theta)))),
            "space": "full" if point.space is None else digest(point.space.basis),
        }
        file = ResumeFile(resume, identity, kind="a canyon's path")
        state = file.read()
    if file is None or state is None:
        branch.start(point)
    else:
        with file.decoding():
            branch.restore(state)
    delay, num = 2.0 if progress is None else 0.0, len(branch.points)
    try:
        with tqdm(desc="canyon", unit=" points", disable=is_silent(progress), delay=delay, initial=num) as bar:
            while not branch.is_done and shell.num_gradients < budget:
                branch.advance()
                bar.update(len(branch.points) - bar.n)
                bar.set_postfix_str(f"level {shell.level_of(branch.radius):.3g}", refresh=False)
                if file is not None:
                    file.keep(branch.state(), now=branch.is_done)
    finally:
        if file is not None:
            file.flush()
    result = CanyonPath(
        points=tuple(sorted(branch.points, key=lambda found: found.level)),
        events=tuple(sorted(branch.events, key=lambda event: event.low)),
        metric=point.metric,
        start=point.level,
        to=goals,
        step=longest,
        rtol=rtol,
        is_complete=branch.is_done,
        num_gradients=shell.num_gradients,
        num_products=shell.num_products,
        seconds=time.perf_counter() - begun,
        **evaluations.at_theta0,
    )
    if not branch.is_done:
        message = f"trace_canyon spent its {budget} gradients at level {shell.level_of(branch.radius):.3g}."
        raise NotConvergedError(f"{message}\nRaise max_gradients=, or lengthen step=.", result)
    return result


class Continuation:
    """Follows one branch to one goal after the other, step by step.

    Attributes:
        points, events: what was found so far, in the order of finding.
        is_done: whether every goal was reached, or its branch ended before.
    """

    def __init__(self, shell: Shell, rtol: float, evaluations: Evaluations, goals: tuple[float, ...], longest: float):
        self.shell, self.rtol, self.evaluations, self.goals, self.longest = shell, rtol, evaluations, goals, longest
        self.points: list[CanyonPoint] = []
        self.events: list[CanyonEvent] = []
        self._leg, self._length, self._newest = 0, longest, 0  # the goal's number, the next step, the newest point's
        self._first: Array  # coordinates of the given point, made stationary
        self._here: TangentHessian  # at the newest point

    @property
    def is_done(self) -> bool:
        """Whether there is no goal left."""
        return self._leg == len(self.goals)

    @property
    def radius(self) -> float:
        """Of the newest point, rho."""
        return self._here.point.radius

    def start(self, given: CanyonPoint) -> None:
        """Begin at the given point."""
        y = self.shell.coordinates(given.delta)
        point = SpherePoint.towards(self.shell, y, self.shell.radius_of(given.level))
        search = self._search(TangentHessian(self.shell, point), point.radius)
        self._here = search.newton(point)
        found = self._here.point
        if not search.is_stationary(found) or _angle(found.y, y) > _AGREE_ANYWAY:
            received = (
                f"is not stationary for this loss (|P g| {point.residual:.2g}, allowed {search.tolerance(point):.2g})"
            )
            remedy = "Pass a point that find_canyons found for this loss, around the same theta0, with the same rtol."
            raise ValueError(argument_message("point", received, "a point on a branch of stationary ones", remedy))
        self._first = found.y
        self._add(given.level, search)

    def advance(self) -> None:
        """One step towards the present goal, or a shorter attempt."""
        goal = self.shell.radius_of(self.goals[self._leg])
        before, left = self._here, goal - self.radius
        is_last = abs(left) <= self._length * (1 + 1e-9)
        radius = goal if is_last else self.radius + np.sign(left) * self._length
        can_halve = self._length / 2 >= self.longest / _SMALLEST
        search = self._search(before, radius)
        found, how = self._step(search, before, radius, is_last_try=not can_halve)
        if how != "smooth" and can_halve:
            self._length = min(self._length, abs(left)) / 2
            return
        if found is None:
            # A branch that reached this far beyond would have let half the step pass.
            beyond = self.radius + 2.0 * (radius - self.radius)
            kind = how if how == "undefined" else "birth" if left < 0 else "fold"
            self._event(kind, self._radii(before.point), self._radii(before.point, max(beyond, 0.0)))
            self._next_leg()
            return
        if how == "merge":
            self._event("merge", self._radii(before.point), self._radii(found.point))
        old, self._here = self.points[self._newest], found
        new = self._add(self.goals[self._leg] if is_last else self.shell.level_of(self.radius), search)
        if how == "smooth":
            for kind, eigenvalue in _CROSSINGS.items():
                a, b = getattr(old, eigenvalue), getattr(new, eigenvalue)
                if a * b < 0:
                    self._narrow(kind, before, a, found, b)
        self._length = min(self.longest, 1.5 * self._length if how == "smooth" else self._length)
        if is_last:
            self._next_leg()

    def state(self) -> dict[str, Any]:
        """Everything that the path needs to be continued, as it is now; nothing in it is changed afterwards."""
        return {
            "points": list(self.points),
            "events": list(self.events),
            "start": self._first,
            "here": self._here.point.y,
            "newest": self._newest,
            "leg": self._leg,
            "length": self._length,
            "num_gradients": self.shell.num_gradients,
            "num_products": self.shell.num_products,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.points, self.events = list(state["points"]), list(state["events"])
        self._first, self._leg, self._length = state["start"], state["leg"], state["length"]
        self._newest = state["newest"]
        self._stand(state["here"])
        self.shell.num_gradients, self.shell.num_products = state["num_gradients"], state["num_products"]

    def _stand(self, y: Array) -> None:
        """Return to y, a point that was found before."""
        point = SpherePoint(y, *self.shell.value_and_gradient(y))  # `towards` would rescale y in its last bit
        self._here = TangentHessian(self.shell, point)

    def _next_leg(self) -> None:
        self._leg += 1
        if not self.is_done:
            self._length, self._newest = self.longest, 0
            self._stand(self._first)

    def _search(self, tangent: TangentHessian, radius: float) -> SphereSearch:
        """On a sphere near a point of the branch."""
        size = 0.0 if tangent.matrix is None else float(np.linalg.norm(tangent.matrix, 2))
        return SphereSearch(self.shell, self.rtol, _MIN_SCALE * size * radius)

    def _step(
        self, search: SphereSearch, before: TangentHessian, radius: float, *, is_last_try: bool
    ) -> tuple[TangentHessian | None, str]:
        """The stationary point of the next sphere near the prediction, and how it continues the branch.

        "smooth"; "bend": the branch turns ever faster, as before a fold; "merge": onto one that turns less, as beyond a
        fork; "undefined" or "lost", and None, where the loss is not finite or nothing of the same kind is near. Before
        the last try a bend or a merge may be called lost: a shorter step follows anyway.
        """
        point = before.point
        predicted = point.y + (radius - point.radius) * branch_derivative(before)
        found, used = search.approach(SpherePoint.towards(self.shell, predicted, radius), before)
        travelled = _angle(found.y, point.y)
        if not found.is_finite:
            return None, "undefined"
        if not search.is_stationary(found) or travelled > _FARTHEST:
            return None, "lost"
        allowed = _AGREE * travelled + _AGREE_ANYWAY
        if _angle(found.y, predicted) > allowed and not is_last_try:
            return None, "lost"  # for a shorter step: its certificate is not worth a Hessian
        after = used if used.point is found else TangentHessian(self.shell, found)
        back = found.y + (point.radius - radius) * branch_derivative(after)
        if max(_angle(found.y, predicted), _angle(back, point.y)) <= allowed:
            return after, "smooth"
        near = 4.0 * _turning(before) * abs(radius - point.radius) / radius + _AGREE_ANYWAY
        if 2.0 * _turning(after) < _turning(before) and travelled <= near:
            return after, "merge"
        if after.lowest * before.lowest < 0:  # round the fold, on the way back
            return None, "lost"
        return after, "bend"

    def _narrow(self, kind: str, one: TangentHessian, value: float, other: TangentHessian, other_value: float) -> None:
        """Bracket a change of sign between two neighbours to the smallest step, by secants."""
        low, high = (one, value), (other, other_value)
        width = self.longest / _SMALLEST
        for _ in range(_MOST_CUTS):
            a, b = low[0].point.radius, high[0].point.radius
            if abs(b - a) <= width:
                break
            root = a + (b - a) * low[1] / (low[1] - high[1])
            # A little to the side of the longer part: then the root is soon between two close points.
            root += 0.4 * width * np.sign(b - a) * (1.0 if abs(root - a) < abs(b - root) else -1.0)
            root = min(max(root, min(a, b) + 0.05 * abs(b - a)), max(a, b) - 0.05 * abs(b - a))
            near = low[0] if abs(root - a) < abs(b - root) else high[0]
            found, how = self._step(self._search(near, root), near, root, is_last_try=False)
            if found is None or how != "smooth":
                break
            at = found.lowest if kind == "crossing" else plane_certificate(found)[0]
            if at * low[1] > 0:
                low = (found, at)
            else:
                high = (found, at)
        self._event(kind, self._radii(low[0].point), self._radii(high[0].point))

    def _add(self, level: float, search: SphereSearch) -> CanyonPoint:
        point = canyon_point(
            self.shell,
            self._here,
            search.tolerance(self._here.point),
            self.evaluations,
            level=level,
            num_starts=0,
            source="continuation",
            duplicate_of=None,
            num_gradients=self.shell.num_gradients,
            num_products=self.shell.num_products,
        )
        self._newest = len(self.points)
        self.points.append(point)
        return point

    def _radii(self, point: SpherePoint, radius: float | None = None) -> tuple[float, float]:
        """Rho and |delta| of a point; of a sphere near it, where the branch is not known, by proportion."""
        length = float(np.linalg.norm(self.shell.flat(point.y)))
        return (point.radius, length) if radius is None else (radius, length * radius / point.radius)

    def _event(self, kind: str, a: tuple[float, float], b: tuple[float, float]) -> None:
        """Between two (rho, |delta|); one that touches an event of its kind is part of it."""
        (low, near), (high, far) = sorted([a, b])
        event = CanyonEvent(kind, self.shell.level_of(float(low)), self.shell.level_of(float(high)), near, far)
        for i, other in enumerate(self.events):
            if other.kind == kind and event.low <= other.high and other.low <= event.high:
                first = min(event, other, key=lambda part: part.low)
                last = max(event, other, key=lambda part: part.high)
                self.events[i] = replace(first, high=last.high, radius_high=last.radius_high)
                return
        self.events.append(event)


def branch_derivative(tangent: TangentHessian) -> Array:
    """Dy / d rho = n + t of the branch through a stationary point, (dim,)."""
    return np.asarray(tangent.point.normal - tangent.solve(tangent.times_normal()))


def _turning(tangent: TangentHessian) -> float:
    """|t|: how much a branch moves sideways per unit of rho."""
    return float(np.linalg.norm(tangent.solve(tangent.times_normal())))


def _angle(a: Array, b: Array) -> float:
    """Between two vectors, in radians; small ones to full accuracy."""
    unit_a, unit_b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return 2.0 * float(np.arctan2(np.linalg.norm(unit_a - unit_b), np.linalg.norm(unit_a + unit_b)))


def _check_goals(to: Any, level: float) -> tuple[float, ...]:
    """The levels to follow to, one or two."""
    to = to.tolist() if isinstance(to, Tensor | np.ndarray) else to
    remedy = f"The point is at level {level:g}: pass another level, or (inner, outer) around it."
    given = tuple(to) if isinstance(to, Sequence) and not isinstance(to, str) else (to,)
    goals = tuple(check_real("to", goal, minimum=0.0, exclusive=True, remedy=remedy) for goal in given)
    is_one = len(goals) == 1 and goals[0] != level
    if not (is_one or (len(goals) == 2 and goals[0] < level < goals[1])):
        expected = "a level, or one below and one above that of the point"
        raise ValueError(argument_message("to", f"is {to!r}", expected, remedy))
    return goals
