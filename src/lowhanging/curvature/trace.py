"""Traces from random vectors (probes), and the error of what probes say.

For a unit vector z drawn uniformly from an N-dimensional space, N z^T A z has the mean tr A. The probes are drawn
orthogonal to each other: each is still uniform, so nothing becomes biased, and n of them are a sample without
replacement from N that would give tr A exactly. The variance of their mean is estimated without bias by
s^2 / n (1 - n / N), with s^2 the sample variance, as for a finite population.

The trace of a map with outliers is mostly theirs. Hutch++ finds their subspace by a sketch H S, takes the trace there
exactly, and leaves what is small to the probes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.curvature.krylov import random_row
from lowhanging.curvature.linear_map import CountedMap
from lowhanging.curvature.operators import plain_arithmetic
from lowhanging.errors import (
    argument_message,
    check_count,
    door,
)
from lowhanging.io import Saved
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.random_state import private_generator


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


def standard_error(values: Tensor, population: int) -> Tensor:
    """(n, ...) values of n orthogonal probes in a space of `population` dimensions -> (...) error of their mean."""
    num = len(values)
    if num == population:
        return torch.zeros_like(values.sum(0))
    return values.std(0) * math.sqrt((1 - num / population) / num)


def orthonormal_probes(num: int, away_from: Tensor, generator: torch.Generator) -> Tensor:
    """(num, p) orthonormal rows, uniformly distributed in the complement of the orthonormal rows `away_from` (r, p)."""
    fixed, p = away_from.shape
    rows = torch.cat([away_from, away_from.new_empty((num, p))])
    for i in range(fixed, fixed + num):
        rows[i] = random_row(rows[:i], generator)
    return rows[fixed:]


def in_words(H: object, operator: CountedMap) -> tuple[str, str]:
    """What a result says of the map and of its engine; the latter is "" where the map doesn't say."""
    engine = str(getattr(H, "engine", ""))
    return repr(H) if engine else f"{type(H).__name__} ({operator.size}, {operator.size})", engine


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Saved):
    """The trace of a symmetric (p, p) map, tr H = tr Q H Q^T + the trace of the rest, estimated from probes."""

    value: float
    standard_error: float  # over the probes: the estimated standard deviation of `value` over seeds
    captured: float  # tr Q H Q^T, exact
    num_captured: int  # rows of Q
    num_probes: int  # random vectors for the rest; 0 where every diagonal entry was taken
    num_params: int  # p
    num_products: int
    seconds: float
    seed: int
    operator: str  # the map, in words
    engine: str  # how its products are computed, "" where it doesn't say

    def __repr__(self) -> str:
        rest = self.value - self.captured
        how = f"{self.captured:.4g} of it on {self.num_captured} directions, {rest:.4g} from {self.num_probes} probes"
        if self.is_exact:
            how = "every diagonal entry"
        cost = f"{self.num_products} products, {self.seconds:.1f} s"
        return f"Trace({self.value:.6g} +- {self.standard_error:.1g}: {how}; p = {self.num_params:,}; {cost})"

    def __float__(self) -> float:
        return self.value

    @property
    def is_exact(self) -> bool:
        """Whether nothing was left to chance."""
        return self.num_captured == self.num_params


