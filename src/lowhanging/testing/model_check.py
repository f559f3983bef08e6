"""Report on whether a model can be studied: a loss that is smooth in the weights, and a sum over examples.

The other tools refuse what stands in the way, one thing at a time; `check_model` lists all of it.
"""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lowhanging.errors import (
    NotSmoothWarning,
    a_type,
    argument_message,
    check_count,
    door,
)
from lowhanging.objective.batches import num_examples
from lowhanging.objective.model_loss import BatchLoss, LossFn
from lowhanging.objective.objective import FunctionObjective, Objective
from lowhanging.objective.protocol import Loss
from lowhanging.objective.random_state import private_generator, untouched_random_state
from lowhanging.tables import Columns, NotebookTable
from lowhanging.testing.oracles import finite_difference_hvp

_ROUNDING = {torch.float64: 1e-8, torch.float32: 2e-3}  # of a product, relative
_FEW = 64  # examples that check_model differentiates; the whole data set is read and validated
_RANDOM_LAYERS = (nn.modules.dropout._DropoutNd, nn.RNNBase, nn.MultiheadAttention)
_NORM_LAYERS = (nn.modules.batchnorm._BatchNorm,)
_SMOOTH = "smooth"
_TOOLS_AT_KINKS = "fine for slices, eigenpairs and Gauss-Newton, not for polish and canyons"
_REFUSALS = (ValueError, TypeError, RuntimeError)


@dataclass(frozen=True)
class Check:
    """One question that `check_model` asked, and its answer in one line."""

    name: str
    is_passed: bool
    detail: str


