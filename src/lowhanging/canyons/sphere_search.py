"""Stationary points of a function on a sphere |y| = rho, and the Hessian on its tangent space.

With n = y / rho, P = I - n n^T, g and K gradient and Hessian of f at y, and mu = n.g / rho: y is stationary where
P g = 0, and a minimum where P K P - mu P is positive on the tangent space. L-BFGS goes most of the way on w with
y = rho w / |w|, so that there is no constraint to keep; Newton steps with the explicit Hessian, or by MINRES where the
space is too large for one, go as far as rounding allows. The second term, mu, is the sphere's own curvature: without it
every eigenvector of a quadratic would pass for a minimum.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import torch
from scipy.sparse.linalg import LinearOperator, minres

from lowhanging.canyons.shell import Array, Shell
from lowhanging.curvature.eigenpairs import Eigenpairs, top_eigs
from lowhanging.errors import NotConvergedError

_LOOSE = 3e-3  # relative residual at which L-BFGS hands over to Newton
_ARC = 12.0  # |w| at the start: the first trial step of L-BFGS has length 1, which must not leave a narrow basin
_MAX_TURN = 0.3  # radians of one Newton step
_MAX_NEWTON = 12
_MAX_ESCAPES = 3
_MAX_DOWN = 100  # steps down a ravine, each with a Hessian of its own
_MEMORY = 12  # pairs that L-BFGS keeps


class SpherePoint:
    """A point of the sphere with the value and the gradient of f, which are infinite and 0 where one is not finite.

    Attributes:
        y, gradient: (dim,).
        normal: n = y / |y|, (dim,).
        slope: n.g = d f / d rho.
        multiplier: mu of g = mu y.
        tangent_gradient: P g, (dim,); its norm is the `residual`.
    """

    def __init__(self, y: Array, value: float, gradient: Array):
        self.is_finite = bool(np.isfinite(value) and np.isfinite(gradient).all())
        self.y = y
        self.value, self.gradient = (value, gradient) if self.is_finite else (np.inf, np.zeros_like(y))
        self.radius = float(np.linalg.norm(y))
        self.normal = y / self.radius
        self.slope = float(self.normal @ self.gradient)
        self.multiplier = self.slope / self.radius
        tangent = self.gradient - self.slope * self.normal
        self.tangent_gradient: Array = tangent - (self.normal @ tangent) * self.normal
        self.residual = float(np.linalg.norm(self.tangent_gradient))

    @classmethod
    def towards(cls, shell: Shell, y: Array, radius: float) -> SpherePoint:
        """The point of the sphere in the direction of y, evaluated: one gradient."""
        y = y * (radius / np.linalg.norm(y))
        return cls(y, *shell.value_and_gradient(y))


class TangentHessian:
    """P K P - mu P on the tangent space at a point.

    Dense for subspaces (dim products, once); by products in the full space, where Lanczos finds the lowest eigenvalue.

    Attributes:
        matrix: (dim, dim) K, symmetrised; None in the full space.
        values, vectors: eigenvalues, ascending, and unit eigenvectors as columns: dim - 1, or the lowest alone.
        error: of an eigenvalue; in the full space Lanczos's residual, rounding left out.
    """

    def __init__(self, shell: Shell, point: SpherePoint):
        self.shell, self.point = shell, point
        self.matrix: Array | None = None
        if not shell.is_full:
            shape = (shell.dim, shell.dim)
            self._products = shell.hessian(point.y) if point.is_finite else np.full(shape, np.nan)
            self.matrix = (self._products + self._products.T) / 2

    @functools.cached_property
    def _eigenpairs(self) -> tuple[Array, Array, float]:
        shell, point = self.shell, self.point
        if self.matrix is None:
            is_single = shell.theta0.dtype == torch.float32  # the map is as accurate as its products
            normal = point.normal.astype(np.float32 if is_single else np.float64)
            scale = max(1.0, float(np.max(shell.curvatures / shell.min_curvature, initial=0.0)))
            pairs = lowest_across(lambda v: self.apply(v.astype(np.float64)).astype(v.dtype), normal, scale, tol=1e-4)
            return pairs.values.numpy(), pairs.vectors.numpy().T.astype(np.float64), float(pairs.residuals[0])
        if not np.isfinite(self.matrix).all():  # nothing is known here, and nothing is claimed
            return np.full(shell.dim - 1, -np.inf), np.zeros((shell.dim, shell.dim - 1)), np.inf
        # Antisymmetric part and rounding of the products; theta is rounded to eps |theta|, which moves g, and so mu.
        eps, size = torch.finfo(shell.theta0.dtype).eps, float(np.linalg.norm(self._products, 2))
        error = float(np.linalg.norm(self._products - self._products.T, 2)) / 2 + 8 * eps * size
        rounding = size * float(shell.scales.max()) * float(shell.theta0.double().norm())
        error += eps * (rounding + float(np.linalg.norm(point.gradient))) / point.radius
        frame = complement(point.normal)  # (dim, dim - 1) orthonormal columns
        values, weights = np.linalg.eigh(frame.T @ self.matrix @ frame)
        return values - point.multiplier, frame @ weights, error

    @property
    def values(self) -> Array:
        return self._eigenpairs[0]

    @property
    def vectors(self) -> Array:
        return self._eigenpairs[1]

    @property
    def error(self) -> float:
        return self._eigenpairs[2]

    @property
    def lowest(self) -> float:
        return float(self.values[0])

    @property
    def num_negative(self) -> int:
        """How many of `values` are below zero beyond their error."""
        return int((self.values < -self.error).sum())

    def apply(self, v: Array) -> Array:
        """(P K P - mu P) v, (dim,)."""
        n, mu = self.point.normal, self.point.multiplier
        inside = v - (n @ v) * n
        image = self._product(inside) - mu * inside
        return np.asarray(image - (n @ image) * n)

    def times_normal(self) -> Array:
        """P K n, (dim,)."""
        n = self.point.normal
        image = self._product(n)
        return np.asarray(image - (n @ image) * n)

    def solve(self, rhs: Array) -> Array:
        """(P K P - mu P)^+ rhs for rhs in the tangent space, (dim,); directions known to be flat get nothing."""
        if self.matrix is not None:
            coefficients = self.vectors.T @ rhs
            is_curved = np.abs(self.values) > self.error
            coefficients[is_curved] /= self.values[is_curved]
            coefficients[~is_curved] = 0.0
            return np.asarray(self.vectors @ coefficients)
        dim = len(rhs)
        found = minres(LinearOperator((dim, dim), matvec=self.apply, dtype=np.float64), rhs, rtol=1e-6, maxiter=400)[0]
        n = self.point.normal
        return np.asarray(found - (n @ found) * n)

    def _product(self, v: Array) -> Array:
        return self.matrix @ v if self.matrix is not None else self.shell.product(self.point.y, v)


class _Lifted:
    """A map that is zero along a unit vector n, with that zero lifted out of the way: v -> A v + lift n n^T v."""

    def __init__(self, apply: Callable[[Any], Any], normal: Any, lift: float):
        self.apply, self.normal, self.lift = apply, normal, lift
        self.shape, self.dtype = (len(normal), len(normal)), normal.dtype
        self.device = normal.device if isinstance(normal, torch.Tensor) else torch.device("cpu")

    def __matmul__(self, v: Any) -> Any:
        return self.apply(v) + self.lift * (self.normal @ v) * self.normal


def lowest_across(apply: Callable[[Any], Any], normal: Any, scale: float, *, tol: float) -> Eigenpairs:
    """The smallest eigenpair of a map on the complement of a unit vector along which it is zero, as far as it is found.

    Both are in NumPy or both in torch; `scale` is a guess at the largest eigenvalue. Its residual says how right it is.
    """
    lift = 2.0 * scale
    while True:
        try:
            pairs = top_eigs(_Lifted(apply, normal, lift), k=1, which="SA", tol=tol, progress=False)
        except NotConvergedError as failure:
            pairs = failure.result
        n = torch.as_tensor(normal).cpu().double()
        if abs(float(pairs.vectors[0].double() @ n)) < 0.5 or lift > 2.0 * abs(pairs.other_end):
            return pairs  # else everything lies above the lifted zero, which was found instead
        lift = 4.0 * max(abs(pairs.other_end), lift)


def complement(normal: Array) -> Array:
    """Orthonormal columns (dim, dim - 1) of the tangent space, by a Householder reflection that takes n to an axis."""
    axis = normal.copy()
    axis[0] += np.sign(axis[0]) or 1.0
    axis /= np.linalg.norm(axis)
    reflection = np.eye(len(axis)) - 2.0 * np.outer(axis, axis)
    return reflection[:, 1:]


@dataclass(frozen=True)
class SphereSearch:
    """Searches on one sphere of a shell.

    Args:
        shell: the loss in its coordinates.
        rtol: |P g| allowed, as a share of max(|g|, |K0 y|, min_scale), K0 the Hessian at the center.
        min_scale: on the flat floor of a canyon g and K0 y vanish, and a share of nothing can't be reached.
        typical: |P g| away from stationary points. Where a sphere is nearly level it is much smaller than |g|, and
            L-BFGS has to go on for longer.
    """

    shell: Shell
    rtol: float
    min_scale: float = 0.0
    typical: float = np.inf

    def scale(self, point: SpherePoint) -> float:
        """What the residual is measured against."""
        return max(float(np.linalg.norm(point.gradient)), self.shell.bowl_gradient(point.y), self.min_scale)

    def tolerance(self, point: SpherePoint) -> float:
        """The residual allowed there."""
        return self.rtol * self.scale(point)

    def is_stationary(self, point: SpherePoint) -> bool:
        """Whether the residual is within tolerance."""
        return point.is_finite and point.residual <= self.tolerance(point)

    def _is_near(self, point: SpherePoint) -> bool:
        """Whether Newton steps may take over."""
        scale = self.scale(point)
        return point.residual <= max(_LOOSE * min(scale, self.typical), self.rtol * scale)

    def descend(self, y: Array, radius: float) -> SpherePoint:
        """L-BFGS from y towards a minimum, until the residual is small or no longer falls."""
        best: SpherePoint | None = None

        def function(w: Array) -> tuple[float, Array]:
            nonlocal best
            point = SpherePoint.towards(self.shell, w, radius)
            if not point.is_finite:
                return np.inf, np.zeros_like(w)
            is_near = self._is_near(point)
            if best is None or point.value <= best.value or is_near:
                best = point
            if is_near:
                raise _StopSearchError
            return point.value, point.tangent_gradient * (radius / float(np.linalg.norm(w)))

        with contextlib.suppress(_StopSearchError):
            scipy.optimize.minimize(
                function,
                y * (_ARC / np.linalg.norm(y)),
                jac=True,
                method="L-BFGS-B",
                options={"maxcor": _MEMORY, "maxiter": 500, "maxfun": 1000, "gtol": 0.0, "ftol": 0.0, "maxls": 20},
            )
        return best or SpherePoint.towards(self.shell, y, radius)

    def minimum(self, point: SpherePoint) -> tuple[SpherePoint, TangentHessian | None]:
        """Newton from where L-BFGS ended, leaving saddles along their lowest eigenvectors; see `is_stationary`.

        Without a Hessian where the last of these escapes led to yet another point.
        """
        radius = point.radius
        for _ in range(_MAX_ESCAPES):
            tangent = self.newton(point)
            if not self.is_stationary(tangent.point) and not self.shell.is_full:
                tangent = self.newton(self.down_a_ravine(tangent.point))
            point = tangent.point
            if not point.is_finite or tangent.lowest >= -tangent.error:
                return point, tangent
            escape = 0.1 * radius * tangent.vectors[:, 0]
            sides = [SpherePoint.towards(self.shell, point.y + side * escape, radius) for side in (1, -1)]
            point = self.descend(min(sides, key=lambda found: found.value).y, radius)
        return point, None

    def down_a_ravine(self, point: SpherePoint) -> SpherePoint:
        """Damped Newton steps down the value, with |eigenvalues|: where L-BFGS stops short in a bent ravine."""
        damping = 1e-3
        for _ in range(_MAX_DOWN):
            if self.is_stationary(point) or not point.is_finite:
                break
            tangent = TangentHessian(self.shell, point)
            coefficients, sizes = tangent.vectors.T @ point.tangent_gradient, np.abs(tangent.values)
            largest = float(sizes.max()) or 1.0
            for _ in range(20):
                step = -tangent.vectors @ (coefficients / (sizes + damping * largest))
                trial = SpherePoint.towards(self.shell, point.y + step * _shortening(step, point.radius), point.radius)
                if trial.value < point.value + 1e-4 * float(point.tangent_gradient @ step):
                    damping = max(damping / 10, 1e-12)
                    break
                damping *= 4
            else:
                break
            point = trial
        return point

    def any_kind(self, y: Array, radius: float) -> TangentHessian:
        """A stationary point of any kind: Levenberg and Marquardt's steps on |P g|^2, then Newton."""
        point, damping = SpherePoint.towards(self.shell, y, radius), 0.1
        for _ in range(60):
            if self._is_near(point):
                break
            tangent = TangentHessian(self.shell, point)
            coefficients = tangent.vectors.T @ point.tangent_gradient  # (dim - 1,)
            size = float(np.abs(tangent.values).max()) or 1.0
            for _ in range(12):
                step = -tangent.vectors @ (tangent.values * coefficients / (tangent.values**2 + damping * size**2))
                trial = SpherePoint.towards(self.shell, point.y + step * _shortening(step, radius), radius)
                if trial.residual < point.residual:
                    damping = max(damping / 5, 1e-12)
                    break
                damping *= 4
            else:
                break
            point = trial
        return self.newton(point)

    def newton(self, point: SpherePoint) -> TangentHessian:
        """`approach`, and the tangent Hessian of the point reached, for its certificate."""
        point, tangent = self.approach(point, TangentHessian(self.shell, point))
        return tangent if tangent.point is point else TangentHessian(self.shell, point)

    def approach(self, point: SpherePoint, tangent: TangentHessian) -> tuple[SpherePoint, TangentHessian]:
        """Newton steps towards the stationary point nearby, of any kind, each shortened until the residual falls.

        The Hessian of one step serves the next as long as steps with it divide the residual by ten; so does `tangent`
        at first, that of the point or of a neighbour. The last one used is returned with the point.
        """
        radius = point.radius
        for _ in range(_MAX_NEWTON):
            if self.is_stationary(point) or not point.is_finite:
                break
            step = -tangent.solve(point.tangent_gradient)
            step *= _shortening(step, radius)
            fraction = 1.0
            while fraction > 0.02:
                trial = SpherePoint.towards(self.shell, point.y + fraction * step, radius)
                if trial.residual < 0.9 * point.residual and trial.is_finite:
                    break
                fraction /= 2
            else:
                if tangent.point is point:
                    break  # rounding, or a point that Newton cannot leave
                tangent = TangentHessian(self.shell, point)
                continue
            is_slow = trial.residual > 0.1 * point.residual
            point = trial
            if is_slow and not self.is_stationary(point):
                tangent = TangentHessian(self.shell, point)
        return point, tangent


def _shortening(step: Array, radius: float) -> float:
    """The factor that keeps a step below `_MAX_TURN` radians."""
    angle = float(np.linalg.norm(step)) / radius
    return min(1.0, _MAX_TURN / angle) if angle > 0 else 1.0


class _StopSearchError(Exception):
    """SciPy's minimizers stop in mid-search only by an exception."""
