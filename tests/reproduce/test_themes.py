"""The themes of the report one by one: what they compute, and the words and verdicts that they make of rows of numbers.

Oracles: quadratics and the cartoons on paper; Wilson's and Student's intervals by their formulas; rows written by hand.
"""

import copy
import dataclasses
import inspect
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from scipy.stats import sem
from scipy.stats import t as student

import lowhanging as lh
from lowhanging.reproduce import claims
from lowhanging.reproduce import page as items
from lowhanging.reproduce import page as report
from lowhanging.reproduce.settings import SIZES, Settings, Sizes
from lowhanging.reproduce.store import NO_SHELF, ResultStore, as_json
from lowhanging.reproduce.themes import canyons as canyon_claims
from lowhanging.reproduce.themes import cartoons, learning, modular, rates
from lowhanging.reproduce.themes import cartoons as cartoon_claims
from lowhanging.reproduce.themes import toy_sum as redundancy

TINY = SIZES["tiny"]


# Words ----------------------------------------------------------------------------------------------------------------


def test_judged_and_most():
    assert claims.judged(True, True) == "holds"
    assert claims.judged(True, False) == "holds in part"
    assert claims.judged(False, False) == "does not hold"
    flags = ([True], [True, False], [True, True, False], [])
    assert [claims.most(each) for each in flags] == [True, False, True, False]


def test_wilson_interval_by_its_formula():
    count, num, z = 17, 20, 1.959963984540054
    share = count / num
    center = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * math.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
    expected = f"[{100 * (center - half):.1f} %, {100 * (center + half):.1f} %]"
    assert claims.interval(count, num) == f"85.0 % {expected}"
    assert claims.most_of([True] * 17 + [False] * 3) == f"17 of 20 seeds {expected}"
    assert claims.interval(0, 0) == "none of none"


def test_means_with_student_s_interval():
    assert claims.mean_interval([2.0, 4.0, 6.0]) == "4 ± 5 (2 to 6)"  # t(0.975, 2) = 4.303, times 2 / sqrt(3)
    assert claims.mean_interval([2.5], unit=" %") == "2.5 %"
    assert claims.mean_interval([1200.0, 1400.0]) == "1300 ± 1271 (1200 to 1400)"  # t(0.975, 1) = 12.706, times 100
    assert claims.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == "3 ± 2"  # five: no range; 2.776 * sqrt(2.5 / 5)
    assert claims.mean_interval([2.0, 4.0, 6.0], with_range=False) == "4 ± 5"
    assert claims.mean_interval([7.0, 7.0, 7.0], unit=" steps") == "7 steps each"  # "± 0" would say too much
    assert claims.over_seeds(1) == "(one seed: no interval)"
    assert claims.over_seeds(3) == "(means over 3 seeds, with 95 % intervals, the range in parentheses)"
    assert claims.over_seeds(5) == "(means over 5 seeds, with 95 % intervals)"
    assert claims.most_of([False]) == "not the one seed"


NUMBER = r"[\d.e+-]+"


@pytest.mark.parametrize("values", [[0.9, 1.6, 3.1], [0.2, 0.25, 0.31, 0.28, 0.22, 0.9], [0.5, 2.5]])
def test_intervals_of_ratios_are_scipy_s_of_their_logarithms(values):
    logs = np.log(values)
    low, high = np.exp(student.interval(0.95, len(values) - 1, loc=logs.mean(), scale=sem(logs)))
    text = claims.mean_interval(values, 6, " nats", scale="log")
    found = re.fullmatch(rf"({NUMBER}) nats \[({NUMBER}), ({NUMBER})\](?: \(({NUMBER}) to ({NUMBER})\))?", text)
    numbers = [float(each) for each in found.groups() if each is not None]
    expected = [np.exp(logs.mean()), low, high] + ([min(values), max(values)] if len(values) < 5 else [])
    assert numbers == pytest.approx(expected, rel=1e-4)
    inverse = claims.mean_interval([1 / value for value in values], 6, scale="log")
    ends = [float(each) for each in re.search(rf"\[({NUMBER}), ({NUMBER})\]", inverse).groups()]
    assert ends == pytest.approx([1 / high, 1 / low], rel=1e-4)


