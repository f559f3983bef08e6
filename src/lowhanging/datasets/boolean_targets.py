r"""Functions of signs that are sums of products, each of which leaps a few coordinates above those before it.

A *monomial* is the product of some coordinates of x in {-1, 1}^d. The *leap* of a sum of monomials is the least, over
all orders in which they can be learned, of the largest number of coordinates that a monomial adds to those before it
(Abbe, Boix-Adserà & Misiakiewicz 2023). x1 + x1 x2 + x1 x2 x3 is a staircase of leap 1; x1 x2 x3 alone has leap 3.

The leap is computed from the monomials themselves, not from how they were made. Taking next whichever monomial adds
the fewest coordinates is optimal: where any order is left with some monomials, its first one of these adds no more to
the coordinates that are known by now than it did in its own place, where fewer were known.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowhanging.errors import a_type, argument_message, check_count


@dataclass(frozen=True, repr=False)
class BooleanTarget:
    r"""A sum of monomials, f(x) = \sum_S \prod_{i in S} x_i for x uniform in {-1, 1}^d.

    `boolean_targets` makes staircases; any other sum can be written down: `BooleanTarget(((0,), (0, 1, 2)), 30)`. Its
    mean is 0 and its variance the number of its monomials, as these are independent of each other in pairs.

    Attributes:
        monomials: columns of each, all monomials different.
        dimension: d, number of columns.
    """

    monomials: tuple[tuple[int, ...], ...]
    dimension: int

    def __post_init__(self) -> None:
        remedy = "Pass the columns of each, counted from 0, such as ((0,), (0, 1))."
        object.__setattr__(self, "monomials", _checked_monomials(self.monomials, remedy))
        used = [column for monomial in self.monomials for column in monomial]
        check_count("dimension", self.dimension, minimum=max(used) + 1, remedy="Pass a number above every column.")

    def __repr__(self) -> str:
        terms = " + ".join(" ".join(f"x{column + 1}" for column in monomial) for monomial in self.monomials)
        return f"BooleanTarget({terms}; dimension={self.dimension}, leap={self.leap}, degree={self.degree})"

    @property
    def leap(self) -> int:
        """That of the monomials, by `leap_of`."""
        return leap_of(self.monomials)

    @property
    def degree(self) -> int:
        """Coordinates of the largest monomial."""
        return max(map(len, self.monomials))

    @property
    def variance(self) -> float:
        """Of f(x), which is the loss (mean squared error) of the best constant."""
        return float(len(self.monomials))

    def __call__(self, inputs: Tensor) -> Tensor:
        """The value of each row: (..., dimension) signs -> (...), in the dtype of the inputs."""
        if not isinstance(inputs, Tensor) or inputs.ndim < 1 or inputs.shape[-1] != self.dimension:
            received = f"has shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else f"is {a_type(inputs)}"
            expected = f"a tensor (..., {self.dimension}) = (..., dimension)"
            raise ValueError(argument_message("inputs", received, expected, "Pass rows of signs, -1 and 1."))
        total = torch.zeros_like(inputs[..., 0])
        for monomial in self.monomials:
            total += inputs[..., list(monomial)].prod(-1)
        return total

    def sample(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of uniform signs with their values.

        Args:
            num: rows.
            generator: of the signs, on the CPU; the global random states are not touched.

        Returns:
            inputs (num, dimension) float32, -1 or 1, and targets (num,) float32.
        """
        num = check_count("num", num, remedy="Pass the number of rows.")
        if not isinstance(generator, torch.Generator):
            remedy = "Pass torch.Generator().manual_seed(0)."
            raise TypeError(argument_message("generator", f"is {a_type(generator)}", "a torch.Generator", remedy))
        inputs = signs(num, self.dimension, generator=generator)
        return inputs, self(inputs)


def boolean_targets(dimension: int, *, leap: int, degree: int) -> BooleanTarget:
    """A staircase: a chain of monomials, each the one before with `leap` coordinates more.

    The monomials are the products of the first leap, 2 leap, 3 leap ... coordinates, and the last one that of the first
    `degree`, which may add fewer. With degree 3:

        leap 1: x1 + x1 x2 + x1 x2 x3,    leap 2: x1 x2 + x1 x2 x3,    leap 3: x1 x2 x3.

    Args:
        dimension: d, number of signs in a row, at least `degree`. All but the first `degree` say nothing.
        leap: coordinates that each monomial adds.
        degree: coordinates of the last monomial, at least `leap`.

    Returns:
        BooleanTarget: `target(inputs)`, `target.sample(num, generator)`, `target.leap`.

    Raises:
        ValueError, TypeError: a number below 1, a leap above the degree, a degree above the dimension.

    Example:
        >>> boolean_targets(30, leap=2, degree=5)
        BooleanTarget(x1 x2 + x1 x2 x3 x4 + x1 x2 x3 x4 x5; dimension=30, leap=2, degree=5)

    Source:
        Abbe, Boix-Adserà & Misiakiewicz (2023), "SGD learning on neural networks: leap complexity and saddle-to-saddle
        dynamics".
    """
    degree = check_count("degree", degree, remedy="Pass the coordinates of the last monomial, such as 3.")
    remedy = f"The last monomial has {degree} coordinates: a monomial can't add more."
    leap = check_count("leap", leap, maximum=degree, remedy=remedy)
    remedy = f"The target reads {degree} coordinates: pass as many or more."
    dimension = check_count("dimension", dimension, minimum=degree, remedy=remedy)
    ends = [*range(leap, degree, leap), degree]
    return BooleanTarget(tuple(tuple(range(end)) for end in ends), dimension)


def leap_of(monomials: Iterable[Iterable[int]]) -> int:
    r"""Leap of a sum of monomials: how many coordinates have to be found at once, at the least.

        leap(S_1, ..., S_m) = min over orders of max over i of |S_i \ (S_1 u ... u S_(i-1))|.

    Args:
        monomials: columns of each, all monomials different.

    Returns:
        the leap, exactly: the greedy order is optimal.

    Raises:
        ValueError, TypeError: no monomial, one twice, a column twice in one.

    Cost:
        m^2 set differences.

    Example:
        >>> leap_of([(0, 1, 2), (0,), (0, 1)]), leap_of([(0,), (0, 1, 2)]), leap_of([(0, 1, 2)])
        (1, 2, 3)
    """
    left = [set(monomial) for monomial in _checked_monomials(monomials, "Pass the columns of each, as [(0,), (0, 1)].")]
    known: set[int] = set()
    largest = 0
    while left:
        nearest = min(left, key=lambda monomial: len(monomial - known))
        largest = max(largest, len(nearest - known))
        known |= nearest
        left.remove(nearest)
    return largest


def signs(*shape: int, generator: torch.Generator) -> Tensor:
    """Uniform signs, -1 or 1, float32, on the CPU."""
    bits = torch.randint(2, shape, generator=generator, device="cpu")
    return bits.to(torch.float32).mul_(2).sub_(1)


def _checked_monomials(monomials: Any, remedy: str) -> tuple[tuple[int, ...], ...]:
    """The columns of each monomial, ascending."""
    expected = "different monomials, each a few different columns"
    if not isinstance(monomials, Iterable) or isinstance(monomials, str):
        raise TypeError(argument_message("monomials", f"is {a_type(monomials)}", expected, remedy))
    given = [tuple(monomial) if isinstance(monomial, Iterable) else (monomial,) for monomial in monomials]
    for column in itertools.chain.from_iterable(given):
        check_count("a column of monomials", column, minimum=0, remedy=remedy)
    found = tuple(tuple(sorted(map(int, monomial))) for monomial in given)
    if len(set(found)) < len(found) or not found or any(len(set(each)) < len(each) or not each for each in found):
        raise ValueError(argument_message("monomials", f"is {found}", expected, remedy))
    return found
