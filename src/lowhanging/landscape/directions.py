"""Directions in weight space by draw or by geometry: random, between checkpoints, principal, orthogonalized.

No loss is evaluated here. Directions keep the device and the dtype of the weights that they belong to, so that
`loss.theta0 + 2 * direction` always works; inside, everything is computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from lowhanging.curvature.operators import plain_arithmetic
from lowhanging.errors import (
    argument_message,
    check_choice,
    check_count,
    check_vector,
    door,
)
from lowhanging.io import Saved
from lowhanging.objective.checkpoints import Point, listed_points, thetas_of
from lowhanging.objective.protocol import Loss, around, check_loss, own_vector
from lowhanging.objective.random_state import private_generator

Normalization = Literal["gaussian", "layer", "filter"]
NORMALIZATIONS = ("gaussian", "layer", "filter")


@dataclass(frozen=True, eq=False, repr=False)
class OrthogonalDirections(Saved):
    """Directions after Gram-Schmidt, with the lengths they had, and by how much each was turned."""

    directions: Tensor  # (k, p) orthogonal rows, each as long as the row it came from
    turned: Tensor  # (k,) float64, degrees between each row and the one it came from; the first is 0
    cosines: Tensor  # (k, k) float64, between the rows as they were given

    def __repr__(self) -> str:
        angles = ", ".join(f"{float(angle):.3g}°" for angle in self.turned)
        size = f"{len(self.directions)} of length {self.directions.shape[1]:,}"
        return f"OrthogonalDirections({size}, turned by {angles})"


@dataclass(frozen=True, eq=False, repr=False)
class PrincipalDirections(Saved):
    """The directions in which checkpoints spread most, around a center."""

    directions: Tensor  # (k, p) orthonormal rows, the widest spread first
    explained: Tensor  # (k,) float64, share of the checkpoints' squared distances from the center
    center: Tensor  # (p,)
    around: str  # "last" | "mean": what the center is

    def __repr__(self) -> str:
        shares = ", ".join(f"{100 * float(share):.1f} %" for share in self.explained)
        return f"PrincipalDirections({len(self.directions)} around the {self.around} checkpoint, explaining {shares})"


@door
@torch.inference_mode(False)
def random_direction(
    loss: Loss,
    *,
    normalization: Normalization = "gaussian",
    biases: Literal["zero", "layer", "copy"] = "zero",
    seed: int = 0,
) -> Tensor:
    r"""A Gaussian direction: of unit norm, or scaled to the weights so that networks can be compared.

    * "gaussian": d ~ N(0, I), divided by its norm.
    * "layer": in each weight tensor W, d_W <- d_W |W| / |d_W|.
    * "filter": in each filter W_j (the weights into one output channel or unit: slice j along the first dimension of
      a tensor with at least two, along the second in transposed convolutions), d_j <- d_j |W_j| / |d_j|: a step of 1
      is as large as the weights of every filter.

    Rescaling a layer and undoing it in the next (as ReLU networks allow) changes nothing in a slice along a
    filter-normalized direction, while it stretches or shrinks one along a plain Gaussian direction. The norm of "layer"
    and "filter" directions is not 1 but that of the weights which they cover.

    Args:
        loss: any loss; where it comes from a model, its named tensors at its theta0 set the scales.
        normalization: "gaussian", "layer" or "filter".
        biases: for "layer" and "filter" only: what tensors with one dimension or none get, biases and the scales and
            shifts of norms. "zero": they stay as they are (the usual choice); "layer": a random part as long as the
            tensor; "copy": the tensor itself, so that they are scaled by 1 + alpha.
        seed: of the draw; the global random state is not used, and all devices get the same direction.

    Returns:
        (p,) on the device and in the dtype of theta0. Two seeds give almost, but not exactly, orthogonal directions;
        see `gram_schmidt`.

    Raises:
        ValueError, TypeError: "layer" or "filter" for a loss without named tensors, or nothing left to move.

    Source:
        Li, Xu, Taylor, Studer & Goldstein (2018), "Visualizing the loss landscape of neural nets".
    """
    check_loss("loss", loss)
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("biases", biases, ("zero", "layer", "copy"))
    seed = check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    generator = private_generator(seed, "direction")
    theta = loss.theta0
    drawn = torch.randn(theta.numel(), generator=generator, dtype=torch.float64).to(theta.device)
    if normalization == "gaussian":
        unit: Tensor = drawn / drawn.norm()
        return unit.to(theta.dtype)
    space = loss.space
    if space is None:
        received = f"is {normalization!r} for a loss without named tensors ({type(loss).__name__})"
        expected = "an Objective, whose model has layers and filters"
        raise ValueError(argument_message("normalization", received, expected, 'Use normalization="gaussian".'))
    weights, parts = space.unflatten(theta.double()), space.unflatten(drawn)
    scaled = [
        _scaled(parts[name], weights[name], normalization, biases, space.filter_dims.get(name, 0))
        for name in space.names
    ]
    direction = torch.cat([part.reshape(-1) for part in scaled]).to(theta.dtype)
    if not bool(direction.any()):
        received = f"is {biases!r}, and the model has no other tensor whose weights are not zero"
        expected = "a direction that moves something"
        raise ValueError(argument_message("biases", received, expected, 'Use biases="layer".'))
    return direction


def _scaled(part: Tensor, weight: Tensor, normalization: str, biases: str, filter_dim: int) -> Tensor:
    """A random part with the norms of the weights, tensor by tensor or filter by filter."""
    if weight.ndim < 2:
        if biases == "copy":
            return weight.clone()
        return torch.zeros_like(part) if biases == "zero" else part * (weight.norm() / part.norm())
    dims = tuple(dim for dim in range(weight.ndim) if normalization == "layer" or dim != filter_dim)
    lengths, drawn = (torch.linalg.vector_norm(tensor, dim=dims, keepdim=True) for tensor in (weight, part))
    scaled: Tensor = part * (lengths / drawn)
    return scaled


@door
@torch.inference_mode(False)
def difference_direction(start: Point, end: Point, *, model: Any = None) -> Tensor:
    """The direction from one checkpoint to another, (end - start) / |end - start|.

    To see the loss between the two themselves, use `path_slice(losses, (start, end))`.

    Args:
        start: (p,) theta, or a module, a state_dict, a file of one, a checkpoint: the weights alone count.
        end: as start.
        model: module or loss that tells weights from buffers, where only state_dicts or files are given.

    Returns:
        (p,) unit vector on the device and in the dtype of start.

    Raises:
        ValueError, TypeError: lengths that differ, values that are not finite, equal checkpoints.
    """
    remedy = "Pass two vectors theta of one model, e.g. rows of run.checkpoints."
    first, last = thetas_of("start|end", (start, end), model)
    first = first_vector("start", first, remedy=remedy)
    last = check_vector("end", last, len(first), owner="start", remedy=remedy)
    difference = last.to(first.device).double() - first.double()
    if not bool(difference.any()):
        raise ValueError(argument_message("end", "equals start", "another checkpoint", remedy))
    unit: Tensor = difference / difference.norm()
    return unit.to(first.dtype)


@door
@torch.inference_mode(False)
@plain_arithmetic()
def principal_directions(
    checkpoints: Any, k: int = 2, *, around: Literal["last", "mean"] = "last", model: Any = None
) -> PrincipalDirections:
    r"""The k directions along which a trajectory spreads most.

    The right singular vectors of the (t, p) matrix of differences theta_i - c, where c is the last checkpoint (the
    plane then holds the end of training) or the mean.

    A large share explained proves little: around its mean, a random walk in many dimensions gives 61 % and 15 % to its
    first two components, and draws a smooth curve with them, half a period of a cosine against a whole one.

    Args:
        checkpoints: a training run or record, (t, p), or t points: vectors (p,), modules, state_dicts, checkpoints, or
            files as in `Objective.as_checkpoint`; t >= 2. The weights alone count.
        k: how many directions, at most the dimension of what the checkpoints span.
        around: "last" or "mean".
        model: module or loss that tells weights from buffers, where only state_dicts or files are given.

    Returns:
        PrincipalDirections: `directions` (k, p) orthonormal, on the device and in the dtype of the checkpoints, signed
        so that the first checkpoint has non-negative coordinates; `explained` (k,).

    Raises:
        ValueError, TypeError: fewer checkpoints than asked for, or k above the dimension that they span.

    Cost:
        O(t^2 p).

    Source:
        Li et al. (2018), "Visualizing the loss landscape of neural nets", for the trajectory around its last point;
        Antognini & Sohl-Dickstein (2018), "PCA of high dimensional random walks with comparison to neural network
        training", for the shares of a random walk.
    """
    remedy = "Pass a run of lh.train(..., checkpoints=1), a tensor (t, p), or vectors, modules or checkpoints."
    points = listed_points("checkpoints", checkpoints, remedy=remedy)
    rows = _stacked("checkpoints", thetas_of("checkpoints", points, model))
    check_choice("around", around, ("last", "mean"))
    check_count("k", k, maximum=len(rows) - 1, remedy="t checkpoints span at most t - 1 directions.")
    exact = rows.double()
    center = exact[-1] if around == "last" else exact.mean(0)
    differences = exact - center
    scale = float(differences.abs().max()) or 1.0
    _, singular, right = torch.linalg.svd(differences / scale, full_matrices=False)
    eps = torch.finfo(torch.promote_types(rows.dtype, torch.float32)).eps
    rounding = 10 * eps * float(exact.abs().max()) / scale * rows.shape[1] ** 0.5
    dim = int((singular > max(rounding, 1e-12 * float(singular[0]))).sum())
    if dim < k:
        received = f"is {k}, but the checkpoints span {dim} direction{'' if dim == 1 else 's'}"
        raise ValueError(argument_message("k", received, f"at most {dim}", "Pass more, or other, checkpoints."))
    directions = right[:k]
    signs = torch.where(directions @ differences[0] < 0, -1.0, 1.0)
    return PrincipalDirections(
        directions=(signs[:, None] * directions).to(rows.dtype),
        explained=(singular.square() / singular.square().sum())[:k].cpu(),
        center=center.to(rows.dtype),
        around=around,
    )


@door
@torch.inference_mode(False)
@plain_arithmetic()
def gram_schmidt(directions: Tensor | Sequence[Tensor]) -> OrthogonalDirections:
    r"""Make directions orthogonal, in their order, and say by how much each was turned.

    w_i = v_i - sum_j<i (w_j . v_i / |w_j|^2) w_j, then rescaled to the length of v_i, so that a step of 1 stays as long
    as it was. A turned direction is no eigenvector any more, and no longer filter-normalized; `turned` says how far it
    is from what was given. Slices take oblique directions too.

    Args:
        directions: (k, p) or k vectors (p,).

    Returns:
        OrthogonalDirections: `directions` (k, p), on the device and in the dtype of the first one given, `turned` (k,)
        degrees, `cosines` (k, k) of the given ones.

    Raises:
        ValueError, TypeError: zero, not finite, or one that lies in the span of those before it (to a sine of 1e-6).
    """
    remedy = "Pass a tensor (k, p) or a list of vectors (p,)."
    listed = listed_points("directions", directions, remedy=remedy, expected="vectors (p,)", with_files=False)
    given = _stacked("directions", listed)
    exact = given.double()
    lengths = exact.norm(dim=1)
    if bool((lengths == 0).any()):
        received = f"{[int(i) for i in (lengths == 0).nonzero()[:, 0]]} are zero"
        raise ValueError(argument_message("directions", received, "rows with a direction", "Leave them out."))
    units = exact / lengths[:, None]
    found: list[Tensor] = []
    for i, unit in enumerate(units):
        rest = unit.clone()
        for _ in range(2):  # twice: once leaves eps / sine of what was removed
            for earlier in found:
                rest = rest - (earlier @ rest) * earlier
        if float(rest.norm()) < 1e-6:
            received = f"{i} lies in the span of those before it"
            raise ValueError(argument_message("directions", received, "independent directions", "Leave it out."))
        found.append(rest / rest.norm())
    new = torch.stack(found)
    cosines = (new * units).sum(1).clamp(-1.0, 1.0)
    # The arc cosine of 1 - x loses half the digits: small angles by their chord.
    turned = torch.rad2deg(2 * torch.asin((0.5 * (new - units).norm(dim=1)).clamp(max=1.0)))
    turned = torch.where(cosines > 0, turned, torch.rad2deg(torch.acos(cosines)))
    return OrthogonalDirections(
        directions=(new * lengths[:, None]).to(given.dtype), turned=turned.cpu(), cosines=(units @ units.T).cpu()
    )


def as_direction(argument: str, value: Any, losses: Mapping[str, Loss], center: Tensor, *, seed: int) -> Tensor:
    """A direction (p,) that is not zero: given, from named tensors, or drawn at random by name."""
    remedy = (
        "Take one from lh.steering_direction(...), lh.random_direction(...) or pairs.vectors[i]; "
        f"or name one of {', '.join(map(repr, NORMALIZATIONS))}."
    )
    named = [loss for loss in losses.values() if loss.space is not None]
    if isinstance(value, str):
        kind = cast(Normalization, check_choice(argument, value, NORMALIZATIONS, remedy=remedy))
        return random_direction(around([*named, *losses.values()][0], center), normalization=kind, seed=seed)
    if isinstance(value, Mapping):
        space = named[0].space if named else None
        if space is None:
            received = "is a mapping, and no loss has named parameters"
            raise TypeError(argument_message(argument, received, f"a tensor of shape ({len(center)},)", remedy))
        try:
            value = space.flatten({name: torch.as_tensor(part) for name, part in value.items()})
        except (ValueError, TypeError) as error:
            error.add_note(f"This is about {argument}.")
            raise
    owner = str(next(iter(losses.values())))
    vector = check_vector(argument, value, len(center), owner=owner, remedy=remedy, allow_zero=False)
    return own_vector(vector).to(torch.promote_types(vector.dtype, torch.float32))


def first_vector(argument: str, value: Any, *, remedy: str) -> Tensor:
    """The first of several vectors (p,): finite, and of the length that the others must have."""
    size = value.numel() if isinstance(value, Tensor) else value.size if isinstance(value, np.ndarray) else 0
    return check_vector(argument, value, size, owner=argument, remedy=remedy)


def _stacked(argument: str, vectors: Sequence[Any]) -> Tensor:
    """(n, p) of n vectors, finite, on the device and in the dtype of the first, a tensor of its own; or an error."""
    remedy = "Pass a tensor (n, p) or a list of vectors (p,)."
    first = first_vector(f"{argument}[0]", vectors[0], remedy=remedy)
    rows = [
        check_vector(f"{argument}[{i}]", row, len(first), owner=f"{argument}[0]", remedy=remedy, like=first)
        for i, row in enumerate(vectors)
    ]
    return torch.stack(rows)
