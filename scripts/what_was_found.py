"""Where do the numbers in docs/what-was-found.md come from? From a report, by this script, and from nowhere else.

lowhanging reproduce --out report
python scripts/what_was_found.py report/results.json          # fills in what stands between two marks
python scripts/what_was_found.py report/results.json --check  # whether the page has these numbers
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from lowhanging.reproduce.page import sentences

PAGE = Path(__file__).resolve().parents[1] / "docs" / "what-was-found.md"
BEGIN, END = "<!-- report:begin -->", "<!-- report:end -->"
KEYS = ("number", "name", "post", "measured", "null", "rule", "verdict")


def section(claims: list[dict[str, Any]], command: str = "") -> str:
    """The command that repeats the numbers, a table of verdicts, then every claim, with what was measured folded."""
    lines = [f"From `{command}`:", ""] if command else []
    lines += ["| | claim | verdict |", "|---|---|---|"]
    lines += [f"| {label(c)} | {cell(c['name'])} | **{cell(c['verdict'])}** |" for c in claims]
    for c in claims:
        lines += ["", f"### {label(c)}. {plain(c['name'])}: {plain(c['verdict'])}", ""]
        lines += ['<details markdown="1">']
        lines += ["<summary>What was measured, what it was held against, and the rule</summary>", ""]
        lines += [f"*The write-up:* {plain(c['post'])}", ""]
        for word, text in (("Measured", c["measured"]), ("Held against", c["null"])):
            lines += [f"*{word}:*", "", *bullets(text), ""]
        lines += [f"*The rule behind “{plain(c['verdict'])}”:*", ""]
        lines += [*bullets(c["rule"]), "", "</details>"]
    return "\n".join(lines)


def label(claim: dict[str, Any]) -> str:
    """The number as it is shown: "19", "20a"."""
    return f"{claim['number']}{claim.get('part', '')}"


def bullets(text: str) -> list[str]:
    """A line of Markdown for each sentence, a long one with breaks in it."""
    return ["* " + "<br>".join(map(plain, lines)) for lines in sentences(text)]


def plain(text: str) -> str:
    """Text in which markdown sees no markup, on one line."""
    return re.sub(r"([\\*_\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")


def cell(text: str) -> str:
    """The same within a table."""
    return plain(text).replace("|", "\\|")


def read_report(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The claims of a results.json in the order of their numbers, each with all keys; and its command, if any."""
    report = json.loads(path.read_text())
    claims = report["claims"]
    for claim in claims:
        if missing := [key for key in KEYS if key not in claim]:
            raise ValueError(f"claim {claim.get('number', claim.get('name', '?'))} of {path} has no {missing}")
    in_order = sorted(claims, key=lambda claim: (int(claim["number"]), claim.get("part", "")))
    return in_order, report.get("settings", {}).get("command", "")


def filled(page: str, claims: list[dict[str, Any]], command: str = "") -> str:
    """The page with the claims between its marks."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page must have {BEGIN} once, and {END} once after it")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{section(claims, command)}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fill docs/what-was-found.md in from a report.")
    parser.add_argument("results", type=Path, help="results.json of a report")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page differs, and write nothing")
    options = parser.parse_args(arguments)
    page = options.page.read_text()
    new = filled(page, *read_report(options.results))
    if options.check:
        print("the page has these numbers" if new == page else "the page has other numbers")
        return int(new != page)
    options.page.write_text(new)
    print(f"wrote {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
