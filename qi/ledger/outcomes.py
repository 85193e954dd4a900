"""The fields of a report's row that say what became of a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.core import IntGrid, PerChannel, PerGroup, QTensor, sqnr_db
from qi.observers import TensorStatistics, clipped_share
from qi.quantizers import BaseInferableQuantizer

__all__ = ["describe_granularity", "in_float", "quantized_activation", "quantized_weight"]


def in_float(reason: str) -> dict[str, Any]:
    """Fields of what stays in float."""
    return {"status": "float", "reason": reason}


def quantized_weight(array: np.ndarray, tensor: QTensor, quantizer: BaseInferableQuantizer) -> dict[str, Any]:
    """Fields of a weight: its float values, its codes, and what made these."""
    scale = tensor.qparams.scale
    return _described(quantizer, array.ndim, float(scale.min()), float(scale.max())) | {
        "size_after": tensor.nbytes,
        "sqnr_db": sqnr_db(array, tensor.dequantize()),
    }


def quantized_activation(
    quantizer: BaseInferableQuantizer, seen: TensorStatistics | None, fixed: bool = False
) -> dict[str, Any]:
    """Fields of an activation: its quantizer, what was seen of it, and whether its range was known beforehand."""
    scale = float(np.max(quantizer.parameters((1,))["scale"]))
    fields = _described(quantizer, 1, scale, scale)
    if seen is None or fixed:
        return fields
    # Half a step beyond the last code still rounds to it.
    lo, hi = fields["range_lo"] - scale / 2, fields["range_hi"] + scale / 2
    return fields | {"clipped_share": float(clipped_share(seen, lo, hi))}


def describe_granularity(quantizer: BaseInferableQuantizer, rank: int) -> str:
    """The granularity in words, for reports."""
    granularity = quantizer.granularity(rank)
    if isinstance(granularity, PerGroup):
        return f"per group of {granularity.size} (axis {granularity.axis})"
    return f"per channel (axis {granularity.axis})" if isinstance(granularity, PerChannel) else "per tensor"


def _described(quantizer: BaseInferableQuantizer, rank: int, scale_min: float, scale_max: float) -> dict[str, Any]:
    return {
        "status": "quantized",
        "bits": quantizer.num_bits,
        "method": quantizer.quantization_method[0].value,
        "granularity": describe_granularity(quantizer, rank),
        "grid": _grid(quantizer),
        "scale_min": scale_min,
        "scale_max": scale_max,
        "range_lo": float(np.min(quantizer.min_range)),
        "range_hi": float(np.max(quantizer.max_range)),
    }


def _grid(quantizer: BaseInferableQuantizer) -> str:
    grid = quantizer.grid
    if isinstance(grid, IntGrid):
        return f"{'' if grid.signed else 'u'}int{grid.bits} {grid.qmin}..{grid.qmax}"
    return f"table of {grid.levels} values"
