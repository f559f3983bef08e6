"""Can one circuit of a grown network be kept and the other ablated, and at what price? The paired digits.

    python benchmarks/prices.py [--seeds 0 1 2 3 4 5] [--images 4000] [--levels 0.6 0.3 0.15] [--results FOLDER]

For every seed: train the CNN on all training images as the report does, go to the anchored minimum of the first
`--images` blends, and ask there

* steering by both methods, with the other cue blanked or resampled: do the answers on conflict images move, at step 8?
* `ablation_curve` for both circuits on the resampled losses: the price, the answers and the held-out losses;
* the straight line from the minimum to the end of each curve;
* each point relaxed on its sphere under the mixed loss alone: does it stay?
* the path of training, seen in the plane of the minimum and the two ends.

Held-out numbers are on all test images. What was found lies in `--results`, one folder per seed; a later call goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import lowhanging as lh
from lowhanging.landscape import Minimum
from lowhanging.steering import AblationCurve, relax_on_spheres

CUES = ("number", "pattern")
STEP, NUM_PAIRS = 8.0, 30


def first(examples: lh.datasets.examples.Examples, num: int) -> tuple[Tensor, Tensor]:
    """The first examples, as tensors."""
    return examples.inputs[:num], examples.targets[:num]


class Network:
    """One trained network with its losses, as far as they were found before."""

    def __init__(self, views: lh.datasets.PairedMNIST, seed: int, num_images: int, folder: Path):
        self.folder = folder / f"seed-{seed}-{num_images}"
        self.folder.mkdir(parents=True, exist_ok=True)
        model, weights = lh.SigmoidCNN(seed=seed), self.folder / "run.npz"
        if weights.exists():
            self.run = lh.training.TrainingRun.load(weights)
        else:
            self.run = lh.train(model, views.mixed.train, num_epochs=60, checkpoints=4, seed=seed)
            self.run.save(weights)
        mixed = lh.Objective(model, first(views.mixed.train, num_images)).at(self.run.checkpoints[-1])
        file = self.folder / "minimum.npz"
        if file.exists():
            self.minimum = Minimum.load(file, mixed)
        else:
            self.minimum = lh.polish(mixed, anchor=1e-2)
            self.minimum.save(file)
        theta = self.theta = self.minimum.theta
        kinds = {"blanked": "", "resampled": "_resampled"}
        self.losses = {
            (cue, kind): lh.Objective(model, first(getattr(views, cue + suffix).train, num_images)).at(theta)
            for cue in CUES
            for kind, suffix in kinds.items()
        }
        self.held_out = {name: lh.Objective(model, getattr(views, name).test).at(theta) for name in ("mixed", *CUES)}
        conflict = views.conflict
        self.conflict = lh.ConflictControl(self.held_out["mixed"], conflict.inputs, conflict.answers)

    def describe(self, theta: Tensor) -> str:
        """Held-out loss, accuracies, and answers on conflict images."""
        loss, _ = self.held_out["mixed"].evaluate(theta)
        accuracies = " / ".join(f"{self.held_out[cue].evaluate(theta)[1]:.3f}" for cue in CUES)
        answers = self.conflict(theta)
        return f"{float(loss):.3f} / {accuracies}, {answers['number']:.3f} : {answers['pattern']:.3f}"

    def pairs(self, cue: str, kind: str) -> lh.curvature.Eigenpairs:
        """The top eigenpairs of one cue's loss."""
        file = self.folder / f"pairs-{cue}-{kind}-{NUM_PAIRS}.npz"
        if not file.exists():
            lh.top_eigs(lh.hessian(self.losses[cue, kind]), k=NUM_PAIRS, tol=1e-3).save(file)
        return lh.curvature.Eigenpairs.load(file)

    def steering(self) -> list[str]:
        """A line for each direction."""
        lines = []
        for kind in ("blanked", "resampled"):
            for method in ("project", "ratio"):
                for keep, ablate in (CUES, CUES[::-1]):
                    file = self.folder / f"{kind}-{method}-{keep}.pt"
                    if not file.exists():
                        u = lh.steering_direction(
                            preserve=self.losses[keep, kind], ablate=self.losses[ablate, kind], method=method,
                            k=NUM_PAIRS, preserve_pairs=self.pairs(keep, kind), ablate_pairs=self.pairs(ablate, kind),
                            tol=1e-3,
                        )  # fmt: skip
                        torch.save(u, file)
                    theta = self.theta + STEP * torch.load(file, weights_only=True)
                    shift = self.conflict.shift(theta, self.theta, towards=keep, away=ablate)
                    lines.append(f"| {method}, {kind}, keep {keep} | {self.describe(theta)} | {shift.text} |")
        return lines

    def curve(self, keep: str, shares: list[float]) -> AblationCurve:
        """The price of keeping one circuit."""
        loss = self.losses[keep, "resampled"]
        name = f"{keep}-{'-'.join(f'{share:g}' for share in shares)}.npz"
        start, file = float(loss(self.theta)), self.folder / f"curve-{name}"
        if file.exists():
            return AblationCurve.load(file)
        curve = lh.ablation_curve(
            self.minimum.objective, keep=loss, levels=[share * start for share in shares], conflict=self.conflict,
            report={"training": self.minimum.unanchored}, num_starts=2, on_failure="warn",
            resume=self.folder / f"resume-{name}",
        )  # fmt: skip
        curve.save(file)
        return curve

    def relaxed(self, curve: AblationCurve) -> str:
        """How far the last point slides when the kept circuit's loss no longer holds it, and what it then answers."""
        found = relax_on_spheres(self.minimum.objective, curve.thetas[-1:], conflict=self.conflict, max_gradients=500)
        answers = " : ".join(f"{float(found.others[cue][0, 1]):.3f}" for cue in CUES)
        residual = f"gradient along the sphere {float(found.residuals[0]):.1e}"
        return f"slides by {float(found.slides[0]):.2f} of its distance ({residual}), then answers {answers}"

    def training_path(self, curves: list[AblationCurve]) -> str:
        """Cosines of the last stretches of training with the two ways out, and the share of them in their plane."""
        ways = torch.stack([(curve.thetas[-1] - self.theta).double() for curve in curves])
        ways = ways / ways.norm(dim=1, keepdim=True)
        plane = lh.Subspace.span(ways)
        parts = []
        for theta in self.run.checkpoints[[1, 3, 7]]:  # epochs 4, 12, 28
            delta = theta.double() - self.theta.double()
            cosines = ", ".join(f"{float(way @ delta / delta.norm()):+.2f}" for way in ways)
            parts.append(f"{float(delta.norm()):.3g} away: cosines {cosines}, {plane.overlap(delta):.3f} in the plane")
        return "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(6)))
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--levels", nargs="+", type=float, default=[0.6, 0.3, 0.15], help="shares of the kept loss")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "prices")
    options = parser.parse_args()
    views = lh.paired_mnist()
    for seed in options.seeds:
        network = Network(views, seed, options.images, options.results)
        print(
            f"\n## Seed {seed}\n\nheld-out mixed loss / number-only / pattern-only accuracy, answers number : pattern"
        )
        print(f"at the minimum: {network.describe(network.theta)}\n")
        print("| direction, step 8 | held out | shift |\n|---|---|---|")
        print("\n".join(network.steering()), flush=True)
        curves = []
        for keep in CUES:
            curve = network.curve(keep, options.levels)
            curves.append(curve)
            print(f"\nkeep {keep}:\n{curve}")
            for theta, distance in zip(curve.thetas, curve.distances.tolist(), strict=True):
                print(f"  r = {distance:.2f}: {network.describe(theta)}")
            print(
                f"  mixed training loss without the anchor: {[round(x, 4) for x in curve.report['training'].tolist()]}"
            )
            for share in (0.25, 0.5, 0.75):
                theta = network.theta + share * (curve.thetas[-1] - network.theta)
                print(f"  {share:.0%} of the straight line: {network.describe(theta)}")
            print(f"  relaxed on its sphere, the last point {network.relaxed(curve)}", flush=True)
        print(f"\ntraining, from the minimum: {network.training_path(curves)}", flush=True)


if __name__ == "__main__":
    main()
