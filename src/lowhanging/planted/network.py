"""A network that is known weight by weight: which circuit a weight belongs to, and which cues it reads.

The two are kept apart. What a weight *reads* says what an exact ablation sets to zero; what it *belongs* to says where
a direction in weight space lies. The bias of a tower reads nothing, and belongs to the tower's circuit all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowhanging.errors import check_choice, check_vector
from lowhanging.landscape import Minimum
from lowhanging.objective import Objective
from lowhanging.steering import ConflictControl


@dataclass(frozen=True, eq=False, repr=False)
class Planted:
    """A network with planted circuits, the losses that tell them apart, and the weights that make each up.

    Attributes:
        model: holds theta.
        theta: the weights: a minimum where the network was trained, see `minimum`.
        circuits: names of the circuits; each reads the cue of that name.
        train_losses: name -> loss around theta on training images, for tools to minimise. "mixed" is the loss that
            was trained; "number" shows that cue alone and blanks the others; "number_resampled" shows other examples'.
        losses: the same names on held-out images, on which a point that was found is judged and nothing is minimised.
        conflict: which cue the answers follow on held-out images whose cues disagree; None where cues can't.
        minimum: what the polishing proved; None where nothing was trained.
    """

    model: nn.Module
    theta: Tensor  # (p,)
    circuits: tuple[str, ...]
    train_losses: dict[str, Objective]
    losses: dict[str, Objective]
    conflict: ConflictControl | None
    minimum: Minimum | None
    _reads: dict[str, Tensor]  # circuit -> (p,) bool, the weights that read its cue
    _owners: dict[str, Tensor]  # circuit -> (p,) float64, the part of each weight that belongs to it; their sum is 1
    # The first rows of theta and R, orthogonal: theta[: rows * d] as (rows, d), times R, has one circuit per column.
    _rotation: tuple[int, Tensor] | None = None

    def __repr__(self) -> str:
        size = f"{type(self.model).__name__}, {self.num_params:,} parameters"
        loss = self.minimum.loss if self.minimum is not None else float(self.train_losses["mixed"](self.theta))
        proof = "" if self.minimum is None else f", |gradient| {self.minimum.gradient_norm:.1g}"
        return f"Planted({' / '.join(self.circuits)} in a {size}, mixed loss {loss:.4g}{proof})"

    @property
    def num_params(self) -> int:
        """The length of theta, p."""
        return self.theta.numel()

    def ablated(self, name: str) -> Tensor:
        """Theta (p,) without a circuit: every weight that reads its cue is 0, so that no loss depends on that cue.

        Exact by construction, not a minimum of anything. The weights that the circuit shares with others stay.

        Args:
            name: one of `circuits`.

        Raises:
            ValueError: no circuit has that name.
        """
        check_choice("name", name, self.circuits, remedy="Name a circuit of this network, see planted.circuits.")
        if self._rotation is None:
            return self.theta.masked_fill(self._reads[name], 0.0)
        turned = self._turned(self.theta.double()).masked_fill(self._reads[name], 0.0)
        return self._turned(turned, back=True).to(self.theta)

    def share(self, direction: Tensor) -> dict[str, float]:
        r"""Share of a direction's squared length that lies in the weights of each circuit.

        share_c = sum_i o_c,i d_i^2 / sum_i d_i^2, o_c,i the part of weight i that belongs to circuit c.

        Args:
            direction: (p,), of any length but 0.

        Returns:
            Circuit -> share in [0, 1]; the shares add up to 1. A direction drawn at random has each circuit's share of
            the weights.

        Raises:
            ValueError, TypeError: another shape, the zero vector, NaN or inf.
        """
        remedy = "Pass a direction in this network's weights, such as lh.steering_direction(...) of its losses."
        owner = type(self.model).__name__
        vector = check_vector("direction", direction, self.num_params, owner=owner, remedy=remedy, allow_zero=False)
        vector = vector.cpu().double()
        squares = self._turned(vector / vector.abs().max()).square()  # no square of a tiny entry is lost
        lengths = {name: float(part @ squares) for name, part in self._owners.items()}
        return {name: length / sum(lengths.values()) for name, length in lengths.items()}

    def _turned(self, vector: Tensor, *, back: bool = False) -> Tensor:
        """A vector (p,) in coordinates of which each belongs to its circuits, or back."""
        if self._rotation is None:
            return vector
        num_rows, R = self._rotation
        rows = vector[: num_rows * len(R)].reshape(num_rows, len(R)) @ (R.T if back else R)
        return torch.cat([rows.reshape(-1), vector[num_rows * len(R) :]])
