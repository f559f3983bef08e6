"""All eigenpairs of a small symmetric map: every column by a product, then the eigendecomposition in float64."""

from __future__ import annotations

import numpy as np
import torch
from tqdm.auto import tqdm

from lowhanging.basin.eigenbounds import error_bounds, explain_floor, in_clusters
from lowhanging.basin.eigensearch import Outcome
from lowhanging.basin.lanczos import ASYMMETRY, SymmetricMap, not_symmetric, wanted_first
from lowhanging.basin.ritz_pairs import by_end, other_end
from lowhanging.errors import check_count, explain
from lowhanging.ranks import is_silent

DENSE_LIMIT = 5000  # rows: 0.2 GB a matrix, minutes of eigh on 2 cores; beyond that Lanczos is the cheaper way
_BLOCK = 64  # columns per block


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
    with tqdm(total=p, desc="columns", delay=0 if progress else 2, disable=is_silent(progress)) as bar:
        for start in range(0, p, _BLOCK):
            num = min(_BLOCK, p - start)
            units = torch.zeros((num, p), dtype=operator.dtype, device=operator.device)
            units[:, start : start + num].fill_diagonal_(1.0)
            columns[start : start + num] = operator.products_of(units).double().cpu().numpy()  # row i holds H e_i
            bar.update(num)
    if not np.isfinite(columns).all():
        raise FloatingPointError(explain("H @ v", "has NaN or infinite entries", "finite numbers", "Check the map."))
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
    is_converged = residuals[:k] + noise <= tol * scale
    failure = None
    if not is_converged.all():
        failure = explain_floor(tol, (residuals[:k].max() + noise) / (scale or 1.0), operator.dtype)
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
        num_steps=p,
        num_probe_steps=0,
        num_restarts=0,
        failure=failure,
    )
