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
from torch import Tensor, nn

from lowhanging.circuits.learning_times import first_crossing
from lowhanging.curvature.operators import gauss_newton
from lowhanging.datasets.mnist import MNIST, DigitImages, mnist
from lowhanging.datasets.paired_mnist import paired_mnist
from lowhanging.errors import a_type, argument_message, check_count, check_real
from lowhanging.models.cnn import SigmoidCNN
from lowhanging.models.initial import generator_of
from lowhanging.objective.objective import Objective
from lowhanging.prior.logged_training import train_in_steps
from lowhanging.prior.parities import parity_network, two_parities
from lowhanging.prior.phase_diagram import Experiment
from lowhanging.steering.cues import ConflictControl
from lowhanging.training.stack import StackRun, train_stack

_NUM_PROBES, _NUM_CURVED = 32, 256  # products, and the examples that they are taken on


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
    log_every: int = 10,
    threshold: float = 0.5,
    alone: bool = False,
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
        log_every: steps between the rows of the history, which times are read from.
        threshold: a cue is learned where the accuracy on test images that show it alone is at least this; chance is
            0.1.
        alone: also train a network on each cue alone, and measure what the cue is like by itself.

    Returns:
        (setting, seed) -> named numbers, for `lh.phase_diagram`:

        * "both_learned": 1 where both cues are learned at the end;
        * "number_accuracy", "pattern_accuracy": on test images with that cue alone, the other one black;
        * "number_resampled_accuracy", "pattern_resampled_accuracy": with the other cue of another image;
        * "number_answers", "pattern_answers": share of the answers that follow the cue where the two conflict;
        * "number_time", "pattern_time": first logged step at which the cue is learned, NaN if none;
        * "number_first": 1 where the number is learned at an earlier step than the pattern, 0 where at a later one or
          never, NaN where both at one step, or neither;

        and with `alone`, of the networks trained on one cue alone, in as many steps:

        * "number_time_alone", "pattern_time_alone": as above;
        * "number_dimension", "pattern_dimension": effective dimension, the participation ratio tr(G)^2 / tr(G^2) of
          the Gauss-Newton matrix G at the end, on 256 of the examples, from 32 products (a standard error of a tenth);
          it has no threshold, and G no negative eigenvalue. NaN where the cue is not learned;
        * "both_alone": 1 where each cue is learned at the end of its own training;
        * "time_gap", "dimension_gap": |log2| of the ratio of the two, NaN where a cue is not learned alone.

    Raises:
        ValueError, TypeError: an option out of range; from the experiment, an axis that it does not have.

    Cost:
        of a run, 1,000 images and 10 epochs: four seconds on one core, with `alone` fifteen.
    """
    counts = {"num_train": num_train, "num_test": num_test, "num_epochs": num_epochs, "log_every": log_every}
    for name, value in counts.items():
        check_count(name, value, remedy="Pass a positive number.")
    SigmoidCNN(channels, activation, seed=0)  # which checks both
    check_count("batch_size", batch_size, remedy="Pass the images per step, such as 32.")
    check_real("lr", lr, minimum=0, exclusive=True, remedy="Pass a rate such as 0.02.")
    check_real("threshold", threshold, minimum=0.1, maximum=1, remedy="Pass an accuracy above chance, such as 0.5.")
    return functools.partial(
        _paired_digits, source=source, num_train=num_train, num_test=num_test, channels=channels, activation=activation,
        num_epochs=num_epochs, batch_size=batch_size, lr=lr, log_every=log_every, threshold=threshold, alone=alone,
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
    log_every: int,
    threshold: float,
    alone: bool,
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
    cues = {"number": views.number, "pattern": views.pattern}
    num_steps = num_epochs * math.ceil(num_train / batch_size)
    training = functools.partial(
        train_in_steps, num_steps=num_steps, log_every=min(log_every, num_steps), batch_size=batch_size, lr=lr,
        seed=seed,
    )  # fmt: skip
    model = SigmoidCNN(channels, activation, seed=seed)
    steps, run = training(model, views.mixed.train, evaluate={cue: view.test for cue, view in cues.items()})
    resampled = {"number": views.number_resampled.test, "pattern": views.pattern_resampled.test}
    found = {f"{cue}_accuracy": float(run.accuracies[cue][-1]) for cue in cues}
    found |= {f"{cue}_resampled_accuracy": _accuracy(model, data) for cue, data in resampled.items()}
    control = ConflictControl(
        Objective(model, views.mixed.test, distributed=False), views.conflict.inputs, views.conflict.answers
    )
    answers = control(control.loss.theta0)
    curves = torch.stack([run.accuracies[cue] for cue in cues])
    number, pattern = first_crossing(steps, curves, threshold=threshold, is_rising=True).tolist()
    found = {
        "both_learned": float(min(found[f"{cue}_accuracy"] for cue in cues) >= threshold),
        **found,
        "number_answers": answers["number"],
        "pattern_answers": answers["pattern"],
        "number_time": _known(number),
        "pattern_time": _known(pattern),
        "number_first": math.nan if number == pattern else float(number < pattern),
    }
    if alone:
        for cue, view in cues.items():
            model = SigmoidCNN(channels, activation, seed=seed)
            steps, run = training(model, view.train, evaluate={cue: view.test})
            [time] = first_crossing(steps, run.accuracies[cue][None], threshold=threshold, is_rising=True).tolist()
            found[f"{cue}_time_alone"] = _known(time)
            is_learned = bool(run.accuracies[cue][-1] >= threshold)
            found[f"{cue}_dimension"] = _participation_ratio(model, view.train) if is_learned else math.nan
        found |= _gaps(found, "number", "pattern")
    return found


def _accuracy(model: nn.Module, data: Any) -> float:
    with torch.no_grad():
        return float((model(data.inputs).argmax(1) == data.targets).double().mean())


def _participation_ratio(model: nn.Module, data: Any) -> float:
    """tr(G)^2 / tr(G^2) of the Gauss-Newton matrix, from signs v: E v'Gv = tr G, E |Gv|^2 = tr G^2."""
    inputs, targets = data if isinstance(data, tuple) else (data.inputs, data.targets)
    generator = generator_of(0)
    chosen = torch.randperm(len(inputs), generator=generator)[:_NUM_CURVED]
    loss = Objective(model, (inputs[chosen], targets[chosen]), distributed=False)
    vectors = 2.0 * torch.randint(2, (_NUM_PROBES, loss.num_params), generator=generator) - 1
    products = (gauss_newton(loss) @ vectors.T).T.double()  # (probes, p)
    trace, square = (vectors * products).sum(1).mean(), products.square().sum(1).mean()
    return float(trace**2 / square)


