"""A place on a sphere |y| = rho: is the function stationary there, and what is its Hessian across?

P g and P K P - mu P as in `stationary.py`, which moves from place to place; here each is computed at one.

Where on a sphere |y| = rho is a function stationary, and of which kind is the point?

With n = y / rho, P = I - n n^T, g and K gradient and Hessian of f at y, and mu = n.g / rho: y is stationary where
P g = 0, and a minimum where P K P - mu P is positive on the tangent space. L-BFGS goes most of the way on w with
y = rho w / |w| (no constraint to keep); Newton steps with the explicit Hessian, or by MINRES where the space is too
large for one, go to the floor. The second term, mu, is the sphere's own bend: without it every eigenvector of a
quadratic would pass.
"""

from __future__ import annotations

import contextlib
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


@dataclass(frozen=True)
class SpherePoint:
    """A point of the sphere with value and gradient."""

    y: Array  # (dim,)
    value: float
    gradient: Array  # (dim,)

    @property
    def radius(self) -> float:
        """|y|."""
        return float(np.linalg.norm(self.y))

    @property
    def normal(self) -> Array:
        """N = y / |y|, (dim,)."""
        return self.y / self.radius

    @property
    def slope(self) -> float:
        """n.g, by y: d f / d rho."""
        return float(self.normal @ self.gradient)

    @property
    def multiplier(self) -> float:
        """Mu of g = mu y."""
        return self.slope / self.radius

    @property
    def tangent_gradient(self) -> Array:
        """P g, (dim,)."""
        tangent = self.gradient - self.slope * self.normal
        return np.asarray(tangent - (self.normal @ tangent) * self.normal)

    @property
    def residual(self) -> float:
        """|P g|."""
        return float(np.linalg.norm(self.tangent_gradient))


class TangentHessian:
    """P K P - mu P on the tangent space at a place: `lowest` eigenvalues, `solve`.

    Dense for subspaces (dim products, once); by products in the full space, where Lanczos finds the lowest one.
    """

    def __init__(self, shell: Shell, place: SpherePoint):
        self.shell, self.place = shell, place
        self.matrix: Array | None = None
        self.error = 0.0  # of an eigenvalue: antisymmetric part and rounding of the products
        if shell.is_full:
            return
        finite = place.value < np.inf
        full = shell.hessian(place.y) if finite else np.full((shell.dim, shell.dim), np.nan)  # (dim, dim)
        self.matrix = (full + full.T) / 2
        if not np.isfinite(full).all():  # nothing is known here, and nothing is claimed
            self.values, self.vectors = np.full(shell.dim - 1, -np.inf), np.zeros((shell.dim, shell.dim - 1))
            self.error = np.inf
            return
        eps, size = torch.finfo(shell.theta0.dtype).eps, float(np.linalg.norm(full, 2))
        self.error = float(np.linalg.norm(full - full.T, 2)) / 2 + 8 * eps * size
        # Theta is rounded to eps |theta|, which moves the gradient, and with it mu.
        rounding = size * float(shell.scales.max()) * float(shell.theta0.double().norm())
        self.error += eps * (rounding + float(np.linalg.norm(place.gradient))) / place.radius
        frame = complement(place.normal)  # (dim, dim - 1) orthonormal columns
        values, weights = np.linalg.eigh(frame.T @ self.matrix @ frame)
        self.values, self.vectors = values - place.multiplier, frame @ weights  # ascending; columns

    @property
    def lowest(self) -> float:
        """The smallest eigenvalue, to within `error`."""
        self._search()
        return float(self.values[0])

    @property
    def lowest_vector(self) -> Array:
        """Its unit eigenvector, (dim,)."""
        self._search()
        return np.asarray(self.vectors[:, 0])

    def _search(self) -> None:
        """The lowest pair by Lanczos, where there is no matrix."""
        if hasattr(self, "values"):
            return
        is_single = self.shell.theta0.dtype == torch.float32  # the map is as accurate as its products
        normal = self.place.normal.astype(np.float32 if is_single else np.float64)
        scale = max(1.0, float(np.max(self.shell.curvatures, initial=0.0)) / self.shell.floor)
        pairs = lowest_across(lambda v: self.apply(v.astype(np.float64)).astype(v.dtype), normal, scale, tol=1e-4)
        self.values, self.vectors = pairs.values.numpy(), pairs.vectors.numpy().T.astype(np.float64)
        self.error = float(pairs.residuals[0])

    def apply(self, v: Array) -> Array:
        """(P K P - mu P) v, (dim,)."""
        n, mu = self.place.normal, self.place.multiplier
        inside = v - (n @ v) * n
        image = self.matrix @ inside if self.matrix is not None else self.shell.product(self.place.y, inside)
        image = image - mu * inside
        return np.asarray(image - (n @ image) * n)

    def times_normal(self) -> Array:
        """P K n, (dim,)."""
        n = self.place.normal
        image = self.matrix @ n if self.matrix is not None else self.shell.product(self.place.y, n)
        return np.asarray(image - (n @ image) * n)

    def solve(self, rhs: Array) -> Array:
        """(P K P - mu P)^+ rhs for rhs in the tangent space, (dim,); directions known to be flat get nothing."""
        if self.matrix is not None:
            along = self.vectors.T @ rhs
            curved = np.abs(self.values) > self.error
            along[curved] /= self.values[curved]
            along[~curved] = 0.0
            return np.asarray(self.vectors @ along)
        dim = len(rhs)
        found = minres(LinearOperator((dim, dim), matvec=self.apply, dtype=np.float64), rhs, rtol=1e-6, maxiter=400)[0]
        n = self.place.normal
        return np.asarray(found - (n @ found) * n)


