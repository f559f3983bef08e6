"""How does a run become a report? Everything is made in memory first; files appear whole, at the end, or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lowhanging.reproduce.claims import Claim, markdown
from lowhanging.reproduce.figures import FIGURE_NAMES
from lowhanging.results import write_atomically


def write(
    out: Path,
    claims: Sequence[Claim],
    heading: Sequence[str],
    results: Mapping[str, object],
    pictures: Mapping[str, bytes],
) -> list[Path]:
    """claims.md, results.json and the figures, each written atomically; returns the paths."""
    page = markdown(claims, heading)
    if pictures:
        page += "\n" + "\n\n".join(f"![{name.removesuffix('.png')}]({name})" for name in pictures) + "\n"
    files = {
        "claims.md": page.encode(),
        "results.json": (json.dumps(results, indent=1) + "\n").encode(),
        **pictures,
    }
    for stale in FIGURE_NAMES - set(pictures):  # of an earlier run: they would stand beside numbers that are not theirs
        (out / stale).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomically(out / name, lambda stream, content=content: stream.write(content))
    return [out / name for name in files]
