"""What is a slicer shown, and what should it see? A regression on eight examples, and the same loss on paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCHES = (5, 3)  # ragged: equal batches hide a wrong mean


class Regression(nn.Module):
    """One linear layer, and a buffer that counts forward passes in training mode."""

    num_batches_tracked: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        outputs: Tensor = self.linear(inputs)
        return outputs


@dataclass(frozen=True, eq=False)
class Scene:
    """What the slicer is given, and the same on paper: sum_k weights[k] (residuals[k] + features[k] . offset)^2."""

    model: nn.Module
    loader: DataLoader[Any]
    u: dict[str, Tensor]
    v: dict[str, Tensor]
    alphas: np.ndarray
    betas: np.ndarray
    directions: tuple[np.ndarray, np.ndarray]  # (4,) u and v, out of the slicer's reach
    features: np.ndarray  # (8, 4)
    residuals: np.ndarray  # (8,)

    @classmethod
    def make(cls, counts: tuple[int, ...], extent: float, dtype: torch.dtype) -> Scene:
        with torch.random.fork_rng(devices=[]):  # a layer draws its first weights
            model = Regression().to(dtype)
        numbers = torch.arange(24, dtype=torch.float64)
        inputs = (1.5 * torch.sin(1.7 * numbers) + 0.4).reshape(8, 3).to(dtype)
        targets = (2.0 * torch.cos(2.3 * numbers[:8]) + 0.7).reshape(8, 1).to(dtype)
        values = {"linear.weight": ([0.8, -0.6, 0.3], [1.0, -0.4, 0.2], [0.3, 0.9, -1.1]),
                  "linear.bias": ([0.25], [0.5], [-0.35])}  # fmt: skip
        theta, u, v = (
            {key: torch.tensor(row[i], dtype=dtype).reshape(value.shape) for (key, value), row in
             zip(model.named_parameters(), values.values(), strict=True)} for i in range(3)
        )  # fmt: skip
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(theta[key])
                parameter.grad = torch.full_like(parameter, 0.125)
        # A generator of its own: reading a loader otherwise draws from the global one.
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(inputs, targets), batch_size=BATCHES[0], generator=generator)
        features = np.hstack([inputs.double().numpy(), np.ones((8, 1))])
        residuals = features @ flat(theta) - targets.double().numpy()[:, 0]
        alphas, betas = (extent * np.linspace(-1.0, 1.0, count) for count in counts)
        return cls(model.train(), loader, u, v, alphas, betas, (flat(u), flat(v)), features, residuals)

    def state(self) -> dict[str, list[Any]]:
        parameters = list(self.model.parameters())
        return {
            "weights": [parameter.detach().clone() for parameter in parameters],
            "buffers": [buffer.clone() for buffer in self.model.buffers()],
            "gradients": [None if p.grad is None else p.grad.detach().clone() for p in parameters],
            "requires_grad": [parameter.requires_grad for parameter in parameters],
            "mode": [layer.training for layer in self.model.modules()],
            "data": [tensor.clone() for tensor in self.loader.dataset.tensors],  # type: ignore[attr-defined]
            "u": [tensor.clone() for tensor in self.u.values()],
            "v": [tensor.clone() for tensor in self.v.values()],
        }

    def changed_since(self, before: dict[str, list[Any]]) -> tuple[str, ...]:
        after = self.state()
        return tuple(name for name, values in before.items() if not _is_same(values, after[name]))

    def grid(
        self,
        weights: np.ndarray | None = None,
        a: np.ndarray | None = None,
        b: np.ndarray | None = None,
        u: np.ndarray | None = None,
        v: np.ndarray | None = None,
    ) -> np.ndarray:
        """The picture on paper, (num_alphas, num_betas), at points a u + b v; by default what is asked for."""
        weights = np.full(len(self.residuals), 1 / len(self.residuals)) if weights is None else weights
        alphas, betas = np.meshgrid(self.alphas, self.betas, indexing="ij")
        along_u = self.features @ (self.directions[0] if u is None else u)
        along_v = self.features @ (self.directions[1] if v is None else v)
        offsets = np.multiply.outer(along_u, alphas if a is None else a)
        offsets += np.multiply.outer(along_v, betas if b is None else b)
        found: np.ndarray = np.tensordot(weights, (self.residuals[:, None, None] + offsets) ** 2, 1)
        return found

    def coefficients(self, weights: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(6,) of 1, alpha, beta, alpha^2 / 2, alpha beta, beta^2 / 2."""
        r, along_u, along_v = self.residuals, self.features @ u, self.features @ v
        pairs = ((along_u, along_u), (along_u, along_v), (along_v, along_v))
        slopes = [2 * weights @ (r * along_u), 2 * weights @ (r * along_v)]
        return np.array([weights @ r**2, *slopes, *(2 * weights @ (one * other) for one, other in pairs)])


def flat(parts: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([part.detach().double().numpy().ravel() for part in parts.values()])


def _is_same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
        if isinstance(one, Tensor) and isinstance(other, Tensor)
        else one is other
        for one, other in zip(before, after, strict=True)
    )
