"""Theme 5: do flat canyons trap descent after one circuit, and do sloped ones lead it to both?

On the post's cartoons of two weights, one per circuit. Without noise the answer for the flat one is known on paper:
gradient flow conserves x^2 - y^2, so it stops on an axis, at distance |x0^2 - y0^2|^(1/2) from the joint minimum. Noise
of temperature T = step noise^2 / 2 changes that: on the floor at distance r the other weight spreads by T / (2 r^2), so
the mean slope along the floor is T / r, towards the junction, where the canyon is wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowhanging.basin.planes import PlaneSlice, plane_slice
from lowhanging.function_objective import FunctionObjective
from lowhanging.reproduce.claims import Claim, interval, judged, percent
from lowhanging.toys import GradientPath, copies, flat_canyons, gradient_path, on_axis, sloped_canyons

NUM_STARTS, HALF_WIDTH = 200, 2.0  # uniform in a square around the joint minimum
NEAR, FAR = 0.1, 0.5  # on an axis: one weight within NEAR of 0, the other at least FAR from it
AT_MINIMUM = 1e-3  # distance from the joint minimum at the end of the flow
GTOL = 1e-7
STEP, NOISE, NOISY_TIME = 0.05, 0.5, 200.0
JUNCTION = 0.25  # with noise: distance from the joint minimum
NUM_PATHS = 6  # kept whole, for a figure
CARTOONS = (("flat canyons", flat_canyons()), ("sloped canyons", sloped_canyons()))


@dataclass(frozen=True)
class Descents:
    """Descent from every start on one cartoon."""

    ends: Tensor  # (n, 2) where the flow came to rest
    is_at_rest: bool
    reached_axis: Tensor  # (n,) bool: flows that came by an axis, away from the joint minimum
    reached_both: int  # flows that ended at the joint minimum
    noisy_visits: int  # noisy runs that were ever within JUNCTION of the joint minimum
    noisy_share: float  # of the last quarter of the time, spent there by the noisy runs
    paths: list[GradientPath]  # the flow from the first starts
    plane: PlaneSlice  # the cartoon itself


@dataclass(frozen=True)
class Cartoons:
    """The two cartoons, from the same starts."""

    starts: Tensor  # (n, 2)
    flat: Descents
    sloped: Descents

    @property
    def levels(self) -> Tensor:
        """x^2 - y^2 of each start, (n,): what the flow conserves on the flat cartoon."""
        return self.starts[:, 0].square() - self.starts[:, 1].square()

    @property
    def paper_error(self) -> float:
        """Largest distance between the end of a flow on the flat cartoon and the end on paper."""
        squares = torch.stack([self.levels, -self.levels], 1).clamp_min(0.0)  # (n, 2)
        return float((self.flat.ends - squares.sqrt() * self.starts.sign()).norm(dim=1).max())


def measure(seed: int = 0, num_starts: int = NUM_STARTS) -> Cartoons:
    """Gradient flow and noisy descent from the same random starts on both cartoons."""
    starts = draw_starts(num_starts, seed)
    return Cartoons(starts, *(_descend(*cartoon, starts, seed) for cartoon in CARTOONS))


def draw_starts(num: int, seed: int) -> Tensor:
    """(num, 2) uniform in the square, without those that are within NEAR of an axis already."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.empty(0, 2, dtype=torch.float64)
    while len(kept) < num:
        drawn = HALF_WIDTH * (2 * torch.rand(num, 2, generator=generator, dtype=torch.float64) - 1)
        kept = torch.cat([kept, drawn[drawn.abs().amin(1) > NEAR]])
    return kept[:num]


