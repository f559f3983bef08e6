"""Theme "canyons": minima across the way out, the circuits that run on their floors, where they merge, how they slope.

On the first images of the training set, whose anchored loss is polished to a minimum of its own: a canyon is a property
of one fixed loss. Spheres are searched in the span of that loss's top eigenvectors, where no axis is so soft that it
swallows the others; energy shells in the span of the top eigenvectors of the two single-cue losses. The number of
canyons is held against random subspaces of two kinds: of all weights, and of the span of the loss's top eigenvectors.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lowhanging.canyons.continuation import CanyonPath, trace_canyon
from lowhanging.canyons.find import CanyonSet, find_canyons
from lowhanging.canyons.null import CountNull, DepthNull, count_null, depth_null
from lowhanging.canyons.point import CanyonPoint, with_full_certificates
from lowhanging.curvature.subspace import Subspace
from lowhanging.errors import NotConvergedError
from lowhanging.landscape.minimum import Minimum, polish
from lowhanging.landscape.planes import PlaneSlice, plane_slice, plane_through
from lowhanging.objective.objective import Objective
from lowhanging.objective.protocol import Loss
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, most_of, over_seeds, percent
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.settings import Sizes
from lowhanging.reproduce.store import ResultStore, Row
from lowhanging.reproduce.themes import cartoons
from lowhanging.reproduce.themes.curvature import eigenpairs
from lowhanging.reproduce.themes.learning import CUES, ENGINE, first_images, views_of
from lowhanging.reproduce.themes.steering import directions_of
from lowhanging.steering.cues import MIN_ANSWER_SHIFT, MIN_ASYMMETRY_CHANGE, ConflictControl
from lowhanging.toys import flat_canyons

RADIUS = 3.0  # of the sphere that is searched
INNER, OUTER, STEP = 0.5, 4.0, 0.5  # branches are followed between these radii
ENERGY = 0.3  # of the energy shell that is searched
NUM_BRANCHES = 2  # followed
NULL_AXES = 50  # top eigenvectors, in whose span the stricter random subspaces are drawn
NUM_ALPHAS, NUM_BETAS = 7, 7  # of the plane through two branches
FLAT = 0.01  # nats per unit of distance: a slope below it counts as flat, from ...
OUTSIDE = 1.0  # ... this radius on: at the minimum every slope vanishes
BOWL_SHARE = 0.5  # of the slope of the loss's own quadratic, up to which a floor at RADIUS and beyond is no bowl's
STILL = 0.1  # |Pg| in all of weight space, as a share of the slope, up to which a point counts as stationary there

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


def canyons_of(context: Context) -> Canyons:
    """A minimum, two searches, branches followed, a plane through two of them, and the nulls."""
    network, sizes, store = context.network, context.sizes, context.store
    minimum = minimum_of(context)
    loss = minimum.objective
    evaluate = {name: objective.at(minimum.theta) for name, objective in network.losses.items()}
    images = network.views.conflict
    control = ConflictControl(evaluate["mixed"], images.inputs, images.answers)
    watched: dict[str, Any] = {"evaluate": evaluate, "conflict": control}

    def axes(name: str, of: Loss, k: int) -> Subspace:
        return eigenpairs(name, of, k, store).subspace()

    own = axes("canyon-axes", loss, sizes.canyon_axes)
    of_number, of_pattern = (
        axes(f"canyon-axes-{cue}", _first(context, cue).at(minimum.theta), sizes.canyon_cue_axes) for cue in CUES
    )
    shared = of_number.union(of_pattern)
    wide = axes("canyon-null-axes", loss, min(NULL_AXES, loss.num_params))  # in their span random subspaces are drawn

    def sphere() -> CanyonSet:
        return _found(
            lambda: find_canyons(
                loss, space=own, metric="euclidean", levels=RADIUS, num_starts=sizes.sphere_starts, **watched
            )
        )

    def shell() -> CanyonSet:
        initial_directions = {f"keep {s.preserved}": s.direction for s in directions_of(context)}
        return _found(
            lambda: find_canyons(
                loss,
                space=shared,
                levels=ENERGY,
                num_starts=sizes.shell_starts,
                initial_directions=initial_directions,
                **watched,
            )
        )

    on_sphere = store.result("canyons-on-sphere", sphere)
    on_shell = store.result("canyons-on-shell", shell)
    paths = {}
    for number, point in enumerate(_to_follow(on_sphere), 1):
        file = store.resume(f"branch-{number}")

        def traced(point: CanyonPoint = point, file: Any = file) -> CanyonPath:
            return _found(lambda: trace_canyon(loss, point, to=(INNER, OUTER), step=STEP, resume=file, **watched))

        paths[f"branch {number}"] = store.result(f"branch-{number}", traced)
    return Canyons(
        minimum,
        on_sphere,
        on_shell,
        paths,
        _plane(loss, evaluate, on_sphere, store),
        _null(loss, on_shell, wide, sizes, store),
        _counts(loss, on_sphere, wide, sizes, store),
    )


def minimum_of(context: Context) -> Minimum:
    """The minimum of the loss on the first training images."""
    some, store = _first(context, "mixed"), context.store

    def polished() -> Minimum:
        return _found(lambda: polish(some, anchor=context.sizes.anchor, resume=store.resume("canyon-minimum")))

    return store.result("canyon-minimum", polished, lambda path: Minimum.load(path, some))


def _first(context: Context, name: str) -> Objective:
    """The loss on the first training images of a view, around the trained weights."""
    view = views_of(context.network.views)[name]
    return Objective(context.network.model, first_images(view.train, context.sizes.canyon_images), engine=ENGINE)


def _found(make: Callable[[], _T]) -> _T:
    """What was found, also where it missed its tolerance: every point carries its own certificate."""
    try:
        return make()
    except NotConvergedError as error:
        result: _T = error.result
        return result


def _to_follow(found: CanyonSet) -> list[CanyonPoint]:
    """The first branches that are canyons of their own; where there is none, what is certified."""
    own = [point for point in found if point.is_certified and point.duplicate_of is None]
    return [point for point in own if point.is_canyon][:NUM_BRANCHES] or own[:1]


def _plane(loss: Loss, evaluate: dict[str, Objective], found: CanyonSet, store: ResultStore) -> PlaneSlice | None:
    """The evaluated losses on the plane through the minimum and two branches."""
    points = _to_follow(found)
    if len(points) < 2:
        return None
    a, b = points[:2]

    def made() -> PlaneSlice:
        plane = plane_through(loss.theta0, a.theta, b.theta, names=("minimum", "branch 1", "branch 2"))
        return plane_slice(evaluate, plane, num=(NUM_ALPHAS, NUM_BETAS), engine="point by point")

    return store.result("plane-of-branches", made)


def _null(loss: Loss, found: CanyonSet, wide: Subspace, sizes: Sizes, store: ResultStore) -> DepthNull | None:
    """The lowest rises on the shell against random subspaces of equal curvature."""
    if not any(point.is_converged for point in found):
        return None
    num = sizes.null_subspaces
    return store.result("depth-null", lambda: depth_null(loss, found, within=wide, num_subspaces=num))


def _counts(loss: Loss, found: CanyonSet, wide: Subspace, sizes: Sizes, store: ResultStore) -> dict[str, CountNull]:
    """The number of canyons on the sphere against random subspaces: of all weights, and of the top eigenvectors."""
    num = sizes.null_subspaces
    among_all = store.result("count-null-all", lambda: count_null(loss, found, num_subspaces=num))
    among_top = store.result("count-null-top", lambda: count_null(loss, found, within=wide, num_subspaces=num, seed=1))
    return {
        f"all {among_all.within:,} weights": among_all,
        f"the span of the top {among_top.within} eigenvectors": among_top,
    }


def measure(context: Context) -> Row:
    """Every point, every branch, and what they are held against."""
    canyons = canyons_of(context)
    minimum, sphere, null = canyons.minimum, canyons.sphere, canyons.null

    def full() -> Row | None:
        if not sphere.canyons:
            return None
        point, _ = with_full_certificates(minimum.objective, sphere.canyons[0], float(sphere.curvatures[0]))
        return _record(point)

    flat = cartoons.canyons_of(flat_canyons(), (INNER, RADIUS, OUTER))
    return {
        "num_images": context.sizes.canyon_images,
        "minimum": {
            "is_minimum": minimum.is_minimum,
            "loss": minimum.loss,
            "gradient_norm": minimum.gradient_norm,
            "distance": minimum.distance,
        },
        "basin": {"losses": sphere.losses, "cue_shares": sphere.cue_shares},
        "dim": len(sphere.curvatures),
        "sphere": [_record(point) for point in sphere],
        "shell": [_record(point) for point in canyons.shell],
        "full": context.store.plain("canyon-full", full),
        "num_params": minimum.theta.numel(),
        "paths": {
            name: {
                "points": [_record(point) for point in path],
                "events": [vars(event) for event in path.events],
                "merge_radius": list(path.merge_radius),
            }
            for name, path in canyons.paths.items()
        },
        "null_relative_rises": [] if null is None else null.null[:, 0].tolist(),
        "null_dim": 0 if null is None else null.dim,
        "num_branches": int(sum(point.duplicate_of is None for point in sphere)),
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
    vectors = ("delta", "theta", "space")
    return {name: value for name, value in vars(point).items() if name not in vectors} | {
        "is_certified": point.is_certified,
        "is_trivial": point.is_trivial,
        "is_canyon": point.is_canyon,
        "relative_rise": point.relative_rise,
        "bowl_slope_without_anchor": bowl_slope(point),
    }


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Minima across, different circuits, merging, sloping."""
    return [_minima_across(rows), _circuits(rows), _merge(rows), _sloped(rows)]


