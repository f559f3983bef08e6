"""Directions that raise one loss and keep another, and a report of what a direction is to every loss.

Two methods. "project" is the post's: an eigenvector of the *ablated* loss's Hessian loses what the *preserved* loss
notices to second order, the span of its top k eigenvectors. "ratio" asks for the most curvature of the ablated loss per
curvature of the preserved one. The roles are always named, `preserve=` and `ablate=`, because "the number direction"
could be either. A loss on single cues may explode because the network breaks on images that lack the other cue: take
losses whose other cue is resampled, not blanked; and the report takes conflict inputs, and says which cue the
predictions follow there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lowhanging.curvature.eigenpairs import DEFAULT_TOL, Eigenpairs, OnFailure, top_eigs
from lowhanging.curvature.generalized import generalized_eigs
from lowhanging.curvature.operators import gauss_newton, hessian, plain_arithmetic
from lowhanging.curvature.subspace import Subspace
from lowhanging.errors import (
    NotConvergedError,
    a_type,
    argument_message,
    check_choice,
    check_count,
    check_real,
    check_vector,
    door,
    naming,
    warn,
)
from lowhanging.io import Saved
from lowhanging.objective.protocol import Kind, Loss, as_losses, check_loss, check_same_buffers, common_center
from lowhanging.steering.cues import ConflictControl, shares_text
from lowhanging.tables import Columns, NotebookTable

# Below this share of its length, what is left of v after the rejection is mostly the error of the eigenvectors.
_SMALLEST_REMAINDER = 1e-3
_SHIFT = 0.01  # of the largest eigenvalue: below that, curvature of the preserved loss counts as none

Method = Literal["project", "ratio"]


@door
@plain_arithmetic()
def steering_direction(
    *,
    preserve: Loss,
    ablate: Loss,
    method: Method = "project",
    k: int = 50,
    index: int = 0,
    preserve_pairs: Eigenpairs | None = None,
    ablate_pairs: Eigenpairs | None = None,
    metric: Kind = "hessian",
    shift: float | None = None,
    tol: float | None = None,
    progress: bool | None = None,
) -> Tensor:
    r"""Direction that raises the `ablate` loss while the `preserve` loss stays flat.

    "project": u = (I - V V^T) v / |.|, V the top `k` eigenvectors of the preserved loss's Hessian, v eigenvector number
    `index` of the ablated one's. Only the quadratic part of the preserved loss is protected: far out it rises again.

    "ratio": u maximises (u . H_ablate u) / (u . (M + c I) u) over all u orthogonal to the preserved loss's gradient, a
    generalized eigenproblem. M is the preserved loss's Hessian, and c = max(0, -smallest eigenvalue) + 1 % of the
    largest in magnitude makes M + c I positive definite; or, with `metric="gauss_newton"`, M is its Gauss-Newton matrix
    and c 1 % of the largest eigenvalue. The sign is that of the ablated loss's slope. No k has to be guessed.
    Far from a minimum of the preserved loss its most negative curvature costs least, and draws u to it: "gauss_newton"
    has none.

    All at the common theta0. Which losses are given matters more than the method: with the other cue *blanked*, a loss
    on one cue is raised most cheaply by breaking the kept circuit's answer to black images; with the other cue
    *resampled* (`views.number_resampled`, `lh.datasets.resample`) the direction lies in the circuit to be ablated.

    Args:
        preserve: the loss that must not change.
        ablate: the loss that should rise, around the same theta0.
        method: "project" or "ratio".
        k: eigenvectors of the preserved Hessian, 1 <= k < num_params: removed by "project"; for "ratio" they only
            shorten the search.
        index: which eigenvector of the ablated Hessian, or which generalized one, 0 = largest eigenvalue.
        preserve_pairs: at least k top eigenpairs of `preserve`'s Hessian, if they are known already.
        ablate_pairs: more than `index` top eigenpairs of `ablate`, if they are known already; "ratio" has no use of
            them.
        metric: of "ratio": "hessian" or "gauss_newton", which has no use of `preserve_pairs`.
        shift: c of "ratio" instead of the one above.
        tol: residual of the eigenpairs, relative to the largest eigenvalue; by default 1e-4, or what float32 allows, as
            in `top_eigs`.
        progress: bars; by default they appear when a computation takes more than two seconds.

    Returns:
        (p,) unit vector on the device and in the dtype of theta0. "project": step +1 raises the ablated loss more than
        step -1; "ratio": the ablated loss rises towards positive steps at theta0 (where it has no slope, as before).

    Raises:
        NotConvergedError: an eigenproblem missed its tolerance; the message names its loss, `.result` is what it found.
        ValueError: the losses differ in theta0, given pairs are too few, v lies in the span of V, or the shift leaves
            M + c I indefinite.

    Cost:
        "project": two eigenproblems (about 2k + 60 products each), or two products to check pairs that are given; two
        evaluations. "ratio": one of them, one for the smallest eigenvalue, and 20 to 60 products with each matrix.

    Source:
        "project": Vaintrob & Rimsky (2023), "The low-hanging fruit prior and sloped valleys in the loss landscape".
    """
    center = common_center({"preserve": check_loss("preserve", preserve), "ablate": check_loss("ablate", ablate)})
    _check_method(method, metric, shift)
    remedy = "0 is the largest eigenvalue's eigenvector."
    check_count("index", index, minimum=0, maximum=center.numel() - 1, remedy=remedy)
    if method == "ratio":
        rows = _ratio_rows(preserve, ablate, k, index + 1, preserve_pairs, metric, shift, tol, progress)
        return _uphill(rows[index], ablate, center)
    kept = _span(preserve, k, preserve_pairs, "preserve_pairs", tol, progress)
    pairs = _pairs(ablate, index + 1, ablate_pairs, "ablate_pairs", tol, progress)
    v = pairs.vectors[index].double()
    u = kept.reject(v)
    if float(u.norm()) < _SMALLEST_REMAINDER * float(v.norm()):
        received = f"leaves {float(u.norm()):.1e} of eigenvector {index} of the ablated Hessian"
        expected = "a direction that the preserved loss does not see"
        remedy = "Lower k or take another index: the two losses share this direction."
        raise ValueError(argument_message("preserve", received, expected, remedy))
    return _oriented(u / u.norm(), ablate, center)


@door
@plain_arithmetic()
def steering_subspace(
    *,
    preserve: Loss,
    ablate: Loss,
    method: Method = "project",
    k: int = 50,
    num_directions: int = 5,
    preserve_pairs: Eigenpairs | None = None,
    ablate_pairs: Eigenpairs | None = None,
    metric: Kind = "hessian",
    shift: float | None = None,
    tol: float | None = None,
    progress: bool | None = None,
) -> Subspace:
    r"""The vector space of directions that keep one circuit and ablate the other.

    "project": the span of (I - V V^T) v_1 ... v_n; "ratio": the span of the first n generalized eigenvectors (both as
    in `steering_direction`). The basis is the eigenbasis of the ablated Hessian restricted to that space, largest
    curvature first, so row 0 is the direction *in the space* along which the ablated loss curves most (the post's
    direction is one vector of it).

    Args:
        preserve: as in `steering_direction`.
        ablate: as in `steering_direction`.
        method: "project" or "ratio".
        k: eigenvectors of the preserved Hessian, 1 <= k, k + num_directions <= num_params.
        num_directions: n, dimension of the space.
        preserve_pairs: as in `steering_direction`.
        ablate_pairs: at least num_directions top eigenpairs of `ablate`, if they are known already.
        metric: as in `steering_direction`.
        shift: as in `steering_direction`.
        tol: as in `steering_direction`.
        progress: as in `steering_direction`.

    Returns:
        Subspace: `.basis` (num_directions, p), orthonormal rows, on the device of theta0; those of "project" are
        orthogonal to V, those of "ratio" to the preserved loss's gradient; signs as in `steering_direction`.

    Raises:
        NotConvergedError: an eigenproblem missed its tolerance; the message names its loss.
        ValueError: as of `steering_direction`.

    Cost:
        as of `steering_direction`, num_directions products, twice as many evaluations; "ratio" about 20 products with
        each matrix for each further direction.

    Source:
        Vaintrob & Rimsky (2023).
    """
    center = common_center({"preserve": check_loss("preserve", preserve), "ablate": check_loss("ablate", ablate)})
    _check_method(method, metric, shift)
    remedy = "k + num_directions must fit into num_params dimensions."
    num = check_count("num_directions", num_directions, maximum=center.numel() - 1, remedy=remedy)
    if method == "ratio":
        rows = _ratio_rows(preserve, ablate, k, num, preserve_pairs, metric, shift, tol, progress)
    else:
        kept = _span(preserve, k, preserve_pairs, "preserve_pairs", tol, progress)
        pairs = _pairs(ablate, num, ablate_pairs, "ablate_pairs", tol, progress)
        rows = kept.reject(pairs.vectors[:num].double())
        smallest = float(torch.linalg.svdvals(rows)[-1])
        if smallest < _SMALLEST_REMAINDER:
            received = f"leaves fewer than {num} independent directions (smallest singular value {smallest:.1e})"
            expected = f"num_directions = {num} that it does not see"
            raise ValueError(argument_message("preserve", received, expected, "Lower num_directions or k."))
    basis = Subspace.span(rows).basis.double()
    H = hessian(ablate)
    products = torch.stack([(H @ row.to(center)).cpu().double() for row in basis])  # (n, p)
    restricted = basis @ products.T  # (n, n)
    _, rotation = torch.linalg.eigh((restricted + restricted.T) / 2)
    sign = _uphill if method == "ratio" else _oriented
    return Subspace(torch.stack([sign(row, ablate, center) for row in rotation.flip(1).T @ basis]))


@dataclass(frozen=True, eq=False, repr=False)
class SteeringReport(Saved, NotebookTable):
    """What one direction is to every loss."""

    direction: Tensor  # (p,) unit
    quotients: dict[str, float]  # name -> u.Hu, the Rayleigh quotient: curvature of that loss along u
    # name -> 1 + number of the k known eigenvalues above the quotient; k + 1: below all; 0: not known, see `failures`
    positions: dict[str, int]
    eigenvalues: dict[str, Tensor]  # name -> (k,) top eigenvalues, descending
    overlaps: dict[str, Tensor]  # name -> (k,) squared cosines with the top eigenvectors
    step: float | None = None  # theta0 + step * direction is where cue shares are compared; None without a control
    cue_shares: dict[str, dict[str, float]] = field(default_factory=dict)  # "before", "after" -> cue -> its share
    tols: dict[str, float] = field(default_factory=dict)  # name -> residuals of its eigenpairs over the largest value
    failures: dict[str, str] = field(default_factory=dict)  # name -> why it has no eigenpairs that hold

    def columns(self) -> Columns:
        """One row for each loss, as in the printed table."""
        names = list(self.quotients)
        return {
            "loss": names,
            "curvature": [self.quotients[name] for name in names],
            "position": [self.position_text(name) for name in names],
            "largest overlap": [float(self.overlaps[name].max()) for name in names],
            "within top k": [float(self.overlaps[name].sum()) for name in names],
        }

    def __repr__(self) -> str:
        parts = (f"{name} {self.quotients[name]:.3g} (position {self.position_text(name)})" for name in self.quotients)
        shares = ""
        if self.cue_shares:
            moves = shares_text(self.cue_shares["before"], self.cue_shares["after"])
            shares = f"; cue shares on conflict inputs from theta0 to step {self.step:g}: {moves}"
        return f"SteeringReport(curvature: {', '.join(parts)}{shares})"

    def __str__(self) -> str:
        lines = [f"{'loss':>12} {'curvature':>10} {'position':>9} {'largest overlap':>18} {'within top k':>13}"]
        for name, quotient in self.quotients.items():
            overlap = self.overlaps[name]
            squares = f"{float(overlap.max()):>18.3f} {float(overlap.sum()):>13.3f}"
            lines.append(f"{name:>12} {quotient:>10.3g} {self.position_text(name):>9} {squares}")
        if self.cue_shares:
            lines.append(f"{'cue shares':>12} " + " ".join(f"{cue:>10}" for cue in self.cue_shares["before"]))
            for where, shares in zip(("theta0", f"step {self.step:g}"), self.cue_shares.values(), strict=True):
                lines.append(f"{where:>12} " + " ".join(f"{100 * share:>8.1f} %" for share in shares.values()))
        if at_floor := [f"{name} {tol:.0e}" for name, tol in self.tols.items() if tol > DEFAULT_TOL]:
            lines.append(f"eigenpairs to a tol coarser than {DEFAULT_TOL:.0e}: {', '.join(at_floor)}")
        lines += [f"{name}: {reason}" for name, reason in self.failures.items()]
        return "\n".join(lines)

    def position_text(self, name: str) -> str:
        """The position as it may be quoted: "7", "> 50" where it is below all known eigenvalues, "?" if not known."""
        num = len(self.eigenvalues[name])
        if self.positions[name] == 0:
            return "?"
        return f"> {num}" if self.positions[name] > num else str(self.positions[name])


@door
@plain_arithmetic()
def steering_report(
    direction: Tensor,
    losses: Loss | Mapping[str, Loss],
    *,
    k: int = 50,
    pairs: Mapping[str, Eigenpairs] | None = None,
    conflict: ConflictControl | None = None,
    step: float | None = None,
    tol: float | None = None,
    on_failure: OnFailure = "raise",
    progress: bool | None = None,
) -> SteeringReport:
    r"""What a direction is to every named loss.

    For u = direction / |direction| and each loss's Hessian H with top eigenpairs (lambda_j, q_j): the Rayleigh quotient
    u.Hu, its position among the lambda_j, and the squared overlaps (u.q_j)^2, which sum to 1 at most.
    With a conflict control: the shares of predictions that follow each cue at theta0 and at theta0 + step u. A loss on
    single cues that explodes while the shares stay is broken there, not shown to be ablated; `conflict.shift` gives an
    interval.

    Args:
        direction: (p,), any length but zero.
        losses: name -> loss, all around one theta0; or one loss.
        k: eigenpairs per loss.
        pairs: name -> top eigenpairs (which="LA") that are known already; all of them are used.
        conflict: inputs whose cues have different labels, see `ConflictControl`; of the losses' model.
        step: in units of u, with `conflict` only; 2 by default.
        tol: residual of the eigenpairs, relative to the largest eigenvalue; by default 1e-4, or what float32 allows, as
            in `top_eigs`; `.tols` has what it was.
        on_failure: "raise", or "warn" to get the report with a RuntimeWarning, where a loss has no eigenpairs that
            hold. Its row is NaN, and `.failures` says why; the other losses are reported either way.
        progress: bars; by default they appear when a computation takes more than two seconds.

    Returns:
        SteeringReport; `print` it for a table.

    Raises:
        NotConvergedError: the eigenpairs of a loss could not be found; `.result` is the report of the others.
        ValueError, TypeError: a direction of the wrong length, zero or not finite; losses around different points;
            a step without a control, or a control of another model.

    Cost:
        one product per loss, an eigenproblem per loss whose pairs are not given, two passes over the conflict inputs.
    """
    losses = as_losses(losses)
    center = common_center(losses)
    remedy = "Take one from lh.steering_direction(...)."
    u = check_vector("direction", direction, center.numel(), owner="the losses", remedy=remedy, allow_zero=False)
    u = u.detach().cpu().double()
    u = u / u.norm()
    known = dict(pairs or {})
    if unknown := sorted(set(known) - set(losses)):
        expected = f"names of losses: {list(losses)}"
        raise ValueError(argument_message("pairs", f"has the names {unknown}", expected, "Rename them."))
    step = _checked_step(conflict, step, center)
    if conflict is not None:
        check_same_buffers({**losses, "the conflict control": conflict.loss})
    check_choice("on_failure", on_failure, ("raise", "warn"))
    if set(losses) - set(known):
        check_count("k", k, maximum=center.numel(), remedy=f"The losses have {center.numel()} eigenpairs.")
    found = {
        name: _pairs(losses[name], len(given.values), given, f"pairs[{name!r}]", tol, progress)
        for name, given in known.items()
    }
    quotients, tols = (dict.fromkeys(losses, math.nan) for _ in range(2))
    positions = dict.fromkeys(losses, 0)
    eigenvalues, overlaps = ({name: torch.full((k,), math.nan).double() for name in losses} for _ in range(2))
    failures: dict[str, str] = {}
    for name, loss in losses.items():
        try:
            quotients[name] = float(u @ (hessian(loss) @ u.to(center)).cpu().double())
            top = found[name] if name in found else top_eigs(hessian(loss), k=k, tol=tol, progress=progress)
        except (NotConvergedError, ValueError, FloatingPointError) as error:
            failures[name] = str(error)
            continue
        eigenvalues[name], tols[name] = top.values.double(), top.tol
        positions[name] = 1 + int((eigenvalues[name] > quotients[name]).sum())
        overlaps[name] = (top.vectors.double() @ u).square()
    cue_shares = {}
    if conflict is not None and step is not None:
        cue_shares = {"before": conflict(center), "after": conflict(center + step * u.to(center))}
    result = SteeringReport(
        u.to(center.dtype), quotients, positions, eigenvalues, overlaps, step, cue_shares, tols, failures
    )
    if failures:
        message = "\n".join(f"losses[{name!r}]: {reason}" for name, reason in failures.items())
        message += "\nThe other losses are reported: in error.result, or with on_failure='warn'."
        if on_failure == "raise":
            raise NotConvergedError(message, result)
        warn(message, RuntimeWarning)
    return result


def _checked_step(conflict: ConflictControl | None, step: float | None, center: Tensor) -> float | None:
    """Where cue shares are compared: None without a control."""
    remedy = 'Pass lh.ConflictControl(loss, inputs, {"one cue": labels, "other cue": labels}).'
    if conflict is None:
        if step is None:
            return None
        received, expected = f"is {step!r} and conflict is None", "a step with conflict= only"
        raise ValueError(argument_message("step", received, expected, remedy))
    if not isinstance(conflict, ConflictControl):
        raise TypeError(argument_message("conflict", f"is {a_type(conflict)}", "a ConflictControl", remedy))
    if conflict.num_params != center.numel():
        received, expected = (
            f"is of a model with {conflict.num_params} parameters",
            f"{center.numel()} as in the losses",
        )
        raise ValueError(argument_message("conflict", received, expected, "Make it with one of the losses."))
    return check_real("step", 2.0 if step is None else step, remedy="Leave it out: 2.")


def _pairs(
    loss: Loss, k: int, known: Eigenpairs | None, argument: str, tol: float | None, progress: bool | None
) -> Eigenpairs:
    """At least k top eigenpairs of the loss's Hessian, computed unless they are known."""
    remedy = f"Compute them with lh.top_eigs(lh.hessian(loss), k={k})."
    if known is None:
        with naming(argument.removesuffix("_pairs")):
            return top_eigs(hessian(loss), k=k, which="LA", tol=tol, progress=progress)
    if known.which != "LA" or len(known.values) < k or known.vectors.shape[1] != loss.num_params:
        received = f"holds {len(known.values)} pairs ({known.which}) of length {known.vectors.shape[1]}"
        expected = f"at least {k} pairs (LA) of length {loss.num_params}"
        raise ValueError(argument_message(argument, received, expected, remedy))
    if not bool(known.is_converged[:k].all()):
        received = f"holds {int((~known.is_converged[:k]).sum())} pairs among the first {k} that have not converged"
        raise ValueError(argument_message(argument, received, "converged pairs", remedy))
    for row in {0, k - 1}:  # pairs of another loss, or of this one elsewhere, look just the same
        v = known.vectors[row]
        image = (hessian(loss) @ v.to(loss.theta0)).cpu().double()
        residual = float((image - known.values[row] * v.double()).norm())
        if residual > 10 * known.tol * known.scale:
            received = f"holds pairs of another loss or another theta0 (pair {row}: residual {residual:.2g})"
            raise ValueError(argument_message(argument, received, f"eigenpairs of {loss!r} at its theta0", remedy))
    return known


