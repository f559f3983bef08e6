"""Do circuits that formed stay?

A run ends before most circuits do, so the share that is gone by the end says more about when the run ended than about
circuits. The Kaplan-Meier estimate counts each circuit for as long as it was watched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from lowhanging.circuits.formation import Births, check_births
from lowhanging.errors import explain
from lowhanging.results import load_result, save_result


@dataclass(frozen=True, eq=False, repr=False)
class Survival:
    """The share of circuits still there, as a function of the steps since they formed: a step function, from 1."""

    age: Tensor  # (k,) float64, steps since birth: 0, and every age at which a circuit died or was last watched
    share: Tensor  # (k,) float64, from this age to the next
    interval: Tensor  # (k, 2) float64, pointwise 95 %
    at_risk: Tensor  # (k,) int64, circuits watched at this age, just before the deaths at it
    deaths: Tensor  # (k,) int64, at this age
    num_circuits: int
    num_left_out: int  # formed before the first log, or too late for a death to be seen

    def __repr__(self) -> str:
        deaths = int(self.deaths.sum())
        last = int((2 * self.at_risk >= self.num_circuits).sum()) - 1  # the last age with half of them still watched
        share, (low, high) = 100 * float(self.share[last]), (100 * self.interval[last]).tolist()
        return (
            f"Survival({self.num_circuits} circuits, {deaths} death{'s' * (deaths != 1)};"
            f" {share:.1f} % ({low:.1f}–{high:.1f}) alive {float(self.age[last]):g} steps after birth)"
        )

    def save(self, path: str | Path) -> Path:
        """Write to npz."""
        return save_result(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Survival:
        """Read what `save` wrote."""
        return load_result(cls, path)


def survival(births: Births) -> Survival:
    r"""Kaplan-Meier survival of circuits: the share above the threshold, by steps since birth.

    S(a) = prod over ages u <= a of (1 - d_u / n_u), with d_u deaths among the n_u circuits watched up to age u. A death
    is the first sustained fall below the threshold (see `births`): a circuit can't die in the `sustain` logs that made
    it one. The watch ends for all at the last log that `sustain - 1` logs follow, as no later fall could be told from a
    dip. Circuits from before the first log have no age and are left out.

    Intervals are pointwise, 95 %: Greenwood's variance on the scale of log(-log S), which stays in [0, 1]. Where that
    is undefined: before the first death, the exact binomial bound of no death among the n_u still watched; at S = 0,
    the upper end of the age before. Circuits are taken as independent, also those of one seed.

    Args:
        births: from `births(scores, steps)`.

    Returns:
        Survival: `age`, `share`, `interval`, `at_risk`, `deaths`.

    Raises:
        ValueError, TypeError: no circuit that was watched after its birth.

    Cost:
        O(circuits log circuits).

    Source:
        Kaplan & Meier (1958), "Nonparametric estimation from incomplete observations"; Kalbfleisch & Prentice (1980),
        "The statistical analysis of failure time data", for the intervals.
    """
    check_births(births)
    end = float(births.dated_steps[-1])
    born, death = births.step[births.is_dated].numpy(), births.death[births.is_dated].numpy()
    is_watched = born < end
    num_left_out = int(births.is_formed.sum()) - int(is_watched.sum())
    if not is_watched.any():
        received = f"holds no circuit whose fate was seen ({num_left_out} formed before the first log or too late)"
        raise ValueError(explain("births", received, "at least one", "Log earlier, or train longer."))
    born, death = born[is_watched], death[is_watched]
    is_dead = np.isfinite(death)
    watched = np.where(is_dead, death, end) - born
    age = np.unique(np.append(0.0, watched))
    at_risk = len(watched) - np.searchsorted(np.sort(watched), age)  # those watched to this age or longer
    deaths = np.bincount(np.searchsorted(age, watched[is_dead]), minlength=len(age))
    share = np.cumprod(1 - deaths / at_risk)
    return Survival(
        age=torch.from_numpy(age), share=torch.from_numpy(share),
        interval=torch.from_numpy(_intervals(share, at_risk, deaths)), at_risk=torch.from_numpy(at_risk),
        deaths=torch.from_numpy(deaths), num_circuits=len(watched), num_left_out=num_left_out,
    )  # fmt: skip


def _intervals(share: np.ndarray, at_risk: np.ndarray, deaths: np.ndarray) -> np.ndarray:
    """(k, 2) pointwise 95 % limits."""
    interval = np.empty((len(share), 2))
    interval[:, 0], interval[:, 1] = 0.025 ** (1 / at_risk), 1.0  # no death yet: P(none of n dies) = .025
    inside = (share > 0) & (share < 1)
    # d / (n (n - d)) is infinite where all die, and only there is S = 0.
    greenwood = np.cumsum(deaths / (at_risk * np.maximum(at_risk - deaths, 1)))[inside]
    log_share = np.log(share[inside])
    spread = ndtri(0.975) * np.sqrt(greenwood) / np.abs(log_share)
    interval[inside] = share[inside, None] ** np.exp(np.stack([spread, -spread], axis=1))
    if share[-1] == 0:  # the last age at the latest: nobody is left to watch
        before = interval[-2, 1] if len(share) > 1 else 1.0
        interval[-1] = 0.0, before
    return interval
