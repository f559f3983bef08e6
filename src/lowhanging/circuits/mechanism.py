"""Measures from the literature on modular addition: progress before the loss shows it, and which algorithm it is.

The first two ask the logits over all p^2 pairs which part of the
loss is due to a few frequencies of a + b; the last two tell a "clock" (angles are multiplied, the result depends on
a + b alone) from a "pizza" (embeddings are added first, the correct logit also depends on a - b). They need no special
model: logits of token pairs, and for gradients an embedding that is read by token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lowhanging.errors import a_type, argument_message, check_count, check_finite
from lowhanging.objective.batches import Batches
from lowhanging.objective.cost import DEFAULT_MICRO_BATCH
from lowhanging.objective.kernels import differentiable_kernels
from lowhanging.objective.private_copy import private_copy

Logits = Callable[[Tensor], Tensor]
CHUNK = 4096  # pairs run at once


def restricted_loss(model: Logits, p: int, *, frequencies: Iterable[int], data: Any = None) -> float:
    r"""Loss with only the key frequencies of a + b, and the constant, left in the logits.

    The logits (p, p, classes) over all pairs are projected on 1 and on cos(2 pi f (a + b) / p), sin(2 pi f (a + b) / p)
    for the given f: what depends on a - b goes, and what depends on a + b at other frequencies. Low before the loss
    itself is low: the circuit is there, and something else (memorisation) covers it.

    Args:
        model: token pairs (n, 2) int64 -> logits (n, classes); a module (copied, run as after `model.eval()`) or any
            function. For a transformer that wants "=" itself, pass a lambda that adds the column.
        p: the modulus.
        frequencies: such as `key_frequencies(model.embedding[:p])`, different, from 1 to p // 2.
        data: pairs on which the loss is taken, as in `ablate_circuits`, such as the train or the test set; by default
            all p^2 pairs with targets a + b mod p.

    Returns:
        Mean cross-entropy in nats.

    Raises:
        ValueError, TypeError: frequencies out of range, logits of another shape or not finite, data that are no pairs.

    Cost:
        one forward pass over p^2 pairs, p^2 numbers per class.

    Source:
        Nanda, Chan, Lieberum, Smith & Steinhardt (2023), "Progress measures for grokking via mechanistic
        interpretability".
    """
    restricted, _ = split_table(logit_table(model, p), frequencies)
    return table_loss(restricted, pairs_and_sums(data, p))


def excluded_loss(model: Logits, p: int, *, frequencies: Iterable[int], data: Any = None) -> float:
    r"""Loss with the key frequencies of a + b, and nothing else, taken out of the logits.

    The projection on cos(2 pi f (a + b) / p), sin(2 pi f (a + b) / p) for the given f is subtracted from the logits
    (p, p, classes); the constant stays. Nanda et al. take it on the training data, where it stays low as long as the
    network memorises, and rises as it comes to rely on the circuit.

    Arguments, errors and cost are those of `restricted_loss`.

    Returns:
        Mean cross-entropy in nats; log p where the circuit was all there was.

    Source:
        Nanda et al. (2023).
    """
    _, excluded = split_table(logit_table(model, p), frequencies)
    return table_loss(excluded, pairs_and_sums(data, p))


def distance_irrelevance(model: Logits, p: int) -> float:
    r"""How little the logit of the correct answer depends on a - b: near 1 a clock, near 0 a pizza.

    With L_ab the logit of a + b mod p for the pair (a, b) and std the population's standard deviation,

        q = mean over d of std(L_{a,a+d} over a) / std(L_ab over all a, b), in [0, 1].

    A table that depends on a + b alone has q = 1 (p odd), one that depends on a - b alone q = 0. Zhong et al. give .85
    for a clock and .17 for a pizza. Read it beside the same network untrained: random logits depend on nothing in
    particular, and an untrained `ModularMLP` has .98, more than any clock.

    Args:
        model: as in `restricted_loss`.
        p: the modulus.

    Returns:
        q, a number in [0, 1].

    Raises:
        ValueError, TypeError: as in `restricted_loss`; correct logits that are all equal, as an ideal clock's are, for
            which q is 0 / 0. What varies by less than 1e-6 of the largest logit is rounding.

    Cost:
        one forward pass over p^2 pairs.

    Source:
        Zhong, Liu, Tegmark & Andreas (2023), "The clock and the pizza: two stories in mechanistic explanation of neural
        networks", definition 4.2.
    """
    table = logit_table(model, p)
    q = distance_share(table)
    if math.isnan(q):
        received = f"gives the correct answer the same logit, {float(table[0, 0, 0]):.6g}, for all pairs"
        remedy = "Nothing depends on a - b here."
        raise ValueError(argument_message("model", received, "correct logits that vary", remedy))
    return q


def gradient_symmetricity(
    model: nn.Module, p: int, *, embedding: str = "embedding", num_samples: int | None = 1000, seed: int = 0
) -> float:
    r"""How alike a logit's gradients are in the embeddings of its two inputs: 1 if only their sum matters.

    The mean over triples (a, b, c) in 0 ... p - 1 of the cosine between dQ_c/dE_a and dQ_c/dE_b, Q_c the logit of class
    c for the pair (a, b), and E_a, E_b the two embeddings, taken apart also where a = b. A network that reads
    E[a] + E[b] has exactly 1, trained or not; only for others is it a measurement, to be read beside the same network
    untrained: a `ModularTransformer` starts at .999 or more, its attention being nearly uniform. Zhong et al. give .99
    for a pizza and .33 for a clock. Triples with a zero gradient have no cosine and are left out.

    Args:
        model: a module that takes tokens (n, 2) int64 and looks them up in one of its parameters; copied, and run as
            after `model.eval()`.
        p: the modulus.
        embedding: name of that parameter, (>= p, d), such as "embed.weight".
        num_samples: triples, drawn at random with replacement; None takes all p^3.
        seed: of the draw; the global random state is not used.

    Returns:
        Mean cosine, in [-1, 1]; its standard error over draws is at most 1 / sqrt(num_samples).

    Raises:
        ValueError, TypeError: no such parameter, logits of another shape, no gradient that isn't zero.

    Cost:
        a forward and a backward pass over the triples.

    Source:
        Zhong et al. (2023), definition 4.1, where 100 triples are drawn.
    """
    check_count("p", p, minimum=2, remedy="Pass the modulus of the task.")
    check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    private = private_copy(model, "eval", None)
    rows = embedding_table(private, embedding, p).detach()
    if num_samples is None:
        triples = torch.cartesian_prod(*[torch.arange(p)] * 3)
    else:
        check_count("num_samples", num_samples, remedy="1,000 triples give the mean to about 0.03; None takes all.")
        triples = torch.randint(p, (num_samples, 3), generator=torch.Generator().manual_seed(seed))
    cosines = torch.cat(
        [_cosines(private, embedding, rows, part) for part in torch.split(triples.to(rows.device), 1024)]
    )
    known = cosines[~cosines.isnan()]
    if not len(known):
        remedy = f"Is {embedding!r} what tokens are looked up in, and do the logits depend on it?"
        expected = "logits that depend on both embeddings"
        raise ValueError(argument_message("model", "has only zero gradients", expected, remedy))
    return float(known.mean())


def _cosines(model: nn.Module, name: str, rows: Tensor, triples: Tensor) -> Tensor:
    """(n,) float64, nan where a gradient is zero."""
    # Every example looks up two rows of its own, appended to the table: one backward pass gives all gradients apart.
    own = torch.cat([rows[triples[:, 0]], rows[triples[:, 1]]]).requires_grad_()
    n = len(triples)
    tokens = len(rows) + torch.arange(2 * n, device=rows.device).reshape(2, n).T  # (n, 2)
    with differentiable_kernels(model), torch.enable_grad():
        logits = functional_call(model, {name: torch.cat([rows, own])}, (tokens,))
        checked_logits(logits.detach(), triples[:, 2])
        chosen = logits.gather(1, triples[:, 2:]).sum()
        (gradient,) = torch.autograd.grad(chosen, own)
    first, second = gradient.double().reshape(2, n, -1)
    cosines: Tensor = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
    return cosines.cpu()


def distance_share(table: Tensor) -> float:
    """`distance_irrelevance` of a logit table (p, p, classes); nan where it is 0 / 0, to rounding in float32."""
    p = len(table)
    a, d = torch.arange(p)[:, None], torch.arange(p)
    correct = table[a, (a + d) % p, (2 * a + d) % p]  # (a, d)
    total = float(correct.std(correction=0))
    if total <= 1e-6 * float(table.abs().max()):
        return math.nan
    return float(correct.std(0, correction=0).mean()) / total


def logit_table(model: Logits, p: int) -> Tensor:
    """(p, p, classes) float64: the logits of every pair (a, b)."""
    remedy = "Pass a module, or lambda inputs: table[inputs[:, 0], inputs[:, 1]]."
    logits = on_every_pair(model, p, argument="model", expected="token pairs (n, 2) -> logits", remedy=remedy)
    return checked_logits(logits, _sums(p).flatten()).reshape(p, p, -1)


def on_every_pair(function: Any, p: int, *, argument: str, expected: str, remedy: str) -> Any:
    """What a function or module makes of all p^2 pairs, a by a, on the CPU; unchecked, and no tensor if it makes none.

    A module is copied, and run as after `model.eval()`.
    """
    check_count("p", p, minimum=3, remedy="Pass the modulus of the task.")
    if not callable(function):
        raise TypeError(argument_message(argument, f"is {a_type(function)}", expected, remedy))
    device = torch.device("cpu")
    if isinstance(function, nn.Module):
        function = private_copy(function, "eval", None)
        device = next(function.parameters()).device
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p)).to(device)
    with differentiable_kernels(function if isinstance(function, nn.Module) else nn.Identity()), torch.no_grad():
        parts = [function(part) for part in torch.split(pairs, CHUNK)]
    are_tables = all(isinstance(part, Tensor) and part.ndim for part in parts)
    return torch.cat([part.cpu() for part in parts]) if are_tables else parts[0]


def split_table(table: Tensor, frequencies: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Logit tables (p, p, classes): the constant and the given frequencies of a + b alone, and all but those."""
    p = len(table)
    remedy = "Such as key_frequencies(model.embedding[:p])."
    given = frequencies.tolist() if isinstance(frequencies, Tensor) else frequencies
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(argument_message("frequencies", f"is {frequencies!r}", "several integers", remedy))
    wanted = list(given)
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError(argument_message("frequencies", f"are {wanted}", "at least one, all different", remedy))
    by_sum = mean_by_sum(table)
    waves, sums = frequency_projector(p, wanted) @ by_sum, _sums(p)
    return (by_sum.mean(0) + waves)[sums], table - waves[sums]


