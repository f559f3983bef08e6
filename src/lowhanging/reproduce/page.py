"""The report as files: one page that needs nothing beside it, the claims in Markdown, every number as JSON.

Everything is made in memory, then written in full to a folder beside the earlier report, and only then moved into its
place, file by file and the page last. A write that fails leaves the earlier report as it was. What is cut off between
two moves leaves the earlier page, which needs no file beside it: a new page never stands beside older numbers.

A claim's text is set as a list of its sentences, a long one in lines, which end at its semicolons and after what
introduces it in parentheses: "losses (means over 3 seeds):". Never within parentheses, whose contents belong to what
stands before them. Only the breaks are new: joined again, the lines are the text.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lowhanging.io import write_atomically
from lowhanging.reproduce.claims import ONE_SEED, Claim
from lowhanging.reproduce.figures import CAPTIONS
from lowhanging.reproduce.pipeline import Measured
from lowhanging.reproduce.settings import versions
from lowhanging.reproduce.store import Row, as_json
from lowhanging.reproduce.themes.registry import THEMES

MINIMUM = "The minimum of network "  # how a line of the heading begins that tells of one
_SIGNS = {"holds": "yes", "holds in part": "part", "does not hold": "no"}
LONG = 120  # characters from which a sentence is set in lines
_SENTENCE = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!cf)(?<!vs)(?<!etc)\.\s+")
_SEMICOLON = re.compile(r";\s+")
_PAIRS = (("(", ")"), ("[", "]"), ("“", "”"))


def write(out: Path, measured: Measured, pictures: Mapping[str, bytes]) -> list[Claim]:
    """index.html, claims.md, results.json and the figures; returns the claims."""
    claims, heading = measured.claims(), heading_of(measured)
    results = {
        "settings": {
            "seeds": list(measured.settings.seeds),
            "data": measured.settings.data,
            "sizes": dataclasses.asdict(measured.settings.sizes),
            "command": measured.settings.command(),
        },
        "versions": versions(),
        "rows": measured.rows,
        "claims": [dataclasses.asdict(claim) | {"label": claim.label} for claim in claims],
    }
    files = {
        **pictures,
        "claims.md": markdown(claims, heading, list(pictures)).encode(),
        "results.json": as_json(results).encode(),
        "index.html": page(claims, heading, measured, pictures).encode(),
    }
    # Pictures of an earlier run would stand beside numbers that are not theirs.
    replace_together(out, files, stale=set(CAPTIONS) - set(pictures))
    return claims


def replace_together(out: Path, files: Mapping[str, bytes], stale: Iterable[str] = ()) -> None:
    """Write all `files` into a folder within `out`, then move each into its place in their order, the last one last.

    Those in `stale` are removed before that last move. If anything can't be written, nothing has been moved or removed.
    """
    staging = out / ".report.part"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed here
    staging.mkdir()
    try:
        for name, content in files.items():
            write_atomically(staging / name, lambda stream, content=content: stream.write(content))
        *others, last = files
        for name in others:
            os.replace(staging / name, out / name)
        for name in stale:
            (out / name).unlink(missing_ok=True)
        os.replace(staging / last, out / last)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def heading_of(measured: Measured) -> list[str]:
    """What a reader must know before the numbers: settings, and where they were measured."""
    settings = measured.settings
    num, sizes = settings.num_seeds, settings.sizes
    networks = (
        f"One digit network (seed {settings.seed}; {ONE_SEED})"
        if num == 1
        else f"{num} digit networks (seeds {settings.seed} to {settings.seed + num - 1}), intervals of 95 % over them"
    )
    lines = [
        f"{networks}, {sizes.epochs} epochs, {settings.data} digits, {sizes.name} size. Repeat it with "
        f"`{settings.command()}`. The same seed gives the same numbers on the same processor and number of threads "
        f"({versions()['threads']} here); another one rounds differently and so trains another network.",
        "Losses, accuracies and Hessians are those of held-out images, without the anchor, at the minimum of the "
        "anchored training loss (where the held-out losses themselves are not stationary).",
    ]
    if num > 1:
        lines.append(
            "An interval over networks is Student's: of ratios and positive quantities on the logarithm (around the "
            "geometric mean), of accuracies and other shares on the log odds, else symmetric (±). Of fewer than five "
            "networks the smallest and the largest value stand beside it in parentheses; where one of the values has "
            "no logarithm or log odds (a share of exactly 0 or 1), the ordinary mean and this range stand alone."
        )
    if num < 6:
        lines.append(
            "A verdict says what was seen in these networks. With fewer than six, even if all agree, it stays open "
            "whether more than half of all networks would."
        )
    return lines + [_minimum(settings.seed + i, row) for i, row in enumerate(measured.rows.get("learning", []))]


def _minimum(seed: int, row: Row) -> str:
    found = row["minimum"]
    text = (
        f"{MINIMUM}{seed}: gradient norm {found['gradient_norm_before']:.2g} → "
        f"{found['gradient_norm']:.2g} in {found['num_gradients']} gradients and {found['num_products']} products, "
        f"anchor {found['anchor']:g}, moved by {found['distance']:.3g} (the weights' norm is "
        f"{found['norm_before']:.3g}), eigenvalues of the anchored training loss from "
        f"{found['smallest_eigenvalue']:.3g} (± {found['smallest_residual']:.1g}) to {found['largest_eigenvalue']:.3g}."
    )
    return text if found["is_minimum"] else f"{text} **Not a minimum:** {found['note']}"


def markdown(claims: Sequence[Claim], heading: Sequence[str], pictures: Sequence[str] = ()) -> str:
    """The claims as a page: `heading`, a table of verdicts, then each claim, its null, its rule and its command."""
    lines = ["# The post's claims, measured", ""]
    for line in heading:
        lines += [line, ""]
    lines += ["| | claim | verdict |", "|---|---|---|"]
    lines += [f"| {c.label} | {_cell(c.name)} | **{c.verdict}** |" for c in claims]
    for c in claims:
        lines += ["", f"## {c.label}. {c.name}: {c.verdict}", "", f"The write-up: {c.post}", ""]
        for word, text in (("Measured", c.measured), ("Held against", c.null), ("Rule", c.rule)):
            lines += [f"{word}:", "", *bullets(text), ""]
        lines.append(f"Repeat it: `{c.command}`")
    lines += ["", *(f"![{CAPTIONS[name][1]}]({name})" for name in pictures)]
    return "\n".join(lines).rstrip() + "\n"


def bullets(text: str) -> list[str]:
    """A text as a list in Markdown, one line of it per sentence; long sentences in lines."""
    return [f"* {'<br>'.join(lines)}" for lines in sentences(text)]


def _cell(text: str) -> str:
    """Text that stays in one cell of a table."""
    return text.replace("|", "\\|")


def show(claims: Sequence[Claim], measured: Measured, out: Path) -> None:
    """The claims on a terminal, as wide as one usually is."""
    for seed, row in enumerate(measured.rows.get("learning", []), measured.settings.seed):
        if not row["minimum"]["is_minimum"]:
            print(f"\nNOT A MINIMUM (network {seed}): {row['minimum']['note']}")
    for claim in claims:
        print(f"\n{claim.verdict.upper():<14} {claim.label}. {claim.name}")
        for label, text in (("post", claim.post), ("measured", claim.measured), ("null", claim.null)):
            print(textwrap.fill(text, 110, initial_indent=f"{'':<15}{label}: ", subsequent_indent=" " * 17))
    print(
        f"\n{out / 'index.html'} shows all of it, {out / 'claims.md'} says how each verdict was reached, "
        f"{out / 'results.json'} has every number."
    )


def page(claims: Sequence[Claim], heading: Sequence[str], measured: Measured, pictures: Mapping[str, bytes]) -> str:
    """The whole page."""
    title = "The low-hanging fruit prior: every claim, measured"
    style = Path(__file__).with_name("page.css").read_text()
    drawn: dict[str, str] = {}  # picture -> the label of the claim under which it stands
    articles = "\n".join(_article(claim, pictures, drawn) for claim in claims)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="lead">Vaintrob &amp; Rimsky (2023), “The low-hanging fruit prior and sloped valleys in the loss landscape”,
held against what this run measured. Each verdict is computed from the numbers by the rule printed with it.</p>
{_tally(claims)}
{_heading(heading)}
</header>
<main>
<h2 id="table">All claims</h2>
{_table(claims)}
<h2>One by one</h2>
{articles}
<h2>How it was made</h2>
{_made(measured)}
</main>
</body>
</html>
"""


