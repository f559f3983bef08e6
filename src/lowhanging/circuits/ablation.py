"""Mean-ablation of circuits, alone and with others, and the loss and accuracy that go with them.

A circle score can't say what a circuit is worth: an embedding can keep its circle while nothing reads it any more. So
what a circuit hands on is replaced by its mean over all pairs of numbers, which leaves the rest of the network at its
usual working point. The mean is over all p^2 pairs, whatever data the loss is measured on, so that losses on train and
test sets are of the same ablated network.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import tqdm

from lowhanging.circuits.fourier import CircleScores, circle_score
from lowhanging.circuits.mechanism import CHUNK, checked_logits, embedding_table, frequency_projector, read_pairs
from lowhanging.errors import (
    NotSmoothWarning,
    a_type,
    argument_message,
    check_count,
    door,
)
from lowhanging.io import Saved
from lowhanging.models import ModularMLP
from lowhanging.objective.kernels import differentiable_kernels
from lowhanging.objective.objective import Objective
from lowhanging.objective.private_copy import private_copy

Ablation = Callable[[nn.Module, Tensor, tuple[int, ...]], Tensor]
_MOST = 12  # circuits, of which all 2^k subsets are run


@dataclass(frozen=True, eq=False, repr=False)
class CircuitAblation(Saved):
    """Loss and accuracy with every subset of the circuits kept and the other circuits ablated.

    Row i keeps circuit j where bit j of i is set: row 0 keeps none of them, the last row is the whole network. What is
    not among `circuits` is always kept.
    """

    circuits: Tensor  # (k,) int64, blocks, frequencies, or the user's own labels
    kept: Tensor  # (2^k, k) bool
    losses: Tensor  # (2^k,) float64, mean cross-entropy in nats
    accuracies: Tensor  # (2^k,) float64 in [0, 1]
    logit_shares: Tensor  # (2^k,) float64, share of the logits' variance that the kept circuits explain; row 0 is 0
    ablation: str  # name of the function that ablates
    num_examples: int

    def __repr__(self) -> str:
        labels, nats = self.circuits.tolist(), self.nats.tolist()
        worth = ", ".join(f"{label}: {value:+.2f}" for label, value in zip(labels, nats, strict=True))
        losses = f"loss {float(self.losses[-1]):.3g}, {float(self.losses[0]):.3g} without them"
        share = f"{100 * float(self.logit_shares[-1]):.0f} % of the logits"
        size = f"{len(labels)} circuit{'s' * (len(labels) != 1)} by {self.ablation}"
        return f"CircuitAblation({size}; {losses}; nats alone {{{worth}}}; {share})"

    @property
    def nats(self) -> Tensor:
        """(k,) float64: the loss with one circuit alone ablated, minus the full loss."""
        last = len(self.losses) - 1
        return self.losses[[last - 2**j for j in range(len(self.circuits))]] - self.losses[-1]

    @property
    def shapley(self) -> Tensor:
        """(k,) float64 nats: the loss that a circuit removes when it is added, averaged over all orders of adding.

        They sum to the loss with no circuit minus the full loss.
        """
        k = len(self.circuits)
        size = self.kept.sum(1)
        # Of all k! orders, |K|! (k - |K| - 1)! add circuit j right after the set K.
        weight = torch.tensor([1 / (k * math.comb(k - 1, n)) for n in range(k)], dtype=torch.float64)
        values = []
        for j in range(k):
            without = (~self.kept[:, j]).nonzero()[:, 0]
            gain = self.losses[without] - self.losses[without + 2**j]
            values.append(float(weight[size[without]] @ gain))
        return torch.tensor(values, dtype=torch.float64)

    @property
    def mean_losses(self) -> Tensor:
        """(k + 1,) float64: the mean loss over all subsets of 0, 1, ..., k circuits kept."""
        size = self.kept.sum(1)
        return torch.stack([self.losses[size == n].mean() for n in range(len(self.circuits) + 1)])


@door
def ablate_circuits(
    model: nn.Module,
    data: Any,
    *,
    circuits: Iterable[int] | None = None,
    ablation: Ablation | None = None,
    embedding: str | None = None,
    p: int | None = None,
    progress: bool | None = None,
) -> CircuitAblation:
    r"""Loss and accuracy of a network with every subset of its circuits mean-ablated.

    The shares of the logits are covariances with those of the whole network: with z(K) (n, p) the logits with the
    circuits K kept, centred over the classes of each input (a constant changes no probability), and d the deviation of
    the full z from its mean over the inputs, the share of K is <z(K) - z(none), d> / <d, d>. For blocks, whose outputs
    add up in the logits, the shares of single blocks add up too, and to 1 over all blocks. A share is negative where
    circuits work against the rest.

    Args:
        model: a ModularMLP, a ModularTransformer, any module whose `embedding` is named, or any at all if `ablation` is
            given; copied, never written to, and evaluated as after `model.eval()`.
        data: pairs to measure on, (inputs, targets) in any form that `Objective` takes: inputs (n, 2) or (n, 3) int64
            tokens, targets (n,) int64.
        circuits: different labels, at most 12. By default, for `ablate_blocks` the blocks with a circle score of at
            least 0.75, for `ablate_frequencies` the circles of `circle_score(embedding, planes="frequencies")`, the
            strongest first; there may be none.
        ablation: (model, inputs, ablated) -> logits (n, classes) with the circuits `ablated`, a tuple of labels, taken
            out. By default `ablate_blocks` for a ModularMLP in blocks, else `ablate_frequencies`.
        embedding: for `ablate_frequencies`: the name of the parameter, (>= p, d), in which the model looks up its
            numbers, such as "embed.weight"; by default "embedding".
        p: for `ablate_frequencies`: the modulus; by default the model's `.p`.
        progress: a bar; by default one appears when it takes more than two seconds.

    Returns:
        CircuitAblation: `.losses`, `.accuracies` (2^k,), `.nats`, `.shapley` (k,), `.mean_losses` (k + 1,).

    Raises:
        ValueError, TypeError: labels that are repeated, out of range or too many; a model whose circuits can't be found
            by default; data that are not pairs of tokens with classes.

    Cost:
        2^k forward passes over the data, each with one over p (p + 1) / 2 pairs for blocks; n p numbers.

    Source:
        Shapley (1953), "A value for n-person games", for the average over orders.
    """
    private, labels, ablate, inputs, targets = _prepared(model, data, circuits, ablation, embedding, p)
    k = len(labels)
    if k > _MOST:
        remedy = "Name those of interest; the others are kept."
        raise ValueError(argument_message("circuits", f"are {k}, with {2**k:,} subsets", f"at most {_MOST}", remedy))
    kept = (torch.arange(2**k)[:, None] >> torch.arange(k)) % 2 == 1  # (2^k, k)
    losses, accuracies, overlaps = torch.zeros(3, 2**k, dtype=torch.float64)
    deviation = torch.zeros(0)
    rows = tqdm(
        range(2**k - 1, -1, -1), desc="ablate", unit="subset", disable=progress is False,
        delay=2.0 if progress is None else 0.0,
    )  # fmt: skip
    for row in rows:  # the whole network first
        ablated = tuple(label for label, is_kept in zip(labels, kept[row].tolist(), strict=True) if not is_kept)
        with differentiable_kernels(private), torch.no_grad():
            parts = [ablate(private, part, ablated) for part in torch.split(inputs, CHUNK)]
        logits = checked_logits(torch.cat(parts), targets)  # (n, classes)
        if row == 2**k - 1:
            centred = logits - logits.mean(1, keepdim=True)
            deviation = centred - centred.mean(0)
        losses[row] = F.cross_entropy(logits, targets)
        accuracies[row] = (logits.argmax(1) == targets).double().mean()
        overlaps[row] = (logits * deviation).sum()  # centring them too would change nothing
    variance = deviation.square().sum().cpu()
    shares = (overlaps - overlaps[0]) / variance if bool(variance > 0) else torch.zeros_like(overlaps)
    numbers = torch.tensor(labels, dtype=torch.int64)
    return CircuitAblation(numbers, kept, losses, accuracies, shares, _name(ablate), len(targets))


@door
def circuit_losses(
    model: nn.Module,
    data: Any,
    *,
    circuits: Iterable[int] | None = None,
    ablation: Ablation | None = None,
    embedding: str | None = None,
    p: int | None = None,
) -> dict[str, Objective]:
    """One objective per circuit: the loss of the network with the *other* circuits mean-ablated.

    Each is a function of all the weights, the means being taken with the weights at which it is evaluated, in the order
    of the model's own theta. So the library's directions and slices apply to circuits:
    `lh.steering_direction(preserve=losses["3"], ablate=losses["6"])`.

    Args:
        model: as in `ablate_circuits`; copied.
        data: as in `ablate_circuits`; read once.
        circuits: as in `ablate_circuits`, at least one, of any number.
        ablation: as in `ablate_circuits`, of torch operations that can be differentiated twice.
        embedding: as in `ablate_circuits`.
        p: as in `ablate_circuits`.

    Returns:
        str(label) -> Objective, in the order of the circuits.

    Raises:
        ValueError, TypeError: as `ablate_circuits`; no circuit.

    Cost:
        each evaluation runs the blocks on p (p + 1) / 2 pairs per micro-batch beside the micro-batch.
    """
    private, labels, ablate, *pairs = _prepared(model, data, circuits, ablation, embedding, p)
    if not labels:
        remedy = "Train longer, or name blocks or frequencies: circuits=[0, 1]."
        raise ValueError(argument_message("circuits", "are none", "at least one circuit", remedy))
    others = {label: tuple(other for other in labels if other != label) for label in labels}
    losses: dict[str, Objective] = {}
    for label in labels:
        with warnings.catch_warnings():
            if losses:  # of kinks the first has warned
                warnings.simplefilter("ignore", NotSmoothWarning)
            ablated = AblatedModel(private, ablate, others[label])
            losses[str(label)] = Objective(ablated, tuple(pairs), distributed=False)
    return losses


class AblatedModel(nn.Module):
    """A model without some of its circuits, with the same weights in the same order."""

    def __init__(self, model: nn.Module, ablation: Ablation, ablated: tuple[int, ...]):
        super().__init__()
        self.model, self._ablation, self._ablated = model, ablation, ablated

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, classes)."""
        return self._ablation(self.model, inputs, self._ablated)