def _gaps(found: Mapping[str, float], first: str, second: str) -> dict[str, float]:
    """Whether two cues are learned alone, and |log2| of the ratio of what they are like then."""
    both = math.isfinite(found[f"{first}_dimension"]) and math.isfinite(found[f"{second}_dimension"])
    return {"both_alone": float(both)} | {
        f"{name}_gap": abs(math.log2(found[f"{first}_{key}"] / found[f"{second}_{key}"]))
        for name, key in {"time": "time_alone", "dimension": "dimension"}.items()
    }


def parities_experiment(
    *,
    hidden: int = 64,
    num_steps: int = 1500,
    batch_size: int = 64,
    lr: float = 0.003,
    log_every: int = 25,
    threshold: float = 1.0,
    alone: bool = False,
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
        alone: also train networks on all rows with one parity as the label, and measure what it is like by itself.

    Returns:
        (setting, seed) -> named numbers, for `lh.phase_diagram`; with a list of seeds a sequence for each name, so that
        `together=True` trains them at once:

        * "both_learned": 1 where both are learned at the end;
        * "first_coefficient", "second_coefficient": c and c' at the end, nats;
        * "first_time", "second_time": first logged step at which the parity is learned, NaN if none;

        and with `alone` "first_time_alone", "first_dimension", ..., "both_alone", "time_gap" and "dimension_gap", as of
        `paired_digits_experiment`, and "bits_gap", |n - m|.

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
        threshold=threshold, alone=alone,
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
    alone: bool,
) -> dict[str, Any]:
    chosen = _filled(setting, {"n": 3, "m": 3})
    rows = two_parities(chosen["n"], chosen["m"])
    several = [seeds] if isinstance(seeds, int) else list(seeds)
    labels = (rows.parities > 0).long()  # (2, rows)
    options: dict[str, Any] = {"num_steps": num_steps, "batch_size": batch_size, "lr": lr, "log_every": log_every}
    make = functools.partial(parity_network, num_bits=rows.signs.shape[1], hidden=hidden)

    def trained(inputs: Tensor, targets: Tensor) -> tuple[StackRun, Tensor]:
        """Networks of all seeds, and their coefficients (2, seeds, logs)."""
        run = train_stack(make, (inputs, targets), several, snapshots="*", progress=False, **options)
        with torch.no_grad():
            logits = torch.stack([torch.stack([model(rows.signs) for model in run.history(seed)]) for seed in several])
        odds = logits[..., 1] - logits[..., 0]  # (seeds, logs, rows)
        return run, torch.einsum("slr,pr->psl", odds, rows.parities).double() / len(rows.signs)

    def times(run: StackRun, coefficients: Tensor) -> list[float]:
        found = first_crossing(run.steps, coefficients, threshold=threshold, is_rising=True)
        return [_known(time) for time in found.tolist()]

    run, coefficients = trained(rows.signs[rows.agree], labels[0][rows.agree])
    first, second = coefficients[..., -1].tolist()
    found: dict[str, list[float]] = {
        "both_learned": [float(min(pair) >= threshold) for pair in zip(first, second, strict=True)],
        "first_coefficient": first,
        "second_coefficient": second,
        "first_time": times(run, coefficients[0]),
        "second_time": times(run, coefficients[1]),
    }
    if alone:
        for i, cue in enumerate(("first", "second")):
            run, coefficients = trained(rows.signs, labels[i])
            found[f"{cue}_time_alone"] = times(run, coefficients[i])
            models = [run.model(seed) for seed in several]
            found[f"{cue}_dimension"] = [
                _participation_ratio(model, (rows.signs, labels[i])) if is_learned else math.nan
                for model, is_learned in zip(models, coefficients[i, :, -1] >= threshold, strict=True)
            ]
        singles = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        gaps = [_gaps(single, "first", "second") for single in singles]
        found |= {name: [gap[name] for gap in gaps] for name in gaps[0]}
        found["bits_gap"] = [float(abs(chosen["n"] - chosen["m"]))] * len(several)
    return {name: row[0] for name, row in found.items()} if isinstance(seeds, int) else found


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
