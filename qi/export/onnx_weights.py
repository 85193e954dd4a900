"""Constant weights and biases in an ONNX file: integers, and a DequantizeLinear with a scale for each output channel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qi.core import IntGrid
from qi.errors import UnsupportedError
from qi.export.onnx_builder import Builder, constant_data
from qi.ir.arithmetic import scale_of_sums
from qi.ir.graph import Op, Tensor
from qi.ir.onnxruntime import PACKED_BITS

__all__ = ["bias", "is_packed", "weight"]


def is_packed(tensor: Tensor) -> bool:
    """Whether a weight's codes lie in the file two to the byte."""
    grid = tensor.qparams.grid if tensor.qparams is not None else None
    return isinstance(grid, IntGrid) and grid.signed and grid.bits <= PACKED_BITS


def weight(b: Builder, tensor: Tensor, change: Callable[[np.ndarray], np.ndarray], axis: int) -> str:
    """The real numbers of a weight: a constant, or a DequantizeLinear of its codes.

    Args:
        b: the file.
        tensor: constant.
        change: of its axes to ONNX's.
        axis: that of the output channels after it.

    Returns:
        the name of the real numbers.

    Raises:
        UnsupportedError: scales that aren't one for each output channel.
    """
    if tensor.qparams is None or not isinstance(tensor.qparams.grid, IntGrid):
        return b.constant(change(tensor.values()), tensor.name)
    data, grid = constant_data(tensor), tensor.grid
    scales, zeros = (change(np.broadcast_to(a, data.shape)) for a in tensor.qparams.expanded(data.shape))
    one = tuple(slice(None) if i == axis else 0 for i in range(scales.ndim))
    along = [-1 if i == axis else 1 for i in range(scales.ndim)]
    scale, zero = np.array(scales[one]), np.array(zeros[one])
    if not (scales == scale.reshape(along)).all() or not (zeros == zero.reshape(along)).all():
        raise UnsupportedError(
            f"expected one scale, or one for each output channel, in {tensor.name!r}; received "
            f"{tensor.qparams.granularity}; do quantize it per channel"
        )
    dtype = np.int8 if grid.signed else np.uint8
    return b.with_scales(
        change(data).astype(dtype), scale, zero.astype(dtype), tensor.name, axis=axis, packed=is_packed(tensor)
    )


def bias(b: Builder, op: Op, repeat: int = 1) -> list[str]:
    """The real numbers of a linear operation's bias, if it has one: int32 at the scale of its sums, or float.

    Args:
        b: the file.
        op: with the bias as its third input.
        repeat: how many times in that the channels of the weights come.

    Returns:
        the name of the real numbers, or nothing.
    """
    if len(op.inputs) < 3:
        return []
    tensor = op.inputs[2]
    if tensor.dtype != "int32":
        return [b.constant(tensor.values(), tensor.name)]
    data = constant_data(tensor)
    scale = np.tile(np.broadcast_to(scale_of_sums(op.x, op.inputs[1]), len(data) // repeat), repeat)
    return [b.with_scales(data, scale, None, tensor.name)]
