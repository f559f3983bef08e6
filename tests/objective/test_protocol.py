"""The interface of a loss: whatever has it is taken by every tool, and whatever lacks some of it is told what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lowhanging as lh
from lowhanging.objective import AnchoredObjective, Checkpoint, FunctionObjective
from lowhanging.objective.protocol import _INTERFACE, check_loss, moving_values
from lowhanging.testing import dense_hessian, finite_difference_hvp
from own_loss import A, OwnLoss

E1, E2, E3 = torch.eye(3, dtype=torch.float64)


def test_curvature_of_ones_own_loss() -> None:
    own = OwnLoss()
    values = torch.linalg.eigvalsh(A)
    pairs = lh.top_eigs(lh.hessian(own), k=2)
    torch.testing.assert_close(torch.as_tensor(pairs.values), values[1:].flip(0), rtol=1e-10, atol=0)
    assert pairs.engine == "on paper"
    torch.testing.assert_close(lh.trace(lh.hessian(own)).value, float(A.trace()), rtol=1e-9, atol=0)
    assert torch.equal(dense_hessian(own), A)
    torch.testing.assert_close(finite_difference_hvp(own, E1 + E2, E3).product, A @ E3, rtol=1e-6, atol=1e-9)
    with pytest.raises(TypeError, match="which has no outputs"):
        lh.gauss_newton(own)
    with pytest.raises(TypeError, match="OwnLoss, which has no named parameters"):
        lh.hessian(own, parameters="a.*")


def test_ones_own_loss_with_an_anchor() -> None:
    anchored, v = AnchoredObjective(OwnLoss(), E2, 0.5), E1 + 2 * E3
    expected = A @ v + 0.5 * v
    for found in (anchored.hvp(E3, v), lh.hessian(anchored) @ v, (lh.hessian(anchored) @ torch.stack([v, v], 1))[:, 1]):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    assert (anchored.space, anchored.ranks, anchored.moving_names, anchored.engine) == (None, None, (), "on paper")
    assert anchored.double().theta0.dtype == torch.float64
    assert torch.equal(anchored.at(Checkpoint(E1)).theta0, E1)


def test_minimum_slices_and_steering_of_ones_own_loss() -> None:
    own = OwnLoss(theta0=E1 + E2, center=torch.zeros(3, dtype=torch.float64))
    minimum = lh.polish(own, anchor=0.0, max_drift=10.0, progress=False)
    assert float(torch.as_tensor(minimum.theta).norm()) < 1e-5
    around = own.at(minimum.theta)
    for engine in ("point by point", "vmap"):
        scan = lh.line_slice({"own": around}, E1, num=5, engine=engine, progress=False)
        torch.testing.assert_close(scan.losses["own"][0], 0.5 * A[0, 0] * scan.alphas[0] ** 2, rtol=1e-4, atol=1e-4)
    assert lh.plane_slice({"own": around}, (E1, E2), num=3, progress=False).losses["own"].shape == (3, 3)
    assert lh.random_direction(around, seed=0).shape == (3,)
    steered = lh.steering_direction(preserve=around, ablate=OwnLoss(matrix=A.flip(0, 1)).at(minimum.theta), k=1)
    top = torch.linalg.eigh(A)[1][:, -1]
    assert abs(float(torch.as_tensor(steered) @ top)) < 1e-6


def test_canyons_of_ones_own_loss() -> None:
    found = lh.find_canyons(OwnLoss(), space=lh.Subspace(torch.eye(3, dtype=torch.float64)), levels=0.1, progress=False)
    assert found.num_gradients > 0


def test_what_lacks_the_interface_is_told_what() -> None:
    class Old:
        theta0, num_params, engine = E1, 3, "own"

        def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
            return v

    with pytest.raises(TypeError, match=r"loss is an Old without gradient, .*curvature, .*__call__") as error:
        lh.hessian(Old())  # type: ignore[arg-type]
    assert "FunctionObjective" in str(error.value)
    with pytest.raises(TypeError, match=r"loss is a Linear, expected an objective.\nWrap it: lh.Objective"):
        check_loss("loss", torch.nn.Linear(1, 1))
    with pytest.raises(
        TypeError, match=r"loss is a Tensor, expected an objective.\nMake one: lh.Objective\(model, data\)"
    ):
        check_loss("loss", E1)


def test_all_kinds_of_objectives_have_the_interface() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    network = lh.Objective(model, (torch.randn(8, 2), torch.arange(8) % 2))
    function = FunctionObjective(lambda theta: theta.square().sum(), E1)
    for loss in (network, function, AnchoredObjective(network, network.theta0, 0.1)):
        assert check_loss("loss", loss) is loss
        for name in _INTERFACE:
            assert hasattr(loss, name), name
    anchored = AnchoredObjective(network, network.theta0, 0.1)
    assert anchored.space is network.space
    assert anchored.batches is network.batches
    assert anchored.moving_names == network.moving_names == ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert list(moving_values(anchored)) == list(network.moving_names)
    assert moving_values(function) == {}
    with pytest.raises(TypeError, match="parameters are given with a FunctionObjective"):
        function.restricted(["a"])
    with pytest.raises(TypeError, match="expected an objective of a model"):
        function.model_at(E1)
