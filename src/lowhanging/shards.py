"""Which examples are this rank's, and have all ranks made the same loss?

Every rank has either all of the data, of which it takes its part ("split"), or has only its part ("given"). Nothing is
guessed: data that differ where they should be the same, or are the same where they should differ, are refused, since
either way some examples would count twice and others not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lowhanging.batches import Batches
from lowhanging.errors import explain
from lowhanging.model_loss import ModelLoss
from lowhanging.ranks import Ranks
from lowhanging.results import digest

Shards = Literal["split", "given"]
SHARDS = ("split", "given")

_OWN = "Make it of the same model and with the same arguments on every rank, or pass distributed=False."
_SAME = {
    "model": _OWN,
    "theta0": "Give all ranks the same whole weights first (torch.distributed.broadcast), or pass distributed=False.",
    "constants": "Give all ranks the same frozen parameters and buffers first: in training each rank gathers BatchNorm "
    "statistics of its own.",
    "loss": _OWN,
    "mode": _OWN,
    "shards": _OWN,
}
_WHOLE = {
    "data": "Read the same examples in the same order on every rank (shuffle with a generator of the same seed); or "
    'pass Objective(..., shards="given") loaders that yield each rank its own part.'
}


def check_unwrapped(model: Any) -> None:
    """Refuse a model in DistributedDataParallel: its forward pass would synchronise behind our back."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        received = "is wrapped in DistributedDataParallel"
        raise ValueError(explain("model", received, "the model itself", "Pass model.module."))


def check_given(data: Any) -> None:
    """Refuse a sampler that repeats examples so that all shards are equally long."""
    sampler = getattr(data, "sampler", None) if isinstance(data, DataLoader) else None
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return
    extra = sampler.total_size - len(sampler.dataset)  # type: ignore[arg-type]
    if extra:
        received = f"repeats {extra} example{'s' * (extra > 1)} (DistributedSampler makes all shards equally long)"
        remedy = 'Pass the whole with shards="split", or Subset(data, range(rank, len(data), num_ranks)) on each rank.'
        raise ValueError(explain("data", received, "every example once", remedy))


def agree(ranks: Ranks, terms: ModelLoss, shards: str) -> int:
    """How many examples the ranks have together, if all have made the same loss; else an error on every rank."""
    own, space = cast(Batches, terms.batches), terms.space
    facts = {
        "model": f"{space.owner} with {space.num_params:,} parameters in {space.dtype}",
        "theta0": digest(terms.theta0),
        "constants": digest(*_constants(terms)),
        "loss": terms.name,
        "mode": terms.mode,
        "shards": shards,
        "data": f"{own.num_read:,} examples ({own.digest})",
        "num_examples": own.num_examples,
    }
    found = ranks.agree(facts, _SAME | (_WHOLE if shards == "split" else {}))
    if shards == "given" and len({theirs["data"] for theirs in found}) < ranks.size:
        received = "is the same on several ranks"
        remedy = 'Pass shards="split" where every rank has all of the data.'
        raise ValueError(explain("data", received, "a part of its own on each rank", remedy))
    return sum(theirs["num_examples"] for theirs in found)


def _constants(terms: ModelLoss) -> Iterator[Tensor]:
    """What the loss depends on besides theta and the data."""
    for module in (terms.model, terms.loss_fn):
        if isinstance(module, nn.Module):
            yield from (weight for weight in module.parameters() if not weight.requires_grad)
            yield from module.buffers()
