"""The time at which each circuit of many runs formed, and whether it lasted.

A circuit is born at the first log from which its score stays at or above the threshold for `sustain` logs in a row: a
score that wavers around the threshold would otherwise be born many times, and a spike of an unstable step would count.
Times are the steps of the logs themselves, not interpolated between them: the score of a forming circle is no line, and
a time that looks finer than the logs would promise what was not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lowhanging.circuits.fourier import CIRCLE, CircleScores, circle_score, logged_embeddings
from lowhanging.errors import a_type, argument_message, check_count, check_finite, check_real
from lowhanging.io import Saved
from lowhanging.landscape.recorder import TrainingRecord
from lowhanging.tables import Columns, Tabular


@dataclass(frozen=True, eq=False, repr=False)
class Births(Saved, Tabular):
    """The first sustained crossing of each block of each seed."""

    step: Tensor  # (seeds, blocks) float64, step of the log of birth; inf where no circuit formed
    death: Tensor  # (seeds, blocks) float64, first log after birth below the threshold for `sustain` logs; inf if none
    rise_time: Tensor  # (seeds, blocks) float64, steps from the last log at half the threshold or below to birth; nan
    survived: Tensor  # (seeds, blocks) bool, formed, and at or above the threshold at the last log
    is_left_censored: Tensor  # (seeds, blocks) bool, born at the first log: it formed before anyone looked
    frequency: Tensor | None  # (seeds, blocks) int64 at birth, -1 where no circuit formed
    steps: Tensor  # (logs,) float64, ascending
    threshold: float
    sustain: int  # logs

    @property
    def is_formed(self) -> Tensor:
        """(seeds, blocks) bool."""
        return torch.isfinite(self.step)

    @property
    def is_dated(self) -> Tensor:
        """(seeds, blocks) bool: formed, and not before the first log."""
        return self.is_formed & ~self.is_left_censored

    @property
    def counts(self) -> Tensor:
        """(seeds,) int64, circuits formed in each seed."""
        return self.is_formed.sum(1)

    @property
    def dated_steps(self) -> Tensor:
        """(logs - sustain + 1,) steps at which a birth or a death can be seen: enough logs follow."""
        return self.steps[: len(self.steps) - self.sustain + 1]

    def columns(self) -> Columns:
        """One row for each seed and plane; "frequency" where it is known."""
        seeds, planes = torch.meshgrid(*map(torch.arange, self.step.shape), indexing="ij")
        names = ("step", "death", "rise_time", "survived", "is_left_censored")
        rows = {name: getattr(self, name).flatten().tolist() for name in names}
        known = {} if self.frequency is None else {"frequency": self.frequency.flatten().tolist()}
        return {"seed": seeds.flatten().tolist(), "plane": planes.flatten().tolist(), **rows, **known}

    def __repr__(self) -> str:
        seeds, blocks = self.step.shape
        size = f"{seeds} seed{'s' * (seeds != 1)} × {blocks} block{'s' * (blocks != 1)}"
        formed = self.is_formed
        if not bool(formed.any()):
            return f"Births({size}; no circuit formed)"
        first = self.step.min(1).values
        median = np.median(first[torch.isfinite(first)].numpy())
        parts = [
            f"{float(self.counts.double().mean()):.1f} births per seed, first at step {median:.0f} (median)",
            f"{100 * float(self.survived.sum() / formed.sum()):.0f} % survive",
        ]
        if bool(self.is_left_censored.any()):
            parts.append(f"{int(self.is_left_censored.sum())} formed before the first log")
        return f"Births({size}; {'; '.join(parts)})"


def births(
    scores: Any,
    steps: Any = None,
    *,
    threshold: float | None = None,
    sustain: int = 5,
    frequency: Any | None = None,
    embedding: str | None = None,
    planes: Literal["columns", "frequencies"] = "columns",
) -> Births:
    r"""Times at which circuits formed, from the logs of many runs.

    With s_i the score of one block at log i (of n), and m = `sustain`; for `CircleScores` without a threshold read "is
    a circle" for s >= threshold, and "no better than chance" for s <= threshold / 2 (planes of two columns: 0.75; those
    of frequencies have a null at each log):

    * birth: the first i with s_i, ..., s_{i+m-1} >= threshold. The time is the step of log i, so it is late by up to
      one spacing of the logs. All m logs must have been seen: a score that crosses in the last m - 1 logs and stays
      there is not counted.
    * death: the first j after birth with s_j, ..., s_{j+m-1} < threshold, by the same rule. Later births of the same
      block are not looked for, so a block can have a death and still have `survived` (it came back), or neither (it
      fell in the last m - 1 logs).
    * rise time: from the last log before birth with s <= threshold / 2 to birth. Where no log was that low, it is
      counted from the first log and is a lower bound; nan for blocks not formed and for those formed before the first
      log.

    Args:
        scores: (seeds, logs, blocks), such as circle scores of logged embeddings; tensor, array or `CircleScores`. A
            block is a plane of two columns, or a frequency. With `embedding=`, the checkpoints of one run, in any form
            that `logged_embeddings` takes (a `TrainingRecord`, modules, state_dicts, files), or a list of several runs.
        steps: (logs,) training step of each log, strictly ascending; by default those of the records.
        threshold: positive; by default what `CircleScores` call a circle, for other scores 0.75.
        sustain: logs in a row that make a crossing (or a fall) a sustained one; 1 takes the first log.
        frequency: (seeds, logs, blocks) integers, the frequency of each block at each log; `CircleScores` bring theirs.
        embedding: name of the parameter that embeds the numbers 0 ... p - 1, a row each, such as "embed.weight". Where
            it has other rows too, pass `circle_score(logged_embeddings(checkpoints, name), order=...)[None]`.
        planes: of the embedding in checkpoints, as in `circle_score`: "columns" for a `ModularMLP` in blocks,
            "frequencies" for any other network.

    Returns:
        Births: `step`, `death`, `rise_time`, `survived`, `is_left_censored`, `frequency`, each (seeds, blocks).

    Raises:
        ValueError, TypeError: wrong shapes, NaN scores, steps that don't ascend, more logs to sustain than there are.

    Cost:
        O(seeds x logs x blocks); of checkpoints, that of `circle_score`.
    """
    if embedding is not None:
        scores, steps = _scores_of_checkpoints(scores, steps, embedding, planes)
    elif planes != "columns":
        received, expected = f"is {planes!r} beside scores", "checkpoints, and embedding= the name in them"
        raise ValueError(argument_message("planes", received, expected, "Pass circle_score(embeddings, planes=...)."))
    circles = scores if isinstance(scores, CircleScores) else None
    scores = scores if circles is None else circles.score
    values = _numbers("scores", scores, 3, "(seeds, logs, blocks)", remedy="Leave out seeds that diverged.")
    times = _numbers("steps", steps, 1, "(logs,)", remedy="Pass the training step of each log.")
    num_logs = values.shape[1]
    if len(times) != num_logs:
        received = f"has shape {times.shape}"
        expected = f"({num_logs},), the logs of scores {values.shape}"
        raise ValueError(argument_message("steps", received, expected, "Pass scores as (seeds, logs, blocks)."))
    if bool((np.diff(times) <= 0).any()):
        at = int((np.diff(times) <= 0).argmax()) + 1
        received = f"has {times[at]:g} after {times[at - 1]:g} at index {at}"
        remedy = "Sort the logs and drop repeated ones."
        raise ValueError(argument_message("steps", received, "strictly ascending steps", remedy))
    if circles is not None and threshold is None:
        above, is_low = circles.is_circle.cpu().numpy(), (circles.score <= circles.chance).cpu().numpy()
        threshold = CIRCLE
    else:
        threshold = CIRCLE if threshold is None else threshold
        threshold = check_real("threshold", threshold, minimum=0.0, exclusive=True, remedy="Circle scores use .75.")
        above, is_low = values >= threshold, values <= threshold / 2
    if circles is not None and frequency is None:
        frequency = circles.frequency
    sustain = check_count("sustain", sustain, maximum=num_logs, remedy="It is counted in logs, not in steps.")

    index = np.arange(num_logs)[:, None]  # (logs, 1), beside (seeds, logs, blocks)
    birth = _first(_sustained(above, sustain), num_logs)  # (seeds, blocks), index of the log; num_logs: none
    fallen = _sustained(~above, sustain) & (index[: num_logs - sustain + 1] > birth[:, None])
    death = _first(fallen, num_logs)
    is_formed, is_left_censored = birth < num_logs, birth == 0
    low = is_low & (index < birth[:, None])
    start = np.where(low.any(1), num_logs - 1 - low[:, ::-1].argmax(1), 0)  # the last low log
    padded = np.append(times, np.inf)
    rise = np.where(is_formed & ~is_left_censored, padded[birth] - times[start], np.nan)
    found = _frequency_at(frequency, birth, values.shape) if frequency is not None else None
    return Births(
        step=torch.from_numpy(padded[birth]), death=torch.from_numpy(padded[death]),
        rise_time=torch.from_numpy(rise), survived=torch.from_numpy(is_formed & above[:, -1]),
        is_left_censored=torch.from_numpy(is_left_censored), frequency=found, steps=torch.from_numpy(times),
        threshold=threshold, sustain=sustain,
    )  # fmt: skip


def _scores_of_checkpoints(runs: Any, steps: Any, name: str, planes: Any) -> tuple[CircleScores, Any]:
    """Scores (seeds, logs, blocks) of the embedding in the checkpoints of one run or of several, and the steps."""
    each: list[Any] = list(runs) if isinstance(runs, Iterable) and not isinstance(runs, str | Mapping) else [runs]
    if not each or not all(isinstance(run, list | tuple | TrainingRecord) for run in each):
        each = [each]  # one run
    own = [run.steps for run in each if isinstance(run, TrainingRecord)]
    if steps is None and len(own) == len(each) and all(torch.equal(own[0], other) for other in own):
        steps = own[0]
    if steps is None:
        received, expected = "is missing", "the step of each checkpoint"
        remedy = "Pass steps=, or records that were made at the same steps."
        raise ValueError(argument_message("steps", received, expected, remedy))
    embeddings = [logged_embeddings(run, name) for run in each]
    shapes = {tuple(logs.shape) for logs in embeddings}
    if len(shapes) > 1:
        received, remedy = f"hold embeddings of shapes {sorted(shapes)}", "Pass as many checkpoints of every run."
        raise ValueError(argument_message("runs", received, "one shape (logs, p, d)", remedy))
    return circle_score(torch.stack(embeddings), planes=planes), steps


def check_births(found: Any) -> Births:
    """`found` as Births, or an error."""
    if not isinstance(found, Births):
        remedy = "Make them with births(scores, steps)."
        raise TypeError(argument_message("births", f"is {a_type(found)}", "a Births", remedy))
    return found


def _sustained(holds: np.ndarray, sustain: int) -> np.ndarray:
    """(seeds, logs - sustain + 1, blocks): does it hold at this log and the sustain - 1 after it?"""
    total = np.concatenate([np.zeros_like(holds[:, :1], dtype=np.int64), holds.cumsum(1)], axis=1)
    return np.asarray(total[:, sustain:] - total[:, :-sustain] == sustain)


def _first(holds: np.ndarray, missing: int) -> np.ndarray:
    """(seeds, blocks): index of the first log where it holds, `missing` if there is none."""
    return np.where(holds.any(1), holds.argmax(1), missing)


def _frequency_at(frequency: Any, birth: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """(seeds, blocks) int64: the frequency at the log of birth, -1 where there is none."""
    remedy = "Pass the integer frequency of each block at each log, as circle_score gives it."
    values = _numbers("frequency", frequency, 3, "(seeds, logs, blocks)", remedy=remedy)
    if values.shape != shape:
        raise ValueError(argument_message("frequency", f"has shape {values.shape}", f"that of scores, {shape}", remedy))
    if bool((values != np.round(values)).any()):
        raise ValueError(argument_message("frequency", "holds fractions", "integers", remedy))
    is_formed = birth < shape[1]
    at_birth = np.take_along_axis(values, np.where(is_formed, birth, 0)[:, None], axis=1)[:, 0]
    return torch.from_numpy(np.where(is_formed, at_birth, -1).astype(np.int64))


def _numbers(argument: str, value: Any, ndim: int, shape: str, *, remedy: str) -> np.ndarray:
    """A finite float64 array of `ndim` dimensions, none empty, or an error."""
    try:
        is_list_of_tensors = isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value)
        stacked = torch.stack(list(value)) if is_list_of_tensors else value
        tensor = torch.as_tensor(stacked if isinstance(stacked, Tensor) else np.array(stacked)).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        received = f"is {a_type(value)} that is no array"
        raise TypeError(argument_message(argument, received, f"numbers of shape {shape}", remedy)) from error
    if tensor.is_complex():
        raise TypeError(argument_message(argument, f"has dtype {tensor.dtype}", "real numbers", remedy))
    if tensor.ndim != ndim or tensor.numel() == 0:
        remedies = {
            ndim - 1: f"Of one run, pass {argument}[None].",
            ndim + 1: "Of embeddings, pass lh.circuits.circle_score(embeddings).score.",
        }
        remedy = remedies.get(tensor.ndim, "See the shape of circle_score(embeddings).score.")
        raise ValueError(argument_message(argument, f"has shape {tuple(tensor.shape)}", shape, remedy))
    check_finite(argument, tensor, remedy=remedy)
    return np.array(tensor.to(torch.float64).numpy())