@pytest.mark.parametrize("values", [[0.97, 0.98, 0.99], [0.5, 0.9], [0.8, 0.85, 0.9, 0.95, 0.999], [0.01, 0.02, 0.1]])
def test_intervals_of_shares_are_scipy_s_of_their_log_odds(values):
    odds = logit(np.array(values))
    low, high = expit(student.interval(0.95, len(values) - 1, loc=odds.mean(), scale=sem(odds)))
    text = claims.mean_interval(values, 6, scale="share")
    found = re.fullmatch(rf"({NUMBER}) % \[({NUMBER}), ({NUMBER})\](?: \(({NUMBER}) to ({NUMBER})\))?", text)
    numbers = [float(each) for each in found.groups() if each is not None]
    expected = [expit(odds.mean()), low, high] + ([min(values), max(values)] if len(values) < 5 else [])
    assert numbers == pytest.approx([100 * each for each in expected], abs=1e-4)
    assert 0 < numbers[1] < numbers[0] < numbers[2] <= 100


@pytest.mark.parametrize(
    ("values", "scale", "text"),
    [
        ([0.9, 0.95, 1.0], "share", "95.0 % (90.0 to 100.0)"),  # 1 has no log odds: no interval
        ([0.0, 0.1, 0.5, 0.6, 0.7, 0.1], "share", "33.3 % (0.0 to 70.0)"),
        ([-0.1, 0.3], "share", "10.0 % (-10.0 to 30.0)"),  # a share of variance where the fit misleads
        ([-0.0001, 0.0002], "share", "0.0 %"),
        ([1.0, 1.0], "share", "100.0 % each"),
        ([0.98], "share", "98.0 %"),
        ([0.0, 2.0, 4.0], "log", "2 (0 to 4)"),
        ([0.0, 0.0], "log", "0 each"),
        ([1e-300, 1.0, 1e300], "log", "1 [0, 1.0e+304] (1e-300 to 1.0e+300)"),  # as far as a float goes, no error
    ],
)
def test_values_without_a_place_on_their_scale_have_a_range_and_no_interval(values, scale, text):
    assert claims.mean_interval(values, scale=scale) == text


def test_values_that_are_no_shares_and_scales_that_are_none():
    with pytest.raises(ValueError, match=r"values is \[98.0\], expected shares of at most 1.\nPass shares as 0.98"):
        claims.mean_interval([98.0], scale="share")
    with pytest.raises(ValueError, match="values is \\[\\], expected at least one value"):
        claims.mean_interval([])
    with pytest.raises(ValueError, match="scale is 'ratio', expected one of 'linear', 'log', 'share'"):
        claims.mean_interval([1.0], scale="ratio")


def test_a_claim_on_the_page_of_claims():
    claim = claims.Claim(3, "a", "b", "c (e.g. x; y). More", "d", "e", "holds", "f", part="b")
    page = report.markdown([claim], ["heading"])
    assert "| 3b | a | **holds** |" in page
    assert "## 3b. a: holds\n\nThe write-up: b\n\nMeasured:\n\n* c (e.g. x; y).\n* More\n\nHeld against:" in page
    assert page.endswith("Rule:\n\n* e\n\nRepeat it: `f`\n")
    assert dataclasses.replace(claim, part="").label == "3"


# Items ----------------------------------------------------------------------------------------------------------------

