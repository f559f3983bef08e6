"""Losses on planes through weight space, and where checkpoints lie above such a plane.

The grid is [i, j] at center + alphas[i] * u + betas[j] * v: rows follow u, columns follow v. The two directions are
used as they are given, oblique or of any length, and norms and angle are in the result: an eigenvector that was turned
to be orthogonal to another direction would be none any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lowhanging.curvature.operators import plain_arithmetic
from lowhanging.curvature.subspace import Subspace
from lowhanging.errors import (
    argument_message,
    check_names,
    check_real,
    check_vector,
    door,
)
from lowhanging.io import Saved, digest
from lowhanging.landscape.directions import OrthogonalDirections, PrincipalDirections, as_direction, first_vector
from lowhanging.landscape.evaluate import (
    SliceEngine,
    buffers_text,
    center_buffers,
    evaluate_points,
    read_points,
    trajectory_buffers,
)
from lowhanging.landscape.slices import AffineGrid, steps
from lowhanging.objective.checkpoints import Point, listed_points, thetas_of
from lowhanging.objective.protocol import Loss, as_losses, common_center, own_vector
from lowhanging.tables import Columns, Tabular, with_losses

_SECOND = 2**31  # added to the seed of the first random direction: planes of neighbouring seeds share none
_PARALLEL = 1e-6  # sine of the angle below which two directions span no plane


@dataclass(frozen=True, eq=False, repr=False)
class Plane(Saved):
    """A plane through given points of weight space: center + alpha * directions[0] + beta * directions[1]."""

    center: Tensor  # (p,) the first point
    directions: Tensor  # (2, p) orthonormal rows; the second point lies along the first of them
    marks: dict[str, Tensor]  # name -> (2,) float64, coordinates (alpha, beta) of the points

    def __repr__(self) -> str:
        points = ", ".join(f"{name} ({float(a):.3g}, {float(b):.3g})" for name, (a, b) in self.marks.items())
        return f"Plane(through {points} of {len(self.center):,} dimensions)"

    def extent(self, margin: float = 0.25) -> tuple[tuple[float, float], tuple[float, float]]:
        """The box around the points, wider by `margin` times its larger side on each of the four sides."""
        margin = check_real("margin", margin, minimum=0.0, remedy="A quarter shows what is around the points.")
        corners = torch.stack(list(self.marks.values()))
        low, high = corners.amin(0), corners.amax(0)
        room = margin * float((high - low).max())
        (a, b), (c, d) = (low - room).tolist(), (high + room).tolist()
        return (a, c), (b, d)


@dataclass(frozen=True, eq=False, repr=False)
class PlaneSlice(Saved, Tabular):
    """Losses and accuracies on a plane; entry [i, j] at center + alphas[i] * u + betas[j] * v."""

    alphas: Tensor  # (num_alphas,) float64, ascending, in units of u = directions[0]
    betas: Tensor  # (num_betas,) float64, ascending, in units of v = directions[1]
    losses: dict[str, Tensor]  # name -> (num_alphas, num_betas) float64; NaN and inf are kept
    accuracies: dict[str, Tensor]  # name -> (num_alphas, num_betas) float64, only of losses that have one
    directions: Tensor  # (2, p) u and v, as given
    center: Tensor  # (p,)
    norms: Tensor  # (2,) float64, |u| and |v|: the distance of a step of 1
    angle: float  # between u and v, in degrees
    names: tuple[str, str] = ("u", "v")  # what the directions are called, for axes
    marks: dict[str, Tensor] = field(default_factory=dict)  # name -> (2,) coordinates of points to show
    seed: int | None = None  # of directions that were drawn here
    engine: str = "point by point"
    buffers: str = "none"  # those that training moves: "none" | "fixed" | "own" (of the center) | "recalibrate"
    center_buffers: dict[str, Tensor] = field(default_factory=dict)  # name -> those that all points were evaluated with

    def columns(self) -> Columns:
        """One row for each point, beta running fastest: "alpha", "beta", the losses and the accuracies by name."""
        alphas, betas = torch.meshgrid(self.alphas, self.betas, indexing="ij")
        points = {"alpha": alphas.flatten().tolist(), "beta": betas.flatten().tolist()}
        return with_losses(points, self.losses, self.accuracies)

    def __repr__(self) -> str:
        size = f"{len(self.alphas)} × {len(self.betas)} points"
        spans = [f"{float(steps[0]):g} to {float(steps[-1]):g}" for steps in (self.alphas, self.betas)]
        axes = ", ".join(
            f"{name} from {span} (‖Δθ‖ = {float(norm):.3g})"
            for name, span, norm in zip(self.names, spans, self.norms, strict=True)
        )
        return f"PlaneSlice({', '.join(self.losses)}; {size}; {axes}; at {self.angle:.4g}°{buffers_text(self.buffers)})"

    @property
    def identity(self) -> str:
        """A digest of center and directions: a trajectory belongs to one plane."""
        return digest(self.center, self.directions)

    def lowest(self, name: str) -> tuple[float, float, float]:
        """(alpha, beta, loss) at the grid's lowest finite value of a loss."""
        if name not in self.losses:
            raise ValueError(argument_message("name", f"is {name!r}", f"one of {list(self.losses)}", "Name a loss."))
        grid = torch.where(self.losses[name].isfinite(), self.losses[name], torch.inf)
        if not bool(grid.isfinite().any()):
            received = f"is {name!r}, which has no finite value on this plane"
            raise ValueError(argument_message("name", received, "a loss with a lowest point", "Pass a smaller extent."))
        i, j = divmod(int(grid.argmin()), len(self.betas))
        return float(self.alphas[i]), float(self.betas[j]), float(self.losses[name][i, j])


