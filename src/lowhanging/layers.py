"""Which layers keep a loss from being a smooth function of the weights?

One forward pass is watched operation by operation, so functional calls (`F.relu` inside a forward method) are found as
surely as modules, and each finding names the innermost module that made the call.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lowhanging.errors import explain

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
    "native_batch_norm",
    "_native_batch_norm_legit",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_batch_norm_with_update",
}


Stored = Mapping[int, tuple[str, torch.Tensor]]  # memory -> name, tensor
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
    model: nn.Module,
    forward: Callable[[], Any],
    *,
    stored: Stored | None = None,
    theta: torch.Tensor | None = None,
) -> list[Finding]:
    """What `forward()`, a call that runs `model`, does that a smooth function of the weights does not.

    `stored` are tensors that do not move with the weights though they were computed from them: memory -> name and
    tensor, which keeps the memory from being used for another one. `theta` holds the weights.
    """
    found: dict[Finding, None] = {}
    weights = 0 if theta is None else theta.untyped_storage().data_ptr()
    with _watched(model) as stack, _WatchCalls(stack, found), _Watch(stack, found, stored or {}, weights):
        forward()
    return list(found)


class _WatchCalls(TorchFunctionMode):
    """What only the calls of torch's functions show: embeddings that write into their weights, and autocast."""

    def __init__(self, stack: list[tuple[str, str]], found: dict[Finding, None]):
        super().__init__()
        self._stack, self._found = stack, found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _autocasting():
            layer, class_name = self._stack[-1] if self._stack else ("", LOSS_FUNCTION)
            self._found[Finding("rewrite", layer, class_name, "autocast")] = None
        signature = _EMBEDDING if func is F.embedding else _EMBEDDING_BAG if func is F.embedding_bag else None
        if signature and signature.bind(*args, **(kwargs or {})).arguments.get("max_norm") is not None:
            place = self._stack[-1][0] if self._stack else LOSS_FUNCTION
            received = f"rewrites its weights when run: the embedding in {place!r} has max_norm"
            remedy = "Renormalize its weights once, and set max_norm = None."
            raise ValueError(explain("model", received, "a function of the weights", remedy))
        return func(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, stack: list[tuple[str, str]], found: dict[Finding, None], stored: Stored, weights: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self._stack, self._found, self._stored, self._weights = stack, found, stored, weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = _kind(func, args, kwargs or {})
        layer, class_name = self._stack[-1] if self._stack else ("", LOSS_FUNCTION)
        # An instance norm is computed as the batch norm of one example with (examples x channels) channels.
        is_instance_norm = kind == "batch" and args[0].shape[0] == 1 and "BatchNorm" not in class_name
        if kind is not None and not is_instance_norm:
            name = func.overloadpacket.__name__.rstrip("_")
            self._found[Finding(kind, layer, class_name, name)] = None
        for leaf in tree_leaves((args, kwargs)) if self._stored else ():
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
                kept = self._stored.get(leaf.untyped_storage().data_ptr())
                if kept is not None:
                    self._found[Finding("stored", layer, class_name, kept[0])] = None
        result = func(*args, **(kwargs or {}))
        if self._weights and _saves_by_hooks() and any(self._is_weight(item) for item in args):
            self._found[Finding("recomputed", layer, class_name, func.overloadpacket.__name__)] = None
        return result

    def _is_weight(self, item: Any) -> bool:
        return isinstance(item, torch.Tensor) and item.untyped_storage().data_ptr() == self._weights


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
    if not any(isinstance(item, torch.Tensor) and item.requires_grad and not item.is_complex() for item in args):
        return None  # abs() of the data is no kink in the weights, and that of a complex number is a norm
    # clamp(min=0) is a ReLU; clamp(min=1e-12) only guards a division.
    is_relu = name in ("clamp", "clamp_min") and len(args) > 1 and isinstance(args[1], int | float) and args[1] == 0
    return "kinked" if name in _KINKED or is_relu else None


_REWRITTEN = ("_weight_norm_interface", "_embedding_bag", "_embedding_bag_forward_only")


def _has_options(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an embedding has options that change its gradient alone."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    hides = named.get("padding_idx", -1) >= 0
    return bool(hides or named.get("scale_grad_by_freq", False) or named.get("sparse", False))


class Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches for the narrowest floating-point dtype in which something that depends on the weights is computed.

    Attributes:
        dtype: that one; float64 before anything was seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(item, torch.Tensor) and item.requires_grad for item in args):
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                    self.dtype = min(self.dtype, leaf.dtype, key=lambda dtype: dtype.itemsize)
        return result


class SingularOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches for operations at points where torch has no derivative of them, zero as a rule.

    Attributes:
        found: their names, in the order of the calls.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        inputs = [item for item in args if isinstance(item, torch.Tensor)]
        if name in ("linalg_vector_norm", "norm", "hypot", "_cdist_forward", "dist"):
            is_singular = bool((result == 0).any())
        elif name in ("sqrt", "rsqrt", "pow", "log", "reciprocal", "float_power"):
            is_singular = bool(inputs and (inputs[0] == 0).any())
        elif name == "atan2":
            is_singular = bool(((inputs[0] == 0) & (inputs[1] == 0)).any())
        elif name in ("acos", "asin", "atanh", "acosh"):
            is_singular = bool((inputs[0].abs() == 1).any())
        elif name in ("_linalg_det", "_linalg_slogdet", "std", "std_mean"):
            is_singular = bool(((result[0] if isinstance(result, tuple) else result) == 0).any())
        elif name in ("abs", "angle", "sgn"):
            is_singular = bool(inputs[0].is_complex() and (inputs[0] == 0).any())
        else:
            return result
        if is_singular and name not in self.found:
            self.found.append(name)
        return result


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """A stack of (name, class) of the modules being run; the hooks are on `model` only inside the block."""
    stack: list[tuple[str, str]] = []
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


# Held by one thread of the process at a time, by the same one as often as it likes: levels of forward differentiation,
# the tracer and the filters of warnings belong to the process.
ONE_AT_A_TIME = threading.RLock()


class GraphWhereNeeded:
    """Calls a loss; one that differentiates by its inputs gets a graph to do so where the caller wants none."""

    def __init__(self) -> None:
        self._is_needed = False

    def __call__(self, call: Callable[[], Any]) -> Any:
        if torch.is_grad_enabled():
            return call()
        if not self._is_needed:
            try:
                return call()
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
        with torch.enable_grad():
            result = call()
        self._is_needed = True
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, result)


