"""The redundant sum against the formula worked out by hand."""

import math

import pytest

import lowhanging as lh


def test_two_circuits_of_ninety_percent():
    toy = lh.toys.redundant_sum()
    assert toy.single == pytest.approx(0.1 * math.log(10), rel=1e-12)
    assert toy.joint == pytest.approx(0.01 * math.log(10), rel=1e-12)
    assert toy.single_measured == pytest.approx(0.23025850929940457, rel=1e-9)
    assert toy.joint_measured == pytest.approx(0.023025850929940457, rel=1e-9)
    assert repr(toy) == "RedundantSum(single 0.2303, joint 0.02303, factor 10)"


def test_other_sizes():
    toy = lh.toys.redundant_sum(known=0.75, num_classes=4, num_circuits=3)
    assert toy.single_measured == pytest.approx(0.25 * math.log(4), rel=1e-9)
    assert toy.joint_measured == pytest.approx(0.25**3 * math.log(4), rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known": 1.0}, r"known is 1, expected a finite number in \(0, 1\)"),
        ({"known": 0.905}, "known is 0.905, expected a multiple of 0.01"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"num_circuits": 4}, "num_circuits is 4, expected an integer from 1 to 3"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        lh.toys.redundant_sum(**arguments)
