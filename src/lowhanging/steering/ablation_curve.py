"""The price of a circuit in all of weight space: the least loss at which another loss is kept below a level.

A steering direction is a guess at where one circuit can be given up. Here nothing is guessed: among all weights that
bring the *kept* circuit's loss down to a level, the one with the least loss is searched, by an augmented Lagrangian on
L-BFGS, then Newton steps on the optimality conditions. The search is local, so a price is an upper bound; several
starts and the multipliers, which must equal the slope of the curve of prices, say how far it can be trusted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.curvature.operators import plain_arithmetic
from lowhanging.errors import (
    NotConvergedError,
    a_type,
    argument_message,
    check_choice,
    check_count,
    check_real,
    door,
    warn,
)
from lowhanging.io import ResumeFile, Saved, digest
from lowhanging.objective.distributed import is_silent
from lowhanging.objective.protocol import Loss, as_losses, check_loss, check_rows, check_same_buffers, common_center
from lowhanging.steering.constrained import Array, Ball, Candidate, Limit, LossFunction, Problem, array, tensor
from lowhanging.steering.cues import NEITHER, ConflictControl
from lowhanging.tables import Columns, NotebookTable


@dataclass(frozen=True, eq=False, repr=False)
class AblationCurve(Saved, NotebookTable):
    """Least losses at which a circuit is kept: n points, from the start outwards.

    With levels, `losses` less `start[0]` is the price of keeping `kept` at or below each level; with distances, `kept`
    is the least loss of the kept circuit within each distance, at the bound on the loss. A point whose `kkt` is
    infinite met no constraint: it has no price, and its numbers say only where the search ended.
    """

    question: str  # "levels" or "distances"
    limits: Tensor  # (n,) the levels of `keep`, or the distances
    bound: float | None  # on `loss`, with distances
    center: Tensor  # (p,) theta0
    thetas: Tensor  # (n, p)
    distances: Tensor  # (n,) |theta - theta0|
    losses: Tensor  # (n,) of `loss`
    kept: Tensor  # (n,) of `keep`
    start: tuple[float, float]  # loss and kept loss at theta0
    multipliers: Tensor  # (n,) minus the slope: of the price in the level, or of the kept loss in the distance
    multiplier_errors: Tensor  # (n,) by the next Newton step; infinite where it is not known
    loss_multipliers: Tensor  # (n,) with distances: minus the slope of the kept loss in the bound; else 0
    kkt: Tensor  # (n,) |gradient of the Lagrangian|; infinite where a constraint is missed
    curvatures: Tensor  # (n,) least one of the Lagrangian along the active constraints; NaN where it is not known
    found: Tensor  # (n, starts) what the search from each start reached; infinite where it met no constraint
    gtol: float
    num_gradients: int
    num_products: int
    answers: dict[str, Tensor] = field(default_factory=dict)  # cue -> (n + 1,) its share at theta0 and at each point
    report: dict[str, Tensor] = field(default_factory=dict)  # name -> (n + 1,) a loss at theta0 and at each point

    @property
    def is_stationary(self) -> Tensor:
        """(n,) bool: the gradient of the Lagrangian is within `gtol`."""
        return self.kkt <= self.gtol

    @property
    def spreads(self) -> Tensor:
        """(n,) how far what the starts reached lies apart, the worst less the best; NaN where only one reached any."""
        reached = self.found.isfinite()
        worst = self.found.masked_fill(~reached, -math.inf).max(1).values
        return torch.where(reached.sum(1) > 1, worst - self.found.min(1).values, torch.nan)

    def columns(self) -> Columns:
        """One row for each limit; cue shares and reported losses by name, those at theta0 left out."""
        names = ("limits", "distances", "losses", "kept", "multipliers", "multiplier_errors", "kkt", "curvatures")
        named = {f"{cue} share": rows for cue, rows in self.answers.items()}
        named |= {f"{name} loss": rows for name, rows in self.report.items()}
        return {name: getattr(self, name).tolist() for name in names} | {
            name: rows[1:].tolist() for name, rows in named.items()
        }

    def __repr__(self) -> str:
        num, stationary = len(self.limits), int(self.is_stationary.sum())
        loss, kept = self.start
        what = "loss at each level of keep" if self.question == "levels" else "keep within each distance"
        ends = f"loss {loss:.3g} -> {float(self.losses[-1]):.3g}, keep {kept:.3g} -> {float(self.kept[-1]):.3g}"
        where = f"at distance {float(self.distances[-1]):.3g}"
        return f"AblationCurve({num} points, least {what}: {ends} {where}; {stationary} of {num} stationary)"

    def __str__(self) -> str:
        first = "level" if self.question == "levels" else "at most"
        head = (
            f"{first:>9} {'distance':>9} {'loss':>9} {'keep':>9} {'multiplier':>20} {'kkt':>8} {'least curvature':>16}"
        )
        lines = [head + "".join(f" {name:>9}" for name in self.answers)]
        for i, limit in enumerate(self.limits.tolist()):
            slope = f"{float(self.multipliers[i]):.4g} +- {float(self.multiplier_errors[i]):.1g}"
            numbers = (limit, *(float(row[i]) for row in (self.distances, self.losses, self.kept)))
            line = " ".join(f"{number:>9.4g}" for number in numbers)
            curvature = float(self.curvatures[i])
            line += f" {slope:>20} {float(self.kkt[i]):>8.1e} "
            line += f"{'not asked':>16}" if math.isnan(curvature) else f"{curvature:>16.3g}"
            lines.append(line + "".join(f" {100 * float(share[i + 1]):>7.1f} %" for share in self.answers.values()))
        return "\n".join(lines)


@door
@plain_arithmetic()
def ablation_curve(
    loss: Loss,
    *,
    keep: Loss,
    levels: Sequence[float] | Tensor | None = None,
    distances: Sequence[float] | Tensor | None = None,
    bound: float | None = None,
    conflict: ConflictControl | None = None,
    report: Mapping[str, Loss] | None = None,
    initial_thetas: Tensor | None = None,
    num_starts: int = 3,
    gtol: float = 1e-4,
    max_gradients: int = 2000,
    max_products: int = 600,
    second_order: bool = True,
    seed: int = 0,
    resume: str | Path | None = None,
    on_failure: Literal["raise", "warn"] = "raise",
    progress: bool | None = None,
) -> AblationCurve:
    r"""What does it cost to keep one circuit alone? The least `loss` at each level of the kept circuit's loss.

    With `levels` c_1 > c_2 > ...: theta(c) = argmin loss(theta) subject to keep(theta) <= c, over all of weight space,
    and the price is loss(theta(c)) - loss(theta0). With `distances` r_1 < r_2 < ...: argmin keep(theta) subject to
    |theta - theta0| <= r and loss(theta) <= bound.

    Each point begins from several starts, three by default (the last point; the line from theta0 through it, or at
    first against the slope of `keep`; the last point with noise) and keeps the best: prices are upper bounds. A point
    that the next, harder level undercuts is searched again from there. At a solution the gradients balance,

        g_loss + mu g_keep = 0,   mu = -d price / d c    (levels)
        g_keep + nu (theta - theta0) / r + mu g_loss = 0,   nu = -d keep / d r,   mu = -d keep / d bound    (distances)

    and the Lagrangian's Hessian is positive along the active constraints.

    Args:
        loss: what must stay low: the loss on both cues, best with the anchor of its minimum (`minimum.objective`).
        keep: the loss of the circuit to be kept, alone: the other cue *resampled* (`views.number_resampled`). A blanked
            one is also lowered by learning black images.
        levels: falling levels of `keep`, below its value at theta0, > 0. One is met up to a thousandth of it.
        distances: growing distances from theta0, > 0, instead of levels.
        bound: with distances, on `loss`; by default 0.1 nats above its value at theta0.
        conflict: inputs whose cues disagree: whose answers does each point give?
        report: name -> loss that is evaluated at every point, such as held-out ones.
        initial_thetas: (s, p) further starts for every point, such as a theta that is known to keep the circuit.
        num_starts: how many, besides those; 1 to be quick.
        gtol: norm of the Lagrangian's gradient to reach.
        max_gradients: for each start of each point: how often both losses are evaluated.
        max_products: for the Newton steps of each point: products with the Lagrangian's Hessian, one of each loss.
        second_order: find the least curvature along the active constraints, too; a saddle then counts as missed.
        seed: of the noise.
        resume: npz file of the points so far; the same call goes on from it.
        on_failure: "raise" NotConvergedError where a point misses `gtol`, or "warn" and return what was found: prices
            of points that are not stationary are still upper bounds, their multipliers mean little.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        AblationCurve; `print` it for a table.

    Raises:
        NotConvergedError: a point met no constraint, missed `gtol`, or is a saddle; `.result` has what was found.
        ValueError, TypeError: losses around different points, levels that do not fall or are not below `keep` at
            theta0, both levels and distances.
        DamagedFileError: the resume file is not whole.

    Cost:
        per point and start 100 to 1,000 gradients of both losses; up to max_products products with each, and about 100
        more for the least curvature.

    Source:
        Nocedal & Wright (2006), Numerical Optimization, algorithm 17.4 (augmented Lagrangian), section 18.1 (Newton's
        method on the optimality conditions).
    """
    center = common_center({"loss": check_loss("loss", loss), "keep": check_loss("keep", keep)})
    check_choice("on_failure", on_failure, ("raise", "warn"))
    num_starts = check_count("num_starts", num_starts, remedy="Leave it out: 3.")
    gtol = check_real("gtol", gtol, minimum=0.0, exclusive=True, remedy="Leave it out: 1e-4.")
    remedy = "Leave it out."
    check_count("max_gradients", max_gradients, minimum=10, remedy=remedy)
    check_count("max_products", max_products, minimum=0, remedy=remedy)
    check_count("seed", seed, minimum=0, remedy="Pass 0.")
    extra = (
        np.empty((0, center.numel()))
        if initial_thetas is None
        else array(check_rows("initial_thetas", initial_thetas, like=center))
    )
    reported = _reported(loss, report, conflict)
    start = float(loss(center)), float(keep(center))
    question = "levels" if distances is None else "distances"
    limits = _limits(levels, distances, start[1])
    if question == "levels" and bound is not None:
        raise ValueError(
            argument_message("bound", f"is {bound!r}", "None with levels=", "Pass distances=, or drop it.")
        )
    if question == "distances":
        remedy = "Pass a loss that can be reached, such as the one at theta0 plus 0.1."
        bound = check_real("bound", start[0] + 0.1 if bound is None else bound, minimum=start[0], remedy=remedy)
    ladder = _Ladder(loss, keep, center, limits, bound, extra, num_starts, gtol, max_gradients, max_products)
    file = None
    if resume is not None:
        identity = {
            "loss": repr((start[0], digest(center))), "keep": repr(start[1]), "question": repr((question, bound)),
            "limits": repr(limits), "starts": f"{num_starts} {digest(torch.from_numpy(extra))}", "gtol": repr(gtol),
            "seed": str(seed), "max_gradients": str(max_gradients), "max_products": str(max_products),
        }  # fmt: skip
        file = ResumeFile(resume, identity, kind="an ablation curve")
        if (state := file.read()) is not None:
            with file.decoding():
                ladder.restore(state)
    delay = 2.0 if progress is None else 0.0
    with tqdm(total=len(limits), desc="ablation curve", unit="point", disable=is_silent(progress), delay=delay) as bar:
        bar.update(len(ladder.points))

        def watch() -> None:
            bar.set_postfix(gradients=ladder.loss.num_gradients + ladder.keep.num_gradients, refresh=False)
            bar.update(0)

        ladder.loss.watch = ladder.keep.watch = watch
        while len(ladder.points) < len(limits):
            ladder.advance(np.random.default_rng([seed, len(ladder.points)]))
            bar.update()
            if file is not None:
                file.write(ladder.state())
        ladder.repair()
    result, saddles = _curve(ladder, loss, keep, center, start, gtol, conflict, reported, second_order)
    missed = (~result.is_stationary | saddles).tolist()
    if any(missed):
        numbers = ", ".join(
            f"{limit:.4g} ({'saddle' if saddle else f'kkt {kkt:.1e}' if math.isfinite(kkt) else 'not met'})"
            for limit, is_missed, saddle, kkt in zip(limits, missed, saddles.tolist(), result.kkt.tolist(), strict=True)
            if is_missed
        )
        message = f"ablation_curve missed gtol {gtol:g}, or the constraints, at {question} {numbers}."
        remedy = "Raise max_gradients=, max_products= or gtol=; float64 rounds less; ask for finer steps."
        if on_failure == "raise":
            raise NotConvergedError(f"{message}\n{remedy}", result)
        warn(f"{message}\n{remedy}")
    return result


def _curve(
    ladder: _Ladder, loss: Loss, keep: Loss, center: Tensor, start: tuple[float, float], gtol: float,
    conflict: ConflictControl | None, report: Mapping[str, Loss], second_order: bool,
) -> tuple[AblationCurve, Tensor]:  # fmt: skip
    """The result, evaluated at the thetas that are returned, in the losses' dtype; and which points are saddles."""
    candidates = [point.candidate for point in ladder.points]
    problems = [ladder.problem(index) for index in range(len(candidates))]
    thetas = torch.stack([tensor(one.theta, center) for one in candidates])
    everywhere = [center, *thetas]
    shares = [conflict(theta) for theta in everywhere] if conflict is not None else []
    pairs = list(zip(problems, candidates, strict=True))
    # A point that misses its constraints has no price: its residual is infinite.
    residuals = [
        one.kkt(found.theta, found.multipliers) if math.isfinite(found.value) else math.inf for one, found in pairs
    ]
    unknown = math.nan, math.nan
    curvatures = torch.tensor([one.least_curvature(found) if second_order else unknown for one, found in pairs])
    mu = np.stack([found.multipliers for found in candidates])  # (n, 1) or (n, 2)
    result = AblationCurve(
        question="levels" if ladder.bound is None else "distances",
        limits=torch.tensor(ladder.limits, dtype=torch.float64),
        bound=ladder.bound,
        center=center.cpu(),
        thetas=thetas.cpu(),
        distances=(thetas.double() - center.double()).norm(dim=1).cpu(),
        losses=torch.stack([loss(theta).double().cpu() for theta in thetas]),
        kept=torch.stack([keep(theta).double().cpu() for theta in thetas]),
        start=start,
        multipliers=torch.from_numpy(mu[:, 0].copy()),
        multiplier_errors=torch.tensor([found.error for found in candidates], dtype=torch.float64),
        loss_multipliers=torch.from_numpy(mu[:, 1:].sum(1)),
        kkt=torch.tensor(residuals, dtype=torch.float64),
        curvatures=curvatures[:, 0].double(),
        found=torch.tensor([point.found for point in ladder.points], dtype=torch.float64),
        gtol=gtol,
        num_gradients=ladder.loss.num_gradients + ladder.keep.num_gradients,
        num_products=ladder.loss.num_products + ladder.keep.num_products,
        answers={cue: torch.tensor([one[cue] for one in shares], dtype=torch.float64) for cue in (shares or [{}])[0]},
        report={
            name: torch.stack([other(theta).double().cpu() for theta in everywhere]) for name, other in report.items()
        },
    )
    return result, curvatures[:, 0] < -curvatures[:, 1]  # not where they are not known


