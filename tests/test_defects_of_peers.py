"""Ways in which tools for the same job were found to be wrong, one test each, against our calls.

Oracles: Hessians on paper (softmax regression, diagonal and quadratic losses), `torch.autograd.functional.hessian` of
the whole data set at once, and `testing.dense_hessian`. Where the defect can be re-created in a few lines, the test
does so and asserts that its answer is far from the oracle: a test that the defect passes would prove nothing.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowhanging as lh
from lowhanging.testing import dense_hessian

TOL = 1e-9


def regression(num: int = 8) -> tuple[nn.Linear, Tensor, Tensor]:
    """Softmax regression: 4 inputs of growing size (so that batches differ), 3 classes; 15 weights."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num, 4, generator=generator, dtype=torch.float64) * torch.linspace(0.5, 3, num)[:, None]
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return model, inputs, torch.arange(num) % 3


def closed_form(model: nn.Linear, inputs: Tensor) -> Tensor:
    """Mean over examples of (diag(q) - q q^T) (x) x x^T, with the bias as a fifth input; in the order of theta."""
    with torch.no_grad():
        q = model(inputs).softmax(dim=1)
    extended = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
    curvature = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
    H = torch.einsum("nab,ni,nj->aibj", curvature, extended, extended).reshape(15, 15) / len(inputs)
    order = [5 * a + i for a in range(3) for i in range(4)] + [5 * a + 4 for a in range(3)]
    return H[order][:, order]


def tanh_net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def tanh_data(num: int = 13) -> tuple[Tensor, Tensor]:
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(num) % 3


def spectrum(H: Tensor) -> np.ndarray:
    return np.linalg.eigvalsh(((H + H.T) / 2).numpy())[::-1].copy()


def distance(values: object, exact: object) -> float:
    """Largest difference, relative to the largest exact magnitude."""
    exact = np.asarray(exact)
    return float(np.abs(np.asarray(values) - exact).max() / np.abs(exact).max())


def quadratic(values: object, seed: int = 0) -> Tensor:
    """A dense symmetric matrix with these eigenvalues."""
    given = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(given), len(given), generator=generator, dtype=torch.float64))[0]
    H = (basis * given) @ basis.T
    return (H + H.T) / 2


# The loss -------------------------------------------------------------------------------------------------------------


def test_ragged_last_batch() -> None:
    """The defect: the mean of batch means weighs the examples of a smaller last batch more."""
    model, inputs, targets = regression()
    exact = spectrum(closed_form(model, inputs))
    defective = (closed_form(model, inputs[:5]) + closed_form(model, inputs[5:])) / 2
    assert distance(spectrum(defective), exact) > 1e-2
    ragged = [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])]
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=5)
    by_default = lh.top_hessian_eigs(model, loader, k=15, tol=TOL)
    as_they_come, cut_again = lh.Objective(model, ragged, cache=False), lh.Objective(model, loader, micro_batch=3)
    for loss in (as_they_come, cut_again):
        assert len({len(targets) for _, targets in loss.batches}) == 2  # ragged inside, too
    for pairs in (by_default, *(lh.top_hessian_eigs(loss, k=15, tol=TOL) for loss in (as_they_come, cut_again))):
        assert distance(pairs.values, exact) < 1e-12


def test_shuffled_loader() -> None:
    """The defect: each product reads the loader anew, so products of one search belong to different matrices."""
    model, inputs, targets = regression()
    exact = closed_form(model, inputs)

    def loader(drop_last: bool = False) -> DataLoader:
        return DataLoader(TensorDataset(inputs, targets), batch_size=5, shuffle=True, drop_last=drop_last)

    reread = loader(drop_last=True)  # what the defect sees: another five of the eight each time
    seen = [spectrum(closed_form(model, x)) for _ in range(4) for x, _ in reread]
    assert max(distance(one, seen[0]) for one in seen[1:]) > 1e-2
    state = torch.get_rng_state()
    assert distance(lh.top_hessian_eigs(model, loader(), k=15, tol=TOL).values, spectrum(exact)) < 1e-12
    assert torch.equal(torch.get_rng_state(), state)

    H = lh.hessian(lh.Objective(model, loader(drop_last=True)))  # five examples, whichever: but always the same five
    v = torch.linspace(-1, 1, 15, dtype=torch.float64)
    products = [H @ v for _ in range(4)]
    subset = torch.cat([batch[0] for batch in H.loss.batches])
    assert len(subset) == 5
    assert all(distance(product, closed_form(model, subset) @ v) < 1e-12 for product in products)


