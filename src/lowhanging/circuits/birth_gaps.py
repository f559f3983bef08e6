"""Is a second circuit born only after the first one has risen, and in more seeds than chance makes?

Births of one seed never fall on one instant, so that "the second is later" says nothing by itself. What one circle
takes to rise is the scale: two births less than that apart are two circles that rose together, for most of the way.

Chance deals the births out across seeds, each with the rise time it had. That keeps each seed's number of births and
the burst that all seeds share, and breaks what ties births of one seed together. A share above it says that one circuit
delays the next; a share like it says that births of one seed lie as they would if they knew nothing of each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowhanging.circuits.births import Births

NUM_DRAWS = 4000


def birth_gaps(found: Births, started_low: np.ndarray, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> dict[str, Any]:
    """How the first two births of each seed lie to each other, beside births dealt out across seeds.

    A seed is *apart* if its second birth is later than its first by more than the first circle's own rise time; it is
    *strictly* so if the second circle only began to rise once the first had risen. Where a rise began before the first
    log, its length is not known: seeds whose answer needs it are left out, in the data and in the draws.

    Args:
        found: births over many seeds.
        started_low: (seeds, blocks) bool, at the first log the score was at most half the threshold: the rise of what
            formed there was seen from its beginning.
        num_draws: of the null.
        seed: of the draws.

    Returns:
        Numbers of seeds, medians in steps, and for both shares the null's mean, 95 % range and one-sided p-values.
    """
    owners, blocks = np.nonzero(found.is_dated.numpy())
    times, rises = found.step.numpy()[owners, blocks], found.rise_time.numpy()[owners, blocks].copy()
    is_seen = started_low[owners, blocks] | (rises < times - float(found.steps[0]))
    rises[~is_seen] = np.nan
    counts = np.bincount(owners, minlength=len(found.step))
    counts = counts[counts > 0]
    observed = _shares(times[None], rises[None], counts)
    rng = np.random.default_rng(seed)
    orders = np.argsort(rng.random((num_draws, len(times))), axis=1)
    drawn = _shares(times[orders], rises[orders], counts)
    gap, rise = _first_gaps(times[None], rises[None], counts)[:2]
    return {
        "seeds_with_two": int((counts > 1).sum()),
        "gap": float(np.median(gap)) if gap.size else None,
        "rise": float(np.nanmedian(rise)) if np.isfinite(rise).any() else None,  # of the first circle
        **{name: _against(observed[name], drawn[name], found.step.shape[0]) for name in ("apart", "strictly")},
    }


def _first_gaps(times: np.ndarray, rises: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(draws, seeds with two) steps from the first birth to the second, and the rise times of both.

    Values (draws, n) stand seed by seed, `counts` (seeds,) of them each.
    """
    gaps, firsts, seconds = [], [], []
    for start, count in zip(np.cumsum(counts) - counts, counts, strict=True):
        if count < 2:
            continue
        own = slice(start, start + count)
        order = np.argsort(times[:, own], axis=1, kind="stable")[:, :2]
        at = np.take_along_axis(times[:, own], order, 1)
        rise = np.take_along_axis(rises[:, own], order, 1)
        gaps.append(at[:, 1] - at[:, 0])
        firsts.append(rise[:, 0])
        seconds.append(rise[:, 1])
    if not gaps:
        return (np.empty((len(times), 0)),) * 3
    return np.stack(gaps, 1), np.stack(firsts, 1), np.stack(seconds, 1)


def _shares(times: np.ndarray, rises: np.ndarray, counts: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (draws,) seeds that are so, and (draws,) seeds of which it is known."""
    gaps, first, second = _first_gaps(times, rises, counts)
    named = {"apart": (gaps > first, first), "strictly": (gaps >= second, second)}
    return {name: (is_so.sum(1), np.isfinite(rise).sum(1)) for name, (is_so, rise) in named.items()}


def _against(
    observed: tuple[np.ndarray, np.ndarray], drawn: tuple[np.ndarray, np.ndarray], seeds: int
) -> dict[str, Any]:
    """A count of seeds, of how many, and where its share lies among those of the draws."""
    count, num = int(observed[0][0]), int(observed[1][0])
    shares = drawn[0] / np.maximum(drawn[1], 1)
    share = count / max(num, 1)
    slack = 0.5 / max(seeds, 1) ** 2  # two different shares of at most so many seeds differ by more
    more, fewer = int((shares >= share - slack).sum()), int((shares <= share + slack).sum())
    low, high = np.quantile(shares, [0.025, 0.975])
    return {
        "count": count,
        "num": num,
        "null_mean": float(shares.mean()),
        "null_range": [float(low), float(high)],
        "p_more": (1 + more) / (1 + len(shares)),
        "p_fewer": (1 + fewer) / (1 + len(shares)),
    }
