"""How does one get to the bottom? L-BFGS most of the way, then Newton steps by conjugate gradients.

SciPy's L-BFGS looks at values, whose rounding stops it early; Newton steps are judged by the gradient norm alone and go
to the floor of the floating-point type. Where the bottom is too far away, there was no minimum to go to.
"""

from __future__ import annotations

import contextlib

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.basin.answers import Answers
from lowhanging.loss import Loss

_PATIENCE = 10  # evaluations in which L-BFGS must lower the loss beyond rounding, or its gradient norm by a tenth
_REMEDY_DRIFT = (
    "There is no minimum near here, as for plain cross-entropy on separable data: raise anchor= "
    "(a hundredth of the largest eigenvalue is usual), train longer first, or allow more with max_drift=."
)


class Descent:
    """The state of one descent: a point in float64, its gradient, and what was spent."""

    def __init__(
        self, loss: Loss | Answers, gtol: float, max_gradients: int, max_products: int, max_drift: float, bar: tqdm
    ):
        self.loss, self.gtol, self.bar = loss, gtol, bar
        self.num_known = loss.num_gradients if isinstance(loss, Answers) else 0  # which the bar begins with
        self.max_gradients, self.max_products, self.max_drift = max_gradients, max_products, max_drift
        self.start = loss.theta0
        self.num_gradients = self.num_products = 0
        self.failure: str | None = None
        self.is_concave = False  # whether the last Newton step met negative curvature
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
                    "Raise max_gradients= or max_products=; where the loss has no minimum nearby, raise anchor=."
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
        return (
            f"Newton steps no longer reduce it.\nThis is the floor of {kind} here; use gtol={2 * norm:.1g}{other}. "
            "With kinks (ReLU, max pooling) there is no smooth minimum to reach: use SiLU or GELU."
        )

    def check_drift(self) -> None:
        """Refuse a point that is too far away, however it was reached."""
        if self.failure is None:
            self._drifted(self.theta)

    def leave(self, direction: Tensor) -> None:
        """Step to the lower side along an eigenvector of negative curvature."""
        length = 1e-2 * max(1.0, float(self.theta.norm()))
        step = length * direction.to(self.start)
        points = [self.theta + step, self.theta - step]
        values = [self._evaluate(point) for point in points]
        best = min(range(2), key=lambda i: values[i][0])
        self.theta, (self.value, self.gradient) = points[best], values[best]

    def _evaluate(self, theta: Tensor) -> tuple[float, Tensor]:
        value, gradient = self.loss.value_and_gradient(theta)
        self.num_gradients += 1
        if self.num_gradients > self.num_known:
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
