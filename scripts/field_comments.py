"""How do the fields of a result get their text in the reference?

By the comment at the end of their line, which gives shape and meaning: `values: Tensor  # (k,) descending`. Nothing is
then said twice. An extension of griffe, which reads the sources for mkdocstrings.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

COMMENT = re.compile(r"\s#\s(?P<text>.*)$")


class FieldComments(griffe.Extension):
    """Trailing comments of class attributes become their docstrings; a public class keeps only fields that have one."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Called for each attribute once it is read."""
        if attr.docstring is not None or attr.parent is None or not attr.parent.is_class or attr.lineno is None:
            return
        found = COMMENT.search(attr.lines[-1]) if attr.lines else None
        if found and not found["text"].startswith(("type:", "noqa", "fmt:")):
            attr.docstring = griffe.Docstring(found["text"], lineno=attr.lineno, parent=attr)
