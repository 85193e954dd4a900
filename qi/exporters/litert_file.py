"""A LiteRT model in the making: buffers, tensors and operators of one flatbuffer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qi.core import QParams
from qi.core.packing import pack
from qi.errors import UnsupportedError
from qi.ir.graph import Tensor, take_name
from qi.optional import require

__all__ = ["DIGEST", "SIGNATURE", "Draft", "packed", "schema", "sealed", "unsealed"]

SIGNATURE = "serving_default"
DIGEST = "qi_sha256"
_PLACE = hashlib.sha256(b"qi").digest()
_ALIGNMENT = 16
_TYPES = {
    dtype: dtype.upper()
    for dtype in ("float16", "float32", "float64", "bool", "int8", "uint8", "int16", "int32", "int64")
}
_PACKED = {4: "INT4", 2: "INT2"}


def schema() -> Any:
    """The module of LiteRT's schema.

    Raises:
        MissingDependencyError: ai-edge-litert isn't installed.
    """
    return require("ai_edge_litert.schema_py_generated", "litert", "a LiteRT file")


class Draft:
    """A model that grows.

    Args:
        batch: the only one that the file takes; None: any.

    Attributes:
        fb: the schema's module.
    """

    def __init__(self, batch: int | None = None) -> None:
        self.fb = schema()
        self._batch = batch
        self._buffers: list[np.ndarray] = [np.zeros(0, np.uint8)]
        self._shared: dict[bytes, int] = {}
        self._tensors: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._names: set[str] = set()
        self._codes: dict[tuple[int, int], int] = {}
        self._operators: list[Any] = []
        self._kept: list[Tensor] = []  # so that no id is given twice
        self._quantization = _quantization(self.fb)

    # Tensors ------------------------------------------------------------------------------------------------------------

    def reserve(self, tensors: Sequence[Tensor]) -> None:
        """Keeps the names of a graph's tensors for them, before the writer adds some."""
        self._names.update(tensor.name for tensor in tensors)

    def tensor(self, tensor: Tensor) -> int:
        """The number of a graph's tensor, as it is."""
        if id(tensor) not in self._numbers:
            if tensor.data is not None:
                data = tensor.data.astype(np.int8) if tensor.quantized else tensor.data
                number = self.constant(tensor.name, data, tensor.qparams)
            else:
                number = self._activation(tensor.name, tensor.shape, tensor.dtype, tensor.qparams)
            self._numbers[id(tensor)] = number
            self._kept.append(tensor)
        return self._numbers[id(tensor)]

    def new(self, name: str, shape: Sequence[int | None], like: Tensor) -> int:
        """A further activation with another tensor's type and scale."""
        return self._activation(self.unique(name), shape, like.dtype, like.qparams)

    def real(self, name: str, shape: Sequence[int | None]) -> int:
        """A further activation of real numbers."""
        return self._activation(self.unique(name), shape, "float32", None)

    def plain(self, name: str, shape: Sequence[int | None], dtype: str) -> int:
        """A further activation of plain numbers of another type."""
        return self._activation(self.unique(name), shape, dtype, None)

    def state(self, name: str, shape: Sequence[int]) -> int:
        """A further tensor of real numbers that the runtime keeps from one run to the next; zeros at first."""
        number = self.real(name, shape)
        self._tensors[number].isVariable = True
        return number

    def constant(
        self, name: str, data: np.ndarray, qparams: QParams | None = None, *, axis: int = 0, bits: int = 8
    ) -> int:
        """A further constant.

        Args:
            name: one that is taken gets a number behind it.
            data: codes where `qparams` is given.
            qparams: its scales.
            axis: the one that several scales belong to.
            bits: 4 and 2 pack codes.
        """
        kind = _PACKED.get(bits) if qparams is not None else None
        raw = pack(data, bits) if kind else np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        kind = kind or _type(str(data.dtype), name)
        return self._add(self.unique(name), data.shape, kind, self._buffer(raw), qparams, axis)

    def numbers(self, name: str, values: Sequence[int]) -> int:
        """A constant of int32, such as a shape."""
        return self.constant(name, np.asarray(values, np.int32))

    def unique(self, name: str) -> str:
        """The name, or name_1, name_2... if it is taken; taken from now on."""
        return take_name(name, self._names)

    def _activation(self, name: str, shape: Sequence[int | None], dtype: str, qparams: QParams | None) -> int:
        kind = "INT8" if qparams is not None else _type(dtype, name)
        return self._add(name, shape, kind, 0, qparams, 0)

    def _buffer(self, raw: np.ndarray) -> int:
        """The number of a buffer; short ones of equal content are one."""
        key = raw.tobytes() if raw.size <= 4096 else b""
        if key and key in self._shared:
            return self._shared[key]
        self._buffers.append(raw)
        if key:
            self._shared[key] = len(self._buffers) - 1
        return len(self._buffers) - 1

    def _add(
        self, name: str, shape: Sequence[int | None], kind: str, buffer: int, qparams: QParams | None, axis: int
    ) -> int:
        if shape and shape[0] is None:
            shape = [self._batch, *shape[1:]]
        tensor = self.fb.TensorT()
        tensor.name, tensor.type, tensor.buffer = name, getattr(self.fb.TensorType, kind), buffer
        tensor.shape = [1 if n is None else int(n) for n in shape]
        if None in shape:
            tensor.shapeSignature = [-1 if n is None else int(n) for n in shape]
        tensor.hasRank = True
        if qparams is not None:
            how = self._quantization()
            how.scale = np.ascontiguousarray(qparams.scale.reshape(-1), np.float32)
            how.zeroPoint = np.ascontiguousarray(qparams.zero_point.reshape(-1), np.int64)
            how.quantizedDimension = axis if how.scale.size > 1 else 0
            tensor.quantization = how
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    # Operators ----------------------------------------------------------------------------------------------------------

    def operator(
        self, code: str, inputs: Sequence[int], outputs: Sequence[int], version: int = 1, options: Any = None
    ) -> None:
        """Adds an operator.

        Args:
            code: its name in the schema's BuiltinOperator.
            inputs: numbers of tensors.
            outputs: likewise.
            version: of the operator.
            options: an object of the schema, such as Conv2DOptionsT.
        """
        key = (getattr(self.fb.BuiltinOperator, code), version)
        operator = self.fb.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(key, len(self._codes))
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options is not None:
            operator.builtinOptionsType = getattr(self.fb.BuiltinOptions, type(options).__name__[:-1])
            operator.builtinOptions = options
        self._operators.append(operator)

    def options(self, name: str, **fields: Any) -> Any:
        """An options object of the schema by its name without the "T"."""
        made = getattr(self.fb, f"{name}T")()
        for field, value in fields.items():
            setattr(made, field, value)
        return made

    # The file -----------------------------------------------------------------------------------------------------------

    def finish(
        self,
        name: str,
        inputs: Sequence[tuple[str, int]],
        outputs: Sequence[tuple[str, int]],
        metadata: Mapping[str, bytes],
    ) -> bytes:
        """The file.

        Args:
            name: of the model.
            inputs: (name in the signature, number of the tensor) each.
            outputs: likewise.
            metadata: contents by name.
        """
        graph = self.fb.SubGraphT()
        graph.name, graph.tensors, graph.operators = name, self._tensors, self._operators
        graph.inputs, graph.outputs = ([number for _, number in pairs] for pairs in (inputs, outputs))
        model = self.fb.ModelT()
        model.version, model.description, model.subgraphs = 3, "written by qi", [graph]
        model.operatorCodes = [self._operator_code(*key) for key in self._codes]
        model.signatureDefs = [self._signature(inputs, outputs)]
        model.metadata = [self._metadata(*entry) for entry in {**metadata, DIGEST: _PLACE}.items()]
        model.buffers = _buffers(self.fb, self._buffers)
        return sealed(packed(model, sum(data.nbytes for data in self._buffers)))

    def _operator_code(self, code: int, version: int) -> Any:
        made = self.fb.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode, made.version = code, min(code, 127), version
        return made

    def _signature(self, inputs: Sequence[tuple[str, int]], outputs: Sequence[tuple[str, int]]) -> Any:
        made = self.fb.SignatureDefT()
        made.signatureKey, made.subgraphIndex = SIGNATURE, 0
        made.inputs, made.outputs = ([self._mapped(*pair) for pair in pairs] for pairs in (inputs, outputs))
        return made

    def _mapped(self, name: str, number: int) -> Any:
        made = self.fb.TensorMapT()
        made.name, made.tensorIndex = name, number
        return made

    def _metadata(self, name: str, content: bytes) -> Any:
        made = self.fb.MetadataT()
        made.name = name
        self._buffers.append(np.frombuffer(content, np.uint8))
        made.buffer = len(self._buffers) - 1
        return made


