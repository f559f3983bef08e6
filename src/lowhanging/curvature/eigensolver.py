"""Search for eigenpairs at the ends of a spectrum: where the Krylov space grows, when it stops, what a pair is worth.

Four conditions must hold, each against a way in which Lanczos is commonly wrong: the residuals of *actual products* are
small (estimates know no rounding); a second chain from a random start has found no missed copy; no pair outside the
wanted ones has an error bar that reaches them; a fresh product agrees with the kept ones (the map is a function, and
its noise is below the tolerance).

A search with a file writes the state of its space between steps. The file of another map is recognised by what
identifies a map where something does (the numbers of a matrix, theta and parameters of a loss), and by three products:
two that mix everything in the basis, and one with a random vector, for what is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.curvature.krylov import (
    Array,
    KrylovSpace,
    Ritz,
    SymmetricMap,
    by_end,
    column_norms,
    disagreement,
    fresh_checks,
    kept_images,
    other_end,
    outward,
    random_mixtures,
    reaching,
    residuals_of,
    ritz_vectors,
)
from lowhanging.curvature.operators import LossMatrix, OperatorSum
from lowhanging.errors import argument_message
from lowhanging.io import ResumeFile, digest
from lowhanging.objective.distributed import is_silent


def error_bounds(
    values: Array, residuals: Array, noise: float, others: Array, bars: Array, rounding: float = 0.0
) -> Array:
    """Bounds (k,) on |eigenvalue - value| for the first k of all Ritz values.

    With a unit vector v, value v' H v and r = |H v - value v|, an eigenvalue lies within r; within r^2 / gap, if no
    other one is nearer than `gap`, which is taken to the other Ritz values less their residuals. A product that is off
    by `noise` moves the value by as much.

    Args:
        values: (k,).
        residuals: (k,) |H v - value v|.
        noise: error of a product.
        others: (m,) all Ritz values, the first k being `values`.
        bars: (m,) their residuals.
        rounding: of one number in the map's dtype, relative.
    """
    scale = float(np.abs(others).max())
    known = np.r_[residuals, bars[len(values) :]]  # (m,)
    distances = np.abs(others[None, :] - values[:, None]) - known[None, :]  # (k, m)
    np.fill_diagonal(distances, np.inf)
    gaps, true = distances.min(axis=1), residuals + noise
    is_alone = gaps > true
    squared = np.where(is_alone, true**2 / np.where(is_alone, gaps, 1.0) + noise, np.inf)
    # Of the basis, whose rows are orthonormal to rounding only, and of the small eigenproblem.
    least = (rounding + len(others) * float(np.finfo(np.float64).eps)) * scale
    return np.asarray(np.minimum(true, squared) + least)


def in_clusters(
    values: Array, residuals: Array, noise: float, others: Array, bars: Array, rounding: float = 0.0
) -> NDArray[np.bool_]:
    """(k,) whether another Ritz value is nearer than the two residuals: the vectors are then one of many bases."""
    known = np.r_[residuals, bars[len(values) :]]
    distances = np.abs(others[None, :] - values[:, None])
    np.fill_diagonal(distances, np.inf)
    least = (rounding + 8 * float(np.finfo(np.float64).eps)) * float(np.abs(others).max())
    return np.asarray((distances <= residuals[:, None] + known[None, :] + 2 * noise + least).any(axis=1))


def missed_copies(wanted: float, chain: float, lowest: float, num_steps: int, size: int) -> tuple[float, float]:
    """What a chain from a random start says of eigenvalues that it did not find, at the upper end of a spectrum.

    After m steps the chain's largest Ritz value x is below the largest eigenvalue by more than e times the width of the
    spectrum with a probability of at most 1.648 sqrt(p) exp(-sqrt(e) (2 m - 1)).

    Args:
        wanted: the innermost value that was found.
        chain: x, the largest that is beyond those found; -inf for none.
        lowest: the other end of the spectrum.
        num_steps: m.
        size: p, the dimension in which the chain has run.

    Returns:
        how far above `wanted` a missed eigenvalue lies at most, in 99 % of the cases (infinite if nothing can be said);
        and the probability, at most, that one at `wanted` or above was missed.

    Source:
        Kuczynski & Wozniakowski (1992), "Estimating the largest eigenvalue by the power and Lanczos algorithms with a
        random start", theorem 4.2, for the map shifted to be positive.
    """
    factor, chain = 1.648 * math.sqrt(max(size, 1)), max(chain, lowest)
    if num_steps < 1 or not math.isfinite(wanted):
        return (math.inf, 1.0) if num_steps < 1 else (0.0, 0.0)
    share = (math.log(factor / 0.01) / (2 * num_steps - 1)) ** 2
    excess = math.inf if share >= 1 else max(0.0, (chain - share * lowest) / (1 - share) - wanted)
    gap = max(0.0, wanted - chain) / ((wanted - lowest) or 1.0)
    return excess, min(1.0, factor * math.exp(-math.sqrt(min(gap, 1.0)) * (2 * num_steps - 1)))


def explain_floor(tol: float, floor: float, dtype: torch.dtype) -> str:
    """The message for a `tol` that rounding puts out of reach; `floor` = residual + noise over scale."""
    precision = str(dtype).removeprefix("torch.")
    received = f"is {tol:g}, below the {precision} floor of {floor:.1e} measured for this map"
    remedy = "More steps do not help: pass such a tol"
    if dtype == torch.float32:
        remedy += ", or use float64 (objective.double(), or model.double() before the objective is made)"
    return argument_message("tol", received, f"at least {reachable_tol(floor):.0e}", remedy + ".")


def reachable_tol(floor: float) -> float:
    """The smallest `tol` that is surely above a measured floor, rounded up to one digit."""
    value = 1.5 * floor
    unit = 10.0 ** math.floor(math.log10(max(value, 1e-300)))
    return math.ceil(value / unit) * unit


STRIDE = 4  # products between two writes, at least


class SearchFile:
    """The file of one search.

    Args:
        resume: its path; made at the first write.
        identity: what else determines the answer, in words; the file of a search with another one is refused.
    """

    def __init__(self, resume: str | Path, identity: Mapping[str, str]):
        self._file = ResumeFile(resume, identity, kind="a search for eigenpairs")
        self._products = 0  # at the last write
        self._random_image: Tensor | None = None  # (p,) the map times `_random_row`

    def read(self, space: KrylovSpace, k: int, which: str) -> dict[str, Any] | None:
        """Fill the space with what the file holds, and return the numbers saved beside it; None without a file.

        Costs one product without a file, else three.
        """
        stored = self._file.read()
        if stored is None:
            self._random_image = space.operator.product(_random_row(space))
            return None
        with self._file.decoding():
            space.restore(stored["space"])
            self._random_image = stored["random_image"].to(_random_row(space))
            if self._random_image.shape != (space.operator.size,):
                raise ValueError(f"random_image {tuple(self._random_image.shape)}")
            numbers: dict[str, Any] = stored["numbers"]
        rows, images = _random_row(space).double()[None], self._random_image.double()[None]
        if space.size:
            mixed = kept_images(space, random_mixtures(space.ritz(which), k))
            rows, images = torch.cat([mixed[0], rows]), torch.cat([mixed[1], images])
        if disagreement(space, rows, images, float(numbers["noise"])) is None:
            self.refuse()
        return numbers

    def refuse(self) -> NoReturn:
        """Raise the error for the file of another map."""
        self._file.refuse(["H"])

    def write_if_due(self, space: KrylovSpace, numbers: Mapping[str, Any], *, now: bool = False) -> None:
        """Write the space and some numbers and arrays, unless that was done a moment ago."""
        products = space.operator.num_products
        if not now and (products < self._products + STRIDE or not self._file.is_due):
            return
        assert self._random_image is not None  # `read` comes first
        state = {"space": space.state(), "random_image": self._random_image.cpu(), "numbers": numbers}
        self._file.write(state)
        self._products = products


def identity_of(H: Any) -> dict[str, str]:
    """What can be said of a map without a product: the numbers of a matrix, the point and the parameters of a loss.

    The data and the loss itself are left to the products: an order of the examples that was drawn anew, or a model that
    was made anew, is the same map.
    """
    if isinstance(H, LossMatrix):
        return {"theta": digest(H.theta), "kind of matrix": f"{H.kind} {H.parameters}"}
    if isinstance(H, OperatorSum):
        parts = [{"factor": repr(factor), **identity_of(part)} for factor, part in H.terms]
        return {"H": repr(parts)}
    if isinstance(H, Tensor):
        plain = H.detach()
        if plain.layout != torch.strided:
            coo = plain.to_sparse().coalesce()
            return {"H": digest(coo.indices(), coo.values())}
        return {"H": digest(plain)}
    if isinstance(H, np.ndarray):
        return {"H": digest(torch.from_numpy(np.array(H)))}
    if scipy.sparse.issparse(H):
        csr = H.tocsr().copy()
        csr.sum_duplicates()
        return {"H": digest(*(torch.from_numpy(part) for part in (csr.indptr, csr.indices, csr.data)))}
    return {"H": ""}


def _random_row(space: KrylovSpace) -> Tensor:
    """A unit vector (p,) that is the same for every search, and lies in no basis."""
    generator = torch.Generator().manual_seed(2**31 - 1)
    noise = torch.randn(space.operator.size, generator=generator, dtype=torch.float64, device="cpu")
    row: Tensor = (noise / noise.norm()).to(space.rows)
    return row


PROBE_SHARE = 0.1  # of the steps of the search, for the second chain, which takes three at least
_NEAR = 3.0  # tolerances that a known span may leak: measured on networks, where the two ways cost the same
_AT_ONCE = 32  # known vectors multiplied in one block
# Numbers of a search that its file holds.
_KEPT = ("noise", "num_probe_steps", "last_probe", "num_resuming", "num_known", "num_kept")


@dataclass(frozen=True)
class Outcome:
    """What a search found; `failure` is None or the message that says why it stopped short."""

    values: Array  # (k,) wanted end first
    vectors: Tensor  # (k, p) unit rows, in the map's dtype and on its device
    residuals: Array  # (k,) |H v - value v|
    bounds: Array  # (k,) on |eigenvalue - value|
    is_converged: NDArray[np.bool_]  # (k,) residual + noise <= tol * scale
    is_clustered: NDArray[np.bool_]  # (k,) another value is nearer than the residuals
    other_end: float  # extreme Ritz value of the end that wasn't asked for
    other_end_residual: float
    scale: float  # largest |Ritz value|
    noise: float  # largest |fresh product - kept product| of a unit vector
    rounding: float  # |product - product in float64| of a unit vector; 0 in float64, NaN where it can't be measured
    tol: float  # that was gone for in the end
    num_steps: int  # without those of the next
    num_probe_steps: int  # in search of missed pairs
    missed_excess: float
    missed_probability: float
    num_restarts: int
    failure: str | None


def least_rows(k: int, num_known: int) -> int:
    """Rows without which a restarted search gets nowhere: the pairs, room to grow, and what known vectors open."""
    return k + max(k // 2, 10) + 2 + 2 * num_known


def search(
    operator: SymmetricMap,
    k: int,
    *,
    which: str,
    tol: float,
    max_tol: float = 0.0,
    max_products: int,
    seed: int,
    memory: float,
    progress: bool | None,
    num_probes: int | None = None,
    known: Tensor | None = None,
    file: SearchFile | None = None,
) -> Outcome:
    """The k pairs at the wanted end, each with residual + noise <= tol * scale.

    Arguments as of `top_eigs`; `known` (j, p) are rows to start from, `file` is where the search is kept. Where
    rounding puts `tol` out of reach, the search goes on to what can be reached, as long as that is at most `max_tol`.
    """
    space = KrylovSpace(operator, seed=seed, memory=memory)
    silent = is_silent(progress)
    # Nobody knows how many products it takes: a bar without a total.
    with tqdm(desc="eigenpairs", unit=" products", delay=0 if progress else 2, miniters=0, disable=silent) as bar:
        bar.set_postfix_str("preparing", refresh=bool(progress))
        run = _Search(operator, space, k, which, max_products, bar, file, num_probes)
        run.begin(known)
        failure = run.until(tol)
        while failure == "floor" and (reachable := run.reachable_tol()) <= max_tol:
            tol = max(reachable, 1.5 * tol)
            failure = run.until(tol)
    outcome = run.outcome(tol, failure)
    run.save(now=True)
    return outcome


@dataclass
class _Search:
    """A growing space and the rules for when it has grown enough."""

    operator: SymmetricMap
    space: KrylovSpace
    k: int
    which: str
    max_products: int
    bar: tqdm[None]
    file: SearchFile | None = None
    num_probes: int | None = None  # steps of the second chain; None: a share of the search's
    num_known: int = 0  # vectors that the search steps along first
    num_kept: int = 2**62  # pairs that survive a restart: those further in are forgotten before they are known
    noise: float = 0.0
    num_probe_steps: int = 0
    num_resuming: int = 0  # products for what is beside `max_products`: is the file of this map, how much is rounded
    is_resumed: bool = False  # then the pairs may rest on products of another map, until each of them is checked
    probed: Array | None = None  # (k,) how far out the wanted values were when the last probe began
    last_probe: int = 0  # steps that it took
    checked: Array | None = None  # (k,) residuals of the space as it is, after `check`

    def begin(self, known: Tensor | None) -> None:
        """Start from what the file holds, from known vectors, or from nothing."""
        saved = None if self.file is None else self.file.read(self.space, self.k, self.which)
        self.num_resuming = self.operator.num_products
        if saved is not None:
            taken = self.num_resuming  # it took them to know that the file is of this map
            for name in _KEPT:
                setattr(self, name, saved[name])
            self.operator.num_done = saved["num_done"]
            self.probed, self.is_resumed = saved.get("probed"), True
            self.num_resuming += taken
            self.operator.num_products += saved["num_products"]
        elif known is not None:
            self.space.start_from(known)
            self.num_known = self.space.num_residual

    def save(self, *, now: bool = False) -> None:
        """Write the search to its file, if it has one and that is due."""
        if self.file is not None:
            numbers: dict[str, Any] = {name: getattr(self, name) for name in _KEPT}
            if self.probed is not None:
                numbers["probed"] = self.probed
            numbers |= {"num_products": self.spent, "num_done": self.operator.num_done}
            self.file.write_if_due(self.space, numbers, now=now)

    def until(self, tol: float) -> str | None:
        """Grow until k pairs hold and nothing else can be among them; None, or the kind of failure."""
        space, k, failure = self.space, self.k, None
        while failure is None:
            self.save()
            if space.size < max(k, self.num_known):
                failure = self.grow_first(tol)
                continue
            ritz = space.ritz(self.which)
            estimates = ritz.estimates
            goal = tol * ritz.scale  # relative to the map: no threshold is absolute
            if self.noise > goal:
                return "floor"
            is_open = estimates[:k] > goal - self.noise
            # The (m, m) eigenproblem is for every step only while small, and while the end may be near: a residual
            # hardly falls by more than a factor of ten with a step.
            far = estimates[:k].max() / goal if goal > 0 else 1.0
            stride = 1 + max(space.size // 128, int(math.log10(max(far, 1.0))))
            size = f"{estimates[:k].max() / (ritz.scale or 1.0):.0e} of the largest |λ|, wanted {tol:.0e}"
            self.show(f"{k - int(is_open.sum())} of {k} pairs, worst residual {size}")
            if is_open.any():
                failure = self.grow(stride, _shared(ritz.coefficients[:, :k][:, is_open]))
                continue
            places = outward(ritz.values, self.which)[:k]
            if not space.is_full and (self.probed is None or (places - self.probed).max() > goal):
                self.show(f"{k} of {k} pairs, looking for missed ones")
                failure = self.probe()
                self.probed = places if failure is None else None  # one that was cut short has shown nothing
                continue
            # Follow a pair outside the k whose error bar reaches into them. Two bars: on dense spectra of double
            # eigenvalues one bar missed a copy in up to a third of the runs, 1.5 in some, 2 in none of a thousand.
            reaches = reaching(ritz, k, self.which, goal)[: self.num_kept - k]
            if reaches.any():
                failure = self.grow(stride, ritz.coefficients[:, k + np.argmax(reaches)], is_probe=True)
                continue
            residuals = residuals_of(space, ritz, range(k))
            worst = int(np.argmax(residuals))
            if residuals[worst] > goal - self.noise:
                is_rounding = estimates[worst] < residuals[worst] / 2  # then more steps do not help
                failure = "floor" if is_rounding else self.grow(1, ritz.coefficients[:, worst])
                continue
            if self.left < self.num_checks:
                failure = "max_products"
            elif (self.check(ritz, residuals) + self.noise).max() <= goal:
                break
            else:
                is_rounding = self.noise > goal / 2 or space.is_full
                failure = "floor" if is_rounding else self.grow(1, ritz.coefficients[:, worst])
        return failure

    def grow_first(self, tol: float) -> str | None:
        """A few of the steps before which nothing can be judged.

        Known vectors begin with their sum. If H hardly leads out of their span, each of them is nearly an eigenvector,
        and one product for each will do. Else each would need several, and a chain from the sum takes fewer.
        """
        space, num_known = self.space, self.num_known
        left = max(self.k, num_known) - space.size
        num = min(_AT_ONCE, num_known - space.size, self.left - self.num_checks)
        if num < 1:
            return self.grow(min(left, 4))
        if space.size == 1:
            leak = space.coefficients[num_known, 0] if space.num_residual == num_known else 0.0
            if leak > _NEAR * tol * space.largest_image:
                space.follow_first()
                self.num_known = 0
                return None
        space.step_along(num if space.size else 1)
        self.show(f"0 of {self.k} pairs")
        return None

    @property
    def spent(self) -> int:
        """Products so far."""
        return self.operator.num_products

    @property
    def left(self) -> int:
        """Products that may still be taken."""
        return self.max_products + self.num_resuming - self.spent

    def grow(self, num_steps: int, direction: Array | None = None, *, is_probe: bool = False) -> str | None:
        """Take steps, the first towards `direction`; None, or what stood in the way."""
        for _ in range(num_steps):
            if self.space.is_full:
                break
            if not (self.space.has_room() or self.restart()):
                return "memory"
            if self.left <= self.num_checks:  # after the room, which may have cost the products that were kept
                return "max_products"
            self.space.step(direction)
            self.num_probe_steps += is_probe
            self.checked = direction = None
            self.show(f"0 of {self.k} pairs" if self.space.size < self.k else None)
        return None

    def restart(self) -> bool:
        """Thick restart with the wanted pairs, the better half of the others and the other end; False if that fails.

        The products H Q of the basis were dropped before (`KrylovSpace.has_room`), which doubles the room. What is kept
        of the others saves the steps that they took; what is not gives room for new ones.
        """
        space = self.space
        room = len(space.rows) - space.num_residual - 2
        num = min(self.k + max(2, (room - self.k) // 2), room - 2)
        if num < self.k or num >= space.size:
            return False
        ritz, self.num_kept = space.ritz(self.which), num
        kept = list(range(num))
        end = other_end(ritz.values)
        space.restart(ritz, kept if end < num else [*kept[:-1], end])
        return space.has_room()

    def probe(self) -> str | None:
        """Take some steps of a second chain, from a random start orthogonal to everything found.

        The first chain stays in the Krylov space of its start, which holds one vector of a multiple eigenvalue's
        eigenspace, and little of an eigenvector that the start nearly misses: both show in a second chain only.
        """
        chains = self.space.num_residual
        num = self.num_probes
        if num is None:
            num = max(3, math.ceil(PROBE_SHARE * (self.space.num_steps - self.num_probe_steps)))
        self.last_probe = 0
        for _ in range(num):
            if self.space.is_full:
                break
            direction = None
            is_start = self.space.num_residual <= chains  # or the second chain broke down
            if is_start and (self.space.has_room() or self.restart()):
                self.space.add_random()
                # Mixed with the residual block: what hides in it is orthogonal to a random row and all that follows it.
                direction = np.full(self.space.num_residual, self.space.num_residual**-0.5)
            failure = self.grow(1, direction, is_probe=True)
            if failure:
                return failure
            self.last_probe += 1
        return None

    def missed(self, ritz: Ritz) -> tuple[float, float]:
        """What the second chain excludes: see `Eigenpairs.missed_excess` and `missed_probability`.

        As if it had begun at a uniformly random vector; that its start is mixed with the residual block is left out.
        """
        if self.space.is_full:
            return 0.0, 0.0
        ends = {"LA": (1.0,), "SA": (-1.0,)}.get(self.which, (1.0, -1.0))
        # LM and BE: the wanted values of each end, each with the chain's answer there.
        wanted, rest = ritz.values[: self.k], ritz.values[self.k :]
        found = [
            missed_copies(
                float((sign * wanted).min()) if self.which in ("LA", "SA") else self.innermost(sign, wanted),
                float((sign * rest).max(initial=-np.inf)),
                float((sign * ritz.values).min()),
                self.last_probe,
                self.operator.size - self.k,
            )
            for sign in ends
        ]
        return max(excess for excess, _ in found), max(probability for _, probability in found)

    def innermost(self, sign: float, wanted: Array) -> float:
        """The wanted value nearest to the middle at one end of the spectrum; LM: the magnitude that bounds both."""
        if self.which == "LM":
            return float(np.abs(wanted).min())
        of_end = wanted[0::2] if sign > 0 else wanted[1::2]
        return float((sign * of_end).min(initial=np.inf))

    @property
    def num_checks(self) -> int:
        """Products to set aside for `check`."""
        is_whole = self.space.products is None and self.space.size >= self.k
        return self.k if is_whole else 1

    def check(self, ritz: Ritz, residuals: Array) -> Array:
        """A fresh product of a mixture of all k pairs, or one of each pair where none were kept; updates `noise`.

        A search that went on from a file takes one of every pair first: what does not agree is of another map.
        """
        if self.is_resumed and self.file is not None:
            found = disagreement(self.space, *kept_images(self.space, ritz.weights[:, : self.k]), self.noise)
            if found is None:
                self.file.refuse()
            self.noise, self.num_resuming = max(self.noise, found), self.num_resuming + self.k
            if self.space.products is not None:
                self.checked = residuals.copy()
                return self.checked
        checked = residuals.copy()
        if self.space.products is None:
            worst_first = [int(pair) for pair in np.argsort(-residuals, kind="stable")]
            pairs = worst_first[: max(0, min(self.num_checks, self.left))]
            if pairs:
                checked[pairs], noise = fresh_checks(self.space, ritz, pairs)
                self.noise = max(self.noise, float(noise.max()))
        elif self.left > 0:
            row, image = (part[0] for part in kept_images(self.space, random_mixtures(ritz, self.k)[:, 1:]))
            fresh = self.operator.product(row.to(self.space.rows))
            self.noise = max(self.noise, float((fresh.double() - image).norm()))
        self.checked = checked
        return checked

    def rounding(self, ritz: Ritz) -> float:
        """An estimate from above of |kept product - product in float64| of the k unit vectors, by one or two products.

        A repeated product is rounded in the same way, to the bit, and so can't show it. Two pairs are measured one by
        one. More are mixed with random weights w_j of about 1 / sqrt(k): the error of sum_j w_j v_j then has the
        expected square sum_j |error of v_j|^2 / k, so that the larger of two, times sqrt(k), stands for the largest
        of all; twice that, since two are few.
        """
        if self.operator.dtype == torch.float64:
            return 0.0
        k, num, factor = self.k, min(self.k, 2), 1.0
        weights = np.eye(k)
        if k > num:
            generator = np.random.default_rng(k)
            weights = generator.choice([-1.0, 1.0], (k, num)) * generator.uniform(0.5, 1.5, (k, num))
            weights, factor = weights / column_norms(weights), 2 * np.sqrt(k)
        before = self.operator.num_products
        enough = 100 * float(torch.finfo(self.operator.dtype).eps) * ritz.scale
        errors = self.operator.errors_of(*kept_images(self.space, ritz.weights[:, :k] @ weights), enough)
        self.num_resuming += self.operator.num_products - before
        return np.nan if errors is None else float(factor * errors.max())

    @property
    def floor(self) -> float:
        """What rounding leaves of the worst pair, (residual + noise) / scale."""
        ritz = self.space.ritz(self.which)
        if self.checked is None:
            self.check(ritz, residuals_of(self.space, ritz, range(self.k)))
        assert self.checked is not None
        return (float(self.checked.max()) + self.noise) / (ritz.scale or 1.0)

    def reachable_tol(self) -> float:
        """The `tol` to go on with; infinite for float64, and for a map that gives the same vector two products."""
        floor, row = self.floor, self.space.rows[0]
        if self.operator.dtype == torch.float64:
            return math.inf
        first, again = (self.operator.product(row) for _ in range(2))
        is_rounding = float((first - again).norm()) <= 0.1 * floor * self.space.largest_image
        return reachable_tol(floor) if is_rounding else math.inf

    def outcome(self, tol: float, failure: str | None) -> Outcome:
        """Everything the space knows, whether it is enough or not."""
        space, ritz = self.space, self.space.ritz(self.which)
        residuals = self.checked
        if residuals is None:
            residuals = self.check(ritz, residuals_of(space, ritz, range(self.k)))
        is_converged = residuals + self.noise <= tol * ritz.scale
        other, first = other_end(ritz.values), by_end(self.k, self.which)
        excess, probability = self.missed(ritz)
        rounding, eps = self.rounding(ritz), float(torch.finfo(self.operator.dtype).eps)
        error = self.noise + np.nan_to_num(rounding)
        bars = (ritz.values[: self.k], residuals, error, ritz.values, ritz.estimates, eps)
        return Outcome(
            values=ritz.values[first],
            vectors=ritz_vectors(space, ritz.weights[:, first]),
            residuals=residuals[first],
            bounds=error_bounds(*bars)[first],
            is_converged=is_converged[first],
            is_clustered=in_clusters(*bars)[first],
            other_end=float(ritz.values[other]),
            other_end_residual=float(residuals_of(space, ritz, [other])[0]),
            scale=ritz.scale,
            noise=self.noise,
            rounding=rounding,
            tol=tol,
            num_steps=space.num_steps - self.num_probe_steps,
            num_probe_steps=self.num_probe_steps,
            missed_excess=excess,
            missed_probability=probability,
            num_restarts=space.num_restarts,
            failure=failure and self.explain_failure(failure, tol, is_converged, residuals / (ritz.scale or 1.0)),
        )

    def show(self, words: str | None) -> None:
        """The products so far on the bar, and what is known of the pairs, None if that is as before."""
        if words is not None:
            self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(self.spent - self.bar.n)

    def explain_failure(self, kind: str, tol: float, is_converged: NDArray[np.bool_], relative: Array) -> str:
        """The four parts of "it did not get there"; `relative` (k,) are residuals over scale."""
        found = f"{is_converged.sum()} of {self.k} pairs within tol = {tol:g}"
        found += f" (worst residual {relative.max():.1e} of scale)"
        if is_converged.all():
            found = f"all {self.k} pairs within tol = {tol:g} but the search for missed ones unfinished"
        if kind == "max_products":
            remedy = "Raise max_products (as a rule 2 k + 60 for a network), loosen tol or ask for fewer pairs."
            return argument_message(kind, f"is {self.max_products}, spent with {found}", "room to finish", remedy)
        if kind == "memory":
            row = self.operator.size * self.operator.dtype.itemsize
            received = f"is {self.space.memory:,.0f} bytes, full after {self.space.size} steps with {found}"
            expected = f"{row:,} bytes more for each further step"
            return argument_message(
                kind, received, expected, "Raise memory (bytes), loosen tol or ask for fewer pairs."
            )
        return explain_floor(tol, self.floor, self.operator.dtype)


def _shared(coefficients: Array) -> Array:
    """The direction (b,) of the residual block that most of these pairs' residuals (b, n) have in common."""
    return np.asarray(np.linalg.svd(coefficients, full_matrices=False)[0][:, 0])
