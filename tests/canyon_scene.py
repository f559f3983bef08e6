"""A network with two redundant cues that trains in a second, at its minimum: what the canyon tests look at."""

from __future__ import annotations

import functools
import math

import torch
from torch import nn

import lowhanging as lh


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
