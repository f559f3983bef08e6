"""The gap between the first two births of a seed, compared with the time that a circuit takes to rise.

Births of one seed never fall on one instant, so that "the second is later" says nothing by itself: two births less than
one rise apart are two circuits that rose together for most of the way. Chance deals the births out across seeds, each
with the rise time it had, which keeps each seed's number of births and the burst that all seeds share.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowhanging.circuits.births import Births
from lowhanging.circuits.pairing import dated_births
from lowhanging.circuits.permutation import check_resampling, p_values, shuffles, slots_of
from lowhanging.errors import argument_message


def birth_gaps(births: Births, started_low: Any, *, num_resamples: int = 4000, seed: int = 0) -> dict[str, Any]:
    r"""Gaps between the first two births of each seed, beside births dealt out across seeds.

    With t_1 <= t_2 the first two births of a seed and r_1, r_2 their rise times, a seed is *apart* if t_2 - t_1 > r_1;
    it is *strictly* so if t_2 - t_1 >= r_2: the second circuit only began to rise once the first had risen. A share
    above that of the draws says that one circuit delays the next; one like it, that births of one seed lie as if they
    knew nothing of each other. p_more = (1 + #{draws >= share}) / (1 + num_resamples), p_fewer with <=.

    Args:
        births: from `births(scores, steps)`; those from before the first log are left out.
        started_low: (seeds, blocks) bool, at the first log the score was at most half the threshold. Where it was not,
            and no later log was that low, the rise time is not known, and a seed whose share needs it is left out, in
            the data and in the draws.
        num_resamples: draws of the null.
        seed: of the draws; the global random state is not used.

    Returns:
        "seeds_with_two"; "gap" and "rise", the median gap and the median rise time in steps, or None; and under "apart"
        and "strictly" the `count` of seeds that are so, the `num` of which it is known, the draws' `null_mean` and
        `null_range` (95 %) of the share, and its one-sided `p_more` and `p_fewer`.

    Raises:
        ValueError, TypeError: fewer than two births with a time, another shape of `started_low`.

    Source:
        Perkel, Gerstein & Moore (1967), "Neuronal spike trains and stochastic point processes II", for shuffling.
    """
    labels = check_resampling(births, num_resamples, seed)
    is_low = np.asarray(started_low, dtype=bool)
    if is_low.shape != tuple(births.step.shape):
        expected, remedy = f"that of births, {tuple(births.step.shape)}", "Pass scores[:, 0] <= births.threshold / 2."
        raise ValueError(argument_message("started_low", f"has shape {is_low.shape}", expected, remedy))
    times, owners = dated_births(births)
    is_dated = births.is_dated.numpy()
    rises = births.rise_time.numpy()[is_dated]
    rises[~is_low[is_dated] & (rises >= times - float(births.steps[0]))] = np.nan
    counts = np.unique(owners, return_counts=True)[1]
    slots, _ = slots_of(owners, labels)  # one stratum: births stay as they stand, seed by seed
    observed = np.arange(len(times))
    draws = shuffles(slots, observed, num_resamples, np.random.default_rng(seed))
    orders = np.concatenate([observed[None], *draws])
    gaps, first, second = _first_two(times[orders], rises[orders], counts)
    result: dict[str, Any] = {
        "seeds_with_two": int((counts > 1).sum()),
        "gap": float(np.median(gaps[0])) if gaps.size else None,
        "rise": float(np.nanmedian(first[0])) if np.isfinite(first[0]).any() else None,
    }
    slack = 0.5 / len(births.step) ** 2  # two different shares of at most so many seeds differ by more
    for name, is_so, rise in (("apart", gaps > first, first), ("strictly", gaps >= second, second)):
        count, num = is_so.sum(1), np.isfinite(rise).sum(1)
        share = count / np.maximum(num, 1)
        more, fewer = p_values(share[0], share[1:], slack)
        low, high = np.quantile(share[1:], [0.025, 0.975])
        result[name] = {
            "count": int(count[0]), "num": int(num[0]), "null_mean": float(share[1:].mean()),
            "null_range": [float(low), float(high)], "p_more": float(more), "p_fewer": float(fewer),
        }  # fmt: skip
    return result


def _first_two(times: np.ndarray, rises: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(draws, seeds with two) steps from the first birth to the second, and the rise times of both.

    Values (draws, n) stand seed by seed, `counts` (seeds,) of them each.
    """
    found = np.empty((3, len(times), int((counts > 1).sum())))
    starts = np.cumsum(counts) - counts
    for k, (start, count) in enumerate(zip(starts[counts > 1], counts[counts > 1], strict=True)):
        own = slice(start, start + count)
        order = np.argsort(times[:, own], axis=1, kind="stable")[:, :2]
        at, rise = (np.take_along_axis(values[:, own], order, 1) for values in (times, rises))
        found[:, :, k] = at[:, 1] - at[:, 0], rise[:, 0], rise[:, 1]
    return found[0], found[1], found[2]
