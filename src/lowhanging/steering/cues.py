"""Cues that a network's predictions follow where cues conflict, and whether a point may be called after a circuit.

Losses on single cues can't say which circuit is gone: weights may just break on images that lack a cue, and look as if
they had lost the circuit of the cue that is shown. Images that show all cues, with *different* labels, lack nothing:
there the answers, the classes that the model predicts, leave a circuit that is gone, and only then it is named.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from lowhanging.errors import (
    a_type,
    argument_message,
    check_choice,
    check_finite,
    check_names,
    check_real,
    door,
)
from lowhanging.io import Saved
from lowhanging.objective.batches import Batches, logits_of
from lowhanging.objective.checkpoints import Point
from lowhanging.objective.cost import DEFAULT_MICRO_BATCH
from lowhanging.objective.kernels import differentiable_kernels
from lowhanging.objective.objective import AnchoredObjective
from lowhanging.objective.protocol import Loss, check_loss

NEITHER = "neither"


@dataclass(frozen=True, repr=False)
class AnswerShift(Saved):
    """How far the answers moved from one cue to another, between two points in weight space."""

    towards: str
    away: str
    shift: float  # in [-2, 2]: change of (share that follows `towards` - share that follows `away`)
    low: float  # 95 % interval of the shift, paired over examples
    high: float
    num_examples: int
    before: dict[str, float]  # cue, or "neither" -> share of the answers at theta0
    after: dict[str, float]  # the same at theta

    def __repr__(self) -> str:
        return f"AnswerShift({self.text}, {self.num_examples} examples: {shares_text(self.before, self.after)})"

    @property
    def text(self) -> str:
        """The shift as it may be quoted: "+0.053 [+0.012, +0.094] from pattern towards number"."""
        return f"{self.shift:+.3f} [{self.low:+.3f}, {self.high:+.3f}] from {self.away} towards {self.towards}"


def shares_text(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Shares at two points as they may be quoted: "number 29.4 % -> 23.0 %, pattern 44.2 % -> 32.5 %, ..."."""
    return ", ".join(f"{cue} {100 * before[cue]:.1f} % -> {100 * after[cue]:.1f} %" for cue in before)


