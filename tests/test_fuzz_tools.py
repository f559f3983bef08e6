"""The scenes of the fuzz through the tools that people call: eigenpairs, Gauss-Newton, slices, training, polishing.

Each is right, or refused in four parts; none ends in torch's own words, and none hangs. Oracles: products by central
differences made without the library (`fuzz_oracle.py`), and losses in plain Python.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowhanging as lh
from fuzz_cases import FAMILIES, cases, scene_of
from fuzz_oracle import NoReferenceError, Reference, Scene, _is_ours, in_float64, read

PATIENCE = 60.0  # seconds for one scene
LOSS_ARGUMENTS = ("loss_fn", "batch_loss")


def tools(scene: Scene, model: nn.Module, data: Callable[[], Any], reference: Reference) -> Iterator[tuple[str, Any]]:
    """(name, call) of each tool; a call returns "" or what is wrong."""
    loss_of = {name: value for name, value in scene.options.items() if name in LOSS_ARGUMENTS}
    origin = torch.zeros(reference.num_params, dtype=torch.float64)
    by_values = not reference.gradient_is_derivative(origin, torch.randn_like(origin))

    def objective() -> lh.Objective:
        return lh.Objective(model, data(), **({"engine": "kept graph"} | scene.options))

    def eigenpairs() -> str:
        found = lh.top_hessian_eigs(objective(), k=1, which="LM", tol=1e-4, progress=False)
        vector = found.vectors[0].double()
        product, error = reference.product(origin, vector, by_values=by_values)
        apart = float((product - found.values[0] * vector).norm())
        return (
            ""
            if apart <= 1e-2 * found.scale + 10 * error + 1e-6
            else f"|Hv - lambda v| = {apart:.1e} of {found.scale:.1e}"
        )

    def gauss_newton() -> str:
        loss = objective()
        G, v = lh.gauss_newton(loss), torch.randn(loss.num_params).to(loss.theta0)
        image = G @ v
        size, ours = float(image.norm() * v.norm()), float(image.double() @ v.double())
        u = torch.randn(loss.num_params).to(v)
        gap = abs(float((G @ u).double() @ v.double()) - float(image.double() @ u.double()))
        return (
            ""
            if abs(ours) <= size + 1e-9 and gap <= 1e-3 * size + 1e-6
            else f"not symmetric by {gap:.1e} of {size:.1e}"
        )

    def line_slice() -> str:
        loss, u = objective(), torch.randn(reference.num_params, dtype=torch.float64)
        scan = lh.line_slice({"loss": loss}, u, extent=0.1, num=3, progress=False)
        wanted = torch.tensor([reference.value(float(step) * u) for step in scan.alphas], dtype=torch.float64)
        rtol = 1e-7 if scene.dtype == torch.float64 else 1e-2
        apart = (scan.losses["loss"] - wanted).abs()
        return "" if bool((apart <= rtol * wanted.abs() + 1e-2 * rtol).all()) else f"off by {float(apart.max()):.1e}"

    def train() -> str:
        lh.train(scene.build(), data(), num_epochs=1, lr=1e-3, progress=False, **loss_of)
        return ""

    def polish() -> str:
        found = lh.polish(objective(), anchor=1.0, gtol=1e-3, progress=False)
        return "" if bool(found.theta.isfinite().all()) else "theta is not finite"

    def check_model() -> str:
        report = lh.testing.check_model(model, data(), **loss_of)
        return "" if len(str(report)) > 20 else "an empty report"

    yield from {
        "top_hessian_eigs": eigenpairs, "gauss_newton": gauss_newton, "line_slice": line_slice, "train": train,
        "polish": polish, "check_model": check_model,
    }.items()  # fmt: skip


def faults(case: str) -> list[str]:
    """What is wrong in one scene, a line each."""
    make, seed = scene_of(case)
    found: list[str] = []

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            scene = make()
            if scene.objective is not None or scene.num_threads > 1:
                return
            torch.manual_seed(seed + 1)
            user = scene.build()
            torch.manual_seed(seed + 1)
            twin = (scene.reference or scene.build)().double()
            batches = [in_float64(batch) for batch in (scene.batches or read(scene.data))]
            reference = Reference(twin, lambda model: scene.mean(model, batches))
            for name, call in tools(scene, user, lambda: scene.data, reference):
                try:
                    words = call()
                except NoReferenceError:
                    continue
                except lh.NotConvergedError:
                    continue
                except Exception as error:
                    words = "" if _is_ours(error) else f"raw {type(error).__name__}: {str(error).splitlines()[:1]}"
                if words:
                    found.append(f"{case}: {name}: {words}")

    def guarded() -> None:
        try:
            run()
        except NoReferenceError:
            pass
        except Exception as error:  # of the fuzz itself: said, and never taken for a verdict
            found.append(f"{case}: no verdict: {type(error).__name__}: {error}")

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found if not thread.is_alive() else [f"{case}: still running after {PATIENCE:g} s"]


def every(step: int, family: str, seed: int) -> list[str]:
    return cases(family, range(seed, seed + 1))[::step]


@pytest.mark.parametrize("family", ["loader", "layer", "loss"])
def test_tools_are_right_or_refuse_in_four_parts(family: str) -> None:
    names = every({"loader": 3, "layer": 12, "loss": 8}[family], family, 0)
    assert len(names) >= 4
    assert [fault for name in names for fault in faults(name)] == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 3))
@pytest.mark.parametrize("family", FAMILIES)
def test_tools_with_other_seeds(family: str, seed: int) -> None:
    assert [fault for name in every(1, family, seed) for fault in faults(name)] == []


def test_a_fault_of_a_tool_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    real = lh.line_slice
    monkeypatch.setattr(lh, "gauss_newton", fails)
    monkeypatch.setattr(lh, "line_slice", lambda losses, u, **options: real(losses, 2 * u, **options))
    found = faults("loader/tuple/0")
    assert [line.split(": ")[1] for line in found] == ["gauss_newton", "line_slice"]
    assert "raw RuntimeError" in found[0] and "off by" in found[1]
