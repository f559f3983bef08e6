"""Searches that run out of memory, start from what is known, or are interrupted; and what is said of close values.

Oracles: the relation H Q^T = V^T K after every restart, against the dense matrix; spectra that are known on paper; the
dense float64 eigendecomposition; the same search uninterrupted, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

import lowhanging as lh
from eigen_scene import (
    MISSED,
    Counted,
    check_pairs,
    check_relation,
    diagonal,
    nearest,
    network_spectrum,
    space_of,
    step,
    symmetric,
    wanted,
)
from lowhanging.curvature import eigensolver
from lowhanging.curvature.eigenpairs import Eigenpairs, top_eigs, top_hessian_eigs
from lowhanging.curvature.eigensolver import error_bounds, in_clusters
from lowhanging.errors import NotConvergedError
from lowhanging.objective import hvp

ROW = 8  # bytes per number


# ---- memory -------------------------------------------------------------------------------------------------------


def test_the_relation_holds_after_every_restart() -> None:
    H = symmetric(np.r_[5.0 * np.arange(1, 71) ** -1.3, -np.linspace(0, 0.1, 50)])
    space = space_of(H)
    for i in range(120):
        if i in (15, 40):  # with one, two, three chains
            assert space.has_room()
            space.add_random()
        step(space, np.full(space.num_residual, space.num_residual**-0.5) if i in (17, 42) else None)
        if space.size == 30:
            ritz = space.ritz("LA")
            kept = [*range(9), len(ritz.values) - 1]
            space.restart(ritz, kept)
            assert (space.size, space.num_residual) == (10, 1 + (i >= 15) + (i >= 40))
            assert np.abs(np.sort(space.ritz("LA").values) - np.sort(ritz.values[kept])).max() < 1e-14
        check_relation(space, H, tol=3e-13)
    assert (space.num_restarts, space.num_steps) == (5, 120)
    assert np.abs(space.ritz("LA").values[:4] - 5.0 * np.arange(1, 5) ** -1.3).max() < 1e-8


def test_a_restart_without_kept_products() -> None:
    H = symmetric(5.0 * np.arange(1, 101) ** -1.3)
    space = space_of(H, memory=40 * 100 * ROW)
    while space.has_room():
        space.step()
    assert space.products is None
    space.restart(space.ritz("LA"), range(12))
    for _ in range(20):
        step(space)
        check_relation(space, H, tol=3e-13)


@pytest.mark.parametrize(("which", "k", "rows"), [("LA", 10, 22), ("LA", 10, 40), ("LM", 10, 30), ("SA", 6, 22)])
def test_little_memory_takes_more_products_and_finds_the_same(
    monkeypatch: pytest.MonkeyPatch, which: str, k: int, rows: int
) -> None:
    values = network_spectrum()
    values = -values if which == "SA" else values
    p, sizes = len(values), []
    grow = eigensolver.KrylovSpace.step

    def noted(self: Any, direction: Any = None) -> None:
        grow(self, direction)
        sizes.append(len(self.rows) + (0 if self.products is None else len(self.products)))

    monkeypatch.setattr(eigensolver.KrylovSpace, "step", noted)
    generous = top_eigs(diagonal(values), k, which=which, tol=1e-9)
    sizes.clear()
    pairs = top_eigs(diagonal(values), k, which=which, tol=1e-9, memory=rows * p * ROW, num_probes=8)
    assert max(sizes) <= rows
    assert pairs.num_restarts >= 1
    assert generous.num_restarts == 0
    assert pairs.num_products > generous.num_products
    assert pairs.num_products == pairs.num_steps + pairs.num_probe_steps + k  # k fresh ones: none were kept
    assert np.abs(pairs.values.numpy() - wanted(values, which)[:k]).max() < 1e-9 * 5
    true = (torch.from_numpy(values) * pairs.vectors - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    assert float((true - pairs.residuals).abs().max()) < 1e-13


@pytest.mark.parametrize("seed", range(4))
def test_restarts_miss_no_copy(seed: int) -> None:
    values = np.repeat(5 * np.arange(1.0, 150.0) ** -1.3, 3)
    pairs = top_eigs(diagonal(values), 10, tol=1e-6, seed=seed, memory=36 * len(values) * ROW)
    assert pairs.num_restarts > 0
    assert np.abs(pairs.values.numpy() - values[:10]).max() < 1e-6


def test_restarts_in_float32() -> None:
    values = network_spectrum()
    pairs = top_eigs(diagonal(values, torch.float32), 10, tol=1e-5, memory=30 * 3340 * 4)
    assert pairs.num_restarts > 0
    assert np.abs(pairs.values.numpy() - values[:10]).max() < 1e-5 * 5
    gram = pairs.vectors.double() @ pairs.vectors.double().T
    assert float((gram - torch.eye(10)).abs().max()) < 1e-5


def test_both_ends_with_restarts() -> None:
    values = np.r_[5 * np.arange(1, 201) ** -1.0, -3 * np.arange(1, 201) ** -1.0]
    for k in (5, 6):
        pairs = top_eigs(diagonal(values), k, which="BE", tol=1e-8, memory=24 * 400 * ROW)
        assert pairs.num_restarts > 0
        assert pairs.num_large == 3
        assert np.abs(pairs.values.numpy() - wanted(values, "BE", k)).max() < 1e-7
    assert repr(pairs).startswith("Eigenpairs(6 BE: 5 ... 1.667 and -3 ... -1; residuals <= ")


# ---- clusters and bounds ------------------------------------------------------------------------------------------


def test_a_cluster_within_1e_7_is_found_whole() -> None:
    values = np.r_[2.0, 1.0, 1.0 - 4e-8, 1.0 - 1e-7, np.linspace(-0.4, 0.8, 300)]
    for tol in (1e-4, 1e-9):
        pairs = top_eigs(symmetric(values), k=4, tol=tol)
        assert np.abs(pairs.values.numpy() - values[:4]).max() < max(tol**2, 1e-12) * 10
    assert not pairs.is_clustered.any()  # 1e-9 tells them apart
    rounded = top_eigs(symmetric(values).float(), k=5, tol=1e-4)  # to float32 they are one
    assert rounded.is_clustered.tolist() == [False, True, True, True, False]
    assert "3 in clusters" in repr(rounded)


def test_bounds_hold_and_are_quadratic() -> None:
    values = np.r_[3.0, 2.0, 1.0, np.linspace(-0.1, 0.1, 200)]
    pairs = top_eigs(symmetric(values), k=3, tol=1e-4)
    errors = np.abs(pairs.values.numpy() - values[:3])
    assert (errors <= pairs.bounds.numpy()).all()
    assert float(pairs.bounds.max()) < 1e-7 < 1e-6 < float(pairs.residuals.max())
    # On paper: r^2 / gap, the gaps being 1, 1 and, to the next Ritz value less its residual, a little below 0.9.
    expected = pairs.residuals.numpy() ** 2 / np.r_[1, 1, 0.9]
    assert (pairs.bounds.numpy()[:2] < 1.001 * expected[:2] + 1e-12).all()
    assert 0.99 * expected[2] < float(pairs.bounds[2]) < 1.3 * expected[2] + 1e-12


def test_bounds_do_not_trust_a_gap_inside_the_residual() -> None:
    values, residuals = np.array([1.0, 0.9999]), np.array([1e-3, 1e-3])
    bounds = error_bounds(values, residuals, 1e-5, np.r_[values, 0.0], np.r_[residuals, 0.1])
    assert np.allclose(bounds, 1e-3 + 1e-5)
    assert in_clusters(values, residuals, 0.0, np.r_[values, 0.0], np.r_[residuals, 0.1]).all()


def test_noise_of_the_map_enters_the_bounds() -> None:
    values = np.r_[3.0, 2.0, 1.0, np.linspace(0, 0.5, 97)]
    pairs = top_eigs(noisy(values, 1e-6), k=2, tol=1e-4)
    assert bool((pairs.bounds >= pairs.noise).all())
    assert bool((torch.tensor([3.0, 2.0]) - pairs.values).abs().le(pairs.bounds).all())


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_in_float32(seed: int) -> None:
    near = np.r_[1.0, 1.0 - 1e-6, np.linspace(0, 0.9, 198)]
    for values in (5 * np.arange(1, 201) ** -1.3, np.geomspace(1, 1e-6, 200), near):
        H = symmetric(values, seed=seed).float()
        spectrum = np.linalg.eigvalsh(H.double().numpy())
        for which in ("LA", "SA"):
            pairs = top_eigs(H, 3, which=which, tol=1e-5, seed=seed)
            assert (nearest(pairs.values.numpy(), spectrum) <= pairs.bounds.numpy()).all()


def test_a_million_weights_in_float32_lose_no_digits() -> None:
    """Sums of so many terms, added one after the other, would: rows 3e-4 off from orthogonal, and a floor of 2e-4."""
    values = np.r_[5 * np.arange(1, 41) ** -1.0, np.linspace(0, 0.05, 1_000_000 - 40)]
    H = diagonal(values, torch.float32)
    pairs = top_eigs(H, 5, tol=1e-5)
    assert pairs.noise < 1e-6 * pairs.scale
    assert np.abs(pairs.values.numpy() - values[:5]).max() < 5e-7
    gram = pairs.vectors.double() @ pairs.vectors.double().T
    assert float((gram - torch.eye(5)).abs().max()) < 1e-6


def test_a_map_may_return_its_own_buffer() -> None:
    values = torch.from_numpy(network_spectrum())
    buffer = torch.empty_like(values)
    H = Counted(lambda v: torch.mul(values, v, out=buffer), len(values))
    expected = top_eigs(diagonal(values), 5)
    for start in (None, expected):
        pairs = top_eigs(H, 5, warm_start=start, memory=28 * len(values) * ROW)
        assert float((pairs.values - expected.values).abs().max()) < 1e-8


def test_another_default_device_changes_nothing() -> None:
    expected = top_eigs(diagonal(network_spectrum()), 3)
    H = diagonal(network_spectrum())
    with torch.device("meta"):
        pairs = top_eigs(H, 3)
    assert torch.equal(pairs.vectors, expected.vectors)


# ---- warm starts --------------------------------------------------------------------------------------------------


def moved(H: Tensor, size: float, seed: int = 9) -> Tensor:
    """H plus a random symmetric matrix of this spectral norm."""
    other = symmetric(np.random.default_rng(seed).standard_normal(len(H)), seed=seed)
    return H + size * other / torch.linalg.matrix_norm(other, 2)


@pytest.mark.parametrize(("size", "share"), [(0.0, 0.6), (1e-4, 0.6), (1e-3, 0.8), (1e-2, 0.9), (0.2, 1.0)])
def test_a_warm_start_takes_a_fraction_of_the_products(size: float, share: float) -> None:
    H = symmetric(5 * np.arange(1, 601) ** -1.3)
    before = top_eigs(H, 10, tol=1e-5)
    after = moved(H, size)
    counted = Counted(lambda v: after @ v, 600)
    warm, cold = top_eigs(counted, 10, tol=1e-5, warm_start=before), top_eigs(after, 10, tol=1e-5)
    assert warm.num_products == counted.count <= share * cold.num_products
    assert warm.num_known == 10
    check_pairs(warm, after)
    assert np.abs(warm.values.numpy() - wanted(np.linalg.eigvalsh(after.numpy()), "LA")[:10]).max() < 1e-4


def test_a_warm_start_sees_what_is_new() -> None:
    """The top pair of the new map is orthogonal to everything known, and to its Krylov space."""
    values = np.r_[3.0, 2.0, 1.0, np.linspace(0, 0.2, 297)]
    before = top_eigs(diagonal(values), 3, tol=1e-9)
    values[200] = 1.5
    found = top_eigs(diagonal(values), 3, tol=1e-6, warm_start=before)
    assert np.abs(found.values.numpy() - [3.0, 2.0, 1.5]).max() < 1e-6


def test_a_warm_start_from_anything_of_the_right_length() -> None:
    H = symmetric(5 * np.arange(1, 201) ** -1.3)
    known = top_eigs(H, 4, tol=1e-8)
    cold = top_eigs(H, 6, tol=1e-8)
    rows = (known.vectors.float(), known.vectors[[0, 0, 1]], torch.eye(200)[:30].double())
    for start in (known, known.subspace(), *rows):
        pairs = top_eigs(H, 6, tol=1e-8, warm_start=start)
        assert float((pairs.values - cold.values).abs().max()) < 1e-12
        assert float((pairs.vectors - cold.vectors).abs().max()) < 1e-6
    everything = top_eigs(H, 6, tol=1e-8, warm_start=torch.eye(200))
    assert everything.num_products <= 202
    assert float((everything.values - cold.values).abs().max()) < 1e-12
    little = top_eigs(H, 6, tol=1e-8, warm_start=known, memory=60 * 200 * ROW)
    assert float((little.values - cold.values).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (3, TypeError, r"warm_start is an int, expected Eigenpairs, a Subspace or rows of shape \(j, 3\)"),
        (torch.ones(2, 4), ValueError, r"warm_start has vectors of shape \(2, 4\), expected .*\n.*last checkpoint"),
        (torch.ones(3), ValueError, r"warm_start has vectors of shape \(3,\)"),
        (torch.ones(0, 3), ValueError, r"warm_start has vectors of shape \(0, 3\)"),
        (torch.full((1, 3), torch.nan), ValueError, "warm_start holds 3 NaN or infinite entries"),
    ],
)
def test_what_is_no_start(start: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        top_eigs(symmetric([3.0, 2.0, 1.0]), 1, warm_start=start)


def test_a_spectrum_is_tracked_through_training() -> None:
    """A network's Hessian at one checkpoint after the other."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 12, generator=generator)
    targets = (inputs[:, 0] > 0).long() + 2 * (inputs[:, 1] > 0).long()
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 4))
    torch.set_rng_state(torch_state)
    pairs, warm, cold = None, 0, 0
    for checkpoint in range(3):
        lh.train(model, (inputs, targets), num_epochs=5, seed=checkpoint, progress=False)
        alone = top_hessian_eigs(model, (inputs, targets), k=8, tol=1e-4)
        pairs = top_hessian_eigs(model, (inputs, targets), k=8, tol=1e-4, warm_start=pairs)
        assert float((pairs.values - alone.values).abs().max()) <= 2e-4 * alone.scale
        if checkpoint:
            warm, cold = warm + pairs.num_products, cold + alone.num_products
    assert warm < cold


