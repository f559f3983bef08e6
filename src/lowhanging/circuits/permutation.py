"""Permutation tests of whether pairs of values within one seed (or triples) are more, or fewer, than by chance.

A pair counts when a table says so for its two values: times at most 20 steps apart, or frequencies of which one is the
double of the other. The null permutes the values across seeds, which keeps each seed's number of values and their
common distribution, and breaks only what ties values of one seed together (the shift predictor of spike trains). Its
mean is exact: a pair of slots holds every pair of values of its stratum equally often. The draws are for p-values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from lowhanging.circuits.births import Births, check_births
from lowhanging.errors import argument_message, check_count
from lowhanging.io import Saved

CHUNK = 2_000_000  # numbers held at a time while counting pairs in permuted values
_FEW = 10  # pairs below which an interval is at least that of a Poisson count


@dataclass(frozen=True, eq=False)
class PairCounts(Saved):
    """Pairs counted within seeds beside those expected by chance, one entry per question that was asked of them."""

    pairs: Tensor  # (k,) int64, observed
    null_mean: Tensor  # (k,) float64, exact mean of the null
    ratio: Tensor  # (k,) float64, pairs / null_mean; nan where both are 0
    interval: Tensor  # (k, 2) float64, 95 % interval of the ratio, bootstrap over seeds
    p_more: Tensor  # (k,) float64, one-sided: more pairs than the null
    p_fewer: Tensor  # (k,) float64, one-sided: fewer
    null_pairs: Tensor  # (k, num_resamples) int64, pairs in each draw of the null

    def _rows(self) -> list[str]:
        columns = (self.pairs, self.null_mean, self.ratio, self.interval)
        return [
            f"{pairs} against {mean:.1f}, ratio {ratio:.2f} ({low:.2f}–{high:.2f})"
            for pairs, mean, ratio, (low, high) in zip(*(column.tolist() for column in columns), strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Slots:
    """Slots for values, ordered by stratum and seed, and the pairs of slots within one seed."""

    seeds: np.ndarray  # (n,) 0 ... num_seeds - 1, ascending
    strata: np.ndarray  # (num_seeds,) 0, 1, ..., ascending
    left: np.ndarray  # (pairs,) index of a slot
    right: np.ndarray  # (pairs,)

    @property
    def num_seeds(self) -> int:
        """Seeds with at least one value."""
        return len(self.strata)

    @property
    def seed_pairs(self) -> np.ndarray:
        """(num_seeds,) pairs of slots of each seed."""
        return np.bincount(self.seeds[self.left], minlength=self.num_seeds)


def slots_of(seeds: np.ndarray, strata: np.ndarray) -> tuple[Slots, np.ndarray]:
    """Slots for values of the given seeds (n,), with strata (all seeds,), and the order (n,) that sorts values so."""
    order = np.lexsort((seeds, strata[seeds]))
    names, first, sizes = np.unique(seeds[order], return_index=True, return_counts=True)
    by_start = np.argsort(first)  # seeds in the order in which they come
    names, first, sizes = names[by_start], first[by_start], sizes[by_start]
    left, right = [], []
    for start, size in zip(first, sizes, strict=True):
        i, j = np.triu_indices(size, 1)
        left.append(start + i)
        right.append(start + j)
    _, labels = np.unique(strata[names], return_inverse=True)
    return Slots(np.repeat(np.arange(len(names)), sizes), labels, np.concatenate(left), np.concatenate(right)), order


def check_resampling(births: Births, num_resamples: int, seed: int, strata: Any = None) -> np.ndarray:
    """(seeds,) labels 0, 1, ... of the strata, all 0 for None; or an error about what all these tests are given."""
    num_seeds = len(check_births(births).step)
    check_count("num_resamples", num_resamples, remedy="2,000 resolve p-values down to 0.0005.")
    check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    labels = np.asarray(strata.detach().cpu() if isinstance(strata, Tensor) else strata)
    if strata is None:
        return np.zeros(num_seeds, dtype=np.int64)
    if labels.shape != (num_seeds,):
        expected = f"({num_seeds},), one label per seed"
        remedy = "Pass None for one stratum."
        raise ValueError(argument_message("strata", f"has shape {labels.shape}", expected, remedy))
    return np.asarray(np.unique(labels, return_inverse=True)[1])


def check_pairs(slots: Slots, what: str = "births", *, needed: str = "two", num_seeds: int = 2) -> None:
    """At least one pair, and seeds to permute between; or an error."""
    if not len(slots.left) or slots.num_seeds < num_seeds:
        received = f"has {len(slots.left)} pairs of {what} in {slots.num_seeds} seed{'s' * (slots.num_seeds != 1)}"
        expected = f"at least {num_seeds} with births, one of them with {needed}"
        remedy = "Train more seeds, longer, or lower the threshold."
        raise ValueError(argument_message("births", received, expected, remedy))


def shuffles(slots: Slots, codes: np.ndarray, num: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`num` permutations of the codes (n,) within each stratum, in chunks (chunk, n)."""
    stratum = slots.strata[slots.seeds]  # ascending, so that sorting by stratum + u permutes within strata
    for size in chunks(slots, num):
        yield codes[np.argsort(rng.random((size, len(codes))) + stratum, axis=1)]


