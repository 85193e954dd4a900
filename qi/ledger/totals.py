"""The sums over a report's rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qi.ledger.rows import Row

__all__ = ["Totals"]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What a report comes to.

    Attributes:
        weights: How many weights there are.
        weights_quantized: How many of them are quantized.
        activations: How many activations there are.
        activations_quantized: How many of them are quantized.
        bytes_before: Bytes of all weights before.
        bytes_after: Bytes of all weights after; one in float counts as before.
        bytes_quantized: Those of `bytes_before` that belong to quantized weights.
        macs: Multiply-accumulates of the model for one sample.
        macs_quantized: Those that are done with a quantized weight.
    """

    weights: int
    weights_quantized: int
    activations: int
    activations_quantized: int
    bytes_before: int
    bytes_after: int
    bytes_quantized: int
    macs: int
    macs_quantized: int

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Totals:
        """Add up rows."""
        every = tuple(rows)
        weights = [row for row in every if row.kind == "weight"]
        activations = [row for row in every if row.kind == "activation"]
        quantized = [row for row in weights if row.quantized]
        return cls(
            weights=len(weights),
            weights_quantized=len(quantized),
            activations=len(activations),
            activations_quantized=sum(row.quantized for row in activations),
            bytes_before=sum(row.size_before or 0 for row in weights),
            bytes_after=sum(row.stored_bytes for row in weights),
            bytes_quantized=sum(row.size_before or 0 for row in quantized),
            macs=sum(row.macs or 0 for row in weights),
            macs_quantized=sum(row.macs or 0 for row in quantized),
        )

    @property
    def byte_share(self) -> float | None:
        """Share of the weights' bytes that is quantized; None for a model without weights."""
        return self.bytes_quantized / self.bytes_before if self.bytes_before else None

    @property
    def mac_share(self) -> float | None:
        """Share of the multiply-accumulates done with quantized weights; None where there are none."""
        return self.macs_quantized / self.macs if self.macs else None

    @property
    def size_ratio(self) -> float | None:
        """Bytes after over bytes before; None for a model without weights."""
        return self.bytes_after / self.bytes_before if self.bytes_before else None