# ---- interruptions ------------------------------------------------------------------------------------------------


def dying(values: np.ndarray, after: int) -> Counted:
    """A map that is interrupted at a product."""

    def apply(v: Tensor) -> Tensor:
        if counted.count > after:
            raise KeyboardInterrupt
        return torch.from_numpy(values) * v

    counted = Counted(apply, len(values))
    return counted


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written whenever it may be, however long that takes."""
    monkeypatch.setattr("lowhanging.io.SHARE", 1e9)


@pytest.mark.usefixtures("often")
def test_a_search_goes_on_where_it_was_left(tmp_path: Path) -> None:
    values = network_spectrum()
    whole = top_eigs(diagonal(values), 20, tol=1e-6)
    for after in (3, 17, 35, whole.num_steps + 5):  # at the first steps, later, in the probe
        path = tmp_path / f"{after}.npz"
        with pytest.raises(KeyboardInterrupt):
            top_eigs(dying(values, after), 20, tol=1e-6, resume=path)
        again, is_resumed = diagonal(values), path.exists()
        pairs = top_eigs(again, 20, tol=1e-6, resume=path)
        assert torch.equal(pairs.values, whole.values)
        assert torch.equal(pairs.vectors, whole.vectors)
        assert torch.equal(pairs.residuals, whole.residuals)
        # One that the file is made with; three to see that the map is the same; at the end all 20 pairs, not one.
        assert pairs.num_products == whole.num_products + 1 + is_resumed * (3 + 20 - 1)
        assert again.count < whole.num_products - after + 8 + 6 + 3 + 20
    assert [item.name for item in tmp_path.iterdir() if item.suffix != ".npz"] == []


def test_a_finished_search_costs_its_checks_only(tmp_path: Path) -> None:
    values = network_spectrum()
    first = top_eigs(diagonal(values), 10, resume=tmp_path / "pairs")
    counted = diagonal(values)
    second = top_eigs(counted, 10, resume=tmp_path / "pairs")
    assert counted.count == 3 + 10
    assert torch.equal(first.vectors, second.vectors)
    assert second.num_products == first.num_products + 3 + 10


def test_a_spent_budget_can_be_raised(tmp_path: Path) -> None:
    values = network_spectrum()
    with pytest.raises(NotConvergedError, match="max_products is 20"):
        top_eigs(diagonal(values), 10, max_products=20, resume=tmp_path / "a.npz")
    counted = diagonal(values)
    pairs = top_eigs(counted, 10, resume=tmp_path / "a.npz")
    whole = top_eigs(diagonal(values), 10)
    assert torch.equal(pairs.vectors, whole.vectors)
    assert counted.count <= whole.num_products - 15 + 3 + 10


@pytest.mark.usefixtures("often")
def test_restarted_and_warm_searches_resume(tmp_path: Path) -> None:
    values = network_spectrum()
    known = torch.eye(3340)[:4].double() + 1e-3
    options = {"memory": 32 * 3340 * ROW, "warm_start": known, "tol": 1e-7}
    whole = top_eigs(diagonal(values), 10, **options)
    assert whole.num_restarts > 0
    with pytest.raises(KeyboardInterrupt):
        top_eigs(dying(values, whole.num_products // 2), 10, **options, resume=tmp_path / "a.npz")
    pairs = top_eigs(diagonal(values), 10, **options, resume=tmp_path / "a.npz")
    assert torch.equal(pairs.vectors, whole.vectors)
    assert (pairs.num_restarts, pairs.num_known) == (whole.num_restarts, 4)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("limit", range(5, 12))
def test_a_probe_that_was_cut_short_is_taken_again(tmp_path: Path, limit: int) -> None:
    """The search for missed copies has not happened because a budget ended in it."""
    with pytest.raises(NotConvergedError, match=f"max_products is {limit}, spent"):
        top_eigs(diagonal(MISSED), 2, max_products=limit, resume=tmp_path / "a.npz")
    with contextlib.suppress(NotConvergedError):
        top_eigs(diagonal(MISSED), 2, max_products=limit + 1, resume=tmp_path / "a.npz")
    pairs = top_eigs(diagonal(MISSED), 2, resume=tmp_path / "a.npz")
    assert np.abs(pairs.values.numpy() - [5, 5]).max() < 1e-6


def noisy(values: np.ndarray, size: float, dtype: torch.dtype = torch.float32) -> Counted:
    """A map whose products are off by a random vector of this length."""
    exact, generator = torch.from_numpy(values), torch.Generator().manual_seed(1)

    def apply(v: Tensor) -> Tensor:
        error = torch.randn(len(v), generator=generator, dtype=torch.float64)
        return (exact * v + size * float(v.norm()) * error / error.norm()).to(dtype)

    return Counted(apply, len(values), dtype)


@pytest.mark.usefixtures("often")
def test_a_noisy_search_resumes_and_repeats_its_floor(tmp_path: Path) -> None:
    values = np.r_[3.0, 2.0, 1.0, np.linspace(0, 0.5, 297)]
    for p in (30, 300):
        for _ in range(2):
            with pytest.raises(NotConvergedError, match="below the float32 floor"):
                top_eigs(noisy(values[:p], 1e-5), 2, tol=3e-6, resume=tmp_path / f"{p}.npz")
    with pytest.raises(NotConvergedError, match="max_products is 7"):
        top_eigs(noisy(values, 1e-4), 2, tol=1e-2, max_products=7, resume=tmp_path / "b.npz")
    pairs = top_eigs(noisy(values, 1e-4), 2, tol=1e-2, resume=tmp_path / "b.npz")
    assert np.abs(pairs.values.numpy() - [3, 2]).max() < 1e-3


def test_another_searchs_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    values, path = network_spectrum(), tmp_path / "a.npz"
    top_eigs(diagonal(values), 5, resume=path)
    content = path.read_bytes()
    for change, word in (({"k": 6}, "k"), ({"tol": 1e-3}, "tol"), ({"which": "SA"}, "which"), ({"seed": 1}, "seed")):
        with pytest.raises(
            ValueError, match=f"resume is .*a.npz', the file of a search for eigenpairs with another {word}, expected"
        ):
            top_eigs(diagonal(values), **({"k": 5, "resume": path} | change))
    with pytest.raises(ValueError, match="the file of a search for eigenpairs with another H, expected a new file"):
        top_eigs(diagonal(1.001 * values), 5, resume=path)
    with pytest.raises(ValueError, match="the file of a search for eigenpairs with another p"):
        top_eigs(diagonal(values[:-1]), 5, resume=path)
    assert path.read_bytes() == content
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"resume is .*a.npz', no resume file of a search for eigenpairs"):
        top_eigs(diagonal(values), 5, resume=path)
    np.savez(path, numbers=np.ones(3))
    with pytest.raises(ValueError, match="no resume file of a search"):
        top_eigs(diagonal(values), 5, resume=path)
    path.write_bytes(content)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for change in (
        {"space/rows": arrays["space/rows"][:3]},
        {"space/generator": arrays["space/generator"][:5]},
        {"space/counts": np.arange(3)},
    ):
        np.savez(path, **(arrays | change))
        with pytest.raises(ValueError, match="no resume file of a search"):
            top_eigs(diagonal(values), 5, resume=path)
    arrays.pop("space/coefficients")
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="no resume file of a search"):
        top_eigs(diagonal(values), 5, resume=path)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match="no resume file of a search"):
        top_eigs(diagonal(values), 5, resume=tmp_path / "folder.npz")
    with pytest.raises(ValueError, match="expected a file in an existing folder"):
        top_eigs(diagonal(values), 5, resume=tmp_path / "nowhere" / "a.npz")
    for name in ("resume", "warm_start"):
        with pytest.raises(ValueError, match=f'{name} is given with method="dense"'):
            top_eigs(symmetric([2.0, 1.0]), 1, method="dense", **{name: path if name == "resume" else torch.ones(1, 2)})


OTHER = np.r_[10.0, 9.0, 8.0, 7.0, 6.0, np.linspace(0, 1, 200)]


FALLING = np.geomspace(1, 1e-6, 200)


def hidden(A: Tensor) -> Counted:
    """A matrix of which nothing is known but its products."""
    return Counted(lambda v: A @ v, len(A), A.dtype)


@pytest.mark.parametrize("stop", [12, 16, None])  # half-way, nearly found, finished
@pytest.mark.parametrize("which", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("size", [0.3, 3e-3])
def test_a_change_along_any_pair_that_was_found_is_another_map(
    tmp_path: Path, size: float, which: int, stop: int | None
) -> None:
    """In float32, where the last Lanczos vector hardly holds what has converged: one product with it sees nothing."""
    values = OTHER.copy()
    values[which] -= size
    before, after = symmetric(OTHER).float(), symmetric(values).float()
    options = {"tol": 1e-6, "resume": tmp_path / "a.npz", "on_failure": "warn"}
    with contextlib.nullcontext() if stop is None else pytest.warns(RuntimeWarning, match="max_products"):
        top_eigs(hidden(before), 5, max_products=stop, **options)
    with pytest.raises(
        ValueError, match=r"a.npz', the file of a search for eigenpairs with another H, expected .*\n.*Name another"
    ):
        top_eigs(hidden(after), 5, **options)


def test_what_a_matrix_is_identified_by(tmp_path: Path) -> None:
    """Its numbers, whatever holds them: the second one differs by one rounding."""
    A = symmetric(np.linspace(0, 1, 30)).float()
    B = A.clone()
    B[3, 3] *= 1 + 2e-7
    assert not torch.equal(A, B)
    kinds = {
        "dense": lambda M: M,
        "sparse": lambda M: M.to_sparse_coo(),
        "NumPy": lambda M: M.numpy(),
        "SciPy": lambda M: scipy.sparse.csr_matrix(M.numpy()),
        "sum": lambda M: 2.0 * lh.hessian(lh.FunctionObjective(lambda t: (t**4).sum(), torch.ones(30))) + M,
    }
    for kind, make in kinds.items():
        path = tmp_path / f"{kind}.npz"
        first = top_eigs(make(A), 2, tol=1e-5, resume=path)
        again = top_eigs(make(A.clone()), 2, tol=1e-5, resume=path)
        assert torch.equal(first.values, again.values)
        with pytest.raises(ValueError, match="the file of a search for eigenpairs with another H, expected"):
            top_eigs(make(B), 2, tol=1e-5, resume=path)


def test_the_matrix_and_the_parameters_belong_to_a_search(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(23, 5, generator=generator), torch.arange(23) % 3)
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3))
    loss = lh.Objective(model, data)
    top_eigs(lh.hessian(loss), 2, tol=1e-5, resume=tmp_path / "a.npz")
    with pytest.raises(ValueError, match="the file of a search for eigenpairs with another kind of matrix, expected"):
        top_eigs(lh.gauss_newton(loss), 2, tol=1e-5, resume=tmp_path / "a.npz")
    top_eigs(lh.hessian(loss, parameters="0.bias"), 2, tol=1e-5, resume=tmp_path / "b.npz")
    with pytest.raises(ValueError, match="the file of a search for eigenpairs with another kind of matrix, expected"):
        top_eigs(lh.hessian(loss, parameters="2.bias"), 2, tol=1e-5, resume=tmp_path / "b.npz")


def test_a_pair_beside_the_basis_is_seen_by_the_random_vector(tmp_path: Path) -> None:
    """A new pair that is orthogonal to all that the search has tried leaves no trace in the basis."""
    A = symmetric(OTHER).float()
    top_eigs(hidden(A), 5, tol=1e-5, resume=tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as stored:
        rows = torch.from_numpy(stored["space/rows"]).double()
    new = torch.randn(len(A), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for _ in range(2):
        new -= rows.T @ (rows @ new)
        new /= new.norm()
    B = (A.double() + 20 * torch.outer(new, new)).float()
    assert float((B.double() @ rows.T - A.double() @ rows.T).norm(dim=0).max()) < 1e-4
    with pytest.raises(ValueError, match="the file of a search for eigenpairs with another H, expected"):
        top_eigs(hidden(B), 5, tol=1e-5, resume=tmp_path / "a.npz")


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("rows", [40, 70, 10**6])
@pytest.mark.parametrize("stop", [8, 20, 45, 200])
def test_the_same_map_in_another_order_of_summation_is_no_other_map(tmp_path: Path, stop: int, rows: int) -> None:
    """As with another number of threads."""
    for dtype, tol in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        for name, values in {"network": network_spectrum()[:300], "tiny": 1e-9 * OTHER, "falling": FALLING}.items():
            A = symmetric(values).to(dtype)
            options = {"tol": tol, "memory": rows * len(A) * A.element_size(), "resume": tmp_path / f"{name} {dtype}"}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                top_eigs(hidden(A), 5, max_products=stop, on_failure="warn", **options)
                pairs = top_eigs(Counted(lambda v, A=A: A.flip(1) @ v.flip(0), len(A), dtype), 5, **options)
            spectrum = np.linalg.eigvalsh(A.double().numpy())[::-1][:5]
            assert (np.abs(pairs.values.numpy() - spectrum) <= pairs.bounds.numpy()).all()


def test_a_pair_that_has_gone_stale_is_never_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first comparison is fooled, the last one, of every pair, is not."""
    values = OTHER.copy()
    values[2] -= 0.1
    top_eigs(hidden(symmetric(OTHER).float()), 5, tol=1e-5, resume=tmp_path / "a.npz")
    calls, real = [], eigensolver.disagreement
    monkeypatch.setattr(
        eigensolver, "disagreement", lambda *given: calls.append(0) or (0.0 if len(calls) < 2 else real(*given))
    )
    with pytest.raises(ValueError, match="the file of a search for eigenpairs with another H, expected"):
        top_eigs(hidden(symmetric(values).float()), 5, tol=1e-5, resume=tmp_path / "a.npz")


