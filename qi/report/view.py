"""A report layer by layer: what the plot and the page draw."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from qi.ledger import QuantizationReport, Row

__all__ = ["BAD_DB", "WATCH_DB", "Layer", "layers_of", "quality"]

BAD_DB = 10.0
"""Below this the error has more than 30 % of the signal's amplitude."""

WATCH_DB = 15.0
"""Below this it has more than 18 %: usual for 3 bits, unusual for 4 and more."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What the rows of one layer come to.

    Attributes:
        path: The layer's path.
        weight_db: The lowest SQNR of its quantized weights; None where there is none.
        activation_db: The lowest SQNR of its quantized activations.
        total_db: The lowest total SQNR of its activations.
        bytes_before: Bytes of its weights before.
        bytes_after: Bytes of its weights after.
    """

    path: str
    weight_db: float | None
    activation_db: float | None
    total_db: float | None
    bytes_before: int
    bytes_after: int


def layers_of(report: QuantizationReport, kind: str) -> tuple[Layer, ...]:
    """Return the layers that have something to show of one kind of tensor, in the model's order.

    Args:
        report: Any report.
        kind: "weight" for the layers with weights, "activation" for those with a measured activation. A layer holds
            what is known of this kind alone: once an activation is fused, it lies in another layer than the weights.
    """
    rows: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.kind == kind:
            rows.setdefault(row.layer, []).append(row)
    layers = (_layer(path, every) for path, every in rows.items())
    return tuple(
        layer
        for layer in layers
        if layer.bytes_before or (layer.weight_db, layer.activation_db, layer.total_db) != (None, None, None)
    )


def quality(db: float | None) -> str:
    """Return "bad", "watch", "fine" or (not measured) "none" for an SQNR.

    Example:
        >>> quality(7.5), quality(12.0), quality(38.0), quality(None)
        ('bad', 'watch', 'fine', 'none')
    """
    if db is None or math.isnan(db):
        return "none"
    return "bad" if db < BAD_DB else ("watch" if db < WATCH_DB else "fine")


def _layer(path: str, rows: list[Row]) -> Layer:
    weights = [row for row in rows if row.kind == "weight"]
    activations = [row for row in rows if row.kind == "activation"]
    return Layer(
        path=path or rows[0].name,
        weight_db=_lowest(row.sqnr_db for row in weights if row.quantized),
        activation_db=_lowest(row.sqnr_db for row in activations if row.quantized),
        total_db=_lowest(row.total_sqnr_db for row in activations),
        bytes_before=sum(row.size_before or 0 for row in weights),
        bytes_after=sum(row.stored_bytes for row in weights),
    )


def _lowest(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None and not math.isnan(value)), default=None)
