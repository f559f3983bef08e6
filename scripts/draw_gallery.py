"""Draw the pictures of docs/gallery.md by running its code.

python scripts/draw_gallery.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the page's python blocks in docs/gallery/, and delete what the page does not show."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    page = (ROOT / "docs" / "gallery.md").read_text()
    folder = ROOT / "docs" / "gallery"
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for code in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        exec(code, namespace)
    shown = set(re.findall(r"\(gallery/([^)]+)\)", page))
    for path in folder.iterdir():
        if path.name not in shown:
            path.unlink()


if __name__ == "__main__":
    main()