def ablate_blocks(model: nn.Module, inputs: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Logits (n, p) of a ModularMLP with the outputs of some blocks replaced by their means over all p^2 pairs.

    Args:
        model: a ModularMLP in blocks.
        inputs: (n, 2) or (n, 3) int64 tokens.
        blocks: which ones, 0 to width / 2 - 1.

    Raises:
        TypeError, ValueError: a model without blocks, a block that it doesn't have.
    """
    if not isinstance(model, ModularMLP) or not model.is_blocked:
        received = f"is {a_type(model)} without blocks"
        remedy = "Pass ablation=ablate_frequencies."
        raise TypeError(argument_message("model", received, "a ModularMLP in blocks", remedy))
    table = model.embedding
    outputs = model.block_outputs(table[inputs[:, 0]] + table[inputs[:, 1]])  # (n, blocks, 2)
    for j in blocks:
        check_count("a block", j, minimum=0, maximum=outputs.shape[1] - 1, remedy="Blocks are numbered from 0.")
    if blocks:
        a, b = torch.triu_indices(model.p, model.p, device=table.device)
        weights = torch.where(a == b, 1.0, 2.0).to(table) / model.p**2  # (a, b) and (b, a) give the same sum
        means = torch.einsum("m,mbi->bi", weights, model.block_outputs(table[a] + table[b]))
        is_ablated = torch.zeros(outputs.shape[1], 1, dtype=torch.bool, device=table.device)
        is_ablated[list(blocks)] = True
        outputs = torch.where(is_ablated, means, outputs)
    return outputs.flatten(1) @ model.unembedding


def ablate_frequencies(
    model: nn.Module,
    inputs: Tensor,
    frequencies: tuple[int, ...],
    *,
    embedding: str = "embedding",
    p: int | None = None,
) -> Tensor:
    """Logits of a model whose embedding of the numbers is without some Fourier components.

    A component of frequency f > 0 has mean 0 over the numbers, so removing it is mean-ablation. Rows of the embedding
    beyond p (the token "=") stay.

    Args:
        model: any module with an embedding (>= p, d) among its parameters.
        inputs: tokens as the model takes them.
        frequencies: which ones, 1 to p // 2.
        embedding: name of the parameter that holds the embedding, such as "embed.weight".
        p: the modulus; by default the model's `.p`.

    Raises:
        TypeError, ValueError: no modulus, no parameter of that name, a frequency out of range.
    """
    p = _modulus(model, p)
    table = embedding_table(model, embedding, p)
    numbers, rest = table[:p], table[p:]
    numbers = numbers - frequency_projector(p, frequencies).to(table) @ numbers
    logits: Tensor = functional_call(model, {embedding: torch.cat([numbers, rest])}, (inputs,))
    return logits


def _prepared(
    model: nn.Module,
    data: Any,
    circuits: Iterable[int] | None,
    ablation: Ablation | None,
    embedding: str | None,
    p: int | None,
) -> tuple[nn.Module, list[int], Ablation, Tensor, Tensor]:
    """A copy of the model, the labels of its circuits, what ablates them, tokens and classes; or an error."""
    private = private_copy(model, "eval", None)
    if ablation is not None and not callable(ablation):
        expected = "a function (model, inputs, ablated) -> logits"
        remedy = "Such as lh.circuits.ablate_blocks."
        raise TypeError(argument_message("ablation", f"is {ablation!r}", expected, remedy))
    has_blocks = isinstance(private, ModularMLP) and private.is_blocked
    ablate = ablation or (ablate_blocks if has_blocks and embedding is None else ablate_frequencies)
    given: Any = circuits
    if ablate is ablate_frequencies:
        name, p = embedding or "embedding", _modulus(private, p)
        numbers = embedding_table(private, name, p)[:p]
        ablate = functools.partial(ablate_frequencies, embedding=name, p=p)
        if circuits is None:
            given = _strongest(circle_score(numbers, planes="frequencies"))
    elif embedding is not None or p is not None:
        received, expected = f"is given with ablation={_name(ablate)}", "nothing, or ablate_frequencies"
        remedy = "An ablation of your own finds the embedding itself: leave embedding= and p= out."
        raise ValueError(argument_message("embedding" if embedding is not None else "p", received, expected, remedy))
    if given is None and ablate is ablate_blocks and isinstance(private, ModularMLP) and private.is_blocked:
        given = circle_score(private.embedding[: private.p]).is_circle.nonzero()[:, 0]
    if given is None:
        received = f"are not given, for a {type(model).__name__} with ablation={_name(ablate)}"
        raise ValueError(argument_message("circuits", received, "their labels", "Name them: circuits=[3, 7]."))
    remedy = "Pass blocks (0 to width / 2 - 1) or frequencies (1 to p // 2), such as [3, 7]."
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(argument_message("circuits", f"is {circuits!r}", "several integers", remedy))
    items = given.tolist() if isinstance(given, Tensor) else given
    labels = [check_count("an entry of circuits", label, minimum=0, remedy=remedy) for label in items]
    if len(set(labels)) != len(labels):
        raise ValueError(argument_message("circuits", f"are {labels}", "different integers", remedy))
    p = getattr(private, "p", None) if p is None else p
    inputs, targets = read_pairs(data, p if isinstance(p, int) else None, next(private.parameters()).device)
    # A label that isn't there, or an ablation of one's own that fails, is refused now.
    with differentiable_kernels(private), torch.no_grad():
        checked_logits(ablate(private, inputs[:1], tuple(labels)), targets[:1])
    return private, labels, ablate, inputs, targets


def _modulus(model: nn.Module, p: int | None) -> int:
    """P as given, or the model's."""
    if p is None and not isinstance(getattr(model, "p", None), int):
        received = f"is not given, and {a_type(model)} has no .p"
        names = [name for name, weight in model.named_parameters() if weight.ndim == 2]
        remedy = (
            f"Write p=, and embedding=, which of {names} the model looks up its numbers in; or pass ablation=, a "
            "function (model, inputs, ablated) -> logits."
        )
        raise TypeError(argument_message("p", received, "the modulus", remedy))
    return check_count("p", model.p if p is None else p, minimum=3, remedy="Pass the modulus of the task.")


def _strongest(scores: CircleScores) -> Tensor:
    """(k,) the frequencies that are circles, by falling share of the power."""
    circles = scores.is_circle.nonzero()[:, 0]
    return scores.frequency[circles[scores.share[circles].argsort(descending=True, stable=True)]]


def _name(function: Ablation) -> str:
    function = getattr(function, "func", function)  # of a partial
    return getattr(function, "__name__", type(function).__name__)
