"""What does the theory say where everything can be computed on paper?"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lowhanging.errors import check_count, check_real, explain


@dataclass(frozen=True)
class RedundantSum:
    """Cross-entropies of redundant circuits, on paper and from their logits."""

    single: float  # one circuit alone: (1 - known) ln(num_classes)
    joint: float  # the sum of their logits: (1 - known)^num_circuits ln(num_classes)
    single_measured: float  # mean cross-entropy of one circuit's logits
    joint_measured: float  # mean cross-entropy of the summed logits

    def __repr__(self) -> str:
        factor = self.single / self.joint
        return f"RedundantSum(single {self.single:.4g}, joint {self.joint:.4g}, factor {factor:.4g})"


def redundant_sum(known: float = 0.9, num_classes: int = 10, num_circuits: int = 2) -> RedundantSum:
    r"""The post's toy sum: circuits that each know a share of the answers and guess uniformly on the rest.

    A circuit that is certain on a share `known`, uniform over C classes elsewhere, has cross-entropy (1 - known) ln C.
    Where n circuits know *independent* shares and their logits add, only what none of them knows is guessed:
    (1 - known)^n ln C. With 0.9, C = 10, n = 2: 0.1 ln 10 alone, 0.01 ln 10 together, a factor of ten.

    The measured numbers come from logits: one example per cell of a grid in which circuit i knows exactly a share
    `known` of axis i, each knowing circuit adding 60 to the right logit.

    Args:
        known: share of examples that each circuit knows, a multiple of 1/100 in (0, 1).
        num_classes: C >= 2.
        num_circuits: n, 1 to 3 (the grid has 100^n cells).

    Returns:
        RedundantSum, in nats per example.

    Raises:
        ValueError, TypeError: an argument out of range.

    Source:
        Vaintrob & Rimsky (2023), the argument for why redundant circuits pay.
    """
    remedy = "The post has known=0.9, num_classes=10, num_circuits=2."
    known = check_real("known", known, minimum=0.0, maximum=1.0, exclusive=True, remedy=remedy)
    check_count("num_classes", num_classes, minimum=2, remedy=remedy)
    check_count("num_circuits", num_circuits, maximum=3, remedy=remedy)
    if not math.isclose(100 * known, round(100 * known)):
        raise ValueError(explain("known", f"is {known!r}", "a multiple of 0.01", remedy))
    unknown, log_classes = 1.0 - known, torch.tensor(float(num_classes), dtype=torch.float64).log().item()
    is_known = torch.arange(100) < round(100 * known)
    cells = torch.tensor(list(itertools.product(range(100), repeat=num_circuits)))  # (100^n, n)
    targets = torch.arange(len(cells)) % num_classes
    right = F.one_hot(targets, num_classes).double()
    circuits = [60.0 * is_known[axis].double()[:, None] * right for axis in cells.T]
    return RedundantSum(
        single=unknown * log_classes,
        joint=unknown**num_circuits * log_classes,
        single_measured=float(F.cross_entropy(circuits[0], targets)),
        joint_measured=float(F.cross_entropy(torch.stack(circuits).sum(0), targets)),
    )
