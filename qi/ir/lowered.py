"""What every front end does when it lowers: parameters of constants, output tensors of their own, answers in the user's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qi.core import IntGrid, PerChannel, PerGroup, QParams
from qi.errors import UnsupportedError
from qi.ir.graph import Op, QGraph, Tensor, take_name
from qi.ir.passes import fuse
from qi.ir.twin import real_values

__all__ = ["changed_qparams", "in_real_numbers", "part_outputs", "shown", "signed_qparams"]


def changed_qparams(
    qparams: Any, change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], old: tuple[int, ...]
) -> Any:
    """Parameters of a weight whose axes were changed.

    Args:
        qparams: with several scales.
        change: of the weight's axes; applied to codes and scales alike, so it may neither join nor part scales.
        shape: of the changed weight.
        old: of the given one.

    Raises:
        UnsupportedError: scales that don't lie along axes of the changed weight.
    """
    granularity = qparams.granularity
    single = isinstance(granularity, PerGroup) and granularity.size == 1  # a scale for each of two axes
    if isinstance(granularity, PerGroup) and not single:
        return _changed_groups(qparams, change, shape, old)
    if not single and not isinstance(granularity, PerChannel):
        raise UnsupportedError(f"expected one scale or one for each channel; received {granularity}")
    scale, zero_point = (change(array) for array in (qparams.scale, qparams.zero_point))
    axes = [axis for axis, n in enumerate(scale.shape) if n > 1]
    if single and len(axes) == 2:
        return QParams(scale, zero_point, qparams.grid, PerGroup(axes[0], 1, axes[1]))
    if len(axes) != 1 or scale.shape[axes[0]] != shape[axes[0]]:
        raise UnsupportedError(f"expected scales along one axis of {shape}; received {scale.shape}")
    return QParams(scale, zero_point, qparams.grid, PerChannel(axes[0]))


def _changed_groups(
    qparams: Any, change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], old: tuple[int, ...]
) -> Any:
    """Parameters of a weight with a scale for each group, whose axes were changed: new axes are found by numbering the old."""
    granularity, rank = qparams.granularity, len(old)
    scale, zero_point = (change(array) for array in (qparams.scale, qparams.zero_point))
    grouped, channel = (
        _varying(
            change(np.broadcast_to(np.arange(old[axis]).reshape([-1 if i == axis else 1 for i in range(rank)]), old))
        )
        for axis in (granularity.axis % rank, granularity.channel_axis % rank)
    )
    if channel is not None and qparams.scale.shape[granularity.axis] == 1:  # one group: a scale for each channel
        return QParams(scale, zero_point, qparams.grid, PerChannel(channel))
    if grouped is None or channel is None or grouped == channel:
        raise UnsupportedError(f"expected groups along one axis of {shape}; received {granularity} of {old}")
    made = PerGroup(grouped, granularity.size, channel)
    if scale.shape != made.param_shape(shape):
        raise UnsupportedError(f"expected scales of shape {made.param_shape(shape)}; received {scale.shape}")
    return QParams(scale, zero_point, qparams.grid, made)


def _varying(array: np.ndarray) -> int | None:
    """The one axis along which an array isn't constant."""
    found = [axis for axis, n in enumerate(array.shape) if n > 1 and (array.take(0, axis) != array.take(1, axis)).any()]
    return found[0] if len(found) == 1 else None


def signed_qparams(qparams: QParams) -> QParams:
    """One scale, a signed grid: unsigned codes move down by half of their range, which changes no number.

    Raises:
        UnsupportedError: codes of a look-up table.
    """
    grid = qparams.grid
    if not isinstance(grid, IntGrid):
        raise UnsupportedError(f"expected activations on an integer grid; received {grid}")
    shift = 0 if grid.signed else 1 << (grid.bits - 1)
    zero_point = qparams.zero_point.reshape(()) - shift
    return QParams(qparams.scale.reshape(()), zero_point, IntGrid(grid.bits, narrow=grid.narrow))


def part_outputs(graph: QGraph, names: set[str]) -> None:
    """Gives an output that is an input a tensor of its own, as files need it."""
    for tensor in graph.inputs:
        if any(t is tensor for t in graph.outputs):
            same = Tensor(take_name(tensor.name, names), tensor.shape, tensor.dtype)
            graph.ops.append(Op("reshape", [tensor], [same], {"shape": list(tensor.shape)}, tensor.name))
            graph.outputs = [same if t is tensor else t for t in graph.outputs]


def shown(tensor: Tensor, array: np.ndarray, target: str, raw: bool) -> np.ndarray:
    """An output of the twin as its user asked for it: real numbers, or with `raw` the codes as the target has them.

    Args:
        tensor: the output.
        array: what `qi.ir.run` gave for it.
        target: ONNX Runtime's codes are uint8, others' int8.
        raw: whether codes are wanted; outputs that have none are given as they are.
    """
    if not tensor.quantized or not raw:
        return real_values(tensor, array)
    return (array + 128).astype(np.uint8) if target == "onnxruntime" else array.astype(np.int8)


def in_real_numbers(graph: QGraph) -> QGraph:
    """A graph that isn't fused without its quantizers, fused; it is changed in place."""
    for op in list(graph.ops):
        if op.kind == "quantize":
            graph.ops.remove(op)
            graph.substitute(op.y, op.x)
        op.inputs = [_real_constant(t) for t in op.inputs]
    return fuse(graph)


def _real_constant(tensor: Tensor) -> Tensor:
    if not tensor.constant or not tensor.quantized:
        return tensor
    values = tensor.values()
    return Tensor(tensor.name, tensor.shape, tensor.dtype, data=values)
