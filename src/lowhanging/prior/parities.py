"""Two parities of different bits, and a small network that may learn either."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowhanging.errors import argument_message, check_count
from lowhanging.models.initial import generator_of

_MOST_BITS = 14  # all rows are made: 16,384 of them


class TwoParities(NamedTuple):
    """All rows of n + m signs."""

    signs: Tensor  # (rows, n + m) of -1 and 1
    parities: Tensor  # (2, rows) product of the first n signs, and of the other m

    @property
    def agree(self) -> Tensor:
        """(rows,) bool, where the two parities are equal: one half of the rows."""
        return self.parities[0] == self.parities[1]


def two_parities(n: int, m: int) -> TwoParities:
    """All 2^(n + m) rows of signs, and the two products."""
    remedy = f"Pass a number of bits; at most {_MOST_BITS} for both."
    n, m = (check_count(name, bits, maximum=_MOST_BITS - 1, remedy=remedy) for name, bits in (("n", n), ("m", m)))
    if n + m > _MOST_BITS:
        raise ValueError(argument_message("n", f"and m add up to {n + m}", f"at most {_MOST_BITS} bits", remedy))
    bits = torch.arange(2 ** (n + m))[:, None] >> torch.arange(n + m) & 1
    signs = 1.0 - 2.0 * bits
    return TwoParities(signs, torch.stack([signs[:, :n].prod(1), signs[:, n:].prod(1)]))


def parity_network(seed: int, *, num_bits: int, hidden: int) -> nn.Module:
    """One hidden layer of tanh units and two class scores, its weights from a generator of the seed."""
    model = nn.Sequential(
        nn.utils.skip_init(nn.Linear, num_bits, hidden),  # type: ignore[no-untyped-call]
        nn.Tanh(),
        nn.utils.skip_init(nn.Linear, hidden, 2),  # type: ignore[no-untyped-call]
    )
    generator = generator_of(seed)
    with torch.no_grad():
        for weights in model.parameters():
            fan_in = num_bits if weights.shape[0] == hidden else hidden
            weights.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    return model
