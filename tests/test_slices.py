"""`line_slice` against quadratics whose values on any line are known, and against accuracies counted by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lowhanging as lh

P = 6
GENERATOR = torch.Generator().manual_seed(1)
A = torch.randn(P, P, generator=GENERATOR, dtype=torch.float64)
A = A + A.T
B = torch.randn(P, generator=GENERATOR, dtype=torch.float64)
THETA0 = torch.randn(P, generator=GENERATOR, dtype=torch.float64)
DIRECTION = torch.randn(P, generator=GENERATOR, dtype=torch.float64)


def value(theta):
    return 0.5 * theta @ A @ theta + B @ theta


def losses() -> dict:
    return {
        "quadratic": lh.FunctionObjective(value, THETA0),
        "quartic": lh.FunctionObjective(lambda t: (t**4).sum(), THETA0),
    }


@pytest.mark.parametrize(("extent", "num"), [((-4, 4), 33), ((-1.5, 0.5), 8), ((0, 3), 4), ((2.0, 3.0), 3), (0.3, 7)])
def test_every_point_of_a_line_equals_the_closed_form(extent, num):
    scan = lh.line_slice(losses(), DIRECTION, extent=extent, num=num)
    first, last = extent if isinstance(extent, tuple) else (-extent, extent)
    assert scan.alphas.shape == (num,)
    assert float(scan.alphas[0]) == first
    assert float(scan.alphas[-1]) == last
    gradient, curvature = (A @ THETA0 + B) @ DIRECTION, DIRECTION @ A @ DIRECTION
    expected = value(THETA0) + scan.alphas * gradient + 0.5 * scan.alphas**2 * curvature
    assert torch.allclose(scan.losses["quadratic"], expected, rtol=1e-12, atol=1e-12)
    quartic = ((THETA0 + scan.alphas[:, None] * DIRECTION) ** 4).sum(1)
    assert torch.allclose(scan.losses["quartic"], quartic, rtol=1e-12)
    assert scan.norm == pytest.approx(float(DIRECTION.norm()))
    assert scan.accuracies == {}


def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    inputs = torch.randn(50, 4)
    return nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)), inputs, torch.randint(0, 3, (50,))


def test_the_center_is_the_objectives_value_bit_for_bit_and_accuracy_is_the_share_of_right_answers():
    model, inputs, targets = network()
    whole, part = lh.Objective(model, (inputs, targets)), lh.Objective(model, (inputs[:20], targets[:20]))
    direction = torch.randn(whole.num_params, generator=torch.Generator().manual_seed(2))
    scan = lh.line_slice({"whole": whole, "part": part}, direction, extent=(-1, 1), num=5)
    assert float(scan.losses["whole"][2]) == float(whole(whole.theta0))
    for i, alpha in enumerate(scan.alphas):
        moved = whole.model_at(whole.theta0 + float(alpha) * direction)
        with torch.no_grad():
            right = (moved(inputs).argmax(1) == targets).double()
            assert float(scan.losses["whole"][i]) == pytest.approx(
                float(F.cross_entropy(moved(inputs), targets)), rel=1e-5
            )
        assert float(scan.accuracies["whole"][i]) == float(right.mean())
        assert float(scan.accuracies["part"][i]) == float(right[:20].mean())


def test_values_that_are_not_finite_are_kept():
    scan = lh.line_slice(
        {"log": lh.FunctionObjective(lambda t: t.log().sum(), torch.tensor([1.0]))}, torch.tensor([1.0]), (-2, 1), 4
    )
    assert torch.isnan(scan.losses["log"][0])
    assert torch.isneginf(scan.losses["log"][1])
    assert float(scan.losses["log"][3]) == pytest.approx(float(torch.tensor(2.0).log()))


def test_center_replaces_theta0_and_allows_different_ones():
    mixed = {"a": lh.FunctionObjective(value, THETA0), "b": lh.FunctionObjective(value, THETA0 + 1)}
    center = torch.zeros(P, dtype=torch.float64)
    scan = lh.line_slice(mixed, DIRECTION, (0, 1), 3, center=center)
    assert torch.equal(scan.losses["a"], scan.losses["b"])
    assert float(scan.losses["a"][0]) == 0.0
    with pytest.raises(ValueError, match="losses 'a' and 'b' are around different points, expected one common theta0"):
        lh.line_slice(mixed, DIRECTION)


def test_nothing_is_changed_even_after_an_exception():
    model, inputs, targets = network()
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    calls = []

    def failing(outputs, targets):
        calls.append(1)
        if len(calls) > 12:
            raise RuntimeError("planted")
        return F.cross_entropy(outputs, targets)

    loss = lh.Objective(model, (inputs, targets), loss_fn=failing)
    with pytest.raises(RuntimeError, match="planted"):
        lh.line_slice({"loss": loss}, torch.ones(loss.num_params), num=33)
    assert len(calls) > 12
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_save_and_load(tmp_path):
    scan = lh.line_slice(losses(), DIRECTION, num=5)
    loaded = lh.LineSlice.load(scan.save(tmp_path / "scan"))
    assert repr(loaded) == repr(scan)
    assert torch.equal(loaded.losses["quartic"], scan.losses["quartic"])
    assert torch.equal(loaded.direction, scan.direction)


@pytest.mark.parametrize(
    ("direction", "arguments", "message"),
    [
        (torch.ones(P + 1), {}, r"direction has shape \(7,\), expected \(6,\) = \(num_params,\)"),
        (torch.zeros(P), {}, "direction is the zero vector"),
        (torch.full((P,), float("nan")), {}, "direction holds 6 NaN or infinite entries"),
        (torch.ones(P), {"extent": (0.0, float("inf"))}, "extent is inf, expected a finite number"),
        (torch.ones(P), {"extent": (1.0, 1.0)}, r"extent is \(1, 1\), expected first < last"),
        (torch.ones(P), {"extent": (1.0, 2.0, 3.0)}, r"extent is \(1.0, 2.0, 3.0\), expected \(first, last\)"),
        (
            torch.ones(P),
            {"extent": (0.0, 1e308), "num": 2, "center": torch.full((P,), 1e308, dtype=torch.float64)},
            "extent reaches",
        ),
        (torch.ones(P), {"num": 1}, "num is 1, expected an integer of at least 2"),
    ],
)
def test_bad_arguments(direction, arguments, message):
    with pytest.raises(ValueError, match=message):
        lh.line_slice(losses(), direction, **arguments)


def test_losses_must_be_a_named_mapping_of_one_models_losses():
    with pytest.raises(TypeError, match="losses is a FunctionObjective, expected a mapping name -> objective"):
        lh.line_slice(losses()["quadratic"], DIRECTION)
    with pytest.raises(ValueError, match="losses has the names"):
        lh.line_slice({}, DIRECTION)
    other = lh.FunctionObjective(lambda t: t.sum(), torch.ones(2))
    with pytest.raises(ValueError, match=r"losses have 6 \(quadratic\) and 2 \(other\) parameters"):
        lh.line_slice({**losses(), "other": other}, DIRECTION)
