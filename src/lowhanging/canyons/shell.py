"""Which displacements lie equally far out, and what is the loss on them?

A shell is a set of displacements delta = theta - theta0 at one level: spheres |delta| = r ("euclidean"), or energy
shells 1/2 delta^T M delta = E ("hessian", M the Hessian at theta0), on which a quadratic bowl is constant. With
coordinates y = M^(1/2) delta both are spheres |y| = rho, so that everything else (search, certificates, continuation)
is written once, for f(y) = L(theta0 + M^(-1/2) y) on a sphere.

Inside a subspace M^(1/2) is a diagonal, because the basis is turned to the eigenvectors of the restricted Hessian. In
the full space M is floor I + sum_j (lambda_j - floor) v_j v_j^T over the eigenvalues above the floor: low rank
stays low, and directions in which the loss is flat, or bends down, get the floor.
"""

from __future__ import annotations

import math
from typing import Literal

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
METRICS = ("hessian", "euclidean")

DEFAULT_FLOOR = 1e-2  # of the largest eigenvalue, for the full space: what polish's default anchor is of it
_SOFT = 0.01  # eigenvalues within this share of the smallest one share the softest axis


class Shell:
    """The loss in coordinates y, (dim,) float64 in NumPy, in which the shells of a metric are spheres around 0.

    Attributes:
        loss: the objective; theta0 its point, (p,).
        rows: (dim, p) float64 orthonormal, eigenvectors of the Hessian restricted to the space, descending; in the full
            space those above the floor only.
        curvatures: (len(rows),) the eigenvalues.
        dim: the dimension of the space.
        floor: of the metric.
        num_gradients, num_products: spent so far.
    """

    def __init__(self, loss: Loss, space: Subspace | Literal["full"], metric: Metric, floor: float | None = None):
        self.loss, self.metric = loss, metric
        self.theta0 = loss.theta0
        self.num_gradients = self.num_products = 0
        self.is_full = isinstance(space, str)
        self.space = None if isinstance(space, str) else space.to("cpu")
        remedy = "It is the smallest curvature of the metric, such as a hundredth of the largest eigenvalue."
        if floor is not None and metric == "euclidean":
            expected = "nothing: spheres have no curvature"
            raise ValueError(
                argument_message("floor", f"is {floor!r} with metric='euclidean'", expected, "Leave it out.")
            )
        given = None if floor is None else check_real("floor", floor, minimum=0.0, exclusive=True, remedy=remedy)
        if isinstance(space, str):
            self._open_full(given)
        else:
            self._open_subspace(space)
            self.floor = 0.0 if given is None else given
        clamped = np.maximum(self.curvatures, self.floor) if metric == "hessian" else np.ones(len(self.curvatures))
        self._check_metric(clamped, given)
        self.scales = np.sqrt(clamped)  # y = scales * (rows @ delta)
        self.center_value, self.center_gradient = self.value_and_gradient(np.zeros(self.dim))

    def _open_subspace(self, space: Subspace) -> None:
        """Turn the basis to the eigenvectors of the restricted Hessian: one product per dimension."""
        basis = Subspace.span(space.basis.to(self.theta0.device).double()).basis  # orthonormal to float64 rounding
        self.dim = len(basis)
        restricted = (basis @ self._products(self.theta0, basis).T).cpu().numpy()
        self.asymmetry = float(np.abs(restricted - restricted.T).max()) / 2
        values, vectors = np.linalg.eigh((restricted + restricted.T) / 2)
        turn = torch.from_numpy(vectors[:, ::-1].T.copy()).to(basis)
        self.rows, self.curvatures = turn @ basis, values[::-1].copy()

    def _open_full(self, floor: float | None) -> None:
        """Eigenpairs down to the floor; the euclidean metric needs none."""
        p = self.loss.num_params
        self.dim, self.asymmetry = p, 0.0
        self.rows, self.curvatures = self.theta0.new_zeros((0, p)).double(), np.zeros(0)
        self.floor = 1.0
        if self.metric == "euclidean":
            return
        H, num = hessian(self.loss), min(8, p)
        while True:
            pairs = top_eigs(H, k=num, progress=False)
            self.num_products += pairs.num_products
            values = pairs.values.numpy()
            if values[0] <= 0 and floor is None:
                received = f"is 'full' around a point whose largest curvature is {float(values[0]):.3g}"
                remedy = 'Start from a minimum, lh.polish(objective).objective, or pass floor= or metric="euclidean".'
                raise ValueError(argument_message("space", received, "a bowl, for energy shells", remedy))
            self.floor = DEFAULT_FLOOR * float(values[0]) if floor is None else floor
            if values[-1] < self.floor or num == p:
                break
            num = min(2 * num, p)
        above = values > self.floor
        self.rows = pairs.vectors.to(self.theta0.device).double()[torch.from_numpy(above).to(self.theta0.device)]
        self.rows = Subspace.span(self.rows).basis if len(self.rows) else self.rows
        self.curvatures = values[above]

    def _check_metric(self, clamped: Array, floor: float | None) -> None:
        largest = float(np.abs(self.curvatures).max()) if len(self.curvatures) else self.floor
        smallest = float(clamped.min()) if len(clamped) else self.floor
        if smallest > 1e-9 * largest and (self.is_full or self.floor or smallest > self.asymmetry):
            return
        received = f"has curvatures from {largest:.3g} down to {smallest:.3g} at theta0"
        remedy = (
            f"Pass floor={max(DEFAULT_FLOOR * largest, 1e-12):.1g} (the metric's smallest curvature), "
            'metric="euclidean", or a Subspace of eigenvectors with positive eigenvalues.'
        )
        raise ValueError(argument_message("space", received, "positive ones, for energy shells", remedy))

    # --- coordinates

    def radius_of(self, level: float) -> float:
        """Rho of a level: r itself, or sqrt(2 E)."""
        return level if self.metric == "euclidean" else math.sqrt(2.0 * level)

    def level_of(self, radius: float) -> float:
        """The level of a radius rho."""
        return radius if self.metric == "euclidean" else 0.5 * radius**2

    def delta(self, y: Array) -> Tensor:
        """Displacement (p,), float64, of coordinates y."""
        if not self.is_full:
            return self.rows.T @ self._tensor(y / self.scales)
        return self._root(self._tensor(y), self.scales**-1.0, self.floor**-0.5)

    def coordinates(self, delta: Tensor) -> Array:
        """Coordinates (dim,) of a displacement (p,), of its part inside the space."""
        wide = delta.to(self.rows.device).double()
        if not self.is_full:
            return np.asarray((self.rows @ wide).cpu().numpy() * self.scales)
        return self._array(self._root(wide, self.scales, self.floor**0.5))

    def flat(self, y: Array) -> Array:
        """Coordinates of delta whose scalar products are those of weight space."""
        return self._array(self.delta(y)) if self.is_full else np.asarray(y / self.scales)

    def theta(self, y: Array) -> Tensor:
        """The weights (p,) there, in the loss's dtype."""
        return (self.theta0.double() + self.delta(y)).to(self.theta0)

    def pull(self, covector: Tensor) -> Array:
        """A gradient or a Hessian product (p,) at theta as derivatives by y: M^(-1/2) g, (dim,)."""
        wide = covector.double()
        if not self.is_full:
            return np.asarray((self.rows @ wide).cpu().numpy() / self.scales)
        return self._array(self._root(wide, self.scales**-1.0, self.floor**-0.5))

    def inside(self, vector: Tensor) -> Tensor:
        """The part (p,) of a vector that lies in the space, float64."""
        wide = vector.to(self.rows.device).double()
        return wide if self.is_full else self.rows.T @ (self.rows @ wide)

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
        return np.asarray((self.rows @ products.T).cpu().numpy() / np.outer(self.scales, self.scales))

    def energy(self, y: Array) -> float:
        """1/2 delta^T H0 delta: what a quadratic bowl rises by, whatever the floor. One product in the full space."""
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

    def _products(self, theta: Tensor, rows: Tensor) -> Tensor:
        self.num_products += len(rows)
        return torch.stack([self.loss.hvp(theta, row.to(self.theta0)) for row in rows]).double()

    def _root(self, v: Tensor, above: Array, below: float) -> Tensor:
        """Below * v + sum_j (above_j - below) v_j v_j^T v: a power of the low-rank metric times v."""
        mix = torch.from_numpy(above - below).to(self.rows)
        return below * v + self.rows.T @ (mix * (self.rows @ v))

    def _tensor(self, y: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(y)).to(self.rows)

    @staticmethod
    def _array(v: Tensor) -> Array:
        return np.asarray(v.cpu().numpy(), dtype=np.float64)
