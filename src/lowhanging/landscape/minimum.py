"""Minima of a fixed loss near trained weights, with a certificate: gradient norm and both ends of the spectrum.

Training stops where it stops; second-order geometry belongs to a minimum. Cross-entropy on a small fixed set has its
minimum at infinity, and following it, or weight decay towards the origin, destroys the solution that was to be studied.
A weak quadratic anchor at the trained weights keeps the solution and, being a tilt plus a constant on spheres around
the minimum, makes no canyon. L-BFGS goes most of the way, but it looks at values, whose rounding stops it early; Newton
steps, judged by the gradient norm alone, reach the accuracy of the floating-point type.

SciPy's L-BFGS can't be stopped and continued. But given the same values, gradients and products, a descent takes the
same steps to the last bit; so these are kept, in order, and a resumed descent repeats only the arithmetic in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.curvature.eigenpairs import Eigenpairs, top_eigs
from lowhanging.curvature.operators import Hessian, hessian, plain_arithmetic
from lowhanging.errors import (
    NotConvergedError,
    argument_message,
    check_count,
    check_real,
    door,
)
from lowhanging.io import ResumeFile, Saved, digest
from lowhanging.objective.checkpoints import Checkpoint
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.objective import AnchoredObjective
from lowhanging.objective.protocol import Loss, around, check_loss, moving_values

_PATIENCE = 10  # evaluations in which L-BFGS must lower the loss beyond rounding, or its gradient norm by a tenth
_REMEDY_DRIFT = (
    "There is no minimum near here, as for plain cross-entropy on separable data: raise anchor= "
    "(a hundredth of the largest eigenvalue is usual), train longer first, or allow more with max_drift=."
)


@dataclass(frozen=True, eq=False, repr=False)
class Minimum(Saved):
    """A minimum of a fixed loss near trained weights, with its proof: gradient norm and both ends of the spectrum."""

    unsaved = "objective", "unanchored"

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
    smallest_residual: float  # with the rounding of the loss in float32, where that could be measured
    num_gradients: int
    num_products: int
    seconds: float
    objective: Loss  # anchor included, around theta
    unanchored: Loss  # around theta
    moving_buffers: dict[str, Tensor] = field(default_factory=dict)  # those that training moves, held fixed meanwhile

    @property
    def checkpoint(self) -> Checkpoint:
        """The minimum with its buffers, for `loss.at`, slices and paths; they take the minimum itself, too."""
        return Checkpoint(self.theta.clone(), dict(self.moving_buffers))

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

    @classmethod
    def load(cls, path: str | Path, loss: Loss | None = None) -> Minimum:
        """Read what `save` wrote; with the loss that was polished, without its anchor, also the objectives."""
        stored = super().load(path)
        if loss is None:
            return stored
        point = stored.checkpoint if stored.moving_buffers else stored.theta
        loss = around(loss, point, buffers=None if stored.moving_buffers else "fixed")
        anchored = AnchoredObjective(loss, stored.start, stored.anchor) if stored.anchor else loss
        return dataclasses.replace(stored, objective=anchored, unanchored=loss)


@door
@plain_arithmetic()
def polish(
    loss: Loss,
    *,
    anchor: float = 1e-2,
    gtol: float = 1e-6,
    max_gradients: int = 500,
    max_products: int = 2000,
    max_drift: float = 0.2,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> Minimum:
    r"""Go from `loss.theta0` to a minimum of L(theta) + anchor/2 |theta - theta0|^2.

    L-BFGS on the anchored loss, then Newton steps H s = -g by conjugate gradients, each halved until the gradient norm
    falls; then the smallest eigenvalue of the Hessian, by Lanczos, says whether it is a minimum. A negative one is
    left along its eigenvector, and the descent starts again (twice at most).

    Args:
        loss: around the trained weights. Nothing is written into the model.
        anchor: epsilon >= 0, in units of loss per squared unit of theta; 0 = no anchor.
        gtol: gradient norm to reach. In float32 the rounding of theta alone moves the gradient by about
            1e-8 * |theta| * (largest eigenvalue); use a float64 model to go further.
        max_gradients: limit on gradients in all.
        max_products: number of Hessian products after which no Newton step begins.
        max_drift: how far it may go, as a share of |theta0| (any distance if theta0 = 0).
        resume: npz file of every gradient and product so far: the same call, also with another `gtol` or other limits,
            goes on from it, bit for bit (on the same device, with as many threads). The file of another loss,
            theta0 or anchor is refused; that of a finished call stays.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        Minimum: `.theta`, `.objective` (anchor included, around it), `.unanchored`, gradient norms, both ends of the
        spectrum, what it cost.

    Raises:
        NotConvergedError: it drifted away, missed `gtol`, or ended at a saddle; `.result` is the Minimum so far.
        ValueError: an argument out of range, or a resume file of another loss.
        DamagedFileError: the resume file is not whole.

    Cost:
        about 35 gradients, 30 products of Newton-CG and 40 of Lanczos on the paired-digit CNN. `resume` keeps each of
        them, p numbers, in the file and in memory, and writes for no more than a tenth of the time.

    Source:
        Nocedal & Wright (2006), Numerical Optimization, algorithms 7.1 (Newton-CG) and 7.5 (L-BFGS).
    """
    check_loss("loss", loss)
    remedy = "0.01 suits a largest eigenvalue of about 1; 0 switches the anchor off."
    anchor = check_real("anchor", anchor, minimum=0.0, remedy=remedy)
    remedy = "Ask for about 1e-6 in float32, 1e-10 in float64."
    gtol = check_real("gtol", gtol, minimum=0.0, exclusive=True, remedy=remedy)
    max_drift = check_real("max_drift", max_drift, minimum=0.0, exclusive=True, remedy="Leave it out: a fifth.")
    check_count("max_gradients", max_gradients, remedy="Leave it out: 500.")
    check_count("max_products", max_products, remedy="Leave it out: 2000.")
    anchored = AnchoredObjective(loss, loss.theta0, anchor) if anchor else loss
    record = None if resume is None else _RecordedLoss(anchored, resume, anchor)
    num_known = 0 if record is None else record.num_gradients
    begun, delay = time.perf_counter(), 2.0 if progress is None else 0.0
    try:
        with tqdm(
            desc="polish", unit=" gradients", initial=num_known, miniters=0, disable=is_silent(progress), delay=delay
        ) as bar:
            bar.set_postfix_str("preparing", refresh=bool(progress))
            descent = _Descent(record or anchored, gtol, max_gradients, max_products, max_drift, bar)
            for attempt in range(3):
                descent.lbfgs()
                descent.newton()
                descent.check_drift()
                ends = descent.smallest_eigenpair(0.1 * anchor)
                is_saddle = not float(ends.values[0]) >= -_error(ends)
                if not is_saddle or descent.failure is not None or attempt == 2:
                    break
                descent.leave(ends.vectors[0])
    finally:
        if record is not None:
            record.file.flush()
    unanchored = around(loss, descent.theta)
    result = Minimum(
        theta=descent.theta.cpu(),
        start=descent.start.cpu(),
        anchor=anchor,
        loss_before=float(loss(descent.start)),
        loss=float(unanchored(descent.theta)),
        gradient_norm_before=descent.before,
        gradient_norm=float(descent.gradient.norm()),
        gtol=gtol,
        distance=float((descent.theta.double() - descent.start.double()).norm()),
        largest=ends.other_end,
        largest_residual=ends.other_end_residual,
        smallest=float(ends.values[0]),
        smallest_residual=_error(ends),
        num_gradients=descent.num_gradients,
        num_products=descent.num_products,
        seconds=time.perf_counter() - begun,
        objective=around(anchored, descent.theta),
        unanchored=unanchored,
        moving_buffers=moving_values(loss),
    )
    if descent.failure is not None:
        raise NotConvergedError(f"polish {descent.failure}", result)
    if not result.is_certified:
        known = f"{result.smallest:.3g} to within {result.smallest_residual:.1g}"
        message = f"polish knows the smallest eigenvalue only as {known}: it could be a minimum or a saddle."
        raise NotConvergedError(f"{message}\nRaise anchor=, or use float64 (model.double()).", result)
    if not result.is_minimum:
        known = f"{result.smallest:.3g} (residual {result.smallest_residual:.1g})"
        message = f"polish ended at a saddle, smallest eigenvalue {known}."
        raise NotConvergedError(f"{message}\nRaise anchor= above {-result.smallest:.2g}, or train longer.", result)
    return result


class _Descent:
    """The state of one descent: a point in float64, its gradient, and what was spent."""

    def __init__(
        self,
        loss: Loss | _RecordedLoss,
        gtol: float,
        max_gradients: int,
        max_products: int,
        max_drift: float,
        bar: tqdm,
    ):
        self.loss, self.gtol, self.bar = loss, gtol, bar
        self.num_known = loss.num_gradients if isinstance(loss, _RecordedLoss) else 0  # which the bar begins with
        self.max_gradients, self.max_products, self.max_drift = max_gradients, max_products, max_drift
        self.start = loss.theta0
        self.num_gradients = self.num_products = 0
        self.failure: str | None = None
        self.is_concave = False  # whether the last Newton step met negative curvature
        self.value, self.gradient = self._evaluate(self.start)
        self.theta, self.before = self.start, float(self.gradient.norm())

    def lbfgs(self) -> None:
        """SciPy's L-BFGS, until the tolerance, the drift limit or where the line search ends."""
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
            start = self.theta.cpu().double().numpy()
            scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B", callback=accepted, options=options)

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
            f"Newton steps no longer reduce it.\nThis is the limit of {kind} here; use gtol={2 * norm:.1g}{other}. "
            "With kinks (ReLU, max pooling) there is no smooth minimum to reach: use SiLU or GELU."
        )

    def check_drift(self) -> None:
        """Refuse a point that is too far away, however it was reached."""
        if self.failure is None:
            self._drifted(self.theta)

    def smallest_eigenpair(self, accuracy: float) -> Eigenpairs:
        """Of the Hessian at theta, known to `accuracy` or to 1e-5 of the largest, as far as that can be reached."""
        if isinstance(self.loss, _RecordedLoss):
            H: Any = _RecordedHessian(self.loss, hessian(around(self.loss.loss, self.theta)))
        else:
            H = hessian(around(self.loss, self.theta))
        self._say("smallest eigenvalue")
        ends = _smallest(H, 1e-3)
        self.num_products += ends.num_products
        error, wanted = _error(ends), max(accuracy, 1e-5 * abs(ends.other_end))
        is_coarse = error > wanted or float(ends.values[0]) < error  # a small eigenvalue could be a negative one
        if is_coarse and self.failure is None:
            ends = _smallest(H, min(1e-3, 0.5 * wanted / (ends.scale or 1.0)))
            self.num_products += ends.num_products
        return ends

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

    def _say(self, words: str) -> None:
        """What is done now, on the bar, as soon as that may be seen."""
        self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(0)

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
            self._say(f"Newton step, {self.num_products} products")
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


