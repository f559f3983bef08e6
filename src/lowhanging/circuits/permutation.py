"""How many pairs within one seed would there be, if seeds had nothing to do with it?

A pair counts when a table says so for its two values: times at most 20 steps apart, or frequencies of which one is the
double of the other. Chance is what permuting the values across seeds gives: it keeps each seed's number of values and
their common distribution, and breaks only what ties values of one seed together (the shift predictor of spike trains).
Its mean is exact: a pair of slots holds every pair of values of its stratum equally often. The draws are for p-values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from lowhanging.errors import argument_message

CHUNK = 2_000_000  # numbers held at a time while counting pairs in shuffled values


_FEW = 10  # pairs below which an interval is at least that of a Poisson count


@dataclass(frozen=True, eq=False)
class Slots:
    """Places for values, ordered by stratum and seed, and the pairs of places within one seed."""

    seeds: np.ndarray  # (n,) 0 ... num_seeds - 1, ascending
    strata: np.ndarray  # (num_seeds,) 0, 1, ..., ascending
    left: np.ndarray  # (pairs,) index of a place
    right: np.ndarray  # (pairs,)

    @property
    def num_seeds(self) -> int:
        """Seeds with at least one value."""
        return len(self.strata)


@dataclass(frozen=True, eq=False)
class Excess:
    """What was counted beside chance, one entry per table."""

    observed: Tensor  # (k,) int64, pairs
    null_mean: Tensor  # (k,) float64, pairs expected by chance
    ratio: Tensor  # (k,) float64, observed / null_mean; nan where both are 0
    interval: Tensor  # (k, 2) float64, 95 %, bootstrap over seeds
    p_more: Tensor  # (k,) float64, one-sided
    p_fewer: Tensor  # (k,) float64, one-sided
    null_pairs: Tensor  # (k, num_resamples) int64, pairs in each draw


def slots(seeds: np.ndarray, strata: np.ndarray) -> tuple[Slots, np.ndarray]:
    """Places for values of the given seeds (n,), with strata (all seeds,), and the order (n,) that sorts values so."""
    order = np.lexsort((seeds, strata[seeds]))
    names, first, sizes = np.unique(seeds[order], return_index=True, return_counts=True)
    ranks = np.argsort(first)  # seeds in the order in which they come
    names, first, sizes = names[ranks], first[ranks], sizes[ranks]
    left, right = [], []
    for start, size in zip(first, sizes, strict=True):
        i, j = np.triu_indices(size, 1)
        left.append(start + i)
        right.append(start + j)
    _, labels = np.unique(strata[names], return_inverse=True)
    places = np.repeat(np.arange(len(names)), sizes)
    return Slots(places, labels, np.concatenate(left), np.concatenate(right)), order


def strata_of(strata: Any, num_seeds: int) -> np.ndarray:
    """(num_seeds,) labels 0, 1, ... of the strata; all 0 for None; or an error."""
    if strata is None:
        return np.zeros(num_seeds, dtype=np.int64)
    labels = np.asarray(strata.detach().cpu() if isinstance(strata, Tensor) else strata)
    if labels.shape != (num_seeds,):
        received = f"has shape {labels.shape}"
        raise ValueError(
            argument_message("strata", received, f"({num_seeds},), one label per seed", "Pass strata=None for one.")
        )
    return np.asarray(np.unique(labels, return_inverse=True)[1])


def count(places: Slots, codes: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """(k,) pairs that count, for values given as rows `codes` (n,) of symmetric tables (k, u, u)."""
    return np.asarray(tables[:, codes[places.left], codes[places.right]].sum(1))


def count_draws(places: Slots, draws: Iterator[np.ndarray], tables: np.ndarray) -> np.ndarray:
    """(k, num_resamples) pairs that count, for draws of codes that come in chunks (chunk, n)."""
    width = tables.shape[1]
    flat = tables.reshape(len(tables), -1)
    counted = []
    for codes in draws:
        cells = codes[:, places.left] * width + codes[:, places.right]  # (chunk, pairs)
        counted.append(np.stack([np.count_nonzero(table[cells], axis=1) for table in flat]))
    return np.concatenate(counted, axis=1)


def shuffles(places: Slots, codes: np.ndarray, num: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`num` permutations of the codes within each stratum, in chunks (chunk, n)."""
    stratum = places.strata[places.seeds]  # ascending, so that sorting by stratum + u permutes within strata
    for size in chunks(places, num):
        yield codes[np.argsort(rng.random((size, len(codes))) + stratum, axis=1)]


