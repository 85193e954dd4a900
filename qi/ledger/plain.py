"""A report as plain text, for terminals without any helper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qi.ledger.evaluation import EVALUATION_HEADER
from qi.ledger.formats import RENDERERS
from qi.ledger.rows import Row
from qi.ledger.summary import DROPPABLE_COLUMNS, ROW_HEADER, TEXT_COLUMNS, facts, row_cells
from qi.ledger.table import fitting_columns, table

if TYPE_CHECKING:
    from qi.ledger.report import QuantizationReport

__all__ = ["MAX_NAMES", "MAX_ROWS", "names_text", "plain_text", "shown_rows"]

MAX_ROWS = 60
"""With more quantized tensors than these, a text shows half as many: the worst."""

MAX_NAMES = 8
"""How many tensors a text names for one reason."""

_WIDTH = 110


def plain_text(report: QuantizationReport) -> str:
    """Return the report as text, without a line end after the last line.

    Models with more than `MAX_ROWS` quantized tensors show the ones with the lowest signal-to-noise ratio.
    """
    title = f"Quantization report: {report.model or 'model'}, recipe {report.recipe}"
    parts = ["\n".join([title, *(f"  warning: {warning}" for warning in report.all_warnings)])]
    parts.append(_indented(table(("", "", ""), [tuple(fact) for fact in facts(report)], left=3).lstrip()))
    if report.evaluations:
        parts.append(_indented(table(EVALUATION_HEADER, [entry.cells() for entry in report.evaluations])))
    rows, note = shown_rows(report)
    if rows:
        parts.append(_indented("\n".join(filter(None, [note, _row_table(rows)]))))
    parts += [
        f"  in float, {len(rows)}: {reason}\n    {names_text(rows)}"
        for reason, rows in report.unquantized_by_reason().items()
    ]
    return "\n\n".join(parts)


def shown_rows(report: QuantizationReport) -> tuple[tuple[Row, ...], str]:
    """Return the quantized rows that a text has room for, and a note that says so if these aren't all."""
    quantized = tuple(row for row in report.rows if row.quantized)
    if len(quantized) <= MAX_ROWS:
        return quantized, ""
    rows = report.worst(MAX_ROWS // 2)
    if not rows:
        return quantized[: MAX_ROWS // 2], f"the first of {len(quantized)} quantized tensors"
    return rows, f"the {len(rows)} with the lowest SQNR, of {len(quantized)} quantized tensors"


def names_text(rows: tuple[Row, ...]) -> str:
    """Return the paths of a few rows and how many there are besides."""
    names = ", ".join(row.path for row in rows[:MAX_NAMES])
    return names if len(rows) <= MAX_NAMES else f"{names} and {len(rows) - MAX_NAMES} more"


@RENDERERS.register(".txt")
def _file(report: QuantizationReport) -> str:
    return f"{plain_text(report)}\n"


def _row_table(rows: Sequence[Row]) -> str:
    cells = list(map(row_cells, rows))
    columns = fitting_columns(ROW_HEADER, cells, DROPPABLE_COLUMNS, _WIDTH)
    header, *lines = ([line[column] for column in columns] for line in (ROW_HEADER, *cells))
    return table(header, lines, left=sum(column < TEXT_COLUMNS for column in columns))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
