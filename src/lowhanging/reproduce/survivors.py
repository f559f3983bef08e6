r"""Do fewer circuits survive in one kind of network than in another, if networks, not circuits, are what was drawn?

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

from typing import Any

import numpy as np

LEVEL = 0.05  # one-sided
POWER = 0.8
NUM_DRAWS = 2000


def fewer_survive(
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
    """Smallest difference of shares that `fewer_survive` finds, at the 5 % level, in 80 % of repeats; None: none is.

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
