"""Canyons: branches of local minima of a loss on shells around its minimum, found from many starts.

Many random starts, and a few in given directions, run down on the shell; ends whose displacements point the same way,
by signed cosine, and whose losses agree are one branch, so that a canyon and its mirror image are two. Each branch is
made stationary by Newton steps and certified by the eigenvalues of the Hessian across it. On energy shells, the
default, a quadratic bowl is constant: whatever is isolated there is there because the loss is not quadratic.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.canyons.point import (
    CanyonPoint,
    CanyonPoints,
    Evaluations,
    canyon_point,
    same_certificates,
    with_full_certificates,
)
from lowhanging.canyons.shell import SHELLS, Array, Metric, Shell, Space
from lowhanging.canyons.sphere_search import SpherePoint, SphereSearch, TangentHessian
from lowhanging.curvature.eigenpairs import top_eigs
from lowhanging.curvature.operators import hessian, plain_arithmetic
from lowhanging.curvature.subspace import Subspace
from lowhanging.errors import (
    NotConvergedError,
    a_type,
    argument_message,
    check_choice,
    check_count,
    check_real,
    check_vector,
    door,
    naming,
    warn,
)
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.protocol import Loss, around, check_loss
from lowhanging.objective.random_state import private_generator
from lowhanging.steering.cues import ConflictControl

_RTOL = {torch.float64: 1e-8, torch.float32: 1e-4}
_MAX_DIM = 40  # of the default space
_PER_LOSS = 10  # eigenvectors that each loss gives to it
_SAME_BRANCH = 0.95  # signed cosine between displacements
_SAME_POINT = 0.999  # above it nobody asks for a ridge in between
_SAME_LOSS = 1e-4  # share of the rise within which the losses of one branch agree; before Newton, a hundred times that
_SAME_RISE = 1e-9  # of the largest rise among a level's starts: the same, on a flat floor
_SCOUTS = 4  # starts that are looked at for these scales
_MIN_SCALE = 1e-2  # of the largest tangent gradient among them, see SphereSearch
_SLOPED = 0.1  # share of the energy that the gradient at theta0 may explain


@dataclass(frozen=True, eq=False, repr=False)
class CanyonSet(CanyonPoints):
    """The branches found on every shell around one minimum, level by level, the lowest loss first."""

    points: tuple[CanyonPoint, ...]
    levels: tuple[float, ...]
    metric: str
    min_curvature: float  # of the metric; 0: not bounded
    space: Subspace | None  # what was searched; None: all of weight space
    curvatures: Tensor  # (dim,) eigenvalues of the Hessian at theta0 within the space, descending
    theta0: Tensor  # (p,)
    loss: float  # at theta0
    gradient_norm: float  # there, within the space
    losses: dict[str, float]  # of every evaluated loss, at theta0
    accuracies: dict[str, float]
    cue_shares: dict[str, float]
    stationary: str  # "minima" or "all"
    num_starts: int  # per level
    num_lost: dict[str, int]  # level -> starts that ended nowhere
    rtol: float
    seed: int
    num_gradients: int
    num_products: int
    seconds: float
    is_complete: bool  # whether the budget sufficed

    def at_level(self, level: float) -> tuple[CanyonPoint, ...]:
        """The branches of one shell."""
        if level not in self.levels:
            expected = f"one of {list(self.levels)}"
            raise ValueError(argument_message("level", f"is {level!r}", expected, "Name one of them."))
        return tuple(point for point in self.points if point.level == level)

    @property
    def canyons(self) -> tuple[CanyonPoint, ...]:
        """The points that are canyons, copies included."""
        return tuple(point for point in self.points if point.is_canyon)

    def __repr__(self) -> str:
        name = "r" if self.metric == "euclidean" else "E"
        where = f"{name} = {', '.join(f'{level:.3g}' for level in self.levels)}"
        dim = "all" if self.space is None else f"{self.space.dim}"
        count, num = len(self.canyons), len(self)
        found = f"{count} canyon{'s' * (count > 1)} among {num} point{'s' * (num > 1)}"
        if not count:
            rises = [point.relative_rise for point in self.points if np.isfinite(point.relative_rise)]
            found = f"no isolated canyon among {num} points"
            found += f", relative rise {min(rises):.6g} to {max(rises):.6g}" if rises else ""
        lost = sum(self.num_lost.values())
        notes = (f"; {lost} starts lost" if lost else "") + ("" if self.is_complete else "; BUDGET SPENT, INCOMPLETE")
        cost = f"{self.num_gradients} gradients, {self.num_products} products, {self.seconds:.1f} s"
        return f"CanyonSet({found}; {where} in {dim} dimensions, {self.num_starts} starts each{notes}; {cost})"


@door
@torch.inference_mode(False)
@plain_arithmetic()
def find_canyons(
    loss: Loss,
    *,
    space: Space | None = None,
    metric: Metric = "hessian",
    levels: float | Sequence[float],
    num_starts: int = 32,
    initial_directions: Mapping[str, Tensor] | None = None,
    evaluate: Loss | Mapping[str, Loss] | None = None,
    conflict: ConflictControl | None = None,
    stationary: Literal["minima", "all"] = "minima",
    min_curvature: float | None = None,
    full_certificates: bool = False,
    rtol: float | None = None,
    max_gradients: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> CanyonSet:
    r"""Local minima of a loss on shells around its minimum, each with its certificates.

    euclidean: minima of L on |delta| = r.   hessian: minima of L on 1/2 delta^T M delta = E, M the Hessian at theta0
    restricted to the space, its eigenvalues not below `min_curvature`.

    From each start L-BFGS runs on w with y = rho w / |w| until |P g| is small; ends whose displacements have a signed
    cosine above 0.95 and whose losses agree are one branch; Newton steps with the explicit Hessian in the space make it
    stationary, |P g| <= rtol max(|g|, |H0 delta|, a hundredth of |P g| at starts), and its tangent eigenvalues certify
    it. A saddle is left along its lowest eigenvector. Mirror images and other copies stay, marked by `duplicate_of`.

    Args:
        loss: the loss around its minimum: `polish(...).objective`.
        space: where to look: a `Subspace`, or "full". By default the union of the top 10 eigenvectors of the loss and
            of each evaluated loss, the loss's first, at most 40 dimensions.
        metric: which displacements are equally far out, see above. Energy shells need fewer gradients, and branches are
            not swallowed by the softest axis; claims about "all orthogonal directions" are about spheres.
        levels: r, or E in units of loss; one or several.
        num_starts: random starts per level, uniform on the shell.
        initial_directions: name -> vector (p,) to start along as well, both ways: steering directions, differences of
            weights. Only the part inside the space counts.
        evaluate: name -> loss to evaluate at every point; or one loss.
        conflict: a control for `attribute_circuit` at every point; losses on its cues must be evaluated.
        stationary: "minima", or "all": stationary points of any kind, by Levenberg and Marquardt's steps (not in the
            full space).
        min_curvature: smallest curvature of the energy metric; by default a hundredth of the largest eigenvalue in the
            full space, none in a subspace.
        full_certificates: plane and sphere eigenvalues in all of weight space too, by Lanczos: hundreds of products.
        rtol: relative residual to reach; 1e-8 in float64, 1e-4 in float32.
        max_gradients: number of gradients after which no new start begins; no limit by default.
        seed: of the random starts. The global random state is not touched.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        CanyonSet: a sequence of `CanyonPoint`; `.canyons` are those that are canyons. A quadratic bowl has none.

    Raises:
        NotConvergedError: the budget ran out, or no start of a level became stationary; `.result` holds the others.
        ValueError, TypeError: an argument out of range; a space in which the energy metric is not positive.

    Warns:
        RuntimeWarning: theta0 is no minimum within the space; rises and certificates are then measured on a slope.

    Cost:
        per start 10 to 20 gradients in 10 dimensions, 15 to 35 in 35; per branch one or two gradients and 2 dim
        products; dim products for the metric. In the full space a few hundred products per branch.

    Source:
        Ohno & Maeda (2004), "A scaled hypersphere search method for the topography of reaction pathways on the
        potential energy surface", for energy shells; Absil, Mahony & Sepulchre (2008), "Optimization Algorithms on
        Matrix Manifolds", for Newton on a sphere; Vaintrob & Rimsky (2023) for canyons.
    """
    begun = time.perf_counter()
    check_loss("loss", loss)
    check_choice("metric", metric, tuple(SHELLS))
    check_choice("stationary", stationary, ("minima", "all"))
    wanted = _check_levels(levels)
    check_count("num_starts", num_starts, minimum=0, remedy="32 find what is there in tens of dimensions.")
    check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    rtol = check_rtol(rtol, loss)
    budget = 10**18 if max_gradients is None else check_count("max_gradients", max_gradients, remedy="Leave it out.")
    evaluations = Evaluations(loss, evaluate, conflict)
    space = check_space(_default_space(loss, evaluations.evaluate) if space is None else space, loss)
    if isinstance(space, str) and stationary == "all":
        expected, remedy = "a Subspace for it", "Pass space=Subspace.span(rows)."
        raise ValueError(argument_message("stationary", "is 'all' in the full space", expected, remedy))
    shell = SHELLS[metric](loss, space, min_curvature)
    directions = _check_directions(shell, initial_directions)
    num_each = num_starts + len(directions)
    if not num_each:
        expected = "at least one, or initial_directions= vectors"
        raise ValueError(argument_message("num_starts", "is 0", expected, "Leave it out: 32."))
    _warn_of_slope(shell, wanted)
    _check_resolution(shell, wanted)
    generator = private_generator(seed, "canyons")
    points: list[CanyonPoint] = []
    num_lost: dict[str, int] = {}
    failure, is_complete, delay = None, True, 2.0 if progress is None else 0.0
    total = num_each * len(wanted)
    with tqdm(total=total, desc="canyons", unit="start", miniters=0, disable=is_silent(progress), delay=delay) as bar:
        for level in wanted:
            rows = _spread_rows(num_starts, shell.dim, generator)
            starts = [*directions, *((f"random {i}", row) for i, row in enumerate(rows))]
            search = BranchSearch.among(shell, level, [y for _, y in starts], rtol)
            ends: list[_End] = []
            for source, y in starts:
                if shell.num_gradients >= budget:
                    break
                ends.append(search.run(source, y, stationary))
                bar.update()
            found = search.branches(ends)
            points += search.points(found, evaluations)
            num_lost[f"{level:g}"] = len(ends) - sum(end.num_starts for end in found)
            if len(ends) < num_each:
                spent = f"find_canyons spent its {budget} gradients after {len(ends)} of {num_each} starts"
                failure = f"{spent} at level {level:g}.\nRaise max_gradients=, or ask for fewer starts."
                is_complete = False
                break
            if not found:
                num_infinite = sum(not end.point.is_finite for end in ends)
                infinite = f" (the loss is not finite at {num_infinite} ends)" if num_infinite else ""
                failure = (
                    f"find_canyons: none of the {num_each} starts at level {level:g} became stationary to rtol "
                    f"{rtol:g}{infinite}.\nRaise rtol= or num_starts=, use float64 (model.double()), or look closer in."
                )
        if full_certificates and failure is None:
            bar.set_postfix_str("certificates in all of weight space", refresh=False)
            bar.update(0)
            scale = float(np.abs(shell.curvatures).max()) if len(shell.curvatures) else 1.0
            full = [with_full_certificates(loss, point, scale) for point in points]
            points = [point for point, _ in full]
            shell.num_products += sum(num for _, num in full)
            shell.num_gradients += len(full)
    result = CanyonSet(
        points=tuple(points),
        levels=wanted,
        metric=metric,
        min_curvature=shell.min_curvature,
        space=shell.space,
        curvatures=torch.from_numpy(shell.curvatures.copy()),
        theta0=loss.theta0.cpu(),
        loss=shell.center_value,
        gradient_norm=float(shell.inside(loss.gradient(loss.theta0)).norm()),
        stationary=stationary,
        num_starts=num_each,
        num_lost=num_lost,
        rtol=rtol,
        seed=seed,
        num_gradients=shell.num_gradients + 1,
        num_products=shell.num_products,
        seconds=time.perf_counter() - begun,
        is_complete=is_complete,
        **evaluations.at_theta0,
    )
    if failure is not None:
        raise NotConvergedError(failure, result)
    return result


@dataclass
class _End:
    """Where starts ended, before and after Newton."""

    point: SpherePoint
    num_starts: int
    source: str
    num_gradients: int
    num_products: int = 0
    tangent: TangentHessian | None = None  # at the point; None before Newton


@dataclass(frozen=True)
class BranchSearch:
    """The branches of one shell."""

    shell: Shell
    level: float
    search: SphereSearch
    loss_tolerance: float  # losses that differ by less are the same

    @classmethod
    def among(cls, shell: Shell, level: float, rows: Sequence[Array], rtol: float) -> BranchSearch:
        """With the scales of the sphere as they are at the first few of these rows."""
        seen = [SpherePoint.towards(shell, y, shell.radius_of(level)) for y in rows[:_SCOUTS]]
        seen = [point for point in seen if point.is_finite] or seen
        typical = max(point.residual for point in seen)
        largest = max(abs(point.value - shell.center_value) for point in seen)
        search = SphereSearch(shell, rtol, _MIN_SCALE * typical, typical)
        return cls(shell, level, search, _SAME_RISE * largest + shell.rounding)

    def run(self, source: str, y: Array, stationary: str) -> _End:
        """Where one start ends."""
        radius, before = self.shell.radius_of(self.level), self._spent
        if stationary == "minima":
            return _End(self.search.descend(y, radius), 1, source, self._spent[0] - before[0])
        tangent = self.search.any_kind(y, radius)
        return _End(tangent.point, 1, source, self._spent[0] - before[0], self._spent[1] - before[1], tangent)

    def branches(self, ends: list[_End]) -> list[_End]:
        """Ends joined, then made stationary, then joined again; those that became stationary, the lowest first."""
        ends = self.joined(ends, 100)
        for end in ends:
            if end.tangent is None:
                before = self._spent
                end.point, end.tangent = self.search.minimum(end.point)
                end.num_gradients += self._spent[0] - before[0]
                end.num_products += self._spent[1] - before[1]
        found = [end for end in self.joined(ends, 1) if self.search.is_stationary(end.point)]
        for end in found:
            end.tangent = end.tangent or TangentHessian(self.shell, end.point)
        return sorted(found, key=lambda end: end.point.value)

    def points(self, branches: Sequence[_End], evaluations: Evaluations) -> list[CanyonPoint]:
        """The branches as points."""
        points = []
        for i, end in enumerate(branches):
            assert end.tangent is not None
            point = canyon_point(
                self.shell,
                end.tangent,
                self.search.tolerance(end.point),
                evaluations,
                level=self.level,
                num_starts=end.num_starts,
                source=end.source,
                duplicate_of=self.duplicate_of(branches, i),
                num_gradients=end.num_gradients,
                num_products=end.num_products,
            )
            points.append(point)
        return points

    def duplicate_of(self, branches: Sequence[_End], i: int) -> int | None:
        """The first branch of the same loss, slope and certificates as branch i; None if that is itself."""
        one, tolerance = branches[i], max(1e-6, 10 * self.search.rtol)
        rise, slope = one.point.value - self.shell.center_value, one.point.slope
        for j, other in enumerate(branches[:i]):
            assert one.tangent is not None
            assert other.tangent is not None
            gap = abs(rise - (other.point.value - self.shell.center_value))
            if (
                gap <= tolerance * abs(rise) + self.loss_tolerance
                and abs(slope - other.point.slope) <= tolerance * self.search.scale(one.point)
                and same_certificates(one.tangent, other.tangent, tolerance)
            ):
                return j
        return None

    def joined(self, ends: Sequence[_End], slack: float) -> list[_End]:
        """Ends grouped by signed cosine and loss; the one closest to stationary represents its group."""
        groups: list[_End] = []
        directions: list[Array] = []
        for end in sorted(ends, key=lambda end: end.point.residual):
            direction = self.shell.flat(end.point.y)
            direction = direction / np.linalg.norm(direction)
            for group, other in zip(groups, directions, strict=True):
                gap = abs(end.point.value - group.point.value)
                share = _SAME_LOSS * abs(group.point.value - self.shell.center_value)
                cosine = float(direction @ other)
                is_same = cosine > _SAME_BRANCH and gap <= slack * (share + self.loss_tolerance)
                if is_same and (cosine > _SAME_POINT or not self._is_ridge(end.point, group.point)):
                    group.num_starts += end.num_starts
                    break
            else:
                groups.append(end)
                directions.append(direction)
        return groups

    def _is_ridge(self, a: SpherePoint, b: SpherePoint) -> bool:
        """Whether the loss halfway between two ends on the shell lies above both: then they run down to two minima."""
        between = SpherePoint.towards(self.shell, a.y + b.y, a.radius)
        return between.value > max(a.value, b.value) + self.loss_tolerance

    @property
    def _spent(self) -> tuple[int, int]:
        return self.shell.num_gradients, self.shell.num_products


def _spread_rows(num: int, dim: int, generator: torch.Generator) -> Array:
    """(num, dim) random directions, each uniform: in turn + and - the rows of random rotations, so that they spread."""
    rows: list[Tensor] = []
    while sum(map(len, rows)) < num:
        gaussian = torch.randn(dim, min(dim, num), generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        turned = (q * torch.sign(r.diagonal())).T
        rows.append(torch.stack([turned, -turned], dim=1).reshape(-1, dim))
    return np.ascontiguousarray(torch.cat(rows)[:num].numpy()) if rows else np.zeros((0, dim))


def check_space(space: Any, loss: Loss) -> Space:
    """A subspace of the loss's weight space with at least two dimensions, or "full"."""
    remedy = 'Pass pairs.subspace(), Subspace.span(rows), or "full".'
    if isinstance(space, str) and space == "full":
        return "full"
    if not isinstance(space, Subspace):
        received = f"is {space!r}" if isinstance(space, str) else f"is {a_type(space)}"
        raise TypeError(argument_message("space", received, 'a Subspace or "full"', remedy))
    if space.num_params != loss.num_params or space.dim < 2:
        expected = f"a Subspace of at least 2 of {loss.num_params} dimensions"
        raise ValueError(argument_message("space", f"is {space!r}", expected, remedy))
    return space


