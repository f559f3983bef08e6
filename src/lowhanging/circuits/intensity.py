"""Does the birth of one circuit raise or lower the rate of births that follow it in the same run?

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

from lowhanging.circuits.births import Births, check_births
from lowhanging.circuits.pairing import check_lengths, dated_births, warn_if_blurred
from lowhanging.circuits.permutation import against_shuffling, slots, strata_of
from lowhanging.errors import argument_message, check_count
from lowhanging.io import Saved


@dataclass(frozen=True, eq=False, repr=False)
class BirthIntensity(Saved):
    """The rate of births at given lags after another birth of the same seed, against shuffled births."""

    lags: Tensor  # (k, 2) float64, steps: more than the first, at most the second (a first bin from 0 has 0 too)
    pairs: Tensor  # (k,) int64, births that followed another at such a lag
    null_mean: Tensor  # (k,) float64, expected if births are shuffled across seeds
    rate: Tensor  # (k,) float64, following births per birth and step
    null_rate: Tensor  # (k,) float64
    ratio: Tensor  # (k,) float64, rate / null_rate; nan where both are 0
    interval: Tensor  # (k, 2) float64, 95 % interval of the ratio, bootstrap over seeds
    p_more: Tensor  # (k,) float64, one-sided: a raised rate
    p_fewer: Tensor  # (k,) float64, one-sided: a lowered one
    num_births: int
    num_seeds: int  # with at least one birth

    def __repr__(self) -> str:
        rows = [
            f"{start:g}–{stop:g} steps: {ratio:.2f} ({low:.2f}–{high:.2f})"
            for (start, stop), ratio, (low, high) in zip(
                self.lags.tolist(), self.ratio.tolist(), self.interval.tolist(), strict=True
            )
        ]
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
    check_births(births)
    edges = _check_edges(lags)
    check_count("num_resamples", num_resamples, remedy="2,000 resolve p-values down to 0.0005.")
    check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    labels = strata_of(strata, len(births.step))
    times, owners = dated_births(births)
    warn_if_blurred("lags", edges[1:], births)
    places, order = slots(owners, labels)
    if not len(places.left) or places.num_seeds < 2:
        received = f"has {len(places.left)} pairs of births in {places.num_seeds} seed{'s' * (places.num_seeds != 1)}"
        expected = "two seeds with births, one of them with two"
        raise ValueError(
            argument_message("births", received, expected, "Train more seeds, longer, or lower the threshold.")
        )
    unique, codes = np.unique(times[order], return_inverse=True)
    gaps, rounding = np.abs(unique[:, None] - unique), 1e-9 * np.abs(unique).max()
    lower = np.where(edges[:-1] == 0, -1.0, edges[:-1])  # the first bin takes lag 0 in
    tables = (gaps > lower[:, None, None] + rounding) & (gaps <= edges[1:, None, None] + rounding)
    found = against_shuffling(places, codes, tables, num_resamples, np.random.default_rng(seed))
    exposure = torch.from_numpy(len(times) * np.diff(edges))
    return BirthIntensity(
        lags=torch.from_numpy(np.stack([edges[:-1], edges[1:]], axis=1)), pairs=found.observed,
        null_mean=found.null_mean, rate=found.observed / exposure, null_rate=found.null_mean / exposure,
        ratio=found.ratio, interval=found.interval, p_more=found.p_more, p_fewer=found.p_fewer,
        num_births=len(times), num_seeds=places.num_seeds,
    )  # fmt: skip


def _check_edges(lags: Any) -> np.ndarray:
    """(k + 1,) ascending numbers, the first not negative, or an error."""
    edges = check_lengths("lags", lags, may_be_zero=True)
    if len(edges) < 2 or bool((np.diff(edges) <= 0).any()):
        remedy = "Pass the edges of the bins, such as (0, 10, 50, 100)."
        raise ValueError(argument_message("lags", f"is {lags!r}", "at least two ascending numbers of steps", remedy))
    return edges
