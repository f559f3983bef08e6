"""Which directions of weight space are worth a look, when no loss is asked?

Random ones (plain, or scaled to the weights layer by layer or filter by filter), the difference of two checkpoints, the
principal components of a trajectory, and Gram-Schmidt for those that should be orthogonal. Geometry only: no loss is
evaluated in this file. Directions that a loss does decide are elsewhere: eigenvectors are `pairs.vectors`, steering
directions are made in `steering.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lowhanging.curvature.operators import plain_arithmetic
from lowhanging.errors import a_type, argument_message, check_choice, check_count, check_vector
from lowhanging.io import Saved
from lowhanging.objective.checkpoints import Point, listed_points, thetas_of
from lowhanging.objective.protocol import Loss, check_loss

Normalisation = Literal["gaussian", "layer", "filter"]
NORMALISATIONS = ("gaussian", "layer", "filter")
Biases = Literal["zero", "layer", "copy"]


@dataclass(frozen=True, eq=False, repr=False)
class OrthogonalDirections(Saved):
    """Directions after Gram-Schmidt, with the lengths they had, and what was changed."""

    directions: Tensor  # (k, p) orthogonal rows, each as long as the row it came from
    turned: Tensor  # (k,) float64, degrees between each row and the one it came from; the first is 0
    cosines: Tensor  # (k, k) float64, between the rows as they were given

    def __repr__(self) -> str:
        turned = ", ".join(f"{float(angle):.3g}°" for angle in self.turned)
        return (
            f"OrthogonalDirections({len(self.directions)} of length {self.directions.shape[1]:,}, turned by {turned})"
        )


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


@torch.inference_mode(False)
def random_direction(
    loss: Loss, *, normalization: Normalisation = "gaussian", biases: Biases = "zero", seed: int = 0
) -> Tensor:
    r"""A Gaussian direction: of unit norm, or scaled to the weights so that networks can be compared.

    * "gaussian": d ~ N(0, I), divided by its norm.
    * "layer": in each weight tensor W, d_W <- d_W |W| / |d_W|.
    * "filter": in each filter W_j (the weights into one output channel or unit: slice j along the first dimension of
      a tensor with at least two, along the second in transposed convolutions), d_j <- d_j |W_j| / |d_j|: a step of 1
      is as large as the weights of every filter.

    Rescaling a layer and undoing it in the next (as ReLU networks allow) changes nothing in a slice along a
    filter-normalised direction, while it stretches or shrinks one along a plain Gaussian direction. These directions
    don't have unit norm: their norm is that of the weights which they cover.

    Args:
        loss: an objective; where it comes from a model, its named tensors at its theta0 set the scales.
        normalization: "gaussian", "layer" or "filter".
        biases: for "layer" and "filter" only: what tensors with one dimension or none get, biases and the scales and
            shifts of norms. "zero": they stay as they are (the usual choice); "layer": a random part as long as the
            tensor; "copy": the tensor itself, so that they are scaled by 1 + alpha.
        seed: of the draw; the global random state is not used, and all devices get the same direction.

    Returns:
        (p,) in theta's dtype and on its device. Two seeds give almost, but not exactly, orthogonal directions; see
        `gram_schmidt`.

    Raises:
        ValueError, TypeError: "layer" or "filter" for a loss without named tensors, or nothing left to move.

    Source:
        Li, Xu, Taylor, Studer & Goldstein (2018), "Visualizing the loss landscape of neural nets".
    """
    check_loss("loss", loss)
    check_choice("normalization", normalization, NORMALISATIONS)
    check_choice("biases", biases, ("zero", "layer", "copy"))
    seed = check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    generator = torch.Generator().manual_seed(seed)
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
    scaled = {
        name: _scaled(parts[name], weights[name], normalization, biases, space.filter_dims.get(name, 0))
        for name in space.names
    }
    direction = torch.cat([scaled[name].reshape(-1) for name in space.names]).to(theta.dtype)
    if not bool(direction.any()):
        received = f"is {biases!r}, and the model has no other tensor whose weights are not zero"
        raise ValueError(
            argument_message("biases", received, "a direction that moves something", 'Use biases="layer".')
        )
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


@torch.inference_mode(False)
def difference_direction(start: Point, end: Point, *, model: Any = None) -> Tensor:
    """The direction from one checkpoint to another, (end - start) / |end - start|, (p,).

    To see the loss between the two themselves, use `path_slice(losses, (start, end))`.

    Args:
        start: (p,) theta, or a module, a state_dict, a checkpoint: the weights alone count.
        end: as start.
        model: module or objective that tells weights from buffers, where only state_dicts are given.

    Raises:
        ValueError, TypeError: lengths that differ, values that are not finite, equal checkpoints.
    """
    remedy = "Pass two vectors theta of one model, e.g. rows of run.checkpoints."
    first, last = thetas_of("start|end", (start, end), model)
    begin = check_vector("start", first, size_of(first), owner="start", remedy=remedy)
    difference = check_vector("end", last, len(begin), owner="start", remedy=remedy).to(begin.device).double()
    difference = difference - begin.double()
    if not bool(difference.any()):
        raise ValueError(argument_message("end", "equals start", "another checkpoint", remedy))
    unit: Tensor = difference / difference.norm()
    return unit.to(_at_least_single(begin))


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
        checkpoints: a training run, (t, p), or t points: vectors (p,), modules, state_dicts, checkpoints; t >= 2. The
            weights alone count.
        k: how many directions, at most the dimension of what the checkpoints span.
        around: "last" or "mean".
        model: module or objective that tells weights from buffers, where only state_dicts are given.

    Returns:
        PrincipalDirections: `directions` (k, p) orthonormal, signed so that the first checkpoint has non-negative
        coordinates; `explained` (k,).

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
    given = listed_points("checkpoints", checkpoints, remedy=remedy)
    rows = _rows("checkpoints", thetas_of("checkpoints", given, model))
    check_choice("around", around, ("last", "mean"))
    check_count("k", k, maximum=len(rows) - 1, remedy="t checkpoints span at most t - 1 directions.")
    exact = rows.double()
    center = exact[-1] if around == "last" else exact.mean(0)
    differences = exact - center
    scale = float(differences.abs().max()) or 1.0
    _, singular, right = torch.linalg.svd(differences / scale, full_matrices=False)
    rounding = 10 * torch.finfo(rows.dtype).eps * float(exact.abs().max()) / scale * rows.shape[1] ** 0.5
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


@torch.inference_mode(False)
@plain_arithmetic()
def gram_schmidt(directions: Tensor | Sequence[Tensor]) -> OrthogonalDirections:
    r"""Make directions orthogonal, in their order, and say by how much each was turned.

    w_i = v_i - sum_j<i (w_j . v_i / |w_j|^2) w_j, then rescaled to the length of v_i, so that a step of 1 stays as long
    as it was. What it destroys, it destroys silently elsewhere: a turned direction is no eigenvector, and no longer
    filter-normalised; `turned` says how far it is from what was given. Slices take oblique directions too.

    Args:
        directions: (k, p) or k vectors (p,).

    Returns:
        OrthogonalDirections: `directions` (k, p), `turned` (k,) degrees, `cosines` (k, k) of the given ones.

    Raises:
        ValueError, TypeError: zero, not finite, or one that lies in the span of those before it (to a sine of 1e-6).
    """
    rows = _rows("directions", directions)
    exact = rows.double()
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
        directions=(new * lengths[:, None]).to(rows.dtype), turned=turned.cpu(), cosines=(units @ units.T).cpu()
    )


def size_of(vector: Any) -> int:
    """How many numbers a tensor or an array holds; 0 for anything else, which is then refused by `check_vector`."""
    return vector.numel() if isinstance(vector, Tensor) else vector.size if isinstance(vector, np.ndarray) else 0


def vectors(argument: str, rows: Any, *, remedy: str, expected: str = "at least one vector (p,)") -> list[Any]:
    """Rows of a tensor or an array (n, p), or the vectors of any iterable, as a list; each is still to be checked."""
    is_matrix = isinstance(rows, Tensor | np.ndarray) and rows.ndim == 2
    is_list = isinstance(rows, Iterable) and not isinstance(rows, str | Mapping | Tensor | np.ndarray)
    found = list(rows) if is_matrix or is_list else []
    if any(isinstance(row, str) for row in found):
        remedy = "Pass one name for both, or make each: lh.random_direction(loss, normalization='filter')."
        raise TypeError(argument_message(argument, f"holds {found!r}", "vectors", remedy))
    if not found or not all(isinstance(row, Tensor | np.ndarray | Mapping) for row in found):
        has_shape = isinstance(rows, Tensor | np.ndarray)
        kind = f"a tensor of shape {tuple(rows.shape)}" if has_shape else a_type(rows)
        received = f"is {kind}" + " of length 0" * (is_list and not found)
        raise TypeError(argument_message(argument, received, expected, remedy))
    return found


def _rows(argument: str, rows: Any) -> Tensor:
    """(n, p), finite, at least float32, n >= 1, a tensor of its own; or an error."""
    remedy = "Pass a tensor (n, p) or a list of vectors (p,)."
    found = vectors(argument, rows, remedy=remedy)
    size = size_of(found[0])
    first = check_vector(f"{argument}[0]", found[0], size, owner=f"{argument}[0]", remedy=remedy)
    first = first.to(_at_least_single(first))
    others = [
        check_vector(f"{argument}[{i}]", row, size, owner=f"{argument}[0]", remedy=remedy, like=first)
        for i, row in enumerate(found)
    ]
    return torch.stack([row.clone() for row in others])


def _at_least_single(vector: Tensor) -> torch.dtype:
    return torch.promote_types(vector.dtype, torch.float32)
