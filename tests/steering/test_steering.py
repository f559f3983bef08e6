"""Steering against quadratics whose eigenvectors are known, and on a small network with two redundant cues."""

import pytest
import scipy.linalg
import torch
from torch import nn

import lowhanging as lh

P = 8
EYE = torch.eye(P, dtype=torch.float64)
ZERO = torch.zeros(P, dtype=torch.float64)
# The preserved loss sees e0 and e1; the ablated one's top eigenvector is (e1 + e2) / sqrt(2), its second e3.
KEPT = torch.diag(torch.tensor([5.0, 4.0, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0], dtype=torch.float64))
MIXED = (EYE[1] + EYE[2]) / 2**0.5
ABLATED = 3.0 * torch.outer(MIXED, MIXED) + 2.0 * torch.outer(EYE[3], EYE[3])


def quadratic(matrix: torch.Tensor, cubic: torch.Tensor | None = None) -> lh.FunctionObjective:
    tilt = ZERO if cubic is None else cubic
    # To record the products of a small function would take longer than to multiply; the network's are recorded.
    return lh.FunctionObjective(
        lambda theta: 0.5 * theta @ matrix @ theta + (tilt * theta**3).sum(), ZERO, engine="double backward"
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_direction_is_the_rejected_eigenvector_and_step_plus_one_raises_more(sign):
    ablate = quadratic(ABLATED, 0.1 * sign * EYE[2])
    u = lh.steering_direction(preserve=quadratic(KEPT), ablate=ablate, k=2, tol=1e-10)
    assert torch.allclose(u, sign * EYE[2], atol=1e-8)
    assert float(ablate(u)) > float(ablate(-u))


def test_index_chooses_the_eigenvector_and_known_pairs_are_used():
    preserve, ablate = quadratic(KEPT), quadratic(ABLATED)
    u = lh.steering_direction(preserve=preserve, ablate=ablate, k=2, index=1, tol=1e-10)
    assert torch.allclose(u.abs(), EYE[3], atol=1e-8)
    pairs = {name: lh.top_hessian_eigs(loss, k=3, tol=1e-10) for name, loss in (("p", preserve), ("a", ablate))}
    again = lh.steering_direction(
        preserve=preserve, ablate=ablate, k=2, index=1, preserve_pairs=pairs["p"], ablate_pairs=pairs["a"]
    )
    assert torch.allclose(again, u, atol=1e-8)


def test_the_subspace_is_orthogonal_to_what_is_preserved_with_the_most_ablating_row_first():
    preserve, ablate = quadratic(KEPT), quadratic(ABLATED)
    space = lh.steering_subspace(preserve=preserve, ablate=ablate, k=2, num_directions=2, tol=1e-10)
    assert space.basis.shape == (2, P)
    assert torch.allclose(space.basis @ space.basis.T, torch.eye(2, dtype=torch.float64), atol=1e-10)
    assert float((space.basis @ EYE[:2].T).abs().max()) < 1e-8
    # Restricted to span(e2, e3) the ablated Hessian is diag(3/2, 2): e3 comes first.
    assert torch.allclose(space.basis.abs(), torch.stack([EYE[3], EYE[2]]), atol=1e-8)
    one = lh.steering_direction(preserve=preserve, ablate=ablate, k=2, tol=1e-10)
    assert space.overlap(one) == pytest.approx(1.0, abs=1e-10)


def test_a_report_has_rayleigh_quotients_positions_and_overlaps():
    losses = {"kept": quadratic(KEPT), "ablated": quadratic(ABLATED)}
    u = (EYE[1] + EYE[3]) / 2**0.5
    report = lh.steering_report(7.0 * u, losses, k=4, tol=1e-10)
    assert torch.allclose(report.direction, u)
    assert report.quotients["kept"] == pytest.approx((4.0 + 0.2) / 2)
    assert report.quotients["ablated"] == pytest.approx((1.5 + 2.0) / 2)
    assert report.positions == {"kept": 3, "ablated": 3}
    assert torch.allclose(report.overlaps["kept"], torch.tensor([0, 0.5, 0, 0.5], dtype=torch.float64), atol=1e-8)
    assert torch.allclose(report.overlaps["ablated"][:2], torch.tensor([0.25, 0.5], dtype=torch.float64), atol=1e-8)
    assert "kept 2.1 (position 3)" in repr(report)
    assert "largest overlap" in str(report)
    low = lh.steering_report(EYE[7], losses, k=3, tol=1e-10)
    assert low.position_text("kept") == "> 3"
    pairs = lh.top_hessian_eigs(losses["kept"], k=3, method="dense")
    at_the_top = lh.steering_report(EYE[0], losses, k=3, pairs={"kept": pairs})
    assert at_the_top.quotients["kept"] == float(pairs.values[0])
    assert at_the_top.positions["kept"] == 1  # no eigenvalue lies above the quotient, its own the less


def test_a_report_of_a_single_loss_calls_it_loss():
    loss = quadratic(KEPT)
    report = lh.steering_report(EYE[0], loss, k=3)
    assert report.quotients == lh.steering_report(EYE[0], {"loss": loss}, k=3).quotients == {"loss": 5.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_from_theta0_along_directions_keep_its_dtype(dtype):
    def loss(matrix):
        return lh.FunctionObjective(lambda theta: 0.5 * theta @ matrix.to(dtype) @ theta, ZERO.to(dtype))

    preserve, ablate = loss(KEPT), loss(ABLATED)
    one = lh.steering_direction(preserve=preserve, ablate=ablate, k=2)
    space = lh.steering_subspace(preserve=preserve, ablate=ablate, k=2, num_directions=2)
    for direction in (one, *space.basis):
        moved = preserve.theta0 + 2 * direction
        assert (moved.dtype, moved.device) == (dtype, preserve.theta0.device)
        assert float(ablate(moved)) > 1.0


def test_a_report_can_be_saved(tmp_path):
    report = lh.steering_report(EYE[1], {"kept": quadratic(KEPT)}, k=4)
    loaded = lh.steering.SteeringReport.load(report.save(tmp_path / "report.npz"))
    assert repr(loaded) == repr(report)
    assert torch.equal(loaded.overlaps["kept"], report.overlaps["kept"])


def test_bad_input():
    preserve, ablate = quadratic(KEPT), quadratic(ABLATED)
    with pytest.raises(ValueError, match=r"preserve leaves .* of eigenvector 0 of the ablated Hessian"):
        lh.steering_direction(preserve=preserve, ablate=preserve, k=2)
    with pytest.raises(ValueError, match="k is 8, expected an integer from 1 to 7"):
        lh.steering_direction(preserve=preserve, ablate=ablate, k=8)
    with pytest.raises(ValueError, match="k is 0"):
        lh.steering_direction(preserve=preserve, ablate=ablate, k=0)
    with pytest.raises(ValueError, match="'preserve' and 'ablate' are around different points"):
        lh.steering_direction(preserve=preserve, ablate=ablate.at(ZERO + 1), k=2)
    few = lh.top_hessian_eigs(preserve, k=1)
    with pytest.raises(ValueError, match=r"preserve_pairs holds 1 pairs \(LA\) of length 8, expected at least 2 pairs"):
        lh.steering_direction(preserve=preserve, ablate=ablate, k=2, preserve_pairs=few)
    elsewhere = lh.top_hessian_eigs(ablate, k=2, tol=1e-8)
    with pytest.raises(ValueError, match="preserve_pairs holds pairs of another loss or another theta0"):
        lh.steering_direction(preserve=preserve, ablate=ablate, k=2, preserve_pairs=elsewhere)
    # Of a loss that shares the first eigenpair with this one, and of one that is a hundredth off.
    shares_one, nearby = KEPT.clone(), KEPT.clone()
    shares_one[1, 2] = shares_one[2, 1] = 1.0
    nearby[0, 1] = nearby[1, 0] = 0.05
    for other, row in ((shares_one, 1), (nearby, 0)):
        pairs = lh.top_hessian_eigs(quadratic(other), k=2, tol=1e-4)
        with pytest.raises(ValueError, match=rf"holds pairs of another loss or another theta0 \(pair {row}: residual"):
            lh.steering_direction(preserve=preserve, ablate=ablate, k=2, preserve_pairs=pairs)
    with pytest.warns(RuntimeWarning):
        unfinished = lh.top_hessian_eigs(preserve, k=4, tol=1e-12, max_products=6, on_failure="warn")
    with pytest.raises(ValueError, match=r"preserve_pairs holds . pairs among the first 4 that have not converged"):
        lh.steering_direction(preserve=preserve, ablate=ablate, k=4, preserve_pairs=unfinished)
    with pytest.raises(ValueError, match=r"pairs has the names \['typo'\], expected names of losses: \['kept'\]"):
        lh.steering_report(EYE[1], {"kept": preserve}, pairs={"typo": few})
    with pytest.raises(TypeError, match=r"preserve is a Linear, expected an objective.\nWrap it: lh.Objective"):
        lh.steering_direction(preserve=nn.Linear(1, 1), ablate=ablate)
    with pytest.raises(ValueError, match="preserve leaves fewer than 2 independent directions"):
        lh.steering_subspace(preserve=preserve, ablate=preserve, k=2, num_directions=2)
    with pytest.raises(ValueError, match=r"direction has shape \(3,\)"):
        lh.steering_report(torch.ones(3), {"kept": preserve})
    with pytest.raises(ValueError, match="direction is the zero vector"):
        lh.steering_report(ZERO, {"kept": preserve})


def two_cues(seed: int) -> tuple[nn.Module, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """A label that can be read from the first two inputs or from the last two; a net trained on both."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 2, (400,), generator=generator)
    sign = (2.0 * targets - 1)[:, None]
    a = sign * torch.tensor([1.0, 0.5]) + 0.6 * torch.randn(400, 2, generator=generator)
    b = sign * torch.tensor([-0.5, 1.0]) + 0.6 * torch.randn(400, 2, generator=generator)
    nothing = torch.zeros(400, 2)
    views = {"both": torch.cat([a, b], 1), "a": torch.cat([a, nothing], 1), "b": torch.cat([nothing, b], 1)}
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2))
    everything = (torch.cat(list(views.values())), targets.repeat(3))
    lh.train(model, everything, num_epochs=30, lr=0.05, batch_size=100, seed=seed, progress=False)
    return model, {name: (inputs, targets) for name, inputs in views.items()}


def test_on_a_network_with_two_cues_one_is_kept_and_the_other_ablated():
    model, views = two_cues(2)  # an example, not a law: in other nets the cues share more directions
    losses = {name: lh.Objective(model, data) for name, data in views.items()}
    start = {name: float(loss(loss.theta0)) for name, loss in losses.items()}
    for preserve, ablate in (("a", "b"), ("b", "a")):
        u = lh.steering_direction(preserve=losses[preserve], ablate=losses[ablate], k=3)
        assert float(u.norm()) == pytest.approx(1.0, abs=1e-5)
        scan = lh.line_slice(losses, u, extent=(0.0, 8.0), num=5)
        rise = {name: float(scan.losses[name][-1]) - start[name] for name in losses}
        assert rise[ablate] > 5 * abs(rise[preserve])
        assert rise[ablate] > 0.1


def ratio_on_paper(Ha, M, shift, gradient):
    """The first generalized eigenvector, unit, in the complement of the gradient; by SciPy."""
    P = torch.eye(P_SMALL, dtype=torch.float64)
    if float(gradient.norm()):
        P = torch.linalg.svd(gradient[None].double())[2][1:]
    metric = M + shift * torch.eye(P_SMALL, dtype=torch.float64)
    _, vectors = scipy.linalg.eigh((P @ Ha @ P.T).numpy(), (P @ metric @ P.T).numpy())
    row = torch.from_numpy(vectors[:, -1]) @ P
    return row / row.norm()


P_SMALL = 53


@pytest.fixture(scope="module")
def resampled():
    """Losses of a net around trained weights, where neither is stationary: one cue resampled, or the other."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), Shift()).double()
    x = torch.randn(200, 4, dtype=torch.float64)
    y = (x[:, 0] > 0).long() + (x[:, 2] > 0).long()
    lh.train(net, (x, y), num_epochs=20, progress=False)
    first = lh.Objective(net, lh.datasets.resample((x, y), [2, 3]))
    second = lh.Objective(net, lh.datasets.resample((x, y), [0, 1], seed=1))
    return first, second


class Shift(nn.Module):
    """Two weights that one loss alone could use."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, z):
        return z + torch.cat([self.weight, -self.weight.sum()[None]])


def test_ratio_is_the_generalized_eigenvector_off_the_preserved_gradient(resampled):
    preserve, ablate = resampled
    Hp, Ha = (lh.testing.dense_hessian(loss) for loss in resampled)
    gradient = preserve.gradient(preserve.theta0)
    ends = torch.linalg.eigvalsh(Hp)
    assert float(ends[0]) < 0  # so that the shift is needed
    shift = float(-ends[0] + 0.01 * ends.abs().max())
    u = lh.steering_direction(preserve=preserve, ablate=ablate, method="ratio", k=10, tol=1e-8)
    # The default shift knows the smallest eigenvalue to a thousandth of the largest.
    assert float((u @ ratio_on_paper(Ha, Hp, shift, gradient)).abs()) > 0.999
    given = lh.steering_direction(preserve=preserve, ablate=ablate, method="ratio", k=10, shift=shift, tol=1e-8)
    assert float((given @ ratio_on_paper(Ha, Hp, shift, gradient)).abs()) == pytest.approx(1.0, abs=1e-9)
    assert abs(float(given @ gradient)) < 1e-10 * float(gradient.norm())
    assert float(given @ ablate.gradient(ablate.theta0)) > 0
    second = lh.steering_direction(preserve=preserve, ablate=ablate, method="ratio", k=10, shift=shift, index=1)
    assert abs(float(second @ (Hp + shift * torch.eye(P_SMALL).double()) @ given)) < 1e-3


def test_a_ratio_direction_goes_up_the_slope_and_one_of_a_space_likewise():
    ablate = lh.FunctionObjective(lambda x: 0.1 * x[2] + x[2] ** 2 - 0.5 * x[2] ** 3, ZERO)
    options = {"preserve": quadratic(KEPT), "ablate": ablate, "method": "ratio", "k": 2}
    u, (row,) = lh.steering_direction(**options), lh.steering_subspace(num_directions=1, **options).basis
    assert float(ablate(u)) < float(ablate(-u))  # far out it is the other way
    assert float(u[2]) > 0.99
    assert float(u @ row) > 0.99


def test_ratio_of_losses_in_two_precisions():
    preserve = lh.FunctionObjective(lambda x: 0.5 * x @ KEPT.to(x) @ x, ZERO.float())
    u = lh.steering_direction(preserve=preserve, ablate=quadratic(ABLATED), method="ratio", k=2)
    same = lh.steering_direction(preserve=quadratic(KEPT), ablate=quadratic(ABLATED), method="ratio", k=2)
    assert float((u.double() @ same).abs()) > 1 - 1e-5


def test_ratio_with_the_gauss_newton_matrix(resampled):
    preserve, ablate = resampled
    G = torch.stack([lh.gauss_newton(preserve) @ row for row in torch.eye(P_SMALL, dtype=torch.float64)])
    shift = 0.01 * float(torch.linalg.eigvalsh(G)[-1])
    wanted = ratio_on_paper(lh.testing.dense_hessian(ablate), G, shift, preserve.gradient(preserve.theta0))
    u = lh.steering_direction(preserve=preserve, ablate=ablate, method="ratio", metric="gauss_newton", k=10, tol=1e-8)
    assert float((u @ wanted).abs()) > 1 - 1e-6


def test_the_space_of_ratios_holds_its_directions(resampled):
    preserve, ablate = resampled
    options = {"preserve": preserve, "ablate": ablate, "method": "ratio", "k": 10, "tol": 1e-7}
    space = lh.steering_subspace(num_directions=3, **options)
    for index in range(3):
        assert space.overlap(lh.steering_direction(index=index, **options)) == pytest.approx(1.0, abs=1e-6)
    curvatures = [float(row @ (lh.hessian(ablate) @ row)) for row in space.basis]
    assert curvatures == sorted(curvatures, reverse=True)


def test_ratio_on_quadratics_without_a_slope():
    """Where nothing has a slope the best direction is that of the largest ratio, whatever its size: here e4."""
    preserve = quadratic(torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 0.001, 1.0, 1.0, 1.0], dtype=torch.float64)))
    ablate = quadratic(torch.diag(torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 0.1, 0.0, 0.0], dtype=torch.float64)))
    u = lh.steering_direction(preserve=preserve, ablate=ablate, method="ratio", k=4, tol=1e-8)
    assert torch.allclose(u.abs(), EYE[4], atol=1e-5)
    projected = lh.steering_direction(preserve=preserve, ablate=ablate, k=2, index=2)
    assert torch.allclose(projected.abs(), EYE[2], atol=1e-3)


def test_methods_and_metrics_are_named():
    preserve, ablate = quadratic(KEPT), quadratic(ABLATED)
    with pytest.raises(ValueError, match="method is 'both'"):
        lh.steering_direction(preserve=preserve, ablate=ablate, method="both")
    with pytest.raises(ValueError, match=r'metric is .gauss_newton., expected neither of them with method="project"'):
        lh.steering_direction(preserve=preserve, ablate=ablate, k=2, metric="gauss_newton")
    with pytest.raises(ValueError, match=r"shift is 1\.0"):
        lh.steering_direction(preserve=preserve, ablate=ablate, k=2, shift=1.0)
    with pytest.raises(ValueError, match="metric is 'fisher'"):
        lh.steering_subspace(preserve=preserve, ablate=ablate, method="ratio", k=2, metric="fisher")
    with pytest.raises(ValueError, match="shift included"):
        lh.steering_direction(preserve=quadratic(-KEPT), ablate=ablate, method="ratio", k=2, shift=0.0)
