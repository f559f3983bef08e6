"""Are the frequencies of circuits in one network related: the same, doubled, tripled?

A block of width two with a smooth activation makes even harmonics of its own frequency, so a second circuit might be
expected at the double; and a frequency that is already there might be expected not to form again. Chance is what the
frequencies of all networks give when dealt out at random; the uniform draw beside it shows how far the frequencies are
from equally likely to begin with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowhanging.circuits.births import Births, check_births
from lowhanging.circuits.permutation import against_shuffling, slots
from lowhanging.errors import argument_message, check_count
from lowhanging.io import Saved

RELATIONS = ("duplicates", "doubles", "triples")


@dataclass(frozen=True, eq=False, repr=False)
class FrequencyRelations(Saved):
    """Pairs of circuits in one seed whose frequencies are related, against frequencies shuffled across seeds."""

    relations: list[str]  # "duplicates", "doubles", "triples"
    pairs: Tensor  # (3,) int64, observed
    null_mean: Tensor  # (3,) float64, expected if frequencies are shuffled across seeds
    uniform_mean: Tensor  # (3,) float64, expected if all frequencies were equally likely
    ratio: Tensor  # (3,) float64, pairs / null_mean; nan where both are 0
    interval: Tensor  # (3, 2) float64, 95 % interval of the ratio, bootstrap over seeds
    p_more: Tensor  # (3,) float64, one-sided: more such pairs than by chance
    p_fewer: Tensor  # (3,) float64, one-sided: fewer
    p: int  # modulus
    num_pairs: int  # of circuits in one seed, related or not
    num_seeds: int  # with at least one circuit

    def __repr__(self) -> str:
        rows = [
            f"{name} {pairs} against {mean:.1f}, ratio {ratio:.2f} ({low:.2f}–{high:.2f})"
            for name, pairs, mean, ratio, (low, high) in zip(
                self.relations, self.pairs.tolist(), self.null_mean.tolist(), self.ratio.tolist(),
                self.interval.tolist(), strict=True,
            )
        ]  # fmt: skip
        return f"FrequencyRelations({self.num_pairs} pairs in {self.num_seeds} seeds, p = {self.p}; {'; '.join(rows)})"


def frequency_relations(births: Births, p: int, *, num_resamples: int = 2000, seed: int = 0) -> FrequencyRelations:
    r"""How many pairs of circuits in one seed have related frequencies, against chance.

    A pair with frequencies f, g mod p is a duplicate if g = ±f, a double if g = ±2f or f = ±2g, a triple if g = ±3f or
    f = ±3g. One pair can be several of these for a small p (at p = 5, every double is a triple). All circuits that
    formed are counted, those from before the first log too, with the frequency they had at birth. The null permutes
    frequencies across seeds: it keeps how common each frequency is and how many circuits each seed has.

    Args:
        births: with `frequency`.
        p: modulus, at least 3; frequencies are from 1 to p - 1, f and p - f being one.
        num_resamples: draws of the null, and of the bootstrap over seeds that gives the interval.
        seed: of both; the global random state is not used.

    Returns:
        FrequencyRelations, one entry each for duplicates, doubles and triples.

    Raises:
        ValueError, TypeError: no frequencies, or some not in 1 ... p - 1; no seed with two circuits, only one seed with
            circuits.

    Cost:
        O(num_resamples x pairs of circuits).
    """
    check_births(births)
    check_count("p", p, minimum=3, remedy="Pass the modulus of the task.")
    check_count("num_resamples", num_resamples, remedy="2,000 resolve p-values down to 0.0005.")
    check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    if births.frequency is None:
        remedy = "Make them with births(scores, steps, frequency=...)."
        raise ValueError(argument_message("births", "has no frequencies", "the frequency of every circuit", remedy))
    owners, blocks = np.nonzero(births.is_formed.numpy())
    frequency = births.frequency.numpy()[owners, blocks]
    if bool(((frequency < 1) | (frequency >= p)).any()):
        wrong = int(frequency[(frequency < 1) | (frequency >= p)][0])
        received = f"has a circuit of frequency {wrong}"
        raise ValueError(
            argument_message("births", received, f"frequencies from 1 to p - 1 = {p - 1}", "Is p the task's?")
        )
    places, order = slots(owners, np.zeros(len(births.step), dtype=np.int64))
    if not len(places.left) or places.num_seeds < 2:
        received = f"has {len(places.left)} pairs of circuits in {places.num_seeds} seed{'s' * (places.num_seeds != 1)}"
        expected = "two seeds with circuits, one of them with two"
        raise ValueError(
            argument_message("births", received, expected, "Train more seeds, longer, or lower the threshold.")
        )
    tables = _related(p)
    codes = _folded(frequency, p)[order] - 1  # frequencies 1 ... p // 2 as rows of the tables
    found = against_shuffling(places, codes, tables, num_resamples, np.random.default_rng(seed))
    return FrequencyRelations(
        relations=list(RELATIONS), pairs=found.observed, null_mean=found.null_mean,
        uniform_mean=torch.from_numpy(len(places.left) * tables.mean((1, 2))), ratio=found.ratio,
        interval=found.interval, p_more=found.p_more, p_fewer=found.p_fewer, p=p, num_pairs=len(places.left),
        num_seeds=places.num_seeds,
    )  # fmt: skip


def _folded(frequency: np.ndarray, p: int) -> np.ndarray:
    """The representative of ±f mod p in 0 ... p // 2."""
    return np.asarray(np.minimum(frequency % p, -frequency % p))


def _related(p: int) -> np.ndarray:
    """(3, p // 2, p // 2) bool: frequency j + 1 is once, twice, three times frequency i + 1, or the reverse."""
    frequencies = np.arange(1, p // 2 + 1)
    tables = [_folded(factor * frequencies, p)[:, None] == frequencies for factor in (1, 2, 3)]
    return np.stack([table | table.T for table in tables])
