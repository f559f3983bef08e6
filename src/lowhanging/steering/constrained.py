"""Least value of one function where others stay below limits: an augmented Lagrangian, then Newton steps.

L-BFGS needs no second derivatives and goes most of the way; what it leaves of the optimality conditions

    g + sum_j mu_j g_j = 0,   c_j = 0 (mu_j > 0),   c_j <= 0 (mu_j = 0)

is solved by Newton steps, MINRES on their symmetric matrix [H, J'; J, 0] by products. The next Newton step's change of
a multiplier, which is not taken, is its error. All in NumPy's float64; the losses are computed in their own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.optimize
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, minres
from torch import Tensor

from lowhanging.curvature.eigenpairs import top_eigs
from lowhanging.curvature.operators import hessian
from lowhanging.errors import NotConvergedError
from lowhanging.objective.protocol import Loss, around

Array = NDArray[np.float64]
FEASIBLE = 1e-3  # of a limit: by how much a constraint may be missed
_MAX_OUTER = 15  # multiplier updates
_MAX_NEWTON = 4
_LARGEST = 1e8  # weight of a penalty
_CURVATURE_TOL = 1e-3  # of the largest eigenvalue's magnitude


def array(vector: Tensor) -> Array:
    """A vector (p,) as NumPy's float64."""
    found: Array = vector.detach().cpu().double().numpy()
    return found


def tensor(vector: Array, like: Tensor) -> Tensor:
    """Back again, on the device and in the dtype of `like`."""
    return torch.from_numpy(np.ascontiguousarray(vector)).to(like)


class Function(Protocol):
    """A smooth function of theta (p,)."""

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """Value and gradient (p,)."""

    def hessian(self, theta: Array) -> Callable[[Array], Array]:
        """The product with its Hessian at theta."""


def _nothing() -> None:
    pass


class LossFunction:
    """A loss in NumPy's float64, remembering its last value and gradient, and counting."""

    def __init__(self, loss: Loss, like: Tensor):
        self.loss, self.like, self.num_gradients, self.num_products = loss, like, 0, 0
        self.watch: Callable[[], None] = _nothing  # called after every gradient: a progress bar
        self._last: tuple[bytes, float, Array] | None = None

    def __call__(self, theta: Array) -> tuple[float, Array]:
        key = theta.tobytes()
        if self._last is None or self._last[0] != key:
            self.num_gradients += 1
            found, point = (math.inf, np.zeros_like(theta)), tensor(theta, self.like)
            if bool(point.isfinite().all()):
                value, slope = self.loss.value_and_gradient(point)
                if bool(value.isfinite()) and bool(slope.isfinite().all()):
                    found = float(value), array(slope)
            self._last = key, *found
            self.watch()
        return self._last[1:]

    def hessian(self, theta: Array) -> Callable[[Array], Array]:
        """Counted products."""
        H = hessian(around(self.loss, tensor(theta, self.like)))

        def product(v: Array) -> Array:
            self.num_products += 1
            return array(H @ tensor(v, self.like))

        return product


class Ball:
    """(|theta - center|^2 - r^2) / (2 r), for the constraint |theta - center| <= r: there its slope in r is -1."""

    def __init__(self, center: Array, radius: float):
        self.center, self.radius = center, radius

    def __call__(self, theta: Array) -> tuple[float, Array]:
        delta = theta - self.center
        return float(delta @ delta - self.radius**2) / (2 * self.radius), delta / self.radius

    def hessian(self, theta: Array) -> Callable[[Array], Array]:
        """The identity over r."""
        return lambda v: v / self.radius


@dataclass(frozen=True)
class Limit:
    """The constraint function <= value; `scale` is what a gap is small against."""

    function: Function
    value: float
    scale: float

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """The gap, negative inside, and its gradient."""
        value, slope = self.function(theta)
        return value - self.value, slope


@dataclass
class Candidate:
    """A point with its multipliers, and the value there: infinite where a constraint is missed."""

    theta: Array
    multipliers: Array
    value: float
    error: float = math.inf  # of the first multiplier


