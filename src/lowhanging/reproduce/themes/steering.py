"""Theme "steering": what the two steering directions do to every loss, and what other directions would have done.

Held against two kinds of directions that nobody steered. Random ones of all of weight space, turned the way a steering
direction is, and taken out to two lengths: where the quadratic of the mixed loss has risen as much as along the
steering direction, and where the mixed loss itself has. The first is as the write-up's argument has it; but random
directions are hardly curved, so that it takes them far out, where the quadratic says little. Only at the second do both
have done the mixed loss the same harm, and the question is whether they treat the cues as unequally. And random vectors
of the span that a steering direction is made from, the removed eigenvectors and the ablated one: whether they overlap
as much with a single eigenvector of the mixed loss.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

from lowhanging.curvature.operators import hessian
from lowhanging.curvature.subspace import Subspace
from lowhanging.landscape.slices import LineSlice, line_slice
from lowhanging.objective.protocol import Loss
from lowhanging.objective.random_state import private_generator
from lowhanging.reproduce.claims import Claim, Scale, judged, mean_interval, most, most_of, over_seeds
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.store import Row
from lowhanging.reproduce.themes.curvature import pairs_of
from lowhanging.reproduce.themes.learning import CUES, Learning
from lowhanging.steering.cues import ConflictControl
from lowhanging.steering.steering import SteeringReport, steering_direction, steering_report

EXTENT, NUM_STEPS = 4.0, 33
STEPS = (1.0, 2.0, 3.0, 4.0)  # at which losses are compared
STEP = 2.0  # where accuracies, answers and the null are
DOUBLINGS = 5  # a ray is first looked at at 1/32 of its greatest length, then at twice that, ...
LENGTH_TOL = 1e-3  # relative
NUM_VECTORS = 1000  # random ones of the span
LEVELS = (0.05, 0.5, 0.95)  # quantiles of what is found among them
LEAST_RISE, SHARE = 0.5, 0.2  # nats that the ablated loss rises by, and the share of that allowed to the preserved one
LARGE = 5.0  # half of the write-up's factor of ten
RANK, HALF = 10, 0.5
LOG: Scale = "log"
SHARES: Scale = "share"
LENGTHS = {"quadratic": "at the first length", "rise": "at the second"}  # of random directions, in claim 4's words


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


def directions_of(context: Context) -> list[Steered]:
    """Both directions, with what every loss says of them and does along them."""
    network, store = context.network, context.store
    pairs, found = pairs_of(context), []
    for preserved, ablated in (CUES, CUES[::-1]):

        def reported(preserved: str = preserved, ablated: str = ablated) -> SteeringReport:
            direction = steering_direction(
                preserve=network.losses[preserved],
                ablate=network.losses[ablated],
                k=context.sizes.removed,
                preserve_pairs=pairs[preserved],
                ablate_pairs=pairs[ablated],
            )
            return steering_report(direction, network.losses, pairs=pairs)

        report = store.result(f"keep-{preserved}", reported)

        def scanned(report: SteeringReport = report) -> LineSlice:
            return line_slice(
                network.losses, report.direction, extent=(-EXTENT, EXTENT), num=NUM_STEPS,
                name="steering direction", engine="point by point",
            )  # fmt: skip

        found.append(Steered(preserved, ablated, report, store.result(f"scan-{preserved}", scanned)))
    return found


def measure(context: Context) -> Row:
    """Both directions against random ones, and the answers on conflict images."""
    network, sizes, store = context.network, context.sizes, context.store
    theta0, images = network.minimum.theta, network.views.conflict
    control = ConflictControl(network.losses["mixed"], images.inputs, images.answers)
    random = random_units(sizes.null_directions, theta0.numel(), 1000 + network.seed)
    quotients = store.plain("steering-random", lambda: curvatures(network.losses["mixed"], random))
    pairs = pairs_of(context)
    rows = []
    for s in directions_of(context):
        null = store.plain(f"null-{s.preserved}", functools.partial(_null, network, s, random, quotients))
        shift = control.shift(theta0 + STEP * s.direction, theta0, towards=s.preserved, away=s.ablated)
        rows.append(
            {
                "preserve": s.preserved,
                "ablate": s.ablated,
                "alphas": s.scan.alphas.tolist(),
                "losses": {name: row.tolist() for name, row in s.scan.losses.items()},
                "accuracies": {name: row.tolist() for name, row in s.scan.accuracies.items()},
                "rayleigh_quotients": s.report.quotients,
                "ranks": {name: s.report.position_text(name) for name in s.report.positions},
                "tenth_eigenvalue_of_mixed": float(s.report.eigenvalues["mixed"][min(9, sizes.pairs - 1)]),
                "largest_squared_overlap": {name: float(row.max()) for name, row in s.report.overlaps.items()},
                "participation_ratio": float(participation(s.report.overlaps["mixed"])),
                "curvature_ratio": s.report.quotients[s.ablated] / s.report.quotients["mixed"],
                "conflict": shift.after,
                "conflict_shift": {"shift": shift.shift, "interval": [shift.low, shift.high]},
                "null": null["quadratic"],
                "null_rise": null["rise"],
                "null_overlap": of_span(
                    [pairs[s.preserved].vectors[: sizes.removed], pairs[s.ablated].vectors[:1]],
                    pairs["mixed"].vectors,
                    s.direction,
                    2000 + network.seed,
                ),
            }
        )
    return {
        "conflict_at_minimum": control(theta0),
        "num_conflict": len(images),
        "random_curvatures": quotients,
        "directions": rows,
    }


def _null(network: Learning, s: Steered, random: Tensor, quotients: list[float]) -> Row:
    """What random directions do to the losses: in the first null's place, and in the second one's."""
    losses, center, rows = network.losses, network.minimum.theta, turned(network.losses[s.ablated], random)
    wanted = float(losses["mixed"](center + STEP * s.direction))
    return {
        "quadratic": equal_quadratics(losses, rows, quotients, s.report.quotients["mixed"], STEP),
        "rise": equal_rises(losses, rows, wanted, float(center.norm())),
    }


def random_units(num: int, size: int, seed: int) -> Tensor:
    """(num, p) random unit vectors."""
    rows = torch.randn(num, size, generator=private_generator(seed, "random units"))
    units: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return units


def curvatures(loss: Loss, rows: Tensor) -> list[float]:
    """Rayleigh quotients of the loss's Hessian, of unit rows (num, p)."""
    H = hessian(loss)
    return [float(row @ (H @ row)) for row in rows]


