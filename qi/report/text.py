"""A report for the terminal, in colour (rich)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qi.ledger import QuantizationReport, Row
from qi.ledger.evaluation import EVALUATION_HEADER
from qi.ledger.plain import names_text, shown_rows
from qi.ledger.summary import ROW_HEADER, TEXT_COLUMNS, algorithms_text, facts, remarks, row_cells, shown_columns
from qi.optional import require
from qi.report.view import quality

__all__ = ["rich_report"]

_STYLES = {"bad": "bold red", "watch": "yellow", "fine": "", "none": "dim"}
_GAP = 3
_SQNR, _TOTAL = ROW_HEADER.index("SQNR dB"), ROW_HEADER.index("total dB")


def rich_report(report: QuantizationReport) -> Any:
    """Return the report as something that a `rich.console.Console` prints.

    Args:
        report: Any report; of very many quantized tensors it shows the worst.

    Returns:
        A `rich.console.Group`. Names never count as markup.

    Raises:
        MissingDependencyError: If rich isn't installed; ``print(report)`` needs nothing.
    """
    group = require("rich.console", extra="report", feature="the report in colour").Group
    text = require("rich.text", extra="report").Text
    parts: list[Any] = [text(f"Quantization report: {report.model or 'model'}, recipe {report.recipe}", style="bold")]
    if report.description:
        parts.append(text(report.description, style="dim"))
    if worked := algorithms_text(report):
        parts.append(text(f"algorithms: {worked}"))
    parts += [text(f"warning: {warning}", style="yellow") for warning in report.all_warnings]
    parts += [text(""), _facts(report)]
    if report.evaluations:
        cells = ([(cell, "") for cell in entry.cells()] for entry in report.evaluations)
        parts += [text(""), _table("Evaluation", EVALUATION_HEADER, cells, left=1)]
    rows, note = shown_rows(report)
    if rows:
        title = f"Quantized: {note}" if note else "Quantized"
        parts += [text(""), _RowTable(title, rows), *(text(line, style="dim") for line in remarks(report))]
    if report.unquantized:
        parts += [text(""), text("Left in float", style="bold")]
        for reason, names in report.unquantized_by_reason().items():
            parts.append(text.assemble((f"{reason} ({len(names)}): ", ""), (names_text(names), "dim")))
    return group(*parts)


class _RowTable:
    """The table of rows with as many columns as the terminal is wide."""

    def __init__(self, title: str, rows: Sequence[Row]) -> None:
        self._title, self._rows = title, rows

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        columns = shown_columns(self._rows, options.max_width, gap=_GAP)
        header = [ROW_HEADER[column] for column in columns]
        styled = [[line[column] for column in columns] for line in map(_styled, self._rows)]
        yield _table(self._title, header, styled, left=sum(column < TEXT_COLUMNS for column in columns))


def _facts(report: QuantizationReport) -> Any:
    grid = require("rich.table", extra="report").Table.grid(padding=(0, 3))
    text = require("rich.text", extra="report").Text
    for fact in facts(report):
        grid.add_row(text(fact.label, style="dim"), text(fact.value, style="bold"), text(fact.note, style="dim"))
    return grid


def _styled(row: Row) -> list[tuple[str, str]]:
    styles = [""] * len(ROW_HEADER)
    styles[_SQNR] = _STYLES[quality(row.sqnr_db)]
    styles[_TOTAL] = _STYLES[quality(row.total_sqnr_db)]
    return list(zip(row_cells(row), styles, strict=True))


def _table(title: str, header: Iterable[str], rows: Iterable[Iterable[tuple[str, str]]], *, left: int) -> Any:
    text = require("rich.text", extra="report").Text
    box = require("rich.box", extra="report")
    table = require("rich.table", extra="report").Table(
        title=text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, _GAP - 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column, name in enumerate(header):
        table.add_column(name, justify="left" if column < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(text(cell, style=style) for cell, style in row))
    return table
