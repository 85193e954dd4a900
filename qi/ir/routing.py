"""Routing: which operations a target does in integers, and which it does better (or only) in real numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qi.core import IntGrid, QParams
from qi.errors import ConfigError, UnsupportedError
from qi.ir.arithmetic import largest_sum, scale_of_sums
from qi.ir.dynamic import make_dynamic
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.kinds import KINDS, TARGETS
from qi.ir.linear import EXACT32, LINEAR
from qi.ir.margins import settle
from qi.ir.norms import normalize_codes
from qi.ir.softmax import soften_codes
from qi.ir.tables import tabulate

__all__ = ["ISLANDS", "LACKS", "input_quantizers", "island", "lacks", "route"]

ISLANDS: dict[str, Callable[[Op], bool]] = {}
LACKS: dict[str, Callable[[Op], bool]] = {}


def island(target: str) -> Callable[[Callable[[Op], bool]], Callable[[Op], bool]]:
    """Registers what says of an operation on codes whether a target had better do it in real numbers.

    Operations for which the target has no integer kernel are done so in any case.
    """

    def add(function: Callable[[Op], bool]) -> Callable[[Op], bool]:
        ISLANDS[target] = function
        return function

    return add


def lacks(target: str) -> Callable[[Callable[[Op], bool]], Callable[[Op], bool]]:
    """Registers what says of an operation on codes whether a target that has a kernel for its kind has none for it."""

    def add(function: Callable[[Op], bool]) -> Callable[[Op], bool]:
        LACKS[target] = function
        return function

    return add


def route(
    graph: QGraph, target: str, *, integer_only: bool = False, packed: bool = False, dynamic: bool = True
) -> QGraph:
    """A copy of a graph for a target: what it does in real numbers stands between "dequantize" and "quantize".

    The values that enter and leave such an island are codes still, so the graph stays well defined.

    Args:
        graph: valid; from `qi.lower`.
        target: a name of `qi.ir.kinds.TARGETS`.
        integer_only: no islands where an integer kernel exists, however slow it is, or a table does the work of one
            (`qi.ir.tables`); `qi.ir.unquantized` tells what is left in real numbers.
        packed: whether weights below 8 bits stay so wherever the target can do that exactly, for size; by default only where
            that costs no time, and lie in bytes elsewhere, with the same values.
        dynamic: whether products of real numbers with coded weights round their activations to 8 bits, row by row, where the
            target has a fast kernel for that (`qi.ir.dynamic`).

    Raises:
        ConfigError: an unknown target.
        UnsupportedError: weights with a zero point in an integer operation, which ONNX Runtime alone has kernels for; the layer
            is named.
    """
    if target not in TARGETS:
        raise ConfigError(f"expected target to be one of {sorted(TARGETS)}; received target={target!r}")
    routed = graph.copy()
    routed.target = target
    _check_weights(routed)
    _widen(routed, packed)
    if dynamic:
        make_dynamic(routed)
    prefers, unable = ISLANDS.get(target, _never), LACKS.get(target, _never)
    if integer_only:
        tabulate(routed, lambda op: _native(op, target))
    for op in list(routed.ops):
        if op.kind in ("quantize", "dequantize") or (KINDS.get(op.kind).moves and op.quantized):
            if op.kind == "quantize" and op.x.quantized and unable(op):
                op.inputs = [_dequantized(routed, op.x, routed.ops.index(op))]
            continue
        missing = op.quantized and (target not in KINDS.get(op.kind).kernels or unable(op))
        if missing or (op.quantized and not integer_only and prefers(op)) or not op.quantized:
            _surround(routed, op)
    if target != "reference":
        normalize_codes(routed)
        soften_codes(routed)
    settle(routed)
    return routed


def _check_weights(graph: QGraph) -> None:
    """Refuses what would turn a model that is in integers into one of islands, and tells of it."""
    for op in graph.ops:
        zeros = op.inputs[1].qparams.zero_point if op.kind in LINEAR and op.quantized else None  # type: ignore[union-attr]
        if zeros is None or not zeros.any():
            continue
        if graph.target != "onnxruntime":
            wanted, way_out = "weights with zero point 0", "export it for ONNX Runtime"
        elif "conv2d" in op.kind and (zeros != zeros.flat[0]).any():
            wanted, way_out = "one zero point for all channels of a convolution's weights", "give it one for the tensor"
        else:
            continue
        raise UnsupportedError(
            f"expected {wanted}, as {graph.target!r} has no integer kernel for others; received layer {op.source!r} with zero "
            f"points from {int(zeros.min())} to {int(zeros.max())}; do {way_out}, or quantize its weights symmetrically"
        )


def input_quantizers(graph: QGraph) -> dict[int, Op]:
    """The quantizers that are left out where a file takes codes, by ``id`` of the input: each is all that takes its input."""
    consumers, outputs = graph.consumers(), {id(tensor) for tensor in graph.outputs}
    found = {}
    for tensor in graph.inputs:
        takers = consumers.get(id(tensor), [])
        only = len(takers) == 1 and takers[0].kind == "quantize" and not tensor.quantized
        if only and id(tensor) not in outputs:
            found[id(tensor)] = takers[0]
    return found


def _widen(graph: QGraph, packed: bool) -> None:
    """Puts weights of few bits into bytes, save where they are to stay packed.

    Products for LiteRT keep theirs, whose kernels take them as they are. ONNX Runtime adds products with packed weights in
    float32: those whose sums that doesn't hold exactly lie in bytes in any case.
    """
    for op in graph.ops:
        if op.kind not in LINEAR or not op.quantized:
            continue
        if graph.target == "onnxruntime":
            keep = packed and largest_sum(op) < EXACT32
        else:
            keep = packed or op.kind == "dense"
        w = op.inputs[1]
        if not keep and w.qparams is not None and w.grid.bits < 8:
            grid = IntGrid(8, narrow=w.grid.narrow)
            w.qparams = QParams(w.qparams.scale, w.qparams.zero_point, grid, w.qparams.granularity)


def _native(op: Op, target: str) -> bool:
    """Whether a target has an integer kernel for an operation on codes: ONNX Runtime none for functions it prefers in float."""
    if target not in KINDS.get(op.kind).kernels or LACKS.get(target, _never)(op):
        return False
    return not (target == "onnxruntime" and op.kind == "unary" and ISLANDS.get(target, _never)(op))


def _never(op: Op) -> bool:
    del op
    return False


def _surround(graph: QGraph, op: Op) -> None:
    """Makes an operation take and give real numbers, with the borders as operations of their own."""
    at = graph.ops.index(op)
    if op.kind in LINEAR and len(op.inputs) == 3 and op.inputs[2].dtype == "int32":
        op.inputs[2] = _real_bias(graph, *op.inputs)
    for tensor in {id(t): t for t in op.inputs if t.quantized and not t.constant}.values():
        real = _dequantized(graph, tensor, at)
        at = graph.ops.index(op)
        op.inputs = [real if t is tensor else t for t in op.inputs]
    for i, tensor in enumerate(op.outputs):
        if tensor.quantized:
            real = Tensor(graph.unique(f"{tensor.name}/real"), tensor.shape, tensor.dtype)
            op.outputs[i] = real
            graph.ops.insert(graph.ops.index(op) + 1, Op("quantize", [real], [tensor], {}, op.source))


def _real_bias(graph: QGraph, x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """A bias of int32 at the scale of the sums, as real numbers."""
    values = (bias.values() * scale_of_sums(x, w).astype(np.float64)).astype(np.float32)
    return Tensor(graph.unique(f"{bias.name}/real"), bias.shape, data=values)


def _dequantized(graph: QGraph, tensor: Tensor, at: int) -> Tensor:
    """The real numbers of a tensor of codes; made once."""
    for op in graph.ops[:at]:
        if op.kind == "dequantize" and op.x is tensor:
            return op.y
    real = Tensor(graph.unique(f"{tensor.name}/dequantized"), tensor.shape, tensor.dtype)
    graph.ops.insert(at, Op("dequantize", [tensor], [real], {}, graph.ops[at].source))
    return real
