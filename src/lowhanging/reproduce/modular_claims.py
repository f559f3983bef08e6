"""Theme "modular", the claims: several circuits; one after another, in pairs; they survive."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise

from scipy.stats import fisher_exact

from lowhanging.reproduce.claims import Claim, interval, judged, mean_interval
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


def gaps(row: Row) -> list[float]:
    """Steps between the first and the second birth of each seed that has two."""
    return [steps[1] - steps[0] for steps in row["dated_steps"] if len(steps) > 1]


def _pairs(row: Row) -> Claim:
    between, tests, at = gaps(row), row["pairing"], WINDOWS.index(WINDOW)
    apart = sum(gap > WINDOW for gap in between)
    close = sum(any(b - a <= WINDOW for a, b in pairwise(sorted(steps))) for steps in row["birth_steps"])
    texts = [f"{null}: {_ratios(test)}" for null, test in tests.items()]
    first = [min(steps) for steps in row["birth_steps"] if steps]
    listed = " / ".join(map(str, WINDOWS))
    return Claim(
        16,
        "circuits form one after another, but in pairs more often than chance",
        "circuits form sequentially, often pairs or triples at once",
        f"first birth at step {mean_interval(first)}; the second one more than {WINDOW} steps later in "
        f"{interval(apart, len(between))} of the seeds with two. A pair within {WINDOW} steps in "
        f"{interval(close, len(row['birth_steps']))} of the seeds. A circle takes "
        f"{tests['shuffle']['rise_time']:.0f} steps (median) to rise, so the windows are finer than a birth",
        f"pairs of births at most {listed} steps apart, over what each null expects, with 95 % intervals: "
        f"{'; '.join(texts)}. Shuffling across seeds keeps the burst that all seeds share; the constant rate (poisson) "
        "does not, and is shown for contrast only",
        f"one after another: in most seeds the first two births lie more than {WINDOW} steps apart; in pairs: within "
        f"{WINDOW} steps there are more pairs than under the shuffle and under the clock null (one-sided p at most "
        f"{LEVEL:g} in both)",
        judged(
            apart > len(between) / 2,
            max(tests["shuffle"]["p_more"][at], tests["clock"]["p_more"][at]) <= LEVEL,
        ),
    )


def _ratios(test: Row) -> str:
    def text(ratio: float | None, interval: Sequence[float | None], p: float) -> str:
        low, high = interval
        span = "no pairs" if None in (ratio, low, high) else f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
        return f"{span} (p {p:.2g})"

    return ", ".join(map(text, test["ratio"], test["interval"], test["p_more"]))


def fewer(row: Row) -> float:
    """One-sided Fisher p of a smaller share of survivors where parameters are scarce."""
    alive, few = row["survived"], row["scarce"]
    table = [[few["survived"], few["formed"] - few["survived"]], [alive, row["formed"] - alive]]
    return float(fisher_exact(table, alternative="less").pvalue)


def _survive(row: Row) -> Claim:
    formed, alive, few, p = row["formed"], row["survived"], row["scarce"], fewer(row)
    losses = row["ablation"]["mean_loss_by_circuits_kept"]
    steps = " → ".join(f"{loss:.2f}" for loss in losses)
    return Claim(
        17,
        "formed circuits survive",
        "circuits that have formed stay, and are overwritten only where parameters are scarce",
        f"still circular at the end: {interval(alive, formed)} of {formed} circuits; share alive at the last age "
        f"watched (Kaplan-Meier) {100 * row['share_alive_at_last_age']:.1f} %. They add to each other rather than "
        f"replace one another: the held-out loss of seed {row['ablation']['seed']} with 0, 1, ... of its "
        f"{len(losses) - 1} circles kept is {steps}",
        f"networks whose parameters are scarce ({SCARCE['width'] // 2} planes of {SCARCE['hidden']} units, "
        f"{few['seeds']} seeds): {interval(few['survived'], few['formed'])} of {few['formed']} circuits are still "
        f"circular (fewer than with plenty: one-sided Fisher p {p:.2g})",
        f"two parts: at least {100 * ALIVE:.0f} % of the formed circuits are circles at the end; where parameters are "
        f"scarce, a smaller share is (one-sided Fisher p at most {LEVEL:g})",
        judged(alive >= ALIVE * formed, p <= LEVEL),
    )
