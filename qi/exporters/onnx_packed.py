"""Sums of products with packed weights, which ONNX Runtime has no integer kernel for: whole numbers in float32.

Codes less their zero point are multiplied with codes, and the bias added to them, as float32 numbers without a scale. No sum
reaches 2**24 (`qi.ir.routing` sees to that), so each is exact, in whatever order and with whatever kernel it is added, and the
step to eight bits is written out as that of the integer kernels: a file with packed weights gives the numbers of one without.
Were the numbers real, a sum would depend on the order of adding, and a code near a tie with it.
"""

from __future__ import annotations

import numpy as np

from qi.exporters.onnx_builder import FIRST, Builder
from qi.exporters.onnx_weights import is_packed
from qi.ir.graph import Op, Tensor

__all__ = ["finish", "source", "whole"]


def whole(op: Op) -> bool:
    """Whether an operation is done on whole numbers: codes, with packed weights."""
    return op.quantized and is_packed(op.inputs[1])


def source(b: Builder, op: Op, x: Tensor, layout: str) -> str:
    """What an operation multiplies its weights with: the real numbers of a tensor, or its codes less their zero point.

    Args:
        b: the file.
        op: a convolution or product.
        x: its input, as it lies there.
        layout: in which it is wanted.
    """
    if not whole(op):
        return b.real(x, layout)
    return b.node("DequantizeLinear", [b.codes(x, layout), *b.scale_of(x, unit=True)], f"{x.name}:whole")


def finish(b: Builder, op: Op, sums: str, layout: str, repeat: int = 1) -> None:
    """The end of a convolution or product: `Builder.finish`, for whole numbers after ``sums * float32(float32(sx * sw) / sy)``.

    The three scales are in the file each, and the runtime makes one factor of them when it loads it.

    Args:
        b: the file.
        op: gives scales, zero point, activation and name.
        sums: what was computed.
        layout: of it.
        repeat: how many times the channels of the weights come in it.
    """
    if not whole(op):
        b.finish(op, sums, layout)
        return
    w = op.inputs[1]
    channels = int(op.y.shape[-1] or 0)
    scales = np.tile(np.broadcast_to(w.scales(), channels // repeat), repeat)
    if layout == FIRST:
        scales = scales.reshape(-1, *(1 for _ in op.y.shape[2:]))
    of_sums = b.node("Mul", [b.constant(op.x.scale, "scale"), b.constant(scales, f"{w.name}:scale")])
    factor = b.node("Div", [of_sums, b.constant(op.y.scale, "scale")], f"{op.y.name}:factor")
    b.put_codes(op.y, b.quantized(op, b.node("Mul", [sums, factor]), unit=True), layout)