@door
class ConflictControl:
    r"""Which cue a model follows on inputs that show several cues with different labels.

    The answer to input i is the argmax over the outputs' dimension 1. It follows cue c if it is c's label of that
    input, and "neither" if it is no cue's or the outputs hold NaN.

    Args:
        loss: of a model (`Objective`, or an `AnchoredObjective` of one); it says how the model is evaluated: device,
            dtype, train/eval flags, and the buffers (BatchNorm's statistics) at a vector theta.
        inputs: (n, ...) the model's one input tensor, n >= 2. Copied.
        targets: cue -> (n,) integer labels; two cues at least, all labels of an input different.

    Attributes:
        loss: as given.
        cues: the names of the cues, in the order of `targets`.
        num_examples: n.
        num_params: length of theta.

    Raises:
        ValueError, TypeError: a loss without a model, a cue called "neither", equal labels, labels that are no classes
            of the model, inputs that it does not take.

    Cost:
        one evaluation of the first micro-batch.

    Example:
        >>> views = paired_mnist()
        >>> control = ConflictControl(loss, views.conflict.inputs, views.conflict.answers)  # doctest: +SKIP
        >>> control(minimum.theta)  # doctest: +SKIP
        {'number': 0.294, 'pattern': 0.442, 'neither': 0.264}
    """

    def __init__(self, loss: Loss, inputs: Tensor, targets: Mapping[str, Tensor]):
        self.loss, point = _with_model(loss), loss.theta0
        self.num_params = loss.num_params
        inputs = _checked_inputs(inputs)
        self.num_examples = len(inputs)
        labels = _checked_labels(targets, self.num_examples)  # (n, cues)
        self.cues = tuple(targets)
        # Cut and kept like the batches of a loss, on the loss's device.
        self._batches = Batches(
            (inputs, labels), device=point.device, dtype=point.dtype, micro_batch=DEFAULT_MICRO_BATCH, cache=True
        )
        self._check_outputs(labels)

    def __repr__(self) -> str:
        return f"ConflictControl({self.num_examples} examples, cues {' / '.join(self.cues)})"

    def cue_indices(self, theta: Point) -> Tensor:
        """Which cue each answer follows at theta (p,): (n,) int64, index into `cues`, -1 = neither; on the CPU.

        A module, a checkpoint or a minimum is evaluated with its own buffers, a vector with those of the loss.
        """
        is_plain = isinstance(theta, Tensor | np.ndarray)
        model, found = self.loss.model_at(theta, buffers="fixed" if is_plain else None), []
        for inputs, labels in self._batches:
            outputs = self._outputs(model, inputs)
            is_hit = (outputs.argmax(1)[:, None] == labels) & ~outputs.isnan().any(1, keepdim=True)  # (b, cues)
            found.append(torch.where(is_hit.any(1), is_hit.long().argmax(1), -1).cpu())
        return torch.cat(found)

    def __call__(self, theta: Point) -> dict[str, float]:
        """Share of the answers at theta (p,) that follow each cue, and "neither"; they add up to 1."""
        return self._shares(self.cue_indices(theta))

    def shift(self, theta: Point, theta0: Point, *, towards: str, away: str) -> AnswerShift:
        r"""How far the answers move from one cue to another between theta0 and theta.

        s_i(theta) = [answer i follows `towards`] - [answer i follows `away`]
        d_i = s_i(theta) - s_i(theta0), the same input at both points
        shift = mean(d) with the interval mean(d) +- t(0.975, n - 1) std(d) / sqrt(n), cut to [-2, 2]

        Pairing removes the spread between inputs. Where all d_i are equal, the interval has no width, however small n.

        Args:
            theta: (p,) the point.
            theta0: (p,) where it is compared with, such as the minimum.
            towards: the cue whose share counts as positive.
            away: another one.

        Returns:
            AnswerShift: `.shift`, `.low`, `.high`, and the shares `.before` (theta0) and `.after` (theta).

        Raises:
            ValueError: a cue that the control has not, or the same one twice.

        Cost:
            two passes over the inputs, without gradients.
        """
        check_choice("towards", towards, self.cues)
        check_choice("away", away, [cue for cue in self.cues if cue != towards], remedy="Name another cue.")
        before, after = self.cue_indices(theta0), self.cue_indices(theta)
        gained, lost = self.cues.index(towards), self.cues.index(away)
        start, end = ((found == gained).double() - (found == lost).double() for found in (before, after))
        differences = end - start  # (n,) in {-2, ..., 2}
        mean, num = float(differences.mean()), self.num_examples
        half = float(stdtrit(num - 1, 0.975)) * float(differences.std()) / math.sqrt(num)
        return AnswerShift(
            towards=towards,
            away=away,
            shift=mean,
            low=max(mean - half, -2.0),
            high=min(mean + half, 2.0),
            num_examples=num,
            before=self._shares(before),
            after=self._shares(after),
        )

    @staticmethod
    def _outputs(model: nn.Module, inputs: Tensor) -> Any:
        """By the kernels that the loss uses: no autocast, no TensorFloat-32."""
        with differentiable_kernels(model), torch.no_grad():
            return logits_of(model(inputs))

    def _shares(self, cue_indices: Tensor) -> dict[str, float]:
        neither, *counts = torch.bincount(cue_indices + 1, minlength=len(self.cues) + 1).tolist()
        names = (*self.cues, NEITHER)
        return {name: count / self.num_examples for name, count in zip(names, (*counts, neither), strict=True)}

    def _check_outputs(self, labels: Tensor) -> None:
        """One micro-batch at theta0: does the model take the inputs, and are the labels classes of it?"""
        inputs = next(iter(self._batches))[0]
        remedy = "Pass one tensor that the loss's model takes."
        try:
            outputs = self._outputs(self.loss.model_at(self.loss.theta0), inputs)
        except (RuntimeError, TypeError, IndexError, AttributeError, ValueError) as error:
            first_line = (str(error).splitlines() or [""])[0]
            received = f"have shape {(self.num_examples, *inputs.shape[1:])}, on which the model failed ({first_line})"
            raise ValueError(argument_message("inputs", received, "inputs that the model accepts", remedy)) from error
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(inputs):
            received = f"gives outputs of shape {tuple(getattr(outputs, 'shape', ()))} for {len(inputs)} inputs"
            expected = f"({len(inputs)}, classes): one prediction each"
            raise ValueError(argument_message("loss", received, expected, remedy))
        low, high, classes = int(labels.min()), int(labels.max()), outputs.shape[1]
        if low < 0 or high >= classes:
            expected = f"0 to {classes - 1}, the model's {classes} outputs"
            raise ValueError(argument_message("targets", f"range from {low} to {high}", expected, "Check the labels."))


