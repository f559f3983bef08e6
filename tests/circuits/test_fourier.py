"""Circle scores and frequencies against formulas: circles, lines, ellipses, noise; and against a transform by hand."""

import math

import pytest
import torch

from lowhanging import circuits

P = 37
ANGLE = 2 * math.pi * torch.arange(P, dtype=torch.float64) / P


def circle(frequency=5, radius=1.0, ratio=1.0, p=P):
    angle = 2 * math.pi * frequency * torch.arange(p, dtype=torch.float64) / p
    return radius * torch.stack([angle.cos(), ratio * angle.sin()], dim=1)


def rotation(angle):
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)


@pytest.mark.parametrize("frequency", [1, 5, 18])
def test_a_circle_scores_one_whatever_its_place_size_and_turn(frequency):
    plain = circle(frequency)
    for block in (plain, 3e-4 * plain, plain + torch.tensor([7.0, -2.0]), plain @ rotation(0.7)):
        found = circuits.circle_score(block)
        assert float(found.score) == pytest.approx(1.0, abs=1e-6)
        assert float(found.circularity) == pytest.approx(1.0, abs=1e-6)
        assert int(found.frequency) == frequency
        assert int(found.handedness) == 1
    mirrored = circuits.circle_score(plain.flip(1))
    assert float(mirrored.score) == pytest.approx(1.0, abs=1e-6)
    assert (int(mirrored.frequency), int(mirrored.handedness)) == (frequency, -1)
    assert float(circuits.circle_score(3 * plain).rms) == pytest.approx(3.0)


def test_opposite_frequencies_are_one_with_opposite_handedness():
    found = circuits.circle_score(circle(P - 5))
    assert (int(found.frequency), int(found.handedness)) == (5, -1)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.2])
def test_a_line_scores_one_half(angle):
    line = circle(4) * torch.tensor([1.0, 0.0])
    found = circuits.circle_score(line @ rotation(angle))
    assert float(found.score) == pytest.approx(0.5, abs=1e-6)
    assert float(found.concentration) == pytest.approx(1.0, abs=1e-6)
    assert int(found.frequency) == 4
    assert int(found.handedness) == 0


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.25, 0.01])
def test_an_ellipse(ratio):
    found = circuits.circle_score(circle(7, ratio=ratio) @ rotation(0.4))
    assert float(found.score) == pytest.approx((1 + ratio) ** 2 / (2 * (1 + ratio**2)), abs=1e-6)
    assert float(found.rms) == pytest.approx(math.sqrt((1 + ratio**2) / 2), abs=1e-6)  # not the mean distance


def test_two_equal_circles_in_one_plane_score_one_half():
    for other in (3, P - 3, 11):
        assert float(circuits.circle_score(circle(5) + circle(other)).score) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6])
def test_noise_lowers_the_score_as_the_formula_says(sigma):
    """Mean over 2,000 draws, to 0.01."""
    generator = torch.Generator().manual_seed(0)
    noise = sigma * torch.randn(2000, P, 2, generator=generator, dtype=torch.float64)
    score = circuits.circle_score(circle(6) + noise).score
    expected = (1 + 2 * sigma**2 / P) / (1 + 2 * sigma**2 * (P - 1) / P)
    assert float(score.mean()) == pytest.approx(expected, abs=0.01)


def test_pure_noise_stays_below_the_threshold():
    noise = torch.randn(20_000, P, 2, generator=torch.Generator().manual_seed(1))
    assert float(circuits.circle_score(noise).score.max()) < 0.45