@dataclass(frozen=True, eq=False, repr=False)
class PlaneTrajectory(Saved, Tabular):
    """Checkpoints seen on a plane, with what the picture can't show: how far off it they are, and their true losses."""

    coordinates: Tensor  # (t, 2) float64, (alpha, beta) of each checkpoint's orthogonal projection
    distances: Tensor  # (t,) float64, |theta_i - projection|
    losses: dict[str, Tensor]  # name -> (t,) float64, at the checkpoint itself
    plane_losses: dict[str, Tensor]  # name -> (t,) float64, on the plane under it
    plane: str  # the `identity` of the PlaneSlice that it was projected onto
    buffers: str = "none"  # those that training moves, at the checkpoints: "none" | "own" | "fixed" | "recalibrate"

    def columns(self) -> Columns:
        """One row for each checkpoint: "alpha", "beta", "distance" from the plane, losses there and on the plane."""
        alphas, betas = self.coordinates.T.tolist()
        found = with_losses({"alpha": alphas, "beta": betas, "distance": self.distances.tolist()}, self.losses, {})
        return found | {f"{name} loss on the plane": row.tolist() for name, row in self.plane_losses.items()}

    def __repr__(self) -> str:
        far = f"distances from the plane {float(self.distances.min()):.3g} to {float(self.distances.max()):.3g}"
        size = f"{len(self.coordinates)} checkpoints"
        return f"PlaneTrajectory({', '.join(self.losses)}; {size}; {far}{buffers_text(self.buffers)})"


