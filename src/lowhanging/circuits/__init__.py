"""Fourier circuits: which formed, when, whether in pairs, whether they last, and what each is worth."""

from lowhanging.circuits.ablation import (
    CircuitAblation,
    ablate_blocks,
    ablate_circuits,
    ablate_frequencies,
    circuit_losses,
)
from lowhanging.circuits.birth_gaps import birth_gaps
from lowhanging.circuits.births import Births, births
from lowhanging.circuits.fourier import (
    CircleScores,
    circle_score,
    fourier_modes,
    frequency_planes,
    key_frequencies,
    logged_embeddings,
)
from lowhanging.circuits.intensity import BirthIntensity, birth_intensity
from lowhanging.circuits.learning_times import Competences, LearningTimes, TimesRatio, first_crossing
from lowhanging.circuits.logit_sum import LogitSum, logit_sum
from lowhanging.circuits.mechanism import distance_irrelevance, excluded_loss, gradient_symmetricity, restricted_loss
from lowhanging.circuits.pairing import PairingPower, PairingTest, pairing_power, pairing_test
from lowhanging.circuits.permutation import PairCounts
from lowhanging.circuits.relations import FrequencyRelations, frequency_relations
from lowhanging.circuits.survival import Survival, clustered_survival_test, survival
from lowhanging.circuits.waves import (
    HiddenWaves,
    LogitWaves,
    MechanismReport,
    ProgressMeasures,
    hidden_units,
    hidden_waves,
    logit_waves,
    mechanism_report,
    progress_measures,
)

__all__ = [
    "BirthIntensity",
    "Births",
    "CircleScores",
    "CircuitAblation",
    "Competences",
    "FrequencyRelations",
    "HiddenWaves",
    "LearningTimes",
    "LogitSum",
    "LogitWaves",
    "MechanismReport",
    "PairCounts",
    "PairingPower",
    "PairingTest",
    "ProgressMeasures",
    "Survival",
    "TimesRatio",
    "ablate_blocks",
    "ablate_circuits",
    "ablate_frequencies",
    "birth_gaps",
    "birth_intensity",
    "births",
    "circle_score",
    "circuit_losses",
    "clustered_survival_test",
    "distance_irrelevance",
    "excluded_loss",
    "first_crossing",
    "fourier_modes",
    "frequency_planes",
    "frequency_relations",
    "gradient_symmetricity",
    "hidden_units",
    "hidden_waves",
    "key_frequencies",
    "logged_embeddings",
    "logit_sum",
    "logit_waves",
    "mechanism_report",
    "pairing_power",
    "pairing_test",
    "progress_measures",
    "restricted_loss",
    "survival",
]
