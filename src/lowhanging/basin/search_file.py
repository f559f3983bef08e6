"""How does a search for eigenpairs go on after an interruption, to the same answer?

What the next step depends on is small beside what it costs: the rows, their products, the coefficients, the state of
the generator. It is written between steps, whole or not at all, as often as a tenth of the time allows; a run that was
killed repeats the few steps since. The file of another map is found out by one product.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lowhanging.basin.lanczos import KrylovSpace
from lowhanging.basin.ritz_pairs import is_of_this_map
from lowhanging.resume_file import ResumeFile

STRIDE = 4  # products between two writes, at least
_ARRAYS = ("rows", "coefficients", "generator", "counts", "is_tridiagonal", "largest_image")


class SearchFile:
    """The file of one search.

    Args:
        resume: its path; made at the first write.
        identity: what else determines the answer, in words; the file of a search with another one is refused.
    """

    def __init__(self, resume: str | Path, identity: Mapping[str, str]):
        self._file = ResumeFile(resume, identity, kind="a search for eigenpairs", run="search")
        self._products = 0  # at the last write

    def read(self, space: KrylovSpace) -> dict[str, Any] | None:
        """Fill the space with what the file holds, and return the numbers saved beside it; None without a file."""
        stored = self._file.read()
        if stored is None:
            return None
        arrays, numbers = stored
        try:
            missing = {*_ARRAYS} - set(arrays)
            if missing:
                raise KeyError(*missing)
            _restore(space, arrays)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            raise self._file.damaged() from error
        numbers |= {name: arrays[name] for name in ("probed",) if name in arrays}
        if space.size and not is_of_this_map(space, float(numbers["noise"])):
            self._file.refuse(["H"])
        return numbers

    def write_if_due(self, space: KrylovSpace, numbers: Mapping[str, Any], *, now: bool = False) -> None:
        """Write the space and some numbers and arrays, unless that was done a moment ago."""
        products = space.operator.num_products
        if not now and (products < self._products + STRIDE or not self._file.is_due):
            return
        arrays = _state(space)
        arrays |= {name: value for name, value in numbers.items() if isinstance(value, np.ndarray)}
        plain = {name: value for name, value in numbers.items() if not isinstance(value, np.ndarray)}
        self._file.write(arrays, plain)
        self._products = products


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