def _error(ends: Eigenpairs) -> float:
    """How far from the smallest value an eigenvalue of the exact loss may lie."""
    return float(ends.residuals[0]) + ends.noise + (0.0 if math.isnan(ends.rounding) else ends.rounding)


def _smallest(H: Any, tol: float) -> Eigenpairs:
    """The smallest eigenpair, as far as it was found; its residual says how far."""
    try:
        tol = max(tol, 4 * torch.finfo(H.dtype).eps)
        return top_eigs(H, k=1, which="SA", tol=tol, progress=False)
    except NotConvergedError as error:
        found: Eigenpairs = error.result
        return found


class _RecordedLoss:
    """A loss whose gradients and products are kept in a file, in the order in which a descent asks for them.

    The first and the last gradient of the file are computed anew and compared: two losses may agree in one point, as
    one with an anchor there and one without.
    """

    def __init__(self, loss: Loss, resume: str | Path, anchor: float):
        if loss.ranks is not None:
            received = "is given with a loss whose examples several processes share"
            raise ValueError(argument_message("resume", received, "a loss of one process", "Leave resume= out."))
        self.loss, self.theta0 = loss, loss.theta0
        self.file = ResumeFile(resume, {"theta0": digest(loss.theta0), "anchor": repr(anchor)}, kind="a polish")
        self._calls: list[str] = []  # what was asked for, and a digest of where
        self._values: list[float] = []  # NaN for a product
        self._rows: list[Tensor] = []  # gradients and products, (p,) on the CPU
        self._next = 0  # number of the next call
        stored = self.file.read()
        if stored is not None:
            with self.file.decoding():
                self._calls, self._values, self._rows = stored["calls"], stored["values"], stored["rows"]
                if not len(self._calls) == len(self._values) == len(self._rows):
                    raise ValueError("lists of different lengths")
                if any(row.shape != self.theta0.shape for row in self._rows):
                    raise ValueError("rows of another length")
        gradients = [i for i, call in enumerate(self._calls) if call.startswith("gradient")]
        self._compared = {*gradients[:1], *gradients[-1:]}  # numbers of the calls that are made anew
        self.num_gradients = len(gradients)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """As of the loss."""
        value, gradient = self.recorded(f"gradient {digest(theta)}", lambda: self.loss.value_and_gradient(theta))
        return torch.tensor(value, dtype=torch.float64), gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """As of the loss."""
        return self.recorded(f"product {digest(theta, v)}", lambda: (math.nan, self.loss.hvp(theta, v)))[1]

    def recorded(self, call: str, compute: Callable[[], tuple[float | Tensor, Tensor]]) -> tuple[float, Tensor]:
        """A value and a vector (p,): from the file where the call is the next one there, else computed and kept."""
        number, self._next = self._next, self._next + 1
        if number < len(self._calls) and self._calls[number] == call:
            value, row = self._values[number], self._rows[number]
            if number in self._compared:
                self._compared.discard(number)
                fresh, other = compute()
                if repr(float(fresh)) != repr(value) or not torch.equal(row, other.cpu()):
                    remedy = "Name another file, or repeat the call that made this one, with as many threads."
                    self.file.refuse(["loss"], remedy)
            return value, row.to(self.theta0.device, copy=True)
        # From here on other calls follow, as where a limit was raised: what came of the old ones is no use.
        del self._calls[number:], self._values[number:], self._rows[number:]
        fresh, row = compute()
        self._calls.append(call)
        self._values.append(float(fresh))
        self._rows.append(row.detach().cpu().clone())
        self.file.keep({"calls": [*self._calls], "values": [*self._values], "rows": [*self._rows]})
        return self._values[-1], row


class _RecordedHessian:
    """The Hessian (p, p) of a recorded loss, its products kept in the same file."""

    def __init__(self, record: _RecordedLoss, H: Hessian):
        self._record, self._H = record, H
        self.shape, self.dtype, self.device = H.shape, H.dtype, H.device

    def __matmul__(self, v: Tensor) -> Tensor:
        return self._record.recorded(f"matrix {digest(self._H.theta, v)}", lambda: (math.nan, self._H @ v))[1]

    def exact_products(self, rows: Tensor, *, by_differences: bool) -> Tensor:
        """As of the Hessian, (b, p) float64; raises where it has none."""

        def exact(row: Tensor) -> tuple[float, Tensor]:
            found = self._H.exact_products(row[None], by_differences=by_differences)
            if found is None:
                raise TypeError("the loss has no float64 form")
            return math.nan, found[0]

        calls = [f"exact {digest(self._H.theta, row)} {by_differences}" for row in rows]
        pairs = zip(calls, rows, strict=True)
        return torch.stack([self._record.recorded(call, partial(exact, row))[1] for call, row in pairs])
