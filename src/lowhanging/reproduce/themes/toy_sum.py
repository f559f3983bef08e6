"""Theme "toy-sum": what two redundant circuits are worth, in the post's own sum."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lowhanging.reproduce.claims import Claim, judged
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.store import Row
from lowhanging.toys import redundant_sum

DIGITS = 1e-9  # relative difference up to which two cross-entropies are equal


def measure(_: Context) -> Row:
    """Two classifiers that each know 90 % and guess ten ways on the rest."""
    return dataclasses.asdict(redundant_sum(known=0.9, num_classes=10, num_circuits=2))


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The sum on paper, against the cross-entropy of actual logits."""
    toy = rows[0]
    agrees = [math.isclose(toy[name], toy[f"{name}_measured"], rel_tol=DIGITS) for name in ("single", "joint")]
    return [
        Claim(
            6,
            "two circuits together beat one by a factor of ten (toy sum)",
            "each knows 90 % and guesses 10 ways on the rest: 0.1·ln 10 each, 0.01·ln 10 together",
            f"cross-entropy of logits: {toy['single_measured']:.6f} each, {toy['joint_measured']:.6f} together, a "
            f"factor of {toy['single_measured'] / toy['joint_measured']:.4g} (exact: no seed, no interval)",
            f"the formula: {toy['single']:.6f} each, {toy['joint']:.6f} together; circuits that know the same "
            "examples: a factor of 1",
            "both cross-entropies of the logits equal the formula to 9 digits",
            judged(*agrees),
        )
    ]
