"""Where does a claim's text break, so that a page can list what it says instead of running on?

Each sentence is an item; a long one is set in lines, which end at its semicolons and after what introduces it in
parentheses: "losses (means over 3 seeds):". Never within parentheses, whose contents belong to what stands before them.
Only the breaks are new: joined again, the lines are the text. No level below the items is made up, as a semicolon does
not say which of its sides belongs to which.

What does the report look like in a browser? One page that needs nothing beside it: no scripts, figures inside.

How does a run become a report, and what if writing it fails?

Everything is made in memory, then written in full to a folder beside the earlier report, and only then moved into its
place, file by file and the page last. A write that fails leaves the earlier report as it was. What is cut off between
two moves leaves the earlier page, which needs no file beside it: a new page never stands beside older numbers.
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

LONG = 120  # characters from which a sentence is set in lines
_SENTENCE = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!cf)(?<!vs)(?<!etc)\.\s+")
_SEMICOLON = re.compile(r";\s+")
_PAIRS = (("(", ")"), ("[", "]"), ("“", "”"))


def items(text: str) -> list[list[str]]:
    """The sentences of a text, each as its lines.

    >>> items("Two cues (means): number 1; pattern 2. Both are learned.")
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


MINIMUM = "The minimum of network "  # how a line of the heading begins that tells of one
_SIGNS = {"holds": "yes", "holds in part": "part", "does not hold": "no"}
_STYLE = """
:root { --ink: #1b1f24; --soft: #5a636e; --line: #d9dee4; --back: #ffffff; --card: #f6f8fa;
        --yes: #0b6e4f; --part: #8a5a00; --no: #a3243b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #a0a9b4; --line: #353c45; --back: #14181d; --card: #1c2229;
          --yes: #56c596; --part: #e0a83c; --no: #f08497; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; color: var(--ink); background: var(--back);
       font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1.1rem; line-height: 1.35; margin: 0 0 .75rem; }
p { margin: .5rem 0; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .2em; }
.lead, .note, figcaption, .small { color: var(--soft); }
.note, .small { font-size: .9rem; }
.tally { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; padding: 0; list-style: none; }
.tally li { flex: 1 1 9rem; padding: .7rem 1rem; border: 1px solid var(--line); border-radius: .5rem;
            background: var(--card); }
.tally b { display: block; font-size: 1.6rem; line-height: 1.2; }
table { width: 100%; border-collapse: collapse; font-size: .95rem; }
th, td { padding: .45rem .5rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.n { width: 2.2rem; text-align: right; font-variant-numeric: tabular-nums; color: var(--soft); }
td.v { white-space: nowrap; }
.yes { color: var(--yes); } .part { color: var(--part); } .no { color: var(--no); }
.verdict { font-weight: 700; }
article .verdict { padding: .1rem .7rem; border: 1.5px solid currentColor; border-radius: 1rem; font-size: .95rem; }
.verdict::before { content: "●"; margin-right: .4em; } .part.verdict::before { content: "◐"; }
.no.verdict::before { content: "○"; }
article { margin: 1.25rem 0; padding: 1.1rem 1.2rem; border: 1px solid var(--line); border-radius: .6rem; }
article h3 .n { color: var(--soft); margin-right: .4em; } article h3 .verdict { float: right; margin-left: 1rem; }
.post { color: var(--soft); }
.facts { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1rem 1.5rem; }
.facts > section { padding: .7rem .9rem; background: var(--card); border-radius: .5rem; }
.facts > section + section { background: none; border: 1px solid var(--line); }
h4, summary { color: var(--soft); font-size: .9rem; font-weight: 600; } h4 { margin: 0 0 .4rem; }
.facts ul, details ul { margin: 0; padding-left: 1.1rem; font-size: .95rem; line-height: 1.5; }
li { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.facts li + li, details li + li { margin-top: .5rem; }
li span { display: block; padding-left: 1rem; text-indent: -1rem; } li span:first-child { padding: 0; text-indent: 0; }
details { margin-top: .9rem; } summary { cursor: pointer; } details > :not(summary) { margin-top: .5rem; }
figure { margin: 1rem 0 0; } figcaption { font-size: .9rem; margin-top: .35rem; }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
      border-radius: .35rem; }
img.narrow { max-width: 38rem; margin: 0 auto; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--card);
       padding: .12em .35em; border-radius: .25rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { .facts { grid-template-columns: minmax(0, 1fr); }
  article h3 .verdict { float: none; display: table; margin: 0 0 .4rem; }
  td.v { white-space: normal; } figure { overflow-x: auto; } img { min-width: 44rem; } img.narrow { min-width: 0; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } article { border: 0; padding: .5rem 0;
  border-top: 1px solid #999; border-radius: 0; } figure, h3, tr { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; } details::details-content { content-visibility: visible; block-size: auto; } }
"""


def page(claims: Sequence[Claim], heading: Sequence[str], measured: Measured, pictures: Mapping[str, bytes]) -> str:
    """The whole page."""
    title = "The low-hanging fruit prior: every claim, measured"
    drawn: dict[str, str] = {}  # picture -> the label of the claim under which it stands
    articles = "\n".join(_article(claim, pictures, drawn) for claim in claims)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
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
    listed = ("".join(f"<span>{_inline(line)}</span>" for line in lines) for lines in items(text))
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
    return [f"* {'<br>'.join(lines)}" for lines in items(text)]


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
