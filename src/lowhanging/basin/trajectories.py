"""Where does a trajectory run over a plane, and how much of it does the picture leave out?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lowhanging.basin.planes import PlaneSlice
from lowhanging.basin.points import evaluate_points
from lowhanging.basin.slice_buffers import read_points, said, trajectory_buffers
from lowhanging.basin.slices import Rays
from lowhanging.basin.symmetric_operator import plain_arithmetic
from lowhanging.checkpoints import listed_points
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
    buffers: str = "none"  # those that training moves, at the checkpoints: "none" | "own" | "fixed" | "recalibrate"

    def __repr__(self) -> str:
        far = f"distances from the plane {float(self.distances.min()):.3g} to {float(self.distances.max()):.3g}"
        size = f"{len(self.coordinates)} checkpoints"
        return f"PlaneTrajectory({', '.join(self.losses)}; {size}; {far}{said(self.buffers)})"

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
    checkpoints: Any,
    losses: Mapping[str, Loss],
    *,
    buffers: Literal["fixed", "recalibrate"] | None = None,
    recalibrate_on: Any = None,
    progress: bool | None = None,
) -> PlaneTrajectory:
    r"""Project checkpoints onto a plane, and say how much of each the picture leaves out.

    The projection of theta is the nearest point of the plane, (alpha, beta) = G^-1 (u . d, v . d) with d = theta -
    center and G the Gram matrix of u, v (so oblique directions are handled). A path drawn over contours suggests that
    the loss changed as they say; `losses` at the checkpoints beside `plane_losses` under them tell whether it did.

    Args:
        plane: what `plane_slice` returned.
        checkpoints: a training run, or a sequence of checkpoints, modules, state_dicts, which bring their buffers
            (BatchNorm's statistics) and are evaluated with them; vectors (p,), or a matrix (t, p) such as
            `run.checkpoints`, which bring none.
        losses: name -> objective, to be evaluated at the checkpoints and on the plane.
        buffers: at vectors, where training moves buffers: "fixed", those of the losses, or "recalibrate". There is no
            default. On the plane they are what the plane was drawn with.
        recalibrate_on: the data for "recalibrate", here or on the plane, as in `Objective.at`; by default each loss's.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        PlaneTrajectory: `coordinates` (t, 2), `distances` (t,), `losses[name]` and `plane_losses[name]` (t,).

    Raises:
        ValueError, TypeError: checkpoints of another length, or not finite; no word on `buffers` where it is asked for.

    Cost:
        2 t evaluations (forward passes) per loss.
    """
    center = common_center(losses, plane.center)
    remedy = "Pass vectors theta of the model that the plane was made of, e.g. run.checkpoints."
    given = listed_points("checkpoints", checkpoints, remedy=remedy, expected="at least one vector (p,)")
    places = read_points("checkpoints", given, losses, like=center, remedy=remedy)
    plan = trajectory_buffers(
        losses, places, buffers, recalibrate_on, plane_word=plane.buffers, plane_buffers=plane.center_buffers
    )
    thetas = [place.theta for place in places]
    rays = Rays(center, plane.directions)
    basis = plane.directions.to(center.device).double()
    scaled = basis / basis.norm(dim=1, keepdim=True)  # so that lengths of 1e-8 and 1e8 don't spoil the equations
    offsets = torch.stack(thetas).double() - center.double()
    solved = torch.linalg.solve(scaled @ scaled.T, scaled @ offsets.T).T
    coordinates = solved / basis.norm(dim=1)
    points = [*thetas, *(rays.at(place) for place in coordinates)]
    values = evaluate_points(
        losses, lambda i: points[i], len(points), center=center, engine="point by point",
        title="plane trajectory", progress=progress, loss_at=plan.loss_at,
    )  # fmt: skip
    t = len(thetas)
    return PlaneTrajectory(
        coordinates=coordinates.cpu(),
        distances=(offsets - solved @ scaled).norm(dim=1).cpu(),
        losses={name: row[:t].clone() for name, row in values.losses.items()},
        plane_losses={name: row[t:].clone() for name, row in values.losses.items()},
        plane=plane.identity,
        buffers=plan.word,
    )
