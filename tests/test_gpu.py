"""What stays on a CUDA device, and that it finds there what a CPU finds. Skipped where there is none.

Oracle: the same call on the CPU in float64, and the dense float64 Hessian.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowhanging as lh
from lowhanging.curvature import krylov

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

X = torch.randn(150, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] * X[:, 2] > 0).long()


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 4)).to(dtype)


def objectives(dtype: torch.dtype = torch.float64) -> tuple[lh.Objective, lh.Objective]:
    data = (X.to(dtype), Y)
    return lh.Objective(net(dtype), data), lh.Objective(net(dtype), data, device="cuda", micro_batch=64)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The devices of every row and product that a search keeps."""
    seen: set[str] = set()
    absorb = krylov.KrylovSpace._absorb

    def noted(self: Any, image: Tensor) -> None:
        seen.update({image.device.type, self.rows.device.type, self.products.device.type})
        absorb(self, image)

    monkeypatch.setattr(krylov.KrylovSpace, "_absorb", noted)
    return seen


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_eigenpairs(devices: set[str], which: Any) -> None:
    here, there = objectives()
    options = {"k": 8, "which": which, "tol": 1e-9}
    expected, found = (lh.top_hessian_eigs(loss, **options) for loss in (here, there))
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=0, atol=1e-6)
    assert found.vectors.device.type == "cpu"
    assert "cuda" in devices
    exact = torch.linalg.eigvalsh(lh.testing.dense_hessian(here))
    errors = (exact[None, :] - found.values[:, None]).abs().amin(dim=1)
    assert bool((errors <= found.bounds).all())


def test_products_and_basis_stay_on_the_device(devices: set[str]) -> None:
    _, there = objectives()
    lh.top_hessian_eigs(there, k=5)
    assert devices == {"cuda"}


def test_the_model_is_not_moved() -> None:
    model = net().cuda()
    before = {name: (value.clone(), value.device) for name, value in model.state_dict().items()}
    pairs = lh.top_hessian_eigs(model, [(X.cuda(), Y.cuda())], k=3, tol=1e-8)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.device == before[name][1]
    torch.testing.assert_close(pairs.values, lh.top_hessian_eigs(net(), (X, Y), k=3, tol=1e-8).values)


def test_float32_with_its_floor() -> None:
    _, there = objectives(torch.float32)
    here, _ = objectives()
    pairs = lh.top_hessian_eigs(there, k=6, tol=1e-5)
    exact = torch.linalg.eigvalsh(lh.testing.dense_hessian(here)).flip(0)[:6]
    assert float((pairs.values - exact).abs().max()) <= 1e-5 * float(exact[0])
    with pytest.raises(lh.NotConvergedError, match="below the float32 floor"):
        lh.top_hessian_eigs(there, k=6, tol=1e-11)


def test_convolutions_are_not_rounded_to_ten_bits() -> None:
    """By default, torch lets cuDNN round float32 convolutions to TensorFloat-32."""
    assert torch.backends.cudnn.allow_tf32
    images = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    losses = [
        lh.Objective(lh.SigmoidCNN(seed=0).to(dtype), (images.to(dtype), torch.arange(64) % 10), device=device)
        for dtype, device in ((torch.float64, "cpu"), (torch.float32, "cuda"))
    ]
    exact, found = (lh.top_hessian_eigs(loss, k=5, tol=1e-5) for loss in losses)
    assert float((exact.values - found.values).abs().max()) < 1e-6 * exact.scale
    assert torch.backends.cudnn.allow_tf32


def test_restarts_warm_starts_and_files(tmp_path: Path) -> None:
    here, there = objectives()
    H, p = lh.hessian(there), there.num_params
    expected = lh.top_hessian_eigs(here, k=6, tol=1e-8)
    little = lh.top_eigs(H, 6, tol=1e-8, memory=24 * p * 8)
    warm = lh.top_eigs(H, 6, tol=1e-8, warm_start=expected)
    twice = [lh.top_eigs(H, 6, tol=1e-8, resume=tmp_path / "a.npz") for _ in range(2)]
    for pairs in (little, warm, *twice):
        torch.testing.assert_close(pairs.values, expected.values, rtol=0, atol=1e-10)
    assert little.num_restarts > 0
    assert warm.num_products < expected.num_products
    again = lh.top_eigs(lh.hessian(here), 6, tol=1e-8, resume=tmp_path / "a.npz")  # the file knows no device
    torch.testing.assert_close(again.values, expected.values, rtol=0, atol=1e-10)


