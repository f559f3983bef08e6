"""How do many starts become the branches of one shell?

Each start runs down on the shell; ends whose displacements point the same way, and whose losses agree, are one branch;
each branch is made stationary, and then joined once more. Signed cosines: a canyon and its mirror image are two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.basin.canyon_points import Around, CanyonPoint, canyon_point, same_certificates
from lowhanging.basin.places import Place, TangentHessian
from lowhanging.basin.shells import Array, Shell
from lowhanging.basin.stationary import SphereSearch

SAME_BRANCH = 0.95  # signed cosine between displacements
_ONE_PLACE = 0.999  # above it nobody asks for a ridge in between
_SAME_LOSS = 1e-4  # share of the rise within which the losses of one branch agree; before Newton, a hundred times that
_SAME_RISE = 1e-9  # of the largest rise among a level's starts: the same, on a flat floor
_SCOUTS = 4  # starts that are looked at for these scales
_FLOOR = 1e-2  # of the largest tangent gradient among them, see SphereSearch.floor


@dataclass
class _End:
    """Where starts ended, before and after Newton."""

    place: Place
    num_starts: int
    source: str
    num_gradients: int
    num_products: int = 0
    tangent: TangentHessian | None = None


class Finder:
    """One level after the other."""

    def __init__(
        self,
        search: SphereSearch,
        around: Around,
        stationary: str,
        starts: int,
        aims: dict[str, Array],
        seed: int,
        budget: int,
    ):
        self.search, self.shell, self.around, self.budget = search, search.shell, around, budget
        self.stationary, self.starts, self.aims = stationary, starts, aims
        self.generator = torch.Generator().manual_seed(seed)
        self.num_infinite = 0  # starts of the newest level that ended where the loss is not finite
        self.loss_floor = 0.0  # below which two losses are one
        self.points: list[CanyonPoint] = []
        self.num_lost: dict[float, int] = {}

    @property
    def num_starts(self) -> int:
        """Per level."""
        return self.starts + len(self.aims)

    def level(self, level: float, bar: tqdm) -> int:
        """Starts, branches, points of one shell; how many starts the budget allowed."""
        radius = self.shell.radius_of(level)
        rows = _spread_rows(self.starts, self.shell.dim, self.generator)
        first = [*self.aims.items(), *((f"random {i}", row) for i, row in enumerate(rows))]  # an aim may be called so
        ends: list[_End] = []
        seen = [self.search.place(y, radius) for _, y in first[:_SCOUTS]]
        seen = [place for place in seen if place.value < np.inf] or seen
        self.search.typical = max(place.residual for place in seen)
        self.search.floor = _FLOOR * self.search.typical
        self.loss_floor = _SAME_RISE * max(abs(place.value - self.shell.center_value) for place in seen) + noise(
            self.shell
        )
        for source, y in first:
            if self.shell.num_gradients >= self.budget:
                break
            ends.append(self._run(source, y, radius))
            bar.update()
        num_begun = len(ends)
        self.num_infinite = sum(end.place.value == np.inf for end in ends)
        self.points += self._points(level, self._branches(ends))
        self.num_lost[level] = num_begun - sum(point.num_starts for point in self.points if point.level == level)
        return num_begun

    def _run(self, source: str, y: Array, radius: float) -> _End:
        before = self.shell.num_gradients, self.shell.num_products
        if self.stationary == "minima":
            return _End(self.search.descend(y, radius), 1, source, self.shell.num_gradients - before[0])
        place, tangent = self.search.any_kind(y, radius)
        spent = self.shell.num_gradients - before[0], self.shell.num_products - before[1]
        return _End(place, 1, source, spent[0], spent[1], tangent)

    def _branches(self, ends: list[_End]) -> list[_End]:
        """Ends that are one branch joined, then each made stationary, then joined again."""
        ends = self._joined(ends, 100)
        for end in ends:
            if end.tangent is None:
                before = self.shell.num_gradients, self.shell.num_products
                end.place, end.tangent = self.search.minimum(end.place)
                end.num_gradients += self.shell.num_gradients - before[0]
                end.num_products += self.shell.num_products - before[1]
        return self._joined(ends, 1)

    def _points(self, level: float, branches: list[_End]) -> list[CanyonPoint]:
        """The branches that became stationary, as points, the lowest first."""
        found = [end for end in branches if self.search.is_stationary(end.place)]
        found.sort(key=lambda end: end.place.value)
        points = []
        for i, end in enumerate(found):
            assert end.tangent is not None
            point = canyon_point(
                self.search,
                end.place,
                end.tangent,
                self.around,
                level=level,
                num_starts=end.num_starts,
                source=end.source,
                copy_of=self._copied(found, i),
                num_gradients=end.num_gradients,
                num_products=end.num_products,
            )
            points.append(point)
        return points

    def _copied(self, ends: list[_End], i: int) -> int | None:
        """The first end of the same loss, slope and certificates."""
        mine, tolerance = ends[i], max(1e-6, 10 * self.search.rtol)
        for j in range(i):
            other = ends[j]
            assert mine.tangent is not None
            assert other.tangent is not None
            rises = [end.place.value - self.shell.center_value for end in (mine, other)]
            slopes = [end.place.slope for end in (mine, other)]
            if (
                abs(rises[0] - rises[1]) <= tolerance * abs(rises[0]) + self.loss_floor
                and abs(slopes[0] - slopes[1]) <= tolerance * self.search.scale(mine.place)
                and same_certificates(mine.tangent, other.tangent, tolerance)
            ):
                return j
        return None

    def _joined(self, ends: list[_End], slack: float) -> list[_End]:
        """Ends grouped by signed cosine and loss; the one closest to stationary speaks for its group."""
        groups: list[_End] = []
        ways: list[Array] = []
        for end in sorted(ends, key=lambda end: end.place.residual):
            way = self.shell.flat(end.place.y)
            way = way / np.linalg.norm(way)
            for group, other in zip(groups, ways, strict=True):
                gap = abs(end.place.value - group.place.value)
                share = _SAME_LOSS * abs(group.place.value - self.shell.center_value)
                cosine = float(way @ other)
                is_same = cosine > SAME_BRANCH and gap <= slack * (share + self.loss_floor)
                if is_same and (cosine > _ONE_PLACE or not self._is_ridge(end.place, group.place)):
                    group.num_starts += end.num_starts
                    break
            else:
                groups.append(end)
                ways.append(way)
        return groups

    def _is_ridge(self, a: Place, b: Place) -> bool:
        """Whether the loss halfway between two ends on the shell lies above both: then they run down to two minima."""
        between = self.search.place(a.y + b.y, a.radius)
        higher = max(a.value, b.value)
        return between.value > higher + self.loss_floor


def _spread_rows(num: int, dim: int, generator: torch.Generator) -> Array:
    """(num, dim) random directions, each uniform: in turn + and - the rows of random rotations, so that they spread."""
    rows: list[Tensor] = []
    while sum(map(len, rows)) < num:
        gaussian = torch.randn(dim, min(dim, num), generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        turned = (q * torch.sign(r.diagonal())).T
        rows.append(torch.stack([turned, -turned], dim=1).reshape(-1, dim))
    return np.ascontiguousarray(torch.cat(rows)[:num].numpy()) if rows else np.zeros((0, dim))


def noise(shell: Shell) -> float:
    """What rounding may move a loss by."""
    return 16 * torch.finfo(shell.theta0.dtype).eps * abs(shell.center_value)
