"""Images that can be classified in two ways, by the number or by the pattern behind it.

Each image blends a handwritten number with a checked pattern of the same class. Patterns are few and the same ones
return in the test images, so that recognising a pattern is memorisation and recognising a number is generalisation.
The three views hold the same examples with both cues, the number alone or the pattern alone, so that one circuit's loss
can be measured without the other. A missing cue is black, not redrawn brighter: a single-cue image equals the mixed
image minus the other cue, pixel by pixel, and mixed = number + pattern holds exactly. Two further views resample the
other cue instead of blanking it: there it is another example's, and says nothing of the target.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lowhanging.datasets.examples import Examples
from lowhanging.datasets.mnist import MNIST, DigitImages, mnist
from lowhanging.datasets.resampling import ResampledExamples, derangement
from lowhanging.errors import (
    argument_message,
    check_count,
    check_real,
    door,
)

_SQUARES = 4  # squares per side of a pattern
_ENLARGE = 7  # pixels per side of a square: 4 * 7 = 28
_NUM_CODES = 2 ** (_SQUARES * _SQUARES) - 1  # patterns but the all-black one, which is no cue at all


@dataclass(frozen=True, repr=False, eq=False)
class PairedImages(Examples):
    """Images with one cue or two for the same class.

    Attributes:
        inputs: (n, 1, 28, 28) float32, grey values in [0, 1].
        targets: (n,) int64, the class, 0 to 9, of every cue that the image has.
        pattern_index: example i's pattern is `patterns[targets[i], pattern_index[i]]` of the PairedMNIST.
        has_number: whether the image shows the number.
        has_pattern: whether the image shows the pattern.
    """

    pattern_index: Tensor  # (n,) int64
    has_number: Tensor  # (n,) bool
    has_pattern: Tensor  # (n,) bool

    def __repr__(self) -> str:
        both = int((self.has_number & self.has_pattern).sum())
        number, pattern = int((~self.has_pattern).sum()), int((~self.has_number).sum())
        return f"PairedImages({len(self)} images: {both} mixed, {number} number only, {pattern} pattern only)"


@dataclass(frozen=True, eq=False)
class PairedView:
    """The training and the test images of one view: both cues, the number alone, or the pattern alone."""

    train: PairedImages
    test: PairedImages


@dataclass(frozen=True, eq=False)
class ResampledView:
    """The training and the test images of a view whose other cue is another example's of the same split."""

    train: ResampledExamples
    test: ResampledExamples