def check_rtol(rtol: float | None, loss: Loss) -> float:
    """The relative residual to reach, by default what the dtype allows."""
    if rtol is None:
        return _RTOL.get(loss.theta0.dtype, 1e-4)
    remedy = "Leave it out: 1e-8 in float64, 1e-4 in float32."
    return check_real("rtol", rtol, minimum=0.0, maximum=0.1, exclusive=True, remedy=remedy)


def _default_space(loss: Loss, evaluate: Mapping[str, Loss]) -> Subspace:
    """The loss's top eigenvectors, then those of every evaluated loss, at loss.theta0."""
    k = min(_PER_LOSS, loss.num_params)
    with naming("loss"):
        space = top_eigs(hessian(around(loss, loss.theta0)), k=k, progress=False).subspace()
    for name, other in evaluate.items():
        with naming(f"evaluate[{name!r}]"):
            space = space.union(top_eigs(hessian(around(other, loss.theta0)), k=k, progress=False).subspace())
    return Subspace(space.basis[:_MAX_DIM])


def _check_levels(levels: Any) -> tuple[float, ...]:
    """One or several different levels."""
    remedy = "Pass radii, or energies in units of loss for the hessian metric, such as (0.05, 0.2)."
    if isinstance(levels, Tensor | np.ndarray):
        levels = levels.tolist()
    found = levels if isinstance(levels, Sequence) and not isinstance(levels, str) else (levels,)
    wanted = tuple(check_real("levels", level, minimum=0.0, exclusive=True, remedy=remedy) for level in found)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(argument_message("levels", f"are {wanted}", "one or several different numbers", remedy))
    return wanted


