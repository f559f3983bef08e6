"""What may be asked of a canyon search? The checks that finding, following and the null model share.

What did one search for canyons find, level by level, and how is it kept?

How do many starts become the branches of one shell?

Each start runs down on the shell; ends whose displacements point the same way, and whose losses agree, are one branch;
each branch is made stationary, and then joined once more. Signed cosines: a canyon and its mirror image are two.

Which channels of low loss leave a basin, and which of them are real?

A canyon is where the loss, on a shell of displacements of one size around the minimum, has a local minimum of its own.
Many random starts and a few initial_directions ones run down on the shell; those that end together are one branch; each branch is
made stationary by Newton steps and certified by the eigenvalues of the Hessian across it. On energy shells, the
default, a quadratic bowl is constant: whatever is isolated there is there because the loss is not quadratic.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.canyons.point import (
    CanyonPoint,
    Evaluations,
    canyon_point,
    same_certificates,
    with_full_certificates,
)
from lowhanging.canyons.shell import METRICS, Array, Metric, Shell
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
)
from lowhanging.io import Saved
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.protocol import Loss, around, as_losses, check_loss, check_same_buffers
from lowhanging.steering.cues import ConflictControl

DEFAULT_RTOL = {torch.float64: 1e-8, torch.float32: 1e-4}
_MOST_DIMENSIONS = 40  # of the default space
_PER_LOSS = 10  # eigenvectors that each loss gives to it


def aims(shell: Shell, initial_directions: Mapping[str, Tensor] | None) -> dict[str, Array]:
    """Name -> start, for both directions of every given vector."""
    remedy = 'Pass a mapping name -> vector (p,), such as {"keep number": direction}.'
    if initial_directions is not None and not isinstance(initial_directions, Mapping):
        raise TypeError(
            argument_message(
                "initial_directions", f"is {a_type(initial_directions)}", "a mapping name -> vector", remedy
            )
        )
    starts: dict[str, Array] = {}
    for name, vector in (initial_directions or {}).items():
        argument, p = f"initial_directions[{name!r}]", shell.loss.num_params
        v = check_vector(argument, vector, p, owner=str(shell.loss), remedy=remedy, allow_zero=False)
        share = float(shell.inside(v).norm() / v.double().norm())
        if share < 1e-3:
            received = f"has {share:.1e} of its length inside the space"
            raise ValueError(
                argument_message(argument, received, "a vector with a part inside", "Add it: space.union(...).")
            )
        if f"-{name}" in (initial_directions or {}):
            received = f"has the names {name!r} and '-{name}'"
            raise ValueError(
                argument_message(
                    "initial_directions", received, "one of them: both directions are tried", "Rename one."
                )
            )
        starts[name], starts[f"-{name}"] = shell.coordinates(v), shell.coordinates(-v)
    return starts


def check_around(loss: Loss, evaluate: Loss | Mapping[str, Loss] | None, conflict: Any) -> Evaluations:
    """What is to be evaluated at every point, with its values at theta0."""
    named = {} if evaluate is None else as_losses(evaluate, argument="evaluate")
    for name, objective in named.items():
        check_loss(f"evaluate[{name!r}]", objective)
        if objective.num_params != loss.num_params:
            received = f"has {objective.num_params} parameters"
            expected = f"{loss.num_params}, as the loss"
            raise ValueError(
                argument_message(f"evaluate[{name!r}]", received, expected, "Build both from the same model.")
            )
    if conflict is not None and not isinstance(conflict, ConflictControl):
        received = f"is {a_type(conflict)}"
        remedy = "Make one: lh.ConflictControl(loss, inputs, targets)."
        raise TypeError(argument_message("conflict", received, "a ConflictControl", remedy))
    control = {} if conflict is None else {"the conflict control": conflict.loss}
    check_same_buffers({"the loss": loss, **named, **control})
    return Evaluations.of(loss.theta0, named, conflict)


def check_space(space: Any, loss: Loss) -> Subspace | Literal["full"]:
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
        raise ValueError(argument_message("levels", f"are {wanted}", "one or several different numbers", remedy))
    return wanted


def check_rtol(rtol: float | None, loss: Loss) -> float:
    """The relative residual to reach, by default what the dtype allows."""
    if rtol is None:
        return DEFAULT_RTOL.get(loss.theta0.dtype, 1e-4)
    remedy = "Leave it out: 1e-8 in float64, 1e-4 in float32."
    return check_real("rtol", rtol, minimum=0.0, maximum=0.1, exclusive=True, remedy=remedy)


@dataclass(frozen=True, eq=False, repr=False)
class CanyonSet(Saved, Sequence[CanyonPoint]):
    """The branches found on every shell around one minimum, level by level, the lowest loss first."""

    points: tuple[CanyonPoint, ...]
    levels: tuple[float, ...]
    metric: str
    floor: float  # of the metric; 0: none
    space: Subspace | None  # what was searched; None: all of weight space
    curvatures: Tensor  # (dim,) eigenvalues of the Hessian at theta0 within the space, descending
    theta0: Tensor  # (p,)
    loss: float  # at theta0
    gradient_norm: float  # there, within the space
    losses: dict[str, float]  # of every evaluated objective, at theta0
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

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Any:
        return self.points[index]

    def __iter__(self) -> Iterator[CanyonPoint]:
        return iter(self.points)

    def at_level(self, level: float) -> tuple[CanyonPoint, ...]:
        """The branches of one shell."""
        if level not in self.levels:
            raise ValueError(
                argument_message("level", f"is {level!r}", f"one of {list(self.levels)}", "Name one of them.")
            )
        return tuple(point for point in self.points if point.level == level)

    @property
    def canyons(self) -> tuple[CanyonPoint, ...]:
        """The points that are certified and not trivial."""
        return tuple(point for point in self.points if point.is_certified and not point.is_trivial)

    def __repr__(self) -> str:
        name = "r" if self.metric == "euclidean" else "E"
        where = f"{name} = {', '.join(f'{level:.3g}' for level in self.levels)}"
        dim = "all" if self.space is None else f"{self.space.dim}"
        count = len(self.canyons)
        some = f"{count} canyon{'s' * (count > 1)} among {len(self)} point{'s' * (len(self) > 1)}"
        found = some if self.canyons else self._nothing()
        lost = sum(self.num_lost.values())
        notes = (f"; {lost} starts lost" if lost else "") + ("" if self.is_complete else "; BUDGET SPENT, INCOMPLETE")
        cost = f"{self.num_gradients} gradients, {self.num_products} products, {self.seconds:.1f} s"
        return f"CanyonSet({found}; {where} in {dim} dimensions, {self.num_starts} starts each{notes}; {cost})"

    def _nothing(self) -> str:
        depths = [point.depth for point in self.points if np.isfinite(point.depth)]
        if not depths:
            return f"no isolated canyon among {len(self)} points"
        return f"no isolated canyon among {len(self)} points, depth {min(depths):.6g} to {max(depths):.6g}"


SAME_BRANCH = 0.95  # signed cosine between displacements
_ONE_PLACE = 0.999  # above it nobody asks for a ridge in between
_SAME_LOSS = 1e-4  # share of the rise within which the losses of one branch agree; before Newton, a hundred times that
_SAME_RISE = 1e-9  # of the largest rise among a level's starts: the same, on a flat floor
_SCOUTS = 4  # starts that are looked at for these scales
_FLOOR = 1e-2  # of the largest tangent gradient among them, see SphereSearch.floor


@dataclass
class _End:
    """Where starts ended, before and after Newton."""

    place: SpherePoint
    num_starts: int
    source: str
    num_gradients: int
    num_products: int = 0
    tangent: TangentHessian | None = None


class BranchSearch:
    """One level after the other."""

    def __init__(
        self,
        search: SphereSearch,
        around: Evaluations,
        stationary: str,
        starts: int,
        aims: dict[str, Array],
        seed: int,
        budget: int,
    ):
        self.search, self.shell, self.around, self.budget = search, search.shell, around, budget
        self.stationary, self.starts, self.aims = stationary, starts, aims
        self.generator = torch.Generator().manual_seed(seed)
        self.num_infinite = 0  # starts of the newest level that ended where the loss is not finite
        self.loss_floor = 0.0  # below which two losses are one
        self.points: list[CanyonPoint] = []
        self.num_lost: dict[float, int] = {}

    @property
    def num_starts(self) -> int:
        """Per level."""
        return self.starts + len(self.aims)

    def level(self, level: float, bar: tqdm) -> int:
        """Starts, branches, points of one shell; how many starts the budget allowed."""
        radius = self.shell.radius_of(level)
        rows = _spread_rows(self.starts, self.shell.dim, self.generator)
        first = [*self.aims.items(), *((f"random {i}", row) for i, row in enumerate(rows))]  # an aim may be called so
        ends: list[_End] = []
        seen = [self.search.place(y, radius) for _, y in first[:_SCOUTS]]
        seen = [place for place in seen if place.value < np.inf] or seen
        self.search.typical = max(place.residual for place in seen)
        self.search.floor = _FLOOR * self.search.typical
        self.loss_floor = _SAME_RISE * max(abs(place.value - self.shell.center_value) for place in seen) + noise(
            self.shell
        )
        for source, y in first:
            if self.shell.num_gradients >= self.budget:
                break
            ends.append(self._run(source, y, radius))
            bar.update()
        num_begun = len(ends)
        self.num_infinite = sum(end.place.value == np.inf for end in ends)
        self.points += self._points(level, self._branches(ends))
        self.num_lost[level] = num_begun - sum(point.num_starts for point in self.points if point.level == level)
        return num_begun

    def _run(self, source: str, y: Array, radius: float) -> _End:
        before = self.shell.num_gradients, self.shell.num_products
        if self.stationary == "minima":
            return _End(self.search.descend(y, radius), 1, source, self.shell.num_gradients - before[0])
        place, tangent = self.search.any_kind(y, radius)
        spent = self.shell.num_gradients - before[0], self.shell.num_products - before[1]
        return _End(place, 1, source, spent[0], spent[1], tangent)

    def _branches(self, ends: list[_End]) -> list[_End]:
        """Ends that are one branch joined, then each made stationary, then joined again."""
        ends = self._joined(ends, 100)
        for end in ends:
            if end.tangent is None:
                before = self.shell.num_gradients, self.shell.num_products
                end.place, end.tangent = self.search.minimum(end.place)
                end.num_gradients += self.shell.num_gradients - before[0]
                end.num_products += self.shell.num_products - before[1]
        return self._joined(ends, 1)

    def _points(self, level: float, branches: list[_End]) -> list[CanyonPoint]:
        """The branches that became stationary, as points, the lowest first."""
        found = [end for end in branches if self.search.is_stationary(end.place)]
        found.sort(key=lambda end: end.place.value)
        points = []
        for i, end in enumerate(found):
            assert end.tangent is not None
            point = canyon_point(
                self.search,
                end.place,
                end.tangent,
                self.around,
                level=level,
                num_starts=end.num_starts,
                source=end.source,
                duplicate_of=self._copied(found, i),
                num_gradients=end.num_gradients,
                num_products=end.num_products,
            )
            points.append(point)
        return points

    def _copied(self, ends: list[_End], i: int) -> int | None:
        """The first end of the same loss, slope and certificates."""
        mine, tolerance = ends[i], max(1e-6, 10 * self.search.rtol)
        for j in range(i):
            other = ends[j]
            assert mine.tangent is not None
            assert other.tangent is not None
            rises = [end.place.value - self.shell.center_value for end in (mine, other)]
            slopes = [end.place.slope for end in (mine, other)]
            if (
                abs(rises[0] - rises[1]) <= tolerance * abs(rises[0]) + self.loss_floor
                and abs(slopes[0] - slopes[1]) <= tolerance * self.search.scale(mine.place)
                and same_certificates(mine.tangent, other.tangent, tolerance)
            ):
                return j
        return None

    def _joined(self, ends: list[_End], slack: float) -> list[_End]:
        """Ends grouped by signed cosine and loss; the one closest to stationary speaks for its group."""
        groups: list[_End] = []
        ways: list[Array] = []
        for end in sorted(ends, key=lambda end: end.place.residual):
            way = self.shell.flat(end.place.y)
            way = way / np.linalg.norm(way)
            for group, other in zip(groups, ways, strict=True):
                gap = abs(end.place.value - group.place.value)
                share = _SAME_LOSS * abs(group.place.value - self.shell.center_value)
                cosine = float(way @ other)
                is_same = cosine > SAME_BRANCH and gap <= slack * (share + self.loss_floor)
                if is_same and (cosine > _ONE_PLACE or not self._is_ridge(end.place, group.place)):
                    group.num_starts += end.num_starts
                    break
            else:
                groups.append(end)
                ways.append(way)
        return groups

    def _is_ridge(self, a: SpherePoint, b: SpherePoint) -> bool:
        """Whether the loss halfway between two ends on the shell lies above both: then they run down to two minima."""
        between = self.search.place(a.y + b.y, a.radius)
        higher = max(a.value, b.value)
        return between.value > higher + self.loss_floor


def _spread_rows(num: int, dim: int, generator: torch.Generator) -> Array:
    """(num, dim) random directions, each uniform: in turn + and - the rows of random rotations, so that they spread."""
    rows: list[Tensor] = []
    while sum(map(len, rows)) < num:
        gaussian = torch.randn(dim, min(dim, num), generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        turned = (q * torch.sign(r.diagonal())).T
        rows.append(torch.stack([turned, -turned], dim=1).reshape(-1, dim))
    return np.ascontiguousarray(torch.cat(rows)[:num].numpy()) if rows else np.zeros((0, dim))


def noise(shell: Shell) -> float:
    """What rounding may move a loss by."""
    return 16 * torch.finfo(shell.theta0.dtype).eps * abs(shell.center_value)


_SLOPED = 0.1  # share of the energy that the gradient at theta0 may explain


@torch.inference_mode(False)
@plain_arithmetic()
def find_canyons(
    loss: Loss,
    *,
    space: Subspace | Literal["full"] | None = None,
    metric: Metric = "hessian",
    levels: float | Sequence[float],
    starts: int = 32,
    initial_directions: Mapping[str, Tensor] | None = None,
    evaluate: Loss | Mapping[str, Loss] | None = None,
    conflict: ConflictControl | None = None,
    stationary: Literal["minima", "all"] = "minima",
    floor: float | None = None,
    full_certificates: bool = False,
    rtol: float | None = None,
    max_gradients: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> CanyonSet:
    r"""Local minima of a loss on shells around its minimum, each with its certificates.

    euclidean: minima of L on |delta| = r.   hessian: minima of L on 1/2 delta^T M delta = E, M the Hessian at theta0
    restricted to the space, its eigenvalues not below `floor`.

    From each start L-BFGS runs on w with y = rho w / |w| until |P g| is small; ends whose displacements have a signed
    cosine above 0.95 and whose losses agree are one branch; Newton steps with the explicit Hessian in the space make it
    stationary, |P g| <= rtol max(|g|, |H0 delta|, floor of the level), and its tangent eigenvalues certify it. A
    saddle is left along its lowest eigenvector. Mirror images and other copies stay, and are marked (`duplicate_of`).

    Args:
        loss: the objective around its minimum: `polish(...).objective`.
        space: where to look: a `Subspace` (`pairs.subspace()`, `Subspace.span(rows)`, `a.union(b)`), or "full". By
            default the union of the top 10 eigenvectors of the loss and of each evaluated objective, the loss's first,
            at most 40 dimensions.
        metric: which displacements are equally far out, see above. Energy shells need fewer gradients, and branches are
            not swallowed by the softest axis; claims about "all orthogonal directions" are about spheres.
        levels: r, or E in units of loss; one or several.
        starts: random starts per level, uniform on the shell.
        initial_directions: name -> vector (p,) to start from as well, in both directions: steering directions, differences of
            weights. Only the part inside the space counts.
        evaluate: name -> loss to evaluate at every point; or one loss.
        conflict: a control on which a point may be called after a circuit, where its cues are evaluated (see
            `attribute_circuit`).
        stationary: "minima", or "all": stationary points of any kind, by Levenberg and Marquardt's steps (not in the
            full space).
        floor: smallest curvature of the energy metric; in the full space a hundredth of the largest eigenvalue by
            default, in a subspace none.
        full_certificates: plane and sphere eigenvalues in all of weight space too, by Lanczos: hundreds of products.
        rtol: relative residual to reach; 1e-8 in float64, 1e-4 in float32.
        max_gradients: number of gradients after which no new start begins; no limit by default.
        seed: of the random starts. The global random state is not touched.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        CanyonSet: a sequence of `CanyonPoint`; `.canyons` are those that are certified and not trivial. In a quadratic
        bowl there is none, and the `repr` says so.

    Raises:
        NotConvergedError: the budget ran out, or no start of some level became stationary; `.result` has what was
            found.
        ValueError, TypeError: an argument out of range; a space in which the energy metric is not positive.

    Warns:
        RuntimeWarning: theta0 is no minimum within the space: depth and certificates are then measured on a slope.

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
    check_choice("metric", metric, METRICS)
    check_choice("stationary", stationary, ("minima", "all"))
    wanted = check_levels(levels)
    check_count("starts", starts, minimum=0, remedy="32 find what is there in tens of dimensions.")
    check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    tol = check_rtol(rtol, loss)
    budget = 10**18 if max_gradients is None else check_count("max_gradients", max_gradients, remedy="Leave it out.")
    around = check_around(loss, evaluate, conflict)
    delay = 2.0 if progress is None else 0.0
    region = check_space(default_space(loss, around.evaluate) if space is None else space, loss)
    if isinstance(region, str) and stationary == "all":
        received = "is 'all' in the full space"
        raise ValueError(
            argument_message("stationary", received, "a Subspace for it", "Pass space=Subspace.span(rows).")
        )
    shell = Shell(loss, region, metric, floor)
    search = SphereSearch(shell, rtol=tol)
    finder = BranchSearch(search, around, stationary, starts, aims(shell, initial_directions), seed, budget)
    if not finder.num_starts:
        raise ValueError(
            argument_message("starts", "is 0", "at least one, or initial_directions= vectors", "Leave it out: 32.")
        )
    _warn_of_slope(shell, wanted)
    for level in wanted:
        farthest = shell.radius_of(level) / float(np.min(shell.scales, initial=np.sqrt(shell.floor or np.inf)))
        finest = 1e3 * torch.finfo(loss.theta0.dtype).eps * float(loss.theta0.double().norm())
        if farthest < finest:
            received = f"has {level:g}, displacements of at most {farthest:.1g}"
            expected = f"more than the {finest:.1g} that {loss.theta0.dtype} resolves at these weights"
            raise ValueError(argument_message("levels", received, expected, "Look further out, or use model.double()."))
    failure, is_complete = None, True
    with tqdm(
        total=finder.num_starts * len(wanted),
        desc="canyons",
        unit="start",
        disable=is_silent(progress),
        delay=delay,
    ) as bar:
        for level in wanted:
            num_begun = finder.level(level, bar)
            if num_begun < finder.num_starts:
                spent = f"find_canyons spent its {budget} gradients after {num_begun} of {finder.num_starts} starts"
                failure = f"{spent} at level {level:g}.\nRaise max_gradients=, or ask for fewer starts."
                is_complete = False
                break
            if finder.num_lost[level] == num_begun:
                infinite = f" (the loss is not finite at {finder.num_infinite} ends)" if finder.num_infinite else ""
                failure = (
                    f"find_canyons: none of the {num_begun} starts at level {level:g} became stationary to rtol "
                    f"{tol:g}{infinite}.\nRaise rtol= or starts=, use float64 (model.double()), or look closer in."
                )
        points = finder.points
        if full_certificates and failure is None:
            bar.set_postfix_str("certificates in all of weight space")
            scale = float(np.abs(shell.curvatures).max()) if len(shell.curvatures) else 1.0
            full = [with_full_certificates(loss, point, scale) for point in points]
            points = [point for point, _ in full]
            shell.num_products += sum(num for _, num in full)
            shell.num_gradients += len(full)
    result = CanyonSet(
        points=tuple(points),
        levels=wanted,
        metric=metric,
        floor=shell.floor if metric == "hessian" else 0.0,
        space=shell.space,
        curvatures=torch.from_numpy(shell.curvatures.copy()),
        theta0=loss.theta0.cpu(),
        loss=shell.center_value,
        gradient_norm=float(shell.inside(loss.gradient(loss.theta0)).norm()),
        losses=around.losses,
        accuracies=around.accuracies,
        cue_shares=around.cue_shares,
        stationary=stationary,
        num_starts=finder.num_starts,
        num_lost={f"{level:g}": num for level, num in finder.num_lost.items()},
        rtol=tol,
        seed=seed,
        num_gradients=shell.num_gradients + 1,
        num_products=shell.num_products,
        seconds=time.perf_counter() - begun,
        is_complete=is_complete,
    )
    if failure is not None:
        raise NotConvergedError(failure, result)
    return result


