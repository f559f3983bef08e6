"""Shares of variance: against logits that are sums on purpose, against NumPy's least squares, and against noise.

Sums against averages: on answers that are one or the other on purpose, with slopes, biases and a weight to be found.
"""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.special import logsumexp

import lowhanging as lh
from lowhanging.circuits import LogitSum, logit_sum
from lowhanging.circuits.logit_sum import added, averaged, divergences

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
    return logit_sum(mixed, {"first": first, "second": second}, labels=labels, num_resamples=200, **arguments)


def test_an_exact_sum_is_found_exactly_with_its_slopes():
    found = sum_of(*scene())
    assert found.shares["both"] == pytest.approx(1.0, abs=1e-12)
    assert found.within["both"] == pytest.approx(1.0, abs=1e-12)
    assert found.slopes == pytest.approx({"first": 0.5, "second": 1.5})
    assert found.divergence["logits"] < 1e-6
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

    # The divergences, from a fit that knows no gradients: each half judged by the parameters of the other.
    z = [x.numpy() for x in centered]
    log_p = z[0] - logsumexp(z[0], axis=1, keepdims=True)

    def log_q(values: np.ndarray, rows: list[int], way: str) -> np.ndarray:
        parts = [slope * x[rows] for slope, x in zip(values[:2], z[1:], strict=True)]
        if way == "logits":
            combined = parts[0] + parts[1]
        else:
            shares = [part - logsumexp(part, axis=1, keepdims=True) for part in parts]
            weight = 1 / (1 + np.exp(-values[-1]))
            combined = np.log(weight * np.exp(shares[0]) + (1 - weight) * np.exp(shares[1]))
        combined = combined + np.append(values[2 : 1 + C], 0.0)  # one bias is no freedom
        return combined - logsumexp(combined, axis=1, keepdims=True)

    def divergence(values: np.ndarray, rows: list[int], way: str) -> np.ndarray:
        return (np.exp(log_p[rows]) * (log_p[rows] - log_q(values, rows, way))).sum(1)

    expected = {}
    for way, num in (("logits", 1 + C), ("probabilities", 2 + C)):
        start = np.concatenate([np.ones(2), np.zeros(num - 2)])
        nats = np.empty(N)
        for one, other in ((fitted, judged), (judged, fitted)):
            best = scipy.optimize.minimize(
                lambda v, one=one, way=way: divergence(v, one, way).mean(), start, method="BFGS"
            ).x
            nats[other] = divergence(best, other, way)
        expected[way] = nats.mean()
        assert found.num_free[way] == num
        assert found.divergence[way] == pytest.approx(expected[way], rel=2e-3)
    assert float(found.divergence_gain[0]) == pytest.approx(expected["probabilities"] - expected["logits"], rel=5e-3)


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
    assert found.divergence["probabilities"] < 1e-6
    assert float(found.divergence_gain[2]) < 0
    assert found.plain_divergence["probabilities"] == pytest.approx(0.0, abs=1e-12)
    assert float(found.plain_gain[2]) < 0
    plain = found.plain_divergence["probabilities"] - found.plain_divergence["logits"]
    assert float(found.plain_gain[0]) == pytest.approx(plain)


BIASES = torch.linspace(-1.0, 1.0, C, dtype=torch.float64)


@pytest.mark.parametrize(
    ("truth", "winner"),
    [
        (lambda z: 0.4 * z[0] + 0.9 * z[1] + BIASES, "logits"),
        (lambda z: (0.3 * (0.7 * z[0]).softmax(1) + 0.7 * (1.8 * z[1]).softmax(1)).log() + BIASES, "probabilities"),
        (lambda z: (0.9 * (2.0 * z[0]).softmax(1) + 0.1 * (0.5 * z[1]).softmax(1)).log() - BIASES, "probabilities"),
    ],
    ids=["sum", "average", "lopsided average"],
)
def test_either_way_is_found_with_the_parameters_it_was_made_of(truth, winner):
    """Exactly; and with noise on the mixed logits it is still the nearer one, on examples not fitted to."""
    _, first, second, labels = scene()
    mixed = truth((first, second))
    found = sum_of(mixed, first, second, labels)
    loser = {"logits": "probabilities", "probabilities": "logits"}[winner]
    assert found.divergence[winner] < 1e-5
    assert found.divergence[loser] > 1e-3
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=(N, C)))
    noisy = sum_of(mixed + 0.2 * noise, first, second, labels)
    sign = 1 if winner == "logits" else -1
    assert (sign * noisy.divergence_gain[1:]).min() > 0
    assert found.num_free == {"logits": 2 + C - 1, "probabilities": 3 + C - 1, "first": C, "second": C}
    assert found.num_free["probabilities"] >= found.num_free["logits"]


