"""Theme "curvature": the eigenvalues of each task's Hessian, at the minimum and along training.

Along training, on the first held-out images only, and with fewer eigenpairs: counts there are compared with each other,
not with those on all images. The minimum is counted both ways, so that the network before training, the null, is held
against it on equal terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lowhanging.curvature.dimension import effective_dimension
from lowhanging.curvature.eigenpairs import Eigenpairs, top_eigs
from lowhanging.curvature.operators import hessian
from lowhanging.objective.objective import Objective
from lowhanging.objective.protocol import Loss
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, over_seeds
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.store import ResultStore, Row
from lowhanging.reproduce.themes.learning import ENGINE, TASKS, first_images, views_of

THRESHOLDS = (0.1, 1.0, 10.0)
SMALL = 0.01  # share of all eigenvalues


def pairs_of(context: Context) -> dict[str, Eigenpairs]:
    """The top eigenpairs of each loss's Hessian at the minimum."""
    losses, k = context.network.losses, context.sizes.pairs
    return {name: eigenpairs(f"pairs-{name}", loss, k, context.store) for name, loss in losses.items()}


def eigenpairs(name: str, loss: Loss, k: int, store: ResultStore) -> Eigenpairs:
    """The k top eigenpairs at the loss's point; a search that was killed goes on from its last few products."""
    return store.result(name, lambda: top_eigs(hessian(loss), k=k, resume=store.resume(name)))


def measure(context: Context) -> Row:
    """Counts of eigenvalues and participation ratios, at the minimum and at early epochs."""
    network, sizes, pairs = context.network, context.sizes, pairs_of(context)
    few = {
        name: Objective(network.model, first_images(view.test, sizes.early_images), engine=ENGINE)
        for name, view in views_of(network.views).items()
    }
    epochs = network.run.checkpoint_epochs.tolist()
    points = {f"early-{epoch}": theta for epoch, theta in zip(epochs, network.run.checkpoints, strict=True)}
    points["early-minimum"] = network.minimum.theta
    counted = {
        point: {
            name: _record(eigenpairs(f"{point}-{name}", loss.at(theta), sizes.early_pairs, context.store))
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
    at_minimum = {name: [row["at_minimum"][name] for row in rows] for name in TASKS}
    on_few = {name: [row["at_minimum_on_few"][name] for row in rows] for name in TASKS}
    entries = list(zip(*(row["along_training"] for row in rows), strict=True))  # epoch by epoch
    along = {name: [[entry[name] for entry in of_epoch] for of_epoch in entries] for name in TASKS}
    epochs = [of_epoch[0]["epoch"] for of_epoch in entries]
    known, few = (found["mixed"][0]["num_known"] for found in (at_minimum, on_few))
    small = [
        most(found["above"]["0.1"] <= SMALL * size and not found["is_bound"][0] for found in at_minimum[name])
        for name in TASKS
    ]
    return [
        Claim(
            3,
            "each task has a small effective dimension",
            "few directions of weight space carry a task's curvature",
            f"eigenvalues of the held-out losses at the minimum above 0.1 / 1 / 10, of {size:,} "
            f"{over_seeds(len(rows), with_range=False)}: "
            f"{_each(lambda name: _counts(at_minimum[name]))}. Participation ratio of the {known} "
            f"largest: {_each(lambda name: _positive([found['participation_ratio'] for found in at_minimum[name]]))}. "
            f"Largest: {_each(lambda name: _positive([found['eigenvalues'][0] for found in at_minimum[name]]))}. "
            f"Along training (after {', '.join(map(str, epochs))} epochs, on {rows[0]['along_images']} images) above "
            f"0.1: {_each(lambda name: ' → '.join(_count(found, 0) for found in along[name]))}",
            f"all {size:,} directions; the same network before training and at the minimum, both on the same "
            f"{rows[0]['along_images']} images with the {few} largest eigenvalues: "
            f"{_each(lambda name: f'{_counts(along[name][0])} → {_counts(on_few[name])}')}",
            f"at most {100 * SMALL:g} % of the eigenvalues exceed 0.1, all of them counted, in more than half of the "
            "seeds; each of the three tasks is a part. It asks whether the dimension is small, not whether training "
            "made it so: a network before training may pass too",
            judged(*small),
        )
    ]


def _each(text: Callable[[str], str]) -> str:
    return "; ".join(f"{name} {text(name)}" for name in TASKS)


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
