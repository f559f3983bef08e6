"""Calibration of an instrument: how often it says "found" on networks whose circuits are known.

A verdict is worth what its instrument said where the answer was known. So the same instrument is run over networks in
which more and more of the planted circuits' weights are shared, and over some in which nothing is planted, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.errors import (
    a_type,
    argument_message,
    check_choice,
    check_count,
    check_real,
    door,
)
from lowhanging.io import Saved
from lowhanging.objective.distributed import is_silent


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(Saved):
    """Verdicts of instruments on known networks; a row is an instrument, a column a setting of the networks."""

    instruments: tuple[str, ...]
    settings: tuple[float, ...]
    seeds: tuple[int, ...]
    verdicts: Tensor  # (instruments, settings, seeds) int64: 1 found, 0 not found, -1 the instrument gave no verdict
    confidence: float

    def rate(self, instrument: str, setting: float) -> tuple[float, float, float]:
        """Share of the seeds with a verdict in which something was found, and its interval (Clopper & Pearson 1934).

        (nan, 0, 1) where there is no verdict at all.
        """
        check_choice("instrument", instrument, self.instruments)
        if setting not in self.settings:
            expected = f"one of {list(self.settings)}"
            raise ValueError(argument_message("setting", f"is {setting!r}", expected, "Name one that was run."))
        row = self.verdicts[self.instruments.index(instrument), self.settings.index(setting)]
        num, count = int((row >= 0).sum()), int((row == 1).sum())
        if num == 0:
            return float("nan"), 0.0, 1.0
        from scipy.stats import binomtest  # half a second, not at every import

        interval = binomtest(count, num).proportion_ci(confidence_level=self.confidence, method="exact")
        return count / num, float(interval.low), float(interval.high)

    def __repr__(self) -> str:
        sizes = f"{len(self.instruments)} instruments, {len(self.settings)} settings, {len(self.seeds)} seeds"
        return f"Calibration({sizes}: found in {int((self.verdicts == 1).sum())} of {int((self.verdicts >= 0).sum())})"

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.instruments, "instrument"))
        head = f"{'instrument':<{width}}" + "".join(f" {setting:>16g}" for setting in self.settings)
        lines = [head]
        for name in self.instruments:
            cells = []
            for setting in self.settings:
                rate, low, high = self.rate(name, setting)
                cells.append("no verdict" if np.isnan(rate) else f"{rate:.2f} [{low:.2f}, {high:.2f}]")
            lines.append(f"{name:<{width}}" + "".join(f" {cell:>16}" for cell in cells))
        return "\n".join(lines)


@door
def calibrate(
    instrument: Callable[[Any], Any],
    plant: Callable[..., Any],
    *,
    settings: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    seeds: Sequence[int] = range(5),
    confidence: float = 0.95,
    progress: bool | None = None,
) -> Calibration:
    r"""How often an instrument finds what was planted, over settings and seeds.

    Where something was planted the rate is the instrument's sensitivity; where nothing was, its rate of false
    positives. The interval is exact for the number of seeds: five of five says "at least 0.48" at 95 %, no more.

    Args:
        instrument: planted -> verdict: True (found), False (not found), None (no verdict: it refused, or can't say); or
            a mapping name -> verdict, several instruments that share their work. The names must be the same each time.
        plant: (setting, seed) -> what the instrument is given, such as
            `lambda overlap, seed: lh.planted.towers(views, overlap=overlap, seed=seed)`.
        settings: what the networks differ in; by default overlaps of two towers.
        seeds: of the networks, all different.
        confidence: of the intervals.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        Calibration; `print` it for a table of rates with their intervals.

    Raises:
        ValueError, TypeError: no settings or seeds, a verdict of another kind, names that change. What the instrument
            raises is raised: let it return None where it refuses for a reason that you accept.

    Cost:
        settings x seeds networks and calls.

    Example:
        >>> seen = calibrate(lambda size: size > 0.5, lambda size, seed: size + 0.01 * seed, settings=[0.0, 1.0])
        >>> print(seen)
        instrument                0                1
        instrument 0.00 [0.00, 0.52] 1.00 [0.48, 1.00]
    """
    columns = [float(setting) for setting in settings]
    numbers = [check_count("seeds", seed, minimum=0, remedy="Pass whole numbers: range(5).") for seed in seeds]
    for argument, given in (("settings", columns), ("seeds", numbers)):
        if not given or len(set(given)) < len(given):
            received = f"is {list(given)}"
            raise ValueError(argument_message(argument, received, "at least one, all different", "Drop the repeats."))
    remedy = "0.95 is usual."
    confidence = check_real("confidence", confidence, minimum=0.0, maximum=1.0, exclusive=True, remedy=remedy)
    names: tuple[str, ...] | None = None
    found: dict[tuple[int, int], dict[str, int]] = {}
    num, delay = len(columns) * len(numbers), 2.0 if progress is None else 0.0
    with tqdm(total=num, desc="calibrate", unit="network", disable=is_silent(progress), delay=delay) as bar:
        for column, setting in enumerate(columns):
            for place, seed in enumerate(numbers):
                verdicts = _verdicts(instrument(plant(setting, seed)))
                if names is not None and tuple(verdicts) != names:
                    received = f"gave the names {list(verdicts)}, before {list(names)}"
                    remedy = "Give every instrument a verdict each time, None where it has none."
                    raise ValueError(argument_message("instrument", received, "the same names each time", remedy))
                names, found[column, place] = tuple(verdicts), verdicts
                bar.update()
    assert names is not None
    table = torch.tensor(
        [
            [[found[column, place][name] for place in range(len(numbers))] for column in range(len(columns))]
            for name in names
        ]
    )
    return Calibration(names, tuple(columns), tuple(numbers), table, confidence)


def _verdicts(given: Any) -> dict[str, int]:
    """Name -> 1, 0 or -1."""
    several = dict(given) if isinstance(given, Mapping) else {"instrument": given}
    verdicts = {}
    for name, verdict in several.items():
        if verdict is not None and not isinstance(verdict, bool | np.bool_):
            received = f"gave {a_type(verdict)} for {name!r}"
            remedy = "Compare a number with a threshold."
            raise TypeError(argument_message("instrument", received, "True, False or None", remedy))
        verdicts[str(name)] = -1 if verdict is None else int(verdict)
    if not verdicts:
        raise ValueError(argument_message("instrument", "gave no verdict at all", "one at least", "Return a mapping."))
    return verdicts
