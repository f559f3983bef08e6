r"""Which network can say how many parameters a circuit has? One hidden layer of cosines, z(x) = \sum_j v_j cos(w_j c).

c = (pi / 2) (1 - x), so that a sign of 1 counts 0 and a sign of -1 counts pi. A unit with weights 1 on the bits of a
cue and 0 elsewhere is the cue, chi(x) = cos(pi #{bits that are -1}): k input weights and one read-out.

Nothing smaller computes the same. An output that depends on a bit needs a weight on it, and a read-out: k + 1 for one
cue of k bits, and 2k + 1 at least for two. Two cues, b (chi_A + chi_B), need a second unit from k = 2 on. With one,
v = 2b (no sign turned); a bit i turned in either cue makes 0, so pi w_i = +- pi / 2 up to full turns; a bit i in A and
a bit j in B turned make -2b, so w_i = w_j; two bits i and i' in A turned make 2b again, so w_i = -w_i'. But both equal
w_j. So two cues of k bits take 2 (k + 1) parameters, as many as one cue of 2k + 1 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowhanging.models.initial import generator_of, normal


class CosineNetwork(nn.Module):
    """z(x) = sum_j v_j cos((pi / 2) w_j (1 - x)), as logits (-z / 2, z / 2) of two classes.

    Args:
        num_bits: signs of an input.
        hidden: units.
        seed: of the weights, normal with variance 1 / num_bits and 1 / hidden; None draws from the global state.
    """

    def __init__(self, num_bits: int, hidden: int, seed: int | None = None):
        super().__init__()
        generator = generator_of(seed)
        self.weight = normal(hidden, num_bits, std=1 / math.sqrt(num_bits), generator=generator)
        self.readout = normal(hidden, std=1 / math.sqrt(hidden), generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, 2) of signs (n, num_bits)."""
        angles = (math.pi / 2) * ((1 - inputs) @ self.weight.T)  # (n, hidden)
        z = torch.cos(angles) @ self.readout  # (n,)
        return torch.stack([-z / 2, z / 2], dim=1)

    @property
    def num_nonzero(self) -> int:
        """Parameters that are not 0: those of the circuits that the network holds."""
        return int(sum((parameter != 0).sum() for parameter in self.parameters()))


def exact_network(num_bits: int, cues: Sequence[tuple[Tensor, float]]) -> CosineNetwork:
    """The smallest network of the family with z = sum of coefficient times cue, for (bits, coefficient) pairs."""
    network = CosineNetwork(num_bits, len(cues), seed=0)
    with torch.no_grad():
        network.weight.zero_()
        for unit, (bits, coefficient) in enumerate(cues):
            network.weight[unit, bits] = 1.0
            network.readout[unit] = coefficient
    return network


class TanhNetwork(nn.Module):
    """An ordinary hidden layer of tanh units with biases, for the same inputs; its circuits can't be counted so."""

    def __init__(self, num_bits: int, hidden: int, seed: int | None = None):
        super().__init__()
        generator = generator_of(seed)
        self.weight = normal(hidden, num_bits, std=1 / math.sqrt(num_bits), generator=generator)
        self.bias = normal(hidden, std=0.5, generator=generator)
        self.readout = normal(hidden, std=1 / math.sqrt(hidden), generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, 2) of signs (n, num_bits)."""
        z = torch.tanh(inputs @ self.weight.T + self.bias) @ self.readout  # (n,)
        return torch.stack([-z / 2, z / 2], dim=1)