def own(points: Sequence[Row]) -> list[Row]:
    """Canyons that are no copies."""
    return [p for p in points if p["is_canyon"] and p["duplicate_of"] is None]


def beats_random(row: Row) -> bool:
    """Whether the sphere has more canyons than most random subspaces of either kind; an unknown count is not beaten."""
    num = len(own(row["sphere"]))
    return bool(row["count_nulls"]) and all(
        most(count is not None and num > count for count in null["canyons"]) for null in row["count_nulls"].values()
    )


def _random_counts(rows: Sequence[Row]) -> str:
    """Numbers of canyons and of branches in the random subspaces, kind by kind."""
    texts = []
    for name in rows[0]["count_nulls"]:
        nulls = [row["count_nulls"][name] for row in rows]
        canyons, branches = ("; ".join(_counted(null[key]) for null in nulls) for key in ("canyons", "branches"))
        radii = [radius for null in nulls for radius in null["radii"]]
        shares = [share for null in nulls for share in null["anchor_shares"]]
        texts.append(
            f"of {name}, on spheres of radius {min(radii):.3g} to {max(radii):.3g} (the anchor makes "
            f"{percent(statistics.fmean(shares))} of the energy): {canyons} certified canyons, among "
            f"{branches} branches"
        )
    return (
        f"; for their number, the same search in random {rows[0]['dim']}-dimensional subspaces, each at the radius of "
        f"equal mean quadratic energy (a value per subspace; networks apart by semicolons): {', and '.join(texts)}; "
        "the other branches are not certified, or trivial (the softest axis, or no deeper than the bowl)"
    )


