"""Effective dimensions: three counts of the directions of weight space that a loss notices.

They differ: the number of eigenvalues above a threshold; the participation ratio (sum lambda)^2 / sum lambda^2, which
the largest eigenvalues dominate; and sum lambda / (lambda + gamma), the degrees of freedom of a ridge regression, a
count without a sharp threshold. Each is given with its error: a few eigenpairs give lower bounds, a density has
errors, and only a whole spectrum has neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.curvature.eigenpairs import Eigenpairs
from lowhanging.curvature.operators import plain_arithmetic
from lowhanging.curvature.spectrum import KnownValues, SpectralDensity
from lowhanging.curvature.trace import Estimate
from lowhanging.errors import (
    a_type,
    argument_message,
    check_finite,
    door,
)
from lowhanging.io import Saved


@dataclass(frozen=True, eq=False, repr=False)
class EffectiveDimension(Saved):
    """Three counts of the directions that matter.

    Each number has a standard error (of chance, over probes) and a numerical error (residuals of the pairs; what
    finitely many Lanczos steps leave open), see `Estimate`. Both are 0 for a whole spectrum.
    """

    thresholds: Tensor  # (t,)
    counts: Tensor  # (t,) number of eigenvalues above each threshold
    count_standard_errors: Tensor  # (t,)
    count_numerical_errors: Tensor  # (t,)
    count_is_bound: Tensor  # (t,) bool, there may be more among the eigenvalues that are not known
    participation_ratio: float  # (sum lambda)^2 / sum lambda^2, NaN where all eigenvalues are 0
    participation_standard_error: float
    participation_numerical_error: float
    gammas: Tensor  # (g,)
    degrees_of_freedom: Tensor  # (g,) sum over positive eigenvalues of lambda / (lambda + gamma)
    degrees_standard_errors: Tensor  # (g,)
    degrees_numerical_errors: Tensor  # (g,)
    num_known: int  # eigenvalues known one by one
    num_params: int  # p; all eigenvalues
    smallest: float  # smallest eigenvalue (or node) seen
    is_partial: bool  # some eigenvalues are neither known nor estimated: degrees_of_freedom are then lower bounds ...
    ratio_is_bound: bool  # ... and so is participation_ratio, if none of those has been seen to be negative

    def __repr__(self) -> str:
        which = sorted({0, len(self.counts) // 2, len(self.counts) - 1})
        above = ", ".join(self._count(i) for i in which)
        few = "at least " if self.is_partial else ""
        ratio = f"participation ratio {self.ratio_in_words}"
        degrees = _rounded(float(self.degrees_of_freedom[0]), float(self.degrees_standard_errors[0]))
        degrees = f"degrees of freedom {few}{degrees} at gamma {float(self.gammas[0]):g}"
        return f"EffectiveDimension({above}; {ratio}; {degrees}; {self.num_known} of {self.num_params:,} known)"

    @property
    def ratio_in_words(self) -> str:
        """The participation ratio with its error, and what it is where eigenvalues are missing."""
        number = _rounded(self.participation_ratio, self.participation_standard_error)
        if self.participation_ratio < 1:  # of eigenvalues that are not negative it is 1 or more
            return f"{number}, no dimension: eigenvalues of both signs cancel"
        if self.ratio_is_bound:
            return f"at least {number}"
        return f"{number} of those known" if self.is_partial else number

    def _count(self, i: int) -> str:
        few = "at least " if self.count_is_bound[i] else ""
        number = _rounded(float(self.counts[i]), float(self.count_standard_errors[i]))
        return f"{few}{number} above {float(self.thresholds[i]):g}"


@door
@plain_arithmetic()
def effective_dimension(
    source: Eigenpairs | SpectralDensity | Tensor | np.ndarray,
    *,
    thresholds: float | Sequence[float] | Tensor = (0.1, 1.0, 10.0),
    gammas: float | Sequence[float] | Tensor | None = None,
) -> EffectiveDimension:
    r"""How many eigenvalues matter: above a threshold, by participation ratio, and by sum lambda / (lambda + gamma).

    Args:
        source: `Eigenpairs`, which know the ends of a spectrum; a `SpectralDensity`, which knows all of it with an
            error; or all p eigenvalues as a tensor or array (p,), in any order.
        thresholds: one or several, in units of the eigenvalues (loss per squared unit of theta).
        gammas: one or several positive numbers in the same units; by default the thresholds.

    Returns:
        EffectiveDimension. From eigenpairs a count is exact above the last of them and a lower bound below it, the
        degrees of freedom are a lower bound, and so is the participation ratio if what is not known is neither negative
        nor larger than what is. Negative eigenvalues count as they are in the ratio, and not at all in the degrees of
        freedom; `.smallest` tells whether any were seen.

    Raises:
        TypeError: source is none of these.
        ValueError: a threshold that is not finite, or a gamma that is not positive.

    Cost:
        no products. From a density about 10 ms per threshold, for the bounds on the count.

    Source:
        MacKay (1992), "Bayesian interpolation" (the degrees of freedom); Maddox, Benton & Wilson (2020), "Rethinking
        parameter counting in deep models".
    """
    levels = _numbers("thresholds", thresholds, "Pass eigenvalues, such as (0.1, 1.0).")
    remedy = "Pass gammas= in units of the eigenvalues, such as 0.1; by default they are the thresholds."
    softness = _numbers("gammas", levels if gammas is None else gammas, remedy, positive=True)
    known, num_params, complete_above = _read(source)
    smallest = min(known.smallest, source.other_end) if isinstance(source, Eigenpairs) else known.smallest
    counts = [known.count_above(float(level)) for level in levels]
    degrees = [known.sum(_share_of(float(gamma))) for gamma in softness]
    ratio = known.participation_ratio()
    values = known.known.values
    is_partial = isinstance(source, Eigenpairs) and len(source) < num_params
    # One more summand x raises (sum)^2 / sum of squares if 0 <= x <= all the others.
    is_bound = is_partial and complete_above < math.inf and smallest >= -1e-6 * float(values.abs().max())
    return EffectiveDimension(
        thresholds=levels,
        counts=_column(counts, "value"),
        count_standard_errors=_column(counts, "standard_error"),
        count_numerical_errors=_column(counts, "numerical_error"),
        count_is_bound=levels < complete_above,
        participation_ratio=ratio.value,
        participation_standard_error=ratio.standard_error,
        participation_numerical_error=ratio.numerical_error,
        gammas=softness,
        degrees_of_freedom=_column(degrees, "value"),
        degrees_standard_errors=_column(degrees, "standard_error"),
        degrees_numerical_errors=_column(degrees, "numerical_error"),
        num_known=len(values),
        num_params=num_params,
        smallest=smallest,
        is_partial=is_partial,
        ratio_is_bound=is_bound,
    )


def _read(source: Any) -> tuple[KnownValues | SpectralDensity, int, float]:
    """What can be summed over, p, and the level above which no eigenvalue is missing from it."""
    if isinstance(source, SpectralDensity):
        return source, source.num_params, -math.inf
    if isinstance(source, Eigenpairs):
        known, p = KnownValues(source.values, source.residuals), source.vectors.shape[1]
        if len(source) == p:
            return known, p, -math.inf
        # What LA leaves out is smaller than all it has; what LM leaves out is smaller in magnitude; SA says nothing.
        ends = {"LA": float(source.values.min()), "LM": float(source.values.abs().min())}
        return known, p, ends.get(source.which, math.inf) if bool(source.is_converged.all()) else math.inf
    remedy = "Pass what top_eigs or spectral_density returned, or all eigenvalues as a tensor (p,)."
    if not isinstance(source, Tensor | np.ndarray):
        expected = "Eigenpairs, a SpectralDensity or a tensor of eigenvalues"
        raise TypeError(argument_message("source", f"is {a_type(source)}", expected, remedy))
    values = torch.as_tensor(np.array(source) if isinstance(source, np.ndarray) else source.detach().cpu())
    if values.ndim != 1 or len(values) < 1 or values.is_complex():
        raise ValueError(argument_message("source", f"has shape {tuple(values.shape)}", "(p,) eigenvalues", remedy))
    check_finite("source", values, remedy=remedy)
    values = values.double()
    return KnownValues(values, torch.zeros_like(values)), len(values), -math.inf


def _share_of(gamma: float) -> Callable[[Tensor], Tensor]:
    """The function lambda / (lambda + gamma) of positive eigenvalues, 0 of others."""

    def share(values: Tensor) -> Tensor:
        positive = values.clamp(min=0.0)
        return positive / (positive + gamma)

    return share


def _numbers(argument: str, given: Any, remedy: str, *, positive: bool = False) -> Tensor:
    """(t,) finite float64 numbers from one or several, or an error."""
    found = torch.as_tensor(given).detach().cpu().double().reshape(-1)
    expected = "finite positive numbers" if positive else "finite numbers"
    if not len(found) or not bool(torch.isfinite(found).all()) or (positive and not bool((found > 0).all())):
        received = f"is {given!r}" if not isinstance(given, Tensor) else f"is {given.tolist()}"
        raise ValueError(argument_message(argument, received, expected, remedy))
    return found


def _column(estimates: Sequence[Estimate], field: str) -> Tensor:
    """(t,) one field of several estimates."""
    return torch.tensor([getattr(estimate, field) for estimate in estimates], dtype=torch.float64)


def _rounded(value: float, error: float) -> str:
    """A number with its standard error, if it has one."""
    return f"{value:.4g} +- {error:.1g}" if error else f"{value:.4g}"
