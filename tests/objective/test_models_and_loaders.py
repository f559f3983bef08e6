"""The models and loaders people have, and what peers get wrong on them, through the public calls.

Oracles: the dense float64 Hessian by `torch.autograd.functional.hessian` (reverse over reverse) of the mean loss of all
examples at once, the model written out by hand as a function of its weights, or, for GPT-2, run by its attention
without fused kernels; J'BJ from dense J and B of the same function; a Hessian on paper.
"""

from __future__ import annotations

import copy
import random
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lowhanging as lh

# Defects found in other tools, and the tests that would fail if we had them; the eigensolver's are in its own files.
PEERS_DEFECTS = {
    "mean of batch means, wrong with a ragged last batch": ["test_models_and_loaders::test_loaders"],
    "another Hessian on each pass of a shuffled loader": [
        "test_models_and_loaders::test_loaders",
        "test_batches::test_without_cache_what_changes_is_refused",
    ],
    "ignore_index: batches weighted by examples or padded length": [
        "test_models_and_loaders::test_gpt2_is_weighted_by_tokens",
        "test_objective::test_ignored_and_weighted_targets_by_batch_loss",
    ],
    "ghosts past 50 steps": [
        "test_models_and_loaders::test_no_ghosts_past_50_steps",
        "test_eigenpairs::test_budgets_on_a_network_spectrum",
    ],
    "fewer than k pairs": [
        "test_networks::test_softmax_regression_equals_the_hessian_on_paper",
        "test_eigenpairs::test_identity_of_any_size_gives_k_pairs",
    ],
    "deflation by vectors that are not normalised": [
        "test_eigenpairs::test_zoo_equals_the_dense_eigendecomposition",
        "test_eigenpairs::test_answers_scale_with_the_map",
    ],
    "LM that is LA; negative eigenvalues clamped": [
        "test_models_and_loaders::test_every_end_of_a_saddle_on_paper",
        "test_eigenpairs::test_zoo_equals_the_dense_eigendecomposition",
    ],
    "model left in eval mode, or with .grad set": [
        "test_models_and_loaders::test_a_model_in_training_is_left_as_it_was",
        "test_objective::test_a_model_is_never_written_to",
    ],
    "sign depending on the seed": [
        "test_models_and_loaders::test_no_ghosts_past_50_steps",
        "test_eigenpairs::test_canonical_sign_is_of_the_first_entry_near_the_largest",
    ],
}  # fmt: skip


def test_each_defect_of_peers_has_its_tests() -> None:
    for tests in PEERS_DEFECTS.values():
        for module, name in (test.split("::") for test in tests):
            (path,) = Path(__file__).parents[1].rglob(f"{module}.py")
            source = path.read_text()
            assert re.search(rf"^def {name}\(", source, re.MULTILINE), name


# Oracles --------------------------------------------------------------------------------------------------------------