def test_a_shuffled_loader_is_the_same_map(tmp_path: Path) -> None:
    """Read anew, its examples come in another order: other bits, the same Hessian."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(300, 6, generator=generator), torch.arange(300) % 4
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    losses = []
    for seed in range(2):
        order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
        losses.append(lh.Objective(model, (inputs[order], targets[order]), micro_batch=64))
    v = torch.ones(losses[0].num_params)
    assert not torch.equal(losses[0].hvp(losses[0].theta0, v), losses[1].hvp(losses[1].theta0, v))
    first = top_hessian_eigs(losses[0], k=6, tol=1e-5, resume=tmp_path / "a.npz")
    second = top_hessian_eigs(losses[1], k=6, tol=1e-5, resume=tmp_path / "a.npz")
    assert float((first.values - second.values).abs().max()) <= float(second.bounds.max())
    wrong = lh.Objective(model, (inputs, targets.roll(1)))
    with pytest.raises(ValueError, match="the file of a search for eigenpairs with another H, expected"):
        top_hessian_eigs(wrong, k=6, tol=1e-5, resume=tmp_path / "a.npz")


def test_another_theta_is_another_search(tmp_path: Path) -> None:
    f = lh.FunctionObjective(lambda theta: (theta**4).sum(), torch.arange(1.0, 6.0))
    lh.top_hessian_eigs(f, k=2, resume=tmp_path / "a.npz")
    with pytest.raises(ValueError, match="the file of a search for eigenpairs with another theta, expected"):
        lh.top_hessian_eigs(f.at(f.theta0 * (1 + 1e-6)), k=2, resume=tmp_path / "a.npz")


SCRIPT = """
import sys, time
import torch
sys.path.insert(0, {tests!r})
from eigen_scene import network_spectrum
from lowhanging.curvature.eigensolver import error_bounds, in_clusters
from lowhanging.curvature.eigenpairs import top_eigs

