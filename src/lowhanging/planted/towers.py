"""Networks of towers on cues in separate channels: two circuits, three, one inside another, or two in one tower.

A tower is a layer of sigmoid units with a linear read-out, and logits of towers are added. Each tower reads the cue
that it is named after, so which weights make up a circuit is known before anything is trained; and as every cue has a
channel (or pixels) of its own, a circuit can be taken out exactly. Everything is trained and polished here, because
instruments are made for minima.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowhanging.datasets import PairedMNIST
from lowhanging.errors import a_type, argument_message, check_count, check_real
from lowhanging.landscape import polish
from lowhanging.models.initial import generator_of, normal
from lowhanging.objective import Objective, ParameterSpace
from lowhanging.planted.channels import CROP, ChannelImages, crop_and_rest, three_channels, two_channels
from lowhanging.planted.network import Planted
from lowhanging.steering import ConflictControl
from lowhanging.training import train

Owners = Mapping[str, Mapping[str, float]]  # tower -> circuit -> part of its biases and read-out that belongs to it

_NUM_CLASSES = 10
_POOL = 2  # pixels per side that are averaged: 28 x 28 -> 14 x 14
_SIZE = 28
_ALL = slice(0, _SIZE)
_MIN_EPOCHS, _MIN_STEPS, _BATCH, _LR = 30, 600, 64, 0.02  # few images are seen more often
_ANCHOR, _GTOL = 1e-2, 1e-6
_REMEDY_HIDDEN = "Hidden units of each tower, such as 12."


class Tower(nn.Module):
    r"""Logits z = V s(b + sum_c w_c W_c x_c) + d of the cues c that it reads; s the sigmoid, x_c pooled 2 x 2.

    Args:
        weights: cue -> w_c, its fixed weight; W_c is (hidden, pixels).
        channels: cue -> channel of the inputs that shows it.
        hidden: sigmoid units.
        generator: of the initial weights.
        window: rows and columns of the image that are read, all by default.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        channels: Mapping[str, int],
        *,
        hidden: int,
        generator: torch.Generator | None,
        window: slice = _ALL,
    ):
        super().__init__()
        self.weights, self.channels, self.window = dict(weights), dict(channels), window
        pixels = ((window.stop - window.start) // _POOL) ** 2
        self.reads = nn.ParameterDict(
            {cue: normal(hidden, pixels, std=1 / math.sqrt(pixels), generator=generator) for cue in weights}
        )
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.readout = normal(_NUM_CLASSES, hidden, std=1 / math.sqrt(hidden), generator=generator)
        self.readout_bias = nn.Parameter(torch.zeros(_NUM_CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, 10) of images (n, channels, 28, 28)."""
        hidden: Tensor = self.bias
        for cue, weight in self.weights.items():
            image = inputs[:, self.channels[cue], self.window, self.window]  # (n, side, side)
            pooled = F.avg_pool2d(image, _POOL).flatten(1)  # (n, pixels)
            hidden = hidden + weight * F.linear(pooled, self.reads[cue])  # (n, hidden)
        return F.linear(torch.sigmoid(hidden), self.readout, self.readout_bias)


class TowerSum(nn.Module):
    """The sum of the logits of some towers.

    Args:
        towers: name -> tower.

    Raises:
        ValueError: `forward` gets anything but images (n, channels, 28, 28) with as many channels as are read.
    """

    def __init__(self, towers: Mapping[str, Tower]):
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        self.num_channels = 1 + max(channel for tower in towers.values() for channel in tower.channels.values())

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, 10) of images (n, channels, 28, 28)."""
        if inputs.ndim != 4 or tuple(inputs.shape[1:]) != (self.num_channels, _SIZE, _SIZE):
            received, expected = f"has shape {tuple(inputs.shape)}", f"(n, {self.num_channels}, {_SIZE}, {_SIZE})"
            remedy = "Join one image per cue: torch.cat([number, pattern], 1)."
            raise ValueError(argument_message("inputs", received, expected, remedy))
        return torch.stack([tower(inputs) for tower in self.towers.values()]).sum(0)


def towers(
    views: PairedMNIST, *, overlap: float = 0.0, hidden: int = 12, seed: int = 0, progress: bool | None = None
) -> Planted:
    r"""Two circuits, one for the number and one for the pattern, in towers that read each other's cue at will.

    Tower t has units s((1 - overlap / 2) W_own x_own + (overlap / 2) W_other x_other + b) and a linear read-out; the
    logits of both are added. At overlap 0 the weights W_other don't exist, and the circuits meet in the logits alone.
    At overlap 1 the towers differ in nothing but their initial weights.

    The inputs (n, 2, 28, 28) show the number of `views.number` in channel 0, the pattern of `views.pattern` in channel
    1; in the mixed training images a cue that the views leave out is black. Input weights belong to the circuit of the
    cue that they read; a tower's biases and read-out belong to its own circuit by 1 - overlap / 2, to the other one by
    overlap / 2.

    Args:
        views: what `paired_mnist` makes. Without shares of single cues (`number_only`, `pattern_only`) each circuit
            alone is poor: the two are then only good together.
        overlap: in [0, 1].
        hidden: units of each tower.
        seed: of the initial weights and of the shuffling. The global random states are not touched.
        progress: bars; by default one appears when a step takes more than two seconds.

    Returns:
        Planted with circuits "number" and "pattern", losses "mixed", "number", "pattern", "number_resampled" and
        "pattern_resampled", and `.conflict`. 4,988 parameters by default, 9,692 with an overlap.

    Raises:
        ValueError, TypeError: views without both cues, an argument out of range.
        NotConvergedError: the polishing missed its tolerance; `.result` is the Minimum so far.

    Cost:
        30 epochs and a polishing: about 10 s on one core with 4,000 training images, 13 s with an overlap.
    """
    _check(views, hidden, seed)
    overlap = check_real(
        "overlap", overlap, minimum=0.0, maximum=1.0, remedy="0 for separate towers, 1 for equal ones."
    )
    own, other = 1 - overlap / 2, overlap / 2
    channels = {"number": 0, "pattern": 1}
    generator = generator_of(seed)
    made, owners = {}, {}
    for name, rival in (("number", "pattern"), ("pattern", "number")):
        weights = {name: own, rival: other} if overlap else {name: own}
        made[name] = Tower(weights, channels, hidden=hidden, generator=generator)
        owners[name] = {name: own, rival: other}
    return _planted(TowerSum(made), two_channels(views), owners, seed=seed, progress=progress)


def three(views: PairedMNIST, *, hidden: int = 12, seed: int = 0, progress: bool | None = None) -> Planted:
    """Three circuits in three separate towers: the number, the pattern, and a mark.

    The mark is a second pattern of the same class, of a set drawn independently from the views' seed, shown in channel
    2 of inputs (n, 3, 28, 28). Training images that show one cue alone in the views show that one here; of the others a
    share of `views.pattern_only` shows the mark alone. A resampled loss takes each of the two other cues from another
    example. On the conflict images all three labels differ.

    Args:
        views: what `paired_mnist` makes.
        hidden: units of each tower.
        seed: of the initial weights and of the shuffling. The global random states are not touched.
        progress: bars; by default one appears when a step takes more than two seconds.

    Returns:
        Planted with circuits "number", "pattern" and "mark", seven losses and `.conflict`; 7,482 parameters by default.

    Raises:
        ValueError, TypeError: views without both cues, an argument out of range.
        NotConvergedError: the polishing missed its tolerance; `.result` is the Minimum so far.

    Cost:
        as of `towers` with an overlap.
    """
    _check(views, hidden, seed)
    channels = {"number": 0, "pattern": 1, "mark": 2}
    generator = generator_of(seed)
    made = {name: Tower({name: 1.0}, channels, hidden=hidden, generator=generator) for name in channels}
    owners = {name: {name: 1.0} for name in channels}
    return _planted(TowerSum(made), three_channels(views), owners, seed=seed, progress=progress)


def nested(views: PairedMNIST, *, hidden: int = 12, seed: int = 0, progress: bool | None = None) -> Planted:
    """One circuit inside another: "part" reads the central 14 x 14 pixels of the number, "whole" all of them.

    The inputs (n, 1, 28, 28) show the number of `views.number`. A cue is a set of pixels, and an ablation sets every
    weight to 0 that reads one of them, in either tower: so `ablated("whole")` takes out "part", too, and leaves no
    weight that reads anything, while `ablated("part")` leaves what tower "whole" reads around the part (a pooled pixel
    on its edge counts as read). Weights belong to the circuit of their tower, wherever they read.

    There are no conflict images: a part can't have another label than the whole. The losses are

    * "mixed", "whole": the number; in training, the mixed images of the views without a pattern show the part alone,
      and those without a number the rest alone;
    * "part", "rest": all but the part, or the part itself, blanked;
    * "part_resampled", "rest_resampled": the same with another example's pixels instead of black ones.

    Args:
        views: what `paired_mnist` makes; the patterns are not looked at.
        hidden: units of each tower.
        seed: of the initial weights and of the shuffling. The global random states are not touched.
        progress: bars; by default one appears when a step takes more than two seconds.

    Returns:
        Planted with circuits "whole" and "part", `.conflict` None; 3,224 parameters by default.

    Raises:
        ValueError, TypeError: views without both cues, an argument out of range.
        NotConvergedError: the polishing missed its tolerance; `.result` is the Minimum so far.

    Cost:
        less than `towers`.
    """
    _check(views, hidden, seed)
    generator = generator_of(seed)
    made = {
        "whole": Tower({"whole": 1.0}, {"whole": 0}, hidden=hidden, generator=generator),
        "part": Tower({"part": 1.0}, {"part": 0}, hidden=hidden, generator=generator, window=CROP),
    }
    owners = {name: {name: 1.0} for name in made}
    # The pooled pixels that hold a pixel of the part: 8 x 8 of 14 x 14, as the crop begins at an odd row.
    is_part = torch.zeros(_SIZE // _POOL, _SIZE // _POOL, dtype=torch.bool)
    touched = slice(CROP.start // _POOL, -(-CROP.stop // _POOL))
    is_part[touched, touched] = True

    def reads(name: str, weight: Tensor) -> dict[str, Tensor]:
        everywhere = torch.ones_like(weight, dtype=torch.bool)
        inside = everywhere if name.startswith("towers.part.") else is_part.flatten().expand_as(weight)
        return {"whole": everywhere, "part": inside}

    return _planted(TowerSum(made), crop_and_rest(views), owners, reads=reads, seed=seed, progress=progress)


def shared_trunk(views: PairedMNIST, *, hidden: int = 24, seed: int = 0, progress: bool | None = None) -> Planted:
    """Two circuits in the same hidden units: they share everything behind the input weights.

    One tower reads both cues, with the inputs and the losses of `towers`. Input weights belong to the circuit of their
    cue, biases and the read-out by half to each.

    Args:
        views: what `paired_mnist` makes.
        hidden: units, as many as in both towers of `towers` by default.
        seed: of the initial weights and of the shuffling. The global random states are not touched.
        progress: bars; by default one appears when a step takes more than two seconds.

    Returns:
        Planted with circuits "number" and "pattern", and `.conflict`; 9,682 parameters by default.

    Raises:
        ValueError, TypeError: views without both cues, an argument out of range.
        NotConvergedError: the polishing missed its tolerance; `.result` is the Minimum so far.

    Cost:
        as of `towers`.
    """
    _check(views, hidden, seed)
    channels = {"number": 0, "pattern": 1}
    trunk = Tower(dict.fromkeys(channels, 1.0), channels, hidden=hidden, generator=generator_of(seed))
    owners = {"trunk": dict.fromkeys(channels, 0.5)}
    return _planted(TowerSum({"trunk": trunk}), two_channels(views), owners, seed=seed, progress=progress)


def _planted(
    model: TowerSum,
    images: ChannelImages,
    owners: Owners,
    *,
    reads: Callable[[str, Tensor], dict[str, Tensor]] | None = None,
    seed: int,
    progress: bool | None,
) -> Planted:
    """Train and polish the model, and put together what is known of it.

    `owners` are those of a tower's biases and read-out; `reads` says of an input weight which cues it reads, by default
    the one in its name.
    """
    model.to("cpu", torch.float32)  # as the images, whatever torch's defaults
    mixed = images.train["mixed"]
    num_epochs = max(_MIN_EPOCHS, math.ceil(_MIN_STEPS / math.ceil(len(mixed[0]) / _BATCH)))
    train(model, mixed, num_epochs=num_epochs, lr=_LR, batch_size=_BATCH, seed=seed, progress=progress)
    start = Objective(model, mixed)
    # The anchor bounds how far this goes, not the default limit, which is for networks that are given.
    minimum = polish(start, anchor=_ANCHOR, gtol=_GTOL, max_drift=1.0, progress=progress)
    polished = start.model_at(minimum.theta)
    losses = {name: Objective(polished, pair) for name, pair in images.test.items()}
    rest = {name: Objective(polished, pair) for name, pair in images.train.items() if name != "mixed"}
    conflict = None if images.conflict is None else ConflictControl(losses["mixed"], *images.conflict)
    circuits = tuple(dict.fromkeys(circuit for parts in owners.values() for circuit in parts))
    masks, parts = _weights(polished, circuits, owners, reads or _reads_by_name(circuits))
    return Planted(
        model=polished, theta=minimum.theta.clone(), circuits=circuits,
        train_losses={"mixed": start.at(minimum.theta)} | rest, losses=losses, conflict=conflict, minimum=minimum,
        _reads=masks, _owners=parts,
    )  # fmt: skip


def _reads_by_name(circuits: tuple[str, ...]) -> Callable[[str, Tensor], dict[str, Tensor]]:
    def reads(name: str, weight: Tensor) -> dict[str, Tensor]:
        cue = name.rpartition(".")[2]
        return {circuit: torch.full(weight.shape, circuit == cue) for circuit in circuits}

    return reads


def _weights(
    model: nn.Module,
    circuits: tuple[str, ...],
    owners: Owners,
    reads: Callable[[str, Tensor], dict[str, Tensor]],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Circuit -> (p,) bool, the weights that read its cue; and (p,) float64, the part of each that belongs to it."""
    masks: dict[str, list[Tensor]] = {circuit: [] for circuit in circuits}
    parts: dict[str, list[Tensor]] = {circuit: [] for circuit in circuits}
    named = dict(model.named_parameters())
    for name in ParameterSpace(model).names:  # "towers.number.reads.pattern", "towers.number.bias"
        weight, (_, tower, kind, *cue) = named[name], name.split(".")
        seen = reads(name, weight) if kind == "reads" else {}
        for circuit in circuits:
            mask = seen.get(circuit, torch.zeros(weight.shape, dtype=torch.bool))
            part = float(circuit == cue[0]) if cue else owners[tower].get(circuit, 0.0)
            masks[circuit].append(mask.reshape(-1))
            parts[circuit].append(torch.full((weight.numel(),), part, dtype=torch.float64))
    return (
        {circuit: torch.cat(pieces) for circuit, pieces in masks.items()},
        {circuit: torch.cat(pieces) for circuit, pieces in parts.items()},
    )


def _check(views: Any, hidden: Any, seed: Any) -> None:
    remedy = "Make them: lh.paired_mnist()."
    if not isinstance(views, PairedMNIST):
        raise TypeError(argument_message("views", f"is {a_type(views)}", "a PairedMNIST", remedy))
    if not 0 < views.opacity < 1:
        received = f"has opacity {views.opacity:g}, at which one cue is black"
        raise ValueError(argument_message("views", received, "an opacity between 0 and 1", remedy))
    check_count("hidden", hidden, remedy=_REMEDY_HIDDEN)
    check_count("seed", seed, minimum=0, remedy="Pass an integer; the same one gives the same network.")
