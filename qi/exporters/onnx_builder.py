"""What the writers of ONNX operations build with: names, constants, codes, real numbers, and two layouts of each tensor.

Codes lie in the file as uint8, those of the graph with 128 added: with int8 activations ONNX Runtime leaves parts of a
branching graph in float. A tensor exists in the layout of the graph (channels last), in that of ONNX's convolutions (channels
first) or in both; a Transpose of codes is written where a layout is asked for that isn't there yet, so that between two
convolutions there is none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from qi.errors import ConfigError, UnsupportedError
from qi.ir.arithmetic import code_range
from qi.ir.graph import Op, QGraph, Tensor, take_name
from qi.ir.linear import LINEAR
from qi.optional import require
from qi.registry import Registry

__all__ = ["FIRST", "LAST", "WRITERS", "Builder", "OpWriter", "axis_in", "constant_data", "order", "refused", "writer"]

LAST, FIRST = "last", "first"  # where the channels are
# Between DequantizeLinear and QuantizeLinear, ONNX Runtime makes integer kernels of these (it rounds real weights to eight bits
# for that), and leaves out a Clip that seems to change nothing. Where they are to be done in real numbers, for that such a kernel
# would be wrong, a Max with the least number there is stands in between.
_JOINED = ("add", "sub", "mul", "mean", "avg_pool2d", *LINEAR)

OpWriter: TypeAlias = Callable[["Builder", Op], None]
WRITERS: Registry[OpWriter] = Registry("writer of an ONNX operation")


def writer(*kinds: str) -> Callable[[OpWriter], OpWriter]:
    """Registers what writes operations of these kinds."""

    def add(function: OpWriter) -> OpWriter:
        for kind in kinds:
            WRITERS.register(kind)(function)
        return function

    return add


def refused(op: Op, what: str, way_out: str = "leave it out, or export to another format") -> UnsupportedError:
    """The error for an operation that can't be written."""
    return UnsupportedError(
        f"expected operations that an ONNX file for ONNX Runtime can hold; received {op.kind!r} of layer {op.source!r}, {what}; "
        f"do {way_out}"
    )


def constant_data(tensor: Tensor) -> np.ndarray:
    """The codes of a constant, or its values where it has no codes.

    Raises:
        ConfigError: it is no constant.
    """
    if tensor.data is None:
        raise ConfigError(f"expected {tensor.name!r} to be a constant")
    return tensor.data


def order(rank: int) -> list[int]:
    """The axes of a channels-last tensor in channels-first order."""
    return [0, rank - 1, *range(1, rank - 1)] if rank > 2 else list(range(rank))


def axis_in(layout: str, rank: int, axis: int) -> int:
    """Where an axis of the graph's tensor lies in a layout."""
    return order(rank).index(axis) if layout == FIRST else axis


