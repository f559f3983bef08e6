"""One-layer transformer for modular addition, without layer norm, on the tokens a b "="."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowhanging.errors import argument_message, check_choice, check_count
from lowhanging.models.initial import generator_of, normal

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class ModularTransformer(nn.Module):
    r"""One layer of causal attention and an MLP, read at the last token: logits for a + b modulo p.

    x = E[tokens] + position; x <- x + attention(x); x <- x + MLP(x); logits = U^T x at "=". No layer norm, no biases
    but the MLP's, embedding and unembedding untied: the set-up of Nanda et al. (2023), with their sizes as defaults.
    Train it as they did: full batch, AdamW with lr 1e-3, weight decay 1 and betas (0.9, 0.98), p = 113, a train
    fraction of 0.3.

    Args:
        p: the modulus; p + 1 tokens, the last one is "=".
        width: of the residual stream.
        num_heads: heads of width / num_heads numbers each.
        hidden: hidden units of the MLP.
        activation: "relu" as in the paper (its kinks are refused nowhere, but warned of), "gelu" or "silu".
        seed: initial weights from a private generator; None draws from the global random state.

    Raises:
        ValueError, TypeError: a size out of range, heads that do not divide the width.

    Source:
        Nanda, Chan, Lieberum, Smith & Steinhardt (2023), "Progress measures for grokking via mechanistic
        interpretability".
    """

    def __init__(
        self,
        p: int = 113,
        *,
        width: int = 128,
        num_heads: int = 4,
        hidden: int = 512,
        activation: str = "gelu",
        seed: int | None = None,
    ):
        super().__init__()
        check_count("p", p, minimum=2, remedy="The modulus, such as 113.")
        check_count("width", width, remedy="Of the residual stream, such as 128.")
        check_count("num_heads", num_heads, remedy="Such as 4.")
        check_count("hidden", hidden, remedy="Hidden units, such as 512.")
        check_choice("activation", activation, tuple(ACTIVATIONS))
        if width % num_heads:
            received = f"is {num_heads}, which does not divide the width {width}"
            raise ValueError(
                argument_message("num_heads", received, "a divisor of the width", "Pass width=128, num_heads=4.")
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
        """Logits (n, p), at the last token, of tokens a, b, "=" (n, 3), or of a, b (n, 2), to which "=" is added."""
        if inputs.shape[1] == 2:
            inputs = torch.cat([inputs, torch.full_like(inputs[:, :1], self.p)], dim=1)
        return self.logits(self.embedding[inputs])

    def logits(self, embedded: Tensor) -> Tensor:
        """Logits (n, p) of embedded tokens (n, 3, width), positions not yet added."""
        x = embedded + self.position
        # Only the last token is read, and it may attend to all three: no mask is needed.
        size = self.width // self.num_heads
        query = (x[:, -1] @ self.query).reshape(len(x), self.num_heads, size)
        keys, values = ((x @ weight).reshape(len(x), 3, self.num_heads, size) for weight in (self.key, self.value))
        scores = torch.einsum("nhd,nthd->nht", query, keys) / math.sqrt(size)
        mixed = torch.einsum("nht,nthd->nhd", scores.softmax(-1), values).flatten(1)
        stream = x[:, -1] + mixed @ self.output
        hidden = ACTIVATIONS[self.activation](stream @ self.first + self.first_bias)
        logits: Tensor = (stream + hidden @ self.second + self.second_bias) @ self.unembedding
        return logits
