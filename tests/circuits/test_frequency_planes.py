"""Circles in any embedding: planted and turned ones are found, whatever the rotation; where nothing is, none is."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

import lowhanging as lh
from lowhanging import circuits

P = 53


def walk(frequency, p=P):
    angle = 2 * math.pi * frequency * torch.arange(p, dtype=torch.float64) / p
    return torch.stack([angle.cos(), angle.sin()], 1)


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def rotation(d, seed=0):
    return torch.linalg.qr(drawn(d, d, seed=seed))[0]


def planted(frequencies, d=16, noise=0.2, seed=0, p=P):
    """Circles of radius 1, each in a plane of its own, none along the columns, and noise in all."""
    axes = rotation(d, seed + 1)
    circles = torch.cat([walk(f, p) for f in frequencies], 1)
    return circles @ axes[: circles.shape[1]] + noise * drawn(p, d, seed=seed)


def scores(embedding, **arguments):
    return circuits.circle_score(embedding, planes="frequencies", **arguments)


def found_in(embedding, **arguments):
    found = scores(embedding, **arguments)
    return found.frequency[found.is_circle].tolist()


def test_planted_circles_are_found_with_noise_and_nothing_else_is():
    for seed in range(5):
        assert found_in(planted((3, 9, 20), seed=seed)) == [3, 9, 20]
    found = scores(planted((3, 9, 20)))
    assert found.score.shape == found.share.shape == (P // 2,)
    assert found.frequency.tolist() == list(range(1, P // 2 + 1))
    # The plane holds the circle, and the noise of its two dimensions: (1 + 2 s^2 / p) / (1 + 2 s^2 (p - 1) / p), 0.926.
    for f in (3, 9, 20):
        assert float(found.score[f - 1]) == pytest.approx(1 / (1 + 2 * 0.2**2), abs=0.04)
        assert float(found.rms[f - 1]) == pytest.approx(math.sqrt(1 + 2 * 0.2**2), abs=0.1)
    assert "3 circles: f = " in repr(found)


def test_where_nothing_is_nothing_is_found():
    """At most one embedding in 101 is given any circle: none of 40, of many widths."""
    wrong = [found_in(drawn(P, d, seed=seed)) for d in (2, 8, 64, 300) for seed in range(10)]
    assert not any(wrong), wrong
    for seed in range(3):
        model = lh.ModularTransformer(seed=seed)
        assert found_in(model.embedding[:P]) == []
    # Strong structure that is no circle: rows of one strong direction, clusters.
    assert found_in(drawn(P, 1) @ drawn(1, 20) + 0.01 * drawn(P, 20, seed=1)) == []
    assert found_in(3 * drawn(5, 20)[torch.arange(P) * 7 % 11 % 5] + 0.1 * drawn(P, 20, seed=1)) == []


def test_a_score_of_noise_alone_is_no_circle_however_high():
    wide = drawn(P, 500)  # its planes are chosen for their frequencies: nearly all of their power is in them
    found = scores(wide)
    assert float(found.score.min()) > 0.75
    assert not bool(found.is_circle.any())
    assert float(found.chance[0]) == pytest.approx(float(found.score.median()), abs=0.02)


def test_a_rotation_a_shift_and_a_scale_change_nothing():
    embedding = planted((4, 11))
    turned = 3e-3 * embedding @ rotation(16, 7) + 5.0
    one, other = scores(embedding), scores(turned)
    for name in ("score", "concentration", "circularity", "share", "chance"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-7), name
    assert torch.equal(one.is_circle, other.is_circle)
    assert torch.allclose(other.rms, 3e-3 * one.rms, rtol=1e-6)


def test_against_a_plane_found_by_hand():
    """The plane is the span of the two sums; its points, as two columns, have the same score."""
    embedding = planted((5, 6), noise=0.5)
    centred = embedding - embedding.mean(0)
    found = scores(embedding)
    for f in (1, 5, 6, 17):
        sums = walk(f).T @ centred
        axes = torch.linalg.svd(sums, full_matrices=False).Vh
        by_hand = circuits.circle_score(centred @ axes.T)
        z = torch.complex(*(centred @ axes.T).T)
        power = torch.fft.fft(z).abs().square()[1:]
        best = float(max(power[f - 1], power[P - f - 1]) / power.sum())  # at this frequency, if it's not the strongest
        assert float(found.score[f - 1]) == pytest.approx(best, abs=1e-9)
        assert float(found.rms[f - 1]) == pytest.approx(float(by_hand.rms), rel=1e-9)
        assert np.allclose(subspace_angles(axes.T.numpy(), sums.T.numpy()), 0, atol=1e-6)
    assert torch.allclose(found.share, circuits.fourier_modes(embedding), atol=1e-9)


def test_known_shapes():
    ellipse = walk(7) * torch.tensor([1.0, 0.5])
    assert float(scores(ellipse @ rotation(2)).score[6]) == pytest.approx(1.5**2 / (2 * 1.25), abs=1e-9)
    line = walk(4)[:, :1] @ drawn(1, 6)
    found = scores(line)
    assert float(found.score[3]) == pytest.approx(0.5, abs=1e-6)
    assert float(found.concentration[3]) == pytest.approx(1.0, abs=1e-6)
    assert not bool(found.is_circle.any())
    single = scores(walk(4)[:, :1])  # one column
    assert float(single.score[3]) == pytest.approx(0.5, abs=1e-9)
    # Two frequencies in one plane have half of its power each; in planes of their own all of it.
    together = scores((walk(3) + walk(8)) @ drawn(2, 6))
    assert together.score[[2, 7]].tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    apart = scores(torch.cat([walk(3), walk(8)], 1))
    assert apart.score[[2, 7]].tolist() == pytest.approx([1.0, 1.0])
    assert apart.frequency[apart.is_circle].tolist() == [3, 8]
    constant = scores(torch.full((9, 4), 0.1))
    assert not bool(constant.score.any() | constant.is_circle.any())
    alternating = scores((-1.0) ** torch.arange(8).double()[:, None] @ drawn(1, 3))
    assert alternating.score[3].item() == pytest.approx(0.5)  # half the sampling rate: a line


def test_two_circles_of_one_plane_are_a_half_each():
    axes = rotation(6)[:2]
    found = scores((walk(3) + walk(8)) @ axes)
    assert found.score[[2, 7]].tolist() == pytest.approx([0.5, 0.5], abs=1e-9)
    assert not bool(found.is_circle.any())  # as of two columns: neither is three quarters of its plane


def test_the_axes_of_a_plane():
    embedding = planted((5, 9), noise=0.1)
    axes = circuits.frequency_planes(embedding, [9, 5])
    assert axes.shape == (2, 2, 16)
    assert torch.allclose(axes @ axes.mT, torch.eye(2, dtype=torch.float64).expand(2, 2, 2), atol=1e-9)
    for pair, f in zip(axes, (9, 5), strict=True):
        points = (embedding - embedding.mean(0)) @ pair.T
        assert float((points - walk(f)).square().sum(1).mean().sqrt()) < 0.2  # number 0 at angle 0, counterclockwise
    with pytest.raises(ValueError, match="an entry of frequencies is 27, expected an integer from 1 to 26"):
        circuits.frequency_planes(embedding, [27])


def test_tokens_in_another_order():
    embedding = planted((3, 9))
    order = np.random.default_rng(3).permutation(200)[:P]
    vocabulary = drawn(200, 16, seed=9)
    vocabulary[order] = embedding
    assert found_in(vocabulary, order=order.tolist()) == [3, 9]
    assert torch.equal(scores(vocabulary, order=torch.from_numpy(order)).score, scores(embedding).score)
    assert found_in(embedding[torch.randperm(P, generator=torch.Generator().manual_seed(0))]) == []
    with pytest.raises(ValueError, match="order has 4 entries, 3 of them different, expected a row of its own"):
        scores(embedding, order=[0, 1, 2, 1])
    with pytest.raises(ValueError, match="an entry of order is 53, expected an integer from 0 to 52"):
        scores(embedding, order=[0, 1, 53])
    with pytest.raises(TypeError, match="order is a str, expected several integers"):
        scores(embedding, order="012")


def test_many_embeddings_are_scored_one_by_one():
    many = torch.stack([planted((3, 9)), drawn(P, 16), planted((5,), seed=4)]).reshape(3, 1, P, 16)
    found = scores(many)
    assert found.score.shape == (3, 1, P // 2)
    for i in range(3):
        assert torch.allclose(found.score[i, 0], scores(many[i, 0]).score)
        assert torch.equal(found.is_circle[i, 0], scores(many[i, 0]).is_circle)


def test_draws_are_private_and_repeatable(monkeypatch):
    state = torch.get_rng_state()
    embedding = planted((3,), noise=0.6)
    one = scores(embedding, num_draws=20, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.chance, scores(embedding, num_draws=20, seed=1).chance)
    assert not torch.equal(one.chance, scores(embedding, num_draws=20, seed=2).chance)
    monkeypatch.setattr(__import__("sys").modules["lowhanging.circuits.fourier"], "_CHUNK", 3 * P * P)
    assert torch.allclose(one.chance, scores(embedding, num_draws=20, seed=1).chance)  # in parts: the same draws
    with pytest.raises(ValueError, match="planes is 'rows', expected one of 'columns', 'frequencies'"):
        circuits.circle_score(embedding, planes="rows")
    with pytest.raises(ValueError, match="num_draws is 0"):
        scores(embedding, num_draws=0)


def test_planes_of_columns_where_circles_lie_elsewhere_are_warned_of():
    turned = planted((3, 9))
    with pytest.warns(UserWarning, match=r"circles of the frequencies \[3, 9\] in others.*\n?.*planes=\"frequencies\""):
        found = circuits.circle_score(turned)
    assert not bool(found.is_circle.any())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        circuits.circle_score(torch.cat([walk(3), walk(9)], 1))
        circuits.circle_score(drawn(P, 64))
        circuits.circle_score(drawn(P, 2))


def test_births_of_frequencies():
    """A circle that grows out of noise is born where it is first called one, and no other frequency is."""
    steps = torch.arange(0, 300, 10)
    axes, noise = rotation(16, 5)[:4], 0.25 * drawn(P, 16)
    early, late = (walk(f) @ axes[2 * i : 2 * i + 2] for i, f in enumerate((4, 13)))
    rows = torch.stack([noise + (early if t >= 100 else 0) + (late if t >= 200 else 0) for t in steps])
    found = circuits.births(scores(rows[None]), steps)
    assert found.step.shape == (1, P // 2)
    assert found.counts.tolist() == [2]
    assert found.step[0, [3, 12]].tolist() == [100, 200]
    assert found.frequency[0, [3, 12]].tolist() == [4, 13]
    assert bool(found.survived[0, [3, 12]].all())
    assert bool((found.rise_time[0, [3, 12]] >= 10).all())  # longer where the noise alone scored above its median
    assert "2.0 births per seed, first at step 100" in repr(found)


def test_a_user_s_own_unblocked_network_has_circles(tmp_path):
    """The preset's MLP without planes, early stopped; its circles survive any turn of the embedding."""
    run = lh.train_stack("redundant", seeds=(1,), num_steps=500, snapshots="embedding", log_every=50, progress=False)
    rows = run.snapshots["embedding"][0].double()
    found = scores(rows)
    keys = sorted(circuits.key_frequencies(rows[-1]).tolist())
    assert len(keys) >= 2
    assert set(keys) <= set(found.frequency[-1][found.is_circle[-1]].tolist())
    assert not bool(found.is_circle[0].any())
    turned = scores(rows @ rotation(24, 2))
    assert torch.equal(turned.is_circle, found.is_circle)
    model = run.model(1)
    ablation = circuits.ablate_circuits(model, lh.training.PRESETS["redundant"].data().test)
    assert sorted(ablation.circuits.tolist()) == found.frequency[-1][found.is_circle[-1]].tolist()
    assert ablation.circuits[0] == circuits.key_frequencies(rows[-1])[0]  # the strongest first
    assert float(ablation.losses[0]) > float(ablation.losses[-1]) + 1
    born = circuits.births(scores(rows[None], num_draws=20), run.steps, sustain=2)
    assert set(keys) <= set(born.frequency[born.is_formed].tolist())


