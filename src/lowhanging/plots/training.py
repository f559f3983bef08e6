"""Curves of a training run, and the images of the paired digits.

Training itself is dashed and grey and takes no colour, so that each data set has the colour that it has on slices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowhanging.datasets import PairedMNIST
from lowhanging.plots.style import Quantity, axes, check_kind, color_of, label_log_axis, rows_of, unit_of
from lowhanging.training.train import TrainingRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def training_run(run: TrainingRun, ax: Axes | None = None, *, quantity: Quantity | None = None) -> Axes:
    """One curve per data set against the epoch, its last value in the legend; "train" is dashed.

    Args:
        run: what `lh.train` returned.
        ax: where to draw; None makes a figure.
        quantity: "accuracy" in percent, or "loss" on a logarithmic axis; None draws accuracies where the run has them.

    Raises:
        ValueError, TypeError: accuracies are asked of a run that has none, or another kind of result.
    """
    check_kind("run", run, TrainingRun, "Pass what lh.train returned.")
    quantity = quantity or ("accuracy" if run.accuracies else "loss")
    rows = rows_of(run, quantity)
    ax = axes(ax)
    others = [name for name in rows if name != "train"]
    for name, row in rows.items():
        last = f"{float(row[-1]):.1f} %" if quantity == "accuracy" else f"{float(row[-1]):.3g}"
        look: dict[str, Any] = {"color": "0.45", "linewidth": 1.2, "linestyle": "--"}
        if name != "train":
            look = {"color": color_of(name, others.index(name)), "linewidth": 1.8}
        if len(row) < 4:  # a line through one point is nothing
            look |= {"marker": "o", "markersize": 4}
        ax.plot(run.epochs.numpy(), row.numpy(), label=f"{name} ({last})", **look)
    ax.set_xlabel("epoch (0 = before training)")
    if quantity == "loss":
        ax.set_yscale("log")
        label_log_axis(ax.yaxis)
    else:
        ax.set_ylim(0, 102)
    ax.set_ylabel(unit_of(quantity))
    ax.margins(x=0.02)
    ax.grid(alpha=0.3)
    ax.legend(title="data set (at the end)", loc="best")
    return ax


def paired_images(views: PairedMNIST, ax: Axes | None = None, *, num_images: int = 10) -> Axes:
    """The first test images in four rows: mixed, number-only, pattern-only, and conflicting cues.

    Args:
        views: what `lh.paired_mnist` returned.
        ax: where to draw; None makes a figure.
        num_images: images per row.
    """
    ax = axes(ax)
    shown = views.mixed.test.targets[:num_images].tolist()
    views_by_name: dict[str, Any] = {"mixed": views.mixed, "number": views.number, "pattern": views.pattern}
    rows = [view.test.inputs[:num_images, 0] for view in views_by_name.values()]
    rows.append(views.conflict.inputs[:num_images, 0])
    # White gaps, for black, grey and white all occur in the images: (4, num_images, 32, 32) -> (128, num_images * 32).
    tiles = torch.nn.functional.pad(torch.stack(rows), (2, 2, 2, 2), value=1.0)
    canvas = tiles.permute(0, 2, 1, 3).reshape(len(rows) * 32, -1)
    ax.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_yticks([16 + 32 * row for row in range(len(rows))], [*views_by_name, "conflict"])
    ax.set_xticks([16 + 32 * column for column in range(len(shown))], [str(label) for label in shown])
    ax.set_xlabel("label of number and pattern (conflict: of the number only);\na single cue is as dim as in the blend")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax
