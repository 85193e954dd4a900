"""Reports for people: a terminal table, Markdown, one HTML page, a plot.

Importing this package registers its formats, so that `QuantizationReport.save` knows them.
"""

from __future__ import annotations

from qi.report.html import html
from qi.report.markdown import markdown
from qi.report.plots import plot_report, png
from qi.report.text import rich_report

__all__ = ["html", "markdown", "plot_report", "png", "rich_report"]
