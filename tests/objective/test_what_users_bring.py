"""What users bring: losses that differentiate by their inputs, batches and outputs of any form, wrapped models, files.

Each works, against the same loss written as a plain function of theta, or is refused in four parts that say what to do.
"""

from __future__ import annotations

import copy
import errno
import gzip
import itertools
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

from lowhanging.curvature.operators import gauss_newton
from lowhanging.curvature.subspace import Subspace
from lowhanging.datasets.idx import read_idx
from lowhanging.errors import DamagedFileError
from lowhanging.io import write_atomically
from lowhanging.objective.hvp import ENGINES
from lowhanging.objective.objective import FunctionObjective, Objective
from lowhanging.training.train import train

D = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


X, Y = draw(12, 3), torch.arange(12) % 3


def agree(loss: Any, plain: Callable[[Tensor], Tensor], *, rtol: float = 1e-9) -> None:
    """Value, gradient and two products of the loss at theta0 are those of a plain function of theta, in float64."""
    theta = loss.theta0.double()
    point = theta.clone().requires_grad_()
    gradient, hessian = torch.autograd.grad(plain(point), point)[0], torch.autograd.functional.hessian(plain, theta)
    v = draw(len(theta), seed=7)
    torch.testing.assert_close(loss(loss.theta0), plain(theta), rtol=rtol, atol=0)
    torch.testing.assert_close(loss.gradient(loss.theta0).double(), gradient, rtol=rtol, atol=rtol)
    for _ in range(2):
        product = loss.hvp(loss.theta0, v.to(loss.theta0)).double()
        assert float((product - hessian @ v).norm()) <= rtol * float((hessian @ v).norm())


def refused(call: Callable[[], Any], *words: str) -> str:
    """The text of the refusal, in four parts, with these words in it."""
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    text = str(error.value)
    received, _, remedy = text.partition("\n")
    assert ", expected " in received and received.endswith("."), text
    assert remedy, text
    for word in words:
        assert word in text, text
    return text


# Losses that differentiate by their inputs ----------------------------------------------------------------------------


def small() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)))


GRID = torch.linspace(-1, 1, 9, dtype=D)[:, None]


def slope_on_paper(t: Tensor) -> Tensor:
    """Mean of (u' - cos x)^2, u' = W2 diag(1 - tanh^2) W1."""
    w1, b1, w2 = t[:4], t[4:8], t[8:12]
    hidden = torch.tanh(GRID * w1 + b1)
    return (((1 - hidden**2) * w1 * w2).sum(1, keepdim=True) - GRID.cos()).square().mean()


def by_autograd(model: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]


def by_jvp(model: Any, x: Tensor) -> Tensor:
    return torch.func.jvp(model, (x,), (torch.ones_like(x),))[1]


def by_vmap(model: Any, x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda z: model(z[None]).sum()))(x)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("slope", [by_autograd, by_jvp, by_vmap])
def test_a_loss_that_differentiates_by_its_input(slope: Any, engine: Any) -> None:
    if engine in ("split graph", "forward over reverse") and slope is by_autograd:
        return  # torch.func takes no autograd.grad by a leaf of one's own; the others do, and "auto" chooses them

    def residual(model: Any, batch: Any) -> tuple[Tensor, int]:
        x, f = batch
        return (slope(model, x) - f).square().sum(), len(x)

    agree(Objective(small(), [(GRID, GRID.cos())], batch_loss=residual, engine=engine), slope_on_paper)

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: Tensor) -> Tensor:
            return slope(self.net, x)

    agree(Objective(Slope(), (GRID, GRID.cos()), loss_fn=F.mse_loss, engine=engine), slope_on_paper)
    net = small()
    names = [(name, weight.shape, weight.numel()) for name, weight in net.named_parameters()]

    def function(t: Tensor) -> Tensor:
        parts = t.split([size for *_, size in names])
        weights = {name: part.view(shape) for (name, shape, _), part in zip(names, parts, strict=True)}
        called = lambda x: torch.func.functional_call(net, weights, (x,))  # noqa: E731
        return (slope(called, GRID) - GRID.cos()).square().mean()

    theta = torch.cat([weight.detach().reshape(-1) for weight in net.parameters()])
    agree(FunctionObjective(function, theta, engine=engine), slope_on_paper)


