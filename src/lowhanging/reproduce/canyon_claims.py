"""Theme "canyons", the claims: minima across, different circuits, merging, sloping."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from lowhanging.basin.naming import MIN_ANSWER_SHIFT, MIN_ASYMMETRY_CHANGE
from lowhanging.reproduce.canyons import ENERGY, INNER, RADIUS
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, over_seeds
from lowhanging.reproduce.learning import CUES
from lowhanging.reproduce.shelf import Row

FLAT = 0.01  # nats per unit of distance: a slope below it counts as flat, from ...
OUTSIDE = 1.0  # ... this radius on: at the minimum every slope vanishes
STILL = 0.1  # |Pg| in all of weight space, as a share of the slope, up to which a point counts as stationary there


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Minima across, different circuits, merging, sloping."""
    return [_minima_across(rows), _circuits(rows), _merge(rows), _sloped(rows)]


def own(points: Sequence[Row]) -> list[Row]:
    """Canyons that are certified, not trivial, and no copies."""
    return [p for p in points if p["is_certified"] and not p["is_trivial"] and p["copy_of"] is None]


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
    points = [p for row in rows for p in own(row["sphere"])]
    texts = [
        f"rise {p['rise']:.3g} (a quadratic bowl: {p['energy']:.3g}), plane {p['plane_eigenvalue']:+.3g}, "
        f"sphere {p['sphere_eigenvalue']:+.3g} (± {p['euclidean_error']:.0e})"
        for p in points[:4]
    ]
    found = f"{mean_interval([float(count) for count in counts])} certified canyons"
    shells = [[p for p in row["shell"] if p["is_certified"] and not p["is_trivial"]] for row in rows]
    depths = [min(p["depth"] for p in shell) for shell in shells if shell]
    whole = [row["full"] for row in rows if row["full"] is not None and row["full"]["full_residual"] is not None]
    listed = "; ".join(
        f"|Pg| = {p['full_residual']:.2g} at a slope of {p['slope']:.2g}, plane eigenvalue "
        f"{p['full_plane_eigenvalue']:+.2g} (± {p['full_error']:.0e})"
        for p in whole[:4]
    )
    nulls = [depth for row in rows for depth in row["null_depths"] if depth is not None]
    random = (
        f"; the same search in {len(nulls)} random {rows[0]['null_dim']}-dimensional subspaces of equal curvature: "
        f"depth {statistics.fmean(nulls):.2f} ({min(nulls):.2f} to {max(nulls):.2f})"
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
        f"deepest of depth {mean_interval(depths, 2) if depths else '–'}. In all {rows[0]['num_params']:,} directions "
        f"the first canyon of the sphere has {listed or '–'}",
        f"a quadratic bowl: no canyon, depth 1{random}",
        "three parts, each in more than half of the seeds: a certified canyon on the sphere, beyond the softest axis; "
        "two of them, as there are two circuits; the first one stationary in all of weight space too (|Pg| at most a "
        "tenth of the slope, plane eigenvalue above 0)",
        judged(
            most(count >= 1 for count in counts),
            most(count >= 2 for count in counts),
            most(is_whole(row["full"]) for row in rows),
        ),
    )


def ends(row: Row) -> list[Row]:
    """Certified canyons of both searches, and the far ends of the branches."""
    points = [p for p in [*row["sphere"], *row["shell"]] if p["is_certified"] and not p["is_trivial"]]
    return points + [path["points"][-1] for path in row["paths"].values()]


def moved(row: Row) -> list[float]:
    """Change of log(L_number / L_pattern) from the minimum, at each of the `ends`."""
    basin = math.log(row["basin"]["losses"]["number"] / row["basin"]["losses"]["pattern"])
    return [math.log(p["losses"]["number"] / p["losses"]["pattern"]) - basin for p in ends(row)]


