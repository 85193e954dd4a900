"""Is this a LiteRT file that the runtime may be given? It trusts what it gets, and crashes on damaged bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qi.errors import FileFormatError
from qi.exporters.flatbuffer import read
from qi.exporters.litert_file import DIGEST, packed, schema, unsealed

__all__ = ["LAYOUT", "Contents", "check", "with_outputs"]

LAYOUT = {
    "Model": {
        0: ("version", "I"),
        1: ("codes", "[OperatorCode]"),
        2: ("subgraphs", "[SubGraph]"),
        3: ("description", "string"),
        4: ("buffers", "[Buffer]"),
        5: ("metadata_buffer", "[i]"),
        6: ("metadata", "[Metadata]"),
        7: ("signatures", "[SignatureDef]"),
    },
    "OperatorCode": {0: ("old", "b"), 1: ("custom", "string"), 2: ("version", "i"), 3: ("code", "i")},
    "SubGraph": {
        0: ("tensors", "[Tensor]"),
        1: ("inputs", "[i]"),
        2: ("outputs", "[i]"),
        3: ("operators", "[Operator]"),
        4: ("name", "string"),
    },
    "Tensor": {
        0: ("shape", "[i]"),
        1: ("type", "b"),
        2: ("buffer", "I"),
        3: ("name", "string"),
        4: ("quantization", "Quantization"),
        6: ("sparsity", "?"),
        7: ("signature", "[i]"),
    },
    "Quantization": {
        0: ("min", "[f]"),
        1: ("max", "[f]"),
        2: ("scale", "[f]"),
        3: ("zero_point", "[q]"),
        5: ("details", "?"),
        6: ("axis", "i"),
    },
    "Operator": {
        0: ("code", "I"),
        1: ("inputs", "[i]"),
        2: ("outputs", "[i]"),
        4: ("options", "?"),
        5: ("custom_options", "bytes"),
        8: ("intermediates", "[i]"),
        12: ("options_2", "?"),
    },
    "Buffer": {0: ("data", "bytes"), 1: ("offset", "Q"), 2: ("size", "Q")},
    "Metadata": {0: ("name", "string"), 1: ("buffer", "I")},
    "SignatureDef": {
        0: ("inputs", "[TensorMap]"),
        1: ("outputs", "[TensorMap]"),
        2: ("key", "string"),
        4: ("subgraph", "I"),
    },
    "TensorMap": {0: ("name", "string"), 1: ("tensor", "I")},
}
# Bits of each type, by its number in the schema's TensorType; types of other sizes aren't checked.
_BITS = {0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 9: 8, 10: 64, 15: 32, 16: 16, 17: 4, 19: 2}
_MOST = 2**40


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        names: number of each tensor of the main graph, by name.
        outputs: (name, number) of each output, by its signature's names where there is a signature.
        operators: (code's number, custom name, version) of each operator of the main graph.
        metadata: (start, size) of each entry's content, by name.
        sealed: whether it is just as `qi.exporters.litert.write` wrote it.
    """

    names: dict[str, int]
    outputs: list[tuple[str, int]]
    operators: list[tuple[int, str, int]]
    metadata: dict[str, tuple[int, int]]
    sealed: bool = False


def check(data: bytes, *, changed: bool = False) -> Contents:
    """Checks a file: as a flatbuffer, the numbers in it that lead somewhere, and its digest if we wrote it.

    Args:
        data: the file.
        changed: whether one that we wrote may have been changed since, as quantizers do that keep what they don't know.

    Raises:
        FileFormatError: what is wrong.
    """
    model: Any = read(data, LAYOUT, "Model", b"TFL3")
    if model.get("version") != 3:
        raise FileFormatError(f"expected a LiteRT file of version 3; received {model.get('version')}")
    graphs, buffers = model.get("subgraphs", []), model.get("buffers", [])
    if not graphs:
        raise FileFormatError("expected a LiteRT file with a graph; received none")
    for buffer in buffers:
        if buffer.get("offset", 0) + buffer.get("size", 0) > len(data):
            raise FileFormatError("expected a LiteRT file whose buffers lie in it")
    for graph in graphs:
        _check_graph(graph, buffers, len(model.get("codes", [])))
    for signature in model.get("signatures", []):
        _indices([signature.get("subgraph", 0)], len(graphs), "a signature's graph")
        tensors = graphs[signature.get("subgraph", 0)].get("tensors", [])
        for pair in (*signature.get("inputs", []), *signature.get("outputs", [])):
            _indices([pair.get("tensor", 0)], len(tensors), "a signature's tensor")
    contents = _contents(model)
    if DIGEST in contents.metadata:
        start, size = contents.metadata[DIGEST]
        sealed = size == 32 and unsealed(data, bytes(data[start : start + size]))
        if not sealed and not changed:
            raise FileFormatError("expected a LiteRT file as qi wrote it; its bytes were changed since")
        return replace(contents, sealed=sealed)
    return contents