def turned(loss: Loss, rows: Tensor) -> Tensor:
    """The rows (num, p), each with the sign that a steering direction gets: +1 raises the ablated loss more than -1."""
    center = loss.theta0
    signs = [1.0 if float(loss(center + row)) >= float(loss(center - row)) else -1.0 for row in rows.to(center)]
    return rows * torch.tensor(signs).unsqueeze(1)


def equal_quadratics(
    losses: Mapping[str, Loss], rows: Tensor, quotients: Sequence[float], curvature: float, step: float
) -> list[Row]:
    """Losses where random rows raise the quadratic of the mixed loss as much as `step` along a steering direction does.

    A row of negative curvature has no such place and is left out.
    """
    found: list[Row] = []
    for row, own in zip(rows, quotients, strict=True):
        if own > 0 and curvature > 0:
            length = step * math.sqrt(curvature / own)
            point = losses["mixed"].theta0 + length * row
            found.append({"step": length, "losses": {name: float(loss(point)) for name, loss in losses.items()}})
    return found


def equal_rises(losses: Mapping[str, Loss], rows: Tensor, wanted: float, longest: float) -> Row:
    """Losses where the mixed loss along random rows first reaches `wanted`, its value on a steering direction.

    A row along which it stays below that up to the length `longest` is left out, and counted.
    """
    center, mixed = losses["mixed"].theta0, losses["mixed"]
    start, num_passes = float(mixed(center)), 1
    points: list[Row] = []
    for row in rows.to(center):
        known = {0.0: start}

        def along(length: float, row: Tensor = row, known: dict[float, float] = known) -> float:
            if length not in known:
                known[length] = float(mixed(center + length * row))
            return known[length]

        length = first_length(along, wanted, longest)
        if length is not None:
            point = center + length * row
            others = {name: float(loss(point)) for name, loss in losses.items() if name != "mixed"}
            points.append({"step": length, "losses": {"mixed": along(length), **others}})
            num_passes += len(others)
        num_passes += len(known) - 1
    return {"points": points, "num_left_out": len(rows) - len(points), "longest": longest, "num_passes": num_passes}


