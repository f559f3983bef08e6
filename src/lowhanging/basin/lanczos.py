r"""Which eigenpairs does a symmetric map have at the ends of its spectrum, seen only through products H v?

Everything rests on one relation, kept for orthonormal rows V = [Q; R] (m basis rows, then b open ones):

    H Q^T = V^T K,    K (m + b, m).

The top (m, m) block of K is the projected matrix T = Q H Q^T; the bottom b rows C say how far span(Q) is from invariant:
a Ritz pair (theta, s) of T has the residual |C s|. One step moves an open row into the basis, takes its product, and
opens what remains of it. Plain Lanczos is b = 1; a breakdown (invariant subspace) is b = 0 and opens a random row; the
completeness probe opens a second row beside the first chain's. None of them needs code of its own, and a thick restart
will be V <- [S^T Q; R], K <- [diag(theta); C S].

Why full reorthogonalization, when three terms suffice on paper: without it, converged pairs come back as copies
("ghosts"). A product of a network's Hessian costs far more than two sweeps over the basis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.errors import explain

Array = NDArray[np.float64]

PROBE_STEPS = 8                                           # steps from a random start that look for what was missed
ASYMMETRY = {torch.float32: 1e-3, torch.float64: 1e-7}    # antisymmetric share far above any rounding: the map is at fault


class SymmetricMap(Protocol):
    """What is needed of a map: `CountedMap` makes one of anything that has `@`."""

    size: int
    dtype: torch.dtype
    device: torch.device
    num_products: int

    def product(self, vector: Tensor) -> Tensor:
        """H v, (p,) -> (p,)."""


def not_symmetric(received: str) -> ValueError:
    remedy = "Check that the map is the derivative of one gradient (no dropout, no data drawn anew); (H + H.T) / 2 otherwise."
    return ValueError(explain("H", received, "a symmetric map", remedy))


def rank_by(values: Array, which: str) -> Array:
    """What `which` orders by, the wanted end being the largest: LA: value, SA: -value, LM: |value|."""
    return {"LA": values, "SA": -values, "LM": np.abs(values)}[which]


@dataclass(frozen=True)
class Ritz:
    """All m Ritz pairs of a space, the wanted end first."""

    values: Array     # (m,)
    weights: Array    # (m, m), column j gives Ritz vector j = Q^T weights[:, j]
    couplings: Array  # (b, m) = C weights; column norms are the residuals in exact arithmetic
    scale: float      # largest |Ritz value|

    @property
    def estimates(self) -> Array:
        """(m,) residual norms by the relation: what costs nothing, but knows no rounding."""
        return np.linalg.norm(self.couplings, axis=0)


class KrylovSpace:
    """The relation H Q^T = V^T K and the step that grows it.

    Rows live in one preallocated array on the map's device and in its dtype; K is float64 in NumPy. `memory` (bytes)
    bounds rows and products together; doubling the room holds one old array beside its copy for a moment.
    """

    def __init__(self, operator: SymmetricMap, *, seed: int, memory: float):
        self.operator = operator
        self.memory = memory
        self.max_rows = int(memory // (operator.size * operator.dtype.itemsize))
        self.generator = torch.Generator().manual_seed(seed)       # on the CPU: the same start on every device
        self.size = 0                                              # m, rows of the basis
        self.num_open = 0                                          # b, rows after them
        self.rows = torch.empty((0, operator.size), dtype=operator.dtype, device=operator.device)  # V
        self.products: Tensor | None = self.rows.clone()           # H Q, while memory allows
        self.coefficients = np.zeros((0, 0))                       # K, with room to spare
        self.largest_image = 0.0                                   # largest |H q| so far, the scale of rounding

    @property
    def is_full(self) -> bool:
        """Whether the basis spans the whole space: T then is H in another basis."""
        return self.size == self.operator.size

    @property
    def projected(self) -> Array:
        """T (m, m) as measured, not symmetrised: above the diagonal from products, below it from the construction."""
        return self.coefficients[: self.size, : self.size]

    def has_room(self) -> bool:
        """Make room for the rows of one more step; False when `memory` forbids it."""
        needed = min(self.size + self.num_open + 2, self.operator.size)   # a step may open a random row and its remainder
        capacity = len(self.rows)
        if needed <= capacity:
            return True
        wanted = min(max(2 * capacity, 32), self.operator.size)
        if self.products is not None and 2 * needed > self.max_rows:
            self.products = None
        capacity = min(wanted, self.max_rows if self.products is None else self.max_rows // 2)
        if capacity < needed:
            return False
        self.rows = _enlarged(self.rows, capacity)
        if self.products is not None:
            self.products = _enlarged(self.products, capacity)
        spare = capacity - len(self.coefficients)
        self.coefficients = np.pad(self.coefficients, ((0, spare), (0, spare)))
        return True

    def open_random(self) -> None:
        """Open a random unit row orthogonal to all others; nothing happens where they already span everything."""
        end = self.size + self.num_open
        if end == self.operator.size:
            return
        noise = torch.randn(self.operator.size, generator=self.generator, dtype=torch.float64)
        row = (noise / noise.norm()).to(self.rows)
        for _ in range(3):                                # close to a full space almost all of it is projected away
            row -= self.rows[:end].T @ (self.rows[:end] @ row)
            row /= row.norm()
        self.rows[end] = row
        self.coefficients[end, : self.size] = 0.0
        self.num_open += 1

    def step(self, direction: Array | None = None) -> None:
        """Move one open direction into the basis and take its product; call `has_room` first.

        `direction` (b,) mixes the open rows; None is the newest of them. Costs one product and four sweeps of the rows.
        """
        if self.num_open == 0:
            self.open_random()
        self._bring_forward(direction)
        new = self.size
        image = self.operator.product(self.rows[new])
        if self.products is not None:
            self.products[new] = image
        self.size, self.num_open = self.size + 1, self.num_open - 1
        rows = self.rows[: self.size + self.num_open]     # (m + b, p)
        first = rows @ image
        remainder = image - rows.T @ first
        # Twice: one pass leaves an error of order eps * |image| / |remainder|, and the remainder becomes small.
        second = rows @ remainder
        remainder -= rows.T @ second
        column = torch.cat([first.double() + second.double(), remainder.double().norm()[None]]).cpu().numpy()
        if not np.isfinite(column).all():                 # the step's one wait for the device was the line above
            received = f"has NaN or infinite entries at product {self.operator.num_products}"
            remedy = "Look for overflow in the loss and its derivatives at this point; float64 reaches further than float32."
            raise FloatingPointError(explain("H @ v", received, "finite numbers", remedy))
        self.coefficients[: len(rows), new] = column[:-1]
        self.largest_image = max(self.largest_image, float(np.linalg.norm(column)))
        # Below this the remainder is rounding, and a random row in its place (at the next step) knows as much.
        is_breakdown = column[-1] <= 32 * torch.finfo(rows.dtype).eps * self.largest_image
        if len(rows) < self.operator.size and not is_breakdown:
            self.rows[len(rows)] = remainder / float(column[-1])
            self.coefficients[len(rows), : new] = 0.0
            self.coefficients[len(rows), new] = column[-1]
            self.num_open += 1

    def _bring_forward(self, direction: Array | None) -> None:
        """Rotate the open rows so that `direction` comes first; K's open rows turn with them."""
        if self.num_open == 1:
            return
        mix = np.eye(self.num_open)[-1] if direction is None else direction
        rotation = np.linalg.qr(mix[:, None], mode="complete")[0].T             # (b, b) orthogonal, first row +-mix
        opened = slice(self.size, self.size + self.num_open)
        self.rows[opened] = torch.as_tensor(rotation).to(self.rows) @ self.rows[opened]
        self.coefficients[opened, : self.size] = rotation @ self.coefficients[opened, : self.size]

    def ritz(self, which: str) -> Ritz:
        """Eigenpairs of the symmetrised T, after a look at how symmetric it was."""
        T = self.projected
        share = float(np.linalg.norm(T - T.T)) / (float(np.linalg.norm(T)) or 1.0)
        if share > ASYMMETRY[self.operator.dtype]:
            raise not_symmetric(f"has an antisymmetric part, {share:.1e} of the whole on the {self.size} vectors tried")
        values, weights = np.linalg.eigh((T + T.T) / 2)
        order = np.argsort(-rank_by(values, which), kind="stable")
        couplings = self.coefficients[self.size : self.size + self.num_open, : self.size]
        return Ritz(values[order], weights[:, order], couplings @ weights[:, order], float(np.abs(values).max()))

    def vectors(self, weights: Array) -> Tensor:
        """Q^T weights as (k, p) unit rows in the map's dtype, accumulated in float64; weights (m, k)."""
        mixed = torch.empty((weights.shape[1], self.operator.size), dtype=self.rows.dtype, device=self.rows.device)
        mix = torch.as_tensor(weights.T.copy(), device=self.rows.device)
        for columns in self._slabs():
            mixed[:, columns] = (mix @ self.rows[: self.size, columns].double()).to(mixed.dtype)
        return mixed / mixed.double().norm(dim=1, keepdim=True).to(mixed.dtype)

    def residuals(self, ritz: Ritz, pairs: Array) -> Array:
        """|(HQ)^T s - theta Q^T s| of the numbered pairs in float64; without kept products by the relation, |K s - theta s|."""
        weights, values = ritz.weights[:, pairs], ritz.values[pairs]
        if self.products is None:
            images = self.coefficients[: self.size + self.num_open, : self.size] @ weights
            images[: self.size] -= weights * values
            return np.asarray(np.linalg.norm(images, axis=0))
        mix = torch.as_tensor(weights.T.copy(), device=self.rows.device)                # (k, m)
        shift = torch.as_tensor((weights * values).T.copy(), device=self.rows.device)   # (k, m)
        total = torch.zeros(len(values), dtype=torch.float64, device=self.rows.device)
        for columns in self._slabs():
            products, rows = self.products[: self.size, columns], self.rows[: self.size, columns]
            total += (mix @ products.double() - shift @ rows.double()).square().sum(dim=1)
        return np.asarray(total.sqrt().cpu().numpy())

    def fresh_check(self, ritz: Ritz, pair: int) -> tuple[float, float]:
        """Residual of one pair by a new product, and how far that product lies from V^T K s: the map's noise."""
        vector = self.vectors(ritz.weights[:, [pair]])[0]
        image = self.operator.product(vector).double()
        expected = self.coefficients[: self.size + self.num_open, : self.size] @ ritz.weights[:, pair]
        noise = torch.zeros((), dtype=torch.float64, device=self.rows.device)
        mix = torch.as_tensor(expected, device=self.rows.device)
        for columns in self._slabs():
            noise += (image[columns] - mix @ self.rows[: len(expected), columns].double()).square().sum()
        return float((image - ritz.values[pair] * vector.double()).norm()), float(noise.sqrt())

    def _slabs(self) -> Iterator[slice]:
        """Column ranges whose float64 copy of all rows stays near 64 MB."""
        width = max(1, 2**23 // max(1, self.size + self.num_open))
        return (slice(start, start + width) for start in range(0, self.operator.size, width))


def _enlarged(rows: Tensor, capacity: int) -> Tensor:
    larger = torch.empty((capacity, rows.shape[1]), dtype=rows.dtype, device=rows.device)
    larger[: len(rows)] = rows
    return larger


@dataclass(frozen=True)
class Outcome:
    """What a search found; `failure` is None or the message that says why it stopped short."""

    values: Array         # (k,) wanted end first
    vectors: Tensor       # (k, p) unit rows, in the map's dtype and on its device
    residuals: Array      # (k,) |H v - value v|
    is_converged: NDArray[np.bool_]  # (k,) residual + noise <= tol * scale
    ends: Array           # (2,) smallest and largest Ritz value
    end_residuals: Array  # (2,)
    scale: float          # largest |Ritz value|
    noise: float          # largest |fresh product - kept product| of a unit vector
    num_steps: int        # without those of the probe
    num_probe_steps: int
    failure: str | None


def lanczos(
    operator: SymmetricMap,
    k: int,
    *,
    which: str,
    tol: float,
    max_products: int,
    seed: int,
    memory: float,
    progress: bool | None,
) -> Outcome:
    """The k pairs at the wanted end, each with residual + noise <= tol * scale; see `top_eigs` for the arguments."""
    search = _Search(operator, k, which, max_products, KrylovSpace(operator, seed=seed, memory=memory))
    with tqdm(total=k, desc="eigenpairs", delay=0 if progress else 2, miniters=0, disable=progress is False) as bar:
        failure = search.run(tol, bar)
    return search.outcome(tol, failure)


@dataclass
class _Search:
    """A growing space and the rules for when it has grown enough."""

    operator: SymmetricMap
    k: int
    which: str
    max_products: int
    space: KrylovSpace
    noise: float = 0.0
    num_probe_steps: int = 0
    checked: Array | None = None                          # (k,) residuals of the present space, once fresh products agreed

    def run(self, tol: float, bar: tqdm[None]) -> str | None:
        """Grow until k pairs hold and nothing else can be among them; None, or the kind of failure."""
        space, k = self.space, self.k
        probed: Array | None = None                       # the wanted end when the last probe began
        failure = self.grow(k)
        while failure is None:
            ritz = space.ritz(self.which)
            ranks, estimates = rank_by(ritz.values, self.which), ritz.estimates
            goal = tol * ritz.scale                       # relative to the map: no threshold is absolute
            _show(bar, estimates[:k], goal, ritz.scale, self.operator.num_products)
            is_open = estimates[:k] > goal - self.noise
            if is_open.any():                             # an eigenproblem every step only while (m, m) is small
                failure = self.grow(1 + space.size // 128, ritz.couplings[:, np.argmax(is_open)])
                continue
            residuals = space.residuals(ritz, np.arange(k))
            worst = int(np.argmax(residuals))
            if residuals[worst] > goal - self.noise:      # more steps help only where the relation agrees with the products
                is_rounding = estimates[worst] < residuals[worst] / 2
                failure = "floor" if is_rounding else self.grow(1, ritz.couplings[:, worst])
                continue
            if not space.is_full and (probed is None or (ranks[:k] - probed).max() > goal):
                probed, failure = ranks[:k], self.probe()
                continue
            # A pair outside the k whose error bar reaches past the last of them: follow it. The true eigenvalue lies
            # within one bar if it is the nearest; two caught every missed copy in a thousand dense spectra, one did not.
            reaches = (ranks + 2 * estimates)[k:] > ranks[k - 1] + goal
            if reaches.any():
                failure = self.grow(1, ritz.couplings[:, k + np.argmax(reaches)])
                continue
            if (self.check(ritz, residuals) + self.noise).max() <= goal:
                break
            if self.noise > goal / 2:
                failure = "floor"
        return failure

    def grow(self, num_steps: int, direction: Array | None = None) -> str | None:
        """Take steps, the first towards `direction`; None, or what stood in the way."""
        for _ in range(num_steps):
            if self.space.is_full:
                break
            if self.operator.num_products + self.num_checks >= self.max_products:
                return "max_products"
            if not self.space.has_room():
                return "memory"
            self.space.step(direction)
            self.checked = direction = None
        return None

    def probe(self) -> str | None:
        """Take some steps of a second chain, from a random start orthogonal to everything found.

        The first chain stays in the Krylov space of its start, which holds one vector of a multiple eigenvalue's
        eigenspace, and little of an eigenvector that the start nearly misses: both show in a second chain only.
        """
        chains = self.space.num_open
        for _ in range(PROBE_STEPS):
            direction = None
            if self.space.num_open <= chains and self.space.has_room():    # the start, or the second chain broke down
                self.space.open_random()
                # Mixed with the open rows: what hides in them is orthogonal to a random row and all that follows it.
                direction = np.full(self.space.num_open, self.space.num_open**-0.5)
            size = self.space.size
            failure = self.grow(1, direction)
            self.num_probe_steps += self.space.size - size
            if failure:
                return failure
        return None

    @property
    def num_checks(self) -> int:
        """Products to set aside for `check`."""
        return self.k if self.space.products is None else min(self.k, 2)

    def check(self, ritz: Ritz, residuals: Array) -> Array:
        """Fresh products of two pairs (the worst, and an outermost), of all where none were kept; updates `noise`."""
        worst_first = [int(pair) for pair in np.argsort(-residuals, kind="stable")]
        pairs = worst_first if self.space.products is None else list(dict.fromkeys([worst_first[0], 0, self.k - 1]))
        checked = residuals.copy()
        for pair in pairs[: min(self.num_checks, self.max_products - self.operator.num_products)]:
            fresh, noise = self.space.fresh_check(ritz, pair)
            self.noise = max(self.noise, noise)
            if self.space.products is None:
                checked[pair] = fresh
        self.checked = checked
        return checked

    def outcome(self, tol: float, failure: str | None) -> Outcome:
        """Everything the space knows, whether it is enough or not."""
        space, ritz = self.space, self.space.ritz(self.which)
        residuals = self.checked
        if residuals is None:
            residuals = self.check(ritz, space.residuals(ritz, np.arange(self.k)))
        is_converged = residuals + self.noise <= tol * ritz.scale
        ends = np.array([np.argmin(ritz.values), np.argmax(ritz.values)])
        return Outcome(
            values=ritz.values[: self.k],
            vectors=space.vectors(ritz.weights[:, : self.k]),
            residuals=residuals,
            is_converged=is_converged,
            ends=ritz.values[ends],
            end_residuals=space.residuals(ritz, ends),
            scale=ritz.scale,
            noise=self.noise,
            num_steps=space.size - self.num_probe_steps,
            num_probe_steps=self.num_probe_steps,
            failure=failure and self.explain_failure(failure, tol, is_converged, residuals / (ritz.scale or 1.0)),
        )

    def explain_failure(self, kind: str, tol: float, is_converged: NDArray[np.bool_], relative: Array) -> str:
        """The four parts of "it did not get there"; `relative` (k,) are residuals over scale."""
        found = f"{is_converged.sum()} of {self.k} pairs within tol = {tol:g} (worst residual {relative.max():.1e} of scale)"
        if is_converged.all():
            found = f"all {self.k} pairs within tol = {tol:g} but the completeness probe unfinished"
        if kind == "max_products":
            remedy = "Raise max_products (as a rule 2 k + 60 for a network's Hessian), loosen tol or ask for fewer pairs."
            return explain("max_products", f"is {self.max_products}, with {found}", "room to finish", remedy)
        if kind == "memory":
            row = self.operator.size * self.operator.dtype.itemsize / 2**30
            received = f"is {self.space.memory / 2**30:.3g} GiB, full after {self.space.size} steps, with {found}"
            expected = f"more room, {row:.3g} GiB for each further step"
            return explain("memory", received, expected, "Raise memory (bytes), loosen tol or ask for fewer pairs.")
        floor = float(relative.max()) + self.noise / self.space.ritz(self.which).scale
        remedy = "More steps do not help: pass such a tol."
        if self.operator.dtype == torch.float32:
            remedy = "More steps do not help: use float64 (model.double() before the objective is made), or pass such a tol."
        received = f"is {tol:g}, below the {str(self.operator.dtype)[6:]} floor of {floor:.1e} measured for this map"
        return explain("tol", received, f"tol of at least {_rounded_up(1.5 * floor):.0e}", remedy)


def _show(bar: tqdm[None], estimates: Array, goal: float, scale: float, num_products: int) -> None:
    """Converged pairs, worst residual and products on the bar."""
    bar.set_postfix(products=num_products, worst=f"{estimates.max() / (scale or 1.0):.1e}", refresh=False)
    bar.n = int((estimates <= goal).sum())
    bar.update(0)


def _rounded_up(value: float) -> float:
    """To one digit."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / unit) * unit