def _counted(counts: Sequence[float | None]) -> str:
    return ", ".join("unknown" if count is None else f"{count:.0f}" for count in counts)


def is_whole(full: Row | None) -> bool:
    """Whether a point is a plane canyon in all of weight space too."""
    return (
        full is not None
        and full["full_residual"] is not None
        and full["full_residual"] <= STILL * abs(full["slope"])
        and (full["full_plane_eigenvalue"] or 0.0) > (full["full_error"] or 0.0)
    )


def _minima_across(rows: Sequence[Row]) -> Claim:
    counts = [len(own(row["sphere"])) for row in rows]
    beaten = [beats_random(row) for row in rows]
    branches = [float(row["num_branches"]) for row in rows]
    points = [p for row in rows for p in own(row["sphere"])]
    texts = [
        f"rise {p['rise']:.3g} (a quadratic bowl: {p['energy']:.3g}), plane {p['plane_eigenvalue']:+.3g}, "
        f"sphere {p['sphere_eigenvalue']:+.3g} (± {p['euclidean_error']:.0e})"
        for p in points[:4]
    ]
    found = (
        f"{mean_interval([float(count) for count in counts])} certified canyons (per network: "
        f"{_counted(counts)}) among {mean_interval(branches)} branches"
    )
    shells = [[p for p in row["shell"] if p["is_canyon"]] for row in rows]
    rises = [min(p["relative_rise"] for p in shell) for shell in shells if shell]
    whole = [row["full"] for row in rows if row["full"] is not None and row["full"]["full_residual"] is not None]
    listed = "; ".join(
        f"|Pg| = {p['full_residual']:.2g} at a slope of {p['slope']:.2g}, plane eigenvalue "
        f"{p['full_plane_eigenvalue']:+.2g} (± {p['full_error']:.0e})"
        for p in whole[:4]
    )
    nulls = [rise for row in rows for rise in row["null_relative_rises"] if rise is not None]
    random = (
        f"; for the relative rise on the shell, the same search in {len(nulls)} random "
        f"{rows[0]['null_dim']}-dimensional subspaces of equal curvature: {statistics.fmean(nulls):.2f} "
        f"({min(nulls):.2f} to {max(nulls):.2f})"
        if nulls
        else ""
    )
    return Claim(
        10,
        "further out there are canyons, minima in all orthogonal directions",
        "away from the basin, each circuit has a canyon: a local minimum in all directions orthogonal to the way there",
        f"on the sphere of radius {RADIUS:g} in the {rows[0]['dim']}-dimensional span of the loss's top eigenvectors "
        f"{over_seeds(len(rows))}, {found}: {'; '.join(texts) or 'none'}. On the energy shell E = {ENERGY:g} in the "
        f"span of the two single-cue losses' top eigenvectors, {mean_interval([float(len(s)) for s in shells])}, the "
        f"lowest at a relative rise of {mean_interval(rises, 2, scale='log') if rises else '–'}. In all "
        f"{rows[0]['num_params']:,} directions the first canyon of the sphere has {listed or '–'}",
        f"a quadratic bowl: no canyon, a relative rise of 1{_random_counts(rows)}{random}. More canyons than most "
        f"random subspaces of each kind: {most_of(beaten)}",
        "three parts, each in more than half of the seeds: a certified canyon on the sphere, beyond the softest axis; "
        "two of them, as there are two circuits; both only where there are more than in more than half of the same "
        "network's random subspaces, of either kind; and the first one stationary in all of weight space too (|Pg| at "
        "most a tenth of the slope, plane eigenvalue above 0)",
        judged(
            most(count >= 1 and more for count, more in zip(counts, beaten, strict=True)),
            most(count >= 2 and more for count, more in zip(counts, beaten, strict=True)),
            most(is_whole(row["full"]) for row in rows),
        ),
    )


