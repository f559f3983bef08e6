"""Are verdicts counted as they were given, with exact intervals? Against binomial bounds on paper."""

import pytest
import torch

import lowhanging as lh
from lowhanging.testing import calibrate


def plant(setting, seed):
    return setting, seed


def test_rates_and_intervals():
    seen = calibrate(lambda planted: planted[1] < 10 * planted[0], plant, settings=[0.0, 0.3, 1.0], seeds=range(10))
    assert [seen.rate("instrument", setting)[0] for setting in seen.settings] == [0.0, 0.3, 1.0]
    # All of n: the lower bound is (alpha / 2)^(1 / n); none: the upper one is its complement.
    low = 0.025**0.1
    assert seen.rate("instrument", 1.0) == pytest.approx((1.0, low, 1.0))
    assert seen.rate("instrument", 0.0) == pytest.approx((0.0, 0.0, 1 - low))
    assert "0.30 [0.07, 0.65]" in str(seen)
    assert repr(seen) == "Calibration(1 instruments, 3 settings, 10 seeds: found in 13 of 30)"


def test_several_instruments_share_a_network_and_may_have_no_verdict(tmp_path):
    calls = []

    def several(planted):
        calls.append(planted)
        return {"sees all": True, "sees none": False, "can't say": None, "at times": None if planted[1] else True}

    seen = calibrate(several, plant, settings=[0.0, 0.5], seeds=[3, 0])
    assert calls == [(0.0, 3), (0.0, 0), (0.5, 3), (0.5, 0)]
    assert seen.verdicts[:, 0].tolist() == [[1, 1], [0, 0], [-1, -1], [-1, 1]]
    assert str(seen).count("no verdict") == 2
    assert seen.rate("at times", 0.5)[0] == 1.0
    loaded = lh.load(seen.save(tmp_path / "seen"))
    assert str(loaded) == str(seen)
    assert torch.equal(loaded.verdicts, seen.verdicts)


@pytest.mark.parametrize(
    ("instrument", "keywords", "kind", "message"),
    [
        (lambda planted: 0.7, {}, TypeError, "instrument gave a float for 'instrument', expected True, False or None"),
        (lambda planted: {}, {}, ValueError, "no verdict at all"),
        (lambda planted: {str(planted[1]): True}, {}, ValueError, "the same names each time"),
        (lambda planted: True, {"settings": []}, ValueError, "settings is"),
        (lambda planted: True, {"seeds": [0.2]}, TypeError, "seeds is 0.2"),
        (lambda planted: True, {"seeds": [1, 1]}, ValueError, "seeds is"),
        (lambda planted: True, {"confidence": 1.0}, ValueError, "confidence is 1"),
    ],
)
def test_bad_input(instrument, keywords, kind, message):
    with pytest.raises(kind, match=message):
        calibrate(instrument, plant, **keywords)


def test_rates_of_what_was_not_run_are_refused():
    seen = calibrate(lambda planted: True, plant, settings=[0.0], seeds=[0])
    with pytest.raises(ValueError, match="instrument is 'x'"):
        seen.rate("x", 0.0)
    with pytest.raises(ValueError, match=r"setting is 0\.5"):
        seen.rate("instrument", 0.5)