def _check_directions(shell: Shell, vectors: Mapping[str, Tensor] | None) -> list[tuple[str, Array]]:
    """Starts, name and coordinates, along every given vector and against it."""
    remedy = 'Pass a mapping name -> vector (p,), such as {"keep number": direction}.'
    if vectors is not None and not isinstance(vectors, Mapping):
        received, expected = f"is {a_type(vectors)}", "a mapping name -> vector"
        raise TypeError(argument_message("initial_directions", received, expected, remedy))
    starts: list[tuple[str, Array]] = []
    for name, vector in (vectors or {}).items():
        argument, p = f"initial_directions[{name!r}]", shell.loss.num_params
        v = check_vector(argument, vector, p, owner=str(shell.loss), remedy=remedy, allow_zero=False)
        share = float(shell.inside(v).norm() / v.double().norm())
        if share < 1e-3:
            received, remedy = f"has {share:.1e} of its length inside the space", "Add it: space.union(...)."
            raise ValueError(argument_message(argument, received, "a vector with a part inside", remedy))
        if f"-{name}" in (vectors or {}):
            received, expected = f"has the names {name!r} and '-{name}'", "one of them: both directions are tried"
            raise ValueError(argument_message("initial_directions", received, expected, "Rename one."))
        starts += [(name, shell.coordinates(v)), (f"-{name}", shell.coordinates(-v))]
    return starts


