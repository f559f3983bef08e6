"""How far a Ritz value may be off: the formulas on numbers written by hand, and against matrices known in full."""

from __future__ import annotations

import numpy as np
import pytest

from lowhanging.basin.eigenbounds import error_bounds, in_clusters

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
