"""Theme "steering", the claims: circuits kept and ablated, the joint loss, ranks, eigenvectors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, most_of, over_seeds
from lowhanging.reproduce.learning import CUES
from lowhanging.reproduce.shelf import Row
from lowhanging.reproduce.steering import (
    STEP,
    STEPS,
    at,
    by_direction,
    null_selectivities,
    ratios,
    rise,
    selectivity,
)

LEAST_RISE, SHARE = 0.5, 0.2  # nats that the ablated loss rises by, and the share of that allowed to the preserved one
LARGE = 5.0  # half of the write-up's factor of ten
RANK, HALF = 10, 0.5


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Steering, the joint loss, ranks, eigenvectors."""
    return [_keeps_one(rows), _joint(rows), _rank(rows), _no_eigenvector(rows)]


def _each(rows: Sequence[Row], text: Callable[[list[Row]], str]) -> str:
    """A text for each of the two directions, over the seeds."""
    return "; ".join(f"keeping {cue}: {text(found)}" for cue, found in by_direction(rows).items())


def _mean(values: list[float], digits: int = 3, unit: str = "") -> str:
    return mean_interval(values, digits, unit)


def is_kept(direction: Row) -> bool:
    """Whether the ablated loss rose, the preserved one hardly, and every random direction was less selective."""
    rose = rise(direction, direction["ablate"])
    null = null_selectivities(direction)
    beats = bool(null) and all(value < selectivity(direction) for value in null)  # without a null, nothing is shown
    return rose >= LEAST_RISE and rise(direction, direction["preserve"]) <= SHARE * rose and beats


def is_left(row: Row, direction: Row) -> bool:
    """Whether the answers on conflict images left the ablated cue: at most half of them still follow it."""
    return bool(direction["conflict"][direction["ablate"]] <= 0.5 * row["conflict_at_minimum"][direction["ablate"]])


def _keeps_one(rows: Sequence[Row]) -> Claim:
    def losses(found: list[Row]) -> str:
        names = (found[0]["preserve"], found[0]["ablate"], "mixed")
        parts = []
        for name in names:
            values = [[at(d, name, step) for d in found] for step in (0.0, STEP)]
            shares = [[100 * at(d, name, step, "accuracies") for d in found] for step in (0.0, STEP)]
            parts.append(
                f"{name} {_mean(values[0])} → {_mean(values[1])} ({_mean(shares[0])} % → {_mean(shares[1])} %)"
            )
        return ", ".join(parts)

    def answers(found: list[Row]) -> str:
        moved = [d["conflict_shift"]["shift"] for d in found]
        low, high = (
            statistics.fmean(d["conflict_shift"]["interval"][i] for d in found) for i in (0, 1)
        )
        before = [100 * row["conflict_at_minimum"][found[0]["ablate"]] for row in rows]
        after = [100 * d["conflict"][found[0]["ablate"]] for d in found]
        one = f" [{low:+.3f}, {high:+.3f}] over images" if len(found) == 1 else ""
        return (
            f"{found[0]['ablate']} still followed on {_mean(after)} % of them (at the minimum {_mean(before)} %), the "
            f"difference of shares moves by {_mean(moved, 2)}{one}"
        )

    def null(found: list[Row]) -> str:
        values = [value for d in found for value in null_selectivities(d)]
        steps = [entry["step"] for d in found for entry in d["null"]]
        if not values:
            return "no random direction of positive curvature"
        return (
            f"log(L_ablated / L_preserved) moves by {_mean([selectivity(d) for d in found], 2)} nats, along "
            f"{len(values)} random ones by {statistics.fmean(values):+.2f} ({min(values):+.2f} to {max(values):+.2f}; "
            f"mean length {statistics.fmean(steps):.3g})"
        )

    kept = [[is_kept(d) for d in found] for found in by_direction(rows).values()]
    left = [[is_left(row, d) for row, d in zip(rows, found, strict=True)] for found in by_direction(rows).values()]
    return Claim(
        4,
        "steering keeps one circuit and ablates the other",
        "directions from single-task Hessians ablate one task and keep the other",
        f"losses (and accuracies) from the minimum to step {STEP:g} {over_seeds(len(rows))}: {_each(rows, losses)}. "
        f"On images whose cues conflict, {_each(rows, answers)}. Where the answers stay, a cue is “broken on "
        "single-cue images”, not shown to be ablated",
        "random directions of weight space, stretched until the quadratic of the mixed loss rises as much: "
        + _each(rows, null),
        f"four parts, two for each direction, each in more than half of the seeds. Losses: at step {STEP:g} the "
        f"ablated one has risen by at least {LEAST_RISE:g} nats, the preserved one by at most {SHARE:g} of that, and "
        "log(L_ablated / L_preserved) by more than along every random direction. Answers: at most half as many "
        "conflict images as at the minimum are answered after the ablated cue",
        judged(*map(most, kept), *map(most, left)),
    )


