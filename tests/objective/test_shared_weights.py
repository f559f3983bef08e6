"""Weights that are shared, and tensors that are computed from weights: one theta for what is trained as one.

Oracles: the same networks written as plain functions of one weight, differentiated by torch in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowhanging.curvature.eigenpairs import top_hessian_eigs
from lowhanging.objective.objective import Objective
from lowhanging.objective.parameters import ParameterSpace

D = torch.float64
X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=D)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


class Autoencoder(nn.Module):
    """A decoder that is the encoder transposed, in one of the ways in which people say so."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        self.double()
        self.how = how
        if how == "memory":
            self.decoder.weight.data = self.encoder.weight.data.t()
        elif how in ("view", "detached view"):
            del self.decoder
            self.back = self.encoder.weight.t() if how == "view" else self.encoder.weight.data.t()
        elif how == "in a list":
            del self.decoder
            self.tables = [{"back": self.encoder.weight.t() * 1.0}]
        elif how == "buffer":
            del self.decoder
            self.register_buffer("back", self.encoder.weight.data.t())
        elif how == "frozen":
            self.decoder.weight = nn.Parameter(self.encoder.weight.data.t(), requires_grad=False)
        elif how == "half":
            self.decoder.weight.data = self.encoder.weight.data[:1].expand(4, 4)[:, :2]

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.encoder(x))
        if hasattr(self, "decoder"):
            return self.decoder(hidden)
        back = self.tables[0]["back"] if self.how == "in a list" else self.back
        return hidden @ back.t()


def tied(weight: Tensor) -> Tensor:
    weight = weight.view(2, 4)
    return F.mse_loss(torch.tanh(X @ weight.T) @ weight, X)


def test_two_parameters_in_one_memory_are_one_weight() -> None:
    torch.manual_seed(0)
    model = Autoencoder("memory")
    loss = Objective(model, (X, X), loss_fn=F.mse_loss)
    assert (loss.num_params, loss.space.names, list(loss.space.ties)) == (8, ("encoder.weight",), ["decoder.weight"])
    weight = model.encoder.weight.detach().reshape(-1)
    moved, v = weight + 0.1, torch.linspace(-1, 1, 8, dtype=D)
    for theta in (weight, moved):
        point = theta.clone().requires_grad_()
        torch.testing.assert_close(loss(theta), tied(theta))
        torch.testing.assert_close(loss.gradient(theta), torch.autograd.grad(tied(point), point)[0])
        exact = torch.autograd.functional.hessian(tied, theta)
        torch.testing.assert_close(loss.hvp(theta, v), exact @ v)
    pairs = top_hessian_eigs(loss, k=3, tol=1e-9)
    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(tied, weight)).flip(0)[:3]
    torch.testing.assert_close(pairs.values, exact, rtol=1e-7, atol=1e-9)
    network = loss.model_at(moved)
    torch.testing.assert_close(F.mse_loss(network(X), X), tied(moved))
    with torch.no_grad():
        network.encoder.weight.zero_()  # one memory, as in the user's own
    assert not network.decoder.weight.any()
    assert model.decoder.weight.data_ptr() == model.encoder.weight.data_ptr()
    torch.testing.assert_close(loss.space.flatten(model.state_dict()), weight)
    for other in (loss.double(), loss.restricted(["encoder.weight"])):
        torch.testing.assert_close(other(other.theta0), tied(weight))


def test_a_weight_of_equal_layout_and_one_of_another_shape() -> None:
    class Two(nn.Module):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(3, 4, dtype=D)), nn.Parameter(torch.zeros(1, dtype=D))
            self.b.data = self.a.data.view(shape)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.a.T) * self.b.reshape(-1)[:3]

    for shape in ((3, 4), (12,), (2, 6)):
        loss = Objective(Two(shape), (X, X[:, :3]), loss_fn=F.mse_loss)
        assert loss.num_params == 12

        def plain(t: Tensor) -> Tensor:
            return F.mse_loss(torch.tanh(X @ t.view(3, 4).T) * t[:3], X[:, :3])

        v = torch.linspace(-1, 1, 12, dtype=D)
        torch.testing.assert_close(loss.hvp(loss.theta0, v), torch.autograd.functional.hessian(plain, loss.theta0) @ v)


@pytest.mark.parametrize("how", ["view", "detached view", "in a list"])
def test_a_tensor_computed_from_weights_once_is_refused_where_it_is_used(how: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="which was computed from its weights, and uses it in") as error:
        Objective(Autoencoder(how), (X, X), loss_fn=F.mse_loss)
    assert "'tables'" in str(error.value) if how == "in a list" else "'back'" in str(error.value)
    assert "Compute it in forward" in str(error.value)


@pytest.mark.parametrize("how", ["buffer", "frozen", "half"])
def test_other_overlaps_in_memory_are_refused_by_name(how: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"in the memory of 'encoder\.weight'") as error:
        Objective(Autoencoder(how), (X, X), loss_fn=F.mse_loss)
    assert str(error.value).endswith(
        "Compute one from the other in forward, or give it memory of its own: .data.clone()."
    )


def test_parts_of_one_storage_are_weights_of_their_own() -> None:
    """As flattened parameters and cuDNN's recurrent layers have them."""
    model = seeded(lambda: nn.Linear(4, 3))
    flat = torch.cat([model.weight.detach().reshape(-1), model.bias.detach()])
    model.weight.data, model.bias.data = flat[:12].view(3, 4), flat[12:]
    assert ParameterSpace(model).ties == {}
    columns = torch.randn(4, 6, dtype=D)
    model.weight.data, model.bias.data = columns[:, ::2].t(), columns[0, 1:6:2]  # interleaved
    assert (ParameterSpace(model).ties, ParameterSpace(model).num_params) == ({}, 15)