@door
@plain_arithmetic()
def trace(H: Any, *, num_probes: int = 60, seed: int = 0, progress: bool | None = None) -> Trace:
    r"""The trace of a symmetric map by Hutch++, with its standard error.

    A third of the products goes into a sketch H S with a random S (p, s), a third into the exact trace on its range Q,
    a third into probes z, orthonormal and uniform in the complement of Q:

        tr H = tr Q H Q^T + (p - s) mean_z z^T H z.

    It is unbiased for every symmetric H, and the standard error holds for every H: the probes are drawn after Q. What
    needs H to have no negative eigenvalues is the promise of the method that O(1 / eps) products suffice for a relative
    error of eps (Hutchinson's estimator needs O(1 / eps^2)): with both signs tr H may be close to 0 while the
    eigenvalues are not. With no outliers the error is that of the probes alone, a third of the products.

    Args:
        H: symmetric map with `H @ v` and the shape (p, p), as in `top_eigs`.
        num_probes: vectors that H is applied to, in all; 5 at least, so that two are left for the rest. With p or more
            the p unit vectors are taken instead, and the trace is exact to rounding.
        seed: of the random vectors. The global random state is not touched.
        progress: True or False; by default a bar appears after two seconds.

    Returns:
        Trace. A 95 % interval is Student's with n - 1 degrees of freedom, n = `num_probes`: +- 2.1 standard errors for
        the 20 of the default.

    Raises:
        ValueError: an argument is out of range, or H is a matrix that is not symmetric.
        FloatingPointError: a product has NaN or infinite entries.

    Cost:
        `num_probes` products, at most p; a QR decomposition of (p, num_probes / 3).

    Source:
        Meyer, Musco, Musco & Woodruff (2021), "Hutch++: optimal stochastic trace estimation". Their probes are
        independent; for orthogonal ones see `standard_error`.
    """
    started = time.perf_counter()
    counted = CountedMap(H)
    p = counted.size
    remedy = "60 is a good start; four times as many halve the error, or better."
    num_probes = check_count("num_probes", num_probes, minimum=min(5, p), remedy=remedy)
    seed = check_count("seed", seed, minimum=0, maximum=2**63 - 1, remedy="Any other number is as good.")
    with tqdm(
        total=min(num_probes, p), desc="trace", delay=0.0 if progress else 2.0, disable=is_silent(progress)
    ) as bar:
        if num_probes >= p:
            captured, size, rest = float(_forms(counted, _unit_vectors(counted), bar).sum()), p, torch.zeros(0)
        else:
            generator = private_generator(seed, "trace")
            size = num_probes // 3
            basis = _sketched(counted, size, generator, bar)
            captured = float(_forms(counted, basis, bar).sum())
            rest = _forms(counted, orthonormal_probes(num_probes - 2 * size, basis, generator), bar)
    left = p - size
    operator, engine = in_words(H, counted)
    return Trace(
        value=captured + (left * float(rest.mean()) if left else 0.0),
        standard_error=left * float(standard_error(rest, left)),
        captured=captured,
        num_captured=size,
        num_probes=len(rest),
        num_params=p,
        num_products=counted.num_products,
        seconds=time.perf_counter() - started,
        seed=seed,
        operator=operator,
        engine=engine,
    )


def _unit_vectors(operator: CountedMap) -> Iterator[Tensor]:
    """The p unit vectors, one after the other, in one tensor (p,)."""
    row = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
    for i in range(operator.size):
        row[i] = 1.0
        yield row
        row[i] = 0.0


def _sketched(operator: CountedMap, size: int, generator: torch.Generator, bar: Any) -> Tensor:
    """(size, p) orthonormal rows that span H S; where H has a lower rank, the rest is filled up."""
    columns = torch.empty((operator.size, size), dtype=operator.dtype, device=operator.device)
    for start in range(0, size, _at_once(operator)):
        num = min(_at_once(operator), size - start)
        noise = [torch.randn(operator.size, generator=generator, dtype=torch.float64) for _ in range(num)]
        columns[:, start : start + num] = _products(operator, torch.stack(noise).to(columns)).T
        bar.update(num)
    basis: Tensor = torch.linalg.qr(columns.double())[0].T
    return basis.to(operator.dtype).contiguous()


def _forms(operator: CountedMap, rows: Iterable[Tensor], bar: Any) -> Tensor:
    """(n,) z^T H z of n rows, in float64 on the CPU."""
    found, left = [], iter(rows)
    while block := [row.clone() for row in itertools.islice(left, _at_once(operator))]:
        stacked = torch.stack(block)
        found.append((stacked.double() * _products(operator, stacked).double()).sum(dim=1))
        bar.update(len(block))
    return torch.cat(found).cpu()


def _at_once(operator: CountedMap) -> int:
    """Vectors per product: several on a GPU, which one leaves idle."""
    return 1 if operator.device.type == "cpu" else 32


def _products(operator: CountedMap, rows: Tensor) -> Tensor:
    """H times each of rows (b, p), or an error where one isn't finite."""
    images = operator.products_of(rows)
    if not bool(torch.isfinite(images).all()):
        received = f"has NaN or infinite entries at product {operator.num_products}"
        raise FloatingPointError(
            argument_message("H @ v", received, "finite numbers", "Look for overflow in the loss.")
        )
    return images
