r"""Two rules of equal final loss: one large circuit, or two circuits of half the size.

A cue is the parity of a few bits, the product of their signs: all or nothing, because any subset of its bits is
independent of the label. The *atomic* rule reads one cue of `whole` bits, the *decomposable* one reads two cues of
`half` bits. Every cue is a noisy witness of the label, and given the label they are independent of each other, so that
what an ideal reader of all of them computes is a sum of circuits at the level of the logits:

    log P(1 | x) / P(0 | x) = a \chi_whole(x) + b (\chi_first(x) + \chi_second(x)).

Equal final loss, on paper. Let a half be right with probability r = `reliability`. Two halves agree with probability
s = r^2 + (1 - r)^2 and are then right with probability r^2 / s; else they say nothing. With h the entropy of a biased
coin (nats), the decomposable rule's loss is s h(r^2 / s) + (1 - s) ln 2, and the whole cue's reliability q is chosen
so that h(q) is the same number. Either half alone reaches h(r): at r = 0.9, 0.179 in all, 0.325 with one half, of
0.693 = ln 2 without any, so a rule is learned *whole* only beyond 72 % of the way down.

What it can't show: parities are the hardest of rules for learners that see averages of gradients, so it speaks of
rules without partial credit and of no others. And equal loss is not equal slope: by itself the whole cue agrees with
the label more often (q = 0.957) than a half does (0.9), to the atomic rule's advantage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

from lowhanging.datasets.examples import Examples
from lowhanging.errors import (
    argument_message,
    check_choice,
    check_count,
    check_real,
    door,
)

VIEWS = ("atomic", "decomposable", "both")


@dataclass(frozen=True, repr=False, eq=False)
class ParityBits(Examples):
    """Rows of signs with their label.

    Attributes:
        inputs: (n, num_bits) float32, -1 or 1.
        targets: (n,) int64, the class, 0 or 1.
    """

    def __repr__(self) -> str:
        return f"ParityBits({len(self):,} rows of {self.inputs.shape[1]} bits)"


@dataclass(frozen=True, eq=False)
class ParityView:
    """The training and the test rows of one view: the atomic rule, the decomposable one, or both."""

    train: ParityBits
    test: ParityBits


@dataclass(frozen=True, repr=False, eq=False)
class ParityRules:
    """An atomic and a decomposable rule of equal final loss, in three views that share labels and bits.

    Example i has the same label in all three views, and the same bits but for at most one of each cue: the one that
    makes a cue say what it says. In a view where a cue says nothing, its bits are uniform.

    Attributes:
        atomic: the whole cue gives the label.
        decomposable: the two halves give it.
        both: all three do, redundantly.
        whole_bits: columns of the whole cue.
        half_bits: columns of the two halves, a row each.
        coefficients: of the ideal logit: "whole" a = log(q / (1 - q)), "half" b = log(r / (1 - r)).
        losses: view -> the smallest loss that any reader of it can have (nats); also "half", with one half alone.
        reliability: r, the probability that a half is right about the label.
        whole_reliability: q, that of the whole cue.
        seed: as given.
    """

    atomic: ParityView
    decomposable: ParityView
    both: ParityView
    whole_bits: Tensor  # (whole,) int64
    half_bits: Tensor  # (2, half) int64
    coefficients: dict[str, float]
    losses: dict[str, float]
    reliability: float
    whole_reliability: float
    seed: int

    def __repr__(self) -> str:
        sizes = f"train={len(self.both.train):,}, test={len(self.both.test):,}"
        cues = f"whole={len(self.whole_bits)}, half={self.half_bits.shape[1]}"
        num_bits = self.both.train.inputs.shape[1]
        return f"ParityRules({cues}, num_bits={num_bits}, reliability={self.reliability:g}, {sizes}, seed={self.seed})"

    def signs(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the whole cue and the two halves say, each (n,) of -1 and 1."""
        cues = (self.whole_bits, *self.half_bits)
        whole, first, second = (inputs[:, bits.to(inputs.device)].prod(1) for bits in cues)
        return whole, first, second

    def logits(self, inputs: Tensor, view: str) -> Tensor:
        """The ideal reader's log P(1 | x) / P(0 | x) of a view, (n,)."""
        check_choice("view", view, VIEWS, remedy="Name the view that the inputs are from.")
        whole, first, second = self.signs(inputs)
        total = torch.zeros_like(whole)
        if view != "decomposable":
            total = total + self.coefficients["whole"] * whole
        if view != "atomic":
            total = total + self.coefficients["half"] * (first + second)
        return total


