"""Do circuits that formed stay?

A run ends before most circuits do, so the share that is gone by the end says more about when the run ended than about
circuits. The Kaplan-Meier estimate counts each circuit for as long as it was watched.

Do fewer circuits survive in one kind of network than in another, if networks, not circuits, are what was drawn?

Circuits of one network share its luck, so that the network is the unit. With f_i circuits formed and s_i survivors in
network i, a kind's share is p = sum s_i / sum f_i and its variance that of a ratio of sums,

    V = m / (m - 1) sum (s_i - p f_i)^2 / (sum f_i)^2     over its m networks with a circuit.

The test deals the networks, each with its (f_i, s_i), out to the two kinds. Networks of the two kinds differ in how
many circuits they form, whatever survives, so that plain permuting would test the wrong thing: what is compared is the
difference of the shares over its standard error, for which permuting is right in the limit of many networks also where
the kinds differ in everything else (Chung & Romano 2013, "Exact and asymptotically robust permutation tests"). A kind
without a death shows no spread at all; its variance is taken to be at least that of half a death.

Not finding a difference says nothing before it is known which difference would have been found: `detectable` draws
networks again, takes away survivors at a rate, and asks the same test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from lowhanging.circuits.births import Births, check_births
from lowhanging.errors import argument_message
from lowhanging.io import Saved


@dataclass(frozen=True, eq=False, repr=False)
class Survival(Saved):
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
        raise ValueError(argument_message("births", received, "at least one", "Log earlier, or train longer."))
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


LEVEL = 0.05  # one-sided
POWER = 0.8
NUM_DRAWS = 2000


def clustered_survival_test(
    formed: np.ndarray, survived: np.ndarray, is_second: np.ndarray, *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Is the second kind's share of survivors smaller than the first one's?

    Args:
        formed: (networks,) circuits formed in each.
        survived: (networks,) of those, how many are left.
        is_second: (networks,) bool, of the second kind.
        num_draws: permutations of networks.
        seed: of the draws.

    Returns:
        "difference" of the shares, the first one's minus the second one's, with its 95 % "interval" (bootstrap over
        networks of each kind) and the one-sided "p_value"; all None unless each kind has two networks with a circuit.
    """
    has = formed > 0
    formed, survived, is_second = formed[has], survived[has], is_second[has]
    if min(is_second.sum(), (~is_second).sum()) < 2:
        return {"difference": None, "interval": [None, None], "p_value": None}
    rng = np.random.default_rng(seed)
    counts = np.stack([formed, survived], 1).astype(float)[:, :, None]  # (networks, 2, 1)
    observed = _studentized(is_second[None].astype(float), counts)[0, 0]
    drawn = _studentized(_dealt(is_second, num_draws, rng), counts)[:, 0]
    again = [_resampled(counts[kind, :, 0], num_draws, rng) for kind in (~is_second, is_second)]  # (draws,) each
    low, high = np.quantile(again[0] - again[1], [0.025, 0.975])
    shares = [survived[kind].sum() / formed[kind].sum() for kind in (~is_second, is_second)]
    return {
        "difference": float(shares[0] - shares[1]),
        "interval": [float(low), float(high)],
        "p_value": float((1 + (drawn >= observed - 1e-9).sum()) / (1 + num_draws)),
    }


def detectable(
    formed: np.ndarray,
    is_second: np.ndarray,
    share: float,
    *,
    num_draws: int = 500,
    num_repeats: int = 400,
    seed: int = 0,
) -> float | None:
    """Smallest difference of shares that `clustered_survival_test` finds, at the 5 % level, in 80 % of repeats; None: none is.

    Args:
        formed: (networks,) circuits formed in each; drawn again, within each kind.
        is_second: (networks,) bool.
        share: of the first kind's circuits that survive; each by itself, the test's best case.
        num_draws: permutations in each test.
        num_repeats: simulated experiments for each difference.
        seed: of the draws.

    Returns:
        Of shares, to 0.005; its own error, of the simulation, is about as large.
    """
    has = formed > 0
    formed, is_second = formed[has].astype(int), is_second[has]
    if min(is_second.sum(), (~is_second).sum()) < 2:
        return None
    low, high = 0.0, float(share)
    if _power(formed, is_second, share, high, num_draws, num_repeats, seed) < POWER:
        return None
    while high - low > 0.005:
        middle = (low + high) / 2
        if _power(formed, is_second, share, middle, num_draws, num_repeats, seed) >= POWER:
            high = middle
        else:
            low = middle
    return high


def _power(
    formed: np.ndarray, is_second: np.ndarray, share: float, less: float, num_draws: int, num_repeats: int, seed: int
) -> float:
    """Share of simulated experiments in which the test rejects."""
    rng = np.random.default_rng(seed)
    rates = np.where(is_second, share - less, share)
    drawn = np.empty((len(formed), num_repeats), dtype=int)
    for kind in (~is_second, is_second):
        drawn[kind] = rng.choice(formed[kind], size=(int(kind.sum()), num_repeats))
    survived = rng.binomial(drawn, np.clip(rates, 0.0, 1.0)[:, None])
    counts = np.stack([drawn, survived], 1).astype(float)  # (networks, 2, repeats)
    observed = _studentized(is_second[None].astype(float), counts)[0]
    null = _studentized(_dealt(is_second, num_draws, rng), counts)  # (draws, repeats)
    p_values = (1 + (null >= observed - 1e-9).sum(0)) / (1 + num_draws)
    return float((p_values <= LEVEL).mean())


def _dealt(is_second: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(num, networks) which networks are called the second kind: permutations of `is_second`."""
    labels = np.tile(is_second.astype(float), (num, 1))
    return rng.permuted(labels, axis=1)


def _studentized(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(draws, repeats) difference of shares over its standard error, for labels (draws, networks) of the second kind.

    `counts` (networks, 2, repeats) are those formed and those that survived.
    """
    formed, survived = counts[:, 0], counts[:, 1]
    shares, variances = [], []
    for weights in (1 - labels, labels):
        num = weights.sum(1, keepdims=True)
        total, alive = weights @ formed, weights @ survived
        share = alive / np.maximum(total, 1.0)
        squares = weights @ survived**2 - 2 * share * (weights @ (survived * formed)) + share**2 * (weights @ formed**2)
        spread = num / np.maximum(num - 1, 1.0) * np.maximum(squares, 0.0)
        shares.append(share)
        variances.append(np.maximum(spread, 0.5) / np.maximum(total, 1.0) ** 2)  # half a death at least
    return np.asarray((shares[0] - shares[1]) / np.sqrt(variances[0] + variances[1]))


def _resampled(counts: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(num,) shares of survivors in networks (networks, 2) drawn with replacement."""
    weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=num)
    totals = weights @ counts  # (num, 2)
    return np.asarray(totals[:, 1] / totals[:, 0])
