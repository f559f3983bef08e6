"""`lowhanging reproduce`, on next to nothing: is the report complete, do its verdicts follow, does a killed run go on?

Nothing is asserted about which claims hold: only that each is measured, and that its verdict follows from the numbers
in results.json, by the rule written here once more. A killed run is held against one that was not, byte for byte.
"""

import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from matplotlib.image import imread

from lowhanging.reproduce import cli
from lowhanging.reproduce.claims import judged
from lowhanging.reproduce.figures import CAPTIONS
from lowhanging.reproduce.themes.registry import NAMES, THEMES

VERDICTS = {"holds", "holds in part", "does not hold"}
CUES = ("number", "pattern")
NUMBERS = list(range(1, 21))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder that the command writes."""
    out = tmp_path_factory.mktemp("run") / "report"
    assert cli.main(["reproduce", "--tiny", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def results(report):
    return json.loads((report / "results.json").read_text())


@pytest.fixture(scope="module")
def rows(results):
    """Theme -> the row of its only unit."""
    return {name: found[0] for name, found in results["rows"].items()}


@pytest.fixture(scope="module")
def verdict(results):
    """(number, theme) -> verdict."""
    return {(c["number"], c["command"].split("--only ")[1].split()[0]): c["verdict"] for c in results["claims"]}


# The files ------------------------------------------------------------------------------------------------------------


def test_the_report_is_complete(report, results):
    assert {path.name for path in report.iterdir()} == {*CAPTIONS, "claims.md", "results.json", "index.html", "work"}
    for name in CAPTIONS:
        pixels = imread(report / name)
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.02
    assert set(results["rows"]) == set(NAMES)
    assert sorted({claim["number"] for claim in results["claims"]}) == NUMBERS
    labels = [claim["label"] for claim in results["claims"]]
    assert labels[-2:] == ["20a", "20b"]
    assert len(set(labels)) == len(labels)
    assert results["settings"]["seeds"] == [0]
    page = (report / "claims.md").read_text()
    for claim in results["claims"]:
        assert claim["verdict"] in VERDICTS
        assert all(claim[part] for part in ("name", "post", "measured", "null", "rule"))
        assert claim["label"] == f"{claim['number']}{claim['part']}"
        assert f"| {claim['label']} | {claim['name']} | **{claim['verdict']}** |" in page
        assert f"## {claim['label']}. {claim['name']}: {claim['verdict']}\n" in page
        assert f"Repeat it: `{claim['command']}`" in page
        words = page.replace("<br>", " ").replace("\n* ", " ")
        assert all(claim[part] in words for part in ("post", "measured", "null", "rule"))
        assert re.fullmatch(r"lowhanging reproduce --seeds 1 --tiny --only [\w-]+ --out again", claim["command"])
        assert f'<span class="n">{claim["label"]}</span>' in (report / "index.html").read_text()
        assert not re.search(r"\b(nan|inf|None)\b", claim["measured"] + claim["null"])


def test_commands_repeat_their_claims(results):
    for claim in results["claims"]:
        options = cli.build_parser().parse_args(claim["command"].split()[1:])
        settings = cli.settings_of(options)
        assert [settings.sizes.name, list(settings.seeds), settings.data] == ["tiny", [0], "bundled"]
        (theme,) = cli.themes_of(options.only)
        (measures,) = [each for each in THEMES if each.name == theme]
        assert claim["number"] in [found.number for found in measures.claims(results["rows"][theme])]


class Seen(html.parser.HTMLParser):
    """What a page refers to, and whether its tags are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.anchors, self.targets, self.tags = [], [], [], [], set()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.sources += [found[name] for name in ("src", "srcset", "data") if name in found]
        self.targets += [found["href"]] if "href" in found else []
        self.anchors += [found["id"]] if "id" in found else []
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_beside_it(report, results):
    text = (report / "index.html").read_text()
    seen = Seen()
    seen.feed(text)
    assert seen.open == []
    assert not {"script", "link", "iframe"} & seen.tags
    assert len(seen.sources) == len(CAPTIONS)
    assert all(source.startswith("data:image/png;base64,") for source in seen.sources)
    assert "url(" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in seen.targets)
    assert {target[1:] for target in seen.targets} <= set(seen.anchors)
    assert len(seen.anchors) == len(set(seen.anchors))
    assert '<meta name="viewport"' in text
    assert "@media print" in text
    for claim in results["claims"]:
        assert html.escape(claim["name"]) in text
        assert html.escape(claim["command"]) in text


