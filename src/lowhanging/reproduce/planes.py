"""Theme 6: what does the basin look like on the plane of the two steering directions, near and far?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowhanging.basin.planes import PlaneSlice, plane_slice
from lowhanging.loss import Loss
from lowhanging.reproduce.claims import Claim, judged, percent
from lowhanging.reproduce.learning import Learning
from lowhanging.reproduce.steering import Steered

NEAR, FAR = 0.1, 4.0  # steps along the two unit directions
NUM_NEAR, NUM_FAR = 9, 17
QUADRATIC = 0.1  # deviation allowed, as a share of the range of the loss on the plane


@dataclass(frozen=True)
class Planes:
    """The same plane twice, and how far each loss on it is from its second-order expansion at the center."""

    near: PlaneSlice
    far: PlaneSlice
    deviations: dict[str, tuple[float, float]]  # name -> (near, far): largest deviation / range of the loss


def measure(learning: Learning, steered: list[Steered]) -> Planes:
    """Both planes; named losses on held-out images."""
    directions = tuple(s.direction for s in steered)
    labels = tuple(f"keep {s.preserved}, ablate {s.ablated}" for s in steered)
    near, far = (
        # The engine is named: its measurement could fall either way, and the report is to repeat to the last digit.
        plane_slice(learning.losses, directions, extent, num, names=(labels[0], labels[1]), engine="point by point")
        for extent, num in ((NEAR, NUM_NEAR), (FAR, NUM_FAR))
    )
    deviations = {
        name: (deviation(near, name, loss), deviation(far, name, loss)) for name, loss in learning.losses.items()
    }
    return Planes(near, far, deviations)


def expansion(plane: PlaneSlice, loss: Loss) -> Tensor:
    """Second-order expansion of a loss at the plane's center, on its grid: from a gradient and two products."""
    center = plane.center
    rows = plane.directions.to(center)
    gradient = (rows @ loss.gradient(center)).double()  # (2,)
    hessian = torch.stack([rows @ loss.hvp(center, row) for row in rows]).double()  # (2, 2)
    a, b = plane.alphas[:, None], plane.betas[None, :]
    bend = hessian[0, 0] * a**2 + (hessian[0, 1] + hessian[1, 0]) * a * b + hessian[1, 1] * b**2
    return loss(center).cpu() + gradient[0] * a + gradient[1] * b + 0.5 * bend


def deviation(plane: PlaneSlice, name: str, loss: Loss) -> float:
    """Largest deviation of a loss on the grid from its expansion, as a share of the range of the loss there."""
    grid = plane.losses[name]
    return float((grid - expansion(plane, loss)).abs().max() / (grid.max() - grid.min()))


def claims(planes: Planes) -> list[Claim]:
    """In the small, the loss is quadratic."""
    texts = [f"{name} {percent(near)} → {percent(far)}" for name, (near, far) in planes.deviations.items()]
    return [
        Claim(
            "near the minimum the loss is quadratic, further out it is not",
            "in the small the loss is a quadratic bowl, in which circuits can't be told apart; canyons lie further out",
            "on the plane of the two steering directions, the largest deviation from the second-order expansion, as a "
            f"share of the loss's range on the plane, for steps up to {NEAR:g} → up to {FAR:g}: " + "; ".join(texts),
            f"at most {percent(QUADRATIC)} within steps of {NEAR:g}, and more than that within steps of {FAR:g}; each "
            "of the three losses is a part",
            judged(*(near <= QUADRATIC < far for near, far in planes.deviations.values())),
        )
    ]


def numbers(planes: Planes) -> dict[str, object]:
    """What goes into results.json."""
    return {
        "deviations_from_quadratic": {name: list(pair) for name, pair in planes.deviations.items()},
        **{
            zoom: {
                "directions": list(plane.names),
                "angle": plane.angle,
                "alphas": plane.alphas.tolist(),
                "betas": plane.betas.tolist(),
                "losses": {name: grid.tolist() for name, grid in plane.losses.items()},
                "accuracies": {name: grid.tolist() for name, grid in plane.accuracies.items()},
            }
            for zoom, plane in (("near", planes.near), ("far", planes.far))
        },
    }
