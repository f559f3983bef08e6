"""Claims 16 and 17: fates of circuits counted by hand, and verdicts on planted numbers."""

import copy
import dataclasses
import math
import sys

import pytest
import torch

import lowhanging as lh
from lowhanging import circuits
from lowhanging.reproduce.settings import SIZES, Sizes
from lowhanging.reproduce.store import NO_STORE
from lowhanging.reproduce.themes import modular

INF = math.inf


def score_of(scores, frequency):
    double = scores.double()
    return circuits.CircleScores(
        *[double] * 3, frequency, frequency.sign(), *[double] * 2, 0 * double, double >= 0.75, "columns"
    )


def test_fates_are_counted_seed_by_seed():
    """Two seeds of two planes, four logs: one circle stays, one is lost, one is overwritten, one never was."""
    scores = torch.full((2, 40, 2), 0.9)
    scores[0, :10] = scores[1, :10] = 0.1
    scores[0, 30:, 1] = 0.6  # lost
    scores[1, :, 1] = 0.2  # never formed
    frequency = torch.full((2, 40, 2), 3)
    frequency[1, 20:, 0] = 5  # another circle in the same plane, without a gap
    found = circuits.births(scores, range(40), frequency=frequency)
    fates = modular._fates(found, score_of(scores, frequency))
    assert fates["formed"] == [2, 1]
    assert fates["survived"] == [1, 1]
    assert fates["overwritten"] == 1
    assert fates["lost_scores"] == pytest.approx([0.6])
    curves = modular.survivals(circuits.survival(found), found)
    assert list(curves) == ["many parameters", "2 planes of 4 units"]
    late = circuits.births(torch.full((1, 9, 1), 0.2), range(9))
    assert list(modular.survivals(curves["many parameters"], late)) == ["many parameters"]
    assert modular._comparison(found, late)["p_value"] is None


# Verdicts -------------------------------------------------------------------------------------------------------------

PAIRS = {"ratio": [1.2] * 3, "interval": [[1.0, 1.4]] * 3, "p_more": [0.04] * 3, "rise_time": 80.0}
SHARE = {"null_mean": 0.4, "null_range": [0.3, 0.5], "p_more": 0.2, "p_fewer": 0.8}
ROW = {
    "p": 37, "num_blocks": 7, "births_per_seed": [2, 2], "key_frequencies_unblocked": [2, 3], "unblocked_p": 53,
    "accuracy_held_out": [0.9, 0.9], "others": [], "dominant_before_training": [1, 2],
    "frequency_relations": {"duplicates": {"interval": [None, None], "ratio": 1.0, "pairs": 0, "null_mean": 1.0}},
    "birth_steps": [[100.0, 200.0], [100.0, 110.0]], "share_alive_at_last_age": 1.0,
    "pairing": {null: copy.deepcopy(PAIRS) for null in ("shuffle", "clock", "poisson")},
    "birth_gaps": {
        "seeds_with_two": 10, "gap": 90.0, "rise": 60.0, "apart": {"count": 6, "num": 10} | SHARE,
        "strictly": {"count": 1, "num": 9} | SHARE,
    },
    "fates": {"formed": [10] * 10, "survived": [10] * 9 + [5], "overwritten": 0, "lost_scores": [0.5] * 5},
    "scarce": {
        "planes": 2, "fates": {"formed": [1] * 9, "survived": [1] * 9, "overwritten": 1, "lost_scores": []},
    },
    "comparison": {"difference": 0.1, "interval": [0.01, 0.2], "p_value": 0.04, "detectable": 0.09},
    "ablation": {"seed": 1, "mean_loss_by_circuits_kept": [4.0, 2.0, 0.1]},
}  # fmt: skip


def changed(path, value):
    row = copy.deepcopy(ROW)
    *parents, last = path.split("/")
    place = row
    for name in parents:
        place = place[name]
    place[last] = value
    return row


@pytest.mark.parametrize(
    ("path", "value", "sixteen", "seventeen"),
    [
        ("p", 37, "holds", "holds"),
        ("birth_gaps/apart/count", 5, "holds in part", "holds"),  # half is not most
        ("pairing/shuffle/p_more", [0.01, 0.06, 0.01], "holds in part", "holds"),  # that of 20 steps counts
        ("pairing/clock/p_more", [0.01, 0.06, 0.01], "holds in part", "holds"),
        ("pairing/poisson/p_more", [0.9] * 3, "holds", "holds"),
        ("fates/survived", [10] * 9 + [4], "holds", "holds in part"),
        ("comparison/p_value", 0.051, "holds", "holds in part"),
        ("comparison/p_value", None, "holds", "holds in part"),
    ],
)
def test_verdicts_follow_from_the_row(path, value, sixteen, seventeen):
    _, second, third = modular.claims([changed(path, value)])
    assert (second.number, second.verdict) == (16, sixteen)
    assert (third.number, third.verdict) == (17, seventeen)


def test_the_texts_say_what_the_numbers_mean():
    _, second, third = modular.claims([ROW])
    assert "by more than the first one's own rise: 60.0 % [31.3 %, 83.2 %] of 10 seeds." in second.measured
    assert "of 9 (1 left out, whose rise began before the first log)" in second.measured
    assert "make 40.0 % (95 % of the draws in [30.0 %, 50.0 %]; p of as many 0.2, of as few 0.8)" in second.null
    assert "(5 lost in 1 seeds, which end with scores of 0.50 to 0.50; a circle has 0.75 or more)" in third.measured
    assert "a difference of 9 points would have been found with 80 % power" in third.null
    assert "that is no evidence against the second part" in third.rule
    unknown = modular.claims([changed("comparison/detectable", None)])[2]
    assert "no difference would have been found with 80 % power" in unknown.null
    none = {"difference": None, "interval": [None, None], "p_value": None, "detectable": None}
    assert "Too few networks" in modular.claims([changed("comparison", none)])[2].null


# The full size --------------------------------------------------------------------------------------------------------


def test_the_full_size_trains_larger_networks():
    full = SIZES["full"]
    kind = modular.kind_of("births", full)
    model = kind.factory(0)
    assert model.embedding.shape == (113, 20)
    assert kind.arguments["num_steps"] == 3000
    assert kind.data.p == 113
    assert modular.kind_of("redundant", full).factory(0).embedding.shape[0] == 113
    assert modular.kind_of("births", full, **modular.SCARCE).factory(0).embedding.shape == (113, 4)


def test_every_line_of_the_full_size_runs_on_little(monkeypatch):
    """The transformer and a modulus of one's own, which the quick size has not."""
    small = Sizes("full", modulus=11, stack_steps=300, stack_seeds=6, unblocked_seeds=2, scarce_seeds=2)
    preset = lh.training.PRESETS["nanda"]
    few = {**preset.training_arguments, "num_steps": 2}
    short = dataclasses.replace(preset, data_arguments={"p": 11}, model_arguments={"p": 11}, training_arguments=few)
    monkeypatch.setattr(sys.modules["lowhanging.training.stack"], "PRESETS", {"nanda": short})
    monkeypatch.setattr(modular, "PRESETS", {"nanda": short})
    found = modular._other("nanda", NO_STORE)
    assert found["p"] == 11
    assert found["circles"] == [0, 0]
    monkeypatch.undo()
    run = modular.kind_of("births", small).train("births", 2, NO_STORE, log_every=100)
    assert run.snapshots["embedding"].shape == (2, 4, 11, 20)
