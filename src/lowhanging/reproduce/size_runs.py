"""What is trained to compare two rules of different size, and when has a network learned one?

The same networks (start, width, optimizer, order of batches) on every rule of every size, with the same number of
columns throughout, so that a larger rule is not also a larger haystack. Each rule has a budget of its own, because the
quick ones would otherwise be trained for long after they are learned; a budget that ends too early leaves a time
infinite, never short.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lowhanging.circuits.learning_times import first_crossing
from lowhanging.datasets import ParityRules, ParityView, parity_rules
from lowhanging.objective import Objective
from lowhanging.reproduce.cosine_network import CosineNetwork, TanhNetwork, exact_network
from lowhanging.stacks import train_stack

Rule = Literal["atomic", "decomposable"]
Optimizer = Literal["adam", "sgd"]

SHARE = 0.9  # of the way down to the smallest network's loss
HIDDEN, BATCH_SIZE, LR = 32, 128, 0.02
LOG_EVERY = {"atomic": 10, "decomposable": 2, "same bits": 10, "one half": 2, "joint": 5}  # steps
NUM_PROBES = 2048  # uniform inputs on which a circuit's share of the logits is measured
NAMES = ("atomic", "decomposable", "same bits", "one half")


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


def rules_of(plan: Design, whole: int, half: int) -> ParityRules:
    """A data set of the plan's shape."""
    return parity_rules(
        whole, half, num_bits=plan.num_bits, num_train=plan.num_train, num_test=plan.num_test, seed=whole
    )


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


def view_of(rules: ParityRules, rule: Rule) -> ParityView:
    """The rows on which a rule tells the label."""
    return rules.atomic if rule == "atomic" else rules.decomposable


def smallest_network(rules: ParityRules, rule: Rule) -> CosineNetwork:
    """The network of fewest parameters that is the ideal reader of a view."""
    a, b = rules.coefficients["whole"], rules.coefficients["half"]
    cues = [(rules.whole_bits, a)] if rule == "atomic" else [(bits, b) for bits in rules.half_bits]
    return exact_network(rules.both.train.inputs.shape[1], cues)


def held_out_loss(network: nn.Module, data: ParityView) -> float:
    """Mean loss on the test rows (nats)."""
    loss = Objective(network, data.test)
    return float(loss(loss.theta0))


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
    floor = held_out_loss(smallest_network(rules, rule), data)
    run = train_stack(
        _factory(data.train.inputs.shape[1], TanhNetwork if other and other.network == "tanh" else CosineNetwork),
        data.train,
        range(seeds),
        steps=budget,
        batch_size=BATCH_SIZE,
        lr=other.lr if other else LR,
        optimizer=other.optimizer if other else "adam",
        evaluate={"test": data.test},
        log_every=log_every,
        resume=resume,
        progress=False,
    )
    return first_crossing(run.steps, run.losses["test"], math.log(2) - SHARE * (math.log(2) - floor))


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
        steps=budget,
        batch_size=BATCH_SIZE,
        lr=LR,
        snapshots="*",
        log_every=LOG_EVERY["joint"],
        progress=False,
    )
    generator = torch.Generator().manual_seed(len(rules.whole_bits))
    probes = torch.randint(2, (NUM_PROBES, num_bits), generator=generator).float() * 2 - 1
    signs = torch.stack(rules.signs(probes))  # (3, probes)
    a, b = rules.coefficients["whole"], rules.coefficients["half"]
    model = CosineNetwork(num_bits, HIDDEN, seed=0)
    shares = torch.empty(seeds, len(run.steps), 3)
    for seed in range(seeds):
        for log in range(len(run.steps)):
            weights = {name: rows[seed, log] for name, rows in run.snapshots.items()}
            logits = torch.func.functional_call(model, weights, (probes,)).detach()  # (probes, 2)
            shares[seed, log] = signs @ (logits[:, 1] - logits[:, 0]) / NUM_PROBES / torch.tensor([a, b, b])
    return run.steps, shares


def _factory(num_bits: int, kind: type[CosineNetwork] | type[TanhNetwork]) -> Callable[[int], nn.Module]:
    return lambda seed: kind(num_bits, HIDDEN, seed)