def _with_model(loss: Any) -> Loss:
    """The loss, if there is a model behind it."""
    found = inner = check_loss("loss", loss)
    while isinstance(inner, AnchoredObjective):
        inner = inner.unanchored
    if found.space is None:
        remedy = "Make one: lh.Objective(model, data)."
        raise TypeError(argument_message("loss", f"is {a_type(inner)}", "a loss of a model", remedy))
    return found


def _checked_inputs(inputs: Any) -> Tensor:
    if not isinstance(inputs, Tensor | np.ndarray):
        remedy = "Pass one tensor, an input of each example."
        raise TypeError(argument_message("inputs", f"is {a_type(inputs)}", "a tensor of shape (n, ...)", remedy))
    tensor = inputs if isinstance(inputs, Tensor) else torch.from_numpy(np.array(inputs))
    if not tensor.ndim or len(tensor) < 2:
        received, expected = f"has shape {tuple(tensor.shape)}", "(n, ...) with n of at least 2"
        raise ValueError(argument_message("inputs", received, expected, "An interval needs several examples."))
    check_finite("inputs", tensor, remedy="Drop or repair those examples.")
    return tensor


def _checked_labels(targets: Any, num: int) -> Tensor:
    """The labels of all cues, (n, cues) int64, if they are different on every example."""
    remedy = 'Pass {"one cue": (n,) labels, "other cue": (n,) labels}, what each cue says of each input.'
    if not isinstance(targets, Mapping):
        raise TypeError(argument_message("targets", f"is {a_type(targets)}", "a mapping cue -> labels", remedy))
    names = check_names("targets", targets, remedy=remedy)
    if len(names) < 2 or NEITHER in names:
        expected = f"at least two cues, none of them called {NEITHER!r}"
        raise ValueError(argument_message("targets", f"has the names {names}", expected, remedy))
    columns = []
    for name in names:
        labels = torch.from_numpy(targets[name]) if isinstance(targets[name], np.ndarray) else targets[name]
        is_whole = isinstance(labels, Tensor) and not (
            labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
        )
        if not is_whole or tuple(labels.shape) != (num,):
            kind = f"{labels.dtype}, {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            expected = f"an integer tensor of shape ({num},), a label for each of the inputs"
            raise ValueError(argument_message(f"targets[{name!r}]", f"is {kind}", expected, remedy))
        columns.append(labels.detach().cpu().long())
    for (i, first), (j, second) in itertools.combinations(enumerate(columns), 2):
        if num_same := int((first == second).sum()):
            received = f"has the same label for {names[i]!r} and {names[j]!r} on {num_same} of {num} examples"
            remedy = "Keep the examples whose labels differ: there is no conflict on the others."
            raise ValueError(argument_message("targets", received, "different labels on every example", remedy))
    return torch.stack(columns, dim=1)


MIN_ASYMMETRY_CHANGE = 1.0  # nats: the ratio of the two losses has changed by more than a factor e
# Twice the 0.05 by which the shares moved where losses on single cues had exploded and the answers hardly changed.
MIN_ANSWER_SHIFT = 0.1


@dataclass(frozen=True, repr=False)
class CircuitAttribution(Saved):
    """Whether a point may be called after a circuit: the asymmetry of the losses, held against the answers."""

    name: str | None  # the cue whose circuit is kept; None = the point is called after neither
    cues: tuple[str, str]  # a, b
    asymmetry: float  # log(L_a / L_b) at the point
    basin_asymmetry: float  # the same at the basin's minimum
    shift: AnswerShift  # from the cue whose loss grew more towards the other
    reason: str

    def __repr__(self) -> str:
        losses = f"log(L_{self.cues[0]} / L_{self.cues[1]}) {self.basin_asymmetry:+.2f} -> {self.asymmetry:+.2f}"
        return f"CircuitAttribution({self.name!r}: {losses}, answers {self.shift.text}; {self.reason})"