def branches_of(row: Row) -> dict[str, Row]:
    """The branches that were followed from a canyon; where the sphere had none, what was followed is no canyon."""
    return dict(row["paths"]) if own(row["sphere"]) else {}


def ends(row: Row) -> list[Row]:
    """Certified canyons of both searches, and the far ends of the branches where these still are canyons."""
    points = [*row["sphere"], *row["shell"], *(path["points"][-1] for path in branches_of(row).values())]
    return [p for p in points if p["is_canyon"]]


def moved(row: Row) -> list[float]:
    """Change of log(L_number / L_pattern) from the minimum, at each of the `ends`."""
    basin = math.log(row["basin"]["losses"]["number"] / row["basin"]["losses"]["pattern"])
    return [math.log(p["losses"]["number"] / p["losses"]["pattern"]) - basin for p in ends(row)]


def _circuits(rows: Sequence[Row]) -> Claim:
    points = [p for row in rows for p in ends(row)]
    named = {cue: [any(p["circuit"] == cue for p in ends(row)) for row in rows] for cue in CUES}
    moves = [move for row in rows for move in moved(row)]
    both = [min(moved(row), default=0.0) < 0 < max(moved(row), default=0.0) for row in rows]
    shifts = [p["answer_shift"][0] for p in points if p["answer_shift"] is not None]
    basins = [math.log(row["basin"]["losses"]["number"] / row["basin"]["losses"]["pattern"]) for row in rows]
    called = ", ".join(f"{cue} {sum(p['circuit'] == cue for p in points)}" for cue in CUES)
    return Claim(
        11,
        "canyons execute different circuits",
        "on the floor of one canyon the network reads numbers, on that of the other patterns",
        f"log(L_number / L_pattern), {mean_interval(basins, 2)} at the minimum {over_seeds(len(rows))}, changes by "
        f"{_span(moves)} over {len(points)} certified canyons and far ends of branches: at "
        f"{sum(move < 0 for move in moves)} the number is the better kept, at {sum(move > 0 for move in moves)} the "
        f"pattern; canyons on both sides within one network: {most_of(both)}. On images whose cues conflict the "
        f"answers move towards the better-kept cue by {_span(shifts)} (change of the difference in shares). "
        f"Called after a circuit, of {len(points)} points: {called}",
        "no difference between the circuits: a change of 0 in the losses and in the answers; a cue whose loss explodes "
        "while the answers stay is broken on single-cue images and names nothing",
        f"a point is called after a circuit if the asymmetry moved by more than {MIN_ASYMMETRY_CHANGE:g} and the "
        f"answers on conflict images moved the same way by at least {MIN_ANSWER_SHIFT:g}, with an interval above 0; "
        "only certified, non-trivial points count, a far end among them; two parts, each in more than half of the "
        "seeds: a canyon that runs the number circuit, one that runs the pattern circuit",
        judged(*map(most, named.values())),
    )


