"""Theme "planes": how far out is the loss quadratic, and from where on can the circuits be told apart?

On circles around the minimum in the plane of the two steering directions. The fit error of a circle is the largest
deviation of a loss on it from its second-order expansion at the minimum, as a share of the range of the loss on the
circle and at its center. Circuits can be told apart where the losses on the two cues change in different proportions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowhanging.basin.naming import MIN_ASYMMETRY_CHANGE
from lowhanging.basin.planes import PlaneSlice, plane_slice
from lowhanging.loss import Loss
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, over_seeds, percent
from lowhanging.reproduce.curvature import TASKS
from lowhanging.reproduce.learning import Learning
from lowhanging.reproduce.settings import Sizes
from lowhanging.reproduce.shelf import Row, Shelf
from lowhanging.reproduce.steering import directions_of

RADII = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
NEAR, FAR = 0.1, 4.0
NUM_ANGLES = 8
QUADRATIC = 0.1  # fit error up to which a loss counts as quadratic
EXTENT = 4.0  # of the plane that is drawn


def plane_of(network: Learning, sizes: Sizes, shelf: Shelf) -> PlaneSlice:
    """The three losses on the plane of the two steering directions, for the picture."""
    steered = directions_of(network, sizes, shelf)
    first, second = (f"keep {s.preserved}, ablate {s.ablated}" for s in steered)
    num = sizes.plane_points

    def made() -> PlaneSlice:
        # The engine is named: its measurement could fall either way, and the report is to repeat to the last digit.
        directions = tuple(s.direction for s in steered)
        return plane_slice(
            network.losses, directions, EXTENT, num,
            names=(first, second), engine="point by point", resume=shelf.resume("plane"),
        )  # fmt: skip

    return shelf.result("plane", PlaneSlice.load, made)


def measure(network: Learning, sizes: Sizes, shelf: Shelf) -> Row:
    """Losses on circles, fit errors and asymmetries."""
    u, v = (s.direction.double() for s in directions_of(network, sizes, shelf))
    angle = math.degrees(math.acos(float(u @ v)))
    across = v - (u @ v) * u
    axes = torch.stack([u, across / across.norm()])  # (2, p), orthonormal
    found = {name: circles(loss, axes) for name, loss in network.losses.items()}
    start, number, pattern = (
        found["number"]["center"] / found["pattern"]["center"], found["number"]["losses"], found["pattern"]["losses"],
    )  # fmt: skip
    moves = [
        max(abs(math.log(a / b / start)) for a, b in zip(*pair, strict=True))
        for pair in zip(number, pattern, strict=True)
    ]
    plane_of(network, sizes, shelf)
    return {"radii": list(RADII), "angle": angle, "circles": found, "asymmetry_change": moves}


def circles(loss: Loss, axes: Tensor) -> Row:
    """A loss on circles of the plane, and its fit error on each."""
    center, rows = loss.theta0, axes.to(loss.theta0)
    value, gradient = float(loss(center)), (rows @ loss.gradient(center)).double()  # (2,)
    bend = torch.stack([rows @ loss.hvp(center, row) for row in rows]).double()  # (2, 2)
    bend = (bend + bend.T) / 2
    turns = 2 * math.pi * torch.arange(NUM_ANGLES, dtype=torch.float64) / NUM_ANGLES
    ways = torch.stack([turns.cos(), turns.sin()], 1)  # (angles, 2)
    losses, errors, rounding = [], [], []
    for radius in RADII:
        steps = (radius * ways).cpu()
        expected = value + steps @ gradient.cpu() + 0.5 * ((steps @ bend.cpu()) * steps).sum(1)
        measured = torch.tensor([float(loss(center + step.to(center) @ rows)) for step in steps], dtype=torch.float64)
        span = max(float(measured.max()), value) - min(float(measured.min()), value)
        losses.append(measured.tolist())
        errors.append(float((measured - expected).abs().max()) / span if span else math.nan)
        rounding.append(torch.finfo(center.dtype).eps * value / span if span else math.nan)
    return {"center": value, "losses": losses, "fit_error": errors, "rounding": rounding}


def claims(rows: Sequence[Row]) -> list[Claim]:
    """In the small, the loss is quadratic and the circuits can't be told apart."""
    near, far, indices = RADII.index(NEAR), RADII.index(FAR), range(len(RADII))
    texts = [
        f"{name} "
        + " / ".join(mean_interval([100 * row["circles"][name]["fit_error"][i] for row in rows], 2) for i in indices)
        + " %"
        for name in TASKS
    ]
    moves = [mean_interval([row["asymmetry_change"][i] for row in rows], 2) for i in indices]
    rounding = max(row["circles"][name]["rounding"][0] for row in rows for name in TASKS)
    quadratic = [
        most(
            row["circles"][name]["fit_error"][near] <= QUADRATIC < row["circles"][name]["fit_error"][far]
            for row in rows
        )
        for name in TASKS
    ]
    told = most(
        row["asymmetry_change"][near] <= MIN_ASYMMETRY_CHANGE < row["asymmetry_change"][far] for row in rows
    )
    return [
        Claim(
            9,
            "near the minimum the loss is quadratic and the circuits can't be told apart",
            "in the small the loss is a quadratic bowl, in which circuits can't be told apart; canyons lie further out",
            f"on circles of radius {' / '.join(f'{radius:g}' for radius in RADII)} in the plane of the two steering "
            f"directions {over_seeds(len(rows))}: fit error of the second-order expansion {'; '.join(texts)}. Largest "
            f"change of log(L_number / L_pattern): {' / '.join(moves)} nats",
            f"a quadratic loss: a fit error of 0 at every radius, {rounding:.1g} with the rounding of these losses at "
            f"the smallest; no difference between the circuits: a change of 0",
            f"four parts, each in more than half of the seeds: for each of the three losses, a fit error of at most "
            f"{percent(QUADRATIC)} at radius {NEAR:g} and above it at {FAR:g}; and log(L_number / L_pattern) changes "
            f"by at most {MIN_ASYMMETRY_CHANGE:g} nat at radius {NEAR:g} and by more at {FAR:g}",
            judged(*quadratic, told),
        )
    ]
