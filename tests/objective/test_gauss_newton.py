"""gauss_newton: J' B J of a model's outputs and its loss, as a map.

Oracles, strongest first: linear models, where it is the Hessian that is known on paper; the matrix made densely in
float64, J by `torch.func.jacrev` and B by `torch.func.hessian` of torch's loss on the whole batch at once; the two
routes of differentiation against each other; the same loss written as `loss_fn` and as `batch_loss`.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from lowhanging.curvature.operators import GaussNewton, gauss_newton, hessian
from lowhanging.errors import NotSmoothWarning
from lowhanging.objective.kernels import differentiable_kernels
from lowhanging.objective.objective import AnchoredObjective, FunctionObjective, Objective
from lowhanging.objective.output_loss import OutputLoss
from lowhanging.testing import dense_hessian

pytestmark = pytest.mark.usefixtures("recorded")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, CLASSES = draw(8, 3), torch.tensor([0, 3, 1, 2, 1, 0, 3, 1])
REAL = draw(8, 4, seed=1)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return make().double()


def mlp(*first: nn.Module) -> nn.Module:
    return seeded(lambda: nn.Sequential(*first, nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)))


def matrix(operator: Any) -> Tensor:
    """Column by column."""
    columns = torch.eye(operator.shape[0], dtype=operator.dtype)
    return torch.stack([operator @ column for column in columns], dim=1)


def dense(model: nn.Module, outputs: Callable[[Any], Tensor], total: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """J' B J / count of all examples at once; `outputs(call)` runs the model, `total` is the sum of the loss."""
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    with differentiable_kernels(model):
        z = outputs(model).detach()
        rows = jacrev(lambda w: outputs(lambda *inputs: functional_call(model, w, inputs)))(weights)
        J = torch.cat([rows[name].reshape(z.numel(), -1) for name in weights], dim=1)
        B = torch.func.hessian(total)(z).reshape(z.numel(), z.numel())
    return J.T @ B @ J / count


def agrees(operator: GaussNewton, expected: Tensor) -> None:
    torch.testing.assert_close(matrix(operator), expected, rtol=1e-11, atol=1e-13 * float(expected.abs().max()))


def kept(model: nn.Module, data: Any, **settings: Any) -> Objective:
    """Without a recording, which costs a third of a second; 8 examples as 5 + 3."""
    return Objective(model, data, **{"engine": "kept graph", "micro_batch": 5, **settings})


# On paper -------------------------------------------------------------------------------------------------------------


def test_of_linear_outputs_it_is_the_hessian_on_paper() -> None:
    linear = nn.Linear(3, 4, bias=False).double()
    squares = Objective(linear, (X, REAL), loss_fn=F.mse_loss, micro_batch=5)
    agrees(gauss_newton(squares), torch.kron(torch.eye(4, dtype=torch.float64), X.T @ X) * 2 / 32)
    softmax = Objective(linear, (X, CLASSES), micro_batch=5)
    q = (X @ softmax.theta0.view(4, 3).T).softmax(1)
    terms = [torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(x, x)) for x, p in zip(X, q, strict=True)]
    agrees(gauss_newton(softmax), torch.stack(terms).mean(0))
    assert [len(batch[0]) for batch in softmax.batches] == [5, 3]
    assert (gauss_newton(softmax).engine, gauss_newton(squares).engine) == ("split graph", "split graph")


