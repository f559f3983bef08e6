"""Where is the minimum near these trained weights, and is it one?

Training stops where it stops; second-order geometry belongs to a minimum of a *fixed* loss. Cross-entropy on a small
fixed set has its minimum at infinity: following it destroys the solution that was to be studied, and weight decay
towards the origin destroys it too. A weak quadratic anchor at the trained weights keeps the solution and, being a
tilt plus a constant on spheres around the minimum, makes no canyon. L-BFGS goes most of the way; a few Newton steps,
solved by conjugate gradients on our products, go to the floor of the floating-point type.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.anchored import AnchoredObjective
from lowhanging.basin.eigenpairs import Eigenpairs, top_eigs
from lowhanging.basin.operators import hessian
from lowhanging.errors import NotConvergedError, check_count, check_real
from lowhanging.objective import Loss, check_loss
from lowhanging.results import load_result, save_result

_PATIENCE = 10  # evaluations in which L-BFGS must lower the loss beyond rounding, or its gradient norm by a tenth
_REMEDY_DRIFT = (
    "There is no minimum near here, as for plain cross-entropy on separable data: raise anchor= "
    "(a hundredth of the largest eigenvalue is usual), train longer first, or allow more with max_drift=."
)


@dataclass(frozen=True, eq=False, repr=False)
class Minimum:
    """A minimum of a fixed loss near trained weights, with its proof: gradient norm and both ends of the spectrum."""

    theta: Tensor  # (p,) the minimum
    start: Tensor  # (p,) the trained weights, where the anchor is
    anchor: float  # epsilon of the anchor epsilon/2 |theta - start|^2
    loss_before: float  # without the anchor
    loss: float  # without the anchor
    gradient_norm_before: float  # |gradient| of the anchored loss
    gradient_norm: float
    gtol: float
    distance: float  # |theta - start|
    largest: float  # largest eigenvalue of the anchored Hessian at theta
    largest_residual: float
    smallest: float  # its smallest eigenvalue; positive = a strict minimum
    smallest_residual: float
    num_gradients: int
    num_products: int
    seconds: float
    objective: Loss  # anchor included, around theta
    unanchored: Loss  # around theta

    @property
    def is_minimum(self) -> bool:
        """Gradient within `gtol`, and a smallest eigenvalue that is known well enough and is not below zero."""
        return self.gradient_norm <= self.gtol and self.is_certified and self.smallest >= -self.smallest_residual

    @property
    def is_certified(self) -> bool:
        """Whether `smallest` is known to a tenth of the anchor, or to 1e-5 of `largest`, whichever is coarser."""
        return self.smallest_residual <= max(0.1 * self.anchor, 1e-5 * abs(self.largest))

    def __repr__(self) -> str:
        return (
            f"Minimum(loss {self.loss:.4g}, |gradient| {self.gradient_norm_before:.2g} -> {self.gradient_norm:.2g}, "
            f"moved {self.distance:.3g} of {float(self.start.norm()):.3g}, eigenvalues {self.smallest:.3g} "
            f"(+- {self.smallest_residual:.1g}) ... {self.largest:.3g}, anchor {self.anchor:g}, "
            f"{self.num_gradients} gradients, {self.num_products} products)"
        )

    def save(self, path: str | Path) -> Path:
        """Write to npz, without the objectives."""
        return save_result(dataclasses.replace(self, objective=None, unanchored=None), path)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path, objective: Loss) -> Minimum:
        """Read what `save` wrote; `objective` is the loss that was polished, without its anchor."""
        stored = load_result(cls, path)
        around = objective.at(stored.theta)
        anchored = AnchoredObjective(around, stored.start, stored.anchor) if stored.anchor else around
        return dataclasses.replace(stored, objective=anchored, unanchored=around)


def polish(
    objective: Loss,
    *,
    anchor: float = 1e-2,
    gtol: float = 1e-6,
    max_gradients: int = 500,
    max_products: int = 2000,
    max_drift: float = 0.2,
    progress: bool | None = None,
) -> Minimum:
    r"""Go from `objective.theta0` to a minimum of L(theta) + anchor/2 |theta - theta0|^2.

    L-BFGS on the anchored loss, then Newton steps H s = -g by conjugate gradients, each halved until the gradient norm
    falls; then the smallest eigenvalue of the Hessian, by Lanczos, says whether it is a minimum. A negative one is
    left along its eigenvector, and the descent starts again (twice at most).

    Args:
        objective: the loss, around the trained weights. Nothing is written into the model.
        anchor: epsilon >= 0, in units of loss per squared unit of theta; 0 = no anchor.
        gtol: gradient norm to reach. In float32 the rounding of theta alone moves the gradient by about
            1e-8 * |theta| * (largest eigenvalue); use a float64 model to go further.
        max_gradients: limit on gradients in all.
        max_products: limit on Hessian products of the Newton steps in all.
        max_drift: how far it may go, as a share of |theta0| (any distance if theta0 = 0).
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        Minimum: `.theta`, `.objective` (anchor included, around it), `.unanchored`, gradient norms, both ends of the
        spectrum, what it cost.

    Raises:
        NotConvergedError: it drifted away, missed `gtol`, or ended at a saddle; `.result` is the Minimum so far.
        ValueError: an argument out of range.

    Cost:
        about 35 gradients, 30 products of Newton-CG and 40 of Lanczos on the paired-digit CNN.

    Source:
        Nocedal & Wright (2006), Numerical Optimization, algorithms 7.1 (Newton-CG) and 7.5 (L-BFGS).
    """
    check_loss("objective", objective)
    remedy = "0.01 suits a largest eigenvalue of about 1; 0 switches the anchor off."
    anchor = check_real("anchor", anchor, minimum=0.0, remedy=remedy)
    gtol = check_real(
        "gtol", gtol, minimum=0.0, exclusive=True, remedy="Ask for about 1e-6 in float32, 1e-10 in float64."
    )
    max_drift = check_real("max_drift", max_drift, minimum=0.0, exclusive=True, remedy="Leave it out: a fifth.")
    check_count("max_gradients", max_gradients, remedy="Leave it out: 500.")
    check_count("max_products", max_products, remedy="Leave it out: 2000.")
    loss = AnchoredObjective(objective, objective.theta0, anchor) if anchor else objective
    delay = 2.0 if progress is None else 0.0
    with tqdm(desc="polish", unit="gradient", disable=progress is False, delay=delay) as bar:
        descent = _Descent(loss, gtol, max_gradients, max_products, max_drift, bar)
        for attempt in range(3):
            descent.lbfgs()
            descent.newton()
            descent.check_drift()
            result = descent.certify(objective, anchor)
            if result.smallest >= -result.smallest_residual or descent.failure is not None or attempt == 2:
                break
            descent.leave_saddle()
    if descent.failure is not None:
        raise NotConvergedError(f"polish {descent.failure}", result)
    if not result.is_certified:
        known = f"{result.smallest:.3g} to within {result.smallest_residual:.1g}"
        message = f"polish knows the smallest eigenvalue only as {known}: that does not tell a minimum from a saddle."
        raise NotConvergedError(f"{message}\nRaise anchor=, or use float64 (model.double()).", result)
    if not result.is_minimum:
        lowest = f"{result.smallest:.3g} (residual {result.smallest_residual:.1g})"
        message = f"polish ended at a saddle, smallest eigenvalue {lowest}."
        raise NotConvergedError(f"{message}\nRaise anchor= above {-result.smallest:.2g}, or train longer.", result)
    return result


class _Descent:
    """The state of one descent: a point in float64, its gradient, and what was spent."""

    def __init__(self, loss: Loss, gtol: float, max_gradients: int, max_products: int, max_drift: float, bar: tqdm):
        self.loss, self.gtol, self.bar = loss, gtol, bar
        self.max_gradients, self.max_products, self.max_drift = max_gradients, max_products, max_drift
        self.start = loss.theta0
        self.begun = time.perf_counter()
        self.num_gradients = self.num_products = 0
        self.failure: str | None = None
        self.is_concave = False  # whether the last Newton step met negative curvature
        self.direction: Tensor | None = None  # an eigenvector of negative curvature
        self.value, self.gradient = self._evaluate(self.start)
        self.theta, self.before = self.start, float(self.gradient.norm())

    def lbfgs(self) -> None:
        """SciPy's L-BFGS, until the tolerance, the drift limit or the floor of the line search."""
        if float(self.gradient.norm()) <= self.gtol or self.num_gradients >= self.max_gradients:
            return

        trial, since = (self.theta, self.value, self.gradient), 0
        rounding = 10 * torch.finfo(self.start.dtype).eps

        def function(x: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal trial, since
            theta = torch.from_numpy(x).to(self.start)
            value, gradient = self._evaluate(theta)
            trial, since = (theta, value, gradient), since + 1
            is_lower = value <= self.value + rounding * abs(self.value)
            if is_lower and float(gradient.norm()) <= self.gtol:
                self.theta, self.value, self.gradient = trial
                raise _StopDescentError
            # Rounding of the loss ends line searches long before it ends Newton steps, which look at gradients only.
            if since > _PATIENCE:
                raise _StopDescentError
            return value, gradient.cpu().double().numpy()

        def accepted(x: np.ndarray) -> None:  # an iterate, not a trial point: the first line search looks far
            nonlocal since
            theta, value, gradient = trial
            if not np.allclose(x, theta.cpu().double().numpy(), rtol=rounding, atol=0.0):
                return  # the line search went back to an earlier trial point
            is_progress = value < self.value - rounding * abs(self.value)
            is_progress = is_progress or float(gradient.norm()) < 0.9 * float(self.gradient.norm())
            since = 0 if is_progress else since
            self.theta, self.value, self.gradient = trial
            if self._drifted(self.theta):
                raise _StopDescentError

        left = self.max_gradients - self.num_gradients
        options = {"maxcor": 20, "maxfun": left, "maxiter": left, "ftol": 0.0, "gtol": 0.0}
        with contextlib.suppress(_StopDescentError):
            scipy.optimize.minimize(
                function,
                self.theta.cpu().double().numpy(),
                jac=True,
                method="L-BFGS-B",
                callback=accepted,
                options=options,
            )

    def newton(self) -> None:
        """Newton steps by conjugate gradients, each accepted only if the gradient norm falls."""
        while self.failure is None and float(self.gradient.norm()) > self.gtol:
            if self.num_products >= self.max_products or self.num_gradients >= self.max_gradients:
                self.failure = (
                    f"stopped at |gradient| {float(self.gradient.norm()):.2g} > gtol {self.gtol:g} after "
                    f"{self.num_gradients} gradients and {self.num_products} products.\n"
                    "Raise max_gradients= or max_products=."
                )
                return
            step = self._newton_step()
            norm = float(self.gradient.norm())
            for _ in range(6):
                theta = (self.theta.double() + step).to(self.start)
                value, gradient = self._evaluate(theta)
                if float(gradient.norm()) < 0.9 * norm:
                    self.theta, self.value, self.gradient = theta, value, gradient
                    if self._drifted(theta):
                        return
                    break
                step = step / 2
            else:
                self.failure = f"can't lower |gradient| {norm:.2g} to gtol {self.gtol:g}: " + self._why_stuck(norm)

    def _why_stuck(self, norm: float) -> str:
        if self.is_concave:
            return "the curvature along the Newton step is negative.\nRaise anchor=, or train longer."
        kind = str(self.start.dtype).removeprefix("torch.")
        other = "" if self.start.dtype == torch.float64 else ", or float64 (model.double())"
        return f"Newton steps no longer reduce it.\nThis is the floor of {kind} here; use gtol={2 * norm:.1g}{other}."

    def certify(self, objective: Loss, anchor: float) -> Minimum:
        """Both ends of the spectrum at the point reached, and the result."""
        loss, around = self.loss.at(self.theta), objective.at(self.theta)
        ends = self._smallest(loss, 1e-3)
        wanted = max(0.1 * anchor, 1e-5 * abs(ends.other_end))
        error = float(ends.residuals[0])
        if error > wanted or float(ends.values[0]) < error:  # too coarse to tell a small eigenvalue from a negative one
            ends = self._smallest(loss, min(1e-3, 0.5 * wanted / (ends.scale or 1.0)))
        self.direction = ends.vectors[0]
        return Minimum(
            theta=self.theta.cpu(),
            start=self.start.cpu(),
            anchor=anchor,
            loss_before=float(objective(self.start)),
            loss=float(around(self.theta)),
            gradient_norm_before=self.before,
            gradient_norm=float(self.gradient.norm()),
            gtol=self.gtol,
            distance=float((self.theta.double() - self.start.double()).norm()),
            largest=ends.other_end,
            largest_residual=ends.other_end_residual,
            smallest=float(ends.values[0]),
            smallest_residual=float(ends.residuals[0]),
            num_gradients=self.num_gradients,
            num_products=self.num_products,
            seconds=time.perf_counter() - self.begun,
            objective=loss,
            unanchored=around,
        )

    def _smallest(self, loss: Loss, tol: float) -> Eigenpairs:
        """The smallest eigenpair, as far as it was found; its residual says how far."""
        tol = max(tol, 4 * torch.finfo(self.start.dtype).eps)
        self.bar.set_postfix_str("smallest eigenvalue")
        try:
            ends = top_eigs(hessian(loss), k=1, which="SA", tol=tol, progress=False)
        except NotConvergedError as error:
            ends = error.result
        self.num_products += ends.num_products
        return ends

    def check_drift(self) -> None:
        """Refuse a point that is too far away, however it was reached."""
        if self.failure is None:
            self._drifted(self.theta)

    def leave_saddle(self) -> None:
        """Step to the lower side along the eigenvector of the negative eigenvalue."""
        assert self.direction is not None
        length = 1e-2 * max(1.0, float(self.theta.norm()))
        step = length * self.direction.to(self.start)
        points = [self.theta + step, self.theta - step]
        values = [self._evaluate(point) for point in points]
        best = min(range(2), key=lambda i: values[i][0])
        self.theta, (self.value, self.gradient) = points[best], values[best]

    def _evaluate(self, theta: Tensor) -> tuple[float, Tensor]:
        value, gradient = self.loss.value_and_gradient(theta)
        self.num_gradients += 1
        self.bar.update()
        self.bar.set_postfix_str(f"|gradient| {float(gradient.norm()):.1e}", refresh=False)
        return float(value), gradient

    def _newton_step(self) -> Tensor:
        """Solve H s = -g by conjugate gradients, (p,) in float64, as far as gtol needs; stops at negative curvature."""
        accuracy = min(0.1, max(1e-3, 0.3 * self.gtol / float(self.gradient.norm())))
        residual = -self.gradient.double()
        step, direction = torch.zeros_like(residual), residual.clone()
        self.is_concave = False
        square = first = float(residual.square().sum())
        while square > accuracy**2 * first and self.num_products < self.max_products:
            product = self.loss.hvp(self.theta, direction.to(self.start)).double()
            self.num_products += 1
            self.bar.set_postfix_str(f"Newton step, {self.num_products} products")
            curvature = float(direction @ product)
            if curvature <= 0:
                self.is_concave = True
                return step if bool(step.any()) else direction
            length = square / curvature
            step = step + length * direction
            residual = residual - length * product
            square, previous = float(residual.square().sum()), square
            direction = residual + (square / previous) * direction
        return step

    def _drifted(self, theta: Tensor) -> bool:
        norm, distance = float(self.start.norm()), float((theta.cpu().double() - self.start.cpu().double()).norm())
        if norm > 0 and distance > self.max_drift * norm:
            self.failure = (
                f"drifted: it moved by {distance:.3g}, more than {self.max_drift:g} of |theta0| = {norm:.3g}, "
                f"|gradient| {float(self.gradient.norm()):.2g}.\n{_REMEDY_DRIFT}"
            )
            return True
        return False


class _StopDescentError(Exception):
    """SciPy's minimizers stop in mid-search only by an exception."""
