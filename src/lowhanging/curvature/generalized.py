"""Block Davidson method for A u = value (B + shift I) u, by products with A and B only.

Lanczos would need a solve with B + shift I at every step. Here one product of each matrix is enough: the space grows by
residuals, preconditioned with the eigenpairs of B that are known already, and Rayleigh-Ritz in the whole space keeps
what earlier steps have found.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.curvature.eigenpairs import DEFAULT_TOL, MAX_FLOOR, Eigenpairs
from lowhanging.curvature.eigensolver import reachable_tol
from lowhanging.curvature.krylov import dots, not_finite
from lowhanging.curvature.linear_map import CountedMap
from lowhanging.curvature.operators import plain_arithmetic
from lowhanging.curvature.subspace import Subspace
from lowhanging.errors import (
    NotConvergedError,
    a_type,
    argument_message,
    check_count,
    check_real,
    door,
)
from lowhanging.io import Saved
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.random_state import private_generator

_PATIENCE = 15  # steps of a float32 search in which the worst residual must halve, or is held against rounding
_SHARE = 10.0  # of the products' errors that a residual may be and still be theirs
_MAX_ROWS = 160  # of the basis, three vectors of p numbers each, before it is shrunk


@dataclass(frozen=True, eq=False, repr=False)
class GeneralizedEigenpairs(Saved):
    """The largest eigenvalues of A u = value (B + shift I) u, and how well they hold."""

    values: Tensor  # (k,) float64, descending
    vectors: Tensor  # (k, p) rows of unit length, orthogonal to each other in B + shift I
    residuals: Tensor  # (k,) |A u - value (B + shift I) u| / (largest |value| |(B + shift I) u|), of fresh products
    shift: float
    tol: float
    num_products: int  # with A and with B, together
    is_at_floor: bool = False  # whether `tol` is what rounding allows, coarser than the default that was wanted

    def __repr__(self) -> str:
        values = ", ".join(f"{value:.4g}" for value in self.values[:4]) + (", ..." if len(self.values) > 4 else "")
        worst = f"worst residual {float(self.residuals.max()):.1e}"
        worst += f", AT THE FLOAT32 FLOOR: tol {self.tol:.0e} instead of {DEFAULT_TOL:.0e}" if self.is_at_floor else ""
        return f"GeneralizedEigenpairs({values}; shift {self.shift:.3g}, {worst}, {self.num_products} products)"


@door
@plain_arithmetic()
def generalized_eigs(
    A: Any,
    B: Any,
    *,
    k: int = 1,
    shift: float = 0.0,
    known: Eigenpairs | None = None,
    orthogonal_to: Tensor | None = None,
    tol: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> GeneralizedEigenpairs:
    r"""The k largest eigenvalues of A u = value (B + shift I) u: where A curves most per curvature of B.

    value = max u.Au / (u.Bu + shift |u|^2), over all u, over those orthogonal to the first in B + shift I, and so on.
    With `orthogonal_to`, over the u orthogonal to those rows, and residuals in that space. The search looks at
    directions in which it can see progress: of a multiple eigenvalue it may find one vector, as any Krylov method.

    Args:
        A: symmetric (p, p) map: `lh.hessian(loss)`, a matrix, a SciPy LinearOperator.
        B: another one; B + shift I must be positive definite on the space that is searched.
        k: number of pairs.
        shift: added to every eigenvalue of B.
        known: top eigenpairs of B ("LA"), if there are some: they make the search several times shorter.
        orthogonal_to: (r, p) or (p,) rows that every vector must be orthogonal to.
        tol: residual |A u - value (B + shift I) u| to reach, relative to the largest |value| times |(B + shift I) u|.
            By default 1e-4, or, where rounding in float32 puts that out of reach, what was reached, up to 0.1: `.tol`
            and `.is_at_floor` say so. A tol that is given is met, or it is an error.
        max_products: limit on products with A and B together; by default 200 k + 1,000.
        seed: of the random start.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        GeneralizedEigenpairs: `.values`, `.vectors` (unit rows, on the CPU), `.residuals`, `.num_products`.

    Raises:
        NotConvergedError: fresh products miss twice `tol`; `.result` has what was found.
        FloatingPointError: a product holds NaN or inf.
        ValueError, TypeError: B + shift I is not positive in a direction met, maps of two sizes, bad arguments.

    Cost:
        one product of each map per step, usually 20 to 60 steps, and k of each at the end; 480 vectors, or 12 k.

    Source:
        Davidson (1975), for the expansion by preconditioned residuals; Saad (2011), Numerical Methods for Large
        Eigenvalue Problems, section 8.4.

    Example:
        >>> A, B = torch.diag(torch.tensor([4.0, 3.0, 2.0])), torch.diag(torch.tensor([8.0, 1.0, 1.0]))
        >>> round(float(generalized_eigs(A, B).values), 6)
        3.0
    """
    left, right = CountedMap(A), CountedMap(B)
    left.num_done = right.num_done = 0
    if left.size != right.size or left.dtype != right.dtype or left.device != right.device:
        received = f"has p = {right.size}, {right.dtype} on {right.device}"
        expected = f"p = {left.size}, {left.dtype} on {left.device}, as A"
        raise ValueError(argument_message("B", received, expected, "Make both of one model's losses."))
    excluded = _rows(orthogonal_to, left)
    remedy = "Ask for fewer pairs than there are dimensions."
    k = check_count("k", k, maximum=left.size - len(excluded), remedy=remedy)
    shift = check_real("shift", shift, remedy="Pass 0, or what makes B + shift I positive definite.")
    follows_floor = tol is None and left.dtype == torch.float32
    tol = check_real("tol", DEFAULT_TOL if tol is None else tol, minimum=0.0, exclusive=True, remedy="Leave it out.")
    remedy = "Leave it out for a safe limit."
    limit = 200 * k + 1000 if max_products is None else max_products
    limit = check_count("max_products", limit, minimum=4 * k + 2, remedy=remedy)
    space = _Space(left, right, shift, excluded, _Preconditioner(known, right, shift), max(_MAX_ROWS, 4 * k))
    generator = private_generator(check_count("seed", seed, minimum=0, remedy="Pass 0."), "generalized")
    delay, least, since, is_at_floor = 2.0 if progress is None else 0.0, math.inf, 0, False
    with tqdm(desc="generalized eigenpairs", unit=" steps", disable=is_silent(progress), delay=delay) as bar:
        bar.set_postfix_str("preparing", refresh=bool(progress))
        space.add([space.random(generator) for _ in range(min(k + 1, space.num_dimensions))])
        while True:
            values, weights = space.ritz()
            k_now = min(k, len(values))
            residuals, sizes = space.residuals(values[:k_now], weights[:, :k_now])
            is_open = sizes > tol
            found = f"{k_now - int(is_open.sum())} of {k} pairs, worst residual {sizes.max():.0e}, wanted {tol:.0e}"
            bar.set_postfix_str(f"{found}, {space.num_products} products", refresh=False)
            bar.update()
            is_done = k_now == k and not is_open.any()
            since = 0 if sizes.max() < 0.5 * least else since + 1
            least = min(least, float(sizes.max()))
            if follows_floor and k_now == k and since >= _PATIENCE:
                is_at_floor, since = space.is_rounding(values[:k], weights[:, :k], sizes), 0
            if is_done or is_at_floor or space.is_full or space.num_products + 2 * (k + 1) > limit:
                break
            if space.size + k > space.max_rows:
                space.shrink(weights[:, : max(2 * k, 40)])
                continue
            chosen = np.flatnonzero(is_open)[: max(1, k // 4)] if is_open.any() else [0]
            new = [space.precondition(residuals[i]) for i in chosen]
            if not space.add(new):  # nothing is left of them beyond rounding: another direction
                space.add([space.random(generator)])
    result = space.result(values[:k_now], weights[:, :k_now], tol)
    worst = float(result.residuals.max())
    if is_at_floor and reachable_tol(worst) <= MAX_FLOOR:
        return dataclasses.replace(result, tol=reachable_tol(worst), is_at_floor=True)
    if k_now < k or worst > 2 * tol:
        spent = f"{result.num_products} products"
        message = f"generalized_eigs reached a residual of {worst:.1e} > tol {tol:g} after {spent}."
        remedy = "Raise max_products=, tol= or shift=; known= pairs of B shorten it; float64 rounds less."
        if is_at_floor:
            remedy = "That is the rounding of float32: use float64 (objective.double())."
        raise NotConvergedError(f"{message}\n{remedy}", result)
    return result


class _Preconditioner:
    """About (B + shift I)^-1: exact on the known eigenvectors of B, a multiple of the identity beside them."""

    def __init__(self, known: Eigenpairs | None, B: CountedMap, shift: float):
        self.vectors: Tensor | None = None
        if known is None:
            return
        remedy = 'Compute them with lh.top_eigs(B, k=..., which="LA").'
        if not isinstance(known, Eigenpairs):
            raise TypeError(argument_message("known", f"is {a_type(known)}", "Eigenpairs of B", remedy))
        if known.which != "LA" or known.vectors.shape[1] != B.size:
            received = f"holds {len(known.values)} pairs ({known.which}) of length {known.vectors.shape[1]}"
            raise ValueError(argument_message("known", received, f"pairs (LA) of B, of length {B.size}", remedy))
        is_useful = known.values.double() + shift > 0
        if bool(is_useful.any()):
            self.vectors = known.vectors[is_useful].to(B.device, B.dtype)
            sizes = known.values.double()[is_useful] + shift
            # Beside them the eigenvalues lie between the smallest known one and what makes the matrix positive.
            rest = float(sizes.min()) / 2 if shift <= 0 else float((sizes.min() * shift).sqrt())
            self.excess = (rest / sizes - 1).to(B.device, B.dtype)

    def __call__(self, row: Tensor) -> Tensor:
        if self.vectors is None:
            return row
        return row + (self.excess * dots(self.vectors, row).to(row)) @ self.vectors


class _Space:
    """An orthonormal basis V (m, p) with its products, orthogonal to the excluded rows."""

    def __init__(
        self,
        A: CountedMap,
        B: CountedMap,
        shift: float,
        excluded: Tensor,
        precondition: _Preconditioner,
        max_rows: int,
    ):
        self.A, self.B, self.shift, self.excluded, self.precondition = A, B, shift, excluded, precondition
        self.max_rows = max_rows
        self.rows = excluded.new_empty((3, 32, A.size))  # of the basis, of A times it, of B + shift I times it
        self.grams = np.zeros((2, max_rows + 1, max_rows + 1))  # V A V' and V (B + shift I) V'
        self.size, self.num_dimensions = 0, A.size - len(excluded)

    @property
    def basis(self) -> Tensor:
        return self.rows[0, : self.size]

    @property
    def num_products(self) -> int:
        return self.A.num_products + self.B.num_products

    @property
    def is_full(self) -> bool:
        return self.size >= self.num_dimensions

    def random(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self.A.size, generator=generator, dtype=torch.float64).to(self.basis)

    def add(self, rows: list[Tensor]) -> bool:
        """Orthonormalise rows against the basis and take their products; False if nothing of them was new."""
        before = self.size
        for row in rows:
            if self.is_full:
                break
            whole = float(row.double().norm())
            for _ in range(3):
                row = self._inside(row)
                row = row - self.basis.T @ dots(self.basis, row).to(row)
            rest = float(row.double().norm())
            if rest > 1e3 * torch.finfo(row.dtype).eps * whole:
                self._append(row / rest)
        return self.size > before

    def _append(self, row: Tensor) -> None:
        m = self.size
        if m == self.rows.shape[1]:
            self.rows = torch.cat([self.rows, torch.empty_like(self.rows)], dim=1)
        images = self.A.product(row), self.B.product(row) + self.shift * row
        if not all(bool(image.isfinite().all()) for image in images):
            raise not_finite(self.num_products)
        self.size = m + 1
        for place, vector in enumerate((row, *images)):
            self.rows[place, m] = self._inside(vector) if place else vector
        for gram, image in zip(self.grams, self.rows[1:, m], strict=True):
            gram[m, : m + 1] = gram[: m + 1, m] = dots(self.basis, image).cpu().numpy()

    def ritz(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values (m,) descending and weights (m, m) in the basis, columns orthonormal in B + shift I."""
        a, b = self.grams[:, : self.size, : self.size]
        smallest = float(np.linalg.eigvalsh(b)[0])
        if not smallest > 0:
            received = f"has curvature {smallest:.3g} in a direction, the shift included"
            expected = "a matrix B with B + shift I positive definite"
            remedy = f"Raise shift= by more than {-smallest:.2g}, to above minus the smallest eigenvalue of B."
            raise ValueError(argument_message("B", received, expected, remedy))
        values, weights = scipy.linalg.eigh(a, b)
        return values[::-1], weights[:, ::-1]

    def residuals(
        self, values: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> tuple[Tensor, NDArray[np.float64]]:
        """Residuals (k, p) of columns of weights, and their lengths (k,) as in the result."""
        mix = torch.from_numpy(weights.T.copy()).to(self.basis)
        images, metric = (mix @ rows[: self.size] for rows in self.rows[1:])
        residuals = images - torch.from_numpy(values.copy()).to(self.basis)[:, None] * metric
        scale = float(np.abs(values).max()) * metric.double().norm(dim=1)
        return residuals, (residuals.double().norm(dim=1) / scale.clamp_min(1e-300)).cpu().numpy()

    def is_rounding(
        self, values: NDArray[np.float64], weights: NDArray[np.float64], sizes: NDArray[np.float64]
    ) -> bool:
        """Whether the worst residual is of the size of the products' errors, held against float64 ones."""
        worst = int(sizes.argmax())
        row = (torch.from_numpy(weights[:, worst].copy()).to(self.basis) @ self.basis)[None]
        row = row / row.double().norm().to(row)
        images = [matrix.product(row[0])[None].double() for matrix in (self.A, self.B)]
        errors = [
            matrix.errors_of(row.double(), image, 0.0) for matrix, image in zip((self.A, self.B), images, strict=True)
        ]
        if errors[0] is None or errors[1] is None:
            return False
        largest = float(np.abs(values).max())
        metric = float((images[1] + self.shift * row.double()).norm())
        error = float(errors[0]) + abs(float(values[worst])) * float(errors[1])
        return bool(sizes[worst] <= _SHARE * error / max(largest * metric, 1e-300))

    def shrink(self, weights: NDArray[np.float64]) -> None:
        """Keep the span of the best vectors only."""
        q, _ = np.linalg.qr(weights)
        mix, new = torch.from_numpy(q.T.copy()).to(self.basis), q.shape[1]
        for rows in self.rows:
            rows[:new] = mix @ rows[: self.size]
        for gram in self.grams:
            gram[:new, :new] = q.T @ gram[: self.size, : self.size] @ q
        self.size = new

    def result(self, values: NDArray[np.float64], weights: NDArray[np.float64], tol: float) -> GeneralizedEigenpairs:
        """The pairs, with residuals of fresh products."""
        rows = torch.from_numpy(weights.T.copy()).to(self.basis) @ self.basis
        rows = rows / rows.double().norm(dim=1, keepdim=True).to(rows)
        sizes = []
        for value, row in zip(values, rows, strict=True):
            image = self._inside(self.A.product(row)).double()
            metric = self._inside(self.B.product(row) + self.shift * row).double()
            scale = float(np.abs(values).max()) * float(metric.norm())
            sizes.append(float((image - float(value) * metric).norm()) / max(scale, 1e-300))
        return GeneralizedEigenpairs(
            values=torch.from_numpy(values.copy()),
            vectors=rows.cpu(),
            residuals=torch.tensor(sizes, dtype=torch.float64),
            shift=self.shift,
            tol=tol,
            num_products=self.num_products,
        )

    def _inside(self, row: Tensor) -> Tensor:
        return row - self.excluded.T @ dots(self.excluded, row).to(row)


def _rows(orthogonal_to: Tensor | None, like: CountedMap) -> Tensor:
    """Orthonormal rows (r, p) of what is excluded."""
    if orthogonal_to is None:
        return torch.zeros((0, like.size), dtype=like.dtype, device=like.device)
    is_tensor = isinstance(orthogonal_to, Tensor)
    rows = orthogonal_to.reshape(-1, like.size) if is_tensor and orthogonal_to.shape[-1:] == (like.size,) else None
    if rows is None or orthogonal_to.ndim > 2:
        received = f"has shape {tuple(orthogonal_to.shape)}" if is_tensor else f"is {a_type(orthogonal_to)}"
        expected = f"({like.size},) or (r, {like.size})"
        raise ValueError(argument_message("orthogonal_to", received, expected, "Pass a gradient, or rows."))
    return Subspace.span(rows.detach()).basis.to(like.device, like.dtype)
