"""Survival of circuits, and a test whether fewer survive in one kind of network than in another.

A run ends before most circuits do, so the share that is gone by the end says more about when the run ended than about
circuits: the Kaplan-Meier estimate counts each circuit for as long as it was watched. Circuits of one network share its
luck, so that the test compares two kinds with the network as its unit, not the circuit.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.circuits.births import Births, check_births
from lowhanging.circuits.permutation import p_values
from lowhanging.errors import argument_message, check_count
from lowhanging.io import Saved

LEVEL = 0.05  # one-sided
POWER = 0.8


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
    interval = np.stack([0.025 ** (1 / at_risk), np.ones(len(age))], axis=1)  # no death yet: P(none of n dies) = .025
    is_inside = (share > 0) & (share < 1)
    interval[is_inside] = _log_log_interval(watched, is_dead, age[is_inside])
    if share[-1] == 0:  # the last age at the latest: no circuit is left to watch
        interval[-1] = 0.0, interval[-2, 1] if len(share) > 1 else 1.0
    return Survival(
        age=torch.from_numpy(age), share=torch.from_numpy(share), interval=torch.from_numpy(interval),
        at_risk=torch.from_numpy(at_risk), deaths=torch.from_numpy(deaths), num_circuits=len(watched),
        num_left_out=num_left_out,
    )  # fmt: skip


def _log_log_interval(watched: np.ndarray, is_dead: np.ndarray, age: np.ndarray) -> np.ndarray:
    """(k, 2) Greenwood's 95 % limits at the ages (k,), where the share is neither 0 nor 1."""
    from scipy.stats import CensoredData, ecdf  # half a second, not at every import

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The confidence interval is undefined at some observations")
        curve = ecdf(CensoredData(uncensored=watched[is_dead], right=watched[~is_dead])).sf
        limits = curve.confidence_interval(0.95, method="log-log")
    return np.stack([limits.low.evaluate(age), limits.high.evaluate(age)], axis=1)


def clustered_survival_test(
    formed: Any, survived: Any, *, is_second: Any, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    r"""Test whether the second kind of network keeps a smaller share of its circuits than the first.

    With f_i circuits formed and s_i survivors in network i, a kind's share is p = sum s_i / sum f_i and its variance
    that of a ratio of sums,

        V = m / (m - 1) sum (s_i - p f_i)^2 / (sum f_i)^2     over its m networks with a circuit.

    Networks, each with its (f_i, s_i), are dealt out to the two kinds. What is compared is (p_1 - p_2) /
    sqrt(V_1 + V_2), for which permuting is right in the limit of many networks also where the kinds differ in how many
    circuits they form. A kind without a death shows no spread: its variance is at least that of half a death.

    Args:
        formed: (networks,) circuits formed in each.
        survived: (networks,) of those, how many are left.
        is_second: (networks,) bool, of the second kind.
        num_resamples: permutations of networks, and samples of the bootstrap.
        seed: of both; the global random state is not used.

    Returns:
        "difference", the first kind's share minus the second one's, with its 95 % "interval" (percentile bootstrap over
        the networks of each kind), and the one-sided "p_value"; all None unless each kind has two networks with a
        circuit.

    Raises:
        ValueError: arrays of different lengths, or more survivors than circuits.

    Source:
        Chung & Romano (2013), "Exact and asymptotically robust permutation tests".
    """
    formed, survived, is_second = np.asarray(formed), np.asarray(survived), np.asarray(is_second, dtype=bool)
    check_count("num_resamples", num_resamples, remedy="2,000 resolve p-values down to 0.0005.")
    if not formed.shape == survived.shape == is_second.shape == (formed.size,) or bool((survived > formed).any()):
        received = f"has shape {survived.shape}, formed {formed.shape}, is_second {is_second.shape}"
        expected = "three arrays (networks,), at most as many survivors as circuits formed"
        remedy = "Pass births.counts, births.survived.sum(1)."
        raise ValueError(argument_message("survived", received, expected, remedy))
    has = formed > 0
    formed, survived, is_second = formed[has], survived[has], is_second[has]
    kinds = np.flatnonzero(~is_second), np.flatnonzero(is_second)
    if min(map(len, kinds)) < 2:
        return {"difference": None, "interval": [None, None], "p_value": None}
    from scipy.stats import bootstrap

    def difference(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
        shares = [survived[kind].sum(axis) / formed[kind].sum(axis) for kind in (first, second)]
        return np.asarray(shares[0] - shares[1])

    rng = np.random.default_rng(seed)
    counts = np.stack([formed, survived], 1).astype(float)[:, :, None]  # (networks, 2, 1)
    observed = _studentized(is_second[None].astype(float), counts)[0, 0]
    drawn = _studentized(_dealt(is_second, num_resamples, rng), counts)[:, 0]
    samples = bootstrap(
        kinds, difference, vectorized=True, n_resamples=num_resamples, batch=100, method="percentile", rng=rng
    )
    return {
        "difference": float(difference(*kinds)),
        "interval": [float(end) for end in samples.confidence_interval],
        "p_value": float(p_values(observed, drawn, 1e-9)[0]),
    }


def detectable(
    formed: np.ndarray,
    is_second: np.ndarray,
    *,
    share: float,
    num_resamples: int = 500,
    num_repeats: int = 400,
    seed: int = 0,
) -> float | None:
    """Smallest difference of shares that `clustered_survival_test` finds at the 5 % level in 80 % of repeats, or None.

    Args:
        formed: (networks,) circuits formed in each; drawn again, within each kind.
        is_second: (networks,) bool.
        share: of the first kind's circuits that survive; each by itself, the test's best case.
        num_resamples: permutations in each test.
        num_repeats: simulated experiments for each difference.
        seed: of the draws.

    Returns:
        Of shares, to 0.005; its own error, of the simulation, is about as large.
    """
    has = formed > 0
    formed, is_second = formed[has].astype(int), is_second[has]
    if min(is_second.sum(), (~is_second).sum()) < 2:
        return None

    def power(less: float) -> float:
        """Share of simulated experiments in which the test rejects."""
        rng = np.random.default_rng(seed)
        drawn = np.empty((len(formed), num_repeats), dtype=int)
        for kind in (~is_second, is_second):
            drawn[kind] = rng.choice(formed[kind], size=(int(kind.sum()), num_repeats))
        rates = np.clip(np.where(is_second, share - less, share), 0.0, 1.0)
        survived = rng.binomial(drawn, rates[:, None])
        counts = np.stack([drawn, survived], 1).astype(float)  # (networks, 2, repeats)
        observed = _studentized(is_second[None].astype(float), counts)[0]
        null = _studentized(_dealt(is_second, num_resamples, rng), counts)  # (draws, repeats)
        return float((p_values(observed[:, None], null.T, 1e-9)[0] <= LEVEL).mean())

    low, high = 0.0, float(share)
    if power(high) < POWER:
        return None
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def _dealt(is_second: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(num, networks) which networks are called the second kind: permutations of `is_second`."""
    return rng.permuted(np.tile(is_second.astype(float), (num, 1)), axis=1)


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
