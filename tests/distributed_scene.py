"""What two ranks do in test_distributed.py: started by torchrun, one process each, with a folder for what they find.

Everything that should be the same on both goes into `found`, and what should be refused into `refused`.
"""

from __future__ import annotations

import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import lowhanging as lh
from lowhanging.objective import distributed, hvp
from lowhanging.objective.blocks import LOOP, Batching

NUM = 23  # odd: the two shards differ in length, and both end in a ragged micro-batch of 5
EXAMPLE = Path(__file__).parents[1] / "examples" / "distributed.py"


def model(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return net


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = torch.randn(NUM, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype), (torch.arange(NUM) % 7) % 3


def sequences() -> list[dict[str, Tensor]]:
    """Three batches that can't be joined, with targets to be ignored."""
    x, y = data()
    parts = [(slice(0, 6), 2), (slice(6, 9), 3), (slice(9, 17), 4)]
    return [{"x": x[part].repeat(1, width).view(-1, 4), "labels": tokens(y[part], width)} for part, width in parts]


def tokens(y: Tensor, width: int) -> Tensor:
    labels = y[:, None].repeat(1, width)
    labels[:, 0] = -100
    return labels.reshape(-1)


def token_loss(net: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    labels = batch["labels"]
    return F.cross_entropy(net(batch["x"]), labels, reduction="sum", ignore_index=-100), (labels >= 0).sum()


def ones(x: Tensor) -> tuple[Tensor, Tensor]:
    """All of one class: class weights then make a mean all the same."""
    return x, torch.ones(len(x), dtype=torch.long)


def direction(num: int, seed: int = 5) -> Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answers(loss: lh.Objective) -> dict[str, Any]:
    """A little of everything that can be asked of a loss."""
    theta, v = loss.theta0, direction(loss.num_params)
    H, G = lh.hessian(loss), lh.gauss_newton(loss)
    columns = torch.stack([v, v.cos(), v.exp()], 1)
    block = lh.hessian(loss, parameters="2.*")
    pairs = lh.top_hessian_eigs(loss, k=3, tol=1e-9, progress=False)
    density = lh.spectral_density(H, num_steps=12, num_probes=2, seed=3, progress=False)
    scan = lh.line_slice({"loss": loss}, v / v.norm(), extent=(-1, 1), num=3, progress=False)
    right, shares = loss.evaluate(theta)[1], loss.evaluate_many(torch.stack([theta, theta + 0.1 * v]))[1]
    assert right is not None and shares is not None
    return few_answers(loss) | {
        "second product": loss.hvp(theta, v.cos()),
        "columns": H @ columns,
        "Gauss-Newton": G @ v,
        "Gauss-Newton columns": G @ columns,
        "block": block @ direction(block.shape[0]),
        "accuracy": torch.tensor(right, dtype=torch.float64),
        "accuracies": shares,
        "eigenvalues": pairs.values,
        "eigenvectors": pairs.vectors,
        "num_products": torch.tensor(pairs.num_products),
        "trace": torch.tensor(float(lh.trace(H, num_probes=20, progress=False)), dtype=torch.float64),
        "density": density.density,
        "slice": scan.losses["loss"],
        "accuracies of the slice": scan.accuracies["loss"],
        "anchored": lh.objective.AnchoredObjective(loss, theta.cos(), 0.1).hvp(theta, v),
    }


def few_answers(loss: lh.Objective) -> dict[str, Any]:
    theta, v = loss.theta0, direction(loss.num_params)
    value, gradient = loss.value_and_gradient(theta)
    return {
        "value": loss(theta),
        "value beside the gradient": value,
        "value beside the accuracy": loss.evaluate(theta)[0],
        "values": loss.evaluate_many(torch.stack([theta, theta + 0.1 * v]))[0],
        "gradient": gradient,
        "product": loss.hvp(theta, v),
    }


def losses(rank: int | None) -> Iterator[tuple[str, lh.Objective]]:
    """The same losses for one process (rank None) and for a rank of two."""
    x, y = data()
    yield "whole", lh.Objective(model(), (x, y), micro_batch=5, engine="double backward")  # recordings take seconds
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    yield "not kept", lh.Objective(model(), loader, cache=False, engine="kept graph")
    yield "sequences", lh.Objective(model(), sequences(), batch_loss=token_loss)
    own = TensorDataset(x, y)
    shard = own if rank is None else Subset(own, range(16) if rank == 0 else range(16, NUM))
    loader = DataLoader(shard, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(4))
    yield "given", lh.Objective(model(), loader, shards="given", engine="double backward")


def all_answers(rank: int | None) -> tuple[dict[str, Any], lh.Objective]:
    """ "loss: what" -> answer, and the last loss."""
    found: dict[str, Any] = {}
    for name, loss in losses(rank):
        ask = answers if name == "whole" else few_answers
        found |= {f"{name}: {what}": value for what, value in ask(loss).items()}
    return found, loss


def refusals(rank: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What one of two ranks does differently."""
    x, y = data()
    is_second = rank == 1
    order = torch.randperm(NUM, generator=torch.Generator().manual_seed(rank))
    yield "other order", lambda: lh.Objective(model(), (x[order], y[order]))
    yield "fewer examples", lambda: lh.Objective(model(), (x[rank:], y[rank:]))
    yield "other weights", lambda: lh.Objective(model(seed=rank), (x, y))
    normed = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    normed[1].running_mean += rank
    for weight in normed.parameters():
        nn.init.constant_(weight, 0.1)
    yield "other statistics", lambda: lh.Objective(normed, (x, y))
    weight = torch.ones(3).double()
    weight[0] += rank
    yield "other class weights", lambda: lh.Objective(model(), ones(x), loss_fn=nn.CrossEntropyLoss(weight=weight))
    yield "other model", lambda: lh.Objective(nn.Linear(4, 3 + rank).double(), (x, y))
    loss_fn = F.cross_entropy if is_second else F.multi_margin_loss
    yield "other loss", lambda: lh.Objective(model(), (x, y), loss_fn=loss_fn)
    yield "other mode", lambda: lh.Objective(model(), (x, y), mode="as_is" if is_second else "eval")
    yield "other shards", lambda: lh.Objective(model(), (x, y), shards="given" if is_second else "split")
    yield "bad data", lambda: lh.Objective(model(), (x / 0 if is_second else x, y))
    yield "one example", lambda: lh.Objective(model(), (x[:1], y[:1]))
    yield "given twice", lambda: lh.Objective(model(), (x, y), shards="given")
    sampled = DataLoader(TensorDataset(x, y), batch_size=4, sampler=DistributedSampler(TensorDataset(x, y)))
    yield "padded", lambda: lh.Objective(model(), sampled, shards="given")
    yield "sampled", lambda: lh.Objective(model(), sampled)
    yield "wrapped", lambda: lh.Objective(nn.parallel.DistributedDataParallel(model()), (x, y))
    groups = [dist.new_group([0]), dist.new_group([1])]
    yield "foreign group", lambda: lh.Objective(model(), (x, y), distributed=groups[1 - rank])

    failure: list[Exception] = []

    def fails(outputs: Tensor, targets: Tensor) -> Tensor:
        if failure:
            raise failure[0]
        return F.cross_entropy(outputs, targets)

    loss, other = (lh.Objective(model(), (x, y), loss_fn=fails) for _ in range(2))
    theta, v = loss.theta0, direction(loss.num_params)
    yield "another theta", lambda: loss(theta + 1e-15 * rank)
    yield "another v", lambda: loss.hvp(theta, v + rank)
    yield "another question", lambda: loss(theta) if is_second else loss.hvp(theta, v)
    yield "another loss", lambda: (loss if is_second else other)(theta)
    yield "in double", loss.in_double
    failure += [KeyError("a loss of one's own")] if is_second else []
    yield "failure", lambda: loss.gradient(theta)
    failure[:] = [torch.OutOfMemoryError("too much")] if is_second else []
    yield "out of memory", lambda: loss.gradient(theta)


def alone(rank: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Rank 0 makes a loss by itself; rank 1 comes when it has given up."""
    if rank == 1:
        dist.barrier()
        yield "alone", lambda: lh.Objective(model(), data())
        return
    patience, distributed.PATIENCE = distributed.PATIENCE, 0.4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield "alone", lambda: lh.Objective(model(), data())
    yield "a note", lambda: _raise(caught[0].message)
    distributed.PATIENCE = patience
    dist.barrier()


def votes(rank: int) -> dict[str, Any]:
    """Rank 1 can only use the slowest engine, and multiplies blocks one by one: so do both."""
    chosen, quicker = hvp.Products._choose, hvp.choose_batching
    hvp.choose_batching = lambda *_: LOOP if rank == 1 else Batching("vmap", 16)
    if rank == 1:
        plain = "double backward"
        hvp.Products._choose = lambda self, theta, wanted, v: chosen(self, theta, plain, v)
    loss = lh.Objective(model(), data())
    H, v = lh.hessian(loss), direction(loss.num_params)
    found = {"columns by vote": H @ torch.stack([v, v.cos()], 1)}
    hvp.Products._choose, hvp.choose_batching = chosen, quicker
    return found | {"engine": loss.engine, "block": H.block, "reason": str(loss.fallback_reason)}


def _raise(error: Any) -> None:
    raise error


def refused(calls: Iterator[tuple[str, Callable[[], Any]]]) -> dict[str, str]:
    found = {}
    for name, call in calls:
        try:
            call()
            found[name] = "nothing was raised"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found, loss = all_answers(rank)
    words = {"repr": repr(loss), "num_examples": loss.num_examples, "batches": [len(b[0]) for b in loss.batches]}
    group = dist.new_group([0, 1])
    single = lh.Objective(model(torch.float32), data(torch.float32), engine="kept graph", distributed=group)
    found["float32"] = single.hvp(single.theta0, direction(single.num_params).float())
    local = lh.Objective(model(), data(), distributed=False)
    if rank == 0:
        local(local.theta0)  # a call that the other rank does not make
    found["local"] = local(local.theta0 + rank)
    voted = votes(rank)
    found["columns by vote"] = voted.pop("columns by vote")
    messages = refused(refusals(rank)) | refused(alone(rank))
    again = lh.Objective(model(), data())
    found["after all that"] = again.gradient(again.theta0)
    example = runpy.run_path(str(EXAMPLE), run_name="__main__")
    found["example"] = example["pairs"].values
    is_silent = [distributed.is_silent(progress) for progress in (None, True, False)]
    words |= {"local": repr(local), "silent": is_silent, **voted}
    torch.save({"found": found, "refused": messages, "words": words}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
