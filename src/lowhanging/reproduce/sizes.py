"""Theme "sizes": are two circuits of half the size learned before one of the whole size that does as much?

Both rules of `parity_rules` end at the same loss, and the smallest `CosineNetwork` of either has the same number of
parameters: n for one cue of n - 1 bits (a weight per bit and one read-out), n / 2 twice for two cues of n / 2 - 1 bits.
The same networks are trained on each rule by itself, and on both at once. A rule counts as learned where the held-out
loss has gone 90 % of the way from ln 2 to that of the smallest network; one half alone brings it 72 % there.

Two controls. Is it the number of bits? The atomic rule of n - 2 bits reads as many bits as the two halves together,
takes one parameter less, and is what they would be if they paid only together. Is it that there are two? One cue of
n / 2 - 1 bits, as reliable as the atomic one, tells what one circuit of that size takes.

What it can't show. A parity gives no partial credit, and its gradient at small weights shrinks with every bit, so that
size decides is built into the rule; measured is by how much, for this family, start and optimizer. Rules with partial
credit may behave otherwise. Seeds differ in the start and in the order of batches; the rows of a size are drawn once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowhanging.circuits.learning_times import LearningTimes, first_crossing
from lowhanging.datasets import ParityRules
from lowhanging.errors import check_count, explain
from lowhanging.reproduce import size_runs as runs
from lowhanging.reproduce.claims import Claim, interval, judged
from lowhanging.reproduce.shelf import NO_SHELF, Shelf
from lowhanging.reproduce.size_runs import FULL, NAMES, QUICK, Design, Other, Rule

TOLD = {
    "atomic": "one circuit of n parameters",
    "decomposable": "two of n / 2 parameters",
    "same bits": "one of as many bits as the two",
    "one half": "one of the two, alone",
}


@dataclass(frozen=True)
class _Work:
    """What is trained, and where finished stacks are kept."""

    plan: Design
    seeds: int
    shelf: Shelf
    keeps_stacks: bool

    def times(
        self, name: str, rules: ParityRules, rule: Rule, budget: int, log_every: int, other: Other | None = None
    ) -> list[float | None]:
        """Steps that each seed took to learn a rule (None: infinite), trained once."""
        resume = self.shelf.resume(name) if self.keeps_stacks else None

        def made() -> list[float | None]:
            learn = runs.times_to_learn
            return _plain(learn(rules, rule, budget, self.seeds, log_every=log_every, other=other, resume=resume))

        found: list[float | None] = self.shelf.plain(name, made)
        if resume is not None:
            resume.unlink(missing_ok=True)
        return found


def measure(
    *,
    seeds: int = 30,
    quick: bool = False,
    design: Design | None = None,
    shelf: Shelf = NO_SHELF,
    keeps_stacks: bool = False,
) -> dict[str, Any]:
    """Times to learn each rule at each size, over seeds 0, 1, ..., as plain numbers (None: infinite).

    Each rule at each size is kept on the shelf; with `keeps_stacks` also the one that is being trained.
    """
    seeds = check_count("seeds", seeds, minimum=2, remedy="Pass the number of networks, at least 30 for a report.")
    plan = design or (QUICK if quick else FULL)
    work = _Work(plan, seeds, shelf, keeps_stacks)
    sizes = [_size(work, i) for i in range(len(plan.sizes))]
    found = _times(sizes)
    return {
        "seeds": seeds,
        "num_bits": plan.num_bits,
        "hidden": runs.HIDDEN,
        "batch_size": runs.BATCH_SIZE,
        "lr": runs.LR,
        "log_every": runs.LOG_EVERY,
        "share": runs.SHARE,
        "sizes": sizes,
        "ratios": {
            "atomic": _ratio(found, "atomic", "decomposable"),
            "same bits": _ratio(found, "same bits", "decomposable"),
            "two for one": _ratio(found, "decomposable", "one half"),
        },
        # Kept whole only: every weight at every row is too much to write at every row.
        "joint": [shelf.plain(f"sizes-{size}-joint", partial(_joint, plan, size, seeds)) for size in plan.joint],
        "others": [_other(work, other) for other in plan.others],
    }


def learning_times(row: Mapping[str, Any]) -> LearningTimes:
    """The times that `measure` found, under names that a reader of `plots.learning_times` understands."""
    found = _times(row["sizes"])
    return LearningTimes(
        found.sizes,
        {told: found.times[name] for name, told in TOLD.items()},
        {told: found.budgets[name] for name, told in TOLD.items()},
    )


def claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Smaller circuits first. The one row holds its own seeds."""
    if len(rows) != 1:
        remedy = "Its seeds are inside the one row that measure() returns."
        raise ValueError(explain("rows", f"has {len(rows)} rows", "one", remedy))
    row = rows[0]
    times, ratio, num = _times(row["sizes"]), row["ratios"]["atomic"], row["seeds"]
    texts = [
        f"n = {size['size']}: median {_span(times, 'decomposable', i)} steps for two circuits of {size['size'] // 2} "
        f"parameters, {_span(times, 'atomic', i)} for one of {size['size']}, a factor of {_factor(ratio, i)}; the one "
        f"is learned later by {ratio['num_later'][i]} of {num} seeds ({_never(times, 'atomic', i)})"
        for i, size in enumerate(row["sizes"])
    ]
    growth = _bracketed(ratio["growth"], *ratio["growth_interval"])
    bound = ", a lower bound, as most seeds had not learned the last one" if ratio["is_growth_bound"] else ""
    joint = [
        f"with both rules at once, n = {found['size']}: both halves before the whole in "
        f"{interval(found['num_halves_before'], num)} of the seeds, the other way round in {found['num_atomic_before']}"
        for found in row["joint"]
    ]
    others = [
        f"{other['network']} network, {other['optimizer']}, n = {other['size']}: factor {_factor(other['ratio'], 0)}"
        for other in row["others"]
    ]
    measured = (
        f"{num} seeds, {row['num_bits']} bits, medians with 95 % intervals. " + "; ".join(texts)
        + f"; from the first size to the last the factor grows by {growth}{bound}. "
        + "; ".join(joint) + "".join(f". {text}" for text in others)
    )  # fmt: skip
    is_slower = [low is None or low > 1 for low in ratio["low"]]
    is_growing = ratio["growth_interval"][0] > 1
    is_first = [found["num_halves_before"] > found["num_atomic_before"] for found in row["joint"]]
    return [
        Claim(
            number=18,
            name="two small circuits are learned before one large one with the same effect",
            post="two circuits of ten parameters each are found sooner than one of twenty that does as much",
            measured=measured,
            null=_null(row, times),
            rule="three parts: at every size the 95 % interval of the factor (bootstrap over seeds; a seed that never "
            "learns counts as infinitely late) lies above 1; the interval of its growth from the first size to the "
            "last lies above 1 (a seed that never learns the last one counts as learning it when its budget ends, so "
            "that the growth is a lower bound); with both rules at once both halves precede the whole in more seeds "
            "than the other way round",
            verdict=judged(all(is_slower), is_growing, all(is_first)),
        )
    ]


