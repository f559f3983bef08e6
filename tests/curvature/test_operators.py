"""Operators: the matrix at one point as a map, H @ v; parts of it, sums of them, blocks of columns, SciPy's interface.

Oracles: a Hessian on paper; `testing.dense_hessian` and its blocks; dense arithmetic; `scipy.sparse.linalg.eigsh`; the
loop over columns, for columns at once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowhanging as lh
from lowhanging.curvature.eigenpairs import top_eigs, top_hessian_eigs
from lowhanging.curvature.operators import Hessian, OperatorSum, gauss_newton, hessian
from lowhanging.objective import blocks
from lowhanging.objective.blocks import LOOP, Batching
from lowhanging.objective.hvp import Products
from lowhanging.objective.objective import AnchoredObjective, FunctionObjective, Objective
from lowhanging.testing import dense_hessian
from own_loss import A, OwnLoss

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


# Parts: the block of some parameters ----------------------------------------------------------------------------------


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, CLASSES = draw(8, 3), torch.tensor([0, 3, 1, 2, 1, 0, 3, 1])


class Net(nn.Module):
    """Two layers, a frozen one between them, and a weight that is shared."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.first, self.fixed, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 4)
        self.again = nn.Linear(3, 3, bias=False)
        self.again.weight = self.first.weight
        self.fixed.requires_grad_(False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.again(self.fixed(self.first(x).tanh())).tanh())
        return out


@pytest.fixture
def net() -> Objective:
    return Objective(Net(), (X, CLASSES), engine="kept graph", micro_batch=5)


def matrix(operator: Any) -> Tensor:
    """Column by column."""
    columns = torch.eye(operator.shape[0], dtype=operator.dtype)
    return torch.stack([operator @ column for column in columns], dim=1)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ("first.*", ("first.weight", "first.bias")),
        ("*.bias", ("first.bias", "last.bias")),
        (["last.bias", "first.w*"], ("first.weight", "last.bias")),
        (lambda name: "last" in name, ("last.weight", "last.bias")),
        ("*", ("first.weight", "first.bias", "last.weight", "last.bias")),
    ],
)
def test_the_block_of_some_parameters(net: Objective, parameters: Any, names: tuple[str, ...]) -> None:
    """At another point than theta0, where the other weights, too, are those of that point."""
    theta = net.theta0 + 0.1 * draw(28, seed=3)
    named = {"first.weight": range(9), "first.bias": range(9, 12), "last.weight": range(12, 24)}
    where = [i for name in names for i in named.get(name, range(24, 28))]
    H, G = hessian(net, theta, parameters=parameters), gauss_newton(net, theta, parameters=parameters)
    assert H.parameters == G.parameters == names
    assert H.shape == G.shape == (len(where), len(where))
    expected = dense_hessian(net, theta=theta)[where][:, where]
    torch.testing.assert_close(matrix(H), expected, rtol=1e-11, atol=1e-14)
    whole = matrix(gauss_newton(net, theta))[where][:, where]
    torch.testing.assert_close(matrix(G), whole, rtol=1e-11, atol=1e-14)
    is_last = all(name.startswith("last") for name in names)  # the outputs are linear in these: then G = H
    assert (float((whole - expected).abs().max()) < 1e-14) == is_last
    v = draw(2, len(where), seed=4)
    embedded = torch.zeros(2, 28, dtype=torch.float64)
    embedded[:, where] = v
    assert torch.equal(H.embed(v), embedded)
    assert torch.equal(G.embed(v[0]), embedded[0])
    assert torch.equal(H.theta, theta)
    assert H.loss is net


