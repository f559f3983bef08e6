"""The loss on shells around a minimum, in coordinates in which every shell is a sphere.

A shell is the set of displacements delta = theta - theta0 at one level: a sphere |delta| = r (`SphereShell`), or an
energy shell 1/2 delta^T M delta = E (`EnergyShell`, M the Hessian at theta0), on which a quadratic bowl is constant. In
y = M^(1/2) delta, with M = I for spheres, both are spheres |y| = rho of f(y) = L(theta0 + M^(-1/2) y), so that search,
certificates and continuation are written once.

M is never formed. Inside a subspace it is diagonal in the eigenvectors of the restricted Hessian. In the full space it
is m I + sum_j (lambda_j - m) v_j v_j^T, m the smallest curvature of the metric and the sum over the eigenvalues above
it: directions in which the loss is flat, or bends down, get m.
"""

from __future__ import annotations

import abc
import math
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowhanging.curvature.eigenpairs import top_eigs
from lowhanging.curvature.operators import hessian
from lowhanging.curvature.subspace import Subspace
from lowhanging.errors import argument_message, check_real
from lowhanging.objective.objective import AnchoredObjective
from lowhanging.objective.protocol import Loss

Array = NDArray[np.float64]
Metric = Literal["hessian", "euclidean"]
Space = Subspace | Literal["full"]

_MIN_CURVATURE = 1e-2  # of the largest eigenvalue, for the full space: what polish's default anchor is of it
_SOFT = 0.01  # eigenvalues within this share of the smallest one share the softest axis