class _Setting:
    """A setting of the whole process that calls may want at once: the first saves and sets it, the last puts it back.

    Were it saved and put back by each call, calls of two threads that overlap would leave it changed.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None], wanted: Any):
        self._read, self._write, self._wanted = read, write, wanted
        self._lock, self._num_holders, self._saved = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if self._num_holders == 0:
                self._saved = self._read()
                self._write(self._wanted)
            self._num_holders += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_holders -= 1
            if self._num_holders == 0:
                self._write(self._saved)


def _attribute(owner: Any, name: str, wanted: Any) -> _Setting:
    return _Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value), wanted)


def _attention_kernels() -> tuple[bool, ...]:
    cuda: Any = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled(), cuda.math_sdp_enabled()


def _set_attention_kernels(flags: tuple[bool, ...]) -> None:
    cuda = torch.backends.cuda
    switches = cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp, cuda.enable_math_sdp
    for switch, flag in zip(switches, flags, strict=True):
        switch(flag)


_cudnn: Any = torch.backends.cudnn
_SETTINGS = (
    _Setting(_attention_kernels, _set_attention_kernels, (False, False, False, True)),
    _Setting(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, False),
    *(
        _attribute(kernels, "fp32_precision", "ieee")
        for kernels in (_cudnn.conv, _cudnn.rnn, torch.backends.cuda.matmul)
    ),
)
_RECURRENT = (_attribute(torch.backends.mkldnn, "enabled", False), _attribute(_cudnn, "enabled", False))


@contextlib.contextmanager
def differentiable_kernels(model: nn.Module | None, *, rewrite: bool = False) -> Iterator[None]:
    """Switch off, for this block, the kernels without second derivatives; every setting is put back afterwards.

    Fused attention lacks a double backward, MKL-DNN's and cuDNN's recurrent layers lack forward differentiation, the
    fast path of nn.TransformerEncoder would make value and gradient two different computations, and autocast would
    round inside the loss; so would TensorFloat-32, which torch by default lets cuDNN's convolutions use on a GPU
    (measured: eigenpairs of a convolutional net off by 7e-4 of the largest). Without a model (any function of theta), a
    recurrent layer is assumed. With `rewrite`, operations whose torch derivative is not that of their value are
    computed by others, see `Rewriting`.
    """
    is_recurrent = model is None or any(isinstance(module, nn.RNNBase) for module in model.modules())
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(device, enabled=False))
        for setting in (*_SETTINGS, *(_RECURRENT if is_recurrent else ())):
            stack.enter_context(setting)
        if rewrite:
            stack.enter_context(Rewriting())
        yield


def _autocasting() -> list[str]:
    """The devices for which autocast is on in this thread."""
    return [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]


class Rewriting(TorchFunctionMode):
    """Operations whose derivative in torch is not the derivative of their value, computed by others.

    Embeddings with `padding_idx` hide a row from the gradient, with `scale_grad_by_freq` they scale it, with `sparse`
    they make it a sparse tensor; bags of them have no second derivative; the fused weight normalization has a wrong
    second derivative in reverse (torch 2.13). And autocast that forward switches on for itself is off in every call: a
    loss is computed in the precision of its weights.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        for device in _autocasting():
            with torch.autocast(device, enabled=False):
                return self.__torch_function__(func, types, args, kwargs)
        if func is F.embedding:
            given = _EMBEDDING.bind(*args, **kwargs).arguments
            if given.get("max_norm") is None:
                return F.embedding(given["input"], given["weight"])
        elif func is torch.embedding:
            weight, indices = (*args, *kwargs.values())[:2]
            return torch.embedding(weight, indices)
        elif func is F.embedding_bag:
            bound = _EMBEDDING_BAG.bind(*args, **kwargs)
            bound.apply_defaults()
            if bound.arguments["max_norm"] is None and bound.arguments["mode"] != "max":
                return _embedding_bag(bound.arguments)
        elif func is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        return func(*args, **kwargs)


