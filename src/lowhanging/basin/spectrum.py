r"""How are all p eigenvalues of a loss's curvature spread, when only a few dozen can be computed one by one?

The eigenvalues that stand out are taken exactly, as eigenpairs, and removed from the map and from the probes; what
remains, the bulk, is described by a few random vectors, a Gauss quadrature for each. The outliers carry no error of
chance then, and no longer stretch the range over which the bulk must be resolved.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.basin.counted_map import CountedMap
from lowhanging.basin.density import SpectralDensity, check_axis
from lowhanging.basin.eigenpairs import Eigenpairs, top_eigs
from lowhanging.basin.probes import in_words, orthonormal_probes
from lowhanging.basin.quadrature import lanczos_quadrature, padded
from lowhanging.basin.symmetric_operator import plain_arithmetic
from lowhanging.errors import check_count, check_real, explain
from lowhanging.ranks import is_silent

DEFAULT_MEMORY = 4 * 2**30


@plain_arithmetic()
def spectral_density(
    H: Any,
    *,
    steps: int = 80,
    probes: int = 10,
    deflate: Eigenpairs | int | None = None,
    grid: Tensor | None = None,
    num: int | None = None,
    width: float | None = None,
    seed: int = 0,
    memory: float = DEFAULT_MEMORY,
    progress: bool | None = None,
) -> SpectralDensity:
    r"""The density of all p eigenvalues of a symmetric map, by stochastic Lanczos quadrature.

    With r known pairs (lambda_i, v_i) and P = I - sum v_i v_i^T,

        (1/p) tr f(H) = (1/p) sum_i f(lambda_i) + (p - r)/p mean_z sum_j w_j(z) f(theta_j(z)),

    theta, w the Gauss quadrature that `steps` steps of Lanczos with full reorthogonalization on P H P give for a probe
    z, uniform on the unit sphere of P's range. The probes are orthogonal to each other: as many as p - r give every
    sum without an error of chance. Standard errors are over the probes; with n of them a 95 % interval is Student's,
    with n - 1 degrees of freedom: +- 2.3 of them for n = 10.

    Args:
        H: symmetric map with `H @ v` and the shape (p, p), as in `top_eigs`.
        steps: Lanczos steps per probe, at most p; more of them resolve finer structure.
        probes: random vectors; 4 times as many halve the standard error. 2 at least, and not more than p - r are used.
        deflate: eigenpairs of H that are known (those of them that converged are used), or how many to compute, those
            of the largest magnitude. They appear as `spikes`.
        grid: (g,) where the density is evaluated; by default evenly over the bulk.
        num: number of grid points instead.
        width: of the Gaussian that smooths it; by default what `steps` can resolve. See `SpectralDensity.smoothed`,
            which changes grid and width afterwards without a product.
        seed: of the probes. The global random state is not touched.
        memory: bytes for the basis: (2 r + steps + probes) p numbers.
        progress: True or False; by default a bar appears after two seconds.

    Returns:
        SpectralDensity.

    Raises:
        ValueError: an argument is out of range, H is not symmetric, or `deflate` holds pairs of another map.
        NotConvergedError: pairs were to be computed and did not converge.
        FloatingPointError: a product has NaN or infinite entries.

    Cost:
        steps * probes products, one to check the pairs that were given, about 2 k + 20 for k pairs to be computed.

    Source:
        Golub & Meurant (1994); Ubaru, Chen & Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos
        quadrature"; Ghorbani, Krishnan & Xiao (2019), "An investigation into neural net optimization via Hessian
        eigenvalue density".
    """
    started = time.perf_counter()
    counted = CountedMap(H)
    p = counted.size
    steps = check_count("steps", steps, minimum=1, remedy="80 is a good start; more resolve finer structure.")
    remedy = "A single one says nothing of its error; 10 is a good start."
    probes = check_count("probes", probes, minimum=min(2, p), remedy=remedy)
    seed = check_count("seed", seed, minimum=0, maximum=2**63 - 1, remedy="Any other number is as good.")
    grid, num, width = check_axis(grid, num, width)  # before the products, not after them
    pairs, spent = _known_pairs(H, counted, deflate, seed, progress)
    kept = pairs.is_converged if pairs is not None else torch.zeros(0, dtype=torch.bool)
    known = int(kept.sum())
    steps, probes = min(steps, p - known), min(probes, p - known)
    _check_memory(counted, known, steps, probes, memory)
    rows = torch.empty((known + steps, p), dtype=counted.dtype, device=counted.device)
    scale = 0.0
    if pairs is not None:
        rows[:known], scale = pairs.vectors[kept].to(rows), pairs.scale
    generator = torch.Generator().manual_seed(seed)
    rules = []
    starts = orthonormal_probes(probes, rows[:known], generator)
    delay = 0.0 if progress else 2.0
    with tqdm(total=probes * steps, desc="spectral density", delay=delay, disable=is_silent(progress)) as bar:
        for start in starts:
            rows[known : known + 1] = start
            rules.append(lanczos_quadrature(counted, rows, known, scale, bar.update))
    nodes, weights, couplings = padded(rules)
    values = pairs.values[kept] if pairs is not None else torch.zeros(0, dtype=torch.float64)
    residuals = pairs.residuals[kept] if pairs is not None else values
    order = values.argsort(descending=True)
    operator, engine = in_words(H, counted)
    empty = torch.zeros(0, dtype=torch.float64)
    return SpectralDensity(
        grid=empty,
        density=empty,
        standard_error=empty,
        width=1.0,
        spikes=values[order],
        spike_residuals=residuals[order],
        nodes=nodes,
        weights=weights,
        couplings=couplings,
        num_params=p,
        num_products=counted.num_products + spent,
        seconds=time.perf_counter() - started,
        seed=seed,
        operator=operator,
        engine=engine,
    ).smoothed(grid=grid, num=num, width=width)


def _known_pairs(
    H: Any, operator: CountedMap, deflate: Eigenpairs | int | None, seed: int, progress: bool | None
) -> tuple[Eigenpairs | None, int]:
    """The pairs to remove, and the products that finding them took; given ones are checked by one product."""
    p = operator.size
    if deflate is None:
        return None, 0
    if not isinstance(deflate, Eigenpairs):
        remedy = "Pass what top_eigs(H) returned, or how many pairs to compute."
        num = check_count("deflate", deflate, minimum=0, maximum=p, remedy=remedy)
        if num == 0:
            return None, 0
        found = top_eigs(H, k=num, which="LM", seed=seed, progress=progress)
        return found, found.num_products
    remedy = "Pass what top_eigs returned for this very map: the same loss, data and theta."
    if deflate.vectors.shape[1] != p:
        received = f"has vectors of {deflate.vectors.shape[1]} entries"
        raise ValueError(explain("deflate", received, f"({p},) = (p,) of H", remedy))
    kept = deflate.is_converged
    if not bool(kept.any()):
        return None, 0
    vectors, values = deflate.vectors[kept], deflate.values[kept]
    # One product with a mixture of all: what it leaves open is at most the root of the sum of the squared residuals.
    mixed = torch.randn(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mixed /= mixed.norm()
    sent = (mixed.to(vectors) @ vectors).to(device=operator.device, dtype=operator.dtype)
    expected = (mixed * values).to(vectors) @ vectors
    miss = float((operator.product(sent).cpu().double() - expected.double()).norm())
    allowed = 2 * float(deflate.residuals[kept].norm()) + 2 * deflate.noise
    allowed += 100 * torch.finfo(operator.dtype).eps * deflate.scale
    if not miss <= allowed:
        received = f"holds pairs that H does not have: H v differs from lambda v by {miss:.1e}"
        raise ValueError(explain("deflate", received, f"at most {allowed:.1e} by their residuals", remedy))
    return deflate, 0


def _check_memory(operator: CountedMap, known: int, steps: int, probes: int, memory: float) -> None:
    """Refuse a basis that does not fit."""
    remedy = "Memory is in bytes: 4 * 2**30 is 4 GiB. Take fewer steps, or allow more memory."
    check_real("memory", memory, minimum=0.0, exclusive=True, remedy=remedy)
    needed = (2 * known + steps + probes) * operator.size * operator.dtype.itemsize
    if memory < needed:
        expected = f"at least {needed:,} bytes for {steps} steps, {probes} probes and {known} known pairs"
        raise ValueError(explain("memory", f"is {memory:,.0f} bytes", expected, remedy))
