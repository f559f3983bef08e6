r"""Which way of combining the answers to two cues comes nearest to the answers to both: adding logits, or averaging?

With z_i the logits on cue i alone, the answers are combined in one of two ways, and then shifted by class:

    added:     q = softmax(alpha + beta_1 z_1 + beta_2 z_2), or
    averaged:  q ~ exp(alpha) (w softmax(beta_1 z_1) + (1 - w) softmax(beta_2 z_2)).

Both have a slope (an inverse temperature) per cue and a bias per class, and the average has its weight besides: what
the sum wins by, it does not win by its parameters. Both are fitted by the same criterion, the mean KL divergence
KL(mixed || q) over one half of the examples, and judged on the other half; then the halves change places, and every
example is judged once. The plain ones have nothing fitted: slopes 1, no biases, w = 1/2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from lowhanging.errors import NotConvergedError

_TOLERANCE = 1e-5  # largest derivative of the mean KL divergence, in nats per unit of a parameter
_LEASH = 1e-6  # times half the squared distance from the plain one: a fit that is best at infinity has an end, too
_LOG_ODDS = (0.0, -3.0, 3.0)  # log(w / (1 - w)) that a fit of the average starts from

Answer = Callable[[Tensor, list[Tensor]], Tensor]  # (parameters, logits of each cue) -> (n, c) log probabilities


class Divergences(NamedTuple):
    """KL divergence of every example from the mixed answer to each prediction of it, in nats."""

    fitted: dict[str, Tensor]  # (n,) each; "logits", "probabilities", and the name of each cue for that one alone
    num_free: dict[str, int]  # free parameters of each
    plain: dict[str, Tensor]  # (n,) each; "logits", "probabilities"


def added(values: Tensor, rows: list[Tensor]) -> Tensor:
    """Log probabilities (n, c) of a sum of logits: a slope for each cue, then a bias per class."""
    slopes, biases = values[: len(rows)], values[len(rows) :]
    weighted = torch.stack([slope * row for slope, row in zip(slopes, rows, strict=True)])  # (cues, n, c)
    return (biases + weighted.sum(0)).log_softmax(1)


def averaged(values: Tensor, rows: list[Tensor]) -> Tensor:
    """Log probabilities (n, c) of an average: a slope for each cue, a bias per class, the log odds of the weight."""
    slopes, biases, log_odds = values[:2], values[2:-1], values[-1]
    first, second = ((slope * row).log_softmax(1) for slope, row in zip(slopes, rows, strict=True))
    log_weights = torch.nn.functional.logsigmoid(torch.stack([log_odds, -log_odds]))
    return (biases + torch.logaddexp(log_weights[0] + first, log_weights[1] + second)).log_softmax(1)


def divergences(
    mixed: Tensor, cues: Sequence[Tensor], names: Sequence[str], halves: tuple[Tensor, Tensor]
) -> Divergences:
    """How near each way comes, each example judged by the fit to the half that it is not in.

    Args:
        mixed: (n, c) logits with both cues, float64.
        cues: two (n, c) logits with one cue alone.
        names: of the two cues.
        halves: two index tensors, which share out the n examples.

    Raises:
        NotConvergedError: a fit that did not reach a stationary point.
    """
    truth, num_classes = mixed.log_softmax(1), mixed.shape[1]
    no_biases = np.zeros(num_classes)
    models: dict[str, tuple[Answer, list[int], np.ndarray]] = {  # what it is, of which cues, its plain parameters
        "logits": (added, [0, 1], np.concatenate([[1.0, 1.0], no_biases])),
        "probabilities": (averaged, [0, 1], np.concatenate([[1.0, 1.0], no_biases, [0.0]])),
        names[0]: (added, [0], np.concatenate([[1.0], no_biases])),
        names[1]: (added, [1], np.concatenate([[1.0], no_biases])),
    }
    fitted, plain = {}, {}
    for key, (model, which, start) in models.items():
        rows = [cues[i] for i in which]
        plain[key] = divergence(truth, model(torch.from_numpy(start), rows))
        fitted[key] = torch.empty_like(plain[key])
        for fitted_on, judged_on in (halves, halves[::-1]):
            best = _best(model, truth[fitted_on], [row[fitted_on] for row in rows], start, key)
            log_q = model(torch.from_numpy(best), [row[judged_on] for row in rows])
            fitted[key][judged_on] = divergence(truth[judged_on], log_q)
    # One more for all biases changes nothing: c - 1 of them are free.
    num_free = {key: len(start) - 1 for key, (_, _, start) in models.items()}
    return Divergences(fitted, num_free, {key: plain[key] for key in ("logits", "probabilities")})


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL divergence (n,): the sum over classes of p (log p - log q)."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _best(model: Answer, truth: Tensor, rows: list[Tensor], plain: np.ndarray, name: str) -> np.ndarray:
    """The parameters of least mean divergence: a sum has one minimum, an average may have several, hence the starts."""

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(values).requires_grad_()
        with torch.enable_grad():
            value = divergence(truth, model(x, rows)).mean()
            value = value + _LEASH / 2 * (x - torch.from_numpy(plain)).square().sum()
        (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient.numpy()

    starts = [plain] if model is added else [np.append(plain[:-1], log_odds) for log_odds in _LOG_ODDS]
    fits = [
        scipy.optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 1000})
        for start in starts
    ]
    best = min(fits, key=lambda fit: float(fit.fun) if np.isfinite(fit.fun) else np.inf)
    steepest = float(np.abs(best.jac).max())
    if not steepest <= _TOLERANCE:
        raise NotConvergedError(
            f"the fit of {name!r} stopped with a derivative of {steepest:.1e} nats, more than {_TOLERANCE:.0e}.\n"
            "Divide the logits by a number that brings them to the order of 1: a slope is fitted anyway.",
            best.x,
        )
    return np.asarray(best.x)
