"""Which themes are there, in which order are they measured, and what does each need?"""

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
)
from lowhanging.reproduce.themes import canyons as canyon_claims
from lowhanging.reproduce.themes import cartoons as cartoon_claims
from lowhanging.reproduce.themes import modular as modular_claims
from lowhanging.reproduce.themes import sizes as size_runs
from lowhanging.reproduce.themes import steering as steering_claims
from lowhanging.reproduce.themes import toy_sum as redundancy


@dataclass(frozen=True)
class Theme:
    """One file's worth of measurements."""

    name: str
    title: str  # what is being done, for whoever waits
    measure: Callable[[Context], Row]
    claims: Callable[[Sequence[Row]], list[Claim]]
    has_network: bool = True  # measured on every network; else once per run


def _sizes(at: Context) -> Row:
    wanted = at.sizes
    design = size_runs.TINY if wanted.name == "tiny" else size_runs.QUICK if wanted.is_quick else size_runs.FULL
    return sizes.measure(seeds=wanted.size_seeds, design=design, shelf=at.shelf)


THEMES = (
    Theme("learning", "train and polish", lambda at: learning.measure(at.network), learning.claims),
    Theme("rates", "rates and stability", lambda at: rates.measure(at.network, at.sizes), rates.claims),
    Theme(
        "curvature", "eigenpairs of the three losses",
        lambda at: curvature.measure(at.network, at.sizes, at.shelf), curvature.claims,
    ),
    Theme(
        "steering", "steering directions and their nulls",
        lambda at: steering.measure(at.network, at.sizes, at.shelf), steering_claims.claims,
    ),
    Theme(
        "planes", "the plane of the steering directions",
        lambda at: planes.measure(at.network, at.sizes, at.shelf), planes.claims,
    ),
    Theme(
        "canyons", "canyons and their null",
        lambda at: canyons.measure(at.network, at.sizes, at.shelf), canyon_claims.claims,
    ),
    Theme(
        "logits", "sums of single-cue logits",
        lambda at: logits.measure(at.network, quick=at.sizes.is_quick), logits.claims,
    ),
    Theme(
        "order", "the first epochs once more, step by step",
        lambda at: order.measure(
            at.network, quick=at.sizes.is_quick, shelf=at.shelf
        ), order.claims,
    ),
    Theme("toy-sum", "toy sum", lambda at: redundancy.measure(), redundancy.claims, has_network=False),
    Theme(
        "cartoons", "cartoons",
        lambda at: cartoons.measure(at.sizes, at.shelf), cartoon_claims.claims, has_network=False,
    ),
    Theme(
        "modular", "modular addition, many seeds",
        lambda at: modular.measure(at.sizes, at.shelf), modular_claims.claims, has_network=False,
    ),
    Theme("sizes", "small circuits against large ones", _sizes, sizes.claims, has_network=False),
)  # fmt: skip
NAMES = tuple(theme.name for theme in THEMES)
