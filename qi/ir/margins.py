"""How far numbers are from where rounding changes its mind.

A function of 256 codes takes 256 values. If none of them lies near the middle between two codes, then every processor that
computes it well gives the same codes, whatever the last bits of its results. If one does, a factor next to one moves all of them
a little, and there are many to choose from.
"""

from __future__ import annotations

import math

import numpy as np

from qi.ir.elementwise import FUNCTIONS
from qi.ir.graph import Op, QGraph, Tensor

__all__ = ["ULP", "clear_of_ties", "codes_before", "settle"]

ULP = 2.0**-24
_ERROR = 16 * ULP  # twice what the least accurate kernels of LiteRT and ONNX Runtime were measured to err
_STEP = 2.0**-16
_FACTORS = tuple(1 + i * _STEP for i in sorted(range(-64, 65), key=abs))

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def clear_of_ties(steps: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Whether no number that differs from one in `steps` by at most `error` rounds to another integer than it.

    Args:
        steps: float64.
        error: not negative.
    """
    return np.asarray(np.abs(steps - np.floor(steps) - 0.5) > error)


def codes_before(tensor: Tensor, producers: dict[int, Op]) -> Tensor | None:
    """The codes that real numbers come from; None where they come from elsewhere."""
    before = producers.get(id(tensor))
    return before.x if before is not None and before.kind == "dequantize" else None


def settle(graph: QGraph) -> None:
    """Puts a factor next to one behind each function of codes, done in real numbers, that would come too near to a tie.

    Args:
        graph: routed; changed in place.
    """
    producers, consumers = graph.producers(), graph.consumers()
    for op in list(graph.ops):
        if op.kind != "unary" or op.quantized:
            continue
        codes, after = codes_before(op.x, producers), consumers.get(id(op.y), [])
        if codes is None or codes.grid.bits > 8 or len(after) != 1 or after[0].kind != "quantize":
            continue
        factor = _factor(op, codes, after[0].y)
        if factor != 1:
            moved = Tensor(graph.unique(f"{op.y.name}/moved"), op.y.shape, op.y.dtype)
            number = Tensor(graph.unique(f"{op.y.name}/factor"), (1,), data=np.asarray([factor], np.float32))
            after[0].inputs = [moved]
            made = Op("mul", [op.y, number], [moved], {"activation": "none"}, op.source)
            graph.ops.insert(graph.ops.index(op) + 1, made)


def _factor(op: Op, x: Tensor, y: Tensor) -> float:
    """The one nearest to 1 that keeps all results of an operation away from ties; 1 if there is none."""
    grid = x.grid
    real = (np.arange(grid.qmin, grid.qmax + 1) - x.zero_point).astype(np.float32) * x.scale
    with np.errstate(all="ignore"):
        found = _well_computed(op, real.astype(np.float64))
    error = _ERROR * (np.abs(found) * (1 + np.abs(real) / 8) + np.abs(real) / 2 + 0.5)
    scale = np.float64(y.scale)
    low, high = (code - y.zero_point for code in (y.grid.qmin, y.grid.qmax))
    sure = np.isfinite(found)
    steps, error = found[sure] / scale, error[sure] / scale
    inside = (steps > low - 1) & (steps < high + 1)
    for factor in _FACTORS:
        if clear_of_ties(steps[inside] * factor, error[inside]).all():
            return factor
    return 1.0


def _well_computed(op: Op, x: np.ndarray) -> np.ndarray:
    """The function in float64."""
    if op.attrs["function"] == "gelu":  # without the difference of two numbers near one
        return np.asarray(0.5 * x * _erfc(-x * math.sqrt(0.5)))
    return np.asarray(FUNCTIONS.get(op.attrs["function"])(x, op), np.float64)
