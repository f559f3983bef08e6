"""Spectral densities by stochastic Lanczos quadrature, and the sums over a spectrum that can be taken from them.

Eigenvalues that stand out are taken as eigenpairs and removed from map and probes; the others, the bulk, are described
by a few random vectors, a Gauss quadrature for each. Nodes and weights are kept rather than a curve: any sum over the
spectrum, and the density on another grid, then takes no further product.

A map A and a unit vector z define a measure: a step of height (v_i^T z)^2 at each eigenvalue. m steps of Lanczos from
z give a tridiagonal T, and T the m nodes and weights of the measure's Gauss quadrature,
z^T f(A) z = sum_j w_j f(theta_j), exact for polynomials of degree up to 2 m - 1. With one more node at a chosen x
(Gauss-Radau) it bounds what m steps leave open: by Chebyshev, Markov and Stieltjes *every* measure that agrees with the
m steps has, above x, at least the weight of the nodes above x, and at most that plus the weight at x.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.curvature.eigenpairs import Eigenpairs, top_eigs
from lowhanging.curvature.krylov import Array, SymmetricMap, check_symmetric, is_breakdown, orthogonalized
from lowhanging.curvature.linear_map import CountedMap
from lowhanging.curvature.operators import plain_arithmetic
from lowhanging.curvature.trace import Estimate, in_words, orthonormal_probes, standard_error
from lowhanging.errors import (
    argument_message,
    check_count,
    check_finite,
    check_real,
    door,
)
from lowhanging.io import Saved
from lowhanging.objective.cost import machine_memory
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.random_state import private_generator
from lowhanging.tables import Columns, Tabular

SAME_NODE = 1e-8  # of the largest |node|: closer than this, a node and a chosen place are one


def lanczos_quadrature(
    operator: SymmetricMap, rows: Tensor, num_fixed: int, scale: float, after_step: Callable[[], object]
) -> tuple[Array, Array, Array]:
    """Nodes, weights (sum 1) and couplings, each (m,), of P H P as seen from one vector.

    Args:
        operator: H; m products.
        rows: (num_fixed + steps, p), orthonormal as far as they are filled: first `num_fixed` rows that P projects out,
            then the unit vector; the others are overwritten.
        num_fixed: rows to project out.
        scale: |H| as far as it is known: rounding is relative to it.
        after_step: called after each product.

    Returns:
        m is the number of steps, fewer if an invariant subspace ends them: all couplings are 0 then. A coupling is the
        residual of its Ritz pair, with the sign that makes the Ritz vector's component along z positive.
    """
    steps = len(rows) - num_fixed
    T, remaining, size = np.zeros((steps, steps)), 0.0, 0
    while size < steps:
        known = rows[: num_fixed + size + 1]
        image = operator.product(known[-1])
        remainder, column = orthogonalized(known, image, operator.num_products)
        scale = max(scale, float(np.linalg.norm(column)))
        T[: size + 1, size], remaining = column[num_fixed:-1], float(column[-1])
        size += 1
        after_step()
        if len(known) == operator.size or is_breakdown(column, rows.dtype, scale):
            remaining = 0.0  # nothing but rounding: the subspace is invariant
            break
        if size < steps:
            T[size, size - 1] = remaining
            rows[num_fixed + size] = remainder / remaining
    T = T[:size, :size]
    check_symmetric(T, operator, rows[num_fixed : num_fixed + size], scale=scale)
    nodes, vectors = eigh_tridiagonal(T.diagonal(), (T.diagonal(1) + T.diagonal(-1)) / 2)
    weights = vectors[0] ** 2
    return nodes, weights / weights.sum(), remaining * vectors[-1] * np.where(vectors[0] < 0, -1.0, 1.0)


def padded(rules: list[tuple[Array, Array, Array]]) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, weights, couplings of n probes, (n, m) each; short ones end in copies of their last node, of weight 0."""
    longest = max((len(nodes) for nodes, _, _ in rules), default=0)
    columns = tuple(
        torch.tensor(np.array([np.pad(rule[i], (0, longest - len(rule[i])), mode="edge" if i == 0 else "constant")
                               for rule in rules]).reshape(len(rules), longest))
        for i in range(3)
    )  # fmt: skip
    return columns[0], columns[1], columns[2]


