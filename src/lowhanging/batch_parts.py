"""What is in a batch: which parts are inputs, which are targets, and how many answers were right?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from lowhanging.batches import TARGET_KEYS
from lowhanging.errors import a_type, explain

_PAIRS = (
    "Yield pairs, or pass batch_loss=(model, batch) -> (sum, count). One data set is a tuple: (inputs, targets), not a "
    "list."
)


def parted(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """A batch as (positional inputs, keyword inputs, targets)."""
    if isinstance(batch, Mapping):
        key = next((name for name in TARGET_KEYS if name in batch), None)
        if key is not None:
            return (), {name: value for name, value in batch.items() if name != key}, batch[key]
        received = f"has the keys {list(batch)}"
        raise ValueError(
            explain("batch", received, f"one of {TARGET_KEYS} for the targets", "Rename it, or pass batch_loss=.")
        )
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return tuple(batch[:-1]), {}, batch[-1]
    received = f"is {a_type(batch)}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
    raise ValueError(
        explain(
            "batch", received, "(inputs, targets)", _PAIRS
        )
    )


def logits_of(outputs: Any) -> Any:
    """A model's outputs as one tensor, for the default loss and to count answers: `.logits`, where they have that."""
    return outputs.logits if hasattr(outputs, "logits") and not isinstance(outputs, Tensor) else outputs


def some_of(batch: Any, where: slice) -> Any | None:
    """Some of a batch's examples; None where its parts have no common first dimension."""
    leaves, spec = tree_flatten(batch)
    lengths = {leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves}
    return None if len(lengths) != 1 or None in lengths else tree_unflatten([leaf[where] for leaf in leaves], spec)


def attempt(call: Callable[[], Any], batch: Any) -> Any:
    """call(), torch's complaint about shapes or dtypes turned into ours."""
    try:
        return call()
    except (RuntimeError, TypeError, IndexError, AttributeError, ValueError) as error:
        if type(error) is ValueError and ", expected " in str(error) and "\n" in str(error):
            raise  # one of ours
        if "use_reentrant" in str(error):
            received = "uses reentrant checkpointing, which takes no torch.autograd.grad"
            remedy = "Pass use_reentrant=False to torch.utils.checkpoint.checkpoint: the numbers are the same."
            expected = "checkpointing that can be differentiated twice"
            raise ValueError(explain("model", received, expected, remedy)) from error
        shapes = [tuple(leaf.shape) for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
        remedy = "Check one batch by hand: loss_fn(model(*inputs), targets)."
        if isinstance(batch, Mapping):
            names = list(parted(batch)[1])
            remedy = f"Its entries {names} go to forward by name: rename or drop some, or pass batch_loss=."
        first_line = (str(error).splitlines() or [""])[0]
        if any(narrow in first_line for narrow in ("BFloat16", "Half")):
            remedy += " Half-precision weights are studied in float32: let forward cast to a weight's dtype."
        elif "dtype" in first_line and any(narrow in first_line for narrow in ("float", "double", "Float", "Double")):
            remedy += " Data and weights of one precision: inputs.double() for a model in float64."
        failure = f"{type(error).__name__}: {first_line}"
        received = f"has batches of shapes {shapes}, on which the model or its loss failed ({failure})"
        raise ValueError(explain("data", received, "batches that the model and its loss accept", remedy)) from error


class Tally:
    """Counts right answers where outputs (n, classes, ...) and integer targets (n, ...) allow it."""

    def __init__(self) -> None:
        self.num_right: Tensor | int = 0
        self.num_targets = 0

    def add(self, outputs: Any, targets: Any) -> None:
        outputs = logits_of(outputs)
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or targets.is_floating_point():
            return
        if outputs.ndim == targets.ndim + 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape:
            self.num_right = self.num_right + (outputs.argmax(1) == targets).sum()  # a tensor: no sync, and it can vmap
            self.num_targets += targets.numel()

    @property
    def accuracy(self) -> float | None:
        return float(self.num_right) / self.num_targets if self.num_targets else None
