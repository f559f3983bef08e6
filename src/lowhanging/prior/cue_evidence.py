"""Evidence of a cue, in nats: what the cue alone adds to the logits of its class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowhanging.errors import a_type, argument_message
from lowhanging.objective.batches import logits_of
from lowhanging.objective.kernels import differentiable_kernels

_BATCH = 512


def cue_evidence(model: nn.Module, data: Any) -> float:
    r"""How much a network's outputs speak for a cue, in nats.

    The mean over examples (x, y) of z_y - mean_{c != y} z_c, z the logits. On data that show the cue beside another
    example's other cues (`lh.datasets.resample`), which say nothing of y, it is what the cue alone adds. For logits
    that are a sum of one part for each cue it is the mean of that part; for two classes and a parity it is the Fourier
    coefficient of the log odds.

    An accuracy on the same data can't tell a cue that is not learned from one that is learned and outvoted.

    Args:
        model: of class scores (n, classes); evaluated as it is, without gradients.
        data: (inputs, targets), or a data set with both; integer classes.

    Returns:
        nats; 0 where the cue is not read.

    Raises:
        ValueError, TypeError: data without integer classes, outputs that are not (n, classes).

    Cost:
        one pass over the data.
    """
    pair = (data.inputs, data.targets) if hasattr(data, "inputs") and hasattr(data, "targets") else data
    remedy = "Pass (inputs, targets) with integer classes, such as lh.datasets.resample(data, [1])."
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise TypeError(argument_message("data", f"is {a_type(data)}", "a pair of tensors, or a data set", remedy))
    inputs, targets = pair
    if targets.is_floating_point() or targets.ndim != 1 or len(targets) != len(inputs) or not len(inputs):
        received = f"has inputs of shape {tuple(inputs.shape)}, targets {targets.dtype} of shape {tuple(targets.shape)}"
        raise ValueError(argument_message("data", received, "one integer class for each example", remedy))
    return float(evidence_per_example(class_scores(model, inputs, targets), targets).mean())


def class_scores(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """(n, classes) float64 outputs on the CPU, in batches."""
    weight = next(model.parameters(), torch.empty(0))
    parts = []
    with differentiable_kernels(model), torch.no_grad():
        for part in torch.split(inputs, _BATCH):
            moved = part.to(weight.device, weight.dtype if part.is_floating_point() else None)
            parts.append(logits_of(model(moved)))
    outputs = torch.cat(parts)
    classes = int(targets.max()) + 1
    if outputs.ndim != 2 or outputs.shape[0] != len(inputs) or outputs.shape[1] < max(2, classes):
        received, expected = f"gives outputs of shape {tuple(outputs.shape)}", f"({len(inputs)}, {classes} or more)"
        raise ValueError(argument_message("model", received, expected, "Pass a network of class scores."))
    return outputs.double().cpu()


def evidence_per_example(outputs: Tensor, targets: Tensor) -> Tensor:
    """z_y - mean of the other classes: (n, classes), (n,) -> (n,)."""
    own = outputs.gather(1, targets.to(outputs.device)[:, None]).squeeze(1)
    return own - (outputs.sum(1) - own) / (outputs.shape[1] - 1)
