"""What is refused at the door of a model's loss: targets that are no classes, sums that are none, what is random?

`model_loss.py` evaluates, and asks here whether what came back is the loss of a function of the weights alone; each
refusal names what is wrong and the way out.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lowhanging.batch_parts import parted, some_of
from lowhanging.batches import joined, num_examples
from lowhanging.errors import explain
from lowhanging.layers import Finding


def check_classes(batches: Iterable[Any], outputs_of: Callable[[Any], Any]) -> None:
    """Targets of the default cross-entropy: one integer per output, in the range of the outputs."""
    batch = next(iter(batches))
    targets = parted(batch)[2]
    check_class_targets(targets)
    outputs = outputs_of(batch)
    classes = num_classes(outputs)
    if outputs.shape[:1] + outputs.shape[2:] != targets.shape:
        received = f"have shape {tuple(targets.shape)}, the outputs {tuple(outputs.shape)}"
        expected = "targets (n, ...) for outputs (n, classes, ...)"
        remedy = "Reshape the targets; outputs (n, length, classes) need loss_fn= or batch_loss=."
        raise ValueError(explain("targets", received, expected, remedy))
    for batch in batches:
        check_class_range(parted(batch)[2], classes)


def check_class_targets(targets: Any) -> None:
    """Targets of the default cross-entropy are integers."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        received = f"have dtype {getattr(targets, 'dtype', type(targets).__name__)}"
        remedy = "Pass loss_fn=F.mse_loss (or another); class targets must be integers: targets.long()."
        raise ValueError(explain("targets", received, "integer classes, the loss_fn being cross-entropy", remedy))


def num_classes(outputs: Any) -> int:
    """Classes of the outputs (n, classes, ...), or an error."""
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        received = f"gives outputs of shape {tuple(getattr(outputs, 'shape', ()))}"
        raise ValueError(explain("model", received, "(n, classes) for cross-entropy", "Pass loss_fn= or batch_loss=."))
    return int(outputs.shape[1])


def check_class_range(targets: Tensor, classes: int) -> None:
    """Every target names one of the classes."""
    low, high = (int(targets.min()), int(targets.max())) if targets.numel() else (0, 0)
    if low < 0 or high >= classes:
        remedy = "Check the labels; ignored ones (-100) need batch_loss=, which returns (sum, count)."
        expected = f"0 to {classes - 1}, the model's {classes} outputs"
        raise ValueError(explain("targets", f"range from {low} to {high}", expected, remedy))


