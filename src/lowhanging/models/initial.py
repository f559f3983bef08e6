"""Initial weights from a private generator: the same numbers in every dtype and on every device."""

from __future__ import annotations

import torch
from torch import nn

from lowhanging.errors import check_count


def generator_of(seed: int | None) -> torch.Generator | None:
    """A generator of its own for a seed; None stands for the global random state."""
    if seed is None:
        return None
    seed = check_count("seed", seed, minimum=0, remedy="Pass None for the global random state.")
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, std: float, generator: torch.Generator | None) -> nn.Parameter:
    """Weights from N(0, std^2), drawn on the CPU in float64, in torch's default dtype and on its default device."""
    draw = std * torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return nn.Parameter(draw.to(torch.get_default_device(), torch.get_default_dtype()))
