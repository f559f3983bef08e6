"""Births of circuits over many seeds: pairs and triples, what coupling would have been seen, and what is overwritten.

    python benchmarks/births.py [--only blocks-37 blocks-53 transformer narrow] [--seeds 64] [--results FOLDER]

* "blocks-37", "blocks-53": the preset "births" with p = 37 or 53, births of circles in its planes;
* "transformer": the preset "transformer", a quarter of the seeds, births of frequencies: as circles of
  `circle_score(planes="frequencies")`, and as shares of the embedding's power above .05, .1 and .2;
* "narrow": unblocked networks of width 4 to 8 with 8 to 24 hidden units, twice the seeds, where frequencies are lost:
  is the one that is lost worth the least, of those that were there?

For each kind of birth, window and null the ratio of pairs (and triples) of one seed to those expected, its interval and
p-value, and the power of the test against planted couplings. Runs are kept in `--results`; a later call goes on.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

import lowhanging as lh
from lowhanging.circuits import Births, births, circle_score, fourier_modes
from lowhanging.training import PRESETS, StackRun

WINDOWS = (5, 10, 20, 50)
SHARES = (0.05, 0.1, 0.2)  # of an embedding's power
COUPLINGS = (0.02, 0.05, 0.1, 0.2, 0.3)
LOG_EVERY = 5
NARROW = ((4, 8), (6, 16), (8, 24))  # width, hidden units
KINDS = ("blocks-37", "blocks-53", "transformer", "narrow")


def trained(name: str, folder: Path, train: object) -> StackRun:
    """A run that is kept."""
    file = folder / f"{name}.npz"
    if file.exists():
        return StackRun.load(file)
    folder.mkdir(parents=True, exist_ok=True)
    run = train(folder / f"{name}-resume.npz")  # type: ignore[operator]
    run.save(file)
    return run


def blocks(p: int, num_seeds: int, folder: Path, **arguments: object) -> StackRun:
    """Networks of the preset "births", with another modulus too."""
    preset = PRESETS["births"]
    sums = lh.modular_addition(p, preset.data_arguments["train_fraction"])

    def train(resume: Path) -> StackRun:
        return lh.train_stack(
            lambda seed: lh.ModularMLP(seed=seed, **{**preset.model_arguments, "p": p}), sums.train, range(num_seeds),
            snapshots="embedding", evaluate={"held out": sums.test}, log_every=LOG_EVERY, resume=resume,
            **{**preset.training_arguments, **arguments},
        )  # fmt: skip

    return trained(f"blocks-{p}-{num_seeds}", folder, train)


def transformers(num_seeds: int, folder: Path, **arguments: object) -> StackRun:
    """Networks of the preset "transformer"."""

    def train(resume: Path) -> StackRun:
        sums = PRESETS["transformer"].data()
        return lh.train_stack(
            "transformer", seeds=range(num_seeds), snapshots="embedding", evaluate={"held out": sums.test},
            log_every=LOG_EVERY, resume=resume, **arguments,
        )  # fmt: skip

    return trained(f"transformer-{num_seeds}", folder, train)


def kinds_of_birth(name: str, run: StackRun) -> dict[str, Births]:
    """What a birth is, in the embeddings of a run, several ways."""
    embeddings = run.snapshots["embedding"]
    if name.startswith("blocks"):
        return {"circles of planes": births(circle_score(embeddings), run.steps)}
    numbers = embeddings[:, :, : embeddings.shape[2] - 1]  # without "="
    found = {"circles of frequencies": births(circle_score(numbers, planes="frequencies"), run.steps)}
    shares = fourier_modes(numbers)
    return found | {f"share of {share:g}": births(shares, run.steps, threshold=share) for share in SHARES}


def report(name: str, run: StackRun) -> list[str]:
    """Lines of tables."""
    held_out = 100 * run.accuracies["held out"].max(1).values
    lines = [f"\n## {name}: {run}", f"held-out accuracy at best: median {float(held_out.median()):.1f} %"]
    for kind, found in kinds_of_birth(name, run).items():
        lines += [f"\n{kind}: {found}", "| | null | " + " | ".join(f"{w} steps" for w in WINDOWS) + " |"]
        lines.append("|---|---|" + "---|" * len(WINDOWS))
        for size, what in ((2, "pairs"), (3, "triples")):
            for null in ("shuffle", "clock"):
                lines.append(f"| {what} | {null} | {row(found, size, null)} |")
        lines.append(f"power of the shuffle test at 20 steps: {powers(found)}")
    return lines


def row(found: Births, size: int, null: str) -> str:
    """Ratio, interval and p-value for each window."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*shorter than the")
            test = lh.circuits.pairing_test(found, WINDOWS, null=null, size=size)  # type: ignore[arg-type]
    except ValueError as error:
        return f"not tested: {str(error).splitlines()[0]}"
    columns = zip(test.ratio.tolist(), test.interval.tolist(), test.p_more.tolist(), strict=True)
    return " | ".join(f"{ratio:.2f} [{low:.2f}, {high:.2f}], p {p:.3f}" for ratio, (low, high), p in columns)


