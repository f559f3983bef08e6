"""Predicted costs: what is counted, and what follows from it. Oracles: flops on paper; how a choice must move."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lowhanging as lh
from lowhanging.objective.cost import NEVER, Counting, Work, machine_memory, micro_batch, products_until_recorded


def work_of(model: nn.Module, *shape: int) -> Work:
    inputs = torch.ones(*shape)
    with Counting() as counting, torch.no_grad():
        model(inputs)
    return counting.work


def test_flops_are_those_on_paper() -> None:
    linear = work_of(nn.Linear(30, 20), 7, 30)
    assert linear.matrix_flops == 2 * 7 * 30 * 20
    assert linear.convolution_flops == 0
    conv = work_of(nn.Conv2d(3, 5, 3), 2, 3, 10, 10)
    assert conv.convolution_flops == 2 * 2 * 5 * 8 * 8 * 3 * 9
    assert conv.matrix_flops == 0
    tanh = work_of(nn.Tanh(), 7, 30)
    assert (tanh.num_bytes, tanh.num_operations) == (4 * 7 * 30, 1)


def test_what_cannot_be_counted_stops_nothing() -> None:
    with Counting() as counting:
        torch.eye(3).to_sparse() @ torch.ones(3, 2)
    assert counting.work.num_operations > 0


def test_recordings_wait_longer_where_they_save_less() -> None:
    net = Work(1e9, 0.0, 3e7, 200)
    waits = [products_until_recorded(net, num, 1) for num in (1, 4, 16)]
    assert waits == sorted(waits, reverse=True)  # the more batches share a recording, the sooner
    assert products_until_recorded(net, 16, 4) > waits[-1]  # one for every shape
    tight = products_until_recorded(net, 16, 1, graph_bytes=2e7, keep_bytes=16 * 2e7)
    assert tight > waits[-1]  # it keeps more than fits
    assert products_until_recorded(Work(1e12, 0.0, 1e3, 10), 1, 1, graph_bytes=1e9, keep_bytes=1e9) == NEVER
    bound = net.recording + net.product
    assert (waits[0] - 1) * net.saved < bound <= waits[0] * net.saved  # ski rental


def test_micro_batches_fit_a_cache_or_the_weights() -> None:
    wide = nn.Sequential(nn.Linear(10, 20_000), nn.Tanh(), nn.Linear(20_000, 1))
    narrow = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 1))
    sizes = [micro_batch(work_of(net, 2, 10), work_of(net, 4, 10), 0) for net in (wide, narrow)]
    assert sizes[0] < sizes[1]
    with_weights = micro_batch(work_of(wide, 2, 10), work_of(wide, 4, 10), 10**7)
    assert with_weights > sizes[0]


@pytest.mark.parametrize("data", ["images", "rows"])
def test_choices_follow_from_shapes(data: str) -> None:
    """Two objectives of one shape and other numbers: the same micro-batch, and the same engine at every product."""
    found = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        if data == "images":
            model: nn.Module = lh.SigmoidCNN(seed=seed)
            inputs = torch.randn(600, 1, 28, 28, generator=generator)
        else:
            model, inputs = nn.Sequential(nn.Linear(8, 50), nn.Tanh(), nn.Linear(50, 10)), torch.randn(600, 8)
        loss = lh.Objective(model, (inputs, torch.randint(10, (600,), generator=generator)))
        loss.hvp(loss.theta0, torch.randn(loss.num_params, generator=generator))
        found.append(([len(x) for x, _ in loss.batches], loss._products._recorded_after))
    assert found[0] == found[1]
    assert found[0][1] not in (None, 0)


def test_a_model_that_takes_no_few_examples_gets_a_default() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) < 12:
                raise ValueError("all or nothing")
            return self.layer(x)

    loss = lh.Objective(Whole(), (torch.randn(12, 3), torch.randn(12, 2)), loss_fn=F.mse_loss)
    assert [len(x) for x, _ in loss.batches] == [12]


def test_the_machine_has_some_memory() -> None:
    assert 2**28 < machine_memory(torch.device("cpu")) < 2**50


def test_a_measured_micro_batch_is_near_the_predicted_one_and_gives_the_same_numbers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 50), nn.Tanh(), nn.Linear(50, 10)).double()
    data = torch.randn(300, 8, dtype=torch.float64), torch.randint(10, (300,))
    loss, plain = lh.Objective(model, data, micro_batch="measure"), lh.Objective(model, data)
    largest = loss._terms.largest_batch
    assert largest is not None
    assert 1 <= largest <= 300
    assert f"300 examples in batches of {largest}" in repr(loss)
    v = torch.randn(loss.num_params, dtype=torch.float64)
    torch.testing.assert_close(loss.hvp(loss.theta0, v), plain.hvp(loss.theta0, v), rtol=1e-11, atol=1e-13)
    with pytest.raises(ValueError, match="micro_batch is 'measure' with a batch_loss"):
        lh.Objective(model, data, batch_loss=lambda m, b: (m(b[0]).square().sum(), len(b[0])), micro_batch="measure")
    with pytest.raises(ValueError, match="micro_batch is 'fast', expected"):
        lh.Objective(model, data, micro_batch="fast")  # type: ignore[arg-type]
