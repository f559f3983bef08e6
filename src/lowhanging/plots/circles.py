"""Planes of an embedding as circles, the Fourier power of its frequencies, and how well logits add up.

Circles are drawn on one scale, so that a plane that has shrunk to a point looks like one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.circuits.fourier import CircleScores
from lowhanging.circuits.logit_sum import LogitSum
from lowhanging.errors import argument_message, check_count
from lowhanging.plots.animation import Animation, film
from lowhanging.plots.style import axes, check_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPACING = 2.7  # between the centers of two drawn blocks, whose points reach out to 1
_RIGHT, _WRONG = "#D55E00", "#0072B2"


def circles(
    embedding: Tensor,
    scores: CircleScores,
    ax: Axes | None = None,
    *,
    frequencies: Sequence[int] | None = None,
    radius: float | None = None,
    columns: int = 5,
) -> Axes:
    """Planes of an embedding, a point per number a, coloured by f a mod p: on a circle the colours go round once.

    Of planes of two columns all are drawn; of those of frequencies the circles, by falling share of the power, and
    beside them the strongest of the others until a row is full. A circle of the latter kind begins with number 0 at
    angle 0.

    Args:
        embedding: (p, d), as given to `lh.circuits.circle_score` (in the order of the numbers).
        scores: what that returned; each plane is labelled with its frequency f and its score, bold if it is a circle.
        ax: where to draw; None makes a figure.
        frequencies: of planes of frequencies: which ones to draw instead.
        radius: what is drawn as 1, in units of the embedding; by default the farthest point of all planes drawn.
        columns: planes per row.

    Raises:
        ValueError, TypeError: an embedding that does not fit the scores.
    """
    check_kind("scores", scores, CircleScores, "Pass what lh.circuits.circle_score(embedding) returned.")
    check_count("columns", columns, remedy="Planes per row, such as 5.")
    index = _drawn(scores, frequencies, columns)
    blocks = scores.points(embedding, index).numpy()
    scale = (float(np.abs(blocks).max()) or 1.0) if radius is None else radius
    ax = axes(ax)
    num, p = len(blocks), blocks.shape[1]
    for j, points in enumerate(blocks):
        x, y = _SPACING * (j % columns), -_SPACING * 1.25 * (j // columns)
        f, score, is_circle = (field[index[j]].item() for field in (scores.frequency, scores.score, scores.is_circle))
        turns = (f * np.arange(p) % p) / p
        edge, weight = ("0.2", "bold") if is_circle else ("0.6", "normal")
        look: dict[str, Any] = {"cmap": "twilight", "vmin": 0, "vmax": 1, "s": 14, "linewidths": 0.4}
        ax.scatter(x + points[:, 0] / scale, y + points[:, 1] / scale, c=turns, edgecolors=edge, **look)
        name = f"f = {f}" if f else "no frequency"
        ax.text(x, y - 1.12, f"{name}, {score:.2f}", ha="center", va="top", fontsize="small", fontweight=weight)
    rows = -(-num // columns)
    ax.set_xlim(-1.35, _SPACING * (min(num, columns) - 1) + 1.35)
    ax.set_ylim(-_SPACING * 1.25 * (rows - 1) - 1.65, 1.25)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    which = "planes of the embedding" if scores.planes == "columns" else "a plane per frequency"
    ax.set_xlabel(f"{which} (frequency, circle score),\n{p} numbers a coloured by f·a mod {p}")
    return ax


def circles_animation(
    embeddings: Tensor,
    scores: CircleScores,
    steps: Tensor | Sequence[int],
    *,
    frequencies: Sequence[int] | None = None,
    columns: int = 5,
    milliseconds: int = 150,
    width: float = 7.0,
    height: float = 3.6,
) -> Animation:
    """Circles forming: an embedding at every logged step, on one scale, as a GIF that repeats.

    Args:
        embeddings: (logs, p, d), such as `run.snapshots["embedding"][i]`.
        scores: `lh.circuits.circle_score(embeddings)`.
        steps: (logs,) of the titles.
        frequencies: of planes of frequencies: which ones to draw; by default those that `circles` draws of the last.
        columns: planes per row.
        milliseconds: how long a frame stays; the last one stays three times as long.
        width: of the picture, in inches of 100 pixels.
        height: of the picture, in inches of 100 pixels.

    Returns:
        Animation, which a notebook shows; `.save("circles.gif")` writes it.

    Raises:
        ValueError, TypeError: shapes that do not belong together.
    """
    check_kind("scores", scores, CircleScores, "Pass what lh.circuits.circle_score(embeddings) returned.")
    _check_logged("embeddings", embeddings, steps, "(logs, p, d)", 'Pass run.snapshots["embedding"][i].')
    check_count("milliseconds", milliseconds, minimum=20, remedy="150 is a good pace.")
    frames = [scores[i] for i in range(len(embeddings))]
    index = _drawn(frames[-1], frequencies, columns)
    if scores.planes == "frequencies":
        frequencies = scores.frequency[-1][index].tolist()
    pairs = zip(embeddings, frames, strict=True)
    radius = max(float(frame.points(rows, index).abs().max()) for rows, frame in pairs) or 1.0

    def paint(number: int, ax: Any) -> None:
        frame = frames[number]
        circles(embeddings[number], frame, ax, frequencies=frequencies, radius=radius, columns=columns)
        ax.set_title(f"step {int(steps[number]):,}")

    return film(paint, len(frames), milliseconds=milliseconds, width=width, height=height)


def modes(shares: Tensor, steps: Tensor | Sequence[int], ax: Axes | None = None) -> Axes:
    """Fourier power over training: the share of each frequency at each logged step, as a heat map.

    Args:
        shares: (logs, p // 2), what `lh.circuits.fourier_modes` returned for logged embeddings (logs, p, d).
        steps: (logs,) ascending.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: shapes that do not belong together.
    """
    _check_logged("shares", shares, steps, "(logs, frequencies)", "Pass lh.circuits.fourier_modes(embeddings).")
    ax = axes(ax)
    times = torch.as_tensor(steps).double().numpy()
    frequencies, powers = np.arange(1, shares.shape[1] + 1), shares.double().T.numpy()
    mesh = ax.pcolormesh(times, frequencies, powers, shading="nearest", cmap="viridis", vmin=0.0)
    ax.figure.colorbar(mesh, ax=ax, label="share of the embedding's power")
    ax.set(xlabel="step", ylabel="frequency f (f and p − f are one)")
    return ax


def _drawn(scores: CircleScores, frequencies: Sequence[int] | None, columns: int) -> list[int]:
    """Which planes are drawn, in this order."""
    if scores.score.ndim != 1:
        received = f"are of {' × '.join(map(str, scores.score.shape[:-1]))} embeddings"
        raise ValueError(argument_message("scores", received, "those of one", "Of many, one at a time."))
    if scores.planes == "columns":
        if frequencies is not None:
            remedy = 'Leave it out, or pass circle_score(embedding, planes="frequencies").'
            received = f"is {list(frequencies)} for planes of two columns"
            raise ValueError(argument_message("frequencies", received, "None", remedy))
        return list(range(len(scores.score)))
    if frequencies is not None:
        most = len(scores.score)
        remedy = "Frequencies of the scores."
        return [check_count("an entry of frequencies", f, maximum=most, remedy=remedy) - 1 for f in frequencies]
    order = torch.where(scores.is_circle, 1 + scores.share, scores.share).argsort(descending=True, stable=True)
    num = int(scores.is_circle.sum())
    found: list[int] = order[: max(columns * -(-num // columns), columns)].tolist()
    return found


def _check_logged(argument: str, value: Any, steps: Any, expected: str, remedy: str) -> None:
    """An error if `value` has not one entry per step, or another number of axes than expected."""
    shape = _shape(value)
    if len(shape) != expected.count(",") + 1 or shape[0] != len(steps):
        raise ValueError(argument_message(argument, f"has shape {shape} for {len(steps)} steps", expected, remedy))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def logit_sum(found: LogitSum, ax: Axes | None = None) -> Axes:
    """A dot per held-out image and class: its logit with both cues against the fitted sum; the label's in red."""
    check_kind("found", found, LogitSum, "Pass what lh.circuits.logit_sum returned.")
    ax = axes(ax)
    is_label = torch.zeros_like(found.observed, dtype=torch.bool).scatter_(1, found.labels[:, None], True)
    for label, color, which in (("other classes", _WRONG, ~is_label), ("the label's class", _RIGHT, is_label)):
        fitted, observed = found.predicted[which].numpy(), found.observed[which].numpy()
        ax.plot(fitted, observed, ".", color=color, markersize=2.5, alpha=0.5, label=label, rasterized=True)
    together = torch.cat([found.observed, found.predicted])
    ends = [float(together.min()), float(together.max())]
    ax.plot(ends, ends, color="0.3", linewidth=1.0, linestyle="--", label="equal")
    both, within = 100 * found.shares["both"], 100 * found.within["both"]
    names = " + ".join(found.slopes)
    ax.set(xlabel=f"fitted sum of the logits on {names}, each alone", ylabel="logit on both cues")
    ax.set_title(f"{both:.1f} % of the variance, {within:.1f} % within labels", fontsize="medium")
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", fontsize="small", markerscale=4)
    return ax
