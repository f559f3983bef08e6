"""Where does a theme find what it measures: the network of its seed, the sizes, and the shelf of finished work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from lowhanging.reproduce.settings import Settings, Sizes
from lowhanging.reproduce.store import ResultStore
from lowhanging.reproduce.themes.learning import Learning


@dataclass(frozen=True)
class Context:
    """One seed's, or, for themes that have no network, the run's."""

    settings: Settings
    shelf: ResultStore
    learn: Callable[[], Learning]

    @property
    def sizes(self) -> Sizes:
        """How much is computed."""
        return self.settings.sizes

    @cached_property
    def network(self) -> Learning:
        """Trained and polished when it is first asked for, or loaded."""
        return self.learn()
