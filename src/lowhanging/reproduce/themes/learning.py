"""Theme "learning": a network trained on blends, polished to a minimum, and how well it reads either cue alone.

It is the network that most other themes look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lowhanging.datasets import MNIST, DigitImages, PairedImages, PairedMNIST, PairedView, mnist, paired_mnist
from lowhanging.errors import NotConvergedError
from lowhanging.landscape.minimum import Minimum, polish
from lowhanging.models import SigmoidCNN
from lowhanging.objective.hvp import Engine
from lowhanging.objective.objective import Objective
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, most_of, over_seeds
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.settings import SIZES, Sizes
from lowhanging.reproduce.store import NO_STORE, ResultStore, Row
from lowhanging.training.train import TrainingRun, train

CUES = ("number", "pattern")
TASKS = ("mixed", *CUES)
READ = 0.8  # accuracy on held-out images from which a cue counts as learned
CHANCE = 0.1
ENGINE: Engine = "split graph"  # thousands of products come: they are recorded at once


@dataclass(frozen=True)
class Learning:
    """A trained network at its minimum, and the three losses around it on held-out images."""

    seed: int
    views: PairedMNIST
    model: SigmoidCNN
    run: TrainingRun  # with checkpoints at the sizes' early epochs and at the end
    minimum: Minimum
    is_minimum: bool
    note: str  # why it is not a minimum, or ""
    losses: dict[str, Objective]  # mixed, number, pattern: test views, around the minimum


def learn(*, source: str, seed: int, sizes: Sizes = SIZES["quick"], store: ResultStore = NO_STORE) -> Learning:
    """Train on the mixed view, polish to a minimum of the training loss; what the store holds is taken from there."""
    views = paired_mnist(_digits(source, sizes.images), seed=seed)
    model = SigmoidCNN(seed=seed)
    held_out = {name: view.test for name, view in views_of(views).items()}
    num = sizes.epochs
    kept = sorted({epoch for epoch in sizes.early_epochs if epoch < num} | {num})

    def trained() -> TrainingRun:
        resume = store.resume("training")
        data = views.mixed.train
        return train(model, data, num_epochs=num, evaluate=held_out, checkpoints=kept, seed=seed, resume=resume)

    run = store.result("training", trained)
    ParameterSpace(model).write(run.checkpoints[-1], model)
    train_loss = Objective(model, views.mixed.train, engine=ENGINE)
    notes: list[str] = []

    def polished() -> Minimum:
        try:
            return polish(train_loss, anchor=sizes.anchor, resume=store.resume("minimum"))
        except NotConvergedError as error:  # the report goes on from where it got, and says so
            notes.append(str(error))
            store.plain("minimum-note", lambda: notes[0])
            found: Minimum = error.result
            return found

    minimum = store.result("minimum", polished, lambda path: Minimum.load(path, train_loss))
    note = notes[0] if notes else "" if minimum.is_minimum else store.plain("minimum-note", lambda: "not converged")
    losses = {name: Objective(model, view, engine=ENGINE).at(minimum.theta) for name, view in held_out.items()}
    return Learning(seed, views, model, run, minimum, not note, note, losses)


def views_of(views: PairedMNIST) -> dict[str, PairedView]:
    """Task -> its images."""
    return {"mixed": views.mixed, "number": views.number, "pattern": views.pattern}


def first_images(images: PairedImages, num: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the first `num`."""
    return images.inputs[:num], images.targets[:num]


def _digits(source: str, images: int | None) -> str | MNIST:
    if images is None:
        return source
    digits = mnist(source)
    train, test = (DigitImages(*split[:images]) for split in (digits.train, digits.test))
    return MNIST(train, test, source=digits.source)


def measure(context: Context) -> Row:
    """Accuracies and losses after training and at the minimum, and what proves that it is one."""
    network = context.network
    run, minimum = network.run, network.minimum
    evaluated = {name: loss.evaluate(minimum.theta) for name, loss in network.losses.items()}
    return {
        "num_images": {"train": len(network.views.mixed.train), "test": len(network.views.mixed.test)},
        "accuracy_after_training": {name: float(rows[-1]) for name, rows in run.accuracies.items()},
        "loss_after_training": {name: float(rows[-1]) for name, rows in run.losses.items()},
        "accuracies": {name: run.accuracies[name].tolist() for name in TASKS},  # per epoch, from 0
        "at_minimum": {
            name: {"loss": float(loss), "accuracy": accuracy} for name, (loss, accuracy) in evaluated.items()
        },
        "minimum": {
            "is_minimum": network.is_minimum,
            "note": network.note,
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


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Both circuits are learned."""
    final = {name: [row["accuracy_after_training"][name] for row in rows] for name in TASKS}
    before = {name: [row["accuracies"][name][0] for row in rows] for name in CUES}
    read = {name: [accuracy >= READ for accuracy in final[name]] for name in CUES}

    def text(values: list[float]) -> str:
        return mean_interval(values, scale="share")

    return [
        Claim(
            1,
            "the network learns both redundant cues",
            "a network trained on blends reads numbers alone and patterns alone",
            f"accuracy on held-out images after training {over_seeds(len(rows))}: mixed {text(final['mixed'])}, "
            f"number-only {text(final['number'])}, pattern-only {text(final['pattern'])}. At least "
            f"{100 * READ:.0f} % on numbers alone in {most_of(read['number'])}, on patterns alone in "
            f"{most_of(read['pattern'])}",
            f"chance, {100 * CHANCE:.0f} %; the same networks before training: number-only {text(before['number'])}, "
            f"pattern-only {text(before['pattern'])}",
            f"each cue alone is read with at least {100 * READ:.0f} % accuracy on held-out images, in more than half "
            "of the seeds; each cue is a part",
            judged(*(most(flags) for flags in read.values())),
        )
    ]
