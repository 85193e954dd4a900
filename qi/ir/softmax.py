"""Softmax of codes, so that real-number kernels compute it with the very same bits on every processor.

Exponentials differ in their last bits from processor to processor, and sums of real numbers with their order. But the scores are
codes, of which only the distance to the row's greatest counts: 256 numbers at most. Times a gain, for which none of them comes
near the middle between two integers, and rounded, they are integers of 10 to 13 bits that every processor finds; their sums don't
depend on any order, and the quotient is defined by IEEE 754.
"""

from __future__ import annotations

import numpy as np

from qi.ir.formulas import shares
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.kinds import real_kind
from qi.ir.margins import ULP, clear_of_ties, codes_before

__all__ = ["UNSEEN", "logarithm_of_gain", "soften_codes"]

UNSEEN = -1e4  # what is added to a score, and less, leaves it no share
_MOST, _LEAST, _COUNTED = 2.0**13, 2.0**10, 2**24
_FINEST = 4096  # gains to try
_BITS = 8


@real_kind("softmax_of_codes", 1, "axis shift")
def _softmax_of_codes(op: Op, x: np.ndarray) -> np.ndarray:
    """With integers ``e = rint(exp(x - (max(x) - shift)))``: ``e / sum(e)``."""
    axis = op.attrs["axis"]
    exponents = x - (x.max(axis=axis, keepdims=True) - np.float32(op.attrs["shift"]))
    return np.asarray(shares(np.exp(exponents.astype(np.float64)).astype(np.float32), axis))


def logarithm_of_gain(codes: Tensor, count: int | None) -> float | None:
    """The logarithm, a number of float32, of a gain that takes the exponentials of codes far from ties; None if none does.

    Args:
        codes: the scores.
        count: how many numbers share a sum.
    """
    if count is None or codes.grid.bits > _BITS or count * _LEAST >= _COUNTED:
        return None
    scale, grid = float(codes.scale), codes.grid
    most = min(_MOST, _COUNTED / count - 2)
    shifts = np.linspace(np.log(most), np.log(_LEAST), _FINEST).astype(np.float32).astype(np.float64)[:, None]
    below = scale * np.arange(grid.qmax - grid.qmin + 1)
    largest = scale * max(abs(grid.qmin - codes.zero_point), abs(grid.qmax - codes.zero_point))
    results = np.exp(shifts - below)
    # Of the scores, their greatest less the shift, and the difference; then of the exponential.
    exponents = np.maximum(shifts, below)
    error = ULP * (2 * largest + (largest + shifts) + exponents + 2 * (exponents + 4))
    clear = clear_of_ties(results, results * error).all(axis=1)
    return float(shifts[clear.argmax(), 0]) if clear.any() else None


def soften_codes(graph: QGraph) -> None:
    """Makes a softmax of what codes stand for one of the codes, also where some scores are masked.

    Args:
        graph: routed; changed in place.
    """
    producers = graph.producers()
    for op in graph.ops:
        codes = _scores(op.x, producers) if op.kind == "softmax" and not op.quantized else None
        if codes is None:
            continue
        shift = logarithm_of_gain(codes, op.x.shape[op.attrs["axis"]])
        if shift is not None:
            op.kind, op.attrs = "softmax_of_codes", {"axis": op.attrs["axis"], "shift": shift}


def _scores(x: Tensor, producers: dict[int, Op]) -> Tensor | None:
    """The codes behind a softmax, which a mask may have been added to; None where there is anything else."""
    before = producers.get(id(x))
    if before is not None and before.kind == "add" and before.attrs["activation"] == "none":
        found = [t for t in before.inputs if not t.constant]
        masks = [t.values() for t in before.inputs if t.constant]
        if len(found) == 1 and all(np.all((mask == 0) | (mask <= UNSEEN)) for mask in masks):
            return codes_before(found[0], producers)
        return None
    return codes_before(x, producers)
