"""Phase diagram of an experiment: named numbers over a grid of settings and several seeds, and the borders in it.

Every number of every seed is kept, so that means, intervals and borders are questions asked afterwards. A seed that has
no value of a name (it never learned) has NaN and is counted as missing: a mean of times is one over those seeds that
learned, and is read beside their number. A border is only called one if the numbers change along its axis more than
those of shuffled cells do; means of a few seeds cross a level by chance alone.
"""

from __future__ import annotations

import functools
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from scipy.special import betaincinv, stdtrit
from torch import Tensor
from tqdm.auto import tqdm

from lowhanging.errors import (
    a_type,
    argument_message,
    check_choice,
    check_count,
    check_names,
    check_real,
    door,
)
from lowhanging.io import ResumeFile, Saved
from lowhanging.objective.distributed import is_silent
from lowhanging.tables import Columns, Tabular

Setting: TypeAlias = "dict[str, Any]"
Experiment: TypeAlias = "Callable[[Setting, Any], Mapping[str, Any]]"
Scale = Literal["linear", "log", "categories"]

_SEED = "seed"  # a column of the table, so no name of an axis or a number
_MOST_AXES = 3


@dataclass(frozen=True, eq=False, repr=False)
class Border(Saved):
    """Where a mean crosses a level along one axis of a phase diagram, for every cell of the other axes.

    Attributes:
        name: the number whose mean it is.
        along: the axis.
        level: that is crossed.
        confidence: of the interval and of the test.
        axes: the other axes, name -> values; empty where there is none.
        position: value of the axis at the border; NaN where there is no border.
        interval: lower and upper end, each a value of the axis that was run; NaN where there is no border.
        is_rising: whether the mean is below the level before the border, and at or above it behind.
        num_crossings: how often the mean crosses the level along the whole axis.
        p_value: how often shuffled cells differ from each other as much as these.
        crossing_share: share of the resamples of seeds in which the mean crosses the level at all.
    """

    name: str
    along: str
    level: float
    confidence: float
    axes: dict[str, tuple[Any, ...]]
    position: Tensor  # (*others) float64
    interval: Tensor  # (*others, 2) float64
    is_rising: Tensor  # (*others) bool
    num_crossings: Tensor  # (*others) int64
    p_value: Tensor  # (*others) float64
    crossing_share: Tensor  # (*others) float64

    @property
    def exists(self) -> Tensor:
        """(*others) whether there is a border."""
        return ~self.position.isnan()

    def __repr__(self) -> str:
        ends = zip(self.position.flatten().tolist(), self.interval.reshape(-1, 2).tolist(), strict=True)
        found = ["no border" if math.isnan(at) else f"{at:.3g} [{low:.3g}, {high:.3g}]" for at, (low, high) in ends]
        per = f", by {' × '.join(self.axes)}" if self.axes else ""
        return f"Border({self.name} = {self.level:g} along {self.along}{per}: {'; '.join(found)})"


