"""What does a plane of three losses cost, and is it right? Three other packages, two plain loops and this library.

    python benchmarks/slices.py [--points 25] [--images 1000] [--rounds 1] [--json FILE]

The plane of the two sharpest directions of the mixed loss, for the mixed, the number and the pattern images, of the
paired-digit CNN. Every contender runs in this process, after each other, each on its own copy of the trained network,
called as its documentation shows; one that takes a single loss is called three times. Errors are against each loss
evaluated in float64 at every point that was asked for. Beside them stands what `slicers.check.check_slicer` says of the
same code, on a loss that is known on paper.

The other packages are optional. Their pins contradict each other's, hence --no-deps:

    pip install --no-deps loss-landscapes==3.0.6 landscaper==1.3.1 loss-landscape-3d==0.1.3 topopy==1.0.4 nglpy==1.1.7
    pip install scikit-learn plotly pandas gudhi treelib coloraide drawsvg
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from slicers.check import SlicerReport, check_slicer
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, TensorDataset

import lowhanging as lh

Views = Mapping[str, tuple[Tensor, Tensor]]  # name of a loss -> (inputs, targets)
Directions = tuple[dict[str, Tensor], dict[str, Tensor]]
Grids = dict[str, Any]  # name of a loss -> (num_alphas, num_betas), [i, j] at alphas[i] u + betas[j] v
Contender = Callable[[nn.Module, Views, Any, Directions, np.ndarray, np.ndarray], Grids]

EXTENT = 0.1  # of alpha and beta, in units of |theta|
MICRO_BATCH = 200
LARGE = "plain loop, one large batch"


def plain_loop(size: int | None) -> Contender:
    """The loop that a user would write by hand, in batches of `size`."""

    def run(model: nn.Module, views: Views, loss_fn: Any, uv: Directions, alphas: Any, betas: Any) -> Grids:
        parameters = list(model.parameters())
        theta = parameters_to_vector(parameters).detach()
        u, v = (parameters_to_vector(part.values()) for part in uv)
        grids = {name: np.empty((len(alphas), len(betas))) for name in views}
        with torch.no_grad():
            for i, alpha in enumerate(alphas):
                for j, beta in enumerate(betas):
                    vector_to_parameters(theta + alpha * u + beta * v, parameters)
                    for name, (inputs, targets) in views.items():
                        step = size or len(targets)
                        parts = zip(inputs.split(step), targets.split(step), strict=True)
                        total = sum(loss_fn(model(x), y).item() * len(y) for x, y in parts)
                        grids[name][i, j] = total / len(targets)
            vector_to_parameters(theta, parameters)
        return grids

    return run


def lowhanging(engine: str) -> Contender:
    def run(model: nn.Module, views: Views, loss_fn: Any, uv: Directions, alphas: Any, betas: Any) -> Grids:
        losses = {name: lh.Objective(model, data, loss_fn=loss_fn) for name, data in views.items()}
        extent, num = ((alphas[0], alphas[-1]), (betas[0], betas[-1])), (len(alphas), len(betas))
        return lh.plane_slice(losses, uv, extent=extent, num=num, engine=engine, progress=False).losses

    return run


def loss_landscapes(model: nn.Module, views: Views, loss_fn: Any, uv: Directions, alphas: Any, betas: Any) -> Grids:
    """`planar_interpolation`; its comments place entry [i, j] at start + i (one - start) / n + j (two - start) / n."""
    from loss_landscapes import planar_interpolation
    from loss_landscapes.metrics import Loss, MetricPipeline

    steps, first = len(alphas), alphas[0]
    last = first + steps * (alphas[1] - first)
    corners = [moved(model, uv, *at) for at in ((first, first), (last, first), (first, last))]
    metric = MetricPipeline([Loss(loss_fn, *data) for data in views.values()])
    found = planar_interpolation(*corners, metric, steps=steps, deepcopy_model=True)
    return dict(zip(views, np.moveaxis(found, -1, 0), strict=True))


def landscaper(model: nn.Module, views: Views, loss_fn: Any, uv: Directions, alphas: Any, betas: Any) -> Grids:
    """`LossLandscape.compute` with the mean over batches that its guide shows; distances are shares of |theta|."""
    from landscaper import LossLandscape

    def mean_loss(model: nn.Module, data: Any) -> Any:
        return sum(loss_fn(model(inputs), targets) for inputs, targets in data) / len(data)

    directions = [list(part.values()) for part in uv]
    grids = {}
    for name, (inputs, targets) in views.items():
        batches = list(zip(inputs.split(MICRO_BATCH), targets.split(MICRO_BATCH), strict=True))
        landscape = LossLandscape.compute(
            model, batches, directions, mean_loss, steps=len(alphas), distance=alphas[-1], dim=2, device="cpu"
        )
        grids[name] = landscape.loss
    return grids


def loss_landscape_3d(center: Callable[[nn.Module], dict[str, Tensor]]) -> Contender:
    """`LossLandscapeCalculator`, around the state that `center` takes of the model."""

    def run(model: nn.Module, views: Views, loss_fn: Any, uv: Directions, alphas: Any, betas: Any) -> Grids:
        from loss_landscape_3d import LossLandscapeCalculator

        grids = {}
        for name, data in views.items():
            calculator = LossLandscapeCalculator(model, DataLoader(TensorDataset(*data), MICRO_BATCH), loss_fn)
            grids[name] = calculator.calculate(alphas, betas, *uv, center_state=center(model))
        return grids

    return run


def moved(model: nn.Module, uv: Directions, alpha: float, beta: float) -> nn.Module:
    """A copy of the model at alpha u + beta v."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            parameter += alpha * uv[0][name] + beta * uv[1][name]
    return copied


