"""A stationary point on a shell, its certificates, and what makes it a canyon.

With n = delta / |delta|, P = I - n n^T, g and H gradient and Hessian of the loss there, three certificates are known,
within the space that was searched, and on request the first two in all of weight space:

* plane:  smallest eigenvalue of P H P: the post's minimum in all directions orthogonal to the way there. Vacuous in a
  quadratic bowl, where every eigenvector passes; so it is never shown alone.
* sphere: smallest eigenvalue of P H P - (n.g / r) P = plane - n.g / r. The second derivatives of the loss on the sphere
  |delta| = r: positive means a genuine local minimum there.
* shell:  smallest eigenvalue of H - mu M relative to M on the tangent space of M delta, where g = mu M delta. The same
  on the energy shell 1/2 delta^T M delta = E, where a quadratic bowl is constant: positive means genuine anharmonicity.

A canyon is a point that is stationary, has the certificates of its metric (`CERTIFICATES`), and is not trivial; all of
this is said by the properties of `CanyonPoint`, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lowhanging.canyons.shell import Shell, SphereShell
from lowhanging.canyons.sphere_search import TangentHessian, complement, lowest_across
from lowhanging.curvature.subspace import Subspace
from lowhanging.errors import a_type, argument_message
from lowhanging.io import Saved
from lowhanging.objective.protocol import Loss, as_losses, check_loss, check_same_buffers
from lowhanging.steering.cues import ConflictControl, attribute_circuit
from lowhanging.tables import Columns, NotebookTable

_TRIVIAL = 0.95  # overlap with the softest axis, or relative rise, above which a point is what a quadratic has as well
CERTIFICATES = {  # metric -> eigenvalues that are positive beyond their errors at a certified point
    "euclidean": {"shell_eigenvalue": "shell_error", "plane_eigenvalue": "euclidean_error"},
    "hessian": {"shell_eigenvalue": "shell_error"},
}


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
    losses: dict[str, float]  # of every evaluated loss
    accuracies: dict[str, float]
    cue_shares: dict[str, float]  # shares of conflict images answered after each cue, and after neither
    circuit: str | None  # which circuit runs here, if asymmetry and conflict control agree
    circuit_reason: str
    answer_shift: tuple[float, float, float] | None  # towards the better-kept cue, with its 95 % interval
    num_starts: int  # how many starts ended here
    source: str  # where one of them came from
    space: Subspace | None  # that was searched; None: all of weight space
    min_curvature: float  # of the metric; 0: not bounded
    duplicate_of: int | None  # number, in its level, of an earlier point with the same loss, slope and certificates
    num_gradients: int  # spent on the start that led here and on its Newton steps; on a path: so far
    num_products: int
    full_residual: float | None = None  # |P g| in all of weight space
    full_plane_eigenvalue: float | None = None
    full_sphere_eigenvalue: float | None = None
    full_error: float | None = None

    @property
    def relative_rise(self) -> float:
        """Rise / energy: 1 on a quadratic bowl, less in a canyon; NaN where the bowl has no energy."""
        return self.rise / self.energy if self.energy > 0 else math.nan

    @property
    def is_converged(self) -> bool:
        """Whether the point is stationary to its tolerance."""
        return self.residual <= self.tolerance

    @property
    def is_certified(self) -> bool:
        """Converged, and each certificate is positive beyond its error: shell, on spheres plane and shell."""
        certificates = CERTIFICATES[self.metric].items()
        return self.is_converged and all(getattr(self, value) > getattr(self, error) for value, error in certificates)

    @property
    def is_trivial(self) -> bool:
        """The softest axis of the bowl, or no lower than the bowl is there: no way out that a quadratic has not."""
        if self.energy < 0:  # a saddle's way down
            return abs(self.rise - self.energy) <= (1 - _TRIVIAL) * abs(self.energy)
        return self.softest_overlap > _TRIVIAL or self.relative_rise > _TRIVIAL

    @property
    def is_canyon(self) -> bool:
        """Certified and not trivial; copies by symmetry count, see `duplicate_of`."""
        return self.is_certified and not self.is_trivial

    def asymmetry(self, a: str, b: str) -> float:
        """log(L_a / L_b) of two evaluated losses, in nats; an error where a loss is not positive and finite."""
        for name in (a, b):
            if name not in self.losses:
                remedy = "Pass it in evaluate= of find_canyons."
                raise ValueError(argument_message("name", f"is {name!r}", f"one of {list(self.losses)}", remedy))
            if not _has_logarithm(self.losses[name]):
                received, remedy = f"is {self.losses[name]:g}", "Compare the losses themselves: point.losses."
                raise ValueError(argument_message(f"losses[{name!r}]", received, "a positive, finite loss", remedy))
        return math.log(self.losses[a]) - math.log(self.losses[b])

    def __repr__(self) -> str:
        is_sphere = self.metric == "euclidean"
        where = f"r = {self.radius:.3g}" if is_sphere else f"E = {self.level:.3g}, r = {self.radius:.3g}"
        state = "certified" if self.is_certified else "not certified"
        state = state if self.is_converged else f"NOT CONVERGED (residual {self.residual:.1e})"
        state += ", trivial" if self.is_trivial else ""
        state += "" if self.duplicate_of is None else f", copy of {self.duplicate_of}"
        state += "" if self.circuit is None else f", {self.circuit} circuit"
        shell = "" if is_sphere else f", shell {self.shell_eigenvalue:+.3g}"
        return (
            f"CanyonPoint({where}: rise {self.rise:.4g}, relative rise {self.relative_rise:.3g}, "
            f"slope {self.slope:.3g}, plane {self.plane_eigenvalue:+.3g}, sphere {self.sphere_eigenvalue:+.3g}{shell}; "
            f"{state}; {self.num_starts} start{'s' * (self.num_starts != 1)})"
        )


_NUMERIC = ("float", "int", "float | None", "int | None")
_FIELDS = tuple(field.name for field in dataclasses.fields(CanyonPoint) if field.type in _NUMERIC)
NUMBERS = (*_FIELDS, "relative_rise")  # what is one number, or None where it is not known


class CanyonPoints(Saved, Sequence[CanyonPoint], NotebookTable):
    """A result that is a sequence of points."""

    points: tuple[CanyonPoint, ...]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Any:
        return self.points[index]

    def columns(self) -> Columns:
        """One row for each point: where it is, what certifies it, and the evaluated losses by name."""
        names = ("level", "radius", "rise", "relative_rise", "slope", "plane_eigenvalue", "sphere_eigenvalue")
        flags = ("is_certified", "is_canyon", "circuit", "duplicate_of")
        losses = {name: None for point in self.points for name in point.losses}
        found = {name: [getattr(point, name) for point in self.points] for name in (*names, *flags)}
        return found | {f"{name} loss": [point.losses.get(name) for point in self.points] for name in losses}


class Evaluations:
    """What is evaluated at every point: named losses and a conflict control, checked, and their values at theta0.

    Attributes:
        evaluate: name -> loss, or one loss.
        at_theta0: what `at` returns there.
    """

    def __init__(self, loss: Loss, evaluate: Loss | Mapping[str, Loss] | None, conflict: ConflictControl | None):
        self.evaluate = {} if evaluate is None else as_losses(evaluate, argument="evaluate")
        for name, other in self.evaluate.items():
            check_loss(f"evaluate[{name!r}]", other)
            if other.num_params != loss.num_params:
                received, expected = f"has {other.num_params} parameters", f"{loss.num_params}, as the loss"
                remedy = "Build both from the same model."
                raise ValueError(argument_message(f"evaluate[{name!r}]", received, expected, remedy))
        if conflict is not None and not isinstance(conflict, ConflictControl):
            remedy = "Make one: lh.ConflictControl(loss, inputs, targets)."
            raise TypeError(argument_message("conflict", f"is {a_type(conflict)}", "a ConflictControl", remedy))
        control = {} if conflict is None else {"the conflict control": conflict.loss}
        check_same_buffers({"the loss": loss, **self.evaluate, **control})
        self._conflict, self._theta0 = conflict, loss.theta0
        self.at_theta0 = self.at(loss.theta0)

    def at(self, theta: Tensor) -> dict[str, Any]:
        """The fields `losses`, `accuracies` and `cue_shares` of a result, at theta (p,)."""
        losses, accuracies = {}, {}
        for name, loss in self.evaluate.items():
            value, accuracy = loss.evaluate(theta.to(loss.theta0))
            losses[name] = float(value)
            if accuracy is not None:
                accuracies[name] = accuracy
        shares = {} if self._conflict is None else self._conflict(theta)
        return {"losses": losses, "accuracies": accuracies, "cue_shares": shares}

    def circuit(self, theta: Tensor, losses: Mapping[str, float]) -> dict[str, Any]:
        """The fields of a point that say which circuit runs at theta, and why."""
        control, basin_losses = self._conflict, self.at_theta0["losses"]
        missing = [] if control is None else [cue for cue in control.cues if cue not in losses]
        if control is None:
            reason = "there is no conflict control"
        elif missing or len(control.cues) != 2:
            reason = f"no loss on {', '.join(missing) or 'two cues'} is evaluated"
        elif not all(_has_logarithm(known[cue]) for known in (losses, basin_losses) for cue in control.cues):
            reason = "a loss is not positive and finite: their ratio has no logarithm"
        else:
            found = attribute_circuit(control, theta, theta0=self._theta0, losses=losses, basin_losses=basin_losses)
            shift = (found.shift.shift, found.shift.low, found.shift.high)
            return {"circuit": found.name, "circuit_reason": found.reason, "answer_shift": shift}
        return {"circuit": None, "circuit_reason": reason, "answer_shift": None}


def canyon_point(
    shell: Shell, tangent: TangentHessian, tolerance: float, evaluations: Evaluations, **found: Any
) -> CanyonPoint:
    """Everything about a point of the shell with its tangent Hessian; what is evaluated is evaluated here."""
    point = tangent.point
    delta, theta = shell.delta(point.y), shell.theta(point.y)
    radius = float(delta.norm())
    if isinstance(shell, SphereShell):
        slope, euclidean_residual = point.slope, point.residual
    else:
        gradient = shell.inside(shell.gradient_at(point.y)[1])
        slope = float(delta @ gradient) / radius
        euclidean_residual = float((gradient - (slope / radius) * delta).norm())
    plane_eigenvalue, euclidean_error = plane_certificate(tangent)
    values = evaluations.at(theta)
    return CanyonPoint(
        delta=delta.cpu(),
        theta=theta.cpu(),
        metric=shell.metric,
        radius=radius,
        energy=shell.energy(point.y),
        loss=point.value,
        rise=point.value - shell.center_value,
        slope=slope,
        slope_without_anchor=slope - shell.tilt(point.y),
        multiplier=point.multiplier,
        residual=point.residual,
        tolerance=tolerance,
        euclidean_residual=euclidean_residual,
        plane_eigenvalue=plane_eigenvalue,
        sphere_eigenvalue=plane_eigenvalue - slope / radius,
        euclidean_error=euclidean_error,
        shell_eigenvalue=tangent.lowest,
        shell_error=tangent.error,
        num_negative=None if shell.is_full else tangent.num_negative,
        softest_overlap=shell.softest_overlap(point.y),
        space=shell.space,
        min_curvature=shell.min_curvature,
        **values,
        **evaluations.circuit(theta, values["losses"]),
        **found,
    )


def plane_certificate(tangent: TangentHessian) -> tuple[float, float]:
    """Smallest eigenvalue of P H P within the space, and its error."""
    shell, point = tangent.shell, tangent.point
    if isinstance(shell, SphereShell):
        return tangent.lowest + point.multiplier, tangent.error
    if tangent.matrix is None:
        delta = shell.delta(point.y)
        scale = float(np.max(shell.curvatures, initial=shell.min_curvature))
        lowest, error, num_products = _lowest_in_plane(shell.loss, shell.theta(point.y), delta / delta.norm(), scale)
        shell.num_products += num_products
        return lowest, error
    H = tangent.matrix * np.outer(shell.scales, shell.scales)
    w = point.y / shell.scales
    frame = complement(w / np.linalg.norm(w))
    stretch = float(shell.scales.max()) ** 2
    return float(np.linalg.eigvalsh(frame.T @ H @ frame)[0]), tangent.error * stretch


def with_full_certificates(loss: Loss, point: CanyonPoint, scale: float) -> tuple[CanyonPoint, int]:
    """The point with plane and sphere certificates in all of weight space, by Lanczos; and what they cost.

    Args:
        loss: the loss.
        point: a point of its.
        scale: a guess at the largest eigenvalue of its Hessian.
    """
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


def _lowest_in_plane(loss: Loss, theta: Tensor, n: Tensor, scale: float) -> tuple[float, float, int]:
    """Smallest eigenvalue of P H P on the complement of n in all of weight space, its error, products.

    The error is Lanczos's residual: rounding is left out.
    """
    wide_n = n.to(loss.theta0.device).double()

    def apply(v: Tensor) -> Tensor:
        wide = v.double()
        image = loss.hvp(theta, (wide - (wide_n @ wide) * wide_n).to(theta)).double()
        return (image - (wide_n @ image) * wide_n).to(v.dtype)

    pairs = lowest_across(apply, wide_n.to(theta), max(scale, 1e-12), tol=1e-3)
    return float(pairs.values[0]), float(pairs.residuals[0]), pairs.num_products


def same_certificates(a: TangentHessian, b: TangentHessian, rtol: float) -> bool:
    """Whether two tangent Hessians have the same eigenvalues: those of symmetric copies do."""
    gap, size = float(np.abs(a.values - b.values).max()), float(np.abs(a.values).max())
    return gap <= rtol * size + a.error + b.error


def _has_logarithm(loss: float) -> bool:
    return math.isfinite(loss) and loss > 0