def _circuits(rows: Sequence[Row]) -> Claim:
    points = [p for row in rows for p in ends(row)]
    named = {cue: [any(p["circuit"] == cue for p in ends(row)) for row in rows] for cue in CUES}
    moves = [move for row in rows for move in moved(row)]
    shifts = [p["answer_shift"][0] for p in points if p["answer_shift"] is not None]
    basins = [math.log(row["basin"]["losses"]["number"] / row["basin"]["losses"]["pattern"]) for row in rows]
    called = ", ".join(f"{cue} {sum(p['circuit'] == cue for p in points)}" for cue in CUES)
    return Claim(
        11,
        "canyons execute different circuits",
        "on the floor of one canyon the network reads numbers, on that of the other patterns",
        f"log(L_number / L_pattern), {mean_interval(basins, 2)} at the minimum {over_seeds(len(rows))}, changes by "
        f"{_span(moves)} over {len(points)} certified canyons and far ends of branches; on images whose cues conflict "
        f"the answers move towards the better-kept cue by {_span(shifts)} (change of the difference in shares). Called "
        f"after a circuit: {called}",
        "no difference between the circuits: a change of 0 in the losses and in the answers; a cue whose loss explodes "
        "while the answers stay is broken on single-cue images and names nothing",
        f"a point is called after a circuit if the asymmetry moved by more than {MIN_ASYMMETRY_CHANGE:g} and the "
        f"answers on conflict images moved the same way by at least {MIN_ANSWER_SHIFT:g}, with an interval above 0; "
        "two parts, each in more than half of the seeds: a canyon that runs the number circuit, one that runs the "
        "pattern circuit",
        judged(*map(most, named.values())),
    )


def _span(values: Sequence[float]) -> str:
    return f"{min(values):+.2f} to {max(values):+.2f}" if values else "–"


def merged(row: Row) -> list[tuple[float, float] | None]:
    """For each branch the interval in which it stops being a canyon of its own; None: one all the way in."""
    radii = [path["merge_radius"] for path in row["paths"].values()]
    return [(low, high) if low else None for low, high in radii]  # NaN arrives as None


def is_merging(row: Row) -> tuple[bool, bool]:
    """Whether there are two branches at least, and whether at most one of these is left at the inner end."""
    found = merged(row)
    several = len(found) >= 2  # one branch alone has nothing to merge with
    return several, several and found.count(None) <= 1


def _merge(rows: Sequence[Row]) -> Claim:
    texts = []
    for i, row in enumerate(rows):
        branches = [
            f"{name} ({path['points'][0]['radius']:.2g} to {path['points'][-1]['radius']:.2g}): "
            + (f"a canyon of its own down to {found[0]:.3g} to {found[1]:.3g}" if found else "one all the way in")
            for (name, path), found in zip(row["paths"].items(), merged(row), strict=True)
        ]
        which = f"network {i + 1} of {len(rows)}: " if len(rows) > 1 else ""
        texts.append(which + ("; ".join(branches) or "none to follow"))
    radii = [(low + high) / 2 for row in rows for low, high in filter(None, merged(row))]
    mean = f" Merge radius of those that merge: {mean_interval(radii)}." if radii else ""
    parts = [is_merging(row) for row in rows]
    return Claim(
        12,
        "canyons merge into one basin at a radius",
        "near the minimum there is one basin; the canyons separate from it some way out",
        f"branches followed inwards to {INNER:g} {over_seeds(len(rows))}: {'. '.join(texts)}.{mean}",
        "canyons that never merge: every branch a canyon of its own down to the inner end",
        "two parts, each in more than half of the seeds: at least two branches, and at most one of them still a local "
        "minimum of its own on the sphere at the inner end",
        judged(*(most(part[i] for part in parts) for i in (0, 1))),
    )


def slopes(path: Row) -> list[float]:
    """Slope without the anchor at every certified point of a floor from OUTSIDE on."""
    return [p["slope_without_anchor"] for p in path["points"] if p["is_certified"] and p["radius"] >= OUTSIDE]


def _sloped(rows: Sequence[Row]) -> Claim:
    floors = [slopes(path) for row in rows for path in row["paths"].values()]
    flags = [bool(floor) and min(floor) > FLAT for floor in floors]
    texts = [
        f"{min(floor):.3g} to {max(floor):.3g} (mean {statistics.fmean(floor):.3g})" if floor else "no certified floor"
        for floor in floors
    ]
    means = [statistics.fmean(floor) for floor in floors if floor]
    over = f"; mean over branches {mean_interval(means)}" if len(means) > 1 else ""
    flat = max((abs(slope) for row in rows for slope in row["flat_slopes"]), default=math.nan)
    return Claim(
        13,
        "canyons are sloped, not flat",
        "the floor of a canyon falls towards the basin where both circuits work",
        "slope n·g of each branch's floor without the anchor, in nats per unit of distance "
        f"{over_seeds(len(rows))}: {_listed(texts)}{over}. Above {FLAT:g} all along: {sum(flags)} of {len(flags)} "
        "branches",
        f"the flat cartoon, whose floors the same code finds to slope by at most {flat:.1g}",
        f"the slope without the anchor is above {FLAT:g} at every certified point from r = {OUTSIDE:g} on; each branch "
        "is a part",
        judged(*flags) if flags else "does not hold",
    )


def _listed(values: Iterable[str]) -> str:
    return "; ".join(values) or "there was none to follow"
