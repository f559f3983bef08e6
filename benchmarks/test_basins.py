"""Does `benchmarks/basins.py` fill its table, from a minimum that is one? On tiny networks."""

from __future__ import annotations

from pathlib import Path

import basins
import pytest
import torch

import lowhanging as lh

pytestmark = pytest.mark.slow  # the benchmarks' own tests run last


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("basins")


@pytest.fixture(scope="module")
def columns(folder: Path) -> dict[str, dict[str, str]]:
    return basins.main(["--quick", "--results", str(folder)])


def test_every_cell_is_filled_with_numbers(columns: dict[str, dict[str, str]]) -> None:
    assert list(columns) == ["births, seed 0", "transformer, seed 0"]
    for cells in columns.values():
        assert tuple(cells) == basins.ROWS
        assert all(any(letter.isdigit() for letter in cell) for cell in cells.values())
        assert "nan" not in " ".join(cells.values())
    table = basins.table_of(columns).splitlines()
    assert len(table) == 2 + len(basins.ROWS)
    assert all(line.replace("\\|", "").count("|") == 4 for line in table)


@pytest.mark.parametrize("name", ["births", "transformer"])
def test_what_was_kept_is_a_minimum_with_two_circuits(
    name: str, columns: dict[str, dict[str, str]], folder: Path
) -> None:
    network = basins.Network(name, 0, basins.sizes_of(name, is_quick=True), folder)
    minimum = network.minimum
    assert "a minimum" in columns[f"{name}, seed 0"]["minimum"]
    # The gradient anew, at the point that was kept, and the curvature along its own lowest direction.
    assert float(minimum.objective.gradient(minimum.theta).norm()) < 1e-7
    lowest = lh.top_eigs(lh.hessian(minimum.objective), k=1, which="SA", tol=1e-4, progress=False)
    assert float(lowest.values[0]) > 0
    assert float(lowest.values[0]) == pytest.approx(minimum.smallest, abs=3 * minimum.smallest_residual)
    # One circuit alone is worse than all, none is missing from the table, and the way of training ends at the start.
    assert len(network.circuits) >= 2
    assert all(float(loss(minimum.theta)) > minimum.loss for loss in network.circuits.values())
    torch.testing.assert_close(network.theta_at(-1), minimum.start)


def test_a_later_call_finds_what_was_kept(
    columns: dict[str, dict[str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("searched again")

    for name in ("train_stack", "polish", "top_eigs", "spectral_density", "ablation_curve", "find_canyons"):
        monkeypatch.setattr(lh, name, refused)
    assert basins.main(["--quick", "--results", str(folder)]) == columns