@dataclass(frozen=True)
class ModelCheck(NotebookTable):
    """What `check_model` found; `print(check)` is the report.

    Attributes:
        model: class of the model.
        checks: every question that was asked, in order.
        notes: what is worth knowing and no problem (layers that differ between training and evaluation, the engine).
    """

    model: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing stands in the way of studying this model on these data."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """One line per failed question."""
        return [f"{check.name}: {check.detail}" for check in self.checks if not check.is_passed]

    def columns(self) -> Columns:
        """One row for each question."""
        return {
            "question": [check.name for check in self.checks],
            "is_passed": [check.is_passed for check in self.checks],
            "detail": [check.detail for check in self.checks],
        }

    @property
    def is_kinked(self) -> bool:
        """Kinks, and nothing else: fine for slices, eigenpairs and Gauss-Newton, not for polish and canyons."""
        return [check.name for check in self.checks if not check.is_passed] == [_SMOOTH]

    def __repr__(self) -> str:
        found = "ok" if self.ok else f"{len(self.problems)} problem{'s' * (len(self.problems) > 1)}"
        found = "ok but for kinks" if self.is_kinked else found
        return f"ModelCheck({self.model}: {found}, {len(self.checks)} checks; print it for the report)"

    def __str__(self) -> str:
        found = "ok" if self.ok else "not ready to be studied"
        found = f"has kinks: {_TOOLS_AT_KINKS}" if self.is_kinked else found
        bad = "KINKS  " if self.is_kinked else "PROBLEM"
        lines = [f"{self.model}: {found}"]
        lines += [f"  {'ok     ' if c.is_passed else bad}  {c.name}: {c.detail}" for c in self.checks]
        return "\n".join(lines + [f"  note     {note}" for note in self.notes])


@door
def check_model(
    model: nn.Module,
    data: Any,
    *,
    loss_fn: LossFn | None = None,
    batch_loss: BatchLoss | None = None,
    mode: Literal["eval", "as_is"] = "eval",
    device: torch.device | str | None = None,
    seed: int = 0,
) -> ModelCheck:
    """Report on whether a model can be studied on these data; layer by layer, what stands in the way.

    Asked in this order: is the loss accepted by `Objective` (a function of the weights, a sum over examples, finite);
    is it deterministic; independent of how the examples are batched; smooth (differences of gradients converge as fast
    as those of a smooth function do); are products right by finite differences, and symmetric; is your model
    bit-identical afterwards. The derivatives are taken on at most 64 examples.

    What it can't see: operations that are used at other weights or on other examples only; a state that a model keeps
    in a list or a mapping of its own and changes in place; a loss that is kinked elsewhere; batches that a loader would
    draw differently next time (it is read once); and whether the loss is the one that you mean.

    Args:
        model: any nn.Module.
        data: as in `Objective`; an iterator is used up.
        loss_fn: as in `Objective`.
        batch_loss: as in `Objective`.
        mode: as in `Objective`.
        device: as in `Objective`.
        seed: of the random directions.

    Returns:
        ModelCheck with `.ok`, `.problems` and a report, `print(check)`.

    Raises:
        TypeError: model is no nn.Module.

    Example:
        >>> x = torch.linspace(-1, 1, 16).reshape(8, 2)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> check_model(net, (x, torch.arange(8) % 2)).ok
        True

    Cost:
        some forty gradients on 64 examples, and what `Objective` costs on the whole data set.
    """
    if not isinstance(model, nn.Module):
        remedy = "Wrap a function of theta in FunctionObjective(function, theta0)."
        raise TypeError(argument_message("model", f"is {a_type(model)}", "a torch.nn.Module", remedy))
    check_count("seed", seed, minimum=0, remedy="Any integer will do.")
    settings: dict[str, Any] = {"loss_fn": loss_fn, "batch_loss": batch_loss, "device": device, "distributed": False}
    before = _state(model)
    if isinstance(data, Iterator):
        with untouched_random_state():
            data = list(data)  # it may have to be read twice
    checks, notes = _layers(model, mode)
    stage = "accepted"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            whole = Objective(model, data, mode=mode, **settings)
            few = _few(whole)
            small = Objective(model, [few], mode=mode, **settings)
            size = f"{whole.num_examples:,} examples, {whole.num_params:,} weights"
            checks.append(Check(stage, True, f"{size}; derivatives on {small.num_examples} of the examples"))
            stage = "twice differentiable"
            checks.append(_deterministic(small))
            found = _independent_of_batching(
                small, few, lambda batch, size: Objective(model, [batch], mode=mode, micro_batch=size, **settings)
            )
            (notes if isinstance(found, str) else checks).append(found)  # type: ignore[arg-type]
            kinks = [_line(warning.message) for warning in caught if warning.category is NotSmoothWarning]
            checks += [_smooth(small, kinks[0] if kinks else None, seed), *_products(small, seed)]
            notes.append(f"products by {small.engine}" + (f" ({why})" if (why := small.fallback_reason) else ""))
        except _REFUSALS as error:
            checks.append(Check(stage, False, _line(error)))
            if mode != "eval":
                try:
                    Objective(model, data, mode="eval", **settings)
                    notes.append('mode="eval", the default, accepts this model')
                except _REFUSALS as again:
                    notes.append(f'mode="eval" is refused too: {_line(again)}')
    after = _state(model)
    changed = [name for name, value in before.items() if not _is_same(value, after.get(name))]
    detail = f"changed: {', '.join(changed)}" if changed else "the model and the global random states are as they were"
    checks.append(Check("left alone", not changed, detail))
    return ModelCheck(type(model).__name__, tuple(checks), tuple(notes))


def _layers(model: nn.Module, mode: str) -> tuple[list[Check], list[str]]:
    """What dropout and batch norm do in this mode: problems and notes, each naming its layer."""
    checks, notes = [], []
    for name, layer in model.named_modules():
        is_norm = isinstance(layer, _NORM_LAYERS)
        rates = [getattr(layer, rate, 0.0) for rate in ("p", "dropout")]
        if not is_norm and not (isinstance(layer, _RANDOM_LAYERS) and any(rates)):
            continue
        behaviour = "mixes the examples of a batch" if is_norm else "is random"
        line = f"layer {name!r} ({type(layer).__name__}) {behaviour} in training mode"
        if mode == "as_is" and layer.training:
            checks.append(Check("a function of the weights", False, f'{line}; use mode="eval", the default'))
        else:
            notes.append(f"{line}, and is evaluated in eval mode")
    return checks, notes


def _few(objective: Objective) -> Any:
    """At most 64 examples of the first micro-batch, all of it where it can't be cut."""
    batch = next(iter(objective.batches))
    return tree_map(lambda leaf: leaf[:_FEW], batch) if _can_be_cut(batch) else batch


def _can_be_cut(batch: Any) -> bool:
    size = num_examples(batch)
    return size > 1 and all(isinstance(x, Tensor) and x.ndim and len(x) == size for x in tree_leaves(batch))


def _deterministic(small: Objective) -> Check:
    (value, gradient), (again, other) = (small.value_and_gradient(small.theta0) for _ in range(2))
    off = max(_off(again, value), _off(other, gradient))
    is_passed = off <= 1e3 * torch.finfo(gradient.dtype).eps
    return Check("deterministic", is_passed, f"two evaluations differ by {off:.1e} of the gradient")


