"""Predicted seconds of a product, and when a recording of it pays: from shapes alone, never from a clock.

    kept graph    2 m / M + 2 c / C + b / B + 2 n t
    recorded      that less s b + u n - l d
    recording     r + q n, and one product by the kept graph

for m and c flops of matrix products and convolutions, n operations, and b bytes that the others of them write, d of
these by layer norms, which a recording takes apart. They are counted in the gradient of the first batch. The constants
were fitted to the networks of `benchmarks/curvature_tasks.py` on one core of an x86 processor with AVX-512
(`benchmarks/products.py` prints both, and what was measured). Only ratios matter, so other processors choose nearly as
well; the same loss chooses alike on all.

Until a recording pays, products go by the kept graph, and it is made once what it would have saved so far exceeds what
it costs: never more than about twice the best choice in hindsight (ski rental).
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

NEVER = 2**62

_aten = torch.ops.aten
_NORMS = (
    _aten.native_layer_norm, _aten.native_layer_norm_backward,
    _aten.native_group_norm, _aten.native_group_norm_backward,
)  # fmt: skip

_MATRIX_FLOPS, _CONVOLUTION_FLOPS = 1.8e11, 1.0e11  # M, C: per second
_BYTES = 1.0e9  # B: per second, read again and written by the second derivative
_OPERATION = 1.0e-5  # t: seconds to start one
_SAVED_PER_BYTE, _SAVED_PER_OPERATION, _LOST_PER_NORM_BYTE = 0.4e-9, 5.0e-6, 4.0e-9  # s, u, l: seconds
_RECORDED_BYTES = 2.0  # of those of the graph
_RECORDING, _RECORDING_PER_OPERATION = 0.5, 5.0e-3  # r, q: seconds
_SHARE_OF_CACHE = 3.0e5  # bytes that one operation writes: its operands then stay in a core's cache
_PER_WEIGHT = 1.2e-7  # seconds, five times what a micro-batch takes whatever its size: it writes vectors of p numbers
_INTENSE = 12.0  # flops of convolutions per byte: beyond it they bind, and want many images
DEFAULT_MICRO_BATCH, _LARGEST_MICRO_BATCH = 256, 4096
_GPU = 50.0  # so much quicker is what takes flops or bytes; operations and recordings are not


@dataclass(frozen=True)
class Work:
    """What a gradient with its graph takes."""

    matrix_flops: float
    convolution_flops: float
    num_bytes: float  # written by other operations
    num_operations: int
    speedup: float = 1.0  # of flops and bytes, by the device
    norm_bytes: float = 0.0  # of those bytes

    @property
    def gradient(self) -> Work:
        """The work of a gradient with its graph, where this is that of the value."""
        flops = 3 * self.matrix_flops, 3 * self.convolution_flops
        return Work(*flops, 4 * self.num_bytes, 5 * self.num_operations, self.speedup)

    @property
    def product(self) -> float:
        """Seconds of a product by the kept graph."""
        flops = 2 * self.matrix_flops / _MATRIX_FLOPS + 2 * self.convolution_flops / _CONVOLUTION_FLOPS
        return (flops + self.num_bytes / _BYTES) / self.speedup + 2 * self.num_operations * _OPERATION

    @property
    def saved(self) -> float:
        """Seconds that a recorded product saves."""
        by_bytes = self.num_bytes * _SAVED_PER_BYTE - self.norm_bytes * _LOST_PER_NORM_BYTE
        return by_bytes / self.speedup + self.num_operations * _SAVED_PER_OPERATION

    @property
    def recording(self) -> float:
        """Seconds to record one."""
        return _RECORDING + self.num_operations * _RECORDING_PER_OPERATION


def micro_batch(two: Work, four: Work, num_params: int) -> int:
    """Examples to evaluate at once, from the work of the values of two and of four.

    So many that what an operation writes stays in the cache; more where convolutions bind, or where writing gradients
    would take longer than the examples.
    """
    per_example = (four.num_bytes - two.num_bytes) / 2
    operations = max(four.num_operations, 1)
    intensity = (four.convolution_flops - two.convolution_flops) / (2 * max(per_example, 1.0))
    of_cache = _SHARE_OF_CACHE * operations * four.speedup / max(per_example, 1.0) * max(1.0, intensity / _INTENSE)
    seconds = max(four.gradient.product - two.gradient.product, 1e-9) / 2
    of_weights = _PER_WEIGHT * num_params / (four.speedup * seconds)
    return int(min(_LARGEST_MICRO_BATCH * (16 if four.speedup > 1 else 1), max(8, of_cache, of_weights)))


def products_until_recorded(
    work: Work, num_batches: int, num_shapes: int, graph_bytes: float = 0.0, keep_bytes: float = math.inf
) -> int:
    """The products after which recordings for batches of so many shapes pay.

    `work` is that of one batch, whose graph takes `graph_bytes`. What does not fit `keep_bytes` is computed anew for
    every product, and a recording keeps more than a graph.
    """
    kept, kept_by_recording = (
        min(1.0, keep_bytes / max(factor * graph_bytes * num_batches, 1.0)) for factor in (1.0, _RECORDED_BYTES)
    )
    saved = (work.saved - (kept - kept_by_recording) * work.product / 2) * num_batches
    spent = work.recording * num_shapes + work.product * num_batches
    return math.ceil(spent / saved) if saved > 0 else NEVER


def machine_memory(device: torch.device) -> int:
    """Bytes that a device has, or that this process may use of them; 16 GiB where there is no telling."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [16 * 2**30]
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not on Windows
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # of a container; "max" is none
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


class OperationMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that does not load torch.compile when it is first used: that takes seconds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Counting(OperationMode):
    """Counts what runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self._flops = {"matrix": 0.0, "convolution": 0.0}
        self._num_bytes, self._norm_bytes, self._num_operations, self._is_gpu = 0.0, 0.0, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and add what it took."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        self._num_operations += 1
        if packet in flop_registry:
            kind = "convolution" if "conv" in str(packet) else "matrix"
            with contextlib.suppress(Exception):  # a layout that the formula does not know: sparse, nested
                self._flops[kind] += flop_registry[packet](*args, **kwargs, out_val=out)
        elif not func.is_view:
            written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            num_bytes = sum(leaf.numel() * leaf.element_size() for leaf in written)
            self._num_bytes += num_bytes
            self._norm_bytes += num_bytes if packet in _NORMS else 0
            self._is_gpu = self._is_gpu or any(leaf.device.type != "cpu" for leaf in written)
        return out

    @property
    def work(self) -> Work:
        """What has run so far."""
        speedup = _GPU if self._is_gpu else 1.0
        flops = self._flops["matrix"], self._flops["convolution"]
        return Work(*flops, self._num_bytes, self._num_operations, speedup, self._norm_bytes)