WORDS = "ten words of no weight that make of this sentence a long one, " * 2 + "as they come twice"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one; two. Three", [["one; two."], ["Three"]]),
        ("at 0.5, e.g. here. n = 8 there.", [["at 0.5, e.g. here."], ["n = 8 there."]]),
        (f"{WORDS}; one; two", [[f"{WORDS};", "one;", "two"]]),
        (f"{WORDS} (one; two. Three); four [5; 6]", [[f"{WORDS} (one; two. Three);", "four [5; 6]"]]),
        (f"{WORDS} (over 3 seeds): one; two", [[f"{WORDS} (over 3 seeds):", "one;", "two"]]),
        (f"{WORDS}: one, and two, without an end", [[f"{WORDS}: one, and two, without an end"]]),
        ("", [[""]]),
    ],
)
def test_texts_break_at_sentences_and_long_ones_at_semicolons(text, expected):
    found = items.items(text)
    assert found == expected
    assert " ".join(line for lines in found for line in lines) == text  # nothing but the breaks is new


# A report is replaced as a whole --------------------------------------------------------------------------------------


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_report_is_replaced_as_a_whole(tmp_path):
    old = {"a.png": b"1", "b.png": b"1", "index.html": b"1"}
    report.replace_together(tmp_path, old)
    assert files_of(tmp_path) == old
    (tmp_path / ".report.part").mkdir()  # of a run that was killed
    (tmp_path / ".report.part" / "a.png").write_bytes(b"half")
    report.replace_together(tmp_path, {"a.png": b"2", "index.html": b"2"}, stale=["b.png", "c.png"])
    assert files_of(tmp_path) == {"a.png": b"2", "index.html": b"2"}


def test_a_write_that_fails_leaves_the_earlier_report(tmp_path, monkeypatch):
    old = {"a.png": b"1", "b.png": b"1", "index.html": b"1"}
    report.replace_together(tmp_path, old)
    real = report.write_atomically

    def full(path, write):
        if path.name == "index.html":
            raise OSError("no space left on device")
        real(path, write)

    monkeypatch.setattr(report, "write_atomically", full)
    with pytest.raises(OSError, match="no space"):
        report.replace_together(tmp_path, {"a.png": b"2", "index.html": b"2"}, stale=["b.png"])
    assert files_of(tmp_path) == old


def test_the_page_comes_last(tmp_path, monkeypatch):
    """Cut off between two moves, the old page is still there, never a new one beside old numbers."""
    report.replace_together(tmp_path, {"results.json": b"1", "index.html": b"1"})
    real, moved = report.os.replace, []

    def cut_off(source, target):
        if target.parent == tmp_path:
            moved.append(target.name)
            if len(moved) == 2:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(report.os, "replace", lambda source, target: cut_off(Path(source), Path(target)))
    with pytest.raises(KeyboardInterrupt):
        report.replace_together(tmp_path, {"results.json": b"2", "index.html": b"2"})
    assert moved == ["results.json", "index.html"]
    assert files_of(tmp_path) == {"results.json": b"2", "index.html": b"1"}


# Settings and shelf ---------------------------------------------------------------------------------------------------


def test_the_digest_knows_what_changes_a_number_and_nothing_else():
    base = Settings(SIZES["quick"], "bundled", 0, 1)
    assert base.digest == Settings(SIZES["quick"], "bundled", 5, 3).digest
    assert base.digest != Settings(SIZES["quick"], "full", 0, 1).digest
    assert base.digest != Settings(Sizes("quick", epochs=3), "bundled", 0, 1).digest
    asked = Settings(Sizes("quick", epochs=3), "digits", 2, 4)
    assert asked.command() == "lowhanging reproduce --seeds 4 --seed 2 --epochs 3 --data digits"
    assert list(asked.seeds) == [2, 3, 4, 5]


