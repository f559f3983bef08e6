"""Any symmetric map with `@` as counted, checked torch products.

Torch and NumPy maps, ours and other people's, differ in what vectors they take, whether they keep or overwrite them,
and what they return. Behind this file a map takes and returns (p,) tensors of one dtype on one device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.curvature.krylov import ASYMMETRY, not_symmetric
from lowhanging.curvature.operators import SymmetricOperator, exact_products
from lowhanging.errors import a_type, argument_message

_NO_DOUBLE = (RuntimeError, TypeError, ValueError)  # of a model that insists on float32, or of a device without float64
WORTH_A_BLOCK = 16  # rows: for fewer, finding out how a block is multiplied costs more than the block


class CountedMap:
    """A symmetric (p, p) map as torch products: counts them, checks them, and feeds NumPy maps with NumPy vectors."""

    def __init__(self, operator: Any):
        shape = tuple(getattr(operator, "shape", ()))
        if not hasattr(operator, "__matmul__") or len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
            received = f"is {a_type(operator)}" + (f" of shape {shape}" if shape else "")
            remedy = "Pass lh.hessian(objective), a matrix or a SciPy LinearOperator; for a model use top_hessian_eigs."
            if hasattr(operator, "hvp"):
                remedy = "Pass its Hessian: lh.hessian(objective)."
            kind_of_error = ValueError if hasattr(operator, "__matmul__") else TypeError
            expected = "a symmetric map with H @ v and the shape (p, p)"
            raise kind_of_error(argument_message("H", received, expected, remedy))
        kind: Any = getattr(operator, "dtype", torch.float64)
        self.takes_numpy = not isinstance(kind, torch.dtype)
        if self.takes_numpy and np.dtype(kind).kind != "c":
            kind = torch.float32 if np.dtype(kind) == np.float32 else torch.float64
        if kind not in ASYMMETRY:
            raise ValueError(
                argument_message("H", f"has dtype {kind}", "float32 or float64", "Convert it, as in H.double().")
            )
        self.operator = operator
        self.size: int = int(shape[0])
        self.dtype: torch.dtype = kind
        self.device = torch.device("cpu") if self.takes_numpy else torch.device(getattr(operator, "device", "cpu"))
        self.num_products = 0
        self.num_done = 0  # the same call gives the same bits, whatever the map was used for before
        if isinstance(operator, np.ndarray):
            _check_symmetric(torch.from_numpy(operator.astype(np.float64)), ASYMMETRY[kind])
        elif isinstance(operator, Tensor) and operator.layout == torch.strided:
            _check_symmetric(operator.detach(), ASYMMETRY[kind])

    @property
    def num_done(self) -> int:
        """As of `SymmetricOperator`; 0 for the maps of others."""
        return self.operator.num_done if isinstance(self.operator, SymmetricOperator) else 0

    @num_done.setter
    def num_done(self, num: int) -> None:
        if isinstance(self.operator, SymmetricOperator):
            self.operator.num_done = num

    @torch.no_grad()
    def product(self, vector: Tensor) -> Tensor:
        """H v, (p,) -> (p,); a map of others gets a copy, so that it may keep, return or overwrite what it gets."""
        self.num_products += 1
        if isinstance(self.operator, SymmetricOperator):
            with torch.enable_grad():
                return self.operator.product(vector)
        if self.takes_numpy:
            image = torch.from_numpy(np.array(self.operator @ vector.numpy().copy()))
        else:
            with torch.enable_grad():
                image = torch.as_tensor(self.operator @ vector.clone(), device=self.device).detach()
        if tuple(image.shape) != (self.size,):
            expected = f"({self.size},) = (p,)"
            raise ValueError(
                argument_message("H @ v", f"has shape {tuple(image.shape)}", expected, "Return one flat vector.")
            )
        return image.to(device=self.device, dtype=self.dtype, copy=not self.takes_numpy)  # of its next product's buffer

    @torch.no_grad()
    def products_of(self, rows: Tensor) -> Tensor:
        """H times each of rows (b, p), as rows; b products. At once where the map is known to take columns."""
        takes_columns = self.takes_numpy or isinstance(self.operator, Tensor | SymmetricOperator)
        if not takes_columns or len(rows) < WORTH_A_BLOCK:
            return torch.stack([self.product(row) for row in rows]) if len(rows) else rows.clone()
        self.num_products += len(rows)
        columns = rows.T.contiguous()
        if self.takes_numpy:
            images = torch.from_numpy(np.array(self.operator @ columns.numpy()))
        else:
            with torch.enable_grad():
                images = torch.as_tensor(self.operator @ columns, device=self.device).detach()
        return images.T.to(device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def errors_of(self, rows: Tensor, images: Tensor, enough: float) -> Tensor | None:
        """|images - H rows| of rows (b, p), the product being one in float64; None where H has no such form.

        Of a loss with many examples it is the rounding of the products of a few: the mean over all is rounded no more.

        Args:
            rows: (b, p) float64.
            images: (b, p) float64, what products in the map's own dtype say.
            enough: an error below it need not be known better than from above.

        Cost:
            2 b gradients in float64 for the Hessian of a smooth loss; b products in float64 where that is not enough,
            and for other matrices. A float64 copy of model and data, for a moment. Little of a few examples.
        """
        if self.dtype == torch.float64:
            return None
        errors: Tensor | None = None
        operator = self.operator
        ways = (True, False) if hasattr(operator, "exact_products") else (False,)
        if isinstance(operator, SymmetricOperator):
            operator = operator.excerpt()
        is_part = operator is not self.operator
        if is_part:
            with torch.enable_grad():
                images = torch.stack([operator.product(row) for row in rows.to(self.dtype)]).to(images)
            rows = rows.to(self.dtype).to(rows)
        for by_differences in ways:
            try:
                with torch.enable_grad():
                    exact = exact_products(operator, rows, by_differences=by_differences)
            except _NO_DOUBLE:
                return errors
            if exact is None:
                continue
            if not is_part:
                self.num_products += (2 if by_differences else 1) * len(rows)  # gradients count as products
            errors = torch.linalg.vector_norm(images - exact.to(images), dim=1)
            if float(errors.max()) <= enough:
                break
        return errors


def _check_symmetric(matrix: Tensor, limit: float) -> None:
    """Refuse a dense matrix with non-finite entries or with an antisymmetric part."""
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(
            argument_message("H", "holds NaN or infinite entries", "finite numbers", "Find where they come from.")
        )
    gap, largest = (float(entries.abs().max()) for entries in (matrix - matrix.mT, matrix))
    if gap > limit * largest:
        raise not_symmetric(f"differs from its transpose by {gap / largest:.1e} of its largest entry")