@dataclass(frozen=True, repr=False, eq=False)
class ConflictImages(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Test blends whose number and pattern have different labels: which cue does a network follow?

    A map-style Dataset whose item i is (inputs[i], number_targets[i], pattern_targets[i]). The loss of answering by
    the number is that of the data set (inputs, number_targets); `ConflictControl(loss, inputs, answers)`
    counts which cue is followed.

    Attributes:
        inputs: (1 - opacity) * number + opacity * pattern; number i is that of test example i of the views.
        number_targets: the number's class.
        pattern_targets: the pattern's class, uniform over the nine others.
        pattern_index: example i's pattern is `patterns[pattern_targets[i], pattern_index[i]]`.
    """

    inputs: Tensor  # (n, 1, 28, 28) float32
    number_targets: Tensor  # (n,) int64
    pattern_targets: Tensor  # (n,) int64
    pattern_index: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.inputs[index], self.number_targets[index], self.pattern_targets[index]

    @property
    def answers(self) -> dict[str, Tensor]:
        """Cue -> the class (n,) that it would have the network answer."""
        return {"number": self.number_targets, "pattern": self.pattern_targets}

    def __repr__(self) -> str:
        return f"ConflictImages({len(self)} images whose number and pattern differ in class)"


@dataclass(frozen=True, repr=False, eq=False)
class PairedMNIST:
    """Paired digits: three index-aligned views, the conflict images, and the settings that drew them.

    Example i of `mixed.train`, `number.train` and `pattern.train` has the same number and the same pattern; likewise
    for `.test`, whose number i is also that of `conflict`.

    Attributes:
        mixed: both cues; `mixed.train` has the asked shares of single-cue examples, marked in its `has_number` and
            `has_pattern`, and `mixed.test` has none.
        number: (1 - opacity) * number, the blend with black.
        pattern: opacity * pattern.
        number_resampled: blends of example i's number with another example's pattern; target = the number's class.
        pattern_resampled: blends of example i's pattern with another example's number; target = the pattern's class.
        conflict: test blends whose cues disagree.
        patterns: every pattern, 0 = black, 1 = white; row c is class c. All distinct, none wholly black.
        opacity, number_only, pattern_only, noise, flip, seed: as given to `paired_mnist`.
        source: where the digits came from.
    """

    mixed: PairedView
    number: PairedView
    pattern: PairedView
    conflict: ConflictImages
    patterns: Tensor  # (10, patterns_per_class, 4, 4) float32
    opacity: float
    number_only: float
    pattern_only: float
    noise: float
    flip: float
    seed: int
    source: str

    @cached_property
    def number_resampled(self) -> ResampledView:
        """The number's circuit alone can answer: the pattern shown is another example's."""
        return self._resampled(self.number, self.pattern)

    @cached_property
    def pattern_resampled(self) -> ResampledView:
        """The pattern's circuit alone can answer: the number shown is another example's."""
        return self._resampled(self.pattern, self.number)

    def _resampled(self, own: PairedView, other: PairedView) -> ResampledView:
        """Views made when they are asked for, with one permutation per split: both cues' views move alike."""
        splits = []
        pairs = ((own.train, other.train), (own.test, other.test))
        for (kept, moved), child in zip(pairs, np.random.SeedSequence(self.seed).spawn(9)[7:], strict=True):
            source = derangement(len(kept), np.random.default_rng(child))
            splits.append(ResampledExamples(kept.inputs + moved.inputs[source], kept.targets, source))
        return ResampledView(*splits)

    def __repr__(self) -> str:
        settings = ", ".join(
            f"{name}={getattr(self, name):g}" for name in ("opacity", "number_only", "pattern_only", "noise", "flip")
        )
        sizes = f"train={len(self.mixed.train)}, test={len(self.mixed.test)}"
        patterns = f"patterns_per_class={self.patterns.shape[1]}"
        return f"PairedMNIST({sizes}, {patterns}, {settings}, seed={self.seed}, source={self.source!r})"


@door
def paired_mnist(
    source: str | os.PathLike[str] | MNIST = "bundled",
    *,
    opacity: float = 0.5,
    patterns_per_class: int = 10,
    number_only: float = 0.2,
    pattern_only: float = 0.05,
    noise: float = 0.0,
    flip: float = 0.0,
    seed: int = 0,
) -> PairedMNIST:
    """Numbers blended with patterns of the same class, in three views that share their examples.

    image = (1 - opacity) * number + opacity * pattern

    A pattern is 4 x 4 random black or white squares, enlarged to 28 x 28 by repetition. Without a share of single-cue
    training examples the single cues are barely learned: the sum of the two is enough. Everything is drawn once, from
    generators of this call, one for each purpose: the patterns depend on `seed` and `patterns_per_class` alone, and
    turning noise on moves no other draw. The global random states are not touched.

    Args:
        source: what `mnist` takes, or an MNIST with both splits.
        opacity: weight of the pattern, in [0, 1].
        patterns_per_class: patterns of each class, 1 to 6,553; one of them for each example, uniformly.
        number_only: share of the training examples that show the number alone in `mixed.train`, in [0, 1].
        pattern_only: share of those that show the pattern alone; both shares together at most 1.
        noise: standard deviation, in grey values, of the Gaussian noise on the numbers' pixels before the blend;
            clipped to [0, 1]. Training views only, the same noise in all three. 0.2 in the original experiments.
        flip: probability that a square of a pattern turns to its opposite, for each example and square.
            Training views only. 0.05 in the original experiments.
        seed: the same seed gives the same patterns for any source, and the same images for the same source.

    Returns:
        PairedMNIST with `.mixed`, `.number`, `.pattern`, `.number_resampled`, `.pattern_resampled` (each `.train` and
        `.test`), `.conflict` and `.patterns`.

    Raises:
        ValueError: a share, opacity or probability out of range, more patterns than there are, or a source without
            training or test split.

    Cost:
        3.1 kB of memory per image and view: 60 MB for the bundled digits, 0.9 GB for the full set; the two resampled
        views are made when they are first asked for.

    Source:
        Vaintrob & Rimsky (2023), "The low-hanging fruit prior and sloped valleys in the loss landscape".
    """
    opacity = check_real("opacity", opacity, minimum=0, maximum=1, remedy="Pass the pattern's weight, such as 0.5.")
    remedy = "There are 65,535 patterns of 4 x 4 squares for ten classes. Pass a smaller count, such as 10."
    most = _NUM_CODES // 10
    patterns_per_class = check_count("patterns_per_class", patterns_per_class, maximum=most, remedy=remedy)
    remedy = "Pass a share of the training examples, such as 0.2."
    number_only = check_real("number_only", number_only, minimum=0, maximum=1, remedy=remedy)
    pattern_only = check_real("pattern_only", pattern_only, minimum=0, maximum=1, remedy=remedy)
    if number_only + pattern_only > 1 + 1e-9:
        received = f"and pattern_only add up to {number_only + pattern_only:g}"
        remedy = "Make one of the shares smaller."
        raise ValueError(argument_message("number_only", received, "at most 1 in all", remedy))
    noise = check_real("noise", noise, minimum=0, remedy="Pass a standard deviation in grey values, such as 0.2.")
    flip = check_real("flip", flip, minimum=0, maximum=1, remedy="Pass a probability per square, such as 0.05.")
    seed = check_count("seed", seed, minimum=0, remedy="Pass a whole number, such as 0.")
    digits = source if isinstance(source, MNIST) else mnist(source)
    # A generator for each purpose, so that no draw depends on how many numbers another one took.
    for_patterns, for_train, for_test, for_shares, for_conflict, for_noise, for_flip = map(
        np.random.default_rng, np.random.SeedSequence(seed).spawn(7)
    )
    patterns = _draw_patterns(for_patterns, patterns_per_class)  # (10, m, 4, 4)
    train = _cues(digits.train, patterns, for_train)
    test = _cues(digits.test, patterns, for_test)
    if noise > 0:
        normal = torch.from_numpy(for_noise.standard_normal(tuple(train.numbers.shape), dtype=np.float32))
        train = train._replace(numbers=normal.mul_(noise).add_(train.numbers).clamp_(0, 1))
    if flip > 0:
        is_flipped = torch.from_numpy(for_flip.random(tuple(train.squares.shape)) < flip)
        train = train._replace(squares=torch.where(is_flipped, 1 - train.squares, train.squares))
    order = torch.from_numpy(for_shares.permutation(len(digits.train)))
    num_number, num_pattern = round(number_only * len(order)), round(pattern_only * len(order))
    lacks_pattern, lacks_number = order[:num_number], order[num_number : num_number + num_pattern]

    train_views = _views(train, opacity, lacks_number, lacks_pattern)
    test_views = _views(test, opacity, order[:0], order[:0])
    mixed, number, pattern = (PairedView(*pair) for pair in zip(train_views, test_views, strict=True))
    return PairedMNIST(
        mixed=mixed, number=number, pattern=pattern, conflict=_conflict(test, patterns, opacity, for_conflict),
        patterns=patterns, opacity=opacity, number_only=number_only, pattern_only=pattern_only, noise=noise,
        flip=flip, seed=seed, source=digits.source,
    )  # fmt: skip


class _Cues(NamedTuple):
    """Examples before they are blended."""

    numbers: Tensor  # (n, 1, 28, 28) in [0, 1]
    squares: Tensor  # (n, 4, 4), 0 or 1
    targets: Tensor  # (n,)
    pattern_index: Tensor  # (n,)


def _draw_patterns(generator: np.random.Generator, patterns_per_class: int) -> Tensor:
    """Distinct patterns (10, patterns_per_class, 4, 4): distinct 16-bit codes, never 0, one bit per square."""
    codes = 1 + generator.choice(_NUM_CODES, size=10 * patterns_per_class, replace=False)
    bits = codes[:, None] >> np.arange(_SQUARES * _SQUARES) & 1  # (10 m, 16)
    return torch.from_numpy(bits.astype(np.float32)).reshape(10, patterns_per_class, _SQUARES, _SQUARES)


def _integers(generator: np.random.Generator, below: int, count: int) -> Tensor:
    return torch.from_numpy(generator.integers(below, size=count, dtype=np.int64))


def _cues(digits: DigitImages, patterns: Tensor, generator: np.random.Generator) -> _Cues:
    pattern_index = _integers(generator, patterns.shape[1], len(digits))
    return _Cues(digits.inputs, patterns[digits.targets, pattern_index], digits.targets, pattern_index)


def _enlarge(squares: Tensor) -> Tensor:
    """(n, 4, 4) -> (n, 1, 28, 28) by repetition."""
    return squares.repeat_interleave(_ENLARGE, 1).repeat_interleave(_ENLARGE, 2).unsqueeze(1)


def _views(
    cues: _Cues, opacity: float, lacks_number: Tensor, lacks_pattern: Tensor
) -> tuple[PairedImages, PairedImages, PairedImages]:
    """Views mixed, number and pattern; in the mixed one the rows `lacks_*` show one cue."""
    number = cues.numbers * (1 - opacity)
    pattern = _enlarge(cues.squares).mul_(opacity)
    mixed = number + pattern  # at most 1: the two weights round to a sum of exactly 1
    mixed[lacks_number] = pattern[lacks_number]
    mixed[lacks_pattern] = number[lacks_pattern]
    always, never = torch.ones(len(number), dtype=torch.bool), torch.zeros(len(number), dtype=torch.bool)
    has_number, has_pattern = always.clone(), always.clone()
    has_number[lacks_number] = False
    has_pattern[lacks_pattern] = False
    return (
        PairedImages(mixed, cues.targets, cues.pattern_index, has_number, has_pattern),
        PairedImages(number, cues.targets, cues.pattern_index, always, never),
        PairedImages(pattern, cues.targets, cues.pattern_index, never, always),
    )


def _conflict(cues: _Cues, patterns: Tensor, opacity: float, generator: np.random.Generator) -> ConflictImages:
    """Each number with a pattern of one of the nine other classes."""
    pattern_targets = (cues.targets + 1 + _integers(generator, 9, len(cues.targets))) % 10
    pattern_index = _integers(generator, patterns.shape[1], len(cues.targets))
    squares = patterns[pattern_targets, pattern_index]
    inputs = cues.numbers * (1 - opacity) + _enlarge(squares).mul_(opacity)
    return ConflictImages(inputs, cues.targets, pattern_targets, pattern_index)
