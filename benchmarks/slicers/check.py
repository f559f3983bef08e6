"""Is a picture of the loss right? Asked of any slicer, of any package.

`check_slicer` hands a slicer a linear regression on eight examples, whose loss is exactly quadratic in the weights, and
compares what comes back with the values on paper. Nothing about that loss is symmetric: the gradient is not zero, u and
v have other curvatures, other lengths and no right angle, and the batches are ragged. So every fault changes the
picture, and the usual ones are recognised, because the picture that each of them gives is known on paper too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from slicers.faults import SWAPPED, diagnosis
from slicers.scene import Scene
from torch import Tensor

from lowhanging.errors import a_type, argument_message, check_count, check_real

Slicer = Callable[..., Any]  # (model, loader, loss_fn, u, v, alphas, betas) -> (num_alphas, num_betas)

_TOL = {torch.float64: 1e-10, torch.float32: 2e-5}


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
        raise TypeError(argument_message("slicer", f"is {a_type(slicer)}", "a function", remedy))
    counts = num if isinstance(num, tuple) else (num, num)
    for count in counts:
        check_count("num", count, minimum=5, remedy="num=(7, 5) is the default.")
    if len(counts) != 2 or not all(count % 2 for count in counts):
        raise ValueError(
            argument_message("num", f"is {num!r}", "one or two odd numbers", "Then the center is on the grid.")
        )
    if dtype not in _TOL:
        raise ValueError(argument_message("dtype", f"is {dtype}", "torch.float64 or torch.float32", "Leave it out."))
    check_real("extent", extent, minimum=0.0, exclusive=True, remedy="extent=1.0 is the default.")
    tol = _TOL[dtype] if tol is None else check_real("tol", tol, minimum=0.0, remedy="Leave it out.")
    name = getattr(slicer, "__name__", type(slicer).__name__)
    scene = Scene.make(counts, extent, dtype)
    before = scene.state()
    found, faults = _picture(slicer, scene)
    changed = scene.changed_since(before)
    expected = scene.grid()
    if found is None:
        return SlicerReport(name, math.inf, math.inf, faults, changed, torch.from_numpy(expected))
    errors = np.abs(found - expected)
    if not bool((errors <= tol * expected.max()).all()):  # NaN is an error too
        faults += diagnosis(scene, found, lambda: _picture(slicer, Scene.make(counts, extent, dtype))[0], tol)
    center = errors[counts[0] // 2, counts[1] // 2]
    worst, at_center = (math.inf if np.isnan(error) else float(error) for error in (errors.max(), center))
    return SlicerReport(name, worst, at_center, faults, changed, torch.from_numpy(expected), torch.from_numpy(found))


def _picture(slicer: Slicer, scene: Scene) -> tuple[np.ndarray | None, tuple[str, ...]]:
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
        return np.ascontiguousarray(found.T), (SWAPPED,)
    return None, (f"no picture: returned {kind} of shape {found.shape}, expected {counts}",)
