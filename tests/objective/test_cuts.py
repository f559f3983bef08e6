"""Batches as they come, and micro-batches where those change nothing: whatever the cut, the loss is the user's own.

Oracles: value and gradient by plain torch over the loader's batches as they come, products by central differences of
that gradient; counted passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lowhanging.objective.batches import Batches
from lowhanging.objective.objective import Objective

D = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def compare(
    model: nn.Module, data: Any, sums: Sequence[tuple[Callable[[nn.Module], Tensor], int]], **how: Any
) -> Objective:
    """The objective, after its value, gradient and product were those of (sum, count) of each batch by plain torch."""
    named = [(name, weight.shape, weight.numel()) for name, weight in model.named_parameters()]

    def mean(theta: Tensor) -> Tensor:
        weights = dict(zip((n for n, *_ in named), theta.split([size for *_, size in named]), strict=True))
        weights = {name: weights[name].view(shape) for name, shape, _ in named}
        called = _Called(model, weights)
        return sum(total(called) for total, _ in sums) / sum(count for _, count in sums)

    def gradient(theta: Tensor) -> Tensor:
        point = theta.clone().requires_grad_()
        return torch.autograd.grad(mean(point), point)[0]

    loss = Objective(model, data, **how)
    theta, v = loss.theta0, draw(loss.num_params, seed=1)
    torch.testing.assert_close(loss(theta), mean(theta).detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.gradient(theta), gradient(theta), rtol=1e-10, atol=1e-13)
    step = 1e-5
    expected = (gradient(theta + step * v) - gradient(theta - step * v)) / (2 * step)
    for _ in range(2):
        torch.testing.assert_close(loss.hvp(theta, v), expected, rtol=1e-5, atol=1e-8)
    return loss


class _Called(nn.Module):
    def __init__(self, model: nn.Module, weights: dict[str, Tensor]):
        super().__init__()
        self.call = lambda inputs: functional_call(model, weights, inputs)

    def forward(self, *inputs: Any) -> Any:
        return self.call(inputs)


# A loss_fn ------------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Time first, torch's default, with the small weights of the word language model."""

    def __init__(self, num_tokens: int = 9) -> None:
        super().__init__()
        self.enter, self.run, self.leave = nn.Embedding(num_tokens, 5), nn.RNN(5, 5), nn.Linear(5, num_tokens)
        for weight in self.parameters():
            nn.init.uniform_(weight, -0.1, 0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.leave(self.run(self.enter(tokens))[0])


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("lengths", [(6, 6, 6), (6, 4, 6), (40,)])
def test_data_with_time_first_are_not_cut_along_time(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    model = seeded(Recurrent)
    generator = torch.Generator().manual_seed(0)
    data = [tuple(torch.randint(9, (n, 4), generator=generator) for _ in "xy") for n in lengths]
    sums = [(lambda m, b=b: token_loss(m(b[0]), b[1]) * b[1].numel(), b[1].numel()) for b in data]
    loss = compare(model, data, sums, loss_fn=token_loss)
    assert [len(batch[0]) for batch in loss.batches] == list(lengths)
    narrow = Objective(model.to(dtype), data, loss_fn=token_loss)
    assert [len(batch[0]) for batch in narrow.batches] == list(lengths)


def test_a_class_for_each_sequence_with_as_many_sequences_as_steps() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.run, self.leave = nn.RNN(3, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.run(x)[0][-1])

    data = [(draw(5, 5, 3, seed=i), torch.arange(5) % 3) for i in range(3)]
    sums = [(lambda m, b=b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), 5) for b in data]
    compare(seeded(Last), data, sums)


class Mixes(nn.Module):
    """Statistics of the batch, by hand."""

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize("num", [12, 4096])
def test_a_model_that_mixes_examples_sees_its_batches_as_they_come(num: int) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), Mixes(), nn.Tanh(), nn.Linear(8, 3)))
    x, y = draw(num, 4) * torch.linspace(0.5, 2, num, dtype=D)[:, None], torch.arange(num) % 3
    whole = [(lambda m: F.cross_entropy(m(x), y, reduction="sum"), num)]
    assert len(list(compare(model, (x, y), whole).batches)) == 1
    cuts = [slice(0, num // 3), slice(num // 3, num)]
    parts = [(lambda m, c=c: F.cross_entropy(m(x[c]), y[c], reduction="sum"), len(y[c])) for c in cuts]
    compare(model, [(x[c], y[c]) for c in cuts], parts)


def test_a_graph_is_one_batch() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            return adjacency @ self.second(torch.tanh(adjacency @ self.first(x)))

    n = 700
    adjacency = (torch.rand(n, n, generator=torch.Generator().manual_seed(0)) < 3 / n).double() + torch.eye(n)
    adjacency = adjacency / adjacency.sum(1, keepdim=True)
    x, y = draw(n, 3), torch.arange(n) % 2
    sums = [(lambda m: F.cross_entropy(m(x, adjacency), y, reduction="sum"), n)]
    for how in ({}, {"loss_fn": F.cross_entropy}):
        compare(seeded(Graph), [(x, adjacency, y)], sums, **how)


def test_ordinary_batches_are_joined_and_cut() -> None:
    """Ragged, permuted, of one example: where nothing depends on the cut, the quick one is used."""
    model, x, y = (
        seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))),
        draw(30, 4),
        torch.arange(30) % 3,
    )
    sums = [(lambda m: F.cross_entropy(m(x), y, reduction="sum"), 30)]
    for size in (1, 7, 30):
        loss = compare(model, DataLoader(TensorDataset(x, y), batch_size=size), sums)
        assert [len(batch[0]) for batch in loss.batches] == [30]
        cut = compare(model, DataLoader(TensorDataset(x, y), batch_size=size), sums, micro_batch=8)
        assert [len(batch[0]) for batch in cut.batches] == [8, 8, 8, 6]


