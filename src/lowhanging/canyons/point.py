"""What is known of one stationary point on a shell, and what certifies that it lies on the floor of a canyon?

With n = delta / |delta|, P = I - n n^T, g and H gradient and Hessian of the loss there:

* plane:  smallest eigenvalue of P H P: the post's minimum in all directions orthogonal to the way there. Vacuous in a
  quadratic bowl, where every eigenvector passes; so it is never shown alone.
* sphere: smallest eigenvalue of P H P - (n.g / r) P = plane - n.g / r. The second derivatives of the loss on the sphere
  |delta| = r: positive means a genuine local minimum there.
* shell:  smallest eigenvalue of H - mu M relative to M on the tangent space of M delta, where g = mu M delta. The same
  on the energy shell 1/2 delta^T M delta = E, where a quadratic bowl is constant: positive means genuine anharmonicity.

All three are taken within the space that was searched, and in all of weight space on request.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lowhanging.canyons.shell import Shell
from lowhanging.canyons.sphere_search import SpherePoint, SphereSearch, TangentHessian, complement, lowest_across
from lowhanging.curvature.subspace import Subspace
from lowhanging.errors import argument_message
from lowhanging.objective.protocol import Loss
from lowhanging.steering.cues import ConflictControl, attribute_circuit

TRIVIAL = 0.95  # overlap with the softest axis, or depth, above which a point says nothing beyond the quadratic


@dataclass(frozen=True, eq=False, repr=False)
class CanyonPoint:
    """A stationary point of the loss on a shell around a minimum, with its certificates."""

    delta: Tensor  # (p,) float64, theta - theta0, before theta is rounded to the loss's dtype
    theta: Tensor  # (p,) in the loss's dtype
    metric: str  # of the shell: "hessian" or "euclidean"
    level: float  # r, or E
    radius: float  # |delta|
    energy: float  # 1/2 delta^T H0 delta, what a quadratic bowl rises by; the level E where M = H0
    loss: float
    rise: float  # loss - loss at theta0
    slope: float  # n.g, per unit of distance
    slope_without_anchor: float
    multiplier: float  # mu of g = mu M delta; n.g / r where M = I
    residual: float  # |P g| in the metric's coordinates: distance from being stationary on its shell
    tolerance: float  # what the residual was to reach
    euclidean_residual: float  # |P g| within the space: the two kinds of stationary point differ
    plane_eigenvalue: float
    sphere_eigenvalue: float
    euclidean_error: float  # of these two
    shell_eigenvalue: float  # relative to M; equals sphere_eigenvalue where M = I
    shell_error: float
    num_negative: int | None  # tangent eigenvalues below zero: 0 for a minimum; None: only the smallest is known
    softest_overlap: float  # squared cosine of delta with the space's softest axis
    losses: dict[str, float]  # of every evaluated objective
    accuracies: dict[str, float]
    cue_shares: dict[str, float]  # shares of conflict images answered after each cue, and after neither
    circuit: str | None  # which circuit runs here, if asymmetry and conflict control agree
    circuit_reason: str
    answer_shift: tuple[float, float, float] | None  # towards the better-kept cue, with its 95 % interval
    num_starts: int  # how many starts ended here
    source: str  # where one of them came from
    space: Subspace | None  # that was searched; None: all of weight space
    floor: float  # of the metric
    duplicate_of: int | None  # number, in its level, of an earlier point with the same loss, slope and certificates
    num_gradients: int  # spent on the start that led here and on its Newton steps; on a path: so far
    num_products: int
    full_residual: float | None = None  # |P g| in all of weight space
    full_plane_eigenvalue: float | None = None
    full_sphere_eigenvalue: float | None = None
    full_error: float | None = None

    @property
    def depth(self) -> float:
        """Rise / energy: 1 on a quadratic bowl, less in a canyon; NaN where the bowl has no energy."""
        return self.rise / self.energy if self.energy > 0 else math.nan

    @property
    def is_converged(self) -> bool:
        """Whether the point is stationary to its tolerance."""
        return self.residual <= self.tolerance

    @property
    def is_certified(self) -> bool:
        """Converged, and its certificate is positive beyond its error: shell, or plane and sphere where M = I."""
        is_minimum = self.shell_eigenvalue > self.shell_error
        if self.metric == "euclidean":
            is_minimum = is_minimum and self.plane_eigenvalue > self.euclidean_error
        return self.is_converged and is_minimum

    @property
    def is_trivial(self) -> bool:
        """The softest axis of the bowl, or as high as the bowl: nothing that a quadratic would not have."""
        if self.energy < 0:  # a saddle's way down
            return abs(self.rise - self.energy) <= (1 - TRIVIAL) * abs(self.energy)
        return self.softest_overlap > TRIVIAL or self.depth > TRIVIAL

    def asymmetry(self, a: str, b: str) -> float:
        """log(L_a / L_b) of two evaluated objectives, in nats; an error where a loss is not positive and finite."""
        for name in (a, b):
            if name not in self.losses:
                remedy = "Pass it in evaluate= of find_canyons."
                raise ValueError(argument_message("name", f"is {name!r}", f"one of {list(self.losses)}", remedy))
            if not _has_logarithm(self.losses[name]):
                received, remedy = f"is {self.losses[name]:g}", "Compare the losses themselves: point.losses."
                raise ValueError(argument_message(f"losses[{name!r}]", received, "a positive, finite loss", remedy))
        return math.log(self.losses[a]) - math.log(self.losses[b])

    def __repr__(self) -> str:
        where = (
            f"r = {self.radius:.3g}" if self.metric == "euclidean" else f"E = {self.level:.3g}, r = {self.radius:.3g}"
        )
        if not self.is_converged:
            state = f"NOT CONVERGED (residual {self.residual:.1e})"
        else:
            state = "certified" if self.is_certified else "not certified"
        kind = "".join(
            text
            for text, applies in (
                (", trivial", self.is_trivial),
                (f", copy of {self.duplicate_of}", self.duplicate_of is not None),
                (f", {self.circuit} circuit", self.circuit is not None),
            )
            if applies
        )
        shell = "" if self.metric == "euclidean" else f", shell {self.shell_eigenvalue:+.3g}"
        return (
            f"CanyonPoint({where}: rise {self.rise:.4g}, depth {self.depth:.3g}, slope {self.slope:.3g}, "
            f"plane {self.plane_eigenvalue:+.3g}, sphere {self.sphere_eigenvalue:+.3g}{shell}; "
            f"{state}{kind}; {self.num_starts} start{'s' * (self.num_starts != 1)})"
        )


_NUMERIC = ("float", "int", "float | None", "int | None")
_FIELDS = tuple(field.name for field in dataclasses.fields(CanyonPoint) if field.type in _NUMERIC)
NUMBERS = (*_FIELDS, "depth")  # what is one number, or None where it is not known


def _has_logarithm(loss: float) -> bool:
    return math.isfinite(loss) and loss > 0


@dataclass(frozen=True)
class Evaluations:
    """What is evaluated at every point: named objectives and a conflict control, and their values at theta0."""

    evaluate: Mapping[str, Loss]
    conflict: ConflictControl | None
    theta0: Tensor
    losses: dict[str, float]
    accuracies: dict[str, float]
    cue_shares: dict[str, float]

    @classmethod
    def of(cls, theta0: Tensor, evaluate: Mapping[str, Loss], conflict: ConflictControl | None) -> Evaluations:
        """With the values at theta0."""
        losses, accuracies = _evaluated(evaluate, theta0)
        return cls(evaluate, conflict, theta0, losses, accuracies, {} if conflict is None else conflict(theta0))

    def values_at(self, theta: Tensor) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Losses, accuracies and shares of the answers at theta."""
        return *_evaluated(self.evaluate, theta), {} if self.conflict is None else self.conflict(theta)

    def named(self, theta: Tensor, losses: Mapping[str, float]) -> dict[str, Any]:
        """Which circuit runs at theta, why, and how far the answers moved towards the cue that is better kept."""
        control = self.conflict
        unnamed: dict[str, Any] = {"circuit": None, "answer_shift": None}
        if control is None:
            return {**unnamed, "circuit_reason": "there is no conflict control"}
        missing = [cue for cue in control.cues if cue not in losses]
        if missing or len(control.cues) != 2:
            return {**unnamed, "circuit_reason": f"no loss on {', '.join(missing) or 'two cues'} is evaluated"}
        if not all(_has_logarithm(known[cue]) for known in (losses, self.losses) for cue in control.cues):
            return {**unnamed, "circuit_reason": "a loss is not positive and finite: their ratio has no logarithm"}
        found = attribute_circuit(control, theta, theta0=self.theta0, losses=losses, basin_losses=self.losses)
        shift = found.shift
        return {
            "circuit": found.name,
            "circuit_reason": found.reason,
            "answer_shift": (shift.shift, shift.low, shift.high),
        }


