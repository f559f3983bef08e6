"""The growing space, and the search that decides when it has grown enough.

Oracles: the relation H Q^T = V^T K and orthonormality, checked against the dense matrix at every step; residuals by
dense products; the dense float64 eigendecomposition of NumPy; and, for the completeness of the answer, diagonal
matrices whose multiplicities are known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eigen_scene import MISSED, check_relation, space_of, step
from lowhanging.curvature import eigensolver
from lowhanging.curvature.eigensolver import Outcome, search
from lowhanging.curvature.krylov import dots, fresh_checks, residuals_of, ritz_vectors
from lowhanging.curvature.linear_map import CountedMap


def symmetric(values: object, seed: int = 0) -> Tensor:
    """A dense (p, p) float64 matrix with these eigenvalues and random eigenvectors."""
    spectrum = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64))[0]
    matrix = (basis * spectrum) @ basis.T
    return (matrix + matrix.T) / 2


class Diagonal:
    """diag(values) as a map that is not a matrix."""

    def __init__(self, values: object, dtype: torch.dtype = torch.float64):
        self.values = torch.as_tensor(values, dtype=dtype)
        self.shape, self.dtype, self.device = (len(self.values),) * 2, dtype, self.values.device

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.values * v


def find(H: object, k: int, *, tol: float = 1e-8, which: str = "LA", **options: Any) -> Outcome:
    settings = {"max_products": 10_000, "seed": 0, "memory": 2**30, "progress": False} | options
    return search(CountedMap(H), k, which=which, tol=tol, **settings)


def test_relation_holds_at_every_step_and_with_several_chains() -> None:
    H = symmetric(np.r_[5.0 * np.arange(1, 71) ** -1.3, -np.linspace(0, 0.1, 30)])
    space = space_of(H)
    for i in range(60):
        if i in (10, 20):
            assert space.has_room()
            space.add_random()
            check_relation(space, H)
        step(space, np.full(space.num_residual, space.num_residual**-0.5) if i in (12, 24, 30) else None)
        check_relation(space, H)
    assert (space.size, space.num_residual) == (60, 3)


def test_relation_holds_until_the_space_is_full() -> None:
    H = symmetric(np.linspace(-1, 2, 12))
    space = space_of(H)
    while not space.is_full:
        step(space)
        check_relation(space, H)
    assert space.num_residual == 0
    assert np.abs(np.sort(space.ritz("SA").values) - np.linspace(-1, 2, 12)).max() < 1e-13


def test_relation_in_float32_to_its_own_rounding() -> None:
    H = symmetric(5.0 * np.arange(1, 101) ** -1.3)
    space = space_of(H.float())
    for _ in range(40):
        step(space)
    check_relation(space, H.float().double(), tol=2e-6)


def test_breakdown_goes_on_from_a_random_row() -> None:
    """Three distinct eigenvalues: every third step closes an invariant subspace."""
    H = symmetric(np.repeat([3.0, 1.0, -2.0], 10))
    space = space_of(H)
    opened = []
    for _ in range(9):
        step(space)
        check_relation(space, H)
        opened.append(space.num_residual)
    assert opened == [1, 1, 0] * 3
    assert np.allclose(np.sort(space.ritz("LA").values), np.sort([3, 1, -2] * 3), atol=1e-12)


def test_estimates_are_the_residuals_of_dense_products() -> None:
    H = symmetric(np.linspace(-1, 1, 40) ** 3)
    space = space_of(H)
    for i in range(15):
        if i == 8 and space.has_room():
            space.add_random()
        step(space)
    for which in ("LA", "SA", "LM"):
        ritz = space.ritz(which)
        vectors = ritz_vectors(space, ritz.weights)
        true = (vectors @ H - torch.from_numpy(ritz.values)[:, None] * vectors).norm(dim=1).numpy()
        assert np.abs(ritz.estimates - true).max() < 1e-13
        assert np.abs(residuals_of(space, ritz, range(15)) - true).max() < 1e-13
        space.products, kept = None, space.products  # the same by the relation alone
        assert np.abs(residuals_of(space, ritz, range(15)) - true).max() < 1e-13
        space.products = kept


def test_the_noise_of_a_map_is_not_the_rounding_of_the_rows() -> None:
    H = symmetric(np.linspace(-1, 1, 40) ** 3)
    space = space_of(H)
    for _ in range(15):
        step(space)
    ritz = space.ritz("LA")
    true = ritz.estimates[[0, 5]]
    space.rows *= 1 + 1e-4  # the relation holds for rows of any common length; vectors are unit all the same
    residuals, noise = fresh_checks(space, ritz, [0, 5])
    assert noise.max() < 1e-13
    assert np.abs(residuals - true).max() < 1e-13


def test_the_largest_noise_seen_is_the_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    H = symmetric(np.linspace(-1, 1, 40))
    space = space_of(H)
    for _ in range(15):
        step(space)
    run = eigensolver._Search(space.operator, space, 3, "LA", 100, None)  # type: ignore[arg-type]
    right, error = space.operator.product, torch.nn.functional.one_hot(torch.tensor(7), 40).double()
    for noise, largest in ((0.1, 0.1), (0.3, 0.3), (0.2, 0.3)):
        monkeypatch.setattr(space.operator, "product", lambda v, noise=noise: right(v) + noise * error)
        run.check(space.ritz("LA"), np.array([1.0, 2.0, 3.0]))
        assert run.noise == pytest.approx(largest, rel=1e-12)
    run.checked = np.zeros(3)  # a residual of nothing is no better than the products it was taken from
    assert run.outcome(tol=0.4 / space.ritz("LA").scale, failure=None).is_converged.all()
    assert not run.outcome(tol=0.2 / space.ritz("LA").scale, failure=None).is_converged.any()


def test_a_million_terms_in_float32_are_summed_to_float32_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, x = torch.rand(3, 2**20, generator=generator), torch.rand(2**20, generator=generator)
    exact = rows.double() @ x.double()
    assert float(((dots(rows, x) - exact) / exact).abs().max()) < 1e-6  # at once, some 1e-5


def test_room_grows_then_drops_the_products_then_ends() -> None:
    H = symmetric(np.arange(1.0, 201.0))
    space = space_of(H, memory=100 * 200 * 8)  # 100 rows
    kept = []
    while space.has_room():
        space.step()
        check_relation(space, H, tol=1e-12)
        kept.append(space.products is not None)
    assert kept == [True] * 48 + [False] * 50  # there is always room for a random row and for what a product opens
    assert len(space.rows) == 100


def test_a_map_may_overwrite_or_return_what_it_is_given() -> None:
    class Rude(Diagonal):
        def __matmul__(self, v: Tensor) -> Tensor:
            return v.mul_(self.values)

    values = np.linspace(1, 2, 30)
    space = space_of(Rude(values))
    for _ in range(10):
        step(space)
        check_relation(space, torch.diag(torch.from_numpy(values)))


def test_rows_stay_orthonormal_for_tiny_images() -> None:
    space = space_of(Diagonal(np.geomspace(1e-12, 1e-3, 50) * 1e-9, torch.float32))
    for _ in range(20):
        step(space)
    rows = space.rows[: space.size].double()
    assert float((rows @ rows.T - torch.eye(20)).abs().max()) < 1e-5


def test_probe_finds_the_copy_that_one_chain_misses() -> None:
    found = find(Diagonal(MISSED), 2, tol=1e-4)
    assert np.abs(found.values - [5, 5]).max() < 1e-6
    assert found.num_probe_steps >= 2 * 3  # the first found it, the second found nothing
    without = find(Diagonal(MISSED), 2, tol=1e-4, num_probes=0)
    assert np.abs(without.values - [5, 3]).max() < 1e-6
    assert (without.missed_excess, without.missed_probability) == (np.inf, 1.0)
    long = find(Diagonal(MISSED), 2, tol=1e-4, num_probes=12)
    assert np.abs(long.values - [5, 5]).max() < 1e-6
    assert long.missed_excess < 0.1 and long.missed_probability < 1e-3


def test_what_a_chain_excludes_holds_for_random_spectra() -> None:
    """Kuczynski & Wozniakowski's bound, against chains of m steps on known spectra: exceeded in under 1 % of them."""
    generator, exceeded, excess = np.random.default_rng(0), 0, []
    for _ in range(400):
        p, m = int(generator.integers(20, 200)), int(generator.integers(4, 12))
        values = np.sort(generator.standard_normal(p) ** generator.choice([1, 3]))
        start = generator.standard_normal(p)
        basis = np.linalg.qr((values / np.abs(values).max())[:, None] ** np.arange(m) * start[:, None])[0]
        chain = float(np.linalg.eigvalsh((basis.T * values) @ basis)[-1])
        above, _ = eigensolver.missed_copies(chain, chain, float(values[0]), m, p)
        exceeded += values[-1] > chain + above
        excess.append(above)
    assert exceeded <= 4
    assert np.isfinite(excess).mean() > 0.3  # and it says something
    # A value as far above the chain as the spectrum is wide is hardly missed; one right at the chain may be.
    assert eigensolver.missed_copies(1.0, 0.0, 0.0, 10, 1000)[1] < 1e-5
    assert eigensolver.missed_copies(0.1, 0.1, 0.0, 10, 1000)[1] == 1.0


