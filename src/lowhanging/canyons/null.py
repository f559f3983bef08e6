"""Nulls for canyons: how low, and how many, the same search finds in random subspaces.

A relative rise (rise / energy) is 1 in every direction of an energy shell of a quadratic bowl. It is held against the
same search in random subspaces of the same dimension, drawn so that all directions have the same curvature in the
metric: uniform in the coordinates M^(1/2) delta of a larger space. A relative rise that these reach as well says that
the loss is anharmonic there, not that the chosen directions are special.

A number of canyons on a sphere is held against the same search in random subspaces, on spheres of equal mean energy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowhanging.canyons.find import CanyonSet, check_space, find_canyons
from lowhanging.canyons.shell import EnergyShell, Metric, Space, SphereShell
from lowhanging.curvature.eigenpairs import top_eigs
from lowhanging.curvature.operators import hessian, plain_arithmetic
from lowhanging.curvature.subspace import Subspace
from lowhanging.errors import (
    NotConvergedError,
    a_type,
    argument_message,
    check_count,
    door,
)
from lowhanging.io import Saved
from lowhanging.objective.protocol import Loss, check_loss
from lowhanging.objective.random_state import private_generator

_MAX_DIM = 50  # of the default larger space


@dataclass(frozen=True, eq=False, repr=False)
class _SubspaceNull(Saved):
    levels: tuple[float, ...]  # of the canyons
    observed: Tensor  # (levels,) of the canyons
    null: Tensor  # (num_subspaces, levels) the same in random subspaces
    p_values: Tensor  # (levels,) (1 + number of subspaces at least as extreme) / (1 + num_subspaces)
    dim: int  # of the subspaces
    within: int  # dimension of the space in which they were drawn
    num_starts: int  # per level, the same for all
    seed: int
    num_gradients: int
    num_products: int

    def _repr(self, what: str, texts: Sequence[str]) -> str:
        parts = [
            f"{level:.3g}: {text}, p {float(p):.2g}"
            for level, text, p in zip(self.levels, texts, self.p_values, strict=True)
        ]
        where = f"{len(self.null)} random {self.dim}-dimensional subspaces of {self.within}"
        return f"{type(self).__name__}({what} = {'; '.join(parts)}; {where})"


class DepthNull(_SubspaceNull):
    """The lowest relative rise of each level, and that of the same search in random subspaces of equal curvature.

    `observed` and `null` are lowest relative rises; NaN where a level has no converged point.
    """

    def __repr__(self) -> str:
        texts = [
            f"{float(seen):.3g} against {float(row.nanmean()):.3g} ({float(row.min()):.3g} to {float(row.max()):.3g})"
            for seen, row in zip(self.observed, self.null.T, strict=True)
        ]
        return self._repr("lowest relative rise at E", texts)


@door
@torch.inference_mode(False)
@plain_arithmetic()
def depth_null(
    loss: Loss,
    canyons: CanyonSet,
    *,
    within: Subspace | None = None,
    num_subspaces: int = 19,
    seed: int = 0,
    progress: bool | None = None,
) -> DepthNull:
    r"""Hold the relative rise of canyons against the same search in random subspaces of equal curvature.

    With R, s the eigenvectors and root curvatures of the Hessian within a larger space, a random subspace is the span
    of the rows of Q diag(1/s) R, Q random orthonormal rows: uniform in the coordinates in which energy
    1/2 delta^T H0 delta is the same in every direction. Each is searched with as many random starts, at the same
    levels.

    Args:
        loss: the loss in which the canyons were found.
        canyons: a CanyonSet on energy shells (metric "hessian").
        within: the larger space; by default the loss's top 50 eigenvectors.
        num_subspaces: random subspaces; 19 allow p = 0.05.
        seed: of the subspaces and of the starts. The global random state is not touched.
        progress: bars; by default they appear when it takes more than two seconds.

    Returns:
        DepthNull: the lowest relative rises, observed (levels,) and null (num_subspaces, levels), and p-values.

    Raises:
        ValueError, TypeError: canyons on spheres (there a relative rise also measures curvature), a larger space that
            is not larger.

    Cost:
        num_subspaces searches, and the larger space's eigenvectors if they are not given.

    Source:
        Phipson & Smyth (2010), "Permutation P-values should never be zero", for the p-values.
    """
    dim, num_products = _check(loss, canyons, "hessian", num_subspaces, seed), 0
    if within is None:
        pairs = top_eigs(hessian(loss), k=min(_MAX_DIM, loss.num_params), progress=progress)
        within, num_products = pairs.subspace(), pairs.num_products
    check_space(within, loss)
    _check_larger(within.dim, dim)
    shell = EnergyShell(loss, within, canyons.min_curvature or None)
    generator = private_generator(seed, "null subspaces")
    found = []
    for i in range(num_subspaces):
        q = torch.linalg.qr(torch.randn(shell.dim, dim, generator=generator, dtype=torch.float64))[0].T.numpy()
        space = Subspace.span(torch.stack([shell.delta(row) for row in q]))
        found.append(_same_search(loss, canyons, space, canyons.levels, seed + i, progress))
    observed, null = (
        torch.tensor(rises) for rises in (_lowest_rises(canyons), [_lowest_rises(other) for other in found])
    )
    return DepthNull(
        levels=canyons.levels,
        observed=observed,
        null=null,
        p_values=torch.where(observed.isfinite(), _p_values(null <= observed, null), torch.nan),
        dim=dim,
        within=within.dim,
        num_starts=canyons.num_starts,
        seed=seed,
        num_gradients=shell.num_gradients + sum(other.num_gradients for other in found),
        num_products=shell.num_products + sum(other.num_products for other in found) + num_products,
    )


@dataclass(frozen=True, eq=False, repr=False)
class CountNull(_SubspaceNull):
    """How many canyons lie on each sphere, and how many the same search finds in random subspaces.

    `observed` and `null` are numbers of canyons that are no copies; NaN where no start became stationary.
    """

    observed_branches: Tensor  # (levels,) all stationary points but copies, the trivial ones included
    null_branches: Tensor  # (num_subspaces, levels)
    radii: Tensor  # (num_subspaces, levels) of the random subspaces' spheres

    def __repr__(self) -> str:
        texts = [
            f"{float(seen):.0f} against {float(row.nanmean()):.2g} ({', '.join(f'{float(num):.0f}' for num in row)})"
            for seen, row in zip(self.observed, self.null.T, strict=True)
        ]
        return self._repr("canyons at r", texts)


@door
@torch.inference_mode(False)
@plain_arithmetic()
def count_null(
    loss: Loss,
    canyons: CanyonSet,
    *,
    within: Space = "full",
    num_subspaces: int = 19,
    seed: int = 0,
    progress: bool | None = None,
) -> CountNull:
    r"""Hold the number of canyons on a sphere against the same search in random subspaces.

    A random subspace is uniform among those of the canyons' dimension k within the larger space. It curves less than a
    span of top eigenvectors: on a sphere of the same radius the loss would hardly vary, and nothing could be found
    there for a reason that says nothing about canyons. So each is searched at its own radius, at which a quadratic bowl
    rises by as much in the mean over the sphere, 1/2 r^2 tr(H_S) / k with H_S the Hessian at theta0 within the
    subspace: r_S = r sqrt(tr(H) / tr(H_S)). Starts, tolerance and certificates are the same, and so is what counts:
    canyons (`CanyonPoint.is_canyon`) that are no copies.

    Args:
        loss: the loss in which the canyons were found.
        canyons: a CanyonSet on spheres (metric "euclidean"); only random starts are repeated, as many as it had.
        within: the larger space; all weights by default. The loss's top 50 eigenvectors are the stricter choice: a
            random subspace of these is about as curved, and holds a part of every one of them.
        num_subspaces: as in `depth_null`.
        seed: as in `depth_null`.
        progress: as in `depth_null`.

    Returns:
        CountNull: numbers of canyons and of branches, observed (levels,) and null (num_subspaces, levels), and
        p-values.

    Raises:
        ValueError, TypeError: canyons on energy shells (see `depth_null`), a larger space that is not larger, a
            random subspace whose mean curvature is not positive.

    Cost:
        num_subspaces searches, and k products for each.

    Source:
        Phipson & Smyth (2010), "Permutation P-values should never be zero", for the p-values.
    """
    dim = _check(loss, canyons, "euclidean", num_subspaces, seed)
    check_space(within, loss)
    size = loss.num_params if isinstance(within, str) else within.dim
    _check_larger(size, dim)
    generator = private_generator(seed, "null subspaces")
    found, num_gradients, num_products = [], 0, 0
    for i in range(num_subspaces):
        rows = torch.randn(dim, size, generator=generator, dtype=torch.float64)
        space = Subspace.span(rows if isinstance(within, str) else rows @ within.basis.cpu().double())
        shell = SphereShell(loss, space)
        ratio = float(canyons.curvatures.sum()) / float(shell.curvatures.sum())
        if not 0 < ratio < math.inf:
            received = f"is one around which random directions curve by {float(shell.curvatures.mean()):.2g}"
            remedy = "Start from a minimum: lh.polish(objective).objective."
            raise ValueError(argument_message("loss", received, "a bowl", remedy))
        levels = [level * math.sqrt(ratio) for level in canyons.levels]
        found.append(_same_search(loss, canyons, space, levels, seed + i, progress))
        num_gradients += shell.num_gradients + found[-1].num_gradients
        num_products += shell.num_products + found[-1].num_products
    observed, *counts = (_counts(each) for each in (canyons, *found))
    null = torch.stack([num_canyons for num_canyons, _ in counts])
    return CountNull(
        levels=canyons.levels,
        observed=observed[0],
        observed_branches=observed[1],
        null=null,
        null_branches=torch.stack([num_branches for _, num_branches in counts]),
        radii=torch.tensor([other.levels for other in found], dtype=torch.float64),
        p_values=_p_values(null >= observed[0], null),
        dim=dim,
        within=size,
        num_starts=canyons.num_starts,
        seed=seed,
        num_gradients=num_gradients,
        num_products=num_products,
    )


def _check(loss: Loss, canyons: CanyonSet, metric: Metric, num_subspaces: int, seed: int) -> int:
    """The dimension of the subspace that was searched, if these canyons have such a null."""
    check_loss("loss", loss)
    if not isinstance(canyons, CanyonSet) or canyons.metric != metric or canyons.space is None:
        received = f"are {canyons!r}" if isinstance(canyons, CanyonSet) else f"is {a_type(canyons)}"
        shells = "energy shells" if metric == "hessian" else "spheres"
        remedy = f'Pass find_canyons(..., metric="{metric}", space=subspace).'
        raise ValueError(argument_message("canyons", received, f"a CanyonSet on {shells} of a subspace", remedy))
    check_count("num_subspaces", num_subspaces, remedy="19 allow p = 0.05.")
    check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    return canyons.space.dim


def _check_larger(size: int, dim: int) -> None:
    if size <= dim:
        remedy = "Pass more eigenvectors: pairs.subspace() of top_eigs(hessian(loss), k=50)."
        raise ValueError(argument_message("within", f"has {size} dimensions", f"more than the canyons' {dim}", remedy))


def _same_search(
    loss: Loss, canyons: CanyonSet, space: Subspace, levels: Sequence[float], seed: int, progress: bool | None
) -> CanyonSet:
    """What the search that found the canyons finds in another space."""
    try:
        return find_canyons(
            loss,
            space=space,
            metric="hessian" if canyons.metric == "hessian" else "euclidean",
            levels=levels,
            num_starts=canyons.num_starts,
            min_curvature=canyons.min_curvature or None,
            rtol=canyons.rtol,
            seed=seed,
            progress=progress,
        )
    except NotConvergedError as failure:  # one subspace in which nothing was found must not cost the others
        found: CanyonSet = failure.result
        return found


def _lowest_rises(canyons: CanyonSet) -> list[float]:
    """The lowest relative rise of each level; NaN where none was found."""
    levels = [canyons.at_level(level) for level in canyons.levels]
    return [min((point.relative_rise for point in points), default=math.nan) for points in levels]


def _counts(canyons: CanyonSet) -> tuple[Tensor, Tensor]:
    """Canyons and branches of each level without copies, (levels,); canyons NaN where nothing became stationary."""
    levels = [canyons.at_level(level) for level in canyons.levels]
    originals = [[point for point in points if point.duplicate_of is None] for points in levels]
    num_canyons = [sum(point.is_canyon for point in points) if points else math.nan for points in originals]
    num_branches = [len(points) for points in originals]
    return torch.tensor(num_canyons, dtype=torch.float64), torch.tensor(num_branches, dtype=torch.float64)


def _p_values(is_as_extreme: Tensor, null: Tensor) -> Tensor:
    """(levels,) of (num_subspaces, levels); what is unknown counts against the canyons."""
    return (1.0 + (is_as_extreme | null.isnan()).sum(0)) / (1.0 + len(null))
