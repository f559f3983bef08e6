"""Theme "modular", the claims: several circuits; one after another, in pairs; they survive."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise

from lowhanging.circuits.ablation import CIRCLE as THRESHOLD
from lowhanging.reproduce.claims import Claim, interval, judged, mean_interval, percent
from lowhanging.reproduce.modular import SCARCE, TRANSFORMER_SEEDS, WINDOWS
from lowhanging.reproduce.shelf import Row

WINDOW = 20  # steps; all windows are reported, the verdict is that of this one
LEVEL = 0.05
SEVERAL, ALIVE = 0.9, 0.95  # shares of seeds with two or more circuits; of circuits that survive


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Several circuits; one after another, in pairs; they survive."""
    return [_several(rows[0]), _pairs(rows[0]), _survive(rows[0])]


def _several(row: Row) -> Claim:
    counts, keys = row["births_per_seed"], row["key_frequencies_unblocked"]
    num, several, many = len(counts), sum(count >= 2 for count in counts), sum(count >= 2 for count in keys)
    duplicates = row["frequency_relations"]["duplicates"]
    low, high = duplicates["interval"]
    ratio = "" if None in (low, high) else f", ratio {duplicates['ratio']:.2f} [{low:.2f}, {high:.2f}]"
    other = row["transformer"]
    third = (
        f" The transformer, p = {other['p']}, {TRANSFORMER_SEEDS} seeds: {other['key_frequencies']} key frequencies "
        f"(accuracy on held-out pairs {100 * statistics.median(other['accuracy_held_out']):.1f} %)."
        if other
        else ""
    )
    return Claim(
        15,
        "modular addition learns several redundant Fourier circuits",
        "several Fourier circuits form, any of which could solve the task",
        f"2-D blocks, p = {row['p']}, {num} seeds: {mean_interval(list(map(float, counts)))} circles of "
        f"{row['num_blocks']} blocks, at least two in {interval(several, num)} of the seeds (median accuracy on "
        f"held-out pairs {100 * statistics.median(row['accuracy_held_out']):.1f} %). Unblocked, p = "
        f"{row['unblocked_p']}, {len(keys)} seeds: {mean_interval(list(map(float, keys)))} key frequencies, at least "
        f"two in {interval(many, len(keys))}.{third} The frequency of a circle led its plane before training in "
        f"{interval(*row['dominant_before_training'])} of the births",
        f"one circuit per network, as many as the task needs. Frequencies dealt out across seeds: "
        f"{duplicates['pairs']} pairs of one seed share a frequency, {duplicates['null_mean']:.1f} by chance{ratio}",
        f"at least {100 * SEVERAL:.0f} % of the seeds have two or more circuits; each of the two networks is a part",
        judged(several >= SEVERAL * num, many >= SEVERAL * len(keys)),
    )


def _pairs(row: Row) -> Claim:
    tests, at, found = row["pairing"], WINDOWS.index(WINDOW), row["succession"]
    apart, strictly = found["apart"], found["strictly"]
    close = sum(any(b - a <= WINDOW for a, b in pairwise(sorted(steps))) for steps in row["birth_steps"])
    texts = [f"{null}: {_ratios(test)}" for null, test in tests.items()]
    first = [min(steps) for steps in row["birth_steps"] if steps]
    listed = " / ".join(map(str, WINDOWS))
    return Claim(
        16,
        "circuits form one after another, but in pairs more often than chance",
        "circuits form sequentially, often pairs or triples at once",
        f"first birth at step {mean_interval(first)}. In {found['seeds_with_two']} seeds with two, the second circle "
        f"is born {_steps(found['gap'])} steps after the first (median), which takes {_steps(found['rise'])} to rise. "
        f"Later than the first by more than the first one's own rise: {interval(apart['count'], apart['num'])} of "
        f"{apart['num']} seeds{_left_out(found, apart)}. Beginning to rise only once the first has risen: "
        f"{interval(strictly['count'], strictly['num'])} of {strictly['num']}{_left_out(found, strictly)}. A pair "
        f"within {WINDOW} steps in {interval(close, len(row['birth_steps']))} of the seeds. A circle takes "
        f"{tests['shuffle']['rise_time']:.0f} steps (median over all) to rise, so that these windows are finer than a "
        "birth",
        f"one after another: births dealt out across seeds, each with its rise, make {_chance(apart)} and "
        f"{_chance(strictly)}. That keeps the burst that all seeds share; a share like it says that births of one seed "
        "lie as if they knew nothing of each other, a larger one that a circuit delays the next. In pairs: pairs of "
        f"births at most {listed} steps apart, over what each null expects, with 95 % intervals: {'; '.join(texts)}. "
        "Shuffling across seeds keeps the burst; the constant rate (poisson) does not, and is shown for contrast only",
        "one after another: in more than half of the seeds with two circles the second is born later than the first by "
        f"more than the first one's own rise; in pairs: within {WINDOW} steps there are more pairs than under the "
        f"shuffle and under the clock null (one-sided p at most {LEVEL:g} in both)",
        judged(
            apart["count"] > apart["num"] / 2,
            max(tests["shuffle"]["p_more"][at], tests["clock"]["p_more"][at]) <= LEVEL,
        ),
    )