def test_a_shelf_makes_a_result_once_and_reads_it_back(tmp_path, capsys):
    made = []

    def make():
        made.append(1)
        return lh.Subspace(torch.eye(3)[:2])

    shelf = ResultStore(tmp_path)
    shelf.resume("axes").write_bytes(b"unfinished")
    for _ in range(2):
        assert torch.equal(shelf.result("axes", lh.Subspace.load, make).basis, torch.eye(3)[:2])
    assert len(made) == 1
    assert not shelf.resume("axes").exists()
    (tmp_path / "axes.npz").write_bytes(b"half")
    assert torch.equal(shelf.result("axes", lh.Subspace.load, make).basis, torch.eye(3)[:2])
    assert "axes.npz can't be read" in capsys.readouterr().err
    assert NO_SHELF.result("axes", lh.Subspace.load, make).dim == 2
    assert NO_SHELF.resume("axes") is None
    assert shelf.plain("numbers", lambda: {"a": (1.5, math.nan)}) == {"a": [1.5, None]}
    assert shelf.plain("numbers", lambda: pytest.fail("made twice")) == {"a": [1.5, None]}


def test_a_unit_is_measured_once_and_a_failed_one_leaves_nothing(tmp_path):
    shelf = ResultStore(tmp_path)

    def failing():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        shelf.unit("theme", failing)
    assert list(tmp_path.iterdir()) == []
    assert shelf.unit("theme", lambda: ({"a": math.inf}, 1.5)) == ({"a": None}, 1.5, False)
    assert shelf.unit("theme", failing) == ({"a": None}, 1.5, True)


def test_json_is_strict():
    assert as_json({1: [math.nan, -math.inf, 0.1]}) == '{\n "1": [\n  null,\n  null,\n  0.1\n ]\n}\n'


# Rates ----------------------------------------------------------------------------------------------------------------


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
    fingerprint = [rates.claims([rates_row(1.0, 1.0, row)])[0].measured for row in (numbers, patterns, even)]
    for text, words in zip(fingerprint, ("numbers are", "patterns are", "neither cue is"), strict=True):
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


# Canyons --------------------------------------------------------------------------------------------------------------


def canyon_point(**changes):
    return {
        "rise": 0.2, "energy": 0.5, "relative_rise": 0.4, "slope": 0.1, "slope_without_anchor": 0.08,
        "plane_eigenvalue": 0.2, "sphere_eigenvalue": 0.1, "euclidean_error": 1e-6, "is_certified": True,
        "is_canyon": True, "duplicate_of": None, "radius": 3.0, "losses": {"number": 0.6, "pattern": 0.5},
        "circuit": None, "answer_shift": [0.01, -0.1, 0.1], "full_residual": None, "full_plane_eigenvalue": None,
        "full_error": None, "bowl_slope_without_anchor": 0.32,
    } | changes  # fmt: skip


def canyons_row(
    num=2, circuits=("number", "pattern"), radii=((1.0, 1.2), (1.0, 1.1)), slopes=(0.08, 0.08), whole=True, bowl=0.32,
    random=((0.0, 1.0), (0.0, 0.0)),
):  # fmt: skip
    full = canyon_point(full_residual=0.005 if whole else 0.05, full_plane_eigenvalue=0.01, full_error=1e-3)
    paths = {
        f"branch {i}": {
            "points": [canyon_point(slope_without_anchor=slope, bowl_slope_without_anchor=bowl)],
            "merge_radius": list(pair),
            "events": [{"kind": "birth", "radius_low": pair[0], "radius_high": pair[1]}],
        }
        for i, (pair, slope) in enumerate(zip(radii, slopes, strict=True))
    }
    nulls = {
        name: {
            "canyons": list(counts),
            "branches": [2.0] * len(counts),
            "radii": [9.0] * len(counts),
            "dim": 10,
            "anchor_shares": [0.5] * len(counts),
        }
        for name, counts in zip(("all 3,340 weights", "the span of the top 50 eigenvectors"), random, strict=True)
    }
    return {
        "dim": 10, "num_params": 3340, "sphere": [canyon_point(circuit=c) for c in circuits[:num]] or [],
        "shell": [canyon_point()], "full": full, "null_relative_rises": [0.9, 1.1], "null_dim": 10, "paths": paths,
        "basin": {"losses": {"number": 0.5, "pattern": 0.5}}, "flat_slopes": [0.0, 1e-40], "num_branches": 3,
        "count_nulls": nulls,
    }  # fmt: skip


