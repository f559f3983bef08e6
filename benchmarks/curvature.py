"""Top eigenpairs of a Hessian, ours and others': seconds, products, true residuals, memory. One folder, one table.

    python benchmarks/curvature.py [--tasks small middle ...] [--contenders ours script ...] [--json FILE]

Eight networks of 1,669 to 124 million weights; their names are those of `TASK_NAMES`, what they are stands in
`curvature_tasks.py`. `benchmarks/requirements.txt` says how to install the others; one that is not there is named as
missing.

Each contender runs in a fresh process, one after another, from the trained model and its loader to the pairs. The
others have choices that ours has not, and the time in which they make them is not counted: batches of several sizes in
memory beside the user's loader, two products with each; attention that can be differentiated twice; and for `eigsh` the
loosest tolerance with which it still reaches the residual that is asked for.

Every pair is then judged by the same float64 double backward (float32 for the largest network): "residual" is the worst
|H v - value v| / lambda_1, "off" is how far the values are from the best set found, by lambda_1 (a skipped or a doubled
eigenvalue shows here only).

What was found lies in `--results`, one file per task and contender; a later call runs what is not there yet (a failure
is there: `--again NAME`). Tables are printed from the files.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASK_NAMES = ("small", "middle", "cnn", "transformer", "mlp", "resnet", "gpt", "gpt2")
CONTENDERS = (
    "ours",
    "script",
    "curvlinops",
    "eigenthings-default",
    "eigenthings",
    "eigenthings-hindsight",
    "pyhessian",
)
HERE = Path(__file__).parent
REASONS = ("missing", "failure", "stopped")  # why there is no result
Row = dict[str, Any]


def main() -> None:
    """Run what is not there yet, print."""
    options = _options()
    runner = Runner(options)
    tables = {task: runner.task(task) for task in options.tasks}
    print("\n".join([_machine(tables, options), *map(table_of, tables.values()), *summary(tables)]))
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "tasks": tables}, indent=1, default=str))
    if any("failure" in table for table in tables.values()):
        sys.exit(1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that `scaling.py` has, too."""
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of what was found")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", help='contenders to repeat, or "tune"')
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of every contender")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for any one contender")
    parser.add_argument("--patience", type=float, default=5, help="stop others that take so many times as long as ours")
    parser.add_argument("--grace", type=float, default=150, help="seconds that --patience grants in any case")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it runs")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASK_NAMES, default=list(TASK_NAMES))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", type=Path)
    add_options(parser)
    return parser.parse_args()


