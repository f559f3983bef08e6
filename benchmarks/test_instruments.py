"""Do the instruments see what is planted, and stay silent where nothing is? At one seed; the tables take more."""

from __future__ import annotations

import instruments
import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planted():
    return instruments.towers(instruments.views_of(1000), 0.0, 0)


def test_only_resampled_losses_steer_into_the_right_circuit_and_move_the_answers(planted):
    found = instruments.steering(planted)
    for keep in instruments.CUES:
        assert found[f"ratio, resampled, keep {keep}: the weights"]
        assert found[f"project, resampled, keep {keep}: the answers"]
        assert not found[f"project, blanked, keep {keep}: the weights"]
        assert not found[f"project, blanked, keep {keep}: the answers"]
        assert not found[f"ratio, blanked, keep {keep}: the answers"]


def test_a_random_direction_moves_no_answers(planted):
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(planted.num_params, generator=generator)
    theta = planted.theta + instruments.STEP * u / u.norm()
    for keep, ablate in (instruments.CUES, instruments.CUES[::-1]):
        assert not instruments.moved(planted, theta, keep, ablate)
        assert instruments.moved(planted, planted.ablated(ablate), keep, ablate)


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_slope_and_merging_are_seen_on_the_sloped_cartoon_alone(slope):
    found = instruments.slopes(instruments.cartoon(slope, 0))
    assert found == {"the way out is sloped": slope > 0, "canyons merge": slope > 0}


def test_circles_and_births_are_seen_where_they_are():
    clear = instruments.circles(instruments.pasted(0.3, 0))
    assert clear["circle_score, in their planes"]
    assert clear["key_frequencies, in their planes"]
    assert clear["key_frequencies, turned"]
    assert not clear["circle_score, turned"]  # it knows the planes (0, 1), (2, 3), ... only
    assert clear["circle_score by frequencies, in their planes"]
    assert clear["circle_score by frequencies, turned"]
    drowned = instruments.circles(instruments.pasted(3.0, 0))
    assert not any(drowned[name] for name in drowned if name.startswith("circle_score"))
    born = instruments.born(instruments.growing(0.3, 0))
    assert born == {name: name.endswith(("dated", "no other")) for name in born}