NO, PART, YES = "does not hold", "holds in part", "holds"


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, [YES, YES, YES, YES]),
        ({"num": 1}, [PART, PART, YES, YES]),
        # Without a canyon, what was followed is none: nothing merges, nothing slopes.
        ({"num": 0, "whole": False}, [NO, NO, NO, NO]),
        # As many canyons in most random subspaces of one kind, or unknown counts there: no canyons beyond chance.
        ({"random": ((0.0, 0.0), (2.0, 2.0))}, [PART, YES, YES, YES]),
        ({"random": ((0.0, 2.0), (0.0, 0.0))}, [PART, YES, YES, YES]),
        ({"random": ((0.0, 2.0, 0.0), (0.0, 0.0, 1.0))}, [YES, YES, YES, YES]),
        ({"random": ((None, None), (0.0, 0.0)), "whole": False}, [NO, YES, YES, YES]),
        ({"radii": ((0.0, 0.5), (0.0, 0.5))}, [YES, YES, NO, YES]),
        ({"radii": ((0.0, 0.5), (1.0, 1.5))}, [YES, YES, YES, YES]),
        # All branches of a network must slope, and be no bowl's wall; flat is never "in part".
        ({"slopes": (0.08, 0.009)}, [YES, YES, YES, NO]),
        ({"slopes": (0.08, 0.17)}, [YES, YES, YES, PART]),
        ({"bowl": 0.08}, [YES, YES, YES, PART]),
        ({"bowl": -0.1}, [YES, YES, YES, PART]),
        ({"radii": (), "slopes": ()}, [YES, YES, NO, NO]),
        # One branch has nothing to merge with, whether it goes all the way in or not.
        ({"radii": ((1.0, 1.2),), "slopes": (0.08,)}, [YES, YES, NO, YES]),
        ({"radii": ((0.0, 0.5),), "slopes": (0.08,)}, [YES, YES, NO, YES]),
    ],
)
def test_verdicts_of_canyons(changes, verdicts):
    found = canyon_claims.claims([canyons_row(**changes)])
    assert [claim.number for claim in found] == [10, 11, 12, 13]
    assert [claim.verdict for claim in found] == verdicts


def test_canyons_are_judged_per_network():
    good, flat = canyons_row(), canyons_row(slopes=(0.08, 0.001))
    assert canyon_claims.claims([good, good, flat])[3].verdict == "holds"
    assert "All branches above 0.01 all along: 2 of 3 seeds" in canyon_claims.claims([good, good, flat])[3].measured
    assert canyon_claims.claims([good, flat, canyons_row(num=0)])[3].verdict == "does not hold"
    assert "0.25 to 0.25 of the bowl's" in canyon_claims.claims([good])[3].measured  # 0.08 / 0.32
    chance = canyons_row(random=((2.0, 2.0), (0.0, 0.0)), whole=False)
    found = canyon_claims.claims([good, chance, chance])[0]
    assert found.verdict == "does not hold"
    assert "of each kind: 1 of 3 seeds" in found.null
    assert "radius 9 to 9 (the anchor makes 50.0 % of the energy): " in found.null
    assert ": 0, 1; 2, 2; 2, 2 certified canyons, among 2, 2; 2, 2; 2, 2 branches" in found.null