def test_a_nonlinear_net_on_paper() -> None:
    """One weight and one input: z = tanh(w x), J = x (1 - z^2), G = mean of 2 J^2; the Hessian has a second term."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.w * x).tanh()

    loss = kept(One(), (X[:, 0], REAL[:, 0]), loss_fn=F.mse_loss)
    z = (0.7 * X[:, 0]).tanh()
    J = X[:, 0] * (1 - z**2)
    torch.testing.assert_close(matrix(gauss_newton(loss))[0, 0], (2 * J**2).mean(), rtol=1e-13, atol=0)
    second = (2 * (z - REAL[:, 0]) * -2 * z * (1 - z**2) * X[:, 0] ** 2).mean()
    torch.testing.assert_close(matrix(hessian(loss))[0, 0], (2 * J**2).mean() + second, rtol=1e-13, atol=0)
    assert abs(float(second)) > 0.01


# Every loss -----------------------------------------------------------------------------------------------------------


def robust(outputs: Tensor, targets: Tensor) -> Tensor:
    """Not convex: the Gauss-Newton matrix then has negative eigenvalues, and says so."""
    return (1 - (-2 * (outputs - targets).square()).exp()).mean()


LOSSES = {
    "cross-entropy": (F.cross_entropy, CLASSES, 8, "split graph"),
    "cross-entropy module": (nn.CrossEntropyLoss(), CLASSES, 8, "kept graph"),
    "mse": (F.mse_loss, REAL, 32, "split graph"),
    "mse module": (nn.MSELoss(), REAL, 32, "kept graph"),
    "label smoothing": (functools.partial(F.cross_entropy, label_smoothing=0.2), CLASSES, 8, "kept graph"),
    "label smoothing module": (nn.CrossEntropyLoss(label_smoothing=0.2), CLASSES, 8, "kept graph"),
    "probabilities": (F.cross_entropy, REAL.softmax(1), 32, "kept graph"),
    "weights": (lambda z, t: ((z - t).square() * torch.tensor([1.0, 2, 0, 4]).to(z)).mean(), REAL, 32, "kept graph"),
    "huber": (F.huber_loss, REAL, 32, "split graph"),  # whose double backward has no forward derivative
    "binary": (F.binary_cross_entropy_with_logits, REAL.sigmoid(), 32, "kept graph"),
    "couples the outputs": (lambda z, t: (z.sum(1) - t.sum(1)).cosh().mean(), REAL, 32, "kept graph"),
    "not convex": (robust, REAL, 32, "kept graph"),
}


@pytest.mark.filterwarnings("ignore::lowhanging.errors.NotSmoothWarning")  # huber's
@pytest.mark.parametrize("name", LOSSES)
def test_the_matrix_of_every_loss(name: str) -> None:
    """The second product too: it is taken from what was kept."""
    loss_fn, targets, count, engine = LOSSES[name]
    model = mlp()
    expected = dense(model, lambda call: call(X), lambda z: loss_fn(z, targets) * count, count)
    G = gauss_newton(kept(model, (X, targets), loss_fn=loss_fn, engine=engine))
    agrees(G, expected)
    assert G.engine == engine
    eigenvalues = torch.linalg.eigvalsh(expected)
    is_positive = bool(eigenvalues[0] > -1e-14 * eigenvalues[-1])
    assert is_positive if name != "not convex" else eigenvalues[0] < -0.01
    difference = (expected - dense_hessian(G.loss)).abs().max()
    assert float(difference) > 0.01  # another matrix than the Hessian


def test_what_is_known_on_paper_is_not_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    loss_at = OutputLoss.loss_at
    monkeypatch.setattr(OutputLoss, "loss_at", lambda *args: calls.append("loss") or loss_at(*args))
    for loss_fn, targets, num in ((F.cross_entropy, CLASSES, 0), (F.mse_loss, REAL, 0), (F.l1_loss, REAL, 1)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotSmoothWarning)
            loss = Objective(mlp(), (X, targets), loss_fn=loss_fn)
        calls.clear()
        batch = next(iter(loss.batches))
        loss._gauss_newton._matrix.product(loss.theta0, loss.theta0, batch)  # type: ignore[attr-defined]
        assert len(calls) == num


def test_an_error_on_paper_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reverse route differentiates the loss whatever is known, and the recording is compared with it."""
    monkeypatch.setattr(OutputLoss, "closed_form", lambda self, outputs, batch, u: u * outputs.softmax(1))
    G = gauss_newton(Objective(mlp(), (X, CLASSES)))
    G @ G.theta
    assert G.engine == "kept graph"


# Every batch ----------------------------------------------------------------------------------------------------------


def test_any_partition_and_order_gives_the_same() -> None:
    model, order = mlp(), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    expected = dense(model, lambda call: call(X), lambda z: F.cross_entropy(z, CLASSES, reduction="sum"), 8)
    for size in (8, 7, 3, 1):
        agrees(gauss_newton(kept(model, (X[order], CLASSES[order]), micro_batch=size)), expected)
    ragged = [(X[:5], CLASSES[:5]), (X[5:], CLASSES[5:])]
    agrees(gauss_newton(kept(model, ragged, micro_batch=None, cache=False)), expected)


