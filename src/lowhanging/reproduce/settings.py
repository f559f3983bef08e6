"""The settings of a run, and the digest that names the folder of its work.

Everything that changes a number of one network stands in `Settings`, but the seed: its digest names the folder of the
finished work, so that a run finds its own and nobody else's. How many networks are asked for is not part of it: asking
for three after one measures two more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lowhanging._version import __version__


@dataclass(frozen=True)
class Sizes:
    """How much of everything is computed: what a number means does not depend on it, how well it is known does."""

    name: str
    images: int | None = None  # first ones of each view to use; None: all
    epochs: int = 60
    anchor: float = 1e-2  # of the polished loss
    pairs: int = 50  # eigenpairs of each loss
    removed: int = 50  # eigenvectors of the preserved loss, the post's k
    early_epochs: tuple[int, ...] = (0, 3, 10, 25)  # where the spectrum is taken along training
    early_images: int = 300
    early_pairs: int = 20
    displacements: int = 12  # random ones, of which each cue's stability is measured
    null_directions: int = 19  # that steering is held against
    plane_points: int = 17  # per side
    canyon_images: int = 400
    canyon_axes: int = 10  # top eigenvectors of the loss
    canyon_cue_axes: int = 5  # and of each single-cue loss
    sphere_starts: int = 10
    shell_starts: int = 4
    null_subspaces: int = 2  # that the relative rise of canyons is held against
    cartoon_starts: int = 200
    cartoon_time: float = 200.0  # of the noisy descents
    stack_seeds: int = 64
    stack_steps: int | None = None  # None: the preset's
    modulus: int | None = None  # None: the presets'
    unblocked_seeds: int = 8
    scarce_seeds: int = 128  # of small networks, most of which form one circle or none
    other_presets: tuple[str, ...] = ("transformer", "sigmoid")  # whose circles are counted beside
    log_every: int = 10
    size_seeds: int = 30  # networks of each rule of the synthetic task

    @property
    def is_quick(self) -> bool:
        """Whether themes that know two sizes take the small one."""
        return self.name != "full"


SIZES = {
    "quick": Sizes("quick"),
    "full": Sizes(
        "full",
        early_epochs=(0, 1, 2, 5, 10, 20, 40),
        early_images=2000,
        early_pairs=50,
        displacements=50,
        plane_points=25,
        canyon_images=2000,
        sphere_starts=32,
        shell_starts=16,
        null_subspaces=19,
        modulus=113,
        stack_seeds=256,
        stack_steps=3000,
        scarce_seeds=64,
        other_presets=("nanda", "sigmoid"),
    ),
    # For tests: every line of the code, on next to nothing.
    "tiny": Sizes(
        "tiny",
        images=150,
        epochs=30,
        anchor=0.1,
        pairs=10,
        removed=4,
        early_epochs=(0,),
        early_images=40,
        early_pairs=3,
        displacements=3,
        null_directions=3,
        plane_points=3,
        canyon_images=40,
        canyon_axes=3,
        canyon_cue_axes=2,
        sphere_starts=3,
        shell_starts=2,
        null_subspaces=1,
        cartoon_starts=20,
        cartoon_time=5.0,
        stack_seeds=6,
        stack_steps=450,
        unblocked_seeds=2,
        scarce_seeds=2,
        other_presets=(),
        size_seeds=3,
    ),
}


@dataclass(frozen=True)
class Settings:
    """What one run of the command was asked for."""

    sizes: Sizes
    data: str  # "bundled", "full", or a folder of IDX files
    seed: int  # of the first network
    num_seeds: int

    @property
    def seeds(self) -> range:
        """Of the networks."""
        return range(self.seed, self.seed + self.num_seeds)

    @property
    def fingerprint(self) -> dict[str, object]:
        """What every finished unit depends on, but its seed."""
        folder = Path(self.data)
        files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        return {
            "data": self.data,
            "data files": contents(files),
            "sizes": dataclasses.asdict(self.sizes),
            "versions": versions(),
            "code": contents(sorted(Path(__file__).parents[1].rglob("*.py"))),
        }

    @property
    def digest(self) -> str:
        """Names the folder of the work."""
        return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()[:12]

    def command(self, theme: str = "") -> str:
        """What repeats the run, or one theme of it."""
        words = ["lowhanging reproduce", f"--seeds {self.num_seeds}"]
        words += [f"--seed {self.seed}"] if self.seed else []
        words += [] if self.sizes.name == "quick" else [f"--{self.sizes.name}"]
        default = SIZES[self.sizes.name]
        words += [f"--epochs {self.sizes.epochs}"] if self.sizes.epochs != default.epochs else []
        words += [f"--data {shlex.quote(self.data)}"] if self.data != default_data(self.sizes.name) else []
        words += [f"--only {theme} --out again"] if theme else []
        return " ".join(words)


def default_data(size: str) -> str:
    """Where the digits come from if nothing is said."""
    return "full" if size == "full" else "bundled"


def contents(files: Iterable[Path]) -> str:
    """A digest of names and bytes."""
    found = hashlib.sha256()
    for path in files:
        found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of what the numbers depend on to the last digit."""
    return {
        "lowhanging": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }
