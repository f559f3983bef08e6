"""Losses as pure functions of a flat weight vector theta (p,), with their gradients and products.

Inside, downwards: parameters, cost, kernels, random_state, distributed, private_copy, batches, checks, split_graph,
checkpoints, verification, blocks, protocol, hvp, model_loss, output_loss, objective.
"""

from lowhanging.objective.checkpoints import Checkpoint
from lowhanging.objective.objective import AnchoredObjective, FunctionObjective, Objective
from lowhanging.objective.parameters import ParameterSpace
from lowhanging.objective.protocol import Loss

__all__ = ["AnchoredObjective", "Checkpoint", "FunctionObjective", "Loss", "Objective", "ParameterSpace"]
