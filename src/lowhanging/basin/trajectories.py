"""Where does a trajectory run over a plane, and how much of it does the picture leave out?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowhanging.basin.directions import vectors
from lowhanging.basin.planes import PlaneSlice
from lowhanging.basin.points import evaluate_points
from lowhanging.basin.slices import Rays
from lowhanging.basin.symmetric_operator import plain_arithmetic
from lowhanging.errors import check_vector
from lowhanging.loss import Loss, common_center
from lowhanging.results import load_result, save_result


@dataclass(frozen=True, eq=False, repr=False)
class PlaneTrajectory:
    """Checkpoints seen on a plane, with what the picture can't show: how far off it they are, and their true losses."""

    coordinates: Tensor  # (t, 2) float64, (alpha, beta) of each checkpoint's orthogonal projection
    distances: Tensor  # (t,) float64, |theta_i - projection|
    losses: dict[str, Tensor]  # name -> (t,) float64, at the checkpoint itself
    plane_losses: dict[str, Tensor]  # name -> (t,) float64, on the plane under it
    plane: str  # the `identity` of the PlaneSlice that it was projected onto

    def __repr__(self) -> str:
        far = f"distances from the plane {float(self.distances.min()):.3g} to {float(self.distances.max()):.3g}"
        return f"PlaneTrajectory({', '.join(self.losses)}; {len(self.coordinates)} checkpoints; {far})"

    def save(self, path: str | Path) -> Path:
        """Write to npz."""
        return save_result(self, path)

    @classmethod
    def load(cls, path: str | Path) -> PlaneTrajectory:
        """Read what `save` wrote."""
        return load_result(cls, path)


@torch.inference_mode(False)
@plain_arithmetic()
def plane_trajectory(
    plane: PlaneSlice,
    checkpoints: Tensor | Sequence[Tensor],
    losses: Mapping[str, Loss],
    *,
    progress: bool | None = None,
) -> PlaneTrajectory:
    r"""Project checkpoints onto a plane, and say how much of each the picture leaves out.

    The projection of theta is the nearest point of the plane, (alpha, beta) = G^-1 (u . d, v . d) with d = theta -
    center and G the Gram matrix of u, v (so oblique directions are handled). A path drawn over contours suggests that
    the loss changed as they say; `losses` at the checkpoints beside `plane_losses` under them tell whether it did.

    Args:
        plane: what `plane_slice` returned.
        checkpoints: (t, p) or t vectors (p,), such as `run.checkpoints`.
        losses: name -> objective, to be evaluated at the checkpoints and on the plane.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        PlaneTrajectory: `coordinates` (t, 2), `distances` (t,), `losses[name]` and `plane_losses[name]` (t,).

    Raises:
        ValueError, TypeError: checkpoints of another length, or not finite.

    Cost:
        2 t evaluations (forward passes) per loss.
    """
    center = common_center(losses, plane.center)
    remedy = "Pass vectors theta of the model that the plane was made of, e.g. run.checkpoints."
    owner = str(next(iter(losses.values())))
    thetas = [
        check_vector(f"checkpoints[{i}]", theta, len(center), owner=owner, remedy=remedy, like=center)
        for i, theta in enumerate(vectors("checkpoints", checkpoints, remedy=remedy))
    ]
    rays = Rays(center, plane.directions)
    basis = plane.directions.to(center.device).double()
    scaled = basis / basis.norm(dim=1, keepdim=True)  # so that lengths of 1e-8 and 1e8 don't spoil the equations
    offsets = torch.stack(thetas).double() - center.double()
    solved = torch.linalg.solve(scaled @ scaled.T, scaled @ offsets.T).T
    coordinates = solved / basis.norm(dim=1)
    points = [*thetas, *(rays.at(place) for place in coordinates)]
    values = evaluate_points(
        losses, lambda i: points[i], len(points), center=center, engine="point by point",
        title="plane trajectory", progress=progress,
    )  # fmt: skip
    t = len(thetas)
    return PlaneTrajectory(
        coordinates=coordinates.cpu(),
        distances=(offsets - solved @ scaled).norm(dim=1).cpu(),
        losses={name: row[:t].clone() for name, row in values.losses.items()},
        plane_losses={name: row[t:].clone() for name, row in values.losses.items()},
        plane=plane.identity,
    )