def mean_by_sum(table: Tensor) -> Tensor:
    """(s, classes) mean over the pairs with a + b = s: the projection of a logit table on functions of a + b."""
    p = len(table)
    a = torch.arange(p)[:, None]
    return table[a, (torch.arange(p) - a) % p].mean(0)


def _sums(p: int) -> Tensor:
    """(p, p) a + b mod p."""
    return (torch.arange(p)[:, None] + torch.arange(p)) % p


def pairs_and_sums(data: Any, p: int) -> tuple[Tensor, Tensor]:
    """Tokens (n, 2) or (n, 3) and classes (n,) of `data`; of all p^2 pairs for None."""
    if data is None:
        return torch.cartesian_prod(torch.arange(p), torch.arange(p)), _sums(p).flatten()
    return read_pairs(data, p, torch.device("cpu"))


def table_loss(table: Tensor, data: tuple[Tensor, Tensor]) -> float:
    """Mean cross-entropy of a logit table (p, p, classes) on tokens and classes."""
    inputs, targets = data
    return float(F.cross_entropy(checked_logits(table[inputs[:, 0], inputs[:, 1]], targets), targets))


def embedding_table(model: nn.Module, name: str, p: int) -> Tensor:
    """The parameter in which a model looks up its tokens, (>= p, d), by its name; or an error that lists the names."""
    named = dict(model.named_parameters(remove_duplicate=False))
    tables = {each: one for each, one in named.items() if one.ndim == 2 and len(one) >= p and one.is_floating_point()}
    if name not in tables:
        received = f"is {name!r}, with p = {p} and the model {a_type(model)}"
        expected = f"the name of a parameter with a row per number, among {list(tables)}"
        remedy = "No parameter has p rows: is p the modulus, and are tokens looked up in a parameter of the model?"
        if tables:
            remedy = f"Name the one that tokens are looked up in, such as embedding={next(iter(tables))!r}."
        raise ValueError(argument_message("embedding", received, expected, remedy))
    return tables[name]