class _Lifted:
    """A map that is zero along a unit vector n, with that zero lifted out of the way: v -> A v + lift n n^T v."""

    def __init__(self, apply: Callable[[Any], Any], normal: Any, lift: float):
        self.apply, self.normal, self.lift = apply, normal, lift
        self.shape, self.dtype = (len(normal), len(normal)), normal.dtype
        self.device = getattr(normal, "device", None) if isinstance(normal, torch.Tensor) else torch.device("cpu")

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
        way = torch.as_tensor(normal).cpu().double()
        if abs(float(pairs.vectors[0].double() @ way)) < 0.5 or lift > 2.0 * abs(pairs.other_end):
            return pairs  # else everything lies above the lifted zero, which was found instead
        lift = 4.0 * max(abs(pairs.other_end), lift)


def complement(normal: Array) -> Array:
    """Orthonormal columns (dim, dim - 1) of the tangent space, by a Householder reflection that takes n to an axis."""
    axis = normal.copy()
    axis[0] += np.sign(axis[0]) or 1.0
    axis /= np.linalg.norm(axis)
    reflection = np.eye(len(axis)) - 2.0 * np.outer(axis, axis)
    return reflection[:, 1:]


_LOOSE = 3e-3  # relative residual at which L-BFGS hands over to Newton
_ARC = 12.0  # |w| at the start: the first trial step of L-BFGS has length 1, which must not leave a narrow basin
_MAX_TURN = 0.3  # radians of one Newton step
_MAX_NEWTON = 12
_MAX_ESCAPES = 3
_MEMORY = 12  # pairs that L-BFGS keeps