class Shell(abc.ABC):
    """The loss in coordinates y, (dim,) float64 in NumPy, in which the shells of a metric M are spheres around 0.

    Attributes:
        loss: the loss; theta0 its point, (p,).
        space: what is searched; None for all of weight space, `is_full`.
        dim: its dimension.
        rows: (m, p) float64 orthonormal, eigenvectors of the Hessian restricted to the space, descending; in the full
            space those in which M is not a multiple of the identity only.
        curvatures: (m,) the eigenvalues.
        scales: (m,) root eigenvalues of M, y = scales * (rows @ delta) inside a subspace.
        min_curvature: the smallest eigenvalue that M may have; 0 where it is not bounded.
        center_value, center_gradient: f and its gradient at 0.
        rounding: what rounding may move a loss by.
        num_gradients, num_products: spent so far.
    """

    metric: ClassVar[Metric]
    min_curvature: float
    _outside: float  # eigenvalue of M on the complement of the rows; infinite where that is outside the space

    def __init__(self, loss: Loss, space: Space, min_curvature: float | None):
        self.loss, self.theta0 = loss, loss.theta0
        self.num_gradients = self.num_products = 0
        self.is_full = isinstance(space, str)
        self.space = None if isinstance(space, str) else space.to("cpu")
        if isinstance(space, str):
            self.dim, self.asymmetry = loss.num_params, 0.0
            self.rows, self.curvatures = self._full_space(min_curvature)
        else:
            self.rows, self.curvatures = self._restricted(space)
            self.dim, self.min_curvature, self._outside = len(self.rows), min_curvature or 0.0, math.inf
        self.scales = np.sqrt(self._metric_eigenvalues())
        self.center_value, self.center_gradient = self.value_and_gradient(np.zeros(self.dim))
        self.rounding = 16 * torch.finfo(self.theta0.dtype).eps * abs(self.center_value)

    # --- what the two kinds of shell differ in

    @abc.abstractmethod
    def _full_space(self, min_curvature: float | None) -> tuple[Tensor, Array]:
        """`rows` and `curvatures` of the full space; sets `min_curvature` and `_outside`."""

    @abc.abstractmethod
    def _metric_eigenvalues(self) -> Array:
        """Of M on the rows, (m,), checked to be positive."""

    @abc.abstractmethod
    def radius_of(self, level: float) -> float:
        """Rho of a level."""

    @abc.abstractmethod
    def level_of(self, radius: float) -> float:
        """The level of a radius rho."""

    @abc.abstractmethod
    def bowl_gradient(self, y: Array) -> float:
        """|K0 y|, K0 the Hessian of f at 0: the gradient of the quadratic bowl there; 0 where K0 is not known."""

    # --- coordinates

    def farthest(self, level: float) -> float:
        """The largest |delta| of a level."""
        return self.radius_of(level) / float(np.min(self.scales, initial=self._outside**0.5))

    def delta(self, y: Array) -> Tensor:
        """Displacement (p,), float64, of coordinates y."""
        if self.is_full:
            return self._root(self._tensor(y), -1)
        return self.rows.T @ self._tensor(y / self.scales)

    def coordinates(self, delta: Tensor) -> Array:
        """Coordinates (dim,) of a displacement (p,), of its part inside the space."""
        wide = delta.to(self.rows.device).double()
        return _array(self._root(wide, 1)) if self.is_full else _array(self.rows @ wide) * self.scales

    def flat(self, y: Array) -> Array:
        """Coordinates of delta whose scalar products are those of weight space."""
        return _array(self.delta(y)) if self.is_full else np.asarray(y / self.scales)

    def theta(self, y: Array) -> Tensor:
        """The weights (p,) there, in the loss's dtype."""
        return (self.theta0.double() + self.delta(y)).to(self.theta0)

    def pull(self, covector: Tensor) -> Array:
        """A gradient or a Hessian product (p,) at theta as derivatives by y: M^(-1/2) g, (dim,)."""
        wide = covector.double()
        return _array(self._root(wide, -1)) if self.is_full else _array(self.rows @ wide) / self.scales

    def inside(self, vector: Tensor) -> Tensor:
        """The part (p,) of a vector that lies in the space, float64."""
        wide = vector.to(self.rows.device).double()
        return wide if self.is_full else self.rows.T @ (self.rows @ wide)

    def _root(self, v: Tensor, power: Literal[-1, 1]) -> Tensor:
        """M^(power / 2) v in the full space, (p,)."""
        outside = float(self._outside ** (power / 2))
        mix = torch.from_numpy(self.scales ** float(power) - outside).to(self.rows)
        return outside * v + self.rows.T @ (mix * (self.rows @ v))

    def _tensor(self, y: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(y)).to(self.rows)

    # --- the loss

    def value_and_gradient(self, y: Array) -> tuple[float, Array]:
        """f(y) and its gradient (dim,)."""
        value, gradient = self.gradient_at(y)
        return value, self.pull(gradient)

    def gradient_at(self, y: Array) -> tuple[float, Tensor]:
        """L and its gradient (p,) by theta."""
        self.num_gradients += 1
        value, gradient = self.loss.value_and_gradient(self.theta(y))
        return float(value), gradient

    def product(self, y: Array, v: Array) -> Array:
        """Hessian of f at y times v (dim,): one product."""
        return self.pull(self._products(self.theta(y), self.delta(v)[None])[0])

    def hessian(self, y: Array) -> Array:
        """Hessian of f at y, (dim, dim), not symmetrised: dim products. For subspaces only."""
        products = self._products(self.theta(y), self.rows)  # (dim, p)
        return np.asarray(_array(self.rows @ products.T) / np.outer(self.scales, self.scales))

    def energy(self, y: Array) -> float:
        """1/2 delta^T H0 delta: what a quadratic bowl rises by, whatever M. One product in the full space."""
        if not self.is_full:
            return 0.5 * float(self.curvatures @ (y / self.scales) ** 2)
        delta = self.delta(y)
        return 0.5 * float(delta @ self._products(self.theta0, delta[None])[0])

    def softest_overlap(self, y: Array) -> float:
        """Squared cosine of delta with the softest axis; 0 where no axis is softer than the others, NaN if unknown."""
        if self.is_full:
            return math.nan
        lowest = float(self.curvatures[-1])
        soft = self.curvatures <= lowest + _SOFT * max(abs(lowest), 1e-12)
        w = y / self.scales
        return 0.0 if soft.all() else float((w[soft] ** 2).sum() / (w**2).sum())

    def tilt(self, y: Array) -> float:
        """What the anchor adds to the slope n.g: epsilon n.(theta - anchor); 0 without an anchor."""
        if not isinstance(self.loss, AnchoredObjective):
            return 0.0
        delta = self.delta(y)
        away = self.theta0.double() + delta - self.loss.anchor.to(delta.device).double()
        return self.loss.epsilon * float(delta @ away) / float(delta.norm())

    def _restricted(self, space: Subspace) -> tuple[Tensor, Array]:
        """Eigenpairs of the Hessian restricted to a subspace: one product per dimension."""
        basis = Subspace.span(space.basis.to(self.theta0.device).double()).basis  # orthonormal to float64 rounding
        restricted = _array(basis @ self._products(self.theta0, basis).T)
        self.asymmetry = float(np.abs(restricted - restricted.T).max()) / 2
        values, vectors = np.linalg.eigh((restricted + restricted.T) / 2)
        turn = torch.from_numpy(vectors[:, ::-1].T.copy()).to(basis)
        return turn @ basis, values[::-1].copy()

    def _products(self, theta: Tensor, rows: Tensor) -> Tensor:
        self.num_products += len(rows)
        return torch.stack([self.loss.hvp(theta, row.to(self.theta0)) for row in rows]).double()


