"""Directions against norms counted filter by filter, planted principal components, and angles known on paper."""

import math

import pytest
import torch
from torch import nn

import lowhanging as lh


def network(dtype=torch.float64) -> lh.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(48, 5), nn.Linear(5, 4, bias=False)
    ).to(dtype)
    with torch.no_grad():
        model[0].weight[1] *= 100.0  # filters of very different norms
        model[4].weight[2] = 0.0  # and one without any
    return lh.Objective(model, (torch.randn(7, 2, 6, 6, dtype=dtype), torch.randint(0, 4, (7,))))


def test_every_filter_has_the_norm_of_the_weights_filter():
    loss = network()
    direction = lh.random_direction(loss, normalization="filter", seed=3)
    weights, parts = (loss.space.unflatten(vector) for vector in (loss.theta0, direction))
    num_filters = 0
    for name, weight in weights.items():
        if weight.ndim == 1:
            assert not bool(parts[name].any()), name  # biases, scales and shifts stay
            continue
        for mine, theirs in zip(parts[name], weight, strict=True):
            assert float(mine.norm()) == pytest.approx(float(theirs.norm()), rel=1e-12)
            num_filters += 1
    assert num_filters == 3 + 5 + 4
    assert bool((parts["0.weight"][1] != 0).all())
    assert not bool(parts["4.weight"][2].any())


def test_every_layer_has_the_norm_of_the_weights_layer():
    loss = network()
    direction = lh.random_direction(loss, normalization="layer", biases="layer")
    for name, part in loss.space.unflatten(direction).items():
        weight = loss.space.unflatten(loss.theta0)[name]
        assert float(part.norm()) == pytest.approx(float(weight.norm()), rel=1e-12), name
    ratios = [
        float(mine.norm() / theirs.norm())
        for mine, theirs in zip(
            loss.space.unflatten(direction)["0.weight"], loss.space.unflatten(loss.theta0)["0.weight"], strict=True
        )
    ]
    assert max(ratios) > 2 * min(ratios)  # and not filter by filter


def test_biases_can_be_copied():
    loss = network()
    parts = loss.space.unflatten(lh.random_direction(loss, normalization="filter", biases="copy"))
    for name, weight in loss.space.unflatten(loss.theta0).items():
        if weight.ndim == 1:
            assert torch.equal(parts[name], weight)


def test_a_slice_along_a_filter_normalised_direction_does_not_see_a_rescaling_of_relu_layers():
    """w1 -> c w1, w2 -> w2 / c leaves a ReLU network as it is; the curve along a plain Gaussian direction changes."""
    torch.manual_seed(0)
    data = (torch.randn(30, 4, dtype=torch.float64), torch.randint(0, 3, (30,)))

    def curve(scale: float, normalization: str) -> torch.Tensor:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
        with torch.no_grad():
            model[0].weight *= scale
            model[2].weight /= scale
        with pytest.warns(lh.NotSmoothWarning):
            loss = lh.Objective(model, data)
        direction = lh.random_direction(loss, normalization=normalization, seed=2)
        return lh.line_slice({"loss": loss}, direction, extent=(-2, 2), num=9).losses["loss"]

    assert torch.allclose(curve(1.0, "filter"), curve(50.0, "filter"), rtol=1e-10)
    assert not torch.allclose(curve(1.0, "gaussian"), curve(50.0, "gaussian"), rtol=0.1)


def test_a_gaussian_direction_is_a_unit_vector_with_a_seed_of_its_own():
    loss = network(torch.float32)
    state = torch.get_rng_state()
    one, same, other = (lh.random_direction(loss, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert one.dtype == torch.float32
    assert float(one.norm()) == pytest.approx(1.0, rel=1e-6)
    assert abs(float(one @ other)) < 5 / math.sqrt(len(one))
    moments = one * math.sqrt(len(one))
    assert abs(float(moments.mean())) < 5 / math.sqrt(len(one))
    assert float((moments**4).mean()) == pytest.approx(3.0, abs=5 * math.sqrt(96 / len(one)))
    f = lh.FunctionObjective(lambda t: t.sum(), torch.zeros(5))
    assert float(lh.random_direction(f).norm()) == pytest.approx(1.0, rel=1e-6)


def test_filters_lie_where_the_layer_keeps_its_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(192, 4)).double()
    with torch.no_grad():
        model[0].weight[:, 1] *= 1e3
    loss = lh.Objective(model, (torch.randn(5, 2, 6, 6).double(), torch.randint(0, 4, (5,))))
    parts = loss.space.unflatten(lh.random_direction(loss, normalization="filter"))
    weights = loss.space.unflatten(loss.theta0)
    for j in range(3):
        mine, theirs = parts["0.weight"][:, j].norm(), weights["0.weight"][:, j].norm()
        assert float(mine) == pytest.approx(float(theirs), rel=1e-12)


def test_an_anchored_loss_has_the_layers_of_the_loss_in_it():
    loss = network()
    anchored = lh.objective.AnchoredObjective(loss, loss.theta0, 0.1)
    expected = lh.random_direction(loss, normalization="filter")
    assert torch.equal(lh.random_direction(anchored, normalization="filter"), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normalization": "row"}, "normalization is 'row', expected one of 'gaussian', 'layer', 'filter'"),
        ({"biases": "ignore"}, "biases is 'ignore', expected one of 'zero', 'layer', 'copy'"),
        ({"seed": -1}, "seed is -1, expected an integer of at least 0"),
    ],
)
def test_bad_arguments_of_random_directions(arguments, message):
    with pytest.raises(ValueError, match=message):
        lh.random_direction(network(), **arguments)


