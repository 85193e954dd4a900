"""Reads a LiteRT file of anybody's: TFLiteConverter's, AI Edge Quantizer's, ours. No runtime and no schema package is needed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qi.core.packing import unpack
from qi.errors import FileFormatError, InputError
from qi.exporters.flatbuffer import read
from qi.exporters.litert_check import LAYOUT, check
from qi.exporters.litert_file import DIGEST
from qi.exporters.vendor import Constant, VendorGraph, VendorNode, VendorTensor, activation_params, along, attach_biases

__all__ = ["CODES", "read_litert"]

# Of the options of an operator, only small numbers are read: the first bytes of its fields.
_OPTIONS = {slot: (str(slot), "b") for slot in range(6)}
_LAYOUT = {
    **LAYOUT,
    "Operator": {**LAYOUT["Operator"], 3: ("options_type", "B"), 4: ("options", "Options")},
    "Options": _OPTIONS,
    "Quantization": {**LAYOUT["Quantization"], 4: ("details_type", "B"), 5: ("details", "Blocks")},
    "Blocks": {0: ("scales", "i"), 1: ("zero_points", "i"), 2: ("size", "i")},
}
_BLOCKWISE = 2  # of the kinds of details

# Builtin operators by their number in the schema: (name there, what they compute).
CODES: dict[int, tuple[str, str]] = {
    0: ("ADD", "add"),
    1: ("AVERAGE_POOL_2D", "average"),
    2: ("CONCATENATION", "concat"),
    3: ("CONV_2D", "linear"),
    4: ("DEPTHWISE_CONV_2D", "linear"),
    6: ("DEQUANTIZE", "dequantize"),
    7: ("EMBEDDING_LOOKUP", "embedding"),
    9: ("FULLY_CONNECTED", "linear"),
    14: ("LOGISTIC", "sigmoid"),
    17: ("MAX_POOL_2D", "max"),
    18: ("MUL", "mul"),
    19: ("RELU", "relu"),
    20: ("RELU_N1_TO_1", "relu"),
    21: ("RELU6", "relu"),
    22: ("RESHAPE", "move"),
    23: ("RESIZE_BILINEAR", "resize"),
    25: ("SOFTMAX", "softmax"),
    28: ("TANH", "tanh"),
    34: ("PAD", "move"),
    36: ("GATHER", "embedding"),
    39: ("TRANSPOSE", "move"),
    40: ("MEAN", "average"),
    41: ("SUB", "sub"),
    42: ("DIV", "div"),
    43: ("SQUEEZE", "move"),
    45: ("STRIDED_SLICE", "slice"),
    49: ("SPLIT", "split"),
    53: ("CAST", "move"),
    54: ("PRELU", "prelu"),
    55: ("MAXIMUM", "maximum"),
    57: ("MINIMUM", "minimum"),
    59: ("NEG", "negative"),
    60: ("PADV2", "move"),
    65: ("SLICE", "slice"),
    67: ("TRANSPOSE_CONV", "linear"),
    69: ("TILE", "tile"),
    70: ("EXPAND_DIMS", "move"),
    76: ("RSQRT", "rsqrt"),
    77: ("SHAPE", "shape"),
    82: ("REDUCE_MAX", "max"),
    83: ("PACK", "pack"),
    97: ("RESIZE_NEAREST_NEIGHBOR", "resize"),
    98: ("LEAKY_RELU", "leaky_relu"),
    99: ("SQUARED_DIFFERENCE", "squared_difference"),
    102: ("SPLIT_V", "split"),
    111: ("ELU", "elu"),
    114: ("QUANTIZE", "quantize"),
    117: ("HARD_SWISH", "hard_swish"),
    126: ("BATCH_MATMUL", "linear"),
    132: ("CONV_3D", "linear"),
    150: ("GELU", "gelu"),
    152: ("RELU_0_TO_1", "relu"),
}
# Where the options of an operator say which activation is fused.
_FUSED = {"ADD": 0, "SUB": 0, "MUL": 0, "DIV": 0, "FULLY_CONNECTED": 0, "CONCATENATION": 1, "CONV_2D": 3, "TRANSPOSE_CONV": 3,
          "DEPTHWISE_CONV_2D": 4, "CONV_3D": 4, "AVERAGE_POOL_2D": 5, "MAX_POOL_2D": 5}  # fmt: skip
_ACTIVATIONS = {1: "relu", 2: "relu", 3: "relu", 4: "tanh"}
# By the number of a type: (numpy's, bits of a code, signed).
_TYPES: dict[int, tuple[str, int, bool]] = {
    0: ("<f4", 0, True),
    1: ("<f2", 0, True),
    2: ("<i4", 32, True),
    3: ("u1", 8, False),
    4: ("<i8", 64, True),
    7: ("<i2", 16, True),
    9: ("i1", 8, True),
    10: ("<f8", 0, True),
    16: ("<u2", 16, False),
    17: ("packed", 4, True),
    19: ("packed", 2, True),
}
_GRIDS = (2, 4, 8, 16)


def read_litert(data: bytes) -> VendorGraph:
    """Reads the main graph of a file.

    Args:
        data: the file.

    Raises:
        FileFormatError: damaged, cut off, or something else.
    """
    contents = check(data, changed=True)
    graph = attach_biases(_Reader(data).graph())
    graph.changed = DIGEST in contents.metadata and not contents.sealed
    return graph


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._model: dict[str, Any] = dict(read(data, _LAYOUT, "Model", b"TFL3"))
        self._graph: Any = self._model["subgraphs"][0]
        self._table = [self._tensor(entry) for entry in self._graph.get("tensors", [])]
        self._nodes: list[VendorNode] = []

    def graph(self) -> VendorGraph:
        for operator in self._graph.get("operators", []):
            self._add(operator)
        return VendorGraph(self._ends("inputs"), self._ends("outputs"), self._nodes)

    # Tensors ------------------------------------------------------------------------------------------------------------

    def _ends(self, which: str) -> list[tuple[str, VendorTensor]]:
        """Inputs or outputs by the names of the signature, where there is one."""
        tensors, numbers = self._graph.get("tensors", []), self._graph.get(which, [])
        names = {number: str(tensors[number].get("name", "")) for number in numbers}
        for signature in self._model.get("signatures", [])[:1]:
            names.update((pair.get("tensor", 0), pair.get("name", "")) for pair in signature.get(which, []))
        found = [(names[number], self._table[number]) for number in numbers]
        return [(name, tensor) for name, tensor in found if isinstance(tensor, VendorTensor)]

    def _tensor(self, entry: Any) -> VendorTensor | Constant:
        name, kind, shape = str(entry.get("name", "")), entry.get("type", 0), tuple(entry.get("shape", []))
        how = entry.get("quantization", {})
        scale, zero_point = how.get("scale", []), how.get("zero_point", [])
        numpy_type, bits, signed = _TYPES.get(kind, ("", 0, True))
        stored = self._stored(entry)
        if not stored or not numpy_type or "sparsity" in entry:
            known = len(scale) == 1 and bits in _GRIDS
            return VendorTensor(name, activation_params(name, scale, zero_point, bits, signed) if known else None)
        values = self._values(name, stored, numpy_type, bits, shape)
        if how.get("details_type") == _BLOCKWISE and bits:
            return self._blockwise(name, values, how.get("details", {}), bits)
        if not scale or not bits:
            return Constant(name, values)
        axis = how.get("axis", 0)
        size = shape[axis] if 0 <= axis < len(shape) else 1
        zeros = zero_point or [0] * len(scale)
        if not all(map(math.isfinite, scale)):
            raise FileFormatError(f"expected the scales of {name!r} to be numbers; received {scale[:4]}")
        factors, offsets = (along(name, numbers, values.ndim, axis, size) for numbers in (scale, zeros))
        return Constant(name, values, factors.astype(np.float32), offsets.astype(np.int64), bits)

    def _blockwise(self, name: str, values: np.ndarray, how: Any, bits: int) -> Constant:
        """Codes with a scale for each few of them along the last axis: the scales are a tensor of their own."""
        size, entries = how.get("size", 0), self._graph.get("tensors", [])
        found = []
        for number in (how.get("scales", -1), how.get("zero_points", -1)):
            known = self._tensor(entries[number]) if 0 <= number < len(entries) else None
            found.append(known.data if isinstance(known, Constant) and not known.quantized else None)
        scales, zeros = found
        fits = size > 0 and scales is not None and scales.shape == (*values.shape[:-1], -(-values.shape[-1] // size))
        if not fits or scales is None or (zeros is not None and zeros.shape != scales.shape):
            raise FileFormatError(f"expected a scale for each {size} codes of {name!r} of shape {values.shape}")
        if not np.all(np.isfinite(scales)):
            raise FileFormatError(f"expected the scales of {name!r} to be numbers")
        zeros = np.zeros(scales.shape) if zeros is None else zeros
        spread = [np.repeat(array, size, -1)[..., : values.shape[-1]] for array in (scales, zeros)]
        return Constant(name, values, spread[0].astype(np.float32), spread[1].astype(np.int64), bits).upright()

    def _stored(self, entry: Any) -> bytes:
        """The bytes of a constant: within the buffer's table, or behind all tables in a large file."""
        buffer = self._model.get("buffers", [])[entry.get("buffer", 0)]
        start, size = buffer.get("data", (0, 0))
        if not size and buffer.get("offset", 0) > 1:
            start, size = buffer["offset"], buffer.get("size", 0)
        return self._data[start : start + size]

    def _values(self, name: str, stored: bytes, numpy_type: str, bits: int, shape: tuple[int, ...]) -> np.ndarray:
        try:
            if numpy_type == "packed":
                return unpack(np.frombuffer(stored, np.uint8), bits, shape, signed=True)
            return np.frombuffer(stored, numpy_type).reshape(shape)
        except (ValueError, InputError) as error:
            raise FileFormatError(
                f"expected {name!r} of shape {list(shape)}; its buffer has {len(stored)} bytes"
            ) from error

    # Operators ----------------------------------------------------------------------------------------------------------

    def _add(self, operator: Any) -> None:
        code = self._model["codes"][operator.get("code", 0)]
        number = max(code.get("code", 0), code.get("old", 0))
        name, kind = CODES.get(number, (f"operator {number}", f"operator {number}"))
        inputs = [self._table[i] for i in operator.get("inputs", []) if i >= 0]
        numbers = operator.get("outputs", [])
        if kind == "dequantize" and inputs and numbers:
            self._table[numbers[0]] = inputs[0]
            return
        outputs = [t for i in numbers if isinstance(t := self._table[i], VendorTensor)]
        if not outputs:
            return
        if kind == "linear":
            node = _linear(name, operator, inputs, outputs)
            self._tell_rounding(name, operator, node)
        elif kind == "embedding":
            node = _embedding(name, inputs, outputs)
        else:  # what is only moved comes first; how is told by the others, which may be computed
            node = VendorNode(kind, *_split(inputs[:1] if kind == "move" else inputs, outputs))
        self._nodes.append(node)
        fused = _ACTIVATIONS.get(self._option(operator, _FUSED.get(name, -1)))
        if fused:
            before = VendorTensor(f"{outputs[0].name}/before")
            node.outputs = [before]
            self._nodes.append(VendorNode(fused, [before], outputs))

    def _tell_rounding(self, name: str, operator: Any, node: VendorNode) -> None:
        """Where codes of weights meet real numbers in an operator, the runtime rounds these; twins do so in plain products."""
        weight, dense = node.weight, name == "FULLY_CONNECTED"
        if weight is None or weight.scale is None or node.inputs[0].qparams is not None:
            return
        entry = self._graph["tensors"][operator["inputs"][1]]
        meets = _TYPES.get(entry.get("type", 0), ("", 0, True))[1] > 0  # otherwise weights were made real before
        node.plain = dense and not meets
        node.dynamic = meets and not (dense and weight.scale.size in (1, weight.data.shape[-1]))

    @staticmethod
    def _option(operator: Any, slot: int) -> int:
        return int(operator.get("options", {}).get(str(slot), 0))