def test_neither_way_wins_where_one_cue_says_it_all():
    """A sum with a slope of 0 and an average with all weight on one cue are the same answer."""
    _, first, second, labels = scene()
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=(N, C)))
    found = sum_of(0.8 * first + noise, first, second, labels)
    assert abs(float(found.divergence_gain[0])) < 0.01
    assert found.divergence["first"] == pytest.approx(found.divergence["logits"], abs=0.01)


def test_parameters_do_not_pay_for_themselves():
    """Of cues that say nothing, a fit with 12 numbers is no nearer to new examples than the class means are."""
    rng = torch.Generator().manual_seed(0)
    mixed, first, second = (torch.randn(60, C, generator=rng, dtype=torch.float64) for _ in range(3))
    found = sum_of(mixed, first, second, torch.arange(60) % C)
    q = mixed.softmax(1).mean(0).log()
    base = float((mixed.softmax(1) * (mixed.log_softmax(1) - q)).sum(1).mean())
    assert found.divergence["logits"] > base  # in sample it would lie below
    assert found.divergence["probabilities"] > base


def test_fits_are_those_of_a_formula_in_numpy():
    rng = np.random.default_rng(3)
    z = [rng.normal(size=(7, C)), rng.normal(size=(7, C))]
    values = rng.normal(size=2 + C + 1)
    p = [np.exp(values[i] * z[i]) for i in range(2)]
    p = [each / each.sum(1, keepdims=True) for each in p]
    weight = 1 / (1 + np.exp(-values[-1]))
    by_class = np.exp(values[2:-1]) * (weight * p[0] + (1 - weight) * p[1])
    rows = [torch.from_numpy(each) for each in z]
    log_q = averaged(torch.from_numpy(values), rows)
    assert np.allclose(log_q.exp(), by_class / by_class.sum(1, keepdims=True))
    summed = np.exp(values[0] * z[0] + values[1] * z[1] + values[2:-1])
    log_q = added(torch.from_numpy(values[:-1]), rows)
    assert np.allclose(log_q.exp(), summed / summed.sum(1, keepdims=True))


def test_every_example_is_judged_by_the_fit_to_the_other_half():
    """Other answers in one half change its own fit: the divergences of that half's examples don't move."""
    mixed, first, second, _ = scene(noise=0.5)
    halves = torch.arange(N).chunk(2)
    names = ("first", "second")
    before = divergences(mixed, (first, second), names, halves)
    other = mixed.clone()
    other[0] += 3 * torch.arange(C)
    after = divergences(other, (first, second), names, halves)
    for key in ("logits", "probabilities", "first", "second"):
        assert torch.allclose(before.fitted[key][1 : N // 2], after.fitted[key][1 : N // 2], atol=1e-12)
        assert not torch.allclose(before.fitted[key][N // 2 :], after.fitted[key][N // 2 :], atol=1e-6)


def test_a_fit_that_does_not_arrive_raises(monkeypatch):
    mixed, first, second, labels = scene(noise=0.5)
    real = scipy.optimize.minimize
    short = lambda *args, **kw: real(*args, **(kw | {"options": {"maxiter": 1}}))  # noqa: E731
    monkeypatch.setattr(scipy.optimize, "minimize", short)
    with pytest.raises(lh.NotConvergedError, match="the fit of 'logits' stopped with a derivative of"):
        sum_of(mixed, first, second, labels)


def test_cross_entropy_of_the_plain_answers():
    mixed, first, second, labels = scene(noise=0.5)
    found = sum_of(mixed, first, second, labels)
    own = torch.nn.functional.cross_entropy
    assert found.cross_entropy["mixed"] == pytest.approx(float(own(mixed, labels)))
    assert found.cross_entropy["logits"] == pytest.approx(float(own(first + second, labels)))
    averaged = (first.softmax(1) + second.softmax(1)) / 2
    assert found.cross_entropy["probabilities"] == pytest.approx(float(own(averaged.log(), labels)))


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
        logit_sum(mixed, {"first": first}, labels=labels)
    with pytest.raises(ValueError, match=r"cues has the names \['first', 'logits'\], expected two names of cues, none"):
        logit_sum(mixed, {"first": first, "logits": second}, labels=labels)
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
