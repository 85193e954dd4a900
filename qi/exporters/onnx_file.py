"""An integer graph as the bytes of an ONNX file, in the form that ONNX Runtime turns into integer kernels.

QDQ form: each operation stands between DequantizeLinear and QuantizeLinear; what only moves values works on codes. Inputs and
outputs are as in Keras: names, channels last, float32, an open batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import qi.exporters.onnx_elementwise
import qi.exporters.onnx_linear
import qi.exporters.onnx_moves
import qi.exporters.onnx_norms
import qi.exporters.onnx_recurrent
import qi.exporters.onnx_transposed
import qi.ir.twin  # noqa: F401 - registers the kinds of operations
from qi._version import __version__
from qi.core import IntGrid
from qi.errors import ConfigError, UnsupportedError
from qi.exporters.onnx_builder import LAST, WRITERS, Builder, refused
from qi.exporters.onnx_weights import MICROSOFT, is_grouped, is_packed
from qi.ir.graph import QGraph, Tensor
from qi.ir.linear import LINEAR
from qi.ir.recurrent import RECURRENT
from qi.ir.routing import input_quantizers
from qi.optional import require

__all__ = ["places", "write"]

_LEAST, _MOST = 18, 23


def write(
    graph: QGraph,
    *,
    opset: int | None = None,
    integer_io: bool = False,
    packed: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Writes a graph.

    Args:
        graph: valid; routed for "onnxruntime". Weights of 4 bits and fewer, which it holds if it was routed with
            ``packed=True``, are packed, two to the byte; ONNX Runtime dequantizes them at every run, which is slow.
        opset: of ONNX; by default 18, or the least that the graph needs: 20 for GELU, 21 for packed weights and activations of
            more than 8 bits.
        integer_io: inputs and outputs are the codes (uint8: those of the graph with 128 added), where they have any.
        packed: products of real numbers with weights of 4 bits and a scale for each group become MatMulNBits, which keeps them
            packed as it runs and is fast; ONNX Runtime alone has it. By default DequantizeLinear makes the weights real at every
            run.
        metadata: texts that the file carries along.

    Returns:
        the file; the same bytes for the same graph.

    Raises:
        ConfigError: a graph that isn't routed, or an illegal option.
        UnsupportedError: an operation that the file can't hold; it is named.
        MissingDependencyError: without the package onnx.
    """
    builder, inputs, outputs = _built(graph, opset, integer_io, packed)
    return _model(builder, inputs, outputs, metadata or {})


