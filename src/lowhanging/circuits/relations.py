"""Pairs of circuits in one network whose frequencies are related.

A block of width two with a smooth activation makes even harmonics of its own frequency, so a second circuit might be
expected at the double; and a frequency that is there already might be expected not to form again. The null deals the
frequencies of all networks out at random; the uniform mean beside it shows how far frequencies are from equally likely.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowhanging.circuits.births import Births
from lowhanging.circuits.permutation import PairCounts, against_shuffling, check_pairs, check_resampling, slots_of
from lowhanging.errors import argument_message, check_count

RELATIONS = ("duplicates", "doubles", "triples")


@dataclass(frozen=True, eq=False, repr=False)
class FrequencyRelations(PairCounts):
    """Pairs of circuits in one seed with related frequencies, against frequencies shuffled across seeds; k = 3."""

    relations: list[str]  # "duplicates", "doubles", "triples"
    uniform_mean: Tensor  # (3,) float64, expected if all frequencies were equally likely
    p: int  # modulus
    num_pairs: int  # of circuits in one seed, related or not
    num_seeds: int  # with at least one circuit

    def __repr__(self) -> str:
        rows = "; ".join(f"{name} {row}" for name, row in zip(self.relations, self._rows(), strict=True))
        return f"FrequencyRelations({self.num_pairs} pairs in {self.num_seeds} seeds, p = {self.p}; {rows})"


def frequency_relations(births: Births, p: int, *, num_resamples: int = 2000, seed: int = 0) -> FrequencyRelations:
    r"""Number of pairs of circuits in one seed with related frequencies, against chance.

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
    labels = check_resampling(births, num_resamples, seed)
    check_count("p", p, minimum=3, remedy="Pass the modulus of the task.")
    if births.frequency is None:
        remedy = "Make them with births(scores, steps, frequency=...)."
        raise ValueError(argument_message("births", "has no frequencies", "the frequency of every circuit", remedy))
    owners, blocks = np.nonzero(births.is_formed.numpy())
    frequency = births.frequency.numpy()[owners, blocks]
    wrong = frequency[(frequency < 1) | (frequency >= p)]
    if len(wrong):
        expected = f"frequencies from 1 to p - 1 = {p - 1}"
        received = f"has a circuit of frequency {wrong[0]}"
        raise ValueError(argument_message("births", received, expected, "Is p the task's?"))
    slots, order = slots_of(owners, labels)
    check_pairs(slots, "circuits")
    tables = _related(p)
    codes = _folded(frequency, p)[order] - 1  # frequencies 1 ... p // 2 as rows of the tables
    counted = against_shuffling(slots, codes, tables, num_resamples, np.random.default_rng(seed))
    return FrequencyRelations(
        **vars(counted), relations=list(RELATIONS), p=p, num_pairs=len(slots.left), num_seeds=slots.num_seeds,
        uniform_mean=torch.from_numpy(len(slots.left) * tables.mean((1, 2))),
    )  # fmt: skip


def _folded(frequency: np.ndarray, p: int) -> np.ndarray:
    """The representative of ±f mod p in 0 ... p // 2."""
    return np.asarray(np.minimum(frequency % p, -frequency % p))


def _related(p: int) -> np.ndarray:
    """(3, p // 2, p // 2) bool: frequency j + 1 is once, twice, three times frequency i + 1, or the reverse."""
    frequencies = np.arange(1, p // 2 + 1)
    tables = [_folded(factor * frequencies, p)[:, None] == frequencies for factor in (1, 2, 3)]
    return np.stack([table | table.T for table in tables])