def test_the_block_of_an_anchored_loss(net: Objective) -> None:
    anchored = AnchoredObjective(net, 0 * net.theta0, 0.5)
    H = hessian(anchored, parameters="first.*")
    expected = dense_hessian(anchored)[:12, :12]
    torch.testing.assert_close(matrix(H), expected, rtol=1e-11, atol=1e-14)
    small = anchored.restricted(["first.bias"])
    assert torch.equal(small.theta0, net.theta0[9:12])
    torch.testing.assert_close(small.gradient(small.theta0), anchored.gradient(net.theta0)[9:12])
    frozen = [name for name, weight in net.model_at(net.theta0).named_parameters() if not weight.requires_grad]
    assert frozen
    assert net.restricted(["first.bias", *frozen]).num_params == 3  # a constant stays one, also if it is named


def test_eigenpairs_of_a_block() -> None:
    model = Net()
    objective = Objective(model, (X, CLASSES))
    pairs = top_hessian_eigs(model, (X, CLASSES), k=2, parameters="last.*", progress=False)
    values, vectors = torch.linalg.eigh(dense_hessian(objective)[12:, 12:])
    torch.testing.assert_close(pairs.values, values[-2:].flip(0), rtol=1e-4, atol=1e-6)
    H = hessian(objective, parameters="last.*")
    assert H.embed(pairs.vectors).shape == (2, 28)
    assert abs(float(H.embed(pairs.vectors)[0, 12:] @ vectors[:, -1])) > 0.999
    assert pairs.operator.startswith("Hessian(16 x 16 of last.weight, last.bias of Objective(Net, 28 parameters")
    again = top_hessian_eigs(objective, k=2, parameters="last.*", progress=False)
    torch.testing.assert_close(again.values, pairs.values)


def test_parameters_that_are_none(net: Objective, loss: FunctionObjective) -> None:
    remedy = "Frozen parameters are constants, and a shared one stands under its first name only."
    listed = "names among first.weight, first.bias, last.weight, last.bias of Net"
    cases: list[tuple[Any, str]] = [
        ("fixed.*", "parameters has 'fixed.*', which matches no name"),
        (["last.*", "again.weight"], "parameters has 'again.weight', which matches no name"),
        (lambda name: False, "parameters accepts no name"),
    ]
    for parameters, received in cases:
        with pytest.raises(ValueError) as error:
            hessian(net, parameters=parameters)
        assert str(error.value) == f"{received}, expected {listed}.\n{remedy}"
    for wrong in (3, [], [nn.Linear(1, 1)]):
        with pytest.raises(TypeError, match=r"expected a glob on names, a list of globs, or a test of a name\."):
            gauss_newton(net, parameters=wrong)  # type: ignore[arg-type]
    for other in (loss, AnchoredObjective(loss, START, 0.1)):
        with pytest.raises(TypeError, match="which has no named parameters, expected an objective of a model"):
            hessian(other, parameters="*")
    with pytest.raises(ValueError, match=r"v has shape \(28,\), expected \(12,\) or \(k, 12\)"):
        hessian(net, parameters="first.*").embed(net.theta0)
    rows = draw(2, 3)
    assert torch.equal(hessian(loss).embed(rows), rows)


# Sums and multiples ---------------------------------------------------------------------------------------------------


