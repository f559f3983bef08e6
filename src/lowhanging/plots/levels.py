"""Which values separate the bands of a contour picture? Round numbers, about a dozen, whatever the range.

Losses on a plane often span many decades: evenly spaced levels would paint a canyon and its floor in one colour. So a
wide range of positive values gets logarithmic levels; a wide range that reaches 0 or below gets levels whose *rise*
above the lowest value is logarithmic; any other range gets evenly spaced ones. "Wide" is measured on the values
themselves, and every picture on one scale is given the same bands.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from lowhanging.errors import check_count, check_real, explain

Levels: TypeAlias = "int | Sequence[float] | None"
Extend = Literal["neither", "both", "min", "max"]

_NUM = 12  # bands by default: each can still be told from its neighbours
_WIDE = 30.0  # largest over smallest value, or over the rise that a tenth of the points don't exceed
_LARGEST = float(np.finfo(np.float64).max)
_ROUGHEST, _FINEST = 1e-4, 1e-13  # range over magnitude below which labels need an offset; below which it is rounding
_JUMP = 1e6  # between neighbours in size: no loss on a grid jumps so far, unless the lower one is a rounded 0
# Mantissas of round numbers, the densest first; after these come whole decades, every second, every third ...
_LADDERS: tuple[tuple[float, ...], ...] = (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
)


@dataclass(frozen=True, eq=False)
class Bands:
    """Boundaries of the bands of a contour picture, and what is written at them."""

    boundaries: np.ndarray  # (n,) float64, ascending, n >= 2
    labels: tuple[str, ...]  # (n,) for a colour bar
    kind: Literal["linear", "log", "rise", "constant", "empty"]
    base: float = 0.0  # what the labels are measured from
    extend: Extend = "neither"  # where values lie beyond the boundaries

    @property
    def is_flat(self) -> bool:
        """Whether there is nothing to tell apart: one value, or none."""
        return self.kind in ("constant", "empty")

    def title(self, what: str) -> str:
        """What the labels mean, e.g. "mean loss"."""
        return f"{what} above {short(self.base, 8)}, its lowest here" if self.base else what


def choose_bands(values: Iterable[np.ndarray], levels: Levels = None) -> Bands:
    """Bands that cover every finite value of all the arrays.

    Args:
        values: arrays of any shape that share one scale; NaN and infinities are passed over.
        levels: about how many bands, or their boundaries; 12 bands by default.

    Returns:
        Bands. Given boundaries are kept, and `extend` says where values lie beyond them.
    """
    every = np.concatenate([np.ravel(array) for array in values])
    finite = np.sort(every[np.isfinite(every)].astype(np.float64))
    given = None if levels is None or isinstance(levels, numbers.Integral) else _given(levels)
    remedy = "Leave it out for 12, or pass the boundaries themselves."
    num = _NUM if levels is None or given is not None else check_count("levels", levels, maximum=100, remedy=remedy)
    if not len(finite):
        return Bands(np.array([0.0, 1.0]), ("", ""), "empty")
    low, high = float(finite[0]), float(finite[-1])
    kind, first, base = _kind(finite)
    if given is not None:
        beyond = (low < given[0], high > given[-1])
        extend: Extend = "both" if all(beyond) else "min" if beyond[0] else "max" if beyond[1] else "neither"
        is_log = kind == "log" and given[0] > 0
        return Bands(given, tuple(map(short, given.tolist())), "log" if is_log else "linear", extend=extend)
    if kind == "constant":
        room = 1e-3 * abs(low) or 1.0
        return Bands(np.array([low - room, high + room]), ("", short(low, 6)), "constant")
    if kind == "linear":
        steps = _even(low - base, high - base, num)
        labels = _even_labels(steps)
    else:
        steps = _ladder(first, high - base, num)
        if kind == "rise":
            steps = np.concatenate([[0.0], steps])
        elif low < steps[0]:  # a few points far below the rest: one band for them, whatever its width
            steps = np.concatenate([[_round_down(low)], steps])
        labels = tuple(map(short, steps.tolist()))
    if base:
        labels = ("0", *(f"+{label}" for label in labels[1:]))
    boundaries = base + steps
    # base + (low - base) may round past low.
    boundaries[0], boundaries[-1] = min(boundaries[0], low), max(boundaries[-1], high)
    return Bands(boundaries, labels, kind, base)


def short(value: float, digits: int = 4) -> str:
    """A number in few characters: 0.002, 15, 2e-5, −3e6."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    return f"{value + 0.0:.{max(digits, 5) if abs(value) >= 1e4 else digits}g}".replace("-", "−")