# The verdicts, once more from the numbers -----------------------------------------------------------------------------


def at(direction, name, step):
    return direction["losses"][name][direction["alphas"].index(step)]


def test_verdicts_of_learning_and_curvature(rows, verdict):
    final = rows["learning"]["accuracy_after_training"]
    assert verdict[1, "learning"] == judged(*(final[cue] >= 0.8 for cue in CUES))
    half = [rows["rates"]["steps_to_half"][cue] for cue in CUES]
    assert verdict[2, "rates"] == judged(None not in half and max(half) <= 2 * min(half))
    found = rows["curvature"]["at_minimum"]
    counts = [sum(value > 0.1 for value in found[task]["eigenvalues"]) for task in ("mixed", *CUES)]
    assert counts == [found[task]["above"]["0.1"] for task in ("mixed", *CUES)]
    assert verdict[3, "curvature"] == judged(
        *(count <= 33 and not found[task]["is_bound"][0] for task, count in zip(("mixed", *CUES), counts, strict=True))
    )
    for task in found.values():
        assert task["largest_residual"] <= 1e-4 * task["eigenvalues"][0]
        total, squares = sum(task["eigenvalues"]), sum(value**2 for value in task["eigenvalues"])
        assert task["participation_ratio"] == pytest.approx(total**2 / squares)


def test_verdicts_of_steering(rows, verdict):
    kept, left, below, large, ranks, free = [], [], [], [], [], []
    before = rows["steering"]["conflict_at_minimum"]
    for d in rows["steering"]["directions"]:
        a, b = d["ablate"], d["preserve"]
        rise = {name: at(d, name, 2.0) - at(d, name, 0.0) for name in CUES}
        start = math.log(at(d, a, 0.0) / at(d, b, 0.0))
        moved = math.log(at(d, a, 2.0) / at(d, b, 2.0)) - start
        nulls = [[e["losses"] for e in points] for points in (d["null"], d["null_rise"]["points"])]
        beats = all(points and all(moved > math.log(e[a] / e[b]) - start for e in points) for points in nulls)
        kept.append(rise[a] >= 0.5 and rise[b] <= 0.2 * rise[a] and beats)
        left.append(d["conflict"][a] <= before[a] / 2)
        ratios = [at(d, a, step) / at(d, "mixed", step) for step in (1.0, 2.0, 3.0, 4.0)]
        below.append(min(ratios) > 1)
        beats = all(points and all(ratios[1] > e[a] / e["mixed"] for e in points) for points in nulls)
        unsteered = at(d, a, 0.0) / at(d, "mixed", 0.0)
        large.append(math.exp(sum(map(math.log, ratios)) / 4) >= max(5, unsteered) and beats)
        ranks.append(not d["ranks"]["mixed"].startswith(">") and int(d["ranks"]["mixed"]) <= 10)
        overlap, null = d["largest_squared_overlap"]["mixed"], d["null_overlap"]
        free += [overlap < 0.5, overlap <= null["largest"][2]]
        assert (overlap > null["largest"][2]) == (null["num_as_large"] < 0.05 * null["num"])
        assert math.isclose(sum(d["conflict"].values()), 1.0)
    assert verdict[4, "steering"] == judged(*kept, *left)
    assert verdict[5, "steering"] == judged(all(below), *large)
    assert verdict[7, "steering"] == judged(*ranks)
    assert verdict[8, "steering"] == judged(*free)


