"""Products and split graphs: three engines, one Hessian, whatever the batches, the budget and the tracer do.

Oracles: the Hessian of logistic regression on paper; the engines against each other (forward over reverse from a
recording, double backward); finite differences; the number of times the loss is called.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import lowhanging as lh
from lowhanging.objective import AnchoredObjective, Objective, hvp
from lowhanging.objective.cost import NEVER
from lowhanging.objective.hvp import ENGINES, GraphEngine, HessianOfBatch, LossSum, Products, ProductsAt
from lowhanging.objective.split_graph import CannotSplitError, SplitGraph, _cut

pytestmark = pytest.mark.usefixtures("recorded")

X = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.float64)
BATCHES = [(X[:5], Y[:5]), (X[5:], Y[5:])]
THETA = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
V = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
REAL_ENGINES = ENGINES[1:]


def logistic(theta: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    x, y = batch
    return F.binary_cross_entropy_with_logits(x @ theta, y, reduction="sum"), len(x)


def logistic_hessian(theta: Tensor) -> Tensor:
    """X' diag(s (1 - s)) X / n."""
    s = (X @ theta).sigmoid()
    return X.T @ ((s * (1 - s))[:, None] * X) / len(X)


def agrees(loss_sum: LossSum, theta: Tensor, batches: Any = BATCHES, *, engine: str) -> Products:
    """`auto` runs `engine`, and at two points its first, second and third products are those of a double backward."""
    ours, reference = Products(loss_sum, batches), Products(loss_sum, batches, engine="double backward")
    for point in (theta, theta.cos()):
        for v in (theta.sin(), theta.cos() + 1, theta.exp()):
            expected = reference.product(point, v)
            torch.testing.assert_close(ours.product(point, v), expected, rtol=1e-10, atol=1e-12)
    assert ours.engine == engine
    assert (ours.fallback_reason is None) == (engine == "split graph")
    return ours


# One mean, three engines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", REAL_ENGINES)
def test_engines_give_the_hessian_on_paper(engine: Any) -> None:
    products = Products(logistic, BATCHES, engine=engine)
    assert products.engine == "not chosen yet"
    for point in (THETA, -THETA, THETA):  # back to the first: what was kept there is not mistaken for what is kept now
        for v in (V, V.flip(0), V):
            torch.testing.assert_close(products.product(point, v), logistic_hessian(point) @ v, rtol=1e-12, atol=1e-14)
    assert products.engine == engine


def test_value_and_gradient_are_the_mean_over_examples() -> None:
    """With 5 + 3 examples the mean of the batches' means is another number."""
    products = Products(logistic, BATCHES)
    s = (X @ THETA).sigmoid()
    expected = -(Y * s.log() + (1 - Y) * (1 - s).log()).mean()
    value, gradient = products.value_and_gradient(THETA)
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, X.T @ (s - Y) / 8, rtol=1e-13, atol=1e-15)
    assert torch.equal(products.value(THETA), value)
    assert value.dtype == torch.float64
    of_means = sum(logistic(THETA, batch)[0] / len(batch[0]) for batch in BATCHES) / 2
    assert abs(float(of_means - expected)) > 1e-3


def test_any_partition_and_order_gives_the_same() -> None:
    expected = Products(logistic, BATCHES, engine="kept graph")
    order = torch.randperm(8)
    for sizes in ([8], [1, 7], [3, 3, 2], [1] * 8):
        batches = list(zip(X[order].split(sizes), Y[order].split(sizes), strict=True))
        others = Products(logistic, batches, engine="kept graph")
        torch.testing.assert_close(others.value(THETA), expected.value(THETA), rtol=1e-14, atol=0)
        torch.testing.assert_close(others.product(THETA, V), expected.product(THETA, V), rtol=1e-13, atol=1e-15)


def test_float32_is_accumulated_in_float64() -> None:
    batches = [(x.float(), y.float()) for x, y in BATCHES]
    for engine in REAL_ENGINES:
        products = Products(logistic, batches, engine=engine)
        result = products.product(THETA.float(), V.float())
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), logistic_hessian(THETA) @ V, rtol=2e-6, atol=1e-7)
    # 4,000 batches of one example: a float32 sum would be off by thousands of roundings.
    many = [(x[None], y[None]) for x, y in zip(X.float().repeat(500, 1), Y.float().repeat(500), strict=True)]
    error = abs(float(Products(logistic, many).value(THETA.float()) - Products(logistic, BATCHES).value(THETA)))
    assert error < 2e-7


