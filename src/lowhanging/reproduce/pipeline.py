"""A run from settings to claims, unit by unit: one theme of one network each; what is finished is read."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lowhanging.io import write_atomically
from lowhanging.reproduce.claims import Claim
from lowhanging.reproduce.context import Context
from lowhanging.reproduce.settings import Settings
from lowhanging.reproduce.store import ResultStore, Row, as_json
from lowhanging.reproduce.themes.learning import learn
from lowhanging.reproduce.themes.registry import THEMES, Theme

_DEAD = 3600.0  # seconds without a byte after which nobody is still writing


@dataclass
class Measured:
    """What a run has measured so far."""

    settings: Settings
    rows: dict[str, list[Row]] = field(default_factory=dict)  # theme -> one per seed, or one in all
    seconds: dict[str, list[float]] = field(default_factory=dict)  # theme -> what each took when it was measured
    contexts: dict[str, Context] = field(default_factory=dict)  # theme -> that of its first row

    def claims(self) -> list[Claim]:
        """Of all themes that were measured, in the order of their numbers, each with its command."""
        found = [
            dataclasses.replace(claim, command=self.settings.command(theme.name))
            for theme in THEMES
            if theme.name in self.rows
            for claim in theme.claims(self.rows[theme.name])
        ]
        return sorted(found, key=lambda claim: (claim.number, claim.part))


def measure(settings: Settings, work: Path, only: Sequence[str]) -> Measured:
    """All units of the themes in `only`, those of one network after the other; then those without one."""
    folder = work / settings.digest
    _name_other_work(work, settings)
    found = Measured(settings)
    units = list(_units(settings, folder, only))
    for number, (theme, context, name) in enumerate(units, 1):
        _prepare(context.store)
        label = f"[{number}/{len(units)}] {name}{theme.title}"
        print(f"{label} ...", file=sys.stderr, flush=True)
        row, seconds, is_old = context.store.unit(theme.name, functools.partial(_timed, theme, context))
        _describe(folder, settings)
        print(f"{label}: {'finished earlier' if is_old else f'{seconds:.1f} s'}", file=sys.stderr, flush=True)
        found.rows.setdefault(theme.name, []).append(row)
        found.seconds.setdefault(theme.name, []).append(seconds)
        found.contexts.setdefault(theme.name, context)
    return found


def _units(settings: Settings, folder: Path, only: Sequence[str]) -> Iterator[tuple[Theme, Context, str]]:
    def context(name: str, seed: int) -> Context:
        store = ResultStore(folder / name)
        learned = functools.partial(learn, source=settings.data, seed=seed, sizes=settings.sizes, store=store)
        return Context(settings, store, learned)

    themes = [theme for theme in THEMES if theme.name in only]
    for seed in settings.seeds:
        of_seed = context(f"seed-{seed}", seed)
        name = f"network {seed}, " if settings.num_seeds > 1 else ""
        yield from ((theme, of_seed, name) for theme in themes if theme.has_network)
    of_run = context("no-network", settings.seed)
    yield from ((theme, of_run, "") for theme in themes if not theme.has_network)


def _timed(theme: Theme, context: Context) -> tuple[Row, float]:
    begun = time.perf_counter()
    row = theme.measure(context)
    return row, round(time.perf_counter() - begun, 1)


def _prepare(store: ResultStore) -> None:
    """A folder for the work, without what a killed run had half written.

    Another run may be writing there now: what it writes is younger than an hour, and stays.
    """
    if store.folder is not None:
        store.folder.mkdir(parents=True, exist_ok=True)
        for part in store.folder.glob(".*.part"):
            with contextlib.suppress(FileNotFoundError):  # it has become a whole file, or another run was quicker
                if time.time() - part.stat().st_mtime > _DEAD:
                    part.unlink()


def _describe(folder: Path, settings: Settings) -> None:
    """Beside the work: the settings it belongs to, for whoever looks into the folder."""
    path = folder / "settings.json"
    if not path.exists():
        write_atomically(path, lambda stream: stream.write(as_json(settings.fingerprint).encode()))


def _name_other_work(work: Path, settings: Settings) -> None:
    """Which earlier work this run can't go on from, and why."""
    wanted = json.loads(as_json(settings.fingerprint))
    for path in sorted(work.glob("*/settings.json")):
        if path.parent.name == settings.digest:
            continue
        try:
            found = json.loads(path.read_text())
            different = ", ".join(key for key in wanted if found.get(key) != wanted[key])
        except (ValueError, AttributeError):
            different = "settings that can't be read"
        print(f"{path.parent} is work of a run with other {different or 'settings'}: left alone", file=sys.stderr)
