"""Addition modulo p, the task that is solved by several circuits at once.

A network that reads E[a] + E[b] can't tell (a, b) from (b, a). A split of *ordered* pairs therefore puts the mirror
image of most test pairs into the training set, and a network that has only memorised scores about the train fraction on
it. So a pair and its mirror image are on the same side by default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowhanging.datasets.examples import Examples
from lowhanging.errors import (
    argument_message,
    check_choice,
    check_count,
    check_real,
    door,
    warn,
)

Operation = Literal["add", "random"]
_MAX_MODULUS = 4096  # the split of its p^2 pairs takes about 2 GB


@dataclass(frozen=True, repr=False, eq=False)
class ModularPairs(Examples):
    """Pairs of tokens and their result.

    Attributes:
        inputs: (n, 2) or (n, 3) int64, tokens a, b, and the token p ("=") in a third column where it was asked for.
        targets: (n,) int64, the result, 0 to p - 1.
    """

    def __repr__(self) -> str:
        return f"ModularPairs({len(self):,} pairs of {self.inputs.shape[1]} tokens)"


@dataclass(frozen=True, repr=False, eq=False)
class ModularAddition:
    """All p^2 pairs, split into those to train on and those held out.

    Attributes:
        train: pairs to train on, in the order of a p + b.
        test: the others.
        table: the result of every pair, entry [a, b].
        p, train_fraction, split, operation, equals_token, seed: as given to `modular_addition`.
    """

    train: ModularPairs
    test: ModularPairs
    table: Tensor  # (p, p) int64
    p: int
    train_fraction: float
    split: str
    operation: str
    equals_token: bool
    seed: int

    def __repr__(self) -> str:
        sizes = f"p={self.p}, train={len(self.train):,}, test={len(self.test):,}"
        return f"ModularAddition({sizes}, {self.split} pairs, operation={self.operation!r}, seed={self.seed})"


@door
def modular_addition(
    p: int = 53,
    train_fraction: float = 0.8,
    *,
    split: Literal["unordered", "ordered"] = "unordered",
    operation: Operation = "add",
    equals_token: bool = False,
    seed: int = 0,
) -> ModularAddition:
    r"""All pairs (a, b), 0 <= a, b < p, with targets a + b mod p, split at random.

    Args:
        p: the modulus, at least 2. The Fourier circuits of the literature want an odd prime.
        train_fraction: share of the pairs to train on, in (0, 1]; 1 leaves the test set empty.
        split: "unordered" keeps (a, b) and (b, a) together: p (p + 1) / 2 units are split, so the share of the ordered
            pairs is `train_fraction` up to rounding and the diagonal. "ordered" splits them apart, with a warning.
        operation: "add", or "random": a table drawn uniformly, with table[a, b] = table[b, a], that nothing but
            memorisation can learn; the control for every claim about circuits.
        equals_token: a third column with the token p, as the transformer reads it: a b "=".
        seed: of the split and of the random table; the global random state is not used.

    Returns:
        ModularAddition: `.train` and `.test` (data sets of tokens (n, 2) or (n, 3) and targets (n,)), `.table` (p, p).

    Raises:
        ValueError, TypeError: p below 2 or too large for memory, a fraction that leaves no training pair, an unknown
            choice.

    Warns:
        UserWarning: split="ordered", because mirror images of test pairs are then trained on.

    Source:
        Nanda, Chan, Lieberum, Smith & Steinhardt (2023), "Progress measures for grokking via mechanistic
        interpretability", for the task.
    """
    remedy = "All p^2 pairs are held in memory; 53 and 113 are usual."
    check_count("p", p, minimum=2, maximum=_MAX_MODULUS, remedy=remedy)
    remedy = "The share of all pairs to train on, such as 0.8."
    check_real("train_fraction", train_fraction, minimum=0.0, maximum=1.0, remedy=remedy)
    check_choice("split", split, ("unordered", "ordered"))
    check_choice("operation", operation, ("add", "random"))
    seed = check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)  # pair number a p + b
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    unit = low * p + high if split == "unordered" else a * p + b  # pairs with one unit stay together
    units = torch.unique(unit)
    order = units[torch.randperm(len(units), generator=generator)]
    num_train = math.floor(train_fraction * len(units) + 0.5)
    if num_train == 0:
        received = f"is {train_fraction:g}, which leaves none of the {len(units)} pairs"
        raise ValueError(argument_message("train_fraction", received, "at least one pair to train on", remedy))
    is_trained = torch.isin(unit, order[:num_train])
    table = (torch.arange(p)[:, None] + torch.arange(p)) % p
    if operation == "random":
        drawn = torch.randint(p, (p, p), generator=generator)
        table = torch.where(torch.arange(p)[:, None] <= torch.arange(p), drawn, drawn.T)
    if split == "ordered":
        message = (
            "split='ordered' puts (b, a) into the training set for most test pairs (a, b); a model that reads "
            "E[a] + E[b] can score about the train fraction on them by memorising. Use split='unordered' to hold out."
        )
        warn(message)
    columns = [a, b, torch.full_like(a, p)] if equals_token else [a, b]
    inputs, targets = torch.stack(columns, dim=1), table[a, b]
    train, test = (ModularPairs(inputs[where], targets[where]) for where in (is_trained, ~is_trained))
    return ModularAddition(train, test, table, p, float(train_fraction), split, operation, equals_token, seed)