def with_node_at(place: float, nodes: Tensor, weights: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights (n, m + 1), nodes ascending, of the quadratures that also have a node at `place`.

    A probe that has a node there already (to `SAME_NODE`) keeps its own, and gets a node of weight 0 beside it.

    Source:
        Golub & Meurant (2010), "Matrices, Moments and Quadrature with Applications", chapter 6, here in the basis of
        the Ritz vectors, where the (m + 1, m + 1) matrix is an arrowhead.
    """
    scale = max(float(nodes.abs().max()), abs(place))
    gaps = nodes - place
    taken = (gaps.abs() <= SAME_NODE * scale) & (weights > 0)
    is_taken = taken.any(1)
    # Where a node is taken, couplings are left out: the eigenvalues of what is left are the nodes as they are.
    coefficients = torch.where(is_taken[:, None], 0.0, coefficients)
    pull = torch.where(coefficients == 0, 0.0, coefficients**2 / torch.where(gaps == 0, 1.0, gaps))
    arrow = torch.diag_embed(torch.cat([nodes, place + pull.sum(1, keepdim=True)], dim=1))
    arrow[:, -1, :-1] = arrow[:, :-1, -1] = coefficients
    found, vectors = np.linalg.eigh(arrow.numpy())
    start = torch.nn.functional.pad(weights.sqrt(), (0, 1)).numpy()
    squares = (start[:, None, :] @ vectors)[:, 0, :] ** 2
    extended, order = torch.cat([nodes, torch.full((len(nodes), 1), place)], dim=1).sort(dim=1)
    as_they_are = torch.nn.functional.pad(weights, (0, 1)).gather(1, order)
    kept = is_taken[:, None]
    return (
        torch.where(kept, extended, torch.from_numpy(found)),
        torch.where(kept, as_they_are, torch.from_numpy(squares)),
    )


def mass_above(place: float, nodes: Tensor, weights: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n,) weight above `place`, and the least and the greatest that any measure with these m steps has there."""
    more_nodes, more_weights = with_node_at(place, nodes, weights, coefficients)
    scale = max(float(nodes.abs().max()), abs(place))
    at_place = (more_nodes - place).abs() <= SAME_NODE * scale
    nearest = (more_nodes - place).abs().argmin(1, keepdim=True)
    at_place.scatter_(1, nearest, True)
    is_above = (more_nodes > place) & ~at_place
    least = torch.where(is_above, more_weights, 0.0).sum(1)
    greatest = torch.where(is_above | at_place, more_weights, 0.0).sum(1)
    value = torch.where(nodes > place, weights, 0.0).sum(1)
    return value, torch.minimum(least, value), torch.maximum(greatest, value)


def smooth_density(grid: Tensor, width: float, nodes: Tensor, weights: Tensor) -> Tensor:
    """(n, g) each probe's measure on a grid; a node is a Gaussian of standard deviation `width` and area its weight."""
    rows = [
        torch.exp(-0.5 * ((grid[None, :] - places[:, None]) / width) ** 2).T @ masses
        for places, masses in zip(nodes, weights, strict=True)
    ]
    found = torch.stack(rows) if rows else grid.new_zeros((0, len(grid)))
    return found / (width * math.sqrt(2 * math.pi))


# A Gaussian of this many (range / steps) is a polynomial of degree 2 steps - 1 to about 1e-5 of its height: I_m(z) e^-z
# with z = (range / width)^2 / 16 bounds the Chebyshev coefficients left out. A narrower one would show the nodes.
WIDTH = 1.2
REACH = 5.0  # widths that the grid goes beyond the outermost nodes: 6e-7 of a Gaussian lies further out


@dataclass(frozen=True, eq=False)
class KnownValues:
    """Eigenvalues known one by one, and the sums over them."""

    values: Tensor  # (k,) float64
    residuals: Tensor  # (k,) |H v - value v|: an eigenvalue lies within it

    @property
    def known(self) -> KnownValues:
        """All of them."""
        return self

    @property
    def smallest(self) -> float:
        """The smallest of them."""
        return float(self.values.min())

    def sum(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """Sum of f over them; its numerical error is that of values which are off by their residuals."""
        found = function(self.values)
        shifted = torch.stack([function(self.values + self.residuals), function(self.values - self.residuals)])
        return Estimate(float(found.sum()), 0.0, float((shifted - found).abs().amax(0).sum()))

    def count_above(self, threshold: float) -> Estimate:
        """How many exceed `threshold`; those whose residuals reach it may be on its other side."""
        is_open = ((self.values - threshold).abs() <= self.residuals) & (self.residuals > 0)
        return Estimate(float((self.values > threshold).sum()), 0.0, float(is_open.sum()))

    def participation_ratio(self) -> Estimate:
        """(sum)^2 / sum of squares; NaN where all are 0."""
        first, second = float(self.values.sum()), float(self.values.square().sum())
        return Estimate(first**2 / second if second else math.nan, 0.0, self.ratio_error(first, second))

    def ratio_error(self, first: float, second: float) -> float:
        """How far first^2 / second is off by the residuals of the summands that are known, to first order."""
        if second == 0.0:
            return 0.0
        slopes = 2 * first / second * (1 - first / second * self.values)
        return float((slopes.abs() * self.residuals).sum())


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity(Saved, Tabular):
    """The spectrum of a symmetric (p, p) map H: r known eigenvalues (spikes) and a measure for the p - r others.

    `density` is that of the others, smoothed by a Gaussian; its integral is (p - r) / p, each spike adds 1 / p. All
    tensors are float64, on the CPU.
    """

    grid: Tensor  # (g,) eigenvalues, ascending
    density: Tensor  # (g,) share of all p eigenvalues per unit of eigenvalue, mean over the probes
    standard_error: Tensor  # (g,) of that mean
    width: float  # standard deviation of the Gaussian
    spikes: Tensor  # (r,) eigenvalues known one by one, descending
    spike_residuals: Tensor  # (r,) |H v - value v|
    nodes: Tensor  # (n, m) places of each probe's quadrature, ascending
    weights: Tensor  # (n, m) their weights, each row sums to 1
    coefficients: Tensor  # (n, m) signed residuals of the Ritz pairs; all 0 where nothing is left open
    num_params: int  # p
    num_products: int  # everything, that of the eigenpairs included where they were computed here
    seconds: float
    seed: int
    operator: str  # the map, in words
    engine: str  # how its products are computed, "" where it doesn't say

    def columns(self) -> Columns:
        """One row for each place of the grid."""
        names = {"eigenvalue": self.grid, "density": self.density, "standard_error": self.standard_error}
        return {name: column.tolist() for name, column in names.items()}

    def __repr__(self) -> str:
        values, mean = self.spikes, self.moment(1)
        parts = [f"{len(values)} spikes {values[0]:.4g} ... {values[-1]:.4g}"] if len(values) else []
        if self.nodes.numel():
            parts.append(f"bulk {self.nodes.min():.3g} ... {self.nodes.max():.3g}")
        cost = f"{len(self.nodes)} probes x {self.nodes.shape[1]} steps, {self.num_products} products"
        size = f"{mean.value:.4g} +- {mean.standard_error:.1g}"
        found = f"p = {self.num_params:,}: {', '.join(parts)}; mean {size}"
        return f"SpectralDensity({found}; {cost}, {self.seconds:.1f} s)"

    @property
    def num_bulk(self) -> int:
        """Eigenvalues that are not known one by one, p - r."""
        return self.num_params - len(self.spikes)

    @property
    def known(self) -> KnownValues:
        """The spikes."""
        return KnownValues(self.spikes, self.spike_residuals)

    @property
    def smallest(self) -> float:
        """The smallest spike or node; the smallest eigenvalue is not larger, but for the residuals of spikes."""
        return float(torch.cat([self.spikes, self.nodes.flatten()]).min())

    def sum(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        r"""Sum of f over all p eigenvalues, tr f(H).

        Args:
            function: f, elementwise on a float64 tensor of any shape; finite between the ends of the spectrum.

        Returns:
            Estimate. Its numerical error is the difference to a second quadrature, with a node at 0 (below the smallest
            one, if that is negative): a bound where no eigenvalue is negative and the derivatives of f alternate in
            sign, as those of x / (x + c), log(x + c) and 1 / (x + c) do; elsewhere an indication. Polynomials of
            degree up to 2 m - 1 have none but rounding.
        """
        known = self.known.sum(function)
        if not self.num_bulk:
            return known
        bulk = (self.weights * function(self.nodes)).sum(1)  # (n,)
        low = min(0.0, float((self.nodes - self.coefficients.abs()).min()))  # an eigenvalue lies within each coupling
        nodes, weights = with_node_at(low, self.nodes, self.weights, self.coefficients)
        other = (weights * function(nodes)).sum(1)
        return self._with_bulk(known, bulk, float((other - bulk).mean().abs()))

    def moment(self, order: int) -> Estimate:
        """The mean power of all p eigenvalues; of order 1, it is tr H / p."""
        order = check_count("order", order, minimum=0, remedy="The mean is moment(1).")
        return self.sum(lambda values: values**order).scaled(1 / self.num_params)

    def count_above(self, threshold: float) -> Estimate:
        """Number of eigenvalues above `threshold`.

        Its numerical error is a bound: where the eigenvalues lie closer than m steps can tell apart, the threshold
        falls between two nodes, and this is how much of the spectrum could lie on either side of it.
        """
        threshold = check_real("threshold", threshold, remedy="Pass an eigenvalue, such as 0.1.")
        known = self.known.count_above(threshold)
        if not self.num_bulk:
            return known
        above, least, greatest = mass_above(threshold, self.nodes, self.weights, self.coefficients)
        slack = max(float((above - least).mean()), float((greatest - above).mean()))
        return self._with_bulk(known, above, slack)

    def _with_bulk(self, known: Estimate, shares: Tensor, slack: float) -> Estimate:
        """A sum over the spikes, and the rest from each probe's mean over the bulk (n,), which is off by `slack`."""
        num, error = self.num_bulk, float(standard_error(shares, self.num_bulk))
        return Estimate(known.value + num * float(shares.mean()), num * error, known.numerical_error + num * slack)

    def quantile(self, share: float) -> float:
        """The smallest node or spike with at least `share` of all eigenvalues at or below it; 0.5 is the median."""
        remedy = "0.5 asks for the median."
        share = check_real("share", share, minimum=0.0, maximum=1.0, remedy=remedy)
        per_node = self.num_bulk / max(1, len(self.nodes)) * self.weights.flatten()
        places, order = torch.cat([self.nodes.flatten(), self.spikes]).sort()
        reached = torch.cat([per_node, torch.ones_like(self.spikes)])[order].cumsum(0)
        wanted = share * self.num_params * (1 - 1e-12)  # what is reached is a sum, with its rounding
        return float(places[min(int((reached < wanted).sum()), len(places) - 1)])

    def participation_ratio(self) -> Estimate:
        """(sum of eigenvalues)^2 / sum of their squares: p where all are equal, 1 where one is all there is.

        The quadrature is exact for both sums. The standard error is that of the ratio linearised; the ratio itself is
        biased by about its square relative to the value.
        """
        if not self.num_bulk:
            return self.known.participation_ratio()
        ones, squares = (self.num_bulk * (self.weights * self.nodes**power).sum(1) for power in (1, 2))  # (n,)
        first = float(self.spikes.sum() + ones.mean())
        second = float(self.spikes.square().sum() + squares.mean())
        if second == 0.0:
            return Estimate(math.nan, 0.0, 0.0)
        ratio = first**2 / second
        linear = 2 * first / second * ones - ratio / second * squares
        error = float(standard_error(linear, self.num_bulk))
        return Estimate(ratio, error, self.known.ratio_error(first, second))

    def smoothed(
        self, *, grid: Tensor | None = None, num: int | None = None, width: float | None = None
    ) -> SpectralDensity:
        """The same with its density on another grid, or smoothed by another width; no products.

        Args:
            grid: (g,) ascending; by default evenly over the bulk and 5 widths beyond it.
            num: points of that grid, by default about four per width.
            width: standard deviation of the Gaussian, in units of the eigenvalues; by default 1.2 (range of the bulk) /
                steps, where the quadrature is exact to about 1e-5 of a Gaussian's height. Much narrower ones show
                nodes, not eigenvalues.
        """
        grid, num, width = check_axis(grid, num, width)
        places = self.nodes if self.nodes.numel() else self.spikes
        low, high = float(places.min()), float(places.max())
        if width is None:
            size = max(abs(low), abs(high))
            wide = WIDTH * (high - low) / max(1, self.nodes.shape[1])
            # A bulk that is one point (the identity, a zero operator) has no range: 1 % of where it lies.
            width = wide if wide > 1e-9 * size else 0.01 * (size or 1.0)
        if grid is None:
            low, high = low - REACH * width, high + REACH * width
            count = num or 1 + min(4000, math.ceil(4 * (high - low) / width - 1e-6))  # rounding adds no point
            grid = torch.linspace(low, high, count, dtype=torch.float64)
        rows = smooth_density(grid, width, self.nodes, self.weights) * (self.num_bulk / self.num_params)
        density, error = torch.zeros_like(grid), torch.zeros_like(grid)
        if self.num_bulk:
            density, error = rows.mean(0), standard_error(rows, self.num_bulk)
        return dataclasses.replace(self, grid=grid, density=density, standard_error=error, width=width)


def check_axis(grid: Any, num: int | None, width: float | None) -> tuple[Tensor | None, int | None, float | None]:
    """What `SpectralDensity.smoothed` was asked for: (g,) ascending, finite and float64; or an error."""
    if width is not None:
        remedy = "Leave it out: 1.2 (range of the bulk) / steps."
        width = check_real("width", width, minimum=0.0, exclusive=True, remedy=remedy)
    remedy = "Pass torch.linspace(low, high, 500), or leave it out."
    if num is not None:
        num = check_count("num", num, minimum=2, remedy=remedy)
    if grid is None:
        return None, num, width
    if num is not None:
        raise ValueError(argument_message("num", f"is {num} with a grid", "nothing", "Pass a grid or its length."))
    found = torch.as_tensor(grid).detach().cpu()
    if found.ndim != 1 or len(found) < 1 or found.is_complex():
        raise ValueError(argument_message("grid", f"has shape {tuple(found.shape)}", "(g,) eigenvalues", remedy))
    check_finite("grid", found, remedy=remedy)
    if bool((found.diff() <= 0).any()):
        raise ValueError(argument_message("grid", "does not ascend", "ascending eigenvalues", remedy))
    return found.double(), None, width


@door
@plain_arithmetic()
def spectral_density(
    H: Any,
    *,
    num_steps: int = 80,
    num_probes: int = 10,
    deflate: Eigenpairs | int | None = None,
    grid: Tensor | None = None,
    num: int | None = None,
    width: float | None = None,
    seed: int = 0,
    memory: float | None = None,
    progress: bool | None = None,
) -> SpectralDensity:
    r"""The density of all p eigenvalues of a symmetric map, by stochastic Lanczos quadrature.

    With r known pairs (lambda_i, v_i) and P = I - sum v_i v_i^T,

        (1/p) tr f(H) = (1/p) sum_i f(lambda_i) + (p - r)/p mean_z sum_j w_j(z) f(theta_j(z)),

    theta, w the Gauss quadrature that `num_steps` steps of Lanczos with full reorthogonalization on P H P give for a
    probe z, uniform on the unit sphere of P's range. The probes are orthogonal to each other: as many as p - r give
    every sum without an error of chance. Standard errors are over the probes; with n of them a 95 % interval is
    Student's, with n - 1 degrees of freedom: +- 2.3 of them for n = 10.

    Args:
        H: symmetric map with `H @ v` and the shape (p, p), as in `top_eigs`.
        num_steps: Lanczos steps per probe, at most p; more of them resolve finer structure.
        num_probes: random vectors, 2 at least; 4 times as many halve the standard error. At most p - r are used.
        deflate: eigenpairs of H that are known (those of them that converged are used), or how many to compute, those
            of the largest magnitude. They appear as `spikes`.
        grid: (g,) where the density is evaluated; by default evenly over the bulk.
        num: number of grid points instead.
        width: of the Gaussian that smooths it; by default what `num_steps` can resolve. See `SpectralDensity.smoothed`,
            which changes grid and width afterwards without a product.
        seed: of the probes. The global random state is not touched.
        memory: bytes for the basis: (2 r + num_steps + num_probes) p numbers; by default a quarter of the machine's.
        progress: True or False; by default a bar appears after two seconds.

    Returns:
        SpectralDensity.

    Raises:
        ValueError: an argument is out of range, H is not symmetric, or `deflate` holds pairs of another map.
        NotConvergedError: pairs were to be computed and did not converge.
        FloatingPointError: a product has NaN or infinite entries.

    Cost:
        num_steps * num_probes products, one to check the pairs that were given, about 2 k + 20 for k to be computed.

    Source:
        Golub & Meurant (1994); Ubaru, Chen & Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos
        quadrature"; Ghorbani, Krishnan & Xiao (2019), "An investigation into neural net optimization via Hessian
        eigenvalue density".
    """
    started = time.perf_counter()
    counted = CountedMap(H)
    p = counted.size
    num_steps = check_count(
        "num_steps", num_steps, minimum=1, remedy="80 is a good start; more resolve finer structure."
    )
    remedy = "A single one says nothing of its error; 10 is a good start."
    num_probes = check_count("num_probes", num_probes, minimum=min(2, p), remedy=remedy)
    seed = check_count("seed", seed, minimum=0, maximum=2**63 - 1, remedy="Any other number is as good.")
    grid, num, width = check_axis(grid, num, width)  # before the products, not after them
    pairs, spent = _known_pairs(H, counted, deflate, seed, progress)
    kept = pairs.is_converged if pairs is not None else torch.zeros(0, dtype=torch.bool)
    known = int(kept.sum())
    num_steps, num_probes = min(num_steps, p - known), min(num_probes, p - known)
    _check_memory(counted, known, num_steps, num_probes, memory)
    rows = torch.empty((known + num_steps, p), dtype=counted.dtype, device=counted.device)
    scale = 0.0
    if pairs is not None:
        rows[:known], scale = pairs.vectors[kept].to(rows), pairs.scale
    generator = private_generator(seed, "spectrum")
    rules = []
    starts = orthonormal_probes(num_probes, rows[:known], generator)
    delay = 0.0 if progress else 2.0
    with tqdm(total=num_probes * num_steps, desc="spectral density", delay=delay, disable=is_silent(progress)) as bar:
        for start in starts:
            rows[known : known + 1] = start
            rules.append(lanczos_quadrature(counted, rows, known, scale, bar.update))
    nodes, weights, coefficients = padded(rules)
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
        coefficients=coefficients,
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
        raise ValueError(argument_message("deflate", received, f"({p},) = (p,) of H", remedy))
    kept = deflate.is_converged
    if not bool(kept.any()):
        return None, 0
    vectors, values = deflate.vectors[kept], deflate.values[kept]
    # One product with a mixture of all: what it leaves open is at most the root of the sum of the squared residuals.
    mixed = torch.randn(len(values), generator=private_generator(seed, "deflated pairs"), dtype=torch.float64)
    mixed /= mixed.norm()
    sent = (mixed.to(vectors) @ vectors).to(device=operator.device, dtype=operator.dtype)
    expected = (mixed * values).to(vectors) @ vectors
    miss = float((operator.product(sent).cpu().double() - expected.double()).norm())
    allowed = 2 * float(deflate.residuals[kept].norm()) + 2 * deflate.noise
    allowed += 100 * torch.finfo(operator.dtype).eps * deflate.scale
    if not miss <= allowed:
        received = f"holds pairs that H does not have: H v differs from lambda v by {miss:.1e}"
        raise ValueError(argument_message("deflate", received, f"at most {allowed:.1e} by their residuals", remedy))
    return deflate, 0


def _check_memory(operator: CountedMap, known: int, steps: int, probes: int, memory: float | None) -> None:
    """Refuse a basis that does not fit."""
    memory = machine_memory(operator.device) / 4 if memory is None else memory
    remedy = "Memory is in bytes: 4 * 2**30 is 4 GiB. Take fewer steps, or allow more memory."
    check_real("memory", memory, minimum=0.0, exclusive=True, remedy=remedy)
    needed = (2 * known + steps + probes) * operator.size * operator.dtype.itemsize
    if memory < needed:
        expected = f"at least {needed:,} bytes for {steps} steps, {probes} probes and {known} known pairs"
        raise ValueError(argument_message("memory", f"is {memory:,.0f} bytes", expected, remedy))
