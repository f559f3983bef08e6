"""Process-wide settings under which a loss can be differentiated twice: kernels, autocast, one thread at a time.

Fused kernels lack second derivatives, and some of torch's operations have a derivative that is not that of their value.
Both are switched off, or computed by other operations, for the time of one call of the model; settings that calls of
several threads want at once are put back by the last of them.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

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


_cudnn: Any = torch.backends.cudnn
_TENSOR_FLOAT: tuple[Any, ...] = (_cudnn.conv, _cudnn.rnn, torch.backends.cuda.matmul)  # owners of a precision


def _kernels() -> tuple[Any, ...]:
    cuda: Any = torch.backends.cuda
    attention = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
    is_fast = torch.backends.mha.get_fastpath_enabled()
    return *attention, cuda.math_sdp_enabled(), is_fast, *(owner.fp32_precision for owner in _TENSOR_FLOAT)


def _set_kernels(wanted: tuple[Any, ...]) -> None:
    cuda = torch.backends.cuda
    switches = cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp, cuda.enable_math_sdp
    for switch, flag in zip((*switches, torch.backends.mha.set_fastpath_enabled), wanted[:5], strict=True):
        switch(flag)
    for owner, precision in zip(_TENSOR_FLOAT, wanted[5:], strict=True):
        owner.fp32_precision = precision


def _set_recurrent(wanted: tuple[bool, bool]) -> None:
    torch.backends.mkldnn.enabled, _cudnn.enabled = wanted  # type: ignore[assignment]


_KERNELS = _Setting(_kernels, _set_kernels, (False, False, False, True, False, "ieee", "ieee", "ieee"))
_RECURRENT = _Setting(lambda: (torch.backends.mkldnn.enabled, _cudnn.enabled), _set_recurrent, (False, False))


def is_recurrent(model: nn.Module | None) -> bool:
    """Whether a model has a layer of torch's recurrent kernels, or may have: without a model."""
    return model is None or any(isinstance(module, nn.RNNBase) for module in model.modules())


@contextlib.contextmanager
def differentiable_kernels(model: nn.Module | bool | None, *, rewrite: bool = False) -> Iterator[None]:
    """Switch off, for this block, the kernels without second derivatives; every setting is put back afterwards.

    Fused attention lacks a double backward, MKL-DNN's and cuDNN's recurrent layers lack forward differentiation, the
    fast path of nn.TransformerEncoder would make value and gradient two different computations, and autocast would
    round inside the loss; so would TensorFloat-32, which torch by default lets cuDNN's convolutions use on a GPU.
    Without a model (any function of theta), a recurrent layer is assumed; in its place may stand what `is_recurrent`
    said of it. With `rewrite`, see `Rewriting`.
    """
    has_recurrent = model if isinstance(model, bool) else is_recurrent(model)
    with (
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else contextlib.nullcontext(),
        _KERNELS,
        _RECURRENT if has_recurrent else contextlib.nullcontext(),
        Rewriting() if rewrite else contextlib.nullcontext(),
    ):
        yield


def autocasting() -> list[str]:
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
        for device in autocasting():
            with torch.autocast(device, enabled=False):
                return self.__torch_function__(func, types, args, kwargs)
        if func is F.embedding:
            given = EMBEDDING.bind(*args, **kwargs).arguments
            if given.get("max_norm") is None:
                return F.embedding(given["input"], given["weight"])
        elif func is torch.embedding:
            weight, indices = (*args, *kwargs.values())[:2]
            return torch.embedding(weight, indices)
        elif func is F.embedding_bag:
            bound = EMBEDDING_BAG.bind(*args, **kwargs)
            bound.apply_defaults()
            if bound.arguments["max_norm"] is None and bound.arguments["mode"] != "max":
                return _embedding_bag(bound.arguments)
        elif func is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        return func(*args, **kwargs)


EMBEDDING, EMBEDDING_BAG = inspect.signature(F.embedding), inspect.signature(F.embedding_bag)


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