def test_counts_may_be_tensors_and_uneven() -> None:
    """The count weighs the batches: terms that a mask leaves out don't count."""

    def masked(theta: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        return (F.softplus(x @ theta) * y).sum(), y.sum()

    products = Products(masked, BATCHES)
    s = (X @ THETA).sigmoid()
    expected = X.T @ ((Y * s * (1 - s))[:, None] * X) / Y.sum()
    torch.testing.assert_close(products.product(THETA, V), expected @ V, rtol=1e-12, atol=1e-14)
    assert products.engine == "split graph"


# What is kept, and when -----------------------------------------------------------------------------------------------


class Counted:
    """A loss that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, theta: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        self.calls += 1
        return logistic(theta, batch)


def calls_per_product(products: Products, loss: Counted, points: list[Tensor]) -> list[int]:
    counts = []
    for point in points:
        before = loss.calls
        products.product(point, V)
        counts.append(loss.calls - before)
    return counts


def test_a_kept_graph_is_built_at_the_second_product() -> None:
    loss = Counted()
    products = Products(loss, BATCHES, engine="kept graph")
    assert products.product(THETA, V) is not None
    # Two batches. The comparison with another kind has built them; at another theta, the second product builds.
    assert calls_per_product(products, loss, [THETA, THETA, THETA, -THETA, -THETA, -THETA]) == [0, 0, 0, 2, 2, 0]
    products.release()
    assert calls_per_product(products, loss, [-THETA, -THETA, -THETA]) == [2, 2, 0]


def test_a_double_backward_keeps_nothing() -> None:
    loss = Counted()
    products = Products(loss, BATCHES, engine="double backward")
    products.product(THETA, V)
    assert calls_per_product(products, loss, [THETA, THETA, THETA]) == [2, 2, 2]


def test_the_constant_part_of_a_split_graph_runs_once_per_theta(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, loss = [], Counted()
    prepare = SplitGraph.prepare
    monkeypatch.setattr(SplitGraph, "prepare", lambda *args: prepared.append(1) or prepare(*args))
    products = Products(loss, BATCHES)
    products.product(THETA, V)  # self-test and product, from the same two preparations
    assert products.engine == "split graph"
    assert len(prepared) == 2
    counts = []
    for point in (THETA, THETA, THETA, -THETA, -THETA, -THETA):
        before = len(prepared), loss.calls
        products.product(point, V)
        counts.append(len(prepared) - before[0])
        assert loss.calls == before[1]  # the recording runs, not the loss
    assert counts == [0, 0, 0, 2, 2, 0]


@pytest.mark.parametrize("engine", REAL_ENGINES)
def test_a_budget_changes_no_bit(engine: Any) -> None:
    results = []
    for keep_bytes in (2**30, 1000, 0):
        products = Products(logistic, BATCHES, engine=engine, keep_bytes=keep_bytes)
        results.append(torch.stack([products.product(THETA, V * k) for k in (1, 2, 3)]))
        assert products._kept.num_bytes <= keep_bytes  # type: ignore[union-attr]
        assert products.engine == engine
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_budget_keeps_what_fits_and_recomputes_the_rest() -> None:
    loss = Counted()
    largest = max(GraphEngine(HessianOfBatch(logistic), keeps=True).prepare(THETA, batch)[1] for batch in BATCHES)
    products = Products(loss, BATCHES, engine="kept graph", keep_bytes=largest)
    products.product(THETA, V)
    assert calls_per_product(products, loss, [THETA, THETA, THETA]) == [1, 1, 1]


def test_without_room_for_one_graph_auto_falls_to_a_double_backward() -> None:
    def branches(theta: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        total, count = logistic(theta, batch)
        return total if float(total.detach()) > 0 else -total, count

    products = Products(branches, BATCHES, keep_bytes=10)
    torch.testing.assert_close(products.product(THETA, V), logistic_hessian(THETA) @ V)
    assert products.engine == "double backward"


# What a product costs beside its arithmetic ---------------------------------------------------------------------------


class Counting(TorchDispatchMode):
    """Waits for the device, and copies of tensors as large as theta."""

    def __init__(self, num_params: int):
        super().__init__()
        self.num_params, self.waits, self.copies = num_params, [], []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name in ("_local_scalar_dense", "equal", "is_nonzero"):
            self.waits.append(name)
        if name in ("clone", "_to_copy", "copy_", "copy", "stack", "contiguous") and result.numel() >= self.num_params:
            self.copies.append(name)
        return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("engine", ["split graph", "kept graph", "double backward"])  # torch.func.jvp copies inside
def test_a_product_neither_waits_nor_copies(engine: Any, dtype: torch.dtype) -> None:
    """One product is warm after the second; a mean in float32 is one rounded copy of the float64 sum."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 17), torch.nn.Tanh(), torch.nn.Linear(17, 3)).to(dtype)
    loss = Objective(model, (torch.randn(12, 5).to(dtype), torch.arange(12) % 3), micro_batch=4, engine=engine)
    p = loss.num_params
    v, rows, rounded = torch.randn(p).to(dtype), torch.randn(4, p).to(dtype), ["_to_copy"] * (dtype == torch.float32)
    for at in (loss, AnchoredObjective(loss, loss.theta0, 0.1)):
        curvature, H = at.curvature("hessian", at.theta0), lh.hessian(at, block="loop")
        for _ in range(2):
            curvature.product(v), curvature.product(rows, "loop")
        for vectors in (v, rows):
            with Counting(p) as behind:
                curvature.product(vectors, "loop")
            assert (behind.waits, behind.copies) == ([], rounded)
        H @ v
        for vectors in (v, rows.T):  # the door: one look at the numbers of the vectors, and one copy of them
            with Counting(p) as door:
                H @ vectors
            assert (len(door.waits), len(door.copies)) == (1, 1 + len(rounded))
        at.hvp(at.theta0, v)
        with Counting(p) as door:  # theta comes anew: it is checked, copied, and compared with the one before
            at.hvp(loss._theta0, v)
        assert (len(door.waits), len(door.copies)) == (3, 2 + len(rounded))


@pytest.mark.parametrize("engine", ["split graph", "kept graph", "double backward"])
def test_threads_at_two_points_get_the_products_of_their_own(engine: Any) -> None:
    """Without the lock that an objective holds: nothing but the cache itself keeps what they find apart."""
    points, vectors = (THETA, -THETA, THETA.cos()), [V * k for k in (1.0, -2.0, 0.5)]
    expected = [[logistic_hessian(point) @ v for v in vectors] for point in points]
    products, wrong = Products(logistic, BATCHES, engine=engine), []
    products.product(THETA, V)

    def work(number: int) -> None:
        try:
            for _ in range(60):
                for v, right in zip(vectors, expected[number], strict=True):
                    if not torch.allclose(products.product(points[number], v), right, rtol=1e-10, atol=1e-13):
                        wrong.append(number)
        except Exception as error:
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number % 3,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


# Losses with little curvature -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "kept graph", "double backward"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda theta, batch: ((batch[0] @ theta).sum(), len(batch[0])),  # linear in theta
        lambda theta, batch: (0 * theta.sum() + batch[0].sum(), len(batch[0])),
        lambda theta, batch: (batch[0].sum(), len(batch[0])),  # theta is not used at all
    ],
    ids=["linear", "zero", "constant"],
)
def test_without_curvature_the_product_is_zero(loss: LossSum, engine: Any) -> None:
    products = Products(loss, BATCHES, engine=engine)
    for _ in range(3):
        assert torch.equal(products.product(THETA, V), torch.zeros(3, dtype=torch.float64))
    assert products.value_and_gradient(THETA)[1].shape == (3,)