def test_embeddings_from_anyone_s_own_loop(tmp_path):
    model = torch.nn.Sequential(torch.nn.Embedding(P, 4), torch.nn.Linear(4, 3))
    rows, states, files, modules = [], [], [], []
    for i in range(3):
        with torch.no_grad():
            model[0].weight += i
        rows.append(model[0].weight.detach().clone())
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        file = tmp_path / f"{i}.pt"
        torch.save({"step": i, "model": states[-1]}, file)
        files.append(file if i else str(file))
        other = torch.nn.Sequential(torch.nn.Embedding(P, 4), torch.nn.Linear(4, 3))
        other.load_state_dict(states[-1])
        modules.append(other)
    expected = torch.stack(rows)
    assert torch.equal(circuits.logged_embeddings(rows), expected)
    for given in (states, files, modules, iter(states), [rows[0], states[1], files[2]]):
        assert torch.equal(circuits.logged_embeddings(given, "0.weight"), expected)
    circuits.logged_embeddings(states, "0.weight").zero_()
    assert torch.equal(states[0]["0.weight"], rows[0])  # a copy
    with pytest.raises(ValueError, match=r"checkpoints\[0\] holds no tensor 'embedding', expected one of \['0.weight'"):
        circuits.logged_embeddings(states)
    with pytest.raises(ValueError, match=r"checkpoints hold embeddings of shapes \[\(3, 4\), \(53, 4\)\]"):
        circuits.logged_embeddings([rows[0], rows[1][:3]])
    with pytest.raises(ValueError, match="checkpoints are none"):
        circuits.logged_embeddings([])
    with pytest.raises(TypeError, match="checkpoints is a dict"):
        circuits.logged_embeddings(states[0])
    with pytest.raises(TypeError, match=r"checkpoints\[1\] is an int"):
        circuits.logged_embeddings([rows[0], 3])
    with pytest.raises(FileNotFoundError):
        circuits.logged_embeddings([tmp_path / "none.pt"])
    with pytest.raises(TypeError, match=r"logged_embeddings\(them\)"):
        circuits.circle_score(rows)
