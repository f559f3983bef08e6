"""The reference network: its report, made by the command itself, and the solver's budget at real size.

All of its tests are in this file, so that it is trained once, by one worker. Verdicts are held against their rules.

Nothing is asserted about which claims hold: only that each is measured, and that its verdict follows from the numbers.
"""

import json
import math

import pytest
import torch
from matplotlib.image import imread

import lowhanging as lh
from lowhanging.reproduce import cli, learning, planes
from lowhanging.reproduce.claims import Claim, judged, markdown

FIGURES = {
    "images.png", "training.png", "spectra.png", "steering.png", "overlaps.png", "planes.png", "cartoons.png",
    "circuits.png", "canyons.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def report(reference, tmp_path_factory):
    """The folder that `lowhanging reproduce` writes; training is not repeated, everything after it is."""
    out = tmp_path_factory.mktemp("run") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "learn", lambda **_: reference)
        assert cli.main(["reproduce", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def results(report):
    return json.loads((report / "results.json").read_text())


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


def test_the_report_is_complete(report, results):
    assert {path.name for path in report.iterdir()} == FIGURES | {"claims.md", "results.json"}
    for name in FIGURES:
        pixels = imread(report / name)
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.02
    assert len(results["claims"]) == 20
    assert {claim["verdict"] for claim in results["claims"]} <= {"holds", "holds in part", "does not hold"}
    page = (report / "claims.md").read_text()
    for claim in results["claims"]:
        assert f"| {claim['name']} | {claim['post']} | {claim['measured']} | **{claim['verdict']}** |" in page


def test_eigenpairs_are_to_tolerance(results):
    for found in results["curvature"].values():
        assert len(found["eigenvalues"]) == 50
        assert found["largest_residual"] <= 1e-4 * found["eigenvalues"][0]


def test_verdicts_follow_from_the_numbers(results):
    verdict = {claim["name"]: claim["verdict"] for claim in results["claims"]}
    kept, ranks, large, below = [], [], [], []
    for found in results["steering"]["directions"]:
        zero, two = found["alphas"].index(0.0), found["alphas"].index(2.0)
        rise = {name: row[two] - row[zero] for name, row in found["losses"].items()}
        kept.append(rise[found["ablate"]] >= 0.5 and rise[found["preserve"]] <= 0.2 * rise[found["ablate"]])
        ranks.append(not found["ranks"]["mixed"].startswith(">") and int(found["ranks"]["mixed"]) <= 10)
        steps = [found["alphas"].index(step) for step in (1.0, 2.0, 3.0, 4.0)]
        ratios = [found["losses"][found["ablate"]][i] / found["losses"]["mixed"][i] for i in steps]
        below.append(min(ratios) > 1)
        large.append(math.exp(sum(map(math.log, ratios)) / 4) >= 5)
    assert verdict["steering keeps one circuit and ablates the other"] == judged(*kept)
    assert verdict["steering curvature lies within the top of the mixed spectrum"] == judged(*ranks)
    assert verdict["the joint loss lies below the ablated one"] == judged(all(below), *large)
    assert verdict["two circuits together beat one by a factor of ten (toy sum)"] == "holds"
    quadratic = [near <= 0.1 < far for near, far in results["planes"]["deviations_from_quadratic"].values()]
    assert verdict["near the minimum the loss is quadratic, further out it is not"] == judged(*quadratic)
    flat, sloped = (results["cartoons"][name] for name in ("flat", "sloped"))
    num = results["cartoons"]["num_starts"]
    parts = (
        flat["is_at_rest"] and flat["reached_axis"] > num / 2 and flat["reached_both"] <= 0.05 * num,
        sloped["is_at_rest"] and sloped["reached_axis"] > num / 2 and sloped["reached_both"] >= 0.95 * num,
    )
    assert verdict["flat canyons trap descent, sloped ones lead to the joint minimum"] == judged(*parts)


def test_canyon_verdicts_follow_from_the_numbers(results):
    verdict = {claim["name"]: claim["verdict"] for claim in results["claims"]}
    found = results["canyons"]
    own = [p for p in found["sphere"] if p["is_certified"] and not p["is_trivial"] and p["copy_of"] is None]
    full = found["full"]
    is_whole = full is not None and full["full_residual"] <= 0.1 * abs(full["slope"])
    is_whole = is_whole and full["full_plane_eigenvalue"] > full["full_error"]
    assert verdict["further out there are canyons, minima in all orthogonal directions"] == judged(
        bool(own), len(own) >= 2, is_whole
    )
    merged = [path["merge_radius"][0] > 0 for path in found["paths"].values()]
    assert verdict["canyons merge into one basin at a radius"] == judged(len(merged) >= 2, merged.count(False) <= 1)
    slopes = [
        min(p["slope_without_anchor"] for p in path["points"] if p["is_certified"] and p["radius"] >= 1.0)
        for path in found["paths"].values()
    ]
    assert verdict["canyons are sloped, not flat"] == judged(*(slope > 0.01 for slope in slopes))
    canyons = [p for p in found["sphere"] + found["shell"] if p["is_certified"] and not p["is_trivial"]]
    canyons += [path["points"][-1] for path in found["paths"].values()]
    named = [any(p["circuit"] == cue for p in canyons) for cue in ("number", "pattern")]
    assert verdict["canyons execute different circuits"] == judged(*named)
    assert verdict["the sloped cartoon's canyons are its axes"] == "holds"
    basin = found["basin"]["losses"]
    for p in canyons:
        move = math.log(p["losses"]["number"] / p["losses"]["pattern"]) - math.log(basin["number"] / basin["pattern"])
        if p["circuit"] is not None:
            assert abs(move) > 1
            assert p["answer_shift"][0] >= 0.1
            assert p["answer_shift"][1] > 0
        assert math.isclose(sum(p["followed"].values()), 1.0)


def test_certified_points_of_the_network_are_cheap_and_continuous(results):
    found = results["canyons"]
    for p in found["sphere"] + found["shell"]:
        assert p["residual"] <= p["tolerance"]
        assert p["num_products"] <= 25
    counts = [p["num_gradients"] for p in found["sphere"] + found["shell"]]
    assert sum(counts) <= 25 * len(counts)
    for path in found["paths"].values():
        levels = [p["level"] for p in path["points"]]
        assert levels == sorted(levels)
        assert path["points"][0]["source"] == "followed"


def test_the_center_of_each_scan_is_the_loss_at_the_minimum(results):
    for found in results["steering"]["directions"]:
        zero = found["alphas"].index(0.0)
        for name, at_minimum in results["learning"]["at_minimum"].items():
            assert found["losses"][name][zero] == at_minimum["loss"]


def test_the_planes_agree_with_the_scans_and_with_the_minimum(results):
    """Row and column through the center of the far plane are the two scans, at the steps that both have."""
    far = results["planes"]["far"]
    zero = far["alphas"].index(0.0)
    assert far["betas"][zero] == 0.0
    for name, at_minimum in results["learning"]["at_minimum"].items():
        grid = far["losses"][name]
        assert grid[zero][zero] == at_minimum["loss"]
        along_u, along_v = [row[zero] for row in grid], grid[zero]
        for found, row, steps in zip(
            results["steering"]["directions"], (along_u, along_v), (far["alphas"], far["betas"]), strict=True
        ):
            for step in (-4.0, -2.0, 2.0, 4.0):
                scanned = found["losses"][name][found["alphas"].index(step)]
                where = min(range(len(steps)), key=lambda i, step=step: abs(steps[i] - step))
                assert steps[where] == pytest.approx(step)
                assert row[where] == pytest.approx(scanned, rel=1e-5)


def test_a_second_order_expansion_is_exact_on_a_quadratic():
    f = lh.FunctionObjective(lambda t: (t[0] - 2 * t[1]) ** 2 + 3 * t[0] + t[2], torch.ones(3, dtype=torch.float64))
    plane = lh.plane_slice({"f": f}, torch.eye(3, dtype=torch.float64)[[1, 0]], 2.0, 5)
    assert torch.allclose(planes.expansion(plane, f), plane.losses["f"], rtol=1e-12)
    assert planes.deviation(plane, "f", f) < 1e-14
    cubic = lh.FunctionObjective(lambda t: t[0] ** 3 + t[1] ** 2, torch.zeros(2, dtype=torch.float64))
    plane = lh.plane_slice({"f": cubic}, torch.eye(2, dtype=torch.float64), ((-1, 2), (-1, 1)), 7)
    assert planes.deviation(plane, "f", cubic) == pytest.approx(8 / (8 + 1 + 1))


def test_shares_of_conflict_images_add_up(results):
    for shares in [results["steering"]["conflict_at_minimum"]] + [
        d["conflict"] for d in results["steering"]["directions"]
    ]:
        assert math.isclose(sum(shares.values()), 1.0)
        assert min(shares.values()) >= -1e-12


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


def test_epochs_to_half_interpolates():
    assert learning.epochs_to_half(torch.tensor([0.1, 0.3, 0.5, 0.8])) == pytest.approx(1.5)
    assert learning.epochs_to_half(torch.tensor([0.5, 0.5])) == 0.0


def test_judged_and_markdown():
    assert judged(True, True) == "holds"
    assert judged(True, False) == "holds in part"
    assert judged(False, False) == "does not hold"
    page = markdown([Claim("a", "b", "c", "d", "holds")], ["heading"])
    assert "| a | b | c | **holds** |" in page
    assert "* *a*: d." in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs is 0, expected an integer of at least 1"),
        (["--seed", "-1"], "--seed is -1, expected an integer of at least 0"),
        (["--data", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_arguments_end_with_status_2_and_leave_nothing(arguments, message, tmp_path, capsys):
    out = tmp_path / "report"
    assert cli.main(["reproduce", "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_unwritable_folder_is_refused_before_anything_runs(tmp_path, capsys):
    assert cli.main(["reproduce", "--out", ""]) == 2
    assert "--out is empty, expected the name of a folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["reproduce", "--out", str(tmp_path / "file")]) == 2
    assert "--out is" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"