def test_a_part_of_theta_that_is_unused_has_zero_rows() -> None:
    def half(theta: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        return logistic(theta[:3], batch)

    theta = torch.cat([THETA, THETA])
    for engine in REAL_ENGINES:
        result = Products(half, BATCHES, engine=engine).product(theta, theta)
        torch.testing.assert_close(result[:3], logistic_hessian(THETA) @ THETA, rtol=1e-12, atol=1e-14)
        assert not result[3:].any()


# What a tracer can't follow -------------------------------------------------------------------------------------------


def network(middle: Callable[[Tensor, Tensor], Tensor]) -> LossSum:
    """A one-layer network of 3 + 3 weights with `middle(h, x)` after its activations."""

    def loss_sum(theta: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        x, y = batch
        hidden = middle((x * theta[:3]).tanh(), x)
        return F.binary_cross_entropy_with_logits(hidden @ theta[3:], y, reduction="sum"), len(x)

    return loss_sum


def write_into_zeros(hidden: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2] = hidden[:, :2]
    out[:, 2] += hidden[:, 2].exp()
    return out


def square_where_positive(hidden: Tensor, x: Tensor) -> Tensor:
    out = hidden.clone()
    out[hidden > 0.1] = out[hidden > 0.1] ** 2  # shapes that depend on theta
    return out


SIX = torch.cat([THETA, THETA.flip(0)])
TRACED = {
    "in place": lambda hidden, x: hidden.mul(2).sin_().add_(1).mul_(x.abs()),
    "written into": write_into_zeros,
    "data": lambda hidden, x: torch.where(x > 0, hidden, hidden**2),
    "top k": lambda hidden, x: hidden * (hidden >= hidden.topk(2, 1).values[:, 1:]),
    "count of the data": lambda hidden, x: hidden / (x > 0).sum(),  # a tensor: recorded, right on every batch
}
NOT_TRACED = {
    "count in Python": lambda hidden, x: hidden / int((x > 0).sum()),
    "list in Python": lambda hidden, x: hidden / sum(value > 0 for value in x.flatten().tolist()),
    "branch on the data": lambda hidden, x: hidden if x.sum() > 0 else hidden**2,
    "branch on theta": lambda hidden, x: hidden if hidden.sum() > 0 else hidden**2,
    "shapes from theta": square_where_positive,
    "through numpy": lambda hidden, x: hidden * torch.from_numpy(x.numpy()).sum(),
}


@pytest.mark.parametrize("name", TRACED)
def test_recordings_that_hold_on_every_batch(name: str) -> None:
    agrees(network(TRACED[name]), SIX, engine="split graph")


@pytest.mark.parametrize("name", NOT_TRACED)
def test_losses_that_depend_on_values_fall_back(name: str) -> None:
    """A recording would hold one batch's count, branch or shape; the kept graph is right everywhere."""
    products = agrees(network(NOT_TRACED[name]), SIX, engine="kept graph")
    assert "\n" not in products.fallback_reason


class Cube(torch.autograd.Function):
    """x^3 without forward differentiation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * gradient * x**2


class LyingCube(torch.autograd.Function):
    """x^3 with a forward derivative that is off by a tenth."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * gradient * x**2

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3.3 * tangent * x**2


class AlmostCube(LyingCube):
    """x^3 with a forward derivative that is off by a ten-millionth."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (3 + 3e-7) * tangent * x**2


def test_a_function_without_forward_derivative_falls_back() -> None:
    agrees(network(lambda hidden, _: Cube.apply(hidden)), SIX, engine="kept graph")


@pytest.mark.parametrize(("of_others", "name"), [("vmap", "vmap"), ("loop", "loop")])
def test_blocks_are_multiplied_at_once_only_where_every_rank_does(of_others: str, name: str) -> None:
    products = Products(logistic, BATCHES, engine="double backward")
    products.product(THETA, V)
    asked = []

    def highest(question: str, choose: Callable[[], int], *_: Tensor) -> int:
        asked.append(question)
        return max(choose(), int(of_others == "loop"))

    products._ranks = SimpleNamespace(highest=highest)  # type: ignore[assignment]
    rows = torch.stack([V, THETA])
    assert products._batching(products._engines[False], THETA, rows, "vmap").name == name  # type: ignore[arg-type]
    assert products._batching(products._engines[False], THETA, rows, "loop").name == "loop"  # type: ignore[arg-type]
    assert asked == ["a way to multiply blocks"] * 2


def test_a_graph_is_kept_if_it_just_fits() -> None:
    loss = network(lambda hidden, _: Cube.apply(hidden))
    _, size = GraphEngine(HessianOfBatch(loss), keeps=True).prepare(SIX, BATCHES[0])
    for budget, engine in ((size, "kept graph"), (size - 1, "double backward")):
        products = Products(loss, BATCHES, keep_bytes=budget)
        products.product(SIX, SIX)
        assert products.engine == engine


def test_the_self_test_finds_a_wrong_recording() -> None:
    products = agrees(network(lambda hidden, _: LyingCube.apply(hidden)), SIX, engine="kept graph")
    assert products.fallback_reason.startswith("the product of batch 0 is off by")
    assert "from central differences" in products.fallback_reason
    products = agrees(network(lambda hidden, _: AlmostCube.apply(hidden)), SIX, engine="kept graph")
    assert "the product of batch 0 is off by" in products.fallback_reason


def test_the_self_test_finds_a_recording_that_is_wrong_on_a_later_batch_only() -> None:
    """Nothing fails and the first batch is right: this is what comparing every batch is for."""
    special = BATCHES[1][0]
    loss = network(lambda hidden, x: hidden * (1.25 if x is special else 1.0))
    # The third batch has the second's shape, so one recording serves both.
    batches = [(x.clone(), y) for x, y in (BATCHES[1], BATCHES[0])] + [BATCHES[1]]
    products = agrees(loss, SIX, batches, engine="kept graph")
    assert products.fallback_reason.startswith("the product of batch 2 is off by")


def test_a_recording_that_fails_on_a_later_batch_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = SplitGraph.prepare

    def fails_later(graph: SplitGraph, theta: Tensor, batch: Any) -> tuple[Tensor, ...]:
        if batch[0] is BATCHES[1][0]:
            raise RuntimeError("The expanded size of the tensor (4) must match the existing size (5)")
        return prepare(graph, theta, batch)

    monkeypatch.setattr(SplitGraph, "prepare", fails_later)
    products = agrees(logistic, THETA, engine="kept graph")
    assert products.fallback_reason.startswith("the recording fails on batch 1: The expanded size")


def test_many_shapes_are_not_recorded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hvp, "_MAX_RECORDINGS", 1)
    products = agrees(logistic, THETA, engine="kept graph")
    assert products.fallback_reason == "the batches have more than 1 shapes, each to be recorded"
    asked_for = Products(logistic, BATCHES, engine="split graph")
    torch.testing.assert_close(asked_for.product(THETA, V), logistic_hessian(THETA) @ V)


def test_a_recording_asked_for_by_name_does_not_fall_back() -> None:
    products = Products(network(NOT_TRACED["branch on the data"]), BATCHES, engine="split graph")
    with pytest.raises(ValueError) as error:
        products.product(SIX, SIX)
    received, remedy = str(error.value).split("\n")
    assert received.startswith("engine is 'split graph', which fails on this loss (")
    assert received.endswith("), expected an engine that can follow it.")
    assert remedy == 'Use engine="auto".'


def test_a_cut_refuses_to_write_into_what_is_kept() -> None:
    """Otherwise the second product would start from what the first has left."""
    traced = make_fx(lambda theta, v, x: x.mul_(v).sum() * theta)(THETA, V, V.clone())
    with pytest.raises(CannotSplitError, match="writes into a tensor that does not depend on the vector"):
        _cut(traced)
    harmless = make_fx(lambda theta, v, x: (v * x).mul_(theta).sum() + theta)(THETA, V, V.clone())
    assert len(_cut(harmless)) == 2


# Losses of torch ------------------------------------------------------------------------------------------------------

# In a process of its own: a torch kernel that is handed a tensor without storage ends the process without a word, as
# mse_loss did when it was recorded on real tensors (torch 2.13).
SCRIPT = """
import json, sys, warnings
import torch, torch.nn.functional as F
from lowhanging.objective.objective import Objective
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
x, classes, real = torch.randn(8, 4).double(), torch.arange(8) % 3, torch.randn(8, 3).double()
shares, signs = real.softmax(1), real.sign()
CASES = {
    "mse": (F.mse_loss, real),
    "MSELoss": (torch.nn.MSELoss(), real),
    "mse inside": (lambda o, t: F.mse_loss(o.softmax(1), F.one_hot(t, 3).to(o)), classes),
    "mse of a constant": (lambda o, t: F.mse_loss(o, torch.zeros_like(o)) + 0 * t.sum(), real),
    "huber": (F.huber_loss, real),
    "bce logits": (F.binary_cross_entropy_with_logits, shares),
    "nll": (lambda o, t: F.nll_loss(o.log_softmax(1), t), classes),
    "gaussian nll": (lambda o, t: F.gaussian_nll_loss(o, t, o.exp()), real),
    "kl": (lambda o, t: F.kl_div(o.log_softmax(1), t, reduction="batchmean"), shares),
    "smoothing": (lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1), classes),
    "probabilities": (F.cross_entropy, shares),
    "soft margin": (F.soft_margin_loss, signs),
}
network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)).double()


