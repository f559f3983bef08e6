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
from lowhanging.plots.animation import film
from lowhanging.plots.style import axes, check_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPACING = 2.7  # between the centers of two drawn blocks, whose points reach out to 1
_RIGHT, _WRONG = "#D55E00", "#0072B2"


def circles(
    embedding: Tensor, scores: CircleScores, ax: Axes | None = None, *, radius: float | None = None, columns: int = 5
) -> Axes:
    """Every plane of an embedding, a point per number a, coloured by f a mod p: on a circle the colours go round once.

    Args:
        embedding: (p, d), as given to `lh.circuits.circle_score`.
        scores: what that returned; each block is labelled with its frequency f and its score.
        ax: where to draw; None makes a figure.
        radius: what is drawn as 1, in units of the embedding; by default the farthest point of all blocks.
        columns: blocks per row.

    Raises:
        ValueError, TypeError: an embedding that does not fit the scores.
    """
    check_kind("scores", scores, CircleScores, "Pass what lh.circuits.circle_score(embedding) returned.")
    check_count("columns", columns, remedy="Blocks per row, such as 5.")
    blocks = _blocks(embedding, scores)
    scale = (float(np.abs(blocks).max()) or 1.0) if radius is None else radius
    ax = axes(ax)
    num, p = len(blocks), blocks.shape[1]
    for j, points in enumerate(blocks):
        x, y = _SPACING * (j % columns), -_SPACING * 1.25 * (j // columns)
        f, score = int(scores.frequency[j]), float(scores.score[j])
        turns = (f * np.arange(p) % p) / p
        edge, weight = ("0.2", "bold") if score >= 0.75 else ("0.6", "normal")
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
    ax.set_xlabel(f"planes of the embedding (frequency, circle score),\n{p} numbers a coloured by f·a mod {p}")
    return ax


def circles_animation(
    embeddings: Tensor,
    scores: CircleScores,
    steps: Tensor | Sequence[int],
    *,
    columns: int = 5,
    milliseconds: int = 150,
    width: float = 7.0,
    height: float = 3.6,
) -> bytes:
    """Circles forming: an embedding at every logged step, on one scale, as a GIF that repeats.

    Args:
        embeddings: (logs, p, d), such as `run.snapshots["embedding"][i]`.
        scores: `lh.circuits.circle_score(embeddings)`.
        steps: (logs,) of the titles.
        columns: blocks per row.
        milliseconds: how long a frame stays; the last one stays three times as long.
        width: of the picture, in inches of 100 pixels.
        height: of the picture, in inches of 100 pixels.

    Returns:
        The GIF file as bytes.

    Raises:
        ValueError, TypeError: shapes that do not belong together.
    """
    check_kind("scores", scores, CircleScores, "Pass what lh.circuits.circle_score(embeddings) returned.")
    _check_logged("embeddings", embeddings, steps, "(logs, p, d)", 'Pass run.snapshots["embedding"][i].')
    check_count("milliseconds", milliseconds, minimum=20, remedy="150 is a good pace.")
    frames = [_frame(scores, i) for i in range(len(embeddings))]
    planes = embeddings.detach().double().reshape(*embeddings.shape[:2], -1, 2)
    radius = float((planes - planes.mean(1, keepdim=True)).abs().max()) or 1.0

    def paint(number: int, ax: Any) -> None:
        circles(embeddings[number], frames[number], ax, radius=radius, columns=columns)
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


def _blocks(embedding: Any, scores: CircleScores) -> np.ndarray:
    """(blocks, p, 2) points, centered."""
    num = scores.score.shape[-1]
    if _shape(embedding)[1:] != (2 * num,) or scores.score.ndim != 1:
        received = f"has shape {_shape(embedding)} for scores of shape {tuple(scores.score.shape)}"
        remedy = "Pass circle_score of the same embedding; of many, one at a time."
        raise ValueError(argument_message("embedding", received, f"(p, {2 * num})", remedy))
    planes = embedding.detach().double().cpu().reshape(len(embedding), num, 2)
    centered: np.ndarray = (planes - planes.mean(0)).permute(1, 0, 2).numpy()
    return centered


def _check_logged(argument: str, value: Any, steps: Any, expected: str, remedy: str) -> None:
    """An error if `value` has not one entry per step, or another number of axes than expected."""
    shape = _shape(value)
    if len(shape) != expected.count(",") + 1 or shape[0] != len(steps):
        raise ValueError(argument_message(argument, f"has shape {shape} for {len(steps)} steps", expected, remedy))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _frame(scores: CircleScores, i: int) -> CircleScores:
    return CircleScores(*(getattr(scores, name)[i] for name in scores.__dataclass_fields__))


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
