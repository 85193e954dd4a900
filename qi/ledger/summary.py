"""What every rendering of a report says, in words: the facts on top, the cells of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from qi.ledger.numbers import format_bytes, format_count, format_db, format_ratio, format_share
from qi.ledger.rows import Row

if TYPE_CHECKING:
    from qi.ledger.report import QuantizationReport

__all__ = ["DROPPABLE_COLUMNS", "ROW_HEADER", "TEXT_COLUMNS", "Fact", "codes_text", "facts", "method_text", "row_cells"]

ROW_HEADER = ("tensor", "layer type", "method", "bits", "SQNR dB", "total dB", "clipped", "bytes")
"""What the cells of a row are; the first `TEXT_COLUMNS` are text."""

TEXT_COLUMNS = 3

DROPPABLE_COLUMNS = ("layer type", "clipped", "method", "total dB", "bytes")
"""The columns that a narrow table does without, the first to go first."""


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


def row_cells(row: Row) -> tuple[str, ...]:
    """Return a row as text, in the columns of `ROW_HEADER`.

    Example:
        >>> row_cells(Row(kind="activation", layer="relu", layer_type="ReLU", name="output", bits=8,
        ...               status="quantized", method="uniform", granularity="per_tensor", sqnr_db=39.06))
        ('relu/output', 'ReLU', 'uniform, per tensor', '8', '39.1', '-', '-', '-')
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
        "-" if row.bits is None else str(row.bits),
        format_db(row.sqnr_db),
        format_db(row.total_sqnr_db),
        format_share(row.clipped_share),
        sizes,
    )


def method_text(row: Row) -> str:
    """Return a row's method and granularity, without remarks in brackets, and its algorithms."""
    if not row.quantized:
        return "float"
    shared = (row.granularity or "").partition("(")[0].strip()
    return ", ".join(filter(None, [row.method, shared, row.algorithms])).replace("_", " ")


def codes_text(row: Row) -> str:
    """Return how a row is quantized in words: bits, method and granularity."""
    if not row.quantized:
        return "float"
    shared = f", {row.granularity}" if row.granularity else ""
    return f"{row.bits} bit{'' if row.bits == 1 else 's'} {row.method}{shared}".replace("_", " ")
