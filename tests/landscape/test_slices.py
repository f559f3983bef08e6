"""Lines and paths against quadratics whose values there are known, and against accuracies counted by hand."""

import copy
import itertools

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
        {"log": lh.FunctionObjective(lambda t: t.log().sum(), torch.tensor([1.0]))},
        torch.tensor([1.0]),
        extent=(-2, 1),
        num=4,
    )
    assert torch.isnan(scan.losses["log"][0])
    assert torch.isneginf(scan.losses["log"][1])
    assert float(scan.losses["log"][3]) == pytest.approx(float(torch.tensor(2.0).log()))


def test_center_replaces_theta0_and_allows_different_ones():
    mixed = {"a": lh.FunctionObjective(value, THETA0), "b": lh.FunctionObjective(value, THETA0 + 1)}
    center = torch.zeros(P, dtype=torch.float64)
    scan = lh.line_slice(mixed, DIRECTION, extent=(0, 1), num=3, center=center)
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
    loaded = lh.landscape.LineSlice.load(scan.save(tmp_path / "scan"))
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
    with pytest.raises(TypeError, match=r"losses is a list, expected a loss, or a mapping name -> loss.\nName them"):
        lh.line_slice([*losses().values()], DIRECTION)
    with pytest.raises(TypeError, match=r"losses is a Linear, expected an objective.\nWrap it: lh.Objective"):
        lh.line_slice(nn.Linear(2, 2), DIRECTION)
    with pytest.raises(ValueError, match="losses has the names"):
        lh.line_slice({}, DIRECTION)
    other = lh.FunctionObjective(lambda t: t.sum(), torch.ones(2))
    with pytest.raises(ValueError, match=r"losses have 6 \(quadratic\) and 2 \(other\) parameters"):
        lh.line_slice({**losses(), "other": other}, DIRECTION)


def test_a_single_loss_is_called_loss():
    loss = losses()["quadratic"]
    plane = lh.plane_slice(loss, (DIRECTION, B), num=3)
    for found, expected in (
        (lh.line_slice(loss, DIRECTION, num=5), lh.line_slice({"loss": loss}, DIRECTION, num=5)),
        (lh.path_slice(loss, POINTS, num=7), lh.path_slice({"loss": loss}, POINTS, num=7)),
        (plane, lh.plane_slice({"loss": loss}, (DIRECTION, B), num=3)),
        (lh.plane_trajectory(plane, POINTS, losses=loss), lh.plane_trajectory(plane, POINTS, losses={"loss": loss})),
    ):
        assert list(found.losses) == ["loss"]
        assert torch.equal(found.losses["loss"], expected.losses["loss"])


def test_symmetric_extents_give_symmetric_steps_with_or_without_a_zero():
    for num in (4, 5, 33, 41):
        alphas = lh.line_slice(losses(), DIRECTION, extent=0.7, num=num).alphas
        assert torch.equal(alphas, -alphas.flip(0))
        assert bool((alphas == 0).any()) == (num % 2 == 1)


def test_a_line_knows_its_name_and_its_seed(tmp_path):
    model, inputs, targets = network()
    loss = {"loss": lh.Objective(model, (inputs, targets))}
    scan = lh.line_slice(loss, "filter", num=3, seed=7)
    assert torch.equal(scan.direction, lh.random_direction(loss["loss"], normalization="filter", seed=7))
    assert (scan.seed, scan.name) == (7, "random direction (filter)")
    assert repr(scan).startswith("LineSlice(loss; 3 steps from -1 to 1 along random direction (filter), |direction| = ")
    given = lh.line_slice(loss, loss["loss"].space.unflatten(scan.direction), num=3, name="steering direction")
    assert torch.equal(given.losses["loss"], scan.losses["loss"])
    assert (given.seed, given.name) == (None, "steering direction")
    assert lh.landscape.LineSlice.load(given.save(tmp_path / "given")).name == "steering direction"


POINTS = [THETA0, THETA0 + 3 * DIRECTION, B, A[0]]


@pytest.mark.parametrize("num", [4, 5, 16, 33])
@pytest.mark.parametrize("engine", ["point by point", "vmap"])
def test_every_point_of_a_path_equals_the_closed_form(num, engine):
    path = lh.path_slice(losses(), POINTS, num=num, engine=engine)
    lengths = [float((b - a).norm()) for a, b in itertools.pairwise(POINTS)]
    assert path.knots.tolist() == pytest.approx([sum(lengths[:i]) for i in range(4)])
    assert path.positions.shape == path.losses["quadratic"].shape == (num,)
    assert bool((path.positions.diff() > 0).all())
    for position, found, quartic in zip(path.positions, path.losses["quadratic"], path.losses["quartic"], strict=True):
        i = min(int((path.knots <= position).sum()) - 1, 2)
        t = float((position - path.knots[i]) / lengths[i])
        theta = POINTS[i] + t * (POINTS[i + 1] - POINTS[i])
        assert float(found) == pytest.approx(float(value(theta)), rel=1e-12, abs=1e-12)
        assert float(quartic) == pytest.approx(float((theta**4).sum()), rel=1e-12)
    for knot, point in zip(path.knots, POINTS, strict=True):
        (where,) = (path.positions == knot).nonzero()[:, 0].tolist()
        if engine == "point by point":  # bit for bit
            assert float(path.losses["quadratic"][where]) == float(losses()["quadratic"](point))


def test_the_points_of_a_path_are_shared_by_length():
    path = lh.path_slice(losses(), [0 * THETA0, 3 * DIRECTION, 4 * DIRECTION], num=41)
    assert torch.allclose(path.positions.diff(), path.positions[-1] / 40)
    uneven = lh.path_slice(losses(), [0 * THETA0, 1000 * DIRECTION, 1001 * DIRECTION, 1002 * DIRECTION], num=6)
    assert [int((uneven.positions < knot).sum()) for knot in uneven.knots] == [0, 3, 4, 5]
    assert repr(uneven).startswith("PathSlice(quadratic, quartic; 6 points through 4, length ")


def test_checkpoints_of_a_network_are_a_path(tmp_path):
    model, inputs, targets = network()
    run = lh.train(model, (inputs, targets), num_epochs=3, checkpoints=1, progress=False)
    loss = lh.Objective(model, (inputs, targets))
    path = lh.path_slice({"loss": loss}, run.checkpoints, num=10)
    for knot, theta in zip(path.knots, run.checkpoints, strict=True):
        (where,) = (path.positions == knot).nonzero()[:, 0].tolist()
        value, accuracy = loss.evaluate(theta)
        assert (float(path.losses["loss"][where]), float(path.accuracies["loss"][where])) == (float(value), accuracy)
    loaded = lh.landscape.PathSlice.load(path.save(tmp_path / "path"))
    assert torch.equal(loaded.points, run.checkpoints)


@pytest.mark.parametrize(
    ("points", "arguments", "message"),
    [
        ([THETA0], {}, "points are 1, expected at least two vectors"),
        ([THETA0, THETA0, B], {}, "points 0 and 1 are equal, expected segments with a length"),
        ([THETA0, B[:2]], {}, r"points\[1\] has shape \(2,\), expected \(6,\)"),
        ([THETA0, B / 0], {}, r"points\[1\] holds 6 NaN or infinite entries"),
        (POINTS, {"num": 3}, "num is 3, expected an integer of at least 4"),
    ],
)
def test_bad_paths(points, arguments, message):
    with pytest.raises(ValueError, match=message):
        lh.path_slice(losses(), points, **arguments)
