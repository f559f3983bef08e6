"""Losses whose canyons or curvatures are known in closed form.

The post's cartoons are functions of two weights, one for each circuit: a weight of 0 is a circuit that works. Where
one of them is 0 the product x^2 y^2 vanishes, so each axis is a canyon floor on which one circuit alone does the job;
at the origin, where the canyons meet, both do. All are float64 and defined everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowhanging.curvature.subspace import Subspace
from lowhanging.errors import a_type, argument_message, check_count, check_finite, check_real, check_vector
from lowhanging.objective.objective import FunctionObjective
from lowhanging.objective.protocol import own_vector

Point = Tensor | np.ndarray | Sequence[float]


def flat_canyons(theta0: Point | None = None) -> FunctionObjective:
    """L = x^2 y^2: two canyons whose floors, the axes, are flat.

    The Hessian on an axis at distance r from the origin is 2 r^2 across and 0 along. Gradient flow conserves x^2 - y^2:
    it ends on an axis, at distance |x0^2 - y0^2|^(1/2), and stays there.

    Args:
        theta0: (2,) the point around which the loss is studied, by default the origin.

    Returns:
        FunctionObjective of theta = (x, y), float64.

    Raises:
        ValueError, TypeError: theta0 is not two finite numbers.

    Source:
        Vaintrob & Rimsky (2023), "The low-hanging fruit prior and sloped valleys in the loss landscape".
    """

    def function(theta: Tensor) -> Tensor:
        x, y = theta.unbind(-1)
        return (x * y).square()

    return _named("flat_canyons", function, _point("theta0", theta0, 2))


def sloped_canyons(slope: float = 0.1, theta0: Point | None = None) -> FunctionObjective:
    """L = x^2 y^2 + slope (1 - exp(-x^2 - y^2)): two canyons whose floors fall towards their junction.

    The floors are the axes; on them the gradient is 2 slope r exp(-r^2), towards the origin, the only minimum. The
    Hessian across is 2 r^2 + 2 slope exp(-r^2) on an axis, and 2 slope exp(-r^2) - r^2 on a diagonal, at distance r
    from the origin: beyond a short distance the diagonals are ridges between canyons.

    Args:
        slope: how much lower the junction is than the far ends, > 0; the post has 0.1.
        theta0: (2,) the point around which the loss is studied, by default the origin.

    Returns:
        FunctionObjective of theta = (x, y), float64.

    Raises:
        ValueError, TypeError: an argument out of range.

    Source:
        Vaintrob & Rimsky (2023).
    """
    remedy = "The post has 0.1; without a slope it is toys.flat_canyons()."
    slope = check_real("slope", slope, minimum=0.0, exclusive=True, remedy=remedy)

    def function(theta: Tensor) -> Tensor:
        x, y = theta.unbind(-1)
        return (x * y).square() - slope * torch.expm1(-x.square() - y.square())

    return _named(f"sloped_canyons(slope={slope:g})", function, _point("theta0", theta0, 2))


def canyon_figure(theta0: Point | None = None) -> FunctionObjective:
    """L = -exp((2 - x^2 y^2) / 2) - exp(-x^2 - y^2) / 2: the surface of the post's three-dimensional figure.

    Canyons along the axes in a plateau at 0, of depth e, with a dip at the origin, where the loss is -(e + 1/2). On an
    axis at distance r from it the Hessian is e r^2 + exp(-r^2) across and exp(-r^2) (1 - 2 r^2) along.

    Args:
        theta0: (2,) the point around which the loss is studied, by default the origin.

    Returns:
        FunctionObjective of theta = (x, y), float64.

    Raises:
        ValueError, TypeError: theta0 is not two finite numbers.

    Source:
        Vaintrob & Rimsky (2023), the figure of two sloped canyons.
    """

    def function(theta: Tensor) -> Tensor:
        x, y = theta.unbind(-1)
        return -torch.exp(1 - (x * y).square() / 2) - torch.exp(-x.square() - y.square()) / 2

    return _named("canyon_figure", function, _point("theta0", theta0, 2))


def quadratic(eigenvalues: Point, *, seed: int | None = None, theta0: Point | None = None) -> FunctionObjective:
    """L = theta^T A theta / 2 with a given spectrum: A = Q^T diag(eigenvalues) Q.

    Args:
        eigenvalues: (p,) any finite numbers, of any sign and order.
        seed: of Q, a uniformly random (Haar) rotation, by a generator of its own; None: Q is the identity.
        theta0: (p,) the point around which the loss is studied, by default the origin, where the gradient vanishes.

    Returns:
        FunctionObjective, float64; row i of Q is the eigenvector of eigenvalues[i].

    Raises:
        ValueError, TypeError: an argument out of range.

    Cost:
        with a seed, one QR factorization, p^3, and Q is kept: 8 p^2 bytes.
    """
    remedy = "Pass one finite number per dimension, such as [4.0, 1.0, 0.0]."
    values = as_vector("eigenvalues", eigenvalues, remedy)
    num_params = len(values)
    rotation = None if seed is None else _random_rows(num_params, num_params, seed)

    def function(theta: Tensor) -> Tensor:
        coordinates = theta if rotation is None else rotation @ theta
        return 0.5 * (values * coordinates.square()).sum()

    return _named("quadratic", function, _point("theta0", theta0, num_params))


def embedded(
    loss: FunctionObjective, num_params: int, *, seed: int = 0, curvature: float = 0.0
) -> tuple[FunctionObjective, Subspace]:
    """A small loss inside a random subspace of a large space: loss(R theta) + curvature/2 |theta - R^T R theta|^2.

    Inside the subspace everything is as before: at R^T w the gradient is R^T times the gradient at w, and the Hessian
    is R^T H R + curvature (I - R^T R).

    Args:
        loss: a FunctionObjective of q weights.
        num_params: p >= q.
        seed: of R, q uniformly random orthonormal rows, by a generator of its own.
        curvature: of every direction outside, in units of loss per squared unit of theta; 0: flat.

    Returns:
        The loss, float64, around R^T loss.theta0, and the Subspace whose basis is R (q, p).

    Raises:
        ValueError, TypeError: an argument out of range, or another kind of objective.

    Cost:
        one QR factorization, p q^2; per evaluation 2 p q multiplications more.
    """
    if not isinstance(loss, FunctionObjective):
        received, expected = f"is {a_type(loss)}", "a FunctionObjective"
        raise TypeError(
            argument_message("loss", received, expected, "Pass a loss of lh.toys, or lh.FunctionObjective(...).")
        )
    small = loss.num_params
    check_count("num_params", num_params, minimum=small, remedy=f"{loss!r} needs {small} dimensions.")
    curvature = check_real("curvature", curvature, remedy="It is that of the directions outside; 0 by default.")
    inner, rows = loss.in_double(), _random_rows(small, num_params, seed)

    def function(theta: Tensor) -> Tensor:
        coordinates = rows @ theta  # (q, p) @ (p,) -> (q,)
        outside = theta - rows.T @ coordinates
        return inner(coordinates) + 0.5 * curvature * outside.square().sum()

    theta0 = rows.T @ loss.theta0.to(rows)
    return _named(f"{_name(inner)} in {num_params:,} dimensions", function, theta0), Subspace(rows)


def copies(loss: FunctionObjective, num_copies: int) -> FunctionObjective:
    """The sum of one loss at n = `num_copies` points: sum over i of loss(theta_i), theta_i the rows of theta (n, q).

    The terms share no weight, so descent on the sum is descent on each: one `gradient_path` follows n starts, for
    little more than the cost of one.

    Args:
        loss: a FunctionObjective of q weights whose function `torch.vmap` can follow.
        num_copies: how many copies.

    Returns:
        FunctionObjective of num_copies * q weights, float64, each copy around loss.theta0.

    Raises:
        ValueError, TypeError: an argument out of range, or another kind of objective.
    """
    if not isinstance(loss, FunctionObjective):
        received, expected = f"is {a_type(loss)}", "a FunctionObjective"
        raise TypeError(
            argument_message("loss", received, expected, "Pass a loss of lh.toys, or lh.FunctionObjective(...).")
        )
    check_count("num_copies", num_copies, remedy="It is the number of starts.")
    inner, size = loss.in_double(), loss.num_params
    batched = torch.vmap(inner)

    def function(theta: Tensor) -> Tensor:
        values: Tensor = batched(theta.reshape(num_copies, size))  # (num_copies,)
        return values.sum()

    return _named(f"{num_copies:,} copies of {_name(inner)}", function, loss.theta0.double().repeat(num_copies))


def _named(name: str, function: Callable[[Tensor], Tensor], theta0: Tensor) -> FunctionObjective:
    function.__name__ = name  # what the objective's repr says
    return FunctionObjective(function, theta0)


def _name(function: Callable[[Tensor], Tensor]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _random_rows(num: int, size: int, seed: int) -> Tensor:
    """(num, size) orthonormal rows, uniformly distributed."""
    seed = check_count("seed", seed, minimum=0, remedy="Any non-negative integer.")
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(size, num, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)  # (size, num), (num, num)
    # With the signs of r's diagonal taken out, q doesn't depend on the factorization's conventions (Mezzadri 2007).
    return own_vector((q * torch.sign(r.diagonal())).T.contiguous())


def _point(argument: str, value: Point | None, size: int) -> Tensor:
    """`value` as a float64 vector of a known length; None: the origin."""
    if value is None:
        return torch.zeros(size, dtype=torch.float64)
    remedy = f"Pass {size} finite numbers, or leave it out for the origin."
    return check_vector(argument, as_vector(argument, value, remedy), size, owner="this loss", remedy=remedy)


def as_vector(argument: str, value: Any, remedy: str) -> Tensor:
    """`value` as a finite, non-empty float64 vector."""
    try:
        vector = own_vector(torch.as_tensor(value, dtype=torch.float64).cpu())
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(argument_message(argument, f"is {value!r}", "a vector of real numbers", remedy)) from error
    if vector.ndim != 1 or not vector.numel():
        raise ValueError(
            argument_message(argument, f"has shape {tuple(vector.shape)}", "a vector of shape (p,)", remedy)
        )
    check_finite(argument, vector, remedy=remedy)
    return vector
