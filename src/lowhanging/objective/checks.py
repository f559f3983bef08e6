"""Checks of a model's loss: what one watched forward pass shows, and what is refused at the door.

The pass is watched operation by operation, so functional calls (`F.relu` inside a forward method) are found as surely
as modules, and each finding names the innermost module that made the call. Whether a loss is a sum over examples can't
be seen in its operations: it is tested, on the sums of parts of a batch and their gradients.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lowhanging.errors import a_type, argument_message
from lowhanging.objective.batches import num_examples, split_batch
from lowhanging.objective.cost import OperationMode
from lowhanging.objective.distributed import Ranks, Sums
from lowhanging.objective.kernels import EMBEDDING, EMBEDDING_BAG, autocasting
from lowhanging.objective.private_copy import memory_of

# Operations by the name in torch.ops.aten, without overload and in-place underscore.
_KINKED = {
    "relu", "relu6", "leaky_relu", "prelu", "_prelu_kernel", "rrelu_with_noise", "threshold", "elu", "celu", "hardtanh",
    "hardswish", "hardsigmoid", "hardshrink", "softshrink", "max_pool1d_with_indices", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d",
    "fractional_max_pool3d",
    "abs", "sign", "round", "floor", "ceil", "maximum", "minimum", "huber_loss", "smooth_l1_loss",
}  # fmt: skip
LOSS_FUNCTION = "the loss function"  # stands for a class where an operation is no module's
_NORMS = {
    "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_with_update",
}  # fmt: skip
_REWRITTEN = {"_weight_norm_interface", "_embedding_bag", "_embedding_bag_forward_only"}
Stored = Mapping[int, tuple[str, Tensor]]  # memory -> name, and the tensor, so that no other one gets that memory
Kind = Literal["kinked", "random", "batch", "rewrite", "stored", "recomputed"]


@dataclass(frozen=True)
class Finding:
    """One operation that a loss can't have, or that must be known of.

    It is not smooth ("kinked"), draws random numbers ("random"), mixes examples ("batch"), has a derivative in torch
    that is not that of its value ("rewrite", see `Rewriting`), uses a tensor that was computed from the weights once
    and does not move with them ("stored"; `operation` is its name), or a weight where activations are recomputed in the
    backward pass ("recomputed").
    """

    kind: Kind
    layer: str  # dotted name of the innermost module, "" = outside every submodule
    class_name: str
    operation: str

    def __str__(self) -> str:
        place = f"layer {self.layer!r} ({self.class_name})" if self.layer else f"{self.class_name} itself"
        return f"{place} calls {self.operation}"


def findings(
    model: nn.Module, forward: Callable[[], Any], *, stored: Stored | None = None, theta: Tensor | None = None
) -> list[Finding]:
    """What `forward()`, a call that runs `model`, does that a smooth function of the weights does not.

    `stored` are tensors that do not move with the weights though they were computed from them; `theta` holds the
    weights.
    """
    found: dict[Finding, None] = {}
    weights = 0 if theta is None else memory_of(theta)
    with _modules_run(model) as stack, _WatchCalls(stack, found), _Watch(stack, found, stored or {}, weights):
        forward()
    return list(found)


@contextlib.contextmanager
def _modules_run(model: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """A stack of (name, class) of the modules being run, the loss function at the bottom."""
    stack = [("", LOSS_FUNCTION)]
    handles = []
    for name, module in model.named_modules():
        entry = (name, type(module).__name__)
        handles.append(module.register_forward_pre_hook(lambda *_, entry=entry: stack.append(entry)))
        handles.append(module.register_forward_hook(lambda *_: _drop(stack), always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _drop(stack: list[tuple[str, str]]) -> None:
    stack.pop()  # and return None: a hook's return value would replace the output


class _WatchCalls(TorchFunctionMode):
    """What only the calls of torch's functions show: embeddings that write into their weights, and autocast."""

    def __init__(self, stack: list[tuple[str, str]], found: dict[Finding, None]):
        super().__init__()
        self._stack, self._found = stack, found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if autocasting():
            self._found[Finding("rewrite", *self._stack[-1], "autocast")] = None
        signature = EMBEDDING if func is F.embedding else EMBEDDING_BAG if func is F.embedding_bag else None
        if signature and signature.bind(*args, **(kwargs or {})).arguments.get("max_norm") is not None:
            layer = self._stack[-1][0] if len(self._stack) > 1 else LOSS_FUNCTION
            received = f"rewrites its weights when run: the embedding in {layer!r} has max_norm"
            remedy = "Renormalize its weights once, and set max_norm = None."
            raise ValueError(argument_message("model", received, "a function of the weights", remedy))
        return func(*args, **(kwargs or {}))


