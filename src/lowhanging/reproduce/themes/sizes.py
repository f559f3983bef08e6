r"""Theme "sizes": two circuits of half the size against one of the whole size that does as much.

Both rules of `parity_rules` end at the same loss, and the smallest `CosineNetwork` of either has the same number of
parameters: n for one cue of n - 1 bits (a weight per bit and one read-out), n / 2 twice for two cues of n / 2 - 1 bits.
The same networks (start, width, optimizer, order of batches) are trained on each rule by itself, and on both at once,
with the same number of columns throughout, so that a larger rule is not also a larger haystack. A rule counts as
learned where the held-out loss has gone 90 % of the way from ln 2 to that of the smallest network; one half alone
brings it 72 % there. Each rule has a budget of its own, because the quick ones would otherwise be trained for long
after they are learned; a budget that ends too early leaves a time infinite, never short.

Two controls. Is it the number of bits? The atomic rule of n - 2 bits reads as many bits as the two halves together,
takes one parameter less, and is what they would be if they paid only together. Is it that there are two? One cue of
n / 2 - 1 bits, as reliable as the atomic one, tells what one circuit of that size takes.

What it can't show. A parity gives no partial credit, and its gradient at small weights shrinks with every bit, so that
size decides is built into the rule; measured is by how much, for this family, start and optimizer. Rules with partial
credit may behave otherwise. Seeds differ in the start and in the order of batches; the rows of a size are drawn once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowhanging.circuits.learning_times import LearningTimes, first_crossing
from lowhanging.datasets import ParityRules, ParityView, parity_rules
from lowhanging.errors import argument_message, check_count
from lowhanging.models.initial import generator_of, normal
from lowhanging.objective.objective import Objective
from lowhanging.reproduce.claims import Claim, interval, judged
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.store import NO_STORE, ResultStore, Row
from lowhanging.training.stack import train_stack

Rule = Literal["atomic", "decomposable"]
Optimizer = Literal["adam", "sgd"]

SHARE = 0.9  # of the way down to the smallest network's loss
HIDDEN, BATCH_SIZE, LR = 32, 128, 0.02
LOG_EVERY = {"atomic": 10, "decomposable": 2, "same bits": 10, "one half": 2, "joint": 5}  # steps
NUM_INPUTS = 2048  # uniform ones, on which a circuit's share of the logits is measured
NAMES = {  # of the rules that are trained at a size, as the figure calls them
    "atomic": "one circuit of n parameters",
    "decomposable": "two of n / 2 parameters",
    "same bits": "one of as many bits as the two",
    "one half": "one of the two, alone",
}


@dataclass(frozen=True)
class Other:
    """Another network or optimizer, at the first size."""

    network: Literal["cosine", "tanh"]
    optimizer: Optimizer
    lr: float
    budgets: tuple[int, int]  # atomic, decomposable


@dataclass(frozen=True)
class Design:
    """What is trained, and for how many steps."""

    sizes: tuple[int, ...]  # n, the parameters of a rule's circuits: even, at least 6
    budgets: tuple[tuple[int, int, int, int], ...]  # steps at each size, in the order of NAMES
    joint: tuple[int, ...]  # sizes at which both rules are there at once
    others: tuple[Other, ...] = ()
    num_train: int = 32768
    num_test: int = 2048

    @property
    def num_bits(self) -> int:
        """Columns, the same at every size."""
        return 2 * max(self.sizes) - 3


# Budgets that most seeds need at most: three sizes in less than a minute of one core.
QUICK = Design((6, 8, 10), ((400, 60, 150, 60), (800, 90, 450, 90), (1600, 180, 1000, 180)), (6,))
# For tests: every line of the code, on next to nothing.
TINY = Design(
    sizes=(6, 8),
    budgets=((40, 30, 30, 20), (20, 20, 20, 20)),
    joint=(6,),
    others=(Other("tanh", "sgd", 0.1, (10, 10)),),
    num_train=1024,
    num_test=256,
)
FULL = Design(
    sizes=(6, 8, 10),
    budgets=((1000, 200, 500, 200), (2500, 400, 1500, 400), (5000, 800, 4000, 800)),
    joint=(6, 8),
    others=(Other("tanh", "adam", 0.02, (1500, 300)), Other("cosine", "sgd", 0.2, (4000, 600))),
)


def measure(context: Context) -> Row:
    """Times to learn each rule at each size, over as many seeds as the sizes of the run say."""
    plan = TINY if context.sizes.name == "tiny" else QUICK if context.sizes.is_quick else FULL
    return run_design(plan, context.sizes.size_seeds, store=context.store)


def run_design(plan: Design, num_seeds: int, *, store: ResultStore = NO_STORE) -> Row:
    """Times to learn each rule at each size, over seeds 0, 1, ..., as plain numbers (None: infinite).

    Each rule at each size is kept in the store; so is the one that is being trained.
    """
    remedy = "Pass the number of networks, at least 30 for a report."
    num_seeds = check_count("num_seeds", num_seeds, minimum=2, remedy=remedy)
    sizes = [
        _size(plan, size, budgets, num_seeds, store) for size, budgets in zip(plan.sizes, plan.budgets, strict=True)
    ]
    found = _times(sizes)
    return {
        "seeds": num_seeds,
        "num_bits": plan.num_bits,
        "hidden": HIDDEN,
        "batch_size": BATCH_SIZE,
        "lr": LR,
        "log_every": LOG_EVERY,
        "share": SHARE,
        "sizes": sizes,
        "ratios": {
            "atomic": _ratio(found, "atomic", "decomposable"),
            "same bits": _ratio(found, "same bits", "decomposable"),
            "two for one": _ratio(found, "decomposable", "one half"),
        },
        # Kept whole only: every weight at every row is too much to write at every row.
        "joint": [store.plain(f"sizes-{size}-joint", partial(_joint, plan, size, num_seeds)) for size in plan.joint],
        "others": [_other(plan, other, num_seeds, store) for other in plan.others],
    }


def _size(plan: Design, size: int, budgets: Sequence[int], num_seeds: int, store: ResultStore) -> dict[str, Any]:
    """All rules at one size."""
    found: dict[str, Any] = {"size": size}
    for (name, (rules, rule)), budget in zip(at_size(plan, size).items(), budgets, strict=True):
        smallest, file = smallest_network(rules, rule), f"sizes-{size}-{name.replace(' ', '-')}"
        found[name] = {
            "parameters": smallest.num_nonzero,
            "ideal_loss": rules.losses[rule],
            "held_out_loss_of_smallest": held_out_loss(smallest, view_of(rules, rule)),
            "budget": budget,
            "steps": _kept_times(store, file, rules, rule, budget, num_seeds, log_every=LOG_EVERY[name]),
        }
    return found


def _joint(plan: Design, size: int, seeds: int) -> dict[str, Any]:
    """Both rules at once: when do the logits hold half of each ideal coefficient?"""
    budget = plan.budgets[plan.sizes.index(size)][0]
    rules, _ = at_size(plan, size)["atomic"]
    steps, shares = shares_over_training(rules, budget, seeds)
    whole, first, second = (first_crossing(steps, shares[..., i], threshold=0.5, is_rising=True) for i in range(3))
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


def _other(plan: Design, other: Other, num_seeds: int, store: ResultStore) -> dict[str, Any]:
    """The two rules of the first size with another network or another optimizer."""
    budgets: dict[Rule, int] = dict(zip(("atomic", "decomposable"), other.budgets, strict=True))
    rules, _ = at_size(plan, plan.sizes[0])["atomic"]
    steps = {
        rule: _kept_times(
            store,
            f"sizes-{other.network}-{other.optimizer}-{rule}",
            rules,
            rule,
            budget,
            num_seeds,
            log_every=LOG_EVERY[rule],
            other=other,
        )
        for rule, budget in budgets.items()
    }
    found = LearningTimes(
        sizes=torch.tensor([float(plan.sizes[0])]),
        times={str(rule): _steps(times)[None] for rule, times in steps.items()},
        budgets={str(rule): torch.tensor([float(budget)]) for rule, budget in budgets.items()},
    )
    return {
        **asdict(other),
        "budgets": list(other.budgets),
        "size": plan.sizes[0],
        "steps": steps,
        "ratio": _ratio(found, "atomic", "decomposable"),
    }


def _kept_times(
    store: ResultStore, name: str, rules: ParityRules, rule: Rule, budget: int, num_seeds: int, **options: Any
) -> list[float | None]:
    """Steps that each seed took to learn a rule (None: infinite), trained once."""
    resume = store.resume(name)
    found: list[float | None] = store.plain(
        name, lambda: _plain(times_to_learn(rules, rule, budget, num_seeds, resume=resume, **options))
    )
    if resume is not None:
        resume.unlink(missing_ok=True)
    return found


def times_to_learn(
    rules: ParityRules,
    rule: Rule,
    budget: int,
    seeds: int,
    *,
    log_every: int,
    other: Other | None = None,
    resume: Path | None = None,
) -> Tensor:
    """(seeds,) steps until the held-out loss has gone SHARE of its way; inf where it has not.

    `resume` is the file from which a stack that was interrupted goes on.
    """
    data = view_of(rules, rule)
    least = held_out_loss(smallest_network(rules, rule), data)
    run = train_stack(
        _factory(data.train.inputs.shape[1], TanhNetwork if other and other.network == "tanh" else CosineNetwork),
        data.train,
        range(seeds),
        num_steps=budget,
        batch_size=BATCH_SIZE,
        lr=other.lr if other else LR,
        optimizer=other.optimizer if other else "adam",
        evaluate={"test": data.test},
        log_every=log_every,
        resume=resume,
        progress=False,
    )
    return first_crossing(run.steps, run.losses["test"], threshold=math.log(2) - SHARE * (math.log(2) - least))


def shares_over_training(rules: ParityRules, budget: int, seeds: int) -> tuple[Tensor, Tensor]:
    """Train on both rules at once: steps (logs,), and shares (seeds, logs, 3) of whole, first and second cue.

    A cue's share is its coefficient in the logits, E[z chi] over uniform inputs, over the ideal one: 0 before
    training, 1 in the ideal reader, whatever else the network has learned.
    """
    num_bits = rules.both.train.inputs.shape[1]
    run = train_stack(
        _factory(num_bits, CosineNetwork),
        rules.both.train,
        range(seeds),
        num_steps=budget,
        batch_size=BATCH_SIZE,
        lr=LR,
        snapshots="*",
        log_every=LOG_EVERY["joint"],
        progress=False,
    )
    generator = torch.Generator().manual_seed(len(rules.whole_bits))
    inputs = torch.randint(2, (NUM_INPUTS, num_bits), generator=generator).float() * 2 - 1
    signs = torch.stack(rules.signs(inputs))  # (3, inputs)
    a, b = rules.coefficients["whole"], rules.coefficients["half"]
    model = CosineNetwork(num_bits, HIDDEN, seed=0)
    shares = torch.empty(seeds, len(run.steps), 3)
    for seed in range(seeds):
        for log in range(len(run.steps)):
            weights = {name: rows[seed, log] for name, rows in run.snapshots.items()}
            logits = torch.func.functional_call(model, weights, (inputs,)).detach()  # (inputs, 2)
            shares[seed, log] = signs @ (logits[:, 1] - logits[:, 0]) / NUM_INPUTS / torch.tensor([a, b, b])
    return run.steps, shares


def _factory(num_bits: int, kind: type[CosineNetwork] | type[TanhNetwork]) -> Callable[[int], nn.Module]:
    return lambda seed: kind(num_bits, HIDDEN, seed)


def held_out_loss(network: nn.Module, data: ParityView) -> float:
    """Mean loss on the test rows (nats)."""
    loss = Objective(network, data.test)
    return float(loss(loss.theta0))


def smallest_network(rules: ParityRules, rule: Rule) -> CosineNetwork:
    """The network of fewest parameters that is the ideal reader of a view."""
    a, b = rules.coefficients["whole"], rules.coefficients["half"]
    cues = [(rules.whole_bits, a)] if rule == "atomic" else [(bits, b) for bits in rules.half_bits]
    return exact_network(rules.both.train.inputs.shape[1], cues)


def view_of(rules: ParityRules, rule: Rule) -> ParityView:
    """The rows on which a rule tells the label."""
    return rules.atomic if rule == "atomic" else rules.decomposable


def at_size(plan: Design, size: int) -> dict[str, tuple[ParityRules, Rule]]:
    """Every rule that is trained at a size n, by name."""
    half = size // 2 - 1
    rules = rules_of(plan, size - 1, half)
    return {
        "atomic": (rules, "atomic"),
        "decomposable": (rules, "decomposable"),
        "same bits": (rules_of(plan, size - 2, half), "atomic"),
        "one half": (rules_of(plan, half, half), "atomic"),
    }


def rules_of(plan: Design, whole: int, half: int) -> ParityRules:
    """A data set of the plan's shape."""
    return parity_rules(
        whole, half, num_bits=plan.num_bits, num_train=plan.num_train, num_test=plan.num_test, seed=whole
    )


