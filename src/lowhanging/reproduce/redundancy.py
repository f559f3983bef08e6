"""Theme 4: why would redundancy pay? The post's toy sum."""

from __future__ import annotations

import dataclasses
import math

from lowhanging.reproduce.claims import Claim, judged
from lowhanging.toys import RedundantSum, redundant_sum


def measure() -> RedundantSum:
    """Two classifiers that each know 90 % and guess ten ways on the rest."""
    return redundant_sum(known=0.9, num_classes=10, num_circuits=2)


def claims(toy: RedundantSum) -> list[Claim]:
    """The sum on paper, against the cross-entropy of actual logits."""
    agrees = math.isclose(toy.single, toy.single_measured, rel_tol=1e-9)
    agrees_jointly = math.isclose(toy.joint, toy.joint_measured, rel_tol=1e-9)
    return [
        Claim(
            "two circuits together beat one by a factor of ten (toy sum)",
            "each knows 90 % and guesses 10 ways on the rest: 0.1·ln 10 each, 0.01·ln 10 together",
            f"from logits: {toy.single_measured:.6f} each (paper {toy.single:.6f}), {toy.joint_measured:.6f} together "
            f"(paper {toy.joint:.6f}), a factor of {toy.single_measured / toy.joint_measured:.4g}",
            "both cross-entropies of the logits equal the formula to 9 digits",
            judged(agrees, agrees_jointly),
        )
    ]


def numbers(toy: RedundantSum) -> dict[str, object]:
    """What goes into results.json."""
    return dataclasses.asdict(toy)
