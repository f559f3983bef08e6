"""Networks whose circuits are known by construction, on which instruments are tried before they are believed.

`towers` has a circuit for each of two cues, coupled at will; `three` has three, `nested` one inside another,
`shared_trunk` two in the same hidden units; `modular` has Fourier circuits written in by formula.
Inside, downwards: towers, modular | channels, network.
"""

from lowhanging.planted.modular import modular
from lowhanging.planted.network import Planted
from lowhanging.planted.towers import nested, shared_trunk, three, towers

__all__ = ["Planted", "modular", "nested", "shared_trunk", "three", "towers"]