def test_ignore_index() -> None:
    """The defect: a loss that ignores targets is averaged as if every target, or every batch, counted alike."""
    model, inputs, targets = regression(12)
    targets = targets.clone()
    targets[[0, 1, 2, 3, 9]] = -100  # one target left in the first batch of five, five in the second, one in the third
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])

    def mean(theta: Tensor, part: slice) -> Tensor:
        logits = inputs[part] @ theta[:12].view(3, 4).T + theta[12:]
        return F.cross_entropy(logits, targets[part], ignore_index=-100)

    def dense(part: slice) -> Tensor:
        return torch.autograd.functional.hessian(lambda theta: mean(theta, part), weights)

    parts = [slice(0, 5), slice(5, 10), slice(10, 12)]
    exact = spectrum(dense(slice(None)))
    by_batch = sum(dense(part) for part in parts) / 3
    by_target = sum((part.stop - part.start) * dense(part) for part in parts) / 12
    assert min(distance(spectrum(wrong), exact) for wrong in (by_batch, by_target)) > 1e-2

    def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        total = F.cross_entropy(model(batch[0]), batch[1], ignore_index=-100, reduction="sum")
        return total, (batch[1] != -100).sum()

    batches = [(inputs[part], targets[part]) for part in parts]
    for settings in ({}, {"cache": False}, {"micro_batch": 5}):
        loss = lh.Objective(model, batches, batch_loss=batch_loss, **settings)
        assert distance(lh.top_hessian_eigs(loss, k=15, tol=TOL).values, exact) < 1e-12
    assert len(list(loss.batches)) == 3  # and in one of them every target is ignored
    with pytest.raises(ValueError, match="batch_loss"):  # a mean that hides its count is refused, not guessed
        lh.top_hessian_eigs(model, batches, k=3, loss_fn=nn.CrossEntropyLoss(ignore_index=-100))


# The search -----------------------------------------------------------------------------------------------------------


def test_ghosts_past_50_steps() -> None:
    """The defect: without reorthogonalization, large eigenvalues come again and again in long runs."""
    exact = np.r_[100.0 / np.arange(1, 9), 1 + np.linspace(1, 0, 392) ** 2]
    entries = torch.from_numpy(exact).float()

    steps, diagonal, offdiagonal = 150, [], []
    row, before, beta = F.normalize(torch.randn(400, generator=torch.Generator().manual_seed(0)), dim=0), 0.0, 0.0
    for _ in range(steps):
        image = entries * row - beta * before
        diagonal.append(float(image @ row))
        image = image - diagonal[-1] * row
        before, beta = row, float(image.norm())
        offdiagonal.append(beta)
        row = image / beta
    tridiagonal = np.diag(diagonal) + np.diag(offdiagonal[:-1], 1) + np.diag(offdiagonal[:-1], -1)
    assert distance(np.linalg.eigvalsh(tridiagonal)[::-1][:20], exact[:20]) > 0.1  # a second 100, and more

    pairs = lh.top_eigs(torch.diag(entries), k=20, tol=2e-6)
    assert pairs.num_steps > 50
    assert distance(pairs.values, exact[:20]) < 4e-6
    overlaps = pairs.vectors.double() @ pairs.vectors.double().T
    assert float((overlaps - torch.eye(20)).abs().max()) < 1e-5
    assert pairs.vectors[:8].abs().argmax(dim=1).tolist() == list(range(8))


@pytest.mark.parametrize(
    "exact", [np.ones(12), np.r_[3.0, 1.0, np.zeros(10)], np.r_[2.0, 2.0, 2.0, np.full(9, -1.0)], np.zeros(12)]
)
def test_fewer_than_k_pairs(exact: np.ndarray) -> None:
    """The defect: where the Krylov space of the start is smaller than k, fewer pairs come back, without a word."""
    A = quadratic(exact)
    loss = lh.FunctionObjective(lambda theta: 0.5 * theta @ A @ theta, torch.zeros(12, dtype=torch.float64))
    assert len(np.unique(exact)) < 7  # a Krylov space has one vector for each distinct eigenvalue
    pairs = lh.top_eigs(lh.hessian(loss), k=7, tol=TOL)
    assert len(pairs) == len(pairs.vectors) == len(pairs.residuals) == 7
    assert np.abs(pairs.values.numpy() - exact[:7]).max() < 1e-12
    assert float((pairs.vectors @ pairs.vectors.T - torch.eye(7)).abs().max()) < 1e-12
    assert float((pairs.vectors @ A - pairs.values[:, None] * pairs.vectors).abs().max()) < 1e-12
    with pytest.raises(ValueError, match="k is 13, expected an integer from 1 to 12"):
        lh.top_eigs(lh.hessian(loss), k=13)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_unnormalised_deflation(scale: float) -> None:
    """The defect: dividing by |w| + 1e-6 leaves short "unit" vectors of a flat loss; removing them removes a part."""
    shape = np.r_[8.0, 6.0, 5.0, 3.0, np.linspace(1, 0, 20)]
    A, start = quadratic(scale * shape), torch.ones(24, dtype=torch.float64)
    image = A @ start
    short = image / (image.norm() + 1e-6)
    assert (abs(float(short.norm()) - 1) > 0.5) == (scale < 1e-6)

    loss = lh.FunctionObjective(lambda theta: 0.5 * theta @ A @ theta, start)
    pairs = lh.top_eigs(lh.hessian(loss), k=4, tol=TOL)
    assert distance(pairs.values, scale * shape[:4]) < 1e-12
    assert float((pairs.vectors @ pairs.vectors.T - torch.eye(4)).abs().max()) < 1e-12
    # With a probe for every dimension that is left, a deflated spectrum has no error of chance: nothing of the four is
    # left in the bulk, and the trace is that of the matrix.
    density = lh.spectral_density(lh.hessian(loss), deflate=pairs, num_probes=20, num_steps=20)
    assert float(density.nodes.max()) < 1.001 * scale
    bulk = float((density.weights * density.nodes.nan_to_num()).sum(dim=1).mean())
    assert abs(20 * bulk + float(density.spikes.sum()) - scale * shape.sum()) < 1e-9 * scale


