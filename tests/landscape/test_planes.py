"""Planes against quadratics whose value at every grid point is known, and against lines through the same points.

The quadratic is asymmetric in every way that a wrong picture could hide: an oblique pair of directions of different
lengths, a gradient at the center, a cross term, unequal extents and counts.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lowhanging as lh

P = 7
GENERATOR = torch.Generator().manual_seed(3)
A = torch.randn(P, P, generator=GENERATOR, dtype=torch.float64)
A = A + A.T
B, THETA0, U, V = (torch.randn(P, generator=GENERATOR, dtype=torch.float64) for _ in range(4))
U, V = U, 0.3 * V
ORTHOGONAL = V - (U @ V) / (U @ U) * U


def value(theta):
    return 0.5 * theta @ A @ theta + B @ theta


def quadratic(theta0=THETA0) -> dict:
    return {"quadratic": lh.FunctionObjective(value, theta0)}


def closed_form(alphas, betas, u, v, center):
    """f + a g.u + b g.v + (a² uAu + 2ab uAv + b² vAv) / 2, on the grid."""
    a, b = alphas[:, None], betas[None, :]
    g = A @ center + B
    bend = a**2 * (u @ A @ u) + 2 * a * b * (u @ A @ v) + b**2 * (v @ A @ v)
    return value(center) + a * (g @ u) + b * (g @ v) + 0.5 * bend


@pytest.mark.parametrize("pair", [(U, V), (U, ORTHOGONAL)], ids=["oblique", "orthogonal"])
@pytest.mark.parametrize("engine", ["point by point", "vmap"])
@pytest.mark.parametrize(
    ("extent", "num", "first", "last", "shape"),
    [
        (2.0, 5, (-2, -2), (2, 2), (5, 5)),
        ((-1, 3), (4, 7), (-1, -1), (3, 3), (4, 7)),
        (((-1.5, 0.5), (0, 3)), (8, 3), (-1.5, 0), (0.5, 3), (8, 3)),
        (((2.0, 3.0), (-5, -4)), 2, (2, -5), (3, -4), (2, 2)),
    ],
)
@pytest.mark.parametrize("center", [None, 10 * B], ids=["theta0", "off-center"])
def test_every_point_equals_the_closed_form(pair, engine, extent, num, first, last, shape, center):
    plane = lh.plane_slice(quadratic(), pair, extent=extent, num=num, center=center, engine=engine)
    assert (len(plane.alphas), len(plane.betas)) == shape == plane.losses["quadratic"].shape
    assert (float(plane.alphas[0]), float(plane.betas[0])) == first
    assert (float(plane.alphas[-1]), float(plane.betas[-1])) == last
    expected = closed_form(plane.alphas, plane.betas, *pair, THETA0 if center is None else center)
    assert float((plane.losses["quadratic"] - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
    assert torch.allclose(plane.norms, torch.stack([pair[0].norm(), pair[1].norm()]), rtol=1e-14)
    cosine = float(pair[0] @ pair[1] / pair[0].norm() / pair[1].norm())
    assert math.cos(math.radians(plane.angle)) == pytest.approx(cosine, abs=1e-14)
    assert plane.engine == engine
    assert plane.accuracies == {}


def test_axes_are_not_swapped():
    f = lh.FunctionObjective(lambda t: 3 * t[0] - 7 * t[1] ** 2, torch.zeros(2, dtype=torch.float64))
    plane = lh.plane_slice({"f": f}, torch.eye(2, dtype=torch.float64), extent=((0, 2), (0, 3)), num=(3, 4))
    for i, a in enumerate((0.0, 1.0, 2.0)):
        for j, b in enumerate((0.0, 1.0, 2.0, 3.0)):
            assert float(plane.losses["f"][i, j]) == 3 * a - 7 * b**2
    assert plane.lowest("f") == (0.0, 3.0, -63.0)


def test_the_row_through_the_center_is_the_line_bit_for_bit_and_other_rows_are_lines_to_rounding():
    plane = lh.plane_slice(quadratic(), (U, V), extent=((-1, 1), (-2, 2)), num=(5, 9), engine="point by point")
    line = lh.line_slice(quadratic(), V, extent=(-2, 2), num=9, engine="point by point")
    assert torch.equal(plane.losses["quadratic"][2], line.losses["quadratic"])
    column = lh.line_slice(quadratic(), U, extent=(-1, 1), num=5, engine="point by point")
    assert torch.equal(plane.losses["quadratic"][:, 4], column.losses["quadratic"])
    for i, alpha in enumerate(plane.alphas):
        line = lh.line_slice(quadratic(), V, extent=(-2, 2), num=9, center=THETA0 + alpha * U)
        assert torch.allclose(plane.losses["quadratic"][i], line.losses["quadratic"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num", [6, 7])
def test_a_quarter_turn_permutes_the_grid_bit_for_bit(num):
    """(v, -u): the new (a, b) is the old (-b, a)."""
    plane = lh.plane_slice(quadratic(), (U, V), extent=1.7, num=num, engine="point by point")
    turned = lh.plane_slice(quadratic(), (V, -U), extent=1.7, num=num, engine="point by point")
    assert torch.equal(turned.losses["quadratic"], plane.losses["quadratic"].flip(0).T)
    swapped = lh.plane_slice(quadratic(), (V, U), extent=1.7, num=num, engine="point by point")
    assert torch.equal(swapped.losses["quadratic"], plane.losses["quadratic"].T)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    inputs = torch.randn(53, 4, dtype=dtype)
    model = nn.Sequential(nn.Linear(4, 6, dtype=dtype), nn.Sigmoid(), nn.Linear(6, 3, dtype=dtype))
    return model, inputs, torch.randint(0, 3, (53,))


def network_losses(**arguments) -> dict[str, lh.Objective]:
    model, inputs, targets = network()
    return {
        "whole": lh.Objective(model, (inputs, targets), micro_batch=20, **arguments),
        "part": lh.Objective(model, (inputs[:20], targets[:20]), **arguments),
    }


@pytest.mark.parametrize("engine", ["point by point", "vmap"])
def test_a_network_on_a_plane_is_the_model_with_those_weights(engine):
    losses = network_losses()
    model, inputs, targets = network()
    plane = lh.plane_slice(losses, "gaussian", extent=((-3, 3), (-1, 2)), num=(3, 4), engine=engine, seed=5)
    assert plane.seed == 5
    whole = losses["whole"]
    u, v = (lh.random_direction(whole, seed=seed) for seed in (5, 5 + 2**31))
    assert torch.equal(plane.directions, torch.stack([u, v]))
    for i, a in enumerate(plane.alphas.tolist()):
        for j, b in enumerate(plane.betas.tolist()):
            theta = whole.theta0 + a * u + b * v
            nn.utils.vector_to_parameters(theta, model.parameters())
            with torch.no_grad():
                outputs = model(inputs)
            expected = float(F.cross_entropy(outputs, targets))
            assert float(plane.losses["whole"][i, j]) == pytest.approx(expected, rel=1e-5)
            right = (outputs.argmax(1) == targets).double()
            assert float(plane.accuracies["whole"][i, j]) == pytest.approx(float(right.mean()), abs=1e-12)
            assert float(plane.accuracies["part"][i, j]) == pytest.approx(float(right[:20].mean()), abs=1e-12)
    center = plane.losses["whole"][1, 1]
    assert float(plane.betas[1]) == 0.0
    assert float(center) == float(whole(whole.theta0))  # bit for bit, with either engine


def test_directions_may_be_named_tensors_a_tensor_or_a_subspace_basis():
    losses = network_losses()
    space = losses["whole"].space
    u, v = (lh.random_direction(losses["whole"], seed=seed) for seed in (0, 1))
    expected = lh.plane_slice(losses, (u, v), extent=1.0, num=3, engine="point by point").losses["whole"]
    for pair in ((space.unflatten(u), space.unflatten(v)), torch.stack([u, v]), [u.double(), v.numpy()]):
        found = lh.plane_slice(losses, pair, extent=1.0, num=3, engine="point by point").losses["whole"]
        assert torch.allclose(found, expected, rtol=1e-6)
    with pytest.raises(TypeError, match=r"directions\[0\] is a mapping, and no loss has named parameters"):
        lh.plane_slice(quadratic(), ({"a": U}, V))


def test_two_random_planes_of_neighbouring_seeds_share_no_direction():
    losses = network_losses()
    first, second = (lh.plane_slice(losses, "filter", extent=1.0, num=2, seed=seed).directions for seed in (0, 1))
    cosines = (first / first.norm(dim=1, keepdim=True)) @ (second / second.norm(dim=1, keepdim=True)).T
    assert float(cosines.abs().max()) < 0.7


def test_results_of_gram_schmidt_and_of_principal_components_and_subspaces_are_planes():
    made = lh.gram_schmidt((U, V))
    expected = lh.plane_slice(quadratic(), made.directions, extent=1.0, num=3).losses["quadratic"]
    assert torch.equal(lh.plane_slice(quadratic(), made, extent=1.0, num=3).losses["quadratic"], expected)
    principal = lh.principal_directions([THETA0, THETA0 + U, THETA0 + V])
    for given in (principal, lh.Subspace(principal.directions)):
        found = lh.plane_slice(quadratic(), given, extent=1.0, num=3).losses["quadratic"]
        assert torch.equal(
            found, lh.plane_slice(quadratic(), principal.directions, extent=1.0, num=3).losses["quadratic"]
        )
    with pytest.raises(TypeError, match=r"directions is a tensor of shape \(7,\), expected two directions"):
        lh.plane_slice(quadratic(), U)
    with pytest.raises(TypeError, match=r"directions is an Eigenpairs.*\n.*such as pairs.vectors\[:2\]"):
        lh.plane_slice(quadratic(), lh.top_hessian_eigs(quadratic()["quadratic"], k=2, progress=False))


def test_the_order_of_losses_of_different_dtypes_changes_nothing():
    narrow = lh.FunctionObjective(lambda t: (t**2).sum(), THETA0.float())
    wide = lh.FunctionObjective(lambda t: (t**3).sum(), THETA0.float().double())
    one = lh.plane_slice({"narrow": narrow, "wide": wide}, (U, V), extent=1.0, num=3)
    other = lh.plane_slice({"wide": wide, "narrow": narrow}, (U, V), extent=1.0, num=3)
    for name in ("narrow", "wide"):
        assert torch.equal(one.losses[name], other.losses[name])
    assert one.center.dtype == torch.float64


def test_a_slice_made_in_inference_mode_is_as_any_other():
    losses = network_losses()
    with torch.inference_mode():
        inside = [
            lh.plane_slice(losses, "filter", extent=1.0, num=3, engine=engine) for engine in ("point by point", "vmap")
        ]
        direction = lh.random_direction(losses["whole"])
    outside = lh.plane_slice(losses, "filter", extent=1.0, num=3, engine="point by point")
    assert torch.equal(inside[0].losses["whole"], outside.losses["whole"])
    assert torch.allclose(inside[1].losses["whole"], outside.losses["whole"], rtol=1e-5)
    assert not any(tensor.is_inference() for tensor in (direction, inside[0].losses["whole"], inside[0].directions))


def test_a_half_precision_direction_is_widened_before_anything_runs(tmp_path):
    losses = network_losses()
    direction = torch.ones(losses["whole"].num_params, dtype=torch.bfloat16)
    scan = lh.line_slice(losses, direction, num=3, resume=tmp_path / "scan")
    assert scan.direction.dtype == torch.float32
    assert lh.landscape.LineSlice.load(scan.save(tmp_path / "saved")).norm == scan.norm


def test_buffers_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sigmoid(), nn.Linear(6, 3))
    model(torch.randn(30, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = lh.Objective(model, (torch.randn(9, 4), torch.randint(0, 3, (9,))))
    for engine in ("point by point", "vmap"):
        lh.plane_slice({"loss": loss}, "filter", extent=1.0, num=3, engine=engine)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_named_tensors_may_be_arrays_and_wrong_ones_are_named():
    losses = network_losses()
    space = losses["whole"].space
    u, v = (lh.random_direction(losses["whole"], seed=seed) for seed in (0, 1))
    arrays = {name: part.numpy() for name, part in space.unflatten(u).items()}
    expected = lh.plane_slice(losses, (u, v), extent=1.0, num=2, engine="point by point").losses["whole"]
    assert torch.equal(
        lh.plane_slice(losses, (arrays, v), extent=1.0, num=2, engine="point by point").losses["whole"], expected
    )
    with pytest.raises(ValueError, match="tensors lack") as caught:
        lh.plane_slice(losses, (u, {"weight": v}))
    assert caught.value.__notes__ == ["This is about directions[1]."]


def test_nothing_is_changed_even_after_an_exception_in_the_middle(tmp_path):
    model, inputs, targets = network()
    model.train()
    model[0].weight.grad = torch.ones(6, 4)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    calls = []

    def failing(outputs, targets):
        calls.append(1)
        if len(calls) > 40:
            raise RuntimeError("planted")
        return F.cross_entropy(outputs, targets)

    losses = {"loss": lh.Objective(model, (inputs, targets), loss_fn=failing)}
    directions = [lh.random_direction(losses["loss"], seed=seed) for seed in (0, 1)]
    given = [direction.clone() for direction in directions]
    with pytest.raises(RuntimeError, match="planted"):
        lh.plane_slice(losses, directions, extent=1.0, num=9, engine="point by point")
    assert len(calls) == 41
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert torch.equal(model[0].weight.grad, torch.ones(6, 4))
    assert model[2].weight.grad is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, directions, given))


def test_not_a_number_is_kept():
    f = lh.FunctionObjective(lambda t: (1 - t[0]).log() + t[1], torch.zeros(2, dtype=torch.float64))
    plane = lh.plane_slice({"f": f}, torch.eye(2, dtype=torch.float64), extent=2.0, num=5)
    assert bool(torch.isnan(plane.losses["f"][4]).all())
    assert bool(torch.isneginf(plane.losses["f"][3]).all())
    assert bool(torch.isfinite(plane.losses["f"][:3]).all())
    assert plane.lowest("f")[2] == -2.0
    nowhere = lh.plane_slice({"f": f}, torch.eye(2, dtype=torch.float64), extent=((2, 3), (0, 1)), num=3)
    with pytest.raises(ValueError, match="name is 'f', which has no finite value on this plane"):
        nowhere.lowest("f")


def test_plane_through_three_points_passes_through_them():
    a, b, c = THETA0, THETA0 + 3 * U, THETA0 - U + 2 * V
    plane = lh.plane_through(a, b, c, names=("first", "second", "third"))
    assert torch.allclose(plane.directions @ plane.directions.T, torch.eye(2, dtype=torch.float64), atol=1e-14)
    for name, theta in {"first": a, "second": b, "third": c}.items():
        reached = plane.center + plane.marks[name] @ plane.directions
        assert torch.allclose(reached, theta, atol=1e-13)
    assert float(plane.marks["second"][0]) == pytest.approx(float(3 * U.norm()))
    assert repr(plane).startswith("Plane(through first (0, 0), second (")
    scan = lh.plane_slice(quadratic(), plane, num=5)
    assert scan.names == ("first → second", "towards third")
    assert set(scan.marks) == {"first", "second", "third"}
    (a0, a1), (b0, b1) = plane.extent()
    assert (float(scan.alphas[0]), float(scan.alphas[-1])) == (a0, a1)
    assert (float(scan.betas[0]), float(scan.betas[-1])) == (b0, b1)
    expected = closed_form(scan.alphas, scan.betas, *plane.directions, a)
    assert torch.allclose(scan.losses["quadratic"], expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="center is given, and so is a Plane"):
        lh.plane_slice(quadratic(), plane, center=a)


def test_a_trajectory_says_how_far_off_the_plane_it_is_and_what_the_plane_shows_instead():
    normal = torch.randn(P, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(torch.stack([U, V]).T).Q
    normal -= basis @ (basis.T @ normal)
    normal /= normal.norm()
    plane = lh.plane_slice(quadratic(), (U, V), extent=1.0, num=3)  # oblique
    where = torch.tensor([[0.0, 0.0], [0.5, -0.25], [-2.0, 3.0]], dtype=torch.float64)
    heights = torch.tensor([0.0, 1.0, -2.5], dtype=torch.float64)
    thetas = THETA0 + where @ torch.stack([U, V]) + heights[:, None] * normal
    seen = lh.plane_trajectory(plane, thetas, losses=quadratic())
    assert torch.allclose(seen.coordinates, where, atol=1e-12)
    assert torch.allclose(seen.distances, heights.abs(), atol=1e-12)
    for i, theta in enumerate(thetas):
        under = theta - heights[i] * normal
        assert float(seen.losses["quadratic"][i]) == pytest.approx(float(value(theta)), rel=1e-12)
        assert float(seen.plane_losses["quadratic"][i]) == pytest.approx(float(value(under)), rel=1e-12)
    assert repr(seen) == "PlaneTrajectory(quadratic; 3 checkpoints; distances from the plane 0 to 2.5)"
    with pytest.raises(ValueError, match=r"checkpoints\[0\] has shape \(3,\), expected \(7,\)"):
        lh.plane_trajectory(plane, torch.ones(2, 3), losses=quadratic())
    with pytest.raises(TypeError, match="checkpoints is a list of length 0"):
        lh.plane_trajectory(plane, [], losses=quadratic())
    arrays = lh.plane_trajectory(plane, thetas.numpy(), losses=quadratic())
    assert torch.equal(arrays.coordinates, seen.coordinates)


def test_save_and_load(tmp_path):
    plane = lh.plane_slice(quadratic(), lh.plane_through(THETA0, THETA0 + U, THETA0 + V), num=3)
    loaded = lh.landscape.PlaneSlice.load(plane.save(tmp_path / "plane"))
    assert repr(loaded) == repr(plane)
    assert torch.equal(loaded.losses["quadratic"], plane.losses["quadratic"])
    assert loaded.names == plane.names
    assert torch.equal(loaded.marks["c"], plane.marks["c"])
    seen = lh.plane_trajectory(plane, [THETA0, THETA0 + U], losses=quadratic())
    assert torch.equal(lh.landscape.PlaneTrajectory.load(seen.save(tmp_path / "seen")).distances, seen.distances)
    through = lh.plane_through(THETA0, THETA0 + U, THETA0 + V)
    assert repr(lh.landscape.Plane.load(through.save(tmp_path / "through"))) == repr(through)


@pytest.mark.parametrize(
    ("directions", "arguments", "message"),
    [
        ((U, 2 * U), {}, "directions are parallel"),
        ((U, -U), {}, "directions are parallel"),
        ((U, V, U), {}, "directions are 3, expected two directions"),
        ((U, torch.ones(3)), {}, r"directions\[1\] has shape \(3,\), expected \(7,\)"),
        ((U, 0 * U), {}, r"directions\[1\] is the zero vector"),
        ("sphere", {}, "directions is 'sphere', expected one of 'gaussian', 'layer', 'filter'"),
        ("filter", {}, "normalization is 'filter' for a loss without named tensors"),
        ((U, V), {"extent": ((0, 1), (0, 1), (0, 1))}, "extent is .*, expected two pairs"),
        ((U, V), {"extent": (1.0, 1.0)}, r"extent is \(1, 1\), expected first < last"),
        ((U, V), {"num": (3, 4, 5)}, r"num is \(3, 4, 5\), expected a count, or one for each direction"),
        ((U, V), {"num": 1}, "num is 1, expected an integer of at least 2"),
        ((U, V), {"names": ("only one",)}, "names is .*, expected two names"),
        ((U, V), {"engine": "fast"}, "engine is 'fast', expected one of 'auto', 'point by point', 'vmap'"),
        ((U, V), {"center": torch.ones(3)}, r"center has shape \(3,\), expected \(7,\)"),
    ],
)
def test_bad_arguments(directions, arguments, message):
    with pytest.raises(ValueError, match=message):
        lh.plane_slice(quadratic(), directions, **arguments)


def test_weights_that_overflow_are_refused_before_anything_runs():
    f = lh.FunctionObjective(lambda t: t.sum(), torch.zeros(2))
    with pytest.raises(ValueError, match=r"extent reaches -1e\+39, -1e\+39, where the weights overflow torch.float32"):
        lh.plane_slice({"f": f}, torch.eye(2), extent=1e39, num=3)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ((THETA0, THETA0, U), "theta_b equals theta_a"),
        ((THETA0, THETA0 + U, THETA0 - 2 * U), "theta_c lies on the line through theta_a and theta_b"),
        ((THETA0, U[:3], V), r"theta_b has shape \(3,\), expected \(7,\)"),
        ((THETA0, THETA0 + U, THETA0 / 0), "theta_c holds 7 NaN or infinite entries"),
    ],
)
def test_points_that_span_no_plane(points, message):
    with pytest.raises(ValueError, match=message):
        lh.plane_through(*points)


def test_names_of_points_and_of_losses():
    with pytest.raises(ValueError, match=r"names is \('a', 'a', 'b'\), expected three different names"):
        lh.plane_through(THETA0, U, V, names=("a", "a", "b"))
    plane = lh.plane_slice(quadratic(), (U, V), num=2, names=("eigenvector 1", "eigenvector 2"))
    assert "eigenvector 1 from -1 to 1 (‖Δθ‖ = " in repr(plane)
    with pytest.raises(ValueError, match=r"name is 'mixed', expected one of \['quadratic'\]"):
        plane.lowest("mixed")
