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
        outputs = logits_of(model(*args, **kwargs))
        if check and self.loss_fn is None:
            _check_classes(outputs, targets)
        if tally is not None:
            tally.add(outputs, targets)
        terms = targets.numel() if isinstance(targets, Tensor) and targets.ndim else num_examples(batch)
        return (self.loss_fn or F.cross_entropy)(outputs, targets), float(terms)


def _check_classes(outputs: Any, targets: Any) -> None:
    """Targets of the default cross-entropy: torch would complain late, from a kernel, or not at all."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        received = f"have dtype {getattr(targets, 'dtype', type(targets).__name__)}"
        remedy = "Pass loss_fn=F.mse_loss (or another); class targets must be integers: targets.long()."
        raise ValueError(explain("targets", received, "integer classes, the loss_fn being cross-entropy", remedy))
    classes = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim > 1 else 0
    if not classes:
        received = f"gives outputs of shape {tuple(getattr(outputs, 'shape', ()))}"
        raise ValueError(explain("model", received, "(n, classes) for cross-entropy", "Pass loss_fn= or batch_loss=."))
    low, high = (int(targets.min()), int(targets.max())) if targets.numel() else (0, 0)
    if low < 0 or high >= classes:
        remedy = "Check the labels; ignored ones (-100) need batch_loss=, which returns (sum, count)."
        expected = f"0 to {classes - 1}, the model's {classes} outputs"
        raise ValueError(explain("targets", f"range from {low} to {high}", expected, remedy))