def test_losses_without_layers_or_filters():
    f = lh.FunctionObjective(lambda t: t.sum(), torch.zeros(5))
    with pytest.raises(ValueError, match="normalization is 'filter' for a loss without named tensors"):
        lh.random_direction(f, normalization="filter")
    model = nn.PReLU(4)
    with pytest.warns(lh.NotSmoothWarning):
        only_vectors = lh.Objective(model, (torch.randn(6, 4), torch.randint(0, 4, (6,))))
    with pytest.raises(ValueError, match="biases is 'zero', and the model has no other tensor"):
        lh.random_direction(only_vectors, normalization="layer")
    assert bool(lh.random_direction(only_vectors, normalization="layer", biases="layer").any())


def test_the_difference_of_two_checkpoints():
    start, end = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([1.0, 5.0, 6.0])
    assert torch.allclose(lh.difference_direction(start, end), torch.tensor([0.0, 0.6, 0.8]))
    with pytest.raises(ValueError, match="end equals start, expected another checkpoint"):
        lh.difference_direction(start, start)
    with pytest.raises(ValueError, match=r"end has shape \(2,\), expected \(3,\)"):
        lh.difference_direction(start, end[:2])
    with pytest.raises(TypeError, match="start is a list"):
        lh.difference_direction([1.0], end)
    assert torch.equal(lh.difference_direction(start.numpy(), end.numpy()), lh.difference_direction(start, end))
    nearly = start.double() + torch.tensor([0.0, 0.0, 1e-12], dtype=torch.float64)
    assert torch.allclose(lh.difference_direction(start, nearly), torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("around", ["last", "mean"])
def test_principal_directions_find_planted_ones(around):
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(40, 3, generator=generator, dtype=torch.float64)).Q.T
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    amounts = torch.stack([9 * (1 - t), 2 * torch.sin(2 * math.pi * t), 0.1 * torch.cos(4 * math.pi * t) - 0.1], dim=1)
    offset = torch.randn(40, generator=generator, dtype=torch.float64)
    found = lh.principal_directions(offset + amounts @ axes, 3, around=around)
    differences = amounts - (amounts[-1] if around == "last" else amounts.mean(0))
    values, vectors = torch.linalg.eigh(differences.T @ differences)  # on paper: 3 x 3, in the planted axes
    assert torch.allclose(found.explained, (values / values.sum()).flip(0), atol=1e-12)
    cosines = found.directions @ (vectors.T @ axes).flip(0).T
    assert torch.allclose(cosines.abs(), torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert bool((found.directions @ (offset + amounts[0] @ axes - found.center) >= 0).all())
    assert repr(found).startswith(f"PrincipalDirections(3 around the {around} checkpoint, explaining 9")
    with pytest.raises(ValueError, match="k is 4, but the checkpoints span 3 directions, expected at most 3"):
        lh.principal_directions(offset + amounts @ axes, 4, around=around)


def test_a_random_walk_explains_as_much_as_the_docstring_says():
    walk = torch.randn(300, 5000, generator=torch.Generator().manual_seed(0)).cumsum(0)
    found = lh.principal_directions(walk, 2, around="mean")
    assert float(found.explained[0]) == pytest.approx(6 / math.pi**2, abs=0.03)
    assert float(found.explained[1]) == pytest.approx(6 / math.pi**2 / 4, abs=0.02)


def test_gram_schmidt_says_what_it_changed(tmp_path):
    u = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    v = torch.tensor([3.0, 3.0 * math.sqrt(3), 0.0], dtype=torch.float64)  # at 60 degrees, length 6
    w = torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64)
    found = lh.gram_schmidt((u, v, w))
    expected = torch.tensor([[2.0, 0, 0], [0, 6.0, 0], [0, 0, 5.0]], dtype=torch.float64)
    assert torch.allclose(found.directions, expected, atol=1e-14)
    assert torch.allclose(found.turned, torch.tensor([0.0, 30.0, 0.0], dtype=torch.float64), atol=1e-6)
    assert float(found.cosines[0, 1]) == pytest.approx(0.5)
    assert repr(found) == "OrthogonalDirections(3 of length 3, turned by 0°, 30°, 0°)"
    assert torch.equal(lh.landscape.OrthogonalDirections.load(found.save(tmp_path / "found")).turned, found.turned)
    nearly = lh.gram_schmidt((u, u + 1e-5 * v))
    cosine = nearly.directions[0] @ nearly.directions[1] / nearly.directions.norm(dim=1).prod()
    assert abs(float(cosine)) < 1e-15
    with pytest.raises(ValueError, match="directions 1 lies in the span of those before it"):
        lh.gram_schmidt((u, 3 * u))
    with pytest.raises(ValueError, match=r"directions \[1\] are zero"):
        lh.gram_schmidt((u, 0 * u))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "directions is a list of length 0"),
        (torch.ones(3), r"directions is a tensor of shape \(3,\)"),
        ("rows", "directions is a str"),
        ([[1.0, 2.0]], "directions is a list"),
        (3, "directions is an int"),
    ],
)
def test_rows_that_are_none(rows, message):
    with pytest.raises(TypeError, match=message):
        lh.gram_schmidt(rows)


