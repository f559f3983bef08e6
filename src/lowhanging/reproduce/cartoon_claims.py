"""Theme "cartoons", the claims: canyons on paper, and whether they trap descent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowhanging.reproduce.cartoons import FAR, JUNCTION, NEAR, NOISE, RADII, STEP
from lowhanging.reproduce.claims import Claim, interval, judged, percent
from lowhanging.reproduce.shelf import Row

EXACT = 1e-8  # difference from paper


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
    flat, sloped, num, paper = row["flat"], row["sloped"], row["num_starts"], row["on_paper"]
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
