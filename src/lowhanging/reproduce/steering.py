"""Theme "steering": what do the two steering directions do to every loss, and what would other directions have done?

Two nulls. Random directions of all of weight space, stretched until the mixed loss's quadratic rises as much as along
the steering direction: do they treat the cues as unequally? And random vectors of the span that the steering direction
lies in, the removed eigenvectors and the ablated one: do they overlap less with the eigenvectors of the mixed loss?
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowhanging.basin.conflict import ConflictControl
from lowhanging.basin.eigenpairs import Eigenpairs
from lowhanging.basin.operators import hessian
from lowhanging.basin.slices import LineSlice, line_slice
from lowhanging.basin.steering import SteeringReport, steering_direction, steering_report
from lowhanging.basin.subspace import Subspace
from lowhanging.reproduce.curvature import pairs_of
from lowhanging.reproduce.learning import CUES, Learning
from lowhanging.reproduce.settings import Sizes
from lowhanging.reproduce.shelf import Row, Shelf

EXTENT, NUM_STEPS = 4.0, 33
STEPS = (1.0, 2.0, 3.0, 4.0)  # at which losses are compared
STEP = 2.0  # where accuracies, answers and the null are
NUM_VECTORS = 200  # random ones of the span


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
    random = shelf.plain("steering-random", lambda: _random(network, sizes)["curvatures"])
    rows = []
    for s in directions_of(network, sizes, shelf):
        shift = control.shift(theta0 + STEP * s.direction, theta0, towards=s.preserved, away=s.ablated)
        curvature = s.report.quotients["mixed"]
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
                "participation_ratio": _participation(s.report.overlaps["mixed"]),
                "curvature_ratio": s.report.quotients[s.ablated] / curvature,
                "conflict": shift.after,
                "conflict_shift": {"shift": shift.shift, "interval": [shift.low, shift.high]},
                "null": shelf.plain(
                    f"null-{s.preserved}", functools.partial(_null, network, sizes, random, curvature)
                ),
                "null_overlap": _overlap_null(network, sizes, shelf, s),
            }
        )
    return {
        "conflict_at_minimum": control(theta0),
        "num_conflict": len(images),
        "random_curvatures": random,
        "directions": rows,
    }


def _random(network: Learning, sizes: Sizes) -> dict[str, list[float]]:
    """Curvature of the mixed loss along random unit directions."""
    H = hessian(network.losses["mixed"])
    return {"curvatures": [float(row @ (H @ row)) for row in _rows(network, sizes.null_directions)]}


def _rows(network: Learning, num: int) -> Tensor:
    """(num, p) random unit vectors, the same for the same network."""
    generator = torch.Generator().manual_seed(1000 + network.seed)
    rows = torch.randn(num, network.minimum.theta.numel(), generator=generator)
    units: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return units


def _null(network: Learning, sizes: Sizes, curvatures: list[float], curvature: float) -> list[Row]:
    """Losses where random directions raise the quadratic of the mixed loss as much as STEP along a steering one does.

    A random direction of negative curvature has no such place and is left out.
    """
    found: list[Row] = []
    for row, own in zip(_rows(network, sizes.null_directions), curvatures, strict=True):
        if own <= 0 or curvature <= 0:
            continue
        scale = STEP * math.sqrt(curvature / own)
        point = network.minimum.theta + scale * row
        losses = {name: float(loss(point)) for name, loss in network.losses.items()}
        found.append({"step": scale, "losses": losses})
    return found


def _overlap_null(network: Learning, sizes: Sizes, shelf: Shelf, s: Steered) -> Row:
    """Largest squared overlap with a mixed eigenvector and participation ratio, of random vectors of the same span."""
    pairs: dict[str, Eigenpairs] = pairs_of(network, sizes, shelf)
    space = Subspace.span(torch.cat([pairs[s.preserved].vectors[: sizes.removed], pairs[s.ablated].vectors[:1]]))
    generator = torch.Generator().manual_seed(2000 + network.seed)
    coordinates = torch.randn(NUM_VECTORS, space.dim, generator=generator, dtype=torch.float64)
    vectors = coordinates / coordinates.norm(dim=1, keepdim=True) @ space.basis.double()  # (n, p)
    squares = (vectors @ pairs["mixed"].vectors.double().T).square()  # (n, k)
    ratios = squares.sum(1).square() / squares.square().sum(1)
    return {
        "dim": space.dim,
        "largest_mean": float(squares.amax(1).mean()),
        "largest_95": float(squares.amax(1).quantile(0.95)),
        "participation_mean": float(ratios.mean()),
    }


def _participation(squares: Tensor) -> float:
    """Over how many of the eigenvectors the overlap is spread."""
    return float(squares.sum().square() / squares.square().sum())


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


def null_selectivities(direction: Row) -> list[float]:
    """The same of the random directions."""
    a, b = direction["ablate"], direction["preserve"]
    start = math.log(at(direction, a, 0.0) / at(direction, b, 0.0))
    return [math.log(entry["losses"][a] / entry["losses"][b]) - start for entry in direction["null"]]


def by_direction(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Preserved cue -> that direction of every seed."""
    return {cue: [d for row in rows for d in row["directions"] if d["preserve"] == cue] for cue in CUES}