def test_training_and_slices_of_such_a_loss() -> None:
    from lowhanging.landscape.slices import line_slice

    def residual(model: Any, batch: Any) -> tuple[Tensor, int]:
        return (by_autograd(model, batch[0]) - batch[1]).square().sum(), len(batch[0])

    model = small()
    run = train(
        model,
        (GRID, GRID.cos()),
        num_epochs=3,
        batch_loss=residual,
        evaluate={"all": (GRID, GRID.cos())},
        progress=False,
    )
    theta = torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])
    assert float(run.losses["all"][-1]) == pytest.approx(float(slope_on_paper(theta)), rel=1e-9)
    loss = Objective(model, [(GRID, GRID.cos())], batch_loss=residual)
    scan = line_slice({"loss": loss}, draw(13), extent=0.5, num=5)
    expected = [float(slope_on_paper(theta + float(step) * draw(13))) for step in scan.alphas]
    assert scan.losses["loss"].tolist() == pytest.approx(expected, rel=1e-9)


# Precision, checkpoints, wrappers -------------------------------------------------------------------------------------


def plain_net(t: Tensor) -> Tensor:
    a, b, c, d = t[:15].view(5, 3), t[15:20], t[20:35].view(3, 5), t[35:]
    return F.cross_entropy((X @ a.T + b).tanh() @ c.T + d, Y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def test_autocast_in_forward_is_off_inside_a_loss() -> None:
    class Narrow(Net):
        @torch.autocast("cpu", dtype=torch.bfloat16)
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).float()

    class Block(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = self.a(x)
            return self.b(torch.tanh(hidden.float()))

    torch.manual_seed(0)
    for make in (Narrow, Block):
        agree(Objective(make(), (X.float(), Y)), plain_net, rtol=2e-5)
    assert torch.is_autocast_enabled("cpu") is False


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("engine", ["auto", "kept graph", "double backward"])
def test_checkpointing(engine: Any) -> None:
    class Checkpointed(Net):
        reentrant = False

        def forward(self, x: Tensor) -> Tensor:
            return self.b(checkpoint(torch.tanh, self.a(x), use_reentrant=self.reentrant))

    agree(Objective(seeded(Checkpointed), (X, Y), engine=engine), plain_net)
    Checkpointed.reentrant = True
    refused(lambda: Objective(seeded(Checkpointed), (X, Y)), "use_reentrant=False")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrapped_models_are_refused_with_the_name_of_the_inner_one() -> None:
    refused(lambda: Objective(nn.DataParallel(seeded(Net)), (X, Y)), "DataParallel", "Pass model.module.")
    refused(lambda: Objective(torch.compile(seeded(Net)), (X, Y)), "torch.compile", "Pass model._orig_mod.")


class Adapted(nn.Module):
    """A frozen layer with a low-rank update, hung on it in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net().double().requires_grad_(False)
        self.A, self.B = nn.Parameter(draw(1, 3)), nn.Parameter(draw(5, 1, seed=1))
        layer, old = self.net.a, self.net.a.forward
        if how == "a method":
            layer.register_forward_hook(self.add)
        elif how == "a bound method":
            layer.A, layer.B = self.A, self.B
            layer.forward = types.MethodType(
                lambda self, x: F.linear(x, self.weight, self.bias) + x @ self.A.T @ self.B.T, layer
            )
        elif how == "a closure":
            layer.register_forward_hook(lambda module, inputs, output: output + inputs[0] @ self.A.T @ self.B.T)
        else:
            layer.forward = lambda x: old(x) + x @ self.A.T @ self.B.T

    def add(self, module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output + inputs[0] @ self.A.T @ self.B.T

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("how", ["a method", "a bound method", "a closure", "a replaced forward"])
def test_low_rank_updates_hung_on_a_layer(how: str) -> None:
    model = Adapted(how)
    if how in ("a closure", "a replaced forward"):
        refused(lambda: Objective(model, (X, Y)), "hook", "forward", "make it a method")
        return
    layers = model.net.a, model.net.b
    w, b, c, d = (weight.detach() for layer in layers for weight in (layer.weight, layer.bias))
    agree(
        Objective(model, (X, Y)),
        lambda t: F.cross_entropy((X @ w.T + b + X @ t[:3].view(1, 3).T @ t[3:].view(5, 1).T).tanh() @ c.T + d, Y),
    )


# Batches and outputs --------------------------------------------------------------------------------------------------


def test_data_that_never_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = (X, Y)

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return itertools.cycle([(X[0], Y[0])])

    model = seeded(Net)
    for data in (itertools.cycle([batch]), DataLoader(Endless(), batch_size=4)):
        refused(lambda data=data: Objective(model, data, max_batches=20), "more than 20 batches", "may never end")
    assert Objective(model, iter([batch] * 20), max_batches=20).num_examples == 240
    assert Objective(model, [batch] * 21, max_batches=20).num_examples == 252  # a list tells how many it has
    refused(lambda: Objective(model, [batch], max_batches=0), "max_batches is 0")
    monkeypatch.setattr("lowhanging.objective.batches._MAX_BATCHES_IN_EPOCH", 30)
    endless = DataLoader(Endless(), batch_size=None)
    refused(lambda: train(model, endless, num_epochs=1, batch_loss=one_by_one, progress=False), "may never end")


def one_by_one(model: Any, batch: Any) -> tuple[Tensor, int]:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), 1


class Rows:
    """As the data sets of HuggingFace: no torch Dataset, rows are mappings."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": X[i], "labels": int(Y[i])}


