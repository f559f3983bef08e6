r"""What do a few random vectors say about a sum over all eigenvalues, and how well?

For a unit vector z drawn uniformly from an N-dimensional space, N z^T A z has the mean tr A. The probes here are drawn
orthogonal to each other. Each is still uniform by itself, so nothing becomes biased; and since N of them would give
tr A without any error, n of them are a sample without replacement: the variance of their mean is estimated without bias
by s^2 / n (1 - n / N), with s^2 the sample variance, as for a finite population (they are exchangeable, and the
covariance of any two is -variance / (N - 1), because the sum over all N is no random number). The error thus ends at
zero, where independent probes would go on guessing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowhanging.basin.counted_map import CountedMap
from lowhanging.basin.lanczos import dots


@dataclass(frozen=True, repr=False)
class Estimate:
    """A number with what is known about its two errors, one of chance and one of arithmetic."""

    value: float
    standard_error: float  # over the probes: the estimated standard deviation of `value` over seeds
    numerical_error: float  # how far `value` may be from what these probes would say without any other approximation

    def __repr__(self) -> str:
        limit = f", numerics within {self.numerical_error:.1g}" if self.numerical_error else ""
        return f"Estimate({self.value:.5g} +- {self.standard_error:.1g}{limit})"

    def __float__(self) -> float:
        return self.value

    def scaled(self, factor: float) -> Estimate:
        """The same of `factor` times the number."""
        size = abs(factor)
        return Estimate(factor * self.value, size * self.standard_error, size * self.numerical_error)


def standard_error(samples: Tensor, population: int) -> Tensor:
    """(n, ...) values of n orthogonal probes in a space of `population` dimensions -> (...) error of their mean."""
    num = len(samples)
    if num == population:
        return torch.zeros_like(samples.sum(0))
    return samples.std(0) * math.sqrt((1 - num / population) / num)


def orthonormal_probes(num: int, away_from: Tensor, generator: torch.Generator) -> Tensor:
    """(num, p) orthonormal rows, uniformly distributed in the complement of the orthonormal rows `away_from` (r, p)."""
    fixed, p = away_from.shape
    rows = torch.cat([away_from, away_from.new_empty((num, p))])
    for i in range(fixed, fixed + num):
        noise = torch.randn(p, generator=generator, dtype=torch.float64, device="cpu")  # the same on every device
        row = (noise / noise.norm()).to(rows)
        for _ in range(3):  # close to a full space almost all of it is projected away
            row -= rows[:i].T @ dots(rows[:i], row).to(row)
            row /= row.double().norm()
        rows[i] = row
    return rows[fixed:]


def in_words(H: object, operator: CountedMap) -> tuple[str, str]:
    """What a result says of the map and of its engine; the latter is "" where the map doesn't say."""
    engine = str(getattr(H, "engine", ""))
    return repr(H) if engine else f"{type(H).__name__} ({operator.size}, {operator.size})", engine
