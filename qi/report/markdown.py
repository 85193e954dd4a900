"""A report as Markdown, for pull requests and notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qi.ledger import RENDERERS, QuantizationReport
from qi.ledger.evaluation import EVALUATION_HEADER
from qi.ledger.plain import names_text, shown_rows
from qi.ledger.summary import ROW_HEADER, TEXT_COLUMNS, algorithms_text, facts, remarks, row_cells, shown_columns

__all__ = ["markdown"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$])")


@RENDERERS.register(".md")
def markdown(report: QuantizationReport) -> str:
    """Return the report as Markdown; of very many quantized tensors it shows the worst.

    Names are escaped, so none of them can become markup.
    """
    parts = [f"# Quantization report: {_escaped(report.model or 'model')}, recipe {_escaped(report.recipe)}"]
    if report.description:
        parts.append(_escaped(report.description))
    if worked := algorithms_text(report):
        parts.append(f"**algorithms**: {_escaped(worked)}")
    parts += [f"> **Warning:** {_escaped(warning)}" for warning in report.all_warnings]
    lines = [f"- **{fact.label}**: {_escaped(_joined(fact.value, fact.note))}" for fact in facts(report)]
    parts.append("\n".join(lines))
    if report.evaluations:
        cells = [entry.cells() for entry in report.evaluations]
        parts += ["## Evaluation", _table(EVALUATION_HEADER, cells, left=1)]
    rows, note = shown_rows(report)
    if rows:
        parts += ["## Quantized", *([_escaped(note)] if note else [])]
        columns = shown_columns(rows)
        header, *body = ([line[column] for column in columns] for line in (ROW_HEADER, *map(row_cells, rows)))
        parts.append(_table(header, body, left=sum(column < TEXT_COLUMNS for column in columns)))
        parts += map(_escaped, remarks(report))
    if report.unquantized:
        lines = [
            f"- {_escaped(reason)} ({len(rows)}): {_escaped(names_text(rows))}"
            for reason, rows in report.unquantized_by_reason().items()
        ]
        parts += ["## Left in float", "\n".join(lines)]
    if report.settings:
        lines = [f"- {_escaped(name)}: {_escaped(str(value))}" for name, value in report.settings.items()]
        parts += ["## Settings", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _joined(value: str, note: str) -> str:
    return f"{value} ({note})" if note else value


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    rule = [":--" if column < left else "--:" for column in range(len(header))]
    lines = [header, rule, *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