def _independent_of_batching(small: Objective, few: Any, make: Callable[[Any, int | None], Objective]) -> Check | str:
    """Whole against re-cut to a ragged pair, and against the examples in reverse; a note where they differ."""
    name, size = "independent of batching", small.num_examples
    if not _can_be_cut(few):
        return Check(name, True, "not asked: the batches can't be cut")
    gradient, off = small.gradient(small.theta0), 0.0
    try:
        for batch, cut in ((few, size // 2 + 1), (tree_map(lambda leaf: leaf.flip(0), few), None)):
            off = max(off, _off(make(batch, cut).gradient(small.theta0), gradient))
    except _REFUSALS as error:
        if not str(error).startswith("micro_batch "):
            return Check(name, False, _line(error))
        off = math.inf
    if not off <= _ROUNDING[gradient.dtype]:
        why = "the loss of an example depends on the others of its batch, or dimension 0 is not that of the examples"
        return f"{why}: batches are used as they come"
    return Check(name, True, f"re-cut or in reverse, the examples give gradients that differ by {off:.1e}")


def _smooth(small: Objective, kinks: str | None, seed: int) -> Check:
    """Whether central differences at steps h, h/2, h/4 ... approach each other by 4 per halving, as without kinks."""
    loss = _precise(small)
    theta, unit = loss.theta0, _random_rows(loss, 1, seed)[0]
    unit, eps = unit / unit.norm(), torch.finfo(loss.theta0.dtype).eps
    steps = [0.1 * max(1.0, float(theta.norm())) / 2**k for k in range(9)]
    noise = 1e2 * eps * float(loss.gradient(theta).norm())
    slopes = [(loss.gradient(theta + h * unit) - loss.gradient(theta - h * unit)) / (2 * h) for h in steps]
    changes = [float((a - b).norm()) for a, b in itertools.pairwise(slopes)]
    limits = [noise / h + 1e2 * eps * float(slope.norm()) for h, slope in zip(steps[1:], slopes[1:], strict=True)]
    # The first two halvings may still be too coarse for any law.
    orders = [math.log2(a / b) for a, b, limit in zip(changes[2:-1], changes[3:], limits[3:], strict=True) if b > limit]
    worst = max(orders, key=lambda order: abs(order - 2), default=2.0)
    law = f"differences of gradients shrink as step^{worst:.1f} (2 for a smooth loss)"
    if not orders:
        law = "differences of gradients are at rounding (a loss that is nearly quadratic here)"
    elif not -1.0 <= worst <= 5.0:
        law = "differences of gradients shrink by no power of the step (there are kinks inside it)"
    return Check(_SMOOTH, kinks is None and 1.3 <= worst <= 3.0, f"{kinks} Measured: {law}" if kinks else law)


def _products(small: Objective, seed: int) -> Iterator[Check]:
    u, v = _random_rows(small, 2, seed + 1)
    theta, rounding = small.theta0, _ROUNDING[small.theta0.dtype]
    image, other = small.hvp(theta, v), small.hvp(theta, u)
    precise = _precise(small)
    expected = finite_difference_hvp(precise, precise.theta0, v.to(precise.theta0))
    # Where H v nearly vanishes, what is left is the rounding of the gradient.
    scale = float(image.norm()) + float(small.gradient(theta).norm() * v.norm())
    off = float((image.to(expected.product) - expected.product).norm())
    detail = f"off by {off:.1e}, |Hv| = {float(image.norm()):.2e}"
    detail += f", predicted error of the differences {expected.error:.1e}"
    if expected.error > 0.1 * scale:  # then agreement within the error would prove nothing
        yield Check("products not checkable by finite differences, which are too rough", True, detail)
    else:
        yield Check("products right by finite differences", off <= expected.error + rounding * scale, detail)
    gap = abs(float(u.double() @ image.double() - v.double() @ other.double()))
    detail = f"u.Hv and v.Hu differ by {gap:.1e}"
    yield Check("products symmetric", gap <= rounding * scale * float(u.norm()), detail)


def _precise(small: Objective) -> Loss:
    """The loss in float64, or as it is where something in it insists on another precision."""
    try:
        return FunctionObjective(small.in_double(), small.theta0.double(), engine="double backward")
    except _REFUSALS:
        return small


def _random_rows(loss: Loss, num: int, seed: int) -> Tensor:
    generator = private_generator(seed, "model check")
    return torch.randn(num, loss.num_params, generator=generator, dtype=torch.float64).to(loss.theta0)


def _off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(torch.finfo(b.dtype).tiny))


def _line(message: Any) -> str:
    return " ".join(str(message).split())


def _state(model: nn.Module) -> dict[str, Any]:
    """All of the user's that an objective might have touched."""
    state: dict[str, Any] = {f"{name} (mode)": layer.training for name, layer in model.named_modules()}
    for name, parameter in model.named_parameters():
        state[name] = parameter.detach().clone()
        state[f"{name} (gradient)"] = None if parameter.grad is None else parameter.grad.detach().clone()
        state[f"{name} (requires_grad)"] = parameter.requires_grad
    state |= {f"{name} (buffer)": buffer.detach().clone() for name, buffer in model.named_buffers()}
    kind, keys, *position = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002
    state["torch's random state"], state["random's state"] = torch.get_rng_state(), random.getstate()
    return state | {"numpy's random state": (kind, keys.tolist(), *position)}


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    return bool(a == b)