def _warn_of_slope(shell: Shell, levels: Sequence[float]) -> None:
    radius = shell.radius_of(min(levels))
    largest = 1.0 if shell.metric == "hessian" else float(np.max(shell.curvatures, initial=0.0))
    slope = float(np.linalg.norm(shell.center_gradient))
    if (
        shell.is_full and shell.metric == "euclidean" and slope > 0
    ):  # no curvature is known: ask for that along the slope
        way = shell.center_gradient / slope
        largest = abs(float(way @ shell.product(np.zeros(shell.dim), way)))
    if shell.metric == "euclidean" and len(shell.curvatures) and shell.curvatures[-1] < -1e-3 * shell.curvatures[0]:
        message = (
            f"theta0 is no minimum of the loss within the space: its smallest curvature is "
            f"{shell.curvatures[-1]:.2g}.\n"
            "Start from a minimum: lh.polish(objective).objective."
        )
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    linear, bowl = slope * radius, 0.5 * largest * radius**2
    if linear > _SLOPED * bowl and linear > noise(shell):
        message = (
            "theta0 is no minimum of the loss within the space: on the smallest shell its gradient makes a difference "
            f"of {linear:.2g}, the bowl at most {bowl:.2g}. Depth and certificates are measured on that slope.\n"
            "Start from a minimum: lh.polish(objective).objective."
        )
        warnings.warn(message, RuntimeWarning, stacklevel=4)
