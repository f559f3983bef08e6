"""Training whose history has a row every few steps.

An easy cue is learned within the first epoch, so the times of this room are counted in steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lowhanging.objective.batches import ShuffledBatches
from lowhanging.training.train import TrainingRun, train


class StepStream:
    """Shuffled epochs of a data set, one after another, of which each pass reads the next `num` batches.

    The order is drawn from torch's global state, which `lh.train` sets from its seed.
    """

    def __init__(self, data: Any, *, batch_size: int, num: int):
        self._batches, self._num = ShuffledBatches(data, batch_size), num
        self._rest: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[Any]:
        if self._rest is None:
            self._rest = self._endless()
        return itertools.islice(self._rest, self._num)

    def _endless(self) -> Iterator[Any]:
        generator, cpu = torch.Generator().manual_seed(int(torch.randint(2**62, ()))), torch.device("cpu")
        while True:
            yield from self._batches.epoch(generator, cpu, check=False)


def train_in_steps(
    model: nn.Module, data: Any, *, num_steps: int, log_every: int, batch_size: int, **options: Any
) -> tuple[Tensor, TrainingRun]:
    """`lh.train` with a row of the history every `log_every` steps: (logs,) their steps, and the run."""
    stream = StepStream(data, batch_size=batch_size, num=log_every)
    run = train(model, stream, num_epochs=-(-num_steps // log_every), progress=False, **options)
    return run.epochs * log_every, run
