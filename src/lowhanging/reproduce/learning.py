"""Theme 1: does a network learn both cues, at comparable rates, and where is its minimum?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowhanging.basin.minimum import Minimum, polish
from lowhanging.datasets import PairedMNIST, paired_mnist
from lowhanging.errors import NotConvergedError
from lowhanging.models import SigmoidCNN
from lowhanging.objective import Objective
from lowhanging.reproduce.claims import Claim, judged, percent
from lowhanging.training import TrainingRun, train

CUES = ("number", "pattern")


@dataclass(frozen=True)
class Learning:
    """A trained network at its minimum, and the three losses around it on held-out images."""

    views: PairedMNIST
    model: SigmoidCNN
    run: TrainingRun
    minimum: Minimum
    is_minimum: bool
    note: str  # why it is not a minimum, or ""
    losses: dict[str, Objective]  # mixed, number, pattern: test views, around the minimum


def learn(*, source: str, seed: int, epochs: int) -> Learning:
    """Train on the mixed view, polish to a minimum of the training loss."""
    views = paired_mnist(source, seed=seed)
    model = SigmoidCNN(seed=seed)
    held_out = {"mixed": views.mixed.test, "number": views.number.test, "pattern": views.pattern.test}
    run = train(model, views.mixed.train, epochs=epochs, evaluate=held_out, seed=seed)
    note = ""
    try:
        minimum = polish(Objective(model, views.mixed.train), anchor=1e-2)
    except NotConvergedError as error:  # the report goes on from where it got, and says so
        minimum, note = error.result, str(error)
    losses = {name: Objective(model, view).at(minimum.theta) for name, view in held_out.items()}
    return Learning(views, model, run, minimum, not note, note, losses)


def epochs_to_half(accuracies: Tensor) -> float:
    """Epochs until accuracy passes half of its final value, interpolated between the epochs recorded."""
    half = float(accuracies[-1]) / 2
    for epoch in range(1, len(accuracies)):
        before, after = float(accuracies[epoch - 1]), float(accuracies[epoch])
        if after >= half:
            return epoch - 1 + (0.0 if before >= half else (half - before) / (after - before))
    return float("nan")


def claims(learning: Learning) -> list[Claim]:
    """Both circuits are learned; at comparable rates."""
    final = {name: float(rows[-1]) for name, rows in learning.run.accuracies.items()}
    half = {name: epochs_to_half(learning.run.accuracies[name]) for name in CUES}
    slow, fast = max(half.values()), min(half.values())
    factor = f"a factor of {slow / fast:.1f}" if fast else "one of them at once"
    return [
        Claim(
            "both circuits are learned",
            "a network trained on blends reads numbers alone and patterns alone",
            "held-out accuracy after training: "
            f"mixed {percent(final['mixed'])}, number-only {percent(final['number'])}, "
            f"pattern-only {percent(final['pattern'])} (chance {percent(0.1)})",
            "each single cue alone is read with at least 80 % accuracy on held-out images",
            judged(final["number"] >= 0.8, final["pattern"] >= 0.8),
        ),
        Claim(
            "at comparable rates",
            "the two circuits form at similar speed",
            f"half of the final accuracy after {half['number']:.2f} (number) and {half['pattern']:.2f} (pattern) "
            f"epochs, {factor}",
            "the slower cue takes at most twice as long as the faster one to half of its final accuracy (one seed)",
            judged(slow <= 2 * fast),
        ),
    ]


def numbers(learning: Learning) -> dict[str, object]:
    """What goes into results.json."""
    minimum = learning.minimum
    evaluated = {name: loss.evaluate(minimum.theta) for name, loss in learning.losses.items()}
    return {
        "accuracy_after_training": {name: float(rows[-1]) for name, rows in learning.run.accuracies.items()},
        "loss_after_training": {name: float(rows[-1]) for name, rows in learning.run.losses.items()},
        "epochs_to_half": {name: epochs_to_half(learning.run.accuracies[name]) for name in CUES},
        "at_minimum": {
            name: {"loss": float(loss), "accuracy": accuracy} for name, (loss, accuracy) in evaluated.items()
        },
        "minimum": {
            "is_minimum": learning.is_minimum,
            "note": learning.note,
            "anchor": minimum.anchor,
            "gradient_norm_before": minimum.gradient_norm_before,
            "gradient_norm": minimum.gradient_norm,
            "distance": minimum.distance,
            "norm_before": float(minimum.start.norm()),
            "largest_eigenvalue": minimum.largest,
            "smallest_eigenvalue": minimum.smallest,
            "smallest_residual": minimum.smallest_residual,
            "num_gradients": minimum.num_gradients,
            "num_products": minimum.num_products,
        },
    }
