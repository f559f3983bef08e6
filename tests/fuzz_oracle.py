"""Central differences of a user's loss, computed without the library, and the verdict on what the library makes of it.

A scene is what a user has: a model, data, and what is passed with them. The reference builds the same model again, in
float64 and in eval mode, evaluates the same loss in plain Python over the batches as the loader yields them (sum over
batches of the sum, over the count), and moves the weights. Products are differences of torch's gradients, at two steps
whose disagreement is the error of the difference. Torch's gradient is itself compared with differences of values: where
it is not the derivative of the loss (padding_idx, scale_grad_by_freq, detach) or not finite, gradient and products are
differences of values too.
"""

from __future__ import annotations

import functools
import math
import re
import shlex
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

import lowhanging as lh

# Relative tolerance, by the dtype of the model.
RELATIVE = {torch.float64: 1e-5, torch.float32: 1e-2, torch.bfloat16: 1e-2}
# Of the gradient's size: where a product nearly vanishes, what is left of it is rounding.
FLOOR = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 1e-4}

Kind = Literal["right", "refused", "valid but refused", "wrong", "raw", "left changed", "no reference"]
Mean = Callable[[nn.Module, list[Any]], Tensor]


@dataclass
class Scene:
    """What a user has, and what its mean loss is.

    Attributes:
        build: makes the model; called with the same seed for the user's and for the reference's.
        data: what Objective is given.
        mean: the mean loss over the batches as they come, in plain Python, of a model.
        options: the other arguments of Objective.
        dtype: of the model; the data come in the dtype that they have.
        batches: the data as a list of batches; by default what reading `data` gives.
        reference: makes the model of the reference, where torch itself would untie its weights in float64.
        may_refuse: why the library may refuse this; "" where it must give the numbers.
        objective: makes the objective, where it is no Objective(model, data).
        num_threads: threads that ask one objective for products at the same time.
    of: what the seed has chosen, in words.
    apart: (model, batch) -> outputs, and (outputs, batch) -> (sum, count), where the Gauss-Newton matrix is asked for.
    is_widened: whether the same loss in float64 is asked for too.
    is_partial: whether the block of the first named weights is asked for, and values at several points at once.
    """

    build: Callable[[], nn.Module]
    data: Any
    mean: Mean
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    batches: list[Any] | None = None
    reference: Callable[[], nn.Module] | None = None
    may_refuse: str = ""
    objective: Callable[[nn.Module], Any] | None = None
    num_threads: int = 1
    of: str = ""
    apart: tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, int]]] | None = None
    is_widened: bool = False
    is_partial: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    case: str
    kind: Kind
    words: str = ""

    def __str__(self) -> str:
        again = f"PYTHONPATH=tests python tests/objective/test_fuzz.py {shlex.quote(self.case)}"
        return f"{self.kind}: {self.words}\n    {again}"


# The reference --------------------------------------------------------------------------------------------------------


class NoReferenceError(Exception):
    """The differences do not agree with each other: the case says nothing."""


