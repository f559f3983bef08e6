"""`train(resume=...)`: a run that was stopped goes on to the bits of one that was not; other calls' files are refused.

Oracle: the same call, never interrupted. That work is not repeated is counted in calls of the loss. Runs that are
killed from outside are in `test_reproduce_killed.py`.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lowhanging as lh
from lowhanging.errors import DamagedFileError, NotConvergedError
from lowhanging.training.train import TrainingRun

quiet = functools.partial(lh.train, progress=False)
INPUTS = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
POINTS = (INPUTS, (INPUTS[:, 0] * INPUTS[:, 1] > 0).long())
FEW = (INPUTS[:11], POINTS[1][:11])


def network(*middle: nn.Module, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), *middle, nn.Tanh(), nn.Linear(8, 3))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).double() for tensor in (*model.parameters(), *model.buffers())])


class Loss:
    """Cross-entropy that counts its calls with a gradient, and is interrupted at one of them."""

    def __init__(self, at: int = 10**9, error: BaseException | None = None, scale: float = 1.0):
        self.at, self.error, self.scale, self.calls = at, error or KeyboardInterrupt(), scale, 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        is_step = torch.is_grad_enabled() and outputs.dtype == torch.float32  # the checks of a loss are in float64
        self.calls += is_step
        if self.calls == self.at and is_step:
            raise self.error
        return self.scale * F.cross_entropy(outputs, targets)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Draws from all three global random states when read."""

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        noise = float(torch.rand(())) + random.random() + float(np.random.rand())  # noqa: NPY002
        return INPUTS[i] + 0.01 * noise, POINTS[1][i]


def loader() -> DataLoader[Any]:
    """With a generator of its own, which advances."""
    return DataLoader(Noisy(), batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(5))


def same(run: TrainingRun, whole: TrainingRun) -> None:
    assert repr(run.losses) == repr(whole.losses)  # NaN is NaN
    assert repr(run.accuracies) == repr(whole.accuracies)
    for name in ("epochs", "checkpoints", "checkpoint_epochs", "lr"):
        assert torch.equal(getattr(run, name), getattr(whole, name))