def _reported(loss: Loss, report: Any, conflict: Any) -> dict[str, Loss]:
    """What is evaluated at the points, checked before the search begins."""
    losses = {} if report is None else as_losses(report, argument="report")
    for name, other in losses.items():
        common_center({"loss": loss, f"report[{name!r}]": other})
    if conflict is not None:
        remedy = 'Pass lh.ConflictControl(loss, inputs, {"one cue": labels, "other cue": labels}).'
        if not isinstance(conflict, ConflictControl):
            raise TypeError(argument_message("conflict", f"is {a_type(conflict)}", "a ConflictControl", remedy))
        if conflict.num_params != loss.num_params:
            received, expected = (
                f"is of a model with {conflict.num_params} parameters",
                f"{loss.num_params}, as the loss",
            )
            raise ValueError(argument_message("conflict", received, expected, "Make it with one of the losses."))
        check_same_buffers({"loss": loss, "the conflict control": conflict.loss})
        if clash := sorted({*losses} & {*conflict.cues, NEITHER}):
            expected = "names that no cue has"
            raise ValueError(argument_message("report", f"has the names {clash}", expected, "Rename them."))
    return losses


@dataclass(frozen=True, eq=False, repr=False)
class SphereRelaxation(Saved):
    """Where points go when nothing but their distance from theta0 is held."""

    thetas: Tensor  # (n, p)
    distances: Tensor  # (n,) |theta - theta0|, as of the points that were relaxed
    losses_before: Tensor  # (n,)
    losses: Tensor  # (n,)
    slides: Tensor  # (n,) in [0, 2]: the way along the sphere, |theta - before| / distance
    residuals: Tensor  # (n,) norm of the gradient along the sphere
    is_converged: Tensor  # (n,) bool
    others: dict[str, Tensor]  # name -> (n, 2): a loss, or a cue's share, before and after

    def __repr__(self) -> str:
        slides = ", ".join(f"{slide:.2f}" for slide in self.slides.tolist())
        return f"SphereRelaxation({len(self.slides)} points, slid by {slides} of their distance)"


