"""Theme "planes": the radius up to which the loss is quadratic, and that from which the circuits can be told apart.

On circles around the minimum in the plane of the two steering directions. The fit error of a circle is the largest
deviation of a loss on it from its second-order expansion at the minimum, as a share of the range of the loss on the
circle and at its center. Circuits can be told apart where the losses on the two cues change in different proportions.

That a smooth loss is quadratic close enough to its minimum is Taylor's theorem. What has to be measured is how close,
and whether the circuits can be told apart there already: two quadratics of different shape would do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowhanging.landscape.planes import PlaneSlice, plane_slice
from lowhanging.objective.protocol import Loss
from lowhanging.reproduce.claims import Claim, judged, mean_interval, most, over_seeds
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.store import Row
from lowhanging.reproduce.themes.learning import TASKS
from lowhanging.reproduce.themes.steering import STEP, directions_of
from lowhanging.steering.cues import MIN_ASYMMETRY_CHANGE

RADII = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
NUM_ANGLES = 8
QUADRATIC = 0.1  # fit error up to which a loss counts as quadratic
LEVELS = (0.05, QUADRATIC, 0.2)  # at which that is reported too
EXTENT = 4.0  # of the plane that is drawn


def plane_of(context: Context) -> PlaneSlice:
    """The three losses on the plane of the two steering directions, for the picture."""
    steered = directions_of(context)
    first, second = (f"keep {s.preserved}, ablate {s.ablated}" for s in steered)
    num = context.sizes.plane_points

    def made() -> PlaneSlice:
        # The engine is named: its measurement could fall either way, and the report is to repeat to the last digit.
        directions = tuple(s.direction for s in steered)
        return plane_slice(
            context.network.losses, directions, extent=EXTENT, num=num,
            names=(first, second), engine="point by point", resume=context.store.resume("plane"),
        )  # fmt: skip

    return context.store.result("plane", made)


def measure(context: Context) -> Row:
    """Losses on circles, fit errors and asymmetries."""
    u, v = (s.direction.double() for s in directions_of(context))
    angle = math.degrees(math.acos(float(u @ v)))
    across = v - (u @ v) * u
    axes = torch.stack([u, across / across.norm()])  # (2, p), orthonormal
    found = {name: circles(loss, axes) for name, loss in context.network.losses.items()}
    number, pattern = found["number"], found["pattern"]
    plane_of(context)
    return {
        "radii": list(RADII),
        "angle": angle,
        "norm": float(context.network.minimum.theta.norm()),
        "circles": found,
        "asymmetry_change": asymmetry_changes(number, pattern, "losses"),
        "asymmetry_change_of_quadratics": asymmetry_changes(number, pattern, "expansion"),
    }


def asymmetry_changes(number: Row, pattern: Row, quantity: str) -> list[float]:
    """For each radius, the largest change of log(L_number / L_pattern) on the circle; infinite where one is no loss."""
    start = number["center"] / pattern["center"]
    return [
        max(abs(math.log(a / b / start)) if a > 0 and b > 0 else math.inf for a, b in zip(*pair, strict=True))
        for pair in zip(number[quantity], pattern[quantity], strict=True)
    ]


def circles(loss: Loss, axes: Tensor) -> Row:
    """A loss on circles of the plane, and its fit error on each."""
    center, rows = loss.theta0, axes.to(loss.theta0)
    value, gradient = float(loss(center)), (rows @ loss.gradient(center)).double()  # (2,)
    bend = torch.stack([rows @ loss.hvp(center, row) for row in rows]).double()  # (2, 2)
    bend = (bend + bend.T) / 2
    turns = 2 * math.pi * torch.arange(NUM_ANGLES, dtype=torch.float64) / NUM_ANGLES
    units = torch.stack([turns.cos(), turns.sin()], 1)  # (angles, 2)
    losses, expansion, errors, rounding = [], [], [], []
    for radius in RADII:
        steps = (radius * units).cpu()
        expected = value + steps @ gradient.cpu() + 0.5 * ((steps @ bend.cpu()) * steps).sum(1)
        measured = torch.tensor([float(loss(center + step.to(center) @ rows)) for step in steps], dtype=torch.float64)
        span = max(float(measured.max()), value) - min(float(measured.min()), value)
        losses.append(measured.tolist())
        expansion.append(expected.tolist())
        errors.append(float((measured - expected).abs().max()) / span if span else math.nan)
        rounding.append(torch.finfo(center.dtype).eps * value / span if span else math.nan)
    return {"center": value, "losses": losses, "expansion": expansion, "fit_error": errors, "rounding": rounding}


def crossing(radii: Sequence[float], values: Sequence[float | None], level: float) -> float:
    """The radius at which values first exceed a level, on a straight line between two radii in log-log coordinates.

    0 where they do so at the smallest radius, infinite where they never do. None is an infinite value.
    """
    known = [math.inf if value is None else value for value in values]
    above = next((i for i, value in enumerate(known) if value > level), None)
    if above is None:
        return math.inf
    if above == 0:
        return 0.0
    below, value = known[above - 1], known[above]
    if below <= 0 or math.isinf(value):
        return radii[above]
    share = math.log(level / below) / math.log(value / below)
    return float(radii[above - 1] * (radii[above] / radii[above - 1]) ** share)


def quadratic_up_to(row: Row, name: str, level: float = QUADRATIC) -> float:
    """The radius at which the fit error of a loss passes a level."""
    return crossing(row["radii"], row["circles"][name]["fit_error"], level)


def distinct_from(row: Row, key: str = "asymmetry_change") -> float:
    """The radius from which on the circuits can be told apart: by the losses, or by their second-order expansions."""
    return crossing(row["radii"], row[key], MIN_ASYMMETRY_CHANGE)


def _radius(values: Sequence[float]) -> str:
    """Radii as text, and how many lie outside of the circles that were drawn."""
    known = [value for value in values if 0 < value < math.inf]
    near, far = sum(value == 0 for value in values), sum(math.isinf(value) for value in values)
    parts = [mean_interval(known, 2, scale="log", with_range=False)] if known else []
    parts += [f"below {RADII[0]:g} in {near}"] if near else []
    parts += [f"beyond {RADII[-1]:g} in {far}"] if far else []
    return ", ".join(parts) + (f" of {len(values)}" if near or far else "")


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Where the quadratic ends, and that the circuits can't be told apart before that."""
    distinct = [distinct_from(row) for row in rows]
    ends = {
        name: " / ".join(_radius([quadratic_up_to(row, name, level) for row in rows]) for level in LEVELS)
        for name in TASKS
    }
    shares = {
        name: [100 * end / row["norm"] for row in rows if math.isfinite(end := quadratic_up_to(row, name))]
        for name in TASKS
    }
    texts = [f"{name} {ends[name]}" + (f" ({_mean(shares[name])} % of ‖θ‖)" if shares[name] else "") for name in TASKS]
    before = {
        level: {name: [quadratic_up_to(row, name, level) < distinct_from(row) for row in rows] for name in TASKS}
        for level in LEVELS
    }
    counts = "; ".join(
        f"at {100 * level:g} %: " + ", ".join(f"{name} {sum(flags)} of {len(rows)}" for name, flags in found.items())
        for level, found in before.items()
    )
    rounding = max(row["circles"][name]["rounding"][0] for row in rows for name in TASKS)
    return [
        Claim(
            9,
            "near the minimum the loss is quadratic and the circuits can't be told apart",
            "in the small the loss is a quadratic bowl, in which circuits can't be told apart; canyons lie further out",
            "that it is quadratic near enough is Taylor's theorem; measured is how near, on circles in the plane of "
            f"the two steering directions {over_seeds(len(rows), with_range=False)}. The fit error of the "
            "second-order expansion passes "
            f"{' / '.join(f'{100 * level:g}' for level in LEVELS)} % at radius {'; '.join(texts)}. "
            f"log(L_number / L_pattern) has moved by {MIN_ASYMMETRY_CHANGE:g} nat at radius {_radius(distinct)}. "
            f"Networks in which a loss's quadratic ends nearer than that, {counts}",
            f"quadratic losses: a fit error of 0 at every radius, {rounding:.1g} with the rounding of these losses at "
            "the smallest. Quadratics tell the circuits apart too: the expansions alone do so from radius "
            f"{_radius([distinct_from(row, 'asymmetry_change_of_quadratics') for row in rows])}",
            f"four parts, each in more than half of the seeds: for each of the three losses, its quadratic ends (fit "
            f"error of {100 * QUADRATIC:g} %) nearer to the minimum than log(L_number / L_pattern) has moved by "
            f"{MIN_ASYMMETRY_CHANGE:g} nat, so that within it the circuits can't be told apart; and they can be at "
            f"radius {STEP:g}, where steering is judged",
            judged(*(most(flags) for flags in before[QUADRATIC].values()), most(radius <= STEP for radius in distinct)),
        )
    ]


def _mean(values: Sequence[float]) -> str:
    return mean_interval(values, 2, scale="log", with_range=False)