PEERS: dict[str, tuple[str, str, Contender]] = {  # row -> (package, tested version, contender)
    "loss-landscapes, planar_interpolation": ("loss-landscapes", "3.0.6", loss_landscapes),
    "landscaper, LossLandscape.compute": ("landscaper", "1.3.1", landscaper),
    "loss-landscape-3d, as in its README": ("loss-landscape-3d", "0.1.3", loss_landscape_3d(lambda m: m.state_dict())),
    "loss-landscape-3d, its center copied": (
        "loss-landscape-3d",
        "0.1.3",
        loss_landscape_3d(lambda m: copy.deepcopy(m.state_dict())),
    ),
}


def contenders() -> Iterator[tuple[str, Contender]]:
    """Rows of the table; packages that are not installed are named and left out."""
    yield LARGE, plain_loop(None)
    yield f"plain loop, micro-batches of {MICRO_BATCH}", plain_loop(MICRO_BATCH)
    yield "lowhanging, plane_slice", lowhanging("auto")
    yield "lowhanging, point by point", lowhanging("point by point")
    for row, (package, tested, contender) in PEERS.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"left out: {row} (not installed; the first lines of this file say how)")
            continue
        if version != tested:
            print(f"{package} is {version} here; what is said about it was found with {tested}")
        yield row, contender


def truth(
    model: nn.Module, views: Views, uv: Directions, alphas: np.ndarray, betas: np.ndarray
) -> dict[str, np.ndarray]:
    """The losses in float64, at points computed in float64, summed over the examples and divided once."""
    exact = copy.deepcopy(model).double().eval()
    theta = parameters_to_vector(exact.parameters()).detach()
    u, v = (parameters_to_vector(part.values()).double() for part in uv)
    grids = {name: np.empty((len(alphas), len(betas))) for name in views}
    with torch.no_grad():
        for i, j in np.ndindex(len(alphas), len(betas)):
            vector_to_parameters(theta + float(alphas[i]) * u + float(betas[j]) * v, exact.parameters())
            for name, (inputs, targets) in views.items():
                parts = zip(inputs.double().split(MICRO_BATCH), targets.split(MICRO_BATCH), strict=True)
                total = sum(float(F.cross_entropy(exact(x), y, reduction="sum")) for x, y in parts)
                grids[name][i, j] = total / len(targets)
    return grids


def state(model: nn.Module) -> dict[str, Any]:
    named = dict(model.named_parameters())
    return {
        "weights": torch.cat([parameter.detach().reshape(-1) for parameter in named.values()]),
        "gradients": torch.cat([p.new_empty(0) if p.grad is None else p.grad.reshape(-1) for p in named.values()]),
        "requires_grad": torch.tensor([parameter.requires_grad for parameter in named.values()]),
        "mode": torch.tensor([layer.training for layer in model.modules()]),
    }


