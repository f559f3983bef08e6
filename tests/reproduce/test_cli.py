"""The reference network of `lowhanging reproduce`: what is promised of it, and the solver's budget at its real size.

All tests that need it are in this file, so that it is trained once, by one worker. The report itself is tested on next
to nothing, in `test_reproduce_report.py`.

Oracles: finite differences and double backward, both by another route than the products that are tested.
"""

import pytest
import torch

import lowhanging as lh


def test_the_network_reaches_what_is_promised(reference):
    final = {name: float(rows[-1]) for name, rows in reference.run.accuracies.items()}
    assert final["mixed"] >= 0.96
    assert final["number"] >= 0.82
    assert final["pattern"] >= 0.82


def test_the_minimum_is_one_and_keeps_the_solution(reference):
    minimum = reference.minimum
    assert reference.is_minimum
    assert minimum.gradient_norm <= 1e-6 < minimum.gradient_norm_before
    assert minimum.smallest > minimum.smallest_residual
    assert minimum.distance <= 0.2 * float(minimum.start.norm())
    for name, floor in {"mixed": 0.96, "number": 0.82, "pattern": 0.82}.items():
        assert reference.losses[name].evaluate(minimum.theta)[1] >= floor
    # Independent of the descent: finite differences of the anchored loss in float64 directions.
    direction = torch.randn(minimum.theta.numel(), generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    difference = lh.testing.finite_difference_hvp(minimum.objective, minimum.theta, direction)
    product = minimum.objective.hvp(minimum.theta, direction)
    assert float((product - difference.product).norm()) <= 3 * difference.error


class Counted:
    """A Hessian that counts its products by itself."""

    def __init__(self, loss: lh.Objective):
        self.H, self.num_products = lh.hessian(loss), 0
        self.shape, self.dtype, self.device = self.H.shape, self.H.dtype, self.H.device

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        self.num_products += 1 if v.ndim == 1 else v.shape[1]
        return self.H @ v


@pytest.mark.parametrize(("k", "max_steps", "max_products"), [(10, 28, 40), (50, 115, 130)])
def test_the_budget_on_3200_paired_images(reference, k, max_steps, max_products):
    train = reference.views.mixed.train
    H = Counted(lh.Objective(reference.model, (train.inputs[:3200], train.targets[:3200])))
    pairs = lh.top_eigs(H, k=k)
    assert H.H.engine == "split graph"
    assert pairs.num_products == H.num_products <= max_products
    assert pairs.num_steps <= max_steps
    assert float(pairs.residuals.max()) <= 1e-4 * float(pairs.values[0])
    # One of the residuals again, by a double backward.
    other = lh.Objective(reference.model, (train.inputs[:3200], train.targets[:3200]), engine="double backward")
    v = pairs.vectors[k - 1]
    residual = other.hvp(other.theta0, v) - pairs.values[k - 1] * v
    assert float(residual.norm()) <= 1.2e-4 * float(pairs.values[0])
