"""Frequencies in an embedding of the numbers modulo p, and how circular each of its planes is.

A Fourier circuit for a + b mod p embeds a as (cos(2 pi f a / p), sin(2 pi f a / p)), a circle walked f times. In an
embedding cut into planes each plane is tested for being such a circle, by one complex Fourier transform of x + i y;
without planes, power is summed over all coordinates and a circuit is a frequency that holds much of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowhanging.errors import argument_message, check_finite, check_real
from lowhanging.io import Saved


@dataclass(frozen=True, eq=False, repr=False)
class CircleScores(Saved):
    """How circular each plane of an embedding is; every field is (..., blocks)."""

    score: Tensor  # (..., blocks) share of the power in the strongest signed frequency: 1 circle, 1/2 line
    concentration: Tensor  # (..., blocks) share of the power in that frequency and its opposite
    circularity: Tensor  # (..., blocks) score / concentration: 1 circle, 1/2 line
    frequency: Tensor  # (..., blocks) int64, 1 to p // 2; 0 where a block is constant
    handedness: Tensor  # (..., blocks) int64: +1 counterclockwise, -1 clockwise, 0 where it has none
    rms: Tensor  # (..., blocks) root mean square distance from the block's mean: the radius of a circle

    def __repr__(self) -> str:
        circles = int((self.score >= 0.75).sum())
        return f"CircleScores({tuple(self.score.shape)} blocks, {circles} with a score of at least 0.75)"


def circle_score(embedding: Tensor) -> CircleScores:
    r"""Share of each plane of an embedding that is one circle, walked at one frequency.

    With z_a = x_a + i y_a, without its mean, and Z_f = sum_a z_a exp(-2 pi i f a / p), the score is
    max_f |Z_f|^2 / sum_f |Z_f|^2 over f = 1 ... p - 1. It is unchanged by shift, scale, rotation and reflection;
    f and p - f are one frequency with opposite handedness. On paper:

    * a circle of one frequency: 1; a line walked at one frequency: exactly 1/2;
    * an ellipse of axis ratio r: (1 + r)^2 / (2 (1 + r^2));
    * two equally strong circles in one plane: 1/2;
    * a unit circle with Gaussian noise of standard deviation s per coordinate: on average about
      (1 + 2 s^2 / p) / (1 + 2 s^2 (p - 1) / p), the ratio of the mean powers.

    A threshold of 0.75 separates circles from the rest in trained networks; pure noise stays far below it where p is
    large (at p = 37 below 0.4, but at p = 7 one noise plane in 200 passes it). The score is blind to size: a plane that
    weight decay has all but emptied may keep its shape, so look at `rms` beside it.

    Args:
        embedding: (..., p, d), a row per number 0 ... p - 1, such as `model.embedding` or a snapshot (s, logs, p, d).
            Leave rows of other tokens out: `model.embedding[:p]` of a transformer.

    Returns:
        CircleScores, each field (..., d / 2). A constant block scores 0 at frequency 0.

    Raises:
        ValueError, TypeError: an odd d, p below 3, NaN or inf.

    Cost:
        O(p log p) per block.

    Source:
        Parseval's identity: the ellipse cos t + i r sin t is ((1 + r) e^{it} + (1 - r) e^{-it}) / 2.
    """
    rows = _embedding(embedding)
    p, width = rows.shape[-2:]
    if width % 2:
        remedy = "Cut off a column, or use key_frequencies, which needs no blocks."
        raise ValueError(argument_message("embedding", f"has {width} columns", "an even number, two per block", remedy))
    planes = rows.reshape(*rows.shape[:-1], width // 2, 2)
    z = torch.complex(planes[..., 0], planes[..., 1])  # (..., p, blocks)
    z = z - z.mean(-2, keepdim=True)
    power = torch.fft.fft(z, dim=-2).abs().square()[..., 1:, :]  # (..., p - 1, blocks), frequencies 1 ... p - 1
    total = power.sum(-2)
    # What is left of a constant block is rounding of its mean.
    scale = planes.abs().amax(dim=(-3, -1))
    is_flat = total <= (p * torch.finfo(torch.float64).eps * scale).square() * p
    best, index = power.max(-2)
    signed = index + 1
    opposite = power.gather(-2, (p - 2 - index).unsqueeze(-2)).squeeze(-2)  # of p - signed
    is_own = 2 * signed == p  # p even: half the sampling rate is its own opposite, and has no sense of rotation
    concentration = torch.where(is_own, best, best + opposite) / total
    score = torch.where(is_own, 0.5 * best, best) / total
    handedness = torch.where(is_own, 0, torch.where(2 * signed < p, 1, -1))
    # A line walks both ways equally: rounding decides which is "best", and it has no handedness.
    is_line = (best - opposite).abs() <= 1e-9 * best
    zero, none = torch.zeros_like(score), torch.zeros_like(signed)
    return CircleScores(
        score=torch.where(is_flat, zero, score), concentration=torch.where(is_flat, zero, concentration),
        circularity=torch.where(is_flat, zero, score / concentration),
        frequency=torch.where(is_flat, none, torch.minimum(signed, p - signed)),
        handedness=torch.where(is_flat | is_line, none, handedness), rms=(z.abs().square().mean(-2)).sqrt(),
    )  # fmt: skip


def fourier_modes(embedding: Tensor) -> Tensor:
    r"""Share of an embedding's power at each frequency, over all coordinates.

    P_f = sum over coordinates of |F_f|^2 + |F_{p-f}|^2, F the discrete Fourier transform along the numbers, as a share
    of the power at all frequencies but 0 (the mean is no circuit).

    Args:
        embedding: (..., p, d), a row per number.

    Returns:
        (..., p // 2) float64 shares of the frequencies 1 ... p // 2; they sum to 1 (all 0 for a constant embedding).

    Raises:
        ValueError, TypeError: p below 3, NaN or inf.
    """
    rows = _embedding(embedding)
    p = rows.shape[-2]
    power = torch.fft.fft(rows, dim=-2).abs().square().sum(-1)[..., 1:]  # (..., p - 1)
    half = p // 2
    folded = power[..., :half] + power.flip(-1)[..., :half]
    if p % 2 == 0:
        folded[..., -1] = power[..., half - 1]
    total = folded.sum(-1, keepdim=True)
    scale = (p * torch.finfo(torch.float64).eps * rows.abs().amax(dim=(-2, -1))).square()[..., None] * p
    return torch.where(total > scale, folded / total, torch.zeros_like(folded))


def key_frequencies(embedding: Tensor, threshold: float = 0.1) -> Tensor | list[Tensor]:
    """Frequencies that hold at least a share `threshold` of an embedding's power, the strongest first.

    Args:
        embedding: (p, d), or (s, p, d) for s of them.
        threshold: share of the power at all frequencies but 0, in (0, 1].

    Returns:
        (k,) int64, or a list of s of them.

    Raises:
        ValueError, TypeError: as `fourier_modes`, or a threshold out of range.
    """
    check_real("threshold", threshold, minimum=0.0, remedy="A share of the power, such as 0.1.", exclusive=True)
    shares = fourier_modes(embedding)
    if shares.ndim > 2:
        received = f"has shape {tuple(embedding.shape)}"
        remedy = "Flatten the first dimensions, or use fourier_modes, which takes any."
        raise ValueError(argument_message("embedding", received, "(p, d) or (s, p, d)", remedy))
    found = []
    for row in shares.reshape(-1, shares.shape[-1]):
        order = row.argsort(descending=True, stable=True)
        found.append(order[row[order] >= threshold] + 1)
    return found[0] if shares.ndim == 1 else found


def _embedding(embedding: Tensor) -> Tensor:
    """(..., p, d) float64, or an error."""
    remedy = "Pass a row per number, such as model.embedding[:p]."
    if not isinstance(embedding, Tensor) or not embedding.is_floating_point():
        kind = embedding.dtype if isinstance(embedding, Tensor) else type(embedding).__name__
        raise TypeError(argument_message("embedding", f"is {kind}", "a floating-point tensor (..., p, d)", remedy))
    if embedding.ndim < 2 or embedding.shape[-2] < 3 or not embedding.numel():
        received = f"has shape {tuple(embedding.shape)}"
        raise ValueError(argument_message("embedding", received, "(..., p, d) with p of at least 3", remedy))
    check_finite("embedding", embedding.detach(), remedy="Train with a smaller step.")
    return embedding.detach().double()
