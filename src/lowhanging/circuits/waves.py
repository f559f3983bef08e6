"""Fourier circuits at the logits and in the hidden units: how much of each is waves of the sum, now and over training.

An embedding says which frequencies are written in, not which ones the network uses. The logits of all p^2 pairs say
that: a circuit of frequency f adds cos(2 pi f (a + b - c) / p) to them, and these waves are orthogonal, so that their
shares of the variance add up. A hidden unit belongs to one circuit if its activation, as a function of a and b, has one
frequency. Shares are exact projections on all pairs; nothing is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowhanging.circuits.mechanism import (
    Logits,
    distance_share,
    gradient_symmetricity,
    logit_table,
    mean_by_sum,
    on_every_pair,
    pairs_and_sums,
    split_table,
    table_loss,
)
from lowhanging.errors import a_type, argument_message, check_count, check_finite, check_real
from lowhanging.io import Saved
from lowhanging.objective.kernels import differentiable_kernels
from lowhanging.objective.private_copy import private_copy

KEY_SHARE = 0.05  # of the logits' variance, from which on a frequency counts as key
MOST_NAMED = 6  # frequencies in a repr


@dataclass(frozen=True, eq=False, repr=False)
class LogitWaves(Saved):
    """Shares of the logits' variance over all pairs and classes, the mean over the classes taken off."""

    p: int
    shares: Tensor  # (p // 2,) float64, of cos(2 pi f (a + b - c) / p) for f = 1 ... p // 2
    amplitudes: Tensor  # (p // 2,) float64 coefficient of that wave, negative where it speaks against the right class
    sums: float  # share of all functions of a + b and c: what is left is a matter of a - b
    variance: float  # mean square of the centred logits

    def __repr__(self) -> str:
        order = self.shares.argsort(descending=True, stable=True)[:MOST_NAMED].tolist()
        named = ", ".join(f"{f + 1}: {self.shares[f]:.1%}" for f in order if self.shares[f] >= 0.01)
        waves = f"{self.total:.1%} in waves of a + b - c" + (f" ({named})" if named else "")
        return f"LogitWaves(p = {self.p}: {waves}, {self.sums:.1%} without a - b)"

    @property
    def total(self) -> float:
        """Share of all the waves together, at most `sums`."""
        return float(self.shares.sum())

    def key(self, threshold: float = KEY_SHARE) -> Tensor:
        """(k,) int64 frequencies with at least a share `threshold` of the variance, the strongest first."""
        check_real("threshold", threshold, minimum=0.0, maximum=1.0, remedy="A share of the variance, such as 0.05.")
        order = self.shares.argsort(descending=True, stable=True)
        return order[self.shares[order] >= threshold] + 1


def logit_waves(model: Logits, p: int) -> LogitWaves:
    r"""Share of the logits' variance that lies in the waves that add modulo p, frequency by frequency.

    With L_abc the logits without their mean over the classes c (which no softmax sees), and u_f the unit vector along
    cos(2 pi f (a + b - c) / p), share_f = (sum L u_f)^2 / sum L^2. A network that adds by Fourier circuits has nearly
    all of its variance there; random logits have 1 / (p^2 (p - 1)) per frequency, and 1 / p in all functions of a + b.
    Waves of another phase, sin(2 pi f (a + b - c) / p), favour a wrong class and count in `sums` only. So do functions
    of c alone, which are most of an untrained transformer's logits: `sums` says nothing without the waves.

    Args:
        model: token pairs (n, 2) int64 -> logits (n, classes); a module (copied, run as after `model.eval()`) or any
            function. Classes from p on, such as that of "=", are not looked at.
        p: the modulus.

    Returns:
        LogitWaves; all shares are 0 where the logits are the same for every class.

    Raises:
        ValueError, TypeError: logits of another shape or not finite.

    Cost:
        one forward pass over p^2 pairs, p^2 numbers per class.

    Source:
        Nanda, Chan, Lieberum, Smith & Steinhardt (2023), "Progress measures for grokking via mechanistic
        interpretability", who fit the same waves.
    """
    return _waves_of(logit_table(model, p))