class Runner:
    """Gives the orders to the child processes, and keeps what they report."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        quick = "-quick" if options.quick else ""
        self.folder = options.results / f"{options.device.replace(':', '')}-{options.threads}{quick}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def forget(self, task: str) -> None:
        """Remove what is to be run again."""
        for name in self.options.again:
            for file in (f"{task}-{name}", f"{task}-pilot-{_tool(name)}"):
                (self.folder / f"{file}.json").unlink(missing_ok=True)

    def task(self, task: str) -> Row:
        """All contenders on one task, judged."""
        self.forget(task)
        prepared = self.kept(f"{task}-prepare", self.child, task, "prepare", timeout=3600)
        if "micro_batch" not in prepared:
            return {"task": task, "failure": f"could not be prepared: {prepared}"}
        limit = self.options.timeout
        for name in self.options.contenders:
            row = self.kept(f"{task}-{name}", self.contender, task, name, prepared, limit)
            if name == "ours" and "seconds" in row:
                limit = min(limit, max(self.options.patience * row["seconds"], self.options.grace))
        rows = {name: self.read(f"{task}-{name}") for name in dict.fromkeys((*CONTENDERS, *self.options.contenders))}
        table = {"task": task, "prepared": prepared, "rows": {name: row for name, row in rows.items() if row}}
        judged(table["rows"], prepared["tol"])
        return table

    def contender(self, task: str, name: str, prepared: Row, limit: float) -> Row:
        """One row: the sizes tried, the solution, the verdict."""
        row: Row = {"batches": "loader"}
        order: Row = {"contender": name}
        if name != "ours":
            row |= self.pilot(task, name, prepared, limit)
        if name in ("script", "curvlinops"):
            row["eigsh_tol"] = order["eigsh_tol"] = self.tol(task, prepared, limit)
        if row.keys().isdisjoint(REASONS):
            order |= {"batches": row["batches"], "pairs": str(self.folder / f"{task}-{name}.pt")}
            row |= self.child(task, "solve", timeout=limit, **order)
        if "seconds" in row:
            found = self.child(task, "judge", timeout=3600, **order)
            row |= found if "residuals" in found else {"note": f"could not be judged: {found}"}
        facts = [f"{row['seconds']:.1f} s, {row['products']} products"] if "products" in row else []
        facts += [f"{key}: {row[key]}" for key in REASONS if key in row]
        self.say(f"{task}: {name}, {'; '.join(facts)}")
        return row

    def pilot(self, task: str, name: str, prepared: Row, limit: float) -> Row:
        """Seconds per product with each kind of batches, and the best kind; the settings of one tool share it."""
        tool, num, sizes = _tool(name), prepared["num_examples"], {prepared["micro_batch"]}
        if tool == "script":
            sizes |= {-(-num // 2**halvings) for halvings in range(6)}
        if tool == "curvlinops":
            best = self.pilot(task, "script", prepared, limit)["batches"]
            sizes |= {int(best)} if best != "loader" else set()
        order = {"contender": name, "sizes": ["loader", *sorted(sizes)]}
        row = self.kept(f"{task}-pilot-{tool}", self.child, task, "pilot", timeout=limit, **order)
        speeds = row.get("seconds_per_product")
        return row | {"batches": min(speeds, key=speeds.__getitem__) if speeds else "loader"}

    def tol(self, task: str, prepared: Row, limit: float) -> float:
        """The tolerance that eigsh is given."""
        order = {"batches": self.pilot(task, "script", prepared, limit)["batches"]}
        order["values"] = (self.read(f"{task}-ours") or {}).get("values")
        found = self.kept(f"{task}-tune", self.child, task, "tune", timeout=4 * limit, **order)
        return found.get("eigsh_tol", prepared["tol"])  # type: ignore[no-any-return]

    def child(self, task: str, verb: str, *, timeout: float, **order: Any) -> Row:
        """The report of one process, or why there is none."""
        options = self.options
        order |= {"task": task, "verb": verb, "quick": options.quick, "device": options.device}
        order |= {"threads": options.threads, "weights": str(options.results)}
        command = [sys.executable, str(HERE / "curvature_child.py"), json.dumps(order)]
        environment = dict(os.environ) | {"OMP_NUM_THREADS": str(options.threads)}
        how: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
        self.say(f"{task}: {verb} {order.get('contender', '')}")
        try:
            done = subprocess.run(command, timeout=timeout, env=environment, **how)
        except subprocess.TimeoutExpired:
            return {"stopped": f"after {timeout:.0f} s"}
        lines = done.stdout.strip().splitlines()
        if not lines or (done.returncode and verb != "pilot"):  # which reports after each size
            return {"failure": f"exit status {done.returncode}: {' '.join(done.stderr.strip().splitlines()[-1:])}"}
        return json.loads(lines[-1])  # type: ignore[no-any-return]

    def kept(self, file: str, make: Callable[..., Row], *arguments: Any, **named: Any) -> Row:
        """What the file of this name holds, else what `make` finds, which it then holds."""
        row = self.read(file)
        if row is None or "missing" in row:
            row = make(*arguments, **named)
            (self.folder / f"{file}.json").write_text(json.dumps(row, indent=1))
        return row

    def read(self, file: str) -> Row | None:
        """What the file of this name holds; None where it is not there."""
        path = self.folder / f"{file}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def say(self, text: str) -> None:
        """Progress, with the time of day."""
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _tool(name: str) -> str:
    """Of a contender: its settings share a tool's product."""
    return name.split("-")[0]


def judged(rows: dict[str, Row], tol: float) -> None:
    """Write residuals, distances from the best set of values, and who got there, into the rows.

    The best set is the one of largest sum among those that are orthonormal and hold to the tolerance: no k orthonormal
    vectors have a larger sum of Rayleigh quotients than the top eigenvectors.
    """
    scale = max((max(row["rayleigh"]) for row in rows.values() if row.get("rayleigh")), default=1.0)
    for row in rows.values():
        if row.get("residuals"):
            row["residual"] = max(row["residuals"]) / scale
    able = [row for row in rows.values() if row.get("residual", 1.0) <= tol and row["overlap"] < 1e-3]
    best = max((sorted(row["rayleigh"], reverse=True) for row in able), key=sum, default=None)
    for row in rows.values():
        if best and "values" in row:
            values = sorted(row["values"], reverse=True)
            gaps = [abs(one - two) for one, two in zip(values, best, strict=False)]
            row["off"] = max(gaps) / scale if len(values) == len(best) else 1.0
        is_right = row.get("residual", 1.0) <= tol and row.get("off", 1.0) <= 2 * tol and row.get("overlap", 1.0) < 1e-3
        row["is_reached"] = is_right and not row.get("note", "").startswith("did not")


def table_of(table: Row) -> str:
    """One task as Markdown: a title, a table, and the ratios."""
    from peers import PEERS  # here, so that the parent stays without torch until it has nothing left to run

    if "failure" in table:
        return f"\n### {table['task']}: {table['failure']}"
    prepared, rows = table["prepared"], table["rows"]
    ours = rows.get("ours", {})
    what = f"{prepared['title']}; k = {prepared['k']}, residuals to {prepared['tol']:.0e} of λ₁"
    columns = ("tool", "seconds", "/ ours", "CPU s", "products", "ms each", "residual / λ₁", "off / λ₁", "there", "MB")
    columns += ("batches", "note")
    lines = [f"\n### {table['task']}: {what}\n", *_head(columns)]
    for name, row in rows.items():
        lines.append(_line(PEERS[name].title, row, ours))
    return "\n".join([*lines, "", *_ratios(rows, prepared["micro_batch"])])


def _head(columns: tuple[str, ...]) -> tuple[str, str]:
    return f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)


