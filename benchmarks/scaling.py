"""How do seconds and memory of the top eigenpairs grow with weights, examples and pairs? A figure and a table.

    python benchmarks/scaling.py [--max-params 3e7] [--figure FILE]

Tanh MLPs with 100 inputs, trained for five epochs. Ours beside a double backward with `eigsh`, each point in a fresh
process and as `benchmarks/curvature.py` has it: the same choices for the script, the same judge. About 1,000 to 10
million weights at 1,000 examples and 10 pairs; 250 to 16,000 examples and 1 to 100 pairs at about 100,000 weights.

"MB" is the peak of resident memory above its peak when the search begins, with torch, model and data loaded. The
exponents are slopes of least squares on logarithms, over the upper half of the points.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from curvature import Row, Runner, add_options

AXES = {"p": "weights p", "n": "examples n", "k": "pairs k"}
ROWS = {"seconds": "seconds", "mb": "peak MB above the start"}
TOOLS = {"ours": "lowhanging", "script": "double backward + eigsh"}
Point = tuple[int, int, int]  # p, n, k


def main() -> None:
    """Run what is not there yet, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-params", type=float, default=1e7)
    parser.add_argument("--figure", type=Path, help="by default scaling.png among the results")
    add_options(parser)
    options = parser.parse_args()
    options.contenders = list(TOOLS)
    runner = Runner(options)
    lines = measured(runner, sweeps(options.max_params, is_quick=options.quick))
    figure = options.figure or runner.folder / "scaling.png"
    draw(lines, figure)
    print("\n".join(table_of(lines)))
    print(f"\nFigure: {figure}")


def sweeps(max_params: float, *, is_quick: bool) -> dict[str, list[Point]]:
    """The points along each axis; they meet in one."""
    if is_quick:
        sizes, nums, ks, (p, n, k) = [300, 600, 1200], [50, 100, 200], [1, 2, 4], (600, 100, 2)
    else:
        sizes = [size for size in (10**3, 10**4, 10**5, 10**6, 10**7, 3 * 10**7) if size <= max_params]
        nums, ks, (p, n, k) = [250 * 2**doublings for doublings in range(7)], [1, 3, 10, 30, 100], (10**5, 1000, 10)
    return {"p": [(size, n, k) for size in sizes], "n": [(p, num, k) for num in nums], "k": [(p, n, j) for j in ks]}


def measured(runner: Runner, points: dict[str, list[Point]]) -> dict[tuple[str, str], list[Row]]:
    """(axis, tool) -> one row per point that was reached: where on the axis, seconds, MB, products."""
    lines: dict[tuple[str, str], list[Row]] = {(axis, tool): [] for axis in AXES for tool in TOOLS}
    for axis, along in points.items():
        for point in along:
            table = runner.task("tanh-{}-{}-{}".format(*point))
            where: dict[str, Any] = {"n": point[1], "k": point[2]}
            for tool in TOOLS:
                row = table.get("rows", {}).get(tool, {})
                if not row.get("is_reached"):
                    runner.say(f"left out: {tool} at p, n, k = {point}")
                    continue
                x = where.get(axis, table["prepared"]["num_params"])
                mb = max(1.0, row["peak_mb"] - row["peak_mb_before"])
                lines[axis, tool].append({"x": x, "seconds": row["seconds"], "mb": mb, "products": row["products"]})
    return lines


def exponent(xs: list[float], ys: list[float]) -> float:
    """Slope of log y over log x, over the upper half of the points, the middle one included; NaN for fewer than two."""
    start = (len(xs) - 1) // 2
    logs = [(math.log(x), math.log(y)) for x, y in zip(xs[start:], ys[start:], strict=True)]
    if len(logs) < 2:
        return math.nan
    mean = sum(x for x, _ in logs) / len(logs)
    return sum((x - mean) * y for x, y in logs) / sum((x - mean) ** 2 for x, _ in logs)


def _column(line: list[Row], name: str) -> list[float]:
    return [row[name] for row in line]


def table_of(lines: dict[tuple[str, str], list[Row]]) -> list[str]:
    """The points and the exponents as Markdown."""
    text = ["| along | tool | exponent of seconds | exponent of MB | points: seconds, MB, products |", "|" + "---|" * 5]
    for (axis, tool), line in lines.items():
        slopes = [f"{exponent(_column(line, 'x'), _column(line, name)):.2f}" for name in ROWS]
        facts = [f"{row['x']:,}: {row['seconds']:.3g}, {row['mb']:.0f}, {row['products']}" for row in line]
        text.append(f"| {axis} | {TOOLS[tool]} | {' | '.join(slopes)} | {'; '.join(facts)} |")
    return text


def draw(lines: dict[tuple[str, str], list[Row]], path: Path) -> None:
    """A column for each axis, seconds above memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7), layout="constrained")
    panels = figure.subplots(len(ROWS), len(AXES), sharex="col", sharey="row", squeeze=False)
    for (axis, tool), line in lines.items():
        for row, name in enumerate(ROWS):
            panel, xs, ys = panels[row][list(AXES).index(axis)], _column(line, "x"), _column(line, name)
            panel.loglog(xs, ys, marker="o", label=f"{TOOLS[tool]}, exponent {exponent(xs, ys):.2f}")
            panel.legend(fontsize=7)
            panel.grid(alpha=0.3)
            if row == len(ROWS) - 1:
                panel.set_xlabel(AXES[axis])
            if axis == "p":
                panel.set_ylabel(ROWS[name])
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