def _split(
    inputs: list[Any], outputs: list[VendorTensor]
) -> tuple[list[VendorTensor], list[VendorTensor], None, None, list[Constant]]:
    given = [t for t in inputs if isinstance(t, VendorTensor)]
    return given, outputs, None, None, [t for t in inputs if isinstance(t, Constant)]


def _linear(name: str, operator: Any, inputs: list[Any], outputs: list[VendorTensor]) -> VendorNode:
    """A product with weights, their axes as Keras has them; one of two tensors where none is constant."""
    places = (2, 1, 3) if name == "TRANSPOSE_CONV" else (0, 1, 2)
    x, weight, bias = (inputs[place] if place < len(inputs) else None for place in places)
    change = _CHANGES.get(name, lambda a: a)
    if name == "BATCH_MATMUL" and operator.get("options", {}).get("1", 0):
        change = lambda a: a.swapaxes(-1, -2)
    if (
        not isinstance(x, VendorTensor)
        or not isinstance(weight, Constant)
        or weight.data.ndim != _RANKS.get(name, weight.data.ndim)
    ):
        return VendorNode("matmul", *_split(inputs, outputs))
    if weight.data.ndim < 2:
        return VendorNode("matmul", *_split(inputs, outputs))
    return VendorNode("linear", [x], outputs, weight.changed(change), bias if isinstance(bias, Constant) else None)


_RANKS = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 4, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 4, "CONV_3D": 5}
_CHANGES: dict[str, Any] = {
    "CONV_2D": lambda a: a.transpose(1, 2, 3, 0),
    "DEPTHWISE_CONV_2D": lambda a: a[0],
    "FULLY_CONNECTED": lambda a: a.T,
    "TRANSPOSE_CONV": lambda a: a.transpose(1, 2, 0, 3),
}


def _embedding(name: str, inputs: list[Any], outputs: list[VendorTensor]) -> VendorNode:
    """The rows of a constant table; anything else is a choice of values."""
    table, indices = (inputs[1:2], inputs[:1]) if name == "EMBEDDING_LOOKUP" else (inputs[:1], inputs[1:2])
    if table and isinstance(table[0], Constant) and table[0].data.ndim == 2:
        return VendorNode("embedding", [t for t in indices if isinstance(t, VendorTensor)], outputs, table[0])
    return VendorNode("slice", *_split(inputs, outputs))