class Builder:
    """A file that grows.

    Args:
        graph: routed for ONNX Runtime.
        opset: of the file.
        packed: whether to use ONNX Runtime's own operations on packed weights, which no other runtime has.
    """

    def __init__(self, graph: QGraph, opset: int, *, packed: bool = False) -> None:
        self.graph, self.opset, self.packed = graph, opset, packed
        self._helper: Any = require("onnx.helper", "onnx", "an ONNX file")
        self._numpy: Any = require("onnx.numpy_helper", "onnx", "an ONNX file")
        self.types: Any = require("onnx", "onnx", "an ONNX file").TensorProto
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._dequantized = {id(op.y) for op in graph.ops if op.kind == "dequantize"}
        self._names = {t.name for t in (*graph.inputs, *graph.outputs)}
        self._shared: dict[Any, str] = {}
        self._codes: dict[tuple[Tensor, str], str] = {}
        self._reals: dict[tuple[Tensor, str], str] = {}

    # Names, constants, nodes ------------------------------------------------------------------------------------------------

    def name(self, hint: str) -> str:
        """The hint, or the first of hint_1, hint_2... that nothing has."""
        return take_name(hint, self._names)

    def constant(self, array: Any, hint: str = "constant", *, packed: bool = False) -> str:
        """A constant of the file; equal ones are written once.

        Args:
            array: its values. A scalar stays one: rank 1 would keep ONNX Runtime from its integer kernels.
            hint: its name, if that is free.
            packed: two codes of four bits to the byte.
        """
        array = np.array(array, order="C")
        key = (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest(), packed)
        if key not in self._shared:
            name = self.name(hint)
            proto = self._packed(array, name) if packed else self._numpy.from_array(array, name)
            self.initializers.append(proto)
            self._shared[key] = name
        return self._shared[key]

    def _packed(self, codes: np.ndarray, name: str) -> Any:
        """The lower half of a byte holds the first of two codes."""
        flat = (codes.reshape(-1) & 15).astype(np.uint8)
        flat = np.append(flat, np.uint8(0)) if flat.size % 2 else flat
        return self._helper.make_tensor(
            name, self.types.INT4, codes.shape, (flat[::2] | flat[1::2] << 4).tobytes(), raw=True
        )

    def node(self, kind: str, inputs: Iterable[str], hint: str = "", /, **attrs: Any) -> str:
        """Adds a node of one output and gives the output's name."""
        output = self.name(hint or kind)
        self.emit(kind, inputs, output, **attrs)
        return output

    def emit(self, kind: str, inputs: Iterable[str], output: str, /, **attrs: Any) -> None:
        """Adds a node that gives an output of the file, whose name is taken already."""
        self.nodes.append(self._helper.make_node(kind, list(inputs), [output], **attrs))

    def with_scales(
        self,
        codes: np.ndarray,
        scale: np.ndarray,
        zero: np.ndarray | None,
        hint: str,
        *,
        axis: int = 0,
        packed: bool = False,
        block_size: int = 0,
    ) -> str:
        """The real numbers of constant codes, with a scale for each entry along an axis.

        Args:
            codes: as they lie in the file.
            scale: float32, one for each entry, or a scalar.
            zero: zero points like them, of the codes' type; None: 0.
            hint: name of the codes, if that is free.
            axis: that of the scales.
            packed: as of `constant`.
            block_size: how many entries along the axis share a scale; then scales and zero points have the codes' rank.
        """
        given = [self.constant(codes, hint, packed=packed), self.constant(scale, f"{hint}:scale")]
        if zero is not None:
            given.append(self.constant(zero, "zero_points", packed=packed))
        blocks = {"block_size": block_size} if block_size else {}
        return self.node("DequantizeLinear", given, f"{hint}:real", axis=axis, **blocks)

    def indices(self, values: Sequence[int]) -> str:
        """A constant of int64."""
        return self.constant(np.asarray(values, np.int64), "indices")

    def type_of(self, dtype: np.dtype) -> int:
        """ONNX's number of a type."""
        return int(self._helper.np_dtype_to_tensor_dtype(dtype))

    # Codes --------------------------------------------------------------------------------------------------------------------

    def code_type(self, tensor: Tensor) -> tuple[np.dtype, int]:
        """Gives (the type of a tensor's codes in the file, what is added to those of the graph)."""
        grid = tensor.grid
        if not grid.signed:
            return np.dtype(np.uint8 if grid.bits <= 8 else np.uint16), 0
        return (np.dtype(np.uint8), 128) if grid.bits <= 8 else (np.dtype(np.uint16), 32768)

    def scale_of(self, tensor: Tensor, *, unit: bool = False) -> list[str]:
        """The constants that a QuantizeLinear or DequantizeLinear of an activation takes: scale and zero point, of rank 0.

        Args:
            tensor: of codes.
            unit: a scale of 1: the numbers are the codes less their zero point.
        """
        dtype, offset = self.code_type(tensor)
        return [
            self.constant(np.float32(1) if unit else tensor.scale, "scale"),
            self.constant(dtype.type(tensor.zero_point + offset), "zero_point"),
        ]

    def codes(self, tensor: Tensor, layout: str) -> str:
        """The name of a tensor's codes in a layout."""
        return self._in_layout(self._codes, tensor, layout, self._constant_codes)

    def _constant_codes(self, tensor: Tensor) -> np.ndarray:
        dtype, offset = self.code_type(tensor)
        return (constant_data(tensor).astype(np.int64) + offset).astype(dtype)

    def put_codes(self, tensor: Tensor, name: str, layout: str) -> None:
        """Says where a tensor's codes are."""
        self._codes[tensor, self._layout(tensor, layout)] = name

    def quantized(self, op: Op, real: str, *, unit: bool = False) -> str:
        """Codes of the operation's output from real numbers, clipped as its fused activation wants it.

        The clip is on codes, and only where the type doesn't clip already: a Relu before QuantizeLinear keeps ONNX Runtime from
        its integer kernel.

        Args:
            op: gives scale, zero point and activation.
            real: real numbers, or numbers of steps.
            unit: whether they are numbers of steps.
        """
        y = op.y
        codes = self.node("QuantizeLinear", [real, *self.scale_of(y, unit=unit)], f"{y.name}:codes")
        dtype, offset = self.code_type(y)
        low, high = (code + offset for code in code_range(op))
        full = np.iinfo(dtype)
        if (low, high) == (full.min, full.max):
            return codes
        bounds = [self.constant(dtype.type(code), "code") for code in (low, high)]
        return self.node("Clip", [codes, *bounds], f"{y.name}:clipped")

    # Real numbers --------------------------------------------------------------------------------------------------------------

    def real(self, tensor: Tensor, layout: str) -> str:
        """The name of a tensor's real numbers in a layout."""
        if not tensor.quantized:
            return self._in_layout(self._reals, tensor, layout, lambda t: t.values())
        layout = self._layout(tensor, layout)
        if (tensor, layout) not in self._reals:
            codes = [self.codes(tensor, layout), *self.scale_of(tensor)]
            self._reals[tensor, layout] = self.node("DequantizeLinear", codes, f"{tensor.name}:real")
        return self._reals[tensor, layout]

    def put_real(self, tensor: Tensor, name: str, layout: str) -> None:
        """Says where a tensor's real numbers are."""
        self._reals[tensor, self._layout(tensor, layout)] = name

    def value(self, tensor: Tensor, layout: str) -> str:
        """Codes where a tensor holds codes, else real numbers (or indices)."""
        return self.codes(tensor, layout) if tensor.quantized else self.real(tensor, layout)

    def follows(self, tensor: Tensor, source: Tensor) -> None:
        """Says that a tensor holds the numbers of another, which may come of a DequantizeLinear."""
        if id(source) in self._dequantized:
            self._dequantized.add(id(tensor))

    def put(self, tensor: Tensor, name: str, layout: str) -> None:
        """Says where a tensor's codes are, or its real numbers if it has no codes."""
        (self.put_codes if tensor.quantized else self.put_real)(tensor, name, layout)

    def finish(self, op: Op, real: str, layout: str) -> None:
        """The end of an operation computed on real numbers: its fused activation, its codes."""
        if op.y.quantized:
            self.put_codes(op.y, self.quantized(op, real), layout)
            return
        activation = op.attrs.get("activation", "none")
        if activation == "relu":
            real = self.node("Relu", [real])
        elif activation == "relu6":
            real = self.node("Clip", [real, *(self.constant(np.float32(v), "bound") for v in (0, 6))])
        if op.kind in _JOINED and any(id(t) in self._dequantized for t in op.inputs):
            real = self.node("Max", [real, self.constant(np.finfo(np.float32).min, "least")])
        self.put_real(op.y, real, layout)

    def places(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """For each tensor that is in the file: (its name there, how its axes lie there)."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for tensor in self.graph.tensors():
            table, rank = self._codes if tensor.quantized else self._reals, len(tensor.shape)
            for layout, axes in ((FIRST, order(rank)), (LAST, range(rank))):
                if (tensor, layout) in table and not tensor.constant:
                    found[tensor.name] = table[tensor, layout], tuple(axes)
        return found

    # Layouts -----------------------------------------------------------------------------------------------------------------

    def layout_of(self, tensors: Iterable[Tensor], rank: int) -> str:
        """The layout to compute in: channels first where an operand exists in that only, and all have the same rank."""
        found = [t for t in tensors if not t.constant]
        if any(len(t.shape) != rank for t in found):
            return LAST
        only = [self._has(t, FIRST) and not self._has(t, LAST) for t in found]
        return FIRST if any(only) else LAST

    def constant_in(self, tensor: Tensor, array: np.ndarray, rank: int, layout: str) -> np.ndarray:
        """A constant that broadcasts against a tensor of a rank, for a layout."""
        if layout == LAST:
            return array
        return array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(order(rank))

    def operands(self, op: Op) -> tuple[str, list[str]]:
        """(the layout, the real numbers of all inputs in it) of an operation on corresponding elements."""
        rank = len(op.y.shape)
        layout = self.layout_of(op.inputs, rank)
        return layout, [self.operand(t, rank, layout) for t in op.inputs]

    def operand(self, tensor: Tensor, rank: int, layout: str) -> str:
        """The real numbers of one that broadcasts against a tensor of a rank, in that tensor's layout."""
        if not tensor.constant:
            return self.real(tensor, layout)
        array = tensor.values() if not tensor.quantized else self._constant_codes(tensor)
        name = self.constant(self.constant_in(tensor, array, rank, layout), tensor.name)
        return self.node("DequantizeLinear", [name, *self.scale_of(tensor)]) if tensor.quantized else name

    def negated(self, tensor: Tensor, rank: int, layout: str) -> str:
        """The negative of a tensor of codes, as real numbers: codes 255 - q, zero point 255 - z, which is exact."""
        dtype, offset = self.code_type(tensor)
        top = np.iinfo(dtype).max
        if tensor.constant:
            array = self.constant_in(tensor, top - self._constant_codes(tensor), rank, layout)
            codes = self.constant(array, f"{tensor.name}:negative")
        else:
            codes = self.node("BitwiseNot", [self.codes(tensor, layout)], f"{tensor.name}:negative")
        zero_point = dtype.type(top - (tensor.zero_point + offset))
        return self.node("DequantizeLinear", [codes, self.constant(tensor.scale), self.constant(zero_point)])

    @staticmethod
    def _layout(tensor: Tensor, layout: str) -> str:
        return layout if len(tensor.shape) > 2 else LAST

    def _has(self, tensor: Tensor, layout: str) -> bool:
        key = tensor, self._layout(tensor, layout)
        return key in (self._codes if tensor.quantized else self._reals)

    def _in_layout(
        self, table: dict[tuple[Tensor, str], str], tensor: Tensor, layout: str, values: Callable[[Tensor], np.ndarray]
    ) -> str:
        layout = self._layout(tensor, layout)
        if (tensor, layout) in table:
            return table[tensor, layout]
        perm = order(len(tensor.shape))
        if tensor.constant:
            array = values(tensor)
            name = self.constant(array.transpose(perm) if layout == FIRST else array, tensor.name)
        else:
            other = table[tensor, LAST if layout == FIRST else FIRST]
            perm = perm if layout == FIRST else list(np.argsort(perm))
            name = self.node("Transpose", [other], f"{tensor.name}:channels_{layout}", perm=[int(a) for a in perm])
        table[tensor, layout] = name
        return name

    # Shapes -----------------------------------------------------------------------------------------------------------------

    def reshaped(self, name: str, tensor: Tensor, layout: str = LAST) -> str:
        """Brought to the shape that a tensor has in a layout; the batch stays."""
        shape = self.sizes(tensor)
        return self.node(
            "Reshape", [name, self.indices([shape[a] for a in order(len(shape))] if layout == FIRST else shape)]
        )

    def sizes(self, tensor: Tensor, *, inferred: bool = False) -> list[int]:
        """A shape as Reshape takes it.

        Args:
            tensor: its sizes are known, save for the batch.
            inferred: the batch is to be found from the number of elements; else it is that of what is reshaped.
        """
        return [(-1 if inferred else 0) if n is None else int(n) for n in tensor.shape]