class _Watch(OperationMode):
    def __init__(self, stack: list[tuple[str, str]], found: dict[Finding, None], stored: Stored, weights: int):
        super().__init__()
        self._stack, self._found, self._stored, self._weights = stack, found, stored, weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = _kind(func, args, kwargs or {})
        name, (layer, class_name) = func.overloadpacket.__name__, self._stack[-1]
        # An instance norm is computed as the batch norm of one example with (examples x channels) channels.
        is_instance_norm = kind == "batch" and args[0].shape[0] == 1 and "BatchNorm" not in class_name
        if kind is not None and not is_instance_norm:
            self._found[Finding(kind, layer, class_name, name.rstrip("_"))] = None
        for leaf in tree_leaves((args, kwargs)) if self._stored else ():
            if isinstance(leaf, Tensor) and memory_of(leaf) in self._stored:
                self._found[Finding("stored", layer, class_name, self._stored[memory_of(leaf)][0])] = None
        result = func(*args, **(kwargs or {}))
        recomputes = bool(self._weights) and _saves_by_hooks()
        if recomputes and any(isinstance(item, Tensor) and memory_of(item) == self._weights for item in args):
            self._found[Finding("recomputed", layer, class_name, name)] = None
        return result


def _saves_by_hooks() -> bool:
    """Whether tensors are saved by hooks here: activation checkpointing recomputes them in the backward pass."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(False) is not None


def _kind(func: Any, args: Any, kwargs: Any) -> Kind | None:
    name = func.overloadpacket.__name__.rstrip("_")
    if name in _REWRITTEN or (name == "embedding" and _has_options(func, args, kwargs)):
        return "rewrite"
    is_training = True  # operations without that argument are only called then
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "training":
            given = args[position] if position < len(args) else kwargs.get("training")
            is_training = argument.default_value if given is None else given
    if is_training and (torch.Tag.nondeterministic_seeded in func.tags or name == "random"):
        return "random"
    if is_training and name in _NORMS:
        return "batch"
    if not any(isinstance(item, Tensor) and item.requires_grad and not item.is_complex() for item in args):
        return None  # abs() of the data is no kink in the weights, and that of a complex number is a norm
    # clamp(min=0) is a ReLU; clamp(min=1e-12) only guards a division.
    is_relu = name in ("clamp", "clamp_min") and len(args) > 1 and isinstance(args[1], int | float) and args[1] == 0
    return "kinked" if name in _KINKED or is_relu else None


def _has_options(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an embedding has options that change its gradient alone."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    hides = named.get("padding_idx", -1) >= 0
    return bool(hides or named.get("scale_grad_by_freq", False) or named.get("sparse", False))


class Precision(OperationMode):
    """Watches for the narrowest floating-point `dtype` in which something that depends on the weights is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(item, Tensor) and item.requires_grad for item in args):
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    self.dtype = min(self.dtype, leaf.dtype, key=lambda dtype: dtype.itemsize)
        return result


