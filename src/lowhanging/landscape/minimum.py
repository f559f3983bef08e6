"""How does a descent go on after an interruption? By the answers that the loss gave before it.

SciPy's L-BFGS keeps its state to itself, so it can't be written down. But all that a descent does follows from what it
asks the loss and what it is told: given the same answers it takes the same steps, to the last bit. So the answers are
kept, in order. A run that goes on asks again from the start, and what was asked before costs only the arithmetic in
between. The first gradient and the last one are computed anew and compared, so that the file of another loss is found
out: two losses may agree in one point, as one with an anchor there and one without.

How does one get to the bottom? L-BFGS most of the way, then Newton steps by conjugate gradients.

SciPy's L-BFGS looks at values, whose rounding stops it early; Newton steps are judged by the gradient norm alone and go
to the floor of the floating-point type. Where the bottom is too far away, there was no minimum to go to.

Where is the minimum near these trained weights, and is it one?

Training stops where it stops; second-order geometry belongs to a minimum of a *fixed* loss. Cross-entropy on a small
fixed set has its minimum at infinity: following it destroys the solution that was to be studied, and weight decay
towards the origin destroys it too. A weak quadratic anchor at the trained weights keeps the solution and, being a
tilt plus a constant on spheres around the minimum, makes no canyon. L-BFGS goes most of the way; a few Newton steps,
solved by conjugate gradients on our products, go to the floor of the floating-point type.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.curvature.eigenpairs import Eigenpairs, top_eigs
from lowhanging.curvature.operators import Hessian, hessian, plain_arithmetic
from lowhanging.errors import NotConvergedError, argument_message, check_count, check_real
from lowhanging.io import ResumeFile, Saved, digest
from lowhanging.objective.checkpoints import Checkpoint
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.objective import AnchoredObjective
from lowhanging.objective.protocol import Loss, around, check_loss, moving_values

_Answer = tuple[float, Tensor]  # value (NaN for a product), gradient or product (p,)


class RecordedLoss:
    """A loss whose gradients and products are kept in a file, as far as a descent asks for them.

    Args:
        loss: the loss, around the point where the descent starts.
        resume: path of the file.
        anchor: of the loss, for the message where the file has another.
    """

    def __init__(self, loss: Loss, resume: str | Path, anchor: float):
        if loss.ranks is not None:
            received = "is given with a loss whose examples several processes share"
            raise ValueError(argument_message("resume", received, "a loss of one process", "Leave resume= out."))
        self._loss, self._like = loss, loss.theta0
        identity = {"theta0": digest(loss.theta0), "anchor": repr(anchor)}
        self._file = ResumeFile(resume, identity, kind="a polish")
        self._questions: list[str] = []  # digests
        self._answers: list[_Answer] = []
        self._next = 0  # number of the next question
        self._is_written = True
        self._read()
        gradients = [i for i, question in enumerate(self._questions) if question.startswith("gradient")]
        self._compared = {*gradients[:1], *gradients[-1:]}  # numbers of the answers that are computed anew
        self.num_gradients = sum(question.startswith("gradient") for question in self._questions)

    @property
    def theta0(self) -> Tensor:
        """Where the descent starts, (p,)."""
        return self._loss.theta0

    def at(self, theta: Tensor, *, buffers: Literal["fixed"] = "fixed") -> Loss:
        """The loss itself, around another point."""
        return self._loss.at(theta, buffers=buffers)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """As of the loss."""

        def ask() -> _Answer:
            value, gradient = self._loss.value_and_gradient(theta)
            return float(value), gradient

        value, gradient = self._answer(f"gradient {digest(theta)}", ask)
        return torch.tensor(value, dtype=torch.float64), gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """As of the loss."""
        return self._answer(f"product {digest(theta, v)}", lambda: (float("nan"), self._loss.hvp(theta, v)))[1]

    def matrix(self, H: Hessian) -> _Answered:
        """A Hessian of the loss whose products are kept, too."""
        return _Answered(self, H)

    def product(self, H: Hessian, v: Tensor) -> Tensor:
        """H v, (p,)."""
        return self._answer(f"matrix {digest(H.theta, v)}", lambda: (float("nan"), H @ v))[1]

    def exact(self, H: Hessian, row: Tensor, by_differences: bool) -> Tensor:
        """H row in float64, (p,); kept as two vectors in the dtype of the others, what is rounded and what remains."""
        fresh: list[Tensor] = []

        def image() -> Tensor:
            if not fresh:
                found = H.exact_products(row[None], by_differences=by_differences)
                if found is None:
                    raise TypeError("the loss has no float64 form")
                fresh.append(found[0])
            return fresh[0]

        name = f"{digest(H.theta, row)} {by_differences}"
        high = self._answer(f"exact {name}", lambda: (float("nan"), image().to(self._like)))[1].double()
        rest = self._answer(f"rest {name}", lambda: (float("nan"), (image() - high.to(image())).to(self._like)))[1]
        return high + rest.double()

    def flush(self) -> None:
        """Write what is not written yet, on the way out: a full disk is not the error to report."""
        with contextlib.suppress(OSError):
            self._write()

    def _answer(self, question: str, ask: Callable[[], _Answer]) -> _Answer:
        number, self._next = self._next, self._next + 1
        if number < len(self._questions) and self._questions[number] == question:
            value, row = self._answers[number]
            if number in self._compared:
                self._compared.discard(number)
                fresh, other = ask()
                if repr(fresh) != repr(value) or not torch.equal(row, other.cpu()):
                    remedy = "Name another file, or repeat the call that made this one, with as many threads."
                    self._file.refuse(["loss"], remedy)
            return value, row.to(self._like, copy=True)
        # From here on other questions follow, as where a limit was raised: what was answered to the old ones is no use.
        del self._questions[number:], self._answers[number:]
        value, row = ask()
        self._questions.append(question)
        self._answers.append((value, row.detach().cpu().clone()))
        self._is_written = False
        if self._file.is_due:
            self._write()
        return value, row

    def _read(self) -> None:
        stored = self._file.read()
        if stored is None:
            return
        with self._file.decoding():
            rows, values, questions = stored["rows"], stored["values"], stored["questions"]
            if rows.shape != (len(questions), len(self._like)) or len(values) != len(questions):
                raise ValueError(f"{len(questions)} questions, {len(values)} values, rows {tuple(rows.shape)}")
            self._questions, self._answers = questions, list(zip(values, rows, strict=True))

    def _write(self) -> None:
        if not self._is_written:
            values, rows = zip(*self._answers, strict=True)
            self._file.write({"rows": torch.stack(rows), "values": list(values), "questions": self._questions})
            self._is_written = True


class _Answered:
    """A symmetric map (p, p) that asks through `RecordedLoss`."""

    def __init__(self, answers: RecordedLoss, H: Hessian):
        self._answers, self._H = answers, H
        self.shape, self.dtype, self.device = H.shape, H.dtype, H.device

    def exact_products(self, rows: Tensor, *, by_differences: bool) -> Tensor | None:
        """As of the matrix; raises where it has none."""
        return torch.stack([self._answers.exact(self._H, row, by_differences) for row in rows])

    def __matmul__(self, v: Tensor) -> Tensor:
        return self._answers.product(self._H, v)


_PATIENCE = 10  # evaluations in which L-BFGS must lower the loss beyond rounding, or its gradient norm by a tenth
_REMEDY_DRIFT = (
    "There is no minimum near here, as for plain cross-entropy on separable data: raise anchor= "
    "(a hundredth of the largest eigenvalue is usual), train longer first, or allow more with max_drift=."
)


class Descent:
    """The state of one descent: a point in float64, its gradient, and what was spent."""

    def __init__(
        self, loss: Loss | RecordedLoss, gtol: float, max_gradients: int, max_products: int, max_drift: float, bar: tqdm
    ):
        self.loss, self.gtol, self.bar = loss, gtol, bar
        self.num_known = loss.num_gradients if isinstance(loss, RecordedLoss) else 0  # which the bar begins with
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
        """Read what `save` wrote; `loss` is the one that was polished, without its anchor; without it there is none."""
        if loss is None:
            return super().load(path)
        stored = super().load(path)
        place = stored.checkpoint if stored.moving_buffers else stored.theta
        loss = around(loss, place, buffers=None if stored.moving_buffers else "fixed")
        anchored = AnchoredObjective(loss, stored.start, stored.anchor) if stored.anchor else loss
        return dataclasses.replace(stored, objective=anchored, unanchored=loss)


@plain_arithmetic()
def polish(
    objective: Loss,
    *,
    anchor: float = 1e-2,
    gtol: float = 1e-6,
    max_gradients: int = 500,
    max_products: int = 2000,
    max_drift: float = 0.2,
    resume: str | Path | None = None,
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
        max_products: number of Hessian products after which no Newton step begins.
        max_drift: how far it may go, as a share of |theta0| (any distance if theta0 = 0).
        resume: npz file of every gradient and product so far: the same call goes on from it, to the same bits (on the
            same device, with as many threads), at the price of two gradients. A call with another `gtol` or other
            limits takes from it what it asks for, too; the file of another loss, theta0 or anchor is refused. The
            file of a finished call stays.
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
        them, p numbers, in the file and in memory (about 100 p numbers here), and writes for no more than a tenth of
        the time.

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
    answers = None if resume is None else RecordedLoss(loss, resume, anchor)
    num_known = 0 if answers is None else answers.num_gradients
    begun, delay = time.perf_counter(), 2.0 if progress is None else 0.0
    try:
        with tqdm(desc="polish", unit="gradient", initial=num_known, disable=is_silent(progress), delay=delay) as bar:
            descent = Descent(answers or loss, gtol, max_gradients, max_products, max_drift, bar)
            for attempt in range(3):
                descent.lbfgs()
                descent.newton()
                descent.check_drift()
                result, lowest = _certified(descent, objective, anchor, begun)
                if result.smallest >= -result.smallest_residual or descent.failure is not None or attempt == 2:
                    break
                descent.leave(lowest)
    finally:
        if answers is not None:
            answers.flush()
    if descent.failure is not None:
        raise NotConvergedError(f"polish {descent.failure}", result)
    if not result.is_certified:
        known = f"{result.smallest:.3g} to within {result.smallest_residual:.1g}"
        message = f"polish knows the smallest eigenvalue only as {known}: that does not tell a minimum from a saddle."
        raise NotConvergedError(f"{message}\nRaise anchor=, or use float64 (model.double()).", result)
    if not result.is_minimum:
        known = f"{result.smallest:.3g} (residual {result.smallest_residual:.1g})"
        message = f"polish ended at a saddle, smallest eigenvalue {known}."
        raise NotConvergedError(f"{message}\nRaise anchor= above {-result.smallest:.2g}, or train longer.", result)
    return result


def _certified(descent: Descent, objective: Loss, anchor: float, begun: float) -> tuple[Minimum, Tensor]:
    """The point reached with both ends of its spectrum, and the eigenvector (p,) of the smallest eigenvalue."""
    loss, unanchored = (each.at(descent.theta, buffers="fixed") for each in (descent.loss, objective))
    H: Any = hessian(loss)
    H = descent.loss.matrix(H) if isinstance(descent.loss, RecordedLoss) else H
    descent.bar.set_postfix_str("smallest eigenvalue")
    ends = _smallest(H, 1e-3)
    num_products = ends.num_products
    error, wanted = _error(ends), max(0.1 * anchor, 1e-5 * abs(ends.other_end))
    is_coarse = error > wanted or float(ends.values[0]) < error  # a small eigenvalue could be a negative one
    if is_coarse and descent.failure is None:
        ends = _smallest(H, min(1e-3, 0.5 * wanted / (ends.scale or 1.0)))
        num_products += ends.num_products
    descent.num_products += num_products
    found = Minimum(
        theta=descent.theta.cpu(),
        start=descent.start.cpu(),
        anchor=anchor,
        loss_before=float(objective(descent.start)),
        loss=float(unanchored(descent.theta)),
        gradient_norm_before=descent.before,
        gradient_norm=float(descent.gradient.norm()),
        gtol=descent.gtol,
        distance=float((descent.theta.double() - descent.start.double()).norm()),
        largest=ends.other_end,
        largest_residual=ends.other_end_residual,
        smallest=float(ends.values[0]),
        smallest_residual=_error(ends),
        num_gradients=descent.num_gradients,
        num_products=descent.num_products,
        seconds=time.perf_counter() - begun,
        objective=loss,
        unanchored=unanchored,
        moving_buffers=moving_values(objective),
    )
    return found, ends.vectors[0]


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
