"""Theme "steering": what do the two steering directions do to every loss, and what would other directions have done?

Held against what directions do that nobody steered (`steering_nulls.py`). Random ones of all of weight space, until the
mixed loss's quadratic, and until the mixed loss itself, has risen as much as along the steering direction: do they
treat the cues as unequally? And random vectors of the span that the steering direction lies in, the removed
eigenvectors and the ablated one: do they overlap as much with a single eigenvector of the mixed loss?
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lowhanging.basin.conflict import ConflictControl
from lowhanging.basin.slices import LineSlice, line_slice
from lowhanging.basin.steering import SteeringReport, steering_direction, steering_report
from lowhanging.reproduce.curvature import pairs_of
from lowhanging.reproduce.learning import CUES, Learning
from lowhanging.reproduce.settings import Sizes
from lowhanging.reproduce.shelf import Row, Shelf
from lowhanging.reproduce.steering_nulls import (
    curvatures,
    equal_quadratics,
    equal_rises,
    of_span,
    participation,
    random_units,
    turned,
)

EXTENT, NUM_STEPS = 4.0, 33
STEPS = (1.0, 2.0, 3.0, 4.0)  # at which losses are compared
STEP = 2.0  # where accuracies, answers and the null are


@dataclass(frozen=True)
class Steered:
    """One direction that keeps one cue and ablates the other."""

    preserved: str
    ablated: str
    report: SteeringReport
    scan: LineSlice

    @property
    def direction(self) -> Tensor:
        """(p,) unit."""
        return self.report.direction


def directions_of(network: Learning, sizes: Sizes, shelf: Shelf) -> list[Steered]:
    """Both directions, with what every loss says of them and does along them."""
    pairs, found = pairs_of(network, sizes, shelf), []
    for preserved, ablated in (CUES, CUES[::-1]):

        def reported(preserved: str = preserved, ablated: str = ablated) -> SteeringReport:
            direction = steering_direction(
                preserve=network.losses[preserved],
                ablate=network.losses[ablated],
                k=sizes.removed,
                preserve_pairs=pairs[preserved],
                ablate_pairs=pairs[ablated],
            )
            return steering_report(direction, network.losses, pairs=pairs)

        report = shelf.result(f"keep-{preserved}", SteeringReport.load, reported)

        def scanned(report: SteeringReport = report) -> LineSlice:
            return line_slice(
                network.losses, report.direction, (-EXTENT, EXTENT), NUM_STEPS,
                name="steering direction", engine="point by point",
            )  # fmt: skip

        found.append(Steered(preserved, ablated, report, shelf.result(f"scan-{preserved}", LineSlice.load, scanned)))
    return found


def measure(network: Learning, sizes: Sizes, shelf: Shelf) -> Row:
    """Both directions against random ones, and the answers on conflict images."""
    theta0, images = network.minimum.theta, network.views.conflict
    control = ConflictControl(network.losses["mixed"], images.inputs, images.answers)
    random = random_units(sizes.null_directions, theta0.numel(), 1000 + network.seed)
    quotients = shelf.plain("steering-random", lambda: curvatures(network.losses["mixed"], random))
    pairs = pairs_of(network, sizes, shelf)
    rows = []
    for s in directions_of(network, sizes, shelf):
        null = shelf.plain(f"null-{s.preserved}", functools.partial(_null, network, s, random, quotients))
        shift = control.shift(theta0 + STEP * s.direction, theta0, towards=s.preserved, away=s.ablated)
        rows.append(
            {
                "preserve": s.preserved,
                "ablate": s.ablated,
                "alphas": s.scan.alphas.tolist(),
                "losses": {name: row.tolist() for name, row in s.scan.losses.items()},
                "accuracies": {name: row.tolist() for name, row in s.scan.accuracies.items()},
                "rayleigh_quotients": s.report.quotients,
                "ranks": {name: s.report.rank_text(name) for name in s.report.ranks},
                "tenth_eigenvalue_of_mixed": float(s.report.eigenvalues["mixed"][min(9, sizes.pairs - 1)]),
                "largest_squared_overlap": {name: float(row.max()) for name, row in s.report.overlaps.items()},
                "participation_ratio": float(participation(s.report.overlaps["mixed"])),
                "curvature_ratio": s.report.quotients[s.ablated] / s.report.quotients["mixed"],
                "conflict": shift.after,
                "conflict_shift": {"shift": shift.shift, "interval": [shift.low, shift.high]},
                "null": null["quadratic"],
                "null_rise": null["rise"],
                "null_overlap": of_span(
                    [pairs[s.preserved].vectors[: sizes.removed], pairs[s.ablated].vectors[:1]],
                    pairs["mixed"].vectors,
                    s.direction,
                    2000 + network.seed,
                ),
            }
        )
    return {
        "conflict_at_minimum": control(theta0),
        "num_conflict": len(images),
        "random_curvatures": quotients,
        "directions": rows,
    }


def _null(network: Learning, s: Steered, random: Tensor, quotients: list[float]) -> Row:
    """What random directions do to the losses: in the first null's place, and in the second one's."""
    losses, center, rows = network.losses, network.minimum.theta, turned(network.losses[s.ablated], random)
    wanted = float(losses["mixed"](center + STEP * s.direction))
    return {
        "quadratic": equal_quadratics(losses, rows, quotients, s.report.quotients["mixed"], STEP),
        "rise": equal_rises(losses, rows, wanted, float(center.norm())),
    }


# Reading a row --------------------------------------------------------------------------------------------------------


def at(direction: Row, name: str, step: float, quantity: str = "losses") -> float:
    """A loss (or accuracy) at a step of the scan."""
    alphas = direction["alphas"]
    nearest = min(range(len(alphas)), key=lambda i: abs(alphas[i] - step))
    return float(direction[quantity][name][nearest])


def rise(direction: Row, name: str) -> float:
    """Change of a loss from the minimum to STEP."""
    return at(direction, name, STEP) - at(direction, name, 0.0)


def ratios(direction: Row) -> list[float]:
    """Loss of the ablated task over the loss of the mixed one, at STEPS."""
    return [at(direction, direction["ablate"], step) / at(direction, "mixed", step) for step in STEPS]


def selectivity(direction: Row) -> float:
    """Change of log(L_ablated / L_preserved) from the minimum to STEP, in nats."""
    a, b = direction["ablate"], direction["preserve"]
    start, end = (math.log(at(direction, a, step) / at(direction, b, step)) for step in (0.0, STEP))
    return end - start


def null_points(direction: Row) -> dict[str, Sequence[Row]]:
    """Which null -> where its random directions lead, and the losses there."""
    return {"quadratic": direction["null"], "rise": direction["null_rise"]["points"]}


def null_selectivities(direction: Row) -> dict[str, list[float]]:
    """Which null -> the selectivity of each of its random directions."""
    a, b = direction["ablate"], direction["preserve"]
    start = math.log(at(direction, a, 0.0) / at(direction, b, 0.0))
    return {
        name: [math.log(entry["losses"][a] / entry["losses"][b]) - start for entry in points]
        for name, points in null_points(direction).items()
    }


def null_ratios(direction: Row) -> dict[str, list[float]]:
    """Which null -> the loss of the ablated task over the mixed one, of each of its random directions."""
    return {
        name: [entry["losses"][direction["ablate"]] / entry["losses"]["mixed"] for entry in points]
        for name, points in null_points(direction).items()
    }


def by_direction(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Preserved cue -> that direction of every seed."""
    return {cue: [d for row in rows for d in row["directions"] if d["preserve"] == cue] for cue in CUES}