def _span(values: Sequence[float]) -> str:
    return f"{min(values):+.2f} to {max(values):+.2f}" if values else "–"


def merged(row: Row) -> list[tuple[float, float] | None]:
    """For each branch the interval in which it stops being a canyon of its own; None: one all the way in."""
    radii = [path["merge_radius"] for path in branches_of(row).values()]
    return [(low, high) if low else None for low, high in radii]  # NaN arrives as None


def is_merging(row: Row) -> bool:
    """Whether there are two branches at least, and at most one of them is left at the inner end."""
    found = merged(row)
    return len(found) >= 2 and found.count(None) <= 1  # one branch alone has nothing to merge with


def _merge(rows: Sequence[Row]) -> Claim:
    few = [len(branches_of(row)) < 2 for row in rows]
    unmet = f" {_so_many(few)} had fewer than two canyons to follow: there, nothing can merge." if any(few) else ""
    texts = _by_network(
        rows,
        lambda row: (
            f"{name} (r = {path['points'][0]['radius']:.2g} to {path['points'][-1]['radius']:.2g}): "
            + (f"a canyon of its own down to {_ending(path, found)}" if found else "one all the way in")
            for (name, path), found in zip(branches_of(row).items(), merged(row), strict=True)
        ),
    )
    parts = [is_merging(row) for row in rows]
    return Claim(
        12,
        "canyons merge into one basin at a radius",
        "near the minimum there is one basin; the canyons separate from it some way out",
        f"branches followed inwards to {INNER:g} {over_seeds(len(rows))}: {texts}.{unmet}"
        f"{_merge_radius(rows)} At most one of several branches left at the inner end: {most_of(parts)}",
        "canyons that never merge: every branch a canyon of its own down to the inner end. And one canyon alone, which "
        "shows no merging: a bowl too has one pair of minima on every sphere, along its softest axis",
        "in more than half of the seeds: at least two branches that start from canyons, and at most one of them still "
        "a local minimum of its own on the sphere at the inner end. A network with fewer than two speaks against",
        judged(most(parts)),
    )


def _by_network(rows: Sequence[Row], branches: Callable[[Row], Iterable[str]]) -> str:
    """A sentence per network on the branches that were followed in it."""
    texts = ["; ".join(branches(row)) or "none to follow" for row in rows]
    return (
        ". ".join(f"network {i} of {len(rows)}: {text}" for i, text in enumerate(texts, 1)) if texts[1:] else texts[0]
    )


def _ending(path: Row, found: tuple[float, float]) -> str:
    """Where a branch stops inwards, and by which event."""
    kinds = [event["kind"] for event in path["events"] if (event["radius_low"], event["radius_high"]) == found]
    words = {
        "birth": "below it there is no such stationary point",
        "merge": "there it runs into another branch",
        "crossing": "there it turns into a saddle on the sphere",
        "plane": "there it bends down across",
    }
    known = [words[kind] for kind in kinds if kind in words]
    return f"r = {found[0]:.3g} to {found[1]:.3g}" + (f" ({known[0]})" if known else "")


def _merge_radius(rows: Sequence[Row]) -> str:
    """Over the networks in which branches merge: a mean per network, as the branches of one are not independent."""
    found = [[pair for pair in merged(row) if pair] for row in rows if is_merging(row)]
    radii = [statistics.fmean((low + high) / 2 for low, high in pairs) for pairs in found]
    if not radii:
        return " No merge radius was found."
    if len(radii) == 1:
        low, high = min(pair[0] for pair in found[0]), max(pair[1] for pair in found[0])
        return f" Merge radius: {low:.3g} to {high:.3g}, the bracket in one network; no interval over networks."
    return f" Merge radius over the {len(radii)} networks in which branches merge: {mean_interval(radii, scale='log')}."