def test_probe_sees_what_hides_in_an_open_row() -> None:
    """Three copies of each: rounding grows second copies in the first chain's open row, out of a random row's sight."""
    values = np.repeat(5 * np.arange(1.0, 200.0) ** -1.3, 3)
    for seed in (10, 47, 100, 110):  # missed the third copy of the third value before open rows were mixed in
        operator = CountedMap(Diagonal(values))
        found = search(operator, 10, which="LA", tol=1e-4, max_products=999, seed=seed, memory=2**30, progress=False)
        assert np.abs(found.values - values[:10]).max() < 1e-4


@pytest.mark.parametrize("seed", range(5))
def test_pairs_that_reach_into_the_wanted_ones_are_followed(seed: int) -> None:
    """A dense double spectrum (semicircle): eight steps of a second chain only hint at the missed copies."""
    angles = np.linspace(0, np.pi, 20_001)
    quantiles = np.interp((np.arange(200) + 0.5) / 200, (angles - np.sin(2 * angles) / 2) / np.pi, angles)
    values = np.repeat(np.cos(quantiles), 2)
    operator = CountedMap(Diagonal(values))
    options: dict[str, Any] = {"which": "LA", "tol": 1e-4, "max_products": 999, "seed": seed, "memory": 2**30}
    found = search(operator, 2, progress=False, num_probes=8, **options)
    assert np.abs(found.values - values[:2]).max() < 1e-4
    assert found.num_probe_steps > 2 * 8


