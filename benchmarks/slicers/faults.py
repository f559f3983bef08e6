"""Which fault gives this picture? The picture of each known fault stands on paper, alone and together with others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from slicers.scene import BATCHES, Scene

Explained = tuple[tuple[str, ...], np.ndarray]  # faults, and the picture that they give

SWAPPED = "axes swapped: rows should follow u and columns v"
_INEXACT = 1e-5  # relative errors of single precision


def diagnosis(scene: Scene, found: np.ndarray, again: Callable[[], np.ndarray | None], tol: float) -> tuple[str, ...]:
    """The fewest known faults that give this picture; where there are none, what can be said of the errors."""
    if not np.isfinite(found).all():
        return (f"not finite: {int((~np.isfinite(found)).sum())} of {found.size} values",)
    if float(np.ptp(found)) <= tol * float(np.abs(found).max()):
        return (f"constant: every value is {found[0, 0]:.6g}; the weights that are evaluated never move",)
    errors = np.abs(found - scene.grid()) / scene.grid().max()
    if errors.max() <= max(10 * tol, _INEXACT):
        return (f"inexact: off by up to {errors.max():.1e} of the largest loss; is it computed in lower precision?",)
    known = itertools.chain(_known_pictures(scene), _half_pictures(scene), _fitted_pictures(scene, found, tol))
    for faults, picture in known:
        off = np.abs(found - picture) > 10 * tol * np.abs(picture).max()
        if off.sum() <= 1:
            where = [f"[{i}, {j}] by {found[i, j] - picture[i, j]:.3g}" for i, j in np.argwhere(off)]
            altered = [f"one value altered: entry {place}" for place in where]
            return (*faults, *altered)
    other = again()
    if other is None or not np.allclose(other, found, rtol=tol):
        return ("random: two calls on the same loss give other pictures; are u and v used?",)
    for order, row in (("row by row", errors.ravel()), ("column by column", errors.T.ravel())):
        ranks = row.argsort(kind="stable").argsort(kind="stable")
        correlation = float(np.corrcoef(ranks, np.arange(len(row)))[0, 1])
        if correlation > 0.8:
            detail = f"errors grow along the evaluation, {order} (rank correlation {correlation:.2f})"
            return (f"drifting center: {detail}; is the model moved in place?",)
    return ("unknown: none of the known faults gives this picture",)


def _known_pictures(scene: Scene) -> Iterator[Explained]:
    """Each combination of faults that changes the axes, the directions, the order or the loss; the fewest first."""
    kinds = (("", False), (SWAPPED, True)), _directions(*scene.directions), _orders(scene), _means()
    for parts in sorted(itertools.product(*kinds), key=lambda parts: sum(bool(part[0]) for part in parts)):
        (swap, is_swapped), (turn, u, v), (order, a, b), (mean, weights) = parts
        first, second = (v, u) if is_swapped else (u, v)
        yield tuple(filter(None, (swap, turn, order, mean))), scene.grid(weights, a, b, first, second)


def _half_pictures(scene: Scene) -> Iterator[Explained]:
    """Pictures in which one direction is not seen; symmetric ones, so that nothing more can be told from them."""
    u, v = scene.directions
    for fault, one, other in (
        ("v has no effect: every row is constant", u, 0 * v),
        ("u has no effect: every column is constant", 0 * u, v),
        ("v is not used: both axes move along u", u, u),
        ("u is not used: both axes move along v", v, v),
    ):
        for mean, weights in _means():
            yield tuple(filter(None, (fault, mean))), scene.grid(weights, u=one, v=other)


def _directions(u: np.ndarray, v: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """What becomes of (u, v), as given first."""
    found = [("", u, v), ("directions rescaled: to unit length", _unit(u), _unit(v))]
    for name, kept, turned in (("v", u, v), ("u", v, u)):
        rest = turned - (_unit(kept) @ turned) * _unit(kept)
        fault = f"directions orthogonalised: {name} replaced by its part orthogonal to the other"
        for text, one, other in (
            ("", kept, rest),
            (", its length kept", kept, rest * np.linalg.norm(turned) / np.linalg.norm(rest)),
            (", both of unit length", _unit(kept), _unit(rest)),
        ):
            found.append((fault + text, *((one, other) if name == "v" else (other, one))))
    return found


def _orders(scene: Scene) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Where the points are that are evaluated, in units of u and v, as asked for first."""
    a, b = np.meshgrid(scene.alphas, scene.betas, indexing="ij")
    found = [("", a, b)]
    for parity, sign in itertools.product((0, 1), (1, -1)):
        rows, columns = (np.arange(count) % 2 == parity for count in a.shape)
        which, far = ("even", "odd")[parity] + "-numbered", f"one step {'ahead' if sign > 0 else 'back'}"
        along_u, along_v = (sign * (steps[1] - steps[0]) for steps in (scene.alphas, scene.betas))
        found.append((f"every second row shifted: {which} rows are {far}", a, b + along_v * rows[:, None]))
        found.append((f"every second column shifted: {which} columns are {far}", a + along_u * columns, b))
    fault = "drifting center: each point starts from the one before"
    walked = [np.cumsum(steps).reshape(a.shape) for steps in (a, b)]
    found.append((f"{fault}, row by row", walked[0], walked[1]))
    walked = [np.cumsum(steps.T).reshape(a.shape[::-1]).T for steps in (a, b)]
    found.append((f"{fault}, column by column", walked[0], walked[1]))
    return found


