"""How is a branch of stationary points followed without changing to another one unnoticed?

A step predicts along the branch's tangent and corrects on the next sphere. It counts only if prediction and correction
agree, forwards and, from the new point, backwards, to a share of the angle travelled. Where a branch merely bends that
holds for short enough steps; at a fold or a pitchfork it never does, however short the step. So what remains when
the step has become smallest is an event, bracketed by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.basin.canyon_points import Around, CanyonPoint, canyon_point, plane_certificate, restored, stored
from lowhanging.basin.places import Place, TangentHessian
from lowhanging.basin.shells import Array
from lowhanging.basin.stationary import SphereSearch
from lowhanging.errors import explain

_AGREE = 0.3  # share of the angle travelled by which prediction and correction may differ, forwards and backwards ...
_AGREE_FLOOR = 2e-3  # ... plus this, in radians
_FARTHEST = 0.32  # radians between neighbours, a cosine of 0.95: beyond it is another branch
_SMALLEST = 64  # the step is halved down to this part of it
_FLOOR = 1e-2  # of |K| rho: see SphereSearch.floor
_MOST_CUTS = 12  # evaluations to bracket a change of sign

Spot = tuple[Place, TangentHessian]


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


@dataclass(frozen=True, eq=False)
class TraceState:
    """Everything that a path needs to be continued: the content of a resume file."""

    deltas: Tensor  # (m, p) of the points so far
    thetas: Tensor  # (m, p)
    records: list[dict[str, Any]]
    events: list[dict[str, Any]]
    start: Tensor  # (dim,) coordinates of the first point
    here: Tensor  # (dim,) coordinates of the newest one
    newest: int  # number of the point that it belongs to
    leg: int  # which goal is being followed to
    length: float  # of the next step
    num_gradients: int
    num_products: int
    identity: dict[str, str]


class Tracer:
    """Follows one branch to one goal after the other, step by step.

    Attributes:
        points, events: what was found so far, in the order of finding.
        is_done: whether every goal was reached, or its branch ended before.
    """

    def __init__(
        self, search: SphereSearch, around: Around, point: CanyonPoint, goals: tuple[float, ...], longest: float
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

    def start(self, state: TraceState | None) -> None:
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
            raise ValueError(explain("point", received, "a point on a branch of stationary ones", remedy))
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

    def state(self, identity: dict[str, str]) -> TraceState:
        """What a resume file holds."""
        return TraceState(
            events=[vars(event) for event in self.events],
            start=torch.from_numpy(self.first.copy()),
            here=torch.from_numpy(self.place.y.copy()),
            newest=self.newest,
            leg=self.leg,
            length=self.length,
            num_gradients=self.shell.num_gradients,
            num_products=self.shell.num_products,
            identity=dict(identity),
            **stored(tuple(self.points)),
        )

    def _restore(self, state: TraceState) -> None:
        self.points = list(restored(state.deltas, state.thetas, state.records, self.point.space))
        self.events = [CanyonEvent(**event) for event in state.events]
        self.first, self.leg, self.length = state.start.numpy(), state.leg, state.length
        self.newest = state.newest
        self._stand(state.here.numpy())
        self.shell.num_gradients, self.shell.num_products = state.num_gradients, state.num_products

    def _stand(self, y: Array) -> None:
        """Take one's place at y, a point that was found before."""
        value, gradient = self.shell.value_and_gradient(y)  # not search.place: rescaling would change the last bit
        self.place = Place(y, value, gradient)
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
            source="followed",
            copy_of=None,
            num_gradients=self.shell.num_gradients,
            num_products=self.shell.num_products,
        )
        self.newest = len(self.points)
        self.points.append(point)
        return point

    def _where(self, place: Place, radius: float | None = None) -> tuple[float, float]:
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