def test_random_directions_are_as_curved_in_the_mixed_loss(rows):
    """1/2 s^2 w.Hw of each equals 1/2 2^2 u.Hu of the steering direction."""
    curvatures = [value for value in rows["steering"]["random_curvatures"] if value > 0]
    for d in rows["steering"]["directions"]:
        wanted = 4 * d["rayleigh_quotients"]["mixed"]
        assert len(d["null"]) == len(curvatures) > 0
        for entry, curvature in zip(d["null"], curvatures, strict=True):
            assert entry["step"] ** 2 * curvature == pytest.approx(wanted)
        # And in the second null the mixed loss itself is as high as at step 2, or was so from the start.
        found, high = d["null_rise"], max(at(d, "mixed", 2.0), at(d, "mixed", 0.0))
        assert len(found["points"]) + found["num_left_out"] == len(rows["steering"]["random_curvatures"])
        for entry in found["points"]:
            assert entry["losses"]["mixed"] == pytest.approx(high, rel=0.02)
            assert entry["step"] <= found["longest"]


def test_verdict_of_the_planes(rows, verdict):
    found = rows["planes"]
    radii = found["radii"]
    errors = [found["circles"][task]["fit_error"] for task in ("mixed", *CUES)]
    moves = []
    start = found["circles"]["number"]["center"] / found["circles"]["pattern"]["center"]
    for numbers, patterns in zip(*(found["circles"][cue]["losses"] for cue in CUES), strict=True):
        moves.append(max(abs(math.log(a / b / start)) for a, b in zip(numbers, patterns, strict=True)))
    assert moves == pytest.approx(found["asymmetry_change"])

    def first(values, level):
        """Where a straight line in log-log coordinates passes the level."""
        i = next((i for i, value in enumerate(values) if value > level), None)
        if not i:
            return math.inf if i is None else 0.0
        way = [math.log(radii[i - 1]), math.log(radii[i])]
        return math.exp(float(np.interp(math.log(level), np.log(values[i - 1 : i + 1]), way)))

    distinct = first(moves, 1.0)
    assert verdict[9, "planes"] == judged(*(first(error, 0.1) < distinct for error in errors), distinct <= 2.0)


def test_verdicts_of_the_canyons(rows, verdict):
    found = rows["canyons"]
    own = [p for p in found["sphere"] if p["is_certified"] and not p["is_trivial"] and p["duplicate_of"] is None]
    full = found["full"]
    whole = full is not None and full["full_residual"] <= 0.1 * abs(full["slope"])
    whole = whole and full["full_plane_eigenvalue"] > full["full_error"]
    beaten = [sum(c is not None and len(own) > c for c in n["canyons"]) for n in found["count_nulls"].values()]
    more = len(beaten) == 2 and all(num >= 1 for num in beaten)  # of one subspace of each kind
    assert verdict[10, "canyons"] == judged(len(own) >= 1 and more, len(own) >= 2 and more, whole)
    branches = list(found["paths"].values()) if own else []
    points = found["sphere"] + found["shell"] + [path["points"][-1] for path in branches]
    points = [p for p in points if p["is_certified"] and not p["is_trivial"]]
    assert verdict[11, "canyons"] == judged(*(any(p["circuit"] == cue for p in points) for cue in CUES))
    merged = [bool(path["merge_radius"][0]) for path in branches]
    assert verdict[12, "canyons"] == judged(len(merged) >= 2 and merged.count(False) <= 1)
    floors = [[p for p in path["points"] if p["is_certified"] and p["radius"] >= 1.0] for path in branches]
    sloped = bool(floors) and all(floor and min(p["slope_without_anchor"] for p in floor) > 0.01 for floor in floors)
    far = [[p for p in floor if p["radius"] > 2.999] for floor in floors]
    below = sloped and all(
        outer and all(0 < p["slope_without_anchor"] <= 0.5 * p["bowl_slope_without_anchor"] for p in outer)
        for outer in far
    )
    assert verdict[13, "canyons"] == judged(sloped, below)
    basin = found["basin"]["losses"]
    for p in points:
        if p["circuit"] is not None:
            start, end = (math.log(losses["number"] / losses["pattern"]) for losses in (basin, p["losses"]))
            assert abs(end - start) > 1
            assert p["answer_shift"][0] >= 0.1
            assert p["answer_shift"][1] > 0
        assert math.isclose(sum(p["cue_shares"].values()), 1.0)
    assert max(map(abs, found["flat_slopes"])) < 1e-12


