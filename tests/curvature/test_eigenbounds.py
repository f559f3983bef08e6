"""How far a Ritz value may be off: the formulas on numbers written by hand, and against matrices known in full.

The bounds of float32 networks are held against the dense Hessian in float64 (`testing.dense_hessian`, another way of
differentiation), those of the Gauss-Newton matrix against J' B J from the Jacobian of the outputs in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import lowhanging as lh
from eigen_scene import Counted, symmetric
from lowhanging.curvature import operators
from lowhanging.curvature.eigenpairs import Eigenpairs
from lowhanging.curvature.eigensolver import error_bounds, in_clusters

VALUES, RESIDUALS = np.array([5.0, 3.0, 2.9]), np.array([1e-2, 2e-2, 1e-3])
OTHERS, BARS = np.array([5.0, 3.0, 2.9, 1.0]), np.array([9.0, 9.0, 9.0, 1.2])  # of the first three, residuals count


def test_a_value_alone_is_off_by_its_residual_squared_over_the_gap_and_the_noise() -> None:
    noise = 1e-3
    found = error_bounds(VALUES, RESIDUALS, noise, OTHERS, BARS)
    gaps = [2.0 - 2e-2, 0.1 - 1e-3, 0.1 - 2e-2]  # to the neighbour, less what that one may be off
    expected = [(r + noise) ** 2 / gap + noise for r, gap in zip(RESIDUALS, gaps, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_where_another_may_be_as_near_the_residual_is_all_that_is_known() -> None:
    values, residuals = np.array([5.0, 4.99]), np.array([1e-2, 2e-3])
    found = error_bounds(values, residuals, 1e-3, values, residuals)
    assert found.tolist() == pytest.approx([1.1e-2, 3e-3], rel=1e-12)  # gaps 0.008 and 0: (3e-3)^2 / 0 is no bound
    exact = error_bounds(values, np.zeros(2), 0.0, values, np.zeros(2), rounding=1e-7)
    assert (exact >= 5e-7).all()  # never less than what the numbers can say
    assert (exact <= 5.1e-7).all()


def test_bounds_hold_for_perturbed_vectors_of_a_known_matrix() -> None:
    rng = np.random.default_rng(0)
    for size in (1e-1, 1e-3, 1e-6):
        eigenvalues = np.sort(rng.normal(size=8))[::-1]
        vectors = np.linalg.qr(np.eye(8) + size * rng.normal(size=(8, 8)))[0].T  # near the axes
        values = (vectors**2) @ eigenvalues
        residuals = np.linalg.norm(vectors * eigenvalues - values[:, None] * vectors, axis=1)
        order = np.argsort(-values)
        values, residuals = values[order], residuals[order]
        bounds = error_bounds(values, residuals, 0.0, values, residuals)
        nearest = np.abs(values[:, None] - eigenvalues).min(axis=1)
        assert (nearest <= bounds).all()
        assert (bounds <= residuals + 1e-13).all()
        if size < 1e-2:
            assert (bounds < 0.1 * residuals).any()  # the square is worth something


@pytest.mark.parametrize(("noise", "clustered"), [(0.0, False), (1e-2, False), (1.1e-2, True)])
def test_neighbours_are_told_apart_beyond_both_residuals_and_twice_the_noise(noise: float, clustered: bool) -> None:
    values, residuals = np.array([5.0, 4.95]), np.array([1e-2, 1.9e-2])  # 0.05 apart, 0.029 of it uncertain
    others, bars = np.array([5.0, 4.95, 1.0]), np.array([0.0, 0.0, 0.5])
    assert in_clusters(values, residuals, noise, others, bars).tolist() == [clustered] * 2
    # The residual of the neighbour counts as much as one's own, also of one outside the first k.
    assert in_clusters(values[:1], residuals[:1], noise, others, bars).tolist() == [False]
    assert in_clusters(values[:1], residuals[:1], noise, others, np.array([0, 1.9e-2, 0])).tolist() == [clustered]


# ---- float32, where the loss itself is rounded ----------------------------------------------------------------------


class Cancelling(nn.Module):
    """Adds a large number and takes it away again, after the first layer or at the end: in float32 digits are lost."""

    def __init__(self, size: float, *, at_the_end: bool):
        super().__init__()
        self.inner, self.outer, self.size, self.at_the_end = nn.Linear(5, 8), nn.Linear(8, 3), size, at_the_end

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        if self.at_the_end:
            return (self.outer(hidden) + self.size) - self.size
        return self.outer((hidden + self.size) - self.size)


def stack_of(*sizes: int, act: type[nn.Module] = nn.Tanh, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), *([nn.LayerNorm(b)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 3))


def scaled(factor: float) -> nn.Sequential:
    """The first weights times a factor, the last ones by it."""
    model = stack_of(5, 10)
    with torch.no_grad():
        model[0].weight.mul_(factor)
        model[2].weight.div_(factor)
    return model


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: stack_of(5, 10),
    "deep": lambda: stack_of(5, *[6] * 9),
    "deep, normed": lambda: stack_of(5, 6, 6, 6, norm=True),
    "ReLU": lambda: stack_of(5, 10, 10, act=nn.ReLU),
    "first layer x 100": lambda: scaled(100.0),
    "first layer x 0.01": lambda: scaled(0.01),
    "cancels 1e2": lambda: Cancelling(1e2, at_the_end=False),
    "cancels 1e4": lambda: Cancelling(1e4, at_the_end=False),
    "cancels 1e3 at the end": lambda: Cancelling(1e3, at_the_end=True),
    "cancels 1e5 at the end": lambda: Cancelling(1e5, at_the_end=True),
}


def rounded_loss(name: str, seed: int = 0, **options: Any) -> lh.Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, inputs, targets = NETS[name](), torch.randn(37, 5), torch.randint(0, 3, (37,))
        if seed == 2:  # large inputs, large errors
            options, inputs, targets = {"loss_fn": F.mse_loss}, 100 * inputs, 1e3 * torch.randn(37, 3)
        elif seed == 1:
            lh.train(model, (inputs, targets), num_epochs=30, progress=False)
        return lh.Objective(model, (inputs, targets), **options)


def nearest_of(pairs: Eigenpairs, exact: Tensor) -> Tensor:
    return (pairs.values[:, None] - exact[None]).abs().amin(1)


@pytest.mark.filterwarnings("ignore::lowhanging.errors.NotSmoothWarning")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_bounds_in_float32_hold_for_the_exact_loss(name: str, seed: int) -> None:
    loss = rounded_loss(name, seed)
    exact = torch.linalg.eigvalsh(lh.testing.dense_hessian(loss))
    for k, which, tol in ((1, "LA", 1e-3), (4, "LA", 1e-5), (10, "LA", 1e-4), (3, "SA", 1e-4), (6, "BE", 1e-4)):
        pairs = lh.top_hessian_eigs(loss, k=k, which=which, tol=tol, progress=False)
        assert (nearest_of(pairs, exact) <= pairs.bounds).all()
        if which == "LA":
            assert ((pairs.values - exact.flip(0)[:k]).abs() <= pairs.bounds).all()
        assert float(pairs.bounds.max()) < (tol + 3e-3) * pairs.scale  # and say something


def test_noise_shows_nothing_of_a_rounded_loss() -> None:
    """What `rounding` is for: repeated products agree to the bit, or nearly."""
    loss = rounded_loss("cancels 1e5 at the end")
    exact = torch.linalg.eigvalsh(lh.testing.dense_hessian(loss)).flip(0)
    pairs = lh.top_hessian_eigs(loss, k=4, tol=1e-5)
    errors = (pairs.values - exact[:4]).abs()
    assert float(errors.max()) > 100 * pairs.noise
    assert float(errors.max()) > float((pairs.bounds - pairs.rounding).max())  # without it they would not hold
    assert float(errors.max()) < pairs.rounding < 30 * float(errors.max())
    assert bool(pairs.is_converged.all())  # for the map as it is computed
    assert "FLOAT32 ROUNDING" in repr(pairs)
    double = lh.top_hessian_eigs(loss.double(), k=4, tol=1e-5)
    assert double.rounding == 0.0
    assert float((double.values - exact[:4]).abs().max()) < 1e-9 * double.scale
    assert "ROUNDING" not in repr(double)


def test_rounding_costs_two_products_at_most_beside_max_products() -> None:
    loss = rounded_loss("plain")
    alone = lh.top_hessian_eigs(loss.double(), k=5, tol=1e-4)
    for k, extra in ((1, 2), (2, 4), (5, 4)):  # two gradients for a product
        pairs = lh.top_hessian_eigs(loss, k=k, tol=1e-4)
        assert pairs.num_products == pairs.num_steps + pairs.num_probe_steps + 1 + extra
    tight = lh.top_hessian_eigs(loss, k=5, tol=1e-4, max_products=alone.num_products)
    assert tight.num_products == alone.num_products + 4


def test_a_kink_beside_the_point_does_not_spoil_the_bounds() -> None:
    """Central differences step over it; a product in float64 decides then."""
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1e-9, 0.7], [0.5, -0.2]]))
    with pytest.warns(lh.NotSmoothWarning):
        loss = lh.Objective(model, (inputs, torch.tensor([0, 1, 1])))
    H = lh.hessian(loss)
    exact = lh.testing.dense_hessian(loss)
    units = torch.eye(loss.num_params, dtype=torch.float64)
    assert float((H.exact_products(units, by_differences=True) - exact).abs().max()) > 1.0
    assert float((H.exact_products(units, by_differences=False) - exact).abs().max()) < 1e-12
    for k in (1, 4, 8):
        pairs = lh.top_eigs(H, k=k, tol=1e-5)
        assert pairs.rounding < 1e-5 * pairs.scale
        assert (nearest_of(pairs, torch.linalg.eigvalsh(exact)) <= pairs.bounds).all()


@pytest.mark.parametrize("name", ["plain", "cancels 1e4", "cancels 1e5 at the end"])
def test_bounds_of_other_matrices_of_a_rounded_loss(name: str) -> None:
    loss = rounded_loss(name)
    H = lh.testing.dense_hessian(loss)
    half = loss.at(loss.theta0)

    model = loss.model_at(loss.theta0).double()
    weights = dict(model.named_parameters())
    inputs = torch.cat([batch[0] for batch in loss.batches]).double()
    jacobians = jacrev(lambda w: functional_call(model, w, (inputs,)))(weights)
    J = torch.cat([jacobians[key].reshape(len(inputs), 3, -1) for key in weights], 2)  # (n, 3, p)
    q = model(inputs).softmax(1)
    B = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
    G = (torch.einsum("nap,nab,nbq->pq", J, B, J) / len(inputs)).detach()

    first = [key for key in weights if key.startswith(("0.", "inner."))]
    size = sum(weights[key].numel() for key in first)
    anchored = lh.objective.AnchoredObjective(half, half.theta0, 0.5)
    for operator, dense in (
        (lh.gauss_newton(loss), G),
        (lh.hessian(loss, parameters=first), H[:size, :size]),
        (lh.hessian(anchored), H + 0.5 * torch.eye(len(H))),
        (2.0 * lh.hessian(loss) - lh.gauss_newton(loss) + torch.eye(len(H)), 2 * H - G + torch.eye(len(H))),
    ):
        pairs = lh.top_eigs(operator, k=4, tol=1e-5)
        assert pairs.rounding > 0
        assert (nearest_of(pairs, torch.linalg.eigvalsh(dense)) <= pairs.bounds).all()


def test_bounds_of_a_float32_matrix_are_about_its_numbers() -> None:
    values = np.r_[3.0, 2.0, 1.0, np.linspace(-0.1, 0.1, 1500)]
    A = symmetric(values).float()
    exact = torch.linalg.eigvalsh(A.double())
    for kind in (A, A.to_sparse_coo(), A.numpy()):
        pairs = lh.top_eigs(kind, k=3, tol=1e-5)
        assert 0 < pairs.rounding < 1e-5
        assert pairs.num_products == pairs.num_steps + pairs.num_probe_steps + 1 + 2
        assert (nearest_of(pairs, exact) <= pairs.bounds).all()


def test_where_nothing_can_be_measured_the_result_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    A = symmetric(np.linspace(0, 1, 40)).float()
    pairs = lh.top_eigs(Counted(lambda v: A @ v, 40, torch.float32), k=2, tol=1e-5)
    assert np.isnan(pairs.rounding)
    assert np.isnan(Eigenpairs.load(pairs.save(tmp_path / "a")).rounding)
    assert bool(torch.isfinite(pairs.bounds).all())

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.float())

    data = (torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3)
    assert np.isnan(lh.top_hessian_eigs(lh.Objective(Stubborn(), data), k=2, tol=1e-4).rounding)
    loss = rounded_loss("plain")
    assert lh.top_hessian_eigs(loss, k=2).rounding > 0
    monkeypatch.setattr(operators, "_MAX_COPY", 37 * 5 * 8)
    assert np.isnan(lh.top_hessian_eigs(loss, k=2).rounding)  # and 37 targets more: too much to copy


def test_a_minimum_in_float32_is_certified_with_its_rounding() -> None:
    loss = rounded_loss("cancels 1e3 at the end")
    minimum = lh.polish(loss, anchor=0.05, gtol=2e-3, max_drift=10.0, progress=False)
    exact = torch.linalg.eigvalsh(lh.testing.dense_hessian(minimum.objective))
    assert abs(minimum.smallest - float(exact[0])) <= minimum.smallest_residual


@pytest.mark.parametrize("name", ["plain", "deep, normed", "cancels 1e4", "cancels 1e5 at the end"])
def test_the_rounding_of_a_few_examples_bounds_that_of_many(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, inputs, targets = NETS[name](), torch.randn(400, 5), torch.randint(0, 3, (400,))
    loss = lh.Objective(model, (inputs, targets))
    assert loss.excerpt().num_examples == 400  # of the loss that it is an excerpt of
    assert sum(len(x) for x, _ in loss.excerpt().batches) == 32
    exact = torch.linalg.eigvalsh(lh.testing.dense_hessian(loss))
    for k in (1, 4, 10):
        pairs = lh.top_hessian_eigs(loss, k=k, tol=1e-4)
        assert (nearest_of(pairs, exact) <= pairs.bounds).all()
        assert pairs.num_products == pairs.num_steps + pairs.num_probe_steps + 1  # the few are no products
        assert float(pairs.bounds.max()) < 1e-2 * pairs.scale
