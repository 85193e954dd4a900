"""Constant weights and biases in an ONNX file: integers, and a DequantizeLinear with a scale for each output channel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qi.core import IntGrid, PerGroup
from qi.errors import UnsupportedError
from qi.exporters.onnx_builder import Builder, constant_data
from qi.ir.arithmetic import scale_of_sums
from qi.ir.graph import Op, Tensor
from qi.ir.onnxruntime import PACKED_BITS

__all__ = ["MICROSOFT", "bias", "block_product", "blocks", "is_grouped", "is_packed", "weight"]

MICROSOFT = "com.microsoft"
_LEAST_BLOCK = 16


def is_packed(tensor: Tensor) -> bool:
    """Whether a weight's codes lie in the file two to the byte."""
    grid = tensor.qparams.grid if tensor.qparams is not None else None
    return isinstance(grid, IntGrid) and grid.signed and grid.bits <= PACKED_BITS


def weight(
    b: Builder, tensor: Tensor, change: Callable[[np.ndarray], np.ndarray], axis: int, *, unit: bool = False
) -> str:
    """The real numbers of a weight: a constant, or a DequantizeLinear of its codes.

    Args:
        b: the file.
        tensor: constant.
        change: of its axes to ONNX's.
        axis: that of the output channels after it.
        unit: its codes as numbers, without their scales.

    Returns:
        the name of the real numbers.

    Raises:
        UnsupportedError: scales that aren't one for each output channel, or each group of inputs.
    """
    if tensor.qparams is None or not isinstance(tensor.qparams.grid, IntGrid):
        return b.constant(change(tensor.values()), tensor.name)
    if isinstance(tensor.qparams.granularity, PerGroup):
        return _grouped(b, tensor, tensor.qparams.granularity, change)
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
    dtype = _code_type(grid)
    codes, zero, packed = change(data).astype(dtype), zero.astype(dtype), is_packed(tensor)
    return b.with_scales(codes, np.ones_like(scale) if unit else scale, zero, tensor.name, axis=axis, packed=packed)


def _code_type(grid: IntGrid) -> np.dtype:
    """Bytes, or two of them beyond 8 bits."""
    kinds = (np.int8, np.int16) if grid.signed else (np.uint8, np.uint16)
    return np.dtype(kinds[grid.bits > 8])


def _grouped(b: Builder, tensor: Tensor, granularity: PerGroup, change: Callable[[np.ndarray], np.ndarray]) -> str:
    """The real numbers of codes with a scale for each group of them along an axis: DequantizeLinear with blocks."""
    data = constant_data(tensor)
    scales, zeros = (np.broadcast_to(a, data.shape) for a in tensor.qparams.expanded(data.shape))  # type: ignore[union-attr]
    along = np.arange(data.shape[granularity.axis]).reshape(
        [-1 if i == granularity.axis else 1 for i in range(data.ndim)]
    )
    numbers = change(np.broadcast_to(along, data.shape))
    axis = next(
        i for i, n in enumerate(numbers.shape) if n > 1 and numbers.take(0, i).flat[0] != numbers.take(1, i).flat[0]
    )
    first = np.arange(0, numbers.shape[axis], granularity.size)
    dtype = _code_type(tensor.grid)
    return b.with_scales(
        change(data).astype(dtype),
        change(scales).take(first, axis),
        change(zeros).take(first, axis).astype(dtype) if zeros.any() else None,
        tensor.name,
        axis=axis,
        packed=is_packed(tensor),
        block_size=granularity.size,
    )


def is_grouped(tensor: Tensor) -> bool:
    """Whether a weight has a scale for each group of codes along an axis."""
    return tensor.qparams is not None and isinstance(tensor.qparams.granularity, PerGroup)


def blocks(tensor: Tensor) -> int:
    """The size of a product's groups if ONNX Runtime's product of real numbers with blocks of 4 bits takes them; else 0."""
    granularity = tensor.qparams.granularity if tensor.qparams is not None else None
    if not isinstance(granularity, PerGroup) or not is_packed(tensor) or tensor.qparams.zero_point.any():  # type: ignore[union-attr]
        return 0
    size, axes = granularity.size, (granularity.axis % 2, granularity.channel_axis % 2)
    return size if axes == (0, 1) and size >= _LEAST_BLOCK and size & (size - 1) == 0 else 0


def block_product(b: Builder, op: Op, rows: str) -> str:
    """A MatMulNBits: ONNX Runtime's product of rows of real numbers with blocks of 4 bits, which stay packed as it runs.

    Codes lie as unsigned ones, 8 added, [outputs, blocks, bytes], the lower half of a byte first, the last block filled up; it
    adds real numbers in float32 (accuracy level 1; at others it rounds the activations to 8 bits).
    """
    w, size = op.inputs[1], blocks(op.inputs[1])
    codes, count = constant_data(w).astype(np.int64).T, int(w.shape[0] or 0)
    full = np.pad(codes, ((0, 0), (0, -count % size))).reshape(len(codes), -1, size)
    halves = (full + 8).astype(np.uint8)
    scale = np.ascontiguousarray(w.qparams.scale.T).reshape(-1)  # type: ignore[union-attr]
    given = [rows, b.constant(halves[..., ::2] | halves[..., 1::2] << 4, w.name), b.constant(scale, f"{w.name}:scale")]
    attrs = {"K": count, "N": len(codes), "bits": 4, "block_size": size, "accuracy_level": 1}
    product = b.node("MatMulNBits", given, domain=MICROSOFT, **attrs)
    return b.node("Add", [product, *bias(b, op)]) if len(op.inputs) > 2 else product


def bias(b: Builder, op: Op, repeat: int = 1, *, unit: bool = False) -> list[str]:
    """The real numbers of a linear operation's bias, if it has one: int32 at the scale of its sums, or float.

    Args:
        b: the file.
        op: with the bias as its third input.
        repeat: how many times in that the channels of the weights come.
        unit: its integers as numbers, without their scale.

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
    return [b.with_scales(data, np.ones_like(scale) if unit else scale, None, tensor.name)]