def _check_resolution(shell: Shell, levels: Sequence[float]) -> None:
    """An error where displacements are lost in the rounding of theta."""
    dtype = shell.theta0.dtype
    finest = 1e3 * torch.finfo(dtype).eps * float(shell.theta0.double().norm())
    for level in levels:
        if shell.farthest(level) < finest:
            received = f"has {level:g}, displacements of at most {shell.farthest(level):.1g}"
            expected = f"more than the {finest:.1g} that {dtype} resolves at these weights"
            raise ValueError(argument_message("levels", received, expected, "Look further out, or use model.double()."))


def _warn_of_slope(shell: Shell, levels: Sequence[float]) -> None:
    """Warn where theta0 is no minimum within the space."""
    reasons, remedy = [], "Start from a minimum: lh.polish(objective).objective."
    relative = shell.curvatures / shell.scales**2  # of f at 0, as far as they are known
    if len(relative) and not shell.min_curvature and relative[-1] < -1e-3 * relative[0]:
        reasons.append(f"its smallest curvature is {relative[-1]:.2g}.")
    radius, slope = shell.radius_of(min(levels)), float(np.linalg.norm(shell.center_gradient))
    largest = float(np.max(relative, initial=0.0))
    if shell.is_full and not len(relative) and slope > 0:  # ask for the curvature along the slope
        direction = shell.center_gradient / slope
        largest = abs(float(direction @ shell.product(np.zeros(shell.dim), direction)))
    linear, bowl = slope * radius, 0.5 * largest * radius**2
    if linear > _SLOPED * bowl and linear > shell.rounding:
        reasons.append(
            f"on the smallest shell its gradient makes a difference of {linear:.2g}, the bowl at most {bowl:.2g}. "
            "Relative rises and certificates are measured on that slope."
        )
    for reason in reasons:
        message = f"theta0 is no minimum of the loss within the space: {reason}\n{remedy}"
        warn(message, RuntimeWarning)