def chunks(slots: Slots, num: int) -> Iterator[int]:
    """Sizes that sum to `num`, each small enough for the memory that CHUNK allows."""
    largest = max(1, CHUNK // max(1, len(slots.left), len(slots.seeds)))
    for start in range(0, num, largest):
        yield min(largest, num - start)


def count_draws(slots: Slots, draws: Iterator[np.ndarray], tables: np.ndarray) -> np.ndarray:
    """(k, num_resamples) pairs that count, for draws of codes that come in chunks (chunk, n)."""
    width = tables.shape[1]
    flat = tables.reshape(len(tables), -1)
    counted = []
    for codes in draws:
        cells = codes[:, slots.left] * width + codes[:, slots.right]  # (chunk, pairs)
        counted.append(np.stack([np.count_nonzero(table[cells], axis=1) for table in flat]))
    return np.concatenate(counted, axis=1)


def p_values(observed: Any, draws: np.ndarray, slack: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """One-sided p-values (more, fewer) of draws (..., num) as extreme as `observed`, up to `slack`."""
    num = draws.shape[-1]
    more, fewer = (draws >= observed - slack).sum(-1), (draws <= observed + slack).sum(-1)
    return (1 + more) / (1 + num), (1 + fewer) / (1 + num)


def against_shuffling(
    slots: Slots, codes: np.ndarray, tables: np.ndarray, num_resamples: int, rng: np.random.Generator
) -> PairCounts:
    """Pairs that count, for values given as rows `codes` (n,) of symmetric tables (k, u, u), against permutations."""
    draws = count_draws(slots, shuffles(slots, codes, num_resamples, rng), tables)
    weights = resampled_seeds(slots, num_resamples, rng)
    within = pairs_by_seed(slots, codes, tables)
    expected = _expected(slots, codes, tables, within, np.vstack([np.ones(slots.num_seeds), weights]))
    return pair_counts(within, weights, expected[:, 0], expected[:, 1:], draws)


def triples_against_shuffling(
    slots: Slots, times: np.ndarray, windows: np.ndarray, num_resamples: int, rng: np.random.Generator
) -> PairCounts:
    r"""Triples of times (n,) of one seed, at most a window apart, against permutations; counted as pairs are.

    A triple of slots of one seed holds every triple of values of its stratum equally often, so that the mean is the
    number of such slots times the share of all triples of values that lie within the window.
    """
    drawn = [_triples(slots, each, windows).sum(-1) for each in shuffles(slots, times, num_resamples, rng)]
    weights = resampled_seeds(slots, num_resamples, rng)
    within = _triples(slots, times[None], windows)[:, 0]  # (k, seeds)
    sizes = np.bincount(slots.seeds)
    of_seed, shares = sizes * (sizes - 1) * (sizes - 2) / 6, np.zeros((len(windows), slots.num_seeds))
    for stratum in np.unique(slots.strata):
        members = slots.strata == stratum
        values = np.sort(times[members[slots.seeds]])
        n = len(values)
        for row, window in zip(shares, windows, strict=True):
            after = np.searchsorted(values, values + _with_rounding(window, times), side="right") - np.arange(n) - 1
            row[members] = (after * (after - 1) / 2).sum() / max(1.0, n * (n - 1) * (n - 2) / 6)
    expected = shares * of_seed
    return pair_counts(within, weights, expected.sum(1), expected @ weights.T, np.concatenate(drawn, axis=1))


def _triples(slots: Slots, times: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """(k, draws, seeds) triples at most a window apart, of times (draws, n): each by its first, with two after it."""
    sizes = np.bincount(slots.seeds)
    place = np.arange(len(slots.seeds)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each value in its seed
    rows = np.full((len(times), slots.num_seeds, sizes.max()), np.inf)
    rows[:, slots.seeds, place] = times
    rows.sort(-1)
    found = np.zeros((len(windows), len(times), slots.num_seeds))
    for i in range(rows.shape[-1] - 2):
        first = np.where(np.isfinite(rows[..., i]), rows[..., i], -np.inf)  # of a seed that has fewer: none is near
        for row, window in zip(found, windows, strict=True):
            after = (rows[..., i + 1 :] <= (first + _with_rounding(window, times))[..., None]).sum(-1)
            row += after * (after - 1) / 2
    return found


def _with_rounding(window: float, times: np.ndarray) -> float:
    """A window with room for rounding of the times."""
    return float(window + 1e-9 * np.abs(times).max(initial=1.0))


def pair_counts(
    within: np.ndarray, weights: np.ndarray, null_mean: np.ndarray, null_again: np.ndarray, draws: np.ndarray
) -> PairCounts:
    """From pairs by seed (k, seeds), bootstrap weights (num, seeds), means (k,) and (k, num), and draws (k, num)."""
    observed = within.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, again = observed / null_mean, within @ weights.T / null_again
    interval = np.full((len(observed), 2), np.nan)
    for row, values, count, mean in zip(interval, again, observed, null_mean, strict=True):
        known = values[~np.isnan(values)]  # 0 / 0 where a resample has no pair to compare
        if len(known):
            row[:] = np.quantile(known, (0.025, 0.975), method="lower")  # "lower" takes infinite ratios too
        if count < _FEW and mean > 0:  # resampling a few pairs, or none, shows too little spread: Garwood's interval
            low = gammaincinv(count, 0.025) if count else 0.0
            row[:] = np.fmin(row[0], low / mean), np.fmax(row[1], gammaincinv(count + 1, 0.975) / mean)
    more, fewer = p_values(observed[:, None], draws)
    arrays = (observed.astype(np.int64), null_mean, ratio, interval, more, fewer, draws.astype(np.int64))
    return PairCounts(*map(torch.from_numpy, arrays))


def resampled_seeds(slots: Slots, num: int, rng: np.random.Generator) -> np.ndarray:
    """(num, seeds): how often each seed is drawn when the seeds of each stratum are drawn with replacement."""
    weights = np.zeros((num, slots.num_seeds))
    for stratum in np.unique(slots.strata):
        members = np.flatnonzero(slots.strata == stratum)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=num)
    return weights


def pairs_by_seed(slots: Slots, codes: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """(k, seeds) pairs that count."""
    hits = tables[:, codes[slots.left], codes[slots.right]]  # (k, pairs)
    owners = slots.seeds[slots.left]
    return np.stack([np.bincount(owners, weights=row, minlength=slots.num_seeds) for row in hits])


def _expected(
    slots: Slots, codes: np.ndarray, tables: np.ndarray, within: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    r"""(k, num) pairs expected under permutation, for seeds weighted by `weights` (num, seeds).

    In one stratum with n values, M pairs of slots within seeds and C = n (n - 1) / 2 pairs in all, the mean is
    M ((1 - M/C) q + (M/C) W/M), with q the share of pairs *across* seeds that count and W the pairs within seeds that
    do. Written so, a seed drawn twice is not compared with its own copy, which would look like perfect pairing. Where
    one seed was drawn all the time, q is that of the stratum.
    """
    sizes, pairs = np.bincount(slots.seeds), slots.seed_pairs
    held = np.zeros((slots.num_seeds, tables.shape[1]))  # (seeds, u): how often a seed holds each value
    np.add.at(held, (slots.seeds, codes), 1.0)
    expected = np.zeros((len(tables), len(weights)))
    for stratum in np.unique(slots.strata):
        members = np.flatnonzero(slots.strata == stratum)
        w, n, m = weights[:, members], sizes[members], pairs[members]
        share = m.sum() / max(1.0, n.sum() * (n.sum() - 1) / 2)  # of all pairs, those within a seed
        across = (w @ n) ** 2 - (w**2) @ (n**2)  # (num,), twice the pairs across seeds
        for k, table in enumerate(tables):
            close = held[members] @ table @ held[members].T  # (members, members)
            np.fill_diagonal(close, 0.0)
            close_across = ((w @ close) * w).sum(1)
            of_all = close.sum() / max(1.0, n.sum() ** 2 - (n**2).sum())
            q = np.where(across > 0, close_across / np.maximum(across, 1.0), of_all)
            expected[k] += (1 - share) * (w @ m) * q + share * (w @ within[k, members])
    return expected
