"""Is a picture of the loss right? Asked of any slicer, of any package.

`check_slicer` hands a slicer a linear regression on eight examples, whose loss is exactly quadratic in the weights, and
compares what comes back with the values on paper. Nothing about that loss is symmetric: the gradient is not zero, u and
v have other curvatures, other lengths and no right angle, and the batches are ragged. So every fault changes the
picture, and the usual ones are recognised, because the picture that each of them gives is known on paper too.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowhanging.errors import check_count, check_real, explain

Slicer = Callable[..., Any]  # (model, loader, loss_fn, u, v, alphas, betas) -> (num_alphas, num_betas)
_Explained = tuple[tuple[str, ...], np.ndarray]  # faults, and the picture that they give

_BATCHES = (5, 3)  # ragged: equal batches hide a wrong mean
_TOL = {torch.float64: 1e-10, torch.float32: 2e-5}
_INEXACT = 1e-5  # relative errors of single precision
_SWAPPED = "axes swapped: rows should follow u and columns v"


@dataclass(frozen=True, eq=False, repr=False)
class SlicerReport:
    """What `check_slicer` found; `print(report)` is the long form.

    Attributes:
        slicer: name of the slicer.
        worst_error: largest absolute difference from the values on paper; inf where nothing could be compared.
        center_error: the same at the center alone.
        faults: what is wrong with the picture, one line each, "name: detail"; empty where it is exact.
        changed: what of the model, or of u and v, was left other than it was; empty where nothing was.
        expected: (num_alphas, num_betas) float64, the values on paper.
        found: (num_alphas, num_betas) float64, the slicer's, or None where there are none.
    """

    slicer: str
    worst_error: float
    center_error: float
    faults: tuple[str, ...]
    changed: tuple[str, ...]
    expected: Tensor
    found: Tensor | None = None

    @property
    def is_exact(self) -> bool:
        """The picture is right, to rounding."""
        return not self.faults

    @property
    def ok(self) -> bool:
        """The picture is right, and the model is as it was."""
        return not self.faults and not self.changed

    def __repr__(self) -> str:
        names = ", ".join(fault.split(":")[0] for fault in self.faults)
        picture = f"WRONG ({names})" if self.faults else "exact"
        left = f"left changed: {', '.join(self.changed)}" if self.changed else "model left as it was"
        return f"SlicerReport({self.slicer}: {picture}, worst error {self.worst_error:.2g}; {left})"

    def __str__(self) -> str:
        low, high = float(self.expected.min()), float(self.expected.max())
        lines = [
            f"{self.slicer}: {'exact' if self.is_exact else 'the picture is wrong'}",
            f"  worst error {self.worst_error:.2g}, at the center {self.center_error:.2g}; "
            f"on paper the losses run from {low:.3g} to {high:.3g}",
            *(f"  PROBLEM  {fault}" for fault in self.faults),
            *(f"  PROBLEM  left changed: {name}" for name in self.changed),
        ]
        return "\n".join(lines if self.changed else [*lines, "  the model, u and v are as they were"])


def check_slicer(
    slicer: Slicer,
    *,
    num: int | tuple[int, int] = (7, 5),
    extent: float = 1.0,
    dtype: torch.dtype = torch.float64,
    tol: float | None = None,
) -> SlicerReport:
    r"""Does a slicer draw the loss where it says? Reports, on a loss that is known on paper, instead of raising.

    Write a small adapter around your tool, `slicer(model, loader, loss_fn, u, v, alphas, betas)`, which returns an
    array (num_alphas, num_betas) with the mean loss over all examples at theta + alphas[i] u + betas[j] v in [i, j]:

    * model: a small nn.Module, in training mode, its gradients filled, with a buffer that counts forward passes in
      training mode, as batch norm does;
    * loader: a DataLoader of (inputs, targets), 5 and 3 examples, always in the same order; tensors, for tools that
      want them, are `loader.dataset.tensors`;
    * loss_fn: (outputs, targets) -> mean over the examples it is given;
    * u, v: name -> tensor for each of the model's parameters, in their order; flat vectors are
      `torch.nn.utils.parameters_to_vector(u.values())`;
    * alphas, betas: float64 arrays, evenly spaced, symmetric around 0, odd in number.

    Faults that are named, also several at once: axes swapped, mirrored, shifted (all, or every second row), rescaled or
    orthogonalised directions, a drifting center, a constant picture, a sum for a mean, the mean of the means of ragged
    batches, one batch for all, a constant factor or offset, one altered value, a lower precision, a slicer that is
    random or crashes.

    Args:
        slicer: the adapter.
        num: steps along u and v, odd, at least 5. For a tool with square planes only pass one number; two different
            ones show an exchange of the axes by the shape alone.
        extent: largest alpha and beta.
        dtype: of the model and the data.
        tol: error allowed, relative to the largest loss on paper; by default 1e-10 in float64 and 2e-5 in float32.

    Returns:
        SlicerReport with `.ok`, `.faults`, `.changed` and `.worst_error`.

    Raises:
        TypeError, ValueError: slicer is no function, num is even or too small, another dtype.

    Example:
        >>> def constant(model, loader, loss_fn, u, v, alphas, betas):
        ...     inputs, targets = loader.dataset.tensors
        ...     loss = loss_fn(model.eval()(inputs), targets).item()
        ...     return [[loss for _ in betas] for _ in alphas]
        >>> check_slicer(constant)
        SlicerReport(constant: WRONG (constant), worst error 6.4; left changed: mode)

    Cost:
        one call of the slicer on eight examples; a second one where no known fault explains the first.
    """
    if not callable(slicer):
        remedy = "Pass a function (model, loader, loss_fn, u, v, alphas, betas) -> array."
        raise TypeError(explain("slicer", f"is a {type(slicer).__name__}", "a function", remedy))
    counts = num if isinstance(num, tuple) else (num, num)
    for count in counts:
        check_count("num", count, minimum=5, remedy="num=(7, 5) is the default.")
    if len(counts) != 2 or not all(count % 2 for count in counts):
        raise ValueError(explain("num", f"is {num!r}", "one or two odd numbers", "Then the center is on the grid."))
    if dtype not in _TOL:
        raise ValueError(explain("dtype", f"is {dtype}", "torch.float64 or torch.float32", "Leave it out."))
    check_real("extent", extent, minimum=0.0, exclusive=True, remedy="extent=1.0 is the default.")
    tol = _TOL[dtype] if tol is None else check_real("tol", tol, minimum=0.0, remedy="Leave it out.")
    name = getattr(slicer, "__name__", type(slicer).__name__)
    scene = _Scene.make(counts, extent, dtype)
    before = scene.state()
    found, faults = _picture(slicer, scene)
    changed = scene.changed_since(before)
    expected = scene.grid()
    if found is None:
        return SlicerReport(name, math.inf, math.inf, faults, changed, torch.from_numpy(expected))
    errors = np.abs(found - expected)
    if not bool((errors <= tol * expected.max()).all()):  # NaN is an error too
        faults += _diagnosis(scene, found, lambda: _picture(slicer, _Scene.make(counts, extent, dtype))[0], tol)
    center = errors[counts[0] // 2, counts[1] // 2]
    worst, at_center = (math.inf if np.isnan(error) else float(error) for error in (errors.max(), center))
    return SlicerReport(name, worst, at_center, faults, changed, torch.from_numpy(expected), torch.from_numpy(found))


class _Regression(nn.Module):
    """One linear layer, and a buffer that counts forward passes in training mode."""

    num_batches_tracked: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        outputs: Tensor = self.linear(inputs)
        return outputs


@dataclass(frozen=True, eq=False)
class _Scene:
    """What the slicer is given, and the same on paper: sum_k weights[k] (residuals[k] + features[k] . offset)^2."""

    model: nn.Module
    loader: DataLoader[Any]
    u: dict[str, Tensor]
    v: dict[str, Tensor]
    alphas: np.ndarray
    betas: np.ndarray
    directions: tuple[np.ndarray, np.ndarray]  # (4,) u and v, out of the slicer's reach
    features: np.ndarray  # (8, 4)
    residuals: np.ndarray  # (8,)

    @classmethod
    def make(cls, counts: tuple[int, ...], extent: float, dtype: torch.dtype) -> _Scene:
        with torch.random.fork_rng(devices=[]):  # a layer draws its first weights
            model = _Regression().to(dtype)
        numbers = torch.arange(24, dtype=torch.float64)
        inputs = (1.5 * torch.sin(1.7 * numbers) + 0.4).reshape(8, 3).to(dtype)
        targets = (2.0 * torch.cos(2.3 * numbers[:8]) + 0.7).reshape(8, 1).to(dtype)
        values = {"linear.weight": ([0.8, -0.6, 0.3], [1.0, -0.4, 0.2], [0.3, 0.9, -1.1]),
                  "linear.bias": ([0.25], [0.5], [-0.35])}  # fmt: skip
        theta, u, v = (
            {key: torch.tensor(row[i], dtype=dtype).reshape(value.shape) for (key, value), row in
             zip(model.named_parameters(), values.values(), strict=True)} for i in range(3)
        )  # fmt: skip
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(theta[key])
                parameter.grad = torch.full_like(parameter, 0.125)
        # A generator of its own: reading a loader otherwise draws from the global one.
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(inputs, targets), batch_size=_BATCHES[0], generator=generator)
        features = np.hstack([inputs.double().numpy(), np.ones((8, 1))])
        residuals = features @ _flat(theta) - targets.double().numpy()[:, 0]
        alphas, betas = (extent * np.linspace(-1.0, 1.0, count) for count in counts)
        return cls(model.train(), loader, u, v, alphas, betas, (_flat(u), _flat(v)), features, residuals)

    def state(self) -> dict[str, list[Any]]:
        parameters = list(self.model.parameters())
        return {
            "weights": [parameter.detach().clone() for parameter in parameters],
            "buffers": [buffer.clone() for buffer in self.model.buffers()],
            "gradients": [None if p.grad is None else p.grad.detach().clone() for p in parameters],
            "requires_grad": [parameter.requires_grad for parameter in parameters],
            "mode": [layer.training for layer in self.model.modules()],
            "u": [tensor.clone() for tensor in self.u.values()],
            "v": [tensor.clone() for tensor in self.v.values()],
        }

    def changed_since(self, before: dict[str, list[Any]]) -> tuple[str, ...]:
        after = self.state()
        return tuple(name for name, values in before.items() if not _is_same(values, after[name]))

    def grid(
        self,
        weights: np.ndarray | None = None,
        a: np.ndarray | None = None,
        b: np.ndarray | None = None,
        u: np.ndarray | None = None,
        v: np.ndarray | None = None,
    ) -> np.ndarray:
        """The picture on paper, (num_alphas, num_betas), at points a u + b v; by default what is asked for."""
        weights = np.full(len(self.residuals), 1 / len(self.residuals)) if weights is None else weights
        alphas, betas = np.meshgrid(self.alphas, self.betas, indexing="ij")
        along_u = self.features @ (self.directions[0] if u is None else u)
        along_v = self.features @ (self.directions[1] if v is None else v)
        offsets = np.multiply.outer(along_u, alphas if a is None else a)
        offsets += np.multiply.outer(along_v, betas if b is None else b)
        found: np.ndarray = np.tensordot(weights, (self.residuals[:, None, None] + offsets) ** 2, 1)
        return found

    def coefficients(self, weights: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(6,) of 1, alpha, beta, alpha^2 / 2, alpha beta, beta^2 / 2."""
        r, along_u, along_v = self.residuals, self.features @ u, self.features @ v
        pairs = ((along_u, along_u), (along_u, along_v), (along_v, along_v))
        slopes = [2 * weights @ (r * along_u), 2 * weights @ (r * along_v)]
        return np.array([weights @ r**2, *slopes, *(2 * weights @ (one * other) for one, other in pairs)])


