"""Training curves, and examples of the images that were trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowhanging.datasets import PairedMNIST
from lowhanging.errors import argument_message, check_choice
from lowhanging.plots.style import Quantity, axes, color_of, label_log_axis
from lowhanging.training.train import TrainingRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def training_run(run: TrainingRun, ax: Axes | None = None, *, quantity: Quantity | None = None) -> Axes:
    """One curve per data set against the epoch, its last value in the legend; "train" is dashed.

    Args:
        run: What `train` returned.
        ax: Where to draw; None makes a figure.
        quantity: "accuracy" in percent, or "loss" on a logarithmic axis; None draws accuracies where the run has them.

    Returns:
        The Axes. It is neither shown nor saved.

    Raises:
        ValueError: accuracies are asked of a run that has none.
    """
    quantity = quantity or ("accuracy" if run.accuracies else "loss")
    check_choice("quantity", quantity, ("accuracy", "loss"))
    rows = run.losses if quantity == "loss" else {name: 100 * row for name, row in run.accuracies.items()}
    if not rows:
        received = "is 'accuracy' for a run without class targets"
        raise ValueError(argument_message("quantity", received, "'loss'", 'Pass quantity="loss".'))
    ax = axes(ax)
    # "train" is grey and takes no colour, so that the others have the colours that they have on slices.
    places = {name: position for position, name in enumerate(name for name in rows if name != "train")}
    for name, row in rows.items():
        last = f"{float(row[-1]):.1f} %" if quantity == "accuracy" else f"{float(row[-1]):.3g}"
        color, width = ("0.45", 1.2) if name == "train" else (color_of(name, places[name]), 1.8)
        dashes = "--" if name == "train" else "-"
        # A run of few epochs would otherwise be an empty picture: a line through one point is nothing.
        marker = "o" if len(row) < 4 else None
        ax.plot(
            run.epochs.numpy(), row.numpy(), label=f"{name} ({last})", color=color, linestyle=dashes, linewidth=width,
            marker=marker, markersize=4,
        )  # fmt: skip
    ax.set_xlabel("epoch (0 = before training)")
    if quantity == "loss":
        ax.set_yscale("log")
        label_log_axis(ax.yaxis)
        ax.set_ylabel("mean loss")
    else:
        ax.set_ylabel("accuracy (%)")
        ax.set_ylim(0, 102)
    ax.margins(x=0.02)
    ax.grid(alpha=0.3)
    ax.legend(title="data set (at the end)", loc="best")
    return ax


def paired_images(views: PairedMNIST, ax: Axes | None = None, *, num_images: int = 10) -> Axes:
    """The first test images in four rows: mixed, number-only, pattern-only, and conflicting cues.

    Args:
        views: what `paired_mnist` returned.
        ax: where to draw; None makes a figure.
        num_images: images per row.

    Returns:
        The Axes. It is neither shown nor saved.
    """
    ax = axes(ax)
    sources: dict[str, Any] = {
        "mixed": views.mixed.test,
        "number": views.number.test,
        "pattern": views.pattern.test,
        "conflict": views.conflict,
    }
    # White gaps, for black, grey and white all occur in the images: (rows, n, 32, 32) -> (rows * 32, n * 32).
    tiles = torch.stack(
        [torch.nn.functional.pad(source.inputs[:num_images, 0], (2, 2, 2, 2), value=1.0) for source in sources.values()]
    )
    canvas = tiles.permute(0, 2, 1, 3).reshape(len(sources) * 32, -1)
    ax.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_yticks([16 + 32 * row for row in range(len(sources))], list(sources))
    ax.set_xticks(
        [16 + 32 * column for column in range(tiles.shape[1])],
        [str(int(t)) for t in views.mixed.test.targets[:num_images]],
    )
    ax.set_xlabel("label of number and pattern (conflict: of the number only);\na single cue is as dim as in the blend")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax
