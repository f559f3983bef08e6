"""Theme "cartoons": the canyons of the post's two cartoons, and descent on them.

On losses of two weights, one per circuit. Their canyons are the axes, known on paper, and found here by the code that
searches the network. Descent on the flat one is known on paper too: gradient flow conserves x^2 - y^2, so it stops on
an axis, at distance |x0^2 - y0^2|^(1/2) from the joint minimum.

Noise changes that, also on paper. Steps h of noise s per coordinate are a temperature T = h s^2 / 2. On the flat floor
at distance r the other weight spreads by T / (2 r^2), so the mean slope along the floor is T / r, towards the junction,
and dr = -(T / r) dt + (2T)^(1/2) dW: a Bessel process of dimension 0, which reaches 0 with certainty, by time t with
probability exp(-r0^2 / (4 T t)). So under noise a flat canyon delays and does not trap. On the sloped cartoon time is
spent as the density exp(-L / T) says, most of it near the junction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.special import kv
from torch import Tensor

from lowhanging.canyons.find import CanyonSet, find_canyons
from lowhanging.canyons.point import CanyonPoint
from lowhanging.curvature.subspace import Subspace
from lowhanging.landscape.planes import PlaneSlice, plane_slice
from lowhanging.objective.objective import FunctionObjective
from lowhanging.reproduce.claims import Claim, interval, judged, percent
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.store import ResultStore, Row
from lowhanging.toys import GradientPath, copies, flat_canyons, gradient_path, on_axis, sloped_canyons

HALF_WIDTH = 2.0  # starts are uniform in a square around the joint minimum
NEAR, FAR = 0.1, 0.5  # on an axis: one weight within NEAR of 0, the other at least FAR from it
AT_MINIMUM = 1e-3  # distance from the joint minimum at the end of the flow
GTOL = 1e-7
STEP, NOISE = 0.05, 0.5
JUNCTION = 0.25  # with noise: distance from the joint minimum
NUM_PATHS = 6  # kept whole, for a figure
RADII = (0.1, 0.5, 1.0, 3.0)
HEIGHT = 0.1  # of the sloped cartoon's floors, far out
EXACT = 1e-8  # difference from paper
CARTOONS = {"flat": flat_canyons(), "sloped": sloped_canyons()}


def measure(context: Context, seed: int = 0) -> Row:
    """Canyons of both cartoons, gradient flow and noisy descent on them from the same random starts."""
    sizes, store = context.sizes, context.store
    starts = draw_starts(sizes.cartoon_starts, seed)
    row: dict[str, object] = {"num_starts": len(starts), "noisy_time": sizes.cartoon_time}
    for name, loss in CARTOONS.items():
        flow, thetas = _flow(loss, starts)
        found = canyons_of(loss)
        row[name] = {
            "canyons": [_record(point) for point in found],
            "canyon_error": paper_error(found, HEIGHT if name == "sloped" else 0.0),
            "is_at_rest": flow.is_at_rest,
            "reached_axis": on_axis(thetas, near=NEAR, far=FAR).any(0).tolist(),
            "reached_both": int((thetas[-1].norm(dim=1) <= AT_MINIMUM).sum()),
            "ends": thetas[-1].tolist(),
            **_noisy(loss, starts, sizes.cartoon_time, seed),
        }
        for i in range(min(NUM_PATHS, len(starts))):
            path_of(name, starts[i], i, store)
        plane_of(name, store)
    row["closed_form"] = {
        "flat_visits": float(reached_by(np.sqrt(levels_of(starts)), JUNCTION, sizes.cartoon_time).mean()),
        "sloped_share": share_near(JUNCTION),
    }
    row["starts"] = starts.tolist()
    row["flow_error"] = flow_error(starts, torch.tensor(row["flat"]["ends"], dtype=torch.float64))  # type: ignore[index]
    return row


def draw_starts(num: int, seed: int) -> Tensor:
    """(num, 2) uniform in the square, without those that are within NEAR of an axis already."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.empty(0, 2, dtype=torch.float64)
    while len(kept) < num:
        drawn = HALF_WIDTH * (2 * torch.rand(num, 2, generator=generator, dtype=torch.float64) - 1)
        kept = torch.cat([kept, drawn[drawn.abs().amin(1) > NEAR]])
    return kept[:num]


def canyons_of(loss: FunctionObjective, radii: Iterable[float] = RADII) -> CanyonSet:
    """The canyons of a cartoon, by the code that searches the network."""
    whole = Subspace(torch.eye(2, dtype=torch.float64))
    return find_canyons(loss, space=whole, metric="euclidean", levels=tuple(radii), num_starts=16, rtol=1e-12)


