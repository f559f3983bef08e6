"""How does one network take its steps, and what is left where they end early?

Whatever ends a run early (NaN, an error in a loss, an interrupt), the model holds the last epoch that was completed,
never a half-updated state that no row of the history describes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from tqdm.auto import tqdm

from lowhanging.batch_mean import BatchMean
from lowhanging.batch_parts import Tally
from lowhanging.batches import untouched_random_state
from lowhanging.errors import NotConvergedError, check_real, explain
from lowhanging.shuffled import ShuffledBatches, random_states, restore_random_states
from lowhanging.training_file import State, TrainingFile, digest_of
from lowhanging.training_history import History
from lowhanging.training_options import Schedule


class Loop:
    """One run: steps through the epochs and writes the history."""

    def __init__(
        self,
        model: nn.Module,
        batches: ShuffledBatches,
        loss: BatchMean,
        optimizer: torch.optim.Optimizer,
        factor: Schedule,
        history: History,
        seed: int,
    ):
        self.model, self.batches, self.loss, self.optimizer = model, batches, loss, optimizer
        self.factor, self.history, self.device = factor, history, history.space.device
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.shuffle = torch.Generator().manual_seed(seed)
        self.first_weights = ""  # digest of those that the training began with
        self.began = time.perf_counter()

    @property
    def num_done(self) -> int:
        """Epochs that are completed."""
        return len(self.history.lr) - 1

    @property
    def seconds(self) -> float:
        """Spent so far, those of interrupted calls included."""
        return time.perf_counter() - self.began

    def begin(self, file: TrainingFile | None) -> None:
        """From what the file holds, or from the model as it is."""
        state = None if file is None else file.read()
        if file is None or state is None:
            self.first_weights = "" if file is None else digest_of(self.model)
            self.history.add(math.nan, None, rate=float(self.rates[0]))
            return
        kept, given = self._copy(), digest_of(self.model)
        try:
            self._put_back(state["weights"])
            if given not in (state["first weights"], digest_of(self.model)):
                file.refuse("model (its weights)")
            self._restore(state, file)
        except BaseException:
            self._put_back(kept)
            raise

    def run(self, epochs: int, progress: bool | None, file: TrainingFile | None) -> None:
        """All epochs that are left."""
        kept, completed = self._copy(), self.num_done
        try:
            for epoch in _bar(epochs, completed, progress):
                kept, completed = self._epoch(epoch, epochs), epoch
                if file is not None:
                    file.keep(self._state(kept), now=epoch == epochs)
        except BaseException as error:
            self._put_back(kept)
            if file is not None:
                file.flush()
            if not isinstance(error, NotConvergedError):
                error.add_note(f"lowhanging.train: the model holds the weights of the end of epoch {completed}.")
            raise
        finally:
            self._set_rates(1.0)

    def _epoch(self, epoch: int, epochs: int) -> list[Tensor]:
        """Train for one epoch, add its row to the history, and return a copy of the weights."""
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        count, tally, rate = 0.0, Tally(), 0.0
        num_batches = self.batches.num_batches
        for step, batch in enumerate(self.batches.epoch(self.shuffle, self.device, check=epoch == 1)):
            share = min(step / num_batches, 1.0) if num_batches else 0.0
            self._set_rates(self.factor((epoch - 1 + share) / epochs))
            rate = float(self.optimizer.param_groups[0]["lr"]) if step == 0 else rate
            mean, terms = self._step(batch, tally, check=epoch == 1)
            total += mean * terms  # no wait for the device
            count += terms
        if not count:
            remedy = "Pass what can be read once per epoch: tensors, a Dataset, a DataLoader, a list of batches."
            raise ValueError(explain("data", f"has no batch in epoch {epoch}", "at least one example", remedy))
        loss = float(total) / count
        if not (math.isfinite(loss) and bool(torch.isfinite(self.history.space.flatten(self.model)).all())):
            received = f"made the loss or a weight NaN or infinite in epoch {epoch} (rate {rate:.3g}, loss {loss:.3g})"
            remedy = f"Pass a smaller lr. The model holds the weights of epoch {epoch - 1}, .result the run up to it."
            raise NotConvergedError(explain("lr", received, "a learning rate at which both stay finite", remedy))
        self.history.add(loss, tally.accuracy, rate=rate)
        return self._copy()

    def _step(self, batch: Any, tally: Tally, *, check: bool) -> tuple[Tensor, float]:
        """One optimizer step; the batch's mean loss before it, and the number of terms."""
        first: list[tuple[Tensor, float]] = []

        def closure() -> Tensor:  # some optimizers evaluate the loss more than once
            self.optimizer.zero_grad(set_to_none=True)
            mean, terms = self.loss(self.model, batch, None if first else tally, check=check)
            mean.backward()  # type: ignore[no-untyped-call]
            first.append((mean.detach(), terms))
            return mean

        try:
            self.optimizer.step(closure)  # type: ignore[arg-type]
        except RuntimeError as error:
            if "does not support sparse gradients" not in str(error):
                raise
            received = f"({type(self.optimizer).__name__}) got a sparse gradient of an embedding with sparse=True"
            remedy = 'Pass optimizer="sgd" or functools.partial(torch.optim.SparseAdam, lr=...), or sparse=False.'
            raise ValueError(explain("optimizer", received, "gradients that it supports", remedy)) from error
        return first[0]

    def _set_rates(self, factor: Any) -> None:
        remedy = "A schedule maps the share of the training done, in [0, 1), to a factor on the learning rate."
        scale = check_real("the schedule's value", factor, minimum=0.0, remedy=remedy)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale

    # Interruptions ----------------------------------------------------------------------------------------------------

    def _state(self, weights: list[Tensor]) -> State:
        """All that the next epoch depends on, and what tells this training from another."""
        return {
            "weights": weights,
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(self.device),
            "shuffle": self.shuffle.get_state(),
            "loader": [generator.get_state() for generator in self.batches.generators],
            "history": self.history.state(),
            "seconds": self.seconds,
            "first weights": self.first_weights,
            "probe": self._probe(),
        }

    def _restore(self, state: State, file: TrainingFile) -> None:
        """Make everything what it was when `_state` was taken, once the weights are; refuse another loss or data set.

        Evaluation sets are read with the random state of the first time.
        """
        if "checkpoint_buffers" not in state["history"] and any(True for _ in self.model.buffers()):
            file.refuse("version of lowhanging, which kept no buffers")
        self.history.restore(state["history"])
        if not self.history.ends_here():
            file.refuse("evaluate, model or loss")
        if self._probe() != state["probe"]:
            file.refuse("model or loss")
        restore_random_states(state["random"], self.device)
        self.optimizer.load_state_dict(state["optimizer"])
        self.shuffle.set_state(state["shuffle"])
        for generator, earlier in zip(self.batches.generators, state["loader"], strict=True):
            generator.set_state(earlier)
        self.first_weights = state["first weights"]
        self.began -= state["seconds"]

    def _probe(self) -> str:
        """The loss of the first examples in eval mode, to the last bit; "" where they can't be had without a pass."""
        first = self.batches.first
        if first is None:
            return ""
        plain = dict(first) if isinstance(first, Mapping) else first
        batch = tree_map_only(Tensor, lambda leaf: leaf.to(self.device), plain)
        self.model.eval()
        with torch.no_grad(), untouched_random_state():
            return float(self.loss(self.model, batch, None, check=False)[0]).hex()

    def _copy(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in (*self.model.parameters(), *self.model.buffers())]

    @torch.no_grad()
    def _put_back(self, kept: list[Tensor]) -> None:
        for tensor, value in zip((*self.model.parameters(), *self.model.buffers()), kept, strict=True):
            tensor.copy_(value)


def _bar(epochs: int, done: int, progress: bool | None) -> tqdm[int]:
    hidden, delay = progress is False, 2.0 if progress is None else 0.0
    left = range(done + 1, epochs + 1)
    return tqdm(left, total=epochs, initial=done, desc="train", unit="epoch", disable=hidden, delay=delay)