def test_lists_of_examples_are_recognised() -> None:
    model = seeded(Net)
    for data in ([(X[i], Y[i]) for i in range(12)], [(X[i], int(Y[i])) for i in range(12)], Rows()):
        agree(Objective(model, data), plain_net)
    trained = []
    for data in ((X, Y), [(X[i], int(Y[i])) for i in range(12)]):
        network = seeded(Net)
        train(network, data, num_epochs=2, batch_size=5, progress=False)
        trained.append(torch.cat([weight.detach().reshape(-1) for weight in network.parameters()]))
    assert torch.equal(*trained)
    agree(Objective(model, [[X[:5], Y[:5]], [X[5:], Y[5:]]]), plain_net)  # lists of batches
    refused(lambda: Objective(model, [X, Y]), "batch is a Tensor", "One data set is a tuple: (inputs, targets)")


@dataclass
class Batch:
    x: Tensor
    y: Tensor


def own(model: Any, batch: Batch) -> tuple[Tensor, int]:
    return F.cross_entropy(model(batch.x), batch.y, reduction="sum"), len(batch.y)


@pytest.mark.parametrize("cache", [True, False])
def test_batches_of_a_class_of_ones_own(cache: bool) -> None:
    data = [Batch(X[:7].clone(), Y[:7]), Batch(X[7:].clone(), Y[7:])]
    loss = Objective(seeded(Net), data, batch_loss=own, cache=cache)
    agree(loss, plain_net)
    assert loss.num_examples == 12
    if cache:
        data[0].x.zero_()  # the user's, not ours
        agree(loss, plain_net)