def test_without_kept_products_every_pair_gets_a_fresh_one() -> None:
    H = symmetric(5.0 * np.arange(1, 401) ** -1.3)
    row = 400 * 8
    generous, tight = find(H, 10), find(H, 10, memory=100 * row)  # 37 steps and 8: products are dropped at 50 rows
    assert np.abs(generous.values - tight.values).max() < 1e-12
    counted = CountedMap(H)
    found = search(counted, 10, which="LA", tol=1e-8, max_products=999, seed=0, memory=60 * row, progress=False)
    assert found.num_steps + found.num_probe_steps > 30  # so products had to go
    assert counted.num_products == found.num_steps + found.num_probe_steps + 10
    true = (found.vectors @ H - torch.from_numpy(found.values)[:, None] * found.vectors).norm(dim=1).numpy()
    assert np.abs(found.residuals - true).max() < 1e-14


def test_noise_of_the_map_is_measured() -> None:
    """Each product off by a random vector of length 1e-6."""

    class Noisy(Diagonal):
        generator = torch.Generator().manual_seed(1)

        def __matmul__(self, v: Tensor) -> Tensor:
            error = torch.randn(len(v), generator=self.generator, dtype=v.dtype)
            return self.values * v + 1e-6 * float(v.norm()) * error / error.norm()

    found = find(Noisy(np.r_[3.0, 2.0, 1.0, np.linspace(0, 0.5, 97)], torch.float32), 2, tol=1e-4)
    assert found.failure is None
    assert 5e-7 < found.noise < 5e-6


def test_spent_budget_says_that_the_search_was_unfinished() -> None:
    H = Diagonal(MISSED)
    steps = find(H, 1, tol=1e-3).num_steps
    found = search(CountedMap(H), 1, which="LA", tol=1e-3, max_products=steps + 3, seed=0, memory=2**30, progress=False)
    assert found.is_converged.all()
    assert found.failure is not None
    assert "the search for missed ones unfinished" in found.failure