def canyon_point(
    search: SphereSearch, place: SpherePoint, tangent: TangentHessian, around: Evaluations, **found: Any
) -> CanyonPoint:
    """Everything about a place, with its own tangent Hessian; the evaluations of `around` are made here."""
    shell = search.shell
    delta, theta = shell.delta(place.y), shell.theta(place.y)
    radius = float(delta.norm())
    plane = plane_certificate(shell, place, tangent)
    if shell.metric == "euclidean":
        slope, euclidean_residual = place.slope, place.residual
    else:
        _, gradient = shell.gradient_at(place.y)
        gradient = shell.inside(gradient)
        slope = float(delta @ gradient) / radius
        euclidean_residual = float((gradient - (slope / radius) * delta).norm())
    losses, accuracies = _evaluated(around.evaluate, theta)
    return CanyonPoint(
        delta=delta.cpu(),
        theta=theta.cpu(),
        metric=shell.metric,
        radius=radius,
        energy=shell.energy(place.y),
        loss=place.value,
        rise=place.value - shell.center_value,
        slope=slope,
        slope_without_anchor=slope - shell.tilt(place.y),
        space=None if shell.is_full else shell.space,
        floor=shell.floor if shell.metric == "hessian" else 0.0,
        multiplier=place.multiplier,
        residual=place.residual,
        tolerance=search.tolerance(place),
        euclidean_residual=euclidean_residual,
        plane_eigenvalue=plane[0],
        sphere_eigenvalue=plane[0] - slope / radius,
        euclidean_error=plane[1],
        shell_eigenvalue=tangent.lowest,
        shell_error=tangent.error,
        num_negative=None if tangent.matrix is None else int((tangent.values < -tangent.error).sum()),
        softest_overlap=shell.softest_overlap(place.y),
        losses=losses,
        accuracies=accuracies,
        cue_shares={} if around.conflict is None else around.conflict(theta),
        **around.named(theta, losses),
        **found,
    )


