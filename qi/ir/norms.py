"""Layer normalization of codes, so that real-number kernels compute it with the very same bits on every processor.

Sums of real numbers depend on their order, that is on the processor. Sums of integers do not, as long as float32 counts to them,
and what a normalization takes is integers times a scale, of which its result is free. All other steps are single operations
that IEEE 754 defines to the last bit. Only the square root isn't: kernels approximate it, and one step of Newton's method, from
whatever neighbour of the root, gives one number.
"""

from __future__ import annotations

import math

import numpy as np

from qi.ir.formulas import normalized
from qi.ir.graph import Op, QGraph
from qi.ir.kinds import real_kind
from qi.ir.margins import codes_before

__all__ = ["normalize_codes", "reciprocals"]


def reciprocals(op: Op) -> tuple[np.float32, np.float32, np.float32]:
    """The numbers that a "layer_norm_of_codes" works with, in float32: ``1 / step``, ``1 / n`` and ``epsilon / step**2``."""
    step = float(op.attrs["step"])
    sizes = [op.x.shape[axis] or 1 for axis in op.attrs["axes"]]
    return (
        np.float32(1) / np.float32(step),
        np.float32(1) / np.float32(math.prod(sizes)),
        np.float32(op.attrs["epsilon"] / step**2),
    )


@real_kind("layer_norm_of_codes", (1, 3), "axes epsilon step")
def _layer_norm_of_codes(
    op: Op, x: np.ndarray, gamma: np.ndarray | None = None, beta: np.ndarray | None = None
) -> np.ndarray:
    """With integers ``q = rint(x * (1 / step))``: ``normalized(q) * gamma + beta``, as `qi.ir.formulas` has it."""
    steps, part, epsilon = reciprocals(op)
    y = normalized(np.rint(x * steps), part, epsilon, tuple(op.attrs["axes"]))
    y = y if gamma is None else y * gamma
    return np.asarray(y if beta is None else y + beta, np.float32)


def normalize_codes(graph: QGraph) -> None:
    """Makes a normalization of what codes stand for one of the codes.

    Args:
        graph: routed; changed in place.
    """
    producers = graph.producers()
    for op in graph.ops:
        codes = codes_before(op.x, producers) if op.kind == "layer_norm" else None
        if codes is not None:
            op.kind, op.attrs = "layer_norm_of_codes", {**op.attrs, "step": float(codes.scale)}