def _picture(slicer: Slicer, scene: _Scene) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """What the slicer makes of the scene, (num_alphas, num_betas) or None, and what its shape or its crash says."""
    u, v, alphas, betas = scene.u, scene.v, scene.alphas.copy(), scene.betas.copy()
    try:
        returned = slicer(scene.model, scene.loader, F.mse_loss, u, v, alphas, betas)
    except Exception as error:
        return None, (f"crashed: {type(error).__name__}: {' '.join(str(error).split())}",)
    kind, counts = f"a {type(returned).__name__}", (len(alphas), len(betas))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors inside lists
            is_tensor = isinstance(returned, Tensor)
            found = np.array(returned.tolist() if is_tensor else returned, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        return None, (f"no picture: returned {kind}, expected an array {counts}",)
    if found.shape == counts:
        return found, ()
    if found.shape == counts[::-1]:
        return np.ascontiguousarray(found.T), (_SWAPPED,)
    return None, (f"no picture: returned {kind} of shape {found.shape}, expected {counts}",)


def _diagnosis(scene: _Scene, found: np.ndarray, again: Callable[[], np.ndarray | None], tol: float) -> tuple[str, ...]:
    """The fewest known faults that give this picture; where there are none, what can be said of the errors."""
    if not np.isfinite(found).all():
        return (f"not finite: {int((~np.isfinite(found)).sum())} of {found.size} values",)
    if float(np.ptp(found)) <= tol * float(np.abs(found).max()):
        return (f"constant: every value is {found[0, 0]:.6g}; the weights that are evaluated never move",)
    errors = np.abs(found - scene.grid()) / scene.grid().max()
    if errors.max() <= max(10 * tol, _INEXACT):
        return (f"inexact: off by up to {errors.max():.1e} of the largest loss; is it computed in lower precision?",)
    for faults, picture in itertools.chain(_known_pictures(scene), _fitted_pictures(scene, found, tol)):
        off = np.abs(found - picture) > 10 * tol * np.abs(picture).max()
        if off.sum() <= 1:
            where = [f"[{i}, {j}] by {found[i, j] - picture[i, j]:.3g}" for i, j in np.argwhere(off)]
            altered = [f"one value altered: entry {place}" for place in where]
            return (*faults, *altered)
    other = again()
    if other is None or not np.allclose(other, found, rtol=tol):
        return ("random: two calls on the same loss give other pictures; are u and v used?",)
    for order, row in (("row by row", errors.ravel()), ("column by column", errors.T.ravel())):
        ranks = row.argsort(kind="stable").argsort(kind="stable")
        correlation = float(np.corrcoef(ranks, np.arange(len(row)))[0, 1])
        if correlation > 0.8:
            detail = f"errors grow along the evaluation, {order} (rank correlation {correlation:.2f})"
            return (f"drifting center: {detail}; is the model moved in place?",)
    return ("unknown: none of the known faults gives this picture",)


def _known_pictures(scene: _Scene) -> Iterator[_Explained]:
    """Each combination of faults that changes the axes, the directions, the order or the loss; the fewest first."""
    kinds = (("", False), (_SWAPPED, True)), _directions(*scene.directions), _orders(scene), _means()
    for parts in sorted(itertools.product(*kinds), key=lambda parts: sum(bool(part[0]) for part in parts)):
        (swap, is_swapped), (turn, u, v), (order, a, b), (mean, weights) = parts
        first, second = (v, u) if is_swapped else (u, v)
        yield tuple(filter(None, (swap, turn, order, mean))), scene.grid(weights, a, b, first, second)


def _directions(u: np.ndarray, v: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """What becomes of (u, v), as given first."""
    found = [("", u, v), ("directions rescaled: to unit length", _unit(u), _unit(v))]
    for name, kept, turned in (("v", u, v), ("u", v, u)):
        rest = turned - (_unit(kept) @ turned) * _unit(kept)
        fault = f"directions orthogonalised: {name} replaced by its part orthogonal to the other"
        for text, one, other in (
            ("", kept, rest),
            (", its length kept", kept, rest * np.linalg.norm(turned) / np.linalg.norm(rest)),
            (", both of unit length", _unit(kept), _unit(rest)),
        ):
            found.append((fault + text, *((one, other) if name == "v" else (other, one))))
    return found


def _orders(scene: _Scene) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Where the points are that are evaluated, in units of u and v, as asked for first."""
    a, b = np.meshgrid(scene.alphas, scene.betas, indexing="ij")
    found = [("", a, b)]
    for parity, sign in itertools.product((0, 1), (1, -1)):
        rows, columns = (np.arange(count) % 2 == parity for count in a.shape)
        which, far = ("even", "odd")[parity] + "-numbered", f"one step {'ahead' if sign > 0 else 'back'}"
        along_u, along_v = (sign * (steps[1] - steps[0]) for steps in (scene.alphas, scene.betas))
        found.append((f"every second row shifted: {which} rows are {far}", a, b + along_v * rows[:, None]))
        found.append((f"every second column shifted: {which} columns are {far}", a + along_u * columns, b))
    fault = "drifting center: each point starts from the one before"
    walked = [np.cumsum(steps).reshape(a.shape) for steps in (a, b)]
    found.append((f"{fault}, row by row", walked[0], walked[1]))
    walked = [np.cumsum(steps.T).reshape(a.shape[::-1]).T for steps in (a, b)]
    found.append((f"{fault}, column by column", walked[0], walked[1]))
    return found


def _means() -> list[tuple[str, np.ndarray]]:
    """Weights of the examples in the loss, the right ones first."""
    n, sizes = sum(_BATCHES), np.repeat(_BATCHES, _BATCHES)
    is_first = np.arange(n) < _BATCHES[0]
    return [
        ("", np.full(n, 1 / n)),
        ("sum instead of mean: over the examples", np.ones(n)),
        ("mean of batch means: the ragged last batch weighs too much", 1 / (len(_BATCHES) * sizes)),
        ("sum of batch means: not divided by anything", 1 / sizes),
        ("one batch only: the first", is_first / sizes),
        ("one batch only: the last", ~is_first / sizes),
    ]


def _fitted_pictures(scene: _Scene, found: np.ndarray, tol: float) -> Iterator[_Explained]:
    """If the picture is that of a quadratic, the faults with a number in them that would give it."""
    a, b = np.meshgrid(scene.alphas, scene.betas, indexing="ij")
    design = np.stack([np.ones_like(a), a, b, a**2 / 2, a * b, b**2 / 2], -1).reshape(-1, 6)
    hat = design @ np.linalg.pinv(design)
    rest = (np.eye(len(hat)) - hat) @ found.ravel()
    kept = np.ones(len(rest), dtype=bool)
    if np.abs(rest).max() > tol * np.abs(found).max():
        # If all values but one are a quadratic's, that one has the largest residual, relative to its leverage.
        kept[np.argmax(np.abs(rest) / np.sqrt(1 - np.diag(hat)))] = False
    fit = np.linalg.lstsq(design[kept], found.ravel()[kept], rcond=None)[0]
    picture = (design @ fit).reshape(found.shape)
    steps, explained = (scene.alphas, scene.betas), []
    exchanged = fit[[0, 2, 1, 5, 4, 3]]  # the coefficients, had the steps along u been the betas
    for (swap, numbers, of_u_and_v), (mean, weights) in itertools.product(
        [("", fit, steps), (_SWAPPED, exchanged, steps[::-1])], _means()
    ):
        paper = scene.coefficients(weights, *scene.directions)
        scale = 30 * tol * float(np.abs(fit).max())
        for cost, faults in (
            *_factor_or_offset(paper, numbers, scale),
            *_moved_steps(paper, numbers, scale, of_u_and_v),
            *_rescaled_tensors(scene, weights, numbers, scale),
        ):
            explained.append((cost + bool(swap) + bool(mean), tuple(filter(None, (swap, *faults, mean)))))
    # Several moves of the steps give the same quadratic (which a reflection about its minimum leaves as it is).
    yield from ((faults, picture) for _, faults in sorted(explained))


def _factor_or_offset(paper: np.ndarray, fit: np.ndarray, scale: float) -> Iterator[tuple[int, tuple[str, ...]]]:
    factor = float(fit @ paper / (paper @ paper))
    if np.abs(fit - factor * paper).max() <= scale:
        yield 1, (f"constant factor: every value is {factor:.6g} times as large",)
    if np.abs(fit - paper)[1:].max() <= scale:
        yield 1, (f"constant offset: every value is off by {fit[0] - paper[0]:.6g}",)


def _moved_steps(
    paper: np.ndarray, fit: np.ndarray, scale: float, of_u_and_v: tuple[np.ndarray, ...]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Steps that are stretch * alpha + shift, and the same of beta: mirrored, shifted or rescaled."""
    slopes, curvatures = paper[1:3], np.array([[paper[3], paper[4]], [paper[4], paper[5]]])
    ratios = fit[[3, 5]] / paper[[3, 5]]
    for signs in itertools.product((1, -1), (1, -1)) if (ratios > 0).all() else ():
        stretches = np.array(signs) * np.sqrt(ratios)
        shifts = np.linalg.solve(curvatures, fit[1:3] / stretches - slopes)
        cross = fit[4] - stretches.prod() * paper[4]
        start = fit[0] - (paper[0] + slopes @ shifts + shifts @ curvatures @ shifts / 2)
        if max(abs(cross), abs(start)) > scale:
            continue
        cost, faults = 0, []
        for name, steps, stretch, shift in zip("uv", of_u_and_v, stretches, shifts, strict=True):
            in_steps = shift / (steps[1] - steps[0])
            is_mirrored, is_rescaled, is_shifted = stretch < 0, abs(abs(stretch) - 1) > 1e-3, abs(in_steps) > 1e-3
            cost += sum(map(int, (is_mirrored, is_rescaled, is_shifted)))
            if is_rescaled:
                ends = f"from {stretch * steps[0] + shift:.4g} to {stretch * steps[-1] + shift:.4g}"
                faults.append(f"rescaled along {name}: steps run {ends}, not from {steps[0]:.4g} to {steps[-1]:.4g}")
            elif is_mirrored:
                faults.append(f"mirrored along {name}: the first step is the last")
            if is_shifted and not is_rescaled:
                faults.append(f"shifted along {name}: by {in_steps:+.3g} steps")
        yield cost, tuple(faults)


def _rescaled_tensors(
    scene: _Scene, weights: np.ndarray, fit: np.ndarray, scale: float
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Each tensor of u and of v rescaled by itself: a line (the slope) meets a conic (the curvature)."""
    parts = np.cumsum([tensor.numel() for tensor in scene.u.values()])[:-1]
    solutions = []
    for direction, slope, curvature in zip(scene.directions, fit[1:3], fit[[3, 5]], strict=True):
        pieces = [np.where(np.arange(len(direction)) < parts[0], direction, 0.0)]
        pieces.append(direction - pieces[0])
        paper = scene.coefficients(weights, *pieces)
        line, conic = paper[1:3], np.array([[paper[3], paper[4]], [paper[4], paper[5]]])
        foot, along = slope * line / (line @ line), np.array([-line[1], line[0]])
        roots = np.roots([along @ conic @ along, 2 * foot @ conic @ along, foot @ conic @ foot - curvature])
        factors = [foot + root.real * along for root in roots if abs(root.imag) < 1e-4]
        solutions.append([(factor, factor[0] * pieces[0] + factor[1] * pieces[1]) for factor in factors])
    for (of_u, new_u), (of_v, new_v) in itertools.product(*solutions):
        if np.abs(fit - scene.coefficients(weights, new_u, new_v)).max() <= scale:
            told = [f"{name} by {f[0]:.3g}, {f[1]:.3g}" for name, f in (("u", of_u), ("v", of_v))]
            yield 4, (f"directions rescaled: tensor by tensor ({' and '.join(scene.u)}: {'; '.join(told)})",)


def _flat(parts: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([part.detach().double().numpy().ravel() for part in parts.values()])


def _unit(direction: np.ndarray) -> np.ndarray:
    unit: np.ndarray = direction / np.linalg.norm(direction)
    return unit


def _is_same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
        if isinstance(one, Tensor) and isinstance(other, Tensor)
        else one is other
        for one, other in zip(before, after, strict=True)
    )