class Reference:
    """Value, gradient and products of a mean loss at a point theta0 + offset, in float64."""

    def __init__(self, model: nn.Module, mean: Callable[[nn.Module], Tensor]):
        self.model, self._mean = model.eval(), mean
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._start = [weight.detach().clone() for weight in self.weights]
        self.num_params = sum(weight.numel() for weight in self.weights)
        self.theta0 = torch.cat([weight.reshape(-1) for weight in self._start])

    def value(self, offset: Tensor) -> float:
        return float(self._at(offset).detach())

    def torch_gradient(self, offset: Tensor) -> Tensor:
        found = torch.autograd.grad(self._at(offset), self.weights, allow_unused=True)
        pairs = zip(found, self.weights, strict=True)
        return torch.cat([torch.zeros_like(w).reshape(-1) if g is None else g.to_dense().reshape(-1) for g, w in pairs])

    def gradient_is_derivative(self, offset: Tensor, v: Tensor) -> bool:
        """Whether torch's gradient is the derivative of the value, along a v of which every entry counts."""
        gradient = self.torch_gradient(offset)
        if not bool(torch.isfinite(gradient).all()):
            return False
        slope, error = difference(lambda h: self._value(offset + h * v))
        wrong = abs(float(slope - gradient @ v))
        return wrong <= 1e-6 * float(gradient.norm()) * float(v.norm()) + 10 * error + 1e-10

    def gradient(self, offset: Tensor, *, by_values: bool) -> Tensor:
        if not by_values:
            return self.torch_gradient(offset)
        rows = torch.eye(self.num_params, dtype=torch.float64)
        return torch.stack([difference(lambda h, e=e: self._value(offset + h * e))[0] for e in rows])

    def product(self, offset: Tensor, v: Tensor, *, by_values: bool) -> tuple[Tensor, float]:
        """The Hessian times v, and the error of the difference."""
        if not by_values:
            return difference(lambda h: self.torch_gradient(offset + h * v))
        rows, h = torch.eye(self.num_params, dtype=torch.float64), 2e-3

        def mixed(h: float) -> Tensor:
            corners = [
                self._value(offset + h * v + h * e)
                - self._value(offset + h * v - h * e)
                - self._value(offset - h * v + h * e)
                + self._value(offset - h * v - h * e)
                for e in rows
            ]
            return torch.stack(corners) / (4 * h * h)

        coarse, fine = mixed(h), mixed(h / 2)
        return (4 * fine - coarse) / 3, float((coarse - fine).norm()) / 3 + 1e-8

    def gauss_newton(self, v: Tensor, scene: Scene, batches: list[Any]) -> tuple[Tensor, float]:
        """J' B J v: J and B by differences, J' by torch's gradient of the outputs."""
        outputs, sum_of = scene.apart
        total, count, errors = torch.zeros_like(v), 0, 0.0
        for batch in batches:
            jv, error = difference(lambda h, batch=batch: self._moved(h * v, outputs, batch).detach())
            z = self._moved(torch.zeros_like(v), outputs, batch)

            def slope(h: float, batch: Any = batch, z: Tensor = z, u: Tensor = jv) -> Tensor:
                moved = (z.detach() + h * u).requires_grad_()
                return torch.autograd.grad(sum_of(moved, batch)[0], moved)[0]

            bjv, error_of_slope = difference(slope)
            found = torch.autograd.grad(z, self.weights, bjv, allow_unused=True, materialize_grads=True)
            total += torch.cat([part.reshape(-1) for part in found])
            count += sum_of(z, batch)[1]
            errors += error + error_of_slope
        return total / count, errors / count

    def _value(self, offset: Tensor) -> Tensor:
        return self._at(offset).detach().reshape(())

    def _at(self, offset: Tensor) -> Tensor:
        return self._moved(offset, self._mean)

    def _moved(self, offset: Tensor, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """function(model, *arguments), the weights moved by an offset (p,)."""
        with torch.no_grad():
            pieces = offset.split([weight.numel() for weight in self.weights])
            for weight, start, piece in zip(self.weights, self._start, pieces, strict=True):
                weight.copy_(start + piece.view_as(start))
        return function(self.model, *arguments)


def difference(function: Callable[[float], Tensor]) -> tuple[Tensor, float]:
    """Derivative of a tensor function at 0 by central differences, extrapolated from two steps, and its error."""
    for h in (1e-4, 1e-5, 1e-6):  # a kink between the points: come nearer
        coarse, fine = ((function(step) - function(-step)) / (2 * step) for step in (h, h / 2))
        error = float((coarse - fine).norm()) / 3
        if error <= 1e-6 * float(fine.norm()) + 1e-9:
            return (4 * fine - coarse) / 3, error
    if not math.isfinite(error) or error > 1e-3 * float(fine.norm()) + 1e-7:
        raise NoReferenceError(f"two steps of the difference disagree by {error:.1e} of {float(fine.norm()):.1e}")
    return fine, error


def read(data: Any) -> list[Any]:
    """The batches of what a user passes as data, read as any training loop would."""
    if isinstance(data, tuple):
        return [data]
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset | DataLoader):
        return [default_collate([data[i] for i in range(len(data))])]
    return list(data)


def in_float64(batch: Any) -> Any:
    """A batch with its real numbers in float64."""

    def widen(leaf: Any) -> Any:
        leaf = torch.from_numpy(np.array(leaf)) if isinstance(leaf, np.ndarray) else leaf
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    if isinstance(batch, Mapping) and type(batch) is not dict:
        return type(batch)({name: widen(leaf) for name, leaf in batch.items()})
    return tree_map(widen, batch)


# The verdict ----------------------------------------------------------------------------------------------------------