Weights = dict[str, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> Any:
    """What `make()` builds, always the same weights, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return make().double()


def function_of_theta(model: nn.Module, function: Callable[[Weights], Tensor]) -> tuple[Any, Tensor]:
    """`function` of the named weights as one of their flat vector, and that vector, in float64."""
    named = {name: weight.detach().double() for name, weight in model.named_parameters() if weight.requires_grad}

    def flat(theta: Tensor) -> Tensor:
        parts = theta.split([weight.numel() for weight in named.values()])
        return function({name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)})

    return flat, torch.cat([weight.reshape(-1) for weight in named.values()])


def dense_hessian(model: nn.Module, loss: Callable[[Weights], Tensor]) -> Tensor:
    return torch.autograd.functional.hessian(*function_of_theta(model, loss))


def dense_gauss_newton(model: nn.Module, outputs: Any, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """J'BJ of all the outputs at once, in any order and shape."""
    function, theta = function_of_theta(model, outputs)
    z = function(theta)
    J = torch.autograd.functional.jacobian(function, theta).reshape(z.numel(), -1)
    B = torch.autograd.functional.hessian(loss, z).reshape(z.numel(), z.numel())
    return J.T @ B @ J


def are_top_pairs(pairs: lh.curvature.Eigenpairs, H: Tensor, error: float = 1e-9) -> None:
    """Values of the dense decomposition; orthonormal vectors whose residuals by the dense matrix are small."""
    exact = torch.linalg.eigvalsh(H).flip(0)
    size = float(exact.abs().max())
    V = pairs.vectors.double()
    assert float((pairs.values - exact[: len(pairs)]).abs().max()) <= error * size
    assert float((V @ H - pairs.values[:, None] * V).norm(dim=1).max()) <= 10 * error * size
    assert float((V @ V.T - torch.eye(len(V))).abs().max()) <= 1e-6


def is_product(product: Tensor, matrix: Tensor, v: Tensor, error: float = 1e-11) -> None:
    assert float((product - matrix @ v).norm()) <= error * float(matrix.norm() * v.norm())


def state_of_the_user(model: nn.Module) -> list[Any]:
    """Weights, gradients, buffers, flags, hooks and the global random states."""
    weights = [part for weight in model.parameters() for part in (weight, weight.grad, weight.requires_grad)]
    flags = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    states = [random.getstate(), torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1])]  # noqa: NPY002
    return copy.deepcopy([*weights, *model.buffers(), *flags, *states])


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Nothing of the user's changes inside, also if an error leaves."""
    before = state_of_the_user(model)
    try:
        yield
    finally:
        for ours, theirs in zip(before, state_of_the_user(model), strict=True):
            assert type(ours) is type(theirs)
            assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
            assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None)


# Loaders --------------------------------------------------------------------------------------------------------------

X, SHIFT = draw(8, 3), draw(8, 1, seed=1)
CLASSES = torch.tensor([0, 2, 1, 2, 1, 0, 0, 1])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        out: Tensor = self.b((self.a(x) + shift).tanh())
        return out


def by_hand(w: Weights) -> Tensor:
    z = (X @ w["a.weight"].T + w["a.bias"] + SHIFT).tanh() @ w["b.weight"].T + w["b.bias"]
    return -z.log_softmax(1)[range(8), CLASSES].mean()


class Examples(Dataset[dict[str, Any]]):
    """Dictionaries of arrays and numbers, as data sets often hold them."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": X[i].numpy(), "labels": int(CLASSES[i]), "shift": SHIFT[i].numpy()}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(X, SHIFT, CLASSES, strict=True)


@pytest.fixture(scope="module")
def transformers() -> Any:
    """Nothing is downloaded: every model here is made from its configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import transformers

        return transformers


def ragged(make: Callable[..., Any]) -> list[Any]:
    return [make(X[part], SHIFT[part], CLASSES[part]) for part in (slice(0, 5), slice(5, 8))]


def as_dict(x: Tensor, shift: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {"labels": labels, "shift": shift, "x": x}


LOADERS: dict[str, Callable[[], Any]] = {
    "several inputs, ragged": lambda: ragged(lambda *parts: parts),
    "generator of ordered dicts": lambda: iter(ragged(lambda *parts: OrderedDict(as_dict(*parts)))),
    "shuffled": lambda: DataLoader(TensorDataset(X, SHIFT, CLASSES), batch_size=5, shuffle=True),
    "shuffled dicts": lambda: DataLoader(Examples(), batch_size=3, shuffle=True),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders(name: str) -> None:
    model = seeded(TwoInputs)
    with untouched(model):
        pairs = lh.top_hessian_eigs(model, LOADERS[name](), k=4, tol=1e-10)
    are_top_pairs(pairs, dense_hessian(model, by_hand))


def test_data_that_do_not_fit() -> None:
    model = seeded(TwoInputs)
    with untouched(model):
        pairs = lh.top_hessian_eigs(model, DataLoader(Stream(), batch_size=5), k=4, tol=1e-10, cache=False)
    are_top_pairs(pairs, dense_hessian(model, by_hand))


def test_a_shuffled_loader_cannot_be_read_again_and_again() -> None:
    with pytest.raises(RuntimeError, match="gave other batches on a second pass"):
        lh.top_hessian_eigs(seeded(TwoInputs), LOADERS["shuffled"](), cache=False)


def test_batch_encodings(transformers: Any) -> None:
    """By keyword into the model with a `loss_fn`; as they are, attributes and all, into a `batch_loss`."""
    model = seeded(TwoInputs)
    batches = ragged(lambda *parts: transformers.BatchEncoding(as_dict(*parts)))

    def takes_out(model: Any, batch: Any) -> tuple[Tensor, int]:
        assert isinstance(batch, transformers.BatchEncoding)
        labels = batch.pop("labels")
        return F.cross_entropy(model(batch.x, batch.shift), labels, reduction="sum"), len(labels)

    H = dense_hessian(model, by_hand)
    are_top_pairs(lh.top_hessian_eigs(model, batches, k=4, tol=1e-10), H)
    are_top_pairs(lh.top_hessian_eigs(model, batches, k=4, tol=1e-10, batch_loss=takes_out, cache=False), H)
    assert [list(batch) for batch in batches] == [["labels", "shift", "x"]] * 2


# Models ---------------------------------------------------------------------------------------------------------------

SEQUENCES = draw(8, 2, 3, seed=2)
REAL = draw(8, seed=3)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.dropout = nn.Linear(3, 12), nn.Linear(4, 3), 0.1

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.into(x).view(*x.shape[:2], 2, 6).transpose(1, 2).split(2, dim=3)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2)[:, -1])
        return out