class Several(nn.Module):
    """Two inputs by name, outputs in a dict with a part that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Any]:
        return {"mean": self.a(left).tanh(), "more": (self.b(right).tanh(), None)}


def test_several_inputs_in_a_dict_and_outputs_in_a_tree() -> None:
    model, y, right = seeded(Several), draw(8, 2, seed=5), draw(8, 3, seed=6)

    def loss_fn(z: Any, t: Tensor) -> Tensor:
        return ((z["mean"] - t).square() * z["more"][0].exp()).mean()

    batches = [
        {"labels": y[i], "left": X[i], "right": right[i]} for i in (torch.arange(5), torch.arange(5, 8))
    ]  # fmt: skip
    expected = dense(
        model,
        lambda call: torch.cat([(z := call(X, right))["mean"], z["more"][0]], dim=1),
        lambda z: ((z[:, :2] - y).square() * z[:, 2:].exp()).sum(),
        16,
    )
    agrees(gauss_newton(kept(model, batches, loss_fn=loss_fn)), expected)
    assert float(torch.linalg.eigvalsh(expected)[0]) < -0.01  # not convex in both outputs


class Tokens(nn.Module):
    """Tied, frozen and unused weights; outputs (n, classes, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle, self.out = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.fixed = nn.Linear(3, 3).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.out(self.fixed(self.middle(self.embed(tokens)).tanh()))
        return logits.transpose(1, 2)


TOKENS = torch.randint(0, 5, (8, 6), generator=torch.Generator().manual_seed(3))
LABELS = TOKENS.roll(-1, 1)


def test_tied_frozen_and_unused_weights_and_a_class_dimension_in_the_middle() -> None:
    model = seeded(Tokens)
    loss = kept(model, (TOKENS, LABELS))
    expected = dense(model, lambda call: call(TOKENS), lambda z: F.cross_entropy(z, LABELS, reduction="sum"), 48)
    assert loss.space.names == ("unused", "embed.weight", "middle.weight", "middle.bias")
    assert not expected[:2].any()
    agrees(gauss_newton(loss), expected)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True, activation="gelu", dropout=0.0)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.layer(x).mean(1))
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.LSTM(4, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.layer(x)[0][:, -1])
        return out


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv1d(6, 3, 3, padding=1), nn.BatchNorm1d(3)
        self.norm.running_mean = torch.arange(3.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layer(x)).sigmoid().mean(2)
        return out


@pytest.mark.parametrize("make", [Attention, Recurrent, Normalised])
def test_attention_recurrence_and_batch_norm(make: Callable[[], nn.Module]) -> None:
    model, x, y = seeded(make).eval(), draw(8, 6, 4, seed=2), CLASSES % 3
    expected = dense(model, lambda call: call(x), lambda z: F.cross_entropy(z, y, reduction="sum"), 8)
    G = gauss_newton(kept(model, (x, y)))
    v = draw(len(expected), seed=3)
    for _ in range(2):
        torch.testing.assert_close(G @ v, expected @ v, rtol=1e-10, atol=1e-12)


# A batch_loss is cut where it calls the model -------------------------------------------------------------------------


class Wrapped(nn.Module):
    """Logits in an object, as language models return them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tokens()

    def forward(self, tokens: Tensor) -> Any:
        logits = self.inner(tokens)
        return types.SimpleNamespace(loss=logits.square().mean(), logits=logits)


def masked(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Token loss with ignored ones: the count differs from batch to batch."""
    logits = model(batch["tokens"]).logits
    return F.cross_entropy(logits, batch["labels"], reduction="sum"), (batch["labels"] >= 0).sum()


@pytest.mark.parametrize("engine", ["split graph", "kept graph"])
def test_a_token_loss_with_ignored_tokens(engine: str) -> None:
    model, labels = seeded(Wrapped), LABELS.clone()
    labels[:3, 2:] = -100
    batches = [{"tokens": TOKENS[:5], "labels": labels[:5]}, {"tokens": TOKENS[5:], "labels": labels[5:]}]
    loss = kept(model, batches, batch_loss=masked, engine=engine)
    expected = dense(model, lambda call: call(TOKENS).logits, lambda z: F.cross_entropy(z, labels, reduction="sum"), 36)
    assert float(torch.linalg.eigvalsh(expected)[0]) > -1e-15
    G = gauss_newton(loss)
    agrees(G, expected)
    assert G.engine == engine
    assert not any(module._forward_hooks for module in loss._terms.model.modules())


def test_batch_loss_and_loss_fn_agree() -> None:
    def batch_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.mse_loss(model(batch[0]), batch[1], reduction="sum"), batch[1].numel()

    expected = matrix(gauss_newton(kept(mlp(), (X, REAL), loss_fn=F.mse_loss)))
    agrees(gauss_newton(kept(mlp(), (X, REAL), batch_loss=batch_loss)), expected)