def _span(
    loss: Loss, k: int, known: Eigenpairs | None, argument: str, tol: float | None, progress: bool | None
) -> Subspace:
    """Span of the top k eigenvectors."""
    remedy = "Fewer eigenvectors than parameters must be removed, or nothing is left."
    check_count("k", k, maximum=loss.num_params - 1, remedy=remedy)
    return _pairs(loss, k, known, argument, tol, progress).subspace(k)


def _check_method(method: str, metric: str, shift: float | None) -> None:
    check_choice("method", method, ("project", "ratio"))
    check_choice("metric", metric, ("hessian", "gauss_newton"))
    if method == "project" and (metric != "hessian" or shift is not None):
        received = f"is {metric!r}" if metric != "hessian" else f"is the default and shift is {shift!r}"
        expected = 'neither of them with method="project"'
        raise ValueError(argument_message("metric", received, expected, 'Pass method="ratio", or leave both out.'))


def _ratio_rows(
    preserve: Loss,
    ablate: Loss,
    k: int,
    num: int,
    known: Eigenpairs | None,
    metric: Kind,
    shift: float | None,
    tol: float | None,
    progress: bool | None,
) -> Tensor:
    """The first `num` directions (num, p) of most curvature of `ablate` per curvature of `preserve`."""
    p = preserve.num_params
    if preserve.theta0.dtype != ablate.theta0.dtype:
        preserve, ablate = preserve.double(), ablate.double()
    k = check_count("k", k, maximum=p - 1, remedy="Leave it out: 50, or fewer for fewer weights.")
    M = hessian(preserve) if metric == "hessian" else gauss_newton(preserve)
    smallest = 0.0
    if metric == "hessian":
        pairs = _pairs(preserve, k, known, "preserve_pairs", tol, progress)
        if shift is None:
            with naming("preserve"):
                smallest = _least(M, progress)
    else:
        with naming("preserve"):
            pairs = top_eigs(M, k=k, which="LA", tol=tol, progress=progress)
    if shift is None:
        shift = max(-smallest, 0.0) + _SHIFT * pairs.scale
    gradient = preserve.gradient(preserve.theta0).detach()
    has_slope = float(gradient.double().norm()) > 0
    with naming("ablate over preserve"):
        found = generalized_eigs(
            hessian(ablate), M, k=num, shift=shift, known=pairs, orthogonal_to=gradient if has_slope else None,
            tol=tol, progress=progress,
        )  # fmt: skip
    return found.vectors.double()


def _least(M: Any, progress: bool | None) -> float:
    """A lower bound on the eigenvalues of M, to 1e-3 of the largest, or to what float32 allows."""
    try:
        lowest = top_eigs(M, k=1, which="SA", tol=1e-3, progress=progress)
    except NotConvergedError:
        lowest = top_eigs(M, k=1, which="SA", progress=progress)
    return float(lowest.values[0] - lowest.residuals[0])


def _uphill(u: Tensor, ablate: Loss, center: Tensor) -> Tensor:
    """U or -u (p,), as `center`: the way in which the ablated loss rises; at no slope, as `_oriented`."""
    gradient = ablate.gradient(center).detach().cpu().double()
    slope = float(gradient @ u)
    if abs(slope) <= 1e-6 * float(gradient.norm()):
        return _oriented(u, ablate, center)
    return (u if slope > 0 else -u).to(center)


def _oriented(u: Tensor, ablate: Loss, center: Tensor) -> Tensor:
    """U or -u (p,), as `center`: step +1 raises the ablated loss more than step -1."""
    step = u.to(center)
    up, down = float(ablate(center + step)), float(ablate(center - step))
    return step if up >= down else -step
