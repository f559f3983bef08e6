"""How does a search for eigenpairs go on after an interruption, to the same answer?

What the next step depends on is small beside what it costs: the rows, their products, the coefficients, the state of
the generator. It is written between steps, whole or not at all, as often as a tenth of the time allows; a run that was
killed repeats the few steps since.

The file of another map is found out by what identifies a map, where something does (the numbers of a matrix, theta and
parameters of a loss), and by three new products: two that mix everything which the basis holds, and one with a random
vector, for what it does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowhanging.basin.lanczos import KrylovSpace
from lowhanging.basin.operators import LossMatrix
from lowhanging.basin.ritz_pairs import disagreement, kept_images, mixtures
from lowhanging.basin.symmetric_operator import OperatorSum
from lowhanging.results import digest
from lowhanging.resume_file import ResumeFile

STRIDE = 4  # products between two writes, at least
_ARRAYS = ("rows", "coefficients", "generator", "counts", "is_tridiagonal", "largest_image", "random_image")


class SearchFile:
    """The file of one search.

    Args:
        resume: its path; made at the first write.
        identity: what else determines the answer, in words; the file of a search with another one is refused.
    """

    def __init__(self, resume: str | Path, identity: Mapping[str, str]):
        self._file = ResumeFile(resume, identity, kind="a search for eigenpairs", run="search")
        self._products = 0  # at the last write
        self._random_image: Tensor | None = None  # (p,) the map times `_random_row`

    def read(self, space: KrylovSpace, k: int, which: str) -> dict[str, Any] | None:
        """Fill the space with what the file holds, and return the numbers saved beside it; None without a file.

        Costs one product without a file, else three.
        """
        stored = self._file.read()
        if stored is None:
            self._random_image = space.operator.product(_random_row(space))
            return None
        arrays, numbers = stored
        try:
            missing = {*_ARRAYS} - set(arrays)
            if missing:
                raise KeyError(*missing)
            _restore(space, arrays)
            self._random_image = torch.from_numpy(arrays["random_image"]).to(_random_row(space))
            if self._random_image.shape != (space.operator.size,):
                raise ValueError(f"random_image {tuple(self._random_image.shape)}")
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            raise self._file.damaged() from error
        numbers |= {name: arrays[name] for name in ("probed",) if name in arrays}
        rows, images = _random_row(space).double()[None], self._random_image.double()[None]
        if space.size:
            mixed = kept_images(space, mixtures(space.ritz(which), k))
            rows, images = torch.cat([mixed[0], rows]), torch.cat([mixed[1], images])
        if disagreement(space, rows, images, float(numbers["noise"])) is None:
            self.refuse()
        return numbers

    def refuse(self) -> NoReturn:
        """Raise the error for the file of another map."""
        self._file.refuse(["H"])

    def write_if_due(self, space: KrylovSpace, numbers: Mapping[str, Any], *, now: bool = False) -> None:
        """Write the space and some numbers and arrays, unless that was done a moment ago."""
        products = space.operator.num_products
        if not now and (products < self._products + STRIDE or not self._file.is_due):
            return
        assert self._random_image is not None  # `read` comes first
        arrays = _state(space) | {"random_image": self._random_image.cpu().numpy()}
        arrays |= {name: value for name, value in numbers.items() if isinstance(value, np.ndarray)}
        plain = {name: value for name, value in numbers.items() if not isinstance(value, np.ndarray)}
        self._file.write(arrays, plain)
        self._products = products


def identity_of(H: Any) -> dict[str, str]:
    """What can be said of a map without a product: the numbers of a matrix, the point and the parameters of a loss.

    The data and the loss itself are left to the products: an order of the examples that was drawn anew, or a model that
    was made anew, is the same map.
    """
    if isinstance(H, LossMatrix):
        return {"theta": digest(H.theta), "kind of matrix": f"{H.kind} {H.parameters}"}
    if isinstance(H, OperatorSum):
        parts = [{"factor": repr(factor), **identity_of(part)} for factor, part in H.terms]
        return {"H": repr(parts)}
    if isinstance(H, Tensor):
        plain = H.detach()
        if plain.layout != torch.strided:
            coo = plain.to_sparse().coalesce()
            return {"H": digest(coo.indices(), coo.values())}
        return {"H": digest(plain)}
    if isinstance(H, np.ndarray):
        return {"H": digest(torch.from_numpy(np.array(H)))}
    if scipy.sparse.issparse(H):
        csr = H.tocsr().copy()
        csr.sum_duplicates()
        return {"H": digest(*(torch.from_numpy(part) for part in (csr.indptr, csr.indices, csr.data)))}
    return {"H": ""}


def _random_row(space: KrylovSpace) -> Tensor:
    """A unit vector (p,) that is the same for every search, and lies in no basis."""
    generator = torch.Generator().manual_seed(2**31 - 1)
    noise = torch.randn(space.operator.size, generator=generator, dtype=torch.float64, device="cpu")
    row: Tensor = (noise / noise.norm()).to(space.rows)
    return row


def _state(space: KrylovSpace) -> dict[str, NDArray[Any]]:
    """All that the next step depends on."""
    end = space.size + space.num_open
    arrays = {
        "rows": space.rows[:end].cpu().numpy(),
        "coefficients": space.coefficients[:end, : space.size],
        "generator": space.generator.get_state().numpy(),
        "counts": np.array([space.size, space.num_open, len(space.rows), space.num_steps, space.num_restarts]),
        "is_tridiagonal": np.array(space.is_tridiagonal),
        "largest_image": np.array(space.largest_image),
    }
    return arrays if space.products is None else arrays | {"products": space.products[: space.size].cpu().numpy()}


def _restore(space: KrylovSpace, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Make the space what it was when `_state` was taken of it."""
    space.size, space.num_open, capacity, space.num_steps, space.num_restarts = map(int, arrays["counts"])
    space.is_tridiagonal, space.largest_image = bool(arrays["is_tridiagonal"]), float(arrays["largest_image"])
    end = space.size + space.num_open
    space.rows = space.rows.new_empty((capacity, space.operator.size))
    space.rows[:end] = torch.from_numpy(arrays["rows"]).to(space.rows)
    space.products = torch.empty_like(space.rows) if "products" in arrays else None
    if space.products is not None:
        space.products[: space.size] = torch.from_numpy(arrays["products"]).to(space.rows)
    space.coefficients = np.zeros((capacity, capacity))
    space.coefficients[:end, : space.size] = arrays["coefficients"]
    space.generator.set_state(torch.from_numpy(arrays["generator"]))
