"""Pictures of circuits: they draw the numbers of their results, and GIFs have one frame per step."""

import io

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import lowhanging as lh
from lowhanging import circuits

P = 7


@pytest.fixture
def ax():
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.subplots()


def embedding() -> torch.Tensor:
    angle = 2 * torch.pi * 2 * torch.arange(P) / P
    circle = torch.stack([3 + angle.cos(), angle.sin()], dim=1)
    noise = 0.1 * torch.randn(P, 2, generator=torch.Generator().manual_seed(0))
    return torch.cat([circle, noise], dim=1)


def test_circles_of_any_embedding_are_drawn_in_planes_of_their_frequencies(ax):
    p, turn = 23, torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double())[0]
    angle = 2 * np.pi * torch.arange(p).double() / p
    waves = torch.stack([wave(f * angle) for f in (3, 8) for wave in (torch.cos, torch.sin)], 1)
    rows = (waves * torch.tensor([1, 1, 2, 2])) @ turn[:4]
    scores = circuits.circle_score(rows, planes="frequencies")
    lh.plots.circles(rows, scores, ax, columns=2)
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["f = 8, 1.00", "f = 3, 1.00"]  # the stronger first
    places = np.asarray(ax.collections[0].get_offsets())
    assert np.allclose(places, torch.stack([(8 * angle).cos(), (8 * angle).sin()], 1).numpy(), atol=1e-6)
    assert ax.get_xlabel().startswith("a plane per frequency")
    with pytest.raises(ValueError, match=r"frequencies is .* for planes of two columns"):
        lh.plots.circles(embedding(), circuits.circle_score(embedding()), frequencies=[1])
    with pytest.raises(ValueError, match="embedding has shape"):
        lh.plots.circles(rows[:9], scores)
    many = torch.stack([rows, 0.5 * rows, rows])
    found = circuits.circle_score(many, planes="frequencies", num_draws=20)
    with pytest.raises(ValueError, match="scores are of 3 embeddings"):
        lh.plots.circles(rows, found)
    picture = lh.plots.circles_animation(many, found, [0, 10, 20], columns=2, width=4, height=3)
    assert picture.data.startswith(b"GIF89a")


def test_circles_are_drawn_centered_on_one_scale_and_coloured_by_frequency_times_number(ax):
    scores = circuits.circle_score(embedding())
    assert lh.plots.circles(embedding(), scores, ax) is ax
    first, second = ax.collections
    places = np.asarray(first.get_offsets())
    expected = embedding()[:, :2].numpy() - embedding()[:, :2].mean(0).numpy()
    assert np.allclose(places, expected / np.abs(expected).max(), atol=1e-6)
    assert np.allclose(first.get_array(), [(2 * a % P) / P for a in range(P)])
    assert np.asarray(second.get_offsets())[:, 0].min() > places[:, 0].max()
    texts = [text.get_text() for text in ax.texts]
    assert texts[0] == "f = 2, 1.00"
    with pytest.raises(ValueError, match=r"embedding has shape \(7, 2\) for scores of shape \(2,\)"):
        lh.plots.circles(embedding()[:, :2], scores, ax)
    with pytest.raises(TypeError, match="scores is"):
        lh.plots.circles(embedding(), 3, ax)


def test_the_animation_of_circles_has_a_frame_per_step():
    many = torch.stack([embedding() * scale for scale in (0.1, 0.5, 1.0)])
    picture = lh.plots.circles_animation(many, circuits.circle_score(many), [0, 10, 20], width=4, height=3)
    opened = Image.open(io.BytesIO(picture.data))
    assert opened.n_frames == 3
    assert opened.size == (400, 300)
    with pytest.raises(ValueError, match=r"embeddings has shape \(3, 7, 4\) for 2 steps"):
        lh.plots.circles_animation(many, circuits.circle_score(many), [0, 10])


