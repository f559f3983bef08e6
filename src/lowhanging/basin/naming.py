"""May a point in weight space be called after a circuit that it keeps?

Losses on single cues alone would fool one: where the loss on images of one cue explodes, either a circuit is gone or
the network breaks on images that lack the other cue. A name is given only where the answers on conflict inputs agree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from lowhanging.basin.conflict import AnswerShift, ConflictControl
from lowhanging.errors import a_type, check_real, explain
from lowhanging.results import load_result, save_result

MIN_ASYMMETRY_CHANGE = 1.0  # nats: the ratio of the two losses has changed by more than a factor e
# Twice the 0.05 by which the shares moved where losses on single cues had exploded and the answers hardly changed.
MIN_ANSWER_SHIFT = 0.1


@dataclass(frozen=True, repr=False)
class CircuitName:
    """Whether a point may be called after a circuit: the asymmetry of the losses, held against the answers."""

    name: str | None  # the cue whose circuit is kept; None = the point is called after neither
    cues: tuple[str, str]  # a, b
    asymmetry: float  # log(L_a / L_b) at the point
    basin_asymmetry: float  # the same at the basin's minimum
    shift: AnswerShift  # from the cue whose loss grew more towards the other
    reason: str

    def __repr__(self) -> str:
        losses = f"log(L_{self.cues[0]} / L_{self.cues[1]}) {self.basin_asymmetry:+.2f} -> {self.asymmetry:+.2f}"
        return f"CircuitName({self.name!r}: {losses}, answers {self.shift.text}; {self.reason})"

    def save(self, path: str | Path) -> Path:
        """Write to npz."""
        flat: Any = dataclasses.asdict(self.shift)
        return save_result(dataclasses.replace(self, shift=flat), path)

    @classmethod
    def load(cls, path: str | Path) -> CircuitName:
        """Read what `save` wrote."""
        stored = load_result(cls, path)
        a, b = stored.cues
        return dataclasses.replace(stored, cues=(a, b), shift=AnswerShift(**cast(dict[str, Any], stored.shift)))


def name_circuit(
    control: ConflictControl,
    theta: Tensor,
    theta0: Tensor,
    *,
    losses: Mapping[str, float],
    basin_losses: Mapping[str, float],
    cues: tuple[str, str] | None = None,
) -> CircuitName:
    r"""May the point theta be called after a circuit that it keeps, or does it only break on single-cue images?

    With the asymmetry A = log(L_a / L_b) of the losses on single cues, the kept cue is b where A rose from the basin's,
    a where it fell. The point is called after it only if both hold:

    * |A(theta) - A(theta0)| > MIN_ASYMMETRY_CHANGE = 1 nat: the ratio of the losses changed by more than a factor e.
      A convention: both losses change along any floor, and a smaller change of their ratio is not called a circuit's;
    * the answers on the conflict inputs move the same way: (share that follows the kept cue) - (share that follows the
      other) grows by at least MIN_ANSWER_SHIFT = 0.1, and the paired 95 % interval of that change lies above 0. On the
      paired digits it moved by 0.05 where a loss on single cues had exploded and the answers hardly changed; 0.1 is
      twice that.

    Where almost all answers follow the kept cue at theta0 already, they can't move further, and nothing is named.

    Args:
        control: the conflict inputs and their labels.
        theta: (p,) the point, such as the floor of a canyon.
        theta0: (p,) the basin's minimum.
        losses: cue -> loss on that cue alone at theta, > 0.
        basin_losses: the same at theta0.
        cues: (a, b) of the asymmetry; by default the control's cues, where there are two.

    Returns:
        CircuitName: `.name` (the kept cue, or None), `.asymmetry`, `.basin_asymmetry`, `.shift`, `.reason` in words.

    Raises:
        ValueError, TypeError: a loss that is missing, or not positive and finite (its logarithm is not defined), cues
            that the control has not.

    Cost:
        two passes over the conflict inputs, without gradients.

    Source:
        the control of this library's canyons; cf. Geirhos et al. (2019), "ImageNet-trained CNNs are biased towards
        texture", for images whose cues conflict.
    """
    if not isinstance(control, ConflictControl):
        remedy = "Make one: lh.ConflictControl(objective, views.conflict.inputs, views.conflict.answers)."
        raise TypeError(explain("control", f"is {a_type(control)}", "a ConflictControl", remedy))
    a, b = _checked_cues(control, cues)
    asymmetry, basin_asymmetry = (
        _asymmetry(argument, given, a, b) for argument, given in (("losses", losses), ("basin_losses", basin_losses))
    )
    change = asymmetry - basin_asymmetry
    kept, other = (b, a) if change > 0 else (a, b)
    shift = control.shift(theta, theta0, towards=kept, away=other)
    if abs(change) <= MIN_ASYMMETRY_CHANGE:
        name, reason = None, f"the asymmetry moved by {abs(change):.2f} nats, not more than {MIN_ASYMMETRY_CHANGE:g}"
    elif shift.shift >= MIN_ANSWER_SHIFT and shift.low > 0:
        name, reason = kept, f"the {other} loss grew by {abs(change):.2f} nats against {kept}, and the answers followed"
    else:
        name, reason = None, f"the {other} loss grew by {abs(change):.2f} nats against {kept}, but {_objection(shift)}"
    return CircuitName(name, (a, b), asymmetry, basin_asymmetry, shift, reason)


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
        raise TypeError(explain(argument, f"is {a_type(losses)}", "a mapping cue -> loss", remedy))
    logs = []
    for cue in (a, b):
        if cue not in losses:
            raise ValueError(explain(argument, f"has {list(losses)}", f"a loss for {cue!r}", remedy))
        value = losses[cue]
        value = value.item() if isinstance(value, Tensor | np.ndarray) and value.size else value
        logs.append(math.log(check_real(f"{argument}[{cue!r}]", value, minimum=0.0, exclusive=True, remedy=remedy)))
    return logs[0] - logs[1]


def _checked_cues(control: ConflictControl, cues: Any) -> tuple[str, str]:
    pair = control.cues if cues is None else tuple(cues)
    if len(pair) != 2 or len(set(pair)) != 2 or not set(pair) <= set(control.cues):
        expected = f"two different ones of {control.cues}"
        raise ValueError(explain("cues", f"is {pair!r}", expected, f"Pass cues={control.cues[:2]!r}."))
    return pair[0], pair[1]
