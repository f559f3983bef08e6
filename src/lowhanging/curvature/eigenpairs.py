"""Top eigenvalues and eigenvectors of a loss's curvature, or of any symmetric map: `top_hessian_eigs` and `top_eigs`.

What comes back holds to its tolerance by residuals of actual products, or an error is raised that carries what was
found: eigenvalues that have not converged look exactly like ones that have, and a field that says so is not read. A
small map can be decomposed densely instead, from p products, in float64.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lowhanging.curvature.eigensolver import (
    Outcome,
    SearchFile,
    error_bounds,
    explain_floor,
    identity_of,
    in_clusters,
    least_rows,
    reachable_tol,
    search,
)
from lowhanging.curvature.krylov import ASYMMETRY, SymmetricMap, by_end, not_symmetric, other_end, wanted_first
from lowhanging.curvature.linear_map import CountedMap
from lowhanging.curvature.operators import SymmetricOperator, hessian, plain_arithmetic
from lowhanging.curvature.subspace import Subspace
from lowhanging.errors import (
    NotConvergedError,
    a_type,
    argument_message,
    check_choice,
    check_count,
    check_finite,
    check_real,
    door,
    unknown_keyword,
    warn,
)
from lowhanging.io import Saved, digest
from lowhanging.objective.cost import machine_memory
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.model_loss import MicroBatch
from lowhanging.objective.objective import Objective
from lowhanging.objective.parameters import Parameters
from lowhanging.objective.protocol import Loss
from lowhanging.tables import Columns, NotebookTable


def product_limit(operator: CountedMap, k: int, given: int | None, memory: float) -> int:
    """`max_products`: what was given if it can yield k checked pairs, else what the problem can need."""
    if given is not None:
        remedy = "k pairs need k steps and a fresh product at least; leave it out for a safe limit."
        return check_count("max_products", given, minimum=k + 1, remedy=remedy)
    # After p steps the space is full. Outliers take about 2 k steps; an eigenvalue whose relative gap to the rest of
    # the spectrum is g takes log(1 / tol) / (2 sqrt(g)): 1,000 steps reach down to gaps of 1e-5. Restarts take more.
    wanted = 20 * k + 1000
    is_restarted = memory < min(operator.size, wanted) * operator.size * operator.dtype.itemsize
    return (5 * wanted if is_restarted else min(operator.size, wanted)) + k + 2


def default_memory(operator: CountedMap, k: int, num_known: int) -> float:
    """A quarter of the machine's memory, or what k pairs need, if that is more and less than half of it."""
    total = machine_memory(operator.device)
    return max(total / 4, min(total / 2, needed_memory(operator, k, num_known)))


def needed_memory(operator: CountedMap, k: int, num_known: int) -> int:
    """Bytes without which a restarted search of k pairs can't move."""
    return min(least_rows(k, num_known), operator.size) * operator.size * operator.dtype.itemsize


def check_memory(operator: CountedMap, k: int, memory: float, num_known: int) -> None:
    """Refuse a budget in which a restarted search of k pairs can't move."""
    remedy = "Memory is in bytes: 4 * 2**30 is 4 GiB. Ask for fewer pairs, or for more memory."
    check_real("memory", memory, minimum=0.0, exclusive=True, remedy=remedy)
    needed = needed_memory(operator, k, num_known)
    if memory < needed:
        expected = f"at least {needed:,} bytes for {k} pairs of {operator.size:,} entries"
        raise ValueError(argument_message("memory", f"is {memory:,.0f} bytes", expected, remedy))


def known_rows(warm_start: Any, operator: CountedMap) -> Tensor:
    """The vectors to start from, (j, p) with 1 <= j <= p, on the map's device and in its dtype, or an error."""
    rows = getattr(warm_start, "vectors", getattr(warm_start, "basis", warm_start))
    expected = f"Eigenpairs, a Subspace or rows of shape (j, {operator.size})"
    remedy = "Pass the pairs of the last checkpoint of the same parameters."
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        raise TypeError(argument_message("warm_start", f"is {a_type(warm_start)}", expected, remedy))
    if rows.ndim != 2 or rows.shape[1] != operator.size or not 1 <= len(rows) <= operator.size:
        raise ValueError(argument_message("warm_start", f"has vectors of shape {tuple(rows.shape)}", expected, remedy))
    check_finite("warm_start", rows.detach(), remedy=remedy)
    return rows.detach().to(device=operator.device, dtype=operator.dtype)


