"""Convolutions and products as ONNX operations: DequantizeLinear, the operation, QuantizeLinear, which ONNX Runtime fuses."""

from __future__ import annotations

from typing import Any

from qi.exporters.onnx_builder import FIRST, LAST, Builder, writer
from qi.exporters.onnx_packed import finish, source, whole
from qi.exporters.onnx_weights import bias, block_product, blocks, weight
from qi.ir.graph import Op, Tensor

__all__ = ["attributes_of"]


def _pads(op: Op) -> list[int]:
    """[top, bottom, left, right] in ONNX's order: begins, then ends."""
    top, bottom, left, right = op.attrs["pads"]
    return [top, left, bottom, right]


def attributes_of(op: Op) -> dict[str, Any]:
    """The attributes of a convolution whose weights are [height, width, ...]."""
    return {
        "kernel_shape": [int(n or 0) for n in op.inputs[1].shape[:2]],
        "strides": list(op.attrs["strides"]),
        "dilations": list(op.attrs["dilation"]),
        "pads": _pads(op),
    }


@writer("conv2d")
def _conv2d(b: Builder, op: Op) -> None:
    kernel = weight(b, op.inputs[1], lambda a: a.transpose(3, 2, 0, 1), 0, unit=whole(op))
    _convolve(b, op, kernel, op.attrs["groups"])


@writer("depthwise_conv2d")
def _depthwise_conv2d(b: Builder, op: Op) -> None:
    kernel = weight(b, op.inputs[1], lambda a: a.transpose(2, 0, 1)[:, None], 0, unit=whole(op))
    _convolve(b, op, kernel, op.x.shape[3])


def _convolve(b: Builder, op: Op, kernel: str, groups: Any) -> None:
    inputs = [source(b, op, op.x, FIRST), kernel, *bias(b, op, unit=whole(op))]
    finish(b, op, b.node("Conv", inputs, group=groups, **attributes_of(op)), FIRST)


@writer("dense")
def _dense(b: Builder, op: Op) -> None:
    """A Gemm, on rows: a product of any other rank has an integer kernel with fixed sizes only.

    The rows are made of codes, so that no operation stands between DequantizeLinear and Gemm.
    """
    x, w = op.inputs[:2]
    if len(x.shape) == 2:
        finish(b, op, _product(b, op, source(b, op, x, LAST)), LAST)
        return
    rows = Tensor(f"{x.name}:rows", (None, w.shape[0]), x.dtype, x.qparams)
    b.put(rows, b.node("Reshape", [b.value(x, LAST), b.indices([-1, int(w.shape[0] or 0)])]), LAST)
    b.follows(rows, x)
    result = Tensor(f"{op.y.name}:rows", (None, w.shape[1]), op.y.dtype, op.y.qparams)
    inner = Op(op.kind, [rows, *op.inputs[1:]], [result], op.attrs, op.source)
    finish(b, inner, _product(b, op, source(b, op, rows, LAST)), LAST)
    sizes = b.indices(b.sizes(op.y, inferred=True))
    if None in op.y.shape[1:]:  # sizes that are known only as it runs
        given = b.node("Shape", [b.value(x, LAST)], end=len(x.shape) - 1)
        sizes = b.node("Concat", [given, b.indices([int(w.shape[1] or 0)])], axis=0)
    b.put(op.y, b.node("Reshape", [b.value(result, LAST), sizes], op.y.name), LAST)


def _product(b: Builder, op: Op, rows: str) -> str:
    """A Gemm; of real numbers with transposed weights, or ONNX Runtime rounds the activations to eight bits.

    Where packed weights are asked for, it is a MatMulNBits of blocks, which doesn't round them.
    """
    if b.packed and not op.quantized and blocks(op.inputs[1]):
        return block_product(b, op, rows)
    if op.quantized:
        unit = whole(op)
        return b.node("Gemm", [rows, weight(b, op.inputs[1], lambda a: a, 1, unit=unit), *bias(b, op, unit=unit)])
    return b.node("Gemm", [rows, weight(b, op.inputs[1], lambda a: a.T, 0), *bias(b, op)], transB=1)


@writer("batch_matmul")
def _batch_matmul(b: Builder, op: Op) -> None:
    """Transposed as codes before."""
    names = []
    for tensor, turned in zip(op.inputs, (op.attrs["transpose_a"], op.attrs["transpose_b"]), strict=True):
        if turned:
            rank = len(tensor.shape)
            perm = [*range(rank - 2), rank - 1, rank - 2]
            moved = Tensor(f"{tensor.name}:turned", tuple(tensor.shape[i] for i in perm), tensor.dtype, tensor.qparams)
            b.put(moved, b.node("Transpose", [b.value(tensor, LAST)], perm=perm), LAST)
            tensor = moved
        names.append(b.real(tensor, LAST))
    b.finish(op, b.node("MatMul", names), LAST)