def attention_by_hand(w: Weights, x: Tensor = SEQUENCES) -> Tensor:
    q, k, v = (x @ w["into.weight"].T + w["into.bias"]).view(8, 2, 2, 6).transpose(1, 2).split(2, dim=3)
    scores = (q @ k.mT / 2**0.5).masked_fill(torch.ones(2, 2).triu(1).bool(), -torch.inf)
    return (scores.softmax(3) @ v).transpose(1, 2).flatten(2)[:, -1] @ w["out.weight"].T + w["out.bias"]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.lstm(x)[0][:, -1])
        return out


def lstm_by_hand(w: Weights) -> Tensor:
    h = c = torch.zeros(8, 2, dtype=torch.float64)
    for x in SEQUENCES.unbind(1):
        gates = x @ w["lstm.weight_ih_l0"].T + h @ w["lstm.weight_hh_l0"].T
        i, f, g, o = (gates + w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"]).split(2, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return h @ w["out.weight"].T + w["out.bias"]


def normalised() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Sigmoid(), nn.Linear(3, 3))
    model[2].running_mean, model[2].running_var = torch.arange(3.0), torch.tensor([0.5, 1.0, 2.0])
    return model


def batch_norm_by_hand(w: Weights) -> Tensor:
    h = SEQUENCES.flatten(1) @ w["1.weight"].T + w["1.bias"] - torch.arange(3)
    h = h / (torch.tensor([0.5, 1, 2], dtype=torch.float64) + 1e-5).sqrt() * w["2.weight"] + w["2.bias"]
    return h.sigmoid() @ w["4.weight"].T + w["4.bias"]