@pytest.mark.parametrize(
    ("wrap", "loss_fn"),
    [
        (lambda z: Categorical(logits=z), lambda d, y: -d.log_prob(y).mean()),
        (lambda z: types.SimpleNamespace(logits=z, scale=2.0), lambda o, y: F.cross_entropy(o.logits / o.scale * 2, y)),
        (lambda z: {"z": z, "other": 1}, lambda o, y: F.cross_entropy(o["z"], y)),
        (lambda z: (z, None), lambda o, y: F.cross_entropy(o[0], y)),
    ],
    ids=["a distribution", "an object with logits", "a mapping", "a tuple"],
)
def test_outputs_reach_the_loss_as_the_model_gives_them(wrap: Any, loss_fn: Any) -> None:
    class Wrapped(Net):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x))

    model = seeded(Wrapped)
    agree(Objective(model, (X, Y), loss_fn=loss_fn), plain_net)
    if hasattr(wrap(X), "logits"):  # the default loss is that of the logits
        agree(Objective(model, (X, Y)), plain_net)
    else:
        refused(lambda: Objective(model, (X, Y)), "a tensor or .logits, for the default loss", "Pass loss_fn=lambda")
    train(model, (X, Y), num_epochs=1, loss_fn=loss_fn, progress=False)


def test_the_weights_of_a_loss_function_are_constants() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.tensor(0.0, dtype=D))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs, targets) * torch.exp(-self.log_scale) + self.log_scale

    loss_fn = Scaled()
    agree(Objective(seeded(Net), (X, Y), loss_fn=loss_fn), plain_net)
    assert loss_fn.log_scale.requires_grad


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("place", ["batch", "buffer"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_sparse_tensors(layout: torch.layout, place: str) -> None:
    adjacency = ((draw(12, 12).abs() < 0.4).double() + torch.eye(12, dtype=D)) / 12

    class Graph(Net):
        def __init__(self) -> None:
            super().__init__()
            if place == "buffer":
                self.register_buffer("adjacency", adjacency.to_sparse(layout=layout))

        def forward(self, x: Tensor, a: Any = None) -> Tensor:
            a = self.adjacency if a is None else a
            return a @ super().forward(a @ x)

    def graph_loss(model: Any, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(model(*batch[:-1]), batch[-1], reduction="sum"), 12

    data = [(X, adjacency.to_sparse(layout=layout), Y)] if place == "batch" else [(X, Y)]

    def plain(t: Tensor) -> Tensor:
        a, b, c, d = t[:15].view(5, 3), t[15:20], t[20:35].view(3, 5), t[35:]
        return F.cross_entropy(adjacency @ ((adjacency @ X @ a.T + b).tanh() @ c.T + d), Y)

    agree(Objective(seeded(Graph), data, batch_loss=graph_loss), plain)


def test_defaults_set_for_the_process_change_nothing() -> None:
    model = seeded(Net)
    loss = Objective(model, (X, Y))
    torch.set_default_device("meta")
    try:
        product = loss.hvp(loss.theta0, torch.ones(38, dtype=D, device="cpu"))
    finally:
        torch.set_default_device(None)
    assert product.device.type == "cpu"
    torch.set_default_dtype(torch.float64)
    try:
        agree(Objective(model, (X, Y)), plain_net)
    finally:
        torch.set_default_dtype(torch.float32)


def sparse_weight() -> nn.Module:
    model = seeded(Net)
    model.a.weight = nn.Parameter(model.a.weight.detach().to_sparse())
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_weights_and_data_without_plain_numbers_are_refused() -> None:
    nested = torch.nested.nested_tensor([draw(2, 3), draw(4, 3)])
    refused(lambda: Objective(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3)), (X, Y)), "'0.weight' has no shape yet")
    refused(lambda: Objective(nn.Linear(3, 3, device="meta"), (X, Y)), "on the meta device", "to_empty")
    refused(lambda: Objective(sparse_weight(), (X, Y)), "'a.weight' is sparse")
    refused(lambda: Objective(torch.jit.script(nn.Linear(3, 3)), (X, Y)), "scripted", "Pass the plain nn.Module")
    refused(lambda: Objective(seeded(Net), (X.to("meta"), Y)), "tensor on the meta device")
    refused(lambda: Objective(seeded(Net), [(nested, Y[:2])], batch_loss=one_by_one), "a nested tensor", "Pad it")


def test_an_objective_goes_to_another_process() -> None:
    """By pickle, before and after its first product."""
    loss, v = Objective(seeded(Net), (X, Y)), draw(38)
    for _ in range(2):
        other = pickle.loads(pickle.dumps(loss))
        agree(other, plain_net)
        assert torch.equal(other.hvp(loss.theta0, v), loss.hvp(loss.theta0, v))
    assert torch.equal(gauss_newton(copy.deepcopy(loss)) @ v, gauss_newton(loss) @ v)


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb-idx3-ubyte.gz"
    header = np.array([0x803, 10, 28, 28], dtype=">u4").tobytes()
    bomb.write_bytes(gzip.compress(header + bytes(2**27)))  # 128 MiB of zeros behind a header of ten images
    with pytest.raises(ValueError, match=r"is too long: 7841 bytes follow its header"):
        read_idx(bomb, 3)
    bomb.write_bytes(gzip.compress(np.array([0x803, 2**31, 28, 28], dtype=">u4").tobytes() + bytes(2**20)))
    with pytest.raises(ValueError, match="claims to hold 1,683,627,180,032 bytes"):
        read_idx(bomb, 3)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("basis.npy", "w") as entry:
        np.lib.format.write_array_header_1_0(entry, {"descr": "<f8", "fortran_order": False, "shape": (2**26,)})
        for _ in range(2**9):
            entry.write(bytes(2**20))
    with pytest.raises(DamagedFileError) as error:
        Subspace.load(path)
    assert "it would unpack to 536,8" in str(error.value.__cause__)


def test_what_is_saved_can_be_loaded_however_well_it_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowhanging.io._MOST_PACKED", 2**10)
    space = Subspace.span(torch.eye(2, 4000, dtype=D))
    assert torch.equal(Subspace.load(space.save(tmp_path / "zeros.npz")).basis, space.basis)


def test_a_killed_write_is_cleaned_up_by_the_next_one(tmp_path: Path) -> None:
    target = tmp_path / "result.npz"
    code = (
        "import os, signal, sys; from lowhanging.io import write_atomically\n"
        "def write(stream):\n    stream.write(b'half'); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(sys.argv[1], write)"
    )
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".part"
    mine = left.with_name(left.name.replace(left.name.split("-")[1].split(".")[0], str(os.getpid())))
    mine.write_bytes(b"of a process that lives")
    write_atomically(target, lambda stream: stream.write(b"whole"))
    assert {path.name for path in tmp_path.iterdir()} == {"result.npz", mine.name}


def test_where_nothing_can_be_written_the_users_path_is_named(tmp_path: Path) -> None:
    space, path = Subspace.span(torch.eye(2, 5)), tmp_path / "no such folder" / "space.npz"
    assert torch.equal(Subspace.load(space.save(path)).basis, space.basis)  # makes the folder
    with pytest.raises(FileExistsError, match=r"space.npz.*File exists.*\nFree space on the disk, or name another"):
        space.save(path / "below a file.npz")
    with pytest.raises(FileNotFoundError, match=r"in a folder that does not exist.*\nMake the folder"):
        write_atomically(tmp_path / "absent" / "space.npz", lambda stream: stream.write(b""))

    def full(stream: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"result.npz.*No space left on device.*\nFree space") as error:
        write_atomically(tmp_path / "result.npz", full)
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == [path.parent]


def test_a_file_of_a_newer_format_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Subspace.span(torch.eye(2, 5))
    monkeypatch.setattr("lowhanging.io.FORMAT", 9)
    path = space.save(tmp_path / "space.npz")
    monkeypatch.undo()
    refused(lambda: Subspace.load(path), "of format 9; this version reads 2")