class SphereShell(Shell):
    """Spheres |delta| = r: M = I, rho = r."""

    metric = "euclidean"

    def __init__(self, loss: Loss, space: Space, min_curvature: float | None = None):
        if min_curvature is not None:
            received, expected = f"is {min_curvature!r} with metric='euclidean'", "nothing: spheres have no curvature"
            raise ValueError(argument_message("min_curvature", received, expected, "Leave it out."))
        super().__init__(loss, space, None)

    def _full_space(self, min_curvature: float | None) -> tuple[Tensor, Array]:
        self.min_curvature, self._outside = 0.0, 1.0
        return self.theta0.new_zeros((0, self.dim)).double(), np.zeros(0)

    def _metric_eigenvalues(self) -> Array:
        return np.ones(len(self.curvatures))

    def radius_of(self, level: float) -> float:
        return level

    def level_of(self, radius: float) -> float:
        return radius

    def bowl_gradient(self, y: Array) -> float:
        return 0.0 if self.is_full else float(np.linalg.norm(self.curvatures * y))


class EnergyShell(Shell):
    """Energy shells 1/2 delta^T M delta = E, M the Hessian at theta0 with no eigenvalue below `min_curvature`."""

    metric = "hessian"

    def __init__(self, loss: Loss, space: Space, min_curvature: float | None = None):
        if min_curvature is not None:
            remedy = "It is the smallest curvature of the metric, such as a hundredth of the largest eigenvalue."
            min_curvature = check_real("min_curvature", min_curvature, minimum=0.0, exclusive=True, remedy=remedy)
        super().__init__(loss, space, min_curvature)

    def _full_space(self, min_curvature: float | None) -> tuple[Tensor, Array]:
        H, p = hessian(self.loss), self.dim
        num = min(8, p)
        while True:
            pairs = top_eigs(H, k=num, progress=False)
            self.num_products += pairs.num_products
            values = pairs.values.numpy()
            if values[0] <= 0 and min_curvature is None:
                received = f"is 'full' around a point whose largest curvature is {float(values[0]):.3g}"
                remedy = (
                    "Start from a minimum, lh.polish(objective).objective, "
                    'or pass min_curvature= or metric="euclidean".'
                )
                raise ValueError(argument_message("space", received, "a bowl, for energy shells", remedy))
            smallest = _MIN_CURVATURE * float(values[0]) if min_curvature is None else min_curvature
            if values[-1] < smallest or num == p:
                break
            num = min(2 * num, p)
        self.min_curvature = self._outside = smallest
        above = values > smallest
        rows = pairs.vectors.to(self.theta0.device).double()[torch.from_numpy(above).to(self.theta0.device)]
        return (Subspace.span(rows).basis if len(rows) else rows), values[above]

    def _metric_eigenvalues(self) -> Array:
        eigenvalues = np.maximum(self.curvatures, self.min_curvature)
        largest = float(np.abs(self.curvatures).max()) if len(self.curvatures) else self.min_curvature
        smallest = float(eigenvalues.min()) if len(eigenvalues) else self.min_curvature
        is_known = self.min_curvature > 0 or smallest > self.asymmetry
        if smallest > 1e-9 * largest and is_known:
            return eigenvalues
        received = f"has curvatures from {largest:.3g} down to {smallest:.3g} at theta0"
        remedy = (
            f"Pass min_curvature={max(_MIN_CURVATURE * largest, 1e-12):.1g} (the metric's smallest curvature), "
            'metric="euclidean", or a Subspace of eigenvectors with positive eigenvalues.'
        )
        raise ValueError(argument_message("space", received, "positive ones, for energy shells", remedy))

    def radius_of(self, level: float) -> float:
        return math.sqrt(2.0 * level)

    def level_of(self, radius: float) -> float:
        return 0.5 * radius**2

    def bowl_gradient(self, y: Array) -> float:
        return float(np.linalg.norm(y))  # K0 = I, but for eigenvalues below min_curvature


def _array(v: Tensor) -> Array:
    return np.asarray(v.cpu().numpy(), dtype=np.float64)


SHELLS: dict[str, type[SphereShell] | type[EnergyShell]] = {"hessian": EnergyShell, "euclidean": SphereShell}