class SphereSearch:
    """Searches on spheres of one shell, with a common tolerance.

    Args:
        shell: the loss in its coordinates.
        rtol: |P g| allowed, as a share of max(|g|, |K0 y|, floor), K0 the Hessian at the center.

    Attributes:
        floor: set per sphere: on the flat floor of a canyon g and K0 y vanish, and a share of nothing can't be reached.
        typical: set per sphere: |P g| away from stationary points. Where a sphere is nearly level it is much smaller
            than |g|, and L-BFGS has to go on for longer.
    """

    def __init__(self, shell: Shell, *, rtol: float):
        self.shell, self.rtol = shell, rtol
        self.floor, self.typical = 0.0, np.inf

    def place(self, y: Array, radius: float) -> SpherePoint:
        """The point of the sphere in the direction of y, evaluated: one gradient."""
        y = y * (radius / np.linalg.norm(y))
        value, gradient = self.shell.value_and_gradient(y)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            value = np.inf
            gradient = np.zeros_like(y)
        return SpherePoint(y, value, gradient)

    def scale(self, place: SpherePoint) -> float:
        """What the residual is measured against."""
        shell = self.shell
        bent = 0.0 if shell.is_full else float(np.linalg.norm(shell.curvatures * place.y))
        bent = place.radius if shell.metric == "hessian" else bent
        return max(float(np.linalg.norm(place.gradient)), bent, self.floor)

    def tolerance(self, place: SpherePoint) -> float:
        """The residual allowed there."""
        return self.rtol * self.scale(place)

    def _is_near(self, place: SpherePoint) -> bool:
        """Whether Newton steps may take over."""
        scale = self.scale(place)
        return place.residual <= max(_LOOSE * min(scale, self.typical), self.rtol * scale)

    def is_stationary(self, place: SpherePoint) -> bool:
        """Whether the residual is within tolerance."""
        return place.value < np.inf and place.residual <= self.tolerance(place)

    def descend(self, y: Array, radius: float) -> SpherePoint:
        """L-BFGS from y towards a minimum, until the residual is small or no longer falls."""
        best: list[SpherePoint] = []

        def function(w: Array) -> tuple[float, Array]:
            place = self.place(w, radius)
            if place.value == np.inf:
                return np.inf, np.zeros_like(w)
            if not best or place.value <= best[0].value:
                best[:] = [place]
            if self._is_near(place):
                best[:] = [place]
                raise _StopSearchError
            return place.value, place.tangent_gradient * (radius / float(np.linalg.norm(w)))

        with contextlib.suppress(_StopSearchError):
            scipy.optimize.minimize(
                function,
                y * (_ARC / np.linalg.norm(y)),
                jac=True,
                method="L-BFGS-B",
                options={"maxcor": _MEMORY, "maxiter": 500, "maxfun": 1000, "gtol": 0.0, "ftol": 0.0, "maxls": 20},
            )
        return best[0] if best else self.place(y, radius)

    def minimum(self, place: SpherePoint) -> tuple[SpherePoint, TangentHessian]:
        """Newton from where L-BFGS ended; a saddle is left along its lowest eigenvector. See `is_stationary`."""
        radius = place.radius
        for _ in range(_MAX_ESCAPES):
            place, tangent = self.newton(place)
            if place.value == np.inf or tangent.lowest >= -tangent.error:
                break
            turned = [self.place(place.y + side * 0.1 * radius * tangent.lowest_vector, radius) for side in (1, -1)]
            place = self.descend(min(turned, key=lambda found: found.value).y, radius)
        return place, tangent

    def newton(self, place: SpherePoint) -> tuple[SpherePoint, TangentHessian]:
        """`approach`, and the tangent Hessian of the point reached, for its certificate."""
        place, tangent = self.approach(place, TangentHessian(self.shell, place))
        return place, tangent if tangent.place is place else TangentHessian(self.shell, place)

    def approach(self, place: SpherePoint, tangent: TangentHessian) -> tuple[SpherePoint, TangentHessian]:
        """Newton steps towards the stationary point nearby, of any kind, each shortened until the residual falls.

        The Hessian of one step serves the next as long as steps with it divide the residual by ten; so does `tangent`
        at first, that of the place or of a neighbour. The last one used is returned with the point.
        """
        radius = place.radius
        for _ in range(_MAX_NEWTON):
            if self.is_stationary(place) or place.value == np.inf:
                break
            step = -tangent.solve(place.tangent_gradient)
            length = float(np.linalg.norm(step)) / radius
            step *= min(1.0, _MAX_TURN / length) if length > 0 else 0.0
            fraction = 1.0
            while fraction > 0.02:
                trial = self.place(place.y + fraction * step, radius)
                if trial.residual < 0.9 * place.residual and trial.value < np.inf:
                    break
                fraction /= 2
            else:
                if tangent.place is place:
                    break  # the floor of rounding, or a place that Newton cannot leave
                tangent = TangentHessian(self.shell, place)
                continue
            is_slow = trial.residual > 0.1 * place.residual
            place = trial
            if is_slow and not self.is_stationary(place):
                tangent = TangentHessian(self.shell, place)
        return place, tangent

    def any_kind(self, y: Array, radius: float, num_steps: int = 60) -> tuple[SpherePoint, TangentHessian]:
        """A stationary point of any kind: Levenberg and Marquardt's steps on |P g|^2, then Newton."""
        place, damping = self.place(y, radius), 0.1
        for _ in range(num_steps):
            if self._is_near(place):
                break
            tangent = TangentHessian(self.shell, place)
            along = tangent.vectors.T @ place.tangent_gradient  # (dim - 1,)
            size = float(np.abs(tangent.values).max()) or 1.0
            for _ in range(12):
                step = -tangent.vectors @ (tangent.values * along / (tangent.values**2 + damping * size**2))
                length = float(np.linalg.norm(step)) / radius
                trial = self.place(place.y + step * min(1.0, _MAX_TURN / length if length > 0 else 1.0), radius)
                if trial.residual < place.residual:
                    damping = max(damping / 5, 1e-12)
                    break
                damping *= 4
            else:
                break
            place = trial
        return self.newton(place)


class _StopSearchError(Exception):
    """SciPy's minimizers stop in mid-search only by an exception."""
