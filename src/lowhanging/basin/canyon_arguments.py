"""What may be asked of a canyon search? The checks that finding, following and the null model share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lowhanging.basin.canyon_points import Around
from lowhanging.basin.conflict import ConflictControl
from lowhanging.basin.eigenpairs import top_eigs
from lowhanging.basin.operators import hessian
from lowhanging.basin.shells import Array, Shell
from lowhanging.basin.subspace import Subspace
from lowhanging.errors import a_type, check_real, check_vector, explain
from lowhanging.loss import Loss, around, check_loss, check_same_buffers

DEFAULT_RTOL = {torch.float64: 1e-8, torch.float32: 1e-4}
_MOST_DIMENSIONS = 40  # of the default space
_PER_LOSS = 10  # eigenvectors that each loss gives to it


def aims(shell: Shell, aimed: Mapping[str, Tensor] | None) -> dict[str, Array]:
    """Name -> start, for both directions of every given vector."""
    remedy = 'Pass a mapping name -> vector (p,), such as {"keep number": direction}.'
    if aimed is not None and not isinstance(aimed, Mapping):
        raise TypeError(explain("aimed", f"is {a_type(aimed)}", "a mapping name -> vector", remedy))
    starts: dict[str, Array] = {}
    for name, vector in (aimed or {}).items():
        argument, p = f"aimed[{name!r}]", shell.loss.num_params
        v = check_vector(argument, vector, p, owner=str(shell.loss), remedy=remedy, allow_zero=False)
        share = float(shell.inside(v).norm() / v.double().norm())
        if share < 1e-3:
            received = f"has {share:.1e} of its length inside the space"
            raise ValueError(explain(argument, received, "a vector with a part inside", "Add it: space.union(...)."))
        if f"-{name}" in (aimed or {}):
            received = f"has the names {name!r} and '-{name}'"
            raise ValueError(explain("aimed", received, "one of them: both directions are tried", "Rename one."))
        starts[name], starts[f"-{name}"] = shell.coordinates(v), shell.coordinates(-v)
    return starts


def check_around(loss: Loss, evaluate: Mapping[str, Loss] | None, conflict: Any) -> Around:
    """What is to be evaluated at every point, with its values at theta0."""
    remedy = 'Pass a mapping such as {"number": objective}.'
    if evaluate is not None and not isinstance(evaluate, Mapping):
        raise TypeError(explain("evaluate", f"is {a_type(evaluate)}", "a mapping name -> objective", remedy))
    named = dict(evaluate or {})
    for name, objective in named.items():
        check_loss(f"evaluate[{name!r}]", objective)
        if objective.num_params != loss.num_params:
            received = f"has {objective.num_params} parameters"
            expected = f"{loss.num_params}, as the loss"
            raise ValueError(explain(f"evaluate[{name!r}]", received, expected, "Build both from the same model."))
    if conflict is not None and not isinstance(conflict, ConflictControl):
        received = f"is {a_type(conflict)}"
        remedy = "Make one: lh.ConflictControl(objective, inputs, targets)."
        raise TypeError(explain("conflict", received, "a ConflictControl", remedy))
    control = {} if conflict is None else {"the conflict control": conflict.objective}
    check_same_buffers({"the loss": loss, **named, **control})
    return Around.of(loss.theta0, named, conflict)


def check_space(space: Any, loss: Loss) -> Subspace | Literal["full"]:
    """A subspace of the loss's weight space with at least two dimensions, or "full"."""
    remedy = 'Pass pairs.subspace(), Subspace.span(rows), or "full".'
    if isinstance(space, str) and space == "full":
        return "full"
    if not isinstance(space, Subspace):
        received = f"is {space!r}" if isinstance(space, str) else f"is {a_type(space)}"
        raise TypeError(explain("space", received, 'a Subspace or "full"', remedy))
    if space.num_params != loss.num_params or space.dim < 2:
        expected = f"a Subspace of at least 2 of {loss.num_params} dimensions"
        raise ValueError(explain("space", f"is {space!r}", expected, remedy))
    return space


def default_space(loss: Loss, evaluate: Mapping[str, Loss]) -> Subspace:
    """The loss's top eigenvectors, then those of every evaluated objective, at loss.theta0; at most 40 dimensions."""
    k, space = min(_PER_LOSS, loss.num_params), None
    for objective in (loss, *evaluate.values()):
        found = top_eigs(hessian(around(objective, loss.theta0)), k=k, progress=False).subspace()
        space = found if space is None else space.union(found)
    assert space is not None
    return Subspace(space.basis[:_MOST_DIMENSIONS])


def check_levels(levels: Any) -> tuple[float, ...]:
    """One or several different levels."""
    remedy = "Pass radii, or energies in units of loss for the hessian metric, such as (0.05, 0.2)."
    if isinstance(levels, Tensor | np.ndarray):
        levels = levels.tolist()
    found = levels if isinstance(levels, Sequence) and not isinstance(levels, str) else (levels,)
    wanted = tuple(check_real("levels", level, minimum=0.0, exclusive=True, remedy=remedy) for level in found)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(explain("levels", f"are {wanted}", "one or several different numbers", remedy))
    return wanted


def check_rtol(rtol: float | None, loss: Loss) -> float:
    """The relative residual to reach, by default what the dtype allows."""
    if rtol is None:
        return DEFAULT_RTOL.get(loss.theta0.dtype, 1e-4)
    remedy = "Leave it out: 1e-8 in float64, 1e-4 in float32."
    return check_real("rtol", rtol, minimum=0.0, maximum=0.1, exclusive=True, remedy=remedy)