def _steps(number: float | None) -> str:
    return "no" if number is None else f"{number:.0f}"


def _left_out(found: Row, share: Row) -> str:
    unknown = found["seeds_with_two"] - share["num"]
    return f" ({unknown} left out, whose rise began before the first log)" if unknown else ""


def _chance(share: Row) -> str:
    low, high = share["null_range"]
    return (
        f"{percent(share['null_mean'])} (95 % of the draws in [{percent(low)}, {percent(high)}]; p of as many "
        f"{share['p_more']:.2g}, of as few {share['p_fewer']:.2g})"
    )


def _ratios(test: Row) -> str:
    def text(ratio: float | None, interval: Sequence[float | None], p: float) -> str:
        low, high = interval
        span = "no pairs" if None in (ratio, low, high) else f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
        return f"{span} (p {p:.2g})"

    return ", ".join(map(text, test["ratio"], test["interval"], test["p_more"]))


def _survive(row: Row) -> Claim:
    plenty, few, found = row["fates"], row["scarce"]["fates"], row["comparison"]
    formed, alive = sum(plenty["formed"]), sum(plenty["survived"])
    losses = row["ablation"]["mean_loss_by_circuits_kept"]
    steps = " → ".join(f"{loss:.2f}" for loss in losses)
    p = found["p_value"]
    return Claim(
        17,
        "formed circuits survive",
        "circuits that have formed stay, and are overwritten only where parameters are scarce",
        f"still circular at the end: {_alive(plenty)}; share alive at the last age watched (Kaplan-Meier) "
        f"{100 * row['share_alive_at_last_age']:.1f} %. They add to each other rather than replace one another: the "
        f"held-out loss of seed {row['ablation']['seed']} with 0, 1, ... of its {len(losses) - 1} circles kept is "
        f"{steps}",
        f"networks whose parameters are scarce ({row['scarce']['planes']} planes of {SCARCE['hidden']} units, "
        f"{len(few['formed'])} seeds): {_alive(few)}. {_compared(found)}",
        f"two parts: at least {100 * ALIVE:.0f} % of the formed circuits are circles at the end; where parameters are "
        f"scarce, a smaller share is (permutation test over networks, not circuits, one-sided p at most {LEVEL:g}). "
        "Where this test finds nothing and could only have found a large difference, that is no evidence against the "
        "second part: it is not shown",
        judged(alive >= ALIVE * formed, p is not None and p <= LEVEL),
    )


def _alive(fates: Row) -> str:
    """Of the circuits that formed, how many are still there, and what the others have become."""
    formed, alive, scores = sum(fates["formed"]), sum(fates["survived"]), fates["lost_scores"]
    seeds = sum(a < f for f, a in zip(fates["formed"], fates["survived"], strict=True))
    end = f", which end with scores of {min(scores):.2f} to {max(scores):.2f}" if scores else ""
    lost = f" ({formed - alive} lost in {seeds} seeds{end}; a circle has {THRESHOLD:g} or more)" if scores else ""
    return (
        f"{interval(alive, formed)} of {formed} circuits{lost}; overwritten, with another frequency in their plane at "
        f"the end, are {interval(fates['overwritten'], formed)}"
    )


def _compared(found: Row) -> str:
    if found["p_value"] is None:
        return "Too few networks with a circuit to compare the shares"
    low, high = found["interval"]
    least = found["detectable"]
    told = (
        "no difference would have been found with 80 % power"
        if least is None
        else f"a difference of {100 * least:.0f} points would have been found with 80 % power, smaller ones less often"
    )
    return (
        f"That is {100 * found['difference']:.1f} points fewer than with plenty [{100 * low:.1f}, {100 * high:.1f}] "
        f"(bootstrap over networks; permuting networks, one-sided p {found['p_value']:.2g}); with so many networks "
        f"{told}"
    )
