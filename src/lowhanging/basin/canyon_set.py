"""What did one search for canyons find, level by level, and how is it kept?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.basin.canyon_points import CanyonPoint, restored, stored
from lowhanging.basin.subspace import Subspace
from lowhanging.errors import explain
from lowhanging.results import load_result, save_result


@dataclass(frozen=True, eq=False, repr=False)
class CanyonSet(Sequence[CanyonPoint]):
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
    followed: dict[str, float]
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
            raise ValueError(explain("level", f"is {level!r}", f"one of {list(self.levels)}", "Name one of them."))
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

    def save(self, path: str | Path) -> Path:
        """Write to npz, without the objectives."""
        basis = torch.zeros((0, 0)) if self.space is None else self.space.basis
        plain = {name: getattr(self, name) for name in _PLAIN}
        columns = stored(self.points)
        return save_result(
            _Stored(basis=basis, theta0=self.theta0, curvatures=self.curvatures, plain=plain, **columns), path
        )

    @classmethod
    def load(cls, path: str | Path) -> CanyonSet:
        """Read what `save` wrote."""
        found = load_result(_Stored, path)
        space = Subspace(found.basis) if found.basis.numel() else None
        return cls(
            points=restored(found.deltas, found.thetas, found.records, space),
            space=space,
            theta0=found.theta0,
            curvatures=found.curvatures,
            **{**found.plain, "levels": tuple(found.plain["levels"])},
        )


_PLAIN = (
    "levels", "metric", "floor", "loss", "gradient_norm", "losses", "accuracies", "followed", "stationary",
    "num_starts", "num_lost", "rtol", "seed", "num_gradients", "num_products", "seconds", "is_complete",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Stored:
    """A CanyonSet as tensors and plain values."""

    deltas: Tensor
    thetas: Tensor
    records: list[dict[str, Any]]
    basis: Tensor
    theta0: Tensor
    curvatures: Tensor
    plain: dict[str, Any]
