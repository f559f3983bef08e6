"""Rate of births at given lags after another birth in the same run.

The pairing test asks whether births lie close; this asks at which lag. Both count pairs within a seed and compare with
births shuffled across seeds, so a burst that all seeds share gives a ratio of 1 at every lag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.circuits.births import Births
from lowhanging.circuits.pairing import check_lengths, dated_births, warn_if_blurred
from lowhanging.circuits.permutation import PairCounts, against_shuffling, check_pairs, check_resampling, slots_of
from lowhanging.errors import argument_message


@dataclass(frozen=True, eq=False, repr=False)
class BirthIntensity(PairCounts):
    """The rate of births at given lags after another birth of the same seed, against shuffled births."""

    lags: Tensor  # (k, 2) float64, steps: more than the first, at most the second (a first bin from 0 has 0 too)
    rate: Tensor  # (k,) float64, following births per birth and step
    null_rate: Tensor  # (k,) float64
    num_births: int
    num_seeds: int  # with at least one birth

    def __repr__(self) -> str:
        lags = self.lags.tolist()
        rows = [f"{start:g}–{stop:g} steps: {row}" for (start, stop), row in zip(lags, self._rows(), strict=True)]
        counts = f"{self.num_births} births in {self.num_seeds} seeds"
        return f"BirthIntensity({counts}, rate after another birth over that of shuffled births; {'; '.join(rows)})"


def birth_intensity(
    births: Births,
    lags: Sequence[float] = (0, 10, 50, 100, 200),
    *,
    strata: Any | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> BirthIntensity:
    r"""Rate of births some steps after another birth of the same seed, over the rate among shuffled births.

    For each bin (a, b] between neighbouring `lags`, the pairs of births of one seed with a < t_j - t_i <= b are
    counted; per birth and step that is a rate, pairs / (births (b - a)). The null permutes births across seeds and
    keeps each seed's number of births, so that its rate has the shared burst in it; the ratio of the two is the odds of
    a birth given one that many steps before. The first bin includes births at the same log if it begins at 0.

    Args:
        births: from `births(scores, steps)`; those from before the first log are left out.
        lags: (k + 1,) edges of the bins in steps, ascending, not negative.
        strata: (seeds,) labels; permute only between seeds of one label.
        num_resamples: draws of the null, and of the bootstrap over seeds that gives the interval.
        seed: of both; the global random state is not used.

    Returns:
        BirthIntensity, one entry per bin.

    Raises:
        ValueError, TypeError: fewer than two edges, or not ascending; fewer than two births with a time, no seed with
            two, only one seed with births.

    Warns:
        UserWarning: a bin ends before the median rise time of circuits, or before the spacing of the logs.

    Cost:
        That of `pairing_test`.
    """
    labels = check_resampling(births, num_resamples, seed, strata)
    edges = check_lengths("lags", lags, may_be_zero=True)
    if len(edges) < 2 or bool((np.diff(edges) <= 0).any()):
        remedy = "Pass the edges of the bins, such as (0, 10, 50, 100)."
        raise ValueError(argument_message("lags", f"is {lags!r}", "at least two ascending numbers of steps", remedy))
    times, owners = dated_births(births)
    warn_if_blurred("lags", edges[1:], births)
    slots, order = slots_of(owners, labels)
    check_pairs(slots)
    unique, codes = np.unique(times[order], return_inverse=True)
    gaps, rounding = np.abs(unique[:, None] - unique), 1e-9 * np.abs(unique).max()
    lower = np.where(edges[:-1] == 0, -1.0, edges[:-1])  # the first bin takes lag 0 in
    tables = (gaps > lower[:, None, None] + rounding) & (gaps <= edges[1:, None, None] + rounding)
    counted = against_shuffling(slots, codes, tables, num_resamples, np.random.default_rng(seed))
    exposure = torch.from_numpy(len(times) * np.diff(edges))
    return BirthIntensity(
        **vars(counted), lags=torch.from_numpy(np.stack([edges[:-1], edges[1:]], axis=1)),
        rate=counted.pairs / exposure, null_rate=counted.null_mean / exposure,
        num_births=len(times), num_seeds=slots.num_seeds,
    )  # fmt: skip
