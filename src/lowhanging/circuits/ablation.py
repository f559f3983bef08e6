"""What is each circuit worth: how much loss and accuracy go when it is taken out, alone and with others?

A circle score can't say: an embedding can keep its circle while nothing reads it any more. So a circuit is ablated in
what it hands on, by replacing that by its mean over all pairs of numbers, which leaves the rest of the network at its
usual working point. The mean is over all p^2 pairs, whatever data the loss is measured on, so that losses on train and
test sets are of the same ablated network.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import tqdm

from lowhanging.batches import Batches
from lowhanging.circuits.fourier import circle_score, key_frequencies
from lowhanging.errors import check_count, check_finite, explain
from lowhanging.models import ModularMLP
from lowhanging.objective import Objective
from lowhanging.parameters import ParameterSpace
from lowhanging.private_copy import private_copy
from lowhanging.results import load_result, save_result

Ablation = Callable[[nn.Module, Tensor, tuple[int, ...]], Tensor]
CIRCLE = 0.75  # circle score from which on a block counts as a circuit
_MOST = 12  # circuits, of which all 2^k subsets are run


@dataclass(frozen=True, eq=False, repr=False)
class CircuitAblation:
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
        worth = ", ".join(
            f"{name}: {nats:+.2f}" for name, nats in zip(self.circuits.tolist(), self.nats.tolist(), strict=True)
        )
        losses = f"loss {float(self.losses[-1]):.3g}, {float(self.losses[0]):.3g} without them"
        share = f"{100 * float(self.logit_shares[-1]):.0f} % of the logits"
        plural = "s" * (len(self.circuits) != 1)
        details = f"; nats alone {{{worth}}}; {share}" if len(self.circuits) else ""
        return f"CircuitAblation({len(self.circuits)} circuit{plural} by {self.ablation}; {losses}{details})"

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
        values = torch.zeros(k, dtype=torch.float64)
        for j in range(k):
            without = (~self.kept[:, j]).nonzero()[:, 0]
            values[j] = (weight[size[without]] * (self.losses[without] - self.losses[without + 2**j])).sum()
        return values

    @property
    def mean_losses(self) -> Tensor:
        """(k + 1,) float64: the mean loss over all subsets of 0, 1, ..., k circuits kept."""
        size = self.kept.sum(1)
        return torch.stack([self.losses[size == n].mean() for n in range(len(self.circuits) + 1)])

    def save(self, path: str | Path) -> Path:
        """Write to npz."""
        return save_result(self, path)

    @classmethod
    def load(cls, path: str | Path) -> CircuitAblation:
        """Read what `save` wrote."""
        return load_result(cls, path)


def ablate_circuits(
    model: nn.Module,
    data: Any,
    circuits: Iterable[int] | None = None,
    *,
    ablation: Ablation | None = None,
    progress: bool | None = None,
) -> CircuitAblation:
    r"""Loss and accuracy of a network with every subset of its circuits mean-ablated.

    The shares of the logits are covariances with those of the whole network: with z(K) (n, p) the logits with the
    circuits K kept, centred over the classes of each input (a constant changes no probability), and d the deviation of
    the full z from its mean over the inputs, the share of K is <z(K) - z(none), d> / <d, d>. For blocks, whose outputs
    add up in the logits, the shares of single blocks add up too, and to 1 over all blocks. A share is negative where
    circuits work against the rest.

    Args:
        model: a ModularMLP, a ModularTransformer, or any module if `ablation` is given; copied, never written to, and
            evaluated as after `model.eval()`.
        data: pairs to measure on, (inputs, targets) in any form that `Objective` takes: inputs (n, 2) or (n, 3) int64
            tokens, targets (n,) int64.
        circuits: different labels, at most 12. By default, for `ablate_blocks` the blocks with a circle score of at
            least 0.75, for `ablate_frequencies` the `key_frequencies` of the embedding; there may be none.
        ablation: (model, inputs, ablated) -> logits (n, classes) with the circuits `ablated`, a tuple of labels, taken
            out. By default `ablate_blocks` for a ModularMLP in blocks, else `ablate_frequencies`.
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
    private, labels, ablate = _prepared(model, circuits, ablation)
    k = len(labels)
    inputs, targets = read_pairs(data, private)
    kept = (torch.arange(2**k)[:, None] >> torch.arange(k)) % 2 == 1  # (2^k, k)
    losses, accuracies, overlaps = torch.zeros(3, 2**k, dtype=torch.float64)
    deviation = torch.zeros(0)
    rows = tqdm(
        range(2**k - 1, -1, -1), desc="ablate", unit="subset", disable=progress is False,
        delay=2.0 if progress is None else 0.0,
    )  # fmt: skip
    for row in rows:  # the whole network first
        ablated = tuple(label for label, is_kept in zip(labels, kept[row].tolist(), strict=True) if not is_kept)
        with torch.no_grad():
            parts = [ablate(private, part, ablated) for part in inputs.split(4096)]
        logits = checked_logits(parts, targets)  # (n, classes)
        if row == 2**k - 1:
            centred = logits - logits.mean(1, keepdim=True)
            deviation = centred - centred.mean(0)
        losses[row] = F.cross_entropy(logits, targets)
        accuracies[row] = (logits.argmax(1) == targets).double().mean()
        overlaps[row] = (logits * deviation).sum()  # centring them too would change nothing
    variance = deviation.square().sum().cpu()
    shares = (overlaps - overlaps[0]) / variance if bool(variance > 0) else torch.zeros_like(overlaps)
    name = getattr(ablate, "__name__", type(ablate).__name__)
    return CircuitAblation(
        torch.tensor(labels, dtype=torch.int64), kept, losses, accuracies, shares, name, len(targets)
    )