class SingularOperations(OperationMode):
    """Watches for operations at points where torch has no derivative of them; `found` are their names, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        first = next((item for item in args if isinstance(item, Tensor)), None)
        zeros: Tensor | None = None
        if name in ("linalg_vector_norm", "norm", "hypot", "_cdist_forward", "dist"):
            zeros = result
        elif name in ("_linalg_det", "_linalg_slogdet", "std", "std_mean"):
            zeros = result[0] if isinstance(result, tuple) else result
        elif name in ("sqrt", "rsqrt", "pow", "log", "reciprocal", "float_power"):
            zeros = first
        elif name == "atan2":
            zeros = args[0].abs() + args[1].abs()
        elif name in ("acos", "asin", "atanh", "acosh") and first is not None:
            zeros = first.abs() - 1
        elif name in ("abs", "angle", "sgn") and first is not None and first.is_complex():
            zeros = first
        is_singular = zeros is not None and bool((zeros == 0).any())
        if is_singular and name not in self.found:
            self.found.append(name)
        return result


# What is refused ------------------------------------------------------------------------------------------------------


def refuse_impure(found: list[Finding], mode: str) -> None:
    """An error for what is random or mixes examples, with the way out of this mode."""
    in_eval = 'Use mode="eval", or put that layer into eval mode'
    for finding in found:
        if finding.kind == "recomputed":
            received = f"recomputes activations in the backward pass, with weights ({finding})"
            expected = "a forward pass that keeps them"
            remedy = "Switch activation checkpointing off (gradient_checkpointing_disable()): the numbers are the same."
        elif finding.kind == "stored":
            received = f"keeps {finding.operation!r}, which was computed from its weights, and uses it in "
            received += repr(finding.layer or finding.class_name)
            expected = "weights that are used as they are"
            remedy = "Compute it in forward (such as self.encoder.weight.t()): it does not move with the weights."
        elif finding.kind == "random":
            received, expected = f"is random: {finding}", "a loss that is a function of the weights"
            remedy = f"{in_eval}." if mode == "as_is" else "Draw its numbers once, outside the loss."
        elif finding.kind == "batch":
            received, expected = f"depends on the batch: {finding}", "a loss that is a sum over examples"
            remedy = in_eval if mode == "as_is" else "Give it running statistics"
            remedy += ": its statistics mix the examples of a batch."
        else:
            continue
        raise ValueError(argument_message("model", received, expected, remedy))


def check_classes(first: Any, batches: Iterable[Any], outputs_of: Callable[[Any], Any]) -> None:
    """Targets of the default cross-entropy: one integer per output in a first batch, in the range of the outputs."""
    targets = split_batch(first)[2]
    check_class_targets(targets)
    outputs = outputs_of(first)
    classes = num_classes(outputs)
    if outputs.shape[:1] + outputs.shape[2:] != targets.shape:
        received = f"have shape {tuple(targets.shape)}, the outputs {tuple(outputs.shape)}"
        expected = "targets (n, ...) for outputs (n, classes, ...)"
        remedy = "Reshape the targets; outputs (n, length, classes) need loss_fn= or batch_loss=."
        raise ValueError(argument_message("targets", received, expected, remedy))
    for batch in batches:
        check_class_range(split_batch(batch)[2], classes)


def check_class_targets(targets: Any) -> None:
    """Targets of the default cross-entropy are integers."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        received = f"have dtype {getattr(targets, 'dtype', type(targets).__name__)}"
        expected = "integer classes, the loss_fn being cross-entropy"
        remedy = "Pass loss_fn=F.mse_loss (or another); class targets must be integers: targets.long()."
        raise ValueError(argument_message("targets", received, expected, remedy))


def num_classes(outputs: Any) -> int:
    """Classes of the outputs (n, classes, ...), or an error."""
    if not isinstance(outputs, Tensor):
        remedy = "Pass loss_fn=lambda outputs, targets: F.cross_entropy(outputs[0], targets), or what fits them."
        expected = "a tensor or .logits, for the default loss"
        raise ValueError(argument_message("model", f"returns {a_type(outputs)}", expected, remedy))
    if outputs.ndim < 2:
        received, remedy = f"gives outputs of shape {tuple(outputs.shape)}", "Pass loss_fn= or batch_loss=."
        raise ValueError(argument_message("model", received, "(n, classes) for cross-entropy", remedy))
    return int(outputs.shape[1])


def check_class_range(targets: Tensor, classes: int) -> None:
    """Every target names one of the classes."""
    low, high = (int(targets.min()), int(targets.max())) if targets.numel() else (0, 0)
    if low < 0 or high >= classes:
        remedy = "Check the labels; ignored ones (-100) need batch_loss=, which returns (sum, count)."
        expected = f"0 to {classes - 1}, the model's {classes} outputs"
        raise ValueError(argument_message("targets", f"range from {low} to {high}", expected, remedy))


_HOOKS = (
    "A hook or a forward that was replaced by a closure (LoRA by hooks) reads the parameters of the module that it was "
    "made with, not of the copy that is studied: make it a method, or let it read those of the module it is given."
)


