"""Eigenpairs, spectra, traces and dimensions of matrices of which only products H @ v are known.

Inside, downwards: subspace, krylov, operators, linear_map, eigensolver, eigenpairs, generalized, trace, spectrum,
dimension.
"""

from lowhanging.curvature.dimension import EffectiveDimension, effective_dimension
from lowhanging.curvature.eigenpairs import Eigenpairs, top_eigs, top_hessian_eigs
from lowhanging.curvature.generalized import GeneralizedEigenpairs, generalized_eigs
from lowhanging.curvature.operators import GaussNewton, Hessian, OperatorSum, gauss_newton, hessian
from lowhanging.curvature.spectrum import SpectralDensity, spectral_density
from lowhanging.curvature.subspace import Subspace
from lowhanging.curvature.trace import Estimate, Trace, trace

__all__ = [
    "EffectiveDimension",
    "Eigenpairs",
    "Estimate",
    "GaussNewton",
    "GeneralizedEigenpairs",
    "Hessian",
    "OperatorSum",
    "SpectralDensity",
    "Subspace",
    "Trace",
    "effective_dimension",
    "gauss_newton",
    "generalized_eigs",
    "hessian",
    "spectral_density",
    "top_eigs",
    "top_hessian_eigs",
    "trace",
]
