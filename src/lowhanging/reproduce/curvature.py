"""Theme "curvature": how many directions of weight space does each task notice, at the minimum and along training?

Along training, on the first held-out images only, and with fewer eigenpairs: counts there are compared with each other,
not with those at the minimum.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from lowhanging.basin.dimension import effective_dimension
from lowhanging.basin.eigenpairs import Eigenpairs, top_eigs
from lowhanging.basin.operators import hessian
from lowhanging.objective import Objective
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, over_seeds
from lowhanging.reproduce.learning import CUES, Learning
from lowhanging.reproduce.settings import Sizes
from lowhanging.reproduce.shelf import Row, Shelf

THRESHOLDS = (0.1, 1.0, 10.0)
TASKS = ("mixed", *CUES)
SMALL = 0.01  # share of all eigenvalues


def pairs_of(network: Learning, sizes: Sizes, shelf: Shelf) -> dict[str, Eigenpairs]:
    """The top eigenpairs of each loss's Hessian at the minimum."""
    found = {}
    for name, loss in network.losses.items():
        make = functools.partial(top_eigs, hessian(loss), k=sizes.pairs)
        found[name] = shelf.result(f"pairs-{name}", Eigenpairs.load, make)
    return found


def measure(network: Learning, sizes: Sizes, shelf: Shelf) -> Row:
    """Counts of eigenvalues and participation ratios, at the minimum and at early epochs."""
    pairs = pairs_of(network, sizes, shelf)
    return {
        "num_params": network.minimum.theta.numel(),
        "at_minimum": {name: _record(found) for name, found in pairs.items()},
        "along_training": shelf.plain("curvature-along-training", lambda: _along(network, sizes)),
        "along_images": min(sizes.early_images, len(network.views.mixed.test)),
    }


def _along(network: Learning, sizes: Sizes) -> list[Row]:
    """One entry per checkpoint: epoch, and for each task what its Hessian on the first images says."""
    losses = {}
    for name, loss in network.losses.items():
        view = getattr(network.views, name).test
        images = view.inputs[: sizes.early_images], view.targets[: sizes.early_images]
        losses[name] = Objective(network.model, images).at(loss.theta0)
    rows: list[Row] = []
    for epoch, theta in zip(network.run.checkpoint_epochs.tolist(), network.run.checkpoints, strict=True):
        found = {name: top_eigs(hessian(loss.at(theta)), k=sizes.early_pairs) for name, loss in losses.items()}
        rows.append({"epoch": epoch, **{name: _record(pairs) for name, pairs in found.items()}})
    return rows


def _record(pairs: Eigenpairs) -> Row:
    found = effective_dimension(pairs, thresholds=THRESHOLDS)
    return {
        "eigenvalues": pairs.values.tolist(),
        "largest_residual": float(pairs.residuals.max()),
        "num_products": pairs.num_products,
        "above": {f"{level:g}": int(count) for level, count in zip(THRESHOLDS, found.counts, strict=True)},
        "is_bound": found.count_is_bound.tolist(),
        "participation_ratio": found.participation_ratio,
        "num_known": found.num_known,
    }


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Effective dimension of each task."""
    size = rows[0]["num_params"]
    table = "; ".join(f"{name} {_counts([row['at_minimum'][name] for row in rows])}" for name in TASKS)
    ratios = "; ".join(
        f"{name} {mean_interval([row['at_minimum'][name]['participation_ratio'] for row in rows])}" for name in TASKS
    )
    top = "; ".join(
        f"{name} {mean_interval([row['at_minimum'][name]['eigenvalues'][0] for row in rows])}" for name in TASKS
    )
    epochs = [entry["epoch"] for entry in rows[0]["along_training"]]
    along = "; ".join(
        f"{name} "
        + " → ".join(_count([row["along_training"][i][name] for row in rows], 0) for i in range(len(epochs)))
        for name in TASKS
    )
    before = [row["along_training"][0] for row in rows]
    known = rows[0]["at_minimum"]["mixed"]["num_known"]
    small = [
        most(
            row["at_minimum"][name]["above"]["0.1"] <= SMALL * size and not row["at_minimum"][name]["is_bound"][0]
            for row in rows
        )
        for name in TASKS
    ]
    return [
        Claim(
            3,
            "each task has a small effective dimension",
            "few directions of weight space carry a task's curvature",
            f"eigenvalues of the held-out losses at the minimum above 0.1 / 1 / 10, of {size:,} "
            f"{over_seeds(len(rows))}: {table}. Participation ratio of the {known} largest: {ratios}. Largest: {top}. "
            f"Along training (after {', '.join(map(str, epochs))} epochs, on {rows[0]['along_images']} images) above "
            f"0.1: {along}",
            f"all {size:,} directions; the same network before training: "
            + "; ".join(f"{name} {_counts([entry[name] for entry in before])}" for name in TASKS),
            f"at most {100 * SMALL:g} % of the eigenvalues exceed 0.1, all of them counted, in more than half of the "
            "seeds; each of the three tasks is a part. It asks whether the dimension is small, not whether training "
            "made it so: a network before training may pass too",
            judged(*small),
        )
    ]


def _counts(records: Sequence[Row]) -> str:
    return " / ".join(_count(records, i) for i in range(len(THRESHOLDS)))


def _count(records: Sequence[Row], i: int) -> str:
    level = f"{THRESHOLDS[i]:g}"
    is_bound = any(record["is_bound"][i] for record in records)
    return ("at least " if is_bound else "") + mean_interval([float(record["above"][level]) for record in records])
