"""Theme "steering", the claims: circuits kept and ablated, the joint loss, ranks, eigenvectors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from lowhanging.reproduce.claims import Claim, Scale, judged, mean_interval, most, most_of, over_seeds
from lowhanging.reproduce.learning import CUES
from lowhanging.reproduce.shelf import Row
from lowhanging.reproduce.steering import (
    STEP,
    STEPS,
    at,
    by_direction,
    null_points,
    null_ratios,
    null_selectivities,
    ratios,
    rise,
    selectivity,
)

LEAST_RISE, SHARE = 0.5, 0.2  # nats that the ablated loss rises by, and the share of that allowed to the preserved one
LARGE = 5.0  # half of the write-up's factor of ten
RANK, HALF = 10, 0.5
LOG: Scale = "log"
SHARES: Scale = "share"
LENGTHS = {"quadratic": "at the first length", "rise": "at the second"}  # of random directions, in claim 4's words


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
        low, high = (
            statistics.fmean(d["conflict_shift"]["interval"][i] for d in found) for i in (0, 1)
        )
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


def factor(values: Sequence[float]) -> str:
    """A geometric mean of factors with its 95 % interval: "2.1 [1.4, 3.2]"."""
    return mean_interval(values, scale="log", with_range=False)


def _short(value: float) -> str:
    """Two digits, but never "1.6e+02"."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}"


def _joint(rows: Sequence[Row]) -> Claim:
    def text(found: list[Row]) -> str:
        listed = " / ".join(factor([ratios(d)[i] for d in found]) for i in range(len(STEPS)))
        return (
            f"L_{found[0]['ablate']} / L_mixed {listed} at steps {' / '.join(f'{step:g}' for step in STEPS)}, over "
            f"these steps {factor([geometric(d) for d in found])}; curvature ratio "
            f"{factor([d['curvature_ratio'] for d in found])}"
        )

    def null(found: list[Row]) -> str:
        parts = [f"{factor([_at_minimum(d) for d in found])} at the minimum itself"]
        for name, place in LENGTHS.items():
            values = [value for d in found for value in null_ratios(d)[name]]
            spread = f"{_short(min(values))} to {_short(max(values))}" if values else "nothing"
            parts.append(f"{spread} along {len(values)} random ones {place}")
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
        shares = [", ".join(f"{_short(100 * n[name] / n['num'])} %" for n in nulls) for name in _EXTREME]
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


_EXTREME = ("num_as_large", "num_as_concentrated")


def _quantile_range(nulls: Sequence[Row], name: str) -> str:
    """Three quantiles, each a mean over networks."""
    return " / ".join(f"{statistics.fmean(n[name][i] for n in nulls):.2g}" for i in range(3))


def _over(rows: Sequence[Row]) -> str:
    return over_seeds(len(rows), with_range=False)