@door
@torch.inference_mode(False)
@plain_arithmetic()
def plane_slice(
    losses: Loss | Mapping[str, Loss],
    directions: Any,
    *,
    extent: Any = None,
    num: int | tuple[int, int] = 41,
    center: Point | None = None,
    buffers: Literal["fixed", "recalibrate"] | None = None,
    recalibrate_on: Any = None,
    names: tuple[str, str] | None = None,
    seed: int = 0,
    engine: SliceEngine = "auto",
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> PlaneSlice:
    r"""Evaluate named losses on a plane: L_name(center + alpha * u + beta * v).

    Args:
        losses: as in `line_slice`.
        directions: (u, v), each (p,) or a mapping parameter name -> tensor, used as they are: neither made orthogonal
            (`gram_schmidt` does that, and says what it changed) nor rescaled. Or a `Plane` (see `plane_through`), or a
            result of `gram_schmidt` or `principal_directions`, or a `Subspace`, of two. Or two random ones, drawn with
            `seed` and `seed + 2**31`: "gaussian", "layer" or "filter" (see `random_direction`).
        extent: of alpha and beta: a number a for (-a, a), (first, last), or ((first, last), (first, last)). By default
            1, for a `Plane` the box around its points.
        num: steps of each, or (of alpha, of beta). Where 0, 0 falls on the grid, the value there is the loss's at the
            center, bit for bit.
        center: as in `line_slice`.
        buffers: as in `line_slice`; a `Plane` runs through several networks, so there is no default on it.
        recalibrate_on: as in `line_slice`.
        names: what u and v are called, for axes and `repr`.
        seed: of random directions; without effect on given ones.
        engine: as in `line_slice`.
        resume: npz file written as points are finished: the same call continues from it, bit for bit.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        PlaneSlice: `alphas` (num_alphas,), `betas` (num_betas,), `losses[name]` (num_alphas, num_betas), [i, j] at
        alphas[i] u + betas[j] v.

    Raises:
        ValueError, TypeError: directions of the wrong length, zero, not finite or parallel, an extent that is not
            finite or not ascending, losses around different points, a resume file of another call.

    Cost:
        num_alphas * num_betas evaluations (forward passes) per loss; measurement and resuming as in `line_slice`.
    """
    plane = directions if isinstance(directions, Plane) else None
    if plane is not None and center is not None:
        received, remedy = "is given, and so is a Plane, which has its own", "Pass plane.directions with your center."
        raise ValueError(argument_message("center", received, "one of the two", remedy))
    center = center if plane is None else plane.center
    losses, middle, held = center_buffers(
        as_losses(losses), center, buffers, recalibrate_on, is_through=plane is not None
    )
    is_random = isinstance(directions, str)
    pair = [
        as_direction(argument, given, losses, middle, seed=seed + i * _SECOND)
        for i, (argument, given) in enumerate(_two(directions))
    ]
    if names is not None:
        first, second = _labels(names, 2, "two names")
    elif plane is not None:
        a, b, c = plane.marks
        first, second = f"{a} → {b}", f"towards {c}"
    else:
        first, second = (f"random ({directions}) {axis}" if is_random else axis for axis in "uv")
    u, v = (vector.to(middle.device).double() for vector in pair)
    norms = torch.stack([u.norm(), v.norm()]).cpu()
    unit_u, unit_v = u / u.norm(), v / v.norm()
    cosine = float(unit_u @ unit_v)
    sine = float((unit_v - cosine * unit_u).norm())
    if sine < _PARALLEL:
        received, remedy = f"are parallel (sine of their angle {sine:.1e})", "Use line_slice, or another v."
        raise ValueError(argument_message("directions", received, "two that span a plane", remedy))
    spans = _spans(plane.extent() if extent is None and plane is not None else 1.0 if extent is None else extent)
    counts = tuple(num) if isinstance(num, Sequence) else (num, num)
    if len(counts) != 2:
        expected = "a count, or one for each direction"
        raise ValueError(argument_message("num", f"is {num!r}", expected, "Pass num=(41, 41)."))
    alphas, betas = (steps("extent", span, count) for span, count in zip(spans, counts, strict=True))
    grid = AffineGrid(middle, torch.stack([u, v]))
    grid.check_reach("extent", torch.cartesian_prod(alphas[[0, -1]], betas[[0, -1]]))
    width = len(betas)
    values = evaluate_points(
        losses,
        lambda i: grid.at(torch.stack([alphas[i // width], betas[i % width]])),
        len(alphas) * width,
        center=middle,
        buffers=held,
        engine=engine,
        resume=resume,
        identity={"center": digest(middle), "directions": digest(u, v), "extent or num": digest(alphas, betas)},
        title="plane slice",
        progress=progress,
    )
    dtype = torch.promote_types(pair[0].dtype, pair[1].dtype)
    return PlaneSlice(
        alphas=alphas,
        betas=betas,
        losses={name: row.reshape(-1, width) for name, row in values.losses.items()},
        accuracies={name: row.reshape(-1, width) for name, row in values.accuracies.items()},
        directions=torch.stack([vector.to("cpu", dtype) for vector in pair]),
        center=middle.cpu().clone(),
        norms=norms,
        angle=math.degrees(math.atan2(sine, cosine)),
        names=(first, second),
        marks={} if plane is None else dict(plane.marks),
        seed=seed if is_random else None,
        engine=values.engine,
        buffers=held.word,
        center_buffers=held.common,
    )


@door
@torch.inference_mode(False)
@plain_arithmetic()
def plane_through(
    theta_a: Point, theta_b: Point, theta_c: Point, *, names: Sequence[str] = ("a", "b", "c"), model: Any = None
) -> Plane:
    r"""The plane through three points of weight space, such as three minima.

    center = theta_a, u = (theta_b - theta_a) / |.|, v = what is orthogonal to u of theta_c - theta_a, of unit norm:
    distances on the plane are distances in weight space. Pass it on: `plane_slice(losses, plane)`.

    Args:
        theta_a: (p,), or a module, a state_dict, a file of one, a checkpoint, a minimum: the weights alone count.
        theta_b: as theta_a.
        theta_c: as theta_a.
        names: of the three points, for pictures.
        model: module or loss that tells weights from buffers, where only state_dicts or files are given.

    Returns:
        Plane: `center` (p,), `directions` (2, p) orthonormal, `marks` (the points' coordinates); on the device and in
        the dtype of theta_a.

    Raises:
        ValueError, TypeError: lengths that differ, values that are not finite, or three points on one line.

    Source:
        Garipov, Izmailov, Podoprikhin, Vetrov & Wilson (2018), "Loss surfaces, mode connectivity, and fast ensembling
        of DNNs".
    """
    remedy = "Pass three vectors theta of one model, such as lh.Objective(model, data).theta0 or run.checkpoints[i]."
    labels = _labels(names, 3, "three different names")
    first, *others = thetas_of("theta_a|theta_b|theta_c", (theta_a, theta_b, theta_c), model)
    a = own_vector(first_vector("theta_a", first, remedy=remedy))
    b, c = (
        check_vector(name, theta, len(a), owner="theta_a", remedy=remedy, like=a)
        for name, theta in zip(("theta_b", "theta_c"), others, strict=True)
    )
    to_b, to_c = b.double() - a.double(), c.double() - a.double()
    if not bool(to_b.any()):
        raise ValueError(argument_message("theta_b", "equals theta_a", "three points that span a plane", remedy))
    u = to_b / to_b.norm()
    rest = to_c - (u @ to_c) * u
    rest = rest - (u @ rest) * u  # twice: once leaves eps / sine of what was removed
    if float(rest.norm()) <= _PARALLEL * float(to_c.norm()):
        received = "lies on the line through theta_a and theta_b"
        raise ValueError(argument_message("theta_c", received, "three points that span a plane", "Use path_slice."))
    v = rest / rest.norm()
    marks = [torch.zeros(2), torch.stack([to_b.norm(), to_b @ v]), torch.stack([to_c @ u, to_c @ v])]
    return Plane(
        center=a,
        directions=torch.stack([u, v]).to(a.dtype),
        marks={label: mark.double().cpu() for label, mark in zip(labels, marks, strict=True)},
    )


@door
@torch.inference_mode(False)
@plain_arithmetic()
def plane_trajectory(
    plane: PlaneSlice,
    checkpoints: Any,
    *,
    losses: Loss | Mapping[str, Loss],
    buffers: Literal["fixed", "recalibrate"] | None = None,
    recalibrate_on: Any = None,
    progress: bool | None = None,
) -> PlaneTrajectory:
    r"""Project checkpoints onto a plane, and say how much of each the picture leaves out.

    The projection of theta is the nearest point of the plane, (alpha, beta) = G^-1 (u . d, v . d) with d = theta -
    center and G the Gram matrix of u, v (so oblique directions are handled). A path drawn over contours suggests that
    the loss changed as they say; comparing `losses` at the checkpoints with `plane_losses` shows whether it did.

    Args:
        plane: what `plane_slice` returned.
        checkpoints: a training run or record, or a sequence of checkpoints, modules, state_dicts, files, which bring
            their buffers (BatchNorm's statistics) and are evaluated with them; vectors (p,), or a matrix (t, p) such as
            `run.checkpoints`, which bring none.
        losses: name -> loss, or one loss, to be evaluated at the checkpoints and on the plane.
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
    losses = as_losses(losses)
    center = common_center(losses, plane.center)
    remedy = "Pass vectors theta of the model that the plane was made of, e.g. run.checkpoints."
    given = listed_points("checkpoints", checkpoints, remedy=remedy, expected="at least one vector (p,)")
    points = read_points("checkpoints", given, losses, like=center, remedy=remedy)
    held = trajectory_buffers(
        losses, points, buffers, recalibrate_on, plane_word=plane.buffers, plane_buffers=plane.center_buffers
    )
    grid = AffineGrid(center, plane.directions)
    basis = plane.directions.to(center.device).double()
    scaled = basis / basis.norm(dim=1, keepdim=True)  # so that lengths of 1e-8 and 1e8 don't spoil the equations
    offsets = torch.stack([point.theta for point in points]).double() - center.double()
    solved = torch.linalg.solve(scaled @ scaled.T, scaled @ offsets.T).T
    coordinates = solved / basis.norm(dim=1)
    thetas = [*(point.theta for point in points), *map(grid.at, coordinates)]
    values = evaluate_points(
        losses, thetas.__getitem__, len(thetas), center=center, buffers=held, title="plane trajectory",
        engine="point by point", progress=progress,
    )  # fmt: skip
    t = len(points)
    return PlaneTrajectory(
        coordinates=coordinates.cpu(),
        distances=(offsets - solved @ scaled).norm(dim=1).cpu(),
        losses={name: row[:t].clone() for name, row in values.losses.items()},
        plane_losses={name: row[t:].clone() for name, row in values.losses.items()},
        plane=plane.identity,
        buffers=held.word,
    )


def _two(directions: Any) -> list[tuple[str, Any]]:
    """(argument, direction) twice."""
    if isinstance(directions, str):
        return [("directions", directions)] * 2
    if isinstance(directions, Plane | OrthogonalDirections | PrincipalDirections):
        directions = directions.directions
    if isinstance(directions, Subspace):
        directions = directions.basis
    remedy = "Pass (u, v), a tensor (2, p) such as pairs.vectors[:2], a Plane, or the name of a random kind: 'filter'."
    expected = "two directions, each (p,)"
    found = listed_points("directions", directions, remedy=remedy, expected=expected, with_files=False)
    if len(found) != 2:
        raise ValueError(argument_message("directions", f"are {len(found)}", "two directions, each (p,)", remedy))
    return [(f"directions[{i}]", direction) for i, direction in enumerate(found)]


def _labels(names: Any, num: int, expected: str) -> list[str]:
    remedy = "Leave it out."
    labels = check_names("names", names if isinstance(names, Sequence) else [], remedy=remedy)
    if isinstance(names, str) or len(labels) != num or ("different" in expected and len(set(labels)) != num):
        raise ValueError(argument_message("names", f"is {names!r}", expected, remedy))
    return labels


def _spans(extent: Any) -> tuple[Any, Any]:
    """The extents of alpha and of beta."""
    extent = extent.tolist() if isinstance(extent, Tensor | np.ndarray) else extent
    if not (isinstance(extent, Sequence) and any(isinstance(part, Sequence) for part in extent)):
        return extent, extent
    if len(extent) != 2:
        remedy = "Pass ((first, last), (first, last)), one pair, or one positive number."
        raise ValueError(argument_message("extent", f"is {extent!r}", "two pairs", remedy))
    return extent[0], extent[1]