def paper_error(found: CanyonSet, height: float) -> float:
    """Largest difference of rise, slope, plane and sphere eigenvalue from paper; infinite if an axis is missing.

    The loss is x^2 y^2 + height (1 - exp(-x^2 - y^2)).
    """
    errors = []
    for radius in RADII:
        points, fall = found.at_level(radius), height * math.exp(-(radius**2))
        on_axes = {(round(float(x), 6) + 0.0, round(float(y), 6) + 0.0) for x, y in (p.delta / radius for p in points)}
        if len(points) != 4 or on_axes != {(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)}:
            return math.inf
        paper = (height - fall, 2 * radius * fall, 2 * radius**2 + 2 * fall, 2 * radius**2)
        for p in points:
            measured = (p.rise, p.slope, p.plane_eigenvalue, p.sphere_eigenvalue)
            errors += [abs(a - b) for a, b in zip(measured, paper, strict=True)]
    return max(errors)


def _record(point: CanyonPoint) -> Row:
    names = ("level", "rise", "slope", "plane_eigenvalue", "sphere_eigenvalue", "is_certified")
    return {"place": point.delta.tolist()} | {name: getattr(point, name) for name in names}


def _flow(loss: FunctionObjective, starts: Tensor) -> tuple[GradientPath, Tensor]:
    """Gradient flow from all starts at once, and its thetas (times, n, 2)."""
    flow = gradient_path(copies(loss, len(starts)), starts.flatten(), gtol=GTOL, progress=False)
    return flow, flow.thetas.reshape(-1, len(starts), 2)