def _means() -> list[tuple[str, np.ndarray]]:
    """Weights of the examples in the loss, the right ones first."""
    n, sizes = sum(BATCHES), np.repeat(BATCHES, BATCHES)
    is_first = np.arange(n) < BATCHES[0]
    return [
        ("", np.full(n, 1 / n)),
        ("sum instead of mean: over the examples", np.ones(n)),
        ("mean of batch means: the ragged last batch weighs too much", 1 / (len(BATCHES) * sizes)),
        ("sum of batch means: not divided by anything", 1 / sizes),
        ("one batch only: the first", is_first / sizes),
        ("one batch only: the last", ~is_first / sizes),
    ]


def _fitted_pictures(scene: Scene, found: np.ndarray, tol: float) -> Iterator[Explained]:
    """If the picture is that of a quadratic, the faults with a number in them that would give it."""
    a, b = np.meshgrid(scene.alphas, scene.betas, indexing="ij")
    design = np.stack([np.ones_like(a), a, b, a**2 / 2, a * b, b**2 / 2], -1).reshape(-1, 6)
    hat = design @ np.linalg.pinv(design)
    rest = (np.eye(len(hat)) - hat) @ found.ravel()
    kept = np.ones(len(rest), dtype=bool)
    if np.abs(rest).max() > tol * np.abs(found).max():
        # If all values but one are a quadratic's, that one has the largest residual, relative to its leverage.
        kept[np.argmax(np.abs(rest) / np.sqrt(1 - np.diag(hat)))] = False
    fit = np.linalg.lstsq(design[kept], found.ravel()[kept], rcond=None)[0]
    picture = (design @ fit).reshape(found.shape)
    steps, explained = (scene.alphas, scene.betas), []
    exchanged = fit[[0, 2, 1, 5, 4, 3]]  # the coefficients, had the steps along u been the betas
    for (swap, numbers, of_u_and_v), (mean, weights) in itertools.product(
        [("", fit, steps), (SWAPPED, exchanged, steps[::-1])], _means()
    ):
        paper = scene.coefficients(weights, *scene.directions)
        scale = 30 * tol * float(np.abs(fit).max())
        for cost, faults in (
            *_factor_or_offset(paper, numbers, scale),
            *_moved_steps(paper, numbers, scale, of_u_and_v),
            *_rescaled_tensors(scene, weights, numbers, scale),
        ):
            explained.append((cost + bool(swap) + bool(mean), tuple(filter(None, (swap, *faults, mean)))))
    # Several moves of the steps give the same quadratic (which a reflection about its minimum leaves as it is).
    yield from ((faults, picture) for _, faults in sorted(explained))


