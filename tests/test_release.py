"""What a release holds: the wheel and the sdist are built, and the wheel is installed and used outside the tree.

No network: the build backend is called directly, and the installation takes no dependencies, which are those of the
environment that runs the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import lowhanging as lh

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
USE = """
import lowhanging as lh, torch
assert {target!r} in lh.__file__, lh.__file__
pairs = lh.top_hessian_eigs(torch.nn.Linear(3, 2), (torch.randn(9, 3), torch.arange(9) % 2), k=1)
assert len(lh.mnist().test) > 0
print(pairs, lh.__version__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    backend = pytest.importorskip("hatchling.build", reason="the build backend is not installed")
    folder, here = tmp_path_factory.mktemp("dist"), Path.cwd()
    os.chdir(ROOT)
    try:
        yield {"wheel": folder / backend.build_wheel(str(folder)), "sdist": folder / backend.build_sdist(str(folder))}
    finally:
        os.chdir(here)


def test_the_wheel_holds_the_package_and_nothing_else(built: dict[str, Path]) -> None:
    names = zipfile.ZipFile(built["wheel"]).namelist()
    roots = {name.split("/")[0] for name in names}
    assert roots == {"lowhanging", f"lowhanging-{lh.__version__}.dist-info"}
    files = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "lowhanging").rglob("*")}
    wanted = {name for name in files if (ROOT / "src" / name).is_file() and "__pycache__" not in name}
    assert {name for name in names if name.startswith("lowhanging/")} == wanted
    assert {"lowhanging/py.typed", "lowhanging/reproduce/page.css"} <= wanted
    assert any(name.startswith("lowhanging/datasets/bundled/") for name in names)
    metadata = zipfile.ZipFile(built["wheel"]).read(f"lowhanging-{lh.__version__}.dist-info/METADATA").decode()
    assert f"Version: {lh.__version__}\n" in metadata and "Requires-Dist: torch" in metadata


def test_the_sdist_holds_what_tests_and_docs_need(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "CITATION.cff", "CHANGELOG.md", "LICENSE", "pyproject.toml", "mkdocs.yml"} <= names
    assert {"src/lowhanging/__init__.py", "tests/test_release.py", "docs/index.md", "examples/slices.py"} <= names


def test_the_installed_wheel_works_outside_the_tree(built: dict[str, Path], tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "-q", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(built["wheel"])], check=True)
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", USE.format(target=str(target))]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(lh.__version__)
    command = [str(target / "bin" / "lowhanging"), "--help"]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "reproduce" in done.stdout, done.stderr
    assert list(elsewhere.iterdir()) == []