def test_merge_radius_is_a_mean_over_networks_that_merge():
    good, alone = canyons_row(), canyons_row(radii=((0.0, 0.5),), slopes=(0.08,))
    texts = [canyon_claims.claims(rows)[2].measured for rows in ([good, good], [good, alone, alone], [alone])]
    assert "over the 2 networks in which branches merge: 1.08 each" in texts[0]  # (1.1 + 1.05) / 2
    assert "Merge radius: 1 to 1.2, the bracket in one network" in texts[1]
    assert "2 of 3 networks had fewer than two canyons to follow" in texts[1]
    assert "The one network had fewer than two canyons to follow" in texts[2]
    assert "No merge radius was found" in texts[2]
    assert "(below it there is no such stationary point)" in texts[0]
    unknown = canyons_row(radii=((None, None), (1.0, 1.2)))  # NaN, as JSON holds it
    assert canyon_claims.claims([unknown])[2].verdict == "holds"


def test_far_ends_that_are_no_canyons_name_nothing():
    row = canyons_row(circuits=(None, None))
    for certified, verdict in ((True, "holds in part"), (False, "does not hold")):
        row["paths"]["branch 0"]["points"] = [canyon_point(circuit="number", is_canyon=certified)]
        assert canyon_claims.claims([row])[1].verdict == verdict


# Cartoons -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cartoon_row():
    return cartoons.measure(TINY, NO_SHELF, seed=3)


def test_flows_on_the_cartoons_end_where_paper_says(cartoon_row):
    starts = torch.tensor(cartoon_row["starts"], dtype=torch.float64)
    assert starts.shape == (TINY.cartoon_starts, 2)
    assert float(starts.abs().amin()) > cartoons.NEAR
    assert float(starts.abs().amax()) <= cartoons.HALF_WIDTH
    assert cartoon_row["flow_error"] < 1e-4
    # On paper: the flat flow ends at distance |x0^2 - y0^2|^(1/2) and comes by an axis that far out if this is >= FAR.
    far = (starts[:, 0].square() - starts[:, 1].square()).abs().sqrt() >= cartoons.FAR
    assert cartoon_row["flat"]["reached_axis"] == far.tolist()
    assert 0 < int(far.sum()) < len(starts)
    assert cartoon_row["flat"]["reached_both"] == 0
    assert cartoon_row["sloped"]["reached_both"] == len(starts)
    for name in ("flat", "sloped"):
        assert cartoon_row[name]["is_at_rest"]
        assert cartoon_row[name]["canyon_error"] < 1e-12
        assert len(cartoon_row[name]["canyons"]) == 4 * len(cartoons.RADII)


@pytest.mark.parametrize(
    ("flat", "sloped", "verdict"),
    [
        ((11, 1), (11, 19), "holds"),
        ((10, 1), (11, 19), "holds in part"),
        ((11, 2), (11, 18), "does not hold"),
        ((20, 0), (20, 18), "holds in part"),
    ],
)
def test_verdicts_of_the_cartoons(cartoon_row, flat, sloped, verdict):
    row = copy.deepcopy(cartoon_row)
    for name, (axis, both) in {"flat": flat, "sloped": sloped}.items():
        row[name] |= {"reached_axis": [i < axis for i in range(20)], "reached_both": both}
    for visits in (0, 20):  # with noise: told, not judged
        row["flat"]["noisy_visits"] = visits
        first, second = cartoon_claims.claims([row])
        assert (first.verdict, second.verdict) == ("holds", verdict)
        assert f"{claims.interval(visits, 20)} of the flat runs" in second.measured
    assert f"{claims.interval(flat[1], 20)} end at that minimum" in second.measured
    row["flat"]["canyon_error"] = None  # infinite, as JSON holds it
    assert cartoon_claims.claims([row])[0].verdict == "holds in part"