@door
def parity_rules(
    whole: int = 5,
    half: int = 2,
    *,
    num_bits: int | None = None,
    reliability: float = 0.9,
    num_train: int = 32768,
    num_test: int = 4096,
    seed: int = 0,
) -> ParityRules:
    r"""Labels given by the parity of `whole` bits, or to the same loss by the parities of two times `half` bits.

    The cues have no bit in common and stand in random columns; other columns say nothing.

    Args:
        whole: bits of the atomic rule's only cue, >= 1.
        half: bits of each of the decomposable rule's two cues, >= 1. Equal numbers of *bits* are whole = 2 half.
            In a network that spends one weight on each bit and one on reading the circuit out, equal numbers of
            *parameters* are whole + 1 = 2 (half + 1), such as 5 and 2.
        num_bits: columns, at least whole + 2 half (the default). The same one for several sizes keeps the
            haystack equal.
        reliability: probability r that a half is right about the label, in (0.5, 1).
        num_train: training rows.
        num_test: test rows.
        seed: of everything that is drawn; the global random states are not touched.

    Returns:
        ParityRules with `.atomic`, `.decomposable` and `.both`, each `.train` and `.test`.

    Raises:
        ValueError, TypeError: a size below 1, too few columns, a reliability that says nothing or everything.

    Source:
        Vaintrob & Rimsky (2023), "The low-hanging fruit prior and sloped valleys in the loss landscape", for the
        question; Barak et al. (2022), "Hidden progress in deep learning: SGD learns parities near the computational
        limit", for parities as rules that take the longer the more bits they have.
    """
    whole = check_count("whole", whole, remedy="Pass the bits of the atomic rule, such as 5.")
    half = check_count("half", half, remedy="Pass the bits of each half of the decomposable rule, such as 2.")
    needed = whole + 2 * half
    remedy = f"The cues share no bit: {whole} + 2 * {half} columns at least, or None for just these."
    num_bits = needed if num_bits is None else check_count("num_bits", num_bits, minimum=needed, remedy=remedy)
    remedy = "At 0.5 a cue says nothing, at 1 everything. Such as 0.9."
    r = check_real("reliability", reliability, minimum=0.5, maximum=1, exclusive=True, remedy=remedy)
    if 1 - r < 1e-6 or r - 0.5 < 1e-6:
        received = f"is {r!r}, too near the end for a loss that differs from its limit"
        raise ValueError(argument_message("reliability", received, "a number in [0.500001, 0.999999]", remedy))
    num_train = check_count("num_train", num_train, remedy="Pass the number of training rows, such as 32768.")
    num_test = check_count("num_test", num_test, remedy="Pass the number of test rows, such as 4096.")
    seed = check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")

    q = _equal_reliability(r)
    order = torch.randperm(num_bits, generator=_generator(seed, 0))
    cues = torch.split(order[:needed], [whole, half, half])
    train = _views(cues, num_bits, num_train, q, r, _generator(seed, 1))
    test = _views(cues, num_bits, num_test, q, r, _generator(seed, 2))
    atomic, decomposable, both = (ParityView(*pair) for pair in zip(train, test, strict=True))
    witnesses = {"atomic": (q,), "decomposable": (r, r), "both": (q, r, r), "half": (r,)}
    losses = {name: _ideal_loss(*right) for name, right in witnesses.items()}
    return ParityRules(
        atomic=atomic, decomposable=decomposable, both=both, whole_bits=cues[0], half_bits=torch.stack(cues[1:]),
        coefficients={"whole": math.log(q / (1 - q)), "half": math.log(r / (1 - r))}, losses=losses, reliability=r,
        whole_reliability=q, seed=seed,
    )  # fmt: skip


def _generator(seed: int, stream: int) -> torch.Generator:
    """One for each purpose, so that more training rows move no test row."""
    return torch.Generator().manual_seed(3 * seed + stream)


def _ideal_loss(*reliabilities: float) -> float:
    """Entropy (nats) of the label given witnesses that are independent of each other once the label is known."""
    joint = [(0.5, 0.5)]  # probabilities of (what the witnesses say, label 1) and of (the same, label 0)
    for right in reliabilities:
        wrong = 1 - right
        joint = [pair for one, zero in joint for pair in ((one * right, zero * wrong), (one * wrong, zero * right))]
    return -sum(p * math.log(p / (one + zero)) for one, zero in joint for p in (one, zero))


def _equal_reliability(r: float) -> float:
    """Reliability q of one witness that says as much as two of reliability r."""
    wanted = _ideal_loss(r, r)
    # More than one of them says, and less than it would say if it were right whenever any of the two is.
    return float(brentq(lambda q: _ideal_loss(q) - wanted, r, 1 - (1 - r) ** 2, xtol=1e-15, rtol=1e-14))


def _views(
    cues: Sequence[Tensor], num_bits: int, num: int, q: float, r: float, generator: torch.Generator
) -> tuple[ParityBits, ParityBits, ParityBits]:
    """Views atomic, decomposable and both of the same draws."""
    targets = torch.randint(2, (num,), generator=generator)
    signs = torch.randint(2, (num, num_bits), generator=generator).float() * 2 - 1
    label = targets.float() * 2 - 1
    views = [signs.clone(), signs.clone(), signs]
    for bits, right, shown in zip(cues, (q, r, r), ((0, 2), (1, 2), (1, 2)), strict=True):
        is_right = torch.rand(num, generator=generator, dtype=torch.float64) < right
        said = torch.where(is_right, label, -label)
        turned = signs[:, bits[0]] * said * signs[:, bits].prod(1)  # the first bit, so that the product is what is said
        for view in shown:
            views[view][:, bits[0]] = turned
    atomic, decomposable, both = (ParityBits(inputs, targets) for inputs in views)
    return atomic, decomposable, both
