"""Draws one result on one Axes; nothing here computes, shows, saves or changes the global style."""

from lowhanging.plots.training import training_run

__all__ = ["training_run"]
