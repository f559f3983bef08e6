r"""Which channels of low loss leave a basin, and which of them are real?

A canyon is where the loss, on a shell of displacements of one size around the minimum, has a local minimum of its own.
Many random starts and a few aimed ones run down on the shell; those that end together are one branch; each branch is
made stationary by Newton steps and certified by the eigenvalues of the Hessian across it. On energy shells, the
default, a quadratic bowl is constant: whatever is isolated there is there because the loss is not quadratic.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.basin.canyon_arguments import (
    aims,
    check_around,
    check_levels,
    check_rtol,
    check_space,
    default_space,
)
from lowhanging.basin.canyon_points import with_full_certificates
from lowhanging.basin.canyon_search import Finder, noise
from lowhanging.basin.canyon_set import CanyonSet
from lowhanging.basin.conflict import ConflictControl
from lowhanging.basin.shells import METRICS, Metric, Shell
from lowhanging.basin.stationary import SphereSearch
from lowhanging.basin.subspace import Subspace
from lowhanging.basin.symmetric_operator import plain_arithmetic
from lowhanging.errors import NotConvergedError, check_choice, check_count, explain
from lowhanging.loss import Loss, check_loss
from lowhanging.ranks import is_silent

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
    aimed: Mapping[str, Tensor] | None = None,
    evaluate: Mapping[str, Loss] | None = None,
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
    saddle is left along its lowest eigenvector. Mirror images and other copies stay, and are marked (`copy_of`).

    Args:
        loss: the objective around its minimum: `polish(...).objective`.
        space: where to look: a `Subspace` (`pairs.subspace()`, `Subspace.span(rows)`, `a.union(b)`), or "full". By
            default the union of the top 10 eigenvectors of the loss and of each evaluated objective, the loss's first,
            at most 40 dimensions.
        metric: which displacements are equally far out, see above. Energy shells need fewer gradients, and branches are
            not swallowed by the softest axis; claims about "all orthogonal directions" are about spheres.
        levels: r, or E in units of loss; one or several.
        starts: random starts per level, uniform on the shell.
        aimed: name -> vector (p,) to start from as well, in both directions: steering directions, differences of
            weights. Only the part inside the space counts.
        evaluate: name -> objective to evaluate at every point.
        conflict: a control on which a point may be called after a circuit, where its cues are evaluated (see
            `name_circuit`).
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
        raise ValueError(explain("stationary", received, "a Subspace for it", "Pass space=Subspace.span(rows)."))
    shell = Shell(loss, region, metric, floor)
    search = SphereSearch(shell, rtol=tol)
    finder = Finder(search, around, stationary, starts, aims(shell, aimed), seed, budget)
    if not finder.num_starts:
        raise ValueError(explain("starts", "is 0", "at least one, or aimed= vectors", "Leave it out: 32."))
    _warn_of_slope(shell, wanted)
    for level in wanted:
        farthest = shell.radius_of(level) / float(np.min(shell.scales, initial=np.sqrt(shell.floor or np.inf)))
        finest = 1e3 * torch.finfo(loss.theta0.dtype).eps * float(loss.theta0.double().norm())
        if farthest < finest:
            received = f"has {level:g}, displacements of at most {farthest:.1g}"
            expected = f"more than the {finest:.1g} that {loss.theta0.dtype} resolves at these weights"
            raise ValueError(explain("levels", received, expected, "Look further out, or use model.double()."))
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
        followed=around.followed,
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
