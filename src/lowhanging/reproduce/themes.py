"""Which themes are there, in which order are they measured, and what does each need?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lowhanging.reproduce import (
    canyon_claims,
    canyons,
    cartoon_claims,
    cartoons,
    curvature,
    learning,
    modular,
    modular_claims,
    planes,
    rates,
    redundancy,
    steering,
    steering_claims,
)
from lowhanging.reproduce.claims import Claim
from lowhanging.reproduce.place import Place
from lowhanging.reproduce.shelf import Row


@dataclass(frozen=True)
class Theme:
    """One file's worth of measurements."""

    name: str
    title: str  # what is being done, for whoever waits
    measure: Callable[[Place], Row]
    claims: Callable[[Sequence[Row]], list[Claim]]
    has_network: bool = True  # measured on every network; else once per run


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
    Theme("toy-sum", "toy sum", lambda at: redundancy.measure(), redundancy.claims, has_network=False),
    Theme(
        "cartoons", "cartoons",
        lambda at: cartoons.measure(at.sizes, at.shelf), cartoon_claims.claims, has_network=False,
    ),
    Theme(
        "modular", "modular addition, many seeds",
        lambda at: modular.measure(at.sizes, at.shelf), modular_claims.claims, has_network=False,
    ),
)  # fmt: skip
NAMES = tuple(theme.name for theme in THEMES)
