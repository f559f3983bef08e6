"""How well does the reference network read the two cues? A table over seeds, on held-out images.

python benchmarks/accuracy.py [--seeds 5] [--epochs 60]
"""

from __future__ import annotations

import argparse
import statistics

import lowhanging as lh


def main() -> None:
    """Train, and print accuracies in percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()

    names = ("mixed", "number", "pattern")
    rows = []
    print("| seed | mixed | number-only | pattern-only | seconds |\n|---|---|---|---|---|")
    for seed in range(options.seeds):
        views = lh.paired_mnist(seed=seed)
        held_out = {name: getattr(views, name).test for name in names}
        run = lh.train(
            lh.SigmoidCNN(seed=seed),
            views.mixed.train,
            num_epochs=options.epochs,
            evaluate=held_out,
            seed=seed,
            progress=False,
        )
        rows.append([100 * float(run.accuracies[name][-1]) for name in names])
        print(f"| {seed} | " + " | ".join(f"{value:.1f}" for value in rows[-1]) + f" | {run.seconds:.0f} |", flush=True)
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    print("| median | " + " | ".join(f"{value:.1f}" for value in medians) + " | |")


if __name__ == "__main__":
    main()