def _kind(finite: np.ndarray) -> tuple[Literal["linear", "log", "rise", "constant"], float, float]:
    """(kind, first value or rise that logarithmic levels should resolve, base) of sorted finite values."""
    low, high = float(finite[0]), float(finite[-1])
    size = max(abs(low), abs(high))
    if high - low <= _FINEST * size:
        return "constant", low, 0.0
    if high - low < _ROUGHEST * size:
        return "linear", low, low
    rises = _above_rounding(finite if low > 0 else finite[finite > low] - low)
    # The lowest 1/200 of the points is not worth decades of levels: a minimum is often as low as a point can be.
    first = max(float(np.quantile(rises, 0.005)), 1e-12 * float(rises[-1]))
    if low > 0 and rises[0] == low:
        return ("log", float(np.quantile(finite, 0.005)), 0.0) if high >= _WIDE * low else ("linear", low, 0.0)
    if rises[-1] < _WIDE * np.quantile(rises, 0.1):
        return "linear", low, 0.0
    return "rise", first, 0.0 if abs(low) * _JUMP <= rises[0] else low


def _above_rounding(positive: np.ndarray) -> np.ndarray:
    """Ascending positive numbers without the first of them, where a jump shows that these are 0 up to rounding."""
    jumps = np.nonzero(positive[1:] / _JUMP > positive[:-1])[0]
    return positive[jumps[-1] + 1 :] if len(jumps) else positive


def _even(low: float, high: float, num: int) -> np.ndarray:
    """Evenly spaced round numbers from at most `low` to at least `high`, about `num` steps."""
    decade = 10.0 ** math.floor(math.log10((high - low) / num))
    found = []
    for mantissa in (1, 2, 2.5, 5, 10, 20):
        step = mantissa * decade
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        found.append(step * np.arange(first, last + 1))
    return min(found, key=lambda steps: abs(len(steps) - 1 - num))


def _even_labels(steps: np.ndarray) -> tuple[str, ...]:
    """As many decimals as tell neighbours apart."""
    width = float(steps[1] - steps[0])
    if width < 1e-4 or float(np.abs(steps).max()) >= 1e5:
        digits = 2 + max(0, math.ceil(math.log10(float(np.abs(steps).max()) / width)))
        return tuple(short(step, digits) for step in steps.tolist())
    decimals = next(d for d in range(7) if abs(round(width, d) - width) < 1e-3 * width)
    return tuple(f"{step:.{decimals}f}".replace("-", "−") for step in (steps + 0.0).tolist())


def _ladder(low: float, high: float, num: int) -> np.ndarray:
    """Round numbers in geometric steps from at most `low` to at least `high`, about `num` steps."""
    bottom, top = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    ladders = [
        [min(float(f"{m}e{power}"), _LARGEST) for power in range(bottom, top + 1) for m in mantissas]
        for mantissas in _LADDERS
    ]
    ladders += [[float(f"1e{power}") for power in range(top, bottom - 2 * by, -by)][::-1] for by in range(1, 100)]
    found = [_covering(rungs, low, high) for rungs in ladders]
    return min(found, key=lambda rungs: abs(len(rungs) - 1 - num))


def _covering(rungs: list[float], low: float, high: float) -> np.ndarray:
    """The shortest part of ascending `rungs` that covers [low, high]."""
    first = max((i for i, rung in enumerate(rungs) if rung <= low), default=0)
    last = next(i for i, rung in enumerate(rungs) if rung >= high)
    return np.array(rungs[first : max(last, first + 1) + 1])


def _round_down(value: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is at most `value` > 0."""
    power = math.floor(math.log10(value))
    rungs = [float(f"{mantissa}e{power + shift}") for shift in (-1, 0, 1) for mantissa in (1, 2, 5)]
    return max(rung for rung in rungs if rung <= value)


def _given(levels: Any) -> np.ndarray:
    """Boundaries that the caller chose, or an error."""
    remedy = "Pass ascending numbers such as [0.1, 0.2, 0.5, 1.0], or about how many bands."
    try:
        entries = list(levels)
    except TypeError as error:
        expected = "a number of bands, or their boundaries"
        raise TypeError(explain("levels", f"is {levels!r}", expected, remedy)) from error
    found = [check_real(f"levels[{i}]", _plain(entry), remedy=remedy) for i, entry in enumerate(entries)]
    if len(found) < 2 or any(a >= b for a, b in itertools.pairwise(found)):
        raise ValueError(explain("levels", f"is {found}", "at least two ascending numbers", remedy))
    return np.array(found)


def _plain(entry: Any) -> Any:
    """A Python number for one of NumPy's or torch's."""
    return entry.item() if hasattr(entry, "item") else entry