def _factor_or_offset(paper: np.ndarray, fit: np.ndarray, scale: float) -> Iterator[tuple[int, tuple[str, ...]]]:
    factor = float(fit @ paper / (paper @ paper))
    if np.abs(fit - factor * paper).max() <= scale:
        yield 1, (f"constant factor: every value is {factor:.6g} times as large",)
    if np.abs(fit - paper)[1:].max() <= scale:
        yield 1, (f"constant offset: every value is off by {fit[0] - paper[0]:.6g}",)


def _moved_steps(
    paper: np.ndarray, fit: np.ndarray, scale: float, of_u_and_v: tuple[np.ndarray, ...]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Steps that are stretch * alpha + shift, and the same of beta: mirrored, shifted or rescaled."""
    slopes, curvatures = paper[1:3], np.array([[paper[3], paper[4]], [paper[4], paper[5]]])
    ratios = fit[[3, 5]] / paper[[3, 5]]
    for signs in itertools.product((1, -1), (1, -1)) if (ratios > 0).all() else ():
        stretches = np.array(signs) * np.sqrt(ratios)
        shifts = np.linalg.solve(curvatures, fit[1:3] / stretches - slopes)
        cross = fit[4] - stretches.prod() * paper[4]
        start = fit[0] - (paper[0] + slopes @ shifts + shifts @ curvatures @ shifts / 2)
        if max(abs(cross), abs(start)) > scale:
            continue
        cost, faults = 0, []
        for name, steps, stretch, shift in zip("uv", of_u_and_v, stretches, shifts, strict=True):
            in_steps = shift / (steps[1] - steps[0])
            is_mirrored, is_rescaled, is_shifted = stretch < 0, abs(abs(stretch) - 1) > 1e-3, abs(in_steps) > 1e-3
            cost += sum(map(int, (is_mirrored, is_rescaled, is_shifted)))
            if is_rescaled:
                ends = f"from {stretch * steps[0] + shift:.4g} to {stretch * steps[-1] + shift:.4g}"
                faults.append(f"rescaled along {name}: steps run {ends}, not from {steps[0]:.4g} to {steps[-1]:.4g}")
            elif is_mirrored:
                faults.append(f"mirrored along {name}: the first step is the last")
            if is_shifted and not is_rescaled:
                faults.append(f"shifted along {name}: by {in_steps:+.3g} steps")
        yield cost, tuple(faults)


def _rescaled_tensors(
    scene: Scene, weights: np.ndarray, fit: np.ndarray, scale: float
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Each tensor of u and of v rescaled by itself: a line (the slope) meets a conic (the curvature)."""
    parts = np.cumsum([tensor.numel() for tensor in scene.u.values()])[:-1]
    solutions = []
    for direction, slope, curvature in zip(scene.directions, fit[1:3], fit[[3, 5]], strict=True):
        pieces = [np.where(np.arange(len(direction)) < parts[0], direction, 0.0)]
        pieces.append(direction - pieces[0])
        paper = scene.coefficients(weights, *pieces)
        line, conic = paper[1:3], np.array([[paper[3], paper[4]], [paper[4], paper[5]]])
        foot, along = slope * line / (line @ line), np.array([-line[1], line[0]])
        roots = np.roots([along @ conic @ along, 2 * foot @ conic @ along, foot @ conic @ foot - curvature])
        factors = [foot + root.real * along for root in roots if abs(root.imag) < 1e-4]
        solutions.append([(factor, factor[0] * pieces[0] + factor[1] * pieces[1]) for factor in factors])
    for (of_u, new_u), (of_v, new_v) in itertools.product(*solutions):
        if np.abs(fit - scene.coefficients(weights, new_u, new_v)).max() <= scale:
            factors_text = [f"{name} by {f[0]:.3g}, {f[1]:.3g}" for name, f in (("u", of_u), ("v", of_v))]
            yield 4, (f"directions rescaled: tensor by tensor ({' and '.join(scene.u)}: {'; '.join(factors_text)})",)


def _unit(direction: np.ndarray) -> np.ndarray:
    unit: np.ndarray = direction / np.linalg.norm(direction)
    return unit