def test_dense_by_blocks() -> None:
    here, there = objectives(torch.float32)
    pairs = lh.top_hessian_eigs(there, k=4, tol=1e-11, method="dense")
    exact = torch.linalg.eigvalsh(lh.testing.dense_hessian(here)).flip(0)[:4]
    torch.testing.assert_close(pairs.values, exact, rtol=0, atol=1e-12)


def test_spectra() -> None:
    here, there = objectives()
    a, b = (lh.trace(lh.hessian(loss), num_probes=60, seed=1) for loss in (here, there))
    assert abs(a.value - b.value) < 1e-9 * abs(a.value)
    assert lh.trace(lh.gauss_newton(there), num_probes=10_000).standard_error == 0
    c, d = (lh.spectral_density(lh.hessian(loss), num_steps=30, num_probes=4, deflate=3) for loss in (here, there))
    torch.testing.assert_close(c.spikes, d.spikes, rtol=0, atol=1e-6)


def test_from_training_to_canyons() -> None:
    model = net(torch.float32).cuda()
    data = (X.float(), Y)
    lh.train(model, data, num_epochs=20, seed=0, progress=False)
    minimum = lh.polish(lh.Objective(model, data), anchor=0.1, progress=False)
    loss = minimum.objective
    assert loss.theta0.device.type == "cuda"
    pairs = lh.top_eigs(lh.hessian(loss), k=3)
    scan = lh.line_slice({"loss": loss}, pairs.vectors[0], extent=(-1, 1), num=5)
    plane = {
        engine: lh.plane_slice({"loss": loss}, tuple(pairs.vectors[:2]), extent=1.0, num=5, engine=engine)
        for engine in ("point by point", "vmap")
    }
    middle = float(loss(loss.theta0))
    assert float(scan.losses["loss"][2]) == middle
    a, b = (found.losses["loss"] for found in plane.values())
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    options = {"metric": "euclidean", "levels": 0.5, "num_starts": 4, "progress": False}
    canyons = lh.find_canyons(loss, space=pairs.subspace(), **options)
    assert len(canyons)
    assert all(point.is_certified for point in canyons)
    direction = lh.steering_direction(preserve=loss, ablate=lh.Objective(model, data).at(minimum.theta), k=2, index=4)
    assert abs(float(direction.norm()) - 1) < 1e-5


def test_stacks() -> None:
    here, there = (
        lh.train_stack("births", seeds=range(2), num_steps=5, device=d, progress=False) for d in ("cpu", "cuda")
    )
    torch.testing.assert_close(here.thetas, there.thetas.cpu(), rtol=1e-2, atol=1e-3)


def test_a_transformer_takes_products() -> None:
    sums = lh.modular_addition(p=11)
    losses = [
        lh.Objective(lh.ModularTransformer(p=11, seed=0), sums.train, device=device) for device in ("cpu", "cuda")
    ]
    a, b = (lh.top_hessian_eigs(loss, k=3, tol=1e-4).values for loss in losses)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_a_recorder_watches_a_training_on_the_device() -> None:
    def trained(watch: bool) -> tuple[Tensor, lh.landscape.TrainingRecord | None]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 4)).double().cuda()
        losses = {"here": lh.Objective(model, (X, Y)), "on the CPU": lh.Objective(model, (X, Y), device="cpu")}
        recorder = lh.Recorder(model, every=2, losses=losses, eigenpairs="here", k=2) if watch else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            loss = nn.functional.cross_entropy(model(X.cuda()), Y.cuda())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if recorder is not None:
                recorder.step(loss=loss)
        record = None if recorder is None else recorder.record()
        return nn.utils.parameters_to_vector(model.parameters()).detach(), record

    alone, _ = trained(False)
    watched, record = trained(True)
    assert torch.equal(alone, watched) and record is not None
    assert record.thetas.device.type == "cpu" and torch.equal(record.thetas[-1], watched.cpu())
    assert {values.device.type for values in record.buffers.values()} == {"cpu"}
    torch.testing.assert_close(record.losses["here"], record.losses["on the CPU"])
    assert bool(record.is_converged.all())
