r"""Which eigenpairs does a symmetric map have at the ends of its spectrum, and when can the answer be believed?

`KrylovSpace` grows; this file says whereto, and when it is enough. Four conditions, each the answer to a way in which
Lanczos is commonly wrong: the residuals of *actual products* are small (estimates know no rounding); a second chain
from a random start has found no missed copy; no pair outside the wanted ones has an error bar that reaches them; a
fresh product agrees with the kept ones (the map is a function, and its noise is below the tolerance).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.basin.lanczos import ASYMMETRY, Array, KrylovSpace, Ritz, SymmetricMap, not_symmetric, rank_by
from lowhanging.errors import check_count, explain

DENSE_LIMIT = 5000  # rows: 0.2 GB a matrix, minutes of eigh on 2 cores; beyond that Lanczos is the cheaper way
PROBE_STEPS = 8  # of the second chain; what it glimpses in them is followed until it is decided


@dataclass(frozen=True)
class Outcome:
    """What a search found; `failure` is None or the message that says why it stopped short."""

    values: Array  # (k,) wanted end first
    vectors: Tensor  # (k, p) unit rows, in the map's dtype and on its device
    residuals: Array  # (k,) |H v - value v|
    is_converged: NDArray[np.bool_]  # (k,) residual + noise <= tol * scale
    other_end: float  # extreme Ritz value of the end that wasn't asked for
    other_end_residual: float
    scale: float  # largest |Ritz value|
    noise: float  # largest |fresh product - kept product| of a unit vector
    num_steps: int  # without those of the next
    num_probe_steps: int  # in search of missed pairs
    failure: str | None


def search(
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
    space = KrylovSpace(operator, seed=seed, memory=memory)
    with tqdm(total=k, desc="eigenpairs", delay=0 if progress else 2, miniters=0, disable=progress is False) as bar:
        run = _Search(operator, space, k, which, max_products, bar)
        failure = run.until(tol)
    return run.outcome(tol, failure)


@dataclass
class _Search:
    """A growing space and the rules for when it has grown enough."""

    operator: SymmetricMap
    space: KrylovSpace
    k: int
    which: str
    max_products: int
    bar: tqdm[None]
    noise: float = 0.0
    num_probe_steps: int = 0
    checked: Array | None = None  # (k,) residuals of the space as it is, after `check`

    def until(self, tol: float) -> str | None:
        """Grow until k pairs hold and nothing else can be among them; None, or the kind of failure."""
        space, k = self.space, self.k
        probed: Array | None = None  # the wanted end when the last probe began
        failure = self.grow(k)
        while failure is None:
            ritz = space.ritz(self.which)
            ranks, estimates = rank_by(ritz.values, self.which), ritz.estimates
            goal = tol * ritz.scale  # relative to the map: no threshold is absolute
            stride = 1 + space.size // 128  # the (m, m) eigenproblem is for every step only while small
            is_open = estimates[:k] > goal - self.noise
            self.show(is_open, estimates[:k].max() / (ritz.scale or 1.0))
            if is_open.any():
                failure = self.grow(stride, ritz.couplings[:, np.argmax(is_open)])
                continue
            residuals = space.residuals(ritz, range(k))
            worst = int(np.argmax(residuals))
            if residuals[worst] > goal - self.noise:
                is_rounding = estimates[worst] < residuals[worst] / 2  # then more steps do not help
                failure = "floor" if is_rounding else self.grow(1, ritz.couplings[:, worst])
                continue
            if not space.is_full and (probed is None or (ranks[:k] - probed).max() > goal):
                probed, failure = ranks[:k], self.probe()
                continue
            # Follow a pair outside the k whose error bar reaches into them. Two bars: on dense spectra of double
            # eigenvalues one bar missed a copy in up to a third of the runs, 1.5 in some, 2 in none of a thousand.
            reaches = (ranks + 2 * estimates)[k:] > ranks[k - 1] + goal
            if reaches.any():
                failure = self.grow(stride, ritz.couplings[:, k + np.argmax(reaches)], is_probe=True)
                continue
            if (self.check(ritz, residuals) + self.noise).max() <= goal:
                break
            is_rounding = self.noise > goal / 2 or space.is_full
            failure = "floor" if is_rounding else self.grow(1, ritz.couplings[:, worst])
        return failure

    def grow(self, num_steps: int, direction: Array | None = None, *, is_probe: bool = False) -> str | None:
        """Take steps, the first towards `direction`; None, or what stood in the way."""
        for _ in range(num_steps):
            if self.space.is_full:
                break
            if self.operator.num_products + self.num_checks >= self.max_products:
                return "max_products"
            if not self.space.has_room():
                return "memory"
            self.space.step(direction)
            self.num_probe_steps += is_probe
            self.checked = direction = None
            if self.space.size < self.k:  # nothing can be judged yet, but something moves
                self.bar.set_postfix(products=self.operator.num_products, refresh=False)
            self.bar.update(0)
        return None

    def probe(self) -> str | None:
        """Take some steps of a second chain, from a random start orthogonal to everything found.

        The first chain stays in the Krylov space of its start, which holds one vector of a multiple eigenvalue's
        eigenspace, and little of an eigenvector that the start nearly misses: both show in a second chain only.
        """
        chains = self.space.num_open
        for _ in range(PROBE_STEPS):
            if self.space.is_full:
                break
            direction = None
            if self.space.num_open <= chains and self.space.has_room():  # the start, or the second chain broke down
                self.space.open_random()
                # Mixed with the open rows: what hides in them is orthogonal to a random row and all that follows it.
                direction = np.full(self.space.num_open, self.space.num_open**-0.5)
            failure = self.grow(1, direction, is_probe=True)
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
            residuals = self.check(ritz, space.residuals(ritz, range(self.k)))
        is_converged = residuals + self.noise <= tol * ritz.scale
        other = _other_end(ritz.values[0], ritz.values)
        return Outcome(
            values=ritz.values[: self.k],
            vectors=space.vectors(ritz.weights[:, : self.k]),
            residuals=residuals,
            is_converged=is_converged,
            other_end=float(ritz.values[other]),
            other_end_residual=float(space.residuals(ritz, [other])[0]),
            scale=ritz.scale,
            noise=self.noise,
            num_steps=space.size - self.num_probe_steps,
            num_probe_steps=self.num_probe_steps,
            failure=failure and self.explain_failure(failure, tol, is_converged, residuals / (ritz.scale or 1.0)),
        )

    def show(self, is_open: NDArray[np.bool_], worst: float) -> None:
        """Converged pairs and worst residual / scale on the bar."""
        self.bar.n = self.bar.last_print_n = int((~is_open).sum())  # the latter lets the bar fall, too
        self.bar.set_postfix(products=self.operator.num_products, worst=f"{worst:.1e}", refresh=False)

    def explain_failure(self, kind: str, tol: float, is_converged: NDArray[np.bool_], relative: Array) -> str:
        """The four parts of "it did not get there"; `relative` (k,) are residuals over scale."""
        found = f"{is_converged.sum()} of {self.k} pairs within tol = {tol:g}"
        found += f" (worst residual {relative.max():.1e} of scale)"
        if is_converged.all():
            found = f"all {self.k} pairs within tol = {tol:g} but the search for missed ones unfinished"
        if kind == "max_products":
            remedy = "Raise max_products (as a rule 2 k + 60 for a network), loosen tol or ask for fewer pairs."
            return explain(kind, f"is {self.max_products}, spent with {found}", "room to finish", remedy)
        if kind == "memory":
            row = self.operator.size * self.operator.dtype.itemsize
            received = f"is {self.space.memory:,.0f} bytes, full after {self.space.size} steps with {found}"
            expected = f"{row:,} bytes more for each further step"
            return explain(kind, received, expected, "Raise memory (bytes), loosen tol or ask for fewer pairs.")
        floor = float(relative.max()) + self.noise / (self.space.ritz(self.which).scale or 1.0)
        return explain_floor(tol, floor, self.operator.dtype)


def explain_floor(tol: float, floor: float, dtype: torch.dtype) -> str:
    """The message for a `tol` that rounding puts out of reach; `floor` = residual + noise over scale."""
    precision = str(dtype).removeprefix("torch.")
    received = f"is {tol:g}, below the {precision} floor of {floor:.1e} measured for this map"
    remedy = "More steps do not help: pass such a tol"
    if dtype == torch.float32:
        remedy += ", or use float64 (model.double() before the objective is made)"
    return explain("tol", received, f"at least {_rounded_up(1.5 * floor):.0e}", remedy + ".")


def search_dense(
    operator: SymmetricMap, k: int, which: str, tol: float, max_products: int | None, progress: bool | None
) -> Outcome:
    """All of H by products with the unit vectors, and its eigendecomposition in float64."""
    p = operator.size
    if p > DENSE_LIMIT:
        received = f'is "dense" for p = {p}'
        raise ValueError(explain("method", received, f"p of at most {DENSE_LIMIT}", 'Use method="lanczos".'))
    if max_products is not None:
        check_count("max_products", max_products, minimum=p, remedy='method="dense" takes p products.')
    columns = np.empty((p, p))
    unit = torch.zeros(p, dtype=operator.dtype, device=operator.device)
    for i in tqdm(range(p), desc="columns", delay=0 if progress else 2, disable=progress is False):
        unit[i] = 1.0
        columns[i] = operator.product(unit).double().cpu().numpy()  # row i holds H e_i
        unit[i] = 0.0
    if not np.isfinite(columns).all():
        raise FloatingPointError(explain("H @ v", "has NaN or infinite entries", "finite numbers", "Check the map."))
    asymmetric = (columns - columns.T) / 2
    share = 2 * float(np.linalg.norm(asymmetric)) / (float(np.linalg.norm(columns)) or 1.0)
    if share > ASYMMETRY[operator.dtype]:
        raise not_symmetric(f"has an antisymmetric part, {share:.1e} of the whole")
    values, vectors = np.linalg.eigh(columns - asymmetric)
    scale = float(np.abs(values).max())
    order = np.argsort(-rank_by(values, which), kind="stable")
    chosen = [*order[:k], _other_end(values[order[0]], values)]
    values, rounded = values[chosen], torch.from_numpy(vectors[:, chosen].T.copy()).to(operator.dtype)  # (k + 1, p)
    exact = rounded.double().numpy()
    residuals = np.linalg.norm(exact @ columns - values[:, None] * exact, axis=1)
    noise = float(np.linalg.norm(asymmetric, axis=1).max())
    is_converged = residuals[:k] + noise <= tol * scale
    failure = None
    if not is_converged.all():
        failure = explain_floor(tol, (residuals[:k].max() + noise) / (scale or 1.0), operator.dtype)
    return Outcome(
        values=values[:k],
        vectors=rounded[:k],
        residuals=residuals[:k],
        is_converged=is_converged,
        other_end=float(values[k]),
        other_end_residual=float(residuals[k]),
        scale=scale,
        noise=noise,
        num_steps=p,
        num_probe_steps=0,
        failure=failure,
    )


def _other_end(first: float, values: Array) -> int:
    """Which of the values is the end opposite to the first wanted one: the farthest from it."""
    return int(np.argmax(np.abs(values - first)))


def _rounded_up(value: float) -> float:
    """To one digit."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / unit) * unit
