"""Which layers keep a loss from being a smooth function of the weights?

One forward pass is watched operation by operation, so functional calls (`F.relu` inside a forward method) are found as
surely as modules, and each finding names the innermost module that made the call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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


@dataclass(frozen=True)
class Finding:
    """One operation that is not smooth ("kinked"), draws random numbers ("random") or mixes examples ("batch")."""

    kind: Literal["kinked", "random", "batch"]
    layer: str  # dotted name of the innermost module, "" = outside every submodule
    class_name: str
    operation: str

    def __str__(self) -> str:
        place = f"layer {self.layer!r} ({self.class_name})" if self.layer else f"{self.class_name} itself"
        return f"{place} calls {self.operation}"


def findings(model: nn.Module, forward: Callable[[], Any]) -> list[Finding]:
    """What `forward()`, a call that runs `model`, does that a smooth function of the weights does not."""
    found: dict[Finding, None] = {}
    with _watched(model) as stack, _Watch(stack, found):
        forward()
    return list(found)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, stack: list[tuple[str, str]], found: dict[Finding, None]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._stack, self._found = stack, found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = _kind(func, args, kwargs or {})
        layer, class_name = self._stack[-1] if self._stack else ("", LOSS_FUNCTION)
        # An instance norm is computed as the batch norm of one example with (examples x channels) channels.
        is_instance_norm = kind == "batch" and args[0].shape[0] == 1 and "BatchNorm" not in class_name
        if kind is not None and not is_instance_norm:
            name = func.overloadpacket.__name__.rstrip("_")
            self._found[Finding(kind, layer, class_name, name)] = None
        return func(*args, **(kwargs or {}))


def _kind(func: Any, args: Any, kwargs: Any) -> Literal["kinked", "random", "batch"] | None:
    name = func.overloadpacket.__name__.rstrip("_")
    is_training = True  # operations without that argument are only called then
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "training":
            given = args[position] if position < len(args) else kwargs.get("training")
            is_training = argument.default_value if given is None else given
    if is_training and (torch.Tag.nondeterministic_seeded in func.tags or name == "random"):
        return "random"
    if is_training and name in _NORMS:
        return "batch"
    if not any(isinstance(item, torch.Tensor) and item.requires_grad for item in args):
        return None  # abs() of the data is no kink in the weights
    # clamp(min=0) is a ReLU; clamp(min=1e-12) only guards a division.
    is_relu = name in ("clamp", "clamp_min") and len(args) > 1 and isinstance(args[1], int | float) and args[1] == 0
    return "kinked" if name in _KINKED or is_relu else None


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


@contextlib.contextmanager
def differentiable_kernels(model: nn.Module | None) -> Iterator[None]:
    """Switch off, for this block, the kernels without second derivatives; every flag is put back, also after an error.

    Fused attention lacks a double backward, MKL-DNN's and cuDNN's recurrent layers lack forward differentiation, the
    fast path of nn.TransformerEncoder would make value and gradient two different computations, and autocast would
    round inside the loss; so would TensorFloat-32, which torch by default lets cuDNN's convolutions use on a GPU
    (measured: eigenpairs of a convolutional net off by 7e-4 of the largest). Without a model (any function of theta), a
    recurrent layer is assumed.
    """
    is_recurrent = model is None or any(isinstance(module, nn.RNNBase) for module in model.modules())
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(device, enabled=False))
        cudnn: Any = torch.backends.cudnn
        for kernels in (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul):
            stack.callback(setattr, kernels, "fp32_precision", kernels.fp32_precision)
            kernels.fp32_precision = "ieee"
        if is_recurrent:
            backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
            for backend in backends:
                stack.callback(setattr, backend, "enabled", backend.enabled)
                backend.enabled = False
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        torch.backends.mha.set_fastpath_enabled(False)
        yield