class Tied(nn.Module):
    """One weight under two names, one that is never used, one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.a, self.b = nn.Parameter(torch.ones(2)), nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.a.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x[:, 0]).tanh())
        return out


def tied_by_hand(w: Weights) -> Tensor:
    bias = seeded(Tied).a.bias.detach()
    return (SEQUENCES[:, 0] @ w["a.weight"].T + bias).tanh() @ w["a.weight"].T + w["b.bias"]


def cross_entropy(z: Tensor) -> Tensor:
    return -z.log_softmax(1)[range(8), CLASSES].mean()


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[Weights], Tensor]]] = {
    "attention": (Attention, attention_by_hand),
    "lstm": (Recurrent, lstm_by_hand),
    "batch norm": (normalised, batch_norm_by_hand),
    "tied and unused": (Tied, tied_by_hand),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    """As a training loop leaves them, gradients and all; studied as evaluated."""
    make, outputs = MODELS[name]
    model = seeded(make).eval()
    F.cross_entropy(model(SEQUENCES), CLASSES).backward()
    model.train()
    H = dense_hessian(model, lambda w: cross_entropy(outputs(w)))
    G = dense_gauss_newton(model, outputs, cross_entropy)
    batches = [(SEQUENCES[:5], CLASSES[:5]), (SEQUENCES[5:], CLASSES[5:])]
    with untouched(model):
        are_top_pairs(lh.top_hessian_eigs(model, batches, k=4, tol=1e-10), H)
        v = draw(len(H), seed=4)
        is_product(lh.hessian(lh.Objective(model, batches, engine="kept graph")) @ v, H, v)
        is_product(lh.gauss_newton(lh.Objective(model, batches)) @ v, G, v)
    assert name != "tied and unused" or not H[:2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_every_precision(dtype: torch.dtype) -> None:
    """Against the float64 Hessian at the same rounded weights; in float64 every other test here is."""
    model, x = seeded(Attention).to(dtype), SEQUENCES.to(dtype)
    H = dense_hessian(model, lambda w: cross_entropy(attention_by_hand(w, x.double())))
    with untouched(model):
        pairs = lh.top_hessian_eigs(model, [(x[:5], CLASSES[:5]), (x[5:], CLASSES[5:])], k=4, tol=1e-5)
    assert pairs.vectors.dtype == torch.float32
    are_top_pairs(pairs, H, 1e-5)


# A batch_loss of one's own --------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.value = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x).tanh()
        return {"classes": self.classes(h), "value": self.value(h)[:, 0]}


def two_losses(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    out = model(batch["x"])
    errors = F.cross_entropy(out["classes"], batch["y"], reduction="sum", label_smoothing=0.1)
    return errors + 0.3 * F.mse_loss(out["value"], batch["r"], reduction="sum"), len(batch["y"])


def with_a_penalty(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    total, count = two_losses(model, batch)
    return total + 0.05 * count * sum(w.pow(4).sum() for w in model.body.parameters()), count


def two_heads_by_hand(w: Weights) -> Tensor:
    h = (X @ w["body.weight"].T + w["body.bias"]).tanh()
    return torch.cat([h @ w["classes.weight"].T + w["classes.bias"], h @ w["value.weight"].T + w["value.bias"]], dim=1)


def two_losses_by_hand(z: Tensor) -> Tensor:
    smooth = 0.9 * F.one_hot(CLASSES, 3).double() + 0.1 / 3
    return -(smooth * z[:, :3].log_softmax(1)).sum(1).mean() + 0.3 * (z[:, 3] - REAL).square().mean()


def test_two_heads_and_a_penalty() -> None:
    model = seeded(TwoHeads)
    parts = (slice(0, 5), slice(5, 8))
    batches = [{"x": X[part], "y": CLASSES[part], "r": REAL[part], "split": "train"} for part in parts]

    def penalised(w: Weights) -> Tensor:
        penalty = w["body.weight"].pow(4).sum() + w["body.bias"].pow(4).sum()
        return two_losses_by_hand(two_heads_by_hand(w)) + 0.05 * penalty

    with untouched(model):
        pairs = lh.top_hessian_eigs(model, batches, k=4, tol=1e-10, batch_loss=with_a_penalty)
        are_top_pairs(pairs, dense_hessian(model, penalised))
        loss, v = lh.Objective(model, batches, batch_loss=two_losses), draw(len(pairs.vectors[0]), seed=4)
        G = dense_gauss_newton(model, two_heads_by_hand, two_losses_by_hand)
        is_product(lh.gauss_newton(loss) @ v, G, v)
        with pytest.raises(ValueError, match="reaches the weights past the model's outputs"):
            lh.gauss_newton(lh.Objective(model, batches, batch_loss=with_a_penalty))


# GPT-2 ----------------------------------------------------------------------------------------------------------------

LENGTHS = torch.tensor([6, 4, 5, 6, 6, 3, 2, 4])
TOKENS = torch.randint(1, 7, (8, 6), generator=torch.Generator().manual_seed(3))
IS_TOKEN = torch.arange(6) < LENGTHS[:, None]
LABELS = TOKENS.masked_fill(~IS_TOKEN | (torch.arange(6) < 3) & (torch.arange(8) < 3)[:, None], -100)  # three prompts


def gpt2(transformers: Any, kind: str = "GPT2LMHeadModel", **settings: Any) -> Any:
    """196 weights, dropout 0.1, its output weight tied to the embedding; in training mode."""
    config = transformers.GPT2Config(
        vocab_size=7, n_positions=6, n_embd=4, n_layer=1, n_head=2, n_inner=4, initializer_range=0.4,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, **settings,
    )  # fmt: skip
    return seeded(lambda: getattr(transformers, kind)(config)).train()


def padded(transformers: Any, examples: slice, labels: Tensor = LABELS) -> Any:
    """A batch as a collator makes it, no longer than its longest sequence."""
    length = int(LENGTHS[examples].max())
    parts = {"input_ids": TOKENS.where(IS_TOKEN, 0), "attention_mask": IS_TOKEN.long(), "labels": labels}
    cut = {name: part[examples, :length] if part.ndim == 2 else part[examples] for name, part in parts.items()}
    return transformers.BatchEncoding(cut)


def token_loss(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    labels = batch.labels[:, 1:]
    return F.cross_entropy(logits.mT, labels, ignore_index=-100, reduction="sum"), (labels != -100).sum()


def own_loss(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """The mean over the tokens that GPT-2 itself returns."""
    count = (batch["labels"][:, 1:] != -100).sum()
    return model(**batch).loss * count, count


@pytest.fixture(scope="module")
def language(transformers: Any) -> tuple[Any, Tensor, Tensor]:
    """A model, its dense Hessian and Gauss-Newton matrix: all tokens at once, attention without fused kernels."""
    eager = gpt2(transformers, attn_implementation="eager").eval()
    counted = LABELS[:, 1:] != -100

    def logits(w: Weights) -> Tensor:
        out = functional_call(eager, w, (), {"input_ids": TOKENS, "attention_mask": IS_TOKEN.long()})
        return out.logits[:, :-1][counted]

    def loss(z: Tensor) -> Tensor:
        return -z.log_softmax(1)[range(int(counted.sum())), LABELS[:, 1:][counted]].mean()

    return gpt2(transformers), dense_hessian(eager, lambda w: loss(logits(w))), dense_gauss_newton(eager, logits, loss)


def test_gpt2_is_weighted_by_tokens(transformers: Any, language: tuple[Any, Tensor, Tensor]) -> None:
    model, H, G = language
    batches = [padded(transformers, part) for part in (slice(0, 5), slice(5, 8))]
    assert [batch.input_ids.shape for batch in batches] == [(5, 6), (3, 4)]
    v = draw(len(H), seed=4)
    with untouched(model):
        are_top_pairs(lh.top_hessian_eigs(model, batches, k=4, tol=1e-10, batch_loss=token_loss), H)
        loss = lh.Objective(model, batches, batch_loss=token_loss)
        is_product(lh.hessian(loss) @ v, H, v)
        is_product(lh.gauss_newton(loss) @ v, G, v)
        whole = lh.Objective(model, [padded(transformers, slice(0, 8))], batch_loss=token_loss)
        is_product(lh.hessian(whole) @ v, H, v)
    theta = loss.theta0
    parts = [lh.Objective(model, [batch], batch_loss=token_loss)(theta) for batch in batches]
    assert abs(float(loss(theta) - whole(theta))) < 1e-14
    assert abs(float(loss(theta) - sum(parts) / 2)) > 0.01  # what batches of equal weight would give
    assert abs(float(loss(theta) - (5 * parts[0] + 3 * parts[1]) / 8)) > 0.01  # and those weighted by examples


def test_gpt2_with_its_own_loss_and_data_that_do_not_fit(
    transformers: Any, language: tuple[Any, Tensor, Tensor]
) -> None:
    """Its loss is computed in float32 whatever its weights."""
    model, H, _ = language
    model = copy.deepcopy(model).float()

    def collate(rows: list[int]) -> Any:
        return padded(transformers, slice(rows[0], rows[-1] + 1))

    loader = DataLoader(range(8), batch_size=5, collate_fn=collate)
    with untouched(model):
        pairs = lh.top_hessian_eigs(model, loader, k=4, tol=1e-5, batch_loss=own_loss, cache=False)
        are_top_pairs(pairs, H, 5e-5)
        with pytest.raises(ValueError, match=r"not the model's own \.loss"):
            lh.gauss_newton(lh.Objective(model, loader, batch_loss=own_loss))
        with pytest.raises(ValueError, match=r"targets have shape \(5, 6\).*\n.*need loss_fn= or batch_loss="):
            lh.top_hessian_eigs(model, loader)


def test_gpt2_as_a_classifier_needs_no_loss(transformers: Any) -> None:
    model = gpt2(transformers, "GPT2ForSequenceClassification", num_labels=3).bfloat16()
    batches = [padded(transformers, part, CLASSES) for part in (slice(0, 5), slice(5, 8))]
    eager = gpt2(transformers, "GPT2ForSequenceClassification", num_labels=3, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())

    def loss(w: Weights) -> Tensor:
        return cross_entropy(
            functional_call(eager, w, (), {"input_ids": TOKENS.where(IS_TOKEN, 0), "attention_mask": IS_TOKEN}).logits
        )

    with untouched(model):
        are_top_pairs(lh.top_hessian_eigs(model, batches, k=4, tol=1e-5), dense_hessian(eager, loss), 5e-5)


# Peers' defects -------------------------------------------------------------------------------------------------------


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * self.b * x


def test_every_end_of_a_saddle_on_paper() -> None:
    """Mean of (y - abx)^2 - (a^2 + b^2) / 5: H = [[2 s b^2 - 0.4, 4 s ab - 2 t], [., 2 s a^2 - 0.4]]."""
    x, y = X[:, 0], 2 * X[:, 0] + 0.1 * REAL
    s, t = float(x.square().mean()), float((x * y).mean())
    model = Product().double()
    a, b = model.a.item(), model.b.item()

    def shrinking(model: Any, batch: Any) -> tuple[Tensor, int]:
        error = (batch[1] - model(batch[0])).square().sum()
        return error - 0.2 * len(batch[0]) * (model.a.square() + model.b.square()), len(batch[0])

    middle, offdiagonal = s * (a * a + b * b) - 0.4, 4 * s * a * b - 2 * t
    radius = ((s * (a * a - b * b)) ** 2 + offdiagonal**2) ** 0.5
    high, low = middle + radius, middle - radius
    assert 0 < high < -low
    loss = lh.Objective(model, [(x[:5], y[:5]), (x[5:], y[5:])], batch_loss=shrinking)
    for which, expected in (("LA", [high, low]), ("SA", [low, high]), ("LM", [low, high])):
        for k in (1, 2):
            pairs = lh.top_hessian_eigs(loss, k=k, which=which, tol=1e-10)
            assert np.abs(pairs.values.numpy() - expected[:k]).max() < 1e-9


def test_no_ghosts_past_50_steps() -> None:
    """A third of all pairs, from two seeds: no value twice, and the same signs."""
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))

    def loss(w: Weights) -> Tensor:
        h = (SEQUENCES.flatten(1) @ w["1.weight"].T + w["1.bias"]).tanh()
        return cross_entropy(h @ w["3.weight"].T + w["3.bias"])

    H = dense_hessian(model, loss)
    objective = lh.Objective(model, [(SEQUENCES[:5], CLASSES[:5]), (SEQUENCES[5:], CLASSES[5:])])
    first, second = (lh.top_hessian_eigs(objective, k=35, tol=1e-10, seed=seed) for seed in (0, 5))
    assert min(first.num_steps, second.num_steps) > 50
    for pairs in (first, second):
        are_top_pairs(pairs, H)
    is_apart = -first.values.diff() > 1e-3 * first.scale
    is_simple = is_apart[:-1] & is_apart[1:]  # of all but the outermost
    assert int(is_simple.sum()) > 8
    assert float((first.vectors - second.vectors)[1:-1][is_simple].abs().max()) < 1e-6


def test_a_model_in_training_is_left_as_it_was() -> None:
    """Mixed flags, gradients, running statistics: after an error too. (After success: every test above.)"""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Tanh(), nn.Linear(4, 3)).double()
    model(X).square().sum().backward()
    model[4].bias.grad = None
    model[3].eval()
    with untouched(model), pytest.raises(lh.NotConvergedError):
        lh.top_hessian_eigs(model, (X, CLASSES), k=4, tol=1e-12, max_products=6)
    assert [model.training, model[3].training] == [True, False]