LBFGS = functools.partial(torch.optim.LBFGS, max_iter=4, line_search_fn="strong_wolfe")
CASES: dict[str, tuple[Any, tuple[type[nn.Module], ...], dict[str, Any]]] = {
    "Adam, dropout, BatchNorm": (lambda: POINTS, (nn.Dropout, nn.BatchNorm1d), {}),
    "momentum, noise, a generator of one's own": (
        loader,
        (nn.Dropout,),
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)},
    ),
    "AdamW with AMSGrad, cosine": (
        Noisy,
        (),
        {"optimizer": functools.partial(torch.optim.AdamW, lr=0.01, amsgrad=True), "schedule": "cosine"},
    ),
    "L-BFGS": (lambda: POINTS, (), {"optimizer": LBFGS, "batch_size": 40}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_stopped_twice_equals_one_that_was_not(case: str, tmp_path: Path) -> None:
    data, layers, options = CASES[case]
    options = {"num_epochs": 6, "batch_size": 7, "seed": 3, "schedule": "constant", "checkpoints": 2} | options
    options["evaluate"] = {"all": POINTS, "few": DataLoader(list(zip(*FEW, strict=True)), batch_size=4, shuffle=True)}

    def middle() -> list[nn.Module]:
        return [layer(0.5) if layer is nn.Dropout else layer(8) for layer in layers]

    expected, loss = network(*middle()), Loss()
    whole = quiet(expected, data(), **options, loss_fn=loss)
    each, path = loss.calls // 6, tmp_path / "run.npz"
    for at in (each + each // 2, 3 * each):  # in epoch 2; then, two or three epochs on, in a later one
        with pytest.raises(KeyboardInterrupt):
            quiet(network(*middle()), data(), **options, loss_fn=Loss(at), resume=path)
    model, rest = network(*middle()), Loss()
    states = torch.get_rng_state(), random.getstate()
    run = quiet(model, data(), **options, loss_fn=rest, resume=path)
    same(run, whole)
    assert torch.equal(weights(model), weights(expected))
    assert 0 < rest.calls < 0.8 * loss.calls  # of six epochs, two came from the file; each run checks its losses once
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    # Finished: the same call reads it, and trains no step.
    again, none = network(*middle()), Loss()
    same(quiet(again, data(), **options, loss_fn=none, resume=path), whole)
    assert none.calls == 6  # the first examples, and objectives that are tried out when they are made
    assert torch.equal(weights(again), weights(expected))
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]


def test_the_model_that_was_interrupted_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    path, expected, model = tmp_path / "run.npz", network(), network()
    whole = quiet(expected, POINTS, num_epochs=5, batch_size=20)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with pytest.raises(KeyboardInterrupt):
        quiet(model, POINTS, num_epochs=5, batch_size=20, loss_fn=Loss(6), optimizer=optimizer, resume=path)
    changed = network()
    with torch.no_grad():
        changed.load_state_dict(model.state_dict())
        changed[0].bias[0] += 1e-6
    before, content = weights(changed), path.read_bytes()
    optimizers = torch.optim.Adam(changed.parameters(), lr=0.02)
    message = (
        rf"resume is '{path}', the file of a training with another model \(its weights\), expected a new file or that "
        "of this training.\nPass the model as it was before that training, or as that training left it"
    )
    with pytest.raises(ValueError, match=message):
        quiet(changed, POINTS, num_epochs=5, batch_size=20, loss_fn=Loss(), optimizer=optimizers, resume=path)
    assert torch.equal(weights(changed), before)
    assert path.read_bytes() == content
    rest = Loss()
    same(quiet(model, POINTS, num_epochs=5, batch_size=20, loss_fn=rest, optimizer=optimizer, resume=path), whole)
    assert rest.calls == 6
    assert torch.equal(weights(model), weights(expected))
    assert optimizer.param_groups[0]["lr"] == 0.02


CALL = {"num_epochs": 3, "batch_size": 20, "evaluate": {"few": FEW}, "loss_fn": F.cross_entropy}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"data": (INPUTS + 1e-6, POINTS[1])}, "data"),
        ({"model": network(nn.Identity(), nn.Linear(8, 8))}, "model"),
        ({"model": network(seed=1)}, r"model \(its weights\)"),
        ({"model": nn.Sequential(*network()[:1], nn.Sigmoid(), network()[2])}, "evaluate, model or loss"),
        ({"seed": 1}, "seed"),
        ({"num_epochs": 4}, "num_epochs"),
        ({"batch_size": 10}, "batch_size"),
        ({"checkpoints": 1}, "checkpoints"),
        ({"lr": 0.03}, "optimizer, lr or schedule"),
        ({"optimizer": "sgd"}, "optimizer, lr or schedule"),
        ({"schedule": "constant"}, "optimizer, lr or schedule"),
        ({"loss_fn": None}, "loss_fn or batch_loss"),
        ({"evaluate": {"other": FEW}}, "evaluate"),
        ({"evaluate": {"few": POINTS}}, "evaluate, model or loss"),
    ],
)
def test_the_file_of_another_call_is_refused_by_name(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    quiet(network(), POINTS, **CALL, resume=path)
    content = path.read_bytes()
    call = {"model": network(), "data": POINTS, **CALL} | change
    before = weights(call["model"])
    with pytest.raises(ValueError, match=rf"^resume is .*, the file of a training with another {what}, expected a new"):
        quiet(**call, resume=path)
    assert torch.equal(weights(call["model"]), before)
    assert path.read_bytes() == content


def test_another_loss_of_the_same_name_is_noticed_without_evaluation_sets(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    quiet(network(), POINTS, num_epochs=2, loss_fn=Loss(), resume=path)
    with pytest.raises(ValueError, match="another model or loss, expected"):
        quiet(network(), POINTS, num_epochs=2, loss_fn=Loss(scale=1 + 1e-6), resume=path)


def test_a_run_without_a_file_and_one_with_are_the_same(tmp_path: Path) -> None:
    one, other = network(nn.Dropout(0.5)), network(nn.Dropout(0.5))
    same(quiet(one, loader(), num_epochs=2, resume=tmp_path / "run"), quiet(other, loader(), num_epochs=2))
    assert torch.equal(weights(one), weights(other))


@pytest.mark.parametrize("content", ["half", "foreign", "text", "other kind", "state"])
def test_a_damaged_file_is_refused_and_left_alone(content: str, tmp_path: Path) -> None:
    path, model = tmp_path / "run.npz", network()
    quiet(network(), POINTS, num_epochs=2, resume=path)
    whole = path.read_bytes()
    if content == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "foreign":
        np.savez(path, values=np.ones(3))
    elif content == "text":
        path.write_text("notes")
    elif content == "other kind":
        path.unlink()
        lh.top_eigs(torch.eye(5, dtype=torch.float64), k=1, resume=path)
    else:
        with np.load(path) as stored:
            np.savez(path, **({name: stored[name] for name in stored.files} | {"weights/0": np.zeros(9, np.float32)}))
    before, held = weights(model), path.read_bytes()
    with pytest.raises(DamagedFileError, match=r"resume is .*run.npz', no resume file of a training, expected a new"):
        quiet(model, POINTS, num_epochs=2, resume=path)
    assert torch.equal(weights(model), before)
    assert path.read_bytes() == held


def test_a_file_that_may_not_be_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.npz"
    quiet(network(), POINTS, num_epochs=1, resume=path)

    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(PermissionError):
        quiet(network(), POINTS, num_epochs=1, resume=path)


def test_an_interrupted_run_leaves_its_last_epoch_even_where_writing_is_dear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowhanging.io.SHARE", 1e-9)  # after the first write, the next would come in years
    path = tmp_path / "run.npz"
    with pytest.raises(KeyboardInterrupt):
        quiet(network(), POINTS, num_epochs=9, batch_size=20, loss_fn=Loss(10), resume=path)
    rest = Loss()
    quiet(network(), POINTS, num_epochs=9, batch_size=20, loss_fn=rest, resume=path)
    assert rest.calls == 2 * 9 - 8  # epochs 1 to 4 are in the file


def test_a_run_that_diverged_goes_on_and_diverges_again(tmp_path: Path) -> None:
    path, results = tmp_path / "run.npz", []
    for _ in range(2):
        with pytest.raises(NotConvergedError, match="in epoch 3") as caught:
            quiet(network(), POINTS, num_epochs=5,
                  optimizer="sgd", lr=1.0, schedule=lambda done: 1 + 1e38 * (done >= 0.4),
                  loss_fn=lambda outputs, targets: (outputs.square().mean() * 10), resume=path)  # fmt: skip
        results.append(caught.value.result)
    same(*results)
    assert results[0].epochs.tolist() == [0, 1, 2]


def test_the_bar_starts_where_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.npz"
    with pytest.raises(KeyboardInterrupt):
        quiet(network(), POINTS, num_epochs=9, batch_size=20, loss_fn=Loss(10), resume=path)
    lh.train(network(), POINTS, num_epochs=9, batch_size=20, loss_fn=Loss(), resume=path, progress=True)
    assert "4/9" in capsys.readouterr().err.split("\r")[1]


def test_an_optimizer_whose_state_would_run_code_is_refused(tmp_path: Path) -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.state[self.param_groups[0]["params"][0]]["path"] = Path("x")
            return super().step(closure)

    path = tmp_path / "run.npz"
    make = functools.partial(Odd, lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer has a state that can't be written"):
        quiet(network(), POINTS, num_epochs=2, optimizer=make, resume=path)
    assert not path.exists()
    with pytest.raises(ValueError, match="expected a file in an existing folder"):
        quiet(network(), POINTS, resume=tmp_path / "nowhere" / "run.npz")


class Labelled(Dataset[tuple[Tensor, Tensor]]):
    """Labels that are changed on reading, between two items."""

    def __init__(self, bad: range = range(0), num: int = 40):
        self.bad, self.num = bad, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return INPUTS[i % 40] * (1 + i // 40), POINTS[1][i % 40] ^ int(i in self.bad)


def smoothed(amount: float) -> Any:
    return lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=amount)


@pytest.mark.parametrize("kind", ["Dataset", "DataLoader", "batches"])
def test_a_data_set_or_a_loss_that_only_differs_inside_is_another(tmp_path: Path, kind: str) -> None:
    """Neither is told by its first, middle and last item, nor by its name."""

    def data(bad: range = range(0)) -> Any:
        if kind == "Dataset":
            return Labelled(bad)
        if kind == "DataLoader":
            return DataLoader(Labelled(bad), batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(1))
        return list(DataLoader(Labelled(bad), batch_size=4))

    path, options = tmp_path / "a.npz", {"num_epochs": 2, "batch_size": 7, "resume": tmp_path / "a.npz"}
    first = quiet(network(), data(), **options, loss_fn=smoothed(0.0))
    same(quiet(network(), data(), **options, loss_fn=smoothed(0.0)), first)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="the file of a training with another data, expected"):
        quiet(network(), data(range(8, 10)), **options, loss_fn=smoothed(0.0))
    with pytest.raises(ValueError, match="the file of a training with another model or loss, expected"):
        quiet(network(), data(), **options, loss_fn=smoothed(0.1))
    assert path.read_bytes() == content


def test_sixty_four_items_tell_a_large_data_set_from_another(tmp_path: Path) -> None:
    options = {"num_epochs": 1, "batch_size": 100, "resume": tmp_path / "a.npz"}
    quiet(network(), Labelled(num=1000), **options)
    with pytest.raises(ValueError, match="the file of a training with another data, expected"):
        quiet(network(), Labelled(range(300, 340), num=1000), **options)
