"""Small networks for modular addition whose circuits can be identified.

Both read E[a] + E[b], a sum of embeddings: the order of the two numbers is lost on purpose, and every circuit has to
be a function of one sum. In `blocks` the embedding is cut into planes, each with a small network of its own, so that
a circuit is a circle in one plane, and can be ablated. Unblocked, the circuits share all units.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowhanging.errors import (
    argument_message,
    check_choice,
    check_count,
    check_real,
    door,
)
from lowhanging.models.initial import generator_of, normal

Activation = Literal["silu", "sigmoid", "gelu", "tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}
BLOCK = 2  # numbers per block: a plane, in which a circle lies


@door
class ModularMLP(nn.Module):
    r"""One hidden layer on the sum of two embeddings: logits for a + b modulo p.

    With x = E[a] + E[b] in R^width,

    * unblocked: logits = U^T s(W^T x + c), W (width, hidden), U (hidden, p);
    * in blocks: x is cut into width / 2 planes x_j; y_j = V_j^T s(W_j^T x_j + c_j) in R^2, W_j (2, hidden), V_j
      (hidden, 2); the y_j are joined and logits = U^T y, U (width, p).

    s is the activation, c the hidden bias, absent by default. There is no output bias. All weights start normal, with
    standard deviations `scale` (E), 1 (c), and: unblocked width^-1/2 (W) and hidden^-1/2 (U), so that units and logits
    start of order 1; in blocks 1 (W), 0.5 (V) and 0.35 (U), whatever the sizes. Logits that start small would let a
    penalty on the weights win before any circuit has formed, larger ones delay the circuits.

    Args:
        p: the modulus: number of tokens and of logits.
        width: numbers per embedding; in blocks an even number, two per block.
        hidden: hidden units, in blocks per block.
        blocks: whether the embedding is cut into planes.
        activation: "silu", "gelu", "sigmoid" or "tanh". The last two are odd functions up to a constant: without a
            bias they have no even harmonics, and the product cos(f a) cos(f b) that a circuit needs is one.
        bias: a hidden bias, drawn from N(0, 1) so that units have all kinds of curvature from the start.
        scale: standard deviation of the embedding at the start.
        seed: initial weights from a private generator; None draws from the global random state.

    Raises:
        ValueError, TypeError: a size out of range, blocks that do not divide the width.
    """

    def __init__(
        self,
        p: int = 53,
        *,
        width: int = 20,
        hidden: int = 32,
        blocks: bool = True,
        activation: Activation = "silu",
        bias: bool = False,
        scale: float = 1.0,
        seed: int | None = None,
    ):
        super().__init__()
        check_count("p", p, minimum=2, remedy="The modulus, such as 53.")
        check_count("width", width, remedy="Numbers per embedding, such as 20.")
        check_count("hidden", hidden, remedy="Hidden units, such as 32.")
        check_choice(
            "activation", activation, tuple(ACTIVATIONS), remedy="ReLU has kinks; write your own module for it."
        )
        check_real("scale", scale, minimum=0.0, remedy="Standard deviation of the embedding, such as 1.")
        if blocks and width % BLOCK:
            raise ValueError(
                argument_message("width", f"is {width}", "an even number, two per block", "Pass width=20.")
            )
        self.p, self.width, self.hidden, self.activation, self.is_blocked = p, width, hidden, activation, bool(blocks)
        num = width // BLOCK
        drawn = functools.partial(normal, generator=generator_of(seed))
        self.embedding = drawn(p, width, std=scale)
        if blocks:
            self.first = drawn(num, BLOCK, hidden, std=1.0)
            self.bias = drawn(num, hidden, std=1.0) if bias else None
            self.second = drawn(num, hidden, BLOCK, std=0.5)
            self.unembedding = drawn(width, p, std=0.35)
        else:
            self.first = drawn(width, hidden, std=1 / math.sqrt(width))
            self.bias = drawn(hidden, std=1.0) if bias else None
            self.unembedding = drawn(hidden, p, std=1 / math.sqrt(hidden))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, p) of pairs of tokens (n, 2); a third column ("=") is not looked at."""
        return self.logits(self.embedding[inputs[:, 0]] + self.embedding[inputs[:, 1]])

    def hidden_units(self, inputs: Tensor) -> Tensor:
        """Activations of the hidden units for pairs of tokens (n, 2): (n, hidden), in blocks (n, width / 2 * hidden).

        In blocks the units of one plane after those of another.
        """
        return self._hidden(self.embedding[inputs[:, 0]] + self.embedding[inputs[:, 1]]).flatten(1)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, p) of a sum of two embeddings x (n, width)."""
        if not self.is_blocked:
            return self._hidden(x) @ self.unembedding
        return self.block_outputs(x).flatten(1) @ self.unembedding

    def block_outputs(self, x: Tensor) -> Tensor:
        """What each block hands to the logits, (n, width / 2, 2), for a sum of two embeddings x (n, width)."""
        return torch.einsum("nbh,bhi->nbi", self._hidden(x), self.second)

    def _hidden(self, x: Tensor) -> Tensor:
        """(n, hidden), in blocks (n, blocks, hidden)."""
        if not self.is_blocked:
            return self._activated(x @ self.first)
        planes = x.reshape(len(x), -1, BLOCK)  # (n, blocks, 2)
        return self._activated(torch.einsum("nbi,bih->nbh", planes, self.first))

    def _activated(self, hidden: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](hidden if self.bias is None else hidden + self.bias)
