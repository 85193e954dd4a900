"""What every valid graph keeps: the laws that twin and writers rest on."""

from __future__ import annotations

import numpy as np

from qi.core import IntGrid, PerGroup
from qi.errors import InputError
from qi.ir.arithmetic import largest_sum
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.kinds import KINDS
from qi.ir.linear import LINEAR

__all__ = ["validate"]

_LARGEST_SUM = 2**31 - 1


def validate(graph: QGraph) -> None:
    """Checks a graph.

    Raises:
        InputError: what is wrong, and where; nothing is changed.
    """
    names: dict[str, Tensor] = {}
    for tensor in graph.tensors():
        if names.setdefault(tensor.name, tensor) is not tensor:
            _refuse(graph, f"tensors with names of their own; two are called {tensor.name!r}")
        _check_tensor(graph, tensor)
    known = {id(tensor) for tensor in graph.inputs}
    for op in graph.ops:
        _check_op(graph, op)
        for tensor in op.inputs:
            if not tensor.constant and id(tensor) not in known:
                _refuse(graph, f"operations in the order of their running; {tensor.name!r} isn't known yet in {op}")
        for tensor in op.outputs:
            if id(tensor) in known or tensor.constant:
                _refuse(graph, f"each tensor to be given once; {op} gives {tensor.name!r} again")
            known.add(id(tensor))
    for tensor in graph.outputs:
        if id(tensor) not in known and not tensor.constant:
            _refuse(graph, f"outputs that an operation gives; nothing gives {tensor.name!r}")


def _refuse(graph: QGraph, what: str) -> None:
    raise InputError(f"graph {graph.name!r}: expected {what}")


def _check_tensor(graph: QGraph, tensor: Tensor) -> None:
    data, qparams = tensor.data, tensor.qparams
    if data is not None and tuple(data.shape) != tuple(tensor.shape):
        _refuse(graph, f"{tensor.name!r} of shape {tensor.shape}; its data are {data.shape}")
    if data is None and qparams is not None and qparams.scale.size != 1:
        _refuse(graph, f"one scale for the activation {tensor.name!r}; received {qparams.scale.size}")
    if data is not None and qparams is not None and isinstance(qparams.grid, IntGrid):
        low, high = qparams.grid.qmin, qparams.grid.qmax
        if data.dtype.kind not in "iu" or data.min(initial=0) < low or data.max(initial=0) > high:
            _refuse(graph, f"codes from {low} to {high} in {tensor.name!r}")
        try:
            qparams.check_shape(data.shape)
        except ValueError as error:
            _refuse(graph, f"scales that fit {tensor.name!r} of shape {data.shape} ({error})")


def _check_op(graph: QGraph, op: Op) -> None:
    if op.kind not in KINDS:
        _refuse(graph, f"operations of known kinds; received {op.kind!r}")
    kind = KINDS.get(op.kind)
    least, most = kind.arity
    if not least <= len(op.inputs) <= most or not op.outputs:
        _refuse(graph, f"{least} to {most} inputs and an output for {op.kind!r}; received {op}")
    if set(op.attrs) != kind.attrs:
        _refuse(graph, f"attributes {sorted(kind.attrs)} of {op.kind!r}; received {sorted(op.attrs)}")
    if kind.moves and op.y.quantized:
        values = [t for t in op.inputs if t.dtype.startswith("float")]
        if any(t.qparams != op.y.qparams for t in values):
            _refuse(graph, f"one scale for all that {op.kind!r} moves; received {op}")
    if op.kind == "quantize" and not op.y.quantized:
        _refuse(graph, f"codes from 'quantize'; received {op}")
    if op.kind == "dequantize" and (op.y.quantized or not op.x.quantized):
        _refuse(graph, f"real numbers from codes from 'dequantize'; received {op}")
    if op.kind in LINEAR and op.quantized:
        _check_sums(graph, op)


def _check_sums(graph: QGraph, op: Op) -> None:
    """Constant weights, a bias at the scale of the sums, and no sum beyond int32."""
    w = op.inputs[1]
    if w.data is None or w.qparams is None:
        _refuse(graph, f"constant weights; received {op}")
        return
    if isinstance(w.qparams.granularity, PerGroup):
        _refuse(graph, f"one scale, or one for each channel, in weights of an integer operation; received {op}")
    if len(op.inputs) == 3:
        b = op.inputs[2]
        if b.data is None or b.data.dtype != np.int32:
            _refuse(graph, f"a constant int32 bias, of scale sx * sw; received {op}")
            return
    largest = largest_sum(op)
    if largest > _LARGEST_SUM:
        told = f"those of {op.y.name!r} may reach {largest:.3g}; do give layer {op.source!r} fewer bits"
        _refuse(graph, f"sums that int32 holds; {told}")
