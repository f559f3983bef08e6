"""Tests whether circuits of one run form closer together than chance, and the power of these tests.

All seeds learn at about the same time, so births crowd together whether or not one circuit helps the next: against a
constant rate (`null="poisson"`) any burst looks like pairing. The question is about *one run*, and so is the null:
`null="shuffle"` deals the observed births out to other seeds, which keeps the burst and each seed's number of births.
Seeds that are early or late as a whole survive that too (their births lie together without one causing another):
`null="clock"` compares the times since each seed's first birth, between seeds whose first births lie near: over all
seeds it would reject too often, as births that follow a late first one have less of the burst left to spread over.

A test that does not reject says little before it is known what it would have rejected. So `pairing_power` plants a
coupling of known strength into births that have none, and counts the share of such runs that the test rejects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lowhanging.circuits.births import Births
from lowhanging.circuits.permutation import (
    PairCounts,
    Slots,
    against_shuffling,
    check_pairs,
    check_resampling,
    chunks,
    count_draws,
    pair_counts,
    pairs_by_seed,
    resampled_seeds,
    shuffles,
    slots_of,
    triples_against_shuffling,
)
from lowhanging.errors import (
    argument_message,
    check_choice,
    check_count,
    check_real,
    warn,
)
from lowhanging.io import Saved

Null = Literal["shuffle", "clock", "poisson"]
LABELS = {
    "shuffle": "pairs of births, against births shuffled across seeds",
    "clock": "pairs of later births, against times since the first birth shuffled across seeds that began alike",
    "poisson": "burst shared by all seeds, against a constant rate (for contrast)",
}
CLOCK_GROUP = 8  # seeds with neighbouring first births, between which the clock null permutes


@dataclass(frozen=True, eq=False, repr=False)
class PairingTest(PairCounts):
    """Pairs of births (or triples) of one seed at most a window apart, against a null, for every declared window."""

    windows: Tensor  # (k,) float64, steps
    null: str  # "shuffle" | "clock" | "poisson"
    size: int  # births that are counted together: 2, pairs, or 3, triples, which then stand in `pairs`
    num_births: int  # that could be paired
    num_seeds: int  # with at least one of them
    rise_time: float  # steps, median of the births

    @property
    def label(self) -> str:
        """What the ratio says, for titles."""
        return LABELS[self.null].replace("pairs", "pairs" if self.size == 2 else "triples", 1)

    def __repr__(self) -> str:
        columns = (self.windows.tolist(), self._rows(), self.p_more.tolist())
        rows = [f"{window:g} steps: {row}, p {p:.2g}" for window, row, p in zip(*columns, strict=True)]
        name = "Contrast" if self.null == "poisson" else "PairingTest"
        return f"{name}({self.label}; {self.num_births} births in {self.num_seeds} seeds; {'; '.join(rows)})"


def pairing_test(
    births: Births,
    windows: Sequence[float] = (10, 20, 50),
    *,
    null: Null = "shuffle",
    size: Literal[2, 3] = 2,
    strata: Any | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> PairingTest:
    r"""Test whether births of one seed are closer together than births dealt out across seeds.

    The statistic is the number of pairs of births in the same seed with |t_i - t_j| <= w, every pair once, for each
    window w that the caller declares; all are reported, none is picked. With size=3 it is the number of triples of
    births in the same seed, the last at most w after the first; where pairs are more than by chance, triples are too.
    Births from before the first log have no time
    and are left out. Nulls:

    * "shuffle": births are permuted across seeds. Each seed keeps its number of births, all seeds the common rate
      profile. Exact if, under the null, times are exchangeable between seeds; births of a seed that is late as a whole
      lie together and count as pairs.
    * "clock": the first birth of every seed is taken as its time 0 and left out; the times since then of the later
      births are permuted between seeds whose first births are neighbours (groups of about 8 seeds). Only pairs of
      later births count: those with the first birth are the same in every draw. Blind, therefore, to a first and a
      second birth that come together. Approximate, at level .05: it rejected 5 to 7 % of simulated independent bursts,
      also with seeds shifted as a whole where the burst has a long tail (lognormal); but 16 to 18 % where the burst was
      normal and the shifts as wide as the burst (mean ratio 1.09), and about half where they were four times as wide
      (1.16). A small excess under it alone is therefore no evidence.
    * "poisson": each seed's births fall anywhere in the logged time, at a constant rate given their number, and are
      seen at the next log. Rejected by any burst that the seeds share, so never evidence of pairing: for contrast.

    The mean of the null is exact. p_more = (1 + #{draws >= pairs}) / (1 + num_resamples), p_fewer with <=. The interval
    is the percentile bootstrap over seeds of observed / expected.

    Args:
        births: from `births(scores, steps)`.
        windows: steps, positive, each declared before looking.
        null: "shuffle", "clock" or "poisson".
        size: 2, pairs, or 3, triples (not with "poisson").
        strata: (seeds,) labels; permute only between seeds of one label (batches of runs, numbers of births ...).
        num_resamples: draws of the null, and of the bootstrap.
        seed: of both; the global random state is not used.

    Returns:
        PairingTest, one entry per window.

    Raises:
        ValueError, TypeError: unknown null, windows that are not positive, fewer than two births with a time, no seed
            with two (three for "clock"), only one seed with births.

    Warns:
        UserWarning: a window is shorter than the median rise time (births can't be told apart to within it), or than
            the spacing of the logs (only births at one log are counted).

    Cost:
        O(num_resamples x pairs of births): about 0.2 s for 64 seeds x 7 blocks and 2,000 resamples.

    Source:
        Perkel, Gerstein & Moore (1967), "Neuronal spike trains and stochastic point processes II", for shuffling;
        Brody (1999), "Correlations without synchrony", for what it can't exclude; Phipson & Smyth (2010),
        "Permutation p-values should never be zero".
    """
    labels = check_resampling(births, num_resamples, seed, strata)
    check_choice("null", null, tuple(LABELS))
    check_count("size", size, minimum=2, maximum=3, remedy="2 counts pairs, 3 triples.")
    lengths = check_lengths("windows", windows)
    if null == "poisson" and size == 3:
        remedy = "Use null='shuffle' or 'clock'."
        raise ValueError(argument_message("size", "is 3 with null='poisson'", "2: pairs only", remedy))
    if null == "poisson" and strata is not None:
        received = "is given with null='poisson', which permutes nothing"
        raise ValueError(argument_message("strata", received, "None", "Leave it out, or use null='shuffle'."))
    times, owners = dated_births(births)
    rise_time = warn_if_blurred("windows", lengths, births)
    if null == "clock":
        times, owners, labels = _since_first(times, owners, labels)
    slots, order = slots_of(owners, labels)
    rng = np.random.default_rng(seed)
    if null == "poisson":
        check_pairs(slots, num_seeds=1)
        counted = _against_poisson(births, slots, times[order], lengths, num_resamples, rng)
    else:
        later = null == "clock"
        what, numbers = "births after the first" if later else "births", ("two", "three", "four")
        check_pairs(slots, what, needed=numbers[size - 2 + later])
        if size == 3 and not (np.bincount(slots.seeds) >= 3).any():
            received, expected = f"has no seed with three {what}", f"at least one with {numbers[size - 2 + later]}"
            raise ValueError(argument_message("births", received, expected, "Train more seeds, or count pairs."))
        if size == 3:
            counted = triples_against_shuffling(slots, times[order], lengths, num_resamples, rng)
        else:
            unique, codes = np.unique(times[order], return_inverse=True)
            counted = against_shuffling(slots, codes, close_tables(unique, lengths), num_resamples, rng)
    return PairingTest(
        **vars(counted), windows=torch.from_numpy(lengths), null=null, size=size, num_births=len(times),
        num_seeds=slots.num_seeds, rise_time=rise_time,
    )  # fmt: skip


def dated_births(births: Births) -> tuple[np.ndarray, np.ndarray]:
    """(n,) times and (n,) seeds of the births after the first log, at least two of them, or an error."""
    owners, blocks = np.nonzero(births.is_dated.numpy())
    if len(owners) < 2:
        left_out = int(births.is_left_censored.sum())
        received = f"holds {len(owners)} birth{'s' * (len(owners) != 1)} with a time"
        received += f" ({left_out} formed before the first log)" if left_out else ""
        remedy = "Train more seeds, longer, or lower the threshold."
        raise ValueError(argument_message("births", received, "at least 2", remedy))
    return births.step.numpy()[owners, blocks], owners


def check_lengths(argument: str, values: Any, *, may_be_zero: bool = False) -> np.ndarray:
    """(k,) positive (or not negative) numbers of steps, k >= 1, or an error."""
    remedy = "Pass positive numbers of steps, such as (10, 20, 50)."
    is_row = isinstance(values, Sequence | np.ndarray | Tensor) and getattr(values, "ndim", 1) == 1
    lengths = list(values) if is_row else []
    if not lengths or isinstance(values, str):
        raise ValueError(argument_message(argument, f"is {values!r}", "a sequence of at least one number", remedy))
    numbers = [value.item() if isinstance(value, Tensor | np.generic) else value for value in lengths]
    for i, number in enumerate(numbers):
        check_real(f"{argument}[{i}]", number, minimum=0.0, exclusive=not may_be_zero, remedy=remedy)
    return np.array(numbers, dtype=np.float64)


def warn_if_blurred(argument: str, lengths: np.ndarray, births: Births) -> float:
    """Median rise time of the births, with a warning if it or the spacing of the logs exceeds one of the lengths."""
    rise_time = float(np.median(births.rise_time.numpy()[births.is_dated.numpy()]))
    spacing = float(np.diff(births.steps.numpy()).min())
    for amount, what in ((rise_time, "the median rise time of circuits"), (spacing, "the spacing of the logs")):
        short = [f"{length:g}" for length in lengths if length < amount]
        if short:
            received = f"holds {', '.join(short)}, shorter than {what} ({amount:g} steps)"
            remedy = "Births can't be told apart to within so short a time: read only the longer ones."
            message = argument_message(argument, received, f"at least {amount:g} steps", remedy)
            warn(message)
    return rise_time


def close_tables(times: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """(k, u, u) bool: at most a window apart, with room for rounding."""
    gaps = np.abs(times[:, None] - times)
    return np.asarray(gaps <= windows[:, None, None] + 1e-9 * np.abs(times).max(initial=1.0))


def _since_first(
    times: np.ndarray, owners: np.ndarray, strata: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(m,) times since the first birth of the same seed and (m,) seeds of all births but the first; (seeds,) groups."""
    order = np.lexsort((times, owners))
    times, owners = times[order], owners[order]
    is_first = np.append(True, np.diff(owners) != 0)
    later = ~is_first
    first = np.full(len(strata), np.inf)
    first[owners[is_first]] = times[is_first]
    groups, num_groups = np.zeros(len(strata), dtype=np.int64), 0
    for stratum in np.unique(strata):
        members = np.intersect1d(np.flatnonzero(strata == stratum), owners[later])
        members = members[np.argsort(first[members], kind="stable")]
        num_parts = max(1, round(len(members) / CLOCK_GROUP))
        groups[members] = num_groups + np.arange(len(members)) * num_parts // max(1, len(members))
        num_groups += num_parts
    return (times - first[owners])[later], owners[later], groups


def _against_poisson(
    births: Births, slots: Slots, times: np.ndarray, windows: np.ndarray, num_resamples: int, rng: np.random.Generator
) -> PairCounts:
    """Pairs against births anywhere in the logged time, each seed with its number of them."""
    seen = births.dated_steps.numpy()
    tables = close_tables(seen, windows)
    chance = np.append(0.0, np.diff(seen)) / (seen[-1] - seen[0])  # a birth between two logs is seen at the later
    edges = np.cumsum(chance)

    def draws() -> Iterator[np.ndarray]:
        for size in chunks(slots, num_resamples):
            yield np.searchsorted(edges[:-1], rng.random((size, len(times))), side="right")

    counted = count_draws(slots, draws(), tables)
    close = np.einsum("i,kij,j->k", chance, tables, chance)  # (k,), chance that two births are close
    weights = resampled_seeds(slots, num_resamples, rng)
    within = pairs_by_seed(slots, np.searchsorted(seen, times), tables)
    null_again = close[:, None] * (weights @ slots.seed_pairs)
    return pair_counts(within, weights, close * len(slots.left), null_again, counted)


@dataclass(frozen=True, eq=False, repr=False)
class PairingPower(Saved):
    """How often the shuffle test rejects when a share of births is planted beside another of the same seed."""

    power: float  # share of repeats with p_more <= level
    low: float  # 95 % Wilson interval of the power
    high: float
    ratio: float  # mean over repeats of the test's ratio; 1 without coupling
    coupling: float  # share of births that were moved
    window: float  # steps
    level: float
    num_repeats: int
    num_births: int
    num_seeds: int

    def __repr__(self) -> str:
        return (
            f"PairingPower({100 * self.power:.0f} % ({100 * self.low:.0f}–{100 * self.high:.0f}) at level"
            f" {self.level:g}, for {100 * self.coupling:g} % of {self.num_births} births in {self.num_seeds} seeds"
            f" moved to within {self.window:g} steps of another; mean ratio {self.ratio:.2f})"
        )


def pairing_power(
    births: Births,
    coupling: float = 0.2,
    *,
    window: float = 20.0,
    num_repeats: int = 200,
    num_resamples: int = 199,
    level: float = 0.05,
    strata: Any | None = None,
    seed: int = 0,
) -> PairingPower:
    r"""Power of `pairing_test(..., null="shuffle")` against a planted coupling, for runs like these.

    In each repeat the births are shuffled across seeds, which removes whatever coupling they have; then round(coupling
    x births) of them, drawn at random, are moved to a random log at most `window` steps from another birth of the same
    seed that stays where it is. One birth of each seed always stays. What the ratio comes to depends on the burst: with
    m pairs per birth and a share q of pairs close by chance, about 1 + coupling (1 - q) / (m q).

    Args:
        births: give the numbers of births per seed and their times.
        coupling: share of births moved, from 0 (the power is then the level, or a little less) to less than 1.
        window: steps, of the planted coupling and of the test.
        num_repeats: simulated data sets.
        num_resamples: draws of the null in each test.
        level: of the test.
        strata: (seeds,) labels; shuffle only between seeds of one label.
        seed: the global random state is not used.

    Returns:
        PairingPower: `power` with a Wilson interval (`low`, `high`), and the mean `ratio`.

    Raises:
        ValueError, TypeError: fewer than two births with a time, only one seed with births, more to move than can be,
            too few resamples for the level.

    Cost:
        `num_repeats` small pairing tests: about two seconds for 128 seeds x 7 blocks.
    """
    coupling = check_real("coupling", coupling, minimum=0.0, maximum=1.0, remedy="It is a share of births, such as .2.")
    width = check_lengths("window", [window])
    level = check_real("level", level, minimum=0.0, maximum=1.0, exclusive=True, remedy="Such as .05.")
    check_count("num_repeats", num_repeats, remedy="200 give a power to about .07.")
    needed = int(np.ceil(1 / level - 1e-9)) - 1
    remedy = f"With fewer no p-value is as small as level = {level:g}."
    check_count("num_resamples", num_resamples, minimum=needed, remedy=remedy)
    labels = check_resampling(births, num_resamples, seed, strata)
    times, owners = dated_births(births)
    slots, order = slots_of(owners, labels)
    num_moved, num_movable = round(coupling * len(times)), len(times) - slots.num_seeds
    if num_moved > num_movable or num_movable == 0 or slots.num_seeds < 2:
        received = f"is {coupling:g} of {len(times)} births in {slots.num_seeds} seed{'s' * (slots.num_seeds != 1)}"
        expected = f"at least two seeds, and at most {num_movable} births to move beside another of their seed"
        raise ValueError(argument_message("coupling", received, expected, "Move fewer, or train more seeds."))

    logs = births.dated_steps.numpy()
    codes, tables = np.searchsorted(logs, times[order]), close_tables(logs, width)
    rng = np.random.default_rng(seed)
    p_values, ratios = np.empty(num_repeats), np.empty(num_repeats)
    for repeat in range(num_repeats):
        shuffled = next(shuffles(slots, codes, 1, rng))[0]
        planted = _plant(shuffled, slots, tables[0], num_moved, rng)
        found = against_shuffling(slots, planted, tables, num_resamples, rng)
        p_values[repeat], ratios[repeat] = float(found.p_more[0]), float(found.ratio[0])
    from scipy.stats import binomtest  # half a second, not at every import

    rejected = int((p_values <= level).sum())
    interval = binomtest(rejected, num_repeats).proportion_ci(method="wilson")
    return PairingPower(
        power=rejected / num_repeats, low=float(interval.low), high=float(interval.high),
        ratio=float(np.nanmean(ratios)) if not np.isnan(ratios).all() else float("nan"),
        coupling=coupling, window=float(width[0]), level=level, num_repeats=num_repeats, num_births=len(times),
        num_seeds=slots.num_seeds,
    )  # fmt: skip


def _plant(codes: np.ndarray, slots: Slots, close: np.ndarray, num_moved: int, rng: np.random.Generator) -> np.ndarray:
    """The codes (n,) with `num_moved` of them moved close to another of the same seed that stays."""
    keys = rng.random(len(codes))
    number = np.empty(len(codes), dtype=np.int64)  # of each birth among those of its seed, in random order
    in_order = np.lexsort((keys, slots.seeds))
    starts = np.searchsorted(slots.seeds, np.arange(slots.num_seeds))
    number[in_order] = np.arange(len(codes)) - starts[slots.seeds]
    moved = rng.permutation(np.flatnonzero(number > 0))[:num_moved]
    stays = np.ones(len(codes), dtype=bool)
    stays[moved] = False
    same_seed = slots.seeds[moved][:, None] == slots.seeds  # (moved, n)
    parents = np.where(same_seed & stays, rng.random((len(moved), len(codes))), -1.0).argmax(1)
    near = close[codes[parents]].copy()  # (moved, logs)
    near[:, 0] = False  # a birth at the first log would have no time
    planted = codes.copy()
    planted[moved] = np.where(near, rng.random(near.shape), -1.0).argmax(1)
    return planted
