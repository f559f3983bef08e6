"""Theme "canyons": do canyons leave the basin, are they minima across, do they slope, merge, run different circuits?

On the first images of the training set, whose anchored loss is polished to a minimum of its own: a canyon is a property
of one fixed loss. Spheres are searched in the span of that loss's top eigenvectors, where no axis is so soft that it
swallows the others; energy shells in the span of the top eigenvectors of the two single-cue losses. The number of
canyons is held against random subspaces of two kinds: of all weights, and of the span of the loss's top eigenvectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lowhanging.basin.canyon_null import CountNull, DepthNull, count_null, depth_null
from lowhanging.basin.canyon_paths import CanyonPath, trace_canyon
from lowhanging.basin.canyon_points import CanyonPoint, with_full_certificates
from lowhanging.basin.canyon_set import CanyonSet
from lowhanging.basin.canyons import find_canyons
from lowhanging.basin.conflict import ConflictControl
from lowhanging.basin.eigenpairs import Eigenpairs, top_eigs
from lowhanging.basin.minimum import Minimum, polish
from lowhanging.basin.operators import hessian
from lowhanging.basin.planes import PlaneSlice, plane_slice, plane_through
from lowhanging.basin.subspace import Subspace
from lowhanging.errors import NotConvergedError
from lowhanging.loss import Loss
from lowhanging.objective import Objective
from lowhanging.reproduce import cartoons
from lowhanging.reproduce.learning import CUES, Learning
from lowhanging.reproduce.settings import Sizes
from lowhanging.reproduce.shelf import Row, Shelf
from lowhanging.reproduce.steering import directions_of
from lowhanging.toys import flat_canyons

RADIUS = 3.0  # of the sphere that is searched
INNER, OUTER, STEP = 0.5, 4.0, 0.5  # branches are followed between these radii
ENERGY = 0.3  # of the energy shell that is searched
NUM_BRANCHES = 2  # followed
NULL_AXES = 50  # top eigenvectors, in whose span the stricter random subspaces are drawn
NUM_ALPHAS, NUM_BETAS = 7, 7  # of the plane through two branches

_T = TypeVar("_T")


@dataclass(frozen=True)
class Canyons:
    """What was found around the minimum on the first images."""

    minimum: Minimum
    sphere: CanyonSet  # |delta| = RADIUS
    shell: CanyonSet  # energy ENERGY
    paths: dict[str, CanyonPath]  # name of a branch of the sphere -> followed both ways
    plane: PlaneSlice | None  # through the minimum and two branches
    null: DepthNull | None  # the shell's search in random subspaces of equal curvature
    counts: dict[str, CountNull]  # where they are drawn -> the sphere's search in random subspaces of equal mean energy


def canyons_of(network: Learning, sizes: Sizes, shelf: Shelf) -> Canyons:
    """A minimum, two searches, branches followed, a plane through two of them, and the null of the depth."""
    minimum = minimum_of(network, sizes, shelf)
    loss = minimum.objective
    evaluate = {name: objective.at(minimum.theta) for name, objective in network.losses.items()}
    images = network.views.conflict
    control = ConflictControl(evaluate["mixed"], images.inputs, images.answers)
    watched: dict[str, Any] = {"evaluate": evaluate, "conflict": control}

    def axes(name: str, of: Loss, k: int) -> Subspace:
        pairs: Eigenpairs = shelf.result(
            name, Eigenpairs.load, lambda: top_eigs(hessian(of), k=k, resume=shelf.resume(name))
        )
        return pairs.subspace()

    own = axes("canyon-axes", loss, sizes.canyon_axes)
    of_number, of_pattern = (
        axes(f"canyon-axes-{cue}", _first(network, cue, sizes).at(minimum.theta), sizes.canyon_cue_axes) for cue in CUES
    )
    shared = of_number.union(of_pattern)
    wide = axes("canyon-null-axes", loss, min(NULL_AXES, loss.num_params))  # in their span random subspaces are drawn

    def sphere() -> CanyonSet:
        return _found(
            lambda: find_canyons(
                loss, space=own, metric="euclidean", levels=RADIUS, starts=sizes.sphere_starts, **watched
            )
        )

    def shell() -> CanyonSet:
        aimed = {f"keep {s.preserved}": s.direction for s in directions_of(network, sizes, shelf)}
        return _found(
            lambda: find_canyons(
                loss, space=shared, levels=ENERGY, starts=sizes.shell_starts, aimed=aimed, **watched
            )
        )

    on_sphere = shelf.result("canyons-on-sphere", CanyonSet.load, sphere)
    on_shell = shelf.result("canyons-on-shell", CanyonSet.load, shell)
    paths = {}
    for number, point in enumerate(_to_follow(on_sphere), 1):
        file = shelf.resume(f"branch-{number}")

        def followed(point: CanyonPoint = point, file: Any = file) -> CanyonPath:
            return _found(lambda: trace_canyon(loss, point, to=(INNER, OUTER), step=STEP, resume=file, **watched))

        paths[f"branch {number}"] = shelf.result(f"branch-{number}", CanyonPath.load, followed)
    return Canyons(
        minimum,
        on_sphere,
        on_shell,
        paths,
        _plane(loss, evaluate, on_sphere, shelf),
        _null(loss, on_shell, wide, sizes, shelf),
        _counts(loss, on_sphere, wide, sizes, shelf),
    )


def minimum_of(network: Learning, sizes: Sizes, shelf: Shelf) -> Minimum:
    """The minimum of the loss on the first training images."""
    some = _first(network, "mixed", sizes)

    def polished() -> Minimum:
        return _found(lambda: polish(some, anchor=sizes.anchor, resume=shelf.resume("canyon-minimum")))

    return shelf.result("canyon-minimum", lambda path: Minimum.load(path, some), polished)


def _first(network: Learning, name: str, sizes: Sizes) -> Objective:
    """The loss on the first training images of a view, around the trained weights."""
    view = getattr(network.views, name).train
    return Objective(network.model, (view.inputs[: sizes.canyon_images], view.targets[: sizes.canyon_images]))


def _found(make: Callable[[], _T]) -> _T:
    """What was found, also where it missed its tolerance: every point carries its own certificate."""
    try:
        return make()
    except NotConvergedError as error:
        result: _T = error.result
        return result


def _to_follow(found: CanyonSet) -> list[CanyonPoint]:
    """The first branches that are canyons of their own; where there is none, what is certified."""
    own = [point for point in found if point.is_certified and point.copy_of is None]
    return [point for point in own if not point.is_trivial][:NUM_BRANCHES] or own[:1]


def _plane(loss: Loss, evaluate: dict[str, Objective], found: CanyonSet, shelf: Shelf) -> PlaneSlice | None:
    """The evaluated losses on the plane through the minimum and two branches."""
    points = _to_follow(found)
    if len(points) < 2:
        return None
    a, b = points[:2]

    def made() -> PlaneSlice:
        plane = plane_through(loss.theta0, a.theta, b.theta, names=("minimum", "branch 1", "branch 2"))
        return plane_slice(evaluate, plane, num=(NUM_ALPHAS, NUM_BETAS), engine="point by point")

    return shelf.result("plane-of-branches", PlaneSlice.load, made)


def _null(loss: Loss, found: CanyonSet, wide: Subspace, sizes: Sizes, shelf: Shelf) -> DepthNull | None:
    """The depth on the shell against random subspaces of equal curvature."""
    if not any(point.is_converged for point in found):
        return None
    num = sizes.null_subspaces
    return shelf.result("depth-null", DepthNull.load, lambda: depth_null(loss, found, within=wide, num=num))


def _counts(loss: Loss, found: CanyonSet, wide: Subspace, sizes: Sizes, shelf: Shelf) -> dict[str, CountNull]:
    """The number of canyons on the sphere against random subspaces: of all weights, and of the top eigenvectors."""
    num = sizes.null_subspaces
    among_all = shelf.result("count-null-all", CountNull.load, lambda: count_null(loss, found, num=num))
    among_top = shelf.result(
        "count-null-top", CountNull.load, lambda: count_null(loss, found, within=wide, num=num, seed=1)
    )
    return {
        f"all {among_all.within:,} weights": among_all,
        f"the span of the top {among_top.within} eigenvectors": among_top,
    }


def measure(network: Learning, sizes: Sizes, shelf: Shelf) -> Row:
    """Every point, every branch, and what they are held against."""
    canyons = canyons_of(network, sizes, shelf)
    minimum, sphere, null = canyons.minimum, canyons.sphere, canyons.null

    def full() -> Row | None:
        if not sphere.canyons:
            return None
        point, _ = with_full_certificates(minimum.objective, sphere.canyons[0], float(sphere.curvatures[0]))
        return _record(point)

    flat = cartoons.canyons_of(flat_canyons(), (INNER, RADIUS, OUTER))
    return {
        "num_images": sizes.canyon_images,
        "minimum": {
            "is_minimum": minimum.is_minimum,
            "loss": minimum.loss,
            "gradient_norm": minimum.gradient_norm,
            "distance": minimum.distance,
        },
        "basin": {"losses": sphere.losses, "followed": sphere.followed},
        "dim": len(sphere.curvatures),
        "sphere": [_record(point) for point in sphere],
        "shell": [_record(point) for point in canyons.shell],
        "full": shelf.plain("canyon-full", full),
        "num_params": minimum.theta.numel(),
        "paths": {
            name: {
                "points": [_record(point) for point in path],
                "events": [vars(event) for event in path.events],
                "merge_radius": list(path.merge_radius),
            }
            for name, path in canyons.paths.items()
        },
        "null_depths": [] if null is None else null.null[:, 0].tolist(),
        "null_dim": 0 if null is None else null.dim,
        "num_branches": int(sum(point.copy_of is None for point in sphere)),
        "count_nulls": {
            name: {
                "canyons": count.null[:, 0].tolist(),
                "branches": count.null_branches[:, 0].tolist(),
                "radii": count.radii[:, 0].tolist(),
                "anchor_shares": [
                    minimum.anchor / (float(sphere.curvatures.mean()) * (RADIUS / radius) ** 2)
                    for radius in count.radii[:, 0].tolist()
                ],  # of the mean curvature, which equal mean energy gives from the radius
                "dim": count.dim,
            }
            for name, count in canyons.counts.items()
        },
        "flat_slopes": [point.slope for point in flat],
        "num_gradients": sphere.num_gradients + canyons.shell.num_gradients,
        "num_products": sphere.num_products + canyons.shell.num_products,
    }


def bowl_slope(point: CanyonPoint) -> float:
    r"""Slope along n, at the same point, of the quadratic that the loss without the anchor makes at theta0.

    n.(g0 + H0 delta), both without the anchor. With it the gradient at theta0 is 0 (a minimum) and n.H0 delta is twice
    the energy over r; what the anchor adds to either slope at this point is the same, as it is a quadratic itself.
    """
    return 2.0 * point.energy / point.radius - (point.slope - point.slope_without_anchor)


def _record(point: CanyonPoint) -> Row:
    """Everything of a point but its vectors."""
    apart = ("delta", "theta", "space")
    return {name: value for name, value in vars(point).items() if name not in apart} | {
        "is_certified": point.is_certified,
        "is_trivial": point.is_trivial,
        "depth": point.depth,
        "bowl_slope_without_anchor": bowl_slope(point),
    }