def _indices(numbers: Sequence[int], count: int, what: str, least: int = 0) -> None:
    if any(not least <= number < count for number in numbers):
        raise FileFormatError(f"expected {what} to be from {least} to {count - 1}; received {list(numbers)[:8]}")


def _check_graph(graph: Any, buffers: Sequence[Any], codes: int) -> None:
    tensors = graph.get("tensors", [])
    for tensor in tensors:
        _check_tensor(tensor, buffers)
    for key in ("inputs", "outputs"):
        _indices(graph.get(key, []), len(tensors), f"a graph's {key}")
    for operator in graph.get("operators", []):
        _indices([operator.get("code", 0)], codes, "an operator's code")
        _indices(operator.get("inputs", []), len(tensors), "an operator's inputs", -1)
        _indices(operator.get("outputs", []), len(tensors), "an operator's outputs")
        _indices(operator.get("intermediates", []), len(tensors), "an operator's tensors", -1)


def _check_tensor(tensor: Any, buffers: Sequence[Any]) -> None:
    name, shape, number = tensor.get("name", ""), tensor.get("shape", []), tensor.get("buffer", 0)
    _indices([number], len(buffers), f"the buffer of {name!r}")
    if any(n < 0 for n in shape) or math.prod(shape) > _MOST:
        raise FileFormatError(f"expected {name!r} to have a possible shape; received {shape}")
    stored, bits = buffers[number].get("data", [0, 0])[1], _BITS.get(tensor.get("type", 0))
    if stored and bits and stored != -(-math.prod(shape) * bits // 8) and "sparsity" not in tensor:
        raise FileFormatError(f"expected {name!r} of shape {shape} in {bits} bits; its buffer has {stored} bytes")
    how = tensor.get("quantization", {})
    scales, zeros, axis = how.get("scale", []), how.get("zero_point", []), how.get("axis", 0)
    if len(scales) > 1 and not 0 <= axis < len(shape):
        raise FileFormatError(f"expected the scales of {name!r} to belong to one of its axes; received {axis}")
    allowed = {0, 1, shape[axis]} if 0 <= axis < len(shape) else {0, 1}
    if len(scales) not in allowed or len(zeros) not in (0, 1, len(scales)) or len(zeros) > len(scales) > 0:
        raise FileFormatError(f"expected one scale for {name!r} or one for each channel; received {len(scales)}")


def _contents(model: Any) -> Contents:
    graph, codes, buffers = model["subgraphs"][0], model.get("codes", []), model.get("buffers", [])
    tensors = [tensor.get("name", "") for tensor in graph.get("tensors", [])]
    outputs = [(tensors[number], number) for number in graph.get("outputs", [])]
    for signature in model.get("signatures", [])[:1]:
        outputs = [(pair.get("name", ""), pair.get("tensor", 0)) for pair in signature.get("outputs", [])]
    operators = []
    for operator in graph.get("operators", []):
        code = codes[operator.get("code", 0)]
        operators.append((max(code.get("code", 0), code.get("old", 0)), code.get("custom", ""), code.get("version", 1)))
    metadata = {}
    for entry in model.get("metadata", []):
        _indices([entry.get("buffer", 0)], len(buffers), "an entry's buffer")
        metadata[entry.get("name", "")] = tuple(buffers[entry.get("buffer", 0)].get("data", [0, 0]))
    return Contents({name: i for i, name in enumerate(tensors)}, outputs, operators, metadata)


def with_outputs(data: bytes, numbers: Sequence[int]) -> bytes:
    """A file that gives other tensors.

    Args:
        data: a sound file.
        numbers: of the tensors that are its outputs from now on.
    """
    fb = schema()
    model = fb.ModelT.InitFromPackedBuf(data)
    model.subgraphs[0].outputs = list(numbers)
    model.signatureDefs = None
    model.metadata = None
    return packed(model, len(data))