_EMBEDDING, _EMBEDDING_BAG = inspect.signature(F.embedding), inspect.signature(F.embedding_bag)


def _embedding_bag(given: Mapping[str, Any]) -> torch.Tensor:
    """Sums or means of the rows of bags, by an embedding: torch's own operation has no second derivative."""
    indices, weight, offsets = given["input"], given["weight"], given["offsets"]
    if indices.ndim == 2:
        num_bags, bag = len(indices), torch.arange(len(indices), device=weight.device)[:, None].expand(indices.shape)
        indices, bag = indices.reshape(-1), bag.reshape(-1)
    else:
        num_bags = len(offsets) - bool(given["include_last_offset"])
        ends = offsets[1 : num_bags + 1] if len(offsets) > num_bags else offsets[1:]
        bag = torch.searchsorted(ends, torch.arange(len(indices), device=ends.device), right=True)
    factors = weight.new_ones(len(indices))
    if given["padding_idx"] is not None:
        factors = factors * (indices != given["padding_idx"] % len(weight))
    count = weight.new_zeros(num_bags).index_add(0, bag, factors).clamp(min=1)
    if given["per_sample_weights"] is not None:
        factors = factors * given["per_sample_weights"].reshape(-1)
    rows = F.embedding(indices, weight) * factors[:, None]
    total: torch.Tensor = weight.new_zeros(num_bags, weight.shape[1]).index_add(0, bag, rows)
    return total / count[:, None] if given["mode"] == "mean" else total


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """The weight v * g / |v|, the norm over all dimensions but `dim`; over all where that is -1."""
    others = [i for i in range(v.ndim) if i != dim % v.ndim] if dim != -1 else list(range(v.ndim))
    return v * (g / v.square().sum(others, keepdim=True).sqrt())