def test_points_of_the_canyons_are_stationary_and_continuous(rows):
    found = rows["canyons"]
    assert found["sphere"]
    for p in found["sphere"] + found["shell"]:
        assert p["residual"] <= p["tolerance"]
    assert found["paths"]
    for path in found["paths"].values():
        levels = [p["level"] for p in path["points"]]
        assert levels == sorted(levels)


def test_verdicts_of_the_toys(rows, verdict):
    toy = rows["toy-sum"]
    assert toy["joint_measured"] == pytest.approx(0.01 * math.log(10), rel=1e-9)
    assert verdict[6, "toy-sum"] == "holds"
    assert max(rows["cartoons"][name]["canyon_error"] for name in ("flat", "sloped")) <= 1e-8
    assert verdict[14, "cartoons"] == "holds"
    flat, sloped, num = rows["cartoons"]["flat"], rows["cartoons"]["sloped"], rows["cartoons"]["num_starts"]
    reached = [sum(each["reached_axis"]) > num / 2 and each["is_at_rest"] for each in (flat, sloped)]
    parts = (
        reached[0] and flat["reached_both"] <= 0.05 * num,
        reached[1] and sloped["reached_both"] >= 0.95 * num,
    )
    assert verdict[20, "cartoons"] == judged(*parts)


def test_verdicts_of_modular_addition(rows, verdict):
    found = rows["modular"]
    counts, keys = [len(steps) for steps in found["birth_steps"]], found["key_frequencies_unblocked"]
    assert counts == found["births_per_seed"]
    several = [sum(count >= 2 for count in row) >= 0.9 * len(row) for row in (counts, keys)]
    assert verdict[15, "modular"] == judged(*several)
    apart, several = found["birth_gaps"]["apart"], [len(steps) > 1 for steps in found["dated_steps"]]
    assert found["birth_gaps"]["seeds_with_two"] == sum(several) >= apart["num"]
    p = max(found["pairing"][null]["p_more"][1] for null in ("shuffle", "clock"))
    assert verdict[16, "modular"] == judged(apart["count"] > apart["num"] / 2, p <= 0.05)
    formed, survived = (sum(found["fates"][name]) for name in ("formed", "survived"))
    assert formed == sum(counts)
    p = found["comparison"]["p_value"]
    assert verdict[17, "modular"] == judged(survived >= 0.95 * formed, p is not None and p <= 0.05)


def test_scans_and_circles_start_at_the_minimum(rows):
    for name, at_minimum in rows["learning"]["at_minimum"].items():
        for d in rows["steering"]["directions"]:
            assert at(d, name, 0.0) == at_minimum["loss"]
        assert rows["planes"]["circles"][name]["center"] == at_minimum["loss"]


# Killed, and gone on --------------------------------------------------------------------------------------------------

GOES_ON = ["learning", "curvature", "modular"]


