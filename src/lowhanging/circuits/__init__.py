"""Which circuits formed, when, and whether in pairs?

When each circuit formed over many runs (`births`), and the statistics of it: whether births come in pairs
(`pairing_test`, and what it would have seen: `pairing_power`), whether one raises the rate of the next
(`birth_intensity`), whether frequencies are related (`frequency_relations`), and whether circuits last (`survival`).
"""

from lowhanging.circuits.formation import Births, births
from lowhanging.circuits.fourier import CircleScores, circle_score, fourier_modes, key_frequencies
from lowhanging.circuits.intensity import BirthIntensity, birth_intensity
from lowhanging.circuits.lifetimes import Survival, survival
from lowhanging.circuits.pairing import PairingTest, pairing_test
from lowhanging.circuits.power import PairingPower, pairing_power
from lowhanging.circuits.relations import FrequencyRelations, frequency_relations

__all__ = [
    "BirthIntensity",
    "Births",
    "CircleScores",
    "FrequencyRelations",
    "PairingPower",
    "PairingTest",
    "Survival",
    "birth_intensity",
    "births",
    "circle_score",
    "fourier_modes",
    "frequency_relations",
    "key_frequencies",
    "pairing_power",
    "pairing_test",
    "survival",
]
