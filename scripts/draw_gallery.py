"""Draw the pictures in docs/gallery/ by running the code of the pages that show them.

python scripts/draw_gallery.py
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the python blocks of each page that shows pictures; keep those, and delete what no page shows."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    folder = ROOT / "docs" / "gallery"
    drawn: dict[str, bytes] = {}
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text()
        shown = set(re.findall(r"\(gallery/([^)]+)\)", text))
        if not shown:
            continue
        with tempfile.TemporaryDirectory() as empty:
            os.chdir(empty)
            namespace: dict[str, object] = {"__name__": "__main__"}
            for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
                exec(code, namespace)
            drawn |= {name: Path(name).read_bytes() for name in shown}
            os.chdir(ROOT)
        plt.close("all")
    for path in folder.iterdir():
        path.unlink()
    for name, content in drawn.items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
