"""What every rendering of a report says, in words: the facts on top, the cells of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from qi.ledger.numbers import format_bytes, format_count, format_db, format_ratio, format_relative, format_share
from qi.ledger.rows import Row
from qi.ledger.table import fitting_columns

if TYPE_CHECKING:
    from qi.ledger.report import QuantizationReport

__all__ = [
    "DROPPABLE_COLUMNS",
    "MAX_NAMES",
    "ROW_HEADER",
    "TEXT_COLUMNS",
    "Fact",
    "algorithms_text",
    "codes_text",
    "facts",
    "method_text",
    "names_text",
    "remarks",
    "row_cells",
    "shown_columns",
    "worked_text",
]

ROW_HEADER = (
    "tensor",
    "layer type",
    "method",
    "algorithms",
    "bits",
    "SQNR dB",
    "out. err",
    "total dB",
    "clipped",
    "bytes",
)
"""What the cells of a row are; the first `TEXT_COLUMNS` are text."""

TEXT_COLUMNS = 4

DROPPABLE_COLUMNS = ("layer type", "algorithms", "method", "clipped", "bytes", "total dB", "out. err")
"""The columns that a narrow table does without, the first to go first; the lines above a table name the algorithms as well."""

MAX_NAMES = 8
"""How many tensors a text names at a time."""

_WORKED_COLUMNS = ("algorithms", "out. err")  # of reports of which algorithms worked on a weight


class Fact(NamedTuple):
    """One line of the summary: what it is about, what it comes to, and a remark."""

    label: str
    value: str
    note: str


def facts(report: QuantizationReport) -> list[Fact]:
    """Return what a report comes to, the most telling first."""
    totals = report.totals
    result = [
        Fact(
            "weights",
            f"{totals.weights_quantized} of {totals.weights} quantized",
            f"{format_share(totals.byte_share)} of their bytes",
        ),
        Fact(
            "activations",
            f"{totals.activations_quantized} of {totals.activations} quantized",
            "",
        ),
        Fact(
            "multiply-accumulates",
            format_share(totals.mac_share),
            f"with quantized weights, of {format_count(totals.macs)} a sample",
        ),
        Fact(
            "size of the weights",
            f"{format_bytes(totals.bytes_before)} -> {format_bytes(totals.bytes_after)}",
            format_ratio(totals.size_ratio),
        ),
    ]
    if report.float_file_bytes is not None or report.quantized_file_bytes is not None:
        before, after = format_bytes(report.float_file_bytes), format_bytes(report.quantized_file_bytes)
        result.append(Fact("size of the files", f"{before} -> {after}", format_ratio(report.file_ratio)))
    for kind in ("weight", "activation"):
        for row in report.worst(1, kind=kind):
            result.append(Fact(f"worst {kind}", f"{format_db(row.sqnr_db)} dB", row.path))
    return result


def algorithms_text(report: QuantizationReport) -> str:
    """Return which algorithms worked on the weights of a report, in a line; empty where none did."""
    told = report.settings.get("algorithms")
    return told if isinstance(told, str) else worked_text(report.rows)


def worked_text(rows: Sequence[Row], options: Mapping[str, str] | None = None) -> str:
    """Return which algorithms worked on how many weights, in a line; empty where none did.

    Args:
        rows: Of a report.
        options: How to write an algorithm, by its name, where it has options.

    Example:
        >>> worked_text([Row(kind="weight", layer="fc", layer_type="Dense", name="kernel", status="quantized", bits=4,
        ...                  method="symmetric", algorithms="gptq, bias_correction")], {"gptq": "gptq damping=0.1"})
        'gptq damping=0.1, bias_correction (1 of 1 quantized weights)'
    """
    quantized = [row for row in rows if row.kind == "weight" and row.quantized]
    groups: dict[str, list[Row]] = {}
    for row in quantized:
        if row.algorithms:
            groups.setdefault(row.algorithms, []).append(row)
    first, *others = sorted(groups.items(), key=lambda item: -len(item[1])) or [("", [])]
    parts = (
        [f"{_written(first[0], options)} ({len(first[1])} of {len(quantized)} quantized weights)"] if first[1] else []
    )
    parts += [f"{_written(names, options)} ({names_text(tuple(worked))})" for names, worked in others]
    return "; ".join(parts)


def _written(algorithms: str, options: Mapping[str, str] | None) -> str:
    return ", ".join((options or {}).get(name, name) for name in algorithms.split(", "))


def remarks(report: QuantizationReport) -> list[str]:
    """Return sentences on how to read a report's table: what a column means, or why it is empty."""
    found = []
    if any(row.output_error is not None for row in report.rows):
        found.append(
            "out. err: the expected squared error of the layer's outputs, in percent of what rounding to nearest leaves"
        )
    activations = [row for row in report.activations if row.quantized]
    if activations and "calibration" in report.settings and all(row.total_sqnr_db is None for row in activations):
        found.append(
            "SQNR and total dB of activations aren't known: the model was quantized from "
            f"{report.settings['calibration']}, and no data were given to measure them with"
        )
    return found


