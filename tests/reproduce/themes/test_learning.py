"""The claim "both cues are learned" on rows written by hand, and the network that `lowhanging reproduce` trains.

Each row gives the two cues different numbers, so that a text or a rule that takes one for the other is seen; verdicts
are asked for at their thresholds and just below them.

Oracles of the network: finite differences and double backward, both by another route than the products that are tested.
All tests that need it are in this file, so that it is trained once, by one worker.
"""

from __future__ import annotations

import math
import statistics

import pytest
import torch

import lowhanging as lh
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.settings import Settings, Sizes
from lowhanging.reproduce.store import NO_STORE, ResultStore
from lowhanging.reproduce.themes import learning


def row(number: float, pattern: float, *, mixed: float = 0.97, before: tuple[float, float] = (0.11, 0.07)) -> dict:
    """What `learning.measure` returns, as far as the claim reads it."""
    final = {"mixed": mixed, "number": number, "pattern": pattern}
    start = {"mixed": 0.1, "number": before[0], "pattern": before[1]}
    return {"accuracy_after_training": final, "accuracies": {name: [start[name], 0.5, final[name]] for name in final}}


def verdict(*rows: dict) -> str:
    (claim,) = learning.claims(rows)
    return claim.verdict


def test_a_cue_is_learned_from_the_threshold_on():
    assert learning.READ == 0.8
    assert verdict(row(0.8, 0.8)) == "holds"
    assert verdict(row(0.7999, 0.8)) == "holds in part"
    assert verdict(row(0.8, 0.7999)) == "holds in part"
    assert verdict(row(0.7999, 0.7999)) == "does not hold"


def test_each_cue_needs_more_than_half_of_the_seeds():
    good, bad, numbers, patterns = row(0.9, 0.9), row(0.5, 0.5), row(0.9, 0.5), row(0.5, 0.9)
    assert verdict(good, good, bad) == "holds"
    assert verdict(good, bad) == "does not hold"  # half is not more than half
    assert verdict(good, numbers, bad) == "holds in part"
    assert verdict(good, numbers, patterns) == "holds"  # each cue in two of three, if not the same two
    assert verdict(numbers, patterns) == "does not hold"


def test_the_text_tells_the_cues_apart():
    (claim,) = learning.claims([row(0.91, 0.75)])
    assert claim.number == 1
    assert "mixed 97.0 %, number-only 91.0 %, pattern-only 75.0 %." in claim.measured
    assert "At least 80 % on numbers alone in the one seed, on patterns alone in not the one seed" in claim.measured
    assert "number-only 11.0 %, pattern-only 7.0 %" in claim.null
    three = [row(0.91, 0.75), row(0.93, 0.85), row(0.95, 0.7)]
    (claim,) = learning.claims(three)
    odds = [math.log(share / (1 - share)) for share in (0.91, 0.93, 0.95)]
    half = 4.302652729911275 * statistics.stdev(odds) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    center = statistics.fmean(odds)
    mean, low, high = (100 / (1 + math.exp(-end)) for end in (center, center - half, center + half))
    assert f"number-only {mean:.1f} % [{low:.1f}, {high:.1f}] (91.0 to 95.0)" in claim.measured
    assert "on numbers alone in 3 of 3 seeds [43.9 %, 100.0 %]" in claim.measured
    assert "on patterns alone in 1 of 3 seeds [6.1 %, 79.2 %]" in claim.measured


def test_learning_takes_the_first_images_and_any_number_of_epochs(tmp_path):
    sizes = Sizes("tiny", images=40, epochs=1, anchor=0.5, early_epochs=(0,))
    store = ResultStore(tmp_path)
    made = learning.learn(source="bundled", seed=1, sizes=sizes, store=store)
    assert len(made.views.mixed.train) == len(made.views.mixed.test) == 40
    assert made.run.checkpoint_epochs.tolist() == [0, 1]
    loaded = learning.learn(source="bundled", seed=1, sizes=sizes, store=store)
    assert torch.equal(loaded.minimum.theta, made.minimum.theta)
    for a, b in zip(loaded.model.parameters(), made.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (loaded.is_minimum, loaded.note) == (made.is_minimum, made.note)
    direct = learning.learn(source="bundled", seed=1, sizes=sizes)
    assert torch.equal(direct.minimum.theta, made.minimum.theta)
    rows = [
        learning.measure(Context(Settings(sizes, "bundled", 1, 1), NO_STORE, lambda one=one: one))
        for one in (direct, loaded)
    ]
    assert rows[0] == rows[1]


# The reference network ------------------------------------------------------------------------------------------------


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