def _joint(rows: Sequence[Row]) -> Claim:
    def geometric(direction: Row) -> float:
        return math.prod(ratios(direction)) ** (1 / len(STEPS))

    def unsteered(direction: Row) -> list[float]:
        """The same ratio at the minimum, and along random directions."""
        start = at(direction, direction["ablate"], 0.0) / at(direction, "mixed", 0.0)
        return [start, *(e["losses"][direction["ablate"]] / e["losses"]["mixed"] for e in direction["null"])]

    def is_large(direction: Row) -> bool:
        return geometric(direction) >= max(LARGE, *unsteered(direction))

    def text(found: list[Row]) -> str:
        listed = " / ".join(_mean([ratios(d)[i] for d in found], 2) for i in range(len(STEPS)))
        return (
            f"L_{found[0]['ablate']} / L_mixed {listed} at steps 1 / 2 / 3 / 4 (geometric mean "
            f"{_mean([geometric(d) for d in found], 2)}), curvature ratio "
            f"{_mean([d['curvature_ratio'] for d in found], 3)}"
        )

    def null(found: list[Row]) -> str:
        values = [value for d in found for value in unsteered(d)[1:]]
        if not values:
            return "no random direction of positive curvature"
        start = [unsteered(d)[0] for d in found]
        mean = statistics.fmean(values)
        return f"{_mean(start, 2)} at the minimum itself, {mean:.2g} along {len(values)} random ones"

    below = [min(ratios(d)) > 1.0 for row in rows for d in row["directions"]]
    large = [most(is_large(d) for d in found) for found in by_direction(rows).values()]
    return Claim(
        5,
        "the joint loss lies below the ablated one, by a factor of about ten",
        "where one circuit is ablated, the loss on blends stays about ten times below that on the ablated cue alone "
        "(the authors' own files give 4 to 6)",
        f"loss ratios and curvature ratios {over_seeds(len(rows))}, {_each(rows, text)}",
        f"a factor of 1, and the factor without steering (at step {STEP:g} of random directions of equal mixed "
        f"curvature): {_each(rows, null)}",
        "three parts: the mixed loss is the lower one at all four steps of both directions, in every seed; the "
        f"geometric mean of the factor is at least {LARGE:g}, half of what is claimed, and no smaller than at the "
        "minimum or along any random one, in more than half of the seeds for the one direction; and for the other",
        judged(all(below), *large),
    )


def _rank(rows: Sequence[Row]) -> Claim:
    def text(found: list[Row]) -> str:
        ranks = ", ".join(d["ranks"]["mixed"] for d in found)
        tenth = [d["tenth_eigenvalue_of_mixed"] for d in found]
        return (
            f"{_mean([d['rayleigh_quotients']['mixed'] for d in found])}, rank {ranks} (10th eigenvalue {_mean(tenth)})"
        )

    random = [value for row in rows for value in row["random_curvatures"]]
    within = [[_number(d["ranks"]["mixed"]) <= RANK for d in found] for found in by_direction(rows).values()]
    return Claim(
        7,
        "steering curvature lies within the top ten of the mixed spectrum",
        "the mixed loss's curvature along them is as large as its top ten eigenvalues",
        f"curvature of the mixed loss along the direction {over_seeds(len(rows))}, {_each(rows, text)}",
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


def _no_eigenvector(rows: Sequence[Row]) -> Claim:
    def text(found: list[Row]) -> str:
        overlap = [d["largest_squared_overlap"] for d in found]
        listed = ", ".join(f"{name} {_mean([round(o[name], 4) for o in overlap], 2)}" for name in ("mixed", *CUES))
        spread = _mean([d["participation_ratio"] for d in found])
        below = most_of(is_free(d) for d in found)
        return f"{listed}; below half in {below}; spread over {spread} mixed eigenvectors (participation ratio)"

    def null(found: list[Row]) -> str:
        nulls = [d["null_overlap"] for d in found]
        return (
            f"{_mean([n['largest_mean'] for n in nulls], 2)} (95 % below {max(n['largest_95'] for n in nulls):.2f}), "
            f"spread over {_mean([n['participation_mean'] for n in nulls])}"
        )

    free = [[is_free(d) for d in found] for found in by_direction(rows).values()]
    return Claim(
        8,
        "steering directions are not eigenvectors",
        "they are no eigenvectors of the mixed Hessian",
        f"largest squared overlap with one of the top eigenvectors of each loss {over_seeds(len(rows))}, "
        f"{_each(rows, text)}",
        "an eigenvector: 1; random vectors of the span of the removed eigenvectors and the ablated one, with a mixed "
        f"eigenvector: {_each(rows, null)}. The overlap with the preserved loss is 0 by construction",
        "no eigenvector of the mixed Hessian holds half of the direction (squared overlap), in more than half of the "
        "seeds; each of the two directions is a part",
        judged(*map(most, free)),
    )