def _noisy(loss: FunctionObjective, starts: Tensor, time: float, seed: int) -> Row:
    together = copies(loss, len(starts))
    noisy = gradient_path(together, starts.flatten(), time=time, step=STEP, noise=NOISE, seed=seed + 1, progress=False)
    is_near = noisy.thetas.reshape(-1, len(starts), 2).norm(dim=2) <= JUNCTION  # (steps + 1, n)
    return {
        "noisy_visits": int(is_near.any(0).sum()),  # runs that were ever within JUNCTION of the joint minimum
        "noisy_share": float(is_near[-(len(is_near) // 4) :].double().mean()),  # of the last quarter of the time
    }


def levels_of(starts: Tensor) -> np.ndarray:
    """(n,) |x^2 - y^2|, which the flat flow conserves: the squared distance at which it comes to an axis."""
    return np.asarray((starts[:, 0].square() - starts[:, 1].square()).abs().numpy())


def reached_by(begin: np.ndarray, radius: float, time: float, num: int = 32) -> np.ndarray:
    """(n,) probability on paper that noise brings the flat floor's walker from `begin` (n,) to `radius` by a time.

    In units of time in which the walker has unit variance, tau = 2 T t, the hitting time of a Bessel process of
    dimension 0 has the Laplace transform r K_1(r q) / (a K_1(a q)), q = (2 lambda)^(1/2); it is inverted along Talbot's
    contour with `num` nodes (Abate & Whitt 2006). The descent to the floor is taken to be immediate.
    """
    tau = STEP * NOISE**2 * time
    angle = np.arange(1, num) * np.pi / num
    cotangent = 1 / np.tan(angle)
    nodes = np.append(2 * num / 5, 2 * np.pi / 5 * np.arange(1, num) * (cotangent + 1j))
    slopes = np.append(0.5, 1 + 1j * angle * (1 + cotangent**2) - 1j * cotangent) * np.exp(nodes)
    q = np.sqrt(2 * nodes / tau)
    far = np.maximum(np.asarray(begin, dtype=float), radius)[:, None]
    ratio = far * kv(1, far * q) / (radius * kv(1, radius * q))  # (n, num)
    return np.asarray(np.where(begin <= radius, 1.0, 0.4 * (slopes * ratio / nodes).real.sum(1)))


def share_near(radius: float, num: int = 1001) -> float:
    """Share of exp(-L / T) of the sloped cartoon within a radius, in the square of the starts."""
    x = np.linspace(-HALF_WIDTH, HALF_WIDTH, num)
    squares = x[:, None] ** 2 + x**2
    energy = (x[:, None] * x) ** 2 + HEIGHT * (1 - np.exp(-squares))
    weight = np.exp(-energy / (STEP * NOISE**2 / 2))
    return float(weight[squares <= radius**2].sum() / weight.sum())


def flow_error(starts: Tensor, ends: Tensor) -> float:
    """Largest distance between the end of a flow on the flat cartoon and the end on paper."""
    levels = starts[:, 0].square() - starts[:, 1].square()  # conserved
    squares = torch.stack([levels, -levels], 1).clamp_min(0.0)  # (n, 2)
    return float((ends - squares.sqrt() * starts.sign()).norm(dim=1).max())


def path_of(name: str, start: Tensor, index: int, store: ResultStore) -> GradientPath:
    """The flow from one start, kept whole."""
    return store.result(f"descent-{name}-{index}", lambda: gradient_path(CARTOONS[name], start, progress=False))


def plane_of(name: str, store: ResultStore) -> PlaneSlice:
    """The cartoon itself."""
    label = f"{name} canyons"

    def made() -> PlaneSlice:
        return plane_slice(
            {label: CARTOONS[name]},
            torch.eye(2, dtype=torch.float64),
            extent=1.25 * HALF_WIDTH,
            num=41,
            names=("x, what one circuit lacks", "y, what the other lacks"),
            engine="point by point",
            progress=False,
        )

    return store.result(f"cartoon-{name}", made)


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The cartoons' canyons; flat ones trap gradient flow, sloped ones lead it on; and what noise changes."""
    return [_canyons(rows[0]), _descent(rows[0])]


def _canyons(row: Row) -> Claim:
    errors = {name: row[name]["canyon_error"] for name in ("flat", "sloped")}  # None: an axis is missing
    texts = [
        f"{name} {error:.0e}" if error is not None else f"{name}: an axis is missing, or something else was found"
        for name, error in errors.items()
    ]
    slopes = {name: max((abs(point["slope"]) for point in row[name]["canyons"]), default=math.nan) for name in errors}
    return Claim(
        14,
        "the cartoons' canyons are their axes",
        "x²y² has two flat canyons, the axes, and x²y² + 0.1 (1 − exp(−x² − y²)) two sloped ones, meeting at 0",
        f"the code that searches the network finds the four half-axes and nothing else at each of r = "
        f"{', '.join(f'{radius:g}' for radius in RADII)}; largest difference of height, slope, plane and sphere "
        f"eigenvalue from paper: {'; '.join(texts)}. Steepest floor: flat {slopes['flat']:.1g}, sloped "
        f"{slopes['sloped']:.3g} (exact: no seed, no interval)",
        "the values on paper",
        f"exactly the four half-axes at every radius, every number within {EXACT:g} of paper; each cartoon is a part",
        judged(*(error is not None and error <= EXACT for error in errors.values())),
    )


def _descent(row: Row) -> Claim:
    flat, sloped, num, paper = row["flat"], row["sloped"], row["num_starts"], row["closed_form"]
    flat_axis, sloped_axis = sum(flat["reached_axis"]), sum(sloped["reached_axis"])
    levels = [abs(x**2 - y**2) for x, y in row["starts"]]
    others = [level for level, reached in zip(levels, sloped["reached_axis"], strict=True) if not reached]
    rest = f" (the others start with |x² − y²| ≤ {max(others):.2g})" if others else ""
    return Claim(
        20,
        "flat canyons trap descent after one circuit, sloped ones lead it to both (cartoons)",
        "where canyon floors are flat, descent stops once one circuit solves the task; where they slope down to their "
        "junction, it learns one circuit first and then goes on to both",
        f"gradient flow from {num} random starts, with Wilson 95 % intervals. Flat (x²y²): {interval(flat_axis, num)} "
        f"reach an axis at least {FAR:g} from the joint minimum, {interval(flat['reached_both'], num)} end at that "
        f"minimum. Sloped (+ 0.1 (1 − exp(−x² − y²))): {interval(sloped_axis, num)} reach an axis first{rest}, "
        f"{interval(sloped['reached_both'], num)} end at the joint minimum. With noise, not judged (steps of {STEP:g}, "
        f"noise {NOISE:g} on each coordinate of the gradient, to time {row['noisy_time']:g}), within {JUNCTION:g} of "
        f"the joint minimum at some time: {interval(flat['noisy_visits'], num)} of the flat runs, on paper "
        f"{percent(paper['flat_visits'])}, and {interval(sloped['noisy_visits'], num)} of the sloped ones; over the "
        f"last quarter of the time {percent(flat['noisy_share'])} and {percent(sloped['noisy_share'])} of it is spent "
        f"there, on the sloped one {percent(paper['sloped_share'])} on paper. So with noise a flat canyon delays, for "
        "a time that grows with the squared distance from its junction, and does not trap",
        "the flat cartoon is the sloped one's null; on paper none of its flows ends at the joint minimum (largest "
        f"distance to the ends on paper {row['flow_error']:.1g})",
        f"two parts, of the flow, about which the argument is: more than half of the starts reach an axis (one weight "
        f"within {NEAR:g} of 0, the other at least {FAR:g} from it) on each cartoon, and at most 5 % end at the joint "
        "minimum of the flat one; at least 95 % at that of the sloped one",
        judged(
            flat["is_at_rest"] and flat_axis > num / 2 and flat["reached_both"] <= 0.05 * num,
            sloped["is_at_rest"] and sloped_axis > num / 2 and sloped["reached_both"] >= 0.95 * num,
        ),
        part="a",
    )