def test_a_micro_batch_that_would_change_the_loss_is_refused() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), Mixes(), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match="micro_batch is 5, which changes the loss") as error:
        Objective(model, (draw(12, 4), torch.arange(12) % 3), micro_batch=5)
    assert str(error.value).endswith("Leave it out: the batches are then used as they come.")


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    known = targets != -1
    return ((outputs - targets) ** 2)[known].mean()


@pytest.mark.parametrize("as_loader", [False, True])
def test_a_mask_of_real_targets_is_found_in_whichever_batch_it_is(as_loader: bool) -> None:
    x, y = draw(3000, 4), draw(3000, 2).abs()
    y[2000:][torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) < 0.9] = -1.0
    data = DataLoader(TensorDataset(x, y), batch_size=500) if as_loader else (x, y)
    with pytest.raises(ValueError, match="loss_fn is not the mean over the targets"):
        Objective(seeded(lambda: nn.Linear(4, 2)), data, loss_fn=masked)


def test_batches_that_are_masked_each_as_a_whole_are_found_together() -> None:
    """Within each batch all rows weigh the same; it is between batches that the weights differ."""
    y = draw(20, 2).abs()
    y[10:, 1] = -1.0
    data = [(draw(10, 4), y[:10]), (draw(10, 4), y[10:])]
    with pytest.raises(ValueError, match="loss_fn is not the mean over the targets"):
        Objective(seeded(lambda: nn.Linear(4, 2)), data, loss_fn=masked)


@pytest.mark.parametrize("is_class", [True, False])
def test_an_example_without_a_batch_dimension_counts_once(is_class: bool) -> None:
    """`batch_size=None`: sequences of different lengths, each with one target of no dimensions."""

    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(1, 4), nn.Linear(4, 3 if is_class else 1)

        def forward(self, x: Tensor) -> Tensor:
            outputs = self.leave(torch.tanh(self.enter(x[:, None])).mean(0))
            return outputs if is_class else outputs[0]

    items = [(draw(n, seed=n), torch.tensor(n % 3) if is_class else draw(1, seed=n)[0]) for n in (3, 9, 4, 9)]
    loss_fn = F.cross_entropy if is_class else F.mse_loss
    sums = [(lambda m, item=item: loss_fn(m(item[0]), item[1]), 1) for item in items]
    loss = compare(seeded(Pool), DataLoader(items, batch_size=None), sums, loss_fn=loss_fn)
    assert loss.num_examples == 4


# A batch_loss ---------------------------------------------------------------------------------------------------------


def contrastive(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    a, b = (F.normalize(model(part), dim=1) for part in batch)
    return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)), reduction="sum"), len(a)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("size", [4, 16])