def _heading(lines: Sequence[str]) -> str:
    """What a reader must know; what is well with every minimum is folded, what is not stands open."""
    minima = [line for line in lines if line.startswith(MINIMUM) and "**" not in line]
    shown = "".join(f'<p class="note">{_inline(line)}</p>' for line in lines if line not in minima)
    if not minima:
        return shown
    folded = "".join(f'<p class="note">{_inline(line)}</p>' for line in minima)
    return f"{shown}<details><summary>what proves that the networks are at a minimum</summary>{folded}</details>"


def _tally(claims: Sequence[Claim]) -> str:
    items = [
        f'<li class="{sign}"><b>{sum(claim.verdict == verdict for claim in claims)}</b>'
        f"{'hold' if verdict == 'holds' else 'hold in part' if sign == 'part' else 'do not hold'}</li>"
        for verdict, sign in _SIGNS.items()
    ]
    return f'<ul class="tally">{"".join(items)}</ul>'


def _table(claims: Sequence[Claim]) -> str:
    rows = [
        f'<tr><td class="n">{claim.label}</td><td><a href="#{_anchor(claim)}">{html.escape(claim.name)}</a></td>'
        f'<td class="v">{_verdict(claim)}</td></tr>'
        for claim in claims
    ]
    head = "<thead><tr><th></th><th>claim</th><th>verdict</th></tr></thead>"
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _verdict(claim: Claim) -> str:
    return f'<span class="verdict {_SIGNS[claim.verdict]}">{claim.verdict}</span>'


