"""The themes of the report, in the order in which they are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lowhanging.reproduce.claims import Claim
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.store import Row
from lowhanging.reproduce.themes import (
    canyons,
    cartoons,
    curvature,
    learning,
    logits,
    modular,
    order,
    planes,
    rates,
    sizes,
    steering,
    toy_sum,
)


@dataclass(frozen=True)
class Theme:
    """One file's worth of measurements."""

    name: str
    title: str  # what is being done, for whoever waits
    measure: Callable[[Context], Row]
    claims: Callable[[Sequence[Row]], list[Claim]]
    has_network: bool = True  # measured on every network; else once per run


THEMES = (
    Theme("learning", "train and polish", learning.measure, learning.claims),
    Theme("rates", "rates and stability", rates.measure, rates.claims),
    Theme("curvature", "eigenpairs of the three losses", curvature.measure, curvature.claims),
    Theme("steering", "steering directions and their nulls", steering.measure, steering.claims),
    Theme("planes", "the plane of the steering directions", planes.measure, planes.claims),
    Theme("canyons", "canyons and their null", canyons.measure, canyons.claims),
    Theme("logits", "sums of single-cue logits", logits.measure, logits.claims),
    Theme("order", "the first epochs once more, step by step", order.measure, order.claims),
    Theme("toy-sum", "toy sum", toy_sum.measure, toy_sum.claims, has_network=False),
    Theme("cartoons", "cartoons", cartoons.measure, cartoons.claims, has_network=False),
    Theme("modular", "modular addition, many seeds", modular.measure, modular.claims, has_network=False),
    Theme("sizes", "small circuits against large ones", sizes.measure, sizes.claims, has_network=False),
)
NAMES = tuple(theme.name for theme in THEMES)