def checked_sum(result: Any, point: Tensor, *, is_batch_loss: bool) -> Tensor:
    """The sum that the loss returned for one batch, if it returned (sum, count) and used the weights, `point`."""
    name = "batch_loss" if is_batch_loss else "loss_fn"
    is_pair = isinstance(result, tuple) and len(result) == 2
    total: Any
    total, count = result if is_pair else (None, None)
    if isinstance(count, Tensor) and count.numel() == 1:
        count = count.item()
    is_count = isinstance(count, numbers.Real) and not isinstance(count, bool) and 0 < float(count) < math.inf
    if not (is_count and is_real(total) and total.ndim == 0):
        kind = f"shape {tuple(total.shape)}" if isinstance(total, Tensor) else f"a {type(total).__name__}"
        received = f"returned {kind if is_pair else 'no pair (sum, count)'}" + f", count {count!r}" * is_pair
        expected = "a scalar tensor" + (" and a positive count" if is_batch_loss else ", the mean")
        remedy = "Sum over the batch, and count the terms of that sum." if is_batch_loss else "Use reduction='mean'."
        raise ValueError(argument_message(name, received, expected, remedy))
    gradient = torch.autograd.grad(total, point, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        received = "returned a value that does not depend on the weights"
        remedy = "Use the model that batch_loss is given, not one from outside; no torch.no_grad(), no detach()."
        if not is_batch_loss:
            name, received = "model and loss_fn", "return" + received.removeprefix("returned")
            remedy = f"No torch.no_grad(), no detach(). {_HOOKS}"
        raise ValueError(argument_message(name, received, "a differentiable function of the weights", remedy))
    if _reaches_weights(total, point):
        received = "uses trainable parameters that are not the given model's (their gradient would be lost)"
        remedy = "Use the model that batch_loss is given; freeze other parameters: requires_grad_(False)."
        if not is_batch_loss:
            name, remedy = "model", _HOOKS
        raise ValueError(argument_message(name, received, "a function of this model's weights alone", remedy))
    return cast(Tensor, total.detach())


Slope = Callable[
    [Any], tuple[float, float, Tensor]
]  # batch -> its sum, the count of its terms, the sum's gradient (p,)


def is_same_sum(
    batches: Iterable[Any], others: Iterable[Any], slope: Slope, sizes: Sequence[int], ranks: Ranks | None = None
) -> bool:
    """Whether two cuts of the same examples have the same sum and the same gradient of it, up to rounding.

    Compared wherever both cuts end together, and tensor by tensor (`sizes` are those of the named tensors in a
    gradient): what mixes examples may have a small share of the whole. With several ranks only the totals over all of
    them are of the same examples.
    """
    mine, theirs = _Total(batches, slope, sizes), _Total(others, slope, sizes)
    if ranks is not None:
        return _is_same_on_all(ranks, mine, theirs)
    while True:
        first, second = (mine, theirs) if mine.num <= theirs.num else (theirs, mine)
        if not (first.advance() or second.advance()):
            return mine.is_near(theirs)
        if mine.num == theirs.num:
            if not mine.is_near(theirs):
                return False
            mine.clear()
            theirs.clear()


class _Total:
    """Value, count and gradient of a sum over batches so far, and the sizes of what was added up."""

    def __init__(self, batches: Iterable[Any], slope: Slope, sizes: Sequence[int]):
        self._batches, self._slope, self._sizes = iter(batches), slope, list(sizes)
        self.num, self.eps = 0, float(torch.finfo(torch.float64).eps)
        self.clear()

    def clear(self) -> None:
        """Start anew with the next batch."""
        self.value, self.count, self.size = 0.0, 0.0, 0.0
        self.gradient = torch.zeros(sum(self._sizes), dtype=torch.float64)
        self.scale = torch.zeros(len(self._sizes), dtype=torch.float64)

    def advance(self) -> bool:
        """Take one batch more; False where there is none."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        value, count, gradient = self._slope(batch)
        self.eps, gradient = torch.finfo(gradient.dtype).eps, gradient.double().cpu()
        self.value, self.count, self.size = self.value + value, self.count + count, self.size + abs(value)
        self.gradient += gradient
        self.scale += self._norms(gradient)
        self.num += num_examples(batch)
        return True

    def is_near(self, other: _Total) -> bool:
        """Whether the other total differs by rounding only."""
        relative, absolute = (1e-4, 1e-6) if self.eps > 1e-10 else (1e-8, 1e-12)
        scale = torch.maximum(self.scale, other.scale)
        same_value = abs(self.value - other.value) <= 30 * self.eps * (self.size + other.size)
        same_value = same_value and abs(self.count - other.count) <= 1e-6 * abs(self.count)
        difference = self._norms(self.gradient - other.gradient)
        return same_value and bool((difference <= relative * scale + absolute * scale.sum()).all())

    def _norms(self, gradient: Tensor) -> Tensor:
        return torch.stack([part.norm() for part in torch.split(gradient, self._sizes)])


def _is_same_on_all(ranks: Ranks, mine: _Total, theirs: _Total) -> bool:
    def sums() -> Sums:
        for side in (mine, theirs):
            while side.advance():
                pass
        sizes = torch.tensor([mine.size, theirs.size], dtype=torch.float64)
        numbers = [mine.value, theirs.value, mine.count, theirs.count]
        return numbers, [mine.gradient, mine.scale, theirs.gradient, theirs.scale, sizes]

    question = "a comparison of two cuts of the data"
    (mine.value, theirs.value, mine.count, theirs.count), tensors = ranks.total(question, sums, torch.zeros(1))
    mine.gradient, mine.scale, theirs.gradient, theirs.scale, sizes = tensors
    mine.size, theirs.size = sizes.tolist()
    mine.eps = theirs.eps = max(mine.eps, theirs.eps)
    return bool(ranks.highest(question, lambda: int(not mine.is_near(theirs)), torch.zeros(1)) == 0)


SumOf = Callable[[Any, Any], Tensor]  # (outputs, targets) -> the sum of a loss_fn's terms


def check_terms(pair: Any, sum_of: SumOf) -> bool:
    """loss_fn alone: the gradient in the outputs of an example must not depend on which others are there.

    Not its value: where all terms are alike, weights hardly change the sum, but the Hessian all the same. In float64,
    where loss_fn allows it. Outputs (n, length, ...) of targets (length, n) are cut along both of their dimensions.
    Whether examples lie along dimension 0 of both: where they can't be cut at all, nothing was checked.
    """
    pair = _widest(pair, sum_of)
    straight = _error(pair, (0, 0), sum_of)
    if straight == "":
        return True
    crossed = [error for dims in ((0, 1), (1, 0)) if (error := _error(pair, dims, sum_of)) is not None]
    errors = [error for error in (straight, *crossed) if error]
    if errors and (straight is None or any(crossed) or not crossed):
        raise ValueError(errors[0])
    return False


def is_single(pair: Any) -> bool:
    """Whether it is one example, along dimension 0 of outputs and targets."""
    leaves = tree_leaves(pair)
    return bool(leaves) and all(isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == 1 for leaf in leaves)


def check_together(first: Any, pair: Any, sum_of: SumOf) -> None:
    """The terms of two batches must weigh the same: together they are the mean of both."""
    (left, spec), (right, other) = tree_flatten(first), tree_flatten(pair)
    kinds = [
        [(leaf.shape[1:], leaf.dtype) if isinstance(leaf, Tensor) else None for leaf in side] for side in (left, right)
    ]
    if spec != other or kinds[0] != kinds[1] or None in kinds[0]:
        return
    whole = tree_unflatten([torch.cat([a, b]) for a, b in zip(left, right, strict=True)], spec)
    error = _error(_widest(whole, sum_of), (0, 0), sum_of, [len(tree_leaves(first[1])[0])])
    if error:
        raise ValueError(error)


def _widest(pair: Any, sum_of: SumOf) -> Any:
    """Outputs and targets in float64, if loss_fn takes them."""
    try:
        wide = tree_map(lambda leaf: leaf.double() if is_real(leaf) else leaf, pair)
        _slopes(wide, sum_of)
        return wide
    except Exception:  # its own constants are in float32, or the device has no float64
        return pair


def _lengths(pair: Any, dims: tuple[int, int]) -> tuple[int, int] | None:
    """How long outputs and targets are along these dimensions; None where they can't be cut there together.

    Outputs (n * length, classes) of targets (n, length) can, along dimension 0.
    """
    if not any(map(is_real, tree_leaves(pair[0]))):
        return None
    found = []
    for part, dim in zip(pair, dims, strict=True):
        lengths = {
            int(leaf.shape[dim]) if isinstance(leaf, Tensor) and leaf.ndim > dim else 0 for leaf in tree_leaves(part)
        }
        found.append(lengths.pop() if len(lengths) == 1 else 0)
    outputs, targets = found
    is_whole = targets > 1 and outputs > 0 and outputs % targets == 0
    return (outputs, targets) if is_whole and (outputs == targets or dims == (0, 0)) else None


def _error(pair: Any, dims: tuple[int, int], sum_of: SumOf, cuts: Sequence[int] | None = None) -> str | None:
    """What to say where parts of outputs and targets do not add up to the whole.

    "" where they do, None where they can't be cut along these dimensions.
    """
    lengths = _lengths(pair, dims)
    if lengths is None:
        return None
    num_outputs, n = lengths
    units = num_outputs // n, 1  # along the dimensions, for each target
    whole, total = _slopes(pair, sum_of)
    for cut in sorted({1, n // 2}) if cuts is None else cuts:
        slopes: list[list[Tensor]] = []
        totals = 0.0
        for start, length in ((0, cut), (cut, n - cut)):
            part = [
                tree_map(lambda leaf, dim=dim, unit=unit: leaf.narrow(dim, unit * start, unit * length), side)  # noqa: B023
                for side, dim, unit in zip(pair, dims, units, strict=True)
            ]
            try:
                slope, value = _slopes(part, sum_of)
            except Exception:  # no two parts that belong together
                return None
            slopes.append(slope)
            totals += value
        joined_slopes = [torch.cat(parts, dims[0]) for parts in zip(*slopes, strict=True)]
        difference = torch.stack([(mine - own).norm() for mine, own in zip(joined_slopes, whole, strict=True)]).norm()
        size = torch.stack([own.norm() for own in whole]).norm()
        if not float(difference) <= 1e-4 * float(size) + 1e-9 * abs(total):  # NaN: one part is all ignored
            return _no_mean(cut, n, totals - total, *pair)
    return ""


def _slopes(pair: Any, sum_of: SumOf) -> tuple[list[Tensor], float]:
    """Gradients of the sum in every floating-point tensor of the outputs, and the sum."""
    outputs, targets = pair
    with torch.enable_grad():
        outputs = tree_map(lambda leaf: leaf.detach().requires_grad_() if is_real(leaf) else leaf, outputs)
        leaves = [leaf for leaf in tree_leaves(outputs) if is_real(leaf)]
        total = sum_of(outputs, targets)
        found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return list(found), float(total.detach())


def _no_mean(cut: int, n: int, error: float, outputs: Any, targets: Any) -> str:
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
    return argument_message("loss_fn", received, "the mean loss over the targets", remedy)


def check_derivative(argument: str, function: Callable[[Tensor], Tensor], theta: Tensor) -> None:
    """The gradient of a function at theta (p,), in float64, against differences of its values along a random vector.

    Wrong where an operation's derivative is not that of its value: a straight-through estimator, detach(), a backward
    method of one's own.
    """
    with torch.enable_grad():
        point = theta.clone().requires_grad_()
        value = function(point)
        if not value.requires_grad:
            return
        gradient = torch.autograd.grad(value, point, allow_unused=True, materialize_grads=True)[0]
    if not bool(gradient.isfinite().all()):
        return  # the products will say so, with the operation
    eps, scale = torch.finfo(theta.dtype).eps, float(theta.norm()) or 1.0
    v = torch.randn(len(theta), generator=torch.Generator("cpu").manual_seed(1), dtype=torch.float64, device="cpu")
    v = v.to(theta)
    errors: list[float] = []
    middle = float(value.detach())
    for relative in (1e-5, 1e-7, 1e-3, 1e-6):
        step = relative * scale / float(v.norm())
        with torch.no_grad():
            high, low = (float(function(theta + sign * step * v)) for sign in (1, -1))
        noise = (100 * eps * (abs(high) + abs(low)) + 1e-17) / step  # and what a saturated loss can't show
        errors.append((high - low) / (2 * step) - float(gradient @ v))
        if not abs(high - 2 * middle + low) <= 0.1 * step * abs(errors[-1]):
            return  # a kink at theta, or noise
        if not abs(errors[-1]) > noise + 1e-3 * float(gradient.norm()):
            return
    off = _agreed_error(errors)
    if not off:
        return
    received = f"has a gradient in torch that is not the derivative of its values (off by {off:.2g} along a vector "
    received += f"along which it is {float(gradient @ v):.2g})"
    remedy = (
        "Look for detach(), rounding with a straight-through gradient, backward methods of your own, and "
        "operations at points where they have no derivative (the determinant of a singular matrix)."
    )
    raise ValueError(argument_message(argument, received, "a gradient that is its derivative", remedy))


def _agreed_error(errors: Sequence[float]) -> float:
    """The size of an error on which several steps agree, as those do not that are rounding; 0 where there is none."""
    if not all(map(math.isfinite, errors)):
        return 0.0
    least = min(map(abs, errors))
    alike = [error for error in errors if abs(error - min(errors, key=abs)) <= 0.1 * least]
    return least if len(alike) > 1 else 0.0


def is_real(leaf: Any) -> bool:
    """Whether it is a floating-point tensor."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _reaches_weights(total: Tensor, point: Tensor) -> bool:
    """Whether the autograd graph of `total` ends in parameters other than `point`.

    Other leaves are the loss's own: the inputs of a loss that differentiates by them.
    """
    seen, stack = set(), [total.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter) and variable is not point:
            return True
        stack += [following for following, _ in node.next_functions]
    return False