values = torch.from_numpy(network_spectrum())

class Slow:
    shape, dtype, device = (len(values), len(values)), torch.float64, torch.device("cpu")
    def __matmul__(self, v):
        time.sleep({pause})
        return values * v

pairs = top_eigs(Slow(), 30, tol=1e-7, resume={path!r})
pairs.save({result!r})
"""


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    path, result = tmp_path / "search.npz", tmp_path / "pairs.npz"
    script = textwrap.dedent(SCRIPT).format(
        tests=str(Path(__file__).parent.parent), path=str(path), result=str(result), pause=0.03
    )
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    limit = time.monotonic() + 60
    sizes: set[int] = set()
    while len(sizes) < 4 and process.poll() is None and time.monotonic() < limit:  # until it was written four times
        sizes |= {path.stat().st_size} if path.exists() else set()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.exists()
    assert not result.exists()  # it was not finished
    values = network_spectrum()
    counted = diagonal(values)
    pairs = top_eigs(counted, 30, tol=1e-7, resume=path)
    whole = top_eigs(diagonal(values), 30, tol=1e-7)
    assert torch.equal(pairs.vectors, whole.vectors)
    assert torch.equal(pairs.values, whole.values)
    assert counted.count < whole.num_products - 8 + 3 + 30
    loaded = Eigenpairs.load(pairs.save(result))
    assert torch.equal(loaded.bounds, pairs.bounds)
    assert float((loaded.bounds - whole.bounds).abs().max()) < 1e-14 * whole.scale  # the noise is that of 30 products


# ---- float64 ------------------------------------------------------------------------------------------------------


def test_dense_takes_its_products_in_float64_and_in_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(23, 6, generator=generator), torch.arange(23) % 3
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    loss = lh.Objective(model, (inputs, targets), micro_batch=7)
    pairs = top_hessian_eigs(model, (inputs, targets), k=5, tol=1e-12, method="dense")
    exact = np.linalg.eigvalsh(lh.testing.dense_hessian(loss).numpy())[::-1]
    assert pairs.vectors.dtype == torch.float64
    assert pairs.num_products == loss.num_params
    assert np.abs(pairs.values.numpy() - exact[:5]).max() < 1e-13
    assert model[0].weight.dtype == torch.float32
    for H in (
        lh.hessian(loss),
        2.0 * lh.gauss_newton(loss),
        lh.hessian(lh.objective.AnchoredObjective(loss, loss.theta0, 0.1)),
    ):
        assert H.dtype == torch.float32
        double = H.double()
        assert double.dtype == torch.float64
        v = torch.randn(loss.num_params, generator=generator)
        assert float((H @ v - double @ v).norm()) < 1e-5 * float((double @ v).norm())
        top_eigs(double, k=2, tol=1e-11)
    lanczos = top_hessian_eigs(loss.double(), k=5, tol=1e-12)
    assert float((lanczos.values - pairs.values).abs().max()) < 1e-13
    block = lh.hessian(loss, parameters="0.*").double()
    assert block.shape == (56, 56)
    assert nearest(top_eigs(block, k=1, tol=1e-10).values.numpy(), np.linalg.eigvalsh(
        lh.testing.dense_hessian(loss)[:56, :56].numpy())).max() < 1e-12  # fmt: skip


@pytest.mark.usefixtures("often")
def test_a_search_that_records_its_products_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded and other products differ by rounding: which they are follows from the products that came before."""
    monkeypatch.setattr(hvp, "products_until_recorded", lambda *_: 9)
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))
    data = torch.randn(40, 6), torch.arange(40) % 3
    loss = lh.Objective(model, data)
    H = lh.hessian(loss)
    whole = top_eigs(H, 5, tol=1e-4, resume=tmp_path / "whole.npz")
    assert (whole.engine, whole.num_steps > 12) == ("split graph", True)
    again = top_eigs(H, 5, tol=1e-4, resume=tmp_path / "again.npz")  # the map was used before
    assert torch.equal(again.vectors, whole.vectors)
    product = type(H).product
    for after in (4, 8, 12):
        path, left = tmp_path / f"{after}.npz", [after]

        def dying(self: Any, v: Tensor, left: list[int] = left) -> Tensor:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return product(self, v)

        monkeypatch.setattr(type(H), "product", dying)
        with pytest.raises(KeyboardInterrupt):
            top_eigs(lh.hessian(lh.Objective(model, data)), 5, tol=1e-4, resume=path)
        monkeypatch.setattr(type(H), "product", product)
        pairs = top_eigs(lh.hessian(lh.Objective(model, data)), 5, tol=1e-4, resume=path)
        assert torch.equal(pairs.values, whole.values)
        assert torch.equal(pairs.vectors, whole.vectors)
