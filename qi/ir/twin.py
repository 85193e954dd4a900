"""The twin: runs a graph in numpy with the very arithmetic of a named runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# These register kinds of operations and then kernels, in this order.
import qi.ir.borders
import qi.ir.dynamic
import qi.ir.elementwise
import qi.ir.fixed_softmax
import qi.ir.linear
import qi.ir.litert
import qi.ir.moves
import qi.ir.onnxruntime
import qi.ir.recurrent
import qi.ir.reference  # noqa: F401
from qi.core import dequantize
from qi.errors import ConfigError, InputError
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.kinds import KINDS, TARGETS, kernel_of

__all__ = ["real_values", "run"]


def run(
    graph: QGraph, inputs: Sequence[np.ndarray], target: str = "", *, every: bool = False
) -> Mapping[str, np.ndarray]:
    """Runs a graph.

    Args:
        graph: valid; routed for its target if anything is to agree with that.
        inputs: one array for each input, with the batch in front: real numbers, or codes where the input holds codes.
        target: a name of `qi.ir.kinds.TARGETS`; by default the one the graph was routed for.
        every: whether to keep every tensor that isn't constant; else the outputs only.

    Returns:
        arrays by tensor name: codes as int32 where the tensor holds codes.

    Raises:
        ConfigError: an unknown target.
        InputError: arrays of another number or shape.
        UnsupportedError: an operation that the target can't do in integers.
    """
    target = target or graph.target
    if target not in TARGETS:
        raise ConfigError(f"expected target to be one of {sorted(TARGETS)}; received target={target!r}")
    values = _fed(graph, inputs)
    wanted = {id(t) for t in (graph.tensors() if every else graph.outputs) if not t.constant}
    last = {id(t): op for op in graph.ops for t in op.inputs}
    kept: dict[str, np.ndarray] = {t.name: values[id(t)] for t in graph.inputs if id(t) in wanted}
    for op in graph.ops:
        for tensor, array in zip(op.outputs, _computed(op, values, target), strict=True):
            values[id(tensor)] = array
            if id(tensor) in wanted:
                kept[tensor.name] = array
        for tensor in op.inputs:
            if last[id(tensor)] is op:
                values.pop(id(tensor), None)
    return kept


def _fed(graph: QGraph, inputs: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    if len(inputs) != len(graph.inputs):
        raise InputError(f"expected {len(graph.inputs)} inputs; received {len(inputs)}")
    values = {}
    for tensor, given in zip(graph.inputs, inputs, strict=True):
        array = np.asarray(given)
        if len(array.shape) != len(tensor.shape) or any(
            n not in (None, m) for n, m in zip(tensor.shape, array.shape, strict=True)
        ):
            raise InputError(f"expected {tensor.name!r} of shape {tensor.shape}; received {array.shape}")
        values[id(tensor)] = array.astype(np.int32 if tensor.quantized else tensor.dtype)
    return values


def _computed(op: Op, values: Mapping[int, np.ndarray], target: str) -> Sequence[np.ndarray]:
    arrays = [t.data if t.data is not None else values[id(t)] for t in op.inputs]
    if op.quantized or op.kind in ("quantize", "dequantize"):
        arrays = [a.astype(np.int32) if t.quantized else a for a, t in zip(arrays, op.inputs, strict=True)]
        result = kernel_of(op, target)(op, *arrays)
    else:
        reals = [real_values(t, a) for t, a in zip(op.inputs, arrays, strict=True)]
        result = KINDS.get(op.kind).real(op, *reals)
        results = result if isinstance(result, (list, tuple)) else [result]
        return [_codes(t, array) for t, array in zip(op.outputs, results, strict=True)]
    return result if isinstance(result, (list, tuple)) else [result]


def _codes(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """Real numbers as what a tensor holds: in a graph that isn't routed, an operation may take real numbers and give codes."""
    return array if tensor.qparams is None else tensor.qparams.quantize(array).codes.astype(np.int32)


def real_values(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """What an array of a tensor stands for: its codes as float32 ``(q - z) * s``, plain values as they are."""
    if tensor.qparams is None:
        return array
    scale, zero_point = tensor.qparams.expanded(array.shape)
    return np.asarray(dequantize(array, scale, zero_point, tensor.qparams.grid), np.float32)
