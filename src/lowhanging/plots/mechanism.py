"""Inside one network that adds modulo p: what it embeds, what reaches the logits, where it attends, and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.circuits.fourier import CircleScores
from lowhanging.circuits.waves import LogitWaves, ProgressMeasures
from lowhanging.errors import a_type, argument_message
from lowhanging.plots.circles import circles
from lowhanging.plots.style import axes, blank_figure, check_kind, label_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEADS = 6  # at most, in one row
_EMBEDDED, _SPOKEN = "#0072B2", "#D55E00"
_CURVES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("loss", "loss in training", {"color": "0.45", "linestyle": "--"}),
    ("held_out_loss", "held-out loss", {"color": "0.1", "linewidth": 2.0}),
    ("restricted_loss", "restricted: key waves only", {"color": "#009E73"}),
    ("excluded_loss", "excluded: without them", {"color": "#D55E00"}),
)


def inside_network(
    embedding: Tensor, scores: CircleScores, waves: LogitWaves, *, attention: Tensor | None = None
) -> Figure:
    """A panel of one network: power of each frequency in embedding and logits, the circles, and attention.

    Args:
        embedding: (p, d), a row per number.
        scores: `lh.circuits.circle_score(embedding, planes="frequencies")`.
        waves: `lh.circuits.logit_waves(model, p)`.
        attention: (p, p, heads), what each head pays to a, for every a (down) and b (across), such as
            `model.attention(pairs)[..., 0].reshape(p, p, -1)`; None leaves that row out. Six heads are drawn at most.

    Returns:
        The figure; write it with `.savefig("inside.png")`.

    Raises:
        ValueError, TypeError: results that do not belong together, scores of planes of two columns.
    """
    check_kind("scores", scores, CircleScores, 'Pass lh.circuits.circle_score(embedding, planes="frequencies").')
    check_kind("waves", waves, LogitWaves, "Pass lh.circuits.logit_waves(model, p).")
    if scores.planes != "frequencies" or scores.score.shape != waves.shares.shape:
        received = f"are of {tuple(scores.score.shape)} planes of {scores.planes}, for waves of p = {waves.p}"
        remedy = 'Pass lh.circuits.circle_score(embedding, planes="frequencies") of the same network.'
        raise ValueError(argument_message("scores", received, f"({waves.p // 2},) planes of frequencies", remedy))
    maps = None if attention is None else _maps(attention, waves.p)
    rows = 2 if maps is None else 3
    figure = blank_figure(8.0, 2.7 * rows, 100)
    grid = figure.add_gridspec(rows, 1, height_ratios=[1.0, 0.85, 1.0][:rows])
    top = grid[0].subgridspec(1, 2)
    left, right = (figure.add_subplot(top[i]) for i in range(2))
    _bars(left, scores.share, scores.is_circle, "embedding's power, %", _EMBEDDED)
    _bars(right, waves.shares, waves.shares >= 0.05, "logits' variance, %", _SPOKEN)
    right.set_title(f"waves cos 2πf(a + b − c)/p: {100 * waves.total:.0f} % of it", fontsize="medium")
    num = int(scores.is_circle.sum())
    left.set_title(f"{num} circle{'s' * (num != 1)}", fontsize="medium")
    circles(embedding, scores, figure.add_subplot(grid[1]), columns=max(4, min(8, int(scores.is_circle.sum()))))
    if maps is not None:
        cells = grid[2].subgridspec(1, len(maps))
        boxes = [figure.add_subplot(cells[i]) for i in range(len(maps))]
        high = float(maps.max())
        for head, (ax, values) in enumerate(zip(boxes, maps, strict=True)):
            image = ax.imshow(values, cmap="viridis", vmin=0.0, vmax=high, interpolation="nearest")
            ax.set_title(f"head {head}", fontsize="medium")
            ax.set_xlabel("b")
            ax.set_ylabel("a" if head == 0 else "")
        figure.colorbar(image, ax=boxes, label="attention from = to a", shrink=0.8)
    return figure


def _bars(ax: Any, shares: Tensor, is_key: Tensor, label: str, color: str) -> None:
    """A bar per frequency, coloured and named where it is one that counts."""
    values, strong = 100 * shares.double().numpy(), is_key.numpy()
    frequencies = np.arange(1, len(values) + 1)
    ax.bar(frequencies, values, color=np.where(strong, color, "0.75"))
    for f, value in zip(frequencies[strong], values[strong], strict=True):
        ax.annotate(f"{f}", (f, value), ha="center", va="bottom", fontsize="small", color=color)
    ax.set(xlabel="frequency f", ylabel=label, ylim=(0, 1.15 * max(1.0, float(values.max()))))


def _maps(attention: Any, p: int) -> np.ndarray:
    """(heads, p, p), of the first heads."""
    shape = tuple(attention.shape) if isinstance(attention, Tensor) else a_type(attention)
    if not isinstance(attention, Tensor) or attention.ndim != 3 or attention.shape[:2] != (p, p):
        remedy = "Pass model.attention(pairs)[..., 0].reshape(p, p, -1), pairs in the order of a p + b."
        raise ValueError(argument_message("attention", f"is {shape}", f"a tensor ({p}, {p}, heads)", remedy))
    maps: np.ndarray = attention.detach().double().cpu().permute(2, 0, 1)[:_HEADS].numpy()
    return maps


def progress_measures(found: ProgressMeasures, ax: Axes | None = None) -> Axes:
    """Losses over training: as it is, on held-out pairs, with the key waves of the logits alone, and without them.

    Args:
        found: what `lh.circuits.progress_measures` returned.
        ax: where to draw; None makes a figure.
    """
    check_kind("found", found, ProgressMeasures, "Pass what lh.circuits.progress_measures returned.")
    ax = axes(ax)
    for name, label, look in _CURVES:
        curve = getattr(found, name)
        if curve is not None:
            ax.plot(found.steps.numpy(), curve.numpy(), label=label, **{"linewidth": 1.5, **look})
    chance = torch.tensor(float(found.p)).log().item()
    ax.axhline(chance, color="0.7", linewidth=0.8, zorder=0)
    ax.annotate("chance", (1.0, chance), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize="small")
    ax.set(xlabel="step", ylabel="loss, nats", yscale="log")
    label_log_axis(ax.yaxis)
    ax.set_title(f"key frequencies {', '.join(map(str, found.frequencies.tolist()))}", fontsize="medium")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return ax