def test_a_shared_layer_and_a_shared_weight_together() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c, self.leave = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.b = self.a
            self.c.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.c(torch.tanh(self.b(torch.sin(self.a(x))))))

    model, y = seeded(Shared), torch.arange(20) % 3
    loss = Objective(model, (X, y))
    assert loss.num_params == 16 + 4 + 4 + 15
    gradient = torch.autograd.grad(F.cross_entropy(model(X), y), list(model.parameters()))
    torch.testing.assert_close(loss.gradient(loss.theta0), torch.cat([part.reshape(-1) for part in gradient]))


def test_what_a_pass_leaves_on_the_model_is_no_part_of_the_loss() -> None:
    class Lazy(nn.Module):
        """Keeps what it computed from its weights at the first call."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.kept = nn.Parameter(torch.randn(4, 3, dtype=D)), None

        def forward(self, x: Tensor) -> Tensor:
            if self.kept is None:
                self.kept = self.weight.square()
            return torch.tanh(x @ self.kept)

    def plain(t: Tensor) -> Tensor:
        return F.mse_loss(torch.tanh(X @ t.view(4, 3).square()), X[:, :3])

    loss = Objective(Lazy(), (X, X[:, :3]), loss_fn=F.mse_loss)
    for theta in (loss.theta0, loss.theta0 + 0.3):
        torch.testing.assert_close(loss(theta), plain(theta))
        exact = torch.autograd.functional.hessian(plain, theta)
        torch.testing.assert_close(loss.hvp(theta, theta), exact @ theta)


def test_a_model_that_remembers_its_last_pass_is_refused() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.state = nn.Linear(4, 3).double(), torch.zeros(1, dtype=D)

        def forward(self, x: Tensor) -> Tensor:
            self.state = 0.5 * self.state + x.mean().detach()
            return self.net(x) * (1 + self.state)

    with pytest.raises(ValueError, match=r"what its last forward pass left on it \(attributes \['state'\]\)"):
        Objective(Remembers(), (X, torch.arange(20) % 3))


# Embeddings -----------------------------------------------------------------------------------------------------------

TOKENS = torch.tensor([[1, 2, 2], [0, 1, 3], [2, 2, 2], [3, 0, 0], [1, 1, 2], [0, 0, 0]])
Y = torch.arange(6) % 3
_HOT = F.one_hot(TOKENS, 4).double()


class Words(nn.Module):
    def __init__(self, how: str, **options: object) -> None:
        super().__init__()
        self.how, self.options = how, options
        make = nn.EmbeddingBag if how.startswith("bag") else nn.Embedding
        self.table = make(4, 3, **({} if how.startswith("functional") else options))
        self.leave = nn.Linear(3, 3)
        with torch.no_grad():
            self.table.weight.normal_()

    def forward(self, tokens: Tensor) -> Tensor:
        if self.how == "functional":
            hidden = F.embedding(tokens, self.table.weight, **self.options).mean(1)
        elif self.how == "functional bag":
            hidden = F.embedding_bag(tokens, self.table.weight, **self.options)
        elif self.how == "bag of offsets":
            hidden = self.table(tokens.flatten(), torch.arange(0, tokens.numel(), 3))
        else:
            hidden = self.table(tokens) if self.how == "bag" else self.table(tokens).mean(1)
        return self.leave(torch.tanh(hidden))


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("module", {}),
        ("module", {"padding_idx": 0}),
        ("module", {"scale_grad_by_freq": True}),
        ("module", {"sparse": True}),
        ("functional", {"padding_idx": 0}),
        ("functional", {"padding_idx": -1, "scale_grad_by_freq": True}),
        ("functional", {"sparse": True}),
        ("functional bag", {"scale_grad_by_freq": True}),
        ("bag", {}),
        ("bag", {"mode": "sum"}),
        ("bag", {"padding_idx": 0}),
        ("bag", {"sparse": True}),
        ("bag of offsets", {"padding_idx": 2, "mode": "sum"}),
        ("bag of offsets", {"scale_grad_by_freq": True}),
    ],
)
def test_options_of_embeddings_change_no_derivative(how: str, options: dict[str, object]) -> None:
    """By one-hot products: no embedding kernel. The padding of a bag is left out of its value."""
    model = seeded(lambda: Words(how, **options))
    theta = torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])
    is_bag = "bag" in how

    def plain(t: Tensor) -> Tensor:
        table, weight, bias = t[:12].view(4, 3), t[12:21].view(3, 3), t[21:]
        counts = torch.ones_like(TOKENS).double()
        if is_bag and "padding_idx" in options:
            counts = (options["padding_idx"] != TOKENS).double()
        total = ((_HOT * counts[..., None]) @ table).sum(1)
        mean = total if options.get("mode") == "sum" else total / counts.sum(1, keepdim=True).clamp(min=1)
        return F.cross_entropy(torch.tanh(mean) @ weight.T + bias, Y)

    loss, v = Objective(model, (TOKENS, Y)), torch.linspace(-1, 1, 24, dtype=D)
    point = theta.clone().requires_grad_()
    torch.testing.assert_close(loss(theta), plain(theta))
    torch.testing.assert_close(loss.gradient(theta), torch.autograd.grad(plain(point), point)[0])
    exact = torch.autograd.functional.hessian(plain, theta) @ v
    torch.testing.assert_close(loss.hvp(theta, v), exact)


def test_an_embedding_that_rewrites_its_weights_is_refused() -> None:
    for how in ("module", "functional"):
        with pytest.raises(ValueError, match=r"rewrites its weights when run: the embedding in .* has max_norm"):
            Objective(seeded(lambda how=how: Words(how, max_norm=1.0)), (TOKENS, Y))