def test_a_batch_loss_sees_the_loaders_batches(size: int, cache: bool) -> None:
    model, a = seeded(lambda: nn.Linear(4, 3)), draw(16, 4)
    b = a + 0.3 * draw(16, 4, seed=3)
    parts = list(zip(a.split(size), b.split(size), strict=True))
    sums = [(lambda m, part=part: contrastive(m, part)[0], size) for part in parts]
    compare(model, DataLoader(TensorDataset(a, b), batch_size=size), sums, batch_loss=contrastive, cache=cache)
    compare(model, (a, b), [(lambda m: contrastive(m, (a, b))[0], 16)], batch_loss=contrastive)  # one data set, whole


def test_a_batch_loss_is_cut_on_request_where_it_is_a_sum() -> None:
    model, x, y = seeded(lambda: nn.Linear(4, 3)), draw(13, 4), torch.arange(13) % 3
    plain = lambda m, b: (F.cross_entropy(m(b[0]), b[1], reduction="sum"), len(b[1]))  # noqa: E731
    sums = [(lambda m: plain(m, (x, y))[0], 13)]
    assert [len(b[0]) for b in compare(model, (x, y), sums, batch_loss=plain, micro_batch=5).batches] == [5, 5, 3]
    a_count_of_its_own = lambda m, b: (plain(m, b)[0], max(5, len(b[1])))  # noqa: E731
    for batch_loss, data in ((contrastive, (x, x + 0.1)), (a_count_of_its_own, (x, y))):
        with pytest.raises(ValueError, match="micro_batch is 3, which changes the loss"):
            Objective(model, data, batch_loss=batch_loss, micro_batch=3)


# What is read, and what it costs --------------------------------------------------------------------------------------


class Corrupted(Dataset[tuple[Tensor, Tensor]]):
    """Stores tensors under our names, and hands out others in the middle."""

    def __init__(self) -> None:
        self.inputs, self.targets = draw(200, 4), torch.arange(200) % 3

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], (self.targets[index] + (20 <= index < 100)) % 3


def test_a_data_set_is_read_item_by_item() -> None:
    data, model = Corrupted(), seeded(lambda: nn.Linear(4, 3))
    x, y = data.inputs, torch.stack([data[i][1] for i in range(200)])
    compare(model, data, [(lambda m: F.cross_entropy(m(x), y, reduction="sum"), 200)])


def test_a_loader_may_fill_one_piece_of_memory_for_all_batches() -> None:
    x, y = draw(12, 4), torch.arange(12) % 3

    class OneBuffer:
        def __iter__(self) -> Any:
            batch = torch.empty_like(x[:4]), torch.empty_like(y[:4])
            for i in range(0, 12, 4):
                batch[0].copy_(x[i : i + 4])
                batch[1].copy_(y[i : i + 4])
                yield batch

    for cache in (True, False):
        sums = [(lambda m: F.cross_entropy(m(x), y, reduction="sum"), 12)]
        compare(seeded(lambda: nn.Linear(4, 3)), OneBuffer(), sums, cache=cache)


def test_an_objective_costs_two_gradients_and_a_pass_to_make() -> None:
    """Beside the watched evaluation of the first batch; counted in examples, forwards and backwards."""
    seen = {"forward": 0, "backward": 0}

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen["forward"] += len(x)
            if x.requires_grad:
                x.register_hook(lambda grad: seen.__setitem__("backward", seen["backward"] + len(grad)))
            return x

    def cost(data: Any, **how: Any) -> tuple[int, int]:
        seen.update(forward=0, backward=0)
        Objective(nn.Sequential(nn.Linear(4, 3), Counts()).double(), data, **how)
        return seen["forward"], seen["backward"]

    x, y = draw(2000, 4), torch.arange(2000) % 3
    # One batch: two and four examples to choose micro-batches, outputs for the shapes, and a gradient; nothing is cut.
    assert cost((x[:100], y[:100])) == (206, 100)
    forward, backward = cost(DataLoader(TensorDataset(x, y), batch_size=50))
    assert forward <= 2 * 2000 + 2 * 50 + 6  # two gradients, and what the first batch had before
    assert backward <= 2 * 2000 + 50
    forward, backward = cost(DataLoader(TensorDataset(x, F.one_hot(y).double()), batch_size=50), loss_fn=F.mse_loss)
    assert forward <= 3 * 2000 + 2 * 50 + 6
    assert backward <= 2 * 2000 + 50


def test_what_came_is_freed() -> None:
    loss = Objective(seeded(lambda: nn.Linear(4, 3)), DataLoader(TensorDataset(draw(30, 4), torch.arange(30) % 3)))
    assert isinstance(loss.batches, Batches)
    assert loss.batches._came == []
