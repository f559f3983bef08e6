"""Canyons of several networks: what `lowhanging reproduce` measures of one, with intervals over seeds.

python benchmarks/canyons.py --seeds 5 --out canyons.json

Each seed trains a network of its own (its data, weights and batches), finds and follows its canyons as the report does,
and holds the depth on the energy shell against random subspaces of equal curvature. About three minutes a seed on two
quiet cores.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import lowhanging as lh
from lowhanging.reproduce import canyons, curvature, steering
from lowhanging.reproduce.claims import interval, mean_interval
from lowhanging.reproduce.learning import learn


def measure(seed: int, num_null: int) -> dict[str, Any]:
    """One network: every number of the report's canyon section, verdicts, and the null of depth."""
    begun = time.perf_counter()
    trained = learn(source="bundled", seed=seed, epochs=60)
    _, steered = steering.measure(trained, curvature.measure(trained.losses))
    before = time.perf_counter()
    found = canyons.measure(trained, steered)
    seconds = time.perf_counter() - before
    null = None
    if num_null:
        held = lh.depth_null(found.minimum.objective, found.shell, num=num_null, progress=False)
        null = {"observed": held.observed.tolist(), "null": held.null.tolist(), "p_values": held.p_values.tolist()}
    return {
        **canyons.numbers(found),
        "verdicts": {claim.name: claim.verdict for claim in canyons.claims(found)},
        "null": null,
        "seconds_of_the_section": seconds,
        "seconds": time.perf_counter() - begun,
    }


def own(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Certified, not trivial, no copies."""
    return [p for p in points if p["is_certified"] and not p["is_trivial"] and p["copy_of"] is None]


def summary(runs: list[dict[str, Any]]) -> list[str]:
    """Lines of a table over seeds."""
    num = len(runs)
    counts = [float(len(own(run["sphere"]))) for run in runs]
    lines = [f"canyons on the sphere: {mean_interval(counts)} per network ({counts})"]
    depths = [min((p["depth"] for p in own(run["shell"])), default=math.nan) for run in runs]
    lines.append(f"lowest depth on the energy shell: {mean_interval(depths)}")
    if all(run["null"] is not None for run in runs):
        nulls = [statistics.fmean(row[0] for row in run["null"]["null"]) for run in runs]
        lines.append(
            f"the same in random subspaces: {mean_interval(nulls)}; p {[run['null']['p_values'] for run in runs]}"
        )
    paths = [path for run in runs for path in run["paths"].values()]
    radii = [path["merge_radius"] for path in paths]
    merged = [statistics.fmean(pair) for pair in radii if pair[0] > 0]
    lines.append(
        f"branches that merge further out than the inner end: {interval(len(merged), len(paths))} of {len(paths)}"
    )
    if len(merged) > 1:
        lines.append(f"merge radius of those: {mean_interval(merged)}")
    floors = [[p["slope_without_anchor"] for p in path["points"] if p["is_certified"]] for path in paths]
    steady = sum(bool(floor) and min(floor) > canyons.FLAT for floor in floors)
    lines.append(f"branches sloped all along: {interval(steady, len(paths))}")
    means = [statistics.fmean(floor) for floor in floors if floor]
    lines.append(f"mean slope of a floor without the anchor: {mean_interval(means)}")
    moves = []
    for run in runs:
        basin = math.log(run["basin"]["losses"]["number"] / run["basin"]["losses"]["pattern"])
        ends = own(run["sphere"]) + own(run["shell"]) + [path["points"][-1] for path in run["paths"].values()]
        moves += [(math.log(p["losses"]["number"] / p["losses"]["pattern"]) - basin, p["circuit"]) for p in ends]
    lines.append(
        f"asymmetry, change from the minimum: {min(m for m, _ in moves):+.2f} to {max(m for m, _ in moves):+.2f}"
    )
    for cue in ("number", "pattern"):
        runs_with = sum(
            any(
                p["circuit"] == cue
                for p in run["sphere"] + run["shell"] + [q["points"][-1] for q in run["paths"].values()]
            )
            for run in runs
        )
        lines.append(f"networks with a point called after the {cue} circuit: {interval(runs_with, num)}")
    for name in runs[0]["verdicts"]:
        lines.append(f"{name}: {', '.join(run['verdicts'][name] for run in runs)}")
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--null", type=int, default=9, help="random subspaces per network; 0: none")
    parser.add_argument("--out", type=Path, help="JSON file, written after every network and continued from")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = json.loads(options.out.read_text()) if options.out and options.out.exists() else []
    for seed in range(len(runs), options.seeds):
        runs.append(measure(seed, options.null))
        print(
            f"seed {seed}: {runs[-1]['seconds']:.0f} s, canyons {runs[-1]['seconds_of_the_section']:.0f} s", flush=True
        )
        if options.out:
            options.out.write_text(json.dumps(runs))
    print(*summary(runs), sep="\n")


if __name__ == "__main__":
    main()