def _null(row: Mapping[str, Any], times: LearningTimes) -> str:
    """Equal times, and the two controls."""
    same, pair = row["ratios"]["same bits"], row["ratios"]["two for one"]
    listed = [
        f"n = {size['size']}: {_factor(same, i)} for one circuit of as many bits as the two halves have together "
        f"({size['same bits']['parameters']} parameters), {_factor(pair, i)} for two halves over one of them"
        for i, size in enumerate(row["sizes"])
    ]
    return (
        "a factor of 1, equal times; two controls, " + "; ".join(listed) + ". Where the first control is as slow as "
        "the whole rule, it is not how many bits are read that matters, but that the halves pay one by one. Parities "
        "give no partial credit, so that rules which do may behave otherwise"
    )


def _size(work: _Work, index: int) -> dict[str, Any]:
    """All rules at one size."""
    plan, size = work.plan, work.plan.sizes[index]
    found: dict[str, Any] = {"size": size}
    for (name, (rules, rule)), budget in zip(runs.at_size(plan, size).items(), plan.budgets[index], strict=True):
        smallest = runs.smallest_network(rules, rule)
        found[name] = {
            "parameters": smallest.num_nonzero,
            "ideal_loss": rules.losses[rule],
            "held_out_loss_of_smallest": runs.held_out_loss(smallest, runs.view_of(rules, rule)),
            "budget": budget,
            "steps": work.times(f"sizes-{size}-{_file(name)}", rules, rule, budget, runs.LOG_EVERY[name]),
        }
    return found


