"""The context of a measurement: the settings, the store of finished work and, for most themes, one trained network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from lowhanging.reproduce.settings import Settings, Sizes
from lowhanging.reproduce.store import ResultStore

if TYPE_CHECKING:
    from lowhanging.reproduce.themes.learning import Learning


@dataclass(frozen=True)
class Context:
    """That of one seed's network, or, for themes without a network, that of the run."""

    settings: Settings
    store: ResultStore
    learn: Callable[[], Learning]

    @property
    def sizes(self) -> Sizes:
        """How much is computed."""
        return self.settings.sizes

    @cached_property
    def network(self) -> Learning:
        """Trained and polished when it is first asked for, or loaded."""
        return self.learn()