def test_many_blocks_are_scored_one_by_one_and_against_a_transform_by_hand():
    embedding = torch.randn(3, 4, 11, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = circuits.circle_score(embedding)
    assert found.score.shape == found.frequency.shape == (3, 4, 3)
    for i in range(3):
        for j in range(4):
            for k in range(3):
                x, y = embedding[i, j, :, 2 * k], embedding[i, j, :, 2 * k + 1]
                a = torch.arange(11, dtype=torch.float64)
                powers = {}
                for f in range(-5, 6):
                    turn = 2 * math.pi * f * a / 11
                    real = (x * turn.cos() + y * turn.sin()).sum()
                    imaginary = (y * turn.cos() - x * turn.sin()).sum()
                    powers[f] = float(real**2 + imaginary**2)
                del powers[0]
                best = max(powers, key=powers.get)
                total = sum(powers.values())
                assert float(found.score[i, j, k]) == pytest.approx(powers[best] / total, abs=1e-12)
                assert int(found.frequency[i, j, k]) == abs(best)
                assert int(found.handedness[i, j, k]) == (1 if best > 0 else -1)
                pair = (powers[best] + powers[-best]) / total
                assert float(found.concentration[i, j, k]) == pytest.approx(pair, abs=1e-12)


def test_a_constant_block_and_an_even_modulus():
    constant = circuits.circle_score(torch.full((9, 2), 1234.567))
    assert (float(constant.score), int(constant.frequency), int(constant.handedness)) == (0.0, 0, 0)
    alternating = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(4, 1)  # frequency 4 of 8: its own opposite, a line
    found = circuits.circle_score(alternating)
    assert (float(found.score), int(found.frequency), int(found.handedness)) == (0.5, 4, 0)
    assert float(found.concentration) == pytest.approx(1.0)


def test_modes_are_shares_of_power():
    embedding = torch.cat([2 * circle(3), circle(10), torch.ones(P, 1)], dim=1)
    shares = circuits.fourier_modes(embedding)
    assert shares.shape == (P // 2,)
    assert float(shares[2]) == pytest.approx(0.8)
    assert float(shares[9]) == pytest.approx(0.2)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert circuits.key_frequencies(embedding).tolist() == [3, 10]
    assert circuits.key_frequencies(embedding, 0.5).tolist() == [3]
    assert circuits.key_frequencies(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), 1.0).tolist() == [2]  # exactly it
    both = circuits.key_frequencies(torch.stack([embedding, embedding.roll(1, 0)]))
    assert [row.tolist() for row in both] == [[3, 10], [3, 10]]
    assert not bool(circuits.fourier_modes(torch.full((P, 3), 0.1)).any())
    drawn = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double()
    even, centred = circuits.fourier_modes(drawn), drawn - drawn.mean(0)
    assert even.shape == (4,)
    for f in (1, 2, 3, 4):  # at 4, half of the sampling rate, there is no sine
        angles = 2 * math.pi * f * torch.arange(8).double() / 8
        waves = [wave / wave.norm() for wave in (angles.cos(), angles.sin())[: 1 if f == 4 else 2]]
        explained = sum(float((wave @ centred).square().sum()) for wave in waves)
        assert float(even[f - 1]) == pytest.approx(explained / float(centred.square().sum()))


def test_scores_are_saved(tmp_path):
    found = circuits.circle_score(torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0)))
    loaded = circuits.CircleScores.load(found.save(tmp_path / "scores"))
    assert torch.equal(loaded.score, found.score)
    assert repr(loaded) == repr(found)


@pytest.mark.parametrize(
    ("embedding", "error", "message"),
    [
        (torch.ones(7, 3), ValueError, "embedding has 3 columns, expected an even number, two per block"),
        (
            torch.ones(2, 2),
            ValueError,
            r"embedding has shape \(2, 2\), expected \(..., p, d\)",
        ),
        (torch.ones(7), ValueError, r"embedding has shape \(7,\)"),
        (torch.ones(7, 2).long(), TypeError, "embedding is torch.int64"),
        (torch.ones(7, 2) / 0, ValueError, "embedding holds 14 NaN or infinite entries"),
    ],
)
def test_bad_embeddings(embedding, error, message):
    with pytest.raises(error, match=message):
        circuits.circle_score(embedding)


def test_bad_thresholds():
    with pytest.raises(ValueError, match="threshold is 0, expected a finite number in"):
        circuits.key_frequencies(torch.ones(7, 2), 0)
    with pytest.raises(ValueError, match=r"embedding has shape \(1, 1, 7, 2\), expected \(p, d\) or \(s, p, d\)"):
        circuits.key_frequencies(torch.ones(1, 1, 7, 2))
