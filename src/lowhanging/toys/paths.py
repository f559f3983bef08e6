"""Gradient flow and noisy descent on small losses, and which circuit they learn first.

Two idealisations of training: gradient flow, which has no step size, and steps with Gaussian noise, which have both a
step and a temperature. The flow is integrated to a tight tolerance by a solver that switches to implicit steps,
because a canyon is stiff: steep across, and along its floor exponentially flat.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import LSODA
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.errors import NotConvergedError, a_type, argument_message, check_count, check_real, check_vector
from lowhanging.io import Saved
from lowhanging.objective.protocol import Loss, check_loss
from lowhanging.toys.losses import Point, as_vector

_RTOL, _ATOL = 1e-10, 1e-12  # of the flow, per step and coordinate
_MAX_POINTS = 20_000  # smooth losses take some hundreds, a kink any number
_ROUGH = "The flow needs a smooth loss that is bounded below; elsewhere take steps, step=."


@dataclass(frozen=True, eq=False, repr=False)
class GradientPath(Saved):
    """One descent on a loss: gradient flow, or steps with or without noise."""

    times: Tensor  # (n,) the flow's time, or step * (number of the step); times[0] = 0
    thetas: Tensor  # (n, p) rows are theta at these times
    losses: Tensor  # (n,)
    gradient_norms: Tensor  # (n,) |gradient|
    step: float | None  # None: gradient flow
    noise: float  # standard deviation of the noise on each coordinate of the gradient
    seed: int
    gtol: float  # gradient norm that counts as rest

    @property
    def is_at_rest(self) -> bool:
        """Whether the gradient norm at the end is at most `gtol`."""
        return float(self.gradient_norms[-1]) <= self.gtol

    def visits_axis(self, *, near: float = 0.1, far: float = 0.5) -> bool:
        """Whether it passed a point that is `on_axis`: one circuit learned, another not yet."""
        return bool(on_axis(self.thetas, near=near, far=far).any())

    def ends_at(self, point: Tensor | Sequence[float], tol: float = 1e-3) -> bool:
        """Whether its last theta is within a distance `tol` of a point (p,)."""
        target = torch.as_tensor(point, dtype=self.thetas.dtype)
        if target.shape != self.thetas[-1].shape:
            expected = f"({self.thetas.shape[1]},), as the path's"
            remedy = "The joint minimum of the cartoons is (0, 0)."
            raise ValueError(argument_message("point", f"has shape {tuple(target.shape)}", expected, remedy))
        return float((self.thetas[-1] - target).norm()) <= tol

    def __repr__(self) -> str:
        noisy = f" and noise {self.noise:g}" if self.noise else ""
        kind = "gradient flow" if self.step is None else f"steps of {self.step:g}{noisy}"
        rest = "at rest" if self.is_at_rest else f"|gradient| {float(self.gradient_norms[-1]):.2g}"
        return (
            f"GradientPath({kind}, {len(self.times):,} points to time {float(self.times[-1]):.4g}, "
            f"loss {float(self.losses[0]):.4g} -> {float(self.losses[-1]):.4g}, {rest})"
        )


def on_axis(thetas: Tensor, *, near: float = 0.1, far: float = 0.5) -> Tensor:
    """Where one coordinate is within `near` of 0 while another is at least `far` from it.

    On the cartoons: the floor of a canyon, away from the junction, where one circuit is learned and the other is not.

    Args:
        thetas: (..., p) points, p >= 2.
        near: the coordinate of the circuit that is learned, at most, in magnitude.
        far: the coordinate of one that is not, at least, in magnitude.

    Returns:
        (...) bool.

    Raises:
        ValueError, TypeError: an argument out of range, or not near < far.
    """
    near = check_real("near", near, minimum=0.0, remedy="It is a distance.")
    check_real("far", far, remedy="It is a distance.")
    if not near < far:
        raise ValueError(
            argument_message("far", f"is {far:g}", f"more than near = {near:g}", "Leave both out for 0.1 and 0.5.")
        )
    if not isinstance(thetas, Tensor) or thetas.ndim < 1 or thetas.shape[-1] < 2:
        received = f"has shape {tuple(thetas.shape)}" if isinstance(thetas, Tensor) else f"is {a_type(thetas)}"
        raise ValueError(argument_message("thetas", received, "points of shape (..., p), p >= 2", "Pass path.thetas."))
    magnitudes = thetas.abs()
    return (magnitudes.amin(-1) <= near) & (magnitudes.amax(-1) >= far)


def gradient_path(
    loss: Loss,
    start: Point,
    *,
    time: float = 1e4,
    step: float | None = None,
    noise: float = 0.0,
    seed: int = 0,
    gtol: float = 1e-9,
    progress: bool | None = None,
) -> GradientPath:
    r"""Descend from `start`: gradient flow, or steps with Gaussian noise.

    Without a `step`, the flow d theta / dt = -grad L(theta), by LSODA, which changes between Adams and backward
    differentiation formulas where the problem becomes stiff, with errors of 1e-10 relative and 1e-12 absolute per
    coordinate and step; the points are the solver's own steps. With one, theta <- theta - step (grad L + noise xi), xi
    standard normal in each coordinate: gradient descent at noise = 0, else a model of SGD with temperature
    step * noise^2 / 2. On a quadratic of curvature h its variance becomes step noise^2 / (h (2 - step h)). Everything
    is computed in float64, whatever the objective's dtype.

    Args:
        loss: any objective of few parameters.
        start: (p,) where it begins.
        time: how far to go, in units of squared theta per loss, as 1 / curvature; round(time / step) steps.
        step: step size of descent; None: gradient flow.
        noise: standard deviation of the noise on each coordinate of the gradient; needs a step.
        seed: of the noise, by a generator of its own.
        gtol: without noise, the path ends early where the gradient norm is at most this. Far out in a sloped canyon
            the slope itself is that small: for 1e-9, beyond 4.5 from the origin on the post's cartoon.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        GradientPath. Not being at rest when the time is over is no error: `is_at_rest` says it.

    Raises:
        NotConvergedError: the solver failed, or the loss or its gradient became NaN or infinite; `.result` is the path
            up to there.
        ValueError, TypeError: an argument out of range, or a loss that is not finite at the start.

    Cost:
        the flow: about three gradients per point, some hundreds of points; where it is stiff, p gradients for each of a
        few Jacobians of 8 p^2 bytes. Steps: one gradient each, and every theta is kept: 8 p bytes a step.

    Source:
        Petzold (1983), "Automatic selection of methods for solving stiff and nonstiff systems of ordinary differential
        equations".
    """
    loss = check_loss("loss", loss)
    remedy = "Pass objective.theta0 or another point of the loss."
    vector = as_vector("start", start, remedy)
    point = check_vector("start", vector, loss.num_params, owner=str(loss), remedy=remedy).numpy()
    time = check_real("time", time, minimum=0.0, remedy="It is the end of the path; 1e4 by default.")
    noise = check_real("noise", noise, minimum=0.0, remedy="It is the noise's standard deviation; 0 by default.")
    gtol = check_real("gtol", gtol, minimum=0.0, remedy="It is the gradient norm at rest; 1e-9 by default.")
    seed = check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    if step is not None:
        step = check_real("step", step, minimum=0.0, exclusive=True, remedy="Leave it out for gradient flow.")
    elif noise:
        remedy = "Pass step=, such as a tenth of 2 / (largest curvature): noise acts once per step."
        raise ValueError(argument_message("step", f"is None with noise {noise:g}", "a step size", remedy))
    with torch.inference_mode(False), torch.enable_grad(), np.errstate(over="ignore", invalid="ignore"):
        walk = _Walk(loss, point, gtol)
        hidden, delay = progress is False, 2.0 if progress is None else 0.0
        with tqdm(desc="gradient path", unit=" steps", disable=hidden, delay=delay) as bar:
            try:
                failure = walk.flow(time, bar) if step is None else walk.steps(time, step, noise, seed, bar)
            except _NotFiniteError as error:
                failure = f"stopped after time {walk.times[-1]:.4g}, where {error}.\n" + (
                    _ROUGH if step is None else "Take a smaller step=: below 2 / (largest curvature)."
                )
    path = GradientPath(
        times=torch.tensor(walk.times, dtype=torch.float64),
        thetas=torch.from_numpy(np.array(walk.thetas)),
        losses=torch.tensor(walk.losses, dtype=torch.float64),
        gradient_norms=torch.tensor(walk.gradient_norms, dtype=torch.float64),
        step=step,
        noise=noise,
        seed=seed,
        gtol=gtol,
    )
    if failure:
        raise NotConvergedError(f"gradient_path {failure}", path)
    return path


class _NotFiniteError(Exception):
    """The loss or its gradient is NaN or infinite at a trial point."""


class _Walk:
    """The points of a path so far, and how to go on."""

    def __init__(self, loss: Loss, start: np.ndarray, gtol: float):
        self.function, self.device, self.gtol = loss.in_double(), loss.theta0.device, gtol
        self.times: list[float] = []
        self.thetas: list[np.ndarray] = []
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        try:
            self.gradient = self.add(0.0, start)
        except _NotFiniteError as error:
            raise ValueError(
                argument_message("start", f"is where {error}", "a point with a finite loss", "Move it.")
            ) from error
        except RuntimeError as error:
            if loss.theta0.dtype == torch.float64:
                raise
            received = f"can't be evaluated in float64 ({str(error).splitlines()[0]})"
            raise ValueError(
                argument_message(
                    "loss", received, "a function that follows the dtype of theta", "Make its constants float64."
                )
            ) from error

    @property
    def is_at_rest(self) -> bool:
        return self.gradient_norms[-1] <= self.gtol

    def evaluate(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss and gradient (p,)."""
        point = torch.tensor(theta, dtype=torch.float64, device=self.device, requires_grad=True)
        value = self.function(point)
        (gradient,) = torch.autograd.grad(value, point)
        number, slopes = float(value.detach()), gradient.cpu().numpy()
        norm = float(np.linalg.norm(slopes))
        if not (math.isfinite(number) and math.isfinite(norm)):
            raise _NotFiniteError(f"the loss is {number:g} and |gradient| {norm:g}")
        return number, slopes

    def add(self, time: float, theta: np.ndarray) -> np.ndarray:
        """Keep a point; returns the gradient there."""
        value, gradient = self.evaluate(theta)
        self.times.append(time)
        self.thetas.append(theta)
        self.losses.append(value)
        self.gradient_norms.append(float(np.linalg.norm(gradient)))
        return gradient

    def flow(self, end: float, bar: tqdm) -> str:
        """Gradient flow until rest or `end`; returns why it failed, or ""."""
        if self.is_at_rest or end == 0.0:
            return ""
        escaped: list[_NotFiniteError] = []

        def velocity(_: float, theta: np.ndarray) -> np.ndarray:
            try:
                return -self.evaluate(theta)[1]
            except _NotFiniteError as error:
                escaped.append(error)
                raise

        solver = LSODA(velocity, 0.0, self.thetas[0], end, rtol=_RTOL, atol=_ATOL)
        while solver.status == "running" and not self.is_at_rest:
            before = solver.t
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                message = solver.step()
            if escaped:
                raise escaped[0]
            if solver.status == "failed" or solver.t <= before:
                why = caught[-1].message if caught else message or "the next step is below rounding"
                return f"failed at time {before:.9g}: {why}.\n{_ROUGH}"
            self.add(float(solver.t), np.array(solver.y))
            bar.update()
            if len(self.times) >= _MAX_POINTS:
                return f"stopped at time {solver.t:.4g} after {_MAX_POINTS:,} points.\n{_ROUGH}"
        return ""

    def steps(self, end: float, step: float, noise: float, seed: int, bar: tqdm) -> str:
        """Steps until rest or `end`; returns ""."""
        generator = torch.Generator().manual_seed(seed)
        num_steps = round(end / step)
        gradient = self.gradient
        for number in range(1, num_steps + 1):
            if noise:
                xi = torch.randn(len(gradient), generator=generator, dtype=torch.float64).numpy()
                gradient = gradient + noise * xi
            elif self.is_at_rest:
                break
            gradient = self.add(number * step, self.thetas[-1] - step * gradient)
            bar.update()
        return ""
