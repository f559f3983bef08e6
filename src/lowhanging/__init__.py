"""lowhanging: the microscope for the low-hanging fruit prior.

Data (`mnist`, `paired_mnist`, `modular_addition`, `parity_rules`), a small smooth network (`SigmoidCNN`), training to a
minimum (`train`, `polish`), losses as functions of the weights (`Objective`, `FunctionObjective`), curvature
(`hessian`, `gauss_newton`, `top_eigs`, `top_hessian_eigs`) and spectra (`spectral_density`, `trace`,
`effective_dimension`), steering between circuits (`steering_direction`, `steering_subspace`, `steering_report`,
`Subspace`), other directions (`random_direction`, `difference_direction`, `principal_directions`, `gram_schmidt`) and
slices of the loss (`line_slice`, `path_slice`, `plane_slice`), canyons (`find_canyons`, `trace_canyon`, and what they
are held against: `count_null`, `depth_null`, `ConflictControl`, `name_circuit`). `plots` draws results, `testing`
checks a model and a slicer and holds the oracles, `toys` has losses with answers on paper.
"""

from lowhanging import circuits, plots, testing, toys
from lowhanging._version import __version__
from lowhanging.anchored import AnchoredObjective
from lowhanging.basin.canyon_null import CountNull, DepthNull, count_null, depth_null
from lowhanging.basin.canyon_paths import CanyonPath, trace_canyon
from lowhanging.basin.canyon_points import CanyonPoint
from lowhanging.basin.canyon_set import CanyonSet
from lowhanging.basin.canyon_steps import CanyonEvent
from lowhanging.basin.canyons import find_canyons
from lowhanging.basin.conflict import AnswerShift, ConflictControl
from lowhanging.basin.density import SpectralDensity
from lowhanging.basin.dimension import EffectiveDimension, effective_dimension
from lowhanging.basin.directions import (
    OrthogonalDirections,
    PrincipalDirections,
    difference_direction,
    gram_schmidt,
    principal_directions,
    random_direction,
)
from lowhanging.basin.eigenpairs import Eigenpairs, top_eigs, top_hessian_eigs
from lowhanging.basin.minimum import Minimum, polish
from lowhanging.basin.naming import CircuitName, name_circuit
from lowhanging.basin.operators import GaussNewton, Hessian, gauss_newton, hessian
from lowhanging.basin.planes import (
    Plane,
    PlaneSlice,
    plane_slice,
    plane_through,
)
from lowhanging.basin.probes import Estimate
from lowhanging.basin.slices import LineSlice, PathSlice, line_slice, path_slice
from lowhanging.basin.spectrum import spectral_density
from lowhanging.basin.steering import SteeringReport, steering_direction, steering_report, steering_subspace
from lowhanging.basin.subspace import Subspace
from lowhanging.basin.symmetric_operator import OperatorSum
from lowhanging.basin.trace import Trace, trace
from lowhanging.basin.trajectories import PlaneTrajectory, plane_trajectory
from lowhanging.checkpoints import Checkpoint
from lowhanging.datasets import (
    MNIST,
    ConflictImages,
    DigitImages,
    ModularAddition,
    ModularPairs,
    PairedImages,
    PairedMNIST,
    PairedView,
    ParityBits,
    ParityRules,
    ParityView,
    mnist,
    modular_addition,
    paired_mnist,
    parity_rules,
)
from lowhanging.errors import DamagedFileError, NotConvergedError, NotSmoothWarning
from lowhanging.function_objective import FunctionObjective
from lowhanging.models import ModularMLP, ModularTransformer, SigmoidCNN
from lowhanging.objective import Objective
from lowhanging.parameters import ParameterSpace
from lowhanging.presets import PRESETS, Preset
from lowhanging.stacks import StackRun, train_stack
from lowhanging.training import TrainingRun, train

__all__ = [
    "MNIST",
    "PRESETS",
    "AnchoredObjective",
    "AnswerShift",
    "CanyonEvent",
    "CanyonPath",
    "CanyonPoint",
    "CanyonSet",
    "Checkpoint",
    "CircuitName",
    "ConflictControl",
    "ConflictImages",
    "CountNull",
    "DamagedFileError",
    "DepthNull",
    "DigitImages",
    "EffectiveDimension",
    "Eigenpairs",
    "Estimate",
    "FunctionObjective",
    "GaussNewton",
    "Hessian",
    "LineSlice",
    "Minimum",
    "ModularAddition",
    "ModularMLP",
    "ModularPairs",
    "ModularTransformer",
    "NotConvergedError",
    "NotSmoothWarning",
    "Objective",
    "OperatorSum",
    "OrthogonalDirections",
    "PairedImages",
    "PairedMNIST",
    "PairedView",
    "ParameterSpace",
    "ParityBits",
    "ParityRules",
    "ParityView",
    "PathSlice",
    "Plane",
    "PlaneSlice",
    "PlaneTrajectory",
    "Preset",
    "PrincipalDirections",
    "SigmoidCNN",
    "SpectralDensity",
    "StackRun",
    "SteeringReport",
    "Subspace",
    "Trace",
    "TrainingRun",
    "__version__",
    "circuits",
    "count_null",
    "depth_null",
    "difference_direction",
    "effective_dimension",
    "find_canyons",
    "gauss_newton",
    "gram_schmidt",
    "hessian",
    "line_slice",
    "mnist",
    "modular_addition",
    "name_circuit",
    "paired_mnist",
    "parity_rules",
    "path_slice",
    "plane_slice",
    "plane_through",
    "plane_trajectory",
    "plots",
    "polish",
    "principal_directions",
    "random_direction",
    "spectral_density",
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
]