class CosineNetwork(nn.Module):
    r"""z(x) = sum_j v_j cos(w_j c), c = (pi / 2) (1 - x), as logits (-z / 2, z / 2) of two classes.

    A sign of 1 counts 0 in c, a sign of -1 counts pi. A unit with weights 1 on the bits of a cue and 0 elsewhere is the
    cue, chi(x) = cos(pi #{bits that are -1}): k input weights and one read-out.

    Nothing smaller computes the same. An output that depends on a bit needs a weight on it, and a read-out: k + 1 for
    one cue of k bits, and 2k + 1 at least for two. Two cues, b (chi_A + chi_B), need a second unit from k = 2 on. With
    one, v = 2b (no sign turned); a bit i turned in either cue makes 0, so pi w_i = +- pi / 2 up to full turns; a bit i
    in A and a bit j in B turned make -2b, so w_i = w_j; two bits i and i' in A turned make 2b again, so w_i = -w_i'.
    But both equal w_j. So two cues of k bits take 2 (k + 1) parameters, as many as one cue of 2k + 1 bits.

    Args:
        num_bits: signs of an input.
        hidden: units.
        seed: of the weights, normal with variance 1 / num_bits and 1 / hidden; None draws from the global state.
    """

    def __init__(self, num_bits: int, hidden: int, seed: int | None = None):
        super().__init__()
        generator = generator_of(seed)
        self.weight = normal(hidden, num_bits, std=1 / math.sqrt(num_bits), generator=generator)
        self.readout = normal(hidden, std=1 / math.sqrt(hidden), generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, 2) of signs (n, num_bits)."""
        angles = (math.pi / 2) * ((1 - inputs) @ self.weight.T)  # (n, hidden)
        z = torch.cos(angles) @ self.readout  # (n,)
        return torch.stack([-z / 2, z / 2], dim=1)

    @property
    def num_nonzero(self) -> int:
        """Parameters that are not 0: those of the circuits that the network holds."""
        return int(sum((parameter != 0).sum() for parameter in self.parameters()))


def exact_network(num_bits: int, cues: Sequence[tuple[Tensor, float]]) -> CosineNetwork:
    """The smallest network of the family with z = sum of coefficient times cue, for (bits, coefficient) pairs."""
    network = CosineNetwork(num_bits, len(cues), seed=0)
    with torch.no_grad():
        network.weight.zero_()
        for unit, (bits, coefficient) in enumerate(cues):
            network.weight[unit, bits] = 1.0
            network.readout[unit] = coefficient
    return network


class TanhNetwork(nn.Module):
    """An ordinary hidden layer of tanh units with biases, for the same inputs; its circuits can't be counted so."""

    def __init__(self, num_bits: int, hidden: int, seed: int | None = None):
        super().__init__()
        generator = generator_of(seed)
        self.weight = normal(hidden, num_bits, std=1 / math.sqrt(num_bits), generator=generator)
        self.bias = normal(hidden, std=0.5, generator=generator)
        self.readout = normal(hidden, std=1 / math.sqrt(hidden), generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, 2) of signs (n, num_bits)."""
        z = torch.tanh(inputs @ self.weight.T + self.bias) @ self.readout  # (n,)
        return torch.stack([-z / 2, z / 2], dim=1)


def learning_times(row: Row) -> LearningTimes:
    """The times that `measure` found, under names that a reader of `plots.learning_times` understands."""
    found = _times(row["sizes"])
    return LearningTimes(
        found.sizes,
        {title: found.times[name] for name, title in NAMES.items()},
        {title: found.budgets[name] for name, title in NAMES.items()},
    )


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Smaller circuits first. The one row holds its own seeds."""
    if len(rows) != 1:
        remedy = "Its seeds are inside the one row that measure() returns."
        raise ValueError(argument_message("rows", f"has {len(rows)} rows", "one", remedy))
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