def started(out, *arguments):
    code = "import sys; from lowhanging.reproduce import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code]
    arguments = ["reproduce", "--tiny", "--out", str(out), "--no-figures", *arguments]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_to_the_same_bytes(report, tmp_path):
    only = ["--only", ",".join(GOES_ON)]
    out = tmp_path / "killed"
    # In the middle of the eigenpairs; then in the middle of a stack that trains, of which the library keeps its state.
    for file in ("pairs-number.npz", "births-resume.npz"):
        process = started(out, *only)
        try:
            while not list(out.glob(f"work/*/*/{file}")):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.005)
        finally:
            process.kill()
            process.communicate()
        assert not (out / "results.json").exists()
    part = next(out.glob("work/*/seed-0")) / ".minimum.npz.x.part"
    part.write_bytes(b"half")  # what a kill while writing leaves; a young one could be another run's
    os.utime(part, (time.time() - 7200,) * 2)
    process = started(out, *only)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert "train and polish: finished earlier" in said
    assert "eigenpairs of the three losses: finished earlier" in said
    assert not list(out.glob("work/*/*/*-resume.npz"))
    assert not part.exists()
    whole = tmp_path / "whole"
    shutil.copytree(report / "work", whole / "work")
    assert cli.main(["reproduce", "--tiny", "--out", str(whole), "--no-figures", *only]) == 0
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert (out / "claims.md").read_bytes() == (whole / "claims.md").read_bytes()


def test_more_seeds_go_on_from_the_first_and_give_intervals(report, tmp_path, capsys):
    out = tmp_path / "two"
    shutil.copytree(report / "work", out / "work")
    arguments = ["reproduce", "--tiny", "--out", str(out), "--seeds", "2", "--only", "learning,rates"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert "network 0, train and polish: finished earlier" in said.err
    assert re.search(r"network 1, train and polish: \d+\.\d s", said.err)
    found = json.loads((out / "results.json").read_text())
    first, second = found["rows"]["learning"]
    assert first == json.loads((report / "results.json").read_text())["rows"]["learning"][0]
    assert second["minimum"] != first["minimum"]
    assert {claim["number"] for claim in found["claims"]} == {1, 2}
    assert "means over 2 seeds, with 95 % intervals" in found["claims"][0]["measured"]
    accuracies = [row["accuracies"]["number"][0] for row in (first, second)]  # before training
    assert len(set(accuracies)) == 2
    odds = [math.log(p / (1 - p)) for p in accuracies]
    mean, half = sum(odds) / 2, 12.706204736 * abs(odds[0] - odds[1]) / 2  # t(0.975, 1) |a - b| / 2
    middle, low, high = (100 / (1 + math.exp(-value)) for value in (mean, mean - half, mean + half))
    assert f"number-only {middle:.1f} % [{low:.1f}, {high:.1f}] (" in found["claims"][0]["null"]
    assert (out / "training.png").exists()
    assert not (out / "canyons.png").exists()


def test_work_of_other_settings_is_left_alone_and_damaged_work_is_done_again(report, tmp_path, capsys):
    out = tmp_path / "other"
    shutil.copytree(report / "work", out / "work")
    (old,) = (out / "work").iterdir()
    arguments = ["reproduce", "--tiny", "--out", str(out), "--only", "toy-sum", "--epochs", "2", "--no-figures"]
    assert cli.main(arguments) == 0
    assert f"{old} is work of a run with other sizes: left alone" in capsys.readouterr().err
    (new,) = set((out / "work").iterdir()) - {old}
    unit = new / "no-network" / "unit-toy-sum.json"
    unit.write_text('{"numbers": {"sin')
    before = (out / "results.json").read_bytes()
    assert cli.main(arguments) == 0
    assert "is no finished unit of work: it is measured again" in capsys.readouterr().err
    assert before == (out / "results.json").read_bytes()


def test_fresh_forgets_the_finished_work(tmp_path, capsys):
    arguments = ["reproduce", "--tiny", "--out", str(tmp_path), "--only", "toy-sum", "--no-figures"]
    for extra, is_old in ([], False), ([], True), (["--fresh"], False):
        assert cli.main([*arguments, *extra]) == 0
        assert ("toy sum: finished earlier" in capsys.readouterr().err) == is_old
