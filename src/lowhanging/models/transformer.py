"""One-layer transformer for modular addition, without layer norm, on the tokens a b "="."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowhanging.errors import (
    argument_message,
    check_choice,
    check_count,
    door,
)
from lowhanging.models.initial import generator_of, normal

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@door
class ModularTransformer(nn.Module):
    r"""One layer of causal attention and an MLP, read at the last token: logits for a + b modulo p.

    x = E[tokens] + position; x <- x + attention(x); x <- x + MLP(x); logits = U^T x at "=". No layer norm, no biases
    but the MLP's, embedding and unembedding untied: the set-up of Nanda et al. (2023). The default sizes are those of
    the preset "transformer" (`lh.training.PRESETS`), which answers at least 99 % of the held-out sums after 500 steps;
    theirs (p = 113, width 128, 512 hidden units) are those of the preset "nanda".

    Args:
        p: the modulus; p + 1 tokens, the last one is "=".
        width: of the residual stream.
        num_heads: heads of width / num_heads numbers each.
        hidden: hidden units of the MLP.
        activation: "relu" as in the paper (its kinks are refused nowhere, but warned of), "gelu" or "silu".
        seed: initial weights from a private generator; None draws from the global random state.

    Raises:
        ValueError, TypeError: a size out of range, heads that do not divide the width.

    Cost:
        keys and values are tables of the p numbers, the query is one vector: what is left per pair is a look-up, one
        product with `output`, and the MLP.

    Source:
        Nanda, Chan, Lieberum, Smith & Steinhardt (2023), "Progress measures for grokking via mechanistic
        interpretability".
    """

    def __init__(
        self,
        p: int = 53,
        *,
        width: int = 64,
        num_heads: int = 4,
        hidden: int = 256,
        activation: str = "gelu",
        seed: int | None = None,
    ):
        super().__init__()
        check_count("p", p, minimum=2, remedy="The modulus, such as 53.")
        check_count("width", width, remedy="Of the residual stream, such as 64.")
        check_count("num_heads", num_heads, remedy="Such as 4.")
        check_count("hidden", hidden, remedy="Hidden units, such as 256.")
        check_choice("activation", activation, tuple(ACTIVATIONS))
        if width % num_heads:
            received = f"is {num_heads}, which does not divide the width {width}"
            raise ValueError(
                argument_message("num_heads", received, "a divisor of the width", "Pass width=64, num_heads=4.")
            )
        self.p, self.width, self.num_heads, self.activation = p, width, num_heads, activation
        drawn = functools.partial(normal, std=1 / math.sqrt(width), generator=generator_of(seed))
        self.embedding = drawn(p + 1, width)
        self.position = drawn(3, width)
        self.query, self.key, self.value = (drawn(width, width) for _ in range(3))
        self.output = drawn(width, width)
        self.first, self.second = drawn(width, hidden), drawn(hidden, width)
        self.first_bias, self.second_bias = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(width))
        self.unembedding = drawn(width, p)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, p), at "=", of pairs of tokens (n, 2); a third column ("=") is not looked at."""
        stream = self._attended(inputs)
        logits: Tensor = (stream + self._hidden(stream) @ self.second + self.second_bias) @ self.unembedding
        return logits

    def hidden_units(self, inputs: Tensor) -> Tensor:
        """Activations (n, hidden) of the MLP's hidden units, at "=", for pairs of tokens (n, 2)."""
        return self._hidden(self._attended(inputs))

    def attention(self, inputs: Tensor) -> Tensor:
        """Attention (n, heads, 3) that "=" pays to a, b and itself, for pairs of tokens (n, 2)."""
        return self._looked_at(inputs)[0]

    def _attended(self, inputs: Tensor) -> Tensor:
        """(n, width) the residual stream at "=", between attention and MLP."""
        attention, values = self._looked_at(inputs)
        mixed = attention[..., 0, None] * values[0] + attention[..., 1, None] * values[1]
        mixed = (mixed + attention[..., 2, None] * values[2]).flatten(1)
        stream: Tensor = self.embedding[self.p] + self.position[2] + mixed @ self.output
        return stream

    def _looked_at(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(n, heads, 3) attention of "=", and the values (n or 1, heads, size) of each of the three tokens."""
        size = self.width // self.num_heads
        last = self.embedding[self.p] + self.position[2]  # "=" is every pair's last token, and the only one that asks
        query = (last @ self.query).reshape(self.num_heads, size)
        asked = torch.einsum("whs,hs->wh", self.key.reshape(self.width, self.num_heads, size), query) / math.sqrt(size)
        scores, values = [], []
        for t in range(2):
            rows = self.embedding + self.position[t]
            tokens = inputs[:, t]
            scores.append((rows @ asked)[tokens])  # (n, heads)
            values.append((rows @ self.value)[tokens].reshape(len(tokens), self.num_heads, size))
        scores.append((last @ asked).expand(len(inputs), self.num_heads))
        values.append((last @ self.value).reshape(1, self.num_heads, size))
        return torch.stack(scores, -1).softmax(-1), values  # the last token may look at all three

    def _hidden(self, stream: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](stream @ self.first + self.first_bias)
