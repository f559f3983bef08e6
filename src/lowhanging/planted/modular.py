"""Addition modulo p by Fourier circuits that are written in by formula, with nothing trained.

A frequency k is a circuit of its own: the angle of a, the angle of b, the addition theorem, and the cosine of the
difference to the angle of c. Logits of circuits are added, and no weight belongs to two of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowhanging.datasets import modular_addition
from lowhanging.errors import a_type, argument_message, check_count, check_real
from lowhanging.objective import Objective, ParameterSpace
from lowhanging.planted.network import Planted


class FourierAddition(nn.Module):
    r"""Logits for a + b modulo p, from products of the embeddings of a and b, one plane per frequency.

    With (c_k, s_k)(a) columns 2 j and 2 j + 1 of E R at row a, and (C_k, S_k)(c) those of U at row c,

    logit_c = sum_k C_k(c) [c_k(a) c_k(b) - s_k(a) s_k(b)] + S_k(c) [s_k(a) c_k(b) + c_k(a) s_k(b)].

    E = `embedding` and U = `unembedding` (p, 2 m) are parameters, the rotation R (2 m, 2 m) a fixed buffer.

    Args:
        embedding: E R, (p, 2 m).
        unembedding: U, (p, 2 m).
        rotation: R, orthogonal.
    """

    rotation: Tensor

    def __init__(self, embedding: Tensor, unembedding: Tensor, rotation: Tensor):
        super().__init__()
        self.embedding = nn.Parameter(embedding @ rotation.T)
        self.unembedding = nn.Parameter(unembedding)
        self.register_buffer("rotation", rotation)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, p) of pairs of tokens (n, 2); a third column ("=") is not looked at."""
        planes = (self.embedding @ self.rotation).reshape(len(self.embedding), -1, 2)  # (p, m, 2)
        a, b = planes[inputs[:, 0]], planes[inputs[:, 1]]  # (n, m, 2)
        cosine = a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
        sine = a[..., 1] * b[..., 0] + a[..., 0] * b[..., 1]
        return torch.stack([cosine, sine], -1).flatten(1) @ self.unembedding.T


def modular(
    p: int = 29,
    frequencies: Sequence[int] = (3, 5, 7),
    *,
    amplitude: float | Sequence[float] = 5.0,
    rotated: bool = False,
    seed: int = 0,
) -> Planted:
    r"""Modular addition by one circuit per frequency, logit_c = sum_k s_k cos(2 pi k (a + b - c) / p).

    Embedding and unembedding hold r_k (cos(2 pi k a / p), sin(2 pi k a / p)) in columns 2 j and 2 j + 1 for the j-th
    frequency, r_k = s_k^(1/3): circles of the same radius in all three places that a circuit is written in. With a
    rotation, the embedding is stored as E R^T, R drawn from the rotations of its 2 m columns, and the network undoes
    it: the same logits to rounding, but no circle lies in a plane of two columns.

    It is no minimum: every frequency gains by a larger amplitude, for ever, as on any data that are classified rightly.

    Args:
        p: the modulus, at least 3.
        frequencies: different integers from 1 to (p - 1) // 2, with no divisor in common with p and each other.
        amplitude: s_k > 0, one for all frequencies or one for each. By default the loss is 0.0045, and 0.17 to 0.39
            without one of the three.
        rotated: whether the embedding's columns are rotated.
        seed: of the rotation; without one nothing is drawn.

    Returns:
        Planted with circuits "k=3", ..., the loss "mixed" of all p^2 pairs (the same in `train_losses` and `losses`:
        nothing is held out), `.conflict` and `.minimum` None. `ablated("k=3")` zeroes that frequency's columns in the
        embedding and in the unembedding; either alone would take it out of the logits, with nothing left but the
        other's weights. A frequency's weights in both belong to it; with a rotation, the embedding's in the columns
        of E R.

    Raises:
        ValueError, TypeError: an argument out of range, a frequency twice, frequencies that can't tell all sums apart.

    Cost:
        no training; p^3 logits per evaluation.

    Source:
        Nanda, Chan, Lieberum, Smith & Steinhardt (2023), "Progress measures for grokking via mechanistic
        interpretability", for the algorithm.
    """
    check_count("p", p, minimum=3, remedy="The modulus, such as 29.")
    seed = check_count("seed", seed, minimum=0, remedy="Pass an integer; the same one gives the same rotation.")
    listed = _frequencies(frequencies, p)
    amplitudes = _amplitudes(amplitude, len(listed))
    radii = torch.tensor(amplitudes, dtype=torch.float64) ** (1 / 3)  # (m,)
    turns = torch.arange(p)[:, None] * torch.tensor(listed) % p  # exact: no large angle is rounded
    angles = 2 * math.pi * turns.double() / p  # (p, m)
    circles = (radii[:, None] * torch.stack([angles.cos(), angles.sin()], -1)).flatten(1)  # (p, 2 m)
    width = circles.shape[1]
    R = _rotation(width, seed) if rotated else torch.eye(width, dtype=torch.float64)
    model = FourierAddition(circles, circles.clone(), R).to("cpu", torch.float32)
    pairs = modular_addition(p, 1.0).train
    loss = Objective(model, (pairs.inputs, pairs.targets))
    names = tuple(f"k={k}" for k in listed)
    plane = torch.arange(width) // 2  # of each column
    # Both tensors of theta, (p, 2 m) each, one after the other.
    masks = {name: (plane == j).repeat(2 * p) for j, name in enumerate(names)}
    return Planted(
        model=model, theta=ParameterSpace(model).flatten(model), circuits=names, train_losses={"mixed": loss},
        losses={"mixed": loss}, conflict=None, minimum=None, _reads=masks,
        _owners={name: mask.double() for name, mask in masks.items()}, _rotation=(p, R) if rotated else None,
    )  # fmt: skip


def _rotation(width: int, seed: int) -> Tensor:
    """Uniform over the rotations of `width` dimensions, float64."""
    Q, triangle = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    Q = Q * np.sign(np.diag(triangle))  # what makes the factor unique, and uniform
    Q[:, 0] *= np.sign(np.linalg.det(Q))  # a rotation, no reflection
    return torch.from_numpy(Q)


def _frequencies(frequencies: Any, p: int) -> list[int]:
    most = (p - 1) // 2
    remedy = f"Pass different integers from 1 to {most}: k and p - k are one frequency."
    if isinstance(frequencies, str) or not isinstance(frequencies, Iterable):
        raise TypeError(argument_message("frequencies", f"is {a_type(frequencies)}", "a sequence of integers", remedy))
    listed = [check_count("an entry of frequencies", k, maximum=most, remedy=remedy) for k in frequencies]
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(argument_message("frequencies", f"is {listed}", "different ones, at least one", remedy))
    if (divisor := math.gcd(p, *listed)) > 1:
        received = f"is {listed}, all multiples of {divisor}, which divides p = {p}"
        expected = "frequencies that tell all p sums apart"
        raise ValueError(argument_message("frequencies", received, expected, "Add 1, or take a prime p."))
    return listed


def _amplitudes(amplitude: Any, num: int) -> list[float]:
    remedy = "Pass one positive number, such as 5, or one per frequency."
    several = list(amplitude) if isinstance(amplitude, Iterable) and not isinstance(amplitude, str) else None
    if several is not None and len(several) != num:
        received, expected = f"has {len(several)} entries", f"one for each of {num} frequencies"
        raise ValueError(argument_message("amplitude", received, expected, remedy))
    given = [amplitude] * num if several is None else several
    return [check_real("amplitude", value, minimum=0.0, exclusive=True, remedy=remedy) for value in given]
