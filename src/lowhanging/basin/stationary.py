r"""Where on a sphere |y| = rho is a function stationary, and of which kind is the point?

With n = y / rho, P = I - n n^T, g and K gradient and Hessian of f at y, and mu = n.g / rho: y is stationary where
P g = 0, and a minimum where P K P - mu P is positive on the tangent space. L-BFGS goes most of the way on w with
y = rho w / |w| (no constraint to keep); Newton steps with the explicit Hessian, or by MINRES where the space is too
large for one, go to the floor. The second term, mu, is the sphere's own bend: without it every eigenvector of a
quadratic would pass.
"""

from __future__ import annotations

import contextlib

import numpy as np
import scipy.optimize

from lowhanging.basin.places import Place, TangentHessian
from lowhanging.basin.shells import Array, Shell

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

    def place(self, y: Array, radius: float) -> Place:
        """The point of the sphere in the direction of y, evaluated: one gradient."""
        y = y * (radius / np.linalg.norm(y))
        value, gradient = self.shell.value_and_gradient(y)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            value = np.inf
            gradient = np.zeros_like(y)
        return Place(y, value, gradient)

    def scale(self, place: Place) -> float:
        """What the residual is measured against."""
        shell = self.shell
        bent = 0.0 if shell.is_full else float(np.linalg.norm(shell.curvatures * place.y))
        bent = place.radius if shell.metric == "hessian" else bent
        return max(float(np.linalg.norm(place.gradient)), bent, self.floor)

    def tolerance(self, place: Place) -> float:
        """The residual allowed there."""
        return self.rtol * self.scale(place)

    def _is_near(self, place: Place) -> bool:
        """Whether Newton steps may take over."""
        scale = self.scale(place)
        return place.residual <= max(_LOOSE * min(scale, self.typical), self.rtol * scale)

    def is_stationary(self, place: Place) -> bool:
        """Whether the residual is within tolerance."""
        return place.value < np.inf and place.residual <= self.tolerance(place)

    def descend(self, y: Array, radius: float) -> Place:
        """L-BFGS from y towards a minimum, until the residual is small or no longer falls."""
        best: list[Place] = []

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

    def minimum(self, place: Place) -> tuple[Place, TangentHessian]:
        """Newton from where L-BFGS ended; a saddle is left along its lowest eigenvector. See `is_stationary`."""
        radius = place.radius
        for _ in range(_MAX_ESCAPES):
            place, tangent = self.newton(place)
            if place.value == np.inf or tangent.lowest >= -tangent.error:
                break
            turned = [self.place(place.y + side * 0.1 * radius * tangent.lowest_vector, radius) for side in (1, -1)]
            place = self.descend(min(turned, key=lambda found: found.value).y, radius)
        return place, tangent

    def newton(self, place: Place) -> tuple[Place, TangentHessian]:
        """`approach`, and the tangent Hessian of the point reached, for its certificate."""
        place, tangent = self.approach(place, TangentHessian(self.shell, place))
        return place, tangent if tangent.place is place else TangentHessian(self.shell, place)

    def approach(self, place: Place, tangent: TangentHessian) -> tuple[Place, TangentHessian]:
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

    def any_kind(self, y: Array, radius: float, num_steps: int = 60) -> tuple[Place, TangentHessian]:
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
