"""A report as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import math
from importlib import resources
from typing import Any

from qi.ledger import RENDERERS, QuantizationReport, Row
from qi.ledger.numbers import (
    format_bytes,
    format_count,
    format_db,
    format_number,
    format_relative,
    format_share,
)
from qi.ledger.summary import algorithms_text, codes_text, facts, remarks
from qi.optional import require
from qi.report.plots import png
from qi.report.view import BAD_DB, WATCH_DB, quality

__all__ = ["html"]

_TEMPLATES = ("report.html.jinja", "report.css.jinja", "report.js.jinja")
_WORST = 8
_FULL_BAR_DB = 50.0  # the SQNR that fills a bar in a table


@RENDERERS.register(".html")
def html(report: QuantizationReport) -> str:
    """Return the report as one self-contained HTML page.

    Every text of the report is escaped; style, script and the plot are part of the page.

    Raises:
        MissingDependencyError: If jinja2 or matplotlib isn't installed.
    """
    jinja = require("jinja2", extra="report", feature="the HTML report")
    folder = resources.files("qi.report")
    sources = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in _TEMPLATES}
    environment = jinja.Environment(
        loader=jinja.DictLoader(sources),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    page = environment.get_template(_TEMPLATES[0]).render(
        report=report,
        totals=report.totals,
        facts=facts(report),
        algorithms=algorithms_text(report),
        remarks=remarks(report),
        compared=any(row.output_error is not None for row in report.rows),
        worst={kind: report.worst(_WORST, kind=kind) for kind in ("weight", "activation")},
        float_groups=report.unquantized_by_reason(),
        plot=base64.b64encode(png(report)).decode("ascii"),
        bad=BAD_DB,
        watch=WATCH_DB,
    )
    return str(page)


def _bar(db: float | None) -> str:
    """How much of a bar an SQNR fills, in percent."""
    if db is None or math.isnan(db):
        return "0"
    return f"{100 * min(max(db, 0.0), _FULL_BAR_DB) / _FULL_BAR_DB:.1f}"


def _details(row: Row) -> str:
    """What doesn't fit into a column: the codes and the scales."""
    low, high = format_number(row.scale_min), format_number(row.scale_max)
    scale = "" if row.scale_min is None else f"scale {low}" if low == high else f"scales {low} to {high}"
    return ", ".join(filter(None, [row.grid, scale]))


def _shape(row: Row) -> str:
    if row.shape is None:
        return ""
    return " × ".join("?" if size is None else str(size) for size in row.shape) or "scalar"


def _sort_key(value: Any) -> str:
    """A number as a script reads it; what isn't known goes last."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else repr(float(value))


_FILTERS = {
    "bar": _bar,
    "bytes": format_bytes,
    "codes": codes_text,
    "count": format_count,
    "db": format_db,
    "details": _details,
    "number": format_number,
    "quality": quality,
    "relative": format_relative,
    "shape": _shape,
    "share": format_share,
    "sort_key": _sort_key,
}
