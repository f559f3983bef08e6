"""Training loops: one network, or a stack of many seeds at once.

Inside, downwards: options, state, presets, train, stack.
"""

from lowhanging.training.presets import PRESETS, Preset
from lowhanging.training.stack import StackRun, train_stack
from lowhanging.training.train import TrainingRun, train

__all__ = ["PRESETS", "Preset", "StackRun", "TrainingRun", "train", "train_stack"]