def _line(title: str, row: Row, ours: Row) -> str:
    why = next((f"{key} {row[key]}" for key in REASONS if key in row), None)
    if why is not None:
        return f"| {title} | | | | | | | | no | | {row['batches']} | {why} |"
    ratio = f"{row['seconds'] / ours['seconds']:.2f}" if "seconds" in ours else ""
    speeds = row.get("seconds_per_product")
    each = ""
    if isinstance(speeds, dict):
        each = ", ".join(f"{kind} {1e3 * value:.3g}" for kind, value in speeds.items())
    elif speeds:
        each = f"{1e3 * speeds:.3g}"
    notes = [row.get("note", ""), f"tol={row['eigsh_tol']:.0e}" if "eigsh_tol" in row else ""]
    notes.append("judged in float32" if row.get("judged_in") == "float32" else "")
    cells = [
        title,
        f"{row['seconds']:.3g}",
        ratio,
        f"{row['cpu_seconds']:.3g}",
        str(row["products"]),
        each,
        f"{row['residual']:.1e}" if "residual" in row else "",
        f"{row['off']:.1e}" if "off" in row else "",
        "yes" if row["is_reached"] else "no",
        f"{row['peak_mb']:.0f} ({row['peak_mb_before']:.0f} before)",
        row["batches"] if row["batches"] == "loader" else f"of {row['batches']}",
        ", ".join(note for note in notes if note),
    ]
    return "| " + " | ".join(cells) + " |"


def fastest(rows: dict[str, Row], *, is_hindsight: bool = False) -> str | None:
    """The fastest of the others that gets there, with or without steps known beforehand."""
    able = {
        name: row["seconds"]
        for name, row in rows.items()
        if name != "ours" and row["is_reached"] and ("hindsight" in name) == is_hindsight
    }
    return min(able, key=able.__getitem__, default=None)


def _ratios(rows: dict[str, Row], micro_batch: int) -> list[str]:
    """What the table says in sentences: the fastest peer that gets there, with and without hindsight."""
    from peers import PEERS

    ours = rows.get("ours", {})
    if "seconds" not in ours:
        return []
    first = [fastest(rows, is_hindsight=is_hindsight) for is_hindsight in (False, True)]
    lines = [
        f"- {rows[name]['seconds'] / ours['seconds']:.2f} times as fast as {PEERS[name].title}"
        for name in first
        if name
    ]
    if not lines:
        lines.append(f"- none of the {len(rows) - 1} other contenders that were asked for gets there")
    product, gradient = ours["seconds_per_product"], ours["seconds_per_gradient"]
    return [
        *(lines if ours["is_reached"] else ["- ours does not get there"]),
        f"- ours: {ours['products']} products, {ours['num_probe_steps']} of them in search of missed pairs, "
        f"{1e3 * product:.3g} ms each ({ours['engine']}, {micro_batch} examples at once), "
        f"{1e3 * gradient:.3g} ms a gradient: {product / gradient:.2f} gradients",
    ]


def summary(tables: dict[str, Row]) -> list[str]:
    """All tasks in one table, and the geometric mean of the ratios."""
    from peers import PEERS

    columns = ("task", "p", "ours, s", "fastest other that gets there", "its s", "ratio")
    columns += ("products, ours / eigsh", "peak MB, ours / curvlinops + eigsh")
    lines, ratios = ["\n### All tasks\n", *_head(columns)], []
    for task, table in tables.items():
        rows = table.get("rows", {})
        ours = rows.get("ours", {})
        if not ours.get("is_reached"):
            lines.append(f"| {task} | | does not get there | | | | | |")
            continue
        cells = [task, f"{table['prepared']['num_params']:,}", f"{ours['seconds']:.3g}"]
        name = fastest(rows)
        if name is not None:
            ratios.append(rows[name]["seconds"] / ours["seconds"])
            cells += [PEERS[name].title, f"{rows[name]['seconds']:.3g}", f"{ratios[-1]:.2f}"]
        else:
            cells += ["none", "", ""]
        cells.append(f"{ours['products']} / {rows.get('script', {}).get('products', '')}")
        peak = rows.get("curvlinops", {}).get("peak_mb")
        cells.append(f"{ours['peak_mb']:.0f} / {f'{peak:.0f}' if peak else ''}")
        lines.append(f"| {' | '.join(cells)} |")
    if ratios:
        lines += [
            "",
            f"Geometric mean of {len(ratios)} ratios, {len(tables)} tasks: {statistics.geometric_mean(ratios):.2f}",
        ]
    return lines


def _machine(tables: dict[str, Row], options: argparse.Namespace) -> str:
    from peers import PACKAGES

    prepared = next((table["prepared"] for table in tables.values() if "prepared" in table), None)
    if prepared is None:
        return "no task could be prepared"
    versions = [f"torch {prepared['torch']}", f"Python {platform.python_version()}"]
    for package in PACKAGES.values():
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} missing")
    size = " (tiny networks, not those of the titles)" if options.quick else ""
    return f"{prepared['device']}, threads: {prepared['threads']}, {', '.join(versions)}{size}"


if __name__ == "__main__":
    main()