def _null(row: Row, times: LearningTimes) -> str:
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


def _times(sizes: Sequence[Row]) -> LearningTimes:
    return LearningTimes(
        sizes=torch.tensor([float(size["size"]) for size in sizes]),
        times={name: torch.stack([_steps(size[name]["steps"]) for size in sizes]) for name in NAMES},
        budgets={name: torch.tensor([float(size[name]["budget"]) for size in sizes]) for name in NAMES},
    )


def _steps(times: Sequence[float | None]) -> Tensor:
    """(seeds,) with infinity for None."""
    return torch.tensor([math.inf if time is None else float(time) for time in times], dtype=torch.float64)


def _plain(times: Tensor) -> list[float | None]:
    """Numbers for JSON, which has no infinity."""
    return [time if math.isfinite(time) else None for time in times.flatten().tolist()]


def _number(value: float | None) -> str:
    return "∞" if value is None or math.isinf(value) else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _bracketed(value: float | None, low: float | None, high: float | None) -> str:
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _factor(ratio: Row, index: int) -> str:
    return _bracketed(ratio["ratio"][index], ratio["low"][index], ratio["high"][index])


def _span(times: LearningTimes, name: str, index: int) -> str:
    low, high = times.interval(name)[index].tolist()
    return _bracketed(float(times.median(name)[index]), low, high)


def _never(times: LearningTimes, name: str, index: int) -> str:
    return f"{int(times.num_never(name)[index])} not within {int(times.budgets[name][index])} steps"
