r"""What is known of a whole spectrum, and what can be asked of it?

Nodes and weights rather than a picture: any sum over the spectrum can be taken from them afterwards, and the density be
drawn on another grid, without another product of the map.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowhanging.basin.probes import Estimate, standard_error
from lowhanging.basin.quadrature import mass_above, smooth_density, with_node_at
from lowhanging.errors import check_count, check_finite, check_real, explain
from lowhanging.results import load_result, save_result

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
class SpectralDensity:
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
    couplings: Tensor  # (n, m) signed residuals of the Ritz pairs; all 0 where nothing is left open
    num_params: int  # p
    num_products: int  # everything, that of the eigenpairs included where they were computed here
    seconds: float
    seed: int
    operator: str  # the map, in words
    engine: str  # how its products are computed, "" where it doesn't say

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
        low = min(0.0, float((self.nodes - self.couplings.abs()).min()))  # an eigenvalue lies within each coupling
        nodes, weights = with_node_at(low, self.nodes, self.weights, self.couplings)
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
        above, least, greatest = mass_above(threshold, self.nodes, self.weights, self.couplings)
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

    def save(self, path: str | Path) -> Path:
        """Write to `path` (npz)."""
        return save_result(self, path)

    @classmethod
    def load(cls, path: str | Path) -> SpectralDensity:
        """Read what `save` wrote."""
        return load_result(cls, path)


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
        raise ValueError(explain("num", f"is {num} with a grid", "nothing", "Pass a grid or its length."))
    found = torch.as_tensor(grid).detach().cpu()
    if found.ndim != 1 or len(found) < 1 or found.is_complex():
        raise ValueError(explain("grid", f"has shape {tuple(found.shape)}", "(g,) eigenvalues", remedy))
    check_finite("grid", found, remedy=remedy)
    if bool((found.diff() <= 0).any()):
        raise ValueError(explain("grid", "does not ascend", "ascending eigenvalues", remedy))
    return found.double(), None, width
