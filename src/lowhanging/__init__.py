"""The microscope for the low-hanging fruit prior.

The names that most scripts need are here; result classes, data sets in parts and nulls are in the modules:
`datasets` and `models`, `objective` (losses as functions of the weights), `training`, `curvature` (eigenpairs,
spectra), `landscape` (minima, directions, slices, records of a training), `steering`, `canyons`, `circuits`, `planted`
(networks whose circuits are known), `prior` (what is found at all), `toys`, `plots` and `testing`.
"""

from lowhanging import (
    canyons,
    circuits,
    curvature,
    datasets,
    landscape,
    models,
    objective,
    planted,
    plots,
    prior,
    steering,
    testing,
    toys,
    training,
)
from lowhanging._version import __version__
from lowhanging.canyons import find_canyons, trace_canyon
from lowhanging.curvature import (
    Subspace,
    effective_dimension,
    gauss_newton,
    hessian,
    spectral_density,
    top_eigs,
    top_hessian_eigs,
    trace,
)
from lowhanging.datasets import mnist, modular_addition, paired_mnist, parity_rules
from lowhanging.errors import DamagedFileError, NotConvergedError, NotSmoothWarning
from lowhanging.io import load
from lowhanging.landscape import (
    Recorder,
    difference_direction,
    gram_schmidt,
    line_slice,
    path_slice,
    plane_slice,
    plane_through,
    plane_trajectory,
    polish,
    principal_directions,
    random_direction,
)
from lowhanging.models import ModularMLP, ModularTransformer, SigmoidCNN
from lowhanging.objective import FunctionObjective, Objective
from lowhanging.prior import phase_diagram
from lowhanging.steering import (
    ConflictControl,
    ablation_curve,
    steering_direction,
    steering_report,
    steering_subspace,
)
from lowhanging.training import train, train_stack

__all__ = [
    "ConflictControl",
    "DamagedFileError",
    "FunctionObjective",
    "ModularMLP",
    "ModularTransformer",
    "NotConvergedError",
    "NotSmoothWarning",
    "Objective",
    "Recorder",
    "SigmoidCNN",
    "Subspace",
    "__version__",
    "ablation_curve",
    "canyons",
    "circuits",
    "curvature",
    "datasets",
    "difference_direction",
    "effective_dimension",
    "find_canyons",
    "gauss_newton",
    "gram_schmidt",
    "hessian",
    "landscape",
    "line_slice",
    "load",
    "mnist",
    "models",
    "modular_addition",
    "objective",
    "paired_mnist",
    "parity_rules",
    "path_slice",
    "phase_diagram",
    "plane_slice",
    "plane_through",
    "plane_trajectory",
    "planted",
    "plots",
    "polish",
    "principal_directions",
    "prior",
    "random_direction",
    "spectral_density",
    "steering",
    "steering_direction",
    "steering_report",
    "steering_subspace",
    "testing",
    "top_eigs",
    "top_hessian_eigs",
    "toys",
    "trace",
    "trace_canyon",
    "train",
    "train_stack",
    "training",
]