def circuit_losses(
    model: nn.Module, data: Any, circuits: Iterable[int] | None = None, *, ablation: Ablation | None = None
) -> dict[str, Objective]:
    """One objective per circuit: the loss of the network with the *other* circuits mean-ablated.

    Each is a function of all the weights, the means being taken with the weights at which it is evaluated, in the order
    of the model's own theta. So the library's directions and slices apply to circuits:
    `lh.steering_direction(preserve=losses["3"], ablate=losses["6"])`.

    Args:
        model: as in `ablate_circuits`; copied.
        data: as in `ablate_circuits`; read once.
        circuits: as in `ablate_circuits`, at least one.
        ablation: as in `ablate_circuits`, of torch operations that can be differentiated twice.

    Returns:
        str(label) -> Objective, in the order of the circuits.

    Raises:
        ValueError, TypeError: as `ablate_circuits`; no circuit.

    Cost:
        each evaluation runs the blocks on p (p + 1) / 2 pairs per micro-batch beside the micro-batch.
    """
    private, labels, ablate = _prepared(model, circuits, ablation)
    if not labels:
        remedy = "Train longer, or name blocks or frequencies: circuits=[0, 1]."
        raise ValueError(explain("circuits", "are none", "at least one circuit", remedy))
    pairs = read_pairs(data, private)
    others = {label: tuple(other for other in labels if other != label) for label in labels}
    return {str(label): Objective(AblatedModel(private, ablate, others[label]), pairs) for label in labels}


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
    """
    if not _is_blocked(model):
        remedy = "Use ablate_frequencies, or pass ablation=, a function (model, inputs, ablated) -> logits."
        raise TypeError(explain("model", f"is a {type(model).__name__} without blocks", "a ModularMLP in blocks", remedy))
    assert isinstance(model, ModularMLP)
    table = model.embedding
    outputs = model.block_outputs(table[inputs[:, 0]] + table[inputs[:, 1]])  # (n, blocks, 2)
    if blocks:
        a, b = torch.triu_indices(model.p, model.p, device=table.device)
        weights = torch.where(a == b, 1.0, 2.0).to(table) / model.p**2  # (a, b) and (b, a) give the same sum
        means = torch.einsum("m,mbi->bi", weights, model.block_outputs(table[a] + table[b]))
        is_ablated = torch.zeros(outputs.shape[1], 1, dtype=torch.bool, device=table.device)
        is_ablated[list(blocks)] = True
        outputs = torch.where(is_ablated, means, outputs)
    return outputs.flatten(1) @ model.unembedding


def ablate_frequencies(
    model: nn.Module, inputs: Tensor, frequencies: tuple[int, ...], *, embedding: str = "embedding"
) -> Tensor:
    """Logits of a model whose embedding of the numbers is without some Fourier components.

    A component of frequency f > 0 has mean 0 over the numbers, so removing it is mean-ablation. Rows of the embedding
    beyond p (the token "=") stay.

    Args:
        model: any module with a modulus `.p` and an embedding (>= p, d) among its parameters.
        inputs: tokens as the model takes them.
        frequencies: which ones, 1 to p // 2.
        embedding: name of the parameter that holds the embedding, such as "embed.weight".
    """
    try:
        p, table = int(operator.attrgetter("p")(model)), operator.attrgetter(embedding)(model)
    except AttributeError as error:
        remedy = "Pass ablation=, a function (model, inputs, ablated) -> logits."
        expected = f"a module with a modulus .p and a parameter .{embedding}"
        raise TypeError(explain("model", f"is a {type(model).__name__}", expected, remedy)) from error
    numbers, rest = table[:p], table[p:]
    numbers = numbers - frequency_projector(p, frequencies).to(table) @ numbers
    logits: Tensor = functional_call(model, {embedding: torch.cat([numbers, rest])}, (inputs,))
    return logits


def frequency_projector(p: int, frequencies: Iterable[int]) -> Tensor:
    """(p, p) float64 projector on the cosines and sines of some frequencies, as functions of a number modulo p."""
    difference = torch.arange(p)[:, None] - torch.arange(p)
    projector = torch.zeros(p, p, dtype=torch.float64)
    for f in frequencies:
        wave = torch.cos(2 * math.pi / p * (f * difference % p))  # float64 below: angles reduced as integers
        projector += wave.double() * ((1 if 2 * f == p else 2) / p)
    return projector


def read_pairs(data: Any, model: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Tokens (n, 2) or (n, 3) and classes (n,), where the model is, or an error."""
    space = None if model is None else ParameterSpace(model)
    device = torch.device("cpu") if space is None else space.flatten(model).device
    batches = Batches(data, device=device, dtype=torch.float64, micro_batch=None, cache=True)
    parts = []
    remedy = "Pass data.train or data.test of lh.modular_addition(p)."
    for batch in batches:
        is_pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(x, Tensor) for x in batch)
        shapes = [tuple(x.shape) for x in batch if isinstance(x, Tensor)]
        expected = "batches of tokens (n, 2) or (n, 3) and classes (n,)"
        if not is_pair or batch[0].ndim != 2 or batch[0].shape[1] not in (2, 3) or batch[1].ndim != 1:
            raise ValueError(explain("data", f"has a batch of shapes {shapes}", expected, remedy))
        if any(x.is_floating_point() or x.is_complex() or x.dtype == torch.bool for x in batch):
            raise TypeError(explain("data", f"is of {batch[0].dtype} and {batch[1].dtype}", "integers", remedy))
        parts.append(batch)
    inputs, targets = torch.cat([x for x, _ in parts]).long(), torch.cat([y for _, y in parts]).long()
    p = getattr(model, "p", None)
    if int(inputs.min()) < 0 or (isinstance(p, int) and int(inputs[:, :2].max()) >= p):
        received = f"has tokens from {int(inputs.min())} to {int(inputs[:, :2].max())}"
        raise ValueError(explain("data", received, "numbers from 0 to p - 1" + f" = {p - 1}" * (p is not None), remedy))
    return inputs, targets


def checked_logits(parts: list[Tensor], targets: Tensor) -> Tensor:
    """(n, classes) float64, with a class for every target (n,), or an error."""
    logits = torch.cat(parts).double()
    lowest, highest = int(targets.min()), int(targets.max())
    if logits.ndim != 2 or len(logits) != len(targets) or lowest < 0 or highest >= logits.shape[1]:
        received = f"has shape {tuple(logits.shape)} for {len(targets)} targets from {lowest} to {highest}"
        expected = "a row per target and a column per class"
        raise ValueError(explain("the model's output", received, expected, "Is it the modulus of the data?"))
    check_finite("the model's output", logits, remedy="Train with a smaller step.")
    return logits


def _is_blocked(model: nn.Module) -> bool:
    return isinstance(model, ModularMLP) and model.is_blocked


def _prepared(
    model: nn.Module, circuits: Iterable[int] | None, ablation: Ablation | None
) -> tuple[nn.Module, list[int], Ablation]:
    """A copy of the model, the labels of its circuits, and what ablates them; or an error."""
    ...
