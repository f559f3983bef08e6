"""Theme 2: how many directions of weight space does each task notice?"""

from __future__ import annotations

from lowhanging.basin.dimension import effective_dimension
from lowhanging.basin.eigenpairs import Eigenpairs, top_eigs
from lowhanging.basin.operators import hessian
from lowhanging.objective import Objective
from lowhanging.reproduce.claims import Claim, judged

THRESHOLDS = (0.1, 1.0, 10.0)
NUM_PAIRS = 50


def measure(losses: dict[str, Objective]) -> dict[str, Eigenpairs]:
    """The top eigenpairs of each loss's Hessian."""
    return {name: top_eigs(hessian(loss), k=NUM_PAIRS) for name, loss in losses.items()}


def counts(pairs: Eigenpairs) -> dict[float, int]:
    """Effective dimension: eigenvalues above each threshold; a count of all k is a lower bound."""
    found = effective_dimension(pairs, thresholds=THRESHOLDS)
    return {level: int(count) for level, count in zip(THRESHOLDS, found.counts, strict=True)}


def _text(pairs: Eigenpairs) -> str:
    found = effective_dimension(pairs, thresholds=THRESHOLDS)
    rows = zip(found.counts.tolist(), found.count_is_bound.tolist(), strict=True)
    return " / ".join(f"{'at least ' if is_bound else ''}{int(count)}" for count, is_bound in rows)


def claims(pairs: dict[str, Eigenpairs]) -> list[Claim]:
    """Effective dimension of each task."""
    table = "; ".join(f"{name} {_text(found)}" for name, found in pairs.items())
    top = ", ".join(f"{name} {float(found.values[0]):.3g}" for name, found in pairs.items())
    size = pairs["mixed"].vectors.shape[1]
    return [
        Claim(
            "each task has a small effective dimension",
            "few directions of weight space carry a task's curvature",
            f"eigenvalues of the held-out losses above 0.1 / 1 / 10, of {size:,}: {table}. Largest: {top}",
            "at most 1 % of the eigenvalues exceed 0.1; each of the three tasks is a part",
            judged(*(counts(found)[0.1] <= 0.01 * size for found in pairs.values())),
        )
    ]


def numbers(pairs: dict[str, Eigenpairs]) -> dict[str, object]:
    """What goes into results.json."""
    return {
        name: {
            "eigenvalues": found.values.tolist(),
            "largest_residual": float(found.residuals.max()),
            "num_products": found.num_products,
            "above": {str(level): count for level, count in counts(found).items()},
        }
        for name, found in pairs.items()
    }
