"""What does mkdocs do besides reading docs/? It runs the scripts of examples/ and adds them as pages.

mkdocs.yml names this file under `hooks`. Nothing here needs the network.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
CONVERTER = ROOT / "scripts" / "examples_to_pages.py"


def on_files(files: Any, config: Any) -> Any:
    """Add a page, its pictures and the script itself for every example."""
    scripts = sorted((ROOT / "examples").glob("*.py"))
    notebook = runpy.run_path(str(CONVERTER))["notebook"]
    with tempfile.TemporaryDirectory() as folder:
        if config.extra["run_examples"]:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda script: run(script, Path(folder)), scripts))
        else:
            for script in scripts:
                (Path(folder) / f"{script.stem}.md").write_text(f"# {script.stem}\n\nNot run.\n")
        for path in sorted(Path(folder).iterdir()):
            files.append(File.generated(config, f"tutorials/{path.name}", content=path.read_bytes()))
    for script in scripts:
        files.append(File.generated(config, f"tutorials/{script.name}", content=script.read_bytes()))
        files.append(File.generated(config, f"tutorials/{script.stem}.ipynb", content=notebook(script.read_text())))
    return files


def run(script: Path, folder: Path) -> None:
    """Convert one script in an interpreter of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, str(CONVERTER), str(script), str(folder)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise PluginError(f"examples/{script.name} failed:\n{done.stderr[-2000:]}")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to scripts, which lead to files in the repository, lead to their pages on the site."""
    up = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({re.escape(up)}\.\./examples/([\w-]+)\.py", rf"]({up}tutorials/\1.md", markdown)
