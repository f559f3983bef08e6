"""Images that show every cue in a channel of its own: mixed, one cue alone, the others resampled, or in conflict.

In the blends of `paired_mnist` two cues share their pixels, and a weight on a pixel reads both. Here a weight on a
channel reads one cue and no other, which is what makes an ablation exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lowhanging.datasets import MNIST, DigitImages, PairedMNIST, paired_mnist

Split = Literal["train", "test"]
CROP = slice(7, 21)  # rows and columns of the central 14 x 14 pixels of 28 x 28
_ENLARGE = 7  # pixels per side of a square of a pattern, as in paired_mnist
_FOR_MARKS, _FOR_LABELS = 1, 2  # what is drawn here, of a views' seed


@dataclass(frozen=True, eq=False)
class Cue:
    """One cue of all examples, and where training shows it."""

    train: Tensor  # (n, 1, 28, 28)
    test: Tensor  # (m, 1, 28, 28)
    is_shown: Tensor  # (n,) bool, in the mixed training images
    conflict: Tensor  # (m, 1, 28, 28), held-out
    answers: Tensor  # (m,) int64, what this cue says of the conflict images


@dataclass(frozen=True, eq=False)
class ChannelImages:
    """Name of a loss -> (inputs, targets), for training and held-out; and the conflict images."""

    train: dict[str, tuple[Tensor, Tensor]]
    test: dict[str, tuple[Tensor, Tensor]]
    conflict: tuple[Tensor, dict[str, Tensor]] | None


def two_channels(views: PairedMNIST) -> ChannelImages:
    """The number in channel 0, the pattern in channel 1; the other one resampled by the permutation of the views."""
    sources = {split: [getattr(views.number_resampled, split).source] for split in ("train", "test")}
    return _joined(views, {"number": _number(views), "pattern": _pattern(views)}, sources)


def three_channels(views: PairedMNIST) -> ChannelImages:
    """Number, pattern, and a mark: a second pattern of the same class, from a set of its own.

    A training image that shows a single cue in the views shows it here, without the mark; of the others, a share of
    `views.pattern_only` shows the mark alone. Where two cues are resampled, they come from two different permutations.
    """
    mixed = views.mixed.train
    marks = _marks(views)
    is_joint = mixed.has_number & mixed.has_pattern
    is_mark_only = is_joint & ~marks.mixed.train.has_number
    conflict = views.conflict
    # The remaining eight classes: the k-th after the number's, with a gap at the pattern's.
    generator = np.random.default_rng([views.seed, _FOR_LABELS])
    step = 1 + torch.from_numpy(generator.integers(8, size=len(conflict), dtype=np.int64))
    step += step >= (conflict.pattern_targets - conflict.number_targets) % 10
    answers = (conflict.number_targets + step) % 10
    index = torch.from_numpy(generator.integers(marks.patterns.shape[1], size=len(conflict), dtype=np.int64))
    shown = views.opacity * _enlarged(marks.patterns[answers, index])
    mark = Cue(marks.pattern.train.inputs, marks.pattern.test.inputs, is_joint, shown, answers)
    cues = {"number": _number(views, but=is_mark_only), "pattern": _pattern(views, but=is_mark_only), "mark": mark}
    sources = {
        split: [getattr(view.number_resampled, split).source for view in (views, marks)] for split in ("train", "test")
    }
    return _joined(views, cues, sources)


def crop_and_rest(views: PairedMNIST) -> ChannelImages:
    """The number alone, in one channel, whose central 14 x 14 pixels are a cue, and so are the rest of them.

    The training images without a pattern in the views show the crop alone, those without a number the rest alone.
    """
    mixed = views.mixed.train
    is_crop = torch.zeros(28, 28, dtype=torch.bool)
    is_crop[CROP, CROP] = True
    made: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        images, targets = getattr(views.number, split).inputs, getattr(views.number, split).targets
        other = images[getattr(views.number_resampled, split).source]
        shown = {
            "whole": images,
            "part": images * is_crop,
            "part_resampled": torch.where(is_crop, images, other),
            "rest": images * ~is_crop,
            "rest_resampled": torch.where(is_crop, other, images),
        }
        seen = images
        if split == "train":
            seen = torch.where(_per_image(mixed.has_pattern), seen, shown["part"])
            seen = torch.where(_per_image(mixed.has_number), seen, shown["rest"])
        made[split] = {name: (inputs, targets) for name, inputs in ({"mixed": seen} | shown).items()}
    return ChannelImages(made["train"], made["test"], None)


def _number(views: PairedMNIST, *, but: Tensor | None = None) -> Cue:
    is_shown = views.mixed.train.has_number if but is None else views.mixed.train.has_number & ~but
    number = views.number
    return Cue(number.train.inputs, number.test.inputs, is_shown, number.test.inputs, views.conflict.number_targets)


def _pattern(views: PairedMNIST, *, but: Tensor | None = None) -> Cue:
    is_shown = views.mixed.train.has_pattern if but is None else views.mixed.train.has_pattern & ~but
    conflict, pattern = views.conflict, views.pattern
    # Not the blend minus the number, which would be off by rounding.
    squares = views.patterns[conflict.pattern_targets, conflict.pattern_index]
    shown = views.opacity * _enlarged(squares)
    return Cue(pattern.train.inputs, pattern.test.inputs, is_shown, shown, conflict.pattern_targets)


def _marks(views: PairedMNIST) -> PairedMNIST:
    """The same examples with patterns of another seed."""
    splits = (DigitImages(view.inputs, view.targets) for view in (views.number.train, views.number.test))
    seed = int(np.random.SeedSequence([views.seed, _FOR_MARKS]).generate_state(1)[0])
    return paired_mnist(
        MNIST(*splits), opacity=views.opacity, patterns_per_class=views.patterns.shape[1], number_only=0.0,
        pattern_only=views.pattern_only, flip=views.flip, seed=seed,
    )  # fmt: skip


def _joined(views: PairedMNIST, cues: dict[str, Cue], sources: dict[str, list[Tensor]]) -> ChannelImages:
    """All losses' images; the other cues, in order, are those of the examples in the `sources`, in order."""
    made: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        channels = {name: getattr(cue, split) for name, cue in cues.items()}
        seen = channels
        if split == "train":
            seen = {name: image * _per_image(cues[name].is_shown) for name, image in channels.items()}
        shown = {"mixed": [*seen.values()]}
        for name in cues:
            moved = iter(sources[split])
            shown[name] = [image if other == name else torch.zeros_like(image) for other, image in channels.items()]
            shown[f"{name}_resampled"] = [
                image if other == name else image[next(moved)] for other, image in channels.items()
            ]
        targets = getattr(views.number, split).targets
        made[split] = {name: (torch.cat(images, 1), targets) for name, images in shown.items()}
    inputs = torch.cat([cue.conflict for cue in cues.values()], 1)
    return ChannelImages(made["train"], made["test"], (inputs, {name: cue.answers for name, cue in cues.items()}))


def _per_image(is_shown: Tensor) -> Tensor:
    return is_shown[:, None, None, None]


def _enlarged(squares: Tensor) -> Tensor:
    """(n, 4, 4) -> (n, 1, 28, 28) by repetition."""
    return squares.repeat_interleave(_ENLARGE, 1).repeat_interleave(_ENLARGE, 2).unsqueeze(1)