def chunks(places: Slots, num: int) -> Iterator[int]:
    """Sizes that sum to `num`, each small enough for the memory that CHUNK allows."""
    largest = max(1, CHUNK // max(1, len(places.left), len(places.seeds)))
    for start in range(0, num, largest):
        yield min(largest, num - start)


def against_shuffling(
    places: Slots, codes: np.ndarray, tables: np.ndarray, num_resamples: int, rng: np.random.Generator
) -> Excess:
    """Pairs that count, against values shuffled across the seeds of each stratum."""
    observed = count(places, codes, tables)
    draws = count_draws(places, shuffles(places, codes, num_resamples, rng), tables)
    weights = resampled_seeds(places, num_resamples, rng)
    null_mean = _expected(places, codes, tables, np.ones((1, places.num_seeds)))[:, 0]
    null_again = _expected(places, codes, tables, weights)
    return excess(observed, null_mean, draws, weighted_pairs(places, codes, tables, weights), null_again)


def excess(
    observed: np.ndarray, null_mean: np.ndarray, draws: np.ndarray, pairs_again: np.ndarray, null_again: np.ndarray
) -> Excess:
    """Ratio, interval and p-values from the counts (k,), the draws (k, num) and the bootstrap's counts (k, num)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, again = observed / null_mean, pairs_again / null_again
    interval = np.full((len(observed), 2), np.nan)
    for row, values in zip(interval, again, strict=True):
        known = values[~np.isnan(values)]  # 0 / 0 where a resample has no pair to compare
        if len(known):
            row[:] = np.quantile(known, (0.025, 0.975), method="lower")  # "lower" takes infinite ratios too
    for row, count, mean in zip(interval, observed, null_mean, strict=True):
        if count < _FEW and mean > 0:  # resampling a few pairs, or none, shows too little spread: Garwood's interval
            low = gammaincinv(count, 0.025) if count else 0.0
            row[:] = np.fmin(row[0], low / mean), np.fmax(row[1], gammaincinv(count + 1, 0.975) / mean)
    num = draws.shape[1]
    return Excess(
        observed=torch.from_numpy(observed.astype(np.int64)),
        null_mean=torch.from_numpy(null_mean),
        ratio=torch.from_numpy(ratio),
        interval=torch.from_numpy(interval),
        p_more=torch.from_numpy((1 + (draws >= observed[:, None]).sum(1)) / (1 + num)),
        p_fewer=torch.from_numpy((1 + (draws <= observed[:, None]).sum(1)) / (1 + num)),
        null_pairs=torch.from_numpy(draws.astype(np.int64)),
    )


def resampled_seeds(places: Slots, num: int, rng: np.random.Generator) -> np.ndarray:
    """(num, seeds): how often each seed is drawn when the seeds of each stratum are drawn with replacement."""
    weights = np.zeros((num, places.num_seeds))
    for stratum in np.unique(places.strata):
        members = np.flatnonzero(places.strata == stratum)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=num)
    return weights


def weighted_pairs(places: Slots, codes: np.ndarray, tables: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(k, num) pairs that count, each seed as often as `weights` (num, seeds) says."""
    return np.stack([weights @ within for within in _pairs_by_seed(places, codes, tables)])


def slot_pairs(places: Slots) -> np.ndarray:
    """(seeds,) pairs of places of each seed, whether they count or not."""
    return np.bincount(places.seeds[places.left], minlength=places.num_seeds)


def _pairs_by_seed(places: Slots, codes: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """(k, seeds) pairs that count."""
    hits = tables[:, codes[places.left], codes[places.right]]  # (k, pairs)
    owners = places.seeds[places.left]
    return np.stack([np.bincount(owners, weights=row, minlength=places.num_seeds) for row in hits])


def _expected(places: Slots, codes: np.ndarray, tables: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""(k, num) pairs expected under shuffling, for seeds weighted by `weights` (num, seeds).

    In one stratum with n values, M pairs of places within seeds and C = n (n - 1) / 2 pairs in all, the mean is
    M ((1 - M/C) q + (M/C) W/M), with q the share of pairs *across* seeds that count and W the pairs within seeds that
    do. Written so, a seed drawn twice is not compared with its own copy, which would look like perfect pairing. Where
    one seed was drawn all the time, q is that of the stratum.
    """
    within = _pairs_by_seed(places, codes, tables)  # (k, seeds)
    sizes, pairs = np.bincount(places.seeds), slot_pairs(places)
    held = np.zeros((places.num_seeds, tables.shape[1]))  # (seeds, u): how often a seed holds each value
    np.add.at(held, (places.seeds, codes), 1.0)
    expected = np.zeros((len(tables), len(weights)))
    for stratum in np.unique(places.strata):
        members = np.flatnonzero(places.strata == stratum)
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
