"""hessian: the matrix at one point as a map, H @ v.

Oracles: a Hessian on paper; `testing.dense_hessian`.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowhanging.anchored import AnchoredObjective
from lowhanging.basin.operators import Hessian, hessian
from lowhanging.objective import FunctionObjective, Objective
from lowhanging.testing import dense_hessian

START = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
POINT = torch.tensor([0.25, 1.0, -1.0], dtype=torch.float64)


def quartic(theta: Tensor) -> Tensor:
    """Hessian diag(12 theta^2)."""
    return (theta**4).sum()


@pytest.fixture
def loss() -> FunctionObjective:
    return FunctionObjective(quartic, START, engine="kept graph")


def test_a_map_at_theta0_or_elsewhere(loss: FunctionObjective) -> None:
    v = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for map_, point in ((hessian(loss), START), (hessian(loss, POINT), POINT), (hessian(loss.at(POINT)), POINT)):
        torch.testing.assert_close(map_ @ v, 12 * point**2 * v, rtol=1e-14, atol=0)
        assert torch.equal(map_.theta, point)
        assert map_.shape == (3, 3)
        assert (map_.dtype, map_.device) == (torch.float64, torch.device("cpu"))
    assert torch.equal(loss.theta0, START)
    assert hessian(loss).engine == "kept graph"
    text = "Hessian(3 x 3 of FunctionObjective(quartic, 3 parameters, engine='kept graph'))"
    assert repr(hessian(loss)) == text


def test_columns(loss: FunctionObjective) -> None:
    columns = torch.eye(3, dtype=torch.float64)[:, :2]
    result = hessian(loss) @ columns
    torch.testing.assert_close(result, torch.diag(12 * START**2)[:, :2], rtol=1e-14, atol=0)
    assert (hessian(loss) @ columns[:, :0]).shape == (3, 0)


def test_of_a_model_and_of_its_anchored_loss() -> None:
    inputs = torch.randn(8, 2, dtype=torch.float64)
    objective = Objective(nn.Linear(2, 1).double(), (inputs, inputs[:, :1]), loss_fn=F.mse_loss, engine="kept graph")
    expected = dense_hessian(objective)
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(hessian(objective) @ identity, expected, rtol=1e-12, atol=1e-14)
    anchored = AnchoredObjective(objective, objective.theta0, 0.5)
    torch.testing.assert_close(hessian(anchored) @ identity, expected + 0.5 * identity, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("v", "received"),
    [
        (torch.ones(4), "v has shape (4,)"),
        (torch.ones(2, 3), "v has shape (2, 3)"),
        (torch.ones(3, 1, 1), "v has shape (3, 1, 1)"),
        (torch.tensor(1.0), "v has shape ()"),
        ([1.0, 2.0, 3.0], "v is a list"),
    ],
)
def test_bad_vectors(loss: FunctionObjective, v: object, received: str) -> None:
    with pytest.raises(ValueError) as error:
        hessian(loss) @ v  # type: ignore[operator]
    assert str(error.value) == f"{received}, expected (3,) or (3, b).\nVectors are columns here: H @ subspace.basis.T"


def test_bad_points(loss: FunctionObjective) -> None:
    with pytest.raises(ValueError, match=r"theta has shape \(2,\), expected \(3,\)"):
        hessian(loss, torch.ones(2))
    with pytest.raises(ValueError, match="theta holds 3 NaN or infinite entries"):
        hessian(loss, torch.full((3,), math.nan))
    with pytest.raises(ValueError, match="v holds 1 NaN or infinite entries"):
        Hessian(loss, START) @ torch.tensor([1.0, math.inf, 0.0])