def _type(dtype: str, name: str) -> str:
    if dtype not in _TYPES:
        raise UnsupportedError(
            f"expected tensors of {sorted(_TYPES)} for LiteRT; received dtype={dtype!r} in {name!r}; do cast it"
        )
    return _TYPES[dtype]


def _quantization(fb: Any) -> Any:
    """Scales and zero points; equal ones lie in the file once, as the zeros of all channels are a fifth of a small model."""
    places: dict[bytes, int] = {}

    def vector(builder: Any, array: np.ndarray) -> int:
        key = array.dtype.char.encode() + array.tobytes()
        if key not in places:
            places[key] = int(builder.CreateNumpyVector(array))
        return places[key]

    class Shared(fb.QuantizationParametersT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> int:  # noqa: N802 - the schema's name
            scale, zero_point = vector(builder, self.scale), vector(builder, self.zeroPoint)
            fb.QuantizationParametersStart(builder)
            fb.QuantizationParametersAddScale(builder, scale)
            fb.QuantizationParametersAddZeroPoint(builder, zero_point)
            fb.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
            return int(fb.QuantizationParametersEnd(builder))

    return Shared


def _buffers(fb: Any, contents: Sequence[np.ndarray]) -> list[Any]:
    """Buffers whose contents lie at multiples of 16 bytes, which Python's flatbuffers doesn't see to by itself."""

    class Aligned(fb.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> int:  # noqa: N802 - the schema's name
            at = None
            if self.data.size:
                builder.StartVector(1, self.data.size, _ALIGNMENT)
                builder.head -= self.data.size
                builder.Bytes[builder.head : builder.head + self.data.size] = self.data.tobytes()
                at = builder.EndVector()
            fb.BufferStart(builder)
            if at is not None:
                fb.BufferAddData(builder, at)
            return int(fb.BufferEnd(builder))

    return [Aligned(content) for content in contents]


def packed(model: Any, size: int) -> bytes:
    """A model's object as a flatbuffer.

    Args:
        model: a ModelT.
        size: about how many bytes it will take; a hint.
    """
    flatbuffers = require("flatbuffers", "litert", "a LiteRT file")
    builder = flatbuffers.Builder(size + 65536)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def sealed(data: bytes) -> bytes:
    """A file with the digest of all its other bytes where the digest has its place."""
    return data.replace(_PLACE, hashlib.sha256(data).digest(), 1)


def unsealed(data: bytes, digest: bytes) -> bool:
    """Whether the digest in a file is the right one."""
    return hashlib.sha256(data.replace(digest, _PLACE, 1)).digest() == digest
