"""Would the pairing test have seen a coupling, had there been one?

A test that does not reject says little until one knows what it would have rejected. So a coupling of known strength is
planted into births that have none (the observed ones, shuffled across seeds: the same number of seeds, the same number
of births in each, the same burst), and the share of such runs that the test rejects is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowhanging.circuits.formation import Births, check_births
from lowhanging.circuits.pairing import check_lengths, close_tables, dated_births
from lowhanging.circuits.shuffling import Slots, against_shuffling, shuffles, slots, strata_of
from lowhanging.errors import check_count, check_real, explain
from lowhanging.results import load_result, save_result


@dataclass(frozen=True, eq=False, repr=False)
class PairingPower:
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

    def save(self, path: str | Path) -> Path:
        """Write to npz."""
        return save_result(self, path)

    @classmethod
    def load(cls, path: str | Path) -> PairingPower:
        """Read what `save` wrote."""
        return load_result(cls, path)


def pairing_power(
    births: Births,
    coupling: float = 0.2,
    window: float = 20.0,
    *,
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
    check_births(births)
    coupling = check_real("coupling", coupling, minimum=0.0, maximum=1.0, remedy="It is a share of births, such as .2.")
    width = check_lengths("window", [window])
    level = check_real("level", level, minimum=0.0, maximum=1.0, exclusive=True, remedy="Such as .05.")
    check_count("num_repeats", num_repeats, remedy="200 give a power to about .07.")
    needed = int(np.ceil(1 / level - 1e-9)) - 1
    remedy = f"With fewer no p-value is as small as level = {level:g}."
    check_count("num_resamples", num_resamples, minimum=needed, remedy=remedy)
    check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    times, owners = dated_births(births)
    places, order = slots(owners, strata_of(strata, len(births.step)))
    num_moved, num_movable = round(coupling * len(times)), len(times) - places.num_seeds
    if num_moved > num_movable or num_movable == 0 or places.num_seeds < 2:
        received = f"is {coupling:g} of {len(times)} births in {places.num_seeds} seed{'s' * (places.num_seeds != 1)}"
        expected = f"at least two seeds, and at most {num_movable} births to move beside another of their seed"
        raise ValueError(explain("coupling", received, expected, "Move fewer, or train more seeds."))

    logs = births.dated_steps.numpy()
    codes, tables = np.searchsorted(logs, times[order]), close_tables(logs, width)
    rng = np.random.default_rng(seed)
    p_values, ratios = np.empty(num_repeats), np.empty(num_repeats)
    for repeat in range(num_repeats):
        shuffled = next(shuffles(places, codes, 1, rng))[0]
        planted = _plant(shuffled, places, tables[0], num_moved, rng)
        found = against_shuffling(places, planted, tables, num_resamples, rng)
        p_values[repeat], ratios[repeat] = float(found.p_more[0]), float(found.ratio[0])
    # Here, not above: it would take as long to import as all else that `import lowhanging` adds to torch's own time.
    from scipy import stats

    rejected = int((p_values <= level).sum())
    interval = stats.binomtest(rejected, num_repeats).proportion_ci(method="wilson")
    return PairingPower(
        power=rejected / num_repeats, low=float(interval.low), high=float(interval.high),
        ratio=float(np.nanmean(ratios)) if not np.isnan(ratios).all() else float("nan"),
        coupling=coupling, window=float(width[0]), level=level, num_repeats=num_repeats, num_births=len(times),
        num_seeds=places.num_seeds,
    )  # fmt: skip


def _plant(codes: np.ndarray, places: Slots, close: np.ndarray, num_moved: int, rng: np.random.Generator) -> np.ndarray:
    """The codes (n,) with `num_moved` of them moved close to another of the same seed that stays."""
    keys = rng.random(len(codes))
    ranks = np.empty(len(codes), dtype=np.int64)  # of each birth among those of its seed, at random
    in_order = np.lexsort((keys, places.seeds))
    starts = np.searchsorted(places.seeds, np.arange(places.num_seeds))
    ranks[in_order] = np.arange(len(codes)) - starts[places.seeds]
    moved = rng.permutation(np.flatnonzero(ranks > 0))[:num_moved]
    stays = np.ones(len(codes), dtype=bool)
    stays[moved] = False
    same_seed = places.seeds[moved][:, None] == places.seeds  # (moved, n)
    parents = np.where(same_seed & stays, rng.random((len(moved), len(codes))), -1.0).argmax(1)
    near = close[codes[parents]].copy()  # (moved, logs)
    near[:, 0] = False  # a birth at the first log would have no time
    planted = codes.copy()
    planted[moved] = np.where(near, rng.random(near.shape), -1.0).argmax(1)
    return planted