def checked_sum(result: Any, point: Tensor, *, is_batch_loss: bool) -> Tensor:
    """The sum that the loss returned for one batch, if it returned (sum, count) and used the weights, `point`."""
    name = "batch_loss" if is_batch_loss else "loss_fn"
    is_pair = isinstance(result, tuple) and len(result) == 2
    total: Any
    count: Any
    total, count = result if is_pair else (None, None)
    if isinstance(count, Tensor) and count.numel() == 1:
        count = count.item()
    is_count = isinstance(count, numbers.Real) and not isinstance(count, bool) and 0 < float(count) < math.inf
    if not (is_count and is_real(total) and total.ndim == 0):
        kind = f"shape {tuple(total.shape)}" if isinstance(total, Tensor) else f"a {type(total).__name__}"
        received = f"returned {kind if is_pair else 'no pair (sum, count)'}" + f", count {count!r}" * is_pair
        expected = "a scalar tensor" + (" and a positive count" if is_batch_loss else ", the mean")
        remedy = "Sum over the batch, and count the terms of that sum." if is_batch_loss else "Use reduction='mean'."
        raise ValueError(explain(name, received, expected, remedy))
    gradient = torch.autograd.grad(total, point, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        received = "returned a value that does not depend on the weights"
        remedy = "Use the model that batch_loss is given, not one from outside; no torch.no_grad(), no detach()."
        raise ValueError(explain(name, received, "a differentiable function of the weights", remedy))
    if _reaches_others(total, point):
        received = "uses trainable tensors that are not the given model's (their gradient would be lost)"
        remedy = "Use the model that batch_loss is given; freeze other parameters: requires_grad_(False)."
        raise ValueError(explain(name, received, "a function of this model's weights alone", remedy))
    return cast(Tensor, total.detach())


def check_mean(batch: Any, sum_of: Callable[[Any], Tensor]) -> None:
    """Model and loss_fn together: 1 + (n - 1) examples must add up to n, up to what kernels round by batch size."""
    n = num_examples(batch)
    parts = [some_of(batch, slice(0, 1)), some_of(batch, slice(1, n)), batch]
    if n >= 2 and parts[0] is not None:
        first, rest, total = (float(sum_of(part)) for part in parts)
        if not abs(first + rest - total) <= 1e-3 * (abs(first) + abs(rest)) + 1e-6 * n:  # NaN: one part is all ignored
            raise ValueError(_no_mean(1, n, first + rest - total))


def check_terms(outputs: Any, targets: Any, sum_of: Callable[[Any, Any], Tensor]) -> bool:
    """loss_fn alone: the gradient in the outputs of an example must not depend on which others are there.

    Not its value: where all terms are alike, weights hardly change the sum, but the Hessian all the same. In float64,
    where loss_fn allows it. False where outputs and targets can't be cut into examples, and nothing was checked.
    """
    if not any(map(is_real, tree_leaves(outputs))) or some_of((outputs, targets), slice(0, 1)) is None:
        return False
    n = num_examples((outputs, targets))
    try:
        wide = tree_map(lambda leaf: leaf.double() if is_real(leaf) else leaf, (outputs, targets))
        whole = _slopes(wide, sum_of)
    except (RuntimeError, TypeError):  # its own constants are in float32, or the device has no float64
        wide = (outputs, targets)
        whole = _slopes(wide, sum_of)
    for cut in sorted({1, n // 2}) if n >= 2 else ():
        pieces = slice(0, cut), slice(cut, n)
        (low, low_total), (high, high_total) = (_slopes(some_of(wide, piece), sum_of) for piece in pieces)
        apart = torch.stack([(torch.cat(pair) - own).norm() for *pair, own in zip(low, high, whole[0], strict=True)])
        size = torch.stack([own.norm() for own in whole[0]])
        if not float(apart.norm()) <= 1e-4 * float(size.norm()) + 1e-9 * n:  # NaN: one part is all ignored
            raise ValueError(_no_mean(cut, n, low_total + high_total - whole[1], outputs, targets))
    return True


def _slopes(pair: Any, sum_of: Callable[[Any, Any], Tensor]) -> tuple[list[Tensor], float]:
    """Gradients of the sum in every floating-point tensor of the outputs, and the sum."""
    outputs, targets = pair
    with torch.enable_grad():
        outputs = tree_map(lambda leaf: leaf.detach().requires_grad_() if is_real(leaf) else leaf, outputs)
        leaves = [leaf for leaf in tree_leaves(outputs) if is_real(leaf)]
        total = sum_of(outputs, targets)
        found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return list(found), float(total.detach())


def _no_mean(cut: int, n: int, error: float, outputs: Any = None, targets: Any = None) -> str:
    """What to say of a loss_fn that is not the mean over its targets."""
    received = (
        f"is not the mean over the targets ({cut} + {n - cut} examples differ from {n} together by {abs(error):.3g})"
    )
    remedy = (
        "Use reduction='mean'; with ignore_index or class weights pass batch_loss=, "
        "a function (model, batch) -> (sum, count)."
    )
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor) and is_real(targets):
        shapes = tuple(outputs.shape), tuple(targets.shape)
        if shapes[0] != shapes[1]:
            received += f"; outputs have shape {shapes[0]}, targets {shapes[1]}, which may broadcast"
            remedy = "Give both one shape: targets.reshape(outputs.shape), or a loss_fn that does so."
    return explain("loss_fn", received, "the mean loss over the targets", remedy)


def firsts(batches: Iterable[Any], chunk: int = 64) -> Iterable[Any]:
    """The first examples of all batches, so many at a time, each with that of the first batch; data may be sorted."""
    anchor, held = None, list[Any]()
    for batch in batches:
        first = some_of(batch, slice(0, 1))
        if first is None:
            return
        if anchor is None:
            anchor = first
            continue
        held.append(first)
        if len(held) == chunk:
            yield from _as_one([anchor, *held])
            held = []
    if held:
        yield from _as_one([anchor, *held])


def _as_one(examples: list[Any]) -> list[Any]:
    whole = joined(examples)
    return [] if whole is None else [whole]


def refuse_impure(found: list[Finding], mode: str) -> None:
    """An error for what is random or mixes examples, with the way out of this mode."""
    eval_instead = 'Use mode="eval", or put that layer into eval mode'
    for finding in found:
        if finding.kind == "random":
            remedy = f"{eval_instead}." if mode == "as_is" else "Draw its numbers once, outside the loss."
            raise ValueError(
                explain("model", f"is random: {finding}", "a loss that is a function of the weights", remedy)
            )
        if finding.kind == "batch":
            way_out = eval_instead if mode == "as_is" else "Give it running statistics"
            remedy = f"{way_out}: its statistics mix the examples of a batch."
            expected = "a loss that is a sum over examples"
            raise ValueError(explain("model", f"depends on the batch: {finding}", expected, remedy))


def is_real(leaf: Any) -> bool:
    """Whether it is a floating-point tensor."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _reaches_others(total: Tensor, point: Tensor) -> bool:
    """Whether the autograd graph of `total` ends in trainable tensors other than `point`."""
    seen, stack = set(), [total.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and variable is not point:
            return True
        stack += [following for following, _ in node.next_functions]
    return False