def in_double(H: Any) -> Any:
    """The same map in float64, where it is known how; else the map as it is."""
    if isinstance(H, SymmetricOperator) or (isinstance(H, Tensor) and H.dtype == torch.float32):
        return H.double()
    return H


DENSE_LIMIT = 5000  # rows: 0.2 GB a matrix, minutes of eigh on 2 cores; beyond that Lanczos is the cheaper way
_BLOCK = 64  # columns per block


def search_dense(
    operator: SymmetricMap,
    k: int,
    which: str,
    tol: float,
    max_tol: float,
    max_products: int | None,
    progress: bool | None,
) -> Outcome:
    """All of H by products with the unit vectors, and its eigendecomposition in float64."""
    p = operator.size
    if p > DENSE_LIMIT:
        received = f'is "dense" for p = {p}'
        raise ValueError(argument_message("method", received, f"p of at most {DENSE_LIMIT}", 'Use method="lanczos".'))
    if max_products is not None:
        check_count("max_products", max_products, minimum=p, remedy='method="dense" takes p products.')
    columns = np.empty((p, p))
    delay, silent = 0 if progress else 2, is_silent(progress)
    with tqdm(total=p, desc="eigenpairs, all columns", unit=" products", delay=delay, disable=silent) as bar:
        for start in range(0, p, _BLOCK):
            num = min(_BLOCK, p - start)
            units = torch.zeros((num, p), dtype=operator.dtype, device=operator.device)
            units[:, start : start + num].fill_diagonal_(1.0)
            columns[start : start + num] = operator.products_of(units).double().cpu().numpy()  # row i holds H e_i
            bar.update(num)
    if not np.isfinite(columns).all():
        raise FloatingPointError(
            argument_message("H @ v", "has NaN or infinite entries", "finite numbers", "Check the map.")
        )
    asymmetric = (columns - columns.T) / 2
    share = 2 * float(np.linalg.norm(asymmetric)) / (float(np.linalg.norm(columns)) or 1.0)
    if share > ASYMMETRY[operator.dtype]:
        raise not_symmetric(f"has an antisymmetric part, {share:.1e} of the whole")
    values, vectors = np.linalg.eigh(columns - asymmetric)
    scale = float(np.abs(values).max())
    order = wanted_first(values, which)
    values, vectors = values[order], vectors[:, order]
    kept = [*range(k), other_end(values)]
    rounded = torch.from_numpy(vectors[:, kept].T.copy()).to(operator.dtype)  # (k + 1, p)
    exact = rounded.double().numpy()
    residuals = np.linalg.norm(exact @ columns - values[kept][:, None] * exact, axis=1)
    noise = float(np.linalg.norm(asymmetric, axis=1).max())
    floor, failure = float(residuals[:k].max() + noise) / (scale or 1.0), None
    if floor > tol and operator.dtype == torch.float32 and reachable_tol(floor) <= max_tol:
        tol = reachable_tol(floor)
    if floor > tol:
        failure = explain_floor(tol, floor, operator.dtype)
    is_converged = residuals[:k] + noise <= tol * scale
    # Of the decomposition in float64: the rounding of a vector to float32 moves no eigenvalue.
    decomposed = np.linalg.norm(columns @ vectors - vectors * values, axis=0)
    bounds = error_bounds(values[:k], decomposed[:k], noise, values, decomposed)
    clustered = in_clusters(values[:k], decomposed[:k], noise, values, decomposed)
    first = by_end(k, which)
    return Outcome(
        values=values[first],
        vectors=rounded[first],
        residuals=residuals[first],
        bounds=bounds[first],
        is_converged=is_converged[first],
        is_clustered=clustered[first],
        other_end=float(values[kept[-1]]),
        other_end_residual=float(residuals[k]),
        scale=scale,
        noise=noise,
        rounding=0.0 if operator.dtype == torch.float64 else np.nan,
        tol=tol,
        num_steps=p,
        num_probe_steps=0,
        missed_excess=0.0,
        missed_probability=0.0,
        num_restarts=0,
        failure=failure,
    )


DEFAULT_TOL = 1e-4
MAX_FLOOR = 0.1  # a default `tol` follows the rounding of the products up to here: beyond, vectors mean nothing

