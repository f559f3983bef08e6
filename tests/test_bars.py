"""Progress bars of every long tool: what they count, what they say, and that none runs past its total.

Oracle: a bar that keeps all that it was told; the products of the result.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import lowhanging as lh

X, Y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
DATA = (X.double(), Y)


class Watched(tqdm):  # type: ignore[type-arg]
    """A bar that keeps (n, total, postfix) at every change."""

    made: ClassVar[list[Watched]] = []

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[float, float | None, str]] = []
        self.is_shown = not self.disable and not self.delay  # a bar that is closed forgets
        Watched.made.append(self)
        self.keep()

    def keep(self) -> None:
        # While it is disabled, tqdm counts nothing.
        if not self.disable:
            self.seen.append((self.n, self.total, self.postfix or ""))

    def update(self, n: float | None = 1) -> bool | None:
        done = super().update(n)
        self.keep()
        return done

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        super().set_postfix_str(s, refresh)
        self.keep()


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    Watched.made = []
    for name, module in list(sys.modules.items()):
        if name.startswith("lowhanging.") and getattr(module, "tqdm", None) is tqdm:
            monkeypatch.setattr(module, "tqdm", Watched)
    return Watched.made


@functools.cache
def loss() -> lh.Objective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    lh.train(model, DATA, num_epochs=20, lr=0.05, progress=False)
    return lh.polish(lh.Objective(model, DATA), anchor=0.05, max_drift=10.0, progress=False).objective


def pairs(**options: Any) -> lh.curvature.Eigenpairs:
    return lh.top_eigs(lh.hessian(loss()), **options)


def canyon_path(**options: Any) -> Any:
    quartic = lh.toys.sloped_canyons()
    found = lh.find_canyons(quartic, levels=0.5, metric="euclidean", space="full", num_starts=4, progress=False)
    return lh.trace_canyon(quartic, found[0], to=1.0, **options)


TOOLS: dict[str, Callable[..., Any]] = {
    "top_eigs": lambda **on: pairs(k=4, **on),
    "both ends": lambda **on: pairs(k=6, which="BE", tol=1e-9, **on),
    "smallest": lambda **on: pairs(k=3, which="SA", **on),
    "restarts": lambda **on: pairs(k=3, memory=25 * 43 * 8, tol=1e-9, **on),
    "warm start": lambda **on: pairs(k=4, warm_start=pairs(k=4), **on),
    "dense": lambda **on: pairs(k=4, method="dense", **on),
    "top_hessian_eigs": lambda **on: lh.top_hessian_eigs(nn.Linear(4, 3).double(), DATA, k=3, **on),
    "trace": lambda **on: lh.trace(lh.hessian(loss()), num_probes=20, **on),
    "exact trace": lambda **on: lh.trace(lh.hessian(loss()), num_probes=1000, **on),
    "spectral_density": lambda **on: lh.spectral_density(lh.hessian(loss()), num_steps=60, num_probes=3, **on),
    "polish": lambda **on: lh.polish(loss().unanchored, anchor=0.05, max_drift=10.0, **on),
    "find_canyons": lambda **on: lh.find_canyons(
        loss(), space=pairs(k=3).subspace(), levels=(0.01, 0.1), num_starts=3, full_certificates=True, **on
    ),
    "trace_canyon": canyon_path,
    "line_slice": lambda **on: lh.line_slice(loss(), lh.random_direction(loss()), num=7, **on),
    "plane_slice": lambda **on: lh.plane_slice(loss(), "gaussian", num=(3, 5), **on),
    "steering_direction": lambda **on: lh.steering_direction(preserve=loss(), ablate=loss(), k=2, method="ratio", **on),
    "ablation_curve": lambda **on: lh.ablation_curve(
        lh.toys.sloped_canyons(),
        keep=lh.FunctionObjective(lambda theta: (theta[1] - 2) ** 2, torch.zeros(2).double()),
        levels=[2.0, 1.0],
        **on,
    ),
    "train": lambda **on: lh.train(nn.Linear(4, 3).double(), DATA, num_epochs=3, **on),
    "gradient_path": lambda **on: lh.toys.gradient_path(
        lh.toys.sloped_canyons(), torch.ones(2).double(), time=3.0, **on
    ),
}


@pytest.mark.parametrize("name", TOOLS)
def test_no_bar_runs_past_its_total_and_each_is_seen_before_its_first_step(
    name: str, bars: list[Watched], capsys: pytest.CaptureFixture[str]
) -> None:
    TOOLS[name](progress=True)
    shown = [bar for bar in bars if bar.is_shown]
    assert shown
    for bar in shown:
        assert all(total is None or n <= total for n, total, _ in bar.seen)
        assert bar.seen[0][0] == bar.initial
        numbers = [n for n, _, _ in bar.seen]
        assert numbers == sorted(numbers)
    assert all(bar.desc.removesuffix(": ") in capsys.readouterr().err for bar in shown[:1])


@pytest.mark.parametrize("name", TOOLS)
def test_a_short_call_shows_no_bar(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    TOOLS[name]()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["top_eigs", "both ends", "smallest", "restarts", "warm start"])
def test_a_search_counts_products_and_says_what_holds(name: str, bars: list[Watched]) -> None:
    found = TOOLS[name](progress=True)
    bar = next(bar for bar in bars if bar.is_shown)
    k = len(found)
    assert bar.total is None
    assert bar.seen[1] == (0, None, "preparing")
    assert found.num_products - 3 <= bar.n <= found.num_products  # the last checks come after it
    words = [postfix for _, _, postfix in bar.seen]
    assert any(f" of {k} pairs, worst residual " in word and f"wanted {found.tol:.0e}" in word for word in words)
    assert f"{k} of {k} pairs, looking for missed ones" in words


def test_the_bar_is_there_before_the_first_product(bars: list[Watched]) -> None:
    seen: list[int] = []

    class Map:
        shape, dtype, device = (9, 9), torch.float64, torch.device("cpu")

        def __matmul__(self, v: Tensor) -> Tensor:
            seen.append(len(bars))
            return v * torch.arange(9)

    lh.top_eigs(Map(), k=2, progress=True)
    assert seen[0] == 1


def test_reading_the_data_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []

    class Slow:
        def __iter__(self) -> Any:
            shown.append(capsys.readouterr().err)
            yield DATA

    lh.top_hessian_eigs(nn.Linear(4, 3).double(), Slow(), k=2, progress=True)
    assert "eigenpairs, reading the data" in shown[0]


def test_a_resumed_search_counts_on(tmp_path: Path, bars: list[Watched]) -> None:
    for limit in (10, 200):
        try:
            pairs(k=4, tol=1e-9, max_products=limit, resume=tmp_path / "search.npz", progress=True)
        except lh.NotConvergedError:
            assert limit == 10
    assert bars[-1].n > 10