def twice(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return (model(batch[0]) - model(-batch[0])).square().sum(), 8


def inside(model: Any, batch: Any) -> tuple[Tensor, int]:
    return model[2](model[1](model[0](batch[0]))).square().sum(), 8


def decayed(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return F.mse_loss(model(batch[0]), batch[1]) + sum(w.square().sum() for w in model.parameters()), 8


def past_the_logits(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return model(batch[0]).loss * 8, 8


def blind(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return 0 * model(batch[0]).logits.detach().sum() + sum(w.square().sum() for w in model.parameters()), 8


@pytest.mark.parametrize(
    ("model", "batch_loss", "received"),
    [
        (mlp, twice, "calls the model 2 times"),
        (mlp, inside, "calls the model 0 times"),
        (mlp, decayed, "reaches the weights past the model's outputs"),
        (lambda: seeded(Wrapped), past_the_logits, "reaches the weights past the model's outputs"),
        (lambda: seeded(Wrapped), blind, "reaches the weights past the model's outputs"),
    ],
)
def test_a_batch_loss_that_cannot_be_cut(model: Any, batch_loss: Any, received: str) -> None:
    data = (X, REAL) if model is mlp else (TOKENS, LABELS)
    loss = kept(model(), data, batch_loss=batch_loss, micro_batch=None)
    with pytest.raises(ValueError) as error:
        gauss_newton(loss)
    first, remedy = str(error.value).split("\n")
    assert first.startswith(f"batch_loss {received}")
    assert "call model(...) once" in remedy


# What else an objective can be ----------------------------------------------------------------------------------------


def test_an_anchor_adds_epsilon() -> None:
    loss = kept(mlp(), (X, CLASSES))
    anchored = AnchoredObjective(AnchoredObjective(loss, 0 * loss.theta0, 0.5), loss.theta0, 0.25)
    expected = matrix(gauss_newton(loss)) + 0.75 * torch.eye(loss.num_params, dtype=torch.float64)
    agrees(gauss_newton(anchored), expected)
    torch.testing.assert_close(gauss_newton(anchored) @ expected, expected @ expected)


def test_at_another_point() -> None:
    model = mlp()
    loss, theta = kept(model, (X, CLASSES)), draw(44, seed=9)
    G = gauss_newton(loss, theta)
    expected = matrix(gauss_newton(kept(loss.model_at(theta), (X, CLASSES))))
    agrees(G, expected)
    agrees(gauss_newton(loss.at(theta)), expected)
    assert torch.equal(G.theta, theta)
    assert (G.shape, G.dtype, G.device, G.loss) == ((44, 44), torch.float64, torch.device("cpu"), loss)
    assert repr(G) == f"GaussNewton(44 x 44 of {loss!r})"
    assert float((matrix(gauss_newton(loss)) - expected).abs().max()) > 0.01


def test_float32() -> None:
    model = mlp()
    expected = matrix(gauss_newton(kept(model, (X, CLASSES))))
    single = gauss_newton(Objective(model.float(), (X.float(), CLASSES), micro_batch=5))
    v = draw(44, seed=4)
    result = single @ v
    assert (single.dtype, result.dtype, single.engine) == (torch.float32, torch.float32, "split graph")
    torch.testing.assert_close(result.double(), expected @ v, rtol=2e-5, atol=1e-6)


def test_a_confident_net_keeps_its_recording() -> None:
    """Where q is nearly 0 or 1, B u is a difference of equal numbers: rounding must not look like a wrong recording."""
    model = seeded(lambda: nn.Linear(3, 4)).float()
    with torch.no_grad():
        model.weight.mul_(20)
        model.bias.add_(torch.tensor([30.0, 0, 0, 0]))
    G = gauss_newton(Objective(model, (X.float(), 0 * CLASSES)))
    G @ G.theta
    assert G.engine == "split graph"


def test_a_kept_graph_runs_the_model_no_more() -> None:
    calls = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return x

    G = gauss_newton(kept(mlp(Counted()), (X, CLASSES)))
    v = draw(44)
    counts = []
    for _ in range(4):
        calls.clear()
        G @ v
        counts.append(list(calls))
    # The comparison before the first product has built the graphs; then nothing is run.
    assert counts[1:] == [[], [], []]


def test_losses_without_outputs_are_refused() -> None:
    function = FunctionObjective(lambda theta: (theta**4).sum(), torch.ones(3))
    expected = (
        "loss is a FunctionObjective, which knows no outputs, expected the loss of a model's outputs.\n"
        "Use hessian(), or an Objective of a model, its data and a loss_fn."
    )
    for loss in (function, AnchoredObjective(function, torch.zeros(3), 0.1)):
        with pytest.raises(TypeError) as error:
            gauss_newton(loss)
        assert str(error.value) == expected
    with pytest.raises(TypeError, match="loss is a Linear, expected an objective"):
        gauss_newton(nn.Linear(2, 2))  # type: ignore[arg-type]

    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(self.layer(x))

    loss = kept(Spectrum(), (X, REAL), loss_fn=lambda z, t: (z.real.square() + z.imag.square() - t).square().mean())
    with pytest.raises(ValueError) as refused:
        gauss_newton(loss)
    assert str(refused.value) == (
        "model returns torch.complex128, expected real floating-point outputs: the Gauss-Newton matrix is made of "
        "their Jacobian.\nWrap it in a module that returns those alone (torch.view_as_real for complex ones)."
    )
