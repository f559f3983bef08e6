"""The claim "at comparable rates" on rows written by hand."""

import inspect
import math

import pytest
import torch

import lowhanging as lh
from lowhanging.reproduce import claims
from lowhanging.reproduce.themes import rates


def test_steps_to_half_interpolate():
    assert rates.steps_to_half(torch.tensor([0.1, 0.3, 0.5, 0.8]), 63) == pytest.approx(63 * 1.5)
    assert rates.steps_to_half(torch.tensor([0.5, 0.5])) == 0.0
    assert math.isnan(rates.steps_to_half(torch.tensor([0.5])))


def test_steps_are_counted_in_the_batches_of_the_training():
    assert inspect.signature(lh.train).parameters["batch_size"].default == rates.BATCH_SIZE


def rates_row(number, pattern, lost=None):
    lost = lost or {cue: {"0.1": [0.1, 0.2], "0.2": [0.3, 0.3]} for cue in ("number", "pattern")}
    return {"steps_to_half": {"number": number, "pattern": pattern}, "accuracy_lost": lost}


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([(100.0, 200.0)], "holds"),
        ([(100.0, 201.0)], "does not hold"),
        ([(None, 100.0)], "does not hold"),
        ([(0.0, 0.0)], "holds"),
        ([(0.0, 1.0)], "does not hold"),
        ([(100.0, 150.0), (250.0, 200.0), (100.0, 400.0)], "holds"),
        ([(100.0, 150.0), (100.0, 400.0)], "does not hold"),
    ],
)
def test_rates_are_comparable_within_a_factor_of_two_in_most_seeds(pairs, verdict):
    (claim,) = rates.claims([rates_row(*pair) for pair in pairs])
    assert claim.verdict == verdict
    assert not any(word in claim.measured for word in ("nan", "inf", "None"))


def lost(number, pattern):
    return {cue: dict.fromkeys(("0.1", "0.2"), each) for cue, each in (("number", number), ("pattern", pattern))}


def test_stability_is_counted_over_networks_not_over_their_displacements():
    numbers, patterns = lost([0.1, 0.1, 0.3], [0.2, 0.2, 0.2]), lost([0.3, 0.3, 0.2], [0.2, 0.2, 0.2])
    even = lost([0.1, 0.3], [0.2, 0.2])
    found = [rates.claims([rates_row(1.0, 1.0, row)])[0].measured for row in (numbers, patterns, even)]
    for text, words in zip(found, ("numbers are", "patterns are", "neither cue is"), strict=True):
        assert f"{words} the more stable in the one network" in text
    measured = rates.claims([rates_row(1.0, 1.0, row) for row in (numbers, numbers, patterns)])[0].measured
    counts = "of each network's 3 displacements 2, 2, 0 cost numbers less, 1, 1, 2 patterns"
    assert f"{counts}: numbers are the more stable in {claims.most_of([True, True, False])}, patterns in 1" in measured


def test_the_ratio_of_rates_has_its_interval_on_the_logarithm():
    measured = rates.claims([rates_row(*pair) for pair in [(100.0, 150.0), (100.0, 120.0), (100.0, 300.0)]])[0].measured
    assert f"pattern over number {claims.mean_interval([1.5, 1.2, 3.0], scale='log')}," in measured
    assert f"within a factor of 2 in {claims.most_of([True, True, False])}" in measured
    never = rates.claims([rates_row(None, 100.0), rates_row(100.0, 100.0)])[0].measured
    assert "number never, pattern 100 each; pattern over number without a limit" in never