def _joint(plan: Design, size: int, seeds: int) -> dict[str, Any]:
    """Both rules at once: when do the logits hold half of each ideal coefficient?"""
    budget = plan.budgets[plan.sizes.index(size)][0]
    rules, _ = runs.at_size(plan, size)["atomic"]
    steps, shares = runs.shares_over_training(rules, budget, seeds)
    whole, first, second = (first_crossing(steps, shares[..., i], 0.5, is_rising=True) for i in range(3))
    halves = torch.maximum(first, second)
    return {
        "size": size,
        "budget": budget,
        "whole": _plain(whole),
        "first half": _plain(torch.minimum(first, second)),
        "both halves": _plain(halves),
        "num_halves_before": int((halves < whole).sum()),
        "num_atomic_before": int((whole < halves).sum()),
        "median_final_shares": shares[:, -1].median(0).values.tolist(),  # of the whole cue and the two halves
    }


def _other(work: _Work, other: Other) -> dict[str, Any]:
    """The two rules of the first size with another network or another optimizer."""
    plan = work.plan
    made: dict[Rule, int] = dict(zip(("atomic", "decomposable"), other.budgets, strict=True))
    rules, _ = runs.at_size(plan, plan.sizes[0])["atomic"]
    rows = {
        name: work.times(
            f"sizes-{other.network}-{other.optimizer}-{name}", rules, name, steps, runs.LOG_EVERY[name], other
        )
        for name, steps in made.items()
    }
    found = LearningTimes(
        sizes=torch.tensor([float(plan.sizes[0])]),
        times={str(name): _steps(times)[None] for name, times in rows.items()},
        budgets={str(name): torch.tensor([float(steps)]) for name, steps in made.items()},
    )
    return {
        **asdict(other),
        "budgets": list(other.budgets),
        "size": plan.sizes[0],
        "steps": dict(rows),
        "ratio": _ratio(found, "atomic", "decomposable"),
    }


def _plain(times: Tensor) -> list[float | None]:
    """Numbers for JSON, which has no infinity."""
    return [time if math.isfinite(time) else None for time in times.flatten().tolist()]


def _steps(times: Sequence[float | None]) -> Tensor:
    """(seeds,) with infinity for None."""
    return torch.tensor([math.inf if time is None else float(time) for time in times], dtype=torch.float64)


def _file(name: str) -> str:
    return name.replace(" ", "-")


def _times(sizes: Sequence[Mapping[str, Any]]) -> LearningTimes:
    return LearningTimes(
        sizes=torch.tensor([float(size["size"]) for size in sizes]),
        times={name: torch.stack([_steps(size[name]["steps"]) for size in sizes]) for name in NAMES},
        budgets={name: torch.tensor([float(size[name]["budget"]) for size in sizes]) for name in NAMES},
    )


def _ratio(found: LearningTimes, slow: str, fast: str) -> dict[str, Any]:
    ratio = found.ratio(slow, fast)
    low, high = (_plain(ends) for ends in ratio.interval.T)
    return {
        "ratio": _plain(ratio.ratio),
        "low": low,
        "high": high,
        "num_later": ratio.num_later.tolist(),
        "p_value": ratio.p_value.tolist(),
        "growth": ratio.growth,
        "is_growth_bound": ratio.is_growth_bound,
        "growth_interval": ratio.growth_interval.tolist(),
    }


def _number(value: float | None) -> str:
    return "∞" if value is None or math.isinf(value) else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _bracketed(value: float | None, low: float | None, high: float | None) -> str:
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _factor(ratio: Mapping[str, Any], index: int) -> str:
    return _bracketed(ratio["ratio"][index], ratio["low"][index], ratio["high"][index])


def _span(times: LearningTimes, name: str, index: int) -> str:
    low, high = times.interval(name)[index].tolist()
    return _bracketed(float(times.median(name)[index]), low, high)


def _never(times: LearningTimes, name: str, index: int) -> str:
    return f"{int(times.num_never(name)[index])} not within {int(times.budgets[name][index])} steps"