def first_length(along: Callable[[float], float], wanted: float, longest: float) -> float | None:
    """The length at which a loss along a ray reaches `wanted`; 0 if it starts there, None if it ends lower.

    The first one on a grid of doublings, then narrowed down by Brent's method, which keeps it between a length below
    and one above: deterministic, within `LENGTH_TOL` of the length.
    """

    def missing(length: float) -> float:
        return along(length) - wanted

    low = 0.0
    if missing(low) >= 0:
        return low
    for high in (longest / 2**i for i in range(DOUBLINGS, -1, -1)):
        if missing(high) >= 0:
            return float(brentq(missing, low, high, xtol=LENGTH_TOL * high / 2, rtol=LENGTH_TOL / 2))
        low = high
    return None


def of_span(rows: Sequence[Tensor], eigenvectors: Tensor, direction: Tensor, seed: int) -> Row:
    """How near random vectors of the span of the rows (each (n, p)) come to one of the eigenvectors (k, p).

    Quantiles at `LEVELS` of the largest squared overlap, of the participation ratio and of the share within all k; and
    how many of the vectors have a largest overlap, and a participation ratio, at least as extreme as the direction's.
    """
    space, q = Subspace.span(torch.cat(list(rows))), eigenvectors.double()
    generator = private_generator(seed, "random vectors")
    coordinates = torch.randn(NUM_VECTORS, space.dim, generator=generator, dtype=torch.float64)
    vectors = coordinates / coordinates.norm(dim=1, keepdim=True) @ space.basis.double()  # (n, p)
    squares, own = (vectors @ q.T).square(), (q @ direction.double()).square()  # (n, k), (k,)
    ratios = participation(squares)
    return {
        "dim": space.dim,
        "num": NUM_VECTORS,
        "largest": _quantiles(squares.amax(1)),
        "participation": _quantiles(ratios),
        "within": _quantiles(squares.sum(1)),
        "own_within": float(own.sum()),
        "num_as_large": int((squares.amax(1) >= own.max()).sum()),
        "num_as_concentrated": int((ratios <= participation(own)).sum()),
    }


def participation(squares: Tensor) -> Tensor:
    """Over how many of k eigenvectors squared overlaps (..., k) are spread."""
    ratios: Tensor = squares.sum(-1).square() / squares.square().sum(-1)
    return ratios


def _quantiles(values: Tensor) -> list[float]:
    found: list[float] = values.quantile(torch.tensor(LEVELS, dtype=values.dtype)).tolist()
    return found


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


def null_points(direction: Row) -> dict[str, Sequence[Row]]:
    """Which null -> where its random directions lead, and the losses there."""
    return {"quadratic": direction["null"], "rise": direction["null_rise"]["points"]}


def null_selectivities(direction: Row) -> dict[str, list[float]]:
    """Which null -> the selectivity of each of its random directions."""
    a, b = direction["ablate"], direction["preserve"]
    start = math.log(at(direction, a, 0.0) / at(direction, b, 0.0))
    return {
        name: [math.log(entry["losses"][a] / entry["losses"][b]) - start for entry in points]
        for name, points in null_points(direction).items()
    }


def null_ratios(direction: Row) -> dict[str, list[float]]:
    """Which null -> the loss of the ablated task over the mixed one, of each of its random directions."""
    return {
        name: [entry["losses"][direction["ablate"]] / entry["losses"]["mixed"] for entry in points]
        for name, points in null_points(direction).items()
    }


