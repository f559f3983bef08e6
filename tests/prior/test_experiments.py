"""The experiments that ship, on tiny sizes: what they return, where a cue can't be learned, and that seeds decide."""

import math

import pytest
import torch

import lowhanging as lh
from lowhanging.prior import paired_digits_experiment, parities_experiment

DIGITS = {"num_train": 200, "num_test": 100, "channels": 3, "num_epochs": 6}
NAMES = {
    "both_learned", "number_accuracy", "pattern_accuracy", "number_resampled_accuracy", "pattern_resampled_accuracy",
    "number_answers", "pattern_answers", "number_time", "pattern_time", "number_first",
}  # fmt: skip


def test_digits_without_a_visible_pattern_learn_the_number_alone():
    experiment = paired_digits_experiment(**DIGITS, threshold=0.3)
    diagram = lh.phase_diagram(experiment, {"opacity": [0.0, 1.0]}, seeds=[0], progress=False)
    assert set(diagram.values) == NAMES
    number, pattern = (diagram.mean(f"{cue}_accuracy").tolist() for cue in ("number", "pattern"))
    assert number[0] > 0.3 > pattern[0]  # opacity 0: there is no pattern
    assert pattern[1] > 0.3 > number[1]
    assert diagram.mean("number_first").tolist() == [1.0, 0.0]
    assert diagram.mean("both_learned").tolist() == [0.0, 0.0]
    assert diagram.num_seeds("pattern_time").tolist() == [0, 1]
    answers = diagram.mean("number_answers")
    assert answers[0] > 0.3 > answers[1]


def test_a_seed_decides_everything_of_the_digits():
    experiment = paired_digits_experiment(**DIGITS | {"num_epochs": 1})
    state = torch.get_rng_state()
    setting = {"patterns_per_class": 2, "single_cue_share": 0.5}
    first, again, other = (experiment(setting, seed) for seed in (0, 0, 1))
    assert repr(first) == repr(again)
    assert repr(first) != repr(other)
    assert torch.equal(torch.get_rng_state(), state)
    assert math.isnan(first["number_time"]) and math.isnan(first["number_first"])


def test_equal_parities_are_both_found_and_unequal_ones_are_not():
    """Both of 1 and 1 bits, which by symmetry share the logit; of 1 and 4 bits the single bit is enough."""
    experiment = parities_experiment(hidden=32, num_steps=300, lr=0.01)
    diagram = lh.phase_diagram(experiment, {"n": [1], "m": [1, 4]}, seeds=range(3), together=True, progress=False)
    assert diagram.mean("both_learned").tolist() == [[1.0, 0.0]]
    assert diagram.num_seeds("second_time").tolist() == [[3, 0]]
    first, second = diagram.mean("first_coefficient")[0], diagram.mean("second_coefficient")[0]
    assert float(first[0]) == pytest.approx(float(second[0]), rel=0.3)
    assert float(first[1]) > 2 > 1 > float(second[1])
    assert float(diagram.mean("first_time")[0, 1]) <= 100


def test_a_seed_alone_is_as_in_a_stack():
    experiment = parities_experiment(hidden=8, num_steps=40, batch_size=32, log_every=20)
    several = experiment({"n": 2, "m": 2}, [3, 4])
    alone = experiment({"n": 2, "m": 2}, 4)
    assert alone["first_coefficient"] == pytest.approx(several["first_coefficient"][1], rel=1e-4)
    assert [*alone] == [*several]


def test_cues_are_measured_alone():
    """What a cue is like alone does not depend on the other one's setting; a pattern of opacity 0 has no time."""
    experiment = paired_digits_experiment(**DIGITS, threshold=0.3, alone=True)
    few, many = (experiment({"patterns_per_class": number}, 0) for number in (1, 20))
    assert few["number_time_alone"] == many["number_time_alone"]
    assert few["number_dimension"] == many["number_dimension"] > 1
    assert few["pattern_time_alone"] < few["number_time_alone"]
    assert few["both_alone"] == 1.0
    assert few["time_gap"] == pytest.approx(math.log2(few["number_time_alone"] / few["pattern_time_alone"]))
    invisible = experiment({"opacity": 0.0}, 0)
    assert math.isnan(invisible["pattern_dimension"]) and math.isnan(invisible["time_gap"])
    assert invisible["both_alone"] == 0.0


def test_parities_are_measured_alone():
    experiment = parities_experiment(hidden=32, num_steps=300, lr=0.01, alone=True, log_every=10)
    found = experiment({"n": 1, "m": 3}, [0, 1])
    assert found["bits_gap"] == [2.0, 2.0]
    assert found["both_alone"] == [1.0, 1.0]
    assert all(one < three for one, three in zip(found["first_time_alone"], found["second_time_alone"], strict=True))
    assert all(gap > 0 for gap in found["time_gap"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: paired_digits_experiment(num_train=0), "num_train is 0"),
        (lambda: paired_digits_experiment(channels=0), "channels is 0"),
        (lambda: paired_digits_experiment(batch_size=0), "batch_size is 0"),
        (lambda: paired_digits_experiment(activation="relu"), "activation is 'relu'"),
        (lambda: paired_digits_experiment(lr=0.0), "lr is 0"),
        (lambda: paired_digits_experiment(threshold=0.05), "threshold is 0.05"),
        (lambda: paired_digits_experiment(**DIGITS)({"opacities": 0.5}, 0), r"setting has \['opacities'\]"),
        (lambda: paired_digits_experiment(**DIGITS)(0.5, 0), "setting is a float"),
        (lambda: paired_digits_experiment(**DIGITS)({"single_cue_share": 2}, 0), "single_cue_share is 2"),
        (lambda: parities_experiment(hidden=0), "hidden is 0"),
        (lambda: parities_experiment(threshold=0), "threshold is 0"),
        (lambda: parities_experiment(lr=-1.0), "lr is -1"),
        (lambda: parities_experiment()({"k": 2}, 0), r"setting has \['k'\], expected some of the axes \['n', 'm'\]"),
        (lambda: parities_experiment()({"n": 8, "m": 7}, 0), "n and m add up to 15"),
        (lambda: parities_experiment()({"n": 0}, 0), "n is 0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
