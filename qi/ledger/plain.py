"""A report as plain text, for terminals without any helper."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qi.ledger.evaluation import EVALUATION_HEADER
from qi.ledger.formats import RENDERERS
from qi.ledger.rows import Row
from qi.ledger.summary import (
    MAX_NAMES,
    ROW_HEADER,
    TEXT_COLUMNS,
    algorithms_text,
    facts,
    names_text,
    remarks,
    row_cells,
    shown_columns,
)
from qi.ledger.table import table

if TYPE_CHECKING:
    from qi.ledger.report import QuantizationReport

__all__ = ["MAX_NAMES", "MAX_ROWS", "names_text", "plain_text", "shown_rows"]

MAX_ROWS = 60
"""With more quantized tensors than these, a text shows half as many: the worst."""

_WIDTH = 110


def plain_text(report: QuantizationReport) -> str:
    """Return the report as text, without a line end after the last line.

    Models with more than `MAX_ROWS` quantized tensors show the ones with the lowest signal-to-noise ratio.
    """
    title = f"Quantization report: {report.model or 'model'}, recipe {report.recipe}"
    parts = ["\n".join([title, *_worked(report), *(f"  warning: {warning}" for warning in report.all_warnings)])]
    parts.append(_indented(table(("", "", ""), [tuple(fact) for fact in facts(report)], left=3).lstrip()))
    if report.evaluations:
        parts.append(_indented(table(EVALUATION_HEADER, [entry.cells() for entry in report.evaluations])))
    rows, note = shown_rows(report)
    if rows:
        parts.append(_indented("\n".join(filter(None, [note, _row_table(rows), *remarks(report)]))))
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


@RENDERERS.register(".txt")
def _file(report: QuantizationReport) -> str:
    return f"{plain_text(report)}\n"


def _worked(report: QuantizationReport) -> list[str]:
    """Which algorithms worked on weights, in as many lines as that takes."""
    text = algorithms_text(report)
    return textwrap.wrap(
        f"algorithms: {text}" if text else "",
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _row_table(rows: Sequence[Row]) -> str:
    columns = shown_columns(rows, _WIDTH)
    header, *lines = ([line[column] for column in columns] for line in (ROW_HEADER, *map(row_cells, rows)))
    return table(header, lines, left=sum(column < TEXT_COLUMNS for column in columns))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