def report(name, **settings):
    ours = Objective(network, **settings)
    v = torch.randn(ours.num_params).double()
    ours._products._recorded_after = 0
    products = [ours.hvp(ours.theta0, v) for _ in range(3)]
    reference = Objective(network, engine="double backward", **settings)
    expected = reference.hvp(ours.theta0, v)
    # An independent route: central differences, extrapolated once.
    D = [(ours.gradient(ours.theta0 + h * v) - ours.gradient(ours.theta0 - h * v)) / (2 * h) for h in (1e-4, 2e-4)]
    by_differences = (4 * D[0] - D[1]) / 3
    off = [float((p - e).norm() / e.norm()) for p, e in [(products[0], expected), (products[2], expected),
                                                         (expected, by_differences)]]
    print(json.dumps([name, ours.engine, off]), flush=True)


for name, (loss_fn, targets) in CASES.items():
    report(name, data=(x, targets), loss_fn=loss_fn)
report("mse in batch_loss", data=(x, real), batch_loss=lambda m, b: (F.mse_loss(m(b[0]), b[1], reduction="sum"), 24))
report("mse in a tuple", data=[(x, (real, classes))],
       loss_fn=lambda o, t: F.mse_loss(o, t[0]) + F.cross_entropy(o, t[1]))
"""
FALLS_BACK = {"mse inside", "huber", "gaussian nll", "soft margin"}  # one_hot and some derivatives can't be recorded


def test_torchs_losses_are_right_and_none_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"after {done.stdout}\n{done.stderr}"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 14
    for name, engine, (first, third, reference) in lines:
        assert engine == ("kept graph" if name in FALLS_BACK else "split graph"), name
        assert first < 1e-12, name
        assert third < 1e-12, name
        assert reference < 1e-7, name


def test_without_a_second_derivative_the_message_is_ours() -> None:
    def margin(theta: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        x, y = batch
        return F.multi_margin_loss((x[:, :2] * theta[:2]).tanh(), y.long(), p=2, reduction="sum"), len(x)

    for engine in ("auto", "kept graph", "double backward"):
        with pytest.raises(ValueError) as error:
            Products(margin, BATCHES, engine=engine).product(THETA, V)
        assert str(error.value) == (
            "the loss can't be differentiated twice (derivative for aten::multi_margin_loss_backward is not "
            "implemented), expected one with a second derivative.\n"
            "Write that operation with others, such as exp, log and sums, and none in place."
        )
    Products(margin, BATCHES).value_and_gradient(THETA)  # the first one exists


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_a_result_that_is_overwritten_before_it_is_needed_is_refused(engine: Any) -> None:
    """Torch's own check is off where saved tensors are noted: without one of ours, the product is silently wrong."""

    def overwrites(theta: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        return (batch[0] * theta).sigmoid().mul_(2).square().sum(), len(batch[0])

    with pytest.raises(ValueError, match="inplace operation"):
        Products(overwrites, BATCHES, engine=engine).product(THETA, V)


def test_another_failure_of_the_loss_is_not_renamed() -> None:
    def fails(theta: Tensor, batch: Any) -> tuple[Tensor, int]:
        raise RuntimeError("out of coffee")

    with pytest.raises(RuntimeError, match="out of coffee"):
        Products(fails, BATCHES).product(THETA, V)


def engines_of(products: Products, theta: Tensor, num: int) -> list[str]:
    """The engine of each of `num` products at one theta, by a new map."""
    at, found = ProductsAt(products, theta), []
    for i in range(num):
        v = (theta + i).sin() + 2
        expected = Products(logistic, BATCHES, engine="double backward").product(theta, v)
        torch.testing.assert_close(at.product(v), expected, rtol=1e-10, atol=1e-12)
        found.append(at.engine)
    return found


def test_products_are_recorded_once_that_pays_and_each_map_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call gives the same bits, whatever was computed before it."""
    monkeypatch.setattr(hvp, "products_until_recorded", lambda *_: 3)
    made: list[Any] = []
    monkeypatch.setattr(hvp, "SplitGraph", lambda *arguments: made.append(1) or SplitGraph(*arguments))
    products = Products(logistic, BATCHES)
    expected = ["kept graph"] * 3 + ["split graph"] * 2
    assert engines_of(products, THETA, 5) == expected
    shapes = {len(x) for x, _ in BATCHES}
    assert len(made) == len(shapes)
    for theta in (THETA, THETA.cos()):
        assert engines_of(products, theta, 5) == expected
    assert len(made) == len(shapes)  # one recording serves all


def test_a_recording_that_fails_when_it_pays_leaves_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hvp, "products_until_recorded", lambda *_: 2)
    products = Products(network(lambda hidden, _: Cube.apply(hidden)), BATCHES)
    at = ProductsAt(products, SIX)
    for _ in range(4):
        at.product(SIX)
        assert at.engine == "kept graph"
    assert products.fallback_reason is not None


def test_the_graph_is_not_compared_again_when_a_recording_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hvp, "products_until_recorded", lambda *_: 2)
    compared: list[str] = []
    verified = hvp.Verification.verified

    def noted(self: Any, engine: Any, *rest: Any) -> Any:
        compared.append(engine.name)
        if engine.name == "split graph":
            raise CannotSplitError("no")
        return verified(self, engine, *rest)

    monkeypatch.setattr(hvp.Verification, "verified", noted)
    assert engines_of(Products(logistic, BATCHES), THETA, 5)[-1] == "kept graph"
    ours = [name for name in compared if name != "double backward"]  # the reference's
    assert ours == ["kept graph", "split graph"]


def test_a_block_counts_as_many_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hvp, "products_until_recorded", lambda *_: 4)
    at = ProductsAt(Products(logistic, BATCHES), THETA)
    at.product(torch.stack([THETA, V, THETA]), "loop")
    at.product(V)
    assert at.engine == "kept graph"
    at.product(V)
    assert at.engine == "split graph"


def test_the_first_product_is_the_one_that_was_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hvp, "products_until_recorded", lambda *_: NEVER)
    calls: list[int] = []

    def counted(theta: Tensor, batch: Any) -> tuple[Tensor, int]:
        calls.append(len(batch[0]))
        return logistic(theta, batch)

    products = Products(counted, BATCHES, sample=lambda batch: None)
    products.product(THETA, THETA.exp())
    # The precision of the first batch; for each a graph, a product of another kind, the number of terms.
    assert len(calls) == 1 + 3 * len(BATCHES)
    calls.clear()
    products.product(THETA, V)
    assert calls == []  # what was compared is kept


class WrongInOnePlace(torch.autograd.Function):
    """Sum of cubes whose second derivative is off in the last coordinate alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x**3).sum()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.cat([3 * x[:-1] ** 2, 3 * x[-1:].detach() * x[-1:]])


def test_a_sparse_first_vector_hides_no_wrong_product() -> None:
    def loss(theta: Tensor, batch: Any) -> tuple[Tensor, int]:
        return WrongInOnePlace.apply(theta), 1

    first = torch.eye(6, dtype=torch.float64)[0]
    with pytest.raises(ValueError, match="the loss"):
        Products(loss, [()], widened=lambda: (HessianOfBatch(loss), lambda batch: batch)).product(SIX, first)
