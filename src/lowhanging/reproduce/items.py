"""Where does a claim's text break, so that a page can list what it says instead of running on?

Each sentence is an item; a long one is set in lines, which end at its semicolons and after what introduces it in
parentheses: "losses (means over 3 seeds):". Never within parentheses, whose contents belong to what stands before them.
Only the breaks are new: joined again, the lines are the text. No level below the items is made up, as a semicolon does
not say which of its sides belongs to which.
"""

from __future__ import annotations

import re

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