def judged(name: str, make: Callable[[], Scene], *, seed: int = 0) -> Outcome:
    """What the library makes of a scene, in a thread of its own: what one case leaves in it can't reach the next."""
    found: list[Outcome] = []

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found.append(_judged(name, make, seed))
            except NoReferenceError as error:
                found.append(Outcome(name, "no reference", str(error)))
            except Exception:  # the fuzz's own fault: said, and never taken for a verdict
                found.append(Outcome(name, "no reference", traceback.format_exc()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def _judged(name: str, make: Callable[[], Scene], seed: int) -> Outcome:
    torch.manual_seed(seed)
    scene = make()
    batches = read(scene.data) if scene.batches is None else scene.batches
    torch.manual_seed(seed + 1)
    user = scene.build()
    torch.manual_seed(seed + 1)
    wide = [in_float64(batch) for batch in batches]
    own = (scene.reference or scene.build)().double()
    reference = Reference(own, lambda model: scene.mean(model, wide))
    generator = torch.Generator().manual_seed(seed)
    v, w = (torch.randn(reference.num_params, dtype=torch.float64, generator=generator) for _ in range(2))
    v, w = v / v.norm(), w / w.norm()
    try:
        wanted = _wanted(reference, v, w, scene, wide)
    except NoReferenceError:
        if not scene.may_refuse:
            raise
        wanted = {}  # a random one, say: it has to be refused
    before = _afterwards(scene, user, batches)
    problems: list[str] = []
    try:
        loss = (scene.objective or (lambda model: lh.Objective(model, scene.data, **scene.options)))(user)
        if seed % 2 and isinstance(loss, lh.Objective | lh.FunctionObjective):
            loss._products._recorded_after = 0  # as if a recording paid at once: it must be right, or not be used
        if loss.num_params != reference.num_params:
            return Outcome(name, "wrong", f"theta has {loss.num_params} entries for {reference.num_params}")
        if not wanted:
            return Outcome(name, "wrong", "it is no function of the weights, and was taken")
        problems = _compared(loss, wanted, v, w, scene)
    except Exception as error:
        if _is_ours(error):
            first = " | ".join(str(error).splitlines())
            kind: Kind = "refused" if scene.may_refuse else "valid but refused"
            outcome = Outcome(name, kind, f"{type(error).__name__}: {first}; {scene.of}")
            return _and_left(outcome, scene, user, batches, before)
        place = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).splitlines() or [""])[0]
        words = f"{type(error).__name__}: {first} ({place.filename.rpartition('/')[2]}:{place.lineno}); {scene.of}"
        return _and_left(Outcome(name, "raw", words), scene, user, batches, before)
    if problems:
        how = f"engine {loss.engine}" + (f" ({loss.fallback_reason})" if getattr(loss, "fallback_reason", None) else "")
        return Outcome(name, "wrong", "; ".join([*problems, how, *([scene.of] if scene.of else [])]))
    return _and_left(Outcome(name, "right"), scene, user, batches, before)


def _wanted(
    reference: Reference, v: Tensor, w: Tensor, scene: Scene, batches: list[Any]
) -> dict[str, tuple[Tensor, float]]:
    """What the library should give, each with the error of the difference."""
    here, there = torch.zeros_like(v), 0.1 * w
    wanted = {}
    by_values = not reference.gradient_is_derivative(here, v)
    for place, offset, directions in (("", here, (v, w)), (" elsewhere", there, (v,))):
        wanted["value" + place] = (torch.tensor(reference.value(offset), dtype=torch.float64), 0.0)
        wanted["gradient" + place] = (reference.gradient(offset, by_values=by_values), 0.0)
        for name, direction in zip(("product", "second product"), directions, strict=False):
            wanted[name + place] = reference.product(offset, direction, by_values=by_values)
    if scene.is_partial:
        size = reference.weights[0].numel()
        product, error = reference.product(here, torch.cat([v[:size], 0 * v[size:]]), by_values=by_values)
        wanted["product of a part"] = (product[:size], error)
    if scene.apart is not None and not by_values:
        wanted["Gauss-Newton product"] = reference.gauss_newton(v, scene, batches)
    return wanted


