"""Top eigenpairs of a Hessian, ours and others': seconds, products, true residuals, memory. One run, one table.

    python benchmarks/curvature.py [--tasks a10 a50 b10 c10] [--contenders ours curvlinops ...] [--json FILE]

Tasks: (a) the paired-digit CNN, 10 and 50 pairs; (b) a modular-addition transformer, 10; (c) a tanh MLP with 1.2
million weights, 10. `benchmarks/requirements.txt` says how to install the others; one that is not there is named as
missing.

Each contender runs in a fresh process, one after another, from the trained model and its loader to the pairs. The
others may choose between the user's loader and batches of our size in memory: three products with each decide. Every
pair is then judged by the same float64 double backward: "residual" is the worst |H v - value v| / lambda_1, "off" is
how far the values are from the best set found, by lambda_1 (a skipped or a doubled eigenvalue shows here only).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TASK_NAMES = ("a10", "a50", "b10", "c10")
CONTENDERS = (
    "ours",
    "double-backward",
    "curvlinops",
    "eigenthings-default",
    "eigenthings",
    "eigenthings-hindsight",
    "pyhessian",
)
HERE = Path(__file__).parent
Row = dict[str, Any]


def main() -> None:
    """Run, judge, print."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        runner = _Runner(options, Path(folder))
        tables = {task: runner.task(task) for task in options.tasks}
    print("\n".join([_machine(tables, options), *(table_of(table) for table in tables.values())]))
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options) | {"json": None}, "tasks": tables}, indent=1))
    if any("failure" in table for table in tables.values()):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASK_NAMES, default=list(TASK_NAMES))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--tol", type=float, default=1e-5, help="residual to reach, relative to lambda_1")
    parser.add_argument("--batches", choices=("better", "loader", "micro"), default="better", help="of the others")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="of every contender; 0: what torch chooses")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for any one contender")
    parser.add_argument(
        "--patience", type=float, default=5, help="stop a contender that takes so many times as long as ours"
    )
    parser.add_argument("--grace", type=float, default=150, help="seconds that --patience grants in any case")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it runs")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class _Runner:
    """Gives the orders to the child processes, and collects what they report."""

    def __init__(self, options: argparse.Namespace, scratch: Path):
        self.options, self.scratch = options, scratch
        self.pilots: dict[str, Row] = {}

    def task(self, task: str) -> Row:
        """All contenders on one task, judged."""
        self.pilots.clear()
        prepared = self.child(task, "prepare", timeout=3600)
        if "micro_batch" not in prepared:
            return {"task": task, "failure": f"could not be prepared: {prepared}"}
        self.say(f"{task}: loss {prepared['loss']:.3g}, prepared in {prepared['seconds']:.0f} s")
        rows: dict[str, Row] = {}
        limit = self.options.timeout
        for name in self.options.contenders:
            rows[name] = self.contender(task, name, prepared["micro_batch"], limit)
            if name == "ours" and "seconds" in rows[name]:
                patience = max(self.options.patience * rows[name]["seconds"], self.options.grace)
                limit = min(limit, patience)
        paths = {name: str(self.pairs(task, name)) for name in rows if self.pairs(task, name).exists()}
        self.say(f"{task}: judging {len(paths)} contenders")
        verdicts = self.child(task, "judge", timeout=3600, pairs=paths) if paths else {}
        if "failure" in verdicts or "stopped" in verdicts:
            return {"task": task, "failure": f"could not be judged: {verdicts}", "prepared": prepared, "rows": rows}
        judged(rows, verdicts, self.options.tol)
        return {"task": task, "prepared": prepared, "tol": self.options.tol, "rows": rows}

    def contender(self, task: str, name: str, micro_batch: int, limit: float) -> Row:
        """One row, not yet judged."""
        row: Row = {"batches": "loader"}
        if name != "ours":
            row["batches"] = self.options.batches
        if row["batches"] == "better":
            key = name.split("-")[0]  # the settings of one tool share its product
            if key not in self.pilots:
                order = {"contender": name, "micro_batch": micro_batch}
                self.pilots[key] = self.child(task, "pilot", timeout=limit, **order)
            row |= self.pilots[key]
            speeds = row.get("seconds_per_product")
            row["batches"] = min(speeds, key=speeds.__getitem__) if speeds else "loader"
        if "missing" not in row and "failure" not in row:
            order = {"contender": name, "micro_batch": micro_batch, "batches": row["batches"]}
            row |= self.child(task, "solve", timeout=limit, pairs=str(self.pairs(task, name)), **order)
        facts = [f"{row['seconds']:.1f} s, {row['products']} products"] if "products" in row else []
        facts += [f"{key}: {row[key]}" for key in ("missing", "failure", "stopped") if key in row]
        self.say(f"{task}: {name}, {'; '.join(facts)}")
        return row

    def child(self, task: str, verb: str, *, timeout: float, **order: Any) -> Row:
        """The report of one process, or why there is none."""
        options = self.options
        order |= {"task": task, "verb": verb, "quick": options.quick, "device": options.device, "tol": options.tol}
        order |= {"threads": options.threads, "scratch": str(self.scratch)}
        command = [sys.executable, str(HERE / "curvature_child.py"), json.dumps(order)]
        environment = dict(os.environ)
        if options.threads:
            environment["OMP_NUM_THREADS"] = str(options.threads)
        how: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
        try:
            done = subprocess.run(command, timeout=timeout, env=environment, **how)
        except subprocess.TimeoutExpired:
            return {"stopped": f"after {timeout:.0f} s"}
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            return {"failure": f"exit status {done.returncode}: {' '.join(done.stderr.strip().splitlines()[-1:])}"}
        return json.loads(lines[-1])  # type: ignore[no-any-return]

    def pairs(self, task: str, name: str) -> Path:
        """Where a contender leaves its pairs."""
        return self.scratch / f"{task}-{name}.pt"

    def say(self, text: str) -> None:
        """Progress, with the time of day."""
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def judged(rows: dict[str, Row], verdicts: dict[str, Row], tol: float) -> None:
    """Write residuals, distances from the best set of values, and who got there, into the rows.

    The best set is the one of largest sum among those that are orthonormal and hold to the tolerance: no k orthonormal
    vectors have a larger sum of Rayleigh quotients than the top eigenvectors.
    """
    for name, row in rows.items():
        row |= verdicts.get(name, {})
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
    from curvature_tasks import TASKS  # here, so that the parent stays without torch until it has nothing left to run
    from peers import PEERS

    if "failure" in table:
        return f"\n### {table['task']}: {table['failure']}"
    task, prepared, rows = TASKS[table["task"]], table["prepared"], table["rows"]
    ours = rows.get("ours", {})
    title = f"\n### {table['task']}: {task.title}; k = {task.k}, residuals to {table['tol']:.0e} of λ₁\n"
    columns = ("tool", "seconds", "/ ours", "CPU s", "products", "ms each", "residual / λ₁", "off / λ₁", "there", "MB")
    columns += ("batches", "note")
    lines = [title, f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, row in rows.items():
        lines.append(_line(PEERS[name].title, row, ours, prepared))
    return "\n".join([*lines, "", *_ratios(rows, ours, {name: PEERS[name].title for name in rows})])


def _line(title: str, row: Row, ours: Row, prepared: Row) -> str:
    why = next((f"{key} {row[key]}" for key in ("missing", "failure", "stopped") if key in row), None)
    if why is not None:
        return f"| {title} | | | | | | | | no | | {row['batches']} | {why} |"
    ratio = f"{row['seconds'] / ours['seconds']:.2f}" if "seconds" in ours else ""
    speeds = row.get("seconds_per_product")
    each = ""
    if isinstance(speeds, dict):
        each = ", ".join(f"{kind} {1e3 * value:.0f}" for kind, value in speeds.items())
    elif speeds:
        each = f"{1e3 * speeds:.0f}"
    cells = [
        title,
        f"{row['seconds']:.1f}",
        ratio,
        f"{row['cpu_seconds']:.1f}",
        str(row["products"]),
        each,
        f"{row['residual']:.1e}" if "residual" in row else "",
        f"{row['off']:.1e}" if "off" in row else "",
        "yes" if row["is_reached"] else "no",
        f"{row['peak_mb']:.0f} ({row['peak_mb_before']:.0f} before)",
        "loader" if row["batches"] == "loader" else f"of {prepared['micro_batch']}",
        row.get("note", ""),
    ]
    return "| " + " | ".join(cells) + " |"


def _ratios(rows: dict[str, Row], ours: Row, titles: dict[str, str]) -> list[str]:
    """What the table says in sentences: the fastest peer that gets there, with and without hindsight."""
    if "seconds" not in ours:
        return []
    lines = []
    if ours["is_reached"]:
        for is_hindsight in (False, True):
            able = {
                name: row["seconds"]
                for name, row in rows.items()
                if name != "ours" and row.get("is_reached") and ("hindsight" in name) == is_hindsight
            }
            if able:
                first = min(able, key=able.__getitem__)
                lines.append(f"- {able[first] / ours['seconds']:.2f} times as fast as {titles[first]}")
        if not lines:
            lines.append(f"- none of the {len(rows) - 1} other contenders that were asked for gets there")
    else:
        lines.append("- ours does not get there")
    product, gradient = ours["seconds_per_product"], ours["seconds_per_gradient"]
    return [
        *lines,
        f"- ours: {ours['products']} products, {1e3 * product:.0f} ms each ({ours['engine']}), "
        f"{1e3 * gradient:.0f} ms a gradient: {product / gradient:.2f} gradients",
    ]


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
    return f"{prepared['device']}, {prepared['threads']} threads, {', '.join(versions)}{size}"


if __name__ == "__main__":
    main()
