"""Draws one result on one Axes; nothing here computes, shows, saves or changes the global style."""

from lowhanging.plots.curvature import spectra
from lowhanging.plots.paired_images import paired_images
from lowhanging.plots.panels import panels
from lowhanging.plots.slices import line_slice
from lowhanging.plots.steering import overlaps
from lowhanging.plots.training import training_run

__all__ = ["line_slice", "overlaps", "paired_images", "panels", "spectra", "training_run"]