def _compared(loss: Any, wanted: dict[str, tuple[Tensor, float]], v: Tensor, w: Tensor, scene: Scene) -> list[str]:
    """Where the library's numbers are not these."""
    theta, moved = loss.theta0, loss.theta0 + 0.1 * w.to(loss.theta0)
    v, w = v.to(theta), w.to(theta)
    got: dict[str, Tensor] = {"value": loss(theta), "gradient": loss.gradient(theta)}
    got["product"] = loss.hvp(theta, v)
    got["second product"] = loss.hvp(theta, w)
    block = lh.hessian(loss) @ torch.stack([v, w], dim=1)
    got["product of a block"], got["second product of a block"] = block[:, 0], block[:, 1]
    got["value elsewhere"], got["gradient elsewhere"] = loss(moved), loss.gradient(moved)
    got["product elsewhere"] = loss.hvp(moved, v)
    got["product again"] = loss.hvp(theta, v)
    if "Gauss-Newton product" in wanted:
        matrix = lh.gauss_newton(loss)
        got["Gauss-Newton product"], got["Gauss-Newton product again"] = matrix @ v, matrix @ v
    if scene.is_partial:
        part = lh.hessian(loss, parameters=[loss.space.names[0]])
        got["product of a part"] = part @ v[: part.shape[0]]
        try:
            got["value of many"], got["value elsewhere of many"] = loss.evaluate_many(torch.stack([theta, moved]))[0]
        except ValueError as error:  # torch.vmap follows some layers not, and slices then go point by point
            if "at several points at once" not in str(error):
                raise
    if scene.is_widened:
        got["product in float64"] = loss.double().hvp(theta.double(), v.double())
    if scene.num_threads > 1:
        got |= _in_threads(loss, theta, moved, v)
    size = float(wanted["gradient"][0].norm()) + 1e-6
    problems = []
    for name, number in got.items():
        right, error = wanted[re.sub(r" of a block| of many| again| in threads| in float64", "", name)]
        dtype = torch.float64 if "float64" in name else scene.dtype
        allowed = RELATIVE[dtype] * float(right.norm()) + FLOOR[dtype] * size + 10 * error
        apart = float((number.double() - right).norm())
        if not apart <= allowed:
            scale = float(right.norm())
            got_words = f"{float(number):.6g} for {float(right):.6g}" if not number.ndim else f"norm {scale:.3g}"
            relative = f"{apart / scale:.2g}" if scale else f"{apart:.2g} (right: 0)"
            problems.append(f"{name} off by {relative} ({got_words})")
    return problems


def _in_threads(loss: Any, theta: Tensor, moved: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Products at two points from two threads at once: of each, the one that differs most from the first."""
    places = {"product": theta, "product elsewhere": moved}
    first = {name: loss.hvp(place, v) for name, place in places.items()}
    worst = dict(first)
    errors: list[Exception] = []

    def work(name: str) -> None:
        try:
            for _ in range(60):
                got = loss.hvp(places[name], v)
                if float((got - first[name]).norm()) > float((worst[name] - first[name]).norm()):
                    worst[name] = got
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return {f"{name} in threads": got for name, got in worst.items()}


def _is_ours(error: Exception) -> bool:
    """Whether this is a message of the library's own form: what was received, expected, and what to do."""
    is_kind = isinstance(error, ValueError | TypeError | RuntimeError)
    return is_kind and re.search(r".+, expected .+\.\n.+", str(error), re.DOTALL) is not None


def _afterwards(scene: Scene, user: nn.Module, batches: list[Any]) -> tuple[Tensor, ...]:
    """What the user's own model and backward pass give."""
    if scene.dtype == torch.bfloat16 or scene.reference is not None:
        return ()  # torch lacks many kernels; what a stored view was made of can be differentiated once
    flags = [module.training for module in user.modules()]
    user.eval()
    loss = scene.mean(user, [_as(batch, user) for batch in batches])
    weights = [weight for weight in user.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    for module, flag in zip(user.modules(), flags, strict=True):
        module.training = flag
    gradient = [torch.zeros(1) if part is None else part.detach().to_dense().clone() for part in found]
    return (loss.detach().clone(), *gradient)


def _as(batch: Any, model: nn.Module) -> Any:
    """A batch whose half-precision numbers are in the model's dtype, as a user would have them."""
    dtype = next(model.parameters()).dtype

    def widen(leaf: Any) -> Any:
        leaf = torch.from_numpy(np.array(leaf)) if isinstance(leaf, np.ndarray) else leaf
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    if isinstance(batch, Mapping) and type(batch) is not dict:
        return type(batch)({name: widen(leaf) for name, leaf in batch.items()})
    return tree_map(widen, batch)


def _and_left(
    outcome: Outcome, scene: Scene, user: nn.Module, batches: list[Any], before: tuple[Tensor, ...]
) -> Outcome:
    """The outcome, or what the library has left changed: the user's model must run, and differentiate, as before."""
    try:
        after = _afterwards(scene, user, batches)
        near = {"rtol": RELATIVE[scene.dtype], "atol": FLOOR[scene.dtype]}
        is_same = scene.may_refuse or all(map(functools.partial(torch.allclose, equal_nan=True, **near), before, after))
        words = "" if is_same else "the user's own loss or gradient is another afterwards"
    except Exception as error:
        words = f"the user's own model raises afterwards: {type(error).__name__}: {str(error).splitlines()[0]}"
    return outcome if not words else replace(outcome, kind="left changed", words=f"{words} ({outcome})")


def summary(outcomes: list[Outcome]) -> str:
    """How many of each kind, in one line."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.kind] = counts.get(outcome.kind, 0) + 1
    return f"{len(outcomes)} cases: " + ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
