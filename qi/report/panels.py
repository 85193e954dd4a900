"""The panels of a report's plot: one quantity over all the layers that have it (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from qi.ledger.numbers import format_bytes, format_db
from qi.report.view import BAD_DB, WATCH_DB, Layer, quality

__all__ = ["INK", "MUTED", "PANELS", "Panel", "short", "tidy"]

INK, MUTED = "#22282f", "#6b7580"
"""The colours of texts that matter and of those that explain."""

_COLOURS = {"bad": "#c2413b", "watch": "#d99a2b", "fine": "#3d7ab5", "none": "#b9c0c8"}
_PALE = {**_COLOURS, "fine": "#a9c6e0"}  # hundreds of bars side by side make one area
_BEFORE, _AFTER, _LINE = "#d5dae0", "#3d7ab5", "#e6e9ed"
_NAMED_WORST = 6
_TOUCHING = 150  # with more layers than these, a gap between bars would be thinner than a pixel
_MAX_NAME = 38
_LONGEST_BAR_DB = 70.0  # beyond, a bar is cut: an input that is nearly exact would shrink all others
_EXACT_BAR_DB = 50.0  # how far a bar of infinite SQNR reaches, if none of the others reaches further


class Panel(NamedTuple):
    """One quantity, drawn horizontally (a line for each layer, with its name) or vertically (for many layers).

    Attributes:
        title: What it shows.
        note: How to read it.
        kind: "weight" or "activation": which layers it is about.
        has: Whether a layer has the quantity.
        draw: Draws it: (axes, layers, horizontal).
    """

    title: str
    note: str
    kind: str
    has: Callable[[Layer], bool]
    draw: Callable[[Any, Sequence[Layer], bool], None]


def tidy(ax: Any, panel: Panel, *, horizontal: bool) -> None:
    """Give axes a panel's title and note, and take away what only makes noise."""
    ax.set_title(panel.title, loc="left", fontsize=9.5, color=INK, fontweight="bold", pad=18)
    ax.annotate(
        panel.note, (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points", fontsize=8,
        color=MUTED,
    )  # fmt: skip
    ax.set_axisbelow(True)
    ax.grid(axis="x" if horizontal else "y", color=_LINE, linewidth=0.8)
    ax.tick_params(length=0, labelsize=8.5, labelcolor=MUTED if not horizontal else INK)
    if horizontal:
        ax.tick_params(axis="x", labelcolor=MUTED)
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(False)


def _draw_weights(ax: Any, layers: Sequence[Layer], horizontal: bool) -> None:
    _draw_db(ax, layers, [layer.weight_db for layer in layers], horizontal)
    for place, layer in enumerate(layers):
        if horizontal and layer.weight_db is None and layer.bytes_before:
            ax.text(0.6, place, "float", fontsize=8, color=MUTED, va="center", style="italic")


def _draw_activations(ax: Any, layers: Sequence[Layer], horizontal: bool) -> None:
    _draw_db(ax, layers, [layer.activation_db for layer in layers], horizontal)
    places = [place for place, layer in enumerate(layers) if _finite(layer.total_db)]
    totals = [layers[place].total_db for place in places]
    if horizontal:
        ax.scatter(totals, places, s=17, color=INK, zorder=3, linewidths=0.6, edgecolors="white")
    else:
        ax.plot(places, totals, color=INK, linewidth=1.1, zorder=3)


def _draw_db(ax: Any, layers: Sequence[Layer], values: Sequence[float | None], horizontal: bool) -> None:
    finite = [min(value, _LONGEST_BAR_DB) for value in values if value is not None and math.isfinite(value)]
    top = max([*finite, _EXACT_BAR_DB if math.inf in values else 0.0, WATCH_DB])
    lengths = [_length(value, top) for value in values]
    if horizontal:
        colours = [_COLOURS[quality(value)] for value in values]
        ax.barh(range(len(layers)), lengths, height=0.66, color=colours)
        for place, (value, length) in enumerate(zip(values, lengths, strict=True)):
            if value is not None:
                inside = length > top / 6  # written at the end of the bar, out of the way of the dots
                colour = "white" if inside else _COLOURS[quality(value)]
                start, side = (length - top / 60, "right") if inside else (max(length, 0.0) + top / 60, "left")
                ax.text(start, place, format_db(value), fontsize=7.5, va="center", ha=side, color=colour)
        ax.set_xlim(min(0.0, *lengths), top * 1.06)
    else:
        colours = [_PALE[quality(value)] for value in values]
        ax.bar(range(len(layers)), lengths, width=1.0 if len(layers) > _TOUCHING else 0.8, color=colours)
        _name_worst(ax, layers, values, lengths)
        ax.set_ylim(min(0.0, *lengths), top * 1.25)


def _name_worst(ax: Any, layers: Sequence[Layer], values: Sequence[float | None], lengths: Sequence[float]) -> None:
    """Number the worst layers on top of their bars and say beside the plot who they are."""
    measured = sorted((value, place) for place, value in enumerate(values) if value is not None and value < math.inf)
    lines: list[str] = []
    named: list[int] = []
    for number, (value, place) in enumerate(measured[:_NAMED_WORST], start=1):
        colour = _COLOURS[quality(value)]
        lift = 4 + 13 * sum(abs(place - other) < len(layers) / 50 for other in named)
        named.append(place)
        ax.annotate(
            str(number), (place, max(lengths[place], 0.0)), xytext=(0, lift), textcoords="offset points",
            ha="center", fontsize=7.5, color=colour, fontweight="bold", zorder=4,
            bbox={"boxstyle": "circle,pad=0.18", "facecolor": "white", "edgecolor": colour, "linewidth": 0.8},
        )  # fmt: skip
        lines.append(f"{number}  {short(layers[place].path)}  {format_db(value)} dB")
    ax.text(
        1.01, 1.0, "\n".join(lines), transform=ax.transAxes, fontsize=7.5, va="top", color=INK,
        linespacing=1.5
    )  # fmt: skip


def _draw_bytes(ax: Any, layers: Sequence[Layer], horizontal: bool) -> None:
    places = range(len(layers))
    before, after = [layer.bytes_before for layer in layers], [layer.bytes_after for layer in layers]
    bars = ax.barh if horizontal else ax.bar
    thick = 1.0 if len(layers) > _TOUCHING else 0.78
    bars(places, before, thick, color=_BEFORE)
    bars(places, after, thick if not horizontal else 0.4, color=_AFTER)
    axis = ax.xaxis if horizontal else ax.yaxis
    axis.set_major_formatter(lambda value, _: format_bytes(value))
    axis.get_major_locator().set_params(nbins=4)
    if horizontal:
        ax.set_xlim(0, max(before) * 1.28)
        for place, (full, small) in enumerate(zip(before, after, strict=True)):
            if full:
                text = f"{small / full:.2f}x" if small != full else "1x"
                ax.text(full + max(before) / 60, place, text, fontsize=7.5, color=MUTED, va="center")


def _length(value: float | None, top: float) -> float:
    if value is None or math.isnan(value) or value == -math.inf:
        return 0.0
    return min(value, top)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def short(path: str) -> str:
    """Return the end of a path, where the layers of one block differ; a `$` would start mathematics."""
    text = path if len(path) <= _MAX_NAME else f"…{path[1 - _MAX_NAME :]}"
    return text.replace("$", r"\$")


PANELS = (
    Panel(
        "Weights: SQNR, dB",
        f"amber below {WATCH_DB:g}, red below {BAD_DB:g}",
        "weight",
        lambda layer: layer.weight_db is not None,
        _draw_weights,
    ),
    Panel("Weights: bytes", "grey: before; blue: after", "weight", lambda layer: layer.bytes_before > 0, _draw_bytes),
    Panel(
        "Activations: SQNR, dB",
        "bars: own error; black: all errors up to there",
        "activation",
        lambda layer: layer.activation_db is not None or _finite(layer.total_db),
        _draw_activations,
    ),
)
"""The panels of the plot, in their order."""
