"""Theme 7: do canyons leave the basin, are they minima across, do they slope, merge, and run different circuits?

On the first images of the training set, whose anchored loss is polished to a minimum of its own: a canyon is a property
of one fixed loss. Spheres are searched in the span of that loss's top eigenvectors, where no axis is so soft that it
swallows the others; energy shells in the span of the top eigenvectors of the two single-cue losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lowhanging.basin.canyon_paths import CanyonPath, trace_canyon
from lowhanging.basin.canyon_points import CanyonPoint, with_full_certificates
from lowhanging.basin.canyons import CanyonSet, find_canyons
from lowhanging.basin.conflict import ConflictControl
from lowhanging.basin.eigenpairs import top_eigs
from lowhanging.basin.minimum import Minimum, polish
from lowhanging.basin.operators import hessian
from lowhanging.basin.planes import PlaneSlice, plane_slice, plane_through
from lowhanging.basin.subspace import Subspace
from lowhanging.errors import NotConvergedError
from lowhanging.loss import Loss
from lowhanging.objective import Objective
from lowhanging.reproduce.claims import Claim, judged
from lowhanging.reproduce.learning import CUES, Learning
from lowhanging.reproduce.steering import Steered
from lowhanging.toys import sloped_canyons

NUM_IMAGES = 400
OWN, PER_CUE = 10, 5  # eigenvectors of the loss itself, and of each single-cue loss
RADIUS = 3.0  # of the sphere that is searched
INNER, OUTER, STEP = 0.5, 4.0, 0.5  # branches are followed between these radii
ENERGY = 0.3  # of the energy shell that is searched
SPHERE_STARTS, SHELL_STARTS = 10, 4  # random ones; on the shell the steering directions are aimed at too, both ways
NUM_BRANCHES = 2  # followed
NUM_ALPHAS, NUM_BETAS = 7, 7  # of the plane through two branches
CARTOON_RADII = (0.1, 0.5, 1.0, 3.0)
FLAT = 0.01  # nats per unit of distance: a slope below it counts as flat, from ...
OUTSIDE = 1.0  # ... this radius on: at the minimum every slope vanishes


@dataclass(frozen=True)
class Canyons:
    """What was found around the minimum on `NUM_IMAGES` images."""

    minimum: Minimum
    sphere: CanyonSet  # |delta| = RADIUS
    shell: CanyonSet  # energy ENERGY
    paths: dict[str, CanyonPath]  # name of a branch of the sphere -> followed both ways
    plane: PlaneSlice | None  # through the minimum and two branches
    full: CanyonPoint | None  # the first canyon of the sphere, with certificates in all of weight space
    cartoon: CanyonSet
    cartoon_error: float  # largest difference of its certificates from those on paper


def measure(learning: Learning, steered: list[Steered]) -> Canyons:
    """A minimum, two searches, branches followed, the cartoon by the same code."""
    train = learning.views.mixed.train
    some = Objective(learning.model, (train.inputs[:NUM_IMAGES], train.targets[:NUM_IMAGES]))
    minimum = polish(some, anchor=learning.minimum.anchor)
    loss, views = minimum.objective, learning.views
    own, shared = top_eigs(hessian(loss), k=OWN).subspace(), []
    for view in (views.number.train, views.pattern.train):
        cue = Objective(learning.model, (view.inputs[:NUM_IMAGES], view.targets[:NUM_IMAGES])).at(minimum.theta)
        shared.append(top_eigs(hessian(cue), k=PER_CUE).subspace())
    evaluate = {name: objective.at(minimum.theta) for name, objective in learning.losses.items()}
    control = ConflictControl(evaluate["mixed"], views.conflict.inputs, views.conflict.answers)
    sphere = find_canyons(
        loss,
        space=own,
        metric="euclidean",
        levels=RADIUS,
        starts=SPHERE_STARTS,
        evaluate=evaluate,
        conflict=control,
    )
    shell = find_canyons(
        loss,
        space=shared[0].union(shared[1]),
        levels=ENERGY,
        starts=SHELL_STARTS,
        aimed={f"keep {s.preserved}": s.direction for s in steered},
        evaluate=evaluate,
        conflict=control,
    )
    paths = {}
    for number, point in enumerate(_to_follow(sphere)):
        try:
            path = trace_canyon(loss, point, to=(INNER, OUTER), step=STEP, evaluate=evaluate, conflict=control)
        except NotConvergedError as error:
            path = error.result
        paths[f"branch {number + 1}"] = path
    cartoon = find_canyons(
        sloped_canyons(),
        space=Subspace(torch.eye(2, dtype=torch.float64)),
        metric="euclidean",
        levels=CARTOON_RADII,
        starts=16,
        rtol=1e-12,
    )
    full = None
    if sphere.canyons:
        full, _ = with_full_certificates(loss, sphere.canyons[0], float(sphere.curvatures[0]))
    plane = _plane(loss, evaluate, sphere)
    return Canyons(minimum, sphere, shell, paths, plane, full, cartoon, _cartoon_error(cartoon))


def _to_follow(found: CanyonSet) -> list[CanyonPoint]:
    """The first branches that are canyons of their own; where there is none, what is certified."""
    own = [point for point in found if point.is_certified and point.copy_of is None]
    return [point for point in own if not point.is_trivial][:NUM_BRANCHES] or own[:1]


def _plane(loss: Loss, evaluate: dict[str, Objective], found: CanyonSet) -> PlaneSlice | None:
    """The evaluated losses on the plane through the minimum and two branches."""
    points = _to_follow(found)
    if len(points) < 2:
        return None
    a, b = points[:2]
    plane = plane_through(loss.theta0, a.theta, b.theta, names=("minimum", "branch 1", "branch 2"))
    return plane_slice(evaluate, plane, num=(NUM_ALPHAS, NUM_BETAS), engine="point by point")


def _cartoon_error(found: CanyonSet) -> float:
    """Largest difference of rise, slope, plane and sphere eigenvalue from paper; infinite if an axis is missing."""
    errors = []
    for radius in CARTOON_RADII:
        points, fall = found.at_level(radius), 0.1 * math.exp(-(radius**2))
        on_axes = {(round(float(x), 6) + 0.0, round(float(y), 6) + 0.0) for x, y in (p.delta / radius for p in points)}
        if len(points) != 4 or on_axes != {(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)}:
            return math.inf
        paper = (0.1 - fall, 2 * radius * fall, 2 * radius**2 + 2 * fall, 2 * radius**2)
        for p in points:
            measured = (p.rise, p.slope, p.plane_eigenvalue, p.sphere_eigenvalue)
            errors += [abs(a - b) for a, b in zip(measured, paper, strict=True)]
    return max(errors)


def claims(canyons: Canyons) -> list[Claim]:
    """Minima across, different circuits, merging, sloping, and the cartoon."""
    return [
        _minima_across(canyons),
        _circuits(canyons),
        _merge(canyons),
        _sloped(canyons),
        Claim(
            "the sloped cartoon's canyons are its axes",
            "the loss x²y² + 0.1 (1 − exp(−x² − y²)) has two canyons, the axes, meeting at the origin",
            f"the finder gives the four half-axes and nothing else at each of r = {_listed(CARTOON_RADII)}; height, "
            f"slope, plane and sphere eigenvalues differ from those on paper by at most {canyons.cartoon_error:.0e}"
            if canyons.cartoon_error < math.inf
            else "an axis is missing, or something else was found",
            "exactly the four half-axes at every radius, every number within 1e-8 of paper",
            judged(canyons.cartoon_error <= 1e-8),
        ),
    ]


def _minima_across(canyons: Canyons) -> Claim:
    own = [p for p in canyons.sphere.canyons if p.copy_of is None]
    dim = len(canyons.sphere.curvatures)
    texts = [
        f"rise {p.rise:.3g} (a quadratic bowl: {p.energy:.3g}), plane {p.plane_eigenvalue:+.3g}, "
        f"sphere {p.sphere_eigenvalue:+.3g} (± {p.euclidean_error:.0e})"
        for p in own
    ]
    deep = [round(p.depth, 2) for p in canyons.shell.canyons]
    full = canyons.full
    whole = (
        f". In all {len(full.delta):,} directions the first of them has |Pg| = {full.full_residual:.2g} (slope "
        f"{full.slope:.2g}) and a plane eigenvalue of {full.full_plane_eigenvalue:+.2g} (± {full.full_error:.0e})"
        if full is not None and full.full_residual is not None and full.full_plane_eigenvalue is not None
        else ""
    )
    return Claim(
        "further out there are canyons, minima in all orthogonal directions",
        "away from the basin, each circuit has a canyon: a local minimum in all directions orthogonal to the way there",
        f"on the sphere of radius {RADIUS:g} in the {dim}-dimensional span of the loss's top eigenvectors, {len(own)} "
        f"certified canyons: {'; '.join(texts) or 'none'}. On the energy shell E = {ENERGY:g} in the span of the two "
        f"single-cue losses' top eigenvectors, {len(deep)}, with depths {_listed(deep) or '–'} (1 in a quadratic "
        f"bowl){whole}",
        "three parts: a certified canyon on the sphere, beyond the softest axis; two of them, as there are two "
        "circuits; the first one stationary in all of weight space too (|Pg| at most a tenth of the slope, plane "
        "eigenvalue above 0)",
        judged(
            bool(own),
            len(own) >= 2,
            full is not None
            and full.full_residual is not None
            and full.full_residual <= 0.1 * abs(full.slope)
            and (full.full_plane_eigenvalue or 0.0) > (full.full_error or 0.0),
        ),
    )


def _circuits(canyons: Canyons) -> Claim:
    basin = math.log(canyons.sphere.losses["number"] / canyons.sphere.losses["pattern"])
    points = [*canyons.sphere.canyons, *canyons.shell.canyons, *(path[-1] for path in canyons.paths.values())]
    named = {cue: sum(point.circuit == cue for point in points) for cue in CUES}
    asymmetries = [point.asymmetry("number", "pattern") - basin for point in points]
    shifts = [point.answer_shift[0] for point in points if point.answer_shift is not None]
    spread = f"{min(asymmetries):+.2f} to {max(asymmetries):+.2f}" if asymmetries else "–"
    moved = f"{min(shifts):+.2f} to {max(shifts):+.2f}" if shifts else "–"
    return Claim(
        "canyons execute different circuits",
        "on the floor of one canyon the network reads numbers, on that of the other patterns",
        f"log(L_number / L_pattern), {basin:+.2f} at the minimum, changes by {spread} over {len(points)} certified "
        f"canyons and far ends of branches; on conflict images the answers move towards the better-kept cue by {moved} "
        "(change of the difference in shares). Called after a circuit: "
        + ", ".join(f"{cue} {count}" for cue, count in named.items()),
        "a point is called after a circuit if the asymmetry moved by more than 1 and the answers on conflict images "
        "moved the same way by at least 0.1, with an interval above 0; two parts: a canyon that runs the number "
        "circuit, one that runs the pattern circuit",
        judged(*(count > 0 for count in named.values())),
    )


def _merge(canyons: Canyons) -> Claim:
    texts, merged = [], []
    for name, path in canyons.paths.items():
        low, high = path.merge_radius
        is_inner = low > 0.0
        texts.append(
            f"{name} ({path[0].radius:.2g} to {path[-1].radius:.2g}): "
            + (f"a canyon of its own down to {low:.3g} to {high:.3g}" if is_inner else "one all the way in")
        )
        merged.append(is_inner)
    return Claim(
        "canyons merge into one basin at a radius",
        "near the minimum there is one basin; the canyons separate from it some way out",
        f"followed inwards to {INNER:g}: " + ("; ".join(texts) or "there was none to follow"),
        "two parts: at least two branches, and at most one of them still a local minimum of its own on the sphere at "
        "the inner end",
        judged(len(merged) >= 2, bool(merged) and merged.count(False) <= 1),
    )


def _sloped(canyons: Canyons) -> Claim:
    texts, sloped = [], []
    for name, path in canyons.paths.items():
        floor = [point for point in path if point.is_certified and point.radius >= OUTSIDE]
        slopes = [point.slope_without_anchor for point in floor]
        sloped.append(bool(slopes) and min(slopes) > FLAT)
        texts.append(
            f"{name}: {min(slopes):.3g} to {max(slopes):.3g} from r = {floor[0].radius:.2g} to {floor[-1].radius:.2g}"
            if slopes
            else f"{name}: no certified floor"
        )
    return Claim(
        "canyons are sloped, not flat",
        "the floor of a canyon falls towards the basin where both circuits work",
        "slope n·g of the floor without the anchor, in nats per unit of distance (0 in the flat cartoon): "
        + ("; ".join(texts) or "there was none to follow"),
        f"the slope without the anchor is above {FLAT:g} at every certified point from r = {OUTSIDE:g} on; each branch "
        "is a part",
        judged(*sloped) if sloped else "does not hold",
    )


def numbers(canyons: Canyons) -> dict[str, object]:
    """What goes into results.json."""
    return {
        "num_images": NUM_IMAGES,
        "minimum": {
            "loss": canyons.minimum.loss,
            "gradient_norm": canyons.minimum.gradient_norm,
            "distance": canyons.minimum.distance,
        },
        "basin": {"losses": canyons.sphere.losses, "followed": canyons.sphere.followed},
        "sphere": [_record(point) for point in canyons.sphere],
        "shell": [_record(point) for point in canyons.shell],
        "full": None if canyons.full is None else _record(canyons.full),
        "paths": {
            name: {
                "points": [_record(point) for point in path],
                "events": [vars(event) for event in path.events],
                "merge_radius": list(path.merge_radius),
            }
            for name, path in canyons.paths.items()
        },
        "cartoon_error": canyons.cartoon_error,
        "num_gradients": canyons.sphere.num_gradients + canyons.shell.num_gradients,
        "num_products": canyons.sphere.num_products + canyons.shell.num_products,
    }


def _record(point: CanyonPoint) -> dict[str, object]:
    """Everything of a point but its vectors."""
    apart = ("delta", "theta", "space")
    return {name: value for name, value in vars(point).items() if name not in apart} | {
        "is_certified": point.is_certified,
        "is_trivial": point.is_trivial,
        "depth": point.depth,
    }


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