Which = Literal["LA", "SA", "LM", "BE"]
Method = Literal["lanczos", "dense"]
OnFailure = Literal["raise", "warn"]


@dataclass(frozen=True, eq=False, repr=False)
class Eigenpairs(Saved, NotebookTable):
    """Eigenpairs at one end, or both, of the spectrum of a symmetric (p, p) map H, from there inwards.

    Tensors are on the CPU; numbers in float64, vectors in the map's dtype. The first entry of a vector that comes
    within 1 % of its largest magnitude is positive.
    """

    values: Tensor  # (k,) LA: descending, SA: ascending, LM: by falling magnitude, BE: see `num_large`
    vectors: Tensor  # (k, p) rows are unit eigenvectors
    residuals: Tensor  # (k,) |H v - value v|, of actual products
    bounds: Tensor  # (k,) on |eigenvalue - value|: min(r, r^2 / gap), with noise and rounding; gap to what was found
    is_converged: Tensor  # (k,) bool, residual + noise <= tol * scale: for the map as it is computed, in its dtype
    is_clustered: Tensor  # (k,) bool, another value is nearer than the residuals: only the cluster's span is known
    other_end: float  # extreme Ritz value of the end opposite to values[0]: comes free, but only to ...
    other_end_residual: float  # ... this: an eigenvalue of the map as it is computed lies within it
    scale: float  # largest |Ritz value|: an estimate of |H| from below
    noise: float  # largest |fresh product - what the kept ones say| of the unit vectors checked
    tol: float
    which: str
    method: str
    num_products: int  # everything: steps, probe, fresh products; a block of b vectors counts b
    num_steps: int  # without the next, and without fresh products
    num_probe_steps: int  # in search of missed pairs, such as copies of a multiple eigenvalue
    missed_excess: float  # a missed eigenvalue lies above the innermost value by no more, at 99 %; inf: nothing said
    missed_probability: float  # at most, that one at the innermost value or above was missed; see `missed_copies`
    num_restarts: int  # thick ones, where `memory` was full
    num_known: int  # vectors it started from (`warm_start`)
    seconds: float  # of this call; a resumed one counts from where it went on
    seed: int
    operator: str  # the map, in words
    engine: str  # how its products are computed, "" where it doesn't say
    rounding: float = math.nan  # |product - product in float64| of unit vectors; 0 in float64, NaN if not measured
    is_at_floor: bool = False  # whether `tol` is what rounding allows, coarser than the default that was wanted

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(value, vector) pairs: scalar and (p,)."""
        return zip(self.values, self.vectors, strict=True)

    @property
    def num_large(self) -> int:
        """How many come from the large end: the first ones of `values`, descending; the rest ascend from the small."""
        k = len(self)
        return {"LA": k, "SA": 0, "BE": k - k // 2}.get(self.which, int((self.values > 0).sum()))

    def columns(self) -> Columns:
        """One row for each pair, vectors aside."""
        names = ("values", "residuals", "bounds", "is_converged", "is_clustered")
        columns = {name: getattr(self, name).tolist() for name in names}
        return {
            "value": columns.pop("values"),
            "residual": columns.pop("residuals"),
            "bound": columns.pop("bounds"),
        } | columns

    def __repr__(self) -> str:
        large, k = (self.num_large, len(self)) if self.which == "BE" else (len(self), len(self))
        ends = [
            f"{part[0]:.4g}" + (f" ... {part[-1]:.4g}" if len(part) > 1 else "")
            for part in (self.values[:large], self.values[large:])
            if len(part)
        ]
        found, clustered = int(self.is_converged.sum()), int(self.is_clustered.sum())
        state = "" if found == k else f", only {found} of {k} CONVERGED"
        worst, bound = (float(row.max()) / (self.scale or 1.0) for row in (self.residuals, self.bounds))
        trust = f"residuals <= {worst:.1e} of |H|, values to {bound:.1e}"
        trust += f", {clustered} in clusters" if clustered else ""
        trust += f", AT THE FLOAT32 FLOOR: tol {self.tol:.0e} instead of {DEFAULT_TOL:.0e}" if self.is_at_floor else ""
        coarse = self.rounding / (self.scale or 1.0)
        trust += f", FLOAT32 ROUNDING {coarse:.1e} of |H|" if coarse > self.tol else ""
        engine = f", {self.engine}" if self.engine else ""
        cost = f"{self.num_products} products, {self.seconds:.1f} s{engine}"
        return f"Eigenpairs({k} {self.which}: {' and '.join(ends)}{state}; {trust}; {cost})"

    def subspace(self, k: int | None = None) -> Subspace:
        """The span of the first k vectors, by default of all; basis row j is vector j."""
        remedy = "Ask top_eigs for more pairs."
        num = len(self) if k is None else check_count("k", k, maximum=len(self), remedy=remedy)
        return Subspace(self.vectors[:num])


class SearchOptions(TypedDict, total=False):
    """Keywords that `top_hessian_eigs` hands on to `top_eigs`."""

    which: Which
    tol: float | None
    max_products: int | None
    seed: int
    method: Method
    on_failure: OnFailure
    memory: float | None
    warm_start: Eigenpairs | Subspace | Tensor | None
    resume: str | Path | None
    progress: bool | None
    num_probes: int | None


@door
@plain_arithmetic()
def top_eigs(
    H: Any,
    k: int = 10,
    *,
    which: Which = "LA",
    tol: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    method: Method = "lanczos",
    on_failure: OnFailure = "raise",
    memory: float | None = None,
    warm_start: Eigenpairs | Subspace | Tensor | None = None,
    resume: str | Path | None = None,
    progress: bool | None = None,
    num_probes: int | None = None,
) -> Eigenpairs:
    r"""The k eigenpairs H v = lambda v at one end, or at both, of the spectrum of any symmetric map.

    Lanczos with full reorthogonalization, until every residual |H v - lambda v| of actual products is at most `tol`
    times the largest |Ritz value|. Then an eigenvalue of H lies within `bounds` of each value. A second chain from a
    random start looks for missed copies of multiple eigenvalues, and pairs outside the k are followed while their error
    bars reach into the k. Where `memory` is full, the basis shrinks to its best Ritz vectors and grows again (a thick
    restart), which costs more products.

    In float32 the loss itself is rounded, and no residual shows that. So one or two products are held against float64
    ones: `rounding`, and with it `bounds`, is about the eigenvalues of the exact loss (of a float32 matrix: of its
    numbers). Where H has no float64 form (a map of your own, `cache=False` data or others of more than 1 GiB in
    float64, a device without it), `rounding` is NaN, and `bounds` are about H as it is computed, nothing more.

    Args:
        H: symmetric map with `H @ v` for v (p,) and `H.shape == (p, p)`: `hessian(objective)`, a dense or sparse
            matrix, a SciPy LinearOperator. Torch maps get torch vectors, NumPy ones NumPy vectors; float32 or float64.
        k: number of pairs, 1 <= k <= p.
        which: "LA" largest, "SA" smallest, "LM" largest by magnitude, "BE" both ends, k - k // 2 from the large one.
        tol: relative to the largest |Ritz value|; in float32 not much below 1e-6. By default 1e-4, or, where rounding
            in float32 puts that out of reach, as for a loss near zero, what was measured to be in reach, up to 0.1:
            `.tol` and `.is_at_floor` say so. A tol that is given is met, or it is an error.
        max_products: limit on products; by default what the problem can need. Those that measure the rounding come on
            top, and those that tell whether a file is of this H.
        seed: of the random starts. The global random state is not touched.
        method: "lanczos", or "dense": p products in float64 where H has a `.double()` (ours, tensors), in blocks, and
            an eigendecomposition in float64, for p up to 5,000.
        on_failure: "raise", or "warn" to get what was found, with a RuntimeWarning.
        memory: bytes for the basis and its products, 2 p numbers per step (p when that is too much); by default a
            quarter of what the machine has, more only where k pairs need it. While it grows beyond 256 steps (32 on a
            GPU) up to as much again is held for a moment, and the k vectors at the end.
        warm_start: vectors that are nearly right, such as the pairs of the last checkpoint (or a Subspace, or rows
            (j, p)). Where H hardly changed, one product for each of them, and 10 more, will do; where it did, the
            search is a little shorter than one from nothing.
        resume: npz file where the search is kept every few steps, and gone on with if it exists, after a crash or with
            a larger `max_products`. The numbers of a matrix, or theta and three products, tell whether H is the same,
            and so does one more product for each pair that is returned. As large as the basis.
        progress: True or False; by default a bar appears after two seconds.
        num_probes: steps of the second chain; by default a tenth of the search's, and three at least. What it excludes
            is in the result: after few steps nothing is excluded for certain, although a copy shows in most cases.

    Returns:
        Eigenpairs, from the wanted end inwards, on the CPU.

    Raises:
        NotConvergedError: `max_products` ran out, or `tol` is below the rounding of H's products; `.result` has all k
            pairs as they are, `.is_converged` telling which hold.
        ValueError: an argument is out of range, H is not symmetric, or the file is another search's.
        FloatingPointError: a product has NaN or infinite entries.

    Cost:
        about 2 k + 20 products for a network's Hessian, a tenth of them for the second chain and one to check; O(m^2 p)
        for m steps. An end without outliers, such as the smallest eigenvalues, takes several times as many. From
        vectors that hold to the tolerance already, k + 5. In float32 one or two more in float64, by differences of two
        gradients each where that will do; of 32 examples, where there are more than 64.

    Source:
        Lanczos (1950); Wu & Simon (2000), "Thick-restart Lanczos method for large symmetric eigenvalue problems"; for
        the bounds Parlett (1998), "The Symmetric Eigenvalue Problem", chapters 11 and 13.
    """
    started = time.perf_counter()
    counted = CountedMap(in_double(H) if method == "dense" else H)
    p = counted.size
    k = check_count("k", k, maximum=p, remedy=f"The map has {p} eigenpairs.")
    check_choice("which", which, ("LA", "SA", "LM", "BE"))
    max_tol = MAX_FLOOR if tol is None else 0.0
    tol = DEFAULT_TOL if tol is None else tol
    tol = check_real("tol", tol, minimum=0.0, maximum=1.0, exclusive=True, remedy="Leave it out: 1e-4.")
    seed = check_count("seed", seed, minimum=0, maximum=2**63 - 1, remedy="Any other number is as good.")
    check_choice("method", method, ("lanczos", "dense"))
    if num_probes is not None:
        check_count("num_probes", num_probes, minimum=0, remedy="Leave it out for a tenth of the search's steps.")
    check_choice("on_failure", on_failure, ("raise", "warn"))
    known = None if warm_start is None else known_rows(warm_start, counted)
    num_known = 0 if known is None else len(known)
    if method == "dense":
        for name, value in (("warm_start", warm_start), ("resume", resume)):
            if value is not None:
                remedy = 'Leave it out, or use method="lanczos".'
                raise ValueError(
                    argument_message(name, 'is given with method="dense"', "nothing: every column is new", remedy)
                )
        outcome = search_dense(counted, k, which, tol, max_tol, max_products, progress)
    else:
        memory = default_memory(counted, k, num_known) if memory is None else memory
        check_memory(counted, k, memory, num_known)
        limit = product_limit(counted, k, max_products, memory)
        file = None
        if resume is not None:
            answer: dict[str, Any] = {"k": k, "which": which, "tol": tol, "seed": seed, "memory": memory, "p": p}
            answer |= {"dtype": counted.dtype, "warm_start": None if known is None else digest(known)}
            file = SearchFile(resume, {name: str(value) for name, value in answer.items()} | identity_of(H))
        outcome = search(
            counted, k, which=which, tol=tol, max_tol=max_tol, max_products=limit, seed=seed, memory=memory,
            progress=progress, num_probes=num_probes, known=known, file=file,
        )  # fmt: skip
    engine = str(getattr(H, "engine", ""))
    found: dict[str, Any] = {
        name: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        for name, value in vars(outcome).items()
        if name not in ("vectors", "failure")
    }
    pairs = Eigenpairs(
        **found,
        vectors=_with_canonical_signs(outcome.vectors.cpu()),
        is_at_floor=outcome.tol > tol,
        which=which,
        method=method,
        num_products=counted.num_products,
        num_known=num_known,
        seconds=time.perf_counter() - started,
        seed=seed,
        operator=repr(H) if engine else f"{type(H).__name__} ({p}, {p})",
        engine=engine,
    )
    if outcome.failure is not None and on_failure == "raise":
        raise NotConvergedError(outcome.failure, pairs)
    if outcome.failure is not None:
        warn(outcome.failure, RuntimeWarning)
    return pairs


@door
def top_hessian_eigs(
    model: nn.Module | Loss,
    data: Any = None,
    *,
    k: int = 10,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    batch_loss: Callable[[Any, Any], tuple[Tensor, Any]] | None = None,
    mode: Literal["eval", "as_is"] = "eval",
    device: torch.device | str | None = None,
    cache: bool = True,
    micro_batch: MicroBatch | None = None,
    distributed: bool | torch.distributed.ProcessGroup | None = None,
    parameters: Parameters | None = None,
    **options: Unpack[SearchOptions],
) -> Eigenpairs:
    """The k top eigenpairs of the Hessian of a model's mean loss over a data set.

    Args:
        model: any nn.Module, which is not changed; or a ready objective, then without `data` and its keywords.
        data: DataLoader, iterable of batches, Dataset, or one data set as a tuple (inputs, targets).
        k: number of pairs, 1 <= k <= num_params.
        loss_fn: (outputs, targets) -> mean loss, as in `Objective`; by default cross-entropy.
        batch_loss: (model, batch) -> (sum, count) instead, as in `Objective`.
        mode: "eval" or "as_is", as in `Objective`.
        device: where to compute; by default where the model is.
        cache: False re-reads the data on each product.
        micro_batch: examples evaluated at once, as in `Objective`.
        distributed: how ranks share the data, as in `Objective`.
        parameters: only the block of these, as in `hessian`: a glob on names such as "conv1.*", a list of globs, or a
            test `name -> bool`. `hessian(objective, parameters=...).embed` takes the vectors to weight space.
        **options: which, tol, max_products, seed, method, on_failure, memory, warm_start, resume, progress, as in
            `top_eigs`.

    Returns:
        Eigenpairs in weight space: vectors (k, num_params), parameters in `named_parameters()` order; with
        `parameters`, (k, q) in the space of their q numbers alone.

    Raises:
        NotConvergedError, ValueError, TypeError: as `Objective` and `top_eigs`.

    Cost:
        about 2 k + 20 products, each 1.3 to 1.8 gradients.

    Example:
        >>> inputs, targets = torch.randn(20, 4), torch.arange(20) % 3
        >>> top_hessian_eigs(nn.Linear(4, 3), (inputs, targets), k=2).vectors.shape
        torch.Size([2, 15])
    """
    unknown = sorted(set(options) - set(SearchOptions.__annotations__))
    if unknown:  # before the objective is made: a misspelt loss_fn would be blamed on the data
        known = [*inspect.signature(top_hessian_eigs).parameters, *SearchOptions.__annotations__]
        known.remove("options")
        raise TypeError(unknown_keyword("lh.top_hessian_eigs", unknown[0], known))
    if isinstance(model, nn.Module):
        progress = options.get("progress")
        with tqdm(
            desc="eigenpairs, reading the data", bar_format="{desc}", leave=False, delay=0 if progress else 2,
            disable=is_silent(progress),
        ):  # fmt: skip
            objective: Loss = Objective(
                model, data, loss_fn=loss_fn, batch_loss=batch_loss, mode=mode, device=device, cache=cache,
                micro_batch=micro_batch, distributed=distributed,
            )  # fmt: skip
        return top_eigs(hessian(objective, parameters=parameters), k, **options)
    if not hasattr(model, "hvp") or not hasattr(model, "theta0"):
        remedy = "Pass the model first, top_hessian_eigs(model, data). For a matrix or another map use top_eigs(H)."
        raise TypeError(argument_message("model", f"is {a_type(model)}", "an nn.Module or an objective", remedy))
    given = {"data": data, "loss_fn": loss_fn, "batch_loss": batch_loss, "device": device}
    given |= {"micro_batch": micro_batch, "distributed": distributed}
    given |= {"mode": None if mode == "eval" else mode, "cache": None if cache else cache}
    for name in [name for name, value in given.items() if value is not None]:
        remedy = "The objective has its own: leave it out, or pass the model."
        raise ValueError(argument_message(name, "is given with a ready objective", "nothing", remedy))
    return top_eigs(hessian(model, parameters=parameters), k, **options)


def _with_canonical_signs(rows: Tensor) -> Tensor:
    """Rows with the first entry within 1 % of the largest magnitude positive: "the largest" may be a rounding tie."""
    magnitudes = rows.abs()
    first = (magnitudes >= 0.99 * magnitudes.amax(dim=1, keepdim=True)).int().argmax(dim=1, keepdim=True)
    return rows * rows.gather(1, first).sign()
