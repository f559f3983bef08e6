"""Which circuits formed, when, and whether in pairs?

When each circuit formed over many runs (`births`), and the statistics of it: whether births come in pairs
(`pairing_test`, and what it would have seen: `pairing_power`), whether one raises the rate of the next
(`birth_intensity`), whether frequencies are related (`frequency_relations`), and whether circuits last (`survival`).
What each circuit is worth (`ablate_circuits`, `circuit_losses` for steering), and the measures of the literature
(`restricted_loss`, `excluded_loss`, `gradient_symmetricity`, `distance_irrelevance`). How long rules take to be learned
(`LearningTimes`, `Competences`, `first_crossing`), and whether two circuits add their logits (`logit_sum`).
"""

from lowhanging.circuits.ablation import (
    CircuitAblation,
    ablate_blocks,
    ablate_circuits,
    ablate_frequencies,
    circuit_losses,
)
from lowhanging.circuits.births import Births, births
from lowhanging.circuits.fourier import CircleScores, circle_score, fourier_modes, key_frequencies
from lowhanging.circuits.intensity import BirthIntensity, birth_intensity
from lowhanging.circuits.learning_times import Competences, LearningTimes, TimesRatio, first_crossing
from lowhanging.circuits.logit_sum import LogitSum, logit_sum
from lowhanging.circuits.mechanism import (
    distance_irrelevance,
    excluded_loss,
    gradient_symmetricity,
    restricted_loss,
)
from lowhanging.circuits.pairing import PairingPower, PairingTest, pairing_power, pairing_test
from lowhanging.circuits.relations import FrequencyRelations, frequency_relations
from lowhanging.circuits.survival import Survival, survival

__all__ = [
    "BirthIntensity",
    "Births",
    "CircleScores",
    "CircuitAblation",
    "Competences",
    "FrequencyRelations",
    "LearningTimes",
    "LogitSum",
    "PairingPower",
    "PairingTest",
    "Survival",
    "TimesRatio",
    "ablate_blocks",
    "ablate_circuits",
    "ablate_frequencies",
    "birth_intensity",
    "births",
    "circle_score",
    "circuit_losses",
    "distance_irrelevance",
    "excluded_loss",
    "first_crossing",
    "fourier_modes",
    "frequency_relations",
    "gradient_symmetricity",
    "key_frequencies",
    "logit_sum",
    "pairing_power",
    "pairing_test",
    "restricted_loss",
    "survival",
]