def _so_many(flags: Sequence[bool]) -> str:
    return "The one network" if len(flags) == 1 else f"{sum(flags)} of {len(flags)} networks"


def floor_of(path: Row) -> list[Row]:
    """The certified points of a branch from OUTSIDE on."""
    return [p for p in path["points"] if p["is_certified"] and p["radius"] >= OUTSIDE]


def slopes(path: Row) -> list[float]:
    """Slope without the anchor along the floor."""
    return [p["slope_without_anchor"] for p in floor_of(path)]


def bowl_shares(path: Row) -> list[float]:
    """Slope at RADIUS and beyond over that of the loss's own quadratic at the same point; infinite where that falls."""
    points = [p for p in floor_of(path) if p["radius"] >= RADIUS * (1 - 1e-9)]
    bowls = [p["bowl_slope_without_anchor"] for p in points]
    return [p["slope_without_anchor"] / bowl if bowl > 0 else math.inf for p, bowl in zip(points, bowls, strict=True)]


def is_sloped(path: Row) -> bool:
    """Whether a floor has certified points and rises by more than FLAT at each."""
    return bool(slopes(path)) and min(slopes(path)) > FLAT


def is_below_bowl(path: Row) -> bool:
    """Whether a floor is sloped, and where it was searched and beyond at most BOWL_SHARE as steep as the bowl."""
    return is_sloped(path) and bool(bowl_shares(path)) and max(bowl_shares(path)) <= BOWL_SHARE


def all_of(row: Row, holds: Callable[[Row], bool]) -> bool:
    """Whether a network has branches, and something holds for each."""
    branches = branches_of(row)
    return bool(branches) and all(holds(path) for path in branches.values())


def _sloped(rows: Sequence[Row]) -> Claim:
    texts = _by_network(rows, lambda row: map(_slope_text, branches_of(row).values()))
    per_row = [[path for path in branches_of(row).values() if slopes(path)] for row in rows]
    means = [statistics.fmean(statistics.fmean(slopes(path)) for path in paths) for paths in per_row if paths]
    mean = f". Mean of a network's branches: {mean_interval(means)}" if len(means) > 1 else ""
    flat = max((abs(slope) for row in rows for slope in row["flat_slopes"]), default=math.nan)
    sloped, below = ([all_of(row, test) for row in rows] for test in (is_sloped, is_below_bowl))
    return Claim(
        13,
        "canyons are sloped, not flat",
        "the floor of a canyon falls towards the basin where both circuits work",
        f"slope n·g without the anchor at the certified points of each branch from r = {OUTSIDE:g} on, in nats per "
        f"unit of distance {over_seeds(len(rows))}: {texts}{mean}. All branches above {FLAT:g} all along: "
        f"{most_of(sloped)}; and at most {BOWL_SHARE:g} of the bowl's slope from r = {RADIUS:g} on: {most_of(below)}. "
        "n lies in the subspace, so n·g is the same number there and in all of weight space; the floor is that within "
        "the subspace. One that could leave the subspace would lie lower, and is not measured",
        f"flat: a slope of 0 (the flat cartoon, whose floors the same code finds to slope by at most {flat:.1g}). "
        "And a bowl, which slopes without any canyon: the slope n·(g0 + H0 δ) of the loss's own quadratic at the same "
        "points, without the anchor, a share of 1. A share near 0 is a flat floor, one near 1 the bowl's wall",
        f"two parts, each in more than half of the seeds, for all branches of a network; one without a canyon speaks "
        f"against: the slope is above {FLAT:g} at every certified point from r = {OUTSIDE:g} on; and, besides, at most "
        f"{BOWL_SHARE:g} of the bowl's at every one from r = {RADIUS:g} on, where the canyons were searched",
        judged(most(sloped), most(below)),
    )


def _slope_text(path: Row) -> str:
    """The slopes of a floor, and how they compare with the bowl's."""
    found, shares = slopes(path), bowl_shares(path)
    if not found:
        return "no certified floor"
    text = f"{min(found):.3g} to {max(found):.3g} (mean {statistics.fmean(found):.3g})"
    return text + (f", {min(shares):.2g} to {max(shares):.2g} of the bowl's from r = {RADIUS:g} on" if shares else "")
