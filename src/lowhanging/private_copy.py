"""How is the user's model taken, so that nothing done with it can reach the user?

A loss is computed on a deep copy. What the copy changes on the way (precision, flags, a padding row) it changes on the
copy alone; what can't be studied (nothing trainable, NaN weights, no such device) is said before anything is copied.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowhanging.errors import a_type, check_device, check_finite, explain
from lowhanging.parameters import ParameterSpace


def private_copy(model: nn.Module, mode: str, device: torch.device | str | None) -> nn.Module:
    """A copy on `device`, in float32 at least, with the train/eval flags that `mode` asks for."""
    if not isinstance(model, nn.Module):
        remedy = "Wrap a function of theta in FunctionObjective(function, theta0)."
        raise TypeError(explain("model", f"is {a_type(model)}", "a torch.nn.Module", remedy))
    wanted = None if device is None else check_device(device)
    ParameterSpace(model)  # nothing trainable, NaN weights ...: said before anything is copied
    for name, weight in model.named_parameters():  # frozen ones count too; a buffer may be a mask of -inf
        check_finite(f"parameter {name!r}", weight.detach(), remedy="Train with a smaller step, or reload.")
    private = copied(model)
    private.zero_grad(set_to_none=True)
    for module in private.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # it hides a row from the gradient, and the Hessian would not be symmetric
    if mode == "eval":
        private.eval()
    # bfloat16 and float16 weights are studied in float32; float64 stays.
    return widened(private if wanted is None else private.to(wanted), ParameterSpace(private).dtype)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; what a forward pass has left on a module (a stored activation) is copied without its graph."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for leaf in tree_leaves(vars(module)):
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        received = f"({type(model).__name__}) can't be copied ({type(error).__name__}: {error})"
        remedy = "Take off it what can't: open files, locks, stored activations."
        raise ValueError(explain("model", received, "a model that copy.deepcopy can copy", remedy)) from error


def widened(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself, its narrower real tensors in `dtype`; wider, complex and integer ones stay."""

    def widen(tensor: Tensor) -> Tensor:
        is_narrower = tensor.is_floating_point() and torch.promote_types(tensor.dtype, dtype) == dtype
        return tensor.to(dtype) if is_narrower else tensor

    return cast(nn.Module, module._apply(widen))  # type: ignore[no-untyped-call]


def own_function(name: str, function: Any, device: torch.device) -> Any:
    """A loss function that nobody else can change: a module is copied, to where the model is."""
    if isinstance(function, type) or not (function is None or callable(function)):
        received = f"is the class {function.__name__}" if isinstance(function, type) else f"is {function!r}"
        raise TypeError(explain(name, received, "a function or an instance", "Pass F.mse_loss or nn.MSELoss()."))
    return copy.deepcopy(function).to(device) if isinstance(function, nn.Module) else function
