"""Frequencies in an embedding of the numbers modulo p, and how circular each of its planes is.

A Fourier circuit for a + b mod p embeds a as (cos(2 pi f a / p), sin(2 pi f a / p)), a circle walked f times. In an
embedding cut into planes each plane is tested for being such a circle, by one complex Fourier transform of x + i y. An
embedding that nobody cut has its circles in planes of its own: for each frequency the plane is taken in which the
embedding walks it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lowhanging.errors import (
    a_type,
    argument_message,
    check_choice,
    check_count,
    check_finite,
    check_real,
    warn,
)
from lowhanging.io import Saved
from lowhanging.landscape.recorder import TrainingRecord
from lowhanging.objective.checkpoints import opened

CIRCLE = (
    0.75  # circle score from which on a plane counts as a circle: an ellipse of axis ratio 0.27, or 3 / 4 of its power
)
_CHUNK = 2**23  # numbers in one block of draws of the null


@dataclass(frozen=True, eq=False, repr=False)
class CircleScores(Saved):
    """How circular each plane of an embedding is; every field but `planes` is (..., planes)."""

    score: Tensor  # (..., planes) share of the plane's power in the strongest signed frequency: 1 circle, 1/2 line
    concentration: Tensor  # (..., planes) share of the plane's power in that frequency and its opposite
    circularity: Tensor  # (..., planes) score / concentration: 1 circle, 1/2 line
    frequency: Tensor  # (..., planes) int64, 1 to p // 2; 0 where a plane is constant
    handedness: Tensor  # (..., planes) int64: +1 counterclockwise, -1 clockwise, 0 where it has none
    rms: Tensor  # (..., planes) root mean square distance from the plane's mean: the radius of a circle
    share: Tensor  # (..., planes) of the whole embedding's power, what the plane holds at its frequency
    chance: Tensor  # (..., planes) score without a circle: the null's median, of two columns half of 0.75
    is_circle: Tensor  # (..., planes) bool
    planes: str  # "columns" | "frequencies"

    def __getitem__(self, index: Any) -> CircleScores:
        """The scores of some embeddings: `scores[i]` of (seeds, logs, ...) are those of seed i; None adds an axis."""
        fields: dict[str, Any] = {name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **fields)

    def points(self, embedding: Tensor, index: Sequence[int] | None = None) -> Tensor:
        """The numbers in each plane of one embedding, without their mean.

        Args:
            embedding: (p, d), the one whose scores these are.
            index: which planes; None takes all.

        Returns:
            (planes, p, 2) float64; in planes of frequencies number 0 of a circle lies at angle 0, and the others follow
            counterclockwise.

        Raises:
            ValueError: an embedding that does not fit the scores, scores of several embeddings.
        """
        num, is_pairs = self.score.shape[-1], self.planes == "columns"
        shape = tuple(embedding.shape) if isinstance(embedding, Tensor) else ()
        is_other = len(shape) != 2 or (shape[1] != 2 * num if is_pairs else shape[0] // 2 != num)
        if self.score.ndim != 1 or is_other:
            expected = f"(p, {2 * num})" if is_pairs else f"({2 * num + 1}, d) or ({2 * num}, d)"
            received = f"has shape {shape} for scores of shape {tuple(self.score.shape)}"
            remedy = "Pass circle_score of the same embedding; of many, one at a time."
            raise ValueError(argument_message("embedding", received, expected, remedy))
        wanted = list(range(num)) if index is None else list(index)
        rows = embedding.detach().double().cpu()
        rows = rows - rows.mean(0)
        if is_pairs:
            return rows.reshape(len(rows), num, 2).permute(1, 0, 2)[wanted]
        axes = frequency_planes(rows, self.frequency[wanted].tolist())  # (planes, 2, d)
        return rows @ axes.mT

    def __repr__(self) -> str:
        circles, shape = int(self.is_circle.sum()), tuple(self.score.shape)
        what = "planes of two columns" if self.planes == "columns" else "planes of one frequency each"
        found = f"{circles} circle{'s' * (circles != 1)}"
        if len(shape) == 1 and circles:
            order = torch.where(self.is_circle, self.share, -1.0).argsort(descending=True)[:circles]
            found += ": " + ", ".join(f"f = {int(self.frequency[j])} ({float(self.score[j]):.2f})" for j in order)
        return f"CircleScores({' × '.join(map(str, shape))} {what}; {found})"


def circle_score(
    embedding: Tensor,
    *,
    planes: Literal["columns", "frequencies"] = "columns",
    order: Any | None = None,
    num_draws: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> CircleScores:
    r"""Share of each plane of an embedding that is one circle, walked at one frequency.

    With z_a = x_a + i y_a the points of a plane, without their mean, and Z_f = sum_a z_a exp(-2 pi i f a / p), the
    score is max_f |Z_f|^2 / sum_f |Z_f|^2 over f = 1 ... p - 1. It is unchanged by shift, scale, rotation and
    reflection; f and p - f are one frequency with opposite handedness. On paper:

    * a circle of one frequency: 1; a line walked at one frequency: exactly 1/2;
    * an ellipse of axis ratio r: (1 + r)^2 / (2 (1 + r^2));
    * two equally strong circles in one plane: 1/2;
    * a unit circle with Gaussian noise of standard deviation s per coordinate: on average about
      (1 + 2 s^2 / p) / (1 + 2 s^2 (p - 1) / p), the ratio of the mean powers.

    Which planes:

    * "columns": columns 2 j and 2 j + 1, as a `ModularMLP` in blocks has them. A score of 0.75 or more is called a
      circle: in trained networks it separates circles from the rest, and pure noise stays far below it where p is
      large (at p = 37 below 0.4, but at p = 7 one noise plane in 200 passes it).
    * "frequencies", for any embedding: for every f = 1 ... p // 2 the plane spanned by sum_a E_a cos(2 pi f a / p) and
      sum_a E_a sin(2 pi f a / p), of the whole embedding E. A rotation of R^d changes nothing. The plane is chosen for
      its frequency, so that noise scores high too (about d / (d + p) where d columns are independent): what a score
      means is read off the null, `num_draws` embeddings with the same rows dealt out to other numbers, and with them
      the same covariance. A frequency is called a circle where its score is at least 0.75 and higher than the highest
      of any frequency in all draws, and its share of the power is too; where nothing is, at most one embedding in
      num_draws + 1 is given any. Faint circles beside strong ones (less than some 7 to 12 percent of the power, as
      harmonics are) are none by the second rule; they are seen in `score`. Nor is anything at p = 7 or less, where
      random orders often are multiplications, which make circles of circles.

    The score is blind to size: a plane that weight decay has all but emptied may keep its shape, so look at `rms` and
    `share` beside it.

    Args:
        embedding: (..., p, d), a row per number 0 ... p - 1, such as `model.embedding` or a snapshot (s, logs, p, d).
            Leave rows of other tokens out: `model.embedding[:p]` of a transformer.
        planes: "columns" or "frequencies".
        order: (p,) integers, the rows that hold the numbers 0, 1, ..., p - 1, where the rows stand in another order or
            among those of other tokens.
        num_draws: of the null, for "frequencies".
        seed: of the draws; the global random state is not used.
        progress: a bar over embeddings; by default one appears when it takes more than two seconds.

    Returns:
        CircleScores, each field (..., d / 2) or (..., p // 2). A constant plane scores 0, of two columns at frequency
        0.

    Raises:
        ValueError, TypeError: an odd d for planes of two columns, p below 3, NaN or inf, an order that is none.

    Warns:
        UserWarning: planes of two columns hold no circle, where the planes of frequencies do.

    Cost:
        "columns": O(p log p) per plane; "frequencies": O(num_draws p^2 d) per embedding, a few milliseconds for p = 53
        and d = 64.

    Source:
        Parseval's identity: the ellipse cos t + i r sin t is ((1 + r) e^{it} + (1 - r) e^{-it}) / 2. Phipson & Smyth
        (2010), "Permutation p-values should never be zero", for the level of the highest of all draws.
    """
    check_choice("planes", planes, ("columns", "frequencies"))
    num_draws = check_count("num_draws", num_draws, remedy="100 draws call a circle at the level 1 / 101.")
    seed = check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    rows = _embedding(embedding, order)
    if planes == "frequencies":
        return _scores_of_frequencies(rows, num_draws, seed, progress)
    found = _scores_of_columns(rows)
    _warn_if_planes_lie_elsewhere(rows, found, num_draws, seed)
    return found


def _scores_of_columns(rows: Tensor) -> CircleScores:
    p, width = rows.shape[-2:]
    if width % 2:
        remedy = 'Pass planes="frequencies", which needs no blocks, or cut off a column.'
        raise ValueError(argument_message("embedding", f"has {width} columns", "an even number, two per block", remedy))
    points = rows.reshape(*rows.shape[:-1], width // 2, 2)
    z = torch.complex(points[..., 0], points[..., 1])  # (..., p, planes)
    z = z - z.mean(-2, keepdim=True)
    power = torch.fft.fft(z, dim=-2).abs().square()[..., 1:, :]  # (..., p - 1, planes), frequencies 1 ... p - 1
    total = power.sum(-2)
    # What is left of a constant block is rounding of its mean.
    scale = points.abs().amax(dim=(-3, -1))
    is_flat = total <= (p * torch.finfo(torch.float64).eps * scale).square() * p
    best, index = power.max(-2)
    signed = index + 1
    opposite = power.gather(-2, (p - 2 - index).unsqueeze(-2)).squeeze(-2)  # of p - signed
    is_own = 2 * signed == p  # p even: half the sampling rate is its own opposite, and has no sense of rotation
    both = torch.where(is_own, best, best + opposite)
    score = torch.where(is_own, 0.5 * best, best) / total
    handedness = torch.where(is_own, 0, torch.where(2 * signed < p, 1, -1))
    # A line walks both ways equally: rounding decides which is "best", and it has no handedness.
    is_line = (best - opposite).abs() <= 1e-9 * best
    zero, none = torch.zeros_like(score), torch.zeros_like(signed)
    score = torch.where(is_flat, zero, score)
    return CircleScores(
        score=score, concentration=torch.where(is_flat, zero, both / total),
        circularity=torch.where(is_flat, zero, score * total / both),
        frequency=torch.where(is_flat, none, torch.minimum(signed, p - signed)),
        handedness=torch.where(is_flat | is_line, none, handedness), rms=z.abs().square().mean(-2).sqrt(),
        share=torch.where(is_flat, zero, both / total.sum(-1, keepdim=True)),
        chance=torch.full_like(score, CIRCLE / 2), is_circle=score >= CIRCLE, planes="columns",
    )  # fmt: skip


def _scores_of_frequencies(rows: Tensor, num_draws: int, seed: int, progress: bool | None) -> CircleScores:
    p = rows.shape[-2]
    permuted = _Permuted(p, num_draws, seed)
    many = rows.reshape(-1, *rows.shape[-2:])
    fields: dict[str, list[Tensor]] = {}
    bar = tqdm(
        many, desc="circles", unit="embedding", disable=progress is False, delay=2.0 if progress is None else 0.0
    )
    frequency = torch.arange(1, p // 2 + 1)
    for each in bar:
        X = each - each.mean(0)
        gram = X.T @ X
        found = _planes_of(*_waves(X), gram, p)
        floor = (p * torch.finfo(torch.float64).eps * each.abs().max()).square() * p
        is_flat = bool(gram.trace() <= floor)
        if is_flat:
            found = {name: torch.zeros_like(value) for name, value in found.items()}
        scores, shares = (0.0, 0.0), (0.0, 0.0)
        if not is_flat:
            null = [_planes_of(*waves, gram, p) for waves in permuted.waves(X)]
            drawn, held = (torch.cat([part[name] for part in null]) for name in ("score", "share"))
            scores, shares = (float(drawn.median()), float(drawn.max())), (0.0, float(held.max()))
        is_circle = (found["score"] >= CIRCLE) & (found["score"] > scores[1]) & (found["share"] > shares[1])
        found |= {"chance": torch.full_like(found["score"], scores[0]), "is_circle": is_circle}
        for name, value in found.items():
            fields.setdefault(name, []).append(value)
    shape = (*rows.shape[:-2], p // 2)
    tensors = {name: torch.stack(values).reshape(shape) for name, values in fields.items()}
    frequencies = frequency.expand(shape).clone()
    return CircleScores(
        **tensors, frequency=frequencies, handedness=torch.zeros_like(frequencies), planes="frequencies"
    )


class _Permuted:
    """Cosines and sines of the numbers, dealt out to the rows in `num` random orders that all embeddings share."""

    def __init__(self, p: int, num: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self._orders = torch.stack([torch.randperm(p, generator=generator) for _ in range(num)])
        self._p = p
        self._kept = list(self._tables()) if num * p * p <= 2 * _CHUNK else None

    def waves(self, X: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(draws, p // 2, d) sums of X times cosine and sine, in parts."""
        for cosine, sine in self._kept or self._tables():
            yield cosine @ X, sine @ X

    def _tables(self) -> Iterator[tuple[Tensor, Tensor]]:
        cosine, sine = _tables(self._p)
        for orders in torch.split(self._orders, max(1, _CHUNK // (self._p * self._p))):
            yield cosine[:, orders].transpose(0, 1).contiguous(), sine[:, orders].transpose(0, 1).contiguous()


def _tables(p: int) -> tuple[Tensor, Tensor]:
    """(p // 2, p) float64 cosines and sines of 2 pi f a / p."""
    turns = torch.arange(1, p // 2 + 1)[:, None] * torch.arange(p) % p  # reduced as integers: no rounding at large f
    angle = 2 * math.pi / p * turns.double()
    sine = angle.sin()
    sine[2 * turns == p] = 0.0
    return angle.cos(), sine


def _waves(X: Tensor) -> tuple[Tensor, Tensor]:
    """(p // 2, d) sums over the numbers of X (p, d) times cosine and sine."""
    cosine, sine = _tables(len(X))
    return cosine @ X, sine @ X


def _planes_of(cosine: Tensor, sine: Tensor, gram: Tensor, p: int) -> dict[str, Tensor]:
    """Each (..., p // 2): what the plane of each frequency holds; waves (..., p // 2, d), gram (d, d) of the rows.

    The plane's axes are those of the ellipse that the embedding walks in it at this frequency.
    """
    a, b, c = cosine.square().sum(-1), sine.square().sum(-1), (cosine * sine).sum(-1)
    spread = (((a - b) / 2).square() + c.square()).sqrt()
    large, small = (a + b) / 2 + spread, ((a + b) / 2 - spread).clamp_min(0)  # squared lengths of the axes
    turn = torch.atan2(2 * c, a - b)[..., None] / 2
    axes = turn.cos() * cosine + turn.sin() * sine, turn.cos() * sine - turn.sin() * cosine
    first, second = (
        ((axis @ gram) * axis).sum(-1) / length.clamp_min(1e-300)
        for axis, length in zip(axes, (large, small), strict=True)
    )
    held = first + torch.where(small <= 1e-20 * large, 0.0, second)  # of a line the second axis is rounding
    weight = torch.full((p // 2,), 2 / p, dtype=gram.dtype)
    if p % 2 == 0:
        weight[-1] = 1 / p  # the cosine of half the sampling rate is 1 or -1
    power, rotating = weight * (large + small), weight * (large.sqrt() + small.sqrt()).square() / 2
    return {
        "score": rotating / held, "concentration": power / held, "circularity": rotating / power,
        "rms": (held / p).sqrt(), "share": power / gram.trace(),
    }  # fmt: skip


def _warn_if_planes_lie_elsewhere(rows: Tensor, found: CircleScores, num_draws: int, seed: int) -> None:
    """A warning where the last embedding holds circles, and none of them in a plane of two columns."""
    last, p = rows.reshape(-1, *rows.shape[-2:])[-1], rows.shape[-2]
    if last.shape[1] == 2 or bool(found.is_circle.reshape(-1, found.is_circle.shape[-1])[-1].any()):
        return
    X = last - last.mean(0)
    if not bool((_planes_of(*_waves(X), X.T @ X, p)["score"] >= CIRCLE).any()):
        return  # no draws are needed to see that
    there = _scores_of_frequencies(last[None], num_draws, seed, False)
    if bool(there.is_circle.any()):
        circles = there.frequency[there.is_circle].tolist()
        received = f"holds no circle in its planes of two columns, but circles of the frequencies {circles} in others"
        message = argument_message(
            "embedding", received, "columns in pairs, a plane each", 'Pass planes="frequencies".'
        )
        warn(message)


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


def frequency_planes(embedding: Tensor, frequencies: Iterable[int]) -> Tensor:
    r"""Axes of the planes in which an embedding walks some frequencies.

    With M (2, d) the rows sum_a E_a cos(2 pi f a / p) and sum_a E_a sin(2 pi f a / p), the axes are (M M^T)^(-1/2) M,
    the orthonormal rows nearest to M's directions: of a circle, number 0 lies at angle 0 and the others follow
    counterclockwise, so that pictures of one circle at several times can be compared.

    Args:
        embedding: (p, d), a row per number, d at least 2.
        frequencies: from 1 to p // 2 (of an even p, below it), such as those of `circle_score`.

    Returns:
        (k, 2, d) float64; (embedding - embedding.mean(0)) @ axes[j].T are the points (p, 2) of plane j.

    Raises:
        ValueError, TypeError: as `circle_score`; a frequency out of range.
    """
    rows = _embedding(embedding)
    p = rows.shape[-2]
    if rows.ndim != 2 or rows.shape[1] < 2:
        received = f"has shape {tuple(rows.shape)}"
        raise ValueError(argument_message("embedding", received, "(p, d) with d of at least 2", "Pass one of several."))
    remedy = "Frequencies of a number modulo p, 1 to (p - 1) // 2."
    wanted = [check_count("an entry of frequencies", f, maximum=(p - 1) // 2, remedy=remedy) for f in frequencies]
    cosine, sine = _waves(rows - rows.mean(0))
    index = torch.tensor(wanted, dtype=torch.int64) - 1
    U, _, Vh = torch.linalg.svd(torch.stack([cosine[index], sine[index]], 1), full_matrices=False)
    axes: Tensor = U @ Vh
    return axes


def logged_embeddings(checkpoints: Iterable[Any] | TrainingRecord, name: str = "embedding") -> Tensor:
    """The embeddings of a training of one's own, from whatever was kept of it.

    Args:
        checkpoints: a `TrainingRecord`, or one per log, in their order: each an embedding (rows, d), a `state_dict`, a
            module, or a file that `torch.save` wrote of one of these tensors or state dicts. A dict may hold the state
            dict among other things, such as the step.
        name: of the embedding in state dicts and modules, such as "embed.weight".

    Returns:
        (logs, rows, d), copies on the CPU, for `circle_score`.

    Raises:
        ValueError, TypeError: nothing of that name (the message lists the names), shapes that differ, no checkpoint.
        DamagedFileError: a file that is cut short, changed, or of another kind.
        FileNotFoundError: of a file that isn't there.

    Cost:
        reads one file at a time; files are loaded with `weights_only=True`.
    """
    remedy = 'Pass a list of tensors, state dicts, modules or files: logged_embeddings(paths, "embed.weight").'
    if isinstance(checkpoints, TrainingRecord):
        checkpoints = map(checkpoints.state_dict, range(checkpoints.num_checkpoints))
    if isinstance(checkpoints, str | Path | Mapping) or not isinstance(checkpoints, Iterable):
        raise TypeError(argument_message("checkpoints", f"is {a_type(checkpoints)}", "several checkpoints", remedy))
    found = [_embedding_in(each, name, i) for i, each in enumerate(checkpoints)]
    shapes = {tuple(each.shape) for each in found}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        received = f"hold embeddings of shapes {sorted(shapes)}" if shapes else "are none"
        raise ValueError(argument_message("checkpoints", received, "at least one, all of one shape (rows, d)", remedy))
    return torch.stack(found)


def _embedding_in(checkpoint: Any, name: str, i: int) -> Tensor:
    """One embedding, a copy."""
    label, checkpoint = opened(f"checkpoints[{i}]", checkpoint)
    if isinstance(checkpoint, nn.Module):
        checkpoint = dict(checkpoint.named_parameters(remove_duplicate=False)) | dict(checkpoint.named_buffers())
    if isinstance(checkpoint, Mapping):
        if not isinstance(checkpoint.get(name), Tensor):
            matrices = [key for key, value in checkpoint.items() if isinstance(value, Tensor) and value.ndim == 2]
            names = matrices or [key for key, value in checkpoint.items() if isinstance(value, Mapping)]
            received = f"holds no tensor {name!r}"
            raise ValueError(argument_message(label, received, f"one of {names}", "Pass its name as the second one."))
        checkpoint = checkpoint[name]
    if not isinstance(checkpoint, Tensor):
        expected = "a tensor, a state dict, a module or a file"
        raise TypeError(argument_message(label, f"is {a_type(checkpoint)}", expected, "See the second argument."))
    return checkpoint.detach().cpu().clone()


def _embedding(embedding: Tensor, order: Any | None = None) -> Tensor:
    """(..., p, d) float64, or an error."""
    remedy = "Pass a row per number, such as model.embedding[:p]."
    if not isinstance(embedding, Tensor) or not embedding.is_floating_point():
        kind = embedding.dtype if isinstance(embedding, Tensor) else type(embedding).__name__
        if isinstance(embedding, list | tuple):
            remedy = "Of logged embeddings, state dicts or files, pass lh.circuits.logged_embeddings(them)."
        raise TypeError(argument_message("embedding", f"is {kind}", "a floating-point tensor (..., p, d)", remedy))
    rows = embedding.detach().cpu()
    if order is not None and rows.ndim >= 2:
        rows = rows.index_select(-2, _order(order, rows.shape[-2]))
    if rows.ndim < 2 or rows.shape[-2] < 3 or not rows.numel():
        received = f"has shape {tuple(rows.shape)}"
        raise ValueError(argument_message("embedding", received, "(..., p, d) with p of at least 3", remedy))
    check_finite("embedding", rows, remedy="Train with a smaller step.")
    return rows.double()


def _order(order: Any, num_rows: int) -> Tensor:
    """(p,) int64 rows of the numbers 0, 1, ..., p - 1, or an error."""
    remedy = "Pass the rows of the numbers 0, 1, ..., p - 1, such as tokenizer.convert_tokens_to_ids(numbers)."
    given = order.tolist() if isinstance(order, Tensor) else order
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(argument_message("order", f"is {a_type(order)}", "several integers", remedy))
    listed = [check_count("an entry of order", row, minimum=0, maximum=num_rows - 1, remedy=remedy) for row in given]
    if len(set(listed)) != len(listed):
        received = f"has {len(listed)} entries, {len(set(listed))} of them different"
        raise ValueError(argument_message("order", received, "a row of its own for each number", remedy))
    return torch.tensor(listed)