class Problem:
    """min target(theta) subject to each limit.

    Args:
        target: what is minimised.
        limits: the constraints; the error that is found is that of the first one's multiplier.
        gtol: norm of the Lagrangian's gradient to reach.
        dtype: in which the losses are computed.
    """

    def __init__(self, target: Function, limits: Sequence[Limit], gtol: float, dtype: torch.dtype):
        self.target, self.limits, self.gtol, self.dtype = target, tuple(limits), gtol, dtype
        self.ftol = 10 * torch.finfo(dtype).eps  # line searches on less than rounding lead nowhere; Newton goes on
        self.scales = np.array([limit.scale for limit in limits])

    def gaps(self, theta: Array) -> Array:
        """(m,) negative where a constraint holds."""
        return np.array([limit(theta)[0] for limit in self.limits])

    def is_feasible(self, theta: Array) -> bool:
        """Whether every constraint holds, up to a thousandth of its scale."""
        return bool((self.gaps(theta) <= FEASIBLE * self.scales).all())

    def kkt(self, theta: Array, multipliers: Array) -> float:
        """|gradient of the Lagrangian|."""
        slope = self.target(theta)[1].copy()
        for mu, limit in zip(multipliers, self.limits, strict=True):
            slope += mu * limit(theta)[1]
        return float(np.linalg.norm(slope))

    def solved(self, start: Array, guess: Array | None, max_gradients: int) -> Candidate:
        """Augmented Lagrangian from one start; `max_gradients` counts evaluations of all functions at once."""
        value = abs(self.target(start)[0])
        if not math.isfinite(value + float(np.abs(self.gaps(start)).sum())):
            return Candidate(start, np.zeros(len(self.limits)), math.inf)
        multipliers = np.zeros(len(self.limits)) if guess is None else guess.copy()
        least = np.maximum(0.5 * value / self.scales, 1e-3)  # where there is no slope to balance yet
        weights = 10 * np.maximum(multipliers, least) / self.scales
        theta, worst, accuracy, left = start.copy(), math.inf, 1e-2, max_gradients
        for _ in range(_MAX_OUTER):
            lagrangian = self._augmented(multipliers, weights)
            # Max-norm, in which SciPy judges: first loosely, then to what is wanted.
            wanted = self.gtol / math.sqrt(len(theta))
            wanted = max(wanted, accuracy * float(np.abs(lagrangian(theta)[1]).max()))
            options = {"maxcor": 20, "maxfun": left, "maxiter": left, "maxls": 10, "ftol": self.ftol, "gtol": wanted}
            found = scipy.optimize.minimize(lagrangian, theta, jac=True, method="L-BFGS-B", options=options)
            theta, left = found.x, left - found.nfev
            gaps = self.gaps(theta)
            missed = float((np.maximum(gaps, np.where(multipliers > 0, np.abs(gaps), 0.0)) / self.scales).max())
            multipliers = self._balanced(theta, gaps, np.maximum(0.0, multipliers + weights * gaps))
            is_solved = missed <= 0.1 * FEASIBLE and self.kkt(theta, multipliers) <= self.gtol
            if is_solved or left < 2:
                break
            if missed > 0.25 * worst:
                weights = np.minimum(10 * weights, _LARGEST)
            worst, accuracy = missed, max(0.1 * accuracy, 1e-6)
        return Candidate(theta, multipliers, self.target(theta)[0] if self.is_feasible(theta) else math.inf)

    def _balanced(self, theta: Array, gaps: Array, updated: Array) -> Array:
        """The multipliers with which the gradients balance best: the update's, or by least squares.

        Where L-BFGS was stopped by rounding, the update of a large penalty can be anything, 0 too.
        """
        near = np.flatnonzero(gaps > -FEASIBLE * self.scales)
        fitted = np.zeros_like(updated)
        if len(near):
            normals = np.stack([self.limits[i](theta)[1] for i in near], axis=1)  # (p, m)
            fitted[near] = scipy.optimize.nnls(normals, -self.target(theta)[1])[0]
        return fitted if self.kkt(theta, fitted) < self.kkt(theta, updated) else updated

    def _augmented(self, multipliers: Array, weights: Array) -> Callable[[Array], tuple[float, Array]]:
        """The augmented Lagrangian; where a loss is not finite, a cone around the last point where all were."""
        last: tuple[Array, float] | None = None

        def function(theta: Array) -> tuple[float, Array]:
            nonlocal last
            total, slope = lagrangian(theta)
            if math.isfinite(total) and np.isfinite(slope).all():
                last = theta.copy(), total
                return total, slope
            if last is None:
                raise FloatingPointError("a loss is not finite at a start")  # which `solved` has looked at
            way = theta - last[0]
            length, height = float(np.linalg.norm(way)), abs(last[1]) + 1.0
            if not math.isfinite(length):
                return last[1] + 1e30, np.zeros_like(theta)
            return last[1] + height * (1.0 + length), height * way / max(length, 1e-300)

        def lagrangian(theta: Array) -> tuple[float, Array]:
            total, slope = self.target(theta)
            for mu, rho, limit in zip(multipliers, weights, self.limits, strict=True):
                gap, normal = limit(theta)
                if not math.isfinite(total + gap):
                    return math.inf, slope
                force = max(0.0, mu + rho * gap)
                total, slope = total + (force**2 - mu**2) / (2 * rho), slope + force * normal
            return total, slope

        return function

    def refined(self, found: Candidate, max_products: int) -> Candidate:
        """Newton steps as far as they lower the residual of the optimality conditions, and keep the constraints.

        Where the multipliers' equations were not solved to the end, their error is not known.
        """
        theta, multipliers, error = found.theta, found.multipliers, math.inf
        was_feasible = math.isfinite(found.value)
        for _ in range(_MAX_NEWTON + 1):
            if max_products < 20:
                break
            step, change, num, is_solved = self._newton_step(theta, multipliers, max_products)
            error, max_products = abs(float(change[0])) if is_solved else math.inf, max_products - num
            before, is_better = self._residual(theta, multipliers), False
            if before <= 0.1 * self.gtol:
                break
            for factor in (1.0, 0.5, 0.25):
                new, mu = theta + factor * step, np.maximum(0.0, multipliers + factor * change)
                is_kept = self.is_feasible(new) if was_feasible else True
                if is_kept and self._residual(new, mu) < 0.9 * before:
                    theta, multipliers, is_better = new, mu, True
                    break
            if not is_better:
                break
        if not self.is_feasible(theta):
            return Candidate(theta, multipliers, math.inf)
        return Candidate(theta, multipliers, self.target(theta)[0], error)

    def _residual(self, theta: Array, multipliers: Array) -> float:
        gaps = self.gaps(theta)
        gaps = np.where(multipliers > 0, gaps, np.maximum(gaps, 0.0))
        return float(np.hypot(self.kkt(theta, multipliers), np.linalg.norm(gaps)))

    def _active(self, theta: Array, multipliers: Array) -> tuple[list[int], Array]:
        """Which constraints bind, and their gradients (m, p)."""
        active = [i for i, mu in enumerate(multipliers) if mu > 0]
        return active, np.array([self.limits[i](theta)[1] for i in active]).reshape(len(active), len(theta))

    def _lagrangian_hessian(self, theta: Array, multipliers: Array) -> Callable[[Array], Array]:
        parts = [(1.0, self.target.hessian(theta))]
        parts += [
            (float(mu), limit.function.hessian(theta))
            for mu, limit in zip(multipliers, self.limits, strict=True)
            if mu > 0
        ]

        def product(v: Array) -> Array:
            total = np.zeros_like(v)
            for factor, apply in parts:
                total += factor * apply(v)
            return total

        return product

    def _newton_step(self, theta: Array, multipliers: Array, max_steps: int) -> tuple[Array, Array, int, bool]:
        """Of theta (p,) and of the multipliers (m,), how many products it took, and whether that was enough."""
        active, rows = self._active(theta, multipliers)
        H, p, num = self._lagrangian_hessian(theta, multipliers), len(theta), 0
        # Constraints of unit slope, or MINRES sees them last.
        sizes = np.maximum(np.linalg.norm(rows, axis=1), 1e-300)

        def product(x: Array) -> Array:
            nonlocal num
            num += 1
            return np.concatenate([H(x[:p]) + (x[p:] / sizes) @ rows, rows @ x[:p] / sizes])

        slope = self.target(theta)[1] + multipliers[active] @ rows
        right = -np.concatenate([slope, self.gaps(theta)[active] / sizes])
        operator = LinearOperator((p + len(active),) * 2, product, dtype=np.float64)
        found, info = minres(operator, right, rtol=1e-4, maxiter=max_steps)
        change = np.zeros(len(multipliers))
        change[active] = found[p:] / sizes
        return found[:p], change, num, info == 0

    def least_curvature(self, found: Candidate) -> tuple[float, float]:
        """Least eigenvalue of the Lagrangian's Hessian on the tangent space of the active constraints, and its error.

        NaN where there is no such space, where a constraint is missed, or where it could not be found.
        """
        _, rows = self._active(found.theta, found.multipliers)
        normals = np.linalg.qr(rows.T)[0].T  # (m, p)
        if len(normals) >= len(found.theta) or not math.isfinite(found.value):
            return math.nan, math.nan
        H = self._lagrangian_hessian(found.theta, found.multipliers)

        def tangent(v: Array) -> Array:
            inside: Array = v - (normals @ v) @ normals
            return inside

        probe = tangent(np.random.default_rng(0).standard_normal(len(found.theta)))
        # The normals get an eigenvalue that is not the least: twice the root mean square of all is above that.
        size = 2 * float(np.linalg.norm(H(probe)) / np.linalg.norm(probe))

        def shifted(v: Array) -> Array:
            v = v.reshape(-1).astype(np.float64)
            inside = tangent(v)
            return tangent(H(inside)) + size * (v - inside)

        kind = np.float32 if self.dtype == torch.float32 else np.float64
        operator = LinearOperator((len(probe),) * 2, shifted, dtype=kind)
        try:
            pairs = top_eigs(operator, k=1, which="SA", tol=_CURVATURE_TOL, progress=False)
        except (NotConvergedError, FloatingPointError, ValueError):  # or float32 rounds the matrix out of symmetry
            return math.nan, math.nan
        return float(pairs.values[0]), 2 * _CURVATURE_TOL * pairs.scale