def test_principal_directions_are_saved(tmp_path):
    found = lh.principal_directions(torch.randn(4, 9), 2)
    loaded = lh.landscape.PrincipalDirections.load(found.save(tmp_path / "found"))
    assert torch.equal(loaded.directions, found.directions)
    assert repr(loaded) == repr(found)
    with pytest.raises(ValueError, match="k is 4, expected an integer from 1 to 3"):
        lh.principal_directions(torch.randn(4, 9), 4)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_steps_from_theta0_along_directions_keep_its_device_and_dtype(dtype, device):
    generator = torch.Generator().manual_seed(0)
    thetas = torch.randn(4, 50, generator=generator).to(device, dtype)
    loss = lh.FunctionObjective(lambda t: t.square().sum(), thetas[0])
    made = lh.gram_schmidt([thetas[1], thetas[2].double().cpu()])
    principal = lh.principal_directions(thetas)
    directions = [
        lh.random_direction(loss),
        lh.difference_direction(thetas[0], thetas[1].double().cpu()),
        *principal.directions,
        *made.directions,
    ]
    for direction in directions:
        moved = loss.theta0 + 2 * direction
        assert (moved.dtype, moved.device) == (dtype, thetas.device)
        assert torch.isfinite(loss(moved))
    for direction in directions[:4]:
        assert float(direction.double().norm()) == pytest.approx(1.0, abs=4 * torch.finfo(dtype).eps)
    scan = lh.line_slice(loss, directions[0], num=3)
    for kept in (made.turned, made.cosines, principal.explained, scan.losses["loss"], scan.direction, scan.center):
        assert kept.device.type == "cpu"


def test_directions_of_a_networks_loss_have_its_dtype():
    for dtype in (torch.float64, torch.float32):
        loss = network(dtype)
        for normalization in ("gaussian", "layer", "filter"):
            assert lh.random_direction(loss, normalization=normalization).dtype == dtype


@pytest.mark.parametrize("seed", range(3))
def test_a_random_direction_is_not_the_weights_that_were_drawn_with_the_same_seed(seed):
    """Cosines of independent vectors are within 4.5 / sqrt(p); those of one stream were .4 to .95."""
    torch.manual_seed(seed)
    own = torch.nn.Sequential(torch.nn.Linear(11, 40), torch.nn.Tanh(), torch.nn.Linear(40, 11))
    with torch.no_grad():
        for weight in own.parameters():
            weight.copy_(torch.randn(weight.shape))
    sums = lh.modular_addition(11, 0.8).train
    models = [
        lh.ModularTransformer(11, seed=seed),
        lh.ModularMLP(11, seed=seed),
        lh.ModularMLP(11, blocks=False, seed=seed),
    ]
    losses = [lh.Objective(model, sums) for model in models]
    losses.append(lh.Objective(own, (torch.randn(9, 11), torch.arange(9))))
    for loss in losses:
        theta = loss.theta0.double()
        for normalization in ("gaussian", "layer"):
            direction = lh.random_direction(loss, normalization=normalization, seed=seed).double()
            cosine = float(direction @ theta / direction.norm() / theta.norm())
            assert abs(cosine) < 4.5 / len(theta) ** 0.5
