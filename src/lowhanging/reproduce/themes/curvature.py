"""Theme "curvature": how many directions of weight space does each task notice, at the minimum and along training?

Along training, on the first held-out images only, and with fewer eigenpairs: counts there are compared with each other,
not with those on all images. The minimum is counted both ways, so that the network before training, the null, is held
against it on equal terms.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from lowhanging.curvature.dimension import effective_dimension
from lowhanging.curvature.eigenpairs import Eigenpairs, top_eigs
from lowhanging.curvature.operators import hessian
from lowhanging.objective.objective import Objective
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, over_seeds
from lowhanging.reproduce.settings import Sizes
from lowhanging.reproduce.store import ResultStore, Row
from lowhanging.reproduce.themes.learning import CUES, Learning

THRESHOLDS = (0.1, 1.0, 10.0)
TASKS = ("mixed", *CUES)
SMALL = 0.01  # share of all eigenvalues


def pairs_of(network: Learning, sizes: Sizes, shelf: ResultStore) -> dict[str, Eigenpairs]:
    """The top eigenpairs of each loss's Hessian at the minimum."""
    found = {}
    for name, loss in network.losses.items():
        found[name] = _kept(f"pairs-{name}", loss, sizes.pairs, shelf)
    return found


def _kept(name: str, loss: Objective, k: int, shelf: ResultStore) -> Eigenpairs:
    """The k top eigenpairs at the loss's point; a search that was killed goes on from its last few products."""
    make = functools.partial(top_eigs, hessian(loss), k=k, resume=shelf.resume(name))
    return shelf.result(name, Eigenpairs.load, make)


def measure(network: Learning, sizes: Sizes, shelf: ResultStore) -> Row:
    """Counts of eigenvalues and participation ratios, at the minimum and at early epochs."""
    pairs, few = pairs_of(network, sizes, shelf), _on_few(network, sizes)
    epochs = network.run.checkpoint_epochs.tolist()
    points = {f"early-{epoch}": theta for epoch, theta in zip(epochs, network.run.checkpoints, strict=True)}
    points["early-minimum"] = network.minimum.theta
    counted = {
        point: {
            name: _record(_kept(f"{point}-{name}", loss.at(theta), sizes.early_pairs, shelf))
            for name, loss in few.items()
        }
        for point, theta in points.items()
    }
    return {
        "num_params": network.minimum.theta.numel(),
        "at_minimum": {name: _record(found) for name, found in pairs.items()},
        "along_training": [{"epoch": epoch, **counted[f"early-{epoch}"]} for epoch in epochs],
        "at_minimum_on_few": counted["early-minimum"],
        "along_images": min(sizes.early_images, len(network.views.mixed.test)),
    }


def _on_few(network: Learning, sizes: Sizes) -> dict[str, Objective]:
    """The three losses on the first held-out images."""
    found = {}
    for name in network.losses:
        view = getattr(network.views, name).test
        found[name] = Objective(network.model, (view.inputs[: sizes.early_images], view.targets[: sizes.early_images]))
    return found


def _record(pairs: Eigenpairs) -> Row:
    found = effective_dimension(pairs, thresholds=THRESHOLDS)
    return {
        "eigenvalues": pairs.values.tolist(),
        "largest_residual": float(pairs.residuals.max()),
        "num_steps": pairs.num_steps,  # products would count one more in a search that was killed and went on
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
        f"{name} {_positive([row['at_minimum'][name]['participation_ratio'] for row in rows])}" for name in TASKS
    )
    top = "; ".join(
        f"{name} {_positive([row['at_minimum'][name]['eigenvalues'][0] for row in rows])}" for name in TASKS
    )
    epochs = [entry["epoch"] for entry in rows[0]["along_training"]]
    along = "; ".join(
        f"{name} " + " → ".join(_count([row["along_training"][i][name] for row in rows], 0) for i in range(len(epochs)))
        for name in TASKS
    )
    known, few = (rows[0][key]["mixed"]["num_known"] for key in ("at_minimum", "at_minimum_on_few"))
    equal = "; ".join(
        f"{name} {_counts([row['along_training'][0][name] for row in rows])} → "
        f"{_counts([row['at_minimum_on_few'][name] for row in rows])}"
        for name in TASKS
    )
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
            f"{_over(rows)}: {table}. Participation ratio of the {known} largest: {ratios}. Largest: {top}. "
            f"Along training (after {', '.join(map(str, epochs))} epochs, on {rows[0]['along_images']} images) above "
            f"0.1: {along}",
            f"all {size:,} directions; the same network before training and at the minimum, both on the same "
            f"{rows[0]['along_images']} images with the {few} largest eigenvalues: {equal}",
            f"at most {100 * SMALL:g} % of the eigenvalues exceed 0.1, all of them counted, in more than half of the "
            "seeds; each of the three tasks is a part. It asks whether the dimension is small, not whether training "
            "made it so: a network before training may pass too",
            judged(*small),
        )
    ]


def _positive(values: Sequence[float]) -> str:
    return mean_interval(values, scale="log", with_range=False)


def _counts(records: Sequence[Row]) -> str:
    return " / ".join(_count(records, i) for i in range(len(THRESHOLDS)))


def _count(records: Sequence[Row], i: int) -> str:
    level = f"{THRESHOLDS[i]:g}"
    is_bound = any(record["is_bound"][i] for record in records)
    return ("at least " if is_bound else "") + mean_interval(
        [float(record["above"][level]) for record in records], with_range=False
    )


def _over(rows: Sequence[Row]) -> str:
    return over_seeds(len(rows), with_range=False)