def _descend(name: str, loss: FunctionObjective, starts: Tensor, seed: int) -> Descents:
    num = len(starts)
    together = copies(loss, num)
    flow = gradient_path(together, starts.flatten(), gtol=GTOL, progress=False)
    thetas = flow.thetas.reshape(-1, num, 2)
    noisy = gradient_path(
        together, starts.flatten(), time=NOISY_TIME, step=STEP, noise=NOISE, seed=seed + 1, progress=False
    )
    is_near = noisy.thetas.reshape(-1, num, 2).norm(dim=2) <= JUNCTION  # (steps + 1, num)
    return Descents(
        ends=thetas[-1].clone(),
        is_at_rest=flow.is_at_rest,
        reached_axis=on_axis(thetas, near=NEAR, far=FAR).any(0),
        reached_both=int((thetas[-1].norm(dim=1) <= AT_MINIMUM).sum()),
        noisy_visits=int(is_near.any(0).sum()),
        noisy_share=float(is_near[-(len(is_near) // 4) :].double().mean()),
        paths=[gradient_path(loss, start, progress=False) for start in starts[:NUM_PATHS]],
        plane=plane_slice(
            {name: loss},
            torch.eye(2, dtype=torch.float64),
            1.25 * HALF_WIDTH,
            41,
            names=("x, what one circuit lacks", "y, what the other lacks"),
            engine="point by point",
            progress=False,
        ),
    )


def claims(cartoons: Cartoons) -> list[Claim]:
    """Flat canyons trap gradient flow, sloped ones lead it on; and what noise changes."""
    flat, sloped, num = cartoons.flat, cartoons.sloped, len(cartoons.starts)
    flat_axis, sloped_axis = int(flat.reached_axis.sum()), int(sloped.reached_axis.sum())
    others = cartoons.levels[~sloped.reached_axis].abs()
    rest = f" (the others start with |x² − y²| ≤ {float(others.max()):.2g})" if len(others) else ""
    return [
        Claim(
            "flat canyons trap descent, sloped ones lead to the joint minimum",
            "where canyon floors are flat, descent stops once one circuit solves the task; where they slope down to "
            "their junction, it learns one circuit first and then goes on to both",
            f"gradient flow from {num} random starts, with Wilson 95 % intervals. Flat (x²y²): "
            f"{interval(flat_axis, num)} reach an axis at least {FAR:g} from the joint minimum, "
            f"{interval(flat.reached_both, num)} end at that minimum (on paper none; largest distance to the ends on "
            f"paper {cartoons.paper_error:.1g}). Sloped (+ 0.1 (1 − exp(−x² − y²))): "
            f"{interval(sloped_axis, num)} reach an axis first{rest}, {interval(sloped.reached_both, num)} end "
            "at the joint minimum",
            f"more than half of the starts reach an axis (one weight within {NEAR:g} of 0, the other at least {FAR:g} "
            "from it) on each cartoon; at most 5 % end at the joint minimum of the flat one, at least 95 % at that of "
            "the sloped one",
            judged(
                flat.is_at_rest and flat_axis > num / 2 and flat.reached_both <= 0.05 * num,
                sloped.is_at_rest and sloped_axis > num / 2 and sloped.reached_both >= 0.95 * num,
            ),
        ),
        Claim(
            "the same with noisy steps",
            "the argument has no noise in it; added here, because that of SGD also drives descent to where a canyon is "
            "wide, and so along flat floors to the junction",
            f"steps of {STEP:g} with noise {NOISE:g} on each coordinate of the gradient, to time {NOISY_TIME:g}: "
            f"within {JUNCTION:g} of the joint minimum at some time {interval(flat.noisy_visits, num)} of the flat "
            f"runs, {interval(sloped.noisy_visits, num)} of the sloped ones; over the last quarter of the time "
            f"{percent(flat.noisy_share)} and {percent(sloped.noisy_share)} of it is spent there",
            "the flat cartoon still traps if at most half of its runs ever get there; the sloped one leads there if at "
            "least 95 % of its runs do",
            judged(flat.noisy_visits <= num / 2, sloped.noisy_visits >= 0.95 * num),
        ),
    ]


def numbers(cartoons: Cartoons) -> dict[str, object]:
    """What goes into results.json."""
    found: dict[str, object] = {
        "num_starts": len(cartoons.starts),
        "near": NEAR,
        "far": FAR,
        "step": STEP,
        "noise": NOISE,
        "noisy_time": NOISY_TIME,
        "junction": JUNCTION,
        "largest_distance_to_paper_flat": cartoons.paper_error,
    }
    for name, descents in (("flat", cartoons.flat), ("sloped", cartoons.sloped)):
        found[name] = {
            "is_at_rest": descents.is_at_rest,
            "reached_axis": int(descents.reached_axis.sum()),
            "reached_both": descents.reached_both,
            "noisy_visits": descents.noisy_visits,
            "noisy_share_of_last_quarter": descents.noisy_share,
        }
    return found