@dataclass(frozen=True, repr=False)
class Separation(Saved):
    """How well a number tells the runs of one outcome from those of the other, over a phase diagram.

    Attributes:
        outcome: name of the outcome.
        by: name of the number.
        value: probability that a run with outcome 1 has the larger number of two runs with different outcomes, ties
            counted by half: 1 or 0 where a border in that number separates them, 0.5 where it says nothing.
        low: lower end of the interval, over cells.
        high: upper end.
        confidence: of the interval.
        num_runs: with both an outcome and a number.
        num_missing: without one of them.
    """

    outcome: str
    by: str
    value: float
    low: float
    high: float
    confidence: float
    num_runs: int
    num_missing: int

    def __repr__(self) -> str:
        missing = f", {self.num_missing} runs missing" if self.num_missing else ""
        return (
            f"Separation({self.outcome} by {self.by}: {self.value:.3f} [{self.low:.3f}, {self.high:.3f}], "
            f"{self.num_runs} runs{missing})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class PhaseDiagram(Saved, Tabular):
    """Named numbers of an experiment, for every cell of a grid of settings and every seed.

    Attributes:
        axes: name -> its values, ascending numbers or different strings; the order of the grid's dimensions.
        seeds: that were run in each cell.
        values: name -> the number; NaN where a seed has none.
    """

    axes: dict[str, tuple[Any, ...]]
    seeds: Tensor  # (seeds,) int64
    values: dict[str, Tensor]  # name -> (*grid, seeds) float64

    def __repr__(self) -> str:
        grid = " × ".join(f"{axis} ({len(values)})" for axis, values in self.axes.items())
        return f"PhaseDiagram({grid}, {len(self.seeds)} seeds; means: {', '.join(map(self._range, self.values))})"

    def _range(self, name: str) -> str:
        means = self.mean(name)
        known, missing = means[~means.isnan()], int(self._rows(name).isnan().sum())
        ends = f"{float(known.min()):.3g} to {float(known.max()):.3g}" if len(known) else "none"
        return f"{name} {ends}" + (f" ({missing} runs missing)" if missing else "")

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(map(len, self.axes.values()))

    def scale(self, axis: str) -> Scale:
        """How positions between the values of an axis are counted.

        "categories" for strings. For numbers "log" where all are positive and their ratios are more even than their
        differences, as those of 1, 2, 4, 8 are; "linear" otherwise.
        """
        values = self.axes[check_choice("axis", axis, tuple(self.axes))]
        if isinstance(values[0], str):
            return "categories"
        if len(values) < 3 or min(values) <= 0:
            return "linear"
        steps, ratios = np.diff(np.array(values, dtype=float)), np.diff(np.log(np.array(values, dtype=float)))
        return "log" if ratios.max() / ratios.min() < steps.max() / steps.min() else "linear"

    def is_outcome(self, name: str) -> bool:
        """Whether every number of a name is 0, 1 or missing: a share is then counted, not averaged."""
        rows = self._rows(name)
        return bool(((rows == 0) | (rows == 1) | rows.isnan()).all())

    def num_seeds(self, name: str) -> Tensor:
        """(*grid) int64, seeds that have a value."""
        return (~self._rows(name).isnan()).sum(-1)

    def mean(self, name: str) -> Tensor:
        """(*grid) float64, over the seeds that have a value; NaN where none has."""
        return self._rows(name).nanmean(-1)

    def interval(self, name: str, *, confidence: float = 0.95) -> Tensor:
        r"""Interval of the mean in every cell.

        Of outcomes (all numbers of the name are 0, 1 or missing) the exact one of Clopper & Pearson (1934), (0, 1)
        without a seed. Of other numbers mean ± t(n − 1) std / √n, (−inf, inf) for fewer than two seeds.

        Args:
            name: one of `values`.
            confidence: in (0, 1).

        Returns:
            (*grid, 2) lower and upper end.
        """
        rows, tail = self._rows(name), 0.5 * (1 - _checked_confidence(confidence))
        num = self.num_seeds(name).double().numpy()
        if self.is_outcome(name):
            count = rows.nansum(-1).numpy()
            low = betaincinv(np.maximum(count, 0.5), num - count + 1, tail)  # the parameters are positive, where used
            high = betaincinv(count + 1, np.maximum(num - count, 0.5), 1 - tail)
            return torch.from_numpy(np.stack([np.where(count > 0, low, 0), np.where(count < num, high, 1)], -1))
        mean = self.mean(name)
        squares = (rows - mean[..., None]).square().nansum(-1).numpy()
        free = np.maximum(num - 1, 1)
        half = np.where(num > 1, stdtrit(free, 1 - tail) * np.sqrt(squares / free / np.maximum(num, 1)), np.inf)
        middle = mean.nan_to_num().numpy()
        return torch.from_numpy(np.stack([middle - half, middle + half], -1))

    def at(self, fixed: Mapping[str, Any]) -> PhaseDiagram:
        """The part of the diagram with some axes fixed.

        Args:
            fixed: axis -> one of its values; at least one axis is left free.

        Raises:
            ValueError: an unknown axis or value, or all of the axes.
        """
        rows = dict(self.values)
        for axis, value in fixed.items():
            values = self.axes[check_choice("an axis of at", axis, tuple(self.axes))]
            if value not in values:
                received = f"has {axis} = {value!r}"
                raise ValueError(argument_message("at", received, f"one of {list(values)}", "Name one that was run."))
        free = {axis: values for axis, values in self.axes.items() if axis not in fixed}
        if not free:
            received = f"fixes {list(fixed)}, which are all"
            raise ValueError(argument_message("at", received, "at least one free axis", "Leave one of them out."))
        index = tuple(values.index(fixed[axis]) if axis in fixed else slice(None) for axis, values in self.axes.items())
        return PhaseDiagram(free, self.seeds, {name: each[index] for name, each in rows.items()})

    def border(
        self,
        name: str,
        along: str,
        *,
        level: float,
        which: Literal["first", "last"] = "first",
        confidence: float = 0.95,
        num_resamples: int = 2000,
        seed: int = 0,
    ) -> Border:
        r"""Where the mean of a number crosses a level along an axis of numbers.

        Between neighbours x and x' on different sides of the level, with means m and m', the border is put at
        x + (x' − x) (level − m) / (m' − m), in the logarithm of the axis where its `scale` is "log". A cell without any
        seed is passed over; a mean at the level counts as above it.

        There is a border where three things hold:

        * the mean crosses the level;
        * the cells differ: with the cells of each seed shuffled, at most 1 − confidence of the draws have as large a
          Σ n (cell mean − mean)², n the cell's number of seeds (`p_value`);
        * seeds drawn with replacement cross the level in at least a share `confidence` of the draws.

        Few cells with few seeds can't pass: 0, 1, 1 in all of three seeds is as likely as one in nine by chance, in all
        of five one in 81.

        The interval holds the middle `confidence` of the cells in which these draws cross: from the lower end of the
        lowest cell to the upper end of the highest. So it is never narrower than one cell, within which a grid can't
        tell; with few seeds alone it would be too narrow.

        Args:
            name: one of `values`.
            along: an axis of numbers with two values or more.
            level: such as 0.5 for an outcome.
            which: crossing of a mean that crosses more than once (`num_crossings`): that at the smallest value of the
                axis, or at the largest. A phase between two others has both.
            confidence: in (0, 1), of the interval and of the tests; for each cell of the other axes by itself.
            num_resamples: draws of either kind.
            seed: of the draws; the global random states are not touched.

        Returns:
            Border, with an entry for each cell of the other axes.

        Raises:
            ValueError, TypeError: an unknown name or axis, an axis of strings or of one value, an option out of range.

        Cost:
            2 `num_resamples` means of every cell: a tenth of a second for a grid of 10 × 10 and 5 seeds.
        """
        rows = self._rows(name)
        scale = self.scale(check_choice("along", along, tuple(self.axes)))
        if scale == "categories" or len(self.axes[along]) < 2:
            received = f"is {along!r}, an axis of {'strings' if scale == 'categories' else 'one value'}"
            remedy = "Name an axis along which there is a between."
            raise ValueError(argument_message("along", received, "an axis of two numbers or more", remedy))
        level = check_real("level", level, remedy="Pass a number, such as 0.5 for an outcome.")
        check_choice("which", which, ("first", "last"))
        confidence = _checked_confidence(confidence)
        remedy = "Pass a number of draws, such as 2000."
        num_resamples = check_count("num_resamples", num_resamples, minimum=100, remedy=remedy)
        seed = check_count("seed", seed, minimum=0, remedy="Any whole number.")

        position = list(self.axes).index(along)
        others = {axis: values for axis, values in self.axes.items() if axis != along}
        moved = rows.movedim(position, -2).numpy()  # (*others, n, seeds)
        values = np.array(self.axes[along], dtype=float)
        coordinates = np.log(values) if scale == "log" else values
        crossing = functools.partial(_crossing, coordinates=coordinates, level=level, is_last=which == "last")
        drawn = np.random.default_rng(seed).integers(len(self.seeds), size=(num_resamples, len(self.seeds)))
        cells = []
        for table in moved.reshape(-1, *moved.shape[-2:]):  # (n, seeds)
            at, cell, num = (each[0] for each in crossing(_means(table)[None]))
            p_value = _shuffled_p_value(table, np.random.default_rng(seed + 1), num_resamples)
            resampled = crossing(_means(table[:, drawn]).T)[1]  # (draws, n) -> (draws, 2)
            resampled = resampled[resampled[:, 0] >= 0]
            share = len(resampled) / num_resamples
            ends, is_rising = np.full(2, np.nan), False
            if num and p_value <= 1 - confidence and share >= confidence:
                low = np.quantile(resampled[:, 0], 0.5 * (1 - confidence), method="inverted_cdf")
                high = np.quantile(resampled[:, 1], 0.5 * (1 + confidence), method="inverted_cdf")
                ends, is_rising = values[[low, high]], bool(_means(table)[cell[1]] >= level)
                at = float(np.exp(at)) if scale == "log" else float(at)
            else:
                at = math.nan
            cells.append((at, ends, is_rising, int(num), p_value, share))
        columns = [torch.from_numpy(np.array(column)) for column in zip(*cells, strict=True)]
        shape = tuple(map(len, others.values()))
        found = [column.reshape((*shape, *column.shape[1:])) for column in columns]
        return Border(name, along, level, confidence, others, *found)

    def separation(
        self, outcome: str, by: str, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
    ) -> Separation:
        """Whether a border between two outcomes is one in a number that was measured, such as a ratio of times.

        Args:
            outcome: a name whose numbers are 0, 1 or missing.
            by: a name of numbers.
            confidence: in (0, 1).
            num_resamples: draws of cells with replacement, all runs of a cell together.
            seed: of the draws.

        Returns:
            Separation: `.value`, the area under the receiver operating characteristic, and its interval.

        Raises:
            ValueError: an outcome that is no outcome, or the same in all runs that have the number.

        Cost:
            num_resamples rankings of all runs: a second for 270 runs.
        """
        if not self.is_outcome(outcome):
            received = f"is {outcome!r}, whose numbers are not all 0 or 1"
            raise ValueError(
                argument_message("outcome", received, "a name of outcomes", "Return True or False for it.")
            )
        confidence = _checked_confidence(confidence)
        num_resamples = check_count("num_resamples", num_resamples, minimum=100, remedy="Pass 2000.")
        rng = np.random.default_rng(check_count("seed", seed, minimum=0, remedy="Any whole number."))
        runs, values = (self._rows(name).reshape(-1, len(self.seeds)).numpy() for name in (outcome, by))
        area = _area(runs, values)
        if math.isnan(area):
            received, expected = f"is the same in all runs that have {by!r}", "runs of both outcomes"
            raise ValueError(argument_message("outcome", received, expected, "Widen the grid."))
        cells = rng.integers(len(runs), size=(num_resamples, len(runs)))
        drawn = [_area(runs[rows], values[rows]) for rows in cells]
        low, high = np.nanquantile(drawn, [0.5 - 0.5 * confidence, 0.5 + 0.5 * confidence])
        num = int((~np.isnan(runs + values)).sum())
        return Separation(outcome, by, area, float(low), float(high), confidence, num, runs.size - num)

    def columns(self) -> Columns:
        """One row for each run: the axes, "seed", and every number."""
        seeds = self.seeds.tolist()
        runs = list(itertools.product(*self.axes.values(), seeds))
        found = dict(zip([*self.axes, _SEED], map(list, zip(*runs, strict=True)), strict=True))
        return found | {name: rows.flatten().tolist() for name, rows in self.values.items()}

    def _rows(self, name: str) -> Tensor:
        return self.values[check_choice("name", name, tuple(self.values))]


@door
def phase_diagram(
    experiment: Experiment,
    axes: Mapping[str, Sequence[Any]],
    *,
    seeds: Iterable[int] = range(5),
    together: bool = False,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> PhaseDiagram:
    """An experiment in every cell of a grid, with several seeds in each.

    The global random states are whatever the experiment makes of them: nothing is drawn here. An experiment should make
    all that it does from its setting and its seed; only then does an interrupted call end as it would have.

    Args:
        experiment: (setting, seed) -> name -> number, such as `{"both_learned": True, "time": 120}`. The setting is a
            dict, axis -> value. Numbers are finite, or NaN where a seed has none; truth values count as 0 and 1. The
            names are the same in every cell.
        axes: name -> values, one to three axes; the values of an axis are ascending numbers, or different strings.
        seeds: of every cell, all different, not negative.
        together: the experiment takes all seeds of a cell at once, as a list, and returns for each name a sequence of
            numbers in their order; for experiments on `lh.train_stack`.
        resume: npz file that holds the finished runs: the same call continues from it, bit for bit. After an error
            of the experiment too, which is raised as it is with a note that says where. An experiment is told from
            others by its name, and by the arguments of a `functools.partial`, not by its code.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        PhaseDiagram: `.values[name]` (*grid, seeds), `.mean(name)`, `.interval(name)`,
        `.border(name, axis, level=0.5)`, `.to_dataframe()`; `lh.plots.phase_diagram` draws it.

    Raises:
        ValueError, TypeError: an axis without values, names that change, a number that is infinite or none, a resume
            file of another call.
        DamagedFileError: the resume file is not whole.

    Cost:
        cells × seeds runs of the experiment, one after another.

    Example:
        >>> def experiment(setting, seed):
        ...     return {"found": seed < 5 * setting["share"]}
        >>> diagram = phase_diagram(experiment, {"share": [0.0, 0.5, 1.0]}, seeds=range(5))
        >>> diagram.mean("found").tolist()
        [0.0, 0.6, 1.0]
        >>> diagram
        PhaseDiagram(share (3), 5 seeds; means: found 0 to 1)
    """
    if not callable(experiment):
        expected, remedy = "a callable (setting, seed) -> name -> number", "Pass the function itself."
        raise TypeError(argument_message("experiment", f"is {a_type(experiment)}", expected, remedy))
    grid, numbers_of_seeds = _checked_axes(axes), _checked_seeds(seeds)
    settings = [dict(zip(grid, cell, strict=True)) for cell in itertools.product(*grid.values())]
    num_seeds = len(numbers_of_seeds)
    total, step = len(settings) * num_seeds, num_seeds if together else 1
    file, num_done, values = None, 0, dict[str, Tensor]()
    if resume is not None:
        identity = {
            "experiment": f"{description(experiment)}{', seeds together' if together else ''}",
            "axes": repr(grid),
            "seeds": repr(numbers_of_seeds),
        }
        file = ResumeFile(resume, identity, kind="a phase diagram")
        num_done, values = _restored(file, total, step)
    delay = 2.0 if progress is None else 0.0
    silent = is_silent(progress)
    with tqdm(total=total, initial=num_done, desc="phase diagram", unit="run", disable=silent, delay=delay) as bar:
        for begin in range(num_done, total, step):
            setting = settings[begin // num_seeds]
            given: Any = list(numbers_of_seeds) if together else numbers_of_seeds[begin % num_seeds]
            try:
                found = _checked_numbers(experiment(dict(setting), given), num_seeds if together else None, grid)
                if values and found.keys() != values.keys():
                    received = f"gave the names {list(found)}, before {list(values)}"
                    remedy = "Give every name each time, NaN where there is no number."
                    raise ValueError(argument_message("experiment", received, "the same names each time", remedy))
            except BaseException as error:
                if file is not None:
                    file.flush()
                kept = f"they are in {str(file.path)!r}" if file else "resume= would have kept them"
                where = f"{setting}, {'seeds' if together else 'seed'} {given}"
                error.add_note(f"lowhanging.phase_diagram: at {where}; {begin} of {total} runs were finished, {kept}.")
                raise
            # New tensors each time: what waits to be written must not change.
            empty = torch.full((total,), math.nan, dtype=torch.float64)
            values = {name: values.get(name, empty).clone() for name in values or found}
            for name, row in found.items():
                values[name][begin : begin + step] = torch.tensor(row, dtype=torch.float64)
            if file is not None:
                state = {"num_done": begin + step, "values": values}
                file.keep(state, now=begin + step == total)
            bar.update(step)
    shape = (*map(len, grid.values()), num_seeds)
    return PhaseDiagram(
        grid, torch.tensor(numbers_of_seeds), {name: row.reshape(shape) for name, row in values.items()}
    )


# What is given, and what is in a file ---------------------------------------------------------------------------------


def _checked_axes(axes: Any) -> dict[str, tuple[Any, ...]]:
    """Name -> values, plain numbers or strings."""
    remedy = 'Pass axes={"opacity": [0.2, 0.5, 0.8], ...}.'
    if not isinstance(axes, Mapping):
        raise TypeError(argument_message("axes", f"is {a_type(axes)}", "a mapping name -> values", remedy))
    names = check_names("axes", axes, remedy=remedy)
    if len(names) > _MOST_AXES or _SEED in names:
        expected = f"one to {_MOST_AXES} axes, none called {_SEED!r}"
        raise ValueError(
            argument_message("axes", f"has the names {names}", expected, "Run a diagram for each of them.")
        )
    return {name: _checked_values(name, axes[name]) for name in names}


def _checked_values(name: str, given: Any) -> tuple[Any, ...]:
    argument, remedy = f"axes[{name!r}]", "Pass a list of numbers, or of strings for categories."
    expected = "ascending finite numbers, or different strings"
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(argument_message(argument, f"is {given!r}", expected, remedy))
    values = [value.item() if isinstance(value, np.generic | Tensor) else value for value in given]
    is_text = bool(values) and all(isinstance(value, str) for value in values)
    if not is_text:
        for value in values:
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(argument_message(argument, f"holds {value!r}", expected, remedy))
        values = [int(value) if isinstance(value, numbers.Integral) else float(value) for value in values]
    is_fine = len(set(values)) == len(values) > 0
    if not is_text:
        is_fine = is_fine and all(map(math.isfinite, values)) and values == sorted(values)
    if not is_fine:
        raise ValueError(argument_message(argument, f"is {values}", expected, remedy))
    return tuple(values)


def _checked_seeds(seeds: Any) -> list[int]:
    remedy = "Pass different whole numbers, such as range(5)."
    if isinstance(seeds, int | str) or not isinstance(seeds, Iterable):
        raise TypeError(argument_message("seeds", f"is {seeds!r}", "several seeds", remedy))
    items = seeds.tolist() if isinstance(seeds, Tensor | np.ndarray) else seeds
    found = [check_count("an entry of seeds", seed, minimum=0, remedy=remedy) for seed in items]
    if not found or len(set(found)) < len(found):
        raise ValueError(argument_message("seeds", f"are {found}", "at least one, all different", remedy))
    return found


def _checked_confidence(confidence: Any) -> float:
    return check_real("confidence", confidence, minimum=0, maximum=1, exclusive=True, remedy="0.95 is usual.")


def _checked_numbers(given: Any, num: int | None, grid: Mapping[str, Any]) -> dict[str, list[float]]:
    """Name -> a number of each seed, from what an experiment returned; `num` seeds at once, or None for one."""
    remedy = 'Return numbers by name: {"both_learned": True, "time": 120}.'
    if not isinstance(given, Mapping):
        expected = "a mapping name -> number"
        raise TypeError(argument_message("experiment", f"returned {a_type(given)}", expected, remedy))
    names = check_names("the experiment's result", given, remedy=remedy)
    if taken := [name for name in names if name in grid or name == _SEED]:
        expected = f"names other than the axes' and {_SEED!r}"
        raise ValueError(argument_message("experiment", f"returned the names {taken}", expected, "Rename them."))
    rows = {}
    for name, value in given.items():
        row = [value] if num is None else list(value) if isinstance(value, Iterable) else None
        if row is None or len(row) != (num or 1):
            size = a_type(value) if row is None else f"{len(row)} numbers"
            received, remedy = f"returned {size} for {name!r}", "Return one number for each seed, in their order."
            raise ValueError(argument_message("experiment", received, f"{num} numbers, one for each seed", remedy))
        rows[name] = [_number(name, each) for each in row]
    return rows


def _number(name: str, value: Any) -> float:
    is_array = isinstance(value, np.generic | np.ndarray | Tensor) and math.prod(value.shape) == 1
    plain = value.item() if is_array else value
    remedy = "Return NaN where a seed has none, as for a time that never came."
    if not isinstance(plain, bool | numbers.Real):
        received = f"returned {a_type(value)} for {name!r}"
        raise TypeError(argument_message("experiment", received, "a number", remedy))
    if math.isinf(plain):
        received = f"returned {float(plain)} for {name!r}"
        raise ValueError(argument_message("experiment", received, "a finite number, or NaN", remedy))
    return float(plain)


def description(experiment: Any) -> str:
    """What an experiment is called, with the arguments of a partial."""
    if isinstance(experiment, functools.partial):
        return f"{description(experiment.func)} with {experiment.args} {experiment.keywords}"
    return str(getattr(experiment, "__qualname__", type(experiment).__name__))


def _restored(file: ResumeFile, total: int, step: int) -> tuple[int, dict[str, Tensor]]:
    """Runs that are finished, and their numbers."""
    state = file.read()
    if state is None:
        return 0, {}
    with file.decoding():
        num_done, values = int(state["num_done"]), dict(state["values"])
        if not 0 < num_done <= total or num_done % step or any(row.shape != (total,) for row in values.values()):
            raise file.damaged()
        return num_done, values


# Borders --------------------------------------------------------------------------------------------------------------


def _means(table: np.ndarray) -> np.ndarray:
    """Over the last axis, seeds; NaN where none has a value."""
    num = (~np.isnan(table)).sum(-1)
    means: np.ndarray = np.where(num > 0, np.nansum(table, -1) / np.maximum(num, 1), np.nan)
    return means


def _crossing(
    means: np.ndarray, *, coordinates: np.ndarray, level: float, is_last: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of rows (r, n): where the first crossing is (r,), its cells (r, 2), or -1, and the number of crossings (r,)."""
    known, cells = ~np.isnan(means), np.arange(means.shape[1])
    last = np.maximum.accumulate(np.where(known, cells, -1), axis=1)
    before = np.concatenate([np.full((len(means), 1), -1), last[:, :-1]], axis=1)  # the last known cell before each
    is_above = means >= level
    crosses = known & (before >= 0) & (is_above != np.take_along_axis(is_above, np.maximum(before, 0), 1))
    num = crosses.sum(1)
    chosen = means.shape[1] - 1 - crosses[:, ::-1].argmax(1) if is_last else crosses.argmax(1)
    rows = np.arange(len(means))
    pair = np.stack([before[rows, chosen], chosen], axis=1)
    left, right = means[rows, pair[:, 0]], means[rows, pair[:, 1]]
    share = (level - left) / np.where(num > 0, right - left, 1.0)
    found = coordinates[pair[:, 0]] + share * (coordinates[pair[:, 1]] - coordinates[pair[:, 0]])
    return found, np.where(num[:, None] > 0, pair, -1), num


def _area(outcomes: np.ndarray, values: np.ndarray) -> float:
    """Probability that a run with outcome 1 has the larger value (Mann & Whitney); NaN without both outcomes."""
    from scipy.stats import rankdata  # half a second, not at every import

    known = ~np.isnan(outcomes + values)
    is_one, ranks = outcomes[known] == 1, rankdata(values[known])
    num = int(is_one.sum())
    pairs = num * (len(ranks) - num)
    return (float(ranks[is_one].sum()) - num * (num + 1) / 2) / pairs if pairs else math.nan


def _shuffled_p_value(table: np.ndarray, rng: np.random.Generator, num: int) -> float:
    """How often the cells (n, seeds) differ from each other as much, each seed's cells shuffled."""
    shuffled = rng.permuted(np.broadcast_to(table, (num, *table.shape)), axis=1)
    observed, drawn = _spread(table[None])[0], _spread(shuffled)
    return float((1 + (drawn >= observed * (1 - 1e-12)).sum()) / (1 + num))


def _spread(tables: np.ndarray) -> np.ndarray:
    """Sum of n (cell mean - mean)^2 over the cells of (draws, n, seeds)."""
    num = (~np.isnan(tables)).sum(-1)
    total = np.nansum(tables, axis=(1, 2)) / np.maximum(num.sum(1), 1)
    spread: np.ndarray = (num * np.nan_to_num(_means(tables) - total[:, None]) ** 2).sum(1)
    return spread
