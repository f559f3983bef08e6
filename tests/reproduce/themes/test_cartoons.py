"""The cartoons: flows and noise against paper, and their claims.

Oracles: the ends of the flow and the hitting time of the noise on paper; walkers.
"""

import copy
import math

import numpy as np
import pytest
import torch

from lowhanging.reproduce import claims
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.settings import SIZES, Settings
from lowhanging.reproduce.store import NO_STORE
from lowhanging.reproduce.themes import cartoons

TINY = SIZES["tiny"]


@pytest.fixture(scope="module")
def cartoon_row():
    return cartoons.measure(
        Context(Settings(TINY, "bundled", 0, 1), NO_STORE, lambda: pytest.fail("no network")), seed=3
    )


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
    for visits in (0, 20):  # with noise: reported, not judged
        row["flat"]["noisy_visits"] = visits
        first, second = cartoons.claims([row])
        assert (first.verdict, second.verdict) == ("holds", verdict)
        assert f"{claims.interval(visits, 20)} of the flat runs" in second.measured
    assert f"{claims.interval(flat[1], 20)} end at that minimum" in second.measured
    row["flat"]["canyon_error"] = None  # infinite, as JSON holds it
    assert cartoons.claims([row])[0].verdict == "holds in part"


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
