"""The post's toy sum over redundant circuits, in numbers and as a loss of the circuits' strengths."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowhanging.errors import argument_message, check_count, check_real
from lowhanging.objective.objective import FunctionObjective

_REMEDY = "The post has known=0.9, num_classes=10, num_circuits=2."


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
    known = check_real("known", known, minimum=0.0, maximum=1.0, exclusive=True, remedy=_REMEDY)
    check_count("num_classes", num_classes, minimum=2, remedy=_REMEDY)
    check_count("num_circuits", num_circuits, maximum=3, remedy=_REMEDY)
    if not math.isclose(100 * known, round(100 * known)):
        raise ValueError(argument_message("known", f"is {known!r}", "a multiple of 0.01", _REMEDY))
    unknown, log_classes = 1.0 - known, torch.tensor(float(num_classes), dtype=torch.float64).log().item()
    is_known = torch.arange(100) < round(100 * known)
    cells = torch.cartesian_prod(*[torch.arange(100)] * num_circuits).reshape(-1, num_circuits)  # (100^n, n)
    targets = torch.arange(len(cells)) % num_classes
    right = F.one_hot(targets, num_classes).double()
    circuits = [60.0 * is_known[axis].double()[:, None] * right for axis in cells.T]
    return RedundantSum(
        single=unknown * log_classes,
        joint=unknown**num_circuits * log_classes,
        single_measured=float(F.cross_entropy(circuits[0], targets)),
        joint_measured=float(F.cross_entropy(torch.stack(circuits).sum(0), targets)),
    )


def redundant_circuits(
    known: float = 0.9, num_classes: int = 10, num_circuits: int = 2, *, confidence: float = 20.0
) -> FunctionObjective:
    r"""The toy sum as a loss of w (n,), the strengths of its circuits.

    L(w) = sum over subsets S of circuits of P(S) ln(1 + (C - 1) exp(-confidence * sum of w_i over S)), with
    P(S) = known^|S| (1 - known)^(n - |S|): the exact expectation of the cross-entropy over examples that the circuits
    know independently, the circuits in S adding confidence * w_i each to the right logit. It is convex, symmetric in
    the circuits, and has no minimum: every slope goes to 0 as the strengths grow. At w = 0 it is ln C; with one circuit
    at strength 1 (1 - known) ln C, with all of them (1 - known)^n ln C, both up to (C - 1) exp(-confidence).

    Args:
        known: share of examples that each circuit knows, in (0, 1).
        num_classes: C >= 2.
        num_circuits: n, 1 to 12.
        confidence: logit of a circuit at strength 1. With 20 the sums above hold to 2e-8 and the gradient at w = 1,
            about 5e-8, still shows in the loss; with the 60 of `redundant_sum` it is 1e-25, far below its rounding.

    Returns:
        FunctionObjective of w, float64, in nats per example, around w = (1, ..., 1).

    Raises:
        ValueError, TypeError: an argument out of range.

    Cost:
        2^n terms per evaluation.

    Source:
        Vaintrob & Rimsky (2023), the argument for why redundant circuits pay.
    """
    known = check_real("known", known, minimum=0.0, maximum=1.0, exclusive=True, remedy=_REMEDY)
    check_count("num_classes", num_classes, minimum=2, remedy=_REMEDY)
    check_count("num_circuits", num_circuits, maximum=12, remedy=_REMEDY)
    remedy = "It is the logit of a circuit at strength 1; 20 by default."
    confidence = check_real("confidence", confidence, minimum=0.0, exclusive=True, remedy=remedy)
    listed = list(itertools.product((0.0, 1.0), repeat=num_circuits))
    with torch.inference_mode(False):  # tensors made in it could enter no gradient
        subsets = torch.tensor(listed, dtype=torch.float64)  # (2^n, n)
        sizes = subsets.sum(1)
        shares = known**sizes * (1.0 - known) ** (num_circuits - sizes)
    offset = math.log(num_classes - 1)

    def function(w: Tensor) -> Tensor:
        # By default softplus(z) becomes z at 20, a jump of its curvature; at 700 float64 can't tell the two apart.
        return shares @ F.softplus(offset - confidence * (subsets @ w), threshold=700)

    function.__name__ = f"redundant_circuits(known={known:g}, {num_classes} classes)"
    return FunctionObjective(function, torch.ones(num_circuits, dtype=torch.float64))
