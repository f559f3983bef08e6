"""Private copies of the user's model and loss function: nothing that is done with them can reach the user.

What a copy changes on the way (precision, flags, a padding row) it changes on itself alone; what can't be studied
(nothing trainable, NaN weights, no such device) is said before anything is copied.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowhanging.errors import a_type, argument_message, check_device, check_finite
from lowhanging.objective.parameters import ParameterSpace, tie, ties_of


def private_copy(model: nn.Module, mode: str, device: torch.device | str | None) -> nn.Module:
    """A copy on `device`, in float32 at least, with the train/eval flags that `mode` asks for."""
    if not isinstance(model, nn.Module):
        remedy = "Wrap a function of theta in FunctionObjective(function, theta0)."
        if hasattr(model, "hvp"):
            remedy = "It is an objective already: pass it to the tools as it is."
        raise TypeError(argument_message("model", f"is {a_type(model)}", "a torch.nn.Module", remedy))
    # To ask torch for the class of compiled modules would load the compiler, for seconds.
    compiled = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", ())
    for wrapper, name, inner in ((nn.DataParallel, "DataParallel", "module"), (compiled, "torch.compile", "_orig_mod")):
        if isinstance(model, wrapper):
            received = f"is wrapped by {name}"
            raise ValueError(argument_message("model", received, "the module itself", f"Pass model.{inner}."))
    _check_weights(model)
    wanted = None if device is None else check_device(device)
    ParameterSpace(model)  # nothing trainable, NaN weights ...: said before anything is copied
    for name, weight in model.named_parameters():  # frozen ones count too; a buffer may be a mask of -inf
        check_finite(f"parameter {name!r}", weight.detach(), remedy="Train with a smaller step, or reload.")
    private = copied(model)
    private.zero_grad(set_to_none=True)
    if mode == "eval":
        private.eval()
    # bfloat16 and float16 weights are studied in float32; float64 stays.
    dtype = ParameterSpace(private).dtype
    if wanted is not None:
        private.to(wanted)
        tie(private, ties_of(model))
    return widened(private, dtype)


def _check_weights(model: nn.Module) -> None:
    """Refuse weights without numbers, or in a layout that theta can't hold."""
    if isinstance(model, torch.jit.ScriptModule):
        received = "is scripted (torch.jit), and takes no weights from outside"
        raise ValueError(argument_message("model", received, "the module it was made of", "Pass the plain nn.Module."))
    for name, weight in model.named_parameters():
        received, expected = "", "a weight with numbers"
        if isinstance(weight, nn.parameter.UninitializedParameter):
            received = "has no shape yet"
            remedy = "Run the model on one batch first: model(inputs) gives a lazy layer its shape."
        elif weight.device.type == "meta":
            received = "is on the meta device"
            remedy = 'Load the weights: model.to_empty(device="cpu"), then load_state_dict.'
        elif weight.layout != torch.strided and weight.requires_grad:
            received, expected = f"is sparse ({weight.layout})", "a dense weight"
            remedy = "Keep a dense one, or only its values as a parameter."
        if received:
            raise ValueError(argument_message(f"parameter {name!r}", received, expected, remedy))


def computed_tensors(model: nn.Module, private: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """What a model holds beside its weights that was computed from them: memory in the private copy -> name and tensor.

    Tensors with a graph, and those in the memory of a trainable parameter (`weight.data.t()`): they do not move with
    theta, and so must not be used.
    """
    weights = {memory_of(weight) for weight in model.parameters() if weight.requires_grad}
    found: dict[int, tuple[str, Tensor]] = {}
    for owner, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            for number, leaf in enumerate(tree_leaves(value)):
                is_own = isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter)
                if is_own and (not leaf.is_leaf or memory_of(leaf) in weights):
                    copy_of_leaf = tree_leaves(vars(private.get_submodule(owner))[name])[number]
                    found[memory_of(copy_of_leaf)] = name, copy_of_leaf
    return found


def memory_of(tensor: Tensor) -> int:
    """A number that tensors in the same memory share."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


@contextlib.contextmanager
def attributes_put_back(model: nn.Module) -> Iterator[set[str]]:
    """What a forward pass leaves on the modules (a table, an activation, a state) is gone after it.

    Else the next pass, or one at another theta, could use it, and a trace would leave tensors that hold nothing. Yields
    a set, which afterwards holds the names of what was put back.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    changed: set[str] = set()
    try:
        yield changed
    finally:
        for module, attributes in before:
            own = vars(module)
            found = {name for name, value in attributes.items() if own.get(name) is not value}
            found |= own.keys() - attributes.keys()
            if found:
                changed |= found
                own.clear()
                own.update(attributes)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; what a forward pass has left on a module (a stored activation) is copied without its graph."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for leaf in tree_leaves(vars(module)):
            # copy.deepcopy knows neither tensors with a graph nor compressed sparse ones.
            if isinstance(leaf, Tensor) and (not leaf.is_leaf or leaf.layout not in (torch.strided, torch.sparse_coo)):
                memo[id(leaf)] = leaf.detach().clone()
    try:
        duplicate = copy.deepcopy(model, memo)
        tie(duplicate, ties_of(model))
        return duplicate
    except Exception as error:
        received = f"({type(model).__name__}) can't be copied ({type(error).__name__}: {error})"
        remedy = "Take off it what can't: open files, locks, stored activations."
        raise ValueError(argument_message("model", received, "a model that copy.deepcopy can copy", remedy)) from error


def widened(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself, its narrower real tensors in `dtype`; wider, complex and integer ones stay."""

    def widen(tensor: Tensor) -> Tensor:
        is_narrower = tensor.is_floating_point() and torch.promote_types(tensor.dtype, dtype) == dtype
        return tensor.to(dtype) if is_narrower else tensor

    ties = ties_of(module)
    cast(Any, module)._apply(widen)
    tie(module, ties)
    return module


def own_function(name: str, function: Any, device: torch.device) -> Any:
    """A loss function that nobody else can change: a module is copied, to where the model is."""
    if isinstance(function, type) or not (function is None or callable(function)):
        received = f"is the class {function.__name__}" if isinstance(function, type) else f"is {function!r}"
        remedy = "Pass F.mse_loss or nn.MSELoss()."
        raise TypeError(argument_message(name, received, "a function or an instance", remedy))
    if not isinstance(function, nn.Module):
        return function
    return copy.deepcopy(function).to(device).requires_grad_(False)  # its weights are constants: theta is the model's