@door
def attribute_circuit(
    control: ConflictControl,
    theta: Point,
    *,
    theta0: Point,
    losses: Mapping[str, float],
    basin_losses: Mapping[str, float],
    cues: tuple[str, str] | None = None,
) -> CircuitAttribution:
    r"""May the point theta be called after a circuit that it keeps, or does it only break on single-cue images?

    With the asymmetry A = log(L_a / L_b) of the losses on single cues, the kept cue is b where A rose from the basin's,
    a where it fell. The point is called after it only if both hold:

    * |A(theta) - A(theta0)| > MIN_ASYMMETRY_CHANGE = 1 nat: the ratio of the losses changed by more than a factor e.
      A convention: both losses change along any canyon, and a smaller change of their ratio is not called a circuit's;
    * the answers on the conflict inputs move the same way: (share of the kept cue) - (share of the other) grows by at
      least MIN_ANSWER_SHIFT = 0.1, and the paired 95 % interval of that change lies above 0.

    Where almost all answers follow the kept cue at theta0 already, they can't move further, and nothing is named.

    Args:
        control: the conflict inputs and their labels.
        theta: (p,) the point, such as one of a canyon.
        theta0: (p,) the basin's minimum.
        losses: cue -> loss on that cue alone at theta, > 0.
        basin_losses: the same at theta0.
        cues: (a, b) of the asymmetry; by default the control's cues, where there are two.

    Returns:
        CircuitAttribution: `.name` (the kept cue, or None), `.asymmetry`, `.basin_asymmetry`, `.shift`, `.reason`.

    Raises:
        ValueError, TypeError: a loss that is missing, or not positive and finite (its logarithm is not defined), cues
            that the control has not.

    Cost:
        two passes over the conflict inputs, without gradients.

    Source:
        cf. Geirhos et al. (2019), "ImageNet-trained CNNs are biased towards texture", for images whose cues conflict.
    """
    if not isinstance(control, ConflictControl):
        remedy = 'Make one: lh.ConflictControl(loss, inputs, {"one cue": labels, "other cue": labels}).'
        raise TypeError(argument_message("control", f"is {a_type(control)}", "a ConflictControl", remedy))
    a, b = _checked_cues(control, cues)
    asymmetry = _asymmetry("losses", losses, a, b)
    basin_asymmetry = _asymmetry("basin_losses", basin_losses, a, b)
    change = asymmetry - basin_asymmetry
    kept, other = (b, a) if change > 0 else (a, b)
    shift = control.shift(theta, theta0, towards=kept, away=other)
    if abs(change) <= MIN_ASYMMETRY_CHANGE:
        name, reason = None, f"the asymmetry moved by {abs(change):.2f} nats, not more than {MIN_ASYMMETRY_CHANGE:g}"
    elif shift.shift >= MIN_ANSWER_SHIFT and shift.low > 0:
        name, reason = (
            kept,
            f"the {other} loss grew by {abs(change):.2f} nats against {kept}, and so did the cue shares",
        )
    else:
        name, reason = None, f"the {other} loss grew by {abs(change):.2f} nats against {kept}, but {_objection(shift)}"
    return CircuitAttribution(name, (a, b), asymmetry, basin_asymmetry, shift, reason)


def _objection(shift: AnswerShift) -> str:
    """Why the answers do not confirm what the losses say."""
    if shift.high < 0:
        return "the answers on conflict inputs moved the other way"
    if shift.shift >= MIN_ANSWER_SHIFT:
        return f"the interval of the answers' move holds 0: {shift.num_examples} conflict inputs are too few to tell"
    return (
        f"the answers on conflict inputs moved by less than {MIN_ANSWER_SHIFT:g}: "
        f"broken on {shift.away}-only inputs, not shown to be ablated"
    )


def _asymmetry(argument: str, losses: Any, a: str, b: str) -> float:
    """log(L_a / L_b) of a mapping cue -> loss."""
    remedy = f'Pass {{"{a}": ..., "{b}": ...}}, the losses on single cues.'
    if not isinstance(losses, Mapping):
        raise TypeError(argument_message(argument, f"is {a_type(losses)}", "a mapping cue -> loss", remedy))
    logs = []
    for cue in (a, b):
        if cue not in losses:
            raise ValueError(argument_message(argument, f"has {list(losses)}", f"a loss for {cue!r}", remedy))
        value = losses[cue]
        value = value.item() if isinstance(value, Tensor | np.ndarray) and value.size else value
        logs.append(math.log(check_real(f"{argument}[{cue!r}]", value, minimum=0.0, exclusive=True, remedy=remedy)))
    return logs[0] - logs[1]


def _checked_cues(control: ConflictControl, cues: Any) -> tuple[str, str]:
    pair = control.cues if cues is None else tuple(cues)
    if len(pair) != 2 or len(set(pair)) != 2 or not set(pair) <= set(control.cues):
        expected = f"two different ones of {control.cues}"
        raise ValueError(argument_message("cues", f"is {pair!r}", expected, f"Pass cues={control.cues[:2]!r}."))
    return pair[0], pair[1]
