"""Global random states of torch, numpy and `random`: saved, set from a seed, and put back.

Loaders and augmenting data sets draw from these global states. Whatever the library reads or runs leaves them as they
were; torch's are set for one device at a time, since `torch.manual_seed` would seed every GPU too.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def private_generator(seed: int, purpose: str) -> torch.Generator:
    """A generator on the CPU whose stream is no one else's.

    Many models draw their weights from the stream of a small seed, and a tool that was given the same small number
    would draw them again: a "random" direction along the initial weights. So the stream belongs to seed and purpose.
    """
    digest = hashlib.sha256(f"lowhanging: {purpose}, {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))  # the generator uses 32 bits


@contextlib.contextmanager
def untouched_random_state() -> Iterator[None]:
    """Save and restore the global random states of torch (every device in use), numpy and `random`."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)


@contextlib.contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Random states of torch, numpy and `random` set from `seed` inside; the states as they were afterwards."""
    with untouched_random_state():
        seed_random_states(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def seed_random_states(seed: int) -> None:
    """Seed the CPU's global random states."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - data sets that augment draw from this global state


def random_states() -> dict[str, Any]:
    """The global states, as plain values and tensors that can be written to a file."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.array(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """What `random_states` returned, made the states again."""
    kind, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state_all(states["cuda"])


def draws_so_far() -> bytes:
    """Changes when anyone draws from the global states of numpy or `random` (torch's draws are seen as operations)."""
    return pickle.dumps((random.getstate(), np.random.get_state()))  # noqa: NPY002
