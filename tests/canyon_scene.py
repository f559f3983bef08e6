"""What the canyon tests look at: a network with two redundant cues at its minimum, and a bowl of known curvatures."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor, nn

import lowhanging as lh
from lowhanging.canyons.shell import SHELLS, Shell


def two_cues(num: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (num, 4) whose first and last two coordinates each give the label away, with noise."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(num) % 2
    signs = (2.0 * targets - 1.0).double()[:, None]
    inputs = 0.7 * torch.randn(num, 4, generator=generator, dtype=torch.float64)
    inputs[:, :2] += signs * torch.tensor([1.0, 0.3])
    inputs[:, 2:] += signs * torch.tensor([0.2, 1.0])
    return inputs, targets


@functools.cache
def two_cue_minimum() -> lh.landscape.Minimum:
    """The minimum of a sigmoid network with 44 parameters, float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2)).double()
    inputs, targets = two_cues()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss = loss + 1e-3 * sum(weight.square().sum() for weight in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return lh.polish(lh.Objective(model, (inputs, targets)), anchor=1e-2, gtol=1e-9, progress=False)


def minima_on_circle(loss, plane: lh.Subspace, radius: float, num: int = 720) -> list[float]:
    """Angles of every local minimum of the loss on a circle, by a scan."""
    angles = torch.arange(num, dtype=torch.float64) * 2 * math.pi / num
    ring = torch.stack([angles.cos(), angles.sin()], dim=1) @ plane.basis  # (num, p)
    values = loss.evaluate_many(loss.theta0 + radius * ring)[0]
    return angles[(values < values.roll(1)) & (values < values.roll(-1))].tolist()


def angle_in(plane: lh.Subspace, delta: torch.Tensor) -> float:
    """Polar angle of a displacement in a plane, from 0 to 2 pi."""
    x, y = plane.coordinates(delta).tolist()
    return math.atan2(y, x) % (2 * math.pi)


P, DIM = 6, 3
CURVATURES = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.7, 0.2], dtype=torch.float64)


def turned() -> Tensor:
    """(p, p) orthonormal rows, the eigenvectors."""
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(P, P, generator=generator, dtype=torch.float64))[0]


AXES = turned()
H0 = AXES.T @ (CURVATURES[:, None] * AXES)
THETA0 = torch.linspace(-0.4, 0.6, P, dtype=torch.float64)
CUBIC = torch.linspace(0.3, -0.2, P, dtype=torch.float64)


def curved() -> lh.FunctionObjective:
    """A bowl of known curvatures around THETA0 that bends away from its quadratic, its gradient there not quite 0."""

    def function(theta: Tensor) -> Tensor:
        x = theta - THETA0
        return 0.5 * x @ H0 @ x + (CUBIC * x**3).sum() + 0.05 * (x**4).sum() + 0.01 * x.sum()

    return lh.FunctionObjective(function, THETA0, engine="double backward")


def hessian_at(theta: Tensor) -> Tensor:
    x = theta - THETA0
    return H0 + torch.diag(6 * CUBIC * x + 0.6 * x**2)


def shell_of(where: str, metric: str, min_curvature: float | None = None) -> Shell:
    """Of all of weight space, or of a subspace that is no span of eigenvectors."""
    rows = torch.randn(DIM, P, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return SHELLS[metric](curved(), "full" if where == "full" else lh.Subspace.span(rows), min_curvature)


def coordinates(shell: Shell, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shell.dim)