def _waves_of(table: Tensor) -> LogitWaves:
    p = len(table)
    table = table[..., :p]
    scale = float(table.abs().max())
    table = table - table.mean(-1, keepdim=True)
    variance = float(table.square().mean())
    half, s = p // 2, torch.arange(p)
    if variance <= (p * torch.finfo(torch.float64).eps * scale) ** 2:
        none = torch.zeros(half, dtype=torch.float64)
        return LogitWaves(p=p, shares=none, amplitudes=none.clone(), sums=0.0, variance=0.0)
    by_sum = mean_by_sum(table)  # (s, c)
    by_turn = by_sum[(s[:, None] + s) % p, s].mean(1)  # (t,) mean over the triples with a + b - c = t
    angles = 2 * math.pi / p * (torch.arange(1, half + 1)[:, None] * s % p).double()  # exact turns: no large angle
    norms = torch.full((half,), 0.5, dtype=torch.float64)  # mean squares of the waves
    if p % 2 == 0:
        norms[-1] = 1.0
    amplitudes = (angles.cos() @ by_turn) / (p * norms)
    shares = amplitudes.square() * norms / variance
    sums = float(by_sum.square().mean()) / variance
    return LogitWaves(p=p, shares=shares, amplitudes=amplitudes, sums=sums, variance=variance)


@dataclass(frozen=True, eq=False, repr=False)
class HiddenWaves(Saved):
    """Share of each hidden unit's variance over all pairs that has one frequency."""

    p: int
    harmonics: int  # multiples of a frequency that count as it
    shares: Tensor  # (units, p // 2) float64
    frequency: Tensor  # (units,) int64 the one with the largest share; 0 for a constant unit
    separability: Tensor  # (units,) float64 its share; 0 for a constant unit
    variance: Tensor  # (units,) float64 of the activation; 0 for a constant unit

    def __repr__(self) -> str:
        alive = self.frequency[self.frequency > 0]
        values, counts = torch.unique(alive, return_counts=True)
        order = counts.argsort(descending=True, stable=True)[:MOST_NAMED]
        named = ", ".join(f"{values[i]} ({counts[i]} units)" for i in order.tolist())
        constant = f"; {len(self.frequency) - len(alive)} constant" if len(alive) < len(self.frequency) else ""
        median = f"median separability {self.median:.2f}; frequencies {named}" if len(alive) else "all silent"
        return f"HiddenWaves({len(self.frequency)} units, p = {self.p}: {median}{constant})"

    @property
    def median(self) -> float:
        """Median separability of the units that are not constant; nan without any."""
        alive = self.separability[self.frequency > 0]
        return float(alive.quantile(0.5)) if len(alive) else math.nan