def test_sums_and_multiples(net: Objective, loss: FunctionObjective) -> None:
    H, G = hessian(net), gauss_newton(net)
    A, B, C = matrix(H), matrix(G), draw(28, 28, seed=5)
    C = C + C.T
    v = draw(28, seed=6)
    cases = [
        (2.0 * H + G - H, A + B),
        (-H, -A),
        (H - G, A - B),
        (H / 4, A / 4),
        (C + H, A + C),  # torch leaves it to us
        (3 * (C - (H - G) * np.float64(2.0)), 3 * C - 6 * A + 6 * B),
        (torch.tensor(0.5) * G + C, 0.5 * B + C),
        (sum([H, G, G]), A + 2 * B),
        (H - H, 0 * A),
    ]
    for operator, expected in cases:
        torch.testing.assert_close(operator @ v, expected @ v, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(operator @ C[:, :3], expected @ C[:, :3], rtol=1e-12, atol=1e-12)
        assert (operator.shape, operator.dtype, operator.device) == ((28, 28), torch.float64, H.device)
    assert [(factor, part) for factor, part in (2 * H + H).terms] == [(3.0, H)]  # one product, not two
    assert (H + G + C).engine == "kept graph"
    assert repr(2 * H - G + C) == "OperatorSum(28 x 28: +2 Hessian -1 GaussNewton +1 Tensor)"
    values = torch.linalg.eigvalsh(A - B)
    torch.testing.assert_close(top_eigs(H - G, k=1, progress=False).values, values[-1:], rtol=1e-4, atol=1e-6)
    single = hessian(FunctionObjective(quartic, START.float(), engine="kept graph"))
    total = single + hessian(loss)
    assert total.dtype == torch.float64
    torch.testing.assert_close(total @ START, 24 * START**3, rtol=1e-6, atol=0)


def test_what_cannot_be_added(loss: FunctionObjective) -> None:
    H = hessian(loss)
    with pytest.raises(ValueError, match=r"operators have shapes \(3, 3\) and \(4, 4\), expected one shape"):
        H + torch.eye(4)
    with pytest.raises(ValueError, match="operators are on cpu and meta, expected one device"):
        H + OperatorSum([(1.0, Meta())])
    with pytest.raises(ValueError, match=r"operator differs from its transpose by 1\.0e.00 of its largest entry"):
        H - torch.tensor([[0.0, 1.0, 0], [0, 0, 0], [0, 0, 0]])
    for other in (1.0, np.eye(3), torch.ones(3), torch.eye(3).long(), scipy.sparse.linalg.aslinearoperator(np.eye(3))):
        with pytest.raises(TypeError, match=r"expected an operator of ours, or a symmetric floating-point tensor"):
            H + other
    with pytest.raises(TypeError, match="operator is a ndarray of shape"):
        np.eye(3) + H
    for factor in (H, "2", torch.ones(3)):
        with pytest.raises(TypeError, match=r"factor is a .*, expected a finite number\."):
            H * factor  # type: ignore[operator]
    with pytest.raises(ValueError, match="factor is nan, expected a finite number"):
        math.nan * H
    with pytest.raises(ZeroDivisionError, match="divisor is 0, expected another number"):
        H / 0


class Meta:
    """A map on another device."""

    shape, dtype, device = (3, 3), torch.float64, torch.device("meta")

    def __matmul__(self, v: Tensor) -> Tensor:
        return v


# SciPy ----------------------------------------------------------------------------------------------------------------


def test_scipy_finds_the_eigenvalues(net: Objective) -> None:
    H, A = hessian(net), dense_hessian(net)
    part = hessian(net, parameters="last.*")
    for operator, expected in ((H, A), (gauss_newton(net) - 2.0 * H, None), (part, A[12:, 12:])):
        expected = matrix(operator) if expected is None else expected
        values = scipy.sparse.linalg.eigsh(operator.to_scipy(), k=3, which="LA", return_eigenvectors=False)
        np.testing.assert_allclose(np.sort(values), torch.linalg.eigvalsh(expected)[-3:], rtol=1e-9, atol=1e-12)
    array = np.ascontiguousarray(draw(28, 2, seed=7).numpy())
    wrapped = H.to_scipy()
    for vectors in (array, array[:, 0], array[:, :1]):
        np.testing.assert_allclose(wrapped @ vectors, A.numpy() @ vectors, rtol=1e-10, atol=1e-13)
    assert wrapped.dtype == np.float64
    single = hessian(FunctionObjective(quartic, START.float(), engine="kept graph")).to_scipy()
    assert single.dtype == (single @ np.ones(3)).dtype == np.float32
    np.testing.assert_allclose(single @ np.ones(3), 12 * START.numpy() ** 2, rtol=1e-6)


# Blocks of columns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["split graph", "kept graph", "double backward"])
def test_columns_at_once_and_one_by_one(engine: Any) -> None:
    objective = Objective(Net(), (X, CLASSES), engine=engine, micro_batch=5)
    columns = draw(28, 37, seed=8)  # more than go at once
    for make in (hessian, gauss_newton):
        expected = torch.stack([make(objective) @ column for column in columns.T], dim=1)
        for block in ("loop", "vmap"):
            H = make(objective, block=block)
            assert H.block in ("not chosen yet", block)
            for _ in range(2):
                torch.testing.assert_close(H @ columns, expected, rtol=1e-11, atol=1e-13)
            assert (H.block, H.engine) == (block, engine)
        assert make(objective, block="vmap").__matmul__(columns[:, :0]).shape == (28, 0)


def test_the_quicker_way_is_measured_once(net: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def seconds(way: Batching, *rest: Any) -> float:
        measured.append(way.name)
        return took[way.name]

    monkeypatch.setattr(blocks, "_seconds", seconds)
    expected = dense_hessian(net)
    took = {"loop": 1.0}
    for took["vmap"], chosen in ((0.5, "vmap"), (0.9, "loop")):
        other = net.at(net.theta0)
        other._products = Products(net._terms, net.batches, engine="kept graph")
        H = hessian(other)
        measured.clear()
        assert H.block == "not chosen yet"
        torch.testing.assert_close(H @ expected[:, :1], expected @ expected[:, :1])
        assert H.block == "not chosen yet"  # one column is no block
        for _ in range(2):
            torch.testing.assert_close(H @ expected, expected @ expected, rtol=1e-10, atol=1e-12)
        assert H.block == chosen
        assert measured == ["loop", "vmap"]


def test_vmap_that_is_wrong_or_fails_is_not_used(net: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `torch.func.hessian` of a layer norm is (torch 2.13): quick, and off, here on the second batch alone."""
    monkeypatch.setattr(blocks, "_seconds", lambda way, *rest: 1.0 if way.name == "loop" else 0.1)
    right = Batching.add
    calls: list[int] = []

    def off(self: Batching, total: Tensor, engine: Any, prepared: Any, rows: Tensor, *, again: bool = True) -> Tensor:
        found = right(LOOP, total, engine, prepared, rows)
        if self.name == "loop":
            return found
        calls.append(len(rows))
        return found * 1.01 if len(calls) == 2 else found

    def fails(self: Batching, *rest: Any, again: bool = True) -> Tensor:
        if self.name == "vmap":
            raise NotImplementedError("no batching rule\nmore")
        return right(self, *rest)

    H, columns = hessian(net), draw(28, 4, seed=9)
    expected = matrix(H) @ columns
    for way, problem in ((off, "it is off by 1.0e-02 on batch 1"), (fails, "no batching rule")):
        monkeypatch.setattr(Batching, "add", way)
        for block in ("auto", "vmap"):
            calls.clear()
            other = net.at(net.theta0)
            other._products = Products(net._terms, net.batches, engine="kept graph")
            operator = hessian(other, block=block)
            if block == "auto":
                torch.testing.assert_close(operator @ columns, expected, rtol=1e-11, atol=1e-13)
                assert operator.block == "loop"
                continue
            with pytest.raises(ValueError) as error:
                operator @ columns
            assert str(error.value) == (
                f"block is 'vmap', which fails on this loss ({problem}), expected a way that can follow it.\n"
                'Use block="auto".'
            )


def test_out_of_memory_takes_fewer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    vmap = torch.vmap

    def limited(function: Any, chunk_size: int) -> Any:
        sizes.append(chunk_size)
        if chunk_size > 4:
            raise torch.OutOfMemoryError("too much")
        return vmap(function, chunk_size=chunk_size)

    monkeypatch.setattr(torch, "vmap", limited)

    class Doubling:
        def product(self, prepared: Any, v: Tensor, *, again: bool) -> Tensor:
            return 2 * v

    rows = draw(9, 3)
    assert torch.equal(Batching("vmap", 16).add(torch.zeros_like(rows), Doubling(), None, rows), 2 * rows)  # type: ignore[arg-type]
    assert sizes == [16, 8, 4]


def test_a_block_prepares_each_batch_once(net: Objective) -> None:
    """What does not depend on the vector is shared by the columns, also where nothing may be kept."""
    calls = []

    def loss_sum(theta: Tensor, batch: Any) -> tuple[Tensor, int]:
        calls.append(1)
        return net._terms(theta, batch)[0], len(batch[0])

    products = Products(loss_sum, net.batches, engine="double backward", keep_bytes=0)
    products.product(net.theta0, net.theta0)
    calls.clear()
    rows = products.product(net.theta0, draw(6, 28), "loop")
    assert len(calls) == 2
    assert rows.shape == (6, 28)


def test_another_ways_objective_is_multiplied_one_by_one() -> None:
    H = hessian(OwnLoss())
    columns = draw(3, 4)
    torch.testing.assert_close(H @ columns, A @ columns)
    torch.testing.assert_close(H @ columns[:, 0], A @ columns[:, 0])
    assert (H @ columns[:, :0]).shape == (3, 0)
    assert (H.block, H.engine) == ("loop", "on paper")
    with pytest.raises(TypeError, match="loss is an OwnLoss, which has no outputs"):
        gauss_newton(OwnLoss())
    with pytest.raises(ValueError, match="block is 'fast', expected one of 'auto', 'loop', 'vmap'"):
        hessian(OwnLoss(), block="fast")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("block", ["auto", "loop", "vmap"])
def test_on_a_gpu(block: Any) -> None:
    columns = draw(28, 40, seed=8)
    for make in (hessian, gauss_newton):
        expected = matrix(make(Objective(Net(), (X, CLASSES), engine="kept graph"))) @ columns
        H = make(Objective(Net(), (X, CLASSES), micro_batch=5, device="cuda"), block=block)
        result = H @ columns.cuda()
        assert (result.device.type, H.device.type) == ("cuda", "cuda")
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-10, atol=1e-12)
        part = make(Objective(Net(), (X, CLASSES), device="cuda"), parameters="last.*", block=block)
        assert part.embed((part @ columns[:16].cuda()).T).shape == (40, 28)
        assert (2.0 * H - H).to_scipy().matvec(columns[:, 0].numpy()).shape == (28,)


def test_autocast_around_a_call_changes_no_bit() -> None:
    """A training loop's: every product of two matrices inside it would be one of bfloat16."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(60, 5, generator=generator), torch.arange(60) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    lh.train(model, (inputs, targets), num_epochs=5, progress=False)
    loss = lh.Objective(model, (inputs, targets))
    half = lh.Objective(model, (inputs[:30], targets[:30]))
    H = lh.hessian(loss)
    A = torch.randn(loss.num_params, loss.num_params, generator=generator)
    A = (A + A.T) / 50
    v = torch.randn(loss.num_params, generator=generator)
    thetas = torch.stack([loss.theta0 + 0.1 * i * v for i in range(4)] + [loss.theta0 + v.roll(1)])
    calls = {
        "top_eigs": lambda: lh.top_eigs(H, k=4, progress=False).values,
        "of a matrix": lambda: lh.top_eigs(A, k=4, progress=False).values,
        "sum": lambda: (H + A) @ v,
        "trace": lambda: torch.tensor(float(lh.trace(H, num_probes=30, progress=False))),
        "density": lambda: lh.spectral_density(H, num_steps=15, num_probes=3, progress=False).nodes,
        "steering": lambda: lh.steering_direction(preserve=loss, ablate=half, k=5),
        "polish": lambda: lh.polish(loss, anchor=0.05, gtol=1e-4, max_drift=10.0, progress=False).theta,
        "principal": lambda: lh.principal_directions(thetas).directions,
        "gram_schmidt": lambda: lh.gram_schmidt(thetas[1:3]).directions,
        "plane": lambda: lh.plane_through(*thetas[[0, 1, 4]]).directions,
    }
    for name, call in calls.items():
        outside = call()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = call()
        assert torch.equal(inside, outside), name