@door
@plain_arithmetic()
def relax_on_spheres(
    loss: Loss,
    thetas: Tensor,
    *,
    report: Mapping[str, Loss] | None = None,
    conflict: ConflictControl | None = None,
    gtol: float = 1e-4,
    max_gradients: int = 2000,
) -> SphereRelaxation:
    r"""Lower the loss alone from each point, at its distance from theta0: does it stay, or slide back, and how far?

    A point that stays is "a minimum in all orthogonal directions", the write-up's canyon floor, in all of weight space;
    one that slides was held by the constraint under which it was found. L-BFGS on w with
    theta = theta0 + r w / |w|.

    Args:
        loss: around theta0.
        thetas: (n, p) points, such as `curve.thetas`.
        report: name -> other losses, evaluated before and after.
        conflict: inputs whose cues disagree: whose answers are given before and after?
        gtol: norm of the gradient along the sphere to reach; a point that misses it is marked in `.is_converged`.
        max_gradients: for each point.

    Returns:
        SphereRelaxation.

    Raises:
        ValueError: rows of the wrong length, or a point at theta0.

    Cost:
        100 to 1,000 gradients for each point.
    """
    center = check_loss("loss", loss).theta0
    rows = check_rows("thetas", thetas, like=center)
    if not len(rows):
        raise ValueError(argument_message("thetas", "has no rows", "one point at least", "Pass curve.thetas."))
    reported = _reported(loss, report, conflict)
    check_count("max_gradients", max_gradients, remedy="Leave it out: 2000.")
    gtol = check_real("gtol", gtol, minimum=0.0, exclusive=True, remedy="Leave it out: 1e-4.")
    found, residuals, before = [], [], []
    for row in rows:
        start = array(row) - array(center)
        radius = float(np.linalg.norm(start))
        if radius == 0:
            raise ValueError(argument_message("thetas", "has a row at theta0", "points off it", "Drop that row."))

        def at(w: Array, radius: float = radius) -> tuple[float, Array]:
            length = float(np.linalg.norm(w))
            unit = w / length
            value, gradient = loss.value_and_gradient(tensor(array(center) + radius * unit, center))
            slope = array(gradient)
            return float(value), (slope - (unit @ slope) * unit) * radius / length

        w, left, residual = start, max_gradients, math.inf
        while left > 0 and residual > gtol:  # begun again where rounding ended a line search, as long as that helps
            options = {"maxcor": 20, "maxfun": left, "maxiter": left, "ftol": 0.0, "gtol": gtol / 10}
            ended = scipy.optimize.minimize(at, w, jac=True, method="L-BFGS-B", options=options)
            w, left = ended.x * radius / np.linalg.norm(ended.x), left - max(ended.nfev, 1)
            last, residual = residual, float(np.linalg.norm(at(w)[1]))
            if residual > 0.9 * last:
                break
        found.append(tensor(array(center) + w, center))
        residuals.append(residual)
        before.append(float(loss(row)))
    after, distances = torch.stack(found), (rows.double() - center.double()).norm(dim=1)
    others = {
        name: torch.tensor([[float(other(row)) for row in pair] for pair in zip(rows, after, strict=True)])
        for name, other in reported.items()
    }
    if conflict is not None:
        shares = [[conflict(row) for row in pair] for pair in zip(rows, after, strict=True)]
        others |= {cue: torch.tensor([[one[cue] for one in pair] for pair in shares]) for cue in shares[0][0]}
    sizes = torch.tensor(residuals, dtype=torch.float64)
    return SphereRelaxation(
        thetas=after.cpu(),
        distances=distances.cpu(),
        losses_before=torch.tensor(before, dtype=torch.float64),
        losses=torch.tensor([float(loss(row)) for row in after], dtype=torch.float64),
        slides=((after.double() - rows.double()).norm(dim=1) / distances).cpu(),
        residuals=sizes,
        is_converged=sizes <= gtol,
        others=others,
    )