def test_modes_is_a_heat_map_of_the_shares(ax):
    many = torch.stack([embedding() * scale for scale in (0.1, 0.5, 1.0)])
    shares = circuits.fourier_modes(many)
    lh.plots.modes(shares, [0, 10, 30], ax)
    (mesh,) = ax.collections
    assert np.allclose(np.asarray(mesh.get_array()).reshape(3, 3), shares.T.numpy())
    assert ax.get_xlabel() == "step"
    with pytest.raises(ValueError, match=r"shares has shape \(3, 3\) for 2 steps"):
        lh.plots.modes(shares, [0, 1], ax)


def formed() -> circuits.Births:
    scores = torch.zeros(3, 40, 2)
    scores[0, 10:, 0], scores[0, 20:, 1], scores[1, 5:25, 0] = 1.0, 1.0, 1.0
    scores[2, 12:, 0], scores[2, 13:, 1] = 1.0, 1.0
    return circuits.births(scores, torch.arange(0, 400, 10))


def test_births_are_dots_at_their_steps_in_the_order_of_the_first(ax):
    lh.plots.births(formed(), ax)
    born, died = (np.asarray(dots.get_offsets()) for dots in ax.collections)
    assert sorted(map(tuple, born.tolist())) == [(50, 1), (100, 2), (120, 3), (130, 3), (200, 2)]
    assert died.tolist() == [[250, 1]]


@pytest.mark.filterwarnings("ignore:lags holds")
def test_intensity_and_survival_draw_their_rates(ax):
    found = circuits.birth_intensity(formed(), lags=(0, 50, 100, 200), num_resamples=50)
    lh.plots.birth_intensity(found, ax)
    observed, null = (patch.get_data().values for patch in ax.patches)
    assert np.allclose(observed, found.rate)
    assert np.allclose(null, found.null_rate)
    ax.clear()
    alive = circuits.survival(formed())
    lh.plots.survival(alive, ax)
    (line,) = ax.get_lines()
    assert np.allclose(line.get_ydata(), 100 * alive.share)
    assert ax.get_legend() is None
    assert ax.get_ylim()[0] <= 100 * float(alive.share.min())
    ax.clear()
    lh.plots.survival({"plenty": alive, "scarce": alive}, ax)
    text = f"{int(alive.deaths.sum())} of {alive.num_circuits} lost"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        f"plenty, {text}",
        f"scarce, {text}",
    ]
    with pytest.raises(TypeError, match="survival is an int"):
        lh.plots.survival({"plenty": 3}, ax)


def test_inside_a_network_and_its_progress(ax):
    planted = lh.planted.modular(23, (2, 3), amplitude=(4.0, 8.0), rotated=True).model
    rows = planted.embedding.detach()
    scores, waves = circuits.circle_score(rows, planes="frequencies"), circuits.logit_waves(planted, 23)
    attention = torch.rand(23, 23, 8, generator=torch.Generator().manual_seed(0))
    figure = lh.plots.inside_network(rows, scores, waves, attention=attention)
    boxes = figure.axes
    heights = [bar.get_height() for bar in boxes[1].patches]
    assert heights == pytest.approx((100 * waves.shares).tolist())
    assert [text.get_text() for text in boxes[0].texts] == ["2", "3"]
    assert sum(box.get_title().startswith("head") for box in boxes) == 6  # at most
    assert np.allclose(boxes[3].images[0].get_array(), attention[..., 0].numpy())
    assert len(lh.plots.inside_network(rows, scores, waves).axes) == 3
    with pytest.raises(ValueError, match="scores are of"):
        lh.plots.inside_network(embedding(), circuits.circle_score(embedding()), waves)
    with pytest.raises(ValueError, match=r"attention is \(3, 3, 1\), expected a tensor \(23, 23, heads\)"):
        lh.plots.inside_network(rows, scores, waves, attention=attention[:3, :3, :1])
    found = circuits.progress_measures([lh.ModularMLP(23, seed=0), planted], 23, steps=[0, 50])
    assert lh.plots.progress_measures(found, ax) is ax
    curves = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert np.allclose(curves["restricted: key waves only"], found.restricted_loss.numpy())
    assert "held-out loss" not in curves