def names_text(rows: tuple[Row, ...]) -> str:
    """Return the paths of a few rows and how many there are besides."""
    names = ", ".join(row.path for row in rows[:MAX_NAMES])
    return names if len(rows) <= MAX_NAMES else f"{names} and {len(rows) - MAX_NAMES} more"


def shown_columns(rows: Sequence[Row], width: int | None = None, gap: int = 2) -> tuple[int, ...]:
    """Return the columns of `ROW_HEADER` that a table of rows shows.

    Args:
        rows: What the table shows.
        width: The characters there are in a line; None for any number.
        gap: Those between two columns.
    """
    cells = list(map(row_cells, rows))
    worked = any(row.algorithms or row.output_error is not None for row in rows)
    kept = [place for place, title in enumerate(ROW_HEADER) if worked or title not in _WORKED_COLUMNS]
    if width is None:
        return tuple(kept)
    header = [ROW_HEADER[place] for place in kept]
    droppable = [title for title in DROPPABLE_COLUMNS if title in header]
    fitting = fitting_columns(header, [[line[place] for place in kept] for line in cells], droppable, width, gap)
    return tuple(kept[place] for place in fitting)


def row_cells(row: Row) -> tuple[str, ...]:
    """Return a row as text, in the columns of `ROW_HEADER`.

    Example:
        >>> row_cells(Row(kind="activation", layer="relu", layer_type="ReLU", name="output", bits=8,
        ...               status="quantized", method="uniform", granularity="per_tensor", sqnr_db=39.06))
        ('relu/output', 'ReLU', 'uniform, per tensor', '-', '8', '39.1', '-', '-', '-', '-')
    """
    sizes = "-"
    if row.size_before is not None:
        sizes = format_bytes(row.size_before)
        if row.quantized and row.size_after is not None:
            sizes = f"{sizes} -> {format_bytes(row.size_after)}"
    return (
        row.path,
        row.layer_type,
        method_text(row),
        row.algorithms or "-",
        "-" if row.bits is None else str(row.bits),
        format_db(row.sqnr_db),
        "unknown" if row.algorithms and row.output_error is None else format_relative(row.output_error),
        format_db(row.total_sqnr_db),
        format_share(row.clipped_share),
        sizes,
    )


def method_text(row: Row) -> str:
    """Return a row's method and granularity, without remarks in brackets."""
    if not row.quantized:
        return "float"
    shared = (row.granularity or "").partition("(")[0].strip()
    return ", ".join(filter(None, [row.method, shared])).replace("_", " ")


def codes_text(row: Row) -> str:
    """Return how a row is quantized in words: bits, method and granularity."""
    if not row.quantized:
        return "float"
    shared = f", {row.granularity}" if row.granularity else ""
    return f"{row.bits} bit{'' if row.bits == 1 else 's'} {row.method}{shared}".replace("_", " ")