def frequency_projector(p: int, frequencies: Iterable[int]) -> Tensor:
    """(p, p) float64 projector on the cosines and sines of some frequencies, as functions of a number modulo p."""
    remedy = f"Frequencies of a number modulo {p}: 1 to {p // 2}; f and p - f are one."
    difference = torch.arange(p)[:, None] - torch.arange(p)
    projector = torch.zeros(p, p, dtype=torch.float64)
    for f in frequencies:
        check_count("a frequency", f, maximum=p // 2, remedy=remedy)
        angle = 2 * math.pi / p * (f * difference % p).double()  # reduced as integers: no rounding at large f
        projector += angle.cos() * ((1 if 2 * f == p else 2) / p)
    return projector


def read_pairs(data: Any, p: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens (n, 2) or (n, 3) and classes (n,), or an error; p is the modulus, where it is known."""
    remedy = "Pass data.train or data.test of lh.modular_addition(p)."
    parts = []
    for batch in Batches(data, device=device, dtype=torch.float64, micro_batch=DEFAULT_MICRO_BATCH, cache=True):
        tensors = [x for x in batch if isinstance(x, Tensor)] if isinstance(batch, tuple | list) else []
        shapes = [tuple(x.shape) for x in tensors]
        is_pair = len(shapes) == 2 and len(shapes[0]) == 2 and shapes[0][1] in (2, 3) and len(shapes[1]) == 1
        if not is_pair or len(batch) != 2:
            expected = "tokens (n, 2) or (n, 3) and classes (n,)"
            raise ValueError(argument_message("data", f"has a batch of shapes {shapes}", expected, remedy))
        if any(x.is_floating_point() or x.is_complex() or x.dtype == torch.bool for x in tensors):
            kinds = f"is of {tensors[0].dtype} and {tensors[1].dtype}"
            raise TypeError(argument_message("data", kinds, "integer tokens and classes", remedy))
        parts.append(tensors)
    inputs, targets = torch.cat([x for x, _ in parts]).long(), torch.cat([y for _, y in parts]).long()
    lowest, highest = int(inputs.min()), int(inputs[:, :2].max())
    if lowest < 0 or (p is not None and highest >= p):
        expected = "numbers from 0 to p - 1" + (f" = {p - 1}" if p is not None else "")
        raise ValueError(argument_message("data", f"has tokens from {lowest} to {highest}", expected, remedy))
    return inputs, targets


def checked_logits(logits: Any, targets: Tensor) -> Tensor:
    """(n, classes) float64 with a class for every target (n,), or an error."""
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    lowest, highest = int(targets.min()), int(targets.max())
    is_table = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(targets)
    if not is_table or lowest < 0 or highest >= logits.shape[1]:
        received = f"has shape {shape} for {len(targets)} targets from {lowest} to {highest}"
        expected = "a row per target and a column per class"
        remedy = "Is it made for the modulus of the data?"
        raise ValueError(argument_message("the model's output", received, expected, remedy))
    check_finite("the model's output", logits, remedy="Train with a smaller step.")
    table: Tensor = logits.double()
    return table