def test_noise_leads_out_of_a_flat_canyon_as_on_paper():
    """The hitting time against its closed form at a small radius, and against walkers on the floor and in the plane."""
    begin = np.array([0.0, 0.2, 0.5, 1.0, 1.5])
    time, temperature = 200.0, cartoons.STEP * cartoons.NOISE**2 / 2
    closed = np.exp(-(begin**2) / (4 * temperature * time))
    assert cartoons.reached_by(begin, 1e-4, time) == pytest.approx(closed, abs=1e-6)
    found = cartoons.reached_by(begin, 0.25, time)
    assert found[:2].tolist() == [1.0, 1.0]
    rng = np.random.default_rng(0)
    walkers, num = np.repeat(begin[2:], 4000), 2000
    has_hit = np.zeros(len(walkers), dtype=bool)
    for _ in range(num):
        noise = rng.normal(size=len(walkers)) * math.sqrt(2 * temperature * time / num)
        walkers = walkers - temperature / walkers * time / num + noise
        has_hit |= walkers <= 0.25
        walkers[has_hit] = 1.0
    simulated = has_hit.reshape(3, -1).mean(1)
    assert found[2:] == pytest.approx(simulated, abs=0.04)  # steps see fewer visits than continuous time
    assert bool((found[2:] > simulated - 0.01).all())


def test_the_share_near_the_junction_is_that_of_a_bowl_where_it_is_nearly_one():
    # Without x^2 y^2 and far from the rim: a Gaussian of variance T / (2 height) in both weights.
    variance = cartoons.STEP * cartoons.NOISE**2 / 2 / (2 * cartoons.HEIGHT)
    bowl = 1 - math.exp(-(cartoons.JUNCTION**2) / (2 * variance))
    assert bowl < cartoons.share_near(cartoons.JUNCTION) < bowl + 0.05  # x^2 y^2 pushes in, a little
    assert cartoons.share_near(10.0) == pytest.approx(1.0)


def test_the_toy_sum():
    row = redundancy.measure()
    assert redundancy.claims([row])[0].verdict == "holds"
    assert redundancy.claims([row | {"joint_measured": 0.03}])[0].verdict == "holds in part"


# Modular addition, and the full size ----------------------------------------------------------------------------------


def test_the_full_size_trains_larger_networks():
    full = SIZES["full"]
    kind = modular.kind_of("births", full)
    model = kind.factory(0)
    assert model.embedding.shape == (113, 20)
    assert kind.arguments["num_steps"] == 3000
    assert kind.data.p == 113
    assert modular.kind_of("redundant", full).factory(0).embedding.shape[0] == 113
    assert modular.kind_of("births", full, **modular.SCARCE).factory(0).embedding.shape == (113, 4)


def test_every_line_of_the_full_size_runs_on_little():
    """The transformer and a modulus of one's own, which the quick size has not."""
    small = Sizes(
        "full", modulus=11, stack_steps=300, stack_seeds=6, unblocked_seeds=2, scarce_seeds=2, transformer_steps=2
    )
    found = modular._transformer(small, NO_SHELF)
    assert found["p"] == 11
    assert len(found["key_frequencies"]) == modular.TRANSFORMER_SEEDS
    run = modular.kind_of("births", small).train("births", 2, small, NO_SHELF, log_every=100)
    assert run.snapshots["embedding"].shape == (2, 4, 11, 20)


def test_learning_takes_the_first_images_and_any_number_of_epochs(tmp_path):
    sizes = Sizes("tiny", images=40, epochs=1, anchor=0.5, early_epochs=(0,))
    shelf = ResultStore(tmp_path)
    made = learning.learn(source="bundled", seed=1, sizes=sizes, shelf=shelf)
    assert len(made.views.mixed.train) == len(made.views.mixed.test) == 40
    assert made.run.checkpoint_epochs.tolist() == [0, 1]
    loaded = learning.learn(source="bundled", seed=1, sizes=sizes, shelf=shelf)
    assert torch.equal(loaded.minimum.theta, made.minimum.theta)
    for a, b in zip(loaded.model.parameters(), made.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (loaded.is_minimum, loaded.note) == (made.is_minimum, made.note)
    direct = learning.learn(source="bundled", seed=1, sizes=sizes)
    assert torch.equal(direct.minimum.theta, made.minimum.theta)
    assert learning.measure(direct) == learning.measure(loaded)
