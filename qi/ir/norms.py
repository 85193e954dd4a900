"""Normalization of codes, so that real-number kernels compute it with the very same bits on every processor.

Sums of real numbers depend on their order, that is on the processor. Sums of integers do not, as long as float32 counts to them,
and what a normalization takes is integers times a scale, of which its result is free. All other steps are single operations
that IEEE 754 defines to the last bit. XNNPACK's square root isn't, which it approximates; there, one step of Newton's method,
from whatever neighbour of the root, gives one number.
"""

from __future__ import annotations

import math

import numpy as np

from qi.ir.formulas import normalized
from qi.ir.graph import Op, QGraph
from qi.ir.kinds import real_kind
from qi.ir.margins import codes_before

__all__ = ["OF_CODES", "count_of", "epsilon_of", "normalize_codes", "reciprocal_of"]

OF_CODES = ("layer_norm_of_codes", "rms_norm_of_codes")


def count_of(op: Op) -> int:
    """How many numbers a normalization takes the mean of."""
    return math.prod(op.x.shape[axis] or 1 for axis in op.attrs["axes"])


def epsilon_of(op: Op) -> np.float32:
    """What a normalization of codes adds to the variance of integers: ``epsilon / step**2``."""
    return np.float32(op.attrs["epsilon"] / float(op.attrs["step"]) ** 2)


def reciprocal_of(op: Op) -> np.float32:
    """What a normalization of codes multiplies real numbers with to get near integers: ``1 / step``."""
    return np.float32(1) / np.float32(op.attrs["step"])


@real_kind("layer_norm_of_codes", (1, 3), "axes epsilon step rounded")
def _layer_norm_of_codes(
    op: Op, x: np.ndarray, gamma: np.ndarray | None = None, beta: np.ndarray | None = None
) -> np.ndarray:
    """With integers ``q = rint(x * (1 / step))``: ``normalized(q) * gamma + beta``, as `qi.ir.formulas` has it."""
    y = _normalized(op, x, centred=True)
    y = y if gamma is None else y * gamma
    return np.asarray(y if beta is None else y + beta, np.float32)


@real_kind("rms_norm_of_codes", (1, 2), "axes epsilon step rounded")
def _rms_norm_of_codes(op: Op, x: np.ndarray, gamma: np.ndarray | None = None) -> np.ndarray:
    """As "layer_norm_of_codes", but the mean counts as 0."""
    y = _normalized(op, x, centred=False)
    return np.asarray(y if gamma is None else y * gamma, np.float32)


def _normalized(op: Op, x: np.ndarray, *, centred: bool) -> np.ndarray:
    q, axes = np.rint(x * reciprocal_of(op)), tuple(op.attrs["axes"])
    y = normalized(q, count_of(op), epsilon_of(op), axes, rounded=op.attrs["rounded"], centred=centred)
    return np.asarray(y)


def normalize_codes(graph: QGraph) -> None:
    """Makes a normalization of what codes stand for one of the codes.

    Args:
        graph: routed; changed in place.
    """
    producers = graph.producers()
    for op in graph.ops:
        codes = codes_before(op.x, producers) if op.kind in ("layer_norm", "rms_norm") else None
        if codes is not None:
            how = {"step": float(codes.scale), "rounded": graph.target == "onnxruntime"}
            op.kind, op.attrs = f"{op.kind}_of_codes", {**op.attrs, **how}