def test_lm_that_is_la() -> None:
    """The defect: "largest magnitude" sorts what a search for the largest found, or the reverse."""
    exact = np.r_[5.0, 3.0, 2.0, np.linspace(1, -1, 40), -2.5, -4.0, -9.0]
    A = quadratic(exact)
    by_magnitude = [-9.0, 5.0, -4.0, 3.0, -2.5, 2.0]
    loss = lh.FunctionObjective(lambda theta: 0.5 * theta @ A @ theta, torch.zeros(46, dtype=torch.float64))
    for which, wanted in (("LM", by_magnitude), ("LA", exact[:6]), ("SA", exact[:-7:-1])):
        for method in ("lanczos", "dense"):
            pairs = lh.top_eigs(lh.hessian(loss), k=6, which=which, tol=TOL, method=method)
            assert distance(pairs.values, wanted) < 1e-12
            assert distance((pairs.vectors @ A * pairs.vectors).sum(dim=1), wanted) < 1e-12


def test_negative_eigenvalues_clamped() -> None:
    """The defect: what is below zero is cut off, as a Gauss-Newton matrix would have it, or its sign is lost."""
    model, data = tanh_net(), tanh_data()
    exact = spectrum(dense_hessian(model, data))
    assert exact[-1] < -0.02 * exact[0]
    p = len(exact)
    every = lh.top_hessian_eigs(model, data, k=p, tol=TOL)
    assert distance(every.values, exact) < 1e-12
    smallest = lh.top_hessian_eigs(model, data, k=3, which="SA", tol=TOL)
    assert distance(smallest.values, exact[:-4:-1]) < 1e-12
    assert abs(every.other_end - exact[-1]) < 1e-9
    density = lh.spectral_density(lh.hessian(lh.Objective(model, data)), num_probes=p, num_steps=p)
    assert abs(float(density.nodes.min()) - exact[-1]) < 1e-9


# The user's model, and the reader of the result ---------------------------------------------------------------------


def test_model_left_in_eval_mode_or_with_grad_set() -> None:
    """The defect: `model.eval()` inside the tool, gradients written by `backward`, buffers moved by a forward pass."""
    inputs, targets = tanh_data()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    model.train()
    model[1].eval()  # mixed flags: they can't be restored by model.train()
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    model[4].bias.requires_grad_(False)
    grads = {name: weight.grad for name, weight in model.named_parameters()}
    copies = {name: None if grad is None else grad.clone() for name, grad in grads.items()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    wishes = [weight.requires_grad for weight in model.parameters()]

    def raising(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("a loss of the user's")

    pairs = lh.top_hessian_eigs(model, (inputs, targets), k=3, tol=TOL)
    with pytest.raises(lh.NotConvergedError):
        lh.top_hessian_eigs(model, (inputs, targets), k=3, tol=TOL, max_products=5)
    with pytest.raises(Exception, match="a loss of the user's"):
        lh.top_hessian_eigs(model, (inputs, targets), k=3, loss_fn=raising)

    assert [module.training for module in model.modules()] == flags
    assert [weight.requires_grad for weight in model.parameters()] == wishes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for name, weight in model.named_parameters():
        assert weight.grad is grads[name]
        assert weight.grad is None or torch.equal(weight.grad, copies[name])
    # And the flags were not merely left alone: dropout and batch statistics are off in the Hessian.
    assert distance(pairs.values, spectrum(dense_hessian(model.eval(), (inputs, targets)))[:3]) < 1e-9


def test_sign_depending_on_the_seed() -> None:
    """The defect: an eigenvector comes with either sign, as the random start has it; so does every slice along it."""
    model, data = tanh_net(), tanh_data()
    H = dense_hessian(model, data)
    values, columns = np.linalg.eigh(((H + H.T) / 2).numpy())
    assert np.diff(values[-6:]).min() > 1e-3 * values[-1]  # simple eigenvalues: only the sign is free
    rows = columns.T[::-1][:5].copy()
    for row in rows:  # the rule of docs/notation.md
        leading = np.flatnonzero(np.abs(row) >= 0.99 * np.abs(row).max())[0]
        row *= np.sign(row[leading])
    reordered = (data[0].flip(0), data[1].flip(0))
    for given in (data, reordered):
        loss = lh.Objective(model, given)
        for seed in range(6):
            found = lh.top_hessian_eigs(loss, k=5, tol=1e-11, seed=seed)
            assert np.abs(found.vectors.numpy() - rows).max() < 1e-6