def by_direction(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Preserved cue -> that direction of every seed."""
    return {cue: [d for row in rows for d in row["directions"] if d["preserve"] == cue] for cue in CUES}


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Steering, the joint loss, ranks, eigenvectors."""
    return [_keeps_one(rows), _joint(rows), _rank(rows), _no_eigenvector(rows)]


def _each(rows: Sequence[Row], text: Callable[[list[Row]], str]) -> str:
    """A text for each of the two directions, over the seeds."""
    return "; ".join(f"keeping {cue}: {text(found)}" for cue, found in by_direction(rows).items())


def _mean(values: list[float], digits: int = 3, scale: Scale = "linear") -> str:
    return mean_interval(values, digits, scale=scale, with_range=False)


def is_kept(direction: Row) -> bool:
    """Whether the ablated loss rose, the preserved one hardly, and no random direction of either null did as well."""
    rose = rise(direction, direction["ablate"])
    beats = _beats(selectivity(direction), null_selectivities(direction))
    return rose >= LEAST_RISE and rise(direction, direction["preserve"]) <= SHARE * rose and beats


def _beats(value: float, nulls: Mapping[str, Sequence[float]]) -> bool:
    """Whether a value exceeds all of every null; without one, nothing is shown."""
    return all(bool(found) and value > max(found) for found in nulls.values())


def is_left(row: Row, direction: Row) -> bool:
    """Whether the answers on conflict images left the ablated cue: at most half of them still follow it."""
    return bool(direction["conflict"][direction["ablate"]] <= 0.5 * row["conflict_at_minimum"][direction["ablate"]])


def _keeps_one(rows: Sequence[Row]) -> Claim:
    def losses(found: list[Row]) -> str:
        names = (found[0]["preserve"], found[0]["ablate"], "mixed")
        parts = []
        for name in names:
            values = [[at(d, name, step) for d in found] for step in (0.0, STEP)]
            shares = [[at(d, name, step, "accuracies") for d in found] for step in (0.0, STEP)]
            losses, accuracies = (
                " → ".join(_mean(each, scale=scale) for each in pair)
                for pair, scale in ((values, LOG), (shares, SHARES))
            )
            parts.append(f"{name} {losses} ({accuracies})")
        return ", ".join(parts)

    def answers(found: list[Row]) -> str:
        moved = [d["conflict_shift"]["shift"] for d in found]
        low, high = (statistics.fmean(d["conflict_shift"]["interval"][i] for d in found) for i in (0, 1))
        before = [row["conflict_at_minimum"][found[0]["ablate"]] for row in rows]
        after = [d["conflict"][found[0]["ablate"]] for d in found]
        one = f" [{low:+.3f}, {high:+.3f}] over images" if len(found) == 1 else ""
        return (
            f"{found[0]['ablate']} still followed on {_mean(after, scale=SHARES)} of them (at the minimum "
            f"{_mean(before, scale=SHARES)}), the "
            f"difference of shares moves by {_mean(moved, 2)}{one}"
        )

    def null(found: list[Row]) -> str:
        own = f"by {_mean([selectivity(d) for d in found], 2)} nats along the steering direction"
        return ", ".join([own, *(_spread(found, name) for name in LENGTHS)])

    kept = [[is_kept(d) for d in found] for found in by_direction(rows).values()]
    left = [[is_left(row, d) for row, d in zip(rows, found, strict=True)] for found in by_direction(rows).values()]
    return Claim(
        4,
        "steering keeps one circuit and ablates the other",
        "directions from single-task Hessians ablate one task and keep the other",
        f"losses (and accuracies) from the minimum to step {STEP:g} {_over(rows)}: {_each(rows, losses)}. "
        f"On images whose cues conflict, {_each(rows, answers)}. Where the answers stay, a cue is “broken on "
        "single-cue images”, not shown to be ablated",
        "random directions of weight space, each at two lengths: where the quadratic of the mixed loss has risen as "
        f"much as at step {STEP:g}, and where the mixed loss itself has. log(L_ablated / L_preserved) moves, "
        f"{_each(rows, null)}",
        f"four parts, two for each direction, each in more than half of the seeds. Losses: at step {STEP:g} the "
        f"ablated one has risen by at least {LEAST_RISE:g} nats, the preserved one by at most {SHARE:g} of that, and "
        "log(L_ablated / L_preserved) by more than along every random direction, at both lengths. Answers: at most "
        "half as many conflict images as at the minimum are answered after the ablated cue",
        judged(*map(most, kept), *map(most, left)),
    )


def _spread(found: Sequence[Row], name: str) -> str:
    """How selective the random directions of a null were, and how far out."""
    values = [value for d in found for value in null_selectivities(d)[name]]
    points = [entry for d in found for entry in null_points(d)[name]]
    lengths, mixed = ([entry["step"] for entry in points], [entry["losses"]["mixed"] for entry in points])
    num_left_out = sum(d["null_rise"]["num_left_out"] for d in found) if name == "rise" else 0
    longest = max(d["null_rise"]["longest"] for d in found)
    left_out = f" ({num_left_out} left out, lower still at {longest:.3g})" if num_left_out else ""
    if not values:
        return f"along no random one {LENGTHS[name]}{left_out}"
    return (
        f"by {statistics.fmean(values):+.2f} ({min(values):+.2f} to {max(values):+.2f}) along {len(values)} random "
        f"ones {LENGTHS[name]}{left_out}, {min(lengths):.2g} to {max(lengths):.2g} out at a mixed loss of "
        f"{statistics.fmean(mixed):.2g}"
    )


def geometric(direction: Row) -> float:
    """Geometric mean over `STEPS` of the ablated task's loss over the mixed one."""
    return math.exp(statistics.fmean(map(math.log, ratios(direction))))


def is_large(direction: Row) -> bool:
    """Whether the factor is at least `LARGE` and that of the minimum and, at STEP, beats every random direction."""
    at_step = at(direction, direction["ablate"], STEP) / at(direction, "mixed", STEP)
    return geometric(direction) >= max(LARGE, _at_minimum(direction)) and _beats(at_step, null_ratios(direction))


def _at_minimum(direction: Row) -> float:
    return at(direction, direction["ablate"], 0.0) / at(direction, "mixed", 0.0)


def _short(value: float) -> str:
    """Two digits, but never "1.6e+02"."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}"


def _joint(rows: Sequence[Row]) -> Claim:
    def text(found: list[Row]) -> str:
        listed = " / ".join(_mean([ratios(d)[i] for d in found], scale=LOG) for i in range(len(STEPS)))
        return (
            f"L_{found[0]['ablate']} / L_mixed {listed} at steps {' / '.join(f'{step:g}' for step in STEPS)}, over "
            f"these steps {_mean([geometric(d) for d in found], scale=LOG)}; curvature ratio "
            f"{_mean([d['curvature_ratio'] for d in found], scale=LOG)}"
        )

    def null(found: list[Row]) -> str:
        parts = [f"{_mean([_at_minimum(d) for d in found], scale=LOG)} at the minimum itself"]
        for name, length in LENGTHS.items():
            values = [value for d in found for value in null_ratios(d)[name]]
            spread = f"{_short(min(values))} to {_short(max(values))}" if values else "nothing"
            parts.append(f"{spread} along {len(values)} random ones {length}")
        return ", ".join(parts)

    below = [min(ratios(d)) > 1.0 for row in rows for d in row["directions"]]
    large = [most(is_large(d) for d in found) for found in by_direction(rows).values()]
    means = _over(rows).replace("(means", "(geometric means")
    return Claim(
        5,
        "the joint loss lies below the ablated one, by a factor of about ten",
        "where one circuit is ablated, the loss on blends stays about ten times below that on the ablated cue alone "
        "(the authors' own files give 4 to 6)",
        f"factors {means}, {_each(rows, text)}",
        "a factor of 1, where the joint loss is no lower; and the factor that the same two losses have without "
        f"steering, at the minimum and along random directions (those of claim 4, against step {STEP:g}): "
        f"{_each(rows, null)}",
        "three parts: the mixed loss is the lower one at all four steps of both directions, in every seed; and for "
        "each direction, in more than half of the seeds, the factor (geometric mean over the steps) is at least "
        f"{LARGE:g}, half of what is claimed, and no smaller than at the minimum, and at step {STEP:g} it is larger "
        "than along every random direction",
        judged(all(below), *large),
    )


def _rank(rows: Sequence[Row]) -> Claim:
    def text(found: list[Row]) -> str:
        ranks = ", ".join(d["ranks"]["mixed"] for d in found)
        tenth = [d["tenth_eigenvalue_of_mixed"] for d in found]
        return (
            f"{_mean([d['rayleigh_quotients']['mixed'] for d in found], scale=LOG)}, rank {ranks} (10th eigenvalue "
            f"{_mean(tenth, scale=LOG)})"
        )

    random = [value for row in rows for value in row["random_curvatures"]]
    within = [[_number(d["ranks"]["mixed"]) <= RANK for d in found] for found in by_direction(rows).values()]
    return Claim(
        7,
        "steering curvature lies within the top ten of the mixed spectrum",
        "the mixed loss's curvature along them is as large as its top ten eigenvalues",
        f"curvature of the mixed loss along the direction {_over(rows)}, {_each(rows, text)}",
        f"random directions of weight space: {statistics.fmean(random):.2g} on average ({min(random):.2g} to "
        f"{max(random):.2g} over {len(random)})",
        f"its rank among the mixed Hessian's eigenvalues is at most {RANK}, in more than half of the seeds; each of "
        "the two directions is a part",
        judged(*map(most, within)),
    )


def _number(rank: str) -> float:
    """A rank as it is printed, as a number: infinity for "> 50"."""
    return math.inf if rank.startswith(">") else float(rank)


def is_free(direction: Row) -> bool:
    """Whether no eigenvector of the mixed Hessian holds half of the direction."""
    return bool(direction["largest_squared_overlap"]["mixed"] < HALF)


def is_ordinary(direction: Row) -> bool:
    """Whether the direction is no nearer to a single mixed eigenvector than random vectors of its span are."""
    return bool(direction["largest_squared_overlap"]["mixed"] <= direction["null_overlap"]["largest"][-1])


def _no_eigenvector(rows: Sequence[Row]) -> Claim:
    def text(found: list[Row]) -> str:
        overlap = [d["largest_squared_overlap"] for d in found]
        listed = ", ".join(f"{name} {_mean([round(o[name], 4) for o in overlap], 2)}" for name in ("mixed", *CUES))
        return (
            f"{listed}; with mixed below half in {most_of(map(is_free, found))}, not above the 95 % quantile of the "
            f"random vectors in {most_of(map(is_ordinary, found))}; spread over "
            f"{_mean([d['participation_ratio'] for d in found], scale=LOG)} mixed eigenvectors (participation ratio), "
            f"{_mean([d['null_overlap']['own_within'] for d in found], scale=SHARES)} of it within those known"
        )

    def null(found: list[Row]) -> str:
        nulls = [d["null_overlap"] for d in found]
        shares = [
            ", ".join(f"{_short(100 * n[name] / n['num'])} %" for n in nulls)
            for name in ("num_as_large", "num_as_concentrated")
        ]
        largest, spread, within = (_quantile_range(nulls, name) for name in ("largest", "participation", "within"))
        return (
            f"{largest} (as large as the direction's in {shares[0]} of them), spread over {spread} (over as few as the "
            f"direction in {shares[1]}), a share of {within} within those known"
        )

    free, ordinary = (
        [most(map(test, found)) for found in by_direction(rows).values()] for test in (is_free, is_ordinary)
    )
    num = rows[0]["directions"][0]["null_overlap"]["num"]
    return Claim(
        8,
        "steering directions are not eigenvectors",
        "they are no eigenvectors of the mixed Hessian",
        f"largest squared overlap with one of the top eigenvectors of each loss {_over(rows)}, "
        f"{_each(rows, text)}. The overlap with the preserved loss is 0 by construction",
        f"an eigenvector: 1; {num:,} random vectors of the span of the removed eigenvectors and the ablated one (5 %, "
        "50 % and 95 % quantiles, means over networks), largest squared overlap with a mixed eigenvector: "
        f"{_each(rows, null)}",
        "four parts, two for each direction, each in more than half of the seeds: no eigenvector of the mixed Hessian "
        "holds half of the direction (squared overlap); and the largest overlap is not above the 95 % quantile of the "
        "random vectors'. The participation ratio is reported and not judged",
        judged(*free, *ordinary),
    )


def _quantile_range(nulls: Sequence[Row], name: str) -> str:
    """Three quantiles, each a mean over networks."""
    return " / ".join(f"{statistics.fmean(n[name][i] for n in nulls):.2g}" for i in range(3))


def _over(rows: Sequence[Row]) -> str:
    return over_seeds(len(rows), with_range=False)
