"""Which matrices of second derivatives does a loss have, and what is added to them?

The Hessian of any loss; the Gauss-Newton matrix of one that is a function of a model's outputs; and epsilon times the
identity, where the loss is anchored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lowhanging.products import Products

Kind = Literal["hessian", "gauss_newton"]


@dataclass(frozen=True)
class Curvature:
    """The products of one matrix of a loss, as a function of theta: (matrix + shift I) v."""

    products: Products
    shift: float = 0.0

    @property
    def engine(self) -> str:
        """How products are computed; "not chosen yet" before the first."""
        return self.products.engine

    def product(self, theta: Tensor, v: Tensor, block: str = "auto") -> Tensor:
        """Times v (p,), or times the rows of v (b, p); vectors are in theta's dtype, on its device, and finite."""
        image = self.products.product(theta, v, block)
        return image + self.shift * v if self.shift else image

    def block(self, wanted: str = "auto") -> str:
        """How blocks of vectors are multiplied, "loop" or "vmap"; "not chosen yet" before the first."""
        return self.products.block(wanted)
