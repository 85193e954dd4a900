"""Reads a quantized ONNX file of anybody's: ONNX Runtime's quantizer (QDQ, QOperator and dynamic form), ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qi.core import IntGrid
from qi.core.affine import quantize
from qi.core.qparams import QParams
from qi.errors import FileFormatError
from qi.exporters.onnx_runtime import parsed
from qi.exporters.read_blocks import ROUNDS_INPUTS, block_weight
from qi.exporters.vendor import Constant, VendorGraph, VendorNode, VendorTensor, activation_params, along, attach_biases
from qi.optional import require

__all__ = ["read_onnx"]

# What nodes compute, by ONNX's name; others keep theirs.
_KINDS = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Max": "maximum",
    "Min": "minimum",
    "Concat": "concat",
    "Relu": "relu",
    "Clip": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softmax": "softmax",
    "LeakyRelu": "leaky_relu",
    "PRelu": "prelu",
    "Elu": "elu",
    "Gelu": "gelu",
    "HardSwish": "hard_swish",
    "LayerNormalization": "norm",
    "MaxPool": "max",
    "GlobalMaxPool": "max",
    "ReduceMax": "max",
    "AveragePool": "average",
    "GlobalAveragePool": "average",
    "ReduceMean": "average",
    "Resize": "resize",
    "Slice": "slice",
    "Split": "split",
    "Reshape": "move",
    "Flatten": "move",
    "Squeeze": "move",
    "Unsqueeze": "move",
    "Transpose": "move",
    "Pad": "move",
}
_STEPS = ("norm", "softmax")  # of real numbers there, of codes in our own files
_SAME = ("Identity", "Cast", "Dropout")
# Operations on codes, by what they compute: (operand, scale, zero point) triples, the output's scale, weight and bias by place.
_ON_CODES: dict[str, tuple[str, int, int, int | None]] = {
    # name: (what it computes, its operands as triples from 0 on, place of the output's scale, place of the bias)
    "QLinearConv": ("Conv", 2, 6, 8),
    "QLinearMatMul": ("MatMul", 2, 6, None),
    "QGemm": ("Gemm", 2, 7, 6),
    "QLinearAdd": ("Add", 2, 6, None),
    "QLinearMul": ("Mul", 2, 6, None),
    "QLinearAveragePool": ("AveragePool", 1, 3, None),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", 1, 3, None),
    "QLinearSigmoid": ("Sigmoid", 1, 3, None),
    "QLinearLeakyRelu": ("LeakyRelu", 1, 3, None),
    "QLinearSoftmax": ("Softmax", 1, 3, None),
}
_INTEGER = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
_BITS = {"int8": (8, True), "uint8": (8, False), "int16": (16, True), "uint16": (16, False), "int32": (32, True),
         "int4": (4, True), "uint4": (4, False), "int2": (2, True), "uint2": (2, False)}  # fmt: skip


def read_onnx(data: bytes) -> VendorGraph:
    """Reads a file's main graph.

    Args:
        data: the file; its constants must lie in it.

    Raises:
        FileFormatError: damaged, something else, or with constants in other files.
        MissingDependencyError: the package onnx isn't installed.
    """
    model = parsed(data)
    external = [t.name for t in _stored(model.graph) if t.data_location == 1]
    if external:
        raise FileFormatError(f"expected an ONNX file that holds its constants; {external[0]!r} lies in another file")
    try:
        return attach_biases(_Reader(model.graph, ours=model.producer_name == "qi").graph())
    except (ValueError, IndexError, TypeError, KeyError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"expected a sound ONNX file; {type(error).__name__}: {str(error)[:200]}") from error


def _stored(graph: Any) -> list[Any]:
    return [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.type == 4)]


def _computed(pairs: list[tuple[str, VendorTensor | Constant]]) -> list[tuple[str, VendorTensor]]:
    return [(name, tensor) for name, tensor in pairs if isinstance(tensor, VendorTensor)]


class _Reader:
    def __init__(self, graph: Any, *, ours: bool) -> None:
        self._graph, self._ours = graph, ours
        self._numpy: Any = require("onnx.numpy_helper", "onnx", "an ONNX file")
        self._helper: Any = require("onnx.helper", "onnx", "an ONNX file")
        self._table: dict[str, VendorTensor | Constant] = {}
        self._types: dict[int, tuple[int, bool]] = {}  # bits and sign of constants of codes, by id
        self._dynamic: dict[str, Constant | None] = {}  # scales known at run time only, times a constant one
        self._integer: dict[
            int, VendorNode
        ] = {}  # products of integers whose scales are still to come, by id of the output
        self._factors: dict[str, list[str]] = {}  # the scales that a constant was made of: input's, weight's, output's
        self._steps: dict[int, str] = {}  # the scale of what is given in steps of it, by id
        self._nodes: list[VendorNode] = []
        self._special: dict[str, Callable[[Any, list[str], dict[str, Any]], None]] = {
            "QuantizeLinear": self._quantize,
            "DequantizeLinear": self._dequantize,
            "DynamicQuantizeLinear": self._quantize_dynamically,
            "QLinearConcat": self._concat_codes,
            "Conv": self._conv,
            "ConvTranspose": self._conv,
            "Gemm": self._gemm,
            "MatMul": self._matmul,
            "MatMulNBits": self._blocks,
            "Gather": self._gather,
            "Mul": self._mul,
            "Div": self._div,
            "Exp": self._exp,
            "Constant": self._constant,
        }

    def graph(self) -> VendorGraph:
        for tensor in self._graph.initializer:
            self._keep(tensor.name, tensor)
        inputs = [(given.name, self._of(given.name)) for given in self._graph.input]
        for node in self._graph.node:
            self._add(node)
        outputs = [(given.name, self._of(given.name)) for given in self._graph.output]
        return VendorGraph(_computed(inputs), _computed(outputs), self._nodes)

    # Tensors ------------------------------------------------------------------------------------------------------------

    def _keep(self, name: str, proto: Any) -> None:
        array = self._numpy.to_array(proto)
        bits, signed = _BITS.get(str(array.dtype), (0, True))
        if bits and bits < 8:
            array = array.astype(np.int8 if signed else np.uint8)
        constant = Constant(name, array, bits=bits)
        self._table[name] = constant

    def _of(self, name: str) -> VendorTensor | Constant:
        return self._table.setdefault(name, VendorTensor(name))

    def _array(self, name: str) -> np.ndarray | None:
        """The values of a constant; None of what is computed, or isn't there."""
        found = self._table.get(name) if name else None
        return found.data if isinstance(found, Constant) and not found.quantized else None

    def _params(self, name: str, scale: str, zero_point: str) -> QParams | None:
        """Scale and zero point of an activation by the names of their constants."""
        factors, zeros = self._array(scale), self._array(zero_point)
        if factors is None or (zeros is None and zero_point):
            return None
        bits, signed = (8, False) if zeros is None else _BITS.get(str(zeros.dtype), (0, True))
        found = self._table.get(zero_point)
        bits = found.bits if isinstance(found, Constant) and found.bits else bits
        return (
            activation_params(name, factors, [] if zeros is None else zeros, bits, signed) if 0 < bits <= 16 else None
        )

    def _scaled(self, codes: Constant, scale: str, zero_point: str, axis: int, block: int = 0) -> Constant:
        """A constant of codes with its scales; the codes alone where these aren't known."""
        factors, zeros = self._array(scale), self._array(zero_point)
        if factors is None or (zeros is None and zero_point):
            return codes
        data, rank = codes.data, codes.data.ndim
        zeros = np.zeros(factors.shape, np.int64) if zeros is None else zeros.astype(np.int64)
        if block:
            spread = [np.repeat(a, block, axis).take(range(data.shape[axis]), axis) for a in (factors, zeros)]
            if any(a.shape != data.shape for a in spread):
                raise FileFormatError(f"expected a scale for each {block} of {codes.name!r}; received {factors.shape}")
        else:
            size = data.shape[axis] if -rank <= axis < rank else 1
            spread = [along(codes.name, a, rank, axis, size) for a in (factors, zeros)]
            spread[1] = np.broadcast_to(spread[1], spread[0].shape)
        return self._checked(Constant(codes.name, data, spread[0].astype(np.float32), spread[1], codes.bits))

    @staticmethod
    def _checked(constant: Constant) -> Constant:
        if constant.scale is not None and not np.all(np.isfinite(constant.scale)):
            raise FileFormatError(f"expected the scales of {constant.name!r} to be numbers")
        return constant.upright()

    # Nodes --------------------------------------------------------------------------------------------------------------

    def _add(self, node: Any) -> None:
        names = list(node.input)
        attrs = {a.name: self._helper.get_attribute_value(a) for a in node.attribute if a.type not in (5, 10)}
        if node.op_type in self._special:
            self._special[node.op_type](node, names, attrs)
        elif node.op_type in _SAME:
            self._table[node.output[0]] = self._of(names[0])
        elif node.op_type in _ON_CODES:
            self._on_codes(node, names, attrs)
        elif node.op_type in _INTEGER:
            self._integers(node, names, attrs)
        else:
            self._plain(node, names)

    def _outputs(self, node: Any) -> list[VendorTensor]:
        made = [VendorTensor(name) for name in node.output]
        self._table.update(zip(node.output, made, strict=True))
        return made

    def _emit(self, kind: str, names: list[str], outputs: list[VendorTensor], **weights: Any) -> VendorNode:
        given = [self._of(name) for name in names if name]
        computed = [t for t in given if isinstance(t, VendorTensor)]
        node = VendorNode(kind, computed, outputs, constants=[t for t in given if isinstance(t, Constant)], **weights)
        self._nodes.append(node)
        return node

    def _plain(self, node: Any, names: list[str]) -> None:
        kind = _KINDS.get(node.op_type, node.op_type)
        given = self._table.get(names[0]) if names else None
        if kind == "move" and isinstance(given, Constant):
            attrs = {a.name: self._helper.get_attribute_value(a) for a in node.attribute}
            perm = attrs.get("perm")
            self._table[node.output[0]] = (
                given.changed(lambda a: a.transpose(perm)) if node.op_type == "Transpose" else given
            )
            return
        self._emit(kind, names, self._outputs(node)).real = kind in _STEPS and not self._ours

    def _constant(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        del names
        if "value" in attrs:
            self._keep(node.output[0], attrs["value"])
        else:
            numbers = next((v for k, v in attrs.items() if k.startswith("value_") and "string" not in k), None)
            dtype = np.float32 if any("float" in key for key in attrs) else np.int64
            self._table[node.output[0]] = Constant(
                node.output[0], np.asarray(numbers if numbers is not None else 0, dtype), bits=0
            )

    # Codes --------------------------------------------------------------------------------------------------------------

    def _quantize(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        x, zero = self._of(names[0]), names[2] if len(names) > 2 else ""
        if isinstance(x, Constant):
            self._table[node.output[0]] = self._rounded(x, names[1], zero, attrs.get("axis", 1))
            return
        outputs = self._outputs(node)
        outputs[0].qparams = self._params(node.output[0], self._steps.get(id(x), names[1]), zero)
        self._emit("quantize", names[:1], outputs)

    def _rounded(self, x: Constant, scale: str, zero: str, axis: int) -> Constant:
        """Codes of a constant of real numbers, as some quantizers leave to the runtime to make."""
        found = self._table.get(zero)
        bits, signed = (
            (8, False) if not isinstance(found, Constant) else (found.bits or 8, found.data.dtype.kind == "i")
        )
        if bits > 16:
            return x
        empty = Constant(x.name, np.zeros(x.data.shape, np.int8), bits=bits)
        scaled = self._scaled(empty, scale, zero, axis)
        if scaled.scale is None or scaled.zero_point is None:
            return x
        codes = quantize(x.data.astype(np.float32), scaled.scale, scaled.zero_point, IntGrid(bits, signed=signed))
        return Constant(x.name, np.asarray(codes), bits=bits)

    def _dequantize(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        x, zero = self._of(names[0]), names[2] if len(names) > 2 else ""
        if isinstance(x, Constant):
            self._table[node.output[0]] = self._scaled(
                x, names[1], zero, attrs.get("axis", 1), attrs.get("block_size", 0)
            )
            return
        if x.qparams is None:
            moved = self._moved(x) if self._ours else None  # our files also take codes as they are, in steps of 1
            x.qparams = moved or self._params(names[0], names[1], zero)
        self._table[node.output[0]] = x

    def _moved(self, x: VendorTensor) -> Any:
        """The parameters of codes that are only moved to where they are; None where there are none."""
        while x.qparams is None:
            before = next((n for n in self._nodes if n.kind == "move" and n.outputs[0] is x and n.inputs), None)
            if before is None:
                return None
            x = before.inputs[0]
        return x.qparams

    def _quantize_dynamically(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        """Codes of scales that depend on the data: to us, real numbers."""
        del attrs
        self._table[node.output[0]] = self._of(names[0])
        self._dynamic[node.output[1]] = None

    def _on_codes(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        kind, operands, place, bias = _ON_CODES[node.op_type]
        for i in range(operands):
            self._read_as(*names[3 * i : 3 * i + 3])
        # Constants get their scales for this use only.
        kept = {
            name: self._table[name] for name in names[: 3 * operands : 3] if isinstance(self._table[name], Constant)
        }
        for i in range(operands):
            name, scale, zero = names[3 * i : 3 * i + 3]
            codes = self._table[name]
            if isinstance(codes, Constant):
                axis = codes.data.ndim - 1 if kind == "MatMul" or (kind == "Gemm" and not attrs.get("transB", 0)) else 0
                self._table[name] = self._scaled(codes, scale, zero, axis)
        given = names[: 3 * operands : 3] + ([names[bias]] if bias is not None and bias < len(names) else [])
        if kind in self._special:
            self._special[kind](node, given, attrs)
        else:
            self._emit(_KINDS[kind], given, self._outputs(node))
        if bias is not None:
            self._scale_bias(self._nodes[-1])
        self._table.update(kept)
        zero = names[place + 1] if place + 1 < len(names) else ""
        result = self._table[node.output[0]]
        if place < len(names) and isinstance(result, VendorTensor):
            result.qparams = self._params(node.output[0], names[place], zero)

    @staticmethod
    def _scale_bias(node: VendorNode) -> None:
        """The bias of an operation on codes is at the scale of its sums."""
        bias, weight, params = node.bias, node.weight, node.inputs[0].qparams if node.inputs else None
        if bias is None or bias.quantized or weight is None or weight.scale is None or params is None:
            return
        scale = (params.scale.reshape(-1) * weight.scale.reshape(-1)).astype(np.float32)
        if bias.data.ndim == 1 and scale.size in (1, bias.data.size):
            node.bias = Constant(bias.name, bias.data, scale, np.zeros(scale.shape, np.int64), 32)

    def _concat_codes(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        del attrs
        for i in range(2, len(names) - 2, 3):
            self._read_as(*names[i : i + 3])
        outputs = self._outputs(node)
        outputs[0].qparams = self._params(node.output[0], names[0], names[1])
        self._emit("concat", names[2::3], outputs)

    def _read_as(self, name: str, scale: str, zero: str) -> None:
        """Codes that come in, or were moved, have the scale that they are read with."""
        tensor = self._of(name)
        if isinstance(tensor, VendorTensor) and tensor.qparams is None:
            tensor.qparams = self._params(name, scale, zero)

    def _integers(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        """Products of integers, of dynamic quantization: the scales come in a later product."""
        codes = self._table.get(names[1])
        zero = self._array(names[3]) if len(names) > 3 else None
        self._special[_INTEGER[node.op_type]](node, names[:2], attrs)
        made = self._nodes[-1]
        if isinstance(codes, Constant) and made.weight is not None:
            zeros = np.zeros(1, np.int64) if zero is None else zero.astype(np.int64)
            made.constants, made.dynamic = [Constant("zero_point", zeros)], True
            self._integer[id(made.outputs[0])] = made

    def _mul(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        """A product; of two scales, or of a product of integers with its scale, one that is known already."""
        del attrs
        if self._folded(node, names, np.multiply) or self._unpacked(node, names):
            return
        scales = [name for name in names if name in self._dynamic]
        others = [name for name in names if name not in self._dynamic]
        if len(scales) == 1 and len(others) == 1:
            other = self._of(others[0])
            if isinstance(other, Constant):
                self._dynamic[node.output[0]] = other
                return
            found, constant = self._integer.get(id(other)), self._dynamic[scales[0]]
            if found is not None and constant is not None:
                self._finish(found, constant)
                self._table[node.output[0]] = other
                return
        self._emit("mul", names, self._outputs(node))

    def _div(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        del attrs
        if not self._folded(node, names, np.divide):
            self._emit("div", names, self._outputs(node))

    def _folded(self, node: Any, names: list[str], function: Callable[..., np.ndarray]) -> bool:
        """Computes a constant from two, and remembers these; whether they are such."""
        arrays = [self._array(name) for name in names]
        if len(arrays) != 2 or arrays[0] is None or arrays[1] is None:
            return False
        self._table[node.output[0]] = Constant(node.output[0], np.asarray(function(*arrays)), bits=0)
        self._factors[node.output[0]] = [*self._factors.get(names[0], names[:1]), names[1]]
        return True

    def _unpacked(self, node: Any, names: list[str]) -> bool:
        """Gives a product of codes its scales, which our files with packed weights multiply with afterwards (`onnx_packed`)."""
        parts, sums = self._factors.get(names[1], []), self._of(names[0])
        made = next((n for n in self._nodes if n.kind == "linear" and n.outputs[0] is sums), None)
        weight, x = (made.weight, made.inputs[0].qparams) if made is not None else (None, None)
        if made is None or weight is None or weight.scale is None or x is None or len(parts) != 3:
            return False
        sx, sw, _ = (np.asarray(self._array(name), np.float32) for name in parts)
        scale = sw.reshape(weight.scale.shape)
        made.weight = Constant(weight.name, weight.data, scale, weight.zero_point, weight.bits)
        made.inputs[0].qparams = QParams(sx.reshape(()), x.zero_point, x.grid)
        if made.bias is not None:
            of_sums = (sx * scale).reshape(-1)
            made.bias = Constant(made.bias.name, made.bias.data, of_sums, np.zeros(of_sums.shape, np.int64), 32)
        self._table[node.output[0]], self._steps[id(sums)] = sums, parts[2]
        return True

    def _finish(self, node: VendorNode, scale: Constant) -> None:
        weight = node.weight
        if weight is None:
            return
        rank, size = weight.data.ndim, weight.data.shape[-1]
        factors, zeros = (along(weight.name, a, rank, -1, size) for a in (scale.data, node.constants[0].data))
        zeros = np.broadcast_to(zeros, factors.shape)
        node.weight = Constant(weight.name, weight.data, factors.astype(np.float32), zeros, weight.bits)
        node.constants = []

    # Products -----------------------------------------------------------------------------------------------------------

    def _weighted(self, node: Any, names: list[str], place: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
        weight, x = self._of(names[place]), self._of(names[1 - place])
        if not isinstance(weight, Constant) or not isinstance(x, VendorTensor):
            self._emit("matmul", names, self._outputs(node))
            return
        bias = self._table.get(names[2]) if len(names) > 2 and names[2] else None
        bias = bias if isinstance(bias, Constant) else None
        self._emit(
            "linear", names[1 - place : 2 - place], self._outputs(node), weight=weight.changed(change), bias=bias
        )

    def _conv(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        """[out, in, *window] becomes [*window, in, out]; of a transposed one, [in, out, *window] becomes [*window, out, in]."""
        del attrs
        self._weighted(node, names, 1, lambda a: a.transpose(*range(2, a.ndim), 1, 0))

    def _gemm(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        plain = attrs.get("alpha", 1.0) == 1.0 and attrs.get("beta", 1.0) == 1.0 and not attrs.get("transA", 0)
        if not plain:
            self._emit("matmul", names, self._outputs(node))
            return
        self._weighted(node, names, 1, (lambda a: a.T) if attrs.get("transB", 0) else lambda a: a)

    def _matmul(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        """A product of matrices; where weights come in blocks, ONNX Runtime makes it one that rounds what it takes."""
        del attrs
        self._weighted(node, names, 1, lambda a: a)
        made = self._nodes[-1]
        scale = made.weight.scale if made.weight is not None else None
        made.dynamic = scale is not None and made.weight is not None and scale.shape == made.weight.data.shape

    def _blocks(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        """A product with weights of few bits and a scale for each block of them."""
        codes, scales, zeros = (self._array(name) for name in (*names[1:4], "")[:3])
        weight = block_weight(names[1], codes, scales, zeros, attrs)
        if weight is None:
            self._emit("matmul", names, self._outputs(node))
            return
        bias = self._table.get(names[5]) if len(names) > 5 else None
        bias = bias if isinstance(bias, Constant) else None
        made = self._emit("linear", names[:1], self._outputs(node), weight=self._checked(weight), bias=bias)
        made.dynamic = attrs.get("accuracy_level", 0) == ROUNDS_INPUTS

    def _gather(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        table = self._of(names[0])
        if isinstance(table, Constant) and table.data.ndim == 2 and attrs.get("axis", 0) == 0:
            self._emit("embedding", names[1:2], self._outputs(node), weight=table)
        else:
            self._emit("slice", names, self._outputs(node))

    def _exp(self, node: Any, names: list[str], attrs: dict[str, Any]) -> None:
        """Of a LogSoftmax it is a softmax."""
        del attrs
        before = next((n for n in self._nodes if n.outputs[0] is self._of(names[0]) and n.kind == "LogSoftmax"), None)
        outputs = self._outputs(node)
        if before is None:
            self._emit("Exp", names, outputs)
        else:
            before.kind, before.outputs, before.real = "softmax", outputs, not self._ours
