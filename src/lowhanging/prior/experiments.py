"""Two experiments for `phase_diagram` in which two circuits are offered at once and either would do.

The paired digits: a number and a pattern with the same label. Two parities: of n bits and of m other bits, equal in
every training row. Is one circuit found, or both, and which first? Whether a circuit is there is asked where the other
one can't answer: of the digits, on images that show one cue alone; of the parities, on all rows, where the logits' part
that goes with one parity can be told from the part that goes with the other.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lowhanging.circuits.learning_times import first_crossing
from lowhanging.datasets.mnist import MNIST, DigitImages, mnist
from lowhanging.datasets.paired_mnist import paired_mnist
from lowhanging.errors import a_type, argument_message, check_count, check_real
from lowhanging.models.cnn import SigmoidCNN
from lowhanging.models.initial import generator_of
from lowhanging.objective.objective import Objective
from lowhanging.prior.phase_diagram import Experiment
from lowhanging.steering.cues import ConflictControl
from lowhanging.training.stack import train_stack
from lowhanging.training.train import train

_MOST_BITS = 14  # all rows are made: 16,384 of them


def paired_digits_experiment(
    source: str | os.PathLike[str] = "bundled",
    *,
    num_train: int = 1000,
    num_test: int = 500,
    channels: int = 6,
    activation: str = "silu",
    num_epochs: int = 10,
    batch_size: int = 16,
    lr: float = 0.01,
    threshold: float = 0.5,
) -> Experiment:
    """Networks trained on images with a number and a pattern of the same label: is either cue learned, or both?

    Axes of the diagram, each of which may be left out:

    * "patterns_per_class" (10): patterns to memorise;
    * "opacity" (0.5): weight of the pattern in the blend;
    * "single_cue_share" (0.2): share of the training images that show one cue alone, half of them the number.

    The seed is that of the patterns, the blends, the weights and the order of the images; the digits are the same ones.

    Args:
        source: of the digits, as in `lh.mnist`.
        num_train: training images, the first ones of the source.
        num_test: test images.
        channels: of the `SigmoidCNN`.
        activation: of the same. With "sigmoid" training begins with a plateau of some hundred steps, and where nothing
            is learned it may only have lasted longer: train three times as long.
        num_epochs: of each training, by Adam with a rate that falls to 0.
        batch_size: images per step.
        lr: learning rate at the start.
        threshold: a cue is learned where the accuracy on test images that show it alone is at least this; chance is
            0.1.

    Returns:
        (setting, seed) -> named numbers, for `lh.phase_diagram`:

        * "both_learned": 1 where both cues are learned at the end;
        * "number_accuracy", "pattern_accuracy": on test images with that cue alone, the other one black;
        * "number_resampled_accuracy", "pattern_resampled_accuracy": with the other cue of another image;
        * "number_answers", "pattern_answers": share of the answers that follow the cue where the two conflict;
        * "number_time", "pattern_time": first epoch at which the cue is learned, NaN if none;
        * "number_first": 1 where the number is learned in an earlier epoch than the pattern, 0 where in a later one or
          never, NaN where both in one epoch, or neither.

    Raises:
        ValueError, TypeError: an option out of range; from the experiment, an axis that it does not have.

    Cost:
        of a run, 1,000 images and 10 epochs: three seconds on one core.
    """
    for name, value in {"num_train": num_train, "num_test": num_test, "num_epochs": num_epochs}.items():
        check_count(name, value, remedy="Pass a positive number.")
    SigmoidCNN(channels, activation, seed=0)  # which checks both
    check_count("batch_size", batch_size, remedy="Pass the images per step, such as 32.")
    check_real("lr", lr, minimum=0, exclusive=True, remedy="Pass a rate such as 0.02.")
    check_real("threshold", threshold, minimum=0.1, maximum=1, remedy="Pass an accuracy above chance, such as 0.5.")
    return functools.partial(
        _paired_digits, source=source, num_train=num_train, num_test=num_test, channels=channels, activation=activation,
        num_epochs=num_epochs, batch_size=batch_size, lr=lr, threshold=threshold,
    )  # fmt: skip


def _paired_digits(
    setting: Mapping[str, Any],
    seed: int,
    *,
    source: str | os.PathLike[str],
    num_train: int,
    num_test: int,
    channels: int,
    activation: str,
    num_epochs: int,
    batch_size: int,
    lr: float,
    threshold: float,
) -> dict[str, float]:
    chosen = _filled(setting, {"patterns_per_class": 10, "opacity": 0.5, "single_cue_share": 0.2})
    share = chosen["single_cue_share"]
    share = check_real("single_cue_share", share, minimum=0, maximum=1, remedy="Pass a share of the training images.")
    digits = mnist(source)
    few = MNIST(DigitImages(*digits.train[:num_train]), DigitImages(*digits.test[:num_test]), source=digits.source)
    views = paired_mnist(
        few, opacity=chosen["opacity"], patterns_per_class=chosen["patterns_per_class"], number_only=share / 2,
        pattern_only=share / 2, seed=seed,
    )  # fmt: skip
    shown = {
        "number": views.number.test,
        "pattern": views.pattern.test,
        "number_resampled": views.number_resampled.test,
        "pattern_resampled": views.pattern_resampled.test,
    }
    model = SigmoidCNN(channels, activation, seed=seed)
    options: dict[str, Any] = {"num_epochs": num_epochs, "batch_size": batch_size, "lr": lr, "seed": seed}
    run = train(model, views.mixed.train, evaluate=shown, progress=False, **options)
    found = {f"{name}_accuracy": float(run.accuracies[name][-1]) for name in shown}
    control = ConflictControl(
        Objective(model, views.mixed.test, distributed=False), views.conflict.inputs, views.conflict.answers
    )
    answers = control(control.loss.theta0)
    curves = torch.stack([run.accuracies["number"], run.accuracies["pattern"]])
    number, pattern = first_crossing(run.epochs, curves, threshold=threshold, is_rising=True).tolist()
    return {
        "both_learned": float(min(found["number_accuracy"], found["pattern_accuracy"]) >= threshold),
        **found,
        "number_answers": answers["number"],
        "pattern_answers": answers["pattern"],
        "number_time": _known(number),
        "pattern_time": _known(pattern),
        "number_first": math.nan if number == pattern else float(number < pattern),
    }


def parities_experiment(
    *,
    hidden: int = 64,
    num_steps: int = 1500,
    batch_size: int = 64,
    lr: float = 0.003,
    log_every: int = 25,
    threshold: float = 1.0,
) -> Experiment:
    r"""Networks that are offered two parities of different bits, equal in every training row: which are found?

    Axes of the diagram: "n" and "m" (3 each), the bits of the first and of the second parity. A row is n + m signs; the
    training rows are all those in which the product of the first n signs, \chi, is that of the other m, \chi', and is
    the label. A reader of either is right on each of them.

    Over *all* rows, where the two are independent, the part of the logit z = log P(1 | x) / P(0 | x) that goes with a
    parity is its Fourier coefficient

        c = mean \chi(x) z(x),    c' = mean \chi'(x) z(x),

    the nats that a circuit adds to the label's odds. A parity is learned where its coefficient is at least `threshold`.
    The network is a hidden layer of tanh units, trained by Adam with a constant rate.

    Args:
        hidden: units.
        num_steps: of each training.
        batch_size: rows per step; fewer rows than that are taken whole.
        lr: learning rate.
        log_every: steps between the rows of the history, which times are read from.
        threshold: nats; with 1 a parity alone is right with probability 0.73.

    Returns:
        (setting, seed) -> named numbers, for `lh.phase_diagram`; with a list of seeds a sequence for each name, so that
        `together=True` trains them at once:

        * "both_learned": 1 where both are learned at the end;
        * "first_coefficient", "second_coefficient": c and c' at the end, nats;
        * "first_time", "second_time": first logged step at which the parity is learned, NaN if none.

    Raises:
        ValueError, TypeError: an option out of range; from the experiment, an axis that it does not have, more than 14
            bits in all.

    Cost:
        of a run, 3 and 3 bits: a second or two on one core; five seeds together half of that each.
    """
    counts = {"hidden": hidden, "num_steps": num_steps, "batch_size": batch_size, "log_every": log_every}
    for name, value in counts.items():
        check_count(name, value, remedy="Pass a positive number.")
    check_real("lr", lr, minimum=0, exclusive=True, remedy="Pass a rate such as 0.003.")
    check_real("threshold", threshold, minimum=0, exclusive=True, remedy="Pass a number of nats, such as 1.")
    return functools.partial(
        _parities, hidden=hidden, num_steps=num_steps, batch_size=batch_size, lr=lr, log_every=log_every,
        threshold=threshold,
    )  # fmt: skip


def _parities(
    setting: Mapping[str, Any],
    seeds: int | Sequence[int],
    *,
    hidden: int,
    num_steps: int,
    batch_size: int,
    lr: float,
    log_every: int,
    threshold: float,
) -> dict[str, Any]:
    chosen = _filled(setting, {"n": 3, "m": 3})
    remedy = f"Pass a number of bits; at most {_MOST_BITS} for both."
    n, m = (check_count(name, chosen[name], maximum=_MOST_BITS - 1, remedy=remedy) for name in ("n", "m"))
    if n + m > _MOST_BITS:
        raise ValueError(argument_message("n", f"and m add up to {n + m}", f"at most {_MOST_BITS} bits", remedy))
    bits = torch.arange(2 ** (n + m))[:, None] >> torch.arange(n + m) & 1  # (rows, n + m), all of them
    signs = 1.0 - 2.0 * bits
    parities = torch.stack([signs[:, :n].prod(1), signs[:, n:].prod(1)])  # (2, rows)
    is_shown = parities[0] == parities[1]
    data = signs[is_shown], (parities[0][is_shown] > 0).long()
    several = [seeds] if isinstance(seeds, int) else list(seeds)
    run = train_stack(
        functools.partial(_network, num_bits=n + m, hidden=hidden), data, several, num_steps=num_steps,
        batch_size=batch_size, lr=lr, log_every=log_every, snapshots="*", progress=False,
    )  # fmt: skip
    with torch.no_grad():
        logits = torch.stack([torch.stack([model(signs) for model in run.history(seed)]) for seed in several])
    odds = logits[..., 1] - logits[..., 0]  # (seeds, logs, rows)
    coefficients = torch.einsum("slr,pr->psl", odds, parities).double() / len(signs)  # (2, seeds, logs)
    times = [first_crossing(run.steps, rows, threshold=threshold, is_rising=True).tolist() for rows in coefficients]
    first, second = coefficients[..., -1].tolist()
    found: dict[str, list[float]] = {
        "both_learned": [float(min(pair) >= threshold) for pair in zip(first, second, strict=True)],
        "first_coefficient": first,
        "second_coefficient": second,
        "first_time": [_known(time) for time in times[0]],
        "second_time": [_known(time) for time in times[1]],
    }
    return {name: row[0] for name, row in found.items()} if isinstance(seeds, int) else found


def _network(seed: int, *, num_bits: int, hidden: int) -> nn.Module:
    """One hidden layer of tanh units, its weights from a generator of the seed."""
    model = nn.Sequential(
        nn.utils.skip_init(nn.Linear, num_bits, hidden),  # type: ignore[no-untyped-call]
        nn.Tanh(),
        nn.utils.skip_init(nn.Linear, hidden, 2),  # type: ignore[no-untyped-call]
    )
    generator = generator_of(seed)
    with torch.no_grad():
        for weights in model.parameters():
            fan_in = num_bits if weights.shape[0] == hidden else hidden
            weights.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    return model


def _filled(setting: Mapping[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The setting, with what it leaves out."""
    if not isinstance(setting, Mapping) or not setting.keys() <= defaults.keys():
        received = f"is {a_type(setting)}" if not isinstance(setting, Mapping) else f"has {list(setting)}"
        expected = f"some of the axes {list(defaults)}"
        raise ValueError(argument_message("setting", received, expected, "Rename the axes of the diagram."))
    return defaults | dict(setting)


def _known(time: float) -> float:
    """NaN for a time that never came."""
    return time if math.isfinite(time) else math.nan
