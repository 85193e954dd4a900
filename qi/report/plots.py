"""The plot of a report: error and size, layer by layer (matplotlib, without a display)."""

from __future__ import annotations

import io
import textwrap
import warnings
from typing import Any

from qi.ledger import RENDERERS, QuantizationReport
from qi.ledger.rows import KINDS
from qi.ledger.summary import algorithms_text
from qi.optional import require
from qi.report.panels import INK, MUTED, PANELS, Panel, short, tidy
from qi.report.view import Layer, layers_of

__all__ = ["MAX_NAMED_LAYERS", "plot_report", "png"]

MAX_NAMED_LAYERS = 40
"""Up to so many layers each has a line with its name; beyond, layers are numbered and the worst are named."""

_WIDTH = 11.0
_LINE = 150  # characters of a title that fit into the width


@RENDERERS.register(".png")
def png(report: QuantizationReport, dpi: int = 160) -> bytes:
    """Return the plot as the content of a PNG file.

    Raises:
        MissingDependencyError: If matplotlib isn't installed.
    """
    figure = plot_report(report)
    target = io.BytesIO()
    with warnings.catch_warnings():
        # A layer's name may be in a script that the font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(target, format="png", dpi=dpi, metadata={"Software": None})  # not matplotlib's version
    return target.getvalue()


def plot_report(report: QuantizationReport) -> Any:
    """Draw the error of weights and activations and the bytes before and after, for every layer.

    Args:
        report: Any number of layers: up to `MAX_NAMED_LAYERS` are named, of more the worst are.

    Returns:
        A `matplotlib.figure.Figure` that belongs to no window and no global state.

    Raises:
        MissingDependencyError: If matplotlib isn't installed.
    """
    figure_module = require("matplotlib.figure", extra="report", feature="the plot of a report")
    layers = {kind: layers_of(report, kind) for kind in KINDS}
    shown = [(panel, layers[panel.kind]) for panel in PANELS if any(map(panel.has, layers[panel.kind]))]
    if not shown:
        figure = figure_module.Figure(figsize=(_WIDTH, 1.0))
        figure.text(0.5, 0.5, "nothing was quantized", ha="center", va="center", color=MUTED)
        return figure
    most = max(len(own) for _, own in shown)
    figure = (_named if most <= MAX_NAMED_LAYERS else _numbered)(figure_module, shown, most)
    _head(figure, report)
    return figure


def _head(figure: Any, report: QuantizationReport) -> None:
    """Says on top what is drawn, and which algorithms worked on the weights."""
    worked = algorithms_text(report)
    told = [f"{report.model or 'model'}, recipe {report.recipe}", f"algorithms: {worked}" if worked else ""]
    lines = [line for text in told for line in textwrap.wrap(text, _LINE, break_on_hyphens=False)]
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.16 * len(lines))
    text = "\n".join(lines).replace("$", r"\$")  # a `$` would start mathematics
    figure.suptitle(text, x=0.008, horizontalalignment="left", fontsize=9, color=INK)


def _named(figure_module: Any, shown: list[tuple[Panel, tuple[Layer, ...]]], most: int) -> Any:
    """Panels side by side, a line for each layer; those about the same layers share the names."""
    figure = figure_module.Figure(figsize=(_WIDTH, 0.95 + 0.235 * most), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    kind = ""
    for ax, (panel, layers) in zip(axes, shown, strict=True):
        tidy(ax, panel, horizontal=True)
        panel.draw(ax, layers, True)
        names = [short(layer.path) if panel.kind != kind else "" for layer in layers]
        ax.set_yticks(range(len(layers)), names, fontsize=8.5, color=INK)
        ax.set_ylim(most - 0.4, -0.6)
        kind = panel.kind
    return figure


def _numbered(figure_module: Any, shown: list[tuple[Panel, tuple[Layer, ...]]], most: int) -> Any:
    """Panels one below the other, a thin bar for each layer."""
    figure = figure_module.Figure(figsize=(_WIDTH, 0.4 + 2.2 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for ax, (panel, layers) in zip(axes, shown, strict=True):
        tidy(ax, panel, horizontal=False)
        panel.draw(ax, layers, False)
        ax.set_xlim(-0.5, len(layers) - 0.5)
        label = f"{len(layers)} layers with {panel.kind}s, from the model's input to its output"
        ax.set_xlabel(label, fontsize=8, color=MUTED)
    return figure