# The points, one after another ---------------------------------------------------------------------------------------


@dataclass
class _Point:
    """A solved step of the ladder; `found` is what each start reached."""

    candidate: Candidate
    found: tuple[float, ...]


class _Ladder:
    """The points so far, each from the one before."""

    def __init__(
        self, loss: Loss, keep: Loss, center: Tensor, limits: list[float], bound: float | None,
        extra: Array, num_starts: int, gtol: float, max_gradients: int, max_products: int,
    ):  # fmt: skip
        self.loss, self.keep, self.center = LossFunction(loss, center), LossFunction(keep, center), array(center)
        self.limits, self.bound, self.extra, self.num_starts, self.gtol = limits, bound, extra, num_starts, gtol
        self.max_gradients, self.max_products = max_gradients, max_products
        self.points: list[_Point] = []

    def problem(self, index: int) -> Problem:
        """What point number `index` solves; its first constraint is the one whose limit makes the ladder."""
        limit = self.limits[index]
        if self.bound is None:
            return Problem(self.loss, [Limit(self.keep, limit, limit)], self.gtol, self.loss.like.dtype)
        ball, below = Limit(Ball(self.center, limit), 0.0, limit), Limit(self.loss, self.bound, abs(self.bound) or 1.0)
        return Problem(self.keep, [ball, below], self.gtol, self.loss.like.dtype)

    def starts(self, index: int, generator: np.random.Generator) -> list[Array]:
        """From the last point, along the line through it, and beside it."""
        last = self.points[-1].candidate.theta if self.points else self.center
        way = last - self.center
        if not np.linalg.norm(way):  # against the slope of what must fall, as far as one linear step goes
            value, slope = self.keep(last)
            goal = self.limits[index] if self.bound is None else 0.5 * value
            way = -slope * (value - goal) / max(float(slope @ slope), 1e-300)
            longest = 0.1 * max(float(np.linalg.norm(last)), 1.0)
            way *= min(1.0, longest / max(float(np.linalg.norm(way)), 1e-300))
        length = float(np.linalg.norm(way))
        further = 1.2 if self.bound is None else self.limits[index] / max(length, 1e-300)
        found = [last, self.center + further * way]
        length = max(length, 0.01 * max(float(np.linalg.norm(last)), 1.0))  # off a point without a slope, too
        while len(found) < self.num_starts:
            found.append(last + 0.3 * length / math.sqrt(len(last)) * generator.standard_normal(len(last)))
        return [*found[: self.num_starts], *self.extra]

    def advance(self, generator: np.random.Generator) -> None:
        """Find the next point."""
        index = len(self.points)
        guess = self.points[-1].candidate.multipliers if self.points else None
        problem = self.problem(index)
        found = [problem.solved(start, guess, self.max_gradients) for start in self.starts(index, generator)]
        self.points.append(self.best(problem, found))

    def best(self, problem: Problem, found: list[Candidate]) -> _Point:
        """The lowest of what the starts reached, refined; where none met the constraints, the one closest to them."""
        best = min(found, key=lambda one: (one.value, float((problem.gaps(one.theta) / problem.scales).max())))
        return _Point(problem.refined(best, self.max_products), tuple(one.value for one in found))

    def repair(self) -> None:
        """A harder level's point meets an easier level, too: where it is better there, search again from it."""
        for index in reversed(range(len(self.points) - 1)):
            here, harder = (point.candidate for point in self.points[index : index + 2])
            if self.bound is None and harder.value < here.value - 1e-6 * abs(here.value):
                problem = self.problem(index)
                again = problem.solved(harder.theta, harder.multipliers, self.max_gradients)
                if again.value < here.value:
                    reached = self.points[index].found
                    self.points[index] = self.best(problem, [again])
                    self.points[index].found = (again.value, *reached[1:])

    def state(self) -> dict[str, Any]:
        """All that the next point depends on."""
        rows = [[*point.candidate.multipliers, point.candidate.value, point.candidate.error] for point in self.points]
        functions = self.loss, self.keep
        return {
            "thetas": torch.from_numpy(np.stack([point.candidate.theta for point in self.points])),
            "candidates": torch.tensor(rows, dtype=torch.float64),
            "found": torch.tensor([point.found for point in self.points], dtype=torch.float64),
            "counts": [count for one in functions for count in (one.num_gradients, one.num_products)],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what the ladder was when its `state` was taken."""
        for theta, row, found in zip(
            state["thetas"], state["candidates"].tolist(), state["found"].tolist(), strict=True
        ):
            *multipliers, value, error = row
            self.points.append(
                _Point(Candidate(theta.numpy().copy(), np.array(multipliers), value, error), tuple(found))
            )
        self.loss.num_gradients, self.loss.num_products, self.keep.num_gradients, self.keep.num_products = state[
            "counts"
        ]


def _limits(levels: Any, distances: Any, kept: float) -> list[float]:
    if (levels is None) == (distances is None):
        received = "and distances are both given" if levels is not None else "and distances are both left out"
        remedy = "Pass levels=[...] of the kept loss, or distances=[...] from theta0."
        raise ValueError(argument_message("levels", received, "one of them", remedy))
    name, given = ("levels", levels) if distances is None else ("distances", distances)
    remedy = f"Pass falling levels below {kept:.4g}." if distances is None else "Pass growing distances."
    try:
        listed = torch.as_tensor(given, dtype=torch.float64).reshape(-1).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(argument_message(name, f"is {a_type(given)}", "a list of numbers", remedy)) from error
    numbers = [
        check_real(f"{name}[{i}]", value, minimum=0.0, exclusive=True, remedy=remedy) for i, value in enumerate(listed)
    ]
    sign = -1 if distances is None else 1
    if not numbers or any(sign * b <= sign * a for a, b in itertools.pairwise(numbers)):
        expected = "numbers that fall" if distances is None else "numbers that grow"
        raise ValueError(argument_message(name, f"is {numbers}", expected, remedy))
    if distances is None and numbers[0] >= kept:
        expected = f"levels below the kept loss at theta0, {kept:.6g}"
        raise ValueError(argument_message(name, f"begins with {numbers[0]:.6g}", expected, remedy))
    return numbers