def hidden_waves(hidden: Callable[[Tensor], Tensor], p: int, *, harmonics: int = 1) -> HiddenWaves:
    r"""Separability of hidden units: the share of each unit's variance over (a, b) that has a single frequency.

    With H_ij the two-dimensional Fourier transform of a unit's activation h(a, b), frequency f has the power at those
    (i, j) but (0, 0) whose entries are 0 or +-f, modulo p: the functions spanned by 1, cos, sin of f a times 1, cos,
    sin of f b, all but the constant. Its share is that power over the power at all (i, j) but (0, 0). White noise has
    8 / (p^2 - 1) per frequency on average, and about twice as much at its best one: the largest of p / 2
    chi-square numbers of 8 degrees of freedom, over p^2 - 1. Units of an untrained network have more, .14 in the median
    of a `ModularTransformer`.

    Args:
        hidden: token pairs (n, 2) int64 -> activations (n, units): `hidden_units(model)`, a module (copied, run as
            after `model.eval()`) or any function.
        p: the modulus.
        harmonics: h, so that entries 0, +-f, ..., +-h f count: ((2 h + 1)^2 - 1) / (p^2 - 1) of white noise. A unit
            bends its waves, and cos^2(w f a) has the frequency 2 f. What is as much a harmonic of one frequency as the
            first of another goes to the other.

    Returns:
        HiddenWaves, a row per unit.

    Raises:
        ValueError, TypeError: activations of another shape or not finite, harmonics that are no number from 1 to p / 2.

    Cost:
        one forward pass over p^2 pairs, and p^3 / 2 operations per unit.

    Source:
        Nanda et al. (2023), who find that most units are polynomials of degree 2 of the waves of one frequency.
    """
    expected = "token pairs (n, 2) -> activations (n, units)"
    remedy = "Pass hidden_units(model), hidden_units(model, layer) or lambda pairs: units(pairs)."
    found = on_every_pair(hidden, p, argument="hidden", expected=expected, remedy=remedy)
    check_count("harmonics", harmonics, maximum=p // 2, remedy="Pass 1, or 2 for units that bend their waves.")
    is_table = isinstance(found, Tensor) and found.ndim == 2 and len(found) == p * p and found.shape[1]
    if not is_table or not found.is_floating_point():
        shape = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else a_type(found)
        raise ValueError(argument_message("hidden", f"gives {shape} for {p * p} pairs", expected, remedy))
    check_finite("what hidden gives", found, remedy="Train with a smaller step.")
    rounding = 4 * torch.finfo(found.dtype).eps * found.abs().amax(0).double()  # (units,)
    units = found.double().reshape(p, p, -1)
    variance = units.var((0, 1), correction=0)
    is_constant = variance <= rounding.square()
    variance = torch.where(is_constant, 0, variance)
    power = torch.fft.fft2(units - units.mean((0, 1)), dim=(0, 1)).abs().square()  # (i, j, units)
    shares, first = (_shares(power, k) for k in (harmonics, 1))
    shares[is_constant], first[is_constant] = 0, 0
    # One wave is the first harmonic of its own frequency and the second of another: they tie, up to rounding.
    best = (shares + 1e-9 * first).argmax(1)
    return HiddenWaves(
        p=p, harmonics=int(harmonics), shares=shares, frequency=torch.where(is_constant, 0, best + 1),
        separability=shares.gather(1, best[:, None]).squeeze(1), variance=variance,
    )  # fmt: skip


def _shares(power: Tensor, harmonics: int) -> Tensor:
    """(units, p // 2) share of the power (p, p, units) at pairs of multiples of each frequency."""
    p = len(power)
    is_multiple = torch.zeros(p // 2, p, dtype=torch.float64)  # (f, i)
    multiples = torch.arange(1, p // 2 + 1)[:, None] * torch.arange(-harmonics, harmonics + 1) % p
    is_multiple.scatter_(1, multiples, 1.0)
    rows = torch.tensordot(is_multiple, power, 1)  # (f, j, units)
    return torch.einsum("fju,fj->uf", rows, is_multiple) / power.sum((0, 1)).clamp(min=1e-300)[:, None]


def hidden_units(model: nn.Module, layer: str | None = None) -> Callable[[Tensor], Tensor]:
    """Activations of a model's hidden units as a function of token pairs, for `hidden_waves`.

    Args:
        model: copied, and run as after `model.eval()`, with the weights that it has now.
        layer: name of the submodule whose output they are, such as "mlp.1", one that runs once; None for a model with a
            method `hidden_units(inputs)`, as `ModularMLP` and `ModularTransformer` have.

    Returns:
        pairs (n, 2) -> what the submodule gives, on the CPU: (n, units) for `hidden_waves`. If it has a place per
        token, take one: `lambda pairs: units(pairs)[:, -1]`.

    Raises:
        ValueError, TypeError: no such submodule or method; when called, a submodule that does not run exactly once, or
            gives no tensor.
    """
    private = private_copy(model, "eval", None)
    layers = [name for name, _ in private.named_modules() if name]
    remedy = f"Name one of {layers[:20]}." if layers else "Give it a method hidden_units(inputs)."
    method: Any = getattr(private, "hidden_units", None)
    if layer is None and not callable(method):
        received = f"is missing, and {a_type(model)} has no method hidden_units"
        raise ValueError(argument_message("layer", received, "the name of a submodule", remedy))
    if layer is not None and layer not in layers:
        expected = f"a submodule of the {type(model).__name__}"
        raise ValueError(argument_message("layer", f"is {layer!r}", expected, remedy))
    device = next(private.parameters()).device

    def units(pairs: Tensor) -> Tensor:
        outputs: list[Any] = []
        with differentiable_kernels(private), torch.no_grad():
            if layer is None:
                outputs.append(method(pairs.to(device)))
            else:
                hook = private.get_submodule(layer).register_forward_hook(lambda *given: outputs.append(given[2]))
                try:
                    private(pairs.to(device))
                finally:
                    hook.remove()
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            received = f"({layer!r}) gives {', '.join(map(a_type, outputs)) or 'nothing'} in one pass"
            raise ValueError(argument_message("layer", received, "one tensor", "Name a submodule that runs once."))
        return outputs[0].cpu()

    return units


@dataclass(frozen=True, eq=False, repr=False)
class ProgressMeasures(Saved):
    """Losses with and without the key frequencies of a + b, and what these are of the logits, model by model."""

    p: int
    frequencies: Tensor  # (k,) int64 the key frequencies
    steps: Tensor  # (logs,) float64
    loss: Tensor  # (logs,) float64 nats, on `data`
    held_out_loss: Tensor | None  # (logs,) on `held_out`
    restricted_loss: Tensor  # (logs,) the key frequencies alone, on `held_out` where it was given, else on `data`
    excluded_loss: Tensor  # (logs,) all but the key frequencies, on `data`
    shares: Tensor  # (logs, k) share of each key frequency's wave of a + b - c in the logits' variance
    totals: Tensor  # (logs,) share of the waves of all frequencies

    def __repr__(self) -> str:
        names = ("loss", "held_out_loss", "restricted_loss", "excluded_loss")
        curves = [(name.replace("_", " "), getattr(self, name)) for name in names]
        ends = ", ".join(f"{name} {y[0]:.3g} to {y[-1]:.3g}" for name, y in curves if y is not None)
        keys = ", ".join(map(str, self.frequencies.tolist()))
        return f"ProgressMeasures({len(self.steps)} models, frequencies {keys}: {ends})"


def progress_measures(
    models: Iterable[Logits],
    p: int,
    *,
    frequencies: Iterable[int] | None = None,
    data: Any = None,
    held_out: Any = None,
    steps: Any = None,
) -> ProgressMeasures:
    """Progress of a circuit before the loss shows it, over the models of a training run.

    Of every model: its loss, `restricted_loss`, `excluded_loss` and `logit_waves`. Where a network groks, the
    restricted loss falls before the held-out loss does, and the excluded loss, on the training data, rises as memory
    gives way to the circuit. Above log p, what is left of the logits speaks against the right class.

    Args:
        models: one per log, such as `run.history(seed)` of a run of `train_stack` with `snapshots="*"`; modules or
            functions, as in `logit_waves`.
        p: the modulus.
        frequencies: the key ones, different, from 1 to p // 2; by default those with 5 % of the variance of the last
            model's logits or more, the strongest first.
        data: pairs for `loss` and `excluded_loss`, such as the train set; by default all p^2 pairs.
        held_out: pairs for `held_out_loss` and `restricted_loss`, such as the test set. Without them the restricted
            loss is taken on `data`.
        steps: (logs,) training step of each model, such as `run.steps`; by default 0, 1, 2, ...

    Returns:
        ProgressMeasures, an entry per model.

    Raises:
        ValueError, TypeError: no model, as many steps as there are no models, no key frequency in the last model's
            logits, and what `restricted_loss` raises.

    Cost:
        one forward pass over p^2 pairs per model.

    Source:
        Nanda et al. (2023).
    """
    one_model = isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList)
    if one_model or not isinstance(models, Iterable):
        received = f"is {a_type(models)}"
        raise TypeError(argument_message("models", received, "several models", "Pass run.history(seed), or [model]."))
    listed = list(models)
    if not listed:
        raise ValueError(argument_message("models", "is empty", "at least one model", "Pass run.history(seed)."))
    check_count("p", p, minimum=3, remedy="Pass the modulus of the task.")
    times = _steps(steps, len(listed))
    train = pairs_and_sums(data, p)
    test = None if held_out is None else pairs_and_sums(held_out, p)
    last = logit_table(listed[-1], p)
    wanted: Any = frequencies
    if frequencies is None:
        waves = _waves_of(last)
        wanted = waves.key().tolist()
        if not wanted:
            received = f"are missing, and the last model has none: its largest share is {waves.shares.max():.2%}"
            expected = f"a frequency with at least {KEY_SHARE:.0%} of its logits' variance"
            remedy = "Train it until it has a circuit, or pass frequencies=[...]."
            raise ValueError(argument_message("frequencies", received, expected, remedy))
    elif not isinstance(frequencies, str) and isinstance(frequencies, Iterable):
        wanted = frequencies.tolist() if isinstance(frequencies, Tensor) else list(frequencies)
    losses, shares = [], []
    for number, model in enumerate(listed):
        table = last if number == len(listed) - 1 else logit_table(model, p)
        restricted, excluded = split_table(table, wanted)
        parts = (table, train), (restricted, test or train), (excluded, train), (table, test or train)
        losses.append([table_loss(*part) for part in parts])
        shares.append(_waves_of(table).shares)
    curves = torch.tensor(losses, dtype=torch.float64).T  # (4, logs)
    keys, all_shares = torch.tensor([int(f) for f in wanted]), torch.stack(shares)
    return ProgressMeasures(
        p=p, frequencies=keys, steps=times, loss=curves[0].clone(), restricted_loss=curves[1].clone(),
        excluded_loss=curves[2].clone(), held_out_loss=None if test is None else curves[3].clone(),
        shares=all_shares[:, keys - 1], totals=all_shares.sum(1),
    )  # fmt: skip


def _steps(steps: Any, num_models: int) -> Tensor:
    """(logs,) float64."""
    times = torch.as_tensor(range(num_models) if steps is None else steps, dtype=torch.float64).cpu().clone()
    remedy = "Pass run.steps with run.history(seed)."
    if times.shape != (num_models,):
        received = f"has shape {tuple(times.shape)}"
        raise ValueError(argument_message("steps", received, f"({num_models},), one per model", remedy))
    check_finite("steps", times, remedy=remedy)
    return times


@dataclass(frozen=True, eq=False, repr=False)
class MechanismReport(Saved):
    """Four measures of a network that adds modulo p, each as (trained, untrained)."""

    p: int
    gradient_symmetricity: tuple[float, float]  # in [-1, 1]
    distance_irrelevance: tuple[float, float]  # in [0, 1]; nan where all correct logits are equal: an ideal clock
    logit_waves: tuple[float, float]  # share of the logits' variance in the waves of a + b - c
    separability: tuple[float, float] | None  # median over hidden units; None for a model without `hidden_units`

    def __repr__(self) -> str:
        names = "gradient_symmetricity", "distance_irrelevance", "logit_waves", "separability"
        rows = [f"MechanismReport(p = {self.p})", f"{'':24}{'trained':>10}{'untrained':>11}"]
        for name in names:
            both = getattr(self, name)
            if both is not None:
                rows.append(f"  {name.replace('_', ' '):22}{both[0]:10.4f}{both[1]:11.4f}")
        return "\n".join(rows)


def mechanism_report(
    model: nn.Module, p: int, *, untrained: nn.Module, embedding: str = "embedding", layer: str | None = None
) -> MechanismReport:
    """Measures of the algorithm by which a network adds, beside the same network untrained.

    `gradient_symmetricity`, `distance_irrelevance`, the total of `logit_waves`, and the median separability of
    `hidden_waves`. The first two are near 1 for many untrained networks, so that alone they say nothing.

    Args:
        model: a module as in `gradient_symmetricity`.
        p: the modulus.
        untrained: the same network with its initial weights, such as `run.history(seed)[0]`.
        embedding: name of the parameter in which tokens are looked up.
        layer: as in `hidden_units`; None leaves the separability out where the model has no such method.

    Returns:
        MechanismReport. Its distance irrelevance is nan where it is 0 / 0, where `distance_irrelevance` raises.

    Raises:
        ValueError, TypeError: as the functions named above.

    Cost:
        two forward passes over p^2 pairs of each network, and gradients of 1,000 logits.

    Source:
        Nanda et al. (2023); Zhong et al. (2023).
    """
    pairs: dict[str, list[float]] = {}
    has_units = layer is not None or callable(getattr(model, "hidden_units", None))
    for each in (model, untrained):
        table = logit_table(each, p)
        measured = {
            "gradient_symmetricity": gradient_symmetricity(each, p, embedding=embedding),
            "distance_irrelevance": distance_share(table),
            "logit_waves": _waves_of(table).total,
        }
        if has_units:
            measured["separability"] = hidden_waves(hidden_units(each, layer), p).median
        for name, value in measured.items():
            pairs.setdefault(name, []).append(value)
    both: dict[str, Any] = {name: tuple(values) for name, values in pairs.items()}
    return MechanismReport(p=p, **{"separability": None, **both})
