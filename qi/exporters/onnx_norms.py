"""Normalizations, and softmax of codes, as ONNX operations."""

from __future__ import annotations

import numpy as np

from qi.exporters.onnx_builder import LAST, Builder, writer
from qi.ir.formulas import SMALL_EPSILON
from qi.ir.graph import Op
from qi.ir.norms import epsilon_of

__all__: list[str] = []


def _once(b: Builder, real: str) -> str:
    """A copy of what several nodes take: ONNX Runtime dequantizes once for each node that takes a DequantizeLinear's output."""
    return b.node("Sum", [real])


def _weighted(b: Builder, op: Op, y: str) -> None:
    """Times gamma, plus beta."""
    for kind, weight in zip(("Mul", "Add"), op.inputs[1:], strict=False):
        y = b.node(kind, [y, b.constant(weight.values(), weight.name)])
    b.finish(op, y, LAST)


@writer("layer_norm_of_codes", "rms_norm_of_codes")
def _norm_of_codes(b: Builder, op: Op) -> None:
    """The steps of `qi.ir.norms`, one node each; codes less their zero point are what that rounds to."""
    codes, axes = b.graph.producers()[id(op.x)].x, b.indices(op.attrs["axes"])
    epsilon = epsilon_of(op)
    q = _once(b, b.node("DequantizeLinear", [b.codes(codes, LAST), *b.scale_of(codes, unit=True)]))
    variance = b.node("ReduceMean", [b.node("Mul", [q, q]), axes], keepdims=1)
    if op.kind == "layer_norm_of_codes":
        mean = b.node("ReduceMean", [q, axes], keepdims=1)
        variance = b.node("Sub", [variance, b.node("Mul", [mean, mean])])
        if epsilon < SMALL_EPSILON:
            variance = b.node("Relu", [variance])
        q = b.node("Sub", [q, mean])
    root = b.node("Sqrt", [b.node("Add", [variance, b.constant(epsilon, "epsilon")])])
    _weighted(b, op, b.node("Div", [q, root]))


@writer("layer_norm", "rms_norm")
def _norm(b: Builder, op: Op) -> None:
    """A LayerNormalization over the last axes; else ``(x - mean) / sqrt(mean((x - mean)**2) + epsilon) * gamma + beta``."""
    x, rank, axes = b.real(op.x, LAST), len(op.x.shape), [int(a) for a in op.attrs["axes"]]
    if op.kind == "layer_norm" and axes == list(range(axes[0], rank)):
        size = [int(n or 0) for n in op.x.shape[axes[0] :]]
        given = [t.values() for t in op.inputs[1:]] or [np.ones(size, np.float32)]
        names = [b.constant(np.broadcast_to(a, size).astype(np.float32), "norm") for a in given]
        b.finish(op, b.node("LayerNormalization", [x, *names], axis=axes[0], epsilon=op.attrs["epsilon"]), LAST)
        return
    over = b.indices(axes)
    if op.kind == "layer_norm":
        x = b.node("Sub", [x, b.node("ReduceMean", [x, over], keepdims=1)])
    variance = b.node("ReduceMean", [b.node("Mul", [x, x]), over], keepdims=1)
    root = b.node("Sqrt", [b.node("Add", [variance, b.constant(np.float32(op.attrs["epsilon"]), "epsilon")])])
    _weighted(b, op, b.node("Div", [x, root]))


@writer("softmax_of_codes")
def _softmax_of_codes(b: Builder, op: Op) -> None:
    """The steps of `qi.ir.softmax`, one node each."""
    x, axes = b.real(op.x, LAST), b.indices([op.attrs["axis"]])
    if b.graph.producers()[id(op.x)].kind == "dequantize":
        x = _once(b, x)
    top = b.node(
        "Sub", [b.node("ReduceMax", [x, axes], keepdims=1), b.constant(np.float32(op.attrs["shift"]), "shift")]
    )
    e = b.node("Round", [b.node("Exp", [b.node("Sub", [x, top])])])
    b.finish(op, b.node("Div", [e, b.node("ReduceSum", [e, axes], keepdims=1)]), LAST)
