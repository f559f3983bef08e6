"""How do docstrings become a reference? Read by griffe for mkdocstrings, with three things mended on the way.

* A result's fields become its "Attributes:", from the comment at the end of their line, which gives shape and meaning
  (`values: Tensor  # (k,) descending`): nothing is said twice.
* "Cost:" and "Source:" are sections of ours; they become bold headings like the others. "Example:" is read as doctests.
* "Returns:" begins with a type only where what stands before the colon looks like one.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

COMMENT = re.compile(r"\s#\s(?P<text>.*)$")
OURS = re.compile(r"^(?P<title>Cost|Source):\n(?P<body>(?:(?: +.*)?\n)*)", re.MULTILINE)
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
RETURNS = re.compile(r"^Returns:\n +(?P<first>.*)$", re.MULTILINE)
IS_TYPE = re.compile(r"[\w.]+(\[[\w., |\[\]]+\])?( \| [\w.]+)*:")


def mended(docstring: str, returned: str | None = None) -> str:
    """A docstring of ours in the words of griffe's Google parser; `returned` is the annotation of what is returned."""
    text = EXAMPLE.sub("Examples:", docstring + "\n")
    text = OURS.sub(lambda m: f"**{m['title']}:**\n\n{textwrap.dedent(m['body']).strip()}\n\n", text)
    if returned and (found := RETURNS.search(text)) and ":" in found["first"] and not IS_TYPE.match(found["first"]):
        at = found.start("first")
        text = f"{text[:at]}{returned}: {text[at:]}"
    return text.rstrip()


class Docstrings(griffe.Extension):
    """Called for each object once the package is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Sections of ours become what the parser knows, and commented fields a section of their class."""
        if obj.docstring is None or not obj.docstring.value:
            return
        returned = str(obj.returns) if isinstance(obj, griffe.Function) and obj.returns is not None else None
        text = mended(obj.docstring.value, returned)
        if obj.is_class and "\nAttributes:\n" not in text and (fields := commented_fields(obj)):
            text += "\n\nAttributes:\n" + "".join(f"    {name}: {comment}\n" for name, comment in fields.items())
        obj.docstring.value = text


def commented_fields(cls: griffe.Object) -> dict[str, str]:
    """Name -> comment of the fields that have one."""
    found = {}
    for name, member in cls.members.items():
        if member.is_alias or not member.is_attribute or name.startswith("_") or "property" in member.labels:
            continue
        for line in member.lines:
            if (comment := COMMENT.search(line)) and not comment["text"].startswith(("type:", "noqa", "fmt:")):
                found[name] = comment["text"]
    return found