def with_full_certificates(loss: Loss, point: CanyonPoint, scale: float) -> tuple[CanyonPoint, int]:
    """The point with plane and sphere certificates in all of weight space, by Lanczos; and what they cost."""
    n = (point.delta / point.radius).to(loss.theta0.device)
    theta = point.theta.to(loss.theta0)
    gradient = loss.gradient(theta).double()
    slope = float(n @ gradient)
    lowest, error, num_products = _lowest_in_plane(loss, theta, n, scale)
    full = dataclasses.replace(
        point,
        full_residual=float((gradient - slope * n).norm()),
        full_plane_eigenvalue=lowest,
        full_sphere_eigenvalue=lowest - slope / point.radius,
        full_error=error,
    )
    return full, num_products


def same_certificates(a: TangentHessian, b: TangentHessian, rtol: float) -> bool:
    """Whether two tangent Hessians have the same eigenvalues: those of symmetric copies do."""
    if a.matrix is None or b.matrix is None:
        return abs(a.lowest - b.lowest) <= rtol * abs(a.lowest) + a.error + b.error
    gap = float(np.abs(a.values - b.values).max())
    return gap <= rtol * float(np.abs(a.values).max()) + a.error + b.error


def plane_certificate(shell: Shell, place: SpherePoint, tangent: TangentHessian) -> tuple[float, float]:
    """Smallest eigenvalue of P H P within the space, and its error."""
    if shell.metric == "euclidean":
        return tangent.lowest + place.multiplier, tangent.error
    if tangent.matrix is None:
        delta = shell.delta(place.y)
        scale = max(shell.floor, float(np.max(shell.curvatures, initial=0.0)))
        found = _lowest_in_plane(shell.loss, shell.theta(place.y), delta / delta.norm(), scale)
        shell.num_products += found[2]
        return found[:2]
    H = tangent.matrix * np.outer(shell.scales, shell.scales)
    w = place.y / shell.scales
    frame = complement(w / np.linalg.norm(w))
    stretch = float(shell.scales.max()) ** 2
    return float(np.linalg.eigvalsh(frame.T @ H @ frame)[0]), tangent.error * stretch


def _lowest_in_plane(loss: Loss, theta: Tensor, n: Tensor, scale: float) -> tuple[float, float, int]:
    """Smallest eigenvalue of P H P on the complement of n in all of weight space, its residual, products."""
    wide_n = n.to(loss.theta0.device).double()

    def apply(v: Tensor) -> Tensor:
        wide = v.double()
        image = loss.hvp(theta, (wide - (wide_n @ wide) * wide_n).to(theta)).double()
        return (image - (wide_n @ image) * wide_n).to(v.dtype)

    pairs = lowest_across(apply, wide_n.to(theta), max(scale, 1e-12), tol=1e-3)
    return float(pairs.values[0]), float(pairs.residuals[0]), pairs.num_products


def _evaluated(evaluate: Mapping[str, Loss], theta: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    losses, accuracies = {}, {}
    for name, objective in evaluate.items():
        value, accuracy = objective.evaluate(theta.to(objective.theta0))
        losses[name] = float(value)
        if accuracy is not None:
            accuracies[name] = accuracy
    return losses, accuracies