def quadratic_test(contender: Contender) -> SlicerReport:
    """The same code on the loss that is known on paper."""

    def slicer(model: Any, loader: Any, loss_fn: Any, u: Any, v: Any, alphas: Any, betas: Any) -> Any:
        return contender(model, {"loss": loader.dataset.tensors}, loss_fn, (u, v), alphas, betas)["loss"]

    with quiet():
        return check_slicer(slicer, num=7)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and the prints of others."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=25, help="along each direction, odd")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    paired = lh.paired_mnist()
    tests = {name: getattr(paired, name).test for name in ("mixed", "number", "pattern")}
    views = {name: (view.inputs[: options.images], view.targets[: options.images]) for name, view in tests.items()}
    trained = lh.SigmoidCNN(seed=0)
    lh.train(trained, paired.mixed.train, num_epochs=options.epochs, progress=False)
    pairs = lh.top_hessian_eigs(trained, views["mixed"], k=2, progress=False)
    mixed = lh.Objective(trained, views["mixed"])
    u, v = (mixed.space.unflatten(row * mixed.theta0.norm()) for row in pairs.vectors)
    F.cross_entropy(trained(views["mixed"][0][:10]), views["mixed"][1][:10]).backward()  # gradients to be left alone
    alphas = betas = np.linspace(-EXTENT, EXTENT, options.points)
    size = f"{options.points} × {options.points} points, {len(views)} losses, {options.images:,} images each"
    print(f"{size}, {mixed.num_params:,} parameters, {torch.get_num_threads()} threads")

    expected = truth(trained, views, (u, v), alphas, betas)
    span = [f"{name} {grid.min():.3f} to {grid.max():.3g}" for name, grid in expected.items()]
    print(f"the losses on the plane: {', '.join(span)}")
    runs: dict[str, dict[str, Any]] = {}
    for row, contender in list(contenders()) * options.rounds:
        model = copy.deepcopy(trained).train()
        for copied, original in zip(model.parameters(), trained.parameters(), strict=True):
            copied.grad = original.grad.clone()
        before, middle = state(model), options.points // 2
        result = runs.setdefault(row, {"seconds": [], "contender": contender})
        begun = time.perf_counter()
        try:
            with quiet():
                grids = contender(model, views, F.cross_entropy, (u, v), alphas, betas)
            result["seconds"].append(time.perf_counter() - begun)
            off = np.stack([np.abs(np.asarray(grids[name]) - grid) for name, grid in expected.items()])
            result |= {"error": float(off.max()), "center_error": float(off[:, middle, middle].max())}
        except Exception as error:
            result["crash"] = f"crashed: {type(error).__name__}: {' '.join(str(error).split())}"
        result["changed"] = [name for name, kept in state(model).items() if not torch.equal(kept, before[name])]
        print(f"  {row}: {result.get('crash') or format(result['seconds'][-1], '.1f') + ' s'}", flush=True)
    for result in runs.values():
        result["quadratic"] = quadratic_test(result.pop("contender"))

    whole = statistics.median(runs[LARGE]["seconds"])
    columns = f"{'seconds':>7} | {'speed':>5} | {'worst error':>11} | {'at the center':>13} | {'left changed':<12}"
    print(f"\n| {'':<38} | {columns} | the quadratic test |")
    print(f"|{'-' * 40}|--------:|------:|------------:|--------------:|{'-' * 14}|{'-' * 20}|")
    for row, result in runs.items():
        changed, faults = (
            ", ".join(result["changed"]) or "nothing",
            [fault.split(" (")[0] for fault in result["quadratic"].faults],
        )
        said = result.get("crash") or "; ".join(faults) or f"exact ({result['quadratic'].worst_error:.0e})"
        if not result["seconds"]:
            print(f"| {row:<38} | {'':>7} | {'':>5} | {'':>11} | {'':>13} | {changed:<12} | {said} |")
            continue
        seconds = statistics.median(result["seconds"])
        numbers = f"{result['error']:>11.1e} | {result['center_error']:>13.1e}"
        print(f"| {row:<38} | {seconds:>7.1f} | {whole / seconds:>4.2f}x | {numbers} | {changed:<12} | {said} |")
    print(f"\nspeed: against '{LARGE}'; errors: largest over the losses; float32, so about 1e-6 is rounding")
    if options.json:
        shown = {row: result | {"quadratic": repr(result["quadratic"])} for row, result in runs.items()}
        options.json.write_text(json.dumps({"what": size, "threads": torch.get_num_threads(), "rows": shown}, indent=1))


if __name__ == "__main__":
    main()