def _anchor(claim: Claim) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", claim.name.lower()).strip("-")
    return f"claim-{claim.label}-{words[:40]}"


def _article(claim: Claim, pictures: Mapping[str, bytes], drawn: dict[str, str]) -> str:
    """The measured effect beside its null; the rule and the command folded below."""
    facts = "".join(
        f"<section><h4>{label}</h4>{_list(text)}</section>"
        for label, text in (("measured", claim.measured), ("held against", claim.null))
    )
    shown = "".join(_figure(name, claim, pictures, drawn) for name in pictures if claim.number in CAPTIONS[name][0])
    return (
        f'<article id="{_anchor(claim)}"><h3>{_verdict(claim)}<span class="n">{claim.label}</span>'
        f'{html.escape(claim.name)}</h3><p class="post">The write-up: {_inline(claim.post)}</p>'
        f'<div class="facts">{facts}</div><details><summary>the rule behind “{claim.verdict}”, and how to repeat it'
        f"</summary>{_list(claim.rule)}<p><code>{html.escape(claim.command)}</code></p></details>{shown}</article>"
    )


def _list(text: str) -> str:
    """A list of what a text says, a long sentence in lines."""
    listed = ("".join(f"<span>{_inline(line)}</span>" for line in lines) for lines in sentences(text))
    return f"<ul>{''.join(f'<li>{item}</li>' for item in listed)}</ul>"


def _figure(name: str, claim: Claim, pictures: Mapping[str, bytes], drawn: dict[str, str]) -> str:
    """The picture, the first time; after that, where it stands."""
    caption = html.escape(CAPTIONS[name][1])
    stem = name.removesuffix(".png")
    if name in drawn:
        return f'<p class="small">Figure: <a href="#figure-{stem}">under claim {drawn[name]}</a>.</p>'
    drawn[name] = claim.label
    content = base64.b64encode(pictures[name]).decode()
    width = int.from_bytes(pictures[name][16:20], "big")  # of the PNG's header
    narrow = ' class="narrow"' if width < 1000 else ""
    return (
        f'<figure id="figure-{stem}"><img{narrow} alt="{caption}" src="data:image/png;base64,{content}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _made(measured: Measured) -> str:
    titles = {theme.name: theme.title for theme in THEMES}
    rows = [
        f"<tr><td><code>{name}</code></td><td>{html.escape(titles[name])}</td>"
        f'<td class="n">{sum(seconds):.0f}</td></tr>'
        for name, seconds in measured.seconds.items()
    ]
    total = sum(map(sum, measured.seconds.values()))
    listed = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"<p>Figures show network {measured.settings.seed}. Versions: {html.escape(listed)}. Every number is in "
        "<code>results.json</code>. Time on the clock, by theme, when it was measured:</p><table><thead><tr>"
        "<th>theme</th><th>what was done</th><th>seconds</th></tr></thead>"
        f"<tbody>{''.join(rows)}<tr><td></td><td>all</td>"
        f'<td class="n">{total:.0f}</td></tr></tbody></table>'
    )


def _inline(text: str) -> str:
    """Escaped text, with `code` and **bold**."""
    safe = html.escape(text)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe)


def sentences(text: str) -> list[list[str]]:
    """The sentences of a text, each as its lines.

    >>> sentences("Two cues (means): number 1; pattern 2. Both are learned.")
    [['Two cues (means): number 1; pattern 2.'], ['Both are learned.']]
    """
    return [_lines(sentence) for sentence in _pieces(" ".join(text.split()), _SENTENCE)]


def _lines(sentence: str) -> list[str]:
    if len(sentence) <= LONG:
        return [sentence]
    first, *others = _pieces(sentence, _SEMICOLON)
    head, mark, rest = first.partition("): ")
    return [f"{head}):", rest, *others] if mark else [first, *others]


def _pieces(text: str, mark: re.Pattern[str]) -> list[str]:
    """The text cut behind each mark that stands outside of parentheses and brackets."""
    found, begin = [], 0
    for match in mark.finditer(text):
        before = text[begin : match.start()]
        if match.end() < len(text) and all(before.count(left) <= before.count(right) for left, right in _PAIRS):
            found.append(text[begin : match.end()].rstrip())
            begin = match.end()
    return [*found, text[begin:]]
