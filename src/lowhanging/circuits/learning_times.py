"""Times that many seeds take to learn, some of which never do within their budget.

A run that ends before the rule is learned is censored: its time is infinite, which keeps its order among the others,
and it is never dropped. So there are medians, ratios of medians and counts, no means. Whatever is not known speaks
against the claim that one rule is slower: a comparison of two runs of which neither learned is no win of either, and
where the faster rule's median is infinite the ratio counts as 0. For the growth of that ratio a censored time counts as
its budget, so that the growth is a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowhanging.errors import argument_message, check_choice, check_count
from lowhanging.io import Saved
from lowhanging.tables import Columns, Tabular


@dataclass(frozen=True, eq=False, repr=False)
class TimesRatio(Saved):
    """Median time of the slow rule over that of the fast one, at each size, with 95 % intervals over seeds."""

    ratio: Tensor  # (k,) float64
    interval: Tensor  # (k, 2) bootstrap over seeds, both rules of a seed together
    num_later: Tensor  # (k,) int64, seeds that learned the slow rule later than the fast one, or never
    num_seeds: int
    p_value: Tensor  # (k,) of the one-sided sign test; a seed that learned neither, or both at one log, counts against
    growth: float  # ratio at the last size over ratio at the first; a lower bound, see `LearningTimes.ratio`
    growth_interval: Tensor  # (2,) of the same bound
    is_growth_bound: bool  # at the last size the slow rule's median is its budget: the growth is at least this large

    def __repr__(self) -> str:
        rows = ", ".join(
            f"{ratio:.3g} [{low:.3g}, {high:.3g}]"
            for ratio, (low, high) in zip(self.ratio.tolist(), self.interval.tolist(), strict=True)
        )
        return f"TimesRatio({rows} over {self.num_seeds} seeds)"


@dataclass(frozen=True, eq=False, repr=False)
class LearningTimes(Saved, Tabular):
    """Steps until each seed had learned each rule, as something grows.

    Attributes:
        sizes: what grows, ascending.
        times: rule -> steps; inf where a seed had not learned it within the budget. The same seeds in every column.
        budgets: rule -> steps that were trained.
    """

    sizes: Tensor  # (k,) float64
    times: dict[str, Tensor]  # name -> (k, seeds) float64
    budgets: dict[str, Tensor]  # name -> (k,) float64

    def columns(self) -> Columns:
        """One row for each size and seed: "size", "seed", the steps to learn each rule by name."""
        shape = next(iter(self.times.values())).shape
        seeds = torch.arange(shape[1]).expand(shape).flatten().tolist()
        sizes = self.sizes[:, None].expand(shape).flatten().tolist()
        return {"size": sizes, "seed": seeds} | {name: rows.flatten().tolist() for name, rows in self.times.items()}

    def __repr__(self) -> str:
        rows = "; ".join(f"{name} {[round(t, 1) for t in self.median(name).tolist()]}" for name in self.times)
        return f"LearningTimes(sizes {self.sizes.tolist()}; median steps: {rows})"

    def median(self, name: str) -> Tensor:
        """(k,) median steps, the upper one of an even number; inf where half of the seeds or more never learned."""
        rows = self._rows(name).sort(dim=1).values
        return rows[:, rows.shape[1] // 2]

    def interval(self, name: str) -> Tensor:
        """(k, 2) 95 % interval of the median, from order statistics; (0, inf) for fewer than six seeds."""
        from scipy.stats import quantile_test  # half a second, not at every import

        ends = [quantile_test(row, p=0.5).confidence_interval(0.95) for row in self._rows(name).numpy()]
        return torch.from_numpy(np.where(np.isnan(ends), (0.0, np.inf), ends))

    def num_never(self, name: str) -> Tensor:
        """(k,) seeds that had not learned a rule within its budget."""
        return torch.isinf(self._rows(name)).sum(1)

    def ratio(self, slow: str, fast: str, *, num_resamples: int = 4000, seed: int = 0) -> TimesRatio:
        """Factor by which one rule is learned later than another.

        The growth of the factor is never overestimated by what was not seen. A seed that had not learned the slow rule
        at the last size counts with its budget there, less than the time it would have taken. Where the factor of the
        *first* size is not known, because the median of either rule is infinite, and where the fast rule's is at the
        last size, the growth counts as 0, the least that it can be. So the error has one direction: a growth above 1 is
        one, a growth at or below 1 may only have been cut off by the budget.

        Args:
            slow: name of the rule whose time is the numerator.
            fast: name of the other.
            num_resamples: samples of seeds with replacement.
            seed: of the samples.

        Returns:
            TimesRatio, a row per size.
        """
        from scipy.stats import binomtest

        remedy = "Pass a number of samples, such as 4000."
        check_count("num_resamples", num_resamples, minimum=100, remedy=remedy)
        above, below = self._rows(slow), self._rows(fast)
        num = above.shape[1]
        drawn = torch.from_numpy(np.random.default_rng(seed).integers(num, size=(num_resamples, num)))
        sampled = _ratio_of_medians(above[:, drawn], below[:, drawn])  # (k, draws, seeds) each -> (k, draws)
        ratio = _ratio_of_medians(above, below)
        budget = self.budgets[slow][-1].double()
        known = torch.where(torch.isinf(above[-1]), budget, above[-1])  # (seeds,)
        growth = _growth(_ratio_of_medians(known[drawn], below[-1][drawn]), sampled[0])
        later = (above > below).sum(1)
        p_values = [binomtest(count, num, 0.5, alternative="greater").pvalue for count in later.tolist()]
        return TimesRatio(
            ratio=ratio, interval=_quantiles(sampled), num_later=later, num_seeds=num,
            p_value=torch.tensor(p_values, dtype=torch.float64),
            growth=float(_growth(_ratio_of_medians(known, below[-1])[None], ratio[:1])),
            growth_interval=_quantiles(growth), is_growth_bound=bool(torch.isinf(self.median(slow)[-1])),
        )  # fmt: skip

    def _rows(self, name: str) -> Tensor:
        check_choice("name", name, tuple(self.times))
        return self.times[name]


@dataclass(frozen=True, eq=False, repr=False)
class Competences(Saved):
    """How far several abilities of the same networks have come, over training.

    Attributes:
        times: ascending, in `unit`.
        progress: name -> share of the way to where it ends, a row per seed; NaN where nothing was learned.
        unit: of times, such as "epoch".
    """

    times: Tensor  # (logs,) float64
    progress: dict[str, Tensor]  # name -> (seeds, logs) float64
    unit: str

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {float(self.crossing(name, 0.5).median()):.3g}" for name in self.progress)
        return f"Competences(median {self.unit} of half the way: {rows})"

    def crossing(self, name: str, share: float) -> Tensor:
        """(seeds,) time of the first log at which a share of the way is done; inf where it never is."""
        check_choice("name", name, tuple(self.progress))
        return first_crossing(self.times, self.progress[name], threshold=share, is_rising=True)


def first_crossing(steps: Tensor, rows: Tensor, *, threshold: float, is_rising: bool = False) -> Tensor:
    """The step of the first log at which each row is at or beyond a threshold; inf where none is.

    Args:
        steps: (logs,) ascending.
        rows: (seeds, logs), such as losses; entries that are NaN are beyond nothing.
        threshold: to fall to, or to rise to.
        is_rising: whether the rows have to rise.

    Returns:
        (seeds,) float64.

    Raises:
        ValueError: the rows and the steps differ in length.
    """
    if rows.ndim != 2 or tuple(steps.shape) != (rows.shape[1],):
        received = f"has shape {tuple(rows.shape)} for steps of shape {tuple(steps.shape)}"
        remedy = "Pass run.losses[name], run.steps."
        raise ValueError(argument_message("rows", received, "(seeds, logs) for (logs,)", remedy))
    is_beyond = rows >= threshold if is_rising else rows <= threshold  # (seeds, logs)
    times = torch.where(is_beyond, steps.double(), torch.inf)
    return times.min(dim=1).values


def _ratio_of_medians(slow: Tensor, fast: Tensor) -> Tensor:
    """Over the last axis, seeds; 0 where the denominator is infinite, inf where it is 0."""
    middle = slow.shape[-1] // 2
    above, below = (rows.sort(dim=-1).values[..., middle] for rows in (slow, fast))
    return torch.where(torch.isinf(below), 0.0, (above / below).nan_to_num(nan=0.0, posinf=torch.inf))


def _growth(last: Tensor, first: Tensor) -> Tensor:
    """Quotient of ratios; 0 where the first one is not known."""
    return torch.where(torch.isfinite(first) & (first > 0), last / first, 0.0)


def _quantiles(samples: Tensor) -> Tensor:
    """(..., 2) ends of the middle 95 % of (..., draws), each one of the samples: some may be infinite."""
    ends = np.quantile(samples.numpy(), [0.025, 0.975], axis=-1, method="inverted_cdf")
    return torch.from_numpy(ends).movedim(0, -1)
