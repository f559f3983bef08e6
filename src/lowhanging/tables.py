"""Results as tables: a pandas frame on request, and short ones shown by a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lowhanging.errors import argument_message

Columns = dict[str, list[Any]]

MOST_ROWS = 20  # that a notebook shows


class Tabular:
    """A result that is a table; what the rows are, `columns` says."""

    def columns(self) -> Columns:
        """Name -> one plain value of each row."""
        raise NotImplementedError

    def to_dataframe(self) -> Any:
        """The table of `columns` as a `pandas.DataFrame`.

        Raises:
            ImportError: pandas is not installed (`pip install ".[tables]"`).
        """
        try:
            import pandas
        except ImportError as error:
            received, expected = "is not installed", "the library of tables"
            remedy = 'Install it: pip install ".[tables]"'
            raise ImportError(argument_message("pandas", received, expected, remedy)) from error
        return pandas.DataFrame(self.columns())


class NotebookTable(Tabular):
    """A short table, which a notebook shows in place of the repr."""

    def _repr_html_(self) -> str:
        return html_table(repr(self), self.columns())


def html_table(caption: str, columns: Mapping[str, Sequence[Any]]) -> str:
    """A table without classes, styles or scripts: a caption, a head, the first rows, and how many are left out."""
    rows = list(zip(*columns.values(), strict=True))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows[:MOST_ROWS])
    more = len(rows) - MOST_ROWS
    rest = f'<tr><td colspan="{len(columns)}">&hellip; {more} more</td></tr>' if more > 0 else ""
    title = f"<caption>{html.escape(caption)}</caption>"
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}{rest}</tbody></table>"


def with_losses(columns: Columns, losses: Mapping[str, Tensor], accuracies: Mapping[str, Tensor]) -> Columns:
    """The columns, then each named loss, then each accuracy, flattened in their order."""
    named = {f"{name} loss" if name != "loss" else name: row for name, row in losses.items()}
    named |= {f"{name} accuracy" if name != "loss" else "accuracy": row for name, row in accuracies.items()}
    return columns | {name: row.flatten().tolist() for name, row in named.items()}


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return html.escape(text)
