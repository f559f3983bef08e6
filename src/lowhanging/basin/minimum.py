"""Where is the minimum near these trained weights, and is it one?

Training stops where it stops; second-order geometry belongs to a minimum of a *fixed* loss. Cross-entropy on a small
fixed set has its minimum at infinity: following it destroys the solution that was to be studied, and weight decay
towards the origin destroys it too. A weak quadratic anchor at the trained weights keeps the solution and, being a
tilt plus a constant on spheres around the minimum, makes no canyon. L-BFGS goes most of the way; a few Newton steps,
solved by conjugate gradients on our products, go to the floor of the floating-point type.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.anchored import AnchoredObjective
from lowhanging.basin.answers import Answers
from lowhanging.basin.descent import Descent
from lowhanging.basin.eigenpairs import Eigenpairs, top_eigs
from lowhanging.basin.operators import hessian
from lowhanging.basin.symmetric_operator import plain_arithmetic
from lowhanging.checkpoints import Checkpoint
from lowhanging.errors import NotConvergedError, check_count, check_real
from lowhanging.loss import Loss, around, check_loss, moving_values
from lowhanging.ranks import is_silent
from lowhanging.results import load_result, save_result


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

    def save(self, path: str | Path) -> Path:
        """Write to npz, without the objectives."""
        return save_result(dataclasses.replace(self, objective=None, unanchored=None), path)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path, objective: Loss) -> Minimum:
        """Read what `save` wrote; `objective` is the loss that was polished, without its anchor."""
        stored = load_result(cls, path)
        place = stored.checkpoint if stored.moving_buffers else stored.theta
        loss = around(objective, place, buffers=None if stored.moving_buffers else "fixed")
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
    answers = None if resume is None else Answers(loss, resume, anchor)
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
    loss, unanchored = around(cast(Loss, descent.loss), descent.theta), around(objective, descent.theta)
    H: Any = hessian(loss)
    H = descent.loss.matrix(H) if isinstance(descent.loss, Answers) else H
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
