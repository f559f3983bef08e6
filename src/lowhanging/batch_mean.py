"""What is the mean loss of one batch while a network trains, and how many examples of it are right?

Two ways to say it, `loss_fn(outputs, targets)` and `batch_loss(model, batch)`, one interface. The batches of the first
epoch are checked, so that targets which do not fit are refused here by name and not in one of torch's kernels.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lowhanging.batch_parts import Tally, attempt, logits_of, parted
from lowhanging.batches import num_examples
from lowhanging.errors import explain
from lowhanging.loss_checks import check_class_range, check_class_targets, num_classes
from lowhanging.model_loss import BatchLoss, LossFn


class BatchMean:
    """(model, batch) -> (mean loss, number of terms), from one of the two ways to say what the loss is."""

    def __init__(self, loss_fn: LossFn | None, batch_loss: BatchLoss | None):
        if loss_fn is not None and batch_loss is not None:
            remedy = "Leave one of them out."
            raise ValueError(explain("loss_fn", "and batch_loss are both given", "one of the two", remedy))
        self.loss_fn, self.batch_loss = loss_fn, batch_loss

    def __call__(self, model: nn.Module, batch: Any, tally: Tally | None, *, check: bool) -> tuple[Tensor, float]:
        if not check:
            return self._evaluate(model, batch, tally, check=False)
        mean, terms = attempt(lambda: self._evaluate(model, batch, tally, check=True), batch)
        if not isinstance(mean, Tensor) or mean.numel() != 1 or not terms > 0:
            kind = f"shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else type(mean).__name__
            received = f"gave {kind} over {terms:g} terms"
            name, remedy = ("batch_loss", "Return (sum, count).") if self.batch_loss else ("loss_fn", "Take the mean.")
            raise ValueError(explain(name, received, "one number over at least one term", remedy))
        return mean, terms

    def _evaluate(self, model: nn.Module, batch: Any, tally: Tally | None, *, check: bool) -> tuple[Tensor, float]:
        if self.batch_loss is not None:
            total, count = self.batch_loss(model, batch)
            return total / count, float(count)
        args, kwargs, targets = parted(batch)
        outputs = model(*args, **kwargs)
        outputs = logits_of(outputs) if self.loss_fn is None else outputs
        if check and self.loss_fn is None:
            check_class_targets(targets)
            check_class_range(targets, num_classes(outputs))
        if tally is not None:
            tally.add(outputs, targets)
        terms = targets.numel() if isinstance(targets, Tensor) and targets.ndim else num_examples(batch)
        return (self.loss_fn or F.cross_entropy)(outputs, targets), float(terms)