def powers(found: Births) -> str:
    """How often planted couplings of several strengths are seen."""
    parts = []
    for coupling in COUPLINGS:
        try:
            power = lh.circuits.pairing_power(found, coupling, window=20.0)
        except ValueError as error:
            return "; ".join([*parts, str(error).splitlines()[0]])
        parts.append(f"{coupling:.0%} coupled: {power.power:.2f} (ratio {power.ratio:.2f})")
    return "; ".join(parts)


def narrow(width: int, hidden: int, num_seeds: int, folder: Path, **arguments: object) -> StackRun:
    """Unblocked networks with few parameters, all of them kept at every log."""
    sums = lh.modular_addition(37, 0.8)

    def train(resume: Path) -> StackRun:
        return lh.train_stack(
            lambda seed: lh.ModularMLP(37, width=width, hidden=hidden, blocks=False, seed=seed), sums.train,
            range(num_seeds), evaluate={"held out": sums.test}, snapshots="*", resume=resume,
            **{"num_steps": 3000, "lr": 0.01, "penalty": 7e-4, "log_every": 25, **arguments},
        )  # fmt: skip

    return trained(f"narrow-{width}-{hidden}-{num_seeds}", folder, train)


def worth(run: StackRun, i: int, log: int, frequencies: list[int], width: int, hidden: int) -> list[float]:
    """Nats on all sums that each frequency is worth at a log: the loss without it, over the loss."""
    model = lh.ModularMLP(37, width=width, hidden=hidden, blocks=False)
    model.load_state_dict({name: kept[i, log] for name, kept in run.snapshots.items()})
    everything = lh.modular_addition(37, 1.0).train
    ablation = lh.circuits.ablate_circuits(model, everything, circuits=frequencies, progress=False)
    return [float(value) for value in ablation.nats]


def lost(run: StackRun, width: int, hidden: int) -> list[str]:
    """Of the key frequencies that were there before one was lost, is that the one of least worth?

    Worth is measured half-way between the time from which all of them were there and the loss: just before it the one
    that is lost would be the weakest by definition.
    """
    shares = fourier_modes(run.snapshots["embedding"])  # (seeds, logs, frequencies)
    found = births(shares, run.steps, threshold=0.1)
    steps: Tensor = run.steps.double()
    least, chance, ranks, leads = 0, [], [], []
    num_lost = int((found.is_formed & found.death.isfinite()).sum())
    replaced = 0
    for i, f in torch.nonzero(found.is_formed & found.death.isfinite()).tolist():
        end = int((steps < found.death[i, f]).nonzero()[-1])
        alive = (shares[i, end] >= 0.1).nonzero()[:, 0].tolist()
        missing = (shares[i, : end + 1][:, alive] < 0.1).any(1).nonzero()[:, 0].tolist()
        begin = missing[-1] + 1 if missing else 0
        before = (begin + end) // 2
        replaced += bool(((found.step[i] > found.step[i, f]) & (found.step[i] <= steps[-1])).any())
        if f not in alive or not 2 <= len(alive) <= 10:
            continue
        values = worth(run, i, before, [k + 1 for k in alive], width, hidden)
        rank = sorted(values).index(values[alive.index(f)])
        ranks.append(rank / (len(alive) - 1))
        least += rank == 0
        leads.append(float(found.death[i, f] - steps[before]))
        chance.append(1 / len(alive))
    text = f"width {width}, {hidden} hidden: {run}; {int(found.counts.sum())} frequencies formed, {num_lost} lost"
    if not chance:
        return [text + "; none beside another"]
    p = binomtest(least, len(chance), float(np.mean(chance)), alternative="greater").pvalue
    low, high = binomtest(least, len(chance)).proportion_ci(method="wilson")
    share = f"{least / len(chance):.2f} [{low:.2f}, {high:.2f}]; by chance {np.mean(chance):.2f}, p {p:.3g}"
    return [
        f"{text}, {replaced} of them with one born later; beside others {len(chance)}: the one of least worth in "
        f"{least} ({share}), "
        f"{np.median(leads):.0f} steps before (median); mean rank {np.mean(ranks):.2f} (0 least, 1 most, .5 by chance)"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--seeds", type=int, default=64, help="a quarter of them for transformers, twice for narrow ones"
    )
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "births")
    options = parser.parse_args()
    for name in options.only:
        if name == "narrow":
            print("\n## narrow, unblocked")
            for width, hidden in NARROW:
                run = narrow(width, hidden, 2 * options.seeds, options.results)
                print("\n".join(lost(run, width, hidden)), flush=True)
            continue
        if name == "transformer":
            run = transformers(max(2, options.seeds // 4), options.results)
        else:
            run = blocks(int(name.split("-")[1]), options.seeds, options.results)
        print("\n".join(report(name, run)), flush=True)


if __name__ == "__main__":
    main()
