"""How do the training curves look?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowhanging.errors import check_choice, explain
from lowhanging.plots.style import Quantity, axes, color_of, label_log_axis
from lowhanging.training import TrainingRun

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
        raise ValueError(explain("quantity", received, "'loss'", 'Pass quantity="loss".'))
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