def places(
    graph: QGraph, *, opset: int | None = None, integer_io: bool = False, packed: bool = False
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Where the tensors of a graph are in the file that `write` makes of it with the same options.

    Returns:
        for each tensor that isn't constant and is in the file: (its name there, how its axes lie there). Codes have 128 added.
    """
    builder, *_ = _built(graph, opset, integer_io, packed)
    return builder.places()


def _built(graph: QGraph, opset: int | None, integer_io: bool, packed: bool) -> tuple[Builder, list[Any], list[Any]]:
    if graph.target != "onnxruntime":
        raise ConfigError(
            f"expected a graph routed for 'onnxruntime'; received target={graph.target!r}; do call qi.ir.routing.route"
        )
    graph = _with_integer_borders(graph) if integer_io else graph
    builder = Builder(graph, _opset(graph, opset), packed=packed)
    inputs = [_input(builder, tensor) for tensor in graph.inputs]
    for op in graph.ops:
        if op.kind not in WRITERS:
            raise refused(op, "which has no writer")
        WRITERS.get(op.kind)(builder, op)
    once = {id(tensor): tensor for tensor in graph.outputs}  # a name can be given only once
    outputs = [_output(builder, tensor, integer_io) for tensor in once.values()]
    return builder, inputs, outputs


def _opset(graph: QGraph, asked: int | None) -> int:
    """The one asked for, or the least that serves.

    Raises:
        ConfigError: the one asked for doesn't.
    """
    least, why = _LEAST, "all that is written here"
    if any(op.kind == "unary" and str(op.attrs["function"]).startswith("gelu") for op in graph.ops):
        least, why = 20, "GELU"
    grids = [t.grid for t in graph.tensors() if t.quantized and not t.constant]
    if any(grid.bits > 16 for grid in grids):
        raise UnsupportedError(f"expected activations of at most 16 bits; received {max(grid.bits for grid in grids)}")
    weights = [t for op in graph.ops if op.kind in LINEAR | RECURRENT for t in op.inputs[1:3]]
    packed = any(is_packed(tensor) or is_grouped(tensor) for tensor in weights)
    grids += [t.grid for t in weights if t.qparams is not None and isinstance(t.qparams.grid, IntGrid)]
    if packed or any(grid.bits > 8 for grid in grids):
        least, why = 21, "packed weights, scales of groups and codes of more than 8 bits"
    if asked is not None and not least <= asked <= _MOST:
        raise ConfigError(f"expected opset from {least} (for {why}) to {_MOST}; received opset={asked}")
    return asked or least


def _with_integer_borders(graph: QGraph) -> QGraph:
    """Inputs that are only quantized are taken as codes."""
    graph = graph.copy()
    quantizers = input_quantizers(graph)
    for i, tensor in enumerate(graph.inputs):
        if id(tensor) not in quantizers:
            continue
        op = quantizers[id(tensor)]
        codes = op.y
        graph.inputs[i] = Tensor(tensor.name, codes.shape, codes.dtype, codes.qparams)
        if any(t is codes for t in graph.outputs):  # an input can't be an output as well
            op.kind, op.inputs, op.attrs = "reshape", [graph.inputs[i]], {"shape": list(codes.shape)}
        else:
            graph.ops.remove(op)
            graph.substitute(codes, graph.inputs[i])
    return graph


def _dims(tensor: Tensor) -> list[int | str]:
    return [
        int(n) if n is not None else "batch" if axis == 0 else f"{tensor.name}_{axis}"
        for axis, n in enumerate(tensor.shape)
    ]


def _type(b: Builder, tensor: Tensor, *, codes: bool) -> Any:
    dtype = b.code_type(tensor)[0] if codes else np.dtype(tensor.dtype)
    return require("onnx.helper", "onnx").np_dtype_to_tensor_dtype(dtype)


def _input(b: Builder, tensor: Tensor) -> Any:
    b.put(tensor, tensor.name, LAST)
    return require("onnx.helper", "onnx").make_tensor_value_info(
        tensor.name, _type(b, tensor, codes=tensor.quantized), _dims(tensor)
    )


def _output(b: Builder, tensor: Tensor, integer: bool) -> Any:
    """The output under the tensor's own name."""
    codes = tensor.quantized and integer
    if tensor.quantized and not integer:
        b.emit("DequantizeLinear", [b.codes(tensor, LAST), *b.scale_of(tensor)], tensor.name)
    else:
        b.emit("Identity", [b.value(tensor, LAST)], tensor.name)
    return require("onnx.helper", "onnx").make_tensor_value_info(
        tensor.name, _type(b, tensor, codes=codes), _dims(tensor)
    )


def _model(b: Builder, inputs: list[Any], outputs: list[Any], metadata: Mapping[str, str]) -> bytes:
    helper = require("onnx.helper", "onnx")
    graph = helper.make_graph(b.nodes, b.graph.name, inputs, outputs, b.initializers)
    opsets = [helper.make_opsetid("", b.opset)]
    version = helper.find_min_ir_version_for(opsets)
    if any(node.domain == MICROSOFT for node in b.nodes):
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=version, producer_name="qi", producer_version=__version__
    )
    helper.set_model_props(model, dict(metadata))
    return bytes(model.SerializeToString(deterministic=True))
