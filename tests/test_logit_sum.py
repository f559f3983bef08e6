"""Shares of variance: against logits that are sums on purpose, against NumPy's least squares, and against noise."""

import math

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import lowhanging as lh
from lowhanging.circuits import LogitSum, logit_sum

N, C = 600, 5


def scene(noise: float = 0.0, label_effect: float = 2.0, seed: int = 0):
    """Two cues with a common label effect, and the sum 0.5 first + 1.5 second + intercepts + a shift per example."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.permutation(np.arange(N) % C))
    one_hot = label_effect * np.eye(C)[labels.numpy()]
    first, second = one_hot + rng.normal(size=(N, C)), one_hot + rng.normal(size=(N, C))
    mixed = 0.5 * first + 1.5 * second + np.arange(C) + rng.normal(size=(N, 1)) + noise * rng.normal(size=(N, C))
    return *(torch.from_numpy(x) for x in (mixed, first, second)), labels


def sum_of(mixed, first, second, labels, **arguments) -> LogitSum:
    return logit_sum(mixed, {"first": first, "second": second}, labels, num_draws=200, **arguments)


def test_an_exact_sum_is_found_exactly_with_its_slopes():
    found = sum_of(*scene())
    assert found.shares["both"] == pytest.approx(1.0, abs=1e-12)
    assert found.within["both"] == pytest.approx(1.0, abs=1e-12)
    assert found.slopes == pytest.approx({"first": 0.5, "second": 1.5})
    assert found.divergence["logits"] == pytest.approx(0.0, abs=1e-12)
    assert float(found.divergence_gain[1]) > 0
    assert torch.allclose(found.predicted, found.observed)
    assert 0.2 < found.same_label < 0.6  # the label alone explains much of it ...
    assert abs(found.same_label_within) < 0.03  # ... and nothing within labels
    assert abs(found.other_label) < 0.03
    assert repr(found).startswith("LogitSum(both 100.0 %, first ")


def test_shares_on_paper_for_independent_parts():
    """Within labels 0.5 first + 1.5 second + noise has variances 0.25, 2.25, noise^2 of their sum."""
    found = sum_of(*scene(noise=1.0))
    total = 0.25 + 2.25 + 1.0
    assert found.within["both"] == pytest.approx(2.5 / total, abs=0.04)
    assert found.within["first"] == pytest.approx(0.25 / total, abs=0.04)
    assert found.within["second"] == pytest.approx(2.25 / total, abs=0.04)
    assert found.unique["first"] == pytest.approx(0.25 / total, abs=0.04)
    low, high = found.within_intervals["both"].tolist()
    assert low < found.within["both"] < high
    assert high - low < 0.1


def test_the_fit_is_that_of_numpy_on_the_other_half():
    """By a design matrix with every intercept in it, on the half that `logit_sum` names."""
    mixed, first, second, labels = scene(noise=0.7)
    found = sum_of(mixed, first, second, labels)
    centered = [x - x.mean(1, keepdim=True) for x in (mixed, first, second)]
    judged = [next(i for i in range(N) if torch.equal(centered[0][i], row)) for row in found.observed]
    fitted = sorted(set(range(N)) - set(judged))
    assert len(judged) == N // 2
    intercepts = np.tile(np.eye(C), (len(fitted), 1))
    design = np.column_stack([centered[1][fitted].flatten(), centered[2][fitted].flatten(), intercepts])
    solution = np.linalg.lstsq(design, centered[0][fitted].flatten().numpy(), rcond=None)[0]
    slopes, offsets = solution[:2].tolist(), torch.from_numpy(solution[2:])
    predicted = slopes[0] * centered[1][judged] + slopes[1] * centered[2][judged] + offsets
    assert torch.allclose(found.predicted, predicted, atol=1e-10)
    baseline = centered[0][judged] - centered[0][fitted].mean(0)
    share = 1 - float((centered[0][judged] - predicted).square().sum() / baseline.square().sum())
    assert found.shares["both"] == pytest.approx(share, abs=1e-10)

    # The best average of probabilities is chosen on the one half, and judged on the other.
    p, first, second = (x.softmax(1) for x in centered)

    def divergence(rows: list[int], weight: float) -> float:
        average = weight * first[rows] + (1 - weight) * second[rows]
        return float((p[rows] * (p[rows] / average).log()).sum(1).mean())

    weights = [i / 100 for i in range(101)]
    best = min(weights, key=lambda weight: divergence(fitted, weight))
    assert best != min(weights, key=lambda weight: divergence(judged, weight))
    assert found.divergence["probabilities"] == pytest.approx(divergence(judged, best), rel=1e-9)
    summed = float((p[judged] * (p[judged] / predicted.softmax(1)).log()).sum(1).mean())
    assert found.divergence["logits"] == pytest.approx(summed, rel=1e-9)
    assert float(found.divergence_gain[0]) == pytest.approx(divergence(judged, best) - summed, rel=1e-9)


def test_cues_that_say_no_more_than_the_label_are_the_same_when_dealt_out_within_it():
    labels = torch.arange(160) % 4
    first, second = 4.0 * torch.eye(4)[labels], torch.tensor([[8.0, 0, 0, 4], [0, 4, 0, 0], [0, 0, 4, 0], [4, 0, 0, 0]])
    mixed = first + torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    found = sum_of(mixed, first, second[labels], labels)  # means of whole numbers: no rounding
    assert found.shares["both"] == found.same_label > 0.5
    assert found.other_label < 0.05
    assert found.within["both"] == found.same_label_within == found.unique["first"] == 0.0


def test_answers_that_are_averaged_as_probabilities_are_told_from_sums():
    _, first, second, labels = scene()
    averaged = (0.5 * (2 * first).softmax(1) + 0.5 * (2 * second).softmax(1)).log()
    found = sum_of(averaged, 2 * first, 2 * second, labels)
    assert found.divergence["probabilities"] == pytest.approx(0.0, abs=1e-12)
    assert float(found.divergence_gain[2]) < 0


def test_unrelated_cues_explain_nothing():
    rng = torch.Generator().manual_seed(0)
    mixed, first, second = (torch.randn(N, C, generator=rng) for _ in range(3))
    found = sum_of(mixed, first, second, torch.arange(N) % C)
    assert abs(found.shares["both"]) < 0.02
    assert float(found.unique_intervals["first"][0]) < 0.005


def test_the_result_survives_a_file_and_depends_on_the_seed_alone(tmp_path):
    state = torch.get_rng_state()
    found, again = sum_of(*scene(noise=1.0)), sum_of(*scene(noise=1.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert found.shares == again.shares
    assert sum_of(*scene(noise=1.0), seed=1).shares != found.shares
    read = LogitSum.load(found.save(tmp_path / "sum.npz"))
    assert read.within == found.within
    assert torch.equal(read.predicted, found.predicted)


def test_bad_arguments():
    mixed, first, second, labels = scene()
    with pytest.raises(ValueError, match=r"cues has the names \['first'\], expected two names of cues"):
        logit_sum(mixed, {"first": first}, labels)
    with pytest.raises(ValueError, match=r"second has shape \(599, 5\), expected \(n, classes\) as the mixed"):
        sum_of(mixed, first, second[1:], labels)
    with pytest.raises(ValueError, match=r"labels has shape \(599,\), expected \(600,\) integer classes"):
        sum_of(mixed, first, second, labels[1:])
    with pytest.raises(ValueError, match="labels has 1 examples of class 4, expected at least four of each class"):
        sum_of(mixed[:5], first[:5], second[:5], torch.tensor([0, 0, 0, 0, 4]))
    with pytest.raises(ValueError, match="first holds 1 NaN"):
        sum_of(mixed, torch.where(torch.arange(N * C).reshape(N, C) == 7, math.nan, first), second, labels)


def test_the_drawing_has_a_dot_for_every_logit():
    figure = Figure()
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    found = sum_of(*scene(noise=1.0))
    assert lh.plots.logit_sum(found, ax) is ax
    others, own, equal = ax.lines
    assert len(own.get_xdata()) == len(found.labels)
    assert len(others.get_xdata()) == len(found.labels) * (C - 1)
    assert list(equal.get_xdata()) == list(equal.get_ydata())
    rows = found.observed[torch.arange(len(found.labels)), found.labels]
    assert np.allclose(np.sort(own.get_ydata()), rows.sort().values.numpy())
    assert ax.get_xlabel() == "fitted sum of the logits on first + second, each alone"
    with pytest.raises(TypeError, match="found is an int"):
        lh.plots.logit_sum(3, ax)
